"""Smaller model files: fp16 for GPUs, static INT8 for CPUs with INT8 dot products (VNNI).

Both compute what the embedding does not need (head, softmax, known score, activation) in fp32: it costs almost nothing, and
the range of scores exceeds half precision.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel
from tqdm import tqdm

from fieldguide.core.artifacts import Int8Form, SmallerForm
from fieldguide.onnx.classifier import INPUT_NAME, MAPS_NAME, OnnxClassifier
from fieldguide.onnx.export import save_model, silence
from fieldguide.onnx.metadata import split_accuracy
from fieldguide.onnx.sample import ImageSample, Score, scores

METHODS = {  # calibration methods, which choose the range of an activation from its distribution on the calibration images
    "entropy": (CalibrationMethod.Entropy, {}),
    "percentile": (CalibrationMethod.Percentile, {"CalibPercentile": 99.99, "CalibTensorRangeSymmetric": False}),
}
LOG_WARNINGS, LOG_ERRORS = 2, 3  # severities of ONNX Runtime; the first is its default
BATCH = 4  # calibration images at a time; all their activations are in memory


@dataclass(frozen=True)
class SmallerForms:
    """The fp16 and INT8 forms of a file; `method` is the calibration method of the latter, the best one on valid.

    valid_accuracy: of INT8 by each method.
    """

    fp16: onnx.ModelProto
    int8: onnx.ModelProto
    method: str
    valid_accuracy: dict[str, float]


def smaller_forms(source: Path, metadata: dict[str, Any], calibration: np.ndarray, valid: ImageSample) -> SmallerForms:
    """Both forms of `source`; INT8 is calibrated on `calibration`, uint8 `[N, H, W, 3]`, by the best method on valid."""
    n_images = len(METHODS) * len(calibration)
    with (
        tqdm(total=n_images, unit="image", desc="ranges for INT8", disable=None) as progress,
        quiet(),
        ThreadPoolExecutor(len(METHODS)) as pool,  # NumPy and ONNX Runtime compute without the GIL
    ):

        def done(n_images: int) -> None:
            with progress.get_lock():  # `update` is not safe in threads
                progress.update(n_images)

        each = pool.map(lambda method: to_int8(source, calibration, method, done), METHODS)
        forms = dict(zip(METHODS, each, strict=True))
    found = _scores(forms, metadata, valid)
    method = max(found, key=lambda name: found[name])
    valid_accuracy = {name: score.n_right / len(valid) for name, score in found.items()}
    return SmallerForms(to_fp16(source), forms[method], method, valid_accuracy)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppresses what the tools of ONNX Runtime print and log in the block."""
    with silence():
        onnxruntime.set_default_logger_severity(LOG_ERRORS)
        try:
            yield
        finally:
            onnxruntime.set_default_logger_severity(LOG_WARNINGS)


def write_forms(
    forms: SmallerForms, fp16: Path, int8: Path, metadata: dict[str, Any], held_out: ImageSample
) -> tuple[SmallerForm, Int8Form]:
    """Writes both forms, each with its own accuracy on the held-out images in its metadata; returns accuracies and sizes."""
    split = metadata["evaluate"]["split"]
    found = _scores({"fp16": forms.fp16, "int8": forms.int8}, metadata, held_out)
    own = {"fp16": {"precision": "fp16"}, "int8": {"precision": "int8", "method": forms.method}}
    small = {}
    for name, form, target in (("fp16", forms.fp16, fp16), ("int8", forms.int8, int8)):
        accuracy = split_accuracy(split, found[name].n_right, len(held_out))
        save_model(form, metadata | own[name] | {"evaluate": accuracy.as_dict()}, target)
        small[name] = SmallerForm(accuracy=accuracy.accuracy, bytes=target.stat().st_size)
    of_int8 = Int8Form(**small["int8"].as_dict(), method=forms.method, valid_accuracy=forms.valid_accuracy)
    return small["fp16"], of_int8


def _scores(forms: Mapping[str, onnx.ModelProto], metadata: dict[str, Any], sample: ImageSample) -> dict[str, Score]:
    classifiers = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, form in forms.items():
            save_model(form, metadata, Path(folder, "form.onnx"))
            classifiers[name] = OnnxClassifier(Path(folder, "form.onnx"))
    return scores({name: classifier.probabilities for name, classifier in classifiers.items()}, sample)


class _Images(CalibrationDataReader):
    """Calibration images in batches, for ONNX Runtime; asks for one activation map, as an empty one has no range."""

    def __init__(self, pixels: np.ndarray, has_activation: bool, done: Callable[[int], object]) -> None:
        self.pixels, self.done = pixels, done
        self.asked = {MAPS_NAME: np.array([1])} if has_activation else {}

    def __len__(self) -> int:
        return -(-len(self.pixels) // BATCH)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Called once for each batch, because of `CalibStridedMinMax`."""
        self.batches = [self.pixels[BATCH * start_index : BATCH * end_index]]

    def get_next(self) -> dict[str, np.ndarray] | None:
        if not self.batches:
            return None
        batch = self.batches.pop()
        self.done(len(batch))
        return {INPUT_NAME: batch} | self.asked


def to_int8(
    source: Path, pixels: np.ndarray, method: str, done: Callable[[int], object] = lambda n_images: None
) -> onnx.ModelProto:
    """Weights int8 per channel, activations uint8 with ranges calibrated on `pixels`, uint8 `[N, H, W, 3]`; QDQ format.

    `done` is called with the number of images of each batch. Prints and warns outside of `quiet`, which acts on all threads and
    is therefore the caller's.
    """
    calibrate_method, options = METHODS[method]
    model = onnx.load(source)
    with tempfile.TemporaryDirectory() as folder:
        own, target = Path(folder, source.name), Path(folder, "int8.onnx")
        own.write_bytes(source.read_bytes())  # ONNX Runtime writes files beside it
        quantize_static(
            own,
            target,
            _Images(pixels, len(model.graph.input) > 1, done),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,  # without VNNI, sums of two 8-bit products saturate (ONNX Runtime, "Quantize ONNX models")
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=calibrate_method,
            nodes_to_exclude=beside_embedding(model),
            extra_options=options | {"CalibStridedMinMax": 1},  # a histogram after each batch, not at the end
        )
        return _without_types(onnx.load(target))


def to_fp16(source: Path) -> onnx.ModelProto:
    """Weights and activations in half precision; inputs and outputs keep their types."""
    model = onnx.load(source)
    with silence():
        converted = OnnxModel(convert_float_to_float16(model, keep_io_types=True, node_block_list=beside_embedding(model)))
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


def beside_embedding(model: onnx.ModelProto) -> list[str]:
    """The names of the nodes that the embedding does not depend on: head, softmax, known score and activation."""
    needed, names = {"embedding"}, []
    for node in reversed(model.graph.node):  # against the order of computation
        if needed & set(node.output):
            needed |= set(node.input)
        else:
            names.append(node.name)
    return names[::-1]
