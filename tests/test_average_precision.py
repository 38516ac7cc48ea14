"""AP from scratch: six detections by hand, random data against pycocotools, and COCO's published numbers."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mrcnn_scratch.average_precision import (
    average_precision,
    interpolated_precision,
    match_detections,
    precision_recall,
)
from mrcnn_scratch.evaluation import evaluate_results

BOX_NAMES = "AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl".split()
NAMES = {
    "bbox": BOX_NAMES,
    "segm": BOX_NAMES,
    "keypoints": "AP AP50 AP75 APm APl AR AR50 AR75 ARm ARl".split(),
}
HEIGHT, WIDTH = 160, 200  # room for objects of 96 x 96 pixels, so that all three area ranges occur


def raw_pycocotools(ground_truth: dict, results: list, kind: str, sigmas=None) -> list[float]:
    """COCOeval on copies, with nothing of the package in between."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth, empty = COCO(), COCO()
        truth.dataset = copy.deepcopy(ground_truth)
        truth.createIndex()
        empty.dataset = {**copy.deepcopy(ground_truth), "annotations": []}
        empty.createIndex()
        coco_eval = COCOeval(truth, truth.loadRes(copy.deepcopy(results)) if results else empty, kind)
        if kind == "keypoints":
            coco_eval.params.catIds = [c["id"] for c in ground_truth["categories"] if c.get("keypoints")]
        if sigmas is not None:
            coco_eval.params.kpt_oks_sigmas = np.array(sigmas)
        coco_eval.evaluate()
        coco_eval.accumulate()
        coco_eval.summarize()
    return coco_eval.stats.tolist()


def assert_three_agree(ground_truth: dict, results: list, kind: str, sigmas=None) -> None:
    """Ours, pycocotools as the package drives it, and pycocotools alone: one set of numbers."""
    expected = raw_pycocotools(ground_truth, results, kind, sigmas)
    ours = average_precision(ground_truth, results, kind, sigmas)
    theirs = evaluate_results(ground_truth, results, kind, sigmas)
    assert [ours[name] for name in NAMES[kind]] == pytest.approx(expected, abs=1e-10)
    assert [theirs[name] for name in NAMES[kind]] == pytest.approx(expected, abs=1e-10)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name] == pytest.approx(theirs[name], abs=1e-10), name


# ---------------------------------------- by hand


def test_six_detections_by_hand():
    box = [0, 0, 10, 10]
    # One category, four ground truths: two in image 1, one in image 2, one in image 3. Boxes of 10 x 10.
    truths = [(1, [0, 0, 10, 10]), (1, [50, 0, 10, 10]), (2, box), (3, box)]
    detections = [
        (0.9, 1, [0, 0, 10, 10]),  # IoU 1      hit
        (0.8, 1, [80, 80, 10, 10]),  # IoU 0    error
        (0.7, 1, [50, 0, 10, 9]),  # IoU 0.9    hit
        (0.6, 2, [0, 0, 10, 6]),  # IoU 0.6     hit up to the threshold 0.60
        (0.5, 2, [0, 0, 10, 10]),  # IoU 1      too late below 0.65, a hit from there
        (0.4, 3, [5, 0, 10, 10]),  # IoU 1/3    error
    ]
    ground_truth = {
        "images": [{"id": i, "height": 100, "width": 100} for i in (1, 2, 3)],
        "categories": [{"id": 7, "name": "thing"}],
        "annotations": [
            {"id": i, "image_id": image, "category_id": 7, "bbox": b, "area": 100, "iscrowd": 0}
            for i, (image, b) in enumerate(truths, start=1)
        ],
    }
    results = [{"image_id": i, "category_id": 7, "bbox": b, "score": s} for s, i, b in detections]
    statistics = average_precision(ground_truth, results, "bbox")

    # At 0.50, 0.55, 0.60: hit error hit hit error error. Precision 1, 1/2, 2/3, 3/4, 3/5, 3/6 at recall
    # 1/4, 1/4, 2/4, 3/4, 3/4, 3/4. Best at or beyond: 1 for the 26 recalls up to 0.25, 3/4 for the 50 up to
    # 0.75, 0 for 25.
    first = (26 + 50 * 3 / 4) / 101  # 63.5 / 101 = 0.6287
    # At 0.65 to 0.90 the 0.5-detection replaces the 0.6-detection: hit error hit error hit error.
    # Precision 1, 1/2, 2/3, 2/4, 3/5, 3/6: 1 for 26 recalls, 2/3 for the 25 up to 0.50, 3/5 for the 25 up to
    # 0.75.
    second = (26 + 25 * 2 / 3 + 25 * 3 / 5) / 101
    # At 0.95 the 0.9 overlap is an error as well: hit error error error hit error. 1 for 26 recalls, 2/5 for
    # 25.
    third = (26 + 25 * 2 / 5) / 101
    by_hand = [first] * 3 + [second] * 6 + [third]
    assert statistics["AP_by_iou"] == pytest.approx(by_hand, abs=1e-12)
    assert statistics["AP50"] == pytest.approx(0.6287, abs=5e-5)
    assert statistics["AP"] == pytest.approx(sum(by_hand) / 10, abs=1e-12)
    # One detection an image: image 1 finds one of two, image 2 the 0.6 one up to 0.60, image 3 none: 2/4 and
    # 1/4.
    assert statistics["AR1"] == pytest.approx((3 * 2 / 4 + 7 * 1 / 4) / 10, abs=1e-12)
    assert statistics["AR100"] == pytest.approx((9 * 3 / 4 + 2 / 4) / 10, abs=1e-12)
    assert (statistics["APm"], statistics["APl"], statistics["ARl"]) == (
        -1,
        -1,
        -1,
    )  # 100 pixels: all are small
    assert statistics["APs"] == statistics["AP"] == statistics["AP_by_category"][7]


