"""One epoch of training: one code path for every device, loader and precision."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F

from fieldguide import augment
from fieldguide.device import autocast
from fieldguide.errors import UserError
from fieldguide.inference import Score
from fieldguide.loader import Source
from fieldguide.models import Classifier
from fieldguide.optim import lr_at, set_lr, update_average
from fieldguide.params import Augment, Train

PX_STEP = 16  # of the growing side: networks halve it four times or more


@dataclass(frozen=True)
class Training:
    """A network with its optimiser, its images and its settings, ready for one epoch after the other.

    average: the moving average of the model's weights, or None; targets: int64 `[N]` on the model's device.
    """

    model: Classifier
    average: Classifier | None
    optimizer: torch.optim.Optimizer
    source: Source
    targets: torch.Tensor
    train: Train
    augment: Augment
    image_px: int
    dtype: torch.dtype

    @property
    def result(self) -> Classifier:
        """The network that is validated and kept."""
        return self.model if self.average is None else self.average

    @property
    def device(self) -> torch.device:
        return self.targets.device

    @cached_property
    def steps_per_epoch(self) -> int:
        return -(-len(self._cut(torch.arange(len(self.source)))) // self.train.accumulate)

    @cached_property
    def class_weights(self) -> torch.Tensor | None:
        """For `class_weights: balanced` what makes all classes weigh the same, 1 on the mean image: float32 `[K]`."""
        if self.train.class_weights == "equal":
            return None
        counts = torch.bincount(self.targets, minlength=self.model.head.out_features)
        weights = len(self.targets) / (counts.clamp(min=1) * (counts > 0).sum())
        return torch.where(counts > 0, weights, 1.0)  # a class without images has its share of smoothed labels

    def epoch(self, epoch: int) -> Score:
        """Every image once (or every class equally often), in this epoch's order and with this epoch's changes.

        The score is that of the changed images. Nothing waits for the device before the end, and everything random is a
        function of (seed, epoch, place in the epoch). Raises `UserError` naming the first batch whose loss is not finite.
        """
        train, n_images, device = self.train, len(self.source), self.device
        self._begin(frozen=epoch < train.head_epochs)
        image_px = image_px_at(epoch, train, self.image_px)
        batches = self._cut(self._order(epoch))
        u = augment.draws(train.seed, epoch, n_images).to(device).split([len(chosen) for chosen in batches])
        targets = self.targets[torch.cat(batches).to(device)].split([len(chosen) for chosen in batches])
        mixes = epoch < train.epochs * self.augment.mix_until
        sums, losses = torch.zeros(2, device=device), torch.zeros(len(batches), device=device)
        for k, images in enumerate(self.source.batches(batches)):
            step, place = divmod(k, train.accumulate)
            step += epoch * self.steps_per_epoch
            torch.manual_seed(_seed_of(train.seed, epoch, k))  # for dropout in the network
            pixels = augment.augment(images, u[k], self.augment, image_px)
            partner, share = targets[k], 1.0
            if mixes:
                pixels, partner, share = augment.mix(pixels, targets[k], self.augment, train.seed, epoch, k)
            summed = batches[k - place : k - place + train.accumulate]
            weight = len(batches[k]) / sum(map(len, summed))
            losses[k], scores = self.learn(pixels, targets[k], partner, share, weight)
            sums += scores
            if place + 1 == len(summed):
                self.update(step)
        self._refuse_non_finite(losses, epoch)
        loss_sum, n_right = sums.tolist()
        return Score(loss_sum / n_images, n_right / n_images)

    def learn(
        self, pixels: torch.Tensor, target: torch.Tensor, partner: torch.Tensor, share: float, weight: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds a batch's gradient, times `weight`; `share` of each image is of class `target`, the rest `partner`.

        Returns the loss, and float32 `[2]`: the sum of cross-entropies without smoothing and weights, the number right.
        """
        with autocast(pixels.device, self.dtype):
            logits = self.model(pixels)
        logits = logits.float()
        settings = {"weight": self.class_weights, "label_smoothing": self.train.label_smoothing}
        loss = F.cross_entropy(logits, target, **settings)
        if share < 1:
            loss = share * loss + (1 - share) * F.cross_entropy(logits, partner, **settings)
        (loss * weight).backward()
        with torch.no_grad():
            scores = _score(logits, target)
            return loss.detach(), scores if share == 1 else share * scores + (1 - share) * _score(logits, partner)

    def update(self, step: int) -> None:
        """One step of the optimiser with the gradients that were added."""
        if self.train.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.train.clip_norm)
        set_lr(self.optimizer, lr_at(step, self.steps_per_epoch, self.train))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            update_average(self.average, self.model, self.train.ema, step)

    def _begin(self, frozen: bool) -> None:
        """Training mode; a frozen backbone neither learns nor gathers statistics for its norms."""
        self.model.train()
        self.model.features.requires_grad_(not frozen)
        if frozen:
            self.model.features.eval()

    def _order(self, epoch: int) -> torch.Tensor:
        if self.train.sampling == "balanced":
            return balanced_order(self.train.seed, epoch, self.targets.cpu())
        return augment.order(self.train.seed, epoch, len(self.source))

    def _cut(self, order: torch.Tensor) -> Sequence[torch.Tensor]:
        """Into batches; a last one of a single image joins the one before, as batch norm cannot learn from one value."""
        batches = list(order.split(self.train.batch_size))
        if len(batches) > 1 and len(batches[-1]) == 1:
            batches[-2:] = [torch.cat(batches[-2:])]
        return batches

    def _refuse_non_finite(self, losses: torch.Tensor, epoch: int) -> None:
        bad = torch.nonzero(~losses.isfinite())
        if len(bad):
            batch = int(bad[0])
            raise UserError(
                f"epoch {epoch + 1}, batch {batch + 1}: loss is {losses[batch].item()};"
                f" lower train.lr ({self.train.lr}), set train.clip_norm=1 or train.precision=fp32"
            )


