"""A check for every exercise: it takes the student's function, tries it, and says what is wrong as a teacher would.

A check prints one line when all is well, or while the function is not written yet, so that an unsolved notebook still
runs to its end. Anything wrong raises :class:`Wrong`, whose message names the trial, gives numbers, and a hint that
fits the mistake; it never gives the code away.
"""

from .anchors import check_cell_anchors, check_grid_anchors
from .bilinear import check_bilinear
from .deltas import check_decode, check_encode
from .fpn import check_fpn
from .iou import check_iou
from .kernels import check_align_numba
from .kit import Wrong
from .levels import check_roi_level
from .matching import check_match
from .nms import check_nms
from .proposals import check_propose
from .roi_align import check_roi_align
from .roi_align_backward import check_roi_align_backward
from .roi_pool import check_roi_pool
from .roi_pool_backward import check_roi_pool_backward
from .rpn import check_rpn_loss
from .sampling import check_sample
from .threads import check_thread_place

__all__ = [
    "Wrong",
    "check_align_numba",
    "check_bilinear",
    "check_cell_anchors",
    "check_decode",
    "check_encode",
    "check_fpn",
    "check_grid_anchors",
    "check_iou",
    "check_match",
    "check_nms",
    "check_propose",
    "check_roi_align",
    "check_roi_align_backward",
    "check_roi_level",
    "check_roi_pool",
    "check_roi_pool_backward",
    "check_rpn_loss",
    "check_sample",
    "check_thread_place",
]
