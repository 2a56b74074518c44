"""Text to token ids and back: byte-level BPE by the `tokenizers` library, chat template by jinja2.

The text of a token sequence is the concatenation of its tokens' bytes, read as UTF-8: `decode` and
`token_bytes` agree by construction. Special tokens (end of text, roles of a chat) have no bytes.
"""

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Array, Int
from tokenizers import AddedToken, decoders, models, pre_tokenizers

_CONTROL, _USER_DEFINED = 3, 4
_BYTE_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")


class TokenizerError(ValueError):
    """The tokenizer cannot be built or used; the message says what to do."""


@functools.cache
def _byte_of_symbol() -> dict[str, int]:
    """The 256 printable symbols by which byte-level BPE writes bytes (GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + n): byte for n, byte in enumerate(hidden)}


def _bytes_of(symbols: str, byte_level: bool) -> bytes:
    if byte_level:
        table = _byte_of_symbol()
        try:
            return bytes(table[symbol] for symbol in symbols)
        except KeyError:
            return symbols.encode()
    fallback = _BYTE_FALLBACK.fullmatch(symbols)
    return bytes([int(fallback[1], 16)]) if fallback else symbols.replace("\u2581", " ").encode()


class Tokenizer:
    """A fixed vocabulary with its encoder; hashable, so that it can be a static field.

    Args:
        core: the encoder, a `tokenizers.Tokenizer`.
        eos: id of the token that ends a text.
        bos: id of the token that begins a text, or None.
        add_bos: whether prompts of plain text begin with `bos`.
        chat_template: a jinja2 template, or None.

    `token_bytes[i]` are the bytes of token i (empty for special tokens); `special_ids` is the set
    of special tokens. Two tokenizers are equal if their contents are.
    """

    def __init__(
        self,
        core: tokenizers.Tokenizer,
        eos: int,
        bos: int | None = None,
        add_bos: bool = False,
        chat_template: str | None = None,
    ):
        self.eos, self.bos, self.add_bos = eos, bos, add_bos
        self.chat_template = chat_template
        self._core = core
        added = core.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        vocabulary = core.get_vocab(with_added_tokens=True)
        self.tokens: list[str] = [""] * (max(vocabulary.values()) + 1)
        for token, index in vocabulary.items():
            self.tokens[index] = token
        text = core.to_str()
        byte_level = '"ByteLevel"' in text
        self._lossless = byte_level and core.normalizer is None
        plain = {index: token.content for index, token in added.items()}
        self.token_bytes: list[bytes] = [
            b"" if index in self.special_ids
            else plain[index].encode() if index in plain
            else _bytes_of(token, byte_level)
            for index, token in enumerate(self.tokens)
        ]  # fmt: skip
        settings = json.dumps([eos, bos, add_bos, chat_template])
        self._digest = hashlib.sha256((settings + text).encode()).hexdigest()

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> "Tokenizer":
        """The tokenizer in the metadata of a GGUF file (byte-level BPE, pre-tokenizer smollm)."""
        kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
        if (kind, pre) != ("gpt2", "smollm"):
            raise TokenizerError(
                f"GGUF tokenizer {kind!r} with pre-tokenizer {pre!r} is not known here. Load the "
                "model's safetensors folder instead: its tokenizer.json describes any tokenizer."
            )
        tokens = metadata["tokenizer.ggml.tokens"]
        merges = [tuple(pair.split(" ", 1)) for pair in metadata["tokenizer.ggml.merges"]]
        vocabulary = {token: index for index, token in enumerate(tokens)}
        core = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        core.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True),
             pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )  # fmt: skip
        core.decoder = decoders.ByteLevel()
        kinds = metadata["tokenizer.ggml.token_type"]
        core.add_tokens(
            [AddedToken(tokens[i], special=bool(kinds[i] == _CONTROL), normalized=False)
             for i in range(len(tokens)) if kinds[i] in (_CONTROL, _USER_DEFINED)]
        )  # fmt: skip
        return cls(
            core,
            eos=int(metadata["tokenizer.ggml.eos_token_id"]),
            bos=metadata.get("tokenizer.ggml.bos_token_id"),
            add_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", False)),
            chat_template=metadata.get("tokenizer.chat_template"),
        )

    @classmethod
    def from_json(
        cls, tokenizer: Mapping[str, Any], config: Mapping[str, Any], eos: int | None = None
    ) -> "Tokenizer":
        """The tokenizer in `tokenizer.json`, with the settings of `tokenizer_config.json`.

        Args:
            tokenizer: contents of tokenizer.json.
            config: contents of tokenizer_config.json (may be empty).
            eos: the model's own end token, used if `config` names none.
        """
        core = tokenizers.Tokenizer.from_str(json.dumps(tokenizer))

        def index(name: str) -> int | None:
            token = config.get(name)
            token = token.get("content") if isinstance(token, Mapping) else token
            return None if token is None else core.token_to_id(token)

        named = index("eos_token")
        eos = named if named is not None else eos
        if eos is None:
            raise TokenizerError("No end token: name it as eos_token in tokenizer_config.json.")
        return cls(
            core,
            eos=eos,
            bos=index("bos_token"),
            add_bos=bool(config.get("add_bos_token", False)),
            chat_template=config.get("chat_template"),
        )

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return len(self.tokens)

    def check_vocab_size(self, rows: int) -> None:
        """Raise `TokenizerError` if a token has no row among the `rows` of the embedding."""
        if self.vocab_size > rows:
            raise TokenizerError(
                f"The tokenizer has {self.vocab_size} tokens, the embedding {rows} rows. Use the "
                "tokenizer that the model was trained with."
            )

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids of `text`; with `special` false, names of special tokens are plain text.

        Raises `TokenizerError` for characters whose bytes a byte-level vocabulary lacks.
        """
        core = self._core if special else self._without_special
        ids = core.encode(text, add_special_tokens=False).ids
        if self._lossless and self.decode(ids, special=True) != text:
            missing = sorted({c for c in text if not set(c.encode()) <= self._alphabet})
            raise TokenizerError(
                f"The vocabulary cannot write {missing}: remove these characters from the text."
            )
        return ids

    @functools.cached_property
    def _alphabet(self) -> set[int]:
        return {token[0] for token in self.token_bytes if len(token) == 1}

    @functools.cached_property
    def _without_special(self) -> tokenizers.Tokenizer:
        core = tokenizers.Tokenizer.from_str(self._core.to_str())
        core.encode_special_tokens = True
        return core

    def decode(
        self, ids: Iterable[int] | np.ndarray | Int[Array, "T"], special: bool = False
    ) -> str:
        """Text of token ids (a list or an integer array).

        Bytes that are not UTF-8 become U+FFFD; special tokens are left out, or written by their
        names with `special` true.
        """
        parts = (
            self.tokens[index].encode()
            if special and index in self.special_ids
            else self.token_bytes[index]
            for index in map(int, ids)
        )
        return b"".join(parts).decode("utf-8", "replace")

    def chat(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation by the model's own template.

        Args:
            messages: each with "role" and "content".
            add_generation_prompt: whether to end with the opening of the model's answer.
        """
        if self.chat_template is None:
            raise TokenizerError("This tokenizer has no chat template: give the prompt as text.")
        names = {"bos_token": self.bos, "eos_token": self.eos}
        return _template(self.chat_template).render(
            messages=messages,
            add_generation_prompt=add_generation_prompt,
            **{name: "" if i is None else self.tokens[i] for name, i in names.items()},
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, digest={self._digest[:8]})"


@functools.cache
def _template(source: str) -> Any:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise TokenizerError(f"The chat template refuses these messages: {message}")

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(source)
