"""What the tests of downloads share."""

from pathlib import Path

import pytest

from fieldguide.sources import transfer


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were waited, without waiting them."""
    naps: list[float] = []
    monkeypatch.setattr(transfer, "sleep", naps.append)
    return naps


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "downloads"
