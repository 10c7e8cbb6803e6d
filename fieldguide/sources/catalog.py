"""The known data sets: title, origin, layout and number of images."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Layout = Literal["folders", "tfrecords"]

# In the competition's order; the competition's list has a trailing space in two names
FLOWER_NAMES = (
    "pink primrose|hard-leaved pocket orchid|canterbury bells|sweet pea|wild geranium|tiger lily|moon orchid"
    "|bird of paradise|monkshood|globe thistle|snapdragon|colt's foot|king protea|spear thistle|yellow iris"
    "|globe-flower|purple coneflower|peruvian lily|balloon flower|giant white arum lily|fire lily|pincushion flower"
    "|fritillary|red ginger|grape hyacinth|corn poppy|prince of wales feathers|stemless gentian|artichoke|sweet william"
    "|carnation|garden phlox|love in the mist|cosmos|alpine sea holly|ruby-lipped cattleya|cape flower|great masterwort"
    "|siam tulip|lenten rose|barberton daisy|daffodil|sword lily|poinsettia|bolero deep blue|wallflower|marigold"
    "|buttercup|daisy|common dandelion|petunia|wild pansy|primula|sunflower|lilac hibiscus|bishop of llandaff|gaura"
    "|geranium|orange dahlia|pink-yellow dahlia|cautleya spicata|japanese anemone|black-eyed susan|silverbush"
    "|californian poppy|osteospermum|spring crocus|iris|windflower|tree poppy|gazania|azalea|water lily|rose"
    "|thorn apple|morning glory|passion flower|lotus|toad lily|anthurium|frangipani|clematis|hibiscus|columbine"
    "|desert-rose|tree mallow|magnolia|cyclamen|watercress|canna lily|hippeastrum|bee balm|pink quill|foxglove"
    "|bougainvillea|camellia|mallow|mexican petunia|bromelia|blanket flower|trumpet creeper|blackberry lily"
    "|common tulip|wild rose"
).split("|")


@dataclass(frozen=True)
class Dataset:
    """A known data set. `class_names` by label number, empty if the data contain the names."""

    title: str
    layout: Layout
    home: str = ""
    licence: str = ""
    kaggle_dataset: str = ""  # owner/name
    kaggle_competition: str = ""
    releases: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)  # images in train, valid, test
    class_names: tuple[str, ...] = ()


CATALOG = {
    "sample": Dataset(
        title="Synthetic butterflies, drawn by fieldguide/sources/sample.py",
        layout="folders",
        licence="that of fieldguide",
    ),
    "butterflies": Dataset(
        title="Butterfly and moth species",
        layout="folders",
        home="https://www.kaggle.com/datasets/gpiosenka/butterfly-images40-species",
        licence="CC0: public domain, as its page states",
        kaggle_dataset="gpiosenka/butterfly-images40-species",
        releases={"50 species": (4955, 250, 250), "75 species": (9285, 375, 375), "100 species": (12594, 500, 500)},
    ),
    "flowers": Dataset(
        title="Petals to the Metal: 104 kinds of flowers",
        layout="tfrecords",
        home="https://www.kaggle.com/competitions/tpu-getting-started",
        licence="competition data: see its rules",
        kaggle_competition="tpu-getting-started",
        releases={"competition": (12753, 3712, 7382)},
        class_names=tuple(FLOWER_NAMES),
    ),
    "folder": Dataset(title="Own photographs in folders", layout="folders"),
    "tfrecords": Dataset(title="Own photographs in TFRecord shards", layout="tfrecords"),
}


def matching_release(dataset: Dataset, train: int, valid: int, test: int) -> str:
    """The release with exactly these counts, or a message that none has; empty if the catalog has no counts."""
    if not dataset.releases:
        return ""
    for name, counts in dataset.releases.items():
        if counts == (train, valid, test):
            return name
    known = "; ".join(f"{name} {'/'.join(map(str, counts))}" for name, counts in dataset.releases.items())
    return f"none: {train}/{valid}/{test} train/valid/test images, known are {known}"
