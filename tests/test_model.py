"""The whole model: what must stay the same when the batch, the place, the seed or a branch changes."""

import pytest
import torch

from mrcnn_scratch import ShapesDataset, build_model
from mrcnn_scratch.rpn import propose

SMALL = dict(
    widths=(8, 8, 16, 16), fpn_channels=16, box_hidden=32, mask_channels=16, mask_convs=1, keypoint_channels=16,
    keypoint_convs=1, rpn_batch=2000, rpn_pre_nms_train=60, rpn_pre_nms_test=60, rpn_post_nms_train=40,
    rpn_post_nms_test=40,
)  # fmt: skip
LOSSES = {"loss_objectness", "loss_rpn_box", "loss_classifier", "loss_box", "loss_mask", "loss_keypoint"}


def small(name="tiny-fpn", num_classes=4, keypoints=3, **fields):
    fields = {k: v for k, v in SMALL.items()} | fields
    return build_model(name, num_classes, keypoints=keypoints, **fields)


def image(height=64, width=96, seed=0):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def target(height=64, width=96, empty=False):
    masks = torch.zeros(2, height, width, dtype=torch.uint8)
    masks[0, 10:40, 8:30], masks[1, 20:60, 40:80] = 1, 1
    full = {
        "boxes": torch.tensor([[8.0, 10, 30, 40], [40, 20, 80, 60]]),
        "labels": torch.tensor([1, 3]),
        "masks": masks,
        "keypoints": torch.tensor([[[10.5, 12.5, 2], [20, 30, 1], [0, 0, 0]], [[50, 40, 2], [60, 50, 2], [0, 0, 0]]]),
        "iscrowd": torch.tensor([0, 0]),
    }
    return {name: value[:0] for name, value in full.items()} if empty else full


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


