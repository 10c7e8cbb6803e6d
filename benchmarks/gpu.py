"""All figures of one device in one command of at most 8 minutes, written to one JSON file.

    python benchmarks/gpu.py --pack pack.zip          # here: a smaller copy of the data of this project (data/manifest.csv)
    python benchmarks/gpu.py pack.zip --out gpu.json  # on the machine with the GPU
    python benchmarks/gpu.py --quick --out gpu.json   # drawn data and tiny networks: whether it runs at all, on a CPU too

The second command needs PyTorch 2.11 or later with torchvision, timm, pandas, safetensors and psutil; what else the library
imports (pydantic) and the ImageNet weights travel in the pack. No network, DVC or MLflow. Each task is a process of its own,
its result is on the disk as soon as it ends, and a task for which too little time is left is listed as such.
"""

import argparse
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACK_PX = 128  # shorter side of the photographs in a pack
WHEELS = ("pydantic", "pydantic-core", "annotated-types", "typing-inspection")
WEIGHTS = Path("weights/lite0.pth")
LEFT_S = 10.0  # kept free at the end
TRAINED = ("model", "train", "augment", "evaluate")


# --- the pack ---


def pack(target: Path, python: str) -> None:
    """A zip with the photographs in use, `PACK_PX` on the shorter side, their manifest, weights and wheels."""
    sys.path.insert(0, str(ROOT))
    import numpy as np
    from PIL import Image

    from fieldguide.core.images import inspect, read_encoded
    from fieldguide.core.manifest import read_manifest, write_manifest
    from fieldguide.core.paths import MANIFEST, RAW
    from fieldguide.network.weights import weights_file
    from fieldguide.sources.archive import pack as write_zip
    from fieldguide.sources.archive import stored_members

    frame = read_manifest(MANIFEST)
    frame = frame[frame["use"] & (frame["split"] != "unlabelled")].reset_index(drop=True)

    def smaller(row: Any) -> bytes:
        _, rgb = inspect(read_encoded(RAW / row.file, row.offset, row.length), PACK_PX)
        image = Image.fromarray(np.ascontiguousarray(rgb))
        factor = PACK_PX / min(image.size)
        stream = io.BytesIO()
        image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC).save(
            stream, "JPEG", quality=88
        )
        return stream.getvalue()

    with tempfile.TemporaryDirectory() as folder:
        images, table = Path(folder) / "images.zip", Path(folder) / "manifest.csv"
        write_zip(((f"{number:06d}.jpg", smaller(row)) for number, row in enumerate(frame.itertuples())), images)
        members = list(stored_members(images))
        content = images.read_bytes()
        hashes = [hashlib.sha256(content[offset : offset + length]).hexdigest() for _, offset, length in members]
        offsets, lengths = [offset for _, offset, _ in members], [length for _, _, length in members]
        write_manifest(frame.assign(file="images.zip", offset=offsets, length=lengths, sha256=hashes), table)
        wheels = Path(folder) / "wheels"
        platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in (17, 28)] + ["--platform=manylinux2014_x86_64"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *platforms]
        subprocess.run([*command, f"--python-version={python}", "--dest", wheels, *WHEELS], check=True)
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            archive.write(images, "data/raw/images.zip")
            archive.write(table, "data/manifest.csv")
            weights = weights_file(params("transfer", {}).model)
            if weights and weights.is_file():
                archive.write(weights, WEIGHTS)
            for wheel in sorted(wheels.iterdir()):
                archive.write(wheel, f"wheels/{wheel.name}")
    print(f"{len(frame)} photographs, {target.stat().st_size / 1e6:.1f} MB -> {target}")


def unpack(source: Path, folder: Path) -> None:
    """The data of a pack, and its wheels for processes that have `site` on their path."""
    with zipfile.ZipFile(source) as archive:
        archive.extractall(folder)
    for wheel in (folder / "wheels").glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "site")


def draw(folder: Path) -> None:
    """A tiny data set in the form of an unpacked pack."""
    sys.path.insert(0, str(ROOT))
    import pandas as pd

    from fieldguide.core.manifest import COLUMNS, as_given, write_manifest
    from fieldguide.sources.archive import pack as write_zip
    from fieldguide.sources.archive import stored_members
    from fieldguide.sources.sample import photographs

    (folder / "data/raw").mkdir(parents=True)
    images = folder / "data/raw/images.zip"
    counts = {"train_images": 24, "valid_images": 6, "test_images": 6}
    write_zip(photographs(n_species=3, image_px=48, seed=1, workers=1, **counts), images)
    content, rows = images.read_bytes(), []
    for name, offset, length in stored_members(images):
        split, species, _ = Path(name).parts
        seal = hashlib.sha256(content[offset : offset + length]).hexdigest()
        rows.append((split, None, species, name, "images.zip", offset, length, 48, 48, seal, "", True, ""))
    frame = pd.DataFrame(rows, columns=list(COLUMNS)[: len(rows[0])])
    numbers = {name: number for number, name in enumerate(sorted(frame["class_name"].unique()))}
    frame = frame.assign(label=frame["class_name"].map(numbers), unit=range(len(frame)))
    write_manifest(as_given(frame), folder / "data/manifest.csv")


