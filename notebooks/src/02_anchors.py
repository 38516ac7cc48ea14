# %% [markdown]
# # 02 · Anchors
#
# **Goal.** Lay out the boxes from which a detector starts: a few shapes at every cell of every feature map. Write both
# steps, measure how many real objects such a layout can reach, and learn what decides it.
#
# **Minutes.** Under 1 of computing on two CPU cores, about 35 of reading and writing. **Seed.** 0. Nothing is
# downloaded.

# %%
import torch
from matplotlib.patches import Rectangle
from matplotlib_inline.backend_inline import set_matplotlib_formats

from mrcnn_scratch import ShapesDataset, box_iou
from mrcnn_scratch.course.checks import check_cell_anchors, check_grid_anchors
from mrcnn_scratch.visualize.panels import axes_row, draw_boxes
from mrcnn_scratch.visualize.recall import draw_iou_by_size, draw_recall
from mrcnn_scratch.visualize.style import PALETTE, show_image

set_matplotlib_formats("jpeg", pil_kwargs={"quality": 75, "optimize": True, "progressive": True})

# %% [markdown]
# ## A fixed number of questions
#
# A convolution gives a fixed number of outputs: so many numbers for each cell of its map. Objects come in any number.
# How can the one say the other? Faster R-CNN's answer: lay boxes over the image *before* looking at it, always the
# same ones, and ask of each "is there an object about here?" and "how must the box be moved?" (the deltas of notebook
# 01). These boxes are the **anchors**. The dots below are the centres of the cells of one feature map, of stride 16.

# %%
data = ShapesDataset("multiscale", 200, split="val", seed=0, image_size=(192, 256))
image, target = data[5]
print("image", tuple(image.shape), "objects", len(target["boxes"]))
pale = image * 0.45 + 0.55
picture, dots = axes_row("four objects", "12 x 16 cells of 16 pixels, and their centres", height=3.4)
show_image(picture, image)
show_image(dots, pale)
draw_boxes(picture, target["boxes"], "white", linewidth=1.5)
y, x = torch.meshgrid(torch.arange(8, 192, 16), torch.arange(8, 256, 16), indexing="ij")
dots.plot(x.flatten(), y.flatten(), ".", color=PALETTE[3], markersize=5)
_ = dots.set(xticks=range(0, 257, 32), yticks=range(0, 193, 32), xlabel="x, pixels", ylabel="y, pixels")

# %% [markdown]
# These images differ from those of the last notebook: 192 pixels high, 256 wide, objects between 12 and 190 pixels.
# Seven classes, but classes do not matter here; an anchor is asked about *any* object.
#
# ## Predict
#
# 1. At every cell of stride 16 lies one anchor of 32 x 32 pixels. An object is 32 x 32, too, the very shape, but it
#    lies in the worst place: in the middle between four centres. **What is its IoU with the nearest anchor: about
#    0.8, 0.6 or 0.4?**
# 2. One square anchor of 64 pixels at each cell of stride 16 reaches few of the objects: about a quarter has an
#    anchor with an IoU of 0.5. **What helps most: two more "ratios" (wide and tall), two more "sizes" (32 and 128),
#    or a four times smaller "stride"?**

# %%
guess_iou = 0.8  # 0.8, 0.6 or 0.4
guess_helps = "stride"  # "ratios", "sizes" or "stride"

# %% [markdown]
# ## The smallest example, by hand
#
# An anchor has a **size**, the square root of its area, and an **aspect ratio**, height over width. Size **32** means
# an area of 32 x 32 = **1024** pixels. Ratio **0.25** means four times as wide as high. Both hold for a width of
# 32 / √0.25 = **64** and a height of 32 x √0.25 = **16**, since 64 x 16 = 1024 and 16 / 64 = 0.25. Around the origin
# that is the box from -32, **-8** to 32, 8. Changing the ratio keeps the area: wide and tall anchors of one size are
# about equally large things.

# %%
(panel,) = axes_row("size 32, ratios 0.25, 1 and 4: the same area three times", height=3)
for ratio, colour in zip((0.25, 1.0, 4.0), PALETTE[1:4], strict=True):
    w, h = 32 / ratio**0.5, 32 * ratio**0.5
    print(f"ratio {ratio}: {w:.0f} wide, {h:.0f} high, area {w * h:.0f}")
    draw_boxes(panel, torch.tensor([[-w / 2, -h / 2, w / 2, h / 2]]), colour, linewidth=3)
    panel.text(-w / 2 + 1, -h / 2 + 4, f"{ratio}", color=colour, va="center")
