"""The procedural data set: what is labelled is what is painted, and image i is always the same image."""

import hashlib
import json
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_util

from mrcnn_scratch.datasets.figures import (
    FLIP_PAIRS,
    HAIR,
    KEYPOINT_NAMES,
    SKELETON,
    figure_blobs,
    figure_palette,
    sample_pose,
)
from mrcnn_scratch.datasets.outlines import OUTLINES, shape_blobs, shape_palette
from mrcnn_scratch.datasets.render import (
    SAMPLES,
    Blob,
    Placed,
    block_counts,
    draw_sprite,
    extent,
    paint,
    resolve_occlusion,
)
from mrcnn_scratch.datasets.shapes import CATEGORY_IDS, PRESETS, ShapesDataset, ShapesPreset
from mrcnn_scratch.datasets.textures import background, contrasting_colour

PEOPLE = ShapesPreset("people", (96, 128), (1, 3), (20, 40), (40, 80), 0.0, ("person",), 0.6, 0.5)


@pytest.fixture(scope="module", params=list(PRESETS))
def dataset(request) -> ShapesDataset:
    return ShapesDataset(request.param, num_images=40, seed=3)


@pytest.fixture(scope="module")
def people() -> ShapesDataset:
    return ShapesDataset(PEOPLE, num_images=80, seed=1)


def digest(dataset: ShapesDataset, index: int) -> str:
    image, target = dataset[index]
    parts = [image.numpy().tobytes()]
    parts += [value.numpy().tobytes() for value in target.values() if torch.is_tensor(value)]
    return hashlib.sha256(b"".join(parts)).hexdigest()


# ---- the same image, always


def test_an_image_depends_on_seed_split_and_index_alone():
    forwards = ShapesDataset(num_images=6, seed=5)
    backwards = ShapesDataset(num_images=1000, seed=5, cache=False)
    there = [digest(forwards, i) for i in range(6)]
    back = [digest(backwards, i) for i in reversed(range(6))][::-1]
    assert there == back
    assert there == [digest(forwards, i) for i in range(6)]  # now out of the cache
    assert len(set(there)) == 6
    for other in (ShapesDataset(num_images=6, seed=6), ShapesDataset(num_images=6, seed=5, split="val")):
        assert not set(there) & {digest(other, i) for i in range(6)}


