"""onnxruntime's RoiAlign operator as a second peer: a graph of one node, on the CPU."""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from benchmarks.cases import Case


class LeftOut(Exception):
    """Why onnxruntime does not take part in a case."""


@lru_cache(maxsize=4)
def _session(bins: int, scale: float, sampling: int, threads: int):
    """A session that computes RoIAlign, aligned: x (N, C, H, W), rois (R, 4), batch (R,) -> y (R, C, bins, bins)."""
    try:
        import onnxruntime
        from onnx import TensorProto, helper
    except ImportError as error:
        raise LeftOut(f"cannot be imported ({error}): pip install -e '.[test]'") from error

    def value(name, shape, kind=TensorProto.FLOAT):
        return helper.make_tensor_value_info(name, kind, shape)

    node = helper.make_node(
        "RoiAlign", ["x", "rois", "batch"], ["y"], output_height=bins, output_width=bins, spatial_scale=scale,
        sampling_ratio=sampling, mode="avg", coordinate_transformation_mode="half_pixel",
    )  # fmt: skip
    inputs = [value("x", ["N", "C", "H", "W"]), value("rois", ["R", 4]), value("batch", ["R"], TensorProto.INT64)]
    graph = helper.make_graph([node], "roi_align", inputs, [value("y", ["R", "C", bins, bins])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # or they spin in the next one's time
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def roi_align_call(case: Case, device: str, features: Tensor, boxes: Tensor) -> Callable[[], Tensor]:
    """The call for a case, with as many threads as torch has. Raises LeftOut where there is no such operator."""
    if device != "cpu":
        raise LeftOut("measured on the CPU only")
    if case.op != "align":
        raise LeftOut(f"has no such operator ({case.op})")
    if case.direction != "forward":
        raise LeftOut("computes no gradients")
    if case.layout != "NCHW":
        raise LeftOut("takes plain NCHW only")
    session = _session(case.bins, 1 / case.stride, case.sampling, torch.get_num_threads())
    arrays = {"x": features, "rois": boxes[:, 1:].contiguous(), "batch": boxes[:, 0].to(torch.int64)}
    arrays = {name: tensor.numpy() for name, tensor in arrays.items()}
    return lambda: torch.from_numpy(session.run(None, arrays)[0])
