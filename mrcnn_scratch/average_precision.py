"""COCO's average precision from scratch: the same numbers as pycocotools, to be read.

From detections to one number in five steps, a function each:

1. how alike is every detection to every ground truth: IoU or OKS (``similarity.py``);
2. :func:`match_detections`: best score first, each detection takes the best ground truth still free;
3. :func:`precision_recall`: walk down all detections of a category, best first, counting hits and errors;
4. :func:`interpolated_precision`: read that curve at the 101 recalls 0, 0.01, ..., 1;
5. :func:`average_precision`: average over recalls, IoU thresholds and categories.

Source: https://cocodataset.org/#detection-eval and #keypoints-eval.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from .coco_results import clean_ground_truth, clean_results, count_keypoints
from .similarity import iou_matrix, keypoint_sigmas, mask_iou_matrix, oks_matrix

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_LEVELS = np.linspace(0.0, 1.0, 101)
AREA_RANGES = {
    "all": (0, 1e10),
    "small": (0, 32**2),
    "medium": (32**2, 96**2),
    "large": (96**2, 1e10),
}  # pixels
MAX_DETECTIONS = {"bbox": (1, 10, 100), "segm": (1, 10, 100), "keypoints": (20,)}  # an image and category
UNDEFINED = -1.0  # COCO's word for "no ground truth to measure on"


def match_detections(
    similarity: np.ndarray, ignore: np.ndarray, crowd: np.ndarray, thresholds: np.ndarray
) -> np.ndarray:
    """Gives each detection, best score first, the most similar ground truth that is still free.

    A ground truth is taken once, a crowd any number of times. Ground truths that count come first: an ignored
    one is taken only when no other reaches the threshold. Of equally similar ones the last is taken, as
    pycocotools does.

    Two detections, one ground truth, similarities [[0.6], [0.9]], threshold 0.5: the first detection takes
    it, the second, although the better fit, finds nothing free: [[0, -1]]. At threshold 0.8 it is the other
    way: [[-1, 0]].

    Args:
        similarity: (D, G) IoU or OKS, detections in order of falling score.
        ignore: (G,) bool, ground truths whose match is neither hit nor error (crowds among them).
        crowd: (G,) bool.
        thresholds: (T,) least similarity of a match.

    Returns:
        (T, D) int64, the index of the ground truth, or -1.
    """
    (D, G), T = similarity.shape, len(thresholds)
    matched = np.full((T, D), -1)
    free = np.ones((T, G), dtype=bool)
    for d in range(D if G else 0):
        candidates = free & (similarity[d] >= thresholds[:, None])  # (T, G)
        for group in (~ignore, ignore):
            rank = np.where(candidates & group, similarity[d], -1.0)  # (T, G)
            best = G - 1 - rank[:, ::-1].argmax(axis=1)  # (T,), the last of the best
            found = (matched[:, d] < 0) & (rank.max(axis=1) >= 0)
            matched[found, d] = best[found]
        rows = np.flatnonzero(matched[:, d] >= 0)
        free[rows, matched[rows, d]] = crowd[matched[rows, d]]
    return matched


def precision_recall(
    scores: np.ndarray, hit: np.ndarray, ignored: np.ndarray, num_ground_truths: int
) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall after each detection, going down from the best score.

    Three detections, hit, miss, hit, of four ground truths: precision 1, 1/2, 2/3 and recall 1/4, 1/4, 2/4.

    Args:
        scores: (D,) of all images, in any order; equal scores keep the order they come in.
        hit: (T, D) bool, the detection matched a ground truth.
        ignored: (T, D) bool, it counts neither as hit nor as error.
        num_ground_truths: ground truths that are not ignored, at least 1.

    Returns:
        (precision, recall), (T, D) float64 each, in order of falling score.
    """
    order = np.argsort(-scores, kind="mergesort")  # stable: ties keep the image order, as in COCO's code
    true_positives = np.cumsum((hit & ~ignored)[:, order], axis=1)  # (T, D)
    false_positives = np.cumsum((~hit & ~ignored)[:, order], axis=1)  # (T, D)
    # np.spacing(1), COCO's guard: while all detections so far are ignored, precision is 0 and not 0/0.
    precision = true_positives / (false_positives + true_positives + np.spacing(1))
    return precision, true_positives / num_ground_truths


