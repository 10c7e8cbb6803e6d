"""Hyperparameter search: Optuna proposes values, each trial is a DVC experiment that trains, bad ones are pruned.

    python -m fieldguide search --name lr -S 'train.lr=log(0.001,0.02)' -S 'augment.cutmix=uniform(0,0.6)' --trials 20

Trials are judged on valid, never on test. The study is kept in .fieldguide/search/<name>/trials.db: the same command resumes
an interrupted search. While a trial trains, its validation curve is read from its journal.
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
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
import pandas as pd
import psutil
import yaml
from filelock import FileLock, Timeout
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.trial import FrozenTrial, TrialState

from fieldguide.core.errors import UserError
from fieldguide.core.manifest import write_table
from fieldguide.core.params import YamlLoader, check_params, read_params
from fieldguide.core.paths import HISTORY_CSV, PARAMS, headlines_json, project_root
from fieldguide.tracking.experiments import EXPERIMENT_REFS, git
from fieldguide.tracking.journal import LOOK_SECONDS, all_journals, new_journal
from fieldguide.tracking.sender import send_all
from fieldguide.tracking.store import EXPERIMENT_TAG, store_name
from fieldguide.training.resume import forget, stop_signals

Settings = dict[str, BaseDistribution | str]  # a search space, or the text of a fixed value, by parameter

SEARCHED = ("model", "train", "augment")  # sections that only the training depends on
SEARCH_TAG, PRUNED_TAG = "fieldguide.search", "fieldguide.pruned"
POLL_SECONDS = 0.5
TABLE = ("number", "state", "value", "params", "user_attrs")  # of trials.csv; a pruned trial's value is its last one
WARMUP_SHARE = 0.25  # of the epochs, without pruning: growing images and averaged weights are slow to show
MAX_FAILURES = 3  # when as many trials fail before any has trained for an epoch, their values are not the cause
DIGITS = 4  # of a proposed number: enough to tell two apart, and a command stays readable
MAX_COMBINATIONS = 256  # of the ends of spaces that are checked for each end
DIVERGED = re.compile(r"loss is (nan|-?inf)")  # in the log of a training: bad values, not a mistake
SPACE = re.compile(r"(choice|uniform|log|int)\((.*)\)")
SPACES: dict[str, Callable[..., BaseDistribution]] = {  # of the texts between the commas
    "choice": lambda *texts: CategoricalDistribution(texts),
    "uniform": lambda low, high: FloatDistribution(float(low), float(high)),
    "log": lambda low, high: FloatDistribution(float(low), float(high), log=True),
    "int": lambda low, high, step=1: IntDistribution(int(low), int(high), step=int(step)),
}


def search(args: argparse.Namespace) -> None:
    """Runs the trials that are missing; prints the best one and the command that trains with its values."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", args.name):
        args.parser.error(f"--name {args.name}: use letters, digits, - and _ only")
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # the outcome of a trial is a line of our own
    settings = parse_settings(args.set_param)
    folder = project_root() / ".fieldguide" / "search" / args.name
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=0), stop_signals() as stop:
            this = Search(args, settings, folder, open_study(args, settings, folder), stop)
            this.optimize()
            try:
                send_all()
            except UserError as error:
                print(f"warning: {error}", file=sys.stderr)
            if stop():
                print(f"{signal.Signals(stop()).name}: interrupted; the same command resumes the search", file=sys.stderr)
                sys.exit(128 + stop())
            this.conclude()
    except Timeout as error:
        raise UserError(f"search {args.name} is running in another process; stop it, or use another --name") from error


def parse_settings(arguments: Sequence[str]) -> Settings:
    """The settings of `-S`; raises `UserError` for an invalid setting or a value that params.yaml refuses."""
    settings: Settings = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not re.fullmatch(r"\w+(\.\w+)+", key) or key in settings:
            raise UserError(f"-S {argument}: must be section.key=value, each parameter once")
        try:
            settings[key] = _parse_space(text)
            _ends(settings[key])
        except (ValueError, TypeError, yaml.YAMLError) as error:
            kinds = "uniform(low,high), log(low,high) with low > 0, int(low,high[,step]) or choice(a,b,…)"
            raise UserError(f"-S {argument}: not a search space; use {kinds}") from error
        if not isinstance(settings[key], str) and key.partition(".")[0] not in SEARCHED:
            raise UserError(f"-S {argument}: trials only train; search in {', '.join(SEARCHED)}")
    if all(isinstance(setting, str) for setting in settings.values()):
        raise UserError("nothing to search; add a search space, for example -S 'train.lr=log(0.001,0.02)'")
    _check_ends(settings)
    return settings


