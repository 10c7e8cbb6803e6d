"""The data sets known by name: what they are, in which layout they come, and what to expect in them."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Dataset:
    """One entry: `origin` says how the raw data are had when `data.path` is empty."""

    title: str
    origin: Literal["generated", "kaggle", "path"]
    layout: Literal["folders"]
    home: str


CATALOG = {
    "sample": Dataset(
        title="Synthetic butterflies, drawn by fieldguide/sample.py",
        origin="generated",
        layout="folders",
        home="fieldguide/sample.py",
    ),
    "butterflies": Dataset(
        title="Butterfly and moth species",
        origin="kaggle",
        layout="folders",
        home="https://www.kaggle.com/datasets/gpiosenka/butterfly-images40-species",
    ),
    "folder": Dataset(
        title="Own photographs",
        origin="path",
        layout="folders",
        home="",
    ),
}
