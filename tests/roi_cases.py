"""What the tests of the RoI ops share: cases that find faults, a way to run an op both ways, and one more peer."""

from functools import partial
from math import ceil
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample, max_pool2d

from mrcnn_scratch.roi_ops import roi_align, roi_pool, roi_warp
from mrcnn_scratch.roi_ops.reference.sampling import axis_samples

BACKENDS = ("reference", "torch", "numba")
FAST = ("torch", "numba")
OPS = (roi_align, roi_warp, roi_pool)
SAMPLERS = {  # called with features, boxes, output_size, spatial_scale, sampling_ratio, and the others by name
    "aligned": roi_align,
    "legacy": partial(roi_align, aligned=False),
    "warp": roi_warp,
    "mnc": partial(roi_warp, sampler="mnc"),
}


# ---- cases


def ramp() -> Tensor:
    """Detectron2's 5x5 map: 1 more a column, 5 more a row."""
    return torch.arange(25.0, dtype=torch.float64).view(1, 1, 5, 5)


def boxes_of(*rows) -> Tensor:
    """Boxes of image 0."""
    return torch.tensor([[0, *row] for row in rows], dtype=torch.float64)


def random_case(seed: int, R: int = 12, dtype=torch.float64) -> tuple[Tensor, Tensor]:
    """Features (2, 3, 7, 11) and RoIs, at stride 4, inside, outside and across the border; some thin, some inverted."""
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 3, 7, 11, generator=g, dtype=torch.float64)
    corner = torch.rand(R, 2, generator=g, dtype=torch.float64) * torch.tensor([64.0, 48.0]) - 12
    size = torch.rand(R, 2, generator=g, dtype=torch.float64) * torch.tensor([40.0, 30.0]) - 2
    boxes = torch.cat([corner, corner + size], dim=1)
    snapped = torch.rand(R, 1, generator=g) < 0.3  # to quarter cells: ties, cell borders, the border rule's edge
    boxes = torch.where(snapped, boxes.round(), boxes)
    index = torch.randint(0, 2, (R, 1), generator=g).double()
    return features.to(dtype), torch.cat([index, boxes], dim=1).to(dtype)


class Case(NamedTuple):
    features: Tensor  # (N, C, H, W)
    boxes: Tensor  # (R, 5)
    size: tuple[int, int]
    scale: float

    def to(self, dtype) -> "Case":
        return self._replace(features=self.features.to(dtype), boxes=self.boxes.to(dtype))


def corners(length: int, first: int = -3):
    """The low and high corner of a RoI along an axis of so many cells, in cells, from cell `first` to 3 beyond the map.

    Half of them on whole, half and quarter cells, where samples meet cells' centres and the border rule's edge and
    RoIPool's corners are halfway; the others anywhere. Sizes: none, part of a cell, beyond the map, negative.
    """
    lows = sorted((k / 4 for k in range(4 * first, 4 * length + 12)), key=abs)  # hypothesis shrinks to the first
    sizes = [k / 4 for k in range(4 * length + 12)] + [-0.5, -1.0, -3.25]
    exact = [(low, low + size) for low in lows for size in sizes]
    return st.sampled_from(exact) | st.tuples(st.floats(first, length + 3), st.floats(first, length + 3))


@st.composite
def cases(draw, most: int = 40, first: int = -3, least: int = 1) -> Case:
    """Up to two small maps of normal numbers, of at least `least` cells a side, and up to `most` RoIs, in float64."""
    N, H, W = draw(st.integers(1, 2)), draw(st.integers(least, 6)), draw(st.integers(least, 7))
    scale = draw(st.sampled_from([1.0, 0.25, 0.3]))  # 0.3: corners miss the cells' edges by a last bit
    roi = st.tuples(st.integers(0, N - 1), corners(W, first), corners(H, first))
    rois = [draw(roi) for _ in range(draw(st.integers(0, most)))]  # a list's length would seldom be large
    rows = [[n, x1 / scale, y1 / scale, x2 / scale, y2 / scale] for n, (x1, x2), (y1, y2) in rois]
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    features = torch.randn(N, 2, H, W, generator=g, dtype=torch.float64)
    size = draw(st.sampled_from([(1, 1), (2, 3), (3, 2)]))
    return Case(features, torch.tensor(rows, dtype=torch.float64).view(-1, 5), size, scale)


