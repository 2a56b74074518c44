"""A trained network as one file: compiled ahead of time, with weights, provenance, validity.

The function is lowered once (`jax.export`: serialized StableHLO, for fixed or symbolic shapes), so
that a new process neither has its Python code nor traces it. The file is a safetensors file as
`models.learned.save` writes it, whose arrays are the weights and the program's bytes.
"""

import dataclasses
import json
import os
import platform
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

import equinox as eqx
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, PyTree

from ...inference.checkpoint import content_digest
from ..learned.saving import ArtifactError, digest, read, save

_PROGRAM, _VERSION = "program", 1
_PACKAGES = ("feynkac", "jax", "jaxlib", "flax", "equinox", "numpyro")


class ValidityError(ValueError):
    """An input lies outside of what the network was trained for; the message says which."""


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where a network comes from and what it was trained for; all of it JSON.

    - `prior`: digest of the prior program's code and arrays (`program_digest`); "" if not given.
    - `seed`, `steps`: of the training; `trained`: what else is to be known (losses, oracle scores).
    - `validity`: ranges by name, of an input's values ("x": (0, 1)) or of a symbolic size
      ("n": (0, 20)); both ends belong to it. Names that are neither are kept as information.
    - `versions`: of packages, at the export.
    """

    prior: str = ""
    seed: int = 0
    steps: int = 0
    validity: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    trained: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=lambda: _versions())

    def of(self, program: Any) -> bool:
        """Is `program` the one that the network was trained on, code and arrays alike?"""
        return self.prior == program_digest(program)


def program_digest(program: Any) -> str:
    """SHA-256 of a program's code (with the globals it names) and arrays; equal in any process."""
    return content_digest(program)


class Answer(eqx.Module):
    """What an artifact answered; `inside` is false where an input is outside of its validity."""

    value: PyTree
    inside: Bool[Array, ""]


class Artifact:
    """A function of named arrays, compiled ahead of time, that knows what it was trained for."""

    def __init__(
        self,
        program: jax.export.Exported,
        weights: list[Array],
        provenance: Provenance,
        names: list,
    ):
        self._program, self.weights, self.provenance = program, weights, provenance
        self._names = [str(name) for name in names]
        self._call = jax.jit(program.call)

    @property
    def inputs(self) -> dict[str, str]:
        """Shape and dtype of each input; sizes that may vary have names."""
        specs = self._program.in_avals[len(self.weights) :]
        shapes = [f"{x.dtype}[{', '.join(map(str, x.shape))}]" for x in specs]
        return dict(zip(self._names, shapes, strict=True))

    def run(self, **inputs: Any) -> Answer:
        """The answer with a flag, also under `jit` (not `vmap`: export a batch axis instead).

        Shapes and dtypes that cannot work raise TypeError.
        """
        arrays = self._arrays(inputs)
        tests = [jnp.asarray(ok) for ok, _ in self._tests(arrays)]
        inside = jnp.all(jnp.stack(tests)) if tests else jnp.ones((), bool)
        return Answer(self._call(self.weights, arrays), inside)

    def __call__(self, **inputs: Any) -> PyTree:
        """The answer.

        Raises:
            ValidityError: an input is not finite or outside of the validity. `run` answers and
                flags instead.
            TypeError: other inputs, shapes or dtypes than the program has.
        """
        arrays = self._arrays(inputs)
        if any(isinstance(x, Tracer) for x in arrays):
            raise TypeError("under jit or vmap call artifact.run(...), which flags, instead")
        said = [text for ok, text in self._tests(arrays) if not bool(ok)]
        if said:
            raise ValidityError(
                f"{'; '.join(said)}: the network was not trained for this. Instead use another "
                "method, or artifact.run(...), which answers and says so"
            )
        return self._call(self.weights, arrays)

    def _arrays(self, inputs: dict[str, Any]) -> list[Array]:
        if sorted(inputs) != sorted(self._names):
            raise TypeError(f"the inputs are {self.inputs}, got {sorted(inputs)}")
        return [jnp.asarray(inputs[name]) for name in self._names]

    def _tests(self, arrays: list[Array]):
        """(inside, what it says) of each input and range."""
        specs, sizes = self._program.in_avals[len(self.weights) :], {}
        for name, spec, x in zip(self._names, specs, arrays, strict=True):
            if x.ndim != len(spec.shape) or x.dtype != spec.dtype:
                raise TypeError(f"{name} is {self.inputs[name]}, got {x.dtype}{list(x.shape)}")
            for wanted, got in zip(spec.shape, x.shape, strict=True):
                if sizes.setdefault(str(wanted), got) != got or (
                    isinstance(wanted, int) and wanted != got
                ):
                    raise TypeError(
                        f"{name} is {self.inputs[name]}, got {list(x.shape)}: sizes of one name "
                        "are equal, others as they were exported. Pad or split the data"
                    )
            if jnp.issubdtype(x.dtype, jnp.inexact):
                yield jnp.all(jnp.isfinite(x)), f"{name} is not finite"
        values = dict(zip(self._names, arrays, strict=True))
        for name, (low, high) in self.provenance.validity.items():
            if name in values:
                x = values[name]
                said = f"{name} leaves [{low:g}, {high:g}]"
                yield jnp.all((x >= low) & (x <= high)), said
            elif name in sizes:
                said = f"{name} is {sizes[name]}, trained for {low:g} to {high:g}"
                yield low <= sizes[name] <= high, said


