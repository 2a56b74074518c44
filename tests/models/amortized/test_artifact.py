"""Artifacts: the same numbers in another process, without tracing; flagged, refused, damaged."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from feynkac import models, ppl
from feynkac.models.amortized import (
    artifact,
    distribution_transformer,
    meta_prior,
    network,
    pretrained,
)
from feynkac.models.amortized.artifact import Provenance, ValidityError, program_digest
from feynkac.models.learned import ArtifactError
from feynkac.ppl import dist

WORKER = Path(__file__).with_name("artifact_worker.py")


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first, self.second = nnx.Linear(2, 16, rngs=rngs), nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x):
        return self.second(jnp.tanh(self.first(x)))


@ppl.program
def prior(ctx):
    ctx.sample("x", dist.Normal(0.0, 2.0))


def answer(net, x):
    """Mean over the points, and one row for each."""
    rows = jax.nn.log_softmax(net(x))
    return {"rows": rows, "mean": jnp.mean(rows, axis=0)}


def told(**changes):
    known = {"validity": {"x": (-1.5, 1.5), "n": (1, 8)}, "trained": {"loss": 0.25}}
    return Provenance(program_digest(prior), 7, 100, **{**known, **changes})


@pytest.fixture(scope="module")
def net():
    return network(Net(nnx.Rngs(jax.random.key(0))))


@pytest.fixture(scope="module")
def path(net, tmp_path_factory):
    file = tmp_path_factory.mktemp("artifact") / "net.safetensors"
    x = jax.ShapeDtypeStruct((6, 2), jnp.float32)
    artifact.export(file, answer, {"x": x}, net, told(), shapes={"x": "n, 2"})
    return file


def test_the_same_answers_and_provenance(net, path):
    loaded = artifact.load(path)
    for n in (1, 5):
        x = jax.random.uniform(jax.random.key(n), (n, 2))
        value, wanted = loaded(x=x), answer(net, x)
        for name in wanted:
            np.testing.assert_allclose(value[name], wanted[name], atol=1e-6)
    assert loaded.inputs == {"x": "float32[n, 2]"}
    known = loaded.provenance
    assert known.seed == 7 and known.steps == 100 and known.trained == {"loss": 0.25}
    assert known.versions["jax"] == jax.__version__ and known.validity["n"] == (1, 8)
    assert known.of(prior)

    @ppl.program
    def other(ctx):
        ctx.sample("x", dist.Normal(0.0, 3.0))

    assert not known.of(other)


def test_outside_of_the_validity(path):
    loaded = artifact.load(path)
    inside, far = jnp.zeros((4, 2)), jnp.full((4, 2), 1.6)
    assert loaded.run(x=inside).inside
    for x, said in [
        (far, "x leaves"),
        (inside.at[2, 1].set(jnp.nan), "not finite"),
        (jnp.zeros((9, 2)), "n is 9, trained for 1 to 8"),
    ]:
        with pytest.raises(ValidityError, match=said):
            loaded(x=x)
        assert not loaded.run(x=x).inside
    flag = jax.jit(lambda x: loaded.run(x=x).inside)
    assert flag(inside) and not flag(far)
    with pytest.raises(TypeError, match="artifact.run"):
        jax.jit(lambda x: loaded(x=x))(inside)
    with pytest.raises(TypeError, match="the inputs are"):
        loaded(y=inside)
    with pytest.raises(TypeError, match="float32\\[n, 2\\], got"):
        loaded(x=jnp.zeros((4, 3)))
    with pytest.raises(TypeError, match="float32\\[n, 2\\], got int32"):
        loaded(x=jnp.zeros((4, 2), jnp.int32))


def test_damaged_foreign_and_mismatched_files(path, net, tmp_path, monkeypatch):
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(raw)
    with pytest.raises(ArtifactError, match="damaged"):
        artifact.load(damaged)
    damaged.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ArtifactError, match="damaged or no safetensors"):
        artifact.load(damaged)
    models.learned.save(damaged, {"w": jnp.zeros(3)})
    with pytest.raises(ArtifactError, match="weights only"):
        artifact.load(damaged)
    with pytest.raises(FileNotFoundError):
        artifact.load(tmp_path / "none.safetensors")
    monkeypatch.setattr(jax, "default_backend", lambda: "rocm")
    with pytest.raises(ArtifactError, match="this is rocm"):
        artifact.load(path)
    x = {"x": jnp.zeros((6, 2))}
    with pytest.raises(ValueError, match="shapes names"):
        artifact.export(damaged, answer, x, net, told(), shapes={"z": "n"})
    with pytest.raises(ValueError, match="low, high"):
        artifact.export(damaged, answer, x, net, told(validity={"x": (2.0, 1.0)}))


def perceptron():
    x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(6, 2)
    return network(Net(nnx.Rngs(jax.random.key(0)))), lambda net, x: net(x), {"x": x}


def prior_data_fitted():
    def answer(pfn, x, y, n, queries):
        return pfn.answer(pfn.net, x, y, n, queries).log_probs

    x = np.linspace(0, 1, 20, dtype=np.float32)
    inputs = {"x": x[:, None], "y": np.sin(3 * x), "n": np.int32(7), "queries": x[:5, None]}
    return pretrained(), answer, inputs


def transformer():
    @ppl.program
    def family(ctx):
        loc = ctx.sample("loc", dist.Normal(0.0, 1.0))
        x = ctx.sample("x", dist.Normal(loc, 1.0))
        z = ctx.sample("z", dist.Normal(x, 0.5))
        return {"loc": loc}, {"z": z[None, None]}

    def answer(net, loc, z):
        return net({"loc": loc}, {"z": z}).posterior.means

    task = meta_prior(family, ["x"])
    net = distribution_transformer(jax.random.key(0), task, width=16, heads=2, examples=64)
    return net, answer, {"loc": np.float32(0.5), "z": np.array([[0.1]], np.float32)}


@pytest.mark.slow
@pytest.mark.parametrize("made", [perceptron, prior_data_fitted, transformer])
def test_a_new_process_does_not_trace(made, tmp_path):
    """Below 2 s of processor time with a warm cache; later calls compile nothing."""
    net, answer, inputs = made()
    file, given, out = (tmp_path / name for name in ("net.safetensors", "in.npz", "out.npy"))
    known = told(validity={})
    artifact.export(file, answer, inputs, net, known)
    np.savez(given, **inputs)
    for _ in range(2):  # the first fills the compilation cache
        run = subprocess.run(
            [sys.executable, WORKER, file, given, out], check=True, capture_output=True, text=True
        )
    said = json.loads(run.stdout.splitlines()[-1])
    assert said["cpu"] < 2 and said["then"] == said["first"]
    wanted = answer(net, **{name: jnp.asarray(x) for name, x in inputs.items()})
    np.testing.assert_allclose(np.load(out), wanted, atol=1e-6, rtol=1e-6)
    assert artifact.load(file).provenance.of(prior)
