"""The training loop: schedule, clipping, logs, checkpoints, exact resume (Mask R-CNN, section 3.1).

A run that is stopped, by Ctrl-C or by a crash, and resumed ends with the weights of one that was not, bit
for bit on a CPU: :mod:`mrcnn_scratch.batches` says why weights, optimizer state and step number are enough.

With several processes (``torchrun``) every step's images are shared among them; see
:mod:`mrcnn_scratch.distributed`. Their number is no part of a run: it may change from one resume to the next.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from .batches import check_usable, load_steps, micro_batch_size, places_of
from .distributed import any_of, current, noticing_loss, together
from .logs import RunLog, progress_line
from .nan_guard import Guard, NonFiniteLoss
from .resume import (
    LAST,
    RESUME_COMMAND,
    checkpoint_to_resume,
    deferred_interrupt,
    how_to_resume,
    load_optimizer_tensors,
    read_run,
    run_facts,
    save_checkpoint,
)
from .roi_ops import warm_up
from .schedule import PAPER, TrainConfig, lr_at
from .training_step import Learner, make_learner, make_optimizer, train_step
from .weights import load_model_tensors

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

    losses: list[dict[str, float]]  # the rows of log.csv, from the first step on; but process 0: those of this call
    steps: int  # finished updates
    seconds: float  # of this call, wall clock
    checkpoint: Path | None  # the last checkpoint, where there is an out_dir


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

    Ctrl-C, or SIGTERM, finishes the step at hand, saves a checkpoint and raises ``KeyboardInterrupt`` that says
    how to resume; a second one stops at once.

    With several processes (:func:`mrcnn_scratch.distributed.world`) all call this with the same arguments, and
    see one folder. A step's ``batch_size`` images are shared among them, process 0 writes, and what stops one
    stops all. Weights and optimizer are the same in all; batch norm's running statistics are means over them.

    Args:
        model: ``model(images, targets, generators)`` -> dict of scalar losses; it draws an image's randomness
            from that image's generator only. Every parameter that is not frozen takes part in every loss, be it
            with zero.
        dataset: ``dataset[i]`` -> (image, target), with ``class_names``, ``num_classes``, ``num_keypoints``,
            ``flip_pairs``.
        config: the run's settings.
        out_dir: takes log.csv, last.safetensors, train_config.json, and nan_batch.safetensors where a loss is
            not finite; None writes nothing.
        resume: True goes on from out_dir's last.safetensors, a path from that checkpoint.
        progress: shows a bar with losses, learning rate, images per second and the time left.
        on_step: called in every process as ``on_step(finished_steps, row)``; it may raise
            ``KeyboardInterrupt``, which stops the run as Ctrl-C does.
        workers: threads that load batches ahead; the batches do not depend on it.
        tensorboard: also writes events to out_dir/tensorboard.
        overwrite: begin anew in an out_dir that holds a run.

    Raises:
        ValueError: data, configuration or checkpoint that cannot be used; says why.
        NonFiniteLoss: names the loss, the image and the saved batch.
        PeerStopped: another process raised one of these.
        LostProcess: another process was killed; the last checkpoint is whole.
    """
    began, world = time.perf_counter(), current()
    out = Path(out_dir) if out_dir is not None else None
    with noticing_loss(_advice(out)):
        run = _begin(model, dataset, config, out, resume, overwrite)
        with together():
            log = _open_log(run, tensorboard)
        with (
            closing(log),
            closing(_steps(run, dataset, workers)) as steps,
            _bar(config.steps, run.start, progress and world.is_main) as bar,
            deferred_interrupt(speaks=world.is_main) as stop,
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
                stopped = any_of(stop.is_set())  # a signal may reach the processes in different steps
                if last or stopped or finished % config.checkpoint_every == 0:
                    _save(run, finished)
                if stopped:
                    raise KeyboardInterrupt(how_to_resume(finished, config.steps, out))
    return TrainResult(log.rows(), config.steps, time.perf_counter() - began, out / LAST if out else None)


@dataclass(frozen=True)
class _Run:
    """A run that may begin, or go on."""

    learner: Learner
    out: Path | None
    facts: dict  # of every checkpoint
    start: int  # finished updates


def _begin(model, dataset, config: TrainConfig, out, resume, overwrite) -> _Run:
    """Checks everything before anything is changed, and reads the checkpoint to go on from."""
    with together():
        check_usable(model, dataset, config)
        optimizer, facts = make_optimizer(model, config), run_facts(model, dataset, config)
        source = checkpoint_to_resume(out, resume, overwrite)
        tensors, saved = read_run(source, facts) if source else ({}, {})
        facts["micro_batch"] = micro_batch_size(config, current().size, saved.get("micro_batch"))
        if source:
            load_model_tensors(model, tensors, source)
            load_optimizer_tensors(model, optimizer, tensors)
        weight = next(model.parameters())
        warm_up(weight.device, weight.dtype, (getattr(model.config, "sampling_ratio", 2), 0))  # masks: adaptive
    learner = make_learner(model.train(), config, optimizer)
    learner.scaler.load(saved.get("loss_scale", {}))
    return _Run(learner, out, facts, saved.get("step", 0))


def _open_log(run: _Run, tensorboard: bool) -> RunLog:
    """Process 0's log and train_config.json; the others keep their rows in memory."""
    if not current().is_main:
        return RunLog(None, run.start, tensorboard=False)
    if run.out is not None:
        run.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(run.learner.config.to_dict(), indent=2) + "\n"
        (run.out / "train_config.json").write_text(text)
    return RunLog(run.out, run.start, tensorboard)


def _steps(run: _Run, dataset, workers: int) -> Iterator[tuple[int, dict]]:
    """Yields (finished steps, log row) after each update."""
    learner, config, world = run.learner, run.learner.config, current()
    places = places_of(world.rank, world.size, config.batch_size)
    failed = "nan_batch.safetensors" if world.is_main else f"nan_batch_{world.rank}.safetensors"
    path = run.out / failed if run.out else None
    clock = time.perf_counter()
    arguments = dataset, run.start, config, _augmentation(dataset, config), workers, places, run.facts["micro_batch"]
    with closing(load_steps(*arguments)) as loaded:
        for step in range(run.start, config.steps):
            with together():
                batches = next(loaded)
            row = train_step(learner, batches, lr_at(step, config), Guard(learner.model, step + 1, run.facts, path))
            now = time.perf_counter()
            rate, clock = config.batch_size / (now - clock), now
            yield step + 1, {"step": step + 1, **row, "images_per_second": rate}


def _save(run: _Run, finished: int) -> None:
    """Process 0 writes the checkpoint, the others wait until it is there."""
    with together():
        if run.out is not None and current().is_main:
            learner = run.learner
            path, state = run.out / LAST, learner.scaler.state()
            save_checkpoint(path, learner.model, learner.optimizer, finished, run.facts, state)


def _advice(out: Path | None) -> str:
    """What to do when a process was lost."""
    if out is None:
        return "nothing was saved: give out_dir to be able to resume"
    return f"{out / LAST}, if there is one, is whole: {RESUME_COMMAND}, with fewer processes too"


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
