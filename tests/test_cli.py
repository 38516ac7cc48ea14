"""The command line as a user meets it: what works, and how every mistake is told in one line with exit status 2."""

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command import mrcnn as call
from PIL import Image

from mrcnn_scratch import cli, weights
from mrcnn_scratch.cli.options import ap_table
from mrcnn_scratch.datasets.coco_export import export_coco
from mrcnn_scratch.datasets.shapes import ShapesDataset

TINY = ["--steps", "2", "--batch-size", "2", "--threads", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small COCO-format folder with a train and a val split."""
    path = tmp_path_factory.mktemp("data") / "shapes"
    export_coco([ShapesDataset("demo", 6, split="train"), ShapesDataset("demo", 3, split="val")], path)
    return path


@pytest.fixture(scope="module")
def checkpoint(folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run")
    assert call("train", "--data", folder, "--out", out, *TINY) == 0
    return out / "last.safetensors"


def refused(capsys, *arguments) -> str:
    """The message of a command that must end with status 2, without a traceback."""
    capsys.readouterr()
    assert call(*arguments) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message and message.strip()
    return message


def test_make_check_train_eval(folder, checkpoint, tmp_path, capsys):
    assert call("data", "make", tmp_path / "made", "--train", 3, "--val", 2, "--preset", "hard") == 0
    assert call("data", "check", tmp_path / "made") == 0
    assert "0 errors" in capsys.readouterr().out
    assert call("eval", checkpoint, "--data", folder, "--out", tmp_path / "ap.json", "--threads", 1) == 0
    measured = json.loads((tmp_path / "ap.json").read_text())
    assert set(measured) == {"box", "mask", "keypoints"}
    assert all(-1 <= measured[kind]["AP50"] <= 1 for kind in measured)
    assert "mask" in capsys.readouterr().out


def test_training_leaves_what_it_promises(checkpoint):
    run = checkpoint.parent
    assert (run / "log.csv").read_text().startswith("step,")
    assert json.loads((run / "train_config.json").read_text())["steps"] == 2
    model, metadata = weights.load_model(checkpoint)
    assert metadata["class_names"] == ["background", "person", "star", "ring"]
    assert model.config.keypoints == 17 and metadata["step"] == 2


def test_the_tiny_models_have_toy_settings(checkpoint, capsys):
    kept = json.loads((checkpoint.parent / "train_config.json").read_text())
    assert (kept["lr"], kept["optimizer"], kept["schedule"]) == (0.02, "sgd", "cosine")
    assert kept["warmup_steps"] == 0 and kept["clip_norm"] == 10 and kept["images_per_micro_batch"] == 0
    assert call("train", "--dry-run", "--steps-measured", 0) == 0
    told = capsys.readouterr().out
    assert told.startswith("1600 images of shapes:demo (train), 1,412,016 parameters\nparameters\n")
    assert "schedule: 1,000 steps of 4 images" in told and "warm   step       50" in told


def test_a_run_is_told_how_to_run(tmp_path, monkeypatch):
    from mrcnn_scratch import training

    seen = {}

    def run(model, dataset, config, out, **options):
        seen.update(options, out=out, images=len(dataset))
        return training.TrainResult([], 1, 0.0, None)

    monkeypatch.setattr(training, "train", run)
    options = ["--images", 3, "--workers", 2, "--resume", "--tensorboard", "--out", tmp_path / "run"]
    assert call("train", *options) == 0
    asked = {"workers": 2, "resume": True, "tensorboard": True, "overwrite": False}
    assert seen == {**asked, "out": tmp_path / "run", "images": 3}


def test_settings_reach_model_and_training(tmp_path):
    settings = ["--set", "roi_op=pool", "--set", "gamma=0.5", "--set", "anchor_sizes=[[20],[40],[80],[160]]"]
    data = ["--data", "shapes:hard", "--images", 4, "--no-keypoints"]
    assert call("train", *data, "--out", tmp_path, *settings, *TINY) == 0
    model, metadata = weights.load_model(tmp_path / "last.safetensors")
    assert model.config.roi_op == "pool" and model.config.keypoints == 0
    assert model.config.anchor_sizes == ((20,), (40,), (80,), (160,))
    assert metadata["train_config"]["gamma"] == 0.5


def test_the_first_images_of_a_folder(folder, tmp_path, capsys):
    assert call("train", "--data", folder, "--images", 2, "--out", tmp_path / "run", *TINY) == 0
    assert "2 images" in capsys.readouterr().out
    assert "6" in refused(capsys, "train", "--data", folder, "--images", 7, "--out", tmp_path / "no", *TINY)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", "--set", "roi_opp=pool"], ["roi_opp", "roi_op"]),
        (["train", "--set", "bogus=1"], ["bogus", "config.py and mrcnn_scratch/schedule.py"]),
        (["predict", "."], ["is a folder", "give image files"]),
        (["predict", "x.jpg", "--min-size", "90", "--max-size", "80"], ["--min-size", "90", "--max-size", "80"]),
        (["train", "--set", "roi_op"], ["roi_op", "name=value"]),
        (["train", "--set", "roi_op=crop"], ["roi_op", "crop", "align"]),
        (["train", "--config", "R50"], ["R50", "tiny-fpn"]),
        (["train", "--conventions", "mine"], ["mine", "torchvision"]),
        (["train", "--data", "shapes:nope"], ["nope", "demo"]),
        (["train", "--data", "no-such-folder"], ["no-such-folder", "shapes:demo"]),
        (["train", "--lr", "-1"], ["lr", "-1"]),
        (["train", "--recipe", "mine"], ["mine", "paper, detectron, torchvision"]),
        (["train", "--config", "R50-C4", "--recipe", "torchvision"], ["R50-C4", "torchvision", "detectron"]),
        (["train", "--config", "R50-FPN", "--micro-batch", "5"], ["images_per_micro_batch", "batch_size=16"]),
        (["train", "--show-recipe"], ["tiny-fpn", "--recipe paper"]),
        (["train", "--root", "somewhere"], ["--root somewhere", "--data coco"]),
        (["train", "--precision", "float8"], ["float8", "bfloat16"]),
        (["train", "--device", "tpu"], ["tpu", "cpu", "cuda"]),
        (["train", "--backbone-weights", "no-such.pth"], ["no-such.pth"]),
        (["train", "--backbone-weights", "imagenet"], ["imagenet", "EffLite0-FPN", "tiny"]),
        (["train", "--config", "R50-FPN"], ["coco"]),
        (["train", "--dry-run", "--data", "no-such-folder"], ["no-such-folder"]),
        (["train", "--steps", "0"], ["--steps"]),
        (["train", "--optimizer", "lion"], ["lion", "adamw"]),
        (["eval", "no-such.safetensors"], ["no-such.safetensors"]),
        (["predict", "no-such.jpg"], ["no-such.jpg"]),
        (["data", "make", "x", "--preset", "nope"], ["nope", "demo"]),
        (["data", "check", "no-such-folder"], ["no-such-folder"]),
        (["frobnicate"], ["frobnicate"]),
    ],
)
def test_mistakes_are_named(arguments, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = " ".join(refused(capsys, *arguments).split())
    for word in named:
        assert word in message, (word, message)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "a refused command leaves nothing behind"


def test_a_full_folder_is_not_written_into(folder, capsys):
    before = sorted(path.name for path in folder.rglob("*"))
    assert str(folder) in refused(capsys, "data", "make", folder)
    assert sorted(path.name for path in folder.rglob("*")) == before


def test_checkpoints_that_are_none(checkpoint, folder, tmp_path, capsys):
    truncated = tmp_path / "short.safetensors"
    truncated.write_bytes(checkpoint.read_bytes()[:5000])
    assert "short.safetensors" in refused(capsys, "eval", truncated, "--data", folder)
    pickled = tmp_path / "pickle.safetensors"
    torch.save({"a": torch.ones(2)}, pickled)
    assert "pickle.safetensors" in refused(capsys, "predict", "x.jpg", "--checkpoint", pickled)
    assert "classes" in refused(capsys, "eval", checkpoint, "--data", "shapes:coco-like", "--images", 2)


def test_faulty_data_is_refused_or_it_is_said_what_is_dropped(folder, checkpoint, tmp_path, capsys):
    import shutil

    faulty = tmp_path / "faulty"
    shutil.copytree(folder, faulty)
    path = faulty / "annotations" / "instances_train.json"
    document = json.loads(path.read_text())
    document["annotations"][0]["bbox"][2] = 0
    document["annotations"][0]["category_id"] = 999
    path.write_text(json.dumps(document))
    number = str(document["annotations"][0]["id"])
    assert number in refused(capsys, "train", "--data", faulty, "--out", tmp_path / "run", *TINY)
    assert not (tmp_path / "run").exists()
    assert call("data", "check", faulty) == 1
    listed = capsys.readouterr().out
    assert number in listed and "999" in listed
    for command in (["train", "--out", tmp_path / "run", *TINY], ["eval", checkpoint, "--split", "train"]):
        capsys.readouterr()
        assert call(*command, "--data", faulty, "--drop-faulty") == 0
        told = capsys.readouterr().err
        assert "mrcnn: " in told and number in told
        assert "UserWarning" not in told and ".py:" not in told
    assert "--drop-faulty" in refused(capsys, "eval", checkpoint, "--split", "train", "--data", faulty)


def test_a_corrupt_jpeg_is_named_before_anything_is_written(checkpoint, folder, tmp_path, capsys):
    good = sorted((folder / "images").glob("*.jpg"))[:2]
    corrupt = tmp_path / "corrupt.jpg"
    corrupt.write_bytes(good[0].read_bytes()[:300])
    out = tmp_path / "out"
    message = refused(capsys, "predict", good[0], corrupt, good[1], "--checkpoint", checkpoint, "--out", out)
    assert "corrupt.jpg" in message
    assert not out.exists()


def test_predict_writes_pictures_and_coco_results(checkpoint, tmp_path, capsys):
    from pycocotools.coco import COCO

    wide, grey = tmp_path / "wide.png", tmp_path / "grey.png"
    Image.new("RGB", (90, 50), (40, 90, 200)).save(wide)
    Image.new("L", (64, 70), 128).save(grey)
    out = tmp_path / "out"
    assert call("predict", wide, grey, "--checkpoint", checkpoint, "--out", out, "--threshold", 0, "--threads", 1) == 0
    with Image.open(out / "wide.png") as image:
        magnified = image.size[0] // 90
        assert image.size == (90 * magnified, 50 * magnified)
    results = {kind: json.loads((out / f"results_{kind}.json").read_text()) for kind in ("bbox", "segm", "keypoints")}
    assert [entry["file_name"] for entry in json.loads((out / "images.json").read_text())] == ["wide.png", "grey.png"]
    assert len(results["bbox"]) == len(results["segm"]) > 0
    persons = [row for row in results["bbox"] if row["category_id"] == 1]  # stars and rings have no keypoints
    assert 0 < len(persons) < len(results["bbox"])
    assert [row["score"] for row in results["keypoints"]] == [row["score"] for row in persons]
    assert all(row["category_id"] == 1 for row in results["keypoints"])
    told = capsys.readouterr()
    assert all(name in told.out for name in ("results_bbox.json", "results_keypoints.json", "images.json"))
    assert "ships" not in told.err
    images = [{"id": 1, "width": 90, "height": 50}, {"id": 2, "width": 64, "height": 70}]
    truth = COCO()
    truth.dataset = {"images": images, "annotations": [], "categories": [{"id": i} for i in (1, 4, 7)]}
    truth.createIndex()
    loaded = truth.loadRes(results["segm"])
    assert {annotation["category_id"] for annotation in loaded.dataset["annotations"]} <= {1, 4, 7}
    sizes = {annotation["image_id"]: annotation["segmentation"]["size"] for annotation in results["segm"]}
    assert all(sizes[image["id"]] == [image["height"], image["width"]] for image in images if image["id"] in sizes)


def test_the_shipped_checkpoint_says_what_it_knows(folder, tmp_path, capsys):
    photo = min((folder / "images").glob("*.jpg"))
    assert call("predict", photo, "--out", tmp_path, "--threads", 1) == 0
    assert "nothing of the real world" in capsys.readouterr().err


def test_a_folder_is_no_checkpoint(checkpoint, folder, tmp_path, capsys):
    run = checkpoint.parent
    assert f"is a folder: give {checkpoint}" in refused(capsys, "eval", run, "--data", folder)
    assert f"is a folder: give {checkpoint}" in refused(capsys, "predict", "x.jpg", "--checkpoint", run)
    assert "give the .safetensors file" in refused(capsys, "eval", tmp_path, "--data", folder)


@pytest.mark.parametrize("inside", [False, True])
def test_a_file_is_no_folder_for_results(checkpoint, folder, tmp_path, capsys, inside):
    file = tmp_path / "file"
    file.write_text("mine")
    out = file / "in" if inside else file
    photo = min((folder / "images").glob("*.jpg"))
    for command in (["train", *TINY], ["predict", photo], ["demo"], ["eval", checkpoint, "--data", folder]):
        if command[0] == "eval" and not inside:
            continue  # its --out is a file
        assert f"--out {file} is a file: name a folder" in refused(capsys, *command, "--out", out)
    assert "is a file: name a folder" in refused(capsys, "data", "make", out)
    assert "name a JSON file" in refused(capsys, "eval", checkpoint, "--data", folder, "--out", tmp_path)
    assert file.read_text() == "mine" and list(tmp_path.iterdir()) == [file]


def test_the_table_is_aligned_whatever_the_name():
    scores = {"AP": 0.5, "AP50": -1.0, "AP75": 0.25}
    name = "a-very-long-name-of-a-checkpoint.safetensors"
    lines = ap_table({name: {"box": scores, "keypoints": scores}}).split("\n")
    assert "0 to 1" in lines[0] and lines[1] == name
    assert [line.split() for line in lines[2:]] == [[kind, "0.500", "n/a", "0.250"] for kind in ("box", "keypoints")]
    assert len({len(line) for line in (lines[0], *lines[2:])}) == 1


def test_an_earlier_demo_is_replaced_and_it_is_said(tmp_path, capsys, monkeypatch):
    from mrcnn_scratch import demo

    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run_demo", stopped)
    assert call("demo", "--out", tmp_path) == 130
    assert "replaced" not in capsys.readouterr().err
    (tmp_path / "roi_align").mkdir()
    (tmp_path / "roi_align" / "last.safetensors").touch()
    assert call("demo", "--out", tmp_path) == 130
    assert f"{tmp_path} holds an earlier demo: it is replaced (use --resume" in capsys.readouterr().err
    assert call("demo", "--out", tmp_path, "--resume") == 130
    assert "replaced" not in capsys.readouterr().err


def test_ctrl_c_outside_a_command_is_quiet(capsys, monkeypatch):
    def stopped(**options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", stopped)
    assert call("train") == 130
    assert capsys.readouterr().err.strip() == "mrcnn: interrupted."


def test_two_photos_of_one_name_are_refused(checkpoint, tmp_path, capsys):
    for folder_name in ("a", "b"):
        (tmp_path / folder_name).mkdir()
        Image.new("RGB", (64, 64)).save(tmp_path / folder_name / "same.jpg")
    photos = [tmp_path / "a" / "same.jpg", tmp_path / "b" / "same.jpg"]
    assert "same.png" in refused(capsys, "predict", *photos, "--checkpoint", checkpoint, "--out", tmp_path / "out")


def test_ctrl_c_and_resume_end_with_the_same_weights(folder, tmp_path):
    def command(out: Path, *more) -> list[str]:
        data = ["--data", str(folder), "--out", str(out), "--steps", "12", "--batch-size", "2", "--threads", "1"]
        program = "from mrcnn_scratch.cli import main; main()"
        return [sys.executable, "-c", program, "train", *data, "--set", "log_every=1", *more]

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(command(whole), check=True, capture_output=True)
    process = subprocess.Popen(
        command(broken), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job of a shell ignores it
    )  # fmt: skip
    log = broken / "log.csv"
    while process.poll() is None and not (log.exists() and len(log.read_text().splitlines()) > 3):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "the same command with --resume goes on" in errors
    again = shlex.join(["mrcnn", *command(broken)[3:], "--resume"])
    assert again in errors.splitlines()[-1]
    stopped = weights.read_checkpoint(broken / "last.safetensors")[1]["step"]
    assert 0 < stopped < 12
    subprocess.run(command(broken, "--resume"), check=True, capture_output=True)
    one, _ = weights.read_checkpoint(whole / "last.safetensors")
    other, _ = weights.read_checkpoint(broken / "last.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_recipe_is_printed_with_its_sources(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("train", "--config", "R50-C4", "--recipe", "detectron", "--show-recipe") == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "steps 180,000 e2e_mask_rcnn_R-50-C4_1x.yaml: SOLVER.MAX_ITER" in words
    yaml = "e2e_mask_rcnn_R-50-C4_1x.yaml"
    assert f"roi_batch 512 {yaml}: TRAIN.BATCH_SIZE_PER_IM 64 paper: section 3.1: 64 or 512" in words
    assert call("train", "--config", "R50-FPN", "--keypoints", "--show-recipe") == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "steps 90,000 section 5" in words and "keypoint_convs 8 section 5" in words and "mask_pool" not in words
    assert call("train", "--config", "R50-FPN", "--keypoints", "--masks", "--show-recipe") == 0
    assert "mask_pool" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_dry_run_without_data_counts_and_leaves_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("train", "--config", "R50-FPN", "--dry-run", "--steps-measured", 0, "--out", tmp_path / "run") == 0
    told = capsys.readouterr().out
    assert "COCO is not here, noise takes its place" in told and "recipe 'paper'" in told
    assert "published 44,401,393, ours 44,401,393: equal" in told and "nothing was run" in told
    assert "160,000 steps of 16 images in micro-batches of 2" in told
    keypoints = ["--keypoints", "--recipe", "torchvision", "--batch-size", 8, "--micro-batch", 4]
    assert call("train", "--config", "R50-FPN", "--dry-run", "--steps-measured", 0, *keypoints) == 0
    told = capsys.readouterr().out
    assert "total               59,137,258" in told and "an epoch is 56,599 images" in told and "mask head" not in told
    assert "steps of 8 images in micro-batches of 4" in told and "linear scaling: 8 images" in told
    assert not list(tmp_path.iterdir())


def test_a_dry_run_measures_the_run_that_would_be(folder, capsys, tmp_path):
    data = ["--data", folder, "--images", 4, "--threads", 1, "--out", tmp_path / "run"]
    options = ["--batch-size", 4, "--micro-batch", 2, "--precision", "bfloat16", "--steps-measured", 1]
    assert call("train", *data, *options, "--dry-run") == 0
    told = capsys.readouterr().out
    assert "4 images of" in told and "measured: 1 step of 2 images in each of 1 process" in told
    assert "bfloat16, 1 thread, images of the data" in told and "images per second" in told
    assert not (tmp_path / "run").exists()


def settings_of(run: Path) -> dict:
    return json.loads((run / "train_config.json").read_text())


def test_options_win_over_the_recipe_and_settings_over_options(tmp_path, capsys):
    data = ["--config", "tiny-fpn", "--recipe", "paper", "--data", "shapes:demo", "--images", 4, "--threads", 1]
    run = ["--batch-size", 2, "--steps", 2, "--precision", "bfloat16", "--workers", 1]
    assert call("train", *data, *run, "--set", "gamma=0.5", "--seed", 7, "--out", tmp_path / "a") == 0
    kept = settings_of(tmp_path / "a")
    assert (kept["steps"], kept["batch_size"], kept["lr"]) == (2, 2, 0.02 * 2 / 16)
    assert (kept["gamma"], kept["seed"], kept["schedule"], kept["clip_norm"]) == (0.5, 7, "step", None)
    assert kept["milestones"] == [0.75] and kept["precision"] == "bfloat16" and kept["images_per_micro_batch"] == 2
    told = capsys.readouterr()
    assert "linear scaling: 2 images a step instead of 16, so lr 0.0025\n" in told.out and "random" not in told.err
    model, _ = weights.load_model(tmp_path / "a" / "last.safetensors")
    assert model.config.seed == 7 and model.config.masks
    assert not model.config.keypoints, "a recipe trains keypoints if it is asked to"
    tv = ["--recipe", "torchvision", "--lr", 9, "--micro-batch", 1, "--no-masks", "--set", "box_beta=0.25"]
    tv += ["--set", "lr=0.1"]
    assert call("train", *data, *run, *tv, "--out", tmp_path / "b") == 0
    kept = settings_of(tmp_path / "b")
    assert kept["lr"] == 0.1 and kept["milestones"] == [16 / 26, 22 / 26] and kept["images_per_micro_batch"] == 1
    config = weights.load_model(tmp_path / "b" / "last.safetensors")[0].config
    assert config.paste_legacy and config.anchor_rounded and config.box_beta == 0.25 and not config.masks


def test_a_recipe_in_epochs_counts_the_images(tmp_path, capsys):
    options = ["--config", "tiny-fpn", "--recipe", "torchvision", "--data", "shapes:demo", "--images", 40]
    assert call("train", *options, "--dry-run", "--steps-measured", 0) == 0
    told = capsys.readouterr().out
    assert "schedule: 52 steps of 16 images" in told  # 26 epochs of 40 // 16 steps
    assert "drop   step       32" in told and "drop   step       44" in told


SMALL = ["--set", "min_size=64", "--set", "fpn_channels=16", "--set", "box_hidden=16", "--set", "mask_channels=16"]


def test_a_backbone_begins_with_its_weights(tmp_path, capsys):
    from torchvision.models import resnet18

    state = resnet18().state_dict()
    torch.save(state, tmp_path / "resnet18.pth")
    options = ["--config", "R18-FPN", "--data", "shapes:demo", "--images", 2, "--batch-size", 1, "--steps", 1, *SMALL]
    pretrained = ["--backbone-weights", tmp_path / "resnet18.pth"]
    assert call("train", *options, *pretrained, "--out", tmp_path / "run", "--threads", 1) == 0
    assert "random" not in capsys.readouterr().err
    model, _ = weights.load_model(tmp_path / "run" / "last.safetensors")
    own = model.state_dict()
    assert torch.equal(own["backbone.stem.0.weight"], state["conv1.weight"])
    assert torch.equal(own["backbone.stages.0.1.conv2.weight"], state["layer1.1.conv2.weight"])  # frozen, too
    trained = (own["backbone.stages.3.0.conv1.weight"] - state["layer4.0.conv1.weight"]).abs().max()
    assert 0 < trained < 0.1
    assert model.config.freeze_at == 2 and model.config.norm == "frozen" and model.config.min_size == 64
    assert call("train", *options, "--out", tmp_path / "bare", "--threads", 1) == 0
    assert "--backbone-weights" in capsys.readouterr().err


def test_weights_bring_their_stride_and_pixels(tmp_path, capsys, monkeypatch):
    """torchvision's ResNet-50 has its stride in the 3x3, where the paper's recipe has it in the 1x1."""
    from torchvision.models import resnet50

    from mrcnn_scratch.run_setup import Wishes, model_config_of

    torch.save(resnet50().state_dict(), tmp_path / "resnet50.pth")
    wishes = Wishes("R50-FPN", "detectron", None, None, None, {}, {"seed": 0})
    bare = model_config_of(wishes, None, None)
    assert bare.stride_in_1x1 and bare.std == (1 / 255,) * 3 and bare.num_classes == 81
    config = model_config_of(wishes, None, str(tmp_path / "resnet50.pth"))
    assert not config.stride_in_1x1 and config.mean == (0.485, 0.456, 0.406) and config.mask_target_binary
    own = Wishes("R50-FPN", "detectron", None, None, None, {"stride_in_1x1": True}, {"seed": 0})
    assert model_config_of(own, None, str(tmp_path / "resnet50.pth")).stride_in_1x1


@pytest.fixture
def coco(folder, tmp_path) -> Path:
    """The folder as COCO lays it out: an image has lost its objects, one its persons, one its keypoints."""
    import shutil

    root = tmp_path / "coco"
    shutil.copytree(folder / "images", root / "train2017")
    (root / "annotations").mkdir()
    drawn = ShapesDataset("demo", 6, split="train")
    first, second, *others = drawn.image_ids
    third = next(i for i in others if (drawn[drawn.image_ids.index(i)][1]["labels"] == 1).any())
    for task in ("instances", "person_keypoints"):
        document = json.loads((folder / "annotations" / f"{task}_train.json").read_text())
        document["annotations"] = [
            one
            for one in document["annotations"]
            if one["image_id"] != first and (one["image_id"], one["category_id"]) != (second, 1)
        ]
        for one in document["annotations"]:
            if one["image_id"] == third and task == "person_keypoints":
                one.update(keypoints=[0] * 51, num_keypoints=0)
        (root / "annotations" / f"{task}_train2017.json").write_text(json.dumps(document))
    return root


def test_a_recipe_reads_coco_and_leaves_out_images_without_objects(coco, tmp_path, capsys):
    options = ["--config", "tiny-fpn", "--recipe", "paper", "--root", coco, "--batch-size", 2, "--steps", 1]
    assert call("train", *options, "--out", tmp_path / "run", "--threads", 1) == 0
    assert "6 images of coco (train), of which 5 have objects, " in capsys.readouterr().out
    metadata = weights.load_model(tmp_path / "run" / "last.safetensors")[1]
    assert metadata["class_names"] == ["background", "person", "star", "ring"]
    assert call("train", *options, "--keypoints", "--out", tmp_path / "persons", "--threads", 1) == 0
    drawn = ShapesDataset("demo", 6, split="train")
    persons = sum(bool((drawn[i][1]["labels"] == 1).any()) for i in range(2, 6))
    assert persons > 1 and f"of which {persons - 1} have objects with keypoints, " in capsys.readouterr().out
    model, metadata = weights.load_model(tmp_path / "persons" / "last.safetensors")
    assert metadata["class_names"] == ["background", "person"]
    assert model.config.keypoints == 17 and not model.config.masks and model.config.num_classes == 2
    saved, scores = tmp_path / "persons" / "last.safetensors", tmp_path / "persons.json"
    where = ("--data", "coco", "--root", coco, "--split", "train")
    assert call("eval", saved, *where, "--out", scores, "--threads", 1) == 0
    measured = json.loads(scores.read_text())  # on the persons of data that has three classes
    assert set(measured) == {"box", "keypoints"} and list(measured["box"]["AP_by_category"]) == ["1"]
    toy = ["--data", "coco", "--root", coco, "--batch-size", 2, "--steps", 1]
    assert call("train", *toy, "--out", tmp_path / "toy", "--threads", 1) == 0
    assert "6 images of coco (train), 1," in capsys.readouterr().out  # without a recipe all are kept


def test_two_processes_train_one_model_and_speak_once(folder, tmp_path):
    import os
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port]
    options = ["--data", str(folder), "--steps", "2", "--batch-size", "4", "--threads", "1", "--device", "cpu"]
    root = Path(cli.__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    job = subprocess.run(
        [*launcher, "-m", "mrcnn_scratch", "train", *options, "--out", str(tmp_path / "run")],
        capture_output=True, text=True, env=environment, timeout=200,
    )  # fmt: skip
    assert job.returncode == 0, job.stderr[-3000:]
    assert job.stdout.count("6 images of") == 1 and job.stdout.count("2 steps in") == 1
    metadata = weights.read_checkpoint(tmp_path / "run" / "last.safetensors")[1]
    assert metadata["step"] == 2 and metadata["micro_batch"] == 2
    saved, scores = tmp_path / "run" / "last.safetensors", tmp_path / "ap.json"
    evaluation = ["eval", str(saved), "--data", str(folder), "--threads", "1", "--device", "cpu", "--out"]
    job = subprocess.run(
        [*launcher, "-m", "mrcnn_scratch", *evaluation, str(scores)], capture_output=True, text=True, env=environment,
        timeout=200,
    )  # fmt: skip
    assert job.returncode == 0, job.stderr[-3000:]
    assert job.stdout.count("AP from 0 to 1") == 1
    assert call(*evaluation, tmp_path / "alone.json") == 0
    assert json.loads(scores.read_text()) == json.loads((tmp_path / "alone.json").read_text())
