"""Notebook 06's check: the package's loss passes, the mistakes of real detectors fail, each with its hint."""

import pytest
import torch
import torch.nn.functional as F
from planted import fails_with, passes, waits
from solved import solutions

from mrcnn_scratch.course.checks import check_rpn_loss
from mrcnn_scratch.rpn import rpn_loss


def test_the_packages_function_passes_and_an_unwritten_one_waits(capsys):
    passes(check_rpn_loss, rpn_loss, capsys)
    waits(check_rpn_loss, capsys)


def loss(logits, deltas, samples, beta, *, labels=None, by="all", only_positives=True, graph=True, probability=None):
    """The loss, with a mistake where an option says so."""
    truth = torch.cat([torch.tensor([1.0] * len(p) + [0.0] * len(n)) for p, n, _ in samples])
    wanted = torch.cat([moves for *_, moves in samples])
    asked = truth if labels is None else labels(samples)
    count = {"all": max(1, len(logits)), "raw": len(logits), "positives": max(1, int(truth.sum())), "sum": 1}
    bce = F.binary_cross_entropy_with_logits
    objectness = bce(logits if probability is None else probability(logits), asked, reduction="sum")
    if only_positives:
        mine = deltas[asked == 1]
    else:
        mine, moves = deltas, torch.zeros_like(deltas)
        moves[truth == 1] = wanted
        wanted = moves
    box = F.smooth_l1_loss(mine, wanted, beta=beta, reduction="sum")
    total = max(1, len(logits)) if by == "boxes by positives" else count[by]
    share = count["positives"] if by == "boxes by positives" else total
    losses = {"loss_objectness": objectness / total, "loss_rpn_box": box / share}
    return losses if graph else {name: torch.tensor(float(value.detach())) for name, value in losses.items()}


def positives_of_all_images_first(samples):
    counts = [(len(p), len(n)) for p, n, _ in samples]
    return torch.tensor([1.0] * sum(p for p, _ in counts) + [0.0] * sum(n for _, n in counts))


def negatives_first(samples):
    return torch.cat([torch.tensor([0.0] * len(n) + [1.0] * len(p)) for p, n, _ in samples])


def turned_round(samples):
    return torch.cat([torch.tensor([0.0] * len(p) + [1.0] * len(n)) for p, n, _ in samples])


def by_anchor(samples):
    """The negatives are written after the positives, over all images: some positives are lost (cf. TRAPS 26)."""
    label = torch.zeros(1000)
    for positive, _, _ in samples:
        label[positive] = 1
    return torch.cat([label[index] for pair in samples for index in pair[:2]])


def only_labels(labels):
    """The mistake in the objectness alone."""

    def wrong(logits, deltas, samples, beta):
        objectness = loss(logits, torch.zeros_like(deltas), samples, beta)["loss_objectness"] * 0
        asked = labels(samples)
        objectness = objectness + F.binary_cross_entropy_with_logits(logits, asked, reduction="sum") / max(
            1, len(logits)
        )
        return {"loss_objectness": objectness, "loss_rpn_box": loss(logits, deltas, samples, beta)["loss_rpn_box"]}

    return wrong


def mean_over_the_positives(logits, deltas, samples, beta):
    label = torch.cat([torch.tensor([1.0] * len(p) + [0.0] * len(n)) for p, n, _ in samples])
    wanted = torch.cat([moves for *_, moves in samples])
    box = F.smooth_l1_loss(deltas[label == 1], wanted, beta=beta)
    return {"loss_objectness": F.binary_cross_entropy_with_logits(logits, label), "loss_rpn_box": box}


def image_by_image(logits, deltas, samples, beta):
    """The mean of the images' means."""
    lengths = [len(p) + len(n) for p, n, _ in samples]
    parts = zip(logits.split(lengths), deltas.split(lengths), samples, strict=True)
    each = [rpn_loss(a, b, [sample], beta) for a, b, sample in parts]
    return {name: torch.stack([one[name] for one in each]).mean() for name in each[0]}


