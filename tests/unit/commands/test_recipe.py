"""Tests of `fieldguide recipe`."""

import shutil
from pathlib import Path

import pytest
import yaml

from fieldguide.__main__ import main
from fieldguide.commands.recipe import RESET
from fieldguide.core.errors import UserError
from fieldguide.core.params import read_params
from fieldguide.network.models import build, frozen_blocks
from fieldguide.training.optim import lr_at
from support import ROOT

NAMES = sorted(file.stem for file in (ROOT / "recipes").glob("*.yaml"))
TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the project's params.yaml and recipes, which is the current one."""
    folder = tmp_path / "a project"
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    (folder / "params.yaml").write_text(TEXT, encoding="utf-8")
    monkeypatch.chdir(folder)
    return folder


def text() -> str:
    return Path("params.yaml").read_text(encoding="utf-8")


def refusal(*words: str) -> str:
    """The line with which a command is refused; params.yaml stays as it is."""
    before = Path("params.yaml").read_bytes() if Path("params.yaml").exists() else b""
    with pytest.raises(UserError) as caught:
        main(["recipe", *words])
    assert (Path("params.yaml").read_bytes() if before else b"") == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_recipes_that_the_readme_needs_are_there() -> None:
    assert {"transfer", "quick", "scratch", "butterflies-original", "flowers-original", "large"} <= set(NAMES)


def test_without_arguments_every_recipe_is_listed_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    main(["recipe"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == NAMES
    assert all(len(line.split(maxsplit=1)[1]) > 20 for line in lines)


def test_scratch_has_every_key_that_a_recipe_resets() -> None:
    base = yaml.safe_load((ROOT / "recipes" / "scratch.yaml").read_text())
    assert {section: list(keys) for section, keys in base.items()} == {
        section: list(yaml.safe_load(TEXT)[section]) for section in RESET
    }


def test_the_repositorys_params_are_those_of_transfer(capsys: pytest.CaptureFixture[str]) -> None:
    main(["recipe", "transfer"])
    assert capsys.readouterr().out == "params.yaml has these values already\n"


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_valid_keeps_comments_and_order_and_is_undone_by_transfer(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["recipe", name])
    read_params()

    def without_values(content: str) -> list[tuple[str, str]]:
        return [(line.partition(":")[0], line.partition("# ")[2]) for line in content.splitlines()]

    assert without_values(text()) == without_values(TEXT)
    written = yaml.safe_load(text())
    for section, values in yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text()).items():
        assert values.items() <= written[section].items()
    main(["recipe", name])
    assert capsys.readouterr().out.endswith("params.yaml has these values already\n")
    main(["recipe", "transfer", "data.dataset=sample", "data.resolution=192"])
    assert text() == TEXT


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "timm/convnext_atto", "timm/vit_tiny_patch16_224"])
def test_transfer_freezes_some_blocks_of_any_network(name: str) -> None:
    main(["recipe", "transfer", f"model.name={name}"])
    params = read_params()
    model = build(name, 3, 224)
    frozen = [parameter for block in frozen_blocks(model, params.train.freeze) for parameter in block.parameters()]
    assert 0 < len(frozen) < len(list(model.features.parameters()))


@pytest.mark.parametrize("n_epochs", [1, 3, 10])
def test_a_short_trial_of_transfer_is_allowed_and_trains_the_head(n_epochs: int) -> None:
    main(["recipe", "transfer", f"train.epochs={n_epochs}"])
    train = read_params().train
    assert [lr_at(step, 5, train) for step in range(5 * n_epochs)] == [train.head_lr] * 5 * n_epochs


def test_each_change_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["recipe", "transfer", "train.epochs=30", "data.path=photos.zip"])
    assert capsys.readouterr().out == ('data.path: "" -> photos.zip\ntrain.epochs: 18 -> 30\n2 values changed in params.yaml\n')


def test_a_recipe_resets_training_and_keeps_the_data() -> None:
    main(["recipe", "data.path=mine", "data.dataset=folder", "split_check.seed=7", "runtime.workers=3", "train.epochs=50"])
    main(["recipe", "quick"])
    params = read_params()
    assert (params.data.path, params.data.dataset, params.split_check.seed, params.runtime.workers) == ("mine", "folder", 7, 3)
    main(["recipe", "scratch"])
    assert read_params().train.epochs == 44


