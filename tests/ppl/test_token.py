"""`ppl.Token`: the law against a softmax, its edges, and inverse cumulative sums."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from scipy.special import log_softmax

from feynkac import ppl
from feynkac.ppl.inverse_cdf import inverse_cdf, inverse_counts

KEY = jax.random.key(0)


@pytest.fixture
def no_shape_checks():
    """As users run it: the annotations are checked in tests only, and would speak first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def counts(token, n, bins, key=KEY):
    """How often each of `bins` equal ranges of tokens comes up in n draws."""
    v = token.logits.shape[-1]
    draws = jax.jit(lambda k, t: t.sample(k, (n,)))(key, token)
    return np.bincount(np.asarray(draws) * bins // v, minlength=bins)


def chi_square_z(observed, p):
    """The chi-square statistic of observed counts as a standard normal score."""
    keep = p > 0
    assert observed[~keep].sum() == 0
    expected = observed.sum() * p[keep] / p[keep].sum()
    assert expected.min() > 5
    statistic = ((observed[keep] - expected) ** 2 / expected).sum()
    k = keep.sum() - 1
    # Wilson and Hilferty's cube root is normal to a good approximation at every k.
    return ((statistic / k) ** (1 / 3) - (1 - 2 / (9 * k))) / np.sqrt(2 / (9 * k))


def grouped(logits, bins):
    p = np.exp(log_softmax(np.asarray(logits, np.float64)))
    index = np.arange(len(p)) * bins // len(p)
    return np.bincount(index, weights=p, minlength=bins)


@pytest.mark.parametrize(
    "v, bins, n",
    [(1, 1, 10), (2, 2, 100_000), (5, 5, 200_000), (257, 257, 400_000), (49152, 211, 200_000)],
)
@pytest.mark.parametrize("masked", [False, True])
def test_law(v, bins, n, masked):
    logits = 1.0 * jax.random.normal(jax.random.key(v), (v,))
    mask = (jax.random.uniform(jax.random.key(1), (v,)) < 0.6).at[0].set(True) if masked else None
    expected = logits if mask is None else jnp.where(mask, logits, -jnp.inf)
    observed = counts(ppl.Token(logits, mask), n, bins)
    if (grouped(expected, bins) > 0).sum() > 1:
        assert abs(chi_square_z(observed, grouped(expected, bins))) < 4
    else:
        assert observed[0] == n


def test_law_check_rejects_a_bias_of_two_percent():
    logits = jnp.zeros(5)
    observed = counts(ppl.Token(logits.at[2].add(0.02)), 1_000_000, 5)
    assert abs(chi_square_z(observed, grouped(logits, 5))) > 4


def test_rare_tokens_come_up_at_their_rate():
    # 100 000 tokens of 5e-7 each are one twentieth of the mass; one token has the rest.
    v, n, bins = 100_001, 400_000, 100
    p = np.full(v, 0.05 / (v - 1))
    p[0] = 0.95
    p[1:][::2] *= 1.5
    p[1:][1::2] *= 0.5
    draws = np.asarray(
        jax.jit(lambda k: ppl.Token(jnp.log(jnp.asarray(p, jnp.float32))).sample(k, (n,)))(KEY)
    )
    tail = draws[draws > 0] - 1
    z = (len(tail) - 0.05 * n) / np.sqrt(n * 0.05 * 0.95)
    assert abs(z) < 4
    observed = np.bincount(tail * bins // (v - 1), minlength=bins)
    assert abs(chi_square_z(observed, np.full(bins, 1 / bins))) < 4
    # within the blocks: of two neighbours the first has three times the rate
    even = (tail % 2 == 0).sum()
    assert abs(even - 0.75 * len(tail)) < 4 * np.sqrt(len(tail) * 0.75 * 0.25)
    rates = n * 0.05 / (v - 1) * np.array([1.5, 0.5])
    distinct = (v - 1) / 2 * (1 - np.exp(-rates)).sum()
    assert abs(len(np.unique(tail)) - distinct) < 4 * np.sqrt(distinct)


def test_impossible_tokens_are_never_drawn():
    logits = jnp.where(jnp.arange(1000) % 7 == 3, 0.0, -jnp.inf)
    draws = ppl.Token(logits).sample(KEY, (20_000,))
    assert (draws % 7 == 3).all()
    draws = ppl.Token(jnp.zeros(1000), jnp.arange(1000) == 999).sample(KEY, (1000,))
    assert (draws == 999).all()
    far = ppl.Token(jnp.array([0.0, -200.0, 0.0])).sample(KEY, (10_000,))
    assert (far != 1).all()


@pytest.mark.parametrize("logits", [jnp.zeros(5), jnp.full(5, -jnp.inf)])
def test_empty(logits):
    token = ppl.Token(logits, jnp.zeros(5, bool))
    assert token.sample(KEY) == 0 and token.log_normalizer == -jnp.inf
    assert (token.log_prob(jnp.arange(5)) == -jnp.inf).all()
    gradient = jax.grad(lambda x: jnp.where(True, 0.0, ppl.Token(x, token._mask).log_prob(1)))(
        logits
    )
    assert (gradient == 0.0).all()
    gradient = jax.grad(lambda x: ppl.Token(x, token._mask).log_normalizer)(jnp.zeros(5))
    assert (gradient == 0.0).all()


def test_one_empty_member_of_a_batch():
    mask = jnp.array([[True, True], [False, False]])
    token = ppl.Token(jnp.zeros((2, 2)), mask)
    assert (token.sample(KEY, (50,))[:, 1] == 0).all()
    np.testing.assert_allclose(token.log_prob(jnp.array([1, 1])), [-np.log(2), -np.inf], rtol=1e-6)


@pytest.mark.parametrize("v", [1, 3, 300])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_log_prob(v, dtype):
    logits = (5 * jax.random.normal(KEY, (4, v))).astype(dtype)
    mask = (jnp.arange(v) % 3 != 1)[None] & jnp.ones((4, 1), bool)
    for m in (None, mask):
        token = ppl.Token(logits, m)
        wide = logits.astype(jnp.float32)
        wide = wide if m is None else jnp.where(m, wide, -jnp.inf)
        values = jnp.broadcast_to(jnp.arange(v)[:, None], (v, 4))
        got, expected = token.log_prob(values), jax.nn.log_softmax(wide).T
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-6)
        np.testing.assert_allclose(token.log_normalizer, jax.nn.logsumexp(wide, axis=-1), rtol=2e-6)
        np.testing.assert_array_equal(token.enumerate_support(), values)


def test_values_that_are_no_tokens():
    token = ppl.Token(jnp.zeros(4))
    np.testing.assert_array_equal(token.log_prob(jnp.array([-1, 4, 99])), -jnp.inf)


def test_shifted_and_extreme_logits():
    logits = jnp.array([0.0, 1.0, 2.0])
    for shift in (-1e4, 1e4, 3e38):
        np.testing.assert_allclose(
            ppl.Token(logits * 0 + shift).log_prob(jnp.arange(3)), -np.log(3), rtol=1e-6
        )


def test_nan_is_not_a_silent_number():
    token = ppl.Token(jnp.array([0.0, jnp.nan, 1.0]))
    assert jnp.isnan(token.log_prob(jnp.arange(3))).all() and jnp.isnan(token.log_normalizer)
    assert jnp.isnan(ppl.Token(jnp.array([0.0, jnp.inf])).log_prob(0))
    masked = ppl.Token(token.logits, jnp.array([True, False, True]))
    assert jnp.isfinite(masked.log_prob(jnp.array([0, 2]))).all()


def test_shapes():
    token = ppl.Token(jnp.zeros((2, 3, 7)))
    assert token.batch_shape == (2, 3) and token.event_shape == ()
    assert token.sample(KEY).shape == (2, 3)
    assert token.sample(KEY, (4,)).shape == (4, 2, 3)
    assert token.sample(KEY, (1, 4)).shape == (1, 4, 2, 3)
    assert token.sample(KEY, (0,)).shape == (0, 2, 3)
    assert token.sample(KEY).dtype == jnp.int32
    assert token.log_prob(0).shape == (2, 3)
    assert token.log_prob(jnp.zeros((5, 1, 1), int)).shape == (5, 2, 3)
    assert token.enumerate_support().shape == (7, 2, 3)
    assert token.enumerate_support(expand=False).shape == (7, 1, 1)
    shared = ppl.Token(jnp.zeros((2, 7)), jnp.arange(7)[None] < 3)
    assert (shared.sample(KEY, (100,)) < 3).all()


def test_members_of_a_batch_are_independent_and_have_their_own_law():
    logits = jnp.array([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]])
    draws = np.asarray(ppl.Token(logits).sample(KEY, (100_000,)))
    joint = np.bincount(draws[:, 0] * 3 + draws[:, 1], minlength=9)
    p = np.exp(log_softmax(np.asarray(logits, np.float64), axis=-1))
    assert abs(chi_square_z(joint, np.outer(p[0], p[1]).ravel())) < 4


