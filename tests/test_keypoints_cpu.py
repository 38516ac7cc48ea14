"""The compiled search for the best pixel of resized heatmaps, against torch's resizing and torchvision's decoding."""

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection import roi_heads

from mrcnn_scratch import keypoints_cpu
from mrcnn_scratch.keypoints_cpu import best_pixels

FLOATS = [torch.float32, torch.float64]
ROUNDING = {torch.float32: 2e-5, torch.float64: 1e-12}  # of logits of about 5


def sizes(*numbers):
    return torch.tensor(numbers)


def check(logits, rows, columns):
    """Each result is the largest value of torch's resized heatmap, and in the pixel that it names."""
    row, column, value = best_pixels(logits, rows, columns)
    tolerance = ROUNDING[logits.dtype]
    assert row.shape == column.shape == value.shape == logits.shape[:2]
    assert row.dtype == column.dtype == torch.int64 and value.dtype == logits.dtype
    same = 0
    for d, (h, w) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
        heat = F.interpolate(logits[d : d + 1], size=(h, w), mode="bicubic", align_corners=False)[0]  # (J, h, w)
        best, place = heat.flatten(1).max(dim=1)
        assert (0 <= row[d]).all() and (row[d] < h).all() and (0 <= column[d]).all() and (column[d] < w).all()
        torch.testing.assert_close(value[d], best, rtol=0, atol=tolerance)
        there = heat[torch.arange(len(heat)), row[d], column[d]]
        assert (there >= best - tolerance).all()  # another pixel only where it holds the same, to rounding
        same += int((place == row[d] * w + column[d]).sum())
    return same / max(1, row.numel())


