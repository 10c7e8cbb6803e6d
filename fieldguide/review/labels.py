"""The labels of the project: what the tables of the pipeline suspect, decided in data/corrections.csv.

Reads data/manifest.csv, metrics/label_errors.csv (label check) and metrics/near_duplicates.csv and findings.csv (split check).
"""

import csv
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path, PurePosixPath

from fieldguide.core.corrections import BY_RULE, DECISIONS, Correction, changing, read_corrections
from fieldguide.core.errors import UserError
from fieldguide.core.images import read_encoded
from fieldguide.core.names import SPLITS
from fieldguide.core.paths import CORRECTIONS, FINDINGS_CSV, LABEL_ERRORS_CSV, MANIFEST, NEAR_DUPLICATES_CSV, RAW
from fieldguide.review.items import Item, ManifestImage, NotStored, Suspicion, check_version, version_of
from fieldguide.web.model import file_stamp

N_EXAMPLES = 4  # of a class, on the page
N_HELD = 8  # of a class and split: some of them may turn out to be wrong
LABEL_ERRORS = ("file", "split", "given", "suggested", "kind", "score", "other", "sha256")
NEAR_DUPLICATES = (*("verdict", "one_split", "one_class_name", "one_id", "other_split", "other_class_name", "other_id"),)
FINDINGS = ("kind", "split", "class_name", "id", "detail")
PLACES = ("split", "class_name", "id", "file", "offset", "length", "sha256", "use")
MADE_BY = {
    LABEL_ERRORS_CSV: "dvc repro label_check",
    NEAR_DUPLICATES_CSV: "dvc repro split_check",
    FINDINGS_CSV: "dvc repro split_check",
    MANIFEST: "dvc repro split_check",
}
SUSPICIONS = ("label", "atypical", "duplicate")  # kinds of the label check
ALSO_UNDER = "also under "  # before the other class of a label conflict in metrics/findings.csv
Row = dict[str, str]
Name = tuple[str, str]  # split and id


@dataclass
class Images:
    """The images of the manifest that the page may show."""

    raw: Path
    by_sha256: dict[str, ManifestImage] = field(default_factory=dict)
    by_name: dict[Name, ManifestImage] = field(default_factory=dict)
    by_class: dict[str, dict[str, list[ManifestImage]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))

    def encoded(self, sha256: str) -> bytes:
        """The bytes as the manifest places them; raises `KeyError` for an unknown image, and `OSError`."""
        place = self.by_sha256[sha256]
        path = PurePosixPath(place.file)
        if path.is_absolute() or ".." in path.parts:
            raise KeyError(sha256)
        return read_encoded(self.raw / path, place.offset, place.length)

    def examples(self, class_name: str, split: str, avoided: set[str]) -> list[ManifestImage]:
        """Images of the class, those of other splits first."""
        splits = self.by_class.get(class_name, {})
        ordered = chain.from_iterable(splits[name] for name in sorted(splits, key=lambda name: (name == split, name)))
        return [place for place in ordered if place.sha256 not in avoided][:N_EXAMPLES]


@dataclass(frozen=True)
class Tables:
    """What the pipeline says of the project's images, and a line for each table that is missing or does not fit."""

    label_errors: list[Row]
    pairs: list[Row]
    conflicts: list[Row]
    notes: list[str]


