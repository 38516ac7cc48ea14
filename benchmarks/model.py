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
from contextlib import contextmanager
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
from mrcnn_scratch.precision import HALF, autocast

PROGRAM = "python -m benchmarks.model"
NEEDED = {("R50-FPN", "inference"): 1.4, ("R50-FPN", "training step"): 1.5}  # times faster than torchvision, on a CPU
MEMORY_NEEDED = 1.1  # of a training step, times torchvision's
DIFFERENCES = {"pixels": 1e-2, "score": 1e-4, "mask": 1e-4, "losses": 1e-3}  # more is wrong
ROUNDED_REACH = 2.0  # pixels; with products of 10 or 7 bits which boxes are kept and sampled is a matter of rounding
SIZES = {  # images of a call, height, width
    "cpu": {"inference": (1, 800, 1066), "training step": (1, 512, 512)},
    "cuda": {"inference": (1, 800, 1066), "training step": (2, 800, 1066)},
}
PRECISIONS = ("float32", "tf32", "bfloat16")


def parser(program: str) -> argparse.ArgumentParser:
    """The options, the same for the script and for `mrcnn bench model`."""
    of = argparse.ArgumentParser(program, description=__doc__.split(":")[0] + ".")
    of.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to compute (default: cpu)")
    of.add_argument("--models", nargs="+", default=["R50-FPN"], choices=("R50-FPN", "R101-FPN"))
    of.add_argument("--precisions", nargs="+", default=["float32"], choices=PRECISIONS,
                    help="of products: tf32 on a GPU, bfloat16 by autocast (default: float32)")  # fmt: skip
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
        if options.device == "cpu" and "tf32" in options.precisions:
            raise ValueError("--precisions tf32: only an NVIDIA GPU has it; leave it out, or add --device cuda")
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
        for precision in options.precisions:
            for job, size in SIZES[options.device].items():
                size = (size[0], 128, 160) if options.quick else size
                with products(precision, device):
                    cases.append(measure(pair, name, job, size, precision, device, clock, rounds, options.quick))
                print(_line(cases[-1]), file=sys.stderr, flush=True)
        for case in cases if options.device == "cpu" else ():
            if (case["model"], case["job"], case["precision"]) == (name, "training step", "float32"):
                case["memory_mb"] = {who: _memory(name, who, options) for who in ("torchvision", "ours")}
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
    return 1 if any(case["agrees"] is False for case in cases) else 0


@contextmanager
def products(precision: str, device: torch.device):
    """How convolutions and matrix products are computed: float32 means float32, on a GPU too."""
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = precision == "tf32"
        with autocast(precision if precision in HALF else "float32", device):
            yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


def measure(pair, name: str, job: str, size, precision: str, device, clock, rounds: int, quick: bool) -> dict:
    """One job of both models, in turns, after their results were compared."""
    count, height, width = size
    images = [picture(height, width, device)] * count
    targets = [truth(height, width, device)] * count
    for model in (pair.ours, pair.theirs):
        _take_as_it_is(model, height)
    training, exact = job == "training step", precision == "float32"
    for model in (pair.ours, pair.theirs):
        model.train(training)
    if training:
        differences = {"losses": loss_difference(pair, images, targets)}
    else:
        with torch.inference_mode():
            reach = DIFFERENCES["pixels"] if exact else ROUNDED_REACH
            differences = same_detections(pair.ours(images)[0], pair.theirs(images)[0], reach)
    calls = {who: _job(model, images, targets, training)
             for who, model in (("torchvision", pair.theirs), ("ours", pair.ours))}  # fmt: skip
    for call in calls.values():
        call()
    memory = {who: _gpu_megabytes(call, device) for who, call in calls.items()} if device.type == "cuda" else None
    plans = {who: clock.plan(call, waits=True) for who, call in calls.items()}
    readings = take_turns(calls, plans, dict.fromkeys(calls, rounds), clock)
    times = {who: [reading.ms for reading in measured] for who, measured in readings.items()}
    return {
        "model": name, "job": job, "precision": precision, "images": count, "image": [height, width],
        "agrees": agrees(precision, differences), "differences": differences,
        "ms": {who: spread(values) for who, values in times.items()},
        "images_per_second": {who: digits(count * 1e3 / spread(values)["median"]) for who, values in times.items()},
        "ratio": spread(ratios(times["torchvision"], times["ours"])), "rounds": rounds,
        "needed": None if quick or device.type != "cpu" or not exact else NEEDED.get((name, job)),
        **({"memory_mb": memory} if memory else {}),
    }  # fmt: skip


