"""TAGE on converted weights of StyleGAN2 and pSp: taken over, left as they are, needed once, refused if they do not fit."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.methods.sq_gan_tools import shapes
from tests.methods.tage_tools import SMALL
from tests.reference import naive_psp, naive_stylegan

import fewgen
from fewgen.cli.main import main
from fewgen.config import read_config, resolve
from fewgen.errors import CheckpointError, ConfigError
from fewgen.methods.base import DataSpec
from fewgen.methods.tage import Tage, TageConfig
from fewgen.runs.run import load_run
from fewgen.training.loop import Trainer

NETWORK = {
    **{"w_dim": 6, "width": 4, "max_width": 8, "start": "const", "output": "linear", "noise": True},
    **{"encoder": "gradual", "encoder_width": 2, "encoder_side": 32},
}
MODEL = SMALL | {"network": NETWORK, "age": None}
GIVEN = {key: value for key, value in MODEL.items() if key != "autoencoder"} | {
    "autoencoder": {"perceptual": "none"}
}
"""Without settings of the stage that is left out."""
QUIET = {"report": False, "progress": False, "holdout": 2, "training": {"device": "cpu"}}


@pytest.fixture(scope="module")
def images():
    return shapes(n_per_class=6, channels=3)


@pytest.fixture(scope="module")
def tensors():
    return naive_psp.random_checkpoint(0, [8, 4], width=2, w_dim=6, side=32)


@pytest.fixture(scope="module")
def place(tensors, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    save_file(tensors, folder / "psp.safetensors")
    public = naive_stylegan.random_generator(np.random.default_rng(0), {4: 8, 8: 4}, 3, w_dim=6, z_dim=6)
    public = {name: torch.from_numpy(np.array(value)).float() for name, value in public.items()}
    save_file(public, folder / "ada.safetensors")
    return folder


def files(place, generator="psp", encoder="psp"):
    named = {"generator": generator, "encoder": encoder}
    return {use: str(place / f"{name}.safetensors") for use, name in named.items() if name}


@pytest.fixture(scope="module")
def both(place, images, tmp_path_factory):
    out = tmp_path_factory.mktemp("tage") / "run"
    return fewgen.train("tage", data=images, out=out, model=GIVEN | files(place), **QUIET)


def test_generator_and_encoder_are_those_of_the_file_and_nothing_moves_them(both, tensors, images):
    method = both.method.double().eval()
    t = {name: value.double() for name, value in tensors.items()}
    x = images.floats()[:2].double()
    with torch.no_grad():
        w = method.autoencoder.encode(x)
        seen = torch.nn.functional.interpolate(x, size=(32, 32), mode="bilinear", antialias=True)
        torch.testing.assert_close(w, naive_psp.encode(t, seen), rtol=1e-9, atol=1e-9)  # w_avg once
        torch.testing.assert_close(method.autoencoder.decode(w), naive_psp.decode(t, w), rtol=1e-6, atol=1e-6)
    method.float()


def test_the_stage_of_the_autoencoder_is_left_out_and_a_note_says_so(both, tensors):
    lines = [json.loads(line) for line in (both.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines if line["kind"] == "stage_end"] == ["codebook", "codes"]
    assert [note for note in both.notes if "psp.safetensors" in note] == [
        "generator and encoder are those of psp.safetensors and psp.safetensors, and stay as they are: the "
        "stage autoencoder is left out."
    ]


def test_with_the_generator_alone_the_encoder_is_trained_for_it(place, images, tmp_path):
    model = MODEL | {"network": NETWORK | {"encoder": "pyramid"}} | files(place, "ada", None)
    model["network"] = {key: value for key, value in model["network"].items() if key != "encoder_side"}
    model["autoencoder"] = {**SMALL["autoencoder"], "perceptual": "none"}
    model["autoencoder"].pop("perceptual_steps")
    run = fewgen.train("tage", data=images, out=tmp_path / "run", model=model, **QUIET)
    start = Tage(resolve(TageConfig, model, where="model"), DataSpec.of(images))
    start.read_weights()
    found, before = run.method.autoencoder, start.autoencoder.state_dict()
    assert torch.equal(found.w_avg, before["w_avg"])
    assert found.w_avg.abs().sum() > 0
    for name, value in found.synthesis.state_dict().items():
        assert torch.equal(value, before[f"synthesis.{name}"]), name
    moved = [
        p for name, p in found.encoder.named_parameters() if not torch.equal(p, before[f"encoder.{name}"])
    ]
    assert len(moved) > 5
    assert any("the encoder is trained for it" in note for note in run.notes)


def test_the_encoders_average_counts_and_the_generators_stands_in(place, tensors, images, tmp_path):
    config = resolve(TageConfig, GIVEN, files(place, "ada"), where="model")
    method = Tage(config, DataSpec.of(images))
    method.read_weights()
    assert torch.equal(method.autoencoder.w_avg, tensors["latent_avg"][0])
    without = {name: value for name, value in tensors.items() if name != "latent_avg"}
    save_file(without, tmp_path / "without.safetensors")
    config = dataclasses.replace(config, encoder=str(tmp_path / "without.safetensors"))
    method = Tage(config, DataSpec.of(images))
    method.read_weights()
    assert method.autoencoder.w_avg.abs().sum() > 0
    assert not torch.equal(method.autoencoder.w_avg, tensors["latent_avg"][0])
    config = dataclasses.replace(config, generator=str(tmp_path / "without.safetensors"))
    with pytest.raises(CheckpointError, match="no average style in"):
        Tage(config, DataSpec.of(images)).read_weights()


def test_a_run_is_whole_without_the_files_and_records_their_digests(place, images, tmp_path):
    kept = tmp_path / "kept"
    shutil.copytree(place, kept)
    out, model = tmp_path / "run", GIVEN | files(kept)
    run = fewgen.train("tage", data=images, out=out, model=model, **QUIET)
    records = read_config(out / "config.yaml")["encoders"]
    assert {use: record["name"] for use, record in records.items()} == {
        "generator": f"stylegan2:{kept / 'psp.safetensors'}",
        "encoder": f"psp:{kept / 'psp.safetensors'}",
    }
    before = run.generate(n=2).images
    shutil.rmtree(kept)
    assert torch.equal(load_run(out).generate(n=2).images, before)
    new = dataclasses.replace(images.subset([0, 1]), class_names=("a", "b", "c"))
    assert fewgen.adapt(out, images=new.select_classes(["a"]), class_names="mine").class_names[-1] == "mine"
    again = fewgen.train("tage", data=images, out=out, model=model, **QUIET)  # finished, files gone
    assert torch.equal(again.generate(n=2).images, before)


def test_a_run_that_stopped_goes_on_without_the_files_and_another_file_is_refused(
    place, tensors, images, tmp_path, monkeypatch
):
    kept, out = tmp_path / "kept", tmp_path / "run"
    shutil.copytree(place, kept)
    whole = fewgen.train("tage", data=images, out=tmp_path / "whole", model=GIVEN | files(kept), **QUIET)
    begin = Trainer.begin

    def stopping(self, *given):
        if self._position.stage_index == 1:
            self.stop()
        return begin(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "begin", stopping)
        first = fewgen.train("tage", data=images, out=out, model=GIVEN | files(kept), **QUIET)
    assert first.result.interrupted
    changed = {**tensors, "latent_avg": tensors["latent_avg"] + 1.0}
    save_file(changed, kept / "other.safetensors")
    with pytest.raises(
        ConfigError, match=r"has the encoder psp:.*psp\.safetensors \(encoder\) with the sha256"
    ):
        fewgen.train("tage", data=images, out=out, model=GIVEN | files(kept, encoder="other"), **QUIET)
    with pytest.raises(ConfigError, match="has the generator stylegan2:"):
        fewgen.train("tage", data=images, out=out, model=GIVEN | files(kept, generator="other"), **QUIET)
    with pytest.raises(ConfigError, match=r"settings\.model\.encoder was a file, now None"):
        fewgen.train("tage", data=images, out=out, model=GIVEN | files(kept, encoder=None), **QUIET)
    shutil.rmtree(kept)
    last = fewgen.train("tage", data=images, out=out, model=GIVEN | files(kept), **QUIET)
    assert last.result.finished
    x, y = whole.method.state_dict(), last.method.state_dict()
    assert [name for name in x if not torch.equal(x[name], y[name])] == []
    elsewhere = fewgen.train("tage", data=images, out=out, model=GIVEN | files(place), **QUIET)
    assert elsewhere.was_finished


def without(name):
    return lambda t: {key: value for key, value in t.items() if key != name}


def having(name, value):
    return lambda t: {**t, name: value}


@pytest.mark.parametrize(
    ("change", "model", "message"),
    [
        (without("decoder.convs.0.conv.weight"), {}, r'"decoder\.convs\.0\.conv\.weight" .*missing'),
        (having("decoder.to_rgb1.bias", torch.zeros(1, 5, 1, 1)), {}, "draws images of 5 x 8 x 8"),
        (
            having("encoder.latlayer1.bias", torch.zeros(5)),
            {},
            r'"encoder\.latlayer1\.bias" .*\(5,\) instead of',
        ),
        (
            without("encoder.body.3.res_layer.2.weight"),
            {},
            r'"encoder\.body\.3\.res_layer\.2\.weight" .*missing',
        ),
        (
            having("decoder.conv1.activate.bias", torch.full((8,), torch.nan)),
            {},
            r'conv1\.activate\.bias" .*finite',
        ),
        (dict, {"network": {"start": "style"}}, "network.start is style, .*--model.network.start const"),
        (dict, {"network": {"output": "tanh"}}, "--model.network.output linear"),
        (dict, {"network": {"w_dim": 12}}, "--model.network.w_dim 6"),
        (dict, {"network": {"width": 8}}, "--model.network.width 4"),
        (dict, {"network": {"max_width": 4}}, "--model.network.max_width 8"),
        (dict, {"network": {"encoder_side": 64}}, "--model.network.encoder_side 32"),
        (dict, {"network": {"encoder_width": 4}}, "--model.network.encoder_width 2"),
        (dict, {"network": {"encoder": "pyramid", "encoder_side": 256}}, "--model.network.encoder gradual"),
        (without("encoder.styles.3.linear.weight"), {}, "gives 3 styles, and the generator takes 4"),
    ],
)
def test_files_that_do_not_fit_are_refused_before_anything_is_written(
    tensors, images, tmp_path, change, model, message
):
    save_file(change(tensors), tmp_path / "psp.safetensors")
    given = GIVEN | files(tmp_path) | {"network": NETWORK | model.get("network", {})}
    with pytest.raises((CheckpointError, ConfigError), match=message):
        fewgen.train("tage", data=images, out=tmp_path / "run", model=given, **QUIET)
    assert not (tmp_path / "run").exists()


def test_images_of_another_size_or_kind_are_refused_by_name(place, tmp_path):
    for data in (shapes(size=16, channels=3), shapes()):
        with pytest.raises(ConfigError, match=r"draws images of 3 x 8 x 8 .*Give --size 8 and --channels 3"):
            fewgen.train("tage", data=data, out=tmp_path / "run", model=GIVEN | files(place), **QUIET)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.generator", "none.safetensors"], 'There is no file "none.safetensors"'),
        (["--model.generator", "text.safetensors"], "is not a safetensors file"),
        (["--model.encoder", "psp.safetensors"], "Set generator, too, or leave encoder out"),
        (
            ["--model.generator", "g", "--model.encoder", "e", "--model.autoencoder.steps", "9"],
            "--model.autoencoder.steps 9 has no effect without --model.encoder null",
        ),
    ],
)
def test_a_dry_run_refuses_them_too(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.safetensors").write_text("no tensors")
    words = ["train", "tage", "--data", "digits", "--shots", "5", "--out", "run", *words, "--dry-run"]
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_dry_run_says_what_is_done_with_them(place, tmp_path, capsys):
    model = resolve(TageConfig, GIVEN, files(place), where="model")
    flags = [f"--model.network.{name}={getattr(model.network, name)}" for name in NETWORK]
    data = ["--data", "digits", "--size", "8", "--channels", "3", "--shots", "5"]
    words = ["train", "tage", *data, "--out", str(tmp_path / "run")]
    words += ["--model.codebook.parts", "1", *flags]
    for use, path in files(place).items():
        words += [f"--model.{use}", path]
    assert main([*words, "--dry-run"]) == 0
    assert "the stage autoencoder is left out" in " ".join(capsys.readouterr().out.split())


def test_a_discriminator_is_no_generator(images, tmp_path):
    d = naive_stylegan.random_discriminator(np.random.default_rng(0), {4: 8, 8: 4}, 3)
    tensors = {f"D.{name}": torch.from_numpy(np.array(value)).float() for name, value in d.items()}
    save_file(tensors, tmp_path / "d.safetensors")
    config = resolve(TageConfig, MODEL, files(tmp_path, "d", None), where="model")
    with pytest.raises(CheckpointError, match="a discriminator, but no generator"):
        Tage(config, DataSpec.of(images)).read_weights()


def test_channels_that_no_setting_describes_are_said_to_be_unreadable(images, tmp_path):
    odd = naive_psp.random_checkpoint(0, [8, 3], width=2, w_dim=6, side=32)
    save_file(odd, tmp_path / "psp.safetensors")
    config = resolve(TageConfig, GIVEN, files(tmp_path), where="model")
    with pytest.raises(ConfigError, match=r"8, 3 channels.*cannot be read"):
        Tage(config, DataSpec.of(images)).read_weights()
