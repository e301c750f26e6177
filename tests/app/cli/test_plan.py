import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cli.plan.command import add_commands
from app.cli.plan.costs import calls_in_flight, price_run
from app.cli.plan.figures import Measured, PlanError, Request, show
from app.cli.plan.measuring import cpu_seconds, measure, service_to_measure
from app.cli.plan.plan import find_cheapest, make_plan
from app.cli.plan.prices import PROVIDERS, RESPONSE_BYTES
from app.client import ClientError
from tests.conftest import SAMPLES
from tests.running import running_service

THOUSAND_A_SECOND = Measured(images_per_second=1000, cores=2, image_bytes=30_000)

rates = st.floats(20, 1e5)
counts = st.integers(1, 10**9)
deadlines = st.floats(0.01, 1e5)
providers = st.sampled_from(sorted(PROVIDERS))
services = st.sampled_from(sorted(set(PROVIDERS) - {"udf"}))
sources = st.sampled_from(["url", "base64"])


def figures_of(measured: Measured, request: Request) -> dict[str, float]:
    plan = make_plan(measured, request)
    return {figure.key: figure.value for figure in (*plan.figures, *plan.costs)}


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
    figures = figures_of(THOUSAND_A_SECOND, Request())
    assert figures["instance_images_per_second"] == 640  # 64 fetches / 0.1 s, less than 1,000
    assert figures["needed_images_per_second"] == pytest.approx(277.78, abs=0.01)
    assert figures["instances"] == 1  # 277.78 / 512
    assert figures["rows_by_time"] == 144  # (14.5 - 0.1) x 640 / 64
    assert figures["rows_by_even_work"] == 125_000  # 1,000,000 / 4 / 2
    assert figures["rows_by_response_bytes"] == 18_796  # 10,000,000 / 532
    assert figures["rows_by_request_bytes"] == 1_215  # 10,000,000 / 8,224
    assert figures["max_batch_rows"] == 128
    assert figures["batch_seconds"] == pytest.approx(0.3)  # 0.1 + 128 / 640
    assert figures["busy_batches"] == 2  # 640 / 128 x 0.3 = 1.5
    assert figures["most_batches"] == 72  # 14.4 x 640 / 128
    assert figures["calls"] == 16
    assert figures["minutes"] == pytest.approx(1_000_000 / 512 / 60)
    hours = 1_000_000 / 512 / 3600
    assert figures["vcpus"] == pytest.approx(2 * hours * 0.04048)
    assert figures["memory"] == pytest.approx(4 * hours * 0.004445)
    assert figures["requests"] == pytest.approx(7_813 * 3.5e-6)
    assert figures["data_out"] == pytest.approx(0.5 * 0.09)
    assert figures["warehouse"] == pytest.approx(3 * hours)


def test_base64_is_limited_by_the_gateway_s_payload() -> None:
    request = Request(source="base64", images=100_000_000)
    figures = figures_of(THOUSAND_A_SECOND, request)
    assert figures["instance_images_per_second"] == 1000  # nothing is fetched
    assert figures["instances"] == 35  # 27,777.8 / 800
    assert figures["rows_by_request_bytes"] == 249  # 10,000,000 / (40,000 + 32)
    assert figures["max_batch_rows"] == 128


def test_udf_needs_whole_warehouses() -> None:
    figures = figures_of(THOUSAND_A_SECOND, Request(provider="udf"))
    assert figures["instance_images_per_second"] == pytest.approx(8 / 0.102)  # 2 / 1,000 + 0.1 s each
    assert figures["instances"] == 8  # 277.78 / (0.8 x 78.43) = 4.4
    assert figures["warehouse"] == pytest.approx(8 * 3 * 1_000_000 / (0.8 * 8 * 8 / 0.102) / 3600)
    assert "requests" not in figures


def test_container_services_are_billed_by_nodes_of_three_vcpus() -> None:
    request = Request(provider="spcs", source="base64", images=100_000_000)
    plan = make_plan(THOUSAND_A_SECOND, request)
    [pool] = [cost for cost in plan.costs if cost.key == "pool"]
    assert plan.instances == 35  # 70 cores, 24 nodes
    assert pool.value == pytest.approx(24 * 0.184 * 3 * plan.seconds / 3600)


@pytest.mark.parametrize(
    ("images", "warehouse", "calls"),
    [(1000, "XL", 9), (1_000_000, "XL", 16), (10_000_000, "XS", 64), (100_000_000, "XL", 1024)],
)
def test_concurrent_calls_equal_third_party_observations(images: int, warehouse: str, calls: int) -> None:
    assert calls_in_flight(Request(images=images, warehouse=warehouse))[0] == calls


def test_at_least_a_minute_is_billed() -> None:
    one = make_plan(THOUSAND_A_SECOND, Request(images=1))
    assert one.max_batch_rows == 1
    assert {cost.key: cost.value for cost in one.costs}["warehouse"] == pytest.approx(3 / 60)


