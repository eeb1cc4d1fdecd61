from __future__ import annotations

import json
import pickle
import struct
import zipfile
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from fewgen.encoders.onehot import OneHotEncoder
from fewgen.errors import CheckpointError, ConfigError, FewgenError, MissingDependencyError, OutputError
from fewgen.generation.request import GenerationRequest, image_seeds
from fewgen.methods import get_method, method_names, register
from fewgen.methods.base import DataSpec, Method
from fewgen.methods.store import load_method, read_method_info
from fewgen.text.table import ClassText

NAMES = ("ankle boot", "sandal", "T-shirt/top")


@dataclass(frozen=True)
class TinyConfig:
    """Settings of the tiny method."""

    width: int = 8
    widths: tuple[int, ...] = (4, 6)

    def __post_init__(self):
        if self.width < 1:
            raise ConfigError(f"width must be 1 or more, got {self.width}.")


@register("tiny_words")
class Tiny(Method):
    """Makes images from a word vector and noise."""

    Config = TinyConfig
    capabilities = frozenset({"text"})
    rows = 16

    def __init__(self, config, spec):
        super().__init__(config, spec)
        d = spec.text.dim if spec.text is not None else 1
        n = spec.channels * spec.height * spec.width
        self.net = nn.Sequential(
            nn.Linear(d + 5, config.width), nn.Tanh(), nn.Linear(config.width, n), nn.Tanh()
        )
        self.tied = nn.ModuleList([self.net[0]])
        self.register_buffer("n_steps", torch.tensor(3))

    def stages(self, train, held_out):
        return []

    def sample(self, class_vectors, labels, seeds, temperature, **options):
        from fewgen.generation.noise import noise

        words = labels[:, None].float() if class_vectors is None else class_vectors
        z = torch.cat([words, temperature * noise(seeds, (5,))], dim=1)
        return self.net(z).view(len(z), *self.spec.shape) * options.get("gain", 1.0)


def table():
    return ClassText.build(OneHotEncoder(NAMES), NAMES)


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return Tiny(TinyConfig(), DataSpec(1, 5, 4, NAMES, table()))


def test_registry():
    assert "cada_vqvae" in method_names()
    assert get_method("tiny_words") is Tiny
    assert Tiny.name == "tiny_words"
    with pytest.raises(ConfigError, match='Did you mean "cada_vqvae"'):
        get_method("cada_vqave")
    with pytest.raises(ConfigError, match="belongs to"):
        register("tiny_words")(type("Other", (Method,), {}))


@pytest.mark.parametrize("with_text", [True, False])
def test_save_and_load(tmp_path, tiny, with_text):
    if not with_text:
        tiny = Tiny(TinyConfig(width=7), DataSpec(3, 5, 4, NAMES))
    path = tmp_path / "model.safetensors"
    tiny.save(path, {"note": "ä", "figures": [1.5]})
    again = load_method(path)
    assert isinstance(again, Tiny)
    assert again.config == tiny.config
    assert again.spec.class_names == NAMES
    assert again.spec.shape == tiny.spec.shape
    assert not again.training
    for name, value in tiny.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    if with_text:
        assert torch.equal(again.spec.text.vectors, tiny.spec.text.vectors)
        assert {name.split(".")[0] for name in load_file(path)} == {"model", "text"}
    info = read_method_info(tmp_path)
    assert info.extra == {"note": "ä", "figures": [1.5]}
    assert info.method == "tiny_words"
    # Saving again gives the same file, byte for byte.
    data = path.read_bytes()
    again.save(path, info.extra)
    assert path.read_bytes() == data


def test_generate_is_a_function_of_the_seed_alone(tiny):
    labels = torch.arange(70) % 3
    seeds = image_seeds(4, 70)
    whole = tiny.generate(GenerationRequest(labels=labels, seeds=seeds)).images
    order = torch.randperm(70, generator=torch.Generator().manual_seed(0))
    for chosen in (torch.tensor([11]), torch.arange(7), order):
        request = GenerationRequest(labels=labels[chosen], seeds=seeds[chosen])
        assert torch.equal(tiny.generate(request).images, whole[chosen])
    assert len(whole.flatten(1).unique(dim=0)) == 70


