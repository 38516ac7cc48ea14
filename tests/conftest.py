"""Shared fixtures. Tests on real photographs want a folder that users do not have: they say so and skip."""

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real COCO images and evaluator fixtures: $MRCNN_REAL_DATA, or ../shared/real."""
    folder = Path(os.environ.get("MRCNN_REAL_DATA", ROOT.parent / "shared" / "real"))
    if not folder.is_dir():
        pytest.skip("real COCO data is not on this machine: point MRCNN_REAL_DATA at it to run this test")
    return folder


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def torch_keeps_its_threads():
    """A test that changes the number of threads, itself or through Numba's start, leaves the next one undisturbed."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)
