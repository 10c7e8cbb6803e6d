"""The Flask application of `fieldguide review`: one image at a time, plain forms, and a script that makes them quicker.

A decision is on disk before it is answered. Only this machine may ask: see `check_sender`.
"""

import hashlib
import secrets
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from flask import Blueprint, Flask, Response, current_app, redirect, render_template, request, url_for
from flask.json.provider import DefaultJSONProvider
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as BaseResponse

from fieldguide import web
from fieldguide.core.corrections import Correction
from fieldguide.core.errors import UserError
from fieldguide.core.formats import MAX_PIXELS
from fieldguide.core.images import UnreadableImage, encode_jpeg, inspect
from fieldguide.core.machine import n_cores
from fieldguide.core.names import common_name
from fieldguide.review.items import KINDS, Desk, Item, ManifestImage, NotStored, Stale, in_words, last_decision, version_of
from fieldguide.web.app import HEADERS, YEAR_S, asset_address, bare_host, day, percent, refuse_other_sites, wants_page
from fieldguide.web.problems import MEDIA_TYPE, Problem, code_of
from fieldguide.web.settings import LOOPBACK, Settings

HOSTS = frozenset(map(bare_host, LOOPBACK))
LARGE_PX, SMALL_PX = 1280, 320  # larger side of the photograph and of an example
N_LARGE, N_SMALL = 16, 512  # kept in memory
SETTINGS = Settings(max_images=8, max_body_bytes=1 << 16)  # of the server: a form is small
N_KEYS, N_COMPARED = 5, 3  # suggestions with a number key, and with examples
pages = Blueprint("pages", __name__)


@dataclass(frozen=True)
class Filter:
    """Which items are offered: those of a kind and of a class; empty means all."""

    kind: str = ""
    class_name: str = ""

    def takes(self, item: Item) -> bool:
        return (not self.kind or self.kind in item.kinds) and (not self.class_name or self.class_name in item.class_names)

    def query(self) -> dict[str, str]:
        """As the parameters of a URL."""
        return {key: value for key, value in (("kind", self.kind), ("class", self.class_name)) if value}


class Review:
    """The state of the application: a desk, the token of its forms, and what was decided since the start."""

    def __init__(self, desk: Desk, max_pixels: int) -> None:
        self.desk, self.max_pixels = desk, max_pixels
        self.token = secrets.token_urlsafe(24)
        self.stored: Counter[str] = Counter()  # decisions since the start; `withdrawn` are those taken back
        self.counting = threading.Lock()
        self.cores = threading.BoundedSemaphore(n_cores())
        self.large = lru_cache(maxsize=N_LARGE)(self._jpeg)
        self.small = lru_cache(maxsize=N_SMALL)(self._jpeg)

    def count(self, decision: str) -> None:
        with self.counting:
            self.stored[decision] += 1

    def jpeg(self, sha256: str, px: int) -> bytes:
        return self.large(sha256, px) if px == LARGE_PX else self.small(sha256, px)

    def _jpeg(self, sha256: str, px: int) -> bytes:
        """The whole image, its larger side at most `px`; raises `Problem`."""
        try:
            encoded = self.desk.encoded(sha256)
            if hashlib.sha256(encoded).hexdigest() != sha256:
                raise Problem("unreadable", "The bytes of the image are not those of the manifest; run: dvc repro")
            with self.cores:
                return encode_jpeg(inspect(encoded, px, self.max_pixels)[1], px)
        except KeyError as error:
            raise Problem("not_found", "This image is not one of those that are offered.") from error
        except UnreadableImage as error:
            raise Problem("unreadable", f"The image cannot be read: {error}.") from error
        except OSError as error:
            raise Problem("not_found", f"The file of the image cannot be read ({error.strerror}); run: dvc repro") from error


def review() -> Review:
    return current_app.extensions["review"]


def create_app(desk: Desk, max_pixels: int = MAX_PIXELS) -> Flask:
    """The application for one desk."""
    app = Flask(__name__)
    app.config.update(MAX_CONTENT_LENGTH=SETTINGS.max_body_bytes, MAX_FORM_PARTS=20, SEND_FILE_MAX_AGE_DEFAULT=YEAR_S)
    assert isinstance(app.json, DefaultJSONProvider) and app.static_folder is not None  # as Flask makes them
    app.jinja_options["trim_blocks"] = app.jinja_options["lstrip_blocks"] = True
    guide = Blueprint(  # style and skeleton of the other page
        "guide", web.__name__, static_folder="static", static_url_path="/guide", template_folder="templates"
    )
    assert guide.static_folder is not None
    app.jinja_env.filters.update(percent=percent, common_name=common_name, in_words=in_words, day=day)
    app.jinja_env.globals.update(
        asset=asset_address(Path(app.static_folder)),
        guide_asset=asset_address(Path(guide.static_folder), "guide.static"),
        address=address,
        kinds=KINDS,
        version_of=version_of,
        large_px=LARGE_PX,
        small_px=SMALL_PX,
    )
    app.extensions["review"] = Review(desk, max_pixels)
    app.register_blueprint(guide)
    app.register_blueprint(pages)
    app.register_error_handler(Problem, show_problem)
    app.register_error_handler(UserError, show_user_error)
    app.register_error_handler(HTTPException, show_http_error)
    app.register_error_handler(Exception, show_fault)
    app.before_request(check_sender)
    app.after_request(finish)
    return app