class LabelDesk:
    """Offers the suspected images of a project; its decisions are those of data/corrections.csv."""

    is_of_labels = True
    after = "dvc repro"

    def __init__(self, project: Path, by: str) -> None:
        """Raises `UserError` for a missing manifest and for a table that cannot be read."""
        self.by = by
        self.replaced: dict[str, Correction] = {}  # since the start, by the version of the decision that replaced it
        self.target = project / CORRECTIONS
        tables = read_tables(project)
        self.notes = tables.notes
        self.images, class_names = read_images(project, tables)
        self.class_names = tuple(sorted(class_names))
        items, n_unknown = items_of(tables, self.images, class_names)
        self.items: Mapping[str, Item] = items
        if n_unknown:
            self.notes.append(f"{n_unknown} suspects are not in {MANIFEST}, which is newer; update them with: dvc repro")
        self.reading = threading.Lock()
        self.stamp: tuple[int, int, int] | None = (0, 0, 0)
        self.known: dict[str, Correction] = {}
        self.decisions()

    def decisions(self) -> Mapping[str, Correction]:
        """Of the file as it is now; raises `UserError` if somebody has spoilt it."""
        with self.reading:
            stamp = file_stamp(self.target)
            if stamp != self.stamp:
                self.known = read_corrections(self.target)
                self.stamp = stamp
            return self.known

    def decide(self, sha256: str, decision: str, class_name: str, version: str) -> None:
        item = self.items[sha256]
        if decision not in DECISIONS:
            raise NotStored(f"{decision!r} is not a decision; use {', '.join(DECISIONS)}.")
        if decision == "relabel" and class_name not in self.class_names:
            raise NotStored(f"There is no class {class_name!r}; choose one of the list.")
        label = class_name if decision == "relabel" else ""
        self._store(self._correction(item, decision, label, reason_of(item), self.by), version)

    def withdraw(self, sha256: str, version: str) -> None:
        """Removes a decision and restores the one that it replaced since the start."""
        with changing(self.target) as decided:
            check_version(version, decided.pop(sha256, None))
            if former := self.replaced.get(version):
                decided[sha256] = former
        self.replaced.pop(version, None)

    def _store(self, correction: Correction, version: str) -> None:
        """As `corrections.decide`, but only if nobody has decided since `version`; the last decision becomes the last line."""
        with changing(self.target) as decided:
            former = decided.pop(correction.sha256, None)
            check_version(version, former)
            decided[correction.sha256] = correction
        if former and former != correction:
            self.replaced[version_of(correction)] = former

    def accept_above(self, score: float) -> tuple[Counter[str], Counter[str]]:
        """Relabels suspected labels with a higher score without a person; people's decisions stay.

        Returns the number of those that were relabelled by split, and of those that were not by reason.
        """
        relabelled: Counter[str] = Counter()
        left: Counter[str] = Counter()
        with changing(self.target) as decided:
            for item in self.items.values():
                suspicion = next((each for each in item.suspicions if each.kind == "label"), None)
                if suspicion is None or suspicion.score is None or not suspicion.score > score:
                    continue
                present = decided.get(item.sha256)
                if present and present.by != BY_RULE:
                    left["decided by a person"] += 1
                elif suspicion.suggested not in self.class_names:
                    left["without a class of the manifest"] += 1
                elif present and (present.decision, present.label) == ("relabel", suspicion.suggested):
                    left["relabelled before"] += 1
                else:
                    reason = f"score {suspicion.score:.3f} > {score:g}"
                    decided[item.sha256] = self._correction(item, "relabel", suspicion.suggested, reason, BY_RULE)
                    relabelled[item.split] += 1
        return relabelled, left

    def _correction(self, item: Item, decision: str, label: str, reason: str, by: str) -> Correction:
        return Correction(item.sha256, item.name, decision, label, reason, by, today())

    def encoded(self, sha256: str) -> bytes:
        return self.images.encoded(sha256)

    def examples(self, class_name: str, item: Item) -> list[ManifestImage]:
        wrong = {sha256 for sha256, each in self.decisions().items() if each.decision != "keep"}
        copies = {each.other.sha256 for each in item.suspicions if each.other}
        return self.images.examples(class_name, item.split, wrong | copies | {item.sha256})


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def reason_of(item: Item) -> str:
    """Why the image was offered, for the file: `label, score 0.970` or `conflict with train/RED/1.jpg`."""
    first = item.suspicions[0]
    if first.other:
        return f"{first.kind} with {first.other.id}"
    return first.kind if first.score is None else f"{first.kind}, score {first.score:.3f}"


def read_table(source: Path, shown: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    """The rows of a table; raises `UserError` if it has not these columns, `FileNotFoundError` if it is missing."""
    remedy = f"create it again with: {MADE_BY[shown].replace('repro', 'repro -f')}"
    try:
        with source.open(encoding="utf-8", newline="") as stream:
            rows = csv.DictReader(stream)
            if lacking := [name for name in columns if name not in (rows.fieldnames or ())]:
                raise UserError(f"{shown}: no column {lacking[0]}; {remedy}")
            for row in rows:
                if None in row.values() or None in row:
                    raise UserError(f"{shown}, line {rows.line_num}: not {len(rows.fieldnames or ())} values; {remedy}")
                yield row
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{shown}: {error.strerror}; restore the file or fix its permissions") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{shown}: not a table in UTF-8 ({error}); {remedy}") from error


def read_tables(project: Path) -> Tables:
    """The tables of the pipeline; one that is missing is empty, with a note."""
    notes = []

    def rows(shown: Path, columns: tuple[str, ...], what: str) -> list[Row]:
        try:
            return list(read_table(project / shown, shown, columns))
        except FileNotFoundError:
            notes.append(f"{shown} is missing, so {what} are not offered; create it with: {MADE_BY[shown]}")
            return []

    errors = rows(LABEL_ERRORS_CSV, LABEL_ERRORS, "suspected labels")
    for number, row in enumerate(errors, 2):
        _check_suspect(row, f"{LABEL_ERRORS_CSV}, line {number}")
    pairs = rows(NEAR_DUPLICATES_CSV, NEAR_DUPLICATES, "duplicates")
    conflicts = rows(FINDINGS_CSV, FINDINGS, "label conflicts")
    return Tables(
        errors,
        [row for row in pairs if row["verdict"] != "different" and row["one_class_name"] and row["other_class_name"]],
        [row for row in conflicts if row["kind"] == "label conflict"],
        notes,
    )


def _check_suspect(row: Row, where: str) -> None:
    """Raises `UserError` for a row of metrics/label_errors.csv that no label check has written."""
    remedy = "create the table again with: dvc repro -f label_check"
    if row["kind"] not in SUSPICIONS:
        raise UserError(f"{where}: kind is {row['kind']!r}; it must be one of {', '.join(SUSPICIONS)}; {remedy}")
    try:
        float(row["score"] or 0)
    except ValueError as error:
        raise UserError(f"{where}: score is {row['score']!r}; it must be a number; {remedy}") from error


