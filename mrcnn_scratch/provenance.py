"""Where a number comes from: the versions, the commit and the machine that made it."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def versions(*packages: str) -> dict[str, str | None]:
    """Of Python and of the named packages; None: not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def commit() -> dict:
    """{"commit": hash, "changed": whether tracked files differ from it}; both None outside of this project's git."""
    try:
        top, head, status = (
            subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30).stdout
            for words in (
                ["rev-parse", "--show-toplevel"], ["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"]
            )
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "changed": None}
    if Path(top.strip()) != ROOT:  # installed somewhere inside another project's checkout
        return {"commit": None, "changed": None}
    return {"commit": head.strip(), "changed": bool(status.strip())}


def processor() -> str:
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
