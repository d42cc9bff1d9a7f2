"""Join or start a Ray cluster; what its nodes have, and what a cell needs."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from prunebench.engine.gpus import gpus_of
from prunebench.errors import PrunebenchError, first_line
from prunebench.experiment.cell import Cell
from prunebench.plugin import NAME

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_PROMPT_ENABLED": "0",
    # Leave CUDA_VISIBLE_DEVICES alone in tasks that ask for no GPU; otherwise Ray warns about it.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_SCHEDULER_EVENTS": "0",
}
CONNECT_S = 10.0
# Of a cluster that is started here. Only logs and saved models pass through it, in pieces.
OBJECT_STORE_BYTES = 200_000_000
SYSTEM = {
    # Idle workers would import beside what is timed.
    "prestart_worker_first_driver": False,
    # Ray's monitor would kill the agent of a cell; the agent limits the cell itself.
    "memory_monitor_refresh_ms": 0,
    "worker_niceness": 0,
    "worker_oom_score_adjustment": 0,
}


@dataclass(frozen=True)
class Node:
    """A living node, and everything that it has, used or not."""

    id: str
    cpus: float
    gpus: float
    memory_bytes: float


@dataclass(frozen=True)
class Needs:
    """What a cell takes of one node while it runs."""

    cpus: int
    gpus: int = 0
    memory_bytes: int | None = None

    def fit(self, node: Node) -> bool:
        """Whether ``node`` has that much if nothing else runs on it."""
        return (
            self.cpus <= node.cpus
            and self.gpus <= node.gpus
            and (self.memory_bytes or 0) <= node.memory_bytes
        )

    def __str__(self) -> str:
        memory = f", {self.memory_bytes / 1e9:.1f} GB of memory" if self.memory_bytes else ""
        return f"{self.cpus} CPUs, {self.gpus} GPUs{memory}"


def needs_of(cell: Cell, nodes: Sequence[Node]) -> Needs:
    """What ``cell`` needs on such nodes: GPUs, CPUs and the memory of its limit.

    The CPUs are the suite's `threads:`; by default the share of a node that goes with the cell's
    GPUs, or a whole node without GPUs, so that nothing else disturbs it. Raises PrunebenchError if
    the cell names one GPU by number.
    """
    if ":" in cell.device:
        raise PrunebenchError(
            f"device '{cell.device}' names one GPU, and Ray chooses them",
            hint=f"set `device: {cell.device.partition(':')[0]}`",
        )
    with_gpus = [node for node in nodes if node.gpus >= 1]
    # The smallest node decides, so that the cell fits on every node.
    gpus = gpus_of(cell, int(min((node.gpus for node in with_gpus), default=0)))
    if gpus:
        shares = [node.cpus // node.gpus * gpus for node in with_gpus if node.gpus >= gpus]
    else:
        shares = [node.cpus for node in nodes if node.cpus >= 1]
    cpus = cell.threads or int(min(shares, default=1))
    # More threads than any node has CPUs would never be scheduled; fewer CPUs only run slower.
    return Needs(max(1, min(cpus, int(max(shares, default=cpus)))), gpus, cell.memory_limit_bytes)


def living_nodes(ray: Any) -> list[Node]:
    """The nodes that are in the cluster now."""
    found = []
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            found.append(
                Node(
                    node["NodeID"], has.get("CPU", 0.0), has.get("GPU", 0.0), has.get("memory", 0.0)
                )
            )
    return found


def import_ray() -> Any:
    """The module `ray`. Raises PrunebenchError if it is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise PrunebenchError("Ray is not installed", hint="pip install 'prunebench[ray]'")
    # Ray reads these when it is imported; what the user has set stays.
    os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})
    return importlib.import_module("ray")


@contextmanager
def joined(address: str | None) -> Iterator[Any]:
    """The module `ray`, connected to the cluster at ``address`` while the context is open.

    Without an address a cluster is started here, and ended with the context. Raises
    PrunebenchError if there is no connection.
    """
    ray = import_ray()
    if address is not None and "://" in address:
        raise PrunebenchError(
            f"cannot connect to {address}: Ray's client protocol cannot stream messages of cells",
            hint="run prunebench on a node of the cluster, with --ray-address auto or HOST:PORT",
        )
    _check_reachable(address)
    common = {"log_to_driver": False, "logging_level": "ERROR", "job_config": _job_config()}
    try:
        with _own_signals():
            if address is None:
                ray.init(
                    "local",
                    num_cpus=_cores(),
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    _system_config=SYSTEM,
                    **common,
                )
            else:
                ray.init(address, **common)
    except (Exception, SystemExit) as error:
        ray.shutdown()
        what = "start Ray here" if address is None else f"reach a Ray cluster at {address}"
        raise PrunebenchError(
            f"cannot {what}: {first_line(error)}",
            hint="`ray status --address ...` says whether a cluster is there",
        ) from error
    try:
        with _not_printing():
            yield ray
    finally:
        with _own_signals():
            ray.shutdown()


class _NoFolders(list[str]):
    """A list that stays empty."""

    def extend(self, _: Iterable[str]) -> None:
        """Add nothing."""


def _job_config() -> Any:
    """Settings with which Ray leaves the path of its workers alone.

    It would put the working folder first, with the user's `random.py` in it.
    """
    config = importlib.import_module("ray.job_config").JobConfig()
    # Ray has no switch for that. If a version calls this list otherwise, the folder is on the path.
    config._py_driver_sys_path = _NoFolders()
    return config


def _cores() -> int | None:
    """The cores that this process may use; Ray would count all of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def _check_reachable(address: str | None) -> None:
    """Raise PrunebenchError if nobody listens at HOST:PORT. Ray itself would try for minutes."""
    host, _, port = (address or "").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except OSError as error:
        raise PrunebenchError(
            f"cannot reach a Ray cluster at {address}: {error.strerror or error}",
            hint="`ray start --head` prints the address of the node that it starts",
        ) from error


@contextmanager
def _not_printing() -> Iterator[None]:
    """Log what Ray prints about workers and nodes that died; for us these are failed records."""
    # Ray has no switch for that. If a version calls this function otherwise, it prints as ever.
    name, module = "print_to_stdstream", importlib.import_module("ray._private.worker")
    before = getattr(module, name, None)

    def log(data: Any, *_: Any, **__: Any) -> None:
        logging.getLogger(NAME).debug("ray: %s", data)

    if before is not None:
        setattr(module, name, log)
    try:
        yield
    finally:
        if before is not None:
            setattr(module, name, before)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the run's handlers of SIGTERM and SIGINT: Ray installs its own."""
    # Only the main thread may set handlers.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
