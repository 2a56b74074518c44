"""Tokenizer: round trips, byte table, special tokens, chat template."""

import json

import jax
import jax.numpy as jnp
import pytest
import tokenizers

from feynkac.models.language import Tokenizer, TokenizerError, random_llama

AWKWARD = [
    "",
    " ",
    "Hello, world!",
    "naïve café — “quoted” … ñ Ø ß",
    "emoji 🤖🎉👩‍👩‍👧 end",
    "a" + " " * 70 + "b\t\t\n\n   \r\n x",
    "1234567890 3.14159 1,000,000 007",
    "½ ⅓ x² ٣٤٥ १२३ Ⅻ ①",
    "def f(x):\n    return {'a': [x**2 for x in range(10)]}  # done\n",
    "日本語 Привет שלום नमस्ते",
    "e\u0301 combining, zero\u200bwidth",
]


@pytest.mark.parametrize("text", AWKWARD)
def test_round_trip(smollm2, text):
    tokenizer = smollm2.tokenizer
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert b"".join(tokenizer.token_bytes[i] for i in ids) == text.encode()


def test_digits_are_single_tokens(smollm2):
    ids = smollm2.tokenizer.encode("1234½5")
    assert [smollm2.tokenizer.decode([i]) for i in ids[:4]] == ["1", "2", "3", "4"]
    assert smollm2.tokenizer.decode(ids[-1:]) == "5"


def test_special_tokens(smollm2):
    tokenizer = smollm2.tokenizer
    text = "<|im_start|>user\nhi<|im_end|>"
    ids = tokenizer.encode(text)
    assert (ids[0], ids[-1]) == (1, 2) == (tokenizer.bos, tokenizer.eos)
    assert tokenizer.decode(ids) == "user\nhi"
    assert tokenizer.decode(ids, special=True) == text
    plain = tokenizer.encode(text, special=False)
    assert not tokenizer.special_ids & set(plain)
    assert tokenizer.decode(plain) == text
    assert tokenizer.encode(text) == ids
    assert all(tokenizer.token_bytes[i] == b"" for i in tokenizer.special_ids)
    assert len(tokenizer.special_ids) == 17


def test_decode_takes_arrays_and_broken_utf8(smollm2):
    tokenizer = smollm2.tokenizer
    ids = tokenizer.encode("🤖")
    assert tokenizer.decode(jnp.asarray(ids)) == "🤖"
    assert "\ufffd" in tokenizer.decode(ids[:1])


def test_bytes_outside_the_vocabulary_are_an_error(smollm2):
    tokenizer = smollm2.tokenizer
    single = {token for token in tokenizer.token_bytes if len(token) == 1}
    missing = [chr(b) for b in range(128) if bytes([b]) not in single]
    assert missing
    with pytest.raises(TokenizerError, match="cannot write"):
        tokenizer.encode(f"a{missing[0]}b")


def test_chat(smollm2):
    text = smollm2.tokenizer.chat(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    )
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    closed = smollm2.tokenizer.chat([{"role": "user", "content": "Hi"}], False)
    assert closed.endswith("<|im_start|>user\nHi<|im_end|>\n")
    assert closed.startswith("<|im_start|>system\nYou are a helpful AI assistant")


def word_level(words=("a", "b", "</s>"), **settings) -> Tokenizer:
    core = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="a")
    )
    return Tokenizer(core, eos=2, **settings)


def test_equality_by_content():
    one, same, other = word_level(), word_level(), word_level(("a", "c", "</s>"))
    assert one == same and hash(one) == hash(same)
    assert one != other and one != word_level(chat_template="x") and one != "a"


def test_chat_template_is_sandboxed():
    messages = [{"role": "user", "content": "hi"}]
    with pytest.raises(TokenizerError, match="no chat template"):
        word_level().chat(messages)
    with pytest.raises(TokenizerError, match="refuses these messages: no user"):
        word_level(chat_template="{{ raise_exception('no user') }}").chat(messages)
    bos_eos = word_level(chat_template="{{ bos_token }}|{{ eos_token }}", bos=0)
    assert bos_eos.chat(messages) == "a|</s>"
    with pytest.raises(Exception, match="unsafe"):
        word_level(chat_template="{{ messages.__class__.__mro__ }}").chat(messages)


def test_more_tokens_than_embedding_rows():
    with pytest.raises(TokenizerError, match="3 tokens, the embedding 2 rows"):
        random_llama(jax.random.key(0), vocab_size=2, tokenizer=word_level())
    assert random_llama(jax.random.key(0), vocab_size=4, tokenizer=word_level()).vocab_size == 4


def test_unknown_pre_tokenizer():
    with pytest.raises(TokenizerError, match="pre-tokenizer 'other' is not known"):
        Tokenizer.from_gguf({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "other"})


def test_byte_fallback_vocabulary():
    core = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            {"<unk>": 0, "</s>": 1, "<0xE2>": 2, "\u2581a": 3, "b": 4}, [], unk_token="<unk>"
        )
    )
    core.add_special_tokens(["</s>"])
    config = {"eos_token": {"content": "</s>"}, "add_bos_token": True}
    tokenizer = Tokenizer.from_json(json.loads(core.to_str()), config)
    assert (tokenizer.eos, tokenizer.bos, tokenizer.add_bos) == (1, None, True)
    assert tokenizer.token_bytes == [b"<unk>", b"", b"\xe2", b" a", b"b"]
    with pytest.raises(TokenizerError, match="No end token"):
        Tokenizer.from_json(json.loads(core.to_str()), {})
