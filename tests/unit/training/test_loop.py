"""One epoch: every image once, a score that is right, what each setting changes, and the same bytes for the same seed."""

import copy
import io
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from fieldguide.core.errors import UserError
from fieldguide.core.files import file_hash
from fieldguide.core.params import Train
from fieldguide.network.loader import Resident, Source, Streaming, decode_all
from fieldguide.network.models import NETWORKS, Classifier, build
from fieldguide.training import augment
from fieldguide.training.loop import Training, image_px_at, resampled_order
from fieldguide.training.resume import States
from support.trainings import ALL_ON, OFF, ONE_SIDE, PARAMS, PLAIN, augmentation, noisy, training

CPU = torch.device("cpu")
STANDSTILL = 1e-30  # a rate at which no float32 weight moves
DESCENT = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "lr": 0.1, "schedule": "constant", "warmup": 0.0}


class Recorded(Training):
    """Training that writes down what each batch and each step is given, and learns nothing."""

    def learn(
        self, pixels: torch.Tensor, target: torch.Tensor, partner: torch.Tensor, share: float, *summed: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.optimizer.seen.append((pixels, target, partner, share))
        return torch.zeros(()), torch.zeros(2)

    def update(self, step: int) -> None:
        super().update(step)
        self.optimizer.rates.append({group["lr"] for group in self.optimizer.param_groups})


class Kept(Training):
    """Training that keeps the network's state after each step."""

    def update(self, step: int) -> None:
        super().update(step)
        self.optimizer.seen.append(copy.deepcopy(self.model.state_dict()))


def coloured(n_images: int, px: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Image k is flat with the value k, and k is its target."""
    values = torch.arange(n_images, dtype=torch.uint8)
    return values.view(-1, 1, 1, 1).expand(-1, 3, px, px).clone(), torch.arange(n_images)


def as_bytes(model: Classifier) -> bytes:
    return save({name: tensor.contiguous() for name, tensor in model.state_dict().items()})


@pytest.mark.slow
@pytest.mark.parametrize(("network", "epochs"), [("cnn", 60), pytest.param("fieldnet", 20, marks=pytest.mark.slow)])
def test_one_batch_overfits(network: str, epochs: int) -> None:
    images, targets = noisy(16, 4)
    chosen = training(images, targets, network, epochs=epochs, batch_size=16, lr=0.05, label_smoothing=0.0, warmup=0.2)
    scores = [chosen.epoch(epoch) for epoch in range(epochs)]
    assert scores[0].loss > 1
    assert scores[-1].loss < 0.1
    assert scores[-1].accuracy == 1


@pytest.mark.parametrize(
    "network", ["cnn", *(pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS if name != "cnn")]
)
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
def test_the_same_seed_gives_the_same_bytes(network: str, dtype: torch.dtype) -> None:
    def weights(seed: int) -> bytes:
        images, targets = noisy(10, 3)
        chosen = training(images, targets, network, epochs=2, batch_size=4, seed=seed, dtype=dtype, augment=PARAMS.augment)
        for epoch in range(2):
            chosen.epoch(epoch)
            torch.rand(7)  # nothing rests on torch's global generator
        return as_bytes(chosen.model)

    assert weights(seed=1) == weights(seed=1)
    assert weights(seed=1) != weights(seed=2)


EVERYTHING = {  # what an epoch can do, all at once
    "epochs": 3,
    "batch_size": 4,
    "accumulate": 2,
    "image_px": 48,
    "size_start": 0.3,
    "size_growth": 1.0,
    "ema": 0.9,
    "clip_norm": 1.0,
    "class_weights": "balanced",
    "logit_adjustment": 0.5,
    "sampling": "balanced",
    "lr": 0.05,
    "backbone_lr": 0.5,
    "layer_decay": 0.8,
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, Path, torch.Tensor]:
    """18 pictures in files, their rows, folder and targets of three classes: 10, 5 and 3."""
    raw = tmp_path_factory.mktemp("raw")
    random, files = np.random.default_rng(0), [f"{k}.png" for k in range(18)]
    for file in files:
        stream = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(stream, "PNG")
        (raw / file).write_bytes(stream.getvalue())
    lengths = [(raw / file).stat().st_size for file in files]
    digests = [file_hash(raw / file) for file in files]
    rows = pd.DataFrame({"file": files, "offset": 0, "length": lengths, "id": files, "sha256": digests})
    return rows, raw, torch.tensor([0] * 10 + [1] * 5 + [2] * 3)


def everything(source: Source, targets: torch.Tensor, seed: int = 1, noise: int = 0) -> tuple[bytes, bytes, list]:
    """Weights, their average and the scores of a training with all of `EVERYTHING` and all augmentation."""
    settings = augmentation(**ALL_ON)
    chosen = training(source, targets, dropping, augment=settings, seed=seed, **EVERYTHING)
    scores = []
    for epoch in range(3):
        torch.rand(noise)
        scores.append(chosen.epoch(epoch))
    return as_bytes(chosen.model), as_bytes(chosen.result), scores


def dropping(n_classes: int) -> Classifier:
    """A small network with norms and dropout."""
    layers = [nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5)]
    return Classifier(nn.Sequential(*layers), 8, n_classes)


def test_the_same_seed_gives_the_same_bytes_with_everything_on(drawn: tuple[pd.DataFrame, Path, torch.Tensor]) -> None:
    rows, raw, targets = drawn
    source = Resident(decode_all(rows, raw, 48, 1))
    once = everything(source, targets)
    assert everything(source, targets, noise=7) == once
    model, average, scores = once
    assert model != average
    assert len(set(scores)) == 3
    other = everything(source, targets, seed=2)
    assert other[0] != model
    assert other[1] != average


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker")  # on a machine of one core
def test_images_from_memory_and_from_workers_give_the_same_bytes(drawn: tuple[pd.DataFrame, Path, torch.Tensor]) -> None:
    rows, raw, targets = drawn
    source = Streaming(rows, raw, 48, 2, CPU)
    try:
        streamed = everything(source, targets)
    finally:
        source.close()
    assert streamed == everything(Resident(decode_all(rows, raw, 48, 1)), targets)


def test_an_epoch_begun_anew_is_the_same_whatever_came_before() -> None:
    """Order, augmentation, mixing, dropout: functions of (seed, epoch, place), with no state that a resumption would lose."""
    images, targets = noisy(10, 3)
    settings = augmentation(**ALL_ON)
    chosen, twin = (
        training(
            images,
            targets,
            dropping,
            epochs=4,
            batch_size=4,
            optimizer="sgd",
            momentum=0.0,
            sampling="balanced",
            augment=settings,
        )
        for _ in range(2)
    )
    for epoch in range(3):
        chosen.epoch(epoch)
    twin.model.load_state_dict(chosen.model.state_dict())
    torch.rand(7)
    assert chosen.epoch(3) == twin.epoch(3)
    assert as_bytes(chosen.model) == as_bytes(twin.model)


class Masks(Training):
    """Training that writes down what dropout leaves, and learns nothing."""

    def learn(self, pixels: torch.Tensor, *others: object) -> tuple[torch.Tensor, torch.Tensor]:
        self.optimizer.seen.append(self.model.features(pixels))
        return torch.zeros(()), torch.zeros(2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer", ["sgd", *(pytest.param(name, marks=pytest.mark.slow) for name in ("adam", "adamw", "muon"))]
)
def test_nothing_waits_for_the_device_before_the_end_of_an_epoch(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without values: whatever asked for one would fail."""
    monkeypatch.setattr("fieldguide.training.loop.autocast", lambda *_: nullcontext())  # has no such device

    class Counted(Training):
        def update(self, step: int) -> None:
            super().update(step)
            self.optimizer.seen.append(step)

    images, targets = noisy(40, 5, px=48)
    settings = {"batch_size": 4, "accumulate": 2, "clip_norm": 1.0, "image_px": 48, "augment": augmentation(**ALL_ON)}
    with torch.device("meta"):
        chosen = training(images.to("meta"), targets, "fieldnet", Counted, optimizer=optimizer, **settings)
    chosen = replace(chosen, targets=targets.to("meta"))
    with pytest.raises(NotImplementedError, match="nonzero"):  # the first look: whether all losses are finite
        chosen.epoch(0)
    assert chosen.optimizer.seen == list(range(5))


@pytest.mark.parametrize("noise", [0, 7])
def test_dropout_is_a_function_of_seed_epoch_and_batch(noise: int) -> None:
    def masks(seed: int, epochs: Sequence[int]) -> list[torch.Tensor]:
        class Wide(nn.Module):
            def forward(self, pixels: torch.Tensor) -> torch.Tensor:
                return F.dropout(torch.ones(len(pixels), 64), training=self.training)

        images, targets = noisy(8, 2)
        chosen = training(images, targets, lambda k: Classifier(Wide(), 64, k), Masks, epochs=3, batch_size=4, seed=seed)
        for epoch in epochs:
            torch.rand(noise)
            chosen.epoch(epoch)
        return chosen.optimizer.seen

    first, other_seed = masks(1, range(3)), masks(2, range(3))
    assert len({tuple(mask.flatten().tolist()) for mask in (*first, *other_seed)}) == 12  # 2 seeds, 3 epochs, 2 batches
    assert {float(mask.mean()) == 1 for mask in first} == {False}
    assert all(torch.equal(a, b) for a, b in zip(first[4:], masks(1, [2]), strict=True))


@pytest.mark.parametrize(
    ("n_images", "batch_size", "sizes"),
    [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 64, [3]), (11, 4, [4, 4, 3]), (9, 4, [4, 5]), (5, 4, [5]), (1, 4, [1])],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_image_is_seen_once_an_epoch_with_its_own_target(
    n_images: int, batch_size: int, sizes: list[int], accumulate: int
) -> None:
    chosen = training(*coloured(n_images), kind=Recorded, batch_size=batch_size, accumulate=accumulate)
    chosen.epoch(0)
    batches = chosen.optimizer.seen
    assert [len(target) for _, target, *_ in batches] == sizes
    assert sorted(torch.cat([target for _, target, *_ in batches]).tolist()) == list(range(n_images))
    for pixels, target, partner, share in batches:
        torch.testing.assert_close(pixels.mean(dim=(1, 2, 3)) * 255, target.float(), atol=1e-3, rtol=0)
        assert (partner is target, share) == (True, 1.0)


def test_epochs_go_through_the_images_in_different_orders() -> None:
    chosen = training(*coloured(30), kind=Recorded, batch_size=30)
    for epoch in range(3):
        chosen.epoch(epoch)
    orders = {tuple(target.tolist()) for _, target, *_ in chosen.optimizer.seen}
    assert len(orders) == 3
    assert tuple(range(30)) not in orders


def test_what_an_image_looks_like_in_an_epoch_does_not_depend_on_the_batches() -> None:
    def looks(batch_size: int, epochs: tuple[int, ...]) -> dict[int, torch.Tensor]:
        images, _ = noisy(10, 10)
        settings = augmentation(**ALL_ON | {"mixup": 0.0, "cutmix": 0.0})
        chosen = training(images, torch.arange(10), kind=Recorded, batch_size=batch_size, augment=settings)
        for epoch in epochs:
            chosen.optimizer.seen.clear()
            chosen.epoch(epoch)
        return {int(k): image for pixels, target, *_ in chosen.optimizer.seen for image, k in zip(pixels, target, strict=True)}

    whole, parts, other = looks(10, (0, 1)), looks(3, (1,)), looks(10, (2,))
    for k in range(10):
        torch.testing.assert_close(whole[k], parts[k], atol=1e-5, rtol=0)
        assert not torch.allclose(whole[k], other[k], atol=1e-2)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_each_step_has_the_rate_of_its_place_in_the_whole_training(accumulate: int) -> None:
    chosen = training(
        *coloured(10),
        kind=Recorded,
        batch_size=4 // accumulate,
        accumulate=accumulate,
        epochs=2,
        lr=0.6,
        warmup=1.0,
        lr_start=0.0,
    )
    for epoch in range(2):
        chosen.epoch(epoch)
    assert chosen.steps_per_epoch == 3
    rates = [rate for step_rates in chosen.optimizer.rates for rate in step_rates]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])


