import hashlib
from pathlib import Path

import pytest

from app.api import auth as api_keys
from app.api.auth import ApiKeys, line_of, make_key
from app.cli import main as cli
from app.errors import ApiKeysUnreadable
from tests.running import usage_error


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def check_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_keys, "_CHECK_SECONDS", 0.0)


def test_key_is_recognized_by_its_hash(tmp_path: Path) -> None:
    key = make_key()
    line = line_of("mill-7", key)
    assert key not in line
    assert line == f"mill-7 {hashlib.sha256(key.encode()).hexdigest()}"
    keys = ApiKeys(write(tmp_path / "keys", f"# the mill\n\n{line}\n"))
    assert keys.name_of(key) == "mill-7"
    for other in (key[:-1], key + "x", key.upper(), "", "\ud800", hashlib.sha256(key.encode()).hexdigest()):
        assert keys.name_of(other) is None


def test_keys_are_unique_and_have_256_bits() -> None:
    made = {make_key() for _ in range(100)}
    assert len(made) == 100
    assert all(len(key) == len("ecl_") + 43 for key in made)


def test_keys_are_rotated_while_the_service_runs(tmp_path: Path) -> None:
    old, new = make_key(), make_key()
    path = write(tmp_path / "keys", line_of("old", old))
    keys = ApiKeys(path)
    write(path, f"{line_of('old', old)}\n{line_of('new', new)}")
    assert (keys.name_of(old), keys.name_of(new)) == ("old", "new")
    write(path, line_of("new", new))
    assert (keys.name_of(old), keys.name_of(new)) == (None, "new")
    replacement = write(tmp_path / "other", line_of("old", old))
    replacement.replace(path)  # as mounted secrets are
    assert (keys.name_of(old), keys.name_of(new)) == ("old", None)


@pytest.mark.parametrize("broken", ["name without a hash", "name " + "0" * 63, "na me " + "0" * 64])
def test_invalid_file_prevents_startup_but_does_not_change_keys_at_runtime(
    tmp_path: Path, broken: str
) -> None:
    key = make_key()
    path = write(tmp_path / "keys", line_of("mill", key))
    keys = ApiKeys(path)
    write(path, f"{line_of('mill', key)}\n{broken}")
    assert keys.name_of(key) == "mill"
    with pytest.raises(ApiKeysUnreadable, match="line 2 must be NAME SHA256"):
        ApiKeys(path)
    path.unlink()
    assert keys.name_of(key) == "mill"
    with pytest.raises(ApiKeysUnreadable):
        ApiKeys(path)


def test_name_may_have_two_keys_during_rotation(tmp_path: Path) -> None:
    old, new = make_key(), make_key()
    keys = ApiKeys(write(tmp_path / "keys", f"{line_of('mill', old)}\n{line_of('mill', new)}"))
    assert keys.name_of(old) == keys.name_of(new) == "mill"


def test_command_creates_a_key_without_storing_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "keys", "# without an end of line")
    for name in ("a", "b"):
        assert cli.main(["key", name, "--file", str(path)]) == 0
        printed = capsys.readouterr()
        key = printed.out.strip()
        assert ApiKeys(path).name_of(key) == name
        assert key not in path.read_text(encoding="utf-8")
    assert cli.main(["key", "c"]) == 0
    printed = capsys.readouterr()
    assert line_of("c", printed.out.strip()) in printed.err
    assert "Received: 'two words'" in usage_error(["key", "two words"], capsys)
