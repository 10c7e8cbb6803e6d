"""The key of a training's saved state: all that its bytes depend on, and nothing else."""

import shutil
from pathlib import Path

import pytest

from fieldguide.core.params import read_params
from fieldguide.training.distributed import World
from fieldguide.training.setup import state_key_inputs
from support import ROOT


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("fieldguide", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "params.yaml", folder)
    (folder / "data").mkdir()
    (folder / "data" / "manifest.csv").write_text("a manifest")
    return folder


@pytest.fixture(autouse=True)
def there(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout)


def key(checkout: Path) -> dict:
    return state_key_inputs(read_params(), checkout / "stages" / "train.py", World())


def test_the_code_is_what_the_stage_imports_and_no_report_command_or_page(checkout: Path) -> None:
    code = key(checkout)["code"]
    assert {
        "stages/train.py",
        "fieldguide/training/fit.py",
        "fieldguide/core/images.py",
        "fieldguide/network/models.py",
    } <= set(code)
    assert {name.split("/")[1] for name in code if name.startswith("fieldguide/")} == {
        "__init__.py",
        "core",
        "network",
        "tracking",
        "training",
    }


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("fieldguide/training/loop.py", True),
        ("fieldguide/network/loader.py", True),
        ("fieldguide/core/files.py", True),
        ("fieldguide/report/page.py", False),
        ("fieldguide/report/templates/report.css", False),
        ("fieldguide/commands/predict.py", False),
        ("stages/evaluate.py", False),
    ],
)
def test_only_a_change_of_what_training_imports_makes_another_key(checkout: Path, file: str, changes: bool) -> None:
    before, text = key(checkout), (checkout / file).read_text()
    (checkout / file).write_text(text + "\n# changed\n" if file.endswith(".py") else text + "\n/* changed */\n")
    try:
        assert (key(checkout) != before) == changes
    finally:
        (checkout / file).write_text(text)
