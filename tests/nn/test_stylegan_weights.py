"""Converted StyleGAN2 weights: same outputs as a slow reading of the same file, and files that do not fit."""

import json
import pickle
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.reference import naive_stylegan as naive

from fewgen.errors import CheckpointError
from fewgen.nn.stylegan import Discriminator, MappingNetwork, SynthesisNetwork
from fewgen.nn.stylegan_weights import (
    STYLEGAN2_NAMES,
    build_from_stylegan2,
    convert_names,
    load_stylegan2,
    shapes_of,
)

WIDTHS = {
    8: {4: 5, 8: 4},
    14: {7: 4, 14: 3},
    16: {4: 6, 8: 5, 16: 4},
    32: {4: 6, 8: 5, 16: 4, 32: 3},
}


def write(path, tensors, **prefixed):
    """Write arrays under their names, and those of `prefixed` after "<key>."."""
    every = dict(tensors)
    for prefix, group in prefixed.items():
        every.update({f"{prefix}.{name}": value for name, value in group.items()})
    save_file({name: torch.from_numpy(np.array(value)).float() for name, value in every.items()}, path)
    return path


def rounded(tensors):
    """The numbers a float32 file keeps, so that the reference reads the same ones."""
    return {name: np.asarray(value, dtype=np.float32).astype(np.float64) for name, value in tensors.items()}


@pytest.fixture
def pair():
    """A generator and a discriminator of 8 x 8 pixels with a condition, in public names."""
    rng = np.random.default_rng(0)
    return (
        naive.random_generator(rng, WIDTHS[8], 1, w_dim=6, z_dim=4, c_dim=3),
        naive.random_discriminator(rng, WIDTHS[8], 1, c_dim=3),
    )


@pytest.fixture
def file(tmp_path, pair):
    return write(tmp_path / "net.safetensors", {}, G_ema=pair[0], D=pair[1])


# --- Outputs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "c_dim", "residual", "deviation"),
    [
        (16, 0, True, True),
        (16, 3, False, True),
        (32, 3, True, True),
        (32, 0, False, False),
        (14, 2, True, True),
    ],
)
def test_loaded_networks_compute_what_the_reference_computes(tmp_path, size, c_dim, residual, deviation):
    rng = np.random.default_rng(size + c_dim)
    channels = 3 if size == 16 else 1
    g = rounded(naive.random_generator(rng, WIDTHS[size], channels, w_dim=6, z_dim=5, c_dim=c_dim))
    d = rounded(
        naive.random_discriminator(
            rng, WIDTHS[size], channels, c_dim=c_dim, residual=residual, deviation=deviation
        )
    )
    path = write(tmp_path / "net.safetensors", {}, G_ema=g, D=d)
    mapping, synthesis, discriminator, w_avg = build_from_stylegan2(path, group_size=2)
    for network in (mapping, synthesis, discriminator):
        network.double()
    np.testing.assert_array_equal(w_avg.numpy(), g["mapping.w_avg"].astype(np.float32))

    z = rng.standard_normal((2, 5))
    c = rng.standard_normal((2, c_dim)) if c_dim else None
    condition = None if c is None else torch.from_numpy(c)
    with torch.no_grad():
        w = mapping(torch.from_numpy(z), condition)
        images = synthesis(w)
        logits = discriminator(images, condition)
    expected_w = naive.mapping(g, z, c)
    np.testing.assert_allclose(w.numpy(), expected_w, rtol=1e-9, atol=1e-12)
    styles = np.repeat(expected_w[:, None], 2 * len(WIDTHS[size]), axis=1)
    expected = naive.synthesis(g, styles)
    assert expected.std() > 0.1
    np.testing.assert_allclose(images.numpy(), expected, rtol=1e-9, atol=1e-9)
    expected_logits = naive.discriminator(d, expected, c, group=2)
    np.testing.assert_allclose(logits.numpy(), expected_logits, rtol=1e-8, atol=1e-9)


def test_one_changed_weight_changes_the_output(tmp_path, pair, file):
    """Negative control: the comparison above sees every tensor."""
    g, d = pair
    z, c = torch.randn(2, 4), torch.randn(2, 3)

    def outputs(path):
        mapping, synthesis, discriminator, w_avg = build_from_stylegan2(path, group_size=2)
        with torch.no_grad():
            images = synthesis(mapping(z, c))
            return torch.cat([images.flatten(), discriminator(images, c), w_avg])

    before = outputs(file)
    for group, tensors in (("G_ema", g), ("D", d)):
        for name, value in tensors.items():
            if name.endswith("resample_filter"):
                continue
            changed = {"G_ema": g, "D": d}
            changed[group] = {**tensors, name: value + 0.5}
            after = outputs(write(tmp_path / "changed.safetensors", {}, **changed))
            assert not torch.equal(before, after), name


