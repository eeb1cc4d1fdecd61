import pickle

import pytest
import torch
from safetensors.torch import save_file

from fewgen.encoders.weights import load_weights, read_weights
from fewgen.errors import CheckpointError, ConfigError
from fewgen.files import file_sha256


def test_weights_are_read_and_their_checksum_compared(tmp_path):
    tensors = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}
    save_file(tensors, tmp_path / "w.safetensors")
    torch.save(tensors, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        digest = file_sha256(tmp_path / name)
        found, told = read_weights(tmp_path / name, digest.upper())
        assert told == digest
        assert all(torch.equal(found[key], tensors[key]) for key in tensors)
        with pytest.raises(CheckpointError, match=f"has sha256 {digest}"):
            read_weights(tmp_path / name, "0" * 64)
    with pytest.raises(ConfigError, match="64 hexadecimal digits"):
        read_weights(tmp_path / "w.pth", "abc")


def test_known_digest(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert file_sha256(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


class Hostile:
    def __reduce__(self):
        return (open, ("ran", "w"))


def test_hostile_damaged_and_foreign_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Hostile()}, "hostile.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Hostile(), protocol=2))
    for name in ("hostile.pth", "plain.pth"):
        with pytest.raises(CheckpointError, match="not a readable file of tensors"):
            read_weights(name)
    assert not (tmp_path / "ran").exists()
    torch.save([torch.ones(2)], "list.pth")
    with pytest.raises(CheckpointError, match="dictionary of named tensors"):
        read_weights("list.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"\x80\0\0\0")
    with pytest.raises(CheckpointError, match="not a readable safetensors"):
        read_weights("cut.safetensors")
    with pytest.raises(ConfigError, match="no weight file"):
        read_weights("absent.pth")
    (tmp_path / "w.npz").write_bytes(b"")
    with pytest.raises(ConfigError, match="must end in"):
        read_weights("w.npz")


def test_names_shapes_and_values_must_fit():
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    good = {k: v.clone() for k, v in network.state_dict().items()}
    del good["1.num_batches_tracked"]  # old files lack it
    load_weights(network, good | {"old.x": torch.ones(1)}, "net", ignore=("old.",))
    with pytest.raises(CheckpointError, match=r"1 of 7 tensors are missing \(0.bias\)"):
        load_weights(network, {k: v for k, v in good.items() if k != "0.bias"}, "net")
    with pytest.raises(CheckpointError, match=r"1 do not belong to it \(more\)"):
        load_weights(network, good | {"more": torch.ones(1)}, "net")
    with pytest.raises(CheckpointError, match=r"0.bias has shape \(4,\) and not \(3,\)"):
        load_weights(network, good | {"0.bias": torch.ones(4)}, "net")
    with pytest.raises(CheckpointError, match="0.bias holds NaN"):
        load_weights(network, good | {"0.bias": torch.full((3,), torch.nan)}, "net")
