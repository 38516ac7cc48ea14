"""Stopping a run and going on: Ctrl-C, the training checkpoint, and the checks before a run continues.

A checkpoint is the weights, the optimizer's state (and the loss scale's) and the step in one file.
Batches, augmentation and sampling follow from (seed, step), so that is all that an exact resume needs.
"""

import hashlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from .schedule import TrainConfig
from .weights import model_tensors, read_checkpoint, write_checkpoint

LAST = "last.safetensors"
RESUME_COMMAND = "the same command with --resume goes on"
_OPTIMIZER = "optimizer/"
# the first changes no weight and no row of the log; the second is compared as the facts' own "micro_batch"
_MAY_DIFFER = {"checkpoint_every", "images_per_micro_batch"}


def run_facts(model, dataset, config: TrainConfig) -> dict:
    """The metadata of a run's checkpoints: the model's and the run's configuration, and what the labels mean.

    Returns:
        JSON-able: ``config``, ``train_config``, ``dataset`` (``images``, a digest of their ids), ``torch``,
        ``class_names``, ``label_to_category`` (pairs), ``num_keypoints``, ``keypoint_names``, ``flip_pairs``,
        ``skeleton``.
    """
    ids = json.dumps([int(number) for number in getattr(dataset, "image_ids", [])])
    facts = {
        "config": asdict(model.config),
        "train_config": config.to_dict(),
        "dataset": {"images": len(dataset), "image_ids_sha256": hashlib.sha256(ids.encode()).hexdigest()},
        "class_names": list(dataset.class_names),
        "label_to_category": sorted(getattr(dataset, "label_to_category", {}).items()),
        "num_keypoints": dataset.num_keypoints,
        "keypoint_names": list(getattr(dataset, "keypoint_names", None) or []),
        "flip_pairs": list(getattr(dataset, "flip_pairs", None) or []),
        "skeleton": list(getattr(dataset, "skeleton", None) or []),
        "torch": torch.__version__,
    }
    return json.loads(json.dumps(facts))  # as it will read back, so that the two compare


def optimizer_tensors(model, optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state by parameter name, e.g. ``optimizer/box_head.fc1.weight/momentum_buffer``."""
    return {
        f"{_OPTIMIZER}{name}/{key}": torch.as_tensor(value)
        for name, param in model.named_parameters()
        for key, value in optimizer.state.get(param, {}).items()
        if value is not None  # SGD without momentum keeps a None
    }


def load_optimizer_tensors(model, optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Puts back what :func:`optimizer_tensors` gave."""
    params = dict(model.named_parameters())
    optimizer.state.clear()
    for full_name, value in tensors.items():
        if full_name.startswith(_OPTIMIZER):
            name, key = full_name.removeprefix(_OPTIMIZER).rsplit("/", 1)
            param = params[name]
            # AdamW counts its steps on the CPU; moments live with their parameter
            optimizer.state[param][key] = (
                value.clone() if key == "step" else value.to(param.device, copy=True)
            )


def save_checkpoint(path: str | Path, model, optimizer, step: int, facts: dict, scaler: dict | None = None) -> None:
    """Writes a checkpoint after ``step`` finished updates, whole or not at all.

    Args:
        facts: of the run, with ``micro_batch``, the images of one forward pass.
        scaler: the loss scale's state, see :meth:`~mrcnn_scratch.precision.LossScaler.state`.
    """
    tensors = model_tensors(model) | optimizer_tensors(model, optimizer)
    write_checkpoint(path, tensors, {**facts, "step": step, "loss_scale": scaler or {}})


def read_run(path: str | Path, facts: dict) -> tuple[dict[str, torch.Tensor], dict]:
    """Reads a checkpoint to go on from, once everything about the run agrees.

    Args:
        facts: of the run that wants to go on, from :func:`run_facts`.

    Returns:
        (tensors; metadata: facts, ``step``, finished updates, ``micro_batch``, ``loss_scale``).

    Raises:
        ValueError: no such file, a truncated one, weights without a training state, or another run's: names
            the field that differs and both values.
    """
    tensors, saved = read_checkpoint(path)
    if "train_config" not in saved or "targets" in saved:  # save_model's files, and a failed run's batch
        raise ValueError(
            f"checkpoint {path} holds no optimizer state: resume from a {LAST} that training wrote, "
            "or load the weights with load_model and start a new run"
        )
    for group, remedy in (
        ("train_config", "resume with the same configuration, or start a new run in another out_dir (--out)"),
        ("config", "build the model with the configuration it was trained with"),
        ("dataset", "resume on the dataset the run began with"),
    ):
        for field in sorted(saved[group].keys() | facts[group].keys()):
            then, now = saved[group].get(field), facts[group].get(field)
            if then != now and field not in _MAY_DIFFER:
                why = "the learning rate's schedule depends on it, so " if field == "steps" else ""
                raise ValueError(
                    f"cannot resume {path}: {group}.{field} was {then!r} and is now {now!r}: {why}{remedy}"
                )
    if saved["class_names"] != facts["class_names"]:
        raise ValueError(
            f"cannot resume {path}: its classes are {', '.join(saved['class_names'])}, "
            f"the dataset's {', '.join(facts['class_names'])}: resume on the dataset the run began with"
        )
    return tensors, saved


def checkpoint_to_resume(out: Path | None, resume: bool | str | Path, overwrite: bool) -> Path | None:
    """The checkpoint to go on from, or None for a new run; see :func:`mrcnn_scratch.training.train`.

    Raises:
        ValueError: nowhere to look, or out_dir holds a run that would be written over.
    """
    if resume is True and out is None:
        raise ValueError("resume=True looks in out_dir, and there is none: give out_dir, or a path as resume")
    source = out / LAST if resume is True else Path(resume) if resume else None
    if out is not None:
        kept = out / LAST
        if kept.exists() and not overwrite and (source is None or source.resolve() != kept.resolve()):
            raise ValueError(
                f"{out} holds a run already: use resume=True (--resume), another out_dir (--out), "
                "or overwrite=True (--overwrite)"
            )
        if resume is True and not kept.exists():
            raise ValueError(f"{kept} does not exist: there is no run to go on with, leave resume (--resume) out")
        for stale in out.glob(f".{LAST}.*.tmp"):  # of a run that was killed while it wrote
            stale.unlink(missing_ok=True)  # several processes clear up
    return source


def how_to_resume(finished: int, steps: int, out: Path | None) -> str:
    """The message of a run that was stopped."""
    stopped = f"stopped after step {finished} of {steps}"
    if out is None:
        return f"{stopped}; nothing was saved: give out_dir to be able to resume"
    return f"{stopped}; saved {out / LAST}: {RESUME_COMMAND}, in Python train(..., resume=True)"


@contextmanager
def deferred_interrupt(speaks: bool = True) -> Iterator[threading.Event]:
    """Turns the first Ctrl-C or SIGTERM into an event, so that no update is cut in half; a second stops at once.

    SIGTERM is how a batch system, and torchrun, end a job. Outside the main thread, or where the process ignores
    a signal, it stays as it is.

    Args:
        speaks: whether this process answers a Ctrl-C; of several only one should.
    """
    stop = threading.Event()

    def on_signal(signum, frame):
        if stop.is_set():
            raise KeyboardInterrupt("stopped at once: the last checkpoint stands")
        stop.set()
        if speaks and signum == signal.SIGINT:
            # not print: the signal may have come in the middle of the progress bar's own write
            os.write(2, b"\nfinishing this step, then saving; Ctrl-C again stops at once\n")

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
