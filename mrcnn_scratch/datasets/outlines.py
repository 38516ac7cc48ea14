"""Outlines of the shape classes: polygons with thin parts and holes, in a unit circle."""

import numpy as np

from mrcnn_scratch.datasets.render import Blob

FILL = 1  # row of the palette


def _polar(radius: np.ndarray, angle: np.ndarray) -> np.ndarray:
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)  # (n, 2)


def _circle(radius: float, centre: tuple[float, float] = (0.0, 0.0), points: int = 48) -> np.ndarray:
    return _polar(np.full(points, radius), np.linspace(0, 2 * np.pi, points, endpoint=False)) + centre


def _star(rng: np.random.Generator) -> list[np.ndarray]:
    radius = np.tile([1.0, rng.uniform(0.38, 0.5)], 5)
    return [_polar(radius, np.arange(10) * np.pi / 5)]


def _ring(rng: np.random.Generator) -> list[np.ndarray]:
    return [_circle(1.0), _circle(rng.uniform(0.5, 0.72))]


def _cross(rng: np.random.Generator) -> list[np.ndarray]:
    t = rng.uniform(0.22, 0.36)
    quarter = np.array([[t, -1], [t, -t], [1, -t]])
    turn = np.array([[0, -1], [1, 0]])
    return [np.concatenate([quarter @ np.linalg.matrix_power(turn, k).T for k in range(4)])]


def _crescent(rng: np.random.Generator) -> list[np.ndarray]:
    inner, shift = 0.8, rng.uniform(0.38, 0.5)
    x = (1 + shift**2 - inner**2) / (2 * shift)  # where the two circles meet
    outer_angle, inner_angle = np.arccos(x), np.arccos((x - shift) / inner)
    outer = _polar(np.ones(40), np.linspace(outer_angle, 2 * np.pi - outer_angle, 40))
    bite = _polar(np.full(28, inner), np.linspace(2 * np.pi - inner_angle, inner_angle, 28)) + [shift, 0]
    return [np.concatenate([outer, bite])]


def _gear(rng: np.random.Generator) -> list[np.ndarray]:
    teeth = int(rng.integers(7, 10))
    step = 2 * np.pi / teeth
    angle = (np.arange(teeth)[:, None] * step + np.array([-0.34, -0.2, 0.2, 0.34]) * step).ravel()
    return [
        _polar(np.tile([0.74, 1.0, 1.0, 0.74], teeth), angle),
        _circle(rng.uniform(0.26, 0.38), points=32),
    ]


def _arrow(rng: np.random.Generator) -> list[np.ndarray]:
    shaft, head, neck = rng.uniform(0.13, 0.22), rng.uniform(0.5, 0.68), rng.uniform(0.05, 0.3)
    upper = np.array([[-1, shaft], [neck, shaft], [neck, head], [1, 0]])
    return [np.concatenate([upper, upper[-2::-1] * [1, -1]])]


OUTLINES = {
    "star": _star,
    "ring": _ring,
    "cross": _cross,
    "crescent": _crescent,
    "gear": _gear,
    "arrow": _arrow,
}


def shape_blobs(name: str, rng: np.random.Generator) -> list[Blob]:
    """Draw one shape of a class at a random turn and proportions.

    name: a key of OUTLINES.  Returns parts for draw_sprite: the outer polygon, then holes.
    """
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    outer, *holes = OUTLINES[name](rng)
    return [Blob(FILL, outer @ turn)] + [Blob(0, hole @ turn) for hole in holes]


def shape_palette(colour: np.ndarray) -> np.ndarray:
    """(2, 3) uint8: nothing, and the fill.  colour: (3,) RGB, 0 to 255."""
    return np.stack([np.zeros(3), colour]).clip(0, 255).astype(np.uint8)
