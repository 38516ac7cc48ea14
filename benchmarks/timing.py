"""Clocks for a CPU and for a GPU, turns (A B C A B C ...), and what is said about many measurements.

A ratio is the median of the ratios of neighbours: torchvision's time in round i by ours in round i. Whatever disturbs
the machine for longer than a round disturbs both sides of it.
"""

import gc
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch


@dataclass(frozen=True)
class Plan:
    """How one contestant is measured: so many calls at a time, after so many cycles of queue on a GPU."""

    calls: int
    seconds: float  # of one call, roughly
    queue: int = 0


@dataclass(frozen=True)
class Reading:
    """One measurement: milliseconds per call; on a GPU also how long the host took to start it."""

    ms: float
    host_ms: float | None = None


class CpuClock:
    """Wall time. Calls shorter than `least` are measured several at a time.

    pause: seconds before each measurement. Thread pools spin for a while after their work, waiting for more: without
        the pause, whoever is next shares the cores with the last one's waiting threads.
    """

    def __init__(self, pause: float = 0.003, least: float = 0.002):
        self.pause, self.least = pause, least

    def plan(self, call: Callable, waits: bool = False) -> Plan:
        """`call` was called before: this is the second time, all is compiled."""
        began = time.perf_counter()
        call()
        seconds = time.perf_counter() - began
        return Plan(min(100, max(1, ceil(self.least / max(seconds, 1e-7)))), seconds)

    def measure(self, call: Callable, plan: Plan) -> Reading:
        time.sleep(self.pause)
        began = time.perf_counter()
        for _ in range(plan.calls - 1):
            call()
        result = call()
        seconds = time.perf_counter() - began
        del result  # giving memory back is not timed
        return Reading(seconds / plan.calls * 1e3)


class CudaClock:
    """CUDA events on the current stream, while the GPU has a queue: its own time, whatever the host takes to launch.

    In training and in batched inference the host runs ahead of the GPU, so the GPU's time is what counts. So before
    the first event the GPU is kept busy for longer than the host needs to launch the calls. What the host needs is the
    second number, `host_ms`. An op that waits for the GPU itself (NMS has to learn how many boxes stay) cannot be
    queued: `waits` leaves the queue out, and its time then holds the launches.
    """

    CYCLES_PER_SECOND = 2e9  # of the GPU's clock, at most: with a slower one the queue is longer, which does no harm

    def __init__(self, least: float = 0.0002):
        self.least = least

    def plan(self, call: Callable, waits: bool = False) -> Plan:
        for _ in range(3):
            call()
        torch.cuda.synchronize()
        one = self.measure(call, Plan(1, 0.0))
        calls = min(20, max(1, ceil(self.least / max(one.ms / 1e3, 1e-7))))
        queue = 0.0 if waits else min(0.05, 2 * calls * one.host_ms / 1e3 + 2e-4)  # seconds
        return Plan(calls, max(one.ms, one.host_ms) / 1e3, int(queue * self.CYCLES_PER_SECOND))

    def measure(self, call: Callable, plan: Plan) -> Reading:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        if plan.queue:
            torch.cuda._sleep(plan.queue)
        start.record()
        began = time.perf_counter()
        for _ in range(plan.calls):
            call()
        host = time.perf_counter() - began
        end.record()
        torch.cuda.synchronize()
        return Reading(start.elapsed_time(end) / plan.calls, host / plan.calls * 1e3)


@contextmanager
def no_collection():
    """Python collects no garbage meanwhile."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def take_turns(calls: dict[str, Callable], plans: dict[str, Plan], rounds: dict[str, int], clock) -> dict:
    """A B C A B C ...: name -> list of `Reading`; whoever has fewer rounds takes part in the first ones."""
    readings = {name: [] for name in calls}
    with no_collection():
        for i in range(max(rounds.values())):
            for name, call in calls.items():
                if i < rounds[name]:
                    readings[name].append(clock.measure(call, plans[name]))
    return readings


def spread(values) -> dict[str, float]:
    """median, min, q1, q3 and max; of [1, 2, 3, 4, 5] these are 3, 1, 2, 4, 5."""
    least, q1, median, q3, most = np.percentile(np.asarray(values, dtype=np.float64), [0, 25, 50, 75, 100])
    return {"median": digits(median), "min": digits(least), "q1": digits(q1), "q3": digits(q3), "max": digits(most)}


def ratios(theirs: list[float], ours: list[float]) -> list[float]:
    """How many times faster ours is, round by round, in the rounds that both took part in."""
    return [a / b for a, b in zip(theirs, ours, strict=False)]


def digits(value: float, count: int = 5) -> float:
    """Rounded to significant digits: more would be noise in a file that is kept."""
    return float(f"{value:.{count}g}")
