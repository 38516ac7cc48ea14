"""The check of notebook 06: `my_rpn_loss`."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ...rpn import rpn_loss
from .kit import Wrong, check, expect_close, expect_tensor, teacher

OBJECTNESS, BOX = "loss_objectness", "loss_rpn_box"
BETA = 1 / 9


def some_samples(counts: list[tuple[int, int]], seed: int) -> tuple[Tensor, Tensor, list]:
    """Logits (S,), deltas (S, 4) and samples of images with so many positives and negatives each."""
    g = torch.Generator().manual_seed(seed)
    samples = []
    for positives, negatives in counts:
        picked = torch.randperm(1000, generator=g)[: positives + negatives]
        wanted = 0.6 * torch.randn(positives, 4, generator=g)
        samples.append((picked[:positives].sort().values, picked[positives:].sort().values, wanted))
    total = sum(map(sum, counts))
    return 2 * torch.randn(total, generator=g), 0.6 * torch.randn(total, 4, generator=g), samples


def _labels(samples: list, order: str = "by image") -> Tensor:
    """1 for a positive: image by image, or, wrongly, the positives of all images first, or the negatives first."""
    counts = [(len(positive), len(negative)) for positive, negative, _ in samples]
    if order == "positives first":
        counts = [(sum(p for p, _ in counts), sum(n for _, n in counts))]
    ones_and_zeros = [(torch.ones(p), torch.zeros(n)) for p, n in counts]
    pairs = [pair[::-1] if order == "negatives first" else pair for pair in ones_and_zeros]
    return torch.cat([part for pair in pairs for part in pair]) if pairs else torch.zeros(0)


def _labels_by_anchor(samples: list) -> Tensor:
    """Wrong: 1 for an anchor that is positive in any image."""
    anchors = torch.cat([index for pair in samples for index in pair[:2]])
    return torch.isin(anchors, torch.cat([positive for positive, *_ in samples])).float()


def _undivided(total: Tensor, positives: int) -> dict:
    """Wrong normalisers; with one positive two of them can't be told apart."""
    if positives == 1:
        return {"This is the sum, or you divide by the positives, here 1: divide by all sampled anchors": total}
    return {
        "This is the sum: divide it by the number of sampled anchors": total,
        "You divide by the positives: divide by all sampled anchors, negatives included, in both losses": (
            total / positives
        ),
    }


def _objectness_mistakes(logits: Tensor, samples: list) -> dict:
    label = _labels(samples)
    count, positives = max(1, len(label)), max(1, int(label.sum()))

    def bce(x, y):
        return F.binary_cross_entropy_with_logits(x, y, reduction="sum")

    return _undivided(bce(logits, label), positives) | {
        "The labels are turned round: 1 is an object": lambda: bce(logits, 1 - label) / count,
        "The sigmoid is taken twice: the function for logits takes it by itself": (
            lambda: bce(logits.sigmoid(), label) / count
        ),
        "The rows come image by image, the positives of each first; you take all images' positives first": (
            lambda: bce(logits, _labels(samples, "positives first")) / count
        ),
        "Within an image the positives come first, then the negatives": (
            lambda: bce(logits, _labels(samples, "negatives first")) / count
        ),
        "A label belongs to an anchor of one image: the same anchor may be background in another": (
            lambda: bce(logits, _labels_by_anchor(samples)) / count
        ),
        "Only the positives are taught: without the negatives all anchors learn to say yes": (
            lambda: bce(logits[label == 1], label[label == 1]) / count
        ),
        "Each image is averaged by itself first: anchors of images with fewer samples then count more": (
            lambda: _mean_of_means(logits, samples)
        ),
    }


def _mean_of_means(logits: Tensor, samples: list) -> Tensor:
    lengths = [len(positive) + len(negative) for positive, negative, _ in samples]
    parts = zip(logits.split(lengths), _labels(samples).split(lengths), strict=True)
    return torch.stack([F.binary_cross_entropy_with_logits(a, b) for a, b in parts]).mean()


