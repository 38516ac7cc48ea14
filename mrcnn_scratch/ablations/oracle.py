"""Tier A: RoIs are jittered ground-truth boxes; a tiny backbone and one head are trained, and nothing else.

What the RoI op, the loss or the head of a mask is worth shows in the mask. Proposals, classification and boxes only add
noise to it, and most of the time: without them a run takes less than a minute on one core.
"""

from dataclasses import dataclass

import numpy as np
import torch

from ..backbones import own_stream
from ..batches import generator_for
from ..config import ModelConfig
from ..keypoint_head import KeypointHead, decode_keypoints
from ..mask_head import make_mask_head, select_masks
from ..pasting import paste_masks
from ..preprocess import batch_images, scale_target
from ..resnet import TinyResNet
from ..roi_heads import RoIHeads
from ..similarity import oks_matrix

STAGES = {4: 1, 8: 2, 16: 3, 32: 4}  # stride of the feature map -> stages of the backbone below it


def jitter(boxes: torch.Tensor, share: float, generator: torch.Generator | None) -> torch.Tensor:
    """Moves each edge of each box by up to ``share`` of the box's own size, evenly distributed.

    With 0.1 the left edge of a box 50 pixels wide moves by -5 to 5 pixels.

    Args:
        boxes: (G, 4) xyxy, pixels.
        share: of a side, below 0.5.
        generator: draws 4 numbers a box.
    """
    size = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)  # (G, 4): width, height, width, height
    moves = 2 * torch.rand(boxes.shape, generator=generator).to(boxes) - 1
    return boxes + share * moves * size


class OracleNet(RoIHeads):
    """A backbone up to one stride, and a mask or a keypoint head on RoIs that an oracle gives.

    Called as a detector is, it gives its losses, so that :func:`mrcnn_scratch.training.train` trains it.

    Args:
        config: of the heads; ``masks`` or ``keypoints``, and the tiny backbone's widths.
        stride: of the feature map, pixels a cell: 4, 8, 16 or 32.
        share: of a box's side by which its edges are moved.
        copies: RoIs of one object and step, each moved by itself.
    """

    def __init__(self, config: ModelConfig, stride: int = 16, share: float = 0.1, copies: int = 2):
        super().__init__(config)
        if stride not in STAGES:
            raise ValueError(f"stride is {stride}: choose one of {', '.join(map(str, STAGES))}")
        self.stride, self.share, self.copies = stride, share, copies
        stages = STAGES[stride]
        with own_stream(config.seed, "backbone"):
            self.backbone = TinyResNet(config.widths, config.blocks, config.norm, config.norm_eps, config.groups)
        del self.backbone.stages[stages:]  # drawn and dropped: the others have the same weights at every stride
        channels = config.widths[stages - 1]
        if config.masks:
            with own_stream(config.seed, "mask"):
                self.mask_head = make_mask_head(config, channels)
        if config.keypoints:
            with own_stream(config.seed, "keypoints"):
                self.keypoint_head = KeypointHead(
                    channels, config.keypoint_channels, config.keypoint_convs, config.keypoints
                )

    def forward(self, images, targets, generators=None) -> dict[str, torch.Tensor]:
        """``loss_mask`` or ``loss_keypoint`` of a batch; arguments as for the detector in training."""
        batch, features = self._features(images)
        targets = [scale_target(t, batch.ratios(i), batch.sizes[i]) for i, t in enumerate(targets)]
        matched = [_plain(t).repeat(self.copies) for t in targets]
        generators = generators or [None] * len(images)
        rois = [jitter(t["boxes"][m], self.share, g) for t, m, g in zip(targets, matched, generators, strict=True)]
        if self.config.masks:
            return {"loss_mask": self._mask_loss(features, rois, matched, targets)}
        return {"loss_keypoint": self._keypoint_loss(features, rois, matched, targets)}

    def _features(self, images):
        config = self.config
        batch = batch_images(images, config.min_size, config.max_size, config.mean, config.std, config.resize)
        channels_last = batch.images.contiguous(memory_format=torch.channels_last)
        return batch, self.backbone(channels_last)[-1:]

    def pool(self, features, rois, size: int) -> torch.Tensor:
        """RoI features from the one map, (R, C, size, size)."""
        return self._roi_op(features[0], rois, size, 1 / self.stride)

    def mask_logits(self, features, rois, labels=None) -> torch.Tensor:
        """Mask logits of the RoIs, (R, K, M, M); with labels (R,) those of each RoI's class where that is cheaper."""
        pooled = self.pool(features, rois, self.config.mask_pool)
        apart = self.config.mask_head == "fcn" and self.config.mask_loss == "sigmoid"
        return self.mask_head(pooled, labels) if apart else self.mask_head(pooled)

    @torch.inference_mode()
    def answer(self, image: torch.Tensor, target: dict, generator: torch.Generator) -> "Answer":
        """Masks or keypoints of one image's objects, on boxes that ``generator`` moves."""
        batch, features = self._features([image])
        plain = _plain(target)
        boxes = jitter(target["boxes"][plain], self.share, generator)
        across, down = batch.ratios(0)
        rois = [boxes * boxes.new_tensor([across, down, across, down])]
        if not self.config.masks:
            points, _ = decode_keypoints(self.keypoint_logits(features, rois), boxes)
            return Answer(plain, boxes, keypoints=points)
        labels = target["labels"][plain]
        masks = select_masks(self.mask_logits(features, rois, labels), labels, self.config.mask_loss)
        return Answer(plain, boxes, masks=paste_masks(masks, boxes, tuple(image.shape[-2:])) >= 0.5)


