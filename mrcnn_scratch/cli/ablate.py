"""``mrcnn ablate``."""

import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from ..ablations import TABLES
from .options import Device, Root, Setting, check_device, check_folder, interruptible, split_settings

QUICK = 0.3  # of the steps
_DATA = "Other data than the table's: shapes:NAME, a COCO-format folder, or coco with --root: photographs."
_CONFIG = "The model of arms that name none, where whole detectors run."
_WORKERS = "Runs side by side; by default one a core, and one on a GPU."
_SEEDS = "Which seeds instead, such as 5 6 7."


@interruptible()
def ablate(
    context: typer.Context,
    table: Annotated[str, typer.Argument(help=f"{', '.join(TABLES)}; all; or report, which draws what is there.")],
    seeds: Annotated[int | None, typer.Option(min=1, help="Runs of each arm: seeds 0, 1, .. (5).")] = None,
    seed_list: Annotated[str | None, typer.Option(help=_SEEDS)] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One seed and fewer steps: to see that it runs.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results"),
    data: Annotated[str | None, typer.Option(help=_DATA)] = None,
    root: Root = None,
    config: Annotated[str | None, typer.Option(help=_CONFIG)] = None,
    backbone_weights: Annotated[str | None, typer.Option(help="On photographs: to start from.")] = None,
    images: Annotated[str | None, typer.Option(help="Training and validation images at most, such as 800,150.")] = None,
    settings: Setting = None,
    workers: Annotated[int | None, typer.Option(min=1, help=_WORKERS)] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of a run (1; on photographs torch decides).")] = None,
    dask: Annotated[str | None, typer.Option(help="A Dask scheduler's address, to run on its workers.")] = None,
    device: Device = None,
) -> None:
    """Runs a table of the paper, arm by arm and seed by seed, and says what was reproduced.

    Finished runs are kept: after Ctrl-C the same command goes on. Many GPUs: torchrun -m mrcnn_scratch ablate ...
    """
    check_device(device)
    check_folder(out)
    if table == "report":
        from ..ablations.report import write_report

        typer.echo(write_report(out))
        return
    from ..ablations import load_table
    from ..ablations.runs import Options

    names = list(TABLES) if table == "all" else [load_table(table).name]
    model_fields, train_fields = split_settings(settings)
    options = Options(
        data, None if root is None else str(root), config, model_fields, train_fields, backbone_weights,
        _two(images), QUICK if quick else 1.0, device,
    )  # fmt: skip
    _check(options)
    chosen = _seeds(seeds, seed_list, context.args, quick)
    _run(names, chosen, options, out, workers, threads, dask)


def _check(options) -> None:
    for name in ("root", "backbone_weights"):
        if getattr(options, name) and not options.photographs:
            raise ValueError(f"--{name.replace('_', '-')} goes with photographs: --data FOLDER, or --data coco")


def _check_config(tables, options) -> None:
    """Refuses a model where no arm would take it."""
    from ..ablations.detector_runs import Detector

    tiers = [part.tier for table in tables for part in table.parts]
    if options.config and not options.photographs and not any(isinstance(tier, Detector) for tier in tiers):
        raise ValueError(
            f"--config {options.config}: no arm of {tables[0].name} on the embedded data is a whole detector; leave it "
            "out, or name photographs: --data FOLDER, or --data coco"
        )


def _two(images: str | None) -> tuple[int, int] | None:
    if images is None:
        return None
    try:
        training, validation = (int(number) for number in images.split(","))
    except ValueError:
        raise ValueError(f"--images {images}: give training and validation images, such as 800,150") from None
    if min(training, validation) < 1:
        raise ValueError(f"--images {images}: give 1 or more of each")
    return training, validation


def _seeds(count: int | None, listed: str | None, more: list[str], quick: bool) -> list[int]:
    """The seeds, each once; ``--seed-list 1 2 3`` leaves all but the first to ``more``."""
    if more and listed is None:
        raise ValueError(f"{more[0]!r} is not understood: mrcnn ablate takes one table; seeds follow --seed-list")
    if listed is None:
        return list(range(count or (1 if quick else 5)))
    if count is not None:
        raise ValueError("--seeds and --seed-list exclude each other: give one")
    words = " ".join([listed, *more]).replace(",", " ").split()
    if not words or not all(word.isdigit() for word in words):
        raise ValueError(f"--seed-list {' '.join(words)}: give whole numbers from 0, such as 5 6 7")
    return list(dict.fromkeys(map(int, words)))


def _run(names: list[str], seeds: list[int], options, out: Path, workers, threads, dask) -> None:
    from ..ablations import load_table
    from ..ablations.results import write_results
    from ..ablations.runner import dask_pool, default_workers, local_pool, make_runs
    from ..ablations.runs import Job, arms_of
    from ..distributed import world

    began = time.perf_counter()
    tables = [load_table(name) for name in names]
    tables = [table for table in tables if table.real or not options.photographs or len(tables) == 1]
    _check_config(tables, options)
    jobs = [
        Job(table.name, arm, seed, options) for table in tables for seed in seeds for arm in arms_of(table, options)
    ]
    for job in jobs:
        if job.seed == seeds[0]:
            job.check()
    with world(options.device) as me:
        pool = dask_pool(dask) if dask else None  # None: one run at a time, with all there is
        if not (dask or options.photographs or me.size > 1 or (me.device.type == "cuda" and not workers)):
            pool = local_pool(workers or default_workers(threads or 1), threads or 1)
        if pool is None:
            _set_threads(threads)
        made, failures = make_runs(jobs, out, pool, me.is_main, None if dask else str(me.device))
        if not me.is_main:
            return
        for table in tables:
            own = [failure for failure in failures if failure.job.table == table.name]
            command, seconds = shlex.join(["mrcnn", *sys.argv[1:]]), time.perf_counter() - began
            path = write_results(table, seeds, options, out, command, made, seconds, own)
            _tell(path)
    if failures:
        raise ValueError(f"{len(failures)} of {len(jobs)} runs failed, see above; the same command tries them again")
    typer.echo(f"mrcnn ablate report --out {shlex.quote(str(out))} draws all of it")


def _set_threads(threads: int | None) -> None:
    if threads:
        import torch

        torch.set_num_threads(threads)


def _tell(path: Path) -> None:
    """The comparisons of a table, a line each."""
    from ..ablations.report import comparison_line
    from ..ablations.results import read_results

    typer.echo(f"{path}")
    for comparison in read_results(path)["comparisons"]:
        typer.echo(f"  {comparison_line(comparison)}")
