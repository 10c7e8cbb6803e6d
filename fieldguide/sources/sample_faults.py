"""What is planted in the embedded sample: wrong labels, copies across splits, a label conflict, pictures of no species.

`sample_faults.csv` lists it for the default parameters; `python -m fieldguide.sources.sample` for those of params.yaml. Labels
of test are right, so that the accuracy on test is that of the network.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import NamedTuple

from numpy.random import Generator

FEWEST_IMAGES = 8  # of each species in a split; with fewer nothing is planted there
WRONG_LABEL, COPY, CONFLICT, NO_SPECIES = "wrong label", "copy", "label conflict", "no species"
WRONG_LABELS = {"train": 40, "valid": 240}  # one for that many images of the split; more would leave few answers sure
NO_SPECIES_EVERY, CONFLICT_EVERY = 120, 480  # likewise, of train
COPIES = {("train", "test"): 60, ("train", "valid"): 120, ("valid", "test"): 120}  # likewise, of the smaller split
UNCHANGED = "same bytes"
CHANGES = (UNCHANGED, "re-compressed", "cropped", "mirrored", "resized")
PICTURES = ("leaf", "stone", "empty")


class Fault(NamedTuple):
    """A planted fault: a line of sample_faults.csv."""

    file: str  # train/AMBER ARGUS/001.jpg
    kind: str  # wrong label | copy | label conflict | no species
    given: str  # the class under which it lies
    true: str  # the species that it shows; empty if none
    other: str  # the file of which it is a copy
    detail: str  # one of CHANGES for a copy, one of PICTURES for what is no species


def plant(names: Sequence[str], counts: Mapping[str, int], rng: Generator) -> list[Fault]:
    """The faults of a sample with these species and numbers of images of each, by split; spread evenly over the species."""
    turns = cycle(rng.permutation(names).tolist())
    changes, pictures = cycle(CHANGES), cycle(PICTURES)
    n_images = {split: count * len(names) if count >= FEWEST_IMAGES else 0 for split, count in counts.items()}
    free = {(split, name): (rng.permutation(counts[split]) + 1).tolist() for split in sorted(counts) for name in sorted(names)}
    faults = []

    def take(split: str, name: str) -> str:
        return f"{split}/{name}/{free[split, name].pop():03d}.jpg"

    for split, every in WRONG_LABELS.items():
        for _ in range(n_images[split] // every):
            given = next(turns)
            true = str(rng.choice([name for name in names if name != given]))
            faults.append(Fault(take(split, given), WRONG_LABEL, given, true, "", ""))
    for (split, source), every in COPIES.items():
        for _ in range(min(n_images[split], n_images[source]) // every):
            name = next(turns)
            faults.append(Fault(take(split, name), COPY, name, name, take(source, name), next(changes)))
    for _ in range(n_images["train"] // CONFLICT_EVERY):
        true, given = next(turns), next(turns)
        faults.append(Fault(take("train", given), CONFLICT, given, true, take("train", true), UNCHANGED))
    for _ in range(n_images["train"] // NO_SPECIES_EVERY):
        given = next(turns)
        faults.append(Fault(take("train", given), NO_SPECIES, given, "", "", next(pictures)))
    return sorted(faults)


def faults_csv(faults: Iterable[Fault]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(Fault._fields)
    table.writerows(faults)
    return text.getvalue()