def _parse_space(text: str) -> BaseDistribution | str:
    match = SPACE.fullmatch(text)
    return SPACES[match[1]](*map(str.strip, match[2].split(","))) if match else text


def _ends(setting: BaseDistribution | str) -> list[Any]:
    """The fixed value, the choices or both bounds, as params.yaml would hold them."""
    if isinstance(setting, IntDistribution | FloatDistribution):
        return [setting.low, setting.high]
    texts = setting.choices if isinstance(setting, CategoricalDistribution) else [setting]
    return [yaml.load(str(text), Loader=YamlLoader) for text in texts]


def _check_ends(settings: Settings) -> None:
    """Raises `UserError` for an end of a space that params.yaml refuses, whatever the other spaces' ends are."""
    tree = read_params().model_dump(mode="json")
    ends = {key: _ends(setting) for key, setting in settings.items()}
    for key, values in ends.items():
        for value in values:
            combinations = itertools.product(*({**ends, key: [value]}).values())
            refusals = (_refusal(tree, ends, each) for each in itertools.islice(combinations, MAX_COMBINATIONS))
            first = next(refusals)
            if first and all(refusals):
                raise UserError(f"-S {next((known for known in settings if first.startswith(f'{known} ')), key)}: {first}")


def _refusal(tree: dict[str, Any], keys: Iterable[str], values: Iterable[Any]) -> str:
    """What is wrong with params.yaml when it has these values; empty if nothing is."""
    tree = copy.deepcopy(tree)
    for key, value in zip(keys, values, strict=True):
        *sections, last = key.split(".")
        node: Any = tree
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                return f"{key} is not a known key"
        node[last] = value
    try:
        check_params(tree, PARAMS)
    except UserError as error:
        return str(error).removeprefix(f"{PARAMS}: ")
    return ""


def open_study(args: argparse.Namespace, settings: Settings, folder: Path) -> optuna.Study:
    """The study of this name, new or resumed; stops trials of a killed search and queues them again.

    Raises `UserError` if it was started with other settings, or if its experiments exist already.
    """
    study = optuna.create_study(
        storage=f"sqlite:///{quote(str(folder / 'trials.db'))}",
        study_name=args.name,
        direction="minimize" if args.metric == "valid.loss" else "maximize",
        load_if_exists=True,
        pruner=_pruner(args, settings),
    )
    asked = {"-S": sorted(args.set_param), "--metric": args.metric}
    begun = study.user_attrs.get("asked")
    if begun is None:
        if existing := [name for name in experiments() if re.fullmatch(rf"{re.escape(args.name)}-\d+", name)]:
            raise UserError(f"experiments {', '.join(existing[:3])} exist already; use another --name, or remove them")
        study.set_user_attr("asked", asked)
    elif begun != asked:
        words = " ".join([*begun["-S"], "--metric", begun["--metric"]])
        raise UserError(f"search {args.name} was started with {words}; use the same settings, or another --name")
    study.sampler = optuna.samplers.TPESampler(seed=args.seed + len(study.trials))  # else a resumed one proposes the same
    for trial in study.get_trials(states=[TrialState.RUNNING]):  # the lock is ours: their search was killed
        _stop_process(*trial.user_attrs.get("process", (0, 0)))
        study.tell(trial.number, state=TrialState.FAIL)
        enqueue_again(study, trial)
    return study


def _pruner(args: argparse.Namespace, settings: Settings) -> BasePruner:
    n_epochs = max(map(int, _ends(settings.get("train.epochs", str(read_params().train.epochs)))))
    warmup = args.warmup_epochs or max(1, round(WARMUP_SHARE * n_epochs))
    pruners = {"median": MedianPruner(args.startup_trials, warmup), "hyperband": HyperbandPruner(warmup, n_epochs)}
    return pruners.get(args.pruner, NopPruner())


def enqueue_again(study: optuna.Study, trial: optuna.Trial | FrozenTrial) -> None:
    """The same values under the same name, before any new ones: the training resumes from its last state."""
    if trial.params:
        study.enqueue_trial(trial.params, trial.user_attrs)


def _stop_process(number: int, created: float) -> None:
    """Stops an experiment and waits for it, unless another process has its number by now."""
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        process = psutil.Process(number)
        if process.create_time() == created:
            os.killpg(number, signal.SIGINT)
            process.wait()


