"""``mrcnn bench roi | model``."""

import sys
from pathlib import Path

import typer


def roi(context: typer.Context) -> None:
    """RoI ops and NMS: how many times faster than torchvision; --help lists the options."""
    raise typer.Exit(_benchmark("roi_ops").main(context.args, "mrcnn bench roi"))


def model(context: typer.Context) -> None:
    """Whole models: how many times faster than torchvision, inference and training; --help lists the options."""
    raise typer.Exit(_benchmark("model").main(context.args, "mrcnn bench model"))


def _benchmark(name: str):
    """A module of benchmarks/, which is a part of the checkout and not of the package: it imports the peers."""
    import importlib

    root = Path(__file__).resolve().parents[2]
    if not (root / "benchmarks" / f"{name}.py").is_file():
        raise ValueError(
            f"the benchmarks are in the project's checkout, and {root} is none: clone the project, "
            "run pip install -e '.[test]' in it, and start mrcnn from there"
        )
    sys.path.insert(0, str(root))
    return importlib.import_module(f"benchmarks.{name}")