def read_images(project: Path, tables: Tables) -> tuple[Images, set[str]]:
    """The manifest's rows that are suspected, and a few that are not of each class and split; and all class names."""
    ids = {row["other"] for row in tables.label_errors}
    hashes = {row["sha256"] for row in tables.label_errors}
    names = {(row["split"], row["id"]) for row in tables.conflicts}
    names |= {(row[f"{side}_split"], row[f"{side}_id"]) for row in tables.pairs for side in ("one", "other")}
    images, class_names = Images(project / RAW), set()
    try:
        for row in read_table(project / MANIFEST, MANIFEST, PLACES):
            place = ManifestImage(
                *(row["sha256"], row["id"], row["split"], row["class_name"], row["file"]),
                *(int(row["offset"]), int(row["length"]), row["use"] == "True"),
            )
            name = place.split, place.id
            if name_of_class := row.get("given") or place.class_name:  # corrections make no class, and none vanish by them
                class_names.add(name_of_class)
            is_suspect = place.sha256 in hashes or name in names
            if is_suspect or place.id in ids:
                images.by_name[name] = place
            elif place.use and place.split in SPLITS and len(held := images.by_class[place.class_name][place.split]) < N_HELD:
                held.append(place)
            else:
                continue
            images.by_sha256.setdefault(place.sha256, place)
    except FileNotFoundError as error:
        raise UserError(f"{MANIFEST} is missing; create it with: {MADE_BY[MANIFEST]}") from error
    except ValueError as error:
        raise UserError(f"{MANIFEST}: not a manifest ({error}); create it again with: dvc repro -f split_check") from error
    return images, class_names


def items_of(tables: Tables, images: Images, class_names: set[str]) -> tuple[dict[str, Item], int]:
    """The items by SHA-256, in the order of `KINDS`, and the number of suspects that the manifest lacks."""
    items: dict[str, Item] = {}
    by_id = {place.id: place for place in images.by_name.values()}
    unknown: set[str] = set()

    def add(place: ManifestImage, given: str, suspicion: Suspicion) -> None:
        item = items.setdefault(place.sha256, Item(place.sha256, place.id, place.split, given, ()))
        others = {each.other for each in item.suspicions} | {None}
        if suspicion.kind not in item.kinds or suspicion.other not in others:  # a photograph may have several copies
            items[place.sha256] = replace(item, suspicions=(*item.suspicions, suspicion))

    unsettled = {(row["split"], row["id"]) for row in tables.conflicts}
    pairs = list(_pairs(tables, images))
    missed = list(_missed_pairs(tables, images, by_id))
    for one, other in [pair for pair in pairs if unsettled & {(place.split, place.id) for place in pair}] + missed:
        if one.class_name != other.class_name:
            for place, twin in ((one, other), (other, one)):
                add(place, place.class_name, Suspicion("conflict", twin.class_name, None, twin))
    for row in tables.conflicts:
        if listed := images.by_name.get((row["split"], row["id"])):
            other_class = row["detail"].removeprefix(ALSO_UNDER)
            add(listed, listed.class_name, Suspicion("conflict", other_class if other_class in class_names else ""))
    for row in tables.label_errors:
        found = images.by_sha256.get(row["sha256"])
        if found is None:
            unknown.add(row["sha256"])
            continue
        score = float(row["score"]) if row["score"] else None
        copy = by_id.get(row["other"]) if row["other"] else None
        named = found._replace(id=row["file"], split=row["split"])  # of several copies
        if copy is None or copy.class_name == found.class_name:  # else a conflict
            add(named, row["given"], Suspicion(row["kind"], row["suggested"], score, copy))
    for one, other in pairs:
        is_both_used = one.use and other.use and one.class_name == other.class_name
        if is_both_used and one.sha256 != other.sha256:  # a decision is about equal bytes
            first, second = sorted((one, other), key=_spared)
            add(first, first.class_name, Suspicion("duplicate", "", None, second))
    return items, len(unknown)


def _pairs(tables: Tables, images: Images) -> Iterator[tuple[ManifestImage, ManifestImage]]:
    """The two images of each pair that the split check found."""
    for row in tables.pairs:
        one, other = (images.by_name.get((row[f"{side}_split"], row[f"{side}_id"])) for side in ("one", "other"))
        if one and other:
            yield one, other


def _missed_pairs(
    tables: Tables, images: Images, by_id: Mapping[str, ManifestImage]
) -> Iterator[tuple[ManifestImage, ManifestImage]]:
    """The two images of each pair that only the label check found."""
    for row in tables.label_errors:
        one, other = images.by_sha256.get(row["sha256"]), by_id.get(row["other"])
        if one and other:
            yield one, other


def _spared(place: ManifestImage) -> int:
    """Of two copies that of train is offered, so that valid and test stay what they are."""
    return SPLITS.index(place.split) if place.split in SPLITS else len(SPLITS)
