"""Results files and the report: every number of it from the runs, the report from the files alone."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command import mrcnn
from PIL import Image

from mrcnn_scratch.ablations import TABLES, load_table
from mrcnn_scratch.ablations.oracle_runs import Oracle
from mrcnn_scratch.ablations.plan import EQUAL, Arm, Comparison, Part, Table, frozen
from mrcnn_scratch.ablations.report import comparison_line, write_report
from mrcnn_scratch.ablations.results import _on_photographs, read_results, write_results
from mrcnn_scratch.ablations.runs import Job, Options, arms_of, save

TINY = ["--images", "8,4", "--set", "steps=6", "--set", "batch_size=2", "--set", "mask_channels=8"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two seeds of Table 2b, by the command."""
    out = tmp_path_factory.mktemp("results")
    assert mrcnn("ablate", "table2b", "--seeds", 2, *TINY, "--out", out, "--workers", 1) == 0
    return out


def test_a_results_file_has_what_a_reader_needs(made):
    result = json.loads((made / "table2b.json").read_text())
    assert {"command", "commit", "device", "versions", "seconds", "preset", "arms", "comparisons"} <= result.keys()
    assert result["command"].startswith("mrcnn ablate table2b --seeds 2 --images 8,4")
    assert result["preset"] == "large" and result["device"]["processor"] and result["versions"]["torch"]
    assert result["seconds"] >= result["run_seconds"] > 0
    assert list(result["arms"]) == ["softmax", "sigmoid", "sigmoid, class-agnostic"]
    protocol = result["protocols"][result["protocol_of"]["softmax"]]
    assert protocol["tier"] == "oracle" and protocol["train"]["steps"] == 6
    assert protocol["fields"] == {"mask_channels": 8}
    for by_seed in result["arms"].values():
        assert list(by_seed) == ["0", "1"]
        assert all({"mask AP*", "mask @.75", "parameters"} <= run.keys() for run in by_seed.values())
    first = result["comparisons"][0]
    assert {"a", "b", "measure", "difference", "low", "high", "verdict"} <= first.keys()
    differences = [
        result["arms"]["sigmoid"][s]["mask AP*"] - result["arms"]["softmax"][s]["mask AP*"] for s in ("0", "1")
    ]
    assert first["differences"] == pytest.approx(differences)
    assert first["difference"] == pytest.approx(np.mean(differences))
    assert [step for step, _ in result["curves"]["softmax"]["0"]] == [1, 2, 3, 4, 5, 6]
    assert len(result["examples"]["objects"]) == len(result["examples"]["arms"]["softmax"]) == 4


