"""docs/scaling.md: its projection is that of benchmarks/scaling.py, whose parts are counted by hand here."""

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import scaling  # noqa: E402
from mrcnn_scratch import build_model  # noqa: E402


def test_the_page_has_the_tables_lines():
    assert scaling.table() in (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


def test_a_ring_by_hand():
    assert scaling.sent_bytes(2, 100) == 100 and scaling.sent_bytes(1, 100) == 0
    assert scaling.sent_bytes(4, 100) == 150
    # 8 machines of 8: 7/4 of 176.5 MB at 100 GB/s, and again at 10 GB/s
    size = 4 * 44_125_173
    assert scaling.exchange_seconds("R50-FPN", 64) == pytest.approx(1.75 * size / 100e9 + 1.75 * size / 10e9)


def test_the_papers_own_run_is_projected_to_its_hours():
    assert scaling.project("R50-FPN", 8)["hours"] == pytest.approx(32, rel=0.01)
    assert scaling.project("R101-FPN", 8)["hours"] == pytest.approx(44, rel=0.01)


@pytest.mark.parametrize("name", scaling.TRAINED)
def test_the_counts_are_the_models(name):
    with torch.device("meta"):
        model = build_model(name, num_classes=81)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == scaling.TRAINED[name]
