# %% [markdown]
# # 00 · A detector in one picture
#
# **Goal.** Take one image through every stage of Mask R-CNN ([He et al., 2017](https://arxiv.org/abs/1703.06870)),
# name each stage, and know how many boxes go in and come out. You build nothing yet: a tiny detector ships with the
# package, and you call its parts one by one. From notebook 01 on you write those parts yourself.
#
# **Minutes.** About 1 of computing on two CPU cores, about 25 of reading. **Seed.** 0, for the drawn images; a
# detector at work draws no random number. Nothing is downloaded.

# %% [markdown]
# ## The detector and an image
#
# The checkpoint is a Mask R-CNN of 1.4 million parameters, trained for 3,000 steps on images that the package draws:
# persons, stars and rings, 128 x 128 pixels. It knows nothing of the real world, but it has every part that the
# paper's large one has. Its `config` holds each number that was chosen, with its unit and its source. We only look,
# so gradients are off.

# %%
import torch

from mrcnn_scratch import ShapesDataset, load_model
from mrcnn_scratch.predict import shipped_checkpoint

torch.set_grad_enabled(False)
model, metadata = load_model(shipped_checkpoint())
config, class_names, skeleton = model.config, metadata["class_names"], metadata["skeleton"]
print(sum(p.numel() for p in model.parameters()), "parameters; classes:", ", ".join(class_names))

# %% [markdown]
# Two helpers for the pictures: `axes_row`, axes side by side, and `draw_boxes` on one of them. (Figures are stored as
# JPEG, which keeps the file small.) A box is always `x1, y1, x2, y2` in pixels: left, top, right, bottom. Coordinates
# are continuous: pixel i covers the interval from i to i + 1, so that the left edge of the image is x = 0 and the
# right edge is x = 128.

# %%
from matplotlib_inline.backend_inline import set_matplotlib_formats

from mrcnn_scratch.visualize.panels import axes_row, draw_boxes
from mrcnn_scratch.visualize.style import PALETTE, label_colour, show_array, show_image

set_matplotlib_formats("jpeg", pil_kwargs={"quality": 65, "optimize": True, "progressive": True})

# %% [markdown]
# Image 95 of the validation split, which the checkpoint never saw in training: two persons, a star and a ring. The
# star and the lower person hide parts of each other, and the boxes of three objects overlap. An image is a tensor of
# shape (3, H, W), red, green, blue, in 0..1. Its **target** is what a person who labels images would write down; the
# detector never sees it.

# %%
data = ShapesDataset("demo", split="val", seed=0)
image, target = data[95]
print("image ", tuple(image.shape), image.dtype)
print("labels", [class_names[label] for label in target["labels"]])
(panel,) = axes_row("the image: 128 x 128 pixels", height=3)
show_image(panel, image)
pale = image * 0.45 + 0.55  # for the pictures with boxes

# %% [markdown]
# ## Predict
#
# Write your two guesses into the next cell before you read on; they are compared later.
#
# 1. **How many anchors** (boxes of fixed shape, laid over the whole image before the detector has looked at it) does
#    one 128 x 128 image have: 100, 1,000 or 4,000?
# 2. On the way to four objects boxes are thrown away in five places. One is a plain limit, to 200 proposals; leave it
#    out. **Which of the other four throws away the largest share of what it is given?** "top" keeps the 300 most
#    promising boxes of each feature map. "proposal nms" drops near-duplicates among these. "score" drops those for
#    which no class is likely. "class nms" drops near-duplicates of the same class at the end.

# %%
guess_anchors = 1000  # 100, 1000 or 4000
guess_place = "proposal nms"  # "top", "proposal nms", "score" or "class nms"

# %% [markdown]
# ## The smallest example, by hand
#
# A detector moves boxes. Here is one move along one axis, in six numbers. The anchor reaches from **8** to **24**:
# centre 16, width 16. The network answers with two **deltas**, **0.25** and **0.405**. The first shifts the centre by
# that share of the width: 16 + 0.25 x 16 = 20. The second is the logarithm of the growth: 16 x exp(0.405) = 24. So
# the new box reaches from 20 - 12 = **8** to 20 + 12 = **32**.

