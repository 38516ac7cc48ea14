"""How a run of Tier A goes: draw the data, train the small net, measure it on the validation objects."""

import time
from dataclasses import dataclass, field
from functools import lru_cache

import torch

from ..config import ModelConfig
from ..datasets.shapes import ShapesDataset
from ..training import TrainConfig, train
from .cells import in_cells, object_cells
from .measures import ErrorMap, example, fractions
from .oracle import OracleNet, answers, similarities
from .plan import Arm, frozen, plain

# Toy choices, made so that a run takes less than 50 seconds on one core
BASE = frozen(
    min_size=0, mask_classes="agnostic", mask_convs=2, mask_channels=48, mask_hidden=256, keypoint_convs=3,
    keypoint_channels=48,
)  # fmt: skip
TRAIN = TrainConfig(
    steps=500,
    batch_size=8,
    optimizer="adamw",
    lr=0.004,
    warmup_steps=30,
    schedule="cosine",
    clip_norm=10.0,
    log_every=50,
)
EXAMPLES = 6  # objects of which a run keeps its mask


@dataclass(frozen=True)
class Oracle:
    """Tier A. Data and validation RoIs are the same for all arms and seeds; a seed draws weights, batches and RoIs."""

    preset: str = "large"  # of the embedded data: 2.5 to 6 cells of 16 pixels
    classes: tuple[str, ...] | None = None  # None: the preset's
    head: str = "mask"  # or "keypoints"
    train_images: int = 800
    val_images: int = 150
    fields: dict = field(default_factory=dict)  # of the model's configuration, in every arm
    train: TrainConfig = TRAIN
    jitter: float = 0.1  # share of a box's side
    copies: int = 2  # RoIs of an object in a step
    curve: int = 0  # also measure so many times on the way

    def facts(self) -> dict:
        """See :class:`plan.Tier`."""
        return plain(self)

    def check(self, arm: Arm) -> None:
        """Refuses settings that cannot be, before anything is run."""
        self.config(arm, 0)

    def cells(self, arm: Arm) -> list[float]:
        """See :class:`plan.Tier`."""
        data = shapes(self.preset, self.val_images, "val", self.classes)
        return object_cells(data, lambda boxes, _: in_cells(boxes, arm.stride))

    def net(self, arm: Arm, seed: int) -> OracleNet:
        """The arm's net at the start: shared parts have the same weights in all arms of a seed."""
        net = OracleNet(self.config(arm, seed), arm.stride, self.jitter, self.copies)
        return net.to(memory_format=torch.channels_last)

    def config(self, arm: Arm, seed: int) -> ModelConfig:
        """Of the arm's head and backbone."""
        data = shapes(self.preset, self.val_images, "val", self.classes)
        fields = {**BASE, **self.fields, **arm.fields}
        masks = self.head == "mask"
        if not (masks or data.num_keypoints):
            raise ValueError(f"shapes:{self.preset} has no keypoints with the classes {self.classes}: add person")
        return ModelConfig().with_fields(
            **fields, num_classes=data.num_classes, masks=masks, keypoints=0 if masks else data.num_keypoints, seed=seed
        )

    def run(self, arm: Arm, seed: int, on_step=None, device: str | None = None, folder=None) -> dict:
        """``{"measures", "similarities", "curve", "error_map", "examples"}``, see :func:`measure`."""
        data = shapes(self.preset, self.train_images, "train", self.classes)
        validation = shapes(self.preset, self.val_images, "val", self.classes)
        net, curve = self.net(arm, seed).to(device or "cpu"), []
        config = TrainConfig(**{**vars(self.train), "seed": seed})
        every = config.steps // self.curve if self.curve else 0

        def watch(step, row):
            if on_step is not None:
                on_step(step, row)
            if every and step % every == 0 and step < config.steps:
                curve.append([step, measure(net, validation, self.head)["measures"][f"{self.head} AP*"]])
                net.train()

        began = time.perf_counter()
        train(net, data, config, progress=False, on_step=watch)
        seconds = time.perf_counter() - began
        result = measure(net, validation, self.head)
        parameters = sum(p.numel() for p in net.parameters())
        result["measures"] |= {"parameters": parameters, "training seconds": round(seconds, 1)}
        if curve:
            result["curve"] = [*curve, [config.steps, result["measures"][f"{self.head} AP*"]]]
        return result


@lru_cache(maxsize=8)
def shapes(preset: str, images: int, split: str, classes: tuple[str, ...] | None) -> ShapesDataset:
    """The data of all runs of a process, drawn once."""
    return ShapesDataset(preset, images, seed=0, split=split, classes=classes)


def measure(net: OracleNet, dataset, head: str) -> dict:
    """The net on the validation objects.

    Returns:
        ``measures``: AP* and the fraction of objects above each threshold; ``similarities``: each object's IoU or OKS;
        of masks also ``error_map``, where in the box pixels are wrong, and ``examples``.
    """
    found, errors, examples = [], ErrorMap(), []
    for index, target, answer in answers(net, dataset):
        values = similarities(answer, target)
        found += values
        if head == "mask":
            truth = target["masks"][answer.objects].bool()
            errors.add(answer.masks, truth, target["boxes"][answer.objects])
            if len(examples) < EXAMPLES:
                largest = int(truth.flatten(1).sum(1).argmax())
                box = target["boxes"][answer.objects][largest]
                examples.append(example(dataset[index][0], truth[largest], answer.masks[largest], box, values[largest]))
    if not found:
        raise ValueError(f"{len(dataset)} validation images have nothing to measure the {head} on: give more")
    result = {
        "measures": fractions(found, head),
        "similarities": [round(value, 6) for value in found],
    }
    return result | ({"error_map": errors.mean(), "examples": examples} if head == "mask" else {})
