"""The COCO reader: targets, ids, keypoints, orientation, modes, and faults that are never silent."""

import json
import pickle
import warnings

import numpy as np
import pytest
import torch
from coco_folder import NAMES, sound_document, write_folder
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mrcnn_scratch.datasets import open_dataset
from mrcnn_scratch.datasets.coco import CocoDataset, flip_pairs, read_image
from mrcnn_scratch.datasets.segmentation import decode_counts
from mrcnn_scratch.datasets.subset import Subset


def test_targets_by_hand(tmp_path):
    ds = CocoDataset(write_folder(tmp_path), keypoints=True)
    image, target = ds[0]
    assert image.shape == (3, 16, 24) and image.dtype == torch.float32
    pixels = np.array(Image.open(tmp_path / "images" / "a.png"))
    assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1).float() / 255)
    assert target["boxes"].tolist() == [[2, 3, 12, 11], [0, 0, 24, 2]]
    assert target["labels"].tolist() == [1, 3] and target["labels"].dtype == torch.int64
    assert target["iscrowd"].tolist() == [0, 1] and target["iscrowd"].dtype == torch.int64
    assert target["area"].tolist() == [76, 48] and target["area"].dtype == torch.float32
    assert target["image_id"] == 7
    assert target["masks"].shape == (2, 16, 24) and target["masks"].dtype == torch.uint8
    assert target["masks"][0, 3:11, 2:12].all() and target["masks"][0, 1, 21:23].any()  # both polygons
    crowd = torch.zeros(16, 24, dtype=torch.uint8)
    crowd[:2] = 1  # column-major: a row-major reader would see columns
    assert torch.equal(target["masks"][1], crowd)
    # Pixel indices become continuous; v = 0 stays 0, 0, 0; an instance without a record has none.
    assert target["keypoints"][0].tolist() == [[4.5, 5.5, 2], [0, 0, 0], [8.5, 6.5, 1]]
    assert target["keypoints"].shape == (2, 3, 3) and not target["keypoints"][1].any()


def test_compressed_rle_and_fractional_boxes(tmp_path):
    ds = CocoDataset(write_folder(tmp_path))
    _, target = ds[1]
    assert target["boxes"].tolist() == [[1.5, 2.5, 8.75, 12], [10, 4, 13, 9]]
    expected = torch.zeros(20, 15, dtype=torch.uint8)
    expected[4:9, 10:13] = 1
    assert torch.equal(target["masks"][1], expected)
    assert "keypoints" not in target and ds.num_keypoints == 0


def test_image_without_annotations(tmp_path):
    ds = CocoDataset(write_folder(tmp_path), keypoints=True)
    image, target = ds[2]
    assert image.shape == (3, 11, 9)
    shapes = {name: tuple(value.shape) for name, value in target.items() if name != "image_id"}
    assert shapes == {
        "boxes": (0, 4),
        "labels": (0,),
        "masks": (0, 11, 9),
        "keypoints": (0, 3, 3),
        "area": (0,),
        "iscrowd": (0,),
    }
    assert target["boxes"].dtype == torch.float32 and target["labels"].dtype == torch.int64


def test_attributes(tmp_path):
    ds = CocoDataset(write_folder(tmp_path), keypoints="auto")
    assert len(ds) == 3 and ds.image_ids == [7, 3, 40]
    assert ds.class_names == ["background", "person", "dog", "kite"] and ds.num_classes == 4
    assert ds.label_to_category == {1: 1, 2: 18, 3: 90}
    assert ds.category_to_label == {1: 1, 18: 2, 90: 3}
    assert ds.keypoint_names == NAMES and ds.num_keypoints == 3
    assert ds.flip_pairs == [(1, 2)] and ds.skeleton == [(0, 1), (0, 2)]
    assert ds.keypoint_image_ids == [7, 3, 40]
    assert ds.dropped == [] and ds.warnings == [] and ds.dropped_annotations == []
    assert ds.image_path(1) == tmp_path / "images" / "b.jpg"
    assert pickle.loads(pickle.dumps(ds))[0][1]["boxes"].tolist() == ds[0][1]["boxes"].tolist()
    with pytest.raises(IndexError):
        ds[3]


