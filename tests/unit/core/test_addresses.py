"""Addresses and paths told apart, and what is kept of an address."""

import pytest

from fieldguide.core.addresses import has_secrets, identity_of, scheme_of, without_secrets


@pytest.mark.parametrize(
    ("path", "scheme"),
    [
        ("https://example.org/a.zip", "https"),
        ("HTTP://example.org/a.zip", "http"),
        ("s3://bucket/folder", "s3"),
        ("gs://bucket", "gs"),
        ("ftp://example.org/a.zip", "ftp"),
        ("", ""),
        ("photos", ""),
        ("../photos.zip", ""),
        ("~/photos", ""),
        ("/data/https://x", ""),
        (r"C:\photos", ""),
        ("C:/photos", ""),
        ("C://photos", ""),
        ("https:/example.org", ""),
        ("s3:bucket", ""),
    ],
)
def test_an_address_begins_with_a_scheme(path: str, scheme: str) -> None:
    assert scheme_of(path) == scheme


LONG = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("path", "kept", "secret"),
    [
        ("my photos?token=x.zip", "my photos?token=x.zip", False),
        (r"C:\a@b:c", r"C:\a@b:c", False),
        ("https://example.org/a.zip", "https://example.org/a.zip", False),
        ("https://me@example.org/a.zip#part", "https://example.org/a.zip", False),
        ("https://me:pa@ss@example.org:8443/a.zip", "https://example.org:8443/a.zip", True),
        ("https://example.org/a@b:c.zip?v=2", "https://example.org/a@b:c.zip?v=2", False),
        ("https://example.org?token=t", "https://example.org", True),
        ("https://example.org/get?id=7&token=t&v=2", "https://example.org/get?id=7&v=2", True),
        ("https://example.org/get?id=7;API_KEY=t", "https://example.org/get?id=7", True),
        (f"https://example.org/get?id={LONG}", "https://example.org/get", False),
        (
            "https://b.s3.amazonaws.com/a.zip?X-Amz-Credential=c&X-Amz-Date=d&X-Amz-Signature=s",
            "https://b.s3.amazonaws.com/a.zip",
            True,
        ),
        ("https://b.blob.core.windows.net/a.zip?sv=2&se=3&sr=b&sp=r&sig=s", "https://b.blob.core.windows.net/a.zip", True),
        ("https://storage.googleapis.com/a.zip?X-Goog-Signature=s", "https://storage.googleapis.com/a.zip", True),
        ("https://d.cloudfront.net/a.zip?Expires=1&Signature=s&Key-Pair-Id=k", "https://d.cloudfront.net/a.zip", True),
        ("s3://key:secret@bucket/a.zip", "s3://bucket/a.zip", True),
        ("https://[broken/a.zip?password=p", "https://[broken/a.zip", True),
    ],
)
def test_secrets_are_left_out(path: str, kept: str, secret: bool) -> None:
    assert without_secrets(path) == kept
    assert has_secrets(path) is secret


def test_a_new_signature_is_the_same_address_and_another_id_is_not() -> None:
    signed = [identity_of(f"https://me:{text}@example.org/a.zip?id={LONG}&sig={text}") for text in "ab"]
    assert signed[0] == signed[1] == f"https://example.org/a.zip?id={LONG}"
