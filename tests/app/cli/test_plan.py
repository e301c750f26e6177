import argparse
import itertools
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cli.plan import (
    PRICES,
    PROVIDERS,
    RESPONSE_BYTES,
    Measured,
    Plan,
    PlanError,
    Request,
    add_commands,
    find_cheapest,
    load_prices,
    make_plan,
    measure,
)
from app.client import Client, ClientError
from tests.conftest import SAMPLES
from tests.running import running_service

THOUSAND_A_SECOND = Measured(images_per_second=1000, cores=2, image_bytes=30_000)

rates = st.floats(20, 1e5)
counts = st.integers(1, 10**9)
deadlines = st.floats(0.01, 1e5)
providers = st.sampled_from(sorted(PROVIDERS))
services = st.sampled_from(sorted(set(PROVIDERS) - {"udf"}))
sources = st.sampled_from(["stage", "url", "base64"])


LIST_PRICES = load_prices(PRICES, "aws")


def plan_of(measured: Measured, request: Request) -> Plan:
    return make_plan(measured, request, LIST_PRICES)


def cheapest_of(measured: Measured, request: Request) -> Plan:
    return find_cheapest(measured, request, LIST_PRICES)


def run(*arguments: str) -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()

    def add(name: str, command: Any, summary: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary)
        added.set_defaults(run=command)
        return added

    add_commands(add)
    options = vars(parser.parse_args(["plan", *arguments]))
    options.pop("run")(**options)


def test_million_urls_on_aws_equals_a_calculation_by_hand() -> None:
    plan = plan_of(THOUSAND_A_SECOND, Request(source="url"))
    # 64 fetches / 0.1 s = 640 images a second, less than 1,000; 277.78 are needed
    assert plan.instances == 1  # 277.78 / 512
    assert plan.limits == {
        "time": 144,  # (14.5 - 0.1) x 640 / 64
        "even_load": 125_000,  # 1,000,000 / 4 / 2
        "max_rows": 4096,
        "response_size": 18_796,  # 10,000,000 / 532
        "request_size": 1_215,  # 10,000,000 / 8,224
    }
    assert plan.max_batch_rows == 128
    assert plan.busy_batches == 2  # 640 / 128 x (0.1 + 128 / 640) = 1.5
    assert plan.max_batches == 72  # 14.4 x 640 / 128
    assert plan.seconds == pytest.approx(1_000_000 / 512)
    hours = 1_000_000 / 512 / 3600
    assert plan.costs_usd == {
        "vCPUs": pytest.approx(2 * hours * 0.04048),
        "memory": pytest.approx(4 * hours * 0.004445),
        "gateway_requests": pytest.approx(7_813 * 3.5e-6),
        "responses_sent_out": pytest.approx(0.5 * 0.09),
        "warehouse": pytest.approx(3 * hours),
    }


def test_base64_is_limited_by_the_gateway_s_payload() -> None:
    plan = plan_of(THOUSAND_A_SECOND, Request(source="base64", images=100_000_000))
    assert plan.instances == 35  # 27,777.8 / 800
    assert plan.limits["request_size"] == 249  # 10,000,000 / (40,000 + 32)
    assert plan.max_batch_rows == 128


def test_udf_needs_whole_warehouses() -> None:
    plan = plan_of(THOUSAND_A_SECOND, Request(provider="udf"))
    assert plan.busy_batches == 8  # one for each CPU
    assert plan.instances == 8  # 8 CPUs / (2 / 1,000 + 0.1 s) = 78.43; 277.78 / (0.8 x 78.43) = 4.4
    seconds = 1_000_000 / (0.8 * 8 * 8 / 0.102)
    assert plan.costs_usd == {"warehouse": pytest.approx(8 * 3 * seconds / 3600)}


def test_container_services_are_billed_by_nodes_of_three_vcpus() -> None:
    plan = plan_of(THOUSAND_A_SECOND, Request(provider="spcs", source="base64", images=100_000_000))
    assert plan.instances == 35  # 70 cores, 24 nodes
    assert plan.costs_usd["compute_pool"] == pytest.approx(24 * 0.184 * 3 * plan.seconds / 3600)


