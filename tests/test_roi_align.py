"""RoIAlign: hand numbers, the border rule, parity with torchvision's compiled op and with onnxruntime,
gradients."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from mrcnn_scratch.roi_ops import roi_align, roi_pool, roi_warp

BACKENDS = ("reference", "torch", "numba")
OPS = (roi_align, roi_warp, roi_pool)


def ramp() -> torch.Tensor:
    return torch.arange(25.0, dtype=torch.float64).view(1, 1, 5, 5)


def random_case(seed: int, R: int = 12, dtype=torch.float64):
    """Features (2, 3, 7, 11) and RoIs, at stride 4, inside, outside and across the border; some thin, some inverted."""
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 3, 7, 11, generator=g, dtype=torch.float64)
    corner = torch.rand(R, 2, generator=g, dtype=torch.float64) * torch.tensor([64.0, 48.0]) - 12
    size = torch.rand(R, 2, generator=g, dtype=torch.float64) * torch.tensor([40.0, 30.0]) - 2
    snapped = (
        torch.rand(R, 1, generator=g) < 0.3
    )  # corners on quarter cells: ties, cell borders, the border rule's edge
    boxes = torch.cat([corner, corner + size], dim=1)
    boxes = torch.where(snapped, boxes.round(), boxes)
    index = torch.randint(0, 2, (R, 1), generator=g).double()
    return features.to(dtype), torch.cat([index, boxes], dim=1).to(dtype)


def forward_backward(op, features, *args, **kwargs):
    x = features.clone().requires_grad_()
    out = op(x, *args, **kwargs)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out.dtype)
    (grad,) = torch.autograd.grad(out, x, weights)
    return out.detach(), grad


# ---- numbers to check by hand


@pytest.mark.parametrize("backend", BACKENDS)
def test_ramp_tables(backend):
    """Detectron2's oracle: the 5x5 ramp, RoI [1, 1, 3, 3] to 4x4; the half cell is the difference of the two tables."""
    boxes = torch.tensor([[0, 1.0, 1.0, 3.0, 3.0]], dtype=torch.float64)
    rows = torch.tensor([[0, 0.5, 1.0, 1.5]], dtype=torch.float64)
    table = rows + 5 * rows.T
    aligned = roi_align(ramp(), boxes, 4, sampling_ratio=2, backend=backend)
    legacy = roi_align(ramp(), boxes, 4, sampling_ratio=2, aligned=False, backend=backend)
    torch.testing.assert_close(aligned[0, 0], 4.5 + table)
    torch.testing.assert_close(legacy[0, 0], 7.5 + table)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("axis", ["y", "x"])
def test_border_rule(backend, axis):
    """Index -1 and H are still inside, beyond them 0; between, the edge's value."""
    features = torch.full((1, 1, 4, 6), 2.0, dtype=torch.float64)
    H = 4 if axis == "y" else 6
    for place, expected in [
        (-1.0001, 0),
        (-1, 2),
        (-0.5, 2),
        (H - 1, 2),
        (H - 0.5, 2),
        (H, 2),
        (H + 0.0001, 0),
    ]:
        along = (place + 0.25, place + 0.75)  # one sample, at the middle; aligned: index + 0.5
        box = [0, 2.0, along[0], 3.0, along[1]] if axis == "y" else [0, along[0], 2.0, along[1], 3.0]
        out = roi_align(features, torch.tensor([box], dtype=torch.float64), 1, sampling_ratio=1, backend=backend)
        assert out.item() == expected, place


