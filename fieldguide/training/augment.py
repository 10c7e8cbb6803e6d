"""Random changes to a whole batch at once, on the device: one resampling for all geometry, one pass for all colour.

In the order in which they act on an image: crop, turn with scale, shear and shift, perspective, flips; brightness,
saturation, contrast, hue; blur; erasing. `mix` then joins images of a batch.

The random numbers are a function of (seed, epoch, position in the epoch), or of (seed, epoch, batch) for `mix`, never of a
generator's state, so that an interruption does not change what an image looks like in an epoch.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

from fieldguide.core.params import Augment

FLIP_X, FLIP_Y, ANGLE, AREA, ASPECT, CENTRE_X, CENTRE_Y, BRIGHTNESS, CONTRAST, SATURATION = range(10)  # columns of `draws`
SCALE, SHIFT, SHEAR, PERSPECTIVE, CORNERS = 10, slice(11, 13), slice(13, 15), 15, slice(16, 24)
HUE, BLUR, SIGMA, ERASE, ERASE_AREA, ERASE_ASPECT, ERASE_PLACE = 24, 25, 26, 27, 28, 29, slice(30, 32)
N_DRAWS = 32

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as torchvision's rgb_to_grayscale
BLUR_SIGMA_MIN = 0.1  # pixels, as torchvision's GaussianBlur
ERASE_AREA_MIN, ERASE_ASPECT_MAX = 0.02, 3.3  # Zhong et al. 2017 and torchvision's RandomErasing
GREY = 0.5
MIXUP_BETA, CUTMIX_BETA = 0.8, 1.0  # timm's recipes; Yun et al. 2019
HORIZON = 0.01  # least denominator of a perspective: pixels at and beyond the horizon stay finite


def draws(seed: int, epoch: int, n_images: int) -> torch.Tensor:
    """Uniform numbers in [0, 1) for each position in an epoch's order: float32 `[n_images, N_DRAWS]`."""
    return torch.from_numpy(_stream(seed, epoch, 0).random((n_images, N_DRAWS), dtype=np.float32))


def order(seed: int, epoch: int, n_images: int) -> torch.Tensor:
    """The order in which an epoch goes through the images: int64 `[n_images]`, a permutation."""
    return torch.from_numpy(_stream(seed, epoch, 1).permutation(n_images))


def _stream(seed: int, epoch: int, number: int, batch: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, batch, number]))


def augment(images: torch.Tensor, u: torch.Tensor, settings: Augment, image_px: int) -> torch.Tensor:
    """Changed copies of `images`.

    images: uint8 `[B, 3, H, W]`, RGB; u: their rows of `draws`, float32 `[B, N_DRAWS]` on the same device.
    Returns float32 `[B, 3, image_px, image_px]` in 0..1, channels last.
    """
    pixels = shrink(images.to(torch.float32, memory_format=torch.contiguous_format), settings.crop_area_min, image_px)
    grid = sampling_grid(geometry(u, settings), image_px, has_perspective=settings.perspective > 0)
    pixels = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    pixels = colour(pixels, u, settings)
    if settings.hue:
        pixels = turn_hue(pixels, settings.hue * (2 * u[:, HUE] - 1))
    if settings.blur:
        sigma = BLUR_SIGMA_MIN + (settings.blur_sigma_max - BLUR_SIGMA_MIN) * u[:, SIGMA]
        pixels = blur(pixels, sigma * (u[:, BLUR] < settings.blur), settings.blur_sigma_max)
    if settings.erase:
        pixels = pixels.masked_fill(rectangle(*erased(u, settings), image_px), GREY)
    return pixels.contiguous(memory_format=torch.channels_last)


def shrink(pixels: torch.Tensor, crop_area_min: float, image_px: int) -> torch.Tensor:
    """Means over squares of pixels where a crop of mean area has at least twice as many pixels a side as are sampled.

    Bilinear sampling reads four pixels, so it skips some of a larger picture (aliasing). Below a factor of two that costs
    less than what shrinking takes from the smallest crops (PSNR against an antialiased crop, 12 photographs, 224 px).
    pixels: float32 `[B, 3, H, W]`. What is beyond the last full square at the right and below falls away: less than one
    pixel of the result.
    """
    factor = int(min(pixels.shape[2:]) * math.sqrt((1 + crop_area_min) / 2) / image_px)
    return F.avg_pool2d(pixels, factor) if factor > 1 else pixels


