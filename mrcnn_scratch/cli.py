"""The command line: ``mrcnn demo | data make | data check | train | eval | predict | bench roi``.

A mistake of the user's ends in one line on standard error and exit status 2; a fault of ours keeps its traceback.
"""

import difflib
import json
import shlex
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from .config import PRESETS as MODELS

app = typer.Typer(
    help="Mask R-CNN from scratch: make data, train, evaluate, predict.", no_args_is_help=True, add_completion=False,
    pretty_exceptions_enable=False,
)  # fmt: skip
data_app = typer.Typer(help="The embedded data, and checks of your own.", no_args_is_help=True)
app.add_typer(data_app, name="data")
bench_app = typer.Typer(help="Measures the package against torchvision and onnxruntime.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")

Out = Annotated[Path, typer.Option(help="Folder of the results.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the weights, the batches and shapes data.")]
DataSeed = Annotated[int, typer.Option(min=0, help="Of the drawn images; a folder has none.")]
DropFaulty = Annotated[
    bool, typer.Option("--drop-faulty", help="Leave out the annotations that cannot be used, and name them.")
]
Data = Annotated[
    str, typer.Option(help="shapes:demo, shapes:hard, shapes:coco-like, shapes:multiscale, or a COCO-format folder.")
]
Setting = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="A field of the model's or the training's configuration, as name=value; mrcnn_scratch/config.py and "
        "mrcnn_scratch/schedule.py list them.",
    ),
]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads to compute with; by default torch decides.")]


