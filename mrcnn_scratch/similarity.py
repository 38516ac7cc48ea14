"""How alike a detection and a ground truth are, in COCO's three currencies: box IoU, mask IoU, keypoint OKS.

Each function answers a whole (D, G) table: D detections of an image, G ground truths of the same image and
category. A *crowd* ground truth is a region with many objects ("some people here"): a detection is measured
by the share of *itself* that lies in the region, intersection over foreground (IoF), so that finding one
person of the crowd is a perfect fit and no error.
"""

import numpy as np
from pycocotools import mask as coco_mask

# One standard deviation per COCO keypoint (nose, eyes, ears, shoulders, ... ankles), as a share of the
# object's scale: how far annotators disagree (https://cocodataset.org/#keypoints-eval, section 1.3).
COCO_SIGMAS = np.array(
    [0.26, 0.25, 0.25, 0.35, 0.35, 0.79, 0.79, 0.72, 0.72, 0.62, 0.62, 1.07, 1.07, 0.87, 0.87, 0.89, 0.89]
) / 10.0  # fmt: skip


def keypoint_sigmas(num_keypoints: int, given=None) -> np.ndarray:
    """The sigmas given; else COCO's for a person's 17 points; else their mean, 0.067, for every point.

    The mean is a toy choice: nobody measured how far annotators of your points disagree. It keeps OKS on the
    scale that readers know from COCO, whatever the number of points.

    Returns:
        (J,) float64, share of the object's scale ``sqrt(area)``.

    Raises:
        ValueError: the given ones are not J positive numbers.
    """
    if given is not None:
        given = np.asarray(given, dtype=np.float64)
        if given.shape != (num_keypoints,) or not (given > 0).all():
            raise ValueError(
                f"sigmas {given.tolist()} of shape {given.shape} for {num_keypoints} keypoints: "
                "give a positive one each"
            )
        return given
    if num_keypoints == len(COCO_SIGMAS):
        return COCO_SIGMAS.copy()
    return np.full(num_keypoints, COCO_SIGMAS.mean())


def iou_matrix(
    detections: np.ndarray, ground_truths: np.ndarray, crowd: np.ndarray | None = None
) -> np.ndarray:
    """Box IoU of every detection with every ground truth; IoF in the columns of crowds.

    ``[0, 0, 10, 10]`` and ``[5, 0, 10, 10]`` share 50 of 150 pixels: 1/3. Were the second a crowd: 50/100.

    Args:
        detections: (D, 4) xywh, pixels.
        ground_truths: (G, 4) xywh, pixels.
        crowd: (G,) bool; none when left out.

    Returns:
        (D, G) float64 in [0, 1]; 0 where nothing overlaps, boxes without area included.
    """
    detections = np.asarray(detections, dtype=np.float64).reshape(-1, 4)
    ground_truths = np.asarray(ground_truths, dtype=np.float64).reshape(-1, 4)
    crowd = _crowd_flags(crowd, len(ground_truths))
    d, g = detections[:, None], ground_truths[None]  # (D, 1, 4), (1, G, 4)
    low = np.maximum(d[..., :2], g[..., :2])  # (D, G, 2)
    high = np.minimum(d[..., :2] + d[..., 2:], g[..., :2] + g[..., 2:])  # (D, G, 2)
    width, height = np.moveaxis(np.maximum(high - low, 0.0), -1, 0)  # (D, G) each
    area_d, area_g = d[..., 2] * d[..., 3], g[..., 2] * g[..., 3]  # (D, 1), (1, G)
    return _ratio(width * height, area_d, area_g, crowd)


def mask_runs(mask) -> np.ndarray:
    """Where a mask's foreground starts and ends when its pixels are read column by column, COCO's order.

    ``[[0, 1], [1, 1]]`` reads down the columns as 0 1 1 1: one run, ``[[1, 4]]``.

    Args:
        mask: (H, W) array, non-zero is foreground; or a COCO run-length code ``{"size", "counts"}``.

    Returns:
        (M, 2) int64, first pixel of each run and one past its last.
    """
    if isinstance(mask, dict):
        mask = coco_mask.decode(mask)
    column_major = np.asarray(mask).astype(bool).ravel(order="F")
    edges = np.flatnonzero(np.diff(column_major, prepend=False, append=False))
    return edges.reshape(-1, 2)


