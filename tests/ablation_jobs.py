"""Runs that need no training, for the runner's tests; other processes import them."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from mrcnn_scratch.ablations.runs import Options


@dataclass(frozen=True)
class FakeJob:
    """Stands where a :class:`mrcnn_scratch.ablations.runs.Job` does.

    does: "work"; "raise"; "die": kill its own process, always; "die once": only the first time, on any worker.
    """

    arm: str
    seed: int = 0
    does: str = "work"
    notes: str = ""  # a folder, where each start leaves a file
    seconds: float = 0.0
    table: str = "fake"
    options: Options = Options()

    def path(self, out: Path) -> Path:
        return Path(out) / "runs" / f"{self.arm}-{self.seed}.json"

    def cost(self) -> int:
        return 1

    def run(self, on_step=None, folder=None, device=None) -> dict:
        began = Path(self.notes, f"{self.arm}-{self.seed}-{os.getpid()}-{time.monotonic_ns()}")
        first = not list(Path(self.notes).glob(f"{self.arm}-{self.seed}-*"))
        began.touch()
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            time.sleep(0.02)
            if on_step:
                on_step(1, {})
        if self.does == "raise":
            raise RuntimeError(f"arm {self.arm} went wrong")
        if self.does == "die" or self.does == "die once" and first:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"measures": {"mask AP*": 0.1 * self.seed}, "computed on": device}


def starts(notes: Path) -> dict[str, int]:
    """arm-seed -> how often it was started."""
    counts: dict[str, int] = {}
    for path in Path(notes).iterdir():
        name = "-".join(path.name.split("-")[:-2])
        counts[name] = counts.get(name, 0) + 1
    return counts
