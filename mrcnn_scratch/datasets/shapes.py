"""The embedded dataset: procedural pictures of shapes and people with boxes, masks and keypoints, nothing to download.

Image i of a split is a function of (seed, split, i) and of the preset alone: the same in any order, in any process and
for any number of images.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from pycocotools import mask as mask_util

from mrcnn_scratch.datasets.figures import FLIP_PAIRS, KEYPOINT_NAMES, SKELETON, figure_blobs, figure_palette
from mrcnn_scratch.datasets.outlines import OUTLINES, shape_blobs, shape_palette
from mrcnn_scratch.datasets.render import (
    Placed,
    Sprite,
    background,
    contrasting_colour,
    draw_sprite,
    paint,
    resolve_occlusion,
)

# category ids have gaps, as COCO's have, so that nobody can mistake a label for a category id
CATEGORY_IDS = {"person": 1, "star": 4, "ring": 7, "cross": 13, "crescent": 18, "gear": 27, "arrow": 44}
SPLITS = {"train": 0, "val": 1, "test": 2}
DEMO_CLASSES = ("person", "star", "ring", "cross")


@dataclass(frozen=True)
class ShapesPreset:
    """What the pictures of a dataset are like. All values are toy choices."""

    name: str
    image_size: tuple[int, int]  # H, W in pixels
    objects: tuple[int, int]  # least and most objects drawn for an image that is not empty
    shape_size: tuple[
        float, float
    ]  # sqrt(box width * box height) of a whole shape, pixels; drawn log-uniformly
    person_size: tuple[float, float]  # the same for persons
    empty_fraction: float  # of images, 0 to 1
    classes: tuple[str, ...]  # label 1, 2, ...; drawn with equal odds
    overlap: (
        float  # most of the smaller of two boxes that may be covered by the other, 0 to 1, where space allows
    )
    cut_fraction: float  # of objects that may stick out of the image, 0 to 1
    min_shown: float = (
        0.4  # least visible fraction of an object's area; it is left out of the picture otherwise
    )
    crowd_every: int = 0  # every n-th image also has a heap of small shapes annotated as one crowd; 0: none


PRESETS = {
    preset.name: preset
    for preset in (
        ShapesPreset("demo", (128, 128), (1, 4), (26, 64), (32, 72), 0.05, DEMO_CLASSES, 0.25, 0.15),
        # 1 to 3 cells at stride 16, where the quantisation of RoIPool costs most
        ShapesPreset("hard", (128, 128), (2, 6), (16, 48), (16, 48), 0.05, DEMO_CLASSES, 0.3, 0.15),
        # 3 to 10 cells at stride 16, the range of most COCO objects
        ShapesPreset(
            "coco-like", (256, 256), (2, 6), (48, 160), (48, 160), 0.05, tuple(CATEGORY_IDS), 0.5, 0.2
        ),
        # a 16-fold range, so that a pyramid has something to do
        ShapesPreset(
            "multiscale", (256, 256), (2, 8), (12, 192), (16, 192), 0.05, tuple(CATEGORY_IDS), 0.5, 0.2
        ),
    )
}


def _resolve_preset(preset, image_size, classes) -> ShapesPreset:
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise ValueError(f"unknown preset {preset!r}: choose one of {', '.join(PRESETS)}")
        preset = PRESETS[preset]
    size = tuple(preset.image_size if image_size is None else image_size)
    names = tuple(preset.classes if classes is None else classes)
    if (
        isinstance(classes, str)
        or not names
        or len(set(names)) < len(names)
        or set(names) - set(CATEGORY_IDS)
    ):
        raise ValueError(
            f"classes={classes!r}: give a tuple of distinct names out of {', '.join(CATEGORY_IDS)}"
        )
    least = max(32, int(np.ceil(2 * min(preset.shape_size[0], preset.person_size[0]))))
    if len(size) != 2 or min(size) < least:
        raise ValueError(
            f"image_size={size} is too small for preset {preset.name!r}: give (H, W), each at least {least}"
        )
    return replace(preset, image_size=(int(size[0]), int(size[1])), classes=names)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _sprite(
    name: str, rng: np.random.Generator, preset: ShapesPreset, behind: np.ndarray, size: float
) -> Sprite:
    H, W = preset.image_size
    phase = tuple(rng.random(2))
    colour = contrasting_colour(rng, behind)
    limit = (H - 2.0, W - 2.0)
    if name == "person":
        blobs, joints = figure_blobs(rng)
        return draw_sprite(blobs, figure_palette(rng, colour), size, limit, phase, joints)
    return draw_sprite(shape_blobs(name, rng), shape_palette(colour), size, limit, phase)


def _place(
    rng: np.random.Generator, sprite: Sprite, preset: ShapesPreset, others: list[Placed]
) -> tuple[int, int]:
    """The first of 12 random places that overlaps little, else the best of them: rows and columns of its corner."""
    (h, w), (H, W) = sprite.size, preset.image_size
    slack = 0.3 if rng.random() < preset.cut_fraction else 0.0
    best, best_overlap = (0, 0), np.inf
    for u, v in rng.random((12, 2)):
        top = int(np.floor(-slack * h + u * max(0.0, H - h + 2 * slack * h)))
        left = int(np.floor(-slack * w + v * max(0.0, W - w + 2 * slack * w)))
        overlap = max((_overlap(top, left, h, w, other) for other in others), default=0.0)
        if overlap < best_overlap:
            best, best_overlap = (top, left), overlap
        if overlap <= preset.overlap:
            break
    return best


def _overlap(top: int, left: int, h: int, w: int, other: Placed) -> float:
    oh, ow = other.sprite.size
    common_h = min(top + h, other.top + oh) - max(top, other.top)
    common_w = min(left + w, other.left + ow) - max(left, other.left)
    return max(0, common_h) * max(0, common_w) / min(h * w, oh * ow)


def _heap(rng: np.random.Generator, preset: ShapesPreset, behind: np.ndarray) -> tuple[Sprite, int]:
    """Eight small shapes of one class on top of one another, drawn as a single sprite; and their label."""
    names = [name for name in preset.classes if name in OUTLINES] or ["person"]
    name = names[rng.integers(len(names))]
    size = max(10.0, min(preset.image_size) / 9)
    across = int(size * 3.2)
    parts, palette = np.zeros((across * 4, across * 4), np.uint8), np.zeros((256, 3), np.uint8)
    used = 0
    for _ in range(8):
        small = _sprite(name, rng, preset, behind, size * rng.uniform(0.85, 1.15))
        h, w = small.parts.shape
        y, x = (rng.random(2) * [across * 4 - h, across * 4 - w]).astype(int).clip(0)
        region = parts[y : y + h, x : x + w]
        cut = small.parts[: region.shape[0], : region.shape[1]]
        region[cut > 0] = cut[cut > 0] + used
        colours = len(small.palette) - 1
        palette[used + 1 : used + 1 + colours] = small.palette[1:]
        used = (used + colours) % (255 - colours)
    return Sprite(parts, palette, np.zeros((0, 2)), np.zeros(0, bool)), preset.classes.index(name) + 1


def render_scene(preset: ShapesPreset, seed: int, split: int, index: int) -> tuple[np.ndarray, list[Placed]]:
    """Draw one image.

    seed, split, index: what the image is a function of.
    Returns (H, W, 3) uint8 and its objects in painting order, each with mask, box and keypoints.
    """
    rng = np.random.default_rng(np.random.SeedSequence((seed, split, index)))
    image = background(rng, preset.image_size)
    behind = image[::8, ::8].mean((0, 1))
    placed: list[Placed] = []
    low, high = preset.objects
    count = 0 if rng.random() < preset.empty_fraction else int(rng.integers(low, high + 1))
    for _ in range(count):
        label = int(rng.integers(len(preset.classes))) + 1
        name = preset.classes[label - 1]
        size = _log_uniform(rng, *(preset.person_size if name == "person" else preset.shape_size))
        sprite = _sprite(name, rng, preset, behind, size)
        placed.append(Placed(label, False, sprite, *_place(rng, sprite, preset, placed)))
    if preset.crowd_every and index % preset.crowd_every == preset.crowd_every - 1:
        sprite, label = _heap(rng, preset, behind)
        # on top, so that it is always seen
        placed.append(
            Placed(label, True, sprite, *_place(rng, sprite, replace(preset, cut_fraction=0.0), placed))
        )
    least = min(preset.shape_size[0], preset.person_size[0])
    placed = resolve_occlusion(placed, preset.image_size, preset.min_shown, least)
    paint(image, placed)
    return image, placed


class ShapesDataset(torch.utils.data.Dataset):
    """Procedural images with torchvision's targets; see ShapesPreset for what they show.

    preset: a name in PRESETS or a ShapesPreset.
    num_images: length; image i does not depend on it.
    seed: non-negative; other seeds give other images.
    image_size: (H, W) in pixels instead of the preset's; need not be square.
    classes: names instead of the preset's, label 1 first.
    cache: keep what was drawn, as uint8 pixels and packed masks.
    split: "train", "val" or "test": three streams of images that never meet, for one seed.
    Raises ValueError for a preset, class, size or split that does not exist, IndexError for an index out of range.
    """

    def __init__(
        self, preset="demo", num_images=100, seed=0, image_size=None, classes=None, cache=True, split="train"
    ):
        if split not in SPLITS:
            raise ValueError(f"split={split!r}: choose one of {', '.join(SPLITS)}")
        if num_images < 0 or seed < 0:
            raise ValueError(f"num_images={num_images}, seed={seed}: neither can be negative")
        self.preset = _resolve_preset(preset, image_size, classes)
        self.seed, self.split, self.num_images = int(seed), split, int(num_images)
        self.class_names = ["background", *self.preset.classes]
        self.num_classes = len(self.class_names)
        self.label_to_category = {
            label: CATEGORY_IDS[name] for label, name in enumerate(self.preset.classes, 1)
        }
        self.image_ids = list(range(1, self.num_images + 1))
        people = "person" in self.preset.classes
        self.num_keypoints = len(KEYPOINT_NAMES) if people else 0
        self.keypoint_names = list(KEYPOINT_NAMES) if people else []
        self.flip_pairs = list(FLIP_PAIRS) if people else []
        self.skeleton = list(SKELETON) if people else []
        self._cache: dict[int, tuple] | None = {} if cache else None

    def __len__(self) -> int:
        return self.num_images

    def _record(self, index: int) -> tuple[np.ndarray, np.ndarray, list[Placed]]:
        """Image (H, W, 3) uint8, masks packed to bits along W, and the objects without their pictures."""
        if not 0 <= index < self.num_images:
            raise IndexError(f"image index {index} is not in 0..{self.num_images - 1}")
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        image, placed = render_scene(self.preset, self.seed, SPLITS[self.split], index)
        H, W = self.preset.image_size
        masks = np.stack([item.mask for item in placed]) if placed else np.zeros((0, H, W), bool)
        for item in placed:
            item.sprite = item.mask = None
        record = image, np.packbits(masks, axis=2), placed
        if self._cache is not None:
            self._cache[index] = record
        return record

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict]:
        """Image (3, H, W) float32 in [0, 1] and its target; `keypoints` only where the dataset has persons."""
        index = int(index)
        image, packed, placed = self._record(index)
        H, W = self.preset.image_size
        G, J = len(placed), self.num_keypoints
        masks = torch.from_numpy(np.unpackbits(packed, axis=2, count=W))  # (G, H, W)
        target = {
            "boxes": torch.tensor(np.array([item.box for item in placed]).reshape(G, 4), dtype=torch.float32),
            "labels": torch.tensor([item.label for item in placed], dtype=torch.int64),
            "masks": masks,
            "image_id": self.image_ids[index],
            "area": masks.sum((1, 2)).to(torch.float32),
            "iscrowd": torch.tensor([int(item.crowd) for item in placed], dtype=torch.int64),
        }
        if J:
            keypoints = torch.zeros(G, J, 3)
            for g, item in enumerate(placed):
                if len(item.keypoints):
                    keypoints[g] = torch.from_numpy(item.keypoints)
            target["keypoints"] = keypoints
        return torch.from_numpy(image).permute(2, 0, 1).to(torch.float32).div_(255), target

    def coco_dict(self) -> dict:
        """The whole dataset as COCO's ground truth, for pycocotools.

        Boxes are xywh in continuous pixels, masks RLE, and keypoints pixel indices: ours less 0.5. Every annotation has
        keypoints where the dataset has persons (other classes have none labelled), since COCOeval reads them of all.
        """
        H, W = self.preset.image_size
        images, annotations = [], []
        for index, image_id in enumerate(self.image_ids):
            images.append({"id": image_id, "file_name": f"{image_id:012d}.png", "height": H, "width": W})
            _, packed, placed = self._record(index)
            masks = np.unpackbits(packed, axis=2, count=W)
            for item, mask in zip(placed, masks, strict=True):
                annotations.append(self._annotation(len(annotations) + 1, image_id, item, mask))
        categories = [coco_category(name) for name in self.preset.classes]
        return {"info": {"description": f"shapes:{self.preset.name}"}, "images": images,
                "annotations": annotations, "categories": categories}  # fmt: skip

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
            keypoints = np.zeros((self.num_keypoints, 3))
            if len(item.keypoints):
                keypoints = np.where(
                    item.keypoints[:, 2:] > 0, item.keypoints - [0.5, 0.5, 0.0], 0.0
                )  # pixel index
            annotation["keypoints"] = [
                int(v) if k % 3 == 2 else v for k, v in enumerate(keypoints.ravel().tolist())
            ]
            annotation["num_keypoints"] = int((keypoints[:, 2] > 0).sum())
        return annotation


def coco_category(name: str) -> dict:
    """COCO's category entry of a class; person's also has keypoint names and the skeleton, 1-based as in COCO."""
    if name != "person":
        return {"id": CATEGORY_IDS[name], "name": name, "supercategory": "shape"}
    skeleton = [[a + 1, b + 1] for a, b in SKELETON]
    return {
        "id": 1,
        "name": name,
        "supercategory": "person",
        "keypoints": list(KEYPOINT_NAMES),
        "skeleton": skeleton,
    }
