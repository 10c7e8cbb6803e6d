"""One page and one model card about a run, from the files that its stages wrote.

The page is whole in one file: pictures lie in it as data, charts are SVG in its text, and it asks no other host for
anything. What is not there yet is said, not guessed.
"""

import base64
import importlib.metadata
import math
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import pandas as pd
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fieldguide.core.files import file_hash, read_json
from fieldguide.core.images import encode_jpeg, inspect
from fieldguide.core.names import SPLITS, common_name, flat
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
from fieldguide.report import charts

TEMPLATES = Path(__file__).parent / "templates"
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
PNG_PX = 1600  # largest side of these in the page
HASHED = (MANIFEST, CHECKPOINT, CALIBRATION, ONNX)
PACKAGES = ("torch", "torchvision", "timm", "numpy", "scikit-learn", "pillow", "onnx", "onnxruntime", "dvc", "mlflow")
COLUMNS = {  # of a split's metrics: the heading, and how its values are written
    "n": ("images", "count"),
    "accuracy": ("accuracy", "percent"),
    "top5_accuracy": ("top 5", "percent"),
    "macro_f1": ("macro F1", "number"),
    "weighted_f1": ("weighted F1", "number"),
    "loss": ("loss (nats)", "number"),
    "ece": ("calibration error", "number"),
}
EVALUATED = (*SPLITS, "test_without_leaks")
FEW = 10  # images of a class under which the card warns of its figures
COVERAGES = (0.5, 0.8, 0.9, 0.95, 1.0)  # of the table; the chart has all


@dataclass(frozen=True)
class Facts:
    """What the stages wrote, `None` (or no entry) for what is not there.

    metrics: by stage; tables: by their name in `TABLES`; confusions: tables of truth and prediction by split; gallery: the
    content of metrics/gallery.json; pngs: encoded, by their name in `PNGS`; hashes: a row for each file; params: by section.
    """

    receipt: dict[str, Any] | None
    metrics: dict[str, dict[str, Any]]
    tables: dict[str, pd.DataFrame]
    confusions: dict[str, pd.DataFrame]
    gallery: dict[str, Any] | None
    pngs: dict[str, bytes]
    hashes: list[dict[str, Any]]
    versions: dict[str, str]
    params: dict[str, dict[str, Any]]

    @property
    def held_out(self) -> str | None:
        """The split on which the network is measured: test, or valid where test has no labels."""
        measured = [split for split in SPLITS if split in self.metrics.get("evaluate", {})]
        return measured[-1] if measured else None

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
        gallery=read_json(GALLERY_JSON) if GALLERY_JSON.exists() else None,
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


def render_page(facts: Facts) -> str:
    """The report as HTML."""
    return (
        _environment(autoescape=True)
        .get_template("report.html")
        .render(
            style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
            title=title(facts),
            summary=summary(facts),
            tiles=tiles(facts),
            sections=(
                ("data", "Data"),
                ("training", "Training"),
                ("results", "Results"),
                ("mistakes", "Mistakes"),
                ("right", "Right answers"),
                ("confidence", "Confidence"),
                ("speed", "Speed"),
                ("run", "This run"),
            ),
            data=data_section(facts),
            training=training_section(facts),
            results=results_section(facts),
            confusions=confusion_charts(facts),
            gallery=gallery_section(facts),
            confidence=confidence_section(facts),
            export=export_rows(facts),
            benchmark=benchmark_section(facts),
            params=[(section, _rows(values)) for section, values in facts.params.items()],
            versions=list(facts.versions.items()),
            hashes=facts.hashes,
        )
    )


def _environment(autoescape: bool) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"percent": percent, "number": number, "count": count, "bytes": size, "md": markdown}
    return environment


def _known(value: float | None) -> TypeGuard[float]:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def percent(value: float | None, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}\u00a0%" if _known(value) else "–"


def number(value: float | None, digits: int = 3) -> str:
    return f"{value:,.{digits}f}" if _known(value) else "–"


def count(value: float | None) -> str:
    return f"{int(value):,}" if _known(value) else "–"


def size(value: int | None) -> str:
    """Bytes in the unit that leaves one to three digits before the point."""
    if not _known(value):
        return "–"
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return f"{value / factor:.1f} {unit}"
    return f"{value} bytes"


