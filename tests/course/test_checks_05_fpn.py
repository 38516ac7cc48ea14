"""Notebook 05's checks: the package's functions pass, the mistakes of real detectors fail, each with its hint."""

import math

import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from planted import fails_with, passes, waits
from solved import solutions
from torch import nn

from mrcnn_scratch.course.checks import check_fpn, check_roi_level
from mrcnn_scratch.fpn import FPN
from mrcnn_scratch.roi_ops.levels import assign_levels
from mrcnn_scratch.visualize.pyramid import level_map


def test_the_level_map_shows_every_level_and_roi():
    axes = Figure().add_subplot()
    level_map(axes, {"small": torch.tensor([[0.0, 0, 30, 20]]), "large": torch.tensor([[5.0, 5, 605, 405]] * 2)})
    assert [text.get_text() for text in axes.texts] == ["P2", "P3", "P4", "P5"]
    for text in axes.texts:  # a name stands in its own region
        w, h = text.get_position()
        assert package_level(torch.tensor([[0.0, 0.0, w, h]])).item() == int(text.get_text()[1])
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[30, 20]], [[600, 400]] * 2]


def package_fpn(features, lateral, output):
    fpn = FPN(tuple(layer.in_channels for layer in lateral), lateral[0].out_channels)
    fpn.lateral, fpn.output = nn.ModuleList(lateral), nn.ModuleList(output)
    return fpn(features)


def package_level(boxes, k_min=2, k_max=5, canonical_size=224.0, canonical_level=4):
    return assign_levels(boxes, k_min, k_max, canonical_size, canonical_level) + k_min


@pytest.mark.parametrize("check, function", [(check_fpn, package_fpn), (check_roi_level, package_level)])
def test_the_packages_function_passes_and_an_unwritten_one_waits(check, function, capsys):
    passes(check, function, capsys)
    waits(check, capsys)


def pyramid(features, lateral, output, up=None, merge=torch.add, passed=lambda side, merged, out: merged, out=True):
    """The exercise, with a hole for each mistake."""
    up = up or (lambda x, size: F.interpolate(x, size=size, mode="nearest"))
    above, maps = None, []
    for level in range(len(features) - 1, -1, -1):
        side = lateral[level](features[level])
        merged = side if above is None else merge(side, up(above, side.shape[-2:]))
        maps.insert(0, output[level](merged) if out else merged)
        above = passed(side, merged, maps[0])
    return maps


def planted(**how):
    return lambda *arguments: pyramid(*arguments, **how)


def in_place(features, lateral, output):
    maps = package_fpn(features, lateral, output)
    features[0].data.add_(1)
    return maps


def reversed_in_place(features, lateral, output):
    maps = package_fpn(features, lateral, output)
    features.reverse()
    return maps


def to_size(**options):
    return lambda x, size: F.interpolate(x, size=size, **options)


def spread(x, size):
    wide = torch.zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    wide[:, :, ::2, ::2] = x
    return wide[:, :, : size[0], : size[1]]


def cropped(x, size):
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, : size[0], : size[1]]


