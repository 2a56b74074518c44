"""A posterior over texts as one piece of HTML: texts, heat maps of tokens, genealogy.

No scripts and nothing from outside; colours that are told apart without red and green, and read on
a light and on a dark page.
"""

import html
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...inference.particles import Particles
from .protocol import LanguageModel
from .reading import PerToken, Reading, heaviest, per_token

# Blue for more, orange for less; lines of grey and blue: each 3:1 or more on white and on black.
MORE, LESS, LINE, FAINT = "59,130,196", "217,130,43", "#3b82c4", "#858b94"
_MOST_EDGES = 20_000


class Shown:
    """What `show` returns: a page for the notebook (`_repr_html_`), and its content.

    `readings` are the texts; `tokens` the arrays of the heat map, a row for each text shown (None
    without a model); `html` the page, to write into a file.
    """

    def __init__(self, readings: list[Reading], tokens: PerToken | None, page: str):
        self.readings, self.tokens, self.html = readings, tokens, page

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        rows = [f"{r.probability:8.4f}  {r.particles:4d}  {r.text!r}" for r in self.readings]
        return "\n".join(["    prob.  part.  text", *rows])


def show(
    lm: LanguageModel,
    particles: Particles,
    model: Any = None,
    *,
    probabilities: bool = False,
    top: int = 12,
    site: str = "token",
) -> Shown:
    """The posterior over texts for a notebook.

    Args:
        lm: the language model, for its tokenizer.
        particles: one run.
        model: the model or target that the run was of. With it each text is shown token by token,
            blue where the token made the weight larger and orange where smaller, by `per_token`.
        probabilities: colour by the tokens' log probability instead (the language model's, or, for
            other models, that of the draw).
        top: how many texts to show; all are in `readings`.
        site: the name of the tokens' site.

    Raises:
        ValueError: the model has no tokenizer, or a batch of runs.
    """
    if particles.log_weights.ndim != 1:
        raise ValueError("this is a batch of runs: pick one, jax.tree.map(lambda x: x[0], runs)")
    found = heaviest(lm, particles, site)
    readings, who = [reading for reading, _ in found], [i for _, i in found]
    count = min(max(top, 0), len(readings))
    tokens, values = None, None
    if model is not None and count:
        tokens = _per_token(model, particles, who[:count], min(top, len(particles.lengths)), site)
        log_probs = tokens.log_draws if tokens.log_probs is None else tokens.log_probs
        values = np.asarray(log_probs if probabilities else tokens.log_weights, float)
    parts = [_head(particles), _legend(values, probabilities)]
    parts += [_text(lm, readings[i], i, values, tokens) for i in range(count)]
    if len(readings) > top:
        parts.append(f'<p style="{_SMALL}">and {len(readings) - top} other texts</p>')
    parts.append(genealogy(particles))
    page = f'<div style="font-family:system-ui,sans-serif;line-height:1.5">{"".join(parts)}</div>'
    return Shown(readings, tokens, page)


_SMALL = "font-size:85%;opacity:.8;margin:.3em 0"


def _head(particles: Particles) -> str:
    n, status = particles.log_weights.shape[0], particles.status
    said = (
        f"{n} particles, effective sample size {float(particles.ess):.1f}, "
        f"log evidence {float(particles.log_evidence):.3f} nats"
    )
    if not bool(status):
        said += f". {status.message}"
    return f'<p style="{_SMALL}">{html.escape(said)}</p>'


def _legend(values: np.ndarray | None, probabilities: bool) -> str:
    if values is None:
        return ""
    what = "log probability" if probabilities else "log weight that a token adds"
    low, high = (
        f'<span style="background:rgba({c},.55);padding:0 .4em">{s}{_limit(values):.2f}</span>'
        for c, s in ((LESS, "-"), (MORE, "+"))
    )
    return f'<p style="{_SMALL}">{what}, nats: {low}{"" if probabilities else high}</p>'


def _limit(values: np.ndarray) -> float:
    """The value of the darkest colour."""
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    return float(np.quantile(sizes, 0.95)) if sizes.size else 1.0


def _per_token(model: Any, particles: Particles, who: list[int], rows: int, site: str) -> PerToken:
    """What each token of these particles did; computed in `rows` rows, so that it compiles once."""
    filled = np.array([*who, *[who[0]] * (rows - len(who))])
    shown = particles.take(jnp.asarray(filled), particles.log_weights[filled])
    return jax.tree.map(lambda x: x[: len(who)], per_token(model, shown, site))


