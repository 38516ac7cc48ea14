"""Which images a step sees, and how they are augmented: pure functions of (seed, step).

A resumed run therefore needs the weights, the optimizer's state and the step number, and nothing else; and
two runs that differ in one setting of the model see the same images, flips and sampling seeds.
"""

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from .schedule import TrainConfig

Batch = tuple[list[torch.Tensor], list[dict], list[int]]  # images, targets, dataset indices


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


def load_batch(dataset, step: int, config: TrainConfig, augment=None) -> Batch:
    """The images and targets of one step, augmented: a function of the dataset, the seed and the step only.

    Args:
        dataset: ``dataset[i]`` -> (image, target).
        augment: callable (image, target, generator) -> (image, target), or None.

    Returns:
        (images, each (3, H, W) float in [0, 1]; targets; dataset indices).
    """
    images, targets = [], []
    indices = batch_indices(step, config.batch_size, len(dataset), config.seed)
    for position, index in enumerate(indices):
        image, target = dataset[index]
        if augment is not None:
            image, target = augment(image, target, generator_for(config.seed, "augment", step, position))
        images.append(image)
        targets.append(target)
    return images, targets, indices


def load_batches(dataset, start: int, config: TrainConfig, augment=None, workers: int = 0) -> Iterator[Batch]:
    """Yields :func:`load_batch` of steps ``start`` to ``config.steps - 1``, in order.

    Args:
        workers: threads that load ahead; 0 loads each batch when it is asked for. The batches are the same.
    """
    if workers == 0:
        for step in range(start, config.steps):
            yield load_batch(dataset, step, config, augment)
        return
    pool = ThreadPoolExecutor(workers)
    try:
        waiting = deque()
        for step in range(start, config.steps):
            waiting.append(pool.submit(load_batch, dataset, step, config, augment))
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
