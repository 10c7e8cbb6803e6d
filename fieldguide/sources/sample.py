"""The embedded sample: invented butterflies drawn from numbers, so that the whole pipeline runs without a download.

The download stage writes what `photographs` yields. A species is a palette and a pattern; a photograph shows one
individual in its own pose, light and place. Species share palettes, so mean colour does not name them. Some photographs are
faulty on purpose (`sample_faults`), so that the checks have something to find.

`python -m fieldguide.sources.sample` lists the faults that are planted with the params.yaml of the working folder.
"""

import io
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import islice, starmap
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from fieldguide.core.params import read_params
from fieldguide.sources.sample_faults import UNCHANGED, Fault, faults_csv, plant

JPEG_QUALITY, COPY_QUALITY = 90, 60  # of a photograph, and of a re-compressed copy
CUT, SHRUNK = 0.06, 0.75  # share of the side that a cropped copy lacks, and that a resized one has
CHUNK_IMAGES = 16  # one job of a worker process
BATCH_CHUNKS = 32  # jobs of each worker before all wait for each other, which bounds the memory
DRAWN_PX = 128  # smaller photographs are drawn at least this large and averaged down
SPECIES_PER_GENUS = 4  # those with the same colours in the same roles: only their patterns differ
SISTER_EVERY = 6  # a species that is hard to tell from the one before it
CANDIDATE_PATTERNS = 400
SPLITS = ("test", "train", "valid")  # the position is part of each seed: append only
ORDER, PATTERN, NAME, HABIT, INDIVIDUAL, FAULTS, PLANTED = range(7)  # what a seed is for: append only

