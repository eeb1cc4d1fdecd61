import dataclasses
import json
import math
import struct
from dataclasses import asdict

import pytest
import torch
from tests.diffusion.toy import LENGTH, SHAPE, WIDTH, Toy, cat, supports

from fewgen.diffusion.inversion import (
    ddim_invert,
    null_text_inversion,
    reconstruct,
    textual_inversion,
)
from fewgen.diffusion.noising import start_steps
from fewgen.diffusion.settings import NullTextConfig, SpecialiseConfig, TextualConfig
from fewgen.diffusion.small import SmallDiffusion, SmallDiffusionConfig
from fewgen.diffusion.specialisation import (
    Specialisation,
    choose_alphas,
    choose_supports,
    generate,
    specialise,
)
from fewgen.errors import CheckpointError, ConfigError, DataError, ShapeError, TextError
from fewgen.generation import image_seeds, noise

STEPS, SCALE = 6, 3.0


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def made():
    """Of the class "cat", from three images, with the exact word: u, z_T and the images' latents."""
    pipe = Toy()
    z0 = supports(3)
    context = cat(pipe)
    pivots = ddim_invert(pipe, z0, context, STEPS)
    u = null_text_inversion(pipe, pivots, context, SCALE, NullTextConfig(lr=0.05))
    word = pipe.word_embedding("cat")
    return (
        pipe,
        z0,
        Specialisation(
            "felis", "a photo of an #object", word, pivots[-1], u, pipe.model_id, SCALE, STEPS, {"lr": 0.05}
        ),
    )


def changed(specialisation, **values):
    return dataclasses.replace(specialisation, **values)


# ------------------------------------------------------------------------------------------------ generating


def test_alpha_0_gives_the_reconstruction_of_a_support_image(made):
    pipe, z0, spec = made
    seeds = image_seeds(4, 12)
    which = choose_supports(seeds, 3)
    assert len(which.unique()) == 3
    rebuilt = pipe.decode(reconstruct(pipe, spec.z_T, spec.context(pipe), spec.u, SCALE, STEPS)).float()
    images = generate(pipe, spec, seeds, 0.0)
    assert torch.allclose(images, rebuilt[which], atol=1e-6)
    assert (images - pipe.decode(z0)[which]).square().mean() < 0.01
    # the control: at alpha 1 they are others
    assert not torch.allclose(generate(pipe, spec, seeds, 1.0), rebuilt[which], atol=0.1)


def test_alpha_1_starts_from_the_noise_alone_but_keeps_the_null_texts(made):
    pipe, _, spec = made
    seeds = torch.tensor([7, 8, 9])
    which = choose_supports(seeds, 3)
    expected = reconstruct(pipe, noise(seeds, SHAPE), spec.context(pipe), spec.u[:, which], SCALE, STEPS)
    assert torch.allclose(generate(pipe, spec, seeds), pipe.decode(expected).float(), atol=1e-6)
    other = changed(spec, z_T=spec.z_T.flip(0) * 2)
    assert torch.equal(generate(pipe, other, seeds), generate(pipe, spec, seeds))
    plain = generate(pipe, changed(spec, u=None), seeds)
    assert not torch.allclose(plain, generate(pipe, spec, seeds), atol=1e-3)
    word_alone = changed(spec, u=None, z_T=None)
    assert torch.allclose(generate(pipe, word_alone, seeds), plain, atol=1e-9)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, "uniform"])
def test_an_image_depends_on_its_own_seed_alone(made, alpha):
    pipe, _, spec = made
    seeds = torch.tensor([5, 1, 900, 3, 2])
    together = generate(pipe, spec, seeds, alpha)
    assert together.shape == (5, *SHAPE)
    assert together.dtype == torch.float32
    assert torch.equal(together, generate(pipe, spec, seeds, alpha))
    assert torch.allclose(generate(pipe, spec, seeds.flip(0), alpha).flip(0), together, atol=1e-7)
    assert torch.allclose(generate(pipe, spec, seeds, alpha, batch=2), together, atol=1e-7)
    assert torch.allclose(generate(pipe, spec, [900], alpha), together[2:3], atol=1e-7)


