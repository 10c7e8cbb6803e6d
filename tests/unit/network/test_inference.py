"""Prediction equals the plain network on plain pixels, however it is cut into batches."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss

from fieldguide.network.inference import batches_of, score, scores, views
from fieldguide.network.inference import predict as predict_batches
from fieldguide.network.loader import Resident
from fieldguide.network.models import NETWORKS, Classifier, build

CPU = torch.device("cpu")


def predict(model: Classifier, *arguments: Any) -> torch.Tensor:
    """The logits of all batches."""
    return torch.cat([torch.empty(0, model.head.out_features), *predict_batches(model, *arguments)])


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (9, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=list(NETWORKS))
def model(request: pytest.FixtureRequest, images: torch.Tensor) -> Classifier:
    """A network whose norms have seen data, so that its two modes differ."""
    torch.manual_seed(0)
    network = build(request.param, 4).train()
    with torch.no_grad():
        network(images.float() / 255)
    return network.eval()


@pytest.mark.parametrize("batch_size", [1, 2, 4, 9, 64])
def test_logits_are_the_networks_at_every_batch_size(model: Classifier, images: torch.Tensor, batch_size: int) -> None:
    with torch.no_grad():
        expected = model(images.float() / 255)
    logits = predict(model, Resident(images), batch_size, CPU)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


def test_images_are_asked_for_once_in_their_order_and_no_more_at_a_time(model: Classifier, images: torch.Tensor) -> None:
    asked: list[list[int]] = []

    class Asked(Resident):
        def batches(self, chosen: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
            asked.extend(rows.tolist() for rows in chosen)
            return super().batches(chosen)

    predict(model, Asked(images), 4, CPU)
    assert asked == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]


def test_no_images_give_no_logits(model: Classifier, images: torch.Tensor) -> None:
    logits = predict(model, Resident(images[:0]), 4, CPU)
    assert (logits.shape, logits.dtype) == ((0, 4), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_float32_on_the_cpu(model: Classifier, images: torch.Tensor, dtype: torch.dtype) -> None:
    logits = predict(model, Resident(images), 4, CPU, dtype)
    assert (logits.shape, logits.dtype, logits.device) == ((9, 4), torch.float32, CPU)
    assert not logits.requires_grad


def test_bf16_logits_are_near_those_of_fp32(model: Classifier, images: torch.Tensor) -> None:
    rounded, exact = predict(model, Resident(images), 9, CPU, torch.bfloat16), predict(model, Resident(images), 9, CPU)
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, atol=0.02 * float(exact.abs().max()), rtol=0)


def test_a_network_in_training_mode_predicts_as_in_evaluation_mode(model: Classifier, images: torch.Tensor) -> None:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        expected = model(images.float() / 255)
    logits = predict(model.train(), Resident(images), 9, CPU)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_images_with_channels_last_in_memory_give_the_same(model: Classifier, images: torch.Tensor) -> None:
    turned = images.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(
        predict(model, Resident(turned), 4, CPU), predict(model, Resident(images), 4, CPU), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("tta", ["none", "mirror"])
@pytest.mark.parametrize("batch_size", [1, 4, 9])
def test_views_are_the_image_and_its_mirror_image(model: Classifier, images: torch.Tensor, tta: str, batch_size: int) -> None:
    seen = [images, torch.from_numpy(images.numpy()[..., ::-1].copy())][: 1 if tta == "none" else 2]
    with torch.no_grad():
        expected = torch.stack([model(view.float() / 255) for view in seen])
    found = list(views(model, Resident(images), batches_of(9, batch_size), CPU, tta))
    torch.testing.assert_close(torch.cat([logits for logits, _ in found], dim=1), expected, atol=1e-5, rtol=0)
    embeddings = torch.cat([embedding for _, embedding in found], dim=1)
    assert embeddings.shape == (len(seen), 9, model.head.in_features)
    torch.testing.assert_close(model.head(embeddings).detach(), expected, atol=1e-5, rtol=0)


def test_the_first_view_has_the_very_logits_of_predict(model: Classifier, images: torch.Tensor) -> None:
    found = torch.cat([logits[0] for logits, _ in views(model, Resident(images), batches_of(9, 3), CPU, "mirror")])
    assert torch.equal(found, predict(model, Resident(images), 3, CPU))


def test_the_network_is_asked_once_for_each_view_and_nothing_is_read_ahead(model: Classifier, images: torch.Tensor) -> None:
    sizes: list[int] = []
    hook = model.features.register_forward_hook(lambda module, given, made: sizes.append(len(made)))
    batches = views(model, Resident(images), batches_of(9, 4), CPU, "mirror")
    next(batches)
    assert sizes == [4, 4]
    list(batches)
    hook.remove()
    assert sizes == [4, 4, 4, 4, 4, 4]  # so that an image's embedding does not depend on the number of images


def test_no_images_give_no_batches(model: Classifier, images: torch.Tensor) -> None:
    assert len(batches_of(0, 4)) == 0
    assert list(views(model, Resident(images[:0]), batches_of(0, 4), CPU, "mirror")) == []


@pytest.mark.parametrize(("n_images", "n_classes"), [(1, 2), (50, 7), (3, 104)])
def test_score_is_scikit_learns(n_images: int, n_classes: int) -> None:
    generator = torch.Generator().manual_seed(n_images)
    logits = 3 * torch.randn(n_images, n_classes, generator=generator)
    targets = torch.randint(n_classes, (n_images,), generator=generator)
    found = score(scores(logits, targets))
    probabilities = logits.double().softmax(1).numpy()
    expected = log_loss(targets.numpy(), probabilities, labels=np.arange(n_classes))
    assert found.loss == pytest.approx(expected, rel=1e-5)
    assert found.accuracy == accuracy_score(targets.numpy(), probabilities.argmax(1))


def test_score_of_known_logits() -> None:
    logits = torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 0.5]])
    found = score(scores(logits, torch.tensor([1, 1, 1])))
    assert found.loss == pytest.approx((np.log(2) + 100 + np.log(1 + np.exp(-0.5))) / 3)
    assert found.accuracy == pytest.approx(1 / 3)
