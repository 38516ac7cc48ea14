"""The exported folder: what COCO's own tools read out of it is what was drawn."""

import json
import re
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from PIL import Image
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from mrcnn_scratch.datasets.coco_export import export_coco
from mrcnn_scratch.datasets.shapes import PRESETS, ShapesDataset
from mrcnn_scratch.datasets.tracing import run_lengths, trace

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "data" / "shapes-tiny"


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Path, ShapesDataset]:
    """Seven classes, not square, with crowds."""
    dataset = ShapesDataset("coco-like", 18, seed=4, image_size=(160, 224), split="val")
    folder = export_coco(dataset, tmp_path_factory.mktemp("export") / "new" / "folder", "png", crowd_every=6)
    return folder, dataset.with_crowds(6)


def test_pycocotools_reads_back_what_was_drawn(exported):
    folder, dataset = exported
    coco = COCO(folder / "annotations" / "instances_val.json")
    kinds = set()
    for index, image_id in enumerate(dataset.image_ids):
        _, target = dataset[index]
        record = coco.loadImgs(image_id)[0]
        with Image.open(folder / "images" / record["file_name"]) as image:
            assert image.size == (record["width"], record["height"]) == (224, 160)
            assert (np.asarray(image).transpose(2, 0, 1) == dataset.pixels(index)).all()
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=image_id, iscrowd=None))
        assert len(annotations) == len(target["labels"])
        for g, annotation in enumerate(annotations):
            mask = target["masks"][g].numpy()
            assert (coco.annToMask(annotation) == mask).all()
            x, y, w, h = annotation["bbox"]
            assert np.allclose([x, y, x + w, y + h], target["boxes"][g], atol=0.011)
            assert annotation["category_id"] == dataset.label_to_category[int(target["labels"][g])]
            assert annotation["iscrowd"] == int(target["iscrowd"][g])
            assert annotation["area"] == mask.sum()
            assert "keypoints" not in annotation
            segmentation = annotation["segmentation"]
            kind = "polygons" if isinstance(segmentation, list) else type(segmentation["counts"]).__name__
            kinds.add((kind, annotation["iscrowd"]))
            if kind == "str":
                assert trace(mask)[1], "an object without holes should be polygons"
    assert kinds == {("polygons", 0), ("str", 0), ("list", 1)}
    assert len(coco.getAnnIds(iscrowd=True)) == 3


def test_the_keypoint_file_has_people_only_and_pixel_indices(exported):
    folder, dataset = exported
    poses = json.loads((folder / "annotations" / "person_keypoints_val.json").read_text())
    instances = json.loads((folder / "annotations" / "instances_val.json").read_text())
    assert poses["images"] == instances["images"] and len(poses["images"]) == 18
    (person,) = poses["categories"]
    assert person["name"] == "person" and len(person["keypoints"]) == 17 and len(person["skeleton"]) == 19
    assert {a["category_id"] for a in poses["annotations"]} == {1}
    truth = {a["id"]: a for a in dataset.coco_dict()["annotations"]}
    assert len(poses["annotations"]) == sum(a["category_id"] == 1 for a in truth.values()) > 5
    plain = {a["id"]: a for a in instances["annotations"]}
    for annotation in poses["annotations"]:
        expected = truth[annotation["id"]]
        assert np.allclose(annotation["keypoints"], expected["keypoints"], atol=0.0051)
        assert annotation["num_keypoints"] == sum(v > 0 for v in annotation["keypoints"][2::3])
        same = plain[annotation["id"]]
        assert all(annotation[field] == same[field] for field in same)


def test_category_ids_keep_their_gaps(exported):
    folder, _ = exported
    categories = json.loads((folder / "annotations" / "instances_val.json").read_text())["categories"]
    assert [(c["id"], c["name"]) for c in categories] == [
        (1, "person"), (4, "star"), (7, "ring"), (13, "cross"), (18, "crescent"), (27, "gear"), (44, "arrow"),
    ]  # fmt: skip
    assert all(set(category) == {"id", "name", "supercategory"} for category in categories)


def test_without_people_there_is_no_keypoint_file(tmp_path):
    folder = export_coco(ShapesDataset("demo", 2, classes=("star", "ring")), tmp_path / "rings")
    assert sorted(path.name for path in (folder / "annotations").iterdir()) == ["instances_train.json"]
    assert sorted(path.suffix for path in (folder / "images").iterdir()) == [".jpg", ".jpg"]


def test_crowds_are_as_many_as_asked_for(tmp_path):
    def crowds(name, dataset, every):
        folder = export_coco(dataset, tmp_path / name, crowd_every=every)
        annotations = json.loads((folder / "annotations" / "instances_train.json").read_text())["annotations"]
        return sum(a["iscrowd"] for a in annotations)

    assert crowds("none", ShapesDataset("demo", 4), 0) == 0
    assert crowds("one", ShapesDataset("demo", 4), 100) == 1  # at least one
    assert crowds("two", ShapesDataset("demo", 4), 2) == 2
    own = ShapesDataset(replace(PRESETS["demo"], crowd_every=1), 4)
    assert crowds("own", own, 0) == 4  # 0 leaves it to the preset


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    export_coco(ShapesDataset("demo", 1), folder)  # an empty one will do
    (folder / "mine.txt").write_text("keep")
    before = sorted(folder.rglob("*"))
    with pytest.raises(ValueError, match="is not empty"):
        export_coco(ShapesDataset("demo", 1), folder)
    assert sorted(folder.rglob("*")) == before
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(ValueError, match="is not empty"):
        export_coco(ShapesDataset("demo", 1), file)


