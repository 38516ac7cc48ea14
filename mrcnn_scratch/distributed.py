"""One job in many processes: which one am I, what do all agree on, and how do all end together.

``torchrun --nproc-per-node 8 -m mrcnn_scratch train ...`` starts the processes and tells each its place by
environment variables. Gradients travel by NCCL between GPUs; flags, losses and results, and everything on machines
without GPUs, by gloo between CPUs. Alone, every function here is a few lines of nothing.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

# Process 0 computes AP while the others wait; one that was killed is noticed at once, this is for one that hangs
TIMEOUT = timedelta(minutes=30)
_PLACES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")  # what torchrun sets


@dataclass(frozen=True)
class World:
    """A process's place in its job."""

    rank: int  # 0..size - 1, over all machines
    size: int  # processes of the job
    local_rank: int  # 0.. on this machine: the number of its GPU
    device: torch.device  # where this process computes

    @property
    def is_main(self) -> bool:
        """Whether this process writes files, the log and the progress bar."""
        return self.rank == 0


class PeerStopped(RuntimeError):
    """Another process stopped the job, and says why; :func:`world` ends this one without a word."""


class LostProcess(ConnectionError):
    """Another process ended without a word, or cannot be reached."""


_joined: ContextVar[World | None] = ContextVar("joined", default=None)


@contextmanager
def world(device: str | None = None) -> Iterator[World]:
    """Joins the job that ``torchrun`` started this process for; alone, it is a job of one.

    Within it, :func:`current` is the yielded world. When it is left by an error, one process speaks, the first that
    fails: the others end without a word, so that an error of all is read once.

    Args:
        device: "cpu", "cuda" or None, a GPU if there is one. With several processes each takes its own GPU.

    Raises:
        ValueError: a GPU that is not there.
    """
    if dist.is_available() and dist.is_initialized():  # joined already
        yield current()
        return
    rank, size, local_rank = _place()
    me = World(rank, size, local_rank, _device(device, local_rank, size))
    store = _join(me) if size > 1 else None
    token = _joined.set(me)
    try:
        yield me
        if store is not None:
            wait()
            dist.destroy_process_group()
    except (Exception, KeyboardInterrupt) as error:
        if store is not None:  # the group stays open: closing it could wait for a process that is gone
            _end(error, store)
        raise
    finally:
        _joined.reset(token)
        if store is not None:
            # gloo's threads give their last tensors back to the interpreter: one that asks for it while it ends would
            # abort the process (Python before 3.14)
            time.sleep(0.2)


def current() -> World:
    """The running process's place: that of :func:`world`, or of a process group opened elsewhere, or alone."""
    joined = _joined.get()
    if joined is not None:
        return joined
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size(), local_rank, _device(None, local_rank, 2))
    return World(0, 1, 0, _device(None, 0, 1))


def _place() -> tuple[int, int, int]:
    """(rank, processes, local rank) from torchrun's environment."""
    if not all(name in os.environ for name in _PLACES):
        return 0, 1, 0
    return tuple(int(os.environ[name]) for name in _PLACES[:3])


def _device(wanted: str | None, local_rank: int, size: int) -> torch.device:
    device = torch.device(wanted or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type != "cuda":
        return device
    if size > 1 and device.index is not None:
        raise ValueError(f"device {wanted!r} with {size} processes: give 'cuda', and each takes its own GPU")
    index = device.index if device.index is not None else local_rank
    if index >= torch.cuda.device_count():
        raise ValueError(
            f"process {local_rank} of this machine wants GPU {index}, which it has not: start as many processes as it "
            "has GPUs (torchrun --nproc-per-node), or give device 'cpu'"
        )
    return torch.device("cuda", index)


def _join(me: World):
    """Opens the process group; returns the store that torchrun keeps, which outlives a killed process."""
    if me.device.type == "cuda":
        torch.cuda.set_device(me.device)
    store, rank, size = next(dist.rendezvous("env://", me.rank, me.size, timeout=TIMEOUT))
    backend = "cpu:gloo,cuda:nccl" if me.device.type == "cuda" and dist.is_nccl_available() else "gloo"
    group = dist.PrefixStore("mrcnn_scratch", store)
    dist.init_process_group(backend, store=group, rank=rank, world_size=size, timeout=TIMEOUT)
    return store


def _end(error: BaseException, store) -> None:
    """Leaves a job that failed: silently, unless this process is the one to speak."""
    try:
        speaks = not isinstance(error, PeerStopped) and store.add("speakers", 1) == 1
    except RuntimeError:  # the store went with the process that kept it
        speaks = True
    if speaks:
        if threading.current_thread() is threading.main_thread():
            # torchrun ends all processes once one has failed: this one ends by itself, after it has said why
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return
    time.sleep(1)  # so that torchrun's own report names the process at fault, not this one
    status = 130 if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 1)  # Typer's
    raise SystemExit(status) from None


def agree(error: Exception | None) -> None:
    """Waits for all processes; where one of them brings an error, all stop.

    Raises:
        the error, in the first process that brought one; PeerStopped in the others.
    """
    me = current()
    if me.size == 1:
        if error is not None:
            raise error
        return
    first = int(_reduce([me.size if error is None else me.rank], dist.ReduceOp.MIN)[0])
    if first == me.rank:
        raise error
    if first < me.size:
        raise PeerStopped(f"process {first} of {me.size} stopped the job and says why") from error


@contextmanager
def together() -> Iterator[None]:
    """Runs a block in all processes; what fails in one stops all, see :func:`agree`. No other exchange within it."""
    error = None
    try:
        yield
    except Exception as caught:
        error = caught
    agree(error)


@contextmanager
def noticing_loss(advice: str) -> Iterator[None]:
    """Turns torch's report of a broken connection into one line.

    Args:
        advice: what the user can do now.

    Raises:
        LostProcess: says which process noticed, and the advice.
    """
    try:
        yield
    except RuntimeError as error:
        me = current()
        known = isinstance(error, (dist.DistBackendError, dist.DistNetworkError))
        if me.size == 1 or not (known or "gloo" in str(error) or "by peer" in str(error)):
            raise
        noticed = f"process {me.rank} of {me.size} has lost another one, which was killed, failed or does not answer"
        raise LostProcess(f"{noticed}; {advice}") from None


def any_of(flag: bool) -> bool:
    """Whether the flag is set in at least one process; the same answer in all."""
    return flag if current().size == 1 else bool(_reduce([flag], dist.ReduceOp.MAX)[0])


def sum_of(values: list[float]) -> list[float]:
    """The sums over all processes, of float64 numbers; the same in all."""
    return values if current().size == 1 else _reduce(values, dist.ReduceOp.SUM)


def average(tensors: list[torch.Tensor]) -> None:
    """Replaces float tensors of one device and dtype by their means over all processes."""
    size = current().size
    if size > 1 and tensors:
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        parts = (flat / size).split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def wait() -> None:
    """Returns when all processes have come here."""
    if current().size > 1:
        _reduce([0], dist.ReduceOp.SUM)


def gather(value: Any) -> list[Any]:
    """The values of all processes in their order, in process 0; an empty list in the others."""
    me = current()
    if me.size == 1:
        return [value]
    values = [None] * me.size if me.is_main else None
    dist.gather_object(value, values)
    return values or []


def share(value: Any) -> Any:
    """Process 0's value, in all."""
    if current().size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _reduce(values, op) -> list[float]:
    tensor = torch.tensor(values, dtype=torch.float64)  # on the CPU, so by gloo, whatever the gradients travel by
    dist.all_reduce(tensor, op)
    return tensor.tolist()
