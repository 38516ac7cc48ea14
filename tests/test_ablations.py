"""The ablation lab's arms: paired by seed, measured alike, and in the paper's order."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from command import mrcnn

from mrcnn_scratch.ablations import TABLES, load_table
from mrcnn_scratch.ablations.cells import in_cells, model_cells, spread
from mrcnn_scratch.ablations.geometry import Geometry, bias_and_jitter, oracle, pooling, ramp
from mrcnn_scratch.ablations.measures import GRID, ErrorMap, example
from mrcnn_scratch.ablations.oracle import OracleNet, answers, jitter, mask_ious, similarities
from mrcnn_scratch.ablations.oracle_runs import Oracle, shapes
from mrcnn_scratch.ablations.plan import EQUAL, MORE, Arm, Comparison, Part, Table, frozen
from mrcnn_scratch.ablations.runs import Options, planned
from mrcnn_scratch.presets import model_config
from mrcnn_scratch.roi_ops import roi_warp
from mrcnn_scratch.training import TrainConfig

SHORT = Oracle(train_images=8, val_images=4, train=TrainConfig(steps=3, batch_size=2, log_every=1))
POOL, ALIGN = Arm("pool", frozen(roi_op="pool")), Arm("align", frozen())


def recorded(monkeypatch, arm: Arm, seed: int, tier: Oracle = SHORT) -> list:
    """Images, targets and RoIs of every step of a run."""
    seen, forward, loss = [], OracleNet.forward, OracleNet._mask_loss

    def watch_forward(self, images, targets, generators=None):
        seen.append((torch.stack(images), [t["image_id"] for t in targets]))
        return forward(self, images, targets, generators)

    def watch_loss(self, features, rois, matched, targets):
        seen.append((torch.cat(rois), torch.cat(matched)))
        return loss(self, features, rois, matched, targets)

    monkeypatch.setattr(OracleNet, "forward", watch_forward)
    monkeypatch.setattr(OracleNet, "_mask_loss", watch_loss)
    tier.run(arm, seed)
    monkeypatch.undo()
    return seen


def same(a, b) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_arms_that_differ_in_the_roi_op_begin_and_see_the_same(monkeypatch):
    """The initial weights, the images, the flips and the jittered RoIs of every step; another seed changes them all."""
    weights = [SHORT.net(arm, seed).state_dict() for arm, seed in ((POOL, 0), (ALIGN, 0), (ALIGN, 1))]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[1]["mask_head.deconv.weight"], weights[2]["mask_head.deconv.weight"])
    pool, align, other = (recorded(monkeypatch, arm, seed) for arm, seed in ((POOL, 0), (ALIGN, 0), (ALIGN, 1)))
    assert len(pool) == len(align) == 6
    for left, right in zip(pool, align, strict=True):
        assert all(same(a, b) for a, b in zip(left, right, strict=True))
    assert not torch.equal(align[0][0], other[0][0])


def test_a_head_of_another_shape_leaves_the_backbone_as_it_was():
    fcn, mlp = (SHORT.net(Arm(head, frozen(mask_head=head)), 3).backbone.state_dict() for head in ("fcn", "mlp"))
    assert all(torch.equal(fcn[name], mlp[name]) for name in fcn)
    near, far = (SHORT.net(Arm("", frozen(), stride), 3).backbone.state_dict() for stride in (8, 32))
    assert len(near) < len(far) and all(torch.equal(near[name], far[name]) for name in near)


def test_validation_rois_are_the_same_for_all_arms_and_seeds():
    data = shapes("large", 4, "val", None)
    boxes = [
        torch.cat([answer.boxes for _, _, answer in answers(SHORT.net(arm, seed), data)])
        for arm, seed in ((POOL, 0), (ALIGN, 5), (Arm("", frozen(), 32), 1))
    ]
    assert torch.equal(boxes[0], boxes[1]) and torch.equal(boxes[0], boxes[2])
    truth = torch.cat([data[i][1]["boxes"] for i in range(4)])
    moved = (boxes[0] - truth).abs() / (truth[:, 2:] - truth[:, :2]).repeat(1, 2)
    assert 0 < moved.min() and moved.max() <= 0.1 + 1e-6 and moved.max() > 0.05


def test_sizes_in_cells_by_hand():
    boxes = torch.tensor([[0.0, 0, 32, 32], [0, 0, 16, 64], [10, 10, 110, 110]])
    assert in_cells(boxes, 16).tolist() == [2, 2, 6.25]
    c4 = model_config("tiny-c4", min_size=256, max_size=1000)  # 128 x 128 becomes 256 x 256
    assert model_cells(boxes, (128, 128), c4).tolist() == [4, 4, 12.5]
    large = boxes[2:].repeat(5, 1) * torch.tensor([[0.5], [1], [2.25], [4.5], [9]])  # 50, 100, 225, 450, 900 pixels
    fpn = model_config("tiny-fpn")
    assert model_cells(large, (999, 999), fpn).tolist() == [50 / 4, 100 / 4, 225 / 16, 450 / 32, 900 / 32]
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0]) == [2, 6, 10] and spread([]) == []


def test_sizes_on_photographs_are_of_the_recipes_classes_and_size(tmp_path):
    assert mrcnn("data", "make", tmp_path, "--train", 2, "--val", 6) == 0
    sizes = {}
    for name in ("table2c", "table6"):
        table = load_table(name)
        tier, arm = planned(table, table.real[0].name, Options(data=str(tmp_path)))
        sizes[name] = (tier.cells(arm), model_config(tier.config).strides)
    content = json.loads((tmp_path / "annotations" / "instances_val.json").read_text())
    heights = {image["id"]: min(image["height"], image["width"]) for image in content["images"]}
    names = {category["id"]: category["name"] for category in content["categories"]}
    plain = [a for a in content["annotations"] if not a["iscrowd"]]
    persons = [a for a in plain if names[a["category_id"]] == "person"]
    assert 0 < len(persons) == len(sizes["table6"][0]) < len(plain) == len(sizes["table2c"][0])
    box = plain[0]["bbox"]
    edge = (box[2] * box[3]) ** 0.5 * 800 / heights[plain[0]["image_id"]]
    assert sizes["table2c"][0][0] == pytest.approx(edge / 16, rel=0.01) and sizes["table2c"][1] == (16,)


def test_jitter_moves_each_edge_by_its_own_share():
    boxes = torch.tensor([[10.0, 20, 60, 120]]).repeat(2000, 1)
    moved = jitter(boxes, 0.1, torch.Generator().manual_seed(0)) - boxes
    limits = torch.tensor([5.0, 10, 5, 10])
    assert (moved.abs() <= limits).all()
    torch.testing.assert_close(moved.std(dim=0), limits / 3**0.5, rtol=0.05, atol=0)  # evenly distributed
    assert np.abs(np.corrcoef(moved.T) - np.eye(4)).max() < 0.1
    assert torch.equal(jitter(boxes, 0.0, None), boxes)


@pytest.mark.parametrize("head", ["mask", "keypoints"])
def test_a_perfect_answer_scores_one(head):
    data = shapes("demo", 3, "val", ("person",))
    tier = replace(SHORT, preset="demo", classes=("person",), head=head, val_images=3)
    for _, target, answer in answers(tier.net(ALIGN, 0), data):
        perfect = {"masks": target["masks"][answer.objects].bool()}
        if head == "keypoints":
            perfect = {"masks": None, "keypoints": target["keypoints"][answer.objects]}
        assert similarities(replace(answer, **perfect), target) == [1.0] * len(answer.objects)
        assert all(0 <= value < 1 for value in similarities(answer, target))


def test_crowds_are_not_asked_for():
    data = shapes("large", 3, "val", None).with_crowds(1)
    net = SHORT.net(ALIGN, 0)
    asked = [(target["iscrowd"][answer.objects], target["iscrowd"]) for _, target, answer in answers(net, data)]
    assert any(every.any() for _, every in asked) and not any(of_answer.any() for of_answer, _ in asked)


def test_iou_by_hand():
    found, truth = torch.zeros(3, 4, 4, dtype=torch.bool), torch.zeros(3, 4, 4, dtype=torch.uint8)
    found[0, :2], truth[0, 1:3] = True, 1  # 4 of 12 pixels shared
    truth[1, 0, 0] = 1
    assert mask_ious(found, truth).tolist() == [pytest.approx(1 / 3), 0.0, 0.0]


# ---- Tier 0


def test_the_ramp_tells_bias_from_jitter():
    """RoIAlign reads where a bin is; legacy RoIAlign always half a cell further; RoIPool differently for each RoI."""
    boxes = torch.rand(200, 4, generator=torch.Generator().manual_seed(0)) * 20
    boxes += torch.tensor([20.0, 20, 90, 90])
    found = {
        name: bias_and_jitter(ramp(boxes, (128, 128), pooling(Arm(name, frozen(**fields))), 16))
        for name, fields in {
            "align": {}, "legacy": {"roi_aligned": False}, "pool": {"roi_op": "pool"}, "warp": {"roi_op": "warp"}
        }.items()
    }  # fmt: skip
    assert found["align"] == pytest.approx((0, 0), abs=1e-3)
    assert found["legacy"] == pytest.approx((8, 0), abs=1e-3)
    assert 6 < found["pool"][0] < 10 and found["pool"][1] > 3
    assert found["warp"][1] > 2


def test_bias_and_jitter_by_hand():
    errors = torch.tensor([[1.0, 3.0], [3.0, 7.0]])  # bins differ by 1 and by 2 from their means
    assert bias_and_jitter(errors) == (3.5, 1.5)


def test_the_oracle_returns_a_mask_that_the_grid_can_hold():
    """A box of whole cells comes back whole; RoIPool, which reads cells on both sides of an edge, makes it larger."""
    masks, boxes = torch.zeros(1, 64, 64), torch.tensor([[8.0, 8, 56, 56]])
    masks[:, 16:48, 16:48] = 1
    back = oracle(masks, boxes, pooling(ALIGN), 4) >= 0.5
    assert mask_ious(back, masks)[0] > 0.97
    assert mask_ious(oracle(masks, boxes, pooling(POOL), 4) >= 0.5, masks)[0] < 0.9


def test_geometry_is_in_the_papers_order_at_every_stride():
    tier = Geometry(images=25)
    for stride in (4, 8, 16):
        ops = {"pool": {"roi_op": "pool"}, "warp": {"roi_op": "warp"}, "align": {}, "max": {"roi_reduce": "max"}}
        found = {n: tier.run(Arm(n, frozen(**f), stride), 0)["measures"]["mask AP*"] for n, f in ops.items()}
        assert min(found["align"], found["max"]) > 0.2 + max(found["pool"], found["warp"]), stride
    one, again, other = (tier.run(ALIGN, seed)["measures"] for seed in (0, 0, 1))
    assert one == again and one["mask AP*"] != other["mask AP*"]
    with pytest.raises(ValueError, match="none of 25 images has objects of"):
        replace(tier, size=(100.0, 200.0)).run(ALIGN, 0)


def test_mncs_sampler_is_the_ops_own():
    """The field of the configuration reaches the op."""
    features, boxes = torch.rand(1, 2, 8, 8), [torch.tensor([[10.0, 12, 70, 90]])]
    literal = pooling(Arm("", frozen(roi_op="warp", warp_sampler="mnc")))(features, boxes, 7, 1 / 16)
    assert torch.equal(literal, roi_warp(features, boxes, 7, 1 / 16, sampler="mnc"))
    assert not torch.equal(literal, pooling(Arm("", frozen(roi_op="warp")))(features, boxes, 7, 1 / 16))


# ---- what is kept for the pictures


def test_the_error_map_has_wrong_pixels_where_they_are():
    """An object of 40 x 40 whose left half is missed: wrong in the left half of its box, right everywhere else."""
    truth = torch.zeros(1, 100, 100, dtype=torch.bool)
    truth[:, 30:70, 20:60] = True
    found = truth.clone()
    found[:, :, 20:40] = False
    errors = ErrorMap()
    errors.add(found, truth, torch.tensor([[20.0, 30, 60, 70]]))
    wrong = np.asarray(errors.mean())  # the box takes the middle two thirds
    low, middle, high = round(GRID / 6), GRID // 2, round(GRID * 5 / 6)
    assert (wrong[low + 1 : high - 1, low + 1 : middle - 1] == 1).all()
    assert wrong[:, middle + 1 :].max() == 0 and wrong[: low - 1].max() == 0
    errors.add(truth, truth, torch.tensor([[20.0, 30, 60, 70]]))
    assert np.asarray(errors.mean())[middle, low + 2] == 0.5  # of two objects one


def test_an_example_is_the_crop_around_its_box():
    from mrcnn_scratch.visualize.ablations import _pixels

    image = torch.rand(3, 50, 60)
    truth, found = torch.zeros(2, 50, 60, dtype=torch.bool)
    truth[10:30, 20:40], found[12:30, 20:40] = True, True
    kept = example(image, truth, found, torch.tensor([20.0, 10, 40, 30]), 0.9)
    assert _pixels(kept["image"]).shape == (31, 31, 3)  # 20 pixels and 5 on either side, to whole pixels
    np.testing.assert_allclose(_pixels(kept["image"]) / 255, image[:, 5:36, 15:46].permute(1, 2, 0), atol=0.003)
    assert (_pixels(kept["truth"]) > 0).sum() == 400 and (_pixels(kept["found"]) > 0).sum() == 360


# ---- the tables


@pytest.mark.parametrize("name", TABLES)
def test_every_table_says_what_it_claims(name):
    table = load_table(name)
    assert table.name == name and table.caveat and table.comparisons
    for part in table.parts:
        for arm in part.arms:
            tier, same_arm = planned(table, arm.name, Options())
            assert tier == part.tier and same_arm == arm
    for comparison in table.comparisons:
        assert comparison.claim != EQUAL or 0 < comparison.margin < 0.1


def test_the_papers_claims_are_the_tables():
    claims = {
        "table2b": ("sigmoid", "softmax"), "table2c": ("RoIAlign mean", "RoIPool max"),
        "table2e": ("FCN", "MLP, 2 hidden layers"),
        "table6": ("RoIAlign", "RoIPool"), "table2a": ("shallow, FPN", "shallow, C4"),
    }  # fmt: skip
    for name, (better, worse) in claims.items():
        sides = [(c.a, c.b) for c in load_table(name).comparisons if c.claim == MORE]
        assert (better, worse) in sides and (worse, better) not in sides
    same = [(c.a, c.b) for c in load_table("table2c").comparisons if c.claim == EQUAL]
    assert same == [("RoIAlign max", "RoIAlign mean"), ("RoIWarp mean", "RoIPool max")]


def test_a_table_that_cannot_be_is_refused():
    part = Part(SHORT, (POOL, ALIGN))
    with pytest.raises(ValueError, match="compares arms that it has not: warp"):
        Table("t", "", (part,), (Comparison("pool", "warp", "mask AP*"),), "")
    with pytest.raises(ValueError, match="two arms have one name"):
        Table("t", "", (part, part), (), "")
    with pytest.raises(ValueError, match="a margin belongs to 'equal'"):
        Comparison("a", "b", "mask AP*", EQUAL)
    with pytest.raises(ValueError, match="no table 'table7': choose one of table2a"):
        load_table("table7")
    with pytest.raises(ValueError, match="stride is 12: choose one of 4, 8, 16, 32"):
        SHORT.net(Arm("", frozen(), 12), 0)


# ---- the paper's order


@pytest.mark.slow
def test_roi_align_beats_roi_pool_at_iou_75_and_not_at_50():
    """Table 2c on oracle boxes, one seed of a short schedule: the gap opens with the threshold."""
    tier = Oracle(train_images=400, train=replace(Oracle().train, steps=250))
    pool, align = (tier.run(arm, 0)["measures"] for arm in (POOL, ALIGN))
    assert align["mask @.75"] - pool["mask @.75"] > 0.10
    assert abs(align["mask @.50"] - pool["mask @.50"]) < 0.08
