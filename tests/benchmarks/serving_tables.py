"""The results of a run as short tables; serving_cells.csv has all of them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.benchmarks.cells import (
    ENGINES,
    NO_SERVERS,
    NULL_SERVER,
    OURS,
    SLOW,
    Cell,
    closed_cells,
    is_measured,
    open_loop,
)
from tests.benchmarks.contenders import Form
from tests.benchmarks.measurements import ByRound, Measurements, median, ratio
from tests.benchmarks.mixed import ms_per_row, slopes_ms
from tests.benchmarks.serving_record import Footprint, Record
from tests.benchmarks.tables import write_table

RATES: dict[str, tuple[Form, int]] = {
    "64 rows": ("snowflake", 64),
    "1 row": ("snowflake", 1),
    "raw image": ("image", 1),
}
_LATENCIES: dict[str, tuple[Form, int]] = {"1 row": ("snowflake", 1), "64 rows": ("snowflake", 64)}
_HALF, _OVER = 0.5, 1.5
_NOT_MEASURED = "–"


def write_tables(record: Record, folder: Path | None) -> None:
    measurements = record.measurements
    for network in measurements.networks:
        write_table(
            f"serving_{network}",
            ["server", *(f"images/s, {name}; ours to it" for name in RATES), "CPU-ms an image, 64 rows"],
            [_rates_row(measurements, network, name) for name in _by_rate(measurements, network)],
            about=f"{network}; {record.about}",
            folder=folder,
        )
    write_table(
        "serving_cpu",
        ["network", "server", *(f"{name}; to ours" for name in RATES)],
        [
            [network, name, *_cpu_cells(measurements, network, name)]
            for network in measurements.networks
            for name in _by_rate(measurements, network)
            if name not in {*NO_SERVERS, *SLOW}
        ],
        about=f"CPU-ms an image of all the server's processes; {record.about}",
        folder=folder,
    )
    write_table(
        "serving_latency",
        [
            "network",
            "server",
            *(f"{name}: {load}" for name in _LATENCIES for load in ("alone", "50 %", "150 %")),
        ],
        [
            [network, name, *_latency_cells(measurements, network, name)]
            for network in measurements.networks
            for name in _by_rate(measurements, network)
            if name not in {*NO_SERVERS, *SLOW}
        ],
        about=f"p50 / p99 in ms, of 1 connection and of open loops; {record.about}",
        folder=folder,
    )
    write_table(
        "serving_footprint",
        [
            "network",
            "server",
            "s to first label",
            "MB ready",
            "MB after all",
            "refused at 150 %",
            "load's CPU",
        ],
        [
            *(_footprint_row(record, footprint) for footprint in record.footprints),
            *_null_rows(measurements),
            *_left_out_rows(record),
            *_failure_rows(measurements),
        ],
        about=f"memory as PSS (RSS); {record.about}",
        folder=folder,
    )
    if rows := [row for network in measurements.networks for row in _added_rows(record, network)]:
        write_table(
            "serving_rows",
            ["network", "rows", "ms a row", "CPU-ms a row", "ms for a row more", "peak RSS, MB"],
            rows,
            about=f"{OURS}, one batch at a time, JPEG; {record.about}",
            folder=folder,
        )


def write_summary(record: Record, folder: Path | None) -> None:
    """The summary table, with a column for each server."""
    names = list(dict.fromkeys(footprint.contender for footprint in record.footprints))
    write_table(
        "serving_summary",
        ["network", "", *names],
        [
            [network, what, *_summary_cells({name: values.get(name, {}) for name in names})]
            for network in record.measurements.networks
            for what, values in _summary(record, network, names)
        ],
        about=f"medians; in brackets, {OURS} to the server, of the same rounds; {record.about}",
        folder=folder,
    )


def _summary(record: Record, network: str, names: Sequence[str]) -> Iterator[tuple[str, dict[str, ByRound]]]:
    measurements = record.measurements
    for what, (form, rows) in RATES.items():
        yield (
            f"images/s, {what}",
            {n: measurements.best_rates(network, n, compared_cells(n, form, rows)) for n in names},
        )
    for what, (form, rows) in RATES.items():
        alone = closed_cells(form, rows)[0]
        yield (
            f"p50 alone, {what}, ms",
            {n: measurements.by_round(network, n, alone, "p50_ms") for n in names},
        )
    ready = {f.contender: f for f in record.footprints if f.network == network}
    yield "memory when ready (PSS), MB", {n: {0: f.ready.pss} for n, f in ready.items()}
    yield "start to first label, s", {n: dict(enumerate(f.cold_start_seconds)) for n, f in ready.items()}


def _summary_cells(values: Mapping[str, ByRound]) -> Iterator[str]:
    for name, found in values.items():
        multiple = "" if name == OURS else f" ({times(ratio(values.get(OURS, {}), found))})"
        yield f"{_short(median(found))}{multiple}" if found else _NOT_MEASURED


def spread(values: ByRound, digits: int = 0) -> str:
    """Median and range."""
    if not values:
        return _NOT_MEASURED
    low, high = min(values.values()), max(values.values())
    return f"{median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def times(value: float | None, digits: int = 2) -> str:
    return _NOT_MEASURED if value is None else f"{value:.{digits}f}x"


def faster_engine(measurements: Measurements, network: str) -> str | None:
    """The form of the engine that is its limit."""
    cells = closed_cells("snowflake", 64)
    rates = {name: measurements.best_rates(network, name, cells) for name in ENGINES}
    measured = {name: median(found) for name, found in rates.items() if found}
    return max(measured, key=measured.__getitem__, default=None)


def compared_cells(contender: str, form: Form, rows: int) -> list[Cell]:
    """Cells in which the contender was measured; a slow one is measured in few."""
    return [cell for cell in closed_cells(form, rows) if is_measured(contender, cell)]


def ours_to(measurements: Measurements, network: str, contender: str, form: Form, rows: int) -> float | None:
    """Our rate as a multiple of the contender's, in the same round."""
    cells = compared_cells(contender, form, rows)
    ours = measurements.best_rates(network, OURS, cells)
    return ratio(ours, measurements.best_rates(network, contender, cells))


