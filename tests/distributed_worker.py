"""What test_distributed.py runs in every process: ``torchrun ... distributed_worker.py FOLDER SCENARIO...``.

A scenario is a function of (world, folder); what it returns lies in FOLDER/<scenario>_<rank>.json afterwards.
"""

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from test_training import PLAIN, Poisoned, ToyDataset, ToyModel, raising, run, stop_at

from mrcnn_scratch import build_model, evaluate, training
from mrcnn_scratch.datasets.shapes import ShapesDataset
from mrcnn_scratch.distributed import PeerStopped, any_of, average, current, gather, share, sum_of, together, world
from mrcnn_scratch.evaluation import predict_dataset
from mrcnn_scratch.schedule import TrainConfig
from mrcnn_scratch.training import NonFiniteLoss, train
from mrcnn_scratch.training_step import make_learner, make_optimizer
from mrcnn_scratch.weights import model_tensors

FOUR = replace(PLAIN, batch_size=4)  # 12 steps, a checkpoint every 4
DETECTOR = TrainConfig(steps=4, batch_size=4, lr=0.01, warmup_steps=2, log_every=1, checkpoint_every=2)


def shapes(images: int = 6) -> ShapesDataset:
    return ShapesDataset("demo", images, image_size=(64, 80))


def detector(**fields) -> torch.nn.Module:
    """With every branch; its norm holds no statistics that move."""
    fields = {"masks": True, "keypoints": 17, "norm": "group", **fields}
    return build_model("tiny-fpn", num_classes=shapes().num_classes, **fields)


def alike() -> tuple[torch.nn.Module, TrainConfig]:
    """A detector, in float64, every image of which counts as much: 64 anchors and 8 RoIs, no mean over positives."""
    model = detector(masks=False, keypoints=0, rpn_batch=64, roi_batch=8).double()
    return model, replace(DETECTOR, steps=1, momentum=0.9, weight_decay=0.0, scale=(1.0, 1.0))


def outcome(act) -> list[str]:
    """The kind and the message of what ``act`` raises."""
    try:
        act()
    except (Exception, KeyboardInterrupt) as error:
        return [type(error).__name__, str(error), list(getattr(error, "image_ids", []))]
    return ["nothing", "", []]


def exchanges(me, folder):
    tensors = [torch.full((2, 3), float(me.rank)), torch.tensor([4.0 * me.rank])]
    average(tensors)
    return {
        "world": [me.rank, me.size, me.local_rank, str(me.device), me.is_main, current() == me],
        "any": [any_of(me.rank == 1), any_of(False)],
        "sum": sum_of([me.rank + 0.5, 2.0]),
        "gather": gather({"rank": me.rank}),
        "share": share([me.rank]),
        "average": [tensor.tolist() for tensor in tensors],
    }


def failures(me, folder):
    def fail(*ranks):
        with together():
            if me.rank in ranks:
                raise ValueError(f"bad image in {me.rank}")

    return [outcome(lambda: fail(1)), outcome(lambda: fail(0, 1)), outcome(fail)]


def toy_runs(me, folder):
    """Whole, stopped and resumed runs of the toy model, and one of a single step."""
    wrapped = make_learner(ToyModel(), FOUR, make_optimizer(ToyModel(), FOUR)).parallel
    run(replace(FOUR, steps=1), out_dir=folder / "first")
    run(replace(FOUR, precision="float16"), out_dir=folder / "half")
    written, save = [], training.save_checkpoint
    training.save_checkpoint = lambda *arguments: (written.append(arguments[3]), save(*arguments))
    whole, result = run(FOUR, out_dir=folder / "whole")
    press = stop_at(5, lambda: me.rank == 1 and signal.raise_signal(signal.SIGTERM))
    stopped = outcome(lambda: run(FOUR, out_dir=folder / "parts", on_step=press))
    resumed, again = run(FOUR, out_dir=folder / "parts", resume=True, model=ToyModel(seed=me.rank + 1))
    fresh, _ = run(FOUR, model=ToyModel(seed=me.rank))  # process 0's weights are everyone's
    same = all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
    training.save_checkpoint = save
    return {
        "hidden_exchange": wrapped.broadcast_buffers, "written": written, "stopped": stopped, "same": same,
        "losses": [row["loss"] for row in result.losses], "rows": len(again.losses),
        "weights": [model_tensors(model)["model/score.weight"].tolist() for model in (whole, fresh)],
    }  # fmt: skip


