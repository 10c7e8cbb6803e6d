"""A run made by hand: every file that the report reads."""

import base64
import json
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from fieldguide.core.images import encode_jpeg
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
    LABEL_MAP_CSV,
    MANIFEST,
    MEAN_IMAGES,
    METRICS,
    ONNX,
    PER_CLASS_CSV,
    RECEIPT,
    RELIABILITY_CSV,
    SAMPLES_PNG,
    SIZES_PNG,
    THROUGHPUT_CSV,
    confusion_csv,
    stage_metrics,
)

PARAMS = {
    "data": {"dataset": "folder", "path": "", "features": {"image": "image"}},
    "model": {"name": "fieldnet", "weights": "none", "image_px": 96},
    "train": {"lr": 0.15, "epochs": 3, "compile": False},
    "augment": {"hue": 0.0},
    "benchmark": {"batch_sizes": [1, 8]},
}
COVERAGES = [f"accuracy_at_coverage_{share}" for share in (80, 90, 95)]


def gallery_photograph(truth: str, predicted: str) -> dict[str, Any]:
    pixels = base64.b64encode(encode_jpeg(np.full((8, 8, 3), 90, np.uint8), 8)).decode()
    activation = pixels if truth != predicted else None
    right = truth == predicted
    answer = {"truth": truth, "predicted": predicted, "probability": 0.75, "right": right}
    return answer | {"photograph": pixels, "activation": activation}


def split_figures(accuracy: float, n: int) -> dict[str, float]:
    ends = {"accuracy_low": accuracy - 0.1, "accuracy_high": accuracy + 0.05, "macro_f1_low": 0.6, "macro_f1_high": 0.9}
    figures = {"accuracy": accuracy, "top5_accuracy": 1.0, "macro_f1": 0.75, "weighted_f1": 0.76, "loss": 0.5, "ece": 0.04}
    return (
        figures
        | ends
        | dict.fromkeys(COVERAGES, 0.8)
        | {"loss_uncalibrated": 0.6, "ece_uncalibrated": 0.2, "risk_coverage_area": 0.01, "n": n, "known": 0.9, "sure": 0.8}
    )


