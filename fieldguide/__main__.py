"""The command line: `fieldguide COMMAND …` or `python -m fieldguide`. Imports what a command needs when it runs."""

import argparse
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fieldguide.commands.version import version_text
from fieldguide.core.errors import needs_extra, run_command
from fieldguide.core.formats import MAX_MEGAPIXELS, MAX_PIXELS
from fieldguide.core.paths import ONNX
from fieldguide.web.settings import MIB, PREFIX, Settings

COMMANDS = {  # the function in fieldguide.commands, which returns the exit status, and the extra that it needs
    "predict": ("predict:predict", ""),
    "serve": ("serve:serve", "serve"),
    "review": ("review:review", "serve"),
    "runs": ("runs:runs", "train"),
    "sync": ("runs:sync", "train"),
    "champion": ("champion:champion", "train"),
    "folds": ("folds:folds", "train"),
    "search": ("search:search", "search"),
    "recipe": ("recipe:recipe", "train"),
}
MODEL_TEXT = "model file, or a registered model such as models:/fieldguide@champion"
PIXELS_TEXT = "maximum million pixels per image"
Command = Callable[..., argparse.ArgumentParser]
"""Name, help and epilogue of a command to its parser."""
BROKEN_PIPE = 141  # exit status of a command that SIGPIPE ended, in a shell


