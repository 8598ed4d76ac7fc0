"""Reports over the ledger: usage, energy and cost, by project, workload, model or chip kind."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, get_args

from dure.metering.cost import Prices, Used, charge, charge_energy
from dure.metering.ledger import UNKNOWN, Ledger, Row, Tokens, check_chip_time, settle
from dure.model.errors import DureError
from dure.model.units import NS_PER_S, WHOLE_CHIP_MILLI, Source, energy_wh, split, won
from dure.model.view import Figure, Report

By = Literal["project", "workload", "model", "chip"]
IDLE = "idle"
OLDER = "(older)"
Cell = str | int | float | None
_SHOWN = 5
_USAGE = (
    "chip_time_ns",
    "cpu_time_ns",
    "answers",
    "tokens_in",
    "tokens_out",
    "answers_unknown_in",
    "answers_cancelled",
    "answers_failed",
    "runs_ended",
)


def usage(ledger: Ledger, by: str, now_ns: int) -> Report:
    """Chip time (ns of a whole chip), CPU time and answers up to `now_ns`. Raises DureError on a wrong `by`.

    Sources of the shares: chip time of real chips is measured, of simulated ones simulated.
    """
    key = _key(by)
    settled = settle(ledger, now_ns)
    groups = _groups(settled, by, key)
    milli_ns = [row.chip_milli_ns for row in groups.values()]
    total = sum(milli_ns)
    if _has_idle(by):
        milli_ns.append(sum(chip.idle for chip in settled.chips.values()))
        total = sum(chip.total for chip in settled.chips.values())
    chip_ns = split(sum(milli_ns) // WHOLE_CHIP_MILLI, milli_ns)
    cells = [(row.cpu_ns, *_token_cells(row), row.runs_ended) for row in groups.values()]
    rows: list[tuple[Cell, ...]] = [(name, chip_ns[i], *cells[i]) for i, name in enumerate(groups)]
    sums = [sum(column) for column in zip(*cells, strict=True)] or [0] * (len(_USAGE) - 1)
    if _has_idle(by):
        rows.append((IDLE, chip_ns[-1], *[None] * len(sums)))
    totals = ("total", total // WHOLE_CHIP_MILLI, *sums)
    by_source: Counter[str] = Counter()
    for kind in settled.kinds.values():
        by_source["simulated" if kind.simulated else "measured"] += kind.total
    return Report("Usage", by, (by, *_USAGE), tuple(rows), totals, _shares(by_source), _usage_notes(settled, by))


def energy(ledger: Ledger, by: str, now_ns: int) -> Report:
    """Energy in µJ up to `now_ns`, a column for each source; null: no such figure. Raises DureError."""
    key = _key(by)
    settled = settle(ledger, now_ns)
    groups = list(_groups(settled, by, key).items())
    if _has_idle(by):
        groups.append((IDLE, Row(energy_uj=settled.idle_energy_uj)))
    sources = _sources(row for _, row in groups)
    rows = tuple((name, *(row.energy_uj.get(s) for s in sources), row.unmetered_cpu_ns) for name, row in groups)
    sums = Row()
    for _, row in groups:
        sums.add_held(row)
    columns = (by, *(f"energy_{source}_uj" for source in sources), "cpu_time_unmetered_ns")
    totals = ("total", *(sums.energy_uj.get(source) for source in sources), sums.unmetered_cpu_ns)
    bases = sorted({f"{source}: {basis}" for row in _rows(settled) for source, basis in row.basis.items()})
    notes = _some(bases)
    if _has_idle(by) and not settled.idle_energy_uj:
        notes = (*notes, "idle energy is unknown: no node has a meter that can be read")
    if sums.unmetered_cpu_ns:
        notes = (*notes, "cpu_time_unmetered is CPU time whose energy is unknown")
    return Report("Energy", by, columns, rows, totals, _shares(sums.energy_uj), notes)


def cost(ledger: Ledger, by: str, now_ns: int, prices: Prices) -> Report:
    """Milli-won up to `now_ns`; energy at its price beside the amount, not in it. Raises DureError.

    A line is one workload and one paying project, rounded once, so that every grouping sums to the same.
    """
    key = _key(by)
    settled = settle(ledger, now_ns)
    amounts: dict[str, Counter[str]] = {}
    by_source: Counter[str] = Counter()
    sources = _sources(_rows(settled))
    for name, row in _named(settled):
        mine = amounts.setdefault(key(name, row), Counter())
        mine.update({source: charge_energy(uj, prices) for source, uj in row.energy_uj.items()})
        simulated = row.kind in settled.kinds and settled.kinds[row.kind].simulated
        for payer, item, used in _lines(row):
            amount = charge(used, prices)
            amounts.setdefault(payer if by == "project" else key(name, row), Counter())[item] += amount
            by_source["simulated" if simulated else "configured"] += amount
    energies = [(source, f"energy_{source}_mwon") for source in sources]
    rows = []
    for name in _ordered(amounts, by):
        mine = amounts[name]
        paid = (mine["tokens"], mine["chips"], mine["tokens"] + mine["chips"])
        rows.append((name, *paid, *(mine.get(source) for source, _ in energies)))
    columns = (by, "tokens_mwon", "chip_time_mwon", "amount_mwon", *(column for _, column in energies))
    totals = ("total", *(_total(row[i] for row in rows) for i in range(1, len(columns))))
    return Report("Cost", by, columns, tuple(rows), totals, _shares(by_source), _cost_notes(settled, prices, now_ns))


def bill_line(tokens_out: int, seconds: float, energy_uj: Figure, amount_mwon: int, prices: Prices) -> str:
    """One answer's bill in a line.

    >>> from dure.metering.cost import load_prices
    >>> used = Figure(7_560_000, "modelled", "CPU time × 10 W a core, configured: example")
    >>> bill_line(12, 0.1362, used, 24, load_prices())  # doctest: +NORMALIZE_WHITESPACE
    '12 tokens · 88.1 tok/s · 0.0021 Wh (modelled: CPU time × 10 W a core, configured: example) ·
    ₩0.024 (example prices, not an offer)'
    """
    speed = f"{tokens_out / seconds:.1f} tok/s" if seconds > 0 else "speed unknown"
    if energy_uj.value is None:
        spent = f"energy unknown ({energy_uj.basis or 'no meter'})"
    else:
        wh = energy_wh(energy_uj.value)
        shown = f"{wh:.4f} Wh" if wh >= 0.001 else f"{wh * 1000:.4f} mWh"
        spent = f"{shown} ({energy_uj.source}: {energy_uj.basis})"
    return f"{tokens_out} tokens · {speed} · {spent} · {won(amount_mwon)} ({prices.told})"


def _key(by: str) -> Callable[[str, Row], str]:
    match by:
        case "project":
            return lambda name, row: row.project
        case "workload":
            return lambda name, row: name
        case "model":
            return lambda name, row: row.model
        case "chip":
            return lambda name, row: row.kind
    raise DureError(f"No report by {by!r}", do=f"Choose one of {', '.join(get_args(By))}.")


def _has_idle(by: str) -> bool:
    return by in ("project", "chip")


def _named(ledger: Ledger) -> Iterator[tuple[str, Row]]:
    for row in ledger.older.values():
        yield f"{OLDER} {row.project}", row
    yield from ledger.workloads.items()


def _rows(ledger: Ledger) -> Iterator[Row]:
    return (row for _, row in _named(ledger))


def _groups(ledger: Ledger, by: str, key: Callable[[str, Row], str]) -> dict[str, Row]:
    """Sums of rows; by project, tokens go to the caller's project and the rest to the one that holds the chips."""
    groups: dict[str, Row] = {}
    for name, row in _named(ledger):
        groups.setdefault(key(name, row), Row()).add_held(row)
        for caller, tokens in row.tokens.items():
            groups.setdefault(caller if by == "project" else key(name, row), Row()).add_tokens(caller, tokens)
    return {name: groups[name] for name in _ordered(groups, by)}


