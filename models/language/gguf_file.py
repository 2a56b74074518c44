"""GGUF v3 container: metadata and tensors of one file, read through a memory map.

Source: the GGUF specification (ggml, `docs/gguf.md`), version 3, little-endian. Dequantization is
the `gguf` library's, so that every quantization type it knows is read with its numbers.
"""

import math
import os
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4",
    6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_STRING, _ARRAY = 8, 9


class GGUFError(ValueError):
    """The file is not a readable GGUF file; the message says where and what to do."""


class _Entry(NamedTuple):
    shape: tuple[int, ...]
    kind: int
    start: int
    size: int


class _Cursor:
    """Sequential reads from a byte buffer, each checked against its end."""

    def __init__(self, data: np.ndarray, path: Path):
        self.view, self.path, self.at = data.data, path, 0

    def take(self, size: int) -> memoryview:
        end = self.at + size
        if end > len(self.view):
            raise GGUFError(
                f"{self.path} is truncated: its header needs byte {end} of {len(self.view)}. "
                "Download the file again."
            )
        self.at, start = end, self.at
        return self.view[start:end]

    def number(self, dtype: str) -> Any:
        return np.frombuffer(self.take(np.dtype(dtype).itemsize), dtype)[0].item()

    def string(self) -> str:
        return bytes(self.take(self.number("<u8"))).decode("utf-8", "replace")

    def strings(self, count: int) -> list[str]:
        view, at, unpack, out = self.view, self.at, struct.Struct("<Q").unpack_from, []
        try:
            for _ in range(count):
                end = at + 8 + unpack(view, at)[0]
                out.append(str(view[at + 8 : end], "utf-8", "replace"))
                at = end
        except struct.error:
            at = len(view) + 1
        self.take(at - self.at)
        return out

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array(self.number("<u4"), self.number("<u8"))
        if kind not in _SCALARS:
            raise GGUFError(f"{self.path}: metadata type {kind} at byte {self.at} is unknown.")
        return self.number(_SCALARS[kind])

    def array(self, kind: int, count: int) -> Any:
        if kind == _STRING:
            return self.strings(count)
        if kind == _ARRAY:
            return [self.value(_ARRAY) for _ in range(count)]
        if kind not in _SCALARS:
            raise GGUFError(f"{self.path}: array type {kind} at byte {self.at} is unknown.")
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self.take(count * dtype.itemsize), dtype)


class GGUFFile:
    """Metadata and tensors of a GGUF v3 file.

    `metadata` maps keys to Python scalars, strings, lists of strings or NumPy arrays; `names` lists
    the tensors; `tensor(name)` dequantizes one to float32 `[rows, columns]` (`[n]` for a vector).

    Raises `GGUFError` for a wrong magic number, another version, a truncated header and a tensor
    that reaches beyond the end of the file, all when the file is opened.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if self.path.stat().st_size < 24:
            raise GGUFError(f"{self.path} is too short for a GGUF file. Download it again.")
        self._data = np.memmap(self.path, np.uint8, mode="r").view(np.ndarray)
        cursor = _Cursor(self._data, self.path)
        magic = bytes(cursor.take(4))
        if magic != b"GGUF":
            raise GGUFError(
                f"{self.path} is not a GGUF file (it begins with {magic!r}). "
                "Give a .gguf file, or a folder with config.json and model.safetensors."
            )
        version = cursor.number("<u4")
        if version != 3:
            raise GGUFError(
                f"{self.path} is GGUF version {version}; version 3, little-endian, is read here. "
                "Convert it with a current llama.cpp."
            )
        n_tensors, n_metadata = cursor.number("<u8"), cursor.number("<u8")
        self.metadata: dict[str, Any] = {}
        for _ in range(n_metadata):
            key = cursor.string()
            self.metadata[key] = cursor.value(cursor.number("<u4"))
        self._entries = self._read_entries(cursor, n_tensors)

    def _read_entries(self, cursor: _Cursor, count: int) -> dict[str, _Entry]:
        import gguf

        raw = []
        for _ in range(count):
            name, n_dims = cursor.string(), cursor.number("<u4")
            dims = np.frombuffer(cursor.take(8 * n_dims), "<u8")
            raw.append((name, dims, cursor.number("<u4"), cursor.number("<u8")))
        align = int(self.metadata.get("general.alignment", 32))
        base = -(-cursor.at // align) * align
        entries = {}
        for name, dims, kind, offset in raw:
            try:
                block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
            except (ValueError, KeyError):
                raise GGUFError(
                    f"{self.path}: tensor {name!r} has quantization type {kind}, which the "
                    "installed gguf library does not know. Upgrade gguf."
                ) from None
            shape = tuple(int(n) for n in dims[::-1])
            size = int(np.prod(shape, dtype=np.int64)) // block * block_bytes
            entry = _Entry(shape, kind, base + offset, size)
            if entry.start + entry.size > len(self._data):
                raise GGUFError(
                    f"{self.path}: tensor {name!r} ends at byte {entry.start + entry.size}, beyond "
                    f"the end of the file ({len(self._data)} bytes). Download the file again."
                )
            entries[name] = entry
        return entries

    @property
    def names(self) -> list[str]:
        """Names of the tensors, in file order."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the dequantized tensor."""
        return self._entries[name].shape

    def tensor(self, name: str) -> np.ndarray:
        """The tensor `name`, dequantized to float32."""
        import gguf

        if name not in self._entries:
            raise GGUFError(f"{self.path} has no tensor {name!r}; is it a Llama-style decoder?")
        shape, kind, start, size = self._entries[name]
        data = self._data[start : start + size]
        if kind == gguf.GGMLQuantizationType.F32:
            return np.array(data.view("<f4").reshape(shape))
        if kind == gguf.GGMLQuantizationType.F16:
            return data.view("<f2").reshape(shape).astype(np.float32)
        # The library takes 16 rows a call. Blocks know no rows, so longer rows are fewer calls.
        rows = data.reshape(math.prod(shape[:-1]) // math.gcd(math.prod(shape[:-1]), 64), -1)
        values = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType(kind))
        return np.ascontiguousarray(values, np.float32).reshape(shape)
