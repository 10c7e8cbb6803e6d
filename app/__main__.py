"""Serves the page and the API on the model at hand: `python -m app`, then open the address that it prints.

For others than this machine, behind a proxy that ends TLS and passes the Host header on:

    python -m app --host 0.0.0.0 --allowed-host guide.example.org

Stops on SIGTERM or Ctrl-C, after finishing what is in flight; takes up a new model file, or a new champion, by itself.
"""

import argparse
import logging
import signal
from dataclasses import fields
from pathlib import Path
from typing import Any

from app import memory
from app.server import CONNECTIONS, Server
from app.settings import MIB, Settings
from app.web import bare_host, create_app
from fieldguide.errors import UserError, run_command

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def main() -> None:
    arguments = parse()
    local = arguments.host in LOOPBACK
    settings = Settings(
        model=arguments.model,
        manifest=arguments.manifest,
        raw=arguments.raw,
        allowed_hosts=tuple(map(bare_host, arguments.allowed_host)) or (("127.0.0.1", "localhost", "[::1]") if local else ()),
        max_body_bytes=arguments.max_mib * MIB,
        max_files=arguments.max_files,
        max_pixels=arguments.max_megapixels * 1_000_000,
        max_images=max(arguments.max_images, arguments.max_files),
        max_batch=arguments.max_batch,
        n_workers=arguments.workers,
    )
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    allow_connections(CONNECTIONS + 100)
    memory.share()
    app = create_app(settings)
    try:
        server = Server(app, arguments.host, arguments.port, settings)
    except (OSError, ValueError) as error:
        raise UserError(f"{arguments.host}:{arguments.port}: cannot listen ({error}); give another --host or --port") from error
    guide = app.extensions["guide"]

    def stop(*_: object) -> None:
        guide.draining = True
        server.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    name = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    print(f"{settings.model}: {len(guide.watched.current.classifier.class_names)} classes", flush=True)
    print(f"-> http://{name}:{server.effective_port}", flush=True)
    server.run()
    guide.close()


def parse() -> argparse.Namespace:
    default: dict[str, Any] = {field.name: field.default for field in fields(Settings)}
    parser = argparse.ArgumentParser(
        prog="python -m app", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def option(name: str, value: object, text: str, **more: Any) -> None:
        parser.add_argument(name, default=value, type=type(value), help=f"{text} (default {value})", **more)

    option("--host", "127.0.0.1", "address to listen on")
    option("--port", 8000, "port; 0 = any that is free")
    parser.add_argument("--allowed-host", action="append", default=[], help="Host header to answer; may be given repeatedly")
    for name, text in (
        ("model", "the model file, or a registered model such as models:/fieldguide@champion"),
        ("manifest", "lists the example photographs"),
        ("raw", "holds them"),
    ):
        parser.add_argument(f"--{name}", default=default[name], type=Path, help=f"{text} (default {default[name]})")
    option("--max-mib", default["max_body_bytes"] // MIB, "MiB of a request")
    option("--max-files", default["max_files"], "images of a request")
    option("--max-megapixels", default["max_pixels"] // 1_000_000, "million pixels of an image")
    option("--max-images", default["max_images"], "images in the server at a time; more get 503")
    option("--max-batch", default["max_batch"], "images per run of the network")
    option("--workers", default["n_workers"], "batches decoded and computed at a time; 0 = one a core")
    arguments = parser.parse_args()
    for name in ("max_mib", "max_files", "max_megapixels", "max_images", "max_batch"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(arguments, name)}")
    if arguments.workers < 0:
        parser.error(f"--workers must be at least 0, got {arguments.workers}")
    if not 0 <= arguments.port < 65_536:
        parser.error(f"--port must be 0 to 65535, got {arguments.port}")
    return arguments


def allow_connections(n_files: int) -> None:
    """Raises the soft limit of open files as far as the hard one permits: each connection is one."""
    try:
        import resource
    except ImportError:  # not a Unix
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = n_files if hard == resource.RLIM_INFINITY else min(n_files, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    run_command(main)
