"""The training loop, on a tiny model that honours the detector's contract, so that every number is known."""

import json
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_scratch import files, nan_guard, roi_ops, training, weights
from mrcnn_scratch.batches import MicroBatch, batch_indices, generator_for, load_step, load_steps
from mrcnn_scratch.logs import read_log
from mrcnn_scratch.nan_guard import Guard
from mrcnn_scratch.schedule import PAPER, TrainConfig, lr_at
from mrcnn_scratch.training import NonFiniteLoss, make_optimizer, train, train_step
from mrcnn_scratch.training_step import make_learner
from mrcnn_scratch.weights import read_checkpoint


@dataclass(frozen=True)
class ToyConfig:
    num_classes: int = 3
    keypoints: int = 0
    width: int = 4


class ToyModel(torch.nn.Module):
    """Batch norm, a sampled loss and a frozen parameter: all that an exact resume can get wrong."""

    def __init__(self, config: ToyConfig = ToyConfig(), seed: int = 0):  # noqa: B008  frozen
        super().__init__()
        self.config = config
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv = torch.nn.Conv2d(3, config.width, 3)
            self.norm = torch.nn.BatchNorm2d(config.width)
            self.score = torch.nn.Linear(config.width, config.num_classes)
            self.frozen = torch.nn.Linear(2, 2).requires_grad_(False)

    def forward(self, images, targets, generators):
        sizes = {image.shape for image in images}
        if len(sizes) > 1:  # augmented to different sizes
            side = min(min(image.shape[1:]) for image in images)
            images = [image[:, :side, :side] for image in images]
        features = self.norm(self.conv(torch.stack(images))).relu()  # (N, C, H, W)
        sampled = [torch.rand(features.shape[-2:], generator=generator) < 0.5 for generator in generators]
        pooled = torch.stack([f[:, s].mean(-1) for f, s in zip(features, sampled, strict=True)])  # (N, C)
        labels = torch.stack([target["labels"][0] for target in targets])
        centres = torch.stack([target["boxes"][0].view(2, 2).mean() for target in targets]) / 16
        return {
            "loss_classifier": torch.nn.functional.cross_entropy(self.score(pooled), labels),
            "loss_box": (pooled.sum(1) - centres).square().mean(),
        }


class ToyDataset:
    class_names = ["background", "disc", "ring"]
    num_classes = 3
    num_keypoints = 0
    flip_pairs = ()
    label_to_category = {1: 7, 2: 9}

    def __init__(self, size: int = 7):
        self.image_ids = [100 + index for index in range(size)]

    def __len__(self):
        return len(self.image_ids)

    def __getitem__(self, index):
        image = torch.rand(3, 12, 16, generator=generator_for(1, index))
        masks = torch.zeros(1, 12, 16, dtype=torch.uint8)
        masks[:, 3:9, 2:10] = 1
        target = {
            "boxes": torch.tensor([[2.0, 3.0, 10.0, 9.0 + index / 8]]),
            "labels": torch.tensor([1 + index % 2]),
            "masks": masks,
            "image_id": self.image_ids[index],
            "area": torch.tensor([48.0]),
            "iscrowd": torch.zeros(1, dtype=torch.int64),
        }
        return image, target


PLAIN = TrainConfig(
    steps=12, batch_size=2, lr=0.05, warmup_steps=4, log_every=2, checkpoint_every=4, flip=0.0, clip_norm=1.0
)


@pytest.fixture(autouse=True)
def sigint_is_delivered():
    """A shell starts background jobs with SIGINT ignored, and the loop respects that: set our own."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def one_thread():
    """Two OpenMP threads on a busy machine wait for each other: 13 times slower than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(config=PLAIN, dataset=None, model=None, **kwargs):
    model = ToyModel() if model is None else model
    result = train(model, ToyDataset() if dataset is None else dataset, config, progress=False, **kwargs)
    return model, result


def without_rate(rows):
    """Rows without the one column that a clock fills."""
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


def stop_at(step: int, how):
    def on_step(finished, row):
        if finished == step:
            how()

    return on_step


def raising(error):
    def act():
        raise error

    return act


def assert_same_run(folder_a: Path, folder_b: Path):
    """Weights, buffers, optimizer state and log: equal bit for bit."""
    tensors_a, facts_a = read_checkpoint(folder_a / "last.safetensors")
    tensors_b, facts_b = read_checkpoint(folder_b / "last.safetensors")
    assert facts_a == facts_b
    assert tensors_a.keys() == tensors_b.keys()
    assert any(name.startswith("optimizer/") for name in tensors_a)
    for name, tensor in tensors_a.items():
        assert torch.equal(tensor, tensors_b[name]), name
    assert without_rate(read_log(folder_a / "log.csv")) == without_rate(read_log(folder_b / "log.csv"))


# Learning rate


