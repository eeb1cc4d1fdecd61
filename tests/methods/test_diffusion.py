"""The diffusion method: captions, both kinds of latents, what training learns, and what a file keeps."""

import dataclasses
import json

import pytest
import torch
from torch.nn import functional

from fewgen.config import list_presets, load_preset, resolve
from fewgen.data.imageset import ImageSet
from fewgen.errors import CheckpointError, ConfigError, RenamedWarning, TextError
from fewgen.fitting.seeds import global_seed
from fewgen.generation import GenerationRequest, image_seeds
from fewgen.methods.base import DataSpec
from fewgen.methods.diffusion import Diffusion, DiffusionConfig
from fewgen.methods.diffusion.model import short_names
from fewgen.methods.store import load_method
from fewgen.runs.pipeline import load_pipeline
from fewgen.training import TrainConfig, Trainer
from fewgen.training.phases import Context, Pixels

SMALL = {
    "network": {
        "channels": [16],
        "attention_levels": 1,
        "heads": 2,
        "text_width": 16,
        "text_length": 6,
        "text_layers": 1,
        "patch": 4,
    },
    "steps": 4,
    "batch_size": 8,
    "sampling_steps": 5,
}
LATENT = {
    "network": {"patch": 1, "latent": {"channels": [8, 8, 8], "latent_channels": 2}},
    "autoencoder": {"steps": 3},
}
NAMES = ("bright", "dark")


