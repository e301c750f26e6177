"""The gateways' templates: against their validators, the service's settings, and what Snowflake sends."""

import functools
import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import yaml
from cfnlint.api import lint_file
from cfnlint.config import ManualArgs
from cfnlint.decode import decode
from openapi_spec_validator import OpenAPIV2SpecValidator
from pycep import BicepParser

from app.api.auth import API_KEY_HEADER, ApiKeys
from app.cli.main import main
from app.server.run import _ANSWERING_SECONDS
from app.settings import Settings
from tests.test_house import ROOT

AWS, AZURE, GOOGLE = (ROOT / "infra" / name for name in ("aws", "azure", "google"))
CLOUDS = (AWS, AZURE, GOOGLE)
FILES = sorted(path for folder in CLOUDS for path in folder.iterdir())
TEMPLATES = [path for path in FILES if path.suffix != ".md"]
CLOUDFORMATION = AWS / "ext_classify.yaml"
BICEP = (AZURE / "main.bicep").read_text(encoding="utf-8")
POLICY = (AZURE / "policy.xml").read_text(encoding="utf-8")
OPENAPI = yaml.safe_load((GOOGLE / "openapi.yaml").read_text(encoding="utf-8"))
CLOUD_RUN = yaml.safe_load((GOOGLE / "cloud_run.yaml").read_text(encoding="utf-8"))
METHODS = {"POST", "GET"}
# Cloud Run's own, which no setting of it changes.
CLOUD_RUN_STOP_SECONDS = 10
# Values of parameters and of the shell's variables; others are replaced by their names.
SAMPLES = {"${tenantId}": "8f3a", "${SNOWFLAKE_STAGES}": "mill.steel.images", "snowflakeStages": "a.b.c"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT / "infra").as_posix()


@functools.cache
def cloudformation() -> dict[str, Any]:
    template, faults = decode(str(CLOUDFORMATION))
    assert not faults
    assert template is not None
    plain: dict[str, Any] = json.loads(json.dumps(template))
    return plain


def resources(kind: str) -> list[dict[str, Any]]:
    found = [r["Properties"] for r in cloudformation()["Resources"].values() if r["Type"] == f"AWS::{kind}"]
    assert found
    return found


def container(name: str) -> dict[str, Any]:
    [task] = resources("ECS::TaskDefinition")
    [found] = [c for c in task["ContainerDefinitions"] if c["Name"] == name]
    return dict(found)


def policy() -> ET.Element:
    return ET.fromstring(POLICY)  # noqa: S314 - ours


def cloud_run_container() -> dict[str, Any]:
    [found] = CLOUD_RUN["spec"]["template"]["spec"]["containers"]
    return dict(found)


def aws_environment() -> dict[str, str]:
    """With every condition true: of `Fn::If`, the first choice."""
    service = container("service")
    entries = [entry.get("Fn::If", [None, entry])[1] for entry in service["Environment"]]
    values = {entry["Name"]: entry["Value"] for entry in entries}
    names = {"SnowflakeStages": "mill.steel.images"}
    found = {k: v if isinstance(v, str) else names.get(v["Ref"], v["Ref"]) for k, v in values.items()}
    secrets = [entry.get("Fn::If", [None, entry])[1] for entry in service["Secrets"]]
    return found | {entry["Name"]: "rediss://:password@host:6379/0" for entry in secrets}


def azure_environment() -> dict[str, str]:
    entries = re.findall(r"\{ name: '([A-Z_]+)', (value|secretRef): (.+?) \}", BICEP)
    found = {
        name: "rediss://:password@host:10000/0" if kind == "secretRef" else value.strip("'")
        for name, kind, value in entries
    }
    jwks_url = re.search(r"^var jwksUrl = '(.*)'$", BICEP, re.MULTILINE)
    assert jwks_url is not None
    return found | {"EXT_CLASSIFY_JWT_JWKS_URL": jwks_url[1]}


