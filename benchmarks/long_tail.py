"""Options for rare classes, measured on a linear head over frozen features: accuracy, macro F1, accuracy by class size.

    python benchmarks/long_tail.py [--ratios 1 50] [--seeds 1 2 3]

Needs data/manifest.csv and data/raw with a test split, and a params.yaml whose backbone is frozen (`fieldguide recipe quick
data.dataset=butterflies data.path=$ZIP split_check.hold_out=0.2`, `dvc repro split_check`). A ratio above 1 cuts train to a
long tail: the most that a class keeps falls exponentially from the largest class's size to one of so many times fewer images
(Cui et al. 2019, arXiv:1901.05555), classes and images drawn by the seed. Every option has the same embeddings, cut and seed.
Printed are means over the seeds on test and, for macro F1, their range.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import f1_score

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fieldguide.core.manifest import classes_of, read_manifest, rows_of
from fieldguide.core.params import Params, read_params
from fieldguide.core.paths import MANIFEST, RAW
from fieldguide.evaluation.metrics import band_metrics
from fieldguide.network.device import device_name, pick_device, pick_dtype, set_up
from fieldguide.network.inference import Embeddings, embed
from fieldguide.network.loader import Resident, decode_all
from fieldguide.network.models import build, depthwise_share
from fieldguide.network.weights import load_weights
from fieldguide.training.loop import Training
from fieldguide.training.optim import make_optimizer

OPTIONS: dict[str, dict[str, object]] = {
    "none": {},
    "sampling square_root": {"sampling": "square_root"},
    "sampling balanced": {"sampling": "balanced"},
    "class_weights balanced": {"class_weights": "balanced"},
    "logit_adjustment 0.5": {"logit_adjustment": 0.5},
    "logit_adjustment 1": {"logit_adjustment": 1.0},
}


def embeddings_of(params: Params, n_classes: int) -> dict[str, tuple[torch.Tensor, np.ndarray]]:
    """Embeddings, float32 `[N, F]`, and targets, int64 `[N]`, of train and test, by the pretrained backbone."""
    manifest, device = read_manifest(MANIFEST), pick_device(params.runtime.device)
    classes, image_px = classes_of(manifest), params.model.image_px
    model = build(params.model.name, n_classes, image_px)
    load_weights(model, params.model)
    model = model.to(device).to(memory_format=torch.channels_last)
    dtype = pick_dtype(params.train.precision, device, depthwise_share(model, image_px))
    found = {}
    for split in ("train", "test"):
        rows = rows_of(manifest, split)
        images = decode_all(rows, RAW, image_px, params.runtime.n_workers)
        source = Resident(images, rows["sha256"].to_numpy(dtype="S64"))
        found[split] = (
            embed(model, source, torch.arange(len(rows)), params.train.batch_size, dtype, image_px),
            classes.targets(rows),
        )
    return found


def cut(targets: np.ndarray, ratio: float, seed: int) -> np.ndarray:
    """Rows, int64 and ascending, of a long tail: at most as many of each class as an exponential fall to `1 / ratio` leaves."""
    if ratio == 1:
        return np.arange(len(targets))
    random = np.random.default_rng(seed)
    counts = np.bincount(targets)
    place = random.permutation(len(counts))  # of each class among them
    wanted = np.round(counts.max() * ratio ** (-place / (len(counts) - 1))).astype(int).clip(1)
    kept = [random.permutation(np.flatnonzero(targets == k))[: wanted[k]] for k in range(len(counts))]
    return np.sort(np.concatenate(kept))


def predictions(
    params: Params, vectors: torch.Tensor, targets: np.ndarray, test: torch.Tensor, n_classes: int, option: Mapping[str, object]
) -> np.ndarray:
    """The classes that a head trained on the embeddings gives those of test, int64 `[N]`."""
    train, device = params.train.model_copy(update=dict(option)), vectors.device
    torch.manual_seed(train.seed)
    model = build(params.model.name, n_classes, params.model.image_px).to(device)
    training = Training(
        model=model,
        average=None,
        optimizer=make_optimizer(model, train),
        source=Embeddings(vectors),
        targets=torch.from_numpy(targets).to(device),
        train=train,
        augment=params.augment,
        image_px=params.model.image_px,
        dtype=torch.float32,
    )
    training.__dict__["embeddings"] = Embeddings(vectors)  # instead of those of images
    for epoch in range(train.epochs):
        training.epoch(epoch)
    with torch.inference_mode():
        return model.head(test).argmax(1).cpu().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratios", type=float, nargs="+", default=[1, 50])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    arguments = parser.parse_args()
    params = read_params()
    if params.train.head_epochs < params.train.epochs or params.train.head_augment:
        sys.exit("error: params.yaml trains more than a head on embeddings; first run: fieldguide recipe quick")
    device = pick_device(params.runtime.device)
    set_up(device)
    n_classes = len(classes_of(read_manifest(MANIFEST)).names)
    found = embeddings_of(params, n_classes)
    (vectors, targets), (test, test_targets) = found["train"], found["test"]
    print(f"{params.model.name}, {params.train.epochs} epochs, {device_name(device)}; test n={len(test_targets)}")
    for ratio in arguments.ratios:
        rows = {seed: cut(targets, ratio, seed) for seed in arguments.seeds}
        counts = np.bincount(targets[rows[arguments.seeds[0]]], minlength=n_classes)
        print(f"ratio {ratio:g}: {counts.sum()} train images, {counts.min()} to {counts.max()} of a class with the first seed")
        for name, option in OPTIONS.items():
            f1, accuracy, bands = [], [], dict[str, list[float]]()
            for seed, chosen in rows.items():
                seeded = params.model_copy(update={"train": params.train.model_copy(update={"seed": seed})})
                shown = vectors[torch.from_numpy(chosen).to(device)], targets[chosen]
                predicted = predictions(seeded, *shown, test, n_classes, option)
                right = predicted == test_targets
                f1.append(100 * f1_score(test_targets, predicted, average="macro", zero_division=0.0))
                accuracy.append(100 * right.mean())
                sizes = np.bincount(targets[chosen], minlength=n_classes)
                for band, metrics in band_metrics(test_targets, right, sizes).items():
                    bands.setdefault(band, []).append(100 * metrics.accuracy)
            by_band = "  ".join(f"{band}: {np.mean(values):.1f}" for band, values in sorted(bands.items(), key=band_start))
            said = f"accuracy {np.mean(accuracy):.1f}  macro F1 {np.mean(f1):.1f} ({min(f1):.1f} to {max(f1):.1f})"
            print(f"  {name:24s} {said}  by class size {by_band}", flush=True)


def band_start(item: tuple[str, list[float]]) -> int:
    return int(item[0].replace("+", "-").partition("-")[0])


if __name__ == "__main__":
    main()
