"""The best point of each heatmap compiled for the CPU: the resized heatmap is searched while it is made, never stored.

Bicubic interpolation is separable. A heatmap's S rows are first stretched to the width of the box; each row of pixels
is then a blend of four of them, which is one pass over contiguous memory. The search has no branch either: each column
remembers its best value and row, and the columns meet at the end.
"""

import numpy as np
import torch
from numba import prange
from torch import Tensor

from ._numba import FASTMATH, compiled, run, threads

MOST = 1 << 20  # pixels a side: no image is larger, and a mistaken box shall not be searched for hours


def best_pixels(logits: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The largest value of each heatmap resized to rows x columns pixels, and where it is.

    The same as `F.interpolate(..., mode="bicubic", align_corners=False)` and an arg-max, to rounding: of values that
    differ by less another one may be the largest. Of equal ones it is the first, row by row. NaN is never the largest.

    Args:
        logits: (D, J, S, S) float32 or float64, on the CPU.
        rows, columns: (D,) int64, from 1 to `MOST`: the size in pixels for each detection.
    Returns: row (D, J) int64, column (D, J) int64, value (D, J) in the dtype of the logits.
    Raises: ValueError: for heatmaps or sizes that do not fit.
    """
    if logits.dim() != 4 or 0 in logits.shape[2:] or logits.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"logits must be float32 or float64 (D, J, S, S), got {logits.dtype} {tuple(logits.shape)}")
    D, J = logits.shape[:2]
    for name, sizes in (("rows", rows), ("columns", columns)):
        if sizes.shape != (D,):
            raise ValueError(f"{name} must be ({D},), one for each detection; got {tuple(sizes.shape)}")
        if D and not 1 <= int(sizes.min()) <= int(sizes.max()) <= MOST:
            index = int(((sizes < 1) | (sizes > MOST)).nonzero()[0])
            raise ValueError(f"{name}[{index}] is {int(sizes[index])}, must be 1 to {MOST} pixels; check that box")
    row, column = torch.empty((2, D, J), dtype=torch.int64)
    value = torch.empty((D, J), dtype=logits.dtype)
    arrays = (x.detach().contiguous().numpy() for x in (logits, rows, columns))
    work = int((rows * columns).sum()) * J
    run(_serial, _parallel, work, *arrays, row.numpy(), column.numpy(), value.numpy(), threads())
    return row, column, value


@compiled(fastmath=FASTMATH, error_model="numpy")
def _taps(cells, pixels, index, weight):
    """Per pixel the four cells around it, those beyond the border being the last ones, and their weights; a = -0.75.

    In the dtype of the heatmap, operation by operation as torch has it.
    """
    kind = weight.dtype.type
    scale, half, one = kind(cells) / kind(pixels), kind(0.5), kind(1)
    for i in range(pixels):
        place = (kind(i) + half) * scale - half  # the centres of cells lie at 0, 1, ...
        first = np.floor(place)
        t = place - first
        for k in range(4):
            index[i, k] = min(max(int(first) + k - 1, 0), cells - 1)
            x = t + one if k == 0 else t if k == 1 else one - t if k == 2 else kind(2) - t  # distance, in cells
            if k == 1 or k == 2:
                weight[i, k] = (kind(1.25) * x - kind(2.25)) * x * x + one
            else:
                weight[i, k] = ((kind(-0.75) * x + kind(3.75)) * x - kind(6)) * x + kind(3)


@compiled(fastmath=FASTMATH, error_model="numpy")
def _search(logits, d, j, h, w, yindex, yweight, xindex, xweight, wide, best, where):
    """-> row, column, value of heatmap [d, j]. wide (S, W), best (W,), where (W,) int32 are scratch."""
    kind = logits.dtype.type
    for y in range(logits.shape[2]):
        for x in range(w):
            left = xweight[x, 0] * logits[d, j, y, xindex[x, 0]] + xweight[x, 1] * logits[d, j, y, xindex[x, 1]]
            right = xweight[x, 2] * logits[d, j, y, xindex[x, 2]] + xweight[x, 3] * logits[d, j, y, xindex[x, 3]]
            wide[y, x] = left + right
    for x in range(w):
        best[x], where[x] = kind(-np.inf), 0
    for y in range(h):
        i, k, m, n = yindex[y, 0], yindex[y, 1], yindex[y, 2], yindex[y, 3]
        a, b, c, e = yweight[y, 0], yweight[y, 1], yweight[y, 2], yweight[y, 3]
        row = np.int32(y)
        for x in range(w):
            value = a * wide[i, x] + b * wide[k, x] + c * wide[m, x] + e * wide[n, x]
            better = value > best[x]
            best[x] = value if better else best[x]
            where[x] = row if better else where[x]
    column = 0
    for x in range(1, w):
        if best[x] > best[column] or (best[x] == best[column] and where[x] < where[column]):
            column = x
    return where[column], column, best[column]


@compiled(error_model="numpy")
def _search_part(logits, rows, columns, row, column, value, part, parts):
    """One of equal parts of all pixels of all heatmaps, whatever the sizes of the boxes; a heatmap is not divided."""
    D, J, S, T = logits.shape
    H, W, total = 1, 1, 0
    for d in range(D):
        H, W, total = max(H, rows[d]), max(W, columns[d]), total + rows[d] * columns[d] * J
    yindex, yweight = np.empty((H, 4), np.int64), np.empty((H, 4), logits.dtype)
    xindex, xweight = np.empty((W, 4), np.int64), np.empty((W, 4), logits.dtype)
    wide, best, where = np.empty((S, W), logits.dtype), np.empty(W, logits.dtype), np.empty(W, np.int32)
    begin, end, done = total * part // parts, total * (part + 1) // parts, 0
    for d in range(D):
        ready = False
        for j in range(J):
            if begin <= done < end:
                if not ready:
                    _taps(S, rows[d], yindex, yweight)
                    _taps(T, columns[d], xindex, xweight)
                    ready = True
                h, w = rows[d], columns[d]
                found = _search(logits, d, j, h, w, yindex, yweight, xindex, xweight, wide, best, where)
                row[d, j], column[d, j], value[d, j] = found
            done += rows[d] * columns[d]


@compiled(error_model="numpy")
def _serial(logits, rows, columns, row, column, value, parts):
    _search_part(logits, rows, columns, row, column, value, 0, 1)


@compiled(error_model="numpy", parallel=True)
def _parallel(logits, rows, columns, row, column, value, parts):
    for part in prange(parts):
        _search_part(logits, rows, columns, row, column, value, part, parts)
