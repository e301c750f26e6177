"""The Deployment's own pod under podman, which runs Kubernetes's manifests, in a network of its own."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.api.auth import line_of, make_key
from tests.conftest import SAMPLES
from tests.infra.manifests import DEPLOYMENT, PROBES, container_of, documents

IMAGE = os.environ.get("CONTAINER_IMAGE")
POD = "ext-classify-pod"
CONTAINER = f"{POD}-ext-classify"
PORT = 8000
KEY = make_key()
AS_GATEWAY = ("-H", f"X-API-Key: {KEY}")
JSON = ("-H", "Content-Type: application/json")
COMMAND_TIMEOUT_SECONDS = 120
START_TIMEOUT_SECONDS = 60.0

pytestmark = [
    pytest.mark.skipif(IMAGE is None, reason="CONTAINER_IMAGE names no image: make container-test"),
    pytest.mark.skipif(
        os.environ.get("ENGINE") != "podman",
        reason="ENGINE is not podman: make container-deps container-test",
    ),
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("nsenter") is None,
        reason="networks need root and nsenter: make container-test as root",
    ),
]


class Namespace:
    """A network and mounts of its own, so that no rules remain in the machine's firewall."""

    def __init__(self, **podman_settings: str) -> None:
        self._environment = os.environ | podman_settings
        # It says when it has moved: until then, to enter its namespaces is to enter the machine's own.
        self._holder = subprocess.Popen(
            ["unshare", "-n", "-m", "sh", "-c", "ip link set lo up && echo moved && exec sleep infinity"],  # noqa: S607
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "moved\n"

    def run(
        self, *command: str, check: bool = True, timeout_seconds: float = COMMAND_TIMEOUT_SECONDS
    ) -> "subprocess.CompletedProcess[str]":
        ended = subprocess.run(
            ["nsenter", "-t", str(self._holder.pid), "-n", "-m", *command],  # noqa: S607
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
        assert ended.returncode == 0 or not check, (command, ended.stdout, ended.stderr)
        return ended

    def curl(self, path: str, *arguments: str) -> tuple[int, Any]:
        """The status, and what the JSON of the body says, if it is any."""
        said = self.run(
            "curl",
            "-s",
            "-m",
            "30",
            "-w",
            "\n%{http_code}",
            *arguments,
            f"http://127.0.0.1:{PORT}{path}",
            check=False,
        )
        body, _, status = said.stdout.rpartition("\n")
        return int(status), json.loads(body) if body.startswith("{") else body

    def close(self) -> None:
        with self._holder:
            self._holder.kill()


def pod_of(deployment: Any, image: str) -> dict[str, Any]:
    """The manifest without what podman does not support, with a port to reach it and without secrets.

    Those are ConfigMaps here: podman 4.3 reads a Secret in one way for a variable and in another for a file.
    """
    spec = deployment["spec"]["template"]["spec"]
    del spec["topologySpreadConstraints"], spec["tolerations"]
    for volume in spec["volumes"]:
        if "secret" in volume:
            volume["configMap"] = {"name": volume.pop("secret")["secretName"]}
    container = container_of(deployment)
    container["image"] = image
    container["imagePullPolicy"] = "Never"
    container["ports"][0]["hostPort"] = PORT
    for variable in container["env"]:
        if "valueFrom" in variable:
            variable["valueFrom"] = {"configMapKeyRef": variable["valueFrom"]["secretKeyRef"]}
    for probe in PROBES:
        del container[probe]  # it would run curl inside, by a timer of systemd
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": POD, "labels": labels},
        "spec": {**spec, "restartPolicy": "Never"},
    }


def config_map(name: str, **values: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": values}


def network_settings(folder: Path) -> list[str]:
    given = Path(os.environ.get("CONTAINERS_CONF", "/dev/null")).read_text(encoding="utf-8")
    lines = [line for line in given.splitlines() if not line.startswith("netns")]
    return [*lines, "[network]", 'network_backend = "netavark"', f'network_config_dir = "{folder}"']


def storage_settings(folder: Path) -> list[str]:
    """The images are the machine's own; a pod of a run that was killed is not."""
    info = subprocess.run(
        ["podman", "info", "--format", "{{.Store.GraphRoot}}"],  # noqa: S607
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_SECONDS,
        check=True,
    )
    return [
        "[storage]",
        'driver = "overlay"',
        f'graphroot = "{folder / "storage"}"',
        f'runroot = "{folder / "run"}"',
        "[storage.options]",
        f'additionalimagestores = ["{info.stdout.strip()}"]',
    ]


def written_to(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def namespace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Namespace]:
    folder: Path = tmp_path_factory.mktemp("podman")
    namespace = Namespace(
        CONTAINERS_CONF=str(written_to(folder / "containers.conf", network_settings(folder))),
        CONTAINERS_STORAGE_CONF=str(written_to(folder / "storage.conf", storage_settings(folder))),
    )
    try:
        yield namespace
    finally:
        namespace.close()


@pytest.fixture(scope="module")
def pod(namespace: Namespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Namespace]:
    """Ready; taken away at the end."""
    assert IMAGE is not None
    manifest: Path = tmp_path_factory.mktemp("pod") / "pod.yaml"
    [deployment] = documents(DEPLOYMENT)
    written = [
        config_map("ext-classify-keys", keys=line_of("gateway", KEY)),
        # No Redis listens there: the service uses its own memory.
        config_map("ext-classify-redis", url="redis://:nobody@127.0.0.1:6379/0"),
        pod_of(deployment, IMAGE),
    ]
    manifest.write_text(yaml.safe_dump_all(written), encoding="utf-8")
    try:
        namespace.run("podman", "kube", "play", str(manifest))
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while namespace.curl("/readyz")[0] != 200:
            assert time.monotonic() < deadline, namespace.run("podman", "logs", CONTAINER, check=False).stderr
            time.sleep(0.2)
        yield namespace
    finally:
        namespace.run("podman", "kube", "play", "--down", str(manifest), check=False)
        namespace.run("podman", "volume", "rm", "ext-classify-keys", check=False)


def status_line(pod: Namespace, name: str) -> list[str]:
    """The values of a line of /proc/PID/status of the service's process."""
    said = pod.run("podman", "exec", CONTAINER, "cat", "/proc/1/status").stdout
    [values] = [line.split()[1:] for line in said.splitlines() if line.startswith(f"{name}:")]
    return values


def test_what_the_probes_ask_is_answered(pod: Namespace) -> None:
    [deployment] = documents(DEPLOYMENT)
    container = container_of(deployment)
    for probe in PROBES:
        assert pod.curl(container[probe]["httpGet"]["path"])[0] == 200


def test_the_three_forms_of_request_are_answered(pod: Namespace, tmp_path: Path) -> None:
    images = sorted(SAMPLES.glob("*.png"))
    rows = [[n, base64.b64encode(image.read_bytes()).decode()] for n, image in enumerate(images)]
    batch = tmp_path / "batch.json"
    batch.write_text(json.dumps({"data": rows}), encoding="utf-8")
    status, answer = pod.curl("/classify", *AS_GATEWAY, *JSON, "--data-binary", f"@{batch}")
    assert status == 200
    labels = [outcome["label"] for _, outcome in answer["data"]]
    assert [label.lower() for label in labels] == [image.stem for image in images]

    png = ("-H", "Content-Type: image/png", "--data-binary", f"@{images[0]}")
    assert pod.curl("/classify", *AS_GATEWAY, *png)[1]["label"] == labels[0]

    files = [part for image in images for part in ("-F", f"file=@{image}")]
    results = pod.curl("/classify", *AS_GATEWAY, *files)[1]["results"]
    assert [result["label"] for result in results] == labels


def test_request_without_a_key_reaches_only_the_probes(pod: Namespace) -> None:
    for path, as_whom, status in (
        ("/classify", (*JSON, "-d", "{}"), 401),
        ("/metrics", (), 401),
        ("/metrics", AS_GATEWAY, 200),
    ):
        assert pod.curl(path, *as_whom)[0] == status


def test_the_pod_may_do_what_the_manifest_says_and_no_more(pod: Namespace) -> None:
    [deployment] = documents(DEPLOYMENT)
    assert set(status_line(pod, "Uid")) == {"10001"}
    assert status_line(pod, "CapBnd") == ["0000000000000000"]
    assert status_line(pod, "NoNewPrivs") == ["1"]
    assert status_line(pod, "Seccomp") == ["2"]
    for folder, may in (("/tmp", True), ("/", False), ("/etc/ext-classify", False)):  # noqa: S108 - the only one
        touched = pod.run("podman", "exec", CONTAINER, "touch", f"{folder}/new", check=False)
        assert (touched.returncode == 0) is may
    limit = pod.run("podman", "inspect", CONTAINER, "--format", "{{.HostConfig.Memory}}").stdout.strip()
    assert container_of(deployment)["resources"]["limits"]["memory"] == f"{int(limit) // 2**30}Gi"


def test_what_was_begun_is_answered_before_the_pod_ends(pod: Namespace, tmp_path: Path) -> None:
    """The last of these tests, for the pod is over then."""
    [deployment] = documents(DEPLOYMENT)
    spec = deployment["spec"]["template"]["spec"]
    image = base64.b64encode((SAMPLES / "scratches.png").read_bytes()).decode()
    batch = tmp_path / "batch.json"
    batch.write_text(json.dumps({"data": [[n, image] for n in range(600)]}), encoding="utf-8")
    grace_seconds = spec["terminationGracePeriodSeconds"]
    with ThreadPoolExecutor() as threads:
        asked = threads.submit(pod.curl, "/classify", *AS_GATEWAY, *JSON, "--data-binary", f"@{batch}")
        time.sleep(0.3)
        began = time.monotonic()
        # Not the whole pod, whose network podman would take away at once, and Kubernetes does last.
        stopped = threads.submit(pod.run, "podman", "stop", "-t", str(grace_seconds), CONTAINER)
        time.sleep(1.0)
        assert pod.curl("/readyz")[0] == 503
        assert pod.curl("/healthz")[0] == 200
        status, answer = asked.result()
        assert status == 200
        assert len(answer["data"]) == 600
        stopped.result()
        assert time.monotonic() - began < grace_seconds
    exited = pod.run(
        "podman", "inspect", CONTAINER, "--format", "{{.State.Status}} {{.State.ExitCode}}"
    ).stdout
    assert exited.split() == ["exited", "0"]
