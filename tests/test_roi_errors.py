"""What the RoI ops refuse, and how they say what is wrong, and what to do; and that they need no cache folder."""

import subprocess
import sys
import textwrap

import pytest
import torch

from mrcnn_scratch.roi_ops import roi_align
from tests.roi_cases import BACKENDS, OPS

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
        ({"output_size": 7.0}, "output_size must be a positive int or a pair.*got 7.0"),
        ({"boxes": torch.zeros(2, 5).numpy()}, "boxes must be a tensor.*got ndarray"),
        ({"features": torch.zeros(2, 1, 4, 5).numpy()}, "4-D tensor .*got ndarray$"),
        ({"output_size": (1, 2, 3)}, "output_size"),
        ({"spatial_scale": 0}, "spatial_scale must be positive, got 0"),
        ({"spatial_scale": NAN}, "spatial_scale"),
        ({"sampling_ratio": 1.5}, "sampling_ratio"),
        ({"reduce": "sum"}, "'sum'"),
        ({"aligned": "legacy"}, "aligned must be one of True, False, got 'legacy'"),
        ({"backend": "cuda"}, "computes on cuda tensors, features lie on cpu"),
        ({"backend": "cupy"}, "'cupy'"),
    ],
)
def test_bad_arguments(change, message):
    good = {"features": torch.zeros(2, 1, 4, 5), "boxes": torch.tensor([[0, *BOX]]), "output_size": 2}
    with pytest.raises(ValueError, match=message):
        roi_align(**(good | change))


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
