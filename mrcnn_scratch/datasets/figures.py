"""Articulated figures of class person with COCO's 17 keypoints.

A figure is a chain of joints in a random pose, facing the viewer or turned away, painted part by part from
back to front. Every joint has a marker with a part number of its own (joint j is part j + 1), so whether
the figure
itself hides a joint is read off the painting: it is seen while its marker is still on top at the joint.

Left and right can be told by the face (or its absence) and by shade: all that is on the figure's left is
lighter. A mirrored picture keeps the first cue and turns the second round, as a mirror does with a wrist
watch.
"""

import numpy as np

from mrcnn_scratch.datasets.render import Blob

KEYPOINT_NAMES = [
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder",
    "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip",
    "left_knee", "right_knee", "left_ankle", "right_ankle",
]  # fmt: skip
FLIP_PAIRS = [(j, j + 1) for j in range(1, 17, 2)]
# COCO's own list is 1-based; these are 0-based
SKELETON = [
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9),
    (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
]  # fmt: skip

# index of the nose, and of the left one of each pair: add the side, 0 left or 1 right
NOSE, EYE, EAR, SHOULDER, ELBOW, WRIST, HIP, KNEE, ANKLE = 0, *range(1, 17, 2)
# parts after the 17 joint markers; two rows each where the sides have their own shade
OUTLINE, HAIR, FACE, NECK, BELT, MOUTH, EYEBALL = 18, 19, 20, 21, 22, 23, 24
SHIRT, FOREARM, THIGH, SHIN, SHOE = 25, 27, 29, 31, 33
PARTS = 35

# toy choices, in standing heights: chunky limbs and a big head keep masks large and joints findable
HEAD, TORSO, UPPER_ARM, LOWER_ARM, UPPER_LEG, LOWER_LEG = 0.135, 0.27, 0.165, 0.155, 0.20, 0.19
ARM_RADIUS, LEG_RADIUS, EDGE = 0.046, 0.060, 0.012
SHOULDER_HALF, HIP_HALF = 0.155, 0.085
SKIN_TONES = np.array([[250, 214, 185], [236, 188, 150], [210, 155, 115], [172, 117, 80], [128, 82, 55], [92, 60, 42]])


def _direction(angle: float) -> np.ndarray:
    """Unit vector at an angle from straight down, positive towards +x (y points down)."""
    return np.array([np.sin(angle), np.cos(angle)])


def sample_pose(rng: np.random.Generator) -> tuple[np.ndarray, bool, float]:
    """Draw the joints of one figure.

    Returns joints (17, 2) float64 in standing heights, pelvis at the origin, y down; whether it faces the
    viewer (its left is then at +x, as in a photograph); and the turn of its head in radians, positive when
    the nose moves to +x.
    """
    faces = bool(rng.random() < 0.8)
    turn = rng.uniform(-0.75, 0.75)
    sides = (1, -1) if faces else (-1, 1)  # which way +x is for the left and the right
    joints = np.zeros((17, 2))
    up = -_direction(rng.uniform(-0.15, 0.15))
    across = np.array([-up[1], up[0]])  # +x for an upright figure
    narrow = np.cos(turn * 0.6)
    chest = TORSO * up
    head = chest + (HEAD + 0.035) * up
    tilt = rng.uniform(-0.15, 0.15)
    head_up = np.cos(tilt) * up + np.sin(tilt) * across
    head_across = np.array([-head_up[1], head_up[0]])
    joints[NOSE] = head + head_across * HEAD * 0.8 * np.sin(turn) - head_up * 0.035
    for side, d in enumerate(sides):
        joints[EYE + side] = head + head_across * HEAD * 0.92 * np.sin(turn + 0.42 * d) + head_up * 0.012
        joints[EAR + side] = head + head_across * HEAD * 0.98 * d * np.cos(turn) - head_up * 0.01
        joints[SHOULDER + side] = chest + across * d * SHOULDER_HALF * narrow
        joints[HIP + side] = across * d * HIP_HALF * narrow
        upper = rng.uniform(0.15, 1.0) if rng.random() < 0.65 else rng.uniform(1.0, 2.5)
        lower = upper + rng.uniform(-1.3, 1.3)
        joints[ELBOW + side] = joints[SHOULDER + side] + UPPER_ARM * _direction(upper) * [d, 1]
        joints[WRIST + side] = joints[ELBOW + side] + LOWER_ARM * _direction(lower) * [d, 1]
        thigh = rng.uniform(0.0, 0.5)
        shin = thigh - rng.uniform(-0.15, 0.6)
        joints[KNEE + side] = joints[HIP + side] + UPPER_LEG * _direction(thigh) * [d, 1]
        joints[ANKLE + side] = joints[KNEE + side] + LOWER_LEG * _direction(shin) * [d, 1]
    roll = rng.uniform(-0.3, 0.3)
    return joints @ np.array([[np.cos(roll), np.sin(roll)], [-np.sin(roll), np.cos(roll)]]), faces, turn


