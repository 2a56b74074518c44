"""A folder in the Hugging Face layout: config.json, model*.safetensors, tokenizer.json.

Source: the safetensors format and the sharded index `model.safetensors.index.json`. Tensors keep
the names that `transformers` writes; any floating dtype is read as float32.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np


class SafetensorsError(ValueError):
    """The folder or file cannot be read; the message says what is missing."""


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise SafetensorsError(f"{path} is not valid JSON ({error}). Download it again.") from None


class SafetensorsFolder:
    """Weights and JSON files of a model saved by `transformers`.

    Args:
        path: the folder, or a `.safetensors` file inside it (the JSON files stand beside it).

    `config` is config.json; `side_file(name)` another JSON file or None; `tensor(name)` one tensor
    as float32. Raises `SafetensorsError` if config.json, a shard or a tensor is missing, or if a
    shard is damaged.
    """

    def __init__(self, path: str | os.PathLike):
        path = Path(path)
        self.folder = path if path.is_dir() else path.parent
        if not (self.folder / "config.json").is_file():
            raise SafetensorsError(
                f"{self.folder} has no config.json. Keep the files of the model together: "
                "config.json, model.safetensors and tokenizer.json."
            )
        self.config = _json(self.folder / "config.json")
        index = self.folder / "model.safetensors.index.json"
        if path.is_dir() and index.is_file():
            shards = sorted({self.folder / shard for shard in _json(index)["weight_map"].values()})
        else:
            shards = [self.folder / "model.safetensors" if path.is_dir() else path]
        self._shards = {}
        for shard in shards:
            handle = self._open(shard)
            self._shards.update((name, handle) for name in handle.keys())  # noqa: SIM118

    @staticmethod
    def _open(shard: Path) -> Any:
        from safetensors import SafetensorError, safe_open

        if not shard.is_file():
            raise SafetensorsError(f"{shard} is missing. Download the whole model again.")
        try:
            return safe_open(shard, framework="np")
        except SafetensorError as error:
            raise SafetensorsError(f"{shard} is damaged ({error}). Download it again.") from None

    @property
    def names(self) -> list[str]:
        """Names of the tensors."""
        return list(self._shards)

    def side_file(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the folder, or None if it is not there."""
        path = self.folder / name
        return _json(path) if path.is_file() else None

    def tensor(self, name: str) -> np.ndarray:
        """The tensor `name` as float32."""
        if name not in self._shards:
            raise SafetensorsError(
                f"{self.folder} has no tensor {name!r}; is it a Llama-style decoder?"
            )
        return np.asarray(self._shards[name].get_tensor(name)).astype(np.float32)
