# %% [markdown]
# # 09 · From Python to a GPU kernel
#
# **Goal.** Take RoIAlign from plain Python loops to a compiled CPU kernel, and from there to a CUDA kernel with one
# thread for each number. The same numbers come out four times; the time for one falls from microseconds to nanoseconds,
# and on a GPU to picoseconds.
#
# **Minutes.** Under 1 of computing on two CPU cores, about 40 of reading and writing. **Seed.** 0. No GPU is needed:
# where there is none, the CUDA kernel runs in Numba's simulator. Nothing is downloaded.

# %%
import inspect
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import PowerNorm
from matplotlib_inline.backend_inline import set_matplotlib_formats
from numba import njit, prange, set_num_threads

from mrcnn_scratch import roi_align
from mrcnn_scratch.course.checks import check_align_numba, check_thread_place
from mrcnn_scratch.visualize.kernels import show_threads, time_bars

set_matplotlib_formats("png")


def bilinear_at(plane, y, x):
    """What notebook 08 built, for one channel (H, W) and one point in index space: plain numbers and ifs."""
    H, W = plane.shape
    if y < -1 or y > H or x < -1 or x > W:
        return 0.0
    y, x = min(max(y, 0.0), H - 1.0), min(max(x, 0.0), W - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, H - 1), min(left + 1, W - 1)
    fy, fx = y - top, x - left
    upper = (1 - fx) * plane[top, left] + fx * plane[top, right]
    lower = (1 - fx) * plane[bottom, left] + fx * plane[bottom, right]
    return (1 - fy) * upper + fy * lower


bilinear = njit(bilinear_at)  # the same, compiled at its first call

# %% [markdown]
# ## What there is to compute
#
# A detector with a feature pyramid pools 512 RoIs a training image, 256 channels, 7 x 7 bins, 2 x 2 samples a bin, four
# cells a sample. Let us count what RoIAlign reads. `bilinear_at` in the first cell is the innermost step, as you know
# it from notebook 08, but written for one number: no tensors, only loops, ifs and indexing. Python is slow at exactly
# that, and compilers are good at exactly that.

# %%
outputs = 512 * 256 * 7 * 7
print(f"{outputs:,} outputs, {outputs * 4:,} samples, {outputs * 16:,} cells read")

# %% [markdown]
# **Numba** translates a Python function into machine code when it is first called, for the types that it is called
# with. `njit` refuses what it cannot translate to plain machine code: NumPy arrays, numbers and loops are fine; torch
# tensors and most classes are not. `prange` in place of `range` shares a loop between threads.
#
# ## Predict
#
# 1. **How many times as fast is the compiled loop as the same loop in Python: about 2, 10, or more than 50?**
# 2. In a backward pass bins *add* to cells, and bins share cells. Suppose 32 threads read, add and write in step.
#    **What share of the gradient of a small RoI is lost: 0.0, 0.1 or 0.8?**

# %%
guess_times = 10  # 2, 10 or 50
guess_lost = 0.1  # 0.0, 0.1 or 0.8

# %% [markdown]
# ## Exercise 1: `my_align_numba`
#
# RoIAlign of one map, in loops: over RoIs, channels, rows and columns of bins, and the `ratio` x `ratio` samples of
# each bin. A sample is read with `bilinear(plane, y, x)`. Make the outermost loop a `prange`, and write no decorator:
# the check first runs the function as plain Python, which gives readable errors, and then compiles it, for one thread
# and for several.
#
# <details><summary>Hint 1: where a sample lies</summary>
#
# In cells the RoI begins at x1 * scale - 0.5 (the half cell of notebook 08) and is (x2 - x1) * scale wide. Sample j of
# bin q lies at the share (q + (j + 0.5) / ratio) / w of that width.
#
# </details>
#
# <details><summary>Hint 2: what Numba wants</summary>
#
# `out = np.zeros((R, C, h, w), features.dtype)` at the top, then `out[r, c, p, q] = ...`. Begin the sum of a bin at
# 0.0 *inside* the loops: a number that is set inside a `prange` belongs to one thread.
#
# </details>

