"""The networks: their layers and sizes as promised, the scaling of what they see, and every name of torchvision and timm."""

import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
import torchvision.models
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torchvision.transforms.v2 import functional as tv

from fieldguide.core.errors import UserError
from fieldguide.network.models import (
    NETWORKS,
    Classifier,
    ResidualBlock,
    averaged_map,
    block_numbers,
    build,
    check_name,
    cnn,
    fieldnet,
    runs_at,
)
from support import ROOT

TORCHVISION = torchvision.models.list_models(module=torchvision.models)
FAMILIES = {  # the cheapest of each, a side at which it is quick, and the length of its embedding as its paper has it
    "alexnet": (64, 4096),
    "convnext_tiny": (32, 768),
    "densenet121": (32, 1024),
    "efficientnet_b0": (32, 1280),
    "googlenet": (32, 1024),
    "inception_v3": (80, 2048),
    "mnasnet0_5": (32, 1280),
    "mobilenet_v2": (32, 1280),
    "mobilenet_v3_small": (32, 1024),
    "regnet_y_400mf": (32, 440),
    "resnet18": (32, 512),
    "shufflenet_v2_x0_5": (32, 1024),
    "squeezenet1_1": (32, 512),
    "swin_t": (32, 768),
    "swin_v2_t": (32, 768),
    "vit_b_32": (64, 768),
    "timm/resnet10t": (32, 512),
    "timm/test_vit": (48, 64),
    "timm/test_convnext": (32, 64),
    "timm/test_efficientnet": (32, 256),
}
FAST = ("resnet18", "squeezenet1_1", "mobilenet_v3_small", "timm/test_vit")


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


@pytest.mark.parametrize("name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES])
def test_a_published_network_gives_logits_from_one_linear_head_when_training_and_after(name: str) -> None:
    image_px, n_features = FAMILIES[name]
    model, pixels = build(name, 5, image_px), torch.rand(2, 3, image_px, image_px)
    assert (model.head.in_features, model.head.out_features) == (n_features, 5)
    for training in (True, False):
        logits = model.train(training)(pixels)
        assert isinstance(logits, torch.Tensor)
        assert logits.shape == (2, 5)
        assert torch.all(logits.isfinite())
    with torch.no_grad():
        scaled = (pixels - model.pixel_mean) / model.pixel_std
        torch.testing.assert_close(logits, F.linear(model.features(scaled), model.head.weight, model.head.bias))


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in ("googlenet", "vit_b_32"))])
def test_every_parameter_of_a_published_network_gets_a_gradient(name: str) -> None:
    image_px, _ = FAMILIES[name]
    model = build(name, 3, image_px)
    F.cross_entropy(model(torch.rand(4, 3, image_px, image_px)), torch.tensor([0, 1, 2, 0])).backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


