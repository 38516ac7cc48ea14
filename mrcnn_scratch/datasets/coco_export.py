"""Write procedural images as a folder in COCO's format, as a stranger's data set would come."""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as mask_util

from mrcnn_scratch.datasets.shapes import ShapesDataset
from mrcnn_scratch.datasets.tracing import run_lengths, trace

INFO = {"description": "procedural shapes and people", "version": "1", "contributor": "mrcnn_scratch"}
LICENSES = [{"id": 1, "name": "MIT", "url": "https://opensource.org/license/mit"}]


def export_coco(
    datasets: ShapesDataset | Sequence[ShapesDataset],
    folder: str | Path,
    image_format: str = "jpg",
    crowd_every: int = 8,
) -> Path:
    """Write one or more splits of procedural images as a COCO-format folder, all of it or nothing.

    The folder has images/<split>_<image id>.jpg, annotations/instances_<split>.json and, where there are
    persons, annotations/person_keypoints_<split>.json. Objects without holes are polygons, those with holes
    compressed RLE, and crowds uncompressed RLE; boxes are xywh in continuous pixels, keypoints pixel
    indices, both to 0.01 pixel.

    datasets: one data set a split, for instance a "train" and a "val" one.
    folder: must not exist, or be empty.
    image_format: "png", or "jpg" (quality 92).
    crowd_every: every n-th image (and at least one a split) also gets a heap of small shapes, annotated as
    one crowd; 0: as the preset has it.
    Returns the folder.
    Raises ValueError for a folder that is in use, an unknown format, an empty data set, or a split given
    twice.
    """
    splits = [datasets] if isinstance(datasets, ShapesDataset) else list(datasets)
    folder = Path(folder)
    _check(splits, folder, image_format, crowd_every)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # beside its final place, so that the rename at the end is one step on one disk
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        (building / "images").mkdir()
        (building / "annotations").mkdir()
        for dataset in splits:
            if crowd_every:
                dataset = dataset.with_crowds(min(crowd_every, len(dataset)))
            _write_split(dataset, building, image_format)
        building.chmod(0o777 & ~_umask())  # mkdtemp lets only its owner in
        if folder.exists():
            folder.rmdir()
        os.replace(building, folder)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return folder


def _check(splits: list[ShapesDataset], folder: Path, image_format: str, crowd_every: int) -> None:
    if image_format not in ("png", "jpg"):
        raise ValueError(f"image_format={image_format!r}: choose png or jpg")
    if crowd_every < 0:
        raise ValueError(f"crowd_every={crowd_every}: give 0 for no crowds, or a number of images")
    names = [dataset.split for dataset in splits]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"splits {names}: give one data set for each split, and at least one")
    for dataset in splits:
        if not len(dataset):
            raise ValueError(f"split {dataset.split!r} has no images: give num_images of at least 1")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{str(folder)!r} is not empty: nothing is overwritten, so delete it or name another")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write_split(dataset: ShapesDataset, folder: Path, image_format: str) -> None:
    truth = dataset.coco_dict()
    for index, record in enumerate(truth["images"]):
        record["file_name"] = f"{dataset.split}_{record['id']:06d}.{image_format}"
        record["license"] = 1
        image = Image.fromarray(dataset.pixels(index).transpose(1, 2, 0))
        options = {"quality": 92} if image_format == "jpg" else {"optimize": True}
        image.save(folder / "images" / record["file_name"], **options)
    annotations = [_as_coco(annotation) for annotation in truth["annotations"]]
    pose_fields = ("keypoints", "num_keypoints")
    instances = [{k: v for k, v in a.items() if k not in pose_fields} for a in annotations]
    plain = [{k: c[k] for k in ("supercategory", "id", "name")} for c in truth["categories"]]
    path = folder / "annotations"
    _write_json(path / f"instances_{dataset.split}.json", truth["images"], instances, plain)
    people = [category for category in truth["categories"] if category["name"] == "person"]
    if people:
        persons = [a for a in annotations if a["category_id"] == people[0]["id"]]
        _write_json(path / f"person_keypoints_{dataset.split}.json", truth["images"], persons, people)


def _as_coco(annotation: dict) -> dict:
    mask = mask_util.decode(annotation["segmentation"]).astype(bool)
    annotation = annotation | {"bbox": _rounded(annotation["bbox"])}
    if "keypoints" in annotation:
        annotation["keypoints"] = _rounded(annotation["keypoints"])
    if annotation["iscrowd"]:
        return annotation | {"segmentation": run_lengths(mask)}
    outlines, holes = trace(mask)
    if holes:
        return annotation  # a polygon cannot have one
    return annotation | {"segmentation": [outline.ravel().tolist() for outline in outlines]}


def _rounded(numbers: list[float]) -> list[float]:
    """To 0.01, as COCO's boxes are, and whole numbers without a fraction."""
    return [int(v) if v == int(v) else v for v in np.round(numbers, 2).tolist()]


def _write_json(path: Path, images: list[dict], annotations: list[dict], categories: list[dict]) -> None:
    content = {"info": INFO, "licenses": LICENSES, "images": images}
    content |= {"annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")