# %% tags=["exercise"]
def my_align_numba(features, boxes, h: int, w: int, scale: float, ratio: int):
    """RoIAlign: map (C, H, W) float32, boxes (R, 4) xyxy in image pixels, both NumPy -> (R, C, h, w) float32.

    Of the ramp np.arange(25).reshape(1, 5, 5) the RoI [1, 1, 3, 3] with 4 x 4 bins, scale 1, begins 4.5, 5, 5.5, 6.
    """
    ### BEGIN SOLUTION
    R, C = len(boxes), len(features)
    out = np.zeros((R, C, h, w), features.dtype)
    for r in prange(R):
        x1, y1, x2, y2 = boxes[r] * scale  # cells, continuous
        for c in range(C):
            for p in range(h):
                for q in range(w):
                    total = 0.0
                    for i in range(ratio):
                        y = y1 - 0.5 + (y2 - y1) * (p + (i + 0.5) / ratio) / h
                        for j in range(ratio):
                            x = x1 - 0.5 + (x2 - x1) * (q + (j + 0.5) / ratio) / w
                            total += bilinear(features[c], y, x)
                    out[r, c, p, q] = total / ratio**2
    return out
    ### END SOLUTION


# %%
check_align_numba(my_align_numba)

# %% [markdown]
# The package's versions stand behind one function, `roi_align(..., backend=...)`. "reference" is plain loops, meant to
# be read. "torch" has no loops: it is a lookup in a table of cells (`roi_ops/vectorized.py`). "numba" is compiled
# loops, like yours, and does more: it finds the cells and weights of a bin once for all its channels, and walks
# channels in the innermost loop, where a channels_last map has them side by side in memory.
#
# ## From a loop to threads
#
# A GPU has no loop over outputs. It starts a **thread** for each, thousands at once, all running the same function, the
# **kernel**. A thread knows its number and nothing else; from that it must work out what to do. Threads come in
# **blocks** (here of 128), and run in **warps** of 32 that do the same instruction in step.

# ### The smallest example, by hand
#
# 2 RoIs, 3 channels, 2 x 4 bins: 48 outputs, which lie in memory as (R, C, h, w), the columns of bins fastest. What is
# thread **29** to do? 29 = 7 x 4 + **1**: column **1**, and 7 rows of bins lie before. 7 = 3 x 2 + **1**: row **1**,
# and 3 planes before. 3 = 1 x 3 + **0**: channel **0**, of RoI **1**. Quotients and remainders, from the last axis to
# the first. The picture has all 48; the colour says which warp. The second warp begins in RoI 1, at its channel 1:
# warps know nothing of RoIs.

# %%
show_threads(rois=2, channels=3, bins=(2, 4), marked=29)

# %% [markdown]
# ## Exercise 2: `my_thread_place`
#
# The same for any sizes. Whole numbers only, for a kernel is to run it: no NumPy function, no float.
#
# <details><summary>Hint 1</summary>
#
# `index % w` is the column, `index // w` counts the rows of bins before it. Go on with that number.
#
# </details>
#
# <details><summary>Hint 2: what is left for the RoI</summary>
#
# The RoI takes no remainder: there is nothing to its left. What is left after dividing by C, h and w is its number.
#
# </details>

# %% tags=["exercise"]
def my_thread_place(index: int, C: int, h: int, w: int) -> tuple:
    """The output that thread `index` works on: RoI r, channel c, row p and column q of the bin, of (R, C, h, w).

    Thread 29 of RoIs with 3 channels and 2 x 4 bins: (1, 0, 1, 1).
    """
    ### BEGIN SOLUTION
    q, rest = index % w, index // w
    p, rest = rest % h, rest // h
    return rest // C, rest % C, p, q
    ### END SOLUTION


# %%
check_thread_place(my_thread_place)