def bumps(D, J, S, dtype=torch.float32, seed=0):
    """Smooth heatmaps with several hills, as a network gives them."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(D, J, max(S // 4, 1), max(S // 4, 1), generator=generator, dtype=torch.float64) * 3
    return F.interpolate(coarse, size=(S, S), mode="bilinear").to(dtype)


# ------------------------------------------------------------------------------------ against torch


@pytest.mark.parametrize("dtype", FLOATS)
def test_persons_at_their_own_size(dtype):
    logits = bumps(6, 17, 56, dtype)
    same = check(logits, sizes(300, 56, 31, 411, 57, 112), sizes(120, 56, 19, 250, 55, 30))
    assert same > 0.99


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 70), st.integers(1, 70)), max_size=3),
    st.integers(1, 3),
    st.integers(1, 20),
    st.sampled_from(FLOATS),
    st.integers(0, 99),
)
def test_any_size_from_any_size(shapes, J, S, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(shapes), J, S, S, generator=generator, dtype=dtype)
    rows, columns = torch.tensor(shapes, dtype=torch.int64).view(-1, 2).unbind(1)
    check(logits, rows, columns)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (1, 7), (7, 1)])
def test_rows_and_columns_are_not_exchanged(shape, generator):
    logits = torch.randn(2, 3, *shape, generator=generator, dtype=torch.float64)
    check(logits, sizes(40, 13), sizes(7, 29))
    check(logits.transpose(2, 3), sizes(40, 13), sizes(7, 29))  # not contiguous


@pytest.mark.parametrize("corner", [(0, 0), (0, 7), (7, 0), (7, 7)])
def test_beyond_the_border_lies_the_border(corner):
    # A hot cell in a corner: four of its sixteen neighbours are itself.
    logits = torch.zeros(1, 1, 8, 8)
    logits[0, 0, corner[0], corner[1]] = 5.0
    check(logits, sizes(50), sizes(31))
    row, column, _ = best_pixels(logits, sizes(50), sizes(31))
    assert abs(int(row) / 49 - corner[0] / 7) < 0.15 and abs(int(column) / 30 - corner[1] / 7) < 0.15


def test_by_hand():
    # 2 cells to 4 pixels, whose centres fall on cells -0.25, 0.25, 0.75, 1.25. The last one lies t = 0.25 beyond the
    # right cell; of its four cells, 1.25 and 0.25 before it, 0.75 and 1.75 behind it, only the first is the left one:
    # it weighs ((-0.75 * 1.25 + 3.75) * 1.25 - 6) * 1.25 + 3 = -0.10546875, so the right one 1.10546875.
    _, column, value = best_pixels(torch.tensor([[[[0.0, 1.0]]]]), sizes(1), sizes(4))
    assert int(column) == 3 and float(value) == pytest.approx(1.10546875, abs=1e-6)


def test_of_equal_values_the_first_wins():
    rows, columns = sizes(5, 11), sizes(7, 3)
    row, column, value = best_pixels(torch.zeros(2, 2, 4, 4), rows, columns)
    assert not row.any() and not column.any() and not value.any()
    # at its own size nothing is blended: ties are exact. The upper row counts before the column on the left.
    logits = torch.zeros(1, 1, 4, 4)
    logits[0, 0, 1, 3] = logits[0, 0, 2, 0] = logits[0, 0, 3, 3] = 2.0
    row, column, value = best_pixels(logits, sizes(4), sizes(4))
    assert (int(row), int(column), float(value)) == (1, 3, 2.0)
    logits[0, 0, 1, 1] = 2.0
    assert [int(x) for x in best_pixels(logits, sizes(4), sizes(4))] == [1, 1, 2]


def test_negative_logits_have_a_largest_too():
    logits = bumps(1, 3, 8, torch.float64) - 100
    assert (best_pixels(logits, sizes(9), sizes(9))[2] < -80).all()
    check(logits, sizes(9), sizes(9))


# ------------------------------------------------------------------------------------ against torchvision


def decode(logits, boxes):
    """As `heatmaps_to_keypoints`, from the pixels: cell i of n over a width w stands for (i + 0.5) * w / n."""
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    size = sides.ceil().long()
    row, column, value = best_pixels(logits, size[:, 1], size[:, 0])
    points = boxes[:, None, :2] + (torch.stack([column, row], 2) + 0.5) * (sides / size)[:, None]
    return points, value


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_points_are_torchvisions(dtype, generator):
    logits = bumps(12, 17, 56, dtype)
    low = torch.rand(12, 2, generator=generator, dtype=dtype) * 300
    boxes = torch.cat([low, low + 0.2 + torch.rand(12, 2, generator=generator, dtype=dtype) * 250], 1)
    points, value = decode(logits, boxes)
    wanted, scores = roi_heads.heatmaps_to_keypoints(logits, boxes)
    torch.testing.assert_close(points.float(), wanted[..., :2], rtol=0, atol=1e-4)  # its results are float32
    torch.testing.assert_close(value.float(), scores, rtol=0, atol=2e-5)


# ------------------------------------------------------------------------------------ edges and errors


def test_none():
    none = torch.zeros(0, dtype=torch.int64)
    for D, J in ((0, 17), (3, 0), (0, 0)):
        size = none.new_ones(D)
        row, column, value = best_pixels(torch.zeros(D, J, 8, 8), size, size)
        assert row.shape == column.shape == value.shape == (D, J)


def test_values_that_are_no_numbers():
    logits = bumps(1, 3, 8, torch.float64)
    logits[0, 0] = math.nan
    logits[0, 1, 0, 0] = math.nan
    logits[0, 2] = -math.inf
    row, column, value = best_pixels(logits, sizes(8), sizes(8))
    assert row[0, 0] == column[0, 0] == 0 and value[0, 0] == -math.inf
    assert value[0, 1].isfinite() and value[0, 1] <= logits[0, 1].nan_to_num(-9).max()
    assert row[0, 2] == column[0, 2] == 0


@pytest.mark.parametrize("bad", [0, -3, -(2**63), keypoints_cpu.MOST + 1])
@pytest.mark.parametrize("name", ["rows", "columns"])
def test_a_size_that_no_box_has_is_refused_by_name(name, bad):
    arguments = {"rows": sizes(3, 4, 5), "columns": sizes(3, 4, 5)}
    arguments[name] = sizes(3, bad, 5)
    with pytest.raises(ValueError, match=rf"{name}\[1\] is {bad},"):
        best_pixels(torch.zeros(3, 2, 4, 4), **arguments)
    arguments[name] = sizes(3, 4)
    with pytest.raises(ValueError, match=rf"{name} must be \(3,\)"):
        best_pixels(torch.zeros(3, 2, 4, 4), **arguments)


@pytest.mark.parametrize("logits", [torch.zeros(1, 4, 4), torch.zeros(1, 1, 0, 4), torch.zeros(1, 1, 4, 4).half()])
def test_heatmaps_that_do_not_fit_are_refused(logits):
    with pytest.raises(ValueError, match="logits must be float32 or float64"):
        best_pixels(logits, sizes(3), sizes(3))


def test_logits_that_require_a_gradient():
    logits = bumps(1, 2, 8).requires_grad_()
    assert not best_pixels(logits, sizes(9), sizes(9))[2].requires_grad


# ------------------------------------------------------------------------------------ threads


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 50])
def test_parts_decode_each_heatmap_once(parts):
    logits, rows, columns = bumps(4, 5, 12), sizes(40, 3, 90, 17), sizes(5, 60, 33, 8)
    wanted = best_pixels(logits, rows, columns)
    found = [torch.full((4, 5), -1, dtype=x.dtype) for x in wanted]
    arrays = [x.numpy() for x in (logits, rows, columns, *found)]
    for part in range(parts):
        before = found[0].clone()
        keypoints_cpu._search_part(*arrays, part, parts)
        assert (before[before != found[0]] == -1).all()
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_the_number_of_threads_changes_nothing():
    logits, rows, columns = bumps(9, 17, 28), sizes(*range(20, 200, 20)), sizes(*range(110, 20, -10))
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(best_pixels(logits, rows, columns))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_importing_the_head_compiles_nothing():
    code = "import sys, mrcnn_scratch.keypoint_head; print('numba' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout.split() == ["False"], result.stderr
