"""What `fieldguide predict` writes: the table, CSV and JSON, Timelapse's JSON, and XMP sidecars."""

import csv
import glob
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path
from typing import IO, Any
from xml.sax.saxutils import escape

import numpy as np

from fieldguide.core.errors import UserError
from fieldguide.core.files import write_bytes
from fieldguide.core.names import common_name
from fieldguide.core.taxonomy import RANKS, Taxon
from fieldguide.onnx.classifier import OnnxClassifier, Prediction, TaxonAnswer
from fieldguide.sources.members import printable

FORMATS = ("table", "csv", "json", "jsonl", "timelapse")
RESUMABLE = ("csv", "jsonl")  # a line per photograph
MEGADETECTOR_VERSION = "1.6"  # of the output format that Timelapse imports: https://lila.science/megadetector-output-format
ANIMAL, UNKNOWN = "1", "2"  # detection categories; tools look for the name "animal"
WHOLE_IMAGE = [0.0, 0.0, 1.0, 1.0]
XMP = """<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="fieldguide">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:lr="http://ns.adobe.com/lightroom/1.0/">
   <dc:subject><rdf:Bag>{keywords}</rdf:Bag></dc:subject>
   <lr:hierarchicalSubject><rdf:Bag>{tree}</rdf:Bag></lr:hierarchicalSubject>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""


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


def write_outcomes(
    outcomes: Outcomes, form: str, stream: IO[str], classifier: OnnxClassifier, k: int, width: int, header: bool = True
) -> None:
    """Writes all outcomes as one of `FORMATS`.

    k: answers of each, at most; width: of the names in the table; header: whether the CSV begins with one.
    """
    match form:
        case "table":
            _write_table(outcomes, width, stream)
        case "csv":
            _write_csv(outcomes, csv_header(k), stream, header)
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


def csv_header(k: int) -> list[str]:
    columns = [f"{what}_{place}" for place in range(1, k + 1) for what in ("answer", "probability")]
    taxon = ["rank", "taxon", "taxon_probability"]
    return ["image", "truth", "verdict", "known_score", *taxon, *columns, "scientific_name_1", "error"]


def _write_csv(outcomes: Outcomes, columns: list[str], stream: IO[str], header: bool) -> None:
    """A row per photograph, also for those that could not be read."""
    rows = csv.DictWriter(stream, columns, lineterminator="\n")
    if header:
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


# --- a file that is resumed ---


@contextmanager
def output_file(
    target: Path, key: Iterable[object], form: str, header: list[str], resume: bool
) -> Iterator[tuple[IO[str], dict[str, Counter[str]]]]:
    """A stream whose content becomes `target` when the block ends without an error, and what `resume` found to be done.

    Until then it lies beside `target`, under a name with the hash of `key`: all that its content depends on but the
    photographs. What is done: by photograph the counts failed, known and right.
    """
    digest = hashlib.sha256(repr(tuple(key)).encode("utf-8", "surrogatepass")).hexdigest()[:12]
    partial = target.with_name(f".{target.name}.{digest}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        done = _done_before(partial, form, header) if resume else {}
        with partial.open("a" if done else "w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
            yield stream, done
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, target)
        for older in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):  # of another model or other options
            older.unlink()
    except OSError as error:
        raise UserError(f"{target}: {error.strerror}; use another path for --output") from error


def _done_before(partial: Path, form: str, header: list[str]) -> dict[str, Counter[str]]:
    """What an interrupted run has written; its last line, which may be broken off, is removed."""
    content = partial.read_bytes() if partial.exists() else b""
    text = content[: content.rfind(b"\n") + 1].decode()
    done: dict[str, Counter[str]] = {}
    if form == "csv":
        rows = list(csv.reader(io.StringIO(text, newline="")))
        while rows and len(rows[-1]) != len(header):  # a file name may contain a line end
            rows.pop()
        for values in rows[1:]:
            row = dict(zip(header, values, strict=True))
            done[row["image"]] = _tally(bool(row["error"]), row["truth"], row["answer_1"])
        lines = io.StringIO(newline="")
        csv.writer(lines, lineterminator="\n").writerows(rows)
        text = lines.getvalue()
    else:
        for record in map(json.loads, text.splitlines()):
            first = record["answers"][0]["name"] if record["answers"] else ""
            done[as_written(record["image"])] = _tally(record["error"] is not None, record["truth"] or "", first)
    write_bytes(partial, text.encode())
    return done


def as_written(name: str) -> str:
    """A photograph's name as it is read again from the output: bytes that are not UTF-8 are escaped there."""
    return name.encode("utf-8", "backslashreplace").decode()


def _tally(failed: bool, truth: str, answer: str) -> Counter[str]:
    known = bool(truth) and not failed
    return Counter(failed=int(failed), known=int(known), right=int(known and truth == answer))


# --- sidecars ---


def sidecar_of(file: Path) -> Path:
    """`photo.jpg.xmp`, as digiKam and darktable name it: `photo.xmp` would be that of a raw file beside it too."""
    return file.with_name(f"{file.name}.xmp")


def xmp(prediction: Prediction, taxonomy: dict[str, Taxon]) -> str:
    """The sidecar with the keywords of an answer that is told; empty if none is."""
    if prediction.taxon:
        rank = RANKS.index(prediction.taxon.rank)
        member = next(taxon for taxon in taxonomy.values() if getattr(taxon, prediction.taxon.rank) == prediction.taxon.name)
        path = [getattr(member, wider) for wider in reversed(RANKS[rank:])]
        keywords = [prediction.taxon.name]
    elif prediction.verdict == "sure":
        best = prediction.answers[0]
        taxon = taxonomy.get(best.name, Taxon())
        keywords = [best.common_name or common_name(best.name), *([best.scientific_name] if best.scientific_name else [])]
        path = [*(getattr(taxon, rank) for rank in reversed(RANKS)), keywords[-1]]
    else:
        return ""
    tree = "|".join(dict.fromkeys(filter(None, path)))

    def items(values: Iterable[str]) -> str:
        return "".join(f"<rdf:li>{escape(value)}</rdf:li>" for value in values)

    return XMP.format(keywords=items(keywords), tree=items([tree]))


def with_sidecars(outcomes: Outcomes, taxonomy: dict[str, Taxon], counts: Counter[str]) -> Outcomes:
    """The outcomes, after the sidecars of their photographs are written.

    Counts those written, "untold" photographs without an answer that is told, and those that were "there". One that is there,
    of whatever program, is never changed, and no photograph is opened for writing.
    """
    for photo, outcome in outcomes:
        if photo.file and not isinstance(outcome, str):
            content, target = xmp(outcome, taxonomy), sidecar_of(photo.file)
            there = bool(content) and (target.exists() or target.is_symlink())
            if content and not there:
                write_bytes(target, content.encode())
            counts["there" if there else "written" if content else "untold"] += 1
        yield photo, outcome
