"""Detectron2's R-CNNs written down a second time, from its sources' names and layout, to hold imported weights against.

Only what weights pass through: backbone, FPN, RPN with its anchors, heads. Images are as Detectron2 has them: blue
first, 0..255. Nothing here comes from the package.
"""

import math

import torch
import torch.nn.functional as F

MEAN, STD_MSRA, STD_FAIR = (103.53, 116.28, 123.675), (1.0, 1.0, 1.0), (57.375, 57.12, 58.395)
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
SIZES, RATIOS = (32, 64, 128, 256, 512), (0.5, 1.0, 2.0)
K = 80


def state(depth=50, groups=1, neck="fpn", masks=True, keypoints=0, classes=K, width=256, fc=1024, empty=False) -> dict:
    """Random weights under Detectron2's names; ``empty`` ones take no memory."""
    make, shapes = torch.Generator().manual_seed(depth + classes), {}

    def conv(name, out, inside, k, bias=True, norm=False):
        shapes[f"{name}.weight"] = (out, inside, k, k)
        if bias:
            shapes[f"{name}.bias"] = (out,)
        for part in ("weight", "bias", "running_mean", "running_var") if norm else ():
            shapes[f"{name}.norm.{part}"] = (out,)

    body = "backbone.bottom_up." if neck == "fpn" else "backbone."
    conv(body + "stem.conv1", 64, 3, 7, False, True)
    inside = 64
    for stage, blocks in enumerate(BLOCKS[depth], start=2):
        before = f"roi_heads.res{stage}" if neck == "c4" and stage == 5 else f"{body}res{stage}"
        out, middle = 64 * 2**stage, 16 * 2**stage * (1 if groups == 1 else groups * 8 // 64)
        for block in range(blocks):
            if block == 0:
                conv(f"{before}.0.shortcut", out, inside, 1, False, True)
            conv(f"{before}.{block}.conv1", middle, inside, 1, False, True)
            conv(f"{before}.{block}.conv2", middle, middle // groups, 3, False, True)
            conv(f"{before}.{block}.conv3", out, middle, 1, False, True)
            inside = out
    rpn, anchors = (1024, 15) if neck == "c4" else (width, 3)
    if neck == "fpn":
        for level in range(2, 6):
            conv(f"backbone.fpn_lateral{level}", width, 64 * 2**level, 1)
            conv(f"backbone.fpn_output{level}", width, width, 3)
    conv("proposal_generator.rpn_head.conv", rpn, rpn, 3)
    conv("proposal_generator.rpn_head.objectness_logits", anchors, rpn, 1)
    conv("proposal_generator.rpn_head.anchor_deltas", 4 * anchors, rpn, 1)
    linear = {"roi_heads.box_head.fc1": (fc, width * 49), "roi_heads.box_head.fc2": (fc, fc)} if neck == "fpn" else {}
    trunk = fc if neck == "fpn" else 2048
    linear["roi_heads.box_predictor.cls_score"] = (classes + 1, trunk)
    linear["roi_heads.box_predictor.bbox_pred"] = (4 * classes, trunk)
    for name, shape in linear.items():
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]
    if masks:
        for i in range(4 if neck == "fpn" else 0):
            conv(f"roi_heads.mask_head.mask_fcn{i + 1}", width, width, 3)
        shapes["roi_heads.mask_head.deconv.weight"] = (width if neck == "fpn" else 2048, width, 2, 2)
        shapes["roi_heads.mask_head.deconv.bias"] = (width,)
        conv("roi_heads.mask_head.predictor", classes, width, 1)
    if keypoints:
        for i in range(8):
            conv(f"roi_heads.keypoint_head.conv_fcn{i + 1}", 2 * width, width if i == 0 else 2 * width, 3)
        shapes["roi_heads.keypoint_head.score_lowres.weight"] = (2 * width, keypoints, 4, 4)
        shapes["roi_heads.keypoint_head.score_lowres.bias"] = (keypoints,)
    return {name: _random(name, shape, make, empty) for name, shape in shapes.items()}


def _random(name: str, shape: tuple, make: torch.Generator, empty: bool) -> torch.Tensor:
    if empty:
        return torch.zeros(()).expand(shape)
    if name.endswith(("running_var", "norm.weight")):
        return torch.rand(shape, generator=make) * 0.5 + 0.5
    if len(shape) == 1:
        return torch.randn(shape, generator=make) * 0.1
    return torch.randn(shape, generator=make) / math.sqrt(math.prod(shape[1:]))


def _conv(w: dict, name: str, x, stride=1, padding=0, groups=1, relu=False):
    x = F.conv2d(x, w[name + ".weight"], w.get(name + ".bias"), stride, padding, 1, groups)
    if name + ".norm.weight" in w:
        norm = (w[f"{name}.norm.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        x = F.batch_norm(x, *norm, training=False, eps=1e-5)
    return F.relu(x) if relu else x


def stage(w: dict, name: str, x, stride: int, stride_in_1x1: bool, groups: int = 1):
    block = 0
    while f"{name}.{block}.conv1.weight" in w:
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        y = _conv(w, f"{name}.{block}.conv1", x, first, relu=True)
        y = _conv(w, f"{name}.{block}.conv2", y, second, 1, groups, relu=True)
        y = _conv(w, f"{name}.{block}.conv3", y)
        x = F.relu(y + (_conv(w, f"{name}.{block}.shortcut", x, stride) if block == 0 else x))
        block, stride = block + 1, 1
    return x


def features(w: dict, image, std, stride_in_1x1: bool, groups: int = 1) -> list:
    """(3, H, W) blue first, 0..255 -> P2..P6, or C4."""
    x = ((image - image.new_tensor(MEAN)[:, None, None]) / image.new_tensor(std)[:, None, None])[None]
    fpn = "backbone.fpn_lateral2.weight" in w
    body = "backbone.bottom_up." if fpn else "backbone."
    x = F.max_pool2d(_conv(w, body + "stem.conv1", x, 2, 3, relu=True), 3, 2, 1)
    maps = {}
    for level in range(2, 6 if fpn else 5):
        maps[level] = x = stage(w, f"{body}res{level}", x, 1 if level == 2 else 2, stride_in_1x1, groups)
    if not fpn:
        return [x]
    pyramid, above = [], None
    for level in (5, 4, 3, 2):
        merged = _conv(w, f"backbone.fpn_lateral{level}", maps[level])
        above = merged if above is None else merged + F.interpolate(above, scale_factor=2)
        pyramid.insert(0, _conv(w, f"backbone.fpn_output{level}", above, padding=1))
    return [*pyramid, F.max_pool2d(pyramid[-1], 1, 2)]


def anchors(maps: list) -> list:
    """For each map (H * W * A, 4): sizes slowest in a cell, ratios fastest, centred on the cell's corner."""
    single = len(maps) == 1
    result = []
    for level, x in enumerate(maps):
        stride, rows = 16 if single else 4 * 2**level, []
        for i in range(x.shape[-2]):
            for j in range(x.shape[-1]):
                for size in SIZES if single else SIZES[level : level + 1]:
                    for ratio in RATIOS:
                        w = size / math.sqrt(ratio)
                        h = w * ratio
                        rows.append((j * stride - w / 2, i * stride - h / 2, j * stride + w / 2, i * stride + h / 2))
        result.append(torch.tensor(rows, dtype=x.dtype))
    return result


def rpn(w: dict, maps: list) -> tuple[list, list]:
    """For each map logits (H * W * A,) and deltas (H * W * A, 4), in the order of :func:`anchors`."""
    logits, deltas = [], []
    for x in maps:
        t = _conv(w, "proposal_generator.rpn_head.conv", x, padding=1, relu=True)
        logits.append(_conv(w, "proposal_generator.rpn_head.objectness_logits", t).permute(0, 2, 3, 1).flatten())
        delta = _conv(w, "proposal_generator.rpn_head.anchor_deltas", t)
        deltas.append(delta.view(1, -1, 4, *x.shape[-2:]).permute(0, 3, 4, 1, 2).reshape(-1, 4))
    return logits, deltas


def _linear(w: dict, name: str, x):
    return F.linear(x, w[name + ".weight"], w[name + ".bias"])


def boxes(w: dict, pooled, stride_in_1x1: bool = True) -> tuple:
    """Pooled RoIs -> logits (R, K + 1), the background last, and deltas (R, K, 4)."""
    if "roi_heads.box_head.fc1.weight" in w:
        x = F.relu(_linear(w, "roi_heads.box_head.fc1", pooled.flatten(1)))
        x = F.relu(_linear(w, "roi_heads.box_head.fc2", x))
    else:
        x = stage(w, "roi_heads.res5", pooled, 2, stride_in_1x1).mean((2, 3))
    deltas = _linear(w, "roi_heads.box_predictor.bbox_pred", x)
    return _linear(w, "roi_heads.box_predictor.cls_score", x), deltas.view(len(x), -1, 4)


def masks(w: dict, pooled):
    """Pooled RoIs -> mask logits (R, K, 2m, 2m)."""
    i = 1
    while f"roi_heads.mask_head.mask_fcn{i}.weight" in w:
        pooled = _conv(w, f"roi_heads.mask_head.mask_fcn{i}", pooled, padding=1, relu=True)
        i += 1
    name = "roi_heads.mask_head.deconv"
    x = F.relu(F.conv_transpose2d(pooled, w[name + ".weight"], w[name + ".bias"], 2))
    return _conv(w, "roi_heads.mask_head.predictor", x)


def keypoints(w: dict, pooled):
    """Pooled RoIs -> heatmaps (R, J, 4m, 4m)."""
    for i in range(1, 9):
        pooled = _conv(w, f"roi_heads.keypoint_head.conv_fcn{i}", pooled, padding=1, relu=True)
    name = "roi_heads.keypoint_head.score_lowres"
    x = F.conv_transpose2d(pooled, w[name + ".weight"], w[name + ".bias"], 2, 1)
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
