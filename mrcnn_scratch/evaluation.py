"""COCO box, mask and keypoint AP of a model on a dataset, by pycocotools.

``average_precision.py`` computes the same numbers in the open; this file is the one to quote figures from.
Conventions are converted here and nowhere else: boxes xyxy -> xywh, masks -> column-major run-length codes,
keypoints continuous -> COCO's pixel indices, labels -> category ids.
"""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tqdm import tqdm

from .coco_results import clean_ground_truth, clean_results, count_keypoints
from .files import whole_file
from .similarity import keypoint_sigmas

MASK_THRESHOLD = 0.5  # Mask R-CNN, section 3.1: the pasted soft mask is binarised at 0.5
_STATISTICS = {  # the order in which COCOeval.stats holds them
    "bbox": "AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl".split(),
    "segm": "AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl".split(),
    "keypoints": "AP AP50 AP75 APm APl AR AR50 AR75 ARm ARl".split(),
}


def evaluate(model, dataset, batch_size: int = 8, progress: bool = True, sigmas=None) -> dict[str, dict]:
    """COCO statistics of a model on a dataset, for each kind that both of them have.

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
    _check_classes(model, dataset)
    ground_truth = dataset.coco_dict()
    results = predict_dataset(model, dataset, batch_size, progress)
    scores = {"box": evaluate_results(ground_truth, results["bbox"], "bbox")}
    if "segm" in results and all(a.get("segmentation") for a in ground_truth["annotations"]):
        scores["mask"] = evaluate_results(ground_truth, results["segm"], "segm")
    if "keypoints" in results and dataset.num_keypoints:
        scores["keypoints"] = evaluate_results(ground_truth, results["keypoints"], "keypoints", sigmas)
    return scores


def _check_classes(model, dataset) -> None:
    known = getattr(getattr(model, "config", None), "num_classes", dataset.num_classes)
    if known != dataset.num_classes:
        raise ValueError(
            f"the model has {known} classes with the background, the dataset {dataset.num_classes} "
            f"({', '.join(dataset.class_names)}): evaluate a model on the classes that it was trained on"
        )


def predict_dataset(model, dataset, batch_size: int = 8, progress: bool = True) -> dict[str, list[dict]]:
    """Runs a model over a dataset and collects COCO results.

    Args:
        model: ``model(images)`` -> one detection dict an image, in eval mode.
        dataset: ``len``, ``dataset[i]`` -> (image (3, H, W), target), ``image_ids``, ``label_to_category``.
        batch_size: images a forward pass.
        progress: show a progress bar.

    Returns:
        kind -> COCO results: ``bbox``, and ``segm`` and ``keypoints`` if the model has these heads.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: give 1 or more images a forward pass")
    parameter = next(iter(model.parameters()), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    results: dict[str, list[dict]] = {"bbox": []}
    bar = tqdm(total=len(dataset), desc="predict", unit="image", disable=not progress)
    with bar, _eval_mode(model), torch.inference_mode():
        for start in range(0, len(dataset), batch_size):
            indices = range(start, min(start + batch_size, len(dataset)))
            detections = model([dataset[i][0].to(device) for i in indices])
            for i, detection in zip(indices, detections, strict=True):
                boxes, masks, keypoints = detections_to_coco(
                    detection, dataset.image_ids[i], dataset.label_to_category
                )
                results["bbox"] += boxes
                if "masks" in detection:
                    results.setdefault("segm", []).extend(masks)
                if "keypoints" in detection:
                    results.setdefault("keypoints", []).extend(keypoints)
            bar.update(len(indices))
    return results


def detections_to_coco(
    detection: dict, image_id: int, label_to_category: dict[int, int]
) -> tuple[list[dict], list[dict], list[dict]]:
    """One image's detections as COCO results.

    A continuous keypoint at (10.5, 4.5), the centre of a pixel, becomes the pixel index (10, 4). Mask and
    keypoint results carry no ``bbox``: with one, pycocotools takes a detection's area from the box instead of
    from the mask. All three are scored by the box score, as the paper's keypoint results are.

    Args:
        detection: ``boxes`` (D, 4) xyxy, ``labels`` (D,), ``scores`` (D,), and if the model has them
        ``masks``
            (D, 1, H, W) in [0, 1] and ``keypoints`` (D, J, 3) x, y, visibility.
        image_id: COCO's.
        label_to_category: label -> COCO category id.

    Returns:
        (box results, mask results, keypoint results); the latter two are empty if the model has no such head.

    Raises:
        ValueError: a label has no category, or D differs from tensor to tensor.
    """
    labels = detection["labels"].tolist()
    for name in {"boxes", "scores", "masks", "keypoints"} & detection.keys():
        if len(detection[name]) != len(labels):
            raise ValueError(
                f"image {image_id} has {len(labels)} labels and {len(detection[name])} {name}: give as many"
            )
    for index, label in enumerate(labels):
        if label not in label_to_category:
            raise ValueError(
                f"detection {index} of image {image_id} has label {label}, the dataset has "
                f"{sorted(label_to_category)}: evaluate the model on the classes that it was "
                "trained on (label 0 is the background)"
            )
    heads = [
        {"image_id": image_id, "category_id": label_to_category[label], "score": score}
        for label, score in zip(labels, detection["scores"].double().tolist(), strict=True)
    ]
    boxes = detection["boxes"].double().cpu()
    xywh = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).tolist()
    codes = _encode_masks(detection["masks"]) if "masks" in detection else []
    points = _keypoint_rows(detection["keypoints"]) if "keypoints" in detection else []
    return (
        [{**head, "bbox": box} for head, box in zip(heads, xywh, strict=True)],
        [{**head, "segmentation": code} for head, code in zip(heads, codes, strict=False)],
        [{**head, "keypoints": row} for head, row in zip(heads, points, strict=False)],
    )


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


def _encode_masks(masks: torch.Tensor) -> list[dict]:
    """Soft masks (D, 1, H, W) -> D run-length codes; COCO reads pixels column by column (Fortran order)."""
    D, _, H, W = masks.shape
    binary = (masks[:, 0] >= MASK_THRESHOLD).to(torch.uint8).cpu().numpy()  # (D, H, W)
    codes = coco_mask.encode(np.asfortranarray(binary.transpose(1, 2, 0)))  # of (H, W, D)
    return [{"size": [H, W], "counts": code["counts"].decode("ascii")} for code in codes]  # JSON has no bytes


def _keypoint_rows(keypoints: torch.Tensor) -> list[list[float]]:
    """Continuous (D, J, 3) -> D rows x1, y1, v1, x2, ...; - 0.5: COCO's are pixel indices, not centres."""
    to_indices = torch.tensor([-0.5, -0.5, 0.0], dtype=torch.float64)
    return (keypoints.double().cpu() + to_indices).flatten(start_dim=1).tolist()


def _coco(dataset: dict) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco


@contextlib.contextmanager
def _eval_mode(model):
    """Eval mode for every module, then each back to the mode it had (frozen parts may have been in eval)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _mean(values: np.ndarray) -> float:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0
