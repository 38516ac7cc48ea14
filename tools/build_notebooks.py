"""Build the committed notebooks: notebooks/src/NN_name.py (py:percent), run, becomes notebooks/NN_name.ipynb.

    python tools/build_notebooks.py            all of them
    python tools/build_notebooks.py 03 roi     those whose name holds "03" or "roi"
    python tools/build_notebooks.py --check    runs nothing: is each what its source says, and was it run?
    python tools/build_notebooks.py --fast     runs with FAST=1 and writes nothing: does it still run?
    python tools/build_notebooks.py --solve    the same with every exercise solved: do all checks pass?

A source has its exercises solved, in cells tagged "exercise", the solution between nbgrader's markers. What is built is
what a student opens: there the solution is gone from the cell and lies folded away below it.

A rebuild changes no byte unless a cell or its output changed: cell ids are hashes of the cells, no times are
recorded, streams are joined, widgets leave their text only (their ids are random, their state is megabytes).
"""

import argparse
import hashlib
import os
import re
import sys
import time
from collections import Counter
from pathlib import Path

import jupytext
import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
}
JUPYTEXT_ONLY = ("lines_to_next_cell", "lines_to_end_of_cell_marker")  # about the .py file
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
SOLUTION = re.compile(rf"^( *){BEGIN}\n(.*?)^ *{END}\n?", re.M | re.S)
ANSI_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def read_source(path: Path, solved: bool = False) -> NotebookNode:
    """The notebook that a py:percent file describes: no outputs, our metadata, cell ids that are hashes.

    solved: leave the solutions of the exercises where they are.
    Raises: ValueError for an exercise whose markers do not pair, or a marker outside of one.
    """
    notebook = jupytext.read(path, fmt="py:percent")
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        for key in JUPYTEXT_ONLY:
            cell.metadata.pop(key, None)
    if not solved:
        notebook.cells = [part for cell in notebook.cells for part in _for_a_student(cell, path)]
    seen: Counter[str] = Counter()
    for cell in notebook.cells:
        content = f"{cell.cell_type}\n{cell.source}"
        seen[content] += 1  # the same cell twice still needs two ids
        cell.id = hashlib.sha256(f"{content}\n{seen[content]}".encode()).hexdigest()[:12]
    return notebook


def is_exercise(cell: NotebookNode) -> bool:
    return "exercise" in cell.metadata.get("tags", ())


def _for_a_student(cell: NotebookNode, path: Path) -> list[NotebookNode]:
    """A cell as a student gets it: an exercise without its solution, which follows in a cell that is folded up."""
    found = list(SOLUTION.finditer(cell.source))
    markers = {cell.source.count(BEGIN), cell.source.count(END)}
    if is_exercise(cell) != bool(found) or markers != {len(found)}:
        raise ValueError(f"{path.name}: an exercise has the tag and pairs of {BEGIN} and {END}: {cell.source[:80]!r}")
    if not found:
        return [cell]
    lines = sum(len(match[2].strip().split("\n")) for match in found)
    whole = cell.source.replace(BEGIN, "").replace(END, "")
    whole = "\n".join(line for line in whole.split("\n") if line.strip() or not line.startswith(" "))
    cell.source = SOLUTION.sub(rf"\1...  # your code, about {lines} lines\n", cell.source).rstrip("\n")
    folded = f"<details><summary>Solution</summary>\n\n```python\n{whole.strip()}\n```\n\n</details>"
    return [cell, nbformat.v4.new_markdown_cell(folded)]


def execute(notebook: NotebookNode, folder: Path, fast: bool = False, timeout: int = 600) -> None:
    """Run all cells, in place, in a fresh kernel of this very Python whose working folder is `folder`.

    Args:
        notebook: what read_source gave.
        folder: where the kernel runs; relative paths in the cells start there.
        fast: set FAST=1 for the cells to see.
        timeout: seconds that one cell may take.
    Raises:
        CellExecutionError, CellTimeoutError: a cell failed.
    """
    env = dict(os.environ, PYTHONHASHSEED="0", PYDEVD_DISABLE_FILE_VALIDATION="1")
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
    env.pop("MPLBACKEND", None)  # the kernel sets the inline one
    env.pop("FAST", None)
    if fast:
        env["FAST"] = "1"
    # No folders to look for kernels in: "python3" can only be the Python that runs this.
    manager = AsyncKernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]), kernel_name="python3")
    client = NotebookClient(
        notebook,
        km=manager,
        timeout=timeout,
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
        extra_arguments=["--IPKernelApp.log_level=40"],  # else each start warns that it speaks plain TCP
    )
    client.execute(cwd=str(folder), env=env, cleanup_kc=True)
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET_VIEW, None)