def _text(
    lm: LanguageModel,
    reading: Reading,
    i: int,
    values: np.ndarray | None,
    tokens: PerToken | None,
) -> str:
    percent = 100 * reading.probability
    bar = (
        f'<span style="display:inline-block;width:6em;height:.6em;margin:0 .6em;'
        f"background:linear-gradient(90deg,rgba({MORE},.9) {percent:.1f}%,"
        f'rgba(133,139,148,.3) {percent:.1f}%)"></span>'
    )
    count = f"{reading.particles} particle" + "s" * (reading.particles != 1)
    open_ = "" if reading.finished else ", not ended"
    label = f'<span style="{_SMALL}">{percent:.1f}%{bar}{count}{open_}</span>'
    body = html.escape(reading.text)
    if values is not None and tokens is not None:
        body = _heat(lm, i, values, tokens)
    style = "white-space:pre-wrap;margin:0 0 .7em"
    return f'<div>{label}<div style="{style}">{body}</div></div>'


def _heat(lm: LanguageModel, i: int, values: np.ndarray, tokens: PerToken) -> str:
    assert lm.tokenizer is not None
    limit, spans = _limit(values), []
    ids, count = np.asarray(tokens.ids[i]), int(np.asarray(tokens.written[i]).sum())
    for t in range(count):
        token, value = int(ids[t]), values[i, t]
        if token == lm.eos:
            shown = "\u25a0"
        else:
            raw = lm.tokenizer.token_bytes[token] or lm.tokenizer.tokens[token].encode()
            shown = raw.decode("utf-8", "backslashreplace").replace("\n", "\u21b5\n")
        strength = 1.0 if not np.isfinite(value) else min(1.0, abs(value) / limit)
        colour = MORE if value > 0 else LESS
        title = f"log weight {float(tokens.log_weights[i, t]):+.3f}, "
        title += f"drawn with probability {float(np.exp(tokens.log_draws[i, t])):.3g}"
        if tokens.log_probs is not None:
            title += f", the model's own {float(np.exp(tokens.log_probs[i, t])):.3g}"
        spans.append(
            f'<span title="{title}" style="background:rgba({colour},{0.55 * strength:.2f})">'
            f"{html.escape(shown)}</span>"
        )
    return "".join(spans)


def genealogy(particles: Particles, width: int = 720, height: int = 0) -> str:
    """Who descends from whom, as SVG: time to the right, a line from each particle to its parent.

    Blue are the ancestors of the final population, dotted lines the steps before which it was
    resampled. Of large runs only the ancestors are drawn.
    """
    ancestors, lineage = np.asarray(particles.ancestors), np.asarray(particles.lineage())
    steps, n = ancestors.shape
    used = int(min(steps, max(1, np.asarray(particles.lengths).max(initial=0))))
    height = height or int(np.clip(14 * n, 80, 360))
    alive = np.zeros((steps + 1, n), bool)
    np.put_along_axis(alive, lineage, True, axis=1)
    x = 12 + (width - 24) * np.arange(used + 1) / used
    y = 10 + (height - 20) * (np.arange(n) + 0.5) / n

    def lines(chosen: np.ndarray) -> str:
        return "".join(
            f"M{x[t]:.1f} {y[ancestors[t, i]]:.1f}L{x[t + 1]:.1f} {y[i]:.1f}"
            for t, i in zip(*np.nonzero(chosen), strict=True)
        )

    kept = alive[1 : used + 1]
    dead = ~kept if used * n <= _MOST_EDGES else np.zeros_like(kept)
    resampled = np.flatnonzero(np.asarray(particles.resampled)[:used])
    marks = "".join(f"M{(x[t] + x[t + 1]) / 2:.1f} 4V{height - 4}" for t in resampled)
    unique = int(np.asarray(particles.unique_ancestors())[0])
    said = (
        f"Genealogy of {n} particles over {used} steps, resampled {len(resampled)} times; "
        f"{unique} of the first have descendants."
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'width="100%" style="max-width:{width}px" aria-label="{said}"><title>{said}</title>'
        f'<g fill="none" stroke-linecap="round">'
        f'<path d="{marks}" stroke="{FAINT}" stroke-width="1" stroke-dasharray="1 3"/>'
        f'<path d="{lines(dead)}" stroke="{FAINT}" stroke-opacity=".55" stroke-width=".8"/>'
        f'<path d="{lines(kept)}" stroke="{LINE}" stroke-width="1.6"/></g></svg>'
        f'<p style="{_SMALL}">{said}</p>'
    )
