"""`mrcnn predict` and `mrcnn eval` on torchvision's and Detectron2's files, with COCO's categories in the results."""

import json
import pickle

import detectron2_peer as peer
import numpy as np
import pytest
import torch
from command import mrcnn as call
from PIL import Image
from torchvision.models._meta import _COCO_CATEGORIES
from torchvision.models.detection import KeypointRCNN, MaskRCNN, backbone_utils

from mrcnn_scratch.common_classes import OnCommonClasses, on_common_classes
from mrcnn_scratch.datasets.coco import PERSON_KEYPOINTS, CocoDataset
from mrcnn_scratch.datasets.coco_classes import COCO_CATEGORIES, PERSON_SKELETON, coco_classes
from mrcnn_scratch.evaluation import evaluate
from mrcnn_scratch.weights import load_pretrained


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "street.png"
    pixels = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def torchvision_file(tmp_path_factory):
    """A Mask R-CNN of torchvision that calls everything a stop sign, COCO's category 13."""
    model = MaskRCNN(backbone_utils.resnet_fpn_backbone(backbone_name="resnet18", weights=None), 91)
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias[13] = 9
    path = tmp_path_factory.mktemp("weights") / "maskrcnn.pth"
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def detectron2_file(tmp_path_factory):
    """A Mask R-CNN of Detectron2 that calls everything a stop sign, its class 11."""
    state = peer.state(width=16, fc=16)
    state["roi_heads.box_predictor.cls_score.bias"][11] = 99
    path = tmp_path_factory.mktemp("weights") / "model_final.pkl"
    with open(path, "wb") as handle:
        pickle.dump({"model": {name: x.numpy() for name, x in state.items()}, "__author__": "Zoo"}, handle)
    return path


@pytest.mark.parametrize("file", ["torchvision_file", "detectron2_file"])
def test_predict_gives_cocos_categories(file, photo, tmp_path, request, capsys):
    weights = request.getfixturevalue(file)
    sizes = ("--min-size", 64, "--max-size", 128)
    assert call("predict", photo, "--weights", weights, "--out", tmp_path, "--threads", 1, *sizes) == 0
    results = json.loads((tmp_path / "results_bbox.json").read_text())
    assert results and {row["category_id"] for row in results} == {13}
    assert len(json.loads((tmp_path / "results_segm.json").read_text())) == len(results)
    assert (tmp_path / "street.png").is_file() and "street.png" in capsys.readouterr().out
    model, metadata = load_pretrained(weights)
    assert (model.config.min_size, model.config.max_size) == (800, 1333)
    names, categories = metadata["class_names"], dict(metadata["label_to_category"])
    assert all(names[label] == COCO_CATEGORIES.get(category, "N/A") for label, category in categories.items())


