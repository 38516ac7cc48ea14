# %% [markdown]
# # 01 · Pixels, boxes, IoU, deltas
#
# **Goal.** Write the three functions on which everything else stands: the overlap of two boxes, the move from one box
# to another as four numbers, and the way back.
#
# **Minutes.** Under 1 of computing on two CPU cores, about 40 of reading and writing. **Seed.** 0. Nothing is
# downloaded.
#
# **How exercises work, from here on.** A cell has a function without a body; you write it, run the cell, and run the
# check below it. Until you do, the check says what it will try, and the notebook goes on with the package's function,
# so that *Run All* always reaches the end. Hints are folded, the solution below them, too.

# %%
import torch
from matplotlib_inline.backend_inline import set_matplotlib_formats

from mrcnn_scratch import ShapesDataset
from mrcnn_scratch.course.checks import check_decode, check_encode, check_iou
from mrcnn_scratch.visualize.panels import axes_row, draw_boxes
from mrcnn_scratch.visualize.style import PALETTE, show_image

set_matplotlib_formats("png")

# %% [markdown]
# ## A pixel is a square
#
# Everything in this course hangs on one convention. An image of 128 pixels is the interval from 0 to 128. Pixel 0 is
# the square from 0 to 1, its centre is at 0.5. A box is `x1, y1, x2, y2`: left, top, right, bottom, with y pointing
# *down*. Its width is `x2 - x1`, without a + 1. Older detectors took pixels for points and wrote `x2 - x1 + 1`;
# mixing both is the most common bug of this field, and you will plant it yourself at the end.

# %%
data = ShapesDataset("demo", 200, split="val", seed=0)
image, target = data[95]
corner = image[:, 56:64, 34:46]  # rows first: 8 rows, 12 columns
print("image", tuple(image.shape), "corner", tuple(corner.shape))
whole, zoom = axes_row("the image: 128 x 128", "12 x 8 pixels of it", height=3)
show_image(whole, image)
draw_boxes(whole, torch.tensor([34.0, 56.0, 46.0, 64.0]), "white", linewidth=2)
zoom.imshow(corner.permute(1, 2, 0), extent=(34, 46, 64, 56), interpolation="nearest")
box = torch.tensor([37.0, 57.0, 42.5, 62.0])
draw_boxes(zoom, box, PALETTE[1], linewidth=3)
_ = zoom.set(xticks=range(34, 47), yticks=range(56, 65), xlabel="x, pixels", ylabel="y, pixels (down)")

# %% [markdown]
# Read the thick box off the ticks: its left edge lies between pixel 36 and pixel 37, its right edge cuts pixel 42 in
# half. `x1 = 37`, `x2 = 42.5`, width 5.5. Note the two orders that you will meet all the time: a *tensor* is indexed
# `[channel, row, column]`, y before x; a *box* is written x before y. Half of all bugs with boxes are a swap of the
# two, and on a square image most of them go unnoticed. Our checks use images that are not square.

# %%
x1, y1, x2, y2 = box.tolist()
print(f"width {x2 - x1}, height {y2 - y1}, area {(x2 - x1) * (y2 - y1)}, centre ({(x1 + x2) / 2}, {(y1 + y2) / 2})")

# %% [markdown]
# ## Predict
#
# How much do two boxes agree? **Intersection over union**, IoU, is the area that they share, divided by the area that
# they cover together. It is 1 for the same box and 0 for boxes that do not touch.
#
# 1. A box of 100 x 100 is moved to the right by 10 pixels, a tenth of its width. **What is its IoU with the old
#    one: about 0.9, 0.8 or 0.7?**
# 2. The same box of 100 x 100 and one of 10 x 10 are both moved by *one* pixel. **Which loses more IoU: "large",
#    "small" or "same"?**

# %%
guess_iou = 0.9  # 0.9, 0.8 or 0.7
guess_loser = "same"  # "large", "small" or "same"

