"""``mrcnn proposals``."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Data, DataSeed, Device, DropFaulty, Root, Threads, check_device, interruptible


@interruptible()
def proposals(
    checkpoint: Annotated[Path, typer.Argument(help="Of a model with an RPN, such as --set stages=rpn trains.")],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    data: Data = "shapes:demo",
    root: Root = None,
    split: Annotated[str, typer.Option(help="Of the data.")] = "train",
    images: Annotated[
        int | None, typer.Option(min=1, help="Of shapes data how many to draw (1600); of a folder the first so many.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Proposals of an image: 2000 to train on, 1000 to test.")] = 2000,
    seed: DataSeed = 0,
    drop_faulty: DropFaulty = False,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Writes an RPN's proposals for `mrcnn train --proposals`: the paper's RPN, trained apart from the heads."""
    import torch

    from ..distributed import world
    from ..predict import checkpoint_file
    from ..proposals import proposal_recall, with_proposals, write_proposals
    from ..run_setup import open_data
    from ..weights import load_pretrained

    check_device(device)
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder: name a .safetensors file")
    if threads:
        torch.set_num_threads(threads)
    with world(device) as me:
        if me.size > 1:
            raise ValueError(f"mrcnn proposals runs in one process, torchrun started {me.size}: start it alone")
        model, _ = load_pretrained(checkpoint_file(checkpoint))
        dataset = open_data(data, split, images, 1600, seed, False, drop_faulty, root)
        model = model.to(me.device, memory_format=torch.channels_last)
        written = write_proposals(model, dataset, out, count)
    recall = proposal_recall(with_proposals(dataset, out))
    told = ", ".join(f"{value:.3f} of the best {number}" for number, value in recall.items())
    typer.echo(f"{written:,} proposals of {len(dataset)} images in {out}; average recall {told}")
