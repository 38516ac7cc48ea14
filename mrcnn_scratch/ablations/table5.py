"""Table 5: boxes, masks and keypoints of persons, learned together."""

from .detector_runs import Detector
from .plan import NONE, Arm, Comparison, Part, Table, frozen

BOX, MASK, KEYPOINTS, ALL = "boxes", "boxes and masks", "boxes and keypoints", "boxes, masks and keypoints"
ARMS = (
    Arm(BOX, frozen(masks=False, keypoints=0)),
    Arm(MASK, frozen(masks=True, keypoints=0)),
    Arm(KEYPOINTS, frozen(masks=False)),
    Arm(ALL, frozen(masks=True)),
)

TABLE = Table(
    "table5",
    "Table 5: multi-task learning on persons",
    (Part(Detector("tiny-fpn", "demo", ("person",), keypoints=True), ARMS),),
    (
        Comparison(MASK, BOX, "box AP", NONE, paper=1.1),
        Comparison(KEYPOINTS, BOX, "box AP", NONE, paper=-1.8),
        Comparison(ALL, MASK, "mask AP", NONE, paper=-0.7),
        Comparison(ALL, KEYPOINTS, "keypoints AP", NONE, paper=0.5),
    ),
    "Nothing is claimed: the paper's differences, about one point, are below the noise of runs as short as these.",
    ARMS,
    "R50-FPN",
    keypoints=True,
)
