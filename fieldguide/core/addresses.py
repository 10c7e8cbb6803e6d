"""Addresses in `data.path`, and what of them may be printed and recorded."""

import re

ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)  # two characters or more: C:\ is a drive
SECRET_KEY = re.compile(  # of signed addresses of S3, Google Cloud Storage and Azure, and of the usual tokens
    r".*(token|sig|key|pass|pwd|secret|auth|cred|session|jwt|policy).*|x-(amz|goog)-.*|code|sas|expires|hmac"
    r"|s[eiprtv]|spr|sk(e|oid|s|t|tid|v)",
    re.IGNORECASE,
)
LONGEST_VALUE = 31  # a guess: longer values of a query can be secrets under any name


def scheme_of(path: str) -> str:
    """`https` for `https://example.org/a.zip`; "" for what is a path."""
    match = ADDRESS.match(path)
    return match[1].lower() if match else ""


def has_secrets(path: str) -> bool:
    """Whether an address contains a password, or a query with a key such as token or X-Amz-Signature."""
    if not scheme_of(path):
        return False
    user, at, _ = _network_place(path).rpartition("@")
    return ("@" in at and ":" in user) or any(SECRET_KEY.fullmatch(pair.partition("=")[0]) for pair in _query(path))


def without_secrets(path: str) -> str:
    """An address without user, password, fragment, and without values of the query that can be secrets; a path as it is."""
    return _shortened(path, LONGEST_VALUE) if scheme_of(path) else path


def identity_of(address: str) -> str:
    """What names the content of an address whatever its signature; not to be printed."""
    return _shortened(address, len(address))


def _shortened(address: str, longest: int) -> str:
    before = re.split("[?#]", address, maxsplit=1)[0]
    place = _network_place(address)
    rest = before.partition("://")[2][len(place) :]
    pairs = [pair.partition("=") for pair in _query(address)]
    kept = [f"{key}{equals}{value}" for key, equals, value in pairs if not SECRET_KEY.fullmatch(key) and len(value) <= longest]
    return f"{scheme_of(address)}://{place.rpartition('@')[2]}{rest}{'?' if kept else ''}{'&'.join(kept)}"


def _network_place(address: str) -> str:
    """`user:password@host:port`, also where the address is malformed."""
    return re.split("[/?#]", address.partition("://")[2], maxsplit=1)[0]


def _query(address: str) -> list[str]:
    """The `key=value` of an address."""
    return [pair for pair in re.split("[&;]", address.partition("#")[0].partition("?")[2]) if pair]
