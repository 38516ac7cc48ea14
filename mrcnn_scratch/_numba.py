"""How this package compiles CPU kernels with Numba: lazily, cached on disk if possible, with torch's number of threads.

This module is imported only when a compiled kernel is wanted: ``import mrcnn_scratch`` never reaches it.

Threads: kernels use as many as torch does, so a DataLoader's workers, which torch gives one thread each, run serial
variants and do not compete with the training process. Fork: after a parallel kernel has run, GNU OpenMP kills or hangs
a forked child that runs one too; so a forked child of this process never does, whatever its number of threads.
"""

import contextlib
import logging
import os
import threading

import numba
import torch

SLOW = 1.0  # seconds; a first call that takes longer says why

_lock = threading.Lock()  # Numba's workqueue layer, the fallback without OpenMP, aborts on concurrent callers
_log = logging.getLogger("mrcnn_scratch")
_process = os.getpid()
_used: set[tuple] = set()  # the variants that were called before: (kernel, dtype)

# a * b + c as one instruction; sums keep their order, NaN and infinity keep their meaning
FASTMATH = {"contract"}


def compiled(function=None, *, parallel: bool = False, fastmath=False, error_model: str = "python"):
    """`numba.njit`, with a cache on disk where the disk allows one; nothing is compiled before the first call.

    Numba's cache does not know the options: a serial and a parallel variant each need their own `def`.
    """
    if function is None:
        return lambda f: compiled(f, parallel=parallel, fastmath=fastmath, error_model=error_model)
    options = {"parallel": parallel, "fastmath": fastmath, "error_model": error_model, "nogil": True}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder can be written to: compile again in every process
        return numba.njit(**options)(function)


def threads() -> int:
    """How many threads a kernel may use now: torch's number, and one in a forked child of a process."""
    if os.getpid() != _process:
        return 1
    return min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)


def run(serial, parallel, work: int, *arguments) -> None:
    """Call `parallel` with torch's number of threads, or `serial` where threads cannot help.

    `work` counts elementary operations; under 1e5 of them, waking threads costs more than it saves. The first argument
    is an array, whose dtype tells the compiled variants of a kernel apart.
    """
    count = threads()
    if count == 1 or work < 100_000:
        with _announced(serial, arguments[0]):
            serial(*arguments)
        return
    with _lock, _announced(parallel, arguments[0]), _torch_threads_kept():
        before = numba.get_num_threads()
        numba.set_num_threads(count)
        try:
            parallel(*arguments)
        finally:
            numba.set_num_threads(before)


@contextlib.contextmanager
def _torch_threads_kept():
    """When Numba starts its threads it sets OpenMP's number of them for the whole process, which is torch's, too."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def _announced(kernel, array):
    """A context that says, after `SLOW` seconds, that a kernel is being compiled; free after the first call."""
    variant = kernel, array.dtype
    if variant in _used:
        return contextlib.nullcontext()
    _used.add(variant)
    return _Announcement(f"{kernel.__module__}.{kernel.__name__} for {array.dtype}")


class _Announcement:
    """Says it once a process: the first of the kernels speaks for those that follow."""

    said = False

    def __init__(self, name: str):
        self.timer = threading.Timer(SLOW, self.say, (name,))
        self.timer.daemon = True

    @classmethod
    def say(cls, name: str) -> None:
        if not cls.said:
            _log.warning("compiling CPU kernels on this machine, kept in a cache where the disk allows one: %s", name)
        cls.said = True

    def __enter__(self):
        self.timer.start()

    def __exit__(self, *error):
        self.timer.cancel()
