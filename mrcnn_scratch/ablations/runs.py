"""One run of one arm with one seed: what it is, where its result is kept, how it is made."""

import hashlib
import json
import platform
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from .. import __version__
from ..files import whole_file
from ..provenance import commit, processor, versions
from . import load_table
from .detector_runs import Detector
from .photographs import Photographs
from .plan import Arm, Table, Tier

PACKAGES = ("torch", "numpy", "numba", "scipy", "pycocotools")


@dataclass(frozen=True)
class Options:
    """What the command changes of a table; the same for all of its runs."""

    data: str | None = None  # None: the table's own | "shapes:NAME" | a COCO-format folder | "coco"
    root: str | None = None  # of "coco"
    config: str | None = None  # a named model, for whole detectors whose arm names none
    fields: dict = field(default_factory=dict)  # of the model's configuration, in every arm
    training: dict = field(default_factory=dict)  # of the training's
    backbone_weights: str | None = None  # ImageNet's, on photographs
    images: tuple[int, int] | None = None  # training and validation images at most
    share: float = 1.0  # of the steps, in (0, 1]
    device: str | None = None

    @property
    def photographs(self) -> bool:
        """Whether the data are a folder's or COCO's."""
        return self.data is not None and not self.data.startswith("shapes:")


@dataclass(frozen=True)
class Job:
    """A run that is independent of all others; it can be sent to another process or machine."""

    table: str
    arm: str
    seed: int
    options: Options

    def plan(self) -> tuple[Tier, Arm]:
        """What is run, after the options have been applied."""
        return planned(load_table(self.table), self.arm, self.options)

    def check(self) -> None:
        """Raises ValueError, in no time, for options that cannot be."""
        tier, arm = self.plan()
        tier.check(arm)

    def key(self) -> str:
        """Changes with anything that a run's numbers depend on, but the code."""
        tier, arm = self.plan()
        facts = {"tier": tier.facts(), "arm": arm.facts(), "seed": self.seed}
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:10]

    def path(self, out: Path) -> Path:
        """Of the result's file."""
        arm = re.sub(r"\W+", "-", self.arm).strip("-")
        return out / "runs" / self.table / f"{arm}-seed{self.seed}-{self.key()}.json"

    def cost(self) -> int:
        """Training steps, to tell long runs from short ones."""
        return getattr(getattr(self.plan()[0], "train", None), "steps", 1)

    def run(self, on_step=None, folder: Path | None = None, device: str | None = None) -> dict:
        """The result, see :class:`plan.Tier`. Takes seconds to hours."""
        tier, arm = self.plan()
        return tier.run(arm, self.seed, on_step, device or self.options.device, folder)


def arms_of(table: Table, options: Options) -> list[str]:
    """The arms' names, in the table's order.

    Raises:
        ValueError: a table without arms on photographs.
    """
    if not options.photographs:
        return [arm.name for part in table.parts for arm in part.arms]
    if not table.real:
        raise ValueError(f"{table.name} is measured on the embedded data alone: leave out --data {options.data}")
    return [arm.name for arm in table.real]


def planned(table: Table, name: str, options: Options) -> tuple[Tier, Arm]:
    """The tier and the arm of that name, as the options change them."""
    if options.photographs:
        arm = next(arm for arm in table.real if arm.name == name)
        tier = Photographs(
            options.data, options.root, options.config or table.real_config, table.keypoints, options.backbone_weights,
            dict(options.fields), dict(options.training), options.share, options.images,
        )  # fmt: skip
        return tier, arm
    part, arm = table.arm(name)
    tier, changes = part.tier, {}
    if options.data:
        changes |= {"preset": options.data.removeprefix("shapes:")}
    if options.config and isinstance(tier, Detector):
        changes |= {"config": options.config}
    if hasattr(tier, "train"):
        train = replace(tier.train, **options.training)
        if "steps" not in options.training:
            train = replace(train, steps=max(1, round(train.steps * options.share)))
        changes |= {"train": train, "fields": {**tier.fields, **options.fields}}
        if options.images:
            changes |= {"train_images": options.images[0], "val_images": options.images[1]}
    elif options.images:
        changes |= {"images": options.images[1]}
    return replace(tier, **changes), arm


def made_by(device: str | None) -> dict:
    """Commit, versions, processor and GPU that make a run, as its file and the table's keep them."""
    import torch

    machine = {"processor": processor(), "system": f"{platform.system()} {platform.machine()}"}
    if device and device.startswith("cuda"):
        machine["gpu"] = torch.cuda.get_device_name(torch.device(device))
    return {**commit(), "device": machine, "versions": {"mrcnn_scratch": __version__, **versions(*PACKAGES)}}


def save(result: dict, job: Job, out: Path) -> None:
    """Writes a run's result, whole or not at all."""
    with whole_file(job.path(out)) as temporary:
        temporary.write_text(json.dumps({"arm": job.arm, "seed": job.seed, **result}) + "\n", encoding="utf-8")


def load(job: Job, out: Path) -> dict | None:
    """The result of an earlier run of the same job, or None.

    Raises:
        ValueError: the file is no result; says what to do.
    """
    path = job.path(out)
    if not path.is_file():
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        return result if "measures" in result else _broken(path, "it has no measures")
    except json.JSONDecodeError as error:
        return _broken(path, str(error))


def _broken(path: Path, why: str):
    raise ValueError(f"{path} is no result of a run ({why}): delete it, and its run is made again")
