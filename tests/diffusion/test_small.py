"""The small text-to-image model: sizes, words, loss, model file, latent space."""

import dataclasses
import json
import sys

import pytest
import torch

from fewgen.diffusion.small import (
    SmallDiffusion,
    SmallDiffusionConfig,
    SmallLatentConfig,
    Vocabulary,
    words_of,
)
from fewgen.errors import ConfigError, DataError, MissingDependencyError, ShapeError, TextError

CAPTIONS = ("a photo of a sneaker", "a photo of an ankle boot")
TINY = SmallDiffusionConfig(
    prediction="epsilon", channels=(8, 8), attention_levels=1, heads=2, text_width=8, text_layers=1
)
LATENT = dataclasses.replace(TINY, latent=SmallLatentConfig(channels=(8, 8), latent_channels=2))


def model(config=TINY, shape=(1, 8, 8), seed=0):
    torch.manual_seed(seed)
    return SmallDiffusion(config, shape, CAPTIONS)


@pytest.fixture
def tiny():
    return model()


@pytest.fixture
def latent():
    return model(LATENT, (3, 8, 8))


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n, shape=(1, 8, 8), seed=0):
    return torch.rand(n, *shape, generator=rng(seed)) * 2 - 1


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_default_size_is_about_a_million_and_nothing_is_made_under_meta(shape):
    with torch.device("meta"):
        built = SmallDiffusion(SmallDiffusionConfig(), shape, CAPTIONS)
    assert 0.6e6 < sum(p.numel() for p in built.parameters()) < 1.1e6
    assert {p.device.type for p in (*built.parameters(), *built.buffers())} == {"meta"}
    assert (built.latent_shape, built.context_shape) == (shape, (8, 48))


@pytest.mark.parametrize("config", [TINY, LATENT])
def test_settings_and_tensors_are_the_whole_model(config):
    built = model(config, (3, 8, 8))
    settings = json.loads(json.dumps(built.settings()))
    with torch.device("meta"):
        again = SmallDiffusion.from_settings(settings)
    again.load_state_dict(built.state_dict(), assign=True)
    z, t = torch.randn(2, *built.latent_shape, generator=rng()), torch.tensor([999, 3])
    context = built.embed(["a photo of a sneaker", ""])
    assert torch.equal(again.eps(z, t, context), built.eps(z, t, context))
    assert torch.equal(again.decode(z), built.decode(z))
    assert again.model_id == built.model_id
    assert {tensor.device.type for tensor in again.state_dict().values()} == {"cpu"}


def test_model_id_sees_weights_settings_and_words(tiny):
    ids = [tiny.model_id, model(dataclasses.replace(TINY, schedule="linear")).model_id]
    torch.manual_seed(0)
    ids.append(SmallDiffusion(TINY, (1, 8, 8), ["a photo of a sneaker", "a photo of an ankle shoe"]).model_id)
    with torch.no_grad():
        tiny.unet.conv_in.weight[0, 0, 0, 0] += 1e-3
    ids.append(tiny.model_id)
    assert len(set(ids)) == 4
    assert model().model_id == ids[0]


def test_vocabulary_is_made_from_captions():
    words = Vocabulary.of(CAPTIONS)
    assert words.words == ("a", "photo", "of", "object", "ankle", "boot", "sneaker")
    assert words.class_words == ("ankle", "boot", "sneaker")
    named = Vocabulary.of(["a photo of a red bag"], ["Bag", "T-shirt/top"])
    assert named.class_words == ("bag", "t-shirt", "top")
    assert set(named.class_words) | {"red"} < set(named.words)
    assert words_of("T-shirt/Top, an ankle_boot.") == ["t-shirt", "top", "a", "ankle", "boot"]
    with pytest.raises(TextError, match="no word"):
        Vocabulary.of(["..."])


def test_words_placeholders_and_the_null_prompt(tiny):
    ids = tiny.tokens(["A photo of an Ankle boot!", "", "a photo of an #object"], {"#object": torch.ones(8)})
    assert ids.tolist() == [[1, 2, 3, 1, 5, 6, 0, 0], [0] * 8, [1, 2, 3, 1, 8, 0, 0, 0]]
    with pytest.raises(TextError, match=r'"violin", "drum": it learned 7 words'):
        tiny.embed(["a photo of a violin drum"])
    with pytest.raises(TextError, match='mean "sneaker"'):
        tiny.embed(["a sneeker"])
    with pytest.raises(TextError, match="9 places; this model has 8"):
        tiny.embed(["a photo of a sneaker a photo of a"])
    with pytest.raises(ConfigError, match="violin"):
        tiny.word_embedding("violin")


