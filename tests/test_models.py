"""The networks: their layers and sizes as promised, and the scaling of what they see."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.transforms.v2 import functional as tv

from fieldguide.models import NETWORKS, Classifier, ResidualBlock, build, cnn, fieldnet


def n_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_cnn_has_959858_parameters_at_50_classes() -> None:
    by_hand = (3 * 25 + 1) * 32 + (32 * 25 + 1) * 64 + (64 * 9 + 1) * 128 + (128 * 25 + 1) * 256 + (256 + 1) * 50
    assert by_hand == 959_858
    assert n_parameters(cnn(50)) == 959_858


@pytest.mark.parametrize("image_px", [32, 49])
def test_cnn_is_four_convolutions_with_relu_and_pooling_then_average_and_linear(image_px: int) -> None:
    torch.manual_seed(0)
    model, pixels = cnn(7).eval(), torch.rand(2, 3, image_px, image_px)
    weights = [p for p in model.features.parameters() if p.ndim == 4]
    biases = [p for p in model.features.parameters() if p.ndim == 1]
    shapes = [(32, 3, 5, 5), (64, 32, 5, 5), (128, 64, 3, 3), (256, 128, 5, 5)]
    assert [tuple(weight.shape) for weight in weights] == shapes
    x = tv.normalize(pixels, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    for weight, bias in zip(weights, biases, strict=True):
        x = F.max_pool2d(F.conv2d(x, weight, bias, padding=weight.shape[2] // 2).relu(), 2)
    expected = x.mean(dim=(2, 3)) @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(pixels), expected, atol=1e-5, rtol=1e-5)


def test_fieldnet_has_the_parameters_of_its_docstring_at_50_classes() -> None:
    def block(n_in: int, n_out: int) -> int:
        shortcut = 0 if n_in == n_out else n_in * n_out + 2 * n_out
        return 9 * n_in * n_out + 9 * n_out * n_out + 2 * 2 * n_out + shortcut

    stem, head = 3 * 9 * 48 + 2 * 48, (384 + 1) * 50
    by_hand = stem + block(48, 48) + block(48, 96) + block(96, 192) + block(192, 192) + block(192, 384) + head
    assert n_parameters(fieldnet(50)) == by_hand
    assert f"{by_hand / 1e6:.1f} M parameters at 50 classes" in fieldnet.__doc__


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("image_px", [16, 96, 97, 224])
def test_logits_have_one_row_an_image_and_one_column_a_class(name: str, image_px: int) -> None:
    with torch.inference_mode():
        logits = build(name, 5).eval()(torch.rand(2, 3, image_px, image_px))
    assert logits.shape == (2, 5)
    assert torch.all(logits.isfinite())


@pytest.mark.parametrize("name", NETWORKS)
def test_pictures_that_are_not_square_are_accepted(name: str) -> None:
    with torch.inference_mode():
        assert build(name, 2).eval()(torch.rand(1, 3, 40, 64)).shape == (1, 2)


def test_pixels_are_scaled_as_torchvision_normalizes() -> None:
    model, pixels = Classifier(nn.Flatten(), 48, 48), torch.rand(3, 3, 4, 4)
    nn.init.eye_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    expected = tv.normalize(pixels, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(model(pixels).view_as(pixels), expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_scaling_is_part_of_the_weights_and_is_not_trained(name: str) -> None:
    model = build(name, 2)
    assert {"pixel_mean", "pixel_std"} <= set(model.state_dict())
    assert {"pixel_mean", "pixel_std"}.isdisjoint(dict(model.named_parameters()))


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_are_a_function_of_torchs_seed(name: str) -> None:
    torch.manual_seed(4)
    first = build(name, 3).state_dict()
    torch.manual_seed(4)
    second = build(name, 3).state_dict()
    torch.manual_seed(5)
    other = build(name, 3).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = build(name, 3)
    F.cross_entropy(model(torch.rand(4, 3, 32, 32)), torch.tensor([0, 1, 2, 0])).backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


def test_a_residual_block_begins_as_the_identity() -> None:
    block, x = ResidualBlock(8, 8, stride=1), torch.rand(2, 8, 6, 6)
    torch.testing.assert_close(block(x), x)


@pytest.mark.parametrize(("side", "stride", "expected"), [(8, 1, 8), (7, 1, 7), (8, 2, 4), (7, 2, 4), (2, 2, 1), (1, 2, 1)])
@pytest.mark.parametrize("n_out", [4, 6])
def test_a_residual_block_rounds_its_side_up(side: int, stride: int, expected: int, n_out: int) -> None:
    block = ResidualBlock(4, n_out, stride).eval()
    assert block(torch.rand(2, 4, side, side)).shape == (2, n_out, expected, expected)


def test_a_shortcut_averages_only_real_pixels_at_an_odd_side() -> None:
    block = ResidualBlock(1, 1, stride=2).eval()
    nn.init.ones_(block.shortcut[1].weight)
    ones = torch.ones(1, 1, 5, 5)
    torch.testing.assert_close(block(ones), torch.ones(1, 1, 3, 3), atol=1e-4, rtol=0)
