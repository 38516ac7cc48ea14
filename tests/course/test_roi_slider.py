"""The slider of notebook 08 without a browser: set its value, and picture and text follow."""

import io

import pytest
import torch
from PIL import Image

from mrcnn_scratch.roi_ops import roi_align, roi_pool
from mrcnn_scratch.visualize.roi_slider import pooled_and_aligned, roi_frames, roi_slider

FEATURES = torch.rand(5, 8, generator=torch.Generator().manual_seed(0))
BOX = torch.tensor([33.0, 18.0, 66.0, 50.0])  # 2.0625 and 4.125 cells across
SIZE, STRIDE = (3, 2), 16


@pytest.fixture
def widgets():
    pytest.importorskip("ipywidgets")
    return roi_slider(FEATURES, BOX, SIZE, STRIDE, pixels=30).children


def test_the_picture_follows_the_slider(widgets):
    slider, _, picture = widgets
    seen = [picture.value]
    for pixels in (5, 6, 0):
        slider.value = pixels
        seen.append(picture.value)
    assert len(set(seen)) == 3 and seen[0] == seen[3]  # back where it began
    width, height = Image.open(io.BytesIO(seen[1])).size
    assert width == 720 and 150 < height < 300


def test_the_text_tells_who_has_noticed(widgets):
    slider, text, _ = widgets
    assert "RoIPool 0.000, RoIAlign 0.000" in text.value
    slider.value = 4  # 37 to 70 pixels: 2.3 and 4.4 cells, no corner passes a half
    assert "from x = 37 to 70, RoIPool reads 32 to 80" in text.value
    assert "RoIPool 0.000" in text.value and "RoIAlign 0.000" not in text.value
    slider.value = 30
    assert "from x = 63 to 96, RoIPool reads 64 to 112" in text.value and "RoIPool 0.000" not in text.value


def test_the_slider_goes_no_further_than_it_was_told(widgets):
    slider, *_ = widgets
    slider.value = 1000
    assert slider.value == 30


def test_its_outputs_are_the_packages():
    case = FEATURES[None, None], [BOX[None]], SIZE, 1 / STRIDE
    pooled, aligned = pooled_and_aligned(FEATURES, BOX, SIZE, STRIDE)
    torch.testing.assert_close(pooled, roi_pool(*case)[0, 0])
    torch.testing.assert_close(aligned, roi_align(*case)[0, 0])


def test_the_static_picture_has_a_row_for_each_box_and_its_numbers():
    figure = roi_frames(FEATURES, torch.stack([BOX, BOX + 3]), SIZE, STRIDE)
    assert len(figure.axes) == 8
    told = [[text.get_text() for text in axes.texts] for axes in figure.axes[2:4]]
    wanted = pooled_and_aligned(FEATURES, BOX, SIZE, STRIDE)
    assert told == [[f"{value:.2f}" for value in output.flatten()] for output in wanted]


def test_the_module_needs_no_widgets_to_be_imported():
    """A machine that trains has no ipywidgets, and its pictures need none."""
    import ast
    import inspect

    from mrcnn_scratch.visualize import roi_slider as module

    tree = ast.parse(inspect.getsource(module))
    assert not [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom) and "ipywidgets" in ast.dump(n)]
