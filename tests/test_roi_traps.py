"""The traps of RoI ops into which other implementations fell, 1 to 17, and where each has its test.

 1  half pixel                                test_roi_align: test_trap_01_*
 2  ... costs AP on small objects             test_trap_02_* here and in test_roi_align
 3  adaptive sampling per RoI and axis        test_roi_align: test_trap_03_*
 4  border rule                               test_roi_align, test_roi_warp: test_trap_04_*; test_roi_peers
 5  backward that clamps unlike the forward   test_roi_gradients: test_trap_05_*, test_gradcheck
 6  degenerate RoIs                           test_roi_align: test_trap_06_*
 7  RoIPool's rounding                        test_roi_pool: test_trap_07_*
 8  ties                                      test_roi_gradients: test_trap_08_*
 9  RoIWarp without the rounding              test_roi_warp: test_trap_09_*
10  crop_and_resize is not RoIAlign           test_trap_10_* here
11  gradients by the boxes, by accident       test_roi_box_gradients: test_trap_11_*; test_model: the RPN receives none
12  sums whose order the threads decide       test_trap_12_* here; on a GPU: test_cuda_gpu_torch
13  corners in half precision                 test_trap_13_* here; test_roi_integration: autocast
14  order of RoIs over pyramid levels         test_levels: test_trap_14_*
15  spatial_scale cut down to a whole power   test_levels: test_trap_15_*
16  Numba's simulator poses as a GPU          test_cuda_simulator: a process of its own; cudasim
17  kernels on another stream than torch's    test_cuda_gpu_torch: needs a GPU
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from mrcnn_scratch.presets import model_config
from mrcnn_scratch.roi_ops import roi_align, roi_pool
from tests.roi_cases import BACKENDS, OPS, SAMPLERS, boxes_of, gradients


def test_every_trap_has_its_tests():
    """The table above names files and tests that are there."""
    rows = re.findall(r"^ ?(\d+)  (.+)$", __doc__, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 18))
    here, named = Path(__file__).parent, 0
    for number, row in rows:
        files = [*re.findall(r"\btest_(?!trap)\w+", row)]
        paths = [here / f"{file}.py" for file in files if not file.startswith("test_gradcheck")]
        assert all(path.is_file() for path in paths), row
        for trap in re.findall(r"test_trap_\d\d_", row):
            assert int(trap[10:12]) == int(number)
            sources = [path.read_text(encoding="utf-8") for path in [*paths, Path(__file__)]]
            assert any(f"def {trap}" in source for source in sources), row
            named += 1
    assert named >= 12


def test_trap_02_both_conventions_are_a_setting():
    """Half a cell is little at COCO's size and a lot at ours: aligned by default, legacy for those who compare."""
    assert model_config("tiny-fpn").roi_aligned and model_config("tiny-fpn", "detectron2").roi_aligned
    assert not model_config("tiny-fpn", "torchvision").roi_aligned
    assert not model_config("tiny-fpn", roi_aligned=False).roi_aligned


def crop_and_resize(image, box, size) -> np.ndarray:
    """TensorFlow's op on one map (H, W). box: in units of the last index; its corners are the crop's corner pixels."""
    (H, W), (x1, y1, x2, y2) = image.shape, box
    ys = np.linspace(y1 * (H - 1), y2 * (H - 1), size[0])
    xs = np.linspace(x1 * (W - 1), x2 * (W - 1), size[1])
    top, left = np.floor(ys).astype(int), np.floor(xs).astype(int)
    fy, fx = (ys - top)[:, None], (xs - left)[None]
    padded = np.pad(image, ((0, 1), (0, 1)), mode="edge")
    rows = padded[top] * (1 - fy) + padded[top + 1] * fy
    return rows[:, left] * (1 - fx) + rows[:, left + 1] * fx


@pytest.mark.parametrize("backend", BACKENDS)
def test_trap_10_crop_and_resize_is_not_roi_align(backend):
    """One sample a bin, the outer ones on the corners of the box, no half pixel: no RoI op reads there. Only of a box
    shrunk by half a bin on each side, and moved by half a pixel, it is RoIAlign with one sample."""
    image = np.random.default_rng(0).normal(size=(8, 11)).cumsum(axis=0).cumsum(axis=1)
    x1, y1, x2, y2 = box = np.array([1.3, 0.9, 8.2, 5.8])
    size, scale = (3, 4), np.array([10, 7, 10, 7])
    features, rois = torch.from_numpy(image)[None, None], boxes_of(box.tolist())
    cropped = torch.from_numpy(crop_and_resize(image, box / scale, size))
    for op in SAMPLERS.values():
        for ratio in (1, 2):
            assert (op(features, rois, size, 1.0, ratio, backend=backend)[0, 0] - cropped).abs().max() > 0.3
    bin_y, bin_x = (y2 - y1) / size[0], (x2 - x1) / size[1]
    centres = np.array([x1 + bin_x / 2, y1 + bin_y / 2, x2 - bin_x / 2, y2 - bin_y / 2]) - 0.5
    cropped = torch.from_numpy(crop_and_resize(image, centres / scale, size))
    torch.testing.assert_close(roi_align(features, rois, size, sampling_ratio=1, backend=backend)[0, 0], cropped)


@pytest.mark.parametrize("channels_last", [False, True])
def test_trap_12_threads_do_not_change_a_bit(channels_last):
    """Forward and backward, by features and by boxes, are the same with one thread and with several: no atomics."""
    g = torch.Generator().manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    features = torch.randn(2, 24, 40, 56, generator=g).contiguous(memory_format=layout)
    low = torch.rand(150, 2, generator=g) * 200 - 20
    boxes = torch.cat([torch.randint(0, 2, (150, 1), generator=g).float(), low, low + 60], dim=1)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            options = dict(backend="numba", box_gradients=True)
            mean = gradients(roi_align, features, boxes, 7, 0.25, **options)
            largest = gradients(roi_align, features, boxes, 7, 0.25, reduce="max", **options)
            results.append([*mean, *largest, *gradients(roi_pool, features, boxes, 7, 0.25, backend="numba")])
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        for one, other in zip(results[0], others, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_trap_13_half_precision_features_keep_float32_geometry(backend, dtype):
    """At 2,000 pixels float16 knows only even numbers: the box must not be rounded to them."""
    row = torch.arange(250.0).repeat(1, 1, 3, 1).to(dtype)
    boxes = torch.tensor([[0, 1001.0, 4.0, 1005.0, 12.0]])
    out = roi_align(row, boxes, 1, 1 / 8, backend=backend)
    assert out.dtype == dtype
    assert abs(out.item() - (1003 / 8 - 0.5)) <= torch.finfo(dtype).eps * 64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(roi_align(row, boxes, 1, 1 / 8, backend=backend), out)


@pytest.mark.parametrize("op", OPS)
def test_trap_13_boxes_in_half_precision_are_refused(op):
    """They have lost their corners before they come here."""
    with pytest.raises(ValueError, match=r"float16: half precision moves corners.*call boxes.float\(\)"):
        op(torch.zeros(1, 1, 4, 4), torch.zeros(1, 5).half(), 2)
