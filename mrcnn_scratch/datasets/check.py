"""Everything that is wrong with a COCO-format folder, found in one pass: ``mrcnn data check FOLDER``.

One fault is one `Fault` with file, ids, value and remedy. "error" means that training cannot use the record;
"warning" that it can, with the reading that the remedy states. `CocoDataset` goes by the same faults.

- Boxes, polygons and keypoints may leave the image by less than one pixel (`TOLERANCE`): that is rounding,
  and is clipped. One pixel or more is an error, because it nearly always means corners written as width and
  height, or annotations of a resized or rotated image.
- Two image records with one id but two files are both errors: nobody can tell whose the annotations are.
- Two records for one file are a warning: each would be trained with half of the instances.
"""

import gc
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from .faults import Fault, summarise
from .fields import image_size, is_id, listed
from .images import UnusableImage, decode_image, orientation_is_ambiguous
from .layout import Layout, find_layout, find_splits
from .records import check_document, check_keypoint_document

__all__ = ["Fault", "check_folder", "Inspection", "inspect", "summarise"]


def check_folder(
    root: str | Path,
    split: str | None = None,
    masks: bool = True,
    annotations: str | Path | None = None,
    images: str | Path | None = None,
    progress: bool = False,
) -> list[Fault]:
    """Report every fault of a COCO-format folder; reads every annotation and decodes every image.

    Args:
        root: the dataset's folder, in any layout that `find_layout` knows.
        split: one split, or None for all that are there.
        masks: instances need a segmentation; False for a folder of boxes only.
        annotations, images: paths instead of a search, as for `CocoDataset`.
        progress: show a bar while the images are decoded, which takes minutes for all of COCO.

    Returns:
        the faults, errors and warnings, by split and in the order of the files; [] for a sound folder. Never
        raises on what the folder holds: no folder, no annotations and no JSON are faults too.
    """
    try:
        splits = [split] if split is not None else ["all"] if annotations is not None else find_splits(root)
        layouts = [find_layout(root, name, annotations, images) for name in splits or ["train"]]
    except ValueError as error:
        value = " ".join(str(error).split())  # one fault, one line
        return [Fault(str(root), "no_annotations", value, "keep the files in one of these places")]
    found = [inspect(layout, masks, pixels=True, rasterise=True, progress=progress) for layout in layouts]
    return [fault for split_found in found for fault in split_found.faults]


@dataclass(frozen=True)
class Inspection:
    """What one split holds: parsed files ({} if unusable), the folder of its images, and all faults."""

    instances: dict
    keypoints: dict | None  # the person_keypoints file beside it
    image_folder: Path
    faults: list[Fault]


def inspect(
    layout: Layout,
    masks: bool = True,
    keypoints: bool = True,
    pixels: bool = True,
    rasterise: bool = False,
    progress: bool = False,
) -> Inspection:
    """Read one split and collect its faults.

    Args:
        layout: from `find_layout`.
        masks, keypoints: look at the segmentations, at the keypoints.
        pixels: decode every image (in threads), not only its header.
        rasterise: draw every segmentation, to warn of empty masks.
        progress: show a bar while the images are read.
    """
    doc, faults = _load_json(layout.annotations)
    partner = None
    if not faults:
        own_keypoints = keypoints and layout.keypoints is None
        faults += check_document(doc, str(layout.annotations), masks, own_keypoints, rasterise)
    doc = doc if isinstance(doc, dict) else {}
    if keypoints and layout.keypoints is not None:
        partner, more = _load_json(layout.keypoints)
        faults += more
        if not more:
            faults += check_keypoint_document(partner, str(layout.keypoints), doc)
        partner = partner if isinstance(partner, dict) else {}
    names = [
        r["file_name"] for r in listed(doc, "images") if isinstance(r, dict) and _is_name(r.get("file_name"))
    ]
    folder = layout.image_folder(names)
    return Inspection(doc, partner, folder, faults + _check_image_files(doc, folder, pixels, progress))


def _load_json(path: Path) -> tuple[object, list[Fault]]:
    collects = gc.isenabled()
    gc.disable()  # it would look through millions of new lists again and again, and find none to free
    try:
        return json.loads(path.read_bytes()), []
    except (ValueError, OSError, RecursionError) as error:
        value = f"cannot be read as JSON ({type(error).__name__}: {error})"
        return None, [Fault(str(path), "bad_json", value, "replace the file by an intact copy")]
    finally:
        if collects:
            gc.enable()


def _check_image_files(doc: dict, folder: Path, pixels: bool, progress: bool) -> list[Fault]:
    jobs = [
        (index, record)
        for index, record in enumerate(listed(doc, "images"))
        if isinstance(record, dict) and _is_name(record.get("file_name"))
    ]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes outside Python's lock
        found = pool.map(lambda job: _image_fault(*job, folder, pixels), jobs)
        bar = tqdm(found, "check images", len(jobs), unit="image", disable=not progress, dynamic_ncols=True)
        return [fault for fault in bar if fault is not None]


def _image_fault(index: int, record: dict, folder: Path, pixels: bool) -> Fault | None:
    path, size = folder / record["file_name"], image_size(record)
    image_id = record["id"] if is_id(record.get("id")) else None
    name = str(path).encode(errors="backslashreplace").decode()  # JSON can hold what no terminal can print
    place = {"image_id": image_id, "record": ("images", index)}
    try:
        decode_image(path, size, pixels)
        with Image.open(path) as image:
            if size is None or not orientation_is_ambiguous(image, size):
                return None
    except UnusableImage as error:
        return Fault(name, error.kind, error.value, error.remedy, **place)
    value = f"the EXIF orientation turns or mirrors it, and {size[0]}x{size[1]} fits both readings"
    remedy = "save it upright without the tag; the tag is applied, as viewers do"
    return Fault(name, "ambiguous_orientation", value, remedy, severity="warning", **place)


def _is_name(value) -> bool:
    return isinstance(value, str) and bool(value) and "\0" not in value
