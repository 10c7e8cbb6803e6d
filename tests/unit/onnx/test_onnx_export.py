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
from onnx import numpy_helper

from fieldguide.core.errors import UserError
from fieldguide.network.calibration import Calibration
from fieldguide.network.models import NETWORKS, Classifier, build
from fieldguide.onnx import export as onnx_export
from fieldguide.onnx.classifier import OUTPUT_NAMES, OnnxClassifier
from fieldguide.onnx.export import ExportableNetwork, export
from support import ROOT
from support.exported import METADATA, N_CLASSES, TEMPERATURE, computed, network, pictures
from support.forked import FORKED, python_folder

EXPORT = """
import warnings
warnings.simplefilter("error")
from pathlib import Path
from support.exported import METADATA, computed, network
from fieldguide.onnx.export import export
export(computed(network("cnn", 16), 16), 16, 20, METADATA, Path("model.onnx"))
"""


def plain_probabilities(model: Classifier, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.softmax(model(images.permute(0, 3, 1, 2) / 255.0) / TEMPERATURE, dim=1)


@pytest.fixture(
    scope="module",
    params=[("cnn", 49), *(pytest.param((name, 32), marks=pytest.mark.slow) for name in NETWORKS if name != "cnn")],
    ids=lambda case: f"{case[0]}-{case[1]}",
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Classifier, int, Path]:
    """A network, its side (49: every pooling meets an odd side) and its ONNX file."""
    name, image_px = request.param
    model, target = network(name, image_px), tmp_path_factory.mktemp(name) / "models" / "model.onnx"
    export(computed(model, image_px), image_px, 20, METADATA | {"image_px": image_px}, target)
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


def test_the_file_takes_bytes_and_gives_its_outputs_for_any_batch(exported: tuple) -> None:
    model, image_px, target = exported
    graph = onnx.load(target).graph
    assert [value.name for value in graph.input] == ["images", "n_maps"]
    assert [numpy_helper.to_array(one).tolist() for one in graph.initializer if one.name == "n_maps"] == [[0]]  # its default
    assert tuple(value.name for value in graph.output) == OUTPUT_NAMES
    taken = graph.input[0].type.tensor_type
    assert taken.elem_type == onnx.TensorProto.UINT8
    assert [side.dim_value for side in taken.shape.dim] == [0, image_px, image_px, 3]
    n_features, map_px = model.head.in_features, model.features[:-2](torch.zeros(2, 3, image_px, image_px)).shape[2:]
    shapes = [[N_CLASSES], [n_features], [], ["n_maps", *map_px]]
    for given, shape in zip((value.type.tensor_type for value in graph.output), shapes, strict=True):
        assert given.elem_type == onnx.TensorProto.FLOAT
        assert [side.dim_param or side.dim_value for side in given.shape.dim] == ["batch", *shape]
    assert taken.shape.dim[0].dim_param == "batch"


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
    forbidden = [str(ROOT), str(Path.home()), sys.prefix, str(exported[2].parent), "site-packages", ".py", "stack_trace"]
    assert [text for text in forbidden if text.encode() in content] == []


def test_the_weights_lie_in_the_file(exported: tuple) -> None:
    model, _, target = exported
    n_bytes = sum(parameter.numel() * 4 for parameter in model.parameters())
    assert n_bytes * 0.99 < target.stat().st_size < n_bytes * 1.01 + 50_000
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.slow
def test_equal_networks_give_equal_bytes_in_every_process_and_folder(tmp_path: Path) -> None:
    export(computed(network("cnn", 16), 16), 16, 20, METADATA, tmp_path / "model.onnx")
    folder = tmp_path / "another folder"
    folder.mkdir()
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    command = [python_folder() / "python", "-c", FORKED + EXPORT]  # of a process with another seed of hashes
    assert subprocess.check_output(command, cwd=folder, env=environment, stderr=subprocess.STDOUT, text=True) == ""
    assert (folder / "model.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()


@pytest.mark.slow
def test_the_layout_in_memory_does_not_change_the_bytes(tmp_path: Path) -> None:
    model = network("cnn", 16)
    export(computed(model, 16), 16, 20, METADATA, tmp_path / "a.onnx")
    export(computed(model.to(memory_format=torch.channels_last), 16), 16, 20, METADATA, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 25])  # the ends of the range that params.yaml allows
def test_the_opset_is_the_one_asked_for(tmp_path: Path, opset: int) -> None:
    model, target, images = network("cnn", 16), tmp_path / "model.onnx", pictures(3, 16)
    export(computed(model, 16), 16, opset, METADATA | {"image_px": 16}, target)
    assert [(entry.domain, entry.version) for entry in onnx.load(target).opset_import] == [("", opset)]
    found = OnnxClassifier(target, n_threads=1).probabilities(images.numpy())
    assert np.allclose(found, plain_probabilities(model, images), atol=1e-5)


@pytest.mark.slow
def test_exporting_is_silent_and_leaves_warnings_and_logs_as_they_were(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    filters, logger = list(warnings.filters), logging.getLogger("torch.onnx")
    monkeypatch.setattr(logger, "level", logging.WARNING)
    export(computed(network("cnn", 16), 16), 16, 20, METADATA, tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")
    assert warnings.filters == filters
    assert logger.level == logging.WARNING


def test_what_is_exported_is_scaling_network_and_softmax() -> None:
    model, images = network("cnn", 16), pictures(4, 16)
    with torch.no_grad():
        found = computed(model, 16)(images)[0]
    torch.testing.assert_close(found, plain_probabilities(model, images), atol=5e-6, rtol=0)
    torch.testing.assert_close(found.sum(1), torch.ones(4))


@pytest.mark.slow
@pytest.mark.parametrize("tta", ["none", "mirror"])
def test_every_output_is_what_its_name_says_in_torch_and_in_onnx(tmp_path: Path, tta: str) -> None:
    """Worked out from the parts of the network, without `ExportableNetwork`."""
    model = network("fieldnet", 48)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "centre": torch.randn(model.head.in_features, generator=generator),
        "directions": torch.randn(model.head.in_features, N_CLASSES, generator=generator),
    }
    exported = ExportableNetwork(model, Calibration(tta, TEMPERATURE, 0.5, "cosine", 0.1, tensors), 48).eval()
    export(exported, 48, 20, METADATA | {"image_px": 48}, tmp_path / "model.onnx")
    classifier = OnnxClassifier(tmp_path / "model.onnx", n_threads=1)
    for n_images in (1, 2, 7):
        images = pictures(n_images, 48)
        with torch.no_grad():
            pixels = (images.permute(0, 3, 1, 2) / 255.0 - model.pixel_mean) / model.pixel_std
            views = [pixels, pixels.flip(3)] if tta == "mirror" else [pixels]
            embedding = torch.stack([model.features(view) for view in views]).mean(0)
            logits = torch.stack([model.head(model.features(view)) for view in views]).mean(0)
            activation = torch.einsum("kc,nchw->nkhw", model.head.weight, model.features[:-2](pixels))
            ranked = logits.argsort(1, descending=True)[:, :2]
            activation, every = activation[torch.arange(n_images)[:, None], ranked], activation
            centred = embedding - tensors["centre"]
            score = (centred / centred.norm(dim=1, keepdim=True) @ tensors["directions"]).max(1).values
            expected = [(logits / TEMPERATURE).softmax(1), embedding, score, activation]
            in_torch = exported(images, torch.tensor([2]))
            torch.testing.assert_close(exported.activation(images, ranked), activation, atol=1e-4, rtol=1e-4)
            assert len(exported(images)) == 3
        in_onnx = classifier.run(images.numpy(), OUTPUT_NAMES, n_maps=2)
        for name, wanted, *found in zip(OUTPUT_NAMES, expected, in_torch, in_onnx, strict=True):
            for output in found:
                torch.testing.assert_close(
                    torch.as_tensor(output), wanted, atol=1e-4 * float(wanted.abs().max()), rtol=1e-4, msg=name
                )
        mean = every.mean((2, 3)) + model.head.bias
        if tta == "none":
            torch.testing.assert_close(mean, logits, atol=1e-4, rtol=1e-4)  # which is why it is called so


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "image_px", "has_activation"),
    [
        ("resnet18", 64, True),
        ("timm/test_efficientnet", 64, True),
        ("timm/test_convnext", 64, False),  # a norm stands between average and head
        ("timm/test_vit", 160, False),
    ],
)
def test_networks_of_torchvision_and_timm_tell_where_they_looked_where_their_head_permits(
    tmp_path: Path, name: str, image_px: int, has_activation: bool
) -> None:
    torch.manual_seed(0)
    model, images = build(name, N_CLASSES, image_px).eval(), pictures(7, image_px)
    exported = computed(model, image_px, "mirror")
    assert exported.output_names == OUTPUT_NAMES[: 4 if has_activation else 3]
    export(exported, image_px, 20, METADATA | {"image_px": image_px}, tmp_path / "model.onnx")
    classifier = OnnxClassifier(tmp_path / "model.onnx", n_threads=1)
    assert classifier.has_activation == has_activation
    for part in (images[:1], images[:2], images):
        with torch.no_grad():
            expected = exported(part, *([torch.tensor([3])] if has_activation else []))
        for found, wanted in zip(classifier.run(part.numpy(), exported.output_names, n_maps=3), expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(found), wanted, atol=1e-4 * float(wanted.abs().max()), rtol=1e-3)


@pytest.mark.slow
def test_a_network_larger_than_one_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "MAX_BYTES", 1000)
    with pytest.raises(UserError, match=r"model.onnx: .* bytes, too large for one ONNX file; use a smaller model.name"):
        export(computed(network("cnn", 16), 16), 16, 20, METADATA, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