def test_another_process_draws_the_same_image():
    code = (
        "import hashlib, sys, numpy as np\n"
        "from mrcnn_scratch.datasets.scene import render_scene\n"
        "from mrcnn_scratch.datasets.presets import PRESETS\n"
        "image, placed = render_scene(PRESETS['hard'], 11, 1, 4)\n"
        "masks = b''.join(item.mask.tobytes() for item in placed)\n"
        "print(hashlib.sha256(image.tobytes() + masks).hexdigest())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    dataset = ShapesDataset("hard", 5, seed=11, split="val")
    masks = dataset[4][1]["masks"].numpy().astype(bool).tobytes()
    image = np.ascontiguousarray(dataset.pixels(4).transpose(1, 2, 0)).tobytes()
    assert done.stdout.strip() == hashlib.sha256(image + masks).hexdigest()


def test_a_target_can_be_written_to_without_harm_to_the_next_reader():
    dataset = ShapesDataset(PEOPLE, 1)
    image, target = dataset[0]
    before = digest(dataset, 0)
    image.zero_()
    for value in target.values():
        if torch.is_tensor(value):
            value.zero_()
    assert digest(dataset, 0) == before


# ---- the target's form


def test_targets_have_the_form_of_torchvisions(dataset):
    H, W = dataset.preset.image_size
    for i in range(len(dataset)):
        image, target = dataset[i]
        G = len(target["labels"])
        assert image.shape == (3, H, W) and image.dtype == torch.float32
        assert 0 <= image.min() and image.max() <= 1 and image.is_contiguous()
        forms = {
            "boxes": ((G, 4), torch.float32),
            "labels": ((G,), torch.int64),
            "masks": ((G, H, W), torch.uint8),
            "area": ((G,), torch.float32),
            "iscrowd": ((G,), torch.int64),
            "keypoints": ((G, 17, 3), torch.float32),
        }
        assert set(target) == {*forms, "image_id"}
        for name, (shape, dtype) in forms.items():
            assert target[name].shape == shape and target[name].dtype == dtype, name
        assert target["image_id"] == dataset.image_ids[i] == i + 1
        assert target["masks"].max() <= 1 if G else True
        assert torch.equal(target["area"], target["masks"].sum((1, 2)).float())
        assert ((target["labels"] >= 1) & (target["labels"] < dataset.num_classes)).all()
        assert not target["iscrowd"].any()


def test_an_empty_image_has_empty_arrays_of_the_right_shapes():
    dataset = ShapesDataset(replace(PRESETS["demo"], empty_fraction=1.0), 3)
    _, target = dataset[0]
    assert target["boxes"].shape == (0, 4) and target["labels"].shape == (0,)
    assert target["masks"].shape == (0, 128, 128) and target["keypoints"].shape == (0, 17, 3)
    assert dataset.coco_dict()["annotations"] == []


def test_the_share_of_empty_images_and_of_each_class_is_what_the_preset_says():
    dataset = ShapesDataset("demo", 400, cache=False)
    targets = [dataset[i][1] for i in range(400)]
    empty = sum(not len(t["labels"]) for t in targets)
    assert 8 <= empty <= 36  # 5 % of 400, three standard deviations
    labels = torch.cat([t["labels"] for t in targets])
    counts = labels.bincount(minlength=dataset.num_classes)[1:]
    assert counts.min() > 0.8 * counts.max()
    most = max(len(t["labels"]) for t in targets)
    assert most == 4


@pytest.mark.parametrize("size", [(64, 160), (160, 64), (75, 131)])
def test_images_need_not_be_square(size):
    dataset = ShapesDataset("hard", 20, image_size=size)
    touched = np.zeros(size, bool)
    for i in range(20):
        image, target = dataset[i]
        assert image.shape == (3, *size) and target["masks"].shape[1:] == size
        assert (target["boxes"][:, 2] <= size[1]).all() and (target["boxes"][:, 3] <= size[0]).all()
        touched |= target["masks"].numpy().any(0)
    assert touched.mean() > 0.7  # objects go everywhere, also to the far end of the longer side


def test_classes_can_be_restricted_and_reordered():
    dataset = ShapesDataset("demo", 30, classes=("ring", "person"))
    assert dataset.class_names == ["background", "ring", "person"] and dataset.num_classes == 3
    assert dataset.label_to_category == {1: 7, 2: 1}
    keypoints = torch.cat([t["keypoints"][t["labels"] == 1] for _, t in dataset])
    assert len(keypoints) and not keypoints.any()  # rings have none
    rings = ShapesDataset("demo", 2, classes=("ring",))
    assert rings.num_keypoints == 0 and rings.flip_pairs == [] and "keypoints" not in rings[0][1]
    assert all("keypoints" not in a for a in rings.coco_dict()["annotations"])


# ---- labels agree with the picture


def test_boxes_are_tight_around_masks(dataset):
    """Boxes are measured in samples, masks in pixels: they differ by a pixel at most."""
    for i in range(len(dataset)):
        _, target = dataset[i]
        for box, mask in zip(target["boxes"].numpy(), target["masks"].numpy(), strict=True):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            pixels = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            assert np.abs(box - pixels).max() <= 1
            centres = np.array([columns[0], rows[0], columns[-1], rows[-1]]) + 0.5
            assert (box[:2] <= centres[:2]).all() and (box[2:] >= centres[2:]).all()
            assert (box * SAMPLES == np.round(box * SAMPLES)).all()


def test_visible_masks_never_overlap(dataset):
    overlapping_boxes = 0
    for i in range(len(dataset)):
        _, target = dataset[i]
        assert target["masks"].sum(0).max() <= 1 if len(target["masks"]) else True
        boxes = target["boxes"]
        for g in range(len(boxes)):
            common = torch.minimum(boxes[g, 2:], boxes[:g, 2:]) - torch.maximum(boxes[g, :2], boxes[:g, :2])
            overlapping_boxes += int((common > 0).all(1).sum())
    assert overlapping_boxes > 5  # the rule is put to the test


def test_a_mask_is_where_the_picture_shows_the_object(dataset):
    """Inside its mask, away from edges, a shape has one colour; around the mask it has another."""
    checked = 0
    for i in range(len(dataset)):
        pixels = dataset.pixels(i).astype(int)
        _, target = dataset[i]
        for label, mask in zip(target["labels"], target["masks"].numpy().astype(bool), strict=True):
            if dataset.class_names[label] == "person":
                continue
            core = mask.copy()
            core[1:] &= mask[:-1]
            core[:-1] &= mask[1:]
            core[:, 1:] &= mask[:, :-1]
            core[:, :-1] &= mask[:, 1:]
            if core.sum() < 12:
                continue
            inside = pixels[:, core]
            colour = np.median(inside, axis=1)
            same = np.abs(inside - colour[:, None]).max(0) <= 2
            # an object above may cover up to half of a pixel of the core, never much of it
            assert same.mean() > 0.9
            near = pixels.transpose(1, 2, 0)[~target["masks"].numpy().any(0).astype(bool)]
            assert np.median(np.abs(near - colour).max(1)) > 20
            checked += 1
    assert checked > 20


def test_sizes_are_within_the_presets_range_in_cells_of_stride_16():
    for name, low, high in (("hard", 1.0, 3.0), ("coco-like", 3.0, 10.0)):
        dataset = ShapesDataset(name, 80, seed=2)
        boxes = torch.cat([target["boxes"] for _, target in dataset])
        cells = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt() / 16
        assert low <= cells.min() and cells.max() <= high
        assert cells.min() < 1.15 * low and cells.max() > 0.8 * high  # and the range is used
    boxes = torch.cat([target["boxes"] for _, target in ShapesDataset("multiscale", 40)])
    size = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    assert size.max() > 10 * size.min()


def test_the_demos_people_are_48_to_110_pixels_tall():
    dataset = ShapesDataset("demo", 100, classes=("person",), cache=False)
    heights = []
    for _, target in dataset:
        whole = (target["keypoints"][:, :, 2] > 0).all(1)
        heights += (target["boxes"][whole, 3] - target["boxes"][whole, 1]).tolist()
    assert len(heights) > 60
    low, high = np.percentile(heights, [5, 95])
    assert 46 <= low and high <= 110


def test_too_small_a_rest_is_left_out_of_labels_and_picture():
    def square(label, top, left, size):
        blobs = [Blob(1, np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]]))]
        palette = np.array([[0, 0, 0], [50 * label] * 3], np.uint8)
        return Placed(label, False, draw_sprite(blobs, palette, size, (99, 99), (0, 0)), top, left)

    below, above = square(1, 10, 10, 10.0), square(2, 8, 8, 12.0)
    kept = resolve_occlusion([below, above], (40, 30), min_shown=0.4, min_size=2.0)
    assert [item.label for item in kept] == [2]
    outside = square(3, -8, 5, 10.0)  # two of ten rows are in the image
    assert resolve_occlusion([outside], (40, 30), 0.4, 2.0) == []
    assert resolve_occlusion([square(3, 12, 40, 10.0)], (40, 30), 0.4, 2.0) == []  # wholly outside
    kept = resolve_occlusion([square(3, -4, 5, 10.0)], (40, 30), 0.4, 2.0)
    assert kept[0].shown == pytest.approx(0.6, abs=0.04)
    assert resolve_occlusion([square(3, -4, 5, 10.0)], (40, 30), 0.4, min_size=9.0) == []
    image = np.zeros((40, 30, 3), np.uint8)
    paint(image, resolve_occlusion([below, above], (40, 30), 0.4, 2.0))
    assert set(np.unique(image)) <= {0, 25, 100}  # the hidden square of colour 50 is nowhere


