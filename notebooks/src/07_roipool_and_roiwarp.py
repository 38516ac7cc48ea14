# %% [markdown]
# # 07 · RoIPool and RoIWarp: what rounding costs
#
# **Goal.** Write RoIPool, the layer that made Fast R-CNN fast, and its gradient; see in pixels what its rounding costs;
# and take that rounding apart with RoIWarp, which keeps one half of it.
#
# **Minutes.** Under 1 of computing on two CPU cores, about 45 of reading and writing. **Seed.** 0. Nothing is
# downloaded.

# %%
import itertools
import math

import torch
from matplotlib_inline.backend_inline import set_matplotlib_formats

from mrcnn_scratch import ShapesDataset
from mrcnn_scratch.course.checks import check_roi_pool, check_roi_pool_backward
from mrcnn_scratch.visualize import roi_grids as draw
from mrcnn_scratch.visualize.panels import axes_row
from mrcnn_scratch.visualize.style import PALETTE, show_image

set_matplotlib_formats("png")

# %% [markdown]
# ## A box does not know about cells
#
# A proposal is a box in the image; the head wants the same number of features for each one, say 7 x 7. The features
# lie on a map with a **stride**: at stride 16 a cell stands for 16 x 16 pixels. As features we take the plainest
# there are, the mean colour of each cell: three channels, 7 x 8 cells. The box of the person begins inside of one
# cell and ends inside of another, and that is the whole problem of this notebook and the next.

# %%
data = ShapesDataset("demo", 200, split="val", seed=0)
image, target = data[95]
image, box, stride = image[:, :112], target["boxes"][2], 16  # 112 high, 128 wide: not square
features = torch.nn.functional.avg_pool2d(image, stride)  # (3, 7, 8)
print("image", tuple(image.shape), "features", tuple(features.shape))
print("box in pixels", box.tolist(), "in cells", [round(v / stride, 2) for v in box.tolist()])

# %%
picture, cells = axes_row("the image and a box", "the map at stride 16, channel 0", height=2.5)
show_image(picture, image)
draw.show_map(cells, features[0], stride)
for panel in (picture, cells):
    draw.outline(panel, box, PALETTE[1], linewidth=3)

# %% [markdown]
# **RoIPool** (Fast R-CNN, section 2.1) makes two decisions. It *rounds* the corners to whole cells, and it divides
# these cells into h x w bins, whose borders it rounds again. Then each output is the largest feature of its bin,
# channel by channel. No interpolation, no arithmetic on the features at all, which made it quick to write and quick
# to run.
#
# ## Predict
#
# 1. Both corners are rounded to the nearest cell, at stride 16. **By how many pixels can the right edge of what RoIPool
#    reads lie beside the right edge of the box, at most: 8, 16 or 24?**
# 2. The box above slides to the right by 48 pixels, pixel by pixel: 49 places. **How many different outputs does
#    RoIPool give: 4, 7 or 49?**

# %%
guess_pixels = 8  # 8, 16 or 24
guess_outputs = 49  # 4, 7 or 49

# %% [markdown]
# ## The smallest example, by hand
#
# One row of six cells holds 3, 1, 4, 2, 5, 9. A box reaches from 20 to 45 pixels. In cells that is **1.25** to
# **2.81**, rounded **1** to **3**. Both belong to the RoI: cells 1, 2 and 3, **three** cells. Two bins of **1.5**
# cells: the first reaches from 0 to 1.5, the second from 1.5 to 3, counted from cell 1. A bin begins at the floor and
# ends at the ceil, so the first holds cells 1 and 2, the second cells 2 and 3. They *share* cell 2, and both give
# **4**.

