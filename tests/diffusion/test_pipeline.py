"""Guidance, sampling and prompts of the pipeline object, with a model whose noise is known exactly."""

import sys

import numpy as np
import pytest
import torch
from tests.reference import naive_diffusion

from fewgen.diffusion.pipeline import TextToImage, content_hash, split_prompt
from fewgen.diffusion.schedule import NoiseSchedule
from fewgen.encoders.pretrained import optional_library
from fewgen.errors import ConfigError, DataError, MissingDependencyError, ShapeError, TextError

VARIANCE = 0.25


class Gaussian(TextToImage):
    """Data N(mean of the context, VARIANCE) in each pixel: the best noise has a closed form."""

    image_shape = latent_shape = (1, 2, 2)
    context_shape = (4, 2)

    def __init__(self):
        super().__init__()
        self.schedule = NoiseSchedule.scaled_linear()
        self.words = torch.nn.Embedding(5, 2)
        self.rows: list[int] = []

    def eps(self, z, t, context):
        self.rows.append(len(z))
        bars = self.schedule.alphas_cumprod[t][:, None, None, None].to(z)
        mean = context.mean((1, 2))[:, None, None, None].to(z)
        return (1 - bars).sqrt() * (z - bars.sqrt() * mean) / (bars * VARIANCE + 1 - bars)

    def _word_ids(self, text):
        known = ["", "a", "photo", "of", "object"]
        try:
            return [known.index(word) for word in text.split()]
        except ValueError as error:
            raise TextError(f'"{text}" is unknown.') from error

    def _framed(self, ids):
        return ids + [0] * (4 - len(ids))

    def _table(self):
        return self.words.weight

    def _context(self, ids, rows):
        return torch.nn.functional.embedding(ids, torch.cat([self.words.weight, rows]))


@pytest.fixture
def pipe():
    torch.manual_seed(0)
    return Gaussian()


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def contexts(n):
    return normal(n, 4, 2, seed=5), normal(n, 4, 2, seed=6)


def test_guidance_is_the_printed_formula_in_one_call(pipe):
    z, (cond, uncond), t = normal(3, 1, 2, 2), contexts(3), torch.tensor([999, 500, 19])
    eps_c, eps_u = pipe.eps(z, t, cond), pipe.eps(z, t, uncond)
    pipe.rows.clear()
    torch.testing.assert_close(pipe.guided(z, t, cond, uncond, 7.5), eps_u + 7.5 * (eps_c - eps_u))
    torch.testing.assert_close(pipe.guided(z, t, cond, uncond, 0.0), eps_u)
    assert pipe.rows == [6, 6]
    one = pipe.guided(z, t, cond[:1], uncond[:1], 3.0)
    torch.testing.assert_close(one[:1], pipe.guided(z, t, cond[:1], uncond, 3.0)[:1])


def test_scale_1_is_the_conditional_prediction_and_leaves_the_other_alone(pipe):
    z, (cond, uncond), t = normal(3, 1, 2, 2), contexts(3), torch.tensor([999, 500, 19])
    expected = pipe.eps(z, t, cond)
    pipe.rows.clear()
    uncond.requires_grad_()
    for other in (uncond, None, uncond * float("nan")):
        found = pipe.guided(z, t, cond, other, 1.0)
        assert torch.equal(found, expected)
        assert not found.requires_grad
    assert pipe.rows == [3, 3, 3]
    # Negative control: any other guidance scale does look at it.
    assert pipe.guided(z, t, cond, uncond, 1.01).requires_grad
    with pytest.raises(ConfigError, match="unconditional"):
        pipe.guided(z, t, cond, None, 2.0)


def test_sampling_equals_the_loop_of_the_reference(pipe):
    z = normal(2, 1, 2, 2)
    nothing = torch.zeros(1, 4, 2, dtype=torch.float64)
    found = pipe.sample(z, nothing, None, 1.0, 10)
    bars = naive_diffusion.scaled_linear()
    expected = naive_diffusion.sample_gaussian(z.numpy(), bars, list(range(999, 0, -100)), VARIANCE)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_sampling_reaches_the_data_of_the_caption(pipe):
    cond = torch.full((1, 4, 2), 0.7, dtype=torch.float64)
    z = pipe.sample(normal(4000, 1, 2, 2), cond, None, 1.0, 500)
    # The exact flow keeps the distance to the mean in standard deviations; sampling starts at mean 0 although
    # a little signal is left at the noisiest time, and ends at time 0.
    first, last = pipe.schedule.bar(999), pipe.schedule.bar(None)
    scale = ((last * VARIANCE + 1 - last) / (first * VARIANCE + 1 - first)) ** 0.5
    assert float(z.mean()) == pytest.approx(0.7 * (last**0.5 - scale * first**0.5), abs=0.015)
    assert float(z.std()) == pytest.approx(scale, abs=0.015)


