"""Drawn strangers are what their names say, and the same at each call."""

import numpy as np
import torch

from fieldguide.evaluation.ood import ood_images

PX = 64


def test_each_kind_is_a_batch_of_bytes_and_the_same_at_each_call() -> None:
    first, second = ood_images(PX, 5), ood_images(PX, 5)
    assert len(first) == 3
    for kind, images in first.items():
        assert images.shape == (5, 3, PX, PX) and images.dtype == torch.uint8
        assert torch.equal(images, second[kind])
        assert len({image.numpy().tobytes() for image in images}) == 5


def test_their_spectra_differ_as_their_names_say() -> None:
    """How amplitude falls with frequency: not at all for white noise, as 1/f in photographs, at once for smooth colours."""
    frequency = np.hypot(np.fft.fftfreq(PX)[:, None], np.fft.fftfreq(PX)[None])
    low, high = (frequency > 2 / PX) & (frequency < 5 / PX), (frequency > 16 / PX) & (frequency < 25 / PX)
    ratios = {}
    for kind, images in ood_images(PX, 20).items():
        amplitude = np.abs(np.fft.fft2(images.numpy() / 255)).mean((0, 1))
        ratios[kind] = amplitude[low].mean() / amplitude[high].mean()
    assert 0.9 < ratios["white_noise"] < 1.1
    assert 4 < ratios["one_over_f_noise"] < 9  # 20 over 3.5
    assert ratios["smooth_colours"] > 12