# %%
from mrcnn_scratch import decode_boxes

anchor = torch.tensor([[8.0, 40.0, 24.0, 56.0]])
delta = torch.tensor([[0.25, 0.0, 0.405, 0.0]])  # across, down, log of the width, log of the height
print([round(x, 1) for x in decode_boxes(delta, anchor)[0].tolist()])

# %% [markdown]
# The picture shows both boxes on the image. The left edge stayed where it was, the right one moved by 8 pixels. Why
# shares and logarithms, not pixels? Because then a small and a large box need the same numbers for the same relative
# mistake, and one network can learn them for all sizes. This move is made twice: from anchor to proposal, and from
# proposal to detection. You will write it in notebook 01.

# %%
(panel,) = axes_row("dashed: the anchor, solid: after its deltas", height=3)
show_image(panel, pale)
draw_boxes(panel, decode_boxes(delta, anchor), PALETTE[1], linewidth=3)
draw_boxes(panel, anchor, PALETTE[3], linestyle="--", linewidth=1.5)
_ = panel.set(xlim=(0, 64), ylim=(72, 24), xticks=[8, 24, 32, 64], xlabel="x, pixels")

# %% [markdown]
# ## Stage 1: a batch
#
# The network wants one tensor, but images come in any size. `batch_images` subtracts the mean colour, divides by its
# spread, resizes (not here: `min_size` is 0) and pads to a multiple of 32 pixels, the stride of the coarsest feature
# map. It remembers the sizes before and after, because the answers must return to the image's own pixels.

# %%
from mrcnn_scratch.preprocess import batch_images

batch = batch_images([image], config.min_size, config.max_size, config.mean, config.std)
print("batch", tuple(batch.images.shape), "sizes", batch.sizes, "original sizes", batch.original_sizes)
print(f"values {image.min():.1f} .. {image.max():.1f} become {batch.images.min():.1f} .. {batch.images.max():.1f}")

# %% [markdown]
# ## Stage 2: features
#
# The **backbone**, a small ResNet, turns pixels into four maps, each half as fine as the one before; the **feature
# pyramid** (FPN) mixes what the coarse maps know back into the fine ones. The result is P2 to P5: 48 numbers in each
# cell, and a cell stands for 4, 8, 16 or 32 pixels, the **stride**. Bright cells have strong features, which does not
# yet mean an object. Fine maps are for small objects, coarse ones for large objects.

# %%
features = model.extract(batch.images)
names = [f"P{level}, stride {stride}" for level, stride in enumerate(config.strides, start=2)]
for panel, name, feature in zip(axes_row(*names), names, features, strict=True):
    print(name, tuple(feature.shape))
    show_array(panel, feature[0].norm(dim=0), cmap="magma", interpolation="nearest")

# %% [markdown]
# ## Stage 3: anchors
#
# Around the centre of every cell of every map lie three boxes of one area: wide, square and tall. P2's are 16 pixels
# large, P5's 128. They are the same for every image: the detector does not search, it lays out candidates and judges
# each one. The picture shows the three anchors of one cell for each map. Those of P5 reach over the border, which is
# fine.

