"""Table 6: RoIAlign against RoIPool for keypoints, where a pixel is what is asked for."""

from .detector_runs import Detector
from .oracle_runs import Oracle
from .plan import Arm, Comparison, Part, Table, frozen

OPS = {"RoIPool": frozen(roi_op="pool"), "RoIAlign": frozen()}
ARMS = tuple(Arm(name, fields) for name, fields in OPS.items())
DETECTOR = "detector, "
DETECTORS = tuple(Arm(DETECTOR + name, fields | {"masks": False}) for name, fields in OPS.items())

TABLE = Table(
    "table6",
    "Table 6: RoIAlign against RoIPool for keypoints",
    (
        Part(Oracle("demo", ("person",), "keypoints", copies=1), ARMS),
        Part(Detector("tiny-fpn", "demo", ("person",), keypoints=True), DETECTORS),
    ),
    (
        Comparison("RoIAlign", "RoIPool", "keypoints AP*", paper=4.4),
        Comparison("RoIAlign", "RoIPool", "keypoints @.75", paper=3.0),
        Comparison(DETECTOR + "RoIAlign", DETECTOR + "RoIPool", "keypoints AP", paper=4.4),
        Comparison(DETECTOR + "RoIAlign", DETECTOR + "RoIPool", "keypoints @.75", paper=3.0),
    ),
    "Drawn persons without faces or clothes: how well a joint can be found here says nothing about photographs.",
    tuple(Arm(name, fields | {"masks": False}) for name, fields in OPS.items()),
    "R50-FPN",
    keypoints=True,
)
