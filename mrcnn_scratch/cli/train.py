"""``mrcnn train``."""

from pathlib import Path
from typing import Annotated

import typer

from ..config import PRESETS as MODELS
from .options import (
    Data,
    DropFaulty,
    Out,
    Seed,
    Setting,
    Threads,
    check_folder,
    interruptible,
    open_data,
    split_settings,
)


@interruptible()
def train(
    data: Data = "shapes:demo",
    config: Annotated[str, typer.Option(help=f"The model: {', '.join(MODELS)}.")] = "tiny-fpn",
    out: Out = Path("runs/train"),
    split: Annotated[str, typer.Option(help="Of the data.")] = "train",
    images: Annotated[
        int | None, typer.Option(min=1, help="Of shapes data how many to draw (1600); of a folder the first so many.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Updates of the weights.")] = 1000,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per step.")] = 4,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 0.02,
    optimizer: Annotated[str, typer.Option(help="sgd or adamw.")] = "sgd",
    schedule: Annotated[str, typer.Option(help="step, cosine or constant.")] = "cosine",
    seed: Seed = 0,
    conventions: Annotated[str, typer.Option(help="paper, torchvision or detectron2.")] = "paper",
    keypoints: Annotated[bool, typer.Option(help="Train the keypoint branch where the data has keypoints.")] = True,
    drop_faulty: DropFaulty = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from --out's last checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew in an --out that holds a run.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard events.")] = False,
    threads: Threads = None,
    settings: Setting = None,
) -> None:
    """Trains a model and leaves last.safetensors, log.csv and train_config.json in --out."""
    import torch

    from ..model import build_model
    from ..schedule import TrainConfig
    from ..training import train as run

    check_folder(out)
    model_fields, train_fields = split_settings(settings)
    train_fields = {
        "steps": steps, "batch_size": batch_size, "lr": lr, "optimizer": optimizer, "schedule": schedule, "seed": seed,
        "warmup_steps": min(50, steps // 5), "clip_norm": 10.0, **train_fields,
    }  # fmt: skip
    train_config = TrainConfig.from_dict(train_fields)
    if threads:
        torch.set_num_threads(threads)
    dataset = open_data(data, split, images, 1600, seed, keypoints, drop_faulty)
    joints = dataset.num_keypoints if keypoints else 0
    model = build_model(
        config, dataset.num_classes, keypoints=joints, conventions=conventions, **{"seed": seed, **model_fields}
    ).to(memory_format=torch.channels_last)
    typer.echo(f"{len(dataset)} images of {data} ({split}), {sum(p.numel() for p in model.parameters()):,} parameters")
    result = run(model, dataset, train_config, out, resume=resume, overwrite=overwrite, tensorboard=tensorboard)
    typer.echo(f"{result.steps} steps in {result.seconds:.0f} s: {result.checkpoint}")