def test_the_map_is_looked_for_on_the_device_of_the_network() -> None:
    """With tensors that claim to be a GPU's and have no values: it comes as far as the first look at one."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("cuda"):
            model = build("fieldnet", 3)
        assert next(model.parameters()).is_cuda
        with pytest.raises(DataDependentOutputException):
            averaged_map(model.features, 32)


@pytest.mark.slow
def test_a_published_network_is_as_large_as_torchvisions_but_for_its_head() -> None:
    with torch.device("meta"):
        for name in ("vgg16", "resnet50", "efficientnet_b6", "maxvit_t"):
            assert n_parameters(build(name, 1000)) == n_parameters(torchvision.models.get_model(name)) + 1000 * (
                name == "maxvit_t"  # whose own head has no bias
            )


@pytest.mark.slow
def test_dropout_before_the_last_layer_of_vgg_and_efficientnet_stays() -> None:
    with torch.device("meta"):
        assert isinstance(build("vgg16", 2).features.classifier[5], nn.Dropout)
        assert isinstance(build("efficientnet_b6", 2).features.classifier[0], nn.Dropout)


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_every_name_of_torchvision_builds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name.startswith("regnet"):  # which computes with tensors while it is built: only its parameters go to meta
        register = nn.Module.register_parameter
        monkeypatch.setattr(
            nn.Module,
            "register_parameter",
            lambda module, key, value: register(module, key, None if value is None else nn.Parameter(value.to("meta"))),
        )
        model = build(name, 5)
    else:
        with torch.device("meta"):
            model = build(name, 5)
    assert model.head.out_features == 5
    assert sorted(set(block_numbers(model).values())) == list(range(max(block_numbers(model).values()) + 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("resnet18", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("efficientnet_v2_l", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("timm/vit_tiny_patch16_224", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("timm/resnet10t", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_pixels_are_scaled_as_for_the_published_weights(name: str, mean: tuple[float], std: tuple[float]) -> None:
    model, dark = build(name, 2), torch.zeros(1, 3, 1, 1)
    expected = tv.normalize(dark, list(mean), list(std))
    torch.testing.assert_close((dark - model.pixel_mean) / model.pixel_std, expected)


@pytest.mark.parametrize("name", ["resnet18", "timm/test_vit"])
def test_published_networks_are_a_function_of_torchs_seed(name: str) -> None:
    states = []
    for seed in (4, 4, 5):
        torch.manual_seed(seed)
        states.append(build(name, 3, 64).state_dict())
    first, second, other = states
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_asking_for_the_size_of_an_embedding_draws_nothing() -> None:
    model = build("timm/test_efficientnet", 3, 32)
    before = torch.get_rng_state()
    assert runs_at(model, 64)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "image_px", "fits"),
    [
        ("alexnet", 32, "64, 96, 128, 160"),
        ("vit_b_32", 48, "32, 64, 96, 128"),
        ("maxvit_t", 96, "224, 448, 672"),
        ("inception_v3", 64, "96, 128, 160, 192"),
    ],
)
def test_a_size_that_does_not_fit_is_refused_with_some_that_do(name: str, image_px: int, fits: str) -> None:
    with pytest.raises(
        UserError,
        match=rf"^params\.yaml: model\.image_px is {image_px}, which {name} does not support \(.+\); supported: {fits}$",
    ):
        build(name, 3, image_px)


@pytest.mark.slow
def test_a_network_bound_to_its_size_is_built_for_it() -> None:
    model = build("vit_b_32", 3, 96)
    assert [image_px for image_px in (64, 96, 128) if runs_at(model, image_px)] == [96]
    model = build("swin_t", 3, 96)
    assert [image_px for image_px in (64, 96, 128) if runs_at(model, image_px)] == [64, 96, 128]
    model = cnn(3)
    assert [image_px for image_px in (8, 15, 16, 49) if runs_at(model, image_px)] == [16, 49]


@pytest.mark.parametrize("name", ["cnn", "fieldnet", "vgg16", "timm/resnet10t", "timm/resnet10t.c3_in1k"])
def test_known_names_pass(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("resnet5O", r"did you mean resnet50, .*\?"),
        ("fieldnets", r"did you mean fieldnet\b.*\?"),
        ("resnet10t", r"did you mean timm/resnet10t\?"),
        ("timm/resnet10q", r"did you mean .*timm/resnet10t\?"),
        ("timm/resnet10t.nowhere", r"did you mean timm/resnet10t.*\?"),
        ("fasterrcnn_resnet50_fpn", r"use fieldnet, cnn, a network of torchvision or timm/<name>"),
    ],
)
def test_unknown_names_are_refused_with_close_ones(name: str, advice: str) -> None:
    with pytest.raises(
        UserError, match=rf"^params\.yaml: model\.name is {re.escape(name)}, which is not a known network; {advice}$"
    ):
        build(name, 3)


def test_the_module_and_its_own_networks_import_neither_torchvisions_models_nor_timm() -> None:
    script = (
        "import sys, fieldguide.network.checkpoint, fieldguide.network.models; fieldguide.network.models.build('cnn', 2)\n"
        "assert not {'torchvision.models', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "resnet18",
            {
                "conv1.weight": 0,
                "bn1.bias": 1,
                "layer1.0.conv1.weight": 2,
                "layer1.1.bn2.weight": 2,
                "layer4.1.conv2.weight": 5,
            },
        ),
        ("convnext_tiny", {"features.0.0.weight": 0, "features.1.0.block.0.weight": 1, "features.7.2.layer_scale": 7}),
        (
            "vit_b_32",
            {
                "class_token": 0,
                "conv_proj.weight": 1,
                "encoder.pos_embedding": 2,
                "encoder.layers.encoder_layer_0.ln_1.weight": 3,
                "encoder.layers.encoder_layer_11.mlp.3.bias": 14,
                "encoder.ln.weight": 15,
            },
        ),
        ("timm/test_vit", {"cls_token": 0, "pos_embed": 1, "patch_embed.proj.weight": 2, "blocks.0.norm1.weight": 3}),
        ("cnn", {"0.weight": 0, "0.bias": 0, "3.weight": 1, "9.bias": 3}),
    ],
)
def test_blocks_are_counted_from_the_input(name: str, expected: dict[str, int]) -> None:
    with torch.device("meta"):
        model = build(name, 3, 160)
    numbers = block_numbers(model)
    assert list(numbers) == [key for key, _ in model.named_parameters()]
    assert {key: numbers[f"features.{key}"] for key in expected} == expected
    backbone = [number for key, number in numbers.items() if key.startswith("features.")]
    assert backbone == sorted(backbone)
    assert sorted(set(backbone)) == list(range(max(backbone) + 1))
    assert numbers["head.weight"] == numbers["head.bias"] == max(backbone) + 1
