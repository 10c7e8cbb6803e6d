"""Overlays: the colours of the map, where they lie, and what shows through."""

import numpy as np
import pytest
from matplotlib import colormaps

from fieldguide.core.images import upscale
from fieldguide.onnx.heatmap import OPACITY, colours, overlay, supporting


def test_the_colours_are_those_of_matplotlibs_inferno() -> None:
    levels = np.linspace(0, 1, 256)
    assert np.abs(colours(levels) - colormaps["inferno"](levels)[:, :3] * 255).max() < 7


def test_lightness_rises_with_the_level() -> None:
    lightness = colours(np.linspace(0, 1, 100)) @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(lightness) > 0).all()


def test_nothing_is_laid_over_a_photograph_where_the_activation_is_0() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    before = rgb.copy()
    assert (overlay(rgb, np.zeros((3, 3))) == rgb).all()
    overlay(rgb, np.ones((3, 3)))
    assert (rgb == before).all()


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (50, 50)])
def test_the_map_lies_on_the_centre_square_which_the_network_saw(shape: tuple[int, int]) -> None:
    rgb = np.full((*shape, 3), 100, np.uint8)
    laid = overlay(rgb, np.ones((2, 2), np.float32))
    changed = (laid != rgb).any(axis=2)
    side, (height, width) = min(shape), shape
    expected = np.zeros(shape, bool)
    top, left = (height - side) // 2, (width - side) // 2
    expected[top : top + side, left : left + side] = True
    assert (changed == expected).all()
    assert (laid[changed] == np.rint(100 * (1 - OPACITY) + np.array([252, 255, 164]) * OPACITY)).all()


def test_the_strongest_place_is_the_most_coloured() -> None:
    activation = np.zeros((4, 4), np.float32)
    activation[0, 3] = 1
    change = np.abs(overlay(np.full((80, 80, 3), 30, np.uint8), activation).astype(int) - 30).sum(axis=2)
    row, column = np.unravel_index(change.argmax(), change.shape)
    assert row < 20
    assert column >= 60
    assert change[40:, :40].max() == 0


def test_scaling_up_is_bicubic_and_keeps_a_level_plane() -> None:
    assert upscale(np.full((3, 3), 0.25), 30) == pytest.approx(np.full((30, 30), 0.25))
    ramp = upscale(np.tile(np.arange(8.0), (8, 1)), 80)
    assert ramp.shape == (80, 80)
    assert ramp.dtype == np.float32
    assert ramp[40, 40] == pytest.approx(40.5 / 10 - 0.5, abs=0.02)  # the centres of pixels, not their corners


@pytest.mark.parametrize(("values", "expected"), [([[-1, 2], [4, 0]], [[0, 0.5], [1, 0]]), ([[-1, -2]], [[0, 0]])])
def test_activation_is_scaled_to_its_largest_value(values: list, expected: list) -> None:
    assert supporting(np.array(values, np.float32)).tolist() == expected
