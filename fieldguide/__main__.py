"""python -m fieldguide …: the command line. `predict` with a file needs NumPy, Pillow and onnxruntime only."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fieldguide.errors import run_command

FORMATS = ("table", "csv", "json", "jsonl")
SOME_FAILED = 3  # exit status; 1 is a mistake that stops everything, 2 a wrong command line
BROKEN_PIPE = 141  # what a shell reports of a command that SIGPIPE ended


def parser() -> argparse.ArgumentParser:
    commands = argparse.ArgumentParser(prog="python -m fieldguide", description="Names the species on photographs.")
    subcommands = commands.add_subparsers(dest="command", required=True)
    predict = subcommands.add_parser(
        "predict",
        help="name what photographs show",
        description="Names what photographs show, with probabilities.",
        epilog="Exit status: 0 all went well, 1 stopped by an error, 3 some photographs could not be read (they are named).",
    )
    predict.add_argument(
        "sources", nargs="+", metavar="PHOTO|FOLDER|ZIP|-", help="- is one photograph or zip on standard input"
    )
    predict.add_argument(
        "--model",
        type=Path,
        default=Path("models/model.onnx"),
        metavar="FILE|models:/…",
        help="a file, or a registered model such as models:/fieldguide@champion; default: %(default)s",
    )
    predict.add_argument("--top", type=_count, default=5, metavar="K", help="answers for each photograph, default %(default)s")
    predict.add_argument("--format", choices=FORMATS, default="table", help="default: %(default)s")
    predict.add_argument("--annotate", type=Path, metavar="DIR", help="write the photographs with their labels into DIR")
    predict.add_argument("--heatmap", action="store_true", help="with --annotate: show where the network looked")
    predict.add_argument("--threads", type=_count, metavar="N", help="default: one for each core that may be used")
    champion = subcommands.add_parser(
        "champion",
        help="make a run's model the one in use, if it beats the present one",
        description="Makes a run's model models:/fieldguide@champion, if it beats the present one on the same test images.",
        epilog="Exit status: 0 it is the champion, 1 it is not.",
    )
    champion.add_argument("run", nargs="?", metavar="RUN", help="its name, experiment or id; default: the best on valid")
    champion.add_argument("--force", action="store_true", help="promote it though it does not win, or cannot be compared")
    return commands


def main(arguments: Sequence[str] | None = None) -> None:
    commands = parser()
    chosen = commands.parse_args(arguments)
    if chosen.command == "champion":
        from fieldguide.champion import champion

        sys.exit(0 if champion(chosen) else 1)
    if chosen.heatmap and not chosen.annotate:
        commands.error("--heatmap needs --annotate DIR")
    from fieldguide.predict import predict  # only now: --help should not wait for onnxruntime
    from fieldguide.registry import model_file

    try:
        chosen.model = model_file(chosen.model)
        n_failed = predict(chosen)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)
    if n_failed:
        sys.exit(SOME_FAILED)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number of at least 1")
    return int(text)


if __name__ == "__main__":
    run_command(main)
