"""The network, trained from scratch; its best checkpoint by the validation figure that `train.best_by` names.

Reads data/manifest.csv, data/raw and `model`, `train`, `augment` of params.yaml; writes models/model.safetensors,
metrics/train.json, metrics/history.csv (one line per epoch), metrics/curves.png and metrics/batch.png.
Run it with `dvc repro train`.
"""

import math
import time
from dataclasses import asdict, dataclass, replace

import pandas as pd
import torch

from fieldguide import augment, plots, tracking
from fieldguide.checkpoint import Checkpoint, save_checkpoint
from fieldguide.device import device_name, pick_device, pick_dtype
from fieldguide.errors import UserError, run_command
from fieldguide.files import file_hash, write_json
from fieldguide.inference import Score, predict, score
from fieldguide.loader import decode_all
from fieldguide.loop import Training
from fieldguide.manifest import Classes, classes_of, read_manifest, rows_of, write_table
from fieldguide.models import build
from fieldguide.optim import lr_at, make_optimizer
from fieldguide.params import Params, read_params
from fieldguide.paths import BATCH_PNG, CHECKPOINT, CURVES_PNG, HISTORY_CSV, MANIFEST, RAW, stage_metrics

N_SHOWN = 10  # training images in the picture of a batch


def main() -> None:
    params = read_params()
    manifest = read_manifest(MANIFEST)
    classes = classes_of(manifest)
    rows = {split: rows_of(manifest, split) for split in ("train", "valid")}
    training, valid = prepare(params, classes, rows)
    save_batch_picture(training)
    with tracking.training_run(params) as run:
        facts = Checkpoint(params.model.name, params.model.image_px, classes.names, classes.labels, 0, file_hash(MANIFEST))
        history, best = fit(training, valid, run, facts)
        n_parameters = sum(parameter.numel() for parameter in training.model.parameters())
        metrics = train_metrics(history, best, n_parameters)
        write_json(stage_metrics("train"), metrics)
        save_curves(history, best)
        run.tag(tracking.CHECKPOINT_TAG, file_hash(CHECKPOINT, "md5"))
        run.log_metrics({"best_epoch": best, "parameters": n_parameters})
        run.log_files(CHECKPOINT, folder="model")
        run.log_files(HISTORY_CSV, CURVES_PNG, BATCH_PNG, stage_metrics("train"), folder="train")
    figures = metrics["valid"]
    print(f"best epoch {best} by {params.train.best_by}: valid accuracy {figures['accuracy']:.2%} (n={len(rows['valid'])})")
    print(f"-> {CHECKPOINT} {stage_metrics('train')} {HISTORY_CSV} {CURVES_PNG} {BATCH_PNG}")


@dataclass(frozen=True)
class Valid:
    """The validation split, decoded: uint8 `[N, 3, H, W]` on the device and int64 `[N]` on the CPU."""

    images: torch.Tensor
    targets: torch.Tensor


def prepare(params: Params, classes: Classes, rows: dict[str, pd.DataFrame]) -> tuple[Training, Valid]:
    """Decoded images on the device, a fresh network and its optimiser."""
    device = pick_device(params.runtime.device)
    dtype = pick_dtype(params.train.precision, device)
    print(f"device {device_name(device)}, {str(dtype).removeprefix('torch.')}")
    n_workers, image_px = params.runtime.n_workers, params.model.image_px
    images = decode_all(rows["train"], RAW, params.train.decode_px, n_workers).to(device)
    valid = Valid(
        decode_all(rows["valid"], RAW, image_px, n_workers).to(device),
        torch.from_numpy(classes.targets(rows["valid"])),
    )
    torch.manual_seed(params.train.seed)
    model = build(params.model.name, len(classes.names)).to(device, memory_format=torch.channels_last)
    print(f"{params.model.name} at {image_px} px; {len(classes.names)} classes, {len(images)} train, {len(valid.images)} valid")
    training = Training(
        model=model,
        optimizer=make_optimizer(model, params.train),
        images=images,
        targets=torch.from_numpy(classes.targets(rows["train"])).to(device),
        train=params.train,
        augment=params.augment,
        image_px=image_px,
        dtype=dtype,
    )
    return training, valid


