"""The recipes side by side, as text for a terminal and as the tables of docs/recipes.md.

``python -m mrcnn_scratch.recipe_report docs/recipes.md`` writes the tables anew.
"""

import sys
from dataclasses import dataclass, fields
from pathlib import Path

from .config import ModelConfig
from .recipe_sources import ELSEWHERE, OURS, SILENT, applies, sources, yaml_name
from .recipes import STYLES, Recipe, recipe
from .schedule import TrainConfig

TITLES = {"paper": "paper", "detectron": "Detectron", "torchvision": "torchvision"}
NONE = "-"  # a code base that has no such model, or no such choice


@dataclass(frozen=True)
class Choice:
    """What the three code bases choose for one field, and where each says so.

    Attributes:
        part: "training" or "model".
        field: of TrainConfig or ModelConfig.
        values: style -> value as text, ``NONE`` where the code base has no such model.
        sources: style -> file or section.
    """

    part: str
    field: str
    values: dict[str, str]
    sources: dict[str, str]

    @property
    def differs(self) -> bool:
        """Whether two code bases that have the model choose differently."""
        return len(set(self.values.values()) - {NONE}) > 1


def compare(name: str, keypoints: int = 0, masks: bool = True) -> list[Choice]:
    """Every field of a model's recipes that any code base chooses, in the order of the configurations.

    Args:
        name: a key of :data:`~mrcnn_scratch.presets.PRESETS`.
        keypoints: J of the keypoint branch, 0 for none.
        masks: whether there is a mask branch.

    Raises:
        ValueError: an unknown name.
    """
    found = {style: _recipe_or_none(name, style, keypoints) for style in STYLES}
    branches = {"keypoints": keypoints, "masks": masks}
    configs = {style: made and made.model_config(**branches) for style, made in found.items()}
    paper = configs["paper"]
    wanted = [("training", f.name) for f in fields(TrainConfig) if f.name not in OURS]
    wanted += [("model", f.name) for f in fields(ModelConfig) if applies(f.name, paper)]
    choices = []
    for part, field in wanted:
        told = dict(zip(STYLES, sources(field, paper), strict=True))
        values = {style: NONE for style in STYLES}
        for style, made in found.items():
            if made:
                held = made.train if part == "training" else configs[style]
                values[style] = _text(field, getattr(held, field), made)
        choices.append(Choice(part, field, values, {s: told[s] if found[s] else NONE for s in STYLES}))
    return choices


def show(made: Recipe, keypoints: int = 0, masks: bool = True) -> str:
    """A recipe for a terminal: each field, its value and source, and what others do where they differ."""
    others = [style for style in STYLES if style != made.style]
    lines = [f"{made.name}: the recipe {made.style!r}, and below a field where {' or '.join(others)} differ"]
    part = None
    for choice in compare(made.name, keypoints, masks):
        if choice.part != part:
            part = choice.part
            lines.append(f"\n{part}")
        source = choice.sources[made.style]
        if source == SILENT and choice.values["paper"] == choice.values["detectron"]:
            source += f": as Detectron's {choice.sources['detectron']}"
        lines.append(f"  {choice.field:24}{choice.values[made.style]:31}{source}")
        lines += [
            f"  {'':24}{choice.values[style]:31}{style}: {choice.sources[style]}"
            for style in others
            if choice.values[style] not in (NONE, choice.values[made.style])
        ]
    lines.append("\nnot a matter of fields")
    for subject, *said, here in ELSEWHERE:
        told = dict(zip(STYLES, said, strict=True))
        lines.append(f"  {subject}: here {here}")
        lines += [f"      {style}: {told[style]}" for style in STYLES]
    return "\n".join(lines)


def table(name: str, keypoints: int = 0, masks: bool = True, beside: list[Choice] = ()) -> str:
    """The recipes of a model as a Markdown table.

    Args:
        name, keypoints, masks: see :func:`compare`.
        beside: another model's choices: only what is not there as it is here is kept.
    """
    known = {(choice.part, choice.field): choice.values for choice in beside}
    file = yaml_name(recipe(name).model_config(keypoints=keypoints, masks=masks))
    rows = [f"| field | {' | '.join(TITLES.values())} | sources, in this order |", "|---|---|---|---|---|"]
    for choice in compare(name, keypoints, masks):
        other = known.get((choice.part, choice.field), {})
        if any(choice.values[style] not in (NONE, other.get(style)) for style in STYLES):
            values = " | ".join(choice.values[style] for style in STYLES)
            told = "; ".join(choice.sources[style] for style in STYLES).replace(f"{file}:", "yaml:")
            rows.append(f"| `{choice.field}` | {values} | {told} |")
    return "\n".join([f"Detectron's yaml: `{file}`", "", *rows])


def elsewhere() -> str:
    """What no field switches, as a Markdown table."""
    rows = [f"| | {' | '.join(TITLES.values())} | here |", "|---|---|---|---|---|"]
    return "\n".join([*rows, *(f"| {' | '.join(row)} |" for row in ELSEWHERE)])


def tables() -> dict[str, str]:
    """The tables of docs/recipes.md by their names."""
    fpn = compare("R50-FPN")
    return {
        "R50-FPN": table("R50-FPN"),
        "R50-C4": table("R50-C4", beside=fpn),
        "X101-FPN": table("X101-FPN", beside=fpn),
        "keypoints": table("R50-FPN", keypoints=17, masks=False, beside=fpn),
        "elsewhere": elsewhere(),
    }


def with_tables(page: str) -> str:
    """A page whose ``<!-- table NAME -->`` ... ``<!-- end -->`` hold the tables as they are now.

    Raises:
        ValueError: a table that the page has no place for.
    """
    for name, text in tables().items():
        start, end = f"<!-- table {name} -->\n", "<!-- end -->"
        before, found, after = page.partition(start)
        old, closed, rest = after.partition(end)
        if not found or not closed or "<!-- table" in old:
            raise ValueError(f"the page has no place for the table {name}: write {start.strip()} and {end}")
        page = f"{before}{start}{text}\n{end}{rest}"
    return page


def _recipe_or_none(name: str, style: str, keypoints: int) -> Recipe | None:
    try:
        return recipe(name, style, keypoints)
    except ValueError:
        if style == "paper":  # every model has that one: then the name is wrong
            raise
        return None


def _text(field: str, value, made: Recipe) -> str:
    """A value as a reader wants it."""
    train = made.train
    if field == "steps" and made.epochs:
        return f"{value:,} ({made.epochs} epochs)"
    if field == "milestones":
        return " and ".join(f"{round(share * train.steps):,}" for share in value) + f" of {train.steps:,}"
    if field == "train_min_sizes" and len(value) > 10:
        return f"{value[0]} to {value[-1]}"
    if isinstance(value, tuple):
        return ", ".join(_text("", item, made) for item in value) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)


def main(path: str) -> None:
    """Writes the tables of a page anew."""
    page = Path(path)
    page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
