"""A search through real DVC experiments: bad trials are pruned, a killed search resumes, MLflow has all runs."""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pandas as pd
import pytest

from fieldguide.__main__ import main
from fieldguide.commands.search import DIVERGED, Search, error_line, experiments, file_of, live_curve, parse_settings
from fieldguide.core.errors import UserError
from fieldguide.tracking.journal import new_journal
from support.projects import copy_built, run, tracked_runs
from support.settings import TEXT


@pytest.fixture
def at_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.yaml").write_text(TEXT, encoding="utf-8")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.lr=log(0,1)"], r"-S train.lr=log\(0,1\): not a search space; use uniform\(low,high\)"),
        (["train.lr=uniform(1,0)"], "not a search space"),
        (["train.lr=uniform(0,1,2)"], "not a search space"),
        (["train.batch_size=int(16,32,0)"], "not a search space"),
        (["train.lr=log(0.1,20)"], r"-S train.lr: train.lr must be in \(0, 10\], got 20"),
        (["train.lrr=uniform(0,1)"], "-S train.lrr: train.lrr is not a known key"),
        (["train.lr.x=uniform(0,1)"], "-S train.lr.x: train.lr.x is not a known key"),
        (["model.name.x.y=choice(a,b)"], "-S model.name.x.y: model.name.x.y is not a known key"),
        (["train.lr=log(0.1,1)", "data.path.x=1"], "-S data.path.x: data.path.x is not a known key"),
        (["train.optimizer=choice(foo,muon)"], "train.optimizer must be one of sgd, adam, adamw, muon, got 'foo'"),
        (["train.lr=uniform(0.1,1)", "train.epochs=0"], r"-S train.epochs: train.epochs must be an integer in \[1"),
        (["evaluate.accept=uniform(0,1)"], "trials only train; search in model, train, augment"),
        (["train.epochs=3"], "nothing to search"),
        (["train.lr"], "must be section.key=value, each parameter once"),
        (["train.lr=log(0.1,1)", "train.lr=0.1"], "each parameter once"),
        (["train.batch_size=log(16,64)"], r"train.batch_size must be an integer in \[2, 65536\], got 16.0"),
        (["model.image_px=uniform(64,128)"], "model.image_px must be an integer"),
        (["train.lr=choice({,1)"], r"-S train.lr=choice\({,1\): not a search space; use"),
        (["train.lr=log(0.1,1)", "train.schedule=: ["], "not a search space"),
        (["train.optimizer=choice(sgd,muon)"], r"train.weight_decay must be in \[0, 0.1\] with train.optimizer sgd"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_a_line(at_root: None, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_settings(arguments)


def test_settings_propose_within_their_bounds_and_keep_single_values(at_root: None) -> None:
    settings = parse_settings(
        [
            "train.lr=log(1e-05,0.1)",
            "train.batch_size=int(16,64,16)",
            "train.optimizer=choice(sgd, muon)",
            "train.weight_decay=0.05",
            "train.epochs=3",
        ]
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    search = Search(argparse.Namespace(), settings, Path(), study, lambda: 0)
    spaces = {key: setting for key, setting in settings.items() if not isinstance(setting, str)}
    values = [dict(change.split("=") for change in search.changes(study.ask(spaces).params)) for _ in range(40)]
    rates = [float(value["train.lr"]) for value in values]
    assert 1e-5 <= min(rates) < 1e-4
    assert 0.01 < max(rates) <= 0.1
    assert {value["train.batch_size"] for value in values} == {"16", "32", "48", "64"}
    assert {value["train.optimizer"] for value in values} == {"sgd", "muon"}
    assert {value["train.epochs"] for value in values} == {"3"}
    assert all(len(value["train.lr"].replace(".", "").lstrip("0").split("e")[0]) <= 4 for value in values)


@pytest.mark.parametrize(
    "arguments",
    [
        ["train.optimizer=sgd", "train.weight_decay=0.0005", "train.lr=log(0.01,0.3)"],
        ["train.lr=log(0.01,0.3)", "train.weight_decay=0.0005", "train.optimizer=sgd"],
        ["train.optimizer=choice(sgd,muon)", "train.weight_decay=log(0.0001,0.1)"],
        [
            "train.optimizer=choice(sgd,muon)",
            "train.weight_decay=log(0.0001,1.0)",
        ],  # sgd with 1.0 fails as a trial
    ],
)
def test_values_that_only_go_together_are_taken_in_any_order(at_root: None, arguments: list[str]) -> None:
    assert list(parse_settings(arguments)) == [argument.partition("=")[0] for argument in arguments]


def test_a_search_is_judged_on_valid_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["search", "-S", "train.lr=log(0.1,1)", "--metric", "evaluate.test.accuracy"])
    assert "argument --metric: invalid choice: 'evaluate.test.accuracy'" in capsys.readouterr().err


def test_a_seed_that_cannot_be_one_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["search", "-S", "train.lr=log(0.1,1)", "--seed", "-1"])
    assert "-1 must be an integer in [0, 2147483647]" in capsys.readouterr().err


def test_results_are_those_of_the_experiment_also_after_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> str:
        own = ["-c", "user.name=a", "-c", "user.email=a@b.example"]
        return subprocess.run(["git", *own, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    figures = tmp_path / "metrics.json"
    git("init", "--quiet")
    for text in ("committed", "of the trial"):
        figures.write_text(text)
        git("add", "metrics.json")
        git("commit", "--quiet", "--message", text)
    base = git("rev-parse", "HEAD~1")
    git("update-ref", f"refs/exps/{base[:2]}/{base[2:]}/rate-0", "HEAD")  # as DVC keeps it
    git("update-ref", "refs/exps/exec/EXEC_HEAD", "HEAD")
    figures.write_text("committed since")
    git("commit", "--quiet", "--all", "--message", "while the trial trained")
    assert experiments()["rate-0"] == git("rev-parse", "HEAD~1")
    assert file_of("rate-0", Path("metrics.json")) == "of the trial"
    assert list(experiments()) == ["rate-0"]
    with pytest.raises(UserError, match="experiment rate-1 was removed after it finished"):
        file_of("rate-1", Path("metrics.json"))


def test_without_optuna_a_line_says_what_to_install(at_root: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "fieldguide.commands.search")
    with pytest.raises(UserError, match=r"^fieldguide search needs optuna; install it with: "):
        main(["search", "-S", "train.lr=log(0.1,1)"])


def test_the_curve_of_an_experiment_that_trains_is_read_from_its_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    for name, values in (("other", [0.9]), ("lr-1", [0.1, 0.2, 0.3])):
        journal = new_journal(f"key_of_{name.replace('-', '_')}", "")
        journal.append("start", name=name, tags={"dvc.experiment": name}, of="")
        for epoch, value in enumerate(values, 1):
            journal.append("metrics", values={"valid.accuracy": value, "lr": 0.1}, step=epoch, of="")
    journal.append("metrics", values={"best_epoch": 3}, step=0, of="")
    with journal.entries.open("a") as stream:
        stream.write('{"kind": "metrics", "step": 4, "val')
    assert live_curve("lr-1", "valid.accuracy") == ("key_of_lr_1", {1: 0.1, 2: 0.2, 3: 0.3})
    assert live_curve("lr-2", "valid.accuracy") == ("", {})


def test_the_reason_of_a_failure_is_our_own_line_else_the_last() -> None:
    assert error_line("Running\nerror: params.yaml: bad\nERROR: failed to reproduce\n") == "error: params.yaml: bad"
    assert error_line("Running\nERROR: failed\n\n") == "ERROR: failed"


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_is_told_from_other_errors(loss: float) -> None:
    assert DIVERGED.search(f"error: epoch 2, batch 3: loss is {loss}; lower train.lr (0.1)")
    assert not DIVERGED.search("epoch 1/8  loss 848.5388\nerror: params.yaml: train.lr must be in (0, 10], got -1")


def search(project: Path, *more: str) -> subprocess.Popen[bytes]:
    """Two rates, of which one learns nothing; the seed proposes the good one first."""
    settings = ["train.lr=choice(0.01,0.0000001)", "train.epochs=16"]
    command = [sys.executable, "-m", "fieldguide", "search", "--name", "rate", "--metric", "valid.loss", "--trials", "2"]
    command += ["--seed", "2", "--startup-trials", "1", "--warmup-epochs", "2"]
    command += [word for setting in settings for word in ("-S", setting)]
    with (project.parent / "search.log").open("ab") as log:
        return subprocess.Popen([*command, *more], cwd=project, stdout=log, stderr=log)


@pytest.mark.slow
def test_a_killed_search_goes_on_and_a_bad_trial_ends_early(
    built_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "a field guide"
    copy_built(built_project, project)
    (project / "mlflow.db").unlink()
    folder = project / ".fieldguide" / "search" / "rate"

    process = search(project)
    monkeypatch.setenv("DVC_ROOT", str(project))  # where this process looks for journals
    while len(live_curve("rate-0", "valid.loss")[1]) < 3 and process.poll() is None:  # its first state is on the disk
        time.sleep(0.2)
    monkeypatch.delenv("DVC_ROOT")
    process.kill()
    process.wait()
    process = search(project)
    assert process.wait() == 0, (project.parent / "search.log").read_text()

    said = (project.parent / "search.log").read_text()
    assert "resuming after epoch" in (folder / "rate-0.log").read_text()
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder / 'trials.db'}")
    trials = optuna.load_study(study_name="rate", storage=storage).trials
    storage.remove_session()
    storage.engine.dispose()  # Python 3.13 warns of open connections, in whatever test is next
    states = {(trial.user_attrs["experiment"], trial.state.name): trial for trial in trials}
    assert set(states) == {("rate-0", "FAIL"), ("rate-0", "COMPLETE"), ("rate-2", "PRUNED")}, said
    good, bad = states[("rate-0", "COMPLETE")], states[("rate-2", "PRUNED")]
    assert good.params["train.lr"] == "0.01"
    assert list(good.intermediate_values) == list(range(1, 17))
    assert good.value in good.intermediate_values.values()  # that of the epoch that `train.best_by` kept
    assert 2 <= len(bad.intermediate_values) < 16

    experiments = run(project, "dvc", "exp", "list", "--name-only").stdout.split()
    assert experiments == ["rate-0"]
    runs = tracked_runs(project).set_index("name")
    assert dict(runs["status"]) == {"rate-0": "FINISHED", "rate-2": "KILLED"}
    assert set(runs["fieldguide.search"]) == {"rate"}
    assert runs["fieldguide.pruned"].eq("true").to_dict() == {"rate-0": False, "rate-2": True}
    left = [file for file in (project / ".fieldguide" / "unfinished").iterdir() if file.is_dir()]
    assert left == []
    assert not list((project / ".dvc" / "tmp" / "exps" / "standalone").glob("tmp*"))

    table = pd.read_csv(folder / "trials.csv")
    names = dict(zip(table["user_attrs_experiment"], table["state"], strict=True))
    assert names == {"rate-0": "COMPLETE", "rate-2": "PRUNED"}
    assert "dvc exp run -S train.lr=0.01 -S train.epochs=16" in said

    other = search(project, "-S", "train.ema=0.5")
    assert other.wait() == 1
    assert "search rate was started with" in (project.parent / "search.log").read_text()
    shutil.rmtree(project)
