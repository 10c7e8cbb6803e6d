"""The training stage on a tiny sample: weights that it saved begin another training, and what ends one early."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from fieldguide.core.errors import UserError
from fieldguide.core.paths import BATCH_PNG, CHECKPOINT, HISTORY_CSV, stage_metrics
from fieldguide.network.models import build
from fieldguide.training.setup import compile_each_size
from stages import download, evaluate, split_check, train
from support import ROOT
from support.settings import TEXT

PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),  # in MLflow
    pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker"),  # on a machine of one core
]
SIZES = {
    "species: 12": "species: 3",
    "train_images: 40": "train_images: 12",
    "valid_images: 20": "valid_images: 4",
    "test_images: 20": "test_images: 2",
    "image_px: 128": "image_px: 40",
    "decode_px: 144": "decode_px: 40",
    "batch_size: 64": "batch_size: 8",
    "near_duplicates: true": "near_duplicates: false",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny sample, checked, and its params.yaml."""
    folder = tmp_path_factory.mktemp("data")
    params = TEXT
    for old, new in SIZES.items():
        assert f" {old} " in params, old
        params = params.replace(f" {old} ", f" {new} ")
    (folder / "params.yaml").write_text(params)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DVC_ROOT", str(folder))
        download.main()
        split_check.main()
    return folder


@pytest.fixture
def trained(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pd.DataFrame]:
    """`trained(epochs="2", lr="0.1", ...)`: the history of a run with these values (keys are unique in the file)."""
    shutil.copytree(data, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))

    def run(**changes: str) -> pd.DataFrame:
        params = (data / "params.yaml").read_text()
        usual = {"image_px": "32", "optimizer": "sgd", "weight_decay": "0.0005"}  # a step of muon takes several times as long
        section = params[params.index("\nmodel:") : params.index("\nevaluate:")]
        for key, value in (usual | changes).items():
            section, n_changed = re.subn(rf"(?m)^(  {key}: )\S+", rf"\g<1>{value}", section)
            assert n_changed == 1, key
        Path("params.yaml").write_text(params[: params.index("\nmodel:")] + section + params[params.index("\nevaluate:") :])
        train.main()
        return pd.read_csv(HISTORY_CSV)

    return run


@pytest.mark.slow
def test_weights_that_the_stage_saved_begin_another_training(trained: Callable[..., pd.DataFrame], tmp_path: Path) -> None:
    trained(epochs="3", image_px="48", size_start="0.3")
    shutil.copy(CHECKPOINT, tmp_path / "first.safetensors")
    first = load_file(tmp_path / "first.safetensors")
    settings = {"weights": "first.safetensors", "head_lr": "1e-30", "lr": "1e-30", "weight_decay": "0.0"}
    trained(epochs="2", head_epochs="1", **settings)
    second = load_file(CHECKPOINT)
    assert first.keys() == second.keys()
    weights = [name for name in first if name.startswith("features.") and "running" not in name and "num_" not in name]
    assert all(first[name].equal(second[name]) for name in weights)
    assert not first["head.weight"].equal(second["head.weight"])


@pytest.mark.slow
def test_the_history_tells_the_size_and_rate_of_each_epoch(trained: Callable[..., pd.DataFrame]) -> None:
    history = trained(epochs="3", image_px="48", size_start="0.3", size_growth="1.0", lr="0.01", warmup="0.0")
    assert history["image_px"].tolist() == [16, 32, 48]
    assert history["lr"].tolist() == pytest.approx([0.01, 0.0075, 0.0025])
    assert BATCH_PNG.stat().st_size > 10_000


@pytest.mark.slow
def test_outputs_of_train_and_evaluate_are_the_same_bytes_with_and_without_a_tracking_store(
    trained: Callable[..., pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = []
    for uri in (None, "http://127.0.0.1:9"):  # the project's own store; a server that refuses
        if uri:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        trained(epochs="1")
        evaluate.main()
        outs = [*PIPELINE["train"]["outs"], *PIPELINE["evaluate"]["outs"]]
        for stage in ("train", "evaluate"):
            for kind in ("metrics", "plots"):
                outs += [next(iter(out)) if isinstance(out, dict) else out for out in PIPELINE[stage][kind]]
        contents.append({out: Path(out).read_bytes() for out in outs})
    assert len(contents[0]) > 10
    assert contents[0] == contents[1]


@pytest.mark.slow
def test_patience_ends_a_training_that_no_longer_improves(trained: Callable[..., pd.DataFrame]) -> None:
    history = trained(epochs="9", patience="2", lr="1e-30", ema="0.0")
    metrics = json.loads(stage_metrics("train").read_text())
    assert metrics["epochs"] == len(history) == metrics["best_epoch"] + 2 < 9


@pytest.mark.slow
def test_all_at_once_gives_the_same_bytes_resident_and_streaming(trained: Callable[..., pd.DataFrame]) -> None:
    changes = {"epochs": "2", "image_px": "48", "ema": "0.9", "accumulate": "2", "clip_norm": "1.0"}
    changes |= {"mixup": "0.5", "cutmix": "0.5", "perspective": "0.5", "hue": "0.1", "blur": "0.5", "erase": "0.5"}
    changes |= {"class_weights": "balanced", "sampling": "balanced", "name": "timm/test_efficientnet"}
    contents = []
    for loader in ("resident", "streaming"):
        trained(loader=loader, **changes)
        contents.append(CHECKPOINT.read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"name": "resnet5O"}, "model.name is resnet5O, which is not a known network; did you mean resnet50"),
        ({"weights": "gone.pth"}, "model.weights is gone.pth: .*gone.pth does not exist"),
        ({"weights": "imagenet"}, "model.weights is imagenet, but fieldnet has no published weights"),
        ({"head_epochs": "1"}, "train.head_epochs is 1, but model.weights is none"),
        (
            {"name": "timm/vit_tiny_patch16_224", "image_px": "32", "size_start": "0.5", "size_end": "1.0"},
            "size_start 0.5 and size_end 1.0 give 16 px, .*; set both to 1",
        ),
        (
            {"name": "cnn", "lr": "10", "weight_decay": "0", "optimizer": "sgd", "warmup": "0.0", "epochs": "9"},
            r"epoch \d, batch \d: loss is",
        ),
    ],
)
def test_what_cannot_be_trained_is_one_clear_line(
    trained: Callable[..., pd.DataFrame], changes: dict[str, str], text: str
) -> None:
    with pytest.raises(UserError, match=text) as caught:
        trained(**changes)
    assert "\n" not in str(caught.value)
    assert not os.path.exists("metrics/train.json")


@pytest.mark.slow
def test_a_compiled_network_has_a_graph_for_each_shape_and_one_for_none_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as a training can have: more than the compiler makes by itself before it gives up."""
    shapes: list[torch.Size] = []

    def seen(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        shapes.append(next(each.shape for each in inputs if each.ndim == 4 and each.shape[0] > 1 and each.shape[1] == 3))
        return graph.forward

    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 8)
    compiled = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: compiled(self, backend=seen, **options))
    model = build("cnn", 3)
    sides, batches = (32, 48, 64, 80, 96), (5, 2)
    compile_each_size(model, len(sides))
    for _ in range(2):
        for px in sides:
            for n in batches:
                model(torch.rand(n, 3, px, px))
    assert [tuple(shape) for shape in shapes] == [(n, 3, px, px) for px in sides for n in batches]
