"""The manifests of infra/kubernetes, read."""

from typing import Any

import yaml

from tests.test_house import ROOT

FOLDER = ROOT / "infra" / "kubernetes"
DEPLOYMENT = "deployment.yaml"
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")


def documents(name: str) -> list[Any]:
    """The documents of one file, which the caller may change."""
    return list(yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8")))


def container_of(workload: Any) -> Any:
    [container] = workload["spec"]["template"]["spec"]["containers"]
    return container


def variables_of(container: Any) -> dict[str, Any]:
    """Each variable's value; that of a Secret is where it is found."""
    return {v["name"]: v.get("value", v.get("valueFrom")) for v in container["env"]}


def setting(name: str) -> Any:
    """What the Deployment says of one of the service's settings."""
    return variables_of(container_of(documents(DEPLOYMENT)[0]))[f"EXT_CLASSIFY_{name.upper()}"]


def redis_settings() -> dict[str, str]:
    """The last word of each line is its value."""
    lines = (FOLDER / "redis.conf").read_text(encoding="utf-8").splitlines()
    return dict(line.split(maxsplit=1) for line in lines if line and not line.startswith("#"))  # type: ignore[misc]
