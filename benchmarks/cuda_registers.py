"""What ptxas makes of every CUDA kernel: registers, spills, shared memory. It needs no GPU, but Linux and numba-cuda.

python benchmarks/cuda_registers.py        writes benchmarks/results/cuda_registers.md
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from numba import cuda, types  # noqa: E402

from mrcnn_scratch import nms_cuda  # noqa: E402
from mrcnn_scratch.roi_ops.numba_cuda import kernels  # noqa: E402

CAPABILITIES = ((7, 5), (8, 0), (9, 0))
OUT = ROOT / "benchmarks" / "results" / "cuda_registers.md"


class Compiled(NamedTuple):
    """A kernel, for one compute capability. Sizes in bytes: of a thread, and (shared) of a block."""

    kernel: str
    precision: str
    layout: str
    ratio: str
    capability: tuple[int, int]
    registers: int
    stack: int
    spills: int
    shared: int
    ptx: str


@contextmanager
def without_gpu():
    """numba-cuda asks the current device for its capability, and loads on it what it has compiled: here is none."""
    context = mock.Mock()
    context.device.compute_capability = CAPABILITIES[-1]
    with (
        mock.patch("numba.cuda.dispatcher.get_current_device", lambda: context.device),
        mock.patch("numba.cuda.cudadrv.devices.get_context", lambda number=None: context),
        mock.patch("numba.cuda.dispatcher._Kernel.bind", lambda kernel: None),
    ):
        yield


def assemble(function, signature: tuple, what: tuple[str, str, str, str]) -> Iterator[Compiled]:
    """One kernel, for each of `CAPABILITIES`; what: the first four fields of `Compiled`."""
    from cuda.core import Linker, LinkerOptions, ObjectCode

    with without_gpu():
        (kernel,) = cuda.jit(signature, lto=False)(function).overloads.values()
        for capability in CAPABILITIES:
            ptx = kernel.inspect_asm(capability)
            architecture = "sm_{}{}".format(*capability)
            options = LinkerOptions(arch=architecture, ptxas_options="-v")
            linker = Linker(ObjectCode.from_ptx(ptx.encode()), options=options)
            linker.link("cubin")
            log = linker.get_info_log()
            frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
            stack, stores, loads = map(int, frame.groups())
            shared = sum(map(int, re.findall(r"\.shared \.align \d+ \.b8 \w+\[(\d+)\]", ptx)))
            registers = int(re.search(r"Used (\d+) registers", log)[1])
            yield Compiled(*what, capability, registers, stack, stores + loads, shared, ptx)


def roi_kernels(op: str, dtype: torch.dtype) -> Iterator[Compiled]:
    """All variants of a kernel of `kernels.KERNELS`."""
    for v in kernels.all_variants(dtype):
        if v.op == op:
            ratio = (str(v.ratio) if v.ratio else "any") if kernels.KERNELS[op].frozen else "-"
            layout = "channels_last" if v.channels_last else "plain"
            yield from assemble(*kernels.source(v), (op, v.T.__name__, layout, ratio))


def nms_kernels(dtype: torch.dtype) -> Iterator[Compiled]:
    number = types.float64 if dtype == torch.float64 else types.float32
    overlaps = nms_cuda.overlaps_for(number), nms_cuda.overlaps_types(number)
    yield from assemble(*overlaps, ("nms_overlaps", str(number), "-", "-"))
    if dtype == torch.float32:
        yield from assemble(nms_cuda._sweep, nms_cuda.SWEEP_TYPES, ("nms_sweep", "-", "-", "-"))


def table(rows: list[Compiled]) -> str:
    """Markdown: a line per kernel and a column of registers per compute capability; worst of them for the rest."""
    names = [f"registers, sm_{major}{minor}" for major, minor in CAPABILITIES]
    lines = ["| " + " | ".join(["kernel", "precision", "layout", "sampling ratio", *names, "spills", "shared"]) + " |"]
    lines.append("|---|---|---|---|" + "--:|" * (len(names) + 2))
    for start in range(0, len(rows), len(CAPABILITIES)):
        group = rows[start : start + len(CAPABILITIES)]
        numbers = [*(row.registers for row in group), max(r.spills for r in group), max(r.shared for r in group)]
        lines.append("| " + " | ".join([*group[0][:4], *map(str, numbers)]) + " |")
    return "\n".join(lines)


def main() -> None:
    import numba_cuda

    rows = []
    for dtype in (torch.float32, torch.float64):
        for op in kernels.KERNELS:
            rows += roi_kernels(op, dtype)
        rows += nms_kernels(dtype)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(
        "# Registers of the CUDA kernels\n\n"
        "By `python benchmarks/cuda_registers.py`, which compiles and assembles all of them, no GPU needed.\n"
        f"numba-cuda {numba_cuda.__version__}; spills in bytes per thread, shared memory in bytes per block.\n\n"
        f"{table(rows)}\n",
        encoding="utf-8",
    )
    most = max(row.registers for row in rows if row.precision == "float32")
    print(f"{len(rows)} machine codes of {len(rows) // 3} kernels, float32 up to {most} registers: {OUT.name}")


if __name__ == "__main__":
    main()