@pytest.mark.parametrize(("px", "growth"), [(96, 1.0), (50, 0.5), (16, 0.0)])
def test_an_epochs_pictures_have_its_side(px: int, growth: float) -> None:
    settings = {"image_px": px, "size_start": 0.3, "size_growth": growth, "epochs": 5}
    chosen = training(*coloured(4), kind=Recorded, batch_size=4, **settings)
    for epoch in range(5):
        chosen.epoch(epoch)
    found = [pixels.shape[2:] for pixels, *_ in chosen.optimizer.seen]
    assert found == [(image_px_at(epoch, chosen.train, px),) * 2 for epoch in range(5)]


@pytest.mark.parametrize("batch_size", [4, 10, 64])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_score_is_that_of_all_images_without_smoothing(batch_size: int, smoothing: float) -> None:
    images, targets = noisy(10, 3)
    chosen = training(images, targets, batch_size=batch_size, lr=STANDSTILL, label_smoothing=smoothing)
    with torch.no_grad():
        logits = chosen.model(images.float() / 255)
    found = chosen.epoch(0)
    assert found.loss == pytest.approx(F.cross_entropy(logits, targets).item(), rel=1e-5)
    assert found.accuracy == pytest.approx((logits.argmax(1) == targets).float().mean().item())


class Mixed(Recorded):
    """Training that writes down what each batch is given, and learns."""

    learn_in_silence = Training.learn

    def learn(self, *given: object) -> tuple[torch.Tensor, torch.Tensor]:
        super().learn(*given)
        return self.learn_in_silence(*given)