def test_flip_pairs_of_coco_names():
    assert flip_pairs(["left_hip", "nose", "right_hip", "left_fin"]) == [(0, 2)]


def test_boxes_only(tmp_path):
    document = sound_document()
    for annotation in document["annotations"]:
        del annotation["segmentation"]
    write_folder(tmp_path, document)
    with pytest.raises(ValueError, match="masks=False"):
        CocoDataset(tmp_path)
    target = CocoDataset(tmp_path, masks=False)[0][1]
    assert "masks" not in target and len(target["boxes"]) == 2


def test_coco_dict_round_trip(tmp_path):
    ds = CocoDataset(write_folder(tmp_path), keypoints=True)
    document = ds.coco_dict()
    original = sound_document()
    assert document["images"] == original["images"]
    assert [c["id"] for c in document["categories"]] == [1, 18, 90]
    assert [a["id"] for a in document["annotations"]] == [100, 5, 61, 62]
    assert document["annotations"][0] == original["annotations"][0]
    assert document["annotations"][1]["num_keypoints"] == 0
    assert document["annotations"][1]["keypoints"] == [0] * 9
    document["annotations"][0]["bbox"] = None  # what a caller does to it is no concern of the dataset
    assert ds.coco_dict()["annotations"][0]["bbox"] == [2, 3, 10, 8]


def as_results(ds, kind: str) -> list[dict]:
    """The dataset's own targets as perfect detections."""
    results = []
    for _, target in ds:
        for g in range(len(target["labels"])):
            if target["iscrowd"][g]:
                continue
            result = {"image_id": target["image_id"], "score": 1.0}
            result["category_id"] = ds.label_to_category[int(target["labels"][g])]
            x1, y1, x2, y2 = target["boxes"][g].double().tolist()
            if kind == "bbox":
                result["bbox"] = [x1, y1, x2 - x1, y2 - y1]
            elif kind == "segm":
                result["segmentation"] = coco_mask.encode(np.asfortranarray(target["masks"][g].numpy()))
            elif target["keypoints"][g, :, 2].any():
                keypoints = target["keypoints"][g].double().clone()
                keypoints[:, :2] -= 0.5  # back to pixel indices
                result["keypoints"] = keypoints.flatten().tolist()
            else:
                continue
            results.append(result)
    return results


@pytest.mark.parametrize("kind", ["bbox", "segm", "keypoints"])
def test_targets_are_perfect_detections(real_data, kind, capsys):
    # Dataset -> model -> evaluation without a model in between: any half pixel or swapped axis shows.
    ds = CocoDataset(real_data / "coco_free", "val", keypoints=True)
    truth = COCO()
    truth.dataset = ds.coco_dict()
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(as_results(ds, kind)), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0, abs=1e-9)
    if kind == "keypoints":
        scores = [oks.max(axis=0) for oks in evaluation.ious.values() if len(oks)]
        # OKS is over all annotated persons, with or without keypoints: the perfect ones are exactly one.
        assert np.concatenate(scores).max() == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("split", ["train", "val"])
def test_real_folder_equals_pycocotools(real_data, split, capsys):
    root = real_data / "coco_free"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing dropped, nothing doubtful
        ds = CocoDataset(root, split, keypoints="auto")
    coco = COCO(str(root / "annotations" / f"instances_{split}.json"))
    people = COCO(str(root / "annotations" / f"person_keypoints_{split}.json"))
    assert sorted(ds.image_ids) == sorted(coco.getImgIds())
    assert [ds.label_to_category[label] for label in range(1, 81)] == sorted(coco.getCatIds())
    seen = crowds = 0
    for image, target in ds:
        annotations = coco.imgToAnns[target["image_id"]]
        info = coco.imgs[target["image_id"]]
        assert image.shape == (3, info["height"], info["width"])
        assert len(annotations) == len(target["boxes"])
        for g, annotation in enumerate(annotations):
            assert np.array_equal(target["masks"][g].numpy(), coco.annToMask(annotation))
            x, y, w, h = annotation["bbox"]
            np.testing.assert_allclose(target["boxes"][g].numpy(), [x, y, x + w, y + h], atol=1e-4)
            assert ds.label_to_category[int(target["labels"][g])] == annotation["category_id"]
            assert target["area"][g].item() == pytest.approx(annotation["area"], rel=1e-6)
            assert target["iscrowd"][g] == annotation["iscrowd"]
            record = people.anns.get(annotation["id"], {"keypoints": [0] * 51})
            expected = np.array(record["keypoints"], dtype=np.float32).reshape(17, 3)
            expected[expected[:, 2] > 0, :2] += 0.5
            assert np.array_equal(target["keypoints"][g].numpy(), expected)
            seen, crowds = seen + 1, crowds + annotation["iscrowd"]
    assert (seen, crowds) == {"train": (756, 9), "val": (247, 3)}[split]
    assert len(ds.keypoint_image_ids) == {"train": 45, "val": 16}[split]
    empty = ds.image_ids.index({"train": 508, "val": 226111}[split])
    assert ds[empty][1]["masks"].shape[0] == 0


