"""The report: one page about a run, whole in one file.

Pictures lie in it as data, charts are SVG in its text, and it asks no other host for anything. What is not there yet is
said, not guessed.
"""

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from fieldguide.core.artifacts import CleanMetrics, EvaluateMetrics, Receipt, SplitMetrics
from fieldguide.core.images import encode_jpeg, inspect
from fieldguide.core.names import SPLITS, common_name, flat
from fieldguide.core.paths import COVERAGE_PNG, CURVES_PNG, RELIABILITY_PNG, confusion_png
from fieldguide.report.facts import Facts
from fieldguide.report.figures import svg
from fieldguide.report.text import count, interval, markdown, number, percent, shown, size, table_rows

TEMPLATES = Path(__file__).parent / "templates"
PNG_PX = 1600  # largest side of these in the page
COLUMNS = {  # of a split's metrics: the heading, and how its values are written
    "n": ("images", "count"),
    "accuracy": ("accuracy", "percent"),
    "top5_accuracy": ("top 5", "percent"),
    "macro_f1": ("macro F1", "number"),
    "weighted_f1": ("weighted F1", "number"),
    "loss": ("loss (nats)", "number"),
    "ece": ("calibration error", "number"),
}
FEW = 10  # images of a class under which the card warns of its figures
COVERAGES = (0.5, 0.8, 0.9, 0.95, 1.0)  # of the table; the chart has all


def render_page(facts: Facts, figures: dict[Path, Figure]) -> str:
    """The report as HTML; `figures` by the path of their PNG."""
    return (
        environment(autoescape=True)
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
            training=training_section(facts, figures),
            results=results_section(facts),
            confusions=confusion_charts(facts, figures),
            gallery=gallery_section(facts),
            confidence=confidence_section(facts, figures),
            export=export_rows(facts),
            benchmark=benchmark_section(facts),
            params=[(section, table_rows(values)) for section, values in facts.params.items()],
            versions=list(facts.versions.items()),
            hashes=facts.hashes,
        )
    )


def environment(autoescape: bool) -> Environment:
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


def title(facts: Facts) -> str:
    return facts.receipt.title if facts.receipt else "A run of fieldguide"


def summary(facts: Facts) -> str:
    """Network, size, classes and photographs in a sentence, as far as they are known."""
    model, check = facts.params["model"], facts.split_check
    classes = f", {count(check.classes)} classes" if check else ""
    learned = "from scratch" if model["weights"] == "none" else f"from weights: {model['weights']}"
    used = facts.rows("classes")["train"].sum() if "classes" in facts.tables else None
    trained = f", trained {learned}" + (f" on {count(used)} photographs" if used else "")
    return f"{model['name']} at {model['image_px']} px{classes}{trained if facts.train else ''}."


def tiles(facts: Facts) -> list[dict[str, str]]:
    """The figures that a reader looks for first."""
    found, split = [], facts.held_out
    if split and facts.evaluate:
        figures = facts.evaluate.splits[split]
        between = interval(figures, "accuracy", "percent")
        n = f"n\u00a0=\u00a0{count(figures.n)}"
        note = f"{between}, {n}" if between else n
        found.append((f"{split} accuracy", percent(figures.accuracy), note))
        found.append(("macro F1", number(figures.macro_f1), interval(figures, "macro_f1", "number") or f"of {split}"))
        found.append(("calibration error", number(figures.ece), "expected, 0 is best"))
    check, export = facts.split_check, facts.export_onnx
    if check:
        found.append(("classes", count(check.classes), f"{count(sum(check.images.values()))} labelled images"))
    if export:
        found.append(("model file", size(export.bytes), f"ONNX, opset {export.opset}"))
    backends = backend_rows(facts)
    if backends:
        best = min(backends, key=lambda row: row["p50"])
        found.append(("one image in", f"{best['p50']:.1f} ms", f"{best['name']}, median"))
    return [dict(zip(("name", "value", "note"), tile, strict=True)) for tile in found]


