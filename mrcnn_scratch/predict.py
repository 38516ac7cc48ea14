"""Photos in, annotated PNGs and COCO results out: what ``mrcnn predict`` does."""

from importlib.resources import files
from pathlib import Path

import torch
from tqdm import tqdm

from .common_classes import shifted
from .datasets.images import read_image
from .evaluation import detections_to_coco, write_results
from .resume import LAST
from .weights import load_pretrained

SHIPPED = "tiny-demo.safetensors"  # trained on the embedded data; assets/tiny-demo.json says how


def shipped_checkpoint() -> Path:
    """The tiny checkpoint inside the package: people and shapes of the embedded data, nothing of the real world."""
    return Path(str(files("mrcnn_scratch") / "assets" / SHIPPED))


def checkpoint_file(path: str | Path) -> Path:
    """The path of a checkpoint that is to be read, once it is no folder.

    Raises:
        ValueError: a folder; names the checkpoint of the run in it, if there is one.
    """
    path = Path(path)
    if path.is_dir():
        last = path / LAST
        remedy = f"give {last}" if last.is_file() else "give the .safetensors file itself"
        raise ValueError(f"checkpoint {path} is a folder: {remedy}")
    return path


def predict_files(
    photos: list[Path],
    checkpoint: str | Path | None,
    out: str | Path,
    threshold: float = 0.5,
    min_size: int | None = None,
    max_size: int | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> tuple[list[tuple[Path, int]], list[Path]]:
    """Detects on photos; every one is read before the first result is written, so bad input leaves nothing half-done.

    Args:
        photos: image files of any size and mode.
        checkpoint: a file of ``save_model`` or of a training run, or torchvision's or Detectron2's weights (see
            :func:`~mrcnn_scratch.weights.load_pretrained`); None is the shipped one.
        out: folder for ``<photo>.png`` and ``results_bbox.json``, ``results_segm.json``, ``results_keypoints.json``;
            the image ids in these count the photos from 1, ``images.json`` holds their names, and the category ids
            are the training data's, COCO's for weights of COCO. Keypoints are kept of the classes that have any, see
            :func:`~mrcnn_scratch.visualize.instances.has_keypoints`.
        threshold: smallest score that is drawn; the results hold all detections.
        min_size: shorter edge that the model sees, pixels; 0 keeps the photo's own, None the checkpoint's.
        max_size: longer edge at most, pixels; None the checkpoint's.
        threads: to compute with; None lets torch decide.

    Returns:
        for each photo its PNG and how many objects were drawn; and the JSON files.

    Raises:
        ValueError: no photos, two photos of one name, an unreadable photo or checkpoint, each named.
    """
    from .visualize.instances import has_keypoints  # here: matplotlib takes a second to import

    photos, out = [Path(photo) for photo in photos], Path(out)
    names = _distinct_names(photos)
    if threads:
        torch.set_num_threads(threads)
    model, metadata = load_pretrained(checkpoint_file(checkpoint or shipped_checkpoint()))
    model = _with_sizes(model, min_size, max_size).to(memory_format=torch.channels_last)
    images = [read_image(photo) for photo in photos]
    class_names = metadata.get("class_names") or [f"class {k}" for k in range(model.config.num_classes)]
    identity = [(label, label) for label in range(1, model.config.num_classes)]
    label_to_category = dict(metadata.get("label_to_category") or identity)
    with_keypoints = {label_to_category[label] for label, _ in identity if has_keypoints(label, class_names)}

    results: dict[str, list[dict]] = {"bbox": [], "segm": [], "keypoints": []}
    written = []
    for index, (image, name) in enumerate(
        zip(tqdm(images, desc="predict", unit="photo", disable=not progress), names, strict=True)
    ):
        with torch.inference_mode():
            detection = model([image])[0]
        if "keypoints" in detection:
            detection["keypoints"] = shifted(detection["keypoints"], metadata.get("keypoint_offset", 0.0))
        boxes, masks, keypoints = detections_to_coco(detection, index + 1, label_to_category)
        results["bbox"] += boxes
        results["segm"] += masks
        results["keypoints"] += [row for row in keypoints if row["category_id"] in with_keypoints]
        written.append(_draw(image, detection, class_names, metadata.get("skeleton", []), out / name, threshold))
    kept = ["bbox"] + ["segm"] * model.config.masks + ["keypoints"] * bool(model.config.keypoints)
    contents = {f"results_{kind}.json": results[kind] for kind in kept}
    contents["images.json"] = [{"id": i + 1, "file_name": photo.name} for i, photo in enumerate(photos)]
    for name, content in contents.items():
        write_results(out / name, content)
    return written, [out / name for name in contents]


def _distinct_names(photos: list[Path]) -> list[str]:
    """The PNG of each photo; two photos may not claim the same."""
    if not photos:
        raise ValueError("no photos: name at least one image file")
    names = [photo.stem + ".png" for photo in photos]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ValueError(
                f"photo {index} ({photos[index]}) would overwrite {name} of {photos[names.index(name)]}: rename one"
            )
    return names


def _with_sizes(model, min_size: int | None, max_size: int | None):
    low = model.config.min_size if min_size is None else min_size
    high = model.config.max_size if max_size is None else max_size
    if low > high:
        raise ValueError(
            f"min_size={low} (--min-size) is larger than max_size={high} (--max-size), by default the checkpoint's: "
            "the shorter edge cannot exceed the longest, so change one"
        )
    fields = {key: value for key, value in (("min_size", min_size), ("max_size", max_size)) if value is not None}
    model.config = model.config.with_fields(**fields)
    return model


def _draw(image, detection, class_names, skeleton, path: Path, threshold: float) -> tuple[Path, int]:
    from .visualize import save_annotated

    path.parent.mkdir(parents=True, exist_ok=True)
    save_annotated(image, detection, class_names, skeleton, path, score_threshold=threshold)
    return path, int((detection["scores"] >= threshold).sum())
