"""Whole models against torchvision's, with the same weights on the same image, in one process: `mrcnn bench model`.

Without an installation, in a checkout: `python -m benchmarks.model`. docs/benchmarks.md says what is measured.
"""

import argparse
import json
import resource
import shlex
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import torch

if not __package__:  # `python benchmarks/model.py` puts this folder on the path, not the checkout
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import machine
from benchmarks.model_pair import loss_difference, make_pair, picture, same_detections, truth
from benchmarks.results import check_folder
from benchmarks.timing import CpuClock, CudaClock, digits, ratios, spread, take_turns
from mrcnn_scratch.files import whole_file

PROGRAM = "python -m benchmarks.model"
NEEDED = {("R50-FPN", "inference"): 1.4, ("R50-FPN", "training step"): 1.5}  # times faster than torchvision, on a CPU
MEMORY_NEEDED = 1.1  # of a training step, times torchvision's
DIFFERENCES = {"pixels": 1e-2, "score": 1e-4, "mask": 1e-4, "losses": 1e-3}  # more is wrong
SIZES = {"inference": (800, 1066), "training step": (512, 512)}


def parser(program: str) -> argparse.ArgumentParser:
    """The options, the same for the script and for `mrcnn bench model`."""
    of = argparse.ArgumentParser(program, description=__doc__.split(":")[0] + ".")
    of.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to compute (default: cpu)")
    of.add_argument("--models", nargs="+", default=["R50-FPN"], choices=("R50-FPN", "R101-FPN"))
    of.add_argument("--threads", type=int, default=2, help="of torch and Numba (default: 2)")
    of.add_argument("--repeats", type=int, help="rounds of measuring (default: 7; 25 on a GPU)")
    of.add_argument("--quick", action="store_true", help="a small image and one round: to try the benchmark")
    of.add_argument("--out", type=Path, default=machine.ROOT / "benchmarks" / "results", help="folder for the results")
    of.add_argument("--memory-of", choices=("torchvision", "ours"), help=argparse.SUPPRESS)
    return of


