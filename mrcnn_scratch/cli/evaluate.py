"""``mrcnn eval``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .options import Data, DataSeed, DropFaulty, Threads, ap_table, check_folder, interruptible, open_data


@interruptible()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A .safetensors file of `mrcnn train`.")],
    data: Data = "shapes:demo",
    split: Annotated[str, typer.Option(help="Of the data.")] = "val",
    images: Annotated[
        int | None, typer.Option(min=1, help="Of shapes data how many to draw (200); of a folder the first so many.")
    ] = None,
    seed: DataSeed = 0,
    drop_faulty: DropFaulty = False,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the numbers.")] = None,
    threads: Threads = None,
) -> None:
    """Measures box, mask and keypoint AP of a checkpoint, by pycocotools."""
    import torch

    from ..evaluation import evaluate as run
    from ..predict import checkpoint_file
    from ..weights import load_model

    if out:
        check_folder(out.parent)
        if out.is_dir():
            raise ValueError(f"--out {out} is a folder: name a JSON file")
    if threads:
        torch.set_num_threads(threads)
    model, metadata = load_model(checkpoint_file(checkpoint))
    dataset = open_data(data, split, images, 200, seed, bool(model.config.keypoints), drop_faulty)
    trained = metadata.get("class_names")
    if trained and trained != dataset.class_names:
        raise ValueError(
            f"{checkpoint} knows the classes {trained}, {data} has {dataset.class_names}: evaluate on its own classes"
        )
    metrics = run(model.to(memory_format=torch.channels_last), dataset)
    typer.echo(ap_table({checkpoint.name: metrics}))
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(metrics, indent=2) + "\n")
