"""The API against its own description, by schemathesis: generated requests, and the answers that were promised for them."""

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import given, settings
from schemathesis import BaseSchema, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    missing_required_header,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from fieldguide.web.app import create_app
from fieldguide.web.openapi import description
from fieldguide.web.settings import Settings
from support.app_server import png, write_model

REFUSALS = [400, 404, 413, 415, 422]  # of what the description does not permit
CHECKS = (
    not_a_server_error,
    content_type_conformance,
    missing_required_header,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BaseSchema]:
    folder = tmp_path_factory.mktemp("described")
    application = create_app(Settings(model=write_model(folder), manifest=folder / "none", raw=folder, reload_s=3600))
    config = schemathesis.Config.from_dict({"checks": {"negative_data_rejection": {"expected-statuses": REFUSALS}}})
    yield schemathesis.openapi.from_wsgi("/openapi.json", application, config=config)
    application.extensions["guide"].close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "mode"),
    [
        *((path, GenerationMode.POSITIVE) for path in description(Settings(), "")["paths"]),
        *((path, GenerationMode.NEGATIVE) for path in ("/api/predict", "/examples/{index}.jpg")),
    ],
)
def test_answers_are_those_described(described: BaseSchema, path: str, mode: GenerationMode) -> None:
    method = next(iter(described.raw_schema["paths"][path])).upper()

    @settings(max_examples=100, deadline=None, database=None, derandomize=True)
    @given(case=described[path][method].as_strategy(generation_mode=mode))
    def hold(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=CHECKS)

    hold()


def test_an_answered_image_is_as_described(described: BaseSchema) -> None:
    operation = described["/api/predict"]["POST"]
    for content in (png(), png((5, 5, 5))):
        case = operation.Case(body=content, media_type="image/*", headers={"Content-Type": "image/png"})
        answer = case.call()
        assert answer.status_code == 200
        case.validate_response(answer, checks=CHECKS)


def test_every_route_for_programs_is_described(described: BaseSchema) -> None:
    rules = {rule.rule for rule in described.app.url_map.iter_rules()}
    pages = {"/", "/model", "/static/<path:filename>"}
    assert {rule.replace("<int:index>", "{index}") for rule in rules - pages} == set(described.raw_schema["paths"])
