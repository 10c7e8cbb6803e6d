"""The JSON files that stages exchange, as types that writers and readers share: a renamed key fails the type check."""

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
OrNoKey = Annotated[T | None, Field(exclude_if=lambda value: value is None)]  # None omits the key instead of writing null


class Part(BaseModel):
    """A part of an artifact; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def as_dict(self) -> dict[str, Any]:
        """The content as written to the file; omits keys that were not set."""
        return self.model_dump(mode="json", exclude_unset=True, by_alias=True)


class Artifact(Part):
    def write(self, target: Path) -> None:
        write_json(target, self.as_dict())

    @classmethod
    def read(cls, source: Path) -> Self:
        """Raises `UserError` for a file that is missing, damaged or of another version."""
        try:
            return cls.model_validate(read_json(source))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise UserError(f"{source}: {key}: {first['msg']}; recreate it with: dvc repro") from error


# --- download: data/raw/receipt.json ---


class RawFile(Part):
    bytes: int
    sha256: str


class Receipt(Artifact):
    """What `download` has fetched. Contains no date and no local path, so that the same data give the same bytes."""

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
    class_names: OrNoKey[list[str]] = None  # by label, if a list of names came with the data
    max_side_px: OrNoKey[int] = None  # larger photographs are stored with this side, and not as they came
    files: dict[str, RawFile]  # by the name under data/raw


# --- split_check: metrics/split_check.json ---


class NearDuplicateCounts(Part):
    """Pairs of near duplicates; None if the search is off."""

    across_splits: int | None
    within_split: int | None


class ClassSizes(Part):
    """Training images in use of the smallest and of the largest class."""

    smallest: int
    largest: int


class CorrectionCounts(Part):
    """Images by the decision of data/corrections.csv about them, and decisions without an image."""

    keep: int
    relabel: int
    drop: int
    unmatched: int


class SplitCheckMetrics(Artifact):
    classes: int
    images: dict[str, int]  # by split, those out of use too, but not those that a hold-out sets aside
    unlabelled: int
    unreadable: int
    exact_duplicates: int  # pairs
    leaks: int  # photographs in more than one split: identical or, where they are searched for, near copies
    near_duplicates: NearDuplicateCounts
    label_conflicts: int  # photographs with more than one label about which nobody has decided
    missing_classes: dict[str, int]  # by split
    train_images_per_class: ClassSizes | None
    dropped: int
    corrections: CorrectionCounts


# --- label_check: metrics/label_check.json ---


class ClassPair(Part):
    """Two classes: `confused` of their `images` are taken for the other one."""

    one: str
    other: str
    confused: int
    images: int


class LabelCheckMetrics(Artifact):
    """Findings without a decision, by kind; everything but `enabled` is 0 or empty if the check is off."""

    enabled: bool
    images: int  # judged
    not_judged: int  # of classes that no other fold has
    accuracy: float  # share of the judged images whose given class is the most probable one, out of fold
    accuracy_low: float
    accuracy_high: float
    suspected: dict[str, int]  # by split: labels that are wrong with a probability of 0.3 or more
    doubtful: int  # labels that are wrong with a probability of 0.02 to 0.3
    atypical: int  # images of none of the classes
    missed_copies: int  # pairs that the search for near duplicates did not find
    missed_leaks: int  # of them across splits
    decided: int  # findings of images about which data/corrections.csv has a decision
    inseparable: list[ClassPair]  # classes that the embeddings cannot tell apart, the 500 worst pairs
    inseparable_pairs: int  # all of them


# --- train: metrics/train.json ---


class SplitScore(Part):
    """Mean cross-entropy (nats) and top-1 accuracy."""

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


class CleanMetrics(Part):
    """Metrics of images in no other split, or of a split as corrected; without images n is 0 and accuracy None."""

    accuracy: float | None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    macro_f1: float | None = None
    weighted_f1: float | None = None
    n: int
    classes: int = 0  # with images: macro F1 is the mean over them


class BandMetrics(Part):
    """Accuracy on the images of classes with a number of train images in a band; `classes` of them have images here."""

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    n: int
    classes: int


class RankMetrics(Part):
    """At one rank of the taxonomy: accuracy of the most probable group, and the predictions that are told at this rank."""

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    groups: int  # taxa, and classes without one
    told: float  # share of the images
    accuracy_when_told: float | None  # None if none is told


class SplitMetrics(Part):
    """Metrics of one labelled split; `loss` is in nats. `known`, `sure` and `accuracy_when_sure` are absent for train.

    Valid and test are measured by the labels that the data give, and, if some are corrected, `as_corrected` too.
    """

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
    classes: int  # with images: macro F1 is the mean over them
    known: float | None = None
    sure: float | None = None
    accuracy_when_sure: float | None = None  # also None if no prediction is sure
    as_corrected: OrNoKey[CleanMetrics] = None
    by_class_size: OrNoKey[dict[str, BandMetrics]] = None  # by the number of train images: 0, 1-5, 6-20, 21-100, 101+
    by_rank: OrNoKey[dict[str, RankMetrics]] = None  # genus, family, order; of images told at none of them the class is
    useful: OrNoKey[float] = None  # share of images that are told a right class or a right taxon


class TtaMetrics(Part):
    """Test-time augmentation: forward passes per image, and the gain in accuracy on each split."""

    forward_passes: int
    train_accuracy_gain: float | None = None
    valid_accuracy_gain: float | None = None
    test_accuracy_gain: float | None = None


class Thresholds(Part):
    """The calibration fitted on valid."""

    temperature: float
    unsure_below: float
    unknown_below: float


class OodMetrics(Part):
    """How well out-of-distribution images of one kind are separated from held-out photographs."""

    refused: float
    auroc: float
    n: int


class EvaluateMetrics(Artifact):
    """Metrics by split; `test` is absent if the test split has no labels. `classes`: of the network."""

    classes: int
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


class FoldScore(CleanMetrics):
    """Metrics of the images of one fold, by the network that was not trained on them."""

    fold: int
    experiment: str


class ClassScore(Part):
    class_name: str
    precision: float
    recall: float
    f1: float
    n: int


class ConfusedPair(Part):
    """`n` of the `n_truth` images of a class were predicted as another."""

    truth: str
    predicted: str
    n: int
    n_truth: int


class FoldsMetrics(Artifact):
    """metrics/folds.json: a cross-validation, all folds together and each; `missing` are numbers of folds."""

    folds: int
    missing: list[int]
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    macro_f1: float
    macro_f1_low: float
    macro_f1_high: float
    weighted_f1: float
    n: int
    classes: int
    as_corrected: OrNoKey[CleanMetrics] = None
    per_fold: list[FoldScore]
    worst_classes: list[ClassScore]
    confused_pairs: list[ConfusedPair]


class GalleryPhotograph(Part):
    """A photograph and its activation map (both JPEG in base64; None if the network has no map), with the prediction."""

    truth: str
    predicted: str
    probability: float
    right: bool
    photograph: str
    activation: str | None


N_MISTAKEN, N_TYPICAL = 4, 2  # photographs of a confused pair in the gallery: mistaken ones, and right ones of either class


class GalleryPair(Part):
    """A confused pair of classes: `n` of `n_truth` images are mistaken, with photographs of both classes."""

    truth: str
    predicted: str
    n: int
    n_truth: int
    mistaken: list[GalleryPhotograph]
    of_truth: list[GalleryPhotograph]
    of_predicted: list[GalleryPhotograph]


class Gallery(Artifact):
    """Wrong and right predictions on the held-out split, and the pairs most often confused."""

    split: str
    wrong: list[GalleryPhotograph]
    right: list[GalleryPhotograph]
    pairs: list[GalleryPair]


# --- export_onnx: metrics/export_onnx.json, and the accuracy in the metadata of an ONNX file ---


class SplitAccuracy(Part):
    """An accuracy with its 95 % interval, split and number of images, as stored in the metadata of an ONNX file."""

    split: str
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    n: int

    @property
    def n_right(self) -> int:
        return round(self.accuracy * self.n)


class Agreement(Part):
    """The ONNX file compared with torch on `n` held-out images: all, or a sample."""

    top1_agreement: float
    max_abs_difference: float  # of a probability
    ties: int  # images whose two highest probabilities in torch differ by less than proof.TIE
    accuracy: float
    n: int


class SmallerForm(Part):
    """The ONNX file in another precision."""

    accuracy: float
    bytes: int


class Int8Form(SmallerForm):
    """The INT8 file; `method` is the calibration method of the activations, the best one on valid."""

    method: str
    valid_accuracy: dict[str, float]  # by method


class ExportMetrics(Agreement, Artifact):
    bytes: int
    opset: int
    fp16: SmallerForm
    int8: Int8Form


# --- benchmark: metrics/benchmark.json ---


class Percentiles(Part):
    """Percentiles of times in milliseconds."""

    p50: float
    p95: float
    p99: float


class Latency(Percentiles):
    """Latency at batch size 1; `p50_rounds` are the lowest and the highest median of the rounds."""

    p50_rounds: tuple[float, float]


class Speed(Part):
    """Speed of a backend with all threads and, on a CPU, with one thread; images per second at the best batch size."""

    latency_ms: Latency
    images_per_second: float
    latency_ms_one_thread: OrNoKey[Latency] = None
    images_per_second_one_thread: OrNoKey[float] = None


class BackendMetrics(Speed):
    """A backend: a library and a precision."""

    bytes_to_answer_ms: Percentiles  # from an encoded photograph to its probabilities
    accuracy: float
    n: OrNoKey[int] = None  # images of that accuracy
    bytes: int  # of its file
    import_s: OrNoKey[float] = None  # this and the next three: measured in a separate process
    load_s: OrNoKey[float] = None
    first_answer_s: OrNoKey[float] = None  # import and loading included
    peak_bytes: OrNoKey[int] = None


class LibraryMetrics(Part):
    """Inference with the library that the network comes from."""

    bytes_to_answer_ms: Percentiles


class Int8Comparison(Part):
    """Whether the INT8 file should replace the fp32 file on this machine."""

    speedup: float
    points_lost: float
    offered: bool

    def advice(self) -> str:
        gain = f"{self.speedup:.2f} times the throughput of fp32, {self.points_lost:.2f} points of accuracy lost; "
        return gain + (f"worth it: give {ONNX_INT8} to predict" if self.offered else f"not worth it here: stay with {ONNX}")


class Hardware(Part):
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
    """Metrics by backend; in the file each backend and each library is a key beside `int8` and `hardware`."""

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
