"""Reports: every grouping adds up to the same, sources stay apart, unknown is null."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from dure.metering import ledger as folding
from dure.metering.cost import load_prices
from dure.metering.ledger import Ledger, apply
from dure.metering.report import bill_line, cost, energy, usage
from dure.model import event as ev
from dure.model.chip import Chip, Node
from dure.model.errors import DureError
from dure.model.units import NS_PER_S
from dure.model.usage import RunMeter, TokenRow
from dure.model.view import Figure, Report
from dure.model.workload import Ask, ChipAsk, Command, Exit, Plan, Serve, Slice, Workload

S = NS_PER_S
T0 = 1_790_000_000 * S
EACH_BY = ("project", "workload", "model", "chip")
PRICES = load_prices()


def cloud(idle_uj: int | None = None) -> Ledger:
    """An endpoint of `alpha` on half a core asked by `beta`, and a job of `idle` on a simulated chip; 100 s."""
    ledger = Ledger()
    chips = (
        Chip("a:cpu0", "a", "cpu", 0, "v", "m", "real", "cpu", "metal"),
        Chip("a:n0", "a", "sim-npu", 0, "v", "m", "simulated", "simulated", "none"),
    )
    endpoint = Workload("w1", Ask(Serve("smol"), ChipAsk(), "alpha"), "k1", T0)
    job = Workload("w2", Ask(Command(("true",)), ChipAsk("sim-npu", 1, 1000), "idle"), "k2", T0)
    rows = (
        RunMeter("w1.0.1", 7 * S, 70_000_000, "modelled", "CPU time × 10 W a core, configured: example"),
        RunMeter("w1.0.1", S, None, None, "no watts known for cpu"),
        RunMeter("w2.0.1", 0, 9_000, "simulated", "time held × 180 W a sim-npu chip"),
    )
    counted = TokenRow("k3", "beta", "smol", "w1.0.1", 1, 3, 100, 12, 1, 1, 0)
    for at_s, event in (
        (0, ev.NodeJoined(Node("a", "a", 1, "0", "b"), chips)),
        (0, ev.WorkloadSubmitted(endpoint)),
        (0, ev.WorkloadSubmitted(job)),
        (10, ev.RunPlaced("w1.0.1", "w1", 0, 1, Plan("a", (Slice("a:cpu0", 500),), ""))),
        (20, ev.RunPlaced("w2.0.1", "w2", 0, 1, Plan("a", (Slice("a:n0", 1000),), ""))),
        (50, ev.RunsMetered("a", rows, idle_uj)),
        (50, ev.RunEnded("w2.0.1", "w2", Exit("exited", 0))),
        (50, ev.WorkloadEnded("w2", "done", "")),
        (60, ev.TokensUsed("j", 1, "d", (counted,))),
    ):
        apply(ledger, T0 + at_s * S, event)
    return ledger


NOW = T0 + 100 * S


def column(report: Report, name: str) -> dict[object, object]:
    return {row[0]: row[report.columns.index(name)] for row in report.rows}


def total(report: Report, name: str) -> object:
    return report.totals[report.columns.index(name)]


def test_usage_by_project_shows_idle_and_the_callers_tokens() -> None:
    report = usage(cloud(), "project", NOW)
    assert report.columns[:2] == ("project", "chip_time_ns")
    assert [row[:2] for row in report.rows] == [
        ("alpha", 45 * S),
        ("beta", 0),
        ("idle", 30 * S),  # a project may be called so; the rest of the fleet comes last
        ("idle", 125 * S),
    ]
    assert report.totals == ("total", 200 * S, 8 * S, 3, 100, 12, 1, 1, 0, 1)
    assert column(report, "tokens_out") == {"alpha": 0, "beta": 12, "idle": None}
    assert report.shares == {"measured": 0.5, "simulated": 0.5}
    assert report.notes[0] == "Σ projects + idle = Σ chips (law 2): yes"
    assert "simulated chips: sim-npu" in report.notes
    assert any("1 answers whose prompt size" in note for note in report.notes)


def test_usage_by_workload_model_and_chip() -> None:
    assert column(usage(cloud(), "workload", NOW), "chip_time_ns") == {"w1": 45 * S, "w2": 30 * S}
    assert column(usage(cloud(), "model", NOW), "tokens_out") == {"-": 0, "smol": 12}
    report = usage(cloud(), "chip", NOW)
    assert column(report, "chip_time_ns") == {"cpu": 45 * S, "sim-npu": 30 * S, "idle": 125 * S}
    assert "cpu: 45.0 % of its time held" in report.notes
    assert total(report, "chip_time_ns") == 200 * S


@pytest.mark.parametrize("by", EACH_BY)
def test_rows_add_up_to_the_totals_and_every_grouping_to_the_same(by: str) -> None:
    ledger = cloud(5)
    for report in (usage(ledger, by, NOW), energy(ledger, by, NOW), cost(ledger, by, NOW, PRICES)):
        for i, name in enumerate(report.columns[1:], 1):
            cells = [cell for row in report.rows if isinstance(cell := row[i], int)]
            assert report.totals[i] == (sum(cells) if cells else None), name
        assert all(len(row) == len(report.columns) == len(report.totals) for row in report.rows)
        assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report
    same = ("cpu_time_ns", "tokens_in", "tokens_out", "answers", "runs_ended")
    assert [total(usage(ledger, by, NOW), n) for n in same] == [total(usage(ledger, "workload", NOW), n) for n in same]
    assert cost(ledger, by, NOW, PRICES).totals == cost(ledger, "workload", NOW, PRICES).totals


def test_chip_time_in_whole_chips_still_adds_up() -> None:
    ledger = cloud()
    for later_ns in range(20):
        report = usage(ledger, "project", NOW + later_ns)
        assert sum(cell for _, cell, *_ in report.rows if isinstance(cell, int)) == report.totals[1]


def test_a_broken_law_is_told_with_the_chip() -> None:
    ledger = cloud()
    ledger.chips["a:cpu0"].idle += 1000 * S
    report = usage(ledger, "project", NOW)
    assert report.notes[0].endswith("(law 2): NO")
    assert any("a:cpu0" in note for note in report.notes)
    assert total(report, "chip_time_ns") == 200 * S
    assert sum(cell for _, cell, *_ in report.rows if isinstance(cell, int)) == 201 * S


def test_steps_of_the_clock_are_told() -> None:
    ledger = cloud()
    apply(ledger, T0, ev.ControlStarted("1"))
    assert any("stepped back 1 times" in note for note in usage(ledger, "project", NOW).notes)


def test_energy_keeps_sources_in_columns_and_unknown_null() -> None:
    report = energy(cloud(), "project", NOW)
    assert report.columns == (
        "project",
        "energy_measured_uj",
        "energy_modelled_uj",
        "energy_simulated_uj",
        "cpu_time_unmetered_ns",
    )
    assert report.rows == (
        ("alpha", None, 70_000_000, None, S),
        ("beta", None, None, None, 0),
        ("idle", None, None, 9_000, 0),
        ("idle", None, None, None, 0),
    )
    assert report.totals == ("total", None, 70_000_000, 9_000, S)
    assert report.shares == {"modelled": 70_000_000 / 70_009_000, "simulated": 9_000 / 70_009_000}
    assert "modelled: CPU time × 10 W a core, configured: example" in report.notes
    assert any("idle energy is unknown" in note for note in report.notes)


def test_idle_energy_where_a_meter_gives_it() -> None:
    report = energy(cloud(5), "chip", NOW)
    assert report.rows[-1] == ("idle", 5, None, None, 0)
    assert not any("idle energy" in note for note in report.notes)
    assert "idle" not in column(energy(cloud(5), "workload", NOW), "energy_measured_uj")


def test_cost_charges_the_caller_for_tokens_and_the_job_for_its_chips() -> None:
    report = cost(cloud(), "project", NOW, PRICES)
    # 100 tokens in at 0.5 and 12 out at 2 milli-won; 30 s of a chip at ₩1,000 an hour
    assert column(report, "amount_mwon") == {"alpha": 0, "beta": 74, "idle": 8333}
    assert column(report, "tokens_mwon") == {"alpha": 0, "beta": 74, "idle": 0}
    assert column(report, "energy_modelled_mwon") == {"alpha": 3, "beta": None, "idle": None}
    assert total(report, "amount_mwon") == 8407
    assert report.notes[0] == "example prices, not an offer"
    assert any("beside the amount" in note for note in report.notes)
    assert report.shares == {"configured": 74 / 8407, "simulated": 8333 / 8407}


def test_a_price_list_not_yet_valid_is_told() -> None:
    assert not any("only" in note for note in cost(cloud(), "model", NOW, PRICES).notes)
    assert any("valid from 2026-01-01 only" in note for note in cost(cloud(), "model", 0, PRICES).notes)


def test_the_oldest_workloads_show_as_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "KEPT_ENDED", 1)
    ledger = cloud()
    before = usage(ledger, "project", NOW)
    for i in range(2):
        job = Workload(f"x{i}", Ask(Command(("true",)), project="idle"), "k1", NOW)
        apply(ledger, NOW, ev.WorkloadSubmitted(job))
        apply(ledger, NOW, ev.WorkloadEnded(f"x{i}", "done", ""))
    assert list(column(usage(ledger, "workload", NOW), "chip_time_ns")) == ["(older) idle", "w1", "x1"]
    assert usage(ledger, "project", NOW) == before


@pytest.mark.parametrize("by", EACH_BY)
def test_an_empty_ledger(by: str) -> None:
    ledger = Ledger()
    assert usage(ledger, by, NOW).totals == ("total", *[0] * 9)
    assert energy(ledger, by, NOW).totals == ("total", None, None, None, 0)
    for report in (usage(ledger, by, NOW), energy(ledger, by, NOW), cost(ledger, by, NOW, PRICES)):
        assert report.shares == {}


@pytest.mark.parametrize("by", ["", "Project", "key", "프로젝트", "x" * 100_000])
def test_a_wrong_grouping_is_a_clear_error(by: str) -> None:
    makes: list[Callable[[], Report]] = [
        lambda: usage(Ledger(), by, NOW),
        lambda: energy(Ledger(), by, NOW),
        lambda: cost(Ledger(), by, NOW, PRICES),
    ]
    for make in makes:
        with pytest.raises(DureError) as caught:
            make()
        assert "project, workload, model, chip" in caught.value.do


def test_bill_line() -> None:
    modelled = Figure(7_560_000, "modelled", "CPU time × 10 W a core, configured: example")
    assert bill_line(12, 0.1362, modelled, 24, PRICES) == (
        "12 tokens · 88.1 tok/s · 0.0021 Wh (modelled: CPU time × 10 W a core, configured: example)"
        " · ₩0.024 (example prices, not an offer)"
    )
    assert "0.1000 mWh (measured: RAPL)" in bill_line(1, 1, Figure(360_000, "measured", "RAPL"), 0, PRICES)
    unknown = bill_line(0, 0.0, Figure(None, "measured", ""), 0, PRICES)
    assert unknown.startswith("0 tokens · speed unknown · energy unknown (no meter) · ₩0.000")
