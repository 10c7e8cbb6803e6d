"""A checkpoint comes back as it was, and what is none is refused; a training begins from published weights or a file."""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision.models
from safetensors import safe_open
from safetensors.torch import save, save_file
from torch import nn
from torchvision.transforms.v2 import functional as tv

from fieldguide.core.errors import UserError
from fieldguide.core.files import UNSEALED, seal
from fieldguide.core.params import Model
from fieldguide.network.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fieldguide.network.models import NETWORKS, Classifier, build
from fieldguide.network.weights import load_weights, weights_file
from support import ROOT

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
from fieldguide.network.checkpoint import Checkpoint, save_checkpoint
from fieldguide.network.models import build
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
    if isinstance(header, dict):
        header = header | {"seal": UNSEALED}
    text = header if isinstance(header, str) else json.dumps(header)
    weights = network().state_dict() if tensors is None else tensors
    target.write_bytes(seal(save(weights, metadata={"fieldguide": text})))
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


@pytest.mark.slow
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
    with pytest.raises(UserError, match=f"^{re.escape(str(gone))} does not exist; create it with: dvc repro train$"):
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
        UserError, match=r"model\.safetensors: not a checkpoint of fieldguide \(.+\); create it with: dvc repro -f train$"
    ):
        load_checkpoint(target)


@pytest.mark.parametrize("share", [0.0001, 0.3, 0.999999])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    target = tmp_path / "model.safetensors"
    save_checkpoint(target, network(), FACTS)
    content = target.read_bytes()
    target.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=r"not a checkpoint of fieldguide|damaged, its checksum does not match"):
        load_checkpoint(target)


def test_a_single_flipped_bit_anywhere_is_found(tmp_path: Path) -> None:
    target = tmp_path / "model.safetensors"
    save_checkpoint(target, network(), FACTS)
    content = bytearray(target.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    generator = np.random.default_rng(0)
    for place in [*generator.choice(header, 100, replace=False), *generator.choice(len(content), 100, replace=False)]:
        content[place] ^= 1 << int(place) % 8
        target.write_bytes(content)
        with pytest.raises(UserError, match="dvc repro"):
            load_checkpoint(target)
        content[place] ^= 1 << int(place) % 8
    target.write_bytes(content)
    assert load_checkpoint(target)[1] == FACTS


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


def test_an_unknown_network_is_refused_with_close_ones(tmp_path: Path) -> None:
    target = foreign(tmp_path / "model.safetensors", {**HEADER, "model": "resnet"})
    with pytest.raises(
        UserError, match=r"model\.safetensors: network is resnet, which is not a known network; did you mean .*resnet34.*\?$"
    ):
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
        UserError, match=r"model\.safetensors: weights do not fit cnn .*(?s:.+)create it with: dvc repro -f train$"
    ):
        load_checkpoint(target)


@pytest.mark.parametrize(
    ("name", "image_px"),
    [
        ("mnasnet0_5", 32),
        pytest.param("swin_v2_t", 32, marks=pytest.mark.slow),
        pytest.param("googlenet", 32, marks=pytest.mark.slow),
        ("timm/test_vit", 48),
    ],
)
def test_a_published_network_comes_back_without_a_network_connection(
    tmp_path: Path, offline: None, name: str, image_px: int
) -> None:
    model, pixels = build(name, 3, image_px).eval(), torch.rand(2, 3, image_px, image_px)
    model.pixel_mean += 0.01
    facts = replace(FACTS, model=name, image_px=image_px)
    save_checkpoint(tmp_path / "a", model, facts)
    loaded, found = load_checkpoint(tmp_path / "a")
    assert found == facts
    with torch.no_grad():
        assert torch.equal(loaded(pixels), model.to(memory_format=torch.channels_last)(pixels))
    save_checkpoint(tmp_path / "b", loaded, facts)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_tied_weights_are_saved(tmp_path: Path) -> None:
    model = network()
    model.features.register_buffer("tied", model.features[0].weight.data)
    save_checkpoint(tmp_path / "model", model, FACTS)
    with safe_open(tmp_path / "model", framework="pt") as file:
        assert torch.equal(file.get_tensor("features.tied"), file.get_tensor("features.0.weight"))


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection, empty caches of torch and the hub, and no waiting for another try."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def settings(name: str, weights: object, image_px: int = 32) -> Model:
    return Model(name=name, weights=str(weights), image_px=image_px)


