"""The libraries' own inference answers as ours does, so that its speed may be compared."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fieldguide.benchmark.reference import peer
from fieldguide.core.images import decode
from fieldguide.network.calibration import Calibration
from fieldguide.network.models import build
from fieldguide.onnx.export import torch_probabilities


@pytest.mark.parametrize(("name", "library"), [("resnet18", "torchvision"), ("timm/test_resnet", "timm")])
def test_a_network_of_a_library_is_answered_for_by_it(name: str, library: str, make_jpeg: Callable[..., bytes]) -> None:
    torch.manual_seed(0)
    model, encoded = build(name, 5, 96).eval(), make_jpeg(3, 96, 96, quality=95)
    [(found, answer)] = peer(name, model, 96).items()
    assert found == f"{library}_own_inference"
    ours = torch_probabilities(model, Calibration("none", 1.0, 0.5, "probability", 0.1, {}))(np.stack([decode(encoded, 96)]))[0]
    theirs = answer(encoded)
    assert theirs.sum() == pytest.approx(1, abs=1e-5)
    assert np.abs(theirs - ours).max() < 0.02  # timm crops a margin


@pytest.mark.parametrize("name", ["fieldnet", "cnn"])
def test_our_own_networks_have_no_peer(name: str) -> None:
    assert peer(name, build(name, 5), 32) == {}
