"""What stages write for other stages to read, as types that writers and readers share.

A renamed key fails the type check, not the reader's eye. Each class is the content of one JSON file.
"""

from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from fieldguide.core.errors import UserError
from fieldguide.core.files import read_json, write_json


class Part(BaseModel):
    """A part of an artifact; keys that it does not name are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Artifact(Part):
    """The whole content of a JSON file."""

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it; keys that were not set are left out, so that a figure that does not exist has no key."""
        return self.model_dump(mode="json", exclude_unset=True)

    def write(self, target: Path) -> None:
        """Atomically."""
        write_json(target, self.as_dict())

    @classmethod
    def read(cls, source: Path) -> Self:
        """Raises `UserError` for a file that is missing, damaged or of another version."""
        try:
            return cls.model_validate(read_json(source))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise UserError(f"{source}: {key}: {first['msg']}; make it again: dvc repro") from error


# train


class SplitScore(Part):
    """Mean cross-entropy (nats) and share of right answers."""

    loss: float
    accuracy: float


class TrainMetrics(Artifact):
    """metrics/train.json: both splits at the best epoch; `parameters` is the number of weights."""

    epochs: int
    best_epoch: int
    train: SplitScore
    valid: SplitScore
    parameters: int


# evaluate


class SplitMetrics(Part):
    """Figures of one labelled split; `loss` is in nats. `known`, `sure` and `accuracy_when_sure` are absent for train."""

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    top5_accuracy: float
    macro_f1: float
    macro_f1_low: float
    macro_f1_high: float
    weighted_f1: float
    loss: float
    loss_uncalibrated: float
    ece: float
    ece_uncalibrated: float
    accuracy_at_coverage_80: float
    accuracy_at_coverage_90: float
    accuracy_at_coverage_95: float
    risk_coverage_area: float
    n: int
    known: float | None = None
    sure: float | None = None
    accuracy_when_sure: float | None = None  # also None where no answer is sure


class CleanMetrics(Part):
    """Figures of the test images that are in no other split; without such images only `n`, and an accuracy of None."""

    accuracy: float | None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    macro_f1: float | None = None
    weighted_f1: float | None = None
    n: int


class TtaMetrics(Part):
    """Test-time augmentation: forward passes an image, and the accuracy that it adds in each split."""

    forward_passes: int
    train_accuracy_gain: float | None = None
    valid_accuracy_gain: float | None = None
    test_accuracy_gain: float | None = None


class Thresholds(Part):
    """What was fitted on valid."""

    temperature: float
    unsure_below: float
    unknown_below: float


class OodMetrics(Part):
    """How pictures of one kind that show none of the classes are told from held-out photographs."""

    refused: float
    auroc: float
    n: int


class EvaluateMetrics(Artifact):
    """metrics/evaluate.json; `test` is absent where the test split has no labels."""

    train: SplitMetrics
    valid: SplitMetrics
    test: SplitMetrics | None = None
    test_without_leaks: CleanMetrics | None = None
    tta: TtaMetrics
    calibration: Thresholds
    strangers: dict[str, OodMetrics]

    @property
    def splits(self) -> dict[str, SplitMetrics]:
        """By name, in the order train, valid, test."""
        return {"train": self.train, "valid": self.valid} | ({"test": self.test} if self.test else {})


class GalleryPhotograph(Part):
    """A photograph, where the network looked (both JPEG in base64; None where it cannot tell), and what it answered."""

    truth: str
    predicted: str
    probability: float
    right: bool
    photograph: str
    activation: str | None


class GalleryPair(Part):
    """A class that was mistaken for another: how often, of how many, and photographs of both."""

    truth: str
    predicted: str
    n: int
    n_truth: int
    mistaken: list[GalleryPhotograph]
    of_truth: list[GalleryPhotograph]
    of_predicted: list[GalleryPhotograph]


class Gallery(Artifact):
    """metrics/gallery.json: wrong and right answers of the held-out split, and the pairs most often confused."""

    split: str
    wrong: list[GalleryPhotograph]
    right: list[GalleryPhotograph]
    pairs: list[GalleryPair]