@pytest.mark.parametrize("backend", BACKENDS)
def test_max_is_the_largest_sample(backend):
    """RoI [1, 1, 3, 3] in one bin, 2x2 samples at indices 1 and 2: cells 6, 7, 11, 12. ONNX's max would
    differ: it takes the largest weighted *corner*."""
    boxes = torch.tensor([[0, 1.0, 1.0, 3.0, 3.0]], dtype=torch.float64)
    assert roi_align(ramp(), boxes, 1, reduce="max", backend=backend).item() == 12
    assert roi_align(ramp(), boxes, 1, reduce="mean", backend=backend).item() == 9
    below = roi_align(ramp() - 100, boxes, 1, reduce="max", backend=backend)  # not max(0, ...)
    assert below.item() == -88


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("width", [0.3, 7.0, 7.01, 88.0])
def test_adaptive_counts_are_per_roi_and_axis(backend, width):
    """sampling_ratio 0 is ceil(RoI / bins) on each axis: naming that count must give the same."""
    features = torch.randn(1, 2, 9, 96, dtype=torch.float64)
    boxes = torch.tensor([[0, 3.3, 2.2, 3.3 + width, 2.2 + 4]], dtype=torch.float64)
    counts = int(np.ceil(4 / 2)), int(np.ceil(width / 7))
    out = roi_align(features, boxes, (2, 7), sampling_ratio=0, backend=backend)
    y = [3.3 + width / 7 * (q + (j + 0.5) / counts[1]) for q in range(7) for j in range(counts[1])]
    rows = [2.2 + 2 * (p + (i + 0.5) / 2) for p in range(2) for i in range(2)]
    points = torch.tensor([[[x / 96 * 2 - 1, r / 9 * 2 - 1] for x in y] for r in rows], dtype=torch.float64)
    samples = torch.nn.functional.grid_sample(features, points[None], padding_mode="border", align_corners=False)
    expected = torch.nn.functional.avg_pool2d(samples, counts)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_degenerate_boxes(backend):
    """Aligned: no size and adaptive: no samples, 0; x2 < x1: sampled mirrored. Legacy: at least one cell."""
    features = ramp() + 1
    point = torch.tensor([[0, 2.0, 2.0, 2.0, 2.0]], dtype=torch.float64)
    assert roi_align(features, point, 2, sampling_ratio=0, backend=backend).abs().max() == 0
    assert (roi_align(features, point, 2, sampling_ratio=0, aligned=False, backend=backend) > 0).all()
    box, inverted = ([[0, 1.0, 1.0, 4.0, 3.0]], [[0, 4.0, 1.0, 1.0, 3.0]])
    straight = roi_align(features, torch.tensor(box, dtype=torch.float64), (2, 3), backend=backend)
    mirrored = roi_align(features, torch.tensor(inverted, dtype=torch.float64), (2, 3), backend=backend)
    torch.testing.assert_close(mirrored, straight.flip(3))


