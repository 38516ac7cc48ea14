# %% [markdown]
# # 08 · RoIAlign
#
# **Goal.** Write the layer of the paper: read features *between* cells, put samples where the box is and not where the
# cells are, derive the gradient on paper and then in code, and see bias and jitter disappear.
#
# **Minutes.** Under 1 of computing on two CPU cores, about 60 of reading and writing. **Seed.** 0. Nothing is
# downloaded.

# %%
import itertools

import torch
from matplotlib_inline.backend_inline import set_matplotlib_formats

from mrcnn_scratch import ShapesDataset
from mrcnn_scratch.course.checks import check_bilinear, check_roi_align, check_roi_align_backward
from mrcnn_scratch.roi_ops.reference.sampling import bilinear
from mrcnn_scratch.visualize import roi_grids as draw
from mrcnn_scratch.visualize.panels import axes_row
from mrcnn_scratch.visualize.style import PALETTE

set_matplotlib_formats("png")

# %% [markdown]
# ## Nothing is rounded
#
# Notebook 07 ended with two layers that round the box to cells and read beside the object. **RoIAlign** (Mask R-CNN,
# section 3) rounds nothing: the box is divided into equal bins where it is, each bin into 2 x 2 parts, and in the
# middle of each part the features are read, wherever that lies. The output is the mean of a bin's four samples. Here
# is the person of notebook 07 again, at stride 16.

# %%
data = ShapesDataset("demo", 200, split="val", seed=0)
image, target = data[95]
image, box, stride, size = image[:, :112], target["boxes"][2], 16, (3, 2)  # 112 high, 128 wide
features = torch.nn.functional.avg_pool2d(image, stride)  # (3, 7, 8): the mean colour of each cell
pool, align = axes_row("RoIPool: the cells of 3 x 2 bins", "RoIAlign: bins, and their samples", height=3.2)
draw.draw_bins(pool, draw.pooled_bins(box, size, stride, (7, 8)), PALETTE[:3], inset=1.5)
draw.draw_bins(align, draw.exact_bins(box, size), PALETTE[:2])
align.plot(*draw.sample_points(box, size, stride).T, "k.", markersize=6)
for panel in (pool, align):
    draw.show_map(panel, features[0], stride)
    draw.outline(panel, box, PALETTE[3], linestyle="--")
    panel.set(xlim=(0, 96), ylim=(96, 0))

# %% [markdown]
# ## Predict
#
# 1. One output of RoIPool sends its gradient to one cell. **To how many cells, at most, does one output of RoIAlign
#    with 2 x 2 samples send its gradient: 1, 4 or 16?**
# 2. Early RoIAligns, and torchvision's to this day if you do not ask for the other, forget *half a cell*. **How far
#    beside the box does it read at stride 16, in pixels: 0.5, 8 or 16?**

# %%
guess_cells = 4  # 1, 4 or 16
guess_pixels = 0.5  # 0.5, 8 or 16

# %% [markdown]
# ## The smallest example, by hand
#
# A map of 2 rows holds 10, 20, 30 and 40, 50, 60. Count in cells so that the *centre* of cell 0 is at 0: **index**
# coordinates. A sample at y = 0.5, x = 1.25 lies a quarter of the way from column 1 to column 2, halfway between the
# rows. A cell weighs by how near it is, across times down: 0.75 x 0.5 = **0.375** for 20 and 50, 0.25 x 0.5 =
# **0.125** for 30 and 60. Together 7.5 + 3.75 + 18.75 + 7.5 = **37.5**. The weights sum to 1, always.

# %%
six = torch.tensor([[10.0, 20.0, 30.0], [40.0, 50.0, 60.0]])
(panel,) = axes_row("a sample at y = 0.5, x = 1.25 (index), and its four neighbours", height=3)
draw.show_map(panel, six, numbers=".0f", vmin=-60)
draw.draw_sample(panel, 1.25 + 0.5, 0.5 + 0.5, (2, 3), 1, PALETTE[3])
_ = panel.set(xlabel="x, cells (continuous: cell 0 covers 0 to 1)")
print("read:", sum(weight * six[y, x].item() for y, x, weight in bilinear(0.5, 1.25, 2, 3, "aligned")))

