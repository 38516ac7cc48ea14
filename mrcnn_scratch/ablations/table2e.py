"""Table 2e: a mask as pixels on a grid (FCN) against a mask as a vector (MLP)."""

from .oracle_runs import Oracle
from .plan import Arm, Comparison, Part, Table, frozen

ARMS = (
    Arm("MLP, 2 hidden layers", frozen(mask_head="mlp", mask_layers=2)),
    Arm("MLP, 3 hidden layers", frozen(mask_head="mlp", mask_layers=3)),
    Arm("FCN", frozen(mask_head="fcn")),
)

TABLE = Table(
    "table2e",
    "Table 2e: mask branch",
    (Part(Oracle(), ARMS),),
    (
        Comparison("FCN", ARMS[0].name, "mask AP*", paper=2.1),
        Comparison("FCN", ARMS[1].name, "mask AP*", paper=2.1),
        Comparison("FCN", ARMS[0].name, "mask @.75", paper=2.5),
        Comparison("FCN", ARMS[1].name, "mask @.75", paper=2.7),
    ),
    "Equal steps, not equal parameters: the MLPs have many times the FCN's (the column says how many) and are far from "
    "trained to the end on so short a schedule.",
    ARMS,
    "R50-FPN",
)
