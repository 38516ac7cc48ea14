"""Checks of notebook 05: `my_fpn`, `my_roi_level`."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...fpn import FPN
from ...roi_ops.levels import assign_levels
from .boxes import some_boxes
from .kit import Wrong, check, expect_tensor, first_difference

# ---- the pyramid

Layers = list[nn.Module] | nn.ModuleList


def _up(above: Tensor, size: tuple[int, int], how: str) -> Tensor:
    """The map above at the size of the one below; "nearest" is right."""
    if how == "tiles":
        return above.repeat(1, 1, 2, 2)[:, :, : size[0], : size[1]]
    if how == "spread":  # each cell once, zeros between
        wide = above.new_zeros(*above.shape[:2], 2 * above.shape[2], 2 * above.shape[3])
        wide[:, :, ::2, ::2] = above
        return wide[:, :, : size[0], : size[1]]
    corners = {"align_corners": False} if how == "bilinear" else {}
    return F.interpolate(above, size=size, mode=how, **corners)


def _fpn_like(
    features: list[Tensor], lateral: Layers, output: Layers,
    passed="sum", how="nearest", own=True, out=True, share=1.0, relu=False, coarse_first=False,
) -> list[Tensor]:  # fmt: skip
    """The pyramid, and the ways to get it wrong."""
    above, pyramid = None, []
    for feature, to_width, smooth in zip(features[::-1], lateral[::-1], output[::-1], strict=True):
        side = to_width(feature)
        merged = side
        if above is not None and passed != "nothing":
            merged = share * ((side if own else 0) + _up(above, side.shape[-2:], how))
        merged = merged.relu() if relu else merged
        pyramid.append(smooth(merged) if out else merged)
        above = {"output": pyramid[-1], "lateral": side}.get(passed, merged)
    return pyramid if coarse_first else pyramid[::-1]


FPN_MISTAKES = {
    "Nothing comes down from the coarser maps: add the sum of the level above": {"passed": "nothing"},
    "What goes down is the sum before the 3 x 3 convolution, not the output after it": {"passed": "output"},
    "Only the next level's lateral map comes down: pass the *sum* on, so that P2 hears of C5": {"passed": "lateral"},
    "The 3 x 3 convolution of each sum is missing": {"out": False},
    "The map above is repeated as a whole, like tiles: each of its cells becomes 2 x 2 equal ones": {"how": "tiles"},
    "The cells of the map above are spread with zeros between: each becomes 2 x 2 equal ones": {"how": "spread"},
    "The map above is interpolated: the paper takes the nearest cell, so that each becomes 2 x 2 equal ones": {
        "how": "bilinear"
    },
    "With odd sizes 'nearest-exact' shares the cells out in another way: take mode 'nearest'": {"how": "nearest-exact"},
    "The level's own lateral map is missing from the sum": {"own": False},
    "The two maps are averaged: add them": {"share": 0.5},
    "There is no ReLU in the pyramid": {"relu": True},
    "The pyramid comes out coarse to fine: return it as you got the features, fine to coarse": {"coarse_first": True},
}


def _expect_pyramid(student, features: list[Tensor], lateral: Layers, output: Layers, say: str) -> list[Tensor]:
    """Raises Wrong unless the student's pyramid is the package's, and features are as they were."""
    given, kept = list(features), [x.detach().clone() for x in features]
    got, wanted = student(features, lateral, output), _fpn_like(given, lateral, output)
    if len(features) != len(given) or any(a is not b for a, b in zip(features, given, strict=True)):
        raise Wrong("your function has changed the list of features; make one of your own")
    if not all(torch.equal(a, b) for a, b in zip(features, kept, strict=True)):
        raise Wrong("your function has changed the features that it was given; `+=` on a map writes into it")
    if not isinstance(got, list | tuple) or len(got) != len(wanted):
        what = f"{len(got)} long" if isinstance(got, list | tuple) else f"a {type(got).__name__}"
        raise Wrong(f"the result must be a list of {len(wanted)} maps, one for each feature map; it is {what}")
    for level, (mine, theirs) in enumerate(zip(got, wanted, strict=True)):
        if isinstance(mine, Tensor) and _same(mine, theirs):
            continue
        hint = _hint(got, given, lateral, output)
        with_hint = f". {hint}" if hint else ""
        name = f"P{level + 2}"
        if not isinstance(mine, Tensor) or mine.shape != theirs.shape:
            shape = tuple(mine.shape) if isinstance(mine, Tensor) else type(mine).__name__
            raise Wrong(f"{say}: {name} must be of shape {tuple(theirs.shape)}; it is {shape}{with_hint}")
        raise Wrong(f"{say}: {name}, {first_difference(mine, theirs)}{with_hint}")
    return list(got)


def _hint(got, features: list[Tensor], lateral: Layers, output: Layers) -> str:
    tries: dict[str, Callable] = {
        hint: lambda how=how: _fpn_like(features, lateral, output, **how) for hint, how in FPN_MISTAKES.items()
    }
    widths = {(layer.in_channels, layer.out_channels) for layer in lateral}
    if len(widths) == 1:  # else a wrong order stops with an error
        tries["The lateral convolutions are in the wrong order: the first belongs to the finest map"] = lambda: (
            _fpn_like(features, lateral[::-1], output)
        )
        tries["The 3 x 3 convolutions are in the wrong order: the first belongs to the finest map"] = lambda: _fpn_like(
            features, lateral, output[::-1]
        )
    mine = [x if isinstance(x, Tensor) else torch.zeros(0) for x in got]
    return next((hint for hint, value in tries.items() if all(map(_same, mine, value()))), "")


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-4)


def identities(levels: int) -> tuple[Layers, Layers]:
    """Convolutions of one channel that change nothing, so that only sums remain."""
    fpn = FPN((1,) * levels, 1)
    for lateral, output in zip(fpn.lateral, fpn.output, strict=True):
        nn.init.ones_(lateral.weight)
        nn.init.dirac_(output.weight)
    return list(fpn.lateral), list(fpn.output)


def fresh(widths: tuple[int, ...], channels: int, seed: int) -> tuple[Layers, Layers]:
    """Random convolutions with biases."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        fpn = FPN(widths, channels)
        for layer in [*fpn.lateral, *fpn.output]:
            nn.init.normal_(layer.bias)
    return list(fpn.lateral), list(fpn.output)