def check_sender() -> None:
    """Refuses other hosts' names (DNS rebinding), requests from other sites, and forms without the token of this process."""
    if bare_host(request.host) not in HOSTS:
        raise Problem("bad_request", "Unknown Host header; this page is for this machine only.")
    refuse_other_sites(behind_proxy=False)
    if request.method == "POST" and not secrets.compare_digest(request.form.get("token", "").encode(), review().token.encode()):
        raise Problem("cross_site", "The page is from before a restart, or from another site. Reload it and decide again.")


def finish(response: Response) -> Response:
    response.headers.update(HEADERS)
    response.headers.setdefault("Cache-Control", "no-store")
    return response


@pages.get("/")
def front() -> Response:
    """The item `at`, or the first that is not decided; `last` is the one about which the page tells what is on disk."""
    desk = review().desk
    asked = request.args.get("at", "")
    return page(filter_of(request.args), desk.items.get(asked), last=desk.items.get(request.args.get("last", "")))


@pages.post("/decide")
def decide() -> BaseResponse:
    """Stores `choice`, which is a decision, for `relabel` with the class after a space or in the field `label`."""
    desk, taken = review().desk, filter_of(request.form)
    item = item_of(request.form.get("sha256", ""))
    decision, _, class_name = request.form.get("choice", "").partition(" ")
    class_name = class_of(class_name or request.form.get("label", "")) if decision == "relabel" else ""
    try:
        desk.decide(item.sha256, decision, class_name, request.form.get("version", ""))
    except NotStored as refusal:
        return page(taken, item, notice=str(refusal), status=409 if isinstance(refusal, Stale) else 400)
    review().count(decision)
    following = next_open(taken, item, desk.decisions())
    at = {"at": following.sha256} if following else {}
    return redirect(address(taken, last=item.sha256, **at), 303)


@pages.post("/undo")
def undo() -> BaseResponse:
    """Withdraws a decision and shows its item again."""
    desk, taken = review().desk, filter_of(request.form)
    item = item_of(request.form.get("sha256", ""))
    try:
        desk.withdraw(item.sha256, request.form.get("version", ""))
    except NotStored as refusal:
        return page(taken, item, notice=str(refusal), status=409 if isinstance(refusal, Stale) else 400)
    review().count("withdrawn")
    return redirect(address(taken, at=item.sha256, last=item.sha256), 303)


@pages.get("/photographs/<sha256>/<int:px>.jpg")
def photograph(sha256: str, px: int) -> Response:
    """An image by its content, which never changes."""
    if px not in (LARGE_PX, SMALL_PX):
        raise Problem("not_found", f"Photographs are shown at {LARGE_PX} and {SMALL_PX} pixels.")
    response = Response(mimetype="image/jpeg")
    response.set_etag(f"{sha256}-{px}")
    response.headers["Cache-Control"] = f"private, max-age={YEAR_S}, immutable"
    if request.if_none_match.contains(f"{sha256}-{px}"):
        response.status_code = 304
    else:
        response.set_data(review().jpeg(sha256, px))
    return response


@pages.get("/healthz")
def healthy() -> dict[str, str]:
    return {"status": "ok"}


def address(taken: Filter, **more: str) -> str:
    """The URL of the page with a filter."""
    values: dict[str, Any] = {**taken.query(), **more}
    return url_for("pages.front", **values)


def filter_of(values: MultiDict[str, str]) -> Filter:
    """The filter in the parameters of a URL or form; unknown kinds and classes are none."""
    kind, class_name = values.get("kind", ""), values.get("class", "")
    return Filter(kind if kind in KINDS else "", class_name if class_name in review().desk.class_names else "")


def item_of(sha256: str) -> Item:
    if (item := review().desk.items.get(sha256)) is None:
        raise Problem("not_found", "This image is not one of those that are offered; reload the page.")
    return item


def class_of(text: str) -> str:
    """The class that somebody has typed: its name, or in any case the only one that is read so; otherwise the text itself."""
    key, names = text.strip().casefold(), review().desk.class_names
    if text in names:
        return text
    alike = [name for name in names if key in (name.casefold(), common_name(name).casefold())]
    return alike[0] if len(alike) == 1 else text.strip()


def offered(taken: Filter, item: Item | None = None) -> list[Item]:
    """The items that the filter takes, and `item`, in the order in which they are offered."""
    items = [each for each in review().desk.items.values() if taken.takes(each) or each is item]
    return sorted(items, key=lambda each: each.rank(taken.kind))


def next_open(taken: Filter, item: Item | None, decisions: Mapping[str, Correction]) -> Item | None:
    """The next item that is not decided, after the last one again from the first; not the item itself."""
    items = offered(taken, item)
    start = items.index(item) + 1 if item else 0
    ordered = items[start:] + items[:start]
    return next((each for each in ordered if each.sha256 not in decisions and each is not item), None)


