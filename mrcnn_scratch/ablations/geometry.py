"""Tier 0: what a RoI op can carry at best. No learning: a perfect feature map, one op, the mask that comes out.

The *oracle*: the feature map is the true mask, averaged over each cell. The op pools 28 x 28 bins from it; cut at one
half and pasted back, they are compared with the mask. What is lost here no network can know.

The *ramp*: the feature map holds its own coordinates. What a bin reads, minus where the bin's centre is, is the op's
error in pixels. Its mean is a bias, which a network can learn away; its spread over the RoIs is jitter, which none can.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..batches import generator_for
from ..config import ModelConfig
from ..pasting import paste_masks
from ..roi_heads import RoIHeads
from .cells import in_cells, object_cells
from .measures import fractions
from .oracle import jitter, mask_ious
from .oracle_runs import shapes
from .plan import Arm, plain

BINS = 28


@dataclass(frozen=True)
class Geometry:
    """Tier 0 on the validation objects of the embedded data; a seed moves the boxes."""

    preset: str = "coco-like"  # 3 to 10 cells of 16 pixels
    images: int = 150
    jitter: float = 0.1  # share of a box's side
    size: tuple[float, float] = (0.0, float("inf"))  # only objects of so many cells, sqrt(area) / stride

    def facts(self) -> dict:
        """See :class:`plan.Tier`."""
        return plain(self)

    def check(self, arm: Arm) -> None:
        """Refuses settings that cannot be, before anything is run."""
        shapes(self.preset, self.images, "val", None)
        pooling(arm)

    def cells(self, arm: Arm) -> list[float]:
        """See :class:`plan.Tier`."""
        data = shapes(self.preset, self.images, "val", None)
        sizes = object_cells(data, lambda boxes, _: in_cells(boxes, arm.stride))
        return [size for size in sizes if self.size[0] <= size < self.size[1]]

    def run(self, arm: Arm, seed: int, on_step=None, device: str | None = None, folder=None) -> dict:
        """``{"measures", "similarities"}``: AP* of the oracle, bias and jitter of the ramp."""
        data = shapes(self.preset, self.images, "val", None)
        op = pooling(arm)
        found, errors = [], []
        for index in range(len(data)):
            target = data[index][1]
            masks, boxes = self._chosen(target, arm.stride)
            if not len(boxes):
                continue
            boxes = jitter(boxes, self.jitter, generator_for(seed, "geometry RoIs", index))
            found += mask_ious(oracle(masks, boxes, op, arm.stride) >= 0.5, masks).tolist()
            errors.append(ramp(boxes, tuple(masks.shape[-2:]), op, arm.stride))
        if not found:
            raise ValueError(f"{self.preset}: none of {len(data)} images has objects of {self.size} cells, give more")
        bias, spread = bias_and_jitter(torch.cat(errors))
        measures = fractions(found, "mask")
        measures |= {"bias, px": bias, "jitter, px": spread, "objects": len(found)}
        return {"measures": measures, "similarities": [round(value, 6) for value in found]}

    def _chosen(self, target: dict, stride: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks and boxes of the objects of the wanted size that are no crowds."""
        boxes = target["boxes"]
        cells = in_cells(boxes, stride)
        chosen = (target["iscrowd"] == 0) & (cells >= self.size[0]) & (cells < self.size[1])
        return target["masks"][chosen], boxes[chosen]


def pooling(arm: Arm):
    """The arm's RoI op as ``op(features, rois, size, spatial_scale)``."""
    return RoIHeads(ModelConfig().with_fields(**arm.fields))._roi_op


def oracle(masks: torch.Tensor, boxes: torch.Tensor, op, stride: int) -> torch.Tensor:
    """Each mask through its own feature map and one op, back in the image.

    Args:
        masks: (P, H, W) 0/1.
        boxes: (P, 4) xyxy, pixels.
        op: see :func:`pooling`.
        stride: pixels a cell; the last cells of an image may be cut.

    Returns:
        (P, H, W) in [0, 1].
    """
    H, W = masks.shape[-2:]
    features = F.avg_pool2d(_whole_cells(masks.float(), stride)[:, None], stride)  # (P, 1, H / s, W / s)
    pooled = op(features, _one_each(boxes), BINS, 1 / stride)[:, 0]  # (P, 28, 28)
    return paste_masks(pooled, boxes, (H, W))


def ramp(boxes: torch.Tensor, size: tuple[int, int], op, stride: int) -> torch.Tensor:
    """(P, 28) error in pixels, down the image, of what each row of bins reads of a map of its own coordinates.

    Args:
        boxes: (P, 4) xyxy, pixels.
        size: H, W of the image.
        op, stride: as for :func:`oracle`.
    """
    margin = 4  # cells around the image: no sample is clamped to a border
    rows, columns = -(-size[0] // stride) + 2 * margin, -(-size[1] // stride) + 2 * margin
    centres = (torch.arange(rows) + 0.5) * stride  # of each row of cells, pixels
    features = centres[None, None, :, None].expand(1, 1, rows, columns).contiguous()
    moved = boxes + margin * stride
    read = op(features, [moved], BINS, 1 / stride)[:, 0].mean(dim=2)  # (P, 28)
    bins = (torch.arange(BINS) + 0.5) / BINS
    wanted = moved[:, 1:2] + bins * (moved[:, 3:4] - moved[:, 1:2])  # (P, 28)
    return read - wanted


def bias_and_jitter(errors: torch.Tensor) -> tuple[float, float]:
    """(R, 28) errors -> their mean, and the standard deviation over RoIs of a bin's error, averaged over bins."""
    return float(errors.mean()), float(errors.std(dim=0, unbiased=False).mean())


def _whole_cells(masks: torch.Tensor, stride: int) -> torch.Tensor:
    H, W = masks.shape[-2:]
    return F.pad(masks, (0, -W % stride, 0, -H % stride))


def _one_each(boxes: torch.Tensor) -> torch.Tensor:
    """(P, 4) -> (P, 5): RoI i reads map i."""
    return torch.cat([torch.arange(len(boxes))[:, None].to(boxes), boxes], dim=1)
