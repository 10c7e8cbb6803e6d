"""Several processes train as one with the whole batch would; one that dies costs nothing; what they cannot do is one line."""

import hashlib
import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from PIL import Image
from torch import nn

from fieldguide.core.errors import UserError
from fieldguide.core.params import Train
from fieldguide.core.paths import RAW
from fieldguide.sources import packs
from fieldguide.sources.archive import stored_members
from fieldguide.sources.packs import Photograph, write_photographs
from fieldguide.training import augment
from fieldguide.training.distributed import World, n_devices, synchronise_norms
from support import ROOT
from support.forked import FORKED, python_folder
from support.kills import Project
from support.settings import PARAMS
from support.trainings import noisy, training

SIZES = (1, 2, 3, 4, 7, 8)
LENGTHS = [64, 63, 16, 17, 100]


def settings(**changes: object) -> Train:
    return Train(**(PARAMS.train.model_dump() | changes))


@pytest.mark.parametrize("size", SIZES)
def test_every_place_of_every_batch_belongs_to_one_process(size: int) -> None:
    shares = [World(rank, size).shares(LENGTHS) for rank in range(size)]
    start = 0
    for number, length in enumerate(LENGTHS):
        own = [share[number] for share in shares]
        assert sorted(torch.cat(own).tolist()) == list(range(start, start + length))
        assert max(map(len, own)) - min(map(len, own)) <= 2
        assert all(part.equal(part.sort().values) for part in own)
        start += length


def test_a_process_alone_has_every_place_in_order() -> None:
    assert torch.cat(World().shares(LENGTHS)).equal(torch.arange(sum(LENGTHS)))


@pytest.mark.parametrize("size", SIZES)
def test_an_image_and_its_partner_in_mixing_belong_to_the_same_process(size: int) -> None:
    mixing = PARAMS.augment.model_copy(update={"mixup": 0.0, "cutmix": 1.0})
    for length in LENGTHS:
        targets = torch.arange(length)
        pixels = torch.rand(length, 3, 8, 8, generator=torch.Generator().manual_seed(length))
        whole, partners, share = augment.mix(pixels, targets, mixing, seed=1, epoch=2, batch=3)
        for rank in range(size):
            (own,) = World(rank, size).shares([length])
            mixed, theirs, same_share = augment.mix(pixels[own], targets[own], mixing, seed=1, epoch=2, batch=3)
            assert same_share == share
            assert theirs.equal(partners[own])
            assert mixed.equal(whole[own])


def test_n_devices_have_n_times_the_batch_at_n_times_the_rate_and_the_params_stay_as_they_are() -> None:
    images, targets = noisy(48, 3)
    one = training(images, targets, batch_size=8, lr=0.125, epochs=3)
    four = training(images, targets, batch_size=2, lr=0.125 / 4, epochs=3)
    object.__setattr__(four, "world", World(0, 4))
    assert four.steps_per_epoch == one.steps_per_epoch == 6
    assert [four.lr(step) for step in range(18)] == [one.lr(step) for step in range(18)]
    with pytest.raises(UserError, match=r"lower train\.lr \(0\.03125\)"):  # that of params.yaml
        four._refuse_non_finite(torch.tensor([float("nan")]), 0)


def test_without_gpus_auto_is_one_process_and_a_number_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert n_devices(settings(devices="auto"), "cpu") == 1
    assert n_devices(settings(devices=3), "cpu") == 3


def test_auto_is_every_gpu_and_more_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert n_devices(settings(devices="auto"), "auto") == 4
    assert n_devices(settings(devices=2), "cuda") == 2
    with pytest.raises(UserError, match=r"^params.yaml: train.devices is 5, but this machine has 4 cuda; set it to auto$"):
        n_devices(settings(devices=5), "cuda")


def test_torchruns_own_number_must_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert n_devices(settings(devices="auto"), "cpu") == n_devices(settings(devices=4), "cpu") == 4
    with pytest.raises(UserError, match=r"train\.devices is 2, but torchrun started 4; set it to auto"):
        n_devices(settings(devices=2), "cpu")


def test_norms_are_torchs_own_on_cuda_and_refused_elsewhere() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    weights = model.state_dict()
    with pytest.raises(
        UserError, match=r"^params.yaml: train.sync_batch_norm is true, but needs CUDA and not cpu; set it to f"
    ):
        synchronise_norms(model, torch.device("cpu"))
    synchronise_norms(model, torch.device("cuda"))
    assert isinstance(model[1], nn.SyncBatchNorm)
    assert all(tensor.equal(weights[name]) for name, tensor in model.state_dict().items())


