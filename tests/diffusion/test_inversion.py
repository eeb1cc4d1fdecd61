import math

import numpy as np
import pytest
import torch
from tests.diffusion.toy import LENGTH, SHAPE, SPREAD, WIDTH, Toy, cat, supports
from tests.reference import naive_inversion as naive

from fewgen.diffusion import inversion
from fewgen.diffusion.inversion import (
    ddim_invert,
    denoising_errors,
    latent_rms,
    reconstruct,
    word_gradient,
)
from fewgen.diffusion.settings import NullTextConfig, TextualConfig, placeholder
from fewgen.errors import ConfigError, DataError, ShapeError, TextError, TrainingError


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def null_text_inversion(pipe, pivots, cond, guidance_scale, *, batch=None, on_step=None, **settings):
    """With the published rate, unless another is given."""
    config = NullTextConfig(**{"lr": 0.01, **settings})
    return inversion.null_text_inversion(
        pipe, pivots, cond, guidance_scale, config, batch=batch, on_step=on_step
    )


def error(pipe, z0, z_T, u, guidance_scale, steps):
    return (reconstruct(pipe, z_T, cat(pipe), u, guidance_scale, steps) - z0).square().mean().item()


def reference(pipe):
    """Noise prediction and schedule in NumPy."""
    bars = pipe.schedule.alphas_cumprod.tolist()
    mix = pipe.mix.detach().numpy()

    def predict(z, t, context):
        mean = np.tanh(mix @ context.reshape(-1)).reshape(SHAPE)
        return naive.gaussian_noise_prediction(z, bars[t], mean, SPREAD)

    return predict, bars


# ------------------------------------------------------------------------------------------- the inversion


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_inversion_equals_a_naive_one(steps):
    pipe, z0 = Toy(), supports(3)
    pivots = ddim_invert(pipe, z0, cat(pipe), steps)
    predict, bars = reference(pipe)
    times = pipe.schedule.timesteps(steps)[::-1]
    context = cat(pipe)[0].numpy()
    assert pivots.shape == (steps + 1, *z0.shape)
    for i in range(3):
        expected = naive.invert(lambda z, t: predict(z, t, context), z0[i].numpy(), bars, times)
        assert np.allclose(pivots[:, i].numpy(), np.stack(expected), atol=1e-10)


def test_unguided_sampling_comes_back_the_better_the_more_steps():
    pipe, z0 = Toy(), supports(4)
    errors = []
    for steps in (5, 10, 20, 40, 80):
        z_T = ddim_invert(pipe, z0, cat(pipe), steps)[-1]
        errors.append(error(pipe, z0, z_T, None, 1.0, steps))
    assert all(after < 0.6 * before for before, after in zip(errors, errors[1:], strict=False))
    assert errors[-1] < 1e-3


def test_batches_bound_the_rows_of_a_call_and_change_nothing():
    pipe, z0 = Toy(), supports(5)
    whole = ddim_invert(pipe, z0, cat(pipe), 6, dequant_t=30, rng=rng())
    assert max(pipe.calls) == 5
    pipe.calls.clear()
    parts = ddim_invert(pipe, z0, cat(pipe), 6, dequant_t=30, rng=rng(), batch=2)
    assert max(pipe.calls) == 2
    assert torch.allclose(whole, parts, atol=1e-12)


def test_flat_images_invert_to_short_latents_and_dequantising_lengthens_them():
    pipe = Toy()
    flat = pipe.mean(cat(pipe)).detach()  # the mode: no detail that the model would call noise
    rms = [
        float(latent_rms(ddim_invert(pipe, flat, cat(pipe), 25, dequant_t=s, rng=rng())[-1]))
        for s in (0, 19, 79)
    ]
    assert rms[0] < 0.2
    assert rms[1] > rms[0] + 0.2
    assert rms[2] > rms[1] + 0.1