def geometry(u: torch.Tensor, settings: Augment) -> torch.Tensor:
    """All geometry as one map from output to input coordinates (both -1..1, homogeneous): float32 `[B, 3, 3]`."""
    spread = 2 * u - 1
    turn = affine(
        angle=math.radians(settings.rotation_degrees) * spread[:, ANGLE],
        scale=1 + settings.scale * spread[:, SCALE],
        shift=2 * settings.translate * spread[:, SHIFT],
        shear=math.radians(settings.shear_degrees) * spread[:, SHEAR],
    )
    maps = crop(u, settings) @ turn
    if settings.perspective:
        inwards = settings.perspective_distortion * u[:, CORNERS] * (u[:, PERSPECTIVE, None] < settings.perspective)
        maps = maps @ homography(1 - inwards.view(-1, 4, 2))
    flip_x = 1 - 2 * (u[:, FLIP_X] < settings.horizontal_flip).float()
    flip_y = 1 - 2 * (u[:, FLIP_Y] < settings.vertical_flip).float()
    return maps * torch.stack([flip_x, flip_y, torch.ones_like(flip_x)], dim=1)[:, None]


def crop(u: torch.Tensor, settings: Augment) -> torch.Tensor:
    """The map of a random crop that lies inside the picture: float32 `[B, 3, 3]`."""
    area = settings.crop_area_min + (1 - settings.crop_area_min) * u[:, AREA]
    reach = area.log().neg().clamp(max=math.log(settings.crop_aspect_max))  # the aspect at which a side fills the picture
    aspect = torch.exp(reach * (2 * u[:, ASPECT] - 1))
    width = (area * aspect).sqrt().clamp(max=1)
    height = (area / aspect).sqrt().clamp(max=1)
    centre_x = (1 - width) * (2 * u[:, CENTRE_X] - 1)
    centre_y = (1 - height) * (2 * u[:, CENTRE_Y] - 1)
    zero, one = torch.zeros_like(area), torch.ones_like(area)
    return torch.stack([width, zero, centre_x, zero, height, centre_y, zero, zero, one], dim=1).view(-1, 3, 3)


def affine(angle: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, shear: torch.Tensor) -> torch.Tensor:
    """The inverse of torchvision's affine (shear in x, shear in y, scale, turn, shift): float32 `[B, 3, 3]`.

    angle: counter-clockwise, radians `[B]`; scale: factor `[B]`; shift: to the right and down, -1..1 across the picture,
    `[B, 2]`; shear: in x and y, radians `[B, 2]`.
    """
    cos, sin = angle.cos() / scale, angle.sin() / scale
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    (tan_x, tan_y), (shift_x, shift_y) = shear.tan().unbind(1), shift.unbind(1)
    sheared = torch.stack([1 + tan_x * tan_y, tan_x, zero, tan_y, one, zero, zero, zero, one], dim=1).view(-1, 3, 3)
    turned = torch.stack([cos, -sin, sin * shift_y - cos * shift_x, sin, cos, -sin * shift_x - cos * shift_y], dim=1)
    return sheared @ torch.cat([turned, torch.stack([zero, zero, one], dim=1)], dim=1).view(-1, 3, 3)


