"""A search of parameters: Optuna proposes them, each trial is a DVC experiment that trains, bad ones are ended early.

    python -m fieldguide search --name lr -S 'train.lr=log(0.001,0.02)' -S 'augment.cutmix=uniform(0,0.6)' --trials 20

The trials are judged on valid, never on test. What Optuna knows lies in .fieldguide/search/<name>/trials.db: the same command
goes on with a search that was ended or killed. While a trial trains, its validation curve is read from its journal.
"""

import argparse
import copy
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import quote

import pandas as pd
import psutil
import yaml
from filelock import FileLock, Timeout

from fieldguide.core.errors import UserError
from fieldguide.core.manifest import write_table
from fieldguide.core.params import read_params
from fieldguide.core.paths import HISTORY_CSV, PARAMS, project_root, stage_metrics
from fieldguide.report import plots
from fieldguide.tracking import sender, store
from fieldguide.tracking.journal import LOOK_SECONDS, all_journals, new_journal

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.pruners import BasePruner
    from optuna.trial import FrozenTrial

FIGURES: dict[str, Literal["maximize", "minimize"]] = {"valid.accuracy": "maximize", "valid.loss": "minimize"}
TRAINED_BY = ("model", "train", "augment")  # sections of which the training, and nothing before it, depends
SEARCH_TAG, PRUNED_TAG = "fieldguide.search", "fieldguide.pruned"
POLL_SECONDS = 0.5
WARMUP_SHARE = 0.25  # of the epochs in which no trial is ended: growing pictures and averaged weights are slow to show
HOPELESS = 3  # trials that fail before any has come through an epoch: it is not their values
DIGITS = 4  # of a proposed number: enough to tell two apart, and a command stays readable
MAX_COMBINATIONS = 256  # of the ends of spaces, tried where one contradicts something
EXPERIMENT_REF = re.compile(r"(\w+) refs/exps/[0-9a-f]{2}/[0-9a-f]{38}/(.+)")  # DVC's: by the commit on which it was made
DIVERGED = re.compile(r"loss is (nan|-?inf)")  # what a training says that ends so: a bad trial, not a mistake
SPACE = re.compile(r"(choice|uniform|log|int)\((.*)\)")


class TrialFailed(Exception):
    """An experiment ended with an error."""


class TrialStopped(Exception):
    """The search was told to end; the trial goes on with the next start."""


def run(chosen: argparse.Namespace) -> None:
    """Does what the command line asks."""
    store.prepare()
    if chosen.runs is not None:
        draw_runs(chosen.runs, chosen.metric, chosen.picture or Path("parallel_coordinates.png"))
        return
    if not re.fullmatch(r"[A-Za-z0-9_-]+", chosen.name):
        chosen.parser.error(f"--name {chosen.name}: letters, digits, - and _ only")
    if chosen.metric not in FIGURES:
        chosen.parser.error(f"--metric {chosen.metric}: a search takes {' or '.join(FIGURES)}; test is not for choosing")
    search(chosen)


class Setting(NamedTuple):
    """What `-S` says of one parameter: a space (its kind and what stands in the brackets), or one value, of no kind."""

    kind: str
    parts: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> "Setting":
        """Raises `ValueError` where brackets hold what their kind does not take."""
        match = SPACE.fullmatch(text)
        if not match:
            return cls("", (text,))
        made = cls(match[1], tuple(part.strip() for part in match[2].split(",")))
        if made.kind != "choice":
            low, high, *step = map(int if made.kind == "int" else float, made.parts)
            if (
                not low < high
                or len(step) > (made.kind == "int")
                or (made.kind == "log" and low <= 0)
                or min(step, default=1) < 1
            ):
                raise ValueError
        return made

    def value(self, key: str, trial: "Trial") -> str:
        """The one value, or what Optuna proposes."""
        match self.kind:
            case "":
                return self.parts[0]
            case "choice":
                return trial.suggest_categorical(key, self.parts)
            case "int":
                low, high, *step = map(int, self.parts)
                return str(trial.suggest_int(key, low, high, step=step[0] if step else 1))
        lower, upper = map(float, self.parts)
        return f"{trial.suggest_float(key, lower, upper, log=self.kind == 'log'):.{DIGITS}g}"

    def ends(self) -> list[Any]:
        """Values that params.yaml must take for it to take all between them; raises `ValueError` for what is no YAML."""
        match self.kind:
            case "int":
                return [int(part) for part in self.parts[:2]]
            case "uniform" | "log":  # never whole numbers, though 16 would look like one
                return [float(part) for part in self.parts]
        return [_scalar(part) for part in self.parts]