def test_an_override_equals_the_word_with_that_row(tiny):
    row = tiny.word_embedding("boot")
    prompt = ["a photo of a #new"]
    with torch.no_grad():
        torch.testing.assert_close(
            tiny.embed(prompt, {"#new": row}), tiny.embed(["a photo of a boot"]), rtol=0, atol=0
        )
        assert not torch.allclose(tiny.embed(prompt, {"#new": -row}), tiny.embed(["a photo of a boot"]))
    row.requires_grad_()
    tiny.requires_grad_(False)
    tiny.embed(prompt, {"#new": row}).square().sum().backward()
    assert float(row.grad.abs().sum()) > 0
    assert all(p.grad is None for p in tiny.parameters())


def test_object_is_the_mean_of_the_class_words(tiny):
    before = tiny.state_dict()["text.table.weight"].clone()
    tiny.set_object_word()
    after = tiny.state_dict()["text.table.weight"]
    torch.testing.assert_close(after[4], before[5:8].mean(0))
    assert torch.equal(after[[0, 1, 2, 3, 5, 6, 7]], before[[0, 1, 2, 3, 5, 6, 7]])
    assert torch.equal(tiny.word_embedding("object"), after[4])
    with pytest.raises(ConfigError, match="no class words"):
        SmallDiffusion(TINY, (1, 8, 8), ["a photo"]).set_object_word()


@torch.no_grad()
def test_loss_is_the_error_of_the_noise_that_was_added(tiny):
    x, captions = images(6), [CAPTIONS[i % 2] for i in range(6)]
    found = tiny.loss(x, captions, rng(3), drop=0.5)
    draw = rng(3)
    t = torch.randint(1000, (6,), generator=draw)
    eps = torch.randn(6, 1, 8, 8, generator=draw)
    dropped = torch.rand(6, generator=draw) < 0.5
    assert 0 < int(dropped.sum()) < 6
    total = 0.0
    for i in range(6):
        bar = tiny.schedule.bar(int(t[i]))
        z = bar**0.5 * x[i : i + 1] + (1 - bar) ** 0.5 * eps[i : i + 1]
        context = tiny.embed(["" if dropped[i] else captions[i]])
        total += ((tiny.eps(z, t[i : i + 1], context) - eps[i : i + 1]) ** 2).mean().item() / 6
    assert found.item() == pytest.approx(total, rel=1e-4)
    assert float(tiny.loss(x, tiny.tokens(captions), rng(3), drop=0.5)) == float(found)
    assert float(tiny.loss(x, captions, rng(3), drop=0.0)) != float(found)
    # With every caption dropped they do not matter at all.
    assert float(tiny.loss(x, captions, rng(3), drop=1.0)) == float(
        tiny.loss(x, captions[::-1], rng(3), drop=1.0)
    )


