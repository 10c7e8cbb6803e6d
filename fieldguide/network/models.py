"""Networks by name: fieldguide's, torchvision's and timm's.

Each is a `Classifier`: pixels in 0..1 to logits, with the input normalisation built in.
"""

import difflib
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from fieldguide.core.errors import UserError

PIXEL_MEAN = (0.485, 0.456, 0.406)  # of ImageNet, RGB
PIXEL_STD = (0.229, 0.224, 0.225)
TIMM = "timm/"
BLOCK = re.compile(r"features\.(?:\D*?\d[^.]*|[^.]+)|head")  # up to the first component with a digit
UNFIT = (AssertionError, RuntimeError, TypeError, ValueError)  # raised by networks for an unsupported input size
USUAL_PX = (32, 48, 64, 96, 128, 160, 192, 224, 240, 256, 288, 320, 336, 384, 448, 512, 518, 672, 1024)


class Classifier(nn.Module):
    """Input normalisation, `features` (an embedding of each image) and `head` (one linear layer)."""

    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    def __init__(
        self,
        features: nn.Module,
        n_features: int,
        n_classes: int,
        pixel_mean: Sequence[float] = PIXEL_MEAN,
        pixel_std: Sequence[float] = PIXEL_STD,
    ) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Linear(n_features, n_classes)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(1, 3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(1, 3, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Float `[B, 3, H, W]` in 0..1 to logits `[B, K]`."""
        return self.head(self.features((pixels - self.pixel_mean) / self.pixel_std))


def build(name: str, n_classes: int, image_px: int = 224, section: str = "model") -> Classifier:
    """A network with random weights for squares of `image_px` pixels; downloads nothing.

    The weights come from torch's global generator. The normalisation is that of the published weights. Raises `UserError`
    for an unknown name and for an input size that the network does not support, which `section` of the parameters names.
    """
    check_name(name)
    if name in NETWORKS:
        return NETWORKS[name](n_classes)
    pixel_mean, pixel_std = _scaling(name)
    try:
        features = _features(name, image_px)
        n_features = embedding_size(features, image_px)
    except UNFIT as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        fitting = ", ".join(map(str, _sizes(name, near=image_px))) or "none of the usual sizes"
        raise UserError(
            f"params.yaml: {section}.image_px is {image_px}, which {name} does not support ({reason}); supported: {fitting}"
        ) from error
    return Classifier(features, n_features, n_classes, pixel_mean, pixel_std)


def check_name(name: str, where: str = "params.yaml: model.name") -> None:
    """Raises `UserError` with close matches if the name is unknown."""
    if name in NETWORKS:
        return
    import torchvision.models

    names = [*NETWORKS, *torchvision.models.list_models(module=torchvision.models)]
    if name in names:
        return
    import timm

    timms = [TIMM + known for known in {*timm.list_models(), *timm.list_models(include_tags=True)}]
    if name in timms:
        return
    close = [TIMM + name] if TIMM + name in timms else difflib.get_close_matches(name, names + sorted(timms))
    advice = (
        f"did you mean {', '.join(close)}?" if close else f"use {', '.join(NETWORKS)}, a network of torchvision or timm/<name>"
    )
    raise UserError(f"{where} is {name}, which is not a known network; {advice}")


def runs_at(model: Classifier, image_px: int) -> bool:
    """Whether the network supports squares of that side (a ViT only the one that it was built for)."""
    with suppress(*UNFIT):
        embedding_size(model.features, image_px)
        return True
    return False


def embedding_size(features: nn.Module, image_px: int) -> int:
    """Length F of the embedding `[B, F]` of squares of that side, on the meta device.

    Raises one of `UNFIT` if the network does not support the side.
    """
    state = {name: tensor.to("meta") for name, tensor in (*features.named_parameters(), *features.named_buffers())}
    with torch.device("meta"):
        embedding = torch.func.functional_call(features, state, torch.empty(2, 3, image_px, image_px))
    if embedding.ndim != 2:
        raise ValueError(f"its output is {tuple(embedding.shape)} instead of one embedding per image")
    return embedding.shape[1]


def averaged_map(features: nn.Module, image_px: int) -> str | None:
    """The path of the submodule whose output `[B, F, h, w]`, averaged over h and w, is the embedding; None if there is none.

    Compares the outputs of all submodules on noise.
    """
    outputs: list[tuple[nn.Module, torch.Tensor]] = []
    names = {module: name for name, module in features.named_modules()}
    noise = torch.rand(2, 3, image_px, image_px, generator=torch.Generator().manual_seed(0)) * 4 - 2
    hook = register_module_forward_hook(lambda module, _, output: outputs.append((module, output)))
    with hook, torch.no_grad():
        embedding = features.eval()(noise.to(next(features.parameters()).device))
    tolerance = 1e-4 * float(embedding.abs().max())
    for module, output in reversed(outputs):
        if isinstance(output, torch.Tensor) and output.ndim == 4 and output.shape[1] == embedding.shape[1]:
            is_map = output.shape[2] * output.shape[3] > 1
            if is_map and torch.allclose(output.mean(dim=(2, 3)), embedding, atol=tolerance, rtol=1e-3):
                return names[module]
    return None


def block_numbers(model: Classifier) -> dict[str, int]:
    """The block of each parameter, by the names of `model.named_parameters()`: 0 at the input, the head has the highest.

    Consecutive parameters are in the same block if their names agree up to the first component with a digit, or in the first
    component if none has a digit: `layer1` of resnet50, `features.3` of convnext_tiny, `blocks.3` of timm's ViT.
    """
    names = [name for name, _ in model.named_parameters()]
    blocks = groupby(names, key=lambda name: BLOCK.match(name)[0])  # type: ignore[index]  # each is in features or the head
    return {name: number for number, (_, block) in enumerate(blocks) for name in block}


def frozen_blocks(model: Classifier, freeze: float | str) -> list[nn.Module]:
    """The submodules of the blocks from the input on that `train.freeze` keeps as they are.

    freeze: the share of the backbone's blocks, or the name of the last one (`blocks.2`). Raises `UserError` for another name.
    """
    names = list(dict.fromkeys(BLOCK.match(name)[0] for name, _ in model.named_parameters()))[:-1]  # type: ignore[index]
    if isinstance(freeze, str):
        if f"features.{freeze}" not in names:
            known = ", ".join(name.removeprefix("features.") for name in names)
            raise UserError(f"params.yaml: train.freeze is {freeze}, which is not a block of the network; blocks: {known}")
        kept = names[: names.index(f"features.{freeze}") + 1]
    else:
        kept = names[: round(freeze * len(names))]
    inside = {path: BLOCK.match(path) for path, _ in model.named_modules()}
    return [model.get_submodule(path) for path, match in inside.items() if match and match[0] in kept]


def depthwise_share(model: Classifier, image_px: int) -> float:
    """Outputs of depthwise convolutions (one filter for each channel), per multiplication in convolutions and linear layers."""
    n_outputs = n_products = 0

    def count(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal n_outputs, n_products
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        n_products += output.numel() * layer.weight[0].numel()
        if isinstance(layer, nn.Conv2d) and 1 < layer.groups == layer.in_channels:
            n_outputs += output.numel()

    layers = [layer for layer in model.features.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    embedding_size(model.features, image_px)
    for hook in hooks:
        hook.remove()
    return n_outputs / max(n_products, 1)


def _scaling(name: str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation, RGB in 0..1, of the input of the network's published weights."""
    if name.startswith(TIMM):
        import timm

        published = timm.get_pretrained_cfg(name.removeprefix(TIMM))
        return (published.mean, published.std) if published else (PIXEL_MEAN, PIXEL_STD)
    import torchvision.models

    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    return preset.mean, preset.std


def _features(name: str, image_px: int) -> nn.Module:
    """The backbone: float `[B, 3, image_px, image_px]`, normalised, to an embedding `[B, F]`."""
    return timm_features(name, image_px) if name.startswith(TIMM) else torchvision_features(name, image_px)


def torchvision_features(name: str, image_px: int) -> nn.Module:
    """torchvision's network with an identity as its last layer, without auxiliary heads."""
    import torchvision.models

    options: dict[str, object] = {}
    if name in ("googlenet", "inception_v3"):  # transform_input applies the normalisation of their weights
        options = {"aux_logits": False, "init_weights": True, "transform_input": True}
    elif name.startswith("vit_"):
        options = {"image_size": image_px}
    elif name.startswith("maxvit_"):
        options = {"input_size": (image_px, image_px)}
    network = torchvision.models.get_model(name, weights=None, **options)
    sizes = {  # squeezenet ends in a convolution
        path: getattr(module, "out_features", getattr(module, "out_channels", None)) for path, module in network.named_modules()
    }
    heads = [path for path, size in sizes.items() if size == 1000]
    network.set_submodule(heads[-1], nn.Identity())
    return network


def timm_features(name: str, image_px: int, pretrained: bool = False) -> nn.Module:
    """timm's network without its classifier; `pretrained` downloads its weights from the hub."""
    import timm

    name = name.removeprefix(TIMM)
    published = timm.get_pretrained_cfg(name)
    options: dict[str, Any] = {"img_size": image_px} if published and published.fixed_input_size else {}
    return timm.create_model(name, pretrained=pretrained, num_classes=0, **options)


def _sizes(name: str, near: int) -> list[int]:
    """Up to four supported sides of `USUAL_PX`, the nearest ones."""
    fitting: list[int] = []
    for image_px in sorted(USUAL_PX, key=lambda usual_px: abs(usual_px - near)):
        with suppress(*UNFIT), torch.device("meta"):
            embedding_size(_features(name, image_px), image_px)
            fitting.append(image_px)
        if len(fitting) == 4:
            break
    return sorted(fitting)


def cnn(n_classes: int) -> Classifier:
    """The network of the butterfly system: four convolutions with ReLU and 2x2 max pooling, then global average pooling."""
    layers: list[nn.Module] = []
    channels = (3, 32, 64, 128, 256)
    for n_in, n_out, kernel in zip(channels, channels[1:], (5, 5, 3, 5), strict=False):
        layers += [nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    return Classifier(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), channels[-1], n_classes)


def fieldnet(n_classes: int) -> Classifier:
    """fieldguide's residual network for training from scratch on few images: 3.4 M parameters at 50 classes.

    Basic residual blocks (He et al. 2016, arXiv:1512.03385) with average-pooled shortcuts (He et al. 2019,
    arXiv:1812.01187), behind a stem of stride 2.
    """
    widths, depths = (48, 96, 192, 384), (1, 1, 2, 1)
    layers: list[nn.Module] = [
        nn.Conv2d(3, widths[0], 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(widths[0]),
        nn.ReLU(inplace=True),
    ]
    n_in = widths[0]
    for width, depth in zip(widths, depths, strict=True):
        for block in range(depth):
            layers.append(ResidualBlock(n_in, width, stride=2 if block == 0 and width != widths[0] else 1))
            n_in = width
    return Classifier(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), n_in, n_classes)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut; the identity at initialisation (zero-initialised last scale)."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(n_out)
        nn.init.zeros_(self.norm2.weight)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or n_in != n_out:
            pool = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
            self.shortcut = nn.Sequential(pool, nn.Conv2d(n_in, n_out, 1, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, n_in, H, W]` to `[B, n_out, ceil(H / stride), ceil(W / stride)]`."""
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x), inplace=True)


NETWORKS: dict[str, Callable[[int], Classifier]] = {"fieldnet": fieldnet, "cnn": cnn}
