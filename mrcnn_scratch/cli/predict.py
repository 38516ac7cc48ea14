"""``mrcnn predict``."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Out, Threads, check_folder, interruptible


@interruptible()
def predict(
    photos: Annotated[list[Path], typer.Argument(help="Image files.")],
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            "--weights",
            help="A .safetensors file of ours, or torchvision's (.pth) or Detectron2's (.pkl, .pth) weights; "
            "by default the tiny one that ships.",
        ),  # fmt: skip
    ] = None,
    out: Out = Path("runs/predict"),
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Smallest score that is drawn.")] = 0.5,
    min_size: Annotated[
        int | None, typer.Option(min=0, help="Shorter edge the model sees, pixels; 0 keeps the photo's.")
    ] = None,
    max_size: Annotated[int | None, typer.Option(min=1, help="Longer edge at most, pixels.")] = None,
    threads: Threads = None,
) -> None:
    """Draws boxes, masks and keypoints on photos: an annotated PNG for each, and COCO results for all."""
    from ..predict import predict_files

    check_folder(out)
    if checkpoint is None:
        typer.echo(
            "mrcnn: the checkpoint that ships knows drawn persons, stars and rings, nothing of the real world: "
            "for photos give --checkpoint",
            err=True,
        )
    pictures, results = predict_files(
        photos, checkpoint, out, threshold, min_size=min_size, max_size=max_size, threads=threads
    )
    for path, count in pictures:
        typer.echo(f"{path}: {count} objects above {threshold}")
    typer.echo(f"COCO results in {out}: {', '.join(path.name for path in results)}")
