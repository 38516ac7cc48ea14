"""Beyond the paper: what each RoI op can carry at best, over strides, and where its bins read. Nothing is learned."""

from .geometry import Geometry
from .plan import Arm, Comparison, Part, Table
from .table2c import EXTRA, OPS

STRIDES = (4, 8, 16, 32)


def _name(op: str, stride: int) -> str:
    return f"stride {stride}, {op}"


ARMS = tuple(Arm(_name(op, s), fields, s) for s in STRIDES for op, fields in {**OPS, **EXTRA}.items())

TABLE = Table(
    "roi-geometry",
    "RoI geometry: the oracle and the ramp",
    (Part(Geometry(), ARMS),),
    tuple(
        Comparison(_name("RoIAlign mean", stride), _name(op, stride), "mask AP*")
        for stride in STRIDES
        for op in ("RoIPool max", "RoIWarp mean", "RoIAlign mean, legacy offset")
    ),
    "The oracle's feature map is the mask itself, which no network has; and a bias can be learned away, jitter not.",
)
