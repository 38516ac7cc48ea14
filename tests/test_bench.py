"""mrcnn bench: ratios come from the raw measurements, the roofline's arithmetic, and what goes wrong is said."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks/ is a part of the checkout, not of the package

from command import mrcnn  # noqa: E402

from benchmarks import cases, contestants, machine, measure, plots, results, roi_ops, timing, work  # noqa: E402
from mrcnn_scratch.cli import bench  # noqa: E402

ONE = ["--quick", "--cases", "align/1x16x50x84/50x7x7/sampling2/channels_last/forward"]
ROOFS = {"memory_gb_s": 50.0, "cache_gb_s": 80.0, "peak_gflop_s": 300.0}


@pytest.fixture(autouse=True)
def _same_threads():
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before, "a benchmark leaves torch's number of threads as it was"


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> tuple[Path, dict]:
    """A whole --quick run, and its JSON."""
    out = tmp_path_factory.mktemp("bench")
    assert roi_ops.main(["--quick", "--threads", "1", "--out", str(out)]) == 0
    return out, json.loads((out / "roi_ops-cpu-quick.json").read_text())


def run(out: Path, *arguments) -> tuple[int, dict]:
    """Exit status and JSON of a run of a few cases."""
    status = roi_ops.main([*arguments, "--out", str(out)])
    (file,) = out.glob("*.json")
    return status, json.loads(file.read_text())


# ---------------------------------------------------------------- a run


def test_a_run_measures_every_case_and_everybody_agrees(quick):
    _, report = quick
    expected = [case.name for case in cases.all_cases("cpu", quick=True)]
    assert [record["name"] for record in report["cases"]] == expected and len(set(expected)) == len(expected)
    for record in report["cases"]:
        assert {"numba", "torchvision"} <= set(record["results"]), record["name"]
        for name, result in record["results"].items():
            assert result["agrees"] and result["max_difference"] < 1e-2, (record["name"], name)
    everybody = {name for record in report["cases"] for name in record["results"]}
    assert everybody == {"numba", "torch", "reference", "torchvision", "onnxruntime"}
    assert {record["group"] for record in report["cases"]} == set(results.GROUPS)


def test_the_json_says_what_was_measured_where_and_how(quick):
    _, report = quick
    assert report["command"].startswith("python -m benchmarks.roi_ops --quick --threads 1")
    assert (report["device"], report["ours"], report["threads"], report["repeats"]) == ("cpu", "numba", 1, 7)
    assert report["complete"] and report["quick"] and report["failed"] == {} and report["seconds"] > 0
    assert report["machine"]["processor"] and report["machine"]["cores"] >= 1
    assert {"python", "torch", "torchvision", "numba", "numpy", "onnxruntime"} <= set(report["versions"])
    assert report["versions"]["torch"] == torch.__version__.split("+")[0]
    assert all(report["roofs"][key] > 0 for key in ("memory_gb_s", "cache_gb_s", "peak_gflop_s"))
    assert not [row for row in report["must_reach"] if row["reached"] is not None], "toy sizes reach no line"
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    assert report["commit"] == (git.stdout.strip() if git.returncode == 0 else None)


def test_ratios_are_those_of_the_raw_pairs(quick):
    _, report = quick
    for record in report["cases"]:
        peer = record["results"]["torchvision"]["every_ms"]
        assert len(peer) == 7
        for name, result in record["results"].items():
            mine = result["every_ms"]
            pairs = np.array(peer[: len(mine)]) / np.array(mine)
            assert len(mine) == 7 or name in ("torch", "reference")
            assert (pairs > 0).all() and np.isfinite(pairs).all()
            low, q1, median, q3, high = np.percentile(pairs, [0, 25, 50, 75, 100])
            stored = [result["ratio"][key] for key in ("min", "q1", "median", "q3", "max")]
            assert stored == pytest.approx([low, q1, median, q3, high], rel=1e-3), (record["name"], name)
            assert result["ms"]["median"] == pytest.approx(np.median(mine), rel=1e-3)


def test_rates_follow_from_work_and_time(quick):
    _, report = quick
    roofs = report["roofs"]
    for record in report["cases"]:
        for result in record["results"].values():
            if record["work"] is None:
                assert record["op"] == "nms" and "gb_s" not in result
                continue
            seconds = result["ms"]["median"] / 1e3
            assert result["gb_s"] == pytest.approx(record["work"]["bytes"] / seconds / 1e9, rel=1e-3)
            flops, moved = record["work"]["flops"], record["work"]["bytes"]
            least = max(flops / roofs["peak_gflop_s"] / 1e9, moved / roofs["cache_gb_s"] / 1e9)
            assert result["of_roofline"]["cache"] == pytest.approx(least / seconds, rel=0.01)


def test_files_are_whole_and_pictures_not_blank(quick):
    out, report = quick
    names = [f"roi_ops-cpu-quick{end}" for end in (".json", ".md", "-ratios.png", "-growth.png", "-roofline.png")]
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    for name in names[2:]:
        with Image.open(out / name) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        colours = np.unique(pixels.astype(np.int32) @ [1, 256, 65536])
        assert pixels.shape[1] > 900 and len(colours) > 50
        inked = (pixels < 250).any(axis=2)
        assert inked.mean() > 0.02 and inked[:, : pixels.shape[1] // 2].any() and inked[:, pixels.shape[1] // 2 :].any()
    page = (out / names[1]).read_text()
    assert all(record["name"] in page for record in report["cases"])
    assert "onnxruntime in" in page and "computes no gradients" in page and "Toy sizes" in page


def test_pictures_name_their_axes(quick):
    _, report = quick
    for name, figure in plots.figures(report).items():
        assert all(axes.get_xlabel() for axes in figure.axes if axes.get_subplotspec().is_last_row()), name
        assert figure.legends and figure.get_suptitle().startswith(("How many", "RoIAlign")), name
        assert "Toy sizes" in figure.get_suptitle()


def test_a_slower_kernel_has_a_lower_ratio_and_a_wrong_one_is_refused(tmp_path, monkeypatch, capsys):
    _, fast = run(tmp_path / "fast", *ONE)
    right = contestants.roi_align

    def slowed(*arguments, **options):
        time.sleep(0.2)  # a core that slept wakes up slowly, for torchvision too: much more than that
        return right(*arguments, **options)

    monkeypatch.setattr(contestants, "roi_align", slowed)
    status, slow = run(tmp_path / "slow", *ONE)
    one, other = (report["cases"][0]["results"]["numba"] for report in (fast, slow))
    assert status == 0 and other["ms"]["min"] > 200
    assert other["ratio"]["median"] < one["ratio"]["median"] / 2
    capsys.readouterr()
    monkeypatch.setattr(contestants, "roi_align", lambda *a, **o: right(*a, **o) + 0.1)
    status, wrong = run(tmp_path / "wrong", *ONE)
    result = wrong["cases"][0]["results"]["numba"]
    assert status == 1 and not result["agrees"] and result["max_difference"] == pytest.approx(0.1, abs=1e-3)
    told = capsys.readouterr().err
    assert "WRONG by 0.1" in told and "differ from torchvision's" in told
    assert "**wrong**" in next((tmp_path / "wrong").glob("*.md")).read_text()


def test_what_was_measured_before_ctrl_c_is_kept(tmp_path, monkeypatch, capsys):
    real, done = measure.measure_case, []

    def stopped(case, *rest):
        if len(done) == 2:
            os.kill(os.getpid(), signal.SIGTERM)  # as a time limit does; it ends a run as Ctrl-C does
            time.sleep(5)
        done.append(case.name)
        return real(case, *rest)

    monkeypatch.setattr(measure, "measure_case", stopped)
    before = signal.getsignal(signal.SIGTERM)
    status, report = run(tmp_path, "--quick", "--cases", "nms/")
    assert status == 130 and signal.getsignal(signal.SIGTERM) == before
    assert [record["name"] for record in report["cases"]] == done and len(done) == 2 and not report["complete"]
    assert all(path.name.startswith("roi_ops-cpu-quick-part") for path in tmp_path.iterdir())
    assert "is kept" in capsys.readouterr().err


def test_a_case_that_fails_costs_no_other(tmp_path, monkeypatch, capsys):
    def broken(*arguments, **options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(contestants, "roi_pool", broken)
    status, report = run(tmp_path, "--quick", "--cases", "all backends")
    assert status == 1 and len(report["failed"]) == 2 and all(name.startswith("pool/") for name in report["failed"])
    assert {record["op"] for record in report["cases"]} == {"align", "warp", "nms"} and not report["complete"]
    assert "out of memory" in capsys.readouterr().err
    assert "out of memory" in next(tmp_path.glob("*.md")).read_text()


def test_slow_backends_get_no_more_than_their_time(tmp_path):
    device = roi_ops.open_device("cpu", quick=True)
    case = next(case for case in cases.all_cases("cpu", quick=True) if case.group == "all backends")
    record = measure.measure_case(case, device, 7, ROOFS, measure.SlowTime(total=10.0, each=0.0))
    assert [len(record["results"][name]["every_ms"]) for name in ("reference", "torch", "numba")] == [1, 1, 7]
    record = measure.measure_case(case, device, 2, ROOFS, measure.SlowTime(total=0.0))
    assert "reference" not in record["results"] and "used up" in record["left_out"]["reference"]


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--cases", "frobnicate"], ["frobnicate", "align/1x256x200x336"]),
        (["--device", "tpu"], ["tpu", "cuda"]),
        (["--threads", "0"], ["--threads", "1 or more"]),
        (["--repeats", "many"], ["many", "whole number"]),
        (["--out", "FILE"], ["FILE", "is a file"]),
        (["--device", "cuda"], ["no CUDA device", "NVIDIA GPU"]),
    ],
)
def test_mistakes_are_named(arguments, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    Path("FILE").write_text("mine")
    try:
        status = roi_ops.main(arguments)
    except SystemExit as end:
        status = end.code
    told = " ".join(capsys.readouterr().err.split())
    assert status == 2 and all(word in told for word in named), told
    assert [path.name for path in tmp_path.iterdir()] == ["FILE"]


def test_missing_peers_are_named_with_the_remedy(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    contestants.onnx_peer._session.cache_clear()
    status, report = run(tmp_path, "--quick", "--cases", "align/1x16x50x84/5x14x14/adaptive/NCHW/forward")
    assert status == 0 and "pip install -e '.[test]'" in report["cases"][0]["left_out"]["onnxruntime"]
    monkeypatch.setitem(sys.modules, "torchvision.ops", None)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert roi_ops.main(["--quick"]) == 2
    assert "pip install -e '.[test]'" in capsys.readouterr().err


def test_the_command_runs_the_checkout_and_says_where_there_is_none(tmp_path, monkeypatch, capsys):
    assert mrcnn("bench", "roi", "--quick", "--cases", "nms/uniform/100", "--out", tmp_path / "out") == 0
    report = json.loads((tmp_path / "out" / "roi_ops-cpu-quick-part.json").read_text())
    assert report["command"].startswith("mrcnn bench roi --quick --cases nms/uniform/100")
    assert mrcnn("bench", "roi", "--help") == 0
    assert "--repeats" in capsys.readouterr().out
    assert mrcnn("bench", "roi", "--cases", "frobnicate") == 2
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "site-packages" / "mrcnn_scratch" / "cli" / "bench.py"))
    capsys.readouterr()
    assert mrcnn("bench", "roi") == 2
    assert "clone the project" in capsys.readouterr().err


def test_it_runs_as_a_script(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "roi_ops.py"), "--list"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == len(cases.all_cases("cpu")), done.stderr


def test_it_runs_as_a_module_and_needs_little_of_what_the_package_needs(tmp_path):
    """A rented GPU machine has torch, torchvision, Numba and matplotlib."""
    absent = ("typer", "tqdm", "safetensors", "pycocotools", "tensorboard", "onnx", "onnxruntime")
    arguments = ["--quick", "--cases", "nms/uniform/100", "--out", str(tmp_path)]
    code = f"import runpy, sys\nfor name in {absent}: sys.modules[name] = None\nsys.argv[1:] = {arguments}\n"
    code += "runpy.run_module('benchmarks.roi_ops', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "roi_ops-cpu-quick-part.json").exists()


# ---------------------------------------------------------------- cases


def test_every_line_that_must_be_reached_is_a_case():
    for device, lines in cases.MUST_REACH.items():
        names = [case.name for case in cases.all_cases(device)]
        assert len(set(names)) == len(names) and set(lines) <= set(names)
    size = "align/1x256x200x336/1000x7x7/sampling2"
    assert cases.MUST_REACH["cpu"][f"{size}/channels_last/forward"] == 20
    assert cases.MUST_REACH["cpu"][f"{size}/channels_last/backward"] == 40
    assert [cases.MUST_REACH["cpu"][f"{size}/NCHW/{d}"] for d in cases.DIRECTIONS] == [7, 8]
    assert cases.MUST_REACH["cpu"]["align/1x1024x50x84/300x14x14/sampling2/channels_last/backward"] == 65
    assert "align/2x256x200x336/2000x7x7/sampling2/NCHW/backward" in cases.MUST_REACH["cuda"]


@pytest.mark.parametrize(
    ("ratio", "agrees", "reached"), [(20.0, True, True), (19.9, True, False), (30.0, False, False), (None, True, None)]
)
def test_reached_or_not(ratio, agrees, reached):
    name = "align/1x256x200x336/1000x7x7/sampling2/channels_last/forward"
    record = {"name": name, "results": {"numba": {"ratio": {"median": ratio}, "agrees": agrees}}}
    rows = measure.must_reach([record] if ratio else [], "cpu", "numba")
    (row,) = [row for row in rows if row["case"] == name]
    assert row["reached"] is reached and row["needed"] == 20
    table = results.must_reach_table(rows)
    verdict = {True: "| 20 | reached", False: "**not reached**", None: "none was measured"}[reached]
    assert (verdict in table) and len(rows) == len(cases.MUST_REACH["cpu"])


@pytest.mark.parametrize("stride", [1, 4, 8, 16])
def test_boxes_are_spread_as_described(stride):
    case = cases.Case("align", (2, 1, 800 // stride, 1344 // stride), stride, 4000, 7)
    boxes = cases.make_boxes(case)
    assert torch.equal(boxes, cases.make_boxes(case)) and not torch.equal(boxes, cases.make_boxes(case, seed=1))
    index, low, high = boxes[:, 0], boxes[:, 1:3], boxes[:, 3:]
    assert index.bincount().tolist() == [2000, 2000] if index.dtype == torch.int64 else (index == 1).sum() == 2000
    image = torch.tensor([1344 // stride, 800 // stride]) * stride
    assert (low >= 0).all() and (high <= image).all() and (high > low).all()
    whole = ((low > 0) & (high < image)).all(dim=1)
    size = (high - low)[whole]
    side, ratio = size.prod(dim=1).sqrt(), size[:, 1] / size[:, 0]
    least, most = cases.SIDES[stride]
    assert side.min() >= least * 0.999 and side.max() <= most * 1.001
    assert 0.499 < ratio.min() < 0.55 and 1.8 < ratio.max() < 2.01
    if stride == 4:  # few are cut off: the median of a log-uniform number is the geometric mean of its bounds
        assert side.median() == pytest.approx((least * most) ** 0.5, rel=0.1)


def test_clustered_boxes_suppress_each_other():
    uniform, clustered = (cases.Case("nms", (1, 1, 800, 1344), 1, 1000, 0, boxes=b) for b in ("uniform", "clustered"))
    device = roi_ops.open_device("cpu", quick=True)
    kept = [len(contestants.enter(case, device).calls["torchvision"]()) for case in (uniform, clustered)]
    assert kept[1] < 0.8 * kept[0]


def test_patterns_choose_by_name_and_group():
    every = cases.all_cases("cpu")
    assert {case.op for case in cases.choose(every, "pool")} == {"pool"}
    assert {case.group for case in cases.choose(every, "growth with bins")} == {"growth with bins"}
    assert all(case.direction == "backward" for case in cases.choose(every, "*/backward"))
    assert cases.choose(every, None) == every


# ---------------------------------------------------------------- work, by hand


def test_cells_that_roi_align_reads():
    """[1, 3] in 2 bins of 1 cell, from index 0.5: samples at 0.75, 1.25 and 1.75, 2.25."""
    reads = work.align_cells(1, 3, 2, 1.0, 2, 5, warp=False)
    assert reads.astype(int).tolist() == [[1, 1, 1, 0, 0], [0, 1, 1, 1, 0]]
    pooled = work.pool_cells(1, 3, 2, 1.0, 5)
    assert pooled.astype(int).tolist() == [[0, 1, 1, 0, 0], [0, 0, 1, 1, 0]]


@pytest.mark.parametrize(
    ("op", "direction", "bytes_", "flops"),
    [
        ("align", "forward", 4 * 3 * (16 + 4) + 20, 2 * 3 * 36),
        ("align", "backward", 4 * 3 * (4 + 25 + 2 * 16) + 20, 2 * 3 * 36),
        ("pool", "forward", 4 * 3 * (9 + 2 * 4) + 20, 3 * 16),
        ("pool", "backward", 4 * 3 * (2 * 4 + 25 + 2 * 4) + 20, 3 * 4),
    ],
)
def test_bytes_and_operations(op, direction, bytes_, flops):
    """5x5 cells, 3 channels, one box [1, 1, 3, 3], 2x2 bins.

    RoIAlign: rows 0 to 3, 3 for each bin; so 4 x 4 cells touched, and (3 + 3) x (3 + 3) = 36 summed over bins.
    RoIPool: rows 1 to 3, 2 for each bin; so 3 x 3 cells touched, and (2 + 2) x (2 + 2) = 16 compared.
    """
    case = cases.Case(op, (1, 3, 5, 5), 1, 1, 2, direction=direction)
    done = work.work_of(case, np.array([[0, 1, 1, 3, 3]], np.float32))
    assert (done.bytes, done.flops, done.touched) == (bytes_, flops, 16 if op == "align" else 9)


@pytest.mark.parametrize("op", ["align", "warp"])
@pytest.mark.parametrize("sampling", [1, 2, 0])
def test_touched_cells_are_those_that_receive_a_gradient(op, sampling):
    case = cases.Case(op, (2, 1, 25, 42), 4, 12, 3, sampling=sampling, direction="backward")
    boxes = cases.make_boxes(case)
    x = torch.zeros(case.shape, dtype=torch.float64, requires_grad=True)
    peer_boxes = contestants._rounded(boxes, 4) if op == "warp" else boxes
    contestants._torchvision(case, x, peer_boxes.double()).sum().backward()  # weights are positive: none cancel
    assert work.work_of(case, boxes.numpy()).touched == int((x.grad > 1e-10).sum()) > 100


def test_the_roofline():
    memory_bound, compute_bound = work.Work(10**9, 10**9, 0), work.Work(10**6, 10**9, 0)
    assert work.least_seconds(memory_bound, 50, 100) == pytest.approx(0.02)
    assert work.least_seconds(compute_bound, 50, 100) == pytest.approx(0.01)
    assert work.work_of(cases.Case("nms", (1, 1, 8, 8), 1, 3, 0), np.zeros((3, 5))) is None
    result = measure._result([timing.Reading(40.0)], 1, [80.0], memory_bound, ROOFS)
    assert result["of_roofline"] == {"memory": 0.5, "cache": pytest.approx(0.3125, rel=2e-3)}  # 20 and 12.5 of 40 ms
    assert (result["gb_s"], result["gflop_s"], result["ratio"]["median"]) == (25.0, 25.0, 2.0)


# ---------------------------------------------------------------- clocks


def test_turns_are_taken():
    order = []
    clock = SimpleNamespace(measure=lambda call, plan: call())
    calls = {name: (lambda n=name: order.append(n) or timing.Reading(1.0)) for name in "ABC"}
    readings = timing.take_turns(calls, dict.fromkeys("ABC"), {"A": 3, "B": 1, "C": 3}, clock)
    assert "".join(order) == "ABCACAC" and [len(r) for r in readings.values()] == [3, 1, 3]


def test_spread_and_ratios_by_hand():
    assert timing.spread([5, 1, 4, 2, 3]) == {"median": 3, "min": 1, "q1": 2, "q3": 4, "max": 5}
    assert timing.ratios([10, 20, 30], [5, 4]) == [2, 5]


class FakeTime:
    """A wall clock that only `sleep` moves: what is measured does not depend on who else is on the machine."""

    def __init__(self):
        self.now, self.sleeps = 0.0, []

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.sleeps.append(seconds)


def test_the_cpu_clock_measures_short_calls_several_at_a_time(monkeypatch):
    fake = FakeTime()
    monkeypatch.setattr(timing, "time", fake)
    clock = timing.CpuClock(pause=0.5, least=0.01)
    plan = clock.plan(lambda: fake.sleep(0.003))
    assert (plan.calls, plan.seconds) == (4, pytest.approx(0.003))  # 3 x 3 ms are less than 10
    fake.sleeps.clear()
    assert clock.measure(lambda: fake.sleep(0.003), plan).ms == pytest.approx(3.0)
    assert fake.sleeps == [0.5] + [0.003] * 4
    assert clock.plan(lambda: fake.sleep(0.02)).calls == 1


class FakeGpu:
    """torch.cuda as far as the benchmark uses it; `kernel` makes its clock go 3 ms further than the wall's."""

    def __init__(self, wall=time):
        self.log, self.busy, self.wall = [], 0.0, wall

    def Event(self, enable_timing):
        assert enable_timing
        event = SimpleNamespace(at=None)

        def record():
            self.log.append("event")
            event.at = self.wall.perf_counter() * 1e3 + self.busy

        event.record, event.elapsed_time = record, lambda end: end.at - event.at
        return event

    def synchronize(self):
        self.log.append("wait")

    def _sleep(self, cycles):
        assert isinstance(cycles, int) and cycles > 0
        self.log.append("sleep")

    def get_device_properties(self, index):
        return SimpleNamespace(name="Fake H100", total_memory=80e9, multi_processor_count=132, major=9, minor=0)

    def current_device(self):
        return 0

    def kernel(self):
        self.log.append("kernel")
        self.busy += 3.0


