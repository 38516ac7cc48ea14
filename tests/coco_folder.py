"""A small, sound COCO-format folder with one of everything, for tests to read and to damage."""

import copy
import json
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ["nose", "left_eye", "right_eye"]

# Non-square images, category ids with gaps and out of order, an image without annotations, crowd RLE.
DOCUMENT = {
    "images": [
        {"id": 7, "file_name": "a.png", "width": 24, "height": 16},
        {"id": 3, "file_name": "b.jpg", "width": 15, "height": 20},
        {"id": 40, "file_name": "empty.png", "width": 9, "height": 11},
    ],
    "categories": [
        {"id": 90, "name": "kite"},
        {"id": 1, "name": "person", "keypoints": NAMES, "skeleton": [[1, 2], [1, 3]]},
        {"id": 18, "name": "dog"},
    ],
    "annotations": [
        {
            "id": 100,
            "image_id": 7,
            "category_id": 1,
            "bbox": [2, 3, 10, 8],
            "area": 76.0,
            "iscrowd": 0,
            "segmentation": [[2, 3, 12, 3, 12, 11, 2, 11], [20, 1, 23, 1, 23, 4]],
            "keypoints": [4, 5, 2, 0, 0, 0, 8, 6, 1],
            "num_keypoints": 2,
        },
        {
            "id": 5,
            "image_id": 7,
            "category_id": 90,
            "bbox": [0, 0, 24, 2],
            "area": 48.0,
            "iscrowd": 1,
            "segmentation": {"size": [16, 24], "counts": [0, 2] + [14, 2] * 23 + [14]},
        },
        {
            "id": 61,
            "image_id": 3,
            "category_id": 18,
            "bbox": [1.5, 2.5, 7.25, 9.5],
            "area": 60.5,
            "iscrowd": 0,
            "segmentation": [[1.5, 2.5, 8.75, 2.5, 8.75, 12.0, 1.5, 12.0]],
        },
        {
            "id": 62,
            "image_id": 3,
            "category_id": 18,
            "bbox": [10, 4, 3, 5],
            "area": 15.0,
            "iscrowd": 0,
            "segmentation": {"size": [20, 15], "counts": "\\65?000T1"},  # columns 10 to 12, rows 4 to 8
        },
    ],
}


def sound_document() -> dict:
    return copy.deepcopy(DOCUMENT)


def write_folder(root: Path, document=None, name: str = "instances_train", images: bool = True) -> Path:
    """Write images and annotations/NAME.json; the document may be any JSON value, or the file's bytes."""
    document = sound_document() if document is None else document
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    (root / "annotations" / f"{name}.json").write_bytes(data)
    if images:
        (root / "images").mkdir(exist_ok=True)
        for index, record in enumerate(DOCUMENT["images"]):
            pixels = np.random.default_rng(index).integers(0, 256, (record["height"], record["width"], 3))
            Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / record["file_name"])
    return root