# %%
anchors = model.anchors(features)
for panel, name, level, feature in zip(axes_row(*names), names, anchors, features, strict=True):
    rows, columns = feature.shape[-2:]
    print(f"{name}: {rows} x {columns} cells x {len(level) // (rows * columns)} shapes = {len(level)} anchors")
    show_image(panel, pale)
    middle = 3 * (rows // 2 * columns + columns // 2)  # of the cell in the middle, its first anchor
    draw_boxes(panel, level[middle : middle + 3], PALETTE[3], linewidth=2)

# %%
count = sum(len(level) for level in anchors)
assert count == 3 * (32**2 + 16**2 + 8**2 + 4**2)
print(f"You guessed {guess_anchors}; there are {count}, and three quarters of them lie on P2.")

# %% [markdown]
# ## Stage 4: the region proposal network
#
# The RPN is one 3 x 3 convolution and two 1 x 1 ones, shared by all maps. For each anchor it says two things:
# **objectness**, one number, is there any object here, and four deltas, where it is exactly. It knows no classes. The
# pictures show, for each cell, the most probable of its three anchors. P3 and P4, with anchors of 32 and 64 pixels,
# find these objects; P2 and P5 say no everywhere.

# %%
objectness, rpn_deltas = model.rpn(features)
for panel, name, feature, logits in zip(axes_row(*names), names, features, objectness, strict=True):
    print(f"{name}: {int((logits > 0).sum())} of {logits.shape[1]} anchors are more likely object than not")
    best = logits[0].view(*feature.shape[-2:], 3).amax(dim=2).sigmoid()
    show_array(panel, best, cmap="magma", vmin=0, vmax=1, interpolation="nearest")

# %% [markdown]
# ## Stage 5: proposals
#
# `propose` takes the 300 best anchors of each map (fewer where a map has fewer), moves them by their deltas, clips
# them to the image, and applies **non-maximum suppression**: of two boxes of a map whose IoU, shared area over joint
# area, exceeds 0.7, the less probable one goes. The best 200 are the **proposals**. Most show background: the RPN had
# better offer too much than miss an object.

# %%
from mrcnn_scratch.rpn import propose

proposals = propose(objectness, rpn_deltas, anchors, batch.sizes, config, training=False)
top = sum(min(config.rpn_pre_nms_test, len(level)) for level in anchors)
unlimited = config.with_fields(rpn_post_nms_test=top)  # the same, but all that NMS leaves
after_nms = len(propose(objectness, rpn_deltas, anchors, batch.sizes, unlimited, training=False)[0])
print(f"{count} anchors -> {top} best -> {after_nms} after NMS -> {len(proposals[0])} proposals")

# %%
for panel, number in zip(axes_row("the best 10", "the best 50", "all 200", height=2.6), (10, 50, 200), strict=True):
    show_image(panel, pale)
    draw_boxes(panel, proposals[0][:number], PALETTE[3], linewidth=1)

# %% [markdown]
# ## Stage 6: RoIAlign
#
# From here on a proposal is a **region of interest**, RoI. The head has fixed layers, so it needs an input of fixed
# size: `pool` lays 7 x 7 bins over each RoI and takes from the features the mean of four bilinear samples a bin.
# Nothing is rounded to whole cells. That is **RoIAlign**, the paper's contribution to this stage: small errors of
# place do not matter for a class, but they do for a mask.

# %%
pooled = model.pool(features, proposals, config.box_pool)
print("pooled", tuple(pooled.shape))
where, what, some, other = axes_row("the best proposal", "strength of its features", "channel 0", "channel 1")
show_image(where, image)
draw_boxes(where, proposals[0][:1], "white", linewidth=2)
for panel, values in ((what, pooled[0].norm(dim=0)), (some, pooled[0, 0]), (other, pooled[0, 1])):
    show_array(panel, values, cmap="magma", interpolation="nearest")

# %% [markdown]
# ## Stage 7: the box head
#
# Two fully connected layers read the 48 x 7 x 7 numbers of each RoI. Then, for each RoI, come four **logits**, one
# for each class with background as class 0, whose softmax is the class's probability, and for every class four deltas
# of its own. The picture gives each RoI the colour of its most likely class. 158 of 200 RoIs are background: this is
# where the RPN's generosity is paid back.

# %%
logits, deltas = model.box_predictor(model.box_trunk(pooled))
print("logits", tuple(logits.shape), "deltas", tuple(deltas.shape))
winner = logits.argmax(dim=1)
titles = [f"{name}: {int((winner == label).sum())} RoIs" for label, name in enumerate(class_names)]
for label, panel in enumerate(axes_row(*titles)):
    show_image(panel, pale)
    draw_boxes(panel, proposals[0][winner == label], label_colour(label) if label else "#555555", linewidth=1)

# %% [markdown]
# ## Stage 8: detections
#
# `detect_boxes` moves each RoI by the deltas of each class: 200 RoIs and 3 classes make 600 votes. Votes with a
# probability of 0.05 or less go, then NMS at IoU 0.5 for each class by itself, so that a star never suppresses the
# person behind it. Six boxes are left. Two of them have scores of about 0.1 and below; evaluation counts them,
# pictures leave them out.

# %%
from mrcnn_scratch.box_head import detect_boxes

votes = detect_boxes(logits, deltas, proposals[0], batch.sizes[0], config.with_fields(box_nms=1.0))  # NMS drops none
found = detect_boxes(logits, deltas, proposals[0], batch.sizes[0], config)
print(f"{len(votes['boxes'])} votes above {config.score_threshold}, {len(found['boxes'])} after NMS:")
for label, score in zip(found["labels"], found["scores"], strict=True):
    print(f"  {class_names[label]:6s} {score:.2f}")

# %%
sure = {key: value[found["scores"] >= 0.5] for key, value in found.items()}
shown = {"votes": votes, "after NMS": found, "with score >= 0.5": sure}
titles = [f"{len(detections['boxes'])} {text}" for text, detections in shown.items()]
for panel, detections in zip(axes_row(*titles, height=2.6), shown.values(), strict=True):
    show_image(panel, pale)
    for label in (1, 2, 3):
        draw_boxes(panel, detections["boxes"][detections["labels"] == label], label_colour(label), linewidth=1.5)

# %% [markdown]
# ## Where did the boxes go?
#
# Now your second guess. The count falls from 4,080 to 6, but no stage does it alone. The largest *number* goes at the
# first step, which costs nothing but a sort. The largest *share* goes where many RoIs have found the same object:
# each of the four objects got about 20 votes. The step from NMS to 200 proposals is a plain limit and is not in the
# contest.

# %%
all_votes = 3 * len(proposals[0])
places = {"top": (count, top), "proposal nms": (top, after_nms)}
places |= {"score": (all_votes, len(votes["boxes"])), "class nms": (len(votes["boxes"]), len(found["boxes"]))}
for name, (given, kept) in places.items():
    print(f"{name:13s} {given:4d} -> {kept:3d}: {1 - kept / given:.0%} gone")
largest = min(places, key=lambda name: places[name][1] / places[name][0])
print(f"You guessed {guess_place!r}; it is {largest!r}.")

# %%
steps = {"anchors": count, "best of each map": top, "after proposal NMS": after_nms, "proposals": len(proposals[0])}
steps |= {"votes of 3 classes": all_votes, "score > 0.05": len(votes["boxes"]), "after class NMS": len(found["boxes"])}
(panel,) = axes_row("boxes that are left after each step", height=2.8)
panel.barh(list(steps), list(steps.values()), color=PALETTE[3])
panel.bar_label(panel.containers[0], padding=3, fontsize=9)
panel.set(xscale="log", xlim=(1, 12000), xlabel="boxes (logarithmic)")
panel.invert_yaxis()

# %% [markdown]
# ## Stage 9: masks
#
# The mask branch pools once more, 14 x 14 bins, now from the six *refined* boxes, not from the 200 proposals. A few
# convolutions give one 28 x 28 mask **for every class**. The box head has already named the class, so only that
# class's mask is used: masks do not compete, which is worth 5.5 points of AP in the paper (Table 2b). The
# background's was never trained. `paste_masks` puts it back into its box. Here is a person: the four masks, then the
# pasted one.

# %%
from mrcnn_scratch.mask_head import paste_masks, select_masks

mask_logits = model.mask_logits(features, [found["boxes"]])
print("mask logits", tuple(mask_logits.shape))
masks = paste_masks(select_masks(mask_logits, found["labels"]), found["boxes"], batch.original_sizes[0])[:, None]
print("pasted masks", tuple(masks.shape))
person = int((found["labels"] == 1).nonzero()[1])  # the second person of the list

# %%
*small, pasted = axes_row(*(f"{name}'s mask" for name in class_names), "the person's, pasted")
for panel, mask in zip(small, mask_logits[person].sigmoid(), strict=True):
    show_array(panel, mask, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
show_image(pasted, image * (0.3 + 0.7 * (masks[person] >= 0.5)))
draw_boxes(pasted, found["boxes"][person : person + 1], label_colour(1), linewidth=1.5)

# %% [markdown]
# ## Stage 10: keypoints
#
# The keypoint branch (section 5) gives each box 17 heatmaps of 56 x 56 cells, one for each joint. The softmax runs
# over the *cells* of a heatmap: it answers "where is the left wrist", never "is there one". `decode_keypoints`
# resizes each heatmap to the box and takes its highest point. The branch also answers for stars and rings; those
# answers mean nothing, and pictures leave them out.

# %%
from mrcnn_scratch.keypoint_head import decode_keypoints

heatmaps = model.keypoint_logits(features, [found["boxes"]])
keypoints, keypoints_scores = decode_keypoints(heatmaps, found["boxes"])
print("heatmaps", tuple(heatmaps.shape), "keypoints", tuple(keypoints.shape))

# %%
joints = [metadata["keypoint_names"].index(name) for name in ("nose", "left_wrist", "right_ankle")]
*maps, points = axes_row("nose", "left wrist", "right ankle", "all 17 points")
for panel, joint in zip(maps, joints, strict=True):
    probability = heatmaps[person, joint].flatten().softmax(dim=0).view(heatmaps.shape[-2:])
    show_array(panel, probability, cmap="magma", interpolation="nearest")
show_image(points, pale)
draw_boxes(points, found["boxes"][person : person + 1], label_colour(1), linewidth=1.5)
_ = points.plot(*keypoints[person, :, :2].T, "o", color=PALETTE[3], markersize=4)

# %% [markdown]
# ## The poster
#
# All of it in one figure, drawn by the package from what the model really computes for this image: no panel is a
# sketch. Read it once more in order, and say for each panel which call of this notebook it belongs to, and which
# shape came out. When you can do that with the text covered, you know the map of this course.

# %%
from mrcnn_scratch.visualize import stage_poster

poster = stage_poster(model, image, class_names, skeleton)
poster.set_dpi(80)
poster

# %% [markdown]
# ## The one-line version
#
# From outside all of this is one call: a list of images in, a list of dictionaries out. We assert that it gives what
# our cells computed, key by key. Nothing was hidden in the call: read `MaskRCNN.forward` and `MaskRCNN.detect` in
# [`model.py`](../mrcnn_scratch/model.py) now, and you will find the ten stages in the same order.

# %%
mine = found | {"masks": masks, "keypoints": keypoints, "keypoints_scores": keypoints_scores}
detection = model([image])[0]
assert detection.keys() == mine.keys()
for key, value in detection.items():
    torch.testing.assert_close(mine[key], value)
    print(f"{key:17s} {tuple(value.shape)}")

# %% [markdown]
# And this is how good it is. On the left the target, on the right what the detector found. The classes and boxes are
# right; the masks lose thin parts, such as the tips of the star and the lower person's arms. Joints that hide behind
# something (hollow dots on the left) have to be guessed: find the one that is wrong by more than 40 pixels. How such
# mistakes become one number, AP, is notebook 14.

# %%
from mrcnn_scratch.visualize import draw_instances

truth, result = axes_row("the target", "model([image]), score >= 0.5", height=3.8)
draw_instances(truth, image, target, class_names, skeleton)
draw_instances(result, image, detection, class_names, skeleton)

# %% [markdown]
# ## Break it
#
# A classic bug of hand-written detectors: someone's boxes are `y1, x1, y2, x2`. We plant it in one place, the RoIs
# that the box head pools from; everything else stays right. Before you run it: will there be an error? Fewer boxes,
# more boxes? And where?

# %%
swapped = [rois[:, [1, 0, 3, 2]] for rois in proposals]  # the bug
bad_logits, bad_deltas = model.box_predictor(model.box_trunk(model.pool(features, swapped, config.box_pool)))
bad = detect_boxes(bad_logits, bad_deltas, proposals[0], batch.sizes[0], config)
print(f"sure detections: {int((bad['scores'] >= 0.5).sum())}, best score {bad['scores'].max():.2f}")
healthy, broken = axes_row("healthy", "x and y of the RoIs swapped", height=3.8)
draw_instances(healthy, pale, found, class_names)
draw_instances(broken, pale, bad, class_names)

# %% [markdown]
# No error, no warning, and scores near 1.00: each RoI is judged by the features of its mirror image across the
# diagonal from top left to bottom right, and the confident nonsense on the right is what that mirror shows. On an
# image that is not square some RoIs would at least fall outside. That is why the checks of this course use images
# that are not square.
#
# Now break it yourself: run `model([image.flip(0)])`, which swaps red and blue, and `model([image * 255])`.
#
# <details><summary>What happens</summary>
#
# Swapping the colours hardly does harm *here*: the drawn objects have random colours, so the detector learned shapes.
# A detector trained on photos loses accuracy, silently. Values of 0..255 are refused with a `ValueError` that says
# what to do. A mistake that can be recognised should never be left to the picture.
#
# </details>

# %% [markdown]
# ## Quiz
#
# **1.** How many anchors has an image of 256 x 128 pixels (twice as wide)?
#
# <details><summary>Answer</summary>
#
# 8,160. Every map has twice the cells, every cell three anchors.
#
# </details>
#
# **2.** NMS runs twice. Which boxes compete the first time, and which the second?
#
# <details><summary>Answer</summary>
#
# First the boxes of one feature map, IoU 0.7, without a class. Then the boxes of one class, IoU 0.5, from all maps.
#
# </details>
#
# **3.** The RPN gives its best proposal an objectness of 0.99. How sure is the detector that it is a person?
#
# <details><summary>Answer</summary>
#
# Not at all yet. Objectness says "some object"; the class comes from the box head, which pools features for the
# proposal and may still answer "background".
#
# </details>
#
# **4.** Masks are computed for the 6 detections, not for the 200 proposals. Give two reasons.
#
# <details><summary>Answer</summary>
#
# It is 33 times less work, and the refined boxes fit better, so the masks do too (section 3.1, inference).
#
# </details>
#
# **5.** A star lies in front of a person, and both boxes have an IoU of 0.8. Does the final NMS drop one?
#
# <details><summary>Answer</summary>
#
# No, it runs for each class by itself. Two *persons* with that IoU would lose one: a known limit of NMS.
#
# </details>

# %% [markdown]
# ## What you have now
#
# The names, the shapes and the counts of all ten stages, and a poster to come back to. Each stage is a file that you
# can read, and a notebook in which you will build it:
#
# | stage | call | file | built in |
# |---|---|---|---|
# | the move by deltas | `decode_boxes` | [`boxes.py`](../mrcnn_scratch/boxes.py) | 01 |
# | 1 batch | `batch_images` | [`preprocess.py`](../mrcnn_scratch/preprocess.py) | 13 |
# | 2 features | `model.extract` | [`resnet.py`](../mrcnn_scratch/resnet.py), [`fpn.py`](../mrcnn_scratch/fpn.py) | 05 |
# | 3 anchors | `model.anchors` | [`anchors.py`](../mrcnn_scratch/anchors.py) | 02 |
# | 4 RPN | `model.rpn` | [`rpn.py`](../mrcnn_scratch/rpn.py) | 03 (its targets), 06 |
# | 5 proposals | `propose` | [`rpn.py`](../mrcnn_scratch/rpn.py), [`nms.py`](../mrcnn_scratch/nms.py) | 04 |
# | 6 RoIAlign | `model.pool` | [`roi_ops/`](../mrcnn_scratch/roi_ops) | 07, 08, 09 |
# | 7, 8 box head | `model.box_predictor`, `detect_boxes` | [`box_head.py`](../mrcnn_scratch/box_head.py) | 10 |
# | 9 masks | `model.mask_logits` | [`mask_head.py`](../mrcnn_scratch/mask_head.py) | 11 |
# | 10 keypoints | `model.keypoint_logits` | [`keypoint_head.py`](../mrcnn_scratch/keypoint_head.py) | 12 |
# | all of it | `model(images)` | [`model.py`](../mrcnn_scratch/model.py) | 13 |
#
# What you have not seen yet is how the weights came to be: training begins in notebook 06.