def settings_of(arguments: Sequence[str]) -> dict[str, Setting]:
    """By parameter; raises `UserError` for what is no setting, or would be refused by params.yaml."""
    found: dict[str, Setting] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not re.fullmatch(r"\w+(\.\w+)+", key) or key in found:
            raise UserError(f"-S {argument}: give each parameter once, as section.key=value")
        try:
            found[key] = Setting.of(text)
            found[key].ends()
        except ValueError as error:
            kinds = "uniform(low,high), log(low,high) with low above 0, int(low,high[,step]) or choice(a,b,…)"
            raise UserError(f"-S {argument}: no space; give {kinds}") from error
        if found[key].kind and key.partition(".")[0] not in TRAINED_BY:
            raise UserError(f"-S {argument}: trials only train; search among {', '.join(TRAINED_BY)}")
    if not any(setting.kind for setting in found.values()):
        raise UserError("nothing to search; give a space, as -S 'train.lr=log(0.001,0.02)'")
    _check(found)
    return found


def _check(settings: dict[str, Setting]) -> None:
    """Raises `UserError` unless params.yaml takes the single values with both ends of each space.

    Keys may contradict each other: an end is refused where it goes with none of the ends of the other spaces.
    """
    tree = read_params().model_dump(mode="json")
    for key, setting in settings.items():
        if not setting.kind:
            _put(tree, key, setting.ends()[0])
    spaces = {key: setting.ends() for key, setting in settings.items() if setting.kind}
    for key, ends in spaces.items():
        others = {other: values for other, values in spaces.items() if other != key}
        for end in ends:
            combinations = itertools.islice(itertools.product(*others.values()), MAX_COMBINATIONS)
            refusals = (_refusal(tree, {key: end} | dict(zip(others, values, strict=True))) for values in combinations)
            first = next(refusals)
            if first and all(refusals):
                raise UserError(f"-S {next((known for known in settings if first.startswith(f'{known} ')), key)}: {first}")


def _refusal(tree: dict[str, Any], values: dict[str, Any]) -> str:
    """What is wrong with params.yaml when these values stand in it; nothing where it is right."""
    tried = copy.deepcopy(tree)
    for key, value in values.items():
        _put(tried, key, value)
    with tempfile.TemporaryDirectory() as folder:
        changed = Path(folder, PARAMS.name)
        changed.write_text(yaml.safe_dump(tried), encoding="utf-8")
        try:
            read_params(changed)
        except UserError as error:
            return str(error).removeprefix(f"{changed}: ")
    return ""


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[last] = value


def _scalar(text: str) -> Any:
    """As YAML 1.2 reads it, which PyYAML does not do with 1e-05; raises `ValueError` for what is no YAML."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(text) from error


def search(chosen: argparse.Namespace) -> None:
    """Runs the trials that are missing; prints the best and the command that trains it, and draws all."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # what becomes of a trial is a line of our own
    settings = settings_of(chosen.set_param)
    folder = project_root() / ".fieldguide" / "search" / chosen.name
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(FileLock(folder / "lock", timeout=0, thread_local=False))
        except Timeout as error:
            raise UserError(f"search {chosen.name} is at work in another process; end it, or give another --name") from error
        study = optuna.create_study(
            storage=f"sqlite:///{quote(str(folder / 'trials.db'))}",
            study_name=chosen.name,
            direction=FIGURES[chosen.metric],
            load_if_exists=True,
            pruner=_pruner(chosen, settings),
        )
        _same_search(study, chosen)
        study.sampler = optuna.samplers.TPESampler(seed=chosen.seed + len(study.trials))  # else a later start proposes the same
        for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):  # their search was killed
            _end_process(*trial.user_attrs.get("process", (0, 0)))
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            try_again(study, trial)
        stop = stack.enter_context(stop_signal())
        trials = Trials(study, folder, chosen, settings, stop)
        n_missing = chosen.trials - len(of_state(study, "COMPLETE", "PRUNED"))
        if n_missing > 0:
            study.optimize(trials, n_missing, n_jobs=chosen.jobs, catch=(TrialFailed, TrialStopped), callbacks=[trials.line])
        try:
            sender.send_all()
        except UserError as error:
            print(f"warning: {error}", file=sys.stderr)
        if stop():
            print(f"{signal.Signals(stop()).name}: stopped; the same command goes on from there", file=sys.stderr)
            sys.exit(128 + stop())
        conclude(study, folder, chosen, settings)


