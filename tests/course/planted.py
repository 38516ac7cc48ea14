"""What every test of a check needs: a planted wrong solution must fail, with its own hint."""

import pytest

from mrcnn_scratch.course.checks import Wrong


def fails_with(check, wrong, hint: str) -> None:
    """The check refuses the function and says so; without a hint of its own a mistake teaches nothing."""
    with pytest.raises(Wrong) as told:
        check(wrong)
    assert hint in str(told.value), str(told.value)


def passes(check, function, capsys) -> None:
    check(function)
    assert f"{check.__name__}: all {len(check.trials)} trials pass" in capsys.readouterr().out


def waits(check, capsys) -> None:
    """An exercise that is not written yet stops no notebook."""

    def my_function(*arguments, **options):
        ...

    check(my_function)
    assert "my_function is not written yet" in capsys.readouterr().out
