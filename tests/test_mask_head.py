"""The mask head: targets, loss, pasting, and what the two together can reach at best."""

import math

import pytest
import torch

from mrcnn_scratch.datasets.shapes import ShapesDataset
from mrcnn_scratch.mask_head import MaskHead, mask_loss, mask_targets, paste_masks, select_masks


@pytest.mark.parametrize("convs", [0, 2])
def test_the_side_doubles(convs):
    head = MaskHead(6, 16, convs, 5)
    assert len(head.convs) == convs
    assert head(torch.randn(3, 6, 7, 7)).shape == (3, 5, 14, 14)
    assert head(torch.zeros(0, 6, 7, 7)).shape == (0, 5, 14, 14)


def test_deconvolution_then_relu_then_one_by_one():
    head = MaskHead(1, 1, 0, 1)
    with torch.no_grad():
        head.deconv.weight.copy_(torch.tensor([[[[1.0, -2.0], [3.0, 4.0]]]]))
        head.logits.weight.fill_(-1)
        head.logits.bias.fill_(0.5)
    out = head(torch.tensor([[[[2.0]]]]))
    # 2 * [1, -2, 3, 4] -> relu -> times -1 plus 0.5
    assert out[0, 0].tolist() == [[-1.5, 0.5], [-5.5, -7.5]]


