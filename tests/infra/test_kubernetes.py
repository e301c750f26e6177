"""The manifests against Kubernetes's own schemas, and against what the service is."""

import copy
import re
import shutil
import subprocess
from typing import Any

import kubernetes_validate
import pytest
import yaml

from app.batches import batches
from app.server import run as serving
from app.settings import Settings
from app.workers.starting import END_TIMEOUT_SECONDS
from tests.infra.manifests import (
    DEPLOYMENT,
    FOLDER,
    PROBES,
    container_of,
    documents,
    redis_settings,
    setting,
    variables_of,
)
from tests.infra.test_observability import exposed, named
from tests.test_house import ROOT

# The oldest version that the README supports, and the latest that the package knows.
VERSIONS = ["1.27", kubernetes_validate.latest_version()]
MEBIBYTE = 2**20
UNITS = {"Mi": MEBIBYTE, "Gi": 1024 * MEBIBYTE, "mb": MEBIBYTE, "gb": 1024 * MEBIBYTE}
# Kinds that Kubernetes does not define: of kustomize, of the Prometheus Operator, and of prometheus-adapter.
FOREIGN = {
    "kustomization.yaml",
    "monitoring/service-monitor.yaml",
    "monitoring/prometheus-adapter-rules.yaml",
}
FILES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.yaml"))
MANIFESTS = [
    pytest.param(manifest, id=f"{name}-{manifest['kind']}-{manifest['metadata']['name']}")
    for name in FILES
    if name not in FOREIGN
    for manifest in documents(name)
]
WORKLOADS = [DEPLOYMENT, "redis.yaml"]
README = (FOLDER / "README.md").read_text(encoding="utf-8")
KUBECTL = shutil.which("kubectl")
SECRETS = {
    "ext-classify-keys": {"keys"},
    "ext-classify-redis": {"password", "url"},
    "ext-classify-prometheus": {"key"},
}


def bytes_of(quantity: str) -> int:
    return int(quantity[:-2]) * UNITS[quantity[-2:]]


def deployment() -> Any:
    return documents(DEPLOYMENT)[0]


def autoscaler() -> Any:
    return documents("autoscaler.yaml")[0]


def pod_of(name: str) -> Any:
    return documents(name)[0]["spec"]["template"]["spec"]


def adapter_rules() -> list[Any]:
    rules: list[Any] = documents("monitoring/prometheus-adapter-rules.yaml")[0]["rules"]
    return rules


