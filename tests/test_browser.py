"""The slider of notebook 08 in a real browser: JupyterLab, Run All, the handle moves, text and picture follow."""

import os
import shutil
from pathlib import Path

import pytest
from lab_browser import CHROMIUM, errors, lab, page_of, run_all

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
NAME = "08_roialign.ipynb"
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium")


@needs_browser
@pytest.mark.slow
def test_run_all_and_the_slider_moves_box_text_and_picture(tmp_path):
    folder, home = tmp_path / "notebooks", tmp_path / "home"
    folder.mkdir(), home.mkdir()
    shutil.copy(NOTEBOOKS / NAME, folder)
    with lab(folder, home) as address, page_of(address, NAME) as page:
        run_all(page, seconds=300)
        assert errors(page) == []
        page.locator(".noUi-handle").first.scroll_into_view_if_needed()
        text, picture = page.locator(".widget-html").first, page.locator("img.widget-image").first
        # JupyterLab draws a cell when it comes into view: on a busy machine the slider is there before its text
        page.wait_for_function(
            "told => document.querySelector('.widget-html')?.innerText.includes(told)"
            " && document.querySelector('img.widget-image')?.src",
            arg="RoIPool 0.000, RoIAlign 0.000", timeout=60_000,
        )  # fmt: skip
        start, drawn = text.inner_text(), picture.get_attribute("src")
        page.locator(".noUi-handle").first.focus()
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        page.wait_for_function(
            "before => document.querySelector('.widget-html').innerText !== before", arg=start, timeout=20_000
        )
        page.wait_for_function(
            "before => document.querySelector('img.widget-image').src !== before", arg=drawn, timeout=20_000
        )
        assert "RoIAlign 0.000" not in text.inner_text()  # three pixels on, every output has changed
        assert picture.bounding_box()["width"] > 600
        if shown := os.environ.get("SCREENSHOTS"):  # a folder: to be looked at
            picture.scroll_into_view_if_needed()
            page.screenshot(path=str(Path(shown) / "08_slider.png"))
