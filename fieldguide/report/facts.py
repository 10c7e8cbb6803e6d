"""What the stages wrote about a run, read once for page, card and figures."""

import importlib.metadata
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from fieldguide.core.artifacts import EvaluateMetrics, Gallery, TrainMetrics
from fieldguide.core.files import file_hash, read_json
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


@dataclass(frozen=True)
class Facts:
    """What the stages wrote, `None` (or no entry) for what is not there.

    metrics: by stage, as JSON has it; tables: by their name in `TABLES`; confusions: tables of truth and prediction by split;
    pngs: encoded, by their name in `PNGS`; hashes: a row for each file; params: by section.
    """

    receipt: dict[str, Any] | None
    metrics: dict[str, dict[str, Any]]
    train: TrainMetrics | None
    evaluate: EvaluateMetrics | None
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
        receipt=read_json(RECEIPT) if RECEIPT.exists() else None,
        metrics={stage: read_json(stage_metrics(stage)) for stage in STAGES if stage_metrics(stage).exists()},
        tables={name: _read_table(path) for name, path in TABLES.items() if path.exists()},
        confusions={split: _read_table(confusion_csv(split)) for split in SPLITS if confusion_csv(split).exists()},
        train=TrainMetrics.read(stage_metrics("train")) if stage_metrics("train").exists() else None,
        evaluate=EvaluateMetrics.read(stage_metrics("evaluate")) if stage_metrics("evaluate").exists() else None,
        gallery=Gallery.read(GALLERY_JSON) if GALLERY_JSON.exists() else None,
        pngs={name: path.read_bytes() for name, path in PNGS.items() if path.exists()},
        hashes=_hashes(),
        versions={"Python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES},
        params=params,
    )


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
