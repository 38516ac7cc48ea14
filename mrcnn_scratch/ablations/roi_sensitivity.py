"""Beyond the paper: how many samples a bin needs, and what half a pixel costs by size of the object in cells."""

from .geometry import Geometry
from .oracle_runs import Oracle
from .plan import EQUAL, Arm, Comparison, Part, Table, frozen

SAMPLES = {"1 sample a bin": 1, "2 x 2": 2, "4 x 4": 4, "adaptive": 0}
LEGACY = "2 x 2, legacy offset"
LEARNED = (
    *(Arm(name, frozen(sampling_ratio=ratio)) for name, ratio in SAMPLES.items()),
    Arm(LEGACY, frozen(roi_aligned=False)),
)
SIZES = ((1.5, 3.0), (3.0, 6.0), (6.0, 10.0))  # cells, sqrt(area) / stride
STRIDES = (8, 16)
OPS = {"RoIAlign": frozen(), "legacy offset": frozen(roi_aligned=False)}


def _name(size, stride: int, op: str) -> str:
    return f"{size[0]:g} to {size[1]:g} cells of {stride} px, {op}"


TABLE = Table(
    "roi-sensitivity",
    "RoI sensitivity: samples, half a pixel, size in cells",
    (
        Part(Oracle(), LEARNED),
        *(
            Part(
                Geometry("multiscale", images=200, size=size),
                tuple(Arm(_name(size, stride, op), fields, stride) for stride in STRIDES for op, fields in OPS.items()),
            )
            for size in SIZES
        ),
    ),
    (
        *(Comparison(name, "2 x 2", "mask AP*", EQUAL, 0.03) for name in SAMPLES if name != "2 x 2"),
        Comparison("2 x 2", LEGACY, "mask AP*"),
        *(
            Comparison(_name(size, stride, "RoIAlign"), _name(size, stride, "legacy offset"), "mask AP*")
            for size in SIZES
            for stride in STRIDES
        ),
    ),
    "Half a pixel of the feature map is a constant shift: a network that is trained with it unlearns most, as the "
    "learned rows show beside those without learning.",
    LEARNED,
    "R50-C4",
)
