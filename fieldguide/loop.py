"""One epoch of training: one code path for every device and precision."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from fieldguide import augment
from fieldguide.device import autocast
from fieldguide.inference import Score
from fieldguide.optim import lr_at, set_lr
from fieldguide.params import Augment, Train


@dataclass(frozen=True)
class Training:
    """A network with its optimiser, its images and its settings, ready for one epoch after the other.

    images: uint8 `[N, 3, H, W]`, targets: int64 `[N]`, both on the model's device.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    images: torch.Tensor
    targets: torch.Tensor
    train: Train
    augment: Augment
    image_px: int
    dtype: torch.dtype

    def epoch(self, epoch: int) -> Score:
        """Every image once, in this epoch's order and with this epoch's changes; the score is that of the changed images.

        Nothing waits for the device before the end.
        """
        self.model.train()
        device, n_images, size = self.images.device, len(self.images), self.train.batch_size
        order = augment.order(self.train.seed, epoch, n_images).to(device)
        u = augment.draws(self.train.seed, epoch, n_images).to(device)
        batches = list(order.split(size))
        if len(batches) > 1 and len(batches[-1]) == 1:  # batch norm cannot learn from a single value
            batches[-2:] = [torch.cat(batches[-2:])]
        sums = torch.zeros(2, device=device)
        for batch, chosen in enumerate(batches):
            pixels = augment.augment(self.images[chosen], u[chosen], self.augment, self.image_px)
            set_lr(self.optimizer, lr_at(epoch * len(batches) + batch, self.train.epochs * len(batches), self.train))
            sums += self.step(pixels, self.targets[chosen])
        loss_sum, n_right = sums.tolist()
        return Score(loss_sum / n_images, n_right / n_images)

    def step(self, pixels: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """One update of the weights; float32 `[2]`: the sum of cross-entropies without smoothing, the number right."""
        with autocast(pixels.device, self.dtype):
            logits = self.model(pixels)
        logits = logits.float()
        loss = F.cross_entropy(logits, target, label_smoothing=self.train.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            return torch.stack([F.cross_entropy(logits, target, reduction="sum"), (logits.argmax(1) == target).sum()])
