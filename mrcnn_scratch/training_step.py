"""One update of the weights: micro-batches, their gradients' mean over all processes, clipping, the optimizer."""

import math
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from .batches import MicroBatch
from .distributed import any_of, average, current, sum_of, together
from .nan_guard import Guard
from .precision import LossScaler, autocast
from .schedule import TrainConfig


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


@dataclass(frozen=True)
class Learner:
    """What an update changes, and how."""

    model: torch.nn.Module  # whose names a checkpoint has
    parallel: torch.nn.Module  # the same; with several processes wrapped so that a backward pass averages gradients
    optimizer: torch.optim.Optimizer
    scaler: LossScaler
    config: TrainConfig

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def make_learner(model: torch.nn.Module, config: TrainConfig, optimizer: torch.optim.Optimizer) -> Learner:
    """Wraps a model for training; with several processes, all take process 0's weights."""
    parallel = model
    if current().size > 1:
        parallel = DistributedDataParallel(model, gradient_as_bucket_view=True)
        # no exchange hidden in a forward pass, where one process may fail alone: train_step averages statistics
        parallel.broadcast_buffers = False
    scaler = LossScaler(config.precision, next(model.parameters()).device)
    return Learner(model, parallel, optimizer, scaler, config)


def train_step(learner: Learner, batches: list[MicroBatch], lr: float, guard: Guard) -> dict[str, float]:
    """One update of the weights, by the mean of the gradients of all micro-batches of all processes.

    Args:
        batches: this process's micro-batches.
        lr: the learning rate of this step.
        guard: explains a loss that is not finite.

    Returns:
        The log's row, the same in all processes: ``lr``, ``loss`` (the sum), every loss, each the mean over the
        micro-batches, ``grad_norm`` (global, before clipping), with float16 ``loss_scale`` and ``skipped_steps``.

    Raises:
        NonFiniteLoss: in the process of the image at fault; the others raise PeerStopped. No weight has changed.
        ValueError: the model refuses an image.
    """
    optimizer, scaler, config = learner.optimizer, learner.scaler, learner.config
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    rows, count = [], len(batches) * current().size
    with together():
        # all but the last add up here, without a word to the others; only what cannot fail alone may exchange
        with learner.parallel.no_sync() if learner.parallel is not learner.model else nullcontext():
            for batch in batches[:-1]:
                scaler.backward(_loss(learner, batch, guard, rows) / count)
        loss = _loss(learner, batches[-1], guard, rows) / count
    scaler.backward(loss)
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for param in params if current().size > 1 else ():
        # the mean over processes of what is divided already, so that what overflows in float16 is the same for any
        # number of processes
        param.grad.mul_(current().size)
    scaler.unscale(optimizer)
    norm = float(torch.nn.utils.clip_grad_norm_(params, config.clip_norm or math.inf))
    if not math.isfinite(norm) and scaler.gives_up():
        _fail_together(batches, guard)
    scaler.step(optimizer)
    average(_statistics(learner.model))
    sums = [sum(row[name] for row in rows) for name in rows[0]]
    losses = {name: total / count for name, total in zip(rows[0], sum_of(sums), strict=True)}
    return {"lr": lr, "loss": sum(losses.values()), **losses, "grad_norm": norm, **scaler.row()}


def _loss(learner: Learner, batch: MicroBatch, guard: Guard, rows: list[dict[str, float]]) -> torch.Tensor:
    """The sum of a micro-batch's losses; their values join ``rows``."""
    batch = batch.to(learner.device)
    try:
        with autocast(learner.config.precision, learner.device):
            losses = learner.parallel(batch.images, batch.targets, batch.generators())
    except ValueError as error:  # the model names a refused image by its place in the batch
        raise ValueError(f"step {guard.step}, image ids {batch.image_ids} in this order: {error}") from error
    # one transfer for all of them: on a GPU each .item() would wait for the device
    values = dict(zip(losses, torch.stack([loss.detach() for loss in losses.values()]).tolist(), strict=True))
    rows.append(values)
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise guard.failure(bad, *guard.find([batch]))
    return sum(losses.values())


def _fail_together(batches: list[MicroBatch], guard: Guard) -> None:
    """The gradient of all is not finite: the process whose image gives it speaks, or else process 0."""
    batch, guilty = guard.find(batches)
    found = any_of(bool(guilty))
    with together():
        if guilty or (current().is_main and not found):
            raise guard.failure(["gradient norm"], batch, guilty)


def _statistics(model: torch.nn.Module) -> list[torch.Tensor]:
    """The running means and variances that move: every process has seen other images."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    return [statistic for norm in norms for statistic in (norm.running_mean, norm.running_var)]
