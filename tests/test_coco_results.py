"""Wrong ground truth and wrong results are told in words; right ones come out whole."""

import copy

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mrcnn_scratch.average_precision import average_precision
from mrcnn_scratch.coco_results import clean_ground_truth, clean_results, count_keypoints
from mrcnn_scratch.evaluation import evaluate_results

CODE = coco_mask.encode(np.asfortranarray(np.ones((4, 6), dtype=np.uint8)))


def ground_truth() -> dict:
    person = {"bbox": [0, 0, 4, 4], "area": 16, "segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]], "iscrowd": 0}
    person |= {"keypoints": [1, 1, 2, 3, 3, 0], "num_keypoints": 1}
    return {
        "images": [{"id": 5, "height": 4, "width": 6}],
        "categories": [{"id": 1, "name": "person", "keypoints": ["head", "foot"]}],
        "annotations": [{"id": 44, "image_id": 5, "category_id": 1, **person}],
    }


def result(**fields) -> dict:
    everything = {"bbox": [0, 0, 4, 4], "segmentation": CODE, "keypoints": [1, 1, 1, 3, 3, 1]}
    return {"image_id": 5, "category_id": 1, "score": 0.5, **everything, **fields}


def without(entry: dict, key: str) -> dict:
    return {k: v for k, v in entry.items() if k != key}


@pytest.mark.parametrize("kind", ["bbox", "segm", "keypoints"])
def test_evaluation_leaves_its_arguments_alone(kind):
    truth, results = ground_truth(), [result()]
    before = copy.deepcopy((truth, results))
    average_precision(truth, results, kind)
    evaluate_results(truth, results, kind)
    assert (truth, results) == before


def test_results_are_reduced_to_what_is_evaluated():
    truth = ground_truth()
    head = {"image_id": 5, "category_id": 1, "score": 0.5}
    assert clean_results([result()], truth, "bbox") == [{**head, "bbox": [0, 0, 4, 4]}]
    assert clean_results([result()], truth, "segm") == [{**head, "segmentation": CODE}]
    unboxed = without(result(), "bbox")
    assert clean_results([unboxed], truth, "keypoints") == [{**head, "keypoints": [1, 1, 1, 3, 3, 1]}]
    assert clean_results([result()], truth, "keypoints")[0]["bbox"] == [0, 0, 4, 4]


def test_defaults_of_the_ground_truth():
    truth = ground_truth()
    truth["annotations"][0] = without(without(truth["annotations"][0], "iscrowd"), "num_keypoints")
    entry = clean_ground_truth(truth, "keypoints")["annotations"][0]
    assert (entry["id"], entry["iscrowd"], entry["num_keypoints"]) == (1, 0, 1)
    truth["annotations"][0] = without(truth["annotations"][0], "keypoints")
    entry = clean_ground_truth(truth, "keypoints")["annotations"][0]
    assert (entry["keypoints"], entry["num_keypoints"]) == ([0] * 6, 0)


def test_polygons_and_both_run_length_forms_become_the_same_mask():
    square = np.zeros((4, 6), dtype=np.uint8)
    square[:, :4] = 1
    uncompressed = {"size": [4, 6], "counts": [0, 16, 8]}
    forms = ([[0, 0, 4, 0, 4, 4, 0, 4]], uncompressed, coco_mask.encode(np.asfortranarray(square)))
    for segmentation in forms:
        truth = ground_truth()
        truth["annotations"][0]["segmentation"] = segmentation
        code = clean_ground_truth(truth, "segm")["annotations"][0]["segmentation"]
        np.testing.assert_array_equal(coco_mask.decode(code), square)


def test_count_keypoints():
    truth = ground_truth()
    assert count_keypoints(truth) == 2
    truth["categories"].append({"id": 2, "name": "hand", "keypoints": ["thumb"]})
    with pytest.raises(ValueError, match=r"mixes skeletons of \[1, 2\] keypoints"):
        count_keypoints(truth)
    clean_ground_truth(truth, "bbox")  # boxes do not mind
    assert count_keypoints({"categories": [{"id": 1, "name": "ball"}], "annotations": []}) == 0


@pytest.mark.parametrize(
    ("kind", "bad", "message"),
    [
        ("bbox", result(image_id=6), r"result 1 names image 6, which .* \(1 images, e\.g\. \[5\]\)"),
        ("bbox", result(category_id=0), r"result 1 \(image 5\) names category 0, .* has \[1\]: map labels"),
        ("bbox", result(score=float("nan")), r"result 1 \(image 5\) has score nan: scores must be finite"),
        ("bbox", result(score=float("inf")), "has score inf"),
        (
            "bbox",
            without(result(), "bbox"),
            "result 1 has no 'bbox': bbox results need image_id, category_id",
        ),
        ("bbox", without(result(), "score"), "result 1 has no 'score'"),
        ("bbox", result(bbox=[0, 0, 4]), r"result 1 has bbox \[0, 0, 4\]: COCO's is \[x, y, width, height\]"),
        ("bbox", result(bbox=[4, 4, -1, 3]), "sizes 0 or more"),
        ("bbox", result(bbox=[0, float("nan"), 1, 1]), "result 1 has bbox"),
        ("segm", result(segmentation=[[0, 0, 4, 0, 4, 4]]), "result 1 .* no compressed run-length code: use"),
        ("segm", result(segmentation={"size": [6, 4], "counts": "x"}), r"size \[6, 4\], image 5 is \[4, 6\]"),
        ("keypoints", result(keypoints=[1, 1, 1]), "result 1 has 3 keypoint numbers: .* 2 keypoints take 6"),
        ("keypoints", result(keypoints=[1, 1, 1, float("nan"), 1, 1]), "6 finite ones"),
        ("keypoints", without(result(), "bbox"), "result 1 has no 'bbox': keypoints results need"),
    ],
)
def test_a_wrong_result_is_named(kind, bad, message):
    for evaluator in (average_precision, evaluate_results):
        with pytest.raises(ValueError, match=message):
            evaluator(ground_truth(), [result(), bad], kind)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("bbox", {"image_id": 7}, "annotation 44 names image 7"),
        ("bbox", {"category_id": 9}, r"annotation 44 \(image 5\) names category 9"),
        ("bbox", {"area": None}, r"annotation 44 \(image 5\) has no 'area': bbox evaluation needs it"),
        ("bbox", {"area": -1}, "has area -1"),
        ("bbox", {"bbox": [0, 0, -4, 4]}, r"annotation 44 \(image 5\) has bbox"),
        ("segm", {"segmentation": None}, "has no 'segmentation'"),
        ("segm", {"segmentation": [[0, 0, 4, 4]]}, "has a polygon of 4 numbers"),
        (
            "segm",
            {"segmentation": {"size": [6, 4], "counts": [24]}},
            r"a mask of size \[6, 4\], image 5 is \[4, 6\]",
        ),
        ("keypoints", {"keypoints": [1, 1, 2]}, r"mixes skeletons of \[1, 2\]"),
        ("keypoints", {"keypoints": [1, 1, 2, 3, 3, 2, 1]}, "annotation 44 has 7 keypoint numbers"),
    ],
)
def test_a_wrong_annotation_is_named(kind, change, message):
    truth = ground_truth()
    truth["annotations"][0].update(change)
    for evaluator in (average_precision, evaluate_results):
        with pytest.raises(ValueError, match=message):
            evaluator(truth, [result()], kind)


def test_unknown_kinds_and_wrong_dictionaries():
    for evaluator in (average_precision, evaluate_results):
        with pytest.raises(ValueError, match="kind is 'box': use one of bbox, segm, keypoints"):
            evaluator(ground_truth(), [], "box")
        with pytest.raises(ValueError, match="the ground truth has no 'categories'"):
            evaluator(without(ground_truth(), "categories"), [], "bbox")
        with pytest.raises(ValueError, match=r"sigmas .* for 2 keypoints"):
            evaluator(ground_truth(), [result()], "keypoints", sigmas=[0.1] * 17)
