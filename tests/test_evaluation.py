"""Model -> detections -> COCO results -> AP: every convention on the way, by models with known answers."""

import json
import os

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from mrcnn_scratch.datasets.shapes import ShapesDataset
from mrcnn_scratch.evaluation import (
    detections_to_coco,
    evaluate,
    evaluate_results,
    predict_dataset,
    write_results,
)
from mrcnn_scratch.similarity import oks_matrix

HEIGHT, WIDTH, J = 60, 90, 3
LABEL_TO_CATEGORY = {1: 18, 2: 90}  # with gaps, as COCO's
OBJECTS = [  # (image id, label, xyxy in pixels, keypoints as pixel indices)
    (30, 1, (5, 7, 45, 50), [(10, 12, 2), (20, 30, 1), (0, 0, 0)]),
    (30, 2, (50, 3, 88, 41), [(60, 10, 2), (70, 20, 2), (80, 31, 2)]),
    (12, 2, (0, 0, 90, 60), [(1, 1, 2), (44, 30, 2), (88, 58, 1)]),
]


def blob(box) -> np.ndarray:
    """A box without one corner: looks different when rows and columns are swapped."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    x1, y1, x2, y2 = box
    mask[y1:y2, x1:x2] = 1
    mask[y1 : y1 + (y2 - y1) // 3, x1 : x1 + (x2 - x1) // 5] = 0
    return mask


class ToyDataset:
    """Three objects on two images, and an image without any; speaks the package's dataset protocol."""

    class_names = ["background", "dog", "toothbrush"]
    num_classes = 3
    image_ids = [30, 7, 12]  # not sorted; image 7 is empty
    label_to_category = LABEL_TO_CATEGORY

    def __init__(self, keypoints: bool = True, masks: bool = True):
        self.num_keypoints, self.masks = J * keypoints, masks

    def __len__(self):
        return len(self.image_ids)

    def __getitem__(self, index):
        objects = [entry for entry in OBJECTS if entry[0] == self.image_ids[index]]
        points = torch.tensor([entry[3] for entry in objects], dtype=torch.float32).reshape(-1, J, 3)
        points[..., :2] += 0.5 * (
            points[..., 2:] > 0
        )  # pixel index -> continuous, as the datasets do on load
        target = {
            "boxes": torch.tensor([entry[2] for entry in objects], dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor([entry[1] for entry in objects], dtype=torch.int64),
            "masks": torch.from_numpy(np.array([blob(e[2]) for e in objects]).reshape(-1, HEIGHT, WIDTH)),
            "keypoints": points,
            "image_id": self.image_ids[index],
        }
        image = torch.full((3, HEIGHT, WIDTH), index / 10)  # the oracle below reads the index off the pixels
        return image, target

    def coco_dict(self):
        annotations = []
        for image_id, label, (x1, y1, x2, y2), points in OBJECTS:
            code = coco_mask.encode(np.asfortranarray(blob((x1, y1, x2, y2))))
            entry = {"id": len(annotations), "image_id": image_id, "category_id": LABEL_TO_CATEGORY[label]}
            entry |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": int(coco_mask.area(code)), "iscrowd": 0}
            if self.masks:
                entry["segmentation"] = code
            if self.num_keypoints:
                entry |= {"keypoints": [v for p in points for v in p]}
                entry |= {"num_keypoints": sum(p[2] > 0 for p in points)}
            annotations.append(entry)
        names = [f"p{j}" for j in range(self.num_keypoints)]
        return {
            "images": [{"id": i, "height": HEIGHT, "width": WIDTH} for i in self.image_ids],
            "annotations": annotations,
            "categories": [
                {"id": c, "name": self.class_names[label], "keypoints": names}
                for label, c in LABEL_TO_CATEGORY.items()
            ],
        }


class Oracle(torch.nn.Module):
    """Answers with the ground truth of the image whose index the pixels spell, if it is asked properly."""

    def __init__(self, dataset, masks=True, keypoints=True, silent=False):
        super().__init__()
        self.dataset, self.masks, self.keypoints, self.silent = dataset, masks, keypoints, silent
        self.frozen = torch.nn.BatchNorm2d(3)
        self.batches = []

    def forward(self, images):
        assert not any(module.training for module in self.modules())
        assert torch.is_inference_mode_enabled()
        self.batches.append(len(images))
        return [self.answer(round(float(image[0, 0, 0]) * 10)) for image in images]

    def answer(self, index):
        target = self.dataset[index][1]
        G = 0 if self.silent else len(target["labels"])
        detection = {
            "boxes": target["boxes"],
            "labels": target["labels"],
            "scores": torch.linspace(0.9, 0.8, 9),
        }
        if self.masks:
            soft = target["masks"][:, None].float()
            detection["masks"] = torch.where(soft > 0, 0.5, 0.49)  # exactly 0.5 is inside
        if self.keypoints:
            detection["keypoints"] = target["keypoints"]
            detection["keypoints_scores"] = torch.ones(len(target["labels"]), J)
        return {name: value[:G] for name, value in detection.items()}


def test_an_oracle_scores_one_in_every_kind():
    dataset = ToyDataset()
    scores = evaluate(Oracle(dataset), dataset, batch_size=2, progress=False)
    assert scores.keys() == {"box", "mask", "keypoints"}
    for kind, statistics in scores.items():
        for name in ("AP", "AP50", "AP75", "AR"):
            assert statistics[name] == pytest.approx(1.0, abs=1e-12), (kind, name)
        assert statistics["AP_by_iou"] == pytest.approx([1.0] * 10)
        assert statistics["AP_by_category"] == pytest.approx({18: 1.0, 90: 1.0})
        assert statistics["APs"] == -1  # no object has fewer than 32 x 32 pixels


def test_identity_gives_oks_of_exactly_one():
    dataset = ToyDataset()
    results = predict_dataset(Oracle(dataset), dataset, progress=False)["keypoints"]
    annotations = sorted(
        dataset.coco_dict()["annotations"], key=lambda a: dataset.image_ids.index(a["image_id"])
    )
    found, wanted = (
        np.reshape([e["keypoints"] for e in entries], (3, J, 3)) for entries in (results, annotations)
    )
    boxes, areas = [a["bbox"] for a in annotations], [a["area"] for a in annotations]
    table = oks_matrix(found, wanted, boxes, areas, sigmas=[1e-3] * J)  # half a pixel would show
    assert np.diag(table).tolist() == [1.0, 1.0, 1.0]
    assert oks_matrix(found + 0.5, wanted, boxes, areas, sigmas=[1e-3] * J).max() < 0.1


def test_a_silent_model_scores_zero_and_an_empty_dataset_is_undefined():
    dataset = ToyDataset()
    scores = evaluate(Oracle(dataset, silent=True), dataset, progress=False)
    assert {kind: statistics["AP"] for kind, statistics in scores.items()} == {
        "box": 0,
        "mask": 0,
        "keypoints": 0,
    }
    dataset.image_ids = []
    dataset.coco_dict = lambda: {"images": [], "annotations": [], "categories": [{"id": 18, "name": "dog"}]}
    assert evaluate(Oracle(dataset), dataset, progress=False)["box"]["AP"] == -1


def test_only_kinds_of_both_model_and_dataset_are_scored():
    full, boxes_only = ToyDataset(), ToyDataset(keypoints=False, masks=False)
    assert evaluate(Oracle(full, keypoints=False), full, progress=False).keys() == {"box", "mask"}
    assert evaluate(Oracle(full, masks=False), full, progress=False).keys() == {"box", "keypoints"}
    assert evaluate(Oracle(boxes_only), boxes_only, progress=False).keys() == {"box"}


def test_the_modes_of_the_model_come_back():
    dataset = ToyDataset()
    model = Oracle(dataset).train()
    model.frozen.eval()  # frozen in training
    predict_dataset(model, dataset, batch_size=2, progress=False)
    assert model.batches == [2, 1]
    assert (model.training, model.frozen.training) == (True, False)
    model.answer = lambda index: {
        "labels": torch.tensor([5]),
        "scores": torch.ones(1),
        "boxes": torch.ones(1, 4),
    }
    with pytest.raises(ValueError, match="detection 0 of image 30 has label 5, the dataset has"):
        predict_dataset(model, dataset, progress=False)
    assert (model.training, model.frozen.training) == (True, False)  # after a failure as well


def test_progress_goes_to_stderr_and_only_if_asked(capsys):
    dataset = ToyDataset()
    evaluate(Oracle(dataset), dataset, progress=False)
    silent = capsys.readouterr()
    assert (silent.out, silent.err) == ("", "")
    evaluate(Oracle(dataset), dataset, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""  # pycocotools' tables do not get through
    assert "3/3" in shown.err


def test_export_converts_boxes_keypoints_and_labels():
    detection = {
        "boxes": torch.tensor([[1.5, 2.0, 11.5, 22.0]]),
        "labels": torch.tensor([2]),
        "scores": torch.tensor([0.25]),
        "masks": torch.zeros(1, 1, 4, 6),
        "keypoints": torch.tensor([[[10.5, 4.5, 1.0], [0.25, 0.0, 1.0]]]),
        "keypoints_scores": torch.tensor([[9.0, 9.0]]),
    }
    boxes, masks, keypoints = detections_to_coco(detection, 30, LABEL_TO_CATEGORY)
    head = {"image_id": 30, "category_id": 90, "score": 0.25}
    assert boxes == [{**head, "bbox": [1.5, 2.0, 10.0, 20.0]}]
    assert keypoints == [{**head, "keypoints": [10.0, 4.0, 1.0, -0.25, -0.5, 1.0]}]
    assert masks[0].keys() == {*head, "segmentation"}  # no bbox: it would decide the mask's area
    json.dumps([boxes, masks, keypoints])


def test_masks_are_coded_column_by_column_at_one_half():
    mask = torch.zeros(2, 1, 4, 6)
    mask[0, 0, 1, 2:5] = 0.5
    mask[0, 0, 2] = 0.4999
    mask[1, 0, :, 1] = 1.0
    detection = {
        "boxes": torch.zeros(2, 4),
        "labels": torch.tensor([1, 1]),
        "scores": torch.ones(2),
        "masks": mask,
    }
    _, results, keypoints = detections_to_coco(detection, 30, LABEL_TO_CATEGORY)
    assert keypoints == []
    for result, expected in zip(results, mask[:, 0] >= 0.5, strict=True):
        np.testing.assert_array_equal(coco_mask.decode(result["segmentation"]), expected.numpy())
    # The trap: the same bytes handed over row by row are another picture.
    rows = (mask[0, 0] >= 0.5).numpy().astype(np.uint8)
    swapped = coco_mask.decode(
        coco_mask.encode(rows.reshape(4, 6, order="C").ravel().reshape((4, 6), order="F"))
    )
    assert (swapped != rows).any()


def test_export_of_nothing():
    detection = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "scores": torch.zeros(0),
        "masks": torch.zeros(0, 1, 4, 6),
        "keypoints": torch.zeros(0, 17, 3),
        "keypoints_scores": torch.zeros(0, 17),
    }
    assert detections_to_coco(detection, 30, LABEL_TO_CATEGORY) == ([], [], [])


def test_wrong_detections_are_named():
    detection = {"boxes": torch.zeros(1, 4), "labels": torch.tensor([1, 2]), "scores": torch.ones(2)}
    with pytest.raises(ValueError, match="image 30 has 2 labels and 1 boxes"):
        detections_to_coco(detection, 30, LABEL_TO_CATEGORY)
    detection |= {"boxes": torch.zeros(2, 4), "labels": torch.tensor([1, 0])}
    with pytest.raises(ValueError, match=r"detection 1 of image 30 has label 0, the dataset has \[1, 2\]"):
        detections_to_coco(detection, 30, LABEL_TO_CATEGORY)
    with pytest.raises(ValueError, match="batch_size is 0"):
        predict_dataset(Oracle(ToyDataset()), ToyDataset(), batch_size=0, progress=False)


def test_custom_sigmas_reach_the_score():
    dataset = ToyDataset()
    truth = dataset.coco_dict()
    results = predict_dataset(Oracle(dataset), dataset, progress=False)["keypoints"]
    for result in results:
        result["keypoints"] = [value + 2 for value in result["keypoints"]]
    assert evaluate_results(truth, results, "keypoints", sigmas=[1.0] * J)["AP"] == pytest.approx(1.0)
    assert evaluate_results(truth, results, "keypoints", sigmas=[0.001] * J)["AP"] == 0.0


def test_results_file_is_coco_json_and_whole_or_not_at_all(tmp_path, monkeypatch):
    dataset = ToyDataset()
    results = predict_dataset(Oracle(dataset), dataset, progress=False)
    for kind in results:
        path = tmp_path / "new" / f"{kind}.json"
        write_results(path, results[kind])
        reread = json.loads(path.read_text())
        assert reread == results[kind]
        assert evaluate_results(dataset.coco_dict(), reread, kind)["AP"] == pytest.approx(1.0)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"result 1 \(image 30\) is not finite"):
        write_results(path, [results["bbox"][0], {**results["bbox"][1], "score": float("nan")}])

    def fail(*args):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            write_results(path, results["bbox"])
    assert path.read_bytes() == before
    assert sorted(os.listdir(path.parent)) == ["bbox.json", "keypoints.json", "segm.json"]