@dataclass
class Search:
    """A running study, whose trials are DVC experiments in temporary folders, watched by a thread each."""

    args: argparse.Namespace
    settings: Settings
    folder: Path
    study: optuna.Study
    stop: Callable[[], int]  # the number of the signal that has arrived, or 0
    asking: threading.Lock = field(default_factory=threading.Lock)
    is_hopeless: bool = False  # all of the first trials failed: no more are started
    has_ended: bool = False  # after an error no process is left behind

    def optimize(self) -> None:
        """Runs trials, `args.jobs` at a time, until enough have ended, a signal arrives, or all of the first ones fail."""
        n_left = self.args.trials - len(self.trials("COMPLETE", "PRUNED"))
        with ThreadPoolExecutor(self.args.jobs) as pool:
            try:
                list(pool.map(self.run_trial, range(n_left)))
            finally:
                self.has_ended = True

    def run_trial(self, _: int) -> None:
        """Runs the next trial; tells Optuna, MLflow and the terminal how it ended."""
        if self.is_hopeless or self.has_ended or self.stop():
            return
        with self.asking:
            trial = self.study.ask({key: setting for key, setting in self.settings.items() if not isinstance(setting, str)})
        name = trial.user_attrs.get("experiment", f"{self.args.name}-{trial.number}")
        log = self.folder / f"{name}.log"
        has_finished = "experiment" in trial.user_attrs and name in experiments()  # after its search was killed
        state = TrialState.COMPLETE if has_finished else self.train(trial, name, log)
        value = self.result(trial, name) if state == TrialState.COMPLETE else None
        match state:
            case TrialState.COMPLETE:
                result = f"{self.args.metric} {value:.4f} after {len(self.reported(trial))} epochs"
            case TrialState.PRUNED:
                result = f"pruned after {len(self.reported(trial))} epochs"
            case TrialState.FAIL:
                trial.set_user_attr("error", error_line(log.read_text(errors="replace")))
                result = f"failed: {trial.user_attrs['error']}"
            case _:
                enqueue_again(self.study, trial)
                state, result = TrialState.FAIL, "interrupted"
        self.study.tell(trial, value, state)
        values = " ".join(f"{key}={as_text(value)}" for key, value in trial.params.items())
        print(f"{name}: {result}; {values}", flush=True)
        if len(self.trials("FAIL")) >= MAX_FAILURES and not any(each.intermediate_values for each in self.trials()):
            self.is_hopeless = True

    def train(self, trial: optuna.Trial, name: str, log: Path) -> TrialState:
        """Runs the experiment of a trial; WAITING if it was interrupted."""
        trial.set_user_attr("experiment", name)
        changes = [word for change in self.changes(trial.params) for word in ("--set-param", change)]
        n_threads = max(1, read_params().runtime.n_workers // self.args.jobs)
        shared = {"OMP_NUM_THREADS": str(n_threads)} if self.args.jobs > 1 else {}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # so that the stage runs under this Python
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "dvc", "--wait-for-lock", "exp", "run", "--temp", "--name", name, *changes, "train"],
                cwd=project_root(),
                env=shared | os.environ | {"PATH": path},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,  # Ctrl-C is for the search; its own SIGINT reaches both DVC and the stage
            )
        identity = process.pid, psutil.Process(process.pid).create_time()
        trial.set_user_attr("process", identity)
        run_key, state = "", TrialState.RUNNING
        try:
            while process.poll() is None:
                key, curve = live_curve(name, self.args.metric)
                run_key = key or run_key
                is_bad = self.report(trial, curve)
                if state == TrialState.RUNNING and (is_bad or self.has_ended or self.stop()):
                    state = TrialState.PRUNED if is_bad else TrialState.WAITING
                    os.killpg(process.pid, signal.SIGINT)  # the stage ends, DVC waits for it and removes its folder
                time.sleep(POLL_SECONDS)
        finally:
            _stop_process(*identity)
        if not process.returncode:
            state = TrialState.COMPLETE
        elif state == TrialState.RUNNING:
            state = TrialState.PRUNED if DIVERGED.search(log.read_text(errors="replace")) else TrialState.FAIL
        if run_key:
            tag_run(run_key, name, self.args.name, state)
        return state

    def reported(self, trial: optuna.Trial) -> dict[int, float]:
        """The metric by epoch, as far as Optuna has it."""
        return self.trials()[trial.number].intermediate_values

    def report(self, trial: optuna.Trial, curve: dict[int, float]) -> bool:
        """Reports the new epochs of a curve to Optuna; whether the trial should be pruned at one of them."""
        is_bad = False
        for epoch in sorted(curve.keys() - self.reported(trial)):
            trial.report(curve[epoch], epoch)
            is_bad = is_bad or trial.should_prune()
        return is_bad

    def result(self, trial: optuna.Trial, name: str) -> float:
        """The metric at the best epoch, as in metrics/headlines/train.json; reports the epochs that were not seen live."""
        history = pd.read_csv(io.StringIO(file_of(name, HISTORY_CSV)), index_col="epoch")
        self.report(trial, history[self.args.metric.replace(".", "_")].to_dict())
        figures = json.loads(file_of(name, headlines_json("train")))
        return float(figures["best_accuracy" if self.args.metric == "valid.accuracy" else "best_loss"])

    def conclude(self) -> None:
        """Prints the best trial and the command that trains with its values; writes a table of all trials."""
        complete, pruned, failed = (self.trials(state) for state in ("COMPLETE", "PRUNED", "FAIL"))
        errors = [trial.user_attrs["error"] for trial in failed if "error" in trial.user_attrs]
        if not complete:
            reason = errors[0] if errors else "all were pruned"
            raise UserError(f"search {self.args.name}: no trial completed ({reason}); see the logs in {self.folder}")
        table = self.study.trials_dataframe(TABLE).drop(columns="user_attrs_process", errors="ignore")
        write_table(table, self.folder / "trials.csv")
        best = self.study.best_trial
        print(f"{len(complete)} trials completed, {len(pruned)} pruned, {len(errors)} failed")
        print(
            f"best: {best.user_attrs['experiment']}, {self.args.metric} {best.value:.4f}; to run the pipeline with its values:"
        )
        print(" ".join(["dvc exp run", *(f"-S {change}" for change in self.changes(best.params))]))
        print(f"-> {self.folder / 'trials.csv'}; to compare, filter mlflow ui by tags.`{SEARCH_TAG}` = '{self.args.name}'")

    def trials(self, *states: str) -> list[FrozenTrial]:
        """All trials, or those in one of the states."""
        return self.study.get_trials(deepcopy=False, states=[TrialState[state] for state in states] or None)

    def changes(self, params: dict[str, Any]) -> list[str]:
        """All settings as `key=value`, with the proposed values."""
        return [f"{key}={as_text(params.get(key, setting))}" for key, setting in self.settings.items()]


