"""Benchmarks: the package against torchvision and onnxruntime, in one run. Not a part of the installed package.

`mrcnn bench roi`, `python -m benchmarks.roi_ops` and `python benchmarks/roi_ops.py`, in a checkout, are the same.
"""
