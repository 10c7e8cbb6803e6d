"""The network, trained from scratch or from given weights; its best checkpoint by the figure that `train.best_by` names.

Reads data/manifest.csv, data/raw and `model`, `train`, `augment` of params.yaml; writes models/model.safetensors,
metrics/train.json, metrics/history.csv (one line per epoch), metrics/curves.png and metrics/batch.png.
Run it with `dvc repro train`.
"""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from fieldguide.core.errors import UserError, run_command
from fieldguide.core.files import file_hash, write_json
from fieldguide.core.manifest import Classes, classes_of, read_manifest, rows_of
from fieldguide.core.params import Params, read_params
from fieldguide.core.paths import BATCH_PNG, CHECKPOINT, CURVES_PNG, HISTORY_CSV, MANIFEST, RAW, stage_metrics
from fieldguide.network.checkpoint import Checkpoint, load_weights, weights_file
from fieldguide.network.device import device_name, pick_device, pick_dtype, repeatable
from fieldguide.network.loader import open_source
from fieldguide.network.models import build, runs_at
from fieldguide.report import plots
from fieldguide.tracking import run as tracking
from fieldguide.tracking.run import Run
from fieldguide.tracking.store import CHECKPOINT_TAG
from fieldguide.training import augment, distributed
from fieldguide.training.distributed import World
from fieldguide.training.fit import Fit, Valid
from fieldguide.training.loop import Training, image_px_at
from fieldguide.training.optim import lr_at, make_optimizer
from fieldguide.training.resume import State, States, states_of, stop_signals

N_SHOWN = 10  # training images in the picture of a batch


def main() -> None:
    params = read_params()
    n_devices = distributed.n_devices(params.train, params.runtime.device)
    if n_devices > 1 and not distributed.is_launched():
        print(f"{n_devices} processes, {n_devices} times {params.train.batch_size} images a step", flush=True)
        distributed.launch("stages.train", n_devices)
        return
    with distributed.process_group(params.runtime.device) as world:
        train_network(params, world)


def train_network(params: Params, world: World) -> None:
    """The stage in one of the processes that train together."""
    manifest = read_manifest(MANIFEST)
    classes = classes_of(manifest)
    rows = {split: rows_of(manifest, split) for split in ("train", "valid")}
    with kept_states(params, world) as states, prepared(params, classes, rows, world) as (training, valid):
        if world.is_first:
            save_batch_picture(training)
        found = shared_state(states.load() if states else None, world)
        key = found.facts["run_key"] if found else ""
        with tracked(params, key, training) as run, stop_signals() as stop:
            for split, table in rows.items() if world.is_first else ():
                run.log_data(split, table)
            name, image_px = params.model.name, params.model.image_px
            facts = Checkpoint(name, image_px, classes.names, classes.labels, 0, file_hash(MANIFEST))
            fitting = Fit(training, valid, run, facts, states, stop)
            history, best = fitting.all_epochs(found), fitting.best
            if world.is_first:
                finish(training, run, history, best)
        if states and stop():  # who told it to end may not wait for its outputs; the next start has nothing to train
            states.kept = True
    valid_accuracy = history.iloc[best - 1]["valid_accuracy"]
    print(f"best epoch {best} by {params.train.best_by}: valid accuracy {valid_accuracy:.2%} (n={len(rows['valid'])})")
    print(f"-> {CHECKPOINT} {stage_metrics('train')} {HISTORY_CSV} {CURVES_PNG} {BATCH_PNG}")


def tracked(params: Params, key: str, training: Training) -> AbstractContextManager[Run]:
    """The training's run in the first process, one that tells nobody in the others."""
    if not training.world.is_first:
        return nullcontext(Run())
    return tracking.training_run(params, key, device_name(training.device))


def finish(training: Training, run: Run, history: pd.DataFrame, best: int) -> None:
    """The metrics and pictures of a training that has ended, on disk and in its run."""
    n_parameters = sum(parameter.numel() for parameter in training.model.parameters())
    metrics = train_metrics(history, best, n_parameters)
    write_json(stage_metrics("train"), metrics)
    save_curves(history, best, training)
    run.tag(CHECKPOINT_TAG, file_hash(CHECKPOINT, "md5"))
    run.log_metrics({"train": metrics})
    run.log_files(CHECKPOINT, folder="model")
    run.log_files(HISTORY_CSV, CURVES_PNG, BATCH_PNG, stage_metrics("train"), folder="train")


def kept_states(params: Params, world: World) -> AbstractContextManager[States | None]:
    """The training's states in the first process, nothing in the others."""
    return states_of(depends_on(params, world)) if world.is_first else nullcontext()


def shared_state(found: State | None, world: World) -> State | None:
    """The state that the first process found, in each."""
    if world.size == 1:
        return found
    content = world.broadcast_bytes(found.packed() if found else b"")
    return State.unpacked(content) if content else None


