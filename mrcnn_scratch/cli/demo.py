"""``mrcnn demo``."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from .options import Out, Seed, ap_table, check_folder, interruptible


@interruptible()
def demo(
    out: Out = Path("runs/demo"),
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Training steps of each model; by default 1000, about four minutes on two cores."),
    ] = None,
    seed: Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoints in --out.")] = False,
) -> None:
    """Trains Mask R-CNN on the embedded data, once with RoIAlign and once with RoIPool, and writes a report.

    An earlier demo in --out is replaced; --resume goes on from an interrupted one.
    """
    from dataclasses import replace

    from ..demo import DemoConfig, holds_demo, run_demo

    check_folder(out)

    config = DemoConfig().with_seed(seed)
    if steps is not None:
        config = replace(config, train=replace(config.train, steps=steps))
    if not resume and holds_demo(out):
        typer.echo(
            f"{out} holds an earlier demo: it is replaced (use --resume to go on from an interrupted one)", err=True
        )
    metrics = run_demo(out, config, resume, command=shlex.join(["mrcnn", *sys.argv[1:]]))
    typer.echo(ap_table({"RoIAlign": metrics, "RoIPool": metrics["roi_pool"]}))
    typer.echo(
        f"\n{metrics['seconds']['total']:.0f} s in all. Open {out / 'report.html'}; numbers: {out / 'metrics.json'}"
    )
