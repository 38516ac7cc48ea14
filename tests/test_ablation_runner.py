"""The runner: side by side, saved at once, resumed, and nothing lost to a run that fails, is killed or interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from ablation_jobs import FakeJob, starts
from command import mrcnn

from mrcnn_scratch.ablations.runner import dask_pool, local_pool, make_runs
from mrcnn_scratch.ablations.runs import Job, Options, load, save


def jobs_of(notes: Path, does: dict | None = None, count: int = 4, **fields) -> list[FakeJob]:
    notes.mkdir(exist_ok=True)
    return [FakeJob(f"arm{i}", i, (does or {}).get(i, "work"), str(notes), **fields) for i in range(count)]


def values(jobs, out: Path) -> list[float | None]:
    found = [load(job, out) for job in jobs]
    return [run and run["measures"]["mask AP*"] for run in found]


@pytest.mark.parametrize("pool", [None, local_pool(2)], ids=["in this process", "two processes"])
def test_results_are_saved_and_not_made_twice(pool, tmp_path):
    jobs = jobs_of(tmp_path / "notes")
    save({"measures": {"mask AP*": 7.0}}, jobs[2], tmp_path)  # of an earlier command
    assert make_runs(jobs, tmp_path, pool, progress=False) == (3, [])
    assert values(jobs, tmp_path) == [0.0, 0.1, 7.0, pytest.approx(0.3)]
    assert starts(tmp_path / "notes") == {"arm0-0": 1, "arm1-1": 1, "arm3-3": 1}
    assert make_runs(jobs, tmp_path, pool, progress=False) == (0, [])
    assert sum(starts(tmp_path / "notes").values()) == 3


@pytest.mark.parametrize("pool", [None, local_pool(1)], ids=["in this process", "another process"])
def test_runs_compute_where_they_are_told_and_else_where_their_options_say(pool, tmp_path):
    """In processes of their own too: several runs share a GPU with --workers."""
    jobs = jobs_of(tmp_path / "notes", count=2, options=Options(device="cpu"))
    make_runs(jobs[:1], tmp_path, pool, progress=False, device="meta")
    make_runs(jobs[1:], tmp_path, pool, progress=False)
    assert [load(job, tmp_path)["computed on"] for job in jobs] == ["meta", "cpu"]


@pytest.mark.parametrize("pool", [None, local_pool(2)], ids=["in this process", "two processes"])
def test_a_run_that_crashes_is_reported_and_loses_no_other(pool, tmp_path):
    jobs = jobs_of(tmp_path / "notes", {0: "raise"})
    made, [failure] = make_runs(jobs, tmp_path, pool, progress=False)
    assert made == 3 and failure.job == jobs[0] and "RuntimeError: arm arm0 went wrong" in failure.error
    assert values(jobs, tmp_path) == [None, 0.1, 0.2, pytest.approx(0.3)]


def test_a_run_whose_process_is_killed_is_tried_again_and_loses_no_other(tmp_path):
    jobs = jobs_of(tmp_path / "notes", {1: "die once", 2: "die"}, count=6, seconds=0.1)
    _, [failure] = make_runs(jobs, tmp_path, local_pool(2), progress=False)
    assert failure.job == jobs[2] and "its process was killed" in failure.error
    assert [v is None for v in values(jobs, tmp_path)] == [False, False, True, False, False, False]
    assert starts(tmp_path / "notes")["arm1-1"] == 2


@pytest.mark.slow
def test_a_cluster_of_two_workers_of_which_one_is_killed(tmp_path):
    from distributed import LocalCluster

    jobs = jobs_of(tmp_path / "notes", {1: "die once", 3: "raise"}, count=6, seconds=0.2)
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, local_directory=tmp_path / "dask"
    ) as cluster:
        _, [failure] = make_runs(jobs, tmp_path, dask_pool(cluster.scheduler_address), progress=False)
    assert failure.job == jobs[3] and "went wrong" in failure.error
    assert [v is None for v in values(jobs, tmp_path)] == [False, False, False, True, False, False]
    assert starts(tmp_path / "notes")["arm1-1"] == 2
    workers = {path.name.split("-")[2] for path in (tmp_path / "notes").iterdir()}
    assert len(workers) >= 2 and str(os.getpid()) not in workers


def test_a_scheduler_that_is_not_there(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="--dask tcp://127.0.0.1:9: no scheduler answers there"):
        make_runs(jobs_of(tmp_path / "notes"), tmp_path, dask_pool("tcp://127.0.0.1:9", timeout=1), progress=False)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match=r"pip install 'mrcnn_scratch\[dask\]'"):
        dask_pool("tcp://127.0.0.1:9")


def test_a_broken_result_is_named(tmp_path):
    job = Job("table2c", "RoIPool max", 0, Options())
    job.path(tmp_path).parent.mkdir(parents=True)
    for text in ("{", '{"arm": "x"}'):
        job.path(tmp_path).write_text(text)
        with pytest.raises(ValueError, match="RoIPool-max-seed0-.*is no result of a run .*delete it"):
            load(job, tmp_path)


def test_a_result_belongs_to_its_settings(tmp_path):
    """Another number of steps, another field or other data is another run; the device and the folder are not."""
    job = Job("table2c", "RoIPool max", 0, Options())
    others = [
        Job("table2c", "RoIPool max", 0, Options(data="shapes:hard")),
        Job("table2c", "RoIPool max", 1, Options()), Job("table2c", "RoIAlign mean", 0, Options()),
        Job("table2c", "RoIPool max", 0, Options(share=0.5)),
        Job("table2c", "RoIPool max", 0, Options(fields={"mask_channels": 32})),
        Job("table2c", "RoIPool max", 0, Options(training={"lr": 0.001})),
        Job("table2c", "RoIPool max", 0, Options(images=(80, 15))),
    ]  # fmt: skip
    assert len({other.key() for other in [job, *others]}) == len(others) + 1
    assert Job("table2c", "RoIPool max", 0, Options(device="cpu")).key() == job.key()


TINY = ["--images", "8,4", "--set", "steps=3", "--set", "batch_size=2"]


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished_and_the_same_command_goes_on(tmp_path):
    """Interrupted between runs and in the middle of one; only what is missing is made then."""
    command = [sys.executable, "-m", "mrcnn_scratch", "ablate", "table2e", "--seeds", "2", "--out", str(tmp_path)]
    command += ["--images", "8,4", "--set", "batch_size=1", "--workers", "1", "--set", "steps=60"]
    hears = partial(signal.signal, signal.SIGINT, signal.default_int_handler)  # a job in the background would not
    job = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=hears)
    try:
        end = time.monotonic() + 200
        while len(list(tmp_path.glob("runs/table2e/*.json"))) < 2:
            assert job.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        os.killpg(job.pid, signal.SIGINT)  # as a terminal does it
        error = job.communicate(timeout=60)[1]
    finally:
        job.kill()
    assert job.returncode == 130
    assert "the same command goes on" in error and "Traceback" not in error
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/table2e/*.json")}
    assert 2 <= len(kept) < 6 and not (tmp_path / "table2e.json").exists()
    assert subprocess.run(command, timeout=200).returncode == 0
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/table2e/*.json")}
    assert len(after) == 6 and kept.items() <= after.items()
    arms = json.loads((tmp_path / "table2e.json").read_text())["arms"]
    assert [len(by_seed) for by_seed in arms.values()] == [2, 2, 2]


def test_a_crash_in_one_run_is_told_and_the_table_written(tmp_path, capsys, monkeypatch):
    from mrcnn_scratch.ablations import oracle_runs

    train = oracle_runs.train

    def fails_for_the_fcn(net, *arguments, **keywords):
        if type(net.mask_head).__name__ == "MaskHead":
            raise RuntimeError("out of luck")
        return train(net, *arguments, **keywords)

    monkeypatch.setattr(oracle_runs, "train", fails_for_the_fcn)
    monkeypatch.setattr("mrcnn_scratch.ablations.runner.local_pool", lambda *_: None)
    assert mrcnn("ablate", "table2e", "--seeds", 1, *TINY, "--out", tmp_path) == 2
    told = capsys.readouterr()
    assert "1 of 3 runs failed" in told.err and "out of luck" in told.out + told.err
    result = json.loads((tmp_path / "table2e.json").read_text())
    assert [len(by_seed) for by_seed in result["arms"].values()] == [1, 1, 0]
    [failure] = result["failures"]
    assert failure["arm"] == "FCN" and "out of luck" in failure["error"]
    assert all(comparison["difference"] is None for comparison in result["comparisons"])
