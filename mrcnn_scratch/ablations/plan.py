"""What a table is made of: arms, protocols, and the claims that were fixed before anything was run."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from ..average_precision import IOU_THRESHOLDS

KINDS = ("box", "mask", "keypoints")
THRESHOLDS = tuple(IOU_THRESHOLDS.round(2).tolist())  # .50, .55, .. .95, of IoU or OKS

MORE, EQUAL, NONE = "more", "equal", "none"  # what a claim can say of a - b


@dataclass(frozen=True)
class Arm:
    """One row of a table."""

    name: str
    fields: Mapping = field(default_factory=dict)  # of the model's configuration: what this arm changes
    stride: int = 16  # Tiers 0 and A: pixels a cell
    config: str = ""  # Tier B: a named model instead of the protocol's

    def facts(self) -> dict:
        """What a run of it depends on, for JSON."""
        return {"fields": dict(self.fields), "stride": self.stride, "config": self.config}


class Tier(Protocol):
    """How the arms of a part are run: :class:`Oracle`, :class:`Detector` or :class:`Geometry`."""

    def run(self, arm: Arm, seed: int, on_step=None, device: str | None = None, folder: Path | None = None) -> dict:
        """``{"measures": {name: value}, ...}``; what else there is goes into the report's pictures.

        Args:
            on_step: as for :func:`mrcnn_scratch.training.train`.
            folder: for checkpoints, of a run that takes hours.
        """

    def check(self, arm: Arm) -> None:
        """Raises ValueError, before anything is run, for settings that cannot be."""

    def cells(self, arm: Arm) -> list[float]:
        """Size of each validation object, in cells of the map that its RoI reads."""

    def facts(self) -> dict:
        """What a run depends on, for JSON."""


@dataclass(frozen=True)
class Part:
    """Arms that are run alike."""

    tier: Tier
    arms: tuple[Arm, ...]


@dataclass(frozen=True)
class Comparison:
    """``a - b`` in one measure, and what was claimed of it. A pair of arms stands for their difference."""

    a: str | tuple[str, str]
    b: str | tuple[str, str]
    measure: str
    claim: str = MORE  # MORE: above 0 | EQUAL: within the margin | NONE: measured, nothing claimed
    margin: float = 0.0  # of EQUAL, in 0..1
    paper: float | None = None  # the same difference in the paper, in points of AP

    def __post_init__(self):
        if self.claim not in (MORE, EQUAL, NONE) or (self.claim == EQUAL) != (self.margin > 0):
            raise ValueError(f"claim {self.claim!r} with margin {self.margin}: a margin belongs to {EQUAL!r} alone")

    @property
    def names(self) -> tuple[str, str]:
        """Both sides as text."""
        return tuple(side if isinstance(side, str) else " - ".join(side) for side in (self.a, self.b))


@dataclass(frozen=True)
class Table:
    """One table of the paper, or one of ours."""

    name: str  # as the command takes it
    title: str
    parts: tuple[Part, ...]
    comparisons: tuple[Comparison, ...]
    caveat: str  # printed beside every result
    real: tuple[Arm, ...] = ()  # the arms on photographs, with the whole detector
    real_config: str = ""  # the paper's model for them
    real_comparisons: tuple[Comparison, ...] = ()  # between them; none: those of `comparisons` that name them
    keypoints: bool = False  # the arms on photographs are of persons, with keypoints

    def __post_init__(self):
        _check_names(self.name, [arm.name for part in self.parts for arm in part.arms], self.comparisons)
        _check_names(self.name, [arm.name for arm in self.real], self.real_comparisons)

    def arm(self, name: str) -> tuple[Part, Arm]:
        """The part and the arm of that name."""
        return next((part, arm) for part in self.parts for arm in part.arms if arm.name == name)


def _check_names(table: str, names: list[str], comparisons: tuple[Comparison, ...]) -> None:
    """Refuses two arms of one name, and comparisons of arms that are not there."""
    if len(set(names)) < len(names):
        raise ValueError(f"table {table}: two arms have one name")
    sides = [side for comparison in comparisons for side in (comparison.a, comparison.b)]
    compared = {arm for side in sides for arm in ([side] if isinstance(side, str) else side)}
    if compared - set(names):
        raise ValueError(f"table {table} compares arms that it has not: {', '.join(sorted(compared - set(names)))}")


def frozen(**fields) -> Mapping:
    """Fields of an arm; read-only, since many arms share them."""
    return MappingProxyType(fields)


def plain(settings) -> dict:
    """A dataclass of settings for JSON."""
    return {"tier": type(settings).__name__.lower(), **asdict(settings)}
