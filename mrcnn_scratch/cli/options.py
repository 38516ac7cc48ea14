"""What the commands share: their options, the data they open, and how they refuse and report."""

import difflib
import json
import re
import shlex
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path, typer.Option(help="Folder of the results.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the weights, the batches and shapes data.")]
DataSeed = Annotated[int, typer.Option(min=0, help="Of the drawn images; a folder has none.")]
DropFaulty = Annotated[
    bool, typer.Option("--drop-faulty", help="Leave out the annotations that cannot be used, and name them.")
]
DATA_HELP = (
    "shapes:demo, shapes:hard, shapes:large, shapes:coco-like, shapes:multiscale, a COCO-format folder, or coco with "
    "--root."
)
Data = Annotated[str, typer.Option(help=DATA_HELP)]
Root = Annotated[Path | None, typer.Option(help="The folder that holds --data coco.")]
Setting = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="A field of the model's or the training's configuration, as name=value; mrcnn_scratch/config.py and "
        "mrcnn_scratch/schedule.py list them.",
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; by default a GPU if there is one.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads to compute with; by default torch decides.")]


def check_device(device: str | None) -> None:
    """Refuses what is no device of this package."""
    if device is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ValueError(f"--device is {device!r}: give cpu, cuda, or one of several GPUs as cuda:1")


@contextmanager
def interruptible():
    """Ctrl-C ends a command with what its KeyboardInterrupt says, how to go on, and exit status 130."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        typer.echo(f"\nmrcnn: interrupted. {stopped}".rstrip(), err=True)
        if "--resume" in str(stopped):
            again = [argument for argument in sys.argv[1:] if argument not in ("--resume", "--overwrite")]
            typer.echo(f"  {shlex.join(['mrcnn', *again, '--resume'])}", err=True)
        raise typer.Exit(130) from None


def check_folder(path: Path, name: str = "--out") -> None:
    """Refuses, before any work is done, a folder that cannot be made because a file is in its place."""
    for part in (path, *path.parents):
        if part.exists() and not part.is_dir():
            raise ValueError(f"{name} {part} is a file: name a folder")


def split_settings(settings: list[str] | None) -> tuple[dict, dict]:
    """``name=value`` options, sorted into the model's fields and the training's."""
    from dataclasses import fields

    from ..config import ModelConfig
    from ..schedule import TrainConfig

    model_names = {field.name for field in fields(ModelConfig)}
    train_names = {field.name for field in fields(TrainConfig)}
    model_fields, train_fields = {}, {}
    for setting in settings or []:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set {setting!r} has no value: write name=value")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text  # a bare word, e.g. roi_op=pool
        if name in train_names and name not in model_names:
            train_fields[name] = value
        elif name in model_names:
            model_fields[name] = value
        else:
            near = difflib.get_close_matches(name, sorted(model_names | train_names), n=1)
            listed = "the fields are listed in mrcnn_scratch/config.py and mrcnn_scratch/schedule.py"
            hint = f"did you mean {near[0]!r}?" if near else listed
            raise ValueError(f"--set {setting}: neither the model nor the training has a field {name!r}: {hint}")
    return model_fields, train_fields


def ap_table(rows: dict[str, dict]) -> str:
    """AP, AP50 and AP75 of every kind, in 0..1; each name stands once, above its kinds."""
    title = "AP from 0 to 1"
    lines = [f"{title}{'AP':>8}{'AP50':>8}{'AP75':>8}"]
    for name, metrics in rows.items():
        lines.append(name)
        for kind in ("box", "mask", "keypoints"):
            if kind in metrics:
                numbers = "".join(
                    f"{metrics[kind][key]:8.3f}" if metrics[kind][key] >= 0 else f"{'n/a':>8}"
                    for key in ("AP", "AP50", "AP75")
                )
                lines.append(f"{'  ' + kind:{len(title)}}{numbers}")
    return "\n".join(lines)
