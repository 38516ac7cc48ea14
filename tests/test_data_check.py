"""The folder check: every kind of fault at once, with place and remedy, and no JSON makes it stop."""

import copy
import json
import warnings
from pathlib import Path

import pytest
from coco_folder import sound_document, write_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mrcnn_scratch.datasets.check import Fault, check_folder, summarise
from mrcnn_scratch.datasets.coco import CocoDataset

NAN, INF = float("nan"), float("inf")
MISSING = object()


def edit(*path_and_value):
    """A damage: set (or delete, if MISSING) the value at a path of keys and indices."""
    *path, last, value = path_and_value

    def damage(document):
        for key in path:
            document = document[key]
        if value is MISSING:
            del document[last]
        else:
            document[last] = value

    return damage


def repeat(part, index, **changes):
    return lambda document: document[part].append(copy.deepcopy(document[part][index]) | changes)


A, B = ("annotations", 0), ("annotations", 1)
BOX, CROWD_RLE = (*A, "bbox"), (*B, "segmentation")

# (damage, kind, severity, record, image_id, annotation_id)
DAMAGES = {
    "no images": (edit("images", MISSING), "missing_images", "error", None),
    "images null": (edit("images", None), "missing_images", "error", None),
    "images object": (edit("images", {}), "missing_images", "error", None),
    "images empty": (edit("images", []), "missing_images", "error", None),
    "categories empty": (edit("categories", []), "missing_categories", "error", None),
    "no annotations": (edit("annotations", MISSING), "missing_annotations", "error", None),
    "no categories": (edit("categories", MISSING), "missing_categories", "error", None),
    "file twice": (repeat("images", 2, id=41), "duplicate_file_name", "warning", ("images", 3)),
    "image is a string": (lambda d: d["images"].append("x"), "bad_record", "error", ("images", 3)),
    "image without id": (edit("images", 2, "id", MISSING), "bad_image_id", "error", ("images", 2)),
    "image id text": (edit("images", 2, "id", "40"), "bad_image_id", "error", ("images", 2)),
    "image id true": (edit("images", 2, "id", True), "bad_image_id", "error", ("images", 2)),
    "image id list": (edit("images", 2, "id", [40]), "bad_image_id", "error", ("images", 2)),
    "image twice": (repeat("images", 2), "duplicate_image_id", "error", ("images", 3)),
    "no file_name": (edit("images", 2, "file_name", MISSING), "bad_file_name", "error", ("images", 2)),
    "file_name empty": (edit("images", 2, "file_name", ""), "bad_file_name", "error", ("images", 2)),
    "file_name NUL": (edit("images", 2, "file_name", "a\0b"), "bad_file_name", "error", ("images", 2)),
    "file_name long": (edit("images", 2, "file_name", "x" * 5000), "corrupt_image", "error", ("images", 2)),
    "file_name odd": (edit("images", 2, "file_name", "\ud800"), "corrupt_image", "error", ("images", 2)),
    "file_name folder": (edit("images", 2, "file_name", "."), "corrupt_image", "error", ("images", 2)),
    "file gone": (edit("images", 2, "file_name", "gone.png"), "missing_image", "error", ("images", 2)),
    "width text": (edit("images", 2, "width", "9"), "bad_image_size", "error", ("images", 2)),
    "width zero": (edit("images", 2, "width", 0), "bad_image_size", "error", ("images", 2)),
    "width huge": (edit("images", 2, "width", 10**9), "bad_image_size", "error", ("images", 2)),
    "height none": (edit("images", 2, "height", MISSING), "bad_image_size", "error", ("images", 2)),
    "size swapped": (
        lambda d: d["images"][2].update(width=11, height=9),
        "size_mismatch",
        "error",
        ("images", 2),
    ),
    "category twice": (repeat("categories", 2), "duplicate_category_id", "error", ("categories", 3)),
    "category name twice": (
        repeat("categories", 2, id=2),
        "duplicate_category_name",
        "warning",
        ("categories", 3),
    ),
    "category null": (lambda d: d["categories"].append(None), "bad_record", "error", ("categories", 3)),
    "category unnamed": (edit("categories", 1, "name", 5), "bad_category_name", "error", ("categories", 1)),
    "keypoint names": (
        edit("categories", 2, "keypoints", "x"),
        "bad_keypoint_names",
        "error",
        ("categories", 2),
    ),
    "keypoint name": (
        edit("categories", 2, "keypoints", [1]),
        "bad_keypoint_names",
        "error",
        ("categories", 2),
    ),
    "skeleton from 0": (
        edit("categories", 1, "skeleton", [[0, 1]]),
        "bad_skeleton",
        "warning",
        ("categories", 1),
    ),
    "skeleton null": (edit("categories", 1, "skeleton", None), "bad_skeleton", "warning", ("categories", 1)),
    "annotation list": (lambda d: d["annotations"].append([]), "bad_record", "error", ("annotations", 4)),
    "annotation without id": (edit(*A, "id", MISSING), "bad_annotation_id", "error", A),
    "annotation id 1.5": (edit(*A, "id", 1.5), "bad_annotation_id", "error", A),
    "annotation twice": (repeat("annotations", 0), "duplicate_annotation_id", "error", ("annotations", 4)),
    "unknown image": (edit(*A, "image_id", 8), "unknown_image", "error", A),
    "image_id list": (edit(*A, "image_id", []), "unknown_image", "error", A),
    "unknown category": (
        edit("annotations", 2, "category_id", 2),
        "unknown_category",
        "error",
        ("annotations", 2),
    ),
    "category_id none": (
        edit("annotations", 2, "category_id", MISSING),
        "unknown_category",
        "error",
        ("annotations", 2),
    ),
    "box missing": (edit(*A, "bbox", MISSING), "bad_box", "error", A),
    "box null": (edit(*BOX, None), "bad_box", "error", A),
    "box of three": (edit(*BOX, [1, 2, 3]), "bad_box", "error", A),
    "box NaN": (edit(*BOX, [1, 2, 3, NAN]), "bad_box", "error", A),
    "box infinite": (edit(*BOX, [1, 2, INF, 3]), "bad_box", "error", A),
    "box of text": (edit(*BOX, ["1", 2, 3, 4]), "bad_box", "error", A),
    "box of a long integer": (edit(*BOX, [1, 2, 10**400, 3]), "bad_box", "error", A),
    "box without width": (edit(*BOX, [2, 3, 0, 8]), "zero_area_box", "error", A),
    "box of height -1": (edit(*BOX, [2, 3, 4, -1]), "zero_area_box", "error", A),
    "box vanishing in float32": (edit(*BOX, [2, 3, 1e-9, 4]), "zero_area_box", "error", A),
    "box too far left": (edit(*BOX, [-1, 3, 5, 8]), "box_outside_image", "error", A),
    "box too far right": (edit(*BOX, [20, 3, 5, 8]), "box_outside_image", "error", A),
    "box too far down": (edit(*BOX, [2, 3, 5, 14]), "box_outside_image", "error", A),
    "box just outside": (edit(*BOX, [24, 3, 0.5, 8]), "box_outside_image", "error", A),
    "box far away": (edit(*BOX, [200, 300, 5, 8]), "box_outside_image", "error", A),
    "box overflowing": (edit(*BOX, [1e308, 2, 1e308, 3]), "box_outside_image", "error", A),
    "iscrowd missing": (edit(*A, "iscrowd", MISSING), "missing_iscrowd", "warning", A),
    "iscrowd 2": (edit(*A, "iscrowd", 2), "bad_iscrowd", "error", A),
    "iscrowd null": (edit(*A, "iscrowd", None), "bad_iscrowd", "error", A),
    "iscrowd list": (edit(*A, "iscrowd", []), "bad_iscrowd", "error", A),
    "crowd of polygons": (edit(*A, "iscrowd", 1), "crowd_with_polygons", "warning", A),
    "area missing": (edit(*A, "area", MISSING), "bad_area", "warning", A),
    "area NaN": (edit(*A, "area", NAN), "bad_area", "warning", A),
    "area negative": (edit(*A, "area", -1), "bad_area", "warning", A),
    "segmentation missing": (edit(*A, "segmentation", MISSING), "missing_segmentation", "error", A),
    "segmentation empty": (edit(*A, "segmentation", []), "missing_segmentation", "error", A),
    "segmentation text": (edit(*A, "segmentation", "x"), "bad_segmentation", "error", A),
    "polygon not nested": (edit(*A, "segmentation", [2, 3, 12, 3, 12, 11]), "bad_polygon", "error", A),
    "polygon odd": (edit(*A, "segmentation", 1, [2, 3, 12, 3, 12, 11, 2]), "bad_polygon", "error", A),
    "polygon of a box": (edit(*A, "segmentation", [[2, 3, 10, 8]]), "bad_polygon", "error", A),
    "polygon empty": (edit(*A, "segmentation", 1, []), "bad_polygon", "error", A),
    "polygon null": (edit(*A, "segmentation", 1, None), "bad_polygon", "error", A),
    "polygon NaN": (edit(*A, "segmentation", 1, 2, NAN), "bad_polygon", "error", A),
    "polygon of text": (edit(*A, "segmentation", 1, 2, "3"), "bad_polygon", "error", A),
    "polygon outside": (edit(*A, "segmentation", 1, 2, 25), "bad_polygon", "error", A),
    "polygon astronomical": (edit(*A, "segmentation", 1, 2, 1e30), "bad_polygon", "error", A),
    "polygon without a pixel": (
        edit(*A, "segmentation", [[3.1, 3.1, 3.2, 3.1, 3.2, 3.2]]),
        "empty_mask",
        "warning",
        A,
    ),
    "RLE size swapped": (edit(*CROWD_RLE, "size", [24, 16]), "bad_rle", "error", B),
    "RLE size null": (edit(*CROWD_RLE, "size", None), "bad_rle", "error", B),
    "RLE runs short": (edit(*CROWD_RLE, "counts", [3, 4]), "bad_rle", "error", B),
    "RLE runs long": (edit(*CROWD_RLE, "counts", [3, 400]), "bad_rle", "error", B),
    "RLE run negative": (edit(*CROWD_RLE, "counts", [400, -16]), "bad_rle", "error", B),
    "RLE run text": (edit(*CROWD_RLE, "counts", [3, "x"]), "bad_rle", "error", B),
    "RLE without counts": (edit(*CROWD_RLE, "counts", MISSING), "bad_rle", "error", B),
    "RLE string cut": (
        edit("annotations", 3, "segmentation", "counts", "\\65"),
        "bad_rle",
        "error",
        ("annotations", 3),
    ),
    "RLE string foreign": (
        edit("annotations", 3, "segmentation", "counts", "é~"),
        "bad_rle",
        "error",
        ("annotations", 3),
    ),
    "RLE empty": (edit(*CROWD_RLE, "counts", [384]), "empty_mask", "warning", B),
    "keypoints null": (edit(*A, "keypoints", None), "bad_keypoints", "error", ("keypoints", 0)),
    "keypoints NaN": (edit(*A, "keypoints", 0, NAN), "bad_keypoints", "error", ("keypoints", 0)),
    "keypoints 8": (
        lambda d: d["annotations"][0]["keypoints"].pop(),
        "keypoint_count",
        "error",
        ("keypoints", 0),
    ),
    "keypoints 51": (edit(*A, "keypoints", [0] * 51), "keypoint_count", "error", ("keypoints", 0)),
    "keypoint v 3": (edit(*A, "keypoints", 2, 3), "keypoint_visibility", "error", ("keypoints", 0)),
    "keypoint right": (edit(*A, "keypoints", 0, 24), "keypoint_outside_image", "error", ("keypoints", 0)),
    "keypoint left": (edit(*A, "keypoints", 6, -1), "keypoint_outside_image", "error", ("keypoints", 0)),
    "keypoint below": (edit(*A, "keypoints", 1, 16), "keypoint_outside_image", "error", ("keypoints", 0)),
    "num_keypoints": (edit(*A, "num_keypoints", 3), "num_keypoints", "warning", ("keypoints", 0)),
    "num_keypoints text": (edit(*A, "num_keypoints", "2"), "num_keypoints", "warning", ("keypoints", 0)),
}
# What a damage makes faulty besides: the annotations of a category or an image that is gone.
CONSEQUENCES = {"unknown_category", "unknown_image", "keypoint_count"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("coco"))