def _box_mistakes(deltas: Tensor, samples: list, beta: float) -> dict:
    label, wanted = _labels(samples), torch.cat([moves for *_, moves in samples])
    mine, count, positives = deltas[label == 1], max(1, len(label)), max(1, int(label.sum()))

    def smooth(x, y, beta=beta):
        return F.smooth_l1_loss(x, y, beta=beta, reduction="sum")

    padded = torch.zeros_like(deltas)
    padded[label == 1] = wanted
    first = deltas[_labels(samples, "positives first") == 1]
    last = deltas[_labels(samples, "negatives first") == 1]
    return _undivided(smooth(mine, wanted), positives) | {
        'You take the mean over the positives\' numbers (reduction "mean"): add them up, and divide by all sampled '
        "anchors": lambda: smooth(mine, wanted) / (4 * positives),
        "You divide by the four coordinates, too: the loss of an anchor is the sum of its four": (
            lambda: smooth(mine, wanted) / (4 * count)
        ),
        "These are the numbers of another beta, 1: the box head's, and torch's default. Use the argument": (
            lambda: smooth(mine, wanted, 1.0) / count
        ),
        "These are the numbers of beta 1/9, whatever beta is: use the argument": (
            lambda: smooth(mine, wanted, BETA) / count
        ),
        "This is L1: below beta the loss is to be a parabola": lambda: smooth(mine, wanted, 0.0) / count,
        "This is the squared error: beyond beta the loss is to be a straight line": (
            lambda: (mine - wanted).square().sum() / count
        ),
        "This is torch's Huber loss, which is beta times smooth L1": lambda: beta * smooth(mine, wanted) / count,
        "The negatives' deltas count, too: an anchor on background has no box to move to": (
            lambda: smooth(deltas, padded) / count
        ),
        "What the deltas should be is missing: the loss is of the difference": (
            lambda: smooth(mine, torch.zeros_like(wanted)) / count
        ),
        "The rows come image by image, the positives of each first; you take all images' positives first": (
            lambda: smooth(first, wanted) / count
        ),
        "Within an image the positives come first, then the negatives": lambda: smooth(last, wanted) / count,
    }


def _expect(loss, logits: Tensor, deltas: Tensor, samples: list, beta: float, wanted: dict, say: str) -> None:
    """Both losses, as scalars of the known names, with the hint of the known mistake."""
    got = loss(logits, deltas, samples, beta)
    if not isinstance(got, dict) or set(got) != {OBJECTNESS, BOX}:
        told = f"with the keys {', '.join(map(str, got))}" if isinstance(got, dict) else f"a {type(got).__name__}"
        raise Wrong(f"the result must be a dictionary with {OBJECTNESS} and {BOX}; it is {told}")
    mistakes = {OBJECTNESS: _objectness_mistakes(logits, samples), BOX: _box_mistakes(deltas, samples, beta)}
    for name in (OBJECTNESS, BOX):
        with teacher("A loss is one number: add up over anchors and coordinates"):
            expect_tensor(got[name], (), name)
        hints = {hint: value for hint, value in mistakes[name].items() if not _same(value, wanted[name])}
        expect_close(got[name], wanted[name], f"{name} of {say}", hints, 1e-5)


def _same(value, wanted: Tensor) -> bool:
    """Whether a mistake makes no difference here, and so can't be what is wrong."""
    value = value() if callable(value) else value
    return math.isclose(float(value), float(wanted), rel_tol=1e-4, abs_tol=1e-4)


# ---- trials


def hand_numbers(loss) -> None:
    logits = torch.tensor([2.0, -1.0, 0.0])
    deltas = torch.tensor([[0.05, -0.5, 2.0, 0.0], [3.0, 3.0, 3.0, 3.0], [-3.0, 0.0, 0.0, 0.0]])
    samples = [(torch.tensor([7]), torch.tensor([2, 5]), torch.zeros(1, 4))]
    objectness = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1)) + math.log(2)) / 3
    box = (0.05**2 * 9 / 2 + (0.5 - 1 / 18) + (2 - 1 / 18)) / 3
    wanted = {OBJECTNESS: torch.tensor(objectness), BOX: torch.tensor(box)}
    _expect(loss, logits, deltas, samples, BETA, wanted, "one object and two pieces of background")


def a_box_that_has_somewhere_to_go(loss) -> None:
    """Deltas that are right cost nothing, whatever they are."""
    logits, deltas, samples = some_samples([(2, 3)], 0)
    right = deltas.clone()
    right[:2] = samples[0][2]
    _expect(loss, logits, right, samples, BETA, rpn_loss(logits, right, samples, BETA), "deltas that are right")
    _expect(loss, logits, deltas, samples, BETA, rpn_loss(logits, deltas, samples, BETA), "deltas that are not")


def two_images_one_after_the_other(loss) -> None:
    logits, deltas, samples = some_samples([(1, 4), (3, 2)], 1)
    say = "two images, with 1 and 3 positives and 4 and 2 negatives"
    _expect(loss, logits, deltas, samples, BETA, rpn_loss(logits, deltas, samples, BETA), say)
    logits, deltas, samples = some_samples([(2, 6), (1, 2)], 2)
    say = "two images, the second with fewer samples"
    _expect(loss, logits, deltas, samples, BETA, rpn_loss(logits, deltas, samples, BETA), say)