def test_calls_are_no_larger_than_the_batch_with_two_rows_each(made):
    pipe, _, spec = made
    pipe.calls.clear()
    generate(pipe, spec, 7, 0.5, batch=3)
    assert max(pipe.calls) == 6


def test_a_number_of_images_means_the_first_seeds(made):
    pipe, _, spec = made
    assert torch.equal(generate(pipe, spec, 3), generate(pipe, spec, image_seeds(0, 3)))
    assert generate(pipe, spec, 0).shape == (0, *SHAPE)


def test_support_images_are_chosen_uniformly():
    counts = torch.bincount(choose_supports(torch.arange(50_000), 5), minlength=5)
    chi_square = ((counts - 10_000).double().square() / 10_000).sum()
    assert len(counts) == 5
    assert chi_square < 18.5  # 0.1 % of uniform draws exceed it
    alone = choose_supports(torch.tensor([31_415]), 5)
    assert alone == choose_supports(torch.arange(50_000), 5)[31_415]


def test_support_alpha_start_and_noise_are_drawn_apart():
    seeds = torch.arange(20_000)
    drawn = torch.stack(
        [
            choose_supports(seeds, 20_000).double(),
            choose_alphas("uniform", seeds),
            start_steps(seeds, 20_000).double(),
            *noise(seeds, (2,)).double().T,
        ]
    )
    correlated = torch.corrcoef(drawn) - torch.eye(5, dtype=torch.float64)
    assert correlated.abs().max() < 0.03  # four standard errors
    assert 0 <= drawn[1].min() < 0.001
    assert 0.999 < drawn[1].max() < 1


def test_drawn_alphas_lie_between_the_ends(made):
    pipe, _, spec = made
    seeds = image_seeds(0, 200)
    distance = (
        (generate(pipe, spec, seeds, "uniform") - generate(pipe, spec, seeds, 1.0)).abs().amax((1, 2, 3))
    )
    zero = (generate(pipe, spec, seeds, 0.0) - generate(pipe, spec, seeds, 1.0)).abs().amax((1, 2, 3))
    assert 0.05 * zero.mean() < distance.mean() < 0.95 * zero.mean()
    assert distance.std() > 0


def test_images_can_be_resized(made):
    pipe, _, spec = made
    whole = generate(pipe, spec, 4)
    half = generate(pipe, spec, 4, size=(2, 2))
    assert half.shape == (4, 1, 2, 2)
    # a triangle as wide as two of the large pixels on each side, cut off at the border
    weights = torch.tensor([[3.0, 3.0, 1.0, 0.0], [0.0, 1.0, 3.0, 3.0]]) / 7
    assert torch.allclose(half, weights @ whole @ weights.T, atol=1e-5)
    assert generate(pipe, spec, 4, size=(5, 7)).shape == (4, 1, 5, 7)


def test_what_does_not_fit_is_refused_when_generating(made):
    pipe, _, spec = made
    with pytest.raises(ConfigError, match=r"\[0, 1\]"):
        generate(pipe, spec, 2, 1.5)
    for alpha, message in (("half", '"half"'), (None, "got None"), (True, "got True")):
        with pytest.raises(ConfigError, match=message):
            generate(pipe, spec, 2, alpha)
    with pytest.raises(CheckpointError, match='"toy-0", and this is the model "toy-1"'):
        generate(Toy(seed=1), spec, 2)
    with pytest.raises(ConfigError, match=r"at alpha 1 only; got 0\.5"):
        generate(pipe, changed(spec, z_T=None, u=None), 2, 0.5)
    with pytest.raises(ConfigError, match="batch"):
        generate(pipe, spec, 2, batch=0)
    with pytest.raises(ConfigError, match="0 or more, got -1"):
        generate(pipe, spec, -1)
    with pytest.raises(ShapeError, match=r"Seeds must be \(N,\)"):
        generate(pipe, spec, torch.zeros(2, 2, dtype=torch.int64))
    for each in (spec, changed(spec, z_T=None, u=None)):
        with pytest.raises(ConfigError, match="interp, gaussian, none"):
            generate(pipe, each, 2, norm_mode="unit")