TOGETHER = f"""
import json, sys, copy
sys.path.insert(0, {str(ROOT / "tests")!r})
import torch
torch.set_num_threads(1)
from support.trainings import augmentation, noisy, ALL_ON, training
from fieldguide.training.distributed import World, process_group
from fieldguide.network.inference import predict, score, scores
from fieldguide.network.loader import Resident

CASES = {{
    "cnn": dict(network="cnn", class_weights="balanced", accumulate=2, optimizer="sgd", augment=augmentation(**ALL_ON)),
    "cnn, balanced sampling": dict(network="cnn", sampling="balanced", clip_norm=0.5, ema=0.9, optimizer="adamw"),
    "fieldnet": dict(network="fieldnet", optimizer="sgd"),
}}
n_processes = int(sys.argv[1])
curves = {{}}
with process_group("cpu") as world:
    for name, case in CASES.items():
        images, targets = noisy(43, 3)
        chosen = training(images, targets, **case, epochs=3, batch_size=16 // n_processes, lr=0.02 / n_processes, warmup=0.0)
        object.__setattr__(chosen, "world", world)
        seen = curves[name] = []
        for epoch in range(3):
            trained = chosen.epoch(epoch)
            rows = images[world.rank :: world.size]
            logits = torch.cat(list(predict(chosen.result, Resident(rows), 8, torch.device("cpu"))))
            valid = score(scores(world.gather_rows(logits, len(images)), targets))
            seen.append([trained.loss, trained.accuracy, valid.loss, valid.accuracy])
        weights = torch.cat([parameter.flatten() for parameter in chosen.model.parameters()])
        seen.append(weights[:: 997].tolist())
        same = weights.clone()
        world.broadcast([same])
        assert same.equal(weights), "the processes' weights differ"
    print(json.dumps(curves))
"""


def started(script: str, size: int, folder: Path, *more: str) -> list[subprocess.Popen[str]]:
    """`script` in so many processes that know of one another, as torchrun would start them."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    common = os.environ | {
        "PYTHONPATH": str(ROOT),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    ranks = [{"RANK": str(rank), "WORLD_SIZE": str(size)} if size > 1 else {} for rank in range(size)]
    command = [python_folder() / "python", "-c", FORKED + script, str(size), *more]
    return [
        subprocess.Popen(command, cwd=folder, env=common | rank, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in ranks
    ]


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, list[list[float]]]]:
    """Losses and accuracies of each epoch, and then weights, of each case with one process and with two."""
    found = {}
    for size in (1, 2):
        processes = started(TOGETHER, size, tmp_path_factory.mktemp("ranks"))
        outputs = [process.communicate(timeout=300) for process in processes]
        assert all(process.returncode == 0 for process in processes), outputs
        assert all(output == "" for output, _ in outputs[1:]), "only the first process writes"
        found[size] = json.loads(outputs[0][0])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("case", ["cnn", "cnn, balanced sampling"])
def test_two_processes_have_the_curve_of_one_with_the_same_batch(curves: dict, case: str) -> None:
    for one, two in zip(curves[1][case], curves[2][case], strict=True):
        assert two == pytest.approx(one, rel=2e-3, abs=2e-4)


@pytest.mark.slow
def test_norms_apart_make_another_curve(curves: dict) -> None:
    one, two = (curves[size]["fieldnet"][2] for size in (1, 2))
    assert two != pytest.approx(one, rel=2e-3, abs=2e-4)


STREAMED = f"""
import json, sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from pathlib import Path
import pandas as pd
import torch
torch.set_num_threads(1)
from support.trainings import augmentation, training
from fieldguide.network.loader import Resident, Streaming, decode_all
from fieldguide.training.distributed import process_group

class Counting(Streaming):
    def batches(self, batches):
        for rows in batches:
            seen[rows] += 1
        return super().batches(batches)

