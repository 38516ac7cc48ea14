"""Arrays out of a pickle without running anything from it.

A pickle is a small program whose instructions may import any function and call it: ``pickle.load`` on a stranger's file
runs the stranger's code. Model zoos of 2017 to 2020 are pickles of NumPy arrays, for which seven constructors are
enough. Here each of the seven is a stand-in of our own, which builds an array from bytes and can do nothing else; any
other name that a file wants is refused before it is imported.
"""

import io
import math
import pickle
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np

_NUMBERS = re.compile(r"[biuf][1248]|\?")  # types of arrays: an object array could hold anything


class _Refused(Exception):
    """The file wants something that no table of arrays needs."""


class _Dtype:
    """Stands for numpy.dtype: a code such as "f4", and the byte order that follows as a state."""

    __slots__ = ("code", "order")

    def __init__(self, code="", *_):
        self.code, self.order = str(code), "="

    def __setstate__(self, state):
        self.order = {"<": "<", ">": ">"}.get(state[1], "=")

    def numpy(self) -> np.dtype:
        if not _NUMBERS.fullmatch(self.code):
            raise _Refused(f"holds an array of type {self.code!r}, numbers are expected")
        return np.dtype(self.order + self.code)


class _Array:
    """Stands for numpy.ndarray while its shape, type and bytes arrive."""

    __slots__ = ("value",)

    def __init__(self):
        self.value = None

    def __setstate__(self, state):
        _, shape, dtype, fortran, data = state
        self.value = _array(data, dtype, shape, "F" if fortran else "C").value


def _array(data, dtype: _Dtype, shape, order: str = "C") -> _Array:
    data = data.encode("latin1") if isinstance(data, str) else data  # a Python 2 string
    kind = dtype.numpy()
    if not isinstance(data, bytes | bytearray) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise _Refused(f"holds an array of shape {shape} whose contents are a {type(data).__name__}")
    if len(data) != math.prod(shape) * kind.itemsize:
        raise _Refused(f"holds an array of shape {shape} and {kind} in {len(data)} bytes")
    result = _Array()
    result.value = np.frombuffer(data, kind).reshape(shape, order=order).copy()
    return result


def _scalar(dtype: _Dtype, data) -> _Array:
    return _array(data, dtype, ())


def _bytes(text: str = "", encoding: str = "latin1") -> bytes:
    """Stands for ``_codecs.encode``, by which protocol 2 spells bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _Refused(f"encodes a {type(text).__name__} as {encoding!r}")
    return text.encode("latin1")


_ALLOWED = {
    ("numpy", "ndarray"): "ndarray",  # only ever an argument of _reconstruct
    ("numpy", "dtype"): lambda *arguments: _Dtype(*arguments),
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): lambda *arguments: _bytes(*arguments),
    ("builtins", "bytes"): lambda: b"",  # no bytes, in protocol 2
    ("__builtin__", "bytes"): lambda: b"",  # by its name in Python 2
}
for _core in ("numpy.core", "numpy._core"):  # before and since NumPy 2
    _ALLOWED[_core + ".multiarray", "_reconstruct"] = lambda *_: _Array()
    _ALLOWED[_core + ".multiarray", "scalar"] = lambda *arguments: _scalar(*arguments)
    _ALLOWED[_core + ".numeric", "_frombuffer"] = lambda *arguments: _array(*arguments)


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if (module, name) not in _ALLOWED:
            raise _Refused(f"wants to run {module}.{name}")
        return _ALLOWED[module, name]


def read_pickle(path: str | Path):
    """The dictionaries, lists, strings, numbers and NumPy arrays of a pickle, read without running code.

    Python 2's strings are read as latin-1, which keeps the bytes of arrays as they are.

    Args:
        path: a file of Detectron2's model zoo, or any pickle of arrays.

    Returns:
        what was pickled.

    Raises:
        ValueError: the file is no pickle, is cut short, or wants a name that is not needed for arrays; names both.
    """
    path = Path(path)
    try:
        with open(path, "rb") as handle:
            content = _Reader(io.BufferedReader(handle), encoding="latin1").load()
        return _plain(content)
    except _Refused as error:
        raise ValueError(
            f"weights {path}: the pickle {error}: refused, nothing of it was run; if you trust its author, "
            "save the arrays alone, as safetensors"
        ) from None
    except (pickle.UnpicklingError, EOFError, MemoryError, RecursionError, *_BROKEN) as error:
        raise ValueError(
            f"weights {path} ({path.stat().st_size} bytes) is truncated or not a pickle of arrays "
            f"({type(error).__name__}: {error}): copy it again"
        ) from None


# What the C unpickler and the stand-ins raise on instructions that make no sense
_BROKEN = (AttributeError, TypeError, ValueError, KeyError, IndexError, OverflowError, ImportError)


def _plain(value):
    """The stand-ins' arrays in place of the stand-ins, in dictionaries, lists and tuples of any depth."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
