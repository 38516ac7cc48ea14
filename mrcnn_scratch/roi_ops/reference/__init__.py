"""RoIPool, RoIWarp and RoIAlign in plain loops, forward and backward: slow, and meant to be read.

Read `sampling` first (where the samples of a RoI lie and what they read), then `align` (means and maxima of samples,
and the gradient that the features receive), `align_boxes` (the gradient that the box receives) and `pool`.

Every function takes NumPy arrays: features (N, C, H, W), boxes (R, 5) [batch index, x1, y1, x2, y2] in image pixels,
grad (R, C, h, w), all float32 or all float64. `channels_last` asks the compiled backends for a memory layout; these
loops know only one, and take it so that all backends are called alike.
"""

from .align import roi_align_backward, roi_align_forward, roi_align_max_backward, roi_align_max_forward
from .align_boxes import roi_align_boxes_backward, roi_align_max_boxes_backward
from .pool import roi_pool_backward, roi_pool_forward
from .sampling import round_half_away

__all__ = [
    "roi_align_backward",
    "roi_align_boxes_backward",
    "roi_align_forward",
    "roi_align_max_backward",
    "roi_align_max_boxes_backward",
    "roi_align_max_forward",
    "roi_pool_backward",
    "roi_pool_forward",
    "round_half_away",
]
