"""The GGUF reader against files that the `gguf` library writes."""

import gguf
import numpy as np
import pytest

from feynkac.models.language.gguf_file import GGUFError, GGUFFile

QUANTIZED = [gguf.GGMLQuantizationType[n] for n in ("F32", "F16", "BF16", "Q8_0", "Q4_1", "Q4_0")]


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("n", 7)
    writer.add_float32("x", 0.5)
    writer.add_float64("y", -2.0)
    writer.add_int64("z", -(2**40))
    writer.add_bool("yes", True)
    writer.add_string("text", "héllo\n")
    writer.add_array("words", ["a", "", "½ 🤖"])
    writer.add_array("numbers", [3, 1, 4])
    writer.add_array("nested", [[1, 2], [3]])
    values = np.random.default_rng(0).normal(size=(24, 64)).astype(np.float32)
    for kind in QUANTIZED:
        data = gguf.quants.quantize(values, kind)
        writer.add_tensor(kind.name, data, raw_dtype=kind)
    writer.add_tensor("vector", values[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, values


def test_metadata(written):
    facts = GGUFFile(written[0]).metadata
    assert facts["general.architecture"] == "llama"
    assert (facts["n"], facts["x"], facts["y"], facts["z"]) == (7, 0.5, -2.0, -(2**40))
    assert facts["yes"] is True
    assert facts["text"] == "héllo\n"
    assert facts["words"] == ["a", "", "½ 🤖"]
    assert facts["numbers"].tolist() == [3, 1, 4]
    assert [list(row) for row in facts["nested"]] == [[1, 2], [3]]


def test_tensors_equal_the_library(written):
    path, values = written
    file = GGUFFile(path)
    assert file.names == [kind.name for kind in QUANTIZED] + ["vector"]
    for kind in QUANTIZED:
        expected = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)
        got = file.tensor(kind.name)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, expected.reshape(values.shape))
    np.testing.assert_array_equal(file.tensor("vector"), values[0])
    assert file.shape("Q4_1") == (24, 64)


def test_unknown_tensor(written):
    with pytest.raises(GGUFError, match="no tensor 'other'"):
        GGUFFile(written[0]).tensor("other")


def test_wrong_magic(tmp_path):
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(GGUFError, match="not a GGUF file"):
        GGUFFile(path)


def test_wrong_version(written):
    path, _ = written
    data = bytearray(path.read_bytes())
    data[4] = 2
    path.write_bytes(data)
    with pytest.raises(GGUFError, match="version 2"):
        GGUFFile(path)


def test_too_short(tmp_path):
    path = tmp_path / "empty.gguf"
    path.write_bytes(b"")
    with pytest.raises(GGUFError, match="too short"):
        GGUFFile(path)


def test_every_truncation_is_an_error(written):
    path, _ = written
    data = path.read_bytes()
    for size in [*range(0, 700, 23), len(data) - 64, len(data) // 2]:
        path.write_bytes(data[:size])
        with pytest.raises(GGUFError, match="too short|truncated|beyond the end"):
            GGUFFile(path)


def test_unknown_quantization(written):
    path, _ = written
    data = path.read_bytes()
    at = data.index(b"vector") + len(b"vector") + 4 + 8
    path.write_bytes(data[:at] + (999).to_bytes(4, "little") + data[at + 4 :])
    with pytest.raises(GGUFError, match="quantization type 999"):
        GGUFFile(path)
