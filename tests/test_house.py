"""Names of files and the top level; `make lint` holds the directions of imports."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
BARRED_NAMES = {"utils", "helpers", "common", "core", "services", "manager", "misc"}


def test_no_module_is_a_drawer_of_odds_and_ends() -> None:
    modules = [*(ROOT / "app").rglob("*.py"), *(ROOT / "model").rglob("*.py")]
    assert modules
    assert not [path for path in modules if path.stem in BARRED_NAMES]


def test_top_level_is_as_agreed() -> None:
    allowed = {"app", "model", "infra", "tests", "Dockerfile", "pyproject.toml", "README.md", "CHANGELOG.md"}
    allowed |= {"LICENSE", "Makefile", "requirements.txt"}
    locks = ("build", "connector5", "dbt", "dev", "full", "fuzz", "keras2", "site", "sql")
    allowed |= {f"requirements-{name}.txt" for name in locks}
    git = ["git", "ls-files", "--cached"]  # examples leave files of their own
    tracked = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {Path(path).parts[0] for path in tracked if not path.startswith(".")} <= allowed