def by_comparison(boxes, k_min=2, k_max=5, canonical_size=224.0, canonical_level=4):
    """Another right way: how many steps a RoI has passed."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    steps = [canonical_size * 2.0 ** (k - canonical_level) for k in range(k_min + 1, k_max + 1)]
    return k_min + sum((area >= step**2).long() for step in steps)


@pytest.mark.parametrize("check, function", [(check_fpn, planted(up=cropped)), (check_roi_level, by_comparison)])
def test_another_right_way_passes(check, function, capsys):
    passes(check, function, capsys)


WRONG_FPN = {
    "no top-down path": (planted(merge=lambda side, up: side), "Nothing comes down"),
    "the output goes down": (planted(passed=lambda side, merged, out: out), "not the output after it"),
    "one level only": (planted(passed=lambda side, merged, out: side), "so that P2 hears of C5"),
    "no 3 x 3": (planted(out=False), "The 3 x 3 convolution of each sum is missing"),
    "tiles": (planted(up=lambda x, size: x.repeat(1, 1, 2, 2)[..., : size[0], : size[1]]), "like tiles"),
    "zeros between": (planted(up=spread), "spread with zeros between"),
    "bilinear": (planted(up=to_size(mode="bilinear", align_corners=False)), "takes the nearest cell"),
    "nearest-exact": (planted(up=to_size(mode="nearest-exact")), "take mode 'nearest'"),
    "a factor of two": (
        planted(up=lambda x, size: x.repeat_interleave(2, 2)[:, :, : size[0]].repeat_interleave(2, 3)),
        "two maps by hand: <lambda> stopped with RuntimeError",
    ),
    "a factor of two in rows": (
        planted(up=lambda x, size: x.repeat_interleave(2, 3)[..., : size[1]].repeat_interleave(2, 2)),
        "twice 7 is not 13",
    ),
    "no lateral": (planted(merge=lambda side, up: up), "own lateral map is missing"),
    "mean": (planted(merge=lambda side, up: (side + up) / 2), "averaged: add them"),
    "ReLU": (lambda f, lateral, o: pyramid(f, [nn.Sequential(x, nn.ReLU()) for x in lateral], o), "expected"),
    "ReLU on sums": (lambda f, la, o: pyramid(f, la, [nn.Sequential(nn.ReLU(), x) for x in o]), "expected"),
    "coarse to fine": (lambda *a: package_fpn(*a)[::-1], "fine to coarse"),
    "laterals turned round": (
        lambda f, la, o: package_fpn(f, la[::-1] if la[0].in_channels == la[-1].in_channels else la, o),
        "lateral convolutions are in the wrong order",
    ),
    "outputs turned round": (lambda f, la, o: package_fpn(f, la, o[::-1]), "3 x 3 convolutions are in the wrong order"),
    "detached": (planted(passed=lambda side, merged, out: merged.detach()), "nothing may be detached"),
    "the last map alone": (lambda *a: package_fpn(*a)[-1], "must be a list of 2 maps"),
    "features changed": (in_place, "has changed the features"),
    "list turned round": (reversed_in_place, "has changed the list of features"),
}


@pytest.mark.parametrize("wrong, hint", WRONG_FPN.values(), ids=list(WRONG_FPN))
def test_a_wrong_fpn_fails_with_its_hint(wrong, hint):
    fails_with(check_fpn, wrong, hint)


def level(
    boxes, k_min=2, k_max=5, size=224.0, start=4,
    measure=lambda w, h: (w * h).clamp(min=0).sqrt(), log=torch.log2, cut=torch.floor, plus=0.0, eps=0.0, clamp=True,
):  # fmt: skip
    """The exercise, with a hole for each mistake."""
    wide, high = (boxes[:, 2:] - boxes[:, :2] + plus).unbind(1)
    found = cut(start + log(measure(wide, high) / size) + eps)
    return (found.clamp(k_min, k_max) if clamp else found.nan_to_num(neginf=-9)).long()


def wrong_level(**how):
    return lambda *arguments: level(*arguments, **how)


WRONG_LEVEL = {
    "round (TRAPS 34, matterport)": (wrong_level(cut=torch.round), "takes the whole number below"),
    "int of the logarithm (TRAPS 15)": (wrong_level(log=lambda x: torch.log2(x).trunc()), "cut before it is added"),
    "ceil": (wrong_level(cut=torch.ceil), "rounded up"),
    "natural logarithm": (wrong_level(log=torch.log), "to base 2"),
    "no root": (wrong_level(measure=lambda w, h: (w * h).clamp(min=0) / 224), "square root of the area is missing"),
    "width": (wrong_level(measure=lambda w, h: w), "the width alone"),
    "height": (wrong_level(measure=lambda w, h: h), "the height alone"),
    "longer side": (wrong_level(measure=torch.maximum), "the longer side"),
    "mean side": (wrong_level(measure=lambda w, h: (w + h) / 2), "the mean of the sides"),
    "not kept inside": (wrong_level(clamp=False), "there is no map for it"),
    "torchvision's epsilon (TRAPS 34)": (wrong_level(eps=1e-6), "223.9999 then counts as 224"),
    "legacy + 1 (TRAPS 18)": (wrong_level(plus=1.0), "a width is x2 - x1"),
    "root of a negative area": (wrong_level(measure=lambda w, h: (w * h).sqrt()), "clamp the area at 0"),
    "places": (lambda boxes, k_min=2, *rest: package_level(boxes, k_min, *rest) - k_min, "the level itself"),
    "224 written in": (lambda boxes, k_min=2, k_max=5, *_: level(boxes, k_min, k_max), "do not write 224"),
    "2 and 5 written in": (lambda boxes, a=2, b=5, *rest: level(boxes, 2, 5, *rest), "do not write 2 and 5"),
    "floats": (lambda *a: package_level(*a).float(), "must be whole numbers"),
    "a number": (lambda *a: package_level(*a)[0], "must have shape (4,)"),
    "a list": (lambda *a: package_level(*a).tolist(), "must be a tensor"),
}


@pytest.mark.parametrize("wrong, hint", WRONG_LEVEL.values(), ids=list(WRONG_LEVEL))
def test_a_wrong_level_fails_with_its_hint(wrong, hint):
    fails_with(check_roi_level, wrong, hint)


@pytest.mark.parametrize("seed", range(4))
def test_solved_fpn_is_the_packages(seed):
    g = torch.Generator().manual_seed(seed)
    sizes = [(23 + seed, 38), (-(-(23 + seed) // 2), 19), (-(-(23 + seed) // 4), 10)]
    features = [torch.randn(2, C, *size, generator=g) for C, size in zip((3, 5, 8), sizes, strict=True)]
    fpn = FPN((3, 5, 8), 6)
    mine = solutions("05")["my_fpn"](features, fpn.lateral, fpn.output)
    assert len(mine) == 3 and all(torch.equal(a, b) for a, b in zip(mine, fpn(features), strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_solved_roi_level_is_the_packages(seed):
    g = torch.Generator().manual_seed(seed)
    low = torch.rand(200, 2, generator=g) * 700
    boxes = torch.cat([low, low + (torch.rand(200, 2, generator=g) * math.log(900)).exp()], dim=1)
    for numbers in ((), (2, 5, 40.0, 3), (3, 4, 100.0, 4)):
        assert torch.equal(solutions("05")["my_roi_level"](boxes, *numbers), package_level(boxes, *numbers))
