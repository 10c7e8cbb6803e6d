"""Settings of the server with their defaults; most are options of `fieldguide serve`. None of them changes predictions."""

from dataclasses import dataclass
from pathlib import Path

from fieldguide.core.machine import n_cores
from fieldguide.core.paths import MANIFEST, ONNX, RAW

MIB = 1 << 20
LOOPBACK = ("127.0.0.1", "localhost", "::1")  # names of this machine
PREFIX = r"(/[\w.~-]+)+"  # ASCII; before the paths of the page's URLs


@dataclass(frozen=True)
class Settings:
    """Files and limits of one server."""

    model: Path = ONNX  # or models:/… of MLflow's registry
    manifest: Path = MANIFEST  # lists the example photographs; may be missing
    raw: Path = RAW  # their folder; may be missing
    allowed_hosts: tuple[str, ...] = ()  # accepted Host headers, without port; empty = all
    prefix: str = ""  # before the paths of the page's URLs, such as /guide
    trusted_proxies: int = 0  # proxies in front, whose X-Forwarded-For, -Proto, -Host, -Port and -Prefix are believed
    max_body_bytes: int = 20 * MIB  # of one request
    max_files: int = 16  # of one request
    max_pixels: int = 100_000_000  # of one image, before it is decoded
    max_images: int = 32  # in the server at a time; further ones get 503
    within_s: float = 1.0  # target response time; a slow network gets fewer images at a time
    max_batch: int = 4  # images per run of the network
    n_workers: int = 0  # batches decoded and computed at a time; 0 = one per core
    reload_s: float = 1.0  # interval between checks of the model file
    registry_s: float = 15.0  # interval between checks of the registry's alias

    @property
    def workers(self) -> int:
        return self.n_workers or n_cores()
