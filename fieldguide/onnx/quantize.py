"""Smaller model files: fp16 for GPUs, static INT8 for CPUs with INT8 dot products (VNNI).

Both compute everything after the embedding (head, softmax, known score, activation) in fp32: it costs almost nothing, and the
range of scores exceeds half precision.
"""

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from fieldguide.core.artifacts import Int8Form, SmallerForm
from fieldguide.onnx.classifier import INPUT_NAME, OnnxClassifier
from fieldguide.onnx.export import save_model, silence
from fieldguide.onnx.metadata import split_accuracy
from fieldguide.onnx.proof import BATCH_SIZES

METHODS = {  # calibration methods, which choose the range of an activation from its distribution on the calibration images
    "entropy": (CalibrationMethod.Entropy, {}),
    "percentile": (CalibrationMethod.Percentile, {"CalibPercentile": 99.99}),
}
BATCH = 4  # calibration images at a time; all their activations are in memory


class Labelled(NamedTuple):
    """Images, uint8 `[N, H, W, 3]`, and their classes, int64 `[N]`."""

    pixels: np.ndarray
    targets: np.ndarray


def write_fp16(source: Path, target: Path, metadata: dict[str, Any], held_out: Labelled) -> SmallerForm:
    """Writes the fp16 form of `source`; returns its accuracy on the held-out images and its size."""
    return _write(to_fp16(source), target, metadata | {"precision": "fp16"}, held_out)


def write_int8(
    source: Path, target: Path, metadata: dict[str, Any], calibration: np.ndarray, valid: Labelled, held_out: Labelled
) -> Int8Form:
    """Writes the INT8 form of `source`, calibrated on `calibration`, uint8 `[N, H, W, 3]`, by the best method on valid."""
    forms = {method: to_int8(source, calibration, method) for method in METHODS}
    scores = {method: _score(form, metadata, valid) for method, form in forms.items()}
    method = max(scores, key=lambda name: scores[name])
    written = _write(forms[method], target, metadata | {"precision": "int8", "method": method}, held_out)
    valid_accuracy = {name: n_right / len(valid.targets) for name, (n_right, _) in scores.items()}
    return Int8Form(accuracy=written.accuracy, bytes=written.bytes, method=method, valid_accuracy=valid_accuracy)


def _write(form: onnx.ModelProto, target: Path, metadata: dict[str, Any], held_out: Labelled) -> SmallerForm:
    """Writes a form with its own accuracy in the metadata."""
    n_right, _ = _score(form, metadata, held_out)
    accuracy = split_accuracy(metadata["evaluate"]["split"], n_right, len(held_out.targets))
    save_model(form, metadata | {"evaluate": accuracy.as_dict()}, target)
    return SmallerForm(accuracy=accuracy.accuracy, bytes=target.stat().st_size)


def _score(form: onnx.ModelProto, metadata: dict[str, Any], images: Labelled) -> tuple[int, float]:
    """The number of right predictions, and minus the mean cross-entropy, which breaks ties."""
    with tempfile.TemporaryDirectory() as folder:
        save_model(form, metadata, Path(folder, "form.onnx"))
        classifier = OnnxClassifier(Path(folder, "form.onnx"))
    pixels, targets = images
    size = max(BATCH_SIZES)
    parts = [classifier.probabilities(pixels[start : start + size]) for start in range(0, len(pixels), size)]
    probabilities = np.concatenate(parts)
    of_truth = probabilities[np.arange(len(targets)), targets]
    n_right = int((probabilities.argmax(axis=1) == targets).sum())
    return n_right, float(np.log(np.maximum(of_truth, 1e-12)).mean())


class _Images(CalibrationDataReader):
    """Calibration images in batches, for ONNX Runtime."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return -(-len(self.pixels) // BATCH)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Called once for each batch, because of `CalibStridedMinMax`."""
        self.batches = [self.pixels[BATCH * start_index : BATCH * end_index]]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return {INPUT_NAME: self.batches.pop()} if self.batches else None


def to_int8(source: Path, pixels: np.ndarray, method: str) -> onnx.ModelProto:
    """Weights int8 per channel, activations uint8 with ranges calibrated on `pixels`, uint8 `[N, H, W, 3]`; QDQ format."""
    calibrate_method, options = METHODS[method]
    with tempfile.TemporaryDirectory() as folder, silence():
        target = Path(folder, "int8.onnx")
        quantize_static(
            source,
            target,
            _Images(pixels),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,  # without VNNI, sums of two 8-bit products saturate (ONNX Runtime, "Quantize ONNX models")
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=calibrate_method,
            nodes_to_exclude=after_embedding(onnx.load(source)),
            extra_options=options | {"CalibStridedMinMax": 1},  # a histogram after each batch, not at the end
        )
        return _without_types(onnx.load(target))


def to_fp16(source: Path) -> onnx.ModelProto:
    """Weights and activations in half precision; inputs and outputs keep their types."""
    model = onnx.load(source)
    with silence():
        converted = OnnxModel(convert_float_to_float16(model, keep_io_types=True, node_block_list=after_embedding(model)))
    _drop_repeated_casts(converted.model.graph)
    converted.topological_sort()  # the converter appends its casts
    return _without_types(converted.model)


def _without_types(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the types of inner values, which the tools do not update."""
    del model.graph.value_info[:]
    return model


def _drop_repeated_casts(graph: onnx.GraphProto) -> None:
    """Removes repeated casts: the converter adds one per use of a value, each with the same output name."""
    outputs: set[str] = set()
    for node in list(graph.node):
        if node.op_type == "Cast" and node.output[0] in outputs:
            graph.node.remove(node)
        outputs |= set(node.output)


def after_embedding(model: onnx.ModelProto) -> list[str]:
    """The names of the nodes that depend on the embedding, and of the node that computes the activation."""
    known = {"embedding"}
    names = []
    for node in model.graph.node:  # in the order of computation
        if known & set(node.input) or "activation" in node.output:
            known |= set(node.output)
            names.append(node.name)
    return names
