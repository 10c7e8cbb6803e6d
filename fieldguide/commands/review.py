"""`fieldguide review`: a local page on which a person decides about suspected labels, or about new photographs.

Ends on Ctrl-C or SIGTERM after the requests in flight. Each decision is on disk before it is answered.
"""

import argparse
import getpass
import hashlib
import logging
import signal
import subprocess
import webbrowser
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from fieldguide.commands.predict import BATCH, counted_outcomes, outcomes_of, photos_in
from fieldguide.commands.predict_output import Photo
from fieldguide.core.corrections import BY_RULE
from fieldguide.core.errors import UserError
from fieldguide.core.formats import MAX_PIXELS, counted, readable
from fieldguide.core.machine import n_cores
from fieldguide.core.paths import CORRECTIONS, MANIFEST
from fieldguide.onnx.classifier import OnnxClassifier, Prediction
from fieldguide.review.additions import AdditionDesk, NewPhotograph
from fieldguide.review.app import SETTINGS, create_app
from fieldguide.review.items import Desk, Suggestion
from fieldguide.review.labels import Images, LabelDesk, Tables, read_images
from fieldguide.sources.members import LeftOut, is_writable
from fieldguide.tracking.registry import model_file
from fieldguide.web.server import Server
from fieldguide.web.settings import LOOPBACK

PROJECT = Path()
ADDITIONS = Path("data/additions")
PAST = {"keep": "kept", "relabel": "relabelled", "drop": "dropped", "withdrawn": "withdrawn"}


def review(args: argparse.Namespace) -> None:
    """Serves the page until SIGTERM or SIGINT, or accepts what is certain enough."""
    if args.sources and args.accept_above is not None:
        args.parser.error("--accept-above is about the labels of the project; leave out PHOTOS")
    if not args.sources and (args.into or args.all or args.model):
        args.parser.error("--model, --into and --all are about new photographs; name PHOTOS")
    if args.host not in LOOPBACK:
        raise UserError(f"--host {args.host}: the page is for this machine only; use one of {', '.join(LOOPBACK)}")
    by = person(args.by)
    if args.sources:
        with ExitStack() as stack:
            serve_desk(addition_desk(args, by, stack), args, args.max_megapixels * 1_000_000)
        return
    desk = LabelDesk(PROJECT, by)
    for note in desk.notes:
        print(note)
    if args.accept_above is None:
        serve_desk(desk, args, MAX_PIXELS)
    else:
        accept(desk, args.accept_above)


def person(given: str | None) -> str:
    """The name for the column `by`: as given, of git, or of the login; raises `UserError` for one that is no person's."""
    name = (given or _git_user() or _login()).strip()
    if name == BY_RULE or not is_writable(name):
        raise UserError(f"--by {name!r}: {BY_RULE!r} and control characters are no person's name; use another --by NAME")
    if not name:
        raise UserError("your name is not known; give it with --by NAME, or set it with: git config user.name NAME")
    return name


def _git_user() -> str:
    try:
        found = subprocess.run(["git", "config", "user.name"], capture_output=True, text=True, errors="replace", check=False)
    except OSError:  # no git
        return ""
    return found.stdout.strip()


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user without a name, as in some containers
        return ""


def accept(desk: LabelDesk, score: float) -> None:
    """Relabels the suspects above `score` and prints how many."""
    relabelled, left = desk.accept_above(score)
    splits = ", ".join(f"{n} {split}" for split, n in sorted(relabelled.items()))
    print(f"{relabelled.total()} relabelled with a score above {score:g}{f' ({splits})' if splits else ''}")
    for reason, n in left.items():
        print(f"{n} left as they are: {reason}")
    print(f"-> {CORRECTIONS}; next: dvc repro")


def addition_desk(args: argparse.Namespace, by: str, stack: ExitStack) -> AdditionDesk:
    """The photographs of which the model is not sure; `stack` closes archives."""
    if "-" in args.sources:
        raise UserError("-: standard input cannot be read again for the page; save it to a file")
    left_out: list[LeftOut] = []
    into: Path = args.into or ADDITIONS
    found = [photo for source in args.sources for photo in photos_in(source, stack, left_out)]
    photos = [photo for photo in found if not Path(photo.name).resolve().is_relative_to(into.resolve())]
    if n_copies := len(found) - len(photos):
        print(f"{n_copies} photographs are in {into} and not offered again")
    if not photos:
        raise UserError(f"{' '.join(args.sources)}: no photograph that is read ({readable()})")
    many = len(photos) > BATCH
    n_threads = n_cores()
    classifier = OnnxClassifier(model_file(args.model or args.default_model), 1 if many else n_threads)
    outcomes = outcomes_of(classifier, photos, n_threads if many else 1, args)
    verdicts: Counter[str] = Counter()
    offered: dict[str, NewPhotograph] = {}
    for photo, outcome in counted_outcomes(photos, zip(photos, outcomes, strict=True), Counter()):
        if isinstance(outcome, Prediction):
            verdicts[outcome.verdict] += 1
            if args.all or outcome.verdict != "sure":
                new = new_photograph(photo, outcome)
                offered.setdefault(new.sha256, new)
    if left_out:
        print(f"left out: {counted(file.kind for file in left_out)}")
    print(f"{len(photos)} photographs: {', '.join(f'{n} {verdict}' for verdict, n in sorted(verdicts.items())) or 'none read'}")
    return AdditionDesk(list(offered.values()), classifier.class_names, into, by, project_images())


def new_photograph(photo: Photo, prediction: Prediction) -> NewPhotograph:
    suggestions = tuple(Suggestion(answer.name, answer.probability) for answer in prediction.answers)
    sha256 = hashlib.sha256(photo.read()).hexdigest()
    return NewPhotograph(photo.name, photo.read, sha256, prediction.verdict, suggestions)


def project_images() -> Images | None:
    """The project's images, for examples; None outside a project."""
    return read_images(PROJECT, Tables([], [], [], []))[0] if (PROJECT / MANIFEST).is_file() else None


def serve_desk(desk: Desk, args: argparse.Namespace, max_pixels: int) -> None:
    """Serves the page of a desk; at the end prints what was decided and what to do next."""
    if not desk.items:
        print("nothing to review")
        return
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    app = create_app(desk, max_pixels)
    try:
        server = Server(app, args.host, args.port, SETTINGS)
    except (OSError, ValueError) as error:
        raise UserError(f"{args.host}:{args.port}: cannot listen ({error}); use another --port") from error
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    address = f"http://{f'[{args.host}]' if ':' in args.host else args.host}:{server.effective_port}/"
    print(f"{progress(desk)}; you are {desk.by}. End with Ctrl-C", flush=True)
    print(f"-> {address}", flush=True)
    if args.open:
        webbrowser.open(address)
    server.run()
    stored = app.extensions["review"].stored
    said = ", ".join(f"{stored[key]} {text}" for key, text in PAST.items() if stored[key])
    print(f"{said or 'nothing decided'}; {progress(desk)}; next: {desk.after}", flush=True)


def progress(desk: Desk) -> str:
    decisions = desk.decisions()
    return f"{sum(sha256 in decisions for sha256 in desk.items)} of {len(desk.items)} decided"
