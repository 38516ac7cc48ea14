"""Training recipes: what the paper, Detectron and torchvision train a named model with, number by number.

A recipe is a :class:`~mrcnn_scratch.schedule.TrainConfig` and the fields in which the model differs from its preset.
Where each number comes from is in recipe_sources.py; ``mrcnn train --config R50-FPN --show-recipe`` prints both.
"""

import math
from dataclasses import dataclass, field, replace

from .config import ModelConfig
from .presets import model_config
from .schedule import PAPER, TrainConfig

STYLES = ("paper", "detectron", "torchvision")
_NECKS = {"paper": ("fpn", "c4", "c5"), "detectron": ("fpn", "c4"), "torchvision": ("fpn",)}  # that each has
COCO_IMAGES = 117_266  # of train2017's 118,287 those with an object
COCO_PERSON_IMAGES = 56_599  # those with a labelled keypoint
KEYPOINT_SIZES = (640, 672, 704, 736, 768, 800)  # shorter edges, pixels: Detectron and torchvision
# Its pixels are blue, green, red in 0..255, divided by nothing; half pixels are torchvision's but in mask targets
_DETECTRON = {
    "mean": (122.7717 / 255, 115.9465 / 255, 102.9801 / 255), "std": (1 / 255,) * 3, "roi_aligned": False,
    "mask_target_binary": True, "paste_legacy": True,
}  # fmt: skip
_DETECTRON_C4 = {
    "roi_batch": 512, "box_pool": 14, "mask_pool": 14, "res5_stride": 2, "sampling_ratio": 0,
    "rpn_post_nms_test": 1000,
}  # fmt: skip
_ONE_IMAGE_PER_GPU = {"batch_size": 8, "lr": 0.01, "images_per_micro_batch": 1}


@dataclass(frozen=True)
class Recipe:
    """How one code base trains one model.

    Attributes:
        name: a key of :data:`~mrcnn_scratch.presets.PRESETS`.
        style: of ``STYLES``.
        conventions: of the model, see :func:`~mrcnn_scratch.presets.model_config`.
        model: fields in which it differs from the preset with these conventions.
        train: the training's settings.
        epochs: passes over the data, where the recipe counts them instead of steps.
        min_keypoints: an image needs as many labelled keypoints to be trained on; one without objects never is.
    """

    name: str
    style: str
    conventions: str
    train: TrainConfig
    model: dict = field(default_factory=dict)
    epochs: int | None = None
    min_keypoints: int = 0

    def model_config(self, **values) -> ModelConfig:
        """The model's configuration; ``values`` win over the recipe."""
        return model_config(self.name, self.conventions, **{**self.model, **values})


def recipe(name: str, style: str = "paper", keypoints: int = 0, images: int | None = None) -> Recipe:
    """The recipe of a named model.

    Args:
        name: a key of :data:`~mrcnn_scratch.presets.PRESETS`. The tiny models, R18 and EfficientNet get what the
            ResNets of their neck get: nobody published more.
        style: "paper", "detectron" (its baselines of 12/2017, "1x") or "torchvision" (references/detection).
        keypoints: J of the keypoint branch; with one the schedules and image sizes are those of section 5.
        images: in the training set, for a recipe in epochs; None is COCO's train2017.

    Raises:
        ValueError: an unknown name or style, or a model that the code base does not have.
    """
    if style not in STYLES:
        raise ValueError(f"unknown recipe {style!r}: choose one of {', '.join(STYLES)}")
    preset = model_config(name)
    if preset.neck not in _NECKS[style]:
        others = " or ".join(other for other in STYLES if preset.neck in _NECKS[other])
        raise ValueError(f"{style} has no recipe for a model like {name}, of neck {preset.neck!r}: choose {others}")
    make = {"paper": _paper, "detectron": _detectron, "torchvision": _torchvision}[style]
    made = make(name, preset, keypoints, images)
    if keypoints and preset.min_size:
        sizes = tuple(range(640, 801)) if style == "paper" else KEYPOINT_SIZES
        made = replace(made, model={**made.model, "train_min_sizes": sizes})
    return made


def _paper(name: str, preset: ModelConfig, keypoints: int, images: int | None) -> Recipe:
    """Section 3.1, and section 5 for keypoints; warm-up and what else it is silent about are Detectron's."""
    values = {"images_per_micro_batch": 2}  # 8 GPUs x 2 images
    if preset.backbone.startswith("resnext"):
        values |= _ONE_IMAGE_PER_GPU
    if keypoints:
        values |= {"steps": 90_000, "milestones": (60 / 90, 80 / 90)}
    return Recipe(name, "paper", "paper", replace(PAPER, **values), min_keypoints=1 if keypoints else 0)


