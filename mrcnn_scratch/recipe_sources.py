"""Where each number of a recipe comes from: the paper's section, or the file of Detectron or torchvision.

"-" means that a code base has no such choice; "silent" that the paper does not say, and that our paper recipe takes
what Detectron does. Files of Detectron are those of its folder detectron/ ("yaml" is the model's own, in
configs/12_2017_baselines), files of torchvision those of references/detection and torchvision/models/detection. The
numbers themselves are in recipes.py and presets.py.
"""

from .config import ModelConfig

SILENT = "silent"

# field of TrainConfig -> (paper, Detectron, torchvision)
TRAINING = {
    "steps": ("section 3.1", "yaml: SOLVER.MAX_ITER", "train.py: --epochs"),
    "batch_size": ("section 3.1: 8 GPUs x 2 images", "yaml: NUM_GPUS x TRAIN.IMS_PER_BATCH", "8 x --batch-size"),
    "images_per_micro_batch": ("section 3.1: 2 a GPU", "yaml: TRAIN.IMS_PER_BATCH", "train.py: --batch-size"),
    "precision": (SILENT, "caffe2 computes in float32", "train.py: --amp (off)"),
    "optimizer": ("section 3.1: its momentum is SGD's", "optimizer.py: MomentumSGDUpdate", "train.py: SGD"),
    "lr": ("section 3.1", "yaml: SOLVER.BASE_LR", "train.py: --lr"),
    "momentum": ("section 3.1", "config.py: SOLVER.MOMENTUM", "train.py: --momentum"),
    "weight_decay": ("section 3.1", "yaml: SOLVER.WEIGHT_DECAY", "train.py: --weight-decay"),
    "decay_norm_bias": (f"{SILENT}, so all decay", "optimizer.py: biases do not", "train.py: all do"),
    "warmup_steps": (SILENT, "config.py: SOLVER.WARM_UP_ITERS", "engine.py: warmup_iters"),
    "warmup_factor": (SILENT, "config.py: SOLVER.WARM_UP_FACTOR", "engine.py: warmup_factor"),
    "schedule": ("section 3.1", "yaml: SOLVER.LR_POLICY", "train.py: MultiStepLR"),
    "milestones": ("section 3.1: at 120k", "yaml: SOLVER.STEPS", "train.py: --lr-steps 16 22 of 26"),
    "gamma": ("section 3.1", "yaml: SOLVER.GAMMA", "train.py: --lr-gamma"),
    "clip_norm": (SILENT, "-", "-"),
    "flip": (SILENT, "config.py: TRAIN.USE_FLIPPED", "presets.py: hflip"),
    "scale": ("-", "-", "-"),
}  # fmt: skip

