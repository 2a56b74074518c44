"""Adaptive weighted rejection sampling: unbiased draws, conditional runs, filters with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.host_texts import LM, PROMPT, VOCABULARY, closable, log_evidence, z_score

from feynkac import inference, models, ppl
from feynkac.models.constraints.rejecting import rejection
from feynkac.models.constraints.rejection_forms import Geometric, Recursive
from feynkac.models.constraints.rejection_token import RejectionToken
from feynkac.models.constraints.urn import Urn
from feynkac.models.rewards.check import Check

# Rows of probabilities and of what passes: mixed, with zeros, one passes, all, none, one dominant.
ROWS = np.array(
    [[0.45, 0.2, 0.15, 0.1, 0.1], [0.5, 0, 0.3, 0.2, 0], [0.45, 0.2, 0.15, 0.1, 0.1],
     [0.4, 0.3, 0.1, 0.1, 0.1], [0.2] * 5, [0.97, 0.01, 0.01, 0.005, 0.005]]
)  # fmt: skip
PASSES = np.array(
    [[0, 1, 0, 1, 1], [0, 1, 1, 0, 1], [0, 0, 0, 1, 0], [1] * 5, [0] * 5, [0, 1, 0, 1, 1]], bool
)
POSSIBLE = (PASSES & (ROWS > 0)).astype(float)
FORMS = [Recursive(), Recursive(3), Geometric(), Geometric(4)]
STEPS = 4


def z_of(samples, expected):
    """z-scores of means over the first axis; where nothing varies, of rounding."""
    mean, error = samples.mean(0), samples.std(0, ddof=1) / np.sqrt(len(samples))
    return (mean - expected) / np.maximum(error, 1e-6)


def on_host(form, row, limit, retained, rng):
    """One run in the plain loop: the token, Z-hat and the number of checks."""
    blocks = np.pad(ROWS[row], (0, 1)).reshape(3, 2).astype(np.float32)
    run, answer, checks = form.draw(Urn(blocks, rng), limit, retained), None, 0
    try:
        while True:
            token = run.send(answer)
            answer, checks = bool(PASSES[row, token]), checks + 1
    except StopIteration as end:
        return *end.value, checks


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("limit", [None, 2])
@pytest.mark.slow
def test_host_runs_are_unbiased_alone_and_retained(form, limit):
    rng, n, m = np.random.default_rng(5), 500, 100
    for row, p in enumerate(ROWS):
        inverse = np.zeros((n, 5))
        for i in range(n):
            token, z, _ = on_host(form, row, limit, None, rng)
            if z > 0:
                inverse[i, token] = z / p[token]
        assert np.abs(z_of(inverse, POSSIBLE[row])).max() < 4, row  # E[1/w; x = a] = 1
        if not POSSIBLE[row].any():
            assert (inverse == 0).all()
        drawn = (inverse > 0).astype(float)
        for x in np.flatnonzero(POSSIBLE[row]).tolist():
            w = np.array([p[x] / on_host(form, row, limit, x, rng)[1] for _ in range(m)])
            error = np.hypot(w.std() / m**0.5, drawn[:, x].std() / n**0.5)
            assert abs(w.mean() - drawn[:, x].mean()) < 4 * error + 1e-6, (row, x)


def test_checks_adapt_to_how_far_the_model_is_from_the_constraint():
    rng = np.random.default_rng(0)
    checks = {
        row: np.mean([on_host(Recursive(), row, None, None, rng)[2] for _ in range(200)])
        for row in (2, 3)
    }
    assert checks[3] == 2 and 3 < checks[2] < 5


def test_an_urn_keeps_its_tail_exact():
    p = np.array([[1.0, 1e-9], [2e-12, 1e-30]], np.float32)
    urn = Urn(p, np.random.default_rng(0))
    urn.remove(0)
    assert np.isclose(urn.left, 1e-9 + 2e-12, rtol=1e-6)
    urn.remove(1)
    assert np.isclose(urn.left, 2e-12, rtol=1e-6) and urn.repeats() > 1e8
    assert [urn.draw() for _ in range(3)] == [2, 2, 2]
    urn.remove(2)
    assert urn.draw() == 3


@pytest.fixture(scope="module", params=[Recursive(2), Geometric(3)], ids=str)
def device_runs(request):
    logits, passes = jnp.log(jnp.asarray(ROWS, jnp.float32)), jnp.asarray(PASSES)

    def one(key, logits, passes, limit_of_two):
        limit = 2 if limit_of_two else None
        law = RejectionToken(logits, lambda token: passes[token], request.param, limit)
        token, log_w = law.random_weighted(key)
        inverse = jnp.zeros(5).at[token].set(jnp.exp(-log_w))
        drawn = jnp.zeros(5).at[token].set(jnp.where(jnp.isposinf(log_w), 0.0, 1.0))
        tokens = jnp.arange(5, dtype=jnp.int32)
        estimate = jax.vmap(lambda x: law.estimate_logpdf(jax.random.fold_in(key, 1), x))(tokens)
        return inverse, drawn, jnp.exp(estimate)

    def both(key, logits, passes):
        return [one(key, logits, passes, limited) for limited in (False, True)]

    run = jax.jit(jax.vmap(jax.vmap(both, (0, None, None)), (None, 0, 0), out_axes=1))
    return run(jax.random.split(jax.random.key(0), 4000), logits, passes)


@pytest.mark.slow
def test_device_runs_are_unbiased_alone_and_retained(device_runs):
    for inverse, drawn, estimate in device_runs:
        inverse, drawn, estimate = (np.asarray(x, np.float64) for x in (inverse, drawn, estimate))
        assert np.abs(z_of(inverse, POSSIBLE)).max() < 4
        assert np.abs(z_of(estimate - drawn, 0.0)).max() < 4
        assert (estimate[:, POSSIBLE == 0] == 0).all()


def closed(text):
    return len(text) < 5


@pytest.fixture(scope="module")
def story():
    """Open brackets to be closed, asked of prefixes; not too long, asked of complete texts."""
    grow, short = Check(closable, prefixes=True), Check(closed)
    model = models.generation(LM, [PROMPT], STEPS)
    return model * grow.over(VOCABULARY) * short.over(VOCABULARY)


def exact():
    good = lambda x: 0.0 if closable(x) and closed(x) else -np.inf  # noqa: E731
    return log_evidence(good, STEPS)


@pytest.mark.parametrize(
    ("form", "limit"),
    [(Recursive(), None), pytest.param(Geometric(), 3, marks=pytest.mark.slow)],
    ids=["recursive", "limited"],
)
@pytest.mark.slow
def test_a_filter_that_proposes_by_it_is_unbiased(story, form, limit):
    smc = inference.SMC(4, proposal=rejection(story, form=form, max_rejects=limit))
    run = jax.jit(jax.vmap(lambda key: smc.run(key, story)))
    keys = jax.random.split(jax.random.key(3), 250)
    runs = run(keys)
    assert abs(z_score(runs.log_evidence, exact())) < 4
    assert np.array_equal(run(keys).log_weights, runs.log_weights)
    if limit is None:  # what is proposed passes, but where nothing does
        assert np.isfinite(np.asarray(runs.log_weights)).mean() > 0.9


@pytest.mark.slow
def test_it_can_be_retained_in_a_conditional_run(story):
    """E[1 / Z-hat] = 1 / Z of conditional runs at a posterior draw."""
    smc = inference.SMC(3, proposal=rejection(story))
    posterior = inference.exact.enumerate(story)
    probabilities = np.exp(posterior.log_probs - np.logaddexp.reduce(posterior.log_probs))
    picks = np.random.default_rng(0).choice(len(probabilities), 500, p=probabilities)
    tokens = jnp.asarray(np.asarray(posterior.choices["token"])[picks])

    def one(key, tokens):
        return smc.run_conditional(key, story, {"token": tokens}).log_evidence

    log_z = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(5), 500), tokens)
    assert abs(z_score(-log_z, -exact())) < 4


def test_a_check_on_the_device():
    model = models.generation(LM, [PROMPT], STEPS, at_length=ppl.Keep())
    proposal = rejection(model, check=lambda text, token: token != text.last)
    particles = inference.SMC(32, resampler=None, proposal=proposal).run(jax.random.key(0), model)
    rows = np.asarray(particles.choices["token"])
    lengths = np.asarray(particles.lengths)
    assert all((r[1:n] != r[: n - 1]).all() for r, n in zip(rows, lengths, strict=True))


def test_errors_say_what_to_do():
    with pytest.raises(ppl.ProgramError, match="Check"):
        rejection(models.generation(LM, [PROMPT], STEPS))
    with pytest.raises(ValueError, match="at least 2"):
        Geometric(1)
    with pytest.raises(ValueError, match="at least 1"):
        Recursive(0)
    with pytest.raises(ValueError, match="max_rejects"):
        RejectionToken(jnp.zeros(3), lambda token: token == 1, max_rejects=0)
