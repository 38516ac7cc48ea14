"""Starting a compiled kernel without Numba's dispatcher, which takes half a millisecond to look at the arguments.

The kernels are compiled for one signature each, so there is nothing to look at: an array goes in as the seven numbers
that Numba's compiled code reads, everything else as it is. That is numba-cuda's own layout, which a test compares; it
is used with the versions that were tried, and with any other the dispatcher starts the kernels.
"""

import ctypes
import functools
from importlib.metadata import PackageNotFoundError, version

from torch import Tensor

TRIED = ("0.30.",)  # numba-cuda
_CTYPES = {"float32": ctypes.c_float, "float64": ctypes.c_double, "int32": ctypes.c_int32, "int64": ctypes.c_int64}


@functools.cache
def available() -> bool:
    """Whether :func:`start` knows the installed numba-cuda."""
    try:
        return version("numba-cuda").startswith(TRIED)
    except PackageNotFoundError:
        return False


def start(dispatcher, blocks: int, threads: int, stream: int, arguments: tuple) -> None:
    """Start the one kernel of a dispatcher on a stream of the current device.

    Args:
        dispatcher: of ``cuda.jit`` with one signature.
        blocks, threads: a one-dimensional grid, not empty.
        stream: torch's ``cuda_stream``.
        arguments: one-dimensional contiguous tensors, numbers, and tuples of numbers.
    """
    from cuda.core import launch

    kernel, pack = _kernel(dispatcher)
    launch(_stream(stream), _grid(blocks, threads), kernel._codelibrary.get_cufunc().kernel, *pack(arguments))


@functools.cache
def _kernel(dispatcher):
    (kernel,) = dispatcher.overloads.values()
    return kernel, packer(kernel.argument_types)


@functools.cache
def _stream(handle: int):
    from cuda.core import Stream

    return Stream.from_handle(handle)


@functools.lru_cache(maxsize=1024)
def _grid(blocks: int, threads: int):
    from cuda.core import LaunchConfig

    return LaunchConfig(grid=blocks, block=threads)


def packer(types):
    """A function from arguments to the list of what a kernel of these Numba types is started with."""
    steps = [_step(kind) for kind in types]

    def pack(arguments: tuple) -> list:
        values = []
        for step, argument in zip(steps, arguments, strict=True):
            step(argument, values)
        return values

    return pack


def _step(kind):
    if hasattr(kind, "layout"):
        return _add_array
    if hasattr(kind, "types"):
        convert = [_CTYPES[str(each)] for each in kind.types]
        return lambda tuple_, values: values.extend(c(x) for c, x in zip(convert, tuple_, strict=True))
    convert = _CTYPES[str(kind)]
    return lambda number, values: values.append(convert(number))


def _add_array(a: Tensor, values: list) -> None:
    count, size = a.numel(), a.element_size()
    # no owner twice, elements, bytes of one, memory, and of its only axis: length, bytes to the next
    values += (0, 0, count, size, a.data_ptr(), count, size)