class _Version(argparse.Action):
    """Prints the version; asks git for the commit only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"fieldguide {version_text()}")
        parser.exit()


def parser() -> argparse.ArgumentParser:
    every = argparse.ArgumentParser(prog="fieldguide", description="Identify species in photographs.")
    every.add_argument("--version", action=_Version, nargs=0, help="print the version and the commit")
    commands = every.add_subparsers(dest="command", required=True)

    def command(name: str, text: str, more: str = "") -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=more)
        added.set_defaults(parser=added)
        return added

    for add in (_predict, _serve, _review, _runs_and_sync, _folds, _champion, _recipe, _search):
        add(command)
    return every


def _predict(command: Command) -> None:
    predict = command(
        "predict",
        "classify photographs and print the most probable classes",
        "Exit status: 0 success, 1 error, 3 some photographs could not be read or sidecars not written (listed on"
        " standard error)."
        " CSV and JSON are UTF-8; a byte of a file name that is not is written as \\udcXX.",
    )
    predict.add_argument(
        "sources",
        nargs="+",
        type=_text,
        metavar="PHOTO|FOLDER|ZIP|-",
        help="- reads a photograph, zip or tar from standard input",
    )
    _option(predict, "--model", ONNX, _path, MODEL_TEXT, metavar="FILE|models:/…")
    _option(predict, "--top", 5, _integer(1), "answers per photograph", metavar="K")
    _option(predict, "--format", "table", str, "form of the output", choices=("table", "csv", "json", "jsonl", "timelapse"))
    predict.add_argument("--output", type=_path, metavar="FILE", help="write the output into FILE, once it is complete")
    predict.add_argument("--resume", action="store_true", help="with --output: continue an interrupted run")
    xmp_text = "write PHOTO.xmp beside each photograph with a certain answer: keywords for photo managers"
    predict.add_argument("--xmp", action="store_true", help=xmp_text)
    predict.add_argument("--annotate", type=_path, metavar="DIR", help="write the photographs with their labels into DIR")
    predict.add_argument("--heatmap", action="store_true", help="with --annotate: overlay the class activation map")
    _option(predict, "--max-megapixels", MAX_MEGAPIXELS, _integer(1, MAX_PIXELS // 1_000_000), PIXELS_TEXT, metavar="N")
    predict.add_argument("--threads", type=_integer(1), metavar="N", help="default: one per available core")


def _serve(command: Command) -> None:
    serve = command(
        "serve",
        "serve the web page and the JSON API of a model",
        "To serve other machines, behind a proxy on this one that terminates TLS and sets the X-Forwarded headers:"
        " fieldguide serve --trusted-proxy 1 --allowed-host guide.example.org",
    )
    _option(serve, "--host", "127.0.0.1", _text, "address to listen on")
    _option(serve, "--port", 8000, _integer(0, 65_535), "port; 0 = any free port")
    serve.add_argument("--allowed-host", action="append", default=[], type=_text, help="accepted Host header; may be repeated")
    proxies_text = "number of proxies in front, whose X-Forwarded-For, -Proto, -Host, -Port and -Prefix headers are believed"
    _option(serve, "--trusted-proxy", Settings.trusted_proxies, _integer(0), proxies_text, metavar="N")
    serve.add_argument("--prefix", default="", type=_prefix, help="path before the page's URLs, such as /guide")
    _option(serve, "--model", Settings.model, _path, MODEL_TEXT)
    _option(serve, "--manifest", Settings.manifest, _path, "manifest that lists the example photographs")
    _option(serve, "--raw", Settings.raw, _path, "folder of the example photographs")
    _option(serve, "--max-mib", Settings.max_body_bytes // MIB, _integer(1), "maximum MiB per request")
    _option(serve, "--max-files", Settings.max_files, _integer(1), "maximum images per request")
    limit = Settings.max_pixels // 1_000_000
    _option(serve, "--max-megapixels", limit, _integer(1, MAX_PIXELS // 1_000_000), PIXELS_TEXT, metavar="N")
    _option(serve, "--max-images", Settings.max_images, _integer(1), "maximum images in the server at once; others get 503")
    _option(serve, "--max-batch", Settings.max_batch, _integer(1), "images per run of the network")
    _option(serve, "--workers", Settings.n_workers, _integer(0), "batches decoded and computed at a time; 0 = one per core")


def _review(command: Command) -> None:
    review = command(
        "review",
        "decide about suspected labels, or about new photographs, on a page for this machine only",
        "Decisions about labels go into data/corrections.csv, which dvc repro applies. With PHOTOS: the photographs of which"
        " the model is not sure; those whose class you name are copied into folders of classes.",
    )
    review.add_argument("sources", nargs="*", type=_text, metavar="PHOTOS", help="photograph, folder or archive, as of predict")
    _option(review, "--host", "127.0.0.1", _text, "loopback address to listen on")
    _option(review, "--port", 8001, _integer(0, 65_535), "port; 0 = any free port")
    review.add_argument("--by", type=_text, metavar="NAME", help="who decides; default: git's user.name, or your login")
    review.add_argument("--open", action="store_true", help="open the page in the browser")
    accept_text = "without the page: relabel each suspected label whose score is above N; decisions of people stay"
    review.add_argument("--accept-above", type=_share, metavar="N", help=accept_text)
    review.add_argument("--model", type=_path, metavar="FILE|models:/…", help=f"for PHOTOS: {MODEL_TEXT}; default: {ONNX}")
    review.add_argument("--into", type=_path, metavar="DIR", help="for PHOTOS: folder of the copies; default: data/additions")
    review.add_argument("--all", action="store_true", help="for PHOTOS: also those of which the model is sure")
    _option(review, "--max-megapixels", MAX_MEGAPIXELS, _integer(1, MAX_PIXELS // 1_000_000), PIXELS_TEXT, metavar="N")
    review.set_defaults(default_model=ONNX, top=5, annotate=None, heatmap=False)  # of predict


def _runs_and_sync(command: Command) -> None:
    runs = command("runs", "list DVC's experiments with their MLflow runs, and the differences")
    _option(runs, "--format", "table", str, "form of the output", choices=("table", "json", "csv"))
    _option(runs, "-n", 20, _integer(1), "number of experiments and runs, newest first", metavar="N")
    runs.add_argument("--all", action="store_true", help="all experiments and runs")
    sync = command("sync", "send to MLflow what earlier runs could not send, and finished DVC experiments that it lacks")
    sync.add_argument("--again", action="store_true", help="look at experiments that the store was given before too")
    for each in (runs, sync):
        each.add_argument(
            "-A", "--all-commits", action="store_true", help="experiments of all commits; default: of the last one"
        )


def _folds(command: Command) -> None:
    folds = command(
        "folds",
        "join the test predictions of a cross-validation's experiments, and list the images that they contradict",
        "Exit status: 0 success, 1 error, 3 some folds are missing.",
    )
    folds.add_argument("names", nargs="*", type=_text, metavar="EXPERIMENT", help="default: all finished ones with folds")
    folds.add_argument("-A", "--all-commits", action="store_true", help="experiments of all commits; default: of the last one")


def _champion(command: Command) -> None:
    champion = command(
        "champion",
        "promote a run's model to models:/fieldguide@champion if it beats the champion on the same test images",
        "Exit status: 0 the model is the champion, 1 it is not.",
    )
    champion.add_argument(
        "name", nargs="?", type=_text, metavar="RUN", help="name, experiment or id of a run; default: the best on valid"
    )
    champion.add_argument("--force", action="store_true", help="promote it even if it does not win or cannot be compared")


def _recipe(command: Command) -> None:
    recipe = command(
        "recipe",
        "write a recipe or single values into params.yaml; without arguments, list the recipes",
        "Values are taken literally: fieldguide recipe transfer data.dataset=folder 'data.path=~/My photos (2)'",
    )
    recipe.add_argument("words", nargs="*", metavar="RECIPE | KEY=VALUE", help="name or path of a recipe, then values")


def _search(command: Command) -> None:
    search = command("search", "search hyperparameters with Optuna and DVC experiments, or resume an interrupted search")
    _option(search, "--name", "search", _text, "prefix of the experiments NAME-0, NAME-1, …")
    search.add_argument(
        "-S",
        "--set-param",
        action="append",
        default=[],
        type=_text,
        metavar="KEY=VALUE",
        help="a search space, 'train.lr=log(0.001,0.02)', 'augment.cutmix=uniform(0,0.6)', 'train.batch_size=int(32,128,32)',"
        " 'train.sampling=choice(shuffle,balanced)', or a fixed value, train.epochs=20",
    )
    _option(search, "--trials", 20, _integer(1), "total number of trials, including earlier starts", metavar="N")
    _option(search, "--jobs", 1, _integer(1), "parallel trials", metavar="N")
    _option(search, "--metric", "valid.accuracy", str, "objective, at the best epoch", choices=("valid.accuracy", "valid.loss"))
    _option(search, "--pruner", "median", str, "how bad trials are ended", choices=("median", "hyperband", "none"))
    search.add_argument("--warmup-epochs", type=_integer(1), metavar="N", help="epochs without pruning; default: a quarter")
    _option(search, "--startup-trials", 4, _integer(1), "trials without pruning", metavar="N")
    _option(search, "--seed", 1, _integer(0, 2**31 - 1), "seed of the sampler (TPE)")  # NumPy's bound


def _option(
    parser: argparse.ArgumentParser, name: str, default: object, kind: Callable[[str], Any], text: str, **more: Any
) -> None:
    """Adds an option whose help ends with its default."""
    parser.add_argument(name, default=default, type=kind, help=f"{text}; default: %(default)s", **more)


def _text(text: str) -> str:
    """A text with something in it: an unset variable of a shell must not mean the current folder, or every host."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is blank; a variable of your shell may be unset")
    return text


