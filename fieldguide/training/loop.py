"""One epoch of training: one code path for every device, loader and precision."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fieldguide.core.errors import UserError
from fieldguide.core.params import Augment, Train
from fieldguide.network.device import autocast, seed_device
from fieldguide.network.inference import Score
from fieldguide.network.loader import Source
from fieldguide.network.models import Classifier
from fieldguide.training import augment
from fieldguide.training.distributed import World
from fieldguide.training.optim import lr_at, set_lr, update_average


class Progress(NamedTuple):
    """How far an epoch has come."""

    n_batches: int
    sums: torch.Tensor  # float32 [batches of the epoch, 2]: of the cross-entropies, of the images that are right
    losses: torch.Tensor  # float32 [batches of the epoch]


class Stopped(Exception):
    """An epoch that was asked to end early, after a step; `progress` lets it go on."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(f"stopped after batch {progress.n_batches}")
        self.progress = progress


PX_STEP = 16  # of the growing side: networks halve it four times or more


@dataclass(frozen=True)
class Training:
    """A network with its optimiser, its images and its settings, ready for one epoch after the other.

    average: the moving average of the model's weights, or None; targets: int64 `[N]` on the model's device; train: as in
    params.yaml, for one process; n processes together take n times its batch at n times its rates.
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
    world: World = field(default_factory=World)

    @property
    def result(self) -> Classifier:
        """The network that is validated and kept."""
        return self.model if self.average is None else self.average

    @property
    def device(self) -> torch.device:
        return self.targets.device

    @property
    def batch_size(self) -> int:
        """Images of a batch, of all processes together."""
        return self.world.size * self.train.batch_size

    def lr(self, step: int) -> float:
        """The head's rate at a step: n times the batch learns at n times the rate (Goyal et al. 2017, arXiv:1706.02677)."""
        return self.world.size * lr_at(step, self.steps_per_epoch, self.train)

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

    def epoch(self, epoch: int, begun: Progress | None = None, stop: Callable[[], int] = lambda: 0) -> Score:
        """Every image once (or every class equally often), in this epoch's order and with this epoch's changes.

        The score is that of the changed images. Nothing waits for the device before the end, and everything random is a
        function of (seed, epoch, place in the epoch), so that an epoch that was `begun` goes on as if nothing had happened.
        Raises `UserError` naming the first batch whose loss is not finite, and `Stopped` after a step once `stop()` is true.
        """
        train, n_images, device, world = self.train, len(self.source), self.device, self.world
        network = self._begin(frozen=epoch < train.head_epochs)
        image_px = image_px_at(epoch, train, self.image_px)
        order = self._order(epoch)
        batches = self._cut(order)  # of all processes
        places = world.shares([len(batch) for batch in batches])  # of this one
        chosen, lengths = [order[place] for place in places], [len(place) for place in places]
        u = augment.draws(train.seed, epoch, n_images)[torch.cat(places)].to(device).split(lengths)
        targets = self.targets[torch.cat(chosen).to(device)].split(lengths)
        weights = self._weights(batches, chosen)
        mixes = epoch < train.epochs * self.augment.mix_until
        begun = begun or Progress(0, torch.zeros(len(batches), 2), torch.zeros(len(batches)))
        sums, losses = (part.to(device, copy=True) * world.is_first for part in (begun.sums, begun.losses))
        for k, images in enumerate(self.source.batches(chosen[begun.n_batches :]), start=begun.n_batches):
            step, place = divmod(k, train.accumulate)
            step += epoch * self.steps_per_epoch
            seed_device(device, _seed_of(train.seed, epoch, k, *world.number))  # for dropout in the network
            pixels = augment.augment(images, u[k], self.augment, image_px)
            partner, share = targets[k], 1.0
            if mixes:
                pixels, partner, share = augment.mix(pixels, targets[k], self.augment, train.seed, epoch, k)
            summed = batches[k - place : k - place + train.accumulate]
            weight = len(batches[k]) / sum(map(len, summed)) * weights[k]
            with world.accumulate(network, more=place + 1 < len(summed)):
                losses[k], scores = self.learn(pixels, targets[k], partner, share, weight, network)
            sums[k] = scores
            if device.type == "cpu" and world.size == 1:  # where looking costs nothing
                self._refuse_non_finite(losses[: k + 1], epoch)
            if place + 1 == len(summed):
                self.update(step)
                if world.all_reduce_max(stop()) and k + 1 < len(batches):
                    progress = self._together(Progress(k + 1, sums, losses), begun, weights)
                    self._refuse_non_finite(progress.losses, epoch)
                    raise Stopped(progress)
        together = self._together(Progress(len(batches), sums, losses), begun, weights)
        self._refuse_non_finite(together.losses, epoch)
        loss_sum, n_right = together.sums.double().sum(dim=0).tolist()
        return Score(loss_sum / n_images, n_right / n_images)

    def learn(
        self,
        pixels: torch.Tensor,
        target: torch.Tensor,
        partner: torch.Tensor,
        share: float,
        weight: float = 1.0,
        network: nn.Module | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds a batch's gradient, times `weight`; `share` of each image is of class `target`, the rest `partner`.

        network: the model as it stands among other processes.
        Returns the loss, and float32 `[2]`: the sum of cross-entropies without smoothing and weights, the number right.
        """
        with autocast(pixels.device, self.dtype):
            logits = (self.model if network is None else network)(pixels)
        logits = logits.float()
        settings: dict[str, Any] = {"weight": self.class_weights, "label_smoothing": self.train.label_smoothing}
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
        set_lr(self.optimizer, self.lr(step))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            update_average(self.average, self.model, self.train.ema, step)

    def state(self) -> dict[str, torch.Tensor]:
        """Weights, their average, and what the optimiser remembers, under flat names."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        for number, remembered in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in remembered.items() if torch.is_tensor(value)}
        return tensors

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Goes back to a `state`.

        What the optimiser remembers of a weight gets the weight's order in memory, which a file does not keep: fused kernels
        on a GPU refuse another one.
        """
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        remembered: dict[int, dict[str, torch.Tensor]] = {}
        networks: dict[str, dict[str, torch.Tensor]] = {"model": {}, "average": {}}
        for name, tensor in tensors.items():
            owner, rest = name.split(".", 1)
            if owner == "optimizer":
                number, key = rest.split(".")
                like = parameters[int(number)]
                placed = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
                remembered.setdefault(int(number), {})[key] = placed
            else:
                networks[owner][rest] = tensor
        self.model.load_state_dict(networks["model"])
        if self.average is not None:
            self.average.load_state_dict(networks["average"])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": remembered, "param_groups": groups})

    def _begin(self, frozen: bool) -> nn.Module:
        """The network in training mode; a frozen backbone neither learns nor gathers statistics for its norms."""
        self.model.train()
        self.model.features.requires_grad_(not frozen)
        if frozen:
            self.model.features.eval()
        return self.world.wrap(self.model)

    def _weights(self, batches: Sequence[torch.Tensor], chosen: Sequence[torch.Tensor]) -> list[float]:
        """What the mean loss of this process's share counts in a batch's, times the processes, of which the mean is taken."""
        if self.world.size == 1:
            return [1.0] * len(batches)
        ones = torch.ones(len(self.targets))
        weights = ones if self.class_weights is None else self.class_weights[self.targets].cpu()
        return [
            self.world.size * float(weights[own].sum() / weights[batch].sum())
            for own, batch in zip(chosen, batches, strict=True)
        ]

    def _together(self, own: Progress, begun: Progress, weights: list[float]) -> Progress:
        """The progress of all processes, which from here on have the first one's statistics in their norms."""
        world = self.world
        if world.size == 1:
            return own
        counts = torch.tensor(weights, device=self.device) / world.size
        counts[: begun.n_batches] = 1.0  # sums of all already, and in the first process alone
        losses = world.sum(own.losses * counts)
        for network in (self.model, self.average):
            world.broadcast(network.buffers() if network is not None else [])
        return Progress(own.n_batches, world.sum(own.sums), losses)

    def _order(self, epoch: int) -> torch.Tensor:
        if self.train.sampling == "balanced":
            return balanced_order(self.train.seed, epoch, self.targets.cpu())
        return augment.order(self.train.seed, epoch, len(self.source))

    def _cut(self, order: torch.Tensor) -> Sequence[torch.Tensor]:
        """Into batches; a last one of a single image joins the one before, as batch norm cannot learn from one value.

        With more processes a last one that has less than two images for each of them.
        """
        batches = list(order.split(self.batch_size))
        if len(batches) > 1 and len(batches[-1]) < 2 * self.world.size:
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
    """The side that the network sees in an epoch (from 0): from `size_start` to `size_end` of `image_px`, 16 pixels a step.

    Small pictures first cost less and regularise (Tan and Le 2021, arXiv:2104.00298). In use the side may be larger than
    it ever was in training, as random crops show things larger than they are in use (Touvron et al. 2019, arXiv:1906.06423).
    """
    n_growing = train.size_growth * (train.epochs - 1)
    reached = min(epoch / n_growing, 1.0) if n_growing else 1.0
    size = train.size_start + (train.size_end - train.size_start) * reached
    return image_px if size == 1 else min(max(round(size * image_px / PX_STEP), 1) * PX_STEP, image_px)


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