def no_difference(logits, deltas, samples, beta):
    return rpn_loss(logits, deltas, [(p, n, torch.zeros_like(moves)) for p, n, moves in samples], beta)


def huber(logits, deltas, samples, beta):
    losses = rpn_loss(logits, deltas, samples, beta)
    return losses | {"loss_rpn_box": beta * losses["loss_rpn_box"]}


WRONG = {
    "nothing divided": (lambda *a: loss(*a, by="sum"), "This is the sum"),
    "both by the positives (TRAPS 32)": (lambda *a: loss(*a, by="positives"), "or you divide by the positives"),
    "boxes by the positives (TRAPS 32)": (lambda *a: loss(*a, by="boxes by positives"), "divide by all sampled"),
    "mean over the positives (TRAPS 32)": (mean_over_the_positives, "mean over the positives' numbers"),
    "the mean of images' means": (image_by_image, "Each image is averaged by itself"),
    "beta 1 (TRAPS 33)": (lambda a, b, c, beta: loss(a, b, c, 1.0), "the box head's"),
    "beta always 1/9 (TRAPS 33)": (lambda a, b, c, beta: loss(a, b, c, 1 / 9), "whatever beta is"),
    "plain L1 (TRAPS 33)": (lambda a, b, c, beta: loss(a, b, c, 0.0), "This is L1"),
    "Huber": (huber, "beta times smooth L1"),
    "the negatives' deltas, too": (lambda *a: loss(*a, only_positives=False), "has no box to move to"),
    "no difference taken": (no_difference, "the loss is of the difference"),
    "turned round": (only_labels(turned_round), "labels are turned round"),
    "positives of all images first": (lambda *a: loss(*a, labels=positives_of_all_images_first), "image by image"),
    "negatives first": (only_labels(negatives_first), "the positives come first, then the negatives"),
    "labels by anchor (TRAPS 26)": (only_labels(by_anchor), "the same anchor may be background in another"),
    "sigmoid twice": (lambda *a: loss(*a, probability=torch.sigmoid), "sigmoid is taken twice"),
    "0 / 0 where nothing was sampled": (lambda *a: loss(*a, by="raw"), "never divide by 0"),
    "numbers cut off": (lambda *a: loss(*a, graph=False), "apart from the network"),
    "a tuple": (lambda *a: tuple(rpn_loss(*a).values()), "it is a tuple"),
    "one loss for each anchor": (
        lambda *a: {name: value.expand(3) for name, value in rpn_loss(*a).items()},
        "A loss is one number",
    ),
}


@pytest.mark.parametrize("wrong, hint", WRONG.values(), ids=list(WRONG))
def test_a_wrong_loss_fails_with_its_hint(wrong, hint):
    fails_with(check_rpn_loss, wrong, hint)


@pytest.mark.parametrize("seed", range(5))
def test_the_solution_is_the_packages_loss(seed):
    g = torch.Generator().manual_seed(seed)
    samples = []
    for positives, negatives in torch.randint(0, 40, (3, 2), generator=g).tolist():
        index = torch.randperm(500, generator=g)[: positives + negatives]
        samples.append((index[:positives], index[positives:], torch.randn(positives, 4, generator=g)))
    total = sum(len(p) + len(n) for p, n, _ in samples)
    logits = (3 * torch.randn(total, generator=g)).requires_grad_()
    deltas = torch.randn(total, 4, generator=g).requires_grad_()
    mine, theirs = (f(logits, deltas, samples, 0.2) for f in (solutions("06")["my_rpn_loss"], rpn_loss))
    torch.testing.assert_close(mine, theirs)
    gradients = [torch.autograd.grad(sum(losses.values()), (logits, deltas)) for losses in (mine, theirs)]
    torch.testing.assert_close(*gradients)