# %% [markdown]
# ## One output, three times the same source
#
# Below is what one thread does, from its number to its output. It stands in a factory, a function that makes it, since
# it calls `bilinear`: plain, compiled for the CPU, or compiled for the GPU, whatever it is given. The package's kernels
# are built so, too (`roi_ops/numba_cuda/`), though their threads share more work: each has four channels of a bin.

# %%
def make_one_output(bilinear):
    def one_output(index, features, boxes, out, scale, ratio):
        R, C, h, w = out.shape
        q, p, c, r = index % w, index // w % h, index // (w * h) % C, index // (w * h * C)
        x1, y1, x2, y2 = boxes[r, 0] * scale, boxes[r, 1] * scale, boxes[r, 2] * scale, boxes[r, 3] * scale
        total = 0.0
        for i in range(ratio):
            y = y1 - 0.5 + (y2 - y1) * (p + (i + 0.5) / ratio) / h
            for j in range(ratio):
                x = x1 - 0.5 + (x2 - x1) * (q + (j + 0.5) / ratio) / w
                total += bilinear(features[c], y, x)
        out[r, c, p, q] = total / (ratio * ratio)

    return one_output


# %% [markdown]
# On a CPU somebody has to call it for every index: a loop, plain or compiled. The compiled one is `prange` over *all*
# outputs, so this is already the GPU's way of thinking, with two threads in place of thousands.

# %%
one_plain, one_compiled = make_one_output(bilinear_at), njit(make_one_output(bilinear))


def align_plain(features, boxes, out, scale, ratio):
    for index in range(out.size):
        one_plain(index, features, boxes, out, scale, ratio)


@njit(parallel=True)
def align_cpu(features, boxes, out, scale, ratio):
    for index in prange(out.size):
        one_compiled(index, features, boxes, out, scale, ratio)


# %% [markdown]
# On a GPU the loop is gone. `cuda.grid(1)` is the thread's number. What remains is one `if`: threads come in whole
# blocks of 128, 420 outputs need four blocks, and that makes 512 threads. The last 92 have no output, and without the
# `if` they would write beyond the end of the array. A GPU does not complain about that; it overwrites something else.

# %%
from numba import cuda


def align_kernel(features, boxes, out, scale, ratio):
    index = cuda.grid(1)
    if index < out.size:
        one_output(index, features, boxes, out, scale, ratio)  # noqa: F821 - named in the script below


# %% [markdown]
# ## Where there is no GPU
#
# Numba can *simulate* CUDA: every thread of a block becomes a thread of Python, and the kernel runs as plain Python.
# That is slow, and it shows whether the arithmetic is right. Two things bite. The switch `NUMBA_ENABLE_CUDASIM=1` is
# read when Numba is imported and holds for the whole process, so it needs a process of its own. And in that process
# `cuda.is_available()` says True, GPU or not. So the functions above become a small script, and it is torch that we ask
# for a GPU; with one, the same script runs there.

# %%
SCRIPT = f"""
import sys, time
import numpy as np
np.row_stack = getattr(np, "row_stack", np.vstack)  # numba-cuda 0.30 asks for it, NumPy 2.5 no longer has it
from numba import cuda

{inspect.getsource(bilinear_at)}
{inspect.getsource(make_one_output)}
{inspect.getsource(align_kernel)}
one_output = cuda.jit(device=True)(make_one_output(cuda.jit(device=True)(bilinear_at)))
kernel = cuda.jit(align_kernel)
case = np.load(sys.argv[1])
features, boxes, scale, ratio = case["features"], case["boxes"], float(case["scale"]), int(case["ratio"])
out = np.zeros(tuple(case["shape"]), np.float32)
blocks, threads = -(-out.size // 128), 128
kernel[blocks, threads](features, boxes, out, scale, ratio)  # compiles, and copies there and back
began = time.perf_counter()
kernel[blocks, threads](features, boxes, out, scale, ratio)
np.savez(sys.argv[1], out=out, seconds=time.perf_counter() - began)
"""


