"""The same tables on COCO, or any COCO-format folder: the paper's models by the paper's recipe."""

from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from ..run_setup import Source, Wishes, model_config_of, open_data, prepare
from .cells import model_cells, object_cells
from .detector_runs import train_and_evaluate
from .plan import Arm, plain


@dataclass(frozen=True)
class Photographs:
    """The whole detector on photographs, in as many processes as torchrun started. A run keeps its checkpoints."""

    data: str
    root: str | None
    config: str  # of arms that name none
    keypoints: bool
    backbone_weights: str | None = None
    fields: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)
    share: float = 1.0  # of the recipe's steps
    images: tuple[int, int] | None = None  # training and validation images at most

    def facts(self) -> dict:
        """See :class:`plan.Tier`."""
        return plain(self)

    def check(self, arm: Arm) -> None:
        """Refuses settings and folders that cannot be, before anything is run."""
        self.wishes(arm, 0)
        folder = self.root if self.data == "coco" else self.data
        if folder is None or not Path(folder).is_dir():
            name = "--root" if self.data == "coco" else "--data"
            raise ValueError(f"{name} {folder} is no folder: name the one that holds the images and annotations")

    def run(self, arm: Arm, seed: int, on_step=None, device: str | None = None, folder: Path | None = None) -> dict:
        """``{"measures"}``, see :class:`detector_runs.Detector`. All processes of a world call it together."""
        import torch

        wishes, root = self.wishes(arm, seed), self.root and Path(self.root)
        training, validation = self.images or (None, None)
        source = Source(self.data, root, "train", training, seed, True, None)
        made = prepare(wishes, source, self.backbone_weights, torch.device(device or "cpu"), may_be_absent=False)
        config = made.config
        if "steps" not in self.training:
            config = replace(config, steps=max(1, round(config.steps * self.share)))
        keypoints = made.model.config.keypoints > 0
        dataset = validation_data(self.data, self.root, validation, keypoints, wishes.recipe_style is not None)
        return train_and_evaluate(made.model, made.dataset, dataset, config, on_step, device, folder, progress=True)

    def cells(self, arm: Arm) -> list[float]:
        """See :class:`plan.Tier`."""
        wishes = self.wishes(arm, 0)
        images = self.images and self.images[1]
        data = validation_data(self.data, self.root, images, wishes.wants_keypoints, wishes.recipe_style is not None)
        config = model_config_of(wishes, data, None)
        return object_cells(data, lambda boxes, size: model_cells(boxes, size, config))

    def wishes(self, arm: Arm, seed: int) -> Wishes:
        """The arm as ``mrcnn train`` would be asked for it.

        Raises:
            ValueError: a model, recipe or field that cannot be.
        """
        fields = dict(arm.fields)
        masks = fields.pop("masks", True)
        keypoints = self.keypoints and fields.pop("keypoints", None) != 0  # 0: an arm without them
        model, training = {**fields, **self.fields, "seed": seed}, {**self.training, "seed": seed}
        wishes = Wishes(arm.config or self.config, None, masks, keypoints, None, model, training)
        wishes.check()
        return wishes


@lru_cache(maxsize=2)
def validation_data(data: str, root: str | None, images: int | None, keypoints: bool, by_recipe: bool):
    """The validation images of all arms, opened once; by a recipe keypoints are of the classes that have them alone."""
    dataset = open_data(data, "val", images, 0, 0, keypoints, True, root and Path(root))
    if keypoints and by_recipe:
        from ..datasets.keypoint_classes import KeypointClasses

        return KeypointClasses(dataset)
    return dataset
