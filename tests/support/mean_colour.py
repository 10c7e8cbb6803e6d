"""A network made by hand whose answers can be worked out, as a file."""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fieldguide.core.files import UNSEALED, seal

NAMES = ("RED", "GREEN", "BLUE", "DARK")
WEIGHT = np.array([[6, 0, 0, -2], [0, 6, 0, -2], [0, 0, 6, -2]], np.float32)  # mean RGB in 0..1 to logits
PX = 16
UNSURE_BELOW, UNKNOWN_BELOW = 0.6, 0.2
CALIBRATION = {"tta": "none", "temperature": 1.0, "unsure_below": UNSURE_BELOW, "score": "mean", "unknown_below": UNKNOWN_BELOW}
METADATA = {"class_names": NAMES, "image_px": PX, "calibration": CALIBRATION, "seal": UNSEALED}
TAXONOMY = {
    "RED": {"common_name": "Red admiral", "scientific_name": "Vanessa atalanta", "genus": "Vanessa"},
    "GREEN": {"genus": "Vanessa", "family": "Nymphalidae"},
    "BLUE": {"family": "Nymphalidae"},
}
YELLOW = (200, 200, 60)  # unsure, RED or GREEN: some Vanessa


def with_taxonomy(**taxa_below: float) -> dict[str, object]:
    """Metadata with `TAXONOMY` and the thresholds of ranks."""
    return METADATA | {"calibration": CALIBRATION | {"taxa_below": taxa_below}, "taxonomy": TAXONOMY}


def mean_colour_network(
    metadata: object = METADATA, n_outputs: int = len(NAMES), activation: bool = True, every_map: bool = False
) -> onnx.ModelProto:
    """The softmax of `WEIGHT` times the mean colour; `metadata` None leaves them out.

    Its embedding is the mean colour, its known score the mean of that, its activation `WEIGHT` times the colour of each of
    16 squares: of the `n_maps` most probable classes, or, with `every_map`, of all, as older files do.
    """
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["mean"], keepdims=0),
        helper.make_node("Div", ["mean", "full"], ["embedding"]),
        helper.make_node("MatMul", ["embedding", "weight"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("ReduceMean", ["embedding", "one"], ["known_score"], keepdims=0),
        helper.make_node("Div", ["floats", "full"], ["shares"]),
        helper.make_node("Transpose", ["shares"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["planes"], ["squares"], kernel_shape=[PX // 4] * 2, strides=[PX // 4] * 2),
    ]
    outputs: dict[str, list[int | str]] = {"probabilities": [n_outputs], "embedding": [3], "known_score": []}
    inputs = [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", PX, PX, 3])]
    if not activation:
        nodes = nodes[:6]
    elif every_map:
        nodes.append(helper.make_node("Conv", ["squares", "kernels"], ["activation"]))
        outputs["activation"] = [n_outputs, 4, 4]
    else:
        nodes += [
            helper.make_node("TopK", ["probabilities", "n_maps"], ["highest", "classes"]),
            helper.make_node("Gather", ["by_class", "classes"], ["weights"]),
            helper.make_node("Reshape", ["squares", "flat"], ["flat_squares"]),
            helper.make_node("MatMul", ["weights", "flat_squares"], ["flat_activation"]),
            helper.make_node("Reshape", ["flat_activation", "unflat"], ["activation"]),
        ]
        inputs.append(helper.make_tensor_value_info("n_maps", TensorProto.INT64, [1]))
        outputs["activation"] = ["n_maps", 4, 4]
    constants = {
        "axes": np.array([1, 2]),
        "one": np.array([1]),
        "full": np.array(255, np.float32),
        "weight": WEIGHT[:, :n_outputs].copy(),
        "kernels": WEIGHT.T[:n_outputs, :, None, None].copy(),
        "by_class": WEIGHT.T[:n_outputs].copy(),
        "n_maps": np.array([0]),
        "flat": np.array([0, 3, 16]),
        "unflat": np.array([0, 0, 4, 4]),
    }
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "mean_colour",
        inputs,
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape]) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in constants.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    if metadata is not None:
        text = metadata if isinstance(metadata, str) else json.dumps(metadata)
        helper.set_model_props(model, {"fieldguide": text})
    onnx.checker.check_model(model, full_check=True)
    return model


def save(folder: Path, model: onnx.ModelProto) -> Path:
    target = folder / "model.onnx"
    target.write_bytes(seal(model.SerializeToString()))
    return target


def expected_probabilities(pixels: np.ndarray) -> np.ndarray:
    logits = pixels.mean(axis=(1, 2)) / 255 @ WEIGHT.astype(np.float64)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
