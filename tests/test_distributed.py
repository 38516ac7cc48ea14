"""Two real processes on this machine, started by torchrun, against one: the same gradients, weights, AP and ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from distributed_worker import DETECTOR, FOUR, Emptied, alike, detector, emptied, shapes
from test_training import ToyDataset, ToyModel, assert_same_run, raising, run, stop_at, without_rate

from mrcnn_scratch import build_model, distributed, evaluate
from mrcnn_scratch.batches import batch_indices, generator_for, load_step, micro_batch_size, places_of
from mrcnn_scratch.evaluation import predict_dataset
from mrcnn_scratch.logs import read_log
from mrcnn_scratch.schedule import TrainConfig
from mrcnn_scratch.training import train
from mrcnn_scratch.weights import read_checkpoint

WORKER = Path(__file__).with_name("distributed_worker.py")


def launch(*arguments: str | Path) -> subprocess.Popen:
    """Runs a script, or a module (-m), in two processes under torchrun."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port,
        *map(str, arguments),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(WORKER.parents[1])}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def finish(job: subprocess.Popen) -> tuple[int, str]:
    """Waits for a job's end: its exit status, and what all its processes wrote."""
    try:
        output, _ = job.communicate(timeout=200)
    finally:
        job.kill()
    return job.returncode, output