@pytest.mark.parametrize(
    ("step", "by_step", "by_cosine", "constant"),
    [
        (0, 0.1, 0.1, 0.1),  # a third
        (5, 0.2, 0.2 * 0.993844170297569, 0.2),  # half-way up; cos(pi / 20) = 0.98769
        (10, 0.3, 0.3 * 0.975528258147577, 0.3),  # cos(pi / 10) = 0.95106
        (49, 0.3, 0.3 * 0.515705379539064, 0.3),
        (50, 0.03, 0.15, 0.3),
        (74, 0.03, 0.3 * 0.157726447035656, 0.3),
        (75, 0.003, 0.3 * 0.146446609406726, 0.3),
        (99, 0.003, 0.3 * 0.000246719817134, 0.3),
    ],
)
def test_learning_rate_by_hand(step, by_step, by_cosine, constant):
    config = TrainConfig(steps=100, lr=0.3, warmup_steps=10, warmup_factor=1 / 3, milestones=(0.5, 0.75))
    assert lr_at(step, config) == pytest.approx(by_step, rel=1e-9)
    assert lr_at(step, replace(config, schedule="cosine")) == pytest.approx(by_cosine, rel=1e-9)
    assert lr_at(step, replace(config, schedule="constant")) == pytest.approx(constant, rel=1e-9)


def test_the_papers_schedule():
    assert [lr_at(s, PAPER) for s in (500, 119_999, 120_000, 159_999)] == pytest.approx([0.02, 0.02, 0.002, 0.002])
    assert lr_at(0, PAPER) == pytest.approx(0.02 / 3)
    assert PAPER.steps * PAPER.batch_size == 2_560_000


def test_no_warm_up_starts_at_full_rate():
    assert lr_at(0, TrainConfig(lr=0.5, warmup_steps=0)) == 0.5


def test_the_loop_uses_the_schedule(tmp_path):
    _, result = run(replace(PLAIN, log_every=1), out_dir=tmp_path)
    assert [row["lr"] for row in result.losses] == [lr_at(step, PLAIN) for step in range(12)]
    assert result.losses[0]["lr"] == pytest.approx(0.05 / 3)
    assert result.losses[9]["lr"] == pytest.approx(0.005)  # 0.75 of 12 steps


# Configuration


def test_unknown_keys_name_the_nearest_field():
    with pytest.raises(ValueError, match="no field 'warmup_step': did you mean 'warmup_steps'"):
        TrainConfig.from_dict({"warmup_step": 3})
    with pytest.raises(ValueError, match="no field 'learning_rate'"):
        TrainConfig.from_dict({"learning_rate": 0.1})


def test_configuration_survives_json():
    config = replace(PLAIN, scale=(0.8, 1.25), milestones=(0.5, 0.9))
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0), ("steps", -3), ("steps", 2.5), ("steps", True), ("batch_size", 0),
        ("optimizer", "adam"),
        ("lr", 0), ("lr", -0.1), ("lr", float("nan")), ("lr", "0.1"), ("momentum", 1.0), ("momentum", -0.1),
        ("weight_decay", -1e-4), ("warmup_steps", -1), ("warmup_factor", 0), ("schedule", "linear"),
        ("milestones", (75,)), ("milestones", (0,)), ("milestones", 0.75), ("gamma", 0), ("clip_norm", 0),
        ("clip_norm", float("inf")), ("flip", 1.5), ("flip", -0.5), ("scale", (1.2, 0.8)), ("scale", (0, 1)),
        ("scale", (1.0,)), ("seed", -1), ("log_every", 0), ("checkpoint_every", 0), ("decay_norm_bias", 1),
    ],
)  # fmt: skip
def test_impossible_values_are_named(field, value):
    with pytest.raises(ValueError, match=f"TrainConfig.{field} is "):
        TrainConfig(**{field: value})


# Batches


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 23), batch_size=st.integers(1, 9), seed=st.integers(0, 2**40))
def test_every_epoch_sees_every_image_once(size, batch_size, seed):
    epochs = 3
    steps = -(-epochs * size // batch_size)
    flat = [index for step in range(steps) for index in batch_indices(step, batch_size, size, seed)]
    assert len(flat) == steps * batch_size
    for epoch in range(epochs):
        assert sorted(flat[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_batches_depend_on_seed_and_step_only():
    forward = [batch_indices(step, 4, 30, 5) for step in range(20)]
    backward = [batch_indices(step, 4, 30, 5) for step in reversed(range(20))]
    assert forward == backward[::-1]
    assert forward != [batch_indices(step, 4, 30, 6) for step in range(20)]
    epochs = [sum(forward, [])[epoch * 30 : (epoch + 1) * 30] for epoch in range(2)]
    assert epochs[0] != epochs[1]  # shuffled again, not repeated
    assert epochs[0] != sorted(epochs[0])


def test_a_dataset_smaller_than_the_batch():
    assert Counter(batch_indices(0, 5, 2, 0) + batch_indices(1, 5, 2, 0)) == {0: 5, 1: 5}
    _, result = run(replace(PLAIN, batch_size=5), dataset=ToyDataset(2))
    assert result.steps == 12


def test_streams_do_not_repeat_each_other():
    draws = {
        torch.rand(1, generator=generator_for(seed, name, step, place)).item()
        for seed in range(3)
        for name in ("augment", "sampling")
        for step in range(10)
        for place in range(10)
    }
    assert len(draws) > 590  # of 600: floats may collide, streams may not


def noise(image, target, generator):
    return (image + 0.01 * torch.rand(image.shape, generator=generator)).clamp(max=1), target


def test_augmentation_depends_on_seed_step_and_place():
    dataset, config = ToyDataset(1), replace(PLAIN, batch_size=3)

    def load(step, config=config):
        return load_step(dataset, step, config, noise, range(3), 3)[0].images

    first, again = load(4), load(4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])  # the same image, twice in a batch, is augmented twice
    assert not torch.equal(first[0], load(5)[0])
    assert not torch.equal(first[0], load(4, replace(config, seed=1))[0])


@pytest.mark.parametrize("start", [0, 5, 11, 12])
def test_workers_load_the_same_batches(start):
    dataset = ToyDataset()
    plain = list(load_steps(dataset, start, PLAIN, noise))
    threaded = list(load_steps(dataset, start, PLAIN, noise, workers=3))
    assert len(plain) == len(threaded) == 12 - start
    for ((a,), (b,)) in zip(plain, threaded, strict=True):
        assert a.image_ids == b.image_ids == [target["image_id"] for target in b.targets]
        assert a.seeds == b.seeds
        assert all(torch.equal(x, y) for x, y in zip(a.images, b.images, strict=True))


def test_workers_report_what_a_dataset_raises():
    class Broken(ToyDataset):
        def __getitem__(self, index):
            raise OSError(f"cannot read {index}")

    with pytest.raises(OSError, match="cannot read"):
        run(dataset=Broken(), workers=2)


def test_flip_and_scale_reach_the_model():
    transforms = pytest.importorskip("mrcnn_scratch.datasets.transforms")
    seen = []

    class Watching(ToyModel):
        def forward(self, images, targets, generators):
            seen.append((images, targets))
            return super().forward(images, targets, generators)

    config = replace(PLAIN, steps=1, batch_size=6, flip=1.0, scale=(0.5, 0.75))
    dataset = ToyDataset()
    run(config, dataset, Watching())
    images, targets = seen[0]
    augment = transforms.Augment(flip=1.0, scale=(0.5, 0.75), flip_pairs=[])
    for place, index in enumerate(batch_indices(0, 6, 7, 0)):
        assert images[place].shape[2] < 16
        expected, target = augment(*dataset[index], generator_for(0, "augment", 0, place))
        assert torch.equal(images[place], expected)
        assert torch.equal(targets[place]["boxes"], target["boxes"])


# One step, by hand


class OneWeight(torch.nn.Module):
    """loss = slope * w, plus a bias that the loss does not want changed."""

    def __init__(self, slope=0.5):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1, 1, dtype=torch.float64))
        self.bias = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.slope = slope

    def forward(self, images, targets, generators):
        return {"loss_a": self.slope * self.weight.sum(), "loss_b": 0 * self.bias.sum()}


