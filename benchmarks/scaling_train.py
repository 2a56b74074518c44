"""Trains the small decoders that `scaling.py` asks: three layers of width 64, 32 characters.

One for each task, from nothing, on solutions of random questions; none of the test's is among them.
Training stops long before they are good, so that their answers are right now and then.
"""

import time
from dataclasses import replace
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

SIZES = {"layers": 3, "d": 64, "heads": 4, "kv_heads": 2, "context": 256}
ROPE_BASE = 500.0  # texts are short
STEPS, BATCH, EVERY = 500, 32, 15  # at most so many steps; a snapshot every so many
ENOUGH = 1.4  # nats a solution: more than every third answer is right
LINES = {"count_bits": 10, "chain_sum": 6, "number_sorting": 8}  # at most, of a right solution


def empty_model() -> Llama:
    """Random weights, small at the head."""
    scale = 0.1 / SIZES["d"] ** 0.5
    lm = random_llama(key(0), tasks.VOCABULARY, eos=tasks.EOS, scale=scale, **SIZES)
    return replace(lm, config=replace(lm.config, rope_base=ROPE_BASE))


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


def batch(task: str, rng: np.random.Generator, held_out: frozenset):
    """Texts [size, T] of one task, and what of them counts: the solution and the end."""
    longest = (LINES[task] + 1) * tasks.WIDTH
    tokens = np.full((BATCH, longest + 1), tasks.EOS, np.int32)
    weights = np.zeros((BATCH, longest), np.float32)
    for row in range(BATCH):
        prompt = tasks.random_prompt(task, rng, held_out)
        text = tasks.encode(prompt + "".join(tasks.solve(task, prompt)))
        tokens[row, : len(text)] = text
        weights[row, tasks.WIDTH - 1 : len(text)] = 1
    return tokens, weights


def snapshots(folder: Path, task: str, held_out: frozenset) -> list[Path]:
    """The states of the model along its training, which is done or gone on with if need be."""
    if not (folder / "done").exists():
        train(folder, task, held_out)
        (folder / "done").touch()
    return sorted(folder.glob("*.eqx"))


def train(folder: Path, task: str, held_out: frozenset) -> None:
    """Train until the mean loss of the last batches is below `ENOUGH`.

    Matrices of the layers by Muon (Jordan et al. 2024), the rest by Adam; the rate falls linearly.
    Goes on from the last snapshot that there is, with fresh moments.
    """
    lm, before = empty_model(), 0
    for path in sorted(folder.glob("*.eqx"))[-1:]:
        lm, before = load(path), int(path.stem.removeprefix("step-"))
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

    state = optimizer.init(eqx.filter(lm, eqx.is_array))
    rng, values, start = np.random.default_rng(before + 1), [], time.process_time()
    for i in range(before + 1, STEPS + 1):
        rate = jnp.asarray(min(1.0, (i - before) / 50, 1.05 - i / STEPS))
        tokens, weights = batch(task, rng, held_out)
        lm, state, value = step(lm, state, rate, tokens, weights)
        values.append(float(value) * weights.sum() / BATCH)
        if i % EVERY == 0:
            mean, spent = np.mean(values[-EVERY:]), (time.process_time() - start) / 60
            print(f"{task}: step {i}, {mean:.2f} nats a solution, {spent:.2f} CPU-min", flush=True)
            save(folder / f"step-{i:04d}.eqx", lm)
            if mean < ENOUGH:
                return


def save(path: Path, lm: Llama) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".part"), "wb") as file:
        eqx.tree_serialise_leaves(file, lm)
    path.with_suffix(".part").replace(path)


def load(path: Path) -> Llama:
    return eqx.tree_deserialise_leaves(path, empty_model())
