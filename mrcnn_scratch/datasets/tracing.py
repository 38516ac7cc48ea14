"""A mask as COCO's polygons or as uncompressed run lengths."""

import numpy as np


def trace(mask: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Follow the edges between a mask's pixels and what is not the mask.

    mask: (H, W) bool.
    Returns outlines and holes, each a list of (n, 2) int64 x, y polygons in continuous pixels with right
    angles only. Pixels that touch at a corner only are separate outlines. One pixel at column 3, row 5
    gives the outline (3, 5), (4, 5), (4, 6), (3, 6) and no hole.
    """
    padded = np.pad(mask.astype(bool), 1)
    inside = padded[1:-1, 1:-1]
    ahead: dict[tuple[int, int], list[tuple[int, int]]] = {}  # corner -> directions of the edges that leave it
    for (dx, dy), (x, y), neighbour in (
        ((1, 0), (0, 0), padded[:-2, 1:-1]),  # top edges run right, with the mask on their right-hand side
        ((0, 1), (1, 0), padded[1:-1, 2:]),
        ((-1, 0), (1, 1), padded[2:, 1:-1]),
        ((0, -1), (0, 1), padded[1:-1, :-2]),
    ):
        for row, column in np.argwhere(inside & ~neighbour).tolist():
            ahead.setdefault((column + x, row + y), []).append((dx, dy))
    outlines, holes = [], []
    while ahead:
        loop = _walk(ahead)
        x, y = loop.T
        area = np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))
        (outlines if area > 0 else holes).append(loop)
    return outlines, holes


def _walk(ahead: dict[tuple[int, int], list[tuple[int, int]]]) -> np.ndarray:
    """Take one closed loop of edges out of the map; its corners (n, 2), without those on a straight line."""
    corner = start = next(iter(ahead))
    direction = first = ahead[start][0]
    corners = []
    while True:
        ahead[corner].remove(direction)
        if not ahead[corner]:
            del ahead[corner]
        corner = corner[0] + direction[0], corner[1] + direction[1]
        if corner == start:
            if direction != first:
                corners.append(corner)
            return np.array(corners)
        right = -direction[1], direction[0]
        ways = ahead[corner]
        turned = right if right in ways else ways[0]  # of two ways, the right turn stays with the same pixel
        if turned != direction:
            corners.append(corner)
        direction = turned


def run_lengths(mask: np.ndarray) -> dict:
    """Write a mask as COCO's uncompressed RLE: column by column, zeros first.

    mask: (H, W) bool.  Returns {"size": [H, W], "counts": [int, ...]}.
    """
    flat = np.concatenate([[False], mask.astype(bool).ravel(order="F")])
    edges = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()
    return {"size": list(mask.shape), "counts": counts}
