"""The Flask application: routes, checks of requests, and responses."""

import base64
import hashlib
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswer
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from flask import Blueprint, Flask, Response, current_app, g, render_template, request, url_for
from flask.json.provider import DefaultJSONProvider
from werkzeug.exceptions import HTTPException
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.wrappers import Response as BaseResponse

from fieldguide.core.formats import has_heif, readable
from fieldguide.core.images import TooManyPixels, UnreadableImage, decode, encode_jpeg
from fieldguide.core.names import common_name
from fieldguide.onnx.classifier import Answer, Prediction
from fieldguide.onnx.heatmap import overlay
from fieldguide.tracking.registry import is_registered
from fieldguide.web.batching import Batcher, Slots
from fieldguide.web.examples import Examples
from fieldguide.web.metrics import Metrics
from fieldguide.web.model import LoadedModel, Watched
from fieldguide.web.openapi import description
from fieldguide.web.problems import MEDIA_TYPE, Problem, code_of
from fieldguide.web.settings import PREFIX, Settings
from fieldguide.web.uploads import FIELD, MemoryRequest, Upload, check_format, read_uploads

TOP_K = 5
PICTURE_PX = 480  # side of the photograph on a plate
ANSWER_WITHIN_S = 30  # timeout for the network
YEAR_S = 31_536_000
ACCEPT = "image/jpeg,image/png,image/webp,image/avif,image/bmp,image/gif,image/tiff"
ACCEPT_HEIF = ",image/heic,image/heif,.heic,.heif"  # otherwise phones send JPEG
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "same-origin",  # under no-referrer a plain form is sent with Origin: null
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
PROBES = ("pages.healthy", "pages.ready", "pages.metrics")  # monitoring asks by address; they tell a visitor nothing
pages = Blueprint("pages", __name__)


@dataclass(frozen=True)
class Plate:
    """A photograph on the page: a prediction with its pictures as `data:` URLs, or a problem."""

    number: int
    file: str | None
    prediction: Prediction | None = None
    photograph: str = ""
    overlay: str = ""
    problem: Problem | None = None


class Guide:
    """The state of the application: the model, its queue, and metrics."""

    def __init__(self, settings: Settings) -> None:
        """Loads the model; raises `UserError`."""
        self.settings = settings
        self.metrics = metrics = Metrics()
        self.watched = Watched(
            settings.model,
            settings.registry_s if is_registered(settings.model) else settings.reload_s,
            lambda worked: metrics.reloads.labels("taken" if worked else "refused").inc(),
        )
        self.slots = Slots(settings.max_images, settings.within_s)
        metrics.places.set_function(lambda: self.slots.n_taken)
        self.cores = threading.BoundedSemaphore(settings.workers)  # acquired to decode or compute: more at a time is slower
        self.batcher = Batcher(settings.workers, settings.max_batch, TOP_K, self.cores, self._decode, self._record)
        self.examples = Examples(settings.manifest, settings.raw)
        self.draining = False

    def answers(self, model: LoadedModel, uploads: list[Upload], activation: bool = False) -> list[Prediction | Problem]:
        """A prediction or a problem for each image, in order."""
        futures = [self._submit(model, upload, activation) for upload in uploads]
        answers = [future if isinstance(future, Problem) else self._result(future) for future in futures]
        for answer in answers:
            if isinstance(answer, Problem):
                self.metrics.refused.labels(answer.code).inc()
            else:
                self.metrics.images.labels(answer.verdict).inc()
        return answers

    def _submit(self, model: LoadedModel, upload: Upload, activation: bool) -> Future[Prediction] | Problem:
        try:
            check_format(upload)
        except Problem as problem:
            return problem
        return self.batcher.submit(model.classifier, upload.encoded, activation)

    def pixels(self, encoded: bytes, side: int) -> np.ndarray:
        """The centre square, uint8 `[side, side, 3]`; waits for a free core; raises `Problem`."""
        with self.cores:
            return self._decode(encoded, side)

    def _decode(self, encoded: bytes, side: int) -> np.ndarray:
        try:
            return decode(encoded, side, self.settings.max_pixels)
        except TooManyPixels as error:
            raise Problem("too_large", f"The image has {error}.") from error
        except UnreadableImage as error:
            raise Problem("unreadable", f"The image cannot be read: {error}.") from error

    def _record(self, n_images: int, seconds: float) -> None:
        self.metrics.batches.observe(n_images)
        self.slots.learn(seconds / n_images / self.settings.workers)

    def close(self) -> None:
        self.watched.close()
        self.batcher.close()

    @staticmethod
    def _result(future: Future[Prediction]) -> Prediction | Problem:
        try:
            return future.result(timeout=ANSWER_WITHIN_S)
        except Problem as problem:
            return problem
        except NoAnswer:
            return Problem("overloaded", "The network did not answer in time; try again.")


