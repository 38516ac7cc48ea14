"""The committed notebooks: what their sources say, run, nothing of the machine; and the tool that builds."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient.exceptions import CellExecutionError
from test_repository import MACHINE_PATH

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
PICTURES = ("image/png", "image/jpeg", "image/gif")
SIZE_LIMIT = 500_000  # bytes: GitHub stops showing notebooks that are much larger
NETWORK = {"requests", "urllib", "urllib3", "httpx", "aiohttp", "http", "socket", "ftplib", "wget", "gdown"}
DOWNLOADS = re.compile(r"load_state_dict_from_url|download_url|torch\.hub|urlretrieve|hf_hub_download")
SHELL_DOWNLOADS = re.compile(r"^\s*[!%]+\s*(wget|curl|git|pip|conda|apt)", re.M)

spec = importlib.util.spec_from_file_location("build_notebooks", ROOT / "tools" / "build_notebooks.py")
build_notebooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build_notebooks)

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def output_texts(cell: nbformat.NotebookNode) -> list[str]:
    """All that a cell's outputs say in text; pictures are not read."""
    texts = []
    for output in cell.get("outputs", []):
        texts += [output.get("text", ""), *output.get("traceback", [])]
        texts += [str(data) for kind, data in output.get("data", {}).items() if kind not in PICTURES]
    return texts


def network_use(source: str) -> list[str]:
    """What a cell would need the network for; magics count."""
    found = [match.group() for match in SHELL_DOWNLOADS.finditer(source)]
    found += [match.group() for match in DOWNLOADS.finditer(source)]
    for node in ast.walk(ast.parse(TransformerManager().transform_cell(source))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in NETWORK]
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in NETWORK:
            found.append(node.module)
    return found


# ---------------------------------------------------------------- the committed ones


def test_the_first_notebook_is_there():
    assert list(FOLDER.glob("00_*.ipynb")), "notebooks/00_*.ipynb is not built"


def test_every_notebook_agrees_with_its_source(capsys):
    assert build_notebooks.main(["--check"]) == 0, capsys.readouterr().err


