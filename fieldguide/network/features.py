"""Embeddings by a backbone that is not trained, kept by content for the next training or evaluation of a head on it.

A file below `.fieldguide/features` for each state of the weights, the code, the libraries, the processor and the settings.
Results are the same bytes with and without it: every forward pass has as many images (`inference.features_of`), and an image's
embedding does not depend on the others in it. A file that is damaged or cannot be written is not used.
"""

import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from fieldguide.core.caches import cache_key, remove_oldest
from fieldguide.core.errors import UserError
from fieldguide.core.machine import cpu_model
from fieldguide.core.paths import features_cache
from fieldguide.network.checkpoint import save_sealed, sealed_content
from fieldguide.network.device import computes_bf16, device_name
from fieldguide.network.loader import Source, digests_of
from fieldguide.network.models import Classifier

MAX_FILE_BYTES = 400_000_000  # 80,000 embeddings of length 1280: a guess; writing takes three times this memory
MAX_BYTES = 2_000_000_000  # of all files
LIBRARIES = ("numpy", "pillow", "pillow-heif", "timm", "torch", "torchvision")


class KnownFeatures:
    """Embeddings of a source's images that are known by their content; without digests nothing is known or kept.

    digests: SHA-256 of each image of the source, `S64 [N]`; path: of the file.
    """

    def __init__(self, digests: np.ndarray | None = None, path: Path | None = None) -> None:
        self.digests, self.path = digests, path
        self.vectors: dict[bytes, np.ndarray] = {}
        self.has_new = False
        if path is not None:
            with suppress(UserError, OSError, KeyError), sealed_content(path, "file of embeddings", "train") as (_, tensors):
                own = [digest.tobytes().hex().encode() for digest in tensors["sha256"].numpy()]
                self.vectors = dict(zip(own, tensors["vectors"].numpy(), strict=True))
            with suppress(OSError):
                os.utime(path)

    def has(self, rows: torch.Tensor) -> np.ndarray:
        """Which rows of the source are known: bool `[M]`."""
        if self.digests is None:
            return np.zeros(len(rows), bool)
        return np.array([digest in self.vectors for digest in self.digests[rows.numpy()].tolist()], bool)

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """The embeddings of known rows: float32 `[M, F]`."""
        assert self.digests is not None
        return torch.from_numpy(np.stack([self.vectors[digest] for digest in self.digests[rows.numpy()].tolist()]))

    def add(self, rows: torch.Tensor, vectors: torch.Tensor) -> None:
        if self.digests is not None:
            self.vectors |= zip(self.digests[rows.numpy()].tolist(), vectors.float().cpu().numpy(), strict=True)
            self.has_new = True

    def save(self) -> None:
        """Writes the file if something was added, and removes the oldest others if all together are too large."""
        if self.path is None or not self.has_new:
            return
        digests = np.frombuffer(bytes.fromhex(b"".join(self.vectors).decode()), np.uint8).reshape(-1, 32)
        if len(digests) * next(iter(self.vectors.values())).nbytes > MAX_FILE_BYTES:
            return
        vectors = torch.from_numpy(np.stack(list(self.vectors.values())))
        with suppress(UserError, OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_sealed(self.path, {"sha256": torch.from_numpy(digests.copy()), "vectors": vectors}, {})
            remove_oldest(self.path.parent, "*.safetensors", MAX_BYTES)


def known_features(
    model: Classifier, source: Source, image_px: int, batch_size: int, dtype: torch.dtype, begin: bool
) -> KnownFeatures:
    """What is known of a source's embeddings at `image_px`, on a CPU; `begin`: a file is written if there is none yet.

    Nothing is known if the source has other pixels than the network takes.
    """
    digests, device = digests_of(source, image_px), model.head.weight.device
    if digests is None or device.type != "cpu":
        return KnownFeatures()
    path = features_cache() / f"{_key(model, image_px, batch_size, dtype)}.safetensors"
    return KnownFeatures(digests, path) if begin or path.exists() else KnownFeatures()


def _key(model: Classifier, image_px: int, batch_size: int, dtype: torch.dtype) -> str:
    """A hash of all on which an embedding depends but the image."""
    device = model.head.weight.device
    settings = [image_px, batch_size, str(dtype), device_name(device), cpu_model(), computes_bf16(device)]
    weights = (
        f"{name} {list(tensor.shape)}\n".encode() + tensor.contiguous().numpy().tobytes()
        for name, tensor in model.state_dict().items()
        if not name.startswith("head.")
    )
    return cache_key([settings, *weights], Path(__file__).with_name("inference.py"), LIBRARIES)
