"""The forms of what `fieldguide predict` writes: the table, CSV and JSON, and Timelapse's JSON."""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path
from typing import IO, Any

import numpy as np

from fieldguide.core.names import common_name
from fieldguide.core.taxonomy import Taxon
from fieldguide.onnx.classifier import OnnxClassifier, Prediction, TaxonAnswer
from fieldguide.sources.members import printable

MEGADETECTOR_VERSION = "1.6"  # of the output format that Timelapse imports: https://lila.science/megadetector-output-format
ANIMAL, UNKNOWN = "1", "2"  # detection categories; tools look for the name "animal"
WHOLE_IMAGE = [0.0, 0.0, 1.0, 1.0]


@dataclass(frozen=True)
class Photo:
    """A photograph: its name, the folders that may be named after its class, and its encoded bytes."""

    name: str
    folders: tuple[str, ...]
    read: Callable[[], bytes]
    truth: str = ""  # the class of the network that a folder is named after
    file: Path | None = None  # of a photograph that is a file of its own


Outcome = Prediction | str  # a prediction, or why there is none
Outcomes = Iterator[tuple[Photo, Outcome]]


def write_outcomes(outcomes: Outcomes, form: str, stream: IO[str], classifier: OnnxClassifier, k: int, width: int) -> None:
    """Writes all outcomes in one of the forms of `--format`; k: answers of each, at most; width: of the names in the table."""
    match form:
        case "table":
            _write_table(outcomes, width, stream)
        case "csv":
            _write_csv(outcomes, k, stream)
        case "timelapse":
            _write_timelapse(outcomes, classifier, stream)
        case "json":
            _write_json(outcomes, stream)
        case _:
            _write_json_lines(outcomes, stream)
    stream.flush()


def in_words(taxon: TaxonAnswer) -> str:
    return f"some {taxon.name} ({taxon.rank})"


def _write_table(outcomes: Outcomes, width: int, stream: IO[str]) -> None:
    """A readable table, with a line per answer."""
    for photo, outcome in outcomes:
        if not isinstance(outcome, str):
            left = f"{printable(photo.name):{width}}  {outcome.verdict:7}"
            lines = [(outcome.taxon.probability, in_words(outcome.taxon))] if outcome.taxon else []
            for answer in outcome.answers:
                scientific = f"  {answer.scientific_name}" if answer.scientific_name else ""
                lines.append((answer.probability, answer.name + scientific))
            for probability, words in lines:
                stream.write(f"{left}  {probability:6.1%}  {words}\n")
                left = " " * len(left)


class _UnixLines:
    """A stream for csv.writer, which quotes a line feed or carriage return in a name only if both end its lines."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def write(self, row: str) -> int:
        return self.stream.write(row.removesuffix("\r\n") + "\n")


def _write_csv(outcomes: Outcomes, k: int, stream: IO[str]) -> None:
    """A header, then a row per photograph, also for those that could not be read."""
    columns = [f"{what}_{place}" for place in range(1, k + 1) for what in ("answer", "probability")]
    header = ["image", "truth", "verdict", "known_score", "rank", "taxon", "taxon_probability"]
    rows = csv.DictWriter(_UnixLines(stream), [*header, *columns, "scientific_name_1", "error"], lineterminator="\r\n")
    rows.writeheader()
    for record in starmap(_record, outcomes):
        answers, taxon = record.pop("answers"), record.pop("taxon") or {}
        for place, answer in enumerate(answers, 1):
            record |= {f"answer_{place}": answer["name"], f"probability_{place}": answer["probability"]}
        record |= {"rank": taxon.get("rank"), "taxon": taxon.get("name"), "taxon_probability": taxon.get("probability")}
        record["scientific_name_1"] = answers[0]["scientific_name"] if answers else None
        rows.writerow(record)


def _write_json(outcomes: Outcomes, stream: IO[str]) -> None:
    before = "[\n"
    for record in starmap(_record, outcomes):
        stream.write(before + json.dumps(record, ensure_ascii=False))
        before = ",\n"
    stream.write("\n]\n")


def _write_json_lines(outcomes: Outcomes, stream: IO[str]) -> None:
    for record in starmap(_record, outcomes):
        stream.write(json.dumps(record, ensure_ascii=False) + "\n")


def _record(photo: Photo, outcome: Outcome) -> dict[str, Any]:
    prediction, error = (None, outcome) if isinstance(outcome, str) else (outcome, None)
    answers = prediction.answers if prediction else ()
    return {
        "image": photo.name,
        "truth": photo.truth or None,
        "verdict": prediction and prediction.verdict,
        "known_score": prediction and round(prediction.known_score, 6),
        "taxon": prediction and prediction.taxon and _rounded(prediction.taxon),
        "answers": [
            {
                "name": answer.name,
                "probability": round(answer.probability, 6),
                "common_name": answer.common_name or None,
                "scientific_name": answer.scientific_name or None,
            }
            for answer in answers
        ],
        "error": error,
    }


def _rounded(taxon: TaxonAnswer) -> dict[str, Any]:
    return {"rank": taxon.rank, "name": taxon.name, "probability": round(taxon.probability, 6)}


def _write_timelapse(outcomes: Outcomes, classifier: OnnxClassifier, stream: IO[str]) -> None:
    """MegaDetector's output format with one box, the whole image, for each photograph.

    The category of the box is "animal", or "unknown" if the image shows none of the classes. A taxon that is told stands
    before the classes. Nothing is located or counted.
    """
    names, taxonomy = list(classifier.class_names), classifier.taxonomy
    taxa = [(rank.name, rank.names[group]) for rank in classifier.ranks for group in np.flatnonzero(rank.answerable)]
    numbers = {key: str(len(names) + place) for place, key in enumerate(taxa)}
    categories = [taxonomy.get(name, Taxon()).common_name or common_name(name) for name in names]
    categories += [f"some {name}" for _, name in taxa]
    head: dict[str, Any] = {
        "info": {"format_version": MEGADETECTOR_VERSION, "classifier": f"fieldguide {classifier.metadata.get('model', '')}"},
        "detection_categories": {ANIMAL: "animal", UNKNOWN: "unknown"},
        "classification_categories": {str(number): name for number, name in enumerate(categories)},
    }
    if taxonomy:
        described = [_description(taxonomy.get(name, Taxon())) or name for name in names] + [name for _, name in taxa]
        head["classification_category_descriptions"] = {str(number): text for number, text in enumerate(described)}
    stream.write(json.dumps(head, ensure_ascii=False, indent=1)[:-2] + ',\n "images": [')
    before = "\n  "
    for photo, outcome in outcomes:
        image: dict[str, Any] = {"file": photo.name}
        if isinstance(outcome, str):
            image |= {"failure": outcome, "detections": None}
        else:
            found = [(str(answer.index), round(answer.probability, 4)) for answer in outcome.answers]
            if taxon := outcome.taxon:
                found.insert(0, (numbers[taxon.rank, taxon.name], round(taxon.probability, 4)))
            category = UNKNOWN if outcome.verdict == "unknown" else ANIMAL
            image["detections"] = [{"category": category, "conf": 1.0, "bbox": WHOLE_IMAGE, "classifications": found}]
        stream.write(before + json.dumps(image, ensure_ascii=False))
        before = ",\n  "
    stream.write("\n ]\n}\n")


def _description(taxon: Taxon) -> str:
    """`order;family;genus;species`, in lower case, as tools of that format search it; empty without a taxonomy."""
    parts = (taxon.order, taxon.family, taxon.genus, taxon.scientific_name)
    return ";".join(parts).lower() if any(parts) else ""