def data_section(facts: Facts) -> dict[str, Any] | None:
    """Splits, faults, origin and pictures of the data."""
    check = facts.split_check
    if check is None:
        return None
    classes, findings = facts.rows("classes"), facts.rows("findings")
    splits = []
    for split in SPLITS:
        used = classes[split] if split in classes else pd.Series(dtype=float)
        facts_of_split = {"split": split, "images": check.images[split]}
        extremes = {"used": used.sum(), "fewest": used.min(), "most": used.max()} if len(used) else {}
        splits.append(facts_of_split | dict.fromkeys(("used", "fewest", "most")) | extremes)
    near = check.near_duplicates
    searched = near.across_splits is not None
    found = [
        ("unlabelled images", count(check.unlabelled)),
        ("unreadable images", count(check.unreadable)),
        ("byte-identical pairs", count(check.exact_duplicates)),
        ("near duplicates across splits", count(near.across_splits) if searched else "not looked for"),
        ("near duplicates within a split", count(near.within_split) if searched else "not looked for"),
        ("photographs under two names", count(check.label_conflicts)),
        *((f"classes without images in {split}", count(check.missing_classes[split])) for split in SPLITS),
        ("images left out of use", count(check.dropped)),
    ]
    dropped = check.dropped
    out = f"{count(dropped)} of them are left out of use" if dropped else "all of them are in use"
    faults: Any = findings.groupby(["kind", "action"], sort=False).size() if len(findings) else pd.Series(dtype=int)
    pictures = (
        ("samples", "Samples of each split", "Ten photographs of each split with their class names"),
        ("sizes", "Sizes and mean images", "Histogram of the sides of the images, and the mean image of each split"),
    )
    total = sum(check.images.values()) + check.unlabelled
    return {
        "text": f"{count(total)} images of {count(check.classes)} classes; {out}.",
        "splits": splits,
        "found": found,
        "searched": searched,
        "origin": _origin(facts.receipt),
        "faults": [{"kind": kind, "action": action, "n": n} for (kind, action), n in faults.items()],
        "class_splits": [split for split in SPLITS if split in classes],
        "classes": _named(classes),
        "pictures": [_picture(facts, *picture) for picture in pictures if picture[0] in facts.pngs],
    }


def _origin(receipt: Receipt | None) -> list[tuple[str, str]]:
    keys = ("dataset", "home", "licence", "source", "version", "release", "layout")
    if receipt is None:
        return []
    rows = [(key, shown(getattr(receipt, key))) for key in keys if getattr(receipt, key)]
    n_bytes = sum(file.bytes for file in receipt.files.values())
    return [*rows, ("files", count(len(receipt.files))), ("bytes", size(n_bytes))]