def _shown(value: Any) -> str:
    """Any value of a params or metrics file in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value == "":
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(_shown, value)) if isinstance(value, (list, tuple)) else str(value)


def _rows(tree: dict[str, Any]) -> list[tuple[str, str]]:
    """Nested values under dotted names."""
    return [(name, _shown(value)) for name, value in flat(tree).items()]


def title(facts: Facts) -> str:
    return facts.receipt["title"] if facts.receipt else "A run of fieldguide"


def summary(facts: Facts) -> str:
    """Network, size, classes and photographs in a sentence, as far as they are known."""
    model, check = facts.params["model"], facts.metrics.get("split_check")
    classes = f", {count(check['classes'])} classes" if check else ""
    learned = "from scratch" if model["weights"] == "none" else f"from weights: {model['weights']}"
    used = facts.rows("classes")["train"].sum() if "classes" in facts.tables else None
    trained = f", trained {learned}" + (f" on {count(used)} photographs" if used else "")
    return f"{model['name']} at {model['image_px']} px{classes}{trained if 'train' in facts.metrics else ''}."


def interval(figures: dict[str, Any], key: str, write: str) -> str:
    """The 95 % interval of a figure, or nothing."""
    low, high = figures.get(f"{key}_low"), figures.get(f"{key}_high")
    if low is None or high is None:
        return ""
    return f"{100 * low:.1f} to {100 * high:.1f}" if write == "percent" else f"{low:.3f} to {high:.3f}"


def tiles(facts: Facts) -> list[dict[str, str]]:
    """The figures that a reader looks for first."""
    found, split = [], facts.held_out
    if split:
        figures = facts.metrics["evaluate"][split]
        between = interval(figures, "accuracy", "percent")
        n = f"n\u00a0=\u00a0{count(figures['n'])}"
        note = f"{between}, {n}" if between else n
        found.append((f"{split} accuracy", percent(figures["accuracy"]), note))
        found.append(("macro F1", number(figures["macro_f1"]), interval(figures, "macro_f1", "number") or f"of {split}"))
        found.append(("calibration error", number(figures["ece"]), "expected, 0 is best"))
    check, export = facts.metrics.get("split_check"), facts.metrics.get("export_onnx")
    if check:
        found.append(("classes", count(check["classes"]), f"{count(sum(check['images'].values()))} labelled images"))
    if export:
        found.append(("model file", size(export["bytes"]), f"ONNX, opset {export['opset']}"))
    backends = _backends(facts)
    if backends:
        best = min(backends, key=lambda row: row["p50"])
        found.append(("one image in", f"{best['p50']:.1f} ms", f"{best['name']}, median"))
    return [dict(zip(("name", "value", "note"), tile, strict=True)) for tile in found]


def data_section(facts: Facts) -> dict[str, Any] | None:
    """Splits, faults, origin and pictures of the data."""
    check = facts.metrics.get("split_check")
    if check is None:
        return None
    classes, findings = facts.rows("classes"), facts.rows("findings")
    splits = []
    for split in SPLITS:
        used = classes[split] if split in classes else pd.Series(dtype=float)
        facts_of_split = {"split": split, "images": check["images"][split]}
        extremes = {"used": used.sum(), "fewest": used.min(), "most": used.max()} if len(used) else {}
        splits.append(facts_of_split | dict.fromkeys(("used", "fewest", "most")) | extremes)
    near = check["near_duplicates"]
    searched = near["across_splits"] is not None
    found = [
        ("unlabelled images", count(check["unlabelled"])),
        ("unreadable images", count(check["unreadable"])),
        ("byte-identical pairs", count(check["exact_duplicates"])),
        ("near duplicates across splits", count(near["across_splits"]) if searched else "not looked for"),
        ("near duplicates within a split", count(near["within_split"]) if searched else "not looked for"),
        ("photographs under two names", count(check["label_conflicts"])),
        *((f"classes without images in {split}", count(check["missing_classes"][split])) for split in SPLITS),
        ("images left out of use", count(check["dropped"])),
    ]
    dropped = check["dropped"]
    out = f"{count(dropped)} of them are left out of use" if dropped else "all of them are in use"
    faults: Any = findings.groupby(["kind", "action"], sort=False).size() if len(findings) else pd.Series(dtype=int)
    train = classes["train"].tolist() if "train" in classes else []
    pictures = (
        ("samples", "Samples of each split", "Ten photographs of each split with their class names"),
        ("sizes", "Sizes and mean images", "Histogram of the sides of the images, and the mean image of each split"),
    )
    total = sum(check["images"].values()) + check["unlabelled"]
    return {
        "text": f"{count(total)} images of {count(check['classes'])} classes; {out}.",
        "splits": splits,
        "found": found,
        "searched": searched,
        "origin": _origin(facts.receipt),
        "faults": [{"kind": kind, "action": action, "n": n} for (kind, action), n in faults.items()],
        "strip": Markup(charts.strip(train, f"{min(train)} to {max(train)} training images a class")) if train else None,
        "strip_note": f"{count(min(train))} to {count(max(train))}" if train else "",
        "class_splits": [split for split in SPLITS if split in classes],
        "classes": _named(classes),
        "pictures": [_picture(facts, *picture) for picture in pictures if picture[0] in facts.pngs],
    }


def _origin(receipt: dict[str, Any] | None) -> list[tuple[str, str]]:
    keys = ("dataset", "home", "licence", "source", "version", "release", "layout")
    rows = [(key, _shown(receipt[key])) for key in keys if receipt.get(key)] if receipt else []
    files = receipt.get("files", {}).items() if receipt else ()
    return [*rows, ("files", count(len(files))), ("bytes", size(sum(file["bytes"] for _, file in files)))] if rows else []


def _named(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows with the class names as a person writes them."""
    rows = _records(frame.astype(object).where(frame.notna(), None))
    return [row | {"class_name": common_name(str(row["class_name"]))} for row in rows]


