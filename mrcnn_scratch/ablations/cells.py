"""How large objects are for a RoI op: sqrt(area) in cells of the map that it reads."""

from functools import lru_cache

import torch

from ..config import ModelConfig
from ..preprocess import resized_size
from ..roi_ops.levels import assign_levels

IMAGES = 200  # at most, that are looked at: COCO's 5000 would be decoded for it
QUANTILES = (0.1, 0.5, 0.9)


def in_cells(boxes: torch.Tensor, stride: int | torch.Tensor) -> torch.Tensor:
    """(G, 4) xyxy boxes in pixels -> (G,) sqrt(area) / stride; stride: pixels a cell, or (G,) of each box's own map."""
    return (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt() / stride


def model_cells(boxes: torch.Tensor, size: tuple[int, int], config: ModelConfig) -> torch.Tensor:
    """(G,) sizes of objects in an image of H x W, resized as the model does, each on the map that its RoI reads."""
    resized = resized_size(size, config.min_size, config.max_size, config.resize)
    scale = boxes.new_tensor([resized[1] / size[1], resized[0] / size[0]] * 2)
    boxes, strides = boxes * scale, torch.tensor(config.strides[:4])
    if len(strides) == 1:
        return in_cells(boxes, config.strides[0])
    finest = int(strides[0]).bit_length() - 1  # level k has stride 2^k
    levels = assign_levels(boxes, finest, finest + 3, config.canonical_size, config.canonical_level)
    return in_cells(boxes, strides[levels])


def object_cells(dataset, sizes_in) -> list[float]:
    """Size of every object of the first `IMAGES` images, crowds left out.

    Args:
        sizes_in: (boxes (G, 4) xyxy in pixels, (H, W) of their image) -> (G,) cells.
    """
    return [size for boxes, image in _objects(dataset) for size in sizes_in(boxes, image).tolist()]


@lru_cache(maxsize=8)
def _objects(dataset) -> list[tuple[torch.Tensor, tuple[int, int]]]:
    """Boxes and H, W of each image; looked up once for all arms."""
    items = (dataset[index] for index in range(min(len(dataset), IMAGES)))
    return [(target["boxes"][target["iscrowd"] == 0], tuple(image.shape[-2:])) for image, target in items]


def spread(cells: list[float]) -> list[float]:
    """The sizes that 10, 50 and 90 % of the objects do not exceed; empty of none."""
    if not cells:
        return []
    return [round(float(value), 2) for value in torch.tensor(cells).quantile(torch.tensor(QUANTILES))]
