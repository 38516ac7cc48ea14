"""Who takes part in a case, and how each is called: our backends, torchvision's ops, onnxruntime's RoiAlign node.

Everybody gets the very same tensors: features and, backward, a gradient in the layout of the case. Ours answers in
that layout; torchvision always answers in plain NCHW, which is its own business. Backward is timed alone, by
`torch.autograd.grad` on one forward's graph.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from benchmarks import onnx_peer
from benchmarks.cases import IOU_THRESHOLD, Case, make_boxes, make_scores
from mrcnn_scratch.nms import nms
from mrcnn_scratch.roi_ops import roi_align, roi_pool, roi_warp

PEER = "torchvision"
SLOW = ("torch", "reference")
INSTALL = "pip install -e '.[test]'"


@dataclass(frozen=True)
class Device:
    """Where the tensors lie, our compiled backend there, and the clock."""

    name: str  # "cpu" or "cuda"
    place: torch.device
    ours: str
    clock: object


@dataclass
class Field:
    """The contestants of a case, and who is left out and why."""

    calls: dict[str, Callable[[], Tensor]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def torchvision_ops():
    """torchvision.ops. Raises ValueError with the remedy where it is not installed."""
    try:
        import torchvision.ops
    except ImportError as error:
        raise ValueError(
            f"the benchmark measures against torchvision, which cannot be imported ({error}): {INSTALL}"
        ) from error
    return torchvision.ops


@lru_cache(maxsize=3)
def _normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def normal(shape: tuple[int, ...], layout: str, place: torch.device, seed: int) -> Tensor:
    """Standard normal numbers, the same in every layout and on every device."""
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    return _normal(shape, seed).to(place).contiguous(memory_format=memory_format)


def enter(case: Case, device: Device) -> Field:
    """Everybody who can compute the case, ours first."""
    boxes = make_boxes(case).to(device.place)
    slow = [name for name in case.slow if not (name == "reference" and device.name == "cuda")]
    backends = [device.ours, *slow]
    if case.op == "nms":
        return _nms(case, device, boxes[:, 1:].contiguous(), backends)
    features = normal(case.shape, case.layout, device.place, 0)
    entered = Field()
    for backend in backends:
        entered.calls[backend] = _call(case, lambda x, b=backend: _ours(case, b, x, boxes), features)
    if device.name == "cuda" and case.direction == "backward":
        entered.calls[f"{device.ours}, deterministic"] = _deterministic(entered.calls[device.ours])
    peer_boxes = boxes if case.op != "warp" else _rounded(boxes, case.stride)
    entered.calls[PEER] = _call(case, lambda x: _torchvision(case, x, peer_boxes), features)
    _enter_onnxruntime(case, device, features, boxes, entered)
    return entered


def _nms(case: Case, device: Device, boxes: Tensor, backends: list[str]) -> Field:
    scores, entered, peer = make_scores(case).to(device.place), Field(), torchvision_ops()
    for backend in backends:
        entered.calls[backend] = lambda b=backend: nms(boxes, scores, IOU_THRESHOLD, backend=b)
    entered.calls[PEER] = lambda: peer.nms(boxes, scores, IOU_THRESHOLD)
    return entered


def _ours(case: Case, backend: str, x: Tensor, boxes: Tensor) -> Tensor:
    job = (x, boxes, case.bins, 1 / case.stride)
    if case.op == "pool":
        return roi_pool(*job, backend=backend)
    if case.op == "warp":
        return roi_warp(*job, sampling_ratio=case.sampling, backend=backend)
    return roi_align(*job, sampling_ratio=case.sampling, aligned=True, backend=backend)


def _torchvision(case: Case, x: Tensor, boxes: Tensor) -> Tensor:
    ops = torchvision_ops()
    if case.op == "pool":
        return ops.roi_pool(x, boxes, case.bins, 1 / case.stride)
    scale = 1.0 if case.op == "warp" else 1 / case.stride
    return ops.roi_align(x, boxes, case.bins, scale, case.sampling, aligned=True)


def _rounded(boxes: Tensor, stride: int) -> Tensor:
    """torchvision has no RoIWarp; its RoIAlign of the cells that RoIPool would read, [start, end + 1), is one."""
    cells = boxes[:, 1:] / stride
    whole = cells.floor()
    whole = whole + (cells - whole >= 0.5)  # halves away from zero: corners are not negative
    whole[:, 2:] += 1
    return torch.cat([boxes[:, :1], whole], dim=1)


def _call(case: Case, forward: Callable[[Tensor], Tensor], features: Tensor) -> Callable[[], Tensor]:
    if case.direction == "forward":
        return lambda: forward(features)
    x = features.detach().requires_grad_()
    out = forward(x)
    grad = normal(tuple(out.shape), case.layout, features.device, 1)
    return lambda: torch.autograd.grad(out, x, grad, retain_graph=True)[0]


def _deterministic(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def inside() -> Tensor:
        torch.use_deterministic_algorithms(True)
        try:
            return call()
        finally:
            torch.use_deterministic_algorithms(False)

    return inside


def _enter_onnxruntime(case: Case, device: Device, features: Tensor, boxes: Tensor, entered: Field) -> None:
    if case.group.startswith("growth"):
        return
    try:
        entered.calls["onnxruntime"] = onnx_peer.roi_align_call(case, device.name, features, boxes)
    except onnx_peer.LeftOut as reason:
        entered.left_out["onnxruntime"] = str(reason)


def difference(case: Case, ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """Largest difference of two results, and the largest number in the peer's; for NMS 1 and 0: other boxes, the same.

    Raises: ValueError if the shapes of two RoI results differ.
    """
    if case.op == "nms":
        return float(not torch.equal(ours, theirs)), 1.0
    if ours.shape != theirs.shape:
        raise ValueError(f"{case.name}: a result of shape {tuple(ours.shape)} beside {tuple(theirs.shape)}")
    if ours.numel() == 0:
        return 0.0, 0.0
    return float((ours - theirs).abs().max()), float(theirs.abs().max())
