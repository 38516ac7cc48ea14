"""Check of notebook 09: `my_thread_place`."""

import numpy as np
import torch

from .kernels import compiled
from .kit import Wrong, check, expect_close


def _place_mistakes(index, C, h, w) -> dict:
    index = np.asarray(index)

    def order(sizes, names):
        """Places where the last size counts fastest."""
        parts, rest = {}, index
        for size, name in zip(sizes[::-1], names[::-1], strict=True):
            parts[name], rest = rest % size, rest // size
        parts["r"] = rest
        return torch.from_numpy(np.stack([parts[name] for name in "rcpq"], axis=1).astype(np.int64))

    right = order((C, h, w), "cpq")
    return {
        "Channels count fastest here: that is the order of channels_last. In a plain (R, C, h, w) array the columns of "
        "bins do": lambda: order((h, w, C), "pqc"),
        "Row and column of the bin are swapped: p is the row, and q, the column, counts fastest": (
            lambda: right[:, [0, 1, 3, 2]]
        ),
        "Rows of bins count fastest: the last axis of (R, C, h, w) is the column": lambda: order((C, w, h), "cqp"),
        "A row of bins is w long: you divide by h where w belongs": lambda: order((C, w, h), "cpq"),
        "The channel is not cut off at C: it counts on into the next RoI": lambda: torch.stack(
            [right[:, 0], right[:, 0] * C + right[:, 1], right[:, 2], right[:, 3]], dim=1
        ),
        "The order of what is returned is RoI, channel, row, column": lambda: right[:, [3, 2, 1, 0]],
        "Threads are counted from 0": lambda: _shifted(index, C, h, w),
    }


def _shifted(index, C, h, w) -> torch.Tensor:
    places = np.unravel_index(np.maximum(index - 1, 0), (int(index.max()) // (C * h * w) + 1, C, h, w))
    return torch.from_numpy(np.stack(places, axis=1))


def _expect_places(place, index, C: int, h: int, w: int, say: str) -> None:
    got = []
    for i in index:
        answer = place(int(i), C, h, w)
        if not isinstance(answer, tuple) or len(answer) != 4:
            raise Wrong(f"{say}: the result must be four numbers, (r, c, p, q); it is {answer!r}")
        if any(isinstance(number, float) for number in answer):
            raise Wrong(f"{say}: {answer} has a fraction or a float: divide whole numbers with //, which cuts off")
        got.append([int(number) for number in answer])
    size = (int(max(index)) // (C * h * w) + 1, C, h, w)
    wanted = torch.from_numpy(np.stack(np.unravel_index(np.asarray(index), size), axis=1))
    expect_close(torch.tensor(got), wanted, f"{say}, (r, c, p, q) in a row", _place_mistakes(index, C, h, w))


def thread_29_of_the_text(place) -> None:
    _expect_places(place, [29], 3, 2, 4, "thread 29 of RoIs with 3 channels and 2 x 4 bins")


def the_first_threads(place) -> None:
    _expect_places(place, range(10), 3, 2, 4, "threads 0 to 9 of RoIs with 3 channels and 2 x 4 bins")


def every_output_has_one_thread(place) -> None:
    seen = {}
    for index in range(3 * 2 * 3 * 5):
        answer = tuple(place(index, 2, 3, 5))
        if answer in seen:
            raise Wrong(f"threads {seen[answer]} and {index} of 3 RoIs, 2 channels, 3 x 5 bins both work on {answer}")
        seen[answer] = index
    _expect_places(place, range(90), 2, 3, 5, "all threads of 3 RoIs with 2 channels and 3 x 5 bins")


def large_numbers(place) -> None:
    g = torch.Generator().manual_seed(0)
    index = torch.randint(0, 1000 * 256 * 7 * 14, (50,), generator=g).tolist()
    _expect_places(place, index, 256, 7, 14, "threads of 1,000 RoIs with 256 channels and 7 x 14 bins")


def sizes_of_one(place) -> None:
    for sizes in ((1, 1, 1), (1, 7, 1), (1, 1, 7), (5, 1, 1)):
        _expect_places(place, range(12), *sizes, f"threads of RoIs with C, h, w = {sizes}")


def compiled_too(place) -> None:
    _expect_places(compiled(place, parallel=False), range(60), 3, 2, 4, "compiled by Numba")


@check(
    thread_29_of_the_text, the_first_threads, every_output_has_one_thread, sizes_of_one, large_numbers, compiled_too,
)  # fmt: skip
def check_thread_place(student) -> None:
    """The output that a thread works on: index, C, h, w -> (r, c, p, q)."""
