"""Pixels from files: any mode to RGB, EXIF orientation, and one clear error for what cannot be decoded."""

from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor


class UnusableImage(ValueError):
    """An image file that cannot be used; `kind` is "missing_image", "corrupt_image" or "size_mismatch"."""

    def __init__(self, path: str | Path, kind: str, value: str, remedy: str):
        super().__init__(f"image {str(path)!r} {value}: {remedy}")
        self.kind, self.value, self.remedy = kind, value, remedy


def read_image(path: str | Path, size: tuple[int, int] | None = None) -> Tensor:
    """Read a photograph as RGB, upright as a viewer shows it.

    Greyscale is repeated over the channels, palettes and CMYK are converted, 16-bit grey is scaled by its
    full range, an alpha channel is dropped (as Pillow's ``convert("RGB")`` does), and an animation gives its
    first frame.

    Args:
        path: any file that Pillow reads.
        size: ``(W, H)`` in pixels that the annotations were made for; see `is_transposed` for what it
            decides.

    Returns:
        (3, H, W) float32 in [0, 1].

    Raises:
        ValueError: the file is missing, is not an image, is truncated, or does not have that size; it names
            the file.
    """
    pixels = decode_image(path, size)  # (H, W, 3)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float() / 255  # (3, H, W)


def decode_image(
    path: str | Path, size: tuple[int, int] | None = None, pixels: bool = True
) -> np.ndarray | None:
    """Read an image as (H, W, 3) uint8 RGB, as `read_image` does; ``pixels=False`` reads its header only.

    Raises:
        UnusableImage: as `read_image`; a truncated file shows only when its pixels are read.
    """
    try:
        with Image.open(path) as image:
            stored, upright = is_transposed(image, size)
            fits = size is None or upright or stored == tuple(size)
            array = _to_rgb(ImageOps.exif_transpose(image) if upright else image) if fits and pixels else None
    except FileNotFoundError:
        remedy = "restore the file, or correct its path"
        raise UnusableImage(path, "missing_image", "does not exist", remedy) from None
    except Exception as error:  # bad bytes: OSError, SyntaxError, EOFError, struct.error ...
        if size is None and Path(path).is_dir():
            raise UnusableImage(path, "corrupt_image", "is a folder", "give image files") from None
        if size is None and isinstance(error, UnidentifiedImageError):
            value = "is not an image that Pillow reads"
            raise UnusableImage(path, "corrupt_image", value, "give a JPEG or PNG") from None
        annotated = ", or remove it from the annotations" if size else ""
        remedy = f"replace the file by an intact copy{annotated}"
        value = f"cannot be read ({type(error).__name__}: {error})"
        raise UnusableImage(path, "corrupt_image", value, remedy) from error
    if not fits:
        stored_size, said = "{}x{}".format(*stored), "{}x{}".format(*size)
        value = f"is {stored_size} pixels but its annotations say {said} (width x height)"
        remedy = "restore the original file, or correct width and height in the JSON"
        raise UnusableImage(path, "size_mismatch", value, remedy)
    return array


def is_transposed(image: Image.Image, size: tuple[int, int] | None) -> tuple[tuple[int, int], bool]:
    """Decide whether the EXIF orientation of an opened image is to be applied.

    Annotations count pixels of *some* orientation, and their width and height say which. A quarter turn (EXIF
    5 to 8) of a non-square image is therefore applied only if it gives that size, and is left alone if the
    stored pixels have it already. Where both fit (a square image, or a mirror or half turn, EXIF 2 to 4) the
    size cannot tell, and the tag is applied: browsers, and so the annotators, show the upright picture, and
    Detectron2 and OpenCV read it so. The folder check warns of these (`orientation_is_ambiguous`).

    Args:
        image: an opened Pillow image (only its header is read).
        size: ``(W, H)`` that the annotations state, or None for a plain photograph: the tag is applied.

    Returns:
        the stored ``(W, H)``, and whether to apply the orientation.
    """
    orientation = exif_orientation(image)
    W, H = image.size
    if orientation == 1:
        return (W, H), False
    if size is None:
        return (W, H), True
    turned = (H, W) if orientation >= 5 else (W, H)
    return (W, H), turned == tuple(size)


def exif_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an opened image, 1 to 8; 1 (upright) if there is none or a bad one."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged EXIF block does not make the pixels unreadable
        return 1
    return orientation if orientation in range(1, 9) else 1


def orientation_is_ambiguous(image: Image.Image, size: tuple[int, int]) -> bool:
    """Say whether the stated ``(W, H)`` fits the stored pixels as well as the upright ones."""
    orientation, (W, H) = exif_orientation(image), image.size
    return orientation != 1 and (W, H) == tuple(size) and (orientation < 5 or W == H)


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Convert a decoded image of any mode to (H, W, 3) uint8."""
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion clips at 255 instead of scaling
        grey = np.asarray(image).astype(np.int64)
        if grey.size and (grey.min() < 0 or grey.max() > 65535):
            raise ValueError(
                f"mode {image.mode} has values outside 0..65535: save it as 8 or 16 bits per channel"
            )
        return np.repeat((grey * 255 + 32767)[..., None] // 65535, 3, axis=2).astype(np.uint8)
    if image.mode == "F":
        raise ValueError("mode F (floating point) has no stated range: save it as 8 or 16 bits per channel")
    if image.mode == "P":  # a palette may carry transparency that only RGBA can hold
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))