@pytest.fixture(autouse=True)
def no_surprises():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=RuntimeWarning)  # NumPy met a number that it should not have met
        yield


def test_a_sound_folder_has_no_fault(folder):
    assert check_folder(write_folder(folder)) == []


@pytest.mark.parametrize("name", DAMAGES)
def test_one_damage_is_one_fault(folder, name):
    damage, kind, severity, record = DAMAGES[name]
    document = sound_document()
    damage(document)
    faults = check_folder(write_folder(folder, document, images=False))
    found = [fault for fault in faults if fault.kind == kind]
    assert len(found) == 1, summarise(faults)
    assert {fault.kind for fault in faults} - CONSEQUENCES - {kind} == set(), summarise(faults)
    fault = found[0]
    assert fault.severity == severity and fault.record == record
    assert fault.file and fault.value and fault.remedy
    assert str(fault).startswith(f"{severity}: {fault.file}") and "\n" not in str(fault)
    if record is not None and record[0] in ("annotations", "keypoints"):
        annotation = document["annotations"][record[1]]
        ids = annotation if isinstance(annotation, dict) else {}
        assert fault.annotation_id == (ids.get("id") if type(ids.get("id")) is int else None)
        assert fault.image_id == (ids.get("image_id") if type(ids.get("image_id")) is int else None)
        assert fault.file.endswith("instances_train.json")
    if kind in ("missing_image", "size_mismatch"):
        assert fault.file.endswith(document["images"][2]["file_name"]) and fault.image_id == 40