def test_the_report_is_made_of_the_files_alone(made, tmp_path):
    shutil.copy(made / "table2b.json", tmp_path)
    assert write_report(tmp_path) == tmp_path / "REPORT.md"
    text = (tmp_path / "REPORT.md").read_text()
    result = read_results(tmp_path / "table2b.json")
    assert "| softmax | 24.8 | 44.1 | 25.1 |" in text and result["command"] in text and result["caveat"] in text
    values = [100 * run["mask AP*"] for run in result["arms"]["sigmoid"].values()]
    low, median, high = result["cells"]["sigmoid"]
    assert 2 < low < median < high < 6  # shapes:large at stride 16
    sizes = f"{median:.1f} ({low:.1f}–{high:.1f})"
    assert f"| sigmoid | {sizes} | 2 | {np.mean(values):.1f} ± {np.std(values, ddof=1):.1f} |" in text
    assert "### Table 8: enhanced COCO minival" in text and "| original baseline, X101-FPN | 36.7 |" in text
    figures = [line.split("(")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    kinds = {name.rpartition("-")[2] for name in figures}
    assert kinds == {"seeds.png", "thresholds.png", "steps.png", "masks.png", "errors.png", "differences.png"}
    for name in figures:
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 100 and (tmp_path / name).stat().st_size < 300_000
    before = text
    write_report(tmp_path)
    assert (tmp_path / "REPORT.md").read_text() == before


def test_a_report_of_nothing_and_of_a_broken_file(tmp_path, capsys):
    assert mrcnn("ablate", "report", "--out", tmp_path) == 2
    assert "holds no results: make some with mrcnn ablate table2c" in capsys.readouterr().err
    for text, told in (("{", "is no JSON"), ('{"table": "table2c"}', "has no 'arms'")):
        (tmp_path / "table2c.json").write_text(text)
        with pytest.raises(ValueError, match=f"table2c.json {told}.*make it again with mrcnn ablate table2c"):
            write_report(tmp_path)
    assert not (tmp_path / "REPORT.md").exists()


RESULTS = Path(__file__).parents[1] / "docs" / "results"


@pytest.mark.parametrize("folder", [RESULTS, RESULTS / "h100"], ids=lambda folder: folder.name)
def test_a_committed_report_says_what_the_committed_results_say(folder, tmp_path):
    for path in folder.glob("*.json"):
        shutil.copy(path, tmp_path)
        result = read_results(path)
        assert result["commit"] and not result["changed"] and not result["failures"], path.name
        assert ("gpu" in result["device"]) == (folder != RESULTS)
    write_report(tmp_path)
    assert (tmp_path / "REPORT.md").read_text() == (folder / "REPORT.md").read_text()


def test_the_readme_says_what_the_committed_results_say():
    arms, readme = read_results(RESULTS / "table2c.json")["arms"], (RESULTS.parents[1] / "README.md").read_text()
    for arm in ("RoIPool max", "RoIWarp mean", "RoIAlign max", "RoIAlign mean"):
        cells = []
        for measure in ("mask AP*", "mask @.50", "mask @.75"):
            values = [100 * run[measure] for run in arms[arm].values()]
            cells.append(f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}")
        assert f"| {arm.replace(' ', ', ')} | {' | '.join(cells)} |" in readme


# ---- comparisons, on runs that were made by hand


ARMS = tuple(Arm(name, frozen()) for name in ("a8", "b8", "a32", "b32"))
BY_HAND = Table(
    "table2e", "By hand", (Part(Oracle(), ARMS),),
    (
        Comparison("a8", "b8", "mask AP*"),
        Comparison(("a32", "b32"), ("a8", "b8"), "mask AP*"),
        Comparison("a8", "b8", "mask @.75", EQUAL, 0.05),
    ),
    "none",
)  # fmt: skip
VALUES = {"a8": [0.50, 0.52, 0.51], "b8": [0.40, 0.41, 0.42], "a32": [0.60, 0.61, 0.62], "b32": [0.30, 0.30, 0.30]}


@pytest.fixture
def by_hand(monkeypatch, tmp_path):
    """Writes runs as they are given, and the results of them; arms without a value have no run."""
    monkeypatch.setattr("mrcnn_scratch.ablations.runs.load_table", lambda name: BY_HAND)

    def write(values: dict, similarities: dict | None = None, made: int = 1, seconds: float = 9.0) -> dict:
        for arm, numbers in values.items():
            for seed, number in enumerate(numbers):
                run = {"measures": {"mask AP*": number, "mask @.75": number}, "made": {"commit": "c1", "versions": {}}}
                run |= {"similarities": similarities[arm]} if similarities else {}
                save(run, Job("table2e", arm, seed, Options()), tmp_path)
        path = write_results(BY_HAND, [0, 1, 2], Options(), tmp_path, "mrcnn ablate", made, seconds)
        return read_results(path)

    return write


def test_differences_are_taken_seed_by_seed(by_hand):
    one, gap, equal = by_hand(VALUES)["comparisons"]
    # .10, .11, .09: mean .10, sd .01, half width 4.3027 * .01 / sqrt(3) = .0248
    assert one["difference"] == pytest.approx(0.10)
    assert (one["low"], one["high"]) == (pytest.approx(0.0752, abs=1e-4), pytest.approx(0.1248, abs=1e-4))
    assert one["verdict"] == "reproduced" and one["seeds"] == 3 and one["instances"] is None
    assert gap["a"] == "a32 - b32" and gap["b"] == "a8 - b8"
    assert gap["differences"] == pytest.approx([0.20, 0.20, 0.23])
    assert equal["verdict"] == "not resolved" and equal["margin"] == 0.05
    assert comparison_line(one) == "a8 - b8, mask AP*: +10.0 (+7.5 to +12.5): reproduced"


def test_a_seed_that_failed_is_left_out_and_one_seed_resolves_nothing(by_hand):
    values = VALUES | {"b8": [0.40], "b32": []}
    one, gap, _ = by_hand(values)["comparisons"]
    assert one["seeds"] == 1 and one["low"] is None and one["verdict"] == "not resolved"
    assert gap["difference"] is None and comparison_line(gap).endswith("no runs")


def test_instances_are_drawn_anew(by_hand):
    """40 objects of IoU .8 against .7 in all but ten: a - b is .25 of an object's credit at .75."""
    similarities = {arm: [0.8] * 40 for arm in VALUES} | {"b8": [0.7] * 10 + [0.8] * 30}
    *_, last = by_hand(VALUES, similarities)["comparisons"]
    assert last["measure"] == "mask @.75" and last["instances"]["count"] == 40
    assert 0.1 <= last["instances"]["low"] < 0.25 < last["instances"]["high"] <= 0.4
    similarities["b8"] = similarities["b8"][:-1]  # measured on other objects: there is nothing to draw
    *_, last = by_hand(VALUES, similarities)["comparisons"]
    assert last["instances"] is None


def test_a_result_written_anew_keeps_what_made_it(by_hand):
    assert by_hand(VALUES)["seconds"] == 9.0
    again = by_hand(VALUES, made=0, seconds=0.1)
    assert again["seconds"] == 9.0 and again["commit"] == "c1"
    assert by_hand(VALUES, made=2, seconds=4.0)["seconds"] == 4.0


def test_the_report_says_no_claim_and_the_other_way_round(by_hand, tmp_path):
    result = by_hand(VALUES | {"a8": [0.2, 0.21, 0.2]})
    assert comparison_line(result["comparisons"][0]).endswith("not resolved: the other way round")
    write_report(tmp_path)
    text = (tmp_path / "REPORT.md").read_text()
    assert "| a8 | b8 | mask AP* | - | -20.7" in text and "not resolved: the other way round" in text
    low, median, high = result["cells"]["a8"]
    assert f"| a8 | {median:.1f} ({low:.1f}–{high:.1f}) | 3 | 20.3 ± 0.6 |" in text


# ---- the command


def test_seeds_by_name(tmp_path):
    assert mrcnn("ablate", "roi-geometry", "--images", "1,3", "--out", tmp_path, "--seed-list", 7, 9) == 0
    arms = json.loads((tmp_path / "roi-geometry.json").read_text())["arms"]
    assert all(list(by_seed) == ["7", "9"] for by_seed in arms.values()) and len(arms) == 28


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["table7"], "there is no table 'table7': choose one of table2a"),
        (["table2c", "--seeds", 2, "--seed-list", "1"], "exclude each other"),
        (["table2c", "--seed-list", "1,x"], "--seed-list 1 x: give whole numbers"),
        (["table2c", "4"], "'4' is not understood"),
        (["table2c", "--images", "8"], "--images 8: give training and validation images"),
        (["table2c", "--images", "8,0"], "give 1 or more of each"),
        (["table2c", "--config", "R50-C4"], "no arm of table2c on the embedded data is a whole detector"),
        (["table3", "--config", "R5-FPN"], "unknown model 'R5-FPN'"),
        (["table3", "--backbone-weights", "x"], "--backbone-weights goes with photographs"),
        (["table2c", "--set", "stepss=3"], "did you mean 'steps'"),
        (["table2c", "--device", "tpu"], "--device is 'tpu'"),
        (["roi-geometry", "--data", "nowhere"], "is measured on the embedded data alone"),
        (["table2c", "--data", "shapes:nothing"], "unknown preset 'nothing'"),
        (["table2c", "--data", "nowhere"], "--data nowhere is no folder"),
        (["table2c", "--data", "coco"], "--root None is no folder"),
        (["table2c", "--set", "mask_channels=0"], "mask_channels is 0"),
        (["table6", "--data", "shapes:nothing"], "unknown preset"),
    ],
)
def test_what_cannot_be_is_refused_at_once(arguments, told, tmp_path, capsys):
    assert mrcnn("ablate", *arguments, "--out", tmp_path / "out") == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.json"))


