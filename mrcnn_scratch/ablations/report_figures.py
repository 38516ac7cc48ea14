"""The report's figures, and the lines that show them."""

import io
from pathlib import Path

from PIL import Image

from ..files import whole_file
from ..visualize import ablations as pictures
from ..visualize import figure_png
from .measures import AROUND, at
from .plan import KINDS, THRESHOLDS


def part_figures(result: dict, tier: str, arms: list[str], out: Path) -> list[str]:
    """Seeds as points, AP against the threshold; and of masks what they look like."""
    stem, lines = f"{result['table']}-{tier}", []
    by_seed = {arm: list(result["arms"][arm].values()) for arm in arms if result["arms"][arm]}
    if not by_seed:
        return ["No run of this part has ended.", ""]
    points = {
        arm: {m: [100 * v[m] for v in values if m in v] for m in main_measures(result, arms) if at(0.5) not in m}
        for arm, values in by_seed.items()
    }
    lines += [save_figure(out, f"{stem}-seeds.png", pictures.seed_points(points), "every seed as a point"), ""]
    panels = {}
    for kind in KINDS:
        names = [f"{kind} {at(threshold)}" for threshold in THRESHOLDS]
        curves = {a: [[100 * v[n] for n in names] for v in vs if names[0] in v] for a, vs in by_seed.items()}
        curves = {arm: seeds for arm, seeds in curves.items() if seeds}
        if curves and len(arms) <= len(pictures.COLOURS):
            panels[kind] = curves
    if panels:
        figure = pictures.threshold_curves(panels)
        lines += [save_figure(out, f"{stem}-thresholds.png", figure, "AP against the threshold"), ""]
    curves = {arm: list(result["curves"][arm].values()) for arm in arms if arm in result.get("curves", {})}
    if curves:
        figure = pictures.step_curves(curves, "mask AP*, points")
        lines += [save_figure(out, f"{stem}-steps.png", figure, "AP* against the training step"), ""]
    kept = result.get("examples", {"objects": [], "arms": {}})
    examples = {arm: kept["arms"][arm] for arm in arms if arm in kept["arms"]}
    if examples:
        figure = pictures.masks_side_by_side(kept["objects"], examples)
        lines += [save_figure(out, f"{stem}-masks.png", figure, "masks of the same objects, not chosen for looks"), ""]
    maps = {arm: result["error_maps"][arm] for arm in arms if arm in result.get("error_maps", {})}
    if maps:
        figure = pictures.error_maps(maps, AROUND)
        lines += [
            save_figure(out, f"{stem}-errors.png", figure, "where pixels are wrong; dashed: the object's box"),
            "",
        ]
    return lines


def main_measures(result: dict, arms: list[str]) -> list[str]:
    """AP, AP at .50 and at .75 of each kind that is measured."""
    known = {name for arm in arms for name in first_run(result, arm)}
    wanted = [f"{kind} {name}" for kind in KINDS for name in ("AP*", "AP", at(0.5), at(0.75))]
    return [name for name in wanted if name in known]


def first_run(result: dict, arm: str) -> dict:
    """The measures of an arm's first seed; empty if no run of it has ended."""
    return next(iter(result["arms"][arm].values()), {})


def save_figure(out: Path, name: str, figure, words: str) -> str:
    """Saves a figure in 256 colours, a third of the size and the same to the eye, and links it."""
    image = Image.open(io.BytesIO(figure_png(figure))).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    with whole_file(out / "figures" / name) as temporary:
        image.save(temporary, format="PNG", optimize=True)
    return f"![{words}](figures/{name})"
