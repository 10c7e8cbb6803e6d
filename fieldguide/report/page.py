"""The report: one self-contained HTML file about a run.

Photographs are `data:` URLs and charts are inline SVG, so that the page needs no other file and no network.
"""

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from fieldguide.core.artifacts import CleanMetrics, SplitMetrics
from fieldguide.core.images import encode_jpeg, inspect
from fieldguide.core.names import SPLITS, common_name, flat
from fieldguide.core.paths import (
    BATCH_PNG,
    CLASSES_PNG,
    COVERAGE_PNG,
    CURVES_PNG,
    LABEL_MAP_PNG,
    PER_CLASS_PNG,
    RELIABILITY_PNG,
    SAMPLES_PNG,
    SIZES_PNG,
    confusion_png,
)
from fieldguide.core.taxonomy import Taxon
from fieldguide.report.facts import Facts
from fieldguide.report.figures import blocks_text, svg
from fieldguide.report.plots import MAX_MAP_NAMES
from fieldguide.report.text import count, interval, markdown, number, percent, shown, size, table_rows

TEMPLATES = Path(__file__).parent / "templates"
PNG_PX = 1600  # largest side of a PNG in the page
COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {  # of a split's metrics: the heading, and how values are written
    "n": ("images", count),
    "accuracy": ("accuracy", percent),
    "top5_accuracy": ("top 5", percent),
    "macro_f1": ("macro F1", number),
    "weighted_f1": ("weighted F1", number),
    "loss": ("loss (nats)", number),
    "ece": ("calibration error", number),
}
MAX_OPEN_ROWS = 10  # of a table that stands open, of many classes
N_CARDS = 5  # photographs of a gallery, of many classes; wrong.png and right.png have more
MAX_PAIRS = 500  # confused pairs in the page; confused_pairs.csv has all
COVERAGES = (0.5, 0.8, 0.9, 0.95, 1.0)  # of the table; the chart has all


def render_page(facts: Facts, figures: dict[Path, Figure]) -> str:
    """The report as HTML; `figures` by the path of their PNG."""
    html = environment(autoescape=True)
    html.filters["species"] = lambda name: species(name, facts)
    template = html.get_template("report.html")
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8") if facts.many_classes else ""
    return template.render(
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        policy=content_policy(script),
        title=facts.receipt.title,
        summary=summary(facts),
        tiles=tiles(facts),
        data=data_section(facts),
        labels=labels_section(facts, figures),
        folds=facts.params["split_check"]["folds"],
        training=training_text(facts),
        curves=_chart("Loss, accuracy and learning rate", figures[CURVES_PNG], curves_note(facts)),
        batch=_picture(
            BATCH_PNG, "Augmentation", "Training images as decoded, and three random augmentations of them by the params"
        ),
        results=results_section(facts),
        many=facts.many_classes,
        class_table=class_table(facts) if facts.many_classes else [],
        class_charts=class_charts(facts, figures) if facts.many_classes else [],
        confusions=confusion_charts(facts, figures),
        blocks=blocks_text(facts) if facts.many_classes else "",
        gallery=gallery_section(facts),
        confidence=confidence_section(facts, figures),
        export=export_rows(facts),
        benchmark=facts.benchmark,
        benchmark_text=benchmark_text(facts),
        throughput=throughput_table(facts),
        hardware=table_rows(facts.benchmark.hardware.as_dict()),
        params=[(section, table_rows(values)) for section, values in facts.params.items()],
        versions=facts.versions.items(),
        hashes=facts.hashes,
    )


