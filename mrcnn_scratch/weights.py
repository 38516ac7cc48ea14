"""Checkpoints as safetensors: one file, written atomically, read without executing anything from it.

A file holds tensors named ``model/<state_dict name>`` (and, for a training checkpoint, ``optimizer/...``)
and one JSON string of metadata: the model's configuration, its class names, the step. Weights of torchvision and
Detectron2 are read by weight_files/, whose public names are here too.
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .files import whole_file
from .weight_files.detectron2_names import detectron2_fields
from .weight_files.identify import Identified, identify
from .weight_files.loading import load_backbone_weights, load_detectron2_weights, load_torchvision_weights
from .weight_files.reading import file_kind, read_weights
from .weight_files.torchvision_names import export_torchvision_weights, torchvision_fields

__all__ = [
    "Identified", "detectron2_fields", "export_torchvision_weights", "identify", "load_backbone_weights",
    "load_detectron2_weights", "load_model", "load_model_tensors", "load_pretrained", "load_torchvision_weights",
    "model_tensors", "read_checkpoint", "read_weights", "save_model", "torchvision_fields", "write_checkpoint",
]  # fmt: skip

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


def load_pretrained(path: str | Path, **fields):
    """The model of any file of weights: ours, torchvision's or Detectron2's, in eval mode, on the CPU.

    A foreign file is identified by its names and shapes, and gets the conventions of its code base and, where the
    number of classes is COCO's, COCO's class names and category ids.

    Args:
        path: a .safetensors, .pth or .pkl file.
        fields: of the configuration, for a foreign file; e.g. ``score_threshold=0.5``.

    Returns:
        (model, metadata): as :func:`load_model`; of a foreign file ``class_names`` and ``label_to_category`` if they
        are COCO's, ``skeleton`` with COCO's keypoints, ``keypoint_offset``, what to add to its keypoints for ours,
        and ``identified``, the ``build_model`` call.

    Raises:
        ValueError: as :func:`load_model`, :func:`~mrcnn_scratch.weight_files.identify.identify` and the loaders.
    """
    path = Path(path)
    if not path.is_file() or _is_ours(path):
        return load_model(path)
    file = read_weights(path)
    found = identify(file)
    model = found.build(**fields)
    load = load_torchvision_weights if found.kind == "torchvision" else load_detectron2_weights
    load(model, file)
    return model.eval(), _coco_metadata(found)


def _is_ours(path: Path) -> bool:
    """Whether :func:`read_checkpoint` should read a file, or say what is wrong with it."""
    kind = file_kind(path)
    if kind == "safetensors":
        try:
            with safe_open(path, framework="pt") as handle:
                return _KEY in (handle.metadata() or {})
        except (SafetensorError, OSError, ValueError):
            return True
    return not kind and path.suffix not in (".pth", ".pt", ".pkl")


def _coco_metadata(found: Identified) -> dict:
    from .datasets.coco_classes import PERSON_SKELETON, coco_classes

    # torchvision learned COCO's keypoints, pixel indices, as they are; ours are continuous: pixel 3's middle is 3.5
    metadata = {"identified": found.call, "keypoint_offset": 0.5 if found.kind == "torchvision" else 0.0}
    classes = coco_classes(found.num_classes, found.keypoints)
    if classes:
        metadata["class_names"], labels = classes
        metadata["label_to_category"] = sorted(labels.items())
    if found.keypoints == 17:
        metadata["skeleton"] = [list(edge) for edge in PERSON_SKELETON]
    return metadata
