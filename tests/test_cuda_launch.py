"""The direct start of a kernel packs what Numba's own dispatcher would; held against it without a GPU."""

import ctypes
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks/ is no part of the package

pytest.importorskip("numba_cuda", reason="numba-cuda has no wheels for this system")

from numba import cuda, types  # noqa: E402

from benchmarks.cuda_registers import without_gpu  # noqa: E402
from mrcnn_scratch import _cuda_launch, nms_cuda  # noqa: E402
from mrcnn_scratch.roi_ops.numba_cuda import kernels  # noqa: E402


def compiled(function, signature):
    with without_gpu():
        dispatcher = cuda.jit(signature, lto=False)(function)
    (kernel,) = dispatcher.overloads.values()
    return dispatcher, kernel


def bits(values: list) -> list:
    """Integers as they are, ctypes by their type and value."""
    return [(type(v).__name__, v.value) if isinstance(v, ctypes._SimpleCData) else int(v) for v in values]


def by_numba(kernel, arguments) -> list:
    """What numba-cuda hands to cuda.core."""

    class DeviceArray(cuda.args.ArgHint):
        def __init__(self, a):
            self.a = a

        def to_device(self, retr, stream=0):
            a, size = self.a, self.a.element_size()
            layout = SimpleNamespace(strides_in_bytes=(a.stride(0) * size,), is_contiguous_c=True, is_contiguous_f=True)
            return SimpleNamespace(
                size=a.numel(), dtype=np.dtype(f"V{size}"), ptr=a.data_ptr(), shape=tuple(a.shape), _layout=layout
            )

    values = []
    for kind, a in zip(kernel.argument_types, arguments, strict=True):
        kernel._prepare_args(kind, DeviceArray(a) if isinstance(a, torch.Tensor) else a, 0, [], values)
    return values


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("op", ["align", "align_max_backward"])
def test_packs_a_roi_kernels_arguments_as_numba_does(op, dtype):
    variant = kernels.variant(op, dtype, True, 2)
    _, kernel = compiled(*kernels.source(variant))
    arrays = [torch.zeros(n, dtype=torch.int32 if a == "i" else dtype)
              for n, a in zip((6, 12, 20, 30), kernels.KERNELS[op].arrays, strict=False)]  # fmt: skip
    arguments = (*arrays, tuple(range(kernels.SIZES)), tuple(0.5 + i for i in range(kernels.RULE)))
    packed = _cuda_launch.packer(kernel.argument_types)(arguments)
    assert bits(packed) == bits(by_numba(kernel, arguments))
    assert len(packed) == 7 * len(arrays) + kernels.SIZES + kernels.RULE


def test_packs_numbers_as_numba_does():
    _, kernel = compiled(nms_cuda.overlaps_for(types.float32), nms_cuda.overlaps_types(types.float32))
    boxes, groups, reach, words = torch.zeros(8), torch.zeros(2).long(), torch.zeros(1).int(), torch.zeros(64).long()
    arguments = boxes, groups, reach, np.float32(0.7), np.int32(3), np.int32(2), words
    assert bits(_cuda_launch.packer(kernel.argument_types)(arguments)) == bits(by_numba(kernel, arguments))


def test_starts_the_kernel_with_the_grid_and_the_stream(monkeypatch):
    """cuda.core does the rest: a mock stands for it, and for the function that a GPU would have loaded."""
    import cuda.core

    dispatcher, kernel = compiled(lambda a, n: None, (types.float32[::1], types.int32))
    started = []
    monkeypatch.setattr(cuda.core, "launch", lambda *all_: started.append(all_))
    monkeypatch.setattr(_cuda_launch, "_stream", lambda handle: f"stream {handle}")
    monkeypatch.setattr(type(kernel._codelibrary), "get_cufunc", lambda self: SimpleNamespace(kernel="loaded"))
    a = torch.zeros(5)
    _cuda_launch.start(dispatcher, 7, 128, 99, (a, 4))
    ((stream, grid, function, *values),) = started
    assert (stream, function, bits(values)) == ("stream 99", "loaded", [0, 0, 5, 4, a.data_ptr(), 5, 4, ("c_int", 4)])
    assert tuple(grid.grid) == (7, 1, 1) and tuple(grid.block) == (128, 1, 1)


def test_another_version_of_numba_cuda_takes_its_own_way(monkeypatch):
    _cuda_launch.available.cache_clear()
    assert _cuda_launch.available()
    for other in ("0.31.0", "0.29.4", "1.0"):
        monkeypatch.setattr(_cuda_launch, "version", lambda name, v=other: v)
        _cuda_launch.available.cache_clear()
        assert not _cuda_launch.available()
    _cuda_launch.available.cache_clear()
