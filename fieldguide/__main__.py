"""python -m fieldguide predict …: the command line, which needs NumPy, Pillow and onnxruntime only; others need more."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fieldguide.errors import run_command

OTHERS = {"search": "search parameters of the training by experiments"}  # each in a module of its name, with its own parser
FORMATS = ("table", "csv", "json", "jsonl")
SOME_FAILED = 3  # exit status; 1 is a mistake that stops everything, 2 a wrong command line
BROKEN_PIPE = 141  # what a shell reports of a command that SIGPIPE ended


def parser() -> argparse.ArgumentParser:
    commands = argparse.ArgumentParser(prog="python -m fieldguide", description="Names the species on photographs.")
    by_name = commands.add_subparsers(dest="command", required=True)
    for name, words in OTHERS.items():
        by_name.add_parser(name, help=words)
    predict = by_name.add_parser(
        "predict",
        help="name what photographs show",
        description="Names what photographs show, with probabilities.",
        epilog="Exit status: 0 all went well, 1 stopped by an error, 3 some photographs could not be read (they are named).",
    )
    predict.add_argument(
        "sources", nargs="+", metavar="PHOTO|FOLDER|ZIP|-", help="- is one photograph or zip on standard input"
    )
    predict.add_argument("--model", type=Path, default=Path("models/model.onnx"), help="default: %(default)s")
    predict.add_argument("--top", type=_count, default=5, metavar="K", help="answers for each photograph, default %(default)s")
    predict.add_argument("--format", choices=FORMATS, default="table", help="default: %(default)s")
    predict.add_argument("--annotate", type=Path, metavar="DIR", help="write the photographs with their labels into DIR")
    predict.add_argument("--heatmap", action="store_true", help="with --annotate: show where the network looked")
    predict.add_argument("--threads", type=_count, metavar="N", help="default: one for each core that may be used")
    return commands


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in OTHERS:
        importlib.import_module(f"fieldguide.{arguments[0]}").main(arguments[1:])
        return
    commands = parser()
    chosen = commands.parse_args(arguments)
    if chosen.heatmap and not chosen.annotate:
        commands.error("--heatmap needs --annotate DIR")
    from fieldguide.predict import predict  # only now: --help should not wait for onnxruntime

    try:
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