# ---------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("parts", ["all", "no null texts", "word alone"])
def test_a_saved_specialisation_gives_identical_images(made, tmp_path, parts):
    pipe, _, spec = made
    if parts != "all":
        spec = changed(spec, u=None, z_T=None if parts == "word alone" else spec.z_T)
    file = tmp_path / "felis.safetensors"
    spec.save(file)
    loaded = Specialisation.load(file, Toy())
    loaded.check(Toy(), guidance_scale=SCALE, steps=STEPS)
    assert torch.equal(generate(pipe, loaded, 4), generate(pipe, spec, 4))
    for name in ("class_name", "prompt", "model_id", "guidance_scale", "steps", "settings"):
        assert getattr(loaded, name) == getattr(spec, name)
    before = file.read_bytes()
    loaded.save(file)
    assert file.read_bytes() == before


def test_another_model_scale_or_number_of_steps_is_refused_naming_both(made, tmp_path):
    pipe, _, spec = made
    file = tmp_path / "felis.safetensors"
    spec.save(file)
    with pytest.raises(CheckpointError, match='model "toy-0", and this is the model "toy-1"'):
        Specialisation.load(file, Toy(seed=1))
    with pytest.raises(ConfigError, match=r"guidance scale 3, not 7\.5"):
        Specialisation.load(file, pipe).check(pipe, guidance_scale=7.5)
    with pytest.raises(ConfigError, match="with 6 steps, not 50"):
        Specialisation.load(file, pipe).check(pipe, steps=50)


def test_files_that_are_no_specialisation_are_refused(made, tmp_path):
    pipe, _, spec = made
    file = tmp_path / "felis.safetensors"
    with pytest.raises(CheckpointError, match="cannot be read"):
        Specialisation.load(file, pipe)
    spec.save(file)
    whole = file.read_bytes()
    file.write_bytes(whole[:-8])
    with pytest.raises(CheckpointError, match="truncated"):
        Specialisation.load(file, pipe)

    def rewritten(change):
        (length,) = struct.unpack("<Q", whole[:8])
        header = json.loads(whole[8 : 8 + length])
        change(header["__metadata__"])
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        file.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])
        return file

    def about(**values):
        def change(metadata):
            metadata["specialisation"] = json.dumps(json.loads(metadata["specialisation"]) | values)

        return change

    assert Specialisation.load(rewritten(about()), pipe).steps == STEPS
    for change, message in (
        (lambda m: m.update(format="fewgen-model"), "not a specialisation"),
        (lambda m: m.update(format_version="2"), "Update fewgen"),
        (lambda m: m.update(specialisation="{"), "damaged"),
        (about(steps=7), "damaged"),
        (about(scale="much"), "damaged"),
        (about(prompt="a photo"), "damaged"),
        (about(model_id=3), "damaged"),
        (about(settings=[]), "damaged"),
        (about(steps="6"), "damaged"),
        (about(steps=6.5), "damaged"),
        (about(steps=True), "damaged"),
        (about(scale=True), "damaged"),
        (about(scale=math.nan), "damaged"),
        (about(prompt="a photo of an #object #object"), "damaged"),
    ):
        with pytest.raises(CheckpointError, match=message):
            Specialisation.load(rewritten(change), pipe)


def test_parts_that_do_not_fit_each_other_are_refused(made):
    pipe, _, spec = made
    with pytest.raises(ShapeError, match="S = 6 and K = 3"):
        changed(spec, u=spec.u[:, :2])
    with pytest.raises(ShapeError, match="K = None"):
        changed(spec, z_T=None)
    with pytest.raises(ShapeError, match="z_T"):
        changed(spec, z_T=spec.z_T[:0])
    with pytest.raises(ShapeError, match="D_in"):
        changed(spec, embedding=spec.embedding[None])
    with pytest.raises(ConfigError, match="placeholder"):
        changed(spec, prompt="a photo of an object")
    with pytest.raises(ConfigError, match="steps 1 or more"):
        changed(spec, steps=0, u=None)
    with pytest.raises(DataError, match="embedding of the specialisation to 'felis'"):
        changed(spec, embedding=spec.embedding * math.nan)
    with pytest.raises(DataError, match=r"z_T .* must be floating point, got torch\.int64"):
        changed(spec, z_T=spec.z_T.long())
    with pytest.raises(ShapeError, match="a word of 3 numbers; the model has 16"):
        changed(spec, embedding=spec.embedding[:3]).check(pipe)
    with pytest.raises(ConfigError, match="between 1 and 1000, got 1001"):
        changed(spec, steps=1001, u=None).check(pipe)
    with pytest.raises(ShapeError, match="latents"):
        changed(spec, z_T=spec.z_T[..., :2]).check(pipe)
    with pytest.raises(ShapeError, match="null texts"):
        changed(spec, u=spec.u[:, :, :2]).check(pipe)
    with pytest.raises(ConfigError, match="JSON values"):
        changed(spec, settings={"lr": math.nan}).save("never.safetensors")


