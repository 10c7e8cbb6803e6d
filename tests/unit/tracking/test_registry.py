"""From run to use, with the real MLflow: who becomes champion, and a registered model as a file."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fieldguide.__main__ import main
from fieldguide.core.errors import UserError
from fieldguide.core.files import file_hash
from fieldguide.core.manifest import as_given, write_manifest
from fieldguide.core.paths import MANIFEST, ONNX, PREDICTIONS_CSV, RAW
from fieldguide.tracking import run as tracking
from fieldguide.tracking.registry import Registry, model_file, open_registry
from fieldguide.tracking.store import CHECKPOINT_TAG, DEFAULTS, Store
from fieldguide.web.model import Watched
from support import ROOT
from support.app_server import png
from support.mean_colour import METADATA, NAMES, PX, mean_colour_network, save
from support.settings import PARAMS

CHAMPION = "models:/fieldguide@champion"
N = 200  # test images

pytestmark = [
    pytest.mark.filterwarnings(  # MLflow's own tables use a loader that SQLAlchemy 2.1 deprecates
        "ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"
    ),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),  # of MLflow's own code, on import
]


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a store in which nothing is; making it takes seconds."""
    root = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(root))
        for name, value in DEFAULTS.items():
            patch.setenv(name, value)
        Store()
    return root


