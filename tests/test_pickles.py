"""Weight files are read without running code from them, and what is not a file of weights is told in one sentence."""

import os
import pickle
import re
import struct
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mrcnn_scratch.weight_files.pickles import read_pickle
from mrcnn_scratch.weight_files.reading import file_kind, read_weights

ARRAYS = {
    "square": np.arange(12, dtype=np.float32).reshape(3, 4),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    "strided": np.arange(10, dtype=np.int64)[::2],
    "big_endian": np.arange(4, dtype=">f4"),
    "half": np.array([1.5, -2], dtype=np.float16),
    "bool": np.array([True, False]),
    "bytes": np.arange(7, dtype=np.uint8),
    "none": np.zeros((0, 4), np.float32),
    "number": np.float32(2.5),
    "zero_dim": np.array(7),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_come_back_bit_for_bit(tmp_path, protocol):
    path = tmp_path / "zoo.pkl"
    content = {"model": OrderedDict(ARRAYS), "__author__": "ä", "more": [1, (2.5, None, True)]}
    path.write_bytes(pickle.dumps(content, protocol))
    read = read_pickle(path)
    assert read["__author__"] == "ä" and read["more"] == [1, [2.5, None, True]]
    assert list(read["model"]) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert read["model"][name].dtype == array.dtype and read["model"][name].shape == array.shape
        np.testing.assert_array_equal(read["model"][name], array)
        read["model"][name][...] = 0  # its own memory, which can be written


def test_a_pickle_of_numpy_1_and_python_2(tmp_path):
    """The names before NumPy 2, protocol 2, an array's bytes as a Python 2 string: what a zoo of 2017 holds."""
    data = np.array([1.5, -3.25e7], dtype="<f4").tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nI0\n\x85U\x01bt R".replace(b" ", b"")
        + b"(I1\nI2\n\x85cnumpy\ndtype\n(U\x02f4I0\nI1\ntR(I3\nU\x01<NNNI-1\nI-1\nI0\ntb"
        + b"\x89U" + bytes([len(data)]) + data + b"tb"
    )  # fmt: skip
    path = tmp_path / "R-50.pkl"
    path.write_bytes(b"\x80\x02}U\x07conv1_w" + array + b"s.")
    np.testing.assert_array_equal(read_pickle(path)["conv1_w"], np.array([1.5, -3.25e7], np.float32))


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


def bombs() -> list[tuple[str, bytes]]:
    """What each would run, and the pickle; one for every instruction that names a function."""
    return list(_bombs())


def _bombs():
    yield "posix.mkdir", pickle.dumps(Call(os.mkdir, "exploded"), 0)  # GLOBAL
    yield "posix.mkdir", pickle.dumps(Call(os.mkdir, "exploded"), 4)  # STACK_GLOBAL
    yield "__builtin__.eval", pickle.dumps({"model": {"x": Call(eval, "open('exploded', 'w')")}}, 2)
    yield "__builtin__.getattr", pickle.dumps([np.ones(2), Call(getattr, Call(__import__, "os"), "mkdir")], 2)
    yield "posix.mkdir", b"(S'exploded'\niposix\nmkdir\n."  # INST
    yield "posix.mkdir", b"(cposix\nmkdir\nS'exploded'\no."  # OBJ
    yield "posix.system", b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93."
    yield "numpy.load", pickle.dumps({"x": Call(np.load, "exploded")}, 4)
    yield "functools.partial", pickle.dumps({"x": __import__("functools").partial(os.mkdir, "exploded")}, 4)


