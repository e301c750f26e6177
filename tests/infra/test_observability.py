"""Rules and dashboard name metrics that there are, and are what Prometheus and Grafana read."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from app import metrics  # noqa: F401 - registers what is counted
from tests.test_house import ROOT

FOLDER = ROOT / "infra" / "observability"
ALERTS = (FOLDER / "alerts.yml").read_text(encoding="utf-8")
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text(encoding="utf-8"))
PROMTOOL = shutil.which("promtool")


def exposed() -> set[str]:
    names: set[str] = set()
    for metric in REGISTRY.collect():
        suffixes = {
            "counter": ("_total",),
            "histogram": ("_bucket", "_sum", "_count"),
        }.get(metric.type, ("",))
        names.update(metric.name + suffix for suffix in suffixes)
    return names


def named(text: str) -> set[str]:
    return set(re.findall(r"\bext_classify_[a-z_]+", text))


def test_every_metric_that_is_watched_is_exposed() -> None:
    watched = named(ALERTS) | named(json.dumps(DASHBOARD))
    assert len(watched) > 10
    assert watched <= exposed()


def test_every_metric_of_ours_is_on_the_dashboard_or_alerted_on() -> None:
    watched = named(ALERTS) | named(json.dumps(DASHBOARD))
    ours = {metric.name for metric in REGISTRY.collect() if metric.name.startswith("ext_classify_")}
    assert {name for name in ours if not any(found.startswith(name) for found in watched)} == set()


def test_panels_lie_side_by_side_and_not_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells
        assert panel["title"]
        assert panel["description"]
        assert panel["targets"]


@pytest.mark.skipif(PROMTOOL is None, reason="there is no promtool: make system-deps")
def test_prometheus_reads_the_rules(tmp_path: Path) -> None:
    assert PROMTOOL is not None
    checked = subprocess.run(
        [PROMTOOL, "check", "rules", str(FOLDER / "alerts.yml")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "11 rules found" in checked.stdout + checked.stderr
