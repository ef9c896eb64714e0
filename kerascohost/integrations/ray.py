"""Workers that are processes of Ray, on this machine or on a cluster, for `Cohort(workers=...)`."""

import contextlib
import logging
import math
import os
import queue
import secrets
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import keras
import numpy as np

from kerascohost.arguments import check_count
from kerascohost.environment import extra
from kerascohost.errors import CohortError, is_count
from kerascohost.training.jobs import Command, Event, Job, SyncEvery

with extra("ray"):
    import ray

# Handles and references of Ray, which has no types for them.
_Handle: TypeAlias = Any

# Arrays are stored once in shared memory of this size, and on disk beyond it.
_STORE_BYTES = 2**30

# Ray's own least size.
_LEAST_STORE_BYTES = 80 * 2**20

# A worker that has nothing to tell answers after this time, in seconds.
_ANSWER_SECONDS = 5.0

# Settings of the process that sends the models, which workers must have, too.
_ENVIRONMENT = ("TF_CPP_MIN_LOG_LEVEL", "TF_ENABLE_ONEDNN_OPTS", "XLA_FLAGS", "PYTHONPATH")


class RayWorkers:
    """Processes of Ray that train the members of a cohort, on this machine or on a cluster.

    Each member is trained by one worker, together with others. The models that were given to the
    cohort end exactly as if they had been trained here.

    As a context, the workers are started once for all fits in it. Without one they are started for
    each fit and ended after it; a start takes about ten seconds. Ray itself is started if it does
    not run, and ended then.

    Workers run code that was sent to them, and what they send back is unpickled: use clusters whose
    members you trust, as Ray itself demands.

    Args:
        num_workers: An integer, the number of processes. Default 2.
        use_gpu: A boolean, whether each has a GPU of its own. Default `False`.
        resources_per_worker: A dict from names of resources, such as `"CPU"` and `"GPU"`, to
            numbers. Default `None`: one CPU, and one GPU with `use_gpu`.
        address: The address of a cluster, as `ray.init` takes it. Default `None`: Ray as it runs in
            this process, or else on this machine only.
        sync_every: The interval at which the state of each member is sent here, at the end of an
            epoch: `"epoch"` (default), a number of epochs, or seconds as in `"30s"`. When a worker
            dies, its members go on from that state elsewhere. Those that are not trained on arrays,
            or whose callbacks or steps draw from global random states, begin anew.
        max_failures: An integer, how often members are trained on after the death of their worker.
            Default 3.

    Raises:
        CohortError: If one of these cannot be.

    Example:

    >>> from kerascohost.integrations.ray import RayWorkers
    >>> RayWorkers(num_workers=4, sync_every="30s")
    RayWorkers(num_workers=4, sync_every='30s')
    """

    def __init__(
        self,
        num_workers: int = 2,
        use_gpu: bool = False,
        resources_per_worker: Mapping[str, float] | None = None,
        address: str | None = None,
        sync_every: int | str = "epoch",
        max_failures: int = 3,
    ):
        check_count("num_workers", num_workers)
        SyncEvery.of(sync_every)
        if not is_count(max_failures):
            raise CohortError(
                "Expected `max_failures` to be an integer that is not negative. "
                f"Received: max_failures={max_failures!r}."
            )
        if not isinstance(use_gpu, bool):
            raise CohortError(
                f"Expected `use_gpu` to be True or False. Received: use_gpu={use_gpu!r}."
            )
        if address is not None and (not isinstance(address, str) or not address):
            raise CohortError(
                "Expected `address` to be that of a cluster, as 'ray://head:10001' or 'auto', or "
                f"None. Received: address={address!r}."
            )
        _check_resources(resources_per_worker)
        self.num_workers = num_workers
        self.sync_every = sync_every
        self.max_failures = max_failures
        self._use_gpu = use_gpu
        self._given_resources = dict(resources_per_worker or {})
        self._resources = {"CPU": 1.0, "GPU": float(use_gpu), **self._given_resources}
        self._address = address
        self._started = contextlib.ExitStack()
        self._workers: list[_Worker] = []

    def __repr__(self) -> str:
        told = [f"num_workers={self.num_workers}"]
        if self._use_gpu:
            told.append("use_gpu=True")
        if self._given_resources:
            told.append(f"resources_per_worker={self._given_resources}")
        if self.sync_every != "epoch":
            told.append(f"sync_every={self.sync_every!r}")
        if self.max_failures != 3:
            told.append(f"max_failures={self.max_failures}")
        return f"RayWorkers({', '.join(told)})"

    @property
    def is_open(self) -> bool:
        """Returns whether the processes run."""
        return bool(self._workers)

    def __enter__(self) -> "RayWorkers":
        if self.is_open:
            raise CohortError("Expected workers that do not run yet. Received: workers in use.")
        with contextlib.ExitStack() as entered:
            entered.enter_context(self._ray())
            entered.callback(self._end_workers)
            self._workers = [_Worker(self._resources) for _ in range(self.num_workers)]
            self._started = entered.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._started.close()

    @contextlib.contextmanager
    def _ray(self) -> Iterator[None]:
        """Starts Ray within the block, if it does not run."""
        if ray.is_initialized():
            yield
            return
        # By default Ray reports its use, and replaces `print` for the rest of the process.
        environment = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TQDM_PATCH_PRINT": "0"}
        folder = None
        local: dict[str, Any] = {}
        if self._address is None:
            folder = tempfile.mkdtemp(prefix="kc-")  # short: paths of sockets are limited
            _set_token()
            cpus = self._resources["CPU"] * self.num_workers
            local = {
                "num_cpus": max(os.cpu_count() or 1, int(cpus + 0.999)),
                "object_store_memory": max(_LEAST_STORE_BYTES, min(_STORE_BYTES, _free() // 4)),
                "include_dashboard": False,
                "_temp_dir": folder,
            }
        known = {name: os.environ.get(name) for name in environment}
        os.environ.update(environment)
        try:
            ray.init(
                address=self._address or "local",
                logging_level=logging.ERROR,
                log_to_driver=False,
                **local,
            )
            yield
        finally:
            ray.shutdown()
            for name, value in known.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)

    def _end_workers(self) -> None:
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.kill()

    def put(self, array: np.ndarray) -> _Handle:
        """Stores an array in Ray's object store, once for each machine; returns its reference."""
        return ray.put(np.ascontiguousarray(array))

    def idle(self) -> list[int]:
        """Returns the numbers of the workers that are ready for a job."""
        return [number for number, worker in enumerate(self._workers) if worker.is_idle]

    def start(self, worker: int, job: bytes, arrays: Sequence[_Handle]) -> None:
        """Starts a `Job` in a worker."""
        self._workers[worker].start(job, arrays)

    def tell(self, worker: int, command: Command, member: str = "") -> None:
        """Calls `Job.tell` in a worker."""
        self._workers[worker].actor.tell.remote(command, member)

    def events(self, timeout: float) -> list[tuple[int, Event]]:
        """Returns what has happened, with the number of the worker; see `training.workers`."""
        waited = {worker.answer: number for number, worker in enumerate(self._workers)}
        ready, _ = ray.wait(list(waited), num_returns=1, timeout=timeout)
        events = []
        for answer in ready:
            number = waited[answer]
            try:
                told = self._workers[number].taken()
            except ray.exceptions.RayActorError as error:
                self._workers[number] = _Worker(self._resources)
                told = [Event("died", value=str(error).strip().splitlines()[0])]
            events += [(number, event) for event in told]
        return events

    def restart(self) -> None:
        """Ends all jobs at once, by replacing all workers."""
        self._end_workers()
        self._workers = [_Worker(self._resources) for _ in range(self.num_workers)]


def _check_resources(given: Mapping[str, float] | None) -> None:
    if given is None:
        return
    if not isinstance(given, Mapping) or not all(
        isinstance(name, str) and _is_amount(amount) for name, amount in given.items()
    ):
        raise CohortError(
            "Expected `resources_per_worker` to be a dict from names of resources to numbers that "
            f"are not negative, as {{'CPU': 2}}. Received: resources_per_worker={given!r}."
        )


def _is_amount(value: object) -> bool:
    is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    return is_number and 0 <= float(value) < math.inf  # type: ignore[arg-type]  # a number


class _Worker:
    """A worker, seen from the process that gives it jobs.

    Args:
        resources: What it needs.

    Attributes:
        actor: Ray's handle of it.
        answer: Ray's reference to its next answer.
        is_idle: Whether it is ready for a job.
    """

    def __init__(self, resources: Mapping[str, float]):
        self.actor = _started(resources)
        self.answer = self.actor.events.remote()
        self.is_idle = False

    def start(self, job: bytes, arrays: Sequence[_Handle]) -> None:
        """Starts a job."""
        self.is_idle = False
        with contextlib.suppress(ray.exceptions.RayActorError):  # its next answer says so, too
            # Otherwise it could be told something before it has the job.
            ray.get(self.actor.start.remote(job, list(arrays)))

    def taken(self) -> list[Event]:
        """Returns its answer, and asks for the next one.

        Raises:
            RayActorError: If it has died.
        """
        told: list[Event] | None = ray.get(self.answer)
        self.answer = self.actor.events.remote()
        if told is None:  # its first answer
            self.is_idle = True
            return []
        self.is_idle = self.is_idle or any(event.kind == "done" for event in told)
        return told

    def kill(self) -> None:
        """Ends the process."""
        ray.kill(self.actor)


def _started(resources: Mapping[str, float]) -> _Handle:
    """Starts a worker; returns Ray's handle of it."""
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    environment["KERAS_BACKEND"] = keras.backend.backend()
    options = ray.remote(_Actor).options(
        num_cpus=resources["CPU"],
        num_gpus=resources["GPU"],
        resources={k: v for k, v in resources.items() if k not in ("CPU", "GPU")} or None,
        max_concurrency=4,  # it is told things, and asked for events, while it trains
        runtime_env={"env_vars": environment},
    )
    return options.remote()


class _Actor:
    """A worker, in its own process."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._job: Job | None = None
        self._has_answered = False

    def start(self, data: bytes, arrays: Sequence[_Handle]) -> None:
        """Starts a job in a thread of its own."""
        self._job = Job(data, lambda: ray.get(list(arrays)), self._events.put)
        threading.Thread(target=self._job.run, daemon=True).start()

    def tell(self, command: Command, member: str) -> None:
        """Passes a command to the job."""
        if self._job is not None:
            self._job.tell(command, member)

    def events(self) -> list[Event] | None:
        """Returns what has happened since the last call, as soon as there is something.

        The first call returns `None` at once: the worker has started.
        """
        if not self._has_answered:
            self._has_answered = True
            return None
        told = []
        with contextlib.suppress(queue.Empty):
            told.append(self._events.get(timeout=_ANSWER_SECONDS))
            while True:
                told.append(self._events.get_nowait())
        return told


def _set_token() -> None:
    """Sets the token of clusters that this process starts, unless there is one.

    Otherwise Ray would make one for all later clusters, in a file in the home folder. It stays set:
    Ray reads it once in a process, and clusters that the program itself starts need the same one.
    """
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    if not Path(path).exists():
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _free() -> int:
    """Returns the free memory of this machine in bytes, where it is known."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return _STORE_BYTES