@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_the_score_of_mixed_images_weighs_both_labels(mixing: str) -> None:
    images, targets = noisy(12, 3)
    settings = augmentation(**OFF | {mixing: 1.0, "mix_until": 1.0})
    chosen = training(images, targets, kind=Mixed, batch_size=5, lr=STANDSTILL, augment=settings)
    with torch.no_grad():
        chosen.model.head.weight.mul_(30)  # so that classes differ in what they are given
    found = chosen.epoch(0)
    loss = n_right = 0.0
    for pixels, target, partner, share in chosen.optimizer.seen:
        labels = share * F.one_hot(target, 3) + (1 - share) * F.one_hot(partner, 3)
        with torch.no_grad():
            logits = chosen.model(pixels)
        loss -= float((labels * logits.log_softmax(1)).sum())
        n_right += float(labels.gather(1, logits.argmax(1, keepdim=True)).sum())
        assert 0 < share < 1
    assert found.loss == pytest.approx(loss / 12, rel=1e-5)
    assert found.accuracy == pytest.approx(n_right / 12)


def test_mixed_images_come_with_the_labels_of_their_partners_until_mixing_ends() -> None:
    settings = augmentation(**OFF | {"mixup": 1.0, "mix_until": 0.5})
    chosen = training(*coloured(10), kind=Recorded, batch_size=4, epochs=4, augment=settings)
    for epoch in range(4):
        chosen.epoch(epoch)
    shares = [share for *_, share in chosen.optimizer.seen]
    for pixels, target, partner, share in chosen.optimizer.seen:
        expected = share * target + (1 - share) * partner
        torch.testing.assert_close(pixels.mean(dim=(1, 2, 3)) * 255, expected.float(), atol=1e-3, rtol=0)
    assert max(shares[:6]) < 1
    assert len(set(shares[:6])) == 6  # another share for each batch and epoch
    assert shares[6:] == [1.0] * 6


