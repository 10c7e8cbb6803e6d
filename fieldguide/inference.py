"""Pixels to logits, and how good they are: never augmented, the same for validation, evaluation and proof."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fieldguide.device import autocast
from fieldguide.loader import Source
from fieldguide.models import Classifier


@dataclass(frozen=True)
class Score:
    """Mean cross-entropy (nats) and the share of images whose top 1 is right."""

    loss: float
    accuracy: float


@torch.inference_mode()
def predict(
    model: Classifier,
    source: Source,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Logits of unchanged images, in their order: float32 `[N, K]` on the CPU."""
    model.eval()
    logits = [torch.empty(0, model.head.out_features)]
    for images in source.batches(torch.arange(len(source)).split(batch_size) if len(source) else []):
        pixels = images.to(device).float().div_(255)
        with autocast(device, dtype):
            logits.append(model(pixels.contiguous(memory_format=torch.channels_last)).float())
    return torch.cat([part.cpu() for part in logits])


def score(logits: torch.Tensor, targets: torch.Tensor) -> Score:
    """Loss and accuracy of logits `[N, K]` against targets `[N]`."""
    return Score(F.cross_entropy(logits, targets).item(), (logits.argmax(1) == targets).double().mean().item())
