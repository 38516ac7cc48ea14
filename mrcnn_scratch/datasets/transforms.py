"""Image and target, flipped or resized together; pure functions, with randomness from a torch.Generator.

An image is (3, H, W) float32, a target torchvision's dict (boxes xyxy and keypoints in continuous pixels).
Nothing is changed in place. No instance is ever dropped here: a box that a resize makes smaller than a pixel
keeps its exact, tiny coordinates, and its mask keeps at least one pixel if it had any.
"""

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def hflip(image: Tensor, target: dict, flip_pairs: list[tuple[int, int]] = ()) -> tuple[Tensor, dict]:
    """Mirror left and right: x becomes W - x for boxes and keypoints (continuous, so not W - 1 - x).

    Left and right keypoints also change names: a mirrored left eye is a right eye. Rows with v = 0 stay 0, 0,
    0.

    Args:
        image: (3, H, W).
        target: boxes (G, 4) and, if present, proposals (R, 4), masks (G, H, W), keypoints (G, J, 3).
        flip_pairs: (left, right) keypoint indices; those not named keep theirs.

    Returns:
        a new image and target; a second flip gives the first ones back.

    Raises:
        ValueError: shapes that do not belong together, or pairs that are no pairs of J keypoints.
    """
    W = _checked(image, target)[1]
    x1, y1, x2, y2 = target["boxes"].unbind(dim=1)
    flipped = dict(target, boxes=torch.stack([W - x2, y1, W - x1, y2], dim=1))
    if "proposals" in target:
        x1, y1, x2, y2 = target["proposals"].unbind(dim=1)
        flipped["proposals"] = torch.stack([W - x2, y1, W - x1, y2], dim=1)
    if "masks" in target:
        flipped["masks"] = target["masks"].flip(-1)
    if "keypoints" in target:
        J = target["keypoints"].shape[1]
        keypoints = target["keypoints"][:, _flip_order(J, flip_pairs, target)]  # (G, J, 3)
        x, y, v = keypoints.unbind(dim=-1)
        flipped["keypoints"] = torch.stack([W - x, y, v], dim=-1) * (v > 0).unsqueeze(-1)
    return image.flip(-1), flipped


def resize(image: Tensor, target: dict, size: tuple[int, int]) -> tuple[Tensor, dict]:
    """Resize to (H, W): each axis by its own actual ratio, which rounding makes differ from a nominal scale.

    The image is bilinear, antialiased where it shrinks; pixel centres are at i + 0.5, so that boxes scale by
    the ratio alone. A new mask has the pixels that the old one covers at least half, or, if it is thinner
    than
    that, those that it covers best: so none vanishes.

    Args:
        image: (3, H, W).
        target: as for `hflip`; area (G,) is scaled by the product of the ratios.
        size: new (H, W) in pixels.

    Raises:
        ValueError: shapes that do not belong together, or a size that is not two positive integers.
    """
    H, W = _checked(image, target)
    if len(size) != 2 or any(isinstance(s, bool) or not isinstance(s, int) or s <= 0 for s in size):
        raise ValueError(f"size {size!r} is not (H, W) in whole pixels: give two integers of at least 1")
    ratio_y, ratio_x = size[0] / H, size[1] / W
    resized = dict(target)
    for name in {"boxes", "proposals"} & target.keys():
        resized[name] = target[name] * target[name].new_tensor([ratio_x, ratio_y, ratio_x, ratio_y])
    if "keypoints" in target:
        resized["keypoints"] = target["keypoints"] * target["keypoints"].new_tensor([ratio_x, ratio_y, 1])
    if "area" in target:
        resized["area"] = target["area"] * (ratio_x * ratio_y)
    if "masks" in target:
        resized["masks"] = _resize_masks(target["masks"], tuple(size))
    pixels = interpolate(image[None], tuple(size), mode="bilinear", align_corners=False, antialias=True)[0]
    return pixels, resized


def random_flip(
    image: Tensor,
    target: dict,
    generator: torch.Generator,
    p: float = 0.5,
    flip_pairs: list[tuple[int, int]] = (),
) -> tuple[Tensor, dict]:
    """Flip with probability p; draws one number whatever p is: runs with other settings stay in step."""
    _check_probability(p)
    flip = _uniform(generator) < p
    return hflip(image, target, flip_pairs) if flip else (image, target)


def random_scale(
    image: Tensor, target: dict, generator: torch.Generator, low: float = 0.8, high: float = 1.25
) -> tuple[Tensor, dict]:
    """Resize by a factor drawn uniformly from [low, high], to whole pixels; draws one number."""
    _check_range(low, high)
    factor = low + (high - low) * _uniform(generator)
    H, W = _checked(image, target)
    size = max(1, round(H * factor)), max(1, round(W * factor))
    return (image, target) if size == (H, W) else resize(image, target, size)