class Trials:
    """The objective: a trial as a DVC experiment in a temporary folder, ended when the pruner or a signal says so."""

    def __init__(
        self, study: "Study", folder: Path, chosen: argparse.Namespace, settings: dict[str, Setting], stop: Callable[[], int]
    ) -> None:
        self.study, self.folder, self.chosen, self.settings, self.stop = study, folder, chosen, settings, stop

    def __call__(self, trial: "Trial") -> float:
        """The figure at the best epoch, as metrics/train.json has it."""
        values = {key: setting.value(key, trial) for key, setting in self.settings.items()}
        again = "experiment" in trial.user_attrs
        name = trial.user_attrs.get("experiment", f"{self.chosen.name}-{trial.number}")
        trial.set_user_attr("experiment", name)
        reported: set[int] = set()
        if not (again and experiment(name)):  # one may have come to its end after its search was killed
            self._train(trial, name, values, reported)
        split, figure = self.chosen.metric.split(".")
        history = pd.read_csv(io.StringIO(file_of(name, HISTORY_CSV)))
        for epoch, value in zip(history["epoch"], history[f"{split}_{figure}"], strict=True):
            if epoch not in reported:
                trial.report(value, int(epoch))
        return json.loads(file_of(name, stage_metrics("train")))[split][figure]

    def _train(self, trial: "Trial", name: str, values: dict[str, str], reported: set[int]) -> None:
        """Runs the experiment; raises what tells Optuna that it has no result, or that it is a bad one."""
        from optuna import TrialPruned

        log = self.folder / f"{name}.log"
        process = self._started(name, values, log)
        trial.set_user_attr("process", (process.pid, psutil.Process(process.pid).create_time()))
        key, verdict = self._watched(process, trial, name, reported)
        text = log.read_text(errors="replace")
        if process.returncode and not verdict and DIVERGED.search(text):
            verdict = "pruned"
        if process.returncode == 0:  # it was faster than the signal
            verdict = ""
        if key:
            status = "KILLED" if verdict else "FAILED" if process.returncode else "FINISHED"
            mark(key, name, status, {SEARCH_TAG: self.chosen.name} | ({PRUNED_TAG: "true"} if verdict == "pruned" else {}))
        if verdict == "pruned":
            if key:
                from fieldguide.training.resume import forget  # only now: it waits for torch

                forget(key)
            raise TrialPruned
        if verdict == "stopped":
            self.study.stop()
            try_again(self.study, trial)
            raise TrialStopped
        if process.returncode:
            trial.set_user_attr("error", reason(text))
            raise TrialFailed

    def _started(self, name: str, values: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
        changes = [word for key, value in values.items() for word in ("--set-param", f"{key}={value}")]
        n_threads = max(1, read_params().runtime.n_workers // self.chosen.jobs)
        shared = {"OMP_NUM_THREADS": str(n_threads)} if self.chosen.jobs > 1 else {}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # the stage's python is this one
        with log.open("wb") as stream:
            return subprocess.Popen(
                [sys.executable, "-m", "dvc", "--wait-for-lock", "exp", "run", "--temp", "--name", name, *changes, "train"],
                cwd=project_root(),
                env=shared | os.environ | {"PATH": path},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,  # Ctrl-C is for the search; its signal to the session reaches DVC and the stage
            )

    def _watched(self, process: subprocess.Popen[bytes], trial: "Trial", name: str, reported: set[int]) -> tuple[str, str]:
        """Reports epochs until the process ends; the key of its run, and whether it was told to end: pruned, stopped."""
        key = verdict = ""
        while process.poll() is None:
            found, curve = live_curve(name, self.chosen.metric)
            key, before = found or key, verdict
            for epoch in sorted(curve.keys() - reported):
                trial.report(curve[epoch], epoch)
                reported.add(epoch)
                verdict = verdict or ("pruned" if trial.should_prune() else "")
            verdict = verdict or ("stopped" if self.stop() else "")
            if verdict and not before:
                os.killpg(process.pid, signal.SIGINT)  # the stage ends, DVC waits for it and clears its folder away
            time.sleep(POLL_SECONDS)
        return key, verdict

    def line(self, study: "Study", trial: "FrozenTrial") -> None:
        """Tells of a trial that has ended; ends the search where the first ones all fail before an epoch."""
        values = " ".join(f"{key}={shown(value)}" for key, value in trial.params.items())
        number = len(trial.intermediate_values)
        result = {
            "COMPLETE": f"{self.chosen.metric} {trial.value or 0:.4f} after {number} epochs",
            "PRUNED": f"ended early, after {number} epochs",
            "FAIL": f"failed: {trial.user_attrs['error']}" if "error" in trial.user_attrs else "stopped",
        }[trial.state.name]
        print(f"{trial.user_attrs['experiment']}: {result}; {values}", flush=True)
        failed = of_state(study, "FAIL")
        if len(failed) >= HOPELESS and not any(each.intermediate_values for each in study.get_trials(deepcopy=False)):
            study.stop()


def live_curve(name: str, metric: str) -> tuple[str, dict[int, float]]:
    """The key of the run of an experiment that trains, and its figure by epoch; nothing before it has begun."""
    for journal in reversed(all_journals()):
        try:
            entries = list(journal.everything())
        except FileNotFoundError:  # sent and removed
            continue
        starts = [entry for entry in entries if entry["kind"] == "start"]
        if starts and starts[-1]["tags"].get("dvc.experiment") == name:
            logged = [entry for entry in entries if entry["kind"] == "metrics" and metric in entry["values"]]
            return journal.key, {entry["step"]: entry["values"][metric] for entry in logged}
    return "", {}


def mark(key: str, name: str, status: str, tags: dict[str, str]) -> None:
    """Tags for a run whose process has ended, and its status; sent with the next run or at the end of the search."""
    journal = new_journal(key, store.store_name())
    with journal.held(LOOK_SECONDS):
        journal.append("start", name=name, tags=tags, of="")  # the run that has this key already
        journal.append("end", status=status)


def experiment(name: str) -> str:
    """The commit of an experiment on any commit (a new one may be made during a search); nothing where there is none."""
    return _experiments().get(name, "")


def file_of(name: str, file: Path) -> str:
    """The text of a file as an experiment left it in git."""
    commit = experiment(name)
    if not commit:
        raise UserError(f"experiment {name} is not there any more, though it came to its end; begin a search of another --name")
    return _git("show", f"{commit}:./{file}")


def _experiments() -> dict[str, str]:
    lines = _git("for-each-ref", "--format=%(objectname) %(refname)", "refs/exps").splitlines()
    found = (EXPERIMENT_REF.fullmatch(line) for line in lines)
    return {match[2]: match[1] for match in found if match}


def _git(*arguments: str) -> str:
    answer = subprocess.run(["git", *arguments], cwd=project_root(), capture_output=True, text=True, check=False)
    if answer.returncode:
        raise UserError(f"git {' '.join(arguments)}: {answer.stderr.strip()}; a search needs a git repository with a commit")
    return answer.stdout


def _pruner(chosen: argparse.Namespace, settings: dict[str, Setting]) -> "BasePruner":
    from optuna import pruners

    epochs = settings.get("train.epochs", Setting("", (str(read_params().train.epochs),)))
    most = max(map(int, epochs.parts[:2])) if epochs.kind == "int" else max(map(int, epochs.parts))
    warmup = chosen.warmup_epochs or max(1, round(WARMUP_SHARE * most))
    match chosen.pruner:
        case "median":
            return pruners.MedianPruner(n_startup_trials=chosen.startup_trials, n_warmup_steps=warmup)
        case "hyperband":
            return pruners.HyperbandPruner(min_resource=warmup, max_resource=most)
    return pruners.NopPruner()


def _same_search(study: "Study", chosen: argparse.Namespace) -> None:
    """Raises `UserError` where a search of this name was begun with other settings, or its experiments are there already."""
    asked = {"-S": sorted(chosen.set_param), "--metric": chosen.metric}
    begun = study.user_attrs.get("asked")
    if begun is None:
        if taken := [name for name in _experiments() if re.fullmatch(rf"{re.escape(study.study_name)}-\d+", name)]:
            raise UserError(f"there are experiments {', '.join(taken[:3])} already; give another --name, or remove them")
        study.set_user_attr("asked", asked)
    elif begun != asked:
        words = " ".join([*begun["-S"], "--metric", begun["--metric"]])
        raise UserError(f"search {study.study_name} was begun with {words}; give the same, or another --name")


def try_again(study: "Study", trial: "Trial | FrozenTrial") -> None:
    """The same values, under the same name, before any new ones: its training goes on from its last state."""
    if trial.params:
        study.enqueue_trial(trial.params, {key: trial.user_attrs[key] for key in ("experiment",) if key in trial.user_attrs})


def _end_process(number: int, created: float) -> None:
    """Ends a trial that has outlived its search, and waits for it; not another process that has its number by now."""
    try:
        process = psutil.Process(number)
        if process.create_time() != created:
            return
        os.killpg(number, signal.SIGINT)
        process.wait()
    except (psutil.NoSuchProcess, ProcessLookupError):
        return


@contextmanager
def stop_signal() -> Iterator[Callable[[], int]]:
    """A function that tells which of SIGTERM and SIGINT has come (0: none)."""
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: came.append(number)) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield lambda: came[0] if came else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def reason(text: str) -> str:
    """What a log says of the error: our own line, else the last one."""
    lines = [line for line in text.splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("error: ")), lines[-1] if lines else "it said nothing")