# ---- peers


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    ratio=st.sampled_from([0, -1, 1, 2, 4]),
    aligned=st.booleans(),
    size=st.sampled_from([(1, 1), (2, 3), (5, 4)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_equals_torchvision(seed, ratio, aligned, size, dtype):
    """60 examples of 40 RoIs, forward and backward, both backends: some 5,000 RoIs."""
    features, boxes = random_case(seed, R=40, dtype=dtype)
    args = (boxes, size, 0.25, ratio, aligned)
    expected = forward_backward(torchvision.ops.roi_align, features, *args)
    tolerance = 1e-10 if dtype == torch.float64 else 2e-5
    for backend in ("torch", "numba"):
        for mine, theirs in zip(forward_backward(roi_align, features, *args, backend=backend), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("ratio", [0, 1, 3])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_backends_equal_reference(ratio, aligned, reduce):
    features, boxes = random_case(7)
    args = (boxes, (2, 3), 0.25, ratio, aligned, reduce)
    expected = forward_backward(roi_align, features, *args, backend="reference")
    for backend in ("torch", "numba"):
        for mine, slow in zip(forward_backward(roi_align, features, *args, backend=backend), expected, strict=True):
            torch.testing.assert_close(mine, slow, rtol=0, atol=1e-10)
    if reduce == "mean":
        theirs = forward_backward(torchvision.ops.roi_align, features, *args[:-1])
        for slow, other in zip(expected, theirs, strict=True):
            torch.testing.assert_close(slow, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_equals_onnxruntime(aligned, ratio):
    """half_pixel is aligned, output_half_pixel legacy. Boxes of positive size: ONNX leaves the others open."""
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    features, boxes = random_case(3, R=30, dtype=torch.float32)
    boxes = boxes[((boxes[:, 3:] - boxes[:, 1:3]) > 0.5).all(dim=1)]
    mode = "half_pixel" if aligned else "output_half_pixel"
    options = dict(output_height=2, output_width=3, sampling_ratio=ratio, spatial_scale=0.25, mode="avg")
    node = onnx.helper.make_node(
        "RoiAlign", ["x", "rois", "index"], ["y"], coordinate_transformation_mode=mode, **options
    )
    kinds = {"x": onnx.TensorProto.FLOAT, "rois": onnx.TensorProto.FLOAT, "index": onnx.TensorProto.INT64}
    inputs = [onnx.helper.make_tensor_value_info(k, v, None) for k, v in kinds.items()]
    outputs = [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)]
    graph = onnx.helper.make_graph([node], "g", inputs, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 16)], ir_version=8)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {"x": features.numpy(), "rois": boxes[:, 1:].numpy(), "index": boxes[:, 0].long().numpy()}
    (expected,) = session.run(None, feed)
    mine = roi_align(features, boxes, (2, 3), 0.25, ratio, aligned)
    torch.testing.assert_close(mine, torch.from_numpy(expected), rtol=0, atol=1e-5)


# ---- gradients


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduce", ["mean", "max"])
@pytest.mark.parametrize("ratio", [0, 2])
def test_gradcheck(backend, reduce, ratio):
    """Distinct feature values far apart: at a tie the largest sample has no derivative."""
    g = torch.Generator().manual_seed(0)
    x = torch.randperm(2 * 2 * 4 * 5, generator=g).double().view(2, 2, 4, 5).requires_grad_()
    boxes = torch.tensor(
        [[0, 1.3, 0.7, 4.9, 3.1], [1, -2.0, 1.1, 2.2, 6.3], [1, 9, 9, 12, 12], [0, 2, 2, 1.2, 3]],
        dtype=torch.float64,
    )
    assert gradcheck(lambda x: roi_align(x, boxes, (2, 3), 1.0, ratio, True, reduce, backend), x, fast_mode=True)


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_second_derivative(backend):
    features, boxes = random_case(5, R=3)
    x = features[:, :1].clone().requires_grad_()
    assert gradgradcheck(lambda x: roi_align(x, boxes, (1, 2), 0.25, backend=backend), x, fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ratio", [0, 2])
def test_adjoint(backend, ratio):
    """RoIAlign is linear in the features: <g, A x> = <At g, x> for every x and g, off the map and inside out too."""
    features, boxes = random_case(11, R=20)
    x = features.requires_grad_()
    out = roi_align(x, boxes, (3, 2), 0.25, ratio, backend=backend)
    g = torch.randn_like(out)
    (back,) = torch.autograd.grad(out, x, g)
    torch.testing.assert_close((g * out).sum(), (back * x).sum())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPS)
def test_boxes_receive_no_gradient(op, backend):
    features, boxes = random_case(2)
    boxes.requires_grad_()
    op(features.requires_grad_(), boxes, 2, 0.25, backend=backend).sum().backward()
    assert boxes.grad is None and features.grad.abs().sum() > 0
    if op is roi_align:
        assert not op(features.detach(), boxes, 2, backend=backend).requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPS)
def test_layouts_of_features_and_gradient(op, backend):
    """Non-contiguous features, channels_last ones, and a gradient expanded from one number."""
    features, boxes = random_case(4)
    expected = op(features, boxes, (2, 3), 0.25, backend=backend)
    grads = []
    for layout in ("plain", "channels_last", "strided", "transposed"):
        x = features.clone()
        if layout == "channels_last":
            x = x.contiguous(memory_format=torch.channels_last)
        elif layout == "strided":
            x = torch.stack([x, x], dim=-1).flatten(3)[..., ::2]
        elif layout == "transposed":
            x = x.transpose(2, 3).contiguous().transpose(2, 3)
        x.requires_grad_()
        out = op(x, boxes, (2, 3), 0.25, backend=backend)
        torch.testing.assert_close(out, expected, rtol=0, atol=0)
        out.sum().backward()
        grads.append(x.grad)
    for grad in grads[1:]:
        torch.testing.assert_close(grad, grads[0], rtol=0, atol=1e-12)
    assert grads[0].abs().sum() > 0


# ---- symmetries


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_shift_and_permutation(backend):
    features, _ = random_case(6)
    boxes = torch.tensor([[0, 10.3, 9.1, 21.0, 20.2], [1, 12.5, 8.2, 27.9, 15.0], [0, 16, 12, 25, 22.5]]).double()
    out = roi_align(features, boxes, (2, 3), 0.25, backend=backend)
    shifted = roi_align(
        features.roll((-1, -2), (2, 3)),
        boxes - torch.tensor([0, 8.0, 4, 8, 4]),
        (2, 3),
        0.25,
        backend=backend,
    )
    torch.testing.assert_close(shifted, out)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(roi_align(features, boxes[order], (2, 3), 0.25, backend=backend), out[order])
    halfway = roi_align(features, boxes + torch.tensor([0, 0.4, 0, 0.4, 0]), (2, 3), 0.25, backend=backend)
    assert (halfway - out).abs().max() > 1e-3  # a tenth of a cell shows: nothing is rounded


