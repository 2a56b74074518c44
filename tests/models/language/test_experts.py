"""Products of language models, latent prompts and infilling, against sums over all texts."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac import inference, models, ppl
from feynkac.models.finite import MarkovLanguageModel, MarkovLM
from feynkac.models.language import random_llama
from feynkac.models.language.fusion import LanguageModelPotential, intersection
from feynkac.models.language.infilling import Free, infilling, next_weight, template
from feynkac.models.language.latent import personas, prompt_posterior

EOS, T = 0, 4
TABLE = np.array([[0.1, 0.5, 0.4], [0.3, 0.5, 0.2], [0.25, 0.35, 0.4]])
OTHER = np.array([[0.3, 0.3, 0.4], [0.1, 0.2, 0.7], [0.5, 0.3, 0.2]])
LM, WEAK = (MarkovLanguageModel(MarkovLM(jnp.log(t[0]), jnp.log(t), EOS)) for t in (TABLE, OTHER))


def texts(longest):
    """All texts that end within so many tokens, the end among them."""
    for n in range(longest):
        yield from itertools.product([1, 2], repeat=n)


def log_p(text, table=TABLE, last=1, power=1.0):
    """With every row of the table to a power and normalized."""
    table = table**power / (table**power).sum(1, keepdims=True)
    return sum(np.log(table[a, b]) for a, b in itertools.pairwise([last, *text, EOS]))


def check(model, weigh):
    """The enumerated law is the weights given by hand."""
    exact = inference.exact.enumerate(model)
    total = np.logaddexp.reduce([weigh(t) for t in texts(T)])
    assert np.isclose(exact.log_evidence, total, atol=1e-5)
    return exact


def contrast():
    story = models.generation(LM, [1], T, temperature=0.8)
    weak = LanguageModelPotential(WEAK, [1], temperature=1.3)
    proxy = LanguageModelPotential(WEAK, [2]) / LanguageModelPotential(LM, [2])
    return story * weak**-0.5 * proxy


def test_contrast_and_proxy_are_over_whole_texts():
    def weigh(text):
        log_w = log_p(text, power=1 / 0.8) - 0.5 * log_p(text, OTHER, power=1 / 1.3)
        return log_w + log_p(text, OTHER, 2) - log_p(text, TABLE, 2)

    check(contrast(), weigh)


def densities(model, rows, **constraints):
    """Log densities of texts, padded with zeros to the length of the model."""
    padded = np.array([[*r, EOS, *[0] * (model.length - len(r) - 1)] for r in rows], np.int32)

    @jax.jit
    def each(tokens):
        return ppl.Target(model).log_density({"token": tokens, **constraints})

    return np.asarray(jax.vmap(each)(jnp.asarray(padded)))


def test_an_intersection_is_what_both_prompts_write():
    rows = list(texts(T))
    want = [log_p(t, last=1) + log_p(t, last=2) for t in rows]
    said = densities(intersection(LM, [[1], [2]], T), rows)
    np.testing.assert_allclose(said, want, atol=1e-5)


@pytest.mark.slow
def test_two_caches_in_one_filter():
    """Decoders: the filter's density of what it wrote is that of a pass over the tokens."""
    one, two = (random_llama(jax.random.key(i), 5, d=8, heads=2, kv_heads=1) for i in (1, 2))
    story = models.generation(one, [1], 20) * LanguageModelPotential(two, [2, 3]) ** 2.0
    particles = inference.SMC(4).run(jax.random.key(0), story)
    best = int(jnp.argmax(particles.log_weights))
    tokens, n = particles.choices["token"][best], int(particles.lengths[best])
    want = jnp.sum(one.log_probs(one.prompt([1]), tokens[:n]))
    want += 2 * jnp.sum(two.log_probs(two.prompt([2, 3]), tokens[:n]))
    said = eqx.filter_jit(ppl.Target(story).log_density)({"token": tokens})
    assert np.isclose(said, want, atol=1e-3)


PRIOR = np.log([0.2, 0.8])


