# %% [markdown]
# # 04 · NMS and proposals
#
# **Goal.** Write non-maximum suppression, and the step around it that turns 4,080 scored anchors into 200 proposals.
# Both are short. What makes them hard is a handful of small decisions: which boxes compete, what is cut off first, and
# where an image ends.
#
# **Minutes.** Under 1 of computing on two CPU cores, about 45 of reading and writing. **Seed.** 0. Nothing is
# downloaded.

# %%
import torch
from matplotlib.patches import Rectangle
from matplotlib_inline.backend_inline import set_matplotlib_formats

from mrcnn_scratch import ShapesDataset, batched_nms, box_iou, clip_boxes_to_image, decode_boxes, load_model, nms
from mrcnn_scratch.boxes import large_enough
from mrcnn_scratch.course.checks import check_nms, check_propose
from mrcnn_scratch.predict import shipped_checkpoint
from mrcnn_scratch.visualize.panels import axes_row, draw_boxes
from mrcnn_scratch.visualize.style import PALETTE, show_image

set_matplotlib_formats("jpeg", pil_kwargs={"quality": 80, "optimize": True, "progressive": True})

# %% [markdown]
# ## One object, many answers
#
# The region proposal network judges every anchor by itself: is there an object, and how far off am I? Nothing tells
# neighbouring anchors that they see the same object, so all of them say yes. Here are the answers of the shipped
# detector, taken as in notebook 00. The image is cut to 104 rows, so that it is not square, and so that the batch,
# which is padded to a multiple of 32, is larger than the image. Both will matter.

# %%
_ = torch.set_grad_enabled(False)
model, _ = load_model(shipped_checkpoint())
data = ShapesDataset("demo", 200, split="val", seed=0)
image = data[95][0][:, :104]
batch = model.prepare([image])
features = model.extract(batch.images)
anchors, (logits, deltas) = model.anchors(features), model.rpn(features)
print("image", tuple(image.shape), "batch", tuple(batch.images.shape), "anchors", [len(a) for a in anchors])

# %% [markdown]
# The 60 best answers of all maps: anchors moved by their deltas, corners outside the image put back on its border. The
# objectness of the last one is still above 0.5. Four objects are on the image, two persons, a star and a ring, and
# each is the nearest of 12 to 18 of these boxes. If a later stage could look at 60 boxes only, it would look at each
# object about 15 times, and at nothing that is less clear.

# %%
score, best = torch.cat(logits, dim=1)[0].topk(60)
moved = decode_boxes(torch.cat(deltas, dim=1)[0, best], torch.cat(anchors)[best])
boxes = clip_boxes_to_image(moved, (104, 128))
nearest = box_iou(boxes, data[95][1]["boxes"]).argmax(dim=1).bincount().tolist()
print(f"objectness: best {score[0].sigmoid():.2f}, last {score[-1].sigmoid():.2f}; boxes of each object: {nearest}")
pale = image * 0.45 + 0.55
for panel, count in zip(axes_row("the image", "the best 10", "the best 60"), (0, 10, 60), strict=True):
    show_image(panel, pale if count else image)
    draw_boxes(panel, boxes[:count], PALETTE[3], linewidth=1)

# %% [markdown]
# ## Predict
#
# **Non-maximum suppression**, NMS, takes the boxes best first. A box stays unless its IoU with a better one *that
# stays* is above a threshold.
#
# 1. a is better than b, b is better than c. b overlaps both of them too much; a and c hardly overlap. **Does c stay:
#    "yes" or "no"?**
# 2. Only five proposals an image may go on. **Which threshold finds the most objects (IoU 0.5 or more): 0.3, 0.7, or
#    1.0, which drops nothing?**
# 3. Now 200 may go on, and an object counts as found at an IoU of 0.75. **Which of the three is it then?**

# %%
guess_c = "no"  # "yes" or "no"
guess_five = 0.7  # 0.3, 0.7 or 1.0
guess_many = 0.7  # 0.3, 0.7 or 1.0

# %% [markdown]
# ## The smallest example, by hand
#
# Three boxes in a row, 4 wide and 2 high, each moved by one more pixel: a with a score of 0.9, b with 0.8, c with 0.7.
# a and b share 3 x 2 = **6** square pixels of 8 + 8 - 6 = **10**: IoU **0.6**. So do b and c. a and c share **4** of
# **12**: IoU **0.33**. With a threshold of 0.5, a stays and b goes. c is compared with a alone, for b is gone: it
# stays.