def match(similarity, ignore=None, crowd=None, thresholds=(0.5,)):
    similarity = np.array(similarity, dtype=float)
    G = similarity.shape[1]
    ignore, crowd = (np.zeros(G, bool) if flags is None else np.array(flags) for flags in (ignore, crowd))
    return match_detections(similarity, ignore, crowd, np.array(thresholds)).tolist()


def test_matching_is_greedy_in_score_order():
    assert match([[0.6], [0.9]], thresholds=(0.5, 0.8)) == [[0, -1], [-1, 0]]
    assert match([[0.6, 0.9], [0.7, 0.8]]) == [[1, 0]]


def test_matching_takes_the_last_of_equals_and_a_threshold_is_met_by_equality():
    assert match([[0.7, 0.7, 0.6]]) == [[1]]
    assert match([[0.5]]) == [[0]]
    assert match([[1.0]], thresholds=(1.0,)) == [[0]]


def test_matching_prefers_ground_truths_that_count():
    assert match([[0.9, 0.6]], ignore=[True, False]) == [[1]]  # the ignored one fits better and still loses
    assert match([[0.9, 0.4]], ignore=[True, False]) == [[0]]  # the other one does not reach the threshold
    assert match([[0.9, 0.6], [0.9, 0.6]], ignore=[True, False]) == [[1, 0]]


def test_only_crowds_are_matched_many_times():
    assert match([[0.9], [0.8], [0.7]], ignore=[True], crowd=[True]) == [[0, 0, 0]]
    assert match([[0.9], [0.8], [0.7]], ignore=[True], crowd=[False]) == [[0, -1, -1]]


def test_precision_recall_and_interpolation_by_hand():
    hit, ignored = np.array([[True, True, False, True]]), np.array([[False, True, False, False]])
    precision, recall = precision_recall(np.array([0.5, 0.8, 0.7, 0.9]), hit, ignored, 4)
    # by score: hit, ignored, error, hit
    np.testing.assert_allclose(precision[0], [1, 1, 1 / 2, 2 / 3], rtol=1e-12)
    np.testing.assert_array_equal(recall[0], [1 / 4, 1 / 4, 1 / 4, 2 / 4])
    curve = interpolated_precision(precision[0], recall[0])
    np.testing.assert_allclose(curve, [1] * 26 + [2 / 3] * 25 + [0] * 50, rtol=1e-12)
    assert curve.mean() == pytest.approx(0.4224, abs=5e-5)  # the docstring's number
    np.testing.assert_array_equal(interpolated_precision(np.zeros(0), np.zeros(0)), np.zeros(101))


# ---------------------------------------- against pycocotools


