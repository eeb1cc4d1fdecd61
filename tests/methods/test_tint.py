"""TINT as a method: training, generation over alpha, its model file, and bad input."""

from __future__ import annotations

import dataclasses
import json
import shutil
from fnmatch import fnmatch

import pytest
import torch
from PIL import Image
from tests.diffusion.test_stable import written  # noqa: F401 - a fixture
from tests.reference.naive_inversion import sample_with_null_texts

import fewgen
from fewgen.cli.main import main
from fewgen.config import resolve
from fewgen.data import ImageSet, to_uint8
from fewgen.diffusion import specialisation as parts
from fewgen.diffusion.inversion import reconstruct
from fewgen.diffusion.small import SmallDiffusionConfig
from fewgen.errors import CheckpointError, ConfigError, FewgenError, TextError
from fewgen.generation import GenerationRequest, image_seeds, noise
from fewgen.methods import DataSpec, load_method
from fewgen.methods.diffusion import Diffusion, DiffusionConfig
from fewgen.methods.tint import Tint, TintConfig

NAMES = ("cat", "dog")
SETTINGS = {"steps": 4, "textual": {"steps": 6, "batch_size": 2}, "guidance_scale": 3.0, "batch": 4}
QUIET = {"report": False, "progress": False}


def pictures(counts=(3, 2), size=8, channels=1, seed=0):
    """Bright or dark ground with some noise, so that classes differ."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.tensor([c for c, n in enumerate(counts) for _ in range(n)])
    ground = 60 + 130 * labels.reshape(-1, 1, 1, 1)
    noisy = torch.randint(0, 60, (len(labels), channels, size, size), generator=rng)
    return ImageSet((ground + noisy).to(torch.uint8), labels, NAMES[: len(counts)], name="toy")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Run folder of a tiny diffusion model, trained for a moment."""
    network = SmallDiffusionConfig(channels=(8, 8), attention_levels=1, heads=2, text_width=8, text_layers=1)
    torch.manual_seed(0)
    method = Diffusion(DiffusionConfig(network=network), DataSpec(1, 8, 8, ("day", "night")))
    images, rng = pictures((16, 16)).floats(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(method.pipe.parameters(), 0.05, momentum=0.9)
    for _ in range(40):
        optimizer.zero_grad()
        method.pipe.loss(images, method.tokens[pictures((16, 16)).labels], rng).backward()
        optimizer.step()
    method.pipe.set_object_word()
    folder = tmp_path_factory.mktemp("base") / "run"
    folder.mkdir()
    method.save(folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    out = tmp_path_factory.mktemp("tint") / "run"
    return fewgen.train("tint", data=pictures(), out=out, model={"base": str(base), **SETTINGS}, **QUIET)


@pytest.fixture(scope="module")
def method(run):
    return run.method


def train(out, base, data=None, **model):
    data = pictures() if data is None else data
    return fewgen.train(
        "tint", data=data, out=out, model={"base": base and str(base), **SETTINGS, **model}, **QUIET
    )


def draw(method, labels=(0, 1, 0), seeds=None, **options):
    seeds = image_seeds(0, len(labels)) if seeds is None else torch.tensor(seeds)
    return method.generate(GenerationRequest(labels=torch.tensor(labels), seeds=seeds, options=options))


# ---------------------------------------------------------------------------------------- training


def test_only_the_words_move_and_the_log_says_how_well_images_come_back(run, base, method):
    before = load_method(base).pipe.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in method.pipe.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in method.pipe.parameters())
    start = method.pipe.word_embedding("object")
    assert bool((method.words.embedding != start).any(1).all())
    assert not torch.equal(*method.words.embedding)
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    (result,) = [line for line in lines if line["kind"] == "result"]
    errors = [result[f"reconstruction_error/{name}"] for name in ("with_null_text", "without_null_text")]
    assert 0 < errors[0] < errors[1]
    assert 0 < result["rms_z_T/lowest"] <= result["rms_z_T/mean"] <= result["rms_z_T/highest"]
    for part in ("textual_inversion", "null_text_inversion", "generation"):
        assert result[f"seconds_per_image/{part}"] > 0
    preview = next((run.path / "previews").glob("*final.png"))
    assert Image.open(preview).size == (6 * 8, 2 * 8)  # real and five alphas; a row per class


def test_first_step_is_that_of_a_word_alone(base, tmp_path):
    """Adam's first step has length lr in the direction of the gradient, whatever other classes do."""
    both = train(tmp_path / "a", base, textual={"steps": 1, "lr": 0.5}).method.words.embedding
    start = load_method(base).pipe.word_embedding("object")
    assert (both - start).abs().detach().numpy() == pytest.approx(0.5, abs=1e-3)


def test_times_below_the_limit_are_never_shown(base, tmp_path, monkeypatch):
    from fewgen.methods.tint import model

    seen, own = [], model.word_gradient

    def spy(pipe, prompt, embedding, z0, classes, t, noise, **more):
        seen.append((t.min().item(), torch.bincount(classes).tolist(), len(z0)))
        return own(pipe, prompt, embedding, z0, classes, t, noise, **more)

    monkeypatch.setattr(model, "word_gradient", spy)
    train(tmp_path / "a", base, textual={"steps": 8, "batch_size": 3, "t_min": 900})
    assert min(t for t, _, _ in seen) >= 900
    assert all(counts == [3, 3] for _, counts, _ in seen)  # classes of 3 and 2 images


def test_settings_reach_the_searches_and_generation(base, tmp_path, monkeypatch):
    from fewgen.methods.tint import model

    seen = {}

    def spied(name):
        own = getattr(model, name)

        def spy(*arguments, **keywords):
            seen[name] = (arguments, keywords)
            return own(*arguments, **keywords)

        monkeypatch.setattr(model, name, spy)

    for name in ("word_gradient", "find_latents", "draw"):
        spied(name)
    null_text = {"inner_steps": 2, "lr": 0.02, "tol": 1e-4, "schedule": "published"}
    settings = {"null_text": null_text, "dequant_t": 90, "norm_mode": "gaussian", "batch": 3, "alpha": 0.25}
    found = train(tmp_path / "run", base, **settings).method
    assert seen["word_gradient"][1]["batch"] == 3
    arguments, keywords = seen["find_latents"]
    given = arguments[3]
    assert (given.guidance_scale, given.steps, dataclasses.asdict(given.null_text)) == (3.0, 4, null_text)
    assert (given.dequant_t, given.batch, keywords["correct"]) == (90, 3, True)
    draw(found)
    arguments, keywords = seen["draw"]
    wanted = {"guidance_scale": 3.0, "steps": 4, "norm_mode": "gaussian", "temperature": 1.0, "batch": 3}
    assert {name: keywords[name] for name in wanted} == wanted
    assert set(arguments[5].tolist()) == {0.25}
    draw(found, norm_mode="none", alpha=0.5)
    assert seen["draw"][1]["norm_mode"] == "none"
    textual = {"steps": 7, "batch_size": 3, "lr": 0.02, "weight_decay": 0.5}
    config = resolve(TintConfig, {**SETTINGS, "base": str(base), "textual": textual})
    (stage,) = Tint(config, found.spec).stages(pictures(), None)
    assert (stage.steps, stage.batch_size) == (7, 3 * len(NAMES))
    assert (stage.phases[0].lr, stage.phases[0].weight_decay) == (0.02, 0.5)
    bare = train(tmp_path / "bare", base, correct=False).method
    assert seen["find_latents"][1]["correct"] is False
    assert not hasattr(bare, "u")


def test_a_stopped_or_killed_run_ends_as_an_unbroken_one(base, tmp_path, monkeypatch):
    training = {"checkpoint_every": 2}

    def again(out):
        return train_with(out, base, training)

    whole = again(tmp_path / "whole").method.state_dict()
    with monkeypatch.context() as patch:
        patch.setattr(Tint, "_find", killed)
        with pytest.raises(KeyboardInterrupt):
            again(tmp_path / "in_inversion")
    with monkeypatch.context() as patch:
        patch.setattr(Tint, "_step", killed_after(3, Tint._step))
        with pytest.raises(KeyboardInterrupt):
            again(tmp_path / "in_words")
    steps = []
    monkeypatch.setattr(Tint, "_step", counted(steps, Tint._step))
    for name, left in (("in_inversion", 0), ("in_words", 4)):
        steps.clear()
        found = again(tmp_path / name).method.state_dict()
        assert len(steps) == left
        assert all(torch.equal(value, whole[key]) for key, value in found.items())


def train_with(out, base, training):
    model = {"base": str(base), **SETTINGS}
    return fewgen.train("tint", data=pictures(), out=out, model=model, training=training, **QUIET)


def killed(*_):
    raise KeyboardInterrupt


def killed_after(n, function):
    calls = []

    def step(*arguments):
        calls.append(1)
        if len(calls) > n:
            raise KeyboardInterrupt
        return function(*arguments)

    return step


def counted(calls, function):
    def step(*arguments):
        calls.append(1)
        return function(*arguments)

    return step


def test_another_base_in_the_same_place_does_not_continue_a_run(base, tmp_path, monkeypatch):
    place = shutil.copytree(base, tmp_path / "base")
    with monkeypatch.context() as patch:
        patch.setattr(Tint, "_find", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run", place)
    other = load_method(place)
    other.pipe.text.table.weight.data[1] += 1
    other.save(place / "model.safetensors")
    with pytest.raises(ConfigError, match="has changed since this run was started"):
        train(tmp_path / "run", place)


# -------------------------------------------------------------------------------------- generation


@torch.no_grad()
def slowly(pipe, z_T, cond, nulls):
    def predict(z, t, context):
        z = torch.as_tensor(z, dtype=torch.float32)[None]
        return pipe.eps(z, torch.tensor([t]), context[None])[0].numpy()

    bars = pipe.schedule.alphas_cumprod.tolist()
    times = [999, 749, 499, 249]
    return sample_with_null_texts(predict, z_T.numpy(), cond, nulls, 3.0, bars, times)


def test_alpha_0_gives_the_null_text_reconstruction_back(method):
    labels, seeds = torch.tensor([0, 1, 0, 0]), image_seeds(0, 4)
    rows = method._rows(labels, seeds)
    contexts = method._contexts()[labels]
    z0 = reconstruct(method.pipe, method.z_T[rows], contexts, method.u[:, rows], 3.0, 4)
    made = draw(method, labels.tolist(), alpha=0.0)
    assert torch.equal(made.images, to_uint8(method.pipe.decode(z0)))
    slow = torch.as_tensor(slowly(method.pipe, method.z_T[rows[0]], contexts[0], method.u[:, rows[0]]))
    assert (made.images[0].int() - to_uint8(slow).int()).abs().max() <= 1
    real = method.starts(labels, seeds)
    far = draw(method, labels.tolist(), alpha=1.0).images
    errors = [(images.float() - real.float()).square().mean() for images in (made.images, far)]
    assert errors[0] < errors[1]
    assert made.provenance["supports"] == (rows - torch.tensor([0, 3])[labels] * (labels > 0)).tolist()


def test_start_is_the_noise_at_1_and_in_between_has_the_norm_in_between(method, monkeypatch):
    seen, own = [], parts.reconstruct

    def spy(pipe, z_T, *rest, **more):
        seen.append(z_T.clone())
        return own(pipe, z_T, *rest, **more)

    monkeypatch.setattr(parts, "reconstruct", spy)
    seeds = image_seeds(0, 16)
    labels = torch.zeros(16, dtype=torch.int64)
    fresh = noise(seeds, method.pipe.latent_shape)
    own_z = method.z_T[method._rows(labels, seeds)]
    for alpha in (0.0, 0.25, 0.5, 1.0):
        seen.clear()
        method.sample(None, labels, seeds, 1.0, alpha=alpha)
        norms = [z.flatten(1).norm(dim=1) for z in (torch.cat(seen), own_z, fresh)]
        assert torch.allclose(norms[0], (1 - alpha) * norms[1] + alpha * norms[2], rtol=1e-5)
        if alpha in (0.0, 1.0):
            assert torch.allclose(torch.cat(seen), fresh if alpha else own_z, atol=1e-6)


def test_an_image_is_its_seeds_alone(method):
    every = draw(method, [0, 1, 0, 1, 1] * 4, alpha="uniform")
    for i in (0, 7, 19):
        alone = draw(method, [int(every.labels[i])], [int(every.seeds[i])], alpha="uniform")
        assert torch.equal(alone.images[0], every.images[i])
    assert not torch.equal(draw(method, [0], [5]).images, draw(method, [0], [6]).images)


def test_alpha_and_null_texts_matter_and_supports_are_chosen_evenly(method):
    base = draw(method, alpha=1.0).images
    assert not torch.equal(draw(method, alpha=0.9).images, base)
    assert torch.equal(draw(method).images, base)  # 1 is the default
    bare = Tint.of(method.pipe, [dataclasses.replace(s, u=None) for s in method.specialisations()])
    assert not torch.equal(draw(bare, alpha=1.0).images, base)
    counts = torch.bincount(method._places(torch.zeros(3000, dtype=torch.int64), image_seeds(0, 3000)))
    assert len(counts) == 3
    assert (counts - 1000).abs().max() < 120


def test_temperature_0_is_the_same_for_every_seed(method):
    for alpha in (1.0, 0.5):
        request = GenerationRequest(
            labels=torch.zeros(8, dtype=torch.int64),
            seeds=image_seeds(0, 8),
            temperature=0.0,
            options={"alpha": alpha},
        )
        made = method.generate(request)
        first = made.provenance["supports"].index(made.provenance["supports"][0])
        same = [i for i, k in enumerate(made.provenance["supports"]) if k == made.provenance["supports"][0]]
        assert len(same) > 1
        assert all(torch.equal(made.images[i], made.images[first]) for i in same)


# ---------------------------------------------------------------------------------- the model file


def test_the_file_needs_no_base_and_is_checked_without_memory(run, method, tmp_path):
    copied = shutil.copy(run.path / "model.safetensors", tmp_path / "alone.safetensors")
    again = load_method(copied)
    assert torch.equal(draw(again, alpha=0.5).images, draw(method, alpha=0.5).images)
    assert again.config == method.config
    with torch.device("meta"):
        built = Tint(method.config, method.spec)
    assert {name: t.shape for name, t in built.state_dict().items()} == {
        name: t.shape for name, t in method.state_dict().items()
    }
    assert built.words.embedding.device.type == "meta"


def test_specialisations_and_the_method_draw_the_same(method, tmp_path):
    found = method.specialisations()
    assert [s.class_name for s in found] == list(NAMES)
    assert [len(s.z_T) for s in found] == [3, 2]
    found[0].save(tmp_path / "cat.safetensors")
    loaded = parts.Specialisation.load(tmp_path / "cat.safetensors", method.pipe)
    seeds = image_seeds(0, 3)
    alone = parts.generate(method.pipe, loaded, seeds, 0.5)
    mine = draw(method, [0, 0, 0], alpha=0.5).images
    assert (to_uint8(alone).int() - mine.int()).abs().max() <= 1
    rebuilt = Tint.of(method.pipe, [loaded, found[1]])
    rebuilt.save(tmp_path / "rebuilt.safetensors")
    again = load_method(tmp_path / "rebuilt.safetensors")
    assert torch.equal(draw(again, alpha=0.5).images, draw(rebuilt, alpha=0.5).images)
    assert (draw(again, [0, 0, 0], alpha=0.5).images.int() - mine.int()).abs().max() <= 1
    with pytest.raises(ConfigError, match="guidance scale 3, not 5"):
        Tint.of(method.pipe, [dataclasses.replace(found[0], guidance_scale=5.0), found[1]])
    for note in ("much", None, 1.5, True):
        odd = [dataclasses.replace(found[0], settings={"dequant_t": note}), found[1]]
        assert Tint.of(method.pipe, odd).config.dequant_t == 0
    with pytest.raises(ConfigError, match="Make them together"):
        Tint.of(method.pipe, [found[0], dataclasses.replace(found[1], u=None)])
    with pytest.raises(CheckpointError, match="made with the model"):
        Tint.of(method.pipe, [dataclasses.replace(found[0], model_id="other")])


# --------------------------------------------------------------------------------- other settings


def test_words_alone_draw_at_alpha_1_only(base, tmp_path):
    run = train(tmp_path / "a", base, invert=False)
    assert run.method.specialisations()[0].z_T is None
    assert len(draw(run.method)) == 3
    with pytest.raises(ConfigError, match="words alone"):
        draw(run.method, alpha=0.5)
    with pytest.raises(ConfigError, match="start from noise"):
        run.method.starts(torch.tensor([0]), torch.tensor([0]))
    assert "supports" not in draw(run.method).provenance


def test_images_of_another_size_come_back_at_their_own(base, tmp_path):
    run = train(tmp_path / "a", base, data=pictures(size=12))
    assert any("12x12 pixels are resized to 8x8" in note for note in run.notes)
    assert draw(run.method).images.shape[1:] == (1, 12, 12)
    assert run.method.starts(torch.tensor([0]), torch.tensor([0])).shape[1:] == (1, 12, 12)
    near = (draw(run.method, [0], alpha=0.0).images.float().mean() - 90).abs()
    assert near < 30  # not left at the size, or in the range, of the model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"base": None}, "needs a model to specialise: --model PATH"),
        ({"base": "nowhere"}, 'There is no model "nowhere"'),
        ({"prompt": "a photo of an object"}, "exactly one placeholder"),
        ({"prompt": "a sketch of an #object"}, "does not know"),
        ({"textual": {"init_word": "violin"}}, "no embedding to start from"),
        ({"textual": {"t_min": 1000}}, "t_min must be below 1000"),
        ({"alpha": 1.5}, r"alpha must be in \[0, 1\]"),
        ({"alpha": "often"}, '"uniform", got "often"'),
        ({"alpha": 0.5, "invert": False}, "needs inverted latents"),
        ({"norm_mode": "interpol"}, "norm_mode"),
        ({"steps": 2000}, "between 1 and 1000"),
        ({"dequant_t": 999}, "dequant_t"),
        ({"null_text": {"schedule": "linear"}}, "null_text.schedule"),
        ({"supports": [3, 2]}, "written by training"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(base, tmp_path, model, message):
    with pytest.raises(FewgenError, match=message):
        train(tmp_path / "run", **{"base": base, **model})
    assert not (tmp_path / "run").exists()


def test_bases_that_are_none(base, run, tmp_path):
    fake = tmp_path / "other"
    fake.mkdir()
    with pytest.raises(CheckpointError, match="no model to specialise"):
        train(tmp_path / "run", fake)
    with pytest.raises(ConfigError, match="is a run of tint, and tint needs diffusion"):
        train(tmp_path / "run", run.path)
    with pytest.raises(ConfigError, match="Add --channels 1"):
        train(tmp_path / "run", base, data=pictures(channels=3))
    load_method(base).save(fake / "model.safetensors", {"training": {"finished": False}})
    with pytest.raises(CheckpointError, match="not finished"):
        train(tmp_path / "run", fake)
    with pytest.raises(ConfigError, match="reads no words"):
        fewgen.train("tint", data=pictures(), out=tmp_path / "run", model=str(base), text="onehot")
    with pytest.raises(ConfigError, match="cannot be meta-trained"):
        fewgen.train("tint", data=pictures(), out=tmp_path / "run", model=base, meta="reptile")


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan"), "half", True])
def test_wrong_alpha_is_refused_before_any_sampling(method, monkeypatch, alpha):
    monkeypatch.setattr(Tint, "sample", killed)
    with pytest.raises(ConfigError, match="alpha"):
        draw(method, alpha=alpha)


def test_unknown_options_are_named(method):
    with pytest.raises(ConfigError, match="tint has alpha and norm_mode"):
        draw(method, strength=1.0)
    with pytest.raises(ConfigError, match="norm_mode"):
        draw(method, norm_mode="unit", alpha=0.5)
    with pytest.raises(ConfigError, match="Use a prompt|placeholder"):
        TintConfig(prompt="a #photo of an #object")


# ------------------------------------------------------------------------------------- the commands


def test_commands_from_training_to_a_strip(base, tmp_path, capsys):
    from fewgen.data import save_images

    save_images(pictures((5, 5)), tmp_path / "photos")
    out = tmp_path / "run"
    words = ["train", "tint", "--model", base, "--images", tmp_path / "photos", "--shots", 2, "--out", out]
    words += ["--model.steps", 4, "--model.textual.steps", 4, "--no-progress"]
    assert main([*(str(word) for word in words), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("It takes about ")
    assert "stage       textual_inversion: 4 steps of" in said
    assert main([str(word) for word in words]) == 0, capsys.readouterr().err
    assert load_method(out).config.supports == (2, 2)
    page = (out / "report.html").read_text()
    assert "From real images to new ones" in page
    assert f"--model {base}" in page
    assert "could not be made" not in page
    assert "holds the training images themselves" in (out / "README.md").read_text()
    code, strip = (
        main(["generate", str(out), "--alphas", "0", "0.5", "1", "--out", str(tmp_path / "s.png")]),
        0,
    )
    assert code == 0
    strip = Image.open(tmp_path / "s.png")
    assert strip.height > 6 * 56  # three rows of each class, and heads
    one = ["generate", str(out), "--class-name", "dog", "-n", "2", "--out"]
    assert main([*one, str(tmp_path / "a.npz"), "--alpha", "0"]) == 0
    assert main([*one, str(tmp_path / "b.npz"), "--alpha", "uniform"]) == 0
    capsys.readouterr()
    assert main([*one, str(tmp_path / "c.npz"), "--alpha", "2"]) == 2
    assert "alpha must be in [0, 1]" in capsys.readouterr().err
    assert not (tmp_path / "c.npz").exists()


def test_strips_hold_each_image_at_each_alpha(run):
    made = fewgen.generate(run, class_names="dog", alphas=[0, 1], seeds=[4, 5])
    assert made.seeds.tolist() == [4, 4, 5, 5]
    assert made.labels.tolist() == [1] * 4
    alone = fewgen.generate(run, class_names="dog", alpha=0, seeds=[4, 5])
    assert torch.equal(made.images[::2], alone.images)
    assert len(made.provenance["supports"]) == 2
    for wrong, message in (([0, 2], "got 2"), ([], "got none")):
        with pytest.raises(ConfigError, match=message):
            fewgen.generate(run, alphas=wrong)
    with pytest.raises(ConfigError, match="given twice"):
        fewgen.generate(run, alpha=0.5, alphas=[0, 1])


def test_a_base_that_lies_elsewhere_is_the_same_base(base, tmp_path, monkeypatch):
    train(tmp_path / "a", base)
    copy = shutil.copytree(base, tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    assert train("a", "./copy").was_finished
    one, two = (load_method(folder).config.fitted for folder in (tmp_path / "a", train("b", copy).path))
    assert (one.model_id, one.folder) == (two.model_id, "run")
    other = load_method(copy)
    other.pipe.text.table.weight.data.add_(0.1)
    other.save(copy / "model.safetensors")
    with pytest.raises(ConfigError, match="has changed since this run was started"):
        train("a", copy)


def test_alpha_is_refused_for_other_methods(base):
    for keywords in ({"alpha": 0.5}, {"alphas": [0, 1]}):
        with pytest.raises(ConfigError, match="is a run of diffusion. Leave alpha out"):
            fewgen.generate(base, **keywords)


def test_stable_diffusion_from_its_folder(written, tmp_path, capsys):  # noqa: F811
    from fewgen.data import save_images

    folder = shutil.copytree(written.folder, tmp_path / "sd")
    save_images(pictures((3, 3), size=20, channels=3), tmp_path / "photos")
    words = ["train", "tint", "--model", folder, "--images", tmp_path / "photos", "--shots", 2, "--no-report"]
    words += ["--out", tmp_path / "run", "--model.textual.init_word", "cat", "--model.textual.steps", 2]
    words += ["--model.prompt", "a photo of a #object", "--model.steps", 3, "--no-progress"]
    words = [str(word) for word in words]
    assert main(words) == 0, capsys.readouterr().err
    method = load_method(tmp_path / "run")
    assert method.config.fitted.kind == "stable"
    assert not any(name.startswith(("pipe", "_outside")) for name in method.state_dict())
    size = (tmp_path / "run" / "model.safetensors").stat().st_size
    weights = sum(p.numel() * 4 for p in method.pipeline().parameters())
    needed = 4 * (method.z_T.numel() + method.u.numel()) + method.images.numel()
    assert needed < size < needed + weights / 2
    made = draw(method, [0, 1], alpha=0.5)
    assert made.images.shape == (2, 3, 20, 20)
    assert torch.equal(made.images, draw(load_method(tmp_path / "run"), [0, 1], alpha=0.5).images)
    assert main(words) == 0  # finished: nothing to do
    shutil.rmtree(folder / "vae")
    capsys.readouterr()
    assert main([*words[:-1], "--out", str(tmp_path / "other")]) == 2
    assert "vae" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="that folder is gone"):
        draw(load_method(tmp_path / "run"), [0])
    beside = shutil.copytree(written.folder, tmp_path / "moved" / folder.name)
    shutil.copytree(tmp_path / "run", tmp_path / "moved" / "run")
    again = draw(load_method(tmp_path / "moved" / "run"), [0, 1], alpha=0.5)
    assert torch.equal(again.images, made.images)
    shutil.rmtree(beside)
    shutil.copytree(written.folder, folder)
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "center_input_sample": True}))
    with pytest.raises(CheckpointError, match="is now"):
        draw(load_method(tmp_path / "run"), [0])


def test_half_precision_and_slices_of_stable_diffusion(written, tmp_path, caplog):  # noqa: F811
    sd = {"textual": {"steps": 2, "batch_size": 1, "init_word": "cat"}, "prompt": "a photo of a #object"}
    data, made = pictures((2, 1), size=16, channels=3), {}
    for name, more in {"whole": {}, "half": {"precision": "float16", "attention_slicing": True}}.items():
        method = train(tmp_path / name, written.folder, data, steps=3, **sd, **more).method
        for found in (method, load_method(tmp_path / name)):  # as trained, and opened anew
            made[name] = draw(found, [0, 0, 1], alpha=0.0).images.float()
            pipe = found.pipeline()
            half = torch.float16 if name == "half" else torch.float32
            assert (pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype) == (half, half, torch.float32)
            kinds = {type(processor).__name__ for processor in pipe.unet.attn_processors.values()}
            assert any("Sliced" in kind for kind in kinds) == (name == "half")
            assert {t.dtype for t in (found.words.embedding, found.z_T, found.u)} == {torch.float32}
    assert not torch.equal(made["half"], made["whole"])
    assert (made["half"] - made["whole"]).abs().mean() < 2  # of 255
    assert made["whole"].std() > 10
    # diffusers warns at each move, and there is one in each step
    assert not [record for record in caplog.records if "kept in float32" in record.getMessage()]


@pytest.mark.parametrize(
    ("device", "precision", "dtype"),
    [
        ("cuda", "auto", torch.float16),
        ("cpu", "auto", torch.float32),
        ("mps", "auto", torch.float32),
        ("cuda", "float32", torch.float32),
        ("cpu", "float16", torch.float16),
    ],
)
def test_parts_go_where_the_method_is_and_words_stay_in_float32(device, precision, dtype, monkeypatch):
    from fewgen.diffusion.stable import StableDiffusion
    from fewgen.methods.tint.base import place_on

    moved = []

    class Part(torch.nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name

    pipe = StableDiffusion.__new__(StableDiffusion)
    torch.nn.Module.__init__(pipe)
    pipe.text_encoder, pipe.unet, pipe.vae = Part("text_encoder"), Part("unet"), Part("vae")
    monkeypatch.setattr(torch.nn.Module, "to", lambda part, *where: moved.append((part.name, *where)))
    place_on(pipe, torch.device(device), precision)
    there = torch.device(device)
    assert moved == [("text_encoder", there, torch.float32), ("unet", there, dtype), ("vae", there, dtype)]


def test_stable_diffusion_from_the_hub(written, tmp_path, monkeypatch):  # noqa: F811
    asked = []

    def fetched(name, *, allow_patterns, ignore_patterns, local_files_only):
        asked.append(local_files_only)
        if name != "someone/sd":
            raise ConnectionError("unreachable")
        here = [str(file.relative_to(written.folder)) for file in written.folder.rglob("*") if file.is_file()]
        odd = ["unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors"]
        odd += ["safety_checker/model.safetensors", "pipeline.py"]
        wanted = {
            file
            for file in [*here, *odd]
            if any(fnmatch(file, pattern) for pattern in allow_patterns)
            and not any(fnmatch(file, pattern) for pattern in ignore_patterns)
        }
        assert not wanted & set(odd)
        for file in wanted:
            (tmp_path / "cache" / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(written.folder / file, tmp_path / "cache" / file)
        return str(tmp_path / "cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
    sd = {"textual": {"steps": 2, "batch_size": 1, "init_word": "cat"}, "prompt": "a photo of a #object"}
    run = train(tmp_path / "run", "someone/sd", pictures((1, 1), size=16, channels=3), steps=2, **sd)
    assert run.method.config.fitted.folder == "someone/sd"
    assert asked == [False]
    images = draw(load_method(tmp_path / "run"), [0, 1]).images
    assert asked == [False, True]  # a file of others does not make anything be fetched
    assert torch.equal(images, draw(run.method, [0, 1]).images)
    with pytest.raises(CheckpointError, match=r"could not be fetched .* \(ConnectionError\)"):
        train(tmp_path / "other", "nobody/sd")
    assert not (tmp_path / "other").exists()
    fitted = dataclasses.replace(run.method.config.fitted, folder="nobody/sd")
    gone = Tint(dataclasses.replace(run.method.config, fitted=fitted), run.method.spec)
    with pytest.raises(CheckpointError, match="could not be found in the cache"):
        draw(gone, [0])
    assert asked[-1]


def test_text_errors_are_not_hidden(base):
    assert issubclass(TextError, FewgenError)
    method = Tint(TintConfig(base=str(base)), DataSpec(1, 8, 8, NAMES))
    assert torch.equal(method.words.embedding[0], method.pipe.word_embedding("object"))
