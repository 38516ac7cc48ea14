"""Numba's simulator, made to forgive less: what a GPU would punish shows as a wrong number or an error.

- The threads of a block run one after the other up to each barrier, in an order of our choice. Where a barrier is
  missing something is read that is not there yet, in one order or the other.
- A barrier that only some threads of a block reach is an error.
- Shared and local memory begin as garbage, not as what the last block left.
- An index beyond an array is an error; so are integers that overflow, and NaN that becomes an integer.
"""

import contextlib
import random
import sys
import threading
import warnings

import numpy as np
from numba.cuda.simulator import kernel, kernelapi

ORDERS = ("forward", "backward", "shuffled")


class _Thread(kernel.BlockThread):
    """Runs only between `step` and the next barrier."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._go, self._paused, self.done = threading.Semaphore(0), threading.Semaphore(0), False

    def run(self):
        self._go.acquire()
        super().run()
        self.done = True
        self._paused.release()

    def syncthreads(self):
        self._paused.release()
        self._go.acquire()

    def step(self):
        self._go.release()
        self._paused.acquire()
        if self.exception:
            raise self.exception[0].with_traceback(self.exception[1])


class _BlockManager(kernel.BlockManager):
    order = "forward"

    def run(self, grid_point, *arguments):
        kernel._kernel_context._shared._allocations.clear()  # shared memory is a block's own
        points = list(np.ndindex(*self._block_dim))
        if self.order == "backward":
            points.reverse()
        elif self.order == "shuffled":
            random.Random(0).shuffle(points)
        threads = [_Thread(lambda: self._f(*arguments), self, grid_point, point, self._debug) for point in points]
        for thread in threads:
            thread.start()
        while not threads[0].done:
            for thread in threads:
                thread.step()
            done = sum(thread.done for thread in threads)
            assert done in (0, len(threads)), f"{done} of {len(threads)} threads ended, the others wait at a barrier"


def _garbage(shape, dtype):
    dtype = np.dtype(str(dtype)) if not isinstance(dtype, type) else np.dtype(dtype)
    return np.full(shape, np.nan if dtype.kind == "f" else -987_654_321, dtype)


def _shared_array(self, shape, dtype):
    frame = sys._getframe(1)  # as Numba does it: an array for each line that asks
    line = frame.f_code.co_filename, frame.f_lineno
    if line not in self._allocations:
        self._allocations[line] = _garbage(shape, dtype)
    return self._allocations[line]


@contextlib.contextmanager
def strict(order: str, warned: str = ""):
    """Run kernels so, in one of `ORDERS`. Those of NumPy's warnings that match `warned` are errors."""
    before = kernel.BlockManager, kernelapi.FakeCUDAShared.array, kernelapi.FakeCUDALocal.array
    kernel.BlockManager, _BlockManager.order = _BlockManager, order
    kernelapi.FakeCUDAShared.array = _shared_array
    kernelapi.FakeCUDALocal.array = lambda self, shape, dtype: _garbage(shape, dtype)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            warnings.filterwarnings("error", warned, RuntimeWarning)
            yield
    finally:
        kernel.BlockManager, kernelapi.FakeCUDAShared.array, kernelapi.FakeCUDALocal.array = before
