"""A class activation map as an overlay on the photograph. Needs only NumPy and Pillow."""

import numpy as np

from fieldguide.core.images import upscale

INFERNO = np.array(  # 17 of matplotlib's 256 colours, evenly spaced; perceptually uniform (van der Walt and Smith 2015)
    [
        (0, 0, 4), (11, 7, 36), (33, 12, 74), (61, 9, 101), (87, 16, 110), (113, 25, 110),
        (138, 34, 106), (163, 44, 97), (188, 55, 84), (210, 70, 68), (228, 90, 49), (241, 115, 29),
        (249, 142, 9), (252, 172, 17), (249, 203, 53), (242, 234, 105), (252, 255, 164),
    ],
    np.float32,
)  # fmt: skip
OPACITY = 0.7  # of the colour at activation 1


def colours(levels: np.ndarray) -> np.ndarray:
    """Float 0..1, any shape `[...]`, to the RGB values of the colour map, 0..255: float32 `[..., 3]`."""
    places = np.linspace(0, 1, len(INFERNO))
    return np.stack([np.interp(levels, places, INFERNO[:, channel]) for channel in range(3)], axis=-1).astype(np.float32)


def supporting(activation: np.ndarray) -> np.ndarray:
    """The positive part of an activation map, divided by its maximum, any shape; 0 if nothing is positive."""
    positive = np.maximum(activation, 0)
    return positive / max(float(positive.max()), np.finfo(np.float32).tiny)


def overlay(rgb: np.ndarray, activation: np.ndarray) -> np.ndarray:
    """The photograph with its activation map as an overlay: uint8 `[H, W, 3]`.

    rgb: uint8 `[H, W, 3]`; activation: float `[h, w]`, 0..1, of the centre square, which is the network's input. The rest of
    the photograph is unchanged. The overlay is more opaque at stronger activations.
    """
    height, width = rgb.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    levels = np.clip(upscale(activation, side), 0, 1)
    alpha = OPACITY * levels[..., None]
    result = rgb.copy()
    square = result[top : top + side, left : left + side]
    square[:] = np.rint(square * (1 - alpha) + colours(levels) * alpha).astype(np.uint8)
    return result
