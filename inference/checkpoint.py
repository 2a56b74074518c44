"""Checkpoints of a run: atomic, checked, and refused by any other run."""

import dataclasses
import hashlib
import os
import re
import warnings
import zlib
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from ..ppl.code import Fingerprints
from ..ppl.target import Target

KEPT = 2
"""Checkpoints on disk: the newest and, should it turn out unreadable, the one before."""

_NUMBERS = ("n_particles", "length")


class CheckpointError(RuntimeError):
    """A checkpoint is of another run, or none is readable."""


def identity(smc: Any, key: PRNGKeyArray, target: Target, like: PyTree) -> dict[str, str]:
    """What a run is: equal for equal results, so without the mapping and the size of a chunk."""
    fields = [f.name for f in dataclasses.fields(smc) if f.name not in ("n_particles", "mapping")]
    leaves = jax.tree_util.tree_leaves_with_path(like)
    layout = [(jax.tree_util.keystr(path), x.shape, str(x.dtype)) for path, x in leaves]
    return {
        "n_particles": str(smc.n_particles),
        "length": str(target.state_space().length),
        "key": content_digest(key),
        **{name: content_digest(getattr(smc, name)) for name in fields},
        "model (its code or bound arrays)": content_digest(target.model),
        "args": content_digest(target.args),
        "constraints": content_digest(target.constraints),
        "layout of the state": hashlib.sha256(repr(layout).encode()).hexdigest(),
    }


class Checkpoints:
    """The checkpoints of one run in a folder, written by orbax; each appears whole or not at all.

    A new one is complete before the oldest is deleted. A checksum of all arrays is stored too.
    """

    def __init__(self, path: str | os.PathLike, run: dict[str, str], like: PyTree):
        """`like` has the run's structure, shapes and dtypes."""
        import orbax.checkpoint as ocp  # a second to import

        text = os.fspath(path)
        self.path = text if "://" in text else os.path.abspath(text)
        self._run, self._like, self._args = run, like, ocp.args
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(self.path, options=options)

    def close(self) -> None:
        """Free what writing needs; the files stay."""
        self._manager.close()

    def save(self, step: int, population: PyTree, over: bool) -> None:
        """Write the population after `step` steps; returns when it is on disk."""
        leaves = [np.asarray(_raw(x)) for x in jax.tree.leaves(population)]
        manifest = {"run": self._run, "over": over, "checksum": _checksum(leaves)}
        # Orbax has no arrays of size 0; their shapes say all of them.
        arrays = {str(i): x for i, x in enumerate(leaves) if x.size}
        args = self._args.Composite(
            population=self._args.StandardSave(arrays), manifest=self._args.JsonSave(manifest)
        )
        self._manager.save(step, args=args)

    def newest(self) -> tuple[int, PyTree, bool] | None:
        """The last readable checkpoint: step, population, is it over. None if there is none at all.

        Raises:
            CheckpointError: it is of another run (and says what differs), or all are unreadable.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                manifest = self._restore(step, manifest=self._args.JsonRestore())["manifest"]
                stored, over, checksum = (manifest[name] for name in ("run", "over", "checksum"))
            except Exception as error:
                self._unreadable(step, error)
                continue
            self._refuse_other(stored)
            try:
                return step, self._population(step, checksum), over
            except Exception as error:
                self._unreadable(step, error)
        if steps:
            raise CheckpointError(
                f"none of the checkpoints in {self.path} can be read (steps "
                f"{steps[::-1]}). They are left as they are: delete the folder to start anew, or "
                "give another path"
            )
        return None

    def forget_after(self, step: int) -> None:
        """Delete what is unreadable and newer, so that the run can write there again."""
        for other in self._manager.all_steps():
            if other > step:
                self._manager.delete(other)

    def _restore(self, step: int, **items: Any) -> Any:
        return self._manager.restore(step, args=self._args.Composite(**items))

    def _population(self, step: int, checksum: int) -> PyTree:
        like, structure = jax.tree.flatten(self._like)
        raw = [jax.eval_shape(_raw, x) for x in like]
        wanted = {str(i): np.empty(x.shape, x.dtype) for i, x in enumerate(raw) if np.prod(x.shape)}
        arrays = self._restore(step, population=self._args.StandardRestore(wanted))["population"]
        leaves = [
            np.asarray(arrays[str(i)]) if np.prod(x.shape) else np.empty(x.shape, x.dtype)
            for i, x in enumerate(raw)
        ]
        if _checksum(leaves) != checksum:
            raise ValueError("the checksum of the arrays is wrong")
        return structure.unflatten([_typed(x, old) for x, old in zip(leaves, like, strict=True)])

    def _refuse_other(self, stored: dict[str, str]) -> None:
        names = [name for name in self._run if stored.get(name) != self._run[name]]
        if not names:
            return
        said = [f"{n} (there {stored.get(n)}, here {self._run[n]})" for n in names if n in _NUMBERS]
        if not said:  # another number of particles or steps changes most of the rest too
            said = [f"the {name}" for name in names]
        raise CheckpointError(
            f"the checkpoint in {self.path} is of another run: what differs is "
            f"{', '.join(said)}. To go on with that run give what it was given; for this one give "
            "another path, or delete the folder"
        )

    def _unreadable(self, step: int, error: Exception) -> None:
        text = " ".join(str(error).split())[:200]
        warnings.warn(
            f"the checkpoint of step {step} in {self.path} cannot be read "
            f"({type(error).__name__}: {text}); looking for the one before",
            stacklevel=4,
        )


def _raw(x: Any) -> Any:
    """A leaf as numbers: of typed keys their data."""
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def _typed(x: np.ndarray, like: Any) -> jax.Array:
    if not jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jnp.asarray(x)
    impl: list = []  # only a key, be it a traced one, tells its implementation
    jax.eval_shape(lambda key: impl.append(jax.random.key_impl(key)), like)
    return jax.random.wrap_key_data(jnp.asarray(x), impl=impl[0])


def _checksum(leaves: list[np.ndarray]) -> int:
    total = 0
    for x in leaves:
        total = zlib.crc32(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data, total)
    return total


def content_digest(tree: Any) -> str:
    """Digest of structure, code and arrays that another process computes too."""
    arrays, static = eqx.partition(tree, eqx.is_array)
    digest = hashlib.sha256(_text(jax.tree.structure(static)).encode())
    for token in _flat(Fingerprints.of(static).values):
        digest.update(token.encode())
    for leaf in jax.tree.leaves(static):
        digest.update(_text(leaf).encode())
    for x in jax.tree.leaves(arrays):
        raw = np.asarray(_raw(x))
        digest.update(f"{x.shape}{x.dtype}".encode())
        digest.update(np.ascontiguousarray(raw).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _flat(tokens: Any) -> Iterator[str]:
    for token in tokens:
        if isinstance(token, tuple):
            yield from _flat(token)
        elif isinstance(token, frozenset):
            yield "|".join(sorted("".join(_flat(x)) for x in token))
        else:
            yield _text(token)


def _text(value: Any) -> str:
    """Its repr without the addresses of objects, which differ between processes."""
    return re.sub(r"0x[0-9a-f]+", "", repr(value))
