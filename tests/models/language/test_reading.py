"""Readings of a run: per-token arrays, the page, guesses while it runs."""

import threading
import xml.etree.ElementTree as ET

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from feynkac import inference, models, ppl
from feynkac.models.finite import MarkovLanguageModel, MarkovLM
from feynkac.models.language import Tokenizer
from feynkac.models.language.html import genealogy, show
from feynkac.models.language.reading import per_token
from feynkac.models.language.safety import Safety
from feynkac.models.language.streaming import stream

EOS, T, N = 0, 6, 16
TABLE = np.array(
    [[0.1, 0.5, 0.3, 0.1], [0.1, 0.3, 0.4, 0.2], [0.1, 0.2, 0.5, 0.2], [0.4, 0.2, 0.2, 0.2]]
)


@pytest.fixture(scope="module")
def lm():
    core = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"<end>": 0, "a": 1, "<b>": 2, '"&\n': 3}, unk_token="a")
    )
    core.add_special_tokens(["<end>"])
    law = MarkovLM(jnp.log(TABLE[0]), jnp.log(TABLE), EOS)
    return MarkovLanguageModel(law, tokenizer=Tokenizer(core, eos=EOS))


@pytest.fixture(scope="module")
def story(lm):
    return models.generation(lm, [1], T) * Safety(np.array([0.0, 1.0, 2.0, 0.0]), 5.0, 2.0, 0.7)


@pytest.fixture(scope="module")
def run(story):
    return inference.SMC(N).run(jax.random.key(0), story)


@pytest.mark.slow
def test_per_token_adds_up_to_the_density(story, run):
    tokens = per_token(story, run)
    total = tokens.first + tokens.log_weights.sum(1) + tokens.last + tokens.log_draws.sum(1)
    density = jax.vmap(ppl.Target(story).log_density)(run.choices)
    np.testing.assert_allclose(total, density, atol=1e-5)
    ids, lengths = np.asarray(run.choices["token"]), np.asarray(run.lengths)
    for i in range(N):
        before = [1, *ids[i, : lengths[i] - 1]]
        want = np.log(TABLE[before, ids[i, : lengths[i]]])
        np.testing.assert_allclose(tokens.log_probs[i, : lengths[i]], want, atol=1e-5)
        assert (np.asarray(tokens.log_weights[i, lengths[i] :]) == 0).all()
        assert np.asarray(tokens.written[i]).sum() == lengths[i]
    # What the population carries is what the tokens of its lineages added since it was resampled.
    assert float(tokens.log_weights.min()) < -0.01


def test_the_page_is_well_formed_and_shows_every_text(lm, story, run):
    shown = show(lm, run, story, top=3)
    page = ET.fromstring(shown._repr_html_())
    svg = page.find("{http://www.w3.org/2000/svg}svg")
    assert svg is not None and page.find(".//script") is None
    text = "".join(page.itertext())
    assert "log evidence" in text and f"and {len(shown.readings) - 3} other texts" in text
    assert f"{100 * shown.readings[0].probability:.1f}%" in text
    spans = [s for s in page.iter("span") if s.get("title")]
    best = [s.text for s in spans][: len(shown.readings[0].text)]
    written = "".join(best).split("\u25a0")[0].replace("\u21b5", "")
    assert written == shown.readings[0].text
    edges = sum(p.get("d").count("L") for p in svg.iter("{http://www.w3.org/2000/svg}path"))
    assert edges == N * int(np.max(run.lengths))
    plain = show(lm, run)
    assert plain.tokens is None and repr(shown.readings[0].text) in repr(plain)
    assert "rgba(59,130,196,0" not in show(lm, run, story, probabilities=True, top=1).html
    assert genealogy(run) in shown.html


@pytest.mark.slow
def test_guesses_end_in_the_run(lm, story):
    smc, key = inference.SMC(N), jax.random.key(1)
    guesses = list(stream(lm, smc, key, story, steps=2))
    whole = smc.run(key, story)
    last = guesses[-1]
    assert len(guesses) >= 3 and last.report is None and guesses[0].report.step == 2
    np.testing.assert_allclose(last.particles.log_weights, whole.log_weights, atol=1e-5)
    assert last.readings[0].text == models.texts(lm, whole)[0].text
    for guess in guesses:
        assert np.isclose(sum(r.probability for r in guess.readings), 1.0, atol=1e-5)
    early = guesses[0].readings
    assert all(np.isin(r.finished, [True, False]) for r in early) and not early[0].text == ""
    assert any(not r.finished for r in early)


def test_leaving_stops_and_errors_arrive(lm, story):
    before, seen = threading.active_count(), []
    for guess in stream(lm, inference.SMC(N), jax.random.key(1), story, steps=2):
        seen.append(guess)
        break
    assert seen[0].text and threading.active_count() <= before

    def broken(report):
        raise RuntimeError("of the caller")

    with pytest.raises(RuntimeError, match="of the caller"):
        list(stream(lm, inference.SMC(N), jax.random.key(1), story, steps=2, callback=broken))


def test_what_cannot_be_read_is_an_error(lm, run):
    bare = MarkovLanguageModel(MarkovLM(jnp.log(TABLE[0]), jnp.log(TABLE), EOS))
    batch = jax.tree.map(lambda x: x[None], run)
    with pytest.raises(ValueError, match="batch"):
        show(lm, batch)
    with pytest.raises(ValueError, match="tokenizer"):
        show(bare, run)
    with pytest.raises(ValueError, match="tokenizer"):
        stream(bare, inference.SMC(2), jax.random.key(0), None)
