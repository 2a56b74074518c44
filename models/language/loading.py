"""Load a language model by its name or from a file: GGUF or safetensors, Llama architecture.

GGUF files store query and key rows in the order of interleaved rotary positions (llama.cpp,
`convert_hf_to_gguf.py`, `LlamaModel.permute`); here they are put back for rotate-half.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .fetch import fetch_smollm2
from .gguf_file import GGUFFile
from .llama import Layer, Llama, LlamaConfig
from .safetensors_file import SafetensorsFolder
from .tokenizer import Tokenizer

_NAMED = {"smollm2-135m-instruct": fetch_smollm2}

_GGUF_NAMES = {
    "attention_norm": "attn_norm",
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "output": "attn_output",
    "mlp_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
_HF_NAMES = {
    "attention_norm": "input_layernorm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


class LoadError(ValueError):
    """The name, file or architecture is not known here; the message says what is."""


def load(name_or_path: str | os.PathLike) -> Llama:
    """A language model with float32 weights and its tokenizer.

    Args:
        name_or_path: "smollm2-135m-instruct" (fetched on first use, checksum verified, kept in
            `$FEYNKAC_CACHE` or `~/.cache/feynkac`), a `.gguf` file, or a folder with config.json,
            model.safetensors and tokenizer.json.

    Raises:
        LoadError: for an unknown name or an architecture other than Llama.
        FetchError: if the first fetch fails.
        GGUFError, SafetensorsError, TokenizerError: for damaged or incomplete files.
    """
    if isinstance(name_or_path, str) and name_or_path in _NAMED:
        return _from_gguf(GGUFFile(_NAMED[name_or_path]()))
    path = Path(name_or_path).expanduser()
    if not path.exists():
        raise LoadError(
            f"{str(name_or_path)!r} is neither a file nor a known model. Known: "
            f"{', '.join(_NAMED)}; or give a .gguf file or a folder with model.safetensors."
        )
    if path.is_dir() or path.suffix == ".safetensors":
        return _from_safetensors(SafetensorsFolder(path))
    return _from_gguf(GGUFFile(path))


def _layers(count: int, read: Callable[[int, str], Array]) -> tuple[Layer, ...]:
    return tuple(
        Layer(**{field: read(index, field) for field in _HF_NAMES}) for index in range(count)
    )


def _refuse(condition: bool, path: Path, what: str) -> None:
    if condition:
        raise LoadError(
            f"{path}: {what} is not read here. Plain Llama decoders are; bring another model in "
            "by models.from_callable."
        )


class _Facts(dict):
    """Settings of a model file; a missing one is a `LoadError`."""

    def __init__(self, settings: Mapping[str, Any], path: Path):
        super().__init__(settings)
        self.path = path

    def __missing__(self, key: str) -> Any:
        raise LoadError(f"{self.path} has no setting {key!r}: it is incomplete. Download it again.")


def _from_gguf(file: GGUFFile) -> Llama:
    facts = _Facts(file.metadata, file.path)
    architecture = facts.get("general.architecture")
    _refuse(architecture != "llama", file.path, f"architecture {architecture!r}")
    scaled = "rope_freqs.weight" in file.names or "llama.rope.scaling.type" in facts
    _refuse(scaled, file.path, "scaled rotary positions")
    heads = int(facts["llama.attention.head_count"])
    width = int(facts["llama.embedding_length"])
    config = LlamaConfig(
        vocab_size=file.shape("token_embd.weight")[0],
        layers=int(facts["llama.block_count"]),
        d=width,
        ff=int(facts["llama.feed_forward_length"]),
        heads=heads,
        kv_heads=int(facts.get("llama.attention.head_count_kv", heads)),
        head_dim=int(facts.get("llama.attention.key_length", width // heads)),
        rope_base=float(facts.get("llama.rope.freq_base", 10000.0)),
        norm_eps=float(facts["llama.attention.layer_norm_rms_epsilon"]),
        context=int(facts["llama.context_length"]),
    )
    rotated = int(facts.get("llama.rope.dimension_count", config.head_dim))
    _refuse(rotated != config.head_dim, file.path, "rotation of a part of each head")

    def read(index: int, field: str) -> Array:
        values = file.tensor(f"blk.{index}.{_GGUF_NAMES[field]}.weight")
        return jnp.asarray(_half_rotated(values, config) if field in ("query", "key") else values)

    head = jnp.asarray(file.tensor("output.weight")) if "output.weight" in file.names else None
    tokenizer = Tokenizer.from_gguf(facts)
    return Llama(  # pyright: ignore[reportCallIssue]: abstract fields that Llama computes
        embedding=jnp.asarray(file.tensor("token_embd.weight")),
        layers=_layers(config.layers, read),
        norm=jnp.asarray(file.tensor("output_norm.weight")),
        head=head,
        config=config,
        tokenizer=tokenizer,
        eos=tokenizer.eos,
    )


def _half_rotated(rows: np.ndarray, config: LlamaConfig) -> np.ndarray:
    """Rows (pair, part) of each head in the order (part, pair)."""
    pairs = rows.reshape(-1, config.head_dim // 2, 2, rows.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def _from_safetensors(file: SafetensorsFolder) -> Llama:
    facts = _Facts(file.config, file.folder / "config.json")
    model_type = facts.get("model_type")
    _refuse(model_type != "llama", file.folder, f"model type {model_type!r}")
    rope: Mapping[str, Any] = facts.get("rope_parameters") or facts.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    _refuse(kind != "default", file.folder, f"rotary positions of type {kind!r}")
    for switch in ("attention_bias", "mlp_bias"):
        _refuse(bool(facts.get(switch)), file.folder, switch)
    activation = facts.get("hidden_act", "silu")
    _refuse(activation != "silu", file.folder, f"activation {activation!r}")
    heads, width = facts["num_attention_heads"], facts["hidden_size"]
    config = LlamaConfig(
        vocab_size=facts["vocab_size"],
        layers=facts["num_hidden_layers"],
        d=width,
        ff=facts["intermediate_size"],
        heads=heads,
        kv_heads=facts.get("num_key_value_heads") or heads,
        head_dim=facts.get("head_dim") or width // heads,
        rope_base=float(rope.get("rope_theta") or facts.get("rope_theta") or 10000.0),
        norm_eps=facts["rms_norm_eps"],
        context=facts["max_position_embeddings"],
    )

    def read(index: int, field: str) -> Array:
        return jnp.asarray(file.tensor(f"model.layers.{index}.{_HF_NAMES[field]}.weight"))

    tied = facts.get("tie_word_embeddings", False) or "lm_head.weight" not in file.names
    end = facts.get("eos_token_id")
    end = end[0] if isinstance(end, list) else end
    vocabulary = file.side_file("tokenizer.json")
    tokenizer = None
    if vocabulary is not None:
        settings = file.side_file("tokenizer_config.json") or {}
        tokenizer = Tokenizer.from_json(vocabulary, settings, end)
    elif end is None:
        raise LoadError(f"{file.folder}: config.json names no eos_token_id. Add it.")
    return Llama(  # pyright: ignore[reportCallIssue]: abstract fields that Llama computes
        embedding=jnp.asarray(file.tensor("model.embed_tokens.weight")),
        layers=_layers(config.layers, read),
        norm=jnp.asarray(file.tensor("model.norm.weight")),
        head=None if tied else jnp.asarray(file.tensor("lm_head.weight")),
        config=config,
        tokenizer=tokenizer,
        eos=end if tokenizer is None else tokenizer.eos,
    )