def test_all_at_once(folder):
    # One image record, one category and every annotation damaged together: none hides another.
    document = sound_document()
    for damage in (
        edit(*BOX, [2, 3, 0, 8]),
        edit(*A, "segmentation", 1, [2, 3]),
        edit(*A, "keypoints", 2, 7),
        edit(*A, "category_id", 77),
        edit(*CROWD_RLE, "counts", [1]),
        edit("annotations", 2, "image_id", None),
        edit("annotations", 3, "id", 61),
        edit("images", 2, "file_name", "gone.png"),
        repeat("categories", 2),
    ):
        damage(document)
    kinds = sorted(fault.kind for fault in check_folder(write_folder(folder, document, images=False)))
    assert kinds == sorted(
        [
            "zero_area_box",
            "bad_polygon",
            "keypoint_visibility",
            "unknown_category",
            "bad_rle",
            "unknown_image",
            "duplicate_annotation_id",
            "missing_image",
            "duplicate_category_id",
        ]
    )


def test_an_id_with_two_files_belongs_to_neither(tmp_path):
    document = sound_document()
    document["images"] += [dict(document["images"][2], id=7), dict(document["images"][1], id=7)]
    write_folder(tmp_path, document)
    faults = check_folder(tmp_path)
    clashes = [f.record for f in faults if f.kind == "duplicate_image_id"]
    assert sorted(clashes) == [("images", 0), ("images", 3), ("images", 4)]
    with pytest.warns(UserWarning, match="duplicate_image_id"):
        ds = CocoDataset(tmp_path, on_fault="drop")
    assert ds.image_ids == [3, 40] and ds.dropped_annotations == [100, 5]
    document["images"][3:] = [dict(document["images"][0])]  # the same file again is only a repetition
    with pytest.warns(UserWarning, match="duplicate_image_id"):
        ds = CocoDataset(write_folder(tmp_path, document), on_fault="drop")
    assert ds.image_ids == [7, 3, 40] and ds.dropped_annotations == []


