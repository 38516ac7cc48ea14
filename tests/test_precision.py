"""Mixed precision: near float32's losses, float32 weights, exact resume, and what float16 needs besides."""

from dataclasses import replace

import pytest
import torch
from test_training import PLAIN, ToyModel, assert_same_run, raising, run, stop_at

from mrcnn_scratch.datasets.shapes import ShapesDataset
from mrcnn_scratch.logs import read_log
from mrcnn_scratch.model import MaskRCNN, build_model
from mrcnn_scratch.nan_guard import replay_batch
from mrcnn_scratch.precision import LossScaler, autocast
from mrcnn_scratch.schedule import TrainConfig
from mrcnn_scratch.training import NonFiniteLoss, train
from mrcnn_scratch.weights import read_checkpoint

CPU = torch.device("cpu")
CONFIG = TrainConfig(steps=4, batch_size=2, lr=0.01, warmup_steps=2, log_every=1, checkpoint_every=2)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained(precision: str, folder, **arguments):
    data = ShapesDataset("demo", 4, image_size=(64, 80))
    model = build_model("tiny-fpn", data.num_classes, keypoints=data.num_keypoints)
    result = train(model, data, replace(CONFIG, precision=precision), folder, progress=False, **arguments)
    return model, result.losses


def test_the_context_says_what_is_computed_in():
    x = torch.ones(2, 2)
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        with autocast(precision, CPU):
            assert (x @ x).dtype == dtype
            assert (x + x).dtype == torch.float32
    assert (x @ x).dtype == torch.float32


def assert_near_float32(rows: list[dict], folder, bound: float):
    """The losses of the first step, whose weights are the same; the sampled RoIs follow the scores, so a few differ."""
    _, exact = trained("float32", folder)
    assert rows[0]["loss"] != exact[0]["loss"]
    for name in (name for name in exact[0] if name.startswith("loss")):
        assert rows[0][name] == pytest.approx(exact[0][name], rel=bound, abs=bound / 10), name


def test_the_detector_in_bfloat16(tmp_path):
    model, rows = trained("bfloat16", tmp_path / "whole")
    assert all(value.dtype == torch.float32 for value in model.parameters())
    assert_near_float32(rows, tmp_path / "float32", 0.02)
    with pytest.raises(KeyboardInterrupt):
        trained("bfloat16", tmp_path / "parts", on_step=stop_at(3, raising(KeyboardInterrupt())))
    trained("bfloat16", tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    with pytest.raises(ValueError, match="train_config.precision was 'bfloat16' and is now 'float32'"):
        trained("float32", tmp_path / "parts", resume=True)


def test_geometry_stays_float32(monkeypatch, tmp_path):
    """A bfloat16 corner at 100.3 would lie at 100.5, and one at 1000 within 4 pixels."""
    seen = []
    real = MaskRCNN.head_losses

    def watch(self, features, proposals, *rest):
        seen.append((features[0].dtype, *(boxes.dtype for boxes in proposals)))
        return real(self, features, proposals, *rest)

    monkeypatch.setattr(MaskRCNN, "head_losses", watch)
    trained("bfloat16", tmp_path)
    assert set(seen) == {(torch.bfloat16, torch.float32, torch.float32)}


def test_the_detector_in_float16(tmp_path):
    with pytest.raises(KeyboardInterrupt):  # slow on a CPU: two steps are enough
        trained("float16", tmp_path / "parts", on_step=stop_at(2, raising(KeyboardInterrupt())))
    rows = read_log(tmp_path / "parts" / "log.csv")
    assert_near_float32(rows, tmp_path / "float32", 0.02)
    assert [row["skipped_steps"] for row in rows] == [1.0, 1.0]  # the first scale is too large, as a rule
    assert rows[1]["loss_scale"] == 32768.0 and 0 < rows[1]["grad_norm"] < 100


def test_precision_is_one_of_three():
    with pytest.raises(ValueError, match="TrainConfig.precision is 'half': it must be one of float32, bfloat16"):
        TrainConfig(precision="half")


# The loss scale


def test_an_overflow_of_the_scaled_gradient_leaves_one_step_out(tmp_path):
    kept = []
    model = ToyModel()

    def on_step(finished, row):
        kept.append(model.score.weight.detach().clone())

    run(replace(PLAIN, precision="float16", log_every=1), model=model, out_dir=tmp_path, on_step=on_step)
    rows = read_log(tmp_path / "log.csv")
    assert [row["skipped_steps"] for row in rows] == [1.0] * 12  # the toy's gradient, times 65536, is too large
    assert [row["loss_scale"] for row in rows] == [32768.0] * 12
    assert not rows[0]["grad_norm"] < float("inf") and 1 < rows[1]["grad_norm"] < 10
    assert torch.equal(ToyModel().score.weight, kept[0]) and not torch.equal(kept[0], kept[1])
    state = read_checkpoint(tmp_path / "last.safetensors")[1]["loss_scale"]
    assert (state["scale"], state["_growth_tracker"], state["skipped"]) == (32768.0, 11, 1)


def test_the_scale_survives_a_resume(tmp_path):
    config = replace(PLAIN, precision="float16")
    run(config, out_dir=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(config, out_dir=tmp_path / "parts", on_step=stop_at(5, raising(KeyboardInterrupt())))
    run(config, out_dir=tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_gradient_that_no_scale_helps_is_an_error(tmp_path):
    class Hopeless(ToyModel):
        def forward(self, images, targets, generators):
            losses = super().forward(images, targets, generators)
            return {**losses, "loss_box": losses["loss_box"] + (self.score.weight * 0).sum().sqrt()}  # 0 / 0

    model = Hopeless()
    with pytest.raises(NonFiniteLoss, match="step 17: gradient norm not finite") as caught:  # 65536 is 2 ** 16
        run(replace(PLAIN, steps=40, precision="float16"), model=model, out_dir=tmp_path)
    assert torch.equal(model.score.weight, ToyModel().score.weight)
    losses = replay_batch(caught.value.path, Hopeless())
    assert all(loss.isfinite() for loss in losses.values())


def test_other_precisions_have_no_scale(tmp_path):
    scaler = LossScaler("bfloat16", CPU)
    assert not scaler.enabled and scaler.gives_up() and scaler.row() == {} and scaler.state() == {}
    run(replace(PLAIN, precision="bfloat16"), out_dir=tmp_path)
    assert read_checkpoint(tmp_path / "last.safetensors")[1]["loss_scale"] == {}
    assert "loss_scale" not in read_log(tmp_path / "log.csv")[0]