def test_generate_by_text_options_and_restored_mode(tiny):
    tiny.use_encoder(OneHotEncoder(NAMES))
    tiny.train()
    by_text = tiny.generate(GenerationRequest(texts=["sandal", "sandal"], seeds=[5, 6]))
    assert tiny.training
    by_label = tiny.generate(GenerationRequest(labels=torch.tensor([1, 1]), seeds=[5, 6]))
    assert torch.equal(by_text.images, by_label.images)
    assert by_text.labels.tolist() == [-1, -1]
    assert by_text.texts == ("sandal", "sandal")
    assert by_label.provenance["method"] == "tiny_words"
    flat = tiny.generate(GenerationRequest(labels=[1], seeds=[5], options={"gain": 0.0})).images
    assert flat.unique().tolist() == [128]
    nothing = tiny.generate(GenerationRequest(labels=torch.zeros(0, dtype=torch.long), seeds=[]))
    assert nothing.images.shape == (0, 1, 5, 4)


def test_requests_that_do_not_fit(tiny):
    with pytest.raises(ConfigError, match="Label 3 is not a class"):
        tiny.generate(GenerationRequest(labels=[3], seeds=[0]))
    with pytest.raises(
        ConfigError,
        match="cannot find images and words that lie near. Beside generating by class it can .*draw free texts",
    ):
        tiny.require("retrieve")
    plain = Tiny(TinyConfig(), DataSpec(1, 5, 4, NAMES))
    with pytest.raises(ConfigError, match="without text vectors"):
        plain.generate(GenerationRequest(texts=["dog"], seeds=[0]))
    with pytest.raises(ConfigError, match="needs a TinyConfig"):
        Tiny({"width": 3}, DataSpec(1, 5, 4, NAMES))


def test_an_unwritable_place_keeps_the_old_file(tmp_path, tiny, monkeypatch):
    path = tmp_path / "model.safetensors"
    tiny.save(path)
    before = path.read_bytes()
    import os

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="full"):
        tiny.save(path, {"more": 1})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


# ---------------------------------------------------------------------- files that are not ours