def _ordered(names: Iterable[str], by: str) -> list[str]:
    """By name; workloads in the order they came."""
    return list(names) if by == "workload" else sorted(names)


def _lines(row: Row) -> Iterator[tuple[str, str, Used]]:
    """(who pays, what for, how much) of one workload."""
    if row.model == UNKNOWN:
        yield row.project, "chips", Used(kind=row.kind, chip_milli_ns=row.chip_milli_ns)
        return
    for caller, tokens in row.tokens.items():
        yield caller, "tokens", Used(row.model, row.kind, tokens.tokens_in, tokens.tokens_out)


def _token_cells(row: Row) -> tuple[int, ...]:
    total = Tokens()
    for tokens in row.tokens.values():
        total.add(tokens)
    counts = (total.answers, total.tokens_in, total.tokens_out)
    return (*counts, total.unknown_in, total.cancelled, total.failed)


def _sources(rows: Iterable[Row]) -> list[Source]:
    """The sources Dure's own meters give, and any other that occurs."""
    seen = {source for row in rows for source in row.energy_uj} | {"measured", "modelled", "simulated"}
    return [source for source in get_args(Source) if source in seen]


def _total(cells: Iterable[Cell]) -> int | None:
    known = [cell for cell in cells if isinstance(cell, int)]
    return sum(known) if known else None


def _shares(amounts: dict[Source, int] | Counter[str]) -> dict[str, float]:
    whole = sum(amounts.values())
    return {source: amount / whole for source, amount in sorted(amounts.items()) if amount}


def _some(notes: Sequence[str]) -> tuple[str, ...]:
    more = len(notes) - _SHOWN
    return (*notes[:_SHOWN], f"and {more} more like these") if more > 0 else tuple(notes)


def _usage_notes(ledger: Ledger, by: str) -> tuple[str, ...]:
    wrong = check_chip_time(ledger)
    notes = ["Σ projects + idle = Σ chips (law 2): " + ("NO" if wrong else "yes"), *_some(wrong)]
    if by == "chip":
        for name, kind in sorted(ledger.kinds.items()):
            if kind.total:
                notes.append(f"{name}: {100 * (kind.total - kind.idle) / kind.total:.1f} % of its time held")
    simulated = sorted(name for name, kind in ledger.kinds.items() if kind.simulated)
    if simulated:
        notes.append(f"simulated chips: {', '.join(simulated)}")
    unknown_in = sum(tokens.unknown_in for row in _rows(ledger) for tokens in row.tokens.values())
    if unknown_in:
        notes.append(f"tokens_in lacks {unknown_in} answers whose prompt size the engine did not tell")
    if ledger.clock_steps:
        notes.append(f"the clock stepped back {ledger.clock_steps} times; no time is counted for those spans")
    return tuple(notes)


def _cost_notes(ledger: Ledger, prices: Prices, now_ns: int) -> tuple[str, ...]:
    notes = [prices.told]
    if dt.datetime.fromtimestamp(now_ns // NS_PER_S, dt.UTC).date() < prices.valid_from:
        notes.append(f"the price list is valid from {prices.valid_from} only")
    notes.append("endpoints pay for tokens (the caller's project pays), jobs for chip time")
    notes.append(f"energy at {won(prices.energy_mwon_per_kwh)}/kWh is beside the amount, not in it")
    if any(kind.simulated for kind in ledger.kinds.values()):
        notes.append("use of simulated chips is priced like use of real ones: such amounts are simulated")
    return tuple(notes)
