"""`fieldguide serve`: the web page and its API.

Stops on SIGTERM or Ctrl-C after finishing the requests in flight. Reloads the model when its file or the champion changes.
"""

import argparse
import logging
import signal
from dataclasses import fields
from pathlib import Path
from typing import Any

from fieldguide.core.errors import UserError
from fieldguide.web.settings import MIB, Settings

DESCRIPTION = "Serve the web page and the JSON API of a model."
EPILOG = (
    "To serve other machines, behind a proxy that terminates TLS and forwards the Host header:"
    " fieldguide serve --host 0.0.0.0 --allowed-host guide.example.org"
)
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `fieldguide serve`; their defaults are those of `Settings`."""
    default: dict[str, Any] = {field.name: field.default for field in fields(Settings)}

    def option(name: str, value: object, text: str) -> None:
        parser.add_argument(name, default=value, type=type(value), help=f"{text} (default {value})")

    option("--host", "127.0.0.1", "address to listen on")
    option("--port", 8000, "port; 0 = any free port")
    parser.add_argument("--allowed-host", action="append", default=[], help="accepted Host header; may be repeated")
    for name, text in (
        ("model", "model file, or a registered model such as models:/fieldguide@champion"),
        ("manifest", "manifest that lists the example photographs"),
        ("raw", "folder of the example photographs"),
    ):
        parser.add_argument(f"--{name}", default=default[name], type=Path, help=f"{text} (default {default[name]})")
    option("--max-mib", default["max_body_bytes"] // MIB, "maximum MiB per request")
    option("--max-files", default["max_files"], "maximum images per request")
    option("--max-megapixels", default["max_pixels"] // 1_000_000, "maximum million pixels per image")
    option("--max-images", default["max_images"], "maximum images in the server at a time; further ones get 503")
    option("--max-batch", default["max_batch"], "images per run of the network")
    option("--workers", default["n_workers"], "batches decoded and computed at a time; 0 = one per core")


def check_options(args: argparse.Namespace) -> None:
    """Exits with status 2 for a value out of range."""
    for name in ("max_mib", "max_files", "max_megapixels", "max_images", "max_batch"):
        if getattr(args, name) < 1:
            args.parser.error(f"--{name.replace('_', '-')} must be ≥ 1, got {getattr(args, name)}")
    if args.workers < 0:
        args.parser.error(f"--workers must be ≥ 0, got {args.workers}")
    if not 0 <= args.port < 65_536:
        args.parser.error(f"--port must be in [0, 65535], got {args.port}")


def serve(args: argparse.Namespace) -> None:
    """Serves until SIGTERM or SIGINT."""
    check_options(args)
    from fieldguide.web import memory
    from fieldguide.web.app import bare_host, create_app
    from fieldguide.web.server import CONNECTIONS, Server

    local = args.host in LOOPBACK
    settings = Settings(
        model=args.model,
        manifest=args.manifest,
        raw=args.raw,
        allowed_hosts=tuple(map(bare_host, args.allowed_host)) or (("127.0.0.1", "localhost", "[::1]") if local else ()),
        max_body_bytes=args.max_mib * MIB,
        max_files=args.max_files,
        max_pixels=args.max_megapixels * 1_000_000,
        max_images=max(args.max_images, args.max_files),
        max_batch=args.max_batch,
        n_workers=args.workers,
    )
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    allow_connections(CONNECTIONS + 100)
    memory.share()
    app = create_app(settings)
    try:
        server = Server(app, args.host, args.port, settings)
    except (OSError, ValueError) as error:
        raise UserError(f"{args.host}:{args.port}: cannot listen ({error}); use another --host or --port") from error
    guide = app.extensions["guide"]

    def stop(*_: object) -> None:
        guide.draining = True
        server.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    name = f"[{args.host}]" if ":" in args.host else args.host
    print(f"{settings.model}: {len(guide.watched.current.classifier.class_names)} classes", flush=True)
    print(f"-> http://{name}:{server.effective_port}", flush=True)
    server.run()
    guide.close()


def allow_connections(n_files: int) -> None:
    """Raises the soft limit of open files, up to the hard limit; each connection is an open file."""
    try:
        import resource
    except ImportError:  # not a Unix
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = n_files if hard == resource.RLIM_INFINITY else min(n_files, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