def mask_iou_matrix(detections: list, ground_truths: list, crowd: np.ndarray | None = None) -> np.ndarray:
    """Mask IoU of every detection with every ground truth; IoF in the columns of crowds.

    No pixel is compared with a pixel. "Foreground pixels of the ground truth before position p" is a function
    of p that climbs by one a pixel inside a run and is flat outside; a detection's run [s, e) therefore
    shares f(e) - f(s) pixels with it, and interpolating between the ends of the runs gives f exactly.

    Args:
        detections: D masks, each an (H, W) array or a COCO run-length code.
        ground_truths: G masks of the same size.
        crowd: (G,) bool; none when left out.

    Returns:
        (D, G) float64 in [0, 1]; 0 where nothing overlaps, empty masks included.

    Raises:
        ValueError: the masks are not all of one size.
    """
    _check_one_size([*detections, *ground_truths])
    crowd = _crowd_flags(crowd, len(ground_truths))
    runs_d = [mask_runs(mask) for mask in detections]
    runs_g = [mask_runs(mask) for mask in ground_truths]
    area_d, area_g = (
        np.array([np.diff(r).sum() for r in runs], dtype=np.float64) for runs in (runs_d, runs_g)
    )
    owner = np.repeat(np.arange(len(runs_d)), [len(r) for r in runs_d])  # (M,): whose run it is
    runs = np.concatenate(runs_d) if runs_d else np.zeros((0, 2))  # (M, 2)
    overlap = np.zeros((len(runs_d), len(runs_g)))
    for column, truth in enumerate(runs_g):
        if len(truth):
            before = np.stack(
                [np.cumsum(np.diff(truth)) - np.diff(truth)[:, 0], np.cumsum(np.diff(truth))], axis=1
            )
            shared = np.diff(np.interp(runs, truth.ravel(), before.ravel()))[:, 0]  # (M,)
            overlap[:, column] = np.bincount(owner, weights=shared, minlength=len(runs_d))
    return _ratio(overlap, area_d[:, None], area_g[None], crowd)


def oks_matrix(
    detections: np.ndarray, ground_truths: np.ndarray, boxes: np.ndarray, areas: np.ndarray, sigmas=None
) -> np.ndarray:
    """Object keypoint similarity: the mean over visible keypoints of ``exp(-d^2 / (2 area (2 sigma)^2))``.

    One keypoint, sigma 0.05, on an object of 100 square pixels, missed by one pixel:
    exp(-1 / (2 * 100 * 0.01)) = exp(-0.5) = 0.607. A ground truth without a visible keypoint has nothing to
    measure against; COCO then asks how far each detected point lies outside the box of twice the size around
    it (0 inside).

    Args:
        detections: (D, J, 2 or 3) x, y (and anything: the third number is not used), pixels.
        ground_truths: (G, J, 3) x, y, visibility (0: not labelled), same convention of x and y.
        boxes: (G, 4) xywh.
        areas: (G,) the object's area, square pixels.
        sigmas: (J,); default :func:`keypoint_sigmas`.

    Returns:
        (D, G) float64 in [0, 1].

    Raises:
        ValueError: detections, ground truths and sigmas disagree on J.
    """
    detections, ground_truths = (
        np.asarray(points, dtype=np.float64) for points in (detections, ground_truths)
    )
    D, G = len(detections), len(ground_truths)
    if D == 0 or G == 0:
        return np.zeros((D, G))
    J = ground_truths.shape[1]
    sigmas = keypoint_sigmas(J, sigmas)
    if detections.shape[1] != J:
        raise ValueError(
            f"ground truths have {J} keypoints, detections {detections.shape[1]}: use one skeleton"
        )
    similarity = np.zeros((D, G))
    for column, (points, box, area) in enumerate(zip(ground_truths, boxes, areas, strict=True)):
        visible = points[:, 2] > 0  # (J,)
        if visible.any():
            offset = detections[:, visible, :2] - points[visible, :2]  # (D, V, 2)
        else:
            visible = np.ones(J, dtype=bool)
            offset = _outside_doubled_box(detections[..., :2], np.asarray(box, dtype=np.float64))  # (D, J, 2)
        variance = (2 * sigmas[visible]) ** 2  # (V,)
        # np.spacing(1), COCO's guard: an object of area 0 asks for an exact hit instead of dividing by zero.
        error = (offset**2).sum(axis=2) / variance / (area + np.spacing(1)) / 2  # (D, V)
        similarity[:, column] = np.exp(-error).mean(axis=1)
    return similarity


def _outside_doubled_box(points: np.ndarray, box: np.ndarray) -> np.ndarray:
    """How far points (D, J, 2) lie outside the xywh box grown by its own size on every side; 0 inside."""
    low, high = box[:2] - box[2:], box[:2] + 2 * box[2:]
    return np.maximum(low - points, 0.0) + np.maximum(points - high, 0.0)


def _ratio(overlap: np.ndarray, area_d: np.ndarray, area_g: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Overlap (D, G) over the union, or over the detection (D, 1) alone where the column is a crowd."""
    denominator = np.where(crowd[None], area_d, area_d + area_g - overlap)  # (D, G)
    return np.divide(overlap, denominator, out=np.zeros_like(overlap), where=overlap > 0)


def _crowd_flags(crowd, count: int) -> np.ndarray:
    flags = np.zeros(count, dtype=bool) if crowd is None else np.asarray(crowd).astype(bool)
    if flags.shape != (count,):
        raise ValueError(
            f"crowd has shape {flags.shape} for {count} ground truths: give one flag a ground truth"
        )
    return flags


def _check_one_size(masks: list) -> None:
    sizes = [tuple(mask["size"]) if isinstance(mask, dict) else np.shape(mask) for mask in masks]
    for index, size in enumerate(sizes):
        if size != sizes[0]:
            raise ValueError(
                f"mask {index} (detections first, then ground truths) is {size}, mask 0 is {sizes[0]}: "
                "compare masks of one image, at its full size"
            )