# %%
def align_cuda(features, boxes, shape, scale, ratio):
    """(R, C, h, w) and the seconds of a launch, by the script in a process of its own."""
    simulated = {} if torch.cuda.is_available() else {"NUMBA_ENABLE_CUDASIM": "1"}
    with tempfile.TemporaryDirectory() as folder:
        script, case = Path(folder) / "script.py", Path(folder) / "case.npz"
        script.write_text(SCRIPT)
        np.savez(case, features=features, boxes=boxes, shape=shape, scale=scale, ratio=ratio)
        command = [sys.executable, str(script), str(case)]
        done = subprocess.run(command, env=os.environ | simulated, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        result = np.load(case)
        return result["out"], float(result["seconds"])


# %% [markdown]
# ## The same numbers, four times
#
# 3 RoIs, 4 channels, 5 x 7 bins of a map of 12 x 20 cells at stride 8: 420 outputs, few enough for the simulator. The
# first RoI hangs over the left border, the last is smaller than a cell.

# %%
generator = torch.Generator().manual_seed(0)
features = torch.randn(4, 12, 20, generator=generator)
boxes = torch.tensor([[-10.0, 5.0, 60.0, 71.0], [30.0, 8.5, 150.0, 90.0], [100.0, 40.0, 105.0, 46.0]])
case = (features.numpy(), boxes.numpy())
shape, scale = (3, 4, 5, 7), 1 / 8
results = {"plain Python": np.zeros(shape, np.float32), "Numba, CPU": np.zeros(shape, np.float32)}
align_plain(*case, results["plain Python"], scale, 2)
align_cpu(*case, results["Numba, CPU"], scale, 2)
results["torch, vectorised"] = roi_align(features[None], [boxes], (5, 7), scale, backend="torch").numpy()
results["Numba, CUDA"], simulated_seconds = align_cuda(*case, shape, scale, 2)
for name, out in results.items():
    assert np.abs(out - results["plain Python"]).max() < 1e-5, name
    print(f"{name:18}", *(f"{number:8.4f}" for number in out[1, 2, 3]))

# %% [markdown]
# One row of bins, four ways, and all 420 outputs agree within 1e-5, as the assertion says. They need not agree to the
# last bit: sums in another order are rounded otherwise, and our loops compute in double precision what torch computes
# in single.
#
# ## What it costs
#
# Time for one output on *one* CPU core, so that the bars compare: 100 RoIs, 32 channels, 7 x 7 bins. The plain loop
# gets a small part of it, or we would wait. The simulator's bar is not the speed of anything: it is Python that
# pretends to be a GPU. The line is a real one, an NVIDIA H100, for 1,000 RoIs, 256 channels and 7 x 7 bins, by the
# package's kernel ([measured](../benchmarks/results/roi_ops-cuda.md): 0.153 ms for 12.5 million outputs).

# %%
def nanoseconds(function, outputs, repeats=10):
    """The best of a few runs, per output; the first run, which compiles, is not counted."""
    function()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - began)
    return min(seconds) / outputs * 1e9


features = torch.randn(32, 50, 84, generator=generator)
corner = torch.rand(100, 2, generator=generator) * torch.tensor([900.0, 500.0])
boxes = torch.cat([corner, corner + 60 + 300 * torch.rand(100, 2, generator=generator)], dim=1)
few, many = np.zeros((1, 4, 7, 7), np.float32), np.zeros((100, 32, 7, 7), np.float32)
case, small = (features.numpy(), boxes.numpy()), (features.numpy()[:4].copy(), boxes.numpy()[:1])

# %% tags=["nbval-ignore-output"]
torch.set_num_threads(1)  # the package's kernels follow it
set_num_threads(1)  # Numba's own
times = {"plain Python loop": nanoseconds(lambda: align_plain(*small, few, 1 / 16, 2), few.size)}
times["the same loop, Numba"] = nanoseconds(lambda: align_cpu(*case, many, 1 / 16, 2), many.size)
last = features[None].to(memory_format=torch.channels_last)
for name, x, backend in (
    ("torch, vectorised", features[None], "torch"),
    ("package's Numba", features[None], "numba"),
    ("... channels_last", last, "numba"),
):
    run = partial(roi_align, x, [boxes], 7, 1 / 16, backend=backend)
    times[name] = nanoseconds(run, many.size)
