"""Prompts of TAGE: where they enter, what they cost, that a run keeps them, what is refused."""

from __future__ import annotations

import warnings

import pytest
import torch
from PIL import Image
from tests.fake_method import Fake
from tests.methods.sq_gan_tools import shapes
from tests.methods.tage_tools import SMALL, context_of, make, started
from tests.methods.test_tage import draws, of_all, pictures, trainer

import fewgen
from fewgen.cli.main import main
from fewgen.encoders.base import UnknownWordError
from fewgen.errors import ConfigError
from fewgen.evaluation.drawings import DRAWING_PROMPTS
from fewgen.generation import GenerationRequest
from fewgen.methods.tage.prompts import prompt_accuracy
from fewgen.runs.run import load_run

PROMPTS = {"steps": 4, "batch_size": 12, "encoder_steps": 3, "image_share": 0.5, "weight": 1.0}
N = len(DRAWING_PROMPTS)
INJECTIONS = ("cross", "adaln", "token")


@pytest.fixture(scope="module")
def images():
    return shapes()


def prepared(*changes, data):
    """A model of which everything but the stage of prompts is ready."""
    method = started({"prompts": PROMPTS}, *changes, data=data)
    with torch.no_grad():
        method._prepare_prompts(context_of(data, data))
    return method


@pytest.fixture(scope="module")
def method(images):
    return prepared(data=images)


