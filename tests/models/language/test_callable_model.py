"""Users' own networks as language models: the Llama as a plain function, Equinox, Flax NNX."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from feynkac.models.language import from_callable, from_nnx, random_llama

V, CONTEXT = 11, 24
PROMPT = [3, 9, 4]


class TinyEquinox(eqx.Module):
    """Sees the running mean of its embeddings: causal."""

    embedding: jax.Array
    out: eqx.nn.MLP

    def __init__(self, key):
        one, two = jax.random.split(key)
        self.embedding = jax.random.normal(one, (V, 6))
        self.out = eqx.nn.MLP(6, V, 8, 1, key=two)

    def __call__(self, tokens):
        x = jnp.cumsum(self.embedding[tokens], axis=0)
        return jax.vmap(self.out)(jnp.tanh(x))


class TinyNNX(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(V, 6, rngs=rngs)
        self.mlp = nnx.Sequential(nnx.Linear(6, 8, rngs=rngs), nnx.relu)
        self.out = nnx.Linear(8, V, rngs=rngs)

    def __call__(self, tokens):
        return 3.0 * self.out(self.mlp(jnp.cumsum(self.embed(tokens), axis=0)))


def equinox_case():
    module = TinyEquinox(jax.random.key(0))
    return from_callable(module, vocab_size=V, eos=0, context=CONTEXT), module


def nnx_case():
    module = TinyNNX(nnx.Rngs(0))
    return from_nnx(module, vocab_size=V, eos=0, context=CONTEXT), module


def function_case():
    weights = jax.random.normal(jax.random.key(1), (V, V))

    def fn(weights, tokens):
        return jnp.cumsum(weights[tokens], axis=0)

    lm = from_callable(fn, weights, vocab_size=V, eos=0, context=CONTEXT)
    return lm, lambda tokens: fn(weights, tokens)


@pytest.fixture(params=[equinox_case, nnx_case, function_case], ids=["equinox", "nnx", "function"])
def case(request):
    return request.param()


@jax.jit
def everything(lm, prefix, tokens):
    """Particles by advancing; replays and log-probs of each."""
    n, size = tokens.shape
    slots = jnp.arange(size, dtype=jnp.int32)

    def step(state, inputs):
        token, slot = inputs
        state = jax.vmap(lm.advance, in_axes=(None, 0, 0, None))(prefix, state, token, slot)
        return state, state.logits

    start = jax.vmap(lambda _: lm.start(prefix, size))(jnp.arange(n))
    _, advanced = jax.lax.scan(step, start, (tokens.T, slots))
    counts = jnp.arange(size + 1, dtype=jnp.int32)
    replayed = jax.vmap(lambda count: lm.replay(prefix, tokens[0], count, size).logits)(counts)
    return advanced.swapaxes(0, 1), replayed, jax.vmap(lambda t: lm.log_probs(prefix, t))(tokens)


@pytest.mark.x64
@pytest.mark.slow
def test_law(case):
    lm, reference = case
    tokens = jax.random.randint(jax.random.key(2), (3, 7), 0, V, jnp.int32)
    advanced, replayed, log_probs = everything(lm, lm.prompt(PROMPT, bucket=4), tokens)
    for i, suffix in enumerate(tokens):
        logits = np.asarray(reference(jnp.concatenate([jnp.array(PROMPT, jnp.int32), suffix])))[2:]
        np.testing.assert_allclose(advanced[i], logits[1:], atol=1e-5)
        if i == 0:
            np.testing.assert_allclose(replayed, logits, atol=1e-5)
        expected = np.asarray(jax.nn.log_softmax(logits[:-1]))[np.arange(7), suffix]
        np.testing.assert_allclose(log_probs[i], expected, atol=1e-5)


def test_full_context(case):
    """Padded prompt plus suffix exceed the context; the valid tokens do not."""
    lm, reference = case
    tokens = jax.random.randint(jax.random.key(3), (1, CONTEXT - 3), 0, V, jnp.int32)
    advanced, _, _ = everything(lm, lm.prompt(PROMPT, bucket=16), tokens)
    logits = reference(jnp.concatenate([jnp.array(PROMPT, jnp.int32), tokens[0]]))
    np.testing.assert_allclose(advanced[0], logits[3:], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_cached_decoder_equals_its_recomputation():
    llama = random_llama(jax.random.key(4), V, context=CONTEXT, scale=2.0)

    def fn(llama, tokens):
        count = jnp.arange(1, tokens.shape[0] + 1, dtype=jnp.int32)
        return jax.vmap(lambda n: llama.prefill(tokens, n).logits)(count)

    lm = from_callable(fn, llama, vocab_size=V, eos=0, context=CONTEXT)
    tokens = jax.random.randint(jax.random.key(5), (6,), 0, V, jnp.int32)
    got, want = (
        eqx.filter_jit(m.log_probs)(m.prompt(PROMPT, bucket=4), tokens) for m in (llama, lm)
    )
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_parameters_are_arguments_not_constants():
    lm, _ = function_case()
    other, _ = function_case()
    doubled = eqx.tree_at(lambda m: m.params, lm, 2.0 * lm.params)
    np.testing.assert_allclose(doubled.prompt(PROMPT).logits, 2.0 * lm.prompt(PROMPT).logits)
    for make in (equinox_case, nnx_case):
        one, two = make()[0], make()[0]
        assert jax.tree.structure(one) == jax.tree.structure(two)
        assert hash(jax.tree.structure(one)) == hash(jax.tree.structure(two))


def test_errors():
    with pytest.raises(ValueError, match="let it return logits of shape \\(2, 7\\)"):
        from_callable(TinyEquinox(jax.random.key(0)), vocab_size=7, eos=0, context=CONTEXT)
    lm, _ = function_case()
    prefix = lm.prompt(PROMPT)
    with pytest.raises(ValueError, match="exceed the context of 24"):
        lm.start(prefix, 22)
    with pytest.raises(ValueError, match="2 tokens do not fit into max_tokens=1"):
        lm.replay(prefix, jnp.zeros(2, jnp.int32), jnp.int32(1), 1)