panel.plot(0, 0, "+", color="0.3")
_ = panel.set(xlim=(-60, 60), ylim=(38, -38), aspect="equal", xlabel="x, pixels", ylabel="y, pixels")

# %% [markdown]
# ## Exercise 1: `my_cell_anchors`
#
# The anchors of *one* cell, around the origin: every size with every ratio. Their order is a contract, since the
# network answers in the same order: ratio by ratio, and within a ratio the sizes in theirs. Do not round: whole
# pixels are no better than others, and the area would vary.
#
# <details><summary>Hint 1: every size with every ratio</summary>
#
# Give the ratios a second axis, (ratios, 1), and the sizes a first one, (1, sizes). One division then makes a table
# of all widths, (ratios, sizes); `flatten` reads it row by row.
#
# </details>
#
# <details><summary>Hint 2: corners</summary>
#
# From minus half the width to plus half the width. `torch.stack` of four vectors, `dim=1`, gives (A, 4).
#
# </details>

# %% tags=["exercise"]
def my_cell_anchors(sizes: tuple[float, ...], aspect_ratios: tuple[float, ...]) -> torch.Tensor:
    """The anchors of one cell around the origin: -> (A, 4) xyxy, pixels, A = ratios x sizes, ratios slowest.

    A ratio is h / w. Size 32 with ratio 0.25: -32, -8, 32, 8.
    """
    ### BEGIN SOLUTION
    ratio = torch.tensor(aspect_ratios)[:, None]  # (ratios, 1)
    size = torch.tensor(sizes)[None, :]  # (1, sizes)
    half_width = (size / ratio.sqrt() / 2).flatten()  # (A,)
    half_height = (size * ratio.sqrt() / 2).flatten()
    return torch.stack([-half_width, -half_height, half_width, half_height], dim=1)
    ### END SOLUTION


# %%
check_cell_anchors(my_cell_anchors)

# %% [markdown]
# From here on we use the package's `cell_anchors`. The picture shows what one cell gets in three designs, the cell
# with its centre at x = 136, y = 104. On the left, one size in three shapes, as each map of a **pyramid** (FPN) has
# them; in the middle, one shape in three sizes; on the right all nine, as a detector with a *single* map needs them
# (Faster R-CNN had nine, Mask R-CNN with a C4 backbone fifteen).

# %%
from mrcnn_scratch.anchors import cell_anchors, grid_anchors, pyramid_anchors

ratios = (0.5, 1.0, 2.0)
place = torch.tensor([136.0, 104.0, 136.0, 104.0])
one_size, one_ratio = cell_anchors((64.0,), ratios), cell_anchors((32.0, 64.0, 128.0), (1.0,))
all_nine = cell_anchors((32.0, 64.0, 128.0), ratios)
print("A =", len(one_size), len(one_ratio), len(all_nine))
panels = axes_row("3 ratios of one size", "3 sizes of one ratio", "3 x 3", height=2.5)
for panel, cell in zip(panels, (one_size, one_ratio, all_nine), strict=True):
    show_image(panel, pale)
    draw_boxes(panel, cell + place, PALETTE[3], linewidth=2)
    panel.plot(136, 104, "+", color="black")
    panel.set(xlim=(0, 256), ylim=(198, 10))

# %% [markdown]
# ## From one cell to a map, by hand
#
# Cell (row i, column j) of a map with stride 8 *down* and 16 *across* covers 8 x 16 pixels. Its centre is at
# x = (j + 0.5) x 16 and y = (i + 0.5) x 8. For row 1, column 2 that is x = **40**, y = **12**. So the anchor
# -4, -2, 4, 2 becomes **36, 10, 44, 14** there. Rows go with y and come first in a tensor; boxes have x first: the
# swap from notebook 01, again. (Real strides are equal; unequal ones let no swap hide.)
#
# ## Exercise 2: `my_grid_anchors`
#
# The list of all anchors of a map: row by row, in a row cell by cell, in a cell anchor by anchor, so that cell (i, j)
# has the places from (i · W + j) · A on.
#
# <details><summary>Hint 1: all centres at once</summary>
#
# `torch.arange(height)` plus a half, times the stride, is y of each row. `torch.meshgrid(y, x, indexing="ij")` gives
# both for each cell, (H, W). Stack them to the shift of a box, (H, W, 4).
#
# </details>
#
# <details><summary>Hint 2: the order comes by itself</summary>
#
# Shifts as (H, W, 1, 4) plus the cell's (A, 4) make (H, W, A, 4). A `reshape` to (-1, 4) reads the last axes fastest.
#
# </details>

