"""The log told in sentences, with figures: what `dure why` prints."""

from __future__ import annotations

from dure.model import event as ev
from dure.model.units import NS_PER_S, energy_wh
from dure.model.workload import Ask, Command, Exit, Slice


def told(exit: Exit) -> str:
    """How a run ended, in words."""
    match exit.reason:
        case "exited":
            text = f"exited with code {exit.code}"
        case "signalled":
            text = f"was killed by signal {exit.signal}"
        case "stopped":
            text = "was stopped"
        case "lease":
            text = "was stopped by its node: its lease had run out"
        case "lost":
            text = "was lost"
        case "failed":
            text = "could not start"
        case _:
            text = "ended with the cloud's shutdown"
    return f"{text} ({exit.detail})" if exit.detail else text


def tell(event: ev.Event) -> str:
    """One event as one sentence on one line: what others wrote in it cannot break the line or steer a terminal."""
    text = _of_a_workload(event)
    return text if text.isprintable() else "".join(each if each.isprintable() else " " for each in text)


def _of_a_workload(event: ev.Event) -> str:
    match event:
        case ev.WorkloadSubmitted():
            return (
                f"submitted by {event.workload.by} to project {event.workload.ask.project}: {_what(event.workload.ask)}"
            )
        case ev.WorkloadRefused():
            refusal = event.refusal
            return f"refused by {refusal.who}: {refusal.why}{_counts(refusal.counts)} [{_what(event.workload.ask)}]"
        case ev.WorkloadWaits():
            return f"waits ({event.refusal.code}): {event.refusal.why}"
        case ev.StopAsked():
            return f"stop asked by {event.by}"
        case ev.WorkloadEnded():
            return f"{event.phase}: {event.why}"
        case ev.RunPlaced():
            return f"run {event.run} placed on {event.plan.node}, {_slices(event.plan.slices)}: {event.plan.because}"
        case ev.RunMoved():
            return _moved(event)
        case ev.RunAdopted():
            pid = f", pid {event.pid}" if event.pid else ""
            after = "its node's link was cut" if event.who == "link" else f"a restart of {event.who}"
            return f"run {event.run} adopted after {after}: it went on meanwhile{pid}"
        case ev.RunEnded():
            return f"run {event.run} {told(event.exit)}"
        case _:
            return _of_the_cloud(event)


def _of_the_cloud(event: ev.Event) -> str:
    match event:
        case ev.ControlStarted():
            return f"control {event.version} started"
        case ev.ProjectCreated():
            return f"project {event.project} created by {event.by}"
        case ev.KeyCreated():
            return f"key {event.key} of project {event.project} created by {event.by}"
        case ev.NodeJoined():
            return f"node {event.node.id} joined with {len(event.chips)} chips"
        case ev.NodeLost():
            return f"node {event.node} unlinked: {event.why}"
        case ev.RunsMetered():
            cpu_s = sum(row.cpu_ns for row in event.rows) / NS_PER_S
            parts: dict[str, int] = {}
            for row in event.rows:
                if row.energy_uj is not None and row.energy_source is not None:
                    parts[row.energy_source] = parts.get(row.energy_source, 0) + row.energy_uj
            energy = "".join(f", {energy_wh(uj):.4g} Wh {source}" for source, uj in parts.items())
            return f"{len(event.rows)} run(s) on {event.node} metered: {cpu_s:.1f} CPU s{energy}"
        case ev.TokensUsed():
            answers, tokens = sum(row.answers for row in event.rows), sum(row.tokens_out for row in event.rows)
            return f"{answers} answers, {tokens} tokens out recorded"
    raise AssertionError(f"untold event {event}")


def _moved(event: ev.RunMoved) -> str:
    words = {"fetching": "fetches its model", "starting": "starts", "running": "runs"}
    pid = f", pid {event.pid}" if event.pid else ""
    url = f", answers at {event.url}" if event.url else ""
    return (
        f"run {event.run} {words.get(event.phase, event.phase)}{pid}{url}{': ' + event.detail if event.detail else ''}"
    )


def _what(ask: Ask) -> str:
    if isinstance(ask.work, Command):
        return f"{ask.chips} for {' '.join(ask.work.argv)[:80]}"
    return f"{ask.replicas} replica(s) of {ask.work.model} on {ask.chips}, {ask.work.slots} slots each"


def _slices(slices: tuple[Slice, ...]) -> str:
    return ", ".join(f"{piece.milli} milli of {piece.chip}" for piece in slices[:4]) + (
        f" and {len(slices) - 4} more" if len(slices) > 4 else ""
    )


def _counts(counts: dict[str, int]) -> str:
    return " (" + ", ".join(f"{number} {cause}" for cause, number in counts.items()) + ")" if counts else ""
