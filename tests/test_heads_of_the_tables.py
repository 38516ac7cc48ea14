"""The paper's variants of the second stage: C4's two heads, Tables 2b, 2c and 2e, unions of branches, stages apart."""

import pytest
import torch
import torch.nn.functional as F

from mrcnn_scratch import build_model, model, roi_heads
from mrcnn_scratch.backbones import make_res5
from mrcnn_scratch.box_head import TwoLayerTrunk
from mrcnn_scratch.keypoint_head import KeypointHead
from mrcnn_scratch.mask_head import MLPMaskHead, make_mask_head, mask_loss, select_masks
from mrcnn_scratch.presets import model_config
from mrcnn_scratch.resnet import FrozenBatchNorm
from mrcnn_scratch.roi_ops import roi_align, roi_pool, roi_warp

SMALL = dict(
    widths=(8, 8, 16, 16), fpn_channels=16, box_hidden=32, mask_channels=16, mask_convs=1, mask_hidden=24,
    keypoint_channels=16, keypoint_convs=1, norm="frozen", rpn_batch=32, roi_batch=8, rpn_pre_nms_train=60,
    rpn_pre_nms_test=60, rpn_post_nms_train=40, rpn_post_nms_test=40,
)  # fmt: skip
LOSSES = {"loss_objectness", "loss_rpn_box", "loss_classifier", "loss_box"}


def small(name="tiny-fpn", keypoints=3, **fields):
    return build_model(name, 4, keypoints=keypoints, **SMALL | fields)


