"""The pages of infra/tutorials are done as they say, and print what they show."""

import json
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cfnlint.decode import decode
from sqlfluff.core import FluffConfig, Linter

from app.cli.main import parse_arguments
from app.cli.plan import PRICES, load_prices
from tests.infra.tutorials import FOLDER, ROOT, PageIsWrong, blocks_of, copy_clone, follow

pytestmark = pytest.mark.slow

PAGES = sorted(path.stem for path in FOLDER.glob("*.md"))
CLOUDFORMATION = "infra/aws/ext_classify.yaml"
AWS_ANSWERS = {
    "get-caller-identity": "123456789012",
    "OutputKey=='Url'": "https://abc123.execute-api.eu-central-1.amazonaws.com/prod/classify",
    "OutputKey=='RoleArn'": "arn:aws:iam::123456789012:role/ext-classify-SnowflakeRole-ABC123",
}
# What sqlfluff has no grammar for, held against Snowflake's reference by hand.
UNPARSABLE = (
    "GRANT CREATE COMPUTE POOL",
    "GRANT USAGE, CREATE STAGE, CREATE IMAGE",
    "DROP IMAGE REPOSITORY",
    "SHOW SERVICE CONTAINERS",
)


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Path]:
    """A page must leave nothing in it that git would see."""
    folder = tmp_path / "ext-classify"
    folder.mkdir()
    copy_clone(folder)
    held = {path.name for path in folder.iterdir()}
    yield folder
    assert {path.name for path in folder.iterdir()} - held <= {"ours-report"}


def page(name: str) -> str:
    return (FOLDER / f"{name}.md").read_text(encoding="utf-8")


def test_first_query(clone: Path) -> None:
    assert follow(page("first_query"), clone) == []


def test_own_network(clone: Path) -> None:
    assert follow(page("own_network"), clone) == []


def test_own_classes(clone: Path) -> None:
    assert follow(page("own_classes"), clone) == []
    report = (clone / "ours-report" / "report.html").read_text(encoding="utf-8")
    section = page("own_classes").partition("## 4. ")[2].partition("## 5. ")[0]
    named = re.findall(r"\*\*(.*?)\*\*", section)
    assert len(named) == 4
    assert [name for name in named if f"<h2>{name}</h2>" not in report] == []


def test_aws(clone: Path) -> None:
    calls = follow(page("aws"), clone, AWS_ANSWERS)
    refuse_wrong_calls(calls)
    deployments = [parameters_of(call) for call in calls if call[:3] == ["aws", "cloudformation", "deploy"]]
    assert len(deployments) == 2
    parameters = template()["Parameters"]
    first, second = deployments
    assert {name for name, parameter in parameters.items() if "Default" not in parameter} <= first.keys()
    assert second.keys() == {"SnowflakeUserArn", "SnowflakeExternalId"}
    for name, value in (first | second).items():
        assert re.fullmatch(parameters[name].get("AllowedPattern", ".+"), value), name
    named = {name for call in calls for name in re.findall(r"OutputKey=='(\w+)'", " ".join(call))}
    assert named == {"Url", "RoleArn", "TaskRoleArn", "IsTrusting"}
    assert named <= template()["Outputs"].keys()


def test_spcs(clone: Path) -> None:
    calls = follow(page("spcs"), clone)
    refuse_wrong_calls(calls)
    files = [call[call.index("-f") + 1] for call in calls if call[:2] == ["snow", "sql"]]
    assert files == [f"infra/spcs/{path.name}" for path in sorted((ROOT / "infra" / "spcs").glob("*.sql"))]
    logs = re.findall(r"SERVICE_LOGS\('[\w.]+', '0', '(\w+)'\)", page("spcs"))
    specifications = [(ROOT / "infra" / "spcs" / name).read_text() for name in ("service.yaml", "job.yaml")]
    assert [re.findall(r"- name: (\w+)\n +image:", text) for text in specifications] == [[n] for n in logs]


def test_aws_tells_what_idle_tasks_cost_and_what_is_left() -> None:
    text = " ".join(page("aws").split())
    default = {name: parameter.get("Default") for name, parameter in template()["Parameters"].items()}
    prices = load_prices(PRICES, "aws").providers["aws"]
    hourly = default["MinTasks"] * (
        default["Cpu"] / 1024 * prices.vcpu_hour_usd + default["MemoryMiB"] / 1024 * prices.gb_hour_usd
    )
    assert f"cost {hourly:.2f} USD an hour, {round(hourly, 2) * 720:.0f} USD in 30 days" in text
    month = f"{round(hourly, 2) * 720:.0f} USD"
    assert f"at Amazon {month} a month" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{month} in 30 days" in (ROOT / "infra" / "docs" / "capacity.md").read_text(encoding="utf-8")
    [cheapest] = re.findall(r"`(MinTasks=[^`]*)`", text)
    assert {word.partition("=")[0] for word in cheapest.split()} <= default.keys()
    groups = [r for r in template()["Resources"].values() if r["Type"] == "AWS::Logs::LogGroup"]
    logs = [r["Properties"]["LogGroupName"] for r in groups if r.get("DeletionPolicy") == "Retain"]
    assert len(logs) == 3
    for log in logs:
        name = log["Fn::Sub"].replace("${AWS::StackName}", "ext-classify").partition("${")[0]
        assert f"`{name}`" in text
        if "${" not in log["Fn::Sub"].replace("${AWS::StackName}", ""):
            assert f"--log-group-name {name}\n" in page("aws")
    assert f"expire after {default['LogDays']} days" in text


