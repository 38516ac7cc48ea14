"""How a run of Tier B goes, and one on photographs: the whole detector, trained end to end, COCO's AP."""

import time
from dataclasses import dataclass, field

import numpy as np
import torch

from ..config import ModelConfig
from ..evaluation import evaluate
from ..model import build_model
from ..presets import model_config
from ..resume import LAST
from ..training import TrainConfig, train
from .cells import model_cells, object_cells
from .measures import WEIGHTS
from .oracle_runs import shapes
from .plan import Arm, plain

# Toy choices: an arm takes two to four minutes on one core
TRAIN = TrainConfig(steps=1000, batch_size=4, lr=0.02, warmup_steps=50, schedule="cosine", clip_norm=10.0, log_every=50)


@dataclass(frozen=True)
class Detector:
    """Tier B on the embedded data; a seed draws weights, batches and samples, the data are the same for all."""

    config: str = "tiny-c4"
    preset: str = "demo"
    classes: tuple[str, ...] | None = None
    keypoints: bool = False
    train_images: int = 1200
    val_images: int = 200
    fields: dict = field(default_factory=dict)
    train: TrainConfig = TRAIN

    def facts(self) -> dict:
        """See :class:`plan.Tier`."""
        return plain(self)

    def check(self, arm: Arm) -> None:
        """Refuses settings that cannot be, before anything is run."""
        shapes(self.preset, self.val_images, "val", self.classes)
        self._model_config(arm)

    def cells(self, arm: Arm) -> list[float]:
        """See :class:`plan.Tier`."""
        data, config = shapes(self.preset, self.val_images, "val", self.classes), self._model_config(arm)
        return object_cells(data, lambda boxes, size: model_cells(boxes, size, config))

    def _model_config(self, arm: Arm) -> ModelConfig:
        return model_config(arm.config or self.config, **{**self.fields, **arm.fields})

    def run(self, arm: Arm, seed: int, on_step=None, device: str | None = None, folder=None) -> dict:
        """``{"measures"}``: AP of boxes, masks and keypoints, and AP at each threshold."""
        training = shapes(self.preset, self.train_images, "train", self.classes)
        validation = shapes(self.preset, self.val_images, "val", self.classes)
        fields = {"keypoints": training.num_keypoints if self.keypoints else 0, **self.fields, **arm.fields}
        model = build_model(arm.config or self.config, training.num_classes, seed=seed, **fields)
        config = TrainConfig(**{**vars(self.train), "seed": seed})
        return train_and_evaluate(model, training, validation, config, on_step, device)


def train_and_evaluate(
    model, training, validation, config: TrainConfig, on_step=None, device=None, folder=None, progress=False
) -> dict:
    """Trains a detector, from the last checkpoint in ``folder`` if there is one, and evaluates it.

    See :meth:`Detector.run` for the result; in several processes if there are.
    """
    model = model.to(device or "cpu", memory_format=torch.channels_last)
    began = time.perf_counter()
    resume = folder is not None and (folder / LAST).is_file()
    train(model, training, config, folder, resume, progress, on_step)
    seconds = time.perf_counter() - began
    parameters = sum(p.numel() for p in model.parameters())
    measures = flat(evaluate(model, validation, progress=progress))
    return {"measures": measures | {"parameters": parameters, "training seconds": round(seconds, 1)}}


def flat(scores: dict[str, dict]) -> dict[str, float]:
    """``{"mask": {"AP": .., "AP_by_iou": [..]}}`` -> ``{"mask AP": .., "mask @.50": ..}``; undefined: left out."""
    measures = {}
    for kind, values in scores.items():
        named = {f"{kind} AP": values["AP"]}
        by_iou = np.asarray(values["AP_by_iou"])
        if (by_iou >= 0).all():
            named |= {f"{kind} {name}": float(weights @ by_iou) for name, weights in WEIGHTS.items() if name != "AP*"}
        named |= {f"{kind} {size}": values[size] for size in ("APs", "APm", "APl") if size in values}
        measures |= {name: float(value) for name, value in named.items() if value >= 0 or "-" in name}
    return measures