@contextmanager
def prepared(params: Params, classes: Classes, rows: dict[str, pd.DataFrame], world: World) -> Iterator[tuple[Training, Valid]]:
    """Images at hand, a network with the weights that it begins with, and its optimiser."""
    train, image_px = distributed.scale_for_devices(params.train, world.size), params.model.image_px
    if len(rows["train"]) < 2 * world.size:
        raise UserError(f"{len(rows['train'])} training images are too few for {world.size} devices; lower train.devices")
    device = pick_device(params.runtime.device)
    repeatable(device)
    dtype = pick_dtype(train.precision, device)
    print(f"device {device_name(device)}, {str(dtype).removeprefix('torch.')}")
    torch.manual_seed(train.seed)
    model = build(params.model.name, len(classes.names), image_px)
    if params.model.weights != "none":
        print(load_weights(model, params.model))
    sizes = {image_px_at(epoch, train, image_px) for epoch in range(train.epochs)}
    if unfit := [px for px in sorted(sizes) if not runs_at(model, px)]:
        raise UserError(
            f"params.yaml: train.size_start {train.size_start} and size_end {train.size_end} give {unfit[0]} px, at which"
            f" {params.model.name} for {image_px} px does not run; set both to 1"
        )
    if train.sync_batch_norm and world.size > 1:
        distributed.synchronise_norms(model, device)
    model = model.to(device).to(memory_format=torch.channels_last)
    average = copy.deepcopy(model).requires_grad_(False) if train.ema else None
    optimizer = make_optimizer(model, train)
    if train.compile:
        compile_each_size(model, len(sizes))
    with ExitStack() as stack:
        n_workers = distributed.per_process(params.runtime.n_workers)
        of_this = {"train": rows["train"], "valid": rows["valid"].iloc[world.rank :: world.size].reset_index(drop=True)}
        sources = {
            split: stack.enter_context(closing(open_source(of_this[split], RAW, px, n_workers, device, train)))
            for split, px in (("train", max(train.decode_px, *sizes)), ("valid", image_px))
        }
        counts = ", ".join(f"{len(table)} {split}" for split, table in rows.items())
        print(f"{params.model.name} at {image_px} px; {len(classes.names)} classes, {counts}")
        training = Training(
            model=model,
            average=average,
            optimizer=optimizer,
            source=sources["train"],
            targets=torch.from_numpy(classes.targets(rows["train"])).to(device),
            train=train,
            augment=params.augment,
            image_px=image_px,
            dtype=dtype,
            world=world,
        )
        yield training, Valid(sources["valid"], torch.from_numpy(classes.targets(rows["valid"])))


def compile_each_size(model: nn.Module, n_sizes: int) -> None:
    """One graph for each shape, made when it is first seen: a training that goes on then has those of one in a single go.

    Shapes that the compiler finds to change would give a graph for any of them, and the first none.
    """
    n_batches, n_modes = 2, 4  # the last one is smaller; frozen or not, learning or not
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, n_sizes * n_batches * n_modes)
    model.compile(dynamic=False)


def depends_on(params: Params, world: World) -> dict[str, Any]:
    """All that a training's bytes depend on: a state is found again only where none of it has changed."""
    device = pick_device(params.runtime.device)
    sections = {name: getattr(params, name).model_dump(mode="json") for name in ("model", "train", "augment")}
    weights = weights_file(params.model)
    return sections | {
        "manifest": file_hash(MANIFEST),
        "weights": file_hash(weights) if weights and weights.is_file() else "",
        "code": {path.name: file_hash(path) for path in (Path(__file__), *sorted(Path(augment.__file__).parent.glob("*.py")))},
        "device": [device_name(device), str(pick_dtype(params.train.precision, device)), world.size],
        "versions": {package: version(package) for package in ("torch", "numpy", "pillow", "timm", "torchvision")},
    }


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


def save_curves(history: pd.DataFrame, best: int, training: Training) -> None:
    """Loss and accuracy over epochs, and the learning rate over all steps, as a picture."""
    series = {
        name: {split: history[f"{split}_{name}"].tolist() for split in ("train", "valid")} for name in ("loss", "accuracy")
    }
    n_steps = training.steps_per_epoch
    rates = [lr_at(step, n_steps, training.train) for step in range(len(history) * n_steps)]
    plots.save_png(plots.curves(history["epoch"].tolist(), series["loss"], series["accuracy"], best, rates), CURVES_PNG)


def save_batch_picture(training: Training) -> None:
    """The same training images as they are and as the network sees them in its first epochs."""
    train, n_images = training.train, len(training.source)
    chosen = augment.order(train.seed, 0, n_images)[:N_SHOWN]
    (images,) = training.source.batches([chosen])
    rows = [images]
    for epoch in range(3):
        u = augment.draws(train.seed, epoch, n_images)[chosen].to(images.device)
        seen = augment.augment(images, u, training.augment, image_px_at(epoch, train, training.image_px))
        seen, _, _ = augment.mix(seen, chosen, training.augment, train.seed, epoch, 0)
        rows.append((seen * 255).round().to(torch.uint8))
    pictures = [row.permute(0, 2, 3, 1).cpu().numpy() for row in rows]
    titles = ["decoded", *(f"epoch {epoch}" for epoch in (1, 2, 3))]
    plots.save_png(plots.image_grid(pictures, titles, "What the network sees"), BATCH_PNG)


if __name__ == "__main__":
    run_command(main)