def interpolated_precision(
    precision: np.ndarray, recall: np.ndarray, levels: np.ndarray = RECALL_LEVELS
) -> np.ndarray:
    """The best precision still to be had at each recall level or beyond; 0 at recalls never reached.

    Precision 1, 1/2, 2/3 at recall 1/4, 1/4, 2/4: 1 at the 26 levels up to 0.25, 2/3 at the 25 levels up to
    0.50, 0 at the other 50. Their mean, the average precision, is (26 + 25 * 2/3) / 101 = 0.4224.

    Args:
        precision: (D,) and
        recall: (D,) not falling, of one IoU threshold.
        levels: (R,) recalls to read the curve at.

    Returns:
        (R,) float64.
    """
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    first = np.searchsorted(recall, levels, side="left")  # the first detection that reaches the level
    return np.append(envelope, 0.0)[first]


def average_precision(ground_truth: dict, results: list[dict], kind: str = "bbox", sigmas=None) -> dict:
    """All COCO statistics of a results list.

    Args:
        ground_truth: COCO dict with ``images``, ``annotations``, ``categories``.
        results: COCO results, in any order; an empty list is allowed.
        kind: "bbox", "segm" or "keypoints".
        sigmas: (J,) for OKS; default :func:`~mrcnn_scratch.similarity.keypoint_sigmas`.

    Returns:
        dict with ``AP AP50 AP75 APs APm APl AR`` and, for boxes and masks, ``AR1 AR10 AR100 ARs ARm ARl``,
        for keypoints ``AR50 AR75 ARm ARl`` (COCO has no small keypoints: ``APs`` is -1); ``AP_by_iou``, a
        list of 10, at 0.50, 0.55, ..., 0.95; ``AP_by_category``, category id -> AP. Floats in [0, 1], or -1
        where undefined.

    Raises:
        ValueError: see :func:`~mrcnn_scratch.coco_results.clean_results`.
    """
    truth = clean_ground_truth(ground_truth, kind)
    sigmas = keypoint_sigmas(count_keypoints(truth), sigmas) if kind == "keypoints" else None
    cells = _cells(truth, clean_results(results, ground_truth, kind), kind, sigmas)
    category_ids = sorted(category["id"] for category in truth["categories"])
    areas = [name for name in AREA_RANGES if kind != "keypoints" or name != "small"]
    precision, recall = {}, {}  # area name -> (K, T, 101); (area name, most detections) -> (K, T)
    for area in areas:
        curves = [
            _curves(cells[category], AREA_RANGES[area], MAX_DETECTIONS[kind]) for category in category_ids
        ]
        precision[area] = np.array([p for p, _ in curves])
        for m, most in enumerate(MAX_DETECTIONS[kind]):
            recall[area, most] = np.array([r[m] for _, r in curves])
    statistics = _keypoint_statistics(recall) if kind == "keypoints" else _detection_statistics(recall)
    by_iou = [
        _mean(precision["all"][:, t]) if category_ids else UNDEFINED for t in range(len(IOU_THRESHOLDS))
    ]
    return {
        "AP": _mean(precision["all"]),
        "AP50": by_iou[0],
        "AP75": by_iou[5],
        **{f"AP{area[0]}": _mean(precision.get(area, [])) for area in ("small", "medium", "large")},
        **statistics,
        "AP_by_iou": by_iou,
        "AP_by_category": {c: _mean(p) for c, p in zip(category_ids, precision["all"], strict=True)},
    }


@dataclass
class _Cell:
    """One image and category: detections best first, ground truths, and how alike they are."""

    scores: np.ndarray  # (D,)
    areas: np.ndarray  # (D,) pixels
    similarity: np.ndarray  # (D, G)
    truth_areas: np.ndarray  # (G,) pixels
    ignore: np.ndarray  # (G,) bool
    crowd: np.ndarray  # (G,) bool


def _cells(truth: dict, results: list[dict], kind: str, sigmas: np.ndarray | None) -> dict[int, list[_Cell]]:
    """Category id -> its images in order of their ids; images that hold nothing are left out."""
    annotations, detections = defaultdict(list), defaultdict(list)
    for annotation in truth["annotations"]:
        annotations[annotation["category_id"], annotation["image_id"]].append(annotation)
    for result in results:
        detections[result["category_id"], result["image_id"]].append(result)
    cells = defaultdict(list)
    for key in sorted(annotations.keys() | detections.keys()):
        cells[key[0]].append(_cell(annotations[key], detections[key], kind, sigmas))
    return cells


