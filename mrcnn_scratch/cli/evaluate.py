"""``mrcnn eval``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .options import Data, DataSeed, DropFaulty, Threads, ap_table, check_folder, interruptible, open_data


@interruptible()
def evaluate(
    checkpoint: Annotated[
        Path,
        typer.Argument(help="A .safetensors file of `mrcnn train`, or torchvision's or Detectron2's weights."),
    ],
    data: Data = "shapes:demo",
    root: Annotated[Path | None, typer.Option(help="The folder of `--data coco`.")] = None,
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
    from ..weights import load_pretrained

    data = _folder_of(data, root)
    if out:
        check_folder(out.parent)
        if out.is_dir():
            raise ValueError(f"--out {out} is a folder: name a JSON file")
    if threads:
        torch.set_num_threads(threads)
    model, metadata = load_pretrained(checkpoint_file(checkpoint))
    dataset = open_data(data, split, images, 200, seed, bool(model.config.keypoints), drop_faulty)
    model, dataset = _agreeing(model, metadata, dataset, checkpoint, data)
    metrics = run(model.to(memory_format=torch.channels_last), dataset)
    typer.echo(ap_table({checkpoint.name: metrics}))
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(metrics, indent=2) + "\n")


def _agreeing(model, metadata: dict, dataset, checkpoint: Path, data: str):
    """The model and the data, with the same labels for the same classes."""
    from ..common_classes import on_common_classes

    trained = metadata.get("class_names")
    if "identified" in metadata:  # weights of another code base, whose labels may be COCO's ids
        typer.echo(f"{checkpoint.name}: {metadata['identified']}")
        model, dataset, unknown = on_common_classes(model, metadata, dataset)
        if unknown:
            typer.echo(f"mrcnn: the weights do not know, and AP leaves out: {', '.join(unknown)}", err=True)
    elif trained and trained != dataset.class_names:
        raise ValueError(
            f"{checkpoint} knows the classes {trained}, {data} has {dataset.class_names}: evaluate on its own classes"
        )
    return model, dataset


def _folder_of(data: str, root: Path | None) -> str:
    """`--data coco --root DIR` is the COCO-format folder DIR."""
    if root is None:
        if data == "coco" and not Path(data).is_dir():
            raise ValueError("--data coco: say where it is, --root DIR, the folder that holds annotations/")
        return data
    if data != "coco":
        raise ValueError(f"--root {root} goes with --data coco, not with --data {data}")
    return str(root)
