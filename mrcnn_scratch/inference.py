"""A model's answers on a dataset as COCO results, by one process or many.

Conventions are converted here and nowhere else: boxes xyxy -> xywh, masks -> column-major run-length codes,
keypoints continuous -> COCO's pixel indices, labels -> category ids.
"""

import contextlib

import numpy as np
import torch
from pycocotools import mask as coco_mask
from tqdm import tqdm

from .distributed import current, gather, noticing_loss, together

MASK_THRESHOLD = 0.5  # Mask R-CNN, section 3.1: the pasted soft mask is binarised at 0.5
ADVICE = "nothing was measured: run it again"  # where another process is lost


def predict_dataset(model, dataset, batch_size: int = 8, progress: bool = True) -> dict[str, list[dict]]:
    """Runs a model over a dataset and collects COCO results.

    With several processes each takes every so manieth batch, none twice: the batches are those of one process,
    because an image's detections depend a little on the size that its batch is padded to.

    Args:
        model: ``model(images)`` -> one detection dict an image, in eval mode.
        dataset: ``len``, ``dataset[i]`` -> (image (3, H, W), target), ``image_ids``, ``label_to_category``.
        batch_size: images a forward pass.
        progress: show a progress bar.

    Returns:
        kind -> COCO results in the dataset's order: ``bbox``, and ``segm`` and ``keypoints`` if the model has these
        heads. Of several processes, in process 0; the others return empty lists.
    """
    me, own = current(), []
    with noticing_loss(ADVICE):
        with together():
            if batch_size < 1:
                raise ValueError(f"batch_size is {batch_size}: give 1 or more images a forward pass")
            starts = range(0, len(dataset), batch_size)
            batches = [range(start, min(start + batch_size, len(dataset))) for start in starts]
            mine = batches[me.rank :: me.size]
            bar = tqdm(total=sum(map(len, mine)), desc="predict", unit="image", disable=not (progress and me.is_main))
            with bar, _eval_mode(model), torch.inference_mode():
                for indices in mine:
                    own.append(_predict_batch(model, dataset, indices))
                    bar.update(len(indices))
        parts = gather(own)
    results: dict[str, list[dict]] = {"bbox": []}
    for place in range(len(batches) if parts else 0):
        for kind, rows in parts[place % me.size][place // me.size].items():
            results.setdefault(kind, []).extend(rows)
    return results


def _predict_batch(model, dataset, indices: range) -> dict[str, list[dict]]:
    """The COCO results of one forward pass, by kind."""
    parameter = next(iter(model.parameters()), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    results: dict[str, list[dict]] = {"bbox": []}
    images, targets = zip(*(dataset[i] for i in indices), strict=True)
    # a model without an RPN finds its proposals among the targets, which it reads nothing else of
    known = (list(targets),) if getattr(getattr(model, "config", None), "stages", "both") == "heads" else ()
    detections = model([image.to(device) for image in images], *known)
    for i, detection in zip(indices, detections, strict=True):
        boxes, masks, keypoints = detections_to_coco(detection, dataset.image_ids[i], dataset.label_to_category)
        results["bbox"] += boxes
        if "masks" in detection:
            results.setdefault("segm", []).extend(masks)
        if "keypoints" in detection:
            results.setdefault("keypoints", []).extend(keypoints)
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