# --- the tasks; each runs in a process of its own, in the folder of the data ---


def params(recipe: str, changes: dict[str, Any]) -> Any:
    """The project's parameters with a recipe and further values by dotted key."""
    from fieldguide.core.params import check_params, read_yaml

    content = read_yaml(ROOT / "params.yaml")
    for name in dict.fromkeys(("scratch", recipe)):
        for section, values in read_yaml(ROOT / "recipes" / f"{name}.yaml").items():
            content[section] |= values
    for key, value in changes.items():
        section, _, name = key.partition(".")
        content[section][name] = value
    return check_params(content, ROOT / "recipes" / f"{recipe}.yaml")


def train(recipe: str, changes: dict[str, Any]) -> dict[str, Any]:
    """One training as the stage does it, without tracking; with its accuracy on test, if there is one."""
    import pandas as pd
    import torch

    from fieldguide.core.files import file_hash
    from fieldguide.core.manifest import classes_of, read_manifest, rows_of, splits_in_use
    from fieldguide.core.paths import CHECKPOINT, HISTORY_CSV, MANIFEST, METRICS, RAW
    from fieldguide.network.checkpoint import Checkpoint, load_checkpoint
    from fieldguide.network.inference import predict, score, scores
    from fieldguide.network.loader import open_images
    from fieldguide.tracking.run import Run
    from fieldguide.training.distributed import World
    from fieldguide.training.fit import Fit
    from fieldguide.training.resume import states_of, stop_signals
    from fieldguide.training.setup import state_key_inputs, training_setup

    METRICS.mkdir(exist_ok=True)
    settings, frame, world = params(recipe, changes), read_manifest(MANIFEST), World()
    classes = classes_of(frame)
    rows = {split: rows_of(frame, split) for split in ("train", "valid")}
    start = time.perf_counter()
    with (
        states_of(state_key_inputs(settings, ROOT / "stages" / "train.py", world)) as states,
        training_setup(settings, classes, rows, RAW, world) as (training, valid, targets),
        stop_signals() as stop,
    ):
        ready = time.perf_counter()
        facts = Checkpoint(settings.model.name, settings.model.image_px, classes.names, classes.labels, 0, file_hash(MANIFEST))
        metrics = Fit(training, valid, targets, Run(), facts, states, stop).all_epochs(states.load())
        device, dtype = training.device, training.dtype
    done = time.perf_counter()
    history = pd.read_csv(HISTORY_CSV)
    result = {
        "precision": str(dtype).removeprefix("torch."),
        "set_up_seconds": round(ready - start, 2),
        "seconds": round(done - ready, 2),
        "images_per_second": round(len(rows["train"]) * len(history) / (done - ready), 1),
        "epochs": metrics.epochs,
        "best_epoch": metrics.best_epoch,
        "valid": metrics.valid.as_dict() | {"n": len(rows["valid"])},
        "sha256": file_hash(CHECKPOINT),
    }
    if device.type == "cuda":
        result["peak_mib"] = round(torch.cuda.max_memory_allocated(device) / 2**20)
    if "test" in splits_in_use(frame):
        test = rows_of(frame, "test")
        model, px = load_checkpoint(CHECKPOINT)[0].to(device), settings.model.image_px
        source = open_images(test, RAW, px, settings.runtime.n_workers, device, settings.train)
        logits = torch.cat(list(predict(model, source, settings.evaluate.batch_size, device, torch.float32))).cpu()
        source.close()
        result["test"] = score(scores(logits, torch.from_numpy(classes.targets(test)))).as_dict() | {"n": len(test)}
    return result