def as_text(value: object) -> str:
    """A proposed value as the experiment gets it."""
    return f"{value:.{DIGITS}g}" if isinstance(value, float) else str(value)


def live_curve(name: str, metric: str) -> tuple[str, dict[int, float]]:
    """The key of an experiment's run and its metric by epoch; empty before it trains."""
    for journal in reversed(all_journals()):
        with suppress(FileNotFoundError):  # sent and removed
            entries = [entry for entry, _ in journal.read()]
            starts = [entry for entry in entries if entry["kind"] == "start"]
            if starts and starts[-1]["tags"].get(EXPERIMENT_TAG) == name:
                logged = [entry for entry in entries if entry["kind"] == "metrics" and metric in entry["values"]]
                return journal.key, {entry["step"]: entry["values"][metric] for entry in logged}
    return "", {}


def tag_run(key: str, name: str, search: str, state: TrialState) -> None:
    """Writes tags and status of a run whose process has ended into a journal, which is sent with the next one."""
    status = {TrialState.COMPLETE: "FINISHED", TrialState.FAIL: "FAILED"}.get(state, "KILLED")
    tags = {SEARCH_TAG: search} | ({PRUNED_TAG: "true"} if state == TrialState.PRUNED else {})
    journal = new_journal(key, store_name())
    with journal.held(LOOK_SECONDS):
        journal.append("start", name=name, tags=tags, of="")  # finds the run by its key
        journal.append("end", status=status)
    if state == TrialState.PRUNED:
        forget(key)


def file_of(name: str, file: Path) -> str:
    """The text of a file that git has of an experiment."""
    commit = experiments().get(name)
    if not commit:
        raise UserError(f"experiment {name} was removed after it finished; start a search with another --name")
    return git("show", f"{commit}:./{file}")


def experiments() -> dict[str, str]:
    """The commits of all experiments by name, whatever their baseline: HEAD may change during a search."""
    lines = git("for-each-ref", "--format=%(refname:lstrip=4) %(objectname)", EXPERIMENT_REFS).splitlines()
    return dict(line.rsplit(" ", 1) for line in lines)


def error_line(text: str) -> str:
    """The line of a log with the error: the first that begins with "error: ", or the last line."""
    lines = [line for line in text.splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("error: ")), lines[-1] if lines else "no output")
