"""Makes a table's runs: side by side where there is room, each saved at once, none lost to another's failure."""

import multiprocessing
import os
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, ProcessPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ..distributed import current
from .runs import Job, load, made_by, save

ATTEMPTS = 2  # of a run whose process is killed with no other beside it: memory may be free again
_stop = None  # set in a worker process: the parent's wish to end


@dataclass(frozen=True)
class Failure:
    """A run that gave no result."""

    job: Job
    error: str  # a traceback, or what is known


def make_runs(
    jobs: list[Job],
    out: Path,
    pool: Callable[[], Executor] | None,
    progress: bool = True,
    device: str | None = None,
) -> tuple[int, list[Failure]]:
    """Makes the runs that are not there yet, and saves each when it ends.

    Args:
        jobs: of one or more tables.
        out: holds ``runs/``, the results of earlier runs included.
        pool: makes an executor like those of ``concurrent.futures``: processes of this machine, a cluster's; made
            anew when one breaks. None runs one after the other in this process.
        progress: show a bar with the time left.
        device: where each run computes, in whichever process; None: the jobs' own.

    Returns:
        how many were made, and the runs that failed; the others are saved.

    Raises:
        KeyboardInterrupt: what is finished is saved; the same call goes on from there.
    """
    missing = [job for job in jobs if load(job, out) is None]
    missing.sort(key=lambda job: -job.cost())  # the longest first: the end is not one long run
    bar = tqdm(
        total=sum(job.cost() for job in missing), desc=f"{len(missing)} runs", disable=not progress or not missing,
        dynamic_ncols=True, bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left{postfix}",
    )  # fmt: skip
    failures, done = [], 0
    try:
        with bar, closing(_outcomes(missing, out, pool, device)) as outcomes:
            for job, outcome in outcomes:
                done += 1
                name = f"{job.table}, {job.arm}, seed {job.seed}"
                if isinstance(outcome, Failure):
                    failures.append(outcome)
                    tqdm.write(f"{name} failed: {outcome.error.strip().splitlines()[-1]}", file=sys.stderr)
                elif current().is_main:
                    save(outcome, job, out)
                bar.set_postfix_str(f", {done} done, the last: {name}", refresh=False)
                bar.update(job.cost())
    except KeyboardInterrupt:
        told = f"{len(jobs) - len(missing) + done} of {len(jobs)} runs are kept in {out / 'runs'}"
        raise KeyboardInterrupt(f"{told}: the same command goes on with the others") from None
    return done - len(failures), failures


def _outcomes(jobs: list[Job], out: Path, pool, device: str | None) -> Iterator[tuple[Job, dict | Failure]]:
    """Each job with its result or its failure, as they end."""
    if pool is None:
        for job in jobs:
            yield job, _tried(job, job.path(out).with_suffix(""), device)
        return
    waiting, suspects, deaths = deque(jobs), deque(), Counter()
    while waiting or suspects:
        alone = bool(suspects)  # a process that dies takes the pool along: who did it shows when each is run alone
        queue = deque([suspects.popleft()]) if alone else waiting
        with _executor(pool) as executor:
            for job, outcome in _fed(executor, queue, device):
                if outcome is not None:
                    yield job, outcome
                    continue
                deaths[job.path(out)] += alone
                if deaths[job.path(out)] < ATTEMPTS:
                    suspects.append(job)
                else:
                    yield job, Failure(job, "its process was killed, as by the system when memory is short")
        suspects += queue if alone else ()  # not even sent: the pool was broken before


def _fed(executor: Executor, waiting: deque[Job], device: str | None) -> Iterator[tuple[Job, dict | Failure | None]]:
    """Takes jobs from the queue, as many at once as there is room for; None for one under which the pool broke."""
    room, pending, broken = getattr(executor, "room", len(waiting)), {}, False
    while True:
        while waiting and not broken and len(pending) < room:
            job = waiting.popleft()
            try:
                pending[executor.submit(_tried, job, None, device)] = job
            except BrokenExecutor:
                broken = True
                waiting.appendleft(job)
        if not pending:
            return
        for future in wait(pending, return_when=FIRST_COMPLETED).done:
            job = pending.pop(future)
            try:
                yield job, future.result()
            except BrokenExecutor:
                broken = True
                yield job, None
            except Exception:  # of the executor itself: _tried lets none through
                yield job, Failure(job, traceback.format_exc())


@contextmanager
def _executor(pool) -> Iterator[Executor]:
    """An executor that is told to stop, and not waited for, when this process is interrupted."""
    executor = pool()
    try:
        yield executor
    except BaseException as error:
        stop = getattr(executor, "stop_runs", None)
        if stop is not None:
            stop.set()
        executor.shutdown(wait=True, cancel_futures=True)
        raise error
    executor.shutdown(wait=True)


def _tried(job: Job, folder: Path | None = None, device: str | None = None) -> dict | Failure:
    """Runs a job, in whatever process this is."""
    began, device = time.perf_counter(), device or job.options.device
    try:
        result = job.run(_ask_to_stop, folder, device)
        return result | {"seconds": round(time.perf_counter() - began, 1), "made": made_by(device)}
    except Exception:
        return Failure(job, traceback.format_exc())


def _ask_to_stop(step: int, row: dict) -> None:
    if _stop is not None and _stop.is_set():
        raise KeyboardInterrupt


def local_pool(workers: int, threads: int = 1) -> Callable[[], Executor]:
    """Processes of this machine.

    Args:
        workers: how many; the cores divided by ``threads`` keep them from getting in each other's way.
        threads: of each, for torch and Numba.
    """

    def make() -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")  # a forked child must not inherit compiled kernels' threads
        stop = context.Event()
        executor = ProcessPoolExecutor(workers, context, initializer=_begin_worker, initargs=(threads, stop))
        executor.stop_runs, executor.room = stop, workers
        return executor

    return make


def _begin_worker(threads: int, stop) -> None:
    import signal

    import torch

    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the parent decides
    torch.set_num_threads(threads)


def dask_pool(address: str, timeout: float = 20) -> Callable[[], Executor]:
    """A cluster's workers; one that is killed loses nothing, its run is made by another.

    Args:
        address: of a Dask scheduler, such as tcp://10.0.0.1:8786. Its workers have this package and, for COCO, the
            same folder; start them with --nthreads 1.
        timeout: seconds to wait for the scheduler.

    Raises:
        ValueError: dask.distributed is not installed, or nobody answers.
    """
    try:
        from distributed import Client
    except ImportError:
        raise ValueError("--dask needs dask.distributed: pip install 'mrcnn_scratch[dask]'") from None

    def make() -> Executor:
        try:
            client = Client(address, timeout=timeout)
        except (OSError, TimeoutError, ValueError) as error:
            raise ValueError(f"--dask {address}: no scheduler answers there ({error})") from None
        return _Cluster(client)

    return make


class _Cluster(Executor):
    """A Dask client as an executor that ends with its connection."""

    def __init__(self, client):
        self._client, self._executor = client, client.get_executor(pure=False, retries=ATTEMPTS)

    def submit(self, function, /, *arguments):
        return self._executor.submit(function, *arguments)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._executor.shutdown(wait=wait and not cancel_futures)  # without waiting, Dask cancels what is left
        self._client.close()


def default_workers(threads: int = 1) -> int:
    """As many processes as the cores that this one may use have room for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // threads)
