"""`models/model.onnx`, the second waist, in use: images to ranked names.

Needs NumPy, Pillow and onnxruntime only: no torch, DVC or MLflow. For example:

    classifier = OnnxClassifier(Path("models/model.onnx"))
    for prediction in classifier.predict([Path("a.jpg"), Path("b.jpg")], k=3):
        print(prediction.verdict, prediction.answers[0].name, prediction.answers[0].probability)
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # after the import it would be too late
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort

from fieldguide.core.errors import UserError
from fieldguide.core.files import is_damaged, is_intact
from fieldguide.core.images import decode
from fieldguide.onnx.heatmap import supporting

METADATA_KEY = "fieldguide"
INPUT_NAME = "images"
OUTPUT_NAMES = ("probabilities", "embedding", "known_score", "activation")  # the last where the network permits it
MAX_BATCH = 32  # images that `predict` and `embed` have in memory at a time
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
    """One class, its calibrated probability and its number among the outputs."""

    name: str
    probability: float
    index: int


@dataclass(frozen=True)
class Prediction:
    """What is said of one image: the most probable classes, best first, and how far to trust them.

    verdict: sure, unsure (the top probability is below the file's `unsure_below`) or unknown (none of the classes: the known
    score is below `unknown_below`). activation: float32 `[h, w]`, 0..1, where in the centre square the first answer was seen;
    None where it was not asked for or the network does not tell.
    """

    answers: tuple[Answer, ...]
    verdict: str
    known_score: float
    activation: np.ndarray | None


class OnnxClassifier:
    """An exported model: `class_names`, `image_px`, `metadata`, and predictions. May be used from several threads."""

    def __init__(self, source: Path | bytes, n_threads: int = 0, provider: str = "CPUExecutionProvider") -> None:
        """Loads the file's bytes, so that it can pull in no other file; `n_threads` 0 is ONNX Runtime's choice.

        `provider` is one of ONNX Runtime's; what it cannot compute falls to the CPU.
        Raises `UserError` for a file that is missing or was not made by the export stage.
        """
        name = source if isinstance(source, Path) else "the model"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = n_threads
        options.log_severity_level = 3
        try:
            content = source.read_bytes() if isinstance(source, Path) else source
            whole = is_intact(content)
            if not whole and is_damaged(content):
                raise UserError(f"{name}: its bytes are not those that were exported; create it with: dvc repro -f export_onnx")
            self.session = onnxruntime.InferenceSession(content, options, providers=[provider])
            self.metadata: dict[str, Any] = json.loads(self.session.get_modelmeta().custom_metadata_map[METADATA_KEY])
            self.class_names: tuple[str, ...] = tuple(self.metadata["class_names"])
            self.image_px: int = self.metadata["image_px"]
            calibration = self.metadata["calibration"]
            self.unsure_below, self.unknown_below = float(calibration["unsure_below"]), float(calibration["unknown_below"])
            self._check()
            if not whole:
                raise ValueError("it carries no seal")
        except OSError as error:
            raise UserError(f"{name}: {error.strerror}; create it with: dvc repro export_onnx") from error
        except KeyError as error:
            raise UserError(f"{name}: metadata lack {error}; make the file with: dvc repro -f export_onnx") from error
        except (*ONNX_ERRORS, TypeError, ValueError) as error:
            raise UserError(f"{name}: not a usable ONNX model ({error}); create it with: dvc repro -f export_onnx") from error
        self.file_bytes = len(content)

    @property
    def has_activation(self) -> bool:
        """Whether the network tells where it looked."""
        return len(self.session.get_outputs()) == len(OUTPUT_NAMES)

    def _check(self) -> None:
        """Raises `ValueError` unless the graph takes and gives what the metadata say."""
        taken, given = self.session.get_inputs(), self.session.get_outputs()
        n_classes, side = len(self.class_names), self.image_px
        found = [(value.name, value.type, value.shape[1:]) for value in (*taken, *given)]
        inner = [shape for _, _, shape in found[2:]]
        wanted = [
            (INPUT_NAME, "tensor(uint8)", [side, side, 3]),
            ("probabilities", "tensor(float)", [n_classes]),
            ("embedding", "tensor(float)", inner[0] if inner and len(inner[0]) == 1 else ["F"]),
            ("known_score", "tensor(float)", []),
        ]
        if len(given) == len(OUTPUT_NAMES):
            wanted.append(
                ("activation", "tensor(float)", [n_classes, *inner[2][1:]] if len(inner[2]) == 3 else ["K", "h", "w"])
            )
        if found != wanted:
            raise ValueError(f"inputs and outputs are {found}, its metadata ask for {wanted}")

    def run(self, pixels: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        """The outputs named, of `OUTPUT_NAMES`, for uint8 `[N, image_px, image_px, 3]`, RGB.

        float32: probabilities `[N, K]`, embedding `[N, F]`, known_score `[N]`, activation `[N, K, h, w]`.
        """
        return self.session.run(list(outputs), {INPUT_NAME: pixels})

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 `[N, image_px, image_px, 3]`, RGB, to float32 `[N, K]`."""
        return self.run(pixels, ["probabilities"])[0]

    def predict_pixels(self, pixels: np.ndarray, k: int = 5, activation: bool = False) -> list[Prediction]:
        """A prediction with the `k` best classes for each of uint8 `[N, image_px, image_px, 3]`, RGB, in one batch."""
        wanted = ["probabilities", "known_score", *(["activation"] if activation and self.has_activation else [])]
        probabilities, scores, *maps = self.run(pixels, wanted)
        ranked = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
        return [
            Prediction(
                tuple(Answer(self.class_names[index], float(row[index]), int(index)) for index in best),
                self._verdict(float(row[best[0]]), float(score)),
                float(score),
                supporting(maps[0][place, best[0]]) if maps else None,
            )
            for place, (row, score, best) in enumerate(zip(probabilities, scores, ranked, strict=True))
        ]

    def predict(self, images: Sequence[Path | bytes], k: int = 5, activation: bool = False) -> list[Prediction]:
        """A prediction for each image, a file or its bytes; raises `UnreadableImage` or `OSError` for the first that fails."""
        return [
            prediction
            for start in range(0, len(images), MAX_BATCH)
            for prediction in self.predict_pixels(self._decoded(images[start : start + MAX_BATCH]), k, activation)
        ]

    def embed(self, images: Sequence[Path | bytes]) -> np.ndarray:
        """What the network's head sees of each image, a file or its bytes: float32 `[N, F]`; raises as `predict` does."""
        parts = [
            self.run(self._decoded(images[start : start + MAX_BATCH]), ["embedding"])[0]
            for start in range(0, max(len(images), 1), MAX_BATCH)
        ]
        return np.concatenate(parts)

    def _decoded(self, images: Sequence[Path | bytes]) -> np.ndarray:
        """uint8 `[N, image_px, image_px, 3]`."""
        pixels = np.empty((len(images), self.image_px, self.image_px, 3), np.uint8)
        for slot, image in zip(pixels, images, strict=True):
            slot[:] = decode(image.read_bytes() if isinstance(image, Path) else image, self.image_px)
        return pixels

    def _verdict(self, probability: float, known_score: float) -> str:
        if known_score < self.unknown_below:
            return "unknown"
        return "unsure" if probability < self.unsure_below else "sure"


def has_provider(provider: str) -> bool:
    """Whether the onnxruntime that is installed can compute by it."""
    return provider in onnxruntime.get_available_providers()


def runtime_version() -> str:
    """The version of the onnxruntime that is installed, whichever package brought it."""
    return str(onnxruntime.__version__)
