"""Notebook 01's checks: the package's functions pass, the mistakes of real detectors fail, each with its hint."""

import math

import pytest
import torch
from planted import fails_with, passes, waits

from mrcnn_scratch.boxes import box_iou, decode_boxes, encode_boxes
from mrcnn_scratch.course.checks import check_decode, check_encode, check_iou


@pytest.mark.parametrize(
    "check, function", [(check_iou, box_iou), (check_encode, encode_boxes), (check_decode, decode_boxes)]
)
def test_the_packages_function_passes_and_an_unwritten_one_waits(check, function, capsys):
    passes(check, function, capsys)
    waits(check, capsys)


def sides(boxes, plus=0.0):
    return boxes[:, 2:] - boxes[:, :2] + plus


def iou(a, b, plus=0.0, clamp=True, union=True):
    low, high = torch.maximum(a[:, None, :2], b[:, :2]), torch.minimum(a[:, None, 2:], b[:, 2:])
    wide = high - low + plus
    shared = (wide.clamp(min=0) if clamp else wide).prod(2)
    total = sides(a, plus).prod(1)[:, None] + sides(b, plus).prod(1)
    return shared / (total - shared if union else total)


WRONG_IOU = {
    "legacy + 1 (TRAPS 18)": (lambda a, b: iou(a, b, plus=1.0), "count one pixel more"),
    "no clamp": (lambda a, b: iou(a, b, clamp=False), "clamp each side at 0"),
    "shared part counted twice": (lambda a, b: iou(a, b, union=False), "counts the shared part twice"),
    "x and y swapped in one": (lambda a, b: box_iou(a[:, [1, 0, 3, 2]], b), "swapped in one of the two arguments"),
    "transposed": (lambda a, b: box_iou(b, a), "rows and columns are swapped"),
    "of equal places only": (lambda a, b: box_iou(a, b).diagonal(), "must have shape (1, 1)"),
    "stops without boxes": (lambda a, b: box_iou(a, b) / len(a) * len(a) if len(a) else 1 // 0, "ZeroDivisionError"),
    "numpy": (lambda a, b: box_iou(a, b).numpy(), "must be a tensor"),
}


@pytest.mark.parametrize("wrong, hint", WRONG_IOU.values(), ids=list(WRONG_IOU))
def test_a_wrong_iou_fails_with_its_hint(wrong, hint):
    fails_with(check_iou, wrong, hint)


def encode(boxes, anchors, plus=0.0, by_box=False, log=True, corner=False):
    a, b = sides(anchors, plus), sides(boxes, plus)
    shift = boxes[:, :2] - anchors[:, :2] + (0 if corner else (b - a) / 2)
    growth = b / a
    return torch.cat([shift / (b if by_box else a), growth.log() if log else growth], dim=1)


WRONG_ENCODE = {
    "legacy + 1 (TRAPS 18)": (lambda b, a: encode(b, a, plus=1.0), "count one pixel more"),
    "arguments swapped": (lambda b, a: encode_boxes(a, b), "have changed places"),
    "shift by the box's side": (lambda b, a: encode(b, a, by_box=True), "a share of the anchor's side"),
    "no logarithm": (lambda b, a: encode(b, a, log=False), "logarithm of the ratio"),
    "corner to corner": (lambda b, a: encode(b, a, corner=True), "from centre to centre"),
    "down before across": (lambda b, a: encode_boxes(b, a)[:, [1, 0, 3, 2]], "across before down"),
    "y by the width": (
        lambda b, a: encode_boxes(b, a) * torch.stack([torch.ones(len(a)), sides(a)[:, 1] / sides(a)[:, 0]] * 2, 1),
        "x and y swapped",
    ),
}


@pytest.mark.parametrize("wrong, hint", WRONG_ENCODE.values(), ids=list(WRONG_ENCODE))
def test_a_wrong_encode_fails_with_its_hint(wrong, hint):
    fails_with(check_encode, wrong, hint)


def decode(deltas, anchors, cap=math.inf, floor=-math.inf, exp=True, corner=False):
    wide = sides(anchors)
    growth = deltas[:, 2:].clamp(min=floor, max=cap)
    new, low = wide * (growth.exp() if exp else 1 + growth), anchors[:, :2] + deltas[:, :2] * wide
    low = low if corner else low + wide / 2 - new / 2
    return torch.cat([low, low + new], dim=1)


CAP = math.log(1000 / 16)
def capped_in_place(deltas):
    deltas[:, 2:].clamp_(max=CAP)
    return deltas


WRONG_DECODE = {
    "no cap (TRAPS 22)": (lambda d, a: decode(d, a), "Cap dw and dh at log(1000 / 16)"),
    "capped below, too": (lambda d, a: decode(d, a, CAP, -CAP), "only growth is capped"),
    "corner moved": (lambda d, a: decode(d, a, CAP, corner=True), "you move the corner"),
    "no exponential": (lambda d, a: decode(d, a, CAP, exp=False), "its exponential is the factor"),
    "down before across": (lambda d, a: decode_boxes(d[:, [1, 0, 3, 2]], a), "across before down"),
    "all four capped": (lambda d, a: decode_boxes(d.clamp(max=CAP), a), "Only growth is capped"),
    "capped in place": (lambda d, a: decode_boxes(capped_in_place(d), a), "has changed the deltas"),
    "a rounded cap": (lambda d, a: decode(d, a, 4.135), "not a rounded number"),
    "nothing": (lambda d, a: a, "expected 32"),
}


@pytest.mark.parametrize("wrong, hint", WRONG_DECODE.values(), ids=list(WRONG_DECODE))
def test_a_wrong_decode_fails_with_its_hint(wrong, hint):
    fails_with(check_decode, wrong, hint)