def fit(training: Training, valid: Valid, run: tracking.Run, facts: Checkpoint) -> tuple[pd.DataFrame, int]:
    """All epochs; keeps the best network in models/model.safetensors. Returns the history and the best epoch, from 1."""
    train = training.train
    n_steps = train.epochs * math.ceil(len(training.images) / train.batch_size)
    history: list[dict[str, float]] = []
    best = 0
    for epoch in range(train.epochs):
        start = time.perf_counter()
        lr = lr_at(epoch * n_steps // train.epochs, n_steps, train)
        trained = training.epoch(epoch)
        seconds = time.perf_counter() - start
        logits = predict(training.model, valid.images, train.batch_size, training.images.device, training.dtype)
        validated = score(logits, valid.targets)
        if not math.isfinite(trained.loss):
            raise UserError(
                f"epoch {epoch + 1}: loss is {trained.loss}; lower train.lr ({train.lr}) or set train.precision=fp32"
            )
        history.append(_line(epoch + 1, trained, validated, lr))
        if best == 0 or _rank(history[-1], train.best_by) > _rank(history[best - 1], train.best_by):
            best = epoch + 1
            save_checkpoint(CHECKPOINT, training.model, replace(facts, epoch=best))
        _save_history(history)
        images_per_second = len(training.images) / seconds
        run.log_metrics(
            {
                "train": asdict(trained),
                "valid": asdict(validated),
                "lr": lr,
                "images_per_second": images_per_second,
                "seconds": seconds,
            },
            step=epoch + 1,
        )
        print(
            f"epoch {epoch + 1:4d}/{train.epochs}  loss {trained.loss:7.4f}  acc {trained.accuracy:6.2%}"
            f"  valid loss {validated.loss:7.4f}  acc {validated.accuracy:6.2%}  lr {lr:.2e}"
            f"  {images_per_second:6.0f} images/s  {seconds:6.1f} s{'  *' if best == epoch + 1 else ''}",
            flush=True,
        )
    return pd.DataFrame(history), best


def _line(epoch: int, trained: Score, validated: Score, lr: float) -> dict[str, float]:
    return {
        "epoch": epoch,
        "train_loss": trained.loss,
        "train_accuracy": trained.accuracy,
        "valid_loss": validated.loss,
        "valid_accuracy": validated.accuracy,
        "lr": lr,
    }


def _rank(line: dict[str, float], best_by: str) -> tuple[float, float]:
    """Greater is better; the other figure decides between equals."""
    accuracy, loss = line["valid_accuracy"], -line["valid_loss"]
    return (loss, accuracy) if best_by == "loss" else (accuracy, loss)


def train_metrics(history: pd.DataFrame, best: int, n_parameters: int) -> dict[str, object]:
    """The content of metrics/train.json: both splits at the best epoch; train as trained, with its augmentation."""
    line = history.iloc[best - 1]
    return {
        "epochs": len(history),
        "best_epoch": best,
        "train": {"loss": line["train_loss"], "accuracy": line["train_accuracy"]},
        "valid": {"loss": line["valid_loss"], "accuracy": line["valid_accuracy"]},
        "parameters": n_parameters,
    }


def _save_history(history: list[dict[str, float]]) -> None:
    write_table(pd.DataFrame(history), HISTORY_CSV)


def save_curves(history: pd.DataFrame, best: int) -> None:
    """Loss and accuracy over epochs, as a picture."""
    series = {
        name: {split: history[f"{split}_{name}"].tolist() for split in ("train", "valid")} for name in ("loss", "accuracy")
    }
    plots.save_png(plots.curves(history["epoch"].tolist(), series["loss"], series["accuracy"], best), CURVES_PNG)


def save_batch_picture(training: Training) -> None:
    """The same training images as they are and as the network sees them in its first epochs."""
    n_images = len(training.images)
    chosen = augment.order(training.train.seed, 0, n_images)[:N_SHOWN].to(training.images.device)
    rows = [training.images[chosen]]
    for epoch in range(3):
        u = augment.draws(training.train.seed, epoch, n_images).to(chosen.device)[chosen]
        seen = augment.augment(training.images[chosen], u, training.augment, training.image_px)
        rows.append((seen * 255).round().to(torch.uint8))
    pictures = [row.permute(0, 2, 3, 1).cpu().numpy() for row in rows]
    titles = ["decoded", *(f"epoch {epoch}" for epoch in (1, 2, 3))]
    plots.save_png(plots.image_grid(pictures, titles, "What the network sees"), BATCH_PNG)


if __name__ == "__main__":
    run_command(main)