def neighbours(taken: Filter, item: Item) -> tuple[Item | None, Item | None]:
    """The items before and after, decided or not."""
    items = offered(taken, item)
    place = items.index(item)
    return items[place - 1] if place else None, items[place + 1] if place + 1 < len(items) else None


def page(taken: Filter, item: Item | None, last: Item | None = None, notice: str = "", status: int = 200) -> Response:
    """The page of an item, or of the first that is not decided; of its script only what changes with the item."""
    desk = review().desk
    decisions = desk.decisions()
    item = item or next_open(taken, None, decisions)
    following = next_open(taken, item, decisions)
    before, after = neighbours(taken, item) if item else (None, None)
    matching = offered(taken)
    content = render_template(
        "item.html" if "X-Item" in request.headers else "page.html",
        desk=desk,
        item=item,
        decision=decisions.get(item.sha256) if item else None,
        question=question_about(item) if item else "",
        choices=choices_of(item) if item else [],
        copies=copies_of(item) if item else [],
        compared=compared(item) if item else [],
        decisions=decisions,
        following=following,
        before=before,
        after=after,
        last=last,
        last_decision=decisions.get(last.sha256) if last else None,
        undoable=last_decision(desk, decisions),
        notice=notice,
        filter=taken,
        n_decided=sum(each.sha256 in decisions for each in matching),
        n_items=len(matching),
        by_kind=progress_by_kind(decisions),
        by_class=Counter(name for each in desk.items.values() for name in each.class_names),
        token=review().token,
    )
    return Response(content, status, mimetype="text/html")


@dataclass(frozen=True)
class Choice:
    """A button with its key."""

    key: str
    value: str  # of the field `choice`
    text: str
    class_name: str = ""
    probability: float | None = None


def question_about(item: Item) -> str:
    if item.kinds == {"duplicate"}:
        return "Is this a copy of the other one?"
    return f"Is this {common_name(item.given)}?" if item.given else "Which class is this?"


def choices_of(item: Item) -> list[Choice]:
    drop = Choice("d", "drop", "Drop")
    if not review().desk.is_of_labels:
        best = enumerate(item.suggestions[:N_KEYS], 1)
        return [*(Choice(str(n), f"relabel {one.class_name}", "", *one) for n, one in best), drop]
    if item.kinds == {"duplicate"}:
        return [Choice("k", "keep", "Keep both"), Choice("d", "drop", "Drop this one")]
    relabel = [Choice("r", f"relabel {item.suggested}", "Relabel as", item.suggested)] if item.suggested else []
    if any(copy.sha256 == item.sha256 for copy in copies_of(item)):  # a decision is about both: to keep would decide nothing
        return [Choice("k", f"relabel {item.given}", "All copies are", item.given), *relabel, drop]
    return [Choice("k", "keep", "Keep", item.given), *relabel, drop]


def copies_of(item: Item) -> list[ManifestImage]:
    """The other images of which it is a copy."""
    others = [each.other for each in item.suspicions if each.other]
    return list({other.id: other for other in others}.values())


def compared(item: Item) -> list[tuple[str, str, list[ManifestImage]]]:
    """What the photograph is to be compared with: a heading, a class and images of it."""
    desk = review().desk
    if desk.is_of_labels:
        names = {item.given: "Given"} | ({item.suggested: "Suggested"} if item.suggested != item.given else {})
    else:
        names = {each.class_name: f"Answer {place}" for place, each in enumerate(item.suggestions[:N_COMPARED], 1)}
    return [(text, name, desk.examples(name, item)) for name, text in names.items() if name]


def progress_by_kind(decisions: Mapping[str, Correction]) -> list[tuple[str, int, int]]:
    """Kind, decided and all items, in the order of `KINDS`."""
    items = review().desk.items.values()
    total = Counter(kind for item in items for kind in item.kinds)
    decided = Counter(kind for item in items if item.sha256 in decisions for kind in item.kinds)
    return [(kind, decided[kind], total[kind]) for kind in KINDS if total[kind]]


def show_problem(problem: Problem) -> Response:
    if wants_page():
        html = render_template("fault.html", problem=problem.content())
        return Response(html, problem.status, problem.headers(), mimetype="text/html")
    return Response(problem.body(), problem.status, problem.headers(), content_type=MEDIA_TYPE)


def show_user_error(error: UserError) -> Response:
    """A file that cannot be read or written: nothing was stored."""
    return show_problem(Problem("internal", f"Nothing was stored. {error}"))


def show_http_error(error: HTTPException) -> BaseResponse:
    if error.code is None or error.code < 400:
        return error.get_response()
    return show_problem(Problem(code_of(error.code), " ".join((error.description or error.name).split())))


def show_fault(error: Exception) -> Response:
    """An unexpected error: logs the traceback, which never goes into a response."""
    current_app.logger.error("fault in %s %s", request.method, request.url_rule, exc_info=error)
    return show_problem(Problem("internal", "Internal error; see the terminal of fieldguide review."))
