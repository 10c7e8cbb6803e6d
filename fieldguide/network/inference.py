"""Pixels to logits, without augmentation; shared by validation, evaluation and the comparison with ONNX."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

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
    for pixels in _pixels(source, batches_of(len(source), batch_size), device):
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
    for pixels in _pixels(source, batches, device):
        seen = (pixels, pixels.flip(3))[: N_VIEWS[tta]]
        embeddings = [model.features((view - model.pixel_mean) / model.pixel_std) for view in seen]
        yield torch.stack([model.head(embedding) for embedding in embeddings]), torch.stack(embeddings)


def batches_of(n_images: int, batch_size: int) -> Sequence[torch.Tensor]:
    """The row numbers of all images in their order, int64, in batches; the last batch may be smaller."""
    return torch.arange(n_images).split(batch_size) if n_images else ()


def _pixels(source: Source, batches: Sequence[torch.Tensor], device: torch.device) -> Iterator[torch.Tensor]:
    """Float `[B, 3, H, W]` in 0..1, channels last."""
    for images in source.batches(batches):
        yield images.to(device).float().div_(255).contiguous(memory_format=torch.channels_last)


def score(logits: torch.Tensor, targets: torch.Tensor) -> SplitScore:
    accuracy = (logits.argmax(1) == targets).double().mean().item()
    return SplitScore(loss=F.cross_entropy(logits, targets).item(), accuracy=accuracy)
