# %% [markdown]
# # 03 · Matching and sampling
#
# **Goal.** Decide for each anchor what it should answer: which object, background, or nothing at all. Then draw the few
# anchors that the loss gets to see. Both decisions are made anew for every image, and no network is involved.
#
# **Minutes.** Under 1 of computing on two CPU cores, about 40 of reading and writing. **Seed.** 0. Nothing is
# downloaded.

# %%
import torch
from matplotlib_inline.backend_inline import set_matplotlib_formats

from mrcnn_scratch import ShapesDataset, box_iou, encode_boxes
from mrcnn_scratch.anchors import pyramid_anchors
from mrcnn_scratch.course.checks import check_match, check_sample
from mrcnn_scratch.visualize.matching import draw_labels
from mrcnn_scratch.visualize.panels import axes_row, draw_boxes
from mrcnn_scratch.visualize.style import PALETTE, show_image

set_matplotlib_formats("jpeg", pil_kwargs={"quality": 75, "optimize": True, "progressive": True})

# %% [markdown]
# ## Thousands of anchors, four objects
#
# An image of notebook 02, and its pyramid of anchors: 12,240 of them. To train the RPN, each must be told what it
# should have said. The overlap decides: for each anchor take the object with which its IoU is largest. The picture
# shows these best IoUs. Note the axis on the left: it is logarithmic. Most anchors have nothing to do with any object,
# and hardly one fits well.

