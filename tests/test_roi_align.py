"""RoIAlign: numbers to check by hand, the border rule, degenerate RoIs, and symmetries that all RoI ops have."""

import math

import pytest
import torch
from torch.nn.functional import avg_pool2d, interpolate

from mrcnn_scratch.roi_ops import roi_align, roi_pool
from tests.roi_cases import BACKENDS, SAMPLERS, boxes_of, by_grid_sample, ramp, random_case

each_backend = pytest.mark.parametrize("backend", BACKENDS)
ALL = SAMPLERS | {"pool": roi_pool}


# ---- numbers to check by hand


@each_backend
def test_trap_01_half_pixel_on_the_ramp(backend):
    """Detectron2's oracle: the 5x5 ramp, RoI [1, 1, 3, 3] to 4x4; the half cell is the difference of the two tables."""
    boxes = boxes_of([1.0, 1.0, 3.0, 3.0])
    rows = torch.tensor([[0, 0.5, 1.0, 1.5]], dtype=torch.float64)
    table = rows + 5 * rows.T
    aligned = roi_align(ramp(), boxes, 4, sampling_ratio=2, backend=backend)
    legacy = roi_align(ramp(), boxes, 4, sampling_ratio=2, aligned=False, backend=backend)
    torch.testing.assert_close(aligned[0, 0], 4.5 + table)
    torch.testing.assert_close(legacy[0, 0], 7.5 + table)


@each_backend
def test_max_is_the_largest_sample(backend):
    """RoI [1, 1, 3, 3] in one bin, 2x2 samples at indices 1 and 2: cells 6, 7, 11, 12."""
    boxes = boxes_of([1.0, 1.0, 3.0, 3.0])
    assert roi_align(ramp(), boxes, 1, reduce="max", backend=backend).item() == 12
    assert roi_align(ramp(), boxes, 1, reduce="mean", backend=backend).item() == 9
    below = roi_align(ramp() - 100, boxes, 1, reduce="max", backend=backend)  # not max(0, ...)
    assert below.item() == -88


@each_backend
@pytest.mark.parametrize("sampler", ["aligned", "legacy", "warp"])
@pytest.mark.parametrize("axis", ["y", "x"])
def test_trap_04_border_rule(backend, axis, sampler):
    """Index -1 and H are still inside, beyond them 0; between, the edge's value."""
    length = 4 if axis == "y" else 6
    features = torch.full((1, 1, 4, 6), 2.0, dtype=torch.float64)
    places = {-1.0001: 0, -1: 2, -0.5: 2, length - 1: 2, length - 0.5: 2, length: 2, length + 0.0001: 0}
    if sampler == "warp":  # corners are whole: samples are at whole and half cells
        places = {-1.5: 0, -1: 2, -0.5: 2, length - 1: 2, length - 0.5: 2, length: 2, length + 0.5: 0}
    for place, expected in places.items():  # one sample, at the middle
        if sampler == "warp":
            low, high = math.floor(place), math.ceil(place)  # cells, both included
        else:
            half_pixel = 0.5 if sampler == "aligned" else 0
            low, high = place + half_pixel - 0.5, place + half_pixel + 0.5
        box = [2, low, 3, high] if axis == "y" else [low, 2, high, 3]
        for reduce in ("mean", "max"):
            options = dict(sampling_ratio=1, reduce=reduce, backend=backend)
            assert SAMPLERS[sampler](features, boxes_of(box), 1, **options).item() == expected, place


@each_backend
def test_samples_off_the_map_count_as_zero(backend):
    """Half of a RoI off the map: the mean halves, and the largest of negative samples is the 0."""
    features, box = torch.full((1, 1, 4, 4), -2.0, dtype=torch.float64), boxes_of([2.5, 1, 8.5, 3])
    # samples at 3.5 and 6.5
    assert roi_align(features, box, 1, backend=backend).item() == -1
    assert roi_align(features, box, 1, reduce="max", backend=backend).item() == 0


