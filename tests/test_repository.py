"""In the repository: nothing large, nothing of the machine it was written on, a licence, a tidy CI."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]



@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    try:
        command = ["git", "ls-files", "-z"]
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout: nothing says which files belong to the project")
    return [path for name in listing.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def texts(paths: list[Path]):
    for path in paths:
        data = path.read_bytes()
        if b"\0" not in data:
            yield path.relative_to(ROOT).as_posix(), data.decode("utf-8", errors="replace")


def test_no_tracked_file_is_large(tracked):
    shipped = ROOT / "mrcnn_scratch" / "assets" / "tiny-demo.safetensors"  # weights; its own test bounds it
    large = [path.name for path in tracked if path.stat().st_size > 1_000_000 and path != shipped]
    assert not large, f"over 1 MB: {large}"


MACHINE_PATH = re.compile(r"(?<![\w.~$}*\-])/(?:wor[k]|roo[t]|tm[p]|hom[e]|User[s])/[\w.]|[A-Z]:\\+User[s]\\")
INDEX = re.compile(r"(?:index-url|find-links|trusted-host|INDEX_URL)[ =\"']+(?:https?://)?([\w-]+(?:\.[\w-]+)+)|(file:/)/")
PUBLIC_INDEXES = {"pypi.org", "download.pytorch.org"}


@pytest.mark.parametrize(
    ("text", "caught"),
    [
        ("saved to /" + "tmp/run/x.pt", True),
        ("'/" + "home/ada/data'", True),
        ('"/' + "Users/ada'", True),
        ("C:\\" + "Users\\ada", True),
        ("see https://example.org/" + "work/of-art", False),
        ("framework/" + "tmp/x", False),
        ("~/" + "work/data", False),
    ],
)
def test_the_machine_path_pattern(text, caught):
    assert bool(MACHINE_PATH.search(text)) == caught


def test_no_machine_path_is_tracked(tracked):
    found = {name: match.group() for name, text in texts(tracked) if (match := MACHINE_PATH.search(text))}
    assert not found
    here = str(ROOT)
    if len(ROOT.parts) > 2:  # a checkout at /app would match too much
        assert not [name for name, text in texts(tracked) if here in text], here


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("pip install --index-" + "url https://mirror.example/simple x", "mirror.example"),
        ("PIP_INDEX_" + "URL=https://mirror.example/simple", "mirror.example"),
        ("find-" + "links = '10.0.0.7/wheels'", "10.0.0.7"),
        ("--index-url https://download.pytorch.org/whl/cpu", "download.pytorch.org"),
    ],
)
def test_the_registry_pattern(text, host):
    (found,) = INDEX.finditer(text)
    assert found.group(1) == host


def test_no_private_registry_is_named(tracked):
    found = {}
    for name, text in texts(tracked):
        hosts = {match.group(1) or match.group(2) for match in INDEX.finditer(text)} - PUBLIC_INDEXES
        if hosts:
            found[name] = hosts
    assert not found


def test_the_licence_is_mit():
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert licence.startswith("MIT License\n")
    assert "Permission is hereby granted, free of charge" in licence
    assert 'THE SOFTWARE IS PROVIDED "AS IS"' in licence
    assert 'license = "MIT"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_ci_runs_make_test_and_cleans_up():
    script = ROOT / ".ci" / "run"
    text = script.read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in text
    assert re.search(r"^make .*\btest$", text, re.M)
    assert sys.platform == "win32" or script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(script)], check=True)
