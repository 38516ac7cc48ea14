"""What an installation promises: dependencies that agree wherever they are named, a wheel, a light import."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import mrcnn_scratch

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mrcnn_scratch"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
TESTED = ("notebooks", "test")  # the extras that `make test` installs and constraints.txt therefore pins


def requirements(*extras: str) -> list[Requirement]:
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        lines += EXTRAS[extra]
    return [Requirement(line) for line in lines]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if not line.startswith("#")]
    bad = [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line)]
    assert not bad, f"constraints.txt holds exact versions and comments only, not {bad}"
    pinned = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    assert len(pinned) == len(lines), "constraints.txt names a package twice"
    return pinned


def python(code: str) -> str:
    """What a fresh Python prints; it finds this checkout whether or not it was installed."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---------------------------------------------------------------- dependencies


@pytest.mark.parametrize("requirement", requirements(*TESTED), ids=str)
def test_dependency_is_pinned_inside_its_range(requirement):
    pinned = pins()
    name = canonicalize_name(requirement.name)
    assert name in pinned, f"{name} is in pyproject.toml and not in constraints.txt"
    assert Version(pinned[name]) in requirement.specifier
    assert requirement.specifier, f"{name} needs a lower bound"


def test_pins_respect_the_cuda_extra():
    pinned = pins()
    for requirement in map(Requirement, EXTRAS["cuda"]):
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is None or Version(version) in requirement.specifier, requirement


@pytest.mark.skipif(sys.platform != "linux", reason="the pins were made on Linux")
def test_constraints_pin_everything_that_gets_installed():
    pinned, seen, queue = pins(), set(), requirements(*TESTED)
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        if (name, frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, frozenset(requirement.extras)))
        assert name in pinned, f"{name} gets installed and is not in constraints.txt"
        for line in metadata.requires(name) or []:
            child = Requirement(line)
            extras = requirement.extras or {""}
            if child.marker is None or any(child.marker.evaluate({"extra": extra}) for extra in extras):
                queue.append(child)
    assert len(seen) > 100  # a walk that ends early proves nothing


def test_torchvision_and_onnxruntime_are_for_tests_only():
    everyday = {canonicalize_name(r.name) for r in requirements("notebooks", "docs", "cuda")}
    peers = {"torchvision", "onnxruntime"}
    assert not peers & everyday
    assert peers <= {canonicalize_name(Requirement(line).name) for line in EXTRAS["test"]}


def test_environment_yml_says_what_pyproject_says():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["name"] == PROJECT["name"] == "mrcnn_scratch"
    *conda, pip = environment["dependencies"]
    assert [entry.split("=")[0] for entry in conda] == ["python", "pip"]
    python_version = conda[0].split("=")[1]
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(python_version)
    constraints, project = pip["pip"]
    assert constraints == "-c constraints.txt"
    extras = re.fullmatch(r"-e \.\[([\w,]+)\]", project).group(1).split(",")
    assert tuple(extras) == TESTED
    assert set(extras) <= set(EXTRAS)


def test_make_installs_what_was_tested():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"-e '.[{','.join(TESTED)}]'" in makefile
    assert "-c constraints.txt" in makefile
    stamps = re.findall(r"^\.venv/\.stamp-(\w+): \$\(SETUP\)$", makefile, re.M)
    assert stamps == ["demo", "lab", "test"]
    assert re.search(r"^SETUP := pyproject\.toml constraints\.txt Makefile$", makefile, re.M)


def test_version_is_a_literal_that_tools_read_without_importing():
    assert PROJECT["dynamic"] == ["version"]
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "mrcnn_scratch.__version__"}
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    values = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "__version__"
    ]
    assert values == [mrcnn_scratch.__version__]
    Version(values[0])


def test_wheel_holds_the_package_its_assets_and_nothing_else(tmp_path):
    for name in ("pyproject.toml", "LICENSE"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "README.md").write_text("# mrcnn_scratch\n", encoding="utf-8")
    for path in PACKAGE.rglob("*.py"):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "__init__.py").touch()
    assets = [tmp_path / "mrcnn_scratch" / "assets" / name for name in ("probe.safetensors", "probe.json")]
    for asset in assets:
        asset.parent.mkdir(exist_ok=True)
        asset.write_bytes(b"probe")
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('out'))"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True, timeout=120)
    (wheel,) = (tmp_path / "out").glob("*.whl")
    assert wheel.name.startswith(f"mrcnn_scratch-{mrcnn_scratch.__version__}-py3-none-any")
    names = set(zipfile.ZipFile(wheel).namelist())
    ours = {name for name in names if ".dist-info/" not in name}
    python_files = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py")}
    assert ours == python_files | {path.relative_to(tmp_path).as_posix() for path in assets}
    entry = next(name for name in names if name.endswith("entry_points.txt"))
    assert "mrcnn = mrcnn_scratch.cli:main" in zipfile.ZipFile(wheel).read(entry).decode()


# ---------------------------------------------------------------- the import

PROBE = """
import os, sys, threading, time
import torch
tasks = "/proc/self/task"  # Linux: threads that Python did not start count too
threads = lambda: (threading.active_count(), len(os.listdir(tasks)) if os.path.isdir(tasks) else 0)
before, start = threads(), time.perf_counter()
import mrcnn_scratch
print(time.perf_counter() - start)
print(before == threads())
print(*[name for name in HEAVY if name in sys.modules])
"""
HEAVY = ("numba", "llvmlite", "matplotlib", "pycocotools", "tensorboard", "torchvision", "typer")


def test_import_is_quick_compiles_nothing_and_starts_no_thread():
    runs = [python(f"HEAVY = {HEAVY}\n{PROBE}").split("\n") for _ in range(3)]
    assert min(float(seconds) for seconds, *_ in runs) < 1.0
    for _, same_threads, heavy, *_ in runs:
        assert same_threads == "True", "import mrcnn_scratch started a thread"
        assert heavy == "", f"import mrcnn_scratch also imports {heavy}"


def test_every_public_name_loads_in_a_fresh_process():
    python("import mrcnn_scratch\nfor name in mrcnn_scratch.__all__: getattr(mrcnn_scratch, name)")