# %%
data = ShapesDataset("multiscale", 200, split="val", seed=0, image_size=(192, 256))
image, target = data[5]
strides, sizes = (4, 8, 16, 32), ((16.0,), (32.0,), (64.0,), (128.0,))
levels = pyramid_anchors([(192 // s, 256 // s) for s in strides], strides, sizes, (0.5, 1.0, 2.0))
anchors = torch.cat(levels)
iou = box_iou(target["boxes"], anchors)  # (G, A)
print("overlaps", tuple(iou.shape), "of", len(target["boxes"]), "objects and", len(anchors), "anchors")

# %%
picture, overlaps = axes_row("four objects", "best IoU of 12,240 anchors", height=3)
show_image(picture, image)
draw_boxes(picture, target["boxes"], "white", linewidth=1.5)
overlaps.hist(iou.amax(dim=0), bins=40, range=(0, 1), log=True, color=PALETTE[3])
for threshold in (0.3, 0.7):
    overlaps.axvline(threshold, color=PALETTE[1], linestyle="--")
_ = overlaps.set(xlabel="best IoU with an object", ylabel="anchors", xlim=(0, 1))

# %% [markdown]
# The dashed lines are Faster R-CNN's two thresholds. At 0.7 or above an anchor is **positive**: it should say
# "object", and its deltas should move it there. Below 0.3 it is **background**. Between them it is **ignored**: half
# an object is neither a good example of one nor a good example of none, so the loss leaves it out.
#
# ## Predict
#
# 1. How many of the 12,240 anchors of this image will be positive: about **6, 60 or 600**?
# 2. The paper's RPN trains without the anchors that reach over the border: here a fifth of all, and nine of ten of the
#    largest. How many of the 884 objects of 200 images then lose all their positives: **"many" or "few"**?

# %%
guess_positive = 60  # 6, 60 or 600
guess_lost = "many"  # "many" or "few"

# %% [markdown]
# ## The smallest example, by hand
#
# Two objects (rows), five anchors (columns), thresholds 0.7 and 0.3. Anchor 0 has 0.8 with object 0: positive,
# **0**. Anchor 1 has at best 0.5: between the thresholds, ignored, **-2**. Anchor 3 has 0.1, anchor 4 has 0.2, both
# background, **-1**. And anchor 2? Its best is 0.4, ignored. But then *nobody* would answer for object 1, and the
# network would never hear of it. So an object **claims** the anchor it overlaps most, however little that is:
# anchor 2 becomes **1**.

# %%
table = torch.tensor([[0.8, 0.5, 0.2, 0.1, 0.0], [0.0, 0.1, 0.4, 0.0, 0.2]])
print("best IoU of each anchor", [f"{x:.1f}" for x in table.amax(dim=0)])  # down the columns
print("its object             ", table.argmax(dim=0).tolist())
print("best IoU of each object", [f"{x:.1f}" for x in table.amax(dim=1)])  # along the rows

# %% [markdown]
# ## Exercise 1: `my_match`
#
# From the table of overlaps to one number for each anchor: its object's index, -1 or -2. Claims are made only if
# `allow_low_quality` is on. Three details, which real detectors got wrong: an object claims *all* anchors that are
# tied at its best IoU; a claimed anchor answers for the object that *it* overlaps most, not for the one that claimed
# it; an object that overlaps no anchor claims nothing. And an image may have no object: all is background then.
#
# <details><summary>Hint 1: the thresholds</summary>
#
# `iou.max(dim=0)` gives both, the best IoU of each anchor and the index of the object. Begin with the indices, and
# overwrite: where the best is below `high` by -2, then where it is below `low` by -1. (`max` of a table without rows
# stops: return before that.)
#
# </details>
#
# <details><summary>Hint 2: the claims</summary>
#
# Compare the whole table with the best of each row, kept as (G, 1): `iou == best_of_object`. True where an anchor is
# tied at the object's best. Add the condition that this best is above 0, and ask with `any(dim=0)` which anchors
# somebody claims. They get back the index that you overwrote.
#
# </details>

# %% tags=["exercise"]
def my_match(iou: torch.Tensor, high: float, low: float, allow_low_quality: bool = False) -> torch.Tensor:
    """Who answers for what: (G, A) overlaps -> (A,) int64, an object's index, -1 background, -2 ignored.

    [[0.8, 0.5, 0.2, 0.1, 0.0], [0.0, 0.1, 0.4, 0.0, 0.2]] at 0.7, 0.3, with claims: 0, -2, 1, -1, -1.
    """
    ### BEGIN SOLUTION
    if iou.numel() == 0:
        return torch.full((iou.shape[1],), -1)
    best_iou, best = iou.max(dim=0)  # (A,), (A,)
    matches = best.clone()
    matches[best_iou < high] = -2
    matches[best_iou < low] = -1
    if allow_low_quality:
        best_of_object = iou.amax(dim=1, keepdim=True)  # (G, 1)
        claimed = ((iou == best_of_object) & (best_of_object > 0)).any(dim=0)  # (A,)
        matches[claimed] = best[claimed]
    return matches
    ### END SOLUTION


# %%
check_match(my_match)

# %% [markdown]
# From here on we use the package's `match`. The picture shows all labels of our image, a panel for each level: a dot
# in the middle of each anchor, grey for background, orange for ignored, blue for positive, with its box. Three
# anchors share each middle; the most positive one is on top.

# %%
from mrcnn_scratch.matching import match

matches = match(iou, 0.7, 0.3, allow_low_quality=True)
titles = [f"stride {stride}, size {size:.0f}" for stride, (size,) in zip(strides, sizes, strict=True)]
parts = matches.split([len(level) for level in levels])
for panel, level, part in zip(axes_row(*titles, rows=2, height=7), levels, parts, strict=True):
    draw_labels(panel, image, level, part)
positive, ignored = int((matches >= 0).sum()), int((matches == -2).sum())
print(f"{positive} positive, {ignored} ignored, {len(matches) - positive - ignored} background")
print(f"You guessed {guess_positive}; it is {positive}.")

# %% [markdown]
# The arrow at the top is taken by one anchor of size 16, the only one here that reaches 0.7. The person claims one of
# size 64. Each crescent claims two, which share the same area with its box: a tie. Around them lie halos of ignored
# anchors. Nothing is positive on stride 8, since no object here is about 32 pixels large, nor on stride 32: those
# anchors hold a crescent, and much besides.
#
# How much do the claims do? Once without them and once with them, over all 200 images.

# %%
torch.set_num_threads(1)  # many small tables: two threads would mostly wait for each other
overlaps = [box_iou(data[i][1]["boxes"], anchors) for i in range(200)]  # (G, A) of each image
objects = sum(len(overlap) for overlap in overlaps)

# %%
for claims in (False, True):
    results = [match(overlap, 0.7, 0.3, claims) for overlap in overlaps]
    answered = sum(len(each[each >= 0].unique()) for each in results)
    every = torch.cat(results)
    print(f"{'with' if claims else 'without'} claims: {int((every >= 0).sum())} positive anchors, ", end="")
    print(f"{answered} of {objects} objects have one")

# %%
for name, kind in {"positive": every >= 0, "ignored": every == -2, "background": every == -1}.items():
    print(f"{name:10} {100 * kind.float().mean():5.2f} %")

# %% [markdown]
# Without claims, nearly two thirds of the objects would teach the RPN nothing, just as notebook 02's recall at 0.7
# foretold. With them two are left out: the anchors that they claim overlap another object more, and keep it. Two
# thirds of what the RPN learns from are therefore *claimed* anchors, not good ones. The deltas must make good boxes of
# them.
#
# ## Why sample?
#
# An RPN that always says "background" is right for 99.95 % of the anchors that count. A loss averaged over all of
# them would be content with that. So the loss gets a **mini-batch** of anchors, of which up to half are positive; in
# the paper 256 for each image, in our small model 64.
#
# By hand: a batch of **8**, at most a quarter positive. From 10 positives and 100 negatives draw int(8 x 0.25) = **2**
# positives and **6** negatives. If there is only **1** positive, it is taken, and negatives fill the rest: **7**.
# Ignored anchors are never drawn, and none is drawn twice.

# %%
size, fraction = 8, 0.25
for available in (10, 1, 0):
    drawn = min(available, int(size * fraction))
    print(f"of {available:2} positives and 100 negatives: {drawn} positives, {size - drawn} negatives")

# %% [markdown]
# ## Exercise 2: `my_sample`
#
# Draws indices of anchors, at random, with the generator that you are given (so that a run can be repeated). The
# order of the result does not matter.
#
# <details><summary>Hint 1: draw without putting back</summary>
#
# `torch.randperm(n, generator=generator)` is a random order of 0 .. n - 1, of which you keep the beginning. If you
# want more than n, you get n: a slice never complains.
#
# </details>
#
# <details><summary>Hint 2: places and indices</summary>
#
# `torch.where(condition)[0]` is the list of all positives' indices. A random order of *that list* gives places in it:
# look up the indices there.
#
# </details>

# %% tags=["exercise"]
def my_sample(
    matches: torch.Tensor, size: int, positive_fraction: float, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """A mini-batch: (A,) matches -> (P,) and (M,) int64 indices of the drawn positives and negatives.

    At most int(size * positive_fraction) positives; negatives fill up to size. 10 and 100, size 8, 0.25: 2 and 6.
    """
    ### BEGIN SOLUTION
    positive = torch.where(matches >= 0)[0]
    negative = torch.where(matches == -1)[0]
    order = torch.randperm(len(positive), generator=generator)
    positive = positive[order[: int(size * positive_fraction)]]
    order = torch.randperm(len(negative), generator=generator)
    return positive, negative[order[: size - len(positive)]]
    ### END SOLUTION


# %%
check_sample(my_sample)

# %% [markdown]
# And here is the mini-batch of our image, drawn with the package's `sample`: all that is positive, and 58 random
# anchors of background. Three quarters of all anchors lie on the finest map, so most of the negatives are small boxes.
# Some lie on an object and are far too small for it. For the next step another sample will be drawn.

# %%
from mrcnn_scratch.matching import sample

yes, no = sample(matches, 64, 0.5, torch.Generator().manual_seed(0))
print(len(yes), "positives,", len(no), "negatives, of which", int((no < len(levels[0])).sum()), "at stride 4")
left, right = axes_row("positives: all 6", "negatives: 58 of 12,035", height=3.3)
for panel, chosen, colour in ((left, yes, PALETTE[3]), (right, no, "0.35")):
    show_image(panel, image * 0.45 + 0.55)
    draw_boxes(panel, anchors[chosen], colour, linewidth=1.5)
    panel.set(xlim=(0, 256), ylim=(192, 0))

# %% [markdown]
# ## The package's version
#
# `match_boxes` also knows **crowds**, heaps of objects that nobody outlined one by one: they never become positives,
# and anchors inside one are ignored. `rpn_targets` is what training calls: match, sample, and the deltas of the
# positives (notebook 01). It has a switch for anchors over the border, `rpn_straddle`: 0 as in the paper, -1 for "train
# them all", as in Detectron2 and torchvision. Your second guess was about that.

# %%
from mrcnn_scratch.presets import model_config
from mrcnn_scratch.rpn import rpn_targets

for straddle in (-1.0, 0.0):
    config = model_config("tiny-fpn", rpn_straddle=straddle)
    yes, no, deltas = rpn_targets(anchors, target, (192, 256), config, torch.Generator().manual_seed(0))
    print(f"straddle {straddle:2.0f}: {len(yes)} positives, {len(no)} negatives, deltas {tuple(deltas.shape)}")

# %%
inside = ((anchors[:, :2] >= 0) & (anchors[:, 2:] <= torch.tensor([256.0, 192.0]))).all(dim=1)  # (A,)
boxes = torch.cat([data[i][1]["boxes"] for i in range(200)])
large = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1) > 96**2

# %%
for name, usable in {"all anchors": torch.ones_like(inside), "those inside": inside}.items():
    results = [match(overlap[:, usable], 0.7, 0.3, allow_low_quality=True) for overlap in overlaps]
    answered = sum(len(each[each >= 0].unique()) for each in results)
    best = torch.cat([overlap[:, usable].amax(dim=1) for overlap in overlaps])
    print(f"{name:12} {int(usable.sum()):6}: {answered} of {objects} objects have a positive; ", end="")
    print(f"mean best IoU of the {int(large.sum())} large ones {best[large].mean():.2f}")
print(f"You guessed {guess_lost!r}; it is 'few'.")

# %% [markdown]
# Few: 877 objects have a positive instead of 882. Claims repair the rest: an object whose best anchor is gone claims
# the next best one *inside*. The cost is in the quality, most of all for large objects, for which few anchors are
# left. In an image of 128 x 128 pixels no anchor of size 128 is left, and one of five of size 64: so our small models
# train all anchors, those over the border, too.
#
# ## Break it
#
# A random crop moved an object out of the picture. Somebody clips its box to the image and forgets to remove it: a
# box of width 0 at the right border. Its IoU with every anchor is 0. We plant the common way to write claims, without
# the condition that the best IoU is above 0. Before you run it: what does an object claim whose best IoU is 0?

# %%
def naive_match(iou, high, low):
    own = iou.argmax(dim=0)  # (A,) the object that each anchor overlaps most
    claimed = (iou == iou.amax(dim=1, keepdim=True)).any(dim=0)  # the bug: the best may be 0
    return torch.where(claimed, own, match(iou, high, low))


lost = torch.tensor([[256.0, 60.0, 256.0, 110.0]])
boxes = torch.cat([target["boxes"], lost])
overlap = box_iou(boxes, anchors)
results = {"package": match(overlap, 0.7, 0.3, allow_low_quality=True), "naive": naive_match(overlap, 0.7, 0.3)}
for name, each in results.items():
    yes, no = sample(each, 64, 0.5, torch.Generator().manual_seed(0))
    false = int((overlap[:, yes].amax(dim=0) < 0.3).sum())
    shift = encode_boxes(boxes[each[yes]], anchors[yes])[:, :2].abs().max()
    print(f"{name:7}: {int((each >= 0).sum()):5} positives; drawn {len(yes)} and {len(no)}; ", end="")
    print(f"{false} of the {len(yes)} have an IoU below 0.3; largest shift {shift:.1f} anchor sides")

# %%
both = axes_row("package, stride 16", "naive, stride 16", height=3.4)
for panel, each in zip(both, results.values(), strict=True):
    draw_labels(panel, image, levels[2], each.split([len(level) for level in levels])[2])

# %% [markdown]
# Everything. The lost object's IoU is 0 with *all* anchors, and so is its best: all are "tied" at it, and each becomes
# a positive example. There is no background left to draw. The mini-batch has 32 positives, all of them background in
# truth, and their deltas should move them across the image. It is hard to find, since the code with the mistake is far
# from the data with the mistake, and few images have it. torchvision's matcher does exactly this to an object that
# overlaps no anchor; it guards itself by refusing boxes without an area. The moral is to do both: check the data, and
# give a claim a condition.

# %% [markdown]
# ## Quiz
#
# **1.** An anchor has an IoU of 0.5 with its best object, which claims another anchor. What is it told?
#
# <details><summary>Answer</summary>
#
# Nothing. Between 0.3 and 0.7 it is ignored: it is never drawn, and no loss sees it.
#
# </details>
#
# **2.** Somebody selects the positives by `matches > 0`. Which objects are never learned?
#
# <details><summary>Answer</summary>
#
# The first one of every image, index 0. Images with one object teach nothing at all. The loss looks fine.
#
# </details>
#
# **3.** An image without objects comes up in training. What is in its mini-batch of 64?
#
# <details><summary>Answer</summary>
#
# 64 negatives. They teach the RPN what background looks like; such images need not be thrown away.
#
# </details>
#
# **4.** Can an object end up without a positive although claims are on?
#
# <details><summary>Answer</summary>
#
# Yes: if each anchor that it claims overlaps another object more. A claimed anchor keeps its own best object. Here it
# happened to 2 of 884.
#
# </details>
#
# **5.** The heads (notebook 10) match proposals at 0.5, without ignored ones, without claims, and put the true boxes
# among the proposals. Why do they need no claims?
#
# <details><summary>Answer</summary>
#
# Each true box is then a candidate with IoU 1: every object has a positive. And a proposal that holds a fifth of an
# object would be told its class, which its features do not show.
#
# </details>

# %% [markdown]
# ## What you have now
#
# | you wrote | the package has | file | used again in |
# |---|---|---|---|
# | `my_match` | `match`, `match_boxes` | [`matching.py`](../mrcnn_scratch/matching.py) | 06 the RPN, 10 the heads |
# | `my_sample` | `sample` | [`matching.py`](../mrcnn_scratch/matching.py) | 06, 10 |
# | both | `rpn_targets` | [`rpn.py`](../mrcnn_scratch/rpn.py) | 06: what the RPN is trained on |
#
# Next: the way back. A trained RPN scores and moves 12,240 anchors; notebook 04 makes proposals of them.
