# %% [markdown]
# # 05 · ResNet, C4, FPN
#
# **Goal.** Know what one cell of a feature map has seen, write the feature pyramid that makes fine maps as wise as
# coarse ones, and write the rule that sends each RoI to its map.
#
# **Minutes.** Under 1 of computing on two CPU cores, about 45 of reading and writing. **Seed.** 0. Nothing is
# downloaded.

# %%
import math

import torch
import torch.nn.functional as F
from matplotlib_inline.backend_inline import set_matplotlib_formats

from mrcnn_scratch import ShapesDataset, box_iou, build_model, load_model
from mrcnn_scratch.course.checks import check_fpn, check_roi_level
from mrcnn_scratch.predict import shipped_checkpoint
from mrcnn_scratch.visualize.panels import axes_row, draw_boxes
from mrcnn_scratch.visualize.style import PALETTE, show_array, show_image

set_matplotlib_formats("jpeg", pil_kwargs={"quality": 80, "optimize": True, "progressive": True})

# %% [markdown]
# ## Four maps, four strides
#
# A detector has to find things of 20 and of 800 pixels. Its backbone, a **ResNet**, is a stem and four stages; each
# gives a map, C2 to C5, half as fine as the one before. A cell of C5 stands for 32 x 32 pixels, its **stride**. Here
# are the maps of the shipped detector, for an image cut to 96 rows, so that height and width differ. In each panel one
# cell is filled: the one in the middle.

# %%
model, metadata = load_model(shipped_checkpoint())
data = ShapesDataset("demo", 200, split="val", seed=0)
image = data[95][0][:, :96]
batch = model.prepare([image])
with torch.no_grad():
    stages = model.backbone(batch.images)
for stage, stride in zip(stages, (4, 8, 16, 32), strict=True):
    print(f"stride {stride:2d}: {tuple(stage.shape)}")

