"""What a person is asked about, and what a desk is: the source of the questions, which stores the answers."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from fieldguide.core.corrections import Correction
from fieldguide.core.names import common_name

KINDS = {  # how the page calls them, in the order in which they are offered
    "conflict": "Label conflict",
    "label": "Suspected label",
    "atypical": "None of the classes",
    "duplicate": "Duplicate",
    "unsure": "Unsure",
    "unknown": "Unknown",
    "sure": "Sure",
}


class ManifestImage(NamedTuple):
    """Where the bytes of an image lie below data/raw, and what the manifest says of it."""

    sha256: str
    id: str
    split: str
    class_name: str
    file: str
    offset: int
    length: int
    use: bool


class Suspicion(NamedTuple):
    """Why an image is offered."""

    kind: str  # of `KINDS`
    suggested: str = ""  # class name
    score: float | None = None
    other: ManifestImage | None = None  # the image of which it is a copy


class Suggestion(NamedTuple):
    """A class that the model names, with its probability."""

    class_name: str
    probability: float


@dataclass(frozen=True)
class Item:
    """An image to decide about, with all that is suspected of it, the first first."""

    sha256: str
    name: str
    split: str
    given: str  # the class under which it is; empty for a new photograph
    suspicions: tuple[Suspicion, ...]
    suggestions: tuple[Suggestion, ...] = ()

    @property
    def suggested(self) -> str:
        """The class to which `relabel` leads without a further word; may be empty."""
        return next((each.suggested for each in self.suspicions if each.suggested), "")

    @property
    def kinds(self) -> set[str]:
        return {each.kind for each in self.suspicions}

    def rank(self, kind: str) -> float:
        """The place among the items of a kind: surely wrong labels and unlike images first, the others in their order."""
        score = next((each.score for each in self.suspicions if each.kind == kind), None) or 0.0
        return {"label": -score, "atypical": score}.get(kind, 0.0)

    @property
    def class_names(self) -> set[str]:
        """The classes by which the item is found."""
        named = {self.given, *(each.suggested for each in self.suspicions)}
        return (named | {self.suggestions[0].class_name} if self.suggestions else named) - {""}


class NotStored(Exception):
    """An answer that is not stored; the text says why and what to do."""


class Stale(NotStored):
    """Somebody else has decided about the image since the page was shown."""


class Desk(Protocol):
    """Offers items and stores what is decided about them. Thread-safe; several processes may have a desk for the same file."""

    items: Mapping[str, Item]  # by SHA-256, in the order in which they are offered
    class_names: tuple[str, ...]
    by: str  # who decides
    is_of_labels: bool  # else of new photographs
    after: str  # what to do when all is decided

    def decisions(self) -> Mapping[str, Correction]:
        """What is decided and on disk, by SHA-256; the last decision is the last."""

    def decide(self, sha256: str, decision: str, class_name: str, version: str) -> None:
        """Stores a decision; it is on disk on return. Raises `NotStored`, and `Stale` if `version` is not that on disk."""

    def withdraw(self, sha256: str, version: str) -> None:
        """Removes a decision; it is off the disk on return. Raises as `decide` does."""

    def encoded(self, sha256: str) -> bytes:
        """The encoded bytes of an image that the page shows; raises `KeyError` for others and `OSError`."""

    def examples(self, class_name: str, item: Item) -> list[ManifestImage]:
        """Images that show the class, for comparison with the item."""


def version_of(decision: Correction | None) -> str:
    """A text that differs for different decisions, so that an answer to an old page is known; "" without a decision."""
    return hashlib.sha256("\0".join(decision).encode()).hexdigest()[:16] if decision else ""


def check_version(version: str, present: Correction | None) -> None:
    """Raises `Stale` unless `version` is that of the present decision."""
    if version_of(present) == version:
        return
    text = f"{in_words(present)} by {present.by}" if present else "withdrawn"
    raise Stale(f"This image was decided elsewhere meanwhile: {text}. Nothing was changed; decide again to replace it.")


def in_words(decision: Correction) -> str:
    """`keep`, or `relabel as Red Admiral`."""
    return f"{decision.decision} as {common_name(decision.label)}" if decision.label else decision.decision


def last_decision(desk: Desk, decisions: Mapping[str, Correction]) -> Correction | None:
    """The last decision of this person about one of the items."""
    own = [each for each in decisions.values() if each.by == desk.by and each.sha256 in desk.items]
    return own[-1] if own else None