def _picture(facts: Facts, name: str, heading: str, text: str) -> dict[str, str]:
    """A PNG of another stage as a JPEG in the page: photographs are a tenth as large so."""
    pixels = inspect(facts.pngs[name], PNG_PX)[1]
    encoded = base64.b64encode(encode_jpeg(pixels, PNG_PX)).decode()
    return {"title": heading, "text": text, "source": f"data:image/jpeg;base64,{encoded}"}


def _chart(heading: str, svg: str, note: str = "") -> dict[str, Any]:
    return {"title": heading, "svg": Markup(svg), "note": note}


def training_section(facts: Facts) -> dict[str, Any] | None:
    """Curves of the epochs, and what the network saw."""
    figures = facts.metrics.get("train")
    if figures is None:
        return None
    history, best = facts.rows("history"), figures["best_epoch"]
    shown = []
    if len(history):
        epochs = history["epoch"].tolist()
        for key, heading, unit in (("loss", "Loss", "cross-entropy (nats)"), ("accuracy", "Accuracy", "share right")):
            both = [charts.Line(split, epochs, history[f"{split}_{key}"].tolist()) for split in ("train", "valid")]
            text = f"{heading} over {len(epochs)} epochs; at the best, {best}, {figures['valid'][key]:.3f} on valid"
            svg = charts.lines(both, "epoch", unit, text, mark=best, percent=key == "accuracy")
            shown.append(_chart(heading, svg, f"best epoch {best}: {figures['valid'][key]:.3f} on valid"))
        rate = [charts.Line("rate", epochs, history["lr"].tolist())]
        shown.append(_chart("Learning rate", charts.lines(rate, "epoch", "learning rate", "Learning rate over the epochs")))
    valid = figures["valid"]
    batch = ("batch", "What the network saw in training", "Training images as decoded, and as augmented in different epochs")
    return {
        "text": f"{count(figures['parameters'])} parameters, {figures['epochs']} epochs. The best by the validation split is"
        f" epoch {best}, with {percent(valid['accuracy'])} right there; it is the one that is kept.",
        "charts": shown,
        "pictures": [_picture(facts, *batch)] if "batch" in facts.pngs else [],
    }


def results_section(facts: Facts) -> dict[str, Any] | None:
    """The figures of every split, and of every class of the held-out one."""
    metrics, split = facts.metrics.get("evaluate"), facts.held_out
    if metrics is None or split is None:
        return None
    measured = {name: metrics[name] for name in EVALUATED if name in metrics}
    keys = [key for key in COLUMNS if any(key in figures for figures in measured.values())]
    write = {"count": count, "percent": percent, "number": number}
    rows = [
        {
            "name": name.replace("_", " "),
            "cells": [(write[COLUMNS[key][1]](figures.get(key)), interval(figures, key, COLUMNS[key][1])) for key in keys],
        }
        for name, figures in measured.items()
    ]
    used = set(keys) | {f"{key}_{end}" for key in keys for end in ("low", "high")}
    rest = {name: {key: value for key, value in figures.items() if key not in used} for name, figures in measured.items()}
    rest |= {name: figures for name, figures in metrics.items() if name not in measured}
    groups = [(name.replace("_", " "), _rows(v if isinstance(v, dict) else {name: v})) for name, v in rest.items() if v != {}]
    return {
        "text": result_text(metrics[split], split),
        "split": split,
        "has_test": "test" in metrics,
        "columns": [COLUMNS[key][0] for key in keys],
        "rows": rows,
        "per_class": per_class(facts),
        "further": groups,
    }


