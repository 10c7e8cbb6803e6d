"""Synthetic out-of-distribution images."""

import numpy as np
import torch
import torch.nn.functional as F


def ood_images(image_px: int, n_images: int) -> dict[str, torch.Tensor]:
    """Three kinds by name, each uint8 `[n_images, 3, image_px, image_px]`; deterministic."""
    generator = np.random.default_rng(0)
    shape = (n_images, 3, image_px, image_px)
    coarse = torch.from_numpy(generator.random((n_images, 3, 6, 6)))
    smooth = F.interpolate(coarse, (image_px, image_px), mode="bicubic").clamp(0, 1) * 255
    frequency = np.hypot(np.fft.fftfreq(image_px)[:, None], np.fft.fftfreq(image_px)[None])
    spectrum = np.fft.fft2(generator.normal(size=shape)) / np.maximum(frequency, 1 / image_px)  # as in photographs: 1/f
    pink = np.fft.ifft2(spectrum).real
    pink = 128 + 50 * (pink - pink.mean((2, 3), keepdims=True)) / pink.std((2, 3), keepdims=True)
    return {
        "white_noise": torch.from_numpy(generator.integers(0, 256, shape, dtype=np.uint8)),
        "smooth_colours": smooth.to(torch.uint8),
        "one_over_f_noise": torch.from_numpy(pink.clip(0, 255).astype(np.uint8)),
    }
