"""Single values of a COCO file, read with distrust: each may be any JSON."""

import math
from collections.abc import Iterator

import numpy as np

TOLERANCE = 1.0  # pixels outside the image that count as rounding, and are clipped
NUMBERS = frozenset((int, float))  # the types of JSON numbers; true and false are of neither
MAX_SIDE = 65535  # pixels; a JPEG has no more, and pycocotools allocates by it


def finite_numbers(values) -> np.ndarray | None:
    """Return a JSON list as float64, or None if it is not a list of finite numbers (a bool is none)."""
    return np.array(values, dtype=np.float64) if are_finite(values) else None


def are_finite(values) -> bool:
    """Say whether a JSON value is a list of finite numbers; fast, for all of COCO has 40 million."""
    if not isinstance(values, list) or not NUMBERS.issuperset(map(type, values)):
        return False
    try:
        return all(map(math.isfinite, values))
    except OverflowError:  # an integer of hundreds of digits
        return False


def listed(doc: dict, part: str) -> list:
    """Return a list of the document, or [] if that is something else."""
    return doc[part] if isinstance(doc.get(part), list) else []


def records(doc: dict, part: str) -> Iterator[dict]:
    """Yield the records of a list of the document that are objects."""
    return (record for record in listed(doc, part) if isinstance(record, dict))


def is_id(value) -> bool:
    """Say whether a value can be an id: an integer (true and false are not)."""
    return type(value) is int


def hashable(value):
    """Return an id, or None for anything that is none."""
    return value if is_id(value) else None


def image_size(record: dict) -> tuple[int, int] | None:
    """Return (width, height) of an image record in pixels, or None if they are not sound integers."""
    size = record.get("width"), record.get("height")
    return size if all(type(s) is int and 0 < s <= MAX_SIDE for s in size) else None


def image_sizes(doc: dict) -> dict[int, tuple[int, int] | None]:
    """Return image id -> (width, height) or None, as the first record of an id says."""
    sizes = {}
    for record in records(doc, "images"):
        if is_id(record.get("id")):
            sizes.setdefault(record["id"], image_size(record))
    return sizes


def keypoint_counts(doc: dict) -> dict[int, int]:
    """Return category id -> number of keypoints that it names."""
    counts = {}
    for record in records(doc, "categories"):
        if is_id(record.get("id")):
            names = record.get("keypoints")
            counts.setdefault(record["id"], len(names) if isinstance(names, list) else 0)
    return counts


def skeleton_edges(category: dict) -> list[tuple[int, int]]:
    """Return the sound edges of a category's skeleton, 0-based (COCO's file counts from 1)."""
    J, edges = len(category.get("keypoints") or []), listed(category, "skeleton")
    pairs = [edge for edge in edges if isinstance(edge, list) and len(edge) == 2]
    return [(a - 1, b - 1) for a, b in pairs if is_id(a) and is_id(b) and 1 <= a <= J and 1 <= b <= J]


def usable_area(record: dict) -> float | None:
    """Return an annotation's area in pixels, or None if it states no positive finite number."""
    area = record.get("area")
    return float(area) if are_finite([area]) and area > 0 else None


def clip_box(bbox, width: int, height: int) -> np.ndarray:
    """Turn COCO's x, y, width, height into a (4,) float32 xyxy box inside the image.

    `clip_box([-0.5, 2, 10, 4], 8, 8)` is [0, 2, 8, 6].
    """
    x, y, w, h = (float(number) for number in bbox)
    return np.clip(np.array([x, y, x + w, y + h]), 0, (width, height, width, height)).astype(np.float32)


def show(value, limit: int = 80) -> str:
    """Write a JSON value shortly enough for one line."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # too deep, or an integer of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= limit else text[: limit - 3] + "..."
