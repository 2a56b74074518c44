"""The decoder: against a plain NumPy one, its own methods against each other, and its programs."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compile_count import compiles

from feynkac.models.language import Llama, State, encode_prompt, random_llama

V, MAX = 23, 20
PROMPT = [5, 1, 7, 7, 2]


@pytest.fixture(scope="module")
def lm() -> Llama:
    return random_llama(jax.random.key(1), V, layers=2, d=24, heads=6, kv_heads=2, scale=2.0)


@pytest.fixture(scope="module")
def suffix() -> np.ndarray:
    return np.random.default_rng(2).integers(0, V, MAX).astype(np.int32)


def numpy_logits(lm: Llama, tokens) -> np.ndarray:
    """Float64, one head and one query position at a time, rotation by complex numbers."""
    c = lm.config
    w = jax.tree.map(lambda x: np.asarray(x, np.float64), eqx.filter(lm, eqx.is_array))
    half = c.head_dim // 2

    def norm(x, weight):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + c.norm_eps) * weight

    def rotate(x, t):
        turned = (x[:half] + 1j * x[half:]) * np.exp(
            1j * t * c.rope_base ** (-np.arange(half) / half)
        )
        return np.concatenate([turned.real, turned.imag])

    x = w.embedding[np.asarray(tokens)]
    for layer in w.layers:
        h = norm(x, layer.attention_norm)
        out = np.zeros((len(x), c.heads * c.head_dim))
        for head in range(c.heads):
            shared = head // (c.heads // c.kv_heads)
            rows = slice(head * c.head_dim, (head + 1) * c.head_dim)
            shared_rows = slice(shared * c.head_dim, (shared + 1) * c.head_dim)
            k = [rotate(layer.key[shared_rows] @ h[t], t) for t in range(len(x))]
            v = h @ layer.value[shared_rows].T
            for t in range(len(x)):
                q = rotate(layer.query[rows] @ h[t], t)
                scores = np.array([q @ k[s] for s in range(t + 1)]) / np.sqrt(c.head_dim)
                weights = np.exp(scores - scores.max())
                out[t, rows] = weights / weights.sum() @ v[: t + 1]
        x = x + out @ layer.output.T
        h = norm(x, layer.mlp_norm)
        gate = h @ layer.gate.T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ layer.up.T)) @ layer.down.T
    return norm(x, w.norm) @ (w.embedding if w.head is None else w.head).T


def advance_all(lm, prefix, tokens, max_tokens=MAX) -> State:
    """States after each of the tokens, by advancing: leading axis T."""

    @eqx.filter_jit
    def run(lm, prefix, tokens):
        def step(state, inputs):
            state = lm.advance(prefix, state, *inputs)
            return state, state

        slots = jnp.arange(len(tokens), dtype=jnp.int32)
        return jax.lax.scan(step, lm.start(prefix, max_tokens), (tokens, slots))[1]

    return run(lm, prefix, jnp.asarray(tokens))


@pytest.mark.parametrize("tied", [False, True])
def test_logits_equal_numpy(lm, suffix, tied):
    lm = eqx.tree_at(lambda m: m.head, lm, None) if tied else lm
    expected = numpy_logits(lm, [*PROMPT, *suffix])
    prefix = lm.prompt(PROMPT, bucket=16)
    np.testing.assert_allclose(prefix.logits, expected[len(PROMPT) - 1], atol=2e-5)
    states = advance_all(lm, prefix, suffix)
    np.testing.assert_allclose(states.logits, expected[len(PROMPT) :], atol=2e-5)


@pytest.mark.x64
def test_replay_equals_advance(lm, suffix):
    prefix = lm.prompt(PROMPT, bucket=16)
    states = advance_all(lm, prefix, suffix)
    replay = eqx.filter_jit(lm.replay)
    for count in (0, 1, 9, MAX):
        state = replay(prefix, jnp.asarray(suffix), jnp.int32(count), MAX)
        expected = prefix.logits if count == 0 else states.logits[count - 1]
        np.testing.assert_allclose(state.logits, expected, atol=1e-5)
        if count:
            caches = (state.cache.layers, states.cache.layers)
            pairs = zip(*map(jax.tree.leaves, caches), strict=True)
            for got, want in pairs:
                np.testing.assert_allclose(got[:, :count], want[count - 1, :, :count], atol=1e-5)


def test_advance_goes_on_after_replay(lm, suffix):
    """What replay leaves beyond `count` is overwritten before it is seen."""
    prefix = lm.prompt(PROMPT, bucket=16)
    expected = advance_all(lm, prefix, suffix).logits
    wrong = np.where(np.arange(MAX) < 9, suffix, (suffix + 1) % V)
    state = eqx.filter_jit(lm.replay)(prefix, jnp.asarray(wrong), jnp.int32(9), MAX)
    advance = eqx.filter_jit(lm.advance)
    for slot in range(9, 12):
        state = advance(prefix, state, jnp.asarray(suffix[slot]), jnp.int32(slot))
        np.testing.assert_allclose(state.logits, expected[slot], atol=1e-5)


@pytest.mark.x64
def test_log_probs_equal_advance(lm, suffix):
    prefix = lm.prompt(PROMPT, bucket=16)
    logits = np.concatenate([prefix.logits[None], advance_all(lm, prefix, suffix).logits[:-1]])
    logits = logits.astype(np.float64)
    expected = logits[np.arange(MAX), suffix] - np.log(np.exp(logits).sum(-1))
    log_probs = eqx.filter_jit(lm.log_probs)
    np.testing.assert_allclose(log_probs(prefix, jnp.asarray(suffix)), expected, atol=1e-5)
    np.testing.assert_allclose(log_probs(prefix, jnp.asarray(suffix[:1])), expected[:1], atol=1e-5)


def test_bucket_of_the_prompt_changes_nothing(lm, suffix):
    logits = [advance_all(lm, lm.prompt(PROMPT, bucket), suffix).logits for bucket in (5, 64)]
    np.testing.assert_allclose(*logits, atol=1e-5)


def particles(lm, prefix, tokens):
    """A scan over slots of a vmap over particles, as the samplers run it."""

    def step(state, inputs):
        token, slot = inputs
        return jax.vmap(lm.advance, in_axes=(None, 0, 0, None))(prefix, state, token, slot), None

    n, size = tokens.shape
    state = jax.vmap(lambda _: lm.start(prefix, size))(jnp.arange(n))
    return jax.lax.scan(step, state, (tokens.T, jnp.arange(size, dtype=jnp.int32)))[0]


@pytest.mark.x64
@pytest.mark.parametrize("n", [4, 16])
def test_vmap_equals_loop_and_stores_the_prompt_once(lm, n):
    prefix = lm.prompt(PROMPT, bucket=16)
    tokens = jax.random.randint(jax.random.key(3), (n, 32), 0, V, jnp.int32)
    compiled = jax.jit(particles).lower(lm, prefix, tokens).compile()
    state = compiled(lm, prefix, tokens)
    for i in range(n):
        alone = advance_all(lm, prefix, tokens[i], 32)
        np.testing.assert_allclose(state.logits[i], alone.logits[-1], atol=1e-5)
        np.testing.assert_allclose(
            state.cache.layers[1].keys[i], alone.cache.layers[1].keys[-1], atol=1e-5
        )

    c, text = lm.config, compiled.as_text()
    replicated = rf"f\d+\[{n},{c.kv_heads},16,{c.head_dim}\]\S* broadcast"
    assert not re.search(replicated, text), "the prefix is copied for every particle"
    own = rf"f\d+\[{n},{c.kv_heads},32,{c.head_dim}\]\S* copy\("
    body = text[text.index("%region") : text.index("ENTRY")]
    assert re.search(own.removesuffix(r" copy\("), body), "the pattern no longer fits the program"
    assert not re.search(own, body), "the suffix cache is copied at every step"


def test_a_second_prompt_compiles_nothing(lm):
    lm.prompt(PROMPT, bucket=16)
    other = eqx.tree_at(lambda m: m.norm, lm, 2.0 * lm.norm)
    encode_prompt(lm, [1, 2], 16)
    with compiles() as c:
        lm.prompt([1, 2, 3, 4, 5, 6, 7], bucket=16)
        other.prompt([3], bucket=16)
    assert c.count == 0, c.names


def test_prompts(lm):
    tokens, length = encode_prompt(lm, PROMPT, bucket=4)
    assert (tokens.tolist(), int(length)) == ([*PROMPT, 0, 0, 0], 5)
    for same in (np.array(PROMPT), jnp.array(PROMPT), tuple(PROMPT)):
        assert encode_prompt(lm, same, bucket=4)[0].tolist() == tokens.tolist()
    tokens, length = encode_prompt(lm, [], bucket=4)
    assert (tokens[0], length) == (lm.eos, 1)
    assert encode_prompt(lm, [1] * 100, bucket=64)[0].shape == (lm.context,) == (128,)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([1] * 128, "no room for an answer"),
        ([1, V], "Token ids are 0 to 22"),
        ([-1], "Token ids are 0 to 22"),
        (np.zeros((2, 2), np.int32), "a vector of integers"),
        (np.zeros(2), "a vector of integers"),
        ("text", "no tokenizer"),
        ([{"role": "user", "content": "x"}], "no tokenizer"),
    ],
)
def test_bad_prompts(lm, prompt, message):
    with pytest.raises(ValueError, match=message):
        encode_prompt(lm, prompt)


def test_no_room(lm):
    prefix = lm.prompt([1] * 100, bucket=16)
    assert lm.start(prefix, 28).cache.layers[0].keys.shape[1] == 32
    with pytest.raises(ValueError, match="exceed the context of 128"):
        lm.start(prefix, 29)
    with pytest.raises(ValueError, match="exceed the context of 128"):
        lm.replay(prefix, jnp.zeros(3, jnp.int32), jnp.int32(1), 29)
    with pytest.raises(ValueError, match="3 tokens do not fit into max_tokens=2"):
        lm.replay(prefix, jnp.zeros(3, jnp.int32), jnp.int32(1), 2)
    with pytest.raises(ValueError, match="at least 1"):
        lm.start(prefix, 0)


def test_random_llama_refuses_odd_sizes():
    with pytest.raises(ValueError, match="multiple"):
        random_llama(jax.random.key(0), V, d=18, heads=4)
