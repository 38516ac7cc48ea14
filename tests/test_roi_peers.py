"""The RoI ops beside independent implementations: torchvision's compiled ops, onnxruntime's RoiAlign, grid_sample.

torchvision's own Python twin of RoIAlign is no oracle: it leaves out the border rule (trap 4).
"""

import functools

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_scratch.roi_ops import roi_align, roi_pool, roi_warp
from mrcnn_scratch.roi_ops.reference.sampling import bin_samples
from tests.roi_cases import (
    BACKENDS,
    FAST,
    SAMPLERS,
    Case,
    assert_all_close,
    boxes_of,
    by_grid_sample,
    cases,
    gradients,
    near_border_edge,
    random_case,
    sample_places,
)

DTYPES = st.sampled_from([torch.float32, torch.float64])


def with_samples(case: Case, ratio: int, aligned: bool) -> Case:
    """Without the RoIs of x2 < x1 or y2 < y1, aligned and adaptive: they have no samples, and here are 0.

    The peers take a negative count for a size: torchvision throws "cannot create std::vector", onnxruntime overflows.
    """
    if aligned and ratio == 0:
        case = case._replace(boxes=case.boxes[(case.boxes[:, 3:] >= case.boxes[:, 1:3]).all(dim=1)])
    return case


# ---- torchvision


@settings(max_examples=220, deadline=None, derandomize=True)
@given(case=cases(), aligned=st.booleans(), dtype=DTYPES)
def test_roi_align_equals_torchvision(case, aligned, dtype):
    """Forward and backward, to 1e-10: some 3,400 RoIs, each with four sampling ratios.

    In float32 to 1e-4: where the map has one cell, the gradients of all RoIs add up in it, in orders that differ.
    """
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    for ratio in (0, 1, 2, 4):
        some = with_samples(case.to(dtype), ratio, aligned)
        expected = gradients(torchvision.ops.roi_align, *some, ratio, aligned)
        for backend in FAST:
            assert_all_close(gradients(roi_align, *some, ratio, aligned, backend=backend), expected, tolerance)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(case=cases(), dtype=DTYPES, ties=st.booleans(), large=st.booleans())
def test_roi_pool_equals_torchvision(case, dtype, ties, large):
    """Some 2,900 RoIs, to the bit; with features of few values the first of the largest cells must win, as there."""
    case = case.to(dtype)
    if ties:
        case = case._replace(features=case.features.round())
    if large:
        case = case._replace(size=(7, 5))
    out, grad = gradients(torchvision.ops.roi_pool, *case)
    for backend in FAST:
        mine, mine_grad = gradients(roi_pool, *case, backend=backend)
        assert torch.equal(mine, out)
        torch.testing.assert_close(mine_grad, grad, rtol=0, atol=1e-10 if dtype == torch.float64 else 2e-5)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(case=cases(most=8), aligned=st.booleans(), ratio=st.sampled_from([0, 1, 2, 4]))
def test_reference_equals_torchvision(case, aligned, ratio):
    case = with_samples(case, ratio, aligned)
    expected = gradients(torchvision.ops.roi_align, *case, ratio, aligned)
    assert_all_close(gradients(roi_align, *case, ratio, aligned, backend="reference"), expected, 1e-10)
    expected = gradients(torchvision.ops.roi_pool, *case)
    assert_all_close(gradients(roi_pool, *case, backend="reference"), expected, 1e-10)


@pytest.mark.parametrize("backend", FAST)
def test_roi_pool_of_every_corner_on_a_half_equals_torchvision(backend):
    """All boxes with corners on multiples of a half cell in a 4x3 map and beyond its border."""
    features = torch.randperm(12, generator=torch.Generator().manual_seed(0)).double().view(1, 1, 4, 3)
    steps = torch.arange(-2, 9) / 2
    x1, y1, x2, y2 = (t.flatten() for t in torch.meshgrid(steps, steps, steps, steps, indexing="ij"))
    boxes = torch.stack([0 * x1, x1, y1, x2, y2], dim=1).double()  # 14,641
    mine = roi_pool(features, boxes, (2, 1), backend=backend)
    assert torch.equal(mine, torchvision.ops.roi_pool(features, boxes, (2, 1)))


# ---- onnxruntime


@functools.cache
def onnx_session(size, ratio, scale, mode, transformation, dtype):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    options = dict(output_height=size[0], output_width=size[1], sampling_ratio=ratio, spatial_scale=scale, mode=mode)
    options["coordinate_transformation_mode"] = transformation
    node = onnx.helper.make_node("RoiAlign", ["x", "rois", "index"], ["y"], **options)
    kind = onnx.TensorProto.FLOAT if dtype == torch.float32 else onnx.TensorProto.DOUBLE
    kinds = {"x": kind, "rois": kind, "index": onnx.TensorProto.INT64}
    inputs = [onnx.helper.make_tensor_value_info(k, v, None) for k, v in kinds.items()]
    outputs = [onnx.helper.make_tensor_value_info("y", kind, None)]
    graph = onnx.helper.make_graph([node], "g", inputs, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 16)], ir_version=8)
    quiet = runtime.SessionOptions()
    quiet.log_severity_level = 4  # it warns at every "max" that this is not the largest sample
    return runtime.InferenceSession(model.SerializeToString(), quiet, providers=["CPUExecutionProvider"])


def by_onnx(features, boxes, size, scale, ratio, aligned, mode) -> torch.Tensor:
    transformation = "half_pixel" if aligned else "output_half_pixel"
    session = onnx_session(size, ratio, scale, mode, transformation, features.dtype)
    feed = {"x": features.numpy(), "rois": boxes[:, 1:].numpy(), "index": boxes[:, 0].long().numpy()}
    return torch.from_numpy(session.run(None, feed)[0])