def official(name: str, **options: object) -> nn.Module:
    """torchvision's own network with norms and biases as if learned, and weights that let an image be seen in the logits."""
    torch.manual_seed(1)
    model = torchvision.models.get_model(name, weights=None, **options)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim == 1:
            nn.init.uniform_(tensor, 0.5, 1.5)
        elif tensor.is_floating_point():
            nn.init.kaiming_normal_(tensor)
    return model


def cached(tmp_path: Path, name: str, model: nn.Module) -> Path:
    """The model's weights where torch.hub keeps the file that it has fetched for that name."""
    url = torchvision.models.get_model_weights(name).DEFAULT.url
    target = tmp_path / "torch" / "hub" / "checkpoints" / url.rpartition("/")[2]
    target.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), target)
    return target


@pytest.mark.parametrize(
    ("name", "image_px", "head"),
    [
        ("resnet18", 32, "fc"),
        ("mobilenet_v3_small", 32, "classifier.3"),
        ("mnasnet0_5", 32, "classifier.1"),
        pytest.param("densenet121", 32, "classifier", marks=pytest.mark.slow),
        pytest.param("googlenet", 64, "fc", marks=pytest.mark.slow),
        pytest.param("inception_v3", 80, "fc", marks=pytest.mark.slow),
        pytest.param("swin_v2_t", 32, "head", marks=pytest.mark.slow),
    ],
)
def test_imagenet_gives_what_torchvisions_own_builder_gives(
    tmp_path: Path, offline: None, name: str, image_px: int, head: str
) -> None:
    cached(tmp_path, name, official(name, **({"init_weights": False} if name in ("googlenet", "inception_v3") else {})))
    reference = torchvision.models.get_model(name, weights="DEFAULT").eval()
    model = build(name, 1000, image_px).eval()
    drawn = model.head.weight.clone()
    assert load_weights(model, settings(name, "imagenet", image_px)).startswith("ImageNet weights of torchvision, ")
    assert torch.equal(model.head.weight, drawn)
    model.head.load_state_dict(reference.get_submodule(head).state_dict())
    pixels = torch.rand(2, 3, image_px, image_px)
    with torch.no_grad():
        expected = reference(tv.normalize(pixels, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
        torch.testing.assert_close(model(pixels), expected)
    assert torch.all((expected[0] - expected[1]).abs().amax() > 1e-3 * expected.abs().amax())


def test_imagenet_leaves_torchs_generator_alone(tmp_path: Path, offline: None) -> None:
    cached(tmp_path, "resnet18", official("resnet18"))
    model = build("resnet18", 2, 32)
    before = torch.get_rng_state()
    load_weights(model, settings("resnet18", "imagenet"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_a_vit_of_a_former_torchvision_fits_another_size_as_torchvision_makes_it_fit(tmp_path: Path) -> None:
    reference = official("vit_b_32").state_dict()
    former = {key.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): value for key, value in reference.items()}
    assert former.keys() != reference.keys()
    save_file(former, tmp_path / "vit.safetensors")
    model = build("vit_b_32", 2, 96)
    load_weights(model, settings("vit_b_32", tmp_path / "vit.safetensors", 96))
    expected = torchvision.models.vision_transformer.interpolate_embeddings(96, 32, reference)
    assert model.features.encoder.pos_embedding.shape == (1, 10, 768)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in model.features.state_dict().items())


def test_a_vit_of_timm_fits_another_size(tmp_path: Path) -> None:
    reference, model = timm.create_model("test_vit"), build("timm/test_vit", 2, 96)
    save_file(reference.state_dict(), tmp_path / "vit.safetensors")
    load_weights(model, settings("timm/test_vit", tmp_path / "vit.safetensors", 96))
    expected = timm.layers.resample_abs_pos_embed(reference.pos_embed, new_size=(6, 6), num_prefix_tokens=1)
    torch.testing.assert_close(model.features.pos_embed, expected)
    assert torch.equal(model.features.blocks[0].attn.qkv.weight, reference.blocks[0].attn.qkv.weight)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
        lambda state: {key: value for key, value in state.items() if not key.startswith("fc.")},
        lambda state: {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")},
    ],
    ids=["plain", "state_dict", "model and module", "compiled", "no head", "old norms"],
)
def test_a_file_of_torch_fills_the_backbone(tmp_path: Path, wrap: Callable[[dict], dict]) -> None:
    reference, model = official("resnet18"), build("resnet18", 3, 32)
    torch.save(wrap(dict(reference.state_dict())), tmp_path / "weights.pth")
    load_weights(model, settings("resnet18", tmp_path / "weights.pth"))
    theirs, ours = reference.state_dict(), model.features.state_dict()
    assert len(ours) == len(theirs) - 2
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.slow
def test_names_of_a_former_densenet_are_understood(tmp_path: Path) -> None:
    reference, model = official("densenet121").state_dict(), build("densenet121", 3, 32)
    former = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): value for key, value in reference.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in former
    torch.save(former, tmp_path / "densenet.pth")
    load_weights(model, settings("densenet121", tmp_path / "densenet.pth"))
    assert all(torch.equal(tensor, reference[key]) for key, tensor in model.features.state_dict().items())