gpu = torch.cuda.is_available()
times["our CUDA kernel" if gpu else "our CUDA kernel, simulated"] = simulated_seconds / 420 * 1e9
faster = times["plain Python loop"] / times["the same loop, Numba"]
print(f"You guessed {guess_times}; compiled, the loop is {faster:.0f} times as fast.")
time_bars(times, reference=0.153e6 / 12.544e6, reference_name="NVIDIA H100, package's kernel")

# %% [markdown]
# On the machine that made this page: compiling gains two orders of magnitude, without a new idea. torch is twice as
# fast again, since it finds the cells and weights of a bin once for all 32 channels, where our loop does it for each.
# The package's compiled loops do so, too, but keep what they find in the cache, and their innermost loop walks channels
# that lie side by side in memory, which the compiler turns into vector instructions: another five to ten times. One
# H100 is some 300 times as fast as that core.
#
# ## On a real GPU
#
# Four things come on top; the package's `_numba_cuda.py` and `roi_ops/numba_cuda/` take care of them. *Streams*: torch
# and Numba each have a queue of work for the GPU, and a kernel in Numba's may run before torch has written its input.
# The package starts kernels on torch's current stream. *Memory*: tensors are handed over without a copy, detached and
# contiguous; our script copies there and back. *Precision*: `0.5` is a double, and so is all that it meets; the package
# casts every literal. *Neighbours*: the lanes of a warp should read neighbours in memory. Our lanes are bins, whose
# cells are scattered. With channels_last they are channels, and a warp reads whole cache lines: 0.113 ms, not 0.153.

# %% [markdown]
# ## Break it
#
# Forward, every thread writes to a place of its own. Backward, a thread *adds* its gradient to the cells that it read,
# and threads share cells. The planted bug is `total[cells] += weights`: all read the old value, all add, all write, and
# of those that meet in one cell the last one wins. NumPy does that with equal indices, torch too, and a GPU with the
# lanes of a warp. We imitate warps of 32 threads in step. Every output sends back a gradient of 1, so each RoI should
# return 49. **Before you run it: which RoI loses most, and why?**

# %%
from mrcnn_scratch.roi_ops.reference.sampling import bin_samples

rois = torch.tensor([[4.0, 8.0, 204.0, 136.0], [216.0, 8.0, 296.0, 72.0], [240.0, 100.0, 264.0, 124.0]])  # stride 16
H, W, names = 10, 20, ("large", "middle", "small")


def what_threads_add(roi):
    """cells (49, 16) and weights (49, 16): thread by thread, what a backward pass adds, and where."""
    bins = [bin_samples(roi.tolist(), p, q, (7, 7), (H, W), 1 / 16, 2, "aligned") for p in range(7) for q in range(7)]
    reads = torch.tensor([[read for sample in each for read in sample] for each in bins])  # (49, 16, 3)
    return (reads[..., 0] * W + reads[..., 1]).long().numpy(), (reads[..., 2] / 4).numpy()


# %%
right, broken = np.zeros(H * W), np.zeros(H * W)
for name, roi in zip(names, rois, strict=True):
    cells, weights = what_threads_add(roi)
    before = broken.sum()
    for first in (0, 32):  # two warps
        for step in range(16):  # in step: one sample's one cell after the other
            lanes = slice(first, first + 32)
            np.add.at(right, cells[lanes, step], weights[lanes, step])  # one after the other: nothing is lost
            broken[cells[lanes, step]] += weights[lanes, step]  # the bug
    lost = 1 - (broken.sum() - before) / 49
    print(f"{name:6} RoI: {len(np.unique(cells)):3} cells, lost {lost:.2f} of its gradient")
print(f"You guessed {guess_lost} for a small RoI; it is {lost:.2f}.")

