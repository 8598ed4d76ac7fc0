"""Views as control would answer them."""

from __future__ import annotations

from dure.model.chip import Chip, Power
from dure.model.view import (
    ChipView,
    EventView,
    KeyMade,
    KeyView,
    LogView,
    ModelView,
    ProjectView,
    Report,
    RunView,
    ServerInfo,
    StoryLine,
    WorkloadView,
)
from dure.model.workload import Ask, ChipAsk, Command, Exit, Refusal, RunPhase, Serve, Slice, WorkloadPhase

T0_NS = 1_790_000_000_000_000_000
CPU = Chip(
    "n1:cpu0",
    "n1",
    "cpu",
    0,
    "GenuineIntel",
    "A CPU",
    "real",
    "cpu",
    "metal",
    memory_mib=12_034,
    power=Power(2.0, 10.0, "configured", "example"),
)
NPU = Chip("n2:npu0", "n2", "npu-a", 0, "Maker", "NPU A", "simulated", "simulated", "none", country="KR", run_s=1.5)
CHIPS = [ChipView(CPU, 900, ("w1.0.1",), True), ChipView(NPU, 1000, (), True), ChipView(NPU, 1000, (), False)]
BUSY = Refusal("busy", "2 nodes: 1 no free npu-a, 1 over power budget", "place", {"no free npu-a": 1, "over power": 1})
INFO = ServerInfo("0.1.0", "/home/한글", 12, {"n1": True, "n2": False})
MODELS = [ModelView("small", "pypi:x", 98_362_432, "Apache-2.0", "an_engine", ("en",), "English only", ("w2",))]
STORY = [StoryLine(3, T0_NS, "submitted by k1 to project 두레"), StoryLine(4, T0_NS + 1_500_000, "placed on n1")]
PROJECTS = [ProjectView("default", 1, 2), ProjectView("연구", 0, 0)]
KEYS = [KeyView("k1", "default", True), KeyView("k2", "default", False)]
MADE = KeyMade("k3", "default", "dk-secret")
EVENTS = [EventView(1, T0_NS, "control_started", "control 0.1.0 started")]
USAGE = Report(
    "Usage",
    "project",
    ("project", "chip_time_ns", "energy_modelled_uj", "amount_mwon", "tokens_out"),
    (("default", 3_600_000_000_000, 3_600_000_000, 1_234_567, 12_345), ("idle", 61_000_000_000, None, None, None)),
    ("total", 3_661_000_000_000, 3_600_000_000, 1_234_567, 12_345),
    {"modelled": 1.0},
    ("example prices, not an offer",),
)


def a_run(phase: RunPhase = "running", progress: tuple[int, int] | None = None, exit: Exit | None = None) -> RunView:
    slices = (Slice("n1:cpu0", 100),)
    return RunView("w1.0.1", phase, 1, "n1", slices, T0_NS, 42, cpu_ns=2_000_000_000, progress=progress, exit=exit)


def a_job(phase: WorkloadPhase = "active", reason: Refusal | None = None) -> WorkloadView:
    ask = Ask(Command(("echo", "두레", "a b")), ChipAsk())
    return WorkloadView("w1", ask, "k1", T0_NS, phase, reason, () if reason else (a_run(),))


def an_endpoint(phase: WorkloadPhase, *runs: RunView, reason: Refusal | None = None) -> WorkloadView:
    return WorkloadView("w2", Ask(Serve("small"), ChipAsk("cpu", 1, 1000)), "k1", T0_NS, phase, reason, runs)


def a_log(data: bytes, next: int, ended: bool) -> LogView:
    return LogView("w1.0.1", data, next, ended)