def result_text(figures: dict[str, Any], split: str) -> str:
    """The headline in a sentence."""
    n, n_right = figures["n"], round(figures["accuracy"] * figures["n"])
    between = interval(figures, "accuracy", "percent")
    known = f", 95\u00a0% interval {between}\u00a0%" if between else ""
    return f"{count(n_right)} of {count(n)} images of {split} are named right: {percent(figures['accuracy'])}{known}."


def per_class(facts: Facts) -> list[dict[str, Any]]:
    """Figures of every class of the held-out split that has images there, the lowest F1 first."""
    frame = facts.rows("per_class", facts.held_out)
    return _named(frame[frame["support"] > 0].sort_values("f1", kind="stable")) if len(frame) else []


def confusion_charts(facts: Facts) -> list[dict[str, Any]]:
    """A chart for each split, the held-out one first; none where a split has no labels."""
    shown = []
    for split in reversed(SPLITS):
        frame = facts.confusions.get(split)
        if frame is None:
            continue
        if frame.empty:
            shown.append({"title": split, "svg": None})
            continue
        listed = facts.tables["classes"]["class_name"] if "classes" in facts.tables else sorted(frame["truth"].unique())
        names = list(dict.fromkeys([*listed, *frame["truth"], *frame["predicted"]]))
        places = {name: place for place, name in enumerate(names)}
        counts = np.zeros((len(names), len(names)), np.int64)
        np.add.at(counts, (frame["truth"].map(places), frame["predicted"].map(places)), 1)
        heading = f"{split}: {count(np.trace(counts))} of {count(len(frame))} right"
        svg = charts.confusion(counts, [common_name(name) for name in names], f"Confusion of {heading}")
        shown.append({"title": heading, "svg": Markup(svg)})
    return sorted(shown, key=lambda one: one["svg"] is None)


def gallery_section(facts: Facts) -> dict[str, Any] | None:
    """Photographs of answers, with what is said above them."""
    gallery = facts.gallery
    if gallery is None:
        return None
    split, wrong = gallery["split"], len(gallery["wrong"])
    looked = any(one["activation"] for one in gallery["wrong"] + gallery["right"])
    beside = " Beside each: where the network looked for its answer (class activation)." if looked else ""
    figures = facts.metrics.get("evaluate", {}).get(split)
    total = figures["n"] - round(figures["accuracy"] * figures["n"]) if figures else wrong
    shown = f"{count(wrong)} of the {count(total)}" if wrong < total else f"All {count(total)}" if total > 1 else "The one"
    return gallery | {
        "wrong_text": f"{shown} wrong answer{'s' if total > 1 else ''} of {split}.{beside}",
        "right_text": f"From the surest to the least sure, spread over all right answers of {split}.{beside}",
        "all_pairs": _table_of_pairs(facts.rows("confused_pairs", split)),
    }


