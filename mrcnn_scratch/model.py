"""Mask R-CNN (He et al., arXiv:1703.06870): backbone -> RPN -> RoIs -> box, mask and keypoint heads.

Read :meth:`MaskRCNN.forward`, then the two methods it calls: one trains, one detects.
"""

from contextlib import contextmanager
from zlib import crc32

import torch
from torch import nn

from .anchors import pyramid_anchors
from .box_head import BoxPredictor, TwoLayerTrunk, box_loss, box_targets, detect_boxes, sample_rois
from .config import ModelConfig, model_config
from .fpn import FPN
from .keypoint_head import KeypointHead, decode_keypoints, keypoint_loss, keypoint_targets
from .mask_head import MaskHead, mask_loss, mask_targets, paste_masks, select_masks
from .preprocess import ImageBatch, batch_images, scale_target
from .resnet import TinyResNet, init_convolutions, make_stage
from .roi_ops import roi_align, roi_pool, roi_warp
from .roi_ops.levels import multiscale_roi
from .rpn import RPNHead, propose, rpn_loss, rpn_targets
from .validation import check_images, check_targets


def build_model(
    name: str,
    num_classes: int = 91,
    masks: bool = True,
    keypoints: int = 0,
    conventions: str = "paper",
    **fields,
) -> "MaskRCNN":
    """A Mask R-CNN with fresh weights.

    Args:
        name: "tiny-fpn" or "tiny-c4".
        num_classes: K, with the background.
        masks: whether to have the mask branch; without it this is Faster R-CNN.
        keypoints: J, 17 for COCO persons; 0 for no keypoint branch.
        conventions: "paper", "torchvision" or "detectron2": what to do where the paper is silent.
        fields: any field of :class:`~mrcnn_scratch.config.ModelConfig`, e.g. ``score_threshold=0.5``.

    Raises:
        ValueError: an unknown name, convention or field, or a value out of range.
    """
    return MaskRCNN(
        model_config(name, conventions, num_classes=num_classes, masks=masks, keypoints=keypoints, **fields)
    )


@contextmanager
def _own_stream(seed: int, part: str):
    """Draws the weights of one part from a stream of its own, and leaves torch's global one as it was."""
    with torch.random.fork_rng(devices=[]):
        # of the CPU alone; its generator reads no more than 32 bits, so the seed goes into the hash
        torch.default_generator.manual_seed(crc32(f"{seed} {part}".encode()))
        yield


