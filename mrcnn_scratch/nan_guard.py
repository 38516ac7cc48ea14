"""When a loss is not finite: which loss, which image, and a file that replays it.

A NaN found a thousand steps later names nothing. The guard looks before the backward pass, while the weights
are still those of the last finished step, and keeps the step's whole input.
"""

from pathlib import Path

import torch

from .batches import to_device
from .weights import load_model_tensors, model_tensors, read_checkpoint, write_checkpoint


class NonFiniteLoss(FloatingPointError):
    """A loss or the gradient norm is NaN or infinite.

    Attributes:
        step: the step that failed, counted from 1; the weights are those of ``step - 1``.
        losses: the names of what was not finite.
        image_ids: the images that give it on their own, or all of the batch where none does.
        path: the saved batch, or None.
    """

    def __init__(self, message: str, step: int, losses: list[str], image_ids: list[int], path: Path | None):
        super().__init__(message)
        self.step, self.losses, self.image_ids, self.path = step, losses, image_ids, path


def explain(
    model, images, targets, bad: list[str], step: int, seed: int, ids: list[int], path, facts
) -> NonFiniteLoss:
    """Finds the images behind a failed step, saves the batch, and writes the message.

    Args:
        bad: what was not finite, e.g. ``["loss_mask"]``.
        step: the step that failed, counted from 1.
        seed: initial seed of the step's sampling generator.
        ids: image ids, one per image.
        path: where to save the batch, or None.
        facts: the run's metadata, e.g. ``config``.
    """
    model.zero_grad(set_to_none=True)
    weights = [name for name, value in model.named_parameters() if not value.isfinite().all()]
    if path is not None:
        metadata = {**facts, "step": step - 1, "image_ids": ids, "losses": bad, "sampling_seed": seed}
        save_batch(path, model, images, targets, metadata)
    guilty = [ids[place] for place in guilty_images(model, images, targets, seed)]
    remedy = "lower lr, lengthen the warm-up or set clip_norm"
    if weights:
        cause = f"weights were no longer finite, {weights[0]} first: {remedy}"
    elif guilty:
        cause = f"image {', '.join(map(str, guilty))} gives it alone: look at its pixels, boxes and masks"
    else:
        cause = f"no image of {', '.join(map(str, ids))} gives it alone: {remedy}"
    saved = "give out_dir to have the batch saved"
    if path is not None:
        replay = f"mrcnn_scratch.nan_guard.replay_batch({str(path)!r}, model)"
        saved = f"batch and weights are in {path}: {replay} runs it again"
    message = f"step {step}: {', '.join(bad)} not finite; {cause}; {saved}"
    return NonFiniteLoss(message, step, bad, guilty or ids, path)


def guilty_images(model, images: list, targets: list[dict], seed: int) -> list[int]:
    """Places in the batch of the images whose losses or gradients are not finite when they are alone.

    Args:
        seed: initial seed of the step's sampling generator; every image gets it afresh.
    """
    guilty = []
    params = [p for p in model.parameters() if p.requires_grad]
    for place, (image, target) in enumerate(zip(images, targets, strict=True)):
        try:
            losses = model([image], [target], torch.Generator().manual_seed(seed))
            gradients = torch.autograd.grad(sum(losses.values()), params, allow_unused=True)
        except (
            ValueError,
            RuntimeError,
        ):  # e.g. a norm that needs two images: this one cannot be judged alone
            continue
        if not all(value.isfinite().all() for value in (*losses.values(), *gradients) if value is not None):
            guilty.append(place)
    return guilty


def save_batch(path: Path, model, images: list, targets: list[dict], metadata: dict) -> None:
    """Writes the weights and a batch, as :func:`replay_batch` reads them.

    Args:
        path: the .safetensors file; also a checkpoint that ``load_model`` opens.
        metadata: JSON-able; ``sampling_seed`` is the initial seed of the step's generator.
    """
    tensors, plain = model_tensors(model), []
    for place, (image, target) in enumerate(zip(images, targets, strict=True)):
        tensors[f"batch/{place}/image"] = image
        for name, value in target.items():
            if isinstance(value, torch.Tensor):
                tensors[f"batch/{place}/{name}"] = value
        plain.append({name: value for name, value in target.items() if isinstance(value, (int, float, str))})
    write_checkpoint(path, tensors, {**metadata, "targets": plain})


def read_batch(path: str | Path) -> tuple[list[torch.Tensor], list[dict], dict]:
    """Reads the batch of a file of :func:`save_batch`.

    Returns:
        (images; targets; metadata with ``step``, ``image_ids``, ``losses``, ``sampling_seed``).

    Raises:
        ValueError: not such a file.
    """
    tensors, metadata = read_checkpoint(path)
    if "targets" not in metadata:
        raise ValueError(f"{path} holds no batch: give the nan_batch.safetensors that a failed run wrote")
    images, targets = [], [dict(plain) for plain in metadata["targets"]]
    for place, target in enumerate(targets):
        prefix = f"batch/{place}/"
        own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        images.append(own.pop("image"))
        target.update(own)
    return images, targets, metadata


def replay_batch(path: str | Path, model) -> dict[str, torch.Tensor]:
    """Runs the failing step's forward pass again: same weights, same batch, same sampled RoIs.

    Args:
        path: the nan_batch.safetensors of a failed run.
        model: a model of the same configuration; its weights are overwritten.

    Returns:
        The losses, scalar tensors with their graph, for ``torch.autograd.detect_anomaly`` and debuggers.

    Raises:
        ValueError: not such a file, or a model that it does not fit.
    """
    images, targets, metadata = read_batch(path)
    load_model_tensors(model, read_checkpoint(path)[0], path)
    device = next(model.parameters()).device
    images, targets = to_device(images, targets, device)
    generator = torch.Generator().manual_seed(metadata["sampling_seed"])
    return model.train()(images, targets, generator)
