"""How this package compiles CPU kernels with Numba: lazily, cached on disk if possible, with torch's number of threads.

This module is imported only when a compiled kernel is wanted: ``import mrcnn_scratch`` never reaches it.

Fork: once a *parallel* Numba kernel has run, GNU OpenMP kills a forked child that runs one too. `run` takes the serial
variant where torch has one thread, and a DataLoader gives each of its workers one; any other forked process must call
torch.set_num_threads(1) first, which torch's own operators ask of it as well.
"""

import threading

import numba
import torch

_lock = threading.Lock()  # Numba's workqueue layer, the fallback without OpenMP, aborts on concurrent callers

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


def run(serial, parallel, work: int, *arguments) -> None:
    """Call `parallel` with torch's number of threads, or `serial` where threads cannot help.

    `work` counts elementary operations; under 1e5 of them, waking threads costs more than it saves.
    """
    threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    if threads == 1 or work < 100_000:
        serial(*arguments)
        return
    with _lock:
        before = numba.get_num_threads()
        numba.set_num_threads(threads)
        try:
            parallel(*arguments)
        finally:
            numba.set_num_threads(before)