def export(
    path: str | os.PathLike,
    fn: Callable[..., PyTree],
    examples: Mapping[str, Any],
    weights: PyTree,
    provenance: Provenance,
    *,
    shapes: Mapping[str, str] | None = None,
    platforms: tuple[str, ...] = ("cpu", "cuda", "tpu"),
) -> None:
    """Lower `fn(weights, **inputs)` for all platforms and write it with its weights to one file.

    Args:
        path: the file, ".safetensors".
        fn: what the network answers; its result is a tree of arrays of standard containers.
        examples: an array (or ShapeDtypeStruct) for each input, by name.
        weights: a pytree, a `Network` say; its arrays go into the file once, for all platforms.
        provenance: see `Provenance`.
        shapes: for inputs some of whose sizes may vary, like {"x": "n, 1", "y": "n"}; each new set
            of sizes is compiled at its first call.
        platforms: of XLA.

    Raises:
        ImportError: flatbuffers is not installed.
        ValueError: a name in `shapes` is no input, or a range of validity is not (low, high).
    """
    shapes = dict(shapes or {})
    unknown = sorted(set(shapes) - set(examples))
    if unknown:
        raise ValueError(f"shapes names {unknown}, but the inputs are {sorted(examples)}")
    for name, bounds in provenance.validity.items():
        if len(bounds) != 2 or not bounds[0] <= bounds[1]:
            raise ValueError(f"validity of {name} is (low, high), got {tuple(bounds)}")
    arrays, static = eqx.partition(weights, eqx.is_array)
    leaves, structure = jax.tree.flatten(arrays)
    names, scope = sorted(examples), jax.export.SymbolicScope()

    def called(leaves, inputs):
        whole = eqx.combine(jax.tree.unflatten(structure, leaves), static)
        return fn(whole, **dict(zip(names, inputs, strict=True)))

    specs = [_spec(examples[name], shapes.get(name), scope) for name in names]
    told = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves]
    program = jax.export.export(jax.jit(called), platforms=platforms)(told, specs)
    try:
        code = jnp.asarray(np.frombuffer(program.serialize(), np.uint8))
    except ImportError as error:
        raise ImportError("exporting needs flatbuffers: pip install flatbuffers") from error
    tensors = {f"{i:05d}": x for i, x in enumerate(leaves)}
    save(
        path,
        {**tensors, _PROGRAM: code},
        export=_VERSION,
        inputs=names,
        digest=_seal({**tensors, _PROGRAM: code}, dataclasses.asdict(provenance)),
        provenance=dataclasses.asdict(provenance),
    )


def load(path: str | os.PathLike) -> Artifact:
    """Read what `export` wrote. Nothing is traced; XLA compiles at the first call.

    With JAX's persistent compilation cache (`jax_compilation_cache_dir`) that is done once a
    machine.

    Raises:
        ImportError: flatbuffers, in which `jax.export` writes, is not installed.
        ArtifactError: no such artifact, damaged, made by a newer version, or not for this platform.
        FileNotFoundError: there is no file.
    """
    tensors, told = read(path)
    notes = json.loads(told["notes"])
    if notes.get("export") is None:
        raise ArtifactError(f"{path} holds weights only: read it with models.learned.load")
    if notes["export"] > _VERSION:
        raise ArtifactError(f"{path} was written by a newer feynkac: update to read it")
    tensors = {name.strip("[]'\""): jnp.asarray(x) for name, x in tensors.items()}
    if _seal(tensors, notes["provenance"]) != notes["digest"]:
        raise ArtifactError(f"{path} is damaged: its digest is not what was written. Get it anew")
    code = tensors.pop(_PROGRAM)
    try:
        program = jax.export.deserialize(bytearray(np.asarray(code).tobytes()))
    except ImportError as error:
        raise ImportError("loading needs flatbuffers: pip install flatbuffers") from error
    except Exception as error:
        versions = notes["provenance"]["versions"]
        raise ArtifactError(
            f"{path} was exported with {versions}, and this JAX {jax.__version__} cannot read it "
            f"({error}): export anew, or use that version"
        ) from None
    here = jax.default_backend().replace("gpu", "cuda")
    if here not in program.platforms:
        raise ArtifactError(
            f"{path} was exported for {', '.join(program.platforms)}, this is {here}: export it "
            f"with platforms=(..., '{here}')"
        )
    weights = [tensors[name] for name in sorted(tensors)]
    noted = notes["provenance"]
    noted["validity"] = {name: tuple(bounds) for name, bounds in noted["validity"].items()}
    return Artifact(program, weights, Provenance(**noted), notes["inputs"])


def _seal(tensors: dict[str, Array], provenance: dict[str, Any]) -> str:
    text = json.dumps(provenance, sort_keys=True).encode()
    return digest({**tensors, "provenance": jnp.asarray(np.frombuffer(text, np.uint8))})


def _spec(example: Any, shape: str | None, scope: Any) -> jax.ShapeDtypeStruct:
    x = example if hasattr(example, "dtype") else jnp.asarray(example)
    if shape is None:
        return jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.ShapeDtypeStruct(jax.export.symbolic_shape(shape, scope=scope), x.dtype)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
