"""How a function of one particle is run over all: at once, in blocks, or over devices."""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree


class Mapping(eqx.Module):
    """Memory and placement of a run. Law: the numbers do not depend on it, last bits apart."""

    @abc.abstractmethod
    def over(self, fn: Callable, *batched: PyTree) -> PyTree:
        """Apply `fn` to each slice along the leading axis of the trees; results get that axis."""

    def place(self, batched: PyTree) -> PyTree:
        """Say where a population lives; the identity on one device."""
        return batched


class Vmap(Mapping):
    """All particles at once: fastest, most memory."""

    def over(self, fn: Callable, *batched: PyTree) -> PyTree:
        """See `Mapping.over`."""
        return jax.vmap(fn)(*batched)


class Chunked(Mapping):
    """`size` particles at a time: the working memory of a step is that of `size` particles."""

    size: int = eqx.field(static=True)

    def __check_init__(self):
        if self.size < 1:
            raise ValueError(f"Chunked needs a size of at least 1, got {self.size}")

    def over(self, fn: Callable, *batched: PyTree) -> PyTree:
        """See `Mapping.over`."""
        return jax.lax.map(lambda xs: fn(*xs), batched, batch_size=self.size)


class Sharded(Mapping):
    """Particles spread over the devices of a mesh axis; resampling becomes a collective.

    The number of particles has to be a multiple of the axis's size. What is unbatched (weights,
    prompt) is replicated.
    """

    mesh: Mesh = eqx.field(static=True)
    axis: str = eqx.field(static=True, default="particles")

    def __check_init__(self):
        if self.axis not in self.mesh.shape:
            raise ValueError(
                f"the mesh has axes {tuple(self.mesh.shape)}, not {self.axis!r}: name one with "
                "axis="
            )

    def over(self, fn: Callable, *batched: PyTree) -> PyTree:
        """See `Mapping.over`."""
        return self.place(jax.vmap(fn)(*self.place(batched)))

    def place(self, batched: PyTree) -> PyTree:
        """Constrain the leading axis to the mesh."""
        sharding = NamedSharding(self.mesh, PartitionSpec(self.axis))

        def one(x):
            if x.shape[0] % self.mesh.shape[self.axis]:
                raise ValueError(
                    f"{x.shape[0]} particles do not divide over {self.mesh.shape[self.axis]} "
                    "devices: use a multiple"
                )
            return jax.lax.with_sharding_constraint(x, sharding)

        return jax.tree.map(one, batched)
