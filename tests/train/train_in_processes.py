"""A small run in one of several processes: what `test_distributed.py` starts.

Process 0 writes the losses to FOLDER/losses.json and the last parameters to FOLDER/state.npz.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxtransfer.data import ArrayData
from jaxtransfer.data.arrays import batch_indices
from jaxtransfer.models import Model
from jaxtransfer.partition import Group, Plan
from jaxtransfer.train import Sharding, TrainState, cross_entropy, init_state, make_train_step
from jaxtransfer.train.distributed import agree, barrier, broadcast, gather, initialize, is_primary
from jaxtransfer.tree import flatten, leaf_names

BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--coordinator")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process-id", type=int)
    parser.add_argument("--patience", type=int, default=10)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--fsdp", type=int, default=1)
    parser.add_argument("--tensor", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=0)
    parser.add_argument("--kill", type=int, nargs=2, default=(-1, -1), help="PROCESS STEP")
    parser.add_argument("--leave", type=int, nargs=2, default=(-1, -1), help="PROCESS STEP")
    asked = parser.parse_args()
    initialize(asked.coordinator, asked.processes, asked.process_id, patience=asked.patience)
    losses, state = train(asked)
    found = gather({"params": state.params, "stats": state.stats, "opt_state": state.opt_state})
    assert broadcast({"loss": np.float32(len(losses) + jax.process_index())})["loss"] == len(losses)
    if is_primary():
        (asked.folder / "losses.json").write_text(json.dumps(losses))
        np.savez(asked.folder / "state.npz", **flatten(found))
    barrier("written")
    print("done")


def train(asked: argparse.Namespace) -> tuple[list[float], TrainState]:
    model = network()
    plan = Plan((Group("stem/**", frozen=True), Group("**")))
    tx = plan.optimizer(0.01, clip_norm=0.5)
    sharding = Sharding(fsdp=asked.fsdp, tensor=asked.tensor, min_size=100)
    step = make_train_step(model.apply, cross_entropy(), tx, plan, sharding=sharding)
    state, losses = resume(asked, sharding.place(init_state(model, plan, tx)))
    data, rows = examples(), sharding.local_rows(BATCH)
    while len(losses) < asked.steps and not agree(now(asked.leave, losses)):
        if now(asked.kill, losses):
            os.kill(os.getpid(), signal.SIGKILL)
        chosen = batch_indices(len(data), BATCH, len(losses), seed=0)
        state, metrics = step(state, sharding.put_batch(data.read(chosen[rows])))
        losses.append(float(metrics["loss"]))
        if asked.save_every and len(losses) % asked.save_every == 0:
            save(asked, state, losses)
    return losses, state


class Network(nn.Module):
    """A convolution, a normalisation over the whole batch, and a dense head."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.Conv(8, (3, 3), name="stem")(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x)
        x = nn.relu(nn.Dense(16, name="dense")(x)).mean(axis=(1, 2))
        return nn.Dense(3, name="head")(x)


def network() -> Model:
    module = Network()
    variables = module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False)
    return Model.from_linen(module, variables)


def now(asked: Sequence[int], losses: list[float]) -> bool:
    """Whether this process and this step are those asked for."""
    return list(asked) == [jax.process_index(), len(losses)]


def examples() -> ArrayData:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 20).astype(np.int32)
    images = 0.4 * rng.random((20, 8, 8, 1)) + 0.3 * labels[:, None, None, None]
    return ArrayData(images.astype(np.float32), labels)


# ---------------------------------------------------------------------------------------------
# Checkpoints: no more than what it takes to show that arrays of several processes come back


def save(asked: argparse.Namespace, state: TrainState, losses: list[float]) -> None:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(asked.folder.resolve() / f"step{len(losses)}", flatten(state))
    if is_primary():
        (asked.folder / f"step{len(losses)}.json").write_text(json.dumps(losses))
    barrier(f"saved {len(losses)}")


def resume(asked: argparse.Namespace, state: TrainState) -> tuple[TrainState, list[float]]:
    """The newest checkpoint in the layouts of `state`, or `state` where there is none."""
    import orbax.checkpoint as ocp

    records = sorted(asked.folder.glob("step*.json"), key=lambda path: int(path.stem[4:]))
    if not asked.save_every or not records:
        return state, []
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
        flatten(state),
    )
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.restore(records[-1].with_suffix("").resolve(), like)
    leaves = [found[name] for name in leaf_names(state)]
    return jax.tree.unflatten(jax.tree.structure(state), leaves), json.loads(
        records[-1].read_text()
    )


if __name__ == "__main__":
    main()
