"""The state-space model of `scaling.py`: a line of ten tokens is a step, a verdict its weight."""

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scaling_tasks as tasks
import scaling_train as training
from scaling_tasks import EOS, WIDTH

from feynkac import inference, models, ppl

TRUE_POSITIVE, FALSE_POSITIVE = 0.9, 0.2
_KINDS = {"chain_sum": 0, "number_sorting": 1, "count_bits": 2}
_SEMICOLON, _COLON = tasks.CHARACTERS.index(";"), tasks.CHARACTERS.index(":")


def _number(digits: jax.Array) -> jax.Array:
    """The number that digits spell, first digit first; wrong characters make it negative."""
    value = jnp.sum(digits * (10 ** jnp.arange(digits.shape[0] - 1, -1, -1)))
    return jnp.where(jnp.all(digits < 10), value, -1).astype(jnp.int32)


def is_right(question: dict, before: jax.Array, line: jax.Array, t: jax.Array) -> jax.Array:
    """Does `line` follow from the line before it (zeros at the start)? An end is a line, too."""
    lines = question["lines"]
    due = lines[jnp.minimum(t, lines.shape[0] - 1)]
    over = t >= question["count"]
    shape = line[WIDTH - 1] == _SEMICOLON
    # chain_sum: the last digit before, the term, and the total moved by it.
    total, last = _number(line[7:3:-1]), _number(before[7:3:-1])
    chain = jnp.all(line[1:4] == due[1:4]) & (line[8] == due[8]) & (total >= 0) & shape & ~over
    chain &= line[0] == last % 10
    chain &= (total - last - question["change"][jnp.minimum(t, lines.shape[0] - 1)]) % 10000 == 0
    # number_sorting: the next three numbers, whatever the others were.
    sort = jnp.all(line == due) & ~over
    # count_bits: half of the number before, its last bit, and one more if that is 1.
    half, bit, ones = _number(line[:4]), line[5].astype(jnp.int32), _number(line[7:9])
    number = jnp.where(t == 0, question["start"], _number(before[:4]))
    bits = (half >= 0) & (bit < 2) & (ones >= 0) & (2 * half + bit == number) & (number > 0)
    bits &= ones == jnp.where(t == 0, 0, _number(before[7:9])) + bit
    bits &= shape & (line[4] == _COLON) & (line[6] == _COLON)
    ends = line[0] == EOS
    end = jnp.where(question["kind"] == 2, (number == 0) & (t > 0), t == question["count"])
    body = jnp.stack([chain, sort, bits])[question["kind"]]
    return jnp.where(ends, end, body & ~jnp.any(line == EOS))


def _line_token(ctx, lm, prefix, start, text, u):
    """One token of a line; after the end nothing but ends."""
    only = jnp.where(jnp.arange(lm.vocab_size) == EOS, 0.0, -jnp.inf)
    token = ctx.sample("token", ppl.Token(jnp.where(text.ended, only, text.logits)))
    return text.write(lm, prefix, token, start + u), token


def _init(ctx, lm, question):
    text = models.Text.start(lm, question["prefix"], question["lines"].shape[0] * WIDTH)
    return {"text": text, "hash": jnp.zeros((), jnp.uint32), "line": jnp.zeros(WIDTH, jnp.int32)}


def _step(ctx, state, t, lm, question):
    writer = ppl.bind(ppl.program(_line_token), lm, question["prefix"], t * WIDTH)
    places = jnp.arange(WIDTH, dtype=jnp.int32)
    text, line = ctx.call("line", ppl.scan(writer), state["text"], places)
    mixed = state["hash"]
    for i in range(WIDTH):  # the text so far as a number (FNV-1a)
        mixed = (mixed ^ line[i].astype(jnp.uint32)) * jnp.uint32(16777619)
    right = is_right(question, state["line"], line, t)
    noise = jax.random.uniform(jax.random.fold_in(question["noise"], mixed))
    accepted = noise < jnp.where(right, TRUE_POSITIVE, FALSE_POSITIVE)
    yes = jnp.log(TRUE_POSITIVE / FALSE_POSITIVE)
    no = jnp.log((1 - TRUE_POSITIVE) / (1 - FALSE_POSITIVE))
    ctx.factor("verdict", jnp.where(accepted, yes, no))
    return {"text": text, "hash": mixed, "line": line}


