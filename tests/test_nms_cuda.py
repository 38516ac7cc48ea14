"""NMS on a GPU: its kernels in Numba's simulator, what they compile to, and, where there is a GPU, what they do.

The simulator runs a block's threads one after another up to each barrier, in Python's arithmetic on NumPy's numbers. So
it proves the logic; that products and sums are not fused, and what registers they take, is read off the compiled code.
"""

import importlib
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torchvision

from mrcnn_scratch import _numba_cuda
from mrcnn_scratch.nms import batched_nms, nms

module = importlib.import_module("mrcnn_scratch.nms")  # `mrcnn_scratch.nms` is the function
SIMULATED = Path(__file__).parent / "cudasim_nms" / "simulated_nms.py"
no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
compiles = pytest.mark.skipif(sys.platform != "linux", reason="NVIDIA's compiler has wheels for Linux alone")


@pytest.mark.slow
def test_in_the_simulator():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(SIMULATED)]
    run = subprocess.run(command, env=os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    assert re.search(r"\d+ passed", run.stdout) and "skipped" not in run.stdout, run.stdout[-500:]


def compiled(name: str, cc: tuple[int, int]) -> tuple[str, str]:
    """PTX of the kernels' Python for a compute capability, and what ptxas says about the machine code."""
    from cuda.core import Linker, LinkerOptions, ObjectCode
    from numba import cuda, float32, float64

    from mrcnn_scratch import nms_cuda

    real = float64 if name.endswith("64") else float32
    kernel = nms_cuda._sweep if name == "sweep" else nms_cuda.overlaps_for(real)
    signature = nms_cuda.SWEEP_TYPES if name == "sweep" else nms_cuda.overlaps_types(real)
    ptx, _ = cuda.compile_ptx(kernel, signature, cc=cc)
    linker = Linker(
        ObjectCode.from_ptx(ptx.encode()), options=LinkerOptions(arch=f"sm_{cc[0]}{cc[1]}", ptxas_options="-v")
    )
    linker.link("cubin")
    return ptx, linker.get_info_log()


@compiles
@pytest.mark.parametrize("cc", [(7, 5), (8, 0), (9, 0)])
@pytest.mark.parametrize(("name", "most"), [("overlaps32", 64), ("overlaps64", 80), ("sweep", 64)])
def test_registers_and_spills(name, most, cc):
    """128 registers a thread is what the sweep's 512 threads may have at all; 64 keeps half of the threads resident."""
    _, log = compiled(name, cc)
    assert "0 bytes spill stores, 0 bytes spill loads" in log, log
    assert int(re.search(r"Used (\d+) registers", log)[1]) <= most, log


@compiles
@pytest.mark.parametrize(("name", "bits", "other"), [("overlaps32", "f32", "f64"), ("overlaps64", "f64", "f32")])
def test_rounds_as_the_cpu_does(name, bits, other):
    """An IoU one bit off decides otherwise at the threshold: no fused sum, no approximate division, one precision."""
    ptx, _ = compiled(name, (9, 0))
    products = re.findall(rf"fma\.rn\.{bits}[^;]*, (\w+);", ptx)
    assert products and {int(addend[2:], 16) for addend in products} == {0}, products
    assert f"div.rn.{bits}" in ptx and not re.search(r"div\.(approx|full)|rcp\.|\.ftz", ptx)
    assert f".{other}" not in ptx
    compared = set(re.findall(rf"mul\.(?:rn\.)?{bits}\s+(%f\w*),", ptx))  # threshold * union, which nothing is added to
    added = set(re.findall(r"%f\w+", " ".join(re.findall(rf"(?:add|sub)\.(?:rn\.)?{bits}\s+%f\w*,([^;]*);", ptx))))
    assert compared and not compared & added


@compiles
def test_barriers_and_atomics():
    """The simulator would forgive a missing barrier."""
    overlaps, sweep = compiled("overlaps32", (9, 0))[0], compiled("sweep", (9, 0))[0]
    assert len(re.findall(r"bar(?:rier)?\.sync", overlaps)) == 1 and not re.search(r"\b(atom|red)\.", overlaps)
    assert len(re.findall(r"bar(?:rier)?\.sync", sweep)) == 2 and re.search(r"\b(atom|red)\.[\w.]*or\.b64", sweep)


def test_without_a_working_gpu_torch_takes_over_and_says_so_once(monkeypatch):
    monkeypatch.setattr(_numba_cuda, "why_not", lambda: "no driver")
    module._runs_or_says_why_not.cache_clear()
    try:
        with pytest.warns(UserWarning, match='backend "cuda" cannot run: no driver. NMS falls back to torch'):
            assert module._choose("cuda", "auto") == "torch"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert module._choose("cuda", "auto") == "torch"
    finally:
        module._runs_or_says_why_not.cache_clear()
    with pytest.raises(RuntimeError, match='backend "cuda" cannot run: no driver'):
        module._choose("cuda", "cuda")
    with pytest.raises(ValueError, match='backend "numba" needs boxes on the device "cpu", they lie on "cuda"'):
        module._choose("cuda", "numba")
    monkeypatch.setattr(_numba_cuda, "why_not", lambda: None)
    assert module._choose("cuda", "auto") == module._choose("cuda", "cuda") == "cuda"


def random_boxes(R: int, dtype=torch.float32):
    g = torch.Generator().manual_seed(R)
    low = torch.rand(R, 2, generator=g) * 1000
    boxes = torch.cat([low, low + 10 + torch.rand(R, 2, generator=g) * 200], dim=1).to(dtype)
    return boxes, torch.randint(0, max(1, 3 * R), (R,), generator=g) / (3.0 * R)


@pytest.mark.gpu
@no_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("R", [0, 1, 64, 65, 1000, 12_000, 60_000])
def test_on_a_gpu(R, dtype):
    boxes, scores = random_boxes(R, dtype)
    idxs = torch.randint(1, 81, (R,), generator=torch.Generator().manual_seed(1))
    for threshold in (0.3, 0.7):
        kept = nms(boxes.cuda(), scores.cuda(), threshold, "cuda")
        assert kept.is_cuda and torch.equal(kept.cpu(), nms(boxes, scores, threshold, "numba"))
        kept = batched_nms(boxes.cuda(), scores.cuda(), idxs.cuda(), threshold)
        assert torch.equal(kept.cpu(), batched_nms(boxes, scores, idxs, threshold, "numba"))
    if R == 1000:
        kept = batched_nms(boxes.cuda(), scores.cuda(), idxs.cuda(), 0.3, "torch")
        assert torch.equal(kept.cpu(), batched_nms(boxes, scores, idxs, 0.3, "numba"))


@pytest.mark.gpu
@no_gpu
def test_on_a_gpu_beside_torchvision():
    """torchvision's CUDA op fuses a product into a sum, so it may differ where an IoU is next to the threshold."""
    boxes, scores = random_boxes(6000)
    mine = nms(boxes.cuda(), scores.cuda(), 0.5, "cuda").tolist()
    theirs = torchvision.ops.nms(boxes.cuda(), scores.cuda(), 0.5).tolist()
    assert len(set(mine) ^ set(theirs)) <= 2


@pytest.mark.gpu
@no_gpu
def test_on_torchs_stream_with_one_wait():
    boxes, scores = (x.cuda() for x in random_boxes(5000))
    idxs = torch.arange(5000, device="cuda") % 5
    expected = batched_nms(boxes, scores, idxs, 0.7, "cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        late = torch.zeros_like(boxes)
        torch.cuda._sleep(50_000_000)  # cycles: the boxes arrive on this stream, and late
        late.copy_(boxes)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as waits:
                warnings.simplefilter("always")
                kept = batched_nms(late, scores, idxs, 0.7, "cuda")
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(kept, expected)
    assert len([w for w in waits if "synchroniz" in str(w.message)]) == 1


@pytest.mark.gpu
@no_gpu
def test_errors_on_a_gpu():
    boxes, scores = (x.cuda() for x in random_boxes(100))
    with pytest.raises(ValueError, match="scores lie on cpu but the boxes on cuda"):
        nms(boxes, scores.cpu(), 0.5)
    with pytest.raises(ValueError, match='backend "reference" needs boxes on the device "cpu"'):
        nms(boxes, scores, 0.5, "reference")
    boxes[7, 1] = float("nan")
    with pytest.raises(ValueError, match="box 7 = .*not finite"):
        nms(boxes, scores, 0.5, "cuda")