def default(name: str) -> Any:
    return Settings.model_fields[name].default


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", MANIFESTS)
def test_kubernetes_knows_every_word_of_it(manifest: Any, version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


def test_a_word_that_kubernetes_does_not_know_is_found() -> None:
    misspelt = copy.deepcopy(deployment())
    container_of(misspelt)["redinessProbe"] = container_of(misspelt).pop("readinessProbe")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(misspelt, VERSIONS[-1], strict=True)


def test_every_manifest_is_applied_or_said_to_be_optional() -> None:
    text = (FOLDER / "kustomization.yaml").read_text(encoding="utf-8")
    applied = yaml.safe_load(text)["resources"]
    optional = re.findall(r"^  # - (\S+)$", text, re.MULTILINE)
    assert (
        sorted([*applied, *optional, "kustomization.yaml", "monitoring/prometheus-adapter-rules.yaml"])
        == FILES
    )


@pytest.mark.slow
@pytest.mark.skipif(
    KUBECTL is None, reason="kubectl is not installed: https://kubernetes.io/docs/tasks/tools"
)
def test_kustomize_names_no_namespace_and_the_image_that_is_to_run() -> None:
    assert KUBECTL is not None
    built = subprocess.run(
        [KUBECTL, "kustomize", str(FOLDER)], capture_output=True, text=True, timeout=180, check=True
    )
    manifests = list(yaml.safe_load_all(built.stdout))
    for manifest in manifests:
        kubernetes_validate.validate(manifest, VERSIONS[-1], strict=True)
        assert "namespace" not in manifest["metadata"]
    by_kind = {manifest["kind"]: manifest for manifest in manifests}
    [image] = yaml.safe_load((FOLDER / "kustomization.yaml").read_text(encoding="utf-8"))["images"]
    assert container_of(by_kind["Deployment"])["image"] == f"{image['newName']}:{image['newTag']}"
    # A changed redis.conf has another name, so that Redis restarts with it.
    [volume] = by_kind["StatefulSet"]["spec"]["template"]["spec"]["volumes"]
    assert volume["configMap"]["name"] == by_kind["ConfigMap"]["metadata"]["name"] != "ext-classify-redis"


def test_every_variable_is_a_setting_and_has_a_value_that_it_takes() -> None:
    variables = variables_of(container_of(deployment()))
    names = {name.removeprefix("EXT_CLASSIFY_").lower() for name in variables}
    assert all(name.startswith("EXT_CLASSIFY_") for name in variables)
    assert names <= set(Settings.model_fields)
    given = {
        name.removeprefix("EXT_CLASSIFY_").lower(): value
        for name, value in variables.items()
        if isinstance(value, str) and not name.endswith("_FILE")
    }
    Settings(**given, api_keys_file=__file__, host="0.0.0.0")  # noqa: S104 - as in the image


def test_every_setting_that_a_file_names_there_is() -> None:
    texts = [path.read_text(encoding="utf-8") for path in FOLDER.rglob("*") if path.is_file()]
    found = set(re.findall(r"EXT_CLASSIFY_([A-Z_]+)\b(?!…)", "\n".join(texts))) - {"PORT"}
    assert {name.lower() for name in found} <= set(Settings.model_fields)


def test_no_service_of_the_namespace_becomes_a_setting() -> None:
    """The Service's own address would be EXT_CLASSIFY_PORT, and the service would not start."""
    [service] = documents("service.yaml")
    assert service["metadata"]["name"].upper().replace("-", "_") + "_PORT" == "EXT_CLASSIFY_PORT"
    assert pod_of(DEPLOYMENT)["enableServiceLinks"] is False


def test_ports_agree() -> None:
    [service] = documents("service.yaml")
    [port] = container_of(deployment())["ports"]
    assert port["containerPort"] == default("port")
    assert re.search(r"^EXPOSE (\d+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)[
        1
    ] == str(port["containerPort"])
    assert [p["targetPort"] for p in service["spec"]["ports"]] == [port["name"]]
    assert {container_of(deployment())[probe]["httpGet"]["port"] for probe in PROBES} == {port["name"]}
    [ingress] = documents("network-policy.yaml")[0]["spec"]["ingress"]
    assert [p["port"] for p in ingress["ports"]] == [port["name"]]
    [endpoint] = documents("monitoring/service-monitor.yaml")[0]["spec"]["endpoints"]
    assert endpoint["port"] == service["spec"]["ports"][0]["name"]


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_pod_may_do_nothing_that_it_need_not(name: str) -> None:
    pod, container = pod_of(name), container_of(documents(name)[0])
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert all(container["resources"][kind].keys() == {"cpu", "memory"} for kind in ("requests", "limits"))
    for key in ("hostNetwork", "hostPID", "hostIPC", "serviceAccountName"):
        assert key not in pod


def test_it_runs_as_the_images_user() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    context = pod_of(DEPLOYMENT)["securityContext"]
    assert f"USER {context['runAsUser']}:{context['runAsGroup']}" in dockerfile


def test_nothing_is_written_but_what_has_a_bound() -> None:
    volumes = {volume["name"]: volume for volume in pod_of(DEPLOYMENT)["volumes"]}
    writable = [m for m in container_of(deployment())["volumeMounts"] if not m.get("readOnly")]
    assert [mount["mountPath"] for mount in writable] == ["/tmp"]  # noqa: S108
    assert "sizeLimit" in volumes["tmp"]["emptyDir"]


def test_keys_are_a_folder_that_is_renewed() -> None:
    """A file that is mounted by subPath stays as it was when the pod started."""
    [mount] = [m for m in container_of(deployment())["volumeMounts"] if m["name"] == "keys"]
    [key] = SECRETS["ext-classify-keys"]
    assert "subPath" not in mount
    assert setting("api_keys_file") == f"{mount['mountPath']}/{key}"


def test_the_grace_period_covers_all_that_the_service_does_at_its_end() -> None:
    needed_seconds = (
        float(setting("stop_delay_seconds"))
        + float(setting("stop_grace_seconds"))
        + serving._ANSWERING_SECONDS  # noqa: SLF001
        + batches.CLOSING_SECONDS
        + END_TIMEOUT_SECONDS
    )
    assert needed_seconds == 45
    assert pod_of(DEPLOYMENT)["terminationGracePeriodSeconds"] >= needed_seconds + 10


def test_accepted_batch_is_answered_or_deferred_before_its_pod_ends() -> None:
    assert float(setting("stop_grace_seconds")) > float(setting("sync_deadline_seconds"))
    assert setting("redis_url") == {"secretKeyRef": {"name": "ext-classify-redis", "key": "url"}}
    # Longer than balancers need to learn that a pod is not ready.
    readiness = container_of(deployment())["readinessProbe"]
    assert float(setting("stop_delay_seconds")) >= readiness["periodSeconds"]


def test_memory_adds_up() -> None:
    limit = bytes_of(container_of(deployment())["resources"]["limits"]["memory"])
    needed = (
        int(setting("classifiers")) * int(setting("max_image_memory_bytes"))
        + int(setting("max_pending_bytes"))
        + int(setting("max_answer_cache_bytes"))
        + 256 * MEBIBYTE
    )
    text = (FOLDER / DEPLOYMENT).read_text(encoding="utf-8")
    *parts, total = map(int, re.findall(r"#\s+(\d+) MiB   ", text))
    assert sum(parts) == total == limit / MEBIBYTE
    assert sum(parts[:-1]) == needed / MEBIBYTE
    assert limit - needed >= 256 * MEBIBYTE


def test_each_classifier_has_a_core_and_http_has_some_beside() -> None:
    resources = container_of(deployment())["resources"]
    assert int(resources["requests"]["cpu"]) == int(setting("classifiers")) < int(resources["limits"]["cpu"])


def test_pod_is_restarted_only_after_a_minute_without_responses() -> None:
    container = container_of(deployment())
    liveness, startup = container["livenessProbe"], container["startupProbe"]
    assert liveness["httpGet"]["path"] == "/healthz"
    assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 60
    assert liveness["timeoutSeconds"] >= 5
    assert container["readinessProbe"]["httpGet"]["path"] == startup["httpGet"]["path"] == "/readyz"
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 60


def test_a_rollout_takes_no_pod_away_before_another_is_ready() -> None:
    spec = deployment()["spec"]
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert "replicas" not in spec  # the autoscaler's to say
    assert autoscaler()["spec"]["minReplicas"] == 3


def test_selectors_find_the_pods_that_they_mean() -> None:
    for name, selectors in (
        (
            DEPLOYMENT,
            [
                deployment()["spec"]["selector"]["matchLabels"],
                documents("service.yaml")[0]["spec"]["selector"],
            ],
        ),
        ("redis.yaml", [documents("redis.yaml")[0]["spec"]["selector"]["matchLabels"]]),
    ):
        labels = documents(name)[0]["spec"]["template"]["metadata"]["labels"]
        assert all(selector == labels for selector in selectors)
    pods = deployment()["spec"]["selector"]["matchLabels"]
    redis = documents("redis.yaml")
    policy, redis_policy = documents("network-policy.yaml")
    assert documents("disruption-budget.yaml")[0]["spec"]["selector"]["matchLabels"] == pods
    assert policy["spec"]["podSelector"]["matchLabels"] == pods
    assert all(
        s["labelSelector"]["matchLabels"] == pods for s in pod_of(DEPLOYMENT)["topologySpreadConstraints"]
    )
    assert redis_policy["spec"]["podSelector"] == redis[0]["spec"]["selector"]
    assert redis_policy["spec"]["ingress"][0]["from"] == [{"podSelector": {"matchLabels": pods}}]
    assert redis[1]["spec"]["selector"] == redis[0]["spec"]["selector"]["matchLabels"]
    assert redis[0]["spec"]["serviceName"] == redis[1]["metadata"]["name"]


def test_what_the_autoscaler_asks_for_is_computed_from_metrics_that_there_are() -> None:
    asked = [m["pods"]["metric"]["name"] for m in autoscaler()["spec"]["metrics"] if m["type"] == "Pods"]
    provided = [
        rule.get("name", {}).get("as", rule["seriesQuery"].partition("{")[0]) for rule in adapter_rules()
    ]
    assert sorted(asked) == sorted(provided)
    for rule in adapter_rules():
        used = named(rule["seriesQuery"]) | named(rule["metricsQuery"])
        assert used
        assert used <= exposed()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed: make system-deps")
def test_prometheus_reads_the_adapters_queries(tmp_path: Any) -> None:
    rules = [{"record": f"a:{number}", "expr": as_asked(rule)} for number, rule in enumerate(adapter_rules())]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "adapter", "rules": rules}]}), encoding="utf-8")
    checked = subprocess.run(
        ["promtool", "check", "rules", str(path)],  # noqa: S607
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    assert "2 rules found" in checked.stdout + checked.stderr


def as_asked(rule: Any) -> str:
    """The query as prometheus-adapter fills it in."""
    filled = {
        "<<.GroupBy>>": "pod",
        "<<.Series>>": rule["seriesQuery"].partition("{")[0],
        "<<.LabelMatchers>>": 'namespace="mill",pod=~"a|b"',
    }
    query: str = rule["metricsQuery"]
    for place, value in filled.items():
        query = query.replace(place, value)
    assert "<<" not in query
    return query


def test_pods_are_added_before_the_service_refuses() -> None:
    targets = {
        m["pods"]["metric"]["name"]: m["pods"]["target"]["averageValue"]
        for m in autoscaler()["spec"]["metrics"]
        if m["type"] == "Pods"
    }
    assert float(targets["ext_classify_wait_seconds"]) < 1.5 < default("max_wait_seconds")
    assert 2 * bytes_of(targets["ext_classify_pending_bytes"]) == int(setting("max_pending_bytes"))


def test_redis_has_room_for_the_deferred_batches_of_all_replicas() -> None:
    settings = redis_settings()
    replicas = autoscaler()["spec"]["maxReplicas"]
    # A deferred batch takes twice its bytes of a replica's memory, and once of Redis.
    deferred = replicas * int(setting("max_pending_bytes")) // 2
    assert deferred == 768 * MEBIBYTE
    assert bytes_of(settings["maxmemory"]) >= deferred + 150 * 10**6
    memory = container_of(documents("redis.yaml")[0])["resources"]["limits"]["memory"]
    assert bytes_of(memory) >= 2 * bytes_of(settings["maxmemory"])
    assert settings["maxmemory-policy"] == "volatile-lru"
    assert settings["appendonly"] == "yes"


def test_metadata_addresses_cannot_be_reached() -> None:
    [*_, internet] = documents("network-policy.yaml")[0]["spec"]["egress"]
    blocks = {to["ipBlock"]["cidr"]: to["ipBlock"]["except"] for to in internet["to"]}
    assert "169.254.0.0/16" in blocks["0.0.0.0/0"]
    assert "fc00::/7" in blocks["::/0"]
    assert internet["ports"] == [{"protocol": "TCP", "port": 443}]


def test_every_other_way_out_is_named() -> None:
    dns, redis, _ = documents("network-policy.yaml")[0]["spec"]["egress"]
    assert {port["port"] for port in dns["ports"]} == {53}
    assert [port["port"] for port in redis["ports"]] == [6379]
    for policy in documents("network-policy.yaml"):
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        assert {} not in policy["spec"]["ingress"] + policy["spec"]["egress"]


def test_no_secret_is_written_down_and_each_is_explained() -> None:
    for name in FILES:
        assert "Secret" not in {manifest.get("kind") for manifest in documents(name)}
    used: dict[str, set[str]] = {}
    for name in FILES:
        for secret, key in secrets_in(documents(name)):
            used.setdefault(secret, set()).update(key)
    assert used == SECRETS
    for secret, keys in SECRETS.items():
        command = re.findall(rf"kubectl create secret generic {secret} ((?:.*\\\n)*.*)", README)[0]
        assert set(re.findall(r"--from-(?:file|literal)=(\w+)", command)) == keys


def secrets_in(value: Any) -> list[tuple[str, set[str]]]:
    """Each Secret that is named anywhere, and which of its keys."""
    if isinstance(value, list):
        return [found for item in value for found in secrets_in(item)]
    if not isinstance(value, dict):
        return []
    found = [pair for item in value.values() for pair in secrets_in(item)]
    references = [value[kind] for kind in ("secretKeyRef", "credentials") if kind in value]
    found += [(reference["name"], {reference["key"]}) for reference in references]
    if "secret" in value:
        found.append((value["secret"]["secretName"], {"keys"}))
    return found


def test_the_readme_names_every_file() -> None:
    assert set(re.findall(r"^\| `([a-z./-]+)` \|", README, re.MULTILINE)) == {*FILES, "redis.conf"} - {
        "kustomization.yaml"
    }
