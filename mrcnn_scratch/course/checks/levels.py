"""Check of notebook 05's `my_roi_level`."""

import math

import torch
from torch import Tensor

from ...roi_ops.levels import assign_levels
from .iou import some_boxes
from .kit import Wrong, check, expect_tensor


def _level_like(
    boxes: Tensor, k_min=2, k_max=5, canonical_size=224.0, canonical_level=4,
    log=torch.log2, cut=torch.floor, side="root", clamp=True, shift=0.0, plus=0.0,
) -> Tensor:  # fmt: skip
    """Levels, and the ways to get them wrong."""
    wide, high = (boxes[:, 2:] - boxes[:, :2] + plus).unbind(1)
    area = (wide * high).clamp(min=0)
    measure = {"root": area.sqrt(), "area": area / canonical_size, "width": wide, "height": high}
    measure |= {"longer": torch.maximum(wide, high), "shorter": torch.minimum(wide, high), "mean": (wide + high) / 2}
    ratio = log(measure[side] / canonical_size + 1e-8) + shift
    level = canonical_level + ratio.trunc() if cut is torch.trunc else cut(canonical_level + ratio)
    return (level.clamp(k_min, k_max) if clamp else level).nan_to_num(neginf=-(2**31)).long()


LEVEL_MISTAKES = {
    "A small number is added to the logarithm itself, as torchvision does: 223.9999 then counts as 224. Add it, if at "
    "all, to the ratio, and 1e-8 is enough": {"shift": 1e-6},
    "The level is rounded to the nearest: equation 1 takes the whole number below (floor)": {"cut": torch.round},
    "The logarithm is cut before it is added: int(-0.16) is 0, the whole number below it is -1 (floor)": {
        "cut": torch.trunc
    },
    "The level is rounded up: equation 1 takes the whole number below (floor)": {"cut": torch.ceil},
    "The logarithm is to base 2: twice the side is one level more": {"log": torch.log},
    "The square root of the area is missing: with the area itself, twice the side is two levels more": {"side": "area"},
    "You look at the width alone: equation 1 has the square root of the area": {"side": "width"},
    "You look at the height alone: equation 1 has the square root of the area": {"side": "height"},
    "You look at the longer side: equation 1 has the square root of the area": {"side": "longer"},
    "You look at the shorter side: equation 1 has the square root of the area": {"side": "shorter"},
    "You look at the mean of the sides: equation 1 has the square root of the area": {"side": "mean"},
    "The level is not kept between k_min and k_max: there is no map for it": {"clamp": False},
    "These are levels of widths x2 - x1 + 1: with continuous coordinates a width is x2 - x1": {"plus": 1.0},
}


def _expect_levels(student, boxes: Tensor, say: str, *numbers) -> None:
    """Raises Wrong unless the student's levels are the package's."""
    got = student(boxes, *numbers)
    k_min, k_max, *rest = numbers or (2, 5)
    wanted = assign_levels(boxes, k_min, k_max, *rest) + k_min
    expect_tensor(got, wanted.shape)
    if got.is_floating_point() or got.dtype == torch.bool:
        raise Wrong(f"levels choose from a list, so they must be whole numbers (int64); they are {got.dtype}")
    if torch.equal(got.long(), wanted):
        return
    tries = {hint: lambda how=how: _level_like(boxes, *numbers, **how) for hint, how in LEVEL_MISTAKES.items()}
    tries["This is the place of the map in a list that starts at k_min; asked for is the level itself"] = lambda: (
        wanted - k_min
    )
    if numbers:
        tries["canonical_size and canonical_level are arguments: do not write 224 and 4 into the function"] = lambda: (
            assign_levels(boxes, k_min, k_max) + k_min
        )
        tries["k_min and k_max are arguments: do not write 2 and 5 into the function"] = lambda: (
            assign_levels(boxes, 2, 5, *rest) + 2
        )
    hint = next((f". {hint}" for hint, value in tries.items() if torch.equal(value(), got.long())), "")
    place = int((got != wanted).nonzero()[0])
    wide, high = (boxes[place, 2:] - boxes[place, :2]).tolist()
    what = f"the RoI of {wide:.7g} x {high:.7g} pixels goes to level {int(got[place])}, expected {int(wanted[place])}"
    raise Wrong(f"{say}: {what}{hint}")


def rois(*sides: float | tuple[float, float], dtype=torch.float32) -> Tensor:
    """RoIs of these sides, or widths and heights, away from the corner of the image."""
    pairs = [side if isinstance(side, tuple) else (side, side) for side in sides]
    return torch.tensor([[16.0, 32.0, 16.0 + w, 32.0 + h] for w, h in pairs], dtype=dtype).reshape(-1, 4)


def the_numbers_of_the_paper(student) -> None:
    _expect_levels(student, rois(224, 112, 448, 56), "squares of 224, 112, 448 and 56")


def only_the_area_counts(student) -> None:
    boxes = rois((448, 112), (112, 448), (896, 56), (300, 120), (60, 500))
    _expect_levels(student, boxes, "wide and tall RoIs")


def between_the_steps(student) -> None:
    _expect_levels(student, rois(200, 320, 150, 223.5, 111.5, 447, 57), "squares between two steps")


def smaller_and_larger_than_all_maps(student) -> None:
    _expect_levels(student, rois(30, 3, 900, 9999), "squares of 30, 3, 900 and 9999")


def other_numbers(student) -> None:
    boxes = rois(15, 25, 40, 60, 85, 170, (30, 90))
    _expect_levels(student, boxes, "levels 2 to 5, with 40 pixels at level 3", 2, 5, 40.0, 3)
    _expect_levels(student, boxes, "levels 3 to 4 only, with 40 pixels at level 3", 3, 4, 40.0, 3)


def without_an_area(student) -> None:
    boxes = torch.tensor([[5.0, 5.0, 5.0, 9.0], [9.0, 9.0, 2.0, 30.0], [5.0, 5.0, 5.0, 5.0]])
    say = "RoIs without an area, one of them turned inside out: the finest level"
    try:
        _expect_levels(student, boxes, say)
    except Wrong as wrong:
        if "-92" in str(wrong):  # what int64 makes of NaN
            raise Wrong(f"{say}: the root of a negative area is NaN: clamp the area at 0 before the root") from None
        raise
    _expect_levels(student, torch.zeros(0, 4), "no RoIs")


def just_below_a_step(student) -> None:
    _expect_levels(student, rois(223.9999, 111.99995, dtype=torch.float64), "223.9999 and 111.99995 pixels, float64")


def random_rois_against_the_package(student) -> None:
    for seed in range(10, 18):
        boxes = some_boxes(40, seed) * math.exp(seed - 14)
        _expect_levels(student, boxes, f"40 RoIs, seed {seed}")
        _expect_levels(student, boxes, f"40 RoIs, seed {seed}, 100 pixels at level 5", 3, 6, 100.0, 5)


@check(
    the_numbers_of_the_paper, between_the_steps, only_the_area_counts, smaller_and_larger_than_all_maps, other_numbers,
    without_an_area, just_below_a_step, random_rois_against_the_package,
)  # fmt: skip
def check_roi_level(student) -> None:
    """FPN, eq. 1: (R, 4) xyxy -> (R,) int64 levels k_min .. k_max."""