# %% [markdown]
# The ticks of the picture count the other way: *continuous*, as boxes do, cell 0 from 0 to 1 and its centre at 0.5.
# So index = continuous - 0.5. Both are needed, continuous for boxes, index for neighbours, and the step between them
# is the half that was forgotten.
#
# ## Exercise 1: `my_bilinear`
#
# Give not the value but the *recipe*: four cells and their weights. The forward multiplies features by them, the
# backward will multiply gradients by the same ones. One rule is needed at the border. Between -1 and 0 the sample is
# beyond the outermost centre, and the outermost cell holds; the same up to H and W. Beyond that it reads nothing at
# all.
#
# <details><summary>Hint 1: the order of steps</summary>
#
# Off the map? Then an empty list. Else clamp y into 0 .. H - 1 and x into 0 .. W - 1. The first row is the whole part
# of y, the second one more, and the fraction of the way between them is what is left of y.
#
# </details>
#
# <details><summary>Hint 2: at the last row</summary>
#
# Clamped to H - 1 the fraction is 0, but the second row would be H, which does not exist: `min(top + 1, H - 1)`.
#
# </details>

# %% tags=["exercise"]
def my_bilinear(y: float, x: float, H: int, W: int) -> list[tuple[int, int, float]]:
    """What a sample at (y, x), in index coordinates, reads of a map of H x W: [(row, column, weight), ...].

    y = 0.5, x = 1.25 on 2 x 3: (0, 1, 0.375), (0, 2, 0.125), (1, 1, 0.375), (1, 2, 0.125), in any order.
    """
    ### BEGIN SOLUTION
    if not (-1 <= y <= H and -1 <= x <= W):
        return []
    y, x = min(max(y, 0), H - 1), min(max(x, 0), W - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, H - 1), min(left + 1, W - 1)
    fy, fx = y - top, x - left  # the fraction of the way down and across
    return [
        (top, left, (1 - fy) * (1 - fx)),
        (top, right, (1 - fy) * fx),
        (bottom, left, fy * (1 - fx)),
        (bottom, right, fy * fx),
    ]
    ### END SOLUTION


# %%
check_bilinear(my_bilinear)

# %% [markdown]
# What does the recipe make of a row of features? The next picture reads one row of five at 400 places. Through the
# centres runs a line without jumps: half a pixel to the right is a small change, never a large one. In the outer half
# of the first and the last cell, and half a cell further, it is flat, and then it falls to 0 at once. That last step
# is a convention; what matters is that forward and backward have the same one.

# %%
five = [2.0, 5.0, 3.0, 6.0, 4.0]
places = torch.linspace(-1, 6, 401).tolist()  # continuous
read = [sum(weight * five[x] for _, x, weight in bilinear(0.0, place - 0.5, 1, 5, "aligned")) for place in places]
(panel,) = axes_row("one row of features, read between the cells", height=2.8)
panel.bar([i + 0.5 for i in range(5)], five, width=1, color="0.9", edgecolor="0.6")
panel.plot(places, read, color=PALETTE[0], linewidth=2)
panel.plot([i + 0.5 for i in range(5)], five, "o", color=PALETTE[1])
_ = panel.set(xlabel="x, cells (continuous)", ylabel="feature", xticks=range(-1, 7))

# %% [markdown]
# ## Where the samples lie, by hand
#
# Detectron2 tests its RoIAlign on a ramp, and we take over the numbers. The map is `arange(25)` in rows of 5: cell
# (1, 1) holds **6**, one column further it is **1** more, one row further **5** more. Pool the box `1, 1, 3, 3` to 4
# x 4, at stride 1. A bin is half a cell wide, and the middle of the first is at **1.25**, index **0.75**: a quarter
# cell left of the centre of column 1, and a quarter above row 1. On a ramp the mean of a bin is the value at its
# middle: 6 - 0.25 x 1 - 0.25 x 5 = **4.5**. The next bin is at 5.0.

