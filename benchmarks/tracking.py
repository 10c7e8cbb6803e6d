"""What tracking adds to an epoch and to a stage, and what DVC adds to thousands of photographs.

    python benchmarks/tracking.py [--rounds 5] [--epochs 20] [--skip stage dvc imports] [--images 25000] [--links copy hardlink]
                                  [--experiments 300]

Every figure is the median over rounds in which the ways take turns, with least and most. Printed, part by part:

    epoch     one line of metrics, as an epoch logs it: seconds for which the training waits, and seconds of CPU of the whole
              process until all is sent; with a store at the project's root, and with a server that refuses connections
    stage     a process that begins a run, works (a busy core), logs a checkpoint of 14 MB and pictures and ends, against the
              same work without a run: seconds of wall clock and of CPU that tracking adds
    imports   seconds of `import mlflow` alone, and the packages in which most of it is spent
    dvc       one stage whose output is n images, as one zip and as a folder, for each link type of the cache: first run,
              run with nothing to do, `dvc status`, checkout after the output was deleted (wall clock, CPU); the disk space
    runs      n experiments with parameters, lock file and headlines of their own: the first `fieldguide sync`, which adds a
              run for each, one with nothing new, one after a further experiment, and `fieldguide runs` with and without
              `--all` (wall clock, CPU)

Everything is made in a temporary folder, which --folder places on another disk.
"""

import argparse
import hashlib
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from fieldguide.core.headlines import HEADLINES  # noqa: E402
from fieldguide.core.paths import headlines_json  # noqa: E402

IDENTITY = ("-c", "user.name=owl", "-c", "user.email=owl@example.org")
PARTS = ("epoch", "stage", "imports", "dvc", "runs")
REFUSED = "http://127.0.0.1:9"  # the discard port: nobody listens
EPOCH_S = 10.0  # of the epoch to which the cost is compared

EPOCHS = """
import json, sys, time
from pathlib import Path
from fieldguide.tracking import run as tracking
from fieldguide.core.params import read_params
n_epochs = int(sys.argv[1])
params = read_params(Path(sys.argv[2]))
waits = []
with tracking.training_run(params) as run:
    time.sleep(float(sys.argv[3]))  # until the store is there and what came first is sent
    start = time.process_time()
    for epoch in range(1, n_epochs + 1):
        begun = time.perf_counter()
        run.log_metrics({"train": {"loss": 1.0, "accuracy": 0.5, "n": 64}, "valid": {"loss": 1.0, "accuracy": 0.5, "n": 64},
                         "lr": 0.1, "image_px": 96, "images_per_second": 200.0, "seconds": 1.0}, step=epoch)
        waits.append(time.perf_counter() - begun)
        time.sleep(0.2)
    cpu = time.process_time() - start
print(json.dumps([sorted(waits)[len(waits) // 2], cpu / n_epochs]))
"""
STAGE = """
import sys, time
from contextlib import nullcontext
from pathlib import Path
from fieldguide.tracking import run as tracking
from fieldguide.core.params import read_params
tracked, work_s, folder = sys.argv[1] == "tracked", float(sys.argv[3]), Path(sys.argv[4])
params = read_params(Path(sys.argv[2]))
with tracking.training_run(params) if tracked else nullcontext(tracking.Run()) as run:
    start = time.thread_time()
    while time.thread_time() - start < work_s:
        sum(range(10_000))
    run.log_metrics({"best_epoch": 1})
    run.log_files(folder / "model.bin", folder / "picture.bin", folder / "table.bin", folder="train")
"""
MAKE = {
    "zip": """
import os, zipfile
from pathlib import Path
content = os.urandom(4096)
Path("raw").mkdir()
with zipfile.ZipFile("raw/images.zip", "w") as archive:
    for k in range(N_IMAGES):
        archive.writestr(f"{k // 250}/{k}.jpg", content + k.to_bytes(4, "big"))
""",
    "folder": """
import os
from pathlib import Path
content = os.urandom(4096)
for k in range(N_IMAGES):
    image = Path(f"raw/{k // 250}/{k}.jpg")
    image.parent.mkdir(parents=True, exist_ok=True)
    image.write_bytes(content + k.to_bytes(4, "big"))
""",
}


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    command.add_argument("--rounds", type=int, default=5)
    command.add_argument("--epochs", type=int, default=20, help="logged in each round")
    command.add_argument("--work", type=float, default=5.0, help="seconds of CPU that a stage works")
    command.add_argument("--images", type=int, default=25_000, help="of 4 KiB each")
    command.add_argument("--experiments", type=int, default=300)
    command.add_argument("--links", nargs="+", default=["reflink,copy", "hardlink,copy", "symlink,copy"], help="cache.type")
    command.add_argument("--skip", nargs="*", choices=PARTS, default=[])
    command.add_argument("--folder", type=Path, help="in which the temporary folder is made")
    args = command.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for part, measure in (("epoch", epoch), ("stage", stage), ("imports", imports), ("dvc", dvc), ("runs", runs)):
            if part not in args.skip:
                measure(args, Path(folder))


