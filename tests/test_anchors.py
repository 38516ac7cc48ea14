"""Anchors: exact shapes, centres and order."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_scratch.anchors import cell_anchors, grid_anchors, pyramid_anchors

SIZES, RATIOS = (16.0, 32.0, 100.0), (0.5, 1.0, 2.0)


def sides(anchors):
    return anchors[:, 2] - anchors[:, 0], anchors[:, 3] - anchors[:, 1]


def test_area_is_the_size_squared_and_ratio_is_height_over_width():
    # py-faster-rcnn rounded its anchors and shifted their centres; matterport's ratio is w / h.
    width, height = sides(cell_anchors(SIZES, RATIOS))
    sizes = torch.tensor(SIZES).repeat(3)  # sizes fastest
    ratios = torch.tensor(RATIOS).repeat_interleave(3)
    torch.testing.assert_close(width * height, sizes**2, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(height / width, ratios, rtol=1e-6, atol=0)
    assert (width[:3] > height[:3]).all()  # 0.5 is wide


def test_by_hand():
    # 32 with h / w = 0.5: w = 32 * sqrt(2) = 45.2548, h = 22.6274
    wide = cell_anchors((32.0,), (0.5,))
    torch.testing.assert_close(wide, torch.tensor([[-22.6274, -11.3137, 22.6274, 11.3137]]))


def test_rounded_anchors_have_other_areas():
    # 32 at 0.5, 1, 2 becomes 46 x 22 = 1012, 32 x 32 = 1024, 22 x 46 = 1012: torchvision's choice, not ours.
    width, height = sides(cell_anchors((32.0,), RATIOS, rounded=True))
    assert (width * height).tolist() == [1012, 1024, 1012]


def test_centres_are_in_the_middle_of_their_cells():
    cell = cell_anchors((8.0,), (0.5, 2.0))
    grid = grid_anchors(cell, 3, 5, (4, 8)).view(3, 5, 2, 4)  # rows 4 apart, columns 8 apart
    centre = (grid[..., :2] + grid[..., 2:]) / 2  # x, y
    torch.testing.assert_close(centre[2, 1, 0], torch.tensor([1.5 * 8, 2.5 * 4]))
    torch.testing.assert_close(centre[0, 4, 1], torch.tensor([4.5 * 8, 0.5 * 4]))
    corner = grid_anchors(cell, 3, 5, (4, 8), offset=0).view(3, 5, 2, 4)
    torch.testing.assert_close(grid - corner, torch.tensor([4.0, 2, 4, 2]).expand_as(grid))


@given(st.integers(1, 7), st.integers(1, 7), st.sampled_from([2, 4, 16]), st.floats(3, 90))
@settings(max_examples=40, deadline=None)
def test_overhang_is_the_same_on_opposite_borders(height, width, stride, size):
    anchors = grid_anchors(cell_anchors((size,), RATIOS), height, width, (stride, stride))
    left, top = anchors[:, 0].min(), anchors[:, 1].min()
    right, bottom = anchors[:, 2].max() - width * stride, anchors[:, 3].max() - height * stride
    torch.testing.assert_close(-left, right, atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(-top, bottom, atol=1e-3, rtol=1e-5)


def test_order_is_row_by_row_with_the_anchors_of_a_cell_together():
    cell = cell_anchors(SIZES, RATIOS)  # A = 9
    H, W = 3, 5
    grid = grid_anchors(cell, H, W, (4, 8))
    assert grid.shape == (H * W * 9, 4)
    for i, j, a in [(0, 0, 3), (0, 1, 0), (1, 0, 8), (2, 4, 5)]:
        shift = torch.tensor([(j + 0.5) * 8, (i + 0.5) * 4] * 2)
        torch.testing.assert_close(grid[(i * W + j) * 9 + a], cell[a] + shift)


def test_pyramid_gives_each_level_its_own_size_and_stride():
    shapes, strides = [(6, 10), (3, 5), (2, 3)], (4, 8, 16)
    levels = pyramid_anchors(shapes, strides, ((16,), (32,), (64,)), RATIOS)
    assert [len(level) for level in levels] == [6 * 10 * 3, 3 * 5 * 3, 2 * 3 * 3]
    for level, stride, size in zip(levels, strides, (16, 32, 64), strict=True):
        width, height = sides(level)
        torch.testing.assert_close((width * height).sqrt(), torch.full_like(width, size))
        centre = (level[1, :2] + level[1, 2:]) / 2  # ratio 1 of the first cell
        assert centre.tolist() == [stride / 2, stride / 2]
        assert level.dtype == torch.float32


def test_empty_map_and_five_sizes_on_one_level():
    assert pyramid_anchors([(0, 4)], (16,), ((16, 32, 64, 128, 256),), RATIOS)[0].shape == (0, 4)
    assert pyramid_anchors([(2, 4)], (16,), ((16, 32, 64, 128, 256),), RATIOS)[0].shape == (2 * 4 * 15, 4)


@pytest.mark.parametrize(("sizes", "ratios"), [((), (1.0,)), ((8.0,), ()), ((0.0,), (1.0,)), ((8.0,), (-1.0, 1.0))])
def test_impossible_shapes_are_refused(sizes, ratios):
    with pytest.raises(ValueError, match="must be positive and not empty"):
        cell_anchors(sizes, ratios)


def test_as_many_strides_as_levels():
    with pytest.raises(ValueError, match="2 feature maps, 1 strides and 2 anchor sizes"):
        pyramid_anchors([(2, 2), (1, 1)], (4,), ((8,), (16,)), RATIOS)
