"""From what the user asked for to settings, data and model: options win over the recipe, the recipe over presets."""

from dataclasses import dataclass, replace
from pathlib import Path

from .config import ModelConfig
from .presets import model_config
from .recipes import Recipe, recipe, scaled, usable_images
from .schedule import TrainConfig

TOY = {"steps": 1000, "batch_size": 4, "schedule": "cosine", "clip_norm": 10.0}  # of the tiny models, on a CPU
COCO_CLASSES = 81  # with the background
COCO_KEYPOINTS = 17
IMAGENET = "imagenet"  # as --backbone-weights: those of an installed package


def open_data(
    data: str, split: str, images: int | None, default: int, seed: int, keypoints: bool, drop_faulty: bool,
    root: Path | None = None, masks: bool = True,
):  # fmt: skip
    """The dataset; only the procedural one has a seed, and a default number of images; only COCO has a root."""
    from .datasets import open_dataset

    if root is not None and data != "coco":
        raise ValueError(f"--root {root} goes with --data coco, not with --data {data}")
    if data.startswith("shapes:"):
        return open_dataset(data, split, num_images=images or default, seed=seed)
    wanted, on_fault = "auto" if keypoints else False, "drop" if drop_faulty else "raise"
    return open_dataset(data, split, num_images=images, keypoints=wanted, on_fault=on_fault, masks=masks, root=root)


