"""How this package compiles CUDA kernels with Numba and starts them on torch's stream, without a copy or a host sync.

Imported only when a CUDA kernel is wanted. With NUMBA_ENABLE_CUDASIM=1, set before Numba is imported, the same kernels
run in Numba's simulator on CPU tensors: slowly, in threads of Python, for the whole process.

A kernel's file must say `from numba import cuda`: under that name the simulator swaps its own module in.
"""

import functools
import warnings
from importlib.util import find_spec

import numba
import numpy as np
import torch
from torch import Tensor

if not hasattr(np, "row_stack"):
    np.row_stack = np.vstack  # numba-cuda 0.30 asks for it on import, NumPy 2.5 no longer has it

from numba import cuda  # noqa: E402

from . import _cuda_launch  # noqa: E402

# a handful of RoIs is a small grid, and the last step of NMS is a single block by design
warnings.filterwarnings("ignore", message=r"(\x1b\[\d*m)?Grid size \d+ will likely result in GPU under-utilization")

SIMULATED = bool(numba.config.ENABLE_CUDASIM)
INSTALL = 'pip install "mrcnn_scratch[cuda]"'
_NUMBA_CUDA = find_spec("numba_cuda") is not None  # else Numba's built-in target, which has none of these options
_INLINE = {"forceinline": True} if _NUMBA_CUDA else {}
_OPTIONS = {"lto": False} if _NUMBA_CUDA else {}  # what runs is what ptxas makes of the PTX that the tests read


@functools.cache
def why_not() -> str | None:
    """Why CUDA kernels cannot run in this process, in words for an error or a warning; None if they can."""
    if SIMULATED:
        return None
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    try:
        cuda.jit((), **_OPTIONS)(_nothing)  # compiled, linked and loaded
    except Exception as error:  # a driver or a library that is not found, or too old: each raises a type of its own
        missing, why = "" if _NUMBA_CUDA else "numba-cuda is not installed, and ", " ".join(str(error).split())
        return f"{missing}Numba cannot compile for this GPU ({why}): {INSTALL}, or point CUDA_HOME at a CUDA toolkit"
    return None


def require() -> None:
    """Raise RuntimeError with the reason and the remedy where CUDA kernels cannot run."""
    if reason := why_not():
        raise RuntimeError(f"the CUDA kernels cannot run: {reason}")


def device(function):
    """Decorate what kernels call. Inlined when compiled; plain Python in the simulator, whose wrapper is slow."""
    if SIMULATED:
        return function
    return cuda.jit(device=True, **_INLINE)(function)


def compiled(function, signature: tuple):
    """The kernel `function`, compiled at once for argument types `signature` and for whatever GPU it is started on.

    The result is cached on disk, by the function's code, its file, and the variables that it encloses: what a kernel
    takes from another file must be among these, or a change there would not reach it.
    """
    require()
    if SIMULATED:
        return cuda.jit(signature)(function)
    try:
        return cuda.jit(signature, cache=True, **_OPTIONS)(function)
    except RuntimeError:  # no folder can be written to: compile again in every process
        return cuda.jit(signature, **_OPTIONS)(function)


def launch(kernel, blocks: int, threads: int, *arguments) -> None:
    """Start a kernel of `compiled` on the current stream of the tensors' device; returns before it has run.

    Args:
        blocks, threads: a one-dimensional grid; no blocks: nothing happens.
        arguments: contiguous tensors on one device (on the CPU in the simulator), and numbers.
    """
    if blocks == 0:
        return
    if SIMULATED:
        kernel[blocks, threads](*(a.detach().numpy() if isinstance(a, Tensor) else a for a in arguments))
        return
    place = next(a.device for a in arguments if isinstance(a, Tensor))
    with torch.cuda.device(place):
        pointer = torch.cuda.current_stream(place).cuda_stream
        if _cuda_launch.available():
            _cuda_launch.start(kernel, blocks, threads, pointer, arguments)
        else:
            kernel[blocks, threads, _stream(place.index, pointer)](*map(_argument, arguments))


@functools.cache
def _stream(device_index: int, pointer: int):
    """Numba's handle of torch's stream: 17 us to make, so it is made once. torch never destroys its own streams."""
    return cuda.external_stream(pointer)


def _argument(a):
    # detached, or torch refuses to name its memory; sync=False: both sides are on the same stream
    return cuda.as_cuda_array(a.detach(), sync=False) if isinstance(a, Tensor) else a


def _nothing():
    pass
