"""What stages write for other stages to read, as types that writers and readers share.

A renamed key fails the type check, not the reader's eye. Each class is the content of one JSON file.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from fieldguide.core.errors import UserError
from fieldguide.core.files import read_json, write_json
from fieldguide.core.params import Features
from fieldguide.core.paths import ONNX, ONNX_INT8

T = TypeVar("T")
OrNoKey = Annotated[T | None, Field(exclude_if=lambda value: value is None)]  # None has no key in the file, not a null


class Part(BaseModel):
    """A part of an artifact; keys that it does not name are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def as_dict(self) -> dict[str, Any]:
        """As it stands in the file; keys that were not set are left out, so that a figure that does not exist has no key."""
        return self.model_dump(mode="json", exclude_unset=True, by_alias=True)


class Artifact(Part):
    """The whole content of a JSON file."""

    def write(self, target: Path) -> None:
        """Writes the file, atomically."""
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


# --- download: data/raw/receipt.json ---


class RawFile(Part):
    """A file under data/raw."""

    bytes: int
    sha256: str


class Receipt(Artifact):
    """What `download` has brought; names no date and no folder of this machine, so that the same data give the same bytes."""

    dataset: str
    title: str
    home: str
    licence: str
    layout: Literal["folders", "tfrecords"]
    features: Features
    source: str
    version: str
    release: str
    images: dict[str, int]  # by split, or `not yet split`
    ignored: dict[str, int]  # files of the source, by the reason
    files: dict[str, RawFile]  # by the name under data/raw


# --- split_check: metrics/split_check.json ---


class NearDuplicateCounts(Part):
    """Pairs of near duplicates; None where they were not looked for."""

    across_splits: int | None
    within_split: int | None


class ClassSizes(Part):
    """Training images in use of the smallest and of the largest class."""

    smallest: int
    largest: int


class SplitCheckMetrics(Artifact):
    """What the data hold, and how much of it is at fault."""

    classes: int
    images: dict[str, int]  # by split, those out of use too
    unlabelled: int
    unreadable: int
    exact_duplicates: int  # pairs
    near_duplicates: NearDuplicateCounts
    label_conflicts: int  # photographs under more than one name
    missing_classes: dict[str, int]  # by split
    train_images_per_class: ClassSizes | None
    dropped: int


# --- train: metrics/train.json ---


class SplitScore(Part):
    """Mean cross-entropy (nats) and share of right answers."""

    loss: float
    accuracy: float


class TrainMetrics(Artifact):
    """Both splits at the best epoch; `parameters` is the number of weights."""

    epochs: int
    best_epoch: int
    train: SplitScore
    valid: SplitScore
    parameters: int


# --- evaluate: metrics/evaluate.json and gallery.json ---


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
    """Figures by split; `test` is absent where the test split has no labels."""

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
    """Wrong and right answers of the held-out split, and the pairs most often confused."""

    split: str
    wrong: list[GalleryPhotograph]
    right: list[GalleryPhotograph]
    pairs: list[GalleryPair]


# --- export_onnx: metrics/export_onnx.json, and what an ONNX file says of its accuracy ---


class SplitAccuracy(Part):
    """An accuracy with its 95 % interval, the split and the number of images, as the metadata of an ONNX file have it."""

    split: str
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    n: int

    @property
    def n_right(self) -> int:
        return round(self.accuracy * self.n)


class Agreement(Part):
    """How the ONNX file answers the held-out images, compared with torch."""

    top1_agreement: float
    max_abs_difference: float  # of a probability
    ties: int  # images of which torch's two best answers are level
    accuracy: float
    n: int


class SmallerForm(Part):
    """The ONNX file in another precision."""

    accuracy: float
    bytes: int


class Int8Form(SmallerForm):
    """The INT8 file; `method` chose the ranges of its activations, as the best on valid."""

    method: str
    valid_accuracy: dict[str, float]  # by method


class ExportMetrics(Agreement, Artifact):
    """The ONNX files."""

    bytes: int
    opset: int
    fp16: SmallerForm
    int8: Int8Form


# --- benchmark: metrics/benchmark.json ---


class Percentiles(Part):
    """Of times in milliseconds."""

    p50: float
    p95: float
    p99: float


class Latency(Percentiles):
    """One image a call; `p50_rounds` are the lowest and the highest median of the rounds."""

    p50_rounds: tuple[float, float]


class Speed(Part):
    """Of one backend, with all threads and, on a CPU, with one; images per second at the best batch size."""

    latency_ms: Latency
    images_per_second: float
    latency_ms_one_thread: OrNoKey[Latency] = None
    images_per_second_one_thread: OrNoKey[float] = None
    joules_per_image: OrNoKey[float] = None  # where the processor tells


class BackendMetrics(Speed):
    """One way to predict."""

    bytes_to_answer_ms: Percentiles  # from an encoded photograph to its probabilities
    accuracy: float
    bytes: int  # of its file
    import_s: OrNoKey[float] = None  # this and what follows: in a process of its own, where it is measured
    load_s: OrNoKey[float] = None
    first_answer_s: OrNoKey[float] = None  # import and loading included
    peak_bytes: OrNoKey[int] = None


class LibraryMetrics(Part):
    """The inference of the library that the network comes from."""

    bytes_to_answer_ms: Percentiles


class Int8Comparison(Part):
    """Whether to use the INT8 file in place of the fp32 one on this machine."""

    speedup: float
    points_lost: float
    offered: bool

    def advice(self) -> str:
        """The comparison in words."""
        gain = f"{self.speedup:.2f} times the throughput of fp32, {self.points_lost:.2f} points of accuracy lost; "
        return gain + (f"worth it: give {ONNX_INT8} to predict" if self.offered else f"not worth it here: stay with {ONNX}")


class Hardware(Part):
    """The machine on which the figures were measured, and its software."""

    device: str
    cpu: str
    cores: int | None
    threads: int  # of torch and of ONNX Runtime
    int8_dot_products: bool | None
    system: str
    python: str
    torch: str
    onnxruntime: str


class BenchmarkMetrics(Artifact):
    """Figures by backend; in the file each backend and each library is a key beside `int8` and `hardware`."""

    backends: dict[str, BackendMetrics]
    libraries: dict[str, LibraryMetrics]
    int8: Int8Comparison
    hardware: Hardware

    @model_validator(mode="before")
    @classmethod
    def _from_file(cls, content: Any) -> Any:
        if not isinstance(content, dict) or "backends" in content:
            return content
        rest = {key: value for key, value in content.items() if key in ("int8", "hardware")}
        others = {key: value for key, value in content.items() if key not in rest}
        libraries = {key: value for key, value in others.items() if set(value) == set(LibraryMetrics.model_fields)}
        return rest | {"libraries": libraries, "backends": {k: v for k, v in others.items() if k not in libraries}}

    @model_serializer(mode="wrap")
    def _as_file(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        return content.pop("backends") | content.pop("libraries") | content