def test_dequantised_pivots_start_at_the_image_and_follow_one_noise():
    pipe, z0 = Toy(), supports(2)
    pivots = ddim_invert(pipe, z0, cat(pipe), 25, dequant_t=90, rng=rng())  # times 39, 79, 119, ...
    assert torch.equal(pivots[0], z0)
    noises = [
        (pivots[i] - pipe.schedule.bar(t) ** 0.5 * z0) / (1 - pipe.schedule.bar(t)) ** 0.5
        for i, t in ((1, 39), (2, 79), (3, 119))
    ]
    assert torch.allclose(noises[0], noises[1], atol=1e-9)
    assert not torch.allclose(noises[1], noises[2], atol=1e-2)  # from there on the model's own
    assert noises[0].std() == pytest.approx(1.0, abs=0.4)
    # The path leaves the noise at the time 90, which no step visits.
    start = pipe.schedule.add_noise(z0, noises[0], 90)
    eps = pipe.eps(start, torch.tensor([119, 119]), cat(pipe))
    assert torch.allclose(pivots[3], pipe.schedule.move(start, eps, 90, 119), atol=1e-9)


@pytest.mark.parametrize("dequant_t", [1, 998])
def test_dequantising_may_reach_up_to_the_last_time(dequant_t):
    pipe, z0 = Toy(), supports(2)
    for steps in (1, 5):
        pivots = ddim_invert(pipe, z0, cat(pipe), steps, dequant_t=dequant_t, rng=rng())
        drawn = torch.randn(z0.shape, generator=rng()).double()
        start = pipe.schedule.add_noise(z0, drawn, dequant_t)
        if dequant_t == 998 or steps == 1:
            eps = pipe.eps(start, torch.tensor([999, 999]), cat(pipe))
            assert torch.allclose(pivots[-1], pipe.schedule.move(start, eps, dequant_t, 999), atol=1e-9)
        assert torch.equal(pivots[0], z0)


def test_the_norm_of_the_latents_is_told():
    told = []
    pipe = Toy()
    z_T = ddim_invert(pipe, supports(2), cat(pipe), 5, progress=lambda text, done: told.append((text, done)))[
        -1
    ]
    assert f"{float(latent_rms(z_T).min()):.2f}" in told[-1][0]
    assert told[-1][1] == 1.0
    assert latent_rms(torch.full((2, 3, 4), 2.0)).tolist() == [2.0, 2.0]


def test_bad_input_of_the_inversion():
    pipe, z0 = Toy(), supports(2)
    with pytest.raises(ShapeError, match=r"\(B, 1, 4, 4\)"):
        ddim_invert(pipe, z0[:, :, :2], cat(pipe), 5)
    with pytest.raises(ShapeError, match="does not fit 2 latents"):
        ddim_invert(pipe, z0, cat(pipe).repeat(3, 1, 1), 5)
    with pytest.raises(ConfigError, match="steps must be between 1 and 1000, got 0"):
        ddim_invert(pipe, z0, cat(pipe), 0)
    with pytest.raises(ConfigError, match="dequant_t must be between 0 and 998"):
        ddim_invert(pipe, z0, cat(pipe), 5, dequant_t=999, rng=rng())
    with pytest.raises(ConfigError, match="needs an rng"):
        ddim_invert(pipe, z0, cat(pipe), 5, dequant_t=19)
    with pytest.raises(ConfigError, match="batch must be 1 or more"):
        ddim_invert(pipe, z0, cat(pipe), 5, batch=0)
    with pytest.raises(DataError, match="not finite"):
        ddim_invert(pipe, z0 * math.nan, cat(pipe), 5)
    with pytest.raises(DataError, match="none"):
        ddim_invert(pipe, z0[:0], cat(pipe), 5)


# ---------------------------------------------------------------------------------------- textual inversion


def learn(pipe, z0, **settings):
    others = {
        name: settings.pop(name) for name in ("prompt", "rng", "progress", "on_step") if name in settings
    }
    config = TextualConfig(**{"steps": 5, "batch_size": 4, "lr": 0.02, **settings})
    return inversion.textual_inversion(pipe, z0, config, **{"rng": rng(), **others})


def test_the_word_starts_from_object_and_only_it_changes():
    pipe = Toy()
    before = {name: value.clone() for name, value in pipe.state_dict().items()}
    pipe.train()
    learned = learn(pipe, supports(3))
    assert all(torch.equal(before[name], value) for name, value in pipe.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in pipe.parameters())
    assert pipe.training
    start = pipe.word_embedding("object")
    assert not torch.allclose(learned.embedding[0], start, atol=1e-3)
    still = learn(pipe, supports(3), steps=1, lr=1e-8).embedding
    assert torch.allclose(still[0], start, atol=1e-11)
    assert torch.allclose(
        learn(pipe, supports(3), steps=1, lr=1e-8, init_word="dog").embedding[0],
        pipe.word_embedding("dog"),
        atol=1e-11,
    )