def maps(sizes: list[tuple[int, int]], widths: tuple[int, ...], seed: int, images: int = 2) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(images, C, *size, generator=g) for C, size in zip(widths, sizes, strict=True)]


def two_maps_by_hand(student) -> None:
    c2, c3 = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]]), torch.tensor([[[[10.0, 20.0]]]])
    say = "the example, [[1, 2, 3], [4, 5, 6]] below [[10, 20]] with convolutions that change nothing"
    _expect_pyramid(student, [c2, c3], *identities(2), say)


def the_sum_goes_down(student) -> None:
    features = [torch.full((1, 1, h, 2 * h), value) for h, value in ((4, 1.0), (2, 10.0), (1, 100.0))]
    lateral, output = identities(3)
    _expect_pyramid(student, features, lateral, output, "maps of 1, 10 and 100: P2 is 111")
    with torch.no_grad():
        output[1].weight.mul_(5)
    _expect_pyramid(student, features, lateral, output, "the same with P3's 3 x 3 convolution times 5: P2 is still 111")


def each_map_has_its_own_convolutions(student) -> None:
    sizes = [(8, 12), (4, 6), (2, 3)]
    _expect_pyramid(student, maps(sizes, (4, 4, 4), 0), *fresh((4, 4, 4), 4, 0), "three maps of 4 channels each")
    _expect_pyramid(student, maps(sizes, (3, 5, 7), 1), *fresh((3, 5, 7), 4, 1), "three maps of 3, 5 and 7 channels")


def odd_sizes(student) -> None:
    sizes, widths = [(13, 21), (7, 11), (4, 6)], (3, 5, 7)
    say = "maps of 13 x 21, 7 x 11 and 4 x 6"
    try:
        _expect_pyramid(student, maps(sizes, widths, 2), *fresh(widths, 4, 2), say)
    except RuntimeError as error:
        raise Wrong(
            f"{say}: {str(error).splitlines()[0]}. A map above is half the one below, *rounded up*: twice 7 is not 13. "
            "Go to the exact size of the map below"
        ) from None


def one_map(student) -> None:
    _expect_pyramid(student, maps([(3, 5)], (6,), 3), *fresh((6,), 4, 3), "a single map")


def fine_maps_learn_through_coarse_ones(student) -> None:
    features = [x.requires_grad_() for x in maps([(4, 6), (2, 3)], (3, 5), 4)]
    with torch.enable_grad():
        p2 = _expect_pyramid(student, features, *fresh((3, 5), 4, 4), "two maps")[0]
        gradient = torch.autograd.grad(p2.square().sum(), features, allow_unused=True) if p2.requires_grad else [None]
    if any(g is None or not bool(g.any()) for g in gradient):
        raise Wrong("P2 passes no gradient to some of the features: nothing may be detached in the pyramid")


def random_maps_against_the_package(student) -> None:
    for seed, (h, w) in enumerate([(25, 34), (19, 26), (1, 9), (16, 12)]):
        widths = (3, 4, 6, 8)
        sizes = [(-(-h // 2**k), -(-w // 2**k)) for k in range(4)]
        lateral, output = fresh(widths, 5, seed)
        features, fpn = maps(sizes, widths, 10 + seed, images=seed), FPN(widths, 5)
        fpn.lateral, fpn.output = nn.ModuleList(lateral), nn.ModuleList(output)
        say = f"{seed} images, maps from {h} x {w}"
        got = _expect_pyramid(student, features, fpn.lateral, fpn.output, say)
        if not all(map(_same, got, fpn(features))):
            raise Wrong(f"{say}: the package's FPN gives other maps")


@check(
    two_maps_by_hand, the_sum_goes_down, each_map_has_its_own_convolutions, odd_sizes, one_map,
    fine_maps_learn_through_coarse_ones, random_maps_against_the_package,
)  # fmt: skip
def check_fpn(student) -> None:
    """C2, C3, ... (N, C_l, H_l, W_l), lateral and output convolutions -> P2, P3, ... (N, C, H_l, W_l)."""


# ---- equation 1


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