@each_backend
@pytest.mark.parametrize("width", [0.3, 7.0, 7.01, 88.0])
def test_trap_03_adaptive_counts_are_per_roi_and_axis(backend, width):
    """sampling_ratio 0 or less is ceil(RoI / bins) on each axis, of the RoI as it is, not rounded."""
    features = torch.randn(1, 2, 9, 96, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    boxes = boxes_of([3.3, 2.2, 3.3 + width, 6.2], [4.4, 3.1, 6.4, 3.5])
    out = roi_align(features, boxes, (2, 7), sampling_ratio=0, backend=backend)
    torch.testing.assert_close(out, by_grid_sample(features, boxes, (2, 7), 1.0, 0, "aligned"))
    assert torch.equal(roi_align(features, boxes, (2, 7), sampling_ratio=-1, backend=backend), out)
    count = math.ceil(width / 7)
    if count == 2:  # as many as 4 rows in 2 bins have
        named = roi_align(features, boxes[:1], (2, 7), sampling_ratio=2, backend=backend)
        torch.testing.assert_close(out[:1], named)


@each_backend
def test_trap_06_degenerate_boxes(backend):
    """Aligned: no size and adaptive: no samples, 0; x2 < x1: sampled mirrored. Legacy: at least one cell."""
    features = ramp() + 1
    point = boxes_of([2.0, 2.0, 2.0, 2.0])
    for reduce in ("mean", "max"):
        options = dict(sampling_ratio=0, reduce=reduce, backend=backend)
        assert roi_align(features, point, 2, **options).abs().max() == 0
        assert (roi_align(features, point, 2, aligned=False, **options) > 0).all()
        inverted = boxes_of([4.0, 1.0, 1.0, 3.0], [1.0, 3.0, 4.0, 1.0])
        assert roi_align(features, inverted, 2, **options).abs().max() == 0
    assert (roi_align(features, point, 2, backend=backend) == features[0, 0, 1:3, 1:3].mean()).all()
    straight = roi_align(features, boxes_of([1.0, 1.0, 4.0, 3.0]), (2, 3), backend=backend)
    mirrored = roi_align(features, boxes_of([4.0, 1.0, 1.0, 3.0]), (2, 3), backend=backend)
    torch.testing.assert_close(mirrored, straight.flip(3))


# ---- symmetries


@each_backend
@pytest.mark.parametrize("name", ALL)
def test_a_shifted_image_has_shifted_rois(name, backend):
    """By whole cells; results do not depend on where on the map a RoI lies."""
    features, _ = random_case(6)
    boxes = torch.tensor([[0, 10.3, 9.1, 21.0, 20.2], [1, 12.5, 8.2, 27.9, 15.0], [0, 16, 12, 25, 22.5]]).double()
    out = ALL[name](features, boxes, (2, 3), 0.25, backend=backend)
    moved = boxes - torch.tensor([0, 8.0, 4, 8, 4])
    shifted = ALL[name](features.roll((-1, -2), (2, 3)), moved, (2, 3), 0.25, backend=backend)
    torch.testing.assert_close(shifted, out)


@each_backend
@pytest.mark.parametrize("name", ["aligned", "warp", "pool"])
def test_a_mirrored_image_has_mirrored_rois(name, backend):
    """Pixel i covers [i, i + 1), so x becomes 44 - x on a map 44 pixels wide. The corners of RoIPool and RoIWarp name
    cells that both belong: x becomes 40 - x. Neither legacy nor MNC's sampler could pass: they read off the centre."""
    features, boxes = random_case(15, R=30)
    boxes = boxes[(boxes[:, 3:] > boxes[:, 1:3]).all(dim=1)]
    boxes[:, 1:] += 0.013  # halves are rounded away from zero, which has a side
    wide = 44 if name == "aligned" else 40
    mirrored = torch.stack([boxes[:, 0], wide - boxes[:, 3], boxes[:, 2], wide - boxes[:, 1], boxes[:, 4]], dim=1)
    out = ALL[name](features, boxes, (2, 3), 0.25, backend=backend)
    torch.testing.assert_close(ALL[name](features.flip(3), mirrored, (2, 3), 0.25, backend=backend), out.flip(3))


@each_backend
@pytest.mark.parametrize("name", ALL)
def test_permuted_rois_and_images_have_permuted_results(name, backend):
    features, boxes = random_case(16, R=40)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    out = ALL[name](features, boxes, (2, 3), 0.25, backend=backend)
    assert torch.equal(ALL[name](features, boxes[order], (2, 3), 0.25, backend=backend), out[order])
    other = torch.cat([1 - boxes[:, :1], boxes[:, 1:]], dim=1)
    assert torch.equal(ALL[name](features.flip(0), other, (2, 3), 0.25, backend=backend), out)
    turned = ALL[name](features.flip(1), boxes, (2, 3), 0.25, backend=backend)
    torch.testing.assert_close(turned, out.flip(1), rtol=0, atol=1e-14)


@each_backend
@pytest.mark.parametrize("aligned", [True, False])
def test_trap_01_a_resized_image_has_resized_rois(aligned, backend):
    """Detectron2's test: halve the image and the box, and the result is the same. A forgotten half pixel shows."""
    g = torch.Generator().manual_seed(4)
    image = torch.rand(1, 2, 16, 20, generator=g, dtype=torch.float64) * 100
    box = boxes_of([4, 2, 14, 12])
    small = interpolate(image, scale_factor=0.5, mode="bilinear", align_corners=False)
    assert torch.allclose(small, avg_pool2d(image, 2))
    options = dict(sampling_ratio=0, aligned=aligned, backend=backend)
    difference = roi_align(image, box, 5, **options) - roi_align(small, box / 2, 5, **options)
    assert (difference.abs().max() < 1e-10) == aligned
    # and anywhere, on a map that resizing keeps
    slope = torch.arange(16.0, dtype=torch.float64)[:, None] * 3 + torch.arange(20.0, dtype=torch.float64)
    boxes = boxes_of([3.3, 2.9, 11.6, 9.7], [5.1, 4.4, 9.2, 12.3])
    half = avg_pool2d(slope[None, None], 2)
    options["sampling_ratio"] = 2
    difference = roi_align(slope[None, None], boxes, (2, 3), **options) - roi_align(half, boxes / 2, (2, 3), **options)
    expected = torch.full_like(difference, 0.0 if aligned else -2.0)  # half a pixel of the large map: (3 + 1) / 2
    torch.testing.assert_close(difference, expected)


@each_backend
def test_trap_02_legacy_is_half_a_cell_off(backend):
    """Both modes are there, and differ by this alone, on RoIs of a cell or more."""
    features, boxes = random_case(17, R=30)
    boxes = boxes[((boxes[:, 3:] - boxes[:, 1:3]) >= 4).all(dim=1)]
    legacy = roi_align(features, boxes, (2, 3), 0.25, aligned=False, backend=backend)
    shifted = boxes + torch.tensor([0, 2.0, 2.0, 2.0, 2.0])  # half a cell at stride 4
    torch.testing.assert_close(legacy, roi_align(features, shifted, (2, 3), 0.25, backend=backend))
    assert (legacy - roi_align(features, boxes, (2, 3), 0.25, backend=backend)).abs().max() > 0.1