def test_real_greyscale_jpeg(real_data):
    ds = CocoDataset(real_data / "coco_free", "train", verify="header")
    index = ds.image_ids.index(86)
    assert Image.open(ds.image_path(index)).mode == "L"
    image, target = ds[index]
    assert image.shape == (3, 640, 512) and torch.equal(image[0], image[2]) and len(target["boxes"]) == 3


# Where the files lie


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("annotations/instances_train.json", "images"),
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_train2014.json", "images/train2014"),
        ("annotations/train.json", "train"),
        ("train/_annotations.coco.json", "train"),
        ("train/labels.json", "train/images"),
        ("instances_train.json", "."),
        ("annotations/person_keypoints_train.json", "images/train"),
    ],
)
def test_layouts(tmp_path, annotations, images):
    made, root = write_folder(tmp_path / "made"), tmp_path / "root"
    for folder in ((root / annotations).parent, root / images, root / "images"):
        folder.mkdir(parents=True, exist_ok=True)
    (made / "annotations/instances_train.json").rename(root / annotations)
    for file in (made / "images").iterdir():
        file.rename(root / images / file.name)
    ds = CocoDataset(root, "train")
    assert len(ds) == 3 and ds.image_folder == root / images


def test_explicit_paths(tmp_path):
    write_folder(tmp_path / "x", name="mine")
    (tmp_path / "x/images").rename(tmp_path / "photos")
    ds = CocoDataset(tmp_path / "x", annotations="annotations/mine.json", images=tmp_path / "photos", keypoints=True)
    assert len(ds) == 3 and ds.num_keypoints == 3
    with pytest.raises(ValueError, match="images='nowhere' does not exist"):
        CocoDataset(tmp_path / "x", annotations="annotations/mine.json", images="nowhere")


def test_nothing_found_lists_what_was_looked_for(tmp_path):
    write_folder(tmp_path, name="instances_val")
    with pytest.raises(ValueError) as error:
        CocoDataset(tmp_path, "train")
    for text in (
        "annotations/instances_train.json",
        "instances_train2017.json",
        "splits found: val",
        str(tmp_path),
    ):
        assert text in str(error.value)
    with pytest.raises(ValueError, match="does not exist"):
        CocoDataset(tmp_path / "nowhere")