@each_notebook
def test_it_was_run_from_top_to_bottom_without_an_error(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type != "error", cell.source
            assert output.get("name") != "stderr", f"a reader would see a warning: {output.get('text')}"


@each_notebook
def test_it_is_small_and_names_no_folder_of_a_machine(path):
    assert path.stat().st_size < SIZE_LIMIT
    for cell in nbformat.read(path, as_version=4).cells:
        for text in [cell.source, *output_texts(cell)]:
            found = MACHINE_PATH.search(text)
            assert not found, text[max(0, found.start() - 60) : found.end() + 60]


@each_notebook
def test_it_needs_no_network(path):
    for cell in code_cells(path):
        assert not network_use(cell.source), cell.source


@pytest.mark.parametrize("kind", ["stream", "text/plain", "text/html", "traceback"])
def test_a_path_in_an_output_is_seen(kind):
    text = "saved\n/" + "home/ada/run.pt"
    if kind == "stream":
        output = nbformat.v4.new_output("stream", name="stdout", text=text)
    elif kind == "traceback":
        output = nbformat.v4.new_output("error", ename="E", evalue="e", traceback=["no", text])
    else:
        output = nbformat.v4.new_output("display_data", data={kind: text, "image/png": "AAAA"})
    texts = output_texts(nbformat.v4.new_code_cell("1", outputs=[output]))
    assert any(MACHINE_PATH.search(text) for text in texts)
    assert "AAAA" not in texts


@pytest.mark.parametrize(
    ("source", "uses"),
    [
        ("import numpy, urllib.request", True),
        ("def f():\n    from requests import get", True),
        ("%matplotlib inline\nimport math", False),
        ("!wget https://example.org/x", True),
        ("%pip install torch", True),
        ("torch.hub.load('a', 'b')", True),
        ("requests = 3  # a name is no import", False),
    ],
)
def test_network_use_is_seen(source, uses):
    assert bool(network_use(source)) == uses


# ---------------------------------------------------------------- the tool that builds them

SAMPLE = '''# %% [markdown]
# # Two plus two
#
# A sum.

# %%
import sys, time
import matplotlib.pyplot as plt
for word in ("one", "two"):
    print(word); sys.stdout.flush(); time.sleep(0.15)

# %% tags=["nbval-ignore-output"]
import ipywidgets, os
ipywidgets.FloatSlider(value=1.0)


# %%
plt.plot([1, 2]); plt.show()

# %%
print(os.path.basename(os.getcwd()), os.environ.get("FAST"))

# %%
2 + 2

# %%
2 + 2
'''


def make_source(folder: Path, text: str, name: str = "00_sample") -> Path:
    (folder / "src").mkdir(exist_ok=True)
    source = folder / "src" / f"{name}.py"
    source.write_text(text, encoding="utf-8")
    return source


def run_tool(folder: Path, *arguments: str) -> int:
    return build_notebooks.main(["--folder", str(folder), *arguments])


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with one notebook, built; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("course") / "notebooks"
    folder.mkdir()
    make_source(folder, SAMPLE)
    assert run_tool(folder) == 0
    return folder


@pytest.fixture
def copy(built, tmp_path) -> Path:
    make_source(tmp_path, SAMPLE)
    (tmp_path / "00_sample.ipynb").write_bytes((built / "00_sample.ipynb").read_bytes())
    return tmp_path


def test_a_built_notebook_was_run_where_readers_run_it(built):
    cells = code_cells(built / "00_sample.ipynb")
    assert [cell.execution_count for cell in cells] == [1, 2, 3, 4, 5, 6]
    assert cells[3].outputs[0].text == "notebooks None\n"
    assert cells[4].outputs[0].data["text/plain"] == "4"
    assert "image/png" in cells[2].outputs[0].data


def test_a_built_notebook_holds_no_times_no_widget_state_and_one_stream(built):
    notebook = nbformat.read(built / "00_sample.ipynb", as_version=4)
    cells = notebook.cells
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert "version" not in notebook.metadata.language_info
    tagged = {"tags": ["nbval-ignore-output"]}
    assert [dict(cell.metadata) for cell in cells] == [{}, {}, tagged, {}, {}, {}, {}]
    assert [output.text for output in cells[1].outputs] == ["one\ntwo\n"]
    (widget,) = cells[2].outputs
    assert set(widget.data) == {"text/plain"}


def test_cell_ids_are_unique_and_come_from_the_cell_alone(built, tmp_path):
    ids = [cell.id for cell in nbformat.read(built / "00_sample.ipynb", as_version=4).cells]
    assert len(set(ids)) == len(ids) == 7
    moved = make_source(tmp_path, "# %% [markdown]\n# A new first cell\n\n" + SAMPLE)
    assert [cell.id for cell in build_notebooks.read_source(moved).cells][1:] == ids


def test_a_rebuild_changes_no_byte(copy):
    before = (copy / "00_sample.ipynb").read_bytes()
    folder = copy / "notebooks"  # its name is printed by a cell
    folder.mkdir()
    make_source(folder, SAMPLE)
    assert run_tool(folder) == 0
    assert (folder / "00_sample.ipynb").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["00_sample.ipynb", "src"]


def test_check_passes_what_was_just_built(copy, capsys):
    assert run_tool(copy, "--check") == 0
    assert "00_sample" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("2 + 2\n", "2 + 3\n", "cell 6 is not what the source has ('2 + 3')"),
        ("A sum.", "A difference.", "cell 1 is not"),
        ('tags=["nbval-ignore-output"]', "", "cell 3 is not"),
        ("# %%\n2 + 2\n", "", "7 cells, its source 6"),
    ],
)
def test_check_sees_an_edited_source(copy, capsys, old, new, complaint):
    make_source(copy, SAMPLE.replace(old, new, 1))
    assert run_tool(copy, "--check") == 1
    assert complaint in capsys.readouterr().err


def test_check_sees_a_notebook_that_was_not_run_or_not_built(copy, capsys):
    path = copy / "00_sample.ipynb"
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, path)
    assert run_tool(copy, "--check") == 1
    complaints = capsys.readouterr().err
    assert "not run from top to bottom" in complaints and "no outputs" in complaints
    path.rename(copy / "01_orphan.ipynb")
    assert run_tool(copy, "--check") == 1
    complaints = capsys.readouterr().err
    assert "00_sample.ipynb has not been built" in complaints
    assert "01_orphan.ipynb has no source" in complaints


def test_a_cell_that_fails_leaves_the_notebook_alone(copy, capsys):
    before = (copy / "00_sample.ipynb").read_bytes()
    source = make_source(copy, "# %%\n1 / 0\n")
    assert run_tool(copy) == 1
    error = capsys.readouterr().err
    assert "00_sample.py failed" in error and "ZeroDivisionError" in error and "\x1b" not in error
    assert (copy / "00_sample.ipynb").read_bytes() == before
    with pytest.raises(CellExecutionError):
        build_notebooks.execute(build_notebooks.read_source(source), copy)


