"""One case: check that everybody agrees, take turns, and write down what was measured."""

import time

from benchmarks.cases import MUST_REACH, Case, make_boxes
from benchmarks.contestants import PEER, SLOW, Device, Field, difference, enter
from benchmarks.timing import Plan, digits, ratios, spread, take_turns
from benchmarks.work import Work, least_seconds, work_of

TOLERANCE = 1e-3  # largest difference to torchvision, of the largest number in its result; a wrong place gives more


class SlowTime:
    """Seconds that the slow backends may still take, in the whole run and in one case."""

    def __init__(self, total: float = 45.0, each: float = 1.0):
        self.total, self.each = total, each


def measure_case(case: Case, device: Device, repeats: int, roofs: dict, slow_time: SlowTime) -> dict:
    """The record of a case: see docs/benchmarks.md for its fields."""
    began = time.perf_counter()
    entered = enter(case, device)
    _leave_out_slow(entered, slow_time)
    differences, first = _check(case, entered)
    plans, rounds = _plan(case, entered, device, repeats, slow_time, first)
    readings = take_turns(entered.calls, plans, rounds, device.clock)
    for name in set(SLOW) & set(plans):
        slow_time.total -= (rounds[name] + 2) * plans[name].seconds * plans[name].calls
    work = work_of(case, make_boxes(case).numpy())
    record = _facts(case, work)
    peer = [reading.ms for reading in readings[PEER]]
    for name, measured in readings.items():
        record["results"][name] = _result(measured, plans[name].calls, peer, work, roofs) | differences[name]
    record["left_out"] = entered.left_out
    record["seconds"] = digits(time.perf_counter() - began, 3)
    return record


def _facts(case: Case, work: Work | None) -> dict:
    return {
        "name": case.name, "group": case.group, "op": case.op, "direction": case.direction,
        "layout": case.layout if case.op != "nms" else None, "features": list(case.shape) if case.op != "nms" else None,
        "stride": case.stride, "rois": case.rois, "bins": case.bins or None,
        "sampling": case.sampling if case.op in ("align", "warp") else None, "boxes": case.boxes,
        "work": {"bytes": work.bytes, "flops": work.flops, "touched_cells": work.touched} if work else None,
        "results": {},
    }  # fmt: skip


def _leave_out_slow(entered: Field, slow_time: SlowTime) -> None:
    for name in [name for name in entered.calls if name in SLOW and slow_time.total <= 0]:
        del entered.calls[name]
        entered.left_out[name] = "the time for slow backends was used up"


def _check(case: Case, entered: Field) -> tuple[dict[str, dict], dict[str, float]]:
    """Call everybody once and compare with torchvision; also the seconds of these first calls."""
    checked, first, theirs = {}, {}, None
    for name in sorted(entered.calls, key=lambda name: name != PEER):
        began = time.perf_counter()
        result = entered.calls[name]()
        first[name] = time.perf_counter() - began
        theirs = result if theirs is None else theirs
        most, largest = difference(case, result, theirs)
        agrees = most <= TOLERANCE * max(1.0, largest)
        checked[name] = {"max_difference": digits(most, 3), "agrees": bool(agrees)}
    return checked, first


def _plan(case: Case, entered: Field, device: Device, repeats: int, slow_time: SlowTime, first: dict[str, float]):
    """How and how often each is measured. Who compiles nothing and took long at once is known without a trial."""
    plans, rounds = {}, {}
    for name, call in entered.calls.items():
        waits = case.op == "nms" or name in SLOW
        known = device.name == "cpu" and name != device.ours and first[name] > 0.2
        plans[name], rounds[name] = Plan(1, first[name]) if known else device.clock.plan(call, waits), repeats
        if name in SLOW:
            allowed = min(slow_time.each, max(slow_time.total, 0.0))
            rounds[name] = min(repeats, max(1, int(allowed / max(plans[name].seconds * plans[name].calls, 1e-9))))
    return plans, rounds


def _result(measured: list, calls: int, peer: list[float], work: Work | None, roofs: dict) -> dict:
    """Medians, ratios and how close to the roofline; the n-th of all milliseconds is of round n for everybody."""
    every = [reading.ms for reading in measured]
    result = {
        "ms": spread(every),
        "every_ms": [digits(ms) for ms in every],
        "calls_per_measurement": calls,
        "ratio": spread(ratios(peer, every)),
    }
    if measured[0].host_ms is not None:
        result["host_ms"] = spread([reading.host_ms for reading in measured])
    if work:
        seconds = result["ms"]["median"] / 1e3
        result["gb_s"], result["gflop_s"] = digits(work.bytes / seconds / 1e9), digits(work.flops / seconds / 1e9)
        result["of_roofline"] = {
            level: digits(least_seconds(work, roofs[f"{level}_gb_s"], roofs["peak_gflop_s"]) / seconds, 3)
            for level in ("memory", "cache")
        }
    return result


def must_reach(records: list[dict], device: str, ours: str) -> list[dict]:
    """The lines of `MUST_REACH` and what was measured; reached: None for what was not, False for a wrong result."""
    by_name, rows = {record["name"]: record for record in records}, []
    for name, needed in MUST_REACH[device].items():
        result = by_name.get(name, {}).get("results", {}).get(ours)
        measured = result["ratio"]["median"] if result else None
        reached = None if result is None else bool(result["agrees"] and measured >= needed)
        rows.append({"case": name, "backend": ours, "needed": needed, "measured": measured, "reached": reached})
    return rows
