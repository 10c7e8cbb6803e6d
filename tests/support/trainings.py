"""Short trainings on images of noise."""

import copy
from collections.abc import Callable

import torch

from fieldguide.core.params import Augment, Train
from fieldguide.network.loader import Resident, Source
from fieldguide.network.models import Classifier, build
from fieldguide.training.loop import Training
from fieldguide.training.optim import make_optimizer
from support.settings import PARAMS

OFF = {
    "horizontal_flip": 0.0,
    "vertical_flip": 0.0,
    "rotation_degrees": 0.0,
    "scale": 0.0,
    "translate": 0.0,
    "shear_degrees": 0.0,
    "perspective": 0.0,
    "crop_area_min": 1.0,
    "crop_aspect_max": 1.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
    "hue": 0.0,
    "blur": 0.0,
    "erase": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
}
ALL_ON = {
    "horizontal_flip": 0.5,
    "vertical_flip": 0.5,
    "scale": 0.2,
    "translate": 0.1,
    "shear_degrees": 10.0,
    "perspective": 0.5,
    "hue": 0.1,
    "blur": 0.5,
    "erase": 0.5,
    "mixup": 0.5,
    "cutmix": 0.5,
    "mix_until": 0.8,
}
ONE_SIDE = {"size_start": 1.0, "size_end": 1.0}


def augmentation(**changes: object) -> Augment:
    """The repository's settings but for `changes`."""
    return Augment(**(PARAMS.augment.model_dump() | changes))


PLAIN = augmentation(**OFF)


def noisy(n_images: int, n_classes: int, px: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n_images, 3, px, px), dtype=torch.uint8, generator=generator)
    return images, torch.arange(n_images) % n_classes


def training(
    images: torch.Tensor | Source,
    targets: torch.Tensor,
    network: str | Callable[[int], Classifier] = "cnn",
    kind: type[Training] = Training,
    **changes: object,
) -> Training:
    """Plain images and fp32 but for `changes`, which name keys of `train` or fields of `Training`."""
    fields = {"augment": PLAIN, "image_px": 16, "dtype": torch.float32} | {
        name: changes.pop(name) for name in ("augment", "image_px", "dtype") if name in changes
    }
    train = Train(**(PARAMS.train.model_dump() | ONE_SIDE | changes))
    torch.manual_seed(train.seed)
    n_classes = int(targets.max()) + 1
    model = build(network, n_classes) if isinstance(network, str) else network(n_classes)
    model = model.to(memory_format=torch.channels_last)
    average = copy.deepcopy(model).requires_grad_(False) if train.ema else None
    optimizer = make_optimizer(model, train)
    optimizer.seen, optimizer.rates = [], []
    source = Resident(images) if isinstance(images, torch.Tensor) else images
    return kind(model=model, average=average, optimizer=optimizer, source=source, targets=targets, train=train, **fields)
