"""Where a COCO-format folder keeps its annotations and its images."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

OTHER_TASKS = ("captions_", "stuff_", "panoptic_", "image_info_")  # COCO files without instances


@dataclass(frozen=True)
class Layout:
    """The files of one split: the JSON with the annotations, that with the keypoints, folders for images."""

    annotations: Path
    keypoints: Path | None  # person_keypoints_X.json beside instances_X.json
    image_folders: tuple[Path, ...]  # those that exist, likeliest first

    def image_folder(self, file_names: list[str]) -> Path:
        """Return the one folder that holds most of about 200 of these files, the likeliest of equals."""
        names = file_names[:: max(1, len(file_names) // 200)]
        return max(self.image_folders, key=lambda folder: sum(os.path.isfile(folder / n) for n in names))


def find_layout(
    root: str | Path, split: str, annotations: str | Path | None = None, images: str | Path | None = None
) -> Layout:
    """Find the annotation JSON and the image folders of one split.

    Args:
        root: the dataset's folder.
        split: its name in file and folder names, "train" or "val"; COCO's own "train2017" or "train2014" is
            found too.
        annotations: the JSON instead of a search, absolute or relative to the working or the root folder.
        images: the image folder instead of a search, likewise.

    Returns:
        a `Layout`; whether the files hold what they should is for the reader and the folder check to say.

    Raises:
        ValueError: the root or the JSON is not there; it lists everything that was looked for.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(
            f"dataset folder {str(root)!r} does not exist: give the one that holds annotations/ and images/"
        )
    if annotations is not None:
        path = _given(root, annotations, "annotations", Path.is_file)
    else:
        candidates = [root / name for name in _annotation_names(split)]
        path = next((c for c in candidates if c.is_file()), None)
        if path is None:
            looked = "".join(f"\n  {c.relative_to(root)}" for c in candidates)
            splits = ", ".join(find_splits(root)) or "none"
            raise ValueError(
                f"no annotations for split {split!r} in {str(root)!r} (splits found: {splits}): "
                f"name one of these files, or pass annotations=PATH. Looked for:{looked}"
            )
    if images is not None:
        folders = (_given(root, images, "images", Path.is_dir),)
    else:
        names = (_split_of(path), *_years(split))
        candidates = [root / name for s in names for name in (f"images/{s}", s, f"{s}/images")]
        candidates += [root / "images", path.parent, root]
        folders = tuple(dict.fromkeys(c for c in candidates if c.is_dir()))
    return Layout(path, _keypoint_file(path), folders)


def find_splits(root: str | Path) -> list[str]:
    """Return the sorted names of the splits whose annotation files `find_layout` would find."""
    root, splits = Path(root), set()
    for path in [*root.glob("annotations/*.json"), *root.glob("instances_*.json")]:
        if not path.name.startswith(OTHER_TASKS):
            splits.add(_split_of(path))
    for name in _FOLDER_FILES:
        splits.update(path.parent.name for path in root.glob(f"*/{name}"))
    return sorted(splits - {"annotations"})


_FOLDER_FILES = ("_annotations.coco.json", "annotations.json", "instances.json", "labels.json")


def _split_of(path: Path) -> str:
    """Return train2017 for instances_train2017.json."""
    return re.sub("^(instances|person_keypoints)_", "", path.stem)


def _years(split: str) -> tuple[str, ...]:
    return split, f"{split}2017", f"{split}2014"


def _annotation_names(split: str) -> list[str]:
    names = [f"annotations/instances_{s}.json" for s in _years(split)]
    names += [f"annotations/{s}.json" for s in _years(split)]
    names += [f"{split}/{name}" for name in _FOLDER_FILES]
    names += [f"instances_{split}.json"]
    return names + [f"annotations/person_keypoints_{s}.json" for s in _years(split)]


def _keypoint_file(annotations: Path) -> Path | None:
    """COCO keeps keypoints in a second file, person_keypoints_X.json beside instances_X.json."""
    if not annotations.name.startswith("instances_"):
        return None
    path = annotations.with_name("person_keypoints_" + annotations.name.removeprefix("instances_"))
    return path if path.is_file() else None


def _given(root: Path, path: str | Path, what: str, exists) -> Path:
    for candidate in (Path(path), root / path):
        if exists(candidate):
            return candidate
    raise ValueError(
        f"{what}={str(path)!r} does not exist, neither as given nor in {str(root)!r}: correct the path"
    )