def write_run(name: str) -> None:
    """What every stage writes, for two classes of which the second has `name`."""
    METRICS.mkdir()
    RECEIPT.parent.mkdir(parents=True)
    receipt = {"dataset": "folder", "title": name, "home": "", "licence": name, "source": name, "version": "", "release": ""}
    receipt |= {"layout": "folders", "features": {"image": "image", "label": "class", "id": "id"}, "images": {"train": 8}}
    receipt |= {"ignored": {}, "files": {"a": {"bytes": 10, "sha256": "00"}}}
    RECEIPT.write_text(json.dumps(receipt))
    for path in (MANIFEST, CHECKPOINT, CALIBRATION, ONNX, MEAN_IMAGES):
        path.parent.mkdir(exist_ok=True)
        path.write_text(path.stem)
    for path in (SAMPLES_PNG, SIZES_PNG, BATCH_PNG):
        Image.new("RGB", (8, 8)).save(path)
    near = {"across_splits": 2, "within_split": 1}
    check = {
        "classes": 2,
        "images": {"train": 8, "valid": 4, "test": 4},
        "unlabelled": 0,
        "unreadable": 1,
        "exact_duplicates": 0,
    }
    check |= {
        "near_duplicates": near,
        "label_conflicts": 0,
        "missing_classes": {"train": 0, "valid": 0, "test": 0},
        "dropped": 3,
        "corrections": {"keep": 0, "relabel": 0, "drop": 0, "unmatched": 0},
    }
    check["train_images_per_class"] = {"smallest": 3, "largest": 5}
    train = {"epochs": 3, "best_epoch": 2, "train": {"loss": 1.0, "accuracy": 0.5}, "valid": {"loss": 1.1, "accuracy": 0.5}}
    evaluate = {split: split_figures(0.75, 4) for split in ("train", "valid", "test")}
    evaluate |= {"test_without_leaks": {"accuracy": None, "n": 0}, "calibration": {"temperature": 0.5, "unsure_below": 0.9}}
    evaluate["calibration"]["unknown_below"] = 0.3
    evaluate |= {"tta": {"forward_passes": 1}, "strangers": {"white_noise": {"refused": 0.9, "auroc": 0.95, "n": 100}}}
    times = {"p50": 1.5, "p95": 2.5, "p99": 3.5}
    backend = {"latency_ms": times | {"p50_rounds": [1.4, 1.6]}, "images_per_second": 321.0, "bytes_to_answer_ms": times}
    backend |= {"accuracy": 0.75, "n": 4, "bytes": 4_000_000}
    hardware = {"device": "cpu, 2 threads", "cpu": "a processor", "cores": 2, "threads": 2, "int8_dot_products": True}
    hardware |= {"system": "Linux", "python": "3.11", "torch": "2", "onnxruntime": "1"}
    int8 = {"speedup": 2.5, "points_lost": 0.25, "offered": True}
    form = {"accuracy": 0.75, "bytes": 1_000_000}
    export = {"top1_agreement": 1.0, "max_abs_difference": 4e-7, "ties": 0, "accuracy": 0.75, "n": 4, "bytes": 4_000_000}
    export |= {"opset": 20, "fp16": form, "int8": form | {"method": "entropy", "valid_accuracy": {"entropy": 0.75}}}
    labels = {"enabled": True, "images": 16, "not_judged": 0, "accuracy": 0.875, "accuracy_low": 0.6, "accuracy_high": 0.97}
    labels |= {"suspected": {"train": 1, "valid": 0, "test": 1}, "doubtful": 1, "atypical": 1, "missed_copies": 1}
    labels |= {"missed_leaks": 1, "decided": 2}
    labels["inseparable"] = [{"one": "A", "other": name, "confused": 4, "images": 16}]
    contents = {
        "split_check": check,
        "label_check": labels,
        "train": train | {"parameters": 1234},
        "evaluate": evaluate,
        "export_onnx": export,
        "benchmark": {"onnxruntime": backend, "int8": int8, "hardware": hardware},
    }
    for stage, content in contents.items():
        stage_metrics(stage).write_text(json.dumps(content))
    names = ["A", name]
    splits = {"train": [3, 5], "valid": [2, 2], "test": [2, 2]}
    pd.DataFrame({"label": [0, 1], "class_name": names} | splits).to_csv(CLASSES_CSV, index=False)
    pd.DataFrame({"kind": ["leak"], "action": [name]}).to_csv(FINDINGS_CSV, index=False)
    places = {"x": [0.0, 1.0, 2.0], "y": [1.0, 0.0, 2.0], "class_name": ["A", name, name], "split": ["train"] * 3}
    pd.DataFrame(places | {"file": ["a", "b", "c"], "kind": ["", "label", ""]}).to_csv(LABEL_MAP_CSV, index=False)
    history = {"epoch": [1, 2, 3], "lr": [0.1, 0.2, 0.0]}
    history |= {f"{split}_{key}": [0.3, 0.5, 0.4] for split in ("train", "valid") for key in ("loss", "accuracy")}
    pd.DataFrame(history).to_csv(HISTORY_CSV, index=False)
    per_class = {
        "split": "test",
        "class_name": names,
        "precision": [1, 0.5],
        "recall": [0.5, 1],
        "f1": [0.9, 0.6],
        "support": 2,
    }
    pd.DataFrame(per_class).to_csv(PER_CLASS_CSV, index=False)
    bins = {"split": ["valid", "test"], "low": 0.5, "high": 1.0, "n": 4, "confidence": 0.8, "accuracy": 0.75}
    pd.DataFrame(bins | {"accuracy_low": 0.5, "accuracy_high": 0.9}).to_csv(RELIABILITY_CSV, index=False)
    coverage = {"coverage": np.arange(1, 101) / 100}
    coverage |= {f"{split}{key}": value for split in ("valid", "test") for key, value in (("", 0.75), ("_probability", 0.6))}
    pd.DataFrame(coverage).to_csv(COVERAGE_CSV, index=False)
    pair = {"split": ["test"], "truth": ["A"], "predicted": [name], "n": [1], "n_truth": [2], "share": [0.5]}
    pd.DataFrame(pair).to_csv(CONFUSED_PAIRS_CSV, index=False)
    throughput = {
        "backend": "onnxruntime",
        "threads": 1,
        "batch_size": [1, 8],
        "images_per_second": [300, 321],
        "slowest": 250,
        "fastest": 400,
    }
    pd.DataFrame(throughput).to_csv(THROUGHPUT_CSV, index=False)
    for split in ("train", "valid", "test"):
        table = pd.DataFrame({"truth": ["A", "A", name, name], "predicted": ["A", name, name, name]})
        table.to_csv(confusion_csv(split), index=False)
    both = {"truth": "A", "predicted": name, "n": 1, "n_truth": 4}
    examples = {"mistaken": [gallery_photograph("A", name)], "of_truth": [gallery_photograph("A", "A")], "of_predicted": []}
    wrong, right = [gallery_photograph("A", name)], [gallery_photograph(name, name)]
    GALLERY_JSON.write_text(json.dumps({"split": "test", "wrong": wrong, "right": right, "pairs": [both | examples]}))
