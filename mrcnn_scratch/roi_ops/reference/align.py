"""RoIAlign and RoIWarp: the mean or the largest of each bin's samples, and the gradient that the features receive.

What tells RoIWarp from RoIAlign is where the samples lie, which is in `sampling`.
"""

import numpy as np

from .sampling import bin_samples


def roi_align_forward(features, boxes, output_size, spatial_scale, sampling_ratio, convention) -> np.ndarray:
    """RoIAlign: each bin is the mean of its samples (Mask R-CNN, section 3) -> (R, C, h, w)."""
    (C, H, W), (h, w) = features.shape[1:], output_size
    out = np.zeros((len(boxes), C, h, w), features.dtype)
    for r, (n, *box) in enumerate(boxes):
        for p in range(h):
            for q in range(w):
                samples = bin_samples(box, p, q, (h, w), (H, W), spatial_scale, sampling_ratio, convention)
                for sample in samples:
                    for y, x, weight in sample:
                        out[r, :, p, q] += features[int(n), :, y, x] * weight / len(samples)
    return out


def roi_align_backward(grad, boxes, shape, spatial_scale, sampling_ratio, convention, channels_last) -> np.ndarray:
    """The gradient with respect to the features: what the forward read with a weight receives with that weight.

    The forward is a weighted sum, out[r, p, q] = sum over cells of weight * features, so the derivative of out[r, p, q]
    by a cell is that weight, whatever the features hold: grad (R, C, h, w) -> (N, C, H, W).
    """
    (H, W), (h, w) = shape[2:], grad.shape[2:]
    out = np.zeros(shape, grad.dtype)
    for r, (n, *box) in enumerate(boxes):
        for p in range(h):
            for q in range(w):
                samples = bin_samples(box, p, q, (h, w), (H, W), spatial_scale, sampling_ratio, convention)
                for sample in samples:
                    for y, x, weight in sample:
                        out[int(n), :, y, x] += grad[r, :, p, q] * weight / len(samples)
    return out


def roi_align_max_forward(features, boxes, output_size, spatial_scale, sampling_ratio, convention):
    """RoIAlign with the largest sample instead of the mean -> (R, C, h, w), and which sample won (-1: none)."""
    (C, H, W), (h, w) = features.shape[1:], output_size
    out = np.zeros((len(boxes), C, h, w), features.dtype)
    winner = np.full(out.shape, -1, np.int32)
    for r, (n, *box) in enumerate(boxes):
        for p in range(h):
            for q in range(w):
                samples = bin_samples(box, p, q, (h, w), (H, W), spatial_scale, sampling_ratio, convention)
                for c in range(C):
                    values = [sum(features[int(n), c, y, x] * weight for y, x, weight in s) for s in samples]
                    if values:
                        winner[r, c, p, q] = np.argmax(values)  # the first, if several are equal
                        out[r, c, p, q] = max(values)
    return out, winner


def roi_align_max_backward(
    grad, winner, boxes, shape, spatial_scale, sampling_ratio, convention, channels_last
) -> np.ndarray:
    """Only the sample that won receives the gradient, spread over its four cells."""
    (C, H, W), (h, w) = shape[1:], grad.shape[2:]
    out = np.zeros(shape, grad.dtype)
    for r, (n, *box) in enumerate(boxes):
        for p in range(h):
            for q in range(w):
                samples = bin_samples(box, p, q, (h, w), (H, W), spatial_scale, sampling_ratio, convention)
                for c in range(C):
                    if winner[r, c, p, q] >= 0:
                        for y, x, weight in samples[winner[r, c, p, q]]:
                            out[int(n), c, y, x] += grad[r, c, p, q] * weight
    return out