# %%
numbers = torch.tensor([[[3.0, 1.0, 4.0, 2.0, 5.0, 9.0]]])  # (1, 1, 6)
span = torch.tensor([20.0, 0.0, 45.0, 4.0])
(panel,) = axes_row("dashed: the box; green and orange: its two bins", height=2)
draw.show_map(panel, numbers[0], stride, numbers=".0f", cmap="Greys", vmin=-30)
draw.draw_bins(panel, draw.pooled_bins(span, (1, 2), stride, (1, 6)), PALETTE[:2], inset=0.8)
draw.outline(panel, [20, 2, 45, 14], PALETTE[3], linestyle="--", linewidth=2.5)
_ = panel.set(yticks=[])

# %% [markdown]
# One more decision hides in the word *round*. The original code is C, whose `round` takes halves **away from zero**.
# Python's `round` and `torch.round` take them to the *even* neighbour. Does that matter? A corner on 8, 40 or 72
# pixels is at a half in cells of 16, and boxes that a person labelled in whole pixels are there with one coordinate
# in sixteen. For every second half both agree, and so this bug passes many a test.

# %%
for pixels in (8, 24, 40, 56, -8):
    away = math.copysign(math.floor(abs(pixels / stride) + 0.5), pixels)
    print(f"{pixels:3d} pixels = {pixels / stride:4.1f} cells: Python {round(pixels / stride):2d}, C {away:2.0f}")

# %% [markdown]
# ## Exercise 1: `my_roi_pool`
#
# For one image, in plain loops over RoIs and bins. Rounded corners are whole cells from here on, so `math.floor` and
# `math.ceil` do the bins. A RoI may reach over the border: its bins are made first, and each is then cut off at the
# map. A bin that has no cell left gives 0.
#
# <details><summary>Hint 1: the order of steps for one RoI</summary>
#
# Scale, round, count the cells from first to last (both belong to it), divide by the number of bins. Bin p begins at
# first + floor(p * bin size) and ends at first + ceil((p + 1) * bin size), the way a slice ends.
#
# </details>
#
# <details><summary>Hint 2: the border</summary>
#
# Slices end at the map by themselves, but a negative start counts from the far end: `max(start, 0)`, and the same for
# the end. `part.numel()` says whether a bin has a cell. `part.amax(dim=(1, 2))` keeps the channels.
#
# </details>