@pytest.mark.parametrize(
    ("images", "warehouse", "calls"),
    [(1000, "XL", 9), (1_000_000, "XL", 16), (10_000_000, "XS", 64), (100_000_000, "XL", 1024)],
)
def test_concurrent_calls_equal_third_party_observations(images: int, warehouse: str, calls: int) -> None:
    assert Request(images=images, warehouse=warehouse).concurrent_calls == calls


def test_stage_files_keep_a_warehouse_of_the_smallest_size_awake() -> None:
    by_url = plan_of(THOUSAND_A_SECOND, Request(source="url", warehouse="XL"))
    staged = plan_of(THOUSAND_A_SECOND, Request(source="stage", warehouse="XL"))
    signing = staged.costs_usd.pop("signing_warehouse")
    assert signing == pytest.approx(3 * (staged.seconds + 60) / 3600)
    assert staged.costs_usd == by_url.costs_usd
    assert staged.cost_usd == pytest.approx(by_url.cost_usd + signing)
    inside = plan_of(THOUSAND_A_SECOND, Request(source="stage", provider="udf"))
    assert "signing_warehouse" not in inside.costs_usd


def test_nodes_idle_until_service_and_pool_suspend_themselves() -> None:
    plan = plan_of(THOUSAND_A_SECOND, Request(provider="spcs", source="base64", images=100_000_000))
    assert plan.costs_usd["idle_pool"] == pytest.approx(24 * 0.184 * 3 * 660 / 3600)
    folder = PRICES.parents[2] / "infra" / "spcs"
    text = "".join(
        (folder / name).read_text(encoding="utf-8") for name in ("12_compute_pool.sql", "14_service.sql")
    )
    assert sum(map(int, re.findall(r"^    AUTO_SUSPEND_SECS = (\d+)$", text, re.MULTILINE))) == 660


def test_at_least_a_minute_is_billed() -> None:
    one = plan_of(THOUSAND_A_SECOND, Request(images=1))
    assert one.max_batch_rows == 1
    assert one.costs_usd["warehouse"] == pytest.approx(3 / 60)


@given(rates, counts, deadlines, providers, sources)
def test_batch_is_a_power_of_two_within_every_limit(
    rate: float, images: int, deadline: float, way: str, source: Any
) -> None:
    measured = Measured(rate, 2, 30_000)
    request = Request(images=images, deadline_minutes=deadline, provider=way, source=source)
    try:
        plan = plan_of(measured, request)
    except PlanError as error:
        assert "512 nodes" in str(error)
        return
    rows = plan.max_batch_rows
    assert rows & (rows - 1) == 0
    assert rows <= min(plan.limits.values()) < 2 * rows


@given(rates, counts, deadlines, services, sources)
def test_maximum_concurrent_batches_finish_in_time(
    rate: float, images: int, deadline: float, way: str, source: Any
) -> None:
    request = Request(images=images, deadline_minutes=deadline, provider=way, source=source)
    plan = plan_of(Measured(rate, 2, 30_000), request)
    instance_rate = min(rate, 64 / request.fetch_seconds) if request.fetch_seconds else rate
    sent_to_each = math.ceil(request.concurrent_calls / plan.instances)
    seconds = request.fetch_seconds + sent_to_each * plan.max_batch_rows / instance_rate
    assert seconds <= LIST_PRICES.providers[way].call_seconds / 2 * (1 + 1e-9)
    assert plan.max_batches >= sent_to_each
    assert plan.max_batch_rows * 500 < RESPONSE_BYTES


@given(rates, st.floats(1, 1000), counts, deadlines, sources)
def test_faster_instance_never_needs_more_instances(
    rate: float, times: float, images: int, deadline: float, source: Any
) -> None:
    request = Request(images=images, deadline_minutes=deadline, source=source)
    slower, faster = (plan_of(Measured(r, 2, 30_000), request) for r in (rate, rate * times))
    assert faster.instances <= slower.instances


