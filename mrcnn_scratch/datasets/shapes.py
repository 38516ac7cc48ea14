"""The embedded data set: procedural pictures of shapes and people with boxes, masks and keypoints.

Image i of a split is a function of (seed, split, i) and of the preset alone: the same in any order, in any
process and for any number of images.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from pycocotools import mask as mask_util

from mrcnn_scratch.datasets.figures import FLIP_PAIRS, KEYPOINT_NAMES, SKELETON
from mrcnn_scratch.datasets.presets import CATEGORY_IDS, PRESETS, ShapesPreset, resolve_preset
from mrcnn_scratch.datasets.render import Placed
from mrcnn_scratch.datasets.scene import render_scene

__all__ = ["CATEGORY_IDS", "PRESETS", "SPLITS", "ShapesDataset", "ShapesPreset"]

SPLITS = {"train": 0, "val": 1, "test": 2}


class ShapesDataset(torch.utils.data.Dataset):
    """Procedural images with torchvision's targets; `ShapesPreset` says what they show.

    preset: a name in PRESETS or a ShapesPreset.
    num_images: length; image i does not depend on it.
    seed: non-negative; another seed gives other images.
    image_size: (H, W) in pixels instead of the preset's; need not be square.
    classes: names instead of the preset's, label 1 first.
    cache: keep what was drawn, as uint8 pixels and masks of one bit a pixel.
    split: "train", "val" or "test": streams of images that never meet.
    Raises ValueError for a preset, class, size or split that does not exist; indexing raises IndexError.

    Boxes are tight around what is seen, to a quarter of a pixel; a mask has the pixels of which at least
    half is the object, seen; a keypoint has v 2 when seen, 1 when an object or its own body hides it, and
    the row is 0, 0, 0 when it is outside the image. An object with iscrowd 1 is a heap of small shapes,
    without keypoints.
    """

    def __init__(
        self,
        preset: str | ShapesPreset = "demo",
        num_images: int = 100,
        seed: int = 0,
        image_size: Sequence[int] | None = None,
        classes: Sequence[str] | None = None,
        cache: bool = True,
        split: str = "train",
    ):
        if split not in SPLITS:
            raise ValueError(f"split={split!r}: choose one of {', '.join(SPLITS)}")
        if num_images < 0 or seed < 0:
            raise ValueError(f"num_images={num_images}, seed={seed}: neither can be negative")
        self.preset = resolve_preset(preset, image_size, classes)
        self.num_images, self.seed, self.split = int(num_images), int(seed), split
        names = self.preset.classes
        self.class_names = ["background", *names]
        self.num_classes = len(self.class_names)
        self.label_to_category = {label: CATEGORY_IDS[name] for label, name in enumerate(names, 1)}
        self.image_ids = list(range(1, self.num_images + 1))
        people = "person" in names
        self.num_keypoints = len(KEYPOINT_NAMES) if people else 0
        self.keypoint_names = list(KEYPOINT_NAMES) if people else []
        self.flip_pairs = list(FLIP_PAIRS) if people else []
        self.skeleton = list(SKELETON) if people else []
        self._cache: dict[int, tuple] | None = {} if cache else None

    def __len__(self) -> int:
        return self.num_images

    def with_crowds(self, every: int) -> "ShapesDataset":
        """The same images, but every `every`-th also has a crowd; 0 for none."""
        preset = replace(self.preset, crowd_every=every)
        cache = self._cache is not None
        return ShapesDataset(preset, self.num_images, self.seed, cache=cache, split=self.split)

    def pixels(self, index: int) -> np.ndarray:
        """Image `index` as (3, H, W) uint8; not to be written to."""
        return self._record(index)[0]

    def _record(self, index: int) -> tuple[np.ndarray, np.ndarray, list[Placed]]:
        """Image (3, H, W) uint8, masks (G, H, ceil(W / 8)) of bits, and the objects without pictures."""
        if not 0 <= index < self.num_images:
            raise IndexError(f"image index {index} is not in 0..{self.num_images - 1}")
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        image, placed = render_scene(self.preset, self.seed, SPLITS[self.split], index)
        masks = np.array([item.mask for item in placed], bool).reshape(-1, *self.preset.image_size)
        for item in placed:
            item.sprite = item.mask = None
        record = np.ascontiguousarray(image.transpose(2, 0, 1)), np.packbits(masks, axis=2), placed
        if self._cache is not None:
            self._cache[index] = record
        return record

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict]:
        """Image (3, H, W) float32 in [0, 1], and target; it has keypoints where the classes have persons."""
        index = int(index)
        image, packed, placed = self._record(index)
        _, H, W = image.shape
        G, J = len(placed), self.num_keypoints
        masks = torch.from_numpy(np.unpackbits(packed, axis=2, count=W))  # (G, H, W)
        target = {
            "boxes": torch.from_numpy(np.array([item.box for item in placed], np.float32).reshape(G, 4)),
            "labels": torch.tensor([item.label for item in placed], dtype=torch.int64),
            "masks": masks,
            "image_id": self.image_ids[index],
            "area": masks.sum((1, 2)).to(torch.float32),
            "iscrowd": torch.tensor([int(item.crowd) for item in placed], dtype=torch.int64),
        }
        if J:
            rows = [_joints(item, J) for item in placed]
            target["keypoints"] = torch.from_numpy(np.array(rows, np.float32).reshape(G, J, 3))
        return torch.from_numpy(image).to(torch.float32) / 255, target

    def coco_dict(self) -> dict:
        """The whole data set as COCO's ground truth, for pycocotools.

        Boxes are xywh in continuous pixels, masks RLE, and keypoints pixel indices: ours less 0.5. Where the
        classes have persons every annotation has keypoints, 0 for other classes, as COCOeval reads them of
        all.
        """
        H, W = self.preset.image_size
        images, annotations = [], []
        for index, image_id in enumerate(self.image_ids):
            images.append({"id": image_id, "file_name": f"{image_id:012d}.png", "height": H, "width": W})
            _, packed, placed = self._record(index)
            for item, mask in zip(placed, np.unpackbits(packed, axis=2, count=W), strict=True):
                annotations.append(self._annotation(len(annotations) + 1, image_id, item, mask))
        return {
            "info": {"description": f"procedural shapes, preset {self.preset.name}"},
            "images": images,
            "annotations": annotations,
            "categories": [coco_category(name) for name in self.preset.classes],
        }

    def _annotation(self, annotation_id: int, image_id: int, item: Placed, mask: np.ndarray) -> dict:
        rle = mask_util.encode(np.asfortranarray(mask))
        x0, y0, x1, y1 = item.box.tolist()
        annotation = {
            "id": annotation_id,
            "image_id": image_id,
            "category_id": self.label_to_category[item.label],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": float(mask.sum()),
            "iscrowd": int(item.crowd),
            "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
        }
        if self.num_keypoints:
            keypoints = _joints(item, self.num_keypoints)
            # COCO's are indices of pixels, whose centres are at i + 0.5
            keypoints[keypoints[:, 2] > 0, :2] -= 0.5
            annotation["keypoints"] = [v for x, y, seen in keypoints.tolist() for v in (x, y, int(seen))]
            annotation["num_keypoints"] = int((keypoints[:, 2] > 0).sum())
        return annotation


def _joints(item: Placed, count: int) -> np.ndarray:
    """(J, 3) float64 keypoints; zeros for what has none."""
    return item.keypoints.copy() if len(item.keypoints) else np.zeros((count, 3))


def coco_category(name: str) -> dict:
    """COCO's category entry of a class; person's has keypoint names and the skeleton, 1-based as in COCO."""
    entry = {
        "id": CATEGORY_IDS[name],
        "name": name,
        "supercategory": "person" if name == "person" else "shape",
    }
    if name == "person":
        entry |= {"keypoints": list(KEYPOINT_NAMES), "skeleton": [[a + 1, b + 1] for a, b in SKELETON]}
    return entry
