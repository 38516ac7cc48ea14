"""What the numbers were measured on: processor, versions, commit, and how fast it copies and multiplies."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks.timing import digits

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "torchvision", "numba", "numba-cuda", "numpy", "onnxruntime")


def describe(device: str) -> dict:
    """Processor, cores, caches, load before the run and, for "cuda", the GPU."""
    machine = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "caches": _caches(),
        "system": f"{platform.system()} {platform.machine()}",
        "load": [digits(x, 3) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None,
    }
    if device == "cuda":
        card = torch.cuda.get_device_properties(torch.cuda.current_device())
        machine["gpu"] = {
            "name": card.name,
            "memory_gb": digits(card.total_memory / 1e9),
            "multiprocessors": card.multi_processor_count,
            "compute_capability": f"{card.major}.{card.minor}",
            "cuda": torch.version.cuda,
        }
    return machine


def _processor() -> str:
    """As the processor calls itself, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        facts = dict(part for line in lines if len(part := [x.strip() for x in line.split(":", 1)]) == 2)
    except OSError:
        facts = {}
    if "model name" not in facts:
        return platform.processor() or platform.machine()
    known = ("cpu family", "model", "stepping")
    numbers = ", ".join(f"{key.removeprefix('cpu ')} {facts[key]}" for key in known if key in facts)
    return f"{facts['model name']} ({numbers})" if numbers else facts["model name"]


def _caches() -> dict[str, str]:
    """Level -> size of the first core's data caches, where Linux tells; the last level may be shared."""
    caches = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction":
            caches[f"L{level}"] = size
    return caches


def versions() -> dict[str, str | None]:
    """Of Python and of every package that takes part; None: not installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            module = sys.modules.get(name.replace("-", "_"))
            found[name] = getattr(module, "__version__", None)
    return found


def commit() -> dict:
    """{"commit": hash, "changed": whether tracked files differ from it}; both None outside of git."""
    try:
        head, status = (
            subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "changed": None}
    return {"commit": head, "changed": bool(status)}


# ---- the roofs


def measure_roofs(place: torch.device, clock, quick: bool) -> dict[str, float]:
    """GB/s of copying (bytes read and bytes written both count) and GFLOP/s of a float32 matrix product, by torch.

    memory: 512 MB to another 512 MB, more than any cache holds. cache: 4 MB to another 4 MB. quick: smaller arrays,
    whose "memory" may be a cache.
    """
    side = 512 if quick else 8192 if place.type == "cuda" else 3072
    a, b = (torch.randn(side, side, device=place) for _ in range(2))
    product = torch.empty_like(a)
    seconds = _fastest(lambda: torch.mm(a, b, out=product), clock)
    megabytes = 16 if quick else 512
    return {
        "memory_gb_s": digits(_copy(megabytes, place, clock)),
        "cache_gb_s": digits(_copy(4, place, clock)),
        "memory_mb": megabytes,
        "cache_mb": 4,
        "peak_gflop_s": digits(2 * side**3 / seconds / 1e9),
    }


def _copy(megabytes: int, place: torch.device, clock) -> float:
    source = torch.ones(megabytes * 250_000, device=place)
    target = torch.zeros_like(source)
    return 2 * megabytes * 1e6 / _fastest(lambda: target.copy_(source), clock) / 1e9


def _fastest(call, clock, times: int = 15) -> float:
    """Seconds of a call: the best of many, since a roof is what the machine can do."""
    call()
    plan = clock.plan(call)
    return min(clock.measure(call, plan).ms for _ in range(times)) / 1e3
