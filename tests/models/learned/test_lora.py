"""Adapters: their law, as proposals, learned from posterior draws, saved and loaded."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from feynkac import inference, models, ppl
from feynkac.inference import vi
from feynkac.inference.vi import guides
from feynkac.models import learned
from feynkac.models.language.random_llama import random_llama

from .small import rewarded
from .test_losses import minimised

LENGTH, EOS, PROMPT = 3, 2, [1, 3]


@pytest.fixture(scope="module")
def base():
    return random_llama(jax.random.key(4), 4, d=8, heads=2, kv_heads=1, eos=EOS, scale=1.0)


@pytest.fixture(scope="module")
def story(base):
    return models.generation(base, PROMPT, LENGTH) * models.DeviceReward(rewarded)


@pytest.fixture(scope="module")
def adapter(base):
    return learned.lora(jax.random.key(1), base, rank=2, matrices=("query", "value", "down"))


@pytest.fixture(scope="module")
def exact(story):
    return inference.exact.enumerate(story)


@pytest.fixture(scope="module")
def taught(base, adapter, exact):
    """Distilled from the posterior, which is known here: DPG over all texts."""
    tokens, log_weights = exact.choices["token"], jnp.asarray(exact.log_probs, float)

    def loss(adapter):
        log_q = learned.log_prob_of(adapter.on(base), PROMPT, tokens)
        return learned.dpg(log_q, log_weights)

    return minimised(loss, adapter, 150, 0.05)


@pytest.mark.slow
def test_an_untrained_adapter_changes_nothing_and_a_trained_one_merges(base, adapter, taught):
    tokens = jnp.array([[0, 1, 2], [3, 2, 0], [1, 1, 3]])
    own, first, then, merged = (
        learned.log_prob_of(lm, PROMPT, tokens)
        for lm in (base, adapter.on(base), taught.on(base), taught.merged(base))
    )
    np.testing.assert_array_equal(own, first)
    np.testing.assert_allclose(then, merged, atol=1e-5)
    assert np.abs(then - own).max() > 0.1
    assert jax.tree.structure(taught.merged(base)) == jax.tree.structure(base)
    assert taught.rank == 2


@pytest.mark.slow
def test_an_adapted_model_proposes_for_its_base(base, story, taught, exact):
    """Weights are corrected: the evidence is the base model's; and they are more even than its."""
    model, proposal = learned.proposed_by(story, taught.on(base), PROMPT)
    n, runs = 8, 300

    @jax.jit
    def each(keys):
        def one(key):
            mine = inference.SMC(n, proposal=proposal, resampler=None).run(key, model)
            plain = inference.Importance(n).run(key, story)
            return mine.log_evidence, mine.ess, plain.ess

        return jax.vmap(one)(keys)

    levels, mine, plain = map(np.asarray, each(jax.random.split(jax.random.key(2), runs)))
    z = np.exp(levels - exact.log_evidence)
    assert abs(z.mean() - 1) < 4 * z.std() / runs**0.5
    assert mine.mean() > 1.3 * plain.mean()


