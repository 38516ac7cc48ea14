"""Proposals in a file: written by an RPN, read one image at a time, and what the heads learn from them."""

import json
import math

import pytest
import torch
from command import mrcnn

from mrcnn_scratch import ShapesDataset, build_model
from mrcnn_scratch.proposals import ProposalFile, proposal_recall, with_proposals, write_proposals
from mrcnn_scratch.weights import load_model, save_model


@pytest.fixture(scope="module")
def data():
    return ShapesDataset("demo", 5, split="train")


@pytest.fixture(scope="module")
def rpn(data):
    return build_model("tiny-fpn", data.num_classes, stages="rpn")


@pytest.fixture(scope="module")
def written(data, rpn, tmp_path_factory):
    path = tmp_path_factory.mktemp("proposals") / "train.safetensors"
    assert write_proposals(rpn, data, path, count=30, batch_size=2, progress=False) == 5 * 30
    return path


def test_each_image_has_the_proposals_that_the_model_gives(data, rpn, written):
    file = ProposalFile(written)
    config = rpn.config.with_fields(rpn_post_nms_test=30)
    alone = build_model("tiny-fpn", data.num_classes, stages="rpn", rpn_post_nms_test=30).eval()
    assert rpn.config.rpn_post_nms_test == 200 and alone.config == config  # the caller's model is as it was
    with torch.inference_mode():
        for index in (0, 3, 4):
            found = alone([data[index][0]])[0]
            mine = file.of(data.image_ids[index])
            assert len(mine) == 30 and (found["scores"].diff() <= 0).all() and (found["labels"] == 1).all()
            torch.testing.assert_close(mine, found["boxes"], rtol=1e-4, atol=1e-2)
            assert torch.equal(file.of(data.image_ids[index], 7), mine[:7])


def test_a_whole_model_proposes_too_and_heads_alone_do_not(data, tmp_path):
    whole = build_model("tiny-fpn", data.num_classes)
    assert write_proposals(whole, data, tmp_path / "p.safetensors", 10, progress=False) == 50
    with pytest.raises(ValueError, match="has no RPN"):
        write_proposals(build_model("tiny-fpn", data.num_classes, stages="heads"), data, tmp_path / "q", progress=False)
    assert not (tmp_path / "q").exists()
    with pytest.raises(ValueError, match="count is 0"):
        write_proposals(whole, data, tmp_path / "q", 0)


def test_targets_carry_them_and_the_dataset_stays_itself(data, written):
    joined = with_proposals(data, written, 12)
    image, target = joined[2]
    assert torch.equal(image, data[2][0]) and "proposals" not in data[2][1]
    assert torch.equal(target["proposals"], ProposalFile(written).of(data.image_ids[2], 12))
    assert joined.num_classes == data.num_classes and len(joined) == 5 and joined.coco_dict() == data.coco_dict()


def test_wrong_files_are_named(data, written, tmp_path):
    with pytest.raises(ValueError, match="do not exist: write them with `mrcnn proposals"):
        with_proposals(data, tmp_path / "none.safetensors")
    save_model(build_model("tiny-fpn", data.num_classes), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="is no whole file of `mrcnn proposals` .it holds no proposals"):
        with_proposals(data, tmp_path / "model.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(written.read_bytes()[:-100])
    with pytest.raises(ValueError, match="no whole file"):
        with_proposals(data, tmp_path / "cut.safetensors")
    more = ShapesDataset("demo", 8, split="train")
    with pytest.raises(ValueError, match=f"for 3 of 8 images, such as image {more.image_ids[5]}"):
        with_proposals(more, written)


class Few:
    """Two images whose objects and proposals can be counted by hand."""

    def __init__(self):
        box = torch.tensor([[0.0, 0, 10, 10]])
        shifted = torch.tensor([[0.0, 0, 10, 7.2]])  # IoU 0.72
        self.items = [
            {"boxes": box, "iscrowd": torch.tensor([0]), "proposals": torch.cat([box + 50, shifted])},
            {"boxes": torch.cat([box, box + 20]), "iscrowd": torch.tensor([0, 1]), "proposals": torch.zeros(0, 4)},
        ]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return None, self.items[index]


def test_recall_by_hand():
    # The first object is found at .50 .. .70, five of ten, by the second proposal; the second never; the crowd is none.
    assert proposal_recall(Few(), (1, 2)) == {1: 0.0, 2: pytest.approx(0.25)}
    nothing = Few()
    nothing.items = [{"boxes": torch.zeros(0, 4), "proposals": torch.zeros(0, 4)}]
    assert math.isnan(proposal_recall(nothing, (1,))[1])


@pytest.mark.slow
def test_rpn_then_heads_by_the_command(tmp_path, capsys):
    """The paper's way: an RPN alone, its proposals, heads on them, and their AP; both learn."""
    few = ["--data", "shapes:demo", "--images", 12, "--threads", 1]
    steps = ["--steps", 40, "--batch-size", 2, "--set", "log_every=1"]
    assert mrcnn("train", *few, *steps, "--set", "stages=rpn", "--out", tmp_path / "rpn") == 0
    rpn = tmp_path / "rpn" / "last.safetensors"
    assert load_model(rpn)[0].config.stages == "rpn" and not hasattr(load_model(rpn)[0], "box_trunk")
    for split in ("train", "val"):
        out = tmp_path / f"{split}.safetensors"
        assert mrcnn("proposals", rpn, *few, "--split", split, "--count", 100, "--out", out) == 0
    assert "average recall" in capsys.readouterr().out
    heads = [*few, *steps, "--proposals", tmp_path / "train.safetensors", "--out", tmp_path / "heads"]
    assert mrcnn("train", *heads) == 0
    saved = tmp_path / "heads" / "last.safetensors"
    model = load_model(saved)[0]
    assert model.config.stages == "heads" and not hasattr(model, "rpn")
    for run, loss in (("rpn", "loss_objectness"), ("heads", "loss_classifier")):
        header, *rows = [line.split(",") for line in (tmp_path / run / "log.csv").read_text().splitlines()]
        values = [float(row[header.index(loss)]) for row in rows]
        assert sum(values[-8:]) < 0.8 * sum(values[:8]), run
    scores = tmp_path / "ap.json"
    known = ["--proposals", tmp_path / "val.safetensors", "--out", scores]
    assert mrcnn("eval", saved, *few, *known) == 0
    assert {"box", "mask"} <= set(json.loads(scores.read_text()))
    capsys.readouterr()
    assert mrcnn("eval", saved, *few) == 2 and "has no RPN: give --proposals" in capsys.readouterr().err
    assert mrcnn("eval", rpn, *few, *known) == 2 and "has an RPN: leave out" in capsys.readouterr().err