# ---------------------------------------------------------------------------------------------- specialising


def images(k, word="cat", seed=0):
    pipe = Toy()
    return pipe.decode(supports(k, seed, word)).float()


TEXTUAL = {"steps": 20, "batch_size": 4, "lr": 0.02}


def settings(**changed):
    """How the toy is specialised in these tests; parts of a section leave the others of it as they are."""
    sections = {
        "textual": TextualConfig(**{**TEXTUAL, **changed.pop("textual", {})}),
        "null_text": NullTextConfig(**{"lr": 0.01, **changed.pop("null_text", {})}),
    }
    return SpecialiseConfig(**{"guidance_scale": SCALE, "steps": STEPS, "batch": 8, **sections, **changed})


def test_specialising_is_the_three_searches_in_a_row():
    pipe = Toy()
    told = []
    classes = [images(2), images(3, "dog", 1)]
    specs = specialise(
        pipe,
        classes,
        ["felis", "canis"],
        settings(null_text={"inner_steps": 2}, batch=2),
        rng=rng(),
        progress=lambda text, _: told.append(text),
    )
    latents = [pipe.encode(x.double()) for x in classes]
    learned = textual_inversion(pipe, latents, TextualConfig(**TEXTUAL), rng=rng())
    for i, (spec, z0) in enumerate(zip(specs, latents, strict=True)):
        assert torch.allclose(spec.embedding, learned.embedding[i], atol=1e-12)
        pivots = ddim_invert(pipe, z0, spec.context(pipe), STEPS)
        config = NullTextConfig(inner_steps=2, lr=0.01)
        u = null_text_inversion(pipe, pivots, spec.context(pipe), SCALE, config)
        assert torch.allclose(spec.z_T, pivots[-1], atol=1e-9)
        assert torch.allclose(spec.u, u, atol=1e-7)
        assert spec.rms.shape == (len(z0),)
        assert spec.settings["textual_inversion"] == asdict(TextualConfig(**TEXTUAL))
    assert [spec.class_name for spec in specs] == ["felis", "canis"]
    assert {text.split(":")[0] for text in told} == {
        "textual inversion",
        "DDIM inversion",
        "null-text inversion",
    }
    assert max(pipe.calls) <= 8  # textual inversion: two classes of four


