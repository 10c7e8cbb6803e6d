"""`params.yaml` as typed, frozen sections, validated before a stage starts.

YAML 1.2 floats are read as DVC reads them: the `1e-05` that `dvc exp run -S` writes is a number. Repeated and unknown keys are
refused.
"""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_serializer

from fieldguide.core.addresses import without_secrets
from fieldguide.core.errors import UserError
from fieldguide.core.machine import n_cores
from fieldguide.core.names import ClassFrom

Probability = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
ImagePx = Annotated[int, Field(ge=16, le=1024)]
Policy = Literal["report", "drop", "fail"]
NetworkName = Annotated[str, Field(pattern=r"^(timm/)?[A-Za-z0-9_.-]+$")]
BatchSize = Annotated[int, Field(ge=1, le=65_536)]


def _as_text(value: object) -> object:
    """An integer as text: `-S data.version=3` writes an integer."""
    return str(value) if type(value) is int else value


Text = Annotated[str, BeforeValidator(_as_text)]


class Section(BaseModel):
    """A section of `params.yaml`, which documents each key."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class Sample(Section):
    """`data.sample`: size and seed of the built-in synthetic data set."""

    species: Annotated[int, Field(ge=2, le=200)]
    train_images: Count
    valid_images: Count
    test_images: Count
    image_px: ImagePx
    faults: bool
    seed: Seed


class Features(Section):
    """`data.features`: names of the features in TFRecords."""

    image: Annotated[str, Field(min_length=1)]
    label: Annotated[str, Field(min_length=1)]
    id: str


class Columns(Section):
    """`data.columns`: names of the columns in a table of labels; "" = found by a usual name."""

    file: Text
    label: Text
    split: Text
    group: Text


class Data(Section):
    dataset: Literal["sample", "butterflies", "flowers", "folder", "tfrecords"]
    path: str
    class_from: ClassFrom
    version: Text
    resolution: Literal[192, 224, 331, 512]
    features: Features
    class_names: str
    table: str
    columns: Columns
    max_gigabytes: Annotated[float, Field(gt=0, le=10_000)]
    max_side_px: Literal[0] | Annotated[int, Field(ge=64, le=65_535)]
    sample: Sample

    @field_serializer("path")
    def _path_without_secrets(self, path: str) -> str:
        """What is recorded and shown of `path`."""
        return without_secrets(path)


class SplitCheck(Section):
    """The policy for each kind of fault in the data, and how splits are drawn."""

    near_duplicates: bool
    unreadable: Policy
    leaks: Policy
    label_conflicts: Policy
    missing_classes: Policy
    few_images: Annotated[int, Field(ge=0, le=1_000_000)]
    max_megapixels: Annotated[int, Field(ge=1, le=1000)]
    valid_fraction: Annotated[float, Field(gt=0, lt=0.5)]
    test_fraction: Annotated[float, Field(gt=0, lt=0.5)]
    hold_out: Annotated[float, Field(ge=0, lt=0.5)]
    group: Text
    folds: Literal[0] | Annotated[int, Field(ge=2, le=100)]
    fold: Annotated[int, Field(ge=0, le=99)]
    seed: Seed


class LabelCheck(Section):
    """How wrong labels are looked for."""

    enabled: bool
    network: NetworkName
    weights: Annotated[str, Field(min_length=1)]
    image_px: ImagePx


class Model(Section):
    name: NetworkName
    weights: Annotated[str, Field(min_length=1)]
    image_px: ImagePx


class Train(Section):
    devices: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"]
    sync_batch_norm: bool
    epochs: Annotated[int, Field(ge=1, le=10_000)]
    patience: Annotated[int, Field(ge=0, le=10_000)]
    batch_size: Annotated[int, Field(ge=2, le=65_536)]
    accumulate: Annotated[int, Field(ge=1, le=1024)]
    loader: Literal["auto", "resident", "streaming"]
    memory_share: Annotated[float, Field(gt=0, le=1)]
    decode_px: ImagePx
    size_start: Annotated[float, Field(ge=0.1, le=1)]
    size_end: Annotated[float, Field(ge=0.1, le=1)]
    size_growth: Probability
    optimizer: Literal["sgd", "adam", "adamw", "muon"]
    lr: Annotated[float, Field(gt=0, le=10)]
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Annotated[float, Field(ge=0, le=10)]
    schedule: Literal["constant", "cosine", "one_cycle", "exponential"]
    warmup: Probability
    hold: Probability
    lr_start: Probability
    lr_end: Probability
    lr_decay: Annotated[float, Field(gt=0, le=1)]
    head_epochs: Annotated[int, Field(ge=0, le=10_000)]
    head_augment: bool
    head_lr: Annotated[float, Field(gt=0, le=10)]
    freeze: Probability | Annotated[str, Field(min_length=1)]
    backbone_lr: Annotated[float, Field(ge=0, le=1)]
    layer_decay: Annotated[float, Field(gt=0, le=1)]
    ema: Annotated[float, Field(ge=0, lt=1)]
    clip_norm: Annotated[float, Field(ge=0, le=1_000_000)]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    class_weights: Literal["equal", "balanced"]
    logit_adjustment: Annotated[float, Field(ge=0, le=10)]
    sampling: Literal["shuffle", "square_root", "balanced"] | Probability
    best_by: Literal["accuracy", "loss"]
    precision: Literal["auto", "bf16", "fp32"]
    compile: bool
    seed: Seed

    @property
    def balance(self) -> float:
        """Exponent of the sampling: a class of n images has a share in proportion to n ** (1 - balance) of an epoch."""
        named = {"shuffle": 0.0, "square_root": 0.5, "balanced": 1.0}
        return named[self.sampling] if isinstance(self.sampling, str) else self.sampling


class Augment(Section):
    horizontal_flip: Probability
    vertical_flip: Probability
    rotation_degrees: Annotated[float, Field(ge=0, le=180)]
    scale: Annotated[float, Field(ge=0, lt=1)]
    translate: Probability
    shear_degrees: Annotated[float, Field(ge=0, le=60)]
    perspective: Probability
    perspective_distortion: Annotated[float, Field(ge=0, lt=1)]
    crop_area_min: Annotated[float, Field(gt=0, le=1)]
    crop_aspect_max: Annotated[float, Field(ge=1, le=4)]
    brightness: Annotated[float, Field(ge=0, le=1)]
    contrast: Annotated[float, Field(ge=0, le=1)]
    saturation: Annotated[float, Field(ge=0, le=1)]
    hue: Annotated[float, Field(ge=0, le=0.5)]
    blur: Probability
    blur_sigma_max: Annotated[float, Field(gt=0.1, le=10)]
    erase: Probability
    erase_area_max: Annotated[float, Field(gt=0.02, lt=1)]
    mixup: Probability
    cutmix: Probability
    mix_until: Probability

    @classmethod
    def without_changes(cls) -> "Augment":
        """Settings with which augmentation only resizes."""
        changes = {name: 1.0 if name in ("crop_area_min", "crop_aspect_max") else 0.0 for name in cls.model_fields}
        return cls(**changes | {"blur_sigma_max": 2.0, "erase_area_max": 0.33})


class Evaluate(Section):
    batch_size: BatchSize
    ece_bins: Annotated[int, Field(ge=2, le=1000)]
    tta: Literal["none", "mirror"]
    sure_accuracy: Annotated[float, Field(gt=0, le=1)]
    known_score: Literal["probability", "energy", "cosine", "whitened_cosine", "mahalanobis"]
    accept: Annotated[float, Field(gt=0, le=1)]


class Export(Section):
    opset: Annotated[int, Field(ge=18, le=25)]
    max_abs_difference: Annotated[float, Field(gt=0, le=1)]
    int8_images: Annotated[int, Field(ge=8, le=2_000)]


class Benchmark(Section):
    batch_sizes: Annotated[tuple[BatchSize, ...], Field(min_length=1, strict=False)]
    warmup_runs: Annotated[int, Field(ge=1, le=10_000)]
    latency_runs: Annotated[int, Field(ge=10, le=100_000)]
    throughput_runs: Annotated[int, Field(ge=3, le=10_000)]
    compile: bool


class Runtime(Section):
    """Settings that do not change results, so that no stage depends on them."""

    device: Literal["auto", "cpu", "cuda", "mps"]
    workers: Annotated[int, Field(ge=1, le=256)] | Literal["auto"]
    decoded_gigabytes: Annotated[float, Field(ge=0, le=100_000)]

    @property
    def n_workers(self) -> int:
        """Number of threads or processes that load data: by default one per available core."""
        return n_cores() if self.workers == "auto" else self.workers


class Params(Section):
    data: Data
    split_check: SplitCheck
    label_check: LabelCheck
    model: Model
    train: Train
    augment: Augment
    evaluate: Evaluate
    export: Export
    benchmark: Benchmark
    runtime: Runtime


class YamlLoader(yaml.SafeLoader):
    """PyYAML with YAML 1.2 floats and without repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        for number, (key, _) in enumerate(node.value):
            if any(key.value == other.value for other, _ in node.value[:number]):
                raise yaml.MarkedYAMLError(problem=f"duplicate key {key.value!r}", problem_mark=key.start_mark)
        return super().construct_mapping(node, deep=deep)


YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def read_params(source: Path = Path("params.yaml")) -> Params:
    """The validated parameters; raises `UserError` for the first error."""
    return check_params(read_yaml(source), source)


def read_yaml(source: Path) -> Any:
    """The content of a YAML file; raises `UserError`."""
    try:
        return yaml.load(source.read_text(encoding="utf-8"), Loader=YamlLoader)
    except OSError as error:
        raise UserError(f"{source}: {error.strerror}; run in the project folder or restore the file") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{source}{line}: {error.problem or error}; correct the file") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an invalid date
        raise UserError(f"{source}: not valid YAML ({error}); correct the file") from error


def check_params(content: object, source: Path) -> Params:
    """The validated content of `source`; raises `UserError` as `read_params` does."""
    try:
        params = Params.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{source}: {_message(error)}") from error
    if contradiction := _contradiction(params):
        raise UserError(f"{source}: {contradiction}")
    return params


def allowed(key: str) -> dict[str, Any]:
    """The JSON schema of the values of a dotted key; empty for an unknown key."""
    section: Any = Params
    for part in (path := key.split("."))[:-1]:
        field = getattr(section, "model_fields", {}).get(part)
        section = field.annotation if field else None
    properties = section.model_json_schema()["properties"] if hasattr(section, "model_json_schema") else {}
    return properties.get(path[-1], {})