# %%
ramp, small = torch.arange(25.0).view(5, 5), torch.tensor([1.0, 1.0, 3.0, 3.0])
(panel,) = axes_row("the box [1, 1, 3, 3] in 4 x 4 bins of 2 x 2 samples", height=3.6)
draw.show_map(panel, ramp, numbers=".0f", vmin=-25)
draw.draw_bins(panel, draw.exact_bins(small, (4, 4)), PALETTE[:2], alpha=0.08)
panel.plot(*draw.sample_points(small, (4, 4), 1).T, "k.", markersize=4)
_ = panel.set(xlabel="x, cells (continuous)")

# %% [markdown]
# ## Exercise 2: `my_roi_align`
#
# For one image, in plain loops, with the package's `bilinear(y, x, H, W, "aligned")` for the recipe (yours does the
# same). About 9 lines, with `itertools.product` for the loops over bins and samples.
#
# <details><summary>Hint 1: three steps for one RoI</summary>
#
# To cells: multiply by the scale. To index: take off 0.5, from cells, not from pixels. Then the size of a bin, which is
# not rounded and may be less than a cell.
#
# </details>
#
# <details><summary>Hint 2: the place of one sample</summary>
#
# Part i of n in bin p begins at (p + i / n) bins from the start of the RoI; its middle is at p + (i + 0.5) / n. Every
# sample counts with 1 / n**2, also one that is off the map and reads nothing.
#
# </details>

# %% tags=["exercise"]
def my_roi_align(
    features: torch.Tensor,
    boxes: torch.Tensor,
    output_size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int = 2,
) -> torch.Tensor:
    """RoIAlign of one image: (C, H, W), (R, 4) xyxy in pixels, h and w, cells per pixel, n -> (R, C, h, w).

    The ramp arange(25) in rows of 5 and the box [1, 1, 3, 3], 4 x 4 bins, scale 1: begins 4.5, 5.0, 5.5, 6.0.
    """
    ### BEGIN SOLUTION
    (C, H, W), (h, w), n = features.shape, output_size, sampling_ratio
    out = features.new_zeros(len(boxes), C, h, w)
    for r, (x1, y1, x2, y2) in enumerate((boxes * spatial_scale - 0.5).tolist()):
        bin_h, bin_w = (y2 - y1) / h, (x2 - x1) / w
        for p, q, i, j in itertools.product(range(h), range(w), range(n), range(n)):
            y, x = y1 + (p + (i + 0.5) / n) * bin_h, x1 + (q + (j + 0.5) / n) * bin_w
            for row, column, weight in bilinear(y, x, H, W, "aligned"):
                out[r, :, p, q] += features[:, row, column] * weight / n**2
    return out
    ### END SOLUTION


# %%
check_roi_align(my_roi_align)

# %% [markdown]
# The package's `roi_align` does this, for batches and compiled, and three things more. `reduce="max"` takes the largest
# sample. A box whose corners are in the wrong order is read mirrored, which no one wants: filter empty boxes first. And
# `sampling_ratio=0` is **adaptive**: as many samples as a bin has cells, rounded up, for each RoI and each axis by
# itself. With 2 x 2, a RoI of 88 cells in 7 bins reads 14 places across and passes over most of its cells.

# %%
from mrcnn_scratch.roi_ops import roi_align, roi_pool, roi_warp
from mrcnn_scratch.roi_ops.reference.sampling import axis_samples

print([f"{x:g}" for x in roi_align(ramp[None, None], [small[None]], 4)[0, 0, 0].tolist()])
for width in (0.3, 7.0, 7.01, 88.0):
    samples = len(axis_samples(0.0, width, 7, 0, 1.0, 0, "aligned"))
    print(f"{width:5.2f} cells in 7 bins: adaptive takes {samples} samples a bin and axis")

# %% [markdown]
# ## Bias and jitter
#
# Now the measurement. The features are a ramp again: each cell holds the x of its own centre, in pixels, so an output
# *says where it was read*. The person's box slides to the right over 64 pixels. A mean should say the middle of its
# bin, RoIPool's maximum the right end of its bin: that is what they would say on a map of endless resolution. What is
# left over, as the mean of the two bins of a row, is the error: its mean over all places is the **bias**, its spread
# the **jitter**.