def of_state(study: "Study", *names: str) -> list["FrozenTrial"]:
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.name in names]


def conclude(study: "Study", folder: Path, chosen: argparse.Namespace, settings: dict[str, Setting]) -> None:
    """Prints the best trial and the command that trains it; writes a table of all trials, and their picture."""
    complete, pruned, failed = (of_state(study, name) for name in ("COMPLETE", "PRUNED", "FAIL"))
    errors = [trial.user_attrs["error"] for trial in failed if "error" in trial.user_attrs]
    if not complete:
        why = errors[0] if errors else "all were ended early"
        raise UserError(f"search {study.study_name}: no trial came to its end ({why}); the logs are in {folder}")
    rows = complete + [trial for trial in pruned if trial.intermediate_values]
    is_higher_better = FIGURES[chosen.metric] == "maximize"
    best_of = max if is_higher_better else min
    facts = pd.DataFrame({"experiment": [trial.user_attrs["experiment"] for trial in rows]})
    facts[chosen.metric] = [best_of(trial.intermediate_values.values()) if trial in pruned else trial.value for trial in rows]
    facts["pruned"] = [trial in pruned for trial in rows]
    facts["epochs"] = [len(trial.intermediate_values) for trial in rows]
    table = pd.DataFrame([{key: _scalar(shown(value)) for key, value in trial.params.items()} for trial in rows])
    write_table(pd.concat([facts, table], axis=1), folder / "trials.csv")
    title = f"{study.study_name}: {len(complete)} trials trained to the end, {len(pruned)} ended early (dashed)"
    values, is_pruned = facts[chosen.metric].tolist(), facts["pruned"].tolist()
    figure = plots.parallel_coordinates(table, values, is_pruned, chosen.metric, is_higher_better, title)
    picture = chosen.picture or folder / "parallel_coordinates.png"
    plots.save_png(figure, picture)
    best = study.best_trial
    settled = {key: shown(best.params[key]) if setting.kind else setting.parts[0] for key, setting in settings.items()}
    print(f"{len(complete)} trials to the end, {len(pruned)} ended early, {len(errors)} failed")
    print(f"best: {best.user_attrs['experiment']}, {chosen.metric} {best.value:.4f}. The whole pipeline with its values:")
    print(" ".join(["dvc exp run", *(f"-S {key}={value}" for key, value in settled.items())]))
    print(f"-> {folder / 'trials.csv'} {picture}")


