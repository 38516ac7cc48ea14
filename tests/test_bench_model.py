"""`mrcnn bench model`: a small run of all of it, and what it says when results differ."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks/ is no part of the package

from command import mrcnn  # noqa: E402

from benchmarks import model, model_pair  # noqa: E402


def test_a_quick_run_compares_measures_and_writes(tmp_path, capsys):
    assert mrcnn("bench", "model", "--quick", "--threads", 1, "--out", tmp_path) == 0
    report = json.loads((tmp_path / "model-cpu-quick.json").read_text())
    detect, train = report["cases"]
    assert detect["agrees"] and detect["differences"]["detections"] == 100
    assert detect["differences"]["paired"] >= 97 and detect["differences"]["pixels"] <= 1e-2
    assert train["agrees"] and train["differences"]["losses"] < 1e-4
    assert all(case["ratio"]["median"] > 0 and case["needed"] is None for case in report["cases"])
    assert set(train["memory_mb"]) == {"torchvision", "ours"} and min(train["memory_mb"].values()) > 100
    page = (tmp_path / "model-cpu-quick.md").read_text()
    assert page in capsys.readouterr().out and "| R50-FPN | training step | 1 of 128 x 160 | float32 |" in page


def test_in_mixed_precision(tmp_path):
    words = ["--quick", "--threads", 1, "--precisions", "bfloat16", "--out", tmp_path]
    assert mrcnn("bench", "model", *words) == 0
    cases = json.loads((tmp_path / "model-cpu-quick.json").read_text())["cases"]
    assert [(case["precision"], case["agrees"]) for case in cases] == [("bfloat16", None)] * 2
    assert not any("memory_mb" in case for case in cases)  # that is measured in float32
    assert 1e-5 < cases[1]["differences"]["losses"]  # of the same order as rounding: it was not float32
    assert cases[1]["images_per_second"]["ours"] == pytest.approx(1e3 / cases[1]["ms"]["ours"]["median"], rel=1e-3)


def test_another_models_detections_do_not_pass_as_the_same():
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40]])
    one = {"boxes": boxes, "labels": torch.tensor([1, 2]), "scores": torch.tensor([0.9, 0.8]),
           "masks": torch.zeros(2, 1, 4, 4)}  # fmt: skip
    assert model_pair.same_detections(one, one)["paired"] == 2
    moved = one | {"boxes": boxes + torch.tensor([[0.0], [0.5]])}
    assert model_pair.same_detections(moved, one)["paired"] == 1
    renamed = one | {"labels": torch.tensor([1, 3])}
    assert model_pair.same_detections(renamed, one)["paired"] == 1
    fewer = {name: value[:1] for name, value in one.items()}
    assert model_pair.same_detections(fewer, one)["paired"] == 0


@pytest.mark.parametrize(
    "precision, differences, told",
    [
        ("float32", {"losses": 1e-6}, True),
        ("float32", {"losses": 0.5}, False),
        ("float32", {"detections": 100, "paired": 99, "pixels": 1e-3}, True),
        ("float32", {"detections": 100, "paired": 90, "pixels": 1e-3}, False),
        ("float32", {"detections": 0, "paired": 0}, False),
        ("bfloat16", {"losses": 0.5}, None),
    ],
)
def test_what_counts_as_the_same(precision, differences, told):
    assert model.agrees(precision, differences) is told


def test_a_gpu_that_is_not_there_is_a_message(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert model.main(["--device", "cuda", "--out", str(tmp_path)]) == 2
    assert "sees no CUDA device" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_tf32_on_a_cpu_is_refused_and_not_measured_as_something_else(capsys, tmp_path):
    assert model.main(["--precisions", "tf32", "--out", str(tmp_path)]) == 2
    assert "only an NVIDIA GPU has it" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_products_are_in_the_precision_that_is_asked_for_and_it_is_put_back():
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    for precision, tf32, dtype in (("float32", False, torch.float32), ("tf32", True, torch.float32),
                                   ("bfloat16", False, torch.bfloat16)):  # fmt: skip
        with model.products(precision, torch.device("cpu")):
            assert [backend.allow_tf32 for backend in backends] == [tf32, tf32]
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert [backend.allow_tf32 for backend in backends] == before
