"""Checkpoints: whole or not at all, and never executed."""

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from mrcnn_scratch import build_model
from mrcnn_scratch.weights import (
    export_torchvision_weights,
    load_model,
    load_model_tensors,
    load_pretrained,
    model_tensors,
    read_checkpoint,
    save_model,
    write_checkpoint,
)

TINY = dict(
    widths=(8, 8, 8, 8),
    fpn_channels=8,
    box_hidden=8,
    mask_channels=8,
    mask_convs=1,
    keypoint_channels=8,
    keypoint_convs=1,
)


def tiny(name="tiny-fpn", num_classes=3, keypoints=2, **fields):
    return build_model(name, num_classes, keypoints=keypoints, **(TINY | fields))


@pytest.mark.parametrize(
    "fields", [dict(), dict(name="tiny-c4", masks=False, keypoints=0, roi_op="pool", conventions="torchvision")]
)
def test_round_trip(tmp_path, fields):
    model = tiny(**fields).eval()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.01  # not the weights that a fresh model would draw
    path = tmp_path / "new" / "model.safetensors"
    save_model(model, path, class_names=["background", "a", "b"], step=7)
    loaded, metadata = load_model(path)
    assert loaded.config == model.config and not loaded.training
    assert metadata["class_names"] == ["background", "a", "b"] and metadata["step"] == 7 and metadata["format"] == 1
    state = loaded.state_dict()
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    image = torch.rand(3, 32, 48)
    for name, value in model([image])[0].items():
        assert torch.equal(loaded([image])[0][name], value)


def test_tensors_keep_shape_dtype_and_values(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    tensors = {
        "optimizer/half": base.half(),
        "optimizer/transposed": base.T,
        "optimizer/view": base[1],  # shares its storage with the others
        "optimizer/empty": torch.zeros(0, 3),
        "optimizer/step": torch.tensor(5),
        "model/x": base.double().requires_grad_(),
    }
    write_checkpoint(tmp_path / "t.safetensors", tensors, {"step": 1, "nested": {"a": [1, 2.5, None, "ä"]}})
    read, metadata = read_checkpoint(tmp_path / "t.safetensors")
    assert read.keys() == tensors.keys()
    for name in tensors:
        assert torch.equal(read[name], tensors[name].detach()) and read[name].dtype == tensors[name].dtype
    assert metadata == {"format": 1, "step": 1, "nested": {"a": [1, 2.5, None, "ä"]}}


def test_a_training_checkpoint_is_a_model_too(tmp_path):
    model = tiny()
    from dataclasses import asdict

    tensors = model_tensors(model) | {"optimizer/momentum/x": torch.ones(3)}
    write_checkpoint(tmp_path / "t.safetensors", tensors, {"config": asdict(model.config), "step": 3})
    loaded, metadata = load_model(tmp_path / "t.safetensors")
    assert metadata["step"] == 3
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "t.safetensors"
    write_checkpoint(path, {"model/x": torch.ones(2)}, {"step": 1})
    for stage in ("mrcnn_scratch.weights.save_file", "os.fsync", "os.replace"):
        with monkeypatch.context() as patch:

            def broken(*args, **kwargs):
                raise OSError("No space left on device")

            patch.setattr(stage, broken)
            with pytest.raises(OSError, match="No space"):
                write_checkpoint(path, {"model/x": torch.zeros(2)}, {"step": 2})
        assert os.listdir(tmp_path) == ["t.safetensors"]  # no debris
        assert read_checkpoint(path)[1]["step"] == 1


def test_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"none.safetensors does not exist: give the path of a .safetensors file"):
        load_model(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="does not exist"):
        load_model(tmp_path)  # a folder


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_file(tmp_path, keep):
    path = tmp_path / "t.safetensors"
    save_model(tiny(), path)
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    with pytest.raises(
        ValueError, match=r"t.safetensors \(\d+ bytes\) is truncated or not a safetensors file.*copy it again"
    ):
        load_model(path)


