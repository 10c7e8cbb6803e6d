"""The web application in process: what it answers, what it refuses and how, what it shows, and what it keeps to itself."""

import hashlib
import io
import itertools
import json
import re
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from threading import Semaphore

import numpy as np
import pytest
from flask.testing import FlaskClient
from PIL import Image
from werkzeug.datastructures import FileStorage
from werkzeug.test import encode_multipart

from fieldguide.core.errors import UserError
from fieldguide.core.images import decode
from fieldguide.onnx.classifier import OnnxClassifier, Prediction
from fieldguide.web.app import HEADERS, bare_host, common_name, create_app, percent, roman
from fieldguide.web.batching import Batcher, Slots
from fieldguide.web.examples import Examples
from fieldguide.web.model import Watched
from fieldguide.web.problems import MEDIA_TYPE, STATUS, Problem, code_of
from fieldguide.web.settings import Settings
from fieldguide.web.uploads import FIELD
from support import ROOT
from support.app_server import png, wait_until, write_examples, write_model
from support.mean_colour import METADATA, NAMES, TAXONOMY, YELLOW, mean_colour_network, save, with_taxonomy
from support.structure import third_party

NASTY = ("<script>alert(1)</script>", "q\"uote' & <b>", "RED_WING", "Ünïcode 孔雀")
HTML = {"Accept": "text/html,application/xhtml+xml,image/avif,*/*;q=0.8"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        model=write_model(tmp_path), manifest=tmp_path / "none", raw=tmp_path, max_files=4, max_images=8, reload_s=3600
    )


@pytest.fixture
def client(settings: Settings) -> Iterator[FlaskClient]:
    application = create_app(settings)
    yield application.test_client()
    application.extensions["guide"].close()


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def form(*files: tuple[bytes, str]) -> dict[str, object]:
    return {"data": {"images": [(io.BytesIO(content), name) for content, name in files]}, "content_type": "multipart/form-data"}


def raw(content: bytes, content_type: str = "image/jpeg") -> dict[str, object]:
    return {"data": content, "content_type": content_type}


# what is answered


def test_a_raw_image_is_answered_as_the_classifier_answers(client: FlaskClient, settings: Settings) -> None:
    content = png((250, 130, 20))
    answer = client.post("/api/predict", **raw(content, "image/png"))
    expected = OnnxClassifier(settings.model, 1).predict([content])[0]
    assert (answer.status_code, answer.mimetype) == (200, "application/json")
    found = answer.json["results"][0]
    assert found["file"] is None
    assert found["verdict"] == expected.verdict
    assert [(one["name"], one["index"]) for one in found["answers"]] == [(one.name, one.index) for one in expected.answers]
    probabilities = [one["probability"] for one in found["answers"]]
    assert probabilities == pytest.approx([one.probability for one in expected.answers], abs=1e-6)


@pytest.mark.parametrize(("colour", "verdict"), [((255, 0, 0), "sure"), ((128, 128, 128), "unsure"), ((5, 5, 5), "unknown")])
def test_the_verdict_is_passed_on(client: FlaskClient, colour: tuple[int, ...], verdict: str) -> None:
    assert client.post("/api/predict", **raw(png(colour))).json["results"][0]["verdict"] == verdict


def test_an_unsure_image_is_told_as_its_genus_and_species_by_both_names(settings: Settings) -> None:
    save(settings.model.parent, mean_colour_network(with_taxonomy(genus=0.5)))
    application = create_app(settings)
    try:
        client = application.test_client()
        found = [client.post("/api/predict", **raw(png(colour))).json["results"][0] for colour in (YELLOW, (255, 0, 0))]
        assert {key: found[0]["taxon"][key] for key in ("rank", "name")} == {"rank": "genus", "name": "Vanessa"}
        assert found[1]["taxon"] is None
        assert found[1]["answers"][0]["scientific_name"] == "Vanessa atalanta"
        assert client.get("/api/model").json["taxonomy"] == TAXONOMY
        pages = [client.post("/", **form((png(colour), "a.png"))).text for colour in (YELLOW, (255, 0, 0))]
        assert re.search(r"Not sure of the species</p>\s*<h2 id=\"plate-1\">Some <i>Vanessa</i></h2>", pages[0])
        assert "for this genus as a whole" in pages[0]
        assert '<h2 id="plate-1">Red admiral</h2>' in pages[1]
        assert all("Red admiral <i>Vanessa atalanta</i>" in text for text in (*pages, client.get("/model").text))
    finally:
        application.extensions["guide"].close()