def guide() -> Guide:
    return current_app.extensions["guide"]


def model_in_use() -> LoadedModel:
    """The model of this request, which does not change during the request."""
    if "model" not in g:
        g.model = guide().watched.current
    return g.model


def create_app(settings: Settings) -> Flask:
    """The application with its model; raises `UserError` if the model cannot be loaded."""
    app = Flask(__name__)
    app.request_class = MemoryRequest
    app.config.update(
        MAX_CONTENT_LENGTH=settings.max_body_bytes,
        MAX_FORM_PARTS=4 * settings.max_files,
        SEND_FILE_MAX_AGE_DEFAULT=YEAR_S,
    )
    assert isinstance(app.json, DefaultJSONProvider) and app.static_folder is not None  # as Flask makes them
    app.json.sort_keys = False
    app.jinja_options["trim_blocks"] = app.jinja_options["lstrip_blocks"] = True
    app.jinja_env.filters.update(percent=percent, common_name=common_name, species=species, roman=roman, day=day)
    app.jinja_env.globals.update(
        guide_asset=asset_address(Path(app.static_folder)), has_example=lambda name: name in guide().examples
    )
    app.extensions["guide"] = Guide(settings)
    app.register_blueprint(pages)
    app.register_error_handler(Problem, answer_problem)
    app.register_error_handler(HTTPException, answer_http_error)
    app.register_error_handler(Exception, answer_fault)
    app.before_request(check_sender)
    app.after_request(finish)
    if n := settings.trusted_proxies:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=n, x_proto=n, x_host=n, x_port=n, x_prefix=n)  # type: ignore[method-assign]
    return app


def bare_host(name: str) -> str:
    """A Host header in lower case without port; an IPv6 address in brackets."""
    name = name.lower()
    if name.count(":") > 1 and not name.startswith("["):
        return f"[{name}]"
    return re.sub(r":\d+$", "", name)


def is_same_host(origin: str, host: str, behind_proxy: bool) -> bool:
    """Whether an Origin names this Host; a proxy may have changed the scheme and left the port out of Host."""
    origin, host = (re.sub(":(80|443)$", "", name.lower()) for name in (origin.partition("://")[2], host))
    return host == origin or (behind_proxy and host == bare_host(origin) != "")


def check_sender() -> None:
    """Refuses unknown Host headers, URL prefixes that are none, and cross-site requests."""
    g.start = time.perf_counter()
    settings = guide().settings
    allowed = () if request.endpoint in PROBES else settings.allowed_hosts
    if allowed and bare_host(request.host) not in allowed:
        raise Problem("bad_request", "Unknown Host header; allow it with --allowed-host.")
    if request.root_path.strip("/") and not re.fullmatch(PREFIX, request.root_path.rstrip("/"), re.ASCII):
        raise Problem("bad_request", "X-Forwarded-Prefix must be a path such as /guide.")
    refuse_other_sites(settings.trusted_proxies > 0)


def refuse_other_sites(behind_proxy: bool) -> None:
    """Raises `Problem` for a request that changes something and comes from a page of another site."""
    if request.method in ("GET", "HEAD", "OPTIONS"):
        return
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is None:  # an older browser, or no browser
        own = origin is None or is_same_host(origin, request.host, behind_proxy)
        site = "none" if own else "cross-site"
    if site not in ("same-origin", "none"):
        raise Problem("cross_site", "Requests from other sites are refused; behind a proxy, see --trusted-proxy.")