# First words of the names; main colour, dark colour and accent in sRGB 0..255.
PALETTES = (
    (("AMBER", "EMBER", "TAWNY", "SAFFRON", "TIGER"), (232, 124, 30), (38, 22, 18), (250, 236, 205)),
    (("AZURE", "COBALT", "LAGOON", "RIVER", "TWILIGHT"), (42, 112, 214), (16, 20, 44), (178, 226, 250)),
    (("LEMON", "BRIMSTONE", "PRIMROSE", "CITRINE", "HONEY"), (246, 214, 60), (62, 42, 20), (222, 76, 40)),
    (("IVORY", "CHALK", "SNOW", "PEARL", "FROSTED"), (240, 238, 226), (52, 54, 62), (244, 150, 46)),
    (("CRIMSON", "GARNET", "SCARLET", "ROWAN", "CARDINAL"), (196, 40, 38), (30, 16, 22), (250, 206, 110)),
    (("EMERALD", "FERN", "JADE", "MALACHITE", "MOSS"), (72, 168, 84), (20, 40, 30), (228, 238, 150)),
    (("VIOLET", "HEATHER", "AMETHYST", "PLUM", "IRIS"), (132, 82, 184), (34, 22, 52), (250, 220, 150)),
    (("RUSSET", "UMBER", "HAZEL", "CHESTNUT", "ACORN"), (152, 92, 48), (48, 30, 22), (244, 206, 136)),
    (("ROSY", "CORAL", "BLUSH", "FUCHSIA", "PEONY"), (236, 122, 142), (92, 30, 58), (255, 240, 214)),
    (("SILVER", "ASHEN", "PEWTER", "SMOKY", "DOVE"), (166, 178, 190), (48, 52, 66), (214, 70, 88)),
    (("TURQUOISE", "PEACOCK", "TEAL", "OPAL", "MARINE"), (40, 178, 176), (14, 44, 58), (252, 186, 84)),
    (("DESERT", "SANDY", "FAWN", "WHEATEN", "DUNE"), (224, 188, 132), (104, 62, 40), (58, 104, 160)),
)
NOUNS = (
    *("ADMIRAL", "ARGUS", "BRUSHFOOT", "CRESCENT", "DRYAD", "DUSKWING", "EMPEROR", "FRITILLARY", "GLIDER", "GRAYLING"),
    *("HAIRSTREAK", "HEATH", "LACEWING", "LEAFWING", "METALMARK", "NYMPH", "RINGLET", "SATYR", "SKIPPER", "SULPHUR"),
)
PATTERNS = ("plain", "band", "stripes", "tip", "eyespot", "spots", "rays", "base")
COLOURINGS = {  # ground, mark and extra of the fore wings, then of the hind wings
    "main on dark": (("dark", "main", "accent"), ("dark", "main", "accent")),
    "dark on main": (("main", "dark", "accent"), ("main", "dark", "accent")),
    "accent on main": (("main", "accent", "dark"), ("main", "accent", "dark")),
    "two-tone": (("main", "dark", "accent"), ("accent", "dark", "main")),
}
SHAPES = {  # radii of the fore, then of the hind wing at even angles from the leading to the trailing edge
    "round": ((80, 95, 96, 92, 86, 80, 75, 70, 52), (50, 66, 74, 78, 79, 77, 72, 62, 42)),
    "pointed": ((100, 112, 100, 86, 76, 70, 68, 66, 50), (48, 60, 66, 69, 70, 72, 76, 70, 40)),
    "tailed": ((92, 105, 102, 94, 84, 77, 72, 66, 48), (48, 60, 67, 70, 72, 74, 72, 60, 40)),
    "scalloped": ((84, 100, 98, 86, 83, 80, 76, 68, 50), (50, 66, 73, 77, 78, 77, 74, 64, 42)),
}
MARGINS = {"none": 0.0, "narrow": 0.07, "broad": 0.17, "dotted": 0.18}  # share of the radius
TRAITS = {"fore": PATTERNS, "hind": PATTERNS, "shape": tuple(SHAPES), "margin": tuple(MARGINS)}
WEIGHTS = (2.0, 2.0, 2.0, 1.0)  # how much a difference in each trait tells two species apart
PARTS = ("fore", "hind")
SECTORS = ((0.98, -0.26), (0.24, -1.34))  # angles of the leading and the trailing edge, radians
ROOTS = ((0.03, 0.10), (0.03, -0.02))
OUTLINE_STEPS = 512
POSE = ((0.6, -0.25, -0.25, -0.9, -0.12, -0.12), (0.95, 0.25, 0.25, 0.9, 0.12, 0.12))  # scale, shift, turn, tilt
OPEN, FOLDED = (0.7, 1.0), (0.25, 0.5)  # widths of the left and of the right wings as seen, shares
GRASS = 0.25  # share of the photographs with a blade of grass in front
HARDSHIPS = ("far", "folded", "cut off", "hidden", "dusk", "blurred")
HARD = 0.25  # share of the photographs with one of these
UNDER = 0.06  # how far the fore wing's shadow falls on the hind wing
BODY = ((-0.24, 0.05, 0.3), (0.08, 0.075, 0.17), (0.25, 0.05, 0.05))  # middle, half width, half length of its ellipses
FLOWERS = ((236, 232, 220), (226, 120, 170), (244, 202, 70), (150, 110, 200), (220, 80, 70), (120, 160, 220))


class Species(NamedTuple):
    """One invented species: its place in the order of drawing, its palette, a choice for each of `TRAITS`, its colours."""

    name: str
    number: int
    palette: int
    traits: dict[str, str]


class Shot(NamedTuple):
    """What a photograph depends on, beside its size."""

    species: Species | None  # None: none of them
    seed: tuple[int, ...]  # the sample's; INDIVIDUAL or PLANTED; species, split and index
    picture: str = ""  # what is shown instead of a species
    change: str = ""  # what is done to a copy


def photographs(
    *,
    n_species: int,
    train_images: int,
    valid_images: int,
    test_images: int,
    image_px: int,
    seed: int,
    faults: bool = False,
    workers: int = 1,
) -> Iterator[tuple[str, bytes]]:
    """Member names (`train/AMBER ARGUS/001.jpg`) with JPEG bytes, by split, species and index; counts are per species.

    A photograph depends on the seed, its species, split, index and `image_px` alone: larger counts keep the earlier
    ones and `workers` changes nothing. With `faults` those of `planted_faults` take the place of photographs.
    """
    counts = {"test": test_images, "train": train_images, "valid": valid_images}
    catalogue = sorted(_catalogue(n_species, seed))
    species = {each.name: each for each in catalogue}
    planted = {fault.file: fault for fault in (planted_faults(n_species, counts, seed) if faults else ())}
    members = (
        f"{split}/{name}/{index:03d}.jpg" for split in SPLITS for name in species for index in range(1, counts[split] + 1)
    )
    shots = ((member, _shot(member, planted.get(member), species, seed), image_px) for member in members)
    if workers == 1:
        yield from starmap(_photograph, shots)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        while batch := list(islice(shots, workers * BATCH_CHUNKS * CHUNK_IMAGES)):
            yield from pool.map(_photograph, *zip(*batch, strict=True), chunksize=CHUNK_IMAGES)


