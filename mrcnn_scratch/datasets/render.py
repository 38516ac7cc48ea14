"""Sprites: an object drawn once at 4x4 samples a pixel, then painted, occluded and measured.

All that an annotation says (mask, box, visibility) is read off the samples that the picture is made of, so
labels and pixels cannot disagree by more than a sample, a quarter of a pixel.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

SAMPLES = 4  # samples per pixel along each axis
_UNIT = 240 // SAMPLES**2  # 15: the mean over a block of 0s and 240s is then exactly 15 * count, without rounding


class Blob(NamedTuple):
    """One painted part: a polygon, or with a radius a disc (1 point) or a capsule (2 points)."""

    part: int  # row of the palette; 0 erases (a hole)
    points: np.ndarray  # (n, 2) float64 x, y
    radius: float = 0.0  # same unit as the points; 0 means "fill the polygon"


@dataclass
class Sprite:
    """A drawn object in its own window, before it is placed in an image.

    parts: (4h, 4w) uint8, the part on top at each sample, 0 where the object is not.
    palette: (P, 3) uint8 RGB of each part.
    keypoints: (J, 2) float64 x, y in pixels from the window's top left corner; (0, 2) for a plain shape.
    self_visible: (J,) bool, False where another part of the same object hides the joint.
    """

    parts: np.ndarray
    palette: np.ndarray
    keypoints: np.ndarray
    self_visible: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the window in pixels."""
        return self.parts.shape[0] // SAMPLES, self.parts.shape[1] // SAMPLES


def extent(blobs: list[Blob]) -> np.ndarray:
    """Tight box of the painted parts.

    blobs: parts in any one unit; holes (part 0) do not count.
    Returns (4,) float64 xyxy in the same unit.
    """
    solid = [blob for blob in blobs if blob.part]
    low = np.min([blob.points.min(0) - blob.radius for blob in solid], axis=0)
    high = np.max([blob.points.max(0) + blob.radius for blob in solid], axis=0)
    return np.concatenate([low, high])


def draw_sprite(
    blobs: list[Blob],
    palette: np.ndarray,
    size: float,
    limit: tuple[float, float],
    phase: tuple[float, float],
    joints: np.ndarray | None = None,
) -> Sprite:
    """Scale parts to a wanted size and draw them at 4x4 samples a pixel.

    blobs: parts in painting order, any unit.  palette: (P, 3) uint8.
    size: wanted sqrt(box width * box height) in pixels; less where the box would exceed the limit.
    limit: height, width in pixels.
    phase: x, y in [0, 1) pixel, where in its first pixel the box starts, so that edges fall anywhere in one.
    joints: (J, 2) in the blobs' unit; joint j shows while the sample at it still carries part j + 1.
    """
    x0, y0, x1, y1 = extent(blobs)
    scale = min(size / np.sqrt((x1 - x0) * (y1 - y0)), limit[0] / (y1 - y0), limit[1] / (x1 - x0))
    shift = np.array(phase) - scale * np.array([x0, y0])
    width, height = (int(np.ceil(p + scale * s)) for p, s in zip(phase, (x1 - x0, y1 - y0), strict=True))
    canvas = Image.new("L", (width * SAMPLES, height * SAMPLES))
    pen = ImageDraw.Draw(canvas)
    for part, points, radius in blobs:
        # PIL's coordinates are indices of samples, whose centres are at i + 0.5
        _paint(pen, part, (points * scale + shift) * SAMPLES - 0.5, radius * scale * SAMPLES)
    parts = np.array(canvas)
    if joints is None:
        return Sprite(parts, palette, np.zeros((0, 2)), np.zeros(0, bool))
    keypoints = joints * scale + shift
    column, row = np.floor(keypoints * SAMPLES).astype(int).T
    inside = (column >= 0) & (row >= 0) & (column < parts.shape[1]) & (row < parts.shape[0])
    top = np.where(inside, parts[row.clip(0, parts.shape[0] - 1), column.clip(0, parts.shape[1] - 1)], 0)
    return Sprite(parts, palette, keypoints, top == np.arange(1, len(joints) + 1))


def _paint(pen: ImageDraw.ImageDraw, part: int, points: np.ndarray, radius: float) -> None:
    """Points and radius in samples. PIL cuts coordinates off to integers, so they are rounded here first."""
    if not radius:
        pen.polygon(np.floor(points + 0.5).ravel().tolist(), fill=part)
        return
    radius = max(radius, 1.0)  # the smallest disc that is sure to have the sample at its centre
    for point in points:
        pen.ellipse(np.floor(np.concatenate([point - radius, point + radius]) + 0.5).tolist(), fill=part)
    if len(points) == 2:
        along = points[1] - points[0]
        side = np.array([-along[1], along[0]]) * (radius / max(np.hypot(*along), 1e-9))
        corners = np.stack([points[0] + side, points[1] + side, points[1] - side, points[0] - side])
        pen.polygon(np.floor(corners + 0.5).ravel().tolist(), fill=part)


def block_counts(samples: np.ndarray) -> np.ndarray:
    """How many of a pixel's 4x4 samples are set.

    samples: (4h, 4w) bool.  Returns (h, w) uint8, 0 to 16.
    """
    return np.asarray(Image.fromarray(samples.view(np.uint8) * np.uint8(240)).reduce(SAMPLES)) // _UNIT


