"""A table's results as one JSON file: the raw numbers of every run, and what follows from them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..files import whole_file
from .cells import spread
from .measures import credit_of
from .plan import Comparison, Table
from .runs import Job, Options, arms_of, load, planned
from .statistics import bootstrap_interval, t_interval, verdict

EXAMPLES = 4  # objects of which the report shows the masks


def write_results(
    table: Table, seeds: list[int], options: Options, out: Path, command: str, made: int, seconds: float, failures=()
) -> Path:
    """Writes ``out/<table>.json`` from the saved runs.

    Args:
        table: whose runs have ended.
        seeds: of the runs; those that are missing have failed.
        options: of the runs.
        out: holds ``runs/``.
        command: that makes the file again.
        made: runs that this command made; the others are an earlier one's.
        seconds: that it took, wall clock.
        failures: of :func:`runner.make_runs`.
    """
    runs = {
        arm: {seed: run for seed in seeds if (run := load(Job(table.name, arm, seed, options), out)) is not None}
        for arm in arms_of(table, options)
    }
    comparisons = table.comparisons if not options.photographs else _on_photographs(table)
    plans = {arm: planned(table, arm, options) for arm in runs}
    facts = {arm: tier.facts() for arm, (tier, _) in plans.items()}
    protocols = [fact for number, fact in enumerate(facts.values()) if fact not in list(facts.values())[:number]]
    content = {
        "table": table.name,
        "title": table.title,
        "caveat": "" if options.photographs else table.caveat,
        "command": command,
        **_made(runs),
        "seconds": _seconds(out / f"{table.name}.json", made, seconds),
        "run_seconds": round(sum(run.get("seconds", 0) for by in runs.values() for run in by.values()), 1),
        "preset": options.data or protocols[0].get("preset"),
        "protocols": protocols,
        "protocol_of": {arm: protocols.index(fact) for arm, fact in facts.items()},
        "cells": {name: spread(tier.cells(arm)) for name, (tier, arm) in plans.items()},
        "arms": {arm: {seed: run["measures"] for seed, run in by_seed.items()} for arm, by_seed in runs.items()},
        "comparisons": [_compared(comparison, runs) for comparison in comparisons],
        "curves": _first(runs, "curve", every_seed=True),
        "error_maps": _first(runs, "error_map"),
        "examples": _examples(runs),
        "failures": [{"arm": f.job.arm, "seed": f.job.seed, "error": f.error} for f in failures],
    }
    path = out / f"{table.name}.json"
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def read_results(path: Path) -> dict:
    """What :func:`write_results` wrote.

    Raises:
        ValueError: another file; says what to do.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON ({error}): make it again with mrcnn ablate {path.stem}") from None
    missing = [key for key in ("table", "arms", "comparisons", "command") if key not in content]
    if missing:
        raise ValueError(f"{path} has no {missing[0]!r}: make it again with mrcnn ablate {path.stem}")
    return content


def _on_photographs(table: Table) -> list[Comparison]:
    """The comparisons between arms that the photographs have too, in COCO's measures."""
    if table.real_comparisons:
        return list(table.real_comparisons)
    named = {arm.name for arm in table.real}
    shared = [comparison for comparison in table.comparisons if {comparison.a, comparison.b} <= named]
    return [replace(comparison, measure=comparison.measure.replace("AP*", "AP")) for comparison in shared]


def _compared(comparison: Comparison, runs: dict) -> dict:
    """One comparison over the seeds that all of its arms have."""
    a, b = comparison.names
    facts = {"a": a, "b": b, "measure": comparison.measure, "claim": comparison.claim, "margin": comparison.margin}
    facts |= {"paper": comparison.paper}
    weights = _weights(comparison)
    seeds = [
        seed
        for seed in runs[next(iter(weights))]
        if all(comparison.measure in runs[arm].get(seed, {"measures": {}})["measures"] for arm in weights)
    ]
    if not seeds:
        return facts | {"seeds": 0, "difference": None, "low": None, "high": None, "verdict": "not resolved"}
    values = [sum(w * runs[arm][seed]["measures"][comparison.measure] for arm, w in weights.items()) for seed in seeds]
    interval = t_interval(values)
    instances = _instances(comparison.measure, weights, runs, seeds)
    bootstrap = bootstrap_interval(instances) if instances is not None else None
    return facts | {
        "seeds": len(seeds),
        "difference": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "verdict": verdict(interval, comparison.claim, comparison.margin),
        "differences": values,
        "instances": bootstrap and {"count": len(instances), "low": bootstrap.low, "high": bootstrap.high},
    }


def _weights(comparison: Comparison) -> dict[str, int]:
    """arm -> +1 or -1, their sum being ``a - b``; a pair as a side is a difference itself."""
    weights: dict[str, int] = {}
    for side, sign in ((comparison.a, 1), (comparison.b, -1)):
        for arm, weight in zip([side] if isinstance(side, str) else side, (1, -1), strict=False):
            weights[arm] = weights.get(arm, 0) + sign * weight
    return weights


def _instances(measure: str, weights: dict[str, int], runs: dict, seeds: list) -> np.ndarray | None:
    """(instances,) what each adds to ``a - b``, averaged over the seeds; None if they are not measured alike."""
    total = []
    for seed in seeds:
        credits = []
        for arm, weight in weights.items():
            similarities = runs[arm][seed].get("similarities")
            credit = None if similarities is None else credit_of(similarities, measure)
            if credit is None:
                return None
            credits.append(weight * credit)
        if len({len(credit) for credit in credits}) > 1:
            return None
        total.append(sum(credits))
    return np.mean(total, axis=0)


def _first(runs: dict, name: str, every_seed: bool = False) -> dict:
    """arm -> what its first run has of that name, or seed -> of every run."""
    found = {arm: {seed: run[name] for seed, run in by_seed.items() if name in run} for arm, by_seed in runs.items()}
    found = {arm: by_seed for arm, by_seed in found.items() if by_seed}
    return found if every_seed else {arm: next(iter(by_seed.values())) for arm, by_seed in found.items()}


def _made(runs: dict) -> dict:
    """What made the runs; of more than one commit or machine the latest run's, and how many there were."""
    facts = [run["made"] for by_seed in runs.values() for run in by_seed.values() if "made" in run]
    if not facts:
        return {"commit": None, "changed": None, "device": {}, "versions": {}}
    different = {json.dumps(fact, sort_keys=True) for fact in facts}
    return facts[-1] | ({"mixed": len(different)} if len(different) > 1 else {})


def _seconds(path: Path, made: int, seconds: float) -> float:
    """Wall clock of the command that made runs; one that only wrote the file anew keeps what it says."""
    if made or not path.is_file():
        return round(seconds, 1)
    return read_results(path).get("seconds", round(seconds, 1))


def _examples(runs: dict) -> dict:
    """Objects, each picture once, and what each arm's first run painted: ``{"objects": [..], "arms": {arm: [..]}}``."""
    objects, arms = [], {}
    for arm, by_seed in runs.items():
        for painted in next((run["examples"] for run in by_seed.values() if run.get("examples")), [])[:EXAMPLES]:
            shown = {"image": painted["image"], "truth": painted["truth"]}
            if shown not in objects:
                objects.append(shown)
            found = {"object": objects.index(shown), "found": painted["found"], "iou": painted["iou"]}
            arms.setdefault(arm, []).append(found)
    return {"objects": objects, "arms": arms}
