"""The ablation lab's figures: what the eye must be able to tell apart, and nothing cut off."""

from matplotlib.backends.backend_agg import FigureCanvasAgg

from mrcnn_scratch.visualize.ablations import difference_forest, error_maps


def forest(*comparisons):
    base = {"margin": 0.0, "low": 0.1, "high": 0.3, "difference": 0.2, "paper": None}
    return difference_forest([base | {"label": str(i), **c} for i, c in enumerate(comparisons)])


def test_what_was_not_claimed_looks_unlike_what_was_not_resolved():
    figure = forest(
        {"claim": "more", "verdict": "not resolved"},
        {"claim": "none", "verdict": "not resolved"},
        {"claim": "more", "verdict": "reproduced"},
    )
    filled = [line.get_markerfacecolor() for line in figure.axes[0].lines if line.get_marker() == "D"][:3]
    assert filled[1] == "white" and "white" not in (filled[0], filled[2]) and filled[0] != filled[2]
    legend = {text.get_text(): handle.get_markerfacecolor() for text, handle in
              zip(figure.legends[0].get_texts(), figure.legends[0].legend_handles, strict=True)}  # fmt: skip
    assert legend == {"not resolved": filled[0], "nothing claimed": "white", "reproduced": filled[2]}


def test_no_title_of_the_error_maps_is_cut_off():
    names = (*"abcde", "RoIWarp mean, MNC's sampler", "RoIAlign mean, legacy offset")  # as many as Table 2c has
    figure = error_maps(dict.fromkeys(names, [[0.1, 0.2], [0.0, 0.3]]), around=1.5)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    tops = [axes.title.get_window_extent().y1 for axes in figure.axes]
    assert max(tops) <= figure.bbox.y1, (tops, figure.bbox.y1)
    # Where titles get too little height the layout takes it from the maps.
    sides = [axes.get_window_extent().height / figure.dpi for axes in figure.axes]
    assert min(sides) > 0.9, sides
