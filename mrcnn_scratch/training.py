"""The training loop: schedule, clipping, logs, checkpoints, exact resume (Mask R-CNN, section 3.1).

A run that is stopped, by Ctrl-C or by a crash, and resumed ends with the weights of one that was not, bit
for bit on a CPU: :mod:`mrcnn_scratch.batches` says why weights, optimizer state and step number are enough.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from .batches import check_usable, generator_for, image_names, load_batches, to_device
from .logs import RunLog, progress_line
from .nan_guard import NonFiniteLoss, explain
from .resume import (
    LAST,
    checkpoint_to_resume,
    deferred_interrupt,
    how_to_resume,
    load_checkpoint,
    run_facts,
    save_checkpoint,
)
from .schedule import PAPER, TrainConfig, lr_at

__all__ = [
    "PAPER",
    "NonFiniteLoss",
    "TrainConfig",
    "TrainResult",
    "lr_at",
    "make_optimizer",
    "train",
    "train_step",
]


@dataclass(frozen=True)
class TrainResult:
    """What a finished run returns; the model it trained is the caller's."""

    losses: list[dict[str, float]]  # the rows of log.csv, from the first step on, resumed or not
    steps: int  # finished updates
    seconds: float  # of this call, wall clock
    checkpoint: Path | None  # the last checkpoint, where there is an out_dir


