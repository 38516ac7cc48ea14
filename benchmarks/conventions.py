"""What a convention costs that changes after training: `python -m benchmarks.conventions`, about five minutes.

A tiny model with boxes, masks and keypoints is trained on the embedded data under torchvision's conventions, as
published weights were. Its validation AP is taken under these, then with one of them at a time as the paper's preset
has it, then with all of them. One seed: differences of a point are not told apart from noise.
"""

import json
from pathlib import Path

from benchmarks.machine import commit, describe, versions
from mrcnn_scratch import build_model
from mrcnn_scratch.demo import DemoConfig, make_data
from mrcnn_scratch.evaluation import evaluate
from mrcnn_scratch.files import whole_file
from mrcnn_scratch.presets import CONVENTIONS, model_config
from mrcnn_scratch.training import train

RESULTS = Path(__file__).parent / "results" / "conventions-cpu.json"
# No test image feels these: they change what is trained, or belong to the weights
NOT_AT_TEST = {"mask_target_aligned", "box_beta", "rpn_straddle", "stride_in_1x1"}
KINDS = ("box", "mask", "keypoints")


def fields_changed() -> dict[str, dict]:
    """Row of the table -> the fields that it changes, to the paper preset's values."""
    ours = model_config(DemoConfig.model)
    changed = {name: getattr(ours, name) for name in CONVENTIONS["torchvision"] if name not in NOT_AT_TEST}
    return {"none": {}, **{f"`{n}`": {n: value} for n, value in changed.items()}, "all of them": changed}


def measure(config: DemoConfig) -> dict[str, dict]:
    """Row of the table -> kind -> AP, AP50, AP75 in 0..1."""
    training, validation = make_data(config)
    keypoints = training.num_keypoints
    model = build_model(config.model, training.num_classes, keypoints=keypoints, conventions="torchvision")
    train(model, training, config.train)
    theirs, scores = model.config, {}
    for row, fields in fields_changed().items():
        model.config = theirs.with_fields(**fields)
        found = evaluate(model, validation, progress=False)
        scores[row] = {kind: {name: float(found[kind][name]) for name in ("AP", "AP50", "AP75")} for kind in KINDS}
        print(row, {kind: round(100 * scores[row][kind]["AP"], 1) for kind in KINDS}, flush=True)
    return scores


def table(scores: dict[str, dict]) -> str:
    """AP / AP75 in points as Markdown."""
    lines = ["| as ours are | box AP / AP75 | mask AP / AP75 | keypoint AP / AP75 |", "|---|--:|--:|--:|"]
    for row, kinds in scores.items():
        cells = [f"{100 * kinds[kind]['AP']:.1f} / {100 * kinds[kind]['AP75']:.1f}" for kind in KINDS]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    scores = measure(DemoConfig())
    facts = {"command": "python -m benchmarks.conventions", **commit(), "versions": versions()}
    with whole_file(RESULTS) as temporary:
        content = {**facts, "machine": describe("cpu"), "scores": scores}
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(table(scores))