def test_fast_tells_the_cells_and_writes_nothing(tmp_path):
    make_source(tmp_path, '# %%\nimport os\nassert os.environ["FAST"] == "1"\n')
    assert run_tool(tmp_path, "--fast") == 0
    assert not list(tmp_path.glob("*.ipynb"))
    assert run_tool(tmp_path) == 1  # without it the cell's assertion fails


def test_names_choose_and_unknown_names_are_told(copy, capsys):
    make_source(copy, "# %%\n1 / 0\n", "01_broken")
    assert run_tool(copy, "--check", "00") == 0
    assert run_tool(copy, "--check", "broken") == 1
    assert run_tool(copy, "--check", "99") == 2
    assert "no notebook is called 99; there is 00_sample, 01_broken" in capsys.readouterr().err


EXERCISE = '''# %% [markdown]
# # Add
#
# Write it.

# %% tags=["exercise"]
def add(a, b):
    """1 and 2 are 3."""
    ### BEGIN SOLUTION
    total = a + b
    return total
    ### END SOLUTION

# %%
print("sum", add(1, 2))
'''


def test_an_exercise_is_built_without_its_solution_which_follows_folded(tmp_path):
    source = make_source(tmp_path, EXERCISE)
    assert run_tool(tmp_path) == 0
    _, stub, folded, result = nbformat.read(tmp_path / "00_sample.ipynb", as_version=4).cells
    assert stub.source == 'def add(a, b):\n    """1 and 2 are 3."""\n    ...  # your code, about 2 lines'
    assert folded.cell_type == "markdown" and folded.source.startswith("<details><summary>Solution</summary>")
    whole = 'def add(a, b):\n    """1 and 2 are 3."""\n    total = a + b\n    return total'
    assert f"```python\n{whole}\n```" in folded.source
    assert result.outputs[0].text == "sum None\n"
    solved = build_notebooks.read_source(source, solved=True).cells
    assert [cell.cell_type for cell in solved] == ["markdown", "code", "code"] and "a + b" in solved[1].source


def test_solve_runs_the_solutions_and_writes_nothing(tmp_path):
    make_source(tmp_path, EXERCISE + "\n# %%\nassert add(1, 2) == 3\n")
    assert run_tool(tmp_path, "--solve") == 0
    assert not list(tmp_path.glob("*.ipynb"))
    assert run_tool(tmp_path) == 1  # unsolved, the last cell fails


WITHOUT = [("    ### END SOLUTION\n", ""), (' tags=["exercise"]', ""), ("### BEGIN", "# BEGIN")]


@pytest.mark.parametrize("wrong", WITHOUT)
def test_an_exercise_needs_its_tag_and_both_markers(tmp_path, capsys, wrong):
    make_source(tmp_path, EXERCISE.replace(*wrong))
    assert run_tool(tmp_path) == 1
    assert "00_sample.py: an exercise has the tag and pairs of" in capsys.readouterr().err


# ---------------------------------------------------------------- the comparison of outputs

NOISE = '''# %%
import sys, time
print(object(), f"{time.perf_counter() % 60:.3f} s", file=sys.stdout)
print(time.time(), file=sys.stderr)

# %%
from IPython.display import HTML
HTML(f"<b>{time.time()}</b>")

# %%
print("AP 0.500")
'''


@pytest.mark.slow
def test_nbval_ignores_noise_and_sees_a_changed_number(tmp_path):
    make_source(tmp_path, NOISE, "00_noise")
    assert run_tool(tmp_path) == 0
    honest = (tmp_path / "00_noise.ipynb").read_text(encoding="utf-8")
    typed = honest.replace('"AP 0.500\\n"', '"AP 0.501\\n"')
    assert typed != honest
    (tmp_path / "01_typed.ipynb").write_text(typed, encoding="utf-8")
    (tmp_path / "conftest.py").write_bytes((FOLDER / "conftest.py").read_bytes())
    options = ["-q", "-p", "no:cacheprovider", "--nbval", "--nbval-current-env", f"--rootdir={tmp_path}"]
    options.append(f"--nbval-sanitize-with={ROOT / 'tests' / 'sanitize.cfg'}")
    command = [sys.executable, "-m", "pytest", *options, str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert re.search(r"^1 failed, 5 passed", done.stdout, re.M), done.stdout + done.stderr
    assert "01_typed.ipynb::Cell 2" in done.stdout
