"""A checkpoint comes back as it was, its bytes depend on its content only, and what is no checkpoint is refused."""

import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from safetensors import safe_open
from safetensors.torch import save

from fieldguide.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fieldguide.errors import UserError
from fieldguide.models import NETWORKS, Classifier, build

FACTS = Checkpoint("cnn", 32, ("ADONIS", "Schöner Käfer", "孔雀蛺蝶"), (0, 3, 7), 5, "ab" * 32)
HEADER = {
    "model": "cnn",
    "image_px": 32,
    "class_names": ["a", "b", "c"],
    "labels": [0, 1, 2],
    "epoch": 1,
    "manifest_sha256": "00",
}
SAVE = """
import sys, torch
from pathlib import Path
from fieldguide.checkpoint import Checkpoint, save_checkpoint
from fieldguide.models import build
torch.manual_seed(3)
save_checkpoint(Path(sys.argv[1]), build("fieldnet", 2), Checkpoint("fieldnet", 32, ("a", "b"), (0, 1), 4, "ff"))
"""


def network(name: str = "cnn", n_classes: int = 3) -> Classifier:
    """A network whose norms have seen data."""
    torch.manual_seed(1)
    model = build(name, n_classes)
    with torch.no_grad():
        model.train()(torch.rand(4, 3, 32, 32))
    return model.eval()


def foreign(target: Path, header: object, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    """A safetensors file with any text in the header."""
    text = header if isinstance(header, str) else json.dumps(header)
    weights = network().state_dict() if tensors is None else tensors
    target.write_bytes(save(weights, metadata={"fieldguide": text}))
    return target


@pytest.mark.parametrize("name", NETWORKS)
def test_a_round_trip_gives_identical_logits_and_facts(tmp_path: Path, name: str) -> None:
    model, facts, pixels = network(name), replace(FACTS, model=name), torch.rand(2, 3, 32, 32)
    save_checkpoint(tmp_path / "model.safetensors", model, facts)
    loaded, found = load_checkpoint(tmp_path / "model.safetensors")
    assert found == facts
    assert (found.classes.names, found.classes.labels) == (facts.class_names, facts.labels)
    assert not loaded.training
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    with torch.no_grad():
        turned = model.to(memory_format=torch.channels_last)
        assert torch.equal(loaded(pixels), turned(pixels))


def test_any_reader_of_safetensors_finds_the_facts_as_json(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model.safetensors", network(), FACTS)
    with safe_open(tmp_path / "model.safetensors", framework="np") as file:
        header = json.loads(file.metadata()["fieldguide"])
    assert header["class_names"] == ["ADONIS", "Schöner Käfer", "孔雀蛺蝶"]
    assert (header["labels"], header["image_px"], header["epoch"]) == ([0, 3, 7], 32, 5)


def test_the_layout_in_memory_does_not_change_the_bytes(tmp_path: Path) -> None:
    model = network()
    save_checkpoint(tmp_path / "a", model, FACTS)
    save_checkpoint(tmp_path / "b", model.to(memory_format=torch.channels_last), FACTS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_other_weights_or_facts_change_the_bytes(tmp_path: Path) -> None:
    model = network()
    save_checkpoint(tmp_path / "a", model, FACTS)
    save_checkpoint(tmp_path / "b", model, replace(FACTS, epoch=6))
    with torch.no_grad():
        model.head.bias[0] += 1
    save_checkpoint(tmp_path / "c", model, FACTS)
    assert len({(tmp_path / name).read_bytes() for name in "abc"}) == 3


def test_equal_weights_give_equal_bytes_in_every_process(tmp_path: Path) -> None:
    hashes = set()
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}
        target = tmp_path / seed
        subprocess.run([sys.executable, "-W", "error", "-c", SAVE, target], env=environment, cwd=tmp_path, check=True)
        hashes.add(hashlib.sha256(target.read_bytes()).hexdigest())
    assert len(hashes) == 1


def test_saving_replaces_the_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "models" / "model.safetensors"
    save_checkpoint(target, network(), FACTS)
    save_checkpoint(target, network(), replace(FACTS, epoch=9))
    assert load_checkpoint(target)[1].epoch == 9
    assert list(target.parent.iterdir()) == [target]


def test_a_missing_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    gone = tmp_path / "gone.safetensors"
    with pytest.raises(UserError, match=f"^{re.escape(str(gone))} does not exist; make it with: dvc repro train$"):
        load_checkpoint(gone)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(str(tmp_path))}"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"x", b"no safetensors " * 50, bytes(range(256)) * 9], ids=["empty", "short", "text", "bytes"]
)
def test_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    target = tmp_path / "model.safetensors"
    target.write_bytes(content)
    with pytest.raises(
        UserError, match=r"model\.safetensors: not a checkpoint of fieldguide \(.+\); make it with: dvc repro -f train$"
    ):
        load_checkpoint(target)


@pytest.mark.parametrize("share", [0.0001, 0.3, 0.999999])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    target = tmp_path / "model.safetensors"
    save_checkpoint(target, network(), FACTS)
    content = target.read_bytes()
    target.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match="not a checkpoint of fieldguide"):
        load_checkpoint(target)


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "model.safetensors"
    target.write_bytes(save({"weight": torch.zeros(2, 2)}))
    with pytest.raises(UserError, match="not a checkpoint of fieldguide"):
        load_checkpoint(target)


@pytest.mark.parametrize(
    "header",
    [
        "{broken",
        "[]",
        "7",
        "null",
        {**HEADER, "surprise": 1},
        {key: value for key, value in HEADER.items() if key != "epoch"},
        {**HEADER, "class_names": 3},
    ],
    ids=["broken", "list", "number", "null", "extra", "missing", "wrong type"],
)
def test_a_header_that_is_not_fieldguides_is_refused(tmp_path: Path, header: object) -> None:
    with pytest.raises(UserError, match="not a checkpoint of fieldguide"):
        load_checkpoint(foreign(tmp_path / "model.safetensors", header))


def test_an_unknown_network_is_refused_with_those_known(tmp_path: Path) -> None:
    target = foreign(tmp_path / "model.safetensors", {**HEADER, "model": "resnet"})
    with pytest.raises(UserError, match=r"model\.safetensors: network 'resnet' is unknown; known are fieldnet, cnn"):
        load_checkpoint(target)


@pytest.mark.parametrize(
    "tensors",
    [
        network(n_classes=4).state_dict(),
        {name: tensor for name, tensor in network().state_dict().items() if name != "head.bias"},
        network().state_dict() | {"surprise": torch.zeros(1)},
        network("fieldnet").state_dict(),
    ],
    ids=["classes", "missing", "extra", "network"],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    target = foreign(tmp_path / "model.safetensors", HEADER, tensors)
    with pytest.raises(
        UserError, match=r"model\.safetensors: weights do not fit cnn .*(?s:.+)make it with: dvc repro -f train$"
    ):
        load_checkpoint(target)
