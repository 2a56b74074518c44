"""What a run keeps: states every so many steps, read along lineages."""

import jax
import numpy as np
import pytest
from oracles import tiny_models as tiny

from feynkac import inference
from feynkac.inference import SMC, Record, Systematic


@pytest.mark.parametrize("every", [2, 3])
def test_states_every_so_many_steps(every):
    length = 7
    target = tiny.text(np.resize(tiny.MILD, (length, 3)), length=length)

    def run(record):
        smc = SMC(16, Systematic(ess_threshold=1.0), record=record)
        return smc.run(jax.random.key(2), target)

    whole, some = run(Record.states()), run(Record.states(every=every))
    rows = [*range(every - 1, length, every), *([length - 1] if length % every else [])]
    assert some.resampled.sum() > 2
    last = np.asarray(some.record["last"])
    np.testing.assert_array_equal(last, np.asarray(whole.record["last"])[:, rows])
    # Until a text is over its state is its last token.
    tokens, lengths = np.asarray(some.choices["token"]), np.asarray(some.lengths)
    for column, t in enumerate(rows):
        going = lengths > t
        np.testing.assert_array_equal(last[going, column], tokens[going, t])
    assert some.ancestors.shape == (length, 16)


def test_every_is_at_least_one():
    with pytest.raises(ValueError, match="at least 1"):
        inference.Record.states(every=0)