size, (kind, raw, table) = int(sys.argv[1]), sys.argv[2:]
rows = pd.read_csv(table, dtype={{"id": "string", "file": "string", "sha256": "string"}})
targets = torch.arange(len(rows)) % 3
with process_group("cpu") as world:
    if kind == "streamed":
        source = Counting(rows, Path(raw), 16, 1, torch.device("cpu"))
    else:
        source = Resident(decode_all(rows, Path(raw), 16, 1))
    changes = dict(epochs=3, batch_size=16 // size, lr=0.005 / size, warmup=0.0)
    chosen = training(source, targets, network="cnn", optimizer="adamw", augment=augmentation(), **changes)
    object.__setattr__(chosen, "world", world)
    curve = []
    for epoch in range(3):
        seen = torch.zeros(len(rows))
        trained = chosen.epoch(epoch)
        curve.append([trained.loss, trained.accuracy])
        if kind == "streamed":
            assert world.sum(seen.clone()).eq(1).all(), "an image was not seen once by all processes together"
            assert size == 1 or seen.sum() < len(rows)
    source.close()
    print(json.dumps(curve))
"""


@pytest.mark.slow
def test_two_processes_stream_packs_with_the_curve_of_one_and_see_every_image_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    RAW.mkdir(parents=True)
    images = {f"species/{number:03d}.png": coloured_png(number) for number in range(43)}  # a class has a colour
    monkeypatch.setattr(packs, "PACK_BYTES", 10 * len(images["species/000.png"]))
    monkeypatch.setattr(packs, "ONE_FILE_BYTES", packs.PACK_BYTES)
    photographs = [Photograph(name, len(png), "", lambda png=png: png) for name, png in images.items()]
    files = write_photographs(photographs, 0, 1)
    assert len(files) > 2
    places = [(name, file.name, *place) for file in files for name, *place in stored_members(file)]
    rows = pd.DataFrame(places, columns=["id", "file", "offset", "length"])
    rows["sha256"] = [hashlib.sha256(images[name]).hexdigest() for name in rows["id"]]
    rows.to_csv("rows.csv", index=False)
    curves = []
    for size, kind in ((1, "resident"), (1, "streamed"), (2, "streamed")):
        processes = started(STREAMED, size, tmp_path, kind, str(tmp_path / RAW), "rows.csv")
        outputs = [process.communicate(timeout=300) for process in processes]
        assert [process.returncode for process in processes] == [0] * size, outputs
        curves.append(json.loads(outputs[0][0].splitlines()[-1]))
    assert curves[0] == curves[1]
    assert curves[1][0][0] > 1.05 * curves[1][2][0], "nothing is learnt, so other images would have the same curve"
    for one, two in zip(*curves[1:], strict=True):
        assert two == pytest.approx(one, rel=2e-3, abs=2e-4)


def coloured_png(number: int, px: int = 20) -> bytes:
    """Noise around one of three colours."""
    pixels = np.random.default_rng(number).integers(0, 90, (px, px, 3), dtype=np.uint8)
    pixels[..., number % 3] += 150
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


AGAIN = """
import torch
torch.set_num_threads(1)
from fieldguide.training.distributed import process_group
from fieldguide.network.models import build
with process_group("cpu") as world:
    torch.manual_seed(0)
    model = build("fieldnet", 3)
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(world.rank))
    seen = []
    for _ in range(2):  # as a training that goes on makes another wrapper
        network = world.wrap(model)
        for _ in range(3):
            model.zero_grad()
            network(pixels).logsumexp(1).sum().backward()
            seen.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(each.equal(first) for later in seen[1:] for each, first in zip(later, seen[0], strict=True))
    print("same")
"""


@pytest.mark.slow
def test_the_mean_of_gradients_is_the_same_in_the_first_step_and_later_ones(tmp_path: Path) -> None:
    processes = started(AGAIN, 3, tmp_path)
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert outputs[0][0] == "same\n"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A training by two processes that has ended once."""
    made = Project(tmp_path_factory.mktemp("project"), devices="2", epochs="12")
    assert made.start("train").wait() == 0, made.log
    return made


@pytest.fixture(scope="module")
def expected(project: Project) -> dict[str, str]:
    """What the undisturbed training has left."""
    return project.hashes()


@pytest.mark.slow
def test_a_process_that_is_killed_costs_nothing(project: Project, expected: dict[str, str]) -> None:
    """One kill; `python tests/support/kills.py --ranks 10` makes twenty, `--loader streaming` with processes that decode."""
    launcher = project.start("train")
    project.kill_a_rank(launcher, random.Random(2), seconds=0.2, known=set())
    assert launcher.wait() == 0, project.log
    assert project.log.count("resuming after epoch") == 1
    assert project.hashes() == expected


@pytest.mark.slow
def test_many_processes_told_to_end_save_their_state_and_go_on_in_the_same_bytes(
    project: Project, expected: dict[str, str]
) -> None:
    launcher = project.start("train")
    while not (project.folder / "metrics" / "history.csv").exists():
        assert launcher.poll() is None, project.log
        time.sleep(0.05)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(60) == 128 + signal.SIGTERM
    assert project.log.count("SIGTERM: stopped after epoch") == 1
    assert list((project.folder / ".fieldguide" / "unfinished").glob("*/state-*"))
    assert project.start("train").wait() == 0, project.log
    assert project.log.count("resuming after epoch") == 1
    assert project.hashes() == expected


