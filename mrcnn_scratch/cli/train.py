"""``mrcnn train``: the toy settings for the tiny models, the paper's recipe for its own."""

from pathlib import Path
from typing import Annotated

import typer

from ..precision import PRECISIONS
from ..presets import PRESETS as MODELS
from ..recipes import STYLES
from ..run_setup import Source, Wishes, prepare
from .options import (
    DATA_HELP,
    Device,
    DropFaulty,
    Out,
    Root,
    Seed,
    Setting,
    Threads,
    check_device,
    check_folder,
    interruptible,
    split_settings,
)

_RECIPE = f"{', '.join(STYLES)}: whose settings to train with; paper for the paper's models, none for the tiny ones."
_BACKBONE = "ImageNet weights to start from: torchvision's .pth, Detectron's .pkl; imagenet: EfficientNet's package."


@interruptible()
def train(
    data: Annotated[str | None, typer.Option(help=f"{DATA_HELP} Without it shapes:demo, with a recipe coco.")] = None,
    root: Root = None,
    config: Annotated[str, typer.Option(help=f"The model: {', '.join(MODELS)}.")] = "tiny-fpn",
    recipe: Annotated[str | None, typer.Option(help=_RECIPE)] = None,
    show_recipe: Annotated[bool, typer.Option("--show-recipe", help="Print it, with its sources, and stop.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Parameters, schedule, hours and memory; no run.")] = False,
    steps_measured: Annotated[int, typer.Option(min=0, help="Of a dry run; 0 only counts.")] = 3,
    out: Out = Path("runs/train"),
    split: Annotated[str, typer.Option(help="Of the data.")] = "train",
    images: Annotated[
        int | None, typer.Option(min=1, help="Of shapes data how many to draw (1600); of a folder the first so many.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Updates of the weights (1000, or the recipe's).")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images per step, of all processes (4); a recipe's lr and steps go along.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate (0.02, or the recipe's).")] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd (the default) or adamw.")] = None,
    schedule: Annotated[str | None, typer.Option(help="step, cosine or constant (cosine, or the recipe's).")] = None,
    precision: Annotated[str | None, typer.Option(help=f"{', '.join(PRECISIONS)}; float32 by default.")] = None,
    micro_batch: Annotated[
        int | None, typer.Option(min=1, help="Images of one forward pass; a step adds up the gradients of all.")
    ] = None,
    seed: Seed = 0,
    conventions: Annotated[str | None, typer.Option(help="paper, torchvision or detectron2.")] = None,
    masks: Annotated[bool | None, typer.Option(help="Train the mask branch; a recipe for keypoints has none.")] = None,
    keypoints: Annotated[
        bool | None, typer.Option(help="Train the keypoint branch where the data has keypoints; a recipe: if asked to.")
    ] = None,
    backbone_weights: Annotated[str | None, typer.Option(help=_BACKBONE)] = None,
    proposals: Annotated[Path | None, typer.Option(help="Of an RPN trained apart: trains the heads alone.")] = None,
    drop_faulty: DropFaulty = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from --out's last checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew in an --out that holds a run.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard events.")] = False,
    device: Device = None,
    workers: Annotated[int, typer.Option(min=0, help="Threads that load images ahead.")] = 0,
    threads: Threads = None,
    settings: Setting = None,
) -> None:
    """Trains a model and leaves last.safetensors, log.csv and train_config.json in --out.

    Many processes: torchrun --nproc-per-node 8 -m mrcnn_scratch train ...
    """
    wishes = Wishes(config, recipe, masks, keypoints, conventions, *split_settings(settings))
    asked = {
        "steps": steps, "batch_size": batch_size, "lr": lr, "optimizer": optimizer, "schedule": schedule,
        "precision": precision, "images_per_micro_batch": micro_batch, "seed": seed,
    }  # fmt: skip
    wishes = wishes.also({name: value for name, value in asked.items() if value is not None}, proposals is not None)
    wishes.check()
    check_device(device)
    if show_recipe:
        typer.echo(wishes.described())
        return
    if not dry_run:
        check_folder(out)
    import torch

    from ..distributed import world

    if threads:
        torch.set_num_threads(threads)
    source = Source(data, root, split, images, seed, drop_faulty, proposals)
    with world(device) as me:
        say = typer.echo if me.is_main else _silent
        at = torch.device("meta") if dry_run and not steps_measured else me.device
        made = prepare(wishes, source, backbone_weights, at, may_be_absent=dry_run)
        for line in made.told:
            say(line)
        if dry_run:
            from ..dry_run import dry_run as measure

            say(str(measure(made.model, made.dataset, made.config, steps_measured, workers=workers)))
            return
        if not (backbone_weights or resume) and me.is_main:
            _warn_of_random_backbone(made.model.config)
        from ..training import train as run

        result = run(
            made.model, made.dataset, made.config, out, resume=resume, overwrite=overwrite, workers=workers,
            tensorboard=tensorboard,
        )  # fmt: skip
        say(f"{result.steps} steps in {result.seconds:.0f} s: {result.checkpoint}")


def _silent(message: str) -> None:
    """What the processes but the first have to say."""


def _warn_of_random_backbone(config) -> None:
    """Says that fixed norms and frozen stages want pretrained weights."""
    if config.backbone != "tiny" and (config.norm == "frozen" or config.freeze_at):
        typer.echo(
            "mrcnn: the backbone starts from random weights, but its norms are fixed and its first stages frozen, as "
            "suits ImageNet's: give --backbone-weights, or --set norm=group --set freeze_at=0",
            err=True,
        )