def test_a_file_that_cannot_be_used_ends_in_one_line(photo, tmp_path, capsys):
    bad = tmp_path / "weights.pkl"
    bad.write_bytes(b"cposix\nsystem\n(S'touch exploded'\ntR.")
    assert call("predict", photo, "--weights", bad, "--out", tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert "wants to run posix.system: refused" in message and "Traceback" not in message
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pth")
    assert call("predict", photo, "--weights", tmp_path / "a.pth", "--out", tmp_path / "out") == 2
    assert "neither torchvision's nor Detectron2's" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_cocos_categories_are_torchvisions():
    names, categories = coco_classes(91)
    assert names[1:] == _COCO_CATEGORIES[1:] and categories[90] == 90
    names, categories = coco_classes(81)
    assert len(names) == 81 and len(categories) == 80
    assert [categories[i] for i in (1, 11, 12, 80)] == [1, 11, 13, 90] and names[12] == "stop sign"
    assert coco_classes(2, 17) == (["background", "person"], {1: 1})
    assert coco_classes(2) is None and coco_classes(80) is None


def test_the_skeleton_joins_neighbours():
    names = [(PERSON_KEYPOINTS[a], PERSON_KEYPOINTS[b]) for a, b in PERSON_SKELETON]
    assert len(set(names)) == 19
    for side in ("left", "right"):
        for pair in (("ankle", "knee"), ("knee", "hip"), ("shoulder", "elbow"), ("elbow", "wrist"), ("eye", "ear")):
            joined = {f"{side}_{part}" for part in pair}
            assert any(set(edge) == joined for edge in names), joined


def test_torchvisions_keypoints_are_moved_to_the_middle_of_their_pixel(tmp_path):
    model = KeypointRCNN(backbone_utils.resnet_fpn_backbone(backbone_name="resnet18", weights=None), 2)
    torch.save(model.state_dict(), tmp_path / "keypoints.pth")
    _, metadata = load_pretrained(tmp_path / "keypoints.pth")
    assert metadata["keypoint_offset"] == 0.5 and len(metadata["skeleton"]) == 19
    assert metadata["class_names"] == ["background", "person"]
    fixed = torch.nn.Identity()
    fixed.forward = lambda images: [{"labels": torch.tensor([1]), "keypoints": torch.tensor([[[3.0, 7.0, 1.0]]])}]
    moved = OnCommonClasses(fixed, {1: 1}, metadata["keypoint_offset"])([None])[0]
    assert moved["keypoints"].tolist() == [[[3.5, 7.5, 1.0]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A COCO folder with categories out of order, one of which COCO has not."""
    root = tmp_path_factory.mktemp("coco")
    (root / "annotations").mkdir()
    (root / "images").mkdir()
    categories = [{"id": 90, "name": "toothbrush"}, {"id": 13, "name": "stop sign"}, {"id": 200, "name": "unicorn"}]
    images, annotations = [], []
    for number, category in enumerate((13, 90, 200, 13), start=1):
        Image.new("RGB", (60, 40), (9 * number, 90, 30)).save(root / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 60, "height": 40})
        x = 4 * number
        polygon = [x, 5, x + 20, 5, x + 20, 25, x, 25]
        annotations.append(
            {"id": number, "image_id": number, "category_id": category, "bbox": [x, 5, 20, 20], "area": 400.0,
             "iscrowd": 0, "segmentation": [polygon]}
        )  # fmt: skip
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return root


class Oracle(torch.nn.Module):
    """Answers with the ground truth, in the labels of a detector with 91 classes, and a class that the data has not."""

    def __init__(self, dataset, labels: dict[str, int]):
        super().__init__()
        self.dataset, self.labels, self.at = dataset, labels, 0

    def forward(self, images):
        answers = []
        for _ in images:
            target = self.dataset[self.at][1]
            self.at += 1
            known = [self.labels.get(self.dataset.class_names[int(label)], 1) for label in target["labels"]]
            box = torch.cat([target["boxes"], target["boxes"]])
            labels = torch.tensor([*known, *[1] * len(known)])  # and a person in the same place
            scores = torch.linspace(0.5, 0.6, len(labels))
            masks = torch.cat([target["masks"], target["masks"]])[:, None].float()
            answers.append({"boxes": box, "labels": labels, "scores": scores, "masks": masks})
        return answers


def test_labels_go_by_name_and_unknown_classes_are_left_out(folder):
    dataset = CocoDataset(folder, "val")
    names, _ = coco_classes(91)
    oracle = Oracle(dataset, {"stop sign": 13, "toothbrush": 90})
    model, data, unknown = on_common_classes(oracle, {"class_names": names}, dataset)
    assert unknown == ["unicorn"]
    metrics = evaluate(model, data, progress=False)
    assert metrics["box"]["AP"] == pytest.approx(1) and metrics["mask"]["AP"] == pytest.approx(1)
    assert sorted(metrics["box"]["AP_by_category"]) == [13, 90]
    with pytest.raises(ValueError, match="know person.*toothbrush.*no class in common|no class in common"):
        on_common_classes(oracle, {"class_names": ["background", "person"]}, dataset)


def test_eval_of_foreign_weights(folder, torchvision_file, tmp_path, capsys):
    out = tmp_path / "ap.json"
    arguments = ("--data", "coco", "--root", folder, "--threads", 1, "--images", 1, "--out", out)
    assert call("eval", torchvision_file, *arguments) == 0
    told = capsys.readouterr()
    assert 'build_model("R18-FPN", num_classes=91' in told.out and "AP leaves out: unicorn" in told.err
    assert sorted(json.loads(out.read_text())["box"]["AP_by_category"]) == ["13", "90"]
    assert call("eval", torchvision_file, "--data", "coco") == 2
    assert "--root DIR" in capsys.readouterr().err
    assert call("eval", torchvision_file, "--root", folder) == 2
    assert "goes with --data coco" in capsys.readouterr().err