def finish(response: Response) -> Response:
    """Adds the common headers, and records metrics."""
    response.headers.update(HEADERS)
    if response.location:
        response.location = urlsplit(response.location).path  # alone: a proxy may have changed scheme and host
    if "Cache-Control" not in response.headers:
        response.headers["Cache-Control"] = "no-store"
    metrics, route = guide().metrics, str(request.url_rule or "none")
    metrics.requests.labels(route, response.status_code).inc()
    metrics.seconds.labels(route).observe(time.perf_counter() - g.get("start", time.perf_counter()))
    return response


@pages.get("/")
def front() -> str:
    return page([])


@pages.post("/")
def identify() -> Response:
    """The page with a plate for each photograph of the form, or only the plates for the page's script."""
    own_script = "X-Plates" in request.headers  # the number of the first plate
    first = min(max(request.headers.get("X-Plates", 1, type=int), 1), 3999)
    try:
        with guide().slots.taken(1):
            uploads = read_uploads(request, guide().settings.max_files)
            with guide().slots.taken(len(uploads) - 1):
                plates = plates_of(uploads, first)
    except Problem as problem:
        plates = [Plate(first, None, problem=problem)]
    problems = [plate.problem for plate in plates if plate.problem]
    status = problems[0].status if len(problems) == len(plates) else 200
    headers = problems[0].headers() if status != 200 else {}
    html = render_template("plates.html", plates=plates, facts=facts()) if own_script else page(plates)
    return Response(html, status, headers, mimetype="text/html")


@pages.get("/model")
def about() -> str:
    classifier = model_in_use().classifier
    return render_template(
        "model.html", facts=facts(), species=[classifier.answer(k) for k in range(len(classifier.class_names))]
    )