# field of ModelConfig -> (paper, Detectron, torchvision)
MODEL = {
    "stages": ("section 3.1: RPN apart, see below", "yaml: FASTER_RCNN", "faster_rcnn.py"),
    "min_size": ("section 3.1", "yaml: TRAIN.SCALES, TEST.SCALE", "FasterRCNN: min_size"),
    "max_size": (SILENT, "yaml: TRAIN.MAX_SIZE, TEST.MAX_SIZE", "FasterRCNN: max_size"),
    "train_min_sizes": ("section 5: from [640, 800]", "yaml: TRAIN.SCALES", "keypoint_rcnn.py: min_size"),
    "resize": (SILENT, "blob.py: prep_im_for_blob", "transform.py: _resize_image_and_masks"),
    "mean": (f"{SILENT}: torchvision's", "config.py: PIXEL_MEANS, reversed, / 255", "FasterRCNN: image_mean"),
    "std": (f"{SILENT}: torchvision's", "divides by nothing: 1 / 255", "FasterRCNN: image_std"),
    "backbone": ("section 3", "yaml: CONV_BODY", "faster_rcnn.py, resnet.py"),
    "neck": ("section 3", "yaml: CONV_BODY", "faster_rcnn.py"),
    "stride_in_1x1": ("ResNet's, ResNeXt's papers", "yaml: RESNETS.STRIDE_1X1", "resnet.py: Bottleneck"),
    "norm": (SILENT, "ResNet.py: AffineChannel", "faster_rcnn.py: FrozenBatchNorm2d"),
    "norm_eps": ("ResNet's code", "folded into its weights", "FrozenBatchNorm2d: eps"),
    "freeze_at": (SILENT, "ResNet.py: freeze_at", "faster_rcnn.py: trainable_backbone_layers = 3"),
    "fpn_channels": ("FPN, section 3", "config.py: FPN.DIM", "backbone_utils.py: out_channels"),
    "pyramid_top": ("FPN, section 4.1", "config.py: FPN.RPN_MAX_LEVEL", "LastLevelMaxPool"),
    "anchor_sizes": ("section 3.1: 5 scales", "config.py: FPN.RPN_ANCHOR_START_SIZE", "_default_anchorgen"),
    "aspect_ratios": ("section 3.1: 3 ratios", "config.py: FPN.RPN_ASPECT_RATIOS", "_default_anchorgen"),
    "anchor_offset": (SILENT, "generate_anchors.py", "anchor_utils.py"),
    "anchor_rounded": (f"{SILENT}: not rounded", "rounds sides, see below", "anchor_utils.py"),
    "anchor_strides": (SILENT, "FPN.py", "anchor_utils.py: image // map"),
    "rpn_positive_iou": ("Faster R-CNN, 3.1.2", "config.py: RPN_POSITIVE_OVERLAP", "FasterRCNN: rpn_fg_iou_thresh"),
    "rpn_negative_iou": ("Faster R-CNN, 3.1.2", "config.py: RPN_NEGATIVE_OVERLAP", "FasterRCNN: rpn_bg_iou_thresh"),
    "rpn_batch": ("Faster R-CNN, 3.1.3", "config.py: RPN_BATCH_SIZE_PER_IM", "FasterRCNN: rpn_batch_size_per_image"),
    "rpn_positive_fraction": ("Faster R-CNN, 3.1.3", "config.py: RPN_FG_FRACTION", "FasterRCNN: rpn_positive_fraction"),
    "rpn_straddle": ("Faster R-CNN, 3.1.3", "config.py: RPN_STRADDLE_THRESH", "rpn.py: trains all anchors"),
    "rpn_beta": (SILENT, "rpn_heads.py: beta", "rpn.py: beta"),
    "rpn_nms": ("Faster R-CNN, 3.3", "config.py: RPN_NMS_THRESH", "FasterRCNN: rpn_nms_thresh"),
    "rpn_min_size": (SILENT, "config.py: RPN_MIN_SIZE", "rpn.py: min_size"),
    "rpn_pre_nms_train": (SILENT, "yaml: TRAIN.RPN_PRE_NMS_TOP_N", "FasterRCNN: rpn_pre_nms_top_n_train"),
    "rpn_pre_nms_test": (SILENT, "yaml: TEST.RPN_PRE_NMS_TOP_N", "FasterRCNN: rpn_pre_nms_top_n_test"),
    "rpn_post_nms_train": (SILENT, "config.py: TRAIN.RPN_POST_NMS_TOP_N", "FasterRCNN: rpn_post_nms_top_n_train"),
    "rpn_post_nms_test": ("section 3.1", "yaml: TEST.RPN_POST_NMS_TOP_N", "FasterRCNN: rpn_post_nms_top_n_test"),
    "roi_op": ("section 3", "yaml: ROI_XFORM_METHOD", "MultiScaleRoIAlign"),
    "roi_aligned": ("section 3, no rounding", "caffe2's RoIAlign", "MultiScaleRoIAlign: aligned=False"),
    "roi_reduce": ("section 3: max or average", "caffe2's RoIAlign", "MultiScaleRoIAlign"),
    "sampling_ratio": ("section 3: 4 samples", "yaml: ROI_XFORM_SAMPLING_RATIO", "MultiScaleRoIAlign: sampling_ratio"),
    "canonical_size": ("FPN, eq. 1", "config.py: FPN.ROI_CANONICAL_SCALE", "MultiScaleRoIAlign: canonical_scale"),
    "canonical_level": ("FPN, eq. 1", "config.py: FPN.ROI_CANONICAL_LEVEL", "MultiScaleRoIAlign: canonical_level"),
    "level_eps_inside": (SILENT, "FPN.py: map_rois_to_fpn_levels", "poolers.py: LevelMapper"),
    "roi_batch": ("section 3.1: 64 or 512", "yaml: TRAIN.BATCH_SIZE_PER_IM", "FasterRCNN: box_batch_size_per_image"),
    "roi_positive_fraction": ("section 3.1", "config.py: TRAIN.FG_FRACTION", "FasterRCNN: box_positive_fraction"),
    "roi_positive_iou": ("section 3.1", "config.py: TRAIN.FG_THRESH", "FasterRCNN: box_fg_iou_thresh"),
    "box_weights": (SILENT, "config.py: MODEL.BBOX_REG_WEIGHTS", "roi_heads.py: bbox_reg_weights"),
    "box_beta": ("Fast R-CNN, eq. 3", "fast_rcnn_heads.py: SmoothL1Loss", "roi_heads.py: beta"),
    "box_pool": ("figure 4", "yaml: FAST_RCNN.ROI_XFORM_RESOLUTION", "faster_rcnn.py: output_size"),
    "res5_stride": ("figure 4", "ResNet.py: add_ResNet_roi_conv5_head", "-"),
    "box_hidden": ("figure 4", "config.py: FAST_RCNN.MLP_HEAD_DIM", "faster_rcnn.py: representation_size"),
    "score_threshold": (SILENT, "config.py: TEST.SCORE_THRESH", "FasterRCNN: box_score_thresh"),
    "box_nms": (SILENT, "yaml: TEST.NMS", "FasterRCNN: box_nms_thresh"),
    "detections_per_image": ("section 3.1", "config.py: TEST.DETECTIONS_PER_IM", "FasterRCNN: box_detections_per_img"),
    "mask_head": ("figure 4", "yaml: MRCNN.ROI_MASK_HEAD", "mask_rcnn.py: MaskRCNNHeads"),
    "mask_classes": ("section 3", "config.py: MRCNN.CLS_SPECIFIC_MASK", "mask_rcnn.py: MaskRCNNPredictor"),
    "mask_loss": ("section 3", "mask_rcnn_heads.py: SigmoidCrossEntropyLoss", "roi_heads.py: maskrcnn_loss"),
    "mask_pool": ("figure 4", "yaml: MRCNN.ROI_XFORM_RESOLUTION", "mask_rcnn.py: output_size"),
    "mask_convs": ("figure 4", "yaml: MRCNN.ROI_MASK_HEAD", "mask_rcnn.py: mask_layers"),
    "mask_channels": ("figure 4", "config.py: MRCNN.DIM_REDUCED", "mask_rcnn.py: mask_layers"),
    "mask_target_aligned": (f"{SILENT}: aligned", "segms.py: polys_to_mask_wrt_box", "project_masks_on_boxes"),
    "mask_target_binary": (f"{SILENT}: soft", "segms.py: polys_to_mask_wrt_box", "project_masks_on_boxes"),
    "paste_legacy": (f"{SILENT}: exact", "test.py: segm_results", "roi_heads.py: paste_mask_in_image"),
    "keypoint_pool": ("section 5", "yaml: KRCNN.ROI_XFORM_RESOLUTION", "keypoint_rcnn.py: output_size"),
    "keypoint_convs": ("section 5", "yaml: KRCNN.NUM_STACKED_CONVS", "keypoint_rcnn.py: keypoint_layers"),
    "keypoint_channels": ("section 5", "yaml: KRCNN.CONV_HEAD_DIM", "keypoint_rcnn.py: keypoint_layers"),
    "keypoint_decode": (SILENT, "keypoints.py: heatmaps_to_keypoints", "roi_heads.py: heatmaps_to_keypoints"),
}  # fmt: skip

