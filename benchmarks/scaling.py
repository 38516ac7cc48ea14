"""The projection of docs/scaling.md: seconds a step and hours for 8, 64 and 512 GPUs. `python -m benchmarks.scaling`.

Nothing here is measured. A step is the compute of one GPU on its two images, and an all-reduce of the gradients in two
levels: within a machine of 8 GPUs, and between machines.
"""

TRAINED = {"R50-FPN": 44_125_173, "R101-FPN": 63_065_077}  # parameters that train, by `mrcnn train --dry-run`
# Seconds of a step of two images on one M40: the paper's 0.72 s, and 0.99 s, its 44 hours over 160,000 steps
M40_STEP = {"R50-FPN": 0.72, "R101-FPN": 44 * 3600 / 160_000}
IMAGES = 160_000 * 16  # that the paper's schedule shows
WITHIN, BETWEEN = 100e9, 10e9  # assumed bytes a second: of a GPU within its machine, of a machine to the others
PER_MACHINE, PER_GPU = 8, 2


def sent_bytes(members: int, size: float) -> float:
    """What each member of a ring all-reduce of `size` bytes sends: 2 (n - 1) / n of them; of 100 bytes and 2, 100."""
    return 2 * (members - 1) / members * size


def exchange_seconds(model: str, gpus: int) -> float:
    """The all-reduce of float32 gradients, alone: first within machines, then between them."""
    size, machines = 4 * TRAINED[model], max(1, gpus // PER_MACHINE)
    return sent_bytes(min(gpus, PER_MACHINE), size) / WITHIN + sent_bytes(machines, size) / BETWEEN


def project(model: str, gpus: int, faster: float = 1.0) -> dict[str, float]:
    """A step in the worst case, nothing overlapped, and at best: hidden behind the backward pass, 2/3 of the compute.

    Args:
        faster: times an M40.

    Returns: ``step`` and ``best`` (seconds), ``hours`` of the whole schedule in the worst case, ``efficiency`` of it.
    """
    compute, exchange = M40_STEP[model] / faster, exchange_seconds(model, gpus)
    step = compute + exchange
    best = compute + max(0.0, exchange - compute * 2 / 3)
    hours = IMAGES / (PER_GPU * gpus) * step / 3600
    return {"step": step, "best": best, "hours": hours, "efficiency": compute / step}


def table() -> str:
    """The projection as Markdown."""
    lines = [
        "| model | GPU | GPUs | MB sent by a GPU, one ring | step at worst, ms | at best, ms | efficiency at worst | "
        "hours at worst |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    for model in TRAINED:
        for name, faster in (("M40", 1.0), ("10 times an M40", 10.0)):
            for gpus in (8, 64, 512):
                row, sent = project(model, gpus, faster), sent_bytes(gpus, 4 * TRAINED[model])
                lines.append(
                    f"| {model} | {name} | {gpus} | {sent / 1e6:.0f} | {row['step'] * 1e3:.0f} | "
                    f"{row['best'] * 1e3:.0f} | {row['efficiency']:.0%} | {row['hours']:.2g} |"
                )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
