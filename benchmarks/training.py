"""Images trained per second, end to end: fieldguide's epoch against its own ceiling and against the common ways.

    python benchmarks/training.py [--network fieldnet] [--px 112] [--full] [--batches 8] [--rounds 5]

Needs data/manifest.csv and data/raw (`dvc repro split_check`). Four ways take turns on the same images and network, so
that a machine that slows down slows all of them:

    fixed batch   the step alone, again and again on one batch in memory: what the arithmetic permits
    fieldguide    a real epoch: gather, augment, step
    torchvision   ImageFolder, its transforms, DataLoader workers, float32: how it is commonly written
    timm          its dataset, transforms and loader, with fieldguide's step

--full switches on every augmentation (flips, affine, perspective, colour with hue, blur, resized crop, erasing) in
fieldguide and torchvision. Printed are medians over the rounds and the quotients of the same round.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fieldguide.core.images import read_encoded
from fieldguide.core.manifest import Classes, classes_of, read_manifest, rows_of
from fieldguide.core.params import Augment, Params, read_params
from fieldguide.core.paths import MANIFEST, RAW
from fieldguide.network.device import device_name, pick_device, pick_dtype, set_up
from fieldguide.network.loader import Resident, decode_all
from fieldguide.network.models import build, depthwise_share
from fieldguide.training.loop import Training
from fieldguide.training.optim import make_optimizer

FULL = {
    "vertical_flip": 0.5,
    "scale": 0.1,
    "translate": 0.1,
    "shear_degrees": 10,
    "perspective": 0.5,
    "hue": 0.1,
    "blur": 0.5,
    "erase": 0.5,
}


def torchvision_transforms(settings: Augment, image_px: int) -> Callable:
    """The settings as torchvision's own transforms, with its default probabilities where they are on."""
    from torchvision import transforms as T

    steps = [T.RandomResizedCrop(image_px, (settings.crop_area_min, 1), antialias=True)]
    steps += [T.RandomHorizontalFlip(settings.horizontal_flip), T.RandomVerticalFlip(settings.vertical_flip)]
    steps += [T.ColorJitter(settings.brightness, settings.contrast, settings.saturation, settings.hue)]
    if settings.scale or settings.translate or settings.shear_degrees:
        scale = (1 - settings.scale, 1 + settings.scale)
        steps += [T.RandomAffine(0, (settings.translate,) * 2, scale, settings.shear_degrees, T.InterpolationMode.BILINEAR)]
    if settings.perspective:
        steps += [T.RandomPerspective(settings.perspective_distortion, settings.perspective)]
    if settings.blur:
        steps += [T.RandomApply([T.GaussianBlur(9, (0.1, settings.blur_sigma_max))], settings.blur)]
    steps += [T.RandomRotation(settings.rotation_degrees, T.InterpolationMode.BILINEAR), T.ToTensor()]
    if settings.erase:
        steps += [T.RandomErasing(settings.erase, (0.02, settings.erase_area_max), value=0.5)]
    return T.Compose(steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="fieldnet")
    parser.add_argument("--px", type=int, default=112, help="side that the network sees")
    parser.add_argument("--full", action="store_true", help="every augmentation")
    parser.add_argument("--batches", type=int, default=8, help="batches in an epoch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without", nargs="*", default=[], choices=["torchvision", "timm"])
    arguments = parser.parse_args()

    params = read_params()
    device = pick_device(params.runtime.device)
    set_up(device)
    settings = params.augment.model_copy(update=FULL if arguments.full else {})
    params = params.model_copy(
        update={
            "augment": settings,
            "train": params.train.model_copy(update={"size_start": 1.0, "size_end": 1.0}),
            "model": params.model.model_copy(update={"name": arguments.network, "image_px": arguments.px}),
        }
    )
    manifest = read_manifest(MANIFEST)
    classes, n_images = classes_of(manifest), arguments.batches * params.train.batch_size
    rows = rows_of(manifest, "train").sample(n_images, replace=True, random_state=0).reset_index(drop=True)
    training = training_setup(params, rows, classes, device)
    with tempfile.TemporaryDirectory() as folder:
        write_folder(rows, Path(folder))
        ways = {"fixed batch": fixed_batch(training, arguments.batches), "fieldguide": training.epoch}
        if "torchvision" not in arguments.without:
            ways["torchvision"] = by_torchvision(Path(folder), params, len(classes.names), device)
        if "timm" not in arguments.without:
            ways["timm"] = by_timm(Path(folder), params, training, device)
        seconds = measured(ways, arguments.rounds, device)

    print(
        f"{arguments.network} at {arguments.px} px, batch {params.train.batch_size}, {'all' if arguments.full else 'default'}"
    )
    print(f"{device_name(device)}, {training.dtype}, torch {torch.__version__}, {arguments.rounds} rounds of {n_images} images")
    for name, times in seconds.items():
        low, high = n_images / max(times), n_images / min(times)
        quotients = [ours / theirs for ours, theirs in zip(times, seconds["fieldguide"], strict=True)]
        print(
            f"{name:12s} {n_images / statistics.median(times):8.1f} images/s ({low:.1f} to {high:.1f});"
            f" fieldguide is {statistics.median(quotients):.2f} times as fast ({min(quotients):.2f} to {max(quotients):.2f})"
        )