def step_once(model, optimizer, config):
    learner = make_learner(model, config, optimizer)
    return train_step(learner, [MicroBatch([], [], [], [])], 0.1, Guard(model, 1, {}))


def test_sgd_by_hand():
    config = TrainConfig(lr=99.0, momentum=0.9, weight_decay=0.1)
    model = OneWeight()
    optimizer = make_optimizer(model, config)
    row = step_once(model, optimizer, config)
    assert row == {"lr": 0.1, "loss": 0.5, "loss_a": 0.5, "loss_b": 0.0, "grad_norm": 0.5}
    assert model.weight.item() == pytest.approx(0.94, abs=1e-12)  # 1 - 0.1 * (0.5 + 0.1 * 1)
    assert model.bias.item() == pytest.approx(0.99, abs=1e-12)  # decay alone
    step_once(model, optimizer, config)
    # velocity 0.9 * 0.6 + 0.5 + 0.094 = 1.134; without clearing gradients it would be 1.634
    assert model.weight.item() == pytest.approx(0.94 - 0.1134, abs=1e-12)


def test_adamw_by_hand():
    config = TrainConfig(optimizer="adamw", momentum=0.9, weight_decay=0.1)
    model = OneWeight()
    optimizer = make_optimizer(model, config)
    step_once(model, optimizer, config)
    assert model.weight.item() == pytest.approx(0.89, abs=1e-8)  # decay to 0.99, then a step of lr * g / |g|
    model.slope = -0.25
    step_once(model, optimizer, config)
    # mean (0.9 * 0.05 - 0.1 * 0.25) / 0.19, square (0.999 * 0.00025 + 0.001 * 0.0625) / 0.001999
    assert model.weight.item() == pytest.approx(0.89 * 0.99 - 0.1 * 0.105263158 / 0.395225359, abs=1e-8)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_decay_may_spare_norms_and_biases(optimizer):
    config = TrainConfig(optimizer=optimizer, weight_decay=0.1, decay_norm_bias=False)
    model = OneWeight(slope=0.0)
    step_once(model, make_optimizer(model, config), config)
    assert model.bias.item() == 1.0
    assert model.weight.item() == pytest.approx(0.99)


def test_clipping_is_by_global_norm():
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Parameter(torch.zeros(1))
            self.b = torch.nn.Parameter(torch.zeros(1))

        def forward(self, images, targets, generators):
            return {"loss": 3 * self.a.sum() + 4 * self.b.sum()}  # norm 5

    for clip, expected in ((1.0, (-0.06, -0.08)), (10.0, (-0.3, -0.4)), (None, (-0.3, -0.4))):
        config = TrainConfig(momentum=0.0, weight_decay=0.0, clip_norm=clip)
        model = Two()
        row = step_once(model, make_optimizer(model, config), config)
        assert row["grad_norm"] == pytest.approx(5.0)  # before clipping
        assert (model.a.item(), model.b.item()) == pytest.approx(expected, rel=1e-5)


def test_frozen_parameters_stay():
    model = ToyModel()
    before = model.frozen.weight.clone()
    run(model=model)
    assert torch.equal(before, model.frozen.weight)
    assert not torch.equal(model.score.weight, ToyModel().score.weight)
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        run(model=ToyModel().requires_grad_(False))


