"""DVC's experiments, read from git: finished ones are commits under refs/exps, all others are in DVC's queue.

`dvc exp show` builds DVC's whole index for each commit, which takes half a second of CPU; git gives the files of hundreds of
commits in one call.
"""

import json
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from fieldguide.core.errors import UserError
from fieldguide.core.headlines import HEADLINES, TRACKED
from fieldguide.core.names import flat
from fieldguide.core.paths import CHECKPOINT, LOCK, PARAMS, headlines_json, project_root

FILES = {"lock": LOCK, "params": PARAMS, **{stage: headlines_json(stage) for stage in HEADLINES}}  # read of a commit
EXPERIMENT_REFS = "refs/exps/*/*/*"  # of finished experiments: the baseline's commit in two parts, the name
WORKSPACE = "workspace"
YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Ref:
    """A commit, an experiment or the workspace, unread; `time` in seconds since 1970. state: as of `Experiment`."""

    name: str
    rev: str
    state: str
    time: float


@dataclass(frozen=True)
class Experiment:
    """An experiment, a commit (state `commit`) or the workspace.

    checkpoint: MD5, empty before the training has ended. metrics: the headlines, by MLflow's names. stale: stages whose
    metrics the revision inherited from another checkpoint; `metrics` is without them. stages: of dvc.lock.
    """

    name: str
    rev: str
    state: str
    checkpoint: str = ""
    params: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    stale: tuple[str, ...] = ()
    stages: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    time: float = field(default=0.0, compare=False)


def list_refs(all_commits: bool = False) -> list[Ref]:
    """The last commit (or all of them) and the finished experiments that began there, newest first."""
    which = ["--exclude=refs/exps/*", "--exclude=refs/stash", "--all"] if all_commits else ["--max-count=1", "HEAD"]
    names = ["--decorate-refs=refs/heads", "--decorate-refs=refs/tags", "--format=%H %ct %D"]
    commits = [line.split(" ", 2) for line in git("log", *names, *which).splitlines()]
    refs = [Ref(_branch_or_tag(decoration) or rev[:7], rev, "commit", float(time)) for rev, time, decoration in commits]
    baselines = {ref.rev for ref in refs}
    listed = git("for-each-ref", "--format=%(objectname) %(committerdate:unix) %(refname)", EXPERIMENT_REFS).splitlines()
    for rev, time, name in (line.split(" ", 2) for line in listed):
        _, _, start, rest, experiment = name.split("/", 4)
        if start + rest in baselines:
            refs.append(Ref(experiment, rev, "success", float(time)))
    return sorted(refs, key=lambda ref: (ref.time, ref.state == "success"), reverse=True)


def _branch_or_tag(decoration: str) -> str:
    """The first name of git's `HEAD -> master, tag: v1`; empty if there is none."""
    names = [name.removeprefix("HEAD -> ").removeprefix("tag: ") for name in decoration.split(", ")]
    return next((name for name in names if name not in ("", "HEAD")), "")


def read_experiments(refs: Iterable[Ref]) -> list[Experiment]:
    """The content of commits, in their order."""
    refs = list(refs)
    texts = contents(f"{ref.rev}:./{file}" for ref in refs for file in FILES.values())
    return [_experiment(ref, dict(zip(FILES, texts, strict=False))) for ref in refs]


def workspace() -> Experiment:
    """The project's folder as it is."""
    files = {name: project_root() / file for name, file in FILES.items()}
    texts = {name: file.read_bytes() if file.exists() else b"" for name, file in files.items()}
    return _experiment(Ref(WORKSPACE, WORKSPACE, "commit", float("inf")), texts)


def unfinished(refs: Iterable[Ref]) -> list[Experiment]:
    """Experiments from the commits among `refs` that are running or queued or have failed, with what DVC knows of them."""
    from dvc.repo import Repo
    from dvc.repo.experiments.collect import collect_active, collect_failed, collect_queued

    baselines = [ref.rev for ref in refs if ref.state == "commit"]
    found = []
    with Repo(str(project_root())) as repo:
        for collect in (collect_active, collect_queued, collect_failed):
            for group in (group for groups in collect(repo, baselines).values() for group in groups):
                state = group.executor.state if group.executor else "failed"
                for revision in group.revs:
                    params = revision.data.params.get(str(PARAMS), {}).get("data") if revision.data else None
                    time = revision.data.timestamp.timestamp() if revision.data and revision.data.timestamp else float("inf")
                    name = revision.name or group.name or ""
                    found.append(Experiment(name, revision.rev[:9], state, params=flat(params or {}), time=time))
    return found


def experiments(all_commits: bool = False) -> list[Experiment]:
    """The finished experiments of the last commit, or of all commits, and these commits, newest first."""
    return read_experiments(list_refs(all_commits))


def _experiment(ref: Ref, texts: dict[str, bytes]) -> Experiment:
    """The experiment of a commit or of the workspace, by the content of its files."""
    stages = (yaml.load(texts["lock"], YAML) or {}).get("stages") or {}
    outs = {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", [])}
    stale = tuple(  # run on another output than the present one
        name
        for name, stage in stages.items()
        if any(outs.get(dep["path"], dep["md5"]) != dep["md5"] for dep in stage.get("deps", []))
    )
    checkpoint = outs.get(str(CHECKPOINT), "")
    counted = [stage for stage in HEADLINES if checkpoint and texts[stage] and stage in stages and stage not in stale]
    values = {name: value for stage in counted for name, value in json.loads(texts[stage]).items()}
    metrics = {tracked: float(values[name]) for name, tracked in TRACKED.items() if name in values}
    params = flat(yaml.load(texts["params"], YAML) or {})
    return Experiment(ref.name, ref.rev[:9], ref.state, checkpoint, params, metrics, stale, stages, ref.time)


def contents(objects: Iterable[str]) -> Iterator[bytes]:
    """The content of each of git's objects (`<rev>:./<path>`), by one process; empty for one that does not exist."""
    names = "\n".join(objects)
    if not names:
        return
    answer = subprocess.run(
        ["git", "cat-file", "--batch"], cwd=project_root(), input=names.encode(), capture_output=True, check=True
    ).stdout
    position = 0
    for _ in names.splitlines():
        header, position = answer[position : answer.index(b"\n", position)], answer.index(b"\n", position) + 1
        size = 0 if header.endswith(b" missing") else int(header.rpartition(b" ")[2])
        yield answer[position : position + size]
        position += 0 if header.endswith(b" missing") else size + 1


def git(*arguments: str) -> str:
    """What git prints in the project; raises `UserError` if it fails."""
    answer = subprocess.run(["git", *arguments], cwd=project_root(), capture_output=True, text=True, check=False)
    if answer.returncode:
        said = (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"git {arguments[0]}: {said}; experiments need a git repository with a commit")
    return answer.stdout