# %%
_, panels = plt.subplots(1, 2, figsize=(9, 2.6), dpi=80, layout="constrained", sharey=True)
titles = ("one after the other", "read, add, write in step")
for panel, total, title in zip(panels, (right, broken), titles, strict=True):
    norm = PowerNorm(0.5, 0, right.max())  # a square root, or the large RoI would be black
    shown = panel.imshow(total.reshape(H, W), cmap="magma", norm=norm, extent=(0, W, H, 0))
    panel.set_title(f"{title}: sum {total.sum():.0f} of 147", fontsize=10)
    panel.set(xlabel="x, cells", xticks=range(0, W + 1, 5), yticks=range(0, H + 1, 5))
panels[0].set_ylabel("y, cells")
_ = plt.colorbar(shown, ax=panels, label="gradient", ticks=(0, 1, 5, 10))

# %% [markdown]
# The large RoI loses nothing: its bins are larger than a cell, so at any step 32 lanes add to 32 cells. The small one
# has 49 bins in 12 cells, most lanes meet, and five sixths of its gradient are gone. No error, no NaN, and the features
# of small objects learn a sixth of what they should. (On a GPU it also differs from run to run: warps overtake each
# other.)
#
# The cure is an **atomic** addition, `cuda.atomic.add(total, cell, weight)`: read, add and write as one step that
# nobody interrupts. NumPy's is `np.add.at`, torch's `index_add_`. What stays is the *order*, which the GPU takes as it
# comes, and rounding depends on it: two runs differ in the last bits. On a CPU the package needs no atomics, for a
# thread owns a band of rows of the gradient. On a GPU it does likewise when torch is asked for deterministic
# algorithms.

# %% [markdown]
# ## Quiz
#
# **1.** 1,000 outputs, blocks of 256 threads. How many blocks, and how many threads have nothing to do?
#
# <details><summary>Answer</summary>
#
# 4 blocks, 1,024 threads, 24 with nothing to do. Without the `if` they write where nothing of theirs is.
#
# </details>
#
# **2.** `NUMBA_ENABLE_CUDASIM` is set in the second cell of a notebook whose first cell imported Numba. What happens?
#
# <details><summary>Answer</summary>
#
# Nothing: it was read at the import. And where it was set in time, `cuda.is_available()` is True without a GPU, so a
# program must not ask that for permission.
#
# </details>
#
# **3.** A kernel is right in the simulator, and wrong now and then on the GPU, only when torch computed its input just
# before. What is it?
#
# <details><summary>Answer</summary>
#
# Two streams. The kernel started before the input was written: launch it on torch's current stream.
#
# </details>
#
# **4.** Two training runs with one seed on one GPU give different losses from the fifth digit on. A bug?
#
# <details><summary>Answer</summary>
#
# Not necessarily. Atomic additions come in any order, and (a + b) + c is not a + (b + c) in floating point. Compare
# with a tolerance, or ask for deterministic algorithms.
#
# </details>
#
# **5.** Thread 35 of RoIs with 3 channels and 2 x 4 bins?
#
# <details><summary>Answer</summary>
#
# (1, 1, 0, 3): 35 = 8 x 4 + 3, 8 = 4 x 2 + 0, 4 = 1 x 3 + 1. The picture has it.
#
# </details>

# %% [markdown]
# ## What you have now
#
# | you wrote | the package has | file | used again in |
# |---|---|---|---|
# | `my_align_numba` | `roi_align(backend="numba")` | [`numba_cpu`](../mrcnn_scratch/roi_ops/numba_cpu) | 10 to 13 |
# | `my_thread_place` | `channel_run` | [`threads.py`](../mrcnn_scratch/roi_ops/numba_cuda/threads.py) | any GPU |
# | (ran) a simulated kernel | the same, as tests | [`cudasim`](../tests/cudasim) | before a kernel is changed |
#
# Next: boxes that know their class. Notebook 10 builds the box head, and with it Faster R-CNN.
