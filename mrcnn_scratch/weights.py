"""Checkpoints as safetensors: one file, written atomically, read without executing anything from it.

A file holds tensors named ``model/<state_dict name>`` (and, for a training checkpoint, ``optimizer/...``)
and one JSON string of metadata: the model's configuration, its class names, the step.
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .files import whole_file

FORMAT = 1
_KEY = "mrcnn_scratch"  # safetensors metadata maps strings to strings: ours is one JSON document
_MODEL = "model/"


def write_checkpoint(path: str | Path, tensors: dict[str, torch.Tensor], metadata: dict) -> None:
    """Writes tensors and JSON metadata to one file, whole or not at all.

    The bytes go to a temporary neighbour, reach the disk, and only then take the name ``path``: an
    interrupted write leaves the previous checkpoint as it was.

    Args:
        path: the file; its folder is made.
        tensors: name -> tensor of any shape, dtype and device.
        metadata: anything ``json`` can write.
    """
    contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with whole_file(path) as temporary:
        save_file(contiguous, temporary, metadata={_KEY: json.dumps({"format": FORMAT, **metadata})})


def read_checkpoint(path: str | Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Reads a file of :func:`write_checkpoint`.

    Returns:
        (tensors on the CPU, metadata).

    Raises:
        ValueError: the file is missing, truncated, or not a checkpoint of this package.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"checkpoint {path} does not exist: give the path of a .safetensors file")
    try:
        with safe_open(path, framework="pt") as handle:
            header = handle.metadata() or {}
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"checkpoint {path} ({path.stat().st_size} bytes) is truncated or not a safetensors file ({error}): "
            "copy it again, or resume from an earlier checkpoint"
        ) from error
    if _KEY not in header:
        raise ValueError(f"checkpoint {path} was not written by mrcnn_scratch: it has no {_KEY!r} metadata")
    try:
        metadata = json.loads(header[_KEY])
    except ValueError as error:
        raise ValueError(f"checkpoint {path} has metadata that is not JSON ({error}): copy it again") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"checkpoint {path} has format {metadata.get('format')!r}, this version reads {FORMAT}: "
            "update mrcnn_scratch"
        )
    return tensors, metadata


def model_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The model's ``state_dict`` under the names that a checkpoint uses."""
    return {_MODEL + name: tensor for name, tensor in model.state_dict().items()}


def load_model_tensors(model: torch.nn.Module, tensors: dict[str, torch.Tensor], source: str | Path) -> None:
    """Copies ``model/...`` tensors into ``model``, strictly: every name and shape must agree.

    Raises:
        ValueError: names what is missing, unexpected or misshaped, and the file it came from.
    """
    state = {name.removeprefix(_MODEL): tensor for name, tensor in tensors.items() if name.startswith(_MODEL)}
    own = model.state_dict()
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    misshaped = [
        f"{name} is {tuple(state[name].shape)}, the model has {tuple(own[name].shape)}"
        for name in sorted(own.keys() & state.keys())
        if own[name].shape != state[name].shape
    ]
    broken = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise ValueError(
            f"weights of {source} are not finite: {broken[:5]} ({len(broken)}): "
            "take a checkpoint from before the run broke"
        )
    if missing or unexpected or misshaped:
        raise ValueError(
            f"weights of {source} do not fit this model: missing {missing[:5]} ({len(missing)}), unexpected "
            f"{unexpected[:5]} ({len(unexpected)}), misshaped {misshaped[:5]} ({len(misshaped)}): "
            "build the model with the configuration and class count it was saved with"
        )
    model.load_state_dict(state)


def save_model(model, path: str | Path, **metadata) -> None:
    """Saves a :class:`~mrcnn_scratch.model.MaskRCNN` with its configuration, so that :func:`load_model` rebuilds it.

    Args:
        path: the .safetensors file.
        metadata: JSON-able extras, e.g. ``class_names=[...]``, ``command="..."``.
    """
    write_checkpoint(path, model_tensors(model), {"config": asdict(model.config), **metadata})


def load_model(path: str | Path):
    """Rebuilds the model of a checkpoint, in eval mode, on the CPU.

    Returns:
        (model, metadata): metadata has ``config`` and whatever was saved beside it.

    Raises:
        ValueError: as :func:`read_checkpoint`, or the weights do not fit their own configuration.
    """
    from .config import ModelConfig
    from .model import MaskRCNN

    tensors, metadata = read_checkpoint(path)
    if "config" not in metadata:
        raise ValueError(f"checkpoint {path} has no model configuration: save it with save_model")
    model = MaskRCNN(ModelConfig.from_dict(metadata["config"]))
    load_model_tensors(model, tensors, path)
    return model.eval(), metadata
