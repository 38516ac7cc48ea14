"""COCO's 80 categories with their ids, which run from 1 to 90 with ten holes, and the joints of a person."""

# id: name. The holes are categories that were annotated for other tasks only (Lin et al., arXiv:1405.0312).
COCO_CATEGORIES = {
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train", 8: "truck", 9: "boat",
    10: "traffic light", 11: "fire hydrant", 13: "stop sign", 14: "parking meter", 15: "bench", 16: "bird", 17: "cat",
    18: "dog", 19: "horse", 20: "sheep", 21: "cow", 22: "elephant", 23: "bear", 24: "zebra", 25: "giraffe",
    27: "backpack", 28: "umbrella", 31: "handbag", 32: "tie", 33: "suitcase", 34: "frisbee", 35: "skis",
    36: "snowboard", 37: "sports ball", 38: "kite", 39: "baseball bat", 40: "baseball glove", 41: "skateboard",
    42: "surfboard", 43: "tennis racket", 44: "bottle", 46: "wine glass", 47: "cup", 48: "fork", 49: "knife",
    50: "spoon", 51: "bowl", 52: "banana", 53: "apple", 54: "sandwich", 55: "orange", 56: "broccoli", 57: "carrot",
    58: "hot dog", 59: "pizza", 60: "donut", 61: "cake", 62: "chair", 63: "couch", 64: "potted plant", 65: "bed",
    67: "dining table", 70: "toilet", 72: "tv", 73: "laptop", 74: "mouse", 75: "remote", 76: "keyboard",
    77: "cell phone", 78: "microwave", 79: "oven", 80: "toaster", 81: "sink", 82: "refrigerator", 84: "book",
    85: "clock", 86: "vase", 87: "scissors", 88: "teddy bear", 89: "hair drier", 90: "toothbrush",
}  # fmt: skip
HOLE = "N/A"  # the name of a label that stands for no category

# Joints to join, 0-based, in the order of datasets.coco.PERSON_KEYPOINTS: legs, trunk, arms, head
PERSON_SKELETON = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),
    (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip


def coco_classes(num_classes: int, keypoints: int = 0) -> tuple[list[str], dict[int, int]] | None:
    """What the labels of a detector trained on COCO mean, told by how many there are.

    91 classes are COCO's own ids (torchvision), 81 are the 80 categories without the holes (Detectron2), 2 with 17
    keypoints are background and person.

    Args:
        num_classes: K, with the background.
        keypoints: J.

    Returns:
        class names (index = label, 0 "background"), and label -> COCO category id; None if it is no number of COCO's.
    """
    ids = sorted(COCO_CATEGORIES)
    if num_classes == 91:
        names = ["background"] + [COCO_CATEGORIES.get(label, HOLE) for label in range(1, 91)]
        return names, {label: label for label in range(1, 91)}
    if num_classes == 2 and keypoints == 17:
        ids = [1]
    elif num_classes != 81:
        return None
    return ["background"] + [COCO_CATEGORIES[i] for i in ids], dict(enumerate(ids, start=1))
