"""The CUDA kernels of the RoI ops in Numba's simulator: it wants a process of its own, see cudasim/."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mrcnn_scratch import _numba_cuda

FOLDER = Path(__file__).parent / "cudasim"


@pytest.mark.slow
def test_kernels_equal_the_reference_in_the_simulator():
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "OMP_NUM_THREADS": "1"}
    files = map(str, sorted(FOLDER.glob("simulated_*.py")))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed and int(passed[1]) > 40 and "skipped" not in run.stdout, run.stdout[-500:]


def test_without_a_gpu_the_error_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(_numba_cuda, "why_not", _numba_cuda.why_not.__wrapped__)  # ask again
    with pytest.raises(RuntimeError, match="the CUDA kernels cannot run: torch sees no CUDA device"):
        _numba_cuda.require()


@pytest.mark.parametrize("installed", [True, False])
def test_where_numba_cannot_compile_the_error_says_what_to_install(installed, monkeypatch):
    def jit(*arguments, **options):
        raise OSError("libnvvm\n  not found")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(_numba_cuda.cuda, "jit", jit)
    monkeypatch.setattr(_numba_cuda, "_NUMBA_CUDA", installed)
    reason = _numba_cuda.why_not.__wrapped__()
    assert "(libnvvm not found)" in reason and 'pip install "mrcnn_scratch[cuda]"' in reason
    assert ("numba-cuda is not installed" in reason) == (not installed)
