"""The algebra of selections."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac import ppl

LOG_PROBS = {
    "z": jnp.zeros(4),
    "grid": jnp.zeros((4, 2)),
    "c": {"x": jnp.zeros(()), "y": jnp.zeros(4)},
}
Z, X = ppl.select("z"), ppl.select(("c", "x"))


def members(selection):
    masks = selection.masks(LOG_PROBS)
    shape = lambda m, lp: np.broadcast_to(m, lp.shape).astype(int).tolist()  # noqa: E731
    return jax.tree.map(shape, masks, LOG_PROBS)


EVERYTHING = members(~ppl.select())


@pytest.mark.parametrize(
    "selection, path, want",
    [
        (Z, ("z",), [1, 1, 1, 1]),
        (Z[1:], ("z",), [0, 1, 1, 1]),
        (Z[:1], ("z",), [1, 0, 0, 0]),
        (Z[1:3], ("z",), [0, 1, 1, 0]),
        (Z[-1], ("z",), [0, 0, 0, 1]),
        (Z[-2:], ("z",), [0, 0, 1, 1]),
        (Z[:-1], ("z",), [1, 1, 1, 0]),
        (Z[:], ("z",), [1, 1, 1, 1]),
        (Z[9], ("z",), [0, 0, 0, 0]),
        (~Z[1:], ("z",), [1, 0, 0, 0]),
        (Z[1:] & ~Z[3], ("z",), [0, 1, 1, 0]),
        (Z[0] | Z[3], ("z",), [1, 0, 0, 1]),
        (Z[0] | X, ("c", "x"), 1),
        (Z[0] | X, ("z",), [1, 0, 0, 0]),
        (Z & X, ("z",), [0, 0, 0, 0]),
        (ppl.select("c"), ("c", "y"), [1, 1, 1, 1]),
        (ppl.select("c") & ~X, ("c", "x"), 0),
        (ppl.select("c") & ~X, ("c", "y"), [1, 1, 1, 1]),
        (ppl.select("grid")[1], ("grid",), [[0, 0], [1, 1], [0, 0], [0, 0]]),
        (ppl.select(), ("z",), [0, 0, 0, 0]),
        (~ppl.select(), ("c", "x"), 1),
    ],
)
def test_members(selection, path, want):
    got = members(selection)
    for name in path:
        got = got[name]
    assert got == want


@pytest.mark.parametrize("a", [Z, X, Z[1:3], ppl.select("c"), ppl.select()])
@pytest.mark.parametrize("b", [Z, ~X, Z[2], ~ppl.select()])
def test_boolean_laws(a, b):
    assert members(~(a | b)) == members(~a & ~b)
    assert members(a | b) == members(b | a)
    assert members(~~a) == members(a)
    assert members(a | ~a) == EVERYTHING


def test_traced_bounds_compile_once():
    mask = jax.jit(lambda t: Z[t:].masks(LOG_PROBS)["z"])
    assert [int(mask(t).sum()) for t in range(5)] == [4, 3, 2, 1, 0]
    assert mask._cache_size() == 1
    over = jax.vmap(lambda t: Z[t].masks(LOG_PROBS)["z"])(jnp.arange(4))
    np.testing.assert_array_equal(over, np.eye(4, dtype=bool))


def test_a_name_that_is_no_site():
    with pytest.raises(ppl.ProgramError, match="'zed', which is no site"):
        (Z | ppl.select("zed")[1:]).masks(LOG_PROBS)
    with pytest.raises(ppl.ProgramError, match="'c/z', which is no site: did you mean 'c/"):
        ppl.select(("c", "z")).masks(LOG_PROBS)
