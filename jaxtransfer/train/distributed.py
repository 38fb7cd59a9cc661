"""Several processes that train as one: how they meet, and how they agree.

Each process runs the same program on its own devices and reads its own rows of every batch; what is
computed is what one process would have computed. Where a process dies, the others cannot go on:
each of them ends with an error, at once or when the dead one has been silent for `patience`
seconds, and the run goes on from its last checkpoint, on as many processes as one likes.
"""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtransfer.errors import TrainingError
from jaxtransfer.types import PyTree

PATIENCE = 60
"""Seconds of silence after which a process counts as dead; JAX itself waits 100."""


def initialize(
    coordinator: str | None = None,
    processes: int | None = None,
    process_id: int | None = None,
    *,
    patience: int = PATIENCE,
) -> None:
    """Join the other processes of a run, before anything else is asked of JAX.

    Without arguments this does nothing, unless JAX finds the job of a cluster around it: Cloud TPU,
    Kubernetes, Slurm, Open MPI, or the variable `JAX_COORDINATOR_ADDRESS`. What is left out of the
    arguments comes from there. Called again, it does nothing.

    Where a process is killed, JAX ends the others: each aborts with the message "Terminating
    process because the JAX distributed service detected fatal errors", at once if the first process
    was killed, else after `patience` seconds. A process that leaves, because it is done or has
    failed, waits five times as long for the others to leave; then all are ended in the same way.

    Args:
        coordinator: address and port of the first process, such as `10.0.0.1:1234`; the port is one
            that is free there.
        processes: number of processes, from 1.
        process_id: number of this process, from 0.
        patience: seconds of silence after which a process counts as dead, from 1.

    Raises:
        TrainingError: an argument is missing or out of range, JAX has used its devices already, or
            the processes do not find each other.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if jax.distributed.is_initialized():
        _check_same(processes, process_id)
        return
    if (coordinator, processes, process_id) == (None, None, None) and not _in_cluster():
        return
    _check_arguments(coordinator, processes, process_id, patience)
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process_id,
            heartbeat_timeout_seconds=patience,
            shutdown_timeout_seconds=5 * patience,  # the others may still write what they made
        )
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            f"processes: expected to join {processes or 'the'} processes at "
            f"{coordinator or 'the cluster'} before JAX uses its devices, found {error}; call "
            "initialize before anything else, with coordinator, processes and process_id where no "
            "cluster tells them"
        ) from error


def is_primary() -> bool:
    """Whether this process is the one that prints and writes for all."""
    return jax.process_index() == 0


def process_rows(count: int) -> slice:
    """This process's share of `count` rows; the shares of all processes are all rows, each once.

    >>> process_rows(10)
    slice(0, 10, None)
    """
    index, processes = jax.process_index(), jax.process_count()
    return slice(count * index // processes, count * (index + 1) // processes)


def agree(flag: bool) -> bool:
    """Whether any process says so: the same answer for all, so that they stop at the same step.

    All processes must call this at the same place, and wait there for one another.
    """
    if jax.process_count() == 1:
        return bool(flag)
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.asarray(bool(flag))).any())


def broadcast(tree: PyTree) -> PyTree:
    """The first process's values on all of them, as arrays of the host.

    All processes must call this at the same place with trees of the same shapes.
    """
    tree = jax.tree.map(np.asarray, tree)
    if jax.process_count() == 1:
        return tree
    from jax.experimental import multihost_utils

    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(tree))


def gather(tree: PyTree) -> PyTree:
    """The whole values of a tree as arrays of the host, on every process; keys as their numbers.

    All processes must call this at the same place.
    """
    return jax.tree.map(_whole, tree)


def barrier(name: str) -> None:
    """Wait until all processes are here.

    Args:
        name: what this place is called; the same for all processes.
    """
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def _whole(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    is_here = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable
    if is_here or leaf.is_fully_replicated:
        return np.asarray(leaf)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))


def _in_cluster() -> bool:
    """Whether `jax.distributed.initialize` would find a job of a cluster by itself.

    It says so by trying alone, and does not try once devices are in use; hence JAX's own list.
    """
    from jax._src.clusters import ClusterEnv

    kinds = ClusterEnv._cluster_types
    return any(kind.is_env_present() for kind in kinds if not kind.opt_in_only_method)


def _check_same(processes: int | None, process_id: int | None) -> None:
    found = (jax.process_count(), jax.process_index())
    if processes not in (None, found[0]) or process_id not in (None, found[1]):
        raise TrainingError(
            f"processes: expected process {process_id} of {processes}, found that this one is "
            f"process {found[1]} of {found[0]} since it joined them; start it anew"
        )


def _check_arguments(
    coordinator: str | None, processes: int | None, process_id: int | None, patience: int
) -> None:
    host, _, port = (coordinator or "").rpartition(":")
    last = "" if processes is None else f", below {processes}"
    in_range = process_id is None or 0 <= process_id and (not processes or process_id < processes)
    problems = [
        f"{name} {text}, found {value!r}"
        for name, value, fits, text in (
            (
                "coordinator",
                coordinator,
                coordinator is None or host and port.isdigit(),
                "as host:port",
            ),
            ("processes", processes, processes is None or processes >= 1, "of at least 1"),
            ("process_id", process_id, in_range, f"from 0{last}"),
            ("patience", patience, patience >= 1, "of at least 1 second"),
        )
        if not fits
    ]
    given = {"coordinator": coordinator, "processes": processes, "process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if missing and not _in_cluster():
        problems.append(f"{', '.join(missing)} too, as no cluster is found that tells them")
    if problems:
        raise TrainingError(f"processes: expected {'; '.join(problems)}")
