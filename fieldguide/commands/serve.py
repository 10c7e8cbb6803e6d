"""`fieldguide serve`: the web page and its API.

Stops on SIGTERM or Ctrl-C after finishing the requests in flight. Reloads the model when its file or the champion changes.
"""

import argparse
import logging
import signal

from fieldguide.core import memory
from fieldguide.core.errors import UserError
from fieldguide.web.app import bare_host, create_app
from fieldguide.web.server import CONNECTIONS, Server
from fieldguide.web.settings import LOOPBACK, MIB, Settings


def serve(args: argparse.Namespace) -> None:
    """Serves until SIGTERM or SIGINT."""
    local = args.host in LOOPBACK
    settings = Settings(
        model=args.model,
        manifest=args.manifest,
        raw=args.raw,
        allowed_hosts=tuple(map(bare_host, args.allowed_host)) or (("127.0.0.1", "localhost", "[::1]") if local else ()),
        prefix=args.prefix,
        trusted_proxies=args.trusted_proxy,
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
    print(f"-> http://{name}:{server.effective_port}{settings.prefix}", flush=True)
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