@pytest.mark.parametrize("name", PAGES)
def test_what_has_not_been_run_says_so(name: str) -> None:
    for section in re.split(r"^## ", page(name), flags=re.MULTILINE):
        unmarked = [b for b in blocks_of(section) if b.how is None and b.language in {"sh", "sql"}]
        if unmarked:
            before = section[: section.index(unmarked[0].text)]
            assert "\n*Not verified: " in before, section.partition("\n")[0]


@pytest.mark.parametrize("name", PAGES)
def test_sql_that_is_written_out_parses(name: str) -> None:
    linter = Linter(config=FluffConfig.from_path(str(ROOT / "infra" / "snowflake")))
    for block in blocks_of(page(name)):
        if block.language == "sql":
            statements = [text.strip() for text in block.text.split(";") if text.strip()]
            unparsable = [text for text in statements if linter.parse_string(text + ";").violations]
            assert [text for text in unparsable if not text.startswith(UNPARSABLE)] == []


@pytest.mark.parametrize("name", PAGES)
def test_commands_within_the_text_are_commands(name: str) -> None:
    text = re.sub(r"^ *```.*?^ *```$", "", page(name), flags=re.MULTILINE | re.DOTALL)
    found = [shlex.split(" ".join(words.split())) for words in re.findall(r"`([^`]+)`", text)]
    refuse_wrong_calls([words for words in found if words[0] == "make" and len(words) > 1])
    for words in found:
        if words[0] == "ext-classify" and len(words) > 1:
            parse_arguments(words[1:])


def test_words_of_the_page_in_the_browser_are_on_it() -> None:
    playground = (ROOT / "app" / "api" / "playground" / "index.html").read_text(encoding="utf-8")
    section = page("first_query").partition("## 2. ")[2].partition("## 3. ")[0]
    named = [" ".join(name.split()) for name in re.findall(r"\*\*(.*?)\*\*", section, re.DOTALL)]
    assert len(named) == 3
    assert [name for name in named if name not in playground] == []


SMALL = """
<!-- runs -->
```sh
echo "1234 of them in 0.3 s"
echo more
```

<!-- prints -->
```
1234 of them in … s
{shown}
```

<!-- runs -->
```sh
echo again
{command}
```

<!-- prints -->
```
again
```
"""


def test_output_may_differ_only_where_the_page_says(clone: Path) -> None:
    assert follow(SMALL.format(shown="more", command="true"), clone) == []


def test_page_that_shows_something_else_is_told(clone: Path) -> None:
    with pytest.raises(PageIsWrong, match=r"\n-less\n(?s:.*)\n\+more"):
        follow(SMALL.format(shown="less", command="true"), clone)


def test_command_that_fails_is_told(clone: Path) -> None:
    with pytest.raises(PageIsWrong, match="cat: nowhere"):
        follow(SMALL.format(shown="…", command="cat nowhere; true"), clone)


def template() -> dict[str, Any]:
    found, faults = decode(str(ROOT / CLOUDFORMATION))
    assert not faults
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def parameters_of(call: list[str]) -> dict[str, str]:
    overrides = call[call.index("--parameter-overrides") + 1 :]
    return dict(override.split("=", 1) for override in overrides)


def refuse_wrong_calls(calls: list[list[str]]) -> None:
    """Of what was rehearsed: commands of ours parse, files and targets of make are there."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for program, *arguments in calls:
        if program == "ext-classify":
            options = parse_arguments(arguments)
            assert all(path.exists() for path in options.get("paths", []))
        elif program == "make":
            assert re.search(rf"^{arguments[0]}:", makefile, re.MULTILINE)
        elif arguments[:2] == ["cloudformation", "deploy"]:
            assert arguments[arguments.index("--template-file") + 1] == CLOUDFORMATION
        elif program == "snow" and arguments[0] == "sql":
            file = ROOT / arguments[arguments.index("-f") + 1]
            given = [word.partition("=")[0] for flag, word in pairwise(arguments) if flag == "-D"]
            assert sorted(given) == sorted(set(re.findall(r"<% (\w+) %>", file.read_text(encoding="utf-8"))))