def test_the_loss_falls():
    _, result = run(replace(PLAIN, steps=60, log_every=1))
    first, last = (sum(row["loss"] for row in rows) for rows in (result.losses[:10], result.losses[-10:]))
    assert last < 0.8 * first


def test_accumulation_is_the_mean_over_micro_batches():
    """SGD's first step is along the gradient: the mean of the two that the halves of the batch give alone."""
    config = replace(PLAIN, steps=1, batch_size=4, momentum=0.0, weight_decay=0.0, clip_norm=None, log_every=1)
    model, result = run(replace(config, images_per_micro_batch=2))
    batches = load_step(ToyDataset(), 0, config, None, range(4), 2)
    assert len(batches) == 2
    gradients, losses = [], []
    for batch in batches:
        fresh = ToyModel()
        values = fresh(batch.images, batch.targets, batch.generators())
        sum(values.values()).backward()
        gradients.append(fresh.score.weight.grad)
        losses.append({name: float(value.detach()) for name, value in values.items()})
    assert not torch.allclose(*gradients, rtol=0.1)
    moved = (ToyModel().score.weight - model.score.weight) / lr_at(0, config)
    assert torch.allclose(moved, sum(gradients) / 2, rtol=1e-4, atol=1e-6)
    (row,) = result.losses
    for name in losses[0]:
        assert row[name] == pytest.approx((losses[0][name] + losses[1][name]) / 2)
    assert row["loss"] == pytest.approx(row["loss_classifier"] + row["loss_box"])


def test_micro_batches_belong_to_a_run(tmp_path):
    config = replace(PLAIN, batch_size=4, images_per_micro_batch=2)
    with pytest.raises(KeyboardInterrupt):
        run(config, out_dir=tmp_path / "a", on_step=stop_at(5, raising(KeyboardInterrupt())))
    with pytest.raises(ValueError, match="hold 2 images, images_per_micro_batch is now 4: give 0 to keep them"):
        run(replace(config, images_per_micro_batch=4), out_dir=tmp_path / "a", resume=True)
    run(replace(config, images_per_micro_batch=0), out_dir=tmp_path / "a", resume=True)  # as it began
    run(config, out_dir=tmp_path / "b")
    ours, theirs = (read_checkpoint(tmp_path / name / "last.safetensors")[0] for name in "ab")
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_the_kernels_of_a_gpu_are_compiled_before_the_first_step(monkeypatch):
    asked = []
    monkeypatch.setattr(training, "warm_up", lambda *arguments: asked.append(arguments))
    run(replace(PLAIN, steps=1))
    assert asked == [(torch.device("cpu"), torch.float32, (2, 0))]


def test_only_a_gpu_has_kernels_to_compile(monkeypatch):
    assert roi_ops.warm_up(torch.device("cpu")) == 0
    assert roi_ops.warm_up("cuda") == 0 or torch.cuda.is_available()
    numba_cuda = pytest.importorskip("mrcnn_scratch.roi_ops.numba_cuda")
    monkeypatch.setattr(roi_ops, "_missing", lambda backend, warn: "")
    monkeypatch.setattr(numba_cuda, "warm_up", lambda *arguments: arguments)
    assert roi_ops.warm_up("cuda:1", torch.bfloat16, (2,)) == (torch.float32, (2,))
    assert roi_ops.warm_up("cuda", torch.float64, (4,)) == (torch.float64, (4,))