def _path(text: str) -> Path:
    return Path(_text(text))


def _prefix(text: str) -> str:
    """A path such as `/guide`, as `fieldguide.web` accepts it; empty and `/` are none."""
    path = text.rstrip("/")
    if path and not re.fullmatch(PREFIX, path, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} must be a path such as /guide, of letters, digits and . _ ~ -")
    return path


def _share(text: str) -> float:
    """A number in (0, 1]."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text} must be a number in (0, 1]")
    return number


def _integer(low: int, high: int | None = None) -> Callable[[str], int]:
    """Converts an option to an integer of at least `low` and at most `high`."""
    allowed = f"≥ {low}" if high is None else f"in [{low}, {high}]"

    def convert(text: str) -> int:
        if not text.isdecimal() or int(text) < low or (high is not None and int(text) > high):
            raise argparse.ArgumentTypeError(f"{text} must be an integer {allowed}")
        return int(text)

    return convert


def main(arguments: Sequence[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    try:
        function, extra = COMMANDS[args.command]
        with needs_extra(f"fieldguide {args.command}", extra):
            if args.command == "predict":
                from fieldguide.tracking.registry import model_file

                args.model = model_file(args.model)
            status = pkgutil.resolve_name(f"fieldguide.commands.{function}")(args)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)
    if status:
        sys.exit(status)


def console() -> None:
    """Entry point of the command `fieldguide`."""
    run_command(main)


if __name__ == "__main__":
    console()