class Augment:
    """Random scale, then random flip; two numbers are drawn for every image.

    Args:
        flip: probability of a horizontal flip (Mask R-CNN and its ancestors: 0.5).
        scale: lowest and highest factor; (1, 1) for none.
        flip_pairs: the dataset's (left, right) keypoints.

    Raises:
        ValueError: a probability outside [0, 1], or factors that are not 0 < low <= high.
    """

    def __init__(
        self,
        flip: float = 0.5,
        scale: tuple[float, float] = (0.8, 1.25),
        flip_pairs: list[tuple[int, int]] = (),
    ):
        _check_probability(flip)
        if len(scale) != 2:
            raise ValueError(f"scale {scale!r} is not (low, high): give two factors")
        _check_range(*scale)
        self.flip, self.scale, self.flip_pairs = flip, tuple(scale), list(flip_pairs)

    def __call__(self, image: Tensor, target: dict, generator: torch.Generator) -> tuple[Tensor, dict]:
        image, target = random_scale(image, target, generator, *self.scale)
        return random_flip(image, target, generator, self.flip, self.flip_pairs)


def _resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """(G, H, W) of 0 and 1 -> (G, *size), same dtype, aligned with boxes scaled by the ratios.

    Taking the nearest pixel instead would shift a mask to one side wherever the centre of a new pixel falls
    on an
    old edge: the mask of a flipped image would not be the flipped mask. Interpolating would round its
    corners."""
    _, H, W = masks.shape
    resized = masks.new_zeros((len(masks), *size))
    rows, columns = _overlaps(H, size[0]).to(masks.device), _overlaps(W, size[1]).to(masks.device)
    for old, new in zip(masks, resized, strict=True):
        if old.any():
            y, new_y = _extent(old.any(dim=1), rows)
            x, new_x = _extent(old.any(dim=0), columns)
            coverage = rows[new_y, y] @ old[y, x].float() @ columns[new_x, x].T  # share of each new pixel
            # The slack holds rounding of exactly half covered.
            new[new_y, new_x] = coverage >= coverage.max().clamp(max=0.5) * (1 - 1e-4)
    return resized


def _extent(occupied: Tensor, overlaps: Tensor) -> tuple[slice, slice]:
    """Return the stretch of old pixels that a mask occupies on one axis, and the new ones that lie on it."""
    old = occupied.nonzero().flatten().tolist()
    old = slice(old[0], old[-1] + 1)
    new = overlaps[:, old].any(dim=1).nonzero().flatten().tolist()
    return old, slice(new[0], new[-1] + 1)


def _overlaps(old: int, new: int) -> Tensor:
    """(new, old) float32: which share of each new pixel lies on each old one; every row adds up to 1."""
    old_edges = torch.arange(old + 1, dtype=torch.float64)
    new_edges = torch.arange(new + 1, dtype=torch.float64) * (old / new)
    ends = torch.minimum(new_edges[1:, None], old_edges[1:])  # (new, old)
    starts = torch.maximum(new_edges[:-1, None], old_edges[:-1])
    return ((ends - starts).clamp(min=0) * (new / old)).float()


def _checked(image: Tensor, target: dict) -> tuple[int, int]:
    """Return (H, W) of an image that fits its target."""
    who = f"image {target.get('image_id', '?')}"
    if image.ndim != 3 or 0 in image.shape:
        raise ValueError(f"{who} has shape {tuple(image.shape)}: give (3, H, W) with at least one pixel")
    H, W = image.shape[1:]
    boxes = target["boxes"]
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{who}: boxes have shape {tuple(boxes.shape)}: give (G, 4), (0, 4) for no instance")
    G = len(boxes)
    if "masks" in target and target["masks"].shape != (G, H, W):
        shape = tuple(target["masks"].shape)
        raise ValueError(f"{who}: masks have shape {shape} but {G} boxes in a {H}x{W} image need {(G, H, W)}")
    if "keypoints" in target:
        shape = tuple(target["keypoints"].shape)
        if len(shape) != 3 or shape[0] != G or shape[2] != 3:
            raise ValueError(f"{who}: keypoints have shape {shape} but {G} boxes need ({G}, J, 3)")
    return H, W


def _flip_order(J: int, flip_pairs, target: dict) -> list[int]:
    order = list(range(J))
    for pair in flip_pairs:
        left, right = pair
        if (
            left == right
            or not (0 <= left < J and 0 <= right < J)
            or order[left] != left
            or order[right] != right
        ):
            raise ValueError(
                f"image {target.get('image_id', '?')}: flip pair {tuple(pair)} is no new pair of its "
                f"{J} keypoints: name each left and right keypoint once, from 0"
            )
        order[left], order[right] = right, left
    return order


def _uniform(generator: torch.Generator) -> float:
    if not isinstance(generator, torch.Generator):
        raise ValueError(
            f"generator is {generator!r}: pass a torch.Generator, so that the run can be repeated"
        )
    return torch.rand((), generator=generator, device=generator.device).item()


def _check_probability(p: float) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"flip probability {p!r} is outside [0, 1]: give 0 for never, 1 for always")


def _check_range(low: float, high: float) -> None:
    if not 0 < low <= high < float("inf"):
        raise ValueError(
            f"scale range ({low!r}, {high!r}) is not 0 < low <= high: give factors such as (0.8, 1.25)"
        )