def steps(recipe: str, changes: dict[str, Any], seconds: float, compiles: bool) -> dict[str, Any]:
    """Images per second of the bare step on one batch in both precisions, compiled if it can be, and of a real epoch."""
    import torch

    from fieldguide.core.manifest import classes_of, read_manifest, rows_of
    from fieldguide.core.paths import MANIFEST, RAW
    from fieldguide.training.distributed import World
    from fieldguide.training.setup import training_setup

    frame, result = read_manifest(MANIFEST), {}
    rows = {split: rows_of(frame, split) for split in ("train", "valid")}
    ways = {"fp32": {"train.precision": "fp32"}, "bf16": {"train.precision": "bf16"}}
    if compiles:
        ways["bf16 compiled"] = {"train.precision": "bf16", "train.compile": True}
    fixed = {"train.size_start": 1.0, "train.size_end": 1.0, "train.head_epochs": 0, "train.epochs": 2}
    for name, way in ways.items():
        settings = params(recipe, changes | fixed | way)
        with training_setup(settings, classes_of(frame), rows, RAW, World()) as (training, _, _):
            n, px, device = settings.train.batch_size, settings.model.image_px, training.device
            pixels = torch.rand(n, 3, px, px, device=device).to(memory_format=torch.channels_last)
            target = training.targets[torch.arange(n, device=device) % len(training.targets)]

            def wait(device: torch.device = device) -> None:
                if device.type == "cuda":
                    torch.cuda.synchronize(device)

            training.model.train()
            try:
                start, n_steps = 0.0, 0
                while not start or time.perf_counter() - start < seconds:
                    training.learn(pixels, target, target, 1.0)
                    training.update(0)
                    wait()
                    n_steps += 1
                    if not start and n_steps == 3:  # kernels are chosen, graphs compiled
                        start, n_steps = time.perf_counter(), 0
                result[f"step, {name}"] = round(n_steps * n / (time.perf_counter() - start), 1)
            except Exception as error:  # of the compiler, which this machine may lack
                if not settings.train.compile:
                    raise
                result[f"step, {name}"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
                continue
            if name == "bf16":
                training.epoch(0)
                wait()
                start = time.perf_counter()
                training.epoch(1)
                wait()
                result["epoch, bf16"] = round(len(training.source) / (time.perf_counter() - start), 1)
    return result


def onnx(changes: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The checkpoint of the last training as ONNX by each execution provider: images per second, difference to torch."""
    import numpy as np
    import onnxruntime
    import torch

    from fieldguide.core.paths import CHECKPOINT
    from fieldguide.network.checkpoint import load_checkpoint

    model, facts = load_checkpoint(CHECKPOINT)
    pixels = torch.rand(16, 3, facts.image_px, facts.image_px)
    torch.onnx.export(model, (pixels,), "network.onnx", dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "n"}})
    with torch.inference_mode():
        expected = model(pixels).numpy()
    result: dict[str, Any] = {"version": onnxruntime.__version__, "providers": onnxruntime.get_available_providers()}
    for provider in ("CUDAExecutionProvider", "CPUExecutionProvider"):
        if provider in result["providers"]:
            session = onnxruntime.InferenceSession("network.onnx", providers=[provider])
            feed = {"x": pixels.numpy()}
            difference = float(np.abs(session.run(None, feed)[0] - expected).max())
            start, n = time.perf_counter(), 0
            while time.perf_counter() - start < seconds:
                session.run(None, feed)
                n += len(pixels)
            rate = n / (time.perf_counter() - start)
            result[provider] = {"images_per_second": round(rate, 1), "largest_difference": difference}
    return result


def machine() -> dict[str, Any]:
    import platform

    import torch

    from fieldguide.network.device import computes_bf16, device_name, pick_device

    device = pick_device("auto")
    facts = {"device": device_name(device), "bf16": computes_bf16(device), "torch": torch.__version__}
    facts |= {"python": platform.python_version(), "cores": len(os.sched_getaffinity(0))}
    if device.type == "cuda":
        facts |= {"memory_mib": torch.cuda.get_device_properties(device).total_memory >> 20, "cuda": torch.version.cuda}
    return facts


CHILDREN: dict[str, Callable[..., dict[str, Any]]] = {"train": train, "steps": steps, "onnx": onnx, "machine": machine}


# --- the command ---


class Bench:
    """Runs tasks one after the other as long as there is time, and writes their results."""

    def __init__(self, folder: Path, target: Path, seconds: float) -> None:
        self.folder, self.target, self.end = folder, target, time.monotonic() + seconds
        self.results: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "seconds_allowed": seconds}

    def start(self, kind: str, arguments: list[Any]) -> subprocess.Popen[str]:
        wheels = [] if find_spec("pydantic") else [str(self.folder / "site")]
        path = os.pathsep.join([str(ROOT), *wheels, os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, __file__, "--child", kind, json.dumps(arguments)]
        own = os.environ | {"PYTHONPATH": path}
        return subprocess.Popen(command, cwd=self.folder, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def task(self, name: str, kind: str, *arguments: Any, least: float = 5.0) -> dict[str, Any]:
        """One task's result, also in the file; without `least` seconds left it is not begun."""
        left = self.end - time.monotonic() - LEFT_S
        if left < least:
            result = {"skipped": f"{left:.0f} s left, {least:.0f} needed"}
        else:
            child = self.start(kind, list(arguments))
            try:
                output, errors = child.communicate(timeout=left)
                result = json.loads(output.splitlines()[-1]) if child.returncode == 0 else {"failed": errors[-2000:]}
            except subprocess.TimeoutExpired:
                child.kill()
                child.communicate()
                result = {"failed": f"not done after {left:.0f} s"}
        self.keep(name, result)
        return result

    def keep(self, name: str, result: dict[str, Any]) -> None:
        self.results[name] = result
        self.target.write_text(json.dumps(self.results, indent=1) + "\n")
        print(f"{name}: {json.dumps(result)[:400]}", flush=True)

    def resumed(self, recipe: str, changes: dict[str, Any], expected: str) -> None:
        """A training killed after its first epoch, and whether it then ends in the same bytes."""
        if self.end - time.monotonic() - LEFT_S < 20:
            return self.keep("resume", {"skipped": "too little time left"})
        (self.folder / "metrics/history.csv").unlink(missing_ok=True)
        child = self.start("train", [recipe, changes])
        states = self.folder / ".fieldguide/unfinished"
        while child.poll() is None and not list(states.glob("*/state-*.pt")) and time.monotonic() < self.end - LEFT_S:
            time.sleep(0.02)
        killed = child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.communicate()
        again = self.task("resume", "train", recipe, changes)
        return self.keep("resume", {"killed": killed, "same_bytes": again.get("sha256") == expected} | again)


def run(source: Path | None, target: Path, seconds: float) -> int:
    with tempfile.TemporaryDirectory() as name:
        folder, quick = Path(name), source is None
        if source is None:
            draw(folder)
        else:
            unpack(source, folder)
        bench, part = Bench(folder, target.absolute(), seconds), 0.5 if quick else 4.0
        few: dict[str, Any] = {"model.image_px": 32, "train.decode_px": 32, "train.batch_size": 16} if quick else {}
        lite: dict[str, Any] = {"model.weights": str(WEIGHTS if (folder / WEIGHTS).is_file() else "none")}
        if lite["model.weights"] == "none":
            lite |= {"train.head_epochs": 0, "train.head_augment": True, "train.freeze": 0.0}
        bench.task("machine", "machine")
        short = few | {"train.epochs": 3}
        first = bench.task("short training", "train", "scratch", short)
        second = bench.task("the same again", "train", "scratch", short)
        if "sha256" in first and "sha256" in second:
            bench.keep("repeatable", {"same_bytes": first["sha256"] == second["sha256"]})
            bench.resumed("scratch", short, first["sha256"])
        bench.task("steps, fieldnet", "steps", "scratch", few, part, not quick)
        epochs = {"train.epochs": 2} if quick else {}
        bench.task("cnn, 224 px, 70 epochs", "train", "butterflies-original", few | epochs, least=60 * (not quick))
        name_of_lite = {"model.name": "cnn"} if quick else {}
        bench.task("transfer", "train", "transfer", few | epochs | lite | name_of_lite, least=40 * (not quick))
        bench.task("onnx of it", "onnx", {}, part)
        vit_px = 64 if quick else 224
        vit = {"model.name": "timm/vit_tiny_patch16_224" if quick else "timm/vit_small_patch16_224", "model.image_px": vit_px}
        vit |= {
            "train.decode_px": vit_px,
            "train.size_start": 1.0,
            "train.size_end": 1.0,
            "train.batch_size": 8 if quick else 64,
        }
        bench.task("vit, 3 epochs", "train", "scratch", vit | {"train.epochs": 1 if quick else 3}, least=30 * (not quick))
        shutil.rmtree(folder / ".fieldguide", ignore_errors=True)
    failed = [name for name, result in bench.results.items() if isinstance(result, dict) and "failed" in result]
    print(f"-> {target}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, help="a pack")
    parser.add_argument("--pack", type=Path, metavar="FILE", help="write a pack of this project's data")
    parser.add_argument("--python", default="3.12", help="Python on the other machine, for the wheels in the pack")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--seconds", type=float, default=480.0, help="the most that all tasks may take")
    parser.add_argument("--quick", action="store_true", help="drawn data, tiny networks")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        kind, values = arguments.child
        with open(os.dup(1), "w") as output:
            os.dup2(2, 1)  # what the library prints is not the result
            output.write(json.dumps(CHILDREN[kind](*json.loads(values))) + "\n")
        return
    if arguments.pack:
        sys.path.insert(0, str(ROOT))
        pack(arguments.pack, arguments.python)
    elif arguments.data or arguments.quick:
        try:
            sys.exit(run(arguments.data, arguments.out, arguments.seconds))
        except (OSError, zipfile.BadZipFile):
            traceback.print_exc()
            sys.exit(1)
    else:
        parser.error("give a pack, --pack FILE or --quick")


if __name__ == "__main__":
    main()