def test_artifacts_come_back_bit_for_bit_and_only_to_their_model(tmp_path, base, adapter):
    taught = jax.tree.map(lambda x: x + 0.5, adapter)
    path = tmp_path / "adapter.safetensors"
    learned.save(path, taught, base, steps=150)
    back = learned.load(path, adapter, base)
    for a, b in zip(jax.tree.leaves(taught), jax.tree.leaves(back), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert learned.notes(path) == {"steps": 150}
    other = replace(base, norm=base.norm * 1.001)
    with pytest.raises(learned.ArtifactError, match="another base model"):
        learned.load(path, adapter, other)
    with pytest.raises(learned.ArtifactError, match="give the model"):
        learned.load(path, adapter)
    with pytest.raises(learned.ArtifactError, match="rank, width"):
        learned.load(
            path, learned.lora(jax.random.key(1), base, 3, ("query", "value", "down")), base
        )
    with pytest.raises(learned.ArtifactError, match="another make"):
        learned.load(path, learned.lora(jax.random.key(1), base, 2), base)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(learned.ArtifactError, match="damaged"):
        learned.load(path, adapter, base)


def test_a_head_is_saved_too(tmp_path):
    made = learned.head(jax.random.key(0), jax.random.normal(jax.random.key(1), (5, 3)), 2)
    made = jax.tree.map(lambda x: x + 0.5, made)
    learned.save(tmp_path / "head.safetensors", made)
    back = learned.load(tmp_path / "head.safetensors", learned.head(jax.random.key(7), 3, 2))
    np.testing.assert_array_equal(made(jnp.ones((4, 3))), back(jnp.ones((4, 3))))
    assert made(jnp.ones((4, 3))).shape == (4, 2)


class Reader(eqx.Module):
    """From how often each token was written to a law of `change`."""

    loc: jax.Array
    log_scale: jax.Array

    def __call__(self, texts):
        share = jnp.mean(jax.nn.one_hot(texts, 4), axis=(0, 1))
        return guides.MeanField(share @ self.loc, share @ self.log_scale)


@pytest.mark.slow
def test_a_network_reads_texts_and_says_which_adapter_wrote_them(base):
    """One guide for two sets of texts: nearer to each posterior than the prior, by the evidence."""
    small = learned.lora(jax.random.key(6), base, rank=1, matrices=("value",))
    model = learned.lora_posterior(small, base, PROMPT, 0.7)
    sets = jnp.array([[[0, 0, 0]] * 4 + [[0, 1, 0]] * 2, [[3, 3, 3]] * 4 + [[3, 1, 3]] * 2])
    target = ppl.Target(model, (sets[0],))
    size = sum(x.size for x in jax.tree.leaves((small.ups, small.downs)))
    network = Reader(jnp.zeros((4, size)), jnp.full((4, size), jnp.log(0.7)))
    guide = guides.amortized(target, network)

    @vi.objective
    def both(ctx, guide, sets):
        def one(ctx, texts):
            return vi.elbo(ctx, ppl.bind(guide, texts), ppl.Target(model, (texts,)))

        return jnp.mean(ctx.each("sets", one, sets))

    options = {"optimizer": optax.adam(0.05), "steps": 150, "every": 150, "samples": 4}
    fit = vi.fit(jax.random.key(2), both, guide, (sets,), progress=False, throw=True, **options)

    @jax.jit
    @jax.vmap
    def weighted(key, texts):
        target = ppl.Target(model, (texts,))
        prior = inference.Importance(2000).run(key, target)
        mine = inference.Importance(200, ppl.Proposal(init=fit.params)).run(key, target)
        return prior.log_evidence, mine.log_evidence, jnp.mean(mine.log_weights), mine.ess / 200

    prior, mine, bound, share = weighted(jax.random.split(jax.random.key(3), 2), sets)
    np.testing.assert_allclose(prior, mine, atol=0.35)
    before = float(fit.values[:5].mean())
    assert float(bound.mean()) > before + 1 and (bound < prior + 0.1).all() and share.min() > 0.05


def test_bad_adapters_are_refused(base, adapter):
    with pytest.raises(ValueError, match="choose from query"):
        learned.lora(jax.random.key(0), base, 2, ("quary",))
    with pytest.raises(ValueError, match="at least 1"):
        learned.lora(jax.random.key(0), base, 0)
    with pytest.raises(ValueError, match="merge that first"):
        adapter.on(adapter.on(base))
    wide = random_llama(jax.random.key(4), 4, d=16, heads=2, kv_heads=1, eos=EOS)
    with pytest.raises(ValueError, match="another model"):
        adapter.on(wide)
    with pytest.raises(ValueError, match="another model"):
        adapter.on(random_llama(jax.random.key(4), 4, layers=2, d=8, heads=2, kv_heads=1, eos=EOS))