def test_batch_overhead_reduces_its_rows() -> None:
    slow = Measured(images_per_second=1000, cores=2, image_bytes=30_000, batch_overhead_seconds=10)
    assert figures_of(slow, Request())["rows_by_time"] == math.floor((14.5 - 10 - 0.1) * 640 / 64)


@given(rates, counts, deadlines, providers, sources)
def test_batch_is_a_power_of_two_within_every_limit(
    rate: float, images: int, deadline: float, way: str, source: Any
) -> None:
    measured = Measured(rate, 2, 30_000)
    request = Request(images=images, deadline_minutes=deadline, provider=way, source=source)
    try:
        plan = make_plan(measured, request)
    except PlanError as error:
        assert "512 nodes" in str(error)
        return
    rows = plan.max_batch_rows
    assert rows & (rows - 1) == 0
    limits = [figure.value for figure in plan.figures if figure.key.startswith("rows_by_")]
    assert rows <= min(limits) < 2 * rows


@given(rates, counts, deadlines, services, sources)
def test_maximum_concurrent_batches_finish_in_time(
    rate: float, images: int, deadline: float, way: str, source: Any
) -> None:
    request = Request(images=images, deadline_minutes=deadline, provider=way, source=source)
    plan = make_plan(Measured(rate, 2, 30_000), request)
    figures = {figure.key: figure.value for figure in plan.figures}
    together = figures["batches_an_instance_may_get"] * plan.max_batch_rows
    seconds = request.fetch_seconds + together / figures["instance_images_per_second"]
    assert seconds <= PROVIDERS[way].call_seconds / 2 * (1 + 1e-9)
    assert plan.places.most >= figures["batches_an_instance_may_get"]
    assert plan.max_batch_rows * 500 < RESPONSE_BYTES


@given(rates, st.floats(1, 1000), counts, deadlines, sources)
def test_faster_instance_never_needs_more_instances(
    rate: float, times: float, images: int, deadline: float, source: Any
) -> None:
    request = Request(images=images, deadline_minutes=deadline, source=source)
    slower, faster = (make_plan(Measured(r, 2, 30_000), request) for r in (rate, rate * times))
    assert faster.instances <= slower.instances


@given(counts, counts, st.integers(1, 1000), providers)
def test_same_fleet_never_costs_less_for_more_images(
    images: int, more: int, instances: int, way: str
) -> None:
    instances = 2 ** min(9, instances.bit_length()) if way == "udf" else instances

    def cost(number: int) -> float:
        request = Request(images=number, provider=way)
        seconds = number / (500 * instances)
        costs = price_run(THOUSAND_A_SECOND, request, instances, math.ceil(number / 128), seconds)
        return sum(figure.value for figure in costs)

    assert cost(images) <= cost(images + more)


@given(counts, deadlines, providers)
def test_cheapest_plan_costs_no_more_and_takes_no_longer(images: int, deadline: float, way: str) -> None:
    request = Request(images=images, deadline_minutes=deadline, provider=way)
    try:
        plan = make_plan(THOUSAND_A_SECOND, request)
    except PlanError:
        return
    cheapest = find_cheapest(THOUSAND_A_SECOND, request)
    assert cheapest.cost_usd <= plan.cost_usd
    assert cheapest.instances >= plan.instances


def test_cheapest_plan_needs_no_more_calls_than_snowflake_makes() -> None:
    cheapest = find_cheapest(THOUSAND_A_SECOND, Request())
    assert 1 < cheapest.instances
    assert cheapest.instances * cheapest.places.busy <= 16


def test_missed_deadline_is_noted() -> None:
    plan = make_plan(THOUSAND_A_SECOND, Request(deadline_minutes=0.001))
    assert plan.instances > 1000
    assert plan.seconds > 0.06
    assert any("misses the deadline" in note for note in plan.notes)


