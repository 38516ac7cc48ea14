"""Mask R-CNN from scratch: to be read, taught from and measured (He et al., arXiv:1703.06870).

Public names load on first use, so that ``import mrcnn_scratch`` compiles nothing and starts no thread.
"""

import importlib

from .nms import nms as nms  # at once: the function, not the module of the same name, is what `mrcnn_scratch.nms` means

__version__ = "0.1.0"

_HOME = {  # public name -> the module that defines it
    "box_area": "boxes",
    "box_iou": "boxes",
    "clip_boxes_to_image": "boxes",
    "encode_boxes": "boxes",
    "decode_boxes": "boxes",
    "batched_nms": "nms",
    "roi_align": "roi_ops",
    "roi_warp": "roi_ops",
    "roi_pool": "roi_ops",
    "MaskRCNN": "model",
    "build_model": "model",
    "ModelConfig": "config",
    "save_model": "weights",
    "load_model": "weights",
    "load_pretrained": "weights",
    "load_torchvision_weights": "weights",
    "export_torchvision_weights": "weights",
    "load_detectron2_weights": "weights",
    "load_backbone_weights": "weights",
    "ShapesDataset": "datasets.shapes",
    "CocoDataset": "datasets.coco",
    "evaluate": "evaluation",
}
__all__ = sorted([*_HOME, "nms"])


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'mrcnn_scratch' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
