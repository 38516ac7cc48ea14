"""Where the samples of a RoI lie, what each reads, and how both move with the corners of the box.

Two coordinate systems meet here. *Continuous*: cell i covers [i, i + 1), its centre is at i + 0.5. *Index*: the centre
of cell i is at i, which is what interpolation wants. index = continuous - 0.5.
"""

import math

import numpy as np


def round_half_away(x: float) -> float:
    """C's `round`: 0.5 -> 1 and -0.5 -> -1. Python's own rounds halves to the even neighbour."""
    size = abs(x)
    whole = math.floor(size)
    whole += size - whole >= 0.5
    return type(x)(whole if x >= 0 else -whole)  # in the precision of x


def align_region(low: float, high: float, spatial_scale: float, convention: str) -> tuple[float, float, bool]:
    """Start and size of a RoI along one axis, in index space. low, high: x1, x2 or y1, y2 in image pixels.

    "aligned": [32, 80] at stride 16 is 2.0 to 5.0 continuous, so it starts at index 1.5 and is 3 cells long.
    "legacy": the 0.5 is forgotten, start 2.0; and a RoI is at least one cell long.
    "warp": cells 2 to 5 inclusive, as RoIPool rounds: start 1.5, 4 cells long; at least one.
    "mnc": the same 4 cells, but sampling starts at the centre of the first: start 2.0.

    Also returned: whether the size follows the corners. It does not where it is held at one cell.
    """
    low, high = low * spatial_scale, high * spatial_scale
    if convention == "aligned":
        start, end = low - 0.5, high - 0.5
        return start, end - start, True
    if convention == "legacy":
        start, size = low, high - low
    else:
        low, high = round_half_away(low), round_half_away(high)
        start, size = low if convention == "mnc" else low - 0.5, high - low + 1
    return start, np.maximum(size, 1), bool(size >= 1)


def axis_samples(
    low: float, high: float, bins: int, p: int, spatial_scale: float, sampling_ratio: int, convention: str
) -> list[tuple[float, float]]:
    """The samples of bin p along one axis, as (v, t): v in index space; t from 0 at the RoI's start to 1 at its end.

    A bin is cut into n equal parts, and each is read at its middle; by MNC's layer at its beginning. n is the sampling
    ratio or, if that is 0, the number of cells in a bin, rounded up. The RoI [1, 3], aligned, in 1 bin of 2 samples:
    it starts at 0.5 and is 2 long, so v = 1 at t = 1/4, and v = 2 at t = 3/4.
    """
    start, size, _ = align_region(low, high, spatial_scale, convention)
    bin_size = size / bins
    n = sampling_ratio if sampling_ratio > 0 else math.ceil(bin_size)
    offset = 0 if convention == "mnc" else 0.5
    samples = []
    for i in range(n):  # none, if the size is 0 or less
        v = start + p * bin_size + (i + offset) * bin_size / n  # = start + t * size, rounded as torchvision rounds it
        samples.append((v, (p + (i + offset) / n) / bins))
    return samples


def counts(v: float, length: int, convention: str) -> bool:
    """Whether a sample is near enough to the map's cells 0..length-1; one that is not is a 0.

    RoIAlign allows a whole cell beyond the outermost centres, and includes the edge; MNC allows less than half a cell.
    """
    return -0.5 < v < length - 0.5 if convention == "mnc" else -1 <= v <= length


def neighbours(v: float, length: int) -> tuple[int, int, float]:
    """The two cells that v lies between, and the fraction of the way from the first to the second.

    v = 2.25 is a quarter of the way from cell 2 to cell 3. Beyond the outermost centres the outermost cell holds.
    """
    v = min(max(v, 0), length - 1)
    cell = int(v)
    return cell, min(cell + 1, length - 1), v - cell


def bilinear(y: float, x: float, H: int, W: int, convention: str) -> list[tuple[int, int, float]]:
    """The four cells around a point in index space, as (row, column, weight); none where it is off the map.

    Halfway between the centres of cells (0, 0) and (0, 1): `bilinear(0, 0.5, 2, 2, "aligned")` weighs both with 0.5.
    (Spatial Transformer Networks, eq. 5, with RoIAlign's rule for the border.)
    """
    if not (counts(y, H, convention) and counts(x, W, convention)):
        return []
    top, bottom, fy = neighbours(y, H)
    left, right, fx = neighbours(x, W)
    return [
        (top, left, (1 - fy) * (1 - fx)),
        (top, right, (1 - fy) * fx),
        (bottom, left, fy * (1 - fx)),
        (bottom, right, fy * fx),
    ]


def bin_samples(box, p, q, output_size, size, spatial_scale, sampling_ratio, convention) -> list[list[tuple]]:
    """The samples of bin (p, q) of a box [x1, y1, x2, y2], in reading order: lists of (row, column, weight)."""
    (x1, y1, x2, y2), (h, w), (H, W) = box, output_size, size
    rows = axis_samples(y1, y2, h, p, spatial_scale, sampling_ratio, convention)
    columns = axis_samples(x1, x2, w, q, spatial_scale, sampling_ratio, convention)
    return [bilinear(y, x, H, W, convention) for y, _ in rows for x, _ in columns]
