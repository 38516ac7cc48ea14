"""The named backbones against torchvision's, with the same weights; what is frozen; what each neck gives."""

import pytest
import torch
import torchvision
from torch import nn

from mrcnn_scratch import build_model
from mrcnn_scratch.backbones import freeze, make_backbone, make_res5, own_stream
from mrcnn_scratch.presets import PRESETS, model_config

RESNETS = ["resnet18", "resnet50", "resnet101", "resnext101_32x8d", "resnext101_64x4d"]
SIZE = 75, 101  # odd at every stride but one


def config_of(backbone, norm="frozen", **fields):
    return model_config("R50-FPN", backbone=backbone, norm=norm, **{"stride_in_1x1": False, "freeze_at": 0} | fields)


def theirs_with_random_weights(backbone, generator):
    """torchvision's network in double precision, with statistics and biases that are not those it starts with."""
    with torch.device("meta"):
        network = getattr(torchvision.models, backbone)(weights=None)
    network.fc = nn.Identity()
    network = network.to(torch.float64).to_empty(device="cpu")
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith("num_batches_tracked"):
                value.zero_()
            elif name.endswith("running_var") or (value.dim() == 1 and name.endswith("weight")):
                value.uniform_(0.3, 1.2, generator=generator)
            elif value.dim() == 1:
                value.normal_(std=0.3, generator=generator)
            else:
                value.normal_(std=value[0].numel() ** -0.5, generator=generator)
    return network


def our_names(state):
    """torchvision's ``layer3.0.bn1.bias`` is ``stages.2.0.bn1.bias`` here; the stem is ``stem.0`` and ``stem.1``."""
    renamed = {}
    for name, value in state.items():
        first, rest = name.split(".", 1)
        stem = {"conv1": "stem.0", "bn1": "stem.1"}
        renamed[f"{stem.get(first) or f'stages.{int(first[-1]) - 1}'}.{rest}"] = value
    return renamed


def their_stages(network, x):
    x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
    outputs = []
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        x = stage(x)
        outputs.append(x)
    return outputs