def answers(folder: Path, name: str) -> list:
    return [json.loads((folder / f"{name}_{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in the worker: sums over two threads round otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> SimpleNamespace:
    """All scenarios that end well, in one pair of processes; ``one_parts`` was begun by one process."""
    folder = tmp_path_factory.mktemp("two")
    one = TrainConfig.from_dict({**DETECTOR.to_dict(), "images_per_micro_batch": 2})
    with pytest.raises(KeyboardInterrupt):
        stop = stop_at(3, raising(KeyboardInterrupt()))
        train(detector(), shapes(), one, folder / "one_parts", progress=False, on_step=stop)
    names = "exchanges", "failures", "toy_runs", "guards", "detectors", "empty", "union"
    status, output = finish(launch(WORKER, folder, *names))
    assert status == 0, output[-3000:]
    return SimpleNamespace(folder=folder, one=one)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, two) -> SimpleNamespace:
    """The same run by one process, with the two micro-batches of a step one after the other."""
    folder = tmp_path_factory.mktemp("alone")
    model = detector()
    train(model, shapes(), two.one, folder, progress=False)
    return SimpleNamespace(folder=folder, model=model)


# Talking to each other


def test_what_processes_tell_each_other(two):
    first, second = answers(two.folder, "exchanges")
    assert first["world"] == [0, 2, 0, "cpu", True, True]
    assert second["world"] == [1, 2, 1, "cpu", False, True]
    assert first["any"] == second["any"] == [True, False]
    assert first["sum"] == second["sum"] == [2.0, 4.0]
    assert first["gather"] == [{"rank": 0}, {"rank": 1}] and second["gather"] == []
    assert first["share"] == second["share"] == [0]
    assert first["average"] == second["average"] == [[[0.5] * 3] * 2, [2.0]]


def test_what_fails_in_one_stops_all(two):
    first, second = answers(two.folder, "failures")
    assert first[0][:2] == ["PeerStopped", "process 1 of 2 stopped the job and says why"]
    assert second[0][:2] == ["ValueError", "bad image in 1"]
    assert first[1][:2] == ["ValueError", "bad image in 0"]
    assert second[1][0] == "PeerStopped"
    assert first[2][0] == second[2][0] == "nothing"


def test_alone_nothing_is_exchanged():
    assert distributed.current().size == 1
    with distributed.world("cpu") as me:
        assert (me.rank, me.size, me.local_rank, me.device, me.is_main) == (0, 1, 0, torch.device("cpu"), True)
        assert distributed.current() is me
        assert distributed.any_of(True) and not distributed.any_of(False)
        assert distributed.sum_of([1.5]) == [1.5]
        assert distributed.gather("x") == ["x"] and distributed.share("x") == "x"
        tensor = torch.tensor([3.0])
        distributed.average([tensor])
        assert tensor.item() == 3.0
        distributed.wait()
        with pytest.raises(ValueError, match="as it is"), distributed.together():
            raise ValueError("as it is")
        with pytest.raises(RuntimeError, match="Connection closed by peer"), distributed.noticing_loss("advice"):
            raise RuntimeError("gloo: Connection closed by peer")  # of another library, then


def test_each_process_takes_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert distributed._device(None, 1, 4) == torch.device("cuda", 1)
    assert distributed._device("cuda:1", 0, 1) == torch.device("cuda", 1)
    assert distributed._device("cpu", 1, 4) == torch.device("cpu")
    with pytest.raises(ValueError, match="process 2 of this machine wants GPU 2, which it has not: start as many"):
        distributed._device("cuda", 2, 4)
    with pytest.raises(ValueError, match="'cuda:1' with 4 processes: give 'cuda'"):
        distributed._device("cuda:1", 0, 4)


# Who computes what


def test_micro_batches_by_hand():
    paper = TrainConfig(batch_size=16, images_per_micro_batch=2)
    assert [micro_batch_size(paper, processes) for processes in (1, 2, 4, 8)] == [2] * 4
    assert micro_batch_size(TrainConfig(batch_size=16), 4) == 4
    assert micro_batch_size(TrainConfig(batch_size=16), 4, before=2) == 2  # a run keeps its own
    assert [list(places_of(rank, 2, 8)) for rank in range(2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    with pytest.raises(ValueError, match="batch_size=16 cannot be shared by 3 processes"):
        micro_batch_size(TrainConfig(batch_size=16), 3)
    with pytest.raises(ValueError, match="micro-batches of 8 makes 2, which 4 processes cannot share: .* divides 2"):
        micro_batch_size(TrainConfig(batch_size=16, images_per_micro_batch=8), 4)
    with pytest.raises(ValueError, match="hold 2 images, images_per_micro_batch is now 4: give 0 to keep them"):
        micro_batch_size(TrainConfig(batch_size=16, images_per_micro_batch=4), 4, before=2)
    with pytest.raises(ValueError, match="images_per_micro_batch is 3: it must be 0, or a divisor of batch_size=16"):
        TrainConfig(batch_size=16, images_per_micro_batch=3)


def test_processes_share_a_step_without_duplicates():
    config = TrainConfig(batch_size=8)
    data = shapes()
    (whole,) = load_step(data, 3, config, None, range(8), 8)
    shares = [load_step(data, 3, config, None, places_of(rank, 2, 8), 2) for rank in range(2)]
    assert [len(share) for share in shares] == [2, 2]
    dealt = [batch for share in shares for batch in share]
    assert sum((batch.image_ids for batch in dealt), []) == whole.image_ids
    assert whole.image_ids == [data.image_ids[index] for index in batch_indices(3, 8, 6, 0)]
    assert sum((batch.seeds for batch in dealt), []) == whole.seeds
    assert whole.seeds == [generator_for(0, "sampling", 3, place).initial_seed() for place in range(8)]
    assert len(set(whole.seeds)) == 8
    assert [g.initial_seed() for g in dealt[1].generators()] == whole.seeds[2:4]


# The real detector


def test_two_processes_train_as_one_does(two, alone):
    """Bit for bit: weights, momentum (so every gradient), the log and the facts of the checkpoint."""
    assert_same_run(two.folder / "two", alone.folder)
    rows = read_log(alone.folder / "log.csv")
    assert len(rows) == 4 and all(row["grad_norm"] > 0 and row["loss_keypoint"] >= 0 for row in rows)


def test_accumulation_is_no_step_on_the_first_micro_batch(two, alone, tmp_path):
    other = detector()
    train(other, shapes(), TrainConfig.from_dict({**DETECTOR.to_dict(), "batch_size": 2}), tmp_path, progress=False)
    weight, expected = other.box_predictor.cls_score.weight, alone.model.box_predictor.cls_score.weight
    assert not torch.allclose(weight, expected, rtol=1e-3)


def test_two_processes_equal_one_on_the_union_where_normalisers_agree(two, tmp_path):
    model, config = alike()
    train(model, shapes(), config, tmp_path, progress=False)  # one forward pass on all four images
    ours, facts = read_checkpoint(tmp_path / "last.safetensors")
    theirs, their_facts = read_checkpoint(two.folder / "union" / "last.safetensors")
    assert (facts["micro_batch"], their_facts["micro_batch"]) == (4, 2)
    gradients = [name for name in ours if name.endswith("momentum_buffer")]
    assert len(gradients) == sum(param.requires_grad for param in model.parameters())
    for name in gradients:
        scale = ours[name].abs().max()
        assert scale > 0, name
        assert torch.allclose(ours[name], theirs[name], rtol=0, atol=1e-12 * scale + 1e-15), name
    log, their_log = (read_log(folder / "log.csv")[0] for folder in (tmp_path, two.folder / "union"))
    assert log["loss_box"] > 0
    assert their_log == pytest.approx({**log, "images_per_second": their_log["images_per_second"]}, rel=1e-12)


def test_a_run_goes_on_with_another_number_of_processes(two, alone):
    first, second = answers(two.folder, "detectors")
    assert first["stopped"][0] == second["stopped"][0] == "KeyboardInterrupt"
    assert "after step 2 of 4" in first["stopped"][1]
    # begun by one, stopped after 3 steps, finished by two, which kept its micro-batches without being told
    assert read_checkpoint(two.folder / "one_parts" / "last.safetensors")[1]["micro_batch"] == 2
    # begun by two, stopped after 2, finished by one
    train(detector(seed=0), shapes(), DETECTOR, two.folder / "two_parts", resume=True, progress=False)
    whole, _ = read_checkpoint(alone.folder / "last.safetensors")
    for parts in ("one_parts", "two_parts"):
        tensors, facts = read_checkpoint(two.folder / parts / "last.safetensors")
        assert facts["step"] == 4
        assert tensors.keys() == whole.keys()
        assert all(torch.equal(value, whole[name]) for name, value in tensors.items()), parts
        log = without_rate(read_log(two.folder / parts / "log.csv"))
        assert log == without_rate(read_log(alone.folder / "log.csv"))


def test_images_without_objects_leave_no_process_behind(two, tmp_path):
    """A branch without work gives zeros that are in the graph: the others wait for every gradient."""
    emptied(tmp_path, 1)
    ours, theirs = (read_checkpoint(folder / "last.safetensors")[0] for folder in (tmp_path, two.folder / "empty"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("name", ["tiny-fpn", "tiny-c4", "tiny-c5"])
@pytest.mark.parametrize("stages", ["both", "rpn", "heads"])
def test_every_trained_parameter_gets_a_gradient(name, stages):
    """What DistributedDataParallel relies on, even where there is nothing to learn."""
    keypoints = 17 if name == "tiny-fpn" else 0
    model = build_model(name, shapes().num_classes, keypoints=keypoints, stages=stages, freeze_at=1)
    image, target = Emptied("demo", 1, image_size=(64, 80))[0]
    assert len(target["boxes"]) == 0
    target["proposals"] = torch.tensor([[4.0, 4.0, 30.0, 40.0]])  # on one level of the pyramid
    sum(model([image, image], [target, target], None).values()).backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not all(p.requires_grad for p in model.parameters())


def test_two_processes_measure_what_one_does(two, alone):
    first, second = answers(two.folder, "detectors")
    odd = shapes(5)  # three batches: process 0 takes two of them
    results = predict_dataset(alone.model, odd, batch_size=2, progress=False)
    assert first["results"] == json.loads(json.dumps(results))  # same images, same order, none twice
    assert all(results[kind] for kind in ("bbox", "segm", "keypoints"))
    assert not any(second["results"].values())
    metrics = json.loads(json.dumps(evaluate(alone.model, odd, batch_size=2, progress=False)))
    assert first["metrics"] == second["metrics"] == metrics
    assert first["few"] == json.loads(json.dumps(predict_dataset(alone.model, shapes(1), progress=False)))


# The toy model


def test_processes_stay_equal_and_resume_exactly(two):
    first, second = answers(two.folder, "toy_runs")
    for answer in (first, second):
        assert answer["stopped"][0] == "KeyboardInterrupt"
        assert re.search(r"stopped after step 5 of 12; saved .*parts/last.safetensors", answer["stopped"][1])
    assert first["same"] and second["same"]
    assert first["weights"] == second["weights"]
    assert first["weights"][0] == first["weights"][1]
    assert first["losses"] == second["losses"]
    assert (first["written"], second["written"]) == ([4, 8, 12, 4, 5, 8, 12], [])  # one writes
    assert not first["hidden_exchange"]  # in a forward pass, where one process may fail alone
    assert (first["rows"], second["rows"]) == (6, 4)  # process 0's log has the steps before the stop, too
    assert_same_run(two.folder / "whole", two.folder / "parts")
    assert sorted(path.name for path in (two.folder / "whole").iterdir()) == [
        "last.safetensors", "log.csv", "train_config.json",
    ]  # fmt: skip


def test_float16_overflows_for_two_processes_as_for_one(two, tmp_path):
    config = TrainConfig.from_dict({**FOUR.to_dict(), "precision": "float16", "images_per_micro_batch": 2})
    run(config, out_dir=tmp_path)
    ours, theirs = (without_rate(read_log(folder / "log.csv")) for folder in (tmp_path, two.folder / "half"))
    assert ours == theirs
    (tensors, facts), (their_tensors, their_facts) = (
        read_checkpoint(folder / "last.safetensors") for folder in (tmp_path, two.folder / "half")
    )
    assert facts["loss_scale"] == their_facts["loss_scale"]
    trained = [name for name in tensors if "running" not in name and "tracked" not in name]
    assert all(torch.equal(tensors[name], their_tensors[name]) for name in trained)


def test_running_statistics_are_means_over_processes(two):
    tensors, _ = read_checkpoint(two.folder / "first" / "last.safetensors")
    own = []
    for rank in range(2):
        model = ToyModel().train()
        (batch,) = load_step(ToyDataset(), 0, FOUR, None, places_of(rank, 2, 4), 2)
        model(batch.images, batch.targets, batch.generators())
        own.append(model.norm)
    for name in ("running_mean", "running_var"):
        first, second = (getattr(norm, name) for norm in own)
        assert not torch.allclose(first, second, rtol=1e-4)
        assert torch.allclose(tensors[f"model/norm.{name}"], (first + second) / 2, rtol=1e-6), name
    assert tensors["model/norm.num_batches_tracked"].item() == 1


def test_one_message_names_the_image_whoever_has_it(two):
    first, second = answers(two.folder, "guards")
    for name, said in (
        ("loss", r"step \d+: loss_box not finite; image 103 gives it alone.*nan_batch"),
        ("gradient", r"step \d+: gradient norm not finite; image 103 gives it alone"),
        ("refused", r"step \d+, image ids \[.*103.*\] in this order: image 0 has values"),
        ("broken", r"cannot read 103.jpg"),
    ):
        spoke, silent = (first, second) if second[name][0] == "PeerStopped" else (second, first)
        assert silent[name][0] == "PeerStopped"
        assert re.search(said, spoke[name][1]), spoke[name]
    for name, said in (("settings", "batch_size=3 cannot be shared by 2"), ("disk", "log.csv")):
        assert said in first[name][1] and second[name][0] == "PeerStopped"


# How a job ends


def last_words(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("mrcnn:")]


@pytest.mark.parametrize("name", ["killed", "killed_backward"])
def test_a_killed_worker_ends_the_job_with_one_message(tmp_path, name):
    status, output = finish(launch(WORKER, tmp_path, name))
    assert status != 0
    (line,) = last_words(output)
    assert "process 0 of 2 has lost another one, which was killed, failed or does not answer" in line
    assert "run/last.safetensors" in line and "--resume" in line
    assert "[rank" not in output  # torch prefixes a worker's traceback so
    assert read_checkpoint(tmp_path / "run" / "last.safetensors")[1]["step"] == 4
    assert [row["step"] for row in read_log(tmp_path / "run" / "log.csv")] == [2, 4, 6]
    run(FOUR, out_dir=tmp_path / "run", resume=True)
    assert read_checkpoint(tmp_path / "run" / "last.safetensors")[1]["step"] == 12


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_torchrun_leaves_one_checkpoint_of_one_step(tmp_path, number):
    job = launch(WORKER, tmp_path, "endless")
    saved = tmp_path / "run" / "last.safetensors"
    while job.poll() is None and not saved.exists():
        time.sleep(0.05)
    job.send_signal(number)
    status, output = finish(job)
    assert status != 0
    (line,) = last_words(output)
    step = int(re.search(r"mrcnn: interrupted. stopped after step (\d+) of 1000000; saved .*--resume", line)[1])
    assert read_checkpoint(saved)[1]["step"] == step
    assert output.count("finishing this step") == (number == signal.SIGINT)


@pytest.mark.parametrize(("name", "said"), [("poisoned", "image 103 gives it alone"), ("mistaken", "mistake of all")])
def test_an_error_is_told_once(tmp_path, name, said):
    status, output = finish(launch(WORKER, tmp_path, name))
    assert status != 0
    (line,) = last_words(output)
    assert said in line
    assert "[rank" not in output


def test_the_command_line_under_torchrun(tmp_path):
    options = "--steps 3 --batch-size 4 --images 6 --device cpu --threads 1 --out".split()
    status, output = finish(launch("-m", "mrcnn_scratch", "train", *options, tmp_path))
    assert status == 0, output
    assert len(re.findall(r"^3 steps in \d+ s: ", output, re.MULTILINE)) == 1
    assert "6 images of shapes:demo" in output
    facts = read_checkpoint(tmp_path / "last.safetensors")[1]
    assert (facts["step"], facts["micro_batch"]) == (3, 2)
