"""Rules and dashboard name metrics that there are, and are what Prometheus and Grafana read."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY

from app.telemetry import metrics  # noqa: F401 - registers what is counted
from tests.test_house import ROOT

pytestmark = pytest.mark.slow

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


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed: make system-deps")
def test_prometheus_reads_the_rules(tmp_path: Path) -> None:
    assert PROMTOOL is not None
    checked = subprocess.run(
        [PROMTOOL, "check", "rules", str(FOLDER / "alerts.yml")],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "15 rules found" in checked.stdout + checked.stderr


def images(second_day: dict[str, float], images_an_hour: int = 600) -> list[dict[str, str]]:
    """Two days of a line, every 10 minutes, whose second may be another: figures by the mean of an image."""
    usual = {"abstained": 0.01, "confidence": 0.98, "image_brightness": 0.5, "image_sharpness": 0.01}
    each = images_an_hour / 6
    series = []
    for name, mean in usual.items():
        first, second = each * mean, each * second_day.get(name, mean)
        if name == "abstained":
            grow = {
                'rows_total{outcome="abstained",': (first, second),
                'rows_total{outcome="classified",': (each - first, each - second),
            }
        else:
            grow = {f"{name}_sum{{": (first, second), f"{name}_count{{": (each, each)}
        series += [
            {
                "series": f'ext_classify_{begun}job="j",instance="i"}}',
                "values": f"0+{before}x144 {before * 144 + after}+{after}x144",
            }
            for begun, (before, after) in grow.items()
        ]
    return series


DRIFTS = {
    "ExtClassifyAbstainsMoreThanYesterday": {"abstained": 0.06},
    "ExtClassifyIsLessSureThanYesterday": {"confidence": 0.9},
    "ExtClassifyBrightnessShifted": {"image_brightness": 0.35},
    "ExtClassifyImagesLessSharpThanYesterday": {"image_sharpness": 0.004},
}
STEADY: dict[str, float] = {
    "abstained": 0.03,
    "confidence": 0.96,
    "image_brightness": 0.45,
    "image_sharpness": 0.007,
}


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed: make system-deps")
@pytest.mark.parametrize("alert", DRIFTS)
def test_drift_is_told_from_an_ordinary_day_and_from_a_few_images(alert: str, tmp_path: Path) -> None:
    assert PROMTOOL is not None
    rules = [rule for group in yaml.safe_load(ALERTS)["groups"] for rule in group["rules"]]
    [rule] = [rule for rule in rules if rule["alert"] == alert]
    own = tmp_path / "rule.json"  # promtool evaluates every rule of a file at each interval; JSON is YAML too
    own.write_text(json.dumps({"groups": [{"name": "drift", "rules": [rule]}]}), encoding="utf-8")
    raised = [{"exp_labels": {"job": "j", **rule["labels"]}, "exp_annotations": rule["annotations"]}]
    brighter = {"image_brightness": 0.65} if "Brightness" in alert else DRIFTS[alert]
    cases = [
        (images(DRIFTS[alert]), raised),
        (images(brighter), raised),
        (images(STEADY), []),
        (images(DRIFTS[alert], images_an_hour=60), []),
    ]
    file = tmp_path / "drift.json"
    tests = [
        {
            "interval": "10m",
            "input_series": series,
            "alert_rule_test": [{"eval_time": "36h", "alertname": alert, "exp_alerts": expected}],
        }
        for series, expected in cases
    ]
    file.write_text(
        json.dumps({"rule_files": [str(own)], "evaluation_interval": "10m", "tests": tests}), encoding="utf-8"
    )
    checked = subprocess.run(
        [PROMTOOL, "test", "rules", str(file)], capture_output=True, text=True, timeout=180, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