def _by_rate(measurements: Measurements, network: str) -> list[str]:
    """The engine's limit, then servers, fastest first."""

    def rate(name: str) -> float:
        found = measurements.best_rates(network, name, compared_cells(name, "snowflake", 64))
        return median(found) if found else 0.0

    limit = faster_engine(measurements, network)
    servers = sorted(set(measurements.contenders(network)) - NO_SERVERS, key=rate, reverse=True)
    return [*([limit] if limit else []), *servers]


def _rates_row(measurements: Measurements, network: str, name: str) -> list[str]:
    cells = []
    for form, rows in RATES.values():
        rates = measurements.best_rates(network, name, compared_cells(name, form, rows))
        multiple = (
            ""
            if name == OURS or not rates
            else f"; {times(ours_to(measurements, network, name, form, rows))}"
        )
        cells.append(spread(rates) + multiple)
    return [name, *cells, spread(cpu_ms(measurements, network, name), digits=2)]


def cpu_ms(
    measurements: Measurements, network: str, name: str, form: Form = "snowflake", rows: int = 64
) -> ByRound:
    """CPU milliseconds an image, at the load that suits the server."""
    best = measurements.best(network, name, compared_cells(name, form, rows))
    return {} if best is None else measurements.by_round(network, name, best, "cpu_ms_per_image")


def _cpu_cells(measurements: Measurements, network: str, name: str) -> Iterator[str]:
    """A server whose figure is below 1x takes less CPU time for an image than ours."""
    for form, rows in RATES.values():
        spent = cpu_ms(measurements, network, name, form, rows)
        multiple = ratio(spent, cpu_ms(measurements, network, OURS, form, rows))
        yield spread(spent, digits=2) + ("" if name == OURS or not spent else f"; {times(multiple)}")


