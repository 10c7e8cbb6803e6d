"""Settings of the server with their defaults: the options of `fieldguide serve`. None of them alters an answer."""

from dataclasses import dataclass
from pathlib import Path

from fieldguide.core.machine import n_cores
from fieldguide.core.paths import MANIFEST, ONNX, RAW

MIB = 1 << 20


@dataclass(frozen=True)
class Settings:
    """Files and limits of one server."""

    model: Path = ONNX  # or models:/… of MLflow's registry
    manifest: Path = MANIFEST  # where example photographs are listed; may be absent
    raw: Path = RAW  # where they lie; may be absent
    allowed_hosts: tuple[str, ...] = ()  # Host headers that are answered, a port left out of account; empty = all
    max_body_bytes: int = 20 * MIB  # of one request
    max_files: int = 16  # of one request
    max_pixels: int = 50_000_000  # of one image, before it is decoded
    max_images: int = 32  # waiting, decoded or computed at a time; more is answered with 503
    within_s: float = 1.0  # what is accepted is to be answered by then; a slow network gets fewer images at a time
    max_batch: int = 4  # images per run of the network
    n_workers: int = 0  # batches decoded and computed at a time; 0 = one a core
    reload_s: float = 1.0  # how often the model file is looked at
    registry_s: float = 15.0  # how often the registry is asked which version an alias names

    @property
    def workers(self) -> int:
        return self.n_workers or n_cores()
