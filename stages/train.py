"""Training of the network, from scratch or from pretrained weights; keeps the best checkpoint by `train.best_by`.

Reads data/manifest.csv, data/raw and `model`, `train`, `augment` of params.yaml; writes models/model.safetensors,
metrics/train.json, metrics/history.csv (one line per epoch) and metrics/batch.png. Run it with `dvc repro train`.
"""

from contextlib import nullcontext
from pathlib import Path

from fieldguide.core.artifacts import TrainMetrics
from fieldguide.core.errors import run_command
from fieldguide.core.files import file_hash
from fieldguide.core.headlines import write_metrics
from fieldguide.core.manifest import classes_of, read_manifest, rows_of
from fieldguide.core.params import Params, read_params
from fieldguide.core.paths import BATCH_PNG, CHECKPOINT, HISTORY_CSV, MANIFEST, RAW, stage_metrics
from fieldguide.network.checkpoint import Checkpoint
from fieldguide.network.device import device_name
from fieldguide.tracking.run import Run, training_run
from fieldguide.tracking.store import CHECKPOINT_TAG
from fieldguide.training import distributed
from fieldguide.training.distributed import World
from fieldguide.training.fit import Fit
from fieldguide.training.preview import save_batch_picture
from fieldguide.training.resume import states_of, stop_signals
from fieldguide.training.setup import state_key_inputs, training_setup


def main() -> None:
    params = read_params()
    n_devices = distributed.n_devices(params.train, params.runtime.device)
    if n_devices > 1 and not distributed.is_launched():
        print(f"{n_devices} processes, {n_devices} times {params.train.batch_size} images per step", flush=True)
        distributed.launch("stages.train", n_devices)
        return
    with distributed.process_group(params.runtime.device) as world:
        train_network(params, world)


def train_network(params: Params, world: World) -> None:
    """The stage in one of the processes that train together."""
    manifest = read_manifest(MANIFEST)
    classes = classes_of(manifest)
    rows = {split: rows_of(manifest, split) for split in ("train", "valid")}
    depends_on = state_key_inputs(params, Path(__file__).resolve(), world)
    with (
        states_of(depends_on) if world.is_first else nullcontext() as states,
        training_setup(params, classes, rows, RAW, world) as (training, valid, targets),
    ):
        if world.is_first:
            save_batch_picture(training, BATCH_PNG)
        state = world.broadcast_object(states.load() if states else None)
        key, device = state["run_key"] if state else "", device_name(training.device)
        tracked = training_run(params, key, device) if world.is_first else nullcontext(Run())  # which records nothing
        with tracked as run, stop_signals() as stop:
            for split, table in rows.items() if world.is_first else ():
                run.log_data(split, table)
            name, image_px = params.model.name, params.model.image_px
            facts = Checkpoint(name, image_px, classes.names, classes.labels, 0, file_hash(MANIFEST))
            fit = Fit(training, valid, targets, run, facts, states, stop)
            metrics = fit.all_epochs(state)
            if world.is_first:
                write_outputs(run, metrics)
        if states and stop():  # a stopped process may not write its outputs; the next start resumes at the end
            states.kept = True
    accuracy = f"valid accuracy {metrics.valid.accuracy:.2%} (n={len(rows['valid'])})"
    print(f"best epoch {metrics.best_epoch} by {params.train.best_by}: {accuracy}")
    print(f"-> {CHECKPOINT} {stage_metrics('train')} {HISTORY_CSV} {BATCH_PNG}")


def write_outputs(run: Run, metrics: TrainMetrics) -> None:
    """Writes the metrics of a finished training, and logs all outputs."""
    write_metrics("train", metrics)
    run.tag(CHECKPOINT_TAG, file_hash(CHECKPOINT, "md5"))
    run.log_metrics({"train": metrics.as_dict()})
    run.log_files(CHECKPOINT, folder="model")
    run.log_files(HISTORY_CSV, BATCH_PNG, stage_metrics("train"), folder="train")


if __name__ == "__main__":
    run_command(main)