def _latency_cells(measurements: Measurements, network: str, name: str) -> Iterator[str]:
    for form, rows in _LATENCIES.values():
        alone = closed_cells(form, rows)[0]
        for cell in (alone, open_loop(form, rows, _HALF), open_loop(form, rows, _OVER)):
            p50 = measurements.by_round(network, name, cell, "p50_ms")
            p99 = measurements.by_round(network, name, cell, "p99_ms")
            yield f"{_short(median(p50))} / {_short(median(p99))}" if p50 and p99 else _NOT_MEASURED


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _footprint_row(record: Record, footprint: Footprint) -> list[str]:
    starts = dict(enumerate(footprint.cold_start_seconds))
    return [
        footprint.network,
        f"{footprint.contender} {footprint.version}".strip(),
        spread(starts, digits=1),
        f"{footprint.ready.pss:.0f} ({footprint.ready.rss:.0f})",
        f"{footprint.loaded.pss:.0f} ({footprint.loaded.rss:.0f})",
        _refused(record.measurements, footprint.network, footprint.contender),
        _load_cpu(record.measurements, footprint.network, footprint.contender),
    ]


def _refused(measurements: Measurements, network: str, name: str) -> str:
    """The share of requests with 429 or 503, in the open loops at 150 %; other failures are named."""
    over = [
        m
        for m in measurements.measured
        if (m.network, m.contender) == (network, name) and m.load == open_loop("image", 1, _OVER).load
    ]
    asked = sum(m.requests + m.refusals + m.errors for m in over)
    if not asked:
        return _NOT_MEASURED
    refused, failed = sum(m.refusals for m in over), sum(m.errors for m in over)
    return f"{refused / asked:.1%}" + (f", {failed / asked:.1%} failed" if failed else "")


def _load_cpu(measurements: Measurements, network: str, name: str) -> str:
    """The largest share of a core that the load process used."""
    shares = [
        m.load_cpu_share
        for m in measurements.measured
        if (m.network, m.contender) == (network, name) and m.load_cpu_share is not None
    ]
    return f"{max(shares):.0%}" if shares else _NOT_MEASURED


def _null_rows(measurements: Measurements) -> Iterator[list[str]]:
    """The load process's own maximum rate, against a server that answers at once."""
    for network in measurements.networks:
        rates = []
        for name, (form, rows) in RATES.items():
            found = measurements.best_rates(network, NULL_SERVER, closed_cells(form, rows))
            if found:
                rates.append(f"{name} {median(found):.0f}/s")
        if rates:
            blank = [_NOT_MEASURED] * 4
            yield [
                network,
                f"{NULL_SERVER}: {', '.join(rates)}",
                *blank,
                _load_cpu(measurements, network, NULL_SERVER),
            ]


def _left_out_rows(record: Record) -> Iterator[list[str]]:
    for left_out in record.left_out:
        yield _remark(left_out.network, f"{left_out.contender} is left out: {left_out.reason}")


def _failure_rows(measurements: Measurements) -> Iterator[list[str]]:
    """Where requests failed otherwise than by a refusal: once a server and form."""
    failed = [m for m in measurements.measured if m.errors]
    for network, name, form, rows in dict.fromkeys((m.network, m.contender, m.form, m.rows) for m in failed):
        alike = [m for m in failed if (m.network, m.contender, m.form, m.rows) == (network, name, form, rows)]
        count = sum(m.errors for m in alike)
        yield _remark(network, f"{name} failed {count} times at {form} of {rows}: {alike[0].first_error}")


def _remark(network: str, text: str) -> list[str]:
    cell = " ".join(text.replace("|", "/").split())[:160]
    return [network, cell, *[_NOT_MEASURED] * 5]


def _added_rows(record: Record, network: str) -> Iterator[list[str]]:
    """What a row costs in batches of each size, and what one more costs from each size to the next."""
    costs = ms_per_row(record.measurements, network)
    slopes = {many: slope for (_, many), slope in slopes_ms(record.measurements, network).items()}
    for rows, (wall_ms, cpu_ms_a_row) in costs.items():
        slope = f"{slopes[rows]:.2f}" if rows in slopes else _NOT_MEASURED
        peak = f"{record.peak_rss_mb[network]:.0f}" if rows == max(costs) else _NOT_MEASURED
        yield [network, f"{rows:,}", f"{wall_ms:.2f}", f"{cpu_ms_a_row:.2f}", slope, peak]