# %% [markdown]
# ## The smallest example, by hand
#
# Box a is `0, 0, 2, 1` and box b is `1, 0, 3, 1`: two pixels each, in one row. The shared part reaches from the
# *larger* of the left edges, **1**, to the *smaller* of the right edges, **2**: width **1**, height 1, area **1**.
# Together they cover 2 + 2 - 1 = **3**; the shared pixel is in both areas, so it is taken off once. IoU = **1/3**.

# %%
a, b = torch.tensor([0.0, 0.0, 2.0, 1.0]), torch.tensor([1.0, 0.0, 3.0, 1.0])
(panel,) = axes_row("a (solid), b (dashed), shared (grey): 1 of 3 pixels", height=2)
draw_boxes(panel, torch.tensor([1.0, 0.0, 2.0, 1.0]), "none", fill=True, facecolor="0.8")
draw_boxes(panel, a, PALETTE[0], linewidth=4)
draw_boxes(panel, b, PALETTE[1], linewidth=4, linestyle="--")
_ = panel.set(xlim=(-0.2, 3.2), ylim=(1.2, -0.2), xticks=range(4), yticks=(0, 1), aspect="equal", xlabel="x, pixels")

# %% [markdown]
# ## Exercise 1: `my_iou`
#
# Of *every pair*: A boxes against B boxes, an (A, B) table, row i for box i of the first argument. No loop: give the
# first tensor a second axis, `boxes1[:, None]` is (A, 1, 4), and torch does the rest (broadcasting).
#
# <details><summary>Hint 1: the corners of the shared part</summary>
#
# `torch.maximum` of both left-top corners and `torch.minimum` of both right-bottom corners: (A, B, 2) each.
#
# </details>
#
# <details><summary>Hint 2: boxes that do not meet</summary>
#
# Then a side comes out negative. Two negative sides multiply to a positive area: clamp each side at 0 first.
#
# </details>

# %% tags=["exercise"]
def my_iou(boxes1: torch.Tensor, boxes2: torch.Tensor) -> torch.Tensor:
    """IoU of every pair: (A, 4) and (B, 4) boxes x1, y1, x2, y2 in pixels -> (A, B).

    [0, 0, 2, 1] and [1, 0, 3, 1] share 1 of 3 pixels: 0.3333.
    """
    ### BEGIN SOLUTION
    top_left = torch.maximum(boxes1[:, None, :2], boxes2[None, :, :2])  # (A, B, 2)
    bottom_right = torch.minimum(boxes1[:, None, 2:], boxes2[None, :, 2:])
    shared = (bottom_right - top_left).clamp(min=0).prod(dim=2)  # (A, B)
    area1 = (boxes1[:, 2:] - boxes1[:, :2]).prod(dim=1)  # (A,)
    area2 = (boxes2[:, 2:] - boxes2[:, :2]).prod(dim=1)
    return shared / (area1[:, None] + area2[None, :] - shared)
    ### END SOLUTION


# %%
check_iou(my_iou)

# %% [markdown]
# From here on we use the package's `box_iou`, which the check held your function against. It differs in one thing:
# two boxes without an area, 0 / 0, give it 0, not NaN. One NaN in a table of overlaps would be compared with a
# threshold, lose, and nobody would know why an object was never learned.
#
# The picture answers your first guess. A box slides over another one of its size, and its IoU falls in a straight
# line no longer: shared goes down while the union goes *up*.

# %%
from mrcnn_scratch import box_iou

still = torch.tensor([[0.0, 0.0, 100.0, 100.0]])
shift = torch.linspace(0, 110, 111)
moved = still + shift[:, None] * torch.tensor([1.0, 0.0, 1.0, 0.0])  # to the right
iou = box_iou(moved, still)[:, 0]
both = box_iou(still + shift[:, None], still)[:, 0]  # right and down
print(f"You guessed {guess_iou}; moved by 10 of 100 pixels the IoU is {iou[10]:.2f}, diagonally {both[10]:.2f}.")