def test_a_sliver_that_is_too_thin_for_the_mask_does_not_stretch_the_box():
    body = Blob(1, np.array([[0.0, 0], [20, 0], [20, 20], [0, 20]]))
    hair = Blob(1, np.array([[20.0, 10], [40, 10], [40, 10.1], [20, 10.1]]))
    sprite = draw_sprite([body, hair], np.zeros((2, 3), np.uint8), np.sqrt(40 * 20.0), (99, 99), (0, 0))
    (item,) = resolve_occlusion([Placed(1, False, sprite, 5, 5)], (50, 60), 0.1, 1.0)
    assert item.mask.any(0).nonzero()[0].max() == 24
    assert 25 <= item.box[2] <= 26


@settings(deadline=None, max_examples=40)
@given(
    name=st.sampled_from(list(OUTLINES)),
    seed=st.integers(0, 10**6),
    size=st.floats(12, 80),
    phase=st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)),
)
def test_an_unhidden_shapes_box_is_its_geometry_to_one_sample(name, seed, size, phase):
    blobs = shape_blobs(name, np.random.default_rng(seed))
    sprite = draw_sprite(blobs, shape_palette(np.full(3, 200.0)), size, (200, 200), phase)
    x0, y0, x1, y1 = extent(blobs)
    scale = size / np.sqrt((x1 - x0) * (y1 - y0))
    assert scale**2 * (x1 - x0) * (y1 - y0) == pytest.approx(size**2)
    (item,) = resolve_occlusion([Placed(1, False, sprite, 7, 9)], (260, 230), 0.1, 1.0)
    corner = np.array([phase[0] + 9, phase[1] + 7])
    truth = np.concatenate([corner, corner + scale * np.array([x1 - x0, y1 - y0])])
    # a box is within a pixel of its mask, so a tip thinner than a pixel may be cut; it is never too large
    assert (item.box[:2] >= truth[:2] - 0.26).all() and (item.box[2:] <= truth[2:] + 0.26).all()
    if name in ("ring", "cross", "gear"):
        assert np.abs(item.box - truth).max() <= 0.26