# ---- photographs


def test_every_arm_on_photographs_is_a_model_that_trains():
    options = Options(data="coco", root="anywhere")
    for name in TABLES:
        table = load_table(name)
        if not table.real:
            continue
        for arm in arms_of(table, options):
            tier, changes = Job(name, arm, 0, options).plan()
            wishes = tier.wishes(changes, 0)
            assert wishes.config in (changes.config, table.real_config)
            assert wishes.train_config(None)[0].steps >= 90_000  # the recipe's
        assert _on_photographs(table), name
    assert {name for name in TABLES if not load_table(name).real} == {"roi-geometry"}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(TABLES) - {"table2a", "roi-geometry"}))
def test_every_arm_runs_on_real_photographs(name, real_data, tmp_path):
    """Two steps of a tiny model, two images: each arm ends with COCO's AP."""
    small = ["--set", "steps=2", "--set", "batch_size=1", "--set", "min_size=64", "--images", "4,2"]
    config = "tiny-fpn" if name in ("table2e", "table5", "table6") else "tiny-c5" if name == "table2d" else "tiny-c4"
    words = ["--data", real_data / "coco_free", "--config", config, "--seeds", 1, *small]
    assert mrcnn("ablate", name, *words, "--out", tmp_path) == 0
    result = json.loads((tmp_path / f"{name}.json").read_text())
    assert list(result["arms"]) == [arm.name for arm in load_table(name).real]
    for by_seed in result["arms"].values():
        assert "box AP" in by_seed["0"] and by_seed["0"]["box AP"] >= 0
    assert result["protocols"][0]["tier"] == "photographs" and result["caveat"] == ""
    write_report(tmp_path)