def homography(reach: torch.Tensor) -> torch.Tensor:
    """The map of a view from aside, in which the picture's corners lie nearer to its centre: float32 `[B, 3, 3]`.

    reach: where the corners come to lie, clockwise from the upper left, as a share of the way from the centre along x and y
    (1 = stays), `[B, 4, 2]`. Closed form of Heckbert 1989, "Fundamentals of Texture Mapping and Image Warping", 2.2.3.
    """
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = (corner.unbind(1) for corner in reach.unbind(1))
    x0, y0, y1, x3 = -x0, -y0, -y1, -x3
    dx1, dx2, sum_x = x1 - x2, x3 - x2, x0 - x1 + x2 - x3
    dy1, dy2, sum_y = y1 - y2, y3 - y2, y0 - y1 + y2 - y3
    area = dx1 * dy2 - dx2 * dy1
    g = (sum_x * dy2 - dx2 * sum_y) / area
    h = (dx1 * sum_y - sum_x * dy1) / area
    right = torch.stack([x1 - x0 + g * x1, y1 - y0 + g * y1, g], dim=1)  # columns of the map from 0..1 to the corners
    down = torch.stack([x3 - x0 + h * x3, y3 - y0 + h * y3, h], dim=1)
    origin = torch.stack([x0, y0, torch.ones_like(x0)], dim=1)
    x, y, w = torch.linalg.cross(down, origin), torch.linalg.cross(origin, right), torch.linalg.cross(right, down)
    return torch.stack([2 * x - w, 2 * y - w, w], dim=1) / (w * origin).sum(1)[:, None, None]  # its inverse, to -1..1


def sampling_grid(maps: torch.Tensor, image_px: int, has_perspective: bool) -> torch.Tensor:
    """Input coordinates of every output pixel, as `F.grid_sample` takes them: float32 `[B, image_px, image_px, 2]`.

    The coordinates are those of `F.affine_grid`, whose product of matrices takes 17 times as long (CPU, 96 px).
    """
    centres = _centres(image_px, maps.device) * 2 - 1
    factor_x, factor_y, offset = maps[:, : 3 if has_perspective else 2, :, None, None].unbind(2)
    points = factor_x * centres + (factor_y * centres[:, None] + offset)  # [B, 2 or 3, H, W]
    if has_perspective:
        points = points[:, :2] / points[:, 2:].clamp(min=HORIZON)
    return points.permute(0, 2, 3, 1)


def _centres(image_px: int, device: torch.device) -> torch.Tensor:
    return (torch.arange(image_px, device=device) + 0.5) / image_px


def colour(pixels: torch.Tensor, u: torch.Tensor, settings: Augment) -> torch.Tensor:
    """Brightness, then saturation, then contrast as one matrix for each image, from 0..255 to 0..1: float32 `[B, 3, H, W]`."""
    brightness = (1 + settings.brightness * (2 * u[:, BRIGHTNESS] - 1)) / 255
    contrast = 1 + settings.contrast * (2 * u[:, CONTRAST] - 1)
    saturation = 1 + settings.saturation * (2 * u[:, SATURATION] - 1)
    luma = torch.stack([torch.full((), weight, device=pixels.device) for weight in LUMA])  # a copied tensor would wait
    eye = torch.eye(3, device=pixels.device)
    mix = saturation[:, None, None] * eye + (1 - saturation)[:, None, None] * luma.expand(3, 3)  # [B, 3, 3]
    matrix = (brightness * contrast)[:, None, None] * mix
    grey = pixels.mean(dim=(2, 3)) @ luma  # [B]; saturation leaves it as it is
    offset = ((1 - contrast) * brightness * grey)[:, None, None].expand(-1, 3, 1)
    changed = torch.baddbmm(offset, matrix, pixels.flatten(2))
    return changed.view_as(pixels).clamp_(0, 1)