def epoch(args: argparse.Namespace, folder: Path) -> None:
    stores = {"store at the root": "", "server that refuses": REFUSED}
    python(EPOCHS, folder, "", 1, ROOT / "params.yaml", 8)  # makes the store
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in stores}
    for _ in range(args.rounds):
        for name, uri in stores.items():
            figures[name].append(json.loads(python(EPOCHS, folder, uri, args.epochs, ROOT / "params.yaml", 8).stdout))
    for name, pairs in figures.items():
        waits, cpu = zip(*pairs, strict=True)
        line(f"epoch, {name}: training waits", waits, "ms", 1e3)
        line(f"epoch, {name}: CPU of the process", cpu, "ms", 1e3)
        print(f"{'':50s} = {statistics.median(cpu) / EPOCH_S:.3%} of an epoch of {EPOCH_S:.0f} s")


def stage(args: argparse.Namespace, folder: Path) -> None:
    for name, n_bytes in (("model", 14_000_000), ("picture", 100_000), ("table", 5_000)):
        (folder / f"{name}.bin").write_bytes(os.urandom(n_bytes))
    ways = {"not tracked": ("plain", ""), "store at the root": ("tracked", ""), "server that refuses": ("tracked", REFUSED)}
    walls: dict[str, list[float]] = {name: [] for name in ways}
    cpus: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, (how, uri) in ways.items():
            before, start = children_cpu(), time.perf_counter()
            python(STAGE, folder, uri, how, ROOT / "params.yaml", args.work, folder)
            walls[name].append(time.perf_counter() - start)
            cpus[name].append(children_cpu() - before)
    for name in list(ways)[1:]:
        for kind, values in (("wall clock", walls), ("CPU", cpus)):
            added = [tracked - plain for tracked, plain in zip(values[name], values["not tracked"], strict=True)]
            line(f"stage of {args.work:.0f} s, {name}: {kind} added", added, "s")


def imports(args: argparse.Namespace, folder: Path) -> None:
    seconds = []
    for _ in range(args.rounds):
        before = children_cpu()
        answer = python("from mlflow import MlflowClient", folder, "", options=("-X", "importtime"))
        seconds.append(children_cpu() - before)
    line("import of MlflowClient (with Python itself), CPU", seconds, "s")
    spent: dict[str, float] = {}
    for own, name in re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", answer.stderr):
        package = ".".join(name.split(".")[: 2 if name.startswith("mlflow.") else 1])
        spent[package] = spent.get(package, 0) + int(own) / 1e6
    for package in sorted(spent, key=spent.get, reverse=True)[:10]:
        print(f"    {package:46s} {spent[package]:8.2f} s of the last")


def dvc(args: argparse.Namespace, folder: Path) -> None:
    for link in args.links:
        for layout, make in MAKE.items():
            project = folder / f"{layout}-{link.replace(',', '-')}"
            project.mkdir()
            (project / "make.py").write_text(make.replace("N_IMAGES", str(args.images)))
            (project / "dvc.yaml").write_text("stages: {make: {cmd: python make.py, deps: [make.py], outs: [raw]}}\n")
            shell(project, "git", "init", "--quiet")
            shell(project, "dvc", "init", "--quiet")
            for option, value in (("core.analytics", "false"), ("core.check_update", "false"), ("cache.type", link)):
                shell(project, "dvc", "config", option, value)
            name = f"dvc, {args.images} images, {layout}, {link}"
            empty = usage(project)
            first = [dvc_seconds(project, "repro")]
            figures = {"nothing to do": [], "status": []}
            for _ in range(args.rounds):
                figures["nothing to do"].append(dvc_seconds(project, "repro"))
                figures["status"].append(dvc_seconds(project, "status"))
            shutil.rmtree(project / "raw")
            figures = {"first run": first} | figures | {"checkout": [dvc_seconds(project, "checkout")]}
            for what, pairs in figures.items():
                walls, cpus = zip(*pairs, strict=True)
                line(f"{name}: {what}", walls, "s")
                line(f"{'':{len(name)}s}  {what}, CPU", cpus, "s")
            print(f"{name}: disk {(usage(project) - empty) / 1e6:.0f} MB", flush=True)
            shutil.rmtree(project)