# %%
three = torch.tensor([[0.0, 0.0, 4.0, 2.0], [1.0, 0.0, 5.0, 2.0], [2.0, 0.0, 6.0, 2.0]])
(panel,) = axes_row("a 0.9 (solid), b 0.8 (dashed, goes), c 0.7 (dotted)", height=2.4)
for box, colour, line in zip(three, PALETTE[1:4], ("-", "--", ":"), strict=True):
    draw_boxes(panel, box[None], colour, linewidth=4, linestyle=line)
_ = panel.set(xlim=(-0.3, 6.3), ylim=(2.3, -0.3), xticks=range(7), yticks=range(3), aspect="equal", xlabel="x, pixels")
print(f"You guessed {guess_c!r}; it is 'yes': a suppressed box suppresses nobody.")

# %% [markdown]
# ## Exercise 1: `my_nms`
#
# Return *indices* into the boxes as they came, best first. Two details decide what happens to duplicates. "Too much"
# is *more than* the threshold; an IoU equal to it does no harm. Boxes of equal score are taken in their order: sort
# with `stable=True`, or the result may depend on the machine.
#
# <details><summary>Hint 1: what to compute once</summary>
#
# The order, `scores.argsort(descending=True, stable=True)`, and the table of all overlaps, `box_iou(boxes, boxes)`.
#
# </details>
#
# <details><summary>Hint 2: the loop</summary>
#
# Go through the order with a list of the kept ones. For each box read its overlaps with exactly these,
# `iou[i, kept]`; an empty list gives an empty tensor, and `.any()` of that is False.
#
# </details>

