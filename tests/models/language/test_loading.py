"""Loading: a tiny random decoder written as GGUF and as safetensors, and read again."""

import dataclasses
import json

import gguf
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import save_file

from feynkac.models.language import (
    GGUFError,
    LoadError,
    SafetensorsError,
    TokenizerError,
    load,
    random_llama,
)
from feynkac.models.language.loading import _GGUF_NAMES, _HF_NAMES

TOKENS = ["</s>", *"abcdefgh", "ab", "cd"]
PROMPT = [1, 5, 9]


@pytest.fixture(scope="module")
def lm():
    lm = random_llama(jax.random.key(0), len(TOKENS), layers=2, d=24, heads=6, kv_heads=2)
    config = dataclasses.replace(lm.config, norm_eps=float(np.float32(1e-5)))  # GGUF holds float32
    return dataclasses.replace(lm, config=config)


def arrays(lm, names, layer, fixed):
    out = {fixed[0]: lm.embedding, fixed[1]: lm.norm, fixed[2]: lm.head}
    for index, block in enumerate(lm.layers):
        for field, name in names.items():
            out[layer.format(index, name)] = getattr(block, field)
    return {name: np.asarray(value) for name, value in out.items()}


def write_gguf(lm, path, leave_out=(), **changes):
    c = lm.config
    facts = {
        "block_count": c.layers,
        "context_length": c.context,
        "embedding_length": c.d,
        "feed_forward_length": c.ff,
        "attention.head_count": c.heads,
        "attention.head_count_kv": c.kv_heads,
    } | changes.pop("facts", {})
    writer = gguf.GGUFWriter(path, changes.get("architecture", "llama"))
    for name, value in facts.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", c.norm_eps)
    tokens = changes.get("tokens", TOKENS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(["a b", "c d"])
    writer.add_eos_token_id(0)
    fixed = ("token_embd.weight", "output_norm.weight", "output.weight")
    for name, value in arrays(lm, _GGUF_NAMES, "blk.{}.{}.weight", fixed).items():
        if "attn_q" in name or "attn_k" in name:  # interleave the halves of each head
            halves = value.reshape(-1, 2, c.head_dim // 2, c.d)
            value = halves.swapaxes(1, 2).reshape(value.shape)
        if name not in leave_out:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_folder(lm, folder, shards=1, dtype=np.float32, **changes):
    c = lm.config
    config = {
        "model_type": "llama",
        "vocab_size": c.vocab_size,
        "num_hidden_layers": c.layers,
        "hidden_size": c.d,
        "intermediate_size": c.ff,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "rms_norm_eps": c.norm_eps,
        "max_position_embeddings": c.context,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_base},
        "eos_token_id": [0, 3],
    } | changes
    (folder / "config.json").write_text(json.dumps(config))
    fixed = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    values = arrays(lm, _HF_NAMES, "model.layers.{}.{}.weight", fixed)
    values = {name: value.astype(dtype) for name, value in values.items()}
    if shards == 1:
        save_file(values, folder / "model.safetensors")
        return folder
    names = [f"model-{i}.safetensors" for i in range(shards)]
    where = {name: names[i % shards] for i, name in enumerate(values)}
    for shard in names:
        chosen = {name: value for name, value in values.items() if where[name] == shard}
        save_file(chosen, folder / shard)
    index = json.dumps({"weight_map": where})
    (folder / "model.safetensors.index.json").write_text(index)
    return folder


def assert_same(got, lm):
    assert got.config == lm.config
    for one, two in zip(*map(jax.tree.leaves, (got, lm)), strict=True):
        np.testing.assert_array_equal(one, two)


def test_gguf(lm, tmp_path):
    got = load(write_gguf(lm, tmp_path / "tiny.gguf"))
    assert_same(got, lm)
    assert got.eos == 0 and got.tokenizer.token_bytes[9] == b"ab"
    tokens = got.tokenizer.encode("abacd</s>")
    assert tokens == [9, 1, 10, 0] and got.tokenizer.decode(tokens) == "abacd"
    np.testing.assert_array_equal(got.prompt("ae").logits, lm.prompt([1, 5]).logits)
    np.testing.assert_array_equal(got.prompt("").logits, lm.prompt([0]).logits)


def test_gguf_without_head_is_tied(lm, tmp_path):
    assert load(write_gguf(lm, tmp_path / "tied.gguf", ["output.weight"])).head is None


@pytest.mark.parametrize("shards", [1, 3])
def test_safetensors(lm, tmp_path, shards):
    got = load(write_folder(lm, tmp_path, shards))
    assert_same(got, lm)
    assert (got.eos, got.tokenizer) == (0, None)


def test_safetensors_file_bf16_and_tokenizer(lm, tmp_path):
    core = tokenizers.Tokenizer(tokenizers.models.BPE({t: i for i, t in enumerate(TOKENS)}, []))
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.add_special_tokens(["</s>"])
    core.save(str(tmp_path / "tokenizer.json"))
    settings = {"eos_token": "</s>", "chat_template": "{{ messages[0].content }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    write_folder(lm, tmp_path, dtype=ml_dtypes.bfloat16)
    got = load(tmp_path / "model.safetensors")
    rounded = np.asarray(lm.embedding).astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(got.embedding, rounded)
    assert got.embedding.dtype == jnp.float32
    assert got.tokenizer.encode("abc</s>") == [1, 2, 3, 0]
    prefix = got.prompt([{"role": "user", "content": "ab"}])
    np.testing.assert_array_equal(prefix.logits, got.prompt([1, 2]).logits)


def test_gguf_errors(lm, tmp_path):
    path = tmp_path / "bad.gguf"
    with pytest.raises(LoadError, match="architecture 'gemma' is not read"):
        load(write_gguf(lm, path, architecture="gemma"))
    with pytest.raises(LoadError, match="scaled rotary"):
        load(write_gguf(lm, path, facts={"rope.scaling.type": 1}))
    with pytest.raises(LoadError, match="part of each head"):
        load(write_gguf(lm, path, facts={"rope.dimension_count": 2}))
    with pytest.raises(GGUFError, match="no tensor 'blk.1.ffn_up.weight'"):
        load(write_gguf(lm, path, ["blk.1.ffn_up.weight"]))
    with pytest.raises(TokenizerError, match="12 tokens, the embedding 11 rows"):
        load(write_gguf(lm, path, tokens=[*TOKENS, "extra"]))
    writer = gguf.GGUFWriter(path, "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(LoadError, match="no setting 'llama.attention.head_count'"):
        load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model type 'gpt2'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rotary positions of type 'llama3'"),
        ({"eos_token_id": None}, "names no eos_token_id"),
    ],
)
def test_safetensors_errors(lm, tmp_path, changes, message):
    with pytest.raises(LoadError, match=message):
        load(write_folder(lm, tmp_path, **changes))


def test_damaged_folders(lm, tmp_path):
    folder = write_folder(lm, tmp_path, 2)
    shard = folder / "model-1.safetensors"
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(SafetensorsError, match="model-1.safetensors is damaged"):
        load(folder)
    shard.unlink()
    with pytest.raises(SafetensorsError, match="model-1.safetensors is missing"):
        load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(SafetensorsError, match="not valid JSON"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(SafetensorsError, match="no config.json"):
        load(folder)


def test_unknown_name():
    with pytest.raises(LoadError, match="Known: smollm2-135m-instruct"):
        load("smollm3")
