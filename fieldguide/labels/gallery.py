"""metrics/label_errors.html: each suspected label beside examples of both classes."""

from pathlib import Path

import numpy as np
import pandas as pd

from fieldguide.checks.gallery import Picture, page
from fieldguide.checks.inspection import read_rgb
from fieldguide.core.manifest import named_tuples
from fieldguide.core.paths import LABEL_ERRORS_CSV
from fieldguide.labels.judging import Judgement

MAX_SHOWN = 60  # findings of each kind; the table has all
N_EXAMPLES = 2  # of each class


def label_errors_page(rows: pd.DataFrame, judgement: Judgement, table: pd.DataFrame, raw: Path) -> str:
    """The findings without a decision as HTML, in the order of `label_errors`."""
    by_file = {name: row for row, name in enumerate(rows["id"])}
    certain = np.argsort(-judgement.given_probability, kind="stable")
    examples: dict[str, list[int]] = {}
    for row, name in zip(certain, rows["class_name"].iloc[certain], strict=True):
        if len(some := examples.setdefault(name, [])) < N_EXAMPLES and judgement.judged[row]:
            some.append(int(row))

    def picture(row: int, caption: str = "") -> Picture:
        place = rows.iloc[row]
        pixels = read_rgb(raw, (place["file"], place["offset"], place["length"]))
        return pixels, caption or f"{place['class_name']}: {place['id']}"

    undecided = table[table["verdict"].eq("")]
    groups = []
    for finding in named_tuples(undecided.groupby("kind", sort=False).head(MAX_SHOWN)):
        own = by_file[finding.file]
        pictures = [picture(own, f"{finding.split}: {finding.given}: {finding.file}")]
        match finding.kind:
            case "label":
                heading = f"{finding.given}, or {finding.suggested}? Wrong with probability {finding.score:.2f}"
                pictures += [picture(row) for name in (finding.given, finding.suggested) for row in examples.get(name, ())]
            case "atypical":
                heading = f"{finding.given}, or none of the classes? Similarity {finding.score:.2f}"
                pictures += [picture(row) for row in examples.get(finding.given, ())]
            case _:
                heading = f"the same photograph, not found by hashes: similarity {finding.score:.2f}"
                pictures.append(picture(by_file[finding.other]))
        groups.append((heading, pictures))
    shown = f", of which {len(groups)} are shown" if len(groups) < len(undecided) else ""
    text = f"{len(undecided)} findings{shown}, all in {LABEL_ERRORS_CSV}. Decide on them with: fieldguide review"
    return page("Labels to look at", text, groups, column="10rem")
