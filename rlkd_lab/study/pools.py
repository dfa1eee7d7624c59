"""Where the runs of a sweep are computed: processes of this machine, or tasks of a Ray cluster."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rlkd_lab.models import default_device
from rlkd_lab.study.results import over
from rlkd_lab.study.sweep import Job

Work = Callable[..., None]
"""Computes a run: (job, the sweep's folder, threads, node of the cluster or nothing)."""


def workers_here() -> int:
    """Return how many runs this machine takes at a time: one for each GPU, or for each core."""
    if default_device().type == "mps":
        return 1
    return len(_gpus()) or os.cpu_count() or 1


def _gpus() -> list[str]:
    """Return the GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them."""
    if default_device().type == "cpu":
        return []
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    count = torch.cuda.device_count()
    return names.split(",")[:count] if names else [str(number) for number in range(count)]


def in_processes(
    work: Work, jobs: list[Job], out: Path, workers: int | None, tick: Callable[[], object]
) -> list[str]:
    """Compute every job in a worker process; return a sentence for each failure.

    Each worker has its own pool, so a worker that is killed takes only its own run with it.
    """
    threads = 1 if default_device().type == "cpu" else None
    pools = [_pool(slot) for slot in range(min(workers or workers_here(), len(jobs)))]
    left, failed = list(jobs), []
    running: dict[Future[None], tuple[Job, int]] = {}
    try:
        while left or running:
            for slot in set(range(len(pools))) - {slot for _, slot in running.values()}:
                if left:
                    job = left.pop(0)
                    running[pools[slot].submit(work, job, out, threads)] = (job, slot)
            done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in done:
                (job, slot), error = running.pop(future), future.exception()
                if isinstance(error, BrokenProcessPool):
                    pools[slot].shutdown(wait=False)
                    pools[slot] = _pool(slot)
                    failed.append(
                        f"{job.folder(out)}: its worker was killed, perhaps for memory: try"
                        " fewer workers"
                    )
                elif error is not None:
                    failed.append(f"{job.folder(out)}: {type(error).__name__}: {error}")
            tick()
    except BaseException:
        for pool in pools:
            for process in list((pool._processes or {}).values()):
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
        raise
    for pool in pools:
        pool.shutdown()
    return failed


def _pool(slot: int) -> ProcessPoolExecutor:
    """Return a pool of one worker process, which sees one GPU where there are some.

    On a CPU the workers are forks of one server that has imported torch and this package: an import
    costs 6 s. A GPU's driver does not survive a fork, so there each worker starts anew.
    """
    forked = os.name == "posix" and default_device().type == "cpu"
    context: Any = multiprocessing.get_context("forkserver" if forked else "spawn")
    if forked:
        context.set_forkserver_preload(["rlkd_lab.study.workers"])
    gpus = _gpus()
    chosen = {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)], "RLKD_DEVICE": "cuda"} if gpus else {}
    pool = ProcessPoolExecutor(
        1, mp_context=context, initializer=_start_worker, initargs=({**os.environ, **chosen},)
    )
    if chosen:
        # the process starts with the first call, and what it imports may start CUDA
        with _environment(chosen):
            pool.submit(os.getpid)
    return pool


@contextmanager
def _environment(chosen: dict[str, str]) -> Iterator[None]:
    """Have variables inside the block that were others, or none, before."""
    before = {name: os.environ.get(name) for name in chosen}
    os.environ.update(chosen)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _start_worker(environment: dict[str, str]) -> None:
    """Take the sweep's environment, and end this worker when the sweep's process is gone.

    A worker that stayed would train a run that the next start resumes.
    """
    os.environ.update(environment)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait_for_it() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait_for_it, daemon=True).start()


def on_ray(
    work: Work,
    jobs: list[Job],
    out: Path,
    workers: int | None,
    address: str | None,
    tick: Callable[[], object],
) -> list[str]:
    """Compute every job as a task of a Ray cluster; return a sentence for each failure.

    A task has a GPU if a node has one, otherwise a core.
    """
    ray = _connected(address)
    try:
        gpus = ray.cluster_resources().get("GPU", 0.0)

        def on_node(job: Job) -> None:
            work(job, out.absolute(), None if gpus else 1, ray.get_runtime_context().get_node_id())

        task = ray.remote(max_retries=0, num_cpus=1, num_gpus=1 if gpus else 0)(on_node)
        limit = workers or int(gpus or ray.cluster_resources()["CPU"])
        left, failed = list(jobs), []
        running: dict[Any, Job] = {}
        while left or running:
            while left and len(running) < limit:
                job = left.pop(0)
                running[task.remote(job)] = job
            done, _ = ray.wait(list(running), timeout=0.5)
            for reference in done:
                path = running.pop(reference).folder(out)
                if why := _failure(ray, reference, path):
                    failed.append(f"{path}: {why}")
            tick()
        return failed
    finally:
        ray.shutdown()


def _connected(address: str | None) -> Any:
    """Return the module ray, connected to the cluster."""
    try:
        ray: Any = importlib.import_module("ray")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "the engine ray needs Ray: pip install 'rlkd_lab[ray]', on every node of the cluster"
        ) from None
    if address not in (None, "auto", "local"):  # Ray itself would try for minutes
        host, _, port = str(address).rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, ValueError) as error:
            raise ValueError(f"no Ray cluster at {address}: {error}") from None
    ray.init(
        address=address,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        ignore_reinit_error=True,
    )
    return ray


def _failure(ray: Any, reference: Any, path: Path) -> str | None:
    """Return why a finished task has left no run, or ``None``."""
    try:
        ray.get(reference)
    except Exception as error:  # what the run raised, in Ray's wrapping, or the loss of a node
        cause = getattr(error, "cause", None) or error
        return f"{type(cause).__name__}: {str(cause).strip().splitlines()[-1]}"
    if over(path):
        return None
    return (
        "done on another node, and not here: --out must lie on a file system that all nodes share"
    )