def test_met_deadline_has_no_note() -> None:
    assert not any("misses" in note for note in make_plan(THOUSAND_A_SECOND, Request()).notes)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({"images": 0}, "number of images must be more than 0. Received: 0"),
        ({"deadline_minutes": 0}, "deadline in minutes must be more than 0"),
        ({"deadline_minutes": math.nan}, "deadline in minutes must be more than 0. Received: nan"),
        ({"fetch_milliseconds": -1}, "time to fetch in milliseconds must not be negative"),
        ({"credit_price": -0.01}, "price of a credit must not be negative"),
    ],
)
def test_impossible_request_is_rejected(what: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Request(**what)


@pytest.mark.parametrize("rate", [0, -1, math.nan, math.inf])
def test_invalid_rate_is_rejected(rate: float) -> None:
    with pytest.raises(PlanError, match="rate in images a second must be more than 0"):
        Measured(rate, 2, 30_000)


def test_error_for_a_too_large_image_shows_the_arithmetic() -> None:
    large = Measured(1000, 2, 8_000_000)
    with pytest.raises(PlanError, match=r"rows by size of request = 10,000,000 bytes / \(10,666,668"):
        make_plan(large, Request(source="base64"))
    assert make_plan(large, Request(source="url")).max_batch_rows == 128


def test_service_too_slow_for_one_image_is_rejected() -> None:
    with pytest.raises(PlanError, match="rows by time"):
        make_plan(Measured(0.01, 2, 30_000), Request(deadline_minutes=1e9))


def test_too_large_warehouse_is_rejected() -> None:
    with pytest.raises(PlanError, match="at most 512 nodes"):
        make_plan(THOUSAND_A_SECOND, Request(provider="udf", deadline_minutes=0.01))


def test_every_price_and_limit_names_its_source() -> None:
    for provider in PROVIDERS.values():
        assert provider.call_source
        assert (provider.request_bytes is None) == (not provider.request_source)
        priced = (provider.vcpu_hour, provider.gb_hour, provider.million_requests, provider.gb_out)
        assert all(price.source for price in priced if price)
        assert provider.left_out


@pytest.mark.parametrize(
    ("number", "shown"),
    [(1_000_000, "1,000,000"), (277.78, "278"), (32.552, "32.55"), (0.5425, "0.5425"), (7.6e-05, "7.6e-05")],
)
def test_numbers_are_formatted_for_people(number: float, shown: str) -> None:
    assert show(number) == shown


@pytest.mark.parametrize("way", sorted(PROVIDERS))
def test_text_has_the_settings_and_the_excluded_costs(way: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("--rate", "1000", "--cores", "2", "--provider", way)
    printed = capsys.readouterr().out
    assert PROVIDERS[way].name in printed
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
        "instances", "max_batch_rows", "places", "seconds", "cost_usd", "figures", "costs", "notes",
    }  # fmt: skip
    assert set(answer["plan"]["costs"][0]) == {"key", "label", "value", "arithmetic"}
    assert answer["plan"]["cost_usd"] == pytest.approx(sum(c["value"] for c in answer["plan"]["costs"]))


def test_invalid_request_is_rejected_before_measuring(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PlanError, match="number of images"):
        run("--images", "0", "--url", "http://127.0.0.1:1")
    with pytest.raises(PlanError, match="rate in images a second"):
        run("--rate", "0")
    with pytest.raises(PlanError, match="number of cores"):
        run("--rate", "10", "--cores", "0")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_service() as url:
        yield url


def test_real_service_is_measured(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("--url", url, "--images", "1000000", "--json")
    answer = json.loads(capsys.readouterr().out)
    measured = answer["measured"]
    assert 1 < measured["images_per_second"] < 1e6
    assert measured["busy_batches"] in (1, 2, 4, 8, 16)
    assert 0 <= measured["batch_overhead_seconds"] < 5
    sizes = [path.stat().st_size for path in SAMPLES.glob("*.png")]
    assert min(sizes) <= measured["image_bytes"] <= max(sizes)
    assert 200 < measured["outcome_bytes"] < 1000
    assert measured["cpu_seconds_per_image"] is None  # unknown for a remote service
    assert answer["plan"]["instances"] >= 1
    assert answer["plan"]["cost_usd"] > 0


def test_evidence_makes_outcomes_larger(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.cli.plan.measuring.ROUND_SECONDS", 0.05)
    image = (SAMPLES / "crazing.png").read_bytes()
    assert measure(url, [image], 2, evidence=True).outcome_bytes > 1000


def test_images_with_errors_are_rejected(url: str) -> None:
    with pytest.raises(ClientError, match=r"must be classified\. Received: unsupported_format"):
        measure(url, [b"no image"], 2)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("file:///etc", "must begin with http://"),
        ("http://127.0.0.1:port", "must begin with http://"),
        ("http://127.0.0.1:1", "does not answer"),
        ("http://", "does not answer"),
    ],
)
def test_unreachable_service_is_named(address: str, message: str) -> None:
    with pytest.raises(ClientError, match=message):
        measure(address, [b"image"], 2)


def test_other_server_is_rejected(url: str) -> None:
    with pytest.raises(ClientError, match="answered 404"):
        measure(f"{url}/elsewhere", [b"image"], 2)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="CPU time is read from /proc")
def test_own_service_is_started_measured_and_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.cli.plan.measuring.ROUND_SECONDS", 0.05)
    image = (SAMPLES / "pitted.png").read_bytes()
    with service_to_measure() as (own, cpu_clock):
        measured = measure(own, [image], 2, cpu_clock)
    assert measured.cpu_seconds_per_image is not None
    assert 0 < measured.cpu_seconds_per_image < 10
    with pytest.raises(ClientError, match="does not answer"):
        measure(own, [image], 2)


def test_cpu_time_of_no_process_is_none() -> None:
    assert cpu_seconds(2**31 - 1) is None