@pytest.fixture
def root(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder that is the root of an empty store."""
    for name, value in DEFAULTS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_store / "mlflow.db", tmp_path)
    return tmp_path


@pytest.fixture
def registry(root: Path) -> Iterator[Registry]:
    with open_registry() as found:
        yield found


def predictions(wrong: Sequence[int], salt: str = "", splits: Sequence[str] = ("valid", "test")) -> pd.DataFrame:
    """What evaluate writes of `N` images a split; those of the last split numbered in `wrong` get another answer."""
    parts = []
    for split in splits:
        truth = np.array([NAMES[number % 4] for number in range(N)])
        answer = truth.copy()
        if split == splits[-1]:
            answer[list(wrong)] = [NAMES[(number + 1) % 4] for number in wrong]
        identity = [f"{split}/{number}.jpg" for number in range(N)]
        digests = [hashlib.sha256(f"{salt}{name}".encode()).hexdigest() for name in identity]
        parts.append(pd.DataFrame({"split": split, "id": identity, "sha256": digests, "truth": truth, "answer_1": answer}))
    return pd.concat(parts)


def make_run(
    name: str,
    wrong: Sequence[int] = (),
    valid: float = 0.9,
    data: str = "data",
    table: pd.DataFrame | None = None,
    reported: dict | None = None,
    names: Sequence[str] = NAMES,
) -> None:
    """A run as the pipeline leaves it: trained, evaluated, exported."""
    table = predictions(wrong) if table is None else table
    split = "test" if "test" in set(table["split"]) else "valid"
    of_split = table[table["split"] == split]
    right = of_split["answer_1"] == of_split["truth"]
    folder = Path("made", name)
    folder.mkdir(parents=True)
    checkpoint = folder / "model.safetensors"
    checkpoint.write_text(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_EXP_NAME", name)
        with tracking.training_run(PARAMS) as run:
            run.tag(CHECKPOINT_TAG, file_hash(checkpoint, "md5"))
            run.tag("fieldguide.data_md5", data)
            run.tag("fieldguide.lock_sha256", "lock")
    table.to_csv(folder / PREDICTIONS_CSV.name, index=False)
    measured = {"split": split, "accuracy": float(right.mean()), "n": len(right)}
    with tracking.stage_run("evaluate", PARAMS.evaluate, checkpoint) as run:
        metrics = {"valid": {"accuracy": valid, "loss": 1 - valid}, split: {"accuracy": measured["accuracy"]}}
        run.log(metrics if split == "test" else {"valid": metrics["valid"] | {"loss": 0.1}}, folder / PREDICTIONS_CSV.name)
    onnx = save(
        folder, mean_colour_network(METADATA | {"evaluate": reported or measured, "name": name, "class_names": list(names)})
    )
    with tracking.stage_run("export_onnx", PARAMS.export, checkpoint) as run:
        run.log_model(onnx, np.zeros((1, PX, PX, 3), np.uint8))


def champion(*arguments: str) -> int:
    """The exit status of the command."""
    try:
        main(["champion", *arguments])
    except SystemExit as ended:
        assert isinstance(ended.code, int)
        return ended.code
    return 0


def tags_of_champion(registry: Registry) -> dict[str, str]:
    return registry.client.get_model_version_by_alias("fieldguide", "champion").tags


def onnx_of(name: str) -> bytes:
    return Path("made", name, "model.onnx").read_bytes()


def test_the_first_run_is_champion_once_with_its_numbers(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    make_run("first", wrong=range(20))
    assert champion() == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == f"promoted: the first champion; {CHAMPION} is version 1"
    assert "test accuracy 90.00%, 95 % interval 85.1% to 93.4% (n=200)" in printed.out
    assert champion("first") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "nothing to do: it is the champion, version 1 of fieldguide"
    (version,) = registry.client.search_model_versions("name = 'fieldguide'")
    assert int(registry.champion().version) == 1
    assert version.run_id == registry.exported_runs()[0].run.info.run_id
    assert float(version.tags["evaluate.test.accuracy"]) == 0.9
    assert float(version.tags["evaluate.test.accuracy_low"]) == pytest.approx(0.8506, abs=1e-4)  # Wilson's, by hand
    assert float(version.tags["evaluate.test.accuracy_high"]) == pytest.approx(0.9343, abs=1e-4)
    assert version.tags["evaluate.test.n"] == "200"
    assert (version.tags["dvc.experiment"], version.tags["fieldguide.lock_sha256"]) == ("first", "lock")
    assert (version.tags["fieldguide.data_md5"], version.tags["fieldguide.promoted"]) == ("data", "the first champion")
    assert model_file(Path(CHAMPION)).read_bytes() == onnx_of("first")


@pytest.mark.slow
def test_a_better_run_wins_a_worse_one_and_one_better_by_chance_do_not(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("first", wrong=range(20))
    assert champion("first") == 0
    make_run("luckier", wrong=range(3, 20))  # 3 of 200 more: a p value of 0.25
    make_run("better", wrong=range(10, 21))  # 10 more, 1 less
    make_run("worse", wrong=range(40))
    capsys.readouterr()
    for name, verdict in (("luckier", "not significantly better than"), ("worse", "worse than")):
        assert champion(name) == 1
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.startswith(f"not promoted: {verdict} version 1 (")
        assert last.endswith("); the champion is still version 1 (--force promotes anyway)")
        assert int(registry.champion().version) == 1
    assert champion("better") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("challenger better (run ")
    assert lines[1].startswith("champion   version 1: test accuracy 90.00%")
    assert lines[2].startswith("difference +4.50 points, 95 % interval +1.")
    assert lines[2].endswith(": right on 10 images that the champion gets wrong, wrong on 1 it gets right")
    assert lines[3].endswith(f"; {CHAMPION} is version 2")
    assert model_file(Path(CHAMPION)).read_bytes() == onnx_of("better")


@pytest.mark.slow
def test_force_promotes_and_a_model_that_returns_is_the_version_that_it_was(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("first", wrong=range(20))
    make_run("worse", wrong=range(40))
    assert champion("first") == 0
    assert champion("worse", "--force") == 0
    assert "promoted: by force, worse than version 1 (" in capsys.readouterr().out
    assert int(registry.champion().version) == 2
    assert champion("first") == 0
    assert int(registry.champion().version) == 1
    assert len(registry.client.search_model_versions("name = 'fieldguide'")) == 2


def test_the_challenger_is_the_best_on_valid_of_the_latest_data(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    make_run("elsewhere", valid=0.99, data="other data")
    make_run("best-on-valid", wrong=range(30), valid=0.95)
    make_run("best-on-test", valid=0.9)
    assert champion() == 0
    assert capsys.readouterr().out.startswith(
        "best-on-valid has the best evaluate.valid.accuracy, 95.00%, of 2 runs\nchallenger best-on-valid (run "
    )
    assert tags_of_champion(registry)["dvc.experiment"] == "best-on-valid"


def test_a_run_is_named_by_its_id_too_and_an_unknown_one_is_one_line(registry: Registry) -> None:
    make_run("first")
    run_id = registry.exported_runs()[0].run.info.run_id
    with pytest.raises(
        UserError, match=r"^nobody: no run of this name or id has an exported model; the latest with one: first$"
    ):
        main(["champion", "nobody"])
    assert champion(run_id[:8]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "fault"),
    [
        (predictions([], salt="redrawn "), "its 200 images of test are not the challenger's 200"),  # under the same ids
        (predictions([]).iloc[:-1], "its 200 images of test are not the challenger's 199"),
        (predictions([], splits=["valid"]), "its 200 images of test are not the challenger's 200"),
    ],
)
def test_other_test_images_are_no_comparison(registry: Registry, table: pd.DataFrame, fault: str) -> None:
    make_run("first", wrong=range(20))
    assert champion() == 0
    make_run("second", table=table)
    with pytest.raises(UserError) as refused:
        main(["champion", "second"])
    assert str(refused.value) == (
        f"champion, version 1: {fault}, and data/manifest.csv is not that of the challenger, so that it cannot be evaluated"
        " here; restore it with: dvc exp apply, or dvc checkout; or promote without a comparison: --force"
    )
    assert int(registry.champion().version) == 1
    assert champion("second", "--force") == 0
    assert tags_of_champion(registry)["fieldguide.promoted"] == "by force, not compared with the champion"


def at_hand(root: Path) -> pd.DataFrame:
    """30 new test images as the project's data; what evaluate writes of a network that names all of them right."""
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]  # which the champion's network names RED, GREEN, BLUE
    images = [png(colours[number % 3], (20 + number, 20)) for number in range(30)]
    lengths = np.array([len(image) for image in images])
    truth = [NAMES[number % 3] if number < 20 else "DARK" for number in range(30)]
    new = pd.DataFrame(
        {
            "split": "test",
            "id": [f"{number}.png" for number in range(30)],
            "sha256": [hashlib.sha256(image).hexdigest() for image in images],
        }
    )
    (root / RAW).mkdir(parents=True)
    (root / RAW / "all.bin").write_bytes(b"".join(images))
    columns = {"label": 0, "class_name": truth, "file": "all.bin", "offset": np.cumsum(lengths) - lengths, "length": lengths}
    rest = {"width": 20, "height": 20, "phash": "", "unit": 0, "use": True, "reason": ""}
    write_manifest(as_given(new.assign(**columns, **rest)), MANIFEST)
    return new.assign(truth=truth, answer_1=truth)


