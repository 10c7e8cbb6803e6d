"""Pixels to logits, without augmentation; shared by validation, evaluation and the comparison with ONNX."""

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from tqdm import tqdm

from fieldguide.core.artifacts import SplitScore
from fieldguide.network.device import autocast
from fieldguide.network.loader import Source
from fieldguide.network.models import Classifier

N_VIEWS = {"none": 1, "mirror": 2}  # forward passes per image of each test-time augmentation


@torch.inference_mode()
def predict(
    model: Classifier,
    source: Source,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Logits of all images in their order: float32 `[N, K]` on the CPU."""
    model.eval()
    logits = [torch.empty(0, model.head.out_features)]
    for pixels in pixels_of(source, batches_of(len(source), batch_size), device):
        with autocast(device, dtype):
            logits.append(model(pixels).float())
    return torch.cat([part.cpu() for part in logits])


@torch.inference_mode()
def views(
    model: Classifier, source: Source, batches: Sequence[torch.Tensor], device: torch.device, tta: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Logits `[V, B, K]` and embeddings `[V, B, F]` of each batch of row numbers, float32 on the device.

    The first view is the image itself; `tta` mirror adds its mirror image.
    """
    model.eval()
    for pixels in pixels_of(source, batches, device):
        seen = (pixels, pixels.flip(3))[: N_VIEWS[tta]]
        embeddings = [model.features((view - model.pixel_mean) / model.pixel_std) for view in seen]
        yield torch.stack([model.head(embedding) for embedding in embeddings]), torch.stack(embeddings)


@torch.inference_mode()
def embed(model: Classifier, images: Iterable[torch.Tensor], n_images: int, dtype: torch.dtype) -> torch.Tensor:
    """The embeddings of batches of pixels, float `[B, 3, H, W]` in 0..1: float32 `[n_images, F]`, on the model's device."""
    model.eval()
    parts = [torch.empty(0, model.head.in_features, device=model.head.weight.device)]
    with tqdm(total=n_images, unit="image", desc="embed", disable=None) as progress:
        for pixels in images:
            with autocast(pixels.device, dtype):
                parts.append(model.features((pixels - model.pixel_mean) / model.pixel_std).float())
            progress.update(len(pixels))
    return torch.cat(parts)


class Embeddings:
    """A `Source` of embeddings instead of images: float32 `[N, F]` on a device."""

    def __init__(self, vectors: torch.Tensor) -> None:
        self.vectors = vectors

    def __len__(self) -> int:
        return len(self.vectors)

    def batches(self, batches: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        for rows in batches:
            yield self.vectors.index_select(0, rows.to(self.vectors.device, non_blocking=True))


def batches_of(n_images: int, batch_size: int) -> Sequence[torch.Tensor]:
    """The row numbers of all images in their order, int64, in batches; the last batch may be smaller."""
    return torch.arange(n_images).split(batch_size) if n_images else ()


def pixels_of(source: Source, batches: Sequence[torch.Tensor], device: torch.device) -> Iterator[torch.Tensor]:
    """Float `[B, 3, H, W]` in 0..1, channels last."""
    for images in source.batches(batches):
        yield images.to(device).float().div_(255).contiguous(memory_format=torch.channels_last)


def score(logits: torch.Tensor, targets: torch.Tensor) -> SplitScore:
    accuracy = (logits.argmax(1) == targets).double().mean().item()
    return SplitScore(loss=F.cross_entropy(logits, targets).item(), accuracy=accuracy)