# %%
where, curve = axes_row("moved by 10, 30 and 60 pixels", "what the IoU makes of it", height=3)
for pixels, colour in zip((10, 30, 60), PALETTE[1:4], strict=True):
    draw_boxes(where, moved[pixels], colour, linewidth=2)
    curve.plot(pixels, iou[pixels], "o", color=colour)
draw_boxes(where, still[0], PALETTE[0], linewidth=3)
where.set(xlim=(-10, 170), ylim=(110, -10), aspect="equal", xlabel="x, pixels")
curve.plot(shift, iou, color=PALETTE[0], label="to the right")
curve.plot(shift, both, color=PALETTE[0], linestyle="--", label="right and down")
curve.axhline(0.5, color="0.6", linewidth=1)
curve.set(xlabel="moved by, pixels", ylabel="IoU", ylim=(0, 1.02))
_ = curve.legend()

# %% [markdown]
# A box that is off by a tenth of its width in both directions has an IoU of 0.68, though you would call it good. At
# 0.5, the grey line, which counts as "found" in half of all papers, the box is off by a third to the right, or by 18 %
# in both directions. Keep this picture: an IoU of 0.75, of a box 100 pixels wide, allows 14 pixels to the right or 7
# in both directions, one of 0.95 only 2.6 or 1.3, and rounding to a grid of 16 pixels, as RoIPool does, is then no
# detail. Now the second guess.

# %%
for name, side in (("large", 100.0), ("small", 10.0)):
    box = torch.tensor([[0.0, 0.0, side, side]])
    next_to_it = box + torch.tensor([1.0, 0.0, 1.0, 0.0])
    print(f"{name}: {side:.0f} pixels wide, moved by 1: IoU {box_iou(box, next_to_it).item():.3f}")
print(f"You guessed {guess_loser!r}; it is 'small'.")

# %% [markdown]
# IoU has no unit: a pixel is nothing for a large box and a tenth for a small one. That is why small objects are hard,
# and it is also the idea of the next function. A network should not have to answer in pixels, since the same
# *relative* mistake would then be another number for every size.
#
# ## The move from box to box, by hand
#
# A network starts from a box that it is given, an **anchor**, and says how to move it. Anchor: 8 to 24, centre **16**,
# width **16**. Wanted: 8 to 32, centre **20**, width **24**. The shift is 4 pixels, a *quarter of the anchor's width*:
# dx = **0.25**. The growth is 24 / 16 = 1.5, and its logarithm dw = **0.405**. Why the logarithm? Doubling is +0.69
# and halving -0.69, nothing is 0, and whatever number comes out of the network, the width stays positive.

# %%
print(f"dx = {(20 - 16) / 16}, dw = log(24 / 16) = {torch.tensor(24 / 16).log():.3f}")

# %% [markdown]
# ## Exercise 2: `my_encode`
#
# Pair by pair this time: anchor i to box i. The order is dx, dy, dw, dh (Faster R-CNN, equation 2).
#
# <details><summary>Hint 1: two small steps first</summary>
#
# Sides: `anchors[:, 2:] - anchors[:, :2]` is (R, 2), width and height. Centres: the corner plus half the sides. The
# same for the boxes.
#
# </details>
#
# <details><summary>Hint 2: which side to divide by</summary>
#
# By the anchor's, in both places. When the network is used, the anchor is all that is known.
#
# </details>