def test_foreign_safetensors(tmp_path):
    save_file({"backbone.body.conv1.weight": torch.ones(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="foreign.safetensors was not written by mrcnn_scratch"):
        load_model(tmp_path / "foreign.safetensors")


def test_load_pretrained_reads_our_own_files_as_load_model_does(tmp_path):
    model = tiny()
    save_model(model, tmp_path / "model.safetensors", class_names=["background", "a", "b"])
    loaded, metadata = load_pretrained(tmp_path / "model.safetensors")
    assert metadata["class_names"] == ["background", "a", "b"] and "identified" not in metadata
    assert all(torch.equal(loaded.state_dict()[k], v) for k, v in model.state_dict().items())
    with pytest.raises(ValueError, match="does not exist"):
        load_pretrained(tmp_path / "none.safetensors")
    (tmp_path / "short.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:500])
    with pytest.raises(ValueError, match="truncated or not a safetensors file"):
        load_pretrained(tmp_path / "short.safetensors")


def test_load_pretrained_reads_torchvisions_names_from_safetensors_too(tmp_path):
    small = dict(fpn_channels=16, box_hidden=16, mask_channels=16, mask_convs=2, norm="batch")
    model = build_model("R18-FPN", 4, conventions="torchvision", **small).eval()
    save_file({k: v.clone() for k, v in export_torchvision_weights(model).items()}, tmp_path / "tv.safetensors")
    loaded, metadata = load_pretrained(tmp_path / "tv.safetensors", score_threshold=0.2)
    assert loaded.config == model.config.with_fields(score_threshold=0.2) and not loaded.training
    assert all(torch.equal(loaded.state_dict()[k], v) for k, v in model.state_dict().items())
    assert "class_names" not in metadata and "num_classes=4" in metadata["identified"]


class Bomb:
    def __reduce__(self):
        return os.mkdir, (os.environ["MRCNN_TEST_BOMB"],)


@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_a_pickle_is_refused_and_not_executed(tmp_path, monkeypatch, writer):
    monkeypatch.setenv("MRCNN_TEST_BOMB", str(tmp_path / "exploded"))
    path = tmp_path / "model.safetensors"
    if writer == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    else:
        torch.save({"model": Bomb()}, path)
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_model(path)
    assert not (tmp_path / "exploded").exists()
    pickle.loads(pickle.dumps(Bomb()))  # the charge was live
    assert (tmp_path / "exploded").exists()


def test_another_format_and_no_configuration(tmp_path):
    write_checkpoint(tmp_path / "a.safetensors", {"model/x": torch.ones(1)}, {"format": 2})
    with pytest.raises(ValueError, match="has format 2, this version reads 1: update mrcnn_scratch"):
        read_checkpoint(tmp_path / "a.safetensors")
    write_checkpoint(tmp_path / "b.safetensors", {"model/x": torch.ones(1)}, {})
    with pytest.raises(ValueError, match="has no model configuration: save it with save_model"):
        load_model(tmp_path / "b.safetensors")


def test_weights_that_do_not_fit_are_named():
    model = tiny(num_classes=3)
    with pytest.raises(ValueError) as error:
        load_model_tensors(model, model_tensors(tiny(num_classes=5)), "five.safetensors")
    assert "five.safetensors" in str(error.value) and "build the model with the configuration" in str(error.value)
    assert "box_predictor.cls_score.weight is (5, 8), the model has (3, 8)" in str(error.value)
    assert "missing [] (0), unexpected [] (0)" in str(error.value)
    with pytest.raises(ValueError, match=r"missing \['keypoint_head.*unexpected \[\] \(0\)"):
        load_model_tensors(model, model_tensors(tiny(keypoints=0)), "x")
    with pytest.raises(ValueError, match=r"missing \[\] \(0\), unexpected \['keypoint_head"):
        load_model_tensors(tiny(keypoints=0), model_tensors(model), "x")


def test_nothing_is_loaded_where_one_tensor_does_not_fit():
    model = tiny(num_classes=3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError):
        load_model_tensors(model, model_tensors(tiny(num_classes=5, seed=1)), "x")
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = build_model("tiny-fpn", num_classes=3)
    with torch.no_grad():
        model.box_predictor.cls_score.weight[0, 0] = float("nan")
    save_model(model, tmp_path / "nan.safetensors")
    with pytest.raises(ValueError, match=r"not finite: \['box_predictor.cls_score.weight'\]"):
        load_model(tmp_path / "nan.safetensors")