def test_the_loss_on_held_out_noise_falls_and_the_word_means_the_class():
    pipe, z0 = Toy(), supports(5)
    learned = learn(pipe, z0, steps=250, batch_size=32)
    t = torch.randint(250, 1000, (400,), generator=rng(1))
    noise = torch.randn(400, *SHAPE, generator=rng(2), dtype=torch.float64)
    rows = torch.arange(400) % 5

    def held_out(context):
        return denoising_errors(pipe, z0[rows], t, noise, context.expand(400, -1, -1)).mean().item()

    new = pipe.embed(["a photo of an #object"], {"#object": learned.embedding[0]})
    old = pipe.embed(["a photo of an object"])
    assert held_out(new) < 0.9 * held_out(old)
    # Closed form: of all means, the squared error is least at that of the images.
    distance = (pipe.mean(new) - z0.mean(0)).square().mean().item()
    assert distance < 0.05 * (pipe.mean(old) - z0.mean(0)).square().mean().item()
    assert learned.losses.shape == (250, 1)
    assert learned.losses[-50:].mean() < learned.losses[:50].mean()


@pytest.mark.parametrize("batch", [None, 1, 2])
def test_the_gradient_of_a_word_is_that_of_its_class_alone(batch):
    """Against automatic differentiation of each class's mean error; classes of 1, 3 and no images."""
    pipe = Toy()
    classes = torch.tensor([1, 0, 1, 1])
    z0, t = supports(4), torch.tensor([300, 500, 700, 900])
    noise = torch.randn(z0.shape, generator=rng(3), dtype=torch.float64)
    words = torch.randn(3, WIDTH, generator=rng(4), dtype=torch.float64)
    errors, gradient = word_gradient(pipe, "a photo of an #object", words, z0, classes, t, noise, batch=batch)
    for c in (0, 1):
        word = words[c].clone().requires_grad_()
        rows = (classes == c).nonzero().flatten()
        context = pipe.embed(["a photo of an #object"], {"#object": word}).expand(len(rows), -1, -1)
        each = denoising_errors(pipe, z0[rows], t[rows], noise[rows], context)
        each.mean().backward()
        assert torch.allclose(gradient[c], word.grad, atol=1e-12)
        assert torch.allclose(errors[rows], each.detach(), atol=1e-12)
    assert not gradient[2].any()
    assert gradient[0].norm() > 1e-4
    assert max(pipe.calls) <= max(batch or 4, 3)


def test_the_model_is_frozen_in_every_search_and_afterwards_as_before():
    """Evaluation mode, and no gradients that nobody reads, which would cost the memory of the weights."""

    class Watched(Toy):
        def eps(self, z, t, context):
            seen.add((self.training, any(p.requires_grad for p in self.parameters())))
            return super().eps(z, t, context)

    pipe, z0, seen = Watched(), supports(2), set()
    pipe.train()
    pipe.mix.requires_grad_(False)
    learn(pipe, z0, steps=1)
    pivots = ddim_invert(pipe, z0, cat(pipe), 3)
    null_text_inversion(pipe, pivots, cat(pipe), 3.0, inner_steps=1)
    reconstruct(pipe, pivots[-1], cat(pipe), None, 3.0, 3)
    word = pipe.word_embedding("cat")[None]
    one = torch.zeros(2, dtype=torch.int64)
    word_gradient(pipe, "an #object", word, z0, one, one + 500, torch.zeros_like(z0))
    assert seen == {(False, False)}
    assert pipe.training
    assert (pipe.table.requires_grad, pipe.mix.requires_grad) == (True, False)
    with pytest.raises(TrainingError), torch.no_grad():
        pipe.mix.fill_(math.nan)
        learn(pipe, z0)
    assert pipe.training
    assert pipe.table.requires_grad


def test_restricted_times_are_never_left():
    pipe = Toy()
    learn(pipe, supports(2), steps=200, batch_size=16)
    assert min(pipe.times) >= 250
    assert min(pipe.times) < 260
    assert max(pipe.times) > 990
    pipe.times.clear()
    learn(pipe, supports(2), steps=200, batch_size=16, t_min=0)  # the control
    assert min(pipe.times) < 250


