"""Smaller forms: the same inputs and outputs, nearly the same answers, fewer bytes, and the head left as it was."""

from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest

from fieldguide.onnx import sample as samples
from fieldguide.onnx.classifier import OUTPUT_NAMES, OnnxClassifier
from fieldguide.onnx.export import export, save_model
from fieldguide.onnx.metadata import split_accuracy
from fieldguide.onnx.quantize import METHODS, beside_embedding, quiet, smaller_forms, to_fp16, to_int8, write_forms
from fieldguide.onnx.sample import draw
from support.exported import METADATA, computed, network, pictures

pytestmark = pytest.mark.slow  # test_pipeline makes both forms in the fast lane
PX = 48


@pytest.fixture(scope="module", params=["none", "mirror"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp(request.param) / "model.onnx"
    export(computed(network("fieldnet", PX), PX, request.param), PX, 20, METADATA | {"image_px": PX}, target)
    return target


@pytest.fixture(scope="module")
def forms(source: Path) -> dict[str, Path]:
    pixels = pictures(64, PX).numpy()
    with quiet():
        made = {"fp16": to_fp16(source)} | {method: to_int8(source, pixels, method) for method in METHODS}
    for name, form in made.items():
        save_model(form, METADATA | {"image_px": PX}, source.with_name(f"{name}.onnx"))
    return {name: source.with_name(f"{name}.onnx") for name in made}


@pytest.mark.parametrize(
    ("form", "share", "tolerance", "agreement"),  # of a network that has learned nothing: its first answers are close together
    [("fp16", 0.51, 0.01, 0.9), ("entropy", 0.27, 0.2, 0.8), ("percentile", 0.27, 0.2, 0.8)],
)
def test_a_smaller_form_answers_nearly_as_the_whole(
    source: Path, forms: dict[str, Path], form: str, share: float, tolerance: float, agreement: float
) -> None:
    images = pictures(64, PX).numpy()
    whole, small = OnnxClassifier(source, n_threads=1), OnnxClassifier(forms[form], n_threads=1)
    expected, found = whole.probabilities(images), small.probabilities(images)
    assert np.abs(found - expected).max() < tolerance
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() > agreement
    assert small.file_bytes < share * whole.file_bytes + 30_000
    for n_images in (1, 2, 7):
        outputs, of_whole = (one.run(images[:n_images], OUTPUT_NAMES, n_maps=1) for one in (small, whole))
        assert [output.dtype for output in outputs] == [np.float32] * 4
        assert outputs[0] == pytest.approx(found[:n_images], abs=1e-3)
        same = outputs[0].argmax(axis=1) == of_whole[0].argmax(axis=1)
        assert outputs[3][same] == pytest.approx(of_whole[3][same], abs=0.5 * float(np.abs(of_whole[3]).max()))
        assert small.run(images[:n_images], ["activation"])[0].size == 0


@pytest.mark.parametrize("form", ["fp16", *METHODS])
def test_what_the_embedding_does_not_need_is_computed_in_fp32(source: Path, forms: dict[str, Path], form: str) -> None:
    names = beside_embedding(onnx.load(source))
    kinds = {node.name: node.op_type for node in onnx.load(source).graph.node}
    assert {"Gemm", "Softmax", "TopK", "MatMul"} <= {kinds[name] for name in names}
    model = onnx.load(forms[form])
    model = onnx.shape_inference.infer_shapes(model)
    types = {weight.name: weight.data_type for weight in model.graph.initializer}
    types |= {value.name: value.type.tensor_type.elem_type for value in (*model.graph.value_info, *model.graph.output)}
    inputs = {node.name: {types[name] for name in node.input} for node in model.graph.node if node.name in names}
    assert set(inputs) == set(names)
    assert set().union(*inputs.values()) == {onnx.TensorProto.INT64, onnx.TensorProto.FLOAT}  # INT64: shapes and classes
    for node in model.graph.node:
        if node.op_type in ("Gemm", "Softmax", "MatMul"):
            assert inputs[node.name] == {onnx.TensorProto.FLOAT}


@pytest.mark.parametrize("method", METHODS)
def test_convolutions_are_in_bytes_with_a_scale_for_each_channel(forms: dict[str, Path], method: str) -> None:
    graph = onnx.load(forms[method]).graph
    kinds = {weight.name: weight for weight in graph.initializer}
    made_by = {output: node for node in graph.node for output in node.output}
    quantized = [node for node in graph.node if node.op_type == "Conv" and made_by.get(node.input[1])]
    assert len(quantized) == 14  # all of fieldnet's
    for node in quantized:
        weight = made_by[node.input[1]]
        assert weight.op_type == "DequantizeLinear"
        assert kinds[weight.input[0]].data_type == onnx.TensorProto.INT8
        assert list(kinds[weight.input[1]].dims) == [kinds[weight.input[0]].dims[0]]
        assert made_by[node.input[0]].op_type == "DequantizeLinear"


def test_the_best_method_on_valid_is_taken_and_equal_images_give_equal_bytes(
    source: Path, forms: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, pixels = source.read_bytes(), pictures(64, PX).numpy()
    targets = OnnxClassifier(source, n_threads=1).probabilities(pixels).argmax(axis=1)  # as if it were always right
    rows = pd.DataFrame({"given_label": pd.array(targets, dtype="Int64"), "sha256": [f"{number:02d}" for number in range(64)]})
    monkeypatch.setattr(samples, "decode_pixels", lambda *_, **__: pixels)
    sample = draw(rows, targets, tmp_path, PX, 1)
    evaluate = split_accuracy("test", 64, 64).as_dict()
    found = smaller_forms(source, METADATA | {"image_px": PX, "evaluate": evaluate}, pixels, sample)
    own = {method: OnnxClassifier(forms[method], n_threads=1).probabilities(pixels).argmax(axis=1) for method in METHODS}
    shares = {method: float((predicted == targets).mean()) for method, predicted in own.items()}
    assert found.valid_accuracy == shares
    assert shares[found.method] == max(shares.values())
    metadata = METADATA | {"image_px": PX, "evaluate": evaluate}
    fp16, int8 = write_forms(found, tmp_path / "fp16.onnx", tmp_path / "int8.onnx", metadata, sample)
    assert int8.accuracy == shares[found.method]
    assert (fp16.bytes, int8.bytes) == tuple((tmp_path / f"{form}.onnx").stat().st_size for form in ("fp16", "int8"))
    written = OnnxClassifier(tmp_path / "int8.onnx").metadata
    assert (written["precision"], written["method"]) == ("int8", found.method)
    assert written["evaluate"]["accuracy"] == int8.accuracy
    for form, target in ((found.int8, found.method), (found.fp16, "fp16")):
        del form.metadata_props[:]
        save_model(form, METADATA | {"image_px": PX}, tmp_path / "again.onnx")
        assert (tmp_path / "again.onnx").read_bytes() == forms[target].read_bytes()
    assert source.read_bytes() == before
    assert capfd.readouterr() == ("", "")
