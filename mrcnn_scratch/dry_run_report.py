"""A dry run as text."""


def report(run) -> str:
    """Parameters, schedule, measured steps, projected time and memory of a :class:`~mrcnn_scratch.dry_run.DryRun`."""
    return "\n".join([*_told_model(run), *_told_schedule(run), *_told_measured(run), *_told_memory(run)])


def _told_model(run) -> list[str]:
    lines = ["parameters"] + [f"  {name:16}{number:>14,}" for name, number in run.parts.items()]
    fixed = f"; {run.fixed:,} scales and shifts of fixed norms are none" if run.fixed else ""
    lines.append(f"  {'total':16}{run.total:>14,}, of which {run.trained:,} train{fixed}")
    return lines + [f"  {check}" for check in run.checks]


def _told_schedule(run) -> list[str]:
    config = run.config
    images = f"{config.batch_size} images in micro-batches of {run.micro_batch}"
    lines = [f"schedule: {config.steps:,} steps of {images}, an epoch is {run.images:,} images"]
    for what, step, epoch, lr in run.schedule:
        lines.append(f"  {what:6} step {step:>8,}  epoch {epoch:7.2f}  lr {lr:.6g}")
    return lines


def _told_measured(run) -> list[str]:
    measured, steps, batch = run.measured, run.config.steps, run.config.batch_size
    if measured is None:
        return ["nothing was run"]
    update, whole, here = measured.seconds["update"], measured.step_seconds, _many(run.processes, "such process")
    micro_batches = batch // run.micro_batch
    lines = [
        f"measured: {_many(measured.steps, 'step')} of {_many(run.micro_batch, 'image')} in each of "
        f"{_many(run.processes, 'process')}, after one to warm up, on {measured.where}, {run.data}",
        "  " + ", ".join(f"{phase} {seconds:.3g} s" for phase, seconds in measured.seconds.items()),
        f"  {whole:.3g} s for a step of {_many(batch, 'image')}, {run.images_per_second:.3g} images per second",
        f"projected: {_duration(whole * steps)} for {_many(steps, 'step')} on {here}",
    ]
    if micro_batches > run.processes:
        shared = (whole - update) * run.processes / micro_batches + update
        lines.append(
            f"  {_duration(shared * steps)} on {micro_batches:,} of them, one micro-batch each, if exchanging "
            "gradients cost nothing"
        )
    return lines


def _told_memory(run) -> list[str]:
    held = ", ".join(f"{name} {size / 1e6:,.0f} MB" for name, size in run.bytes.items())
    lines = [f"memory of a process: {held}"]
    if run.measured and run.measured.peak_bytes:
        of = "of the GPU" if run.measured.where.startswith("cuda") else "with Python, torch and the images"
        lines.append(f"  at most {run.measured.peak_bytes / 1e6:,.0f} MB were held in the measured steps, {of}")
    return lines


def _many(number: int, noun: str) -> str:
    plural = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{plural}"


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"
