"""The RoI ops within torch: operators, compilation, autocast, layouts, threads, forks, memory, missing backends."""

import logging
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

import mrcnn_scratch.roi_ops as ops
from mrcnn_scratch import _numba
from mrcnn_scratch.roi_ops import _operators, roi_align, roi_pool, roi_warp
from mrcnn_scratch.roi_ops.numba_cpu import memory, streaming
from mrcnn_scratch.roi_ops.numba_cpu.layout import LANES, channel_runs, new, to_planes, to_rows, whole
from mrcnn_scratch.roi_ops.numba_cpu.streaming import worth_streaming

COMPILED = ("reference", "numba")
BACKENDS = ("reference", "torch", "numba")
CALLS = {
    "align": lambda x, boxes, backend: roi_align(x, boxes, (2, 3), 0.25, backend=backend),
    "align, adaptive": lambda x, boxes, backend: roi_align(x, boxes, (2, 3), 0.25, 0, backend=backend),
    "align, max": lambda x, boxes, backend: roi_align(x, boxes, (2, 3), 0.25, reduce="max", backend=backend),
    "warp": lambda x, boxes, backend: roi_warp(x, boxes, (2, 3), 0.25, backend=backend),
    "mnc": lambda x, boxes, backend: roi_warp(x, boxes, (2, 3), 0.25, 1, sampler="mnc", backend=backend),
    "pool": lambda x, boxes, backend: roi_pool(x, boxes, (2, 3), 0.25, backend=backend),
}


def case(R: int = 5, C: int = 3, dtype=torch.float64, channels_last: bool = False):
    """Two images of C x 6 x 9 at stride 4, distinct values, and R RoIs of both."""
    g = torch.Generator().manual_seed(R)
    x = torch.randperm(2 * C * 54, generator=g).to(dtype).view(2, C, 6, 9) / 7
    low = torch.rand(R, 2, generator=g, dtype=dtype) * torch.tensor([24.0, 15.0], dtype=dtype) - 3
    size = torch.rand(R, 2, generator=g, dtype=dtype) * 14 + 3
    index = torch.arange(R, dtype=dtype)[:, None] % 2
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return x.contiguous(memory_format=layout), torch.cat([index, low, low + size], dim=1)


# ---- operators


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("convention", ["aligned", "mnc"])
def test_opcheck(backend, channels_last, convention):
    """Schema, fake shapes and strides, and the derivative's registration, of every operator that has a derivative."""
    x, boxes = case(channels_last=channels_last)
    for boxes_ in (boxes, boxes.clone().requires_grad_()):
        features = x.clone(memory_format=torch.preserve_format).requires_grad_()
        arguments = (features, boxes_, 2, 3, 0.25, 2, convention, backend)
        torch.library.opcheck(_operators.align, arguments)
        torch.library.opcheck(_operators.align_max, arguments)
    torch.library.opcheck(_operators.pool, (x.requires_grad_(), boxes, 2, 3, 0.25, backend))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("backend", COMPILED)
