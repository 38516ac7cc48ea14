"""Photos in, annotated PNGs and COCO results out: what ``mrcnn predict`` does."""

from importlib.resources import files
from pathlib import Path

import torch
from tqdm import tqdm

from .datasets.images import read_image
from .evaluation import detections_to_coco, write_results
from .weights import load_model

SHIPPED = "tiny-demo.safetensors"  # trained on the embedded data; assets/tiny-demo.json says how


def shipped_checkpoint() -> Path:
    """The tiny checkpoint inside the package: people and shapes of the embedded data, nothing of the real world."""
    return Path(str(files("mrcnn_scratch") / "assets" / SHIPPED))


def predict_files(
    photos: list[Path],
    checkpoint: str | Path | None,
    out: str | Path,
    threshold: float = 0.5,
    min_size: int | None = None,
    max_size: int | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> list[tuple[Path, int]]:
    """Detects on photos; every one is read before the first result is written, so bad input leaves nothing half-done.

    Args:
        photos: image files of any size and mode.
        checkpoint: a file of ``save_model`` or of a training run; None is the shipped one.
        out: folder for ``<photo>.png`` and ``results_bbox.json``, ``results_segm.json``, ``results_keypoints.json``;
            the image ids in these count the photos from 1, ``images.json`` holds their names.
        threshold: smallest score that is drawn; the results hold all detections.
        min_size: shorter edge that the model sees, pixels; 0 keeps the photo's own, None the checkpoint's.
        max_size: longer edge at most, pixels; None the checkpoint's.
        threads: to compute with; None lets torch decide.

    Returns:
        for each photo its PNG and how many objects were drawn.

    Raises:
        ValueError: no photos, two photos of one name, an unreadable photo or checkpoint, each named.
    """
    photos, out = [Path(photo) for photo in photos], Path(out)
    names = _distinct_names(photos)
    if threads:
        torch.set_num_threads(threads)
    model, metadata = load_model(checkpoint or shipped_checkpoint())
    model = _with_sizes(model, min_size, max_size).to(memory_format=torch.channels_last)
    images = [read_image(photo) for photo in photos]
    class_names = metadata.get("class_names") or [f"class {k}" for k in range(model.config.num_classes)]
    identity = [(label, label) for label in range(1, model.config.num_classes)]
    label_to_category = dict(metadata.get("label_to_category") or identity)

    results: dict[str, list[dict]] = {"bbox": [], "segm": [], "keypoints": []}
    written = []
    for index, (image, name) in enumerate(
        zip(tqdm(images, desc="predict", unit="photo", disable=not progress), names, strict=True)
    ):
        with torch.inference_mode():
            detection = model([image])[0]
        for kind, rows in zip(results, detections_to_coco(detection, index + 1, label_to_category), strict=True):
            results[kind] += rows
        written.append(_draw(image, detection, class_names, metadata.get("skeleton", []), out / name, threshold))
    kept = ["bbox"] + ["segm"] * model.config.masks + ["keypoints"] * bool(model.config.keypoints)
    for kind in kept:
        write_results(out / f"results_{kind}.json", results[kind])
    write_results(out / "images.json", [{"id": i + 1, "file_name": str(photo.name)} for i, photo in enumerate(photos)])
    return written


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
    fields = {key: value for key, value in (("min_size", min_size), ("max_size", max_size)) if value is not None}
    model.config = model.config.with_fields(**fields)
    return model


def _draw(image, detection, class_names, skeleton, path: Path, threshold: float) -> tuple[Path, int]:
    from .visualize import save_annotated

    path.parent.mkdir(parents=True, exist_ok=True)
    save_annotated(image, detection, class_names, skeleton, path, score_threshold=threshold)
    return path, int((detection["scores"] >= threshold).sum())
