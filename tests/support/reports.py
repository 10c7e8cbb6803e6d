"""A run made by hand: every file that the report reads."""

import base64
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from fieldguide.core.images import encode_jpeg
from fieldguide.core.manifest import as_given, write_manifest, write_table
from fieldguide.core.names import common_name
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
    MANIFEST,
    MEAN_IMAGES,
    METRICS,
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

PARAMS = {
    "data": {"dataset": "folder", "path": "", "features": {"image": "image"}},
    "split_check": {"folds": 0},
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
        | {"loss_uncalibrated": 0.6, "ece_uncalibrated": 0.2, "risk_coverage_area": 0.01, "n": n, "classes": 2}
        | {"known": 0.9, "sure": 0.8}
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
        "leaks": 0,
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
    evaluate: dict[str, Any] = {split: split_figures(0.75, 4) for split in ("train", "valid", "test")} | {"classes": 2}
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
    labels |= {"inseparable": [{"one": "A", "other": name, "confused": 4, "images": 16}], "inseparable_pairs": 1}
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
    pd.DataFrame(columns=["split", "rank", "truth", "predicted", "n", "n_truth"]).to_csv(CONFUSED_TAXA_CSV, index=False)
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


LETTERS = "BDFGLMNPRSTV"


def species_names(n_classes: int, with_genus: bool = True) -> list[str]:
    """Different names of two words; without `with_genus` no first word is that of many classes."""
    words = [f"{a}{x}{b.lower()}{y}" for a in LETTERS for x in "aeiou" for b in LETTERS for y in ("us", "is", "ia", "or")]
    genus = [words[g % len(words)] + "x" * (g // len(words)) for g in (k // 5 if with_genus else k for k in range(n_classes))]
    return [f"{first} {words[7 * k % len(words)].lower()}{k}" for k, first in enumerate(genus)]


def write_large_run(names: list[str], images_per_class: int = 6) -> None:
    """What every stage writes about many classes of falling size, of which four in five images are answered correctly.

    Classes of one or two images are in train alone. Wrong answers are mostly of one of the next four classes.
    """
    write_run("Large")
    Image.new("RGB", (1100, 400), "grey").save(BATCH_PNG)
    random, n_classes = np.random.default_rng(0), len(names)
    sizes = 1 + random.geometric(1 / (images_per_class - 1), n_classes) * random.choice([0, 1, 3], n_classes, p=[0.2, 0.7, 0.1])
    held_out = np.where(sizes >= 3, np.maximum(1, sizes // 6), 0)
    counts = {"train": sizes - 2 * held_out, "valid": held_out, "test": held_out}
    labels = {split: np.repeat(np.arange(n_classes), n) for split, n in counts.items()}
    class_names = np.array(names, dtype=object)
    write_table(pd.DataFrame({"label": range(n_classes), "class_name": names} | counts), CLASSES_CSV)
    missing = {split: int((n == 0).sum()) for split, n in counts.items()}
    images = {split: int(n.sum()) for split, n in counts.items()}
    spread = {"smallest": 1, "largest": int(counts["train"].max())}
    _change("split_check", classes=n_classes, images=images, missing_classes=missing, train_images_per_class=spread)
    same = [{"one": a, "other": b, "confused": 2, "images": 6} for a, b in zip(names[::10], names[1::10], strict=False)]
    _change("label_check", inseparable=same, inseparable_pairs=len(same))
    places = {"x": 90 * random.random(2000), "y": 90 * random.random(2000), "class_name": random.choice(class_names, 2000)}
    kinds = random.choice(["", "label", "atypical", "duplicate"], 2000, p=[0.94, 0.03, 0.02, 0.01])
    write_table(pd.DataFrame(places | {"split": "train", "file": "a.jpg", "kind": kinds}), LABEL_MAP_CSV)
    _write_large_photographs(class_names, labels, random)
    _write_large_gallery(_write_large_answers(class_names, labels, random))


def _change(stage: str, **values: Any) -> None:
    """Other values in the metrics of a stage."""
    path = stage_metrics(stage)
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _write_large_answers(class_names: np.ndarray, labels: dict[str, np.ndarray], random: np.random.Generator) -> pd.DataFrame:
    """evaluate.json, per_class.csv, confused_pairs.csv and a confusion_*.csv for each split; the pairs of test."""
    from fieldguide.evaluation.tables import confused_pairs, confusions  # which imports torch

    n_classes, figures, per_class, pairs = len(class_names), {}, [], []
    for split, truth in labels.items():
        n_images = len(truth)
        step = np.where(random.random(n_images) < 0.7, random.integers(1, 5, n_images), random.integers(1, n_classes, n_images))
        predicted = np.where(random.random(n_images) < 0.8, truth, (truth + step) % n_classes)
        right = truth == predicted
        answered = SimpleNamespace(name=split, class_names=class_names, targets=truth, right=right)
        answered.answers = SimpleNamespace(predicted=predicted, ranks=())
        write_table(confusions(answered), confusion_csv(split))
        pairs.insert(0, confused_pairs(answered))
        n_right, n_truth, n_predicted = (np.bincount(which, minlength=n_classes) for which in (truth[right], truth, predicted))
        shares = {"precision": (n_right, n_predicted), "recall": (n_right, n_truth), "f1": (2 * n_right, n_truth + n_predicted)}
        scores = {key: np.where(n_truth, n / np.maximum(of, 1), np.nan) for key, (n, of) in shares.items()}
        if split != "train":
            per_class.append(pd.DataFrame({"split": split, "class_name": class_names} | scores | {"support": n_truth}))
        accuracy = float(right.mean())
        figures[split] = split_figures(accuracy, n_images) | {"macro_f1": float(np.nanmean(scores["f1"]))}
        figures[split]["classes"] = int((n_truth > 0).sum())
    _change("evaluate", classes=n_classes, **figures)
    write_table(pd.concat(per_class), PER_CLASS_CSV)
    table = pd.concat(pairs)
    table = table.assign(truth=class_names[table["truth"]], predicted=class_names[table["predicted"]])
    write_table(table, CONFUSED_PAIRS_CSV)
    return table[table["split"] == "test"]


def _write_large_photographs(class_names: np.ndarray, labels: dict[str, np.ndarray], random: np.random.Generator) -> None:
    """data/manifest.csv with a row per image and data/raw/images.zip, of 50 photographs that the rows share."""
    photographs = [encode_jpeg(random.integers(0, 256, (60, 80, 3), dtype=np.uint8), 80) for _ in range(50)]
    (RAW / "images.zip").write_bytes(b"".join(photographs))
    lengths = np.array([len(photograph) for photograph in photographs])
    truth = np.concatenate(list(labels.values()))
    shared = np.arange(len(truth)) % len(photographs)
    rows = {
        "split": np.repeat(list(labels), [len(each) for each in labels.values()]),
        "label": truth,
        "class_name": class_names[truth],
        "id": [f"{k}.jpg" for k in range(len(truth))],
        "file": "images.zip",
        "offset": (np.cumsum(lengths) - lengths)[shared],
        "length": lengths[shared],
        "width": 80,
        "height": 60,
    }
    frame = pd.DataFrame(rows).assign(sha256="00", phash="0", use=True, reason="", unit=range(len(truth)))
    write_manifest(as_given(frame), MANIFEST)
    with MEAN_IMAGES.open("wb") as stream:
        np.savez(stream, **{split: np.full((60, 80, 3), 90 + 40 * k, np.uint8) for k, split in enumerate(labels)})


def _write_large_gallery(pairs: pd.DataFrame) -> None:
    """As many photographs, of as many bytes, as metrics/gallery.json of a real run has: 32 wrong, 24 right, 8 pairs."""
    texture = np.random.default_rng(0).normal(110, 25, (36, 36, 3)).clip(0, 255).astype(np.uint8)
    pixels = base64.b64encode(encode_jpeg(np.asarray(Image.fromarray(texture).resize((144, 144))), 144)).decode()

    def photograph(truth: str, predicted: str) -> dict[str, Any]:
        return gallery_photograph(truth, predicted) | {"photograph": pixels, "activation": pixels}

    confused = [(common_name(row.truth), common_name(row.predicted), row.n, row.n_truth) for row in pairs.head(32).itertuples()]
    both = [
        {"truth": a, "predicted": b, "n": n, "n_truth": n_truth, "mistaken": [photograph(a, b)] * min(n, 4)}
        | {"of_truth": [photograph(a, a)] * 2, "of_predicted": [photograph(b, b)] * 2}
        for a, b, n, n_truth in confused[:8]
    ]
    wrong, right = [photograph(a, b) for a, b, *_ in confused], [photograph(a, a) for a, *_ in confused[:24]]
    GALLERY_JSON.write_text(json.dumps({"split": "test", "wrong": wrong, "right": right, "pairs": both}))