# --- Names -------------------------------------------------------------------------------------------------


def networks(c_dim=3, architecture="residual", shape=(1, 16, 16), width=(5, 4, 3)):
    return (
        MappingNetwork(4, 6, 3, c_dim),
        SynthesisNetwork(shape, 6, width),
        Discriminator(shape, width, c_dim, architecture=architecture, mapping_layers=2),
    )


def our_state(mapping, synthesis, discriminator):
    parts = {"mapping": mapping, "synthesis": synthesis, "discriminator": discriminator}
    state = {f"{p}.{name}": value for p, net in parts.items() for name, value in net.state_dict().items()}
    return {**state, "w_avg": torch.randn(6)}


@pytest.mark.parametrize(
    ("shape", "start", "architecture", "c_dim"),
    [((1, 16, 16), 4, "residual", 3), ((3, 28, 28), 7, "plain", 0), ((1, 16, 24), 4, "residual", 0)],
)
def test_names_go_both_ways(shape, start, architecture, c_dim):
    ours = our_state(*networks(c_dim, architecture, shape))
    public = convert_names(ours, to="stylegan2", start=start)
    assert len(public) == len(ours)
    assert f"G_ema.synthesis.b{start}.const" in public
    assert f"D.b{4 * start}.fromrgb.weight" in public
    assert f"D.b{start}.fc.weight" in public
    assert f"D.b{4 * start}.conv0.weight" in public
    back = convert_names(public)
    assert list(back) == list(ours)
    assert all(back[name] is ours[name] for name in ours)


def test_the_table_names_every_tensor_once():
    ours = our_state(*networks())
    public = set(convert_names(ours, to="stylegan2"))
    expected = set(naive.random_generator(np.random.default_rng(0), {4: 5, 8: 4, 16: 3}, 1, 6, 4, 3, 3))
    expected = {f"G_ema.{name}" for name in expected if not name.endswith("resample_filter")}
    d = naive.random_discriminator(np.random.default_rng(0), {4: 5, 8: 4, 16: 3}, 1, 3)
    expected |= {f"D.{name}" for name in d if not name.endswith("resample_filter")}
    assert public == expected
    for side in (0, 1):
        names = [row[side] for row in STYLEGAN2_NAMES]
        assert len(set(names)) == len(names)


def test_known_names():
    """The correspondence written down by hand."""
    table = {
        "mapping.fc7.weight": "mapping.layers.7.weight",
        "synthesis.b4.const": "synthesis.blocks.0.const",
        "synthesis.b4.conv1.affine.bias": "synthesis.blocks.0.conv1.conv.affine.bias",
        "synthesis.b8.conv0.weight": "synthesis.blocks.1.conv0.conv.weight",
        "synthesis.b8.conv0.noise_strength": "synthesis.blocks.1.conv0.noise_strength",
        "synthesis.b16.torgb.bias": "synthesis.blocks.2.to_image.bias",
    }
    for prefix in ("", "G.", "G_ema."):
        found = convert_names({f"{prefix}{name}": name for name in table})
        assert {theirs: ours for ours, theirs in found.items()} == table
    table = {
        "b16.fromrgb.bias": "discriminator.from_image.bias",
        "b16.conv0.weight": "discriminator.blocks.0.conv0.weight",
        "b8.skip.weight": "discriminator.blocks.1.skip.weight",
        "b4.out.weight": "discriminator.out.weight",
        "mapping.fc0.bias": "discriminator.mapping.layers.0.bias",
    }
    for prefix in ("", "D."):
        found = convert_names({f"{prefix}{name}": name for name in table})
        assert {theirs: ours for ours, theirs in found.items()} == table


def test_the_average_is_taken_where_there_are_two_generators():
    found = convert_names({"G.mapping.fc0.bias": 1, "G_ema.mapping.fc0.bias": 2, "G.synthesis.b4.const": 3})
    assert found == {"mapping.layers.0.bias": 2}


@pytest.mark.parametrize(
    "name", ["mapping.fc0.scale", "synthesis.b4.conv2.weight", "synthesis.b12.const", "D.b8.out.weight", "x"]
)
def test_unknown_names_are_refused(name):
    known = {"G_ema.synthesis.b4.const": 0, "G_ema.synthesis.b8.conv1.bias": 0, "D.b4.fc.bias": 0}
    assert len(convert_names(known)) == 3
    with pytest.raises(CheckpointError, match="names that StyleGAN2 does not have"):
        convert_names({**known, name: 0})
    with pytest.raises(CheckpointError, match="names that StyleGAN2 does not have"):
        convert_names({name: 0}, to="stylegan2")


