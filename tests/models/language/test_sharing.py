"""One pass for equal texts: the same values, derivatives and states, and fewer rows run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac.models.language import Text, random_llama
from feynkac.models.language.sharing import distinct, once_for_equal, rows_of

N, S = 16, 5


def texts(key, n: int, kinds: int) -> jax.Array:
    """n texts of exactly `kinds` kinds, in an order of their own."""
    some = jnp.arange(kinds)[:, None] + jnp.arange(S)[None, :]
    return some[jax.random.permutation(key, jnp.arange(n) % kinds)].astype(jnp.int32)


def test_rows():
    assert [rows_of(n) for n in (1, 8, 15, 16, 32, 64, 256)] == [1, 8, 15, 8, 8, 16, 64]


@pytest.mark.parametrize("kinds", [1, 7, 8, 9])
def test_distinct_texts_by_brute_force(kinds):
    text = np.asarray(texts(jax.random.key(kinds), N, kinds))
    for seed, share in enumerate((1.0, 0.6, 0.0)):
        live = np.random.default_rng(seed).random(N) < share
        chosen, place, many = distinct(jnp.asarray(text), jnp.asarray(live), 8)
        alive = {tuple(row) for row in text[live]}
        assert bool(many) == (len(alive) > 8)
        if not many:
            found = text[np.asarray(chosen)[np.asarray(place)]]
            np.testing.assert_array_equal(found[live], text[live])
            assert len({tuple(row) for row in text[np.asarray(chosen)]} | alive) <= len(alive) + 1


class Rows:
    """Counts the rows that run."""

    def __init__(self):
        self.count = 0
        self.run = jax.jit(self._run)

    def _run(self, common, own, memory, row):
        def seen(_):
            self.count += 1

        jax.debug.callback(seen, own)
        kept = memory if row is None else memory[row]
        return {"a": jnp.sin(common * own) + kept.sum(), "b": kept[0] * own}


def measured(text):
    x = jnp.asarray(text, float)
    return x.sum(-1) / 10.0, jnp.cos(x)


def shared(rows, common, text, live=True):
    own, memory = measured(text)

    def one(own, memory, text, live):
        return once_for_equal(rows.run, common, own, memory, text, live)

    return jax.vmap(one)(own, memory, text, jnp.broadcast_to(live, text.shape[:1]))


def alone(common, text):
    out = [Rows().run(common, *measured(row), row=None) for row in jnp.asarray(text)]
    return jax.tree.map(lambda *x: jnp.stack(x), *out)


@pytest.mark.parametrize(("kinds", "ran"), [(1, 8), (8, 8), (9, 16), (16, 16)])
def test_values_and_rows(kinds, ran):
    text, rows = texts(jax.random.key(1), N, kinds), Rows()
    out = jax.block_until_ready(jax.jit(lambda c, t: shared(rows, c, t))(0.7, text))
    jax.effects_barrier()
    assert rows.count == ran
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), out, alone(0.7, text))


def test_the_dead_take_no_row():
    text, rows = texts(jax.random.key(1), N, N), Rows()
    live = jnp.arange(N) % 3 == 0
    out = jax.block_until_ready(jax.jit(lambda t: shared(rows, 0.7, t, live))(text))
    jax.effects_barrier()
    assert rows.count == 8
    expected = alone(0.7, text)
    np.testing.assert_allclose(out["a"][live], expected["a"][live], rtol=1e-6)
    assert np.all(np.isfinite(out["a"]))


def test_derivatives():
    text = texts(jax.random.key(1), N, 3)

    def loss(common, run):
        out = run(common, text)
        return jnp.sum(out["a"] ** 2) + jnp.sum(out["b"])

    got = jax.grad(lambda c: loss(c, lambda c, t: shared(Rows(), c, t)))(0.7)
    np.testing.assert_allclose(got, jax.grad(lambda c: loss(c, alone))(0.7), rtol=1e-5)


def test_chains_of_populations_and_a_model_for_each():
    text = jnp.stack([texts(jax.random.key(i), N, kinds) for i, kinds in enumerate((2, 12, 5))])
    expected = [alone(0.7, rows) for rows in text]
    out = jax.jit(jax.vmap(lambda t: shared(Rows(), 0.7, t)))(text)
    for i, want in enumerate(expected):
        np.testing.assert_allclose(out["a"][i], want["a"], rtol=1e-6)
    weights = jnp.linspace(0.0, 5.0, N)
    run = jax.vmap(lambda c, t: once_for_equal(Rows().run, c, *measured(t), t, jnp.ones((), bool)))
    one = jnp.tile(text[0, :1], (N, 1))  # the same text, but a weight for each
    out = jax.jit(run)(weights, one)["a"]
    np.testing.assert_allclose(out, [alone(w, one[:1])["a"][0] for w in weights], rtol=1e-5)


@pytest.mark.parametrize("kinds", [3, 12])
@pytest.mark.parametrize("gaps", [False, True])
def test_a_population_of_a_decoder_equals_its_members(kinds, gaps):
    """Texts that part at different slots, prompts of their own, gaps, and texts that ended."""
    vocab, slots = 11, 20
    lm = random_llama(jax.random.key(1), vocab, layers=2, d=24, heads=6, kv_heads=2, scale=2.0)
    prompts = lm.prompts([[1, 2, 3], [4, 5]])
    rng = np.random.default_rng(kinds)
    some = np.repeat(rng.integers(0, vocab, (1, slots)), kinds, axis=0)
    for i in range(kinds):
        some[i, i:] = rng.integers(0, vocab, slots - i)
    which = rng.permutation(np.arange(N) % kinds)
    tokens, prompt = jnp.asarray(some[which], jnp.int32), jnp.asarray(which % 2)
    live = jnp.asarray(rng.random((N, slots)).cumsum(1) < 12)
    write = jnp.asarray((rng.random((kinds, slots)) < 0.7)[which] | (not gaps))

    def member(prompt, tokens, live, write):
        prefix = prompts.choose(prompt)

        def step(state, inputs):
            token, live, write, slot = inputs
            options = {"write": write} if gaps else {}
            state = lm.advance(prefix, state, token, slot, live=live, **options)
            return state, (state.logits, state.hidden)

        inputs = tokens, live, write, jnp.arange(slots, dtype=jnp.int32)
        return jax.lax.scan(step, lm.start(prefix, slots, gaps), inputs)[1]

    together = jax.jit(jax.vmap(member))(prompt, tokens, live, write)
    apart = jax.lax.map(lambda x: member(*x), (prompt, tokens, live, write))
    for got, want in zip(together, apart, strict=True):
        np.testing.assert_allclose(got[live], want[live], atol=2e-5)


@pytest.mark.x64
def test_a_program_may_go_on_after_the_end():
    """Unless it says that a text is final, what is written after its end is as of one alone."""
    slots = 12
    lm = random_llama(jax.random.key(1), 5, layers=1, d=12, heads=3, kv_heads=1, scale=2.0)
    prefix = lm.prompt([1, 2])
    tokens = jax.random.randint(jax.random.key(2), (N, slots), 0, 5, jnp.int32)
    assert np.any(np.asarray(tokens)[:, :6] == lm.eos, axis=1).sum() > 8

    def member(tokens):
        def step(text, inputs):
            text = text.write(lm, prefix, *inputs)
            return text, text.logits

        inputs = tokens, jnp.arange(slots, dtype=jnp.int32)
        return jax.lax.scan(step, Text.start(lm, prefix, slots), inputs)[1]

    together, apart = jax.jit(jax.vmap(member))(tokens), jax.lax.map(member, tokens)
    np.testing.assert_allclose(together, apart, atol=2e-5)