def runs(args: argparse.Namespace, folder: Path) -> None:
    project = folder / "runs"
    project.mkdir()
    for name in ("dvc.yaml", "dvc.lock", "params.yaml"):
        shutil.copy(ROOT / name, project)
    shell(project, "git", "init", "--quiet")
    shell(project, "dvc", "init", "--quiet")
    shell(project, "git", "add", "--all")
    shell(project, "git", *IDENTITY, "commit", "--quiet", "--message", "baseline")
    add_experiments(project, range(args.experiments))
    name = f"{args.experiments} experiments"
    report(f"{name}: first sync", [command_seconds(project, "sync")])
    report(f"{name}: sync, nothing new", [command_seconds(project, "sync") for _ in range(args.rounds)])
    added = []
    for k in range(args.experiments, args.experiments + args.rounds):
        add_experiments(project, range(k, k + 1))
        added.append(command_seconds(project, "sync"))
    report(f"{name}: sync, one added", added)
    report(f"{name}: runs", [command_seconds(project, "runs") for _ in range(args.rounds)])
    report(f"{name}: runs --all", [command_seconds(project, "runs", "--all") for _ in range(args.rounds)])


def add_experiments(project: Path, numbers: range) -> None:
    """Experiments from the last commit, each with a checkpoint, a number of epochs and headlines of its own."""
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=project, capture_output=True, text=True, check=True).stdout.strip()
    lock, params = (project / "dvc.lock").read_text(), (project / "params.yaml").read_text()
    outs = yaml.safe_load(lock)["stages"]["train"]["outs"]
    checkpoint = next(out["md5"] for out in outs if out["path"] == "models/model.safetensors")
    stream = []
    for k in numbers:
        files = {
            "dvc.lock": lock.replace(checkpoint, hashlib.md5(str(k).encode()).hexdigest()),
            "params.yaml": re.sub(r"\n  epochs: \d+ ", f"\n  epochs: {k + 1} ", params),
        }
        for stage, names in HEADLINES.items():
            files[str(headlines_json(stage))] = json.dumps(dict.fromkeys(names, k / 1000))
        ref, time_s = f"refs/exps/{head[:2]}/{head[2:]}/owl-{k}", 1_700_000_000 + k
        stream.append(f"commit {ref}\ncommitter owl <owl@example.org> {time_s} +0000\ndata 1\n.\nfrom {head}\n")
        stream += [f"M 100644 inline {name}\ndata {len(text.encode())}\n{text}\n" for name, text in files.items()]
    subprocess.run(["git", "fast-import", "--quiet"], cwd=project, input="".join(stream).encode(), check=True)


def command_seconds(project: Path, *words: str) -> tuple[float, float]:
    """Seconds of wall clock and of CPU that a command of fieldguide takes, in the project's own store."""
    before, start = children_cpu(), time.perf_counter()
    python("from fieldguide.__main__ import console; console()", project, "", *words)
    return time.perf_counter() - start, children_cpu() - before


def report(name: str, pairs: list[tuple[float, float]]) -> None:
    walls, cpus = zip(*pairs, strict=True)
    line(name, walls, "s")
    line(f"{'':{len(name)}s}  CPU", cpus, "s")


def dvc_seconds(project: Path, command: str) -> tuple[float, float]:
    """Seconds of wall clock and of CPU that a command of DVC takes."""
    before, start = children_cpu(), time.perf_counter()
    shell(project, "dvc", command, "--quiet")
    return time.perf_counter() - start, children_cpu() - before


def python(code: str, folder: Path, uri: str, *arguments: object, options: tuple[str, ...] = ()):
    """Runs code in a process of its own, whose store is in `folder`, or at `uri`."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DVC_ROOT": str(folder), "MLFLOW_TRACKING_URI": uri}
    command = [sys.executable, *options, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True)


def shell(project: Path, *command: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DVC_")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    subprocess.run(command, cwd=project, env=environment, check=True, stdout=subprocess.DEVNULL)


def children_cpu() -> float:
    """Seconds that the processes which this one has started, and which have ended, have computed."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def usage(folder: Path) -> int:
    """Bytes on the disk; what is linked hard counts once."""
    answer = subprocess.run(["du", "-s", "-B1", str(folder)], capture_output=True, text=True, check=True)
    return int(answer.stdout.split()[0])


def line(label: str, values: list[float] | tuple[float, ...], unit: str, factor: float = 1.0) -> None:
    scaled = [value * factor for value in values]
    middle = statistics.median(scaled)
    print(f"{label:66s} {middle:8.2f} {unit} ({min(scaled):.2f} to {max(scaled):.2f}; n={len(scaled)})", flush=True)


if __name__ == "__main__":
    main()
