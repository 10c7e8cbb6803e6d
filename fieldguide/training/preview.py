"""Training images before and after augmentation, as one picture."""

from pathlib import Path

import numpy as np
import torch

from fieldguide.core.files import write_bytes
from fieldguide.core.images import add_caption, encode_png
from fieldguide.training import augment
from fieldguide.training.loop import Training, image_px_at

N_IMAGES, N_ROWS = 10, 3
TILE_PX, GAP_PX = 128, 4


def save_batch_picture(training: Training, target: Path) -> None:
    """Writes a row of decoded training images, and below it `N_ROWS` random augmentations of them by the params.

    The random numbers are not those of the training, whose first epochs may go without augmentation.
    """
    train, n_images = training.train, len(training.source)
    numbers = augment.order(train.seed, 0, n_images)[:N_IMAGES]
    (images,) = training.source.batches([numbers])
    rows = [_row(images, "decoded")]
    for epoch in range(N_ROWS):
        u = augment.draws(train.seed, epoch, n_images)[numbers].to(images.device)
        seen = augment.augment(images, u, training.augment, image_px_at(epoch, train, training.image_px))
        seen, _, _ = augment.mix(seen, numbers, training.augment, train.seed, epoch, 0)
        rows.append(_row((seen * 255).round().to(torch.uint8), f"augmented, {epoch + 1}"))
    write_bytes(target, encode_png(np.concatenate(rows)))


def _row(images: torch.Tensor, caption: str) -> np.ndarray:
    """uint8 `[N, 3, H, W]` side by side with a caption: uint8 `[h, w, 3]`; all rows have the same size."""
    resized = torch.nn.functional.interpolate(images.cpu(), (TILE_PX, TILE_PX))
    padded = torch.nn.functional.pad(resized, (0, GAP_PX))
    row = padded.permute(2, 0, 3, 1).reshape(TILE_PX, -1, 3).numpy()
    return add_caption(row, [caption], row.shape[1])