def test_images_are_fitted_before_they_are_encoded():
    pipe = Toy()
    flat = torch.full((2, 1, 3, 3), 0.5)
    (spec,) = specialise(pipe, [flat], ["grey"], settings(), rng=rng())
    same = ddim_invert(pipe, torch.full((1, *SHAPE), 0.45).double(), spec.context(pipe), STEPS)[-1]
    assert torch.allclose(spec.z_T, same.expand(2, -1, -1, -1), atol=1e-6)
    assert spec.embedding.shape == (WIDTH,)
    assert spec.context(pipe).shape == (1, LENGTH, WIDTH)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"class_names": ["felis"]}, ConfigError, "2 groups of images for 1"),
        ({"images": [], "class_names": []}, ConfigError, "0 groups"),
        ({"prompt": "a photo"}, ConfigError, "placeholder"),
        ({"prompt": "a violin of an #object"}, TextError, "violin"),
        ({"prompt": "a photo of a photo of an #object"}, TextError, "8 places; this model has 6"),
        ({"steps": 0}, ConfigError, "steps must be 1 or more, got 0"),
        ({"steps": 1001}, ConfigError, "steps must be between 1 and 1000"),
        ({"dequant_t": -1}, ConfigError, "dequant_t"),
        ({"dequant_t": 999}, ConfigError, "dequant_t"),
        ({"guidance_scale": math.nan}, ConfigError, "guidance_scale must be 0 or more, got nan"),
        ({"batch": 0}, ConfigError, "batch must be 1 or more, got 0"),
        ({"batch": -1}, ConfigError, "batch must be 1 or more, got -1"),
        ({"null_text": {"schedule": "linear"}}, ConfigError, "published"),
        ({"null_text": {"lr": math.inf}}, ConfigError, "null_text.lr must be 1e-08 or more, got inf"),
        ({"textual": {"init_word": "violin"}}, ConfigError, "embedding to start from"),
        ({"textual": {"t_min": 1000}}, ConfigError, "t_min"),
        ({"textual": {"lr": math.nan}}, ConfigError, "textual.lr must be 1e-08 or more, got nan"),
        (
            {"textual": {"weight_decay": math.inf}},
            ConfigError,
            "textual.weight_decay must be 0 or more, got inf",
        ),
        ({"second": torch.zeros(2, 3, 4, 4)}, ShapeError, r"Images must be \(K, 1, H, W\)"),
        ({"second": torch.zeros(0, 1, 4, 4)}, ShapeError, r"Images must be \(K, 1, H, W\)"),
        ({"second": torch.zeros(2, 1, 0, 4)}, ShapeError, r"Images must be \(K, 1, H, W\)"),
        ({"second": torch.full((2, 1, 4, 4), math.nan)}, DataError, "finite"),
        ({"second": torch.full((2, 1, 4, 4), 255.0)}, DataError, r"\[-1, 1\].*255"),
        ({"second": torch.zeros(2, 1, 4, 4, dtype=torch.uint8)}, DataError, "floating point"),
    ],
    ids=str,
)
def test_bad_input_of_specialising_is_refused_before_any_work(change, error, message):
    change = dict(change)
    pipe, second = Toy(), change.pop("second", images(2))
    given = change.pop("images", [images(2), second]), change.pop("class_names", ["felis", "canis"])
    with pytest.raises(error, match=message):
        specialise(pipe, *given, settings(**change), rng=rng())
    assert not pipe.calls


def test_one_image_of_one_class_is_enough():
    pipe = Toy()
    (spec,) = specialise(
        pipe, [images(1)], ["felis"], settings(guidance_scale=0.0, steps=1, batch=1, dequant_t=998), rng=rng()
    )
    assert spec.u.shape == (1, 1, LENGTH, WIDTH)
    assert generate(pipe, spec, 3, 0.5, batch=1).shape == (3, *SHAPE)


def test_a_small_diffusion_model_can_be_specialised(tmp_path):
    torch.manual_seed(0)
    config = SmallDiffusionConfig(channels=(8, 8), attention_levels=1, heads=2, text_width=8, text_layers=1)
    pipe = SmallDiffusion(config, (1, 8, 8), ["a photo of a cat", "a photo of a dog"]).eval()
    pipe.set_object_word()
    classes = [
        torch.rand(2, 1, 8, 8, generator=rng()) * 2 - 1,
        torch.rand(1, 1, 8, 8, generator=rng(1)) * 2 - 1,
    ]
    before = pipe.model_id
    specs = specialise(
        pipe,
        classes,
        ["felis", "canis"],
        settings(
            steps=4,
            textual={"steps": 3, "lr": 0.1, "batch_size": 1},
            null_text={"inner_steps": 2, "tol": 0.0, "lr": 0.1},
        ),
        rng=rng(),
    )
    assert pipe.model_id == before
    null = pipe.embed([""])
    assert not torch.allclose(specs[0].u[-1, 0], null[0], atol=1e-3)
    assert not torch.allclose(specs[0].embedding, specs[1].embedding, atol=1e-3)
    specs[0].save(tmp_path / "felis.safetensors")
    loaded = Specialisation.load(tmp_path / "felis.safetensors", pipe)
    assert torch.equal(generate(pipe, loaded, 2, 0.5), generate(pipe, specs[0], 2, 0.5))
    with torch.no_grad():
        pipe.text.places += 1.0
    with pytest.raises(CheckpointError, match=before):
        Specialisation.load(tmp_path / "felis.safetensors", pipe)
