"""The embedded procedural dataset, and a reader for any COCO-format folder."""

from pathlib import Path

__all__ = ["open_dataset"]


def open_dataset(
    spec: str | Path,
    split: str = "train",
    num_images: int | None = None,
    seed: int | None = None,
    keypoints: bool | str = "auto",
    on_fault: str = "raise",
    masks: bool = True,
    root: str | Path | None = None,
):
    """Open a dataset by what a command line can say.

    Args:
        spec: "shapes:demo", "shapes:hard", ... for the procedural one, "coco" with ``root``, else a COCO-format folder.
        split: "train", "val", ...
        num_images: of the procedural one how many to draw; of a folder the first so many, all without it.
        seed: of the procedural one.
        keypoints, on_fault, masks: of a folder; see `CocoDataset`. "auto" takes keypoints if the folder has
            any.
        root: the folder of COCO itself (`mrcnn data download coco`): of its images only the headers are looked at,
            since to decode all 118,000 takes minutes, in every process.

    Raises:
        ValueError: no such preset or folder, an argument that does not apply, or faults in the folder.
    """
    if str(spec).startswith("shapes:"):
        from .shapes import ShapesDataset

        given = {"num_images": num_images, "seed": seed}
        given = {name: value for name, value in given.items() if value is not None}
        return ShapesDataset(str(spec).removeprefix("shapes:"), split=split, **given)
    verify = "pixels"
    if root is not None:
        if str(spec) != "coco":
            raise ValueError(f"root={str(root)!r} goes with 'coco', not with {str(spec)!r}: give the folder alone")
        spec, verify = root, "header"
    elif str(spec) == "coco" and not Path(spec).is_dir():
        raise ValueError("'coco' needs its folder: give root (--root DIR), the one that holds annotations/")
    if not Path(spec).is_dir():
        raise ValueError(
            f"dataset {str(spec)!r} is neither a folder nor shapes:PRESET: "
            "give a COCO-format folder that exists, or shapes:demo"
        )
    if seed is not None:
        raise ValueError(f"seed={seed} does not apply to the folder {str(spec)!r}: leave it out, or use shapes:demo")
    from .coco import CocoDataset

    dataset = CocoDataset(spec, split, keypoints=keypoints, on_fault=on_fault, masks=masks, verify=verify)
    if num_images is None:
        return dataset
    if not 1 <= num_images <= len(dataset):
        held = f"{str(spec)!r} has {len(dataset)} in {split!r}"
        raise ValueError(f"num_images={num_images} (--images): {held}: give 1 to {len(dataset)}")
    from .subset import Subset

    return Subset(dataset, range(num_images))
