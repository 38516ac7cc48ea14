"""FPN, eq. 1, and pooling from several levels."""

import functools

import pytest
import torch
import torchvision

from mrcnn_scratch.roi_ops import roi_align
from mrcnn_scratch.roi_ops.levels import assign_levels, multiscale_roi

SIDES = {55: 2, 111.9: 2, 112: 3, 223: 3, 224: 4, 448: 5, 9999: 5}


def square(side: float) -> torch.Tensor:
    return torch.tensor([[10.0, 20.0, 10.0 + side, 20.0 + side]])


@pytest.mark.parametrize(("side", "level"), SIDES.items())
@pytest.mark.parametrize("convention", [{}, {"eps": 1e-6, "eps_inside_log": False}])
def test_equation_1(side, level, convention):
    origin = torch.tensor([[0.0, 0.0, side, side]])
    assert assign_levels(origin, 2, 5, **convention).item() + 2 == level


def test_epsilon_decides_just_below_a_boundary():
    """223.9999: log2 of it is 6e-7 below; torchvision's 1e-6 lifts it to P4, ours does not."""
    box = torch.tensor([[0, 0, 223.9999, 223.9999]], dtype=torch.float64)
    assert assign_levels(box, 2, 5).item() + 2 == 3
    assert assign_levels(box, 2, 5, eps=1e-6, eps_inside_log=False).item() + 2 == 4


def test_shape_of_a_box_does_not_matter_and_no_area_is_the_finest_level():
    boxes = torch.tensor([[0, 0, 448.0, 112.0], [0, 0, 112.0, 448.0], [5, 5, 5, 9.0], [9, 9, 2, 30.0]])
    assert assign_levels(boxes, 2, 5).tolist() == [2, 2, 0, 0]
    assert assign_levels(torch.zeros(0, 4), 2, 5).shape == (0,)
    assert assign_levels(boxes, 2, 5).dtype == torch.int64


