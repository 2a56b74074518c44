"""Runs in chunks equal whole runs; they stop, fail, report and resume as they say."""

import os
import shutil
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compile_count import compiles
from small_models import LENGTH, arrays, assert_identical, ending, hmm

from feynkac import inference, ppl
from feynkac.inference.checkpoint import CheckpointError
from feynkac.inference.chunks import run_in_chunks
from feynkac.ppl.status import BUDGET, DEAD

# Orbax closes the event loop of its threads while they still report to it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

KEY = jax.random.key(0)
HMM, ENDING = hmm(), ending()
smc = inference.SMC(16)


@pytest.mark.parametrize("steps", [1, 5, LENGTH, 40])
def test_equals_the_whole_run(steps):
    assert_identical(run_in_chunks(smc, KEY, HMM, steps=steps), smc.run(KEY, HMM))


@pytest.mark.parametrize("steps", [4, 5])
@pytest.mark.slow
def test_equals_the_whole_run_when_particles_finish(steps):
    assert_identical(run_in_chunks(smc, KEY, ENDING, steps=steps), smc.run(KEY, ENDING))


@pytest.mark.slow
def test_equals_the_whole_run_with_a_kernel():
    moving = inference.SMC(8, kernel=inference.MH(ppl.select("z")))
    target = hmm(6)
    whole, parts = moving.run(KEY, target), run_in_chunks(moving, KEY, target, steps=3)
    np.testing.assert_array_equal(whole.ancestors, parts.ancestors)
    np.testing.assert_array_equal(whole.choices["z"], parts.choices["z"])
    np.testing.assert_allclose(whole.log_weights, parts.log_weights, atol=1e-4)


def test_a_program_without_steps():
    def coin(ctx):
        ctx.observe("y", ppl.dist.Normal(ctx.sample("x", ppl.dist.Normal(0.0, 1.0)), 1.0), 1.0)

    target = ppl.Target(ppl.program(coin))
    assert_identical(run_in_chunks(smc, KEY, target), smc.run(KEY, target))


def test_all_chunks_are_one_compilation_and_a_second_run_none():
    target = hmm(10, seed=5)
    other = ppl.Target(target.model, hmm(10, seed=6).args)
    keys = jax.random.split(jax.random.key(3), 2)
    first, second = keys[0], keys[1]
    with compiles() as c:
        run_in_chunks(smc, first, target, steps=3)
    assert sum("_advance" in name for name in c.names) == 1
    with compiles() as c:
        run_in_chunks(smc, second, other, steps=3)
    assert c.names == []


def test_ends_early_when_all_are_done():
    reports = []
    run_in_chunks(smc, KEY, ending(1.0), steps=2, callback=reports.append)
    assert [r.step for r in reports] == [2] and reports[0].over


def dying_step(ctx, state, t):
    x = ctx.sample("x", ppl.dist.Bernoulli(probs=0.5))
    ctx.factor("fatal", jnp.where(t == 2, -jnp.inf, 0.0))
    return x


def test_ends_early_when_all_are_dead():
    model = ppl.StateSpace(lambda ctx: jnp.zeros((), jnp.int32), dying_step, LENGTH)
    reports = []
    dead = run_in_chunks(smc, KEY, model, steps=2, callback=reports.append)
    assert (int(dead.status.code), int(dead.status.step)) == (DEAD, 2)
    assert [r.step for r in reports] == [2, 4]
    assert dead.log_evidence == -jnp.inf
    with pytest.raises(inference.InferenceError, match="died at step 2"):
        run_in_chunks(smc, KEY, model, steps=2, throw=True)


def test_reports_and_a_callback_that_looks_at_the_particles():
    seen = []
    whole = run_in_chunks(
        smc, KEY, HMM, steps=4, callback=lambda r: seen.append((r, r.particles()))
    )
    assert [r.step for r, _ in seen] == [4, 8, 12]
    for r, particles in seen:
        np.testing.assert_allclose(r.log_evidence, whole.log_evidence_history[r.step], rtol=1e-6)
        np.testing.assert_allclose(r.log_evidence, particles.log_evidence, rtol=1e-6)
        assert r.resampled == int(whole.resampled[: r.step].sum())
        assert not particles.choices["z"][:, r.step :].any()