@dataclass
class Placed:
    """A sprite at its place in an image, with what can be seen of it.

    mask: (H, W) bool, pixels of which at least half is this object, seen.
    box: (4,) float64 xyxy, the tight box of the visible samples within one pixel of the mask.
    shown: fraction of the whole object (also its part outside the image) that is seen, 0 to 1.
    keypoints: (J, 3) float64 x, y in the image's pixels, v 2 seen or 1 hidden; the row is 0 outside the
    image.
    """

    label: int
    crowd: bool
    sprite: Sprite
    top: int
    left: int
    mask: np.ndarray | None = None
    box: np.ndarray | None = None
    shown: float = 0.0
    keypoints: np.ndarray | None = None

    def window(self, image_size: tuple[int, int]) -> tuple[slice, slice, slice, slice]:
        """Rows and columns (pixels) of the part inside the image: first in the image, then in the sprite."""
        (height, width), (H, W) = self.sprite.size, image_size
        y0, x0 = max(0, self.top), max(0, self.left)
        y1, x1 = max(y0, min(H, self.top + height)), max(x0, min(W, self.left + width))
        return (
            slice(y0, y1),
            slice(x0, x1),
            slice(y0 - self.top, y1 - self.top),
            slice(x0 - self.left, x1 - self.left),
        )


def _fine(window: slice) -> slice:
    return slice(window.start * SAMPLES, window.stop * SAMPLES)


def resolve_occlusion(
    placed: list[Placed], image_size: tuple[int, int], min_shown: float, min_size: float
) -> list[Placed]:
    """Find what is seen of each object, from the top one down, and leave out those that show too little.

    placed: objects in painting order (last on top); mask, box, shown and keypoints are filled in.
    min_shown: least fraction of an object's area that must be seen.
    min_size: least sqrt(visible box area), pixels; crowds are exempt, their members are small by design.
    Returns the kept ones in painting order; one that is left out hides nothing, because it is not painted
    at all.
    """
    H, W = image_size
    covered = np.zeros((H * SAMPLES, W * SAMPLES), bool)
    taken = np.zeros((H, W), bool)
    kept = []
    for item in reversed(placed):
        rows, columns, own_rows, own_columns = item.window(image_size)
        solid = item.sprite.parts[_fine(own_rows), _fine(own_columns)] > 0
        above = covered[_fine(rows), _fine(columns)]
        seen = solid & ~above
        item.shown = np.count_nonzero(seen) / max(1, np.count_nonzero(item.sprite.parts))
        if item.shown < min_shown:
            continue
        item.mask = np.zeros((H, W), bool)
        item.mask[rows, columns] = block_counts(seen) >= SAMPLES**2 // 2
        item.mask &= ~taken  # a pixel that two objects share half and half belongs to the upper one
        item.box = _visible_box(item.mask, seen, rows.start, columns.start)
        if item.box is None:
            continue
        if not item.crowd and (item.box[2] - item.box[0]) * (item.box[3] - item.box[1]) < min_size**2:
            continue
        item.keypoints = _visible_keypoints(item, seen, image_size)
        above |= solid  # a view: writes into `covered`
        taken |= item.mask
        kept.append(item)
    return kept[::-1]


def _visible_box(mask: np.ndarray, seen: np.ndarray, top: int, left: int) -> np.ndarray | None:
    """Only samples within a pixel of the mask count: no thin sliver far from it may stretch the box."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    y0, y1 = max(0, (rows[0] - 1 - top) * SAMPLES), (rows[-1] + 2 - top) * SAMPLES
    x0, x1 = max(0, (columns[0] - 1 - left) * SAMPLES), (columns[-1] + 2 - left) * SAMPLES
    near = seen[y0:y1, x0:x1]
    fine_rows, fine_columns = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
    corners = [x0 + fine_columns[0], y0 + fine_rows[0], x0 + fine_columns[-1] + 1, y0 + fine_rows[-1] + 1]
    return np.array(corners) / SAMPLES + [left, top, left, top]


def _visible_keypoints(item: Placed, seen: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    H, W = image_size
    rows, columns, own_rows, own_columns = item.window(image_size)
    result = np.zeros((len(item.sprite.keypoints), 3))
    for j, (x, y) in enumerate(item.sprite.keypoints):
        # float32 first: targets are float32, and a point just left of the border must not round onto it
        image_x, image_y = np.float32(x + item.left), np.float32(y + item.top)
        if not (0 <= image_x < W and 0 <= image_y < H):
            continue
        row, column = int((y - own_rows.start) * SAMPLES), int((x - own_columns.start) * SAMPLES)
        on_top = row < seen.shape[0] and column < seen.shape[1] and seen[row, column]
        shows = on_top and item.sprite.self_visible[j]
        result[j] = image_x, image_y, 2 if shows else 1
    return result


def paint(image: np.ndarray, placed: list[Placed]) -> None:
    """Paint objects over a background in order, antialiased.

    image: (H, W, 3) uint8, changed in place.  placed: objects, last on top.
    """
    for item in placed:
        rows, columns, own_rows, own_columns = item.window(image.shape[:2])
        parts = item.sprite.parts[_fine(own_rows), _fine(own_columns)]
        if not parts.size:
            continue
        palette_image = Image.fromarray(parts).convert("P")
        palette_image.putpalette(item.sprite.palette.ravel().tolist())
        colour = np.asarray(palette_image.convert("RGB").reduce(SAMPLES), np.uint16)  # (h, w, 3), times coverage
        coverage = block_counts(parts > 0).astype(np.uint16)[..., None]  # (h, w, 1), 0 to 16
        region = image[rows, columns]
        region[:] = np.minimum(255, (region * (SAMPLES**2 - coverage) + 8) // SAMPLES**2 + colour)