# %%
pale = image * 0.45 + 0.55
for panel, stage, stride in zip(axes_row("C2", "C3", "C4", "C5", height=2.2), stages, (4, 8, 16, 32), strict=True):
    y, x = (stride * (side // 2) for side in stage.shape[-2:])
    show_image(panel, pale)
    panel.hlines(range(0, 97, stride), 0, 128, color="0.4", linewidth=0.5)
    panel.vlines(range(0, 129, stride), 0, 96, color="0.4", linewidth=0.5)
    draw_boxes(panel, torch.tensor([[x, y, x + stride, y + stride]]), "black", fill=True, facecolor=PALETTE[1])

# %% [markdown]
# ## Predict
#
# 1. Each halving is a 3 x 3 convolution of stride 2 with a padding of 1. **How many rows and
#    columns has C5 for an image of 75 x 101 pixels: "2 x 3" or "3 x 4"?**
# 2. RoIs are pooled from maps by their size; one of 224 x 224 pixels goes to P4. **Where does one of 448 x 112 go,
#    twice as wide and half as high: "P3", "P4" or "P5"?**
# 3. That rule has the number 224 in it, and the images of our detector have 128 pixels. **Which map do most of its
#    RoIs come from: "P2", "P3", "P4" or "P5"?**

# %%
guess_size = "2 x 3"  # "2 x 3" or "3 x 4"
guess_wide = "P5"  # "P3", "P4" or "P5"
guess_most = "P3"  # "P2", "P3", "P4" or "P5"

# %% [markdown]
# ## What is in a stage
#
# A stage is a few **residual blocks**: two 3 x 3 convolutions (three in the large ones: 1 x 1, 3 x 3, 1 x 1), each
# followed by a normalisation, whose result is *added* to what came in. So a block only has to learn a correction, and
# gradients reach early layers through the sums. Where a block halves the map, a 1 x 1 convolution of stride 2 brings
# what came in to the new shape. This is all of it, held against the package's blocks. Most parameters are in the last
# stage, where cells are few.

# %%
def residual(x, block):
    shortcut = x if block.downsample is None else block.downsample(x)
    x = block.bn1(block.conv1(x)).relu()
    return (block.bn2(block.conv2(x)) + shortcut).relu()


with torch.no_grad():
    x = model.backbone.stem(batch.images)
    for stage, wanted in zip(model.backbone.stages, stages, strict=True):
        x = residual(x, stage[0])  # one block a stage here
        torch.testing.assert_close(x, wanted, rtol=1e-3, atol=1e-3)
print("parameters of each stage:", [sum(p.numel() for p in stage.parameters()) for stage in model.backbone.stages])

# %% [markdown]
# ## What a cell has seen, by hand
#
# The **receptive field** of a cell is the part of the image that its value depends on. One 3 x 3 convolution of stride
# 2 sees **3** pixels a side, and its cells are **2** pixels apart. The next one, again 3 x 3 with stride 2, sees 3 of
# these cells: the first one's 3 pixels, and twice 2 more, **7**. Its cells are **4** pixels apart. The stem of our
# detector ends there; a 3 x 3 convolution after it adds two steps of 4 pixels: **15**.

# %%
def receptive_field(layers):
    field, stride = 1, 1
    for kernel, step in layers:
        field, stride = field + (kernel - 1) * stride, stride * step
    return field, stride


print(receptive_field([(3, 2)]), receptive_field([(3, 2), (3, 2)]), receptive_field([(3, 2), (3, 2), (3, 1)]))
blocks = [[(3, 2), (3, 2), (3, 1), (3, 1)], *[[(3, 2), (3, 1)]] * 3]  # stem and res2, res3, res4, res5
fields = [receptive_field(sum(blocks[: k + 1], []))[0] for k in range(4)]
print("C2 to C5 see", fields, "pixels a side")

# %% [markdown]
# We can ask the network itself. The gradient of a cell with respect to the image is zero for every pixel that the cell
# does not see. Upper row: the cell in the middle of C2 to C5, its receptive field dashed, and how much each pixel moves
# it (to the power of 0.3, which makes small values visible). Lower row: the same for the pyramid's maps, P2 to P5,
# which you are about to build.

# %%
def sight(maps, pixels):
    for feature in maps:
        middle = feature[0, :, feature.shape[2] // 2, feature.shape[3] // 2].norm()
        yield torch.autograd.grad(middle, pixels, retain_graph=True)[0][0].abs().sum(dim=0)


pixels = batch.images.clone().requires_grad_()
for letter, network in (("C", model.backbone), ("P", model.extract)):
    seen = list(sight(network(pixels), pixels))
    titles = [f"{letter}{k + 2} sees {float((values > 0).float().mean()):.0%}" for k, values in enumerate(seen)]
    for k, (panel, values) in enumerate(zip(axes_row(*titles, height=2.2), seen, strict=True)):
        show_array(panel, values**0.3, cmap="magma")
        if letter == "C":
            y, x = (2 ** (k + 2) * (side // 2) + 0.5 for side in stages[k].shape[-2:])
            half = fields[k] / 2
            draw_boxes(panel, torch.tensor([[x - half, y - half, x + half, y + half]]), "white", linestyle="--")
            panel.set(xlim=(0, 128), ylim=(96, 0))

# %% [markdown]
# Three things to see. A cell of C2 knows 23 pixels a side, less than most objects: it can tell an edge or an eye, not
# a person. The field of C5 is larger than the image, and brightest near its middle. And a cell of P2, as fine as C2,
# sees all of the image, if faintly. (A detail: a field is not centred on its cell but near the cell's upper left
# corner, because the first cell of a 3 x 3 convolution of stride 2 looks at pixels -1, 0 and 1. ResNets padded like
# this all have that shift, and learn with it.)
#
# ## C4: one map for all
#
# Before the pyramid, detectors took *one* map, C4, for anchors and for RoIs of every size; stage res5 then runs on each
# pooled RoI. A RoI of 512 pixels has 32 cells a side there, one of 32 pixels has **2**, and 7 x 7 bins are laid over
# these.

# %%
c4 = build_model("tiny-c4", num_classes=4).eval()
with torch.no_grad():
    features = c4.extract(batch.images)
    pooled = c4.pool(features, [torch.tensor([[10.0, 20.0, 42.0, 60.0], [0.0, 0.0, 128.0, 96.0]])], 7)
    res5 = c4.box_trunk(pooled)
print("C4", tuple(features[0].shape), "pooled", tuple(pooled.shape), "after res5", tuple(res5.shape))

# %% [markdown]
# ## The pyramid, by hand
#
# The **feature pyramid network**, FPN, starts at the top. Each map gets a 1 x 1 convolution, **lateral**, that brings
# it to the common number of channels. From coarse to fine, the sum above is enlarged to the size of the map below, each
# cell repeated, and added. At the end each *sum* goes through a 3 x 3 convolution of its own; that is P2 to P5.
#
# Let all convolutions change nothing. C3 is one row, **10, 20**; C2 has rows 1, 2, 3 and 4, 5, 6. Three columns are an
# odd number: C3 has half of them, rounded *up*. Enlarged to 2 x 3, C3 is 10, 10, 20 twice. P2: **11, 12, 23** and **14,
# 15, 26**.

# %%
c2, c3 = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]]), torch.tensor([[[[10.0, 20.0]]]])
enlarged = F.interpolate(c3, size=c2.shape[-2:], mode="nearest")
print("enlarged", enlarged[0, 0].tolist(), "sum", (c2 + enlarged)[0, 0].tolist())
with torch.no_grad():
    odd = model.backbone(torch.zeros(1, 3, 75, 101))
print("75 x 101 pixels:", ", ".join("{} x {}".format(*feature.shape[-2:]) for feature in odd))
print(f"You guessed {guess_size!r}; it is '3 x 4': every halving rounds up.")

# %% [markdown]
# ## Exercise 1: `my_fpn`
#
# The forward pass. Features come fine to coarse, and so do the convolutions: `lateral[0]` belongs to C2. Return P2,
# P3, ... in the same order. A factor of two would do for sizes that are multiples of 32, and would fail on 75 x 101:
# use the size of the map below.
#
# <details><summary>Hint 1: where to begin</summary>
#
# At the last level: its sum is its lateral map alone. Keep the sum in a variable; it is what goes down.
#
# </details>
#
# <details><summary>Hint 2: one step down</summary>
#
# `F.interpolate(merged, size=..., mode="nearest")`, with the height and width of this level's feature, plus this
# level's lateral map: that is the new `merged`. Its 3 x 3 convolution goes to the *front* of the result.
#
# </details>

# %% tags=["exercise"]
def my_fpn(features: list, lateral: list, output: list) -> list:
    """The feature pyramid: C2, C3, ... (N, C_l, H_l, W_l), fine to coarse -> P2, P3, ... (N, C, H_l, W_l).

    lateral, output: for each level a 1x1 and a 3x3 convolution, fine to coarse.
    If they change nothing, [[1, 2, 3], [4, 5, 6]] with [[10, 20]] above becomes [[11, 12, 23], [14, 15, 26]].
    """
    ### BEGIN SOLUTION
    merged = lateral[-1](features[-1])
    pyramid = [output[-1](merged)]
    for level in range(len(features) - 2, -1, -1):
        above = F.interpolate(merged, size=features[level].shape[-2:], mode="nearest")
        merged = lateral[level](features[level]) + above
        pyramid.insert(0, output[level](merged))
    return pyramid
    ### END SOLUTION


# %%
check_fpn(my_fpn)

# %% [markdown]
# The package's version is the module `FPN`, whose `forward` is this function and which also owns the convolutions;
# `pyramid_top` adds P6, every second cell of P5, for the largest anchors. From here on we use the trained pyramid of
# the shipped detector, `model.fpn`. The picture takes level 2 apart: how strong the features of each cell are, on the
# way from C2 to P2. A hook catches the sum on its way into P2's 3 x 3 convolution.

# %%
fpn, sums = model.fpn, []
hook = fpn.output[0].register_forward_pre_hook(lambda layer, given: sums.append(given[0]))
with torch.no_grad():
    pyramid, side = fpn(stages), fpn.lateral[0](stages[0])
hook.remove()
parts = {"C2, lateral": side, "what comes down": sums[0] - side, "their sum": sums[0], "P2": pyramid[0]}
for panel, values in zip(axes_row(*parts, height=2.2), parts.values(), strict=True):
    show_array(panel, values[0].norm(dim=0), cmap="magma", interpolation="nearest")

# %% [markdown]
# C2 answers to edges of anything. What comes down is coarse, in cells of 8 pixels and more, and sets the objects apart
# from what is around them (here it is *weak* on objects; strong or weak is the network's choice). The sum has both:
# what, from above, and where, from the side. In P2 the objects stand out, with their outlines. That is the whole idea.
# It is worth 3.3 points of mask AP in Mask R-CNN's Table 2a, where R50-C4 has 30.3 and R50-FPN 33.6, and the heads
# become lighter, since res5 no longer runs on each RoI.
#
# ## Which map pools which RoI?
#
# P2 to P5 look alike to the head, which is shared. So RoIs should cover about as many *cells*, whatever their size.
# **FPN, equation 1**, is the rule: k = floor(4 + log2(root(w h) / 224)), kept between 2 and 5.
#
# By hand: a RoI of **448** x **112** has an area of 50,176, whose root is **224**. log2(1) = 0: level **4**. One of
# 200 x 200: log2(200 / 224) = **-0.16**, 4 - 0.16 = 3.84, and the whole number *below* it is **3**.

# %%
for side in (32, 64, 128, 256, 512):
    k = max(2, min(5, math.floor(4 + math.log2(side / 224))))
    print(f"{side:3d} pixels: P{k}, {side / 2**k:4.1f} cells a side; on C4 {side / 16:4.1f}")
print(f"You guessed {guess_wide!r}; it is 'P4': only the area counts.")

# %% [markdown]
# ## Exercise 2: `my_roi_level`
#
# The rule for many RoIs at once, with its numbers as arguments. A RoI without an area, which a young network may well
# propose, goes to the finest level: log2(0) is minus infinity, which the limits take care of. But a RoI turned inside
# out may have a negative area, and its root is NaN.
#
# <details><summary>Hint 1</summary>
#
# Area, clamped at 0, then root, divided by `canonical_size`, `torch.log2`, plus `canonical_level`.
#
# </details>
#
# <details><summary>Hint 2: whole numbers</summary>
#
# `torch.floor` comes after the sum, then `clamp(k_min, k_max)`, and the conversion to int64 last: of the logarithm
# it would cut -0.16 to 0, and it makes a strange number of infinity.
#
# </details>

# %% tags=["exercise"]
def my_roi_level(boxes, k_min=2, k_max=5, canonical_size=224.0, canonical_level=4):
    """FPN, eq. 1: the level that pools each RoI, (R, 4) xyxy in pixels -> (R,) int64 between k_min and k_max.

    [10, 10, 458, 122], 448 x 112 pixels, goes to level 4, [10, 10, 210, 210] to level 3.
    """
    ### BEGIN SOLUTION
    sides = boxes[:, 2:] - boxes[:, :2]  # (R, 2)
    root = sides.prod(dim=1).clamp(min=0).sqrt()
    level = torch.floor(canonical_level + torch.log2(root / canonical_size))
    return level.clamp(k_min, k_max).long()
    ### END SOLUTION


# %%
check_roi_level(my_roi_level)

# %% [markdown]
# The package's version is `assign_levels`, used from here on. It returns the *place* of the level in a list that starts
# at `k_min`, so 0 for P2, and adds 1e-8 to the ratio, as Detectron2 does. The picture shows the rule as a map of all
# shapes of RoIs, with the objects of 200 demo images in it: at their own size, and as they would be if the images were
# enlarged from 128 to 800 pixels, the size that the paper uses.

# %%
from mrcnn_scratch.roi_ops.levels import assign_levels
from mrcnn_scratch.visualize.pyramid import level_map

objects = torch.cat([data[i][1]["boxes"] for i in range(200)])
sets = {"128-pixel images": objects, "enlarged to 800": objects * 6.25}
plane, bars = axes_row("which map pools a RoI", f"the {len(objects)} objects, by map", height=4.2)
level_map(plane, sets)
for shift, (name, boxes), colour in zip((-0.2, 0.2), sets.items(), ("#222222", "white"), strict=True):
    counts = assign_levels(boxes, 2, 5).bincount(minlength=4)
    drawn = bars.bar(torch.arange(4) + shift, counts, width=0.4, color=colour, edgecolor="#222222", label=name)
    bars.bar_label(drawn, fontsize=9)
bars.set(xticks=range(4), xticklabels=["P2", "P3", "P4", "P5"], ylabel="objects", ylim=(0, 560))
_ = bars.legend()

# %%
with torch.no_grad():
    proposals = torch.cat([found["boxes"] for found in model.propose([data[i][0] for i in range(20)])])
share = assign_levels(proposals, 2, 5).bincount(minlength=4) / len(proposals)
print("RoIs of 20 images that come from P2 to P5:", [f"{x:.0%}" for x in share.tolist()])
print(f"You guessed {guess_most!r}; it is 'P2'.")

# %% [markdown]
# Lines of equal area are diagonals in this picture; a RoI may be wide or tall, its map is the same. 224 is the size of
# an ImageNet crop, and it fits images of 800 pixels: there the objects spread over P3, P4 and P5. In images of 128
# pixels all of them are "small", and the shipped detector pools from P2 nearly alone, objects of 7 to 21 cells a side.
# It can afford that because P2 sees all of the image. `canonical_size` is a field of the configuration: 36 would spread
# its RoIs as 224 does at 800 pixels.
#
# ## Break it
#
# In NumPy `x.repeat(2)` doubles each *element*; in PyTorch it repeats the whole tensor, like tiles. Someone enlarges
# the sums with `x.repeat(1, 1, 2, 2)`. The shape is right. We plant it in the shipped detector, beside two other
# changes: bilinear interpolation, and nothing at all from above. Predict: which of the three does harm, and how much?

# %%
def pyramid_with(enlarge):
    def forward(features):
        pyramid, above = [], None
        for feature, lateral, output in zip(features[::-1], fpn.lateral[::-1], fpn.output[::-1], strict=True):
            merged = lateral(feature) if above is None else lateral(feature) + enlarge(above)
            pyramid.insert(0, output(merged))
            above = merged
        return pyramid

    return forward


ways = {
    "nearest": lambda x: F.interpolate(x, scale_factor=2, mode="nearest"),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "tiles": lambda x: x.repeat(1, 1, 2, 2),  # the bug
    "nothing": lambda x: 0.0,
}

# %%
examples = [data[i] for i in (95, *range(24))]
results, strengths = {}, {}
for name, enlarge in ways.items():
    fpn.forward = pyramid_with(enlarge)
    with torch.no_grad():
        results[name] = model([picture for picture, _ in examples])
        strengths[name] = model.extract(model.prepare([examples[0][0]]).images)[0][0].norm(dim=0)
del fpn.forward  # the class's own again
for name, detections in results.items():
    hits = 0
    for (_, target), found in zip(examples, detections, strict=True):
        right = target["labels"][:, None] == found["labels"][None, found["scores"] >= 0.5]  # (G, D)
        overlap = box_iou(target["boxes"], found["boxes"][found["scores"] >= 0.5])
        hits += int((right & (overlap >= 0.5)).any(dim=1).sum())
    print(f"{name:8s}: {hits} of {sum(len(target['boxes']) for _, target in examples)} objects found")

# %%
from mrcnn_scratch.visualize import draw_instances

titles = [f"{what}: {name}" for name in ("nearest", "tiles") for what in ("P2", "found")]
for place, panel in enumerate(axes_row(*titles, height=2.2)):
    name = ("nearest", "tiles")[place // 2]
    if place % 2 == 0:
        show_array(panel, strengths[name], cmap="magma", interpolation="nearest")
    else:
        sure = {key: value[results[name][0]["scores"] >= 0.5] for key, value in results[name][0].items()}
        draw_instances(panel, examples[0][0] * 0.45 + 0.55, sure, metadata["class_names"])

# %% [markdown]
# Bilinear interpolation does no harm: the convolutions do not mind softer steps. Tiles are nearly as bad as nothing
# from above, and look nothing like an error: the shape is right, and so are the mean and the spread of what comes down.
# Three of the four objects here are still found with scores of 0.90 and more, which is what makes such a bug live
# long. The lower person has lost the head, and its score is 0.51. A detector *trained* with the bug would at best learn
# to do without what comes down. Our hand example catches it at once, because its cells differ and it is not square:
# tiles give 10, 20, 10 in place of 10, 10, 20.
#
# ## Quiz
#
# **1.** Why does a 3 x 3 convolution follow each sum, and not the lateral 1 x 1 alone?
#
# <details><summary>Answer</summary>
#
# Enlarging by repeating leaves steps of 2, 4 and 8 cells in the sum. The 3 x 3 convolution smooths them (FPN, section
# 3, calls it the aliasing of upsampling).
#
# </details>
#
# **2.** An image of 800 x 1333 pixels: how large are P5 and P6?
#
# <details><summary>Answer</summary>
#
# 25 x 42: 1333 / 32 = 41.7, rounded up. P6, every second cell: 13 x 21.
#
# </details>
#
# **3.** A RoI of 150 x 150 pixels goes to P3. The image is shown at twice its size. Where does the RoI go?
#
# <details><summary>Answer</summary>
#
# To P4: its side has doubled, one level more. On its map it covers as many cells as before, 18.75 a side, so that the
# head sees the same picture.
#
# </details>
#
# **4.** How many cells a side has a square RoI that P3 or P4 pools?
#
# <details><summary>Answer</summary>
#
# From 14 to 28: on P3 from 112 / 8 to 224 / 8. 7 x 7 bins with 2 samples a side are 14 samples: no cell in between is
# left out by much.
#
# </details>
#
# **5.** Someone takes the larger side in place of the root of the area. Which RoIs go astray?
#
# <details><summary>Answer</summary>
#
# Long ones: a pencil of 448 x 56 goes to P5 and is 1.75 cells high there. By its area, a root of 158, it belongs to P3,
# where it is 7 cells high.
#
# </details>

# %% [markdown]
# ## What you have now
#
# | you wrote | the package has | file | used again in |
# |---|---|---|---|
# | `my_fpn` | `FPN`, `pyramid_top` | [`fpn.py`](../mrcnn_scratch/fpn.py) | 06 and 13: the features |
# | `my_roi_level` | `assign_levels` | [`levels.py`](../mrcnn_scratch/roi_ops/levels.py) | 10: pooling |
# | `residual`, read | `ResNet`, `TinyResNet` | [`resnet.py`](../mrcnn_scratch/resnet.py) | 13, 17 weights |
#
# Next: the first part that learns. Notebook 06 trains the region proposal network alone.