def _named(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows with the class names as a person writes them."""
    rows = _records(frame.astype(object).where(frame.notna(), None))
    return [row | {"class_name": common_name(str(row["class_name"]))} for row in rows]


def _picture(facts: Facts, name: str, heading: str, text: str) -> dict[str, str]:
    """A PNG of another stage as a JPEG in the page: photographs are a tenth as large so."""
    pixels = inspect(facts.pngs[name], PNG_PX)[1]
    encoded = base64.b64encode(encode_jpeg(pixels, PNG_PX)).decode()
    return {"title": heading, "text": text, "source": f"data:image/jpeg;base64,{encoded}"}


def _chart(heading: str, figure: Figure, note: str) -> dict[str, Any]:
    return {"title": heading, "svg": Markup(svg(figure, heading)), "note": note}


def training_section(facts: Facts, drawn: dict[Path, Figure]) -> dict[str, Any] | None:
    """Curves of the epochs, and what the network saw."""
    figures = facts.train
    if figures is None:
        return None
    best = figures.best_epoch
    note = f"best epoch {best}: loss {figures.valid.loss:.3f}, accuracy {percent(figures.valid.accuracy)} on valid"
    shown_charts = [_chart("Loss, accuracy and learning rate", drawn[CURVES_PNG], note)] if CURVES_PNG in drawn else []
    batch = ("batch", "What the network saw in training", "Training images as decoded, and as augmented in different epochs")
    return {
        "text": training_text(facts),
        "charts": shown_charts,
        "pictures": [_picture(facts, *batch)] if "batch" in facts.pngs else [],
    }


def training_text(facts: Facts) -> str:
    """Size, epochs and the best of them; empty before the training."""
    figures = facts.train
    if figures is None:
        return ""
    return (
        f"{count(figures.parameters)} parameters, {figures.epochs} epochs. The best by the validation split is epoch"
        f" {figures.best_epoch}, with {percent(figures.valid.accuracy)} right there; it is the one that is kept."
    )


def results_section(facts: Facts) -> dict[str, Any] | None:
    """The figures of every split, and of every class of the held-out one."""
    metrics, split = facts.evaluate, facts.held_out
    if metrics is None or split is None:
        return None
    clean = {"test_without_leaks": metrics.test_without_leaks} if metrics.test_without_leaks else {}
    measured: dict[str, SplitMetrics | CleanMetrics] = metrics.splits | clean
    keys = list(COLUMNS)
    write = {"count": count, "percent": percent, "number": number}
    rows = [
        {
            "name": name.replace("_", " "),
            "cells": [
                (write[COLUMNS[key][1]](getattr(figures, key, None)), interval(figures, key, COLUMNS[key][1])) for key in keys
            ],
        }
        for name, figures in measured.items()
    ]
    used = set(keys) | {f"{key}_{end}" for key in keys for end in ("low", "high")}
    tree = metrics.as_dict()
    rest = {name: {key: value for key, value in tree[name].items() if key not in used} for name in measured}
    rest |= {name: figures for name, figures in tree.items() if name not in measured}
    groups = [
        (name.replace("_", " "), table_rows(v if isinstance(v, dict) else {name: v})) for name, v in rest.items() if v != {}
    ]
    return {
        "text": result_text(metrics.splits[split], split),
        "split": split,
        "has_test": metrics.test is not None,
        "columns": [COLUMNS[key][0] for key in keys],
        "rows": rows,
        "per_class": per_class(facts),
        "further": groups,
    }


def result_text(figures: SplitMetrics, split: str) -> str:
    """The headline in a sentence."""
    n, n_right = figures.n, round(figures.accuracy * figures.n)
    between = interval(figures, "accuracy", "percent")
    known = f", 95\u00a0% interval {between}\u00a0%" if between else ""
    return f"{count(n_right)} of {count(n)} images of {split} are named right: {percent(figures.accuracy)}{known}."


def per_class(facts: Facts) -> list[dict[str, Any]]:
    """Figures of every class of the held-out split that has images there, the lowest F1 first."""
    frame = facts.rows("per_class", facts.held_out)
    return _named(frame[frame["support"] > 0].sort_values("f1", kind="stable")) if len(frame) else []


def confusion_charts(facts: Facts, figures: dict[Path, Figure]) -> list[dict[str, Any]]:
    """A chart for each split, the held-out one first; none where a split has no labels."""
    shown_charts = []
    for split in reversed(SPLITS):
        table = facts.confusions.get(split)
        if table is None:
            continue
        right = int((table["truth"] == table["predicted"]).sum())
        title = f"{split}: {count(right)} of {count(len(table))} right" if len(table) else split
        svg_text = (
            Markup(svg(figures[confusion_png(split)], f"Confusion of {title}"))
            if len(table) and confusion_png(split) in figures
            else None
        )
        shown_charts.append({"title": title, "svg": svg_text})
    return sorted(shown_charts, key=lambda one: one["svg"] is None)


def gallery_section(facts: Facts) -> dict[str, Any] | None:
    """Photographs of answers, with what is said above them."""
    gallery = facts.gallery
    if gallery is None:
        return None
    split, wrong = gallery.split, len(gallery.wrong)
    looked = any(one.activation for one in gallery.wrong + gallery.right)
    beside = " Beside each: where the network looked for its answer (class activation)." if looked else ""
    figures = facts.evaluate.splits.get(split) if facts.evaluate else None
    total = figures.n - round(figures.accuracy * figures.n) if figures else wrong
    shown = f"{count(wrong)} of the {count(total)}" if wrong < total else f"All {count(total)}" if total > 1 else "The one"
    return dict(gallery) | {
        "wrong_text": f"{shown} wrong answer{'s' if total > 1 else ''} of {split}.{beside}",
        "right_text": f"From the surest to the least sure, spread over all right answers of {split}.{beside}",
        "all_pairs": _table_of_pairs(facts.rows("confused_pairs", split)),
    }


def _table_of_pairs(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [row | {key: common_name(row[key]) for key in ("truth", "predicted")} for row in _records(frame)]


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    records: Any = frame.to_dict("records")
    return records


def confidence_section(facts: Facts, figures: dict[Path, Figure]) -> dict[str, Any] | None:
    """Reliability, and accuracy over coverage."""
    split, coverage = facts.held_out, facts.rows("coverage")
    if facts.evaluate is None or split is None or not len(coverage) or RELIABILITY_PNG not in figures:
        return None
    places = [int(np.abs(coverage["coverage"] - share).argmin()) for share in COVERAGES]
    table = [
        {
            "coverage": float(coverage["coverage"].iloc[place]),
            "accuracy": float(coverage[split].iloc[place]),
            "confidence": float(coverage[f"{split}_probability"].iloc[place]),
        }
        for place in places
    ]
    ece = f"expected calibration error {number(facts.evaluate.splits[split].ece)}"
    shown_charts = [
        _chart("Reliability", figures[RELIABILITY_PNG], ece),
        _chart("Accuracy over coverage", figures[COVERAGE_PNG], "when the least certain are refused"),
    ]
    return {"text": confidence_text(facts.evaluate, split), "charts": shown_charts, "split": split, "coverage": table}


def confidence_text(metrics: EvaluateMetrics, split: str) -> str:
    """What the dots mean, and what calibration changed."""
    figures = metrics.splits[split]
    parts = [
        "A dot is a bin of answers: how sure the network was, and how many of them are right, with its 95 % interval.",
        f"Probabilities are at temperature {metrics.calibration.temperature:.3f}, fitted on valid, which takes the calibration"
        f" error of {split} from {figures.ece_uncalibrated:.3f} to {figures.ece:.3f}.",
    ]
    if figures.known is not None:
        right = figures.accuracy_when_sure
        known = f" and {percent(right)} of these are right" if right is not None else ""
        parts.append(
            f"{percent(figures.known)} of {split} are taken for known classes; {percent(figures.sure)} are answered as"
            f" sure{known}."
        )
    refused = ", ".join(f"{percent(ood.refused, 0)} of {kind.replace('_', ' ')}" for kind, ood in metrics.strangers.items())
    if refused:
        parts.append(f"Of drawn pictures that show none of the classes are refused: {refused}.")
    return " ".join(parts)


def export_rows(facts: Facts) -> list[tuple[str, str]] | None:
    """The proof that the ONNX file answers as torch does."""
    export = facts.export_onnx
    if export is None:
        return None
    known = {
        "top1_agreement": ("same first answer", percent(export.top1_agreement, 2)),
        "max_abs_difference": ("largest difference of a probability", f"{export.max_abs_difference:.1e}"),
        "bytes": ("size", size(export.bytes)),
    }
    return [known.get(key, (key.replace("_", " "), shown(value))) for key, value in flat(export.as_dict()).items()]


def backend_rows(facts: Facts) -> list[dict[str, Any]]:
    """Latency, throughput, accuracy and size of each backend."""
    if facts.benchmark is None:
        return []
    return [
        {"name": name, "p50": backend.latency_ms.p50, "p95": backend.latency_ms.p95, "p99": backend.latency_ms.p99}
        | {"images_per_second": backend.images_per_second, "accuracy": backend.accuracy, "bytes": backend.bytes}
        for name, backend in facts.benchmark.backends.items()
    ]


def benchmark_section(facts: Facts) -> dict[str, Any] | None:
    """Tables of speed."""
    if facts.benchmark is None:
        return None
    backends, throughput = backend_rows(facts), facts.rows("throughput")
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
    hardware, int8 = facts.benchmark.hardware, facts.benchmark.int8
    return {
        "text": f"Measured after warm-up on {hardware.device}; the figures belong to that machine. INT8: {int8.advice()}.",
        "backends": backends,
        "batch_sizes": sizes,
        "throughput": [(name, [blank | cell for cell in cells]) for name, cells in by_backend],
        "hardware": table_rows(hardware.as_dict()),
    }
