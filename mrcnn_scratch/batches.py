"""Which images a step sees, how they are augmented and who computes them: pure functions of (seed, step).

A resumed run therefore needs the weights, the optimizer's state and the step number, and nothing else; two runs
that differ in one setting of the model see the same images, flips and sampling seeds; and so do two runs that
share a step's images among different numbers of processes.
"""

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from .schedule import TrainConfig


@dataclass(frozen=True)
class MicroBatch:
    """The images of one forward pass, N of them."""

    images: list[torch.Tensor]  # N tensors (3, H_i, W_i) float in [0, 1]
    targets: list[dict]  # N
    image_ids: list[int]  # N
    seeds: list[int]  # N: of each image's sampling of anchors and RoIs

    def to(self, device: torch.device) -> "MicroBatch":
        """The same with its tensors on ``device``."""
        images, targets = to_device(self.images, self.targets, device)
        return MicroBatch(images, targets, self.image_ids, self.seeds)

    def generators(self) -> list[torch.Generator]:
        """Fresh CPU generators, one for each image."""
        return [torch.Generator().manual_seed(seed) for seed in self.seeds]


def generator_for(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator that depends on the seed and the names only, e.g. ``(0, "augment", step, position)``.

    Neighbouring names give unrelated streams (a hash mixes them), on every machine the same.
    """
    digest = hashlib.blake2b(json.dumps([seed, *names]).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def batch_indices(step: int, batch_size: int, size: int, seed: int) -> list[int]:
    """Which images step ``step`` sees: a pure function, so that a resumed run needs no sampler state.

    Every epoch is a fresh permutation of all the images, laid end to end; step t reads places
    ``t * batch_size`` onwards. A batch may straddle two epochs, or hold a small dataset several times.
    With 3 images and batches of 2, steps 0, 1, 2 read places 0-1, 2-3, 4-5: two epochs, each image twice.

    Args:
        step: finished updates, from 0.
        batch_size: images per batch.
        size: images in the dataset.
        seed: with the epoch's number it chooses the permutation.

    Returns:
        ``batch_size`` indices in ``[0, size)``.
    """
    places = range(step * batch_size, (step + 1) * batch_size)
    order = {
        epoch: torch.randperm(size, generator=generator_for(seed, "epoch", epoch)).tolist()
        for epoch in range(places[0] // size, places[-1] // size + 1)
    }
    return [order[place // size][place % size] for place in places]


def micro_batch_size(config: TrainConfig, processes: int, before: int | None = None) -> int:
    """Images of one forward pass: as configured, or as the run began, or an equal share for each process.

    A step's gradient is the mean over its micro-batches, whoever computes them: losses are normalised within each.
    So their size belongs to a run, and the number of processes does not. The paper's 16 images in micro-batches of
    2 are one forward pass on each of 8 GPUs, or 8 on one.

    Args:
        processes: that share a step.
        before: the size of the run that goes on.

    Raises:
        ValueError: sizes that do not divide; says what would.
    """
    total, wanted = config.batch_size, config.images_per_micro_batch
    if before and wanted not in (0, before):
        raise ValueError(
            f"cannot resume: the run's micro-batches hold {before} images, images_per_micro_batch is now {wanted}: "
            "give 0 to keep them, or start a new run in another out_dir (--out)"
        )
    if total % processes:
        raise ValueError(f"batch_size={total} cannot be shared by {processes} processes: give a multiple of that")
    size = before or wanted or total // processes
    if total // size % processes:
        raise ValueError(
            f"batch_size={total} in micro-batches of {size} makes {total // size}, which {processes} processes cannot "
            f"share: use a number of processes that divides {total // size}, or another images_per_micro_batch"
        )
    return size


def places_of(rank: int, processes: int, batch_size: int) -> range:
    """The places of a step's batch that a process computes, in one piece: of 8 images 0-3 and 4-7 for two."""
    share = batch_size // processes
    return range(rank * share, (rank + 1) * share)


def load_step(dataset, step: int, config: TrainConfig, augment, places: range, size: int) -> list[MicroBatch]:
    """The micro-batches of a process in one step: a function of the dataset, the seed, the step and the places only.

    Args:
        dataset: ``dataset[i]`` -> (image, target).
        augment: callable (image, target, generator) -> (image, target), or None.
        places: of the step's batch; only these are loaded.
        size: images in a micro-batch.

    Returns:
        Micro-batches in the places' order.
    """
    indices = batch_indices(step, config.batch_size, len(dataset), config.seed)
    made = []
    for start in range(places.start, places.stop, size):
        samples = []
        for place in range(start, start + size):
            image, target = dataset[indices[place]]
            if augment is not None:
                image, target = augment(image, target, generator_for(config.seed, "augment", step, place))
            samples.append((image, target))
        images, targets = map(list, zip(*samples, strict=True))
        ids = image_names(dataset, indices[start : start + size], targets)
        seeds = [generator_for(config.seed, "sampling", step, start + i).initial_seed() for i in range(size)]
        made.append(MicroBatch(images, targets, ids, seeds))
    return made


def load_steps(
    dataset, start: int, config: TrainConfig, augment=None, workers: int = 0, places: range | None = None, size: int = 0
) -> Iterator[list[MicroBatch]]:
    """Yields :func:`load_step` of steps ``start`` to ``config.steps - 1``, in order.

    Args:
        workers: threads that load ahead; 0 loads each step when it is asked for. The images are the same.
        places: this process's share of a step; None is all of it.
        size: images in a micro-batch; 0 is all of the share.
    """
    places = range(config.batch_size) if places is None else places
    size = size or len(places)

    def load(step: int) -> list[MicroBatch]:
        return load_step(dataset, step, config, augment, places, size)

    if workers == 0:
        yield from map(load, range(start, config.steps))
        return
    pool = ThreadPoolExecutor(workers)
    try:
        waiting = deque()
        for step in range(start, config.steps):
            waiting.append(pool.submit(load, step))
            if len(waiting) > 2 * workers:  # two each keep the threads busy; more would only hold memory
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def check_usable(model, dataset, config: TrainConfig) -> None:
    """Refuses a dataset that this model cannot be trained on.

    Raises:
        ValueError: an empty dataset, or classes or keypoints that disagree; says what to change.
    """
    missing = [name for name in ("class_names", "num_classes", "num_keypoints") if not hasattr(dataset, name)]
    if missing:
        raise ValueError(
            f"the dataset ({type(dataset).__name__}) has no {', '.join(missing)}: see ShapesDataset"
        )
    if len(dataset) == 0:
        raise ValueError("the dataset has no images: give another split or folder")
    if dataset.num_classes != model.config.num_classes:
        names = ", ".join(dataset.class_names)
        raise ValueError(
            f"the model has num_classes={model.config.num_classes}, the dataset {dataset.num_classes} "
            f"({names}): build the model with num_classes={dataset.num_classes}"
        )
    wanted = getattr(model.config, "keypoints", 0)
    if wanted and wanted != dataset.num_keypoints:
        raise ValueError(
            f"the model has keypoints={wanted}, the dataset {dataset.num_keypoints}: "
            f"build the model with keypoints={dataset.num_keypoints}"
        )
    if wanted and config.flip and getattr(dataset, "flip_pairs", None) is None:
        raise ValueError("the dataset has keypoints but no flip_pairs: give them, or set flip=0")


def image_names(dataset, indices: Sequence[int], targets: Sequence[dict]) -> list[int]:
    """The image ids of a batch: the targets' own, or else the dataset's, or else the indices."""
    own = getattr(dataset, "image_ids", None)
    return [int(t.get("image_id", own[i] if own else i)) for i, t in zip(indices, targets, strict=True)]


def to_device(images: list, targets: list[dict], device: torch.device) -> tuple[list, list[dict]]:
    """Copies a batch to ``device``; what is not a tensor stays as it is."""
    moved = [{k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in t.items()} for t in targets]
    return [image.to(device) for image in images], moved
