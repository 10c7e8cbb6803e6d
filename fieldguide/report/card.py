"""The model card as Markdown."""

from typing import Any

import yaml

from fieldguide.core.names import common_name
from fieldguide.report.facts import Facts
from fieldguide.report.page import (
    FEW,
    backend_rows,
    benchmark_section,
    data_section,
    environment,
    per_class,
    results_section,
    summary,
    title,
    training_text,
)
from fieldguide.report.text import count, table_rows


def render_card(facts: Facts) -> str:
    """The model card as Markdown, in the sections of Hugging Face's template."""
    split, receipt, results = facts.held_out, facts.receipt, results_section(facts)
    benchmark = benchmark_section(facts)
    names = facts.rows("classes")["class_name"].tolist() if "classes" in facts.tables else []
    training = training_text(facts)
    sections = ("data.dataset", "model", "train", "augment")
    return (
        environment(autoescape=False)
        .get_template("model_card.md")
        .render(
            front_matter=front_matter(facts),
            title=title(facts),
            summary=summary(facts),
            headline=results["text"] if results else "",
            model=facts.params["model"],
            parameters=facts.train.parameters if facts.train else None,
            classes=[common_name(str(name)) for name in names],
            licence=(receipt.licence if receipt else "") or "not stated either",
            home=receipt.home if receipt else "",
            thresholds=facts.evaluate.calibration if facts.evaluate else None,
            synthetic=receipt is not None and receipt.dataset == "sample",
            limitations=limitations(facts, split),
            data=data_section(facts),
            training=training or "The figures of the training are not there.",
            hyperparameters=[row for row in table_rows(facts.params) if row[0].startswith(sections)],
            backends=backend_rows(facts),
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
    if split and facts.evaluate:
        figures = facts.evaluate.splits[split]
        kinds = (("accuracy", "accuracy", "Accuracy"), ("f1", "macro_f1", "Macro F1"))
        results = [{"type": kind, "value": round(getattr(figures, key), 4), "name": text} for kind, key, text in kinds]
        dataset = {"name": title(facts), "type": facts.params["data"]["dataset"], "split": split}
        entry = {"task": {"type": "image-classification"}, "dataset": dataset, "metrics": results}
        card |= {"metrics": ["accuracy", "f1"], "model-index": [{"name": name, "results": [entry]}]}
    return yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=1000)


def limitations(facts: Facts, split: str | None) -> list[str]:
    """What the data say against the model, and what nobody measured."""
    lines = []
    check, rows = facts.split_check, per_class(facts)
    if rows:
        few = sum(row["support"] < FEW for row in rows)
        if few:
            lines.append(f"{few} of {len(rows)} classes have fewer than {FEW} images in {split}: their figures mean little.")
        low = [row for row in rows if row["f1"] < 1][:5]
        if low:
            listed = ", ".join(f"{row['class_name']} ({row['f1']:.2f}, n = {row['support']})" for row in low)
            lines.append(f"The lowest F1 in {split}: {listed}.")
    if facts.gallery and facts.gallery.pairs:
        pairs = [f"{pair.truth} for {pair.predicted} ({pair.n} of {pair.n_truth})" for pair in facts.gallery.pairs]
        lines.append(f"Most often mistaken outside train: {', '.join(pairs[:5])}.")
    spread = check.train_images_per_class if check else None
    if spread and spread.smallest < spread.largest:
        lines.append(f"Classes are learned from {count(spread.smallest)} to {count(spread.largest)} images: not equally well.")
    if check and check.near_duplicates.across_splits is None:
        lines.append("Near duplicates between the splits were not looked for; the figures may be too good.")
    if facts.evaluate is None or facts.evaluate.test is None:
        lines.append("There is no figure on labelled test images.")
    lines.append("One training run, one seed: the spread between runs was not measured.")
    lines.append("It was measured on no other collection of photographs.")
    return lines