ARMS = [
    dict(name="tiny-fpn"), dict(name="tiny-c4"), dict(name="tiny-fpn", roi_op="pool"),
    dict(name="tiny-c4", roi_op="warp"),
    dict(name="tiny-fpn", roi_op="warp", roi_reduce="max"), dict(name="tiny-fpn", keypoints=0),
    dict(name="tiny-fpn", masks=False), dict(name="tiny-c4", masks=False, keypoints=0),
    dict(name="tiny-fpn", norm="group"), dict(name="tiny-c4", norm="frozen", min_size=48, max_size=80),
    dict(name="tiny-fpn", conventions="torchvision"), dict(name="tiny-c4", conventions="detectron2"),
]  # fmt: skip


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: "-".join(map(str, arm.values())))
def test_every_arm_trains_and_detects(arm):
    model = small(**arm)
    losses = model([image(), image(50, 40, 1)], [target(), target(50, 40, empty=True)], seeded())
    wanted = (
        LOSSES
        - (set() if model.config.masks else {"loss_mask"})
        - (set() if model.config.keypoints else {"loss_keypoint"})
    )
    assert set(losses) == wanted
    assert all(loss.dim() == 0 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert [n for n, p in model.named_parameters() if not p.grad.any() and "deltas" not in n] == []  # all learn

    model.eval()
    sizes = [(64, 96), (50, 41)]
    for found, (height, width) in zip(model([image(*s) for s in sizes]), sizes, strict=True):
        D = len(found["scores"])
        assert 0 < D <= 100
        assert found["boxes"].shape == (D, 4) and found["labels"].shape == (D,)
        assert found["labels"].min() >= 1 and found["labels"].max() <= 3
        assert torch.equal(found["scores"], found["scores"].sort(descending=True).values)
        assert found["boxes"].min() >= 0
        assert found["boxes"][:, 2].max() <= width + 1e-3 and found["boxes"][:, 3].max() <= height + 1e-3
        assert ("masks" in found) == model.config.masks and ("keypoints" in found) == bool(model.config.keypoints)
        if model.config.masks:
            assert found["masks"].shape == (D, 1, height, width)
            assert found["masks"].min() >= 0 and found["masks"].max() <= 1
        if model.config.keypoints:
            assert found["keypoints"].shape == (D, 3, 3) and found["keypoints_scores"].shape == (D, 3)
            assert found["keypoints"][..., 2].eq(1).all()


@pytest.mark.parametrize("name", ["tiny-fpn", "tiny-c4"])
def test_images_without_objects_train(name):
    # Every parameter keeps a gradient, or distributed training hangs; and no statistic becomes NaN.
    model = small(name)
    losses = model([image(), image(40, 50)], [target(empty=True), target(40, 50, empty=True)], seeded())
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert {k for k, v in losses.items() if v == 0} == {"loss_rpn_box", "loss_box", "loss_mask", "loss_keypoint"}
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert [n for n, b in model.named_buffers() if not b.isfinite().all()] == []


def test_an_image_with_nothing_but_a_crowd_trains():
    crowd = target()
    crowd["iscrowd"] = torch.tensor([1, 1])
    losses = small()([image()], [crowd], seeded())
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_mask"] == 0 and losses["loss_box"] == 0 and losses["loss_rpn_box"] == 0


def test_objects_without_labelled_keypoints_train():
    blank = target()
    blank["keypoints"] = torch.zeros(2, 3, 3)
    losses = small()([image()], [blank], seeded())
    assert losses["loss_keypoint"] == 0 and losses["loss_mask"] > 0


# ---------------------------------------------------------------------------------------------- seeds and arms


def test_a_generator_fixes_the_losses_and_the_global_stream_has_no_part():
    model = small(norm="frozen", rpn_batch=16, roi_batch=4)
    torch.manual_seed(1)
    first = model([image()], [target()], seeded(5))
    torch.manual_seed(2)
    again = model([image()], [target()], seeded(5))
    other = model([image()], [target()], seeded(6))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


def weights(model):
    return model.state_dict()


def test_arms_that_differ_in_the_roi_op_start_from_the_same_weights():
    one = weights(small(roi_op="align"))
    for op in ("warp", "pool"):
        two = weights(small(roi_op=op))
        assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_a_branch_more_changes_no_other_parts_weights():
    bare = weights(small(masks=False, keypoints=0))
    for fields in (dict(keypoints=0), dict(masks=False), dict(num_classes=4), dict(keypoints=5, mask_convs=2)):
        more = weights(small(**fields))
        assert more.keys() >= bare.keys()
        assert all(torch.equal(bare[k], more[k]) for k in bare)


def test_the_seed_decides_and_the_global_stream_is_left_alone():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    one = weights(small(seed=1))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    same, other = weights(small(seed=1)), weights(small(seed=2))
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not torch.equal(one["rpn.conv.weight"], other["rpn.conv.weight"])


def test_parts_have_streams_of_their_own():
    # mask and keypoint convolutions of equal shape must not be twins
    state = weights(small())
    assert not torch.equal(state["mask_head.convs.0.weight"], state["keypoint_head.convs.0.weight"])


# ---------------------------------------------------------------------------------------------- gradients


def test_the_heads_send_no_gradient_into_the_rpn():
    # RoI layers differentiate with respect to features, not boxes (approximate joint training).
    model = small(box_beta=1.0)
    losses = model([image()], [target()], seeded())
    heads = [v for k, v in losses.items() if k not in ("loss_objectness", "loss_rpn_box")]
    rpn = list(model.rpn.parameters())
    assert all(g is None for g in torch.autograd.grad(sum(heads), rpn, allow_unused=True, retain_graph=True))
    backbone = torch.autograd.grad(sum(heads), list(model.backbone.parameters()), retain_graph=True)
    assert all(g.any() for g in backbone)  # but they do teach the features
    for name in ("loss_mask", "loss_keypoint", "loss_classifier"):
        (gradient,) = torch.autograd.grad(losses[name], [model.backbone.stem[0].weight], retain_graph=True)
        assert gradient.any(), name


def test_a_step_down_the_gradient_lowers_the_loss():
    model = small(norm="frozen")
    before = sum(model([image()], [target()], seeded()).values())
    before.backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= 1e-3 * p.grad
    assert sum(model([image()], [target()], seeded()).values()) < before


@pytest.mark.parametrize("name", ["tiny-fpn", "tiny-c4"])
def test_double_precision(name):
    model = small(name).double()
    images, truth = [image().double()], [target()]
    losses = model(images, truth, seeded())
    assert all(loss.dtype == torch.float64 for loss in losses.values())
    sum(losses.values()).backward()
    single = small(name)([image()], truth, seeded())
    for key in losses:
        torch.testing.assert_close(single[key].double(), losses[key], rtol=2e-3, atol=2e-3)
    found = model.eval()(images)[0]
    assert found["boxes"].dtype == found["masks"].dtype == torch.float64 or found["masks"].dtype == torch.float32


def test_targets_of_other_dtypes():
    model = small()
    truth = target()
    plain = model([image()], [truth], seeded())
    other = dict(
        truth, boxes=truth["boxes"].double(), keypoints=truth["keypoints"].double(), masks=truth["masks"].bool()
    )
    for key, value in model([image()], [other], seeded()).items():
        torch.testing.assert_close(value, plain[key], rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------------------------------- batches


def proposals_of(model, images):
    """Proposals of each image, in pixels of the batch."""
    from mrcnn_scratch.preprocess import batch_images

    config = model.config
    batch = batch_images(images, config.min_size, config.max_size, config.mean, config.std)
    features = model.extract(batch.images)
    return propose(*model.rpn(features), model.anchors(features), batch.sizes, config, False)


def assert_same_detections(one, two):
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize(
    "fields", [dict(name="tiny-fpn"), dict(name="tiny-c4"), dict(name="tiny-fpn", min_size=48, max_size=72)]
)
@torch.no_grad()
def test_an_image_is_answered_alike_alone_and_in_a_batch_of_other_sizes(fields):
    # Batch norm in eval, top-k per image, clipping to the unpadded size: neighbours have no influence.
    model = small(**fields).eval()
    images = [image(64, 96, 0), image(50, 41, 1), image(61, 70, 2), image(33, 96, 3)]
    alone_proposals, alone = proposals_of(model, images[:1])[0], model(images[:1])[0]
    torch.testing.assert_close(proposals_of(model, images)[0], alone_proposals, atol=1e-4, rtol=1e-4)
    assert_same_detections(model(images)[0], alone)
    # a smaller one, too, whatever its neighbour shows, where the batch is as large
    shifted = [images[0].flip(2), images[1]]
    torch.testing.assert_close(
        proposals_of(model, images[:2])[1], proposals_of(model, shifted)[1], atol=1e-4, rtol=1e-4
    )
    assert_same_detections(model(images[:2])[1], model(shifted)[1])
    reverse = model(images[::-1])
    assert_same_detections(reverse[-1], alone)


@torch.no_grad()
def test_boxes_stay_inside_their_own_image():
    model = small(score_threshold=0.0).eval()
    for found, (height, width) in zip(model([image(64, 96), image(33, 41)]), [(64, 96), (33, 41)], strict=True):
        assert found["boxes"][:, 2].max() <= width and found["boxes"][:, 3].max() <= height
        assert found["masks"].shape[-2:] == (height, width)


@torch.no_grad()
def test_a_resized_image_is_answered_in_its_own_pixels():
    # The same picture at twice the size is resized to the same batch: boxes, masks and keypoints are twice as large.
    model = small(min_size=64, max_size=200, keypoints=3).eval()
    picture = image(32, 48)
    twice = picture.repeat_interleave(2, 1).repeat_interleave(2, 2)
    small_one, large_one = model([picture])[0], model([twice])[0]
    assert small_one["masks"].shape[-2:] == (32, 48) and large_one["masks"].shape[-2:] == (64, 96)
    assert small_one["boxes"][:, 2].max() <= 48 + 1e-4 and large_one["boxes"][:, 2].max() > 60
    inside = small_one["boxes"] / torch.tensor([48, 32, 48, 32])
    assert inside.max() <= 1 + 1e-6
    points = large_one["keypoints"][..., :2]
    lower, upper = large_one["boxes"][:, None, :2], large_one["boxes"][:, None, 2:]
    assert ((points >= lower) & (points <= torch.maximum(upper, lower + 1))).all()


def test_targets_are_resized_with_their_image():
    # What the model does to a picture and its target, done by hand beforehand: the same losses.
    picture, truth = image(32, 48), {k: v for k, v in target(32, 48).items()}
    truth["boxes"] = truth["boxes"] / 2
    truth["keypoints"] = truth["keypoints"] * torch.tensor([0.5, 0.5, 1])
    twice = torch.nn.functional.interpolate(picture[None], size=(64, 96), mode="bilinear", align_corners=False)[0]
    larger = dict(
        truth,
        boxes=truth["boxes"] * 2,
        keypoints=truth["keypoints"] * torch.tensor([2.0, 2, 1]),
        masks=truth["masks"].repeat_interleave(2, 1).repeat_interleave(2, 2),
    )
    resized = small(norm="frozen", min_size=64, max_size=200)([picture], [truth], seeded())
    by_hand = small(norm="frozen")([twice], [larger], seeded())
    for key in by_hand:
        torch.testing.assert_close(resized[key], by_hand[key], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_masks_and_keypoints_are_read_from_the_refined_boxes():
    # Not from the proposals, and of the detections that are left, not of all RoIs.
    model = small(min_size=128, max_size=400).eval()
    model.box_predictor.bbox_pred.bias.fill_(0.7)  # refined boxes are elsewhere
    seen = []
    for branch in ("mask_logits", "keypoint_logits"):
        inner = getattr(model, branch)

        def spy(features, rois, *labels, inner=inner):
            seen.append(rois)
            return inner(features, rois, *labels)

        setattr(model, branch, spy)
    found = model([image(), image(32, 50, 1)])
    for rois in seen:
        for mine, detection in zip(rois, found, strict=True):
            scale = torch.tensor([2.0, 2, 2, 2]) if detection is found[0] else torch.tensor([200 / 50, 4, 200 / 50, 4])
            torch.testing.assert_close(mine, detection["boxes"] * scale, atol=1e-3, rtol=1e-4)
    assert len(seen) == 2


# ---------------------------------------------------------------------------------------------- equivariance


@pytest.fixture(scope="module")
def moved():
    """A model, and one picture at two places 32 pixels right and 64 down, on a canvas of the mean colour."""
    model = small(
        keypoints=0, norm="batch", masks=True, rpn_pre_nms_test=60, rpn_post_nms_test=60, score_threshold=0.0
    ).eval()
    with torch.no_grad():
        for name, buffer in model.named_buffers():  # statistics that are not 0 and 1
            if "running" in name:
                buffer.uniform_(0.8, 1.2, generator=seeded(1)) if "var" in name else buffer.uniform_(
                    -0.1, 0.1, generator=seeded(2)
                )
        # objectness is 0 where a feature is 0, and positive on the content: the content is what gets proposed
        model.rpn.objectness.weight.abs_()
    mean = torch.tensor(model.config.mean)[:, None, None]
    content = image(64, 64, 7)
    pictures = []
    for top, left in [(288, 320), (352, 352)]:
        canvas = mean.expand(3, 640, 704).clone()
        canvas[:, top : top + 64, left : left + 64] = content
        pictures.append(canvas)
    return model, pictures


@torch.no_grad()
def test_features_move_with_the_picture(moved):
    # By the coarsest stride, or a multiple: any padding or offset that is off by a pixel shows up here.
    model, pictures = moved
    shift = torch.tensor([64, 32])
    normal = [
        (p - torch.tensor(model.config.mean)[:, None, None]) / torch.tensor(model.config.std)[:, None, None]
        for p in pictures
    ]
    one, two = (model.extract(x[None]) for x in normal)
    for before, after, stride in zip(one, two, model.config.strides, strict=True):
        down, right = (shift // stride).tolist()
        edge = 192 // stride  # further in than the border reaches
        H, W = before.shape[-2:]
        inner = before[..., edge : H - edge - down, edge : W - edge - right]
        same = after[..., edge + down : H - edge, edge + right : W - edge]
        assert inner.numel() > 0
        torch.testing.assert_close(inner, same, atol=1e-4, rtol=1e-4)
        assert float((inner - inner.mean()).abs().max()) > 0.1  # there is something to see


@torch.no_grad()
def test_detections_move_with_the_picture(moved):
    model, pictures = moved
    one, two = model([pictures[0]])[0], model([pictures[1]])[0]
    assert len(one["scores"]) == len(two["scores"]) > 10
    torch.testing.assert_close(one["boxes"] + torch.tensor([32.0, 64, 32, 64]), two["boxes"], atol=1e-2, rtol=1e-4)
    assert torch.equal(one["labels"], two["labels"])
    torch.testing.assert_close(one["scores"], two["scores"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(one["masks"][..., :-64, :-32], two["masks"][..., 64:, 32:], atol=1e-3, rtol=1e-3)


# ---------------------------------------------------------------------------------------------- errors


def test_errors_come_before_any_computation():
    model = small()
    with pytest.raises(ValueError, match="image 1 has dtype torch.uint8"):
        model([image(), (image() * 255).byte()], [target(), target()])
    with pytest.raises(ValueError, match=r"targets is None: pass targets, or call model.eval\(\)"):
        model([image()])
    with pytest.raises(ValueError, match="image 0: label 1 is 3: labels run from 1 to 2"):
        small(num_classes=3)([image()], [target()])
    with pytest.raises(ValueError, match="1 images and 2 generators: give one, or one for each image"):
        model([image()], [target()], [seeded(), seeded()])
    with pytest.raises(ValueError, match="no field 'score_thresold': did you mean 'score_threshold'"):
        small(score_thresold=1)
    assert small(masks=False, keypoints=0)([image()], [{"boxes": target()["boxes"], "labels": target()["labels"]}])


def test_images_of_another_float_type_are_cast_to_the_weights():
    model = build_model("tiny-fpn", num_classes=3, score_threshold=0.0).eval()
    image = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        single, double, half = (model([image.to(dtype)])[0] for dtype in (torch.float32, torch.float64, torch.float16))
    assert single["boxes"].dtype == double["boxes"].dtype == half["boxes"].dtype == torch.float32
    assert torch.equal(single["boxes"], double["boxes"])


@pytest.mark.parametrize("conventions", ["paper", "torchvision"])
def test_gradients_do_not_depend_on_how_threads_interleave(conventions):
    """Added up in any order, gradients would differ in their last bits from run to run, and no resume be exact."""
    data = ShapesDataset("demo", 4)
    model = build_model("tiny-fpn", data.num_classes, keypoints=17, conventions=conventions).train()
    images, targets = zip(*(data[i] for i in range(4)), strict=True)
    threads, first = torch.get_num_threads(), None
    torch.set_num_threads(2)
    try:
        for _ in range(8):
            model.zero_grad()
            generators = [torch.Generator().manual_seed(i) for i in range(4)]
            sum(model(list(images), list(targets), generators).values()).backward()
            found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
            first = first or found
            assert [name for name in found if not torch.equal(found[name], first[name])] == []
    finally:
        torch.set_num_threads(threads)