def echo(target: dict) -> dict:
    """A dataset's target as if a model had said it."""
    detection = {name: target[name] for name in ("boxes", "labels", "keypoints")}
    return detection | {
        "masks": target["masks"][:, None].float(),
        "scores": torch.ones(len(target["labels"])),
    }


def test_the_shapes_dataset_scores_one_against_itself():
    dataset = ShapesDataset("demo", num_images=6, seed=3)
    truth = dataset.coco_dict()
    results = {"bbox": [], "segm": [], "keypoints": []}
    for i, image_id in enumerate(dataset.image_ids):
        rows = detections_to_coco(echo(dataset[i][1]), image_id, dataset.label_to_category)
        for kind, new in zip(results, rows, strict=True):
            results[kind] += new
    for kind in ("bbox", "segm"):
        assert evaluate_results(truth, results[kind], kind)["AP"] == pytest.approx(1.0, abs=1e-12)
    assert len(results["keypoints"]) == len(truth["annotations"]) > 6
    for result, annotation in zip(results["keypoints"], truth["annotations"], strict=True):
        if annotation.get("num_keypoints"):
            found, wanted = (np.reshape(e["keypoints"], (1, -1, 3)) for e in (result, annotation))
            one_pixel = [0.5] * wanted.shape[1]  # on an object of area 1: half a pixel costs 12 percent
            assert oks_matrix(found, wanted, [annotation["bbox"]], [1.0], one_pixel) == 1.0


def test_a_model_of_other_classes_is_refused():
    from mrcnn_scratch import build_model

    dataset = ShapesDataset("demo", 2)
    with pytest.raises(ValueError, match="the model has 3 classes with the background, the dataset 4"):
        evaluate(build_model("tiny-fpn", num_classes=3), dataset, progress=False)


def test_a_model_without_rpn_finds_its_proposals_in_the_dataset():
    shapes = ShapesDataset("demo", 2, image_size=(64, 80))

    class Proposed(torch.utils.data.Dataset):
        image_ids, label_to_category = shapes.image_ids, shapes.label_to_category

        def __len__(self):
            return 2

        def __getitem__(self, index):
            image, target = shapes[index]
            return image, {**target, "proposals": torch.tensor([[8.0, 8.0, 40.0, 48.0]])}

    from mrcnn_scratch.model import build_model

    model = build_model("tiny-fpn", shapes.num_classes, stages="heads", score_threshold=0.0)
    assert predict_dataset(model, Proposed(), progress=False)["bbox"]
    with pytest.raises(ValueError, match="no RPN"):
        predict_dataset(model, shapes, progress=False)
