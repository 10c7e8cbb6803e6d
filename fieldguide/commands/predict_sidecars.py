"""XMP sidecars with the keywords of a photograph, for photo managers; the photograph itself is never changed."""

import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from xml.sax.saxutils import escape

from fieldguide.commands.predict_output import Outcomes
from fieldguide.core.errors import UserError
from fieldguide.core.files import write_bytes
from fieldguide.core.names import common_name
from fieldguide.core.taxonomy import RANKS, Taxon
from fieldguide.onnx.classifier import Prediction
from fieldguide.sources.members import printable

XMP = """<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="fieldguide">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:lr="http://ns.adobe.com/lightroom/1.0/">
   <dc:subject><rdf:Bag>{keywords}</rdf:Bag></dc:subject>
   <lr:hierarchicalSubject><rdf:Bag>{tree}</rdf:Bag></lr:hierarchicalSubject>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""
TEXTS = {
    "written": "written",
    "untold": "photographs without a certain answer",
    "there": "already there, left as they are",
    "not written": "not written",
}


def sidecar_of(file: Path) -> Path:
    """`photo.jpg.xmp`, as digiKam and darktable name it: `photo.xmp` would be that of a raw file beside it too."""
    return file.with_name(f"{file.name}.xmp")


def xmp(prediction: Prediction, taxonomy: Mapping[str, Taxon]) -> str:
    """The sidecar with the keywords of an answer that is told; empty if none is."""
    if told := prediction.taxon:
        members = [taxon for taxon in taxonomy.values() if getattr(taxon, told.rank) == told.name]
        ranks = RANKS[RANKS.index(told.rank) :]
        path = [next(filter(None, (getattr(member, rank) for member in members)), "") for rank in reversed(ranks)]
        keywords = [told.name]
    elif prediction.verdict == "sure":
        best = prediction.answers[0]
        taxon = taxonomy.get(best.name, Taxon())
        keywords = [best.common_name or common_name(best.name), *([best.scientific_name] if best.scientific_name else [])]
        path = [*(getattr(taxon, rank) for rank in reversed(RANKS)), keywords[-1]]
    else:
        return ""
    tree = "|".join(dict.fromkeys(part.replace("|", "/") for part in path if part))
    return XMP.format(keywords=_items(keywords), tree=_items([tree]))


def _items(values: Iterable[str]) -> str:
    return "".join(f"<rdf:li>{escape(value)}</rdf:li>" for value in values)


def with_sidecars(outcomes: Outcomes, taxonomy: Mapping[str, Taxon], counts: Counter[str]) -> Outcomes:
    """The outcomes, after the sidecars of their photographs are written; counts them by the keys of `TEXTS`.

    A sidecar that is there, of whatever program, is left as it is. One that cannot be written is a line on standard error.
    """
    for photo, outcome in outcomes:
        if photo.file and not isinstance(outcome, str):
            counts[_write(photo.file, xmp(outcome, taxonomy))] += 1
        yield photo, outcome


def _write(file: Path, content: str) -> str:
    target = sidecar_of(file)
    if not content:
        return "untold"
    try:
        if os.path.lexists(target):
            return "there"
        write_bytes(target, content.encode())
    except UserError as error:
        print(printable(str(error)), file=sys.stderr)
        return "not written"
    return "written"


def summary(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[key]} {text}" for key, text in TEXTS.items() if counts[key] or key != "not written")