@pytest.mark.parametrize("wrong", [{"keypoints": "yes"}, {"on_fault": "ignore"}, {"verify": "no"}])
def test_wrong_arguments(tmp_path, wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        CocoDataset(write_folder(tmp_path), **wrong)


def test_keypoints_wanted_but_absent(tmp_path):
    document = sound_document()
    del document["annotations"][0]["keypoints"], document["categories"][1]["keypoints"]
    del document["categories"][1]["skeleton"]
    write_folder(tmp_path, document)
    assert CocoDataset(tmp_path, keypoints="auto").num_keypoints == 0
    with pytest.raises(ValueError, match="no keypoints here"):
        CocoDataset(tmp_path, keypoints=True)


def test_open_dataset(tmp_path):
    ds = open_dataset(write_folder(tmp_path), "train")
    assert isinstance(ds, CocoDataset) and ds.num_keypoints == 3
    assert open_dataset(str(tmp_path), "train", keypoints=False).num_keypoints == 0
    with pytest.raises(ValueError, match="shapes:PRESET"):
        open_dataset("shape:demo")
    with pytest.raises(ValueError, match=r"num_images=400 \(--images\)"):
        open_dataset(tmp_path, num_images=400)
    with pytest.raises(ValueError, match="seed=4"):
        open_dataset(tmp_path, seed=4)


def test_a_subset_keeps_what_training_and_evaluation_ask_for(tmp_path):
    whole = open_dataset(write_folder(tmp_path), "train")
    first = open_dataset(tmp_path, "train", num_images=1)
    assert len(first) == 1 and first.image_ids == whole.image_ids[:1] and first.class_names == whole.class_names
    assert first[0][1]["image_id"] == whole.image_ids[0]
    truth = first.coco_dict()
    assert [image["id"] for image in truth["images"]] == first.image_ids
    assert {annotation["image_id"] for annotation in truth["annotations"]} <= set(first.image_ids)
    assert len(truth["annotations"]) == len(first[0][1]["boxes"])
    for indices in ([], [0, 0], [len(whole)], [-1]):
        with pytest.raises(ValueError, match="indices"):
            Subset(whole, indices)


@pytest.mark.parametrize("preset", ["demo", "hard"])
def test_open_dataset_shapes(preset):
    train, val = (open_dataset(f"shapes:{preset}", split, num_images=2, seed=3) for split in ("train", "val"))
    assert len(train) == len(val) == 2 and type(train).__name__ == "ShapesDataset"
    assert not torch.equal(train[0][0], val[0][0])
    with pytest.raises(ValueError):
        open_dataset("shapes:nonsense")


# Keypoints in a second file


def split_keypoints(document: dict) -> tuple[dict, dict]:
    """Take the keypoints out, as COCO does: instances, and person_keypoints of one image only."""
    people = {
        "images": [document["images"][0]],
        "categories": [dict(document["categories"][1])],
        "annotations": [dict(document["annotations"][0])],
    }
    for name in ("keypoints", "num_keypoints"):
        del document["annotations"][0][name]
    del document["categories"][1]["keypoints"], document["categories"][1]["skeleton"]
    return document, people


def test_second_keypoint_file(tmp_path):
    instances, people = split_keypoints(sound_document())
    other = dict(instances["annotations"][2], id=63, category_id=1)  # a person whom the second file does not cover
    instances["annotations"].append(other)
    write_folder(tmp_path, instances)
    write_folder(tmp_path, people, "person_keypoints_train")
    assert CocoDataset(tmp_path).num_keypoints == 0
    ds = CocoDataset(tmp_path, keypoints=True)
    assert ds.keypoint_names == NAMES and ds.skeleton == [(0, 1), (0, 2)] and ds.keypoint_image_ids == [7]
    assert ds[0][1]["keypoints"][0, 0].tolist() == [4.5, 5.5, 2]
    assert not ds[1][1]["keypoints"].any() and ds[1][1]["keypoints"].shape == (3, 3, 3)
    truth = {a["id"]: a for a in ds.coco_dict()["annotations"]}
    assert truth[100]["num_keypoints"] == 2 and truth[63]["num_keypoints"] == 0
    assert next(c for c in ds.coco_dict()["categories"] if c["id"] == 1)["keypoints"] == NAMES


def test_second_keypoint_file_without_instance(tmp_path):
    instances, people = split_keypoints(sound_document())
    people["annotations"].append(dict(people["annotations"][0], id=999))
    write_folder(tmp_path, instances)
    write_folder(tmp_path, people, "person_keypoints_train")
    with pytest.raises(ValueError, match="keypoints_without_instance") as error:
        CocoDataset(tmp_path, keypoints=True)
    assert "999" in str(error.value) and "person_keypoints_train.json" in str(error.value)
    with pytest.warns(UserWarning, match="annotation 999"):
        ds = CocoDataset(tmp_path, keypoints=True, on_fault="drop")
    assert len(ds[0][1]["boxes"]) == 2 and ds.dropped_annotations == []  # no instance is lost by it
    assert len(CocoDataset(tmp_path)) == 3  # and it does not matter to whom keypoints do not


def test_different_keypoints_in_two_categories(tmp_path):
    document = sound_document()
    document["categories"][2]["keypoints"] = ["snout", "tail"]
    write_folder(tmp_path, document)
    with pytest.raises(ValueError, match=r"person \(3\), dog \(2\)"):
        CocoDataset(tmp_path, keypoints=True)
    assert len(CocoDataset(tmp_path)) == 3


# Faults


def test_raise_names_every_fault_and_the_remedy(tmp_path):
    document = sound_document()
    document["annotations"][0]["bbox"] = [2, 3, 0, 8]
    document["annotations"][2]["category_id"] = 17
    write_folder(tmp_path, document)
    (tmp_path / "images/empty.png").unlink()
    with pytest.raises(ValueError) as error:
        CocoDataset(tmp_path)
    text = str(error.value)
    for part in (
        "3 faults",
        "zero_area_box",
        "annotations[0], annotation 100, image 7",
        "[2, 3, 0, 8]",
        "unknown_category",
        "category_id is 17",
        "missing_image",
        "empty.png",
        "remedy",
        "mrcnn data check",
        'on_fault="drop" (--drop-faulty)',
    ):
        assert part in text


def test_raise_shows_twenty_and_a_count(tmp_path):
    document = sound_document()
    document["annotations"] += [dict(document["annotations"][2], id=i, bbox=[]) for i in range(1000, 1033)]
    with pytest.raises(ValueError, match="33 faults") as error:
        CocoDataset(write_folder(tmp_path, document))
    assert str(error.value).count("bad_box") == 20 and "and 13 more" in str(error.value)


def test_drop_drops_exactly_those_and_names_them(tmp_path):
    document = sound_document()
    document["annotations"][2]["bbox"] = [1, 2, 3, float("nan")]
    write_folder(tmp_path, document)
    (tmp_path / "images/a.png").write_bytes((tmp_path / "images/a.png").read_bytes()[:500])
    with pytest.warns(UserWarning) as caught:
        ds = CocoDataset(tmp_path, keypoints=True, on_fault="drop")
    text = str(caught[0].message)
    assert "annotation 61" in text and "a.png" in text and "(100, 5, 61)" in text
    assert [fault.kind for fault in ds.dropped] == ["bad_box", "corrupt_image"]
    assert ds.dropped_annotations == [100, 5, 61]  # those of the lost image too
    assert ds.image_ids == [3, 40] and ds[0][1]["boxes"].tolist() == [[10, 4, 13, 9]]
    assert [a["id"] for a in ds.coco_dict()["annotations"]] == [62]
    assert [i["id"] for i in ds.coco_dict()["images"]] == [3, 40]


def test_drop_of_keypoints_keeps_the_instance(tmp_path):
    document = sound_document()
    document["annotations"][0]["keypoints"][0] = 24  # one pixel beyond the last
    write_folder(tmp_path, document)
    with pytest.warns(UserWarning, match="keypoint_outside_image"):
        ds = CocoDataset(tmp_path, keypoints=True, on_fault="drop")
    target = ds[0][1]
    assert len(target["boxes"]) == 2 and not target["keypoints"].any()
    assert ds.coco_dict()["annotations"][0]["num_keypoints"] == 0
    assert len(CocoDataset(tmp_path)) == 3  # without keypoints it is no fault


def test_drop_of_a_duplicate_keeps_the_first(tmp_path):
    document = sound_document()
    copied = dict(document["annotations"][0], bbox=[0, 0, 5, 5], keypoints=[1, 1, 2] * 3, num_keypoints=3)
    document["annotations"].append(copied)
    write_folder(tmp_path, document)
    with pytest.warns(UserWarning, match="duplicate_annotation_id"):
        ds = CocoDataset(tmp_path, keypoints=True, on_fault="drop")
    assert ds[0][1]["boxes"].tolist() == [[2, 3, 12, 11], [0, 0, 24, 2]]
    assert ds[0][1]["keypoints"][0, 0].tolist() == [4.5, 5.5, 2]  # not those of the copy


def test_drop_cannot_mend_categories_or_nothing(tmp_path):
    document = sound_document()
    document["categories"][0]["id"] = 1
    with pytest.raises(ValueError, match="duplicate_category_id"):
        CocoDataset(write_folder(tmp_path / "a", document), on_fault="drop")
    for file in (write_folder(tmp_path / "b") / "images").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="no usable image is left of 3"):
        CocoDataset(tmp_path / "b", on_fault="drop")