def test_classes_share_calls_but_not_what_they_learn():
    pipe = Toy()
    cats, dogs = supports(3), supports(4, seed=1, word="dog")
    pipe.calls.clear()
    both = learn(pipe, [cats, dogs])
    assert pipe.calls == [8] * 5
    assert both.embedding.shape == (2, WIDTH)
    assert torch.allclose(both.embedding[0], learn(pipe, cats).embedding[0], atol=1e-12)
    assert not torch.allclose(both.embedding[0], both.embedding[1], atol=1e-3)
    twelve = learn(pipe, [cats] * 12)  # names with two digits are names too
    assert torch.allclose(twelve.embedding[0], both.embedding[0], atol=1e-12)


def test_weight_decay_shrinks_the_word():
    pipe = Toy()
    plain, decayed = (learn(pipe, supports(3), weight_decay=w).embedding.norm() for w in (0.0, 5.0))
    assert decayed < 0.8 * plain


def test_hooks_see_every_step():
    seen, shares = [], []
    learned = learn(
        Toy(), supports(2), on_step=lambda *x: seen.append(x), progress=lambda _, done: shares.append(done)
    )
    assert [step for step, _, _ in seen] == list(range(5))
    assert torch.equal(torch.stack([loss for _, loss, _ in seen]), learned.losses)
    assert shares[-1] == 1.0


def test_bad_input_of_textual_inversion():
    pipe, z0 = Toy(), supports(2)
    for prompt in ("a photo of an object", "#a photo of an #object", "a photo of #"):
        with pytest.raises(ConfigError, match="exactly one placeholder"):
            learn(pipe, z0, prompt=prompt)
    assert placeholder("an #object, large") == "#object"
    with pytest.raises(ConfigError, match="embedding to start from"):
        learn(pipe, z0, init_word="violin")
    with pytest.raises(ConfigError, match="textual.t_min must be below 1000, got 1000"):
        learn(pipe, z0, t_min=1000)
    with pytest.raises(ConfigError, match="textual.steps must be 1 or more, got 0"):
        learn(pipe, z0, steps=0)
    for lr in (0.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="textual.lr must be 1e-08 or more"):
            learn(pipe, z0, lr=lr)
    with pytest.raises(TextError, match="violin"):
        learn(pipe, z0, prompt="a violin of an #object")
    with pytest.raises(DataError, match="class 1: there are none"):
        learn(pipe, [z0, z0[:0]])
    with pytest.raises(DataError, match="No class"):
        learn(pipe, [])
    with pytest.raises(TrainingError, match="not finite at step"), torch.no_grad():
        pipe.mix.fill_(math.nan)
        learn(pipe, z0)


# -------------------------------------------------------------------------------------- null-text inversion


@pytest.mark.parametrize("schedule", ["constant", "published"])
def test_null_texts_equal_naive_ones(schedule):
    pipe, z0 = Toy(), supports(2)
    steps, inner, guidance_scale = 4, 3, 4.0
    pivots = ddim_invert(pipe, z0, cat(pipe), steps)
    u = null_text_inversion(
        pipe, pivots, cat(pipe), guidance_scale, inner_steps=inner, lr=0.02, tol=3e-5, schedule=schedule
    )
    assert not torch.allclose(u, pipe.embed([""]), atol=0.02)
    predict, bars = reference(pipe)
    null = pipe.embed([""])[0].detach().numpy()
    rates = [0.02 * (1 - i / 100) if schedule == "published" else 0.02 for i in range(steps)]
    tolerances = [3e-5 + 2e-5 * i if schedule == "published" else 3e-5 for i in range(steps)]
    for k in range(2):
        expected, arrived = naive.null_texts(
            predict,
            list(pivots[:, k].numpy()),
            cat(pipe)[0].numpy(),
            null,
            guidance_scale,
            bars,
            pipe.schedule.timesteps(steps),
            inner,
            rates,
            tolerances,
        )
        assert np.allclose(u[:, k].numpy(), expected, atol=1e-6)
        made = reconstruct(pipe, pivots[-1, k : k + 1], cat(pipe), u[:, k : k + 1], guidance_scale, steps)
        assert np.allclose(made[0].numpy(), arrived, atol=1e-6)