@pages.get("/examples/<int:index>.jpg")
def example(index: int) -> Response:
    """A training photograph of the class at this output of the network."""
    names = model_in_use().classifier.class_names
    jpeg = guide().examples.jpeg(names[index]) if index < len(names) else None
    if jpeg is None:
        raise Problem("not_found", "There is no example photograph of this class.")
    return Response(jpeg, mimetype="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


@pages.post("/api/predict")
def predict() -> dict[str, object]:
    """Ranked classes for one or more images; the first problem if all images have one."""
    current, model = guide(), model_in_use()
    with current.slots.taken(1):
        uploads = read_uploads(request, current.settings.max_files)
        with current.slots.taken(len(uploads) - 1):
            answers = current.answers(model, uploads)
    problems = [answer for answer in answers if isinstance(answer, Problem)]
    if len(problems) == len(answers):
        raise problems[0]
    results = [{"file": upload.name} | result(answer) for upload, answer in zip(uploads, answers, strict=True)]
    return {"model": model.sha256, "results": results}


@pages.get("/api/model")
def model_facts() -> dict[str, object]:
    classifier = model_in_use().classifier
    return facts() | {"class_names": classifier.class_names, "taxonomy": classifier.metadata.get("taxonomy", {})}


@pages.get("/healthz")
def healthy() -> dict[str, str]:
    return {"status": "ok"}


@pages.get("/readyz")
def ready() -> dict[str, str]:
    """Whether the server accepts images."""
    if guide().draining:
        raise Problem("overloaded", "The server is stopping.")
    return {"status": "ready", "model": model_in_use().sha256}


@pages.get("/metrics")
def metrics() -> Response:
    return Response(guide().metrics.text(), content_type="text/plain; version=0.0.4; charset=utf-8")


@pages.get("/openapi.json")
def openapi() -> dict[str, object]:
    return description(guide().settings, request.script_root)


def result(answer: Prediction | Problem) -> dict[str, object]:
    """The entry of one image in the API's response."""
    if isinstance(answer, Problem):
        return {"error": answer.content()}
    answers = [
        asdict(one) | {"common_name": one.common_name or None, "scientific_name": one.scientific_name or None}
        for one in answer.answers
    ]
    taxon = answer.taxon and asdict(answer.taxon)
    return {"verdict": answer.verdict, "known_score": answer.known_score, "taxon": taxon, "answers": answers}


def plates_of(uploads: list[Upload], first: int) -> list[Plate]:
    """A plate for each image, with its centre square and activation map."""
    answers = guide().answers(model_in_use(), uploads, activation=True)
    return list(map(plate_of, range(first, first + len(uploads)), uploads, answers))


def plate_of(number: int, upload: Upload, answer: Prediction | Problem) -> Plate:
    if isinstance(answer, Problem):
        return Plate(number, upload.name, problem=answer)
    square = guide().pixels(upload.encoded, PICTURE_PX)
    looked = "" if answer.activation is None else data_address(overlay(muted(square), answer.activation))
    return Plate(number, upload.name, answer, data_address(square), looked)


def muted(rgb: np.ndarray) -> np.ndarray:
    """Darkened and desaturated, as background of an overlay: uint8 `[H, W, 3]`."""
    return (0.3 * rgb + 0.25 * rgb.mean(axis=2, keepdims=True)).astype(np.uint8)


def data_address(pixels: np.ndarray) -> str:
    """The `data:` URL of uint8 `[H, W, 3]`, as a JPEG."""
    return "data:image/jpeg;base64," + base64.b64encode(encode_jpeg(pixels, PICTURE_PX)).decode()


def page(plates: list[Plate]) -> str:
    limits = guide().settings
    return render_template(
        "front.html",
        plates=plates,
        facts=facts(),
        field=FIELD,
        accept=ACCEPT + (ACCEPT_HEIF if has_heif() else ""),
        readable=readable(),
        max_files=limits.max_files,
        max_mib=limits.max_body_bytes >> 20,
        max_bytes=limits.max_body_bytes,
    )


def facts() -> dict[str, object]:
    """The metadata of the model, and facts about its file."""
    model = model_in_use()
    metadata = {
        key: value
        for key, value in model.classifier.metadata.items()
        if key not in ("class_names", "labels", "seal", "taxonomy")
    }
    own = {"sha256": model.sha256, "modified": model.modified, "bytes": model.classifier.file_bytes}
    return own | {"n_classes": len(model.classifier.class_names), "image_px": model.classifier.image_px, "metadata": metadata}


def wants_page() -> bool:
    """Whether an error is shown as a page: for a browser's request outside the API."""
    accepted = request.accept_mimetypes
    return not request.path.startswith("/api/") and accepted["text/html"] > accepted[MEDIA_TYPE]


def answer_problem(problem: Problem) -> Response:
    if wants_page():
        html = render_template("problem.html", problem=problem.content(), facts=facts())
        return Response(html, problem.status, problem.headers(), mimetype="text/html")
    return Response(problem.body(), problem.status, problem.headers(), content_type=MEDIA_TYPE)


def answer_http_error(error: HTTPException) -> BaseResponse:
    """Errors of the framework (unknown page, method, size) as problem details, with its Allow header."""
    if error.code is None or error.code < 400:
        return error.get_response()
    response = answer_problem(Problem(code_of(error.code), " ".join((error.description or error.name).split())))
    allowed = getattr(error, "valid_methods", None)
    if allowed:
        response.headers["Allow"] = ", ".join(sorted(allowed))
    return response


def answer_fault(error: Exception) -> Response:
    """An unexpected error: logs the traceback, which never goes into a response."""
    current_app.logger.error("fault in %s %s", request.method, request.url_rule, exc_info=error)
    return answer_problem(Problem("internal", "Internal server error; see the server's log."))


def asset_address(folder: Path, endpoint: str = "static") -> Callable[[str], str]:
    """`asset(name)`: the URL of a static file of that endpoint with a hash of its content, so that it can be cached forever."""
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in folder.iterdir() if path.is_file()}
    return lambda name: url_for(endpoint, filename=name, v=digests[name])


def percent(share: float) -> str:
    """`93.1 %`; never rounded to 0 or 100 %."""
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    return "< 0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def species(answer: Answer) -> str:
    """The common name of an answer: the taxonomy's, or a readable form of the class name."""
    return answer.common_name or common_name(answer.name)


def roman(number: int) -> str:
    """1 to 3999 as a Roman numeral, as plates are numbered."""
    signs = ((1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"), (40, "XL"))
    text = ""
    for value, sign in (*signs, (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")):
        text += sign * (number // value)
        number %= value
    return text


def day(moment: str) -> str:
    """`2026-11-21T10:15:00+00:00` as `21 November 2026, 10:15 UTC`."""
    return f"{datetime.fromisoformat(moment):%-d %B %Y, %H:%M} UTC"