def guards(me, folder):
    """What stops one process: a loss, a gradient, an image refused, an image that cannot be read."""

    class Strict(ToyModel):
        def forward(self, images, targets, generators):
            if any(target["image_id"] == 103 for target in targets):
                raise ValueError("image 0 has values 0..255")
            return super().forward(images, targets, generators)

    class Broken(ToyDataset):
        def __getitem__(self, index):
            if index == 3:
                raise OSError("cannot read 103.jpg")
            return super().__getitem__(index)

    many = replace(FOUR, steps=40, checkpoint_every=1)
    results = {}
    for name, act in (
        ("loss", lambda: run(many, model=Poisoned(first=3), out_dir=folder / "loss")),
        ("gradient", lambda: run(many, model=Poisoned(kind="gradient", first=3), out_dir=folder / "gradient")),
        ("refused", lambda: run(many, model=Strict(), out_dir=folder / "refused")),
        ("broken", lambda: run(many, dataset=Broken(), out_dir=folder / "broken")),
        ("settings", lambda: run(replace(many, batch_size=3))),
        ("disk", lambda: run(many, out_dir=folder / "loss" / "log.csv")),
    ):
        results[name] = outcome(act)
    return results


def detectors(me, folder):
    """The real model: a whole run, one to go on from, one that goes on, and its evaluation."""
    data = shapes()
    model = detector()
    train(model, data, replace(DETECTOR, images_per_micro_batch=2), folder / "two", progress=False)
    stop = stop_at(2, lambda: me.rank == 1 and raising(KeyboardInterrupt())())
    stopped = outcome(lambda: train(detector(), data, DETECTOR, folder / "two_parts", progress=False, on_step=stop))
    train(detector(), data, DETECTOR, folder / "one_parts", resume=True, progress=False)
    odd = shapes(5)
    return {
        "stopped": stopped,
        "metrics": evaluate(model, odd, batch_size=2, progress=False),
        "results": predict_dataset(model, odd, batch_size=2, progress=False),
        "few": predict_dataset(model, shapes(1), progress=False),
    }


class Emptied(ShapesDataset):
    """Every second image shows nothing."""

    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        count = len(target["boxes"]) * (index % 2)
        per_object = ("boxes", "labels", "masks", "keypoints", "area", "iscrowd")
        return image, {name: value[:count] if name in per_object else value for name, value in target.items()}


def emptied(folder: Path, images_per_micro_batch: int):
    """A C4 model, partly frozen, on forward passes of one image: in some no branch but the RPN has work."""
    config = replace(DETECTOR, images_per_micro_batch=images_per_micro_batch, batch_size=2)
    model = build_model("tiny-c4", num_classes=shapes().num_classes, freeze_at=1, norm="frozen")
    train(model, Emptied("demo", 6, image_size=(64, 80)), config, folder, progress=False)


def empty(me, folder):
    emptied(folder / "empty", 0)


def union(me, folder):
    model, config = alike()
    train(model, shapes(), config, folder / "union", progress=False)


def end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed(me, folder):
    """Between two steps: the other process waits for a flag."""
    run(FOUR, out_dir=folder / "run", on_step=stop_at(6, end if me.rank == 1 else int))


def killed_backward(me, folder):
    """In the backward pass of the seventh step: the other process waits for gradients."""
    model, calls = ToyModel(), []

    def last_words(gradient):
        calls.append(gradient)
        if len(calls) == 7 and me.rank == 1:
            end()

    model.conv.weight.register_hook(last_words)
    run(FOUR, model=model, out_dir=folder / "run")


def endless(me, folder):
    run(replace(FOUR, steps=10**6, log_every=10**6), out_dir=folder / "run", on_step=lambda *_: time.sleep(0.01))


def poisoned(me, folder):
    run(replace(FOUR, steps=40), model=Poisoned(first=3), out_dir=folder / "poisoned")


def mistaken(me, folder):
    raise ValueError("batch_size is -1: a mistake of all")


def main(folder: str, *names: str) -> None:
    torch.set_num_threads(1)
    with world("cpu") as me:
        for name in names:
            result = globals()[name](me, Path(folder))
            (Path(folder) / f"{name}_{me.rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (ValueError, OSError, NonFiniteLoss, PeerStopped) as error:  # as the command line does
        sys.stderr.write(f"mrcnn: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt as stopped:
        sys.stderr.write(f"mrcnn: interrupted. {stopped}\n")
        sys.exit(130)
