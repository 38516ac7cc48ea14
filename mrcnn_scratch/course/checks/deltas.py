"""Checks of notebook 01: `my_encode` and `my_decode`."""

import math

import torch
from torch import Tensor

from ...boxes import decode_boxes, encode_boxes
from .iou import PLUS_ONE, some_boxes
from .kit import Wrong, check, expect_close, expect_tensor, teacher


def _sizes(boxes: Tensor, plus=0.0) -> tuple[Tensor, Tensor]:
    """Centres and sides, (R, 2) each."""
    sides = boxes[:, 2:] - boxes[:, :2] + plus
    return boxes[:, :2] + sides / 2, sides


def _encode_like(boxes, anchors, plus=0.0, by="anchor", log=True, corner=False) -> Tensor:
    (to, to_sides), (start, sides) = _sizes(boxes, plus), _sizes(anchors, plus)
    if corner:
        to, start = boxes[:, :2], anchors[:, :2]
    shift = (to - start) / {"anchor": sides, "box": to_sides, "none": torch.ones_like(sides)}[by]
    growth = to_sides / sides
    return torch.cat([shift, growth.log() if log else growth], dim=1)


def _encode_mistakes(boxes, anchors) -> dict:
    return {
        PLUS_ONE: lambda: _encode_like(boxes, anchors, plus=1.0),
        "Boxes and anchors have changed places: the anchor is where the move begins": lambda: _encode_like(
            anchors, boxes
        ),
        "The shift is a share of the anchor's side, not of the box's: at test time only the anchor is known": lambda: (
            _encode_like(boxes, anchors, by="box")
        ),
        "The shift is in pixels: divide it by the anchor's side": lambda: _encode_like(boxes, anchors, by="none"),
        "The growth is to be the logarithm of the ratio, so that no growth is 0": lambda: _encode_like(
            boxes, anchors, log=False
        ),
        "You measure from corner to corner; the shift is from centre to centre": lambda: _encode_like(
            boxes, anchors, corner=True
        ),
        "The order is dx, dy, dw, dh: across before down": lambda: _encode_like(boxes, anchors)[:, [1, 0, 3, 2]],
    }


def the_move_of_notebook_00(encode) -> None:
    anchor, box = torch.tensor([[8.0, 40.0, 24.0, 56.0]]), torch.tensor([[8.0, 40.0, 32.0, 56.0]])
    wanted = torch.tensor([[0.25, 0.0, math.log(1.5), 0.0]])
    expect_close(encode(box, anchor), wanted, "from 8..24 to 8..32 across", _encode_mistakes(box, anchor))


def no_move_is_zero(encode) -> None:
    boxes = some_boxes(4, 0)
    expect_close(
        encode(boxes, boxes), torch.zeros(4, 4), "boxes that are their anchors", _encode_mistakes(boxes, boxes)
    )


def down_as_across(encode) -> None:
    boxes, anchors = some_boxes(5, 1), some_boxes(5, 2)
    swap = [1, 0, 3, 2]
    got = encode(boxes[:, swap], anchors[:, swap])
    expect_close(got, encode(boxes, anchors)[:, swap], "x and y swapped in all boxes must swap the deltas")


def the_same_at_every_scale(encode) -> None:
    boxes, anchors = some_boxes(5, 3), some_boxes(5, 4)
    mistakes = _encode_mistakes(boxes * 4, anchors * 4)
    expect_close(encode(boxes * 4, anchors * 4), encode(boxes, anchors), "all 4 times as large", mistakes)


def random_pairs_against_the_package(encode) -> None:
    for seed in range(10, 16):
        boxes, anchors = some_boxes(seed, seed), some_boxes(seed, seed + 50)
        wanted = encode_boxes(boxes, anchors)
        expect_close(encode(boxes, anchors), wanted, f"{seed} boxes", _encode_mistakes(boxes, anchors))


def no_pairs(coder) -> None:
    expect_tensor(coder(torch.zeros(0, 4), torch.zeros(0, 4)), (0, 4))


@check(
    the_move_of_notebook_00, no_move_is_zero, down_as_across, the_same_at_every_scale,
    random_pairs_against_the_package, no_pairs,
)  # fmt: skip
def check_encode(student) -> None:
    """Deltas from anchors to boxes: (R, 4), (R, 4) xyxy -> (R, 4) dx, dy, dw, dh."""