def _ended(state):
    return state["text"].ended


def reward_of(path: Any) -> jax.Array:
    """What beams are ranked by: the verdicts alone."""
    return path.log_likelihood


def count(choices: Any) -> jax.Array:
    """Tokens that one line wrote, its end included."""
    ends = choices["line"]["token"] == EOS
    return jnp.sum(jnp.cumsum(ends) - ends == 0, dtype=jnp.int32)


def texts(choices: Any) -> np.ndarray:
    """Tokens [problems, n, T] of a batch of runs."""
    tokens = np.asarray(choices["line"]["token"])
    return tokens.reshape(*tokens.shape[:2], -1).astype(np.int8)


@eqx.filter_jit
def _prefill(lm, prompts, lengths):
    return jax.vmap(lm.prefill)(prompts, lengths)


def batch_target(lm: models.LanguageModel, task: str, problems: list[tasks.Problem]) -> ppl.Target:
    """The posterior of solutions to each of a batch of problems given the verdicts."""
    steps, n = tasks.STEPS[task], len(problems)
    prompt = np.full((n, tasks.PROMPT), EOS, np.int32)
    lines, change = np.full((n, steps, WIDTH), EOS, np.int32), np.zeros((n, steps), np.int32)
    start = np.zeros(n, np.int32)
    for i, p in enumerate(problems):
        prompt[i, : len(p.prompt)] = tasks.encode(p.prompt)
        lines[i, : len(p.lines)] = [tasks.encode(x) for x in p.lines]
        if task == "chain_sum":
            change[i, : len(p.lines)] = [int(x[1:3]) for x in p.lines]
        elif task == "count_bits":
            start[i] = int(p.prompt[1:])
    noise = jax.vmap(jax.random.fold_in, (None, 0))(
        jax.random.key(77 + _KINDS[task]), jnp.asarray([p.index for p in problems])
    )
    lengths = jnp.asarray([len(p.prompt) for p in problems], jnp.int32)
    question = {
        "prefix": _prefill(lm, jnp.asarray(prompt), lengths),
        "lines": jnp.asarray(lines),
        "change": jnp.asarray(change),
        "count": jnp.asarray([len(p.lines) for p in problems], jnp.int32),
        "start": jnp.asarray(start),
        "kind": jnp.full(n, _KINDS[task], jnp.int32),
        "noise": noise,
    }
    space = ppl.StateSpace(_init, _step, steps, _ended, ppl.Reject())
    return ppl.Target(ppl.bind(space, lm), (question,))


def calibrated(task: str, snapshots: list[Path], held_out: frozenset, cache: Path):
    """The snapshot whose accuracy on other questions is nearest to 35 %; chosen once."""
    chosen = cache / f"{task}-snapshot.txt"
    if not chosen.exists():
        rng = np.random.default_rng(5)
        prompts = [tasks.random_prompt(task, rng, held_out, hard=True) for _ in range(256)]
        asked = [tasks.Problem(task, i, p, tasks.solve(p)) for i, p in enumerate(prompts)]
        found = {path.name: _accuracy(training.load(path), task, asked) for path in snapshots}
        best = min(found, key=lambda name: abs(found[name] - 0.35))
        print(f"{task}: accuracy on other questions", {k: round(v, 2) for k, v in found.items()})
        chosen.write_text(best)
    path = snapshots[0].parent / chosen.read_text()
    print(f"{task}: the model of {path.stem}", flush=True)
    return training.load(path)


def _accuracy(lm, task: str, asked: list[tasks.Problem]) -> float:
    target = batch_target(lm, task, asked)
    particles = inference.run_many(inference.Importance(1).smc, jax.random.key(9), target)
    written = texts(particles.choices)[:, 0]
    right = []
    for p, row in zip(asked, written, strict=True):
        said, ended = tasks.decode(row)
        answer = tasks.answer_of(task, said) if ended else None
        right.append(answer == tasks.answer_of(task, "".join(p.lines)))
    return float(np.mean(right))