def test_many_files_are_answered_in_order_and_the_bad_one_for_itself(client: FlaskClient) -> None:
    files = form((png((255, 0, 0)), "r.png"), (b"no image", "notes.txt"), (png((0, 0, 255)), "b.png"))
    answer = client.post("/api/predict", **files)
    assert answer.status_code == 200
    red, bad, blue = answer.json["results"]
    assert (red["file"], red["answers"][0]["name"]) == ("r.png", "RED")
    assert (bad["file"], bad["error"]["code"], "answers" in bad) == ("notes.txt", "not_an_image", False)
    assert (blue["file"], blue["answers"][0]["name"]) == ("b.png", "BLUE")


RED = Image.new("RGB", (60, 40), (255, 0, 0))
ODD = {
    "grey 16 bit": (encoded(Image.fromarray(np.full((30, 30), 65535, np.uint16)), "PNG"), "RED"),
    "palette": (encoded(RED.quantize(4), "GIF"), "RED"),
    "CMYK": (encoded(RED.convert("CMYK"), "JPEG"), "RED"),
    "animated GIF": (encoded(RED, "GIF", save_all=True, append_images=[Image.new("RGB", (60, 40), (0, 0, 255))]), "RED"),
    "animated WebP": (encoded(RED, "WEBP", lossless=True, save_all=True, append_images=[RED.rotate(9)]), "RED"),
    "transparent": (encoded(Image.new("RGBA", (9, 9), (255, 0, 0, 255)), "PNG"), "RED"),
    "BMP": (encoded(RED, "BMP"), "RED"),
    "TIFF": (encoded(RED, "TIFF"), "RED"),
    "wide": (encoded(RED.resize((900, 20)), "PNG"), "RED"),
    "one pixel": (encoded(RED.resize((1, 1)), "PNG"), "RED"),
    "zip after a JPEG": (encoded(RED, "JPEG") + b"PK\x03\x04" + bytes(99), "RED"),
    "HTML in a JPEG": (encoded(RED, "JPEG", comment=b"<script>alert(1)</script>"), "RED"),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_images_are_answered(client: FlaskClient, kind: str) -> None:
    content, name = ODD[kind]
    answer = client.post("/api/predict", **form((content, "image.txt")))  # by content, not by name
    assert answer.status_code == 200
    assert answer.json["results"][0]["answers"][0]["name"] == name


def test_a_photograph_on_its_side_is_turned_upright(client: FlaskClient, settings: Settings, make_jpeg) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(Image.open(io.BytesIO(make_jpeg(3, 90, 60))), "JPEG", exif=exif)
    found = client.post("/api/predict", **raw(content)).json["results"][0]["answers"]
    pixels = decode(content, OnnxClassifier(settings.model, 1).image_px)
    expected = OnnxClassifier(settings.model, 1).probabilities(pixels[None])[0]
    assert found[0]["probability"] == pytest.approx(float(expected.max()), abs=1e-6)


# what is refused


def bomb() -> bytes:
    return encoded(Image.new("1", (13000, 13000)), "PNG", compress_level=9)


def vast() -> bytes:
    """A small BMP whose head claims 60,000 times 60,000 pixels."""
    content = encoded(RED, "BMP")
    return content[:18] + struct.pack("<ii", 60000, 60000) + content[26:]


REFUSED = {
    "empty": (raw(b""), 400, "not_an_image"),
    "text": (raw(b"hello " * 50), 400, "not_an_image"),
    "truncated JPEG": (raw(encoded(RED, "JPEG")[:-300]), 422, "unreadable"),
    "JPEG without its end": (raw(encoded(RED, "JPEG")[:-2]), 422, "unreadable"),
    "truncated PNG": (raw(png(size=(200, 200))[:90]), 422, "unreadable"),
    "a header alone": (raw(b"\xff\xd8\xff"), 422, "unreadable"),
    "decompression bomb": (raw(bomb()), 413, "too_large"),
    "claims to be vast": (raw(vast()), 413, "too_large"),
    "damaged HEIC": (raw(b"\0\0\0\x18ftypheic" + bytes(40)), 422, "unreadable"),
    "JPEG XL": (raw(b"\xff\x0a" + bytes(40)), 415, "wrong_type"),
    "RAW": (raw(b"II*\0\x10\0\0\0CR" + bytes(40)), 415, "wrong_type"),
    "RAW that only its name tells": (form((encoded(RED, "TIFF"), "DSC_1.ARW")), 415, "wrong_type"),
    "video": (raw(b"\0\0\0\x18ftypqt  " + bytes(40)), 415, "wrong_type"),
    "SVG": (raw(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), 415, "wrong_type"),
    "JSON": (raw(b"{}", "application/json"), 415, "wrong_type"),
    "no type": ({"data": png()}, 415, "wrong_type"),
    "a plain form": ({"data": {"images": "text"}}, 415, "wrong_type"),
    "another field": ({"data": {"photo": (io.BytesIO(png()), "a.png")}}, 400, "no_image"),
    "a field without a file": ({"data": "x", "content_type": "multipart/form-data; boundary=a"}, 400, "no_image"),
    "no boundary": ({"data": b"x", "content_type": "multipart/form-data"}, 400, "no_image"),
    "too many files": (form(*[(png(), "a.png")] * 5), 413, "too_large"),
    "too many bytes": (raw(bytes(21 << 20)), 413, "too_large"),
    "too many parts": ({"data": {str(k): "v" for k in range(99)}, "content_type": "multipart/form-data"}, 413, "too_large"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_answered_gets_its_status_and_a_sentence(client: FlaskClient, kind: str) -> None:
    sent, status, code = REFUSED[kind]
    sent = {key: dict(value) if isinstance(value, dict) else value for key, value in sent.items()}
    answer = client.post("/api/predict", **sent)
    assert (answer.status_code, answer.mimetype) == (status, MEDIA_TYPE)
    assert set(answer.json) == {"type", "title", "status", "code", "detail"}
    assert (answer.json["status"], answer.json["code"]) == (status, code)
    assert re.fullmatch(r"[A-Z].*\.", answer.json["detail"], re.DOTALL)


def test_a_bomb_is_refused_before_it_is_decoded(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bomb()
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    assert client.post("/api/predict", **raw(content)).status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/api/predict", 405, "method_not_allowed"),
        ("PUT", "/", 405, "method_not_allowed"),
        ("GET", "/examples/0.jpg", 404, "not_found"),
        ("GET", "/examples/99999999999999999999.jpg", 404, "not_found"),
        ("GET", "/static/../web.py", 404, "not_found"),
        ("GET", "/static/%2e%2e/web.py", 404, "not_found"),
    ],
)
def test_other_errors_have_the_same_form(client: FlaskClient, method: str, path: str, status: int, code: str) -> None:
    answer = client.open(path, method=method)
    assert (answer.status_code, answer.mimetype, answer.json["code"]) == (status, MEDIA_TYPE, code)
    assert ("Allow" in answer.headers) == (status == 405)


def test_a_person_gets_a_page_for_an_error_and_a_program_does_not(client: FlaskClient) -> None:
    assert client.get("/nowhere", headers=HTML).mimetype == "text/html"
    assert client.get("/api/nowhere", headers=HTML).mimetype == MEDIA_TYPE


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost"}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "null"}, 200),
        ({"Origin": "http://localhost"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://localhost"}, 403),
        ({"Sec-Fetch-Site": "nonsense"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://localhost:81"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Origin": "localhost"}, 403),
    ],
)
@pytest.mark.parametrize("path", ["/", "/api/predict"])
def test_what_another_site_sends_is_refused(client: FlaskClient, headers: dict[str, str], status: int, path: str) -> None:
    assert client.post(path, headers=headers, **form((png(), "a.png"))).status_code == status


@pytest.fixture
def behind(settings: Settings) -> Iterator[FlaskClient]:
    """A server behind one proxy, which visitors know as guide.example."""
    application = create_app(replace(settings, trusted_proxies=1, allowed_hosts=("guide.example",)))
    yield application.test_client()
    application.extensions["guide"].close()


FORWARDED = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "guide.example", "X-Forwarded-Prefix": "/guide"}


@pytest.mark.parametrize("prefix", ["/guide", "/guide/", "/tools/the.guide_2"])
def test_all_addresses_begin_with_the_prefix_of_a_trusted_proxy(behind: FlaskClient, client: FlaskClient, prefix: str) -> None:
    headers = FORWARDED | {"X-Forwarded-Prefix": prefix} | HTML
    for path in ("/", "/model", "/nowhere"):
        addresses = re.findall(r'(?:href|src|action)="(/[^"]*)"', behind.get(path, headers=headers).text)
        assert addresses and all(address.startswith(f"{prefix.rstrip('/')}/") for address in addresses), addresses
    assert behind.get("/openapi.json", headers=headers).json["servers"] == [{"url": prefix.rstrip("/")}]
    assert client.get("/openapi.json", headers=headers).json["servers"] == [{"url": "/"}]  # no proxy is trusted


@pytest.mark.parametrize("prefix", ["guide", "//evil.example", "/<script>", "/a b", "/a//b"])
def test_a_prefix_that_is_no_path_is_refused(behind: FlaskClient, prefix: str) -> None:
    answer = behind.get("/api/model", headers=FORWARDED | {"X-Forwarded-Prefix": prefix})
    assert (answer.status_code, answer.json["detail"]) == (400, "X-Forwarded-Prefix must be a path such as /guide.")


@pytest.mark.parametrize(
    ("headers", "origin", "status"),
    [
        ({}, "https://guide.example", 200),
        ({}, "http://guide.example:8080", 200),  # the proxy leaves the port out
        ({"X-Forwarded-Port": "443"}, "https://guide.example", 200),
        ({"X-Forwarded-Host": "guide.example:80"}, "https://guide.example", 200),
        ({"X-Forwarded-Port": "8443"}, "https://guide.example:8443", 200),
        ({"X-Forwarded-Port": "8443"}, "https://guide.example:9", 403),
        ({}, "https://evil.example", 403),
        ({}, "null", 403),
        ({"X-Forwarded-Host": "evil.example"}, "https://evil.example", 400),
        ({"X-Forwarded-Host": "guide.example, evil.example"}, "https://evil.example", 400),  # the last is the proxy's own
    ],
)
def test_a_visitor_of_a_proxy_is_no_stranger(behind: FlaskClient, headers: dict[str, str], origin: str, status: int) -> None:
    sent = FORWARDED | headers | {"Origin": origin}
    answer = behind.post("/", base_url="http://127.0.0.1:8000", headers=sent, **form((png(), "a.png")))
    assert answer.status_code == status


def test_only_hosts_that_are_allowed_are_answered(settings: Settings) -> None:
    local = Settings(**{**vars(settings), "allowed_hosts": ("127.0.0.1", "[::1]")})
    client = create_app(local).test_client()
    assert client.get("/api/model", base_url="http://127.0.0.1:8000").status_code == 200
    assert client.get("/api/model", base_url="http://[::1]:8000").status_code == 200
    for path in ("/", "/api/model", "/openapi.json", "/static/guide.css", "/nowhere"):
        assert client.get(path, base_url="http://rebound.example").status_code == 400
    for path in ("/healthz", "/readyz", "/metrics"):
        assert client.get(path, base_url="http://10.0.0.7:8131").status_code == 200


@pytest.mark.parametrize(
    ("given", "bare"),
    [
        ("Guide.Example.org", "guide.example.org"),
        ("guide.example.org:8080", "guide.example.org"),
        ("127.0.0.1:8000", "127.0.0.1"),
        ("[::1]:8000", "[::1]"),
        ("::1", "[::1]"),
    ],
)
def test_hosts_are_compared_without_port_and_case(given: str, bare: str) -> None:
    assert bare_host(given) == bare


def test_all_of_an_answer_is_of_one_model(client: FlaskClient, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    old = Watched(settings.model, 3600, lambda worked: None).current
    write_model(settings.model.parent, ("SCARLET", *NAMES[1:]))
    new = Watched(settings.model, 3600, lambda worked: None).current
    models = itertools.cycle((old, new))  # as if another were taken up at each look
    monkeypatch.setattr(Watched, "current", property(lambda _: next(models)), raising=False)
    first, second = (client.get("/api/model").json for _ in range(2))
    assert (first["sha256"], first["class_names"][0]) == (old.sha256, "RED")
    assert (second["sha256"], second["class_names"][0]) == (new.sha256, "SCARLET")


def test_a_fault_of_ours_is_told_without_its_traceback(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxClassifier, "predict_pixels", lambda *_: 1 / 0)
    answer = client.post("/api/predict", **raw(png()))
    assert (answer.status_code, answer.json["code"]) == (500, "internal")
    assert b"Zero" not in answer.data
    monkeypatch.undo()
    assert client.post("/api/predict", **raw(png())).status_code == 200


def test_every_code_has_a_status_and_is_found_by_it() -> None:
    assert code_of(418) == "bad_request"
    assert [code_of(STATUS[code]) for code in ("too_large", "wrong_type", "unreadable", "overloaded", "internal")] == [
        "too_large", "wrong_type", "unreadable", "overloaded", "internal",
    ]  # fmt: skip


# what is shown


def text_of(answer) -> str:
    assert answer.mimetype == "text/html"
    return answer.get_data(as_text=True)


@pytest.mark.parametrize("path", ["/", "/model", "/nowhere", "/api/model", "/static/guide.css", "/healthz"])
def test_every_answer_has_the_protecting_headers(client: FlaskClient, path: str) -> None:
    with client.get(path, headers=HTML) as answer:
        for name, value in HEADERS.items():
            assert answer.headers[name] == value
        assert "unsafe" not in answer.headers["Content-Security-Policy"]


def test_pages_name_no_other_host_and_need_no_inline_code(client: FlaskClient) -> None:
    shown = "".join(
        [text_of(client.get("/")), text_of(client.get("/model")), text_of(client.post("/", **form((png(), "a.png"))))]
    )
    assert not re.search(r"(?:src|href|action)=\"(?:https?:)?//", shown)
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|style=|<style", shown)
    for file in (ROOT / "fieldguide" / "web" / "static").iterdir():
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(", file.read_text())


def test_static_files_are_kept_for_ever_under_an_address_of_their_content(client: FlaskClient) -> None:
    addresses = re.findall(r"/static/[^\"]+\?v=[0-9a-f]{12}", text_of(client.get("/")))
    assert len(addresses) == 3
    for address in addresses:
        with client.get(address) as answer:
            assert "max-age=31536000" in answer.headers["Cache-Control"]
    assert client.get("/").headers["Cache-Control"] == "no-store"


def test_a_plain_form_gets_a_page_with_a_plate_for_each_photograph(client: FlaskClient) -> None:
    shown = text_of(client.post("/", **form((png((255, 0, 0)), "r.png"), (png((0, 0, 255)), "b.png"), (b"bad", "bad.png"))))
    assert [*re.findall(r">(Plate \w+)<", shown)] == ["Plate I", "Plate II", "Plate III"]
    assert re.findall(r'<h2 id="plate-\d"[^>]*>([^<]+)<', shown)[:2] == ["Red", "Blue"]
    assert "not an image" in shown
    assert shown.count('src="data:image/jpeg;base64,') == 4  # a photograph and an overlay of two


@pytest.mark.parametrize(("colour", "words"), [((128, 128, 128), "Not sure"), ((5, 5, 5), "Not one of the species I know")])
def test_the_page_says_so_when_the_model_does_not_know(client: FlaskClient, colour: tuple[int, ...], words: str) -> None:
    assert words in text_of(client.post("/", **form((png(colour), "a.png"))))


def test_the_script_gets_the_plates_alone_with_its_number(client: FlaskClient) -> None:
    shown = text_of(client.post("/", headers={"X-Plates": "14"}, **form((png(), "a.png"))))
    assert "Plate XIV" in shown
    assert "<html" not in shown


@pytest.mark.parametrize(
    ("sent", "status"), [(form((b"bad", "a.png")), 400), ({"data": {}}, 415), (form((png()[:60], "a.png")), 422)]
)
def test_a_form_without_an_answer_has_the_status_of_its_problem(client: FlaskClient, sent: dict, status: int) -> None:
    answer = client.post("/", **sent)
    assert answer.status_code == status
    assert "No answer" in text_of(answer)


def test_names_of_files_and_classes_are_escaped(tmp_path: Path, settings: Settings) -> None:
    model = write_model(tmp_path, NASTY, dataset="<img src=x onerror=alert(1)>")
    client = create_app(Settings(**{**vars(settings), "model": model})).test_client()
    name = '"><img src=x onerror=alert(1)>.png'
    shown = text_of(client.post("/", **form((png(), name)))) + text_of(client.get("/model"))
    for bad in ("<script>alert", "<img src=x", "<b>", 'q"uote'):
        assert bad not in shown
    assert "&lt;script&gt;alert(1)" in shown
    found = client.post("/api/predict", **form((png(), name))).json["results"][0]
    assert found["answers"][0]["name"] == NASTY[0]


def test_model_facts_are_a_click_away(client: FlaskClient, settings: Settings) -> None:
    assert 'href="/model"' in text_of(client.get("/"))
    shown, facts = text_of(client.get("/model")), client.get("/api/model").json
    assert facts["sha256"] in shown
    assert facts["bytes"] == settings.model.stat().st_size
    assert facts["class_names"] == list(NAMES)
    assert facts["metadata"]["calibration"] == METADATA["calibration"]


def test_accuracy_is_shown_with_its_interval_and_number(tmp_path: Path, settings: Settings) -> None:
    measured = {"accuracy": 0.962, "accuracy_low": 0.929, "accuracy_high": 0.98, "n": 1235}
    model = write_model(tmp_path, evaluate=measured)
    shown = text_of(create_app(Settings(**{**vars(settings), "model": model})).test_client().get("/model"))
    for words in ("96.2 %", "1,235 test photographs,", "which it had never seen", "92.9 % to 98.0 %"):
        assert words in shown


def test_an_accuracy_of_valid_is_not_told_as_one_of_test(tmp_path: Path, settings: Settings) -> None:
    measured = {"split": "valid", "accuracy": 0.962, "accuracy_low": 0.929, "accuracy_high": 0.98, "n": 733}
    model = write_model(tmp_path, evaluate=measured)
    shown = text_of(create_app(Settings(**{**vars(settings), "model": model})).test_client().get("/model"))
    assert "733 valid photographs," in shown
    assert "by which its best epoch and its thresholds were chosen" in shown
    assert "never seen" not in shown


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0.0 %"), (0.0001, "< 0.1 %"), (0.5, "50.0 %"), (0.99949, "99.9 %"), (0.9999, "> 99.9 %"), (1, "100.0 %")],
)
def test_percent(share: float, text: str) -> None:
    assert percent(share) == text


def test_names_are_shown_as_one_writes_them() -> None:
    shown = [common_name(name) for name in ("PAINTED LADY", "red_wing", "McDonald's Moth", "孔雀蛺蝶")]
    assert shown == ["Painted Lady", "Red Wing", "McDonald's Moth", "孔雀蛺蝶"]
    assert [roman(number) for number in (1, 4, 9, 14, 40, 1994, 3999)] == ["I", "IV", "IX", "XIV", "XL", "MCMXCIV", "MMMCMXCIX"]


# example photographs


def test_an_example_is_the_first_training_photograph_in_use(tmp_path: Path, settings: Settings) -> None:
    _, manifest = write_examples(tmp_path)
    client = create_app(Settings(**{**vars(settings), "manifest": manifest})).test_client()
    answer = client.get("/examples/0.jpg")
    assert (answer.status_code, answer.mimetype) == (200, "image/jpeg")
    pixels = decode(answer.data, 16)
    assert np.abs(pixels.astype(int) - (255, 0, 0)).max() < 6
    shown = text_of(client.post("/", **form((png(), "a.png"))))
    assert "/examples/0.jpg" in shown
    assert "/examples/3.jpg" not in shown


def test_examples_that_are_gone_or_changed_are_absent(tmp_path: Path) -> None:
    _, manifest = write_examples(tmp_path)
    examples = Examples(manifest, tmp_path)
    assert [name in examples for name in NAMES] == [True, False, True, False]
    assert [examples.jpeg(name) is not None for name in NAMES] == [
        True,
        False,
        False,
        False,
    ]  # BLUE's bytes are not the manifest's
    (tmp_path / "odd.csv").write_text("a,b\n1,2\n")
    assert "RED" not in Examples(tmp_path / "odd.csv", tmp_path)


def test_examples_of_data_that_have_changed_are_the_new_ones(tmp_path: Path) -> None:
    _, manifest = write_examples(tmp_path)
    examples = Examples(manifest, tmp_path)
    first = examples.jpeg("RED")
    content = png((0, 0, 255))
    (tmp_path / "shard").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    head = manifest.read_text().splitlines()[0]
    manifest.write_text(f"{head}\ntrain,0,RED,a,shard,0,{len(content)},1,1,{digest},,True,\n")
    second = examples.jpeg("RED")
    assert first is not None and second is not None
    assert np.abs(decode(second, 16).astype(int) - (0, 0, 255)).max() < 6
    assert "BLUE" not in examples
    manifest.unlink()
    assert "RED" not in examples


# the queue


def test_places_are_bounded_and_come_back() -> None:
    slots = Slots(3, within_s=1)
    with slots.taken(2):
        with pytest.raises(Problem, match="overloaded") as caught, slots.taken(2):
            pass
        assert caught.value.headers() == {"Retry-After": "1"}
        with slots.taken(1):
            assert slots.n_taken == 3
    assert slots.n_taken == 0


def test_a_slow_network_gets_a_short_queue_but_never_refuses_all() -> None:
    slots = Slots(32, within_s=1)
    slots.learn(0.001)
    assert slots.limit == 32
    for _ in range(100):
        slots.learn(0.05)
    assert slots.limit in (7, 8)  # of 20 a second
    for _ in range(100):
        slots.learn(9.0)
    assert slots.limit == 2
    with slots.taken(1), slots.taken(15), pytest.raises(Problem), slots.taken(1):
        pass


class Slow:
    """A classifier that says when it was asked for how many, and answers when it is let."""

    def __init__(self, image_px: int = 2) -> None:
        self.image_px, self.let, self.sizes = image_px, threading.Event(), []

    def predict_pixels(self, pixels: np.ndarray, k: int, activation: bool) -> list[Prediction]:
        self.sizes.append(len(pixels))
        assert self.let.wait(10)
        return [Prediction((), "sure", float(one.mean()), None) for one in pixels]


def decoded(encoded: bytes, side: int) -> np.ndarray:
    """An image of one byte, or none."""
    if not encoded:
        raise Problem("unreadable", "It is empty.")
    return np.full((side, side, 3), encoded[0], np.uint8)


def batcher_of(n_workers: int, max_batch: int) -> Batcher:
    return Batcher(n_workers, max_batch, k=5, cores=Semaphore(n_workers), decode=decoded, on_batch=lambda *_: None)


def submitted(batcher: Batcher, classifier: object, numbers: range) -> list[Future]:
    return [batcher.submit(classifier, bytes([number])) for number in numbers]


def test_images_that_wait_together_are_computed_together_and_answered_apart() -> None:
    classifier, batcher = Slow(), batcher_of(1, max_batch=4)
    first = submitted(batcher, classifier, range(1))
    wait_until(lambda: classifier.sizes == [1])
    rest = submitted(batcher, classifier, range(1, 8))
    classifier.let.set()
    assert [item.result(10).known_score for item in first + rest] == list(range(8))
    assert classifier.sizes == [1, 4, 3]
    batcher.close()


def test_an_image_that_cannot_be_read_spoils_no_other_of_its_batch() -> None:
    classifier, batcher = Slow(), batcher_of(1, max_batch=4)
    first = submitted(batcher, classifier, range(1))
    wait_until(lambda: classifier.sizes == [1])
    good, bad, last = (batcher.submit(classifier, encoded) for encoded in (b"\1", b"", b"\2"))
    classifier.let.set()
    assert [item.result(10).known_score for item in (*first, good, last)] == [0, 1, 2]
    with pytest.raises(Problem, match="empty"):
        bad.result(10)
    alone = batcher.submit(classifier, b"")
    with pytest.raises(Problem, match="empty"):
        alone.result(10)
    assert classifier.sizes == [1, 2]
    batcher.close()


def test_large_images_go_in_smaller_batches() -> None:
    classifier, batcher = Slow(image_px=224), batcher_of(1, max_batch=8)
    classifier.let.set()
    for item in submitted(batcher, classifier, range(9)):
        item.result(10)
    assert sum(classifier.sizes) == 9
    assert max(classifier.sizes) <= 2
    batcher.close()


def test_workers_share_what_waits() -> None:
    classifier, batcher = Slow(), batcher_of(2, max_batch=8)
    busy = submitted(batcher, classifier, range(1))
    wait_until(lambda: len(classifier.sizes) == 1)
    busy += submitted(batcher, classifier, range(1))
    wait_until(lambda: len(classifier.sizes) == 2)
    rest = submitted(batcher, classifier, range(8))
    classifier.let.set()
    assert [item.result(10).known_score for item in rest] == list(range(8))
    assert max(classifier.sizes) <= 4
    batcher.close()


def test_images_for_different_models_never_share_a_batch() -> None:
    old, new, batcher = Slow(), Slow(), batcher_of(1, max_batch=8)
    first = submitted(batcher, old, range(1))
    wait_until(lambda: old.sizes == [1])
    waiting = submitted(batcher, old, range(2)) + submitted(batcher, new, range(3))
    old.let.set(), new.let.set()
    for item in first + waiting:
        item.result(10)
    assert (old.sizes, new.sizes) == ([1, 2], [3])
    batcher.close()


def test_more_than_there_are_places_for_is_told_to_come_back(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    application, let = create_app(Settings(**{**vars(settings), "max_files": 1, "max_images": 2})), threading.Event()
    slow = OnnxClassifier.predict_pixels
    monkeypatch.setattr(OnnxClassifier, "predict_pixels", lambda *arguments: let.wait(10) and slow(*arguments))
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(application.test_client().post("/api/predict", **raw(png())).status_code))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: application.extensions["guide"].slots.n_taken == 2)
    for path in ("/api/predict", "/"):
        answer = application.test_client().post(path, **raw(png()))
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    let.set()
    for thread in threads:
        thread.join()
    assert found == [200, 200]
    assert application.extensions["guide"].slots.n_taken == 0


# the model file


def test_without_a_model_there_is_no_application(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.onnx: No such file or directory; create it with: dvc repro"):
        create_app(Settings(model=tmp_path / "none.onnx"))


def test_a_new_model_is_taken_up_and_a_broken_or_missing_one_is_not(client: FlaskClient, settings: Settings) -> None:
    watched = client.application.extensions["guide"].watched

    def answered() -> str:
        watched.look()
        return client.post("/api/predict", **raw(png())).json["results"][0]["answers"][0]["name"]

    assert answered() == "RED"
    write_model(settings.model.parent, ("SCARLET", *NAMES[1:]))
    assert answered() == "SCARLET"
    settings.model.write_bytes(settings.model.read_bytes()[:-200])
    assert answered() == "SCARLET"
    settings.model.unlink()
    assert answered() == "SCARLET"
    write_model(settings.model.parent, ("CRIMSON", *NAMES[1:]))
    assert answered() == "CRIMSON"
    counted = client.get("/metrics").text
    assert 'fieldguide_model_reloads_total{outcome="taken"} 2.0' in counted
    assert 'fieldguide_model_reloads_total{outcome="refused"} 1.0' in counted


# being watched, and what is left behind


def test_metrics_count_what_was_answered(client: FlaskClient) -> None:
    client.post("/api/predict", **form((png(), "a.png"), (b"bad", "b.png")))
    answer = client.get("/metrics")
    assert answer.content_type == "text/plain; version=0.0.4; charset=utf-8"
    for line in (
        'fieldguide_http_requests_total{route="/api/predict",status="200"} 1.0',
        'fieldguide_images_total{verdict="sure"} 1.0',
        'fieldguide_images_refused_total{code="not_an_image"} 1.0',
        "fieldguide_images_in_server 0.0",
        "fieldguide_batch_images_sum 1.0",
    ):
        assert line in answer.text


def test_health_and_readiness(client: FlaskClient) -> None:
    assert client.get("/healthz").json == {"status": "ok"}
    assert client.get("/readyz").json["status"] == "ready"
    client.application.extensions["guide"].draining = True
    answer = client.get("/readyz")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert client.get("/healthz").status_code == 200


def test_no_upload_is_written_to_disk(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        pytest.fail("a temporary file")

    for name in ("TemporaryFile", "NamedTemporaryFile", "SpooledTemporaryFile", "mkstemp"):
        monkeypatch.setattr(tempfile, name, forbidden)
    large = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (1200, 1200, 3), dtype=np.uint8)), "PNG")
    assert len(large) > 4_000_000
    boundary, body = encode_multipart({FIELD: FileStorage(io.BytesIO(large), "a.png")})  # the client itself would use a file
    answer = client.post("/api/predict", data=body, content_type=f"multipart/form-data; boundary={boundary}")
    assert answer.status_code == 200


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, which images.py ignores
def test_three_thousand_mutated_images_get_no_fault(client: FlaskClient, make_jpeg) -> None:
    random = np.random.default_rng(0)
    kinds = [
        make_jpeg(1),
        png(size=(64, 64)),
        *(encoded(Image.open(io.BytesIO(make_jpeg(2))), kind) for kind in ("WEBP", "GIF", "TIFF", "BMP")),
    ]
    seen = set()
    for number in range(3000):
        content = bytearray(kinds[number % len(kinds)])
        for place in random.integers(0, min(len(content), 600 if number % 2 else len(content)), random.integers(1, 9)):
            content[place] = random.integers(0, 256)
        if number % 5 == 0:
            del content[random.integers(1, len(content)) :]
        answer = client.post("/api/predict", **raw(bytes(content)))
        assert answer.status_code in (200, 400, 413, 415, 422), (number, answer.data)
        assert b"Traceback" not in answer.data
        seen.add(answer.status_code)
    assert seen >= {200, 400, 422}


# structure


def test_serving_needs_neither_torch_nor_dvc_nor_pandas() -> None:
    code = "import sys, fieldguide.commands.serve, fieldguide.web.server; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    )
    assert loaded.isdisjoint({"torch", "dvc", "mlflow", "pandas", "matplotlib", "cv2", "scipy"})
    for file in (ROOT / "fieldguide" / "web").glob("*.py"):
        assert third_party(file).isdisjoint({"PIL", "onnxruntime"})


def test_a_problem_is_utf_8() -> None:
    assert json.loads(Problem("too_large", "ä").body())["detail"] == "ä"
