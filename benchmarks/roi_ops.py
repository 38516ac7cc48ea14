"""RoI ops and NMS against torchvision and onnxruntime, interleaved in one process: `mrcnn bench roi`.

Without an installation, in a checkout: `python -m benchmarks.roi_ops` or `python benchmarks/roi_ops.py`.
docs/benchmarks.md says what is measured, how, and what the files hold.
"""

import argparse
import shlex
import signal
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path

import torch

if not __package__:  # `python benchmarks/roi_ops.py` puts this folder on the path, not the checkout
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import contestants, machine, measure, results
from benchmarks.cases import Case, all_cases, choose
from benchmarks.timing import CpuClock, CudaClock
from mrcnn_scratch.roi_ops import roi_align

PROGRAM = "python -m benchmarks.roi_ops"


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number, 1 or more")
    return int(text)


def parser(program: str) -> argparse.ArgumentParser:
    """The options, the same for the script and for `mrcnn bench roi`."""
    of = argparse.ArgumentParser(program, description=__doc__.split(":")[0] + ".")
    of.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to compute (default: cpu)")
    of.add_argument("--threads", type=_count, default=2, help="of torch, Numba and onnxruntime (default: 2)")
    of.add_argument("--repeats", type=_count, help="rounds of measuring (default: 7; 25 on a GPU)")
    of.add_argument("--quick", action="store_true", help="small sizes, seconds: to try the benchmark, not the kernels")
    of.add_argument("--cases", metavar="PATTERN", help="only those whose name or group holds or (*, ?) matches it")
    of.add_argument("--out", type=Path, default=machine.ROOT / "benchmarks" / "results", help="folder for the results")
    of.add_argument("--list", action="store_true", help="name the cases and end")
    return of


def main(arguments: list[str] | None = None, program: str = PROGRAM) -> int:
    """Run it. Returns the exit status: 1 if a result is wrong or a case failed, 2 for a mistake, 130 for Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser(program).parse_args(arguments)
    try:
        cases = choose(all_cases(options.device, options.quick), options.cases)
        if options.list:
            print("\n".join(f"{case.name}   ({case.group})" for case in cases))
            return 0
        return _run(options, cases, shlex.join([*program.split(), *arguments]))
    except (ValueError, OSError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2


def open_device(name: str, quick: bool) -> contestants.Device:
    """Raises ValueError with the reason and the remedy where the device or our kernels for it are not there."""
    if name == "cpu":
        return contestants.Device("cpu", torch.device("cpu"), "numba", CpuClock(*((0.0, 0.0) if quick else ())))
    if not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no CUDA device; run it on a machine with an NVIDIA GPU")
    place = torch.device("cuda", torch.cuda.current_device())
    try:
        roi_align(torch.zeros(1, 1, 2, 2, device=place), torch.zeros(1, 5, device=place), 1, backend="cuda")
    except RuntimeError as error:
        raise ValueError(f"--device cuda: {error}") from error
    return contestants.Device("cuda", place, "cuda", CudaClock())


def _run(options, cases: list[Case], command: str) -> int:
    contestants.torchvision_ops()
    results.check_folder(options.out)
    device = open_device(options.device, options.quick)
    before, began = torch.get_num_threads(), time.perf_counter()
    torch.set_num_threads(options.threads)
    report = {
        "benchmark": "roi_ops", "schema": 1, "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **machine.commit(), "device": device.name, "ours": device.ours, "threads": options.threads,
        "repeats": options.repeats or (25 if device.name == "cuda" else 7), "quick": options.quick,
        "only": options.cases, "machine": machine.describe(device.name), "cases": [], "failed": {},
    }  # fmt: skip
    old_handler = signal.signal(signal.SIGTERM, signal.default_int_handler)  # a time limit is a Ctrl-C, too
    try:
        interrupted = _measure(report, cases, device)
    finally:
        signal.signal(signal.SIGTERM, old_handler)
        torch.set_num_threads(before)
    report["versions"] = machine.versions()
    report["complete"] = not interrupted and not options.cases and not report["failed"]
    report["must_reach"] = measure.must_reach(report["cases"], device.name, device.ours)
    report["seconds"] = round(time.perf_counter() - began, 1)
    return _finish(report, options.out, interrupted)


def _measure(report: dict, cases: list[Case], device: contestants.Device) -> bool:
    """Fill report["cases"], saying how far it is; True if Ctrl-C ended it early. A case that fails costs no other."""
    began, slow_time = time.perf_counter(), measure.SlowTime(*((20.0, 0.05) if report["quick"] else ()))
    try:
        print("measuring bandwidth and peak ...", file=sys.stderr, flush=True)
        report["roofs"] = machine.measure_roofs(device.place, device.clock, report["quick"])
        for done, case in enumerate(cases, start=1):
            try:
                record = measure.measure_case(case, device, report["repeats"], report["roofs"], slow_time)
            except Exception as error:
                traceback.print_exc()
                report["failed"][case.name] = f"{type(error).__name__}: {error}"
                continue
            report["cases"].append(record)
            how_far = f"[{done}/{len(cases)}, {time.perf_counter() - began:.0f} s]"
            print(how_far, results.progress_line(record, device.ours), file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        return True
    return False


def _finish(report: dict, out: Path, interrupted: bool) -> int:
    if not report["cases"]:
        print(f"\n{'interrupted' if interrupted else 'failed'} before a case was measured: nothing is written",
              file=sys.stderr)  # fmt: skip
        return 130 if interrupted else 1
    written = results.write(report, out)
    print(results.must_reach_table(report["must_reach"]))
    print(f"\n{len(report['cases'])} cases in {report['seconds']:.0f} s: {', '.join(map(str, written))}")
    wrong = [f"{record['name']}: {name}" for record in report["cases"] for name, result in record["results"].items()
             if not result["agrees"]]  # fmt: skip
    if wrong:
        print(f"results that differ from torchvision's: {'; '.join(wrong)}", file=sys.stderr)
    if report["failed"]:
        print(f"failed: {'; '.join(report['failed'])}", file=sys.stderr)
    if interrupted:
        print("interrupted: what was measured until then is kept", file=sys.stderr)
        return 130
    return 1 if wrong or report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
