"""Table 2b: masks that do not compete (sigmoid, one per class) against masks that do (softmax over the classes)."""

from dataclasses import replace

from .oracle_runs import TRAIN, Oracle
from .plan import EQUAL, Arm, Comparison, Part, Table, frozen

ARMS = {
    "softmax": frozen(mask_loss="softmax", mask_classes="specific"),
    "sigmoid": frozen(mask_loss="sigmoid", mask_classes="specific"),
    "sigmoid, class-agnostic": frozen(mask_loss="sigmoid", mask_classes="agnostic"),
}
ARMS = tuple(Arm(name, fields) for name, fields in ARMS.items())
CLASSES = ("person", "star", "ring", "cross", "crescent", "gear", "arrow")

TABLE = Table(
    "table2b",
    "Table 2b: multinomial against independent masks",
    (Part(Oracle(classes=CLASSES, train=replace(TRAIN, steps=1800), curve=6), ARMS),),
    (
        Comparison("sigmoid", "softmax", "mask AP*", paper=5.5),
        Comparison("sigmoid", "softmax", "mask @.75", paper=6.4),
        Comparison("sigmoid, class-agnostic", "sigmoid", "mask AP*", EQUAL, 0.04, paper=-0.6),
    ),
    "The size of the gap depends on the schedule: the softmax has to learn the class of every pixel and takes longer. "
    "The curve over the steps shows it. Seven classes; the class of an object is given, as for all oracle boxes.",
    ARMS,
    "R50-C4",
)