def _decode_like(deltas, anchors, plus=0.0, exp=True, corner=False, cap=True) -> Tensor:
    start, sides = _sizes(anchors, plus)
    growth = deltas[:, 2:].clamp(max=math.log(1000 / 16)) if cap else deltas[:, 2:]
    if corner:
        low = anchors[:, :2] + deltas[:, :2] * sides
        return torch.cat([low, low + sides * growth.exp()], dim=1)
    centre, new = start + deltas[:, :2] * sides, sides * (growth.exp() if exp else 1 + growth)
    return torch.cat([centre - new / 2, centre + new / 2 - plus], dim=1)


def _decode_mistakes(deltas, anchors) -> dict:
    return {
        PLUS_ONE: lambda: _decode_like(deltas, anchors, plus=1.0),
        "The shift moves the centre, you move the corner": lambda: _decode_like(deltas, anchors, corner=True),
        "The growth is a logarithm: its exponential is the factor": lambda: _decode_like(deltas, anchors, exp=False),
        "The order is dx, dy, dw, dh: across before down": lambda: _decode_like(deltas[:, [1, 0, 3, 2]], anchors),
    }


def the_move_of_notebook_00_back(decode) -> None:
    anchor, delta = torch.tensor([[8.0, 40.0, 24.0, 56.0]]), torch.tensor([[0.25, 0.0, math.log(1.5), 0.0]])
    wanted = torch.tensor([[8.0, 40.0, 32.0, 56.0]])
    expect_close(decode(delta, anchor), wanted, "0.25 and log 1.5 across", _decode_mistakes(delta, anchor))


def nothing_to_do(decode) -> None:
    anchors = some_boxes(4, 5)
    expect_close(
        decode(torch.zeros(4, 4), anchors), anchors, "deltas of 0", _decode_mistakes(torch.zeros(4, 4), anchors)
    )


def undoes_encode(decode) -> None:
    boxes, anchors = some_boxes(20, 6), some_boxes(20, 7)
    deltas = encode_boxes(boxes, anchors)
    expect_close(decode(deltas, anchors), boxes, "decode of encode", _decode_mistakes(deltas, anchors), 1e-3)


def a_wild_network(decode) -> None:
    """Early in training dw may be anything: 100 would be a box of 10^44 pixels."""
    anchor, delta = torch.tensor([[0.0, 0.0, 16.0, 8.0]]), torch.tensor([[0.0, 0.0, 100.0, 0.0]])
    got = decode(delta, anchor)
    expect_tensor(got, (1, 4))
    if not bool(got.isfinite().all()):
        raise Wrong("a dw of 100 gave a box that is not finite. Cap dw and dh at log(1000 / 16) before the exponential")
    rounded = {"Write `math.log(1000 / 16)`, not a rounded number": _decode_like(delta.clamp(max=4.135), anchor)}
    expect_close(got, _decode_like(delta, anchor), "a dw of 100, capped at log(1000 / 16)", rounded)
    delta = -delta
    expect_close(decode(delta, anchor), _decode_like(delta, anchor), "a dw of -100: only growth is capped")


def a_far_shift(decode) -> None:
    """A shift of six widths and seven heights is no growth."""
    anchor, delta = torch.tensor([[0.0, 0.0, 16.0, 8.0]]), torch.tensor([[6.0, 7.0, 100.0, 0.0]])
    before, got = delta.clone(), decode(delta, anchor)
    if not torch.equal(delta, before):
        raise Wrong("your function has changed the deltas it was given; work on a copy")
    with teacher("Only growth is capped: dx and dy may be as large as they like"):
        expect_close(got, _decode_like(delta, anchor), "a shift of 6 widths and 7 heights")


def random_deltas_against_the_package(decode) -> None:
    for seed in range(10, 16):
        anchors, g = some_boxes(seed, seed), torch.Generator().manual_seed(seed)
        deltas = torch.randn(seed, 4, generator=g)
        wanted = decode_boxes(deltas, anchors)
        expect_close(decode(deltas, anchors), wanted, f"{seed} boxes", _decode_mistakes(deltas, anchors), 1e-3)


@check(
    the_move_of_notebook_00_back, nothing_to_do, undoes_encode, a_wild_network, a_far_shift,
    random_deltas_against_the_package, no_pairs,
)  # fmt: skip
def check_decode(student) -> None:
    """Anchors moved by deltas: (R, 4) dx, dy, dw, dh and (R, 4) xyxy -> (R, 4) xyxy."""
