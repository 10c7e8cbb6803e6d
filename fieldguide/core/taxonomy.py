"""`data/taxonomy.csv`, kept in git: scientific and common names of classes, and the genus, family and order they belong to.

A prediction that is unsure among classes of one taxon is told at its rank ("some Polygonia"): its probability is the sum over
the classes of the taxon. The table goes into the ONNX file, so this module needs only NumPy.
"""

import csv
import difflib
import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fieldguide.core.errors import UserError
from fieldguide.core.files import text_of
from fieldguide.core.names import MAX_BLOCKS, name_groups

RANKS = ("genus", "family", "order")  # from narrow to wide
PLURALS = {"genus": "genera", "family": "families", "order": "orders"}
COLUMNS = ("class_name", "common_name", "scientific_name", *RANKS)
MAX_NAMED = 5  # classes in a message


class Taxon(NamedTuple):
    """What is known of a class: empty where nothing is."""

    common_name: str = ""
    scientific_name: str = ""
    genus: str = ""
    family: str = ""
    order: str = ""


@dataclass(frozen=True)
class Rank:
    """The classes of a network grouped at one rank; a class without a taxon is a group of its own.

    names: of the G groups. of_class: the group of each class, int64 `[K]`. answerable: bool `[G]`, whether an unsure prediction
    can be reported as the group: a taxon of several classes, but not of all, nor only of those of one narrower taxon.
    """

    name: str
    names: tuple[str, ...]
    of_class: np.ndarray
    answerable: np.ndarray

    def best(self, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The most probable group of each row, int64 `[N]`, and its probability, from those of the classes, `[N, K]`."""
        order = np.argsort(self.of_class, kind="stable")
        starts = np.searchsorted(self.of_class[order], np.arange(len(self.names)))
        sums = np.add.reduceat(probabilities[:, order], starts, axis=1)
        best = sums.argmax(axis=1)
        return best, np.minimum(sums[np.arange(len(sums)), best], 1.0)


def read_taxonomy(source: Path, class_names: Sequence[str]) -> dict[str, Taxon]:
    """The taxa of those classes that the table has, by class name; classes are found without regard to case and underscores.

    Raises `UserError`, which names the line, for a table that cannot be read, a class that stands twice, a genus in two
    families or a family in two orders. The table may have other classes, and may be missing. Without a genus, the first
    capitalised one of several words of the scientific name is the genus.
    """
    own: dict[str, list[str]] = {}
    for name in class_names:
        own.setdefault(_key(name), []).append(name)
    found: dict[str, Taxon] = {}
    lines: dict[str, int] = {}
    parents: dict[tuple[str, str], tuple[str, int]] = {}
    for line, values in _lines(source):
        name = values.get("class_name", "")
        where = f"{source}, line {line}"
        if not name:
            raise UserError(f"{where}: class_name is empty; name the class or remove the line")
        if first := lines.get(_key(name)):
            raise UserError(f"{where}: {name} stands in line {first} too; remove one of them")
        lines[_key(name)] = line
        if _key(name) not in own:
            continue
        taxon = Taxon(**{column: values.get(column, "") for column in Taxon._fields})
        if not taxon.genus and len(words := taxon.scientific_name.split()) > 1:
            taxon = taxon._replace(genus=next((word for word in words if word[0].isupper()), ""))
        for rank, above in itertools.pairwise(RANKS):
            child, parent = getattr(taxon, rank), getattr(taxon, above)
            if child and parent:
                known, first = parents.setdefault((rank, child), (parent, line))
                if known != parent:
                    raise UserError(
                        f"{where}: {rank} {child} is in {above} {parent}, in line {first} in {known}; correct one of them, or"
                        f" write a name that is used twice as {child} ({parent})"
                    )
        found |= dict.fromkeys(own[_key(name)], taxon)
    return found


def unlisted(taxonomy: Mapping[str, Taxon], source: Path, class_names: Sequence[str]) -> str:
    """A line about classes that the table lacks, with names in it that may be meant; empty if it has all, or has no class."""
    listed = [values.get("class_name", "") for _, values in _lines(source)]
    missing = [name for name in class_names if name not in taxonomy]
    if not missing or not source.exists():
        return ""
    if not taxonomy:
        return (
            f"{source}: none of its {len(listed)} classes is among the {len(class_names)} of the network; no taxonomy is used"
        )
    spare = {_key(name): name for name in listed} if len(class_names) < 1000 else {}
    for name in taxonomy:
        spare.pop(_key(name), None)
    said = []
    for name in missing[:MAX_NAMED]:
        near = difflib.get_close_matches(_key(name), spare, 1, 0.8)
        said.append(f"{name} (is it {spare[near[0]]}?)" if near else name)
    more = f" and {len(missing) - MAX_NAMED} more" if len(missing) > MAX_NAMED else ""
    return f"{source} has no line for {len(missing)} of {len(class_names)} classes: {', '.join(said)}{more}"


def ranks_of(taxonomy: Mapping[str, Taxon], class_names: Sequence[str]) -> tuple[Rank, ...]:
    """The ranks at which a group of several classes can be an answer, from narrow to wide."""
    ranks: list[Rank] = []
    narrower = np.arange(len(class_names))  # the group of each class at the rank below
    for rank in RANKS:
        taxa = [getattr(taxonomy.get(name, Taxon()), rank) for name in class_names]
        keys = [(0, taxon) if taxon else (1, name) for taxon, name in zip(taxa, class_names, strict=True)]
        groups = sorted(set(keys))
        numbers = {key: number for number, key in enumerate(groups)}
        of_class = np.array([numbers[key] for key in keys], np.int64)
        size = np.bincount(of_class, minlength=len(groups))
        pairs = np.unique(np.stack([of_class, narrower]), axis=1)
        parts = np.bincount(pairs[0], minlength=len(groups))
        is_taxon = np.array([kind == 0 for kind, _ in groups])
        answerable = is_taxon & (size > 1) & (size < len(class_names)) & (parts > 1)
        if answerable.any():
            ranks.append(Rank(rank, tuple(name for _, name in groups), of_class, answerable))
            narrower = of_class
    return tuple(ranks)


class Groups(NamedTuple):
    """Groups of classes: what they are, in the plural, and the group of each class."""

    what: str
    of_class: list[str]


def class_groups(class_names: Sequence[str], ranks: Sequence[Rank]) -> Groups | None:
    """The groups by which a table or chart of bounded size shows many classes; None if there are none.

    Taxa of the narrowest rank, or else the first words of the names (`name_groups`), that give at most `MAX_BLOCKS` groups; or
    what gives the fewest. A rank counts if half of the classes have a taxon, and if no taxon has more than half of them.
    """
    options: list[Groups] = []
    for rank in ranks:
        groups = [rank.names[k] for k in rank.of_class]
        has_taxon = [group != name for group, name in zip(groups, class_names, strict=True)]
        if 2 * sum(has_taxon) >= len(class_names) >= 2 * np.bincount(rank.of_class).max():
            plural = PLURALS[rank.name]
            options.append(Groups(plural if all(has_taxon) else f"{plural}, and classes without one", groups))
    if by_name := name_groups(class_names):
        options.append(Groups("groups by the first words of the name", by_name))
    small = [option for option in options if len(set(option.of_class)) <= MAX_BLOCKS]
    return small[0] if small else min(options, key=lambda option: len(set(option.of_class)), default=None)


def narrowest(
    ranks: Sequence[Rank], groups: np.ndarray, probability: np.ndarray, taxa_below: Mapping[str, float]
) -> np.ndarray:
    """The place in `ranks` of the narrowest one at which an unsure prediction is told, int64 `[N]`, -1 where it is at none.

    groups, probability: the most probable group of each of N images at each of R ranks, and its probability, `[N, R]`.
    """
    told = np.full(len(groups), -1)
    for place in reversed(range(len(ranks))):
        rank = ranks[place]
        can = rank.answerable[groups[:, place]] & (probability[:, place] >= taxa_below.get(rank.name, np.inf))
        told[can] = place
    return told


def _key(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).casefold()


def _lines(source: Path) -> Iterable[tuple[int, dict[str, str]]]:
    """The number and the values by column of each line; none if there is no file."""
    reader = csv.reader(io.StringIO(text_of(source), newline=""), strict=True)
    try:
        header = _without_empty([name.strip().lower().replace(" ", "_") for name in next(reader, ["class_name"])])
        _check_header(header, f"{source}, line 1")
        for values in reader:
            if any(value.strip() for value in values):
                values = _without_empty(values, len(header))
                if len(values) != len(header):
                    raise UserError(
                        f"{source}, line {reader.line_num}: {len(values)} values for {len(header)} columns; correct the line"
                    )
                yield reader.line_num, {name: value.strip() for name, value in zip(header, values, strict=True)}
    except csv.Error as error:
        raise UserError(f"{source}, line {reader.line_num}: not CSV ({error}); correct the line") from error


def _without_empty(values: list[str], n: int = 0) -> list[str]:
    """Without empty cells at the end, which spreadsheets write, but not fewer than `n`."""
    values = list(values)
    while len(values) > n and not values[-1].strip():
        values.pop()
    return values


def _check_header(header: list[str], where: str) -> None:
    unknown = [name for name in header if name not in COLUMNS]
    twice = [name for name in header if header.count(name) > 1]
    if unknown and ";" in unknown[0]:
        raise UserError(f"{where}: separated by semicolons; save it as CSV with commas")
    if unknown or twice or "class_name" not in header:
        fault = f"unknown column {unknown[0]}" if unknown else f"{twice[0]} stands twice" if twice else "class_name is missing"
        raise UserError(f"{where}: {fault}; the columns are class_name and any of {', '.join(COLUMNS[1:])}")