def _plain(target: dict) -> torch.Tensor:
    """Indices of the objects that are no crowds."""
    crowd = target.get("iscrowd")
    everything = torch.arange(len(target["boxes"]), device=target["boxes"].device)
    return everything if crowd is None else everything[crowd == 0]


@dataclass(frozen=True)
class Answer:
    """What a net says about the objects of one image."""

    objects: torch.Tensor  # (P,) which ones
    boxes: torch.Tensor  # (P, 4) the RoIs
    masks: torch.Tensor | None = None  # (P, H, W) bool
    keypoints: torch.Tensor | None = None  # (P, J, 3)


def similarities(answer: Answer, target: dict) -> list[float]:
    """Mask IoU, or OKS, of each object with its own answer; objects without a labelled keypoint are left out."""
    if answer.masks is not None:
        return mask_ious(answer.masks, target["masks"][answer.objects]).tolist()
    truth = target["keypoints"][answer.objects].cpu().numpy()
    boxes, found = target["boxes"][answer.objects].cpu().numpy(), answer.keypoints.cpu().numpy()
    areas = target["area"][answer.objects].cpu().numpy()
    return [
        float(oks_matrix(found[i : i + 1], truth[i : i + 1], boxes[i : i + 1], areas[i : i + 1])[0, 0])
        for i in range(len(truth))
        if (truth[i, :, 2] > 0).any()
    ]


def mask_ious(found: torch.Tensor, truth: torch.Tensor) -> np.ndarray:
    """(P, H, W) and (P, H, W), booleans or 0/1 -> (P,) IoU of each pair; 0 where both are empty."""
    found, truth = found.flatten(1).bool(), truth.flatten(1).bool()
    union = (found | truth).sum(dim=1)
    return ((found & truth).sum(dim=1) / union.clamp(min=1)).cpu().numpy()


def answers(net: OracleNet, dataset, seed: int = 0):
    """(index, target, answer) of every image with objects; the moved boxes depend on the seed and the index alone."""
    net.eval()
    device = next(net.parameters()).device
    for index in range(len(dataset)):
        image, target = dataset[index]
        if len(_plain(target)):
            target = {name: value.to(device) if torch.is_tensor(value) else value for name, value in target.items()}
            yield index, target, net.answer(image.to(device), target, generator_for(seed, "oracle RoIs", index))