def make_optimizer(model: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD with momentum (Mask R-CNN, section 3.1) or AdamW over the parameters that are not frozen.

    SGD on w = 1 with gradient 0.5, lr 0.1, momentum 0.9 and decay 0.1: velocity 0.6, then w = 0.94.

    Raises:
        ValueError: every parameter is frozen.
    """
    trained = [param for param in model.parameters() if param.requires_grad]
    if not trained:
        raise ValueError("the model has no parameter that requires a gradient: unfreeze some of it")
    groups = [{"params": trained, "weight_decay": config.weight_decay}]
    if not config.decay_norm_bias:  # biases and norm scales are the parameters of one dimension
        flat = [param for param in trained if param.ndim <= 1]
        groups = [
            {"params": [param for param in trained if param.ndim > 1], "weight_decay": config.weight_decay},
            {"params": flat, "weight_decay": 0.0},
        ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999))
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)


class _NotFinite(Exception):
    """The names of the losses that are not finite, from a step that changed no weight."""


def train_step(
    model, optimizer, images, targets, config: TrainConfig, generator, lr: float
) -> dict[str, float]:
    """One update of the weights.

    Args:
        images: list of (3, H, W) float tensors on the model's device.
        targets: their targets.
        generator: draws the anchors and RoIs that the losses are computed on.
        lr: the learning rate of this step.

    Returns:
        The log's row: ``lr``, ``loss`` (the sum), every loss, ``grad_norm`` (global, before clipping).
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    losses = model(images, targets, generator)
    # one transfer for all of them: on a GPU each .item() would wait for the device
    values = dict(zip(losses, torch.stack([loss.detach() for loss in losses.values()]).tolist(), strict=True))
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise _NotFinite(*bad)
    sum(losses.values()).backward()
    params = [param for group in optimizer.param_groups for param in group["params"]]
    norm = float(torch.nn.utils.clip_grad_norm_(params, config.clip_norm or math.inf))
    if not math.isfinite(norm):
        raise _NotFinite("gradient norm")
    optimizer.step()
    return {"lr": lr, "loss": sum(values.values()), **values, "grad_norm": norm}


def train(
    model,
    dataset,
    config: TrainConfig,
    out_dir: str | Path | None = None,
    resume: bool | str | Path = False,
    progress: bool = True,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
    *,
    workers: int = 0,
    tensorboard: bool = False,
    overwrite: bool = False,
) -> TrainResult:
    """Trains ``model`` in place, on the device it is on, and leaves it in train mode.

    Ctrl-C finishes the step at hand, saves a checkpoint and raises ``KeyboardInterrupt`` that says how to
    resume; a second Ctrl-C stops at once.

    Args:
        model: ``model(images, targets, generator)`` -> dict of scalar losses; it draws randomness from the
            generator only.
        dataset: ``dataset[i]`` -> (image, target), with ``class_names``, ``num_classes``, ``num_keypoints``,
            ``flip_pairs``.
        config: the run's settings.
        out_dir: takes log.csv, last.safetensors, train_config.json, and nan_batch.safetensors where a loss is
            not finite; None writes nothing.
        resume: True goes on from out_dir's last.safetensors, a path from that checkpoint.
        progress: shows a bar with losses, learning rate, images per second and the time left.
        on_step: called as ``on_step(finished_steps, row)``; it may raise ``KeyboardInterrupt``, which stops
            the run as Ctrl-C does.
        workers: threads that load batches ahead; the batches do not depend on it.
        tensorboard: also writes events to out_dir/tensorboard.
        overwrite: begin anew in an out_dir that holds a run.

    Raises:
        ValueError: data, configuration or checkpoint that cannot be used; says why.
        NonFiniteLoss: names the loss, the image and the saved batch.
    """
    began = time.perf_counter()
    check_usable(model, dataset, config)
    out = Path(out_dir) if out_dir is not None else None
    optimizer, facts = make_optimizer(model, config), run_facts(model, dataset, config)
    source = checkpoint_to_resume(out, resume, overwrite)
    start = load_checkpoint(source, model, optimizer, facts) if source else 0
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "train_config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    model.train()
    with (
        closing(RunLog(out, start, tensorboard)) as log,
        closing(_steps(model, optimizer, dataset, config, start, workers, out, facts)) as steps,
        _bar(config.steps, start, progress) as bar,
        deferred_interrupt() as stop,
    ):
        for finished, row in steps:
            last = finished == config.steps
            if last or finished % config.log_every == 0:
                log.write(row)
            bar.set_postfix_str(progress_line(row), refresh=False)
            bar.update()
            try:
                if on_step is not None:
                    on_step(finished, row)
            except KeyboardInterrupt:
                stop.set()
            if out is not None and (last or stop.is_set() or finished % config.checkpoint_every == 0):
                save_checkpoint(out / LAST, model, optimizer, finished, facts)
            if stop.is_set():
                raise KeyboardInterrupt(how_to_resume(finished, config.steps, out))
    return TrainResult(log.rows(), config.steps, time.perf_counter() - began, out / LAST if out else None)


def _steps(model, optimizer, dataset, config, start, workers, out, facts) -> Iterator[tuple[int, dict]]:
    """Yields (finished steps, log row) after each update."""
    device = next(model.parameters()).device
    clock = time.perf_counter()
    batches = load_batches(dataset, start, config, _augmentation(dataset, config), workers)
    for step, (images, targets, indices) in enumerate(batches, start):
        ids = image_names(dataset, indices, targets)
        images, targets = to_device(images, targets, device)
        generator = generator_for(config.seed, "sampling", step)
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        try:
            row = train_step(model, optimizer, images, targets, config, generator, lr_at(step, config))
        except _NotFinite as error:
            # the forward pass moved the norms' running statistics: go back to the last finished step's
            _restore(model, buffers)
            path = out / "nan_batch.safetensors" if out else None
            seed = generator.initial_seed()
            failure = explain(model, images, targets, list(error.args), step + 1, seed, ids, path, facts)
            _restore(model, buffers)
            raise failure from None
        except ValueError as error:  # the model names a refused image by its place in the batch
            raise ValueError(f"step {step + 1}, image ids {ids} in this order: {error}") from error
        now = time.perf_counter()
        rate, clock = len(images) / (now - clock), now
        yield step + 1, {"step": step + 1, **row, "images_per_second": rate}


@torch.no_grad()
def _restore(model, buffers: dict[str, torch.Tensor]) -> None:
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])


def _augmentation(dataset, config: TrainConfig):
    if config.flip == 0 and config.scale == (1.0, 1.0):
        return None
    from .datasets.transforms import Augment

    flip_pairs = getattr(dataset, "flip_pairs", None) or []
    return Augment(flip=config.flip, scale=config.scale, flip_pairs=flip_pairs)


def _bar(steps: int, start: int, progress: bool) -> tqdm:
    return tqdm(
        total=steps, initial=start, desc="train", unit="step", dynamic_ncols=True, disable=not progress
    )
