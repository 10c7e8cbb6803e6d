"""Accuracy after the same minutes on the same photographs: fieldguide's recipe against the field's other ways.

    python benchmarks/peers.py [--peers fieldguide timm sklearn ultralytics] [--minutes 0] [--seed 1]

Needs data/manifest.csv and data/raw (`python -m fieldguide recipe transfer data.path=…`, `dvc repro split_check`). One after
the other, on the images in use, with valid to choose the epoch and test at the end:

    fieldguide    stages.train and stages.evaluate with params.yaml as it is; its minutes are everyone's, unless --minutes says
    timm          timm's dataset, loader (RandAugment), AdamW, cosine schedule with warm-up and label smoothing, as its training
                  script combines them by default for fine-tuning, from the same weights, at 160 px; epochs fill the minutes
    sklearn       logistic regression on the frozen features of the same network at 160 px
    ultralytics   YOLO11n-cls with its own defaults at 160 px for the minutes; from scratch, since its weights are not fetched

The last needs the package ultralytics: `python -m pip install --no-deps ultralytics ultralytics-thop polars`.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fieldguide.core.images import read_encoded
from fieldguide.core.intervals import accuracy_interval
from fieldguide.core.machine import n_cores
from fieldguide.core.manifest import read_manifest, rows_of
from fieldguide.core.params import Model
from fieldguide.core.paths import MANIFEST, PARAMS, RAW
from fieldguide.network.device import device_name
from fieldguide.network.models import build
from fieldguide.network.weights import load_weights

ROOT = Path(__file__).resolve().parents[1]
NETWORK, IMAGE_PX = "tf_efficientnet_lite0", 160
SPLITS = ("train", "valid", "test")
BATCH, LR, WEIGHT_DECAY, SMOOTHING, WARMUP = 32, 5e-4, 0.05, 0.1, 0.1  # of timm's way
Scores = dict[str, tuple[int, int]]  # by split: right answers, images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers: dict[str, Callable[[Path, float, int], Scores]] = {
        "fieldguide": by_fieldguide,
        "timm": by_timm,
        "sklearn": by_sklearn,
        "ultralytics": by_ultralytics,
    }
    parser.add_argument("--peers", nargs="+", choices=peers, default=list(peers))
    parser.add_argument("--minutes", type=float, default=0, help="of training; 0: as long as fieldguide takes")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if not arguments.minutes and arguments.peers[0] != "fieldguide":
        parser.error("--minutes is needed where fieldguide is not the first peer")
    rows = {split: rows_of(read_manifest(MANIFEST), split) for split in SPLITS}
    sizes = ", ".join(f"{len(table)} {split}" for split, table in rows.items())
    print(f"{device_name(torch.device('cpu'))}, torch {torch.__version__}; {sizes}")
    minutes = arguments.minutes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_folders(rows, folder / "images")
        for peer in arguments.peers:
            torch.manual_seed(arguments.seed)
            start = time.perf_counter()
            with (folder / f"{peer}.log").open("w") as log, redirect_stdout(log), redirect_stderr(log):
                scores = peers[peer](folder, minutes, arguments.seed)
            taken = (time.perf_counter() - start) / 60
            if peer == "fieldguide" and not minutes:
                minutes = float((folder / "minutes").read_text())
            said = "".join(f"   {split} {text(*scores[split])}" for split in ("valid", "test"))
            print(f"{peer:12s} {taken:5.1f} min{said}", flush=True)


def text(n_right: int, n: int) -> str:
    low, high = accuracy_interval(n_right, n)
    return f"{n_right / n:.1%} ({low:.1%} to {high:.1%}; n={n})"


def write_folders(rows: dict[str, pd.DataFrame], folder: Path) -> None:
    """The photographs as image folders: `train/0007/000123.jpg`; every class has a folder in every split."""
    names = sorted({f"{label:04d}" for table in rows.values() for label in table["label"]})
    for split, table in rows.items():
        for name in names:
            (folder / split / name).mkdir(parents=True)
        for number, row in enumerate(table.itertuples()):
            place = folder / split / f"{row.label:04d}" / f"{number:06d}.jpg"
            place.write_bytes(read_encoded(RAW / row.file, row.offset, row.length))


def by_fieldguide(folder: Path, minutes: float, seed: int) -> Scores:
    """Trains in a folder of its own, which leaves the project's model alone; writes its minutes."""
    project = folder / "project"
    project.mkdir()
    for name in ("data", "fieldguide", "stages"):
        (project / name).symlink_to((Path.cwd() if name == "data" else ROOT) / name)
    params = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
    params["train"]["seed"] = seed
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    environ = os.environ | {"DVC_ROOT": str(project), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    for stage in ("train", "evaluate"):
        start, command = time.perf_counter(), [sys.executable, "-m", f"stages.{stage}"]
        with (folder / f"{stage}.log").open("w") as log:
            subprocess.run(command, cwd=project, env=environ, stdout=log, stderr=log, check=True)
        if stage == "train":
            (folder / "minutes").write_text(str((time.perf_counter() - start) / 60))
    metrics = json.loads((project / "metrics" / "evaluate.json").read_text())
    figures = {split: metrics[split] for split in ("valid", "test")}
    return {split: (round(figure["accuracy"] * figure["n"]), figure["n"]) for split, figure in figures.items()}


def pretrained(n_classes: int) -> torch.nn.Module:
    """timm's own network with the ImageNet weights of the package, and a new head."""
    settings = Model(name=f"timm/{NETWORK}", weights="imagenet", image_px=IMAGE_PX)
    classifier = build(settings.name, 2, IMAGE_PX)
    load_weights(classifier, settings)
    model = classifier.features
    model.reset_classifier(n_classes)
    return model


def by_timm(folder: Path, minutes: float, seed: int) -> Scores:
    from timm.data import auto_augment, create_dataset, create_loader
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler

    posterize = auto_augment.NAME_TO_OP["PosterizeIncreasing"]  # Pillow refuses 0 bits, which timm asks for
    auto_augment.NAME_TO_OP["PosterizeIncreasing"] = lambda image, bits, **rest: posterize(image, max(bits, 1), **rest)
    size = (3, IMAGE_PX, IMAGE_PX)
    data = {split: create_dataset("", root=str(folder / "images" / split)) for split in SPLITS}
    mean_and_std = {
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "use_prefetcher": False,
        "num_workers": n_cores(),
        "batch_size": BATCH,
    }
    loader = create_loader(data["train"], size, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", **mean_and_std)
    others = {split: create_loader(data[split], size, is_training=False, **mean_and_std) for split in ("valid", "test")}
    model = pretrained(len(data["train"].reader.class_to_idx))
    optimizer = create_optimizer_v2(model, opt="adamw", lr=LR, weight_decay=WEIGHT_DECAY)
    loss_of = LabelSmoothingCrossEntropy(SMOOTHING)
    start, n_steps, schedule = time.perf_counter(), 0, None
    best: tuple[int, Scores] = (-1, {})
    while True:
        model.train()
        for pixels, target in loader:
            if n_steps == 20:  # the first steps tell how many fit into the minutes; a validation takes a tenth of an epoch
                per_step = (time.perf_counter() - start) / n_steps
                epochs = max(int(minutes * 60 / (per_step * len(loader) * 1.1)), 1)
                total = epochs * len(loader)
                warm = {"warmup_t": int(WARMUP * total), "warmup_lr_init": LR / 100, "t_in_epochs": False}
                schedule = CosineLRScheduler(optimizer, total, lr_min=LR / 100, **warm)
            optimizer.zero_grad()
            loss_of(model(pixels), target).backward()
            optimizer.step()
            n_steps += 1
            if schedule:
                schedule.step_update(n_steps)
        valid = scored(model, others["valid"])
        if valid[0] > best[0]:
            best = (valid[0], {"valid": valid, "test": scored(model, others["test"])})
        if schedule is None:
            continue
        if n_steps >= total or time.perf_counter() - start > 1.1 * minutes * 60:
            return best[1]


@torch.inference_mode()
def scored(model: torch.nn.Module, loader: torch.utils.data.DataLoader) -> tuple[int, int]:
    """Right answers, and all images."""
    model.eval()
    right = [(model(pixels).argmax(dim=1) == target) for pixels, target in loader]
    return int(torch.cat(right).sum()), sum(map(len, right))


def by_sklearn(folder: Path, minutes: float, seed: int) -> Scores:
    from sklearn.linear_model import LogisticRegression
    from timm.data import create_dataset, create_loader

    model = pretrained(0).eval()  # the features
    features, targets = {}, {}
    for split in SPLITS:
        loader = create_loader(
            create_dataset("", root=str(folder / "images" / split)),
            (3, IMAGE_PX, IMAGE_PX),
            batch_size=BATCH,
            is_training=False,
            use_prefetcher=False,
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
            crop_pct=1.0,
            num_workers=n_cores(),
        )
        with torch.inference_mode():
            parts = [(model(pixels), target) for pixels, target in loader]
        features[split], targets[split] = (torch.cat(each).numpy() for each in zip(*parts, strict=True))
    fitted = LogisticRegression(max_iter=1000).fit(features["train"], targets["train"])
    right = {split: fitted.predict(features[split]) == targets[split] for split in ("valid", "test")}
    return {split: (int(found.sum()), len(found)) for split, found in right.items()}


def by_ultralytics(folder: Path, minutes: float, seed: int) -> Scores:
    """YOLO's folders are called train, val and test; its validation after training uses the best epoch."""
    os.environ |= {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_CONFIG_DIR": str(folder / "yolo")}
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    YOLO = importlib.import_module("ultralytics").YOLO  # no dependency of fieldguide: its licence is the AGPL
    images = folder / "images"
    if not (images / "val").exists():
        (images / "val").symlink_to(images / "valid")
    model = YOLO("yolo11n-cls.yaml")
    options = {"imgsz": IMAGE_PX, "device": "cpu", "seed": seed, "project": str(folder), "name": "run", "plots": False}
    model.train(data=str(images), time=minutes / 60, workers=n_cores(), verbose=False, **options)
    best = YOLO(str(folder / "run" / "weights" / "best.pt"))
    scores = {}
    for split in ("valid", "test"):
        files = sorted((images / split).glob("*/*.jpg"))
        found = best.predict([str(file) for file in files], imgsz=IMAGE_PX, device="cpu", stream=True, verbose=False)
        right = [best.names[one.probs.top1] == file.parent.name for one, file in zip(found, files, strict=True)]
        scores[split] = (int(np.sum(right)), len(right))
    return scores


if __name__ == "__main__":
    main()
