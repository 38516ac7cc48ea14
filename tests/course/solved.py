"""The functions that the exercises' solutions build, taken out of the notebooks' sources."""

import ast
import functools
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("build_notebooks", ROOT / "tools" / "build_notebooks.py")
build_notebooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build_notebooks)


def code_cells(source: Path) -> list:
    return [cell for cell in build_notebooks.read_source(source, solved=True).cells if cell.cell_type == "code"]


def exercises() -> dict[str, list[str]]:
    """Notebook's number -> the names of the functions that its exercises define."""
    found = {}
    for source in sorted((ROOT / "notebooks" / "src").glob("[0-9][0-9]_*.py")):
        trees = [ast.parse(cell.source) for cell in code_cells(source) if build_notebooks.is_exercise(cell)]
        names = [each.name for tree in trees for each in tree.body if isinstance(each, ast.FunctionDef)]
        found[source.name[:2]] = [name for name in names if name.startswith("my_")]
    return found


@functools.cache
def solutions(number: str) -> dict:
    """Name -> function, of every exercise of a notebook.

    The exercises run in their order after the notebook's first code cell, where its imports stand; nothing else runs.
    """
    (source,) = (ROOT / "notebooks" / "src").glob(f"{number}_*.py")
    cells, names = code_cells(source), {}
    with_agg()
    for cell in [cells[0], *filter(build_notebooks.is_exercise, cells)]:
        exec(compile(cell.source, source.name, "exec"), names)
    return names


def with_agg() -> None:
    """The first cell imports pyplot, and may ask for the notebook's own kind of picture: no window here."""
    import matplotlib

    if "matplotlib.pyplot" not in sys.modules:
        matplotlib.use("Agg")
