"""Images of noise with plausible targets: to measure a training step's time and memory where the data is not there."""

import math

import torch

from .coco import PERSON_KEYPOINTS, flip_pairs

OBJECTS = 7  # in an image: COCO's train2017 has 7.3 on average
SMALLEST, LARGEST = 0.02, 0.6  # side of an object, of the image's shorter edge


class NoiseDataset:
    """Noise with ellipses as objects, every image of one size.

    ``dataset[i]`` is (image (3, H, W) float32 in [0, 1], target), as of :class:`~.coco.CocoDataset`; the same for the
    same seed and index.

    Args:
        size: (H, W), pixels.
        num_classes: K, with the background.
        num_keypoints: J, all visible; the names are COCO's if it is 17.
        images: how many there are.
        seed: of the noise.
        proposals: of each image, as of an RPN trained apart: half of them near an object; 0 for none.
    """

    def __init__(
        self, size: tuple[int, int], num_classes: int = 81, num_keypoints: int = 0, images: int = 1000, seed: int = 0,
        proposals: int = 0,
    ):  # fmt: skip
        self.size, self.num_classes, self.num_keypoints, self.seed = size, num_classes, num_keypoints, seed
        self.proposals = proposals
        self.class_names = ["background", *(f"noise {label}" for label in range(1, num_classes))]
        self.image_ids = range(1, images + 1)
        coco = num_keypoints == len(PERSON_KEYPOINTS)
        self.keypoint_names = list(PERSON_KEYPOINTS) if coco else [f"point {j}" for j in range(num_keypoints)]
        self.flip_pairs = flip_pairs(self.keypoint_names)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict]:
        generator = torch.Generator().manual_seed(self.seed * len(self) + index)
        H, W = self.size

        def uniform(*shape: int) -> torch.Tensor:
            return torch.rand(shape, generator=generator)

        boxes = self._boxes(OBJECTS, uniform)
        corner, extent = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
        target = {
            "boxes": boxes,
            "labels": torch.randint(1, self.num_classes, (OBJECTS,), generator=generator),
            "masks": _ellipses(boxes, H, W),
            "image_id": self.image_ids[index],
            "area": extent.prod(dim=1) * (math.pi / 4),
            "iscrowd": torch.zeros(OBJECTS, dtype=torch.int64),
        }
        if self.num_keypoints:
            places = corner[:, None] + uniform(OBJECTS, self.num_keypoints, 2) * extent[:, None]  # (G, J, 2)
            target["keypoints"] = torch.cat([places, torch.full_like(places[..., :1], 2)], dim=-1)
        if self.proposals:
            near = boxes.repeat(-(-self.proposals // (2 * OBJECTS)), 1)[: self.proposals // 2]
            far = self._boxes(self.proposals - len(near), uniform)
            shift = (near[:, 2:] - near[:, :2]) * (uniform(len(near), 2) - 0.5) * 0.2  # of a tenth of the size at most
            limit = torch.tensor([W, H, W, H])
            target["proposals"] = torch.cat([(near + shift.repeat(1, 2)).clamp(min=0).minimum(limit), far])
        return uniform(3, H, W), target

    def _boxes(self, number: int, uniform) -> torch.Tensor:
        """(number, 4) xyxy inside the image, as many small as large ones."""
        H, W = self.size
        side = min(H, W) * SMALLEST * (math.log(LARGEST / SMALLEST) * uniform(number)).exp()
        stretch = 2 ** (uniform(number) - 0.5)  # the square root of width over height, which is 1/2 to 2
        extent = torch.stack([side * stretch, side / stretch], dim=1)  # (number, 2)
        corner = uniform(number, 2) * (torch.tensor([W, H]) - extent)
        return torch.cat([corner, corner + extent], dim=1)


def _ellipses(boxes: torch.Tensor, H: int, W: int) -> torch.Tensor:
    """(G, 4) xyxy -> (G, H, W) uint8: the ellipse that fills each box, at least its middle pixel."""
    centre, radius = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2  # (G, 2)
    x = (torch.arange(W) + 0.5 - centre[:, :1]) / radius[:, :1]  # (G, W)
    y = (torch.arange(H) + 0.5 - centre[:, 1:]) / radius[:, 1:]  # (G, H)
    masks = (x[:, None] ** 2 + y[:, :, None] ** 2 <= 1).to(torch.uint8)  # (G, H, W)
    column, row = centre.long().unbind(dim=1)
    masks[torch.arange(len(boxes)), row, column] = 1
    return masks