def test_opcheck_of_the_backwards(backend, channels_last):
    """The gradients are operators too, so that they can be compiled and, where linear, differentiated."""
    x, boxes = case(channels_last=channels_last)
    shape, geometry = list(x.shape), (0.25, 2, "aligned")
    _, winner = _operators.align_max(x, boxes, 2, 3, *geometry, backend)
    _, cell = _operators.pool(x, boxes, 2, 3, 0.25, backend)
    grad = torch.randn(winner.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    rest = (*geometry, channels_last, backend)
    torch.library.opcheck(_operators.align_backward, (grad.clone().requires_grad_(), boxes, shape, *rest))
    torch.library.opcheck(_operators.align_max_backward, (grad, winner, boxes, shape, *rest))
    torch.library.opcheck(_operators.pool_backward, (grad, cell, boxes, shape, channels_last, backend))
    torch.library.opcheck(_operators.align_boxes_backward, (grad, x, boxes, *geometry, backend))
    torch.library.opcheck(_operators.align_max_boxes_backward, (grad, winner, x, boxes, *geometry, backend))


COMPILES = [(name, backend) for name in CALLS for backend in ("auto", "numba", "reference")]
# in pure torch, adaptive counts and the sizes of RoIPool's bins steer Python loops: there the graph breaks
COMPILES += [(name, "torch") for name in CALLS if name not in ("align, adaptive", "pool")]


@pytest.mark.filterwarnings("error:Dynamo detected")
@pytest.mark.parametrize(("name", "backend"), COMPILES)
def test_compiles_without_a_graph_break(name, backend):
    """fullgraph=True fails on a break; the number of RoIs may change; results and gradients equal the eager ones."""
    torch._dynamo.reset()
    call = CALLS[name]
    fast = torch.compile(lambda x, boxes: call(x, boxes, backend), fullgraph=True, backend="aot_eager", dynamic=True)
    for R in (5, 8):
        x, boxes = case(R)
        x.requires_grad_()
        mine, eager = fast(x, boxes), call(x, boxes, backend)
        torch.testing.assert_close(mine, eager)
        grads = [torch.autograd.grad(out.square().sum(), x)[0] for out in (mine, eager)]
        torch.testing.assert_close(*grads)


def test_compiles_with_inductor():
    """The default compiler, which keeps a channels_last layout through the op."""
    torch._dynamo.reset()
    x, boxes = case(channels_last=True)
    x.requires_grad_()
    fast = torch.compile(lambda x: roi_align(x * 2, boxes, 3, 0.25).relu(), fullgraph=True)
    torch.testing.assert_close(fast(x), roi_align(x * 2, boxes, 3, 0.25).relu())
    fast(x).sum().backward()
    assert x.grad.abs().sum() > 0


def test_exports_with_any_number_of_rois():
    class Pooled(torch.nn.Module):
        def forward(self, x, boxes):
            return roi_align(x, boxes, 2, 0.25)

    x, boxes = case()
    rois = torch.export.Dim("rois", min=1)
    program = torch.export.export(Pooled(), (x, boxes), dynamic_shapes={"x": None, "boxes": {0: rois}})
    x, boxes = case(11)
    torch.testing.assert_close(program.module()(x, boxes), roi_align(x, boxes, 2, 0.25))


# ---- layouts and precision


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_result_and_gradient_have_the_layout_of_the_features(name, backend, channels_last):
    x, boxes = case(channels_last=channels_last)
    x.requires_grad_()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    out = CALLS[name](x, boxes, backend)
    assert out.is_contiguous(memory_format=layout)
    if backend != "torch":  # there autograd lays the gradient out
        (grad,) = torch.autograd.grad(out.sum(), x)
        assert grad.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("C", [1, 15, 16, 17, 40])
@pytest.mark.parametrize("name", CALLS)
def test_plain_equals_channels_last_at_any_number_of_channels(name, C, monkeypatch):
    """Runs of 16 channels at a time, with and without a remainder; an expanded and a strided gradient."""
    monkeypatch.setattr("mrcnn_scratch.roi_ops.numba_cpu.layout.RUN_BYTES", 1)
    results = []
    for channels_last in (False, True):
        x, boxes = case(20, C, channels_last=channels_last)
        x.requires_grad_()
        out = CALLS[name](x, boxes, "numba")
        expanded = torch.ones(1, 1, 1, 3, dtype=x.dtype).expand(out.shape)
        strided = torch.stack([out.detach(), out.detach()], dim=-1)[..., 0]
        grads = [torch.autograd.grad(out, x, g, retain_graph=True)[0] for g in (expanded, strided)]
        results.append([out.detach(), *grads])
    for plain, last in zip(*results, strict=True):
        torch.testing.assert_close(plain, last, rtol=0, atol=1e-10)


@pytest.mark.parametrize("runs", [1, 2, 3, 7])
@pytest.mark.parametrize("C", [1, 16, 40, 256])
def test_channel_runs_cover_every_channel_once(C, runs, monkeypatch):
    monkeypatch.setattr("mrcnn_scratch.roi_ops.numba_cpu.layout.RUN_BYTES", -(-C // runs) * 8)
    slices = channel_runs(C, 1, 8)
    assert [c for s in slices for c in range(s.start, s.stop)] == list(range(C))
    assert all((s.stop - s.start) % LANES == 0 for s in slices[:-1])
    assert channel_runs(0, 5, 4) == []


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 15), (48, 33), (64, 130)])
def test_transposes(size, dtype):
    """Every element to its place, blocks and remainders alike, and none outside the places asked for."""
    C, P = size
    planes = np.arange(2 * C * P).reshape(2, C, P).astype(dtype)
    table = np.full((2, P, C), -1, dtype)
    to_rows(planes, table, *whole(table))
    assert (table == planes.transpose(0, 2, 1)).all()
    part, first, last = np.full((2, C, P), -1, dtype), np.array([P // 3, 0]), np.array([P, P // 2])
    to_planes(table, part, first, last)
    for n in (0, 1):
        assert (part[n, :, first[n] : last[n]] == planes[n, :, first[n] : last[n]]).all()
        assert (part[n, :, : first[n]] == -1).all() and (part[n, :, last[n] :] == -1).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_computes_geometry_and_sums_in_float32(backend):
    """bfloat16 has 8 bits: a corner of 1001 pixels would move by up to 4. Result and gradient come back as bfloat16."""
    row = torch.arange(250.0).repeat(1, 1, 3, 1).bfloat16().requires_grad_()
    boxes = torch.tensor([[0, 1001.0, 4.0, 1005.0, 12.0]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = roi_align(row, boxes, 1, 1 / 8, backend=backend)
    assert out.dtype == torch.bfloat16 and abs(out.item() - (1003 / 8 - 0.5)) <= 0.5  # one step of bfloat16 at 125
    out.sum().backward()
    assert row.grad.dtype == torch.bfloat16
    cells = row.grad[0, 0].float().sum(0).nonzero()[:, 0]
    assert cells.min() >= 123 and cells.max() <= 126  # the boxes were not rounded to bfloat16 on their way


# ---- threads, forks, memory


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_forked_child_stays_serial_whatever_its_number_of_threads():
    """GNU OpenMP ends a forked child that goes parallel after its parent did; here the child has two torch threads."""
    out = run_python("""
        import os, torch
        from mrcnn_scratch.roi_ops import roi_align
        torch.set_num_threads(2)
        x, boxes = torch.randn(1, 32, 32, 40), torch.tensor([[0, 1, 2, 20, 30.0]]).repeat(200, 1)
        here = roi_align(x, boxes, 7, backend="numba")
        pid = os.fork()
        if pid == 0:
            from mrcnn_scratch import _numba
            from mrcnn_scratch.roi_ops import numba_cpu
            there = numba_cpu.roi_align_forward(x, boxes, (7, 7), 1.0, 2, "aligned").numpy()
            same = (there == here.numpy()).all()  # not with torch, whose operators would hang in this child
            os._exit(0 if same and _numba.threads() == 1 else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """)
    assert out == "0"


def test_workers_do_not_oversubscribe():
    """A DataLoader's worker has one torch thread, so the kernels in it use one."""
    out = run_python("""
        import torch
        from torch.utils.data import DataLoader
        from mrcnn_scratch import _numba
        torch.set_num_threads(2)
        class Threads(torch.utils.data.Dataset):
            def __len__(self): return 2
            def __getitem__(self, i): return _numba.threads()
        print([int(n) for n in DataLoader(Threads(), batch_size=None, num_workers=2)])
    """)
    assert out == "[1, 1]"


def test_torch_keeps_its_number_of_threads():
    """Numba starts as many threads as there are cores, here four, and tells OpenMP so; torch must not notice."""
    out = run_python("""
        import os
        os.environ["NUMBA_NUM_THREADS"] = "4"
        import torch
        from mrcnn_scratch.roi_ops import roi_align
        torch.set_num_threads(2)
        roi_align(torch.rand(1, 64, 64, 64), torch.tensor([[0, 1, 1, 40, 40.0]]).repeat(300, 1), 7)
        print(torch.get_num_threads())
    """)
    assert out == "2"


def test_kernels_follow_torch_threads(monkeypatch):
    monkeypatch.setattr(_numba.numba.config, "NUMBA_NUM_THREADS", 4)
    for count in (1, 3, 9):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        assert _numba.threads() == min(count, 4)


def test_a_slow_first_call_says_so_once(caplog, monkeypatch):
    monkeypatch.setattr(_numba, "SLOW", 0.0)
    monkeypatch.setattr(_numba._Announcement, "said", False)
    kernels = [_numba.numba.njit(lambda a: a.sum()), _numba.numba.njit(lambda a: a.max())]
    with caplog.at_level(logging.WARNING, "mrcnn_scratch"):
        for kernel in kernels:
            for _ in range(3):
                _numba.run(kernel, kernel, 1, np.ones(3, np.float32))
    assert [r.getMessage().startswith("compiling CPU kernels on this machine") for r in caplog.records] == [True]


def test_freed_results_are_used_again_and_live_ones_are_not():
    memory.release()
    big = (1, 64, 256, 256)  # 16.8 MB
    first = new(big, torch.float32, True)
    place = first.data_ptr()
    second = new(big, torch.float32, False)
    assert second.data_ptr() != place and place % memory.LINE == 0
    view = first[:, 3]
    del first
    third = new(big, torch.float32, True)
    assert third.data_ptr() != place  # a view of the first still lives
    del view
    assert new((1, 64, 256, 640), torch.float32, True).data_ptr() != place  # too large for it
    assert new((1, 64, 256, 260), torch.float32, True).data_ptr() == place  # some rows more fit in


def test_free_blocks_are_bounded_and_can_be_given_back(monkeypatch):
    memory.release()
    monkeypatch.setattr(memory, "KEEP", 40 << 20)
    blocks = [memory.take(18 << 20, np.uint8) for _ in range(3)]
    assert memory._free == []
    del blocks
    assert sum(map(len, memory._free)) <= 40 << 20 and len(memory._free) == 1
    memory.release()
    assert memory._free == []
    assert memory.take(100, np.float32).base is None  # small arrays are malloc's


def test_results_do_not_depend_on_what_the_memory_held():
    """Large enough to be taken from used memory, in both layouts, all ops: poison it first."""
    g = torch.Generator().manual_seed(0)
    x = torch.rand(1, 64, 256, 260, generator=g)
    boxes = torch.rand(1500, 5, generator=g) * torch.tensor([0, 200.0, 200, 50, 50])
    boxes[:, 3:] += boxes[:, 1:3]
    for layout in (torch.contiguous_format, torch.channels_last):
        for name, op in {"mean": "mean", "max": "max", "pool": None}.items():
            outcomes = []
            for poison in (1e30, -1e30):
                memory.release()
                trash = [new((1, 64, 260, 260 + k), torch.float32, False).fill_(poison) for k in range(4)]
                trash.append(new((1500, 64, 7, 7), torch.float32, False).fill_(poison))
                del trash
                features = x.contiguous(memory_format=layout).requires_grad_()
                out = roi_pool(features, boxes, 7) if op is None else roi_align(features, boxes, 7, reduce=op)
                outcomes.append([out.detach().clone(), torch.autograd.grad(out.sum(), features)[0].clone()])
            for one, other in zip(*outcomes, strict=True):
                assert torch.equal(one, other), name
                assert one.abs().max() < 1e6


# ---- what is not there


def test_importing_the_ops_imports_no_compiler():
    """torch._dynamo takes two seconds to import, Numba half a one: neither before it is wanted."""
    out = run_python("""
        import sys, mrcnn_scratch.roi_ops
        print(sorted({"numba", "torch._dynamo"} & set(sys.modules)))
    """)
    assert out == "[]"


def test_auto_falls_back_and_says_why_once(monkeypatch):
    x, boxes = case(dtype=torch.float32)
    expected = roi_align(x, boxes, 2, 0.25, backend="torch")
    ops._look_for.cache_clear()
    monkeypatch.delattr(ops, "numba_cpu", raising=False)
    monkeypatch.setitem(sys.modules, "mrcnn_scratch.roi_ops.numba_cpu", None)
    try:
        with pytest.warns(UserWarning, match="fall back to torch.*'numba' is missing") as caught:
            for _ in range(3):
                assert torch.equal(roi_align(x, boxes, 2, 0.25), expected)
        assert len([w for w in caught if "fall back" in str(w.message)]) == 1
        with pytest.raises(RuntimeError, match='backend "numba" is not available.*backend="torch" always is'):
            roi_align(x, boxes, 2, 0.25, backend="numba")
    finally:
        ops._look_for.cache_clear()


@pytest.mark.parametrize("op", [roi_align, roi_warp, roi_pool])
def test_devices(op):
    """Features and boxes on different devices; a backend that computes elsewhere."""
    x, boxes = case()
    with pytest.raises(ValueError, match="boxes lies on cpu but the features on meta; move one of them"):
        op(x.to("meta"), boxes, 2)
    with pytest.raises(ValueError, match=r"boxes\[1\] lies on meta"):
        op(x, [boxes[:, 1:], boxes[:, 1:].to("meta")], 2)
    with pytest.raises(ValueError, match='"cuda" computes on cuda tensors, features lie on cpu'):
        op(x, boxes, 2, backend="cuda")
    with pytest.raises(ValueError, match='"numba" computes on cpu tensors, features lie on meta'):
        op(x.to("meta"), boxes.to("meta"), 2, backend="numba")


@pytest.mark.parametrize(("C", "streams"), [(64, True), (72, False)])
def test_large_results_are_written_past_the_cache_and_are_the_same(C, streams, monkeypatch):
    """68 MB and more; 72 channels are no multiple of 16 and keep to ordinary stores."""
    R, dtype = 5500, torch.float32
    assert worth_streaming((R, C, 7, 7), dtype) == streams
    x, boxes = case(R, C, dtype, channels_last=True)
    for threads in (1, 2):
        monkeypatch.setattr(_numba, "threads", lambda threads=threads: threads)
        poison = new((R, C, 7, 7), dtype, True).fill_(torch.nan)
        del poison
        out = roi_align(x, boxes, 7, 0.25)
        with monkeypatch.context() as without:
            without.setattr("mrcnn_scratch.roi_ops.numba_cpu.streaming.LARGE", 1 << 60)
            assert torch.equal(out, roi_align(x, boxes, 7, 0.25))


def test_what_is_streamed_begins_at_a_cache_line():
    """A non-temporal store elsewhere would end the process. Only the blocks of `memory` are aligned."""
    assert streaming.LARGE >= memory.SMALL
    assert not worth_streaming((1, 64, 100, 100), torch.float32)
    assert all(new((1, 16 + k, 512, 512), torch.float32, True).data_ptr() % streaming.LINE == 0 for k in range(4))
