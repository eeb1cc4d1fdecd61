"""Too little memory, networks of any size, and numbers that no tensor holds: a sentence and 2."""

import json
import struct

import pytest
import torch
from torch import nn

from benchmarks import fuzz
from fewgen.cli import main as cli
from fewgen.cli.main import COMMANDS, main
from fewgen.errors import ConfigError, in_words, is_out_of_memory
from fewgen.nn.building import bounded, shapes_of


def allocate(*_):
    torch.empty(2**46, dtype=torch.uint8)  # a real message of the allocator


def overflow(*_):
    torch.empty(2**62, 2**62)


def python(*_):
    raise MemoryError


def cuda(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


@pytest.mark.parametrize("fault", [allocate, overflow, python, cuda])
@pytest.mark.parametrize("command", ["train", "generate", "plan"])
def test_too_little_memory_says_what_to_lower(command, fault, monkeypatch, capsys):
    class Failing:
        main = staticmethod(fault)

    monkeypatch.setattr(cli, "load_command", lambda name: Failing)
    assert main([command]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: Out of memory. Lower ")
    assert error.count("\n") == 1
    assert {"train": "--model.batch_size", "generate": "-n", "plan": "--size"}[command] in error


def test_other_errors_stay_errors(monkeypatch):
    def wrong(words):
        raise RuntimeError("shapes do not fit")

    class Failing:
        main = staticmethod(wrong)

    monkeypatch.setattr(cli, "load_command", lambda name: Failing)
    with pytest.raises(RuntimeError, match="shapes"):
        main(["train"])
    assert not is_out_of_memory(ConfigError("out of memory"))
    assert in_words(MemoryError()) == "There was not enough memory."
    assert in_words(KeyError("a")) == "KeyError: 'a'"


def test_every_command_that_can_take_much_memory_says_what_to_lower():
    assert set(cli._LOWER) == set(COMMANDS) - {"retrieve", "plan", "methods", "datasets", "doctor"}


# ------------------------------------------------------------------------------------------- sizes


def test_a_deep_network_is_refused_while_it_is_built():
    with bounded(100), pytest.raises(ConfigError, match="more than 100 parameters"):
        nn.Sequential(*(nn.Linear(1, 1) for _ in range(10**9)))
    with bounded(10), pytest.raises(ConfigError, match="modules"):
        nn.ModuleList().extend(nn.ReLU() for _ in range(10**9))
    nn.Sequential(*(nn.Linear(1, 1) for _ in range(200)))  # outside nothing is counted


def test_a_wide_network_costs_nothing():
    assert shapes_of(lambda: nn.Linear(10**9, 10**9), 2) == {"weight": (10**9, 10**9), "bias": (10**9,)}
    with pytest.raises(ConfigError, match="beyond any memory"):
        shapes_of(lambda: nn.Linear(2**40, 2**40), 2)


# ------------------------------------------------------------------------------------------- numbers

BEYOND = ("nan", ".nan", ".inf", "-.inf", "1e999", str(2**64), "9" * 5000, "0x" + "f" * 5000)
"""No command takes them."""


@pytest.mark.parametrize("command", [name for name in COMMANDS if list(fuzz.numeric_flags(name))])
def test_numbers_that_no_tensor_holds_are_refused_in_every_flag(command, capsys):
    for flag in fuzz.numeric_flags(command):
        for number in BEYOND:
            words = fuzz.with_flag(command, flag, number)
            assert main(words) == 2, words
            error = capsys.readouterr().err
            assert error.startswith("error: "), words
            assert len(error) < 3000


@pytest.mark.parametrize(
    ("run", "way"),
    [
        ("cada_vqvae", ("image", "width")),
        ("cada_vqvae", ("candidates",)),
        ("cada_vqvae_hybrid", ("spatial", "prior_layers")),
        ("sq_gan", ("network", "mapping_layers")),
        ("sq_gan", ("quantizer", "codebook_size")),
        ("diffusion", ("network", "layers")),
        ("diffusion", ("network", "text_layers")),
        ("diffusion", ("network", "text_width")),
        ("diffusion", ("network", "times")),
    ],
)
def test_a_model_file_cannot_ask_for_a_network_of_any_size(run, way, tmp_path, capsys):
    data = (fuzz.RUNS / run / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    config = json.loads(header["__metadata__"]["config"])
    assert type(fuzz.at(config, way)) is int
    about = {**header["__metadata__"], "config": json.dumps(fuzz.changed(config, way, 10**9))}
    text = json.dumps({**header, "__metadata__": about}).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    before = fuzz.peak()
    assert main(["generate", str(file), "-n", "1", "--device", "cpu", "--out", str(tmp_path / "o.npz")]) == 2
    assert "model file" in capsys.readouterr().err
    assert fuzz.peak() - before < fuzz.MOST_BYTES
