"""RoIPool, RoIWarp and RoIAlign: three ways to read a fixed-size feature out of a box, and what each rounds.

| | corners | bins | value of a bin |
|---|---|---|---|
| RoIPool (Fast R-CNN, section 2.1) | rounded to cells | rounded to cells | the largest cell |
| RoIWarp (MNC; Mask R-CNN, section 3) | rounded to cells | exact | bilinear samples |
| RoIAlign (Mask R-CNN, section 3) | exact | exact | bilinear samples |

Backends: "reference" (plain loops, to be read), "torch" (vectorised, any device), "numba" (compiled, CPU), "cuda"
(compiled, NVIDIA GPU). "auto" takes the compiled one of the device, and torch where there is none.
"""

import functools
import warnings

import torch
from torch import Tensor

from . import vectorized
from ._validate import (
    as_output_size,
    as_rows,
    check_boxes,
    check_choice,
    check_features,
    check_sampling_ratio,
    check_scale,
)

__all__ = ["roi_align", "roi_pool", "roi_warp", "warm_up"]


def roi_align(
    features: Tensor,
    boxes: Tensor | list[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 2,
    aligned: bool = True,
    reduce: str = "mean",
    backend: str = "auto",
    box_gradients: bool = False,
) -> Tensor:
    """Sample each RoI bilinearly at exact places, and average the samples of each bin (Mask R-CNN, section 3).

    The 5x5 ramp `torch.arange(25.).view(1, 1, 5, 5)` pooled from the box [1, 1, 3, 3] to 4x4 begins 4.5, 5.0, 5.5,
    6.0: the first sample lies at (1.25, 1.25), a quarter cell left of and above the centre of cell (1, 1), which
    holds 6, so it reads 6 - 0.25 - 5 * 0.25 = 4.5.

    A sample more than half a cell off the map counts as 0; one nearer, or in the outer half of an edge cell, takes
    that cell's value.

    Args:
        features: (N, C, H, W) float, the map to read from.
        boxes: (R, 5) float32 or float64 [batch index, x1, y1, x2, y2], or a list of N (R_i, 4), in image pixels;
            continuous: pixel i covers [i, i + 1). Filter empty boxes first: one with x2 < x1 is sampled mirrored, or,
            if sampling is adaptive, has no samples and gives 0.
        output_size: h = w, or (h, w): bins.
        spatial_scale: cells per image pixel, 1 / stride.
        sampling_ratio: samples per bin and axis; 0 or less: adaptive, ceil(RoI size in cells / bins) for each RoI.
        aligned: True reads the continuous coordinate x at index x - 0.5, since cell 0's centre lies at 0.5. False is
            the convention before Detectron2 (torchvision's default): no shift, and RoIs at least one cell large.
        reduce: "mean" or "max" of a bin's samples.
        backend: "auto" (numba on a CPU, cuda on an NVIDIA GPU, else torch), "reference", "torch", "numba" or "cuda".
        box_gradients: let the boxes' corners receive a gradient too. The paper does not ("approximate joint training",
            Faster R-CNN, section 3.2), so False. Where a sample crosses from one cell to the next the value has a
            kink, there the gradient is the right-hand one; adaptive counts are taken as constants.
    Returns: (R, C, h, w) in the features' dtype and layout (plain or channels_last).
    Raises: ValueError for any argument that is not as above; RuntimeError for a backend that this machine has not. On a
        GPU with backend "cuda" the values in boxes are not checked, since that would wait for the device: a RoI
        with a batch index out of range comes out as NaN.
    """
    check_choice("aligned", aligned, (True, False))
    options = "aligned" if aligned else "legacy", reduce, backend, box_gradients
    return _align(features, boxes, output_size, spatial_scale, sampling_ratio, *options)


def roi_warp(
    features: Tensor,
    boxes: Tensor | list[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 2,
    reduce: str = "mean",
    backend: str = "auto",
    sampler: str = "align",
    box_gradients: bool = False,
) -> Tensor:
    """RoIAlign's sampling of the cells that RoIPool would pool: quantised corners, bilinear values.

    Mask R-CNN's Table 2c compares RoIPool, RoIWarp and RoIAlign to find what matters: the alignment. So RoIWarp here
    shares all but one thing with each neighbour. With RoIPool it shares the region: with x1 and x2 in cells,
    start = round(x1) and end = round(x2), halves away from zero, that is cells start..end *inclusive*, which cover
    [start, end + 1), at least one cell. With RoIAlign it shares the sampling of that region:

        roi_warp(x, box) == roi_align(x, [start_x, start_y, end_x + 1, end_y + 1])        (spatial_scale = 1)

    exactly. So the two agree on a box that is the extent of its rounded cells, not on one whose corners are whole
    numbers: RoIPool reads the corners 2 and 5 as the names of cells, and pools the cells 2, 3, 4, 5, where RoIAlign
    reads [2, 5). That widening by a cell is a part of RoIPool's quantisation, so RoIWarp has it too.

    `sampler="mnc"` is the layer as MNC coded it instead: cell `start` is where sampling begins, not half a cell before
    it, and each of a bin's sampling_ratio x sampling_ratio parts is read at its top left corner; a sample half a
    cell or more off the map counts as 0. MNC's layer is sampling_ratio=1; its warping to twice the size followed by
    max pooling is sampling_ratio=2, reduce="max".

    With box_gradients, which are MNC's point, rounding is passed straight through: the corners receive the gradient of
    the rounded region's corners, as in MNC.

    Other arguments, result and errors: as in `roi_align`. A shift that crosses no rounding edge changes nothing.
    """
    check_choice("sampler", sampler, ("align", "mnc"))
    options = "warp" if sampler == "align" else "mnc", reduce, backend, box_gradients
    return _align(features, boxes, output_size, spatial_scale, sampling_ratio, *options)


def roi_pool(
    features: Tensor,
    boxes: Tensor | list[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    backend: str = "auto",
) -> Tensor:
    """The largest feature in each bin, with corners and bins rounded to whole cells (Fast R-CNN, section 2.1).

    Corners are rounded, halves away from zero, and both belong to the RoI: x from 1 to 3 is 3 cells wide. In 2 bins,
    these 1.5 cells wide, the first takes floor(0) to ceil(1.5), the second floor(1.5) to ceil(3): both hold the
    middle cell. A bin without cells, off the map, gives 0 and has no gradient. Boxes have none: a maximum of whole
    cells does not follow its corners.

    Arguments, result and errors: as in `roi_align`.
    """
    features, rows, size, scale = _arguments(features, boxes, output_size, spatial_scale)
    chosen, x, rows = _choose(features, rows.detach(), backend)
    if chosen == "torch":
        out = vectorized.roi_pool(x, rows, size, scale)
    else:
        from . import _operators

        out, _ = _operators.pool(x, rows, *size, scale, chosen)
    return out.to(features.dtype)


def warm_up(device: torch.device, dtype: torch.dtype = torch.float32, sampling_ratios: tuple[int, ...] = (2, 0)) -> int:
    """Compiles a GPU's kernels now, so that none stalls a training step; returns how many, 0 where none are used.

    Args:
        device: where the features will be; only an NVIDIA GPU has kernels that are compiled one by one.
        dtype: of the features; 16 bits are computed in float32.
        sampling_ratios: those that will be asked for.
    """
    if torch.device(device).type != "cuda" or _missing("cuda", warn=False):
        return 0
    from . import numba_cuda

    return numba_cuda.warm_up(dtype if dtype == torch.float64 else torch.float32, sampling_ratios)


def _align(
    features, boxes, output_size, spatial_scale, sampling_ratio, convention, reduce, backend, box_gradients
) -> Tensor:
    features, rows, size, scale = _arguments(features, boxes, output_size, spatial_scale)
    check_choice("reduce", reduce, ("mean", "max"))
    check_sampling_ratio(sampling_ratio)
    chosen, x, rows = _choose(features, rows if box_gradients else rows.detach(), backend)
    if chosen == "torch":
        out = vectorized.roi_align(x, rows, size, scale, sampling_ratio, convention, reduce)
    else:
        from . import _operators

        options = (x, rows, *size, scale, sampling_ratio, convention, chosen)
        out = _operators.align(*options) if reduce == "mean" else _operators.align_max(*options)[0]
    return out.to(features.dtype)


def _arguments(features, boxes, output_size, spatial_scale):
    check_features(features)
    return features, as_rows(boxes, features), as_output_size(output_size), check_scale(spatial_scale)


def _choose(features: Tensor, boxes: Tensor, backend: str) -> tuple[str, Tensor, Tensor]:
    """The backend to run, and features and boxes in the precision it computes in: never below float32."""
    check_choice("backend", backend, ("auto", "reference", "torch", "numba", "cuda"))
    device = features.device.type
    if backend == "auto":
        compiled = {"cpu": "numba", "cuda": "cuda"}.get(device)
        backend = compiled if compiled and not _missing(compiled) else "torch"
    elif backend != "torch":
        needed = "cuda" if backend == "cuda" else "cpu"
        if device != needed:
            raise ValueError(
                f'backend "{backend}" computes on {needed} tensors, features lie on {features.device}: '
                'move them, or use backend="torch", which runs on any device'
            )
        if reason := backend in ("numba", "cuda") and _missing(backend, warn=False):
            raise RuntimeError(f'backend "{backend}" is not available: {reason}; backend="torch" always is')
    dtype = features.dtype if features.dtype == torch.float64 else torch.float32
    boxes = boxes.to(dtype)
    if backend == "torch" and not torch.compiler.is_compiling():
        check_boxes(boxes, features.shape[0])
    return backend, features.to(dtype), boxes


def _missing(backend: str, warn: bool = True) -> str:
    """Why a compiled backend cannot be used here, "" if it can; says so once where the choice was ours."""
    return _look_for(backend, warn)


# torch.compile asks once instead of reading this function. torch.compiler.assume_constant_result sets this mark, and
# imports all of torch._dynamo for it: two seconds, for everybody who imports this package.
_missing._dynamo_marked_constant = True


@functools.cache
def _look_for(backend: str, warn: bool) -> str:
    try:
        if backend == "numba":
            from . import numba_cpu  # noqa: F401
        else:
            from .. import _numba_cuda

            _numba_cuda.require()
    except (ImportError, RuntimeError) as error:
        reason = str(error)
        if warn:
            warnings.warn(f"RoI ops fall back to torch, backend {backend!r} is missing: {reason}", stacklevel=6)
        return reason
    return ""