def google_environment() -> dict[str, str]:
    entries = cloud_run_container()["env"]
    return {entry["name"]: entry.get("value", "redis://:password@host:6379/0") for entry in entries}


ENVIRONMENTS = {"aws": aws_environment, "azure": azure_environment, "google": google_environment}


def settings_of(cloud: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Settings:
    """What the service makes of the template's environment; files that it names are there."""
    for name in os.environ:
        if name.startswith("EXT_CLASSIFY_"):
            monkeypatch.delenv(name)
    for name, value in ENVIRONMENTS[cloud]().items():
        shown = SAMPLES.get(value, value)
        if name.endswith("_FILE"):
            (folder / name).touch()
            shown = str(folder / name)
        monkeypatch.setenv(name, shown)
    return Settings()


@pytest.fixture(params=ENVIRONMENTS)
def cloud(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def settings(cloud: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    return settings_of(cloud, monkeypatch, tmp_path)


def gateway_seconds(cloud: str) -> list[float]:
    """The gateway's timeouts in seconds, one for each method where they differ."""
    if cloud == "aws":
        return [method["Integration"]["TimeoutInMillis"] / 1000 for method in resources("ApiGateway::Method")]
    if cloud == "azure":
        forward = policy().find("backend/forward-request")
        assert forward is not None
        return [float(forward.attrib["timeout"])]
    return [OPENAPI["x-google-backend"]["deadline"]]


def kill_seconds(cloud: str) -> float:
    """How long after SIGTERM."""
    if cloud == "aws":
        return float(container("service")["StopTimeout"])
    if cloud == "azure":
        [seconds] = re.findall(r"terminationGracePeriodSeconds: ([0-9]+)", BICEP)
        return float(seconds)
    return CLOUD_RUN_STOP_SECONDS


# --- All of them


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_variable_of_ours_is_a_setting(path: Path) -> None:
    named = set(re.findall(r"\bEXT_CLASSIFY_([A-Z_]+)\b", path.read_text(encoding="utf-8")))
    assert named <= {name.upper() for name in Settings.model_fields}


def test_the_service_starts_with_what_it_is_told(settings: Settings) -> None:
    assert settings.host == "0.0.0.0"  # noqa: S104 - inside a container
    assert settings.port == 8000
    assert settings.redis_url is not None
    assert settings.snowflake_account is not None
    assert settings.snowflake_workload_identity_provider is not None
    assert not settings.show_docs


def test_each_gateway_lets_in_by_what_it_can_vouch_for() -> None:
    told = {name: environment()["EXT_CLASSIFY_AUTH"] for name, environment in ENVIRONMENTS.items()}
    assert told == {"aws": "api_key", "azure": "jwt", "google": "none"}


def test_the_service_answers_202_before_the_gateway_gives_up(cloud: str, settings: Settings) -> None:
    """With seconds to spare for a body to arrive and an answer to leave."""
    for seconds in gateway_seconds(cloud):
        assert settings.sync_deadline_seconds + 5 < seconds <= 29


def test_the_service_ends_before_it_is_killed(cloud: str, settings: Settings) -> None:
    ending = settings.stop_delay_seconds + settings.stop_grace_seconds + _ANSWERING_SECONDS
    assert ending < kill_seconds(cloud)


@pytest.mark.parametrize("path", TEMPLATES, ids=name_of)
def test_no_template_holds_a_secret(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"ecl_[A-Za-z0-9_-]{20}|-----BEGIN|AKIA[0-9A-Z]{16}", text)
    assert not re.search(
        r"(?i)(password|secret|api_?key)\w*['\"]?\s*[:=]\s*['\"][A-Za-z0-9+/_-]{12,}['\"]", text
    )


@pytest.mark.parametrize("folder", CLOUDS, ids=name_of)
def test_the_readme_registers_as_the_command_takes_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = (folder / "README.md").read_text(encoding="utf-8")
    command = re.search(r"^ +ext-classify (register --provider (?:.*\\\n)+.*)$", readme, re.MULTILINE)
    assert command is not None
    words = shlex.split(command[1].replace("\\\n", " ").replace("…", "x"))
    words = [
        "12345678-1234-1234-1234-123456789abc" if word in ("$TENANT", "$APPLICATION") else word
        for word in words
    ]
    assert main([*words, "--dry-run"]) == 0
    assert "CREATE OR REPLACE EXTERNAL FUNCTION" in capsys.readouterr().out


# --- Amazon


@pytest.mark.slow
def test_cfn_lint_finds_nothing() -> None:
    matches = lint_file(CLOUDFORMATION, ManualArgs(regions=["us-east-1", "eu-central-1"]))
    assert [str(match) for match in matches] == []


def test_the_resource_policy_lets_in_snowflake_for_both_methods() -> None:
    [api] = resources("ApiGateway::RestApi")
    [statement] = api["Policy"]["Statement"]
    [stage] = resources("ApiGateway::Stage")
    assert statement["Effect"] == "Allow"
    assert statement["Action"] == "execute-api:Invoke"
    assert statement["Principal"]["AWS"]["Fn::Sub"].endswith(":assumed-role/${SnowflakeRole}/snowflake")
    named = {f"execute-api:/{stage['StageName']}/{method}/classify" for method in METHODS}
    assert set(statement["Resource"]) == named


def test_both_methods_lead_signed_requests_to_the_service() -> None:
    methods = resources("ApiGateway::Method")
    assert {method["HttpMethod"] for method in methods} == METHODS
    [resource] = resources("ApiGateway::Resource")
    assert resource["PathPart"] == "classify"
    for method in methods:
        integration = method["Integration"]
        assert method["AuthorizationType"] == "AWS_IAM"
        assert integration["Type"] == "HTTP_PROXY"
        assert integration["ConnectionType"] == "VPC_LINK"
        assert integration["IntegrationHttpMethod"] == method["HttpMethod"]
        assert integration["Uri"]["Fn::Sub"].endswith(":8000/classify")


def test_the_gateway_says_who_it_is_in_the_header_that_the_service_reads() -> None:
    for method in resources("ApiGateway::Method"):
        [(place, choice)] = method["Integration"]["RequestParameters"].items()
        assert place.removeprefix("integration.request.header.").lower() == API_KEY_HEADER
        _, *keys = choice["Fn::If"]
        for key, letter in zip(keys, "AB", strict=True):
            assert key["Fn::Sub"] == f"'{{{{resolve:secretsmanager:${{GatewayKey{letter}}}:SecretString}}}}'"


def test_compressed_bodies_pass_untouched() -> None:
    [api] = resources("ApiGateway::RestApi")
    assert api["BinaryMediaTypes"] == ["*~1*"]
    assert "MinimumCompressionSize" not in api
    assert not [m for m in resources("ApiGateway::Method") if "ContentHandling" in m["Integration"]]


def test_nobody_may_take_on_the_role_until_snowflake_is_known() -> None:
    role = cloudformation()["Resources"]["SnowflakeRole"]["Properties"]
    [statement] = role["AssumeRolePolicyDocument"]["Statement"]
    assert statement["Effect"] == {"Fn::If": ["KnowsSnowflake", "Allow", "Deny"]}
    assert statement["Condition"]["Fn::If"][1] == {
        "StringEquals": {"sts:ExternalId": {"Ref": "SnowflakeExternalId"}}
    }
    assert not role.get("Policies")
    parameters = cloudformation()["Parameters"]
    assert parameters["SnowflakeUserArn"]["Default"] == parameters["SnowflakeExternalId"]["Default"] == ""


def test_every_port_is_that_of_the_service() -> None:
    [listener], [targets] = (
        resources("ElasticLoadBalancingV2::Listener"),
        resources("ElasticLoadBalancingV2::TargetGroup"),
    )
    [mapping] = container("service")["PortMappings"]
    [service] = resources("ECS::Service")
    [balanced] = service["LoadBalancers"]
    ports = {listener["Port"], targets["Port"], mapping["ContainerPort"], balanced["ContainerPort"]}
    [ingress] = resources("EC2::SecurityGroupIngress")
    assert ports | {ingress["FromPort"], ingress["ToPort"]} == {8000}


def test_only_the_load_balancer_reaches_the_tasks_and_only_the_link_the_load_balancer() -> None:
    [ingress] = resources("EC2::SecurityGroupIngress")
    assert ingress["SourceSecurityGroupId"] == {"Ref": "LoadBalancerGroup"}
    for group in resources("EC2::SecurityGroup"):
        assert not [rule for rule in group.get("SecurityGroupIngress", []) if "CidrIp" in rule]
    [balancer] = resources("ElasticLoadBalancingV2::LoadBalancer")
    assert balancer["Scheme"] == "internal"
    assert balancer["EnforceSecurityGroupInboundRulesOnPrivateLinkTraffic"] == "off"


def test_a_task_is_let_go_after_the_last_answer_that_the_gateway_waits_for() -> None:
    [targets] = resources("ElasticLoadBalancingV2::TargetGroup")
    delay = {a["Key"]: a["Value"] for a in targets["TargetGroupAttributes"]}
    assert float(delay["deregistration_delay.timeout_seconds"]) > max(gateway_seconds("aws"))


def test_slow_answers_alarm_between_the_services_deadline_and_the_gateways(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    [alarm] = [a for a in resources("CloudWatch::Alarm") if a["MetricName"] == "Latency"]
    deadline = settings_of("aws", monkeypatch, tmp_path).sync_deadline_seconds
    assert deadline < alarm["Threshold"] / 1000 < min(gateway_seconds("aws"))
    assert {a["MetricName"] for a in resources("CloudWatch::Alarm")} >= {"5XXError", "UnHealthyHostCount"}


def test_the_service_knows_both_keys_and_no_other_by_the_file_that_is_prepared(tmp_path: Path) -> None:
    [script] = container("prepare")["Command"]
    told = container("service")["Environment"]
    [keys_file] = [entry["Value"] for entry in told if entry.get("Name") == "EXT_CLASSIFY_API_KEYS_FILE"]
    folder = str(Path(keys_file).parent)
    script = script.replace("chmod 1777 /tmp\n", "").replace(folder, str(tmp_path))
    keys = {"GATEWAY_KEY_A": "a" * 48, "GATEWAY_KEY_B": "b" * 48, "SNOWFLAKE_KEY": "a PEM\nof lines"}
    environment = {"PATH": os.environ["PATH"], **keys}
    subprocess.run([*container("prepare")["EntryPoint"], script], env=environment, check=True)
    known = ApiKeys(tmp_path / Path(keys_file).name)
    assert [known.name_of(letter * 48) for letter in "abc"] == ["gateway-a", "gateway-b", None]
    assert (tmp_path / "snowflake.p8").read_text(encoding="utf-8") == "a PEM\nof lines\n"
    assert aws_environment()["EXT_CLASSIFY_SNOWFLAKE_PRIVATE_KEY_FILE"] == f"{folder}/snowflake.p8"
    mounts = [m["ContainerPath"] for name in ("prepare", "service") for m in container(name)["MountPoints"]]
    assert mounts.count(folder) == 2


# --- Azure


def test_the_bicep_parses_and_has_both_methods() -> None:
    parsed = BicepParser().parse(text=BICEP)
    operations = [
        resource["config"]["properties"]
        for resource in parsed["resources"].values()
        if resource["type"] == "Microsoft.ApiManagement/service/apis/operations"
    ]
    assert {(operation["method"], operation["urlTemplate"]) for operation in operations} == {
        (method, "/classify") for method in METHODS
    }


def test_the_policy_asks_for_snowflakes_token_and_every_value_of_it_is_set() -> None:
    assert [child.tag for child in policy()] == ["inbound", "backend", "outbound", "on-error"]
    token = policy().find("inbound/validate-jwt")
    assert token is not None
    assert token.attrib["header-name"] == "Authorization"
    assert token.findtext("audiences/audience") == "{{application-id}}"
    claim = token.find("required-claims/claim")
    assert claim is not None
    assert (claim.attrib["name"], claim.findtext("value")) == ("appid", "{{snowflake-application-id}}")
    values = set(re.findall(r"\{\{(.*?)\}\}", POLICY))
    assert values == set(re.findall(r"displayName: '([a-z-]+)', value:", BICEP))
    assert "loadTextContent('policy.xml')" in BICEP


def test_container_apps_ask_the_services_port() -> None:
    assert set(re.findall(r"\b(?:targetPort|port): (\d+)", BICEP)) == {"8000", "10000"}  # and Redis
    assert BICEP.count("path: '/readyz', port: 8000") == 2
    assert BICEP.count("path: '/healthz', port: 8000") == 1


def test_a_batch_has_a_replica_to_go_on_in_after_its_202() -> None:
    assert re.search(r"@minValue\(1\)\nparam minReplicas", BICEP)
    assert "maxReplicas: hasRedis ? maxReplicas : 1" in BICEP


# --- Google


def test_the_openapi_document_is_valid_and_has_both_methods() -> None:
    assert list(OpenAPIV2SpecValidator(OPENAPI).iter_errors()) == []
    assert {path: {method.upper() for method in methods} for path, methods in OPENAPI["paths"].items()} == {
        "/classify": METHODS
    }


def test_google_asks_for_snowflakes_token_on_every_method() -> None:
    assert OPENAPI["security"] == [{"snowflake": []}]
    assert not [m for m in OPENAPI["paths"]["/classify"].values() if "security" in m]
    definition = OPENAPI["securityDefinitions"]["snowflake"]
    account = definition["x-google-issuer"]
    assert definition["x-google-jwks_uri"].endswith(f"/jwk/{account}")
    assert definition["x-google-audiences"] == "${AUDIENCE}"


def test_google_calls_the_service_as_an_account_of_its_own() -> None:
    backend = OPENAPI["x-google-backend"]
    assert backend["jwt_audience"] == backend["address"]
    assert backend["path_translation"] == "APPEND_PATH_TO_ADDRESS"
    assert "disable_auth" not in backend
    readme = (GOOGLE / "README.md").read_text(encoding="utf-8")
    assert readme.count("--backend-auth-service-account=ext-classify-gateway@") == 2
    assert "--role=roles/run.invoker" in readme


def test_cloud_run_lets_a_batch_go_on_and_outwaits_the_gateway() -> None:
    template = CLOUD_RUN["spec"]["template"]
    annotations = template["metadata"]["annotations"]
    assert annotations["run.googleapis.com/cpu-throttling"] == "false"
    assert int(annotations["autoscaling.knative.dev/minScale"]) >= 1
    assert template["spec"]["timeoutSeconds"] > max(gateway_seconds("google"))


def test_cloud_run_asks_the_services_port() -> None:
    service = cloud_run_container()
    [port] = service["ports"]
    probes = [service[name]["httpGet"] for name in ("startupProbe", "livenessProbe")]
    assert {port["containerPort"], *(probe["port"] for probe in probes)} == {8000}
    assert [probe["path"] for probe in probes] == ["/readyz", "/healthz"]


@pytest.mark.parametrize("name", ["openapi.yaml", "cloud_run.yaml"])
def test_the_readme_sets_every_variable_before_it_is_filled_in(name: str) -> None:
    variables = set(re.findall(r"\$\{([A-Z_]+)\}", (GOOGLE / name).read_text(encoding="utf-8")))
    assert variables
    readme = (GOOGLE / "README.md").read_text(encoding="utf-8")
    before, filled_in, _ = readme.partition(f"envsubst < infra/google/{name}")
    assert filled_in
    exports = re.findall(r"export (.*\n)", before)
    exported = set(re.findall(r"\b([A-Z_]+)=", "".join(exports)))
    assert variables <= exported