def test_warnings_are_used_and_said(tmp_path):
    document = sound_document()
    del document["annotations"][0]["area"], document["annotations"][2]["iscrowd"]
    write_folder(tmp_path, document)
    with pytest.warns(UserWarning, match="bad_area"):
        ds = CocoDataset(tmp_path)
    assert [fault.kind for fault in ds.warnings] == ["bad_area", "missing_iscrowd"]
    target = ds[0][1]
    assert target["area"][0] == target["masks"][0].sum()  # what the mask covers
    assert ds[1][1]["iscrowd"].tolist() == [0, 0]
    assert ds.coco_dict()["annotations"][0]["area"] == target["area"][0]
    with pytest.warns(UserWarning):
        assert CocoDataset(tmp_path, masks=False)[0][1]["area"][0] == 80  # or the box


def test_header_only_still_names_the_file_when_it_is_read(tmp_path):
    write_folder(tmp_path)
    path = tmp_path / "images/a.png"
    path.write_bytes(path.read_bytes()[:500])
    ds = CocoDataset(tmp_path, verify="header")
    with pytest.raises(ValueError, match="a.png.*cannot be read.*intact copy"):
        ds[0]


def test_less_than_a_pixel_outside_is_clipped(tmp_path):
    document = sound_document()
    document["annotations"][0] |= {
        "bbox": [-0.5, -0.75, 25.25, 17.5],
        "keypoints": [23.75, 15.5, 2] + [0] * 6,
    }
    document["annotations"][0]["num_keypoints"] = 1
    target = CocoDataset(write_folder(tmp_path, document), keypoints=True)[0][1]
    assert target["boxes"][0].tolist() == [0, 0, 24, 16]
    assert target["keypoints"][0, 0].tolist() == [24, 16, 2]


