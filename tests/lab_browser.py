"""JupyterLab in a headless Chromium, as a student has it: a server of its own, a notebook opened, Run All."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
READY = """() => {
    const panel = window.jupyterapp?.shell.currentWidget;
    return panel?.context?.isReady && panel.sessionContext?.isReady
        && panel.sessionContext.session?.kernel?.status === "idle";
}"""
# every code cell has been run, and nothing is running any more
DONE = """() => {
    const panel = window.jupyterapp.shell.currentWidget;
    const code = panel.content.model.sharedModel.cells.filter(cell => cell.cell_type === "code");
    return code.every(cell => cell.execution_count !== null)
        && panel.sessionContext.session.kernel.status === "idle";
}"""


@contextmanager
def lab(folder: Path, home: Path) -> Iterator[str]:
    """A JupyterLab that serves a folder; yields its address. Its settings stay in ``home``."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = dict(os.environ, HOME=str(home), PYTHONPATH=os.pathsep.join(sys.path[:0] + [str(Path(__file__).parents[1])]))
    for name in ("CONFIG", "DATA", "RUNTIME"):
        env[f"JUPYTER_{name}_DIR"] = str(home / name.lower())
    env.pop("MPLBACKEND", None)
    options = [f"--ServerApp.port={port}", "--ServerApp.ip=127.0.0.1", "--IdentityProvider.token=", "--no-browser"]
    options += ["--LabApp.expose_app_in_browser=True", "--ServerApp.allow_root=True", f"--ServerApp.root_dir={folder}"]
    log = (home / "lab.log").open("w")
    server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], env=env, stdout=log, stderr=log)
    try:
        _wait(f"http://127.0.0.1:{port}/api", server)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=30)
        log.close()


def _wait(address: str, server: subprocess.Popen, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert server.poll() is None, "JupyterLab ended at its start"
        try:
            with urlopen(address, timeout=2) as answer:
                return answer.read()
        except (URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    raise TimeoutError(f"no answer from {address}")


@contextmanager
def page_of(address: str, notebook: str, width: int = 1100, height: int = 1000) -> Iterator:
    """Playwright's page with a notebook open and its kernel idle."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height})
        page.goto(f"{address}/lab/tree/{notebook}?reset")
        page.wait_for_function(READY, timeout=90_000)
        yield page
        browser.close()


def run_all(page, seconds: float) -> None:
    """The command itself: a click on the menu is lost while the kernel starts."""
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function(DONE, timeout=seconds * 1000)


def errors(page) -> list[str]:
    """What cells that failed say, without colours."""
    outputs = page.evaluate(
        """() => window.jupyterapp.shell.currentWidget.content.model.sharedModel.cells
            .filter(cell => cell.cell_type === "code").flatMap(cell => cell.toJSON().outputs)
            .filter(output => output.output_type === "error").map(output => output.traceback.join("\\n"))"""
    )
    return [re.sub(r"\x1b\[[0-9;]*m", "", text) for text in outputs]
