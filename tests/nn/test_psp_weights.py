"""Converted weights of pSp: same outputs as an independent reading of the same file, and files that do not fit."""

import pytest
import torch
from safetensors.torch import save_file
from tests.reference import naive_psp as naive

from fewgen.errors import CheckpointError
from fewgen.nn import stylegan_weights
from fewgen.nn.psp_weights import PSP_NAMES, convert_names, load_psp, shapes_of
from fewgen.nn.style_encoder import GradualStyleEncoder
from fewgen.nn.stylegan import SynthesisNetwork

WIDTHS = [8, 8, 6, 3]  # 32 px, so 8 styles: the last one from the largest map


def encoder_of(n_layers=8, width=2):
    return GradualStyleEncoder(3, n_layers, 6, 32, (width, width, 2 * width, 4 * width, 8 * width))


@pytest.fixture(scope="module")
def tensors():
    return naive.random_checkpoint(0, WIDTHS, width=2, w_dim=6, side=32)


@pytest.fixture(scope="module")
def file(tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("psp") / "psp.safetensors"
    save_file(tensors, path)
    return path


def doubles(tensors):
    return {name: value.double() for name, value in tensors.items()}


def test_a_loaded_encoder_computes_what_the_reference_computes(tensors, file):
    encoder = encoder_of()
    w_avg = load_psp(file, encoder)
    assert torch.equal(w_avg, tensors["latent_avg"][0])
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        found = encoder.double().eval()(x) + w_avg
    wanted = naive.encode(doubles(tensors), x)
    assert wanted.std() > 0.1
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_the_generator_of_the_same_file_computes_what_the_reference_computes(tensors, file):
    found = stylegan_weights.shapes_of(file).generator
    assert (found.shape, found.w_dim, found.width, found.mapping_layers) == ((3, 32, 32), 6, (8, 8, 6, 3), 2)
    mapping, synthesis, discriminator, w_avg = stylegan_weights.build_from_stylegan2(file)
    assert discriminator is None
    assert torch.equal(w_avg, tensors["latent_avg"][0])
    w = torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        images = synthesis.double()(w)
    wanted = naive.decode(doubles(tensors), w)
    assert wanted.std() > 0.1
    # The public code scales weights before it demodulates, which moves its 1e-8 under the root.
    torch.testing.assert_close(images, wanted, rtol=1e-6, atol=1e-6)
    assert torch.equal(mapping.layers[1].bias, tensors["decoder.style.2.bias"])


def test_rosinalitys_own_checkpoints_have_no_prefix_and_one_average(tensors, file, tmp_path):
    own = {name.removeprefix("decoder."): t for name, t in tensors.items() if name.startswith("decoder.")}
    own["latent_avg"] = tensors["latent_avg"][0].clone()
    save_file(own, tmp_path / "bare.safetensors")
    save_file({f"g_ema.{name}": value for name, value in own.items()}, tmp_path / "ema.safetensors")
    w = torch.randn(1, 8, 6)
    images = []
    for path in (file, tmp_path / "bare.safetensors"):
        synthesis = SynthesisNetwork((3, 32, 32), 6, (8, 8, 6, 3))
        w_avg = stylegan_weights.load_stylegan2(path, synthesis=synthesis)
        assert torch.equal(w_avg, tensors["latent_avg"][0])
        images.append(synthesis(w))
    assert torch.equal(*images)
    assert stylegan_weights.shapes_of(tmp_path / "ema.safetensors").has_w_avg


KINDS = [
    "encoder.input_layer.0.weight",
    "encoder.input_layer.1.running_mean",
    "encoder.input_layer.2.weight",
    "encoder.body.0.res_layer.0.running_var",
    "encoder.body.3.shortcut_layer.0.weight",
    "encoder.body.3.shortcut_layer.1.bias",
    "encoder.body.20.res_layer.2.weight",
    "encoder.body.22.res_layer.5.fc2.weight",
    "encoder.latlayer1.bias",
    "encoder.latlayer2.weight",
    "encoder.styles.7.convs.4.bias",
    "encoder.styles.0.linear.bias",
]


def test_one_changed_weight_changes_the_output(tensors, file, tmp_path):
    """Negative control: the comparison above sees tensors of every kind."""
    encoder, x = encoder_of().eval(), torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    load_psp(file, encoder)
    before = encoder(x)
    for name in KINDS:
        changed = dict(tensors)
        changed[name] = changed[name] + 1.0
        save_file(changed, tmp_path / "changed.safetensors")
        load_psp(tmp_path / "changed.safetensors", encoder)
        assert not torch.equal(encoder(x), before), name


def test_names_go_both_ways(tensors):
    own = {name: value for name, value in tensors.items() if not name.startswith("decoder.")}
    own = {name: value for name, value in own.items() if not name.endswith("num_batches_tracked")}
    ours = convert_names(tensors)
    assert set(ours) == {f"encoder.{n}" for n in encoder_of().state_dict() if "num_batches" not in n} | {
        "w_avg"
    }
    back = convert_names(ours, to="psp")
    assert {name: id(value) for name, value in back.items()} == {
        name: id(value) for name, value in own.items()
    }
    assert convert_names({"styles.0.linear.bias": 1}) == {"encoder.styles.0.linear.bias": 1}
    assert len({ours for ours, _ in PSP_NAMES}) == len({theirs for _, theirs in PSP_NAMES}) == len(PSP_NAMES)
    with pytest.raises(CheckpointError, match=r'"encoder\.body\.0\.res_layer\.6\.weight"'):
        convert_names({"encoder.body.0.res_layer.6.weight": 1})


def test_names_of_the_published_encoder_are_all_in_the_table():
    with torch.device("meta"):
        state = GradualStyleEncoder(3, 18).state_dict()
    named = {f"encoder.{name}": name for name in state if not name.endswith("num_batches_tracked")}
    assert set(convert_names(named)) == set(named)


def test_sizes_come_from_the_header(file):
    found = shapes_of(file)
    assert (found.n_layers, found.w_dim, found.side, found.width, found.has_w_avg) == (8, 6, 32, 2, True)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("encoder.latlayer1.weight", None, r'"encoder\.latlayer1\.weight" .*is missing'),
        (
            "encoder.body.5.res_layer.4.running_var",
            None,
            r'"encoder\.body\.5\.res_layer\.4\.running_var".*miss',
        ),
        (
            "encoder.body.5.res_layer.2.weight",
            torch.zeros(3),
            r'res_layer\.2\.weight".*shape \(3,\) instead of',
        ),
        ("encoder.body.5.res_layer.9.weight", torch.zeros(3), r'res_layer\.9\.weight" is unknown'),
        (
            "encoder.body.24.res_layer.1.weight",
            torch.zeros(3),
            r"body\.24\.res_layer.* is not in the network",
        ),
        (
            "encoder.input_layer.1.bias",
            torch.tensor([0.0, torch.nan]),
            r'input_layer\.1\.bias" holds .*not finite',
        ),
        ("encoder.input_layer.1.bias", torch.tensor([0, 1]), "holds I64, not floating-point"),
        ("latent_avg", torch.arange(48.0).reshape(8, 6), 'rows of "latent_avg".* differ'),
        ("latent_avg", torch.zeros(5), r'"latent_avg" .*shape \(5,\) instead of \(6,\)'),
    ],
)
def test_files_that_do_not_fit_are_refused_and_nothing_is_changed(tensors, tmp_path, name, value, message):
    changed = {**tensors, name: value}
    save_file({n: v for n, v in changed.items() if v is not None}, tmp_path / "psp.safetensors")
    encoder = encoder_of()
    before = {n: v.clone() for n, v in encoder.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_psp(tmp_path / "psp.safetensors", encoder)
    assert all(torch.equal(before[n], v) for n, v in encoder.state_dict().items())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("decoder.convs.0.conv.weight", None, r'"decoder\.convs\.0\.conv\.weight" .*is missing'),
        (
            "decoder.to_rgbs.1.bias",
            torch.zeros(1, 2, 1, 1),
            r'to_rgbs\.1\.bias".*shape \(2,\) instead of \(3,\)',
        ),
        ("decoder.convs.9.conv.weight", torch.zeros(1, 3, 3, 3, 3), r"convs\.9.* is not in the network"),
        ("decoder.style.0.weight", torch.zeros(3), r'"decoder\.style\.0\.weight" is unknown'),
        ("decoder.noises.noise_2", torch.full((1, 1, 8, 8), torch.inf), r'noise_2" holds .*not finite'),
    ],
)
def test_decoders_that_do_not_fit_are_refused(tensors, tmp_path, name, value, message):
    changed = {**tensors, name: value}
    save_file({n: v for n, v in changed.items() if v is not None}, tmp_path / "psp.safetensors")
    synthesis = SynthesisNetwork((3, 32, 32), 6, (8, 8, 6, 3))
    with pytest.raises(CheckpointError, match=message):
        stylegan_weights.load_stylegan2(tmp_path / "psp.safetensors", synthesis=synthesis)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="There is no file"):
        shapes_of(tmp_path / "none.safetensors")
    torch.save({"encoder": torch.zeros(3)}, tmp_path / "psp.pt")
    with pytest.raises(CheckpointError, match="pickle or zip"):
        load_psp(tmp_path / "psp.pt", encoder_of())
    save_file({"weight": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="no tensor of pSp's encoder"):
        shapes_of(tmp_path / "foreign.safetensors")