def _table_of_pairs(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [row | {key: common_name(row[key]) for key in ("truth", "predicted")} for row in _records(frame)]


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    records: Any = frame.to_dict("records")
    return records


def confidence_section(facts: Facts) -> dict[str, Any] | None:
    """Reliability, and accuracy over coverage."""
    metrics, split = facts.metrics.get("evaluate", {}), facts.held_out
    shown = []
    for name in ("test", "valid"):
        frame = facts.rows("reliability", name)
        if len(frame):
            n, confidence, right = (frame[column].tolist() for column in ("n", "confidence", "accuracy"))
            low, high = frame["accuracy_low"].tolist(), frame["accuracy_high"].tolist()
            ece = metrics.get(name, {}).get("ece")
            text = f"Reliability of {name}: expected calibration error {number(ece)}"
            svg = charts.reliability(n, confidence, right, low, high, text)
            shown.append(_chart(f"Reliability, {name}", svg, f"expected calibration error {number(ece)}"))
    coverage = facts.rows("coverage")
    unseen = [name for name in ("valid", "test") if name in coverage]
    if unseen:
        series = [charts.Line(name, coverage["coverage"].tolist(), coverage[name].tolist()) for name in unseen]
        svg = charts.lines(series, "answered, the surest first", "of these right", "Accuracy over coverage", percent=True)
        shown.append(_chart("Accuracy over coverage", svg, "when the least certain are refused"))
    if not shown:
        return None
    last = unseen[-1] if unseen else None
    places = [int(np.abs(coverage["coverage"] - share).argmin()) for share in COVERAGES] if last else []
    table = [
        {
            "coverage": float(coverage["coverage"].iloc[place]),
            "accuracy": float(coverage[last].iloc[place]),
            "confidence": float(coverage[f"{last}_probability"].iloc[place]),
        }
        for place in places
    ]
    return {"text": confidence_text(metrics, split), "charts": shown, "split": last, "coverage": table}


def confidence_text(metrics: dict[str, Any], split: str | None) -> str:
    """What the dots mean, and what calibration changed, where it is known."""
    parts = ["A dot is a bin of answers: how sure the network was, and how many of them are right, with its 95 % interval."]
    temperature = metrics.get("calibration", {}).get("temperature")
    figures = metrics.get(split, {}) if split else {}
    if temperature is not None:
        before = figures.get("ece_uncalibrated")
        change = f", which takes the calibration error of {split} from {before:.3f} to {figures['ece']:.3f}" if before else ""
        parts.append(f"Probabilities are at temperature {temperature:.3f}, fitted on valid{change}.")
    if figures.get("known") is not None:
        sure, right = figures["sure"], figures["accuracy_when_sure"]
        known = f" and {percent(right)} of these are right" if right is not None else ""
        parts.append(
            f"{percent(figures['known'])} of {split} are taken for known classes; {percent(sure)} are answered as sure{known}."
        )
    if strangers := metrics.get("strangers"):
        told = ", ".join(f"{percent(found['refused'], 0)} of {kind.replace('_', ' ')}" for kind, found in strangers.items())
        parts.append(f"Of drawn pictures that show none of the classes are refused: {told}.")
    return " ".join(parts)


def export_rows(facts: Facts) -> list[tuple[str, str]] | None:
    """The proof that the ONNX file answers as torch does."""
    export = facts.metrics.get("export_onnx")
    if export is None:
        return None
    known = {
        "top1_agreement": ("same first answer", percent(export.get("top1_agreement"), 2)),
        "max_abs_difference": ("largest difference of a probability", f"{export.get('max_abs_difference', math.nan):.1e}"),
        "bytes": ("size", size(export.get("bytes"))),
    }
    return [known.get(key, (key.replace("_", " "), _shown(value))) for key, value in flat(export).items()]


def _backends(facts: Facts) -> list[dict[str, Any]]:
    """Latency, throughput, accuracy and size of each backend."""
    entries = facts.metrics.get("benchmark", {})
    keys = ("images_per_second", "accuracy", "bytes")
    return [
        {"name": name} | dict.fromkeys(("p50", "p95", "p99")) | entry["latency_ms"] | {key: entry.get(key) for key in keys}
        for name, entry in entries.items()
        if isinstance(entry, dict) and "latency_ms" in entry
    ]


def benchmark_section(facts: Facts) -> dict[str, Any] | None:
    """Tables of speed."""
    if "benchmark" not in facts.metrics:
        return None
    backends, throughput = _backends(facts), facts.rows("throughput")
    sizes = sorted(throughput["batch_size"].unique().tolist()) if len(throughput) else []
    ways = [name for name in ("backend", "threads") if name in throughput]
    groups: Any = throughput.groupby(ways, sort=False) if sizes else ()
    by_backend = [
        (
            ", ".join([str(way[0]), *(f"{n} thread{'s' * (n > 1)}" for n in way[1:])]),
            [part[part["batch_size"] == n].iloc[0].to_dict() if (part["batch_size"] == n).any() else {} for n in sizes],
        )
        for way, part in groups
    ]
    blank = dict.fromkeys(("images_per_second", "slowest", "fastest"))
    hardware = facts.metrics["benchmark"].get("hardware", {})
    device = f" on {hardware['device']}" if "device" in hardware else ""
    int8 = facts.metrics["benchmark"].get("int8", {}).get("text")
    return {
        "text": f"Measured after warm-up{device}; the figures belong to that machine." + (f" INT8: {int8}." if int8 else ""),
        "backends": backends,
        "batch_sizes": sizes,
        "throughput": [(name, [blank | cell for cell in cells]) for name, cells in by_backend],
        "hardware": _rows(hardware),
    }


def render_card(facts: Facts) -> str:
    """The model card as Markdown, in the sections of Hugging Face's template."""
    split, receipt, results = facts.held_out, facts.receipt or {}, results_section(facts)
    evaluate, benchmark = facts.metrics.get("evaluate", {}), benchmark_section(facts)
    names = facts.rows("classes")["class_name"].tolist() if "classes" in facts.tables else []
    training = training_section(facts)
    sections = ("data.dataset", "model", "train", "augment")
    return (
        _environment(autoescape=False)
        .get_template("model_card.md")
        .render(
            front_matter=front_matter(facts),
            title=title(facts),
            summary=summary(facts),
            headline=results["text"] if results else "",
            model=facts.params["model"],
            parameters=facts.metrics.get("train", {}).get("parameters"),
            classes=[common_name(str(name)) for name in names],
            licence=receipt.get("licence") or "not stated either",
            home=receipt.get("home", ""),
            thresholds=evaluate.get("calibration"),
            synthetic=receipt.get("dataset") == "sample",
            limitations=limitations(facts, split),
            data=data_section(facts),
            training=training["text"] if training else "The figures of the training are not there.",
            hyperparameters=[row for row in _rows(facts.params) if row[0].startswith(sections)],
            backends=_backends(facts),
            hardware=benchmark["text"] if benchmark else "",
            results=results,
            versions=list(facts.versions.items()),
            hashes=facts.hashes,
        )
    )


def front_matter(facts: Facts) -> str:
    """The card's metadata as YAML, with the results in the form of a model index."""
    split, name = (
        facts.held_out,
        f"fieldguide-{facts.params['data']['dataset']}-{facts.params['model']['name'].replace('/', '-')}",
    )
    card: dict[str, Any] = {
        "library_name": "onnx",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "fieldguide"],
    }
    if split:
        figures = facts.metrics["evaluate"][split]
        kinds = (("accuracy", "accuracy", "Accuracy"), ("f1", "macro_f1", "Macro F1"))
        results = [{"type": kind, "value": round(figures[key], 4), "name": text} for kind, key, text in kinds]
        dataset = {"name": title(facts), "type": facts.params["data"]["dataset"], "split": split}
        entry = {"task": {"type": "image-classification"}, "dataset": dataset, "metrics": results}
        card |= {"metrics": ["accuracy", "f1"], "model-index": [{"name": name, "results": [entry]}]}
    return yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=1000)