# Resume


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("stopped", [1, 4, 7, 11])
def test_ctrl_c_and_resume_equals_uninterrupted(tmp_path, optimizer, stopped):
    config = replace(PLAIN, optimizer=optimizer, schedule="cosine")
    whole, result = run(config, out_dir=tmp_path / "whole")
    on_step = stop_at(stopped, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt, match=rf"after step {stopped} of 12; saved .*resume=True"):
        run(config, out_dir=tmp_path / "parts", on_step=on_step)
    assert read_checkpoint(tmp_path / "parts" / "last.safetensors")[1]["step"] == stopped
    other = ToyModel(seed=1)  # nothing of a new model's own weights may remain
    resumed, again = run(config, model=other, out_dir=tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert without_rate(result.losses) == without_rate(again.losses)


def test_ctrl_c_in_the_middle_of_a_step_finishes_it(tmp_path):
    class Pressed(ToyModel):
        calls = 0

        def forward(self, images, targets, generators):
            self.calls += 1
            if self.calls == 3:
                signal.raise_signal(signal.SIGINT)
            return super().forward(images, targets, generators)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="after step 3"):
        run(model=Pressed(), out_dir=tmp_path / "parts")
    assert signal.getsignal(signal.SIGINT) is before
    run(out_dir=tmp_path / "parts", resume=True)
    run(out_dir=tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_sigterm_saves_too(tmp_path):
    """How a batch system ends a job."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="after step 3 of 12; saved"):
        run(out_dir=tmp_path, on_step=stop_at(3, lambda: signal.raise_signal(signal.SIGTERM)))
    assert signal.getsignal(signal.SIGTERM) is before
    assert read_checkpoint(tmp_path / "last.safetensors")[1]["step"] == 3


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    class Hung(ToyDataset):
        def __getitem__(self, index):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("unreachable: the second Ctrl-C did not stop")

    with pytest.raises(KeyboardInterrupt, match="at once"):
        run(dataset=Hung(), out_dir=tmp_path)


def test_an_ignored_sigint_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as under nohup
    _, result = run(on_step=stop_at(3, lambda: signal.raise_signal(signal.SIGINT)))
    assert result.steps == result.losses[-1]["step"] == 12
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_training_works_outside_the_main_thread():
    with ThreadPoolExecutor(1) as pool:
        threaded, _ = pool.submit(run).result()
    assert torch.equal(threaded.score.weight, run()[0].score.weight)


def test_a_callback_may_stop_the_run_and_nothing_is_saved_without_a_folder(tmp_path):
    with pytest.raises(KeyboardInterrupt, match="saved .*resume=True"):
        run(out_dir=tmp_path, on_step=stop_at(5, raising(KeyboardInterrupt())))
    assert read_checkpoint(tmp_path / "last.safetensors")[1]["step"] == 5
    with pytest.raises(KeyboardInterrupt, match="nothing was saved: give out_dir"):
        run(on_step=stop_at(5, raising(KeyboardInterrupt())))


def test_an_exception_loses_at_most_the_steps_since_the_checkpoint(tmp_path):
    with pytest.raises(RuntimeError, match="disk on fire"):
        run(out_dir=tmp_path / "parts", on_step=stop_at(7, raising(RuntimeError("disk on fire"))))
    assert read_checkpoint(tmp_path / "parts" / "last.safetensors")[1]["step"] == 4
    assert [row["step"] for row in read_log(tmp_path / "parts" / "log.csv")] == [2, 4, 6]
    run(out_dir=tmp_path / "parts", resume=True)
    run(out_dir=tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_sigkill_and_resume_equals_uninterrupted(tmp_path, one_thread):
    """Bit for bit, so with one number of threads in both processes: sums over two threads round otherwise."""
    script = f"""
import os, signal, sys, torch
torch.set_num_threads(1)
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_training import run, stop_at
run(out_dir={str(tmp_path / "parts")!r}, on_step=stop_at(10, lambda: os.kill(os.getpid(), signal.SIGKILL)))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[1], timeout=500, check=False)
    assert done.returncode == -signal.SIGKILL
    assert read_checkpoint(tmp_path / "parts" / "last.safetensors")[1]["step"] == 8
    with open(tmp_path / "parts" / "log.csv", "a") as handle:
        handle.write("11,0.05,1.2")  # the kill cut a row short
    (tmp_path / "parts" / ".last.safetensors.123.tmp").write_bytes(b"half a checkpoint")
    run(out_dir=tmp_path / "parts", resume=True)
    run(out_dir=tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == [
        "last.safetensors", "log.csv", "train_config.json",
    ]  # fmt: skip


def test_resume_from_a_path_leaves_the_other_run_alone(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(out_dir=tmp_path / "a", on_step=stop_at(6, raising(KeyboardInterrupt())))
    kept = (tmp_path / "a" / "last.safetensors").read_bytes()
    model, _ = run(out_dir=tmp_path / "b", resume=tmp_path / "a" / "last.safetensors")
    unsaved, result = run(resume=str(tmp_path / "a" / "last.safetensors"))
    whole, _ = run()
    assert (tmp_path / "a" / "last.safetensors").read_bytes() == kept
    for name, value in whole.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]) and torch.equal(value, unsaved.state_dict()[name])
    assert [row["step"] for row in read_log(tmp_path / "b" / "log.csv")] == [8, 10, 12]


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    _, first = run(out_dir=tmp_path)
    kept = (tmp_path / "last.safetensors").read_bytes()
    _, again = run(out_dir=tmp_path, resume=True)
    assert again.losses == first.losses  # images per second too: they come from log.csv
    assert (tmp_path / "last.safetensors").read_bytes() == kept


def test_a_finished_run_is_not_written_over_by_accident(tmp_path):
    run(out_dir=tmp_path)
    with pytest.raises(ValueError, match=r"use resume=True \(--resume\), .* overwrite=True \(--overwrite\)"):
        run(out_dir=tmp_path)
    with pytest.raises(ValueError, match="holds a run already"):
        run(out_dir=tmp_path, resume=tmp_path / "elsewhere.safetensors")
    _, result = run(replace(PLAIN, steps=2), out_dir=tmp_path, overwrite=True)
    assert [row["step"] for row in read_log(tmp_path / "log.csv")] == [2]


@pytest.mark.parametrize("change", [{"lr": 0.1}, {"steps": 13}, {"scale": (0.5, 1.0)}, {"clip_norm": None}])
def test_another_configuration_cannot_resume(tmp_path, change):
    run(out_dir=tmp_path)
    (field,) = change
    with pytest.raises(ValueError, match=rf"train_config\.{field} was .* and is now .*another out_dir") as refusal:
        run(replace(PLAIN, **change), out_dir=tmp_path, resume=True)
    assert ("schedule depends on it" in str(refusal.value)) == (field == "steps")


