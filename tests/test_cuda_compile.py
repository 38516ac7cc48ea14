"""The CUDA kernels of the RoI ops as machine code: compiled and assembled for three architectures, without a GPU.

The simulator computes what Python computes. What it cannot see is looked for here: registers that spill, float64 in a
float32 kernel, sums that are fused, barriers and atomics that the compiler was not given.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks/ is a part of the checkout, not of the package

if sys.platform != "linux":
    pytest.skip("NVIDIA's compiler has wheels for Linux alone", allow_module_level=True)

from benchmarks.cuda_registers import CAPABILITIES, roi_kernels  # noqa: E402
from mrcnn_scratch.roi_ops.numba_cuda import geometry, kernels, rows, threads  # noqa: E402

SHARED_LIMIT = 48 * 1024  # bytes of a block, on every architecture


@pytest.mark.slow
@pytest.mark.parametrize("dtype", kernels.PRECISIONS, ids=str)
@pytest.mark.parametrize("op", kernels.KERNELS)
def test_machine_code(op, dtype):
    codes = list(roi_kernels(op, dtype))
    assert len(codes) == len(CAPABILITIES) * 2 * (4 if kernels.KERNELS[op].frozen else 1)
    for code in codes:
        assert code.spills == 0 and code.stack == 0, code[:8]
        assert code.registers <= (80 if dtype == torch.float32 else 128), code[:6]
        assert code.shared < SHARED_LIMIT
        lines = [line.strip() for line in code.ptx.splitlines()]
        check_numbers(op, [line for line in lines if line and line[0] not in "./$"], dtype)
        check_memory(op, [line for line in lines if line and line[0] not in "./$"], dtype)


def having(pattern: str, lines: list[str]) -> list[str]:
    return [line for line in lines if re.search(pattern, line)]


def check_numbers(op: str, lines: list[str], dtype: torch.dtype) -> None:
    """One precision, correctly rounded, all inlined; and products that are rounded before something is added."""
    mine, other = ("f32", "f64") if dtype == torch.float32 else ("f64", "f32")
    assert having(rf"\.{mine}\b", lines) and not having(rf"\.{other}\b", lines)
    assert not having(r"(div|rcp|sqrt)\.(approx|full)|\.ftz|^call", lines)
    if op not in ("pool_backward", "pool_hulls"):
        assert having(rf"mul\.rn\.{mine}", lines), "start + p * bin would be rounded once"


def check_memory(op: str, lines: list[str], dtype: torch.dtype) -> None:
    """Atomics in the backward that says so, where nothing is written otherwise, and nowhere else; all barriers."""
    atomics, stores = having(r"\b(atom|red)\.", lines), having(r"\bst\.global", lines)
    if op.endswith("_backward"):
        assert atomics and len(having(r"\.global\.add\.f", atomics)) == len(atomics) and not stores
    else:
        assert stores and not atomics
    expected = {"rows": {2}, "boxes": {1, 7}, "hulls": {1, 7}}  # 7: the tree's loop, unrolled
    assert len(having(r"\bbar(rier)?\.sync", lines)) in expected.get(op.rpartition("_")[2], {0})


# ---- what is cached on disk must not outlive a change


@pytest.mark.parametrize("op", kernels.KERNELS)
def test_kernels_enclose_all_that_is_not_from_their_own_file(op):
    """Numba's key of a cached kernel: its code, its file's date, and the variables it encloses; not its globals."""
    for v in kernels.all_variants(torch.float32):
        if v.op == op:
            function, _ = kernels.source(v)
            names = set(function.__code__.co_names) & set(function.__globals__)
            assert names <= {"np", "cuda"}, names


def key(op: str) -> bytes:
    from numba.cuda.serialize import dumps

    function, _ = kernels.source(kernels.variant(op, torch.float32, True, 2))
    return dumps(tuple(cell.cell_contents for cell in function.__closure__))


@pytest.mark.parametrize(
    "op, module, constant",
    [
        ("align", threads, "WARP"),
        ("align_max", geometry, "WARP"),
        ("pool", threads, "RUN"),
        ("align_rows", rows, "TILE"),
    ],
)
def test_a_constant_in_another_file_changes_the_key(op, module, constant, monkeypatch):
    before = key(op)
    assert key(op) == before
    monkeypatch.setattr(module, constant, getattr(module, constant) + 1)
    assert key(op) != before


SECOND_PROCESS = """
import torch
from benchmarks.cuda_registers import without_gpu
from mrcnn_scratch import _numba_cuda
from mrcnn_scratch.roi_ops.numba_cuda import kernels
_numba_cuda.why_not = lambda: None
with without_gpu():
    stats = kernels.kernel(kernels.variant("pool_backward", torch.float32, True, 0)).stats
print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
"""


def test_a_second_process_finds_kernels_on_disk(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SECOND_PROCESS]
    said = [subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300) for _ in range(2)]
    assert [run.stdout.split() for run in said] == [["0", "1"], ["1", "0"]], said[0].stderr + said[1].stderr


def test_without_a_folder_for_the_cache_kernels_are_compiled_all_the_same():
    nowhere = "import numba.cuda.core.caching\nnumba.cuda.core.caching.CacheImpl._locator_classes = []\n"
    command = [sys.executable, "-c", nowhere + SECOND_PROCESS]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.stdout.split() == ["0", "1"], run.stderr


def test_warm_up_compiles_what_a_launch_will_ask_for(monkeypatch):
    compiled = []
    monkeypatch.setattr(kernels, "kernel", compiled.append)
    count = kernels.warm_up(torch.float64, (2, 3))
    assert count == len(compiled) == len(set(compiled))
    for op in kernels.KERNELS:
        for channels_last in (False, True):
            for ratio in (0, 2, 3):
                assert kernels.variant(op, torch.float64, channels_last, ratio) in compiled
    assert not any(v.ratio in (1, 4) for v in compiled)
    assert kernels.warm_up() == len(list(kernels.all_variants(torch.float32)))
