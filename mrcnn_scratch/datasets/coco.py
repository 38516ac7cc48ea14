"""Any COCO-format folder as images and targets: instances, masks, crowds, and person keypoints."""

import warnings
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.utils.data import Dataset

from .check import Fault, Inspection, inspect, summarise
from .fields import clip_box, image_size, is_id, listed, records, skeleton_edges, usable_area
from .images import read_image
from .layout import find_layout
from .packed import PackedRecords
from .segmentation import to_rle

__all__ = ["CocoDataset", "read_image"]

PERSON_KEYPOINTS = (
    "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow "
    "left_wrist right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle"
).split()


class CocoDataset(Dataset):
    """One split of a COCO-format folder.

    ``dataset[i]`` is ``(image, target)``: image (3, H, W) float32 in [0, 1]; target a dict of boxes (G, 4)
    float32 xyxy pixels, labels (G,) int64 from 1, masks (G, H, W) uint8, keypoints (G, J, 3) float32,
    image_id int, area (G,) float32 pixels, iscrowd (G,) int64. Images without annotations are kept, with
    G = 0. Crowds are kept, with iscrowd 1.

    Category ids, which may have gaps, become labels 1, 2, ... in the order of the ids; `label_to_category`
    and `category_to_label` map both ways. Boxes that leave the image by less than a pixel are clipped.

    COCO keeps keypoints in a second file, person_keypoints_X.json. With keypoints, boxes and masks still come
    from instances_X.json, and a record of the second file adds its keypoints to the instance with the same
    annotation id. Every other instance (all of an image that the second file does not cover, too) has
    keypoints with v = 0: the keypoint loss ignores those, and COCO's evaluation ignores such persons.
    `keypoint_image_ids` are the images covered. The file's keypoints are pixel indices: 0.5 is added, since
    pixel i is [i, i + 1) here (TorchVision does not add it, Detectron2 does).

    Attributes: class_names (index = label, 0 "background"), num_classes, num_keypoints (0: none),
    keypoint_names, flip_pairs, skeleton (0-based), image_ids, label_to_category, category_to_label,
    keypoint_image_ids; dropped (the `Fault` of each record left out), dropped_annotations (ids of all
    annotations left out, those of a left-out image included), warnings (the `Fault` of each record used
    with a reservation).
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        keypoints: bool | str = False,
        annotations: str | Path | None = None,
        images: str | Path | None = None,
        on_fault: str = "raise",
        masks: bool = True,
        verify: str = "pixels",
    ):
        """Read and check the annotations.

        Args:
            root, split, annotations, images: see `find_layout`.
            keypoints: True, False, or "auto": if the folder has any.
            on_fault: what to do with records that cannot be used: "raise" refuses them all in one error;
                "drop" leaves out exactly those, warns, and lists them in `dropped`.
            masks: False for boxes only; then a segmentation may be missing.
            verify: "pixels" decodes every image now, "header" only looks at its size (118,000 images: minutes
                against seconds); a truncated file then shows when it is read.

        Raises:
            ValueError: a wrong argument, nothing found, faults with on_fault="raise", or (with "drop" too)
                categories or files that cannot be understood at all, or nothing left.
        """
        _one_of("keypoints", keypoints, (True, False, "auto"))
        _one_of("on_fault", on_fault, ("raise", "drop"))
        _one_of("verify", verify, ("pixels", "header"))
        layout = find_layout(root, split, annotations, images)
        found = inspect(layout, masks, bool(keypoints), pixels=verify == "pixels")
        self.split, self.has_masks, self.image_folder = split, bool(masks), found.image_folder
        self._file = str(layout.annotations)
        self._sort_faults(found.faults, on_fault, f"mrcnn data check {root}")
        self._read_categories(found)
        self._read_records(found, self._read_keypoints(found, keypoints))
        self._warn(f"all in `mrcnn data check {root}` and in")

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, dict]:
        image_id = self.image_ids[index]
        image = read_image(self.image_path(index), self._sizes[image_id])
        return image, self._target(image_id)

    def image_path(self, index: int) -> Path:
        """Return the file of the image at an index."""
        return self.image_folder / self._images[index]["file_name"]

    def coco_dict(self) -> dict:
        """Return the ground truth in use as a COCO dict with the file's own ids, for pycocotools.

        The records are those of the file; area and iscrowd are filled in where the file lacks them. With
        keypoints every annotation has keypoints (pixel indices) and num_keypoints, 0 where there is no
        record.
        """
        annotations = []
        for image_id, record in self._annotations.of(self.image_ids):
            record |= {"area": self._area(record, image_id), "iscrowd": int(record.get("iscrowd", 0))}
            if self.num_keypoints:
                record["keypoints"] = record["keypoints"] or [0] * (3 * self.num_keypoints)
                record["num_keypoints"] = sum(v > 0 for v in record["keypoints"][2::3])
            annotations.append(record)
        images, categories = ([dict(record) for record in part] for part in (self._images, self._categories))
        return {"images": images, "annotations": annotations, "categories": categories}

    def _sort_faults(self, faults: list[Fault], on_fault: str, command: str) -> None:
        """Note the faults, and refuse those that may not be left out."""
        self.dropped = [fault for fault in faults if fault.severity == "error"]
        self.warnings = [fault for fault in faults if fault.severity == "warning"]
        hopeless = [f for f in self.dropped if f.record is None or f.record[0] == "categories"]
        refused = self.dropped if on_fault == "raise" else hopeless
        if refused:
            way_out = "" if hopeless else ', or pass on_fault="drop" (--drop-faulty) to leave out exactly these'
            raise ValueError(
                f"{self._file}: {len(refused)} fault{'s' * (len(refused) > 1)} that training cannot use:\n"
                f"{summarise(refused)}\nRun `{command}` for the whole list and mend them{way_out}."
            )

    def _warn(self, listed_in: str) -> None:
        """Say what was left out and what is used with a reservation; nothing goes unsaid."""
        if self.dropped:
            text = f"{self._file}: {len(self.dropped)} faulty records are left out ({listed_in} .dropped):"
            lost = self.dropped_annotations
            ids = ", ".join(map(str, lost[:20])) + (", ..." if len(lost) > 20 else "")
            lost = f"annotations left out, alone or with their images: {len(lost)}" + f" ({ids})" * bool(lost)
            warnings.warn(f"{text}\n{summarise(self.dropped)}\n  {lost}", stacklevel=3)
        if self.warnings:
            text = f"{self._file}: {len(self.warnings)} used with a reservation ({listed_in} .warnings):"
            warnings.warn(f"{text}\n{summarise(self.warnings)}", stacklevel=3)

    def _read_categories(self, found: Inspection) -> None:
        self._categories = sorted(found.instances["categories"], key=lambda record: record["id"])
        self.class_names = ["background"] + [record["name"] for record in self._categories]
        self.num_classes = len(self.class_names)
        self.label_to_category = {label: r["id"] for label, r in enumerate(self._categories, start=1)}
        self.category_to_label = {category: label for label, category in self.label_to_category.items()}

    def _read_keypoints(self, found: Inspection, wanted: bool | str) -> dict[int, list]:
        """Find the names; return annotation id -> keypoints of the sound records; nothing if not `wanted`."""
        source = found.instances if found.keypoints is None else found.keypoints
        named = [record for record in records(source, "categories") if wanted and record.get("keypoints")]
        keypoints = self._sound_keypoints(found, listed(source, "annotations")) if wanted else {}
        if len({tuple(record["keypoints"]) for record in named}) > 1:
            text = ", ".join(f"{record['name']} ({len(record['keypoints'])})" for record in named)
            raise ValueError(
                f"{self._file}: categories name different keypoints: {text}; give each its own folder"
            )
        if wanted is True and not named and not keypoints:
            raise ValueError(
                f"{self._file}: no keypoints here or in a person_keypoints file beside it: add them, "
                "or use keypoints=False"
            )
        unnamed = {"keypoints": PERSON_KEYPOINTS if keypoints else []}
        category = named[0] if named else unnamed
        self.keypoint_names = list(category["keypoints"])
        self.num_keypoints = len(self.keypoint_names)
        self.flip_pairs = flip_pairs(self.keypoint_names)
        self.skeleton = skeleton_edges(category)
        extra = {record["id"]: record for record in named}  # the second file's categories say more
        self._categories = [{**record, **extra.get(record["id"], {})} for record in self._categories]
        return keypoints

    def _sound_keypoints(self, found: Inspection, annotations: list) -> dict[int, list]:
        bad = {fault.record for fault in self.dropped}
        own = found.keypoints is None  # then a dropped annotation takes its keypoints with it
        return {
            record["id"]: record["keypoints"]
            for i, record in enumerate(annotations)
            if isinstance(record, dict) and "keypoints" in record
            if ("keypoints", i) not in bad and not (own and ("annotations", i) in bad)
        }

    def _read_records(self, found: Inspection, keypoints: dict[int, list]) -> None:
        """Keep the sound images and annotations; with keypoints each has its own, or None."""
        bad = {fault.record for fault in self.dropped}
        doc = found.instances
        self._images = [record for i, record in enumerate(doc["images"]) if ("images", i) not in bad]
        if not self._images:
            raise ValueError(
                f"{self._file}: no usable image is left of {len(doc['images'])}: mend the faults above"
            )
        self.image_ids = [record["id"] for record in self._images]
        self._sizes = {record["id"]: image_size(record) for record in self._images}
        groups = {image_id: [] for image_id in self.image_ids}
        self.dropped_annotations = []
        for i, record in enumerate(doc["annotations"]):
            image_id = record.get("image_id") if isinstance(record, dict) else None
            if ("annotations", i) not in bad and image_id in groups:
                more = {"keypoints": keypoints.get(record["id"])} if self.num_keypoints else {}
                groups[image_id].append(record | more)
            elif isinstance(record, dict) and is_id(record.get("id")):
                self.dropped_annotations.append(record["id"])
        covered = {r["id"] for r in records(found.keypoints or doc, "images") if is_id(r.get("id"))}
        self.keypoint_image_ids = [i for i in self.image_ids if i in covered] if self.num_keypoints else []
        doc["annotations"].clear()  # the records live on in `groups` alone, which the next line empties
        self._annotations = PackedRecords(groups)

    def _target(self, image_id: int) -> dict:
        annotations = self._annotations[image_id]
        W, H = self._sizes[image_id]
        G, J = len(annotations), self.num_keypoints
        boxes = np.array([clip_box(a["bbox"], W, H) for a in annotations], dtype=np.float32).reshape(G, 4)
        target = {
            "boxes": torch.from_numpy(boxes),
            "labels": torch.tensor(
                [self.category_to_label[a["category_id"]] for a in annotations], dtype=torch.int64
            ),
            "image_id": image_id,
            "area": torch.tensor([self._area(a, image_id) for a in annotations], dtype=torch.float32),
            "iscrowd": torch.tensor([int(a.get("iscrowd", 0)) for a in annotations], dtype=torch.int64),
        }
        if self.has_masks:
            target["masks"] = torch.zeros((0, H, W), dtype=torch.uint8)
            if G:
                masks = coco_mask.decode([to_rle(a["segmentation"], W, H) for a in annotations])  # (H, W, G)
                target["masks"] = torch.from_numpy(
                    np.ascontiguousarray(masks.transpose(2, 0, 1))
                )  # (G, H, W)
        if J:
            keypoints = torch.zeros((G, J, 3))
            for row, annotation in zip(keypoints, annotations, strict=True):
                if annotation["keypoints"]:
                    row[:] = torch.tensor(annotation["keypoints"], dtype=torch.float32).view(J, 3)
            target["keypoints"] = _to_continuous(keypoints, W, H)
        return target

    def _area(self, annotation: dict, image_id: int) -> float:
        """The stated area; without one the pixels of the mask, or of the box."""
        area = usable_area(annotation)
        if area is None and self.has_masks:
            area = float(coco_mask.area(to_rle(annotation["segmentation"], *self._sizes[image_id]))) or None
        return area if area is not None else float(annotation["bbox"][2] * annotation["bbox"][3])


def flip_pairs(names: list[str]) -> list[tuple[int, int]]:
    """Return the (left, right) index pairs of keypoint names that differ in "left" and "right" only.

    `flip_pairs(["nose", "left_eye", "right_eye"])` is [(1, 2)].
    """
    index = {name: i for i, name in enumerate(names)}
    partners = [
        (i, index.get(name.replace("left", "right"))) for i, name in enumerate(names) if "left" in name
    ]
    return [(i, j) for i, j in partners if j is not None]


def _to_continuous(keypoints: Tensor, W: int, H: int) -> Tensor:
    """Turn (G, J, 3) pixel indices into continuous coordinates inside the image; rows that are not labelled
    become 0."""
    limit = keypoints.new_tensor([W, H])
    xy = (keypoints[..., :2] + 0.5).clamp(min=0).minimum(limit)  # + 0.5: pixel i is [i, i + 1)
    labelled = keypoints[..., 2:] > 0
    return torch.cat([xy, keypoints[..., 2:]], dim=-1) * labelled


def _one_of(name: str, value, allowed: tuple) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not known: use one of {', '.join(repr(a) for a in allowed)}")
