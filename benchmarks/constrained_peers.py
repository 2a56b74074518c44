"""The peers' part of `constrained_generation.py`: genlm-control and llamppl in a process of theirs.

    genlm/bin/python benchmarks/constrained_peers.py FOLDER

It reads what it is told from the folder, then answers orders (lane, case, number of particles,
seed) from standard input, a line of JSON each. The cases and what is kept of a run are here too.
"""

import asyncio
import json
import math
import os
import re
import sys
import time
from pathlib import Path

import numpy as np

WORD = "[a-z]{1,11}"
NAME = "[A-Z][a-z]{1,9}( [A-Z][a-z]{1,9})?"
FREE = 32000
PATTERNS = {
    "record": (
        "Invent a person. Answer with one line of JSON like "
        '{"name": "Anna Berg", "age": 34, "city": "Oslo"}.',
        rf'\{{"name": "{NAME}", "age": [1-9][0-9], "city": "{NAME}"\}}',
    ),
    "sentence": (
        "Write one short sentence about the sea.",
        rf"[A-Z][a-z]{{0,11}}( {WORD}){{6,10}}\.",
    ),
    "free": (None, "[a-z ]{90,120}"),
}
CRITIC = "critic"
OURS, LLAMPPL = "feynkac", "llamppl"
PRODUCT, AWRS, DIRECT = (f"genlm-control, {x}" for x in ("product", "AWRS", "direct + critic"))


def summary(log_weights, lengths, texts, pattern, seconds):
    """What is kept of a run: texts [N] of bytes, weights in nats, whether each text matches."""
    log_weights = np.asarray(log_weights, float)
    top = log_weights.max()
    weights = np.exp(log_weights - (top if np.isfinite(top) else 0.0))
    alive = [text for text, weight in zip(texts, weights, strict=True) if weight > 0]
    matched = all(re.fullmatch(pattern, t.decode("utf-8", "replace")) for t in alive)
    mass = weights.sum()
    return {
        "seconds": seconds,
        "tokens": int(np.sum(lengths)),
        "log_z": float(np.log(mass / len(weights)) + top) if mass > 0 else -math.inf,
        "ess": float(mass**2 / (weights**2).sum()) if mass > 0 else 0.0,
        "matched": matched,
        "example": alive[0].decode("utf-8", "replace") if alive else "",
    }


class Peers:
    """genlm-control and llamppl on what `folder` holds; built on first use."""

    def __init__(self, folder, told):
        self.folder, self.told, self.samplers = folder, told, {}
        self.loop = asyncio.new_event_loop()

    def load(self):
        """One transformers model for both."""
        import torch
        from genlm.backend.llm import AsyncTransformer
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
        from transformers.utils import logging

        logging.disable_progress_bar()
        path = Path(self.told["gguf"])
        model = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        self.lm = AsyncTransformer(
            model, tokenizer, batch_size=self.told["particles"], timeout=0.001
        )
        assert tokenizer.eos_token_id == self.told["eos"]
        theirs = [token.byte_string for token in self.lm.byte_vocab]
        ours = [text.encode("latin-1") for text in self.told["texts"]]
        differ = [i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if b and a != b]
        assert not differ, f"tokens with other bytes: {differ[:8]}"

    def sampler(self, lane, case):
        """genlm-control's sampler and critic of a case."""
        from genlm.control import AWRS as Rejection
        from genlm.control import BoolFSA, PromptedLLM, direct_token_sampler

        if case in self.told["prompts"]:
            model = PromptedLLM(self.lm, prompt_ids=self.told["prompts"][case])
        else:
            arrays = dict(np.load(self.folder / "free.npz"))
            if case == CRITIC:
                arrays["logits"][-1] = -1e9
            model, critic = fixed(arrays, self.told["free"])
            if case == CRITIC:
                return direct_token_sampler(model), critic
        constraint = BoolFSA.from_regex(PATTERNS[case][1]).coerce(model, f=b"".join)
        if lane == AWRS:
            return Rejection(model, constraint), None
        return direct_token_sampler(model * constraint), None

    def reset(self, case):
        """Forget what earlier runs computed, and read the prompt."""
        if prompt := self.told["prompts"].get(case):
            self.lm.clear_cache()
            self.lm.cache_kv(prompt)

    def control(self, lane, case, n):
        """A run of genlm-control."""
        if (lane, case) not in self.samplers:
            self.samplers[lane, case] = self.sampler(lane, case)
        sampler, critic = self.samplers[lane, case]
        settings = {"max_tokens": self.told["tokens"][case], "resampling_method": "systematic"}
        if case == CRITIC:  # all texts have this length, and no end
            length = settings["max_tokens"]
            settings["terminate_when"] = lambda context: len(context) >= length
            settings["max_tokens"] += 1
        self.reset(case)
        start = time.perf_counter()
        done = self.loop.run_until_complete(
            sampler.smc(n_particles=n, ess_threshold=0.5, critic=critic, **settings)
        )
        seconds = time.perf_counter() - start
        lengths = [len(context) - (case == CRITIC) for context in done.contexts]
        texts = [b"".join(bytes(x) for x in c if isinstance(x, bytes)) for c in done.contexts]
        return done.log_weights, lengths, texts, seconds

    def llamppl(self, lane, case, n):
        """A run of llamppl."""
        from llamppl import smc_standard

        if case not in self.samplers:
            self.samplers[case] = masked(self.lm, self.told, np.load(self.folder / f"{case}.npz"))
        self.reset(case)
        model = self.samplers[case](self.told["prompts"][case], self.told["tokens"][case])
        start = time.perf_counter()
        done = self.loop.run_until_complete(
            smc_standard(model, n, ess_threshold=0.5, resampling_method="systematic")
        )
        seconds = time.perf_counter() - start
        written = [particle.written for particle in done]
        texts = [b"".join(self.told["texts"][i].encode("latin-1") for i in w) for w in written]
        lengths = [len(w) + particle.ended for w, particle in zip(written, done, strict=True)]
        return [particle.weight for particle in done], lengths, texts, seconds

    def run(self, lane, case, n, seed):
        """The summary of one run."""
        import torch

        np.random.seed(seed)
        torch.manual_seed(seed)
        run = self.llamppl if lane == LLAMPPL else self.control
        with torch.no_grad():
            weights, lengths, texts, seconds = run(lane, case, n)
        pattern = "(?s:.*)" if case == CRITIC else PATTERNS[case][1]
        return summary(weights, lengths, texts, pattern, seconds)


