"""What the model checks before it computes: one clear error that says which image, which value and what to do."""

import torch


def check_images(images: list[torch.Tensor]) -> None:
    """Refuses anything but a non-empty list of (3, H, W) float images in [0, 1].

    Raises:
        ValueError: names the image by its position.
    """
    if not isinstance(images, list | tuple) or not images:
        got = "an empty list" if isinstance(images, list | tuple) else _what(images)
        raise ValueError(f"images is {got}: give a list of at least one (3, H, W) tensor")
    for index, image in enumerate(images):
        if not isinstance(image, torch.Tensor) or image.dim() != 3 or image.shape[0] != 3 or 0 in image.shape:
            shape = tuple(image.shape) if isinstance(image, torch.Tensor) else type(image).__name__
            raise ValueError(f"image {index} is {shape}: give a (3, H, W) tensor, red, green, blue")
        if not image.is_floating_point():
            raise ValueError(f"image {index} has dtype {image.dtype}: convert it to float and divide by 255")
        low, high = image.aminmax()
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # also catches NaN
            values = f"{low:.3g}..{high:.3g}"
            raise ValueError(f"image {index} has values {values}: give intensities in 0..1 (divide by 255)")


def check_targets(
    targets: list[dict] | None, images: list[torch.Tensor], num_classes: int, masks: bool, keypoints: int
) -> None:
    """Refuses ground truth that cannot be learned from.

    Args:
        targets: one dictionary per image: boxes (G, 4), labels (G,), and where the model has the branch masks
            (G, H, W) and keypoints (G, J, 3).
        images: the images they belong to.
        num_classes: K, with the background.
        masks: whether the model has a mask branch.
        keypoints: J, 0 without a keypoint branch.

    Raises:
        ValueError: names the image, the object, the value and the remedy.
    """
    if targets is None:
        raise ValueError("the model is in training mode and targets is None: pass targets, or call model.eval()")
    if not isinstance(targets, list | tuple):
        raise ValueError(f"targets is {_what(targets)}: give a list with one dictionary per image")
    if len(targets) != len(images):
        raise ValueError(f"{len(images)} images and {len(targets)} targets: give one dictionary per image")
    for index, (target, image) in enumerate(zip(targets, images, strict=True)):
        if not isinstance(target, dict):
            raise ValueError(f"target {index} is {_what(target)}: give a dictionary with boxes and labels")
        where = f"image {index}" + (f" (image_id {target['image_id']})" if "image_id" in target else "")
        wanted = ["boxes", "labels"] + ["masks"] * masks + ["keypoints"] * bool(keypoints)
        for name in wanted:
            if name not in target:
                raise ValueError(f"{where}: the target has no {name!r}, which this model needs: add it")
        for name in (*wanted, "iscrowd"):
            if name in target and not isinstance(target[name], torch.Tensor):
                raise ValueError(f"{where}: {name} is {_what(target[name])}: convert it to a torch.Tensor")
        _check_boxes(target["boxes"], image.shape[-2:], where)
        G = len(target["boxes"])
        _check_labels(target["labels"], G, num_classes, where)
        if "iscrowd" in target:
            _check_shape(target["iscrowd"], (G,), "iscrowd", where)
        if masks:
            _check_masks(target["masks"], (G, *image.shape[-2:]), where)
        if keypoints:
            _check_keypoints(target["keypoints"], (G, keypoints, 3), where)


