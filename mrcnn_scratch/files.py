"""Files are written whole or not at all: a reader, or a crash, never meets half of one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Gives a temporary neighbour to write to, which takes the name ``path`` when the block ends without an error.

    The bytes reach the disk first. After an error the neighbour is gone and an older ``path`` is as it was.

    Args:
        path: the file; its folder is made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        temporary.chmod(0o644)  # some writers leave a file to its owner alone; others may read results
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