def test_the_cuda_clock_queues_before_the_first_event(monkeypatch):
    fake = FakeTime()
    gpu = FakeGpu(fake)
    monkeypatch.setattr(timing, "time", fake)
    monkeypatch.setattr(timing.torch, "cuda", gpu)

    def call():
        fake.sleep(0.001)  # the host's millisecond, beside the 3 of the kernel
        gpu.kernel()

    clock = timing.CudaClock(least=0.008)
    plan = clock.plan(call)
    assert plan.calls == 2
    assert plan.queue == pytest.approx(0.0042 * clock.CYCLES_PER_SECOND)  # longer than both launches take
    gpu.log.clear()
    reading = clock.measure(call, plan)
    assert gpu.log == ["wait", "sleep", "event", "kernel", "kernel", "event", "wait"]
    assert (reading.ms, reading.host_ms) == (pytest.approx(4.0), pytest.approx(1.0))
    assert clock.plan(call, waits=True).queue == 0


def test_deterministic_algorithms_are_asked_for_during_the_call_only():
    def broken():
        assert torch.are_deterministic_algorithms_enabled()
        raise RuntimeError("no such kernel")

    assert contestants._deterministic(torch.are_deterministic_algorithms_enabled)() is True
    with pytest.raises(RuntimeError, match="no such kernel"):
        contestants._deterministic(broken)()
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_run_on_a_gpu_that_is_faked(tmp_path, monkeypatch):
    """All but the kernels: cases, clock, contestants and files of --device cuda, on CPU tensors."""
    gpu = FakeGpu()

    def instead(function):
        def call(*arguments, backend, **options):
            assert backend in ("cuda", "torch")
            return function(*arguments, backend="numba" if backend == "cuda" else backend, **options)

        return call

    for name in ("roi_align", "roi_pool", "roi_warp", "nms"):
        monkeypatch.setattr(contestants, name, instead(getattr(contestants, name)))
    for module in (timing, machine):
        fake = SimpleNamespace(**{**{n: getattr(torch, n) for n in dir(torch) if not n.startswith("__")}, "cuda": gpu})
        monkeypatch.setattr(module, "torch", fake)
    device = contestants.Device("cuda", torch.device("cpu"), "cuda", timing.CudaClock())
    monkeypatch.setattr(roi_ops, "open_device", lambda name, quick: device)
    status, report = run(tmp_path, "--device", "cuda", "--quick", "--repeats", "3", "--cases", "align/2x")
    assert status == 0 and report["machine"]["gpu"]["name"] == "Fake H100" and report["ours"] == "cuda"
    names = {record["name"]: record for record in report["cases"]}
    assert len(names) == 8
    large = names["align/2x16x50x84/100x7x7/sampling2/NCHW/backward"]
    assert set(large["results"]) == {"cuda", "cuda, deterministic", "torch", "torchvision"}
    assert "the CPU only" in large["left_out"]["onnxruntime"]
    assert all("host_ms" in result for record in report["cases"] for result in record["results"].values())
    assert not any("reference" in record["results"] for record in report["cases"])
    assert not torch.are_deterministic_algorithms_enabled()
    page = next(tmp_path.glob("*.md")).read_text()
    assert page.startswith("# RoI ops and NMS on Fake H100") and "host ms" in page and "compute on the CPU" in page
