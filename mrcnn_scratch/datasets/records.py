"""What can be wrong in a COCO annotation file, record by record; one fault is one `Fault`."""

from collections.abc import Iterator

import numpy as np
from pycocotools import mask as coco_mask

from .faults import Blame, Fault
from .fields import (
    MAX_SIDE,
    TOLERANCE,
    clip_box,
    finite_numbers,
    hashable,
    image_size,
    image_sizes,
    is_id,
    keypoint_counts,
    listed,
    records,
    show,
    skeleton_edges,
    usable_area,
)
from .segmentation import segmentation_fault, to_rle

COCO_KEYPOINTS = 17  # where a category names none but its annotations have some


def check_document(doc, file: str, masks: bool = True, keypoints: bool = True, rasterise: bool = False) -> list[Fault]:
    """Check every record of a parsed COCO instances (or keypoints) file, whatever JSON it is made of.

    Args:
        doc: what ``json.load`` gave.
        file: the name to report.
        masks: an instance without a segmentation is a fault.
        keypoints: look at the keypoints too.
        rasterise: draw every segmentation, to warn of masks without a pixel (slow: a second per 20,000).

    Returns:
        all faults, in the order of the file: categories, images, annotations.
    """
    if not isinstance(doc, dict):
        remedy = 'write an object {"images": [...], "annotations": [...], "categories": [...]}'
        return [Fault(file, "bad_file", show(doc), remedy)]
    faults = []
    for part in ("categories", "images", "annotations"):
        if not isinstance(doc.get(part), list):
            value = f"{part!r} is {show(doc[part])}" if part in doc else f"no {part!r}"
            faults.append(Fault(file, f"missing_{part}", value, f"add the list {part!r}"))
        elif not doc[part] and part != "annotations":
            faults.append(Fault(file, f"missing_{part}", f"the list {part!r} is empty", "add at least one"))
    faults += _category_faults(doc, file)
    faults += _image_faults(doc, file)
    return faults + list(_annotation_faults(doc, file, masks, keypoints, rasterise))


def check_keypoint_document(doc, file: str, instances: dict) -> list[Fault]:
    """Check a person_keypoints file against the instances file that it adds keypoints to, by annotation id.

    Only what is used of it is looked at: its categories, and the ids and keypoints of its annotations.
    """
    if not isinstance(doc, dict):
        remedy = 'write an object {"images": [...], "annotations": [...], "categories": [...]}'
        return [Fault(file, "bad_file", show(doc), remedy)]
    faults = [
        Fault(file, f"missing_{part}", f"no list {part!r}", f"add the list {part!r}")
        for part in ("categories", "annotations")
        if not isinstance(doc.get(part), list)
    ]
    faults += _category_faults(doc, file)
    image_of = {r["id"]: r.get("image_id") for r in records(instances, "annotations") if is_id(r.get("id"))}
    has_instances = isinstance(instances.get("annotations"), list)
    sizes = image_sizes(instances)
    joints = keypoint_counts(doc)
    seen: dict[int, int] = {}
    for index, record in enumerate(listed(doc, "annotations")):
        blame = Blame(file, "keypoints", index, record)
        if not isinstance(record, dict):
            faults.append(blame("bad_record", show(record), "write an object"))
            continue
        faults += _id_faults(blame, record.get("id"), seen, index, "annotation")
        known = is_id(record.get("id")) and record["id"] in image_of
        if has_instances and not (known and image_of[record["id"]] == record.get("image_id")):
            value = f"image_id {show(record.get('image_id'))} has no such annotation in the instances file"
            remedy = "add the instance there, or remove these keypoints"
            faults.append(blame("keypoints_without_instance", value, remedy))
        faults += _keypoint_faults(blame, record, joints, sizes.get(hashable(record.get("image_id"))))
    return faults


def _category_faults(doc: dict, file: str) -> list[Fault]:
    """A category that cannot be understood makes the whole file unusable: its labels would be guesses."""
    faults, seen, names = [], {}, {}
    for index, record in enumerate(listed(doc, "categories")):
        blame = Blame(file, "categories", index, record)
        if not isinstance(record, dict):
            faults.append(blame("bad_record", show(record), "write an object with id and name"))
            continue
        clashes = _id_faults(blame, record.get("id"), seen, index, "category")
        faults += clashes
        name, joints = record.get("name"), record.get("keypoints", [])
        if not isinstance(name, str) or not name:
            faults.append(blame("bad_category_name", f"name is {show(name)}", "give the category a name"))
        elif names.setdefault(name, index) != index and not clashes:
            value = f"{name!r} is also the name of categories[{names[name]}]"
            remedy = "rename one; both are kept as classes"
            faults.append(blame("duplicate_category_name", value, remedy, "warning"))
        if not isinstance(joints, list) or any(not isinstance(joint, str) for joint in joints):
            value = f"keypoints is {show(joints)}"
            faults.append(blame("bad_keypoint_names", value, "write a list of names"))
        elif record.get("skeleton", []) != [[a + 1, b + 1] for a, b in skeleton_edges(record)]:
            value = f"skeleton is {show(record['skeleton'])}"
            remedy = f"write pairs of 1..{len(joints)}; other edges are not drawn"
            faults.append(blame("bad_skeleton", value, remedy, "warning"))
    return faults