def planted_faults(n_species: int, counts: Mapping[str, int], seed: int) -> list[Fault]:
    """What is planted in a sample with so many species and, of each, so many images by split."""
    return plant([species.name for species in sorted(_catalogue(n_species, seed))], counts, default_rng([seed, FAULTS]))


def _shot(member: str, fault: Fault | None, species: Mapping[str, Species], seed: int) -> Shot:
    """What a member shows: an individual of its own, or what its fault says."""
    split, name, file = (fault.other if fault and fault.other else member).split("/")
    place = species[name].number, SPLITS.index(split), int(file.removesuffix(".jpg"))
    if fault and not fault.other:
        return Shot(species.get(fault.true), (seed, PLANTED, *place), picture=fault.detail)
    return Shot(species[name], (seed, INDIVIDUAL, *place), change=fault.detail if fault else "")


@cache
def _catalogue(n_species: int, seed: int) -> tuple[Species, ...]:
    """Species in drawing order; each takes, of many random patterns, the one least like any with its palette so far."""
    n_names = len(PALETTES[0][0]) * len(NOUNS)
    if n_species > len(PALETTES) * n_names:
        raise ValueError(f"n_species is {n_species}, but there are names for {len(PALETTES) * n_names}; ask for fewer")
    palettes = default_rng([seed, ORDER]).permutation(len(PALETTES)).tolist()
    catalogue: list[Species] = []
    taken: dict[int, list[np.ndarray]] = {palette: [] for palette in palettes}
    for number in range(n_species):
        genus = number // SPECIES_PER_GENUS
        palette = palettes[genus % len(palettes)]
        colours = tuple(COLOURINGS)[(palette + genus // len(palettes)) % len(COLOURINGS)]
        rng = default_rng([seed, PATTERN, number])
        picks = rng.integers([len(choices) for choices in TRAITS.values()], size=(CANDIDATE_PATTERNS, len(TRAITS)))
        if taken[palette]:
            if _is_sister(number):
                same = np.arange(len(TRAITS)) != rng.integers(len(PARTS))
                picks[:, same] = taken[palette][-1][same]
            unlike = (picks[:, None] != np.stack(taken[palette])) @ np.array(WEIGHTS)  # [candidates, taken]
            picks = picks[[unlike.min(axis=1).argmax()]]
        place = int(default_rng([seed, NAME, palette]).permutation(n_names)[len(taken[palette])])
        taken[palette].append(picks[0])
        name = f"{PALETTES[palette][0][place // len(NOUNS)]} {NOUNS[place % len(NOUNS)]}"
        traits = {trait: choices[pick] for (trait, choices), pick in zip(TRAITS.items(), picks[0], strict=True)}
        catalogue.append(Species(name, number, palette, traits | {"colours": colours}))
    return tuple(catalogue)


def _is_sister(number: int) -> bool:
    """Whether a species differs from the one before it in the pattern of one pair of wings only."""
    return number % SISTER_EVERY == SISTER_EVERY - 1


def _photograph(member: str, shot: Shot, px: int) -> tuple[str, bytes]:
    """A background, a soft shadow and the butterfly on it, seen in a light through a lens and a sensor."""
    rng = default_rng(shot.seed)
    is_hard = shot.seed[1] == INDIVIDUAL and rng.random() < HARD  # a wrong label is planted to be found
    hardship = HARDSHIPS[rng.integers(len(HARDSHIPS))] if is_hard else ""
    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))](rng, px)
    scene = np.asarray(_blurred(background, px * rng.uniform(0.004, 0.018)), np.float32)
    if shot.species:
        subject, cover = _butterfly(rng, shot.species, shot.seed[0], px, hardship)
    else:
        subject, cover = _thing(rng, shot.picture, px)
    light_x, light_y = rng.uniform(-1, 1, size=2).tolist()
    away = (1, 0, light_x * px * 0.05, 0, 1, -light_y * px * 0.05)
    shape = Image.fromarray((cover * 255).astype(np.uint8)).transform((px, px), Image.Transform.AFFINE, away)
    shadow = np.asarray(_blurred(shape, px * rng.uniform(0.012, 0.03)), np.float32) / 255
    scene = scene * ((1 - rng.uniform(0.35, 0.6) * shadow) * (1 - cover))[..., None] + 255 * subject
    if hardship == "hidden" or rng.random() < GRASS:
        scene = _behind_grass(rng, scene, int(rng.integers(*((4, 7) if hardship == "hidden" else (1, 3)))))

    x, y = _grid(px)
    dusk = hardship == "dusk"
    light = rng.uniform(0.7, 1.15) * (1 + rng.uniform(0, 0.25) * (light_x * x + light_y * y))
    light *= (1 + rng.uniform(0, 0.7) * (_cloud(rng, px, 4, 4) - 0.5)) * (rng.uniform(0.35, 0.5) if dusk else 1)
    warmth = rng.uniform(-0.12, 0.12)
    scene *= light[..., None] * np.array([1 + warmth, 1, 1 - warmth], np.float32)
    photo = _blurred(_image(scene), px * (rng.uniform(0.014, 0.021) if hardship == "blurred" else rng.uniform(0, 0.006)))
    noise = rng.standard_normal((px, px, 3), dtype=np.float32)
    jpeg = io.BytesIO()
    _image(np.asarray(photo) + rng.uniform(1, 5) * (2 if dusk else 1) * noise).save(jpeg, "JPEG", quality=JPEG_QUALITY)
    return member, change_copy(jpeg.getvalue(), shot.change) if shot.change else jpeg.getvalue()


