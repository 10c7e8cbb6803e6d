"""Set-up of a training from params and manifest, and what its saved states depend on."""

import copy
import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from fieldguide.core.errors import UserError
from fieldguide.core.files import file_hash
from fieldguide.core.imports import import_closure
from fieldguide.core.manifest import Classes
from fieldguide.core.params import Params
from fieldguide.core.paths import MANIFEST
from fieldguide.network.decoded import Decoded, bound_decoded
from fieldguide.network.device import computes_bf16, device_name, pick_device, pick_dtype, set_up
from fieldguide.network.loader import Source, open_images
from fieldguide.network.models import build, depthwise_share, frozen_blocks, runs_at
from fieldguide.network.weights import load_weights, weights_file
from fieldguide.training import distributed
from fieldguide.training.distributed import World
from fieldguide.training.loop import Training, image_px_at
from fieldguide.training.optim import make_optimizer

VERSIONED = ("torch", "numpy", "pillow", "timm", "torchvision")  # libraries on which the trained weights depend


@contextmanager
def training_setup(
    params: Params, classes: Classes, rows: dict[str, pd.DataFrame], raw: Path, world: World
) -> Iterator[tuple[Training, Source, torch.Tensor]]:
    """A training with open images, and images and targets of the validation split; `rows` are those of train and valid."""
    train, image_px = params.train, params.model.image_px
    if len(rows["train"]) < 2 * world.size:
        raise UserError(f"{len(rows['train'])} training images are too few for {world.size} devices; lower train.devices")
    device = pick_device(params.runtime.device)
    set_up(device)
    torch.manual_seed(train.seed)
    model = build(params.model.name, len(classes.names), image_px)
    dtype = pick_dtype(train.precision, device, depthwise_share(model, image_px))
    print(f"device {device_name(device)}, {str(dtype).removeprefix('torch.')}")
    if params.model.weights != "none":
        print(load_weights(model, params.model))
    if train.head_epochs >= train.epochs:
        print(f"all {train.epochs} epochs train the head alone: train.head_epochs is {train.head_epochs}")
    frozen_blocks(model, train.freeze)  # refuses an unknown name
    sizes = {image_px_at(epoch, train, image_px) for epoch in range(train.epochs)}
    if unfit := [px for px in sorted(sizes) if not runs_at(model, px)]:
        raise UserError(
            f"params.yaml: train.size_start {train.size_start} and size_end {train.size_end} give {unfit[0]} px, which"
            f" {params.model.name} for {image_px} px does not support; set both to 1"
        )
    if train.sync_batch_norm and world.size > 1:
        distributed.synchronise_norms(model, device)
    model = model.to(device).to(memory_format=torch.channels_last)
    average = copy.deepcopy(model).requires_grad_(False) if train.ema else None
    optimizer = make_optimizer(model, train)
    if train.compile:
        compile_each_size(model, len(sizes))
    with ExitStack() as stack:
        n_workers = max(1, params.runtime.n_workers // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))  # for each process
        own_rows = {"train": rows["train"], "valid": rows["valid"].iloc[world.rank :: world.size].reset_index(drop=True)}
        sources, free_gigabytes = {}, params.runtime.decoded_gigabytes
        for split, px in (("train", max(train.decode_px, *sizes)), ("valid", image_px)):
            source = open_images(own_rows[split], raw, px, n_workers, device, train, free_gigabytes)
            sources[split] = stack.enter_context(closing(source))
            free_gigabytes -= source.n_bytes / 1e9 if isinstance(source, Decoded) else 0
        bound_decoded(params.runtime.decoded_gigabytes * 1e9)
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
        yield training, sources["valid"], torch.from_numpy(classes.targets(rows["valid"]))


def compile_each_size(model: nn.Module, n_sizes: int) -> None:
    """Compiles one static graph per shape on first use, so that a resumed training uses the same graphs.

    With dynamic shapes the graph would depend on the shapes seen before.
    """
    n_batches, n_modes = 2, 4  # the last batch is smaller; frozen or not, training or evaluation
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, n_sizes * n_batches * n_modes)
    model.compile(dynamic=False)


def state_key_inputs(params: Params, script: Path, world: World) -> dict[str, Any]:
    """Everything on which the trained weights depend; a saved state is used only if none of it has changed.

    Includes `script`, the file of the stage, and the project files that it imports, directly or indirectly.
    """
    device, root = pick_device(params.runtime.device), script.parents[1]
    sections = {name: getattr(params, name).model_dump(mode="json") for name in ("model", "train", "augment")}
    weights = weights_file(params.model)
    return sections | {
        "manifest": file_hash(MANIFEST),
        "weights": file_hash(weights) if weights and weights.is_file() else "",
        "code": {file.relative_to(root).as_posix(): file_hash(file) for file in import_closure(script, root)},
        "device": [device_name(device), computes_bf16(device), world.size],
        "versions": {package: version(package) for package in VERSIONED},
    }
