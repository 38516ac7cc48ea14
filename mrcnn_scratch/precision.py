"""Mixed precision: convolutions and matrix products in 16 bits, weights, losses and geometry in float32.

bfloat16 has float32's range. float16 has not: gradients below 6e-8 become 0, so the loss is scaled up before the
backward pass and the gradients down after it (Micikevicius et al., arXiv:1710.03740, section 3.2).
"""

from contextlib import AbstractContextManager, nullcontext

import torch

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
PRECISIONS = ("float32", *HALF)


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The context of a forward pass; "float32" leaves every operation in its own precision.

    Args:
        precision: one of ``PRECISIONS``.
        device: where the model is.
    """
    return torch.autocast(device.type, HALF[precision]) if precision in HALF else nullcontext()


class LossScaler:
    """torch's gradient scaler with what a checkpoint and the log need; for float16, and idle otherwise.

    Attributes:
        skipped: updates left out so far because a scaled gradient was not finite. The scale is halved then.

    Args:
        precision: one of ``PRECISIONS``.
        device: where the model is.
    """

    def __init__(self, precision: str, device: torch.device):
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
        self.skipped = 0

    @property
    def enabled(self) -> bool:
        return self.scaler.is_enabled()

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradients of the scaled loss."""
        self.scaler.scale(loss).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divides the gradients by the scale, once they are complete."""
        self.scaler.unscale_(optimizer)

    def gives_up(self) -> bool:
        """Whether a gradient that is not finite is no matter of the scale: it is not enlarged (any more)."""
        return not self.enabled or self.scaler.get_scale() <= 1

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Updates the weights, or leaves the step out, and adapts the scale."""
        before = self.scaler.get_scale()
        self.scaler.step(optimizer)
        self.scaler.update()
        self.skipped += self.scaler.get_scale() < before

    def row(self) -> dict[str, float]:
        """What it adds to a row of the log."""
        return {"loss_scale": self.scaler.get_scale(), "skipped_steps": float(self.skipped)} if self.enabled else {}

    def state(self) -> dict:
        """What an exact resume needs, JSON-able."""
        return {**self.scaler.state_dict(), "skipped": self.skipped} if self.enabled else {}

    def load(self, state: dict) -> None:
        """Puts back what :meth:`state` gave; nothing for a run that begins."""
        if state:
            self.skipped = state["skipped"]
            self.scaler.load_state_dict({name: value for name, value in state.items() if name != "skipped"})
