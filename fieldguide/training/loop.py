"""One epoch of training, with one code path for every device, loader and precision."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fieldguide.core.artifacts import SplitScore
from fieldguide.core.errors import UserError
from fieldguide.core.params import Augment, Train
from fieldguide.network.device import autocast, seed_device
from fieldguide.network.inference import Embeddings, embed
from fieldguide.network.loader import Source
from fieldguide.network.models import Classifier, frozen_blocks
from fieldguide.training import augment
from fieldguide.training.distributed import World
from fieldguide.training.optim import lr_at, set_lr, update_average


class Progress(NamedTuple):
    """The progress of an epoch that was stopped after a step, to resume it."""

    n_batches: int
    sums: torch.Tensor  # float32 [batches of the epoch, 2]: sum of cross-entropies, number of right predictions
    losses: torch.Tensor  # float32 [batches of the epoch]


PX_STEP = 16  # step of the growing input size: networks halve it four times or more


@dataclass(frozen=True)
class Training:
    """A network with its optimiser, images and settings.

    average: the moving average of the model's weights, or None; targets: int64 `[N]` on the model's device; train: as in
    params.yaml, for one process; n processes together use n times the batch size and learning rate.
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
        """The network that is validated and saved."""
        return self.model if self.average is None else self.average

    @property
    def device(self) -> torch.device:
        return self.targets.device

    def lr(self, step: int) -> float:
        """The head's learning rate at a step, linear in the number of processes (Goyal et al. 2017, arXiv:1706.02677)."""
        return self.world.size * lr_at(step, self.steps_per_epoch, self.train)

    @cached_property
    def steps_per_epoch(self) -> int:
        return -(-len(self._cut(torch.arange(len(self.source)))) // self.train.accumulate)

    @cached_property
    def class_weights(self) -> torch.Tensor | None:
        """For `class_weights: balanced`, weights inverse to the class frequency, 1 on average: float32 `[K]`."""
        if self.train.class_weights == "equal":
            return None
        counts = torch.bincount(self.targets, minlength=self.model.head.out_features)
        weights = len(self.targets) / (counts.clamp(min=1) * (counts > 0).sum())
        return torch.where(counts > 0, weights, 1.0)  # a class without images still has its share of smoothed labels

    @cached_property
    def log_priors(self) -> torch.Tensor | None:
        """What `logit_adjustment` adds to the logits in the loss, so that rare classes need a larger margin: float32 `[K]`.

        The logarithm of each class's share of an epoch (Menon et al. 2021, arXiv:2007.07314).
        """
        if not self.train.logit_adjustment:
            return None
        counts = torch.bincount(self.targets, minlength=self.model.head.out_features).clamp(min=1)  # finite without images
        shares = counts.double() ** (1 - self.train.balance)
        return (self.train.logit_adjustment * (shares / shares.sum()).log()).float()

    def is_cached(self, epoch: int) -> bool:
        """Whether the epoch trains the head on embeddings that were computed once."""
        return epoch < self.train.head_epochs and not self.train.head_augment

    def image_px_at(self, epoch: int) -> int:
        """The side of the network's input in an epoch, counted from 0."""
        return self.image_px if self.is_cached(epoch) else image_px_at(epoch, self.train, self.image_px)

    @cached_property
    def embeddings(self) -> Embeddings:
        """The embedding of each training image, without random changes, by the frozen backbone."""
        own = torch.arange(self.world.rank, len(self.source), self.world.size)
        plain = partial(augment.augment, settings=Augment.without_changes(), image_px=self.image_px)
        u = torch.zeros(1, augment.N_DRAWS, device=self.device)

        def resized(batch: torch.Tensor) -> torch.Tensor:
            return plain(batch, u.expand(len(batch), -1))

        vectors = embed(self.model, self.source, own, self.train.batch_size, self.dtype, self.image_px, resized)
        return Embeddings(self.world.gather_rows(vectors, len(self.source)).to(self.device))

    def epoch(self, epoch: int, begun: Progress | None = None, stop: Callable[[], int] = lambda: 0) -> SplitScore | Progress:
        """Trains on every image once (or on rare classes more often); the score is that of the augmented images.

        The device is synchronised only at the end. All random numbers are a function of (seed, epoch, position in the epoch),
        so that resuming from `begun` gives the same result. Raises `UserError` for the first batch whose loss is not finite.
        Returns the progress after a step if `stop()` is true.
        """
        train, n_images, device, world = self.train, len(self.source), self.device, self.world
        cached, image_px = self.is_cached(epoch), self.image_px_at(epoch)
        source = self.embeddings if cached else self.source
        network = self._begin(epoch)
        order = augment.order(train.seed, epoch, n_images)
        if train.balance:
            order = resampled_order(train.seed, epoch, self.targets.cpu(), train.balance)
        batches = self._cut(order)  # of all processes
        places = world.shares([len(batch) for batch in batches])  # of this one
        own, lengths = [order[place] for place in places], [len(place) for place in places]
        u = augment.draws(train.seed, epoch, n_images)[torch.cat(places)].to(device).split(lengths)
        targets = self.targets[torch.cat(own).to(device)].split(lengths)
        weights = self._weights(batches, own)
        mixes = epoch < train.epochs * self.augment.mix_until and not cached
        begun = begun or Progress(0, torch.zeros(len(batches), 2), torch.zeros(len(batches)))
        sums, losses = (part.to(device, copy=True) * world.is_first for part in (begun.sums, begun.losses))
        for k, images in enumerate(source.batches(own[begun.n_batches :]), start=begun.n_batches):
            step, place = divmod(k, train.accumulate)
            step += epoch * self.steps_per_epoch
            seed_device(device, _seed_of(train.seed, epoch, k, world.rank))  # for dropout in the network
            pixels = images if cached else augment.augment(images, u[k], self.augment, image_px)
            partner, share = targets[k], 1.0
            if mixes:
                pixels, partner, share = augment.mix(pixels, targets[k], self.augment, train.seed, epoch, k)
            summed = batches[k - place : k - place + train.accumulate]
            weight = len(batches[k]) / sum(map(len, summed)) * weights[k]
            with world.accumulate(network, more=place + 1 < len(summed)):
                losses[k], scores = self.learn(pixels, targets[k], partner, share, weight, network)
            sums[k] = scores
            if device.type == "cpu" and world.size == 1:  # needs no synchronisation
                self._refuse_non_finite(losses[: k + 1], epoch)
            if place + 1 == len(summed):
                self.update(step)
                if world.all_reduce_max(stop()) and k + 1 < len(batches):
                    return self._together(Progress(k + 1, sums, losses), begun, weights, epoch)
        together = self._together(Progress(len(batches), sums, losses), begun, weights, epoch)
        loss_sum, n_right = together.sums.double().sum(dim=0).tolist()
        return SplitScore(loss=loss_sum / n_images, accuracy=n_right / n_images)

    def learn(
        self,
        pixels: torch.Tensor,
        target: torch.Tensor,
        partner: torch.Tensor,
        share: float,
        weight: float = 1.0,
        network: nn.Module | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds a batch's gradient, times `weight`; `share` of each image is of class `target`, the rest of class `partner`.

        network: the model as wrapped by `World.wrap`, or its head, for embeddings instead of pixels.
        Returns the loss, and float32 `[2]`: the sum of cross-entropies without smoothing and weights, and the number of right
        predictions.
        """
        with autocast(pixels.device, self.dtype):
            logits = (self.model if network is None else network)(pixels)
        logits = logits.float()
        settings: dict[str, Any] = {"weight": self.class_weights, "label_smoothing": self.train.label_smoothing}
        adjusted = logits if self.log_priors is None else logits + self.log_priors
        loss = F.cross_entropy(adjusted, target, **settings)
        if share < 1:
            loss = share * loss + (1 - share) * F.cross_entropy(adjusted, partner, **settings)
        (loss * weight).backward()
        with torch.no_grad():
            scores = _score(logits, target)
            return loss.detach(), scores if share == 1 else share * scores + (1 - share) * _score(logits, partner)

    def update(self, step: int) -> None:
        """One step of the optimiser with the accumulated gradients."""
        if self.train.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.train.clip_norm)
        set_lr(self.optimizer, self.lr(step))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            update_average(self.average, self.model, self.train.ema, step)

    def state(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._parts().items()}

    def restore(self, state: dict[str, Any]) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def _parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        parts = {"model": self.model, "average": self.average, "optimizer": self.optimizer}
        return {name: part for name, part in parts.items() if part is not None}

    def _begin(self, epoch: int) -> nn.Module:
        """The network in training mode, or its head if the epoch is cached.

        Frozen blocks keep their weights and the statistics of their norms.
        """
        frozen = epoch < self.train.head_epochs
        self.model.train()
        self.model.features.train(not frozen).requires_grad_(not frozen)
        for block in () if frozen else frozen_blocks(self.model, self.train.freeze):
            block.eval().requires_grad_(False)
        if self.is_cached(epoch):
            return self.world.wrap(self.model.head)
        self.__dict__.pop("embeddings", None)  # frees their memory
        return self.world.wrap(self.model)

    def _weights(self, batches: Sequence[torch.Tensor], own: Sequence[torch.Tensor]) -> list[float]:
        """Weight of the mean loss of this process's share in that of the batch, times the processes, which DDP averages."""
        ones = torch.ones(len(self.targets))
        weights = ones if self.class_weights is None else self.class_weights[self.targets].cpu()
        return [
            self.world.size * float(weights[share].sum() / weights[batch].sum())
            for share, batch in zip(own, batches, strict=True)
        ]

    def _together(self, own: Progress, begun: Progress, weights: list[float], epoch: int) -> Progress:
        """The progress of all processes, checked; also copies the statistics of norms from rank 0 to the others."""
        world = self.world
        counts = torch.tensor(weights, device=self.device) / world.size
        counts[: begun.n_batches] = 1.0  # these are sums over all processes, held by rank 0 only
        losses = world.sum(own.losses * counts)
        self._refuse_non_finite(losses, epoch)
        for network in (self.model, self.average):
            world.broadcast(network.buffers() if network is not None else [])
        return Progress(own.n_batches, world.sum(own.sums), losses)

    def _cut(self, order: torch.Tensor) -> Sequence[torch.Tensor]:
        """Splits into batches; appends a last batch with less than two images per process to the one before it.

        Batch norm needs more than one value.
        """
        batches = list(order.split(self.world.size * self.train.batch_size))
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
    """A well distributed seed for `torch.manual_seed`, of which torch's CPU generator uses only the lower 32 bits."""
    return int(np.random.SeedSequence(counters).generate_state(1, np.uint64)[0])


def image_px_at(epoch: int, train: Train, image_px: int) -> int:
    """The input size in an epoch (from 0): grows from `size_start` to `size_end` of `image_px`, in steps of 16 pixels.

    Small images at first cost less and regularise (Tan and Le 2021, arXiv:2104.00298). The size at inference may be larger
    than in training, because random crops magnify objects in training (Touvron et al. 2019, arXiv:1906.06423).
    """
    n_growing = train.size_growth * (train.epochs - 1)
    reached = min(epoch / n_growing, 1.0) if n_growing else 1.0
    size = train.size_start + (train.size_end - train.size_start) * reached
    return image_px if size == 1 else min(max(round(size * image_px / PX_STEP), 1) * PX_STEP, image_px)


def resampled_order(seed: int, epoch: int, targets: torch.Tensor, balance: float) -> torch.Tensor:
    """N row numbers in which a class of n images has a share in proportion to n ** (1 - balance): int64 `[N]`, shuffled.

    targets: int64 `[N]` on the CPU. Images of rare classes are repeated; each epoch draws other images of the large classes.
    """
    random = np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, 3]))  # streams 0 to 2: `augment`
    _, counts = np.unique(targets.numpy(), return_counts=True)
    by_class = np.split(np.argsort(targets.numpy(), kind="stable"), counts.cumsum()[:-1])
    shares = counts ** (1 - balance)
    exact = len(targets) * shares / shares.sum()
    n_each = np.floor(exact).astype(np.int64)
    largest_remainder = np.lexsort((random.permutation(len(counts)), n_each - exact))
    n_each[largest_remainder[: len(targets) - n_each.sum()]] += 1
    drawn = [
        np.concatenate([random.permutation(rows) for _ in range(-(-n // len(rows)))])[:n] if n else rows[:0]
        for rows, n in zip(by_class, n_each.tolist(), strict=True)
    ]
    return torch.from_numpy(random.permutation(np.concatenate(drawn)))
