"""The compiled pasting: what memory its results lie in, threads and forks."""

import gc
import os
import subprocess
import sys

import pytest
import torch
from pasting_cases import random_case, readable

from mrcnn_scratch import pasting_cpu
from mrcnn_scratch.pasting import paste_masks

LARGE = (1000, 1700)  # of which four masks are 27 MB


@pytest.fixture
def no_kept_canvas():
    pasting_cpu._kept.clear()
    yield
    pasting_cpu._kept.clear()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("threshold", [None, 0.5])
def test_memory_is_used_again_and_clean(threads, threshold, no_kept_canvas):
    torch.set_num_threads(threads)
    count = 4 if threshold is None else 13
    masks, boxes = random_case(count, LARGE)
    wanted = readable(masks, boxes, LARGE, threshold=threshold)
    first = paste_masks(masks, boxes, LARGE, threshold=threshold)
    place = first.data_ptr()
    first.fill_(1)  # whoever has a result may write anywhere
    view = first[1:, 5:]
    del first
    assert paste_masks(masks, boxes, LARGE, threshold=threshold).data_ptr() != place  # `view` is still alive
    pasting_cpu._kept.clear()
    assert view.bool().all()
    del view
    again = paste_masks(masks, boxes, LARGE, threshold=threshold)
    assert again.data_ptr() == place
    differ = (again.float() - wanted.float()).abs() > 1e-5
    assert float(differ.float().mean()) <= (0 if threshold is None else 1e-5)  # a value at the threshold may tip over


def test_live_results_never_share_memory(no_kept_canvas):
    masks, boxes = random_case(4, LARGE)
    alive, copies = [], []
    for seed in range(6):
        masks, boxes = random_case(4, LARGE, seed=seed)
        alive.append(paste_masks(masks, boxes, LARGE))
        copies.append(alive[-1].clone())
        if seed == 3:  # two go, in another order
            del alive[2], copies[2], alive[0], copies[0]
    gc.collect()
    assert all(torch.equal(a, b) for a, b in zip(alive, copies, strict=True))
    spans = sorted((x.data_ptr(), x.data_ptr() + x.nbytes) for x in alive)
    assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))


def test_only_a_canvas_of_a_suitable_size_is_kept_and_only_one(no_kept_canvas, monkeypatch):
    masks, boxes = random_case(12, LARGE)
    for count in (4, 12, 3):
        paste_masks(masks[:count], boxes[:count], LARGE)
    assert len(pasting_cpu._kept) == 1 and 20e6 < len(pasting_cpu._kept[0]) < 30e6  # the last one, not cut from 12
    paste_masks(masks, boxes, (60, 70))  # small: the canvas stays where it is
    assert len(pasting_cpu._kept) == 1
    pasting_cpu._kept.clear()
    monkeypatch.setattr(pasting_cpu, "KEEP", 20 << 20)
    got = paste_masks(masks[:4], boxes[:4], LARGE)
    torch.testing.assert_close(got, readable(masks[:4], boxes[:4], LARGE), rtol=0, atol=1e-5)
    del got
    assert not pasting_cpu._kept


def test_any_number_of_bytes_is_cleared_to_its_last(no_kept_canvas):
    # 17 MB and a few bytes: the last cache line is not full
    for dtype, threshold, size in ((torch.float32, 0.1, (4131, 4133)), (torch.float64, None, (1447, 1549))):
        masks, boxes = torch.ones(1, 2, 2, dtype=dtype), torch.tensor([[3.0, 3, 9, 9]], dtype=dtype)
        paste_masks(masks, boxes, size, threshold=threshold).fill_(1)
        got = paste_masks(masks, boxes, size, threshold=threshold)
        assert int(got.bool().sum()) == 36 and got[0, 3:9, 3:9].all()


def test_an_empty_canvas_costs_no_memory(no_kept_canvas):
    # 427 MB, of which one box is touched: measured in a process of its own
    code = """if 1:
        import resource, torch
        from mrcnn_scratch.pasting import paste_masks
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        paste_masks(torch.ones(1, 2, 2), torch.ones(1, 4), (5, 5))
        before = peak()
        box = torch.tensor([[0.0, 0, 9, 9]] + [[0.0] * 4] * 99)
        canvas = paste_masks(torch.ones(100, 28, 28), box, (800, 1333))
        print((peak() - before) / 1024)
        """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and not result.stderr.replace("compiling CPU kernels", "").count("Error"), (
        result.stderr
    )
    if sys.platform == "linux":
        assert float(result.stdout) < 50


# ------------------------------------------------------------------------------------ threads, processes


def test_the_number_of_threads_changes_nothing():
    masks, boxes = random_case(30, (400, 500), seed=2)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results += [paste_masks(masks, boxes, (400, 500)), paste_masks(masks[:1], boxes[:1], (400, 500))]
    assert torch.equal(results[0], results[2]) and torch.equal(results[1], results[3])


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 64])
def test_parts_cover_each_row_once(parts):
    masks, boxes = random_case(9, (33, 47), torch.float64, seed=3)
    out, corners = torch.full((9, 33, 47), -1.0, dtype=torch.float64), boxes.numpy()
    for part in range(parts):
        before = out.clone()
        pasting_cpu._paste_part(masks.numpy(), corners, 0, None, out.numpy(), part, parts)
        changed = before != out
        assert (before[changed] == -1).all()  # no part writes where another has
    expected = paste_masks(masks, boxes, (33, 47))
    torch.testing.assert_close(out.clamp(min=0), expected, rtol=0, atol=1e-15)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_pastes_too():
    code = """if 1:
        import os, torch
        from mrcnn_scratch.pasting import paste_masks
        torch.set_num_threads(2)
        masks, boxes = torch.ones(6, 28, 28), torch.tensor([[5.0, 5, 900, 900]] * 6)
        total = lambda: float(paste_masks(masks, boxes, (1000, 1000)).numpy().sum())  # torch's own sum hangs in a fork
        whole = total()
        child = os.fork()
        if child == 0:
            os._exit(0 if total() == whole else 3)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), total() - whole)
        """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout.split() == ["0", "0.0"], result.stdout + result.stderr
    assert "Exception ignored" not in result.stderr


def test_importing_the_package_compiles_nothing():
    code = "import sys, mrcnn_scratch.mask_head, mrcnn_scratch.pasting; print('numba' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout.split() == ["False"], result.stderr