# What a recipe cannot switch: (subject, paper, Detectron, torchvision, here)
ELSEWHERE = (
    (
        "the RPN", "trained apart, features not shared (section 3.1)",
        "trained with the heads (e2e_*.yaml), or apart (rpn_*.yaml)", "trained with the heads",
        "with the heads; apart by `--set stages=rpn`, then `--proposals FILE`",
    ),
    (
        "images without objects", SILENT, "left out (roidb.py)", "left out, but of crowds alone (coco_utils.py)",
        "left out, of crowds alone too",
    ),
    (
        "images with few keypoints", SILENT, "without any: left out (roidb.py)",
        "fewer than 10: left out (coco_utils.py)", "as the recipe's code base; the paper's as Detectron",
    ),
    ("minibatches with few keypoints", SILENT, "below 20 they do not count (config.py)", "count", "count"),
    (
        "images of a GPU", SILENT, "of like aspect ratio (config.py: TRAIN.ASPECT_GROUPING)",
        "of like aspect ratio (train.py: --aspect-ratio-group-factor 3)", "any: the seed alone decides",
    ),
    ("biases", SILENT, "twice the learning rate (optimizer.py)", "the weights' learning rate", "the weights'"),
    ("momentum when the rate drops", SILENT, "scaled (config.py: SOLVER.SCALE_MOMENTUM)", "kept", "kept"),
    ("best proposals in training", SILENT, "of all images of a GPU", "of each image", "of each image"),
    (
        "the RPN's losses", "divided by 256 an image (Faster R-CNN, 3.1.2)", "by 256 an image",
        "by the anchors sampled", "by the anchors sampled",
    ),
    ("proposals in crowds", SILENT, "left out (config.py: TRAIN.CROWD_FILTER_THRESH)", "kept", "kept"),
    ("width of a box", SILENT, "x2 - x1 + 1, and anchors' sides are rounded", "x2 - x1", "x2 - x1"),
)  # fmt: skip

