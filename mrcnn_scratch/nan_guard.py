"""When a loss is not finite: which loss, which image, and a file that replays it.

A NaN found a thousand steps later names nothing. The guard looks before the backward pass, while the weights
are still those of the last finished step, and keeps the step's whole input.
"""

from pathlib import Path

import torch

from .batches import MicroBatch
from .precision import autocast
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


class Guard:
    """What it takes to explain a step that fails: taken before the step, because the step changes it.

    Args:
        model: the model that is about to be trained for a step; not wrapped for several processes.
        step: counted from 1.
        facts: the run's metadata, e.g. ``config`` and ``train_config``.
        path: where to save a failed batch, or None.
    """

    def __init__(self, model, step: int, facts: dict, path: Path | None = None):
        self.model, self.step, self.facts, self.path = model, step, facts, path
        self.precision = facts.get("train_config", {}).get("precision", "float32")
        # the forward pass moves the norms' running statistics: a failed step goes back to these
        self.buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def find(self, batches: list[MicroBatch]) -> tuple[MicroBatch, list[int]]:
        """The first micro-batch with images that give a loss or gradient that is not finite, and their ids.

        Where no image does on its own: the first micro-batch, and an empty list.
        """
        self._restore()
        self.model.zero_grad(set_to_none=True)
        for batch in batches:
            places = guilty_images(self.model, batch, self.precision)
            if places:
                return batch, [batch.image_ids[place] for place in places]
        return batches[0], []

    def failure(self, bad: list[str], batch: MicroBatch, guilty: list[int]) -> NonFiniteLoss:
        """Saves the batch and writes the message.

        Args:
            bad: what was not finite, e.g. ``["loss_mask"]``.
            batch, guilty: as :meth:`find` gives them.
        """
        self._restore()
        weights = [name for name, value in self.model.named_parameters() if not value.isfinite().all()]
        if self.path is not None:
            save_batch(self.path, self.model, batch, {**self.facts, "step": self.step - 1, "losses": bad})
        remedy = "lower lr, lengthen the warm-up or set clip_norm"
        if weights:
            cause = f"weights were no longer finite, {weights[0]} first: {remedy}"
        elif guilty:
            cause = f"image {', '.join(map(str, guilty))} gives it alone: look at its pixels, boxes and masks"
        else:
            cause = f"no image of {', '.join(map(str, batch.image_ids))} gives it alone: {remedy}"
        saved = "give out_dir to have the batch saved"
        if self.path is not None:
            replay = f"mrcnn_scratch.nan_guard.replay_batch({str(self.path)!r}, model)"
            saved = f"batch and weights are in {self.path}: {replay} runs it again"
        message = f"step {self.step}: {', '.join(bad)} not finite; {cause}; {saved}"
        return NonFiniteLoss(message, self.step, bad, guilty or batch.image_ids, self.path)

    @torch.no_grad()
    def _restore(self) -> None:
        for name, buffer in self.model.named_buffers():
            buffer.copy_(self.buffers[name])


def guilty_images(model, batch: MicroBatch, precision: str = "float32") -> list[int]:
    """Places in the batch of the images whose losses or gradients are not finite when they are alone.

    Args:
        batch: on any device; every image is sampled as in the batch.
        precision: of the forward pass.
    """
    guilty = []
    params = [p for p in model.parameters() if p.requires_grad]
    batch = batch.to(params[0].device)
    for place, generator in enumerate(batch.generators()):
        try:
            with autocast(precision, params[0].device):
                losses = model([batch.images[place]], [batch.targets[place]], [generator])
            gradients = torch.autograd.grad(sum(losses.values()), params, allow_unused=True)
        except (ValueError, RuntimeError):  # e.g. a norm that needs two images: this one cannot be judged alone
            continue
        if not all(value.isfinite().all() for value in (*losses.values(), *gradients) if value is not None):
            guilty.append(place)
    return guilty


def save_batch(path: Path, model, batch: MicroBatch, metadata: dict) -> None:
    """Writes the weights and a batch, as :func:`replay_batch` reads them.

    Args:
        path: the .safetensors file; also a checkpoint that ``load_model`` opens.
        metadata: JSON-able.
    """
    tensors, plain = model_tensors(model), []
    for place, (image, target) in enumerate(zip(batch.images, batch.targets, strict=True)):
        tensors[f"batch/{place}/image"] = image
        for name, value in target.items():
            if isinstance(value, torch.Tensor):
                tensors[f"batch/{place}/{name}"] = value
        plain.append({name: value for name, value in target.items() if isinstance(value, (int, float, str))})
    own = {"image_ids": batch.image_ids, "sampling_seeds": batch.seeds, "targets": plain}
    write_checkpoint(path, tensors, {**metadata, **own})


def read_batch(path: str | Path) -> tuple[MicroBatch, dict]:
    """Reads the batch of a file of :func:`save_batch`.

    Returns:
        (batch on the CPU; metadata with ``step``, ``losses``).

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
    return MicroBatch(images, targets, metadata["image_ids"], metadata["sampling_seeds"]), metadata


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
    batch, metadata = read_batch(path)
    load_model_tensors(model, read_checkpoint(path)[0], path)
    device = next(model.parameters()).device
    batch = batch.to(device)
    with autocast(metadata.get("train_config", {}).get("precision", "float32"), device):
        return model.train()(batch.images, batch.targets, batch.generators())