# %% tags=["exercise"]
def my_grid_anchors(cell: torch.Tensor, height: int, width: int, stride: tuple[float, float]) -> torch.Tensor:
    """One cell's anchors repeated over a map: (A, 4), H, W, stride (down, across) -> (H * W * A, 4) xyxy, pixels.

    -4, -2, 4, 2 with stride (8, 16) in row 1, column 2: 36, 10, 44, 14.
    """
    ### BEGIN SOLUTION
    y = (torch.arange(height) + 0.5) * stride[0]  # (H,)
    x = (torch.arange(width) + 0.5) * stride[1]  # (W,)
    y, x = torch.meshgrid(y, x, indexing="ij")  # (H, W)
    shifts = torch.stack([x, y, x, y], dim=-1)  # (H, W, 4)
    return (shifts[:, :, None] + cell).reshape(-1, 4)  # (H, W, A, 4) -> (H * W * A, 4)
    ### END SOLUTION


# %%
check_grid_anchors(my_grid_anchors)

# %% [markdown]
# The picture is the contract about the order, on a map of 2 x 4 cells with two anchors each. The numbers are the
# places in the list: 0 and 1 belong to the first cell, 2 and 3 to its right neighbour, and the second row begins
# with 8. Anchors reach over the border, and as far on the left as on the right, because centres lie in the *middle*
# of cells.

# %%
small = grid_anchors(cell_anchors((20.0,), (0.5, 2.0)), 2, 4, (16, 24))
(panel,) = axes_row("2 x 4 cells of 16 x 24 pixels, two anchors each: their places in the list", height=3)
for place, box in enumerate(small):
    colour = PALETTE[3] if place % 2 == 0 else PALETTE[1]
    draw_boxes(panel, box[None], colour, linewidth=1, alpha=0.6)
    panel.text((box[0] + box[2]) / 2 + (-5, 5)[place % 2], (box[1] + box[3]) / 2, place, color=colour, ha="center")
panel.add_patch(Rectangle((0, 0), 96, 32, fill=False, edgecolor="black", linewidth=2))
panel.set(xlim=(-8, 104), ylim=(40, -8), aspect="equal", xticks=range(0, 97, 24), yticks=(0, 16, 32))
_ = panel.set(xlabel="x, pixels", ylabel="y, pixels")

# %% [markdown]
# ## The package's version
#
# `pyramid_anchors` calls both functions for every level of a feature pyramid: sizes grow with the stride, so that
# each map looks for objects of its own size. Two switches are there for weights that others trained: `rounded`
# corners, and `offset` 0, which puts the centres on the cells' corners (torchvision has both). Note the last column:
# how many anchors **straddle** the border. The paper's RPN does not train those; notebook 03 comes back to it.

