"""Augmentation against torchvision, with the draws set by hand; and what the draws depend on."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from fieldguide.augment import N_DRAWS, affine, augment, draws, order
from fieldguide.params import Augment

IDENTITY = {
    "horizontal_flip": 0.0,
    "vertical_flip": 0.0,
    "rotation_degrees": 0.0,
    "crop_area_min": 1.0,
    "crop_aspect_max": 1.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
}
STRONG = {
    "horizontal_flip": 0.5,
    "vertical_flip": 0.5,
    "rotation_degrees": 45.0,
    "crop_area_min": 0.3,
    "crop_aspect_max": 1.5,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
}
FLIP_X, FLIP_Y, ANGLE, AREA, ASPECT, CENTRE_X, CENTRE_Y, BRIGHTNESS, CONTRAST, SATURATION = range(N_DRAWS)
GREY_TOLERANCE = 3e-4  # torchvision's weights of grey are 0.2989, 0.587, 0.114, whose sum is 0.9999


def settings(**changes: float) -> Augment:
    return Augment(**(IDENTITY | changes))


def u_of(n_images: int = 1, **columns: float) -> torch.Tensor:
    """Draws in the middle of their range, but for the columns named."""
    u = torch.full((n_images, N_DRAWS), 0.5)
    for name, value in columns.items():
        u[:, globals()[name.upper()]] = value
    return u


def noise(n_images: int = 1, height: int = 64, width: int = 64, seed: int = 0, low: int = 0, high: int = 256) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (n_images, 3, height, width), dtype=torch.uint8, generator=generator)


def scaled(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 255


@pytest.mark.parametrize("u", [u_of(3), draws(3, 5, 3)], ids=["middle", "drawn"])
def test_identity_settings_give_the_plain_image(u: torch.Tensor) -> None:
    images = noise(3)
    torch.testing.assert_close(augment(images, u, settings(), 64), scaled(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 80), (33, 16), (1, 1)])
@pytest.mark.parametrize("image_px", [16, 37, 128])
def test_identity_settings_resize_as_interpolate_does(height: int, width: int, image_px: int) -> None:
    images = noise(2, height, width)
    expected = F.interpolate(scaled(images), (image_px, image_px), mode="bilinear", align_corners=False)
    torch.testing.assert_close(augment(images, draws(1, 0, 2), settings(), image_px), expected, atol=1e-5, rtol=0)


def test_horizontal_flip_is_torchvisions() -> None:
    images = noise(2)
    flipped = augment(images, draws(1, 0, 2), settings(horizontal_flip=1.0), 64)
    torch.testing.assert_close(flipped, tv.horizontal_flip(scaled(images)), atol=1e-5, rtol=0)


def test_vertical_flip_is_torchvisions() -> None:
    images = noise(2)
    flipped = augment(images, draws(1, 0, 2), settings(vertical_flip=1.0), 64)
    torch.testing.assert_close(flipped, tv.vertical_flip(scaled(images)), atol=1e-5, rtol=0)


def test_half_of_the_images_are_flipped_at_probability_one_half() -> None:
    images = noise(1, 16, 16).expand(400, -1, -1, -1)
    changed = augment(images, draws(1, 0, 400), settings(horizontal_flip=0.5), 16)
    plain = (changed - scaled(images)).abs().amax(dim=(1, 2, 3)) < 1e-4
    mirrored = (changed - scaled(images).flip(3)).abs().amax(dim=(1, 2, 3)) < 1e-4
    assert torch.all(plain ^ mirrored)
    assert 160 < int(mirrored.sum()) < 240  # four standard deviations


def test_the_two_flips_are_drawn_apart() -> None:
    image = noise(1, 8, 8)
    changed = augment(image.expand(100, -1, -1, -1), draws(1, 0, 100), settings(horizontal_flip=0.5, vertical_flip=0.5), 8)
    for dims in ((), (3,), (2,), (2, 3)):
        same = (changed - scaled(image).flip(dims)).abs().amax(dim=(1, 2, 3)) < 1e-4
        assert 8 < int(same.sum()) < 42  # four standard deviations about a quarter


@pytest.mark.parametrize("degrees", [-180.0, -33.0, 0.0, 17.0, 90.0])
def test_rotation_is_torchvisions_counter_clockwise_away_from_the_border(degrees: float) -> None:
    images = noise()
    limit = max(abs(degrees), 1.0)
    turned = augment(images, u_of(angle=(degrees / limit + 1) / 2), settings(rotation_degrees=limit), 64)
    expected = tv.rotate(scaled(images), degrees, interpolation=InterpolationMode.BILINEAR)
    inner = (..., slice(11, 53), slice(11, 53))  # a square that no turn takes out of the picture
    torch.testing.assert_close(turned[inner], expected[inner], atol=2e-4, rtol=0)


def test_rotation_fills_its_corners_with_the_picture() -> None:
    images = noise(low=200)
    turned = augment(images, u_of(angle=1.0), settings(rotation_degrees=45.0), 64)
    assert turned.min() >= 200 / 255 - 1e-5


@pytest.mark.parametrize(
    ("columns", "box"),
    [
        ({"centre_x": 0.0, "centre_y": 0.0}, (0, 0)),
        ({"centre_x": 1.0, "centre_y": 0.0}, (0, 32)),
        ({"centre_x": 0.75, "centre_y": 0.25}, (8, 24)),
        ({"centre_x": 0.5, "centre_y": 1.0}, (32, 16)),
    ],
)
@pytest.mark.parametrize("image_px", [32, 16])
def test_crop_is_torchvisions_resized_crop(columns: dict[str, float], box: tuple[int, int], image_px: int) -> None:
    images = noise()
    cropped = augment(images, u_of(area=0.0, **columns), settings(crop_area_min=0.25), image_px)
    top, left = box
    expected = tv.resized_crop(scaled(images), top, left, 32, 32, [image_px, image_px], antialias=False)
    torch.testing.assert_close(cropped, expected, atol=1e-4, rtol=0)


def test_a_magnified_crop_is_torchvisions_away_from_the_crops_border() -> None:
    images = noise()
    cropped = augment(images, u_of(area=0.0, centre_x=0.75, centre_y=0.25), settings(crop_area_min=0.25), 64)
    expected = tv.resized_crop(scaled(images), 8, 24, 32, 32, [64, 64], antialias=False)
    torch.testing.assert_close(cropped[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("aspect", "box"), [(1.0, (24, 0, 16, 64)), (0.0, (0, 24, 64, 16))], ids=["wide", "tall"])
def test_crops_become_wider_or_taller_by_the_aspect(aspect: float, box: tuple[int, int, int, int]) -> None:
    images = noise()
    cropped = augment(images, u_of(area=0.0, aspect=aspect), settings(crop_area_min=0.25, crop_aspect_max=4.0), 16)
    expected = tv.resized_crop(scaled(images), *box, [16, 16], antialias=False)
    torch.testing.assert_close(cropped, expected, atol=1e-4, rtol=0)


def test_crops_of_a_picture_that_is_not_square_are_shares_of_its_sides() -> None:
    images = noise(1, 32, 96)
    cropped = augment(images, u_of(area=0.0, centre_x=1.0, centre_y=0.0), settings(crop_area_min=0.25), 16)
    expected = tv.resized_crop(scaled(images), 0, 48, 16, 48, [16, 16], antialias=False)
    torch.testing.assert_close(cropped, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("area_min", [0.08, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("aspect_max", [1.0, 1.333, 4.0])
def test_crops_keep_the_share_of_the_area_that_was_promised(area_min: float, aspect_max: float) -> None:
    theta = affine(draws(1, 0, 500), settings(crop_area_min=area_min, crop_aspect_max=aspect_max))
    width, height = theta[:, 0, 0], theta[:, 1, 1]
    assert (width * height).min() >= area_min - 1e-5
    assert (width * height).max() <= 1 + 1e-5


@pytest.mark.parametrize("aspect_max", [1.0, 1.333, 4.0])
def test_crops_stay_inside_the_picture(aspect_max: float) -> None:
    theta = affine(draws(1, 0, 500), settings(crop_area_min=0.1, crop_aspect_max=aspect_max))
    reach = theta[:, :, :2].diagonal(dim1=1, dim2=2) + theta[:, :, 2].abs()
    assert reach.max() <= 1 + 1e-5


def test_a_turn_is_applied_to_the_crop_and_a_flip_after_the_turn() -> None:
    images = noise()
    chosen = settings(crop_area_min=0.25, rotation_degrees=10.0, horizontal_flip=1.0)
    changed = augment(images, u_of(area=0.0, angle=1.0), chosen, 32)
    cropped = tv.resized_crop(scaled(images), 16, 16, 32, 32, [32, 32], antialias=False)
    expected = tv.horizontal_flip(tv.rotate(cropped, 10.0, interpolation=InterpolationMode.BILINEAR))
    torch.testing.assert_close(changed[..., 5:-5, 5:-5], expected[..., 5:-5, 5:-5], atol=2e-4, rtol=0)


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.3])
@pytest.mark.parametrize(
    ("column", "reference"),
    [("brightness", tv.adjust_brightness), ("contrast", tv.adjust_contrast), ("saturation", tv.adjust_saturation)],
)
def test_each_colour_change_is_torchvisions(column: str, reference, factor: float) -> None:
    images = noise(low=100, high=150)  # no value is clipped
    changed = augment(images, u_of(**{column: (factor - 1) / 0.3 / 2 + 0.5}), settings(**{column: 0.3}), 64)
    torch.testing.assert_close(changed, reference(scaled(images), factor), atol=GREY_TOLERANCE, rtol=0)


@pytest.mark.parametrize("u", [0.1, 0.9])
def test_colour_changes_together_are_torchvisions_one_after_the_other(u: float) -> None:
    images = noise(low=100, high=150)
    changed = augment(
        images,
        u_of(brightness=u, contrast=1 - u, saturation=u),
        settings(brightness=0.3, contrast=0.2, saturation=0.4),
        64,
    )
    expected = tv.adjust_brightness(scaled(images), 1 + 0.3 * (2 * u - 1))
    expected = tv.adjust_saturation(expected, 1 + 0.4 * (2 * u - 1))
    expected = tv.adjust_contrast(expected, 1 - 0.2 * (2 * u - 1))
    torch.testing.assert_close(changed, expected, atol=GREY_TOLERANCE, rtol=0)


def test_saturation_of_zero_is_grey_and_contrast_of_zero_is_flat() -> None:
    images = noise()
    grey = augment(images, u_of(saturation=0.0), settings(saturation=1.0), 64)
    expected = tv.rgb_to_grayscale(scaled(images), num_output_channels=3)
    torch.testing.assert_close(grey, expected, atol=GREY_TOLERANCE, rtol=0)
    flat = augment(images, u_of(contrast=0.0), settings(contrast=1.0), 64)
    torch.testing.assert_close(flat, expected.mean().expand_as(flat), atol=GREY_TOLERANCE, rtol=0)


def test_values_are_clipped_to_0_and_1() -> None:
    white, noisy = torch.full((1, 3, 16, 16), 255, dtype=torch.uint8), noise(1, 16, 16)
    assert torch.all(augment(white, u_of(brightness=1.0), settings(brightness=0.5), 16) == 1)
    contrast = augment(noisy, u_of(contrast=1.0, brightness=1.0), settings(contrast=1.0, brightness=0.5), 16)
    assert (contrast.min(), contrast.max()) == (0, 1)


@pytest.mark.parametrize("n_images", [1, 5])
def test_the_result_is_float32_in_0_to_1_with_channels_last_in_memory(n_images: int) -> None:
    images = noise(n_images, 40, 56).contiguous(memory_format=torch.channels_last)
    before = images.clone()
    changed = augment(images, draws(1, 0, n_images), settings(**STRONG), 24)
    assert changed.shape == (n_images, 3, 24, 24)
    assert changed.dtype == torch.float32
    assert changed.is_contiguous(memory_format=torch.channels_last)
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert torch.equal(images, before)


def test_every_image_of_a_batch_gets_its_own_change() -> None:
    changed = augment(noise().expand(32, -1, -1, -1), draws(1, 0, 32), settings(**STRONG), 32)
    distances = torch.pdist(changed.flatten(1), p=float("inf"))
    assert distances.min() > 0.05


@pytest.mark.parametrize("column", ["horizontal_flip", "vertical_flip", "rotation_degrees", "brightness", "contrast"])
def test_every_setting_has_draws_of_its_own(column: str) -> None:
    changed = augment(noise().expand(32, -1, -1, -1), draws(1, 0, 32), settings(**{column: STRONG[column]}), 32)
    assert torch.pdist(changed.flatten(1), p=float("inf")).max() > 0.02


def test_an_image_is_changed_the_same_whatever_its_neighbours() -> None:
    images, u = noise(8), draws(1, 0, 8)
    together = augment(images, u, settings(**STRONG), 32)
    alone = torch.cat([augment(images[k : k + 1], u[k : k + 1], settings(**STRONG), 32) for k in range(8)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_draws_are_uniform_numbers_below_one() -> None:
    u = draws(1, 2, 4000)
    assert u.shape == (4000, N_DRAWS)
    assert u.dtype == torch.float32
    assert u.min() >= 0
    assert u.max() < 1
    assert (u.mean(0) - 0.5).abs().max() < 4 / (12 * 4000) ** 0.5  # four standard errors
    assert (u.T.corrcoef() - torch.eye(N_DRAWS)).abs().max() < 5 / 4000**0.5


def test_draws_and_order_are_functions_of_seed_and_epoch_only() -> None:
    first = draws(7, 3, 20), order(7, 3, 20)
    torch.manual_seed(99)
    torch.rand(5)
    draws(7, 4, 20), order(8, 3, 20)
    again = draws(7, 3, 20), order(7, 3, 20)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


@pytest.mark.parametrize(("seed", "epoch"), [(7, 4), (8, 3), (3, 7), (0, 0), (2**31 - 1, 9_999)])
def test_draws_and_order_differ_between_seeds_and_epochs(seed: int, epoch: int) -> None:
    assert not torch.equal(draws(7, 3, 20), draws(seed, epoch, 20))
    assert not torch.equal(order(7, 3, 20), order(seed, epoch, 20))


@pytest.mark.parametrize("n_images", [1, 2, 1000])
def test_order_is_a_permutation(n_images: int) -> None:
    shuffled = order(1, 0, n_images)
    assert shuffled.dtype == torch.int64
    assert sorted(shuffled.tolist()) == list(range(n_images))


def test_order_is_not_the_order_of_the_images() -> None:
    assert order(1, 0, 100).tolist() != list(range(100))