def turn_hue(pixels: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Turned hue, with saturation and value of HSV kept; pixels: float32 `[B, 3, H, W]` in 0..1, turn: circles `[B]`."""
    red, green, blue = pixels.unbind(1)
    high, low = pixels.amax(1), pixels.amin(1)
    chroma = high - low
    unit = chroma.clamp(min=1e-9)  # greys have no hue: any will do
    past_red = torch.where(high == green, (blue - red) / unit + 2, (red - green) / unit + 4)
    hue = torch.where(high == red, (green - blue) / unit, past_red)  # sixths of the circle
    hue = hue.add_(6 * turn[:, None, None]).remainder_(6)
    shares = torch.stack([(hue - 3).abs_() - 1, 2 - (hue - 2).abs_(), 2 - (hue - 4).abs_()], dim=1).clamp_(0, 1)
    return torch.addcmul(low[:, None], chroma[:, None], shares)


def blur(pixels: torch.Tensor, sigma: torch.Tensor, sigma_max: float) -> torch.Tensor:
    """Gaussian blur, each image by its own sigma, with the picture mirrored at its edges.

    pixels: float32 `[B, 3, H, W]` in 0..1; sigma: pixels `[B]`, 0 = unchanged. Kernels reach to three times `sigma_max`.
    """
    n_images, _, height, width = pixels.shape
    radius = min(math.ceil(3 * sigma_max), height - 1, width - 1)
    distance = torch.arange(-radius, radius + 1, device=pixels.device)
    kernel = torch.exp(-0.5 * (distance / sigma.clamp(min=0.01)[:, None]) ** 2)  # 0.01: the neighbours' share is 0
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, dim=0)[:, None, None]  # [3 B, 1, 1, K]
    planes = F.pad(pixels, (radius, radius, radius, radius), mode="reflect").flatten(0, 1)[None]
    planes = F.conv2d(planes, kernel, groups=3 * n_images)
    planes = F.conv2d(planes, kernel.transpose(2, 3), groups=3 * n_images)
    return planes.view_as(pixels).clamp_(0, 1)


def erased(u: torch.Tensor, settings: Augment) -> tuple[torch.Tensor, torch.Tensor]:
    """Centre and size (x, y) of the rectangle to erase, as shares of the side: two `[B, 2]`; size 0 = none."""
    area = ERASE_AREA_MIN + (settings.erase_area_max - ERASE_AREA_MIN) * u[:, ERASE_AREA]
    reach = area.log().neg().clamp(max=math.log(ERASE_ASPECT_MAX))  # the aspect at which a side fills the picture
    aspect = torch.exp(reach * (2 * u[:, ERASE_ASPECT] - 1))
    size = torch.stack([area * aspect, area / aspect], dim=1).sqrt()
    centre = size / 2 + (1 - size) * u[:, ERASE_PLACE]
    return centre, size * (u[:, ERASE, None] < settings.erase)


def rectangle(centre: torch.Tensor, size: torch.Tensor, image_px: int) -> torch.Tensor:
    """The pixels whose centres lie inside: bool `[B, 1, image_px, image_px]`; centre, size: shares of the side `[B, 2]`."""
    inside = (_centres(image_px, centre.device) - centre[..., None]).abs() < size[..., None] / 2  # [B, 2, image_px]
    return (inside[:, 0, None, :] & inside[:, 1, :, None])[:, None]


def mix(
    pixels: torch.Tensor, targets: torch.Tensor, settings: Augment, seed: int, epoch: int, batch: int
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Mixes, by chance, each image with its partner in the reversed batch: (pixels, partners' targets, own share).

    Either blended (mixup, Zhang et al. 2018) or with a rectangle of the partner's (cutmix, Yun et al. 2019). The loss is
    share * loss(targets) + (1 - share) * loss(partners' targets); without a mix the same tensors and 1.0 come back.
    pixels: float32 `[B, 3, H, W]`; targets: `[B, ...]`. The caller applies `settings.mix_until`.
    """
    generator = _stream(seed, epoch, 2, batch)
    choice = generator.random() * max(1.0, settings.mixup + settings.cutmix)
    if choice < settings.mixup:
        share = float(generator.beta(MIXUP_BETA, MIXUP_BETA))
        return torch.lerp(pixels.flip(0), pixels, share), targets.flip(0), share
    if choice < settings.mixup + settings.cutmix:
        height, width = pixels.shape[2:]
        side = math.sqrt(1 - generator.beta(CUTMIX_BETA, CUTMIX_BETA))
        rows, columns = (_span(generator.random(), side, length) for length in (height, width))
        mixed = pixels.clone()
        mixed[:, :, rows, columns] = pixels.flip(0)[:, :, rows, columns]
        share = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
        return mixed, targets.flip(0), share
    return pixels, targets, 1.0


def _span(centre: float, side: float, length: int) -> slice:
    """The pixels of `length` that lie within `side / 2` of `centre`, both shares of the length."""
    return slice(max(0, round((centre - side / 2) * length)), min(length, round((centre + side / 2) * length)))