def image(height=64, width=96, seed=0):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def target(height=64, width=96):
    masks = torch.zeros(2, height, width, dtype=torch.uint8)
    masks[0, 10:40, 8:30], masks[1, 20:60, 40:80] = 1, 1
    return {
        "boxes": torch.tensor([[8.0, 10, 30, 40], [40, 20, 80, 60]]),
        "labels": torch.tensor([1, 3]),
        "masks": masks,
        "keypoints": torch.tensor([[[10.5, 12.5, 2], [20, 30, 1], [0, 0, 0]], [[50, 40, 2], [60, 50, 2], [0, 0, 0]]]),
    }


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def double(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def give_statistics(module, seed=0):
    """Frozen norms that do not do nothing."""
    generator = torch.Generator().manual_seed(seed)
    for norm in module.modules():
        if isinstance(norm, FrozenBatchNorm):
            norm.running_mean.normal_(std=0.2, generator=generator), norm.bias.normal_(std=0.2, generator=generator)
            norm.running_var.uniform_(0.5, 2, generator=generator), norm.weight.uniform_(0.3, 1, generator=generator)
    return module


# ------------------------------------------------------------------------- C4: 7 x 7 with stride 1, 14 x 14 with 2

ROIS = torch.tensor([[3.0, 5, 75, 61], [-4, 20, 44, 41], [60, 30, 112, 80]], dtype=torch.float64)


def moved(rois):
    """The RoI whose 7 bins have their centres where every second of the first one's 14 bins has.

    Bin 2i of 14 is read at (2i + 0.5) / 14 of the side, bin i of 7 at (i + 0.5) / 7, which is 1/28 further.
    """
    width, height = rois[:, 2:3] - rois[:, :1], rois[:, 3:] - rois[:, 1:2]
    return rois - torch.cat([width, height, width, height], 1) / 28


def test_every_second_of_14_bins_is_one_of_7():
    features = double(1, 3, 6, 8)
    fine = roi_align(features, [ROIS], 14, 1 / 16, sampling_ratio=1)
    coarse = roi_align(features, [moved(ROIS)], 7, 1 / 16, sampling_ratio=1)
    torch.testing.assert_close(fine[:, :, ::2, ::2], coarse, rtol=1e-10, atol=1e-10)
    assert float((roi_align(features, [ROIS], 7, 1 / 16, sampling_ratio=1) - coarse).abs().max()) > 0.01  # by 1/28


def test_res5_of_stride_2_reads_every_second_bin():
    # The stride is in the first 1x1 and in the shortcut's, which see one cell each: nothing else is ever read.
    config = model_config("R50-C4")
    (halving, channels), (plain, _) = make_res5(config, 2), make_res5(config, 1)
    give_statistics(halving.double())
    plain.double().load_state_dict(halving.state_dict(), strict=True)
    pooled = double(2, 1024, 14, 14)
    with torch.no_grad():
        wanted = plain(pooled[:, :, ::2, ::2])
        assert channels == 2048 and wanted.shape == (2, 2048, 7, 7) and wanted.std() > 0.1
        torch.testing.assert_close(halving(pooled), wanted, rtol=1e-10, atol=1e-10)
        assert float((plain(pooled)[:, :, ::2, ::2] - wanted).abs().max()) > 0.1  # the 3x3s then read all bins


def test_with_the_stride_in_the_3x3_the_two_heads_differ():
    config = model_config("R50-C4", stride_in_1x1=False)
    halving, plain = make_res5(config, 2)[0].double(), make_res5(config, 1)[0].double()
    plain.load_state_dict(halving.state_dict())
    pooled = double(1, 1024, 14, 14)
    with torch.no_grad():
        assert float((halving(pooled) - plain(pooled[:, :, ::2, ::2])).abs().max()) > 0.1


@torch.no_grad()
def test_detectrons_head_and_the_papers_are_one_through_the_model():
    fields = dict(num_classes=5, sampling_ratio=1)
    theirs = build_model("R50-C4", **fields, res5_stride=2, box_pool=14, mask_pool=14).double().eval()
    papers = build_model("R50-C4", **fields).double().eval()
    assert (papers.config.box_pool, papers.config.mask_pool, papers.config.res5_stride) == (7, 7, 1)
    give_statistics(theirs.box_trunk)
    papers.load_state_dict(theirs.state_dict(), strict=True)  # the same names and shapes
    features = [double(1, 1024, 6, 8)]
    for size, rois, wanted in ((14, ROIS, theirs), (7, moved(ROIS), papers)):
        assert wanted.pool(features, [rois], size).shape == (3, 1024, size, size)
    one = theirs.box_predictor(theirs.box_trunk(theirs.pool(features, [ROIS], 14)))
    two = papers.box_predictor(papers.box_trunk(papers.pool(features, [moved(ROIS)], 7)))
    for a, b in zip(one, two, strict=True):
        assert a.std() > 1e-4
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    mine, wanted = theirs.mask_logits(features, [ROIS]), papers.mask_logits(features, [moved(ROIS)])
    assert mine.shape == (3, 5, 14, 14)
    torch.testing.assert_close(mine, wanted, rtol=1e-9, atol=1e-10)


def test_a_tiny_c4_with_detectrons_head_trains_and_detects():
    detector = small("tiny-c4", res5_stride=2, box_pool=14, mask_pool=14)
    trains(detector)
    assert detector.box_trunk(torch.zeros(2, 16, 14, 14)).shape == (2, 16, 7, 7)
    assert detector.box_trunk[0].conv1.stride == (2, 2)


def trains(detector, height=64, width=96):
    """One forward and backward: every loss finite, every part with a gradient; then detections. Returns the losses."""
    losses = detector([image(height, width)], [target(height, width)], seeded(0))
    sum(losses.values()).backward()
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    trained = [(n, p) for n, p in detector.named_parameters() if p.requires_grad]
    assert [n for n, p in trained if p.grad is None or not p.grad.isfinite().all()] == []
    parts = {n.split(".")[0] for n, _ in trained}
    assert {n.split(".")[0] for n, p in trained if p.grad.any()} == parts
    found = detector.eval()([image(height, width)])[0]
    assert found["boxes"].isfinite().all()
    assert {"boxes", "labels", "scores"} <= set(found)
    return losses


# ------------------------------------------------------------------------------------------------- Table 2e: MLP


@pytest.mark.parametrize("layers", [2, 3])
def test_mlp_by_hand(layers):
    head = MLPMaskHead(in_channels=1, size=1, hidden=2, layers=layers, num_classes=2)
    assert len(head.layers) == layers
    with torch.no_grad():
        head.layers[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        head.layers[0].bias.copy_(torch.tensor([0.5, 1.0]))
        for layer in head.layers[1:]:
            layer.weight.copy_(torch.tensor([[2.0, 0.0], [-1.0, 1.0]]))
            layer.bias.copy_(torch.tensor([0.0, 4.0]))
        head.logits.weight.copy_(torch.tensor([[1.0, 0.0]] * 4 + [[0.0, -1.0]] * 4))
        head.logits.bias.copy_(torch.arange(8.0))
    # 3 -> relu(3.5, -2) = (3.5, 0) -> relu(7, -3.5 + 4) = (7, 0.5) -> relu(14, -7 + 0.5 + 4) = (14, 0)
    first, second = {2: (7, 0.5), 3: (14, 0)}[layers]
    wanted = [[[first, first + 1], [first + 2, first + 3]], [[4 - second, 5 - second], [6 - second, 7 - second]]]
    assert head(torch.tensor([[[[3.0]]]])).tolist() == [wanted]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_fully_connected_layer_reads_channel_by_channel(layout):
    # Channels slowest, then rows: how published weights of fc6 are laid out, whatever the map's layout in memory.
    pooled = double(2, 3, 2, 2).contiguous(memory_format=layout)
    trunk, mlp = TwoLayerTrunk(3, 2, 5).double(), MLPMaskHead(3, 2, 5, 2, 4).double()
    for head, first in ((trunk, trunk.fc6), (mlp, mlp.layers[0])):
        seen = []
        first.register_forward_hook(lambda _layer, _inputs, output, seen=seen: seen.append(output))
        head(pooled)
        wanted = torch.einsum("kchw,rchw->rk", first.weight.view(5, 3, 2, 2), pooled) + first.bias
        torch.testing.assert_close(seen[0], wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layers", [2, 3])
def test_the_mlps_of_table_2e(layers):
    with torch.device("meta"):
        config = model_config("R50-FPN", num_classes=81, mask_head="mlp", mask_layers=layers)
        head = make_mask_head(config, 256)
        assert head(torch.zeros(3, 256, 14, 14)).shape == (3, 81, 28, 28)
        assert head(torch.zeros(0, 256, 14, 14)).shape == (0, 81, 28, 28)
    assert [layer.out_features for layer in head.layers] == [1024] * layers
    assert head.layers[0].in_features == 256 * 14 * 14 and head.logits.out_features == 81 * 28 * 28


@pytest.mark.parametrize("name", ["tiny-fpn", "tiny-c5"])
@pytest.mark.parametrize("fields", [dict(mask_layers=2), dict(mask_layers=3, mask_classes="agnostic")], ids=str)
def test_a_detector_with_an_mlp_trains(name, fields):
    detector = small(name, keypoints=0, mask_head="mlp", mask_pool=7, **fields)
    assert isinstance(detector.mask_head, MLPMaskHead) and len(detector.mask_head.layers) == fields["mask_layers"]
    trains(detector)
    assert detector.eval()([image()])[0]["masks"].shape[1:] == (1, 64, 96)


# ------------------------------------------------------------------------------- Table 2b, and one mask for all


def test_one_mask_serves_every_label(generator):
    logits = torch.randn(3, 1, 4, 4, generator=generator)
    targets = torch.rand(3, 4, 4, generator=generator)
    wanted = F.binary_cross_entropy(logits[:, 0].sigmoid(), targets)
    for labels in ([1, 2, 3], [80, 80, 80], [0, 0, 0]):
        torch.testing.assert_close(mask_loss(logits, torch.tensor(labels), targets), wanted)
        assert torch.equal(select_masks(logits, torch.tensor(labels)), logits[:, 0].sigmoid())


@pytest.mark.parametrize("name", ["tiny-fpn", "tiny-c4"])
def test_a_class_agnostic_detector(name):
    agnostic, specific = small(name, mask_classes="agnostic"), small(name)
    assert agnostic.mask_head.logits.out_channels == 1 and specific.mask_head.logits.out_channels == 4
    relabelled = dict(target(), labels=torch.tensor([2, 2]))
    for detector, same in ((agnostic, True), (specific, False)):
        one, two = (detector([image()], [truth], seeded(0))["loss_mask"] for truth in (target(), relabelled))
        assert bool(one == two) == same
    trains(agnostic)
    found = agnostic.eval()([image()])[0]
    assert len(found["masks"]) and found["masks"].shape[1:] == (1, 64, 96)


def test_softmax_loss_by_loops():
    logits, labels = double(2, 3, 2, 2), torch.tensor([2, 1])
    targets = torch.tensor([[[0.5, 0.2], [1.0, 0.0]], [[0.49, 0.9], [0.0, 0.5]]], dtype=torch.float64)
    total = 0.0
    for roi in range(2):
        for y in range(2):
            for x in range(2):
                own = int(labels[roi]) if targets[roi, y, x] >= 0.5 else 0
                odds = logits[roi, :, y, x].exp()
                total -= float((odds[own] / odds.sum()).log())
    assert float(mask_loss(logits, labels, targets, "softmax")) == pytest.approx(total / 8, rel=1e-12)


def test_softmax_masks_compete_and_sigmoid_masks_do_not():
    logits = double(2, 4, 3, 3).float()
    shares = torch.stack([select_masks(logits, torch.full((2,), label), "softmax") for label in range(4)])
    torch.testing.assert_close(shares.sum(0), torch.ones(2, 3, 3))  # all classes and the background
    assert torch.equal(shares[2], logits.softmax(1)[:, 2])
    louder = logits.clone()
    louder[:, 3] += 5
    labels = torch.tensor([1, 2])
    assert (select_masks(louder, labels, "softmax") < select_masks(logits, labels, "softmax")).all()
    assert torch.equal(select_masks(louder, labels), select_masks(logits, labels))
    targets = torch.ones(2, 3, 3)
    assert mask_loss(louder, labels, targets, "softmax") > mask_loss(logits, labels, targets, "softmax")
    assert mask_loss(louder, labels, targets) == mask_loss(logits, labels, targets)


def test_softmax_without_positives_is_a_zero_in_the_graph():
    logits = torch.zeros(0, 4, 3, 3, requires_grad=True)
    loss = mask_loss(logits, torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3, 3), "softmax")
    loss.backward()
    assert loss == 0 and logits.grad is not None


def test_the_configurations_mask_loss_is_used():
    sigmoid, softmax = small(keypoints=0), small(keypoints=0, mask_loss="softmax")
    with torch.no_grad():
        for detector in (sigmoid, softmax):  # every pixel alike: what a mask says is known
            detector.mask_head.logits.weight.zero_()
            detector.mask_head.logits.bias.copy_(torch.tensor([1.0, 3, -2, 3]))
    losses = [d([image()], [target()], seeded(0))["loss_mask"] for d in (sigmoid, softmax)]
    assert losses[0] != losses[1]
    trains(softmax)
    for detector, wanted in (
        (sigmoid, torch.tensor([1.0, 3, -2, 3]).sigmoid()),
        (softmax, torch.tensor([1.0, 3, -2, 3]).softmax(0)),
    ):
        detector.zero_grad()
        found = detector.eval()([image()])[0]
        largest = found["masks"].flatten(1).amax(1)  # inside the box, where it is large enough
        big = ((found["boxes"][:, 2:] - found["boxes"][:, :2]).amin(1) > 8).nonzero()[:, 0]
        assert len(big)
        torch.testing.assert_close(largest[big], wanted[found["labels"][big]].to(largest.dtype), rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------------ keypoint head


def test_keypoint_heads_of_the_paper():
    with torch.device("meta"):
        head = build_model("R50-FPN", 2, keypoints=17).keypoint_head
        assert head(torch.zeros(2, 256, 14, 14)).shape == (2, 17, 56, 56)
    assert [(c.in_channels, c.out_channels, c.kernel_size) for c in head.convs] == [
        (256 if i == 0 else 512, 512, (3, 3)) for i in range(8)
    ]
    assert head.deconv.stride == (2, 2) and head.deconv.kernel_size == (4, 4)


def test_the_deconvolution_is_upsampled_bilinearly():
    # x2, cells' centres kept: a cell of 2n takes 3/4 of the nearest cell of n and 1/4 of the next.
    head = KeypointHead(1, 1, 0, 1)
    x = torch.randn(1, 1, 3, 4)
    small_map = head.deconv(x).detach()[0, 0]  # (6, 8)
    padded = F.pad(small_map[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
    big = head(x).detach()[0, 0]
    assert big.shape == (12, 16)
    for row, column in ((0, 0), (1, 1), (4, 7), (5, 10), (11, 15)):
        near_y, near_x = row // 2 + 1, column // 2 + 1
        far_y, far_x = near_y + (1 if row % 2 else -1), near_x + (1 if column % 2 else -1)
        rows = 0.75 * padded[near_y] + 0.25 * padded[far_y]
        torch.testing.assert_close(big[row, column], 0.75 * rows[near_x] + 0.25 * rows[far_x])


# ------------------------------------------------------------------------------------------- unions, Table 5

UNIONS = {"box": (False, 0), "box+mask": (True, 0), "box+keypoints": (False, 3), "all": (True, 3)}


@pytest.mark.parametrize("name", ["tiny-fpn", "tiny-c4", "tiny-c5"])
def test_unions_of_branches(name):
    # Fewer branches: the same weights, the same samples, the same losses, the same boxes.
    full = small(name)
    state, losses = full.state_dict(), full([image()], [target()], seeded(0))
    boxes = full.eval()([image()])[0]["boxes"]
    for masks, keypoints in UNIONS.values():
        part = small(name, masks=masks, keypoints=keypoints)
        own = part.state_dict()
        gone = ("mask_head.",) * (not masks) + ("keypoint_head.",) * (not keypoints)
        assert own.keys() == {k for k in state if not k.startswith(gone)} if gone else own.keys() == state.keys()
        assert all(torch.equal(value, state[key]) for key, value in own.items())
        truth = target()
        for branch, wanted in (("masks", masks), ("keypoints", keypoints)):
            if not wanted:
                del truth[branch]  # nor is it asked for
        found = part([image()], [truth], seeded(0))
        assert set(found) == LOSSES | ({"loss_mask"} if masks else set()) | ({"loss_keypoint"} if keypoints else set())
        for key, value in found.items():
            torch.testing.assert_close(value, losses[key], rtol=1e-6, atol=1e-7)
        answer = part.eval()([image()])[0]
        assert ("masks" in answer, "keypoints" in answer) == (masks, bool(keypoints))
        assert torch.equal(answer["boxes"], boxes)


# ---------------------------------------------------------------------------------------------- RoI ops, Table 2c

OPS = {
    "pool": dict(roi_op="pool"), "warp": dict(roi_op="warp"), "warp max": dict(roi_op="warp", roi_reduce="max"),
    "align": {}, "align max": dict(roi_reduce="max"), "legacy": dict(roi_aligned=False),
}  # fmt: skip


def test_every_op_by_name_does_what_it_says():
    features, scale = [double(1, 2, 6, 8)], 1 / 16
    rois = torch.tensor([[5.3, 9.1, 70.7, 61.9], [20, 30, 52.5, 77]], dtype=torch.float64)
    wanted = {
        "pool": roi_pool(features[0], [rois], 7, scale),
        "warp": roi_warp(features[0], [rois], 7, scale, 3),
        "align": roi_align(features[0], [rois], 7, scale, 3, True, "mean"),
        "warp max": roi_warp(features[0], [rois], 7, scale, 3, "max"),
        "align max": roi_align(features[0], [rois], 7, scale, 3, True, "max"),
        "legacy": roi_align(features[0], [rois], 7, scale, 3, False, "mean"),
    }
    for name, fields in OPS.items():
        pooled = small("tiny-c4", sampling_ratio=3, **fields).pool(features, [rois], 7)
        assert torch.equal(pooled, wanted[name])
        assert [other for other, value in wanted.items() if torch.equal(value, pooled)] == [name]


@pytest.mark.parametrize("name", OPS)
def test_every_op_trains(name):
    trains(small(**OPS[name]))


# ------------------------------------------------------------------------------- sizes and samples image by image


def test_sizes_are_drawn_for_each_image_from_its_own_generator():
    sizes = (32, 48, 64, 80)
    detector = small(min_size=40, max_size=200, train_min_sizes=sizes)
    images = [image(64, 96, 0), image(50, 40, 1), image(60, 60, 2)]
    drawn = [[min(s) for s in detector.prepare(images, seeded(a, a + 1, a + 2)).sizes] for a in range(20)]
    wanted = [sizes[int(torch.randint(4, (), generator=g))] for g in seeded(*range(22))]
    assert drawn == [wanted[a : a + 3] for a in range(20)]  # its own seed decides, not its place or its neighbours
    assert {size for row in drawn for size in row} == set(sizes)
    shared = torch.Generator().manual_seed(0)
    one_for_all = [min(s) for _ in range(10) for s in detector.prepare(images, [shared] * 3).sizes]
    assert set(one_for_all) == set(sizes)  # one generator goes on: not the same size for a whole batch
    detector.eval()
    assert [min(s) for s in detector.prepare(images, seeded(0, 1, 2)).sizes] == [40, 40, 40]
    assert [min(s) for s in small(min_size=40, max_size=200).prepare(images, seeded(0, 1, 2)).sizes] == [40, 40, 40]


def test_a_step_uses_the_drawn_sizes(monkeypatch):
    detector = small(min_size=40, max_size=200, train_min_sizes=(32, 96))
    seen = []
    extract = detector.extract
    monkeypatch.setattr(detector, "extract", lambda x: seen.append(tuple(x.shape[-2:])) or extract(x))
    for seed in range(8):
        losses = detector([image()], [target()], seeded(seed))
        assert all(loss.isfinite() for loss in losses.values()) and losses["loss_mask"] > 0
    assert set(seen) == {(32, 64), (96, 160)}  # 32 x 48 and 96 x 144, padded
    detector.eval()([image()])
    assert seen[-1] == (64, 64)  # 40 x 60


def test_a_tiny_image_at_the_largest_size_stays_under_the_longest_edge():
    detector = small(min_size=40, max_size=100, train_min_sizes=(90,))
    assert detector.prepare([image(50, 100)], seeded(0)).sizes == [(50, 100)]


def samples_of(monkeypatch, detector, images, generators):
    """The sampled anchors and RoIs of each image in one training step."""
    anchors, rois = [], []

    def watched(function, store):
        def call(*args):
            result = function(*args)
            store.append(result)
            return result

        return call

    with monkeypatch.context() as patch:
        patch.setattr(model, "rpn_targets", watched(model.rpn_targets, anchors))
        patch.setattr(roi_heads, "sample_rois", watched(roi_heads.sample_rois, rois))
        detector(images, [target(*i.shape[-2:]) for i in images], generators)
    return list(zip(anchors, rois, strict=True))


def same(one, two):
    """The same anchors and RoIs; their corners may differ by the rounding of a larger batch."""
    pairs = [pair for x, y in zip(one, two, strict=True) for pair in zip(x, y, strict=True)]
    return all(a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=1e-3) for a, b in pairs)


def test_an_images_samples_do_not_depend_on_its_neighbours(monkeypatch):
    detector = small(rpn_batch=16, roi_batch=6)
    a, b, c = image(seed=0), image(seed=1), image(seed=2)
    alone = samples_of(monkeypatch, detector, [a], seeded(7))[0]
    assert len(alone[0][0]) + len(alone[0][1]) == 16 and len(alone[1][0]) == 6  # something was drawn
    for images, seeds in (([a, b], (7, 8)), ([b, a], (8, 7)), ([c, b, a], (5, 3, 7)), ([a, c], (7, 8))):
        sampled = samples_of(monkeypatch, detector, images, seeded(*seeds))
        assert same(sampled[seeds.index(7)], alone)
    assert not same(samples_of(monkeypatch, detector, [a], seeded(8))[0], alone)
    assert not same(samples_of(monkeypatch, detector, [b, a], torch.Generator().manual_seed(7))[1], alone)


# ------------------------------------------------------------------------------------------ stages of training


@pytest.mark.parametrize("name", ["tiny-fpn", "tiny-c4"])
@pytest.mark.parametrize("min_size", [0, 48])
def test_rpn_and_heads_apart_are_the_whole(name, min_size):
    fields = dict(min_size=min_size, max_size=200, score_threshold=0.2)
    rpn, heads, both = (small(name, stages=stages, **fields).double() for stages in ("rpn", "heads", "both"))
    state = both.state_dict()
    assert {k.split(".")[0] for k in rpn.state_dict()} - {"fpn"} == {"backbone", "rpn"}
    assert {k for k in state if not k.startswith("rpn.")} == set(heads.state_dict())
    for part in (rpn, heads):
        assert all(torch.equal(value, state[key]) for key, value in part.state_dict().items())
    images = [image().double(), image(50, 41, 1).double()]
    truths = [target(), target(50, 41)]
    truths[1]["boxes"] = truths[1]["boxes"].clamp(max=41)
    truths[1]["boxes"][1, 0] = 20.0

    whole = both(images, truths, seeded(0, 1))
    bare = [{k: t[k] for k in ("boxes", "labels")} for t in truths]  # it asks for no masks and no keypoints
    alone = rpn(images, bare, seeded(0, 1))
    assert set(alone) == {"loss_objectness", "loss_rpn_box"}
    for key, value in alone.items():
        torch.testing.assert_close(value, whole[key])

    rpn.eval(), heads.eval(), both.eval()
    proposed, wanted = rpn(images), both(images)
    for p, each in zip(proposed, images, strict=True):
        assert set(p) == {"boxes", "labels", "scores"} and 0 < len(p["boxes"]) <= 40
        assert p["labels"].eq(1).all() and p["labels"].dtype == torch.int64
        assert (p["scores"].diff() <= 0).all() and p["scores"].min() >= 0 and p["scores"].max() <= 1
        height, width = each.shape[-2:]
        assert p["boxes"].min() >= 0
        assert p["boxes"][:, 2].max() <= width + 1e-6 and p["boxes"][:, 3].max() <= height + 1e-6
    found = heads(images, proposals=[p["boxes"] for p in proposed])
    for one, two in zip(found, wanted, strict=True):
        assert one.keys() == two.keys() and len(two["boxes"])
        for key in one:
            torch.testing.assert_close(one[key], two[key], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_proposals_are_scored_by_probability():
    rpn = small(stages="rpn").double().eval()
    before = rpn([image().double()])[0]
    rpn.rpn.objectness.bias += 3
    after = rpn([image().double()])[0]
    torch.testing.assert_close(after["scores"], torch.sigmoid(torch.logit(before["scores"]) + 3))
    torch.testing.assert_close(after["boxes"], before["boxes"])


def test_heads_train_on_given_proposals():
    proposals = [torch.tensor([[9.0, 11, 31, 38], [38, 22, 82, 57], [0, 0, 20, 20], [50, 0, 90, 30]])]
    for fields in ({}, dict(min_size=96, max_size=200)):
        heads = small(stages="heads", **fields)
        given = heads([image()], [target()], seeded(0), proposals)
        assert set(given) == {"loss_classifier", "loss_box", "loss_mask", "loss_keypoint"}
        held = heads([image()], [dict(target(), proposals=proposals[0])], seeded(0))
        assert all(torch.equal(given[k], held[k]) for k in given)
        both = heads([image()], [dict(target(), proposals=proposals[0] + 1e3)], seeded(0), proposals)
        assert all(torch.equal(given[k], both[k]) for k in given)  # the argument wins
        other = heads([image()], [target()], seeded(0), [proposals[0][:2] + 3])
        assert all(given[k] != other[k] for k in given)
        sum(given.values()).backward()
        assert all(p.grad is not None for p in heads.parameters())


def test_proposals_are_scaled_with_their_image(monkeypatch):
    seen, sample_rois = [], roi_heads.sample_rois
    monkeypatch.setattr(roi_heads, "sample_rois", lambda p, *rest: seen.append(p) or sample_rois(p, *rest))
    heads = small(stages="heads", min_size=128, max_size=500)
    heads([image()], [target()], seeded(0), [torch.tensor([[8.0, 10, 30, 40]], requires_grad=True)])
    assert seen[0].tolist() == [[16, 20, 60, 80]] and not seen[0].requires_grad


@pytest.mark.parametrize("fields", [{}, {"mask_head": "mlp"}, {"mask_loss": "softmax"}, {"mask_classes": "agnostic"}])
def test_no_proposals_at_all(fields):
    heads = small(stages="heads", **fields)
    losses = heads([image()], [target()], seeded(0), [torch.zeros(0, 4)])  # the ground truth joins them
    assert all(loss.isfinite() for loss in losses.values()) and losses["loss_mask"] > 0
    found = heads.eval()([image()], proposals=[torch.zeros(0, 4)])[0]
    assert found["boxes"].shape == (0, 4) and found["masks"].shape == (0, 1, 64, 96)


def test_what_stages_refuse():
    heads, boxes = small(stages="heads"), torch.tensor([[1.0, 2, 30, 40]])
    with pytest.raises(ValueError, match="stages 'heads'.*pass proposals, or targets with 'proposals'"):
        heads([image()], [target()], seeded(0))
    with pytest.raises(ValueError, match="stages 'heads'.*pass proposals"):
        heads.eval()([image()])
    with pytest.raises(ValueError, match="2 images and proposals for 1: give one"):
        heads([image(), image()], proposals=[boxes])
    with pytest.raises(ValueError, match=r"image 1: proposals are a tensor of shape \(1, 5\): give \(R, 4\)"):
        heads([image(), image()], proposals=[boxes, torch.zeros(1, 5)])
    with pytest.raises(ValueError, match="image 0: proposal 1 is .*nan.*: give finite numbers"):
        heads([image()], proposals=[torch.cat([boxes, boxes * float("nan")])])
    for stages in ("both", "rpn"):
        with pytest.raises(ValueError, match=f"proposals are given, but stages is '{stages}'"):
            small(stages=stages).eval()([image()], proposals=[boxes])


# --------------------------------------------------------------------------------------- channels_last, and a step


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("tiny-fpn", {}),
        ("tiny-fpn", {"mask_head": "mlp", "norm": "batch"}),
        ("tiny-fpn", {"mask_loss": "softmax", "roi_op": "pool"}),
        ("tiny-c4", {"mask_classes": "agnostic"}),
        ("tiny-c4", {"res5_stride": 2, "box_pool": 14, "mask_pool": 14, "roi_op": "warp"}),
        ("tiny-c5", {}),
    ],
    ids=str,
)
def test_channels_last_changes_no_loss_and_no_gradient(name, fields):
    plain, last = small(name, **fields).double(), small(name, **fields).double()
    last = last.to(memory_format=torch.channels_last)
    images, truths = [image().double(), image(64, 70, 1).double()], [target(), target(64, 70)]
    truths[1]["boxes"] = truths[1]["boxes"].clamp(max=70)
    with torch.no_grad():
        layout = last.extract(last.prepare(images, [None, None]).images)[0]
    assert layout.is_contiguous(memory_format=torch.channels_last) and not layout.is_contiguous()
    wanted, losses = plain(images, truths, seeded(0, 1)), last(images, truths, seeded(0, 1))
    assert set(losses) == LOSSES | {"loss_mask", "loss_keypoint"}
    for key, value in losses.items():
        assert value > 0
        torch.testing.assert_close(value, wanted[key], rtol=1e-9, atol=1e-11)
    sum(wanted.values()).backward()
    sum(losses.values()).backward()
    gradients = dict(plain.named_parameters())
    for key, parameter in last.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[key].grad, rtol=1e-7, atol=1e-9, msg=key)


def test_a_tiny_c5_trains_a_step():
    trains(small("tiny-c5"))


def test_a_resnet_18_trains_a_step():
    detector = build_model("R18-FPN", 4, keypoints=3, min_size=0, box_hidden=32, mask_channels=16, keypoint_channels=16)
    frozen = {n: p.clone() for n, p in detector.named_parameters() if not p.requires_grad}
    assert frozen and all(n.startswith(("backbone.stem.", "backbone.stages.0.")) for n in frozen)
    optimizer = torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], lr=1e-4)
    before = sum(trains(detector).values())
    optimizer.step()
    assert sum(detector.train()([image()], [target()], seeded(0)).values()) < before
    assert all(torch.equal(p, frozen[n]) for n, p in detector.named_parameters() if n in frozen)


@torch.no_grad()
def test_a_resnet_50_answers():
    detector = build_model("R50-FPN", 4, keypoints=2, min_size=0, score_threshold=0.0, detections_per_image=3).eval()
    found = detector([image(64, 64)])[0]
    assert found["boxes"].shape == (3, 4) and found["masks"].shape == (3, 1, 64, 64)
    assert found["keypoints"].shape == (3, 2, 3) and all(value.isfinite().all() for value in found.values())


@pytest.mark.parametrize("fields", [{"mask_head": "mlp"}, {"mask_loss": "softmax"}, {"mask_classes": "agnostic"}])
def test_images_without_objects_train(fields):
    detector = small(**fields)
    nothing = {name: value[:0] for name, value in target().items()}
    losses = detector([image()], [nothing], seeded(0))
    sum(losses.values()).backward()
    assert losses["loss_mask"] == 0 and all(loss.isfinite() for loss in losses.values())
    assert [n for n, p in detector.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
