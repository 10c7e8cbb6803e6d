"""The OpenAPI 3.1 description of the API; tests check the server against it with schemathesis."""

from typing import Any

from fieldguide.core.formats import readable
from fieldguide.core.taxonomy import RANKS
from fieldguide.web.problems import MEDIA_TYPE, STATUS
from fieldguide.web.settings import Settings
from fieldguide.web.uploads import FIELD

TEXTS = {
    400: "Not an image, no image, or an invalid request",
    403: "Cross-site request",
    404: "No such class, or no example photograph of it",
    413: "Too many bytes, files or pixels",
    415: "Unsupported content type or image format",
    422: "A damaged or truncated image",
    503: "The server is overloaded or stopping; try again after Retry-After",
}
NUMBER = {"type": "number"}
TEXT = {"type": "string"}
SHA256 = {"type": "string", "pattern": "^[0-9a-f]{64}$"}


def description(settings: Settings, prefix: str) -> dict[str, Any]:
    """The OpenAPI document, with the limits of this server; prefix: before the paths of its URLs, or empty."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "fieldguide",
            "version": "1",
            "description": f"Photographs to species. Formats: {readable()}. A request has at most {settings.max_body_bytes:,} "
            f"bytes and {settings.max_files} files, an image at most {settings.max_pixels:,} pixels.",
        },
        "servers": [{"url": prefix or "/"}],
        "paths": {
            "/api/predict": {"post": predict(settings)},
            "/api/model": {"get": operation("model", "The model in use", answer("Model"))},
            "/healthz": {"get": operation("health", "Liveness", answer("Status"))},
            "/readyz": {"get": operation("ready", "Readiness for images", answer("Status"), 503)},
            "/metrics": {"get": operation("metrics", "Prometheus metrics", {"text/plain": {"schema": TEXT}})},
            "/openapi.json": {
                "get": operation("openapi", "This document", {"application/json": {"schema": {"type": "object"}}})
            },
            "/examples/{index}.jpg": {"get": example()},
        },
        "components": {"schemas": schemas(settings)},
    }


def operation(name: str, summary: str, content: dict[str, Any], *errors: int) -> dict[str, Any]:
    """An operation that returns 200 with `content`, or one of `errors` as problem details; an unknown Host gets 400."""
    responses: dict[str, Any] = {"200": {"description": "Success", "content": content}}
    for status in sorted({400, *errors}):
        responses[str(status)] = {
            "description": TEXTS[status],
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        if status == 503:
            responses["503"]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "required": True}}
    return {"operationId": name, "summary": summary, "responses": responses}


def answer(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def predict(settings: Settings) -> dict[str, Any]:
    files = {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1, "maxItems": settings.max_files}
    form = {"type": "object", "properties": {FIELD: files}, "required": [FIELD]}
    image = {"schema": {"type": "string", "format": "binary"}}
    summary = "Ranked classes for one or more photographs, in their order"
    body = {"multipart/form-data": {"schema": form}, "image/*": image, "application/octet-stream": image}
    return operation("predict", summary, answer("Predictions"), 403, 413, 415, 422, 503) | {
        "requestBody": {"required": True, "content": body},
    }


def example() -> dict[str, Any]:
    image = {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}
    place = {"name": "index", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 0}}
    return operation("example", "A training photograph of a class", image, 404) | {"parameters": [place]}


def schemas(settings: Settings) -> dict[str, Any]:
    """The schemas of the responses."""
    probability = {"type": "number", "minimum": 0, "maximum": 1}
    name = {"type": ["string", "null"], "description": "From the model's taxonomy; null if it has none"}
    one = {"name": TEXT, "probability": probability, "index": {"type": "integer", "minimum": 0}}
    one |= {"common_name": name, "scientific_name": name}
    taxon = closed({"rank": {"enum": list(RANKS)}, "name": TEXT, "probability": probability})
    taxon |= {"type": ["object", "null"], "description": "What an unsure image is told as: the narrowest taxon that is certain"}
    verdict = {"enum": ["sure", "unsure", "unknown"]}
    answers = {"type": "array", "items": closed(one), "minItems": 1, "maxItems": 5}
    file = {"type": ["string", "null"], "description": "The file's name as it was sent; null for a raw body"}
    answered = closed({"file": file, "verdict": verdict, "known_score": NUMBER, "taxon": taxon, "answers": answers})
    refused = closed({"file": file, "error": {"$ref": "#/components/schemas/Problem"}})
    results = {"type": "array", "items": {"oneOf": [answered, refused]}, "minItems": 1, "maxItems": settings.max_files}
    model = {
        "sha256": SHA256,
        "modified": {"type": "string", "format": "date-time"},
        "bytes": {"type": "integer"},
        "n_classes": {"type": "integer"},
        "image_px": {"type": "integer"},
        "metadata": {"type": "object", "description": "Metadata of the ONNX file: data set, accuracy, hashes, …"},
        "class_names": {"type": "array", "items": TEXT},
        "taxonomy": {"type": "object", "description": "Names and genus, family and order by class, of those that have any"},
    }
    problem = {
        "type": {"const": "about:blank"},
        "title": TEXT,
        "status": {"type": "integer"},
        "code": {"enum": list(STATUS)},
        "detail": TEXT,
    }
    status = {"type": "object", "properties": {"status": TEXT, "model": SHA256}, "required": ["status"]}
    return {
        "Predictions": closed({"model": SHA256, "results": results}),
        "Model": closed(model),
        "Status": status,
        "Problem": closed(problem),
    }


def closed(properties: dict[str, Any]) -> dict[str, Any]:
    """An object with exactly these properties."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
