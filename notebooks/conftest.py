"""What nbval does not compare: pictures differ by renderer, stderr by machine, widget views by random id."""

NOT_COMPARED = (
    "stderr",
    "text/html",
    "image/svg+xml",
    "image/gif",
    "application/javascript",
    "application/vnd.jupyter.widget-view+json",
)


def pytest_collectstart(collector):
    if hasattr(collector, "skip_compare"):  # nbval's notebooks
        collector.skip_compare += NOT_COMPARED
