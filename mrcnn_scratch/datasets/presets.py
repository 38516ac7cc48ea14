"""What the procedural pictures are like: sizes, classes, how crowded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

# category ids have gaps, as COCO's have, so that nobody can mistake a label for a category id
CATEGORY_IDS = {"person": 1, "star": 4, "ring": 7, "cross": 13, "crescent": 18, "gear": 27, "arrow": 44}
DEMO_CLASSES = ("person", "star", "ring")  # a small net tells them apart in minutes
HARD_CLASSES = ("person", "star", "ring", "cross")
ALL_CLASSES = tuple(CATEGORY_IDS)


@dataclass(frozen=True)
class ShapesPreset:
    """What the pictures of a data set are like. All values are toy choices."""

    name: str
    image_size: tuple[int, int]  # H, W in pixels
    objects: tuple[int, int]  # least and most objects drawn for an image that is not empty
    shape_size: tuple[float, float]  # sqrt(box width * box height) of a whole shape in pixels, log-uniform
    person_size: tuple[float, float]  # the same of a person; one that stands is about 1.2 times as tall
    empty_fraction: float  # of images, 0 to 1
    classes: tuple[str, ...]  # label 1 first; drawn with equal odds
    overlap: float  # how much of the smaller of two boxes the other may cover, 0 to 1, where there is room
    cut_fraction: float  # of objects that may stick out of the image by up to 0.3 of their size, 0 to 1
    min_shown: float = 0.4  # least visible fraction of an object's area; an object with less is not painted
    crowd_every: int = 0  # every n-th image also has a heap of small shapes, annotated as one crowd; 0: none

    @property
    def min_size(self) -> float:
        """Least sqrt(visible box area) of an object, pixels; an object with less is not painted."""
        return min(self.shape_size[0], self.person_size[0])


PRESETS = {
    preset.name: preset
    for preset in (
        # what `mrcnn demo` learns in minutes: persons 48 to 110 pixels tall
        ShapesPreset("demo", (128, 128), (1, 4), (26, 64), (44, 84), 0.05, DEMO_CLASSES, 0.25, 0.15),
        # 1 to 3 cells at stride 16, where the quantisation of RoIPool costs most
        ShapesPreset("hard", (128, 128), (2, 6), (16, 48), (16, 48), 0.05, HARD_CLASSES, 0.3, 0.15),
        # 2.5 to 6 cells at stride 16, 1.3 to 3 at stride 32: what ablations of the stride need, and a box AP
        ShapesPreset("large", (128, 128), (1, 2), (40, 96), (40, 96), 0.05, HARD_CLASSES, 0.3, 0.15),
        # 3 to 10 cells at stride 16, the range of most COCO objects at the paper's 800 pixels
        ShapesPreset("coco-like", (256, 256), (2, 6), (48, 160), (48, 160), 0.05, ALL_CLASSES, 0.5, 0.2),
        # a 16-fold range of sizes, so that a pyramid has something to do
        ShapesPreset("multiscale", (256, 256), (2, 8), (12, 192), (16, 192), 0.05, ALL_CLASSES, 0.5, 0.2),
    )
}


def resolve_preset(
    preset: str | ShapesPreset, image_size: Sequence[int] | None, classes: Sequence[str] | None
) -> ShapesPreset:
    """Look a preset up and put other sizes or classes in.

    preset: a name in PRESETS, or a ShapesPreset.
    image_size: (H, W) pixels or None for the preset's.  classes: names, label 1 first, or None for the
    preset's. Raises ValueError for an unknown preset or class, or an image too small for the preset's
    objects.
    """
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise ValueError(f"unknown preset {preset!r}: choose one of {', '.join(PRESETS)}")
        preset = PRESETS[preset]
    size = tuple(preset.image_size if image_size is None else image_size)
    names = preset.classes if classes is None else classes
    if isinstance(names, str) or not names or len(set(names)) < len(names) or set(names) - set(CATEGORY_IDS):
        raise ValueError(f"classes={classes!r}: give a tuple of distinct names out of {', '.join(CATEGORY_IDS)}")
    least = max(32, ceil(2 * preset.min_size))
    if len(size) != 2 or min(size) < least:
        raise ValueError(
            f"image_size={size} is too small for {preset.name!r}: give (H, W), at least {least} pixels each"
        )
    return replace(preset, image_size=(int(size[0]), int(size[1])), classes=tuple(names))