@pytest.mark.slow
def test_on_new_data_that_are_at_hand_the_champion_is_measured_again(
    registry: Registry, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("first", wrong=range(20))
    assert champion() == 0
    table = at_hand(root)
    make_run("second", data=file_hash(MANIFEST, "md5"), table=table)
    capsys.readouterr()
    assert champion("second") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "champion   evaluated here: its 200 images of test are not the challenger's 30"
    assert lines[2].startswith("champion   version 1: test accuracy 66.67%")
    assert lines[3].endswith(": right on 10 images that the champion gets wrong, wrong on 0 it gets right")
    assert int(registry.champion().version) == 2


@pytest.mark.slow
def test_a_challenger_that_lacks_a_class_of_the_champion_takes_its_place_by_force_only(registry: Registry, root: Path) -> None:
    make_run("first", wrong=range(20))
    assert champion() == 0
    table, names = at_hand(root), ["A", "B", "GREEN", "DARK"]
    make_run("second", data=file_hash(MANIFEST, "md5"), table=table, names=names)
    with pytest.raises(UserError) as refused:
        main(["champion", "second"])
    assert str(refused.value) == (
        "champion, version 1: its 200 images of test are not the challenger's 30; the challenger does not know RED and 1 more"
        " of its classes; or promote without a comparison: --force"
    )
    assert int(registry.champion().version) == 1
    assert champion("second", "--force") == 0
    assert int(registry.champion().version) == 2


@pytest.mark.slow
def test_where_test_has_no_labels_valid_takes_its_place(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    make_run("first", table=predictions(range(20), splits=["valid"]))
    make_run("second", table=predictions([], splits=["valid"]))
    assert champion("first") == champion("second") == 0
    assert "challenger second" in capsys.readouterr().out
    assert tags_of_champion(registry)["evaluate.valid.n"] == "200"


def test_a_model_and_predictions_of_two_evaluations_are_refused(registry: Registry) -> None:
    make_run("mixed", reported={"split": "test", "accuracy": 0.5, "n": N})
    with pytest.raises(UserError, match=r"its model has 100 of 200 test images right, its predictions have 200 of 200"):
        main(["champion"])
    assert registry.champion() is None


def test_without_a_store_or_a_run_it_is_one_line(root: Path) -> None:
    with pytest.raises(UserError, match=r"^MLflow: no run has an exported model; create one with: dvc repro$"):
        main(["champion"])
    (root / "mlflow.db").unlink()
    with pytest.raises(UserError, match=r"/mlflow\.db: no tracking store; create a run with dvc repro, or set MLFLOW"):
        main(["champion"])
    assert not (root / "mlflow.db").exists()


def test_every_form_of_a_registered_name_is_a_file_and_an_unknown_one_is_one_line(registry: Registry) -> None:
    make_run("first")
    assert champion() == 0
    model_id = registry.exported_runs()[0].model.model_id
    for name in ("models:/fieldguide@champion", "models:/fieldguide/1", "models:/fieldguide/latest", f"models:/{model_id}"):
        assert model_file(Path(name)).read_bytes() == onnx_of("first")
    for name in ("models:/fieldguide@nobody", "models:/fieldguide/7", "models:/other/1", "models:/m-none"):
        with pytest.raises(UserError, match=f"^{name}: .+; a run's model is registered by: python -m fieldguide champion$"):
            model_file(Path(name))
    with pytest.raises(UserError, match=r"^models:/a/b/c: .*Not a proper models:/ URI"):
        model_file(Path("models:/a/b/c"))


def test_a_damaged_copy_is_fetched_again_and_a_changed_artifact_refused(registry: Registry, root: Path) -> None:
    make_run("first")
    assert champion() == 0
    cached = model_file(Path(CHAMPION))
    assert cached.is_relative_to(root / ".fieldguide")
    before = cached.stat().st_mtime_ns
    assert model_file(Path(CHAMPION)).stat().st_mtime_ns == before  # not fetched again
    cached.write_bytes(b"x" + cached.read_bytes()[1:])
    assert model_file(Path(CHAMPION)).read_bytes() == onnx_of("first")
    logged = Path(registry.exported_runs()[0].model.artifact_location.removeprefix("file://")) / "model.onnx"
    logged.write_bytes(b"x" + logged.read_bytes()[1:])
    cached.unlink()
    with pytest.raises(UserError, match=r"model\.onnx: its MD5 is \w+, but \w+ was logged; log it again: dvc repro"):
        model_file(Path(CHAMPION))
    assert not cached.exists()


def test_the_command_line_predicts_with_the_champion(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    make_run("first")
    assert champion() == 0
    Path("red.png").write_bytes(png())
    capsys.readouterr()
    main(["predict", "red.png", "--model", CHAMPION, "--top", "1"])
    assert capsys.readouterr().out.split()[-1] == "RED"


def test_the_page_takes_up_a_new_champion_and_keeps_the_old_one_while_the_store_is_away(
    registry: Registry, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def name_in_use() -> str:
        watched.look()
        return watched.current.classifier.metadata["name"]

    make_run("first", wrong=range(20))
    make_run("second")
    assert champion("first") == 0
    heard: list[bool] = []
    watched = Watched(Path(CHAMPION), 3600, heard.append)
    assert name_in_use() == "first"
    assert champion("second") == 0
    assert name_in_use() == "second"
    (root / "mlflow.db").rename(root / "away")
    assert name_in_use() == name_in_use() == "second"
    assert [record.levelname for record in caplog.records].count("ERROR") == 1
    (root / "away").rename(root / "mlflow.db")
    assert champion("first", "--force") == 0
    assert name_in_use() == "first"
    assert heard == [True, True]
    watched.close()


def test_dvc_knows_the_model_by_the_same_name_and_finds_a_tagged_version(tmp_path: Path) -> None:
    from dvc.api import artifacts_show
    from dvc.repo import Repo

    project = tmp_path / "project"
    (project / ".dvc").mkdir(parents=True)
    for name in ("dvc.yaml", ".dvc/config"):
        shutil.copy(ROOT / name, project / name)
    (project / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    git = [
        "git",
        "-c",
        "user.name=t",
        "-c",
        "user.email=t@example.org",
        "-c",
        "commit.gpgsign=false",
        "-c",
        "tag.gpgsign=false",
    ]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"], ["tag", "-a", "fieldguide@v1.0.0", "-m", "first"]):
        subprocess.run([*git, *command], cwd=project, check=True)
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=project, text=True).strip()
    assert artifacts_show("fieldguide", repo=str(project)) == {"rev": commit, "path": str(ONNX)}
    artifact = Repo(project).artifacts.read()["dvc.yaml"]["fieldguide"]
    assert (artifact.path, artifact.type) == (str(ONNX), "model")
    assert len(artifact.desc) > 20
    assert artifact.labels


def test_without_mlflow_a_registered_name_is_one_line_and_a_file_needs_none(root: Path) -> None:
    (root / "models").mkdir()
    save(root / "models", mean_colour_network())
    (root / "red.png").write_bytes(png())
    blocked = root / "blocked" / "mlflow.py"
    blocked.parent.mkdir()
    blocked.write_text("raise ModuleNotFoundError(\"No module named 'mlflow'\", name='mlflow')")
    environment = os.environ | {"PYTHONPATH": f"{blocked.parent}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "fieldguide", "predict", "red.png", "--top", "1"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout.split()[-1]) == (0, "RED")
    ended = subprocess.run([*command, "--model", CHAMPION], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr == f"error: {CHAMPION}: the model registry needs mlflow; install it with: make setup\n"
