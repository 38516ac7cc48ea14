"""`mrcnn demo` at toy size: what it promises to leave behind, that its two arms are paired, and how it fails."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

from mrcnn_scratch import demo
from mrcnn_scratch.demo import ARMS, DemoConfig, DemoFailed, build_arm, make_data, run_demo
from mrcnn_scratch.logs import read_log
from mrcnn_scratch.weights import read_checkpoint

TOY = replace(
    DemoConfig(), train_images=6, val_images=4,
    train=replace(DemoConfig().train, steps=3, batch_size=2, log_every=1, checkpoint_every=1),
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    return out, run_demo(out, TOY, progress=False)


def test_metrics_are_complete(finished):
    out, returned = finished
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics.keys() == returned.keys()
    for arm in (metrics, metrics["roi_pool"]):
        for kind in ("box", "mask", "keypoints"):
            assert all(0 <= arm[kind][name] <= 1 for name in ("AP", "AP50", "AP75"))
            assert len(arm[kind]["AP_by_iou"]) == 10
    parts = {f"{part}_{arm}" for part in ("train", "evaluate") for arm in ARMS} | {"data", "pictures", "total"}
    assert metrics["seconds"].keys() == parts
    assert all(seconds > 0 for seconds in metrics["seconds"].values())
    assert metrics["seed"] == 0 and metrics["steps"] == 3 and torch.__version__.startswith(metrics["versions"]["torch"])


def test_the_report_is_one_file_with_the_pictures(finished):
    out, metrics = finished
    page = (out / "report.html").read_text()
    sources = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            sources.extend(value for name, value in attrs if name in ("src", "href"))

    Reader().feed(page)
    assert len(sources) == 4 and all(source.startswith("data:image/") for source in sources)
    assert f"{100 * metrics['mask']['AP50']:.1f}" in page


def test_the_arms_differ_in_the_roi_op_alone(finished):
    out, _ = finished
    dataset, _ = make_data(TOY, progress=False)
    align, pool = (build_arm(arm, TOY, dataset) for arm in ARMS)
    assert all(torch.equal(a, b) for a, b in zip(align.state_dict().values(), pool.state_dict().values(), strict=True))
    assert (align.config.roi_op, pool.config.roi_op) == ("align", "pool")
    first = [read_log(out / arm / "log.csv")[0] for arm in ARMS]
    for name in ("loss_objectness", "loss_rpn_box"):  # the RPN comes before the RoI op: equal when the batches are
        assert first[0][name] == first[1][name]
    assert first[0]["loss_mask"] != first[1]["loss_mask"]


def test_a_stopped_demo_goes_on_to_the_same_weights(finished, tmp_path, monkeypatch):
    out, _ = finished
    context = demo.multiprocessing.get_context("spawn")
    datasets = make_data(TOY, progress=False)
    stopped = replace(TOY, train=replace(TOY.train, steps=3))
    monkeypatch.setattr(demo, "train", _stop_after_two)
    demo._run_arm("roi_align", str(tmp_path / "roi_align"), stopped, datasets, False, context.Queue())
    monkeypatch.undo()
    assert read_checkpoint(tmp_path / "roi_align" / "last.safetensors")[1]["step"] == 2
    run_demo(tmp_path, TOY, resume=True, progress=False)
    for arm in ARMS:
        whole, broken = (read_checkpoint(folder / arm / "last.safetensors")[0] for folder in (out, tmp_path))
        assert all(torch.equal(whole[name], broken[name]) for name in whole)


def _stop_after_two(model, dataset, config, folder, **options):
    from mrcnn_scratch.training import train

    def stop(step, row):
        if step == 2:
            raise KeyboardInterrupt

    return train(model, dataset, config, folder, **{**options, "on_step": stop})


def test_a_run_that_fails_is_told_with_its_reason(tmp_path):
    broken = replace(TOY, train=replace(TOY.train, lr=1e30))  # the second step's losses are not finite
    with pytest.raises(DemoFailed, match="NonFiniteLoss"):
        run_demo(tmp_path, broken, progress=False)
    assert not (tmp_path / "metrics.json").exists()