def test_a_cut_image_is_found(tmp_path):
    write_folder(tmp_path)
    path = tmp_path / "images/b.jpg"
    path.write_bytes(path.read_bytes()[:-60])
    (fault,) = check_folder(tmp_path)
    assert (fault.kind, fault.image_id, fault.record) == ("corrupt_image", 3, ("images", 1))
    assert fault.file == str(path)


@pytest.mark.parametrize(
    ("orientation", "size", "ambiguous"),
    [(1, (9, 11), False), (3, (9, 11), True), (6, (9, 11), False), (1, (10, 10), False), (6, (10, 10), True)],
)
def test_ambiguous_orientation_is_a_warning(tmp_path, orientation, size, ambiguous):
    document = sound_document()
    document["images"][2] |= {"width": size[0], "height": size[1]}
    write_folder(tmp_path, document)
    exif = Image.Exif()
    exif[274] = orientation
    Image.new("RGB", size).save(tmp_path / "images/empty.png", exif=exif)
    faults = check_folder(tmp_path)
    expected = [("ambiguous_orientation", "warning", 40)] if ambiguous else []
    assert [(fault.kind, fault.severity, fault.image_id) for fault in faults] == expected


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff\xfe\x00", b'{"images": [1,]}', b"[" * 100_000, b"9" * 5000], ids=range(6)
)
def test_what_is_no_json(folder, data):
    (fault,) = check_folder(write_folder(folder, data, images=False))
    assert fault.kind == "bad_json" and fault.record is None
    with pytest.raises(ValueError, match="bad_json"):
        CocoDataset(folder, on_fault="drop")