def one_anchor_in_two_images(loss) -> None:
    """Anchor 7 lies on an object in the first image and on background in the second."""
    logits, deltas = torch.tensor([1.5, -0.5, 0.3, 2.5]), torch.zeros(4, 4)
    moves = torch.full((1, 4), 0.5)
    first, second = torch.tensor([7]), torch.tensor([4])
    samples = [(first, second, moves), (second, first, moves)]
    say = "two images, the object of each where the other has background"
    _expect(loss, logits, deltas, samples, BETA, rpn_loss(logits, deltas, samples, BETA), say)


def twice_as_many_anchors_on_background(loss) -> None:
    """The normaliser: all that were sampled."""
    _, deltas, samples = some_samples([(2, 2)], 3)
    more, all_deltas = torch.tensor([901, 902, 903, 904]), torch.cat([deltas, torch.ones(4, 4)])
    positive, negative, moves = samples[0]
    many = [(positive, torch.cat([negative, more]), moves)]
    few = loss(torch.zeros(4), deltas, samples, BETA)[BOX]
    say = "the box loss, twice as many anchors sampled and the same positives: half"
    expect_close(
        loss(torch.zeros(8), all_deltas, many, BETA)[BOX], few / 2, say, {"Divide by all sampled anchors": few}, 1e-5
    )


def another_beta(loss) -> None:
    logits, samples = torch.zeros(2), [(torch.tensor([4]), torch.tensor([9]), torch.zeros(1, 4))]
    deltas = torch.tensor([[0.05, 0.5, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    for beta in (BETA, 1.0, 0.3):
        say = f"errors of 0.05, 0.5 and 2 with beta {beta:.2f}"
        _expect(loss, logits, deltas, samples, beta, rpn_loss(logits, deltas, samples, beta), say)


def an_image_without_objects(loss) -> None:
    logits, deltas, samples = some_samples([(0, 5)], 4)
    with teacher("An image without objects has no positives: its box loss is 0, not 0 / 0"):
        _expect(loss, logits, deltas, samples, BETA, rpn_loss(logits, deltas, samples, BETA), "no positives")
    logits, deltas, samples = some_samples([(0, 3), (2, 4)], 5)
    say = "an image without objects, and one with"
    _expect(loss, logits, deltas, samples, BETA, rpn_loss(logits, deltas, samples, BETA), say)


def nothing_was_sampled(loss) -> None:
    logits, deltas = torch.zeros(0, requires_grad=True), torch.zeros(0, 4, requires_grad=True)
    nothing = torch.zeros(0, dtype=torch.int64)
    got = loss(logits, deltas, [(nothing, nothing, torch.zeros(0, 4))], BETA)
    for name in (OBJECTNESS, BOX):
        if float(got[name].detach()) != 0:
            raise Wrong(f"{name} of no anchors at all is {float(got[name].detach())}, not 0: never divide by 0")
        if not got[name].requires_grad:
            raise Wrong(f"{name} of no anchors is a 0 apart from the network: keep it in the graph, or training stops")


def what_learns(loss) -> None:
    """The gradients: (probability - label) / S for a logit, at most 1 / S for a delta, 0 for a negative's deltas."""
    logits, deltas, samples = some_samples([(2, 3), (1, 2)], 6)
    logits, deltas = logits.requires_grad_(), deltas.requires_grad_()
    got = loss(logits, deltas, samples, BETA)
    for name in (OBJECTNESS, BOX):
        if not got[name].requires_grad:
            raise Wrong(f"{name} is cut off from the network: no .item(), no .detach(), no new tensor of its value")
    mine = torch.autograd.grad(got[OBJECTNESS] + got[BOX], (logits, deltas))
    wanted = torch.autograd.grad(sum(rpn_loss(logits, deltas, samples, BETA).values()), (logits, deltas))
    expect_close(mine[0], wanted[0], "the gradient of the logits", tolerance=1e-5)
    expect_close(mine[1], wanted[1], "the gradient of the deltas", tolerance=1e-5)


def random_samples_against_the_package(loss) -> None:
    for seed in range(10, 18):
        g = torch.Generator().manual_seed(seed)
        counts = [tuple(pair) for pair in torch.randint(0, 30, (4, 2), generator=g).tolist()]
        logits, deltas, samples = some_samples(counts, seed)
        wanted = rpn_loss(logits, deltas, samples, BETA)
        _expect(loss, logits, deltas, samples, BETA, wanted, f"{len(counts)} images with {counts}")


@check(
    hand_numbers, a_box_that_has_somewhere_to_go, two_images_one_after_the_other, one_anchor_in_two_images,
    twice_as_many_anchors_on_background, another_beta, an_image_without_objects, nothing_was_sampled, what_learns,
    random_samples_against_the_package,
)  # fmt: skip
def check_rpn_loss(student) -> None:
    """Objectness and box loss of the sampled anchors: (S,), (S, 4), samples, beta -> two scalars in a dictionary."""