def test_checkpoints_may_become_rarer(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(out_dir=tmp_path, on_step=stop_at(6, raising(KeyboardInterrupt())))
    _, result = run(replace(PLAIN, checkpoint_every=100), out_dir=tmp_path, resume=True)
    assert result.losses[-1]["step"] == 12


def test_another_model_or_dataset_cannot_resume(tmp_path):
    run(out_dir=tmp_path)
    untouched = ToyModel(ToyConfig(width=5))
    before = {name: value.clone() for name, value in untouched.state_dict().items()}
    with pytest.raises(ValueError, match=r"config\.width was 4 and is now 5: build the model"):
        run(model=untouched, out_dir=tmp_path, resume=True)
    assert all(torch.equal(value, before[name]) for name, value in untouched.state_dict().items())
    with pytest.raises(ValueError, match=r"dataset\.image.* on the dataset the run began with"):
        run(dataset=ToyDataset(8), out_dir=tmp_path, resume=True)
    renamed = ToyDataset()
    renamed.image_ids = renamed.image_ids[::-1]
    with pytest.raises(ValueError, match=r"dataset\.image_ids"):
        run(dataset=renamed, out_dir=tmp_path, resume=True)
    relabelled = ToyDataset()
    relabelled.class_names = ["background", "ring", "disc"]
    with pytest.raises(ValueError, match="its classes are background, disc, ring, the dataset's"):
        run(dataset=relabelled, out_dir=tmp_path, resume=True)


def test_resume_needs_a_training_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="resume=True looks in out_dir"):
        run(resume=True)
    with pytest.raises(ValueError, match="does not exist: there is no run to go on with"):
        run(out_dir=tmp_path / "empty", resume=True)
    weights.save_model(ToyModel(), tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="holds no optimizer state: resume from a last.safetensors"):
        run(resume=tmp_path / "weights.safetensors")


# Checkpoints


def test_checkpoint_says_what_it_is(tmp_path):
    run(out_dir=tmp_path)
    tensors, facts = read_checkpoint(tmp_path / "last.safetensors")
    assert facts["step"] == 12
    assert facts["config"] == {"num_classes": 3, "keypoints": 0, "width": 4}
    assert TrainConfig.from_dict(facts["train_config"]) == PLAIN
    assert facts["class_names"] == ["background", "disc", "ring"]
    assert facts["label_to_category"] == [[1, 7], [2, 9]]
    assert facts["num_keypoints"] == 0
    assert "model/norm.running_mean" in tensors
    assert tensors["model/norm.num_batches_tracked"].item() == 12
    assert "optimizer/conv.weight/momentum_buffer" in tensors
    assert not any("frozen" in name for name in tensors if name.startswith("optimizer/"))
    assert TrainConfig.from_dict(json.loads((tmp_path / "train_config.json").read_text())) == PLAIN


def test_the_last_step_is_always_saved(tmp_path):
    _, result = run(replace(PLAIN, steps=5), out_dir=tmp_path)
    assert result.checkpoint == tmp_path / "last.safetensors"
    assert read_checkpoint(result.checkpoint)[1]["step"] == 5


def test_momentum_zero_and_adamw_state_survive(tmp_path):
    for name, config in (
        ("plain", replace(PLAIN, momentum=0.0)),
        ("adamw", replace(PLAIN, optimizer="adamw")),
    ):
        with pytest.raises(KeyboardInterrupt):
            run(config, out_dir=tmp_path / name, on_step=stop_at(6, raising(KeyboardInterrupt())))
        keys = {key.rsplit("/", 1)[1] for key in read_checkpoint(tmp_path / name / "last.safetensors")[0]
                if key.startswith("optimizer/")}  # fmt: skip
        assert keys == (set() if name == "plain" else {"step", "exp_avg", "exp_avg_sq"})
        resumed, _ = run(config, out_dir=tmp_path / name, resume=True)
        whole, _ = run(config)
        assert torch.equal(resumed.score.weight, whole.score.weight)


