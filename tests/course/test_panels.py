"""A notebook's row of axes, and boxes on them."""

import matplotlib
import pytest
import torch

from mrcnn_scratch.visualize.panels import axes_row, draw_boxes


@pytest.fixture
def plt():
    """pyplot without windows, as it was found."""
    before = matplotlib.get_backend()
    import matplotlib.pyplot as plt

    plt.switch_backend("Agg")
    yield plt
    plt.switch_backend(before)


def test_a_notebooks_row_and_boxes(plt):
    panels = axes_row("a", "b", "c", "d", height=4, widths=(2, 1), rows=2)
    assert [panel.get_title() for panel in panels] == list("abcd") and panels[0].figure.get_size_inches()[1] == 4
    panels[0].set(xlim=(0, 10), ylim=(10, 0))
    draw_boxes(panels[0], torch.tensor([[1.0, 2, 4, 7], [0, 0, 20, 20]]), "red", linewidth=3)
    draw_boxes(panels[0], torch.tensor([1.0, 2, 4, 7]), "none", fill=True, facecolor="blue")
    draw_boxes(panels[0], torch.zeros(0, 4), "red")
    boxes = [(patch.get_x(), patch.get_y(), patch.get_width(), patch.get_height()) for patch in panels[0].patches]
    assert boxes == [(1, 2, 3, 5), (0, 0, 20, 20), (1, 2, 3, 5)] and panels[0].get_xlim() == (0, 10)
    assert [patch.get_fill() for patch in panels[0].patches] == [False, False, True]
    plt.close(panels[0].figure)
