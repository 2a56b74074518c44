"""Trains the small decoder that `scaling.py` asks: three layers of width 128, 26 characters.

One model for the three tasks, from nothing, on solutions of random questions; none of the test's is
among them. It is stopped long before it is good, so that its answers are right now and then.
"""

import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import scaling_tasks as tasks
from jax.random import key

from feynkac.models.language import Llama, random_llama
from feynkac.models.language.cache import attend

SIZES = {"layers": 3, "d": 128, "heads": 4, "kv_heads": 2, "context": 256}


def empty_model() -> Llama:
    """Random weights, small at the head."""
    return random_llama(
        key(0), tasks.VOCABULARY, eos=tasks.EOS, scale=0.1 / SIZES["d"] ** 0.5, **SIZES
    )


def logits(lm: Llama, tokens: jax.Array) -> jax.Array:
    """Of every next token of one text [T]: [T, V]."""
    places = jnp.arange(tokens.shape[0], dtype=jnp.int32)
    causal = places[None, :] <= places[:, None]

    def attention(index, query, cache):
        part = attend(query, cache, causal)
        return part.output / part.total[..., None]

    x, _ = lm._decode(tokens, places, jnp.int32(0), lm._empty(tokens.shape[0]), attention)
    return lm._read(x)[0]


def loss(lm: Llama, tokens: jax.Array, weights: jax.Array) -> jax.Array:
    """Mean nats a token of the solutions."""
    out = jax.vmap(logits, (None, 0))(lm, tokens[:, :-1])
    each = optax.softmax_cross_entropy_with_integer_labels(out, tokens[:, 1:])
    return jnp.sum(each * weights) / jnp.sum(weights)


def batch(task: str, size: int, rng: np.random.Generator, held_out: frozenset):
    """Texts [size, T] of one task, and what of them counts."""
    prompts = [tasks.random_prompt(task, rng, held_out) for _ in range(size)]
    texts = [tasks.encode(p + "".join(tasks.solve(p))) for p in prompts]
    longest = {"chain_sum": 86, "number_sorting": 67, "count_bits": 106}[task]
    tokens = np.full((size, longest + 1), tasks.EOS, np.int32)
    weights = np.zeros((size, longest), np.float32)
    for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        tokens[i, : len(text)] = text
        weights[i, len(prompt) - 1 : len(text)] = 1  # the end of the text counts
    return tokens, weights


def snapshots(folder: Path, minutes: float, held_out: frozenset) -> list[Path]:
    """The states of the model along its training, which is done if there are none."""
    if not (folder / "done").exists():
        train(folder, minutes, held_out)
        (folder / "done").touch()
    return sorted(folder.glob("*.eqx"))


def train(folder: Path, minutes: float, held_out: frozenset, size: int = 24) -> None:
    """Train for so many minutes of processor time, and save every half minute.

    Matrices of the layers by Muon (Jordan et al. 2024), the rest by Adam; the rate falls to a
    twentieth along the time. After a third of it count_bits is known well enough and left out. Goes
    on from the last snapshot that there is, with fresh moments.
    """
    lm, before = empty_model(), 0.0
    for path in sorted(folder.glob("*.eqx"))[-1:]:
        lm, before = load(path), float(path.stem.removeprefix("minute-"))
    labels = jax.tree.map(lambda x: "rest", eqx.filter(lm, eqx.is_array))
    labels = eqx.tree_at(
        lambda m: m.layers,
        labels,
        jax.tree.map(lambda x: "matrix" if x.ndim == 2 else "rest", lm.layers),
    )

    def every(tree):
        return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(), tree)

    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.partition(
            {
                "matrix": optax.chain(
                    optax.contrib.scale_by_muon(weight_dimension_numbers=every), optax.scale(0.02)
                ),
                "rest": optax.chain(optax.scale_by_adam(b2=0.98), optax.scale(3e-3)),
            },
            labels,
        ),
    )

    @eqx.filter_jit(donate="all")
    def step(lm, state, rate, tokens, weights):
        value, grads = eqx.filter_value_and_grad(loss)(lm, tokens, weights)
        updates, state = optimizer.update(grads, state, lm)
        updates = jax.tree.map(lambda x: -rate * x, updates)
        return eqx.apply_updates(lm, updates), state, value

    state, rng = (
        optimizer.init(eqx.filter(lm, eqx.is_array)),
        np.random.default_rng(int(100 * before) + 1),
    )
    seen = {task: [] for task in tasks.TASKS}
    start, shown, i, spent = time.process_time(), before, 0, before
    while spent < minutes:
        now = tasks.TASKS if spent < minutes / 3 else tasks.TASKS[:2]
        task = now[i % len(now)]
        rate = jnp.asarray(min(1.0, (i + 1) / 50) * max(0.05, 1 - spent / minutes))
        lm, state, value = step(lm, state, rate, *batch(task, size, rng, held_out))
        seen[task].append(float(value))
        i, spent = i + 1, before + (time.process_time() - start) / 60
        if spent > shown + 0.5 or spent >= minutes:
            shown = spent
            means = "  ".join(f"{t} {np.mean(v[-20:]):.3f}" for t, v in seen.items() if v)
            print(f"step {i}, {spent:.1f} CPU-min, nats a character: {means}", flush=True)
            save(folder / f"minute-{spent:05.2f}.eqx", lm)


def save(path: Path, lm: Llama) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".part"), "wb") as file:
        eqx.tree_serialise_leaves(file, lm)
    path.with_suffix(".part").replace(path)


def load(path: Path) -> Llama:
    return eqx.tree_deserialise_leaves(path, empty_model())