@contextmanager
def _interruptible():
    """Ctrl-C ends a command with what its KeyboardInterrupt says, how to go on, and exit status 130."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        typer.echo(f"\nmrcnn: interrupted. {stopped}".rstrip(), err=True)
        if "--resume" in str(stopped):
            again = [argument for argument in sys.argv[1:] if argument not in ("--resume", "--overwrite")]
            typer.echo(f"  {shlex.join(['mrcnn', *again, '--resume'])}", err=True)
        raise typer.Exit(130) from None


@app.command()
@_interruptible()
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

    from .demo import DemoConfig, holds_demo, run_demo

    _check_folder(out)

    config = DemoConfig().with_seed(seed)
    if steps is not None:
        config = replace(config, train=replace(config.train, steps=steps))
    if not resume and holds_demo(out):
        typer.echo(
            f"{out} holds an earlier demo: it is replaced (use --resume to go on from an interrupted one)", err=True
        )
    metrics = run_demo(out, config, resume, command=shlex.join(["mrcnn", *sys.argv[1:]]))
    typer.echo(_table({"RoIAlign": metrics, "RoIPool": metrics["roi_pool"]}))
    typer.echo(
        f"\n{metrics['seconds']['total']:.0f} s in all. Open {out / 'report.html'}; numbers: {out / 'metrics.json'}"
    )


@data_app.command("make")
@_interruptible()
def data_make(
    folder: Annotated[Path, typer.Argument(help="Folder to make; it must be new or empty.")],
    preset: Annotated[str, typer.Option(help="demo, hard, coco-like or multiscale.")] = "demo",
    train: Annotated[int, typer.Option(min=1, help="Images to train on.")] = 200,
    val: Annotated[int, typer.Option(min=1, help="Images to validate on.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Of the drawn images.")] = 0,
) -> None:
    """Draws the embedded data into a COCO-format folder."""
    from .datasets.coco_export import export_coco
    from .datasets.shapes import ShapesDataset

    _check_folder(folder, "FOLDER")
    counts = {"train": train, "val": val}
    export_coco([ShapesDataset(preset, count, seed=seed, split=split) for split, count in counts.items()], folder)
    typer.echo(f"{train} + {val} images in {folder}: `mrcnn data check {folder}` looks at them")


@data_app.command("check")
@_interruptible()
def data_check(
    folder: Annotated[Path, typer.Argument(help="A COCO-format folder.")],
    split: Annotated[str | None, typer.Option(help="train, val, ...; by default all that are there.")] = None,
) -> None:
    """Lists every fault of a COCO-format folder, with file, id and remedy; exit status 1 when there is an error."""
    from .datasets.check import check_folder

    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give one in COCO's format, with annotations/ and images/")
    faults = check_folder(folder, split, progress=True)
    for fault in faults:
        typer.echo(str(fault))
    errors = sum(fault.severity == "error" for fault in faults)
    typer.echo(f"{folder}: {errors} errors, {len(faults) - errors} warnings")
    if errors:
        raise typer.Exit(1)


@app.command()
@_interruptible()
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

    from .model import build_model
    from .schedule import TrainConfig
    from .training import train as run

    _check_folder(out)
    model_fields, train_fields = _split_settings(settings)
    train_fields = {
        "steps": steps, "batch_size": batch_size, "lr": lr, "optimizer": optimizer, "schedule": schedule, "seed": seed,
        "warmup_steps": min(50, steps // 5), "clip_norm": 10.0, **train_fields,
    }  # fmt: skip
    train_config = TrainConfig.from_dict(train_fields)
    if threads:
        torch.set_num_threads(threads)
    dataset = _open(data, split, images, 1600, seed, keypoints, drop_faulty)
    joints = dataset.num_keypoints if keypoints else 0
    model = build_model(
        config, dataset.num_classes, keypoints=joints, conventions=conventions, **{"seed": seed, **model_fields}
    ).to(memory_format=torch.channels_last)
    typer.echo(f"{len(dataset)} images of {data} ({split}), {sum(p.numel() for p in model.parameters()):,} parameters")
    result = run(model, dataset, train_config, out, resume=resume, overwrite=overwrite, tensorboard=tensorboard)
    typer.echo(f"{result.steps} steps in {result.seconds:.0f} s: {result.checkpoint}")


@app.command("eval")
@_interruptible()
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

    from .evaluation import evaluate as run
    from .predict import checkpoint_file
    from .weights import load_model

    if out:
        _check_folder(out.parent)
        if out.is_dir():
            raise ValueError(f"--out {out} is a folder: name a JSON file")
    if threads:
        torch.set_num_threads(threads)
    model, metadata = load_model(checkpoint_file(checkpoint))
    dataset = _open(data, split, images, 200, seed, bool(model.config.keypoints), drop_faulty)
    trained = metadata.get("class_names")
    if trained and trained != dataset.class_names:
        raise ValueError(
            f"{checkpoint} knows the classes {trained}, {data} has {dataset.class_names}: evaluate on its own classes"
        )
    metrics = run(model.to(memory_format=torch.channels_last), dataset)
    typer.echo(_table({checkpoint.name: metrics}))
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(metrics, indent=2) + "\n")


@app.command()
@_interruptible()
def predict(
    photos: Annotated[list[Path], typer.Argument(help="Image files.")],
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", "--weights", help="A .safetensors file; by default the tiny one that ships."),
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
    from .predict import predict_files

    _check_folder(out)
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


@bench_app.command(
    "roi", context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False
)
def bench_roi(context: typer.Context) -> None:
    """RoI ops and NMS: how many times faster than torchvision; --help lists the options."""
    raise typer.Exit(_benchmark("roi_ops").main(context.args, "mrcnn bench roi"))


def _benchmark(name: str):
    """A module of benchmarks/, which is a part of the checkout and not of the package: it imports the peers."""
    import importlib

    root = Path(__file__).resolve().parents[1]
    if not (root / "benchmarks" / f"{name}.py").is_file():
        raise ValueError(
            f"the benchmarks are in the project's checkout, and {root} is none: clone the project, "
            "run pip install -e '.[test]' in it, and start mrcnn from there"
        )
    sys.path.insert(0, str(root))
    return importlib.import_module(f"benchmarks.{name}")


def _check_folder(path: Path, name: str = "--out") -> None:
    """Refuses, before any work is done, a folder that cannot be made because a file is in its place."""
    for part in (path, *path.parents):
        if part.exists() and not part.is_dir():
            raise ValueError(f"{name} {part} is a file: name a folder")


def _open(data: str, split: str, images: int | None, default: int, seed: int, keypoints: bool, drop_faulty: bool):
    """The dataset; only the procedural one has a seed, and a default number of images."""
    from .datasets import open_dataset

    if data.startswith("shapes:"):
        return open_dataset(data, split, num_images=images or default, seed=seed)
    wanted, on_fault = "auto" if keypoints else False, "drop" if drop_faulty else "raise"
    return open_dataset(data, split, num_images=images, keypoints=wanted, on_fault=on_fault)


def _split_settings(settings: list[str] | None) -> tuple[dict, dict]:
    """``name=value`` options, sorted into the model's fields and the training's."""
    from dataclasses import fields

    from .config import ModelConfig
    from .schedule import TrainConfig

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


def _table(rows: dict[str, dict]) -> str:
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


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """A warning of this package as plain text; anyone else's as Python shows it."""
    ours = issubclass(category, UserWarning) and Path(filename).is_relative_to(Path(__file__).parent)
    text = f"mrcnn: {message}\n" if ours else warnings.formatwarning(message, category, filename, lineno, line)
    sys.stderr.write(text)


def main() -> None:
    """Entry point of ``mrcnn``: runs a command, turns a user's mistake into a message and exit status 2."""
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            app(prog_name="mrcnn")
        except (ValueError, OSError) as error:
            print(f"mrcnn: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:  # outside a command: it has no more to say
            print("\nmrcnn: interrupted.", file=sys.stderr)
            sys.exit(130)