def test_a_ring_has_its_hole_and_its_area():
    outer, inner = 30.0, 18.0
    angles = np.linspace(0, 2 * np.pi, 256, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], 1)
    blobs = [Blob(1, circle * outer), Blob(0, circle * inner)]
    sprite = draw_sprite(blobs, np.zeros((2, 3), np.uint8), 60.0, (99, 99), (0.3, 0.6))
    (item,) = resolve_occlusion([Placed(1, False, sprite, 0, 0)], (70, 70), 0.1, 1.0)
    assert item.mask.sum() == pytest.approx(np.pi * (outer**2 - inner**2), rel=0.02)
    assert not item.mask[30, 30] and item.mask[30, 6]


def test_coverage_counts_samples_exactly():
    samples = np.random.default_rng(0).random((20, 28)) < 0.5
    assert (block_counts(samples) == samples.reshape(5, 4, 7, 4).sum((1, 3))).all()


def test_a_pixel_shared_half_and_half_goes_to_the_upper_object():
    square = [Blob(1, np.array([[0.0, 0], [7.75, 0], [7.75, 7.75], [0, 7.75]]))]
    palette = np.zeros((2, 3), np.uint8)
    lower = Placed(1, False, draw_sprite(square, palette, 7.75, (99, 99), (0, 0)), 4, 4)
    # its left half pixel column: samples 2 and 3 of the last column of the lower one
    upper = Placed(2, False, draw_sprite(square, palette, 7.75, (99, 99), (0.5, 0)), 4, 11)
    a, b = resolve_occlusion([lower, upper], (20, 30), 0.1, 1.0)
    assert a.mask.sum() and b.mask[4:12, 11].all() and not a.mask[4:12, 11].any()


# ---- keypoints