def test_a_step_on_mixed_images_descends_the_loss_of_the_mixed_labels() -> None:
    images, targets = noisy(6, 3)
    settings = augmentation(**OFF | {"mixup": 1.0, "mix_until": 1.0})
    chosen = training(images, targets, kind=Mixed, batch_size=6, augment=settings, epochs=1, **DESCENT)
    twin = copy.deepcopy(chosen.model)
    chosen.epoch(0)
    ((pixels, target, partner, share),) = chosen.optimizer.seen
    smoothing = chosen.train.label_smoothing
    goal = share * F.one_hot(target, 3) + (1 - share) * F.one_hot(partner, 3)
    loss = -((goal * (1 - smoothing) + smoothing / 3) * twin(pixels).log_softmax(1)).sum(1).mean()
    loss.backward()
    for new, old in zip(chosen.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(new, old - 0.1 * old.grad, atol=1e-6, rtol=1e-5)


def test_a_step_is_plain_gradient_descent_on_the_smoothed_loss() -> None:
    images, targets = noisy(6, 3)
    chosen = training(images, targets, batch_size=6, optimizer="sgd", momentum=0.0, weight_decay=0.0, lr=0.1, warmup=0.0)
    twin = build("cnn", 3)
    twin.load_state_dict(chosen.model.state_dict())
    smoothing = chosen.train.label_smoothing
    goal = F.one_hot(targets, 3) * (1 - smoothing) + smoothing / 3
    loss = -(goal * twin(images.float() / 255).log_softmax(1)).sum(1).mean()
    loss.backward()
    chosen.epoch(0)
    for new, old in zip(chosen.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(new, old - 0.1 * old.grad, atol=1e-6, rtol=1e-5)


def test_mixed_precision_keeps_float32_weights() -> None:
    images, targets = noisy(6, 3)
    chosen = training(images, targets, "fieldnet", batch_size=6, dtype=torch.bfloat16)
    chosen.epoch(0)
    assert {parameter.dtype for parameter in chosen.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("network", NETWORKS)
def test_a_last_batch_of_one_image_is_trained_on(network: str) -> None:
    images, targets = noisy(5, 3)
    found = training(images, targets, network, batch_size=4).epoch(0)
    assert found.loss > 0


@pytest.mark.parametrize("n_images", [8, 12, 16, 20, 14, 9], ids=lambda n: f"{n} images")
def test_two_batches_whose_gradients_are_summed_are_one_batch_of_twice_the_size(n_images: int) -> None:
    """Also where the last step has one batch (12, 20), and where its batches differ in size (14: 4 and 2; 9: 4 and 5)."""

    def weights(**changes: object) -> list[torch.Tensor]:
        images, targets = noisy(n_images, 3)
        settings = {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9} | changes
        chosen = training(images, targets, kind=Kept, epochs=2, **settings)
        for epoch in range(2):
            chosen.epoch(epoch)
        assert len(chosen.optimizer.seen) == 2 * chosen.steps_per_epoch
        return list(chosen.model.parameters())

    small, large = weights(batch_size=4, accumulate=2), weights(batch_size=8)
    for ours, expected in zip(small, large, strict=True):
        torch.testing.assert_close(ours, expected, atol=2e-6, rtol=1e-4)


def step_length(**changes: object) -> float:
    """Norm of what one step of gradient descent at rate 0.1 changes."""
    images, targets = noisy(8, 3)
    chosen = training(images, targets, "fieldnet", epochs=1, **(DESCENT | {"batch_size": 8} | changes))
    before = [parameter.detach().clone() for parameter in chosen.model.parameters()]
    chosen.epoch(0)
    moves = [(new - old).flatten() for old, new in zip(before, chosen.model.parameters(), strict=True)]
    return float(torch.cat(moves).detach().double().norm())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_clipped_gradient_has_the_norm_that_is_set_at_most(accumulate: int) -> None:
    cut = {"batch_size": 8 // accumulate, "accumulate": accumulate}
    free = step_length(clip_norm=0.0, **cut)
    assert step_length(clip_norm=0.01, **cut) == pytest.approx(0.1 * 0.01, rel=1e-3)
    assert free > 0.1 * 0.02
    assert step_length(clip_norm=1000.0, **cut) == pytest.approx(free, rel=1e-4)


def test_balanced_class_weights_are_scikit_learns() -> None:
    images, _ = noisy(20, 3)
    targets = torch.tensor([0] * 12 + [1] * 7 + [2])
    weights = training(images, targets, class_weights="balanced").class_weights
    expected = compute_class_weight("balanced", classes=np.arange(3), y=targets.numpy())
    assert weights.tolist() == pytest.approx(expected.tolist())
    assert weights[targets].mean().item() == pytest.approx(1)
    assert training(images, targets, class_weights="equal").class_weights is None


def test_a_class_without_images_weighs_as_the_mean_image_at_most() -> None:
    """It has a share of the smoothed labels, and so a weight in the loss."""
    images, _ = noisy(20, 3)
    targets = torch.tensor([0] * 10 + [3] * 10)
    weights = training(images, targets, class_weights="balanced").class_weights
    assert weights[[0, 3]].tolist() == [1, 1]
    assert weights.max() <= 1


def test_a_step_descends_the_loss_that_class_weights_weigh() -> None:
    images, _ = noisy(6, 3)
    targets = torch.tensor([0, 0, 0, 0, 1, 2])
    chosen = training(images, targets, batch_size=6, epochs=1, class_weights="balanced", label_smoothing=0.0, **DESCENT)
    twin = copy.deepcopy(chosen.model)
    weights = torch.tensor([0.5, 0.5, 0.5, 0.5, 2.0, 2.0])
    losses = F.cross_entropy(twin(images.float() / 255), targets, reduction="none")
    ((weights * losses).sum() / weights.sum()).backward()
    with torch.no_grad():
        loss = F.cross_entropy(twin(images.float() / 255), targets)
    found = chosen.epoch(0)
    assert found.loss == pytest.approx(loss.item(), rel=1e-5)  # the score does not weigh
    for new, old in zip(chosen.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(new, old - 0.1 * old.grad, atol=1e-6, rtol=1e-5)


COUNTS = [(40, 3, 1), (7, 7, 7), (1, 1, 9), (50,), (3, 0, 20), tuple(range(1, 12)), (2,) * 9 + (3,)]


@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_a_balanced_epoch_has_each_class_as_often_as_the_others(counts: tuple[int, ...]) -> None:
    targets = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    for epoch in range(20):
        order = resampled_order(1, epoch, targets, 1.0)
        assert (order.shape, order.dtype) == (targets.shape, torch.int64)
        classes = Counter(targets[order].tolist())
        assert set(classes) == set(targets.tolist())
        assert max(classes.values()) - min(classes.values()) <= 1
        for k, n_drawn in classes.items():  # and within a class each image as often as the others
            images = Counter(order[targets[order] == k].tolist())
            assert max(images.values()) == -(-n_drawn // counts[k])
            assert len(images) == min(n_drawn, counts[k])


@pytest.mark.parametrize("balance", [0.0, 0.25, 0.5, 0.9])
def test_between_shuffled_and_balanced_a_class_has_the_share_of_a_power_of_its_images(balance: float) -> None:
    counts = np.array([350, 90, 20, 5, 1])
    targets = torch.repeat_interleave(torch.arange(5), torch.from_numpy(counts))
    shares = counts ** (1 - balance) / (counts ** (1 - balance)).sum()
    for epoch in range(5):
        order = resampled_order(1, epoch, targets, balance)
        assert order.shape == targets.shape
        drawn_each = torch.bincount(targets[order], minlength=5).numpy()
        assert (abs(drawn_each - shares * len(targets)) < 1).all()
        if not balance:
            assert sorted(order.tolist()) == list(range(len(targets)))


def test_sampling_by_name_and_by_number() -> None:
    images, targets = noisy(12, 3)
    for sampling, balance in {"shuffle": 0, "square_root": 0.5, "balanced": 1, 0.3: 0.3}.items():
        assert training(images, targets, sampling=sampling).train.balance == balance


@pytest.mark.parametrize(("sampling", "shares"), [("shuffle", [0.75, 0.25]), ("balanced", [0.5, 0.5])])
def test_logit_adjustment_adds_the_logarithm_of_each_classs_share_to_the_logits_in_the_loss(
    sampling: str, shares: list[float]
) -> None:
    images, _ = noisy(20, 2)
    targets = torch.tensor([0] * 15 + [1] * 5)
    chosen = training(images, targets, sampling=sampling, logit_adjustment=2.0, label_smoothing=0.1)
    pixels = images[:6].float() / 255
    with torch.no_grad():
        logits = chosen.model(pixels)
    loss, scores = chosen.learn(pixels, targets[12:18], targets[12:18], 1.0)
    adjusted = logits + 2 * torch.tensor(shares).log()
    assert loss.item() == pytest.approx(F.cross_entropy(adjusted, targets[12:18], label_smoothing=0.1).item(), rel=1e-5)
    assert scores[0].item() == pytest.approx(F.cross_entropy(logits, targets[12:18], reduction="sum").item(), rel=1e-5)


def test_logit_adjustment_of_a_class_without_images_is_finite() -> None:
    images, _ = noisy(12, 3)
    chosen = training(images, torch.tensor([0, 2] * 6), logit_adjustment=1.0)
    assert chosen.log_priors is not None
    assert chosen.log_priors.isfinite().all()
    assert training(images, torch.tensor([0, 2] * 6)).log_priors is None


def test_a_balanced_order_is_a_function_of_seed_and_epoch() -> None:
    targets = torch.tensor([0] * 30 + [1] * 5)
    keys = [(seed, epoch) for seed in range(3) for epoch in range(3)]
    orders = {key: tuple(resampled_order(*key, targets, 1.0).tolist()) for key in keys}
    assert len(set(orders.values())) == 9
    torch.rand(7)
    np.random.rand(7)
    assert all(tuple(resampled_order(*key, targets, 1.0).tolist()) == order for key, order in orders.items())


def test_every_image_of_a_large_class_has_its_turn_in_balanced_epochs() -> None:
    targets = torch.tensor([0] * 40 + [1] * 4)
    turns = Counter(row for epoch in range(60) for row in resampled_order(1, epoch, targets, 1.0).tolist())
    assert set(turns) == set(range(44))
    assert all(15 < turns[row] < 55 for row in range(40))  # 60 epochs of 22 in 40: 33 each
    assert all(row < 40 for row in resampled_order(1, 0, torch.zeros(40, dtype=torch.int64), 1.0).tolist())


def test_a_balanced_order_is_shuffled_across_classes() -> None:
    targets = torch.tensor([0] * 50 + [1] * 50)
    first_half = targets[resampled_order(1, 0, targets, 1.0)][:50].sum()
    assert 10 < first_half < 40


def test_balanced_sampling_trains_on_each_class_equally_often() -> None:
    images, _ = coloured(20)
    targets = torch.tensor([0] * 15 + [1] * 5)
    chosen = training(images, targets, kind=Recorded, batch_size=4, sampling="balanced")
    chosen.epoch(0)
    seen = torch.cat([target for _, target, *_ in chosen.optimizer.seen])
    assert torch.bincount(seen).tolist() == [10, 10]
    values = torch.cat([pixels[:, 0, 0, 0] for pixels, *_ in chosen.optimizer.seen]) * 255
    assert torch.equal(targets[values.round().long()], seen)
    chosen.epoch(1)
    later = torch.cat([pixels[:, 0, 0, 0] for pixels, *_ in chosen.optimizer.seen[5:]]) * 255
    assert sorted(later.round().tolist()) != sorted(values.round().tolist())  # other images of the large class


def test_no_two_random_choices_of_an_epoch_share_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    streams: list[tuple[int, ...]] = []
    philox = np.random.Philox

    def noted(key: Sequence[int], counter: Sequence[int] = (0, 0, 0, 0)) -> np.random.Philox:
        streams.append((*key, *counter))
        return philox(key=list(key), counter=list(counter))

    monkeypatch.setattr(np.random, "Philox", noted)
    augment.draws(1, 2, 5)
    augment.order(1, 2, 5)
    for batch in range(3):
        augment.mix(torch.zeros(2, 3, 4, 4), torch.zeros(2), PLAIN, 1, 2, batch)
    resampled_order(1, 2, torch.tensor([0, 1, 1]), 1.0)
    assert len(streams) == len(set(streams)) >= 6


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("backbone_lr", [1.0, 0.1])
def test_a_frozen_backbone_stays_as_it_is_while_the_head_learns_and_then_all_learns(optimizer: str, backbone_lr: float) -> None:
    images, targets = noisy(12, 3)
    rates = {"head_epochs": 2, "head_lr": 0.05, "lr": 0.05, "schedule": "constant", "backbone_lr": backbone_lr}
    chosen = training(images, targets, "fieldnet", epochs=4, batch_size=4, optimizer=optimizer, ema=0.5, **rates)
    states, averages = ([copy.deepcopy(model.state_dict())] for model in (chosen.model, chosen.average))
    for epoch in range(4):
        chosen.epoch(epoch)
        states.append(copy.deepcopy(chosen.model.state_dict()))
        averages.append(copy.deepcopy(chosen.average.state_dict()))

    def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
        return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}

    head = {"head.weight", "head.bias"}
    assert moved(states[0], states[1]) == moved(states[1], states[2]) == head  # of states: the norms' statistics too
    assert moved(states[2], states[4]) == set(states[0]) - {"pixel_mean", "pixel_std"}
    assert moved(averages[0], averages[2]) == head
    counts = {name for name in states[0] if name.endswith("num_batches_tracked")}
    assert moved(averages[2], averages[4]) == set(states[0]) - {"pixel_mean", "pixel_std"} - counts


def test_head_epochs_without_augmentation_embed_the_images_once_and_train_only_the_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, targets = noisy(9, 3)
    rates = {"head_epochs": 2, "head_augment": False, "head_lr": 0.05, "epochs": 3, "batch_size": 4}
    chosen = training(images, targets, "fieldnet", ema=0.5, augment=augmentation(**ALL_ON), **rates)
    seen = []
    chosen.model.features.register_forward_hook(lambda module, inputs, output: seen.append((len(output), module.training)))
    before = copy.deepcopy(chosen.model.state_dict())
    chosen.epoch(0)
    chosen.epoch(1)
    assert seen == [(4, False)] * 3  # the last pass has one image and three of nothing
    after = chosen.model.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"head.weight", "head.bias"}
    chosen.epoch(2)
    assert "embeddings" not in vars(chosen)  # their memory is free
    assert not torch.equal(before["features.0.weight"], chosen.model.state_dict()["features.0.weight"])


def test_head_epochs_without_augmentation_are_those_with_an_augmentation_that_changes_nothing() -> None:
    images, targets = noisy(9, 3)
    rates = {"head_epochs": 2, "head_lr": 0.5, "epochs": 3, "batch_size": 4} | ONE_SIDE
    rates["optimizer"] = "sgd"  # where the gradient is nearly 0, Adam makes full steps of rounding errors
    cached, plain = (
        training(images, targets, "fieldnet", head_augment=head_augment, **rates) for head_augment in (False, True)
    )
    for epoch in range(2):
        scores = [chosen.epoch(epoch) for chosen in (cached, plain)]
        assert scores[0].loss == pytest.approx(scores[1].loss, rel=1e-4)
    torch.testing.assert_close(cached.model.head.weight, plain.model.head.weight, atol=2e-4, rtol=1e-3)  # not resampled


@pytest.mark.parametrize(("freeze", "first_trained"), [(0.0, 0), (0.3, 2), ("5", 5)])
def test_frozen_blocks_keep_weights_and_statistics_and_all_others_learn(freeze: float | str, first_trained: int) -> None:
    images, targets = noisy(8, 3)
    chosen = training(images, targets, "fieldnet", freeze=freeze, epochs=1, batch_size=4, weight_decay=0.1)
    before = copy.deepcopy(chosen.model.state_dict())
    chosen.epoch(0)
    after = chosen.model.state_dict()
    moved = {int(name.split(".")[1]) for name in before if "features" in name and not torch.equal(before[name], after[name])}
    parts = [int(name) for name, part in chosen.model.features.named_children() if part.state_dict()]
    assert sorted(moved) == parts[first_trained:]


def test_the_head_learns_at_its_own_rate_while_the_backbone_is_frozen() -> None:
    images, targets = noisy(8, 3)
    chosen = training(images, targets, batch_size=8, **(DESCENT | {"epochs": 2, "head_epochs": 1, "head_lr": 0.03}))
    twin = copy.deepcopy(chosen.model)
    F.cross_entropy(twin(images.float() / 255), targets, label_smoothing=chosen.train.label_smoothing).backward()
    chosen.epoch(0)
    expected = twin.head.weight - 0.03 * twin.head.weight.grad
    torch.testing.assert_close(chosen.model.head.weight, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_the_result_is_the_average_of_the_weights_after_each_step() -> None:
    images, targets = noisy(10, 3)
    chosen = training(images, targets, "fieldnet", Kept, epochs=2, batch_size=4, accumulate=2, ema=0.3, lr=0.05)
    expected = {name: tensor.double() for name, tensor in chosen.model.state_dict().items()}
    for epoch in range(2):
        chosen.epoch(epoch)
    assert len(chosen.optimizer.seen) == 4
    for t, state in enumerate(chosen.optimizer.seen, start=1):
        kept = min(0.3, (1 + t) / (10 + t))
        expected = {name: kept * expected[name] + (1 - kept) * state[name].double() for name in expected}
    assert chosen.result is chosen.average
    for name, tensor in chosen.result.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.double(), expected[name], atol=1e-5, rtol=1e-4)
    assert not torch.equal(chosen.result.head.weight, chosen.model.head.weight)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "muon"])
def test_what_an_optimizer_remembers_comes_back_in_the_order_of_its_weight(optimizer: str, tmp_path: Path) -> None:
    """Through a file; fused kernels on a GPU refuse another than the weight's."""

    def layouts(chosen: Training) -> list[list[int]]:
        state = chosen.optimizer.state
        remembered = [
            value for p in chosen.model.parameters() for _, value in sorted(state[p].items()) if torch.is_tensor(value)
        ]
        return [[step for step, n in zip(value.stride(), value.shape, strict=True) if n > 1] for value in remembered]

    images, targets = noisy(8, 3, px=32)
    before, after = (training(images, targets, "fieldnet", optimizer=optimizer, batch_size=4, epochs=2) for _ in range(2))
    before.epoch(0)
    states = States(tmp_path)
    states.save(before.state())
    after.restore(states.load())
    assert layouts(after) == layouts(before)
    for part in ("model", "average"):
        torch.testing.assert_close(after.state()[part], before.state()[part], rtol=0, atol=0)
    torch.testing.assert_close(after.optimizer.state_dict()["state"], before.optimizer.state_dict()["state"], rtol=0, atol=0)


def test_without_an_average_the_result_is_the_network_itself() -> None:
    chosen = training(*noisy(4, 2), ema=0.0)
    assert chosen.result is chosen.model


def test_an_average_does_not_change_how_the_weights_learn() -> None:
    def weights(ema: float) -> bytes:
        chosen = training(*noisy(10, 3), "fieldnet", epochs=2, batch_size=4, ema=ema, optimizer="sgd", weight_decay=0.0)
        for epoch in range(2):
            chosen.epoch(epoch)
        return as_bytes(chosen.model)

    assert weights(0.0) == weights(0.9)


class NotFinite(Training):
    """Training whose second batch has a loss that is not finite."""

    def learn(self, *given: object) -> tuple[torch.Tensor, torch.Tensor]:
        loss, scores = super().learn(*given)
        self.optimizer.seen.append(loss)
        return (torch.full_like(loss, float("inf")) if len(self.optimizer.seen) == 2 else loss), scores


def test_the_first_batch_whose_loss_is_not_finite_is_named() -> None:
    images, targets = noisy(12, 3)
    chosen = training(images, targets, kind=NotFinite, batch_size=4, lr=0.05)
    advice = r"; lower train\.lr \(0\.05\), set train\.clip_norm=1 or train\.precision=fp32$"
    with pytest.raises(UserError, match=r"^epoch 1, batch 2: loss is inf" + advice):
        chosen.epoch(0)
    chosen = training(images, targets, batch_size=4, lr=0.05)
    chosen.epoch(0)
    with torch.no_grad():
        chosen.model.head.weight.fill_(float("nan"))
    with pytest.raises(UserError, match=r"^epoch 2, batch 1: loss is nan" + advice):
        chosen.epoch(1)


def sides(image_px: int, **changes: object) -> list[int]:
    train = Train(**(PARAMS.train.model_dump() | ONE_SIDE | changes))
    return [image_px_at(epoch, train, image_px) for epoch in range(train.epochs)]


@pytest.mark.parametrize("image_px", [64, 96, 100, 224, 333])
@pytest.mark.parametrize("growth", [0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("epochs", [2, 5, 36])
def test_the_side_grows_in_steps_of_sixteen_from_the_start_to_the_end(image_px: int, growth: float, epochs: int) -> None:
    found = sides(image_px, epochs=epochs, size_start=48 / image_px, size_growth=growth)
    assert found[0] == 48
    assert found[-1] == image_px
    assert found == sorted(found)
    assert all(px == image_px or px % 16 == 0 for px in found)
    n_full = sum(px == image_px for px in found)
    assert n_full >= (1 - growth) * (epochs - 1)


def test_the_sides_of_an_example() -> None:
    assert sides(112, epochs=5, size_start=3 / 7, size_growth=1.0) == [48, 64, 80, 96, 112]
    assert sides(112, epochs=6, size_start=3 / 7, size_growth=0.4) == [48, 80, 112, 112, 112, 112]
    assert sides(160, epochs=5, size_start=0.4, size_end=0.8, size_growth=1.0) == [64, 80, 96, 112, 128]
    assert sides(96, epochs=3, size_start=1.0, size_end=0.5, size_growth=1.0) == [96, 64, 48]


@pytest.mark.parametrize("image_px", [16, 64, 100])
def test_without_growth_the_side_is_the_last_from_the_first_epoch(image_px: int) -> None:
    assert sides(image_px, epochs=7) == [image_px] * 7
    assert sides(image_px, epochs=7, size_start=0.3, size_growth=0.0) == [image_px] * 7
    assert sides(image_px, epochs=1, size_start=0.3) == [image_px]


def test_the_side_is_never_below_what_networks_halve_nor_above_that_in_use() -> None:
    assert sides(20, epochs=3, size_start=0.1, size_end=0.9, size_growth=1.0) == [16, 16, 16]
