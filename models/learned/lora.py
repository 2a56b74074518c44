"""Low-rank adapters: a language model with some matrices moved by a product of two thin ones.

Hu et al. (2022), "LoRA: Low-rank adaptation of large language models", section 4.1:
W x becomes W x + (alpha / r) B A x, with B = 0 before training.
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from ..language.llama import Adapted, Layer, Llama

MATRICES = ("query", "key", "value", "output", "gate", "up", "down")


class Lora(eqx.Module):
    """The low-rank terms of a `Llama`: what is trained, saved and loaded.

    `lora.on(lm)` is the adapted model, a `Llama` as any other, whose law is its own: it writes,
    proposes (`proposed_by`, weights corrected against the base model) and is a prior. New adapters
    on a model compile nothing. `ups` and `downs` have one dict a layer, of matrix name to
    B [out, r] and A [r, in].
    """

    ups: tuple[dict[str, Array], ...]
    downs: tuple[dict[str, Array], ...]
    scale: Float[Array, ""]

    @property
    def rank(self) -> int:
        """R."""
        return jax.tree.leaves(self.downs)[0].shape[0]

    def on(self, lm: Llama) -> Llama:
        """The adapted model; the sums of matrices are not made. Base weights are shared."""
        self._check(lm)
        scale = jax.lax.stop_gradient(self.scale)

        def adapted(layer: Layer, ups: dict, downs: dict) -> Layer:
            for name in ups:
                base, up = getattr(layer, name), ups[name]
                term = Adapted(base, up.astype(base.dtype) * scale.astype(base.dtype),
                               downs[name].astype(base.dtype))  # fmt: skip
                layer = eqx.tree_at(lambda x, name=name: getattr(x, name), layer, term)
            return layer

        layers = tuple(map(adapted, lm.layers, self.ups, self.downs))
        return eqx.tree_at(lambda m: m.layers, lm, layers)

    def merged(self, lm: Llama) -> Llama:
        """The adapted model as plain weights, a copy of those that it changes."""
        return jax.tree.map(
            lambda x: x.merged if isinstance(x, Adapted) else x,
            self.on(lm),
            is_leaf=lambda x: isinstance(x, Adapted),
        )

    def _check(self, lm: Llama) -> None:
        if len(lm.layers) != len(self.ups):
            raise ValueError(
                f"the adapter has {len(self.ups)} layers, the model {len(lm.layers)}: it belongs "
                "to another model"
            )
        for layer, ups, downs in zip(lm.layers, self.ups, self.downs, strict=True):
            for name, up in ups.items():
                matrix = getattr(layer, name)
                if isinstance(matrix, Adapted):
                    raise ValueError(
                        "this model has an adapter already: merge that first, lora.merged(lm)"
                    )
                if matrix.shape != (up.shape[0], downs[name].shape[1]):
                    raise ValueError(
                        f"the adapter of {name!r} is for a matrix "
                        f"{(up.shape[0], downs[name].shape[1])}, the model has {matrix.shape}: it "
                        "belongs to another model"
                    )


def lora(
    key: PRNGKeyArray,
    lm: Llama,
    rank: int = 8,
    matrices: Sequence[str] = ("query", "value"),
    alpha: ArrayLike | None = None,
) -> Lora:
    """Adapters that change nothing yet (B = 0, A normal with variance 1/in).

    Args:
        key: draws A.
        lm: the base model.
        rank: r, at least 1.
        matrices: which of query, key, value, output, gate, up, down, in every layer.
        alpha: the term is scaled by alpha / rank; by default 2 rank.
    """
    wrong = sorted(set(matrices) - set(MATRICES))
    if wrong or not matrices:
        raise ValueError(f"no matrices {wrong} in a Llama: choose from {', '.join(MATRICES)}")
    if rank < 1:
        raise ValueError(f"the rank is at least 1, got {rank}")
    keys = iter(jax.random.split(key, len(lm.layers) * len(matrices)))
    ups, downs = [], []
    for layer in lm.layers:
        shapes = {name: getattr(layer, name).shape for name in matrices}
        ups.append({name: jnp.zeros((out, rank)) for name, (out, _) in shapes.items()})
        downs.append(
            {
                name: jax.random.normal(next(keys), (rank, size)) / size**0.5
                for name, (_, size) in shapes.items()
            }
        )
    scale = jnp.asarray(2.0 * rank if alpha is None else alpha, dtype=float) / rank
    return Lora(tuple(ups), tuple(downs), scale)