@pytest.mark.parametrize("data", [b"null", b"[]", b"3", b'"text"'])
def test_json_that_is_no_object(folder, data):
    (fault,) = check_folder(write_folder(folder, data, images=False))
    assert fault.kind == "bad_file"


def test_splits(tmp_path):
    broken = sound_document()
    broken["annotations"][0]["bbox"] = []
    write_folder(tmp_path)
    write_folder(tmp_path, broken, "instances_val")
    write_folder(tmp_path, {"annotations": [{"caption": "no instances"}]}, "captions_val")
    (fault,) = check_folder(tmp_path)
    assert fault.file.endswith("instances_val.json")
    assert check_folder(tmp_path, "train") == [] and check_folder(tmp_path, "val") == [fault]
    (fault,) = check_folder(tmp_path, "test")
    assert fault.kind == "no_annotations" and "instances_test.json" in fault.value
    for nothing in (tmp_path / "images", tmp_path / "nowhere"):
        (fault,) = check_folder(nothing)
        assert fault.kind == "no_annotations" and "\n" not in str(fault)


def test_boxes_only(folder):
    document = sound_document()
    for annotation in document["annotations"]:
        del annotation["segmentation"]
    write_folder(folder, document, images=False)
    assert [fault.kind for fault in check_folder(folder)] == ["missing_segmentation"] * 4
    assert check_folder(folder, masks=False) == []


def test_second_keypoint_file(tmp_path):
    people = sound_document()
    people["annotations"] = [people["annotations"][0]]
    write_folder(tmp_path)
    write_folder(tmp_path, people, "person_keypoints_train")
    assert check_folder(tmp_path) == []
    for damage, kind in [
        (edit(*A, "keypoints", 2, 9), "keypoint_visibility"),
        (edit(*A, "keypoints", MISSING), "bad_keypoints"),
        (edit(*A, "id", 4), "keypoints_without_instance"),
        (edit(*A, "image_id", 3), "keypoints_without_instance"),
        (edit("annotations", 0, None), "bad_record"),
        (repeat("annotations", 0), "duplicate_annotation_id"),
        (edit("categories", 1, "keypoints", None), "bad_keypoint_names"),
        (edit("annotations", None), "missing_annotations"),
    ]:
        damaged = copy.deepcopy(people)
        damage(damaged)
        faults = check_folder(write_folder(tmp_path, damaged, "person_keypoints_train", images=False))
        assert kind in [fault.kind for fault in faults], kind
        assert all(fault.file.endswith("person_keypoints_train.json") for fault in faults)
        assert {fault.kind for fault in faults} <= {kind} | CONSEQUENCES
    (fault,) = check_folder(write_folder(tmp_path, b"[", "person_keypoints_train", images=False))
    assert fault.kind == "bad_json"
    # Instances that cannot be read are one fault, not one more for each keypoint record.
    write_folder(tmp_path, people, "person_keypoints_train", images=False)
    (fault,) = check_folder(write_folder(tmp_path, b"[", images=False))
    assert fault.kind == "bad_json" and fault.file.endswith("instances_train.json")


def test_coco_s_seventeen_where_no_category_names_keypoints(folder):
    document = sound_document()
    del document["categories"][1]["keypoints"], document["categories"][1]["skeleton"]
    document["annotations"][0] |= {"keypoints": [1, 2, 2] * 17, "num_keypoints": 17}
    assert check_folder(write_folder(folder, document, images=False)) == []
    assert CocoDataset(folder, keypoints=True).num_keypoints == 17
    document["annotations"][0]["keypoints"].pop()
    (fault,) = check_folder(write_folder(folder, document, images=False))
    assert fault.kind == "keypoint_count" and "51" in fault.value