def moved(method):
    """Give the zeros at which prompts start other values."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for name, value in method.predictor.named_parameters():
            if "add_prompt" in name or name.startswith("read_prompt"):
                value += torch.randn_like(value)
    return method


# ------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("injection", INJECTIONS)
def test_prompts_start_as_if_there_were_none_and_gradients_reach_them(images, injection):
    method = prepared({"prompts": {"injection": injection}}, data=images)
    assert torch.equal(draws(method, prompt="a thick drawing").images, draws(method).images)
    stage = method.stages(images, None)[-1]
    assert stage.name == "prompts"
    batch, names = of_all(images), dict(method.named_parameters())
    readers = [name for name in names if "add_prompt" in name or name.startswith("predictor.read_prompt")]
    own = {id(p) for p, _ in stage.phases[0].trainable()}
    assert own == {id(p) for p in method.predictor.parameters()}
    for p in method.parameters():
        p.requires_grad_(id(p) in own)
    stage.phases[0].loss(batch, context_of(images)).total().backward()
    assert readers
    assert all(float(names[name].grad.abs().sum()) > 0 for name in readers)
    assert all(p.grad is None for p in method.parameters() if id(p) not in own)  # G, E, codes, CLIP
    method = moved(method)
    assert not torch.equal(draws(method, n=16, prompt="a thick drawing").codes, draws(method, n=16).codes)


def test_a_run_without_prompts_is_what_it_was(images):
    plain, with_prompts = make().state_dict(), make({"prompts": PROMPTS}).state_dict()
    assert set(plain) < set(with_prompts)
    assert not any("prompt" in name for name in plain)
    assert "prompts" not in [stage.name for stage in make().stages(images, None)]
    assert make().encoders == {}
    assert make({"prompts": {"encoder": "lite"}}).encoders == {"prompts": ("joint", "lite")}


def test_images_are_learned_with_the_prompt_that_tells_them_from_their_class(method, images):
    prompts = method.prompts
    texts = prompts.joint.encode_texts(["a drawing", *DRAWING_PROMPTS])
    toward = torch.nn.functional.normalize(texts[1:] - texts[0], dim=1)
    assert torch.allclose(prompts.table, toward @ toward.T, atol=1e-5)
    assert torch.allclose(prompts.table.diagonal(), torch.ones(N), atol=1e-5)
    like = prompts.joint.image_features(images.floats()) @ toward.T
    for label in range(3):
        like[images.labels == label] -= like[images.labels == label].mean(0)
    wanted = torch.where(like.amax(1) > 0, (like / like.square().mean(0).sqrt()).argmax(1), -1)
    assert torch.equal(prompts._chosen["train"], wanted)
    assert torch.equal(prompts._chosen["held_out"], wanted)  # the same images here
    rng = torch.Generator().manual_seed(0)
    indices = torch.zeros(4000, dtype=torch.int64)
    rows = prompts.of_images("train", indices, rng)
    none = (rows == 0).all(1)
    assert float(none.float().mean()) == pytest.approx(0.1, abs=0.02)
    assert torch.equal(rows[~none][0], prompts.table[wanted[0]])


def test_a_class_of_one_image_has_no_prompt():
    data = shapes(n_per_class=1)
    assert prepared(data=data).prompts._chosen["train"].tolist() == [-1, -1, -1]


def test_the_prompt_loss_is_that_of_a_naive_computation(images):
    x, y = images.floats()[:6], images.floats()[6:12]
    chosen = torch.arange(6)
    for form, weight in (("directional", 0.5), ("absolute", 0.5), ("absolute", 0.0)):
        more = {} if form == "directional" else {"text_weight": weight}
        method = prepared({"prompts": {"form": form, **more}}, data=images)
        prompts = method.prompts
        before, after = (prompts.joint.image_features(part) for part in (y, x))
        texts = prompts.joint.encode_texts(["a drawing", *DRAWING_PROMPTS])
        cosine = torch.nn.functional.cosine_similarity
        if form == "directional":
            wanted = 1 - cosine(after - before, texts[1:] - texts[0]).mean()
        else:
            wanted = 1 - cosine(after, before).mean() + weight * (1 - cosine(after, texts[1:]).mean())
        assert float(prompts.error(x, y, chosen)) == pytest.approx(float(wanted), abs=1e-5)
    assert float(prompts.error(x, x, chosen)) == pytest.approx(0.0, abs=1e-6)  # absolute, without text
    assert (prompts.temperature(0.0), prompts.temperature(1.0)) == pytest.approx((1.0, 0.3))


@pytest.mark.parametrize("around", ["image", "mean"])
def test_the_prompt_loss_compares_images_with_what_they_started_from(images, around, monkeypatch):
    method = prepared({"sampler": {"around": around, "strength": 0.5}}, data=images)
    seen, batch = [], of_all(images)
    monkeypatch.setattr(method.prompts, "error", lambda *given: seen.append(given) or given[0].sum())
    rng = torch.Generator().manual_seed(0)
    terms = method._prompts_terms("train", batch.labels, batch.indices, rng, 0.5)
    [(found, source, chosen)] = seen
    n = len(images) // 2
    assert len(found) == len(source) == len(chosen) == n
    w, residuals = method._residuals("train", batch.labels[:n], batch.indices[:n])
    if around == "image":
        wanted = method.autoencoder.decode(w)
    else:
        own = method.codes.nearest(method.codes.tokens(residuals))
        wanted = method._decoded(own, w - residuals, w, 0.5)
    assert torch.allclose(source, wanted.clamp(-1.0, 1.0), atol=1e-6)
    assert (found - source).flatten(1).abs().amax(1).gt(1e-4).float().mean() > 0.5
    terms.values["prompt"].backward()
    assert float(method.predictor.head.weight.grad.abs().sum()) > 0


def test_a_stop_in_the_stage_of_prompts_changes_nothing(images, tmp_path):
    changes = ({"prompts": PROMPTS}, {"autoencoder": {"perceptual": "none"}})
    whole = make(*changes)
    assert trainer(whole, tmp_path / "whole", images, images).run().finished
    part = make(*changes)
    one = trainer(part, tmp_path / "parts", images, images)
    between = one._between_steps

    def stopping(run):
        if one._position.total_steps == 15:  # 4, 3, 3 and 3 steps, and two of prompts
            one.stop()
        return between(run)

    one._between_steps = stopping
    assert one.run().interrupted
    last = make(*changes, seed=7)
    assert trainer(last, tmp_path / "parts", images, images).run().finished
    x, y = whole.state_dict(), last.state_dict()
    assert [name for name in x if not torch.equal(x[name], y[name])] == []


# ------------------------------------------------------------------------------------ drawing


@pytest.fixture(scope="module")
def ready(images):
    return moved(prepared(data=images))


def test_draws_depend_on_prompt_and_seed_alone(ready):
    one = draws(ready, n=4, prompt="a thick drawing")
    assert torch.equal(draws(ready, n=4, prompt=" A  thick drawing").images, one.images)
    alone = GenerationRequest(
        labels=one.labels[5:6], seeds=one.seeds[5:6], options={"prompt": "a thick drawing"}
    )
    assert torch.equal(ready.generate(alone).images[0], one.images[5])
    assert not torch.equal(draws(ready, n=4, prompt="a small drawing").codes, one.codes)
    assert torch.equal(draws(ready, prompt="a drawing").images, draws(ready).images)  # says nothing
    assert torch.equal(draws(ready, prompt="a thick drawing", guidance=0).images, draws(ready).images)
    assert not torch.equal(draws(ready, prompt="a thick drawing", guidance=1.0).codes, one.codes)


def test_new_classes_follow_prompts_too(ready):
    new = ready.with_classes(pictures(n=3))
    made = draws(new, labels=(3,), n=8, prompt="a thick drawing")
    assert not torch.equal(made.images, draws(new, labels=(3,), n=8).images)


def test_prompts_that_were_not_learned_are_encoded_and_said_to_be_so(ready):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = ready.prompts.told("a thick small drawing")  # some captions read so
    texts = ready.prompts.joint.encode_texts(["a drawing", *DRAWING_PROMPTS, "a thick small drawing"])
    toward = torch.nn.functional.normalize(texts[1:] - texts[0], dim=1)
    assert torch.allclose(one, toward[:-1] @ toward[-1], atol=1e-5)
    with pytest.warns(UserWarning, match='No caption that was learned from reads "thick thick"'):
        ready.prompts.told("thick thick")
    with pytest.raises(UnknownWordError, match='holds "fluffy".*Prompts that were learned: "a thin drawing"'):
        ready.prompts.told("a fluffy drawing")


def test_prompt_accuracy_counts_what_moved(ready, images, monkeypatch):
    found = prompt_accuracy(ready, [0, 1], 8)
    assert list(found) == list(DRAWING_PROMPTS)
    assert found["a thick drawing"].attribute == "thickness"
    assert all(0.0 <= one.moved <= 1.0 for one in found.values())
    none = prompt_accuracy(ready, [0, 1], 4, ["a thick drawing"], guidance=0.0)["a thick drawing"]
    assert (none.moved, none.shift) == (0.5, 0.0)
    thin, thick = torch.zeros(2, 2, 1, 8, 8, dtype=torch.uint8)
    thin[:, :, 1:7, 3] = 255
    thin[1, :, 1:7, 4] = 100  # so that there is a spread
    thick[:, :, 1:7, 2:6] = 255

    def generate(request):
        one = thick if request.options.get("prompt") else thin
        return type("Made", (), {"images": one})

    monkeypatch.setattr(ready, "generate", generate)
    found = prompt_accuracy(ready, [0], 2, ["a thick drawing", "a thin drawing"])
    assert (found["a thick drawing"].moved, found["a thin drawing"].moved) == (1.0, 0.0)
    assert found["a thick drawing"].shift == -found["a thin drawing"].shift > 1.0
    with pytest.raises(ConfigError, match="measured for prompts of thickness, size, slant"):
        prompt_accuracy(ready, [0], 2, ["a cat"])
    with pytest.raises(ConfigError, match="got none"):
        prompt_accuracy(started(data=images), [0], 2)


class Words:
    """A joint encoder that is no part of the model, in place of CLIP."""

    def __init__(self, seed=0):
        rng = torch.Generator().manual_seed(seed)
        self.pixels, self.letters = torch.randn(64, 16, generator=rng), torch.randn(128, 16, generator=rng)

    def encode_images(self, images):
        return torch.nn.functional.normalize(images.flatten(1) @ self.pixels, dim=1)

    image_features = encode_images

    def encode_texts(self, texts):
        return torch.nn.functional.normalize(
            torch.stack([self.letters[[ord(c) for c in text]].mean(0) for text in texts]), dim=1
        )

    def record(self):
        return {"name": "words"}


def test_an_encoder_outside_the_model_is_read_for_new_prompts_alone(images, monkeypatch):
    where = "fewgen.methods.tage.prompts.make_joint_encoder"
    monkeypatch.setattr(where, lambda *_, **__: Words())
    method = moved(prepared({"prompts": {"encoder": "lite", "encoder_steps": 300}}, data=images))
    own = method.prompts
    assert own.listed[0] == "a photo in bright light"
    assert own.encoder is None

    def gone(*_, **__):
        raise ConfigError("no weights")

    monkeypatch.setattr(where, gone)
    copy = make({"prompts": {**PROMPTS, "encoder": "lite", "encoder_steps": 300}}, data=images)
    copy.load_state_dict(method.state_dict())
    assert torch.equal(copy.prompts.told(own.listed[2]), own.table[2])
    with pytest.raises(ConfigError, match="no weights"):
        copy.prompts.told("a photo of a cat")
    monkeypatch.setattr(where, lambda *_, **__: Words(seed=1))
    with pytest.raises(ConfigError, match="not the one that this run was trained with"):
        copy.prompts.told("a photo of a cat")
    copy.prompts._other = None
    monkeypatch.setattr(where, lambda *_, **__: Words())
    assert copy.prompts.told("a photo of a cat").shape == (N,)


def test_encoders_without_gradients_are_refused(images, monkeypatch):
    blind = type("Blind", (), {})()
    monkeypatch.setattr("fewgen.methods.tage.prompts.make_joint_encoder", lambda *_, **__: blind)
    with pytest.raises(ConfigError, match='"lite" of prompts says nothing of how images should change'):
        prepared({"prompts": {"encoder": "lite"}}, data=images)


# ------------------------------------------------------------------------------------ the commands


def test_a_run_keeps_its_prompts_and_a_command_draws_them(tmp_path, capsys):
    quiet = {"report": False, "progress": False, "holdout": 2, "training": {"device": "cpu"}}
    model = {**SMALL, "prompts": PROMPTS}
    run = fewgen.train("tage", data=shapes(), out=tmp_path / "run", model=model, class_split="2/0/1", **quiet)
    assert [stage["name"] for stage in run.info.extra["training"]["stages"]][-1] == "prompts"
    (tmp_path / "photos").mkdir()
    Image.fromarray(pictures(n=1).images[0, 0].numpy()).save(tmp_path / "photos" / "one.png")
    fewgen.adapt(run, images=tmp_path / "photos", class_names="mine", out=tmp_path / "mine")
    out = tmp_path / "thick.npz"
    words = ["generate", str(tmp_path / "mine"), "--class-name", "mine", "-n", "3"]
    assert main([*words, "--prompt", "a thick drawing", "--out", str(out)]) == 0
    fresh = load_run(tmp_path / "mine")
    made = fresh.generate(class_names="mine", n=3, prompt="a thick drawing")
    assert made.provenance["options"] == {"prompt": "a thick drawing"}
    assert torch.equal(
        made.images, fewgen.generate(fresh, class_names="mine", n=3, prompt="a thick drawing").images
    )
    capsys.readouterr()
    for prompt, more, message in (
        ("a woolly drawing", [], '"woolly"'),
        (" ", [], "prompt must be words"),
        ("a thick drawing", ["--mode", "nn"], 'the mode "nn" predicts none'),
    ):
        assert main([*words, "--prompt", prompt, *more, "--out", str(tmp_path / "no.npz")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "no.npz").exists()


def test_a_prompt_is_refused_where_none_was_learned(tmp_path, images):
    with pytest.raises(ConfigError, match=r"learned no prompts.*--model\.prompts\.encoder small"):
        draws(started(data=images), prompt="a thick drawing")
    with pytest.raises(ConfigError, match="guidance has no effect without a prompt"):
        draws(started(data=images), guidance=2.0)
    quiet = {"report": False, "progress": False, "holdout": 0, "text": "onehot"}
    other = fewgen.train("fake", data=images, out=tmp_path / "other", model={"steps": 1}, **quiet)
    assert Fake.name == "fake"
    with pytest.raises(ConfigError, match="--prompt: only methods that exchange attributes by codes"):
        other.generate(prompt="a thick drawing")


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"encoder": "clipp"}, "prompts.encoder: There is no joint encoder"),
        ({"encoder": "lite0"}, "prompts.encoder"),
        ({"encoder": "clip"}, "needs a path"),
        ({"texts": []}, "one or more different prompts"),
        ({"texts": ["a thick drawing", "A thick  drawing"]}, "one or more different prompts"),
        ({"texts": ["a drawing"]}, "none of them empty or prompts.neutral"),
        ({"texts": ["a fluffy drawing"]}, 'and not "fluffy"'),
        ({"drop": 1.0}, "prompts.drop"),
        ({"temperature": 0.0}, "prompts.temperature"),
    ],
)
def test_settings_of_prompts_that_do_not_fit_are_refused(prompts, message):
    with pytest.raises(ConfigError, match=message):
        make({"prompts": prompts})
