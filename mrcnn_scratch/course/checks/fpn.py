"""Check of notebook 05's `my_fpn`."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...fpn import FPN
from .kit import Wrong, check, first_difference

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
