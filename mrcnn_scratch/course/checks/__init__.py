"""A check for every exercise: it takes the student's function, tries it, and says what is wrong as a teacher would.

A check prints one line when all is well, or while the function is not written yet, so that an unsolved notebook still
runs to its end. Anything wrong raises :class:`Wrong`, whose message names the trial, gives numbers, and a hint that
fits the mistake; it never gives the code away.
"""

from .boxes import check_decode, check_encode, check_iou
from .kit import Wrong

__all__ = ["Wrong", "check_decode", "check_encode", "check_iou"]
