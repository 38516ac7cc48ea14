"""One picture: a background, objects at random places, who hides whom, and paint."""

from dataclasses import replace

import numpy as np

from mrcnn_scratch.datasets.figures import figure_blobs, figure_palette
from mrcnn_scratch.datasets.outlines import OUTLINES, shape_blobs, shape_palette
from mrcnn_scratch.datasets.presets import ShapesPreset
from mrcnn_scratch.datasets.render import SAMPLES, Placed, Sprite, draw_sprite, paint, resolve_occlusion
from mrcnn_scratch.datasets.textures import background, contrasting_colour

HEAP = 8  # shapes in a crowd


def render_scene(preset: ShapesPreset, seed: int, split: int, index: int) -> tuple[np.ndarray, list[Placed]]:
    """Draw one image.

    preset: what it shows.  seed, split, index: what it is a function of, all non-negative.
    Returns (H, W, 3) uint8 and its objects in painting order, each with mask, box and keypoints.
    """
    rng = np.random.default_rng(np.random.SeedSequence((seed, split, index)))
    image = background(rng, preset.image_size)
    behind = image[::8, ::8].mean((0, 1))
    placed: list[Placed] = []
    low, high = preset.objects
    count = 0 if rng.random() < preset.empty_fraction else int(rng.integers(low, high + 1))
    for _ in range(count):
        label = int(rng.integers(len(preset.classes))) + 1
        name = preset.classes[label - 1]
        small, large = preset.person_size if name == "person" else preset.shape_size
        # the raster may grow the box by a sample on either side, and stays within the range all the same
        size = float(np.exp(rng.uniform(np.log(small), np.log(large - 2 / SAMPLES))))
        sprite = _sprite(name, rng, preset, behind, size)
        placed.append(Placed(label, False, sprite, *_place(rng, sprite, preset, placed)))
    if preset.crowd_every and index % preset.crowd_every == preset.crowd_every - 1:
        sprite, label = _heap(rng, preset, behind)
        corner = _place(rng, sprite, replace(preset, cut_fraction=0.0), placed)
        placed.append(Placed(label, True, sprite, *corner))  # last: on top, so that it is always seen
    placed = resolve_occlusion(placed, preset.image_size, preset.min_shown, preset.min_size)
    paint(image, placed)
    return image, placed


def _sprite(name: str, rng: np.random.Generator, preset: ShapesPreset, behind: np.ndarray, size: float) -> Sprite:
    H, W = preset.image_size
    phase = tuple(rng.random(2))
    colour = contrasting_colour(rng, behind)
    limit = (H - 2.0, W - 2.0)
    if name == "person":
        blobs, joints = figure_blobs(rng)
        return draw_sprite(blobs, figure_palette(rng, colour), size, limit, phase, joints)
    return draw_sprite(shape_blobs(name, rng), shape_palette(colour), size, limit, phase)


def _place(rng: np.random.Generator, sprite: Sprite, preset: ShapesPreset, others: list[Placed]) -> tuple[int, int]:
    """Top and left of the first of 12 random places that overlaps little, else of the best of them."""
    (h, w), (H, W) = sprite.size, preset.image_size
    outside = 0.3 if rng.random() < preset.cut_fraction else 0.0  # of its size, on either side
    best, best_overlap = (0, 0), np.inf
    for u, v in rng.random((12, 2)):
        top = int(np.floor(-outside * h + u * max(0.0, H - h + 2 * outside * h)))
        left = int(np.floor(-outside * w + v * max(0.0, W - w + 2 * outside * w)))
        overlap = max((_overlap(top, left, h, w, other) for other in others), default=0.0)
        if overlap < best_overlap:
            best, best_overlap = (top, left), overlap
        if overlap <= preset.overlap:
            break
    return best


def _overlap(top: int, left: int, h: int, w: int, other: Placed) -> float:
    """Intersection of two windows over the smaller one."""
    other_h, other_w = other.sprite.size
    common_h = min(top + h, other.top + other_h) - max(top, other.top)
    common_w = min(left + w, other.left + other_w) - max(left, other.left)
    return max(0, common_h) * max(0, common_w) / min(h * w, other_h * other_w)


def _heap(rng: np.random.Generator, preset: ShapesPreset, behind: np.ndarray) -> tuple[Sprite, int]:
    """Small shapes of one class over one another, drawn as a single sprite; and their label."""
    names = [name for name in preset.classes if name in OUTLINES] or ["person"]
    name = names[rng.integers(len(names))]
    size = max(10.0, min(preset.image_size) / 9)
    across = int(size * 3.2) * SAMPLES
    parts, palette = np.zeros((across, across), np.uint8), np.zeros((256, 3), np.uint8)
    used = 0
    for _ in range(HEAP):
        small = _sprite(name, rng, preset, behind, size * rng.uniform(0.85, 1.15))
        h, w = small.parts.shape
        y, x = (rng.random(2) * [across - h, across - w]).astype(int)
        region = parts[y : y + h, x : x + w]
        np.copyto(region, small.parts + np.uint8(used), where=small.parts > 0)
        colours = len(small.palette) - 1
        if used + 2 * colours < 256:  # eight people have more parts than a palette has rows: the last share theirs
            palette[used + 1 : used + 1 + colours] = small.palette[1:]
            used += colours
    return Sprite(parts, palette, np.zeros((0, 2)), np.zeros(0, bool)), preset.classes.index(name) + 1
