"""Backgrounds that a detector cannot read off one pixel, and colours that stand out from them."""

import numpy as np
from PIL import Image


def background(rng: np.random.Generator, image_size: tuple[int, int]) -> np.ndarray:
    """Draw a gradient of two muted colours, with stripes, checks, blotches or nothing on it, and grain.

    rng: source of all choices.  image_size: H, W in pixels.
    Returns (H, W, 3) uint8.
    """
    H, W = image_size
    base = rng.uniform(60, 200) + rng.uniform(-28, 28, 3)
    y, x = np.arange(H, dtype=np.float32)[:, None], np.arange(W, dtype=np.float32)[None]
    angle = rng.uniform(0, 2 * np.pi)
    along = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))  # (H, W) pixels
    kind, period, strength = rng.integers(4), np.float32(rng.uniform(6, 28)), np.float32(rng.uniform(8, 22))
    if kind == 0:
        texture = np.sign(np.sin(along * np.float32(2 * np.pi) / period))
    elif kind == 1:
        texture = 1 - 2 * ((x // period + y // period) % 2)
    elif kind == 2:
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9), dtype=np.uint8))
        texture = np.asarray(coarse.resize((W, H), Image.Resampling.BICUBIC), np.float32) / 64 - 2
    else:
        texture = np.zeros((H, W), np.float32)
    light = texture * strength + rng.integers(-6, 7, (H, W), dtype=np.int8)
    tilt = rng.uniform(-26, 26, 3).astype(np.float32) / max(H, W)
    return (base.astype(np.float32) + along[..., None] * tilt + light[..., None]).clip(0, 255).astype(np.uint8)


def contrasting_colour(rng: np.random.Generator, behind: np.ndarray, distance: float = 110.0) -> np.ndarray:
    """Draw a random colour that stands out from another one.

    behind: (3,) RGB, 0 to 255.
    distance: wanted Euclidean RGB distance; the best of 16 draws when none has it.
    Returns (3,) float64 RGB.
    """
    colours = rng.uniform(10, 250, (16, 3))
    apart = np.linalg.norm(colours - behind, axis=1)
    return colours[np.argmax(np.minimum(apart, distance))]  # the first of those that are far enough