class Count(ppl.Potential):
    """0.9 nats for each token 2."""

    def start(self, length):
        """None."""
        return jnp.zeros(())

    def advance(self, state, symbol, context=None):
        """Count."""
        return state + jnp.where(symbol == 2, 0.9, 0.0)

    def log_prefix(self, state, remaining=None):
        """So far."""
        return state

    def log_complete(self, state, context=None):
        """All."""
        return state


def persona():
    return personas(LM, [[2, 1], [2]], T, PRIOR) * Count()


def test_the_posterior_of_a_persona():
    def weigh(text):
        by = [prior + log_p(text, last=i + 1) for i, prior in enumerate(PRIOR)]
        return np.logaddexp(*by) + 0.9 * text.count(2)

    exact = check(persona(), weigh)
    values, probabilities = exact.marginal("persona")
    first = [PRIOR[0] + log_p(t) + 0.9 * t.count(2) for t in texts(T)]
    want = np.exp(np.logaddexp.reduce(first) - exact.log_evidence)
    assert np.isclose(probabilities[list(values).index(0)], want, atol=1e-5)


def test_a_text_tells_its_persona():
    tokens = jnp.array([2, 2, 1, EOS])
    log_posterior, log_evidence = prompt_posterior(LM, [[2, 1], [2]], tokens, PRIOR)
    joint = PRIOR + [log_p([2, 2, 1], last=last) for last in (1, 2)]
    assert np.isclose(log_evidence, np.logaddexp(*joint), atol=1e-5)
    np.testing.assert_allclose(log_posterior, joint - np.logaddexp(*joint), atol=1e-5)
    model = personas(LM, [[2, 1], [2]], T, PRIOR)
    said = [densities(model, [(2, 2, 1)], persona=jnp.int32(i))[0] for i in (0, 1)]
    np.testing.assert_allclose(said, joint, atol=1e-5)


def spans():
    return infilling(LM, [1], Free(2, 1), [2, 1], Free(1, 0)) * Count()


def test_given_spans_weigh_as_observations():
    exact = inference.exact.enumerate(spans())
    total = [
        log_p(text) + 0.9 * text.count(2) - np.log(4)
        for n in (1, 2)
        for m in (0, 1)
        for a in itertools.product([1, 2], repeat=n)
        for b in itertools.product([1, 2], repeat=m)
        for text in [(*a, 2, 1, *b)]
    ]
    assert np.isclose(exact.log_evidence, np.logaddexp.reduce(total), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("make", [contrast, persona, spans])
def test_filters_are_properly_weighted(make):
    """Those with a template look at the next token first."""
    model = make()
    twist = next_weight(model) if make is spans else None
    smc = inference.SMC(3, inference.Systematic(ess_threshold=1.0), twist=twist)
    result = ppl.laws.proper_weighting(jax.random.key(0), smc, model, runs=2**12)
    assert result.ok, result


def test_a_template_is_a_potential():
    story = models.generation(LM, [1], T + 1) * template(LM, [2], Free(1), [1])
    said = densities(story, [(2, 1, 1), (2, 2, 1), (2, 2, 2), (2,), (2, 1, 1, 1)])
    np.testing.assert_allclose(said[:2], [log_p((2, 1, 1)), log_p((2, 2, 1))], atol=1e-5)
    assert np.isneginf(said[2:]).all()


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="at least two prompts"):
        intersection(LM, [[1]], T)
    with pytest.raises(ValueError, match="2 prompts"):
        personas(LM, [[1], [2]], T, np.zeros(3))
    with pytest.raises(ValueError, match="infilling"):
        template(LM, Free(2, 1))
    with pytest.raises(ValueError, match="0 <= least"):
        infilling(LM, [1], Free(1, 2))
    with pytest.raises(ValueError, match="same tokens"):
        models.generation(LM, [1], T) * LanguageModelPotential(_ends_at(1), [2])


def _ends_at(eos):
    return MarkovLanguageModel(MarkovLM(jnp.log(TABLE[0]), jnp.log(TABLE), eos))