def network(params: Params, n_classes: int, device: torch.device) -> torch.nn.Module:
    model = build(params.model.name, n_classes, params.model.image_px)
    return model.to(device, memory_format=torch.channels_last).train()


def training_setup(params: Params, rows: pd.DataFrame, classes: Classes, device: torch.device) -> Training:
    """fieldguide's own training of `rows`, decoded."""
    model = network(params, len(classes.names), device)
    images = decode_all(rows, RAW, max(params.train.decode_px, params.model.image_px), params.runtime.n_workers)
    return Training(
        model=model,
        average=None,
        optimizer=make_optimizer(model, params.train),
        source=Resident(images.to(device)),
        targets=torch.from_numpy(classes.targets(rows)).to(device),
        train=params.train,
        augment=params.augment,
        image_px=params.model.image_px,
        dtype=pick_dtype(params.train.precision, device, depthwise_share(model, params.model.image_px)),
    )


def step(training: Training, pixels: torch.Tensor, target: torch.Tensor) -> None:
    training.learn(pixels, target, target, 1.0)
    training.update(0)


def fixed_batch(training: Training, n_batches: int) -> Callable[[int], None]:
    """As many steps as an epoch has, on one batch that lies in memory."""
    n, px = training.train.batch_size, training.image_px
    pixels = torch.rand(n, 3, px, px, device=training.targets.device).to(memory_format=torch.channels_last)
    target = training.targets[:n]

    def epoch(_: int) -> None:
        for _ in range(n_batches):
            step(training, pixels, target)

    return epoch


def write_folder(rows: pd.DataFrame, folder: Path) -> None:
    """The photographs as an image folder: a folder for each class."""
    for number, row in enumerate(rows.itertuples()):
        place = folder / f"{row.label:04d}" / f"{number:06d}.jpg"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(read_encoded(RAW / row.file, row.offset, row.length))


def by_torchvision(folder: Path, params: Params, n_classes: int, device: torch.device) -> Callable[[int], None]:
    """`ImageFolder`, torchvision's transforms and `DataLoader` workers; a plain step in fp32."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    model = network(params, n_classes, device).to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    data = ImageFolder(folder, torchvision_transforms(params.augment, params.model.image_px))
    n_workers = params.runtime.n_workers
    settings = {"num_workers": n_workers, "persistent_workers": True, "pin_memory": device.type == "cuda"}
    loader = DataLoader(data, params.train.batch_size, shuffle=True, **settings)

    def epoch(_: int) -> None:
        with torch.backends.cudnn.flags(enabled=True, deterministic=False, allow_tf32=True):  # torch's defaults
            for pixels, target in loader:
                loss = F.cross_entropy(model(pixels.to(device, non_blocking=True)), target.to(device, non_blocking=True))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    return epoch


def by_timm(folder: Path, params: Params, training: Training, device: torch.device) -> Callable[[int], None]:
    """timm's loader before fieldguide's own step."""
    from timm.data import create_dataset, create_loader

    px = params.model.image_px
    loader = create_loader(
        create_dataset("", str(folder)),
        (3, px, px),
        params.train.batch_size,
        is_training=True,
        num_workers=params.runtime.n_workers,
        use_prefetcher=device.type == "cuda",
        pin_memory=device.type == "cuda",
        persistent_workers=True,
        device=device,
    )

    def epoch(_: int) -> None:
        for pixels, target in loader:
            step(training, pixels.to(device, memory_format=torch.channels_last), target.to(device))

    return epoch


def measured(ways: dict[str, Callable[[int], object]], n_rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Wall seconds of every way in every round, in turn, after one round of warm-up; the order changes with the round."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(n_rounds + 1):
        for name in np.random.default_rng(number).permutation(list(ways)):
            start = time.perf_counter()
            ways[name](number)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    main()
