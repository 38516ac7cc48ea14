"""COCO segmentations, polygons and run-length encodings: what is wrong with one, and one as an RLE.

pycocotools is C: it reads four-number "polygons" as boxes, allocates by the size of coordinates, and trusts
run lengths. So a segmentation is looked at here first, and only a sound one is handed on.
"""

from pycocotools import mask as coco_mask

from .fields import TOLERANCE, are_finite


def segmentation_fault(segmentation, width: int | None, height: int | None) -> tuple[str, str] | None:
    """Say what makes a segmentation unusable.

    Args:
        segmentation: the JSON value: a list of polygons ``[x1, y1, x2, y2, ...]``, or an RLE ``{"size",
            "counts"}`` with counts compressed (str) or not (list).
        width, height: of the image in pixels; None if unknown, then what depends on them is not looked at.

    Returns:
        (kind, remedy), or None if it is sound.
    """
    if isinstance(segmentation, dict):
        return _rle_fault(segmentation, width, height)
    if segmentation is None or segmentation == []:
        return "missing_segmentation", "add polygons or an RLE, or read with masks=False (boxes only)"
    if not isinstance(segmentation, list):
        return "bad_segmentation", "write a list of polygons or an RLE object"
    if not any(isinstance(polygon, list) for polygon in segmentation):
        return "bad_polygon", "a segmentation is a list of polygons: add one more pair of brackets"
    for part, polygon in enumerate(segmentation):
        remedy = _polygon_remedy(polygon, width, height)
        if remedy:
            return "bad_polygon", f"polygon {part}: {remedy}"
    return None


def to_rle(segmentation, width: int, height: int) -> dict:
    """Turn a sound segmentation into one compressed RLE; the parts of a polygon list are united."""
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, height, width)
    return segmentation


def decode_counts(counts: str) -> list[int]:
    """Decode COCO's compressed run lengths: 5 bits a character, as COCO's maskApi.c does.

    Each run from the fourth on is stored as its difference to the last but one.

    `decode_counts("04")` is [0, 4].

    Raises:
        ValueError: a character outside '0'..'o', or an end in the middle of a number.
    """
    runs, value, shift = [], 0, 0
    for character in counts:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise ValueError(f"character {character!r} is not of COCO's compressed RLE")
        value |= (code & 31) << shift
        shift += 5
        if shift > 35:
            raise ValueError("a run is longer than any image")
        if code & 32:  # more of this number follows
            continue
        if code & 16:  # the sign bit of the last five
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("the string ends in the middle of a number")
    return runs


def _polygon_remedy(polygon, width: int | None, height: int | None) -> str | None:
    if not are_finite(polygon):
        return "write finite numbers x1, y1, x2, y2, ..."
    if len(polygon) % 2:
        return f"{len(polygon)} numbers are no (x, y) pairs: add or remove one"
    if len(polygon) < 6:
        return f"{len(polygon)} numbers are fewer than three points: draw it again or remove it"
    if width is None:
        return None
    x, y = polygon[0::2], polygon[1::2]  # lists: of so few numbers they are faster than arrays
    overhang = max(-min(x), -min(y), max(x) - width, max(y) - height)
    if overhang >= TOLERANCE:
        return f"it leaves the {width}x{height} image by {overhang:.6g} pixels: clip it, or correct the size"
    return None


def _rle_fault(rle: dict, width: int | None, height: int | None) -> tuple[str, str] | None:
    size, counts = rle.get("size"), rle.get("counts")
    if not isinstance(size, list) or len(size) != 2 or any(type(s) is not int or s <= 0 for s in size):
        return "bad_rle", "its size is [height, width], two positive integers: encode the mask again"
    if width is not None and size != [height, width]:
        return "bad_rle", f"its size is {size}, not the image's {[height, width]}: encode the mask again"
    if isinstance(counts, str):
        try:
            counts = decode_counts(counts)
        except ValueError as error:
            return "bad_rle", f"{error}: encode the mask again"
    if not isinstance(counts, list) or any(type(run) is not int or run < 0 for run in counts):
        return "bad_rle", "its counts are a compressed string or a list of runs >= 0: encode the mask again"
    if sum(counts) != size[0] * size[1]:
        pixels = size[0] * size[1]
        return "bad_rle", f"its runs add up to {sum(counts)}, not to {pixels} pixels: encode the mask again"
    return None