def as_onnx(case: Case, ratio: int, aligned: bool) -> Case:
    """onnxruntime's spatial_scale is a float32, in float64 too."""
    return with_samples(case, ratio, aligned)._replace(scale=float(np.float32(case.scale)))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(case=cases(), aligned=st.booleans(), dtype=DTYPES)
def test_mean_equals_onnxruntime(case, aligned, dtype):
    """half_pixel is aligned, output_half_pixel legacy; inside, outside, on the border, degenerate."""
    tolerance = 1e-10 if dtype == torch.float64 else 2e-6
    for ratio in (0, 1, 2, 4):
        some = as_onnx(case.to(dtype), ratio, aligned)
        expected = by_onnx(*some, ratio, aligned, "avg")
        for backend in FAST:
            mine = roi_align(*some, ratio, aligned, backend=backend)
            torch.testing.assert_close(mine, expected, rtol=0, atol=tolerance)


def onnx_max(features, boxes, size, scale, ratio, convention) -> torch.Tensor:
    """What onnxruntime's "max" is: the largest single *weighted corner* of a bin's samples, not the largest sample."""
    out = np.zeros((len(boxes), features.shape[1], *size))
    for r, (n, *box) in enumerate(boxes.tolist()):
        for p, q in np.ndindex(*size):
            samples = bin_samples(box, p, q, size, features.shape[2:], scale, ratio, convention)
            cells = [features[int(n), :, y, x].numpy() * weight for sample in samples for y, x, weight in sample]
            cells += [np.zeros(features.shape[1])] * any(not sample for sample in samples)
            out[r, :, p, q] = np.max(cells, axis=0) if samples else 0
    return torch.from_numpy(out)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(case=cases(most=8), aligned=st.booleans(), ratio=st.sampled_from([0, 1, 2]))
def test_max_of_onnxruntime_is_another_definition(case, aligned, ratio):
    """It is the largest weighted corner, which on features >= 0 is never above the largest sample.

    So the two agree where that is at a cell's centre, or clamped to one, on both axes: its weights are 1, 0, 0, 0.
    """
    case = as_onnx(case._replace(features=case.features.abs()), ratio, aligned)
    theirs = by_onnx(*case, ratio, aligned, "max")
    expected = onnx_max(*case, ratio, "aligned" if aligned else "legacy")
    torch.testing.assert_close(theirs, expected, rtol=0, atol=1e-10)
    for backend in BACKENDS:
        assert (roi_align(*case, ratio, aligned, "max", backend) >= theirs - 1e-10).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("aligned", [True, False])
def test_max_equals_onnxruntime_at_the_centres_of_cells(aligned, backend):
    """As many samples as cells: each lies on a centre; off the map too, and on features >= 0."""
    features, _ = random_case(3)
    corners = np.arange(-3.0, 12), np.arange(-3.0, 9)
    boxes = [[n, x, y, x + 6, y + 4] for n in (0, 1) for x in corners[0] for y in corners[1]]
    boxes = torch.tensor(boxes, dtype=torch.float64)
    if not aligned:
        boxes[:, 1:] -= 0.5  # legacy reads the corner x at index x
    mine = roi_align(features.abs(), boxes, (2, 3), 1.0, 2, aligned, "max", backend)
    theirs = by_onnx(features.abs(), boxes, (2, 3), 1.0, 2, aligned, "max")
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)
    assert len(mine) > 300 and mine.count_nonzero() > mine.numel() / 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_max_differs_from_onnxruntime_by_hand(backend):
    """Between the cells 6 and 10 the sample is 8, and its heaviest corner 5. At the centre of the cell -4 three corners
    weigh nothing, and onnxruntime takes one of those: 0."""
    row = torch.tensor([6.0, 10, -4], dtype=torch.float64).repeat(1, 1, 3, 1)
    boxes = boxes_of([0.5, 1, 1.5, 2], [2, 0, 3, 1])  # one sample: at index (1, 0.5), and at (0, 2)
    assert roi_align(row, boxes, 1, 1.0, 1, reduce="max", backend=backend).flatten().tolist() == [8, -4]
    assert by_onnx(row, boxes, (1, 1), 1.0, 1, True, "max").flatten().tolist() == [5, 0]


# ---- grid_sample


@pytest.mark.parametrize("reduce", ["mean", "max"])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("ratio", [0, 1, 2, 3])
def test_equals_grid_sample(sampler, ratio, reduce):
    """Forward and backward; inside the map, across its border and off it."""
    case = Case(*random_case(23, R=24), (2, 3), 0.25)
    places = sample_places(case, ratio, sampler)
    good = [not any(near_border_edge(v, length, sampler) for v, length in roi) for roi in places]
    case = case._replace(boxes=case.boxes[torch.tensor(good)])
    expected = gradients(by_grid_sample, *case, ratio, sampler, reduce)
    assert len(expected[0]) >= 10
    for backend in BACKENDS:
        mine = gradients(SAMPLERS[sampler], *case, ratio, reduce=reduce, backend=backend)
        assert_all_close(mine, expected, 1e-10)


def test_roi_warp_is_not_in_torchvision():
    """There is no peer for RoIWarp but its definition: RoIAlign of the rounded cells."""
    features, boxes = random_case(24, R=30)
    cells = boxes.clone()
    cells[:, 1:] = (boxes[:, 1:] / 4 + 0.5 * boxes[:, 1:].sign()).trunc() * 4
    cells[:, 3:] = torch.maximum(cells[:, 3:], cells[:, 1:3]) + 4
    for ratio in (0, 2):
        expected = torchvision.ops.roi_align(features, cells, (2, 3), 0.25, ratio, True)
        torch.testing.assert_close(roi_warp(features, boxes, (2, 3), 0.25, ratio), expected, rtol=0, atol=1e-10)
