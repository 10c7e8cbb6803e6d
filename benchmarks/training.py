"""Images trained per second, end to end: fieldguide's epoch against its own ceiling and against the common ways.

    python benchmarks/training.py [--network fieldnet] [--px 96] [--full] [--batches 8] [--rounds 5]

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
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fieldguide.device import device_name, pick_device, pick_dtype
from fieldguide.images import read_encoded
from fieldguide.loader import Resident, decode_all
from fieldguide.loop import Training
from fieldguide.manifest import classes_of, read_manifest, rows_of
from fieldguide.models import build
from fieldguide.optim import make_optimizer
from fieldguide.params import Augment, read_params
from fieldguide.paths import MANIFEST, RAW

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
    parser.add_argument("--px", type=int, default=96, help="side that the network sees")
    parser.add_argument("--full", action="store_true", help="every augmentation")
    parser.add_argument("--batches", type=int, default=8, help="batches in an epoch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without", nargs="*", default=[], choices=["torchvision", "timm"])
    arguments = parser.parse_args()

    params = read_params()
    device = pick_device(params.runtime.device)
    dtype = pick_dtype(params.train.precision, device)
    settings = params.augment.model_copy(update=FULL if arguments.full else {})
    train = params.train.model_copy(update={"size_start": 1.0, "size_end": 1.0})
    manifest = read_manifest(MANIFEST)
    classes, n_images = classes_of(manifest), arguments.batches * train.batch_size
    rows = rows_of(manifest, "train").sample(n_images, replace=True, random_state=0).reset_index(drop=True)
    images = decode_all(rows, RAW, max(train.decode_px, arguments.px), params.runtime.n_workers).to(device)

    def network() -> torch.nn.Module:
        return build(arguments.network, len(classes.names), arguments.px).to(device, memory_format=torch.channels_last)

    model = network()
    training = Training(
        model=model,
        average=None,
        optimizer=make_optimizer(model, train),
        source=Resident(images),
        targets=torch.from_numpy(classes.targets(rows)).to(device),
        train=train,
        augment=settings,
        image_px=arguments.px,
        dtype=dtype,
    )
    model.train()
    fixed = torch.rand(train.batch_size, 3, arguments.px, arguments.px, device=device).to(memory_format=torch.channels_last)
    target = training.targets[: train.batch_size]

    def step(pixels: torch.Tensor, target: torch.Tensor) -> None:
        training.learn(pixels, target, target, 1.0)
        training.update(0)

    def fixed_batch(_: int) -> None:
        for _ in range(arguments.batches):
            step(fixed, target)

    plain = network()
    plain_optimizer = torch.optim.Adam(plain.parameters(), lr=1e-4)
    plain.to(memory_format=torch.contiguous_format).train()

    def plain_step(pixels: torch.Tensor, target: torch.Tensor) -> None:
        loss = F.cross_entropy(plain(pixels), target)
        plain_optimizer.zero_grad()
        loss.backward()
        plain_optimizer.step()

    def over(loader: Iterable, step: Callable[[torch.Tensor, torch.Tensor], None]) -> Callable[[int], None]:
        def epoch(_: int) -> None:
            for pixels, target in loader:
                step(pixels.to(device), target.to(device))

        return epoch

    with tempfile.TemporaryDirectory() as folder:
        for number, row in enumerate(rows.itertuples()):
            place = Path(folder) / f"{row.label:04d}" / f"{number:06d}.jpg"
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(read_encoded(RAW / row.file, row.offset, row.length))
        ways: dict[str, Callable[[int], object]] = {"fixed batch": fixed_batch, "fieldguide": training.epoch}
        n_workers = params.runtime.n_workers
        if "torchvision" not in arguments.without:
            from torch.utils.data import DataLoader
            from torchvision.datasets import ImageFolder

            data = ImageFolder(folder, torchvision_transforms(settings, arguments.px))
            loader = DataLoader(data, train.batch_size, shuffle=True, num_workers=n_workers, persistent_workers=True)
            ways["torchvision"] = over(loader, plain_step)
        if "timm" not in arguments.without:
            from timm.data import create_dataset, create_loader

            loader = create_loader(
                create_dataset("", folder),
                (3, arguments.px, arguments.px),
                train.batch_size,
                is_training=True,
                num_workers=n_workers,
                use_prefetcher=False,
                persistent_workers=True,
                device=device,
            )
            ways["timm"] = over(
                loader, lambda pixels, target: step(pixels.contiguous(memory_format=torch.channels_last), target)
            )
        seconds = measured(ways, arguments.rounds, device)

    print(f"{arguments.network} at {arguments.px} px, batch {train.batch_size}, {'all' if arguments.full else 'default'}")
    print(f"{device_name(device)}, {dtype}, torch {torch.__version__}, {arguments.rounds} rounds of {n_images} images")
    for name, times in seconds.items():
        low, high = n_images / max(times), n_images / min(times)
        quotients = [ours / theirs for ours, theirs in zip(times, seconds["fieldguide"], strict=True)]
        print(
            f"{name:12s} {n_images / statistics.median(times):8.1f} images/s ({low:.1f} to {high:.1f});"
            f" fieldguide is {statistics.median(quotients):.2f} times as fast ({min(quotients):.2f} to {max(quotients):.2f})"
        )


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