# %%
place = ((torch.arange(20.0) + 0.5) * stride).expand(1, 1, 7, 20).contiguous()  # (1, 1, 7, 20)
shift = torch.arange(64.0)
moved = box + shift[:, None] * torch.tensor([1.0, 0.0, 1.0, 0.0])  # (64, 4)
bins = torch.stack([draw.exact_bins(each, size)[1] for each in moved])  # (64, 2, 4), the bins of row 1
middle, right_end = (bins[..., 0] + bins[..., 2]) / 2, bins[..., 2]
ops = {"RoIPool": roi_pool, "RoIWarp": roi_warp, "RoIAlign": roi_align}
errors = {}
for name, op in ops.items():
    said = op(place, [moved], size, 1 / stride)[:, 0, 1]  # (64, 2)
    errors[name] = (said - (right_end if op is roi_pool else middle)).mean(dim=1)
    print(f"{name:8s} bias {errors[name].mean().abs():3.1f} pixels, jitter {errors[name].std():3.1f}")

# %%
curve, first = axes_row("error while the box slides", "one output on the image, channel 0", height=3)
for (name, error), colour in zip(errors.items(), PALETTE, strict=False):
    curve.plot(shift, error, color=colour, label=name, linewidth=2)
curve.set(xlabel="moved by, pixels", ylabel="error, pixels to the right", ylim=(-3.5, 13))
curve.legend(fontsize=8, loc="lower center", ncols=3)
for (name, op), colour in zip(ops.items(), PALETTE, strict=False):
    first.plot(shift, op(features[None], [moved], size, 1 / stride)[:, 0, 1, 0], color=colour, label=name)
_ = first.set(xlabel="moved by, pixels", ylabel="output")

# %% [markdown]
# RoIAlign's error is 0 at every place, bias and jitter both. The others read 6 to 8 pixels too far right, about half
# a cell, and their error is a saw: the region stands still while the box walks away from under it, a pixel for a
# pixel, and then it jumps. On the right is what that does to one output on real features: two stairs, and a curve
# without a jump. Half a cell here is 8 pixels of an image of 128, a fifth of the person's width.
#
# ## The gradient, on paper
#
# Write the forward as one sum. Output (p, q) of channel c is
#
# $$o_{cpq} = \sum_{\text{cells } yx} w_{pq,yx}\, f_{cyx}, \qquad
# w_{pq,yx} = \frac{1}{n^2} \sum_{\text{samples of } (p, q)} (\text{weight of cell } yx)$$
#
# The weights depend on the box alone, not on the features: RoIAlign is **linear** in its features. So
# $\partial o_{cpq} / \partial f_{cyx} = w_{pq,yx}$, and by the chain rule, with $g = \partial L / \partial o$,
#
# $$\frac{\partial L}{\partial f_{cyx}} = \sum_{pq} w_{pq,yx}\, g_{cpq}.$$
#
# What was *read* with a weight is *sent back* with the same weight. Of the hand example: a gradient of **8** sends 3,
# 1, 3 and 1. Compare RoIPool: there the weights are 0 and 1, and who has the 1 depends on the features.
#
# ## Exercise 3: `my_roi_align_backward`
#
# The loops of the forward, with one line turned round. About 9 lines.
#
# <details><summary>Hint 1</summary>
#
# Copy your forward. `out` has now the shape (C, H, W), and the line in the innermost loop adds to `out[:, row,
# column]`.
#
# </details>
#
# <details><summary>Hint 2: what must not change</summary>
#
# The half cell, the middle of the parts, 1 / n**2, and the border rule, which `bilinear` brings along: where the
# forward read nothing, nothing is sent.
#
# </details>

# %% tags=["exercise"]
def my_roi_align_backward(
    grad: torch.Tensor,
    boxes: torch.Tensor,
    map_size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int = 2,
) -> torch.Tensor:
    """RoIAlign's gradient for the features: (R, C, h, w), (R, 4) xyxy, (H, W), cells per pixel, n -> (C, H, W).

    A gradient of 8 of one sample at y = 0.5, x = 1.25 on 2 x 3 cells: 0, 3, 1 in both rows.
    """
    ### BEGIN SOLUTION
    (C, h, w), (H, W), n = grad.shape[1:], map_size, sampling_ratio
    out = grad.new_zeros(C, H, W)
    for r, (x1, y1, x2, y2) in enumerate((boxes * spatial_scale - 0.5).tolist()):
        bin_h, bin_w = (y2 - y1) / h, (x2 - x1) / w
        for p, q, i, j in itertools.product(range(h), range(w), range(n), range(n)):
            y, x = y1 + (p + (i + 0.5) / n) * bin_h, x1 + (q + (j + 0.5) / n) * bin_w
            for row, column, weight in bilinear(y, x, H, W, "aligned"):
                out[:, row, column] += grad[r, :, p, q] * weight / n**2
    return out
    ### END SOLUTION