def _marker(joints: np.ndarray, joint: int, radius: float) -> Blob:
    return Blob(joint + 1, joints[joint : joint + 1], radius)


def _limb(joints: np.ndarray, chain: list[int], parts: list[int], radius: float, tip: float) -> list[Blob]:
    """Outline first for the whole limb, then fills, then markers: no dark line inside the limb."""
    root, middle, end = joints[chain]
    bones = [np.stack([root, middle]), np.stack([middle, end])]
    blobs = [Blob(OUTLINE, bone, radius + EDGE) for bone in bones] + [Blob(OUTLINE, end[None], tip + EDGE)]
    blobs += [Blob(part, bone, radius) for part, bone in zip(parts, bones, strict=True)]
    return blobs + [_marker(joints, chain[1], radius * 0.85), _marker(joints, chain[2], tip)]


def _legs(joints: np.ndarray, rng: np.random.Generator) -> list[Blob]:
    blobs = []
    for side in (0, 1) if rng.random() < 0.5 else (1, 0):
        ankle = joints[ANKLE + side]
        outward = 1.0 if joints[HIP + side][0] > joints[HIP + 1 - side][0] else -1.0
        foot = np.stack([ankle + [0, 0.03], ankle + [outward * 0.06, 0.035]])
        blobs += [Blob(OUTLINE, foot, 0.036 + EDGE)]
        chain = [HIP + side, KNEE + side, ANKLE + side]
        blobs += _limb(joints, chain, [THIGH + side, SHIN + side], LEG_RADIUS, 0.048)
        blobs += [Blob(SHOE + side, foot, 0.036), _marker(joints, ANKLE + side, 0.042)]
    return blobs


def _torso(joints: np.ndarray) -> list[Blob]:
    shoulders, hips = joints[SHOULDER : SHOULDER + 2], joints[HIP : HIP + 2]
    top, bottom = shoulders.mean(0), hips.mean(0)
    neck = np.stack([top, top + (top - bottom) * 0.18])
    flanks = [joints[[SHOULDER + s, HIP + s]] for s in (0, 1)]
    edges = [shoulders, hips, *flanks]
    blobs = [Blob(OUTLINE, neck, 0.04 + EDGE), Blob(NECK, neck, 0.04)]
    blobs += [Blob(OUTLINE, edge, 0.05 + EDGE) for edge in edges]
    for s, flank in enumerate(flanks):
        blobs += [Blob(SHIRT + s, np.stack([top, flank[0]]), 0.05), Blob(SHIRT + s, flank, 0.05)]
        blobs += [Blob(SHIRT + s, np.stack([top, *flank, bottom]))]
    blobs += [Blob(BELT, hips, 0.05)] + [_marker(joints, HIP + s, 0.045) for s in (0, 1)]
    return blobs + [_marker(joints, SHOULDER + s, 0.05) for s in (0, 1)]