@pytest.mark.parametrize("op", OPS)
def test_list_of_boxes(op):
    features, boxes = random_case(8)
    per_image = [boxes[boxes[:, 0] == n, 1:] for n in (0, 1)]
    rows = torch.cat([boxes[boxes[:, 0] == n] for n in (0, 1)])
    torch.testing.assert_close(op(features, per_image, 2, 0.25), op(features, rows, 2, 0.25), rtol=0, atol=0)
    lonely = [torch.zeros(0, 4, dtype=torch.float64), per_image[1]]
    torch.testing.assert_close(op(features, lonely, 2, 0.25), op(features, boxes[boxes[:, 0] == 1], 2, 0.25))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("ratio", [0, 2])
def test_no_rois(op, backend, ratio):
    features, _ = random_case(9)
    features.requires_grad_()
    options = {} if op is roi_pool else {"sampling_ratio": ratio}
    out = op(features, torch.zeros(0, 5), (2, 3), 0.25, backend=backend, **options)
    assert out.shape == (0, 3, 2, 3) and out.dtype == torch.float64
    out.sum().backward()
    assert torch.equal(features.grad, torch.zeros_like(features))
    none = op(features.detach()[:0], [], 2, backend=backend)
    assert none.shape == (0, 3, 2, 2)


# ---- precision and torch integration


@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_keep_float32_geometry(backend, dtype):
    """At 2,000 pixels float16 knows only even numbers: the box must not be rounded to them."""
    row = torch.arange(250.0).repeat(1, 1, 3, 1).to(dtype)
    boxes = torch.tensor([[0, 1001.0, 4.0, 1005.0, 12.0]])
    out = roi_align(row, boxes, 1, 1 / 8, backend=backend)
    assert out.dtype == dtype
    assert abs(out.item() - (1003 / 8 - 0.5)) <= torch.finfo(dtype).eps * 64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(roi_align(row, boxes, 1, 1 / 8, backend=backend), out)


def test_operators_obey_torch():
    from mrcnn_scratch.roi_ops import _operators

    features, boxes = random_case(10)
    x = features.requires_grad_()
    torch.library.opcheck(_operators.align, (x, boxes, 2, 3, 0.25, 2, "aligned", "numba"))
    torch.library.opcheck(_operators.align_max, (x, boxes, 2, 3, 0.25, 2, "warp", "numba"))
    torch.library.opcheck(_operators.pool, (x, boxes, 2, 3, 0.25, "numba"))


def test_threads_do_not_change_a_bit():
    """Forward and backward are the same with one and with several threads (trap: atomics)."""
    g = torch.Generator().manual_seed(0)
    features = torch.randn(2, 24, 40, 56, generator=g)
    low = torch.rand(150, 2, generator=g) * 200 - 20
    boxes = torch.cat([torch.randint(0, 2, (150, 1), generator=g).float(), low, low + 60], dim=1)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(
                [
                    *forward_backward(roi_align, features, boxes, 7, 0.25, backend="numba"),
                    *forward_backward(roi_align, features, boxes, 7, 0.25, reduce="max", backend="numba"),
                    *forward_backward(roi_pool, features, boxes, 7, 0.25, backend="numba"),
                ]
            )
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_workers_forked_after_a_parallel_kernel():
    """GNU OpenMP kills a forked child that goes parallel after its parent did; a DataLoader's worker stays serial."""
    code = """
    import torch
    from torch.utils.data import DataLoader
    from mrcnn_scratch.roi_ops import roi_align
    torch.set_num_threads(2)
    x, boxes = torch.randn(1, 32, 32, 40), torch.tensor([[0, 1, 2, 20, 30.0]]).repeat(200, 1)
    class Pooled:
        def __len__(self): return 2
        def __getitem__(self, i): return roi_align(x, boxes, 7, backend="numba")
    here = Pooled()[0]
    workers = DataLoader(Pooled(), batch_size=None, num_workers=1, multiprocessing_context="fork")
    print([torch.equal(there, here) for there in workers])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=600)
    assert done.stdout.strip() == "[True, True]", done.stderr


def test_import_compiles_nothing_and_no_cache_is_needed(tmp_path):
    """The package imports without numba; and with a cache folder that cannot be written, kernels still run."""
    code = """
    import sys, mrcnn_scratch, mrcnn_scratch.roi_ops
    assert "numba" not in sys.modules
    import numba, torch
    njit = numba.njit
    def without_cache(*args, **options):
        if options.pop("cache", False):
            raise RuntimeError("cannot cache function: no locator available")
        return njit(*args, **options)
    numba.njit = without_cache
    out = mrcnn_scratch.nms(torch.tensor([[0, 0, 2, 1.0], [0, 0, 2, 1.0]]), torch.tensor([0.5, 0.9]), 0.5)
    print(out.tolist())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=600)
    assert done.stdout.strip() == "[1]", done.stderr


