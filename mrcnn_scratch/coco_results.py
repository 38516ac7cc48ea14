"""The COCO formats of ground truth and results: checked once, in words, before any evaluator sees them.

pycocotools answers a wrong file with an ``IndexError``, or with a wrong number. Both evaluators of this
package (its own in ``average_precision.py``, pycocotools in ``evaluation.py``) read what these functions
return.
"""

import math

import numpy as np
from pycocotools import mask as coco_mask

KINDS = ("bbox", "segm", "keypoints")
_FIELD = {
    "bbox": "bbox",
    "segm": "segmentation",
    "keypoints": "keypoints",
}  # what a result of each kind carries


def of_categories(ground_truth: dict, ids: set[int]) -> dict:
    """A COCO ground truth without the categories that are not named; all its images stay."""
    return dict(
        ground_truth,
        categories=[record for record in ground_truth["categories"] if record["id"] in ids],
        annotations=[record for record in ground_truth["annotations"] if record["category_id"] in ids],
    )


def clean_ground_truth(ground_truth: dict, kind: str) -> dict:
    """A checked copy of a COCO ground truth, with what ``kind`` needs and nothing that misleads pycocotools.

    - Annotation ids are numbered anew from 1: pycocotools takes a match with annotation 0 for no match.
    - ``iscrowd`` defaults to 0; ``num_keypoints`` to the number of keypoints with visibility above 0.
    - Keypoints are evaluated on the categories that have them; an annotation of such a category without
      keypoints
      counts as one without *visible* keypoints, which the evaluation ignores.
    - For ``segm`` every ``segmentation`` becomes a compressed run-length code of its image's size.

    Args:
        ground_truth: dict with ``images``, ``annotations``, ``categories``.
        kind: "bbox", "segm" or "keypoints".

    Returns:
        dict of the same form; the argument is left as it was.

    Raises:
        ValueError: names the annotation, what is wrong with it, and the remedy.
    """
    for key in ("images", "annotations", "categories"):
        if key not in ground_truth:
            raise ValueError(
                f"the ground truth has no {key!r}: give a COCO dict of images, annotations, categories"
            )
    images = {image["id"]: image for image in ground_truth["images"]}
    known = {category["id"] for category in ground_truth["categories"]}
    for annotation in ground_truth["annotations"]:
        _check_references(f"annotation {annotation.get('id')}", annotation, images, known)
    evaluated = _evaluated_categories(ground_truth, kind)
    num_keypoints = count_keypoints(ground_truth) if kind == "keypoints" else 0
    annotations = [a for a in ground_truth["annotations"] if a["category_id"] in evaluated]
    cleaned = []
    for index, annotation in enumerate(annotations, start=1):
        _check_annotation(annotation, kind)
        entry = {**annotation, "id": index, "iscrowd": int(annotation.get("iscrowd", 0))}
        if kind == "segm":
            entry["segmentation"] = _run_length_code(annotation, images[annotation["image_id"]])
        if kind == "keypoints":
            entry.update(_keypoint_fields(annotation, num_keypoints))
        cleaned.append(entry)
    categories = [category for category in ground_truth["categories"] if category["id"] in evaluated]
    return {"images": list(images.values()), "annotations": cleaned, "categories": categories}


def clean_results(results: list[dict], ground_truth: dict, kind: str) -> list[dict]:
    """A checked copy of COCO results, reduced to the fields that ``kind`` is evaluated on.

    ``bbox`` is dropped for ``segm``: pycocotools would take a detection's area from the box, not from its
    mask, which moves AP small, medium and large. Keypoint results of categories without keypoints are
    dropped.

    Args:
        results: list of ``{"image_id", "category_id", "score", "bbox" | "segmentation" | "keypoints"}``;
        keypoint
            results may carry ``bbox``, all or none: its area then is the detection's area.
        ground_truth: the *original* COCO ground truth.
        kind: "bbox", "segm" or "keypoints".

    Raises:
        ValueError: names the result by its index, what is wrong with it, and the remedy.
    """
    images = {image["id"]: image for image in ground_truth["images"]}
    known = {category["id"] for category in ground_truth["categories"]}
    evaluated = _evaluated_categories(ground_truth, kind)
    length = 3 * count_keypoints(ground_truth) if kind == "keypoints" else 0
    with_box = kind == "bbox" or (kind == "keypoints" and any("bbox" in result for result in results))
    fields = ["image_id", "category_id", "score", _FIELD[kind]] + ["bbox"] * (with_box and kind != "bbox")
    cleaned = []
    for index, result in enumerate(results):
        name = f"result {index}"
        for field in fields:
            if field not in result:
                raise ValueError(
                    f"{name} has no {field!r}: {kind} results need {', '.join(fields)} in every result"
                )
        _check_references(name, result, images, known)
        if not math.isfinite(result["score"]):
            raise ValueError(
                f"{name} (image {result['image_id']}) has score {result['score']}: scores must be finite"
            )
        if with_box:
            _check_box(name, result["bbox"])
        if kind == "segm":
            _check_code(name, result["segmentation"], images[result["image_id"]])
        if result["category_id"] in evaluated:
            if kind == "keypoints":
                _check_keypoints(name, result["keypoints"], length)
            cleaned.append({field: result[field] for field in fields})
    return cleaned