def test_keypoint_order_names_pairs_and_skeleton_are_cocos():
    assert len(KEYPOINT_NAMES) == 17 and KEYPOINT_NAMES[0] == "nose" and KEYPOINT_NAMES[16] == "right_ankle"
    assert len(FLIP_PAIRS) == 8 and len(set(sum(FLIP_PAIRS, ()))) == 16 and 0 not in sum(FLIP_PAIRS, ())
    for left, right in FLIP_PAIRS:
        assert KEYPOINT_NAMES[left].replace("left", "right") == KEYPOINT_NAMES[right]
        assert KEYPOINT_NAMES[left].startswith("left")
    # the list as COCO's person category has it, 1-based
    coco = [[16, 14], [14, 12], [17, 15], [15, 13], [12, 13], [6, 12], [7, 13], [6, 7], [6, 8], [7, 9],
            [8, 10], [9, 11], [2, 3], [1, 2], [1, 3], [2, 4], [3, 5], [4, 6], [5, 7]]  # fmt: skip
    assert [[a + 1, b + 1] for a, b in SKELETON] == coco
    swap = dict(FLIP_PAIRS) | {b: a for a, b in FLIP_PAIRS}
    mirrored = {tuple(sorted((swap.get(a, a), swap.get(b, b)))) for a, b in SKELETON}
    assert mirrored == {tuple(sorted(edge)) for edge in SKELETON}


def test_visibility_is_0_outside_and_2_only_on_the_visible_mask(people):
    H, W = people.preset.image_size
    seen = {0: 0, 1: 0, 2: 0}
    for _, target in people:
        for points, mask in zip(target["keypoints"].numpy(), target["masks"].numpy(), strict=True):
            for x, y, v in points:
                seen[int(v)] += 1
                if v == 0:
                    assert x == 0 and y == 0
                    continue
                assert 0 <= x < W and 0 <= y < H
                if v == 2:  # seen at that sample; the mask may have it one pixel off where it is thin
                    row, column = int(y), int(x)
                    assert mask[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2].any()
    assert min(seen.values()) > 30


def test_a_later_object_hides_joints_and_the_border_removes_them():
    rng = np.random.default_rng(4)
    blobs, joints = figure_blobs(rng)
    sprite = draw_sprite(blobs, figure_palette(rng, np.full(3, 120.0)), 60.0, (200, 200), (0.2, 0.7), joints)
    height, width = sprite.size
    size = (height + 10, width + 10)
    (free,) = resolve_occlusion([Placed(1, False, sprite, 5, 5)], size, 0.1, 1.0)
    assert set(free.keypoints[:, 2]) <= {1.0, 2.0} and (free.keypoints[:, 2] == 2).sum() > 8
    assert np.allclose(free.keypoints[:, :2], sprite.keypoints + 5, atol=1e-5)
    # a plate over the lower half
    plate = [Blob(1, np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]]) * [width + 4, height / 2])]
    wide = np.sqrt((width + 4) * height / 2)
    cover = draw_sprite(plate, np.zeros((2, 3), np.uint8), wide, (500, 500), (0, 0))
    top = 5 + height // 2
    kept = resolve_occlusion([Placed(1, False, sprite, 5, 5), Placed(2, False, cover, top, 3)], size, 0.1, 1.0)
    under = free.keypoints[:, 1] >= top
    assert under.any() and not under.all()
    assert (kept[0].keypoints[under, 2] == 1).all()
    assert (kept[0].keypoints[~under, 2] == free.keypoints[~under, 2]).all()
    assert (kept[0].keypoints[:, :2] == free.keypoints[:, :2]).all()  # hidden joints keep their place
    # under it instead of over it
    kept = resolve_occlusion([Placed(2, False, cover, top, 3), Placed(1, False, sprite, 5, 5)], size, 0.1, 1.0)
    assert (kept[-1].keypoints == free.keypoints).all()
    # half out of the image on the left
    left = -width // 2
    (cut,) = resolve_occlusion([Placed(1, False, sprite, 5, left)], size, 0.1, 1.0)
    out = sprite.keypoints[:, 0] + left < 0
    assert out.any() and not out.all()
    assert not cut.keypoints[out].any() and (cut.keypoints[~out, 2] > 0).all()