# %% tags=["exercise"]
def my_encode(boxes: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
    """Deltas that move each anchor onto its box: (R, 4) and (R, 4) xyxy -> (R, 4) dx, dy, dw, dh.

    From [8, 40, 24, 56] to [8, 40, 32, 56]: 0.25, 0, 0.405, 0.
    """
    ### BEGIN SOLUTION
    size, box_size = anchors[:, 2:] - anchors[:, :2], boxes[:, 2:] - boxes[:, :2]  # (R, 2) width, height
    centre, box_centre = anchors[:, :2] + size / 2, boxes[:, :2] + box_size / 2
    return torch.cat([(box_centre - centre) / size, (box_size / size).log()], dim=1)
    ### END SOLUTION


# %%
check_encode(my_encode)

# %% [markdown]
# ## Exercise 3: `my_decode`
#
# The way back, which runs at every stage of the detector. One thing is new. Early in training the network may answer
# dw = 100, and exp(100) pixels is more than a float should hold when it is multiplied on. So growth is **capped**: dw
# and dh above log(1000 / 16) are cut, about 4.135 (let Python compute it), a
# factor of 62.5. An anchor of 16 pixels can still become 1,000.
#
# <details><summary>Hint 1</summary>
#
# New centre: centre + delta * side. New side: side * exp(capped delta). Then corners: centre minus and plus half.
#
# </details>
#
# <details><summary>Hint 2: the cap</summary>
#
# `deltas[:, 2:].clamp(max=...)`, only from above: a tiny box is harmless.
#
# </details>

# %% tags=["exercise"]
def my_decode(deltas: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
    """Anchors moved by deltas: (R, 4) dx, dy, dw, dh and (R, 4) xyxy -> (R, 4) xyxy.

    [8, 40, 24, 56] moved by 0.25, 0, 0.405, 0 is [8, 40, 32, 56].
    """
    ### BEGIN SOLUTION
    size = anchors[:, 2:] - anchors[:, :2]  # (R, 2)
    centre = anchors[:, :2] + size / 2 + deltas[:, :2] * size
    new_size = size * deltas[:, 2:].clamp(max=torch.tensor(1000 / 16).log()).exp()
    return torch.cat([centre - new_size / 2, centre + new_size / 2], dim=1)
    ### END SOLUTION


# %%
check_decode(my_decode)

# %% [markdown]
# The package's pair is `encode_boxes` and `decode_boxes`. They take `weights`, four factors that bring the deltas to
# about the same spread, which the box head needs (notebook 10), and sets of deltas for several classes at once. The
# picture shows what the deltas mean for *one* anchor: nine answers of a network, one number changed at a time.

# %%
from mrcnn_scratch import decode_boxes, encode_boxes

anchor = torch.tensor([[40.0, 30.0, 80.0, 50.0]])  # 40 wide, 20 high
across, down, wide = axes_row("dx = -0.5, 0, 0.5", "dy = -0.5, 0, 0.5", "dw = -0.7, 0, 0.7", height=2.2)
for place, (panel, step) in enumerate(((across, 0.5), (down, 0.5), (wide, 0.7))):
    for sign, colour in ((-1, PALETTE[1]), (1, PALETTE[2])):
        delta = torch.zeros(1, 4)
        delta[0, place] = sign * step
        draw_boxes(panel, decode_boxes(delta, anchor)[0], colour, linewidth=2)
    draw_boxes(panel, anchor[0], PALETTE[0], linewidth=2, linestyle="--")
    panel.set(xlim=(10, 110), ylim=(70, 10), aspect="equal")

# %% [markdown]
# dx = 0.5 moves by half of the *width*, 20 pixels, dy = 0.5 by half of the *height*, 10 pixels. dw = 0.7 nearly
# doubles the width, and the centre stays. Now on real targets: from one fixed anchor to all objects of 200 images.
# How large are the numbers that a network has to give?

# %%
boxes = torch.cat([data[i][1]["boxes"] for i in range(200)])
anchor = torch.tensor([[32.0, 32.0, 96.0, 96.0]]).expand(len(boxes), 4)
deltas = encode_boxes(boxes, anchor)
print(len(boxes), "objects; mean", [f"{x:.2f}" for x in deltas.mean(0)], "spread", [f"{x:.2f}" for x in deltas.std(0)])
torch.testing.assert_close(decode_boxes(deltas, anchor), boxes, rtol=0, atol=1e-3)

# %%
pixels, shares = axes_row("in pixels: x1 of the object", "as deltas", height=2.6)
pixels.hist(boxes[:, 0], bins=30, color=PALETTE[0])
pixels.set(xlabel="pixels", ylabel="objects")
for place, name in enumerate(("dx", "dy", "dw", "dh")):
    shares.hist(deltas[:, place], bins=30, histtype="step", linewidth=2, color=PALETTE[place], label=name)
shares.set(xlabel="no unit")
_ = shares.legend()

# %% [markdown]
# Numbers between -1 and 1, whatever the image measures: that is what a layer with small random weights can begin to
# learn. (dw and dh lie below 0, for most objects here are smaller than 64 pixels.)
#
# ## Break it
#
# The classic: someone encodes with widths of `x2 - x1 + 1` (Caffe's convention, pixels as points) and decodes without
# it. We plant exactly that. Before you run it: will the boxes come out too large or too small? And for which objects
# does it matter, given what you saw above?

# %%
legacy = torch.tensor([0.0, 0.0, 1.0, 1.0])  # the bug: the box that is one pixel wider and higher
for side in (8.0, 32.0, 128.0):
    box = torch.tensor([[20.0, 20.0, 20.0 + side, 20.0 + side]])
    start = torch.tensor([[16.0, 16.0, 48.0, 48.0]])
    broken = decode_boxes(encode_boxes(box + legacy, start + legacy), start)
    width = broken[0, 2] - broken[0, 0]
    print(f"{side:3.0f} pixels: comes back as {width:6.2f}, IoU {box_iou(broken, box).item():.3f}")

# %% [markdown]
# No error, no warning. What is smaller than the anchor comes back too large, what is larger too small; only at the
# anchor's own size is the width right, and then the place is off by 0.12 pixels. The object of 8 pixels keeps an IoU
# of 0.84, before the network has made any mistake of its own. So the bug shows as *bad numbers for small objects* and
# at strict thresholds, and everybody will blame the network. Detectron had the + 1 on both sides, where it does no
# harm; Detectron2 removed it in 2019, and torchvision's mask code still has one.

# %% [markdown]
# ## Quiz
#
# **1.** Two boxes of area 10 share an area of 5. What is their IoU?
#
# <details><summary>Answer</summary>
#
# 5 / 15 = 1/3. Half of each is shared, but IoU is not "half".
#
# </details>
#
# **2.** IoU of `[0, 0, 4, 4]` and `[4, 0, 8, 4]`, which touch?
#
# <details><summary>Answer</summary>
#
# 0. The shared part has width 0. With + 1 widths it would be positive: one more sign of that bug.
#
# </details>
#
# **3.** All boxes of an image are made twice as large, image and anchors, too. What happens to IoUs and deltas?
#
# <details><summary>Answer</summary>
#
# Nothing. Both have no unit. That is what lets one network serve all sizes.
#
# </details>
#
# **4.** The network answers 0, 0, 0, 0. Where is the box?
#
# <details><summary>Answer</summary>
#
# On the anchor. A network that knows nothing yet begins with a sensible guess.
#
# </details>
#
# **5.** Why is dw capped from above and not from below?
#
# <details><summary>Answer</summary>
#
# exp of a large number overflows, and one infinite box makes the loss NaN. exp of a very negative one is a tiny
# width, which filters and NMS handle.
#
# </details>

# %% [markdown]
# ## What you have now
#
# | you wrote | the package has | file | used again in |
# |---|---|---|---|
# | `my_iou` | `box_iou` | [`boxes.py`](../mrcnn_scratch/boxes.py) | 02 recall, 03 matching, 04 NMS, 14 AP |
# | `my_encode` | `encode_boxes` | [`boxes.py`](../mrcnn_scratch/boxes.py) | 06 and 10: what is learned |
# | `my_decode` | `decode_boxes` | [`boxes.py`](../mrcnn_scratch/boxes.py) | 04 proposals, 10 detections |
#
# Next: where do the boxes come from that are moved? Notebook 02 lays them out.
