"""Table 2a: backbones. One map of stride 16 or a pyramid; deeper; grouped."""

from .detector_runs import Detector
from .plan import NONE, Arm, Comparison, Part, Table, frozen

SHALLOW, DEEP = (1, 1, 1, 1), (1, 2, 3, 1)
ARMS = (
    Arm("shallow, C4", frozen(blocks=SHALLOW), config="tiny-c4"),
    Arm("deep, C4", frozen(blocks=DEEP), config="tiny-c4"),
    Arm("shallow, FPN", frozen(blocks=SHALLOW), config="tiny-fpn"),
    Arm("deep, FPN", frozen(blocks=DEEP), config="tiny-fpn"),
    Arm("deep and grouped, FPN", frozen(blocks=DEEP, groups=4), config="tiny-fpn"),
)

TABLE = Table(
    "table2a",
    "Table 2a: backbone",
    (Part(Detector(preset="multiscale", classes=("star",), fields={"min_size": 128}), ARMS),),
    (
        Comparison("shallow, FPN", "shallow, C4", "mask AP", paper=3.3),
        Comparison("deep, FPN", "deep, C4", "mask AP", paper=2.7),
        Comparison("deep, C4", "shallow, C4", "mask AP", NONE, paper=2.4),
        Comparison("deep, FPN", "shallow, FPN", "mask AP", NONE, paper=1.8),
        Comparison("deep and grouped, FPN", "deep, FPN", "mask AP", NONE, paper=1.3),
    ),
    "Depth pays after pre-training and a long schedule. From random weights on a short one nothing is claimed for it.",
    tuple(Arm(name, config=name) for name in ("R50-C4", "R101-C4", "R50-FPN", "R101-FPN", "X101-FPN")),
    "R50-FPN",
    (
        Comparison("R50-FPN", "R50-C4", "mask AP", paper=3.3),
        Comparison("R101-FPN", "R101-C4", "mask AP", paper=2.7),
        Comparison("R101-C4", "R50-C4", "mask AP", paper=2.4),
        Comparison("R101-FPN", "R50-FPN", "mask AP", paper=1.8),
        Comparison("X101-FPN", "R101-FPN", "mask AP", paper=1.3),
    ),
)
