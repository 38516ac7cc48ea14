"""What the numbers were measured on: processor, versions, commit, and how fast it copies and multiplies."""

import os
import platform
from pathlib import Path

import torch

from benchmarks.timing import digits
from mrcnn_scratch import provenance
from mrcnn_scratch.provenance import commit as commit

ROOT = provenance.ROOT
PACKAGES = ("torch", "torchvision", "numba", "numba-cuda", "numpy", "onnxruntime")


def describe(device: str) -> dict:
    """Processor, cores, caches, load before the run and, for "cuda", the GPU."""
    machine = {
        "processor": provenance.processor(),
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
    return provenance.versions(*PACKAGES)


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
