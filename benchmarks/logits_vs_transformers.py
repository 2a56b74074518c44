"""SmolLM2 logits of feynkac against `transformers` on the same GGUF weights.

`transformers` lives in an environment of its own:

    python -m venv reference
    reference/bin/pip install torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 gguf==0.19.0
    python benchmarks/logits_vs_transformers.py --reference reference/bin/python

Both sides read the same token ids (the tokenizer that `transformers` converts from GGUF differs on
some texts). The reference runs in float64, and again in float32 for scale. With `--store FILE` a
slice of the float64 reference (128 vocabulary entries, logsumexp and argmax at every position, the
log-probability of each next token) is written for the test suite.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

TEXTS = {
    "chat": [
        {"role": "user", "content": "I have 3 baskets with 4 apples each. How many apples?"},
        {"role": "assistant", "content": "You have 12 apples in total."},
        {"role": "user", "content": "And if I eat 2 of them?"},
    ],
    "code": "def fib(n: int) -> int:\n    a, b = 0, 1\n"
    "    for _ in range(n):\n        a, b = b, a + b\n    return a\n\n"
    "print([fib(i) for i in range(10)])\n",
    "prose": "Ce n'était pas une île déserte : in 1889 the café's clock, 7½ minutes slow, struck "
    "twelve. 🤖 Nobody moved; the sea — grey, patient — kept its own time.",
}


def reference(gguf: str, folder: Path) -> None:
    """Run in the other environment: logits at every position, float64 and float32."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    for dtype in (torch.float64, torch.float32):
        path = Path(gguf)
        model = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            dtype=dtype,
            quantization_config=GgufConfig(dequantize=True),
        )
        model.eval()
        for file in folder.glob("*.ids.npy"):
            with torch.no_grad():
                logits = model(torch.tensor(np.load(file))[None]).logits[0].numpy()
            name = file.name.removesuffix(".ids.npy")
            np.save(folder / f"{name}.{str(dtype).removeprefix('torch.')}.npy", logits)


def own_logits(lm, ids: list[int]) -> np.ndarray:
    """Logits at every position: the first by a prompt of one token, the others by advancing."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    @eqx.filter_jit
    def forward(lm, prefix, tokens):
        def step(state, inputs):
            state = lm.advance(prefix, state, *inputs)
            return state, state.logits

        slots = jnp.arange(len(tokens), dtype=jnp.int32)
        return jax.lax.scan(step, lm.start(prefix, len(tokens)), (tokens, slots))[1]

    prefix = lm.prompt(ids[:1])
    rest = forward(lm, prefix, jnp.asarray(ids[1:], jnp.int32))
    return np.concatenate([np.asarray(prefix.logits)[None], np.asarray(rest)])


def slices(logits: np.ndarray, ids: np.ndarray) -> dict[str, np.ndarray]:
    """What the test suite keeps of float64 logits [T, V] of a text `ids` [T]."""
    drawn = np.random.default_rng(0).choice(logits.shape[1], 64, replace=False)
    entries = np.concatenate([np.arange(64), drawn])
    top = logits.max(axis=1, keepdims=True)
    total = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
    steps = np.arange(len(ids) - 1)
    return {
        "log_probs": (logits[steps, ids[1:]] - total[:-1]).astype(np.float32),
        "entries": entries.astype(np.int32),
        "logits": logits[:, entries].astype(np.float32),
        "logsumexp": total.astype(np.float32),
        "argmax": logits.argmax(axis=1).astype(np.int32),
    }


def main() -> None:
    """Print the table, or play the reference's part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", help="the Python with torch and transformers")
    parser.add_argument("--store", type=Path, help="write the slices for the test suite here")
    parser.add_argument("--role", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        reference(arguments.role[0], Path(arguments.role[1]))
        return
    if not arguments.reference:
        sys.exit("Give --reference, a Python with torch and transformers (see the docstring).")

    from feynkac.models.language.fetch import fetch_smollm2
    from feynkac.models.language.loading import load
    from feynkac.models.language.protocol import encode_prompt

    lm, stored = load("smollm2-135m-instruct"), {}
    with tempfile.TemporaryDirectory() as scratch:
        folder, ids = Path(scratch), {}
        for name, text in TEXTS.items():
            tokens, length = encode_prompt(lm, text)
            ids[name] = np.asarray(tokens[: int(length)], np.int64)
            np.save(folder / f"{name}.ids.npy", ids[name])
        command = [arguments.reference, __file__, "--role", str(fetch_smollm2()), scratch]
        subprocess.run(command, check=True)
        print(f"{'text':8}{'tokens':>8}{'max |diff|':>14}{'torch f32':>14}{'argmax':>10}")
        for name in TEXTS:
            exact = np.load(folder / f"{name}.float64.npy")
            single = np.load(folder / f"{name}.float32.npy")
            own = own_logits(lm, list(map(int, ids[name])))
            agree = (own.argmax(1) == exact.argmax(1)).mean()
            ours, theirs = np.abs(own - exact).max(), np.abs(single - exact).max()
            print(f"{name:8}{len(own):8}{ours:14.2e}{theirs:14.2e}{agree:10.1%}")
            stored[f"{name}.ids"] = ids[name].astype(np.int32)
            stored |= {f"{name}.{key}": value for key, value in slices(exact, ids[name]).items()}
    if arguments.store:
        np.savez_compressed(arguments.store, **stored)


if __name__ == "__main__":
    main()