def random_box(rng) -> list[float]:
    """Integer corners, so that equal IoUs and IoUs on a threshold happen; sizes from 1 pixel up."""
    w, h = (int(max(1, size * rng.random() ** 1.5)) for size in (WIDTH, HEIGHT))
    return [int(rng.integers(0, WIDTH - w + 1)), int(rng.integers(0, HEIGHT - h + 1)), w, h]


def jittered(box, rng) -> list[int]:
    """A hit of any quality: the box itself, or one shifted and resized by a few percent or many."""
    x, y, w, h = box
    spread = rng.choice([0.0, 0.02, 0.1])
    dx, dy, dw, dh = (int(round(rng.normal(0, spread) * size)) for size in (w, h, w, h))
    x, y = min(max(0, x + dx), WIDTH - 1), min(max(0, y + dy), HEIGHT - 1)
    return [x, y, max(1, min(w + dw, WIDTH - x)), max(1, min(h + dh, HEIGHT - y))]


def mask_of(box, rng) -> dict:
    """The box with a hole; now and then nothing at all."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    x, y, w, h = box
    if rng.random() < 0.95:
        mask[y : y + h, x : x + w] = 1
        mask[y + h // 2 : y + h // 2 + h // 4, x + w // 2 : x + w // 2 + w // 4] = 0
    code = coco_mask.encode(np.asfortranarray(mask))
    return {"size": code["size"], "counts": code["counts"].decode()}


def points_of(box, rng, J, visible) -> list[float]:
    x, y, w, h = box
    grid = np.linspace(0.1, 0.9, J)
    points = np.stack([x + w * grid, y + h * grid[::-1], 1 + np.arange(J) % 2], axis=1)
    points[rng.random(J) > visible] = 0
    return points.ravel().tolist()


def random_case(seed, kind, num_images, num_categories, most_truths, most_detections, score_levels, crowds, J=17):
    """A COCO ground truth and results with crowds, ties, empty images, and a category without truth."""
    rng = np.random.default_rng(seed)
    image_ids = rng.permutation(num_images * 3)[:num_images].tolist()
    categories = [{"id": 3 * k + 2, "name": str(k), "keypoints": ["p"] * J} for k in range(num_categories)]
    annotations, results = [], []
    for image_id in image_ids:
        for category in categories[: max(1, num_categories - 1)]:  # the last has detections at most
            for _ in range(rng.integers(0, most_truths + 1)):
                box = random_box(rng)
                area = [box[2] * box[3], 32**2, 96**2, 0.6 * box[2] * box[3]][rng.choice(4, p=[0.5, 0.1, 0.1, 0.3])]
                points = points_of(box, rng, J, rng.choice([0.0, 0.7, 1.0]))
                entry = {
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(rng.random() < crowds),
                    "keypoints": points,
                }
                entry |= {"num_keypoints": sum(v > 0 for v in points[2::3])}
                entry |= {"segmentation": mask_of(box, rng)}
                annotations.append({**entry, "image_id": image_id, "category_id": category["id"]})
        for category in categories:
            near = [a["bbox"] for a in annotations if (a["image_id"], a["category_id"]) == (image_id, category["id"])]
            for _ in range(rng.integers(0, most_detections + 1)):
                box = jittered(near[rng.integers(len(near))], rng) if near and rng.random() < 0.7 else random_box(rng)
                field = {"bbox": box}
                if kind != "bbox":
                    field = {"segmentation": mask_of(box, rng)}
                if kind == "keypoints":
                    field = {"keypoints": points_of(box, rng, J, 1.0)}
                    field |= {"bbox": random_box(rng)} if seed % 2 else {}  # all or none: it decides the area
                score = float(rng.integers(1, score_levels + 1)) / score_levels
                results.append({**field, "image_id": image_id, "category_id": category["id"], "score": score})
    order = rng.permutation(len(results))
    ids = 1 + rng.permutation(len(annotations))
    annotations = [{**a, "id": int(i)} for a, i in zip(annotations, ids, strict=True)]
    images = [{"id": i, "height": HEIGHT, "width": WIDTH} for i in image_ids]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    return truth, [results[i] for i in order]


cases = given(
    seed=st.integers(0, 10**6),
    num_images=st.integers(1, 4),
    num_categories=st.integers(1, 3),
    most_truths=st.integers(0, 5),
    most_detections=st.sampled_from([0, 3, 12, 30]),
    score_levels=st.sampled_from([1, 3, 1000]),
    crowds=st.sampled_from([0.0, 0.2, 1.0]),
)


@settings(max_examples=30, deadline=None, derandomize=True)
@cases
@example(
    seed=4, num_images=3, num_categories=2, most_truths=4, most_detections=260, score_levels=5, crowds=0.2
)  # about 130 detections an image and category, five scores
def test_boxes_equal_pycocotools(**case):
    assert_three_agree(*random_case(kind="bbox", **case), "bbox")


@settings(max_examples=30, deadline=None, derandomize=True)
@cases
@example(seed=2, num_images=2, num_categories=2, most_truths=4, most_detections=240, score_levels=5, crowds=0.2)
def test_masks_equal_pycocotools(**case):
    assert_three_agree(*random_case(kind="segm", **case), "segm")


@settings(max_examples=30, deadline=None, derandomize=True)
@cases
@example(
    seed=3, num_images=3, num_categories=2, most_truths=5, most_detections=60, score_levels=3, crowds=0.2
)  # above the 20 detections that count
def test_keypoints_equal_pycocotools(**case):
    assert_three_agree(*random_case(kind="keypoints", **case), "keypoints")


def test_keypoints_of_another_skeleton_equal_pycocotools():
    truth, results = random_case(6, "keypoints", 3, 2, 4, 12, 1000, 0.1, J=3)
    assert_three_agree(truth, results, "keypoints", sigmas=[0.03, 0.1, 0.05])
    default = average_precision(truth, results, "keypoints")
    assert 0 < default["AP"] < 1
    assert default["AP_by_iou"] == pytest.approx(evaluate_results(truth, results, "keypoints")["AP_by_iou"])
    assert default["AP50"] > default["AP_by_iou"][-1]


def test_the_random_data_hold_what_they_promise():
    truth, results = random_case(4, "bbox", 3, 2, 4, 260, 5, 0.2)
    per_cell = [sum(r["image_id"] == i["id"] and r["category_id"] == 2 for r in results) for i in truth["images"]]
    assert max(per_cell) > 100
    assert any(a["iscrowd"] for a in truth["annotations"])
    statistics = average_precision(truth, results, "bbox")
    assert statistics["AP_by_category"][5] == -1  # detections, but no ground truth
    assert 0 < statistics["AP"] < 1
    assert min(statistics[f"AP{size}"] for size in "sml") > 0


@pytest.mark.parametrize(
    ("key", "truth", "results", "kind", "published"),
    [
        ("val2014_100 fakebbox bbox", "instances_val2014_100", "instances_val2014_fakebbox100_results",
         "bbox",
         {"AP": 0.505, "AP50": 0.697, "AP75": 0.573, "APs": 0.586, "APm": 0.519, "APl": 0.501, "AR1": 0.387,
          "AR10": 0.594, "AR100": 0.595, "ARs": 0.640, "ARm": 0.566, "ARl": 0.564}),
        ("val2014_100 fakesegm segm", "instances_val2014_100", "instances_val2014_fakesegm100_results",
         "segm",
         {"AP": 0.320, "AP50": 0.562, "AP75": 0.299, "APs": 0.387, "APm": 0.310, "APl": 0.327, "AR1": 0.268,
          "AR10": 0.415, "AR100": 0.417, "ARs": 0.469, "ARm": 0.377, "ARl": 0.381}),
        ("kp_single keypoints", "kp_single_gt", "kp_single_dt", "keypoints",
         {"AP": 0.50488, "AP50": 0.72277, "AP75": 0.63366}),
        ("person_keypoints_gt jitter keypoints", "person_keypoints_gt", "person_keypoints_jitter_results",
         "keypoints", {}),
    ],
)  # fmt: skip
def test_published_numbers_on_real_coco(real_data, key, truth, results, kind, published):
    def read(name):
        return json.loads((real_data / "eval_parity" / f"{name}.json").read_text())

    ground_truth, detections = read(truth), read(results)
    ours, theirs = (f(ground_truth, detections, kind) for f in (average_precision, evaluate_results))
    expected = dict(zip(NAMES[kind], read("expected_pycocotools_2.0.11")[key], strict=True))
    for name, value in expected.items():
        assert ours[name] == pytest.approx(value, abs=1e-10), name  # the file holds 10 digits
        assert theirs[name] == pytest.approx(value, abs=1e-10), name
    for name, value in published.items():  # COCO prints three digits; the fourth and fifth are ours to round
        assert ours[name] == pytest.approx(value, abs=5.001e-4 if value == round(value, 3) else 5.001e-6), name
    for name in ours:
        assert ours[name] == pytest.approx(theirs[name], abs=1e-10), name


# ---------------------------------------- the known traps


def one_image(kind, annotations, **image):
    categories = [{"id": 1, "name": "person", "keypoints": ["p"] * 2 if kind == "keypoints" else []}]
    entries = [
        {"id": i, "image_id": 9, "category_id": 1, "iscrowd": 0, **a} for i, a in enumerate(annotations, start=1)
    ]
    return {
        "images": [{"id": 9, "height": 40, "width": 60, **image}],
        "annotations": entries,
        "categories": categories,
    }


def test_detections_in_a_crowd_are_neither_hits_nor_errors():
    person, crowd = (
        {"bbox": [0, 0, 10, 10], "area": 100},
        {"bbox": [20, 0, 40, 40], "area": 1600, "iscrowd": 1},
    )
    truth = one_image("bbox", [person, crowd])
    inside = [{"image_id": 9, "category_id": 1, "bbox": [25, y, 10, 8], "score": 0.9} for y in (0, 10, 20)]
    hit = [{"image_id": 9, "category_id": 1, "bbox": [0, 0, 10, 10], "score": 0.5}]
    assert average_precision(truth, inside + hit)["AP"] == pytest.approx(1.0, abs=1e-12)
    no_crowd = one_image("bbox", [person])
    assert average_precision(no_crowd, inside + hit)["AP"] == pytest.approx(1 / 4, abs=1e-12)


def test_ties_keep_the_order_of_images_and_of_results():
    # Twenty detections of one score: the first is the hit, so precision 1 is reached at recall 1.
    truth = one_image("bbox", [{"bbox": [0, 0, 10, 10], "area": 100}])
    hit = {"image_id": 9, "category_id": 1, "bbox": [0, 0, 10, 10], "score": 0.5}
    errors = [{**hit, "bbox": [30, 20, 10, 10]}] * 19
    assert average_precision(truth, [hit, *errors])["AP"] == pytest.approx(1.0, abs=1e-12)
    assert average_precision(truth, [*errors, hit])["AP"] == pytest.approx(1 / 20, abs=1e-12)
    second_image = {**truth, "images": [*truth["images"], {"id": 4, "height": 40, "width": 60}]}
    elsewhere = [{**error, "image_id": 4} for error in errors]  # image 4 comes before image 9, wherever it is listed
    assert average_precision(second_image, [hit, *elsewhere])["AP"] == pytest.approx(1 / 20, abs=1e-12)


def test_area_of_a_mask_detection_is_its_mask_even_if_the_result_has_a_box():
    mask = np.zeros((200, 300), dtype=np.uint8)
    mask[np.arange(150), np.arange(150)] = 1  # 150 pixels, small; its box has 22500, large
    code = coco_mask.encode(np.asfortranarray(mask))
    truth = one_image("segm", [{"segmentation": code, "area": 150}], height=200, width=300)
    hit = {"image_id": 9, "category_id": 1, "segmentation": code, "score": 0.5}
    miss = {**hit, "segmentation": coco_mask.encode(np.asfortranarray(mask[:, ::-1])), "score": 0.9}
    boxed = [{**result, "bbox": [0, 0, 150, 150]} for result in (hit, miss)]
    for results in ([hit, miss], boxed):  # the miss is small as well: one error before the hit
        for statistics in (
            average_precision(truth, results, "segm"),
            evaluate_results(truth, results, "segm"),
        ):
            assert statistics["APs"] == pytest.approx(0.5, abs=1e-12)
            assert statistics["APl"] == -1
    names = dict(zip(BOX_NAMES, raw_pycocotools(truth, boxed, "segm"), strict=True))
    assert names["APs"] == pytest.approx(1.0)  # what pycocotools alone makes of it: the miss passes for large


def test_annotation_number_zero_can_be_found():
    truth = one_image("bbox", [{"bbox": [0, 0, 10, 10], "area": 100, "id": 0}])
    results = [{"image_id": 9, "category_id": 1, "bbox": [0, 0, 10, 10], "score": 0.5}]
    assert average_precision(truth, results)["AP"] == pytest.approx(1.0)
    assert evaluate_results(truth, results, "bbox")["AP"] == pytest.approx(1.0)
    assert raw_pycocotools(truth, results, "bbox")[0] == 0.0  # pycocotools alone reads id 0 as "no match"


def test_people_without_visible_keypoints_are_ignored():
    seen = {"bbox": [0, 0, 10, 10], "area": 4000, "keypoints": [2, 2, 2, 8, 8, 1]}
    unseen = {"bbox": [30, 20, 10, 10], "area": 4000, "keypoints": [0, 0, 0, 0, 0, 0]}
    truth = one_image("keypoints", [seen, unseen, {k: v for k, v in unseen.items() if k != "keypoints"}])
    near_unseen = {"image_id": 9, "category_id": 1, "keypoints": [32, 22, 1, 38, 28, 1], "score": 0.9}
    hit = {**near_unseen, "keypoints": [2, 2, 1, 8, 8, 1], "score": 0.5}
    for evaluator in (average_precision, evaluate_results):
        # Two detections at the two unseen people: ignored. A third there has nothing left to match: an error.
        assert evaluator(truth, [near_unseen, near_unseen, hit], "keypoints")["AP"] == pytest.approx(1.0)
        # (its own extent, 36 pixels, lies in no range but "all")
        assert evaluator(truth, [near_unseen] * 3 + [hit], "keypoints")["AP"] == pytest.approx(0.5)


def test_keypoints_are_asked_only_of_categories_that_have_them():
    person = {"bbox": [0, 0, 10, 10], "area": 4000, "keypoints": [2, 2, 2, 8, 8, 1]}
    truth = one_image("keypoints", [person, {"bbox": [0, 0, 5, 5], "area": 25, "category_id": 2}])
    truth["categories"].append({"id": 2, "name": "ball"})
    hit = {"image_id": 9, "category_id": 1, "keypoints": [2, 2, 1, 8, 8, 1], "score": 0.5}
    for evaluator in (average_precision, evaluate_results):
        statistics = evaluator(truth, [hit, {**hit, "category_id": 2}], "keypoints")
        assert statistics["AP"] == pytest.approx(1.0)
        assert statistics["AP_by_category"].keys() == {1}


@pytest.mark.parametrize("kind", ["bbox", "segm", "keypoints"])
def test_nothing_detected_is_zero_and_nothing_to_detect_is_undefined(kind):
    truth, _ = random_case(4, kind, 3, 2, 4, 0, 3, 0.0)
    bare = {**truth, "annotations": []}
    _, results = random_case(4, kind, 3, 2, 4, 12, 3, 0.0)
    for evaluator in (average_precision, evaluate_results):
        assert evaluator(truth, [], kind)["AP"] == 0.0
        assert evaluator(bare, [], kind)["AP"] == -1.0
        known = {image["id"] for image in bare["images"]}
        assert evaluator(bare, [r for r in results if r["image_id"] in known], kind)["AP"] == -1.0
        assert evaluator({"images": [], "annotations": [], "categories": []}, [], kind)["AP"] == -1.0


@pytest.mark.parametrize("kind", ["bbox", "segm", "keypoints"])
def test_ground_truth_as_prediction_is_perfect(kind):
    truth, _ = random_case(11, kind, 4, 3, 5, 0, 3, 0.2)
    field = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}[kind]
    results = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "score": 1.0, field: a[field]}
        for a in truth["annotations"]
        if not a["iscrowd"]
        and (kind != "keypoints" or a["num_keypoints"] > 0)
        and coco_mask.area(a["segmentation"]) > 0
    ]
    truth["annotations"] = [a for a in truth["annotations"] if coco_mask.area(a["segmentation"]) > 0]
    statistics = average_precision(truth, results, kind)
    assert statistics["AP"] == pytest.approx(1.0, abs=1e-12)
    assert statistics["AR"] == pytest.approx(1.0, abs=1e-12)