# %%
check_roi_align_backward(my_roi_align_backward)

# %% [markdown]
# ## gradcheck
#
# A derivation can be wrong, and so can its code. PyTorch has a judge that needs neither: `gradcheck` moves every
# input a little up and down, looks at the outputs, and compares that slope with the backward. It wants float64, since
# the differences are tiny, and an `autograd.Function`: a forward, a backward, and what is kept between them. We wrap
# your two functions or, as long as they are not written, the package's in the same shape.

# %%
from mrcnn_scratch.roi_ops.reference import roi_align_backward


def package_forward(features, boxes, size, scale, n=2):
    return roi_align(features[None], [boxes], size, scale, n)


def package_backward(grad, boxes, map_size, scale, n=2):
    rows, shape = torch.cat([boxes.new_zeros(len(boxes), 1), boxes], dim=1), (1, grad.shape[1], *map_size)
    return torch.from_numpy(roi_align_backward(grad.numpy(), rows.numpy(), shape, scale, n, "aligned", False)[0])


forward, backward = my_roi_align, my_roi_align_backward
if forward(torch.zeros(1, 2, 2), torch.zeros(0, 4), (1, 1), 1.0) is None:
    forward = package_forward
if backward(torch.zeros(0, 1, 1, 1), torch.zeros(0, 4), (2, 2), 1.0) is None:
    backward = package_backward
print("forward:", forward.__name__, "backward:", backward.__name__)

# %%
class Align(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, boxes):
        ctx.boxes, ctx.map_size = boxes, features.shape[1:]
        return forward(features.detach(), boxes, (2, 3), 1 / 4)

    @staticmethod
    def backward(ctx, grad):
        return backward(grad, ctx.boxes, ctx.map_size, 1 / 4), None  # the boxes receive nothing


g = torch.Generator().manual_seed(0)
inputs = torch.randn(2, 4, 5, generator=g, dtype=torch.float64, requires_grad=True)
rois = torch.tensor([[2.5, 1.0, 15.0, 11.5], [-6.0, 9.0, 7.0, 21.0]], dtype=torch.float64)  # one over the border
print("gradcheck:", torch.autograd.gradcheck(lambda x: Align.apply(x, rois), inputs))

# %% [markdown]
# It passes, for a RoI inside and for one that reaches over the border, in both channels, cell by cell. Would it have
# caught a mistake? Always ask that of a test. In the next cell the backward clips its boxes to the image first, which
# looks sensible and which the forward does not do. (torchvision's first aligned release had a mistake of this kind:
# its backward widened RoIs smaller than a cell, which its forward did not.)

# %%
class Clipped(Align):
    @staticmethod
    def backward(ctx, grad):
        return backward(grad, ctx.boxes.clamp(min=0), ctx.map_size, 1 / 4), None


for where, some in (("inside", rois[:1]), ("over the border", rois[1:])):
    passed = torch.autograd.gradcheck(lambda x, some=some: Clipped.apply(x, some), inputs, raise_exception=False)
    print(f"a RoI {where}: gradcheck {passed}")

# %% [markdown]
# The mistake is there in both runs, and only a RoI that crosses the border shows it. Test with such RoIs.
#
# ## The gradient microscope
#
# One output of the person, row 1, left bin: where does a gradient of 1 land? RoIPool sends all of it to the cell that
# won. RoIWarp and RoIAlign spread it over the cells that their four samples read.