@given(counts, st.integers(2, 1000), providers)
def test_more_images_within_a_longer_deadline_cost_no_less(images: int, times: int, way: str) -> None:
    """The deadline grows with the images, so the number of instances stays the same.

    A few images may be sent in a few batches more, one image each, so that all cores have work.
    """

    def cost(factor: int) -> float:
        request = Request(images=images * factor, deadline_minutes=1e4 * factor, provider=way)
        return plan_of(THOUSAND_A_SECOND, request).cost_usd

    few_batches_usd = 1e-4
    assert cost(1) <= cost(times) + few_batches_usd


@given(counts, deadlines, providers)
def test_cheapest_plan_costs_no_more_and_takes_no_longer(images: int, deadline: float, way: str) -> None:
    request = Request(images=images, deadline_minutes=deadline, provider=way)
    try:
        plan = plan_of(THOUSAND_A_SECOND, request)
    except PlanError:
        return
    cheapest = cheapest_of(THOUSAND_A_SECOND, request)
    assert cheapest.cost_usd <= plan.cost_usd
    assert cheapest.instances >= plan.instances


def test_cheapest_plan_needs_no_more_calls_than_snowflake_makes() -> None:
    cheapest = cheapest_of(THOUSAND_A_SECOND, Request())
    assert 1 < cheapest.instances
    assert cheapest.instances * cheapest.busy_batches <= 16


def test_missed_deadline_is_noted(capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of(THOUSAND_A_SECOND, Request(deadline_minutes=0.001))
    assert plan.instances > 1000
    assert plan.seconds > 0.06
    for minutes, misses in (("0.001", True), ("60", False)):
        run("--rate", "1000", "--cores", "2", "--deadline-minutes", minutes)
        assert ("misses the deadline" in capsys.readouterr().out) is misses


@pytest.mark.parametrize(
    "arguments",
    [
        ("--images", "0"),
        ("--images", "1.5"),
        ("--deadline-minutes", "0"),
        ("--deadline-minutes", "nan"),
        ("--fetch-milliseconds", "-1"),
        ("--credit-price", "-0.01"),
        ("--rate", "0"),
        ("--rate", "inf"),
        ("--cores", "0"),
    ],
)
def test_invalid_number_is_rejected_before_measuring(
    arguments: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(*arguments, "--url", "http://127.0.0.1:1")
    assert stopped.value.code == 2
    assert f"Received: {arguments[1]}" in capsys.readouterr().err


def test_error_for_a_too_large_image_names_the_limit() -> None:
    large = Measured(1000, 2, 8_000_000)
    with pytest.raises(PlanError, match=r"request_size .*10,000,000 bytes sent.* images of 8,000,000 bytes"):
        plan_of(large, Request(source="base64"))
    assert plan_of(large, Request(source="url")).max_batch_rows == 128


def test_service_too_slow_for_one_image_is_rejected() -> None:
    with pytest.raises(PlanError, match=r"time of 29 s.* 0\.01 images/s"):
        plan_of(Measured(0.01, 2, 30_000), Request(deadline_minutes=1e9))


def test_too_large_warehouse_is_rejected() -> None:
    with pytest.raises(PlanError, match="at most 512 nodes"):
        plan_of(THOUSAND_A_SECOND, Request(provider="udf", deadline_minutes=0.01))


def test_every_price_and_limit_follows_its_source() -> None:
    lines = PRICES.read_text(encoding="utf-8").splitlines()
    for before, line in itertools.pairwise(lines):
        if re.match(r"\w+ = [\d.]+", line) and not line.startswith("date"):
            assert before.startswith("# "), line
    assert set(LIST_PRICES.providers) == set(PROVIDERS)
    assert all(provider.not_included for provider in LIST_PRICES.providers.values())


def test_prices_can_be_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "prices.toml"
    own.write_text(
        'date = 2027-01-01\ncredit_usd = 2.5\n[providers.spcs]\nname = "ours"\ncall_seconds = 30\n',
        encoding="utf-8",
    )
    flags = ("--prices", str(own), "--rate", "1000", "--cores", "2", "--source", "url", "--json")
    run(*flags, "--provider", "spcs")
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert plan["costs_usd"] == {"warehouse": pytest.approx(2.5 * plan["seconds"] / 3600)}
    with pytest.raises(PlanError, match=r"providers\.aws"):
        run(*flags)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "date: "),
        ("no table", "line 1"),
        ("date = 2027-01-01\ncredit_usd = -1\nproviders = {}", "credit_usd: "),
        ("date = 2027-01-01\ncredit_usd = 1\nproviders = {}\ncurrency = 'EUR'", "currency: "),
    ],
)
def test_invalid_prices_are_rejected(tmp_path: Path, text: str, said: str) -> None:
    own = tmp_path / "prices.toml"
    own.write_text(text, encoding="utf-8")
    with pytest.raises(PlanError, match=said):
        run("--prices", str(own), "--rate", "1000")


