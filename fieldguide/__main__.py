"""The command line: `fieldguide COMMAND …` or `python -m fieldguide`. Imports what a command needs when it runs."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fieldguide.commands import serve
from fieldguide.core.errors import needs_extra, run_command

FORMATS = ("table", "csv", "json", "jsonl")
SOME_FAILED = 3  # exit status; 1 is an error, 2 an invalid command line
SEEDS = 2**31  # limit of Optuna and NumPy
EXTRAS = {"predict": "", "serve": "serve", "runs": "train", "sync": "train", "champion": "train", "search": "search"}
BROKEN_PIPE = 141  # exit status of a command that SIGPIPE ended, in a shell


def parser() -> argparse.ArgumentParser:
    every = argparse.ArgumentParser(prog="fieldguide", description="Identify species in photographs.")
    commands = every.add_subparsers(dest="command", required=True)
    predict = commands.add_parser(
        "predict",
        help="classify photographs",
        description="Classify photographs and print the most probable classes.",
        epilog="Exit status: 0 success, 1 error, 3 some photographs could not be read (listed on standard error).",
    )
    predict.add_argument(
        "sources", nargs="+", metavar="PHOTO|FOLDER|ZIP|-", help="- reads a photograph or zip from standard input"
    )
    predict.add_argument(
        "--model",
        type=Path,
        default=Path("models/model.onnx"),
        metavar="FILE|models:/…",
        help="model file, or a registered model such as models:/fieldguide@champion; default: %(default)s",
    )
    predict.add_argument("--top", type=_count, default=5, metavar="K", help="answers per photograph; default: %(default)s")
    predict.add_argument("--format", choices=FORMATS, default="table", help="default: %(default)s")
    predict.add_argument("--annotate", type=Path, metavar="DIR", help="write the photographs with their labels into DIR")
    predict.add_argument("--heatmap", action="store_true", help="with --annotate: overlay the class activation map")
    predict.add_argument("--threads", type=_count, metavar="N", help="default: one per available core")
    predict.set_defaults(run=_predict, parser=predict)
    page = commands.add_parser(
        "serve", help="serve the web page and its API", description=serve.DESCRIPTION, epilog=serve.EPILOG
    )
    serve.add_options(page)
    page.set_defaults(run=serve.serve, parser=page)
    runs = commands.add_parser(
        "runs",
        help="compare DVC's experiments with MLflow's runs",
        description="List DVC's experiments with their MLflow runs, and the differences.",
    )
    runs.add_argument("--format", choices=("table", "json", "csv"), default="table", help="default: %(default)s")
    runs.set_defaults(run=_runs)
    sync = commands.add_parser(
        "sync",
        help="send unsent results to MLflow",
        description="Send what earlier runs could not send, and finished DVC experiments that MLflow lacks.",
    )
    sync.set_defaults(run=_sync)
    for command in (runs, sync):
        command.add_argument(
            "-A", "--all-commits", action="store_true", help="experiments of all commits; default: of the last one"
        )
    champion = commands.add_parser(
        "champion",
        help="promote a run's model if it beats the champion",
        description="Promote a run's model to models:/fieldguide@champion if it beats the champion on the same test images.",
        epilog="Exit status: 0 the model is the champion, 1 it is not.",
    )
    champion.add_argument("name", nargs="?", metavar="RUN", help="name, experiment or id of a run; default: the best on valid")
    champion.add_argument("--force", action="store_true", help="promote it even if it does not win or cannot be compared")
    champion.set_defaults(run=_champion)
    search = commands.add_parser(
        "search",
        help="search hyperparameters",
        description="Search hyperparameters with Optuna and DVC experiments, or resume an interrupted search.",
    )
    search.add_argument("--name", default="search", help="prefix of the experiments NAME-0, NAME-1, …; default: %(default)s")
    search.add_argument(
        "-S",
        "--set-param",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a search space, 'train.lr=log(0.001,0.02)', 'augment.cutmix=uniform(0,0.6)', 'train.batch_size=int(32,128,32)',"
        " 'train.sampling=choice(shuffle,balanced)', or a fixed value, train.epochs=20",
    )
    search.add_argument(
        "--trials",
        type=_count,
        default=20,
        metavar="N",
        help="total number of trials, including earlier starts; default: %(default)s",
    )
    search.add_argument("--jobs", type=_count, default=1, metavar="N", help="parallel trials; default: %(default)s")
    search.add_argument(
        "--metric",
        choices=("valid.accuracy", "valid.loss"),
        default="valid.accuracy",
        help="objective, at the best epoch; default: %(default)s",
    )
    search.add_argument("--pruner", choices=("median", "hyperband", "none"), default="median", help="default: %(default)s")
    search.add_argument("--warmup-epochs", type=_count, metavar="N", help="epochs without pruning; default: a quarter")
    search.add_argument(
        "--startup-trials", type=_count, default=4, metavar="N", help="trials without pruning; default: %(default)s"
    )
    search.add_argument("--seed", type=_seed, default=1, help="seed of the sampler (TPE); default: %(default)s")
    search.set_defaults(run=_search, parser=search)
    return every


def main(arguments: Sequence[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    try:
        with needs_extra(f"fieldguide {args.command}", EXTRAS[args.command]):
            n_failed = args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)
    if n_failed:
        sys.exit(SOME_FAILED)


def _predict(args: argparse.Namespace) -> int:
    if args.heatmap and not args.annotate:
        args.parser.error("--heatmap needs --annotate DIR")
    from fieldguide.commands.predict import predict  # imported late: --help does not wait for onnxruntime
    from fieldguide.tracking.registry import model_file

    args.model = model_file(args.model)
    return predict(args)


def _runs(args: argparse.Namespace) -> None:
    from fieldguide.commands.runs import show

    show(args.format, args.all_commits)


def _sync(args: argparse.Namespace) -> None:
    from fieldguide.commands.runs import sync

    sync(args.all_commits)


def _champion(args: argparse.Namespace) -> None:
    from fieldguide.commands.champion import challenge

    if not challenge(args.name, args.force):
        sys.exit(1)


def _search(args: argparse.Namespace) -> None:
    from fieldguide.commands.search import search

    search(args)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be an integer ≥ 1")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= SEEDS:
        raise argparse.ArgumentTypeError(f"{text} must be an integer in [0, {SEEDS - 1}]")
    return int(text)


def console() -> None:
    """Entry point of the command `fieldguide`."""
    run_command(main)


if __name__ == "__main__":
    console()