def change_copy(jpeg: bytes, change: str) -> bytes:
    """A copy of a square photograph, changed as one of `sample_faults.CHANGES` says."""
    if change == UNCHANGED:
        return jpeg
    image: Image.Image = Image.open(io.BytesIO(jpeg))
    px, cut = image.width, max(1, round(CUT * image.width))
    match change:
        case "cropped":
            image = image.crop((cut, cut // 2, px, px - cut + cut // 2))
        case "mirrored":
            image = ImageOps.mirror(image)
        case "resized":
            image = image.resize((round(SHRUNK * px),) * 2, Image.Resampling.BICUBIC)
    copy = io.BytesIO()
    image.save(copy, "JPEG", quality=COPY_QUALITY if change == "re-compressed" else JPEG_QUALITY)
    return copy.getvalue()


def _behind_grass(rng: Generator, scene: np.ndarray, n_blades: int) -> np.ndarray:
    """A scene, float32 [px, px, 3] in 0..255, behind blades of grass that are out of focus."""
    px = len(scene)
    blades = Image.new("L", (px, px))
    draw = ImageDraw.Draw(blades)
    for x, lean, width in rng.uniform((0.1, -0.5, 0.03), (0.9, 0.5, 0.07), size=(n_blades, 3)) * px:
        draw.polygon([(x, px), (x + width, px), (x + lean + width / 2, -0.1 * px)], fill=255)
    cover = np.asarray(_blurred(blades, px * 0.008), np.float32)[..., None] / 255
    return scene + cover * (np.float32(rng.uniform((60, 90, 30), (130, 170, 70))) - scene)


def _image(rgb: np.ndarray) -> Image.Image:
    return Image.fromarray(rgb.clip(0, 255).astype(np.uint8))


def _blurred(image: Image.Image, radius: float) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius))


