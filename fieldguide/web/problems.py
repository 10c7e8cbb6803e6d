"""Errors of the API as RFC 9457 problem details, with a code and a sentence."""

import json
from http import HTTPStatus

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1
STATUS = {  # code: status
    "bad_request": 400,
    "no_image": 400,
    "not_an_image": 400,
    "cross_site": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "too_large": 413,
    "wrong_type": 415,
    "unreadable": 422,
    "headers_too_large": 431,
    "internal": 500,
    "not_implemented": 501,
    "overloaded": 503,
}


class Problem(Exception):
    """The error of a request or of one of its images: a `code` of `STATUS` and a readable sentence."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.status = STATUS[code]

    def content(self) -> dict[str, str | int]:
        return {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        }

    def body(self) -> bytes:
        return json.dumps(self.content(), ensure_ascii=False).encode()

    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(RETRY_AFTER_S)} if self.status == 503 else {}


def code_of(status: int) -> str:
    """The code for an error status of the framework or the server."""
    return next((code for code, number in STATUS.items() if number == status), "bad_request")