def fixed(arrays, texts):
    """The free model and its critic as potentials of genlm-control."""
    import torch
    from genlm.control import Potential

    row = torch.log_softmax(torch.tensor(arrays["logits"]), 0)

    class Table(Potential):
        async def prefix(self, context):
            return float(sum(row[self.lookup[token]] for token in context))

        async def complete(self, context):
            return await self.prefix(context) + float(row[-1])

        async def logw_next(self, context):
            return self.make_lazy_weights(row)

        async def batch_logw_next(self, contexts):
            return self.make_lazy_weights(row.expand(len(contexts), -1))

    class Critic(Potential):
        async def prefix(self, context):
            return sum(bonus[token] for token in context)

        complete = prefix

        async def batch_prefix(self, contexts):
            return np.array([sum(bonus[token] for token in context) for context in contexts])

        batch_complete = batch_prefix

    vocabulary = [text.encode("latin-1") for text in texts]
    bonus = dict(zip(vocabulary, arrays["bonus"].tolist(), strict=False))
    return Table(vocabulary), Critic(vocabulary)


def masked(lm, told, automaton):
    """A llamppl model: the next token is observed to be one that the automaton allows."""
    from llamppl import CachedCausalLM, LMContext, Model

    lm, eos = CachedCausalLM(lm), told["eos"]
    classes, transitions = automaton["classes"], automaton["transitions"]
    ending, end, masks = automaton["ending"], automaton["end"], {}

    def mask(state):
        if state not in masks:
            masks[state] = set(np.flatnonzero(transitions[state][classes]).tolist())
        return masks[state]

    class Context(LMContext):
        def _init_common(self, lm, prompt, *settings):  # a prompt of tokens, not of text
            super()._init_common(lm, "", *settings)
            self.tokens = list(prompt)

    class Constrained(Model):
        def __init__(self, prompt, length):
            super().__init__()
            self.context, self.state = Context(lm, prompt), int(automaton["start"])
            self.left, self.written, self.ended = length, [], False

        async def step(self):
            allowed = mask(self.state)
            if self.left == 1:
                allowed = {eos} if transitions[self.state][ending] == end else set()
            if not allowed:
                self.condition(False)
                return
            await self.observe(self.context.mask_dist(allowed), True)
            token = int((await self.sample(self.context.next_token())).token_id)
            self.left -= 1
            if token == eos:
                self.ended = True
                self.finish()
                return
            self.written.append(token)
            self.state = int(transitions[self.state, classes[token]])

    return Constrained


def serve(folder):
    """Answer orders, a line of JSON each; whatever libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    start = time.perf_counter()
    import genlm.control  # noqa: F401
    import llamppl  # noqa: F401

    peers = Peers(folder, json.loads((folder / "told.json").read_text()))
    if peers.told["prompts"]:
        peers.load()
    answer = {"seconds": time.perf_counter() - start}
    while True:
        answer["cpu"] = sum(os.times()[:2])
        print(json.dumps(answer), file=answers, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        answer = peers.run(**json.loads(line))


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