class MaskRCNN(nn.Module):
    """The two-stage detector of the paper, on a feature pyramid (FPN) or on one map of stride 16 (C4).

    Args:
        config: everything that can be chosen.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        stages = 4 if config.neck == "fpn" else 3
        with _own_stream(config.seed, "backbone"):
            self.backbone = TinyResNet(config.widths[:stages], config.blocks[:stages], config.norm)
        if config.neck == "fpn":
            with _own_stream(config.seed, "fpn"):
                self.fpn = FPN(config.widths, config.fpn_channels)
        channels = config.fpn_channels if config.neck == "fpn" else config.widths[2]
        anchors_per_cell = len(config.anchor_sizes[0]) * len(config.aspect_ratios)
        with _own_stream(config.seed, "rpn"):
            self.rpn = RPNHead(channels, anchors_per_cell)
        with _own_stream(config.seed, "box"):
            self.box_trunk, width = self._make_trunk(channels)
            self.box_predictor = BoxPredictor(width, config.num_classes)
        if config.masks:  # C4's mask branch shares res5 with the box branch (figure 4, left)
            with _own_stream(config.seed, "mask"):
                inputs, convs = (channels, config.mask_convs) if config.neck == "fpn" else (width, 0)
                self.mask_head = MaskHead(inputs, config.mask_channels, convs, config.num_classes)
        if config.keypoints:
            with _own_stream(config.seed, "keypoints"):
                self.keypoint_head = KeypointHead(
                    channels, config.keypoint_channels, config.keypoint_convs, config.keypoints
                )

    def _make_trunk(self, channels: int) -> tuple[nn.Module, int]:
        config = self.config
        if config.neck == "fpn":
            return TwoLayerTrunk(channels, config.box_pool, config.box_hidden), config.box_hidden
        # res5 on the pooled RoI, with stride 1: on 7x7 bins, as the paper's figure 4 has it
        res5 = make_stage(channels, config.widths[3], config.blocks[3], 1, config.norm)
        init_convolutions(res5)
        return res5, config.widths[3]

    def forward(
        self,
        images: list[torch.Tensor],
        targets: list[dict] | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, torch.Tensor] | list[dict[str, torch.Tensor]]:
        """Losses in training mode, detections in evaluation mode.

        Args:
            images: N tensors (3, H_i, W_i) float in [0, 1], any sizes.
            targets: for training, N dictionaries: ``boxes (G, 4)`` xyxy pixels, ``labels (G,)`` int64 from 1,
                ``masks (G, H, W)``, ``keypoints (G, J, 3)``, optionally ``iscrowd (G,)`` and ``image_id``.
            generator: draws the sampled anchors and RoIs in training; None uses torch's global one.

        Returns:
            training: ``loss_objectness``, ``loss_rpn_box``, ``loss_classifier``, ``loss_box`` and, with the
            branches, ``loss_mask`` and ``loss_keypoint``, scalars to be summed (section 3). Evaluation: for each
            image ``boxes (D, 4)``, ``labels (D,)``, ``scores (D,)``, ``masks (D, 1, H, W)`` in [0, 1], of which
            0.5 and more is the object, ``keypoints (D, J, 3)`` and ``keypoints_scores (D, J)``, in that image's
            own pixels, best first.

        Raises:
            ValueError: images or targets that cannot be used, by position, value and remedy.
        """
        config = self.config
        check_images(images)
        if self.training:
            check_targets(targets, images, config.num_classes, config.masks, config.keypoints)
        dtype = self.rpn.conv.weight.dtype
        images = [image.to(dtype) for image in images]
        batch = batch_images(images, config.min_size, config.max_size, config.mean, config.std)
        features = self.extract(batch.images)
        anchors = self.anchors(features)
        logits, deltas = self.rpn(features)
        proposals = propose(logits, deltas, anchors, batch.sizes, config, self.training)
        if self.training:
            targets = [scale_target(t, batch.ratios(i), batch.sizes[i]) for i, t in enumerate(targets)]
            samples = [
                rpn_targets(torch.cat(anchors), t, size, config, generator)
                for t, size in zip(targets, batch.sizes, strict=True)
            ]
            losses = rpn_loss(torch.cat(logits, 1), torch.cat(deltas, 1), samples, config.rpn_beta)
            return losses | self.head_losses(features, proposals, targets, generator)
        return self.detect(features, proposals, batch)

    def extract(self, images: torch.Tensor) -> list[torch.Tensor]:
        """(N, 3, H, W) normalised -> P2..P5 (FPN) or [C4], each (N, C, H / stride, W / stride)."""
        stages = self.backbone(images)
        return self.fpn(stages) if self.config.neck == "fpn" else stages[-1:]

    def anchors(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """The anchors of each feature map, (H_l * W_l * A, 4) xyxy, pixels of the batch."""
        config = self.config
        shapes = [tuple(feature.shape[-2:]) for feature in features]
        levels = pyramid_anchors(
            shapes, config.strides, config.anchor_sizes, config.aspect_ratios,
            config.anchor_offset, config.anchor_rounded,
        )  # fmt: skip
        return [level.to(features[0].device) for level in levels]

    def pool(self, features: list[torch.Tensor], rois: list[torch.Tensor], size: int) -> torch.Tensor:
        """RoI features by the configured op, each RoI from its own level: (R, C, size, size)."""
        config = self.config
        return multiscale_roi(
            features, rois, size, config.strides, self._roi_op, config.canonical_size, config.canonical_level,
            eps_inside_log=config.level_eps_inside,
        )  # fmt: skip

    def _roi_op(self, features, boxes, output_size, spatial_scale) -> torch.Tensor:
        config = self.config
        if config.roi_op == "pool":
            return roi_pool(features, boxes, output_size, spatial_scale)
        if config.roi_op == "warp":
            return roi_warp(features, boxes, output_size, spatial_scale, config.sampling_ratio, config.roi_reduce)
        return roi_align(
            features, boxes, output_size, spatial_scale, config.sampling_ratio, config.roi_aligned, config.roi_reduce
        )

    def mask_logits(self, features: list[torch.Tensor], rois: list[torch.Tensor]) -> torch.Tensor:
        """Mask logits of the RoIs, (R, K, M, M)."""
        pooled = self.pool(features, rois, self.config.mask_pool)
        return self.mask_head(self.box_trunk(pooled) if self.config.neck == "c4" else pooled)

    def keypoint_logits(self, features: list[torch.Tensor], rois: list[torch.Tensor]) -> torch.Tensor:
        """Keypoint heatmaps of the RoIs, (R, J, S, S)."""
        return self.keypoint_head(self.pool(features, rois, self.config.keypoint_pool))

    def head_losses(
        self,
        features: list[torch.Tensor],
        proposals: list[torch.Tensor],
        targets: list[dict],
        generator: torch.Generator | None = None,
    ) -> dict[str, torch.Tensor]:
        """Losses of the three heads on sampled RoIs: L = L_cls + L_box + L_mask (section 3).

        Args:
            features: the feature maps.
            proposals: for each image (R_i, 4) xyxy, pixels of the batch.
            targets: in pixels of the batch.
            generator: draws the RoIs.
        """
        config = self.config
        rois, labels, matched = zip(
            *(sample_rois(p, t, config, generator) for p, t in zip(proposals, targets, strict=True)), strict=True
        )
        wanted = [box_targets(r, t, m, config.box_weights) for r, t, m in zip(rois, targets, matched, strict=True)]
        logits, deltas = self.box_predictor(self.box_trunk(self.pool(features, list(rois), config.box_pool)))
        losses = box_loss(logits, deltas, torch.cat(labels), torch.cat(wanted), config.box_beta)

        positives = [r[m >= 0] for r, m in zip(rois, matched, strict=True)]
        truths = [m[m >= 0] for m in matched]
        if config.masks:
            losses["loss_mask"] = self._mask_loss(features, positives, truths, targets)
        if config.keypoints:
            losses["loss_keypoint"] = self._keypoint_loss(features, positives, truths, targets)
        return losses

    def _mask_loss(self, features, rois, matched, targets) -> torch.Tensor:
        config = self.config
        logits = self.mask_logits(features, rois)
        wanted = [
            mask_targets(t["masks"], m, r, logits.shape[-1], config.mask_target_aligned, config.mask_target_binary)
            for t, m, r in zip(targets, matched, rois, strict=True)
        ]
        labels = torch.cat([t["labels"][m] for t, m in zip(targets, matched, strict=True)])
        return mask_loss(logits, labels, torch.cat(wanted))

    def _keypoint_loss(self, features, rois, matched, targets) -> torch.Tensor:
        truth = [t["keypoints"][m] for t, m in zip(targets, matched, strict=True)]
        # an RoI without a labelled keypoint teaches nothing: do not spend the head on it
        useful = [(k[:, :, 2] > 0).any(dim=1) for k in truth]
        rois = [r[u] for r, u in zip(rois, useful, strict=True)]
        logits = self.keypoint_logits(features, rois)
        keypoints = torch.cat([k[u] for k, u in zip(truth, useful, strict=True)])
        return keypoint_loss(logits, *keypoint_targets(keypoints, torch.cat(rois), logits.shape[-1]))

    @torch.no_grad()
    def detect(self, features: list[torch.Tensor], proposals: list[torch.Tensor], batch: ImageBatch) -> list[dict]:
        """Detections of each image; masks and keypoints are computed on the refined boxes (section 3.1).

        Args:
            features: the feature maps.
            proposals: for each image (R_i, 4) xyxy, pixels of the batch.
            batch: the sizes before and after resizing.
        """
        config = self.config
        logits, deltas = self.box_predictor(self.box_trunk(self.pool(features, proposals, config.box_pool)))
        counts = [len(p) for p in proposals]
        detections = [
            detect_boxes(*parts, config)
            for parts in zip(logits.split(counts), deltas.split(counts), proposals, batch.sizes, strict=True)
        ]
        boxes = [d["boxes"] for d in detections]
        counts = [len(b) for b in boxes]
        if config.masks:
            labels = torch.cat([d["labels"] for d in detections])
            masks = select_masks(self.mask_logits(features, boxes), labels).split(counts)
        if config.keypoints:
            heatmaps = self.keypoint_logits(features, boxes).split(counts)
        for index, detection in enumerate(detections):
            across, down = batch.ratios(index)
            detection["boxes"] = detection["boxes"] / boxes[index].new_tensor([across, down, across, down])
            if config.masks:
                size = batch.original_sizes[index]
                detection["masks"] = paste_masks(masks[index], detection["boxes"], size, config.paste_legacy)[:, None]
            if config.keypoints:
                points, scores = decode_keypoints(heatmaps[index], detection["boxes"])
                detection["keypoints"], detection["keypoints_scores"] = points, scores
        return detections