def test_left_is_at_the_right_of_one_who_faces_us_and_at_the_left_of_one_who_does_not():
    rng = np.random.default_rng(2)
    poses = [sample_pose(rng) for _ in range(200)]
    assert 15 < sum(not faces for _, faces, _ in poses) < 70
    for joints, faces, _ in poses:
        for left, right in ((1, 2), (5, 6), (11, 12)):
            assert (joints[left, 0] > joints[right, 0]) == faces


def test_a_turned_head_hides_the_ear_on_the_side_it_turns_to():
    """And seen from behind, the other one: the nose is then on the far side."""
    rng = np.random.default_rng(1)
    hidden = {True: 0, False: 0}
    for _ in range(150):
        blobs, joints = figure_blobs(rng)
        markers = {blob.part for blob in blobs}
        gone = [ear for ear in (3, 4) if ear + 1 not in markers]
        if gone:
            faces = sum(blob.part == HAIR for blob in blobs) == 1
            across = joints[5] - joints[6] if faces else joints[6] - joints[5]  # towards +x
            nose = np.dot(joints[0] - joints[3:5].mean(0), across)
            ear = np.dot(joints[gone[0]] - joints[3:5].mean(0), across)
            assert (nose * ear > 0) == faces and len(gone) == 1
            hidden[faces] += 1
    assert min(hidden.values()) > 5


def test_a_figure_hides_its_own_joints():
    """Seen from behind there is no face; and no joint is called seen whose marker is not on top."""
    rng = np.random.default_rng(0)
    backs = fronts = 0
    for _ in range(60):
        blobs, joints = figure_blobs(rng)
        sprite = draw_sprite(blobs, figure_palette(rng, np.zeros(3)), 90.0, (400, 400), (0, 0), joints)
        column, row = np.floor(sprite.keypoints * SAMPLES).astype(int).T
        assert (sprite.self_visible == (sprite.parts[row, column] == np.arange(1, 18))).all()
        assert (sprite.parts[row, column] > 0).all()  # joints lie on the body
        if sum(blob.part == HAIR for blob in blobs) == 2:  # hair all round
            backs += 1
            assert not sprite.self_visible[:3].any()
        else:
            fronts += 1
    assert backs > 4 and fronts > 30


def test_left_is_lighter_than_right_and_at_the_right_of_one_who_faces_us(people):
    rng = np.random.default_rng(0)
    for _ in range(20):
        palette = figure_palette(rng, contrasting_colour(rng, rng.uniform(0, 255, 3))).astype(int)
        for left, right in FLIP_PAIRS[1:]:  # eyes aside: one is blue, one black
            assert palette[left + 1].sum() > palette[right + 1].sum() + 100
    lighter, sided = [], []
    for i in range(len(people)):
        pixels = people.pixels(i).astype(int).sum(0)
        for points in people[i][1]["keypoints"].numpy():
            for left, right in FLIP_PAIRS[2:]:
                if points[left, 2] == 2 and points[right, 2] == 2:
                    (x, y), (u, v) = points[left, :2].astype(int), points[right, :2].astype(int)
                    lighter.append(pixels[y, x] > pixels[v, u])
            if (points[:7, 2] == 2).all():  # a face
                sided.append(points[5, 0] > points[6, 0])
    assert len(lighter) > 150 and np.mean(lighter) > 0.95
    assert len(sided) > 20 and all(sided)


# ---- the rest of the protocol


