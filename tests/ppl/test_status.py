"""A status is a value: the first failure counts, and its message says what to do."""

import jax
import jax.numpy as jnp
import pytest

from feynkac.ppl.status import BUDGET, DEAD, NAN, OK, InferenceError, Status

SITES = ("reward", "token")


def test_ok():
    status = Status.ok(SITES)
    assert status and status.message == "ok" and repr(status) == "Status('ok')"
    status.throw()


@pytest.mark.parametrize(
    "code, step, words",
    [
        (DEAD, 7, ["step 7", "more particles"]),
        (DEAD, -1, ["step init"]),
        (NAN, 2, ["step 2", "'token'"]),
        (BUDGET, 3, ["after 3 steps", "resume"]),
    ],
)
def test_message_and_throw(code, step, words):
    status = Status.ok(SITES).then(True, code, step, 1)
    assert not status
    for word in words:
        assert word in status.message
    with pytest.raises(InferenceError, match="step"):
        status.throw()


def test_first_failure_counts():
    status = Status.ok().then(False, NAN, 1).then(True, DEAD, 2).then(True, NAN, 3)
    assert (int(status.code), int(status.step)) == (DEAD, 2)
    assert "unnamed site" in Status.ok().then(True, NAN, 3).message


def test_batch_of_runs():
    def run(x):
        return Status.ok(SITES).then(x > 1, DEAD, x).then(x > 0, NAN, x, 0)

    batch = jax.jit(jax.vmap(run))(jnp.arange(4))
    assert batch.code.tolist() == [OK, NAN, DEAD, DEAD]
    assert not batch
    assert batch.message.startswith("run 1:") and "'reward'" in batch.message
    assert jax.vmap(run)(jnp.zeros(3, int)).message == "ok"


def test_repr_while_traced():
    seen = []

    @jax.jit
    def run(x):
        status = Status.ok().then(x > 0, DEAD, 1)
        seen.append(repr(status))
        return status

    assert run(1).code == DEAD
    assert seen[0].startswith("Status(") and "Trac" in seen[0]
