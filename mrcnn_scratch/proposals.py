"""Proposals in a file: an RPN trained apart, its features not shared with the heads (Mask R-CNN, section 3.1).

Train an RPN (``--set stages=rpn``), write its proposals for the training and the validation images, train the heads
on them (``--proposals FILE``). One safetensors file holds ``boxes (T, 4)`` and ``scores (T,)`` of all images one after
the other, ``image_ids (N,)`` and ``offsets (N + 1,)``: image i has rows offsets[i] to offsets[i + 1], best first. Read
are the rows of one image at a time.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from .average_precision import IOU_THRESHOLDS
from .boxes import box_iou
from .files import whole_file

_KEY = "mrcnn_scratch_proposals"


@torch.inference_mode()
def write_proposals(
    model, dataset, path: str | Path, count: int = 2000, batch_size: int = 4, progress: bool = True
) -> int:
    """Writes the proposals of a dataset's images, whole or not at all.

    All are held in memory until then: 20 bytes each, 4.7 GB for 2,000 on each of COCO's 118,287 training images.

    Args:
        model: with an RPN; put in eval mode, on the device it is on.
        dataset: ``dataset[i]`` -> (image, target), with ``image_ids`` and ``class_names``.
        path: of the .safetensors file.
        count: at most so many of each image: 2,000 to train on (Detectron), 1,000 or, for C4, 300 to test.
        batch_size: images of a forward pass.
        progress: show a bar.

    Returns:
        how many were written.

    Raises:
        ValueError: a model without an RPN, a count below 1.
    """
    if count < 1:
        raise ValueError(f"count is {count}: give 1 or more proposals an image")
    before = model.config
    device = next(model.parameters()).device
    most = max(count, before.rpn_pre_nms_test)
    model.config = before.with_fields(rpn_pre_nms_test=most, rpn_post_nms_test=count)
    boxes, scores = [], []
    try:
        model.eval()
        starts = range(0, len(dataset), batch_size)
        for start in tqdm(starts, "propose", unit="batch", disable=not progress, dynamic_ncols=True):
            images = [dataset[i][0].to(device) for i in range(start, min(start + batch_size, len(dataset)))]
            for found in model.propose(images):
                boxes.append(found["boxes"].float().cpu())
                scores.append(found["scores"].float().cpu())
    finally:
        model.config = before
    lengths = torch.tensor([0, *map(len, scores)])
    tensors = {
        "boxes": torch.cat(boxes), "scores": torch.cat(scores), "offsets": lengths.cumsum(0),
        "image_ids": torch.tensor(dataset.image_ids),
    }  # fmt: skip
    facts = {"format": 1, "count": count, "class_names": list(dataset.class_names), "backbone": before.backbone}
    with whole_file(path) as temporary:
        save_file(tensors, temporary, metadata={_KEY: json.dumps(facts)})
    return len(tensors["scores"])


class ProposalFile:
    """A file of :func:`write_proposals`, of which one image's rows are read at a time.

    Raises:
        ValueError: no such file, or another kind of file.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"proposals {path} do not exist: write them with `mrcnn proposals CHECKPOINT --out FILE`")
        try:
            self._file = safe_open(self.path, framework="pt")
            if _KEY not in (self._file.metadata() or {}):
                raise ValueError("it holds no proposals")
            offsets, ids = (self._file.get_tensor(name).tolist() for name in ("offsets", "image_ids"))
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"{path} is no whole file of `mrcnn proposals` ({error}): write it again") from error
        self._rows = {image: (offsets[i], offsets[i + 1]) for i, image in enumerate(ids)}

    def __contains__(self, image_id: int) -> bool:
        return image_id in self._rows

    def of(self, image_id: int, count: int | None = None) -> torch.Tensor:
        """The best proposals of an image, (R, 4) float32 xyxy in its own pixels; at most ``count``."""
        first, last = self._rows[image_id]
        last = last if count is None else min(last, first + count)
        return self._file.get_slice("boxes")[first:last]


class WithProposals:
    """A dataset whose targets also have ``proposals (R, 4)``."""

    def __init__(self, dataset, file: ProposalFile, count: int | None):
        self._dataset, self._file, self._count = dataset, file, count

    def __len__(self) -> int:
        return len(self._dataset)

    def __getattr__(self, name: str):
        if name.startswith("_"):  # not yet made, as while it is unpickled
            raise AttributeError(name)
        return getattr(self._dataset, name)

    def __getitem__(self, index: int):
        image, target = self._dataset[index]
        return image, {**target, "proposals": self._file.of(self._dataset.image_ids[index], self._count)}


def with_proposals(dataset, path: str | Path, count: int | None = None) -> WithProposals:
    """A dataset joined with the proposals of its images, by their ids.

    Args:
        dataset: any of this package.
        path: of a file of :func:`write_proposals`.
        count: at most so many of each image; None takes all that are there.

    Raises:
        ValueError: the file is none, or lacks images of the dataset: says how many, and names the first.
    """
    file = ProposalFile(path)
    missing = [image for image in dataset.image_ids if image not in file]
    if missing:
        raise ValueError(
            f"{path} has no proposals for {len(missing)} of {len(dataset)} images, such as image {missing[0]}: write "
            "them for this data and split"
        )
    return WithProposals(dataset, file, count)


def proposal_recall(dataset, counts: tuple[int, ...] = (100, 300, 1000)) -> dict[int, float]:
    """Average recall: the share of objects that a proposal finds, over IoU .50, .55, ... .95 (COCO's AR).

    An object of which the best proposal has IoU 0.72 is found at five of ten thresholds: 0.5. Crowds do not count.

    Args:
        dataset: of :func:`with_proposals`.
        counts: numbers of the best proposals to look at.

    Returns:
        count -> recall in 0..1; NaN where there are no objects.
    """
    best, thresholds = {count: [] for count in counts}, torch.tensor(IOU_THRESHOLDS, dtype=torch.float32)
    for index in range(len(dataset)):
        target = dataset[index][1]
        plain = target["iscrowd"] == 0 if "iscrowd" in target else slice(None)
        truth, boxes = target["boxes"][plain], target["proposals"]
        for count in counts if len(truth) else ():
            iou = box_iou(truth, boxes[:count]) if len(boxes) else truth.new_zeros(len(truth), 1)
            best[count].append(iou.amax(dim=1))
    return {
        count: float((torch.cat(found)[:, None] >= thresholds).float().mean()) if found else float("nan")
        for count, found in best.items()
    }