def test_coco_dict_says_what_the_targets_say(people):
    truth = people.coco_dict()
    json.dumps(truth)
    assert [record["id"] for record in truth["images"]] == people.image_ids
    assert [a["id"] for a in truth["annotations"]] == list(range(1, len(truth["annotations"]) + 1))
    by_image = {i: [a for a in truth["annotations"] if a["image_id"] == i] for i in people.image_ids}
    for _, target in people:
        for g, annotation in enumerate(by_image[target["image_id"]]):
            x, y, w, h = annotation["bbox"]
            assert np.allclose([x, y, x + w, y + h], target["boxes"][g])
            assert (mask_util.decode(annotation["segmentation"]) == target["masks"][g].numpy()).all()
            points = np.array(annotation["keypoints"]).reshape(17, 3)
            shown = points[:, 2] > 0
            assert annotation["num_keypoints"] == shown.sum()
            assert not points[~shown].any()
            assert np.allclose(points[shown, :2] + 0.5, target["keypoints"][g].numpy()[shown, :2], atol=1e-5)
            assert annotation["area"] == target["area"][g]
    (person,) = truth["categories"]
    assert person["id"] == 1 and person["skeleton"][0] == [16, 14] and len(person["keypoints"]) == 17


def test_category_ids_have_gaps_and_labels_do_not():
    dataset = ShapesDataset("coco-like", 1)
    assert list(dataset.label_to_category) == list(range(1, len(CATEGORY_IDS) + 1))
    assert sorted(dataset.label_to_category.values()) == sorted(CATEGORY_IDS.values())
    assert max(CATEGORY_IDS.values()) > len(CATEGORY_IDS) and len(set(CATEGORY_IDS.values())) == len(CATEGORY_IDS)


def test_crowds_change_only_their_own_images():
    plain = ShapesDataset("demo", 8, seed=2)
    crowded = plain.with_crowds(4)
    for i in range(8):
        crowds = int(crowded[i][1]["iscrowd"].sum())
        assert crowds == (i in (3, 7))
        if crowds:
            _, target = crowded[i]
            g = int(target["iscrowd"].argmax())
            assert target["masks"][g].sum() > 100 and not target["keypoints"][g].any()
        else:
            assert digest(plain, i) == digest(crowded, i)
    people = ShapesDataset(PEOPLE, 1).with_crowds(1)
    assert people[0][1]["iscrowd"].sum() == 1  # without other shapes, a crowd is of people


def test_backgrounds_vary_and_colours_stand_out():
    rng = np.random.default_rng(0)
    images = [background(rng, (48, 80)) for _ in range(20)]
    assert all(image.shape == (48, 80, 3) and image.dtype == np.uint8 for image in images)
    means = np.array([image.mean((0, 1)) for image in images])
    assert means.std(0).min() > 20 and min(image.std() for image in images) > 3
    apart = [np.linalg.norm(contrasting_colour(rng, mean) - mean) for mean in means for _ in range(20)]
    assert min(apart) > 80 and np.mean(np.array(apart) >= 110) > 0.95


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "easy"}, "unknown preset 'easy': choose one of demo, hard"),
        ({"classes": ("person", "dog")}, "dog"),
        ({"classes": ()}, "give a tuple of distinct names"),
        ({"classes": "person"}, "give a tuple of distinct names"),
        ({"classes": ("ring", "ring")}, "distinct"),
        ({"image_size": (20, 128)}, r"\(20, 128\) is too small"),
        ({"image_size": (128,)}, r"give \(H, W\)"),
        ({"preset": "coco-like", "image_size": (64, 64)}, "at least 96 pixels"),
        ({"split": "dev"}, "split='dev': choose one of train, val, test"),
        ({"num_images": -1}, "num_images=-1"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_a_bad_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ShapesDataset(**arguments)


@pytest.mark.parametrize("index", [-1, 3])
def test_an_index_out_of_range_is_an_index_error(index):
    with pytest.raises(IndexError, match=f"image index {index} is not in 0..2"):
        ShapesDataset(num_images=3)[index]


def test_drawing_takes_a_fraction_of_a_training_step():
    """Hundreds of images a second on an idle core; the bound is loose, and in CPU time, for busy machines."""
    dataset = ShapesDataset("demo", 60, cache=False)
    dataset[0]
    start = time.process_time()
    for i in range(60):
        dataset[i]
    assert 60 / (time.process_time() - start) > 60
