"""`mrcnn demo`: the whole system on the embedded data, and a first RoIAlign-against-RoIPool comparison.

Two models that differ in the RoI operation alone start from the same weights and see the same images, flips and
sampled RoIs. Each trains in a process and on a thread of its own, so two cores carry both at once and neither
slows the other down.
"""

import json
import multiprocessing
import queue
import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from .datasets.shapes import ShapesDataset
from .evaluation import evaluate
from .files import whole_file
from .logs import progress_line, read_log
from .model import build_model
from .provenance import versions
from .report import ap_panels, write_report
from .resume import LAST, RESUME_COMMAND
from .schedule import TrainConfig
from .training import train
from .weights import load_model

ARMS = {"roi_align": "align", "roi_pool": "pool"}  # arm -> the model's roi_op


@dataclass(frozen=True)
class DemoConfig:
    """What the demo does; all are toy choices, made to take about four minutes on two cores."""

    preset: str = "demo"  # of the embedded data
    train_images: int = 1600
    val_images: int = 200
    model: str = "tiny-fpn"
    seed: int = 0  # of the weights, the data and the batches
    train: TrainConfig = TrainConfig(
        steps=1000, batch_size=4, lr=0.02, warmup_steps=50, schedule="cosine", clip_norm=10.0,
        log_every=5, checkpoint_every=50,
    )  # fmt: skip

    def with_seed(self, seed: int) -> "DemoConfig":
        """The same demo from other weights, data and batches."""
        return replace(self, seed=seed, train=replace(self.train, seed=seed))


class DemoFailed(RuntimeError):
    """One of the two runs failed; the message holds its traceback."""


def run_demo(
    out: str | Path,
    config: DemoConfig | None = None,
    resume: bool = False,
    progress: bool = True,
    command: str = "mrcnn demo",
) -> dict:
    """Makes the data, trains and evaluates both models, writes metrics.json and report.html.

    Args:
        out: folder of the results; each arm has a folder of its own in it.
        config: None is the default demo.
        resume: go on from the checkpoints in ``out``; without it an earlier demo there is replaced.
        progress: show progress bars.
        command: recorded in metrics.json.

    Returns:
        the content of metrics.json: ``box``, ``mask``, ``keypoints`` with AP, AP50, AP75 in 0..1 of the model
        with RoIAlign, the same under ``roi_pool``, and the seconds of every part.

    Raises:
        DemoFailed: a run failed; the other one's results stay in its folder.
        KeyboardInterrupt: both runs have saved a checkpoint.
    """
    config, out, began = config or DemoConfig(), Path(out), time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    datasets = make_data(config, progress)
    seconds = {"data": time.perf_counter() - began}
    arms = _run_arms(out, config, datasets, resume, progress)
    for arm, result in arms.items():
        seconds |= {f"train_{arm}": result["seconds"]["train"], f"evaluate_{arm}": result["seconds"]["evaluate"]}
    metrics = {
        **arms["roi_align"]["metrics"],
        "roi_pool": arms["roi_pool"]["metrics"],
        "seconds": seconds,
        "command": command,
        "seed": config.seed,
        "steps": config.train.steps,
        "images": {"train": config.train_images, "val": config.val_images},
        "versions": versions("torch", "numpy", "numba", "pycocotools"),
    }
    report_began = time.perf_counter()
    figures = demo_figures(out, metrics, datasets[1])
    seconds["pictures"] = time.perf_counter() - report_began
    seconds["total"] = time.perf_counter() - began
    write_json(out / "metrics.json", metrics)
    write_report(out / "report.html", metrics, figures)
    return metrics


def holds_demo(out: str | Path) -> bool:
    """Whether ``out`` holds a demo, finished or not, that a new one would replace."""
    return any((Path(out) / arm / LAST).exists() for arm in ARMS)


def make_data(config: DemoConfig, progress: bool = True) -> tuple[ShapesDataset, ShapesDataset]:
    """Draws the training and validation images of the demo, and keeps them in memory."""
    datasets = (
        ShapesDataset(config.preset, config.train_images, seed=config.seed, split="train"),
        ShapesDataset(config.preset, config.val_images, seed=config.seed, split="val"),
    )
    total = config.train_images + config.val_images
    with tqdm(total=total, desc="draw data", unit="image", disable=not progress, dynamic_ncols=True) as bar:
        for dataset in datasets:
            for index in range(len(dataset)):
                dataset[index]
                bar.update()
    return datasets


def _run_arms(out: Path, config: DemoConfig, datasets, resume: bool, progress: bool) -> dict[str, dict]:
    """Both arms, side by side; their progress comes back through a queue."""
    context = multiprocessing.get_context("spawn")  # a forked child must not inherit compiled kernels' threads
    messages = context.Queue()
    workers = {
        arm: context.Process(
            target=_run_arm, args=(arm, str(out / arm), config, datasets, resume, messages), daemon=True
        )
        for arm in ARMS
    }
    for worker in workers.values():
        worker.start()
    try:
        results = _follow(workers, messages, config.train.steps, progress)
        for worker in workers.values():  # they have answered: let them end by themselves and give back what they hold
            worker.join(timeout=30)
        return results
    except KeyboardInterrupt:  # Ctrl-C reaches the workers too: wait for their checkpoints
        for worker in workers.values():
            worker.join(timeout=60)
        raise KeyboardInterrupt(f"the runs keep their last checkpoints in {out}: {RESUME_COMMAND}") from None
    finally:
        for worker in workers.values():
            if worker.is_alive():
                worker.terminate()


