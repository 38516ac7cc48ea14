"""The second stage (Mask R-CNN, section 3): RoI features, and the box, mask and keypoint heads that read them.

The parts, their losses on sampled RoIs, and their answers on proposals, in that order.
"""

import torch
from torch import nn

from .backbones import make_res5, own_stream
from .box_head import BoxPredictor, TwoLayerTrunk, box_loss, box_targets, detect_boxes, sample_rois
from .config import ModelConfig
from .keypoint_head import KeypointHead, decode_keypoints, keypoint_loss, keypoint_targets
from .mask_head import make_mask_head, mask_loss, mask_targets, select_masks
from .pasting import paste_masks
from .preprocess import ImageBatch
from .roi_ops import roi_align, roi_pool, roi_warp
from .roi_ops.levels import multiscale_roi


class RoIHeads(nn.Module):
    """What :class:`~mrcnn_scratch.model.MaskRCNN` does with features and proposals.

    Args:
        config: everything that can be chosen.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config

    def make_heads(self, channels: int) -> None:
        """Adds the heads that the configuration names, on feature maps of so many channels."""
        config = self.config
        with own_stream(config.seed, "box"):
            self.box_trunk, width = self._make_trunk(channels)
            self.box_predictor = BoxPredictor(width, config.num_classes)
        if config.masks:  # C4's mask branch shares res5 with the box branch (figure 4, left)
            with own_stream(config.seed, "mask"):
                self.mask_head = make_mask_head(config, width if config.neck == "c4" else channels)
        if config.keypoints:
            with own_stream(config.seed, "keypoints"):
                self.keypoint_head = KeypointHead(
                    channels, config.keypoint_channels, config.keypoint_convs, config.keypoints
                )

    def _make_trunk(self, channels: int) -> tuple[nn.Module, int]:
        config = self.config
        if config.neck == "c4":  # res5 on the pooled RoI: with stride 1 on 7x7 bins, as in the paper's figure 4
            return make_res5(config, config.res5_stride)
        return TwoLayerTrunk(channels, config.box_pool, config.box_hidden), config.box_hidden

    def pool(self, features: list[torch.Tensor], rois: list[torch.Tensor], size: int) -> torch.Tensor:
        """RoI features by the configured op, each RoI from its own level: (R, C, size, size). P6 is for the RPN."""
        config = self.config
        inside = config.level_eps_inside
        return multiscale_roi(
            features[:4], rois, size, config.strides[:4], self._roi_op, config.canonical_size, config.canonical_level,
            1e-8 if inside else 1e-6, inside,
        )  # fmt: skip

    def _roi_op(self, features, boxes, output_size, spatial_scale) -> torch.Tensor:
        config = self.config
        if config.roi_op == "pool":
            return roi_pool(features, boxes, output_size, spatial_scale)
        if config.roi_op == "warp":
            ratio, sampler = config.sampling_ratio, config.warp_sampler
            return roi_warp(features, boxes, output_size, spatial_scale, ratio, config.roi_reduce, sampler=sampler)
        return roi_align(
            features, boxes, output_size, spatial_scale, config.sampling_ratio, config.roi_aligned, config.roi_reduce
        )

    def mask_logits(
        self, features: list[torch.Tensor], rois: list[torch.Tensor], labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Mask logits of the RoIs, (R, K, M, M); with labels (R,) (R, 1, M, M) where each class has a mask apart."""
        pooled = self.pool(features, rois, self.config.mask_pool)
        pooled = self.box_trunk(pooled) if self.config.neck == "c4" else pooled
        apart = self.config.mask_head == "fcn" and self.config.mask_loss == "sigmoid"
        return self.mask_head(pooled, labels) if apart else self.mask_head(pooled)

    def keypoint_logits(self, features: list[torch.Tensor], rois: list[torch.Tensor]) -> torch.Tensor:
        """Keypoint heatmaps of the RoIs, (R, J, S, S)."""
        return self.keypoint_head(self.pool(features, rois, self.config.keypoint_pool))

    def head_losses(
        self,
        features: list[torch.Tensor],
        proposals: list[torch.Tensor],
        targets: list[dict],
        generators: list[torch.Generator | None],
    ) -> dict[str, torch.Tensor]:
        """Losses of the three heads on sampled RoIs: L = L_cls + L_box + L_mask (section 3).

        Args:
            features: the feature maps.
            proposals: for each image (R_i, 4) xyxy, pixels of the batch.
            targets: in pixels of the batch.
            generators: each draws one image's RoIs.
        """
        config = self.config
        rois, labels, matched = zip(
            *(sample_rois(p, t, config, g) for p, t, g in zip(proposals, targets, generators, strict=True)), strict=True
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
        labels = torch.cat([t["labels"][m] for t, m in zip(targets, matched, strict=True)])
        logits = self.mask_logits(features, rois, labels)
        wanted = [
            mask_targets(t["masks"], m, r, logits.shape[-1], config.mask_target_aligned, config.mask_target_binary)
            for t, m, r in zip(targets, matched, rois, strict=True)
        ]
        return mask_loss(logits, labels, torch.cat(wanted), config.mask_loss)

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
            masks = select_masks(self.mask_logits(features, boxes, labels), labels, config.mask_loss).split(counts)
        if config.keypoints:
            heatmaps = self.keypoint_logits(features, boxes).split(counts)
        for index, detection in enumerate(detections):
            back = boxes[index].new_tensor(batch.ratios_back(index) * 2)
            detection["boxes"] = boxes[index] * back
            if config.masks:
                size = batch.original_sizes[index]
                detection["masks"] = paste_masks(masks[index], detection["boxes"], size, config.paste_legacy)[:, None]
            if config.keypoints:
                in_image = config.keypoint_decode == "image"
                points, scores = decode_keypoints(heatmaps[index], detection["boxes"] if in_image else boxes[index])
                if not in_image:
                    points[..., :2] *= back[:2]
                detection["keypoints"], detection["keypoints_scores"] = points, scores
        return detections