def _head(joints: np.ndarray, faces: bool, turn: float) -> list[Blob]:
    ears, eyes = joints[EAR : EAR + 2], joints[EYE : EYE + 2]
    centre = ears.mean(0)
    up = joints[SHOULDER : SHOULDER + 2].mean(0) - joints[HIP : HIP + 2].mean(0)
    up /= np.linalg.norm(up)
    # a nose turned to +x takes the ear on that side behind the head, or forward in a head seen from behind
    leftmost = int(np.argmin(ears[:, 0]))
    far = 1 - leftmost if (turn > 0) == faces else leftmost
    near = [s for s in (0, 1) if s != far or abs(turn) < 0.4]
    ear_blobs = [Blob(OUTLINE, ears[s][None], 0.034 + EDGE) for s in near] + [
        _marker(joints, EAR + s, 0.034) for s in near
    ]
    skull = [Blob(OUTLINE, (centre + up * lift)[None], HEAD + EDGE) for lift in (0.012, 0.0)]
    hair = [Blob(HAIR, (centre + up * lift)[None], HEAD) for lift in (0.012, 0.0)]
    if not faces:
        hidden = [_marker(joints, j, 0.02) for j in (NOSE, EYE, EYE + 1)]
        return [*skull, *hidden, *hair, *ear_blobs]
    beside = np.array([-up[1], up[0]]) * 0.03
    mouth = joints[NOSE] - up * 0.05 + np.stack([-beside, beside])
    blobs = [*skull, hair[0], Blob(FACE, (centre - up * 0.02)[None], HEAD - 0.018), *ear_blobs]
    blobs += [Blob(MOUTH, mouth, 0.011)] + [Blob(EYEBALL, eye[None], 0.03) for eye in eyes]
    return blobs + [_marker(joints, j, r) for j, r in ((EYE, 0.018), (EYE + 1, 0.018), (NOSE, 0.022))]


def figure_blobs(rng: np.random.Generator) -> tuple[list[Blob], np.ndarray]:
    """Draw one person in a random pose.

    Returns parts in painting order for draw_sprite, and the joints (17, 2) float64, both in standing heights.
    """
    joints, faces, turn = sample_pose(rng)
    arms = [
        _limb(joints, [SHOULDER + s, ELBOW + s, WRIST + s], [SHIRT + s, FOREARM + s], ARM_RADIUS, 0.052) for s in (0, 1)
    ]
    in_front = rng.random(2) < (0.85 if faces else 0.3)
    blobs = [blob for s in (0, 1) if not in_front[s] for blob in arms[s]]
    blobs += _legs(joints, rng) + _torso(joints) + _head(joints, faces, turn)
    for s in (0, 1):
        if in_front[s]:
            blobs += arms[s] + [_marker(joints, SHOULDER + s, ARM_RADIUS)]
    return blobs, joints


def figure_palette(rng: np.random.Generator, shirt: np.ndarray) -> np.ndarray:
    """Colours of one person: every part on its left is lighter than its fellow on the right.

    shirt: (3,) RGB, 0 to 255, a colour that stands out from the background.
    Returns (35, 3) uint8, one row a part.
    """
    skin = SKIN_TONES[rng.integers(len(SKIN_TONES))] * rng.uniform(0.94, 1.04)
    hair = rng.uniform(15, 110) * np.array([1.0, 0.8, 0.6])
    trousers, shoe, accent = rng.uniform(30, 220, 3), rng.uniform(20, 120, 3), rng.uniform(60, 250, 3)
    middle = {OUTLINE: [22, 20, 26], HAIR: hair, FACE: skin, NECK: skin * 0.85, BELT: [40, 34, 30]}
    middle |= {MOUTH: [150, 50, 50], EYEBALL: [250, 250, 245], NOSE + 1: skin * 0.6}
    sides = {SHIRT: shirt, SHOULDER + 1: shirt, FOREARM: skin, WRIST + 1: skin, EAR + 1: skin}
    sides |= {THIGH: trousers, SHIN: trousers * 0.8, SHOE: shoe, ANKLE + 1: shoe}
    sides |= {ELBOW + 1: accent, KNEE + 1: accent, HIP + 1: accent}
    palette = np.zeros((PARTS, 3))
    for part, colour in middle.items():
        palette[part] = colour
    for part, colour in sides.items():
        palette[part] = colour * 0.72 + 255 * 0.28
        palette[part + 1] = colour * 0.68
    palette[EYE + 1] = 60, 60, 150  # a blue and a black eye
    palette[EYE + 2] = 20, 20, 20
    return palette.clip(0, 255).astype(np.uint8)