def test_stop_gives_the_population_so_far():
    short = run_in_chunks(smc, KEY, HMM, steps=4, stop=lambda r: r.step >= 8)
    whole = smc.run(KEY, HMM)
    assert (int(short.status.code), int(short.status.step)) == (BUDGET, 8)
    np.testing.assert_array_equal(short.ancestors[:8], whole.ancestors[:8])
    np.testing.assert_allclose(short.log_evidence, whole.log_evidence_history[8], rtol=1e-6)
    np.testing.assert_array_equal(short.lengths, 8)
    with pytest.raises(inference.InferenceError, match="stopped after 8 steps"):
        run_in_chunks(smc, KEY, HMM, steps=4, stop=lambda r: r.step >= 8, throw=True)


def test_a_stopped_run_does_not_reject_the_unfinished():
    target = ending(0.1, at_length=ppl.state_space.Reject())
    short = run_in_chunks(smc, KEY, target, steps=4, stop=lambda r: True)
    assert int(short.status.code) == BUDGET and bool(jnp.all(jnp.isfinite(short.log_weights)))


def test_an_interrupt_stops_after_the_chunk():
    before = signal.getsignal(signal.SIGINT)

    def interrupt(report):
        if report.step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    short = run_in_chunks(smc, KEY, HMM, steps=4, callback=interrupt)
    assert (int(short.status.code), int(short.status.step)) == (BUDGET, 4)
    assert signal.getsignal(signal.SIGINT) is before


def test_the_bar_shows_the_numbers(capsys):
    run_in_chunks(smc, KEY, HMM, steps=4, progress=True)
    shown = " ".join(capsys.readouterr().out.split())
    assert "12/12" in shown and "ESS" in shown


def test_a_chunk_has_a_step():
    with pytest.raises(ValueError, match="at least one step"):
        run_in_chunks(smc, KEY, HMM, steps=0)


# Checkpoints


def stopped(folder: Path, at: int = 8) -> None:
    run_in_chunks(smc, KEY, HMM, steps=4, checkpoint=folder, stop=lambda r: r.step >= at)


def test_resumed_equals_uninterrupted_and_compiles_nothing(tmp_path):
    whole = run_in_chunks(smc, KEY, HMM, steps=4)
    stopped(tmp_path / "run")
    steps = []
    resumed = run_in_chunks(
        smc, KEY, HMM, steps=4, checkpoint=tmp_path / "run", callback=lambda r: steps.append(r.step)
    )
    assert steps == [12]
    assert_identical(resumed, whole)
    again = run_in_chunks(
        smc, KEY, HMM, steps=4, checkpoint=tmp_path / "run", callback=steps.append
    )
    assert steps == [12]  # the run is over and only read
    assert_identical(again, whole)


def keyed_init(ctx):
    return {"key": jax.random.key(7), "raw": jnp.zeros(2, jnp.uint32), "hot": ppl.Hot(jnp.ones(3))}


def keyed_step(ctx, state, t):
    x = ctx.sample("x", ppl.dist.Normal(jax.random.normal(state["key"]), 1.0))
    ctx.observe("y", ppl.dist.Normal(x, 1.0), 0.5)
    key = jax.random.fold_in(state["key"], t)
    hot = ppl.Hot(state["hot"].value + x)
    return {"key": key, "raw": state["raw"] + jnp.uint32(1), "hot": hot}


@pytest.mark.slow
def test_keys_and_hot_state_survive(tmp_path):
    model = ppl.StateSpace(keyed_init, keyed_step, 4)
    whole = run_in_chunks(smc, KEY, model, steps=2)
    run_in_chunks(smc, KEY, model, steps=2, checkpoint=tmp_path / "run", stop=lambda r: True)
    resumed = run_in_chunks(smc, KEY, model, steps=2, checkpoint=tmp_path / "run")
    np.testing.assert_array_equal(resumed.choices["x"], whole.choices["x"])
    np.testing.assert_array_equal(resumed.log_weights, whole.log_weights)
    assert jnp.issubdtype(resumed.state["key"].dtype, jax.dtypes.prng_key)
    assert bool(
        jnp.all(
            jax.random.key_data(resumed.state["key"]) == jax.random.key_data(whole.state["key"])
        )
    )


def other_step(ctx, state, t, hmm, ys):
    return state


