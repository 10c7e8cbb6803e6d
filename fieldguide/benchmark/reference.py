"""Inference with the library that the network comes from, as a reference."""

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import nn

from fieldguide.network.models import NETWORKS, TIMM, Classifier

Answer = Callable[[bytes], np.ndarray]  # one encoded image to probabilities [K]


def peer(name: str, model: Classifier, image_px: int) -> dict[str, Answer]:
    """Inference in eager torch by its name in metrics/benchmark.json; empty for fieldguide's networks.

    Decodes, resizes and normalises as the library does, at the network's input size, without calibration.
    """
    if name in NETWORKS:
        return {}
    device = next(model.parameters()).device
    network = nn.Sequential(model.features, model.head).eval()
    if name.startswith(TIMM):
        from timm.data import create_transform, resolve_data_config

        settings = resolve_data_config({"input_size": (3, image_px, image_px)}, model=model.features)
        library, transform = "timm", create_transform(**settings)
    else:
        from torchvision.models import get_model_weights

        preset = get_model_weights(name).DEFAULT.transforms
        library, transform = "torchvision", preset(crop_size=image_px, resize_size=image_px)

    @torch.inference_mode()
    def answer(encoded: bytes) -> np.ndarray:
        with Image.open(io.BytesIO(encoded)) as image:  # as in the examples of both libraries
            pixels = transform(image.convert("RGB"))
        return network(pixels[None].to(device)).softmax(dim=1)[0].cpu().numpy()

    return {f"{library}_own_inference": answer}
