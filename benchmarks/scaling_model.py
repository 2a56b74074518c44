"""The state-space model of `scaling.py`: a line of ten tokens is a step, a verdict its weight."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scaling_tasks as tasks
from scaling_tasks import EOS, WIDTH

from feynkac import models, ppl

TRUE_POSITIVE, FALSE_POSITIVE = 0.9, 0.2
_KINDS = {task: i for i, task in enumerate(tasks.TASKS)}
_SEMICOLON, _COLON, _SPACE = (tasks.CHARACTERS.index(c) for c in ";: ")
_LETTER = tasks.CHARACTERS.index("a")
_CAPITAL = tasks.CHARACTERS.index("A")


def _number(digits: jax.Array) -> jax.Array:
    """The number that digits spell, first digit first; wrong characters make it negative."""
    value = jnp.sum(digits * (10 ** jnp.arange(digits.shape[0] - 1, -1, -1)))
    return jnp.where(jnp.all(digits < 10), value, -1).astype(jnp.int32)


def _digits(number: jax.Array, count: int) -> jax.Array:
    return (number // (10 ** jnp.arange(count - 1, -1, -1))) % 10


def _halved(before: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    number, ones = _number(before[:4]), _number(before[7:9])
    bit, colon = number % 2, jnp.full(1, _COLON)
    shown = (_digits(number // 2, 4), colon, bit[None], colon, _digits(ones + bit, 2))
    return jnp.concatenate(shown), (number >= 0) & (ones >= 0), number == 0


def _added(before: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    total, term = _number(before[:3]), before[3]
    is_term = term < _LETTER + 10
    moved = (total + jnp.where(term < _LETTER, term, _LETTER - term)) % 1000
    shown = (_digits(moved, 3), before[4 : WIDTH - 1], jnp.full(1, _SPACE))
    return jnp.concatenate(shown), (total >= 0) & is_term, term == _SPACE


def _passed(before: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    numbers, mark = before[: tasks.NUMBERS], before[tasks.NUMBERS]
    falling = mark >= _CAPITAL
    done = mark - jnp.where(falling, _CAPITAL, _LETTER)
    place = jnp.arange(tasks.NUMBERS)
    left = (place - done) % 2 == 0
    partner = jnp.where(left, place + 1, place - 1)
    alone = (partner < 0) | (partner >= tasks.NUMBERS)
    other = numbers[jnp.where(alone, place, partner)]
    least = jnp.where(falling, ~left, left)
    swapped = jnp.where(least, jnp.minimum(numbers, other), jnp.maximum(numbers, other))
    valid = jnp.all(numbers < 10) & (done >= 0) & (done < tasks.NUMBERS)
    return jnp.append(swapped, mark + 1), valid, done == tasks.NUMBERS


def is_right(kind: jax.Array, before: jax.Array, line: jax.Array) -> jax.Array:
    """Does `line` follow from the line before it? The end of the text is a line, too."""
    rules = [rule(before) for rule in (_halved, _added, _passed)]
    due, valid, over = (jnp.stack(x)[kind] for x in zip(*rules, strict=True))
    follows = jnp.all(line[: WIDTH - 1] == due) & (line[WIDTH - 1] == _SEMICOLON) & valid & ~over
    return (before[WIDTH - 1] == _SEMICOLON) & jnp.where(line[0] == EOS, over, follows)


def _line_token(ctx, lm, prefix, start, text, u):
    """One token of a line; after the end nothing but ends."""
    only = jnp.where(jnp.arange(lm.vocab_size) == EOS, 0.0, -jnp.inf)
    token = ctx.sample("token", ppl.Token(jnp.where(text.ended, only, text.logits)))
    return text.write(lm, prefix, token, start + u), token


def _init(ctx, lm, question):
    text = models.Text.start(lm, question["prefix"], tasks.STEPS * WIDTH)
    return {"text": text, "hash": jnp.zeros((), jnp.uint32), "line": question["prompt"]}


def _step(ctx, state, t, lm, question):
    writer = ppl.bind(ppl.program(_line_token), lm, question["prefix"], t * WIDTH)
    places = jnp.arange(WIDTH, dtype=jnp.int32)
    text, line = ctx.call("line", ppl.scan(writer), state["text"], places)
    mixed = state["hash"]
    for i in range(WIDTH):  # the text so far as a number (FNV-1a)
        mixed = (mixed ^ line[i].astype(jnp.uint32)) * jnp.uint32(16777619)
    right = is_right(question["kind"], state["line"], line)
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
    n = len(problems)
    prompt = jnp.asarray([tasks.encode(p.prompt) for p in problems], jnp.int32)
    noise = jax.vmap(jax.random.fold_in, (None, 0))(
        jax.random.key(77 + _KINDS[task]), jnp.asarray([p.index for p in problems])
    )
    question = {
        "prefix": _prefill(lm, prompt, jnp.full(n, WIDTH, jnp.int32)),
        "prompt": prompt,
        "kind": jnp.full(n, _KINDS[task], jnp.int32),
        "noise": noise,
    }
    space = ppl.StateSpace(_init, _step, tasks.STEPS, _ended, ppl.Reject())
    return ppl.Target(ppl.bind(space, lm), (question,))
