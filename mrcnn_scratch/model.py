"""Mask R-CNN (He et al., arXiv:1703.06870): backbone -> RPN -> RoIs -> box, mask and keypoint heads.

Read :meth:`MaskRCNN.forward`, then the two methods it calls: one trains, one detects.
"""

import torch

from .anchors import pyramid_anchors
from .backbones import freeze, make_backbone, own_stream
from .boxes import at_least_float32
from .config import ModelConfig
from .fpn import FPN, pyramid_top
from .preprocess import ImageBatch, batch_images, scale_target
from .presets import model_config
from .roi_heads import RoIHeads
from .rpn import RPNHead, propose, rank_proposals, rpn_loss, rpn_targets
from .validation import check_images, check_proposals, check_targets


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
        name: a key of :data:`~mrcnn_scratch.presets.PRESETS`: "R50-FPN", "R101-C4", "X101-FPN", "tiny-fpn", ...
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


class MaskRCNN(RoIHeads):
    """The two-stage detector of the paper, on a feature pyramid (FPN) or on one map of stride 16 (C4) or 32 (C5).

    Args:
        config: everything that can be chosen.
    """

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        with own_stream(config.seed, "backbone"):
            self.backbone = make_backbone(config)
        freeze(self.backbone, config.freeze_at)
        channels = self.backbone.channels[-1]
        if config.neck == "fpn":
            with own_stream(config.seed, "fpn"):
                self.fpn = FPN(self.backbone.channels, config.fpn_channels)
            channels = config.fpn_channels
        if config.stages != "heads":
            with own_stream(config.seed, "rpn"):
                self.rpn = RPNHead(channels, len(config.anchor_sizes[0]) * len(config.aspect_ratios))
        if config.stages != "rpn":
            self.make_heads(channels)

    def forward(
        self,
        images: list[torch.Tensor],
        targets: list[dict] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        proposals: list[torch.Tensor] | None = None,
    ) -> dict[str, torch.Tensor] | list[dict[str, torch.Tensor]]:
        """Losses in training mode, detections in evaluation mode.

        Args:
            images: N tensors (3, H_i, W_i) float in [0, 1], any sizes.
            targets: for training, N dictionaries: ``boxes (G, 4)`` xyxy pixels, ``labels (G,)`` int64 from 1,
                ``masks (G, H, W)``, ``keypoints (G, J, 3)``, optionally ``iscrowd (G,)`` and ``image_id``.
            generator: draws the sampled anchors and RoIs in training, one for all or one for each image; None uses
                torch's global one.
            proposals: where the model has no RPN (stages "heads"), N tensors (R_i, 4) xyxy in each image's own
                pixels; None takes them from the targets' ``proposals``.

        Returns:
            training: ``loss_objectness``, ``loss_rpn_box``, ``loss_classifier``, ``loss_box`` and, with the
            branches, ``loss_mask`` and ``loss_keypoint``, scalars to be summed (section 3). Evaluation: for each
            image ``boxes (D, 4)``, ``labels (D,)``, ``scores (D,)``, ``masks (D, 1, H, W)`` in [0, 1], of which
            0.5 and more is the object, ``keypoints (D, J, 3)`` and ``keypoints_scores (D, J)``, in that image's
            own pixels, best first. An RPN alone (stages "rpn") gives its two losses; and as detections its proposals,
            all of label 1, scored by objectness.

        Raises:
            ValueError: images, targets or proposals that cannot be used, by position, value and remedy.
        """
        config = self.config
        check_images(images)
        if self.training:
            wants_masks, wants_keypoints = (False, 0) if config.stages == "rpn" else (config.masks, config.keypoints)
            check_targets(targets, images, config.num_classes, wants_masks, wants_keypoints)
        if config.stages == "heads":
            proposals = check_proposals(proposals, targets, images)
        elif proposals is not None:
            raise ValueError(f"proposals are given, but stages is {config.stages!r}: a model with an RPN takes none")
        generators = generator if isinstance(generator, list) else [generator] * len(images)
        if len(generators) != len(images):
            raise ValueError(f"{len(images)} images and {len(generators)} generators: give one, or one for each image")
        batch = self.prepare(images, generators)
        features = self.extract(batch.images)
        if self.training:
            nearest = "nearest" if config.resize == "torchvision" else "nearest-exact"
            targets = [scale_target(t, batch.ratios(i), batch.sizes[i], nearest) for i, t in enumerate(targets)]
            return self._losses(features, batch, targets, proposals, generators)
        return self._detections(features, batch, proposals)

    def prepare(self, images: list[torch.Tensor], generators: list[torch.Generator | None] | None = None) -> ImageBatch:
        """Resizes, normalises and pads the images, in the dtype of the weights; draws the sizes in training."""
        config = self.config
        edges = config.min_size
        if self.training and config.train_min_sizes:
            draws = [torch.randint(len(config.train_min_sizes), (), generator=g) for g in generators]
            edges = [config.train_min_sizes[int(draw)] for draw in draws]
        dtype = next(self.parameters()).dtype
        images = [image.to(dtype) for image in images]
        return batch_images(images, edges, config.max_size, config.mean, config.std, config.resize)

    def _losses(self, features, batch: ImageBatch, targets, proposals, generators) -> dict[str, torch.Tensor]:
        config, losses = self.config, {}
        if config.stages != "heads":
            anchors = self.anchors(features)
            with torch.no_grad():  # proposals pass no gradient, and the loss reads few anchors: see RPNHead.at
                logits, deltas = self.rpn(features)
            samples = [
                rpn_targets(torch.cat(anchors), *each, config, generator)
                for *each, generator in zip(targets, batch.sizes, generators, strict=True)
            ]
            losses = rpn_loss(*self.rpn.at(features, samples), samples, config.rpn_beta)
            if config.stages == "rpn":
                return losses
            proposals = propose(logits, deltas, anchors, batch.sizes, config, training=True)
        else:
            proposals = self._scaled(proposals, batch)
        return losses | self.head_losses(features, proposals, targets, generators)

    def _detections(self, features, batch: ImageBatch, proposals) -> list[dict]:
        config = self.config
        if config.stages == "heads":
            return self.detect(features, self._scaled(proposals, batch), batch)
        if config.stages == "rpn":
            return self._proposals(features, batch)
        found = propose(*self.rpn(features), self.anchors(features), batch.sizes, config, training=False)
        return self.detect(features, found, batch)

    @torch.no_grad()
    def propose(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        """The RPN's proposals as an evaluation has them, whatever the heads.

        Args:
            images: as for :meth:`forward`.

        Returns:
            for each image ``boxes (R, 4)`` xyxy in its own pixels, best first, ``scores (R,)``, objectness in 0..1, and
            ``labels (R,)``, all 1.

        Raises:
            ValueError: a model without an RPN, or images that cannot be used.
        """
        if self.config.stages == "heads":
            raise ValueError("the model has no RPN (stages 'heads'): take the one that its proposals came from")
        check_images(images)
        batch = self.prepare(images, [None] * len(images))
        return self._proposals(self.extract(batch.images), batch)

    def _proposals(self, features: list[torch.Tensor], batch: ImageBatch) -> list[dict[str, torch.Tensor]]:
        found = rank_proposals(*self.rpn(features), self.anchors(features), batch.sizes, self.config, training=False)
        return [
            {
                "boxes": boxes * boxes.new_tensor(batch.ratios_back(i) * 2),
                "labels": torch.ones(len(boxes), dtype=torch.int64, device=boxes.device),
                "scores": logits.sigmoid(),
            }
            for i, (boxes, logits) in enumerate(found)
        ]

    @staticmethod
    def _scaled(proposals: list[torch.Tensor], batch: ImageBatch) -> list[torch.Tensor]:
        """Proposals in pixels of the batch, detached, in a dtype of at least float32."""
        proposals = [at_least_float32(boxes).detach().to(batch.images.device) for boxes in proposals]
        return [boxes * boxes.new_tensor(batch.ratios(i) * 2) for i, boxes in enumerate(proposals)]

    def extract(self, images: torch.Tensor) -> list[torch.Tensor]:
        """(N, 3, H, W) normalised -> P2..P5 or P6 (FPN), [C4] or [C5], each (N, C, H / stride, W / stride)."""
        stages = self.backbone(images)
        if self.config.neck != "fpn":
            return stages[-1:]
        pyramid = self.fpn(stages)
        return pyramid_top(pyramid) if self.config.pyramid_top else pyramid

    def anchors(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """The anchors of each feature map, (H_l * W_l * A, 4) xyxy, pixels of the batch."""
        config = self.config
        shapes = [tuple(feature.shape[-2:]) for feature in features]
        strides = list(config.strides)
        if config.anchor_strides == "image":
            finest = config.strides[0]  # the batch is padded to a multiple of 32, so this is its size
            height, width = shapes[0][0] * finest, shapes[0][1] * finest
            strides = [(height // h, width // w) for h, w in shapes]
        levels = pyramid_anchors(
            shapes, strides, config.anchor_sizes, config.aspect_ratios, config.anchor_offset, config.anchor_rounded
        )
        return [level.to(features[0].device) for level in levels]