def _cell(annotations: list[dict], detections: list[dict], kind: str, sigmas: np.ndarray | None) -> _Cell:
    detections = sorted(detections, key=lambda result: -result["score"])[: MAX_DETECTIONS[kind][-1]]  # stable
    crowd = np.array([a["iscrowd"] for a in annotations], dtype=bool)
    invisible = np.array([kind == "keypoints" and a["num_keypoints"] == 0 for a in annotations], dtype=bool)
    truth_areas = np.array([a["area"] for a in annotations], dtype=np.float64)
    if kind == "bbox":
        similarity = iou_matrix([d["bbox"] for d in detections], [a["bbox"] for a in annotations], crowd)
    elif kind == "segm":
        masks = ([entry["segmentation"] for entry in entries] for entries in (detections, annotations))
        similarity = mask_iou_matrix(*masks, crowd)
    else:
        points = (
            np.reshape([e["keypoints"] for e in es], (len(es), len(sigmas), 3))
            for es in (detections, annotations)
        )
        similarity = oks_matrix(*points, [a["bbox"] for a in annotations], truth_areas, sigmas)
    areas = np.array([_detection_area(d, kind) for d in detections], dtype=np.float64)
    scores = np.array([d["score"] for d in detections], dtype=np.float64)
    return _Cell(scores, areas, similarity, truth_areas, crowd | invisible, crowd)


def _detection_area(detection: dict, kind: str) -> float:
    """Pixels of the mask; of the box; of the box around all keypoints when a keypoint result has no box."""
    if kind == "segm":
        return float(coco_mask.area(detection["segmentation"]))
    if "bbox" in detection:
        return detection["bbox"][2] * detection["bbox"][3]
    x, y = np.asarray(detection["keypoints"][0::3]), np.asarray(detection["keypoints"][1::3])
    return float((x.max() - x.min()) * (y.max() - y.min()))


def _curves(cells: list[_Cell], area_range: tuple, caps: tuple) -> tuple[np.ndarray, np.ndarray]:
    """One category and area range: precision (T, 101) at the largest cap and recall (M, T) at each cap.

    A ground truth outside the range is ignored, and so is a detection outside it that matched nothing.
    """
    T = len(IOU_THRESHOLDS)
    precision, final_recall = np.full((T, len(RECALL_LEVELS)), UNDEFINED), np.full((len(caps), T), UNDEFINED)
    hits, ignores, num_ground_truths = [], [], 0
    for cell in cells:
        ignore = cell.ignore | _outside(cell.truth_areas, area_range)  # (G,)
        matched = match_detections(cell.similarity, ignore, cell.crowd, IOU_THRESHOLDS)  # (T, D)
        hits.append(matched >= 0)
        ignored_hits = np.append(ignore, False)[matched]  # (T, D); the index -1, no match, reads the False
        ignores.append(np.where(matched >= 0, ignored_hits, _outside(cell.areas, area_range)))
        num_ground_truths += np.count_nonzero(~ignore)
    if num_ground_truths == 0:
        return precision, final_recall
    for m, cap in enumerate(caps):
        scores = np.concatenate([cell.scores[:cap] for cell in cells])
        hit, ignored = (
            np.concatenate([rows[:, :cap] for rows in parts], axis=1) for parts in (hits, ignores)
        )
        running_precision, recall = precision_recall(scores, hit, ignored, num_ground_truths)
        final_recall[m] = recall[:, -1] if len(scores) else 0.0
    curves = zip(running_precision, recall, strict=True)  # of the last cap, the largest
    return np.array([interpolated_precision(p, r) for p, r in curves]), final_recall


def _outside(areas: np.ndarray, area_range: tuple) -> np.ndarray:
    return (areas < area_range[0]) | (areas > area_range[1])


def _detection_statistics(recall: dict) -> dict:
    capped = {f"AR{most}": _mean(recall["all", most]) for most in MAX_DETECTIONS["bbox"]}
    ranged = {f"AR{area[0]}": _mean(recall[area, 100]) for area in ("small", "medium", "large")}
    return {"AR": capped["AR100"], **capped, **ranged}


def _keypoint_statistics(recall: dict) -> dict:
    at_50_and_75 = {f"AR{name}": _mean([r[t] for r in recall["all", 20]]) for name, t in ((50, 0), (75, 5))}
    ranged = {f"AR{area[0]}": _mean(recall[area, 20]) for area in ("medium", "large")}
    return {"AR": _mean(recall["all", 20]), **at_50_and_75, **ranged}


def _mean(values) -> float:
    """The mean of what is defined; -1 when nothing is."""
    defined = np.asarray(values)[np.asarray(values) > UNDEFINED]
    return float(defined.mean()) if defined.size else UNDEFINED