def _detectron(name: str, preset: ModelConfig, keypoints: int, images: int | None) -> Recipe:
    """configs/12_2017_baselines/e2e_*_1x.yaml over core/config.py."""
    values = {"steps": 90_000, "milestones": (60 / 90, 80 / 90), "images_per_micro_batch": 2, "decay_norm_bias": False}
    if not keypoints and (preset.neck == "c4" or preset.backbone.startswith("resnext")):
        values |= {"steps": 180_000, **_ONE_IMAGE_PER_GPU}
    fields = _DETECTRON | (_DETECTRON_C4 if preset.neck == "c4" else {})
    train = replace(PAPER, **values)
    return Recipe(name, "detectron", "paper", train, fields, min_keypoints=1 if keypoints else 0)


def _torchvision(name: str, preset: ModelConfig, keypoints: int, images: int | None) -> Recipe:
    """references/detection/train.py and engine.py, as its README calls them."""
    epochs, drops = (46, (36, 43)) if keypoints else (26, (16, 22))
    images = images or (COCO_PERSON_IMAGES if keypoints else COCO_IMAGES)
    per_epoch = max(1, images // PAPER.batch_size)  # its sampler leaves out an incomplete batch
    train = replace(
        PAPER, steps=epochs * per_epoch, milestones=tuple(drop / epochs for drop in drops), images_per_micro_batch=2,
        warmup_steps=min(1000, max(0, per_epoch - 1)), warmup_factor=1 / 1000,
    )  # fmt: skip
    return Recipe(name, "torchvision", "torchvision", train, epochs=epochs, min_keypoints=10 if keypoints else 0)


def scaled(train: TrainConfig, **wanted) -> tuple[TrainConfig, list[str]]:
    """A recipe with other settings; another batch size takes learning rate and steps along, unless they are given.

    Linear scaling (Goyal et al., arXiv:1706.02677): B images a step instead of 16 take B/16 of the learning rate and
    16/B times the steps, so that the images seen are the same. 4 instead of 16: 0.02 becomes 0.005, and 160,000
    steps 640,000. Milestones are fractions and move along. Warm-up stays as many steps, but at most a fifth of all.

    Args:
        train: of a recipe.
        wanted: fields of :class:`~mrcnn_scratch.schedule.TrainConfig`.

    Returns:
        (settings, sentences that say what was changed unasked).

    Raises:
        ValueError: as TrainConfig.
    """
    notes, values, batch = [], dict(wanted), wanted.get("batch_size", train.batch_size)
    if batch != train.batch_size:
        replace(train, batch_size=batch, images_per_micro_batch=0)  # refuses an impossible batch size before it divides
        ratio = batch / train.batch_size
        changes = {"lr": train.lr * ratio, "steps": max(1, round(train.steps / ratio))}
        values = {**changes, **values}
        told = [f"{name} {_number(new)}" for name, new in changes.items() if name not in wanted]
        if told:
            notes.append(f"linear scaling: {batch} images a step instead of {train.batch_size}, so {', '.join(told)}")
    if "images_per_micro_batch" not in wanted and train.images_per_micro_batch:
        values["images_per_micro_batch"] = math.gcd(batch, train.images_per_micro_batch)
    made = replace(train, **values)
    if "warmup_steps" not in wanted and made.warmup_steps > made.steps // 5:
        made = replace(made, warmup_steps=made.steps // 5)
        notes.append(f"warm-up of {made.warmup_steps} steps, a fifth of all, instead of {train.warmup_steps}")
    return made, notes


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def usable_images(dataset, min_keypoints: int = 0):
    """The images that the published recipes train on: those with an object that is no crowd.

    Args:
        dataset: of a COCO-format folder, or a part of one.
        min_keypoints: labelled keypoints that an image needs besides.

    Returns:
        the dataset, or a :class:`~mrcnn_scratch.datasets.subset.Subset` of it.

    Raises:
        ValueError: no image is left.
    """
    from .datasets.subset import Subset

    objects, labelled = set(), {}
    for one in dataset.coco_dict()["annotations"]:
        if not one["iscrowd"]:
            objects.add(one["image_id"])
            labelled[one["image_id"]] = labelled.get(one["image_id"], 0) + one.get("num_keypoints", 0)
    kept = [i for i, id_ in enumerate(dataset.image_ids) if id_ in objects and labelled[id_] >= min_keypoints]
    if not kept:
        wanted = f"an object and {min_keypoints} labelled keypoints" if min_keypoints else "an object"
        raise ValueError(f"none of {len(dataset)} images has {wanted}: training has nothing to learn from")
    return dataset if len(kept) == len(dataset) else Subset(dataset, kept)
