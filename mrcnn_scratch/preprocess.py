"""Images of any size -> one normalised, padded batch, and the answers back into each image's own pixels."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

DIVISIBLE_BY = 32  # the coarsest stride: every feature map then has a whole number of cells


@dataclass(frozen=True)
class ImageBatch:
    """A padded batch and the sizes that tell where each image ends in it."""

    images: torch.Tensor  # (N, 3, H, W) normalised; zeros beyond each image
    sizes: list[tuple[int, int]]  # height and width of each image in the batch, pixels
    original_sizes: list[tuple[int, int]]  # before resizing
    resize: str = "round"  # "torchvision": ratios are rounded to float32, as that code base has them

    def ratios(self, index: int) -> tuple[float, float]:
        """How much image ``index`` was magnified, (across, down): each axis by its own rounded size."""
        return self._quotients(self.sizes[index], self.original_sizes[index])

    def ratios_back(self, index: int) -> tuple[float, float]:
        """What brings the resized image's pixels back to the original's, (across, down)."""
        return self._quotients(self.original_sizes[index], self.sizes[index])

    def _quotients(self, new: tuple[int, int], old: tuple[int, int]) -> tuple[float, float]:
        across, down = new[1] / old[1], new[0] / old[0]
        return (across, down) if self.resize == "round" else (_float32(across), _float32(down))


def _float32(number: float) -> float:
    return torch.tensor(number, dtype=torch.float32).item()


def resized_size(size: tuple[int, int], min_size: int, max_size: int, resize: str = "round") -> tuple[int, int]:
    """Height and width after making the shorter edge ``min_size`` unless the longer would pass ``max_size``.

    480 x 640 becomes 800 x 1067, 400 x 1200 becomes 444 x 1333; ``min_size`` 0 changes nothing. "torchvision" cuts to
    whole pixels: 480 x 640 becomes 800 x 1066.
    """
    if min_size == 0:
        return size
    scale = min(min_size / min(size), max_size / max(size))
    if resize == "torchvision":
        return max(1, math.floor(size[0] * scale)), max(1, math.floor(size[1] * scale))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def batch_images(
    images: list[torch.Tensor], min_size: int | list[int], max_size: int, mean, std, resize: str = "round"
) -> ImageBatch:
    """Normalises, resizes and pads images into one tensor.

    Args:
        images: N tensors (3, H_i, W_i) in [0, 1].
        min_size: shorter edge, pixels, or one for each image; 0 keeps the size.
        max_size: longer edge at most, pixels.
        mean: 3 numbers, RGB.
        std: 3 numbers, RGB.
        resize: see :func:`resized_size`.

    Returns:
        the batch. Padding is zero *after* normalisation: the mean colour.
    """
    originals = [tuple(image.shape[-2:]) for image in images]
    edges = min_size if isinstance(min_size, list) else [min_size] * len(images)
    sizes = [resized_size(size, edge, max_size, resize) for size, edge in zip(originals, edges, strict=True)]
    height = -(-max(size[0] for size in sizes) // DIVISIBLE_BY) * DIVISIBLE_BY
    width = -(-max(size[1] for size in sizes) // DIVISIBLE_BY) * DIVISIBLE_BY
    batch = images[0].new_zeros(len(images), 3, height, width)
    shift, scale = images[0].new_tensor(mean)[:, None, None], images[0].new_tensor(std)[:, None, None]
    for index, (image, size) in enumerate(zip(images, sizes, strict=True)):
        image = (image - shift) / scale
        if size != originals[index]:
            image = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]
        batch[index, :, : size[0], : size[1]] = image
    return ImageBatch(batch, sizes, originals, resize)


def scale_target(
    target: dict, ratios: tuple[float, float], size: tuple[int, int], nearest: str = "nearest-exact"
) -> dict:
    """One image's ground truth in the pixels of the resized image.

    Args:
        target: see ``MaskRCNN.forward``.
        ratios: magnification (across, down).
        size: height and width of the resized image, pixels.
        nearest: how masks are resized; torchvision's "nearest" takes a cell's corner, which shifts masks.
    """
    across, down = ratios
    if across == down == 1:
        return target
    scaled = dict(target)
    for name in {"boxes", "proposals"} & target.keys():
        scaled[name] = target[name] * target[name].new_tensor([across, down, across, down])
    if "masks" in target:
        masks = F.interpolate(target["masks"][:, None].float(), size=size, mode=nearest)
        scaled["masks"] = masks[:, 0].to(target["masks"].dtype)
    if "keypoints" in target:
        scaled["keypoints"] = target["keypoints"] * target["keypoints"].new_tensor([across, down, 1])
    return scaled