def pyramid(N=2, C=3, dtype=torch.float64):
    """Strides 4 to 32 of a 96x160 image."""
    g = torch.Generator().manual_seed(0)
    return [torch.randn(N, C, 96 // s, 160 // s, generator=g, dtype=dtype) for s in (4, 8, 16, 32)]


def some_boxes(R: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    size = torch.exp(torch.rand(R, 2, generator=g, dtype=torch.float64) * 6) + 2
    corner = torch.rand(R, 2, generator=g, dtype=torch.float64) * torch.tensor([120.0, 70.0])
    return torch.cat([corner, corner + size], dim=1)


@pytest.mark.parametrize("canonical", [(224, 4), (40, 3)])
def test_equals_torchvision(canonical):
    features, boxes = pyramid(), [some_boxes(30, 1), some_boxes(17, 2)]
    names = [str(i) for i in range(4)]
    theirs = torchvision.ops.MultiScaleRoIAlign(
        names, (3, 2), 2, canonical_scale=canonical[0], canonical_level=canonical[1]
    )
    expected = theirs(dict(zip(names, features, strict=True)), boxes, [(96, 160)] * 2)
    legacy = functools.partial(roi_align, sampling_ratio=2, aligned=False)
    mine = multiscale_roi(features, boxes, (3, 2), [4, 8, 16, 32], legacy, *canonical, eps=1e-6, eps_inside_log=False)
    torch.testing.assert_close(mine, expected, rtol=0, atol=1e-10)
    levels = assign_levels(torch.cat(boxes), 2, 5, *canonical)
    assert len(levels.unique()) >= (3 if canonical == (40, 3) else 2)


def test_trap_15_sizes_that_are_no_multiple_of_the_stride():
    """A 799 x 1333 image has 25 rows at stride 32: torchvision infers 1/32 from 25 / 799, ours is told the stride."""
    g = torch.Generator().manual_seed(1)
    sizes = [(-(-799 // s), -(-1333 // s)) for s in (4, 8, 16, 32)]
    features = [torch.randn(1, 2, *size, generator=g, dtype=torch.float64) for size in sizes]
    corner = torch.rand(40, 2, generator=g, dtype=torch.float64) * torch.tensor([900.0, 400.0])
    size = torch.exp(torch.rand(40, 2, generator=g, dtype=torch.float64) * 3 + 4)  # 55 to 1,100 pixels
    boxes = torch.cat([corner, corner + size], dim=1)
    names = [str(i) for i in range(4)]
    theirs = torchvision.ops.MultiScaleRoIAlign(names, (3, 2), 2)
    expected = theirs(dict(zip(names, features, strict=True)), [boxes], [(799, 1333)])
    assert theirs.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    legacy = functools.partial(roi_align, sampling_ratio=2, aligned=False)
    mine = multiscale_roi(features, [boxes], (3, 2), [4, 8, 16, 32], legacy, eps=1e-6, eps_inside_log=False)
    torch.testing.assert_close(mine, expected, rtol=0, atol=1e-10)
    assert len(assign_levels(boxes, 2, 5).unique()) == 4


def test_trap_14_order_is_that_of_the_boxes():
    """Shuffled boxes give equally shuffled outputs, though each level pools its own together."""
    features, boxes = pyramid(N=1), some_boxes(40, 3)
    out = multiscale_roi(features, [boxes], 2, [4, 8, 16, 32], roi_align, 40, 3)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    shuffled = multiscale_roi(features, [boxes[order]], 2, [4, 8, 16, 32], roi_align, 40, 3)
    assert torch.equal(shuffled, out[order])
    for r in (0, 7, 39):
        level = assign_levels(boxes[r : r + 1], 2, 5, 40, 3).item()
        alone = roi_align(features[level], [boxes[r : r + 1]], 2, 1 / 2 ** (level + 2))
        torch.testing.assert_close(out[r : r + 1], alone)


def test_empty_levels_images_and_gradients():
    features = [f.requires_grad_() for f in pyramid()]
    boxes = [
        torch.zeros(0, 4, dtype=torch.float64),
        some_boxes(3, 4) * 0 + torch.tensor([1.0, 2.0, 9.0, 8.0]),
    ]
    out = multiscale_roi(features, boxes, 2, [4, 8, 16, 32], roi_align)
    assert out.shape == (3, 3, 2, 2)
    out.sum().backward()
    assert features[0].grad[1].abs().sum() > 0 and features[0].grad[0].abs().sum() == 0
    assert all(f.grad is not None and f.grad.abs().sum() == 0 for f in features[1:])  # empty, and still in the graph
    none = multiscale_roi(features, [torch.zeros(0, 4)] * 2, (2, 3), [4, 8, 16, 32], roi_align)
    assert none.shape == (0, 3, 2, 3) and none.sum() == 0


def test_one_level():
    features, boxes = pyramid()[2], [some_boxes(5, 5), some_boxes(2, 6)]
    mine = multiscale_roi([features], boxes, 3, [16], roi_align)
    assert torch.equal(mine, roi_align(features, boxes, 3, 1 / 16))


@pytest.mark.parametrize(
    ("strides", "levels", "images", "message"),
    [
        ([4, 8], 3, 2, "3 feature maps"),
        ([4, 8, 12], 3, 2, "powers of two"),
        ([4, 16, 32], 3, 2, "twice the one before"),
        ([4, 8, 16], 3, 1, "lists 1 images, features hold 2"),
    ],
)
def test_errors(strides, levels, images, message):
    with pytest.raises(ValueError, match=message):
        multiscale_roi(pyramid()[:levels], [square(9)] * images, 2, strides, roi_align)
    with pytest.raises(ValueError, match="k_max"):
        assign_levels(square(3), 5, 2)
    with pytest.raises(ValueError, match=r"\(R, 4\)"):
        assign_levels(torch.zeros(3, 5), 2, 5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pooled_rois_keep_the_maps_layout(layout):
    features = [torch.randn(1, 8, side, side).to(memory_format=layout) for side in (32, 16)]
    boxes = [torch.tensor([[0.0, 0, 100, 100], [4, 4, 20, 20], [0, 0, 120, 110], [8, 0, 30, 30]])]
    pooled = multiscale_roi(features, boxes, 7, (4, 8), roi_align, canonical_size=56, canonical_level=3)
    assert pooled.shape == (4, 8, 7, 7) and pooled.is_contiguous(memory_format=layout)
