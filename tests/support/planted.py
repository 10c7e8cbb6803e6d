"""Planted near duplicates: pictures, and what is done to their copies."""

import io
from collections.abc import Callable

import cv2
import numpy as np
from numpy.random import Generator, default_rng
from PIL import Image

from fieldguide.checks.near_duplicates import Fingerprints, NearDuplicate, fingerprint, near_duplicates
from fieldguide.sources.sample import photographs

Change = Callable[[np.ndarray, Generator], np.ndarray]


def rgb_of(encoded: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image.convert("RGB"))


def jpeg(quality: int) -> Change:
    def change(rgb: np.ndarray, _: Generator) -> np.ndarray:
        stream = io.BytesIO()
        Image.fromarray(rgb).save(stream, "JPEG", quality=quality)
        return rgb_of(stream.getvalue())

    return change


def resized(scale: float) -> Change:
    def change(rgb: np.ndarray, _: Generator) -> np.ndarray:
        height, width = rgb.shape[:2]
        size = round(width * scale), round(height * scale)
        return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC))

    return change


def cropped(share: float) -> Change:
    """Without that share of the width and of the height, taken from both sides at random."""

    def change(rgb: np.ndarray, rng: Generator) -> np.ndarray:
        cut_y, cut_x = (round(side * share) for side in rgb.shape[:2])
        top, left = rng.integers(cut_y + 1), rng.integers(cut_x + 1)
        return rgb[top : rgb.shape[0] - cut_y + top, left : rgb.shape[1] - cut_x + left].copy()

    return change


def turned(degrees: float, corners: str) -> Change:
    """To either side; the corners are black, white, or cut off."""

    def change(rgb: np.ndarray, rng: Generator) -> np.ndarray:
        angle = degrees * rng.choice([-1, 1])
        fill = (255, 255, 255) if corners == "white" else (0, 0, 0)
        image = Image.fromarray(rgb).rotate(angle, Image.Resampling.BICUBIC, fillcolor=fill)
        if corners != "cut":
            return np.asarray(image)
        radians = np.radians(degrees)
        margin = (1 - 1 / (np.cos(radians) + np.sin(radians))) / 2 * rgb.shape[0] + 1
        return np.asarray(image.crop((margin, margin, image.width - margin, image.height - margin)))

    return change


def relit(gain: float, offset: float = 0, gamma: float = 1) -> Change:
    return lambda rgb, _: (255 * (rgb / 255) ** gamma * gain + offset).clip(0, 255).astype(np.uint8)


def mirrored(rgb: np.ndarray, _: Generator) -> np.ndarray:
    return rgb[:, ::-1].copy()


def marked(where: str) -> Change:
    """A name in the corner, half-transparent letters across the middle, or a black bar with an address."""

    def change(rgb: np.ndarray, _: Generator) -> np.ndarray:
        height, width = rgb.shape[:2]
        ink = rgb.copy()
        font, white = cv2.FONT_HERSHEY_SIMPLEX, (255, 255, 255)
        if where == "corner":
            cv2.putText(ink, "(c) ME", (width // 2, height * 19 // 20), font, width / 250, white, max(1, width // 120))
            return ink
        if where == "middle":
            cv2.putText(ink, "SAMPLE", (width // 12, height * 4 // 7), font, width / 140, white, max(2, width // 40))
            return cv2.addWeighted(ink, 0.5, rgb, 0.5, 0)
        ink[height * 19 // 20 :] = 0
        cv2.putText(ink, "www.photo.example", (width // 20, height * 99 // 100), font, width / 500, white)
        return ink

    return change


CORNERS = ("black", "white", "cut")
CHANGES: dict[str, dict[str, Change]] = {  # kind: strength: change
    "re-compression": {f"quality {quality}": jpeg(quality) for quality in (80, 50, 30, 15)},
    "resizing": {f"x {scale}": resized(scale) for scale in (0.25, 0.5, 0.75, 1.5, 2)},
    "mirror": {"": mirrored},
    "brightness": {
        **{f"x {gain}": relit(gain) for gain in (0.6, 0.8, 1.3)},
        **{f"{offset:+}": relit(1, offset) for offset in (-40, 40)},
        **{f"gamma {gamma}": relit(1, 0, gamma) for gamma in (0.6, 1.6)},
    },
    "crop": {f"{share:.0%}": cropped(share) for share in (0.03, 0.05, 0.1)},
    "turn": {f"{degrees} deg, {corners}": turned(degrees, corners) for degrees in (1, 3, 5) for corners in CORNERS},
    "watermark": {where: marked(where) for where in ("corner", "middle", "bar")},
    "several": {
        "mirror, crop 5%, quality 50": lambda rgb, rng: jpeg(50)(cropped(0.05)(mirrored(rgb, rng), rng), rng),
        "turn 3 deg, crop 5%, x 0.8": lambda rgb, rng: relit(0.8)(cropped(0.05)(turned(3, "cut")(rgb, rng), rng), rng),
        "crop 10%, half size, quality 50": lambda rgb, rng: jpeg(50)(resized(0.5)(cropped(0.1)(rgb, rng), rng), rng),
    },
}


def drawn(n_images: int, image_px: int = 192) -> list[np.ndarray]:
    """Photographs of the embedded sample: species share palettes, individuals a pattern."""
    wanted = {"n_species": 8, "train_images": -(-n_images // 8), "valid_images": 0, "test_images": 0}
    return [rgb_of(content) for _, content in photographs(**wanted, image_px=image_px, seed=0)][:n_images]


def textured(n_images: int, image_px: int = 224) -> list[np.ndarray]:
    """Scenes with the spectrum of real photographs (amplitude ~ 1 / frequency), colours that go together, and edges."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(image_px), np.fft.fftfreq(image_px))) + 1 / image_px
    images = []
    for k in range(n_images):
        rng = default_rng([7, k])
        noise = np.fft.ifft2(np.fft.fft2(rng.standard_normal((3, image_px, image_px))) / frequency**1.2).real
        noise /= noise.std(axis=(1, 2), keepdims=True)
        rgb = (120 + 45 * noise[:1] + 15 * noise).clip(0, 255).astype(np.uint8).transpose(1, 2, 0).copy()
        for _ in range(6):
            axes = rng.integers(8, image_px // 4, 2).tolist()
            centre, ink = rng.integers(0, image_px, 2).tolist(), rng.integers(0, 256, 3).tolist()
            cv2.ellipse(rgb, centre, axes, int(rng.integers(180)), 0, 360, ink, -1, cv2.LINE_AA)
        images.append(rgb)
    return images


def pairs_of(images: list[np.ndarray], n_workers: int = 1) -> list[NearDuplicate]:
    return near_duplicates(Fingerprints.of([fingerprint(rgb) for rgb in images]), images.__getitem__, n_workers)[0]


def reported(images: list[np.ndarray]) -> set[tuple[int, int]]:
    return {(pair.i, pair.j) for pair in pairs_of(images) if pair.verdict != "different"}


def found(originals: list[np.ndarray], change: Change) -> tuple[int, int]:
    """How many changed copies are found, and how many pairs are reported that are no copies of each other."""
    rng = default_rng(0)
    pairs = reported(originals + [change(rgb, rng) for rgb in originals])
    planted = {(k, k + len(originals)) for k in range(len(originals))}
    return len(pairs & planted), len(pairs - planted)