# %% tags=["exercise"]
def my_roi_pool(
    features: torch.Tensor, boxes: torch.Tensor, output_size: tuple[int, int], spatial_scale: float
) -> torch.Tensor:
    """RoIPool of one image: (C, H, W), (R, 4) x1, y1, x2, y2 in pixels, h and w, cells per pixel -> (R, C, h, w).

    The row 3, 1, 4, 2, 5, 9, the box [20, 0, 45, 4], 1 x 2 bins, scale 1 / 16: 4 and 4.
    """
    ### BEGIN SOLUTION
    C, (h, w) = len(features), output_size
    out = features.new_zeros(len(boxes), C, h, w)
    scaled = boxes * spatial_scale
    cells = (scaled.sign() * (scaled.abs() + 0.5).floor()).long()  # halves away from zero
    for r, (x1, y1, x2, y2) in enumerate(cells.tolist()):
        bin_h, bin_w = (y2 - y1 + 1) / h, (x2 - x1 + 1) / w  # both corners belong to it
        for p, q in itertools.product(range(h), range(w)):
            top, bottom = y1 + math.floor(p * bin_h), y1 + math.ceil((p + 1) * bin_h)
            left, right = x1 + math.floor(q * bin_w), x1 + math.ceil((q + 1) * bin_w)
            part = features[:, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
            if part.numel():
                out[r, :, p, q] = part.amax(dim=(1, 2))
    return out
    ### END SOLUTION


# %%
check_roi_pool(my_roi_pool)

# %% [markdown]
# From here on we use the package's `roi_pool`. It takes a batch, `features` of shape (N, C, H, W) and one tensor of
# boxes for each image. It also runs compiled, on the CPU and on a GPU, takes boxes whose corners are in the wrong order
# (as one cell), and has the gradient that you will write below. What it gives for the person, in 3 x 2 bins, is
# in the right picture: three channels, so the outputs are colours.

# %%
from mrcnn_scratch.roi_ops import roi_pool

size = (3, 2)  # 3 rows of bins, 2 columns
pooled = roi_pool(features[None], [box[None]], size, 1 / stride)
print("RoIs, channels, rows, columns:", tuple(pooled.shape))
wanted, read, out = axes_row("the box in 3 x 2 bins", "the cells that RoIPool reads", "the output", height=3.2)
for panel, bins in ((wanted, draw.exact_bins(box, size)), (read, draw.pooled_bins(box, size, stride, (7, 8)))):
    draw.show_map(panel, features[0], stride)
    draw.draw_bins(panel, bins, PALETTE[:3], inset=1.5 if panel is read else 0)
    draw.outline(panel, box, PALETTE[3], linestyle="--")
    panel.set(xlim=(0, 96), ylim=(96, 0))
_ = (out.imshow(pooled[0].permute(1, 2, 0)), out.set(xticks=range(2), yticks=range(3), xlabel="bin, column"))

# %% [markdown]
# The dashed box is the same in both (bins that overlap are drawn a little smaller, each by another bit). Its six bins
# are about 20 x 20 pixels each; those that are read are 32 wide and 32 or 48 high, overlap, and stand beside the
# person: they reach down to y = 80, where the box ends at 64.5.
#
# ## Error arrows
#
# For each bin an arrow: from where it *is*, its centre in the box, to where RoIPool *reads*, the centre of its cells.
# If nothing were rounded, there would be six dots. How long are the arrows, in pixels of an image of 128?

# %%
start = draw.centres(draw.exact_bins(box, size))
shift = draw.centres(draw.pooled_bins(box, size, stride, (7, 8))) - start  # (3, 2, 2)
where, star = axes_row("from where a bin is to where RoIPool reads", "the same six arrows from one point", height=3.6)
draw.show_map(where, features[0], stride)
draw.outline(where, box, PALETTE[3], linestyle="--")
draw.draw_arrows(where, start, start + shift, PALETTE[1])
where.set(xlim=(0, 96), ylim=(96, 0))
draw.draw_arrows(star, 0 * shift, shift, PALETTE[1])
star.set(xlim=(-8, 20), ylim=(16, -8), aspect="equal", xlabel="pixels to the right", ylabel="pixels down")
print(f"to the right {shift[..., 0].min():.1f} to {shift[..., 0].max():.1f} pixels, "
      f"down {shift[..., 1].min():.1f} to {shift[..., 1].max():.1f}")  # fmt: skip

# %% [markdown]
# All arrows point to the right and down, which is no accident of this box. Rounding takes the *number* of a cell for
# a coordinate. Cell 4 covers 64 to 80 pixels; the box ends at 64.5, which is 4.03, so cell 4 is the last and is read
# whole. The left edge is rounded fairly, by up to half a cell to either side. The right one is rounded and then
# extended to the end of its cell. Two thousand random boxes show both.

# %%
g = torch.Generator().manual_seed(0)
low = torch.rand(2000, 2, generator=g) * 500
boxes = torch.cat([low, low + 20 + torch.rand(2000, 2, generator=g) * 200], dim=1)
cell = (boxes / stride + 0.5).floor()  # none is negative: rounding down after + 0.5 is enough
read = torch.cat([cell[:, :2], cell[:, 2:] + 1], dim=1) * stride  # what RoIPool takes for the box
error = read - boxes
for place, name in ((0, "left"), (2, "right")):
    low_end, high_end, mean = error[:, place].min(), error[:, place].max(), abs(error[:, place].mean())
    print(f"{name} edge: {low_end:.0f} to {high_end:.0f} pixels, mean {mean:.1f}")
print(f"You guessed {guess_pixels}; at most it is {error.abs().max():.0f}.")

# %% [markdown]
# The mean of the left edge is 0, that of the right one 16: the centre of what is read lies half a cell too far right
# and down, and on top of that it *jitters* by some pixels with each box. Keep the two apart. A bias that is always
# the same can be learned by the layers behind it, jitter cannot, because they never see how far the box was moved.
# Next: how bad is it? The IoU of the box with what is read, by the size of the object.

# %%
from mrcnn_scratch import box_iou

sides, overlaps = torch.tensor([8.0, 16, 32, 64, 128, 256]), {}
for step in (4, 8, 16, 32):
    true = [torch.cat([low, low + side], dim=1)[:300] for side in sides]  # six times (300, 4)
    cells = [(each / step + 0.5).floor() for each in true]
    read = [torch.cat([each[:, :2], each[:, 2:] + 1], dim=1) * step for each in cells]
    overlaps[step] = [float(box_iou(a, b).diagonal().mean()) for a, b in zip(true, read, strict=True)]
    print(f"stride {step:2d}, sides of 8 to 256 pixels: IoU", [f"{value:.2f}" for value in overlaps[step]])

# %%
edges, cost = axes_row("error of the edges, 2000 boxes", "what is read against the box", height=2.8)
for place, name, colour in ((0, "left edge", PALETTE[3]), (2, "right edge", PALETTE[1])):
    edges.hist(error[:, place], bins=range(-8, 26, 2), histtype="step", linewidth=2, color=colour, label=name)
edges.set(xlabel="read - box, pixels", ylabel="boxes", ylim=(0, 420))
edges.legend(loc="upper center", ncols=2)
for (step, iou), colour in zip(overlaps.items(), PALETTE, strict=False):
    cost.plot(range(6), iou, "o-", color=colour, label=f"stride {step}")
cost.set(xticks=range(6), xticklabels=[f"{s:.0f}" for s in sides], ylim=(0, 1))
cost.set(xlabel="side of the box, pixels", ylabel="mean IoU")
_ = cost.legend(fontsize=8)

# %% [markdown]
# At stride 16 a box of 64 pixels has an IoU of 0.58 with what is read for it, before any network has made a mistake,
# and one of 32 pixels has 0.37. What counts is the size *in cells*: the four rows of numbers are the same row, to a
# hundredth, shifted by a place, and a box of two cells is at 0.37 or 0.38 in each. A finer map is one cure, and the
# feature pyramid of notebook 05 uses it: small boxes read a fine level. Not to round is the other.

# %% [markdown]
# ## Stairs
#
# The second guess. While the box slides, the region that is read stands still until a corner passes the middle of a
# cell, and then jumps by 16 pixels; each corner has its own moment to jump. In between nothing changes, so the output
# carries *no information* about where in these pixels the box is. A mask head is asked for exactly that.

# %%
slide = torch.arange(49.0)
moved = box + slide[:, None] * torch.tensor([1.0, 0.0, 1.0, 0.0])  # (49, 4)
outputs = roi_pool(features[None], [moved], size, 1 / stride)  # (49, 3, 3, 2)
different = len(outputs.flatten(1).unique(dim=0))
print(f"You guessed {guess_outputs}; 49 places give {different} different outputs.")
seen = torch.stack([draw.rounded_box(each, stride) for each in moved])

# %%
where, value = axes_row("the edges in x: true (dashed), read", "two of the outputs, channel 0", height=2.8)
for place, name, colour in ((0, "left", PALETTE[3]), (2, "right", PALETTE[1])):
    where.plot(slide, moved[:, place], "--", color=colour)
    where.step(slide, seen[:, place], where="post", color=colour, label=f"{name} edge")
where.set(xlabel="moved by, pixels", ylabel="x, pixels")
where.legend()
value.step(slide, outputs[:, 0, 1, 0], where="post", color=PALETTE[0], label="row 1, left bin")
value.step(slide, outputs[:, 0, 1, 1], where="post", color=PALETTE[2], label="row 1, right bin")
value.set(xlabel="moved by, pixels", ylabel="mean red of the cell that won")
_ = value.legend()

# %% [markdown]
# ## The gradient, on paper
#
# An output is *one* cell's feature. Raise that feature a little and the output rises as much; raise any other cell of
# the bin a little and nothing happens. So the derivative of an output by a cell is 1 for the winner and 0 for all
# others (Fast R-CNN, equation 4). A cell that won several bins moves several outputs, and its gradients add up. In
# the row by hand cell 2 won both bins: with gradients **1** and **10** of the two outputs, it receives **11**, all
# others 0.
#
# The forward therefore has to write down who won. The package's plain version returns it beside the output: the cell's
# number, `y * W + x`, or -1 for a bin without cells.

# %%
from mrcnn_scratch.roi_ops.reference import roi_pool_forward


def winners_of(features, boxes, size):
    """(C, H, W), (R, 4) -> (R, C, h, w), the cell that each output was read from."""
    rows = torch.cat([torch.zeros(len(boxes), 1), boxes], dim=1)  # a column for the image's number
    return torch.from_numpy(roi_pool_forward(features[None].numpy(), rows.numpy(), size, 1 / stride)[1]).long()


print("the row by hand:", winners_of(numbers, span[None], (1, 2)).tolist())
winner = winners_of(features, box[None], size)
print("the person, channel 0: cells", winner[0, 0].tolist(), "= rows", (winner[0, 0] // 8).tolist())

# %% [markdown]
# ## Exercise 2: `my_roi_pool_backward`
#
# Given the gradient of each output and the cell that won it, give the gradient of the features. About 7 lines, with
# `itertools.product` for the loops.
#
# <details><summary>Hint 1: a flat map</summary>
#
# Start from zeros of shape (C, H * W), where a winner is an index as it is, and `view` them as (C, H, W) at the end.
#
# </details>
#
# <details><summary>Hint 2: two things go wrong</summary>
#
# What several bins send to one cell is added: `+=`, in a loop. And -1 is an index in Python, of the last cell: leave
# these outputs out.
#
# </details>

# %% tags=["exercise"]
def my_roi_pool_backward(grad: torch.Tensor, winner: torch.Tensor, map_size: tuple[int, int]) -> torch.Tensor:
    """RoIPool's gradient: (R, C, h, w), winners y * W + x or -1 of the same shape, (H, W) -> (C, H, W).

    Gradients 1 and 10 whose winner is cell 2 of a map of (1, 6): 0, 0, 11, 0, 0, 0.
    """
    ### BEGIN SOLUTION
    (R, C, h, w), (H, W) = grad.shape, map_size
    out = grad.new_zeros(C, H * W)
    for r, c, p, q in itertools.product(range(R), range(C), range(h), range(w)):
        cell = winner[r, c, p, q]
        if cell >= 0:
            out[c, cell] += grad[r, c, p, q]
    return out.view(C, H, W)
    ### END SOLUTION


# %%
check_roi_pool_backward(my_roi_pool_backward)

# %% [markdown]
# The package's `roi_pool` has this gradient, so that `backward()` passes through it. The boxes receive none: a
# maximum of whole cells does not follow its corners. The picture sends a gradient of 1 into each of the six outputs
# and shows where it lands.

# %%
leaf = features[None].clone().requires_grad_()
roi_pool(leaf, [box[None]], size, 1 / stride).sum().backward()
panels = axes_row(*(f"{name}: gradient 1 from 6 outputs" for name in ("red", "green", "blue")), height=3.2)
for channel, panel in enumerate(panels):
    draw.show_map(panel, leaf.grad[0, channel], stride, numbers=".0f", cmap="Greens", vmin=0, vmax=8, alpha=1)
    draw.outline(panel, box, PALETTE[3], linestyle="--")
print("cells with a gradient, by channel:", (leaf.grad[0] > 0).sum(dim=(1, 2)).tolist(), "of 56")

# %% [markdown]
# Of 56 cells four or five learn anything, some of them twice. Look at red: the cells at row 3, column 3 and at row 4,
# column 1 have won a bin each, and the box covers no more than half a pixel of either's width or height. So a part of
# the gradient that should improve the features of *this person* is sent to what lies beside it. Rounding misplaces
# what is learned just as it misplaces what is read.
#
# ## RoIWarp: rounded corners, exact bins
#
# RoIPool rounds twice, corners and bins, and it takes a maximum. Which of these costs what? **RoIWarp** keeps the
# first rounding and drops the second. The rounded RoI is divided into *equal* bins, and in each bin features are read
# at a few points *between* cells: a weighted mean of the four nearest, a **bilinear** sample. You write that in
# notebook 08; here it is enough that a point can lie anywhere.

# %%
from mrcnn_scratch.roi_ops import roi_warp

equal = draw.exact_bins(draw.rounded_box(box, stride), size)  # of the rounded RoI
middle = draw.centres(equal)
print(f"RoIWarp: to the right {(middle - start)[..., 0].min():.1f} to {(middle - start)[..., 0].max():.1f} pixels, "
      f"down {(middle - start)[..., 1].min():.1f} to {(middle - start)[..., 1].max():.1f}")  # fmt: skip
panels = axes_row("RoIPool: six sets of cells", "RoIWarp: 2 x 2 samples a bin", "RoIWarp's error arrows", height=3.2)
for panel in panels:
    draw.show_map(panel, features[0], stride)
    draw.outline(panel, box, PALETTE[3], linestyle="--")
    panel.set(xlim=(0, 96), ylim=(96, 0))
draw.draw_bins(panels[0], draw.pooled_bins(box, size, stride, (7, 8)), PALETTE[:3], inset=1.5)
draw.draw_bins(panels[1], equal, PALETTE[:2])
panels[1].plot(*draw.sample_points(box, size, stride, 2, "warp").T, "k.", markersize=5)
draw.draw_arrows(panels[2], start, middle, PALETTE[1])

# %% [markdown]
# The bins are equal now and share nothing, but they are equal parts of the *wrong* region, from 16 to 64 and from 0
# to 80. The arrows are no shorter than RoIPool's. The next cell makes the test that tells a layer which rounds from
# one that does not, and you should remember it: move the box so that no corner passes the middle of a cell. A layer
# that rounds must give *exactly* the same.

# %%
warped = roi_warp(features[None], [moved], size, 1 / stride)  # (49, 3, 3, 2)
print("different outputs in 49 places:", len(warped.flatten(1).unique(dim=0)))
for name, op in (("RoIPool", roi_pool), ("RoIWarp", roi_warp)):
    one, other = op(features[None], [moved[[0, 5]]], size, 1 / stride)
    print(f"{name}: moved by 5 pixels, no corner passes the middle of a cell; equal: {torch.equal(one, other)}")

# %% [markdown]
# Now the experiment for which RoIWarp is here, the paper's Table 2c: mask AP on COCO is 26.9 with RoIPool, 27.2 with
# RoIWarp, 30.2 with RoIAlign, which rounds nothing (all three with a maximum; with means it is 27.1 and 30.3 for the
# last two). So interpolation is worth 0.3 points and exact corners 3. On small drawn objects, with the boxes given,
# this repository finds the same order: 32.8, 33.4 and 53.7 % of the masks are right, as a mean over IoU .50 to .95
# ([results](../docs/results/REPORT.md#table-2c-roi-layer)).
#
# ## Break it
#
# The bug of this notebook is a *correction*. Someone writes RoIWarp, finds the rounding ugly, and leaves it out: the
# corners stay exact, and the region ends one cell after the last corner, as RoIPool's does. All shapes are right, the
# loss falls, the masks get better. We plant it, with the package's RoIAlign, which is bilinear samples on exact
# corners. **Before you run it: which of the two curves is the bug, the one with stairs or the one without? And what
# would your comparison of RoIPool, RoIWarp and RoIAlign say?**

# %%
from mrcnn_scratch.roi_ops import roi_align

widened = moved + torch.tensor([0.0, 0.0, stride, stride])  # the cell after the last corner; rounding forgotten
broken = roi_align(features[None], [widened], size, 1 / stride)
(panel,) = axes_row("row 1, left bin, channel 0, while the box slides", height=2.8)
panel.step(slide, warped[:, 0, 1, 0], where="post", color=PALETTE[3], label="RoIWarp")
panel.plot(slide, broken[:, 0, 1, 0], color=PALETTE[1], label="without the rounding")
panel.set(xlabel="moved by, pixels", ylabel="output")
panel.legend()
print("different outputs in 49 places: RoIWarp", len(warped.flatten(1).unique(dim=0)),
      "and without the rounding", len(broken.flatten(1).unique(dim=0)))  # fmt: skip

# %% [markdown]
# The curve without stairs is the bug: it answers to each pixel, so nothing is rounded. With this layer in the middle
# row your table would compare two layers that do not round with one that does. RoIWarp would move towards RoIAlign,
# and you would conclude that *interpolation* is what matters, the opposite of Table 2c. No error, no bad loss curve
# gives it away, only the count of different outputs: 49 where it must be 7.

# %% [markdown]
# ## Quiz
#
# **1.** Stride 16, a box from 24 to 40 pixels in x. Which cells does RoIPool read?
#
# <details><summary>Answer</summary>
#
# 1.5 and 2.5 are both halves, away from zero they become 2 and 3: cells 2 and 3, which are 32 to 64 pixels. The box
# ends at 40.
#
# </details>
#
# **2.** Four cells in three bins: which cells has each bin?
#
# <details><summary>Answer</summary>
#
# A bin is 4/3 wide: floor(0) to ceil(1.33), floor(1.33) to ceil(2.67), floor(2.67) to ceil(4): cells 0 and 1, 1 and
# 2, 2 and 3.
#
# </details>
#
# **3.** All features are negative, and a bin lies off the map. What are the outputs of that bin and of the others?
#
# <details><summary>Answer</summary>
#
# 0 for that bin, which has no cell, and a negative number for the others. A loop that starts its maximum at 0 gives 0
# everywhere.
#
# </details>
#
# **4.** A cell of the map lies in no RoI. What is its gradient? And one that lies in a RoI, but is never the largest?
#
# <details><summary>Answer</summary>
#
# 0, both. Only winners learn.
#
# </details>
#
# **5.** Your gradient test, which moves each feature a little and looks at the output, fails for RoIPool, but only on
# features that you made with `torch.ones`. Is the gradient wrong?
#
# <details><summary>Answer</summary>
#
# No. Where two cells tie, the maximum has a kink: raising either of them raises the output, lowering one does not lower
# it. There is no derivative to compare with. Test on features that are all different.
#
# </details>

# %% [markdown]
# ## What you have now
#
# | you wrote | the package has | file | used again in |
# |---|---|---|---|
# | `my_roi_pool` | `roi_pool` | [`pool.py`](../mrcnn_scratch/roi_ops/reference/pool.py) | 08, 15 Table 2c |
# | `my_roi_pool_backward` | its gradient | [`pool.py`](../mrcnn_scratch/roi_ops/reference/pool.py) | 15 |
# | (seen) | `roi_warp` | [`sampling.py`](../mrcnn_scratch/roi_ops/reference/sampling.py) | 08, 15 Table 2c |
#
# The package's `reference/` folder holds all three ops in loops like yours; `roi_ops/` is where you import them from.
#
# Next: leave the corners where they are. Notebook 08 writes RoIAlign.