def test_without_numba_auto_warns_and_uses_torch(monkeypatch):
    import mrcnn_scratch.roi_ops as ops

    features, boxes = random_case(1)
    expected = roi_align(features, boxes, 2, 0.25, backend="torch")
    ops._numba_works.cache_clear()
    monkeypatch.delattr(ops, "numba_cpu", raising=False)
    monkeypatch.setitem(sys.modules, "mrcnn_scratch.roi_ops.numba_cpu", None)
    try:
        with pytest.warns(UserWarning, match="fall back to torch"):
            out = roi_align(features, boxes, 2, 0.25)
    finally:
        ops._numba_works.cache_clear()
    assert torch.equal(out, expected)


# ---- errors


NAN, BOX = float("nan"), [1.0, 1.0, 4.0, 3.0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (torch.tensor([[0, *BOX], [2, *BOX]]), r"boxes\[1\] has batch index 2.0.*2 images: use 0 to 1"),
        (torch.tensor([[-1, *BOX]]), r"boxes\[0\] has batch index -1"),
        (torch.tensor([[0.5, *BOX]]), r"batch index 0.5"),
        (torch.tensor([[0, *BOX], [0, 1, NAN, 2, 2]]), r"boxes\[1\].*not finite"),
        (torch.tensor([[0, 1, 1, float("inf"), 2]]), "not finite"),
        (torch.zeros(3, 4), r"shape \(R, 5\).*got shape \(3, 4\)"),
        (torch.zeros(3, 5, dtype=torch.int64), "float32 or float64, got torch.int64"),
        (torch.zeros(3, 5, dtype=torch.float16), r"call boxes.float\(\)"),
        ([torch.tensor([BOX])], "lists 1 images, features hold 2"),
        ([torch.tensor([BOX]), torch.zeros(1, 5)], r"boxes\[1\] must have shape \(R, 4\)"),
    ],
)
def test_bad_boxes(boxes, message, backend):
    for op in OPS:
        with pytest.raises(ValueError, match=message):
            op(torch.zeros(2, 1, 4, 5), boxes, 2, backend=backend)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(1, 4, 5)}, r"4-D tensor.*got shape \(1, 4, 5\)"),
        ({"features": torch.zeros(2, 1, 4, 5, dtype=torch.uint8)}, "floating point, got torch.uint8"),
        ({"features": torch.zeros(2, 1, 0, 5)}, "at least one cell"),
        ({"output_size": 0}, "output_size.*got 0"),
        ({"output_size": (2, -1)}, "output_size"),
        ({"output_size": (2.0, 2)}, "output_size"),
        ({"output_size": (1, 2, 3)}, "output_size"),
        ({"spatial_scale": 0}, "spatial_scale must be positive, got 0"),
        ({"spatial_scale": NAN}, "spatial_scale"),
        ({"sampling_ratio": 1.5}, "sampling_ratio"),
        ({"reduce": "sum"}, "'sum'"),
        ({"backend": "cuda"}, 'not part of this version; use "torch"'),
        ({"backend": "cupy"}, "'cupy'"),
    ],
)
def test_bad_arguments(change, message):
    good = {"features": torch.zeros(2, 1, 4, 5), "boxes": torch.tensor([[0, *BOX]]), "output_size": 2}
    with pytest.raises(ValueError, match=message):
        roi_align(**(good | change))
