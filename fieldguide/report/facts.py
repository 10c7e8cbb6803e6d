"""What the stages wrote about a run, read once for page, card and figures."""

import importlib.metadata
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import yaml

from fieldguide.core.artifacts import (
    Artifact,
    BenchmarkMetrics,
    EvaluateMetrics,
    ExportMetrics,
    Gallery,
    Receipt,
    SplitCheckMetrics,
    TrainMetrics,
)
from fieldguide.core.files import file_hash
from fieldguide.core.manifest import held_out_split
from fieldguide.core.names import SPLITS
from fieldguide.core.paths import (
    BATCH_PNG,
    CALIBRATION,
    CHECKPOINT,
    CLASSES_CSV,
    CONFUSED_PAIRS_CSV,
    COVERAGE_CSV,
    FINDINGS_CSV,
    GALLERY_JSON,
    HISTORY_CSV,
    LOCK,
    MANIFEST,
    ONNX,
    PER_CLASS_CSV,
    RAW,
    RECEIPT,
    RELIABILITY_CSV,
    SAMPLES_PNG,
    SIZES_PNG,
    THROUGHPUT_CSV,
    confusion_csv,
    stage_metrics,
)

STAGES = ("split_check", "train", "evaluate", "export_onnx", "benchmark")  # that write metrics
TABLES = {
    "classes": CLASSES_CSV,
    "findings": FINDINGS_CSV,
    "history": HISTORY_CSV,
    "per_class": PER_CLASS_CSV,
    "reliability": RELIABILITY_CSV,
    "coverage": COVERAGE_CSV,
    "confused_pairs": CONFUSED_PAIRS_CSV,
    "throughput": THROUGHPUT_CSV,
}
PNGS = {"sizes": SIZES_PNG, "samples": SAMPLES_PNG, "batch": BATCH_PNG}
HASHED = (MANIFEST, CHECKPOINT, CALIBRATION, ONNX)
PACKAGES = ("torch", "torchvision", "timm", "numpy", "scikit-learn", "pillow", "onnx", "onnxruntime", "dvc", "mlflow")


Content = TypeVar("Content", bound=Artifact)


@dataclass(frozen=True)
class Facts:
    """What the stages wrote, `None` (or no entry) for what is not there.

    tables: by their name in `TABLES`; confusions: tables of truth and prediction by split;
    pngs: encoded, by their name in `PNGS`; hashes: a row for each file; params: by section.
    """

    receipt: Receipt | None
    split_check: SplitCheckMetrics | None
    train: TrainMetrics | None
    evaluate: EvaluateMetrics | None
    export_onnx: ExportMetrics | None
    benchmark: BenchmarkMetrics | None
    tables: dict[str, pd.DataFrame]
    confusions: dict[str, pd.DataFrame]
    gallery: Gallery | None
    pngs: dict[str, bytes]
    hashes: list[dict[str, Any]]
    versions: dict[str, str]
    params: dict[str, dict[str, Any]]

    @property
    def held_out(self) -> str | None:
        """The split on which the network is measured: test, or valid where test has no labels."""
        return held_out_split(self.evaluate.splits) if self.evaluate else None

    def rows(self, table: str, split: str | None = None) -> pd.DataFrame:
        """A table, or its rows of one split; empty where it is not there."""
        frame = self.tables.get(table, pd.DataFrame())
        return frame[frame["split"] == split] if split and len(frame) else frame


def read_facts(params: dict[str, dict[str, Any]]) -> Facts:
    """All that lies in the folder in which DVC runs the stage."""
    return Facts(
        receipt=_read(Receipt, RECEIPT),
        tables={name: _read_table(path) for name, path in TABLES.items() if path.exists()},
        confusions={split: _read_table(confusion_csv(split)) for split in SPLITS if confusion_csv(split).exists()},
        split_check=_read(SplitCheckMetrics, stage_metrics("split_check")),
        train=_read(TrainMetrics, stage_metrics("train")),
        evaluate=_read(EvaluateMetrics, stage_metrics("evaluate")),
        export_onnx=_read(ExportMetrics, stage_metrics("export_onnx")),
        benchmark=_read(BenchmarkMetrics, stage_metrics("benchmark")),
        gallery=_read(Gallery, GALLERY_JSON),
        pngs={name: path.read_bytes() for name, path in PNGS.items() if path.exists()},
        hashes=_hashes(),
        versions={"Python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES},
        params=params,
    )


def _read(kind: type[Content], source: Path) -> Content | None:
    return kind.read(source) if source.exists() else None


def _read_table(source: Path) -> pd.DataFrame:
    """A CSV in which only an empty cell is missing: a class may be called NA."""
    return pd.read_csv(source, keep_default_na=False, na_values=[""], dtype={"class_name": str, "truth": str, "predicted": str})


def _hashes() -> list[dict[str, Any]]:
    """Size and SHA-256 of every input that is a file, and the MD5 that dvc.lock has of it."""
    lock = yaml.safe_load(LOCK.read_text(encoding="utf-8")) if LOCK.exists() else {}
    known = {out["path"]: out for stage in (lock.get("stages") or {}).values() for out in stage.get("outs", [])}
    rows = []
    for path in (RAW, *HASHED):
        if path.exists():
            entry = known.get(str(path), {})
            whole = path.is_file()
            size = path.stat().st_size if whole else entry.get("size")
            md5 = entry.get("md5")
            same = not whole or file_hash(path, "md5") == md5  # else dvc.lock speaks of another run
            sha256 = file_hash(path) if whole else None
            rows.append({"path": str(path), "bytes": size, "sha256": sha256, "md5": md5 if same else None})
    return rows