# %%
strides, sizes = (4, 8, 16, 32), ((16.0,), (32.0,), (64.0,), (128.0,))
levels = pyramid_anchors([(192 // s, 256 // s) for s in strides], strides, sizes, ratios)
for stride, (size,), level in zip(strides, sizes, levels, strict=True):
    over = ((level[:, :2] < 0) | (level[:, 2:] > torch.tensor([256.0, 192.0]))).any(dim=1)
    print(f"stride {stride:2}, size {size:3.0f}: {len(level):4} anchors, {over.float().mean():4.0%} over the border")
print(sum(map(len, levels)), "anchors")

# %%
whole = cell_anchors((32.0,), ratios, rounded=True)
print("areas of size 32, rounded:", (whole[:, 2:] - whole[:, :2]).prod(dim=1).int().tolist(), "instead of 1024")

# %% [markdown]
# ## How far is the nearest anchor?
#
# Now your first guess. An object of 32 x 32 pixels slides from one anchor of its own shape to the next one on the
# diagonal. We take the IoU with the nearest anchor, for three strides.

# %%
slide, found = torch.arange(0, 32.5, 0.5), {}
for stride in (16, 8, 4):
    grid = grid_anchors(cell_anchors((32.0,), (1.0,)), 96 // stride, 128 // stride, (stride, stride))
    moved = torch.tensor([[24.0, 24.0, 56.0, 56.0]]) + slide[:, None]
    found[stride] = box_iou(moved, grid).amax(dim=1)
    print(f"stride {stride:2}: at worst {found[stride].min():.2f}")
print(f"You guessed {guess_iou}; it is 0.39, though an anchor of the very shape is at every cell.")

# %%
worst, curve = axes_row("the worst place, stride 16", "sliding along the diagonal", height=3, widths=(1, 1.6))
for (stride, best), colour in zip(found.items(), (PALETTE[3], PALETTE[1], PALETTE[2]), strict=True):
    curve.plot(slide, best, color=colour, label=f"stride {stride}")
curve.set(xlabel="moved right and down by, pixels", ylabel="best IoU", ylim=(0, 1.05))
curve.legend(loc="lower right", ncols=3)
grid = torch.tensor([[x, y, x + 32, y + 32] for x in (8.0, 24.0) for y in (8.0, 24.0)])
draw_boxes(worst, grid, PALETTE[3], linewidth=1.5, linestyle="--")
draw_boxes(worst, torch.tensor([[16.0, 16.0, 48.0, 48.0]]), PALETTE[1], linewidth=3)
_ = worst.set(xlim=(4, 60), ylim=(60, 4), aspect="equal", xlabel="x, pixels")

# %% [markdown]
# On the left the worst place, eight pixels from each of four centres in both directions, on the right all places.
# Only the *ratio* of size and stride counts. To an object of the anchor's shape a size of twice the stride guarantees
# 0.39, four times 0.62, eight times 0.78. That is why a detector with one map of stride 16 is weak on small objects,
# and why a pyramid gives size 16 the map of stride 4 (ours: four times) or size 32 (the paper's: eight times). The
# price is the number of anchors.
#
# ## Recall against design
#
# The **recall** of a layout: the share of objects that have an anchor with at least a given IoU. No network is
# involved; it needs boxes only. So it is the first thing to measure on *your own* data: put your boxes in the place
# of `boxes`. A recall of 1 promises nothing yet, but an object that no anchor comes near is hard to learn.

# %%
boxes = torch.cat([data[i][1]["boxes"] for i in range(200)])
width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(dim=1)
quartiles = (height / width).quantile(torch.tensor([0.25, 0.75]))
print(f"{len(boxes)} objects, half of them with h / w between {quartiles[0]:.2f} and {quartiles[1]:.2f}")


def best_iou(strides, sizes, ratios):
    """(number of anchors, (G,) the IoU of each object with its best anchor) of a design."""
    anchors = torch.cat(pyramid_anchors([(192 // s, 256 // s) for s in strides], strides, sizes, ratios))
    return len(anchors), box_iou(boxes, anchors).amax(dim=1)


# %%
pyramid, three = (4, 8, 16, 32), ((32.0, 64.0, 128.0),)
designs = {
    "one square of 64, stride 16": best_iou((16,), ((64.0,),), (1.0,)),
    "  with 3 ratios": best_iou((16,), ((64.0,),), ratios),
    "  with stride 4": best_iou((4,), ((64.0,),), (1.0,)),
    "  with 3 sizes": best_iou((16,), three, (1.0,)),
    "3 sizes, 3 ratios, stride 16": best_iou((16,), three, ratios),
    "pyramid, sizes 32 to 256": best_iou(pyramid, ((32.0,), (64.0,), (128.0,), (256.0,)), ratios),
    "pyramid, sizes 16 to 128": best_iou(pyramid, sizes, ratios),
}
for name, (count, best) in designs.items():
    half, strict = (best >= 0.5).float().mean(), (best >= 0.7).float().mean()
    print(f"{name:29} {count:6} anchors  recall {half:.2f} at IoU 0.5, {strict:.2f} at 0.7")
print(f"You guessed {guess_helps!r}; it is 'sizes'.")

# %%
bars, curves = axes_row("recall at IoU 0.5, and at 0.7 (dark)", "mean best IoU, by the object's size", height=3.4)
reached = {name: best for name, (_, best) in designs.items()}
draw_recall(bars, reached)
draw_iou_by_size(curves, (width * height).sqrt(), {name: reached[name] for name in list(reached)[::3]})

# %% [markdown]
# Three lessons. **Sizes first**: an anchor reaches objects of about its own size and no others, wherever it lies;
# more ratios or four times as many rows and columns change nothing about that. (Ratios matter where shapes vary. Here
# they hardly do; persons and ties in photographs are another matter.) **Small objects need small strides**: with
# three sizes on one map the curve still falls on the left. **Fit the design to the data**: the same pyramid with
# every size doubled loses the small objects. And one number to keep: even the best design has an anchor with IoU 0.7
# for little more than a third of the objects. Notebook 03 must deal with that.

# %% [markdown]
# ## Break it
#
# The order is a contract, so we break it. The RPN's last convolution gives a score for each of A = 3 shapes at each
# cell, a tensor (A, H, W). The list of anchors runs (H, W, A), so the scores must be permuted before they are
# flattened. Forget that, and every shape still fits: 3 x 24 x 32 numbers, 2,304 anchors. We take a *perfect* RPN,
# whose score is the true IoU of its anchor with the cross at the lower right. Before you run it: where will the best
# 20 anchors lie?

# %%
image, target = data[3]
level = levels[1]  # stride 8, size 32
answer = box_iou(level, target["boxes"][1:])[:, 0]  # (H * W * A,) the IoU with the cross
output = answer.view(24, 32, 3).permute(2, 0, 1)  # (A, H, W): as it leaves a convolution
readings = {"(H, W, A)": output.permute(1, 2, 0).flatten(), "(A, H, W)": output.flatten()}
panels = axes_row("right: permuted, then flattened", "wrong: flattened as it is", height=3.4)
for panel, (order, scores) in zip(panels, readings.items(), strict=True):
    top = scores.topk(20).indices
    print(f"read as {order}: scores of the best 20 {scores[top].mean():.2f}, their true IoU {answer[top].mean():.2f}")
    show_image(panel, image)
    draw_boxes(panel, level[top], PALETTE[3], linewidth=1.5)

# %% [markdown]
# The scores are as high as before, and the boxes mean nothing. The cross has ghosts all over the image: what was said
# about the first shape is now read in the top third, about the second in the middle, about the third at the bottom,
# and in each third three rows of cells lie side by side. In training no error comes up either. The loss
# falls, because most anchors show background in any order; the objects stay a riddle, since a convolution would have
# to answer for a place that it does not see. The symptom to remember: *proposals that have nothing to do with the
# image*. The test to write: set one score to 1, and look which anchor it finds. The check of exercise 2 does that.

# %% [markdown]
# ## Quiz
#
# **1.** Size 64, ratio 4. How wide and how high?
#
# <details><summary>Answer</summary>
#
# 32 wide, 128 high: the area is 64 x 64, and h / w = 4. A box that is taller than wide has a ratio above 1. (Some code
# uses w / h; on square anchors nobody notices.)
#
# </details>
#
# **2.** An image is made twice as wide and twice as high. What happens to the number of anchors, and to the number of
# objects?
#
# <details><summary>Answer</summary>
#
# Four times the anchors, the same objects. The share of anchors that show background gets even larger.
#
# </details>
#
# **3.** Anchors reach over the border of the image. Should they be clipped?
#
# <details><summary>Answer</summary>
#
# No. An anchor is the reference from which deltas count, and it must have the same shape at every cell, for the same
# weights answer everywhere. Clip the *moved* boxes, the proposals.
#
# </details>
#
# **4.** You want to find lines of text, ten times as wide as high. What do you change first?
#
# <details><summary>Answer</summary>
#
# The ratios: 0.1 belongs among them. Then measure the recall on your boxes.
#
# </details>
#
# **5.** A detector whose weights came from another code base finds everything, but each box is off to the lower right
# by half a stride. What is wrong?
#
# <details><summary>Answer</summary>
#
# It was trained with anchors on the corners of the cells (`offset` 0) and is run with anchors in the middle. Neither
# is wrong; training and use must agree. (The recall of our pyramid at IoU 0.5 is 0.99 with both.)
#
# </details>

# %% [markdown]
# ## What you have now
#
# | you wrote | the package has | file | used again in |
# |---|---|---|---|
# | `my_cell_anchors` | `cell_anchors` | [`anchors.py`](../mrcnn_scratch/anchors.py) | 03 matching, 06 training |
# | `my_grid_anchors` | `grid_anchors`, `pyramid_anchors` | [`anchors.py`](../mrcnn_scratch/anchors.py) | 03, 04, 06 |
#
# Next: 12,240 anchors and four objects. Who answers for whom? Notebook 03 decides it.
