"""Who imports whom: geometry <- roi_ops <- heads <- model <- training <- cli, and never the other way."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import mrcnn_scratch

PACKAGE = Path(mrcnn_scratch.__file__).resolve().parent

# Inner to outer. A module that is not named here belongs to the outermost layer that it imports from.
LAYERS = (
    {"boxes", "anchors", "matching", "nms"},
    {"roi_ops"},
    {"resnet", "fpn", "rpn", "box_head", "mask_head", "keypoint_head"},
    {"model"},
    {"training"},
    {"cli", "course", "ablations", "__main__"},
)
HEADS = {"box_head", "mask_head", "keypoint_head", "roi_heads"}
BACKENDS = {"reference", "vectorized", "numba_cpu", "numba_cuda"}


def module_name(path: Path) -> str:
    """`roi_ops.levels` for roi_ops/levels.py, `roi_ops` for its __init__.py, "" for the package's own."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def resolve(dotted: str) -> str:
    """The module of ours that `import mrcnn_scratch.<dotted>` reaches: public names count as their home."""
    if dotted in MODULES:
        return dotted
    parent, _, name = dotted.rpartition(".")
    return mrcnn_scratch._HOME.get(name, "") if not parent else resolve(parent)


def imports(path: Path) -> tuple[set[str], set[str]]:
    """(modules of ours, top-level names of others) that a file imports anywhere, inside functions too."""
    ours, others = set(), set()
    package = path.parent.relative_to(PACKAGE.parent).parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            stem = ".".join(filter(None, [base, node.module]))
            names = [f"{stem}.{alias.name}" for alias in node.names]
        for name in names:
            top, _, rest = name.partition(".")
            ours.add(resolve(rest)) if top == "mrcnn_scratch" else others.add(top)
    return ours - {module_name(path)}, others


GRAPH = {name: imports(path)[0] - {""} for name, path in MODULES.items() if name}


def layer(name: str) -> int:
    top = name.split(".")[0]
    named = [i for i, names in enumerate(LAYERS) if top in names]
    return named[0] if named else max((layer(child) for child in GRAPH[name]), default=0)


def test_the_scan_sees_imports():
    assert "boxes" in GRAPH["matching"]
    assert "torch" in imports(MODULES["boxes"])[1]
    assert {"rpn", "roi_heads", "backbones"} <= GRAPH["model"]


def test_imports_have_no_cycle():
    # A package's own front imports its parts, and the parts may ask the front for nothing.
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other in a circle: {' <- '.join(error.args[1])}")


def test_imports_point_one_way():
    wrong = [
        f"{name} (layer {layer(name)}) imports {child} (layer {layer(child)})"
        for name, children in GRAPH.items()
        for child in children
        if layer(child) > layer(name)
    ]
    assert not wrong, wrong


def test_nothing_inside_imports_the_command_line_the_course_or_the_ablations():
    outer = LAYERS[-1]
    for name, children in GRAPH.items():
        if name.split(".")[0] not in outer:
            assert not {child.split(".")[0] for child in children} & outer, name


def test_only_the_front_of_roi_ops_knows_its_backends():
    """But for the course, whose checks and pictures are about the plain loops themselves."""
    backends = {f"roi_ops.{name}" for name in BACKENDS}
    for name, children in GRAPH.items():
        if name not in {"roi_ops", "visualize.roi_grids", *backends} and not name.startswith("course."):
            assert not children & backends, f"{name} imports {children & backends}: ask roi_ops instead"


def test_only_the_model_knows_both_rpn_and_heads():
    knows = {name: children | {name} for name, children in GRAPH.items()}
    both = [name for name, known in knows.items() if "rpn" in known and known & HEADS]
    assert both == ["model"]


def test_the_front_imports_geometry_only():
    assert all(layer(name) == 0 for name in imports(MODULES[""])[0] - {""})


def test_torchvision_is_never_imported():
    for name, path in MODULES.items():
        assert not imports(path)[1] & {"torchvision", "onnxruntime", "detectron2"}, name
        by_name = re.search(r"(import_module|__import__)\(\W*torchvision", path.read_text(encoding="utf-8"))
        assert not by_name, name