@pytest.mark.parametrize(("name", "data"), bombs())
def test_no_function_of_a_pickle_runs(tmp_path, monkeypatch, name, data):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pkl"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"model.pkl: the pickle wants to run {re.escape(name)}: refused, nothing"):
        read_weights(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.pkl"]


@pytest.mark.parametrize(("zipped", "protocol"), [(True, 2), (False, 2)])
def test_no_function_of_a_torch_file_runs(tmp_path, monkeypatch, zipped, protocol):
    monkeypatch.chdir(tmp_path)
    content = {"model": {"x": torch.ones(2), "bomb": Call(os.mkdir, "exploded")}}
    torch.save(content, "model.pth", _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    with pytest.raises(ValueError, match=r"model.pth: the file wants posix.mkdir.*: refused, nothing of it was run"):
        read_weights("model.pth")
    assert not os.path.exists("exploded")
    torch.load("model.pth", weights_only=False)  # the charge was live
    assert os.path.exists("exploded")


@pytest.mark.parametrize(
    ("dtype", "said"),
    [("O", "type 'O'"), ("V8", "type 'V8'"), ("f4,O", "type 'f4,O'"), ("M8[s]", "type"), ("f3", "type")],
)
def test_arrays_of_anything_but_numbers_are_refused(tmp_path, dtype, said):
    path = tmp_path / "model.pkl"
    body = f"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'{dtype}'\nI0\nI1\ntRS'12345678'\ntR."
    path.write_bytes(body.encode())
    with pytest.raises(ValueError, match=said):
        read_pickle(path)


def test_an_array_with_too_few_bytes_is_refused(tmp_path):
    path = tmp_path / "model.pkl"
    body = b"cnumpy.core.numeric\n_frombuffer\n(S'1234'\ncnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I1000000000\nI9\ntS'C'\ntR."
    path.write_bytes(body)
    with pytest.raises(ValueError, match=r"shape \(1000000000, 9\) and float32 in 4 bytes"):
        read_pickle(path)
    path.write_bytes(body.replace(b"I1000000000", b"I-1"))
    with pytest.raises(ValueError, match=r"shape \(-1, 9\)"):
        read_pickle(path)


@pytest.mark.parametrize(
    "data",
    [b"\x80\x02", b"\x80\x02}q\x00(X\x05", b"\x80\x02cnumpy\ndtype\nb.", b"\x80\x02)R.", b"\x80\x02Q.", b"\x80\x63."],
)
def test_broken_pickles(tmp_path, data):
    path = tmp_path / "model.pkl"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"model.pkl \(\d+ bytes\) is truncated or not a pickle of arrays"):
        read_weights(path)


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".safetensors", ".weights"])
def test_the_kind_is_told_by_the_contents(tmp_path, suffix):
    path, tensors = tmp_path / f"file{suffix}", {"a": torch.arange(3.0), "b": torch.ones(2, 2).half()}
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    writers = {
        "torch": lambda: torch.save(tensors, path),
        "legacy": lambda: torch.save(tensors, path, _use_new_zipfile_serialization=False),
        "pickle": lambda: path.write_bytes(pickle.dumps(arrays)),
        "pickle 0": lambda: path.write_bytes(pickle.dumps(arrays, 0)),
        "safetensors": lambda: save_file(tensors, path),
    }
    for kind, write in writers.items():
        write()
        assert file_kind(path) == {"legacy": "torch", "pickle 0": "pickle"}.get(kind, kind)
        read = read_weights(path).tensors
        assert read.keys() == tensors.keys()
        assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items()), kind


def test_wrappings_are_taken_off(tmp_path):
    weights = {"module.a": np.ones(2, np.float32), "module.b": np.zeros(1)}
    for content in (weights, {"model": weights, "iteration": 7, "optimizer": {"x": 1}}, {"state_dict": weights}):
        path = tmp_path / "model.pkl"
        path.write_bytes(pickle.dumps({**content, "__author__": "Zoo"}))
        file = read_weights(path)
        assert list(file.tensors) == ["a", "b"] and file.author == "Zoo" and file.path == path
    assert read_weights({"a": torch.ones(1, requires_grad=True)}).tensors["a"].requires_grad is False


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"blobs": {"conv1_w": np.ones(2)}, "cfg": "x"}, "Detectron .2018, Caffe2 blobs.*not supported"),
        ({"epoch": 3}, "no tensors in it .it holds epoch"),
        ({}, "no tensors in it .it holds nothing"),
        ([1, 2], "holds a list: give a state dict"),
    ],
)
def test_pickles_of_something_else(tmp_path, content, said):
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=f"model.pkl: .*{said}"):
        read_weights(path)


def test_files_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="no-such.pkl do not exist: give the path"):
        read_weights(tmp_path / "no-such.pkl")
    page = tmp_path / "page.pth"
    page.write_bytes(b"<!DOCTYPE html><html>")
    with pytest.raises(ValueError, match="page.pth .* begins with b'<!DOCTYPE html>.*download the file itself"):
        read_weights(page)
    for name, data in (("short.pth", b"PK\x03\x04" + bytes(50)), ("short.st", struct.pack("<Q", 999) + b"{")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=rf"{name} \(\d+ bytes\) are truncated or not"):
            read_weights(tmp_path / name)
    torch.save({"a": torch.ones(1000)}, tmp_path / "whole.pth")
    data = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"cut.pth \(\d+ bytes\) are truncated"):
        read_weights(tmp_path / "cut.pth")
