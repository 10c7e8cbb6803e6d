"""What the stages wrote about a run, read once for page, card and figures."""

import importlib.metadata
import platform
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from fieldguide.core.artifacts import (
    BenchmarkMetrics,
    EvaluateMetrics,
    ExportMetrics,
    Gallery,
    LabelCheckMetrics,
    Receipt,
    SplitCheckMetrics,
    SplitMetrics,
    TrainMetrics,
)
from fieldguide.core.errors import UserError
from fieldguide.core.files import file_hash
from fieldguide.core.manifest import held_out_split
from fieldguide.core.names import MAX_NAMED_CLASSES, SPLITS
from fieldguide.core.paths import (
    BATCH_PNG,
    CALIBRATION,
    CHECKPOINT,
    CLASSES_CSV,
    CONFUSED_PAIRS_CSV,
    CONFUSED_TAXA_CSV,
    COVERAGE_CSV,
    FINDINGS_CSV,
    GALLERY_JSON,
    HISTORY_CSV,
    LABEL_MAP_CSV,
    LOCK,
    MANIFEST,
    MEAN_IMAGES,
    ONNX,
    PER_CLASS_CSV,
    RAW,
    RECEIPT,
    RELIABILITY_CSV,
    TAXONOMY,
    THROUGHPUT_CSV,
    confusion_csv,
    stage_metrics,
)
from fieldguide.core.taxonomy import Groups, Taxon, class_groups, ranks_of, read_taxonomy

TABLES = {
    "classes": CLASSES_CSV,
    "findings": FINDINGS_CSV,
    "label_map": LABEL_MAP_CSV,
    "history": HISTORY_CSV,
    "per_class": PER_CLASS_CSV,
    "reliability": RELIABILITY_CSV,
    "coverage": COVERAGE_CSV,
    "confused_pairs": CONFUSED_PAIRS_CSV,
    "confused_taxa": CONFUSED_TAXA_CSV,
    "throughput": THROUGHPUT_CSV,
}
STAGE_METRICS = tuple(map(stage_metrics, ("split_check", "label_check", "train", "evaluate", "export_onnx", "benchmark")))
HASHED = (MANIFEST, CHECKPOINT, CALIBRATION, ONNX)
INPUTS = (RAW, *HASHED, *STAGE_METRICS, GALLERY_JSON, *TABLES.values(), *map(confusion_csv, SPLITS), MEAN_IMAGES, BATCH_PNG)
PACKAGES = ("torch", "torchvision", "timm", "numpy", "scikit-learn", "pillow", "onnx", "onnxruntime", "dvc", "mlflow")


@dataclass(frozen=True)
class Facts:
    """The outputs of all stages.

    params: by section; tables: by their name in `TABLES`; confusions: truth and prediction of every image, by split, or of many
    classes the images of each pair of blocks; hashes: a row for each file.
    """

    params: dict[str, dict[str, Any]]
    receipt: Receipt
    split_check: SplitCheckMetrics
    label_check: LabelCheckMetrics
    train: TrainMetrics
    evaluate: EvaluateMetrics
    export_onnx: ExportMetrics
    benchmark: BenchmarkMetrics
    gallery: Gallery
    tables: dict[str, pd.DataFrame]
    confusions: dict[str, pd.DataFrame]
    hashes: list[dict[str, Any]]
    versions: dict[str, str]

    @property
    def held_out(self) -> str:
        """The split on which the network is measured: test, or valid if test has no labels."""
        return held_out_split(self.evaluate.splits)

    @property
    def measured(self) -> SplitMetrics:
        """The metrics of the held-out split."""
        return self.evaluate.splits[self.held_out]

    @property
    def class_names(self) -> list[str]:
        """All classes, in the order of their numbers."""
        return self.tables["classes"]["class_name"].tolist()

    @property
    def many_classes(self) -> bool:
        """Whether there are more classes than a chart can name."""
        return len(self.class_names) > MAX_NAMED_CLASSES

    @cached_property
    def taxonomy(self) -> dict[str, Taxon]:
        """What data/taxonomy.csv has of each class; empty without."""
        return read_taxonomy(TAXONOMY, self.class_names)

    @cached_property
    def class_groups(self) -> Groups | None:
        """The groups by which charts show many classes."""
        return class_groups(self.class_names, ranks_of(self.taxonomy, self.class_names))

    @property
    def groups(self) -> dict[str, str]:
        """The group of each class; empty where there is nothing to group by."""
        return dict(zip(self.class_names, self.class_groups.of_class, strict=True)) if self.class_groups else {}

    def n_right(self, split: str) -> tuple[int, int]:
        """Images of a split that are classified correctly, and all of them; 0 and 0 for a split without labels."""
        table = self.confusions[split]
        if "n" not in table:
            return int((table["truth"] == table["predicted"]).sum()), len(table)
        figures = self.evaluate.splits[split]
        return round(figures.accuracy * figures.n), figures.n

    def per_class(self, split: str) -> pd.DataFrame:
        """Metrics of every class; those of a class without images in the split are not measured: NaN."""
        table = self.rows("per_class", split)
        return table.assign(**{key: table[key].where(table["support"] > 0) for key in ("precision", "recall", "f1")})

    def rows(self, table: str, split: str) -> pd.DataFrame:
        """The rows of one split."""
        return self.tables[table][self.tables[table]["split"] == split]


def read_facts(params: dict[str, dict[str, Any]]) -> Facts:
    """Reads the folder in which DVC runs the stage; raises `UserError` for a missing or damaged file."""
    for path in INPUTS:
        if not path.exists():
            raise UserError(f"{path}: No such file or directory; create it with: dvc repro")
    split_check, label_check, train, evaluate, export_onnx, benchmark = STAGE_METRICS
    return Facts(
        params=params,
        receipt=Receipt.read(RECEIPT),
        split_check=SplitCheckMetrics.read(split_check),
        label_check=LabelCheckMetrics.read(label_check),
        train=TrainMetrics.read(train),
        evaluate=EvaluateMetrics.read(evaluate),
        export_onnx=ExportMetrics.read(export_onnx),
        benchmark=BenchmarkMetrics.read(benchmark),
        gallery=Gallery.read(GALLERY_JSON),
        tables={name: _read_table(path) for name, path in TABLES.items()},
        confusions={split: _read_table(confusion_csv(split)) for split in SPLITS},
        hashes=_hashes(),
        versions={"Python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES},
    )


def _read_table(source: Path) -> pd.DataFrame:
    """A CSV in which only an empty cell is missing: a class may be called NA."""
    return pd.read_csv(source, keep_default_na=False, na_values=[""], dtype={"class_name": str, "truth": str, "predicted": str})


def _hashes() -> list[dict[str, Any]]:
    """Size, SHA-256 and MD5 (DVC's hash) of every input that is a file; of the folder data/raw what dvc.lock has."""
    lock = yaml.safe_load(LOCK.read_text(encoding="utf-8")) if LOCK.exists() else {}
    outs = [out for stage in (lock.get("stages") or {}).values() for out in stage.get("outs", [])]
    raw: dict[str, Any] = next((out for out in outs if out["path"] == str(RAW)), {})
    return [
        {"path": str(RAW), "bytes": raw.get("size"), "sha256": None, "md5": raw.get("md5")},
        *(
            {"path": str(path), "bytes": path.stat().st_size, "sha256": file_hash(path), "md5": file_hash(path, "md5")}
            for path in HASHED
        ),
    ]