@pytest.mark.parametrize("guidance_scale", [3.0, 7.5])
def test_reconstruction_under_guidance_is_ten_times_better(guidance_scale):
    pipe, z0, steps = Toy(), supports(4), 25
    pivots = ddim_invert(pipe, z0, cat(pipe), steps)
    before = {name: value.clone() for name, value in pipe.state_dict().items()}
    cond = cat(pipe).requires_grad_(True)
    given = cond.detach().clone()
    u = null_text_inversion(pipe, pivots, cond, guidance_scale)
    assert u.shape == (steps, 4, LENGTH, WIDTH)
    plain = error(pipe, z0, pivots[-1], None, guidance_scale, steps)
    corrected = error(pipe, z0, pivots[-1], u, guidance_scale, steps)
    assert corrected < plain / 10
    # nothing else moved, and nothing else got a gradient
    assert all(torch.equal(before[name], value) for name, value in pipe.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in pipe.parameters())
    assert cond.grad is None
    assert torch.equal(cond, given)
    assert not u.requires_grad
    # the controls: with another scale, or other images' null texts, they do not help
    assert error(pipe, z0, pivots[-1], u, 2 * guidance_scale, steps) > 10 * corrected
    assert error(pipe, z0, pivots[-1], u.flip(0), guidance_scale, steps) > 3 * corrected


def test_without_updates_or_guidance_the_null_texts_stay_those_of_the_empty_prompt():
    pipe = Toy()
    pivots = ddim_invert(pipe, supports(2), cat(pipe), 5)
    null = pipe.embed([""]).detach().expand(5, 2, LENGTH, WIDTH)
    pipe.calls.clear()
    assert torch.equal(null_text_inversion(pipe, pivots, cat(pipe), 7.5, inner_steps=0), null)
    assert torch.equal(null_text_inversion(pipe, pivots, cat(pipe), 1.0), null)
    assert not pipe.calls
    assert torch.equal(null_text_inversion(pipe, pivots, cat(pipe), 7.5, tol=1e6), null)
    z_T = pivots[-1]
    nulls = reconstruct(pipe, z_T, cat(pipe), null, 7.5, 5)
    assert torch.allclose(nulls, reconstruct(pipe, z_T, cat(pipe), None, 7.5, 5), atol=1e-12)
    other = torch.randn(null.shape, generator=rng(), dtype=torch.float64)
    unguided = [reconstruct(pipe, z_T, cat(pipe), u, 1.0, 5) for u in (None, other)]
    assert torch.equal(*unguided)


def test_each_image_stops_by_itself_and_batches_change_nothing():
    pipe = Toy()
    z0 = torch.cat([supports(3), supports(2, seed=1, word="dog")])
    pivots = ddim_invert(pipe, z0, cat(pipe), 8)
    seen = []
    pipe.calls.clear()
    settings = {"inner_steps": 6, "tol": 1e-3}
    whole = null_text_inversion(pipe, pivots, cat(pipe), 3.0, on_step=lambda *x: seen.append(x), **settings)
    assert max(pipe.calls) == 5
    assert min(pipe.calls) < 5  # those that stopped cost nothing more
    updates = torch.stack([n for _, _, n in seen])
    assert any(len(row.unique()) > 1 for row in updates)
    assert int(updates.max()) <= 6
    for batch in (1, 2):
        pipe.calls.clear()
        parts = null_text_inversion(pipe, pivots, cat(pipe), 3.0, batch=batch, **settings)
        assert max(pipe.calls) == batch
        assert torch.allclose(parts, whole, atol=1e-9)
    turned = null_text_inversion(pipe, pivots.flip(1), cat(pipe), 3.0, **settings)
    assert torch.allclose(turned.flip(1), whole, atol=1e-9)


def test_the_published_tolerance_grows_with_the_steps():
    pipe = Toy()
    pivots = ddim_invert(pipe, supports(6), cat(pipe), 25)
    seen = []
    settings = {"inner_steps": 1, "lr": 1e-8, "tol": 0.0, "on_step": lambda *x: seen.append(x)}
    null_text_inversion(pipe, pivots, cat(pipe), 1.1, schedule="published", **settings)
    expected = torch.stack([errors >= 2e-5 * i for i, errors, _ in seen])
    assert torch.equal(torch.stack([updates for _, _, updates in seen]), expected.long())
    assert 0.1 < expected.double().mean() < 0.9