def main(arguments: list[str] | None = None, program: str = PROGRAM) -> int:
    """Run it. Returns the exit status: 1 if a result is wrong, 2 for a mistake, 130 for Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser(program).parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(peak_megabytes(options.models[0], options.memory_of, options.quick))
        return 0
    try:
        check_folder(options.out)
        if options.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device cuda: torch sees no CUDA device; run it on a machine with an NVIDIA GPU")
        return _run(options, shlex.join([*program.split(), *arguments]))
    except ImportError as error:
        print(f"{program}: {error}: pip install -e '.[test]' in the checkout brings torchvision", file=sys.stderr)
    except (ValueError, OSError) as error:
        print(f"{program}: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted, nothing is written", file=sys.stderr)
        return 130
    return 2


def _run(options, command: str) -> int:
    device = torch.device(options.device)
    clock = CudaClock() if options.device == "cuda" else CpuClock()
    rounds = 1 if options.quick else options.repeats or (25 if options.device == "cuda" else 7)
    began, cases = time.perf_counter(), []
    for name in options.models:
        pair = make_pair(name, device)
        for job in SIZES:
            cases.append(measure(pair, name, job, device, clock, rounds, options.quick))
            print(_line(cases[-1]), file=sys.stderr, flush=True)
        if options.device == "cpu":
            cases[-1]["memory_mb"] = {who: _memory(name, who, options) for who in ("torchvision", "ours")}
    report = {
        "benchmark": "model", "command": command, "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **machine.commit(), "device": options.device, "threads": options.threads, "quick": options.quick,
        "machine": machine.describe(options.device), "versions": machine.versions(), "cases": cases,
        "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip
    for path, text in {"json": json.dumps(report, indent=1) + "\n", "md": markdown(report)}.items():
        with whole_file(options.out / f"model-{options.device}{'-quick' * options.quick}.{path}") as temporary:
            temporary.write_text(text, encoding="utf-8")
    print(markdown(report))
    return 0 if all(case["agrees"] for case in cases) else 1


def measure(pair, name: str, job: str, device, clock, rounds: int, quick: bool) -> dict:
    """One job of both models, in turns, after their results were compared."""
    height, width = (128, 160) if quick else SIZES[job]
    image, target = picture(height, width, device), truth(height, width, device)
    for model, size in ((pair.ours, height), (pair.theirs, height)):
        _take_as_it_is(model, size)
    training = job == "training step"
    for model in (pair.ours, pair.theirs):
        model.train(training)
    if training:
        differences = {"losses": loss_difference(pair, image, target)}
    else:
        with torch.inference_mode():
            differences = same_detections(pair.ours([image])[0], pair.theirs([image])[0])
    calls = {who: _job(model, image, target, training)
             for who, model in (("torchvision", pair.theirs), ("ours", pair.ours))}  # fmt: skip
    for call in calls.values():
        call()
    plans = {who: clock.plan(call, waits=True) for who, call in calls.items()}
    readings = take_turns(calls, plans, dict.fromkeys(calls, rounds), clock)
    times = {who: [reading.ms for reading in measured] for who, measured in readings.items()}
    agrees = all(differences.get(key, 0) <= bound for key, bound in DIFFERENCES.items())
    agrees &= training or differences["paired"] >= max(1, 0.97 * differences["detections"])
    return {
        "model": name, "job": job, "image": [height, width], "agrees": bool(agrees), "differences": differences,
        "ms": {who: spread(values) for who, values in times.items()},
        "ratio": spread(ratios(times["torchvision"], times["ours"])), "rounds": rounds,
        "needed": None if quick or device.type != "cpu" else NEEDED.get((name, job)),
    }  # fmt: skip


def _take_as_it_is(model, size: int) -> None:
    """Both models see the image in its own pixels: the shorter edge is `size` already."""
    if hasattr(model, "transform"):
        model.transform.min_size, model.transform.max_size = (size,), 1333
    else:
        model.config = model.config.with_fields(min_size=size, max_size=1333)


def _job(model, image, target: dict, training: bool):
    if not training:

        @torch.inference_mode()
        def detect():
            return model([image])

        return detect
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-6, momentum=0.9)

    def step():
        optimizer.zero_grad(set_to_none=True)
        sum(model([image], [dict(target)]).values()).backward()
        optimizer.step()

    return step


def peak_megabytes(name: str, who: str, quick: bool) -> float:
    """The largest resident memory of this process over two training steps of one of the models, in MB."""
    device = torch.device("cpu")
    pair = make_pair(name, device, only=who)
    height, width = (128, 160) if quick else SIZES["training step"]
    model = pair.ours if who == "ours" else pair.theirs
    _take_as_it_is(model, height)
    step = _job(model.train(), picture(height, width, device), truth(height, width, device), training=True)
    step()
    step()
    status = Path("/proc/self/status")
    if status.exists():  # Linux: getrusage would hold the process that started this one against it
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return round(int(lines["VmHWM"].split()[0]) / 1024, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def _memory(name: str, who: str, options) -> float:
    """:func:`peak_megabytes` in a process of its own: a peak is never forgotten."""
    words = ["--models", name, "--memory-of", who, "--threads", str(options.threads), *["--quick"] * options.quick]
    job = subprocess.run(
        [sys.executable, "-m", "benchmarks.model", *words], cwd=machine.ROOT, check=True, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    return float(job.stdout)


def _line(case: dict) -> str:
    return f"{case['model']} {case['job']}: {digits(case['ratio']['median'], 3)} x torchvision"


def markdown(report: dict) -> str:
    """A page with a table: what was measured, what must be reached."""
    head = (
        f"# Whole models on {report['machine']['processor'] if report['device'] == 'cpu' else report['device']}\n\n"
        f"`{report['command']}`, {report['date']}, {report['seconds']:.0f} s, commit {report['commit']}"
        f"{' with changes' * report['changed']}, {report['threads']} threads, torch {report['versions']['torch']}, "
        f"torchvision {report['versions']['torchvision']}.{' Toy sizes.' * report['quick']}\n\n"
        "x: how many times faster than torchvision with the same weights on the same image, the median over rounds "
        "with quartiles. Random weights; norms frozen on both sides.\n\n"
        "| model | job | image | torchvision ms | ours ms | x | needed | largest differences |\n"
        "|---|---|---|--:|--:|--:|--:|---|\n"
    )
    rows, memory = [], []
    for case in report["cases"]:
        ratio, ms = case["ratio"], case["ms"]
        told = ", ".join(f"{key} {value:.2g}" if isinstance(value, float) else f"{key} {value}"
                         for key, value in case["differences"].items())  # fmt: skip
        rows.append(
            f"| {case['model']} | {case['job']} | {case['image'][0]} x {case['image'][1]} | "
            f"{ms['torchvision']['median']:.0f} | {ms['ours']['median']:.0f} | **{ratio['median']:.3g}** "
            f"({ratio['q1']:.3g} to {ratio['q3']:.3g}) | {case['needed'] or ''} | "
            f"{told if case['agrees'] else '**wrong**: ' + told} |"
        )
        if "memory_mb" in case:
            mb = case["memory_mb"]
            memory.append(
                f"\nPeak memory of two training steps, {case['model']}: {mb['ours']:.0f} MB, torchvision "
                f"{mb['torchvision']:.0f} MB: {mb['ours'] / mb['torchvision']:.2f} times (at most {MEMORY_NEEDED})."
            )
    return head + "\n".join(rows) + "\n" + "\n".join(memory) + "\n"


if __name__ == "__main__":
    sys.exit(main())
