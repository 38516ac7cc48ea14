"""A data set with persons and other things, restricted to what has keypoints."""

import pytest
import torch

from mrcnn_scratch.datasets.coco import CocoDataset
from mrcnn_scratch.datasets.coco_export import export_coco
from mrcnn_scratch.datasets.keypoint_classes import KeypointClasses
from mrcnn_scratch.datasets.shapes import ShapesDataset
from mrcnn_scratch.recipes import usable_images


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> CocoDataset:
    """Persons, stars and rings; ids 1, 4 and 7. Person is not the last class, so labels move if kept by mistake."""
    path = tmp_path_factory.mktemp("data") / "shapes"
    export_coco([ShapesDataset("demo", 8, split="train")], path)
    return CocoDataset(path, "train", keypoints=True)


def test_only_persons_are_left(whole):
    kept = KeypointClasses(whole)
    assert kept.class_names == ["background", "person"] and kept.num_classes == 2 and len(kept) == len(whole)
    assert kept.num_keypoints == 17 and kept.flip_pairs == whole.flip_pairs and kept.label_to_category == {1: 1}
    others = 0
    for index in range(len(whole)):
        (image, before), (same, after) = whole[index], kept[index]
        persons = before["labels"] == whole.class_names.index("person")
        others += int((~persons).sum())
        assert torch.equal(image, same) and after["image_id"] == before["image_id"]
        assert after["labels"].tolist() == [1] * int(persons.sum()) and after["labels"].dtype == torch.int64
        for name in ("boxes", "masks", "keypoints", "area", "iscrowd"):
            assert torch.equal(after[name], before[name][persons]), name
    assert others > 0


def test_the_ground_truth_is_theirs_alone(whole):
    truth = KeypointClasses(whole).coco_dict()
    assert [record["name"] for record in truth["categories"]] == ["person"]
    assert {one["category_id"] for one in truth["annotations"]} == {1}
    assert len(truth["images"]) == len(whole) and len(truth["annotations"]) < len(whole.coco_dict()["annotations"])


def test_labels_begin_at_one(whole):
    """A class that comes after others: its label moves down, and back to its category."""
    last = KeypointClasses(_Renamed(whole, "ring"))
    assert last.class_names == ["background", "ring"] and last.label_to_category == {1: 7}
    assert {one["category_id"] for one in last.coco_dict()["annotations"]} == {7}
    labels = torch.cat([last[index][1]["labels"] for index in range(len(whole))])
    assert len(labels) and set(labels.tolist()) == {1}


def test_images_without_persons_can_be_left_out(whole):
    kept = usable_images(KeypointClasses(whole), min_keypoints=1)
    for index in range(len(kept)):
        assert (kept[index][1]["keypoints"][..., 2] > 0).any()
    assert kept.num_classes == 2 and kept.flip_pairs


def test_without_keypoints_it_refuses(whole):
    with pytest.raises(ValueError, match="no class of this data has keypoints"):
        KeypointClasses(_Renamed(whole, "nothing"))
    with pytest.raises(ValueError, match="leave out --keypoints"):
        KeypointClasses(CocoDataset(whole.image_folder.parents[0], "train", keypoints=False))


class _Renamed:
    """A data set that says another class has keypoints."""

    def __init__(self, dataset, name: str):
        self._dataset, self._name = dataset, name

    def __getattr__(self, name: str):
        return getattr(self._dataset, name)

    def __len__(self):
        return len(self._dataset)

    def __getitem__(self, index):
        return self._dataset[index]

    def coco_dict(self):
        truth = self._dataset.coco_dict()
        keypoints = {True: ["nose"], False: []}
        categories = [dict(r, keypoints=keypoints[r["name"] == self._name]) for r in truth["categories"]]
        return dict(truth, categories=categories)