def _follow(workers: dict, messages, steps: int, progress: bool) -> dict[str, dict]:
    """Draws one bar per arm until both have answered."""
    bars = {
        arm: tqdm(total=steps, desc=f"train {arm}", position=i, unit="step", disable=not progress, dynamic_ncols=True)
        for i, arm in enumerate(workers)
    }
    results: dict[str, dict] = {}
    try:
        while len(results) < len(workers):
            try:
                kind, arm, content = messages.get(timeout=1)
            except queue.Empty:
                dead = [a for a, w in workers.items() if a not in results and w.exitcode not in (None, 0)]
                if dead:
                    code = workers[dead[0]].exitcode
                    raise DemoFailed(f"the run {dead[0]} ended with exit code {code} and no message") from None
                continue
            if kind == "step":
                step, text = content
                bars[arm].update(step - bars[arm].n)
                bars[arm].set_postfix_str(text, refresh=False)
            elif kind == "evaluating":
                bars[arm].set_postfix_str("evaluating")
            elif kind == "done":
                bars[arm].set_postfix_str(f"mask AP {content['metrics']['mask']['AP']:.3f}")
                results[arm] = content
            else:
                raise DemoFailed(f"the run {arm} failed:\n{content}")
    finally:
        for bar in bars.values():
            bar.close()
    return results


def _run_arm(arm: str, folder: str, config: DemoConfig, datasets, resume: bool, messages) -> None:
    """One arm in a process of its own: train, evaluate, answer. Never raises: the parent tells the user."""
    torch.set_num_threads(1)
    try:
        model = build_arm(arm, config, datasets[0])
        saved = Path(folder) / LAST
        result = train(
            model, datasets[0], config.train, folder, resume=resume and saved.exists(), progress=False,
            on_step=lambda step, row: messages.put(("step", arm, (step, progress_line(row)))), overwrite=True,
        )  # fmt: skip
        messages.put(("evaluating", arm, None))
        began = time.perf_counter()
        metrics = evaluate(model, datasets[1], progress=False)
        seconds = {"train": result.seconds, "evaluate": time.perf_counter() - began}
        messages.put(("done", arm, {"metrics": metrics, "seconds": seconds}))
    except KeyboardInterrupt:
        pass  # the checkpoint is written; the parent says so
    except BaseException:
        messages.put(("failed", arm, traceback.format_exc()))


def build_arm(arm: str, config: DemoConfig, dataset):
    """The model of one arm; the arms have the same initial weights.

    Args:
        arm: "roi_align" or "roi_pool".
        dataset: says how many classes and keypoints there are.
    """
    model = build_model(
        config.model, dataset.num_classes, keypoints=dataset.num_keypoints, roi_op=ARMS[arm], seed=config.seed
    )
    return model.to(memory_format=torch.channels_last)


def demo_figures(out: Path, metrics: dict, dataset: ShapesDataset) -> list[tuple]:
    """The report's pictures, from the checkpoints and logs in ``out``: (heading, caption, figure) each."""
    from .visualize import ap_against_iou, compare_ops, loss_curves, truth_and_detections

    indices = [i for i in range(len(dataset)) if len(dataset[i][1]["boxes"])]
    detections = {arm: _detect(out / arm / "last.safetensors", dataset, indices[:8]) for arm in ARMS}
    samples = [dataset[i] for i in indices[:8]]
    pairs = [(image, target, found) for (image, target), found in zip(samples, detections["roi_align"], strict=True)]
    logs = {"RoIAlign": read_log(out / "roi_align" / "log.csv"), "RoIPool": read_log(out / "roi_pool" / "log.csv")}
    return [
        (
            "What it learned",
            "The first validation images that are not empty, not chosen for looks: ground truth beside the "
            "detections of the model with RoIAlign, score 0.5 and more.",
            truth_and_detections(pairs, dataset.class_names, dataset.skeleton),
        ),
        (
            "RoIAlign and RoIPool on the same objects",
            "The largest object of each of the first images, whichever model does better on it; "
            "the table above has all.",
            compare_ops(samples[:4], detections["roi_align"][:4], detections["roi_pool"][:4], ("RoIAlign", "RoIPool")),
        ),
        (
            "AP against the IoU that a match must reach",
            "The paper's signature: the operations differ little at IoU 0.5 and more the stricter the match.",
            ap_against_iou(ap_panels(metrics)),
        ),
        (
            "The losses",
            "Both runs saw the same images in the same order. A keypoint loss of 0 is a batch without a person.",
            loss_curves(logs),
        ),
    ]


def _detect(checkpoint: Path, dataset: ShapesDataset, indices: list[int]) -> list[dict]:
    model, _ = load_model(checkpoint)
    with torch.inference_mode():
        return model.to(memory_format=torch.channels_last)([dataset[i][0] for i in indices])


def write_json(path: Path, content: dict) -> None:
    """Writes JSON, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
