"""Too little memory, networks of any size, and numbers that no tensor holds: a sentence and 2."""

import json
import struct
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import fuzz
from fewgen.cli import main as cli
from fewgen.cli.main import COMMANDS, main
from fewgen.errors import ConfigError, in_words, is_out_of_memory
from fewgen.methods.store import read_method_info
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


REFUSED = {
    "cada_vqvae": {"image.width", "candidates", "spatial.prior_layers", "spatial.codebook_size"},
    "sq_gan": {"network.mapping_layers", "network.z_dim", "quantizer.codebook_size"},
    "diffusion": {
        "network.layers", "network.text_layers", "network.text_width", "network.times", "network.text_length",
        "network.patch", "network.latent.layers", "network.latent.latent_channels", "sampling_steps",
    },
    "tint": {"steps", "supports.0", "fitted.latent_shape.0", "fitted.settings.config.text_length"},
}  # fmt: skip
"""Whole numbers of settings that decide a size, by method; others, such as steps, may be as large as they like."""


def with_metadata(file, **changed):
    """Return the bytes of a model file with other metadata."""
    data = file.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    texts = {key: json.dumps(value) for key, value in changed.items()}
    text = json.dumps({**header, "__metadata__": {**header["__metadata__"], **texts}}).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


GENERATE = "generate model.safetensors -n 1 --device cpu --overwrite --out o.npz"


@pytest.mark.parametrize("method", REFUSED)
def test_a_model_file_cannot_ask_for_a_network_of_any_size(method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before, seen, found, refused = fuzz.peak(), set(), {}, set()
    for file in sorted(fuzz.RUNS.glob(f"{method}*/model.safetensors")):
        config = read_method_info(file).config
        for way in fuzz.places(config):
            name = ".".join(map(str, way))
            if type(fuzz.at(config, way)) is not int or name in seen:
                continue
            seen.add(name)
            Path("model.safetensors").write_bytes(
                with_metadata(file, config=fuzz.changed(config, way, 10**9))
            )
            said = []
            if problem := fuzz.problem_of(GENERATE.split(), said=said):
                found[f"{file.parent.name}: {name}"] = problem
            elif said[0] == 2 and "model file" in said[1]:
                refused.add(name)
    assert found == {}
    assert refused >= REFUSED[method]
    assert fuzz.peak() - before < fuzz.MOST_BYTES


@pytest.mark.parametrize("method", REFUSED)
def test_a_model_of_no_class_is_refused(method, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = fuzz.RUNS / method / "model.safetensors"
    spec = read_method_info(file).spec
    Path("model.safetensors").write_bytes(with_metadata(file, spec={**spec, "class_names": []}))
    assert main(GENERATE.split()) == 2
    assert "data description: class_names must not be empty" in capsys.readouterr().err
