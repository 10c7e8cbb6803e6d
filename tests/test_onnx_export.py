"""torch and ONNX give the same answers at every batch size, and the file depends on nothing but the network."""

import json
import logging
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import ROOT

from fieldguide.classifier import OnnxClassifier
from fieldguide.models import NETWORKS, Classifier, build
from fieldguide.onnx_export import Exported, export

N_CLASSES = 6
METADATA = {"class_names": ["a", "b", "c", "Schöner Käfer", "孔雀蛺蝶", "f"], "image_px": 32, "model": "any"}
EXPORT = """
from pathlib import Path
from test_onnx_export import METADATA, network
from fieldguide.onnx_export import export
export(network("cnn", 16), 16, 20, METADATA, Path("model.onnx"))
"""


def pictures(n_images: int, image_px: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n_images)
    coarse = torch.rand(n_images, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (image_px, image_px), mode="bilinear")
    return (smooth * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def network(name: str, image_px: int) -> Classifier:
    """A network whose norms have seen data and whose answers differ from picture to picture."""
    torch.manual_seed(0)
    model, pixels = build(name, N_CLASSES).train(), pictures(64, image_px).permute(0, 3, 1, 2) / 255.0
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.2)
        for _ in range(3):
            model(pixels)
        logits = model.eval()(pixels)
        model.head.weight.mul_(2 / logits.std(0)[:, None])
        model.head.bias.sub_(logits.mean(0)).mul_(2 / logits.std(0))
    return model


def plain_probabilities(model: Classifier, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.softmax(model(images.permute(0, 3, 1, 2) / 255.0), dim=1)


@pytest.fixture(
    scope="module", params=[(name, px) for name in NETWORKS for px in (32, 49)], ids=lambda case: f"{case[0]}-{case[1]}"
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Classifier, int, Path]:
    """A network, its side (49: every pooling meets an odd side) and its ONNX file."""
    name, image_px = request.param
    model, target = network(name, image_px), tmp_path_factory.mktemp(name) / "models" / "model.onnx"
    export(model, image_px, 20, METADATA | {"image_px": image_px}, target)
    return model, image_px, target


@pytest.mark.parametrize("batch_size", [1, 2, 7, 64])
def test_onnx_runtime_answers_as_torch_does_at_every_batch_size(exported: tuple, batch_size: int) -> None:
    model, image_px, target = exported
    images = pictures(batch_size, image_px)
    expected = plain_probabilities(model, images)
    found = torch.from_numpy(OnnxClassifier(target, n_threads=1).probabilities(images.numpy()))
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=0)  # rounding, magnified by the head
    assert torch.equal(found.argmax(1), expected.argmax(1))
    if batch_size == 64:
        assert expected.max(1).values.max() > 0.5  # else agreement would say little
        assert len(expected.argmax(1).unique()) > 1


def test_the_file_takes_bytes_and_gives_probabilities_for_any_batch(exported: tuple) -> None:
    _, image_px, target = exported
    graph = onnx.load(target).graph
    assert [value.name for value in graph.input] == ["images"]
    assert [value.name for value in graph.output] == ["probabilities"]
    taken, given = graph.input[0].type.tensor_type, graph.output[0].type.tensor_type
    assert (taken.elem_type, given.elem_type) == (onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT)
    assert [side.dim_value for side in taken.shape.dim] == [0, image_px, image_px, 3]
    assert [side.dim_value for side in given.shape.dim] == [0, N_CLASSES]
    assert taken.shape.dim[0].dim_param == given.shape.dim[0].dim_param != ""


def test_the_metadata_are_one_json_text(exported: tuple) -> None:
    _, image_px, target = exported
    properties = {entry.key: entry.value for entry in onnx.load(target).metadata_props}
    assert list(properties) == ["fieldguide"]
    found = json.loads(properties["fieldguide"])
    assert re.fullmatch("sha256:[0-9a-f]{64}", found.pop("seal"))
    assert found == METADATA | {"image_px": image_px}


def test_the_file_names_nothing_of_the_machine_that_wrote_it(exported: tuple) -> None:
    model = onnx.load(exported[2])
    for weight in model.graph.initializer:  # whose bytes spell anything, by chance
        weight.ClearField("raw_data")
    content = model.SerializeToString()
    told = [str(ROOT), str(Path.home()), sys.prefix, str(exported[2].parent), "site-packages", ".py", "stack_trace"]
    assert [text for text in told if text.encode() in content] == []


def test_the_weights_lie_in_the_file(exported: tuple) -> None:
    model, _, target = exported
    n_bytes = sum(parameter.numel() * 4 for parameter in model.parameters())
    assert n_bytes * 0.99 < target.stat().st_size < n_bytes * 1.01 + 50_000
    assert list(target.parent.iterdir()) == [target]


def test_equal_networks_give_equal_bytes_in_every_process_and_folder(tmp_path: Path) -> None:
    export(network("cnn", 16), 16, 20, METADATA, tmp_path / "model.onnx")
    folder = tmp_path / "another folder"
    folder.mkdir()
    environment = os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    command = [sys.executable, "-W", "error", "-c", EXPORT]
    assert subprocess.check_output(command, cwd=folder, env=environment, stderr=subprocess.STDOUT, text=True) == ""
    assert (folder / "model.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()


def test_the_layout_in_memory_does_not_change_the_bytes(tmp_path: Path) -> None:
    model = network("cnn", 16)
    export(model, 16, 20, METADATA, tmp_path / "a.onnx")
    export(model.to(memory_format=torch.channels_last), 16, 20, METADATA, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.parametrize("opset", [18, 25])  # the ends of the range that params.yaml allows
def test_the_opset_is_the_one_asked_for(tmp_path: Path, opset: int) -> None:
    model, target, images = network("fieldnet", 16), tmp_path / "model.onnx", pictures(3, 16)
    export(model, 16, opset, METADATA | {"image_px": 16}, target)
    assert [(entry.domain, entry.version) for entry in onnx.load(target).opset_import] == [("", opset)]
    found = OnnxClassifier(target, n_threads=1).probabilities(images.numpy())
    assert np.allclose(found, plain_probabilities(model, images), atol=1e-5)


def test_exporting_is_silent_and_leaves_warnings_and_logs_as_they_were(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    filters, logger = list(warnings.filters), logging.getLogger("torch.onnx")
    monkeypatch.setattr(logger, "level", logging.WARNING)
    export(network("cnn", 16), 16, 20, METADATA, tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")
    assert warnings.filters == filters
    assert logger.level == logging.WARNING


def test_what_is_exported_is_scaling_network_and_softmax() -> None:
    model, images = network("cnn", 16), pictures(4, 16)
    with torch.no_grad():
        found = Exported(model).eval()(images)
    torch.testing.assert_close(found, plain_probabilities(model, images), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.sum(1), torch.ones(4))
