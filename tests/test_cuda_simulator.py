"""The CUDA kernels of the RoI ops in Numba's simulator: it wants a process of its own, see cudasim/."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "cudasim"


@pytest.mark.slow
def test_kernels_equal_the_reference_in_the_simulator():
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER / "simulated_roi_ops.py")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed and int(passed[1]) > 40 and "skipped" not in run.stdout, run.stdout[-500:]


def test_without_a_gpu_the_error_says_what_is_missing():
    code = "from mrcnn_scratch._numba_cuda import require; require()"
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode != 0
    assert "RuntimeError: the CUDA kernels cannot run: torch sees no CUDA device" in run.stderr