def _image_faults(doc: dict, file: str) -> list[Fault]:
    faults, seen, files, ambiguous = [], {}, {}, set()
    images = listed(doc, "images")
    for index, record in enumerate(images):
        blame = Blame(file, "images", index, record)
        if not isinstance(record, dict):
            remedy = "write an object with id, file_name, width and height"
            faults.append(blame("bad_record", show(record), remedy))
            continue
        clashes = _id_faults(blame, record.get("id"), seen, index, "image")
        faults += clashes
        name, first = record.get("file_name"), seen.get(hashable(record.get("id")), index)
        if first not in (index, *ambiguous) and images[first].get("file_name") != name:
            ambiguous.add(first)
            value = f"id {record['id']} is also that of images[{index}]: whose annotations are they?"
            first_blame = Blame(file, "images", first, images[first])
            faults.append(first_blame("duplicate_image_id", value, "renumber one of them"))
        if not isinstance(name, str) or not name or "\0" in name:
            faults.append(blame("bad_file_name", f"file_name is {show(name)}", "name the image's file"))
        elif files.setdefault(name, index) != index and not clashes:
            value = f"{name!r} is also the file of images[{files[name]}]"
            remedy = "merge the records: each image is used, with the instances of its own record only"
            faults.append(blame("duplicate_file_name", value, remedy, "warning"))
        if image_size(record) is None:
            value = f"width {show(record.get('width'))}, height {show(record.get('height'))}"
            remedy = f"write both in pixels, as integers from 1 to {MAX_SIDE}"
            faults.append(blame("bad_image_size", value, remedy))
    return faults


def _annotation_faults(doc: dict, file: str, masks: bool, keypoints: bool, rasterise: bool) -> Iterator[Fault]:
    sizes, joints, seen = image_sizes(doc), keypoint_counts(doc), {}
    has_images, has_categories = bool(listed(doc, "images")), bool(listed(doc, "categories"))
    for index, record in enumerate(listed(doc, "annotations")):
        blame = Blame(file, "annotations", index, record)
        if not isinstance(record, dict):
            yield blame("bad_record", show(record), "write an object with id, image_id, category_id and bbox")
            continue
        yield from _id_faults(blame, record.get("id"), seen, index, "annotation")
        image_id, category_id = hashable(record.get("image_id")), hashable(record.get("category_id"))
        if has_images and image_id not in sizes:
            value = f"image_id is {show(record.get('image_id'))}"
            yield blame("unknown_image", value, "add that image to 'images', or remove the annotation")
        if has_categories and category_id not in joints:
            value = f"category_id is {show(record.get('category_id'))}"
            yield blame("unknown_category", value, "add that category to 'categories', or correct the id")
        size = sizes.get(image_id)
        yield from _box_faults(blame, record.get("bbox"), size)
        yield from _crowd_and_area_faults(blame, record)
        if masks:
            yield from _mask_faults(blame, record, size, rasterise)
        if keypoints and "keypoints" in record:
            yield from _keypoint_faults(blame, record, joints, size)


def _id_faults(blame: Blame, value, seen: dict, index: int, what: str) -> list[Fault]:
    if not is_id(value):
        return [blame(f"bad_{what}_id", f"id is {show(value)}", "give it an integer id")]
    first = seen.setdefault(value, index)
    if first == index:
        return []
    part = {"category": "categories"}.get(what, f"{what}s")
    return [blame(f"duplicate_{what}_id", f"id {value} is also {part}[{first}]", "renumber one of them")]