def agrees(precision: str, differences: dict) -> bool | None:
    """Whether both models gave the same; None where rounding decides it, so that it is told and not judged."""
    if precision != "float32":
        return None
    close = all(differences.get(key, 0) <= bound for key, bound in DIFFERENCES.items())
    return close and differences.get("paired", 1) >= max(1, 0.97 * differences.get("detections", 0))


def _gpu_megabytes(call, device: torch.device) -> float:
    """The most GPU memory that is taken while it is called twice, in MB, the weights of both models included."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    call()
    call()
    torch.cuda.synchronize(device)
    return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)


def _take_as_it_is(model, size: int) -> None:
    """Both models see the image in its own pixels: the shorter edge is `size` already."""
    if hasattr(model, "transform"):
        model.transform.min_size, model.transform.max_size = (size,), 1333
    else:
        model.config = model.config.with_fields(min_size=size, max_size=1333)


def _job(model, images: list, targets: list[dict], training: bool):
    if not training:

        @torch.inference_mode()
        def detect():
            return model(images)

        return detect
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-6, momentum=0.9)

    def step():
        optimizer.zero_grad(set_to_none=True)
        sum(model(images, [dict(target) for target in targets]).values()).backward()
        optimizer.step()

    return step


def peak_megabytes(name: str, who: str, quick: bool) -> float:
    """The largest resident memory of this process over two training steps of one of the models, in MB."""
    device = torch.device("cpu")
    pair = make_pair(name, device, only=who)
    count, height, width = SIZES["cpu"]["training step"]
    height, width = (128, 160) if quick else (height, width)
    model = pair.ours if who == "ours" else pair.theirs
    _take_as_it_is(model, height)
    images, targets = [picture(height, width, device)] * count, [truth(height, width, device)] * count
    step = _job(model.train(), images, targets, training=True)
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
    return f"{case['model']} {case['job']}, {case['precision']}: {digits(case['ratio']['median'], 3)} x torchvision"


def markdown(report: dict) -> str:
    """A page with a table: what was measured, what must be reached."""
    machine_name = report["machine"].get("gpu", {}).get("name") or report["machine"]["processor"]
    head = (
        f"# Whole models on {machine_name}\n\n"
        f"`{report['command']}`, {report['date']}, {report['seconds']:.0f} s, commit {report['commit']}"
        f"{' with changes' * report['changed']}, {report['threads']} threads, torch {report['versions']['torch']}, "
        f"torchvision {report['versions']['torchvision']}.{' Toy sizes.' * report['quick']}\n\n"
        "x: how many times faster than torchvision with the same weights on the same image, the median over rounds "
        "with quartiles. Random weights; norms frozen on both sides.\n\n"
        "| model | job | images | products in | torchvision ms | ours ms | ours, images a second | x | needed | "
        "largest differences |\n"
        "|---|---|---|---|--:|--:|--:|--:|--:|---|\n"
    )
    rows, memory = [], []
    for case in report["cases"]:
        ratio, ms = case["ratio"], case["ms"]
        told = ", ".join(f"{key} {value:.2g}" if isinstance(value, float) else f"{key} {value}"
                         for key, value in case["differences"].items())  # fmt: skip
        rows.append(
            f"| {case['model']} | {case['job']} | {case['images']} of {case['image'][0]} x "
            f"{case['image'][1]} | {case['precision']} | {ms['torchvision']['median']:.3g} | "
            f"{ms['ours']['median']:.3g} | {case['images_per_second']['ours']:.3g} | **{ratio['median']:.3g}** "
            f"({ratio['q1']:.3g} to {ratio['q3']:.3g}) | {case['needed'] or ''} | "
            f"{'**wrong**: ' * (case['agrees'] is False) + told} |"
        )
        if "memory_mb" in case:
            mb = case["memory_mb"]
            on_cpu = report["device"] == "cpu"
            what = "each model in a process of its own" if on_cpu else "both models' weights included"
            most = f" (at most {MEMORY_NEEDED})" if on_cpu else ""
            memory.append(
                f"\nPeak memory of two calls, {what}: {case['model']}, {case['job']}, {case['precision']}: "
                f"{mb['ours']:.0f} MB, torchvision {mb['torchvision']:.0f} MB: "
                f"{mb['ours'] / mb['torchvision']:.2f} times{most}."
            )
    return head + "\n".join(rows) + "\n" + "\n".join(memory) + "\n"


if __name__ == "__main__":
    sys.exit(main())
