"""One epoch: every image once, a score that is right, and the same bytes for the same seed."""

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from safetensors.torch import save

from fieldguide.loop import Training
from fieldguide.models import NETWORKS, build
from fieldguide.optim import make_optimizer
from fieldguide.params import Augment, Train, read_params

PARAMS = read_params(ROOT / "params.yaml")
PLAIN = Augment(
    horizontal_flip=0.0,
    vertical_flip=0.0,
    rotation_degrees=0.0,
    crop_area_min=1.0,
    crop_aspect_max=1.0,
    brightness=0.0,
    contrast=0.0,
    saturation=0.0,
)
STANDSTILL = 1e-30  # a rate at which no float32 weight moves


class Recorded(Training):
    """Training that writes down what each step is given, and learns nothing."""

    def step(self, pixels: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        rates = {group["lr"] for group in self.optimizer.param_groups}
        self.optimizer.seen.append((pixels, target, rates))
        return torch.zeros(2)


def coloured(n_images: int, px: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Image k is flat with the value k, and k is its target."""
    values = torch.arange(n_images, dtype=torch.uint8)
    return values.view(-1, 1, 1, 1).expand(-1, 3, px, px).clone(), torch.arange(n_images)


def noisy(n_images: int, n_classes: int, px: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n_images, 3, px, px), dtype=torch.uint8, generator=generator)
    return images, torch.arange(n_images) % n_classes


def training(
    images: torch.Tensor, targets: torch.Tensor, network: str = "cnn", kind: type[Training] = Training, **changes: object
) -> Training:
    """Plain images and fp32 but for `changes`, which name keys of `train` or fields of `Training`."""
    fields = {"augment": PLAIN, "image_px": 16, "dtype": torch.float32} | {
        name: changes.pop(name) for name in ("augment", "image_px", "dtype") if name in changes
    }
    train = Train(**(PARAMS.train.model_dump() | changes))
    torch.manual_seed(train.seed)
    model = build(network, int(targets.max()) + 1).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, train)
    optimizer.seen = []
    return kind(model=model, optimizer=optimizer, images=images, targets=targets, train=train, **fields)


@pytest.mark.parametrize(("network", "epochs"), [("cnn", 60), ("fieldnet", 20)])
def test_one_batch_overfits(network: str, epochs: int) -> None:
    images, targets = noisy(16, 4)
    chosen = training(images, targets, network, epochs=epochs, batch_size=16, lr=0.05, label_smoothing=0.0, warmup=0.2)
    scores = [chosen.epoch(epoch) for epoch in range(epochs)]
    assert scores[0].loss > 1
    assert scores[-1].loss < 0.05
    assert scores[-1].accuracy == 1


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_seed_gives_the_same_bytes(network: str, dtype: torch.dtype) -> None:
    def weights(seed: int) -> bytes:
        images, targets = noisy(10, 3)
        chosen = training(images, targets, network, epochs=2, batch_size=4, seed=seed, dtype=dtype, augment=PARAMS.augment)
        for epoch in range(2):
            chosen.epoch(epoch)
            torch.rand(7)  # nothing rests on torch's global generator
        return save({name: tensor.contiguous() for name, tensor in chosen.model.state_dict().items()})

    assert weights(seed=1) == weights(seed=1)
    assert weights(seed=1) != weights(seed=2)


@pytest.mark.parametrize(
    ("n_images", "batch_size", "sizes"), [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 64, [3]), (11, 4, [4, 4, 3])]
)
def test_every_image_is_seen_once_an_epoch_with_its_own_target(n_images: int, batch_size: int, sizes: list[int]) -> None:
    chosen = training(*coloured(n_images), kind=Recorded, batch_size=batch_size)
    chosen.epoch(0)
    steps = chosen.optimizer.seen
    assert [len(target) for _, target, _ in steps] == sizes
    assert sorted(torch.cat([target for _, target, _ in steps]).tolist()) == list(range(n_images))
    for pixels, target, _ in steps:
        torch.testing.assert_close(pixels.mean(dim=(1, 2, 3)) * 255, target.float(), atol=1e-3, rtol=0)


def test_epochs_go_through_the_images_in_different_orders() -> None:
    chosen = training(*coloured(30), kind=Recorded, batch_size=30)
    for epoch in range(3):
        chosen.epoch(epoch)
    orders = {tuple(target.tolist()) for _, target, _ in chosen.optimizer.seen}
    assert len(orders) == 3
    assert tuple(range(30)) not in orders


def test_what_an_image_looks_like_in_an_epoch_does_not_depend_on_the_batches() -> None:
    def looks(batch_size: int, epochs: tuple[int, ...]) -> dict[int, torch.Tensor]:
        images, _ = noisy(10, 10)
        chosen = training(images, torch.arange(10), kind=Recorded, batch_size=batch_size, augment=PARAMS.augment)
        for epoch in epochs:
            chosen.optimizer.seen.clear()
            chosen.epoch(epoch)
        return {int(k): image for pixels, target, _ in chosen.optimizer.seen for image, k in zip(pixels, target, strict=True)}

    whole, halves, other = looks(10, (0, 1)), looks(3, (1,)), looks(10, (2,))
    for k in range(10):
        torch.testing.assert_close(whole[k], halves[k], atol=1e-6, rtol=0)
        assert not torch.allclose(whole[k], other[k], atol=1e-2)


def test_each_step_has_the_rate_of_its_place_in_the_whole_training() -> None:
    chosen = training(*coloured(10), kind=Recorded, batch_size=4, epochs=2, lr=0.6, warmup=1.0)
    for epoch in range(2):
        chosen.epoch(epoch)
    rates = [rate for *_, step_rates in chosen.optimizer.seen for rate in step_rates]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])


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