# %% tags=["exercise"]
def my_nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Greedy NMS: (R, 4) xyxy in pixels, (R,) scores -> (D,) int64 indices of the boxes that stay, best first.

    [0, 0, 4, 2], [1, 0, 5, 2] and [2, 0, 6, 2] with 0.9, 0.8, 0.7 at a threshold of 0.5: [0, 2].
    """
    ### BEGIN SOLUTION
    iou = box_iou(boxes, boxes)  # (R, R)
    kept = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        if not (iou[i, kept] > iou_threshold).any():
            kept.append(i)
    return torch.tensor(kept, dtype=torch.int64)
    ### END SOLUTION


# %%
check_nms(my_nms)

# %% [markdown]
# The package's function is `nms`, used from here on. It gives the same indices, and has the loop four times: to be
# read, vectorised, compiled for the CPU, and as a GPU kernel. All four keep the same boxes to the last one. The
# picture shows what it did to the 60 boxes. On the left the four best that stay have a colour each, and so have the
# boxes that they suppressed; on the right is what is left.

# %%
kept = nms(boxes, score, 0.5)
owner = kept[box_iou(boxes, boxes[kept]).gt(0.5).int().argmax(dim=1)]  # the best kept box that a box overlaps
before, after = axes_row("60 boxes, coloured by the one that stays", f"the {len(kept)} that stay at 0.5", height=3.4)
for panel in (before, after):
    show_image(panel, pale)
for place, index in enumerate(kept[:4]):
    draw_boxes(before, boxes[owner == index], PALETTE[place], linewidth=0.8)
    draw_boxes(after, boxes[index : index + 1], PALETTE[place], linewidth=3)
draw_boxes(after, boxes[kept[4:]], "#444444", linewidth=1.2)
print("stay:", kept.tolist())

# %% [markdown]
# The threshold says how much two boxes may agree before they count as one. Low, and each object keeps one box; but
# two *objects* that overlap keep one box, too. High, and near-duplicates stay. The proposals use 0.7: a later stage
# will choose, so that duplicates cost time only, while a lost object is lost. The final boxes use 0.5 (notebook 10).

# %%
thresholds = (0.3, 0.5, 0.7, 0.9)
chosen = [nms(boxes, score, threshold) for threshold in thresholds]
titles = [f"threshold {threshold}: {len(k)} stay" for threshold, k in zip(thresholds, chosen, strict=True)]
for panel, k in zip(axes_row(*titles, height=2.2), chosen, strict=True):
    show_image(panel, pale)
    draw_boxes(panel, boxes[k], PALETTE[3], linewidth=1)

# %% [markdown]
# ## Groups, and a trick that overflows
#
# Often boxes compete within a group only: those of one class, or of one feature map. `batched_nms` takes a group for
# each box. The usual trick is to move each group far away, by group times the largest coordinate, and to call `nms`
# once. Look at what it does to two boxes of class 79, of a 1,333-pixel image, in half precision.

# %%
pair = torch.tensor([[1100.0, 600.0, 1140.0, 640.0], [1102.0, 600.0, 1142.0, 640.0]])
group = torch.tensor([79, 79])
print(f"IoU {box_iou(pair, pair)[0, 1]:.3f}; batched_nms keeps {batched_nms(pair, torch.ones(2), group, 0.5).tolist()}")
far = pair.half() + group.half()[:, None] * pair.half().max()
print("moved x1:", far[:, 0].tolist(), f"IoU {float(box_iou(far, far)[0, 1]):.3f}")

# %% [markdown]
# 79 x 1,142 is 90,218, and half precision ends at 65,504. The boxes lie at infinity, their overlap is lost, and both
# would stay. In single precision the trick does not overflow, but a coordinate of 90,000 is stored in steps of 1/128
# pixel, which is enough to turn an IoU near the threshold. So the package compares the groups themselves and leaves
# coordinates alone.
#
# ## From answers to proposals, by hand
#
# NMS needs boxes to work on. Six steps lead from the RPN's answers to them: of each map take the best, move them,
# **clip** them to the image, drop what is **empty**, NMS, and of what is left take the best.
#
# Clipping first, in our image of **104** rows. A box from y = 90 to 130 ends at **104** afterwards: height **14**. One
# from **110** to 140 lies below the image, in the padding; it is clipped to 104 .. 104, height **0**, and is dropped.
# Had we clipped to the batch, 128 rows, it would have stayed with a height of **18**: a proposal that shows nothing.

# %%
low = torch.tensor([[20.0, 90.0, 60.0, 130.0], [20.0, 110.0, 60.0, 140.0]])
for name, size in (("image", (104, 128)), ("batch", (128, 128))):
    clipped = clip_boxes_to_image(low, size)
    heights = (clipped[:, 3] - clipped[:, 1]).tolist()
    print(f"clipped to the {name} {size}: heights {heights}, left: {large_enough(clipped, 0.0).tolist()}")

# %% [markdown]
# ## Exercise 2: `my_propose`
#
# For each image of a batch. `before` is a limit *for each map*: P2 has 3,072 of 4,080 anchors, and a limit over all
# maps would be a contest of maps. NMS runs for each map by itself, too: P2 and P4 look for objects of different sizes.
# `after` is a limit for one image, over its maps. "Empty" is a side that does not *exceed* `min_size`, after clipping.
# You may use all that this notebook has imported.
#
# <details><summary>Hint 1: one map of one image</summary>
#
# `score, top = logit[image].topk(min(before, len(anchor)))`: a small map has fewer anchors than the limit. Then
# `decode_boxes` on the rows `top` of deltas and anchors, `clip_boxes_to_image` with *this* image's size, and
# `large_enough`, which gives indices.
#
# </details>
#
# <details><summary>Hint 2: all maps of one image</summary>
#
# Collect boxes, scores and the map's number in three lists, `torch.cat` each, and let `batched_nms` keep the maps
# apart. It returns indices best first, over all groups, so that the last limit is a slice.
#
# </details>

# %% tags=["exercise"]
def my_propose(logits, deltas, anchors, image_sizes, before, after, nms_iou=0.7, min_size=0.0):
    """Proposals of N images: for each image (R_i, 4) xyxy in pixels, best first, R_i at most after.

    Of each map: logits (N, A_l), deltas (N, A_l, 4), anchors (A_l, 4) xyxy; before is how many of a map go into NMS.
    image_sizes: N pairs (H_i, W_i), without padding. In 104 x 128, [20, 90, 60, 130] becomes [20, 90, 60, 104].
    """
    ### BEGIN SOLUTION
    proposals = []
    for image, size in enumerate(image_sizes):
        boxes, scores, levels = [], [], []
        for level, (logit, delta, anchor) in enumerate(zip(logits, deltas, anchors, strict=True)):
            score, top = logit[image].topk(min(before, len(anchor)))
            box = clip_boxes_to_image(decode_boxes(delta[image, top], anchor[top]), size)
            keep = large_enough(box, min_size)
            boxes.append(box[keep])
            scores.append(score[keep])
            levels.append(torch.full_like(keep, level))
        box = torch.cat(boxes)
        keep = batched_nms(box, torch.cat(scores), torch.cat(levels), nms_iou)[:after]
        proposals.append(box[keep])
    return proposals
    ### END SOLUTION


# %%
check_propose(my_propose)

# %% [markdown]
# The package's version is `propose`, in `rpn.py`, used from here on; `rank_proposals` gives the scores, too. It takes
# the limits from the configuration, which has one pair for training and one for testing, works in single precision when
# the network runs in half, and passes no gradient: the RoI layers treat proposals as given. Here are its steps on our
# image, with the padding in grey.

# %%
from mrcnn_scratch.rpn import propose, rank_proposals

config = model.config
top = sum(min(config.rpn_pre_nms_test, len(a)) for a in anchors)
no_limit = config.with_fields(rpn_post_nms_test=top)
all_kept = propose(logits, deltas, anchors, batch.sizes, no_limit, training=False)[0]
proposals = propose(logits, deltas, anchors, batch.sizes, config, training=False)[0]
counts = [sum(len(a) for a in anchors), top, len(all_kept), len(proposals)]
print("anchors, best of each map, after NMS, proposals:", counts)

# %%
steps = {"best 30, moved": moved[:30], "clipped": boxes[:30], "best 30 after NMS": proposals[:30]}
for panel, drawn in zip(axes_row(*steps, height=3), steps.values(), strict=True):
    show_image(panel, pale)
    panel.add_patch(Rectangle((0, 104), 128, 24, facecolor="0.75"))
    draw_boxes(panel, drawn, PALETTE[3], linewidth=1)
    panel.set(xlim=(-12, 140), ylim=(134, -10))

# %% [markdown]
# On the left several boxes reach into the padding; in the middle all end at row 104. On the right the same number of
# boxes shows far more of the image: what duplicates had taken is given to weaker candidates.
#
# ## Is it worth it?
#
# Now your second and third guess. We take 60 images, let 5, 20 or 200 proposals an image go on, and count for each
# threshold the share of objects that some proposal finds. That is **recall**; how many of the proposals are *wrong*
# does not matter yet.

# %%
pictures, truths = zip(*((data[i][0], data[i][1]["boxes"]) for i in range(60)), strict=True)
many = model.prepare(list(pictures))
maps = model.extract(many.images)
answers = (*model.rpn(maps), model.anchors(maps), many.sizes)


def recall(found, limit, iou):
    overlaps = [box_iou(g, f[:limit]).amax(dim=1) for g, f in zip(truths, found, strict=True) if len(g) and len(f)]
    return float((torch.cat(overlaps) >= iou).sum()) / sum(len(g) for g in truths)


# %%
sweep = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
found = {t: propose(*answers, no_limit.with_fields(rpn_nms=t), training=False) for t in sweep}
for panel, iou in zip(axes_row("found at IoU 0.5", "found at IoU 0.75", height=3), (0.5, 0.75), strict=True):
    for limit, colour, marker in ((5, PALETTE[1], "o"), (20, PALETTE[0], "s"), (200, PALETTE[3], "^")):
        line = [recall(found[t], limit, iou) for t in sweep]
        panel.plot(sweep, line, color=colour, marker=marker, label=f"{limit} proposals an image")
    panel.set(xlabel="NMS threshold (1.0: no NMS)", ylabel="recall", ylim=(0.5, 1.02))
_ = panel.legend(loc="upper left")

# %%
three_thresholds = (0.3, 0.7, 1.0)
for guess, limit, iou in ((guess_five, 5, 0.5), (guess_many, 200, 0.75)):
    line = {t: recall(found[t], limit, iou) for t in three_thresholds}
    print(f"{limit} proposals, IoU {iou}:", ", ".join(f"recall {r:.2f} at {t}" for t, r in line.items()))
    print(f"  You guessed {guess}; it is {max(line, key=line.get)}.")

# %% [markdown]
# With five proposals suppression decides: without it a quarter of the objects is crowded out by duplicates of the
# others. With 200, and a strict test, every suppressed box is a chance lost, for the better *scored* of two boxes need
# not be the better *placed* one. So NMS finds nothing. It makes a short list out of a long one, and the shorter the
# list has to be, the lower its threshold. The usual 0.7 lies between.

# %% [markdown]
# ## Break it
#
# Detectron took the last limit over the *batch*: in training, the best 2,000 of all images of a GPU together. A GPU
# had two. maskrcnn-benchmark kept the rule; with eight images on a GPU its accuracy fell, until the limit was raised to
# 8,000 (its issue 672). Here the limit is 20. Predict: what happens to recall when it stays, and the batch grows from 1
# to 12 images? And when the limit grows with the batch?

# %%
ranked = rank_proposals(*answers, no_limit, training=False)


def limit_over_batches(size, limit):  # the bug
    found = []
    for start in range(0, len(ranked), size):
        some = ranked[start : start + size]
        last = torch.cat([scores for _, scores in some]).topk(limit).values[-1]
        found += [boxes[scores >= last] for boxes, scores in some]
    return found


for size in (1, 2, 4, 6, 12):
    fixed, grown = (recall(limit_over_batches(size, limit), limit, 0.5) for limit in (20, 20 * size))
    print(f"batches of {size:2d}: recall {fixed:.2f} with the best 20 of each, {grown:.2f} with the best {20 * size}")

# %% [markdown]
# The images have not changed, their neighbours have. The picture shows image 4, whose three objects have black boxes:
# what it proposes alone, and what is left of that in batches of 4 and of 12. The objects next door were clearer, and
# took the places.

# %%
shown = [limit_over_batches(size, 20)[4] for size in (1, 4, 12)]
titles = [f"in a batch of {size}: {len(drawn)} left" for size, drawn in zip((1, 4, 12), shown, strict=True)]
for panel, drawn in zip(axes_row(*titles, height=3), shown, strict=True):
    show_image(panel, pictures[4] * 0.45 + 0.55)
    draw_boxes(panel, truths[4], "black", linewidth=2.5)
    draw_boxes(panel, drawn, PALETTE[1], linewidth=1.2)

# %% [markdown]
# No error, and with one image a batch no difference. When the limit grows with the batch, recall is as good as
# before, for clear images have places to spare. But then an image's proposals depend on what it was batched with:
# training, in batches, and testing, one image at a time, show the box head different lists. A model must give the same
# answer for an image in any company. Our check therefore proposes for each image alone, too, and compares.

# %% [markdown]
# ## Quiz
#
# **1.** All boxes of an image have the same score. What does NMS keep?
#
# <details><summary>Answer</summary>
#
# The first in the list, then each later one that overlaps none of the kept too much. The order of the list decides,
# which is why a stable sort is part of the definition.
#
# </details>
#
# **2.** You run NMS once more on what it has kept, with the same threshold. What changes?
#
# <details><summary>Answer</summary>
#
# Nothing: no two of the kept boxes overlap by more than the threshold. Our check tries exactly that.
#
# </details>
#
# **3.** Two persons hug, and their boxes have an IoU of 0.75. Can both be proposed? Can both be detected?
#
# <details><summary>Answer</summary>
#
# Two boxes of one map at 0.7: the worse one goes, unless the proposals are off by enough to overlap less. At the end,
# with 0.5 within a class, one of two well-placed boxes always goes. That is a limit of NMS itself.
#
# </details>
#
# **4.** Why is the limit `before` applied for each map and not over all of them?
#
# <details><summary>Answer</summary>
#
# The fine map has three quarters of the anchors. Where small objects are many, its scores would fill the list, and a
# large object would have no candidate left.
#
# </details>
#
# **5.** Someone drops empty boxes *before* clipping. Which boxes get through that should not?
#
# <details><summary>Answer</summary>
#
# Those that lie outside the image, in the padding. They have an area until clipping takes it, and a RoI without an
# area is then pooled: features of nothing, and a division by 0 where deltas are encoded.
#
# </details>

# %% [markdown]
# ## What you have now
#
# | you wrote | the package has | file | used again in |
# |---|---|---|---|
# | `my_nms` | `nms`, `batched_nms` | [`nms.py`](../mrcnn_scratch/nms.py) | 10 detections, class by class |
# | `my_propose` | `propose`, `rank_proposals` | [`rpn.py`](../mrcnn_scratch/rpn.py) | 06 recall, 10 and 13 RoIs |
#
# Next: where do the maps come from that all these anchors lie on? Notebook 05 builds them.