def test_a_failure_half_way_leaves_nothing_behind(tmp_path, monkeypatch):
    real, calls = Image.Image.save, []

    def failing(self, *args, **options):
        calls.append(args)
        if len(calls) == 3:
            raise OSError("disk full")
        return real(self, *args, **options)

    monkeypatch.setattr(Image.Image, "save", failing)
    with pytest.raises(OSError, match="disk full"):
        export_coco(ShapesDataset("demo", 5), tmp_path / "data")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    folder = export_coco(ShapesDataset("demo", 5), tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["data"] and len(list(folder.rglob("*.jpg"))) == 5
    assert folder.stat().st_mode & 0o700 == 0o700 and folder.stat().st_mode == (folder / "images").stat().st_mode


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda: ShapesDataset("demo", 1), {"image_format": "gif"}, "choose png or jpg"),
        (lambda: ShapesDataset("demo", 0), {}, "'train' has no images"),
        (lambda: [ShapesDataset("demo", 1)] * 2, {}, "one data set for each split"),
        (lambda: [], {}, "at least one"),
        (lambda: ShapesDataset("demo", 1), {"crowd_every": -2}, "crowd_every=-2"),
    ],
)
def test_a_bad_argument_is_named(tmp_path, make, options, message):
    with pytest.raises(ValueError, match=message):
        export_coco(make(), tmp_path / "data", **options)
    assert list(tmp_path.iterdir()) == []


# ---- tracing


def test_one_pixel_is_traced_around_its_edges():
    mask = np.zeros((8, 6), bool)
    mask[5, 3] = True
    (outline,), holes = trace(mask)
    assert outline.tolist() in [np.roll([[3, 5], [4, 5], [4, 6], [3, 6]], k, 0).tolist() for k in range(4)]
    assert holes == []
    assert run_lengths(mask) == {"size": [8, 6], "counts": [29, 1, 18]}


def test_holes_corners_and_nothing():
    ring = np.ones((5, 7), bool)
    ring[2, 2:4] = False
    outlines, holes = trace(ring)
    assert len(outlines) == 1 and len(holes) == 1 and len(holes[0]) == 4
    touching = np.array([[1, 0], [0, 1]], bool)
    assert [len(outline) for outline in trace(touching)[0]] == [4, 4]  # two pixels, not one bow tie
    assert trace(np.zeros((3, 4), bool)) == ([], [])
    assert run_lengths(np.zeros((3, 4), bool))["counts"] == [12]
    assert run_lengths(np.ones((3, 4), bool))["counts"] == [0, 12]


@settings(deadline=None, max_examples=150)
@given(st_numpy.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_outlines_less_holes_are_the_mask(mask):
    H, W = mask.shape
    outlines, holes = trace(mask)

    def area(loop):
        x, y = loop.T
        return abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2

    assert sum(map(area, outlines)) - sum(map(area, holes)) == mask.sum()
    if outlines:
        filled = mask_util.decode(
            mask_util.merge(mask_util.frPyObjects([loop.ravel().tolist() for loop in outlines], H, W))
        ).astype(bool)
        assert (filled | ~mask).all()
        if not holes:
            assert (filled == mask).all()
    decoded = mask_util.decode(mask_util.frPyObjects(run_lengths(mask), H, W))
    assert (decoded == mask).all()


# ---- the sample that ships


def remade(folder: Path) -> Path:
    """By the command that data/README.md gives."""
    text = (ROOT / "data" / "README.md").read_text()
    (command,) = re.findall(r"python -c \"\n(.*?)\"", text, re.S)
    assert "data/shapes-tiny" in command
    exec(command.replace("data/shapes-tiny", str(folder)), {})
    return folder


def pinned(package: str) -> bool:
    return f"{package}=={version(package)}" in (ROOT / "constraints.txt").read_text()


def test_the_sample_is_what_its_readme_says(tmp_path):
    folder = remade(tmp_path / "again")
    names = sorted(str(path.relative_to(SAMPLE)) for path in SAMPLE.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert sum(path.stat().st_size for path in SAMPLE.rglob("*") if path.is_file()) < 2**20
    same_bytes = all(pinned(package) for package in ("pillow", "numpy", "pycocotools"))
    for name in names:
        ours, again = SAMPLE / name, folder / name
        if same_bytes:
            assert ours.read_bytes() == again.read_bytes(), name
        if ours.suffix == ".jpg":
            a, b = (np.asarray(Image.open(path), np.int16) for path in (ours, again))
            assert np.abs(a - b).mean() < 2
        else:
            a, b = (json.loads(path.read_text()) for path in (ours, again))
            assert a["images"] == b["images"] and a["categories"] == b["categories"]
            assert len(a["annotations"]) == len(b["annotations"])
            for one, other in zip(a["annotations"], b["annotations"], strict=True):
                assert one["category_id"] == other["category_id"] and one["iscrowd"] == other["iscrowd"]
                assert np.allclose(one["bbox"], other["bbox"], atol=0.51)


def test_the_sample_holds_one_of_everything():
    train = json.loads((SAMPLE / "annotations" / "instances_train.json").read_text())
    val = json.loads((SAMPLE / "annotations" / "instances_val.json").read_text())
    assert (len(train["images"]), len(val["images"])) == (24, 8)
    for split in (train, val):
        assert {a["category_id"] for a in split["annotations"]} == {1, 4, 7, 13}
        assert any(a["iscrowd"] for a in split["annotations"])
        kinds = {type(a["segmentation"]) for a in split["annotations"] if not a["iscrowd"]}
        assert kinds == {list, dict}
    used = {a["image_id"] for a in train["annotations"]}
    assert len(used) < 24  # an image without objects