@pytest.mark.parametrize(("name", "image_px"), [("mnasnet0_5", 32), ("timm/test_vit", 160)])
def test_a_plain_safetensors_file_fills_the_backbone(tmp_path: Path, name: str, image_px: int) -> None:
    reference = official(name) if name in torchvision.models.list_models() else timm.create_model(name.removeprefix("timm/"))
    save_file(reference.state_dict(), tmp_path / "weights.safetensors")
    model = build(name, 3, image_px)
    load_weights(model, settings(name, tmp_path / "weights.safetensors", image_px))
    theirs = reference.state_dict()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in model.features.state_dict().items())


@pytest.mark.parametrize(("name", "image_px"), [("cnn", 32), ("mnasnet0_5", 32), ("timm/test_vit", 48)])
def test_a_checkpoint_fills_the_backbone_and_leaves_the_head(tmp_path: Path, name: str, image_px: int) -> None:
    first, second = build(name, 3, image_px), build(name, 3, image_px)
    save_checkpoint(tmp_path / "first.safetensors", first, replace(FACTS, model=name, image_px=image_px))
    drawn = second.head.weight.clone()
    load_weights(second, settings(name, tmp_path / "first.safetensors", image_px))
    assert all(
        torch.equal(tensor, first.state_dict()[f"features.{key}"]) for key, tensor in second.features.state_dict().items()
    )
    assert torch.equal(second.head.weight, drawn)
    assert not torch.equal(second.head.weight, first.head.weight)


def test_timms_weights_come_from_the_hubs_cache(tmp_path: Path, offline: None) -> None:
    reference = timm.create_model("test_vit")
    folder = tmp_path / "hub" / "models--timm--test_vit.r160_in1k"
    (folder / "snapshots" / "1").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("1")
    save_file(reference.state_dict(), folder / "snapshots" / "1" / "model.safetensors")
    model = build("timm/test_vit", 3, 160)
    before = torch.get_rng_state()
    text = load_weights(model, settings("timm/test_vit", "imagenet", 160))
    assert text == "published weights of timm, timm/test_vit.r160_in1k"
    assert torch.equal(torch.get_rng_state(), before)
    theirs = reference.state_dict()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in model.features.state_dict().items())


def test_a_relative_path_lies_under_the_projects_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    save_checkpoint(tmp_path / "home" / "start.safetensors", model, FACTS)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "home"))
    fresh = build("cnn", 2)
    assert load_weights(fresh, settings("cnn", "start.safetensors")) == f"weights of {tmp_path / 'home' / 'start.safetensors'}"
    assert torch.equal(fresh.features[0].weight, model.features[0].weight)


def test_none_changes_nothing() -> None:
    model = build("cnn", 2)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    assert load_weights(model, settings("cnn", "none")) == "random weights"
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def refusal(name: str, weights: object, image_px: int = 32) -> str:
    """The line with which weights are refused."""
    with pytest.raises(UserError) as caught:
        load_weights(build(name, 3, image_px), settings(name, weights, image_px))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_a_connection_the_line_names_torchvisions_file_and_its_place(tmp_path: Path, offline: None) -> None:
    file = "resnet18-f37072fd.pth"
    assert refusal("resnet18", "imagenet") == (
        f"params.yaml: model.weights is imagenet, but https://download.pytorch.org/models/{file} could not be downloaded "
        f"(<urlopen error no network here>); save the file as {tmp_path}/torch/hub/checkpoints/{file}, "
        "or set weights to its path"
    )


def test_without_a_connection_the_line_names_timms_file(offline: None) -> None:
    line = refusal("timm/resnet10t", "imagenet")
    start = "params.yaml: model.weights is imagenet, but https://huggingface.co/timm/resnet10t.c3_in1k/model.safetensors could"
    assert line.startswith(f"{start} not be downloaded (")
    assert line.endswith("); download it elsewhere and set weights to its path")