def rewrite(path, edit_metadata=None, edit_tensors=None):
    """Write a copy of a model file with other metadata or tensors."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    metadata = json.loads(raw[8 : 8 + length])["__metadata__"]
    tensors = load_file(path)
    if edit_metadata:
        edit_metadata(metadata)
    if edit_tensors:
        edit_tensors(tensors)
    save_file(tensors, path, metadata)


def test_missing_files(tmp_path):
    with pytest.raises(CheckpointError, match="no model file"):
        load_method(tmp_path / "nothing.safetensors")
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        load_method(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.1, 0.3, 0.9, 0.999])
def test_truncated_files_say_so(tmp_path, tiny, share):
    path = tmp_path / "m.safetensors"
    tiny.save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError, match="truncated") as caught:
        load_method(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("share", [0.6, 0.9])
def test_a_changed_byte_is_noticed(tmp_path, tiny, share):
    path = tmp_path / "m.safetensors"
    tiny.save(path)
    data = bytearray(path.read_bytes())
    data[int(share * len(data))] ^= 16
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="is damaged: it does not hold .* or delete it and") as caught:
        load_method(path)
    assert str(path) in str(caught.value)


def test_other_kinds_of_files(tmp_path):
    path = tmp_path / "m.safetensors"

    class Bomb:
        def __reduce__(self):
            return (exec, ("raise SystemExit(3)",))

    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="pickle"):
        load_method(path)
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="pickle or zip"):
        load_method(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="pickle or zip"):
        load_method(path)
    np.savez(tmp_path / "m.npz", a=np.zeros(2))
    with pytest.raises(CheckpointError, match="zip"):
        load_method(tmp_path / "m.npz")
    path.write_text("dear diary, today was a long day")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_method(path)
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="not a fewgen model"):
        load_method(path)


def header_file(path, header, data=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


@pytest.mark.parametrize(
    "header",
    [
        b"[1, 2]",
        b"{" * 50,
        b"[" * 100_000,
        b"\xff\xfe{}",
        {"a": 3},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}},
        {"a": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": ["2"], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}},
        {"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}},
        {"__metadata__": ["fewgen-model"]},
    ],
)
def test_odd_headers_are_refused(tmp_path, header):
    with pytest.raises(CheckpointError):
        load_method(header_file(tmp_path / "m.safetensors", header))


def test_overlapping_tensors_are_refused(tmp_path, tiny):
    path = tmp_path / "m.safetensors"
    tiny.save(path)
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    # Same size of file, but two tensors over the same bytes.
    header["model.net.0.bias"]["data_offsets"] = [0, 32]
    data = raw[8 + length :]
    with pytest.raises(CheckpointError):
        load_method(header_file(path, header, data))


def test_a_header_with_a_hundred_thousand_entries_is_quick(tmp_path):
    import time

    entry = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
    header = {f"t{i}": entry for i in range(100_000)}
    header["__metadata__"] = {"format": "fewgen-model"}
    path = header_file(tmp_path / "m.safetensors", header, b"0")
    started = time.process_time()
    with pytest.raises(CheckpointError):
        load_method(path)
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(CheckpointError, match="limit"):
        load_method(path)
    assert time.process_time() - started < 5


@given(data=st.data())
def test_flipped_bytes_never_crash(tmp_path_factory, data):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("flip") / "m.safetensors"
    Tiny(TinyConfig(width=2), DataSpec(1, 2, 2, NAMES, table())).save(path)
    raw = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", raw[:8])
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, 8 + length - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    message = str(path)
    try:
        load_method(path)
    except FewgenError as error:
        message = str(error)
    assert str(path) in message


def set_key(key, value):
    return lambda metadata: metadata.update({key: value})


@pytest.mark.parametrize(
    ("edit", "word"),
    [
        (set_key("format_version", "99"), "Update fewgen"),
        (set_key("format_version", "9" * 5000), "Update fewgen"),
        (set_key("method", "stable_confusion"), "does not have"),
        (set_key("config", "{"), "metadata"),
        (set_key("config", "[1]"), "metadata"),
        (set_key("config", '{"width": "wide"}'), "do not fit"),
        (set_key("config", '{"widht": 3}'), "widht"),
        (set_key("config", '{"width": 0}'), "width must be 1"),
        (set_key("config", '{"width": 9}'), "do not fit"),
        (set_key("config", '{"width": 1000000000}'), "do not fit"),
        (set_key("spec", "{}"), "data description"),
        (set_key("spec", '{"channels": 1e99}'), "data description"),
        (set_key("text", "{}"), "class text table"),
        (lambda metadata: metadata.pop("spec"), "metadata"),
    ],
)
def test_damaged_metadata(tmp_path, tiny, edit, word):
    path = tmp_path / "m.safetensors"
    tiny.save(path)
    rewrite(path, edit_metadata=edit)
    with pytest.raises(CheckpointError, match=word) as caught:
        load_method(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "word"),
    [
        (lambda t: t.pop("model.net.0.bias"), r"net\.0\.bias is missing"),
        (lambda t: t.update({"model.extra": torch.zeros(1)}), "extra is unknown"),
        (lambda t: t.update({"model.net.0.bias": torch.zeros(2)}), "shape"),
        (lambda t: t.pop("text.vectors"), "class text table"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, tiny, edit, word):
    path = tmp_path / "m.safetensors"
    tiny.save(path)
    rewrite(path, edit_tensors=edit)
    with pytest.raises(CheckpointError, match=word):
        load_method(path)


def test_a_library_that_is_missing_is_not_called_a_damaged_file(tiny, tmp_path, monkeypatch):
    tiny.save(tmp_path / "m.safetensors", {})

    def missing(self, config, spec):
        raise MissingDependencyError("tiny needs a library. Install it with: pip install library")

    monkeypatch.setattr(type(tiny), "__init__", missing)
    with pytest.raises(MissingDependencyError, match="^tiny needs a library"):
        load_method(tmp_path / "m.safetensors")
