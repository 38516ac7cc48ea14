"""Some images of a dataset, as a dataset: for overfitting eight photographs, or a quick look."""

from collections.abc import Sequence


class Subset:
    """The chosen images of a dataset, with everything that training and evaluation ask of one.

    Args:
        dataset: any dataset of this package.
        indices: places in it, each once.

    Raises:
        ValueError: no index, one that does not exist, or one given twice.
    """

    def __init__(self, dataset, indices: Sequence[int]):
        self.indices = [int(index) for index in indices]
        wrong = [index for index in self.indices if not 0 <= index < len(dataset)]
        if not self.indices or wrong or len(set(self.indices)) < len(self.indices):
            raise ValueError(f"indices {wrong or self.indices} of {len(dataset)} images: give each once, at least one")
        self.dataset = dataset
        self.image_ids = [dataset.image_ids[index] for index in self.indices]
        for name in ("class_names", "num_classes", "num_keypoints", "keypoint_names", "flip_pairs", "skeleton"):
            setattr(self, name, getattr(dataset, name))
        self.label_to_category = dataset.label_to_category

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int):
        return self.dataset[self.indices[index]]

    def coco_dict(self) -> dict:
        """The ground truth of the chosen images alone."""
        truth, kept = self.dataset.coco_dict(), set(self.image_ids)
        return dict(
            truth,
            images=[image for image in truth["images"] if image["id"] in kept],
            annotations=[one for one in truth["annotations"] if one["image_id"] in kept],
        )