def test_inversion_and_sampling_reconstruct_and_more_steps_reconstruct_better(pipe):
    x = 0.5 * normal(64, 1, 2, 2)
    nothing = torch.zeros(1, 4, 2, dtype=torch.float64)
    errors = []
    for steps in (5, 10, 20, 50, 200):
        z, before = x, None
        for t in reversed(pipe.schedule.timesteps(steps)):  # noise at the time that is gone to
            eps = pipe.eps(z, torch.full((len(z),), t), nothing)
            z, before = pipe.schedule.move(z, eps, before, t), t
        errors.append(float(((pipe.sample(z, nothing, None, 1.0, steps) - x) ** 2).mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-4 * float((x**2).mean())
    assert errors[-1] < 1e-2 * errors[0]


def test_unconditional_contexts_for_each_step(pipe):
    z, (cond, uncond) = normal(2, 1, 2, 2), contexts(2)
    same = pipe.sample(z, cond, uncond, 3.0, 5)
    assert torch.equal(pipe.sample(z, cond, [uncond] * 5, 3.0, 5), same)
    assert torch.equal(pipe.sample(z, cond, uncond.expand(5, -1, -1, -1), 3.0, 5), same)
    steps = [uncond] * 4 + [uncond + 1]
    last = pipe.sample(z, cond, steps, 3.0, 5)
    assert not torch.equal(last, same)
    assert not torch.equal(last, pipe.sample(z, cond, steps[::-1], 3.0, 5))  # in the order of the steps
    with pytest.raises(ConfigError, match="4 steps, but 5"):
        pipe.sample(z, cond, [uncond] * 4, 3.0, 5)


def test_images_do_not_depend_on_their_company(pipe):
    z, (cond, uncond) = normal(6, 1, 2, 2), contexts(6)
    together = pipe.sample(z, cond, uncond, 3.0, 5)
    apart = torch.cat(
        [pipe.sample(z[i : i + 1], cond[i : i + 1], uncond[i : i + 1], 3.0, 5) for i in range(6)]
    )
    torch.testing.assert_close(together, apart, rtol=1e-9, atol=1e-9)


def test_placeholders_take_rows_and_pass_gradients(pipe):
    one, two = torch.ones(2, requires_grad=True), torch.full((2, 2), 3.0, requires_grad=True)
    ids = pipe.tokens(["a #x", "#y photo", ""], {"#x": one, "#y": two})
    assert ids.tolist() == [[1, 5, 0, 0], [6, 7, 2, 0], [0, 0, 0, 0]]
    context = pipe.embed(["a #x", "#y photo", ""], {"#x": one, "#y": two})
    table = pipe.words.weight
    torch.testing.assert_close(context[0], torch.stack([table[1], one, table[0], table[0]]))
    torch.testing.assert_close(context[1], torch.stack([two[0], two[1], table[2], table[0]]))
    context[:2].sum().backward()
    assert torch.equal(one.grad, torch.ones(2))
    assert torch.equal(two.grad, torch.ones(2, 2))
    with torch.no_grad():
        word = {"object": pipe.word_embedding("object")}
        assert torch.equal(pipe.embed(["a object"], word), pipe.embed(["a object"]))


def test_bad_prompts_are_explained(pipe):
    row = torch.ones(2)
    with pytest.raises(ConfigError, match=r'placeholder "#x": "a photo"'):
        pipe.embed(["a photo"], {"#x": row})
    with pytest.raises(ConfigError, match="placeholder"):
        pipe.embed(["a #xy"], {"#xy": row, "#x": row})
    with pytest.raises(TextError, match="5 places; this model has 4"):
        pipe.embed(["a photo of a #x"], {"#x": row})
    with pytest.raises(ShapeError, match=r"\(3,\); this model needs \(2,\)"):
        pipe.embed(["#x"], {"#x": torch.ones(3)})
    with pytest.raises(ConfigError, match="2 tokens"):
        pipe.word_embedding("a photo")
    with pytest.raises(ConfigError, match="unknown"):
        pipe.word_embedding("violin")


def test_wrong_shapes_are_refused_before_any_step(pipe):
    z, (cond, uncond) = normal(3, 1, 2, 2), contexts(3)
    with pytest.raises(ShapeError, match=r"\(B, 1, 2, 2\)"):
        pipe.sample(normal(3, 2, 2, 2), cond, uncond, 3.0, 5)
    with pytest.raises(ShapeError, match=r"\(B, 4, 2\)"):
        pipe.sample(z, cond[:, :3], uncond, 3.0, 5)
    with pytest.raises(ShapeError, match="2 contexts do not fit 3"):
        pipe.sample(z, cond[:2], uncond, 3.0, 5)
    assert pipe.rows == []
    with pytest.raises(DataError, match="not finite"):
        pipe.sample(z * float("nan"), cond, uncond, 3.0, 2)


@pytest.mark.parametrize(
    ("prompt", "words", "expected"),
    [
        ("a photo of #x.", ["#x"], [("a photo of", False), ("#x", True), (".", False)]),
        ("#x #x2", ["#x", "#x2"], [("#x", True), ("#x2", True)]),
        ("#xy", ["#x"], [("#xy", False)]),
        ("a <cat-toy> here", ["<cat-toy>"], [("a", False), ("<cat-toy>", True), ("here", False)]),
        ("", ["#x"], []),
        ("a+b", ["a+b"], [("a+b", True)]),
    ],
)
def test_prompts_are_taken_apart_at_whole_words(prompt, words, expected):
    assert split_prompt(prompt, words) == expected


def test_placeholders_with_spaces_are_refused():
    for word in ("", " x"):
        with pytest.raises(ConfigError, match="without spaces"):
            split_prompt("a x", [word])


def test_hash_depends_on_content_alone():
    x = normal(4, 3)
    parts = [("w", x), ("b", x.to(torch.bfloat16)), ("c", b"text")]
    same = content_hash(parts)
    assert same == content_hash([parts[2], ("w", x.t().contiguous().t()), parts[1]])
    assert len(same) == 64
    others = [
        [("v", x), *parts[1:]],
        [("w", x + 1e-12), *parts[1:]],
        [("w", x.reshape(3, 4)), *parts[1:]],
        parts[1:],
    ]
    assert len({same, *map(content_hash, others)}) == 5


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingDependencyError, match=r"fewgen\[diffusion\]"):
        optional_library("diffusers", "This", "diffusion")