# %%
target_bin = draw.exact_bins(box, size)[1, 0]
y, x = ((torch.arange(length) + 0.5) * stride for length in (7, 8))
for panel, (name, op) in zip(axes_row(*ops, height=3.2), ops.items(), strict=True):
    leaf = features[None].clone().requires_grad_()
    op(leaf, [box[None]], size, 1 / stride)[0, 0, 1, 0].backward()
    landed = leaf.grad[0, 0]  # (7, 8)
    draw.show_map(panel, landed, stride, numbers=".2f", cmap="Greens", vmin=0, vmax=1.5, alpha=1)
    draw.outline(panel, target_bin, PALETTE[1], linewidth=2.5)
    panel.set(xlim=(0, 64), ylim=(64, 0))
    print(f"{name:8s} lands around x = {(landed.sum(0) * x).sum():.1f}, y = {(landed.sum(1) * y).sum():.1f}")
print("the middle of the bin:", [round(v, 1) for v in draw.centres(target_bin).tolist()])

# %% [markdown]
# The three gradients sum to 1 each, and only RoIAlign's has its centre of gravity where the bin is, to a tenth of a
# pixel. (Its four samples happen to lie between the same four centres, so they share four cells.) RoIWarp's is 9
# pixels off to the right and 5 down, RoIPool's all in the one cell that won. Your first guess was about the most
# cells that are possible: samples so far apart that no two share a cell.

# %%
whole = torch.tensor([[0.0, 0.0, 128.0, 112.0]])  # bins of 64 x 112 pixels: samples two cells apart and more
leaf = torch.zeros(1, 1, 7, 8, requires_grad=True)
roi_align(leaf, [whole], (1, 2), 1 / stride)[0, 0, 0, 0].backward()
print(f"You guessed {guess_cells}; a large bin sends to {int((leaf.grad > 0).sum())} cells.")

# %% [markdown]
# ## And the box?
#
# The place of a sample moves with the corners, so an output also has a slope by the *box*. The paper does not use it:
# a proposal counts as a constant for the heads ("approximate joint training", Faster R-CNN, section 3.2), and the
# package passes nothing on unless you ask. On the ramp you can check what comes when you do: the mean of one bin is
# the value in the middle of the box, a pixel to the right is 1 more, a pixel down 5 more, and each corner moves the
# middle by a half.

# %%
for asked in (False, True):
    corners = small[None].clone().requires_grad_()
    leaf = ramp[None, None].clone().requires_grad_()
    roi_align(leaf, [corners], 1, box_gradients=asked, backend="torch").sum().backward()
    print(f"box_gradients={asked}:", None if corners.grad is None else corners.grad[0].tolist())

# %% [markdown]
# A version in plain PyTorch operations would send this gradient without being asked, through the box into the RPN. That
# is no error message either, only another training than the paper's.
#
# ## Move it yourself
#
# The slider moves the box by up to 48 pixels. Watch the left half: RoIPool's bins stand still, and jump when a corner
# passes the middle of a cell. On the right the samples go along, pixel by pixel, and so do the six outputs. (Without
# a running kernel, as on GitHub, there is no slider; the picture below has two neighbouring places.)

# %% tags=["nbval-ignore-output"]
from mrcnn_scratch.visualize.roi_slider import roi_frames, roi_slider

roi_slider(features[0], box, size, stride)

# %%
from IPython.display import Image, display

from mrcnn_scratch.visualize import figure_png

display(Image(figure_png(roi_frames(features[0], moved[[14, 15]], size, stride))))

# %% [markdown]
# One pixel further, and x1 has passed 24, the middle of cell 1: RoIPool's left bins lose a column of cells and gain
# another, and three of its six outputs in channel 0 change, by about 0.04, all at once. RoIAlign's change by no
# more than 0.01.
#
# ## Break it
#
# `aligned=False` is what RoIAlign did in Detectron and still does in torchvision by default: it takes the continuous
# coordinate x for the index x, without the half. Nothing is rounded, the outputs move with the box, gradcheck passes.
# **Before you run it: will the numbers on the ramp become larger or smaller? Is this error a bias or a jitter? And
# which of the two can a network unlearn?**

# %%
right, legacy = (roi_align(ramp[None, None], [small[None]], 4, aligned=aligned)[0, 0] for aligned in (True, False))
print("aligned, first row:", right[0].tolist(), " legacy:", legacy[0].tolist())
error = (roi_align(place, [moved], size, 1 / stride, aligned=False)[:, 0, 1] - middle).mean(dim=1)
print(f"legacy at stride 16: bias {error.mean():.1f} pixels, jitter {error.std():.1f}")
print(f"You guessed {guess_pixels}; it is {error.mean():.0f}.")

