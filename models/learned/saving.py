"""Trained heads, twists and adapters as safetensors files, tied to the model they belong to."""

import hashlib
import json
import os
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

T = TypeVar("T")
_FORMAT = "feynkac-learned-1"


class ArtifactError(ValueError):
    """The file is no such artifact, or belongs to another model; the message says which."""


def digest(tree: PyTree) -> str:
    """SHA-256 of all arrays of a pytree, shapes and dtypes included: which weights these are."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if eqx.is_array(leaf):
            array = np.asarray(leaf, order="C")
            total.update(f"{jax.tree_util.keystr(path)}{array.dtype}{array.shape}".encode())
            total.update(array.tobytes())
    return total.hexdigest()


def save(path: str | os.PathLike, artifact: PyTree, base: PyTree = None, **notes: Any) -> None:
    """Write the arrays of an artifact (a `Head`, a twist, a `Lora`) to a safetensors file.

    Args:
        path: the file.
        artifact: what to save; static parts (functions, sizes) are not written.
        base: the model that it was trained on, by its digest; `load` asks for the same.
        notes: anything that JSON can say (how it was trained), for `notes(path)`.
    """
    from safetensors.numpy import save_file

    tensors = {name: np.asarray(leaf, order="C") for name, leaf in _arrays(artifact).items()}
    told = {
        "format": _FORMAT,
        "base": "" if base is None else digest(base),
        "notes": json.dumps(notes),
    }
    save_file(tensors, os.fspath(path), metadata=told)


def load(path: str | os.PathLike, like: T, base: PyTree = None) -> T:
    """Read an artifact back, bit for bit.

    Args:
        path: the file.
        like: an untrained artifact of the same make, `lora(key, lm, rank)` say; what it is made of
            apart from arrays is kept.
        base: the model that it is for. ArtifactError if it was saved with another one.

    Raises:
        ArtifactError: another base model, other names or shapes of arrays, or no artifact at all.
    """
    tensors, told = read(path)
    if told["base"] and base is None:
        raise ArtifactError(
            f"{path} belongs to a base model: give the model, load(path, like, base=lm)"
        )
    if told["base"] and (found := digest(base)) != told["base"]:
        raise ArtifactError(
            f"{path} was trained on another base model (digest {told['base'][:12]}..., this one "
            f"is {found[:12]}...): load the model that it was saved with, or train anew"
        )
    wanted = _arrays(like)
    if set(wanted) != set(tensors):
        differ = sorted(set(wanted) ^ set(tensors))
        raise ArtifactError(
            f"{path} is of another make: {len(differ)} arrays are only in one of the two, "
            f"{', '.join(differ[:3])}. Make `like` with the options that it was trained with"
        )
    for name, leaf in wanted.items():
        if leaf.shape != tensors[name].shape:
            raise ArtifactError(
                f"{path}: {name} has shape {tensors[name].shape}, `like` has {leaf.shape}. Make "
                "`like` with the options (rank, width) that it was trained with"
            )
    arrays, rest = eqx.partition(like, eqx.is_array)
    filled = jax.tree_util.tree_map_with_path(
        lambda path, _: jnp.asarray(tensors[jax.tree_util.keystr(path)]), arrays
    )
    return eqx.combine(filled, rest)


def notes(path: str | os.PathLike) -> dict[str, Any]:
    """What was noted when an artifact was saved."""
    return json.loads(read(path)[1]["notes"])


def _arrays(tree: PyTree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p): leaf for p, leaf in leaves if eqx.is_array(leaf)}


def read(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays by name, and what was told of them; ArtifactError if this is no such file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="np") as file:
            told = file.metadata() or {}
            if told.get("format") != _FORMAT:
                raise ArtifactError(f"{path} was not written by feynkac.models.learned.save")
            return {name: file.get_tensor(name) for name in file.keys()}, told  # noqa: SIM118
    except SafetensorError as error:
        raise ArtifactError(f"{path} is damaged or no safetensors file ({error})") from None
