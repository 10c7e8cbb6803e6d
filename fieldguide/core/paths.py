"""Paths of all artifacts, relative to the folder in which DVC runs a stage."""

import os
from pathlib import Path

RAW = Path("data/raw")
RECEIPT = RAW / "receipt.json"
IMAGES_ZIP = RAW / "images.zip"
LABELS = RAW / "labels.csv"
LEFT_OUT = RAW / "left_out.csv"
MANIFEST = Path("data/manifest.csv")
EMBEDDINGS = Path("data/embeddings.safetensors")
CORRECTIONS = Path("data/corrections.csv")  # in git
TAXONOMY = Path("data/taxonomy.csv")  # in git

CHECKPOINT = Path("models/model.safetensors")
CALIBRATION = Path("models/calibration.safetensors")
ONNX = Path("models/model.onnx")
ONNX_FP16 = Path("models/model_fp16.onnx")
ONNX_INT8 = Path("models/model_int8.onnx")

METRICS = Path("metrics")
CLASSES_CSV = METRICS / "classes.csv"
CLASS_SIZES_CSV = METRICS / "class_sizes.csv"
FINDINGS_CSV = METRICS / "findings.csv"
NEAR_DUPLICATES_CSV = METRICS / "near_duplicates.csv"
NEAR_DUPLICATES_HTML = METRICS / "near_duplicates.html"
MEAN_IMAGES = METRICS / "mean_images.npz"
LABEL_ERRORS_CSV = METRICS / "label_errors.csv"
LABEL_ERRORS_HTML = METRICS / "label_errors.html"
LABEL_MAP_CSV = METRICS / "label_map.csv"
LABEL_MAP_PNG = METRICS / "label_map.png"
CLASSES_PNG = METRICS / "classes.png"
SAMPLES_PNG = METRICS / "samples.png"
SIZES_PNG = METRICS / "sizes.png"
HISTORY_CSV = METRICS / "history.csv"
PREDICTIONS_CSV = METRICS / "predictions.csv"
CONFUSED_PAIRS_CSV = METRICS / "confused_pairs.csv"
CONFUSED_TAXA_CSV = METRICS / "confused_taxa.csv"
CONFUSED_PAIRS_PNG = METRICS / "confused_pairs.png"
PER_CLASS_CSV = METRICS / "per_class.csv"
PER_CLASS_PNG = METRICS / "per_class.png"
RELIABILITY_CSV = METRICS / "reliability.csv"
RELIABILITY_PNG = METRICS / "reliability.png"
COVERAGE_CSV = METRICS / "coverage.csv"
COVERAGE_PNG = METRICS / "coverage.png"
WRONG_PNG = METRICS / "wrong.png"
RIGHT_PNG = METRICS / "right.png"
ACTIVATION_PNG = METRICS / "activation.png"
GALLERY_JSON = METRICS / "gallery.json"
FOLDS_CSV = METRICS / "folds.csv"
SUBMISSION_CSV = METRICS / "submission.csv"
CURVES_PNG = METRICS / "curves.png"
BATCH_PNG = METRICS / "batch.png"
THROUGHPUT_CSV = METRICS / "throughput.csv"
SPEED_PNG = METRICS / "speed.png"
REPORT_HTML = METRICS / "report.html"
MODEL_CARD = METRICS / "model_card.md"

PARAMS = Path("params.yaml")
LOCK = Path("dvc.lock")


def stage_metrics(stage: str) -> Path:
    return METRICS / f"{stage}.json"


def headlines_json(stage: str) -> Path:
    return METRICS / "headlines" / f"{stage}.json"


def confusion_csv(split: str) -> Path:
    """Path of the truth and prediction of every image of a split."""
    return METRICS / f"confusion_{split}.csv"


def confusion_png(split: str) -> Path:
    return METRICS / f"confusion_{split}.png"


def project_root() -> Path:
    """The project folder, also inside the temporary folders of `dvc exp run --temp` and `--queue`.

    Files that outlive those folders (the tracking store, relative values of `data.path`) are below it.
    """
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()


# Folders that DVC does not delete


def unfinished() -> Path:
    """Saved states of unfinished trainings."""
    return project_root() / ".fieldguide" / "unfinished"


def journals() -> Path:
    """Where runs are recorded before they are sent to the tracking store."""
    return project_root() / ".fieldguide" / "tracking"


def synced() -> Path:
    """Which experiments a tracking store has, a file per store."""
    return project_root() / ".fieldguide" / "synced"


def download_cache() -> Path:
    return project_root() / ".fieldguide" / "downloads"


def packs_state() -> Path:
    """What went into each pack of photographs."""
    return project_root() / ".fieldguide" / "packs.json"


def inspected_cache() -> Path:
    """What the split check found in images, by content."""
    return project_root() / ".fieldguide" / "inspected"


def features_cache() -> Path:
    """Embeddings by frozen backbones, by content."""
    return project_root() / ".fieldguide" / "features"


def decoded_cache() -> Path:
    """Decoded images for training, by content."""
    return project_root() / ".fieldguide" / "decoded"


def models_cache() -> Path:
    """Cache of models of the registry, each named by its hash."""
    return project_root() / ".fieldguide" / "models"
