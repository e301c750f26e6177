import pytest

from app.workers import pool


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine, a replacement takes longer to start than rows wait for it in production."""
    monkeypatch.setattr(pool, "GRACE_SECONDS", 120.0)