def test_rounding_is_no_fault(folder):
    document = sound_document()
    document["annotations"][0]["bbox"] = [-0.99, 0, 25.98, 16.99]
    document["annotations"][0]["segmentation"] = [[-0.99, -0.99, 24.99, 0, 24.99, 16.99]]
    document["annotations"][0]["keypoints"][:2] = [23.99, -0.99]
    assert check_folder(write_folder(folder, document, images=False)) == []


@pytest.mark.parametrize("split", ["train", "val"])
def test_real_folder_is_sound(real_data, split):
    assert check_folder(real_data / "coco_free", split) == []


def test_summary_is_cut():
    faults = [Fault("f.json", "bad_box", str(i), "mend it") for i in range(25)]
    lines = summarise(faults).split("\n")
    assert len(lines) == 21 and lines[0].strip() == str(faults[0]) and lines[-1] == "  ... and 5 more"


# Anything at all

REQUIRED = [
    *((part,) for part in ("images", "annotations", "categories")),
    *(("images", i, key) for i in range(3) for key in ("id", "file_name", "width", "height")),
    *(("categories", i, key) for i in range(3) for key in ("id", "name")),
    *(
        ("annotations", i, key)
        for i in range(4)
        for key in ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")
    ),
    ("annotations", 0, "keypoints"),
]
WRONG = [MISSING, None, True, "text", -3.5, NAN, INF, {}, {"a": []}, [None], [[]], [["x"]], []]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def paths_of(value, path=()):
    """Every place in a JSON value."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from paths_of(value[key], (*path, key))


ALL_PATHS = [path for path in paths_of(sound_document()) if path]


@pytest.mark.parametrize("path", REQUIRED, ids=lambda path: ".".join(map(str, path)))
def test_any_wrong_value_in_a_required_place_is_found(folder, path):
    for value in WRONG:
        document = sound_document()
        edit(*path, value)(document)
        faults = check_folder(write_folder(folder, document, images=False))
        where = {fault.record for fault in faults}
        harmless = path[-1] == "name" and value == "text"
        harmless |= path == ("annotations",) and value == []
        harmless |= path == ("annotations", 0, "keypoints") and value is MISSING
        harmless |= path[-1] == "iscrowd" and value is True and path[1] in (1, 3)  # those with an RLE
        if harmless:
            assert faults == []
        elif len(path) == 1:
            assert where & {None, (path[0], 0)}, (value, summarise(faults))
        else:
            assert where & {path[:2], ("keypoints", path[1])}, (value, summarise(faults))


@FUZZ
@given(st.lists(st.tuples(st.sampled_from(ALL_PATHS), JSON), min_size=1, max_size=3))
def test_fuzz_what_is_not_refused_can_be_used(folder, edits):
    # Whatever the JSON: the check answers with faults, and the reader can deliver what it keeps without them.
    document = sound_document()
    for path, value in edits:
        try:
            edit(*path, value)(document)
        except (KeyError, IndexError, TypeError):  # an earlier edit took the place away
            continue
    write_folder(folder, document, images=False)
    faults = check_folder(folder)
    assert all(isinstance(str(fault), str) for fault in faults)
    errors = [fault for fault in faults if fault.severity == "error"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            ds = CocoDataset(folder, keypoints="auto", on_fault="drop")
        except ValueError as error:
            assert errors or "categories name different keypoints" in str(error), error
            return
    assert [str(fault) for fault in ds.dropped] == [str(fault) for fault in errors]
    assert bool(ds.dropped) <= any("left out" in str(w.message) for w in caught)
    kept = 0
    for image, target in ds:
        G, J, (_, H, W) = len(target["boxes"]), ds.num_keypoints, image.shape
        assert target["masks"].shape == (G, H, W) and target["labels"].shape == (G,)
        assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()
        assert (target["boxes"] >= 0).all() and (target["boxes"][:, ::2] <= W).all()
        assert target["area"].isfinite().all() and set(target["iscrowd"].tolist()) <= {0, 1}
        assert not J or (target["keypoints"].shape == (G, J, 3) and target["keypoints"].isfinite().all())
        kept += G
    records = [a for a in document["annotations"] if isinstance(a, dict) and type(a.get("id")) is int]
    nameless = sum(f.kind in ("bad_annotation_id", "bad_record") for f in errors)
    assert kept + len(ds.dropped_annotations) + nameless >= len(records)  # nothing is lost without a name
    assert len(ds.coco_dict()["annotations"]) == kept
    json.dumps(ds.coco_dict())