# Fields of the settings that no code base prescribes
OURS = {"seed", "log_every", "checkpoint_every"}
_NOT_CHOSEN = {
    "num_classes", "masks", "keypoints", "seed", "widths", "blocks", "groups", "warp_sampler", "mask_layers",
    "mask_hidden",
}  # fmt: skip
_FPN_ONLY = {"fpn_channels", "pyramid_top", "canonical_size", "canonical_level", "level_eps_inside"}


def applies(name: str, config: ModelConfig) -> bool:
    """Whether a field of a model's configuration changes that model."""
    if name in _NOT_CHOSEN:
        return False
    if name in _FPN_ONLY:
        return config.neck == "fpn"
    if name.startswith(("mask_", "paste_")):
        return config.masks and not (name == "mask_convs" and config.neck == "c4")
    if name.startswith("keypoint_") or name == "train_min_sizes":
        return config.keypoints > 0
    return config.neck == "c4" if name == "res5_stride" else not (name == "box_hidden" and config.neck == "c4")


def sources(name: str, config: ModelConfig) -> tuple[str, str, str]:
    """Where a field of a model's recipe comes from: (paper, Detectron, torchvision).

    Args:
        name: of a field of TrainConfig or ModelConfig.
        config: of the model.
    """
    paper, detectron, torchvision = {**TRAINING, **MODEL, **_special(config)}[name]
    return paper, detectron.replace("yaml:", yaml_name(config) + ":"), torchvision


def _special(config: ModelConfig) -> dict[str, tuple[str, str, str]]:
    """What differs for keypoints, ResNeXt and one map."""
    found = {}
    if config.keypoints:
        found["steps"] = ("section 5", *TRAINING["steps"][1:])
        found["milestones"] = ("section 5: at 60k and 80k", "yaml: SOLVER.STEPS", "train.py: --lr-steps 36 43 of 46")
    if config.backbone.startswith("resnext"):
        for name in ("batch_size", "images_per_micro_batch"):
            found[name] = ("section 3.1: 1 image per GPU for ResNeXt", *TRAINING[name][1:])
        found["lr"] = ("section 3.1: ResNeXt", *TRAINING["lr"][1:])
    if config.neck != "fpn":
        found["anchor_sizes"] = ("section 3.1: 5 scales", "yaml: RPN.SIZES", "-")
        found["aspect_ratios"] = ("section 3.1: 3 ratios", "config.py: RPN.ASPECT_RATIOS", "-")
        found["rpn_pre_nms_test"] = ("Faster R-CNN's code", *MODEL["rpn_pre_nms_test"][1:])
    if config.neck == "c5":
        found["neck"] = ("Table 2d", "-", "-")
    return found


def yaml_name(config: ModelConfig) -> str:
    """Detectron's configuration of a model, or of the nearest one."""
    task = "keypoint" if config.keypoints else "mask" if config.masks else "faster"
    body = {"resnet101": "R-101", "resnext101_32x8d": "X-101-32x8d", "resnext101_64x4d": "X-101-64x4d"}
    neck = "C4" if config.neck == "c4" else "FPN"
    return f"e2e_{task}_rcnn_{body.get(config.backbone, 'R-50')}-{neck}_1x.yaml"