def sample_places(case: Case, ratio: int, convention: str) -> list[list[tuple[float, int]]]:
    """For each RoI all its samples' places in index space, of both axes, as (v, cells of that axis)."""
    (H, W), (h, w) = case.features.shape[2:], case.size
    return [
        [
            (v, length)
            for low, high, bins, length in ((y1, y2, h, H), (x1, x2, w, W))
            for p in range(bins)
            for v, _ in axis_samples(low, high, bins, p, case.scale, ratio, convention)
        ]
        for _, x1, y1, x2, y2 in case.boxes.tolist()
    ]


def near_border_edge(v: float, length: int, convention: str) -> bool:
    """Whether a rounding error may decide if the sample counts."""
    edges = (-0.5, length - 0.5) if convention == "mnc" else (-1, length)
    return any(abs(v - edge) < 1e-4 for edge in edges)


# ---- forward and backward


def gradients(op, features: Tensor, boxes: Tensor, *args, **options) -> tuple[Tensor, ...]:
    """(result, by the features) and, with box_gradients=True, (by the boxes), for a random gradient of the result."""
    x, boxes = features.clone().requires_grad_(), boxes.clone()
    inputs = [x, boxes.requires_grad_()] if options.get("box_gradients") else [x]
    out = op(x, boxes, *args, **options)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out.dtype)
    return out.detach(), *torch.autograd.grad(out, inputs, weights)


def assert_all_close(mine, theirs, tolerance: float) -> None:
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


# ---- a peer: torch's grid_sample


def _places(low: float, high: float, nudge, bins: int, ratio: int, convention: str) -> tuple[Tensor, int]:
    """Where an axis's bins * n samples lie in index space, and n. low, high: in cells; nudge: added to both."""
    if convention == "aligned":  # torchvision shifts both corners first: it decides whether a tiny RoI has samples
        size = (high - 0.5) - (low - 0.5)
    else:
        size = high - low + (convention in ("warp", "mnc"))
    if convention == "aligned" or size >= 1:
        nudged = size + nudge[1] - nudge[0]
    else:
        size = nudged = 1.0
    n = ratio if ratio > 0 else max(ceil(size / bins), 0)
    t = (torch.arange(bins * n, dtype=torch.float64) + (0 if convention == "mnc" else 0.5)) / max(bins * n, 1)
    start = low + nudge[0] - (0.5 if convention in ("aligned", "warp") else 0)
    return start + t * nudged, n


def _whole(x: float) -> float:
    return float(int(abs(x) + 0.5)) * (1 if x >= 0 else -1)


def by_grid_sample(features, boxes, size, scale, ratio, convention, reduce="mean", nudge=(0, 0, 0, 0)) -> Tensor:
    """What the RoI ops pool, by `torch.nn.functional.grid_sample`: (R, C, h, w), float64.

    nudge moves x1, y1, x2, y2, in cells, *after* they were rounded: how the result changes with it is what a gradient
    passed straight through the rounding must say.
    """
    (C, H, W), out = features.shape[1:], []
    for n, *box in boxes.tolist():
        x1, y1, x2, y2 = (_whole(c * scale) if convention in ("warp", "mnc") else c * scale for c in box)
        y, ny = _places(y1, y2, (nudge[1], nudge[3]), size[0], ratio, convention)
        x, nx = _places(x1, x2, (nudge[0], nudge[2]), size[1], ratio, convention)
        if ny * nx == 0:
            out.append(features.new_zeros(C, *size))
            continue
        reach = 0.5 - 1e-9 if convention == "mnc" else 1 + 1e-9  # beyond the outermost centres
        inside_y, inside_x = ((v >= -reach) & (v <= length - 1 + reach) for v, length in ((y, H), (x, W)))
        points = torch.broadcast_tensors(2 * (x + 0.5) / W - 1, (2 * (y + 0.5) / H - 1)[:, None])
        grid = torch.stack(points, dim=-1)[None]
        values = grid_sample(features[int(n), None], grid, padding_mode="border", align_corners=False)[0]
        pool = avg_pool2d if reduce == "mean" else max_pool2d
        out.append(pool(values * (inside_y[:, None] & inside_x), (ny, nx)))
    return torch.stack(out) if out else features.new_zeros(0, C, *size)