def test_a_damaged_file_in_torchs_cache_is_named(tmp_path: Path, offline: None) -> None:
    cached(tmp_path, "resnet18", official("resnet18")).write_bytes(b"half a file")
    assert "could not be downloaded (damaged, or contains more than tensors); save the file as" in refusal(
        "resnet18", "imagenet"
    )


@pytest.mark.parametrize("name", ["cnn", "fieldnet", "timm/resnetblur18"])
def test_networks_without_published_weights_say_so(offline: None, name: str) -> None:
    assert refusal(name, "imagenet", 64) == (
        f"params.yaml: model.weights is imagenet, but {name} has no published weights; set it to none or to the path of a file"
    )


@pytest.mark.parametrize(
    ("theirs", "fault"),
    [
        (
            "resnet34",
            r"\d+ tensors are unexpected, first layer1\.2\.conv1\.weight \(the backbone has 120\); name the network .*",
        ),
        ("resnet50", r"\d+ of 120 tensors, first size mismatch for layer1\.0\.conv1\.weight: .*"),
        (
            "squeezenet1_1",
            r"\d+ tensors are missing, first conv1\.weight \(the backbone has 120\); name the network .*",
        ),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path: Path, theirs: str, fault: str) -> None:
    with torch.device("meta"):
        state = torchvision.models.get_model(theirs).state_dict()
    torch.save({key: torch.zeros(tensor.shape) for key, tensor in state.items()}, tmp_path / "other.pth")
    line = refusal("resnet18", tmp_path / "other.pth")
    start = f"params.yaml: model.weights is {tmp_path}/other.pth: {tmp_path}/other.pth does not fit resnet18: "
    assert re.fullmatch(re.escape(start) + fault, line)


def test_a_backbone_that_a_file_fills_in_part_is_refused(tmp_path: Path) -> None:
    state = official("resnet18").state_dict()
    del state["layer4.1.bn2.bias"]
    torch.save(state, tmp_path / "part.pth")
    assert "1 tensors are missing, first layer4.1.bn2.bias" in refusal("resnet18", tmp_path / "part.pth")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot be read as weights"),
        (b"text", r"cannot be read as weights \(damaged, or contains more than tensors\); use a state dict"),
        (Path("a path"), "contains no named tensors; use a state dict"),
        (torch.zeros(3), "contains no named tensors; use a state dict"),
        ({"epoch": 3}, "contains no named tensors; use a state dict"),
    ],
    ids=["empty", "text", "code", "one tensor", "no tensors"],
)
def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path, content: object, reason: str) -> None:
    source = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        source.write_bytes(content)
    else:
        torch.save(content, source)
    assert re.search(rf"^params\.yaml: model\.weights is .*{re.escape(str(source))} {reason}", refusal("resnet18", source))


def test_training_never_begins_with_weights_of_a_damaged_checkpoint(tmp_path: Path) -> None:
    source = tmp_path / "model.safetensors"
    save_checkpoint(source, build("cnn", 3), FACTS)
    load_weights(build("cnn", 3), settings("cnn", source))
    content = bytearray(source.read_bytes())
    content[-5] ^= 1
    source.write_bytes(content)
    assert refusal("cnn", source) == (
        f"params.yaml: model.weights is {source}: {source} is damaged, its checksum does not match; copy it again"
    )


@pytest.mark.parametrize("weights", ["~/own.safetensors", "own.safetensors"])
def test_a_file_of_weights_is_found_in_the_home_folder_or_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert weights_file(settings("cnn", weights)) == tmp_path / "own.safetensors"
    assert weights_file(settings("cnn", "none")) is weights_file(settings("cnn", "imagenet")) is None


def test_the_trainings_own_output_that_dvc_has_removed_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = refusal("cnn", tmp_path / "models" / "model.safetensors")
    assert said.endswith(
        ", which is the output of this stage; restore it (dvc checkout --force models/model.safetensors) and use a copy"
    )


def test_what_is_no_safetensors_file_or_is_not_there_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "weights.safetensors"
    assert refusal("cnn", source).endswith(f"{source} does not exist; use none, imagenet or the path of a file")
    source.write_bytes(b"text that is longer than a header's length")
    assert "cannot be read as weights (" in refusal("cnn", source)
    assert "cannot be read as weights (" in refusal("cnn", tmp_path)
