"""torch to `model.onnx`: uint8 pictures in, probabilities out, with all that a user of the file needs in its metadata."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from fieldguide.classifier import INPUT_NAME, METADATA_KEY, OUTPUT_NAME
from fieldguide.files import UNSEALED, sealed, write_bytes
from fieldguide.models import Classifier

PRODUCER = "fieldguide"
EXAMPLE_BATCH = 2  # a dynamic dimension must not be 1 in the example, or the exporter fixes it


class Exported(nn.Module):
    """What the file computes: scaling of bytes, the network, softmax."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 `[N, H, W, 3]`, RGB, to float32 probabilities `[N, K]`."""
        return self.model(images.permute(0, 3, 1, 2).float() / 255).softmax(dim=1)


def export(model: Classifier, image_px: int, opset: int, metadata: dict[str, Any], target: Path) -> None:
    """Writes the checked ONNX file, atomically; equal networks give equal bytes.

    `metadata` becomes one JSON text under the key `fieldguide` of the file's metadata.
    """
    example = torch.zeros(EXAMPLE_BATCH, image_px, image_px, 3, dtype=torch.uint8)
    with _silence():
        program = torch.onnx.export(
            Exported(model).eval(),
            (example,),
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            opset_version=opset,
            dynamo=True,
            optimize=True,
        )
    proto = _without_traces(program.model_proto)
    sealing = metadata | {"seal": UNSEALED}
    proto.metadata_props.append(onnx.StringStringEntryProto(key=METADATA_KEY, value=json.dumps(sealing, ensure_ascii=False)))
    onnx.checker.check_model(proto, full_check=True)
    write_bytes(target, sealed(proto.SerializeToString(deterministic=True)))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without the exporter's warnings, log and progress; all is as it was after the block."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def _without_traces(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the exporter's notes, which name files of the machine that it ran on."""
    for part in (proto, proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for value in (*proto.graph.input, *proto.graph.output):
        value.ClearField("metadata_props")
    proto.producer_name, proto.producer_version = PRODUCER, torch.__version__.split("+")[0]
    return proto
