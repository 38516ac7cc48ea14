"""What all checks share: trials in their order, a function that is not written yet, and comparison with a hint."""

import functools
import traceback
from collections.abc import Callable, Iterable
from contextlib import contextmanager

import torch
from torch import Tensor


class Wrong(AssertionError):
    """What a check found, for the student to read."""


class NotWritten(Exception):
    """The function gave None or ..., as an exercise does before it is solved."""


Trial = Callable[[Callable], None]  # takes the student's function, raises Wrong


def check(*trials: Trial):
    """Make a check of trials; the decorated function gives its name and says in its docstring what is built.

    A trial's name is its function's, underscores as spaces. Trials stand from the plainest to the hardest: the first
    that goes wrong is the one that is told.
    """

    def decorate(function):
        @functools.wraps(function)
        def run(student: Callable) -> None:
            name = getattr(student, "__name__", "your function")
            for trial in trials:
                try:
                    trial(_written(student))
                except NotWritten:
                    told = ", ".join(_title(each) for each in trials)
                    print(f"{run.__name__}: {name} is not written yet, or returns nothing. What will be tried: {told}.")
                    return
                except Wrong as wrong:
                    raise Wrong(f"{_title(trial)}: {wrong}") from None
                except Exception as error:
                    where = _line_of(student, error)
                    raise Wrong(
                        f"{_title(trial)}: {name} stopped with {type(error).__name__}: {error}{where}"
                    ) from error
            print(f"{run.__name__}: all {len(trials)} trials pass: {', '.join(map(_title, trials))}.")

        run.trials = trials
        return run

    return decorate


def _title(trial: Trial) -> str:
    return trial.__name__.strip("_").replace("_", " ")


def _written(student: Callable) -> Callable:
    """The student's function, which must give something."""

    @functools.wraps(student)
    def call(*arguments, **options):
        result = student(*arguments, **options)
        if result is None or result is ...:
            raise NotWritten
        return result

    return call


def _line_of(student: Callable, error: Exception) -> str:
    """Where in the student's code an error came up."""
    file = getattr(getattr(student, "__code__", None), "co_filename", None)
    lines = [frame.line for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f", in the line `{lines[-1]}`" if lines and lines[-1] else ""


def expect_tensor(got, shape: Iterable[int], what: str = "the result") -> None:
    """Raises Wrong unless ``got`` is a tensor of that shape."""
    if not isinstance(got, Tensor):
        raise Wrong(f"{what} must be a tensor; it is a {type(got).__name__}")
    if tuple(got.shape) != tuple(shape):
        turned = "; rows and columns are swapped" if tuple(got.shape[::-1]) == tuple(shape) else ""
        raise Wrong(f"{what} must have shape {tuple(shape)}; it has {tuple(got.shape)}{turned}")


def expect_close(
    got: Tensor,
    wanted: Tensor,
    say: str,
    mistakes: dict[str, Tensor | Callable[[], Tensor]] | None = None,
    tolerance: float = 1e-4,
) -> None:
    """Raises Wrong unless both agree, with the hint of the known mistake that gives exactly these numbers.

    Args:
        got, wanted: tensors of one shape, which is checked.
        say: what is compared, such as "the IoU of [0, 0, 2, 1] and [1, 0, 3, 1]".
        mistakes: hint -> what that mistake would give; the first that fits is told.
        tolerance: absolute, and relative to numbers larger than 1.
    """
    expect_tensor(got, wanted.shape)
    if _close(got, wanted, tolerance):
        return
    hint = next((hint for hint, value in (mistakes or {}).items() if _fits(got, value, tolerance)), "")
    raise Wrong(f"{say}: {first_difference(got, wanted, tolerance)}{'. ' + hint if hint else ''}")


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance, equal_nan=True)


def _fits(got: Tensor, value, tolerance: float) -> bool:
    value = value() if callable(value) else value
    return value.shape == got.shape and _close(got, value, tolerance)


def first_difference(got: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> str:
    """``at [2, 0] got 0.1748, expected 0.1429``, of the first element that is off."""
    a, b = got.detach().double(), wanted.detach().double()
    off = ~torch.isclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
    place = off.nonzero()[0].tolist()
    at = f"at {place} " if place else ""
    return f"{at}got {_number(a[tuple(place)])}, expected {_number(b[tuple(place)])}"


def _number(x: Tensor) -> str:
    return f"{float(x):.4f}".rstrip("0").rstrip(".")


@contextmanager
def teacher(hint: str):
    """Whatever is found wrong inside ends with this hint."""
    try:
        yield
    except Wrong as wrong:
        raise Wrong(f"{wrong}. {hint}") from None