def test_two_networks_without_prefixes_are_refused(tmp_path, pair):
    path = write(tmp_path / "mixed.safetensors", {**pair[0], **pair[1]})
    with pytest.raises(CheckpointError, match=r"mixed without prefixes.*Put"):
        build_from_stylegan2(path)


# --- Settings ----------------------------------------------------------------------------------------------


def test_settings_come_from_the_header(file):
    found = shapes_of(file)
    g, d = found.generator, found.discriminator
    assert (g.shape, g.z_dim, g.w_dim, g.c_dim, g.mapping_layers, g.width) == ((1, 8, 8), 4, 6, 3, 2, (5, 4))
    assert (d.shape, d.width, d.c_dim, d.architecture) == ((1, 8, 8), (5, 4), 3, "residual")
    assert (d.minibatch_deviation, d.mapping_layers, d.condition_dim) == (True, 2, 5)
    assert found.has_w_avg


def test_settings_of_other_networks(tmp_path):
    rng = np.random.default_rng(0)
    d = naive.random_discriminator(rng, WIDTHS[32], 3, residual=False, deviation=False)
    found = shapes_of(write(tmp_path / "d.safetensors", d))
    assert found.generator is None
    assert not found.has_w_avg
    assert (found.discriminator.shape, found.discriminator.architecture) == ((3, 32, 32), "plain")
    assert found.discriminator.minibatch_deviation is False
    assert (found.discriminator.mapping_layers, found.discriminator.condition_dim) == (0, None)
    g = naive.random_generator(rng, WIDTHS[14], 3, w_dim=4, z_dim=7, n_mapping=5)
    found = shapes_of(write(tmp_path / "g.safetensors", g))
    assert found.discriminator is None
    assert (found.generator.shape, found.generator.z_dim, found.generator.c_dim) == ((3, 14, 14), 7, 0)
    assert found.generator.mapping_layers == 5


# --- Loading -----------------------------------------------------------------------------------------------


def test_parts_are_loaded_alone(tmp_path, pair, file):
    g, d = pair
    synthesis = SynthesisNetwork((1, 8, 8), 6, (5, 4))
    assert load_stylegan2(file, synthesis=synthesis).shape == (6,)
    torch.testing.assert_close(
        synthesis.state_dict()["blocks.0.const"].double(), torch.from_numpy(g["synthesis.b4.const"])
    )
    discriminator = Discriminator((1, 8, 8), (5, 4), 3, mapping_layers=2)
    assert load_stylegan2(file, discriminator=discriminator) is None
    torch.testing.assert_close(discriminator.fc.weight.double(), torch.from_numpy(d["b4.fc.weight"]))
    only_g = write(tmp_path / "g.safetensors", g)
    mapping, _, nothing, _ = build_from_stylegan2(only_g)
    assert nothing is None
    torch.testing.assert_close(mapping.layers[0].bias.double(), torch.from_numpy(g["mapping.fc0.bias"]))


def test_half_precision_files_are_read(tmp_path, pair):
    path = tmp_path / "half.safetensors"
    save_file({name: torch.from_numpy(np.array(value)).half() for name, value in pair[0].items()}, path)
    _, synthesis, _, _ = build_from_stylegan2(path)
    const = synthesis.state_dict()["blocks.0.const"]
    assert const.dtype == torch.float32
    torch.testing.assert_close(
        const.double(), torch.from_numpy(pair[0]["synthesis.b4.const"]), rtol=1e-3, atol=1e-3
    )