@pytest.mark.slow
def test_the_papers_backbones_run_on_real_photographs(real_data, tmp_path):
    """Table 2a's own models, ResNeXt-101 included, for one step."""
    small = ["--set", "steps=1", "--set", "batch_size=1", "--set", "min_size=64", "--set", "norm=group"]
    words = ["--data", real_data / "coco_free", "--images", "2,1", "--seeds", 1, *small]
    assert mrcnn("ablate", "table2a", *words, "--out", tmp_path) == 0
    arms = json.loads((tmp_path / "table2a.json").read_text())["arms"]
    sizes = {name: by_seed["0"]["parameters"] for name, by_seed in arms.items()}
    assert sizes["R50-FPN"] < sizes["R101-FPN"] < sizes["X101-FPN"]


@pytest.mark.slow
def test_two_processes_share_each_run_and_one_writes(tmp_path):
    from test_distributed import finish, launch

    folder, out = tmp_path / "data", tmp_path / "out"
    assert mrcnn("data", "make", folder, "--train", 6, "--val", 3) == 0
    words = ["--config", "tiny-fpn", "--seeds", 1, "--set", "steps=2", "--set", "norm=group", "--device", "cpu"]
    command = ["-m", "mrcnn_scratch", "ablate", "table3", "--data", folder, *words, "--out", out]
    status, output = finish(launch(*map(str, command)))
    assert status == 0, output
    assert output.count("box AP: ") == 2 and len(list(out.glob("runs/table3/*.json"))) == 3
    assert mrcnn("ablate", "table3", "--data", folder, *words, "--out", tmp_path / "alone") == 0
    both, alone = (json.loads((path / "table3.json").read_text())["arms"] for path in (out, tmp_path / "alone"))
    for arm, by_seed in alone.items():
        assert by_seed["0"].keys() == both[arm]["0"].keys()
        assert both[arm]["0"]["parameters"] == by_seed["0"]["parameters"]
        assert both[arm]["0"]["box AP"] == pytest.approx(by_seed["0"]["box AP"], abs=0.02)
