"""torch to `model.onnx`: uint8 images in, predictions out, with metadata for users of the file."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from fieldguide.core.errors import UserError
from fieldguide.core.files import UNSEALED, seal, write_bytes
from fieldguide.network.calibration import Calibration, KnownScore
from fieldguide.network.models import Classifier, averaged_map
from fieldguide.onnx.classifier import INPUT_NAME, MAPS_NAME, METADATA_KEY, OUTPUT_NAMES

PRODUCER = "fieldguide"
EXAMPLE_BATCH = 2  # the exporter would make a dynamic dimension of size 1 static
MAX_BYTES = 2**31 - 1  # of a protobuf message; a larger model needs a second file


class ExportableNetwork(nn.Module):
    """The computation of the ONNX file: normalisation, network, test-time augmentation, calibration and activation maps.

    Class activation maps (Zhou et al. 2016, arXiv:1512.04150) exist if the embedding is the mean of a feature map.
    """

    def __init__(self, model: Classifier, calibration: Calibration, image_px: int) -> None:
        super().__init__()
        self.model = model
        self.mirror = calibration.tta == "mirror"
        self.temperature = calibration.temperature
        self.known_score = KnownScore(calibration)
        self.map_name = averaged_map(model.features, image_px)
        self.mean, self.std = (  # of a row of pixels, in 0..255
            255 * values.flatten().repeat(image_px) for values in (model.pixel_mean, model.pixel_std)
        )

    @property
    def output_names(self) -> tuple[str, ...]:
        return OUTPUT_NAMES if self.map_name is not None else OUTPUT_NAMES[:-1]

    def forward(self, images: torch.Tensor, n_maps: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """uint8 `[N, H, W, 3]`, RGB, to the outputs that `output_names` lists, float32.

        probabilities `[N, K]`, embedding `[N, F]`, known_score `[N]`, and with `n_maps`, int64 `[1]`, the activation
        `[N, n_maps, h, w]` of that many of the most probable classes, best first.
        """
        embedding, feature_map = self._embed(images)
        logits = self.model.head(embedding)  # linear: equals the mean of the logits
        probabilities = (logits / self.temperature).softmax(dim=1)
        outputs = (probabilities, embedding, self.known_score(logits, embedding))
        if n_maps is None:
            return outputs
        n = n_maps.item()
        torch._check(n >= 0)  # for the exporter, which does not know the number
        torch._check(n <= probabilities.shape[1])
        return (*outputs, self._maps(feature_map, probabilities.topk(n, dim=1).indices))

    def activation(self, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """The activation maps of `classes`, int64 `[N, M]`, for images as in `forward`: float32 `[N, M, h, w]`."""
        return self._maps(self._embed(images)[1], classes)

    def _maps(self, feature_map: torch.Tensor | None, classes: torch.Tensor) -> torch.Tensor:
        assert feature_map is not None  # only networks with a map are asked for one
        weights = self.model.head.weight.index_select(0, classes.flatten())  # [...] would be exported with a copy of them
        weights = weights.unflatten(0, classes.shape)
        return (weights @ feature_map.flatten(2)).unflatten(2, feature_map.shape[2:])

    def _embed(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The embedding `[N, F]`, the mean over the views, and the feature map `[N, F, h, w]` of the unmirrored one."""
        pixels = self._normalised(images)
        embedding, feature_map = self._features(torch.cat([pixels, pixels.flip(3)]) if self.mirror else pixels)
        if self.mirror:
            embedding = embedding.unflatten(0, (2, -1)).mean(dim=0)
            feature_map = None if feature_map is None else feature_map[: images.shape[0]]
        return embedding, feature_map

    def _normalised(self, images: torch.Tensor) -> torch.Tensor:
        """float32 `[N, 3, H, W]`, by whole rows: ONNX Runtime is slow with three values, one for each channel.

        A difference and a quotient, since the INT8 form would quantise a product and a sum.
        """
        rows = (images.flatten(2).float() - self.mean) / self.std
        return rows.unflatten(2, images.shape[2:]).permute(0, 3, 1, 2)

    def _features(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The embedding `[N, F]`, and the feature map `[N, F, h, w]` whose mean it is, if there is one."""
        if self.map_name is None:
            return self.model.features(pixels), None
        maps: list[torch.Tensor] = []
        source = self.model.features.get_submodule(self.map_name)
        handle = source.register_forward_hook(lambda _, __, output: maps.append(output))
        try:
            return self.model.features(pixels), maps[-1]
        finally:
            handle.remove()


@torch.inference_mode()
def probabilities_of(exported: ExportableNetwork, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The probabilities, float32 `[B, K]`, of each batch of uint8 `[B, H, W, 3]`, RGB, by torch."""
    for pixels in batches:
        yield exported(torch.from_numpy(pixels))[0].numpy()


def torch_probabilities(
    model: Classifier, calibration: Calibration, compiled: bool = False
) -> Callable[[np.ndarray], np.ndarray]:
    """A function from uint8 `[N, H, W, 3]`, RGB, to probabilities, float32 `[N, K]`, by torch on the model's device."""
    device = next(model.parameters()).device
    model = model.eval().to(memory_format=torch.channels_last)
    network = torch.compile(model) if compiled else model

    @torch.inference_mode()
    def predict(images: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255
        logits = network(pixels)
        if calibration.tta == "mirror":
            logits = (logits + network(pixels.flip(3))) / 2
        return (logits / calibration.temperature).softmax(dim=1).cpu().numpy()

    return predict


def export(exported: ExportableNetwork, image_px: int, opset: int, metadata: dict[str, Any], target: Path) -> None:
    """Writes the ONNX file, atomically; equal networks give equal bytes.

    `metadata` is stored as JSON under the key `fieldguide` of the file's metadata. Raises `UserError` for a network that is
    too large for one file.
    """
    example = (torch.zeros(EXAMPLE_BATCH, image_px, image_px, 3, dtype=torch.uint8),)
    asked = (torch.tensor([EXAMPLE_BATCH]),) if exported.map_name is not None else ()
    for module in exported.modules():  # the exporter takes apart what changes its input, ReLU6 for a tenth of a second each
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    with silence():
        program = torch.onnx.export(
            exported.eval(),
            example + asked,
            input_names=[INPUT_NAME, MAPS_NAME][: 1 + len(asked)],
            output_names=list(exported.output_names),
            dynamic_shapes=({0: torch.export.Dim("batch")}, None)[: 1 + len(asked)],
            opset_version=opset,
            dynamo=True,
            optimize=True,
        )
    assert program is not None  # with dynamo=True
    proto = program.model_proto  # made at each access
    if asked:
        _make_maps_optional(proto.graph)
    save_model(proto, metadata, target)


def _make_maps_optional(graph: onnx.GraphProto) -> None:
    """Gives the input `n_maps` the default 0, an initializer of its name, and names the dimension that it determines."""
    graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.int64), MAPS_NAME))
    graph.output[-1].type.tensor_type.shape.dim[1].dim_param = MAPS_NAME


def save_model(proto: onnx.ModelProto, metadata: dict[str, Any], target: Path) -> None:
    """Checks the model and writes it with metadata and checksum, atomically; drops annotations, which contain local paths."""
    for part in (proto, proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for value in (*proto.graph.input, *proto.graph.output):
        value.ClearField("metadata_props")
    proto.producer_name, proto.producer_version = PRODUCER, torch.__version__.split("+")[0]
    if proto.ByteSize() > MAX_BYTES:
        raise UserError(f"{target}: {proto.ByteSize():,} bytes, too large for one ONNX file; use a smaller model.name")
    text = json.dumps(metadata | {"seal": UNSEALED}, ensure_ascii=False)
    proto.metadata_props.append(onnx.StringStringEntryProto(key=METADATA_KEY, value=text))
    onnx.checker.check_model(proto, full_check=True)
    write_bytes(target, seal(proto.SerializeToString(deterministic=True)))


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Suppresses warnings, log records up to that level, and what is printed in the block."""
    level = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)
