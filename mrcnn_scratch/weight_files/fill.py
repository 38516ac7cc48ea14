"""Tensors under a model's own names -> the model, strictly: nothing missing, nothing left over, every shape equal."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from .reading import WeightFile

TRACKED = "num_batches_tracked"  # how many batches trained a BatchNorm2d; a frozen norm has no use for it
SHOWN = 6  # names of each kind in an error
Rule = tuple[str, str | Callable[[re.Match], str]]  # a pattern of the file's names, and what replaces it


@dataclass
class Renamed:
    """A file's tensors under our names."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)  # our name -> the file's
    unknown: list[str] = field(default_factory=list)  # names of the file that no rule knows
    ignored: list[str] = field(default_factory=list)  # names that this package has no use for


def rename(file: WeightFile, rules: tuple[Rule, ...], ignored: str = r"(?!)") -> Renamed:
    """A file's tensors under our names, by the first rule whose pattern begins the name.

    Args:
        file: of :func:`~mrcnn_scratch.weight_files.reading.read_weights`.
        rules: patterns, and the replacement of what they match.
        ignored: pattern of the names to leave out.

    Raises:
        ValueError: two names of the file mean the same layer.
    """
    result = Renamed()
    for name, tensor in file.tensors.items():
        if re.fullmatch(ignored, name):
            result.ignored.append(name)
            continue
        ours = next((new for rule in rules if (new := _apply(rule, name)) is not None), None)
        if ours is None:
            result.unknown.append(name)
        elif ours in result.tensors:
            raise ValueError(f"weights {file.name}: {name} and {result.origin[ours]} are the same layer: drop one")
        else:
            result.tensors[ours], result.origin[ours] = tensor, name
    return result


def _apply(rule: Rule, name: str) -> str | None:
    pattern, replacement = rule
    match = re.match(pattern, name)
    if match is None:
        return None
    return (match.expand(replacement) if isinstance(replacement, str) else replacement(match)) + name[match.end() :]


def fill(
    model: torch.nn.Module,
    renamed: Renamed,
    file: WeightFile,
    remedy: Callable[[], str],
    wanted: Callable[[str], bool] | None = None,
) -> None:
    """Copies renamed tensors into a model; if one does not fit, none is copied.

    ``num_batches_tracked`` is dropped where the model's norm is frozen, and stays 0 where the file has none.

    Args:
        model: any module whose ``state_dict`` has our names.
        renamed: of :func:`rename`, after changes of layout.
        file: where they come from, for the messages.
        remedy: gives the end of the message: what to do.
        wanted: which of the model's names the file has to fill; all by default.

    Raises:
        ValueError: lists what is missing, unexpected, misshaped (with both shapes) or not finite.
    """
    own = {name: tensor for name, tensor in model.state_dict().items() if wanted is None or wanted(name)}
    tensors = {name: tensor for name, tensor in renamed.tensors.items() if not name.endswith(TRACKED) or name in own}
    missing = [name for name in own if name not in tensors and not name.endswith(TRACKED)]
    unexpected = renamed.unknown + [renamed.origin[name] for name in tensors if name not in own]
    misshaped = [
        f"{renamed.origin[name]} gives {_shape(tensor)} for {name}, which is {_shape(own[name])}"
        for name, tensor in tensors.items()
        if name in own and tensor.shape != own[name].shape
    ]
    broken = [renamed.origin[name] for name, x in tensors.items() if x.is_floating_point() and not x.isfinite().all()]
    faults = [("missing", missing), ("unexpected", unexpected), ("misshaped", misshaped), ("not finite", broken)]
    if any(names for _, names in faults):
        told = "; ".join(f"{len(names)} {what}: {_list(names)}" for what, names in faults if names)
        raise ValueError(f"weights {file.name} do not fit this model: {told}. {remedy()}")
    model.load_state_dict({**model.state_dict(), **tensors})


def check_fields(config, fields: dict, file: WeightFile) -> None:
    """Refuses a model whose configuration differs from what the weights were trained with.

    Args:
        config: the model's ``ModelConfig``.
        fields: name -> value that the weights need; numbers may differ by 1e-4.

    Raises:
        ValueError: names every field that differs, its value, and the one to build the model with.
    """
    wrong = {name: value for name, value in fields.items() if not same_value(getattr(config, name), value)}
    if wrong:
        has = ", ".join(f"{name}={getattr(config, name)!r}" for name in wrong)
        wants = ", ".join(f"{name}={value!r}" for name, value in wrong.items())
        raise ValueError(
            f"weights {file.name} do not go with this model's {has}: the same numbers would mean something else; "
            f"build_model(..., {wants})"
        )


def same_value(a, b) -> bool:
    """Whether two values of a configuration mean the same: numbers to 1e-4, but 0 only 0."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(same_value, a, b))
    return a == b if isinstance(a, bool | str) else abs(a - b) <= 1e-4 and (a == 0) == (b == 0)


def _shape(tensor: torch.Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a single number"


def _list(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