def image(generator, size=SIZE, count=1):
    return torch.randn(count, 3, *size, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("backbone", RESNETS)
def test_stages_equal_torchvisions(generator, backbone):
    theirs = theirs_with_random_weights(backbone, generator).eval()
    with torch.device("meta"):
        ours = make_backbone(config_of(backbone, "frozen"))
    state = {k: v for k, v in our_names(theirs.state_dict()).items() if not k.endswith("num_batches_tracked")}
    ours.load_state_dict(state, strict=True, assign=True)  # shares their memory
    x = image(generator)
    with torch.no_grad():
        mine, wanted = ours(x), their_stages(theirs, x)
    assert len(mine) == 4 and [m.shape[1] for m in mine] == list(ours.channels)
    for level, (a, b) in enumerate(zip(mine, wanted, strict=True)):
        assert a.shape[-2:] == tuple(-(-side // 4 // 2**level) for side in SIZE)
        assert 0.05 < float(b.std()) < 1e3  # neither dead nor overflowing, or equality says little
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backbone", RESNETS)
def test_as_many_parameters_as_torchvisions(backbone):
    with torch.device("meta"):
        theirs = getattr(torchvision.models, backbone)(weights=None)
        ours, frozen = (make_backbone(config_of(backbone, norm)) for norm in ("batch", "frozen"))
    norms = sum(p.numel() for m in theirs.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters())
    count = sum(p.numel() for n, p in theirs.named_parameters() if not n.startswith("fc."))
    assert sum(p.numel() for p in ours.parameters()) == count
    assert sum(p.numel() for p in frozen.parameters()) == count - norms  # scale and shift are buffers there
    wanted = our_names({k: v.shape for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    assert {k: v.shape for k, v in ours.state_dict().items()} == wanted


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_trains_as_torchvisions(generator, backbone, training):
    theirs = theirs_with_random_weights(backbone, generator).train(training)
    ours = make_backbone(config_of(backbone, "batch")).double().train(training)
    ours.load_state_dict(our_names(theirs.state_dict()), strict=True)
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    x = image(generator, (64, 43), 2)
    mine, wanted = ours(x), their_stages(theirs, x)
    for a, b in zip(mine, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
    for name, value in our_names(theirs.state_dict()).items():  # running statistics and their counts move alike
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-9, atol=1e-9)
    moved = [k for k, v in ours.state_dict().items() if not torch.equal(v, before[k])]
    assert bool(moved) == training and all("running" in k or "num_batches" in k for k in moved)

    sum(o.sum() for o in mine).backward()
    sum(o.sum() for o in wanted).backward()
    wanted = our_names({name: p.grad for name, p in theirs.named_parameters()})
    for name, p in ours.named_parameters():
        scale = float(wanted[name].abs().max()) + 1
        torch.testing.assert_close(p.grad / scale, wanted[name] / scale, rtol=0, atol=1e-7)


def test_eps_of_the_norms_is_the_configurations():
    for backbone in ("tiny", "resnet18", "resnet50"):
        for norm in ("batch", "frozen", "group"):
            fields = dict(neck="c4", anchor_sizes=((32,),), pyramid_top=False, norm_eps=0.0625)
            config = config_of(backbone, norm, **fields)
            with torch.device("meta"):
                res5, _ = make_res5(config, 1)
                norms = [m for part in (make_backbone(config), res5) for m in part.modules() if hasattr(m, "eps")]
            assert norms and {m.eps for m in norms} == {0.0625}


# ---------------------------------------------------------------------------------------------- freezing


@pytest.mark.parametrize("backbone", ["tiny", "resnet18", "resnet50", "efficientnet_lite0"])
@pytest.mark.parametrize("freeze_at", range(6))
def test_what_trains(backbone, freeze_at):
    with torch.device("meta"):
        model = build_model("R50-FPN", 3, backbone=backbone, freeze_at=freeze_at, norm="batch", min_size=0)
    frozen = ["stem.", "stages.0.", "stages.1.", "stages.2.", "stages.3."][:freeze_at]
    for name, parameter in model.backbone.named_parameters():
        assert parameter.requires_grad != name.startswith(tuple(frozen)), name
    elsewhere = [n for n, p in model.named_parameters() if not n.startswith("backbone.") and not p.requires_grad]
    assert elsewhere == []


@pytest.mark.parametrize("freeze_at", range(6))
def test_gradients_stop_where_the_frozen_stages_begin(generator, freeze_at):
    config = model_config("tiny-fpn", widths=(8, 8, 8, 8))
    network = make_backbone(config)
    freeze(network, freeze_at)
    outputs = network(torch.randn(1, 3, 64, 64, generator=generator))
    assert [o.requires_grad for o in outputs] == [stage > freeze_at for stage in (2, 3, 4, 5)]
    if freeze_at < 5:
        sum(o.square().sum() for o in outputs).backward()
    has_gradient = {
        part: {p.grad is not None for p in module.parameters()}
        for part, module in enumerate([network.stem, *network.stages])
    }
    assert has_gradient == {part: {part >= freeze_at} for part in range(5)}


# ---------------------------------------------------------------------------------------------- necks


def test_the_necks_of_a_resnet_18(generator):
    x = torch.randn(1, 3, *SIZE, generator=generator)
    fields = dict(backbone="resnet18", norm="frozen", min_size=0, masks=False, box_hidden=8, freeze_at=0)
    fpn = build_model("R50-FPN", 3, **fields, fpn_channels=8).eval()
    c5 = build_model("R50-C5", 3, **fields).eval()
    c4 = build_model("R50-C4", 3, **fields).eval()
    with torch.no_grad():
        shapes = {name: [tuple(f.shape) for f in m.extract(x)] for name, m in (("fpn", fpn), ("c5", c5), ("c4", c4))}
        assert shapes == {
            "fpn": [(1, 8, 19, 26), (1, 8, 10, 13), (1, 8, 5, 7), (1, 8, 3, 4), (1, 8, 2, 2)],
            "c5": [(1, 512, 3, 4)],
            "c4": [(1, 256, 5, 7)],
        }
        stages = c5.backbone(x)
        assert torch.equal(c5.extract(x)[0], stages[3])
        c4.backbone.load_state_dict({k: v for k, v in c5.backbone.state_dict().items() if "stages.3" not in k})
        assert torch.equal(c4.extract(x)[0], stages[2])
        # res5 as a head, fed with the whole of C4 and with its stride, is the last stage
        res5, channels = make_res5(c4.config, 2)
        res5.load_state_dict(c5.backbone.stages[3].state_dict())
        assert channels == 512 and torch.equal(res5(stages[2]), stages[3])
    assert (c4.config.strides, c5.config.strides, fpn.config.strides) == ((16,), (32,), (4, 8, 16, 32, 64))


@pytest.mark.parametrize("stride_in_1x1", [True, False])
def test_the_head_of_c4_has_its_stride_where_the_backbone_has(stride_in_1x1):
    with torch.device("meta"):
        model = build_model("R50-C4", 3, stride_in_1x1=stride_in_1x1, res5_stride=2, box_pool=14, mask_pool=14)
        other = build_model("R50-C4", 3, stride_in_1x1=stride_in_1x1)
    for block in (model.backbone.stages[1][0], model.backbone.stages[2][0], model.box_trunk[0]):
        assert (block.conv1.stride[0], block.conv2.stride[0]) == ((2, 1) if stride_in_1x1 else (1, 2))
        assert block.downsample[0].stride == (2, 2)
    assert {m.stride for m in other.box_trunk.modules() if isinstance(m, nn.Conv2d)} == {(1, 1)}  # the paper's
    assert len(model.box_trunk) == 3 and model.box_predictor.cls_score.in_features == 2048


# ---------------------------------------------------------------------------------------------- building


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_without_memory_and_fits_its_anchors(name):
    with torch.device("meta"):
        model = build_model(name, 5, keypoints=17).eval()
        assert all(value.is_meta for value in model.state_dict().values())
        features = model.extract(torch.zeros(1, 3, *SIZE))
        logits, deltas = model.rpn(features)
    config = model.config
    assert len(features) == len(config.strides) == len(config.anchor_sizes)
    anchors = model.anchors([torch.zeros(f.shape[-2:]).expand(1, 1, -1, -1) for f in features])
    for feature, stride, logit, delta, anchor in zip(features, config.strides, logits, deltas, anchors, strict=True):
        assert feature.shape[-2:] == tuple(-(-side // stride) for side in SIZE)
        assert logit.shape == (1, len(anchor)) and delta.shape == (1, len(anchor), 4)


def test_the_named_models_are_what_they_say():
    assert {name: config.backbone for name, config in PRESETS.items()} == {
        "tiny-fpn": "tiny", "tiny-c4": "tiny", "tiny-c5": "tiny", "R18-FPN": "resnet18", "R50-C4": "resnet50",
        "R101-C4": "resnet101", "R50-C5": "resnet50", "R101-C5": "resnet101", "R50-FPN": "resnet50",
        "R101-FPN": "resnet101", "X101-FPN": "resnext101_64x4d", "X101-32x8d-FPN": "resnext101_32x8d",
        "EffLite0-FPN": "efficientnet_lite0",
    }  # fmt: skip
    for name, config in PRESETS.items():
        assert config.neck == name.rsplit("-", 1)[1].lower()
        assert (name.startswith("tiny") or config.neck != "fpn") != config.pyramid_top
        assert config.stride_in_1x1 == (config.backbone in ("resnet18", "resnet50", "resnet101"))  # the paper's ResNets


@pytest.mark.parametrize("name", ["R18-FPN", "R50-C4", "EffLite0-FPN"])
def test_the_seed_decides(name):
    def backbone(seed):
        config = model_config(name, seed=seed)
        with own_stream(seed, "backbone"):
            return make_backbone(config).state_dict()

    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = backbone(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    again, other = backbone(0), backbone(1)
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert all(not torch.equal(v, other[k]) for k, v in first.items() if v.dim() == 4)


def test_the_models_seed_is_the_configurations():
    fields = dict(masks=False, box_hidden=8, fpn_channels=8)
    first, again, other = (build_model("R18-FPN", 3, seed=s, **fields).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    weights = [k for k, v in first.items() if v.dim() == 4]
    assert len(weights) > 20 and not any(torch.equal(first[k], other[k]) for k in weights)
