"""The objects of a dataset that have keypoints by their class: COCO's persons, without the other 79 classes."""

from ..coco_results import of_categories


class KeypointClasses:
    """A dataset restricted to the classes that its file gives keypoints; their labels become 1, 2, ...

    Keypoints are trained on persons alone (Mask R-CNN, section 5): with 80 classes few RoIs would be persons.

    Args:
        dataset: of a COCO-format folder, with keypoints.

    Raises:
        ValueError: no class has keypoints.
    """

    def __init__(self, dataset):
        names = {record["name"] for record in dataset.coco_dict()["categories"] if record.get("keypoints")}
        kept = [label for label, name in enumerate(dataset.class_names) if label and name in names]
        if not dataset.num_keypoints or not kept:
            raise ValueError("no class of this data has keypoints: leave out --keypoints, or give a folder with them")
        self.dataset, self._labels = dataset, {old: new for new, old in enumerate(kept, start=1)}
        for name in ("image_ids", "num_keypoints", "keypoint_names", "flip_pairs", "skeleton"):
            setattr(self, name, getattr(dataset, name))
        self.class_names = ["background", *(dataset.class_names[label] for label in kept)]
        self.num_classes = len(self.class_names)
        self.label_to_category = {new: dataset.label_to_category[old] for old, new in self._labels.items()}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        image, target = self.dataset[index]
        labels = target["labels"].tolist()
        rows = [row for row, label in enumerate(labels) if label in self._labels]
        kept = {name: value[rows] if hasattr(value, "shape") else value for name, value in target.items()}
        return image, kept | {"labels": target["labels"].new_tensor([self._labels[labels[row]] for row in rows])}

    def coco_dict(self) -> dict:
        """The ground truth of the kept classes on all images."""
        return of_categories(self.dataset.coco_dict(), set(self.label_to_category.values()))