def count_keypoints(ground_truth: dict) -> int:
    """J, the number of keypoints that a COCO ground truth's categories or annotations have; 0 without any.

    Raises:
        ValueError: two of them disagree; one OKS needs one skeleton.
    """
    counts = {
        len(category["keypoints"]) for category in ground_truth["categories"] if category.get("keypoints")
    }
    counts |= {len(a["keypoints"]) // 3 for a in ground_truth["annotations"] if a.get("keypoints")}
    if len(counts) > 1:
        raise ValueError(
            f"the ground truth mixes skeletons of {sorted(counts)} keypoints: evaluate each on its own"
        )
    return counts.pop() if counts else 0


def _evaluated_categories(ground_truth: dict, kind: str) -> set:
    """All category ids; for keypoints, those that list keypoint names or have an annotation with some."""
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}: use one of {', '.join(KINDS)}")
    if kind != "keypoints":
        return {category["id"] for category in ground_truth["categories"]}
    named = {category["id"] for category in ground_truth["categories"] if category.get("keypoints")}
    return named | {a["category_id"] for a in ground_truth["annotations"] if a.get("keypoints")}


def _check_references(name: str, entry: dict, images: dict, categories: set) -> None:
    if entry.get("image_id") not in images:
        raise ValueError(
            f"{name} names image {entry.get('image_id')!r}, which the ground truth has not "
            f"({len(images)} images, e.g. {sorted(images)[:3]}): evaluate on the split that was predicted"
        )
    if entry.get("category_id") not in categories:
        raise ValueError(
            f"{name} (image {entry['image_id']}) names category {entry.get('category_id')!r}, the "
            f"ground truth has {sorted(categories)[:10]}: map labels to COCO's ids, which have gaps"
        )


def _check_annotation(annotation: dict, kind: str) -> None:
    name = f"annotation {annotation.get('id')} (image {annotation['image_id']})"
    for field in {"bbox": ("bbox", "area"), "segm": ("segmentation", "area"), "keypoints": ("bbox", "area")}[
        kind
    ]:
        if annotation.get(field) is None:
            raise ValueError(
                f"{name} has no {field!r}: {kind} evaluation needs it (area is the mask's, in pixels)"
            )
    if not (math.isfinite(annotation["area"]) and annotation["area"] >= 0):
        raise ValueError(f"{name} has area {annotation['area']}: give the mask's area in pixels, 0 or more")
    if kind != "segm":
        _check_box(name, annotation["bbox"])


def _check_box(name: str, box) -> None:
    if len(box) != 4 or not all(math.isfinite(value) for value in box) or box[2] < 0 or box[3] < 0:
        raise ValueError(
            f"{name} has bbox {list(box)}: COCO's is [x, y, width, height], finite, sizes 0 or more"
        )


def _check_code(name: str, code, image: dict) -> None:
    if not isinstance(code, dict) or not isinstance(code.get("counts"), str | bytes):
        raise ValueError(
            f"{name} has a segmentation that is no compressed run-length code: use pycocotools.mask.encode"
        )
    if list(code["size"]) != [image["height"], image["width"]]:
        raise ValueError(
            f"{name} has a mask of size {list(code['size'])}, image {image['id']} is "
            f"{[image['height'], image['width']]} (height, width): paste masks at the image's own size"
        )


def _check_keypoints(name: str, keypoints, length: int) -> None:
    if len(keypoints) != length or not np.isfinite(np.asarray(keypoints, dtype=np.float64)).all():
        raise ValueError(
            f"{name} has {len(keypoints)} keypoint numbers: the ground truth's {length // 3} keypoints take "
            f"{length} finite ones, x, y, visibility each"
        )


def _keypoint_fields(annotation: dict, num_keypoints: int) -> dict:
    keypoints = annotation.get("keypoints") or [0] * (3 * num_keypoints)
    _check_keypoints(f"annotation {annotation.get('id')}", keypoints, 3 * num_keypoints)
    visible = sum(v > 0 for v in keypoints[2::3])
    return {"keypoints": keypoints, "num_keypoints": int(annotation.get("num_keypoints", visible))}


def _run_length_code(annotation: dict, image: dict) -> dict:
    """Polygons, uncompressed or compressed runs -> compressed runs, polygons filled as COCO fills them."""
    segmentation, height, width = annotation["segmentation"], image["height"], image["width"]
    name = f"annotation {annotation.get('id')} (image {image['id']})"
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if len(polygon) < 6 or len(polygon) % 2:
                raise ValueError(
                    f"{name} has a polygon of {len(polygon)} numbers: x, y of three or more corners"
                )
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, height, width)
    _check_code(name, segmentation, image)
    return segmentation
