"""infra/compose.yaml: closed to all but loopback, and at one with the service's settings."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.batches import batches
from app.server import run as serving
from app.settings import Settings
from app.workers.starting import END_TIMEOUT_SECONDS
from tests.infra.manifests import redis_settings, setting
from tests.test_house import ROOT

INFRA = ROOT / "infra"
COMPOSE: dict[str, Any] = yaml.safe_load((INFRA / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
PROMETHEUS: dict[str, Any] = yaml.safe_load(
    (INFRA / "observability" / "prometheus.yml").read_text(encoding="utf-8")
)
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
VARIABLES: dict[str, str] = SERVICES["classify"]["environment"]
SECOND_UNITS = {"s": 1, "m": 60}
BYTE_UNITS = {"m": 2**20, "g": 2**30}


def seconds_of(duration: str) -> int:
    return int(duration[:-1]) * SECOND_UNITS[duration[-1]]


def bytes_of(size: str) -> int:
    return int(size[:-1]) * BYTE_UNITS[size[-1]]


def mounts(name: str) -> list[tuple[str, str, str]]:
    """What is mounted, where, and how."""
    return [(*volume.split(":"), "rw")[:3] for volume in SERVICES[name].get("volumes", [])]


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_may_do_nothing_that_it_need_not(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert service["user"].partition(":")[0] not in ("0", "root")
    assert service["healthcheck"]["test"]
    for key in ("privileged", "cap_add", "network_mode", "pid", "container_name"):
        assert key not in service


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_open_to_loopback_only(name: str) -> None:
    ports = SERVICES[name].get("ports", [])
    assert all(re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port) for port in ports)
    assert bool(ports) == ("front" in SERVICES[name]["networks"])


def test_the_replicas_are_reached_through_nginx_and_redis_by_them_alone() -> None:
    assert {name for name, network in COMPOSE["networks"].items() if network.get("internal")} == {
        "inside",
        "store",
    }
    on = {n: {name for name, s in SERVICES.items() if n in s["networks"]} for n in COMPOSE["networks"]}
    assert on["inside"] == {"nginx", "classify", "prometheus"}
    assert on["store"] == {"classify", "redis"}
    assert VARIABLES["EXT_CLASSIFY_AUTH"] == "none"
    assert "ports" not in SERVICES["classify"]


def test_every_variable_is_a_setting_and_has_a_value_that_it_takes() -> None:
    given = {name.removeprefix("EXT_CLASSIFY_").lower(): value for name, value in VARIABLES.items()}
    assert all(name.startswith("EXT_CLASSIFY_") for name in VARIABLES)
    assert given.keys() <= Settings.model_fields.keys()
    Settings(**given, host="0.0.0.0")  # type: ignore[arg-type]  # noqa: S104 - as in the image


def test_hosts_and_ports_agree() -> None:
    port = Settings.model_fields["port"].default
    assert f"EXPOSE {port}\n" in DOCKERFILE
    assert VARIABLES["EXT_CLASSIFY_REDIS_URL"].startswith("redis://redis:6379/")
    [upstream] = re.findall(
        r"^server (\S+) ", (INFRA / "nginx" / "upstreams.conf").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert upstream == f"classify:{port}"
    [job] = PROMETHEUS["scrape_configs"]
    [discovery] = job["dns_sd_configs"]
    assert (discovery["names"], discovery["port"]) == (["classify"], port)
    [listen] = re.findall(r"listen (\d+);", (INFRA / "nginx" / "nginx.conf").read_text(encoding="utf-8"))
    assert SERVICES["nginx"]["ports"] == [f"127.0.0.1:{listen}:{listen}"]
    assert f":{listen}/" in SERVICES["nginx"]["healthcheck"]["test"][-1]


def test_it_runs_as_the_images_user_with_its_probe() -> None:
    assert f"USER {SERVICES['classify']['user']}\n" in DOCKERFILE
    [probe] = re.findall(r"^HEALTHCHECK .* CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    assert ["CMD", *yaml.safe_load(probe)] == SERVICES["classify"]["healthcheck"]["test"]
    assert (INFRA / SERVICES["classify"]["build"]["context"] / "Dockerfile").resolve() == ROOT / "Dockerfile"


def test_what_is_mounted_there_is_and_cannot_be_written() -> None:
    for name in SERVICES:
        for source, _, how in mounts(name):
            if source.startswith("."):
                assert (INFRA / source).is_file()
                assert how == "ro"
            else:
                assert source in COMPOSE["volumes"]


def test_pages_are_reached_through_nginx_and_figures_are_not() -> None:
    text = (ROOT / "infra" / "nginx" / "nginx.conf").read_text(encoding="utf-8")
    passed_on = re.findall(r"location (?:= )?(/\S*) \{ proxy_pass", text)
    assert {"/", "/playground/", "/docs", "/docs/", "/openapi.json", "/model", "/readyz"} <= set(passed_on)
    assert "/metrics" not in passed_on


def test_prometheus_loads_the_alerts_under_the_job_that_they_name() -> None:
    assert PROMETHEUS["rule_files"] == ["alerts.yml"]
    folders = {Path(place).name: Path(place).parent for _, place, how in mounts("prometheus") if how == "ro"}
    assert folders["alerts.yml"] == folders["prometheus.yml"]
    [job] = PROMETHEUS["scrape_configs"]
    assert f'job="{job["job_name"]}"' in (INFRA / "observability" / "alerts.yml").read_text(encoding="utf-8")


def test_grace_periods_add_up() -> None:
    needed_seconds = (
        float(VARIABLES["EXT_CLASSIFY_STOP_DELAY_SECONDS"])
        + float(VARIABLES["EXT_CLASSIFY_STOP_GRACE_SECONDS"])
        + serving._ANSWERING_SECONDS  # noqa: SLF001
        + batches.CLOSING_SECONDS
        + END_TIMEOUT_SECONDS
    )
    assert needed_seconds == 36
    assert seconds_of(SERVICES["classify"]["stop_grace_period"]) > needed_seconds
    deadline_seconds = Settings.model_fields["sync_deadline_seconds"].default
    assert float(VARIABLES["EXT_CLASSIFY_STOP_GRACE_SECONDS"]) > deadline_seconds
    assert SERVICES["nginx"]["stop_signal"] == "SIGQUIT"
    assert seconds_of(SERVICES["nginx"]["stop_grace_period"]) > deadline_seconds


def test_memory_is_counted_as_in_kubernetes() -> None:
    """Redis's and a replica's; nginx keeps bodies in its own."""
    for name in ("classifiers", "max_image_memory_bytes"):
        assert VARIABLES[f"EXT_CLASSIFY_{name.upper()}"] == setting(name)
    assert bytes_of(SERVICES["classify"]["mem_limit"]) == 2 * 2**30
    assert bytes_of(SERVICES["redis"]["mem_limit"]) >= 2 * bytes_of(
        redis_settings()["maxmemory"].removesuffix("b")
    )
    [bodies] = re.findall(r"size=(\w+)", SERVICES["nginx"]["tmpfs"][0])
    assert bytes_of(SERVICES["nginx"]["mem_limit"]) >= bytes_of(bodies) + 2**27


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed: make system-deps")
def test_prometheus_reads_its_configuration() -> None:
    checked = subprocess.run(
        ["promtool", "check", "config", str(INFRA / "observability" / "prometheus.yml")],  # noqa: S607
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "1 rule files found" in checked.stdout
