"""Where artifacts lie, relative to the folder in which DVC runs a stage: the only place that knows."""

import os
from pathlib import Path

RAW = Path("data/raw")
RECEIPT = RAW / "receipt.json"
IMAGES_ZIP = RAW / "images.zip"
MANIFEST = Path("data/manifest.csv")

CHECKPOINT = Path("models/model.safetensors")
CALIBRATION = Path("models/calibration.safetensors")
ONNX = Path("models/model.onnx")

METRICS = Path("metrics")
CLASSES_CSV = METRICS / "classes.csv"
FINDINGS_CSV = METRICS / "findings.csv"
NEAR_DUPLICATES_CSV = METRICS / "near_duplicates.csv"
NEAR_DUPLICATES_HTML = METRICS / "near_duplicates.html"
CLASSES_PNG = METRICS / "classes.png"
SAMPLES_PNG = METRICS / "samples.png"
SIZES_PNG = METRICS / "sizes.png"
HISTORY_CSV = METRICS / "history.csv"
CONFUSION_CSV = METRICS / "confusion.csv"
CONFUSION_PNG = METRICS / "confusion.png"
SUBMISSION_CSV = METRICS / "submission.csv"
CURVES_PNG = METRICS / "curves.png"
BATCH_PNG = METRICS / "batch.png"
THROUGHPUT_CSV = METRICS / "throughput.csv"


def stage_metrics(stage: str) -> Path:
    """The metrics file of a stage, named after it."""
    return METRICS / f"{stage}.json"


def project_root() -> Path:
    """The project's own folder, also inside the temporary folders of `dvc exp run --temp` and `--queue`.

    What must outlive those folders (the tracking store, relative values of `data.path`) lies under it.
    """
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()


def unfinished() -> Path:
    """Where the states of trainings that have not ended are kept; outside of what DVC deletes."""
    return project_root() / ".fieldguide" / "unfinished"


def download_cache() -> Path:
    """Where downloads are kept between runs, so that none is made twice; outside of what DVC deletes."""
    return project_root() / ".fieldguide" / "downloads"