def _score(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return torch.stack([F.cross_entropy(logits, target, reduction="sum"), (logits.argmax(1) == target).sum()])


def _seed_of(*counters: int) -> int:
    """One number for `torch.manual_seed`, well spread: torch's generator on the CPU takes its lower 32 bits only."""
    return int(np.random.SeedSequence(counters).generate_state(1, np.uint64)[0])


def image_px_at(epoch: int, train: Train, image_px: int) -> int:
    """The side that the network sees in an epoch (from 0): grows from `image_px_start` to `image_px` in steps of 16 pixels.

    Small pictures first cost less and regularise (Tan and Le 2021, arXiv:2104.00298).
    """
    n_growing = train.image_px_growth * (train.epochs - 1)
    start = min(train.image_px_start, image_px)
    if epoch >= n_growing or start == image_px:
        return image_px
    grown = (image_px - start) * epoch / n_growing
    return min(start + round(grown / PX_STEP) * PX_STEP, image_px)


def balanced_order(seed: int, epoch: int, targets: torch.Tensor) -> torch.Tensor:
    """As many images as there are, each class as often as the others, rare ones repeated: int64 `[N]`, shuffled.

    targets: int64 `[N]` on the CPU. Which images of a large class have their turn changes with the epoch.
    """
    random = np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, 4]))  # streams 0 to 3: `augment`
    present = [np.flatnonzero(targets.numpy() == k) for k in targets.unique().tolist()]
    n_each = len(targets) // len(present) + (random.permutation(len(present)) < len(targets) % len(present))
    drawn = [
        np.concatenate([random.permutation(rows) for _ in range(-(-n // len(rows)))])[:n]
        for rows, n in zip(present, n_each.tolist(), strict=True)
    ]
    return torch.from_numpy(random.permutation(np.concatenate(drawn)))