def test_vmap_and_jit():
    logits = jax.random.normal(KEY, (6, 11))
    token, keys = ppl.Token(logits), jax.random.split(KEY, 6)
    alone = jnp.stack([ppl.Token(row).sample(k) for row, k in zip(logits, keys, strict=True)])
    inside = jax.jit(jax.vmap(lambda k, row: ppl.Token(row).sample(k)))(keys, logits)
    over = jax.jit(jax.vmap(lambda k, t: t.sample(k)))(keys, token)
    np.testing.assert_array_equal(inside, alone)
    np.testing.assert_array_equal(over, alone)
    np.testing.assert_array_equal(jax.vmap(lambda t: t.log_prob(3))(token), token.log_prob(3))
    made = jax.vmap(lambda row: ppl.Token(row))(logits)
    assert made.batch_shape == (6,) and made.sample(KEY).shape == (6,)


def test_pytree():
    token = ppl.Token(jnp.zeros((2, 5)), jnp.ones(5, bool)[None])
    leaves, tree = jax.tree.flatten(token)
    assert len(leaves) == 2
    again = jax.tree.unflatten(tree, leaves)
    assert again.batch_shape == (2,) and again.event_shape == ()
    np.testing.assert_array_equal(again.log_prob(1), token.log_prob(1))
    shifted = jax.tree.map(lambda x: x, ppl.Token(jnp.zeros(3)))
    np.testing.assert_array_equal(shifted.log_prob(1), ppl.Token(jnp.zeros(3)).log_prob(1))