def _box_faults(blame: Blame, bbox, size: tuple[int, int] | None) -> Iterator[Fault]:
    numbers = finite_numbers(bbox)
    if numbers is None or len(numbers) != 4:
        yield blame("bad_box", f"bbox is {show(bbox)}", "write four finite numbers: x, y, width, height")
        return
    x, y, width, height = numbers.tolist()
    if size is not None:
        W, H = size
        if x >= 0 and y >= 0 and x + width <= W and y + height <= H and min(width, height) > 0.01:
            return  # sound, as nearly all are; a thinner one may have no width in float32
        value = f"bbox is {show(bbox)}"
        clipped = clip_box(numbers, W, H)
        overhang = max(-x, -y, x + width - W, y + height - H)
        inside = clipped[0] < W and clipped[1] < H and clipped[2] > 0 and clipped[3] > 0
        if overhang >= TOLERANCE or (width > 0 and height > 0 and not inside):
            remedy = "clip it; or is it two corners, not x, y, width, height? or the image's size wrong?"
            yield blame("box_outside_image", f"{value} in an image of {W}x{H} (width x height)", remedy)
            return
        width, height = clipped[2] - clipped[0], clipped[3] - clipped[1]  # in float32 a speck can vanish
    if not (width > 0 and height > 0):
        yield blame("zero_area_box", f"bbox is {show(bbox)}", "give it a positive width and height, or remove it")


def _crowd_and_area_faults(blame: Blame, record: dict) -> Iterator[Fault]:
    crowd = record.get("iscrowd")
    if "iscrowd" not in record:
        yield blame("missing_iscrowd", "no iscrowd", "add it; 0 is assumed", "warning")
    elif crowd not in (0, 1) or isinstance(crowd, float):
        yield blame("bad_iscrowd", f"iscrowd is {show(crowd)}", "write 0 or 1")
    elif crowd and isinstance(record.get("segmentation"), list) and record["segmentation"]:
        remedy = "encode the region as RLE, or set iscrowd to 0; it is used as a crowd"
        yield blame("crowd_with_polygons", "iscrowd is 1 but the segmentation is polygons", remedy, "warning")
    if usable_area(record) is None:
        value = f"area is {show(record['area'])}" if "area" in record else "no area"
        remedy = "write the pixels that the mask covers; they are counted instead"
        yield blame("bad_area", value, remedy, "warning")


def _mask_faults(blame: Blame, record: dict, size: tuple[int, int] | None, rasterise: bool) -> Iterator[Fault]:
    segmentation = record.get("segmentation")
    fault = segmentation_fault(segmentation, *(size or (None, None)))
    if fault is not None:
        yield blame(fault[0], f"segmentation is {show(segmentation)}", fault[1])
    elif rasterise and size is not None:
        if coco_mask.area(to_rle(segmentation, *size)) == 0:
            remedy = "draw it larger, or remove the annotation; its box is used, with an empty mask"
            yield blame("empty_mask", f"segmentation {show(segmentation)} covers no pixel", remedy, "warning")


def _keypoint_faults(blame: Blame, record: dict, joints: dict, size: tuple[int, int] | None) -> Iterator[Fault]:
    J = joints.get(hashable(record.get("category_id"))) or max(joints.values(), default=0) or COCO_KEYPOINTS
    numbers = finite_numbers(record.get("keypoints"))
    if numbers is None:
        value = f"keypoints is {show(record.get('keypoints'))}"
        yield blame("bad_keypoints", value, "write finite numbers x, y, v for every keypoint", keypoints=True)
        return
    if len(numbers) != 3 * J:
        remedy = f"write x, y, v for each of the category's {J} keypoints, v = 0 for those not labelled"
        value = f"{len(numbers)} numbers, not 3 * {J} = {3 * J}"
        yield blame("keypoint_count", value, remedy, keypoints=True)
        return
    x, y, v = numbers.reshape(J, 3).T
    if not np.isin(v, (0, 1, 2)).all():
        bad = int(np.flatnonzero(~np.isin(v, (0, 1, 2)))[0])
        value = f"keypoint {bad} has visibility {v[bad]:g}"
        remedy = "write 0 (not labelled), 1 (hidden) or 2 (visible)"
        yield blame("keypoint_visibility", value, remedy, keypoints=True)
    if size is not None:
        W, H = size
        outside = (v > 0) & ((x <= -TOLERANCE) | (y <= -TOLERANCE) | (x >= W) | (y >= H))
        if outside.any():
            bad = int(np.flatnonzero(outside)[0])
            value = f"keypoint {bad} is at ({x[bad]:g}, {y[bad]:g}) in an image of {W}x{H} (width x height)"
            remedy = "correct it, or set its x, y and v to 0; coordinates are pixel indices from 0"
            yield blame("keypoint_outside_image", value, remedy, keypoints=True)
    labelled = int((v > 0).sum())
    count = record.get("num_keypoints", labelled)
    if type(count) is not int or count != labelled:
        value = f"num_keypoints is {show(count)} but {labelled} have v > 0"
        remedy = f"write {labelled}; it is counted anew"
        yield blame("num_keypoints", value, remedy, "warning", keypoints=True)
