"""Memory for large results: what a training loop frees, its next step is given again.

A fresh array costs a page fault for every 4 KB of it, and the system clears each page: on the machine that this was
measured on, torch.zeros of 69 MB took 133 ms, and the same zeros into memory already there took 4. So blocks that
nobody uses any more are kept, up to `KEEP` bytes, and handed out again; smaller arrays malloc recycles by itself.
"""

import threading

import numpy as np

SMALL = 16 << 20  # bytes; below this malloc does as well
KEEP = 512 << 20  # bytes of free blocks that are kept
LINE = 64  # bytes, a cache line

_free: list[np.ndarray] = []
_lock = threading.RLock()  # a block may come back, through the garbage collector, while its own thread holds the lock


class _Lease:
    """What the array that is handed out stands on: when its last view has gone, the block is free again."""

    def __init__(self, block: np.ndarray, nbytes: int):
        self.block = block
        self.__array_interface__ = block[:nbytes].__array_interface__

    def __del__(self):
        give_back(self.block)


def take(count: int, dtype) -> np.ndarray:
    """(count,) of a dtype, not initialised."""
    nbytes = count * np.dtype(dtype).itemsize
    if nbytes < SMALL:
        return np.empty(count, dtype)
    return np.asarray(_Lease(_find(nbytes), nbytes)).view(dtype)


def _find(nbytes: int) -> np.ndarray:
    """The smallest free block that holds nbytes without wasting half of itself, or a new one."""
    with _lock:
        fitting = [i for i, block in enumerate(_free) if nbytes <= len(block) <= 2 * nbytes]
        if fitting:
            return _free.pop(min(fitting, key=lambda i: len(_free[i])))
    block = np.empty(nbytes + nbytes // 8 + LINE, np.uint8)  # an eighth to spare: the number of RoIs varies
    return block[-block.ctypes.data % LINE :]


def give_back(block: np.ndarray) -> None:
    """Keep a block for later; the ones that have waited longest make room for it."""
    with _lock:
        _free.append(block)
        while sum(map(len, _free)) > KEEP:
            _free.pop(0)


def release() -> None:
    """Give all free blocks back to the system."""
    with _lock:
        _free.clear()