@pytest.mark.parametrize("steps", [1, 1000])
def test_the_smallest_and_the_largest_number_of_steps(steps):
    pipe, z0 = Toy(), supports(2)
    pivots = ddim_invert(pipe, z0, cat(pipe), steps)
    u = null_text_inversion(pipe, pivots, cat(pipe), 3.0, inner_steps=2, lr=0.03)
    assert u.shape == (steps, 2, LENGTH, WIDTH)
    plain, corrected = (error(pipe, z0, pivots[-1], v, 3.0, steps) for v in (None, u))
    assert corrected < plain


def test_no_guidance_at_all_is_a_scale_too():
    """At guidance scale 0 the null text alone paints, and can be made to."""
    pipe, z0 = Toy(), supports(2)
    pivots = ddim_invert(pipe, z0, cat(pipe), 10)
    u = null_text_inversion(pipe, pivots, cat(pipe), 0.0, lr=0.05)
    assert error(pipe, z0, pivots[-1], u, 0.0, 10) < 0.5 * error(pipe, z0, pivots[-1], None, 0.0, 10)


def test_more_updates_never_make_a_step_worse():
    pipe = Toy()
    pivots = ddim_invert(pipe, supports(3), cat(pipe), 5)
    first = []
    for inner in (0, 1, 2, 5):
        errors = []
        null_text_inversion(
            pipe,
            pivots,
            cat(pipe),
            7.5,
            inner_steps=max(inner, 1),
            lr=1.0 if inner < 2 else 0.05,
            tol=1e6 if inner == 0 else 0.0,
            on_step=lambda i, e, n, kept=errors: kept.append(e),
        )
        first.append(errors[0])
    # A leap of length 1 overshoots, and is not taken over.
    assert all((after <= before + 1e-15).all() for before, after in zip(first, first[1:], strict=False))
    assert (first[-1] < 0.5 * first[0]).all()


def test_sixteen_bits_invert_too():
    pipe = Toy(dtype=torch.bfloat16)
    z0 = supports(2).float()
    pivots = ddim_invert(pipe, z0, cat(pipe), 10)
    assert pivots.dtype == torch.float32
    u = null_text_inversion(pipe, pivots, cat(pipe), 7.5, lr=0.03)
    assert u.dtype == torch.float32
    assert learn(pipe, z0).embedding.dtype == torch.float32
    assert error(pipe, z0, pivots[-1], u, 7.5, 10) < 0.2 * error(pipe, z0, pivots[-1], None, 7.5, 10)


def test_bad_input_of_null_text_inversion_and_reconstruction():
    pipe = Toy()
    pivots = ddim_invert(pipe, supports(2), cat(pipe), 5)
    with pytest.raises(ShapeError, match="Pivots"):
        null_text_inversion(pipe, pivots[:1], cat(pipe), 3.0)
    with pytest.raises(ConfigError, match='schedule is "linear". Choose one of: constant, published'):
        null_text_inversion(pipe, pivots, cat(pipe), 3.0, schedule="linear")
    with pytest.raises(ConfigError, match="ends at 100 steps"):
        null_text_inversion(pipe, pivots[:1].repeat(102, 1, 1, 1, 1), cat(pipe), 3.0, schedule="published")
    with pytest.raises(ConfigError, match="inner_steps"):
        null_text_inversion(pipe, pivots, cat(pipe), 3.0, inner_steps=-1)
    for lr in (0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="null_text.lr must be 1e-08 or more"):
            null_text_inversion(pipe, pivots, cat(pipe), 3.0, lr=lr)
    with pytest.raises(DataError, match="not finite"):
        null_text_inversion(pipe, pivots * math.nan, cat(pipe), 3.0)
    u = null_text_inversion(pipe, pivots, cat(pipe), 3.0, inner_steps=0)
    with pytest.raises(ConfigError, match="for 5 steps, but 6 steps"):
        reconstruct(pipe, pivots[-1], cat(pipe), u, 3.0, 6)
    with pytest.raises(ShapeError, match="for 1 latents"):
        reconstruct(pipe, pivots[-1, :1], cat(pipe), u, 3.0, 5)
    with torch.no_grad():
        pipe.mix[0, 0] = math.nan
    with pytest.raises(TrainingError, match="not finite at time 999"):
        null_text_inversion(pipe, pivots, torch.zeros_like(cat(pipe)), 3.0)
