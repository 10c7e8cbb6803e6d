"""Random changes to a whole batch at once, on the device: one resampling for all geometry, one pass for all colour.

The random numbers are a function of (seed, epoch, image), never of a generator's state, so that neither the order of
the batches nor an interruption changes what an image looks like in an epoch.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

from fieldguide.params import Augment

N_DRAWS = 10
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as torchvision's rgb_to_grayscale


def draws(seed: int, epoch: int, n_images: int) -> torch.Tensor:
    """Uniform numbers in [0, 1) for every image of an epoch: float32 `[n_images, N_DRAWS]`."""
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    return torch.from_numpy(generator.random((n_images, N_DRAWS), dtype=np.float32))


def order(seed: int, epoch: int, n_images: int) -> torch.Tensor:
    """The order in which an epoch goes through the images: int64 `[n_images]`, a permutation."""
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, 1]))  # a stream beside `draws`
    return torch.from_numpy(generator.permutation(n_images))


def augment(images: torch.Tensor, u: torch.Tensor, settings: Augment, image_px: int) -> torch.Tensor:
    """Changed copies of `images`.

    images: uint8 `[B, 3, H, W]`, RGB; u: their rows of `draws`, float32 `[B, N_DRAWS]` on the same device.
    Returns float32 `[B, 3, image_px, image_px]` in 0..1, channels last.
    """
    theta = affine(u, settings)
    grid = F.affine_grid(theta, [len(images), 3, image_px, image_px], align_corners=False)
    pixels = images.float().div_(255)
    moved = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return colour(moved, u, settings).contiguous(memory_format=torch.channels_last)


def affine(u: torch.Tensor, settings: Augment) -> torch.Tensor:
    """Flip, turn and crop as one map from output to input coordinates (both -1..1): float32 `[B, 2, 3]`."""
    flip_x = 1 - 2 * (u[:, 0] < settings.horizontal_flip).float()
    flip_y = 1 - 2 * (u[:, 1] < settings.vertical_flip).float()
    angle = math.radians(settings.rotation_degrees) * (2 * u[:, 2] - 1)
    area = settings.crop_area_min + (1 - settings.crop_area_min) * u[:, 3]
    reach = area.log().neg().clamp(max=math.log(settings.crop_aspect_max))  # the aspect at which a side fills the picture
    aspect = torch.exp(reach * (2 * u[:, 4] - 1))
    width = (area * aspect).sqrt().clamp(max=1)
    height = (area / aspect).sqrt().clamp(max=1)
    centre_x = (1 - width) * (2 * u[:, 5] - 1)
    centre_y = (1 - height) * (2 * u[:, 6] - 1)
    cos, sin = angle.cos(), angle.sin()
    row_x = torch.stack([width * cos * flip_x, -width * sin * flip_y, centre_x], dim=1)
    row_y = torch.stack([height * sin * flip_x, height * cos * flip_y, centre_y], dim=1)
    return torch.stack([row_x, row_y], dim=1)


def colour(pixels: torch.Tensor, u: torch.Tensor, settings: Augment) -> torch.Tensor:
    """Brightness, then saturation, then contrast as one matrix for each image; float32 `[B, 3, H, W]` in 0..1."""
    brightness = 1 + settings.brightness * (2 * u[:, 7] - 1)
    contrast = 1 + settings.contrast * (2 * u[:, 8] - 1)
    saturation = 1 + settings.saturation * (2 * u[:, 9] - 1)
    luma = pixels.new_tensor(LUMA)
    eye = torch.eye(3, device=pixels.device)
    mix = saturation[:, None, None] * eye + (1 - saturation)[:, None, None] * luma.expand(3, 3)  # [B, 3, 3]
    matrix = (brightness * contrast)[:, None, None] * mix
    grey = pixels.mean(dim=(2, 3)) @ luma  # [B]; saturation leaves it as it is
    offset = ((1 - contrast) * brightness * grey)[:, None, None].expand(-1, 3, 1)
    changed = torch.baddbmm(offset, matrix, pixels.flatten(2))
    return changed.view_as(pixels).clamp_(0, 1)
