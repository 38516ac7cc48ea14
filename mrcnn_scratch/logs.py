"""What a run leaves to look at: log.csv, TensorBoard events, and the line under the progress bar."""

import csv
from pathlib import Path

from .files import whole_file


class RunLog:
    """log.csv and, where asked for, TensorBoard events of one run.

    Args:
        folder: the run's folder; None keeps the rows in memory only.
        start: the step that the run goes on from.
        tensorboard: also write ``folder/tensorboard``.

    Raises:
        ValueError: TensorBoard without a folder, or not installed.
    """

    def __init__(self, folder: Path | None, start: int, tensorboard: bool) -> None:
        if tensorboard and folder is None:
            raise ValueError("tensorboard events need a folder: give out_dir")
        self._events = open_tensorboard(folder / "tensorboard", start) if tensorboard else None
        self._csv = CsvLog(folder / "log.csv" if folder else None, keep=start)

    def write(self, row: dict[str, float]) -> None:
        """Adds one row, whose ``step`` counts finished updates."""
        self._csv.write(row)
        for name, value in row.items() if self._events else ():
            self._events.add_scalar(name, value, row["step"])

    def rows(self) -> list[dict[str, float]]:
        """The run's rows so far, those before a resume first."""
        return self._csv.rows()

    def close(self) -> None:
        """Closes the files; the rows stay readable."""
        self._csv.close()
        if self._events is not None:
            self._events.close()


class CsvLog:
    """One row per logged step, flushed at once; :meth:`rows` is the whole run's history.

    Floats are written with ``repr``, so that they read back as the same floats.

    Args:
        path: the .csv file; None keeps the rows in memory only.
        keep: rows of an earlier part of the run up to this step stay; later ones (and a last line cut short
            by a crash) go, because a resumed run computes them again. 0 starts afresh.
    """

    def __init__(self, path: str | Path | None, keep: int = 0) -> None:
        self._history = read_log(path, keep) if path and keep else []
        self._handle = None
        if path is None:
            return
        # a crash here must not lose the log
        with whole_file(path) as temporary, open(temporary, "w", newline="") as handle:
            for row in self._history:
                self._write(handle, row, header=row is self._history[0])
        self._handle = open(path, "a", newline="")

    @staticmethod
    def _write(handle, row: dict[str, float], header: bool) -> None:
        writer = csv.writer(handle, lineterminator="\n")
        if header:
            writer.writerow(row)
        writer.writerow([repr(value) for value in row.values()])

    def write(self, row: dict[str, float]) -> None:
        """Appends one row; every row has the first one's columns.

        Raises:
            ValueError: the columns differ from those of the rows before.
        """
        if self._history and list(row) != list(self._history[0]):
            raise ValueError(
                f"step {row['step']} logs {list(row)}, the rows before it {list(self._history[0])}: "
                "a model must return the same losses at every step"
            )
        if self._handle is not None:
            self._write(self._handle, row, header=not self._history)
            self._handle.flush()
        self._history.append(row)

    def rows(self) -> list[dict[str, float]]:
        """The run's rows so far, the kept ones first."""
        return list(self._history)

    def close(self) -> None:
        """Closes the file; the rows stay readable."""
        if self._handle is not None:
            self._handle.close()


def read_log(path: str | Path, last_step: int | None = None) -> list[dict[str, float]]:
    """Reads the complete rows of a log.csv, up to ``last_step`` where given; an absent file has none.

    Returns:
        One dictionary per row: ``step`` is an int, all else floats.
    """
    if not Path(path).is_file():
        return []
    with open(path, newline="") as handle:
        text = handle.read()
    header, *lines = text[: text.rfind("\n") + 1].splitlines() or [
        ""
    ]  # the last line may have been cut short
    rows = []
    for values in csv.reader(lines):
        row = dict(zip(header.split(","), map(float, values), strict=True))
        row["step"] = int(row["step"])
        if last_step is None or row["step"] <= last_step:
            rows.append(row)
    return rows


def open_tensorboard(folder: str | Path, start: int):
    """A TensorBoard writer that hides what an interrupted run wrote beyond step ``start``.

    Raises:
        ValueError: the optional package is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "tensorboard is not installed: pip install tensorboard, or train without it"
        ) from error
    return SummaryWriter(str(folder), purge_step=start + 1)


def progress_line(row: dict[str, float]) -> str:
    """The text beside the progress bar, e.g. ``loss 1.5 (objectness 0.7, box 0.8) lr 0.02 13 images/s``."""
    parts = [
        f"{name.removeprefix('loss_')} {value:.3g}" for name, value in row.items() if name.startswith("loss_")
    ]
    rate = f"{row['images_per_second']:.3g} images/s"
    return f"loss {row['loss']:.3g} ({', '.join(parts)}) lr {row['lr']:.2g} {rate}"
