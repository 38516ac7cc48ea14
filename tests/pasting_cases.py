"""Masks and boxes to paste, and the readable version of pasting behind the same arguments as the public one."""

import torch

from mrcnn_scratch import pasting

FLOATS = [torch.float32, torch.float64]
# rounding, in cells of a mask of up to 30, which is what a value may change by: torch computes places in the dtype
ATOL = {torch.float32: 1e-5, torch.float64: 1e-12}


def readable(masks, boxes, size, legacy=False, threshold=None):
    corners = pasting._legacy_boxes(boxes, masks.shape[-1]) if legacy else boxes.double()
    return pasting.paste_masks_torch(masks, corners, size, int(legacy), threshold)


def random_case(count, size, dtype=torch.float32, seed=0, cells=28):
    """Masks, and boxes of all sizes of which many lie over the border; some have whole numbers for corners."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(count, cells, cells, generator=generator, dtype=dtype)
    span = torch.tensor([size[1], size[0]], dtype=dtype)
    centre = torch.rand(count, 2, generator=generator, dtype=dtype) * span
    sides = span * torch.rand(count, 2, generator=generator, dtype=dtype) ** 3 * 1.5 + 0.1
    boxes = torch.cat([centre - sides / 2, centre + sides / 2], 1)
    boxes[::4] = boxes[::4].round()
    return masks, boxes
