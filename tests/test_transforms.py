"""Flip and resize: image, boxes, masks and keypoints stay together, and nothing is changed in place."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import grid_sample

from mrcnn_scratch.datasets.transforms import Augment, hflip, random_flip, random_scale, resize

PAIRS = [(1, 2)]


def example(H=12, W=20, seed=0) -> tuple[torch.Tensor, dict]:
    """An image and two instances: a rectangle that fills its box and a small one, three keypoints each."""
    image = torch.rand((3, H, W), generator=torch.Generator().manual_seed(seed))
    masks = torch.zeros((2, H, W), dtype=torch.uint8)
    masks[0, 2:9, 3:15] = 1
    masks[1, 5, 16:18] = 1
    target = {
        "boxes": torch.tensor([[3.0, 2, 15, 9], [16, 5, 18, 6]]),
        "labels": torch.tensor([1, 2]),
        "masks": masks,
        "keypoints": torch.tensor(
            [[[4.5, 3.5, 2], [5.5, 4.5, 1], [9.5, 4.5, 2]], [[0, 0, 0], [16.5, 5.5, 2], [0, 0, 0]]]
        ),
        "image_id": 11,
        "area": torch.tensor([84.0, 2]),
        "iscrowd": torch.tensor([0, 1]),
    }
    return image, target


def empty(H=5, W=7) -> tuple[torch.Tensor, dict]:
    target = {
        "boxes": torch.zeros((0, 4)),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros((0, H, W), dtype=torch.uint8),
        "keypoints": torch.zeros((0, 3, 3)),
        "image_id": 4,
        "area": torch.zeros(0),
        "iscrowd": torch.zeros(0, dtype=torch.int64),
    }
    return torch.rand(3, H, W), target


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a
    )


TRANSFORMS = {
    "hflip": lambda image, target: hflip(image, target, PAIRS),
    "smaller": lambda image, target: resize(image, target, (3, 4)),
    "larger": lambda image, target: resize(image, target, (31, 17)),
    "augment": lambda image, target: Augment(1.0, (1.5, 1.5), PAIRS)(image, target, torch.Generator()),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("make", [example, empty])
def test_pure_and_typed(name, make):
    image, target = make()
    before_image, before = image.clone(), copy.deepcopy(target)
    new_image, new = TRANSFORMS[name](image, target)
    assert torch.equal(image, before_image) and same(target, before)
    assert new.keys() == target.keys() and new["image_id"] == target["image_id"]
    assert new_image.dtype == torch.float32 and new_image.ndim == 3
    assert 0 <= new_image.min() and new_image.max() <= 1
    for key in set(target) - {"image_id"}:
        assert new[key].dtype == target[key].dtype, key
    G = len(target["boxes"])
    assert new["masks"].shape == (G, *new_image.shape[1:])
    assert new["boxes"].shape == (G, 4) and new["keypoints"].shape == (G, 3, 3)
    assert torch.equal(new["labels"], target["labels"]) and torch.equal(new["iscrowd"], target["iscrowd"])


@pytest.mark.parametrize("name", TRANSFORMS)
def test_optional_fields(name):
    image, target = example()
    _, new = TRANSFORMS[name](image, {"boxes": target["boxes"]})
    assert new.keys() == {"boxes"}


def test_hflip_by_hand():
    image, target = example()  # W = 20
    flipped_image, flipped = hflip(image, target, PAIRS)
    assert torch.equal(flipped_image[:, :, 0], image[:, :, 19])
    assert flipped["boxes"].tolist() == [[5, 2, 17, 9], [2, 5, 4, 6]]
    assert torch.equal(flipped["masks"][0, 4, 5:17], torch.ones(12, dtype=torch.uint8))
    # The nose stays keypoint 0; left and right eye change places; v = 0 stays 0, 0, 0 wherever it lands.
    assert flipped["keypoints"][0].tolist() == [[15.5, 3.5, 2], [10.5, 4.5, 2], [14.5, 4.5, 1]]
    assert flipped["keypoints"][1].tolist() == [[0, 0, 0], [0, 0, 0], [3.5, 5.5, 2]]


def test_hflip_twice_is_the_identity():
    image, target = example()
    again_image, again = hflip(*hflip(image, target, PAIRS), PAIRS)
    assert torch.equal(again_image, image) and same(again, target)


def test_a_keypoint_stays_on_its_pixel():
    image, target = torch.zeros(3, 6, 9), example()[1]
    image[:, 4, 7] = 1
    target = {"boxes": torch.tensor([[7.0, 4, 8, 5]]), "keypoints": torch.tensor([[[7.5, 4.5, 2.0]]])}
    flipped_image, flipped = hflip(image, target)
    x, y, _ = flipped["keypoints"][0, 0].floor().int().tolist()
    assert flipped_image[0, y, x] == 1


@pytest.mark.parametrize("pairs", [[(0, 3)], [(1, 1)], [(1, 2), (2, 0)], [(-1, 2)]])
def test_wrong_pairs(pairs):
    with pytest.raises(ValueError, match="image 11: flip pair"):
        hflip(*example(), pairs)


def test_resize_by_hand():
    image, target = example()  # 12 x 20
    new_image, new = resize(image, target, (24, 30))  # ratios 2 and 1.5
    assert new_image.shape == (3, 24, 30)
    assert new["boxes"].tolist() == [[4.5, 4, 22.5, 18], [24, 10, 27, 12]]
    assert new["keypoints"][0, 0].tolist() == [6.75, 7, 2] and new["keypoints"][1, 0].tolist() == [0, 0, 0]
    assert new["area"].tolist() == [252, 6]


def test_resize_uses_the_actual_ratio_of_each_axis():
    # 7 x 3 by a nominal 0.5 rounds to 4 x 2: ratios 4/7 and 2/3, neither of them 0.5.
    target = {"boxes": torch.tensor([[0.0, 0, 3, 7]]), "area": torch.tensor([21.0])}
    _, new = resize(torch.rand(3, 7, 3), target, (4, 2))
    torch.testing.assert_close(new["boxes"], torch.tensor([[0.0, 0, 2, 4]]))
    torch.testing.assert_close(new["area"], torch.tensor([8.0]))


def test_resize_keeps_centres_of_pixels_at_one_half():
    # A ramp that says its own continuous x and y says so after growing too (away from the border).
    H, W = 8, 10
    ys, xs = torch.meshgrid(torch.arange(H) + 0.5, torch.arange(W) + 0.5, indexing="ij")
    image = torch.stack([xs, ys, xs * 0])
    new, _ = resize(image, {"boxes": torch.zeros(0, 4)}, (24, 20))
    expected_x = (torch.arange(20) + 0.5) / 2
    expected_y = (torch.arange(24) + 0.5) / 3
    torch.testing.assert_close(new[0, 5, 2:-2], expected_x[2:-2])
    torch.testing.assert_close(new[1, 3:-3, 5], expected_y[3:-3])
    grid = torch.stack(
        torch.meshgrid((torch.arange(20) + 0.5) / 10 - 1, (torch.arange(24) + 0.5) / 12 - 1, indexing="xy"),
        dim=-1,
    )
    independent = grid_sample(
        image[None], grid[None], mode="bilinear", padding_mode="border", align_corners=False
    )
    torch.testing.assert_close(new, independent[0])


def test_resize_is_antialiased():
    stripes = torch.zeros(3, 16, 32)
    stripes[..., ::4] = 1  # one column in four: a point sampler sees all or nothing
    new, _ = resize(stripes, {"boxes": torch.zeros(0, 4)}, (4, 8))
    assert (new[..., 1:-1] - 0.25).abs().max() < 0.1


def centroid(mask: torch.Tensor) -> torch.Tensor:
    ys, xs = torch.nonzero(mask, as_tuple=True)
    return torch.stack([xs.double().mean(), ys.double().mean()]) + 0.5


@settings(max_examples=300, deadline=None)
@given(
    st.integers(6, 40),
    st.integers(6, 40),
    st.integers(3, 90),
    st.integers(3, 90),
    st.tuples(*[st.floats(0, 1)] * 4),
)
def test_the_mask_stays_in_its_box(H, W, new_H, new_W, corners):
    x1, x2 = sorted((int(corners[0] * (W - 1)), int(corners[1] * (W - 1))))
    y1, y2 = sorted((int(corners[2] * (H - 1)), int(corners[3] * (H - 1))))
    box = torch.tensor([[x1, y1, x2 + 1.0, y2 + 1.0]])
    mask = torch.zeros((1, H, W), dtype=torch.uint8)
    mask[0, y1 : y2 + 1, x1 : x2 + 1] = 1
    _, new = resize(torch.zeros(3, H, W), {"boxes": box, "masks": mask}, (new_H, new_W))
    assert new["masks"].any() and set(new["masks"].unique().tolist()) <= {0, 1}
    middle = (new["boxes"][0, :2] + new["boxes"][0, 2:]).double() / 2
    assert (centroid(new["masks"][0]) - middle).abs().max() <= 0.5 + 1e-4
    # Its edges are within a pixel of the box's, unless the box has become thinner than a pixel.
    ys, xs = torch.nonzero(new["masks"][0], as_tuple=True)
    edges = torch.tensor([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    assert (edges - new["boxes"][0]).abs().max() <= 1 + 1e-4


def test_masks_are_not_shifted_on_the_average():
    # Plain "nearest" is off by half an output pixel on the average; so is rounding the box outward.
    generator = torch.Generator().manual_seed(0)
    for size in ((60, 90), (13, 17), (70, 20)):
        shifts = []
        for _ in range(150):
            x, y = (int(torch.randint(0, n, (), generator=generator)) for n in (40 - 9, 30 - 8))
            mask = torch.zeros((1, 30, 40), dtype=torch.uint8)
            mask[0, y : y + 8, x : x + 9] = 1
            box = torch.tensor([[x, y, x + 9.0, y + 8]])
            _, new = resize(torch.zeros(3, 30, 40), {"boxes": box, "masks": mask}, size)
            shifts.append(
                centroid(new["masks"][0]) - (new["boxes"][0, :2] + new["boxes"][0, 2:]).double() / 2
            )
        assert torch.stack(shifts).mean(dim=0).abs().max() < 0.06, size


def test_nothing_vanishes():
    masks = torch.zeros((3, 40, 40), dtype=torch.uint8)
    masks[0, 17, 23] = 1  # a single pixel
    masks[1, :, 5] = 1  # a line thinner than the new pixels
    boxes = torch.tensor([[23.0, 17, 24, 18], [5, 0, 6, 40], [1, 1, 2, 2]])
    _, new = resize(torch.zeros(3, 40, 40), {"boxes": boxes, "masks": masks}, (4, 4))
    assert new["masks"][0].sum() == 1 and new["masks"][0, 1, 2] == 1
    assert new["masks"][1].sum(dim=0).tolist() == [4, 0, 0, 0]
    assert not new["masks"][2].any()  # an empty mask has nothing to keep
    torch.testing.assert_close(new["boxes"], boxes / 10)  # boxes of a tenth of a pixel, exact and not dropped


def test_resize_to_the_same_size_changes_nothing():
    image, target = example()
    new_image, new = resize(image, target, (12, 20))
    torch.testing.assert_close(new_image, image)
    assert same(new, target)


def test_flip_and_resize_commute():
    image, target = example()
    a_image, a = hflip(*resize(image, target, (30, 50)), PAIRS)
    b_image, b = resize(*hflip(image, target, PAIRS), (30, 50))
    torch.testing.assert_close(a_image, b_image)
    for key in ("boxes", "keypoints"):
        torch.testing.assert_close(a[key], b[key])
    assert torch.equal(a["masks"], b["masks"])


@pytest.mark.parametrize("size", [(0, 4), (4, -1), (4,), (4.0, 4), (True, 4)])
def test_wrong_size(size):
    with pytest.raises(ValueError, match="two integers of at least 1"):
        resize(*example(), size)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("boxes", torch.zeros(0)),
        ("boxes", torch.zeros(4)),
        ("masks", torch.zeros(2, 20, 12, dtype=torch.uint8)),
        ("masks", torch.zeros(1, 12, 20, dtype=torch.uint8)),
        ("keypoints", torch.zeros(2, 9)),
        ("keypoints", torch.zeros(1, 3, 3)),
    ],
)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_shapes_that_do_not_belong_together(name, field, value):
    image, target = example()
    with pytest.raises(ValueError, match=f"image 11: {field} have shape"):
        TRANSFORMS[name](image, target | {field: value})
    with pytest.raises(ValueError, match="image 11 has shape"):
        TRANSFORMS[name](image[0], target)


# Random ones


def test_random_flip(generator):
    image, target = example()
    assert all(random_flip(image, target, generator, 0.0)[1] is target for _ in range(20))
    assert all(
        same(random_flip(image, target, generator, 1.0, PAIRS)[1], hflip(image, target, PAIRS)[1])
        for _ in range(20)
    )
    flips = sum(random_flip(image, target, generator, 0.25, PAIRS)[1] is not target for _ in range(2000))
    assert 400 < flips < 600  # 500 +- 5 standard deviations of 19


def test_random_scale(generator):
    image, target = example(40, 60)
    heights, widths = [], []
    for _ in range(300):
        new_image, new = random_scale(image, target, generator, 0.5, 2.0)
        H, W = new_image.shape[1:]
        ratio = torch.tensor([W / 60, H / 40, W / 60, H / 40])
        torch.testing.assert_close(new["boxes"], target["boxes"] * ratio)
        assert abs(H / 40 - W / 60) < 0.5 / 40 + 0.5 / 60 + 1e-6  # one factor for both, but for rounding
        heights.append(H)
        widths.append(W)
    assert min(heights) < 23 and max(heights) > 76 and 46 < sum(heights) / 300 < 54  # uniform in 20..80
    assert random_scale(image, target, generator, 1, 1)[1] is target


def test_random_scale_leaves_a_pixel(generator):
    image, target = empty(3, 2)
    assert random_scale(image, target, generator, 0.01, 0.01)[0].shape == (3, 1, 1)


def test_draws_do_not_depend_on_settings(generator):
    image, target = example()
    states = []
    for augment in (Augment(), Augment(flip=0.0, scale=(1, 1)), Augment(flip=1.0, scale=(2, 2))):
        generator.manual_seed(5)
        augment(image, target, generator)
        states.append(torch.rand((), generator=generator).item())
    assert states[0] == states[1] == states[2]


def test_augment_repeats_with_its_seed_and_varies_without():
    image, target = example(60, 100)
    augment = Augment(flip_pairs=PAIRS)
    draw = lambda seed: augment(image, target, torch.Generator().manual_seed(seed))  # noqa: E731
    assert torch.equal(draw(3)[0], draw(3)[0]) and same(draw(3)[1], draw(3)[1])
    assert len({tuple(draw(seed)[1]["boxes"].flatten().tolist()) for seed in range(20)}) > 15
    sizes = [draw(seed)[0].shape[2] for seed in range(60)]
    assert 80 <= min(sizes) < 85 and 120 < max(sizes) <= 125


@pytest.mark.parametrize(
    "wrong",
    [
        {"flip": -0.1},
        {"flip": 1.5},
        {"flip": float("nan")},
        {"scale": (0, 1)},
        {"scale": (2, 1)},
        {"scale": (1, float("inf"))},
        {"scale": (1,)},
    ],
)
def test_wrong_augment(wrong):
    with pytest.raises(ValueError, match="give"):
        Augment(**wrong)


def test_a_seed_is_no_generator():
    with pytest.raises(ValueError, match="torch.Generator"):
        Augment()(*example(), 3)


def test_proposals_move_as_boxes_do():
    image, boxes = torch.zeros(3, 20, 40), torch.tensor([[1.0, 2, 11, 8], [30, 0, 40, 20]])
    target = {"boxes": boxes[:1], "proposals": boxes}
    flipped = hflip(image, target)[1]["proposals"]
    assert flipped.tolist() == [[29, 2, 39, 8], [0, 0, 10, 20]]
    halved = resize(image, target, (10, 20))[1]["proposals"]
    assert torch.equal(halved, boxes / 2)