# Images


def oriented(path, orientation: int, size=(6, 4)) -> np.ndarray:
    """Write a PNG whose stored pixels all differ, with an EXIF orientation; return the stored pixels."""
    pixels = np.arange(size[0] * size[1] * 3, dtype=np.uint8).reshape(size[1], size[0], 3)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return pixels


# EXIF's definition: where the stored top row and left column belong when shown.
UPRIGHT = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: np.rot90(p),
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_a_plain_photograph(tmp_path, orientation):
    stored = oriented(tmp_path / "x.png", orientation)
    expected = torch.from_numpy(UPRIGHT[orientation](stored).copy()).permute(2, 0, 1).float() / 255
    assert torch.equal(read_image(tmp_path / "x.png"), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("annotated", ["stored", "upright"])
def test_exif_orientation_follows_the_annotated_size(tmp_path, orientation, square, annotated):
    stored = oriented(tmp_path / "x.png", orientation, (5, 5) if square else (6, 4))
    upright = UPRIGHT[orientation](stored)
    size = (stored if annotated == "stored" else upright).shape[1::-1]
    image = read_image(tmp_path / "x.png", size)
    told_apart = stored.shape != upright.shape
    expected = stored if told_apart and annotated == "stored" else upright
    assert torch.equal(image, torch.from_numpy(expected.copy()).permute(2, 0, 1).float() / 255)


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_nonsense_orientation_is_upright(tmp_path, orientation):
    stored = oriented(tmp_path / "x.png", orientation)
    assert torch.equal(read_image(tmp_path / "x.png")[0], torch.from_numpy(stored[..., 0]).float() / 255)


@pytest.mark.parametrize("annotated", ["stored", "upright"])
def test_dataset_reads_a_rotated_photograph_as_annotated(tmp_path, annotated):
    document = sound_document()
    stored = (24, 16)
    width, height = stored if annotated == "stored" else stored[::-1]
    document["images"][0] |= {"width": width, "height": height}
    document["annotations"] = document["annotations"][2:]
    write_folder(tmp_path, document)
    pixels = oriented(tmp_path / "images/a.png", 6, stored)
    image, target = CocoDataset(tmp_path)[0]
    expected = pixels if annotated == "stored" else np.rot90(pixels, -1)
    assert torch.equal(image, torch.from_numpy(expected.copy()).permute(2, 0, 1).float() / 255)
    assert target["masks"].shape == (0, height, width)


def test_ambiguous_orientation_is_said(tmp_path):
    write_folder(tmp_path)
    oriented(tmp_path / "images/a.png", 3, (24, 16))
    with pytest.warns(UserWarning, match="ambiguous_orientation"):
        ds = CocoDataset(tmp_path)
    assert ds.warnings[0].image_id == 7 and len(ds) == 3


def test_modes(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    alpha = np.full((4, 6, 1), 128, np.uint8)
    grey = rgb[..., 0]
    files = {
        "L.png": (grey, np.repeat(grey[..., None], 3, 2)),
        "LA.png": (np.concatenate([grey[..., None], alpha], 2), np.repeat(grey[..., None], 3, 2)),
        "RGBA.png": (np.concatenate([rgb, alpha], 2), rgb),
        "I16.png": (grey.astype(np.uint16) * 257, np.repeat(grey[..., None], 3, 2)),
        "I16.tif": (grey.astype(np.uint16) * 257, np.repeat(grey[..., None], 3, 2)),
    }
    for name, (array, expected) in files.items():
        Image.fromarray(array).save(tmp_path / name)
        image = read_image(tmp_path / name)
        assert image.shape == (3, 4, 6) and image.dtype == torch.float32, name
        assert np.array_equal((image * 255).round().numpy().transpose(1, 2, 0), expected), name
    palette = Image.fromarray(rgb).quantize(16)
    palette.save(tmp_path / "P.png", transparency=0)
    expected = np.asarray(palette.convert("RGB"), dtype=np.float32) / 255
    assert np.array_equal(read_image(tmp_path / "P.png").numpy().transpose(1, 2, 0), expected)
    palette.save(tmp_path / "P.png", transparency=bytes([0, 128, 255]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow warns where a palette's transparency is thrown away directly
        assert np.array_equal(read_image(tmp_path / "P.png").numpy().transpose(1, 2, 0), expected)
    bits = Image.fromarray(grey > 127)
    bits.save(tmp_path / "1.png")
    assert np.array_equal(read_image(tmp_path / "1.png")[1].numpy(), (grey > 127).astype(np.float32))
    flat = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    flat.save(tmp_path / "CMYK.jpg", quality=100)
    assert torch.allclose(read_image(tmp_path / "CMYK.jpg").mean((1, 2)), torch.tensor([1.0, 0, 0]), atol=0.02)


def test_unreadable_images_name_the_file(tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-40])
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "nothing.png").write_bytes(b"")
    Image.fromarray(np.zeros((3, 4), np.float32)).save(tmp_path / "float.tif")
    for name in ("cut.jpg", "float.tif"):
        with pytest.raises(ValueError, match=f"{name}.*cannot be read.*by an intact copy$"):
            read_image(tmp_path / name)
    for name in ("text.png", "nothing.png"):
        with pytest.raises(ValueError, match=f"{name}.*not an image that Pillow reads: give a JPEG or PNG$"):
            read_image(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name}.*cannot be read.*remove it from the annotations$"):
            read_image(tmp_path / name, (40, 30))
    with pytest.raises(ValueError, match="is a folder: give image files$"):
        read_image(tmp_path)
    with pytest.raises(ValueError, match="gone.png.*does not exist"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(ValueError, match="whole.jpg.*40x30.*30x40"):
        read_image(tmp_path / "whole.jpg", (30, 40))


# Run-length encoding


def test_decode_counts_against_pycocotools():
    rng = np.random.default_rng(0)
    for _ in range(200):
        shape = rng.integers(1, 60), rng.integers(1, 60)
        mask = np.asfortranarray((rng.random(shape) < rng.random()).astype(np.uint8))
        edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.flatten("F")])))  # where runs end, column by column
        runs = np.diff(np.concatenate([[0], edges, [mask.size]]))
        assert decode_counts(coco_mask.encode(mask)["counts"].decode()) == runs.tolist()
    assert decode_counts("04") == [0, 4] and decode_counts("") == []


@pytest.mark.parametrize("counts", ["0 4", "0p", "\x00", "é", "0P", "o" * 40, "PPPPPPPP0"])
def test_decode_counts_refuses(counts):
    with pytest.raises(ValueError):
        decode_counts(counts)


def test_json_on_disk_is_untouched(tmp_path):
    write_folder(tmp_path)
    CocoDataset(tmp_path, keypoints=True).coco_dict()
    assert json.loads((tmp_path / "annotations/instances_train.json").read_text()) == sound_document()
