"""The plan of the house, held by reading the imports."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted([*(ROOT / "app").rglob("*.py"), *(ROOT / "model").rglob("*.py")])
TENSORFLOW = {"tensorflow", "keras", "h5py"}
TRAINING = {
    "model/augment.py",
    "model/callbacks.py",
    "model/compile.py",
    "model/corruptions.py",
    "model/crossvalidate.py",
    "model/describe.py",
    "model/fit.py",
    "model/heavy_head.py",
    "model/leak.py",
    "model/network_cost.py",
    "model/networks.py",
    "model/patches_first.py",
    "model/plots.py",
    "model/pool_first.py",
    "model/report.py",
    "model/save.py",
    "model/study.py",
    "model/tables.py",
    "model/teacher.py",
    "model/tensorflow_engine.py",
    "model/texture_cnn.py",
    "model/train.py",
    "model/train_recipe.py",
    "model/views.py",
}

# Third parties with one home each.
HOMES = {
    "PIL": {"model/image.py"},
    "ai_edge_litert": {"model/litert_engine.py", "model/teacher.py"},
    "aiohttp": {
        *(f"app/images/{name}.py" for name in ("http", "resolver", "response_handler")),
        "app/client/asynchronous.py",
    },
    "yarl": {"app/images/http.py", "app/images/allowlist.py"},
    "pybase64": {"app/images/source.py"},
    "python_multipart": {"app/api/multipart.py"},
    "uvicorn": {
        *(f"app/{name}.py" for name in ("last_call", "serving", "workers")),
        "app/server/connection.py",
        "app/snowflake/local/server.py",
    },
    "jwt": {"app/tokens.py"},
    "opentelemetry": {"app/tracing.py"},
    "prometheus_client": {"app/metrics.py"},
    "redis": {"app/redis_store.py"},
    "sqlglot": {f"app/snowflake/local/{name}.py" for name in ("cursor", "grammar", "rewriting")},
    "duckdb": {"app/snowflake/local/cursor.py"},
    "urllib3": {"app/snowflake/local/remote.py"},
    "trustme": {"app/snowflake/local/server.py"},
    "tqdm": {"model/callbacks.py"},
    "matplotlib": {"model/plots.py"},
    "jinja2": {"model/report.py"},
    "torch": {"model/pretrained/convert.py"},
}
LOCAL_SQL = "app/snowflake/local/"
BARRED_NAMES = {"utils", "helpers", "common", "core", "services", "manager", "misc"}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def imports_by_name(path: Path) -> set[str]:
    """Every module that a file imports when it needs it."""
    calls = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
    names = [call.args[0] for call in calls if ast.unparse(call.func).endswith("import_module")]
    return {str(name.value) for name in names if isinstance(name, ast.Constant)}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def packages(path: Path) -> set[str]:
    return {module.partition(".")[0] for module in imports(path)}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_arrows_point_one_way(path: Path) -> None:
    if name_of(path).startswith("model/"):
        assert "app" not in packages(path)
        assert not packages(path) & {"fastapi", "starlette", "uvicorn"}
    elif name_of(path).startswith(("app/images/", "app/snowflake/")):
        assert not [m for m in imports(path) if m.startswith(("app.api", "app.main", "app.pipeline"))]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_tensorflow_stays_where_training_is(path: Path) -> None:
    if name_of(path) in TRAINING:
        return
    assert not packages(path) & TENSORFLOW
    assert not imports(path) & {name[:-3].replace("/", ".") for name in TRAINING}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_third_parties_have_one_home(path: Path) -> None:
    for package, homes in HOMES.items():
        assert package not in packages(path) or name_of(path) in homes
    if packages(path) & {"fastapi", "starlette"}:
        assert name_of(path).startswith(("app/main.py", "app/serving.py", "app/api/", LOCAL_SQL))
    if packages(path) & {"fakesnow", "pyarrow"}:
        assert name_of(path).startswith(LOCAL_SQL)
    if "snowflake" in packages(path) | {name.partition(".")[0] for name in imports_by_name(path)}:
        assert name_of(path).startswith(("app/snowflake/session.py", "app/snowflake/console.py", LOCAL_SQL))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_what_serves_imports_no_local_sql(path: Path) -> None:
    if not name_of(path).startswith(LOCAL_SQL):
        assert not [module for module in imports(path) if module.startswith("app.snowflake.local")]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_drawer_of_odds_and_ends(path: Path) -> None:
    assert path.stem not in BARRED_NAMES


def test_top_level_is_as_agreed() -> None:
    allowed = {"app", "model", "infra", "tests", "Dockerfile", "pyproject.toml", "README.md", "CHANGELOG.md"}
    allowed |= {"LICENSE", "Makefile", "requirements.txt"}
    locks = ("build", "connector5", "dev", "full", "fuzz", "gpu", "image", "sql")
    allowed |= {f"requirements-{name}.txt" for name in locks}
    git = ["git", "ls-files", "--cached"]  # examples leave files of their own
    tracked = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {Path(path).parts[0] for path in tracked if not path.startswith(".")} <= allowed
