"""Table 3: what RoIAlign, and then the mask branch, do for the boxes."""

from .detector_runs import Detector
from .plan import NONE, Arm, Comparison, Part, Table, frozen

POOL, ALIGN, MASKS = "boxes alone, RoIPool", "boxes alone, RoIAlign", "boxes and masks, RoIAlign"
ARMS = (
    Arm(POOL, frozen(masks=False, roi_op="pool")),
    Arm(ALIGN, frozen(masks=False)),
    Arm(MASKS, frozen(masks=True)),
)

TABLE = Table(
    "table3",
    "Table 3: RoIAlign and multi-task training, box AP",
    (Part(Detector(classes=("star",), preset="large"), ARMS),),
    (
        Comparison(ALIGN, POOL, "box AP", paper=1.1),  # RoIAlign against Faster R-CNN with FPN
        Comparison(ALIGN, POOL, "box @.75"),
        Comparison(MASKS, ALIGN, "box AP", NONE, paper=0.9),
    ),
    "The paper's gain of the mask branch, 0.9 points of box AP, is below the noise of runs as short as these: nothing "
    "is claimed for it.",
    ARMS,
    "R101-FPN",
)