@pytest.mark.parametrize("way", sorted(PROVIDERS))
def test_text_has_the_settings_and_the_excluded_costs(way: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("--rate", "1000", "--cores", "2", "--provider", way)
    printed = capsys.readouterr().out
    assert LIST_PRICES.providers[way].name in printed
    assert ("max_batch_size" if way == "udf" else "MAX_BATCH_ROWS") in printed
    assert "Not included in the cost" in printed
    assert max(map(len, printed.splitlines())) <= 110


def test_json_has_stable_keys(capsys: pytest.CaptureFixture[str]) -> None:
    run("--rate", "1000", "--cores", "2", "--image-bytes", "5000", "--evidence", "--json")
    answer = json.loads(capsys.readouterr().out)
    assert list(answer) == ["measured", "request", "plan", "cheapest"]
    assert answer["measured"]["image_bytes"] == 5000
    assert answer["measured"]["outcome_bytes"] == 8000
    assert set(answer["plan"]) == set(answer["cheapest"]) == {
        "instances", "max_batch_rows", "busy_batches", "max_batches",
        "seconds", "cost_usd", "limits", "costs_usd",
    }  # fmt: skip
    assert answer["plan"]["cost_usd"] == pytest.approx(sum(answer["plan"]["costs_usd"].values()))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_service() as url:
        yield url


@pytest.mark.slow
def test_real_service_is_measured(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("--url", url, "--images", "1000000", "--json")
    answer = json.loads(capsys.readouterr().out)
    measured = answer["measured"]
    assert 1 < measured["images_per_second"] < 1e6
    assert measured["busy_batches"] in (1, 2, 4, 8, 16)
    sizes = [path.stat().st_size for path in SAMPLES.glob("*.png")]
    assert min(sizes) <= measured["image_bytes"] <= max(sizes)
    assert 200 < measured["outcome_bytes"] < 1000
    assert answer["plan"]["instances"] >= 1
    assert answer["plan"]["cost_usd"] > 0


@pytest.mark.slow
def test_evidence_makes_outcomes_larger(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.cli.plan.ROUND_SECONDS", 0.05)
    image = (SAMPLES / "crazing.png").read_bytes()
    assert measure(Client(url), [image], 2, evidence=True).outcome_bytes > 1000


def test_images_with_errors_are_rejected(url: str) -> None:
    with pytest.raises(ClientError, match=r"must be classified\. Received: unsupported_format"):
        measure(Client(url), [b"no image"], 2)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("file:///etc", "must begin with http://"),
        ("http://127.0.0.1:port", "must begin with http://"),
        ("http://127.0.0.1:1", "does not answer"),
    ],
)
def test_unreachable_service_is_named(address: str, message: str) -> None:
    with pytest.raises(ClientError, match=message):
        run("--url", address)


def test_other_server_is_rejected(url: str) -> None:
    with pytest.raises(ClientError, match="answered 404"):
        run("--url", f"{url}/elsewhere")


@pytest.mark.slow
def test_service_is_started_and_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("app.cli.plan.ROUND_SECONDS", 0.05)
    run("--json")
    assert json.loads(capsys.readouterr().out)["measured"]["images_per_second"] > 1