def _check_boxes(boxes: torch.Tensor, size: tuple[int, int], where: str) -> None:
    if boxes.dim() != 2 or boxes.shape[1] != 4 or not boxes.is_floating_point():
        got = f"{tuple(boxes.shape)} {boxes.dtype}"
        raise ValueError(f"{where}: boxes are {got}: give (G, 4) float xyxy; none is (0, 4)")
    finite = boxes.isfinite().all(dim=1)
    good = finite & (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    if not good.all():
        row = int(torch.where(~good)[0][0])
        why = "x2 > x1 and y2 > y1 are required" if finite[row] else "it is not finite"
        raise ValueError(f"{where}: box {row} is {boxes[row].tolist()}, {why}: drop or correct this object")
    height, width = size
    inside = (boxes[:, :2] < boxes.new_tensor([width, height])).all(dim=1) & (boxes[:, 2:] > 0).all(dim=1)
    if not inside.all():
        row = int(torch.where(~inside)[0][0])
        value = boxes[row].tolist()
        raise ValueError(f"{where}: box {row} is {value}, outside the {width} x {height} image: drop or correct it")


def _check_labels(labels: torch.Tensor, count: int, num_classes: int, where: str) -> None:
    if labels.shape != (count,) or labels.dtype != torch.int64:
        got = f"{tuple(labels.shape)} {labels.dtype}"
        raise ValueError(f"{where}: labels are {got}: give ({count},) int64, one per box")
    bad = torch.where((labels < 1) | (labels >= num_classes))[0]
    if len(bad):
        row = int(bad[0])
        raise ValueError(
            f"{where}: label {row} is {int(labels[row])}: labels run from 1 to {num_classes - 1}, 0 is the background"
        )


def _check_masks(masks: torch.Tensor, shape: tuple[int, ...], where: str) -> None:
    _check_shape(masks, shape, "masks", where)
    if not masks.numel():
        return
    low, high = (masks.to(torch.uint8) if masks.dtype == torch.bool else masks).flatten(1).aminmax(dim=1)  # (G,)
    bad = torch.where(~((low >= 0) & (high <= 1)))[0]  # also catches NaN
    if len(bad):
        row = int(bad[0])
        raise ValueError(f"{where}: mask {row} has values {low[row]:g}..{high[row]:g}: give 0 and 1 (masks > 0)")


def _check_keypoints(keypoints: torch.Tensor, shape: tuple[int, ...], where: str) -> None:
    _check_shape(keypoints, shape, "keypoints", where)
    if not keypoints.is_floating_point():  # whole numbers would be cut when the image is resized
        raise ValueError(f"{where}: keypoints have dtype {keypoints.dtype}: convert them to float")
    bad = torch.where(~keypoints.isfinite().flatten(1).all(dim=1))[0]
    if len(bad):
        raise ValueError(f"{where}: keypoints of object {int(bad[0])} are not finite: give 0, 0, 0 where unlabelled")
    visibility = keypoints[..., 2]
    bad = torch.where(((visibility != 0) & (visibility != 1) & (visibility != 2)).any(dim=1))[0]
    if len(bad):
        row = int(bad[0])
        values = visibility[row].unique().tolist()
        raise ValueError(f"{where}: visibilities of object {row} are {values}: give 0, 1 (hidden) or 2 (visible)")


def _check_shape(value: torch.Tensor, shape: tuple[int, ...], name: str, where: str) -> None:
    if tuple(value.shape) != shape:
        got = tuple(value.shape)
        raise ValueError(f"{where}: {name} are {got}, boxes and image ask for {shape}: give one entry per box")


def _what(value) -> str:
    """A value in words, for a message."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return "None" if value is None else f"a {type(value).__name__}"


def check_proposals(
    proposals: list[torch.Tensor] | None, targets: list[dict] | None, images: list[torch.Tensor]
) -> list[torch.Tensor]:
    """The proposals of a model without an RPN: those given, or else the targets'.

    Args:
        proposals: one (R, 4) xyxy per image, in its own pixels, or None.
        targets: dictionaries that may hold ``proposals (R, 4)``, or None.
        images: the images they belong to.

    Raises:
        ValueError: there are none, or they have another shape; names the image and the remedy.
    """
    if proposals is None:
        held = [target.get("proposals") for target in targets or []]
        if not held or any(boxes is None for boxes in held):
            raise ValueError(
                "the model has no RPN (stages 'heads') and there are no proposals: pass proposals, or targets with "
                "'proposals' (mrcnn train --proposals FILE)"
            )
        proposals = held
    if len(proposals) != len(images):
        raise ValueError(f"{len(images)} images and proposals for {len(proposals)}: give one (R, 4) tensor per image")
    for index, boxes in enumerate(proposals):
        if not isinstance(boxes, torch.Tensor) or boxes.dim() != 2 or boxes.shape[1] != 4:
            raise ValueError(f"image {index}: proposals are {_what(boxes)}: give (R, 4) xyxy, pixels")
        if not boxes.isfinite().all():
            bad = int((~boxes.isfinite().all(dim=1)).nonzero()[0])
            raise ValueError(f"image {index}: proposal {bad} is {boxes[bad].tolist()}: give finite numbers")
    return proposals