@dataclass(frozen=True)
class Wishes:
    """What the user asked for; None where nothing was said."""

    config: str
    style: str | None  # of the recipe
    masks: bool | None
    keypoints: bool | None
    conventions: str | None
    model_fields: dict
    train_fields: dict

    def also(self, asked: dict, heads_alone: bool) -> "Wishes":
        """With the options that have a name of their own; --set wins over them."""
        stages = {"stages": "heads"} if heads_alone else {}
        fields, settings = {**stages, **self.model_fields}, {**asked, **self.train_fields}
        return replace(self, model_fields=fields, train_fields=settings)

    @property
    def recipe_style(self) -> str | None:
        """The paper's models are trained by a recipe; the tiny ones only if it is named."""
        return self.style or (None if self.config.startswith("tiny") else "paper")

    @property
    def wants_keypoints(self) -> bool:
        """Toy data has keypoints to train; the paper trains them apart (section 5)."""
        return (self.recipe_style is None) if self.keypoints is None else self.keypoints

    @property
    def wants_masks(self) -> bool:
        """A recipe's keypoint model has no mask branch unless it is asked for (Table 5)."""
        return not (self.recipe_style and self.wants_keypoints) if self.masks is None else self.masks

    def recipe(self, images: int | None = None, keypoints: int = COCO_KEYPOINTS) -> Recipe | None:
        """The recipe for a training set of so many images; None for the toy settings."""
        style = self.recipe_style
        return recipe(self.config, style, keypoints if self.wants_keypoints else 0, images) if style else None

    def train_config(self, images: int | None) -> tuple[TrainConfig, list[str]]:
        """The training's settings, and sentences about what was changed unasked."""
        made = self.recipe(images)
        if made:
            train, notes = scaled(made.train, **self.train_fields)
            return train, [f"recipe {made.style!r} (--show-recipe prints its fields and sources)", *notes]
        steps = self.train_fields.get("steps", TOY["steps"])
        return TrainConfig.from_dict({**TOY, "warmup_steps": min(50, steps // 5), **self.train_fields}), []

    def check(self) -> None:
        """Refuses what cannot be, before any data is read.

        Raises:
            ValueError: names the model, recipe or field at fault.
        """
        model_config(self.config, self.conventions or "paper", **self.model_fields)
        self.train_config(None)

    def described(self) -> str:
        """The recipe with its sources.

        Raises:
            ValueError: there is none.
        """
        from .recipe_report import show

        made = self.recipe()
        if made is None:
            raise ValueError(f"--show-recipe: {self.config} is a toy without a recipe: name one, --recipe paper")
        return show(made, COCO_KEYPOINTS if self.wants_keypoints else 0, self.wants_masks)


@dataclass(frozen=True)
class Source:
    """Where the images come from; None where nothing was said."""

    data: str | None
    root: Path | None
    split: str
    images: int | None
    seed: int
    drop_faulty: bool
    proposals: Path | None


@dataclass(frozen=True)
class Prepared:
    """All that a run needs."""

    model: object
    dataset: object  # None: there is none, and a dry run measures noise
    config: TrainConfig
    told: list[str]  # what the user should know of them


def prepare(wishes: Wishes, source: Source, backbone_weights: str | None, device, may_be_absent: bool) -> Prepared:
    """Opens the data, settles the settings, builds the model.

    Args:
        device: of the model; torch's "meta" only to count.
        may_be_absent: whether COCO may be missing, for a dry run.

    Raises:
        ValueError: data, settings or weights that cannot be used.
    """
    dataset, told = open_training_data(wishes, source, may_be_absent)
    config, notes = wishes.train_config(None if dataset is None else len(dataset))
    model = make_model(model_config_of(wishes, dataset, backbone_weights), backbone_weights, device)
    if source.proposals and dataset is not None:
        from .proposals import with_proposals

        dataset = with_proposals(dataset, source.proposals)
    told = f"{told}, {sum(parameter.numel() for parameter in model.parameters()):,} parameters"
    return Prepared(model, dataset, config, [told, *notes])


def open_training_data(wishes: Wishes, source: Source, may_be_absent: bool):
    """The images to train on: with a recipe those that it keeps, and for keypoints the classes that have them.

    Args:
        may_be_absent: for a dry run, which measures noise where COCO is not on this machine.

    Returns:
        (dataset, or None where it may be and is absent; what to say of it).

    Raises:
        ValueError: data that cannot be used.
    """
    made = wishes.recipe()
    data, keypoints = source.data or ("coco" if made else "shapes:demo"), wishes.wants_keypoints
    try:
        dataset = open_data(
            data, source.split, source.images, 1600, source.seed, keypoints, source.drop_faulty, source.root,
            wishes.wants_masks,
        )  # fmt: skip
    except ValueError as error:
        if data != "coco" or not may_be_absent:
            raise
        return None, f"COCO is not here, noise takes its place ({error})"
    told = f"{len(dataset)} images of {data} ({source.split})"
    if made and not data.startswith("shapes:"):
        if keypoints:
            from .datasets.keypoint_classes import KeypointClasses

            dataset = KeypointClasses(dataset)
        whole, dataset = len(dataset), usable_images(dataset, made.min_keypoints)
        if len(dataset) < whole:
            told += f", of which {len(dataset)} have objects" + " with keypoints" * bool(made.min_keypoints)
    return dataset, told


def model_config_of(wishes: Wishes, dataset, backbone_weights: str | None) -> ModelConfig:
    """The model's configuration: preset, conventions, recipe, what the weights need, and the user's own fields."""
    wanted = wishes.wants_keypoints
    if dataset is None:
        classes, joints = (2, COCO_KEYPOINTS) if wanted else (COCO_CLASSES, 0)
    else:
        classes, joints = dataset.num_classes, dataset.num_keypoints if wanted else 0
    made = wishes.recipe(keypoints=joints)
    fields = {"seed": wishes.train_fields["seed"], **(made.model if made else {}), **_needed_by(backbone_weights)}
    conventions = wishes.conventions or (made.conventions if made else "paper")
    fields |= {"num_classes": classes, "masks": wishes.wants_masks, "keypoints": joints, **wishes.model_fields}
    return model_config(wishes.config, conventions, **fields)


def make_model(config: ModelConfig, backbone_weights: str | None, device):
    """The model on its device, with its backbone's weights."""
    import torch

    from .model import MaskRCNN

    if device.type == "meta":
        with device:
            return MaskRCNN(config)
    model = MaskRCNN(config)
    if backbone_weights == IMAGENET:
        from .efficientnet_lite import load_pretrained

        if config.backbone != "efficientnet_lite0":
            raise ValueError(f"--backbone-weights {IMAGENET} is for EffLite0-FPN; for {config.backbone} name a file")
        load_pretrained(model.backbone)
    elif backbone_weights:
        from .weights import load_backbone_weights

        load_backbone_weights(model, backbone_weights)
    return model.to(device, memory_format=torch.channels_last)


def _needed_by(backbone_weights: str | None) -> dict:
    """Fields that the ImageNet weights of a file were trained with: where the stride is, mean and std of the pixels."""
    if backbone_weights in (None, IMAGENET):
        return {}
    from .weight_files.resnet_names import renamed_classifier
    from .weights import read_weights

    return renamed_classifier(read_weights(backbone_weights))[1]