def images(n=12, names=NAMES):
    """Class 0 is bright, class 1 dark, with a little noise; 3 x 16 x 16."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % len(names)
    base = torch.where(labels == 0, 205, 50)[:, None, None, None]
    pixels = (base + 20 * torch.randn(n, 3, 16, 16, generator=rng)).clamp(0, 255).to(torch.uint8)
    return ImageSet(pixels, labels, names, name="shades")


def make(*changes, data=None, seed=0):
    data = images() if data is None else data
    with global_seed(torch.device("cpu"), seed):
        return Diffusion(resolve(DiffusionConfig, SMALL, *changes), DataSpec.of(data))


def quiet(**changes):
    return TrainConfig(
        **{"progress": False, "ema_decay": 0.0, "device": "cpu", "checkpoint_every": 2, **changes}
    )


def drawn(method, *labels, **options):
    seeds = image_seeds(0, len(labels))
    request = GenerationRequest(labels=torch.tensor(labels), seeds=seeds, options=options)
    return method.generate(request).images


def test_first_of_several_names_unless_two_classes_share_it():
    assert short_names(["goldfish, Carassius auratus", "T-shirt/top"]) == ["goldfish", "T-shirt/top"]
    assert short_names(["crane, bird", "Crane, machine", "kite"]) == ["crane, bird", "Crane, machine", "kite"]
    method = make(data=images(names=("goldfish, Carassius auratus", "koala")))
    assert method.captions == ("a photo of a goldfish", "a photo of a koala")
    assert method.pipe.vocabulary.class_words == ("goldfish", "koala")


def test_captions_longer_than_the_text_tower_make_it_longer():
    method = make(data=images(names=("a very big old red brick house", "koala")))
    assert method.pipe.config.text_length == 11
    assert method.tokens.shape == (2, 11)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("...", "cat"), r'class names hold no word: "\.\.\."'),
        (("Cat", "cat!"), 'classes "Cat" and "cat!" have the same words'),
        (("an owl", "a owl"), "the same words"),
    ],
)
def test_names_that_captions_cannot_tell_apart_are_refused_before_training(names, message):
    with pytest.raises(TextError, match=message):
        make(data=images(names=names))


def test_a_class_called_object_is_one_like_others(tmp_path):
    data = images(names=("object", "object part"))
    data = data.select_classes(["object"])
    method = make(data=data)
    Trainer(method, method.stages(data, None), data, None, quiet(), tmp_path).run()
    assert drawn(method, 0).shape == (1, 3, 16, 16)


def test_braces_of_templates_and_names_are_letters():
    method = make({"template": "a {} {x}"}, data=images(names=("{}", "{0}")))
    assert method.captions == ("a {} {x}", "a {0} {x}")


def test_a_text_that_only_starts_like_the_template_is_put_into_it():
    method = make({"template": "a {}"}, data=images(names=("ankle boot", "dark")))
    vectors = method.text_vectors(["ankle boot", "a ankle boot", "an ankle boot"])
    assert torch.equal(vectors, method.class_vectors(torch.tensor([0, 0, 0])))


@pytest.mark.parametrize("change", [{}, LATENT], ids=["patches", "latents"])
def test_training_moves_what_it_should_and_only_that(change, tmp_path):
    data, method = images(), make(change)
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    stages = method.stages(data, images(4))
    assert [stage.name for stage in stages] == (["autoencoder", "denoiser"] if change else ["denoiser"])
    Trainer(method, stages, data, images(4), quiet(), tmp_path).run()
    moved = {
        name.split(".")[1]
        for name, tensor in method.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert moved == {"unet", "text", *(("vae", "latent_scale") if change else ())}
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    measured = [row for row in rows if row["kind"] == "held_out"]
    assert measured
    assert {"loss", "caption_gain"} <= {key.split("/")[-1] for key in measured[-1]}
    if change:
        z = method.pipe.encode(data.floats())
        assert float(z.std()) == pytest.approx(1.0, abs=0.05)
        # The autoencoder does not move while the denoiser learns.
        own = {id(p) for p in method.pipe.vae.parameters()}
        assert not own & {id(p) for m in stages[1].trained_modules() for p in m.parameters()}
    words = method.pipe.vocabulary
    table = method.pipe.text.table.weight
    rows_of = [1 + words.words.index(word) for word in words.class_words]
    torch.testing.assert_close(table[1 + words.words.index("object")], table[rows_of].mean(0))


def test_stopped_and_resumed_is_the_same_as_at_once(tmp_path):
    data = images()
    whole = make({"steps": 6})
    Trainer(whole, whole.stages(data, None), data, None, quiet(), tmp_path / "whole").run()

    class Stop(Exception):
        pass

    broken = make({"steps": 6})
    stage = broken.stages(data, None)[0]
    loss = stage.phases[0].loss

    def failing(batch, context):
        if context.step == 5:
            raise Stop
        return loss(batch, context)

    stage = dataclasses.replace(stage, phases=[dataclasses.replace(stage.phases[0], loss=failing)])
    with pytest.raises(Stop):
        Trainer(broken, [stage], data, None, quiet(), tmp_path / "parts").run()
    again = make({"steps": 6}, seed=5)
    Trainer(again, again.stages(data, None), data, None, quiet(), tmp_path / "parts").run()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_captions_steer_the_images_after_training(tmp_path):
    data = images(64)
    method = make({"steps": 120, "batch_size": 16, "lr": 3e-3, "sampling_steps": 10})
    untrained = [float(x.float().mean()) for x in drawn(method, 0, 0, 0, 0, 1, 1, 1, 1).split(4)]
    assert abs(untrained[0] - untrained[1]) < 20
    Trainer(method, method.stages(data, images(16)), data, images(16), quiet(), tmp_path).run()
    bright, dark = (float(x.float().mean()) for x in drawn(method, 0, 0, 0, 0, 1, 1, 1, 1).split(4))
    assert bright - dark > 80
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    gains = [v for row in rows if row["kind"] == "held_out" for k, v in row.items() if "caption_gain" in k]
    assert gains[-1] > 0.01
    assert not any("Captions" in str(row) for row in rows)


@pytest.mark.parametrize("weight", [1e-6, 100.0])
def test_an_autoencoder_whose_posterior_collapses_names_the_weight(weight, tmp_path):
    data = images()
    method = make(LATENT, {"autoencoder": {"steps": 60, "lr": 1e-2, "kl_weight": weight}})
    stage = method.stages(data, None)[0]
    result = Trainer(method, [stage], data, None, quiet(checkpoint_every=0), tmp_path).run()
    assert [text.split(":")[0] for text in result.warnings] == ["Posterior collapse"] * (weight == 100.0)
    assert all("model.autoencoder.kl_weight (now 100)" in text for text in result.warnings)


def test_an_untrained_model_is_warned_of():
    data = images()
    method = make()
    stage = method.stages(data, data)[0]
    pixels = Pixels(data, torch.device("cpu"))
    context = Context(4, 4, stage, torch.Generator().manual_seed(0), pixels, pixels, torch.device("cpu"))
    with torch.no_grad():
        for layer in method.pipe.unet.modules():
            # Without cross-attention a caption cannot do anything.
            if hasattr(layer, "attn2") and layer.attn2 is not None:
                layer.attn2.to_out[0].weight.zero_()
                layer.attn2.to_out[0].bias.zero_()
    assert [warning[:22] for warning in method._diagnose(context)] == ["Captions hardly steer "]


def test_settings_reach_the_stages_and_the_losses(monkeypatch):
    seen = {}
    own = {"steps": 7, "batch_size": 3, "lr": 2e-3, "kl_weight": 0.25}
    change = {"drop": 0.37, "lr": 3e-3, "weight_decay": 0.02, "autoencoder": own}
    method = make({**LATENT, **change})
    autoencoder, denoiser = method.stages(images(), None)
    assert (autoencoder.steps, autoencoder.batch_size, autoencoder.phases[0].lr) == (7, 3, 2e-3)
    assert (denoiser.steps, denoiser.batch_size) == (4, 8)
    assert (denoiser.phases[0].lr, denoiser.phases[0].weight_decay) == (3e-3, 0.02)
    for name in ("loss", "autoencoder_loss"):
        monkeypatch.setattr(
            method.pipe, name, lambda *x, name=name: seen.update({name: x[-1]}) or torch.ones(())
        )
    data, device = images(), torch.device("cpu")
    pixels = Pixels(data, device)
    context = Context(0, 4, denoiser, torch.Generator(), pixels, None, device)
    for stage in (autoencoder, denoiser):
        stage.phases[0].loss(pixels.at(torch.arange(2)), context)
    assert seen == {"loss": 0.37, "autoencoder_loss": 0.25}


def test_temperature_scales_the_noise_that_sampling_starts_from():
    method = make()
    vectors = method.class_vectors(torch.tensor([0, 0]))
    cold = method.sample(vectors, torch.tensor([0, 0]), torch.tensor([1, 2]), 0.0)
    assert torch.equal(*cold)
    warm = method.sample(vectors, torch.tensor([0, 0]), torch.tensor([1, 2]), 1.0)
    assert not torch.equal(*warm)


def test_an_image_depends_on_its_seed_and_class_alone():
    method = make()
    together = drawn(method, *[0, 1] * 12)
    alone = drawn(method, 0, 1)
    assert torch.equal(together[:2], alone)
    assert not torch.equal(together[0], together[2])
    assert torch.equal(drawn(method, 0, guidance_scale=1.0), drawn(method, 0, guidance_scale=1.0))
    assert not torch.equal(drawn(method, 0, guidance_scale=1.0), drawn(method, 0, guidance_scale=5.0))
    with pytest.warns(RenamedWarning, match="scale is called guidance_scale now"):
        assert torch.equal(drawn(method, 0, scale=1.0), drawn(method, 0, guidance_scale=1.0))
    assert not torch.equal(drawn(method, 0, steps=2), drawn(method, 0, steps=5))


def test_texts_are_captions_of_the_same_model():
    method = make()
    seeds = image_seeds(0, 2)
    by_class = method.generate(GenerationRequest(labels=torch.tensor([1, 1]), seeds=seeds)).images
    for text in ("dark", "a photo of a dark", "A photo of a DARK"):
        by_text = method.generate(GenerationRequest(texts=(text, text), seeds=seeds)).images
        assert torch.equal(by_text, by_class), text
    mixed = method.generate(GenerationRequest(texts=("bright dark",) * 2, seeds=seeds)).images
    assert not torch.equal(mixed, by_class)
    with pytest.raises(TextError, match='does not know "blue"'):
        method.text_vectors(["blue"])
    with pytest.raises(TextError):
        method.text_vectors(["dark " * 20])
    latents = method.encode_text(method.class_vectors(torch.tensor([0, 1])))
    ends = method.decode(latents, torch.tensor([3, 3]))
    assert torch.equal(ends, method.sample(None, torch.tensor([0, 1]), torch.tensor([3, 3]), 1.0))


@pytest.mark.parametrize("change", [{}, LATENT], ids=["patches", "latents"])
def test_a_file_gives_the_same_images_and_opens_as_a_pipeline(change, tmp_path):
    method = make(change)
    method.save(tmp_path / "model.safetensors")
    again = load_method(tmp_path)
    assert torch.equal(drawn(again, 0, 1), drawn(method, 0, 1))
    pipe = load_pipeline(tmp_path)
    assert pipe.model_id == method.pipe.model_id
    assert not any(p.requires_grad for p in pipe.parameters())
    assert not pipe.training


def test_patches_are_pixels_in_another_order():
    pipe = make().pipe
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    z = pipe.encode(x)
    assert z.shape == (2, 48, 4, 4)
    assert torch.equal(pipe.decode(z), x)
    blocks = functional.unfold(x, 4, stride=4).unflatten(2, (4, 4))
    assert torch.equal(z, blocks)
    with pytest.raises(ConfigError, match="patch 4 is for pixels"):
        make({"network": {"latent": {}}})
    with pytest.raises(ConfigError, match="multiples of 12"):
        make({"network": {"patch": 3, "channels": [16, 16, 16]}})


def test_what_cannot_be_a_pipeline_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="There is no model"):
        load_pipeline(tmp_path / "nothing")
    with pytest.raises(CheckpointError):
        load_pipeline(tmp_path)
    from tests.methods.sq_gan_tools import make as make_gan

    make_gan().save(tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="is a run of sq_gan"):
        load_pipeline(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"template": "a photo"}, "template must contain"),
        ({"drop": 1.0}, "drop"),
        ({"sampling_steps": 2000}, "sampling_steps 2000 is more"),
        ({"guidance_scale": -1.0}, "guidance_scale"),
        ({"augment": "photos"}, "photo"),
        ({"autoencoder": {"kl_weight": -1.0}}, "kl_weight"),
    ],
    ids=str,
)
def test_settings_that_cannot_work(change, message):
    with pytest.raises(ConfigError, match=message):
        make(change)


def test_unknown_options_and_presets():
    method = make()
    with pytest.raises(ConfigError, match="guidance_scale and steps"):
        method.sample(None, torch.tensor([0]), torch.tensor([0]), 1.0, alpha=0.5)
    for preset in list_presets("diffusion"):
        config = resolve(DiffusionConfig, load_preset("diffusion", preset)["model"])
        Diffusion(config, DataSpec(3, 32, 32, NAMES))
        if config.network.latent is None:
            Diffusion(config, DataSpec(1, 28, 28, NAMES))
    assert set(list_presets("diffusion")) == {"default", "latent", "pixel"}


def test_mirror_shows_both_sides_equally_often():
    method = make({"mirror": True})
    augment = method.stages(images(), None)[0].augment
    x = torch.arange(16.0).expand(400, 3, 16, 16)
    found = augment(x, torch.Generator().manual_seed(0))
    mirrored = (found[:, 0, 0, 0] == 15).float().mean()
    assert 0.4 < float(mirrored) < 0.6
    assert torch.equal(found[found[:, 0, 0, 0] == 0][0], x[0])
    assert torch.equal(make().stages(images(), None)[0].augment(x, torch.Generator()), x)