@pytest.mark.parametrize(
    "path",
    [
        "~/Fotos (2)",
        "C:\\photos\\new",
        "a, b",
        "it's",
        'say "moth"',
        "Übung/蝶",
        "# one",
        "a=b=c",
        "{x: 1}",
        "[1, 2]",
        "- dash",
        "yes",
        "1e3",
        "null",
        " ",
        "&anchor",
        "key: value",
        "tab\there",
        "not UTF-8 \udcff",
    ],
)
def test_a_text_is_taken_as_it_stands(path: str) -> None:
    main(["recipe", "data.dataset=folder", f"data.path={path}"])
    params = read_params()
    assert (params.data.path, params.data.dataset) == (path, "folder")
    main(["recipe", "data.path=", "data.dataset=sample"])
    assert text() == TEXT


def test_numbers_lists_and_choices_are_read_as_in_yaml() -> None:
    main(["recipe", "train.lr=1e-3", "benchmark.batch_sizes=[1, 4]", "train.compile=true", "runtime.workers=2"])
    params = read_params()
    assert (params.train.lr, params.benchmark.batch_sizes, params.train.compile) == (0.001, (1, 4), True)
    assert params.runtime.workers == 2
    main(["recipe", "runtime.workers=auto", "train.freeze=blocks.2", "model.weights=imagenet"])
    assert read_params().runtime.workers == "auto"
    assert read_params().train.freeze == "blocks.2"


def test_a_recipe_may_be_given_by_its_path() -> None:
    Path("own recipe.yaml").write_text("# Mine\ntrain:\n  epochs: 7\n")
    main(["recipe", "own recipe.yaml"])
    assert read_params().train.epochs == 7


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["transfr"], "transfr is not a recipe in recipes/; did you mean transfer?"),
        ([""], "'' is not a recipe in recipes/; there are"),
        (["gone.yaml"], "gone.yaml is not a recipe in recipes/"),
        (["scratch", "quick"], "quick: expected KEY=VALUE"),
        (["train.lrr=1"], "train.lrr=1: train.lrr is not a key of params.yaml; did you mean train.lr"),
        (["train=1"], "train=1: train is not a key of params.yaml"),
        (["train.lr=-1"], "params.yaml: train.lr must be in (0, 10], got -1"),
        (["train.lr=fast"], "params.yaml: train.lr must be in (0, 10], got 'fast'"),
        (["train.lr=[1"], "params.yaml: train.lr must be in (0, 10], got '[1'"),
        (["model.weights=none"], "params.yaml: train.head_epochs is 10, but model.weights is none"),
    ],
)
def test_wrong_words_are_refused_and_nothing_is_written(words: list[str], said: str) -> None:
    assert refusal(*words).startswith(said)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("train:\n  lrr: 1\n", "own.yaml: train.lrr is not a key of params.yaml; did you mean"),
        ("training:\n  lr: 1\n", "own.yaml: training.lr is not a key of params.yaml"),
        ("train:\n  lr: 11\n", "own.yaml: train.lr must be in (0, 10], got 11"),
        ("train:\n  lr: 1\n  lr: 2\n", "own.yaml, line 3: duplicate key 'lr'"),
        ("train: [1\n", "own.yaml, line 2: "),
        ("- a\n", "a recipe must be a section with keys, got ['a']"),
        ("train:\n  head_epochs: 3\n", "own.yaml: train.head_epochs is 3, but model.weights is none"),
    ],
)
def test_a_faulty_recipe_is_named_and_nothing_is_written(content: str, said: str) -> None:
    Path("own.yaml").write_text(content)
    assert refusal("own.yaml").startswith(said)


@pytest.mark.parametrize("words", [[], ["quick"], ["train.lr=1"]])
def test_outside_of_a_project_it_says_so(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert "params.yaml" in refusal(*words) and "folder" in refusal(*words)


def test_params_as_dvc_writes_them_keep_their_comments() -> None:
    from ruamel.yaml import YAML

    document = YAML().load(text())
    document["train"]["epochs"] = 30
    with Path("params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(document, file)
    main(["recipe", "transfer"])
    assert text().count("# ") == TEXT.count("# ")
    assert read_params().train.epochs == 18
