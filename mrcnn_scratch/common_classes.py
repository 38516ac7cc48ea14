"""A detector trained on one data set, evaluated on another that shares class names with it."""

import torch
from torch import nn

from .coco_results import of_categories


class OnCommonClasses(nn.Module):
    """A detector whose answers are in a data set's labels; those of classes that the data has not are left out.

    Args:
        model: a detector in eval mode.
        labels: its label -> the data set's.
        keypoint_offset: added to keypoints, pixels; see :func:`on_common_classes`.
    """

    def __init__(self, model: nn.Module, labels: dict[int, int], keypoint_offset: float = 0.0):
        super().__init__()
        self.model, self.labels, self.keypoint_offset = model, labels, keypoint_offset

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        """Detections of each image, as the model's ``forward`` gives them."""
        return [self._relabelled(detection) for detection in self.model(images)]

    def _relabelled(self, detection: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        new = [self.labels.get(label, 0) for label in detection["labels"].tolist()]
        labels = torch.tensor(new, dtype=torch.int64, device=detection["labels"].device)
        kept = {name: value[labels > 0] for name, value in detection.items()} | {"labels": labels[labels > 0]}
        if "keypoints" in kept:
            kept["keypoints"] = shifted(kept["keypoints"], self.keypoint_offset)
        return kept


class KnownClasses:
    """A data set whose ground truth is that of some classes alone; its labels stay as they are.

    Args:
        dataset: any data set of this package.
        names: of the classes to keep.
    """

    def __init__(self, dataset, names: set[str]):
        self.dataset, self.names = dataset, names
        for name in ("image_ids", "class_names", "num_classes", "num_keypoints", "label_to_category"):
            setattr(self, name, getattr(dataset, name))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        return self.dataset[index]

    def coco_dict(self) -> dict:
        """The ground truth of the kept classes on all images."""
        truth = self.dataset.coco_dict()
        return of_categories(truth, {record["id"] for record in truth["categories"] if record["name"] in self.names})


def shifted(keypoints: torch.Tensor, offset: float) -> torch.Tensor:
    """(D, J, 3) keypoints moved right and down by so many pixels; the third number stays."""
    return keypoints + keypoints.new_tensor([offset, offset, 0])


def on_common_classes(model: nn.Module, metadata: dict, dataset) -> tuple[nn.Module, object, list[str]]:
    """A model and a data set that agree on labels, by the names of their classes.

    Args:
        model: a detector.
        metadata: of :func:`~mrcnn_scratch.weights.load_pretrained`: ``class_names``, and ``keypoint_offset``, 0.5 for
            torchvision's: it learned COCO's pixel indices as they are, ours are continuous, so that the middle of
            pixel 3 is 3.5.
        dataset: any data set of this package.

    Returns:
        the model in the data set's labels; the data set, of the classes that the model knows; the names of the
        others. A model whose classes have no names keeps its labels.

    Raises:
        ValueError: they have no class in common.
    """
    names = metadata.get("class_names") or dataset.class_names
    theirs = {name: label for label, name in enumerate(dataset.class_names) if label > 0}
    labels = {label: theirs[name] for label, name in enumerate(names) if label > 0 and name in theirs}
    if not labels:
        raise ValueError(
            f"the weights know {', '.join(names[1:6])}, ..., the data has {', '.join(dataset.class_names[1:6])}: no "
            "class in common, evaluate on the classes that the weights were trained on"
        )
    unknown = [name for name in theirs if theirs[name] not in labels.values()]
    data = KnownClasses(dataset, theirs.keys() - set(unknown)) if unknown else dataset
    return OnCommonClasses(model, labels, metadata.get("keypoint_offset", 0.0)), data, unknown