def content_policy(script: str) -> Markup:
    """The page loads nothing and runs nothing but `script`, which may be empty."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    if script:
        policy += f"; script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
    return Markup(policy)


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
    environment.filters["common_name"] = common_name
    return environment


def species(name: str, facts: Facts) -> Markup:
    """The common name of a class, and its scientific name in italics where data/taxonomy.csv has them."""
    taxon = facts.taxonomy.get(name, Taxon())
    common = taxon.common_name or common_name(name)
    return Markup("{} <i>{}</i>" if taxon.scientific_name else "{}").format(common, taxon.scientific_name)


def summary(facts: Facts) -> str:
    """Network, size, classes and photographs in a sentence."""
    model, n_classes = facts.params["model"], count(facts.split_check.classes)
    learned = "from scratch" if model["weights"] == "none" else f"from weights: {model['weights']}"
    n_images = count(int(facts.tables["classes"]["train"].sum()))
    return f"{model['name']} at {model['image_px']} px, {n_classes} classes, trained {learned} on {n_images} photographs."


def tiles(facts: Facts) -> list[tuple[str, str, str]]:
    """The figures that a reader looks for first: name, value and note."""
    split, figures, check, export = facts.held_out, facts.measured, facts.split_check, facts.export_onnx
    name, best = min(facts.benchmark.backends.items(), key=lambda backend: backend[1].latency_ms.p50)
    return [
        (f"{split} accuracy", percent(figures.accuracy), f"{interval(figures, 'accuracy')}, n\u00a0=\u00a0{count(figures.n)}"),
        ("macro F1", number(figures.macro_f1), ", ".join(filter(None, [interval(figures, "macro_f1"), measured_text(facts)]))),
        ("calibration error", number(figures.ece), "ECE, 0 is best"),
        ("classes", count(check.classes), f"{count(sum(check.images.values()))} labelled images"),
        ("model file", size(export.bytes), f"ONNX, opset {export.opset}"),
        ("latency", f"{best.latency_ms.p50:.1f} ms", f"one image, {name}, median"),
    ]


def measured_text(facts: Facts) -> str:
    """Over how many classes the figures of the held-out split are; empty if over all."""
    n_measured, n_classes = len(per_class(facts)), len(facts.rows("per_class", facts.held_out))
    return f"over {count(n_measured)} of {count(n_classes)} classes" if n_measured < n_classes else ""


def data_section(facts: Facts) -> dict[str, Any]:
    """Splits, faults, origin and pictures of the data."""
    check, classes, receipt = facts.split_check, facts.tables["classes"], facts.receipt
    near = check.near_duplicates
    keys = ("dataset", "home", "licence", "source", "version", "release", "layout")
    decided = check.corrections.as_dict()
    out = f"{count(check.dropped)} of them are excluded" if check.dropped else "all are in use"
    total = sum(check.images.values()) + check.unlabelled
    return {
        "text": f"{count(total)} images of {count(check.classes)} classes; {out}.",
        "splits": [
            {"split": split, "images": check.images[split]} | classes[split].agg(["sum", "min", "max"]).to_dict()
            for split in SPLITS
        ],
        "found": [
            ("unlabelled images", count(check.unlabelled)),
            ("unreadable images", count(check.unreadable)),
            ("byte-identical pairs", count(check.exact_duplicates)),
            ("near duplicates across splits", count(near.across_splits, "not searched for")),
            ("near duplicates within a split", count(near.within_split, "not searched for")),
            ("images with conflicting labels", count(check.label_conflicts)),
            *((f"classes without images in {split}", count(check.missing_classes[split])) for split in SPLITS),
            ("images excluded", count(check.dropped)),
            *((f"decisions about images: {name}", count(n)) for name, n in decided.items() if n),
        ],
        "searched": near.across_splits is not None,
        "origin": [
            *((key, getattr(receipt, key)) for key in keys if getattr(receipt, key)),
            ("files", count(len(receipt.files))),
            ("bytes", size(sum(file.bytes for file in receipt.files.values()))),
        ],
        "faults": _records(facts.tables["findings"].groupby(["kind", "action"], sort=False).size().reset_index(name="n")),
        "classes": _records(classes),
        "pictures": [
            _picture(SAMPLES_PNG, "Samples of each split", "Ten photographs of each split with their class names"),
            _picture(
                SIZES_PNG, "Sizes and mean images", "Histogram of the sides of the images, and the mean image of each split"
            ),
        ],
    }


def labels_text(facts: Facts) -> str:
    """What the label check found, in a sentence or two."""
    check = facts.label_check
    if not check.enabled:
        return "Labels were not checked (label_check.enabled is false)."
    suspected = sum(check.suspected.values())
    by_split = ", ".join(f"{count(n)} in {split}" for split, n in check.suspected.items() if n)
    where = f" ({by_split})" if suspected else ""
    return (
        f"{count(suspected)} of {count(check.images)} labels are suspected to be wrong{where}. Judged by the other images,"
        f" {percent(check.accuracy)} of the images are of the class that they are given, 95\u00a0% interval"
        f" {interval(check, 'accuracy')}\u00a0%."
    )


def labels_section(facts: Facts, figures: dict[Path, Figure]) -> dict[str, Any]:
    """What the label check found, and the map of the images."""
    check = facts.label_check
    shown = check.inseparable[: MAX_OPEN_ROWS if facts.many_classes else None]
    n_all = check.inseparable_pairs
    worst = f"; the {len(shown)} worst of {count(n_all)} pairs, more in label_check.json" if len(shown) < n_all else ""
    return {
        "text": labels_text(facts),
        "enabled": check.enabled,
        "found": [
            *((f"suspected wrong labels in {split}", count(n)) for split, n in check.suspected.items()),
            ("labels in doubt", count(check.doubtful)),
            ("images of none of the classes", count(check.atypical)),
            ("copies that no hash found", count(check.missed_copies)),
            ("of these across splits", count(check.missed_leaks)),
            ("findings decided by data/corrections.csv", count(check.decided)),
            ("images in classes without others, not judged", count(check.not_judged)),
        ],
        "pairs": [(pair.one, pair.other, count(pair.confused), count(pair.images)) for pair in shown],
        "pairs_note": "images taken for the other class" + worst,
        "map": _chart("Map of the images", figures[LABEL_MAP_PNG], f"t-SNE of the embeddings; {colours_text(facts)}"),
    }


def colours_text(facts: Facts) -> str:
    """What the colours of the map are."""
    if not facts.many_classes:
        return "a colour per class"
    groups = facts.class_groups
    few = groups is not None and len(set(groups.of_class)) <= MAX_MAP_NAMES
    return f"coloured by {groups.what}" if groups and few else "too many classes for a colour each"


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    records: Any = frame.to_dict("records")
    return records


def _picture(source: Path, heading: str, text: str) -> dict[str, str]:
    """A PNG as a JPEG `data:` URL, a tenth of the size for photographs."""
    pixels = inspect(source.read_bytes(), PNG_PX)[1]
    encoded = base64.b64encode(encode_jpeg(pixels, PNG_PX)).decode()
    return {"title": heading, "text": text, "source": f"data:image/jpeg;base64,{encoded}"}


def _chart(heading: str, figure: Figure, note: str) -> dict[str, str]:
    return {"title": heading, "svg": Markup(svg(figure, heading)), "note": note}


def curves_note(facts: Facts) -> str:
    valid = facts.train.valid
    return f"best epoch {facts.train.best_epoch}: loss {valid.loss:.3f}, accuracy {percent(valid.accuracy)} on valid"


def training_text(facts: Facts) -> str:
    """Size, epochs and the best of them."""
    figures = facts.train
    return (
        f"{count(figures.parameters)} parameters, trained for {figures.epochs} epochs. The weights are those of epoch"
        f" {figures.best_epoch}, the best on the validation split, with an accuracy of {percent(figures.valid.accuracy)} there."
    )


def results_section(facts: Facts) -> dict[str, Any]:
    """The figures of every split, and of every class of the held-out one."""
    metrics = facts.evaluate
    measured: dict[str, SplitMetrics | CleanMetrics] = {}
    for name, figures in metrics.splits.items():
        measured |= {name: figures} | ({f"{name}_as_corrected": figures.as_corrected} if figures.as_corrected else {})
    measured |= {"test_without_leaks": metrics.test_without_leaks} if metrics.test_without_leaks else {}
    used = {*COLUMNS, *(f"{key}_{end}" for key in COLUMNS for end in ("low", "high"))}
    used |= {"as_corrected", "by_class_size", "by_rank"}
    further = {
        name: {key: value for key, value in figures.items() if name not in measured or key not in used}
        for name, figures in metrics.as_dict().items()
        if isinstance(figures, dict)
    }
    return {
        "text": result_text(facts),
        "split": facts.held_out,
        "has_test": metrics.test is not None,
        "columns": [heading for heading, _ in COLUMNS.values()],
        "rows": [
            (
                name.replace("_", " "),
                [(write(getattr(figures, key, None)), interval(figures, key)) for key, (_, write) in COLUMNS.items()],
            )
            for name, figures in measured.items()
        ],
        "bands": class_size_bands(facts),
        "ranks": rank_rows(facts),
        "taxa": taxa_text(facts),
        "confused_taxa": _records(facts.rows("confused_taxa", facts.held_out)[:MAX_OPEN_ROWS]),
        "per_class": per_class(facts),
        "unmeasured": len(facts.rows("per_class", facts.held_out)) - len(per_class(facts)),
        "further": [(name.replace("_", " "), table_rows(rest)) for name, rest in further.items() if rest],
    }


def class_size_bands(facts: Facts) -> list[tuple[str, str, str, str, str]]:
    """Train images of a class, and the accuracy of such classes, its interval, images and classes; none if all are alike."""
    bands = facts.measured.by_class_size or {}
    return [
        (name, percent(band.accuracy), interval(band, "accuracy"), count(band.n), count(band.classes))
        for name, band in bands.items()
        if len(bands) > 1
    ]


def rank_rows(facts: Facts) -> list[tuple[str, str, str, str, str]]:
    """A rank of the taxonomy, its accuracy with interval, and the share of images told at it with their accuracy."""
    by_rank = facts.measured.by_rank or {}
    return [
        (rank, percent(score.accuracy), interval(score, "accuracy"), percent(score.told), percent(score.accuracy_when_told))
        for rank, score in by_rank.items()
    ]


def taxa_text(facts: Facts) -> str:
    """What answers at a wider rank add, in a sentence; empty without a taxonomy."""
    figures = facts.measured
    if figures.useful is None:
        return ""
    sure = (figures.sure or 0) * (figures.accuracy_when_sure or 0)
    return (
        f"A photograph that is unsure among the species of one genus, family or order is told as that. Right and told are"
        f" {percent(figures.useful)} of {facts.held_out}, {percent(sure)} as a species."
    )


def result_text(facts: Facts) -> str:
    """The headline in a sentence."""
    figures = facts.measured
    right = f"{count(round(figures.accuracy * figures.n))} of {count(figures.n)} images of {facts.held_out}"
    accuracy = f"{percent(figures.accuracy)}, 95\u00a0% interval {interval(figures, 'accuracy')}\u00a0%"
    text = f"{right} are classified correctly: {accuracy}."
    if (corrected := figures.as_corrected) and corrected.accuracy is not None:
        accuracy = f"{percent(corrected.accuracy)}, 95\u00a0% interval {interval(corrected, 'accuracy')}\u00a0%"
        text += " These are the labels of the data. By the corrected labels the accuracy is"
        text += f" {accuracy}, on {count(corrected.n)} images."
    return text


def per_class(facts: Facts) -> list[dict[str, Any]]:
    """Figures of every class of the held-out split that has images there, the lowest F1 first."""
    frame = facts.per_class(facts.held_out)
    return _records(frame[frame["support"] > 0].sort_values("f1", kind="stable"))


def class_table(facts: Facts) -> list[tuple[str, list[str]]]:
    """Every class, the lowest F1 of the held-out split first and those not measured last: name and cells.

    The cells are the images of each split, F1, precision and recall.
    """
    scores = facts.per_class(facts.held_out).drop(columns=["split", "support"])
    table = facts.tables["classes"].merge(scores, on="class_name", how="left").sort_values("f1", kind="stable")
    columns: list[tuple[str, Callable[[Any], str]]] = [(split, count) for split in SPLITS]
    columns += [("f1", number), ("precision", lambda value: percent(value, 0)), ("recall", lambda value: percent(value, 0))]
    return [(row["class_name"], [write(row[key]) for key, write in columns]) for row in _records(table)]


def class_charts(facts: Facts, figures: dict[Path, Figure]) -> list[dict[str, str]]:
    """How sizes and metrics of many classes are spread."""
    return [
        _chart("Images per class", figures[CLASSES_PNG], "each bar counts the classes of that many images in use"),
        _chart("F1 and recall per class", figures[PER_CLASS_PNG], f"of {facts.held_out}; in brackets its images of a class"),
    ]


def confusion_charts(facts: Facts, figures: dict[Path, Figure]) -> list[dict[str, str | None]]:
    """A chart for each split, the held-out one first; none for a split without labels."""
    charts = []
    for split in reversed(SPLITS):
        n_right, n_images = facts.n_right(split)
        title = f"{split}: {count(n_right)} of {count(n_images)} right" if n_images else split
        chart = None if not n_images else Markup(svg(figures[confusion_png(split)], f"Confusion of {title}"))
        charts.append({"title": title, "svg": chart})
    return sorted(charts, key=lambda chart: chart["svg"] is None)


def gallery_section(facts: Facts) -> dict[str, Any]:
    """Photographs of answers, with the text above them."""
    gallery, figures = facts.gallery, facts.measured
    has_map = any(one.activation for one in gallery.wrong + gallery.right)
    beside = " Beside each is its class activation map: bright regions support the prediction." if has_map else ""
    shown_cards = slice(N_CARDS if facts.many_classes else None)  # the table of classes takes the place
    photographs = {"wrong": gallery.wrong[shown_cards], "right": gallery.right[shown_cards]}
    wrong, total = len(photographs["wrong"]), figures.n - round(figures.accuracy * figures.n)
    shown = f"{count(wrong)} of the {count(total)}" if wrong < total else f"All {count(total)}" if total > 1 else "The one"
    pairs = facts.rows("confused_pairs", gallery.split)
    return (
        dict(gallery)
        | photographs
        | {
            "wrong_text": f"{shown} wrong prediction{'s' if total > 1 else ''} on {gallery.split}.{beside}",
            "right_text": f"A sample of the correct predictions on {gallery.split}, from most to least confident.{beside}",
            "all_pairs": _records(pairs[:MAX_PAIRS]),
            "n_pairs": len(pairs),
        }
    )


def confidence_section(facts: Facts, figures: dict[Path, Figure]) -> dict[str, Any]:
    """Reliability, and accuracy over coverage."""
    split, coverage = facts.held_out, facts.tables["coverage"]
    rows = coverage.iloc[[int((coverage["coverage"] - share).abs().argmin()) for share in COVERAGES]]
    ece = f"expected calibration error {number(facts.measured.ece)}"
    return {
        "text": confidence_text(facts),
        "charts": [
            _chart("Reliability", figures[RELIABILITY_PNG], ece),
            _chart("Accuracy over coverage", figures[COVERAGE_PNG], "if the least confident images are rejected"),
        ],
        "coverage": rows[["coverage", split, f"{split}_probability"]].to_numpy().tolist(),
    }


def confidence_text(facts: Facts) -> str:
    """What the dots mean, and what calibration changed."""
    metrics, split, figures = facts.evaluate, facts.held_out, facts.measured
    right = f" and {percent(figures.accuracy_when_sure)} of these are correct" if figures.sure else ""
    refused = ", ".join(f"{percent(ood.refused, 0)} of {kind.replace('_', ' ')}" for kind, ood in metrics.strangers.items())
    return (
        "Each dot is a bin of predictions: their mean confidence, and their accuracy with its 95 % interval."
        f" Probabilities are scaled with a temperature of {metrics.calibration.temperature:.3f}, fitted on valid. This changes"
        f" the calibration error on {split} from {figures.ece_uncalibrated:.3f} to {figures.ece:.3f}."
        f" {percent(figures.known)} of {split} are accepted as known classes; {percent(figures.sure)} are classified as sure"
        f"{right}. Rejected out-of-distribution images: {refused}."
    )


def export_rows(facts: Facts) -> list[tuple[str, str]]:
    """The ONNX file compared with torch."""
    export = facts.export_onnx
    known = {
        "top1_agreement": ("same top-1 prediction", percent(export.top1_agreement, 2)),
        "max_abs_difference": ("largest difference in probability", f"{export.max_abs_difference:.1e}"),
        "n": (f"{facts.held_out} images compared", f"{count(export.n)} of {count(facts.measured.n)}"),
        "bytes": ("size", size(export.bytes)),
    }
    return [known.get(key, (key.replace("_", " "), shown(value))) for key, value in flat(export.as_dict()).items()]


def benchmark_text(facts: Facts) -> str:
    """The conditions of the measurement, and the verdict on INT8."""
    hardware, int8 = facts.benchmark.hardware, facts.benchmark.int8
    n_images = next(iter(facts.benchmark.backends.values())).n
    accuracy = f" Accuracy is that on {count(n_images)} {facts.held_out} images." if n_images else ""
    return f"Measured after warm-up on {hardware.device}. Other machines give other figures.{accuracy} INT8: {int8.advice()}."


def throughput_table(facts: Facts) -> dict[str, list[dict[str, Any]]]:
    """Images per second at each batch size, by backend and number of threads."""
    table = facts.tables["throughput"].drop_duplicates(["backend", "threads", "batch_size"])  # all threads may be one
    groups: Any = table.groupby(["backend", "threads"], sort=False)
    return {f"{backend}, {n} thread{'s' * (n > 1)}": _records(part.sort_values("batch_size")) for (backend, n), part in groups}
