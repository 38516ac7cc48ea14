"""What is measured: which op on which features and boxes, in which layout and direction, and the ratios to be reached.

Boxes (`make_boxes`). Sides are log-uniform between two bounds, height / width is log-uniform in [1/2, 2], centres are
uniform over the image, and what sticks out is cut off, as proposals are. The bounds, in pixels, are those of the boxes
that reach a map of that stride:

| stride | sides | whose boxes |
|---|---|---|
| 4 | 16 to 112 | P2 of an FPN: eq. 1 sends it what is smaller than 112 (4 to 28 cells) |
| 8 | 112 to 224 | P3, by the same equation (14 to 28 cells) |
| 16 | 32 to 512 | C4, the one map of a detector without FPN: the sizes of its anchors (2 to 32 cells) |
| 1 | 16 to 512 | NMS: boxes of all sizes |

"clustered" boxes for NMS are what a detector gives before NMS: twenty around each of R / 20 such boxes, each corner
moved by a normal deviate of a tenth of the side.
"""

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor

SIDES = {1: (16, 512), 4: (16, 112), 8: (112, 224), 16: (32, 512)}  # stride -> pixels, see above
IOU_THRESHOLD = 0.7  # of NMS: the RPN's
LAYOUTS = ("channels_last", "NCHW")
DIRECTIONS = ("forward", "backward")


@dataclass(frozen=True)
class Case:
    """One job: everybody computes it, in turns."""

    op: str  # "align", "pool", "warp" or "nms"
    shape: tuple[int, int, int, int]  # of the features, (N, C, H, W); of NMS's image, (1, 1, H, W)
    stride: int  # pixels per cell
    rois: int
    bins: int  # per axis
    sampling: int = 2  # samples per bin and axis; 0: adaptive
    layout: str = "NCHW"  # of features, gradient and result
    direction: str = "forward"
    group: str = "sizes"  # "sizes", "all backends", "overhead", "growth with RoIs", "... channels" or "... bins"
    boxes: str = "uniform"  # or "clustered"
    slow: tuple[str, ...] = ()  # slow backends that take part, with fewer repetitions

    @property
    def name(self) -> str:
        """`align/1x256x200x336/1000x7x7/sampling2/channels_last/forward`, `nms/uniform/2000`."""
        if self.op == "nms":
            return f"nms/{self.boxes}/{self.rois}"
        samples = {"pool": []}.get(self.op, [f"sampling{self.sampling}" if self.sampling else "adaptive"])
        size = "x".join(map(str, self.shape))
        return "/".join([self.op, size, f"{self.rois}x{self.bins}x{self.bins}", *samples, self.layout, self.direction])


P2, P3, C4 = ((1, 256, 200, 336), 4), ((1, 256, 100, 168), 8), ((1, 1024, 50, 84), 16)  # of an 800 x 1344 image
SIZES = ((*P2, 1000, 7), (*P2, 100, 14), (*C4, 300, 14))  # box head and mask head of an FPN; C4's one head
LARGE = ((2, 256, 200, 336), 4, 2000, 7)  # two images in training: on a GPU only


def all_cases(device: str, quick: bool = False) -> list[Case]:
    """Every case for a "cpu" or a "cuda" device; quick: the same, so small that each takes milliseconds."""
    cases = _all_backends() if device == "cpu" else []  # first: the slow ones' time is limited
    cases += _sizes(device) + _other_ops() + _nms() + _overhead() + _growth(device, quick)
    if quick:
        cases = [_small(case) for case in cases]
    return cases


def _each(case: Case) -> list[Case]:
    """In both directions and layouts."""
    return [replace(case, direction=d, layout=layout) for d in DIRECTIONS for layout in LAYOUTS]


def _sizes(device: str) -> list[Case]:
    sizes = SIZES + ((LARGE,) if device == "cuda" else ())
    fixed = [case for size in sizes for case in _each(Case("align", *size, sampling=2, slow=("torch",)))]
    return fixed + [case for size in sizes for case in _each(Case("align", *size, sampling=0))]


def _other_ops() -> list[Case]:
    pool = [case for size in (SIZES[0], SIZES[2]) for case in _each(Case("pool", *size))]
    return pool + _each(Case("warp", *SIZES[0]))


def _nms() -> list[Case]:
    image = (1, 1, 800, 1344)
    kinds = [(boxes, R) for boxes in ("uniform", "clustered") for R in (2000, 6000, 12000)]
    return [Case("nms", image, 1, R, 0, boxes=boxes, slow=("torch",)) for boxes, R in kinds]


def _overhead() -> list[Case]:
    return _each(Case("align", (1, 256, 50, 84), 16, 10, 7, group="overhead"))


