"""The settings of a training run, and the learning rate that follows from them and the step number alone."""

import difflib
import json
import math
from dataclasses import asdict, dataclass, fields
from numbers import Real

from .precision import PRECISIONS

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("step", "cosine", "constant")


@dataclass(frozen=True)
class TrainConfig:
    """Every setting of the training loop. "Toy choice": chosen for small models and images on a CPU.

    Raises:
        ValueError: names the field, its value and what it may be.
    """

    steps: int = 300  # updates of the weights; toy choice (Mask R-CNN, section 3.1: 160,000)
    batch_size: int = 4  # images per step, of all processes together; toy choice (section 3.1: 16)
    images_per_micro_batch: int = 0  # of one forward pass (section 3.1: 2, on each GPU); 0: batch_size / processes
    precision: str = "float32"  # or "bfloat16", "float16": of convolutions and products; the paper: float32
    optimizer: str = "sgd"  # "sgd" (section 3.1) or "adamw" (arXiv:1711.05101)
    lr: float = 0.02  # step size after warm-up; section 3.1, at 16 images a step
    momentum: float = 0.9  # SGD's momentum and AdamW's beta1; section 3.1
    weight_decay: float = 1e-4  # L2 penalty (AdamW: decoupled); section 3.1
    decay_norm_bias: bool = True  # also decay biases and norm scales; the paper excepts none (Detectron does)
    warmup_steps: int = 20  # steps of linear warm-up; toy choice (Detectron: 500)
    warmup_factor: float = 1 / 3  # fraction of lr at step 0; Detectron
    schedule: str = "step"  # "step" (section 3.1), "cosine" (arXiv:1608.03983), "constant"
    milestones: tuple[float, ...] = (
        0.75,
    )  # fractions of `steps` at which "step" drops; section 3.1: 120k of 160k
    gamma: float = 0.1  # factor of each drop; section 3.1
    clip_norm: float | None = None  # cap on the global gradient norm; None: no cap, as the paper
    flip: float = 0.5  # probability of a horizontal flip; Detectron's recipe
    scale: tuple[float, float] = (1.0, 1.0)  # random resize, times the image's size; section 5: (0.8, 1.0)
    seed: int = 0  # of batches, augmentation and sampling (not of the weights); toy choice
    log_every: int = 10  # steps between rows of log.csv; toy choice
    checkpoint_every: int = 100  # steps between checkpoints; toy choice

    def __post_init__(self) -> None:
        for name in ("milestones", "scale"):  # JSON knows lists only
            value = getattr(self, name)
            if not isinstance(value, (list, tuple)) or not all(_is_real(item) for item in value):
                raise ValueError(f"TrainConfig.{name} is {value!r}: give a list of numbers")
            object.__setattr__(self, name, tuple(float(item) for item in value))
        for name in ("steps", "batch_size", "log_every", "checkpoint_every"):
            self._require(
                name, _is_whole(getattr(self, name)) and getattr(self, name) >= 1, "a whole number >= 1"
            )
        for name in ("warmup_steps", "seed", "images_per_micro_batch"):
            self._require(
                name, _is_whole(getattr(self, name)) and getattr(self, name) >= 0, "a whole number >= 0"
            )
        for name in ("lr", "warmup_factor", "gamma"):
            self._require(
                name, _is_real(getattr(self, name)) and getattr(self, name) > 0, "a finite number > 0"
            )
        for name in ("weight_decay", "momentum", "flip"):
            self._require(
                name, _is_real(getattr(self, name)) and getattr(self, name) >= 0, "a finite number >= 0"
            )
        self._require("momentum", self.momentum < 1, "below 1")
        self._require("flip", self.flip <= 1, "a probability, at most 1")
        positive = self.clip_norm is None or (_is_real(self.clip_norm) and self.clip_norm > 0)
        self._require("clip_norm", positive, "None or a finite number > 0")
        self._require("decay_norm_bias", isinstance(self.decay_norm_bias, bool), "True or False")
        self._require("optimizer", self.optimizer in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}")
        self._require("schedule", self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}")
        self._require("precision", self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
        cuts = self.images_per_micro_batch == 0 or self.batch_size % self.images_per_micro_batch == 0
        self._require("images_per_micro_batch", cuts, f"0, or a divisor of batch_size={self.batch_size}")
        self._require(
            "milestones", all(0 < m <= 1 for m in self.milestones), "fractions of the run, 0 < m <= 1"
        )
        self._require(
            "scale",
            len(self.scale) == 2 and 0 < self.scale[0] <= self.scale[1],
            "(low, high), 0 < low <= high",
        )

    def _require(self, name: str, holds: bool, wanted: str) -> None:
        if not holds:
            raise ValueError(f"TrainConfig.{name} is {getattr(self, name)!r}: it must be {wanted}")

    @classmethod
    def from_dict(cls, values: dict) -> "TrainConfig":
        """Builds a configuration from a dictionary, e.g. of a JSON file; absent keys keep their defaults.

        Raises:
            ValueError: an unknown key (named with the nearest valid one) or an impossible value.
        """
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
                raise ValueError(
                    f"TrainConfig has no field {key!r}: did you mean {near!r}? It has {', '.join(known)}"
                )
        return cls(**values)

    def to_dict(self) -> dict:
        """The fields as JSON stores them (tuples become lists)."""
        return json.loads(json.dumps(asdict(self)))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


PAPER = TrainConfig(steps=160_000, batch_size=16, warmup_steps=500, log_every=20, checkpoint_every=2500)


def lr_at(step: int, config: TrainConfig) -> float:
    """The learning rate of the update that comes after ``step`` finished updates.

    It is ``lr * warm-up * decay``. Warm-up rises on a line from ``warmup_factor`` at step 0 to 1 at
    ``warmup_steps`` (Detectron). Decay is ``gamma ** (milestones passed)`` (Mask R-CNN, section 3.1),
    ``(1 + cos(pi * step / steps)) / 2`` (Loshchilov and Hutter, arXiv:1608.03983), or 1.

    With lr 0.3, steps 100, warmup_steps 10, warmup_factor 1/3, milestones (0.5, 0.75) and gamma 0.1:
    step 0 -> 0.1, 5 -> 0.2, 10 -> 0.3, 49 -> 0.3, 50 -> 0.03, 75 -> 0.003; with the cosine 50 -> 0.15.

    Args:
        step: finished updates, from 0.
    """
    warm = 1.0
    if step < config.warmup_steps:
        done = step / config.warmup_steps
        warm = config.warmup_factor * (1 - done) + done
    decay = 1.0
    if config.schedule == "step":
        decay = config.gamma ** sum(step >= round(m * config.steps) for m in config.milestones)
    elif config.schedule == "cosine":
        decay = (1 + math.cos(math.pi * step / config.steps)) / 2
    return config.lr * warm * decay
