"""``mrcnn eval``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ..files import whole_file
from .options import (
    Data,
    DataSeed,
    Device,
    DropFaulty,
    Root,
    Threads,
    ap_table,
    check_device,
    check_folder,
    interruptible,
)


@interruptible()
def evaluate(
    checkpoint: Annotated[
        Path,
        typer.Argument(help="A .safetensors file of `mrcnn train`, or torchvision's or Detectron2's weights."),
    ],
    data: Data = "shapes:demo",
    root: Root = None,
    split: Annotated[str, typer.Option(help="Of the data.")] = "val",
    images: Annotated[
        int | None, typer.Option(min=1, help="Of shapes data how many to draw (200); of a folder the first so many.")
    ] = None,
    seed: DataSeed = 0,
    drop_faulty: DropFaulty = False,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the numbers.")] = None,
    proposals: Annotated[Path | None, typer.Option(help="Of `mrcnn proposals`, for a model without an RPN.")] = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Measures box, mask and keypoint AP of a checkpoint, by pycocotools.

    Many processes share the images: torchrun --nproc-per-node 8 -m mrcnn_scratch eval ...
    """
    import torch

    from ..distributed import world
    from ..evaluation import evaluate as run
    from ..predict import checkpoint_file
    from ..run_setup import open_data
    from ..weights import load_pretrained

    check_device(device)
    if out:
        check_folder(out.parent)
        if out.is_dir():
            raise ValueError(f"--out {out} is a folder: name a JSON file")
    if threads:
        torch.set_num_threads(threads)
    with world(device) as me:
        model, metadata = load_pretrained(checkpoint_file(checkpoint))
        dataset = open_data(data, split, images, 200, seed, bool(model.config.keypoints), drop_faulty, root)
        config = model.config
        if (config.stages == "heads") != (proposals is not None):
            has, remedy = ("no RPN", "give") if proposals is None else ("an RPN", "leave out")
            raise ValueError(f"{checkpoint} has {has}: {remedy} --proposals FILE, of `mrcnn proposals` on this data")
        if "identified" in metadata and me.is_main:
            typer.echo(f"{checkpoint.name}: {metadata['identified']}")
        model, dataset, unknown = _agreeing(model, metadata, dataset, checkpoint, data)
        if proposals:
            from ..proposals import with_proposals

            dataset = with_proposals(dataset, proposals, config.rpn_post_nms_test)
        if unknown and me.is_main:
            typer.echo(f"mrcnn: the weights do not know, and AP leaves out: {', '.join(unknown)}", err=True)
        metrics = run(model.to(me.device, memory_format=torch.channels_last), dataset)
        if me.is_main:
            typer.echo(ap_table({checkpoint.name: metrics}))
        if out and me.is_main:
            with whole_file(out) as temporary:
                temporary.write_text(json.dumps(metrics, indent=2) + "\n")


def _agreeing(model, metadata: dict, dataset, checkpoint: Path, data: str):
    """The model and the data, with the same labels for the same classes; the names of classes that it does not know."""
    from ..common_classes import on_common_classes

    trained = metadata.get("class_names")
    if "identified" in metadata:  # weights of another code base, whose labels may be COCO's ids
        return on_common_classes(model, metadata, dataset)
    if model.config.keypoints and trained != dataset.class_names and dataset.num_keypoints:
        from ..datasets.keypoint_classes import KeypointClasses

        dataset = KeypointClasses(dataset)  # a recipe trains keypoints on persons alone
    if trained and trained != dataset.class_names:
        raise ValueError(
            f"{checkpoint} knows the classes {trained}, {data} has {dataset.class_names}: evaluate on its own classes"
        )
    return model, dataset, []