def test_gradient():
    logits = jnp.array([0.3, -jnp.inf, 1.0, 2.0])
    mask = jnp.array([True, True, False, True])

    def expected(x):
        return jax.nn.log_softmax(x[jnp.array([0, 3])])[1]

    gradient = jax.grad(lambda x: ppl.Token(x, mask).log_prob(3))(logits)
    np.testing.assert_allclose(gradient, jax.grad(expected)(logits), rtol=1e-5)
    for value in (0, 1, 2, 3, 9):  # possible, of weight zero, masked, none
        g = jax.grad(lambda x, v=value: ppl.Token(x, mask).log_prob(v))(logits)
        assert jnp.isfinite(g).all()
        assert jnp.isfinite(
            jax.hessian(lambda x, v=value: ppl.Token(x, mask).log_prob(v))(logits)
        ).all()


@pytest.mark.parametrize(
    "args, message",
    [
        ((jnp.zeros(0),), "non-empty vocabulary"),
        ((jnp.zeros((2, 0)),), "non-empty vocabulary"),
        ((jnp.zeros(()),), "non-empty vocabulary"),
        ((jnp.zeros(3), jnp.ones(4, bool)), "one boolean a token"),
        ((jnp.zeros(3, int),), "floating-point"),
    ],
)
def test_errors(no_shape_checks, args, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ppl.Token(*args)


@pytest.mark.x64
@pytest.mark.parametrize("dtype", [jnp.float32, float])
def test_at_a_site_in_either_precision(dtype):
    logits = jnp.arange(5.0).astype(dtype)

    def program(ctx):
        return ctx.sample("t", ppl.Token(logits)), ctx.sample("x", ppl.dist.Normal(0.0, 1.0))

    trace = ppl.program(program).simulate(KEY)
    assert trace.retval[0].dtype == jnp.int32 and trace.score.dtype == jnp.zeros(()).dtype
    log_p, _ = ppl.program(program).assess({"t": 4, "x": 0.0})
    expected = log_softmax(np.arange(5.0))[4] - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(log_p, expected, rtol=1e-6)


def test_inverse_cdf_draws_nothing_of_weight_zero():
    key_w, key_z, key_u = jax.random.split(KEY, 3)
    weights = jnp.exp(20 * jax.random.normal(key_w, (200, 37)))
    weights = jnp.where(jax.random.uniform(key_z, weights.shape) < 0.8, 0.0, weights)
    weights = weights.at[:, 5].add(jnp.where(weights.sum(-1) == 0, 1.0, 0.0))
    top = jnp.nextafter(jnp.float32(1.0), jnp.float32(0.0))
    for u in (0.0, top, 1.0, jax.random.uniform(key_u, (200,))):
        index = inverse_cdf(weights, jnp.broadcast_to(u, (200,)))
        assert (jnp.take_along_axis(weights, index[:, None], 1) > 0).all()
    assert inverse_cdf(jnp.zeros(4), jnp.array(0.3)) == 3


def test_inverse_cdf_inverts():
    weights = jnp.array([0.0, 1.0, 0.0, 2.0, 1.0, 0.0])
    u = jnp.array([0.0, 0.249, 0.25, 0.5, 0.749, 0.75, 0.999])
    index = jax.vmap(lambda x: inverse_cdf(weights, x))(u)
    np.testing.assert_array_equal(index, [1, 1, 3, 3, 3, 4, 4])
    tiny = jnp.array([1.0, 1e-30, 0.0])
    assert inverse_cdf(tiny, jnp.array(0.9999)) == 0


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_few_weights_have_their_share_of_all_words(kind):
    """Exactly, at the ends of every share: rates of 1e-7 and 3e-9 need no million draws."""
    with jax.enable_x64(kind is np.float64):
        size = 32 if kind is np.float32 else 64
        word = np.dtype(f"uint{size}")
        for weights in ([3e-9, 1.0, 1e-7, 0.0, 0.4], [1.0], [0.0, 1.0, 1.0], [1e-7, 0.0, 1.0]):
            weights = np.array(weights, kind)
            top, p = int(np.argmax(weights)), weights.astype(np.float64) / weights.sum()
            low, seen = 0, []
            for j in (*[j for j in range(len(weights)) if j != top], top):
                high = 2**size if j == top else low + int(round(p[j] * 2**size))
                # The ends are those of float arithmetic: a relative 2^-21 of the share off.
                slack = int((high - low) * 4 * np.finfo(kind).eps) + 1 if len(weights) > 1 else 0
                if high - low > 2 * slack:
                    seen += [(low + slack, j), (high - 1 - slack, j)]
                low = high
            bits = jnp.asarray(np.array([b for b, _ in seen], word))
            columns = [jnp.full(bits.shape, w) for w in weights]
            got = inverse_counts(columns, bits)
            np.testing.assert_array_equal(got, [j for _, j in seen])