# ---------------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_one_class_alone_is_what_all_classes_give(generator, layout):
    head = MaskHead(3, 8, 2, 5).double()
    pooled = torch.randn(4, 3, 6, 6, generator=generator, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    labels = torch.tensor([4, 1, 1, 2])
    mine, wanted = head(pooled, labels)[:, 0], head(pooled)[torch.arange(4), labels]
    torch.testing.assert_close(mine, wanted, rtol=1e-12, atol=1e-12)
    inputs, weights = [pooled, *head.parameters()], torch.randn_like(mine)
    for a, b in zip(
        torch.autograd.grad(mine, inputs, weights), torch.autograd.grad(wanted, inputs, weights), strict=True
    ):
        assert b.any()
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    agnostic = MaskHead(3, 8, 0, 1)
    assert torch.equal(agnostic(pooled.float(), labels), agnostic(pooled.float()))


def test_target_of_a_roi_that_holds_half_the_object():
    # Object: columns 4..12, rows 2..6. The RoI starts at its middle: the object fills the left half of the crop.
    mask = torch.zeros(1, 10, 20, dtype=torch.uint8)
    mask[0, 2:6, 4:12] = 1
    roi = torch.tensor([[8.0, 2, 16, 6]])
    target = mask_targets(mask, torch.tensor([0]), roi, 8)
    # a column is one pixel wide: exact. A row is half a pixel high; the outer two lie a quarter of a pixel inside
    # the object and are read between the pixel rows' centres: 3/4 object, 1/4 background.
    rows = torch.tensor([0.75, 1, 1, 1, 1, 1, 1, 0.75])
    assert torch.equal(target[0, :, :4], rows[:, None].expand(8, 4)) and not target[0, :, 4:].any()


def test_the_roi_is_cut_out_and_not_the_objects_box():
    # A RoI twice as large as the object: it fills a quarter.
    mask = torch.zeros(1, 16, 16)
    mask[0, 4:8, 4:8] = 1
    target = mask_targets(mask, torch.tensor([0]), torch.tensor([[4.0, 4, 12, 12]]), 8)
    assert float(target.sum()) == 16 and torch.equal(target[0, :4, :4], torch.ones(4, 4))


def test_each_roi_takes_its_own_truth():
    masks = torch.zeros(3, 6, 9, dtype=torch.bool)
    masks[2] = True
    rois = torch.tensor([[1.0, 1, 5, 5]]).repeat(4, 1)
    assert mask_targets(masks, torch.tensor([2, 0, 1, 2]), rois, 4).flatten(1).mean(1).tolist() == [1, 0, 0, 1]


def test_edges_are_soft_or_cut():
    # A RoI from 0.5 to 2.5 with two cells; the mask covers pixel 1 alone, x in [1, 2). Pixel values are read
    # between centres: the cells' centres 1.0 and 2.0 lie midway between the centres of pixels 0, 1 and 1, 2.
    mask = torch.zeros(1, 1, 4)
    mask[0, 0, 1] = 1
    roi = torch.tensor([[0.5, 0, 2.5, 1]])
    assert mask_targets(mask, torch.tensor([0]), roi, 2)[0, 0].tolist() == [0.5, 0.5]
    assert mask_targets(mask, torch.tensor([0]), roi, 2, binary=True)[0, 0].tolist() == [1, 1]  # at least half
    # the legacy crop reads half a pixel further right: at the centres of pixels 1 and 2
    assert mask_targets(mask, torch.tensor([0]), roi, 2, aligned=False)[0, 0].tolist() == [1, 0]


def test_no_rois_and_no_objects():
    none = torch.zeros(0, dtype=torch.int64)
    assert mask_targets(torch.ones(2, 5, 7), none, torch.zeros(0, 4), 6).shape == (0, 6, 6)
    assert mask_targets(torch.zeros(0, 5, 7), none, torch.zeros(0, 4), 6).shape == (0, 6, 6)


# ---------------------------------------------------------------------------------------------- loss


def test_loss_by_hand():
    # 2 RoIs of 2 x 2: logits 0 against anything give log 2; logit 2 against 1 gives log(1 + e^-2)
    logits = torch.full((2, 3, 2, 2), 50.0)
    logits[0, 1] = 0.0
    logits[1, 2] = 2.0
    targets = torch.stack([torch.tensor([[0.0, 1], [0.25, 1]]), torch.ones(2, 2)])
    expected = (math.log(2) + math.log(1 + math.exp(-2))) / 2  # the mean over pixels and over RoIs
    assert float(mask_loss(logits, torch.tensor([1, 2]), targets)) == pytest.approx(expected)


def test_masks_of_classes_do_not_compete(generator):
    # Only the true class's channel learns: per-pixel sigmoid, no softmax.
    logits = torch.randn(3, 4, 2, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    targets = torch.rand(3, 2, 2, dtype=torch.float64, generator=generator)
    labels = torch.tensor([3, 1, 1])
    assert torch.autograd.gradcheck(lambda x: mask_loss(x, labels, targets), logits)
    mask_loss(logits, labels, targets).backward()
    assert {tuple(i) for i in logits.grad.abs().sum((2, 3)).nonzero().tolist()} == {(0, 3), (1, 1), (2, 1)}


def test_no_positives_give_a_zero_in_the_graph():
    # Not NaN, and not a constant either: distributed training waits for every parameter's gradient.
    head = MaskHead(4, 8, 1, 3)
    loss = mask_loss(head(torch.zeros(0, 4, 3, 3)), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 6, 6))
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_the_predicted_classes_mask_is_used():
    logits = torch.arange(2 * 3).view(2, 3, 1, 1).expand(2, 3, 2, 2).float() - 2
    chosen = select_masks(logits, torch.tensor([2, 1]))
    assert chosen.shape == (2, 2, 2)
    torch.testing.assert_close(chosen[:, 0, 0], torch.tensor([0.0, 2.0]).sigmoid())
    assert select_masks(logits[:0], torch.zeros(0, dtype=torch.int64)).shape == (0, 2, 2)
    assert select_masks(logits.half(), torch.tensor([2, 1])).dtype == torch.float32


# ---------------------------------------------------------------------------------------------- pasting


def test_paste_by_hand():
    # A mask of 2 x 2 cells over the box [1, 1, 5, 3]: a cell is 2 pixels wide and 1 high. Pixel centres in cell
    # coordinates: x = (1.5 - 1) / 4 * 2 = 0.25, then 0.75, 1.25, 1.75; y = 0.5 and 1.5, the cells' own centres.
    # Cell centres lie at 0.5 and 1.5, so the weights of the right cell are 0 (and 3/4 of the left), 1/4, 3/4, 1 (3/4).
    mask = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    image = paste_masks(mask, torch.tensor([[1.0, 1, 5, 3]]), (4, 6))[0]
    top, bottom = [0.75, 0.75, 0.25, 0.0], [0.0, 0.25, 0.75, 0.75]
    expected = torch.zeros(4, 6)
    expected[1, 1:5], expected[2, 1:5] = torch.tensor(top), torch.tensor(bottom)
    torch.testing.assert_close(image, expected)


def test_a_mask_at_its_own_size_is_copied(generator):
    mask = torch.rand(1, 5, 5, generator=generator)
    image = paste_masks(mask, torch.tensor([[2.0, 1, 7, 6]]), (8, 9))
    torch.testing.assert_close(image[0, 1:6, 2:7], mask[0])
    assert float(image.sum()) == pytest.approx(float(mask.sum()), rel=1e-5)


def test_boxes_over_the_border_lose_what_is_outside(generator):
    mask = torch.rand(1, 7, 7, generator=generator)
    box = torch.tensor([[-3.3, -2.1, 9.2, 8.7]])
    large = paste_masks(mask, box + 10, (30, 40))[0]
    torch.testing.assert_close(paste_masks(mask, box, (6, 8))[0], large[10:16, 10:18], atol=1e-5, rtol=0)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("box", [[-20.0, -20, -10, -10], [50, 2, 60, 9], [2, 50, 9, 60], [-9, 3, -2, 5]])
def test_a_box_outside_the_image_leaves_it_empty(box, legacy):
    assert not paste_masks(torch.ones(1, 4, 4), torch.tensor([box]), (10, 12), legacy).any()


@pytest.mark.parametrize("box", [[3.5, 1, 3.5, 4], [2, 2.5, 4, 2.5], [5, 5, 4, 4], [3, 3, 3, 3]])
def test_a_box_without_area_leaves_no_nan(box):
    assert torch.equal(paste_masks(torch.ones(1, 4, 4), torch.tensor([box]), (6, 7)), torch.zeros(1, 6, 7))


def test_no_detections():
    assert paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), (6, 7)).shape == (0, 6, 7)
    assert paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), (6, 7), legacy=True).shape == (0, 6, 7)


