"""Every exercise's solution passes its check, and builds what the package has afterwards: the same on random inputs.

An exercise `my_x` has a check `check_x`.
"""

import inspect

import pytest
import torch
from solved import exercises, solutions

from mrcnn_scratch import box_iou, decode_boxes, encode_boxes
from mrcnn_scratch.course import checks

EVERY = [(number, name) for number, names in exercises().items() for name in names]


def check_of(name: str):
    return getattr(checks, "check_" + name.removeprefix("my_"))


@pytest.mark.parametrize("number, name", EVERY, ids=[" ".join(each) for each in EVERY])
def test_a_solution_passes_its_check(number, name, capsys):
    check = check_of(name)
    check(solutions(number)[name])
    assert f"all {len(check.trials)} trials pass" in capsys.readouterr().out


def test_every_check_belongs_to_an_exercise():
    named = {value for name, value in vars(checks).items() if name.startswith("check_") and inspect.isfunction(value)}
    assert named == {check_of(name) for _, name in EVERY}


@pytest.mark.parametrize("seed", range(5))
def test_01_boxes(seed):
    my = solutions("01")
    g = torch.Generator().manual_seed(seed)
    low = torch.rand(30, 2, generator=g) * 300
    a = torch.cat([low, low + 1 + torch.rand(30, 2, generator=g) * 200], dim=1)
    b, deltas = a.flip(0), torch.randn(30, 4, generator=g) * 3
    torch.testing.assert_close(my["my_iou"](a, b), box_iou(a, b))
    torch.testing.assert_close(my["my_encode"](a, b), encode_boxes(a, b))
    torch.testing.assert_close(my["my_decode"](deltas, b), decode_boxes(deltas, b))