def write(notebook: NotebookNode, path: Path) -> None:
    """Validate and write a notebook whole or not at all."""
    nbformat.validate(notebook)
    part = path.with_suffix(".ipynb.part")
    part.write_text(nbformat.writes(notebook).rstrip("\n") + "\n", encoding="utf-8")
    os.replace(part, path)


def check(source: Path, built: Path) -> list[str]:
    """What is wrong with a built notebook, compared with its source; an empty list when nothing is."""
    if not built.exists():
        return [f"{built.name} has not been built"]
    want, have = read_source(source).cells, nbformat.read(built, as_version=4).cells
    problems = []
    if len(want) != len(have):
        problems.append(f"{built.name} has {len(have)} cells, its source {len(want)}")
    for i, (a, b) in enumerate(zip(want, have, strict=False), start=1):
        if (a.id, a.cell_type, a.source, a.metadata) != (b.get("id"), b.cell_type, b.source, b.metadata):
            start = a.source.strip().split("\n")[0][:60]
            problems.append(f"{built.name}, cell {i} is not what the source has ({start!r})")
    code = [cell for cell in have if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in code]
    if counts != list(range(1, len(code) + 1)):
        problems.append(f"{built.name} was not run from top to bottom in a fresh kernel: it counts {counts}")
    if not any(cell.outputs for cell in code):
        problems.append(f"{built.name} has no outputs")
    return problems


def check_all(sources: list[Path], folder: Path) -> int:
    problems = [problem for source in sources for problem in check(source, folder / f"{source.stem}.ipynb")]
    names = {source.stem for source in (folder / "src").glob("*.py")}
    orphans = [path.name for path in sorted(folder.glob("*.ipynb")) if path.stem not in names]
    problems += [f"{name} has no source in src/" for name in orphans]
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        print("Build again: python tools/build_notebooks.py NAME", file=sys.stderr)
    else:
        print(f"in step with the source and run: {', '.join(source.stem for source in sources)}")
    return 1 if problems else 0


def build_all(sources: list[Path], folder: Path, fast: bool, solved: bool = False) -> int:
    failed = []
    for source in sources:
        target, start = folder / f"{source.stem}.ipynb", time.perf_counter()
        try:
            notebook = read_source(source, solved)
            execute(notebook, folder, fast)
        except (CellExecutionError, CellTimeoutError, ValueError) as error:
            print(f"{source.name} failed, {target.name} stays as it was:", file=sys.stderr)
            print(ANSI_COLOURS.sub("", str(error)), file=sys.stderr)
            failed.append(source.stem)
            continue
        if not fast:
            write(notebook, target)
        size = f"{target.stat().st_size / 1000:.0f} KB" if not fast else "not written"
        print(f"{target.name}: {time.perf_counter() - start:.1f} s, {size}", flush=True)
    return 1 if failed else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="parts of names; all notebooks when left out")
    parser.add_argument("--check", action="store_true", help="compare with the sources, run nothing")
    parser.add_argument("--fast", action="store_true", help="run with FAST=1, write nothing")
    parser.add_argument("--solve", action="store_true", help="as --fast, with every exercise solved")
    parser.add_argument("--folder", type=Path, default=NOTEBOOKS, help="the folder that holds src/")
    options = parser.parse_args(arguments)
    sources = sorted((options.folder / "src").glob("[0-9][0-9]_*.py"))
    unknown = [name for name in options.names if not any(name in source.stem for source in sources)]
    if unknown or not sources:
        have = ", ".join(source.stem for source in sources) or "nothing"
        wanted = " or ".join(unknown) or "NN_name.py"
        print(f"no notebook is called {wanted}; there is {have}", file=sys.stderr)
        return 2
    if options.names:
        sources = [source for source in sources if any(name in source.stem for name in options.names)]
    if options.check:
        return check_all(sources, options.folder)
    return build_all(sources, options.folder, options.fast or options.solve, options.solve)


if __name__ == "__main__":
    sys.exit(main())