def limitations(facts: Facts, split: str | None) -> list[str]:
    """What the data say against the model, and what nobody measured."""
    lines = []
    check, rows = facts.metrics.get("split_check"), per_class(facts)
    if rows:
        few = sum(row["support"] < FEW for row in rows)
        if few:
            lines.append(f"{few} of {len(rows)} classes have fewer than {FEW} images in {split}: their figures mean little.")
        low = [row for row in rows if row["f1"] < 1][:5]
        if low:
            listed = ", ".join(f"{row['class_name']} ({row['f1']:.2f}, n = {row['support']})" for row in low)
            lines.append(f"The lowest F1 in {split}: {listed}.")
    if facts.gallery and facts.gallery["pairs"]:
        pairs = [
            f"{pair['truth']} for {pair['predicted']} ({pair['n']} of {pair['n_truth']})" for pair in facts.gallery["pairs"]
        ]
        lines.append(f"Most often mistaken outside train: {', '.join(pairs[:5])}.")
    spread = (check or {}).get("train_images_per_class")
    if spread and spread["smallest"] < spread["largest"]:
        lines.append(
            f"Classes are learned from {count(spread['smallest'])} to {count(spread['largest'])} images: not equally well."
        )
    if check and check["near_duplicates"]["across_splits"] is None:
        lines.append("Near duplicates between the splits were not looked for; the figures may be too good.")
    if "test" not in facts.metrics.get("evaluate", {}):
        lines.append("There is no figure on labelled test images.")
    lines.append("One training run, one seed: the spread between runs was not measured.")
    lines.append("It was measured on no other collection of photographs.")
    return lines


def markdown(text: object) -> str:
    """Text in which no sign of Markdown or HTML has a meaning."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>#|~" else letter for letter in " ".join(str(text).split()))