def _grid(px: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres as x (right) and y (up), -1..1, float32 [px, px]."""
    steps = (np.arange(px, dtype=np.float32) + 0.5) * (2 / px) - 1
    x, y = np.meshgrid(steps, -steps)
    return x, y


def _turned(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    return cos * x + sin * y, cos * y - sin * x


def _covered(depth: np.ndarray, soft: float) -> np.ndarray:
    """Share of each pixel inside a shape, from the distance to its edge (positive inside) and the edge's width."""
    return (depth * (1 / soft) + 0.5).clip(0, 1)


def _lay(rgba: np.ndarray, where: np.ndarray, cover: np.ndarray, rgb: np.ndarray) -> None:
    """Lays colours [3, n] at the pixels `where` over premultiplied `rgba` [4, N], in place."""
    rgba[:, where] = rgba[:, where] * (1 - cover) + cover * np.concatenate([rgb, np.ones_like(rgb[:1])])


def _butterfly(rng: Generator, species: Species, seed: int, px: int, hardship: str) -> tuple[np.ndarray, np.ndarray]:
    """One posed individual: colours premultiplied by coverage [px, px, 3] and coverage [px, px], float32 in 0..1."""
    habit = default_rng([seed, HABIT, species.number - _is_sister(species.number)])  # what all individuals share
    factor = -(-DRAWN_PX // px)
    scale, shift_x, shift_y, turn, tilt_x, tilt_y = rng.uniform(*POSE).tolist()
    if hardship == "far":
        scale *= 0.5
    if hardship == "cut off":
        shift_x += np.sign(shift_x) * 0.6
    x, y = _grid(px * factor)
    x, y = _turned((x - shift_x) / scale, (y - shift_y) / scale, turn)
    depth = 1 + tilt_x * x + tilt_y * y
    x, y = (x / depth).ravel(), (y / depth).ravel() + 0.1
    soft = 2.6 / (px * factor * scale)
    openness = rng.uniform(*(FOLDED if hardship == "folded" else OPEN), size=2).astype(np.float32)
    wing_x = np.abs(x) / openness[(x > 0).astype(np.intp)]
    colours = np.array(PALETTES[species.palette][1:]) / 255
    colours = colours * rng.normal(1, 0.06, size=(3, 1)) * rng.normal(1, 0.03, size=(3, 3))
    inks = dict(zip(("main", "dark", "accent"), colours.clip(0, 1).astype(np.float32), strict=True))
    rgba = np.zeros((4, x.size), np.float32)
    for part in (1, 0):
        wing, where = _wing(rng, part, species.traits["shape"], wing_x, y, soft)
        rgba[:3, where] *= 1 - 0.4 * (1 + wing.depth / UNDER).clip(0, 1)
        _lay(rgba, where, _covered(wing.depth, soft), _wing_colours(rng, habit, species.traits, part, wing, inks))
    _draw_body(rgba, rng, x, y, 0.35 * inks["dark"] + 0.12, soft)
    small = rgba.reshape(4, px, factor, px, factor).mean(axis=(2, 4))
    return small[:3].transpose(1, 2, 0), small[3]


def _thing(rng: Generator, picture: str, px: int) -> tuple[np.ndarray, np.ndarray]:
    """A fallen leaf, a stone or nothing, as `_butterfly` returns an individual."""
    x, y = _grid(px)
    scale, shift_x, shift_y = rng.uniform((0.5, -0.2, -0.2), (0.75, 0.2, 0.2)).tolist()
    x, y = _turned((x - shift_x) / scale, (y - shift_y) / scale, rng.uniform(0, 2 * np.pi))
    if picture == "leaf":
        inside = 0.5 * (1 - x**2).clip(0) * (1 - 0.4 * x) - np.abs(y) - 0.02 * (1 + np.cos(40 * x))
        lateral = np.abs(((x + np.abs(y) * 0.8) * 5) % 1 - 0.5)
        veins = np.maximum(np.exp(-((y / 0.02) ** 2)), 0.5 * np.exp(-((lateral / 0.07) ** 2)))
        colours = _toned(rng, 0.6 * _cloud(rng, px, 4, 4) + 0.5 * veins, (130, 60, 18), (226, 160, 60))
    else:
        inside = 0.8 - np.hypot(x, y * 1.3) - 0.12 * (_cloud(rng, px, 5, 5) - 0.5)
        colours = _image(np.asarray(_stone(rng, px)) * (1.1 - 0.5 * np.hypot(x - 0.2, y - 0.3))[..., None])
    cover = _covered(inside, 2.6 / (px * scale)) * (picture != "empty")
    return np.asarray(colours, np.float32) / 255 * cover[..., None], cover


class Wing(NamedTuple):
    """A wing's own coordinates at N pixels, float32 [N] each; its outline, its sector and the width of an edge."""

    x: np.ndarray  # from the root
    y: np.ndarray
    out: np.ndarray  # 0 at the root, 1 at the outline
    along: np.ndarray  # 0 at the leading edge, 1 at the trailing edge
    depth: np.ndarray  # distance to the outline, positive inside
    outline: np.ndarray  # radius from the leading to the trailing edge, [OUTLINE_STEPS]
    sector: tuple[float, float]
    soft: float

    def spot(self, out: float, along: float, radius: float) -> np.ndarray:
        """Coverage of a disc around a point of the wing."""
        reach = out * float(self.outline[int(along * (OUTLINE_STEPS - 1))])
        x, y = _turned(self.x, self.y, self.sector[0] + along * (self.sector[1] - self.sector[0]))
        return _covered(radius - np.hypot(x - reach, y), self.soft)

    def strip(self, low: float, high: float) -> np.ndarray:
        """Coverage of the strip parallel to the outline between two values of `out`."""
        return _covered((high - low) / 2 - np.abs(self.out - (low + high) / 2), 1.3 * self.soft)

    def rays(self, count: int, width: float) -> np.ndarray:
        """Coverage of rays from the root, of a width given as an angle in shares of the wing."""
        return _covered(width / 2 - np.abs((self.along * count) % 1 - 0.5) / count, 2 * self.soft)


def _wing(rng: Generator, part: int, shape: str, x: np.ndarray, y: np.ndarray, soft: float) -> tuple[Wing, np.ndarray]:
    """A right wing and the indices of the pixels on or just beside it; the left one comes by folding `x` onto it."""
    lead, trail = np.add(SECTORS[part], rng.uniform(-0.08, 0.08)).tolist()
    outline = _outline(rng, part, shape)
    x, y = x - ROOTS[part][0], y - ROOTS[part][1]
    where = np.flatnonzero(np.hypot(x, y) < outline.max() + UNDER)
    x, y = x[where], y[where]
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    along = (lead - angle) / (lead - trail)
    step = (along * (OUTLINE_STEPS - 1)).clip(0, OUTLINE_STEPS - 1).astype(np.intp)
    steepness = np.hypot(1, np.gradient(outline, (lead - trail) / OUTLINE_STEPS) / outline)
    to_sides = radius * np.sin(np.minimum(lead - angle, angle - trail).clip(-np.pi / 2, np.pi / 2))
    depth = np.minimum((outline[step] - radius) / steepness.astype(np.float32)[step], to_sides)
    on = np.flatnonzero(depth > -UNDER)
    out = radius[on] / outline[step[on]]
    return Wing(x[on], y[on], out, along[on].clip(0, 1), depth[on], outline, (lead, trail), soft), where[on]


def _outline(rng: Generator, part: int, shape: str) -> np.ndarray:
    """Radius at each step of angle, float32: the shape of the species, slightly uneven, often with a worn notch."""
    steps = np.linspace(0, 1, OUTLINE_STEPS)
    knots = np.array(SHAPES[shape][part]) / 100 * rng.normal(1, 0.012, size=9)
    rounding = np.hanning(OUTLINE_STEPS // 8 + 1) / np.hanning(OUTLINE_STEPS // 8 + 1).sum()
    radius = np.pad(np.interp(steps, np.linspace(0, 1, 9), knots), OUTLINE_STEPS // 16, mode="edge")
    radius = np.convolve(radius, rounding, "valid")
    if shape == "scalloped":
        radius *= 1 + 0.03 * np.cos(2 * np.pi * 6.5 * steps)
    if shape == "tailed" and PARTS[part] == "hind":
        radius += 0.4 * np.exp(-(((steps - 0.66) / 0.045) ** 2))
    for at, width, bite in rng.uniform((0.15, 0.01, 0.02), (0.9, 0.03, 0.1), size=(rng.integers(3), 3)):
        radius *= 1 - bite * np.exp(-(((steps - at) / width) ** 2))
    return radius.astype(np.float32)


def _wing_colours(
    rng: Generator, habit: Generator, traits: dict[str, str], part: int, wing: Wing, inks: dict[str, np.ndarray]
) -> np.ndarray:
    """Colours [3, N] of ground, pattern, veins, margin and fringe."""
    ground, mark, extra = (inks[ink] for ink in COLOURINGS[traits["colours"]][part])
    rgb = ground[:, None] * (0.78 + 0.3 * np.sqrt(wing.out))

    def paint(cover: np.ndarray, ink: np.ndarray) -> None:
        rgb[:] += cover * (ink[:, None] - rgb)

    name = traits[PARTS[part]]
    place, size, count = (habit.uniform(size=3) + rng.normal(0, (0.2, 0.2, 0), size=3)).tolist()
    middle, half, edge, radius = 0.5 + 0.14 * place, 0.10 + 0.04 * size, 0.42 + 0.08 * place, 0.18 + 0.03 * size
    tip = 0.12 if wing.sector[0] > 0.5 else 0.75
    places = ((0.8, 0.15), (0.8, 0.38), (0.8, 0.61), (0.8, 0.84), (0.5, 0.28), (0.5, 0.6))
    strips = {
        "band": [(middle - half, middle + half, mark)],
        "stripes": [(at, at + 0.1 + 0.02 * size, mark) for at in (0.16, 0.39, 0.62, 0.85)],
        "base": [(-1, edge, mark), (edge + 0.07, edge + 0.13, extra)],
    }
    spots = {
        "tip": [(0.92, tip, 0.34 + 0.06 * size, mark)],
        "eyespot": [
            (0.62 + 0.06 * place, 0.42, radius * share, ink) for share, ink in ((1, extra), (0.72, mark), (0.35, extra))
        ],
        "spots": [(out, along, 0.065 + 0.02 * size, mark) for out, along in places],
    }
    for low, high, ink in strips.get(name, []):
        paint(wing.strip(low, high), ink)
    for out, along, reach, ink in spots.get(name, []):
        paint(wing.spot(out, along, reach), ink)
    if name == "rays":
        n_rays = 4 + round(count)
        paint(wing.rays(n_rays, 0.52 / n_rays) * wing.strip(0.3 + 0.1 * place, 1.2), mark)
    paint(0.5 * wing.rays(7, 0.018), inks["dark"])
    breadth = MARGINS[traits["margin"]] * rng.normal(1, 0.08)
    if breadth:
        paint(_covered(wing.out - 1 + breadth, 1.3 * wing.soft), inks["accent" if ground is inks["dark"] else "dark"])
    if traits["margin"] == "dotted":
        paint(wing.rays(7, 0.08) * wing.strip(0.87, 0.95), ground)
    paint(0.35 * _covered(0.012 - wing.depth, 2 * wing.soft), np.ones(3, np.float32))
    return rgb


def _draw_body(rgba: np.ndarray, rng: Generator, x: np.ndarray, y: np.ndarray, fur: np.ndarray, soft: float) -> None:
    """Lays antennae, abdomen, thorax and head over `rgba`, lit along the middle."""
    tip_x, tip_y = rng.uniform((0.2, 0.62), (0.32, 0.72)).tolist()
    where = np.flatnonzero((np.abs(x) < 0.4) & (np.abs(y) < 0.8))
    x, y = np.abs(x[where]), y[where]
    rise = (y - 0.26) / (tip_y - 0.26)
    stalk = np.minimum(0.009 - 0.8 * np.abs(x - tip_x * rise.clip(0, 1) ** 1.6), np.minimum(rise, 1 - rise))
    club = 0.026 - np.hypot(x - tip_x, y - tip_y)
    _lay(rgba, where, _covered(np.maximum(stalk, club), soft), np.repeat(0.6 * fur[:, None], x.size, axis=1))
    for middle, half_width, half_length in BODY:
        inside = (1 - np.hypot(x / half_width, (y - middle) / half_length)) * half_width
        ridge = (1.6 - 1.1 * (x / half_width) ** 2).clip(0.4, 1.6) * (0.85 + 0.15 * np.cos(y * 75))
        _lay(rgba, where, _covered(inside, soft), fur[:, None] * ridge)


def _cloud(rng: Generator, px: int, across: int, down: int) -> np.ndarray:
    """Smooth noise, float32 [px, px], mostly in 0..1, with that many blobs across and down."""
    grid = Image.fromarray(rng.random((down, across), dtype=np.float32))
    return np.asarray(grid.resize((px, px), Image.Resampling.BICUBIC))


def _toned(rng: Generator, texture: np.ndarray, low: ArrayLike, high: ArrayLike) -> Image.Image:
    """A texture in colours between two (sRGB 0..255), both a little different in each image."""
    ends = np.array([low, high]) * rng.uniform(0.8, 1.2, size=(2, 1)) * rng.uniform(0.88, 1.12, size=3)
    start, end = ends.astype(np.float32)
    return _image(start + texture[..., None] * (end - start))


def _leaf(rng: Generator, px: int) -> Image.Image:
    u, v = _turned(*_grid(px), rng.uniform(0, 2 * np.pi))
    v = v + rng.uniform(-0.5, 0.5)
    lateral = np.abs(((u - np.abs(v) * 0.8) * rng.uniform(2, 4)) % 1 - 0.5)
    veins = np.maximum(np.exp(-((v / 0.03) ** 2)), 0.5 * np.exp(-((lateral / 0.06) ** 2)))
    return _toned(rng, 0.5 * _cloud(rng, px, 5, 5) + 0.1 * lateral + 0.6 * veins, (28, 74, 26), (140, 186, 84))


def _grass(rng: Generator, px: int) -> Image.Image:
    image = _toned(rng, _cloud(rng, px, 4, 4), (30, 58, 18), (96, 128, 50))
    draw = ImageDraw.Draw(image)
    blades = rng.uniform((-0.2, -0.4, 0.01, 0.5), (1.2, 0.4, 0.05, 1.25), size=(36, 4)) * (px, px, px, 1)
    for x, lean, width, shade in blades.tolist():
        colour = (round(128 * shade), round(168 * shade), round(62 * shade))
        draw.polygon([(x, px), (x + width, px), (x + lean, -0.1 * px)], fill=colour)
    return image


def _flower(rng: Generator, px: int) -> Image.Image:
    image = _toned(rng, _cloud(rng, px, 3, 3), (34, 66, 30), (110, 146, 74))
    draw = ImageDraw.Draw(image)
    colour = np.array(FLOWERS[rng.integers(len(FLOWERS))])
    n_petals, radius, centre = rng.integers(7, 15), rng.uniform(0.45, 0.7) * px, rng.uniform(0.3, 0.7, size=2) * px
    swing = np.linspace(0, 2 * np.pi, 24)
    for angle in rng.uniform(0, 2 * np.pi) + np.arange(n_petals) * (2 * np.pi / n_petals):
        petal = _turned(radius * (0.5 + 0.5 * np.cos(swing)), radius * 2.2 / n_petals * np.sin(swing), angle)
        fill = (colour * rng.uniform(0.8, 1.05)).astype(int).tolist()
        draw.polygon((np.stack(petal, axis=1) + centre).ravel().tolist(), fill=tuple(fill))
    draw.ellipse([*(centre - 0.22 * radius), *(centre + 0.22 * radius)], fill=(214, 160, 40))
    return image


def _bark(rng: Generator, px: int) -> Image.Image:
    ridges = 1.6 * np.abs(_cloud(rng, px, 14, 3) + 0.5 * _cloud(rng, px, 30, 7) - 0.75)
    return _toned(rng, ridges if rng.random() < 0.5 else ridges.T, (62, 44, 32), (168, 138, 108))


def _stone(rng: Generator, px: int) -> Image.Image:
    grain: Any = sum(_cloud(rng, px, cells, cells) * share for cells, share in ((3, 0.4), (9, 0.3), (27, 0.2), (60, 0.15)))
    return _toned(rng, grain, (70, 70, 74), (200, 194, 184))


def _bokeh(rng: Generator, px: int) -> Image.Image:
    low, high = rng.integers(20, 130, size=3), rng.integers(90, 230, size=3)
    image = _toned(rng, _cloud(rng, px, 2, 2), low, high)
    discs = image.copy()
    draw = ImageDraw.Draw(discs)
    for x, y, radius, shade in rng.uniform((0, 0, 0.03, 0.8), (1, 1, 0.14, 1.5), size=(18, 4)).tolist():
        box = [(x - radius) * px, (y - radius) * px, (x + radius) * px, (y + radius) * px]
        draw.ellipse(box, fill=tuple((high * shade).astype(int).tolist()))
    return Image.blend(image, discs, 0.45)


BACKGROUNDS = (_leaf, _grass, _flower, _bark, _stone, _bokeh)


if __name__ == "__main__":
    sample = read_params().data.sample
    counts = {"train": sample.train_images, "valid": sample.valid_images, "test": sample.test_images}
    print(faults_csv(planted_faults(sample.species, counts, sample.seed)), end="")
