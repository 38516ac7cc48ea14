"""What a training run would be: its model, its schedule, and from a few measured steps its hours and its memory.

The weights stay as they are (learning rate 0) and nothing is written.
"""

import statistics
import sys
import time
from dataclasses import dataclass, field

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from .batches import check_usable, load_step, micro_batch_size, places_of
from .datasets.noise import OBJECTS, NoiseDataset
from .datasets.transforms import Augment
from .distributed import current, noticing_loss, together
from .parameter_counts import Check, count_parts, fixed_norms, published_checks, training_bytes
from .precision import autocast
from .recipes import COCO_IMAGES, COCO_PERSON_IMAGES
from .schedule import TrainConfig, lr_at
from .training_step import Learner, make_learner, make_optimizer

PHASES = ("loading", "forward", "backward", "update")


@dataclass(frozen=True)
class Measured:
    """Medians over the measured steps, each of one micro-batch in every process."""

    steps: int
    seconds: dict[str, float]  # of each phase; "update" is once a step, the others once a micro-batch
    peak_bytes: int  # of the GPU, or of the whole process
    step_seconds: float  # of a whole step with all its micro-batches
    where: str  # device, precision, threads


@dataclass(frozen=True)
class DryRun:
    """A training run on paper; ``str()`` is the report."""

    parts: dict[str, int]  # parameters
    trained: int  # of them
    fixed: int  # scales and shifts of fixed norms, which are no parameters
    checks: list[Check]
    schedule: list[tuple[str, int, float, float]]  # (what, step, epoch, learning rate)
    config: TrainConfig
    processes: int
    micro_batch: int
    images: int  # in the training set
    data: str  # what was measured on
    bytes: dict[str, int]
    measured: Measured | None = None
    images_per_second: float | None = field(init=False)
    hours: float | None = field(init=False)

    def __post_init__(self) -> None:
        seconds = self.measured and self.measured.step_seconds
        object.__setattr__(self, "images_per_second", seconds and self.config.batch_size / seconds)
        object.__setattr__(self, "hours", seconds and seconds * self.config.steps / 3600)

    @property
    def total(self) -> int:
        """Parameters of the model."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        from .dry_run_report import report

        return report(self)


def dry_run(model, dataset, config: TrainConfig, steps: int = 3, progress: bool = True, workers: int = 0) -> DryRun:
    """Counts a model's parameters, lays out the schedule, and measures a few steps on the model's device.

    A measured step is one micro-batch in every process: forward, backward, update, after one that is not counted. A
    whole step takes as many of them as there are micro-batches to a process, and one update.

    Args:
        model: it keeps its weights, buffers and mode; with ``steps=0`` it may be on torch's "meta" device.
        dataset: as of :func:`~mrcnn_scratch.training.train`; None measures noise of the largest size that occurs.
        config: the run's settings.
        steps: how many to measure; 0 runs nothing.
        progress: whether to show a bar.
        workers: of the run: with some, images are taken to be loaded while others are computed.

    Raises:
        ValueError: data or settings that cannot be used.
    """
    world, told = current(), f"images of the data, shorter edge {model.config.min_size or 'as it is'}"
    if dataset is None:
        dataset = _noise(model.config)
        told = f"noise of {' x '.join(map(str, dataset.size))} pixels with {OBJECTS} objects an image"
    with together():
        check_usable(model, dataset, config)
        micro = micro_batch_size(config, world.size)
    return DryRun(
        parts=count_parts(model),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        fixed=fixed_norms(model),
        checks=published_checks(model.config),
        schedule=landmarks(config, len(dataset)),
        config=config,
        processes=world.size,
        micro_batch=micro,
        images=len(dataset),
        data=told,
        bytes=training_bytes(model, config.optimizer),
        measured=_measure(model, dataset, config, micro, steps, progress, workers) if steps else None,
    )


def _noise(config) -> NoiseDataset:
    """As many images as COCO has, each of the largest size that occurs."""
    size = (config.min_size, config.max_size) if config.min_size else (128, 128)
    images = COCO_PERSON_IMAGES if config.keypoints else COCO_IMAGES
    proposals = config.rpn_post_nms_train if config.stages == "heads" else 0
    return NoiseDataset(size, config.num_classes, config.keypoints, images, proposals=proposals)


def landmarks(config: TrainConfig, images: int) -> list[tuple[str, int, float, float]]:
    """Where the learning rate changes course: (what happens, step, epoch, learning rate from there on).

    Args:
        config: the run's settings.
        images: in the training set.
    """
    drops = config.milestones if config.schedule == "step" else ()
    steps = {0: "start", config.warmup_steps: "warm" if config.warmup_steps else "start"}
    steps |= {round(share * config.steps): "drop" for share in drops}
    steps = {step: what for step, what in steps.items() if step < config.steps} | {config.steps - 1: "last"}
    return [(what, s, s * config.batch_size / images, lr_at(s, config)) for s, what in sorted(steps.items())]


def _measure(model, dataset, config: TrainConfig, micro: int, steps: int, progress: bool, workers: int) -> Measured:
    world, training = current(), model.training
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    kept = [(norm, {name: x.clone() for name, x in norm.named_buffers()}) for norm in norms]
    learner = make_learner(model.train(), config, make_optimizer(model, config))
    for group in learner.optimizer.param_groups:
        group["lr"] = 0.0
    augment = Augment(config.flip, config.scale, getattr(dataset, "flip_pairs", None) or [])
    start = places_of(world.rank, world.size, config.batch_size).start
    on_gpu = learner.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(learner.device)
    rows = []
    try:
        with noticing_loss("nothing was written: start again"):
            for step in tqdm(range(steps + 1), "dry run", disable=not (progress and world.is_main)):
                rows.append(_step(learner, lambda step=step: load_step(
                    dataset, step, config, augment, range(start, start + micro), micro
                )[0]))  # fmt: skip
    finally:
        learner.optimizer.zero_grad(set_to_none=True)
        for norm, buffers in kept:
            for name, x in norm.named_buffers():
                x.copy_(buffers[name])
        model.train(training)
    seconds = {phase: statistics.median(row[i] for row in rows[1:]) for i, phase in enumerate(PHASES)}
    a_micro_batch = seconds["forward"] + seconds["backward"] + (0 if workers else seconds["loading"])
    whole = a_micro_batch * (config.batch_size // world.size // micro) + seconds["update"]
    peak = torch.cuda.max_memory_allocated(learner.device) if on_gpu else _peak_of_process()
    threads = "" if on_gpu else f", {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
    return Measured(steps, seconds, peak, whole, f"{learner.device}, {config.precision}{threads}")


def _step(learner: Learner, load) -> list[float]:
    """Seconds of each of ``PHASES``."""
    clock = [time.perf_counter()]

    def tick() -> None:
        if learner.device.type == "cuda":
            torch.cuda.synchronize(learner.device)
        clock.append(time.perf_counter())

    learner.optimizer.zero_grad(set_to_none=True)
    with together():
        batch = load().to(learner.device)
        tick()
        with autocast(learner.config.precision, learner.device):
            loss = sum(learner.parallel(batch.images, batch.targets, batch.generators()).values())
    tick()
    learner.scaler.backward(loss)
    tick()
    learner.scaler.unscale(learner.optimizer)
    params = [p for p in learner.model.parameters() if p.grad is not None]
    if not torch.nn.utils.clip_grad_norm_(params, float("inf")).isfinite():
        learner.optimizer.zero_grad(set_to_none=False)  # 0 times infinity would reach the weights
    learner.scaler.step(learner.optimizer)
    tick()
    return [end - begin for begin, end in zip(clock, clock[1:], strict=False)]


def _peak_of_process() -> int:
    """Bytes of memory that this process held at most since it began; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # not a Unix
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
