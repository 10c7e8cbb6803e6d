"""The model card as Markdown."""

from typing import Any

import yaml

from fieldguide.core.names import common_name
from fieldguide.report.facts import Facts
from fieldguide.report.page import (
    benchmark_text,
    class_size_bands,
    data_section,
    environment,
    labels_text,
    measured_text,
    per_class,
    results_section,
    summary,
    training_text,
)
from fieldguide.report.text import count, percent, table_rows

FEW = 10  # images of a class below which the card warns of its figures


def render_card(facts: Facts) -> str:
    """The model card as Markdown, in the sections of Hugging Face's template."""
    sections = ("data.dataset", "model", "train", "augment")
    template = environment(autoescape=False).get_template("model_card.md")
    return template.render(
        front_matter=front_matter(facts),
        receipt=facts.receipt,
        summary=summary(facts),
        first=first_to_know(facts),
        model=facts.params["model"],
        parameters=facts.train.parameters,
        n_classes=len(facts.class_names),
        classes=[] if facts.many_classes else facts.class_names,
        thresholds=facts.evaluate.calibration,
        limitations=limitations(facts),
        data=data_section(facts),
        training=training_text(facts),
        hyperparameters=[row for row in table_rows(facts.params) if row[0].startswith(sections)],
        backends=facts.benchmark.backends,
        hardware=benchmark_text(facts),
        results=results_section(facts),
        versions=facts.versions.items(),
        hashes=facts.hashes,
    )


def front_matter(facts: Facts) -> str:
    """The card's metadata as YAML, with the results in the form of a model index."""
    kind, figures = facts.params["data"]["dataset"], facts.measured
    metrics = [
        {"type": "accuracy", "value": round(figures.accuracy, 4), "name": "Accuracy"},
        {"type": "f1", "value": round(figures.macro_f1, 4), "name": "Macro F1"},
    ]
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"name": facts.receipt.title, "type": kind, "split": facts.held_out},
        "metrics": metrics,
    }
    card: dict[str, Any] = {
        "library_name": "onnx",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "fieldguide"],
        "metrics": ["accuracy", "f1"],
        "model-index": [{"name": f"fieldguide-{kind}-{facts.params['model']['name'].replace('/', '-')}", "results": [result]}],
    }
    return yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=1000)


def first_to_know(facts: Facts) -> str:
    """What a reader must know before using the model, in some sentences."""
    figures, split = facts.measured, facts.held_out
    sentences = [f"Whatever a photograph shows, the model names one of its {count(len(facts.class_names))} classes."]
    if figures.sure and figures.accuracy_when_sure is not None:
        right = f"{percent(figures.accuracy_when_sure)} of these are right"
        sentences.append(f"Trust an answer that is marked sure: {percent(figures.sure)} of {split} are, and {right}.")
    else:
        sentences.append(f"It is sure of no photograph of {split}.")
    if figures.known is not None:
        sentences.append(f"{percent(1 - figures.known)} of {split} are marked unknown, though they show one of the classes.")
    sentences.append("All figures are of photographs from the source of the training data; elsewhere they are usually lower.")
    return " ".join(sentences)


def limitations(facts: Facts) -> list[str]:
    """Known weaknesses in data and evaluation, and what was not measured."""
    lines = []
    check, rows, split = facts.split_check, per_class(facts), facts.held_out
    few = sum(row["support"] < FEW for row in rows)
    if of_all := measured_text(facts):
        lines.append(f"Macro F1 and the metrics per class on {split} are {of_all}: the others have no images there.")
    if few:
        lines.append(f"{few} of {len(rows)} classes have fewer than {FEW} images in {split}: their metrics are unreliable.")
    low = [f"{common_name(row['class_name'])} ({row['f1']:.2f}, n = {row['support']})" for row in rows if row["f1"] < 1]
    if low:
        lines.append(f"Lowest F1 on {split}: {', '.join(low[:5])}.")
    if facts.gallery.pairs:
        pairs = [f"{pair.truth} for {pair.predicted} ({pair.n} of {pair.n_truth})" for pair in facts.gallery.pairs]
        lines.append(f"Most frequent confusions on valid and test: {', '.join(pairs[:5])}.")
    spread = check.train_images_per_class
    if spread and spread.smallest < spread.largest:
        lines.append(
            f"Classes have {count(spread.smallest)} to {count(spread.largest)} training images and are learned unequally well."
        )
    if bands := class_size_bands(facts):
        figures = ", ".join(f"{name}: {accuracy} (n = {n})" for name, accuracy, _, n, _ in bands)
        lines.append(f"Accuracy on {split} by the number of a class's training images: {figures}.")
    if check.near_duplicates.across_splits is None:
        lines.append("Near duplicates across splits were not searched for, so the metrics may be too optimistic.")
    labels = facts.label_check
    if labels.missed_leaks:
        lines.append(
            f"{labels.missed_leaks} copies across splits were found by their looks and are in use: metrics may be too good."
        )
    lines.append(labels_text(facts))
    if facts.evaluate.test is None:
        lines.append("There are no metrics on labelled test images.")
    lines.append("The metrics are of one training run with one seed. The variance between runs was not measured.")
    lines.append("The model was not evaluated on any other data set.")
    return lines