@pytest.fixture(scope="module")
def crops():
    """(mask (H, W), box moved by up to 10 %) of the objects of the embedded data set, 20 pixels and larger."""
    dataset = ShapesDataset("demo", 36, seed=3)
    generator = torch.Generator().manual_seed(0)
    found = []
    for index in range(len(dataset)):
        target = dataset[index][1]
        for mask, box in zip(target["masks"], target["boxes"], strict=True):
            size = (box[2:] - box[:2]).repeat(2)
            if size.min() < 20:
                continue
            jitter = (torch.rand(4, generator=generator) * 2 - 1) * 0.1 * size
            found.append((mask, box + jitter))
    return found


def round_trip(crops, size, target_aligned=True, binary=False, legacy=False):
    """Mean IoU, inside the box, between masks and what is left of them after M x M cells: no network, the ceiling."""
    ious = []
    for mask, box in crops:
        target = mask_targets(mask[None], torch.tensor([0]), box[None], size, target_aligned, binary)
        pasted = paste_masks(target, box[None], mask.shape, legacy)[0] >= 0.5
        y = torch.arange(mask.shape[0])[:, None] + 0.5
        x = torch.arange(mask.shape[1])[None] + 0.5
        x1, y1, x2, y2 = box.tolist()
        truth = mask.bool() & (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
        ious.append(float((pasted & truth).sum() / (pasted | truth).sum()))
    return torch.tensor(ious)


def test_crop_and_paste_lose_almost_nothing(crops):
    # The ceiling that conventions put on mask AP. Half a pixel in either function, `align_corners=True`, an added
    # 1 or integer boxes cost several points each.
    assert len(crops) > 60
    soft = round_trip(crops, 28)
    assert float(soft.mean()) >= 0.975
    assert 0.94 <= float(round_trip(crops, 28, binary=True).mean()) < float(soft.mean()) - 0.01  # soft edges count
    assert float((soft > 0.9).float().mean()) > 0.95


def test_legacy_conventions_are_measurably_worse(crops):
    ours = float(round_trip(crops, 28).mean())
    pair = float(round_trip(crops, 28, target_aligned=False, legacy=True).mean())
    assert pair < ours - 0.02
    assert float(round_trip(crops, 28, legacy=True).mean()) < ours - 0.01  # pasting alone
    assert float(round_trip(crops, 28, target_aligned=False).mean()) < ours - 0.02  # the crop alone


def test_the_round_trip_has_no_direction(crops):
    # A shift would leave more of the difference on one side: compare centres of gravity.
    shifts = []
    for mask, box in crops[:80]:
        target = mask_targets(mask[None], torch.tensor([0]), box[None], 28)
        pasted = (paste_masks(target, box[None], mask.shape)[0] >= 0.5).float()
        x1, y1, x2, y2 = box.tolist()
        inside = torch.zeros_like(pasted)
        inside[max(0, math.ceil(y1 - 0.5)) : math.ceil(y2 - 0.5), max(0, math.ceil(x1 - 0.5)) : math.ceil(x2 - 0.5)] = 1
        truth = mask.float() * inside
        y, x = torch.meshgrid(*(torch.arange(n) + 0.5 for n in mask.shape), indexing="ij")
        shifts.append(
            [float((grid * pasted).sum() / pasted.sum() - (grid * truth).sum() / truth.sum()) for grid in (x, y)]
        )
    assert torch.tensor(shifts).mean(0).abs().max() < 0.05  # pixels