def other_model():
    return ppl.StateSpace(HMM.model.init, other_step, LENGTH, bound=HMM.model.bound)


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (lambda: (inference.SMC(8), KEY, HMM), r"n_particles \(there 16, here 8\)"),
        (lambda: (smc, KEY, hmm(11)), r"length \(there 12, here 11\)"),
        (lambda: (smc, jax.random.key(1), HMM), "the key"),
        (
            lambda: (inference.SMC(16, inference.Systematic(ess_threshold=0.9)), KEY, HMM),
            "the resampler",
        ),
        (lambda: (inference.SMC(16, record=inference.Record.last()), KEY, HMM), "the record"),
        (lambda: (smc, KEY, hmm(seed=2)), "the args"),
        (
            lambda: (smc, KEY, ppl.Target(HMM.model, HMM.args, {"z": jnp.zeros(12, jnp.int32)})),
            "the constraints",
        ),
        (
            lambda: (smc, KEY, jax.tree.map(lambda x: x * 1 if x.ndim < 2 else x + 0.5, HMM)),
            "the model",
        ),
        (
            lambda: (
                smc,
                KEY,
                ppl.Target(
                    ppl.StateSpace(HMM.model.init, other_step, 12, bound=HMM.model.bound), HMM.args
                ),
            ),
            "the model",
        ),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path_factory, run, says):
    folder = tmp_path_factory.getbasetemp() / "a stopped run"
    if not folder.exists():
        stopped(folder)
    with pytest.raises(CheckpointError, match=says):
        run_in_chunks(*run(), steps=4, checkpoint=folder)


@pytest.mark.slow
def test_the_mapping_and_the_size_of_a_chunk_may_change(tmp_path):
    stopped(tmp_path / "run")
    blocks = inference.SMC(16, mapping=inference.Chunked(8))
    resumed = run_in_chunks(blocks, KEY, HMM, steps=3, checkpoint=tmp_path / "run")
    np.testing.assert_array_equal(resumed.choices["z"], smc.run(KEY, HMM).choices["z"])


def damage(step: Path, how: str) -> None:
    files = sorted((f for f in step.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    if how == "cut":
        for f in files:
            if "/d/" in str(f):
                f.write_bytes(f.read_bytes()[: f.stat().st_size // 2])
    elif how == "flip":
        content = bytearray(files[-1].read_bytes())
        content[len(content) // 2] ^= 0xFF
        files[-1].write_bytes(bytes(content))
    elif how == "no manifest":
        shutil.rmtree(step / "manifest")


@pytest.mark.parametrize("how", ["cut", "flip", "no manifest"])
def test_the_one_before_stands_in_for_a_damaged_checkpoint(tmp_path, how):
    folder = tmp_path / "run"
    whole = run_in_chunks(smc, KEY, HMM, steps=4)
    stopped(folder)
    assert sorted(int(p.name) for p in folder.iterdir()) == [4, 8]
    damage(folder / "8", how)
    steps = []
    with pytest.warns(UserWarning, match="checkpoint of step 8 .* cannot be read"):
        resumed = run_in_chunks(
            smc, KEY, HMM, steps=4, checkpoint=folder, callback=lambda r: steps.append(r.step)
        )
    assert steps == [8, 12]
    assert_identical(resumed, whole)


def test_nothing_readable_is_an_error_and_nothing_is_deleted(tmp_path):
    folder = tmp_path / "run"
    stopped(folder)
    for step in folder.iterdir():
        damage(step, "cut")
    before = sorted(folder.rglob("*"))
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match="none of the checkpoints"):
        run_in_chunks(smc, KEY, HMM, steps=4, checkpoint=folder)
    assert sorted(folder.rglob("*")) == before


def test_two_checkpoints_are_kept(tmp_path):
    kept = []
    run_in_chunks(
        smc,
        KEY,
        HMM,
        steps=3,
        checkpoint=tmp_path / "run",
        callback=lambda r: kept.append(sorted(int(p.name) for p in (tmp_path / "run").iterdir())),
    )
    assert kept == [[3], [3, 6], [6, 9], [9, 12]]


def test_memory_is_given_to_the_next_chunk():
    seen = []
    run_in_chunks(smc, KEY, HMM, steps=4, callback=lambda r: seen.append(r))
    with pytest.raises(ValueError, match="deleted or donated"):
        arrays(seen[0].particles())