def _contradiction(params: Params) -> str:
    """A message about a key that cannot be, or two that contradict each other, or an empty string."""
    train, check = params.train, params.split_check
    try:
        re.compile(check.group)
    except re.error as error:
        return f"split_check.group is not a regular expression ({error}), got {check.group!r}"
    if check.folds and check.hold_out:
        return f"split_check.hold_out is {check.hold_out}, but split_check.folds is {check.folds}; set one of them to 0"
    if check.fold and check.fold >= check.folds:
        return f"split_check.fold ({check.fold}) must be less than split_check.folds ({check.folds})"
    if train.head_epochs and params.model.weights == "none":
        return f"train.head_epochs is {train.head_epochs}, but model.weights is none; set weights, or set head_epochs to 0"
    if train.freeze and params.model.weights == "none":
        return f"train.freeze is {train.freeze}, but model.weights is none; set weights, or set freeze to 0"
    if train.optimizer in ("sgd", "adam") and train.weight_decay > 0.1:
        return (
            f"train.weight_decay must be in [0, 0.1] with train.optimizer {train.optimizer}, which adds it to the gradient,"
            f" got {train.weight_decay}; 0.0005 is usual, and adapt train.lr to the optimizer"
        )
    if train.warmup + train.hold > 1:
        return f"train.warmup ({train.warmup}) plus train.hold ({train.hold}) must be at most 1"
    return ""


def _message(error: ValidationError) -> str:
    """`train.lr must be in (0, 10], got -1` for the first error that pydantic found."""
    first = error.errors()[0]
    n_faults = len({_place(fault["loc"])[0] for fault in error.errors()})
    more = f" (and {n_faults - 1} more)" if n_faults > 1 else ""
    name, section = _place(first["loc"])
    match first["type"]:
        case "missing":
            return f"{name} is missing; add it{more}"
        case "extra_forbidden" | "invalid_key":
            return f"{name} is not a known key; known keys: {', '.join(section.model_fields)}{more}"
        case "model_type":
            return f"{name or 'the file'} must be a section with keys, got {first['input']!r}{more}"
    allowed = section.model_json_schema()["properties"][name.rpartition(".")[2]]
    return f"{name} must be {in_words(allowed)}, got {first['input']!r}{more}"


def _place(loc: tuple[int | str, ...]) -> tuple[str, type[Section]]:
    """The key of an error, without pydantic's parts for list items and alternatives, and the section that has it."""
    section: type[Section] = Params
    inner: Any = Params
    path: list[str] = []
    for part in loc:
        section = inner
        path.append(str(part))
        field = section.model_fields.get(str(part))
        inner = field.annotation if field else None
        if not (isinstance(inner, type) and issubclass(inner, Section)):
            break
    return ".".join(path), section


def in_words(schema: dict[str, Any]) -> str:
    """The values that a JSON schema allows: `an integer in [1, 65536]`."""
    if "anyOf" in schema:
        return " or ".join(in_words(choice) for choice in schema["anyOf"])
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    match schema.get("type"):
        case "number" | "integer" as kind:
            low = f"[{schema['minimum']}" if "minimum" in schema else f"({schema['exclusiveMinimum']:g}"
            high = f"{schema['maximum']}]" if "maximum" in schema else f"{schema['exclusiveMaximum']:g})"
            return f"{'an integer ' if kind == 'integer' else ''}in {low}, {high}"
        case "array":
            return f"a list, each {in_words(schema['items'])}"
        case "boolean":
            return "true or false"
    return "text in quotes"
