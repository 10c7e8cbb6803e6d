"""Embeddings of all images by a backbone with published weights, computed once per data set: data/embeddings.safetensors."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from fieldguide.core import memory
from fieldguide.core.errors import UserError
from fieldguide.core.images import UnreadableImage, decode, encoded_reader
from fieldguide.core.manifest import named_tuples
from fieldguide.core.params import LabelCheck, Model, Runtime
from fieldguide.network.checkpoint import save_sealed, sealed_content
from fieldguide.network.device import autocast, device_name, pick_device, pick_dtype, set_up
from fieldguide.network.models import Classifier, build, check_name, depthwise_share, runs_at
from fieldguide.network.weights import load_weights

BATCH, CHUNK = 32, 256  # images per forward pass, and decoded at a time
SECTION = "label_check"
WITHOUT = "or set label_check.enabled to false"


@dataclass(frozen=True)
class ImageEmbeddings:
    """Embeddings by the content of the image.

    sha256: uint8 `[N, 32]`, of the encoded bytes, each once; vectors: float16 `[N, F]`.
    """

    sha256: np.ndarray
    vectors: np.ndarray

    def rows_of(self, table: pd.DataFrame) -> np.ndarray:
        """The row of each image of a manifest: int64 `[M]`; raises `UserError` if one has no embedding."""
        own = {digest.tobytes(): row for row, digest in enumerate(self.sha256)}
        rows = np.array([own.get(bytes.fromhex(digest), -1) for digest in table["sha256"]], np.int64)
        if len(missing := np.flatnonzero(rows < 0)):
            name = table["id"].iloc[missing[0]]
            raise UserError(f"{name} has no embedding ({len(missing)} images); compute them with: dvc repro -f embed")
        return rows


def backbone(settings: LabelCheck) -> Classifier:
    """The network whose features are the embeddings, with its weights; raises `UserError` if they are not at hand."""
    check_name(settings.network, where="params.yaml: label_check.network")
    model = build(settings.network, 2, settings.image_px, SECTION)
    if not runs_at(model, settings.image_px):
        raise UserError(f"params.yaml: label_check.image_px is {settings.image_px}, which {settings.network} does not support")
    named = Model(name=settings.network, weights=settings.weights, image_px=settings.image_px)
    try:
        print(f"{settings.network} at {settings.image_px} px, {load_weights(model, named, SECTION)}")
    except UserError as error:
        raise UserError(f"{error}; {WITHOUT}") from error
    return model


def embed_images(rows: pd.DataFrame, raw: Path, settings: LabelCheck, runtime: Runtime) -> ImageEmbeddings:
    """Embeddings of all readable images of an index, each content once, in its order; without images if switched off.

    Every forward pass has `BATCH` images, so that an image's embedding does not depend on their number.
    """
    if not settings.enabled:
        return ImageEmbeddings(np.empty((0, 32), np.uint8), np.empty((0, 0), np.float16))
    device = pick_device(runtime.device)
    set_up(device)
    model = backbone(settings).to(device).to(memory_format=torch.channels_last).eval()
    dtype = pick_dtype("auto", device, depthwise_share(model, settings.image_px))
    print(f"device {device_name(device)}, {str(dtype).removeprefix('torch.')}")
    digests: list[bytes] = []
    vectors = [np.empty((0, model.head.in_features), np.float16)]
    for some, pixels in _batches(rows, raw, settings.image_px, runtime.n_workers):
        images = torch.zeros(BATCH, *pixels.shape[1:], dtype=torch.uint8)
        images[: len(pixels)] = torch.from_numpy(pixels)
        scaled = images.permute(0, 3, 1, 2).to(device).float().div_(255)
        with torch.inference_mode(), autocast(device, dtype):
            embedded = model.features((scaled - model.pixel_mean) / model.pixel_std)
        digests += some
        vectors.append(embedded[: len(pixels)].to(torch.float16).cpu().numpy())
    memory.give_back()
    return ImageEmbeddings(np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32), np.concatenate(vectors))


def _batches(rows: pd.DataFrame, raw: Path, image_px: int, n_workers: int) -> Iterator[tuple[list[bytes], np.ndarray]]:
    """SHA-256 and pixels, uint8 `[B, image_px, image_px, 3]`, of readable images of different content, `BATCH` at a time."""
    places = [(row.file, row.offset, row.length) for row in named_tuples(rows)]
    seen: set[bytes] = set()
    waiting: list[tuple[bytes, np.ndarray]] = []
    with (
        ThreadPoolExecutor(n_workers) as pool,
        encoded_reader(raw, rows["file"]) as read,
        tqdm(total=len(places), unit="image", desc="embed", disable=None) as progress,
    ):

        def load(place: tuple[str, int, int]) -> tuple[bytes, np.ndarray | None]:
            encoded = read(*place)
            digest = hashlib.sha256(encoded).digest()
            with suppress(UnreadableImage):
                return digest, decode(encoded, image_px)
            return digest, None

        for start in range(0, len(places), CHUNK):
            some = places[start : start + CHUNK]
            for digest, pixels in pool.map(load, some):
                if pixels is not None and digest not in seen:
                    seen.add(digest)
                    waiting.append((digest, pixels))
            last = start + CHUNK >= len(places)
            while len(waiting) >= BATCH or (last and waiting):
                batch, waiting = waiting[:BATCH], waiting[BATCH:]
                yield [digest for digest, _ in batch], np.stack([pixels for _, pixels in batch])
            progress.update(len(some))


def save_embeddings(target: Path, embeddings: ImageEmbeddings, settings: LabelCheck) -> None:
    tensors = {"sha256": torch.from_numpy(embeddings.sha256.copy()), "vectors": torch.from_numpy(embeddings.vectors)}
    save_sealed(target, tensors, {"network": settings.network, "weights": settings.weights, "image_px": settings.image_px})


def load_embeddings(source: Path) -> ImageEmbeddings:
    """Raises `UserError` for a file that `save_embeddings` did not write."""
    with sealed_content(source, "file of embeddings", "embed") as (_, tensors):
        return ImageEmbeddings(tensors["sha256"].numpy(), tensors["vectors"].numpy())