LATE = """
import os, signal, sys, time
import torch.distributed as dist
from fieldguide.training.distributed import launch, process_group
from fieldguide.training.resume import stop_signals
if "WORLD_SIZE" not in os.environ:
    os.environ["LAUNCHER"] = str(os.getpid())
    launch("stages.late", 2)
    print("ended")
    sys.exit()
with process_group("cpu") as world, stop_signals() as stop:
    print("trains", flush=True)
    dist.barrier()  # the last that they do together
    if os.environ["FAULT"] == "nohup":
        if world.is_first:
            os.kill(int(os.environ["LAUNCHER"]), signal.SIGHUP)
        time.sleep(2)
        assert not stop()
    elif world.is_first:
        if os.environ["FAULT"] == "signal":
            os.kill(int(os.environ["LAUNCHER"]), signal.SIGTERM)
        while not stop():
            time.sleep(0.05)
    elif os.environ["FAULT"] == "death":
        os.abort()
"""


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["signal", "death", "nohup"])
def test_after_its_last_step_neither_a_signal_nor_a_death_undoes_a_training(tmp_path: Path, fault: str) -> None:
    """Nor does a closed terminal under nohup, at any time."""
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "__init__.py").touch()
    (tmp_path / "stages" / "late.py").write_text(LATE)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "FAULT": fault}
    python = ["nohup", sys.executable] if fault == "nohup" else [python_folder() / "python"]  # a fork ignores no signals
    command = [*python, "-m", "stages.late"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "trains\nended\n"), done.stderr


@pytest.mark.slow
def test_a_launcher_that_is_killed_leaves_no_process_behind(project: Project) -> None:
    """Real processes here, as a forked one has another parent; each has processes that decode."""
    params = project.folder / "params.yaml"
    text = params.read_text()
    params.write_text(re.sub(r"(?m)^(  loader: )\S+", r"\g<1>streaming", text))
    launcher = project.start("train", forked=False)
    while len(ranks := project.ranks(launcher)) < 2 or not (project.folder / "metrics" / "history.csv").exists():
        assert launcher.poll() is None, project.log
        time.sleep(0.05)
    everyone = {process for rank in ranks for process in (rank, *rank.children(recursive=True))}
    assert len(everyone) > 4  # those that decode too
    launcher.kill()
    launcher.wait()
    params.write_text(text)
    for _ in range(100):
        left = [one for one in everyone if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
        if not left:
            return
        time.sleep(0.1)
    raise AssertionError(f"processes go on without their launcher: {left}")


@pytest.mark.slow
def test_an_error_that_a_user_can_mend_is_told_once_and_not_tried_again(project: Project) -> None:
    params = project.folder / "params.yaml"
    text = params.read_text()
    for key, value in {"optimizer": "sgd", "lr": "9", "warmup": "0", "weight_decay": "0", "ema": "0.0"}.items():  # diverges
        text, n_changed = re.subn(rf"(?m)^(  {key}: )\S+", rf"\g<1>{value}", text)
        assert n_changed == 1
    sound = params.read_text()
    params.write_text(text)
    try:
        assert project.start("train").wait(120) == 1
    finally:
        params.write_text(sound)
    output = project.log
    assert output.count("error: ") == 1, output
    assert output.splitlines()[-1].startswith("error: epoch "), output
    assert "Traceback" not in output


NETWORKS = """
set -e
unshare -n sleep 300 & A=$!
unshare -n sleep 300 & B=$!
trap 'kill $A $B' EXIT
sleep 0.5
ip link add va type veth peer name vb || exit 77
ip link set va netns $A
ip link set vb netns $B
nsenter -t $A -n sh -c 'ip addr add 10.9.0.1/24 dev va; ip link set va up; ip link set lo up'
nsenter -t $B -n sh -c 'ip addr add 10.9.0.2/24 dev vb; ip link set vb up; ip link set lo up'
GLOO_SOCKET_IFNAME=va nsenter -t $A -n "$@" --node-rank 0 --no-python "$PYTHON" -m stages.train & FIRST=$!
GLOO_SOCKET_IFNAME=vb nsenter -t $B -n "$@" --node-rank 1 --no-python "$PYTHON" -m stages.train
wait $FIRST
"""


@pytest.mark.slow
def test_two_machines_meet_over_the_network_and_train_as_one(project: Project, expected: dict[str, str]) -> None:
    """Each a namespace with an address of its own; only the folder is shared."""
    project.remove_outputs()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    torchrun += ["--master-addr=10.9.0.1", "--master-port=29511"]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "DVC_ROOT": str(project.folder),
        "OMP_NUM_THREADS": "1",
        "PYTHON": sys.executable,
    }
    command = ["unshare", "-rn", "bash", "-c", NETWORKS, "bash", *torchrun]
    try:
        done = subprocess.run(command, cwd=project.folder, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("two networks on one machine need the command unshare")
    if done.returncode == 77 or "unshare:" in done.stderr or "ip: not found" in done.stderr:
        pytest.skip(f"this machine gives no network namespaces: {done.stderr.strip()[:200]}")
    assert done.returncode == 0, done.stderr
    assert project.hashes() == expected