def _all_backends() -> list[Case]:
    """Jobs small enough for plain Python loops."""
    every = {"group": "all backends", "slow": ("torch", "reference")}
    ops = [Case(op, *P2, 4, 7, direction=d, **every) for op in ("align", "warp", "pool") for d in DIRECTIONS]
    return [*ops, Case("nms", (1, 1, 800, 1344), 1, 200, 0, **every)]


def _growth(device: str, quick: bool) -> list[Case]:
    """One quantity grows on P3, the others stay."""
    rois, channels, bins = (10, 30, 100, 300, 1000), (16, 64, 256, 1024), (3, 7, 14, 28)
    if device == "cuda":
        rois += (3000,)
    if quick:
        rois, channels, bins = rois[::4], channels[::3], bins[::2]
    (N, C, H, W), stride = P3
    cases = [Case("align", *P3, R, 7, group="growth with RoIs") for R in rois]
    cases += [Case("align", (N, c, H, W), stride, 200, 7, group="growth with channels") for c in channels]
    cases += [Case("align", *P3, 50, b, group="growth with bins") for b in bins]
    return [each for case in cases for each in _each(case)]


def _small(case: Case) -> Case:
    if case.op == "nms":
        return replace(case, rois=max(40, case.rois // 20))
    N, C, H, W = case.shape
    return replace(case, shape=(N, max(1, C // 16), H // 4, W // 4), rois=max(3, case.rois // 20))


def choose(cases: list[Case], pattern: str | None) -> list[Case]:
    """The cases whose name or group holds the pattern, or matches it where it has wildcards (*, ?, [...]).

    Raises: ValueError if there are none.
    """
    if not pattern:
        return cases
    wanted = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    chosen = [case for case in cases if fnmatchcase(case.name, wanted) or fnmatchcase(case.group, wanted)]
    if not chosen:
        names = ", ".join(case.name for case in cases[:: max(1, len(cases) // 4)])
        raise ValueError(f"--cases {pattern!r} matches none of the {len(cases)} cases, such as {names}")
    return chosen


# ---- boxes


def make_boxes(case: Case, seed: int = 0) -> Tensor:
    """(R, 5) float32 [batch index, x1, y1, x2, y2], pixels, on the CPU; image after image, in no order of place."""
    generator = torch.Generator().manual_seed(seed)
    N, _, H, W = case.shape
    objects = case.rois if case.boxes == "uniform" else -(-case.rois // 20)
    low, high = SIDES[case.stride]
    side = low * (high / low) ** torch.rand(objects, generator=generator)
    ratio = 4 ** (torch.rand(objects, generator=generator) - 0.5)  # height / width, 1/2 to 2
    size = torch.stack([side / ratio.sqrt(), side * ratio.sqrt()], dim=1)  # (R, 2) width, height
    image = torch.tensor([W, H]) * float(case.stride)
    centre = torch.rand(objects, 2, generator=generator) * image
    boxes = torch.cat([centre - size / 2, centre + size / 2], dim=1)
    if case.boxes == "clustered":
        boxes, sides = boxes.repeat(20, 1)[: case.rois], side.repeat(20)[: case.rois, None]
        boxes = boxes + 0.1 * sides * torch.randn(case.rois, 4, generator=generator)
        boxes = torch.cat([boxes[:, :2], torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)], dim=1)
    boxes = torch.minimum(boxes.clamp(min=0), image.repeat(2))
    index = (torch.arange(case.rois) * N // case.rois).float()
    return torch.cat([index[:, None], boxes], dim=1)


def make_scores(case: Case, seed: int = 1) -> Tensor:
    """(R,) float32, all different, so that the best box is never a matter of taste."""
    return (torch.randperm(case.rois, generator=torch.Generator().manual_seed(seed)) + 0.5) / case.rois


# ---- the lines


def _lines(size, layout: str, forward: float, backward: float) -> dict[str, float]:
    case = Case("align", *size, layout=layout)
    return {case.name: forward, replace(case, direction="backward").name: backward}


_CPU = (
    _lines(SIZES[0], "channels_last", 20, 40)
    | _lines(SIZES[1], "channels_last", 15, 40)
    | _lines(SIZES[2], "channels_last", 28, 65)
    | _lines(SIZES[0], "NCHW", 7, 8)
    | {Case("pool", *SIZES[0], layout=layout).name: 5 for layout in LAYOUTS}
    | {"nms/uniform/2000": 10, "nms/uniform/6000": 20, "nms/uniform/12000": 20}
    | {f"nms/clustered/{R}": 7 for R in (2000, 6000, 12000)}
)
# Case -> how many times faster than torchvision the compiled backend must be. On a GPU: ahead, wherever RoIs are many.
MUST_REACH = {"cpu": _CPU, "cuda": {case.name: 1.0 for case in _sizes("cuda")}}