# the second checkpoint is not written; os.fsync is called for log.csv too
@pytest.mark.parametrize(("where", "fatal"), [("save_file", 2), ("os.replace", 2), ("os.fsync", 3)])
def test_a_crash_while_writing_keeps_the_checkpoint_before(tmp_path, monkeypatch, where, fatal):
    run(out_dir=tmp_path / "whole")
    calls = []

    def crash_in_time(*args, **kwargs):
        calls.append(args)
        if len(calls) == fatal:
            raise OSError("no space left on device")
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        if where == "save_file":
            real = weights.save_file
            patch.setattr(weights, "save_file", crash_in_time)
        elif where == "os.fsync":
            real = files.os.fsync
            patch.setattr(files.os, "fsync", crash_in_time)
        else:
            real = files.os.replace

            def only_checkpoints(source, target):
                return crash_in_time(source, target) if "last" in str(target) else real(source, target)

            patch.setattr(files.os, "replace", only_checkpoints)
        with pytest.raises(OSError, match="no space left"):
            run(out_dir=tmp_path / "parts")
    assert len(calls) == fatal
    assert read_checkpoint(tmp_path / "parts" / "last.safetensors")[1]["step"] == 4
    run(out_dir=tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("length", [0, 5, 200, -1])
def test_a_truncated_checkpoint_says_so(tmp_path, length):
    run(out_dir=tmp_path)
    path = tmp_path / "last.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match="last.safetensors .* is truncated or not a safetensors file"):
        run(out_dir=tmp_path, resume=True)


# NaN guard


class Poisoned(ToyModel):
    """One image makes one loss infinite, or its gradient, from the sixth step on."""

    def __init__(self, image_id=103, kind="loss", first=6):
        super().__init__()
        self.image_id, self.kind, self.first, self.calls = image_id, kind, first, 0

    def forward(self, images, targets, generators):
        losses = super().forward(images, targets, generators)
        self.calls += 1
        hit = any(target["image_id"] == self.image_id for target in targets)
        if hit and self.calls >= self.first:
            if self.kind == "loss":
                losses["loss_box"] = losses["loss_box"] / 0.0
            else:
                losses["loss_box"] = losses["loss_box"] + (self.score.weight * 0).sum().sqrt()  # gradient: 0 / 0
        return losses


@pytest.mark.parametrize(("kind", "named"), [("loss", "loss_box"), ("gradient", "gradient norm")])
def test_guard_names_the_loss_and_the_image_and_keeps_the_batch(tmp_path, kind, named):
    config = replace(PLAIN, steps=40, checkpoint_every=1)
    kept = []
    model = Poisoned(kind=kind)

    def on_step(finished, row):
        kept.append({name: value.clone() for name, value in model.state_dict().items()})

    with pytest.raises(NonFiniteLoss) as caught:
        run(config, model=model, out_dir=tmp_path, on_step=on_step)
    error = caught.value
    assert isinstance(error, FloatingPointError)
    assert error.losses == [named]
    assert error.image_ids == [103]
    assert error.step == len(kept) + 1 >= 6
    path = tmp_path / "nan_batch.safetensors"
    assert error.path == path
    for part in (f"step {error.step}", named, "image 103 gives it alone", str(path), "replay_batch"):
        assert part in str(error)
    # the model and the file hold the last finished step's weights and statistics
    tensors, facts = read_checkpoint(path)
    for name, value in kept[-1].items():
        assert torch.equal(value, model.state_dict()[name]), name
        assert torch.equal(value, tensors[f"model/{name}"]), name
    # and the batch is the one of that step
    batch, facts = nan_guard.read_batch(path)
    (wanted,) = load_step(ToyDataset(), error.step - 1, config, None, range(2), 2)
    assert batch.image_ids == facts["image_ids"] == wanted.image_ids
    assert facts["losses"] == [named]
    assert facts["step"] == error.step - 1  # finished updates, as in every checkpoint
    pairs = zip(batch.images, wanted.images, batch.targets, wanted.targets, strict=True)
    for image, wanted_image, target, wanted_target in pairs:
        assert torch.equal(image, wanted_image)
        assert target.keys() == wanted_target.keys()
        assert torch.equal(target["masks"], wanted_target["masks"])
    # a replay is that forward pass: with a sound model, the losses of that very step
    sound = ToyModel(seed=5)
    losses = nan_guard.replay_batch(path, sound)
    reference = ToyModel()
    reference.load_state_dict(kept[-1])
    sampled = [generator_for(0, "sampling", error.step - 1, place) for place in range(2)]
    expected = reference(wanted.images, wanted.targets, sampled)
    assert all(torch.equal(losses[name], expected[name]) for name in expected)


def test_guard_says_when_no_image_is_to_blame():
    class Together(ToyModel):
        def forward(self, images, targets, generators):
            losses = super().forward(images, targets, generators)
            return {**losses, "loss_mask": losses["loss_box"] * (float("nan") if len(images) > 1 else 1.0)}

    with pytest.raises(
        NonFiniteLoss, match=r"step 1: loss_mask not finite; no image of .* alone.*give out_dir"
    ) as caught:
        run(model=Together())
    assert sorted(caught.value.image_ids) == sorted(100 + i for i in batch_indices(0, 2, 7, 0))
    assert caught.value.path is None


def test_guard_finds_weights_that_were_bad_already():
    model = ToyModel()
    with torch.no_grad():
        model.score.bias[0] = float("inf")
    with pytest.raises(NonFiniteLoss, match=r"weights were no longer finite, score.bias first: lower lr"):
        run(model=model)


def test_a_batch_file_is_no_checkpoint_to_resume_and_the_reverse(tmp_path):
    with pytest.raises(NonFiniteLoss):
        run(replace(PLAIN, steps=40), model=Poisoned(), out_dir=tmp_path)
    with pytest.raises(ValueError, match="no optimizer state"):
        run(replace(PLAIN, steps=40), resume=tmp_path / "nan_batch.safetensors")
    with pytest.raises(ValueError, match="holds no batch"):
        nan_guard.read_batch(tmp_path / "last.safetensors")


def test_what_the_model_refuses_is_named_by_image_id():
    class Strict(ToyModel):
        def forward(self, images, targets, generators):
            raise ValueError("image 1 has values 0..255")

    ids = [100 + index for index in batch_indices(0, 2, 7, 0)]
    with pytest.raises(ValueError, match=rf"step 1, image ids \[{ids[0]}, {ids[1]}\] in this order: image 1 has"):
        run(model=Strict())


# Logs


def test_log_holds_every_loss(tmp_path):
    _, result = run(replace(PLAIN, steps=5), out_dir=tmp_path)
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines[0] == "step,lr,loss,loss_classifier,loss_box,grad_norm,images_per_second"
    rows = read_log(tmp_path / "log.csv")
    assert [row["step"] for row in rows] == [2, 4, 5]  # every second, and the last
    assert rows == result.losses  # floats read back as the same floats
    for row in rows:
        assert row["loss"] == pytest.approx(row["loss_classifier"] + row["loss_box"])
        assert row["images_per_second"] > 0
    assert read_log(tmp_path / "absent.csv") == []


def test_a_loss_that_appears_later_is_an_error(tmp_path):
    class Fickle(ToyModel):
        def forward(self, images, targets, generators):
            losses = super().forward(images, targets, generators)
            self.seen = getattr(self, "seen", 0) + 1
            return losses if self.seen < 4 else {**losses, "loss_mask": losses["loss_box"]}

    with pytest.raises(ValueError, match=r"step 4 logs .*loss_mask.*same losses at every step"):
        run(model=Fickle(), out_dir=tmp_path)


def test_tensorboard_events(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, result = run(out_dir=tmp_path, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scalars = events.Scalars("loss_box")
    assert [event.step for event in scalars] == [2, 4, 6, 8, 10, 12]
    assert [event.value for event in scalars] == pytest.approx([row["loss_box"] for row in result.losses])
    with pytest.raises(ValueError, match="tensorboard events need a folder"):
        run(tensorboard=True)


def test_without_tensorboard_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="pip install tensorboard"):
        run(out_dir=tmp_path, tensorboard=True)


def test_progress_shows_losses_rate_and_time_left(capsys):
    train(ToyModel(), ToyDataset(), PLAIN, progress=True)
    shown = capsys.readouterr().err
    assert "12/12" in shown and "images/s" in shown and "lr " in shown
    assert "classifier" in shown and "box" in shown and "<" in shown  # tqdm: elapsed<left
    run()
    assert capsys.readouterr().err == ""


def test_on_step_sees_every_step():
    seen = []
    run(on_step=lambda finished, row: seen.append((finished, row["step"])))
    assert seen == [(step, step) for step in range(1, 13)]


def test_the_model_is_trained_in_train_mode():
    model, _ = run(model=ToyModel().eval())
    assert model.training and model.norm.training
    assert model.norm.num_batches_tracked == 12


# What cannot be used


def test_an_empty_dataset_is_refused():
    with pytest.raises(ValueError, match="the dataset has no images"):
        run(dataset=ToyDataset(0))


def test_classes_must_agree():
    with pytest.raises(ValueError, match=r"num_classes=91, the dataset 3 .*disc, ring.*with num_classes=3"):
        run(model=ToyModel(ToyConfig(num_classes=91)))


def test_keypoints_must_agree():
    with pytest.raises(ValueError, match="model has keypoints=17, the dataset 0: build the model with keypoints=0"):
        run(model=ToyModel(ToyConfig(keypoints=17)))
    dataset = ToyDataset()
    dataset.num_keypoints = 5
    run(replace(PLAIN, steps=1), dataset)  # a model without the branch leaves them alone
    dataset.flip_pairs = None
    with pytest.raises(ValueError, match="no flip_pairs"):
        run(replace(PLAIN, flip=0.5), dataset, ToyModel(ToyConfig(keypoints=5)))


def test_a_list_is_no_dataset():
    with pytest.raises(ValueError, match=r"the dataset \(list\) has no class_names, num_classes, num_keypoints"):
        run(dataset=[1, 2])


def test_refusal_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError):
        run(dataset=ToyDataset(0), out_dir=tmp_path / "new")
    assert not (tmp_path / "new").exists()


# The real detector


@pytest.mark.parametrize("name", ["tiny-fpn", "tiny-c4"])
def test_the_detector_resumes_bit_for_bit(tmp_path, name, one_thread):
    from mrcnn_scratch.datasets.shapes import ShapesDataset
    from mrcnn_scratch.model import build_model

    dataset = ShapesDataset("demo", 6, image_size=(64, 80))
    config = TrainConfig(
        steps=6, batch_size=2, lr=0.01, warmup_steps=3, log_every=1, checkpoint_every=3, scale=(0.8, 1.25)
    )

    def detector(seed):
        keypoints = dataset.num_keypoints if name == "tiny-fpn" else 0
        return build_model(name, num_classes=dataset.num_classes, masks=True, keypoints=keypoints, seed=seed)

    whole = detector(seed=0)
    result = train(whole, dataset, config, tmp_path / "whole", progress=False)
    with pytest.raises(KeyboardInterrupt):
        press = stop_at(4, lambda: signal.raise_signal(signal.SIGINT))
        train(detector(seed=0), dataset, config, tmp_path / "parts", progress=False, on_step=press)
    # the weights of a checkpoint come with their configuration, the seed of the first weights among it
    resumed = detector(seed=0)
    again = train(resumed, dataset, config, tmp_path / "parts", resume=True, progress=False, workers=2)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    assert without_rate(result.losses) == without_rate(again.losses)
    assert all(row["loss_objectness"] > 0 and row["grad_norm"] > 0 for row in result.losses)
    loaded, facts = weights.load_model(tmp_path / "parts" / "last.safetensors")
    assert facts["step"] == 6
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in whole.state_dict().items())


def test_nan_pixels_are_named_by_image_id():
    from mrcnn_scratch.datasets.shapes import ShapesDataset
    from mrcnn_scratch.model import build_model

    class Rotten(ShapesDataset):
        def __getitem__(self, index):
            image, target = super().__getitem__(index)
            if index == 2:
                image = image.clone()
                image[0, 0, 0] = float("nan")
            return image, target

    dataset = Rotten("demo", 4, image_size=(64, 80))
    model = build_model("tiny-fpn", num_classes=dataset.num_classes, masks=True, keypoints=0)
    place = batch_indices(0, 4, 4, 0).index(2)
    ids = ", ".join(str(dataset.image_ids[index]) for index in batch_indices(0, 4, 4, 0))
    with pytest.raises(ValueError, match=rf"step 1, image ids \[{ids}\] in this order: image {place} has values nan"):
        train(model, dataset, TrainConfig(steps=2, batch_size=4), progress=False)
