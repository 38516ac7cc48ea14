"""``mrcnn data make | check | download``."""

from pathlib import Path
from typing import Annotated

import typer

from .options import check_folder, interruptible


@interruptible()
def make(
    folder: Annotated[Path, typer.Argument(help="Folder to make; it must be new or empty.")],
    preset: Annotated[str, typer.Option(help="demo, hard, large, coco-like or multiscale.")] = "demo",
    train: Annotated[int, typer.Option(min=1, help="Images to train on.")] = 200,
    val: Annotated[int, typer.Option(min=1, help="Images to validate on.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Of the drawn images.")] = 0,
) -> None:
    """Draws the embedded data into a COCO-format folder."""
    from ..datasets.coco_export import export_coco
    from ..datasets.shapes import ShapesDataset

    check_folder(folder, "FOLDER")
    counts = {"train": train, "val": val}
    export_coco([ShapesDataset(preset, count, seed=seed, split=split) for split, count in counts.items()], folder)
    typer.echo(f"{train} + {val} images in {folder}: `mrcnn data check {folder}` looks at them")


@interruptible()
def download(
    dataset: Annotated[str, typer.Argument(help="coco: COCO 2017.")],
    root: Annotated[Path, typer.Option(help="Folder for annotations/, train2017/ and val2017/.")],
    parts: Annotated[
        list[str] | None, typer.Option("--parts", help="annotations, val, train; name several by repeating. All.")
    ] = None,
    mirror: Annotated[str | None, typer.Option(help="Another server with the same files in the same places.")] = None,
    keep_archives: Annotated[bool, typer.Option("--keep-archives", help="Leave the .zip files in downloads/.")] = False,
) -> None:
    """Fetches COCO (20 GB), verifies and unpacks it; run again, it goes on where it was stopped."""
    from ..datasets.download import ARCHIVES, MIRROR, download_coco

    if dataset != "coco":
        raise ValueError(f"there is no dataset {dataset!r} to download: it is coco")
    check_folder(root, "--root")
    for told in download_coco(root, parts or list(ARCHIVES), mirror or MIRROR, keep_archives):
        typer.echo(told)
    typer.echo(f"train on it: mrcnn train --config R50-FPN --data coco --root {root}")


@interruptible()
def check(
    folder: Annotated[Path, typer.Argument(help="A COCO-format folder.")],
    split: Annotated[str | None, typer.Option(help="train, val, ...; by default all that are there.")] = None,
) -> None:
    """Lists every fault of a COCO-format folder, with file, id and remedy; exit status 1 when there is an error."""
    from ..datasets.check import check_folder

    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give one in COCO's format, with annotations/ and images/")
    faults = check_folder(folder, split, progress=True)
    for fault in faults:
        typer.echo(str(fault))
    errors = sum(fault.severity == "error" for fault in faults)
    typer.echo(f"{folder}: {errors} errors, {len(faults) - errors} warnings")
    if errors:
        raise typer.Exit(1)