def test_everything_that_does_not_fit_is_listed_and_nothing_is_changed(tmp_path, pair):
    g = dict(pair[0])
    del g["synthesis.b8.conv0.bias"]
    g["synthesis.b8.conv1.bias"] = np.zeros(9)
    g["synthesis.b8.skip.weight"] = np.zeros((2, 2))
    g["synthesis.b16.torgb.bias"] = np.zeros(1)
    synthesis = SynthesisNetwork((1, 8, 8), 6, (5, 4))
    before = {name: value.clone() for name, value in synthesis.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_stylegan2(write(tmp_path / "g.safetensors", g), synthesis=synthesis)
    message = str(caught.value)
    assert "(4 problems)" in message
    assert '"G_ema.synthesis.b8.conv0.bias" (synthesis.blocks.1.conv0.bias) is missing' in message
    assert (
        '"synthesis.b8.conv1.bias" (synthesis.blocks.1.conv1.bias) has shape (9,) instead of (4,)' in message
    )
    assert '"synthesis.b8.skip.weight" is unknown' in message
    assert '"synthesis.b16.torgb.bias" (synthesis.blocks.2.to_image.bias) is not in the network' in message
    assert all(torch.equal(before[name], value) for name, value in synthesis.state_dict().items())


def test_a_wrong_average_or_whole_numbers_are_refused(tmp_path, pair):
    g = {**pair[0], "mapping.w_avg": np.zeros(7)}
    with pytest.raises(CheckpointError, match=r"w_avg.* has shape \(7,\) instead of \(6,\)"):
        build_from_stylegan2(write(tmp_path / "a.safetensors", g))
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in pair[0].items()}
    tensors["synthesis.b4.conv1.bias"] = tensors["synthesis.b4.conv1.bias"].long()
    save_file(tensors, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="holds I64, not floating-point numbers"):
        build_from_stylegan2(tmp_path / "b.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mapping.fc0.weight": None}, '"G_ema.mapping.fc0.weight" is missing'),
        ({"synthesis.b4.const": None}, '"G_ema.synthesis.b4.const" is missing'),
        ({"synthesis.b4.torgb.bias": None}, 'architecture "skip"'),
        ({"synthesis.b4.const": np.zeros((5, 4))}, "expected 3 sides"),
        ({"synthesis.b4.const": np.zeros((5, 3, 3))}, "cannot be built"),
        ({"mapping.fc0.weight": np.zeros((6, 2))}, "cannot be built"),
    ],
)
def test_incomplete_generators(tmp_path, pair, change, message):
    g = {name: value for name, value in {**pair[0], **change}.items() if value is not None}
    with pytest.raises(CheckpointError, match=message):
        build_from_stylegan2(write(tmp_path / "g.safetensors", g))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b8.fromrgb.weight": None}, '"D.b8.fromrgb.weight" is missing'),
        ({"b4.conv.weight": np.zeros((5, 9, 3, 3))}, "appends 4 channels"),
        ({"b4.fc.weight": np.zeros((5, 79))}, "cannot be built|has shape"),
    ],
)
def test_incomplete_discriminators(tmp_path, pair, change, message):
    d = {name: value for name, value in {**pair[1], **change}.items() if value is not None}
    with pytest.raises(CheckpointError, match=message):
        build_from_stylegan2(write(tmp_path / "d.safetensors", {}, G=pair[0], D=d))


def test_a_discriminator_alone_is_no_generator(tmp_path, pair):
    with pytest.raises(CheckpointError, match="no generator"):
        build_from_stylegan2(write(tmp_path / "d.safetensors", pair[1]))


def test_other_files_are_refused(tmp_path, file):
    with pytest.raises(CheckpointError, match="There is no file"):
        shapes_of(tmp_path / "none.safetensors")
    path = tmp_path / "net.pkl"
    path.write_bytes(pickle.dumps({"G_ema": [0.0] * 100}))
    with pytest.raises(CheckpointError, match="pickle"):
        build_from_stylegan2(path)
    torch.save({"G_ema": torch.zeros(3)}, tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match="pickle or zip"):
        load_stylegan2(tmp_path / "net.pt")
    save_file({"weight": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match=r"no tensor of StyleGAN2.*stylegan2-ada-pytorch"):
        shapes_of(tmp_path / "foreign.safetensors")
    path = tmp_path / "cut.safetensors"
    path.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="truncated"):
        build_from_stylegan2(path)


def test_a_tiny_file_with_huge_shapes_takes_no_memory(tmp_path, pair):
    """A tensor without elements may claim any other side; so may many blocks."""

    def hostile(change):
        g = {name: list(np.shape(value)) for name, value in pair[0].items()}
        g.update(change)
        header, at = {}, 0
        for name, shape in g.items():
            size = 4 * int(np.prod(shape, dtype=np.float64))
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
            at += size
        raw = json.dumps(header).encode()
        path = tmp_path / "hostile.safetensors"
        path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(at))
        return path

    assert build_from_stylegan2(hostile({}))[0].z_dim == 4
    with pytest.raises(CheckpointError, match="sides from 1 to 65536"):
        build_from_stylegan2(hostile({"synthesis.b8.conv1.weight": [10**9, 0, 3, 3]}))
    with pytest.raises(CheckpointError, match="sides from 1 to 65536"):
        build_from_stylegan2(hostile({"mapping.fc0.weight": [6, 65537]}))
    # Sides within the limit, but far more numbers than the file holds.
    with pytest.raises(CheckpointError, match="do not fit"):
        build_from_stylegan2(
            hostile({"synthesis.b4.conv1.weight": [60000, 1, 1, 1], "mapping.fc0.bias": [60000]})
        )
    many = {f"synthesis.b{4 << n}.conv1.weight": [1, 1, 1, 1] for n in range(2, 14)}
    with pytest.raises(CheckpointError, match="fit|cannot be built"):
        build_from_stylegan2(hostile(many))
