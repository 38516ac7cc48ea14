"""Weight files of any kind -> names and tensors, whatever the file's name says, and without running code from it."""

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from .pickles import read_pickle

_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before its version 1.6: a pickled number
_WRAPPERS = ("model", "state_dict", "model_state", "model_state_dict")  # under which training scripts keep the weights


@dataclass(frozen=True)
class WeightFile:
    """The weights of a file, and what the file says about them."""

    tensors: dict[str, torch.Tensor]
    name: str = "the state dict"  # of the file, for messages
    author: str = ""  # Detectron2's "__author__"
    path: Path | None = None


def file_kind(path: str | Path) -> str:
    """What a file is by its first bytes: "safetensors", "torch", "pickle", or "" for none of them.

    Raises:
        ValueError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"weights {path} do not exist: give the path of a .safetensors, .pth or .pkl file")
    start = _start(path, len(_LEGACY_TORCH))
    if start[:4] == b"PK\x03\x04" or start == _LEGACY_TORCH:
        return "torch"
    if start[8:9] == b"{":
        return "safetensors"
    pickled = start[:1] == b"\x80" or start[:2] in (b"(d", b"}q", b"(l", b"]q")  # protocols 2 and later, 0 and 1
    return "pickle" if pickled or path.suffix == ".pkl" else ""


def _start(path: Path, count: int) -> bytes:
    with open(path, "rb") as handle:
        return handle.read(count)


def read_weights(source: WeightFile | str | Path | Mapping) -> WeightFile:
    """Names and tensors of a file, or of a state dict that is in memory already.

    Args:
        source: a .safetensors, .pth, .pt or .pkl file; or a mapping of names to tensors or arrays. What a training
            script wraps around the weights ("model", "state_dict") is taken off, and so is DataParallel's "module.".

    Returns:
        the tensors, on the CPU.

    Raises:
        ValueError: no such file, not a file of weights, cut short, or one that wants to run code; says which.
    """
    if isinstance(source, WeightFile):
        return source
    if isinstance(source, Mapping):
        return _unwrap(source, "the state dict", None)
    path = Path(source)
    kind = file_kind(path)
    if not kind:
        raise ValueError(
            f"weights {path} ({path.stat().st_size} bytes) are neither safetensors nor a file of torch.save nor a "
            f"pickle: it begins with {_start(path, 24)!r}; download the file itself, not the page about it"
        )
    read = {"torch": _read_torch, "pickle": read_pickle, "safetensors": _read_safetensors}[kind]
    return _unwrap(read(path), str(path), path)


def _read_torch(path: Path):
    try:
        if path.suffix != ".safetensors" and _start(path, 2) == b"PK":
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
        with open(path, "rb") as handle:  # torch.load would go by the suffix, and cannot map its older format
            return torch.load(handle, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"(?:Unsupported global:|unsupported) GLOBAL (\S+)", str(error))
        refused = f"wants {wanted[1]}, which no tensor needs" if wanted else "is more than tensors"
        raise ValueError(
            f"weights {path}: the file {refused}: refused, nothing of it was run; if you trust its author, save its "
            "state dict alone: torch.save(checkpoint['model'], path)"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError, IndexError, OSError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"weights {path} ({path.stat().st_size} bytes) are truncated or not a file of torch.save ({text}): "
            "copy it again"
        ) from None


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, framework="pt") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"weights {path} ({path.stat().st_size} bytes) are truncated or not a safetensors file ({error}): "
            "copy it again"
        ) from None


def _unwrap(content, name: str, path: Path | None) -> WeightFile:
    """The mapping of names to tensors inside what a file holds."""
    if not isinstance(content, Mapping):
        raise ValueError(f"weights {name}: holds a {type(content).__name__}: give a state dict, names and tensors")
    author = str(content.get("__author__", ""))
    if "blobs" in content and isinstance(content["blobs"], Mapping):
        raise ValueError(
            f"weights {name}: a detector of Detectron (2018, Caffe2 blobs), whose boxes are a pixel wider and whose "
            "batch norms are fused: not supported; take the same model from Detectron2's model zoo"
        )
    for key in _WRAPPERS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    tensors = {str(key): tensor for key, item in content.items() if (tensor := _tensor(item)) is not None}
    if not tensors:
        keys = ", ".join(map(str, list(content)[:5])) or "nothing"
        raise ValueError(f"weights {name}: no tensors in it (it holds {keys}): give a state dict, names and tensors")
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): tensor for key, tensor in tensors.items()}
    return WeightFile(tensors, name, author, path)


def _tensor(item) -> torch.Tensor | None:
    if isinstance(item, np.ndarray | np.generic):
        return torch.from_numpy(np.array(item, dtype=item.dtype.newbyteorder("="), order="C"))
    return item.detach() if isinstance(item, torch.Tensor) else None