def shown(value: object) -> str:
    """A proposed value as the experiment got it."""
    return f"{value:.{DIGITS}g}" if isinstance(value, float) else str(value)


def draw_runs(query: str, metric: str, picture: Path) -> None:
    """The trainings in MLflow that match a filter, as parallel coordinates of the params in which they differ."""
    with store.opened_store() as opened:
        found = opened.trainings(query)
    runs = [run for run in found if metric in run.data.metrics]
    if len(runs) < 2:
        raise UserError(f"--runs {query!r}: {len(runs)} trainings with {metric} match; give a filter that more do")
    table = pd.DataFrame([run.data.params for run in runs]).fillna("not told")  # by runs of an older version
    table = table.loc[:, table.nunique() > 1].apply(_numbers)
    if table.empty:
        raise UserError(f"--runs {query!r}: {len(runs)} trainings match, and no parameter differs; give another filter")
    figures = [run.data.metrics[metric] for run in runs]
    is_pruned = [PRUNED_TAG in run.data.tags for run in runs]
    higher = not metric.endswith(("loss", "ece", "ms", "bytes"))
    title = f"{len(runs)} trainings, {sum(is_pruned)} of them ended early (dashed)"
    plots.save_png(plots.parallel_coordinates(table, figures, is_pruned, metric, higher, title), picture)
    print(f"-> {picture}")


def _numbers(column: pd.Series) -> pd.Series:
    """Texts as numbers where all are."""
    try:
        return pd.to_numeric(column)
    except ValueError:
        return column