@torch.no_grad()
def test_both_predictions_give_noise():
    velocity = model(dataclasses.replace(TINY, prediction="v_prediction"))
    plain = model()
    z, t = torch.randn(2, 1, 8, 8, generator=rng()), torch.tensor([700, 20])
    context = plain.embed(CAPTIONS)
    v = plain.eps(z, t, context)  # the same weights, read as a velocity
    torch.testing.assert_close(velocity.eps(z, t, context), velocity.schedule.noise_of_velocity(z, v, t))
    x, draw = images(1), rng(1)
    found = float(velocity.loss(x, CAPTIONS[:1], rng(1), drop=0))
    when = torch.randint(1000, (1,), generator=draw)
    eps = torch.randn(1, 1, 8, 8, generator=draw)
    z = velocity.schedule.add_noise(x, eps, when)
    v = plain.eps(z, when, plain.embed(CAPTIONS[:1]))
    assert found == pytest.approx(
        float(((v - velocity.schedule.velocity(x, eps, when)) ** 2).mean()), rel=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("config", [TINY, LATENT], ids=["pixels", "latents"])
def test_another_precision_keeps_latents_in_their_own(config, dtype):
    pipe, same = model(config, (3, 8, 8)), model(config, (3, 8, 8)).to(dtype)
    z = torch.randn(2, *pipe.latent_shape, generator=rng())
    with torch.no_grad():
        texts = [(p.embed(["a photo of a sneaker"]), p.embed([""])) for p in (pipe, same)]
        t = torch.tensor([3, 999])
        wanted, found = (
            p.eps(z, t, text.expand(2, -1, -1)) for p, (text, _) in zip((pipe, same), texts, strict=True)
        )
        assert found.dtype == z.dtype
        assert float((found - wanted).norm() / wanted.norm()) < 0.03
        assert float((wanted.flip(0) - wanted).norm() / wanted.norm()) > 0.3  # the control
        assert same.sample(z, *texts[1], 3.0, 2).dtype == z.dtype
        assert same.eps(z.to(dtype), t, texts[1][0].expand(2, -1, -1)).dtype == dtype


def test_gradients_reach_the_words_of_the_captions_and_no_others(tiny):
    tiny.loss(images(4), [CAPTIONS[0]] * 4, rng(), drop=0.0).backward()
    moved = tiny.text.table.weight.grad.abs().sum(1) > 0
    # Padding, a, photo, of, sneaker; not object, ankle, boot.
    assert moved.tolist() == [True, True, True, True, False, False, False, True]
    assert tiny.unet.conv_in.weight.grad is not None


def test_a_few_steps_lower_the_loss(tiny):
    x, captions, moved = images(8), list(CAPTIONS) * 4, list(tiny.parameters())
    losses = []
    for _ in range(25):  # signed steps in place of an optimiser, on the same noise each time
        loss = tiny.loss(x, captions, rng(0))
        losses.append(loss.item())
        with torch.no_grad():
            for p, g in zip(moved, torch.autograd.grad(loss, moved), strict=True):
                p -= 2e-3 * g.sign()
    assert min(losses[-5:]) < 0.7 * losses[0]


def test_pixel_space_is_the_image_itself(tiny):
    x = images(2)
    assert torch.equal(tiny.encode(x), x)
    assert torch.equal(tiny.decode(3 * x), (3 * x).clamp(-1, 1))
    with pytest.raises(ConfigError, match="pixels"):
        tiny.set_latent_scale(x)
    with pytest.raises(ConfigError, match="pixels"):
        tiny.autoencoder_loss(x, rng())


def test_latent_space_has_unit_variance_and_comes_back(latent):
    assert latent.latent_shape == (2, 4, 4)
    x = images(8, (3, 8, 8))
    before = latent.decode(latent.encode(x))
    latent.set_latent_scale(x)
    z = latent.encode(x)
    assert float(z.std()) == pytest.approx(1.0, abs=1e-4)
    assert torch.equal(z, latent.encode(x))
    torch.testing.assert_close(latent.decode(z), before, rtol=1e-4, atol=1e-5)
    raw = latent.vae.encode(x).latent_dist.mean.detach()
    torch.testing.assert_close(z, raw / raw.std())
    with pytest.raises(DataError, match="several different"):
        with torch.no_grad():
            latent.vae.quant_conv.weight.zero_()
            latent.vae.quant_conv.bias.zero_()
        latent.set_latent_scale(x)


def test_losses_of_latent_space_move_their_own_part(latent):
    x = images(4, (3, 8, 8))
    latent.loss(x, [CAPTIONS[0]] * 4, rng()).backward()
    assert all(p.grad is None for p in latent.vae.parameters())
    assert latent.unet.conv_in.weight.grad is not None
    latent.zero_grad()
    small, large = (latent.autoencoder_loss(x, rng(), kl_weight=w) for w in (0.0, 1.0))
    found = latent.vae.encode(x).latent_dist
    kl = found.kl().sum() / found.mean.numel()  # diffusers' own, summed over a latent
    torch.testing.assert_close(large - small, kl)
    large.backward()
    assert latent.vae.decoder.conv_out.weight.grad is not None
    assert all(p.grad is None for p in latent.unet.parameters())


@pytest.mark.parametrize(
    ("change", "shape", "message"),
    [
        ({"channels": (8, 12)}, (1, 8, 8), "multiples of 8"),
        ({"channels": ()}, (1, 8, 8), "at least one"),
        ({"channels": (8, 8, 8)}, (1, 30, 28), "multiples of 4"),
        ({"latent": SmallLatentConfig(channels=(8, 8, 8))}, (1, 28, 28), "multiples of 8"),
        ({"attention_levels": 3}, (1, 8, 8), r"1 \.\.\. 2"),
        ({"text_width": 9}, (1, 8, 8), "9 cannot be divided into 2 heads"),
        ({"schedule": "cosin"}, (1, 8, 8), 'Did you mean "cosine"'),
        ({"prediction": "x0"}, (1, 8, 8), "epsilon"),
        ({"times": 1}, (1, 8, 8), "times must be 2"),
        ({"times": 100_000}, (1, 8, 8), "100000 times the schedule scaled_linear ends in pure noise"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, shape, message):
    with pytest.raises(ConfigError, match=message):
        SmallDiffusion(dataclasses.replace(TINY, **change), shape, CAPTIONS)


def test_other_images_and_captions_are_refused(tiny):
    for call in (tiny.encode, lambda x: tiny.loss(x, CAPTIONS, rng())):
        with pytest.raises(ShapeError, match=r"\(B, 1, 8, 8\)"):
            call(images(2, (1, 16, 16)))
    with pytest.raises(ShapeError, match="3 images need captions"):
        tiny.loss(images(3), CAPTIONS, rng())
    with pytest.raises(ConfigError, match="drop"):
        tiny.loss(images(2), CAPTIONS, rng(), drop=1.5)
    for settings in ({}, tiny.settings() | {"image_shape": [1]}):
        with pytest.raises(ConfigError, match="incomplete"):
            SmallDiffusion.from_settings(settings)


def test_missing_diffusers_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingDependencyError, match=r"fewgen\[diffusion\]"):
        model()
