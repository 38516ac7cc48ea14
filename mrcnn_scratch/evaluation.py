"""COCO box, mask and keypoint AP of a model on a dataset, by pycocotools.

``average_precision.py`` computes the same numbers in the open; this file is the one to quote figures from.
"""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .coco_results import clean_ground_truth, clean_results, count_keypoints
from .distributed import current, noticing_loss, share, together
from .files import whole_file
from .inference import ADVICE, detections_to_coco, predict_dataset
from .similarity import keypoint_sigmas

__all__ = ["detections_to_coco", "evaluate", "evaluate_results", "predict_dataset", "write_results"]

_STATISTICS = {  # the order in which COCOeval.stats holds them
    "bbox": "AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl".split(),
    "segm": "AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl".split(),
    "keypoints": "AP AP50 AP75 APm APl AR AR50 AR75 ARm ARl".split(),
}


def evaluate(model, dataset, batch_size: int = 8, progress: bool = True, sigmas=None) -> dict[str, dict]:
    """COCO statistics of a model on a dataset, for each kind that both of them have.

    With several processes (:func:`mrcnn_scratch.distributed.world`) all call this with the same arguments: they
    share the images, process 0 computes the statistics, and all return them, equal to those of one process.

    Args:
        model: ``model(images)`` -> detections in eval mode; put in eval mode for the call, then back.
        dataset: see :func:`predict_dataset`; besides has ``coco_dict()`` and ``num_keypoints``.
        batch_size: images a forward pass.
        progress: show a progress bar.
        sigmas: (J,) for OKS; default :func:`~mrcnn_scratch.similarity.keypoint_sigmas`.

    Returns:
        ``{"box": {...}, "mask": {...}, "keypoints": {...}}``, each as :func:`evaluate_results`.

    Raises:
        ValueError: the dataset has other classes than the model.
    """
    with together():
        _check_classes(model, dataset)
    results = predict_dataset(model, dataset, batch_size, progress)
    scores = None
    with noticing_loss(ADVICE):
        with together():
            if current().is_main:
                scores = _statistics(dataset, results, sigmas)
        return share(scores)


def _check_classes(model, dataset) -> None:
    known = getattr(getattr(model, "config", None), "num_classes", dataset.num_classes)
    if known != dataset.num_classes:
        raise ValueError(
            f"the model has {known} classes with the background, the dataset {dataset.num_classes} "
            f"({', '.join(dataset.class_names)}): evaluate a model on the classes that it was trained on"
        )


def _statistics(dataset, results: dict[str, list[dict]], sigmas) -> dict[str, dict]:
    """Box statistics, and those of masks and keypoints where both the results and the dataset have them."""
    ground_truth = dataset.coco_dict()
    scores = {"box": evaluate_results(ground_truth, results["bbox"], "bbox")}
    if "segm" in results and all(a.get("segmentation") for a in ground_truth["annotations"]):
        scores["mask"] = evaluate_results(ground_truth, results["segm"], "segm")
    if "keypoints" in results and dataset.num_keypoints:
        scores["keypoints"] = evaluate_results(ground_truth, results["keypoints"], "keypoints", sigmas)
    return scores


def evaluate_results(ground_truth: dict, results: list[dict], kind: str, sigmas=None) -> dict:
    """The COCO statistics of a results list, by pycocotools.

    Args:
        ground_truth: COCO dict with ``images``, ``annotations``, ``categories``; left as it was.
        results: COCO results; an empty list is allowed, AP is then 0.
        kind: "bbox", "segm" or "keypoints".
        sigmas: (J,) for OKS; default :func:`~mrcnn_scratch.similarity.keypoint_sigmas`.

    Returns:
        As :func:`~mrcnn_scratch.average_precision.average_precision`: statistics by name, ``AP_by_iou``,
        ``AP_by_category``. Floats in [0, 1], or -1 where there is no ground truth to measure on.

    Raises:
        ValueError: see :func:`~mrcnn_scratch.coco_results.clean_results`.
    """
    dataset = clean_ground_truth(ground_truth, kind)
    cleaned = clean_results(results, ground_truth, kind)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints a table on every call
        truth = _coco(dataset)
        # loadRes looks into the first result to learn the kind, and fails on a list that has none
        detections = truth.loadRes(cleaned) if cleaned else _coco({**dataset, "annotations": []})
        coco_eval = COCOeval(truth, detections, kind)
        if kind == "keypoints":
            coco_eval.params.kpt_oks_sigmas = keypoint_sigmas(count_keypoints(dataset), sigmas)
        coco_eval.evaluate()
        coco_eval.accumulate()
        coco_eval.summarize()
    statistics = dict(zip(_STATISTICS[kind], map(float, coco_eval.stats), strict=True))
    precision = coco_eval.eval["precision"][..., 0, -1]  # (T, 101, K), all areas, most detections
    category_ids = sorted(category["id"] for category in dataset["categories"])
    return {
        "APs": -1.0,  # COCO has no small keypoints
        **statistics,
        "AR": statistics["AR" if kind == "keypoints" else "AR100"],
        "AP_by_iou": [_mean(p) for p in precision],
        "AP_by_category": {c: _mean(precision[:, :, k]) for k, c in enumerate(category_ids)},
    }


def write_results(path: str | Path, results: list[dict]) -> None:
    """Writes one kind's results as COCO's JSON file, whole or not at all.

    Args:
        path: the file; its folder is made.
        results: COCO results, as :func:`predict_dataset` returns them for each kind.

    Raises:
        ValueError: a result holds a number that JSON has no word for (NaN, infinity).
    """
    for index, result in enumerate(results):
        try:
            json.dumps(result, allow_nan=False)
        except ValueError as error:
            raise ValueError(
                f"result {index} (image {result.get('image_id')}) is not finite: {result}"
            ) from error
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(results), encoding="utf-8")


def _coco(dataset: dict) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _mean(values: np.ndarray) -> float:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0
