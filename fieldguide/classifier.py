"""`models/model.onnx`, the second waist, in use: images to ranked names. The only module that imports onnxruntime.

Needs NumPy, Pillow and onnxruntime only: no torch, DVC or MLflow.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort

from fieldguide.errors import UserError
from fieldguide.files import is_damaged, is_whole
from fieldguide.images import decode

METADATA_KEY = "fieldguide"
INPUT_NAME, OUTPUT_NAME = "images", "probabilities"
ONNX_ERRORS = (
    ort.Fail,
    ort.InvalidArgument,
    ort.InvalidGraph,
    ort.InvalidProtobuf,
    ort.NotImplemented,
    ort.RuntimeException,
)


@dataclass(frozen=True)
class Answer:
    """One class and its probability."""

    name: str
    probability: float


class OnnxClassifier:
    """An exported model: `class_names`, `image_px` and what else its metadata tell, and predictions."""

    def __init__(self, source: Path, n_threads: int = 0) -> None:
        """Loads the file's bytes, so that it can pull in no other file; `n_threads` 0 is ONNX Runtime's choice.

        Raises `UserError` for a file that is missing or was not made by the export stage.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = n_threads
        options.log_severity_level = 3
        try:
            content = source.read_bytes()
            if is_damaged(content):
                raise UserError(f"{source}: its bytes are not those that were exported; make it with: dvc repro -f export_onnx")
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            self.metadata = json.loads(self.session.get_modelmeta().custom_metadata_map[METADATA_KEY])
            self.class_names: tuple[str, ...] = tuple(self.metadata["class_names"])
            self.image_px: int = self.metadata["image_px"]
            self._check()
            if not is_whole(content):
                raise ValueError("it carries no seal")
        except OSError as error:
            raise UserError(f"{source}: {error.strerror}; make it with: dvc repro export_onnx") from error
        except KeyError as error:
            raise UserError(f"{source}: metadata lack {error}; make the file with: dvc repro export_onnx") from error
        except (*ONNX_ERRORS, TypeError, ValueError) as error:
            raise UserError(f"{source}: not a usable ONNX model ({error}); make it with: dvc repro -f export_onnx") from error
        self.file_bytes = len(content)

    def _check(self) -> None:
        """Raises `ValueError` unless the graph takes and gives what the metadata say."""
        taken, given = self.session.get_inputs(), self.session.get_outputs()
        found = [(value.name, value.type, value.shape[1:]) for value in (*taken, *given)]
        side = self.image_px
        wanted = [
            (INPUT_NAME, "tensor(uint8)", [side, side, 3]),
            (OUTPUT_NAME, "tensor(float)", [len(self.class_names)]),
        ]
        if found != wanted:
            raise ValueError(f"inputs and outputs are {found}, its metadata ask for {wanted}")

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 `[N, image_px, image_px, 3]`, RGB, to float32 `[N, K]`."""
        return self.session.run([OUTPUT_NAME], {INPUT_NAME: pixels})[0]

    def answers(self, encoded: bytes, k: int = 5) -> list[Answer]:
        """The `k` most probable classes of one encoded image, best first; raises `UnreadableImage`."""
        probabilities = self.probabilities(decode(encoded, self.image_px)[None])[0]
        ranked = np.argsort(-probabilities, kind="stable")[:k]
        return [Answer(self.class_names[index], float(probabilities[index])) for index in ranked]