# %%
where, curve = axes_row("dots: samples, aligned; crosses: legacy", "error while the box slides", height=3)
draw.show_map(where, features[0], stride)
draw.outline(where, box, PALETTE[3], linestyle="--")
where.plot(*draw.sample_points(box, size, stride).T, ".", color=PALETTE[0], markersize=8)
where.plot(*draw.sample_points(box, size, stride, 2, "legacy").T, "x", color=PALETTE[1], markersize=5)
where.set(xlim=(0, 96), ylim=(96, 0))
shown = {"RoIAlign": errors["RoIAlign"], "legacy": error, "RoIWarp": errors["RoIWarp"]}
for (name, values), colour in zip(shown.items(), PALETTE, strict=False):
    curve.plot(shift, values, color=colour, label=name, linewidth=2)
curve.set(xlabel="moved by, pixels", ylabel="error, pixels to the right", ylim=(-3.5, 13))
_ = curve.legend(fontsize=8, loc="lower center", ncols=3)

# %% [markdown]
# Larger: every sample is read half a cell further right and down, which is 0.5 + 5 x 0.5 = 3 on the ramp. The error
# is a pure bias, half a cell, 8 pixels at stride 16, and it does not jitter at all. Can a network unlearn it? This
# repository measured that on drawn objects at stride 16, as the mean over IoU .50 to .95 of the share of objects
# whose mask reaches that IoU ([results](../docs/results/REPORT.md#table-2c-roi-layer)). With masks that are read off,
# without any learning, 48.5 falls to 11.1. With a trained mask head it is 53.7 and 52.8: a constant shift is learned
# away, or nearly. RoIWarp, whose shift is never the same, stays at 33.4. *Jitter* is what costs masks, and jitter is
# what RoIAlign removes.
#
# Note what did not find this bug: shapes, the loss, gradcheck, the test of moving the box. A number worked out by hand
# did, 4.5.

# %% [markdown]
# ## Quiz
#
# **1.** A sample lies exactly on the centre of a cell. How many cells does it read?
#
# <details><summary>Answer</summary>
#
# One, with weight 1. The other three have weight 0.
#
# </details>
#
# **2.** A box from 32 to 80 pixels at stride 16: where does it begin and end in index coordinates?
#
# <details><summary>Answer</summary>
#
# 2 to 5 cells, minus the half: 1.5 to 4.5.
#
# </details>
#
# **3.** A box is 5 pixels wide at stride 16, and you ask for 7 bins. Is that allowed?
#
# <details><summary>Answer</summary>
#
# Yes. Bins are then 0.04 cells wide, and all samples lie between the same few centres: 7 outputs that hardly differ.
# RoIAlign invents no detail, it only does not misplace what there is.
#
# </details>
#
# **4.** Why may the backward ignore the features, when RoIPool's cannot?
#
# <details><summary>Answer</summary>
#
# RoIAlign is linear: its weights come from the box. RoIPool's weights, 1 for the winner, come from the features.
#
# </details>
#
# **5.** You double the image, the boxes and the map (stride unchanged). What happens to the adaptive number of samples,
# and to the fixed one?
#
# <details><summary>Answer</summary>
#
# The RoI has twice as many cells across, so the adaptive number doubles (up to rounding up). The fixed one stays, and
# more cells are passed over.
#
# </details>

# %% [markdown]
# ## What you have now
#
# | you wrote | the package has | file | used again in |
# |---|---|---|---|
# | `my_bilinear` | `bilinear` | [`sampling.py`](../mrcnn_scratch/roi_ops/reference/sampling.py) | 09, 11 mask targets |
# | `my_roi_align` | `roi_align` | [`align.py`](../mrcnn_scratch/roi_ops/reference/align.py) | 09, 10 to 13, 15 |
# | `my_roi_align_backward` | its gradient | [`align.py`](../mrcnn_scratch/roi_ops/reference/align.py) | 09 |
#
# Next: the same loops, compiled. Notebook 09 turns them into a kernel.
