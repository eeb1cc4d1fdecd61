"""SQ-GAN: the quantiser, what each term of the objective moves, and what comes out of a model."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from tests.methods.sq_gan_tools import KINDS, NAMES, batch_of, config_of, context_of, draw, make, rng, shapes
from tests.reference import naive_gan_training as naive

import fewgen
from fewgen.config import list_presets, load_preset, resolve
from fewgen.errors import CheckpointError, ConfigError, ShapeError
from fewgen.generation import GenerationRequest, image_seeds
from fewgen.losses.consistency import Consistency
from fewgen.methods.base import DataSpec
from fewgen.methods.sq_gan import SqGan, SqGanConfig
from fewgen.methods.sq_gan.config import QuantizerConfig
from fewgen.methods.sq_gan.quantizer import StyleQuantizer
from fewgen.methods.store import load_method
from fewgen.nn.ema import EMA
from fewgen.training import TrainConfig

CODED = {name: change for name, change in KINDS.items() if name != "plain"}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
every_coded_kind = pytest.mark.parametrize("kind", CODED.values(), ids=CODED)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
SEEDS = torch.arange(6)


def quantizer(width=8, layers=1, seed=0, **settings):
    """A quantiser with codes, and linear maps if there are any, at random."""
    made = StyleQuantizer(width, QuantizerConfig(**{"codebook_size": 16, "code_dim": 2, **settings}), layers)
    for i, table in enumerate(made.tables()):
        table.start_from(draw(*table.codes.shape, seed=seed + i))
    for i, layer in enumerate((made.before, made.after)):
        if layer is not None:
            layer.weight.data += 0.3 * draw(width, width, seed=seed + 20 + i)
            layer.bias.data += 0.3 * draw(width, seed=seed + 30 + i)
    return made.eval()


def number(x):
    return float(x.detach())


def numbers(x):
    return x.detach().double().numpy()


# ------------------------------------------------------------------------------------------ the quantiser


@pytest.mark.parametrize("settings", [{}, {"per_position": True}, {"code_dim": 4}, {"code_dim": 1}], ids=str)
def test_each_piece_becomes_the_nearest_code_in_order(settings):
    made, w = quantizer(**settings), draw(7, 8, seed=9)
    found = made(w)
    codes, indices, error = naive.quantise(numbers(w), numbers(made.tables()[0].codes))
    assert found.indices.dtype == torch.int64
    assert found.indices.tolist() == indices.tolist()
    np.testing.assert_array_equal(numbers(found.styles), codes)
    assert number(found.codebook_loss) == pytest.approx(error, rel=1e-5)
    assert number(found.commitment_loss) == pytest.approx(0.25 * error, rel=1e-5)
    assert number(found.loss) == pytest.approx(1.25 * error, rel=1e-5)
    norm = np.linalg.norm(numbers(w) - codes) / np.linalg.norm(numbers(w))
    assert float(found.error) == pytest.approx(norm, rel=1e-5)
    entropies = [indices] if not settings.get("per_position") else list(indices.T)
    assert float(found.perplexity) == pytest.approx(np.mean([naive.perplexity(i) for i in entropies]))
    assert torch.equal(made.lookup(found.indices), found.styles)
    again = made(found.styles)
    assert torch.equal(again.indices, found.indices)
    assert torch.equal(again.styles, found.styles)


def test_each_layer_of_layered_styles_has_its_own_codebook():
    made, w = quantizer(layers=3), draw(5, 3, 8, seed=9)
    found = made(w)
    errors = []
    for i, table in enumerate(made.tables()):
        codes, indices, error = naive.quantise(numbers(w[:, i]), numbers(table.codes))
        np.testing.assert_array_equal(numbers(found.styles[:, i]), codes)
        assert found.indices[:, i].tolist() == indices.tolist()
        errors.append(error)
    assert number(found.codebook_loss) == pytest.approx(np.mean(errors), rel=1e-5)
    assert torch.equal(made.lookup(found.indices), found.styles)
    for wrong in (draw(5, 8), draw(5, 2, 8)):
        with pytest.raises(ShapeError, match=r"\(B, 3, 8\)"):
            made(wrong)
    with pytest.raises(ShapeError, match=r"\(B, 3, s\)"):
        made.lookup(found.indices[:, 0])


def test_normalised_styles_have_unit_mean_square_before_they_are_cut():
    made, w = quantizer(normalize=True), draw(7, 8, seed=9)
    scaled = numbers(w) / np.sqrt((numbers(w) ** 2).mean(1, keepdims=True))
    assert made(w).indices.tolist() == naive.quantise(scaled, numbers(made.tables()[0].codes))[1].tolist()
    assert torch.equal(made(5 * w).indices, made(w).indices)


def test_linear_maps_stand_before_and_after_and_start_as_identities():
    plain = StyleQuantizer(8, QuantizerConfig(codebook_size=16, code_dim=2, project=True)).eval()
    assert torch.equal(plain.prepare(draw(4, 8)), draw(4, 8))
    made, w = quantizer(project=True), draw(7, 8, seed=9)
    before, after = ((numbers(m.weight), numbers(m.bias)) for m in (made.before, made.after))
    mapped = numbers(w) @ before[0].T + before[1]
    codes, indices, _ = naive.quantise(mapped, numbers(made.tables()[0].codes))
    assert made(w).indices.tolist() == indices.tolist()
    np.testing.assert_allclose(numbers(made(w).styles), codes @ after[0].T + after[1], atol=1e-5)
    assert torch.equal(made.lookup(made(w).indices), made(w).styles)


@pytest.mark.parametrize(("width", "code_dim"), [(10, 4), (64, 5), (7, 2)])
def test_a_code_that_does_not_divide_the_style_names_widths_that_do(width, code_dim):
    with pytest.raises(ConfigError, match=f"code_dim {code_dim} does not divide.*network.w_dim {width}") as e:
        StyleQuantizer(width, QuantizerConfig(code_dim=code_dim))
    named = [int(word) for word in str(e.value).split("Use one of ")[1].split(", or")[0].split(", ")]
    assert named
    for good in named:
        assert StyleQuantizer(width, QuantizerConfig(code_dim=good)).pieces * good == width
    for space, name in (("w", "network.w_dim 8"), ("z", "network.z_dim 8")):
        with pytest.raises(ConfigError, match=f"does not divide.*{name}"):
            SqGan(config_of({"quantizer": {"code_dim": 3, "space": space}}), DataSpec.of(shapes()))
    with pytest.raises(ShapeError, match=r"\(\.\.\., 8\)"):
        quantizer()(draw(3, 6))


def test_perplexity_is_the_number_of_codes_if_all_serve_equally_and_one_if_one_does():
    made = quantizer(code_dim=1, codebook_size=8, width=8)
    made.set_codes(torch.arange(8.0)[:, None])
    assert float(made(torch.arange(8.0).expand(4, 8)).perplexity) == pytest.approx(8.0, rel=1e-6)
    assert float(made(torch.full((4, 8), 3.2)).perplexity) == 1.0


@pytest.mark.parametrize("settings", [{}, {"project": True}, {"per_position": True}, {"layers": 3}], ids=str)
def test_the_gradient_passes_straight_through(settings):
    made = quantizer(**settings)
    w = draw(5, 3, 8, seed=9) if settings.get("layers") else draw(5, 8, seed=9)
    w.requires_grad_(True)
    styles = made(w).styles
    value = (styles.sin() * draw(*styles.shape, seed=1)).sum() + styles.square().sum().sqrt()
    at_styles, at_w = torch.autograd.grad(value, [styles, w])
    assert float(at_styles.abs().min()) > 0
    expected = at_styles
    if made.before is not None and made.after is not None:
        expected = at_styles @ made.after.weight @ made.before.weight
    torch.testing.assert_close(at_w, expected, rtol=1e-5, atol=1e-6)
    if not settings.get("project"):
        assert torch.equal(at_w, at_styles)


def test_straight_through_leaves_the_codes_alone_and_each_loss_moves_its_own_side():
    made = quantizer()
    w = draw(5, 8, seed=9).requires_grad_(True)
    table = made.tables()[0].codes
    found = made(w)

    def slopes(value):
        return torch.autograd.grad(value, [w, table], retain_graph=True, allow_unused=True)

    at_w, at_codes = slopes(found.styles.square().sum())
    assert at_codes is None or not at_codes.any()
    assert at_w.any()
    at_w, at_codes = slopes(found.codebook_loss)
    assert at_w is None or not at_w.any()
    assert at_codes.abs().sum(-1).bool().sum() == len(found.indices.unique())
    at_w, at_codes = slopes(found.commitment_loss)
    assert at_codes is None or not at_codes.any()
    # d / dw of beta |w - c|^2 averaged over 5 rows of 4 pieces.
    torch.testing.assert_close(at_w, 0.25 * 2 * (w - found.styles).detach() / 20, atol=1e-7, rtol=1e-4)
    on_codes = made(made(w).styles.detach())
    assert number(on_codes.loss) == 0.0
    assert float(on_codes.error) == 0.0


def test_learning_can_wait_and_then_counts_each_step_once():
    at_once, later = quantizer(update="ema").train(), quantizer(update="ema").train()
    w, before = draw(5, 8, seed=9), numbers(quantizer(update="ema").tables()[0].codes)
    first = later(w, learn=False)
    assert (numbers(later.tables()[0].codes) == before).all()
    assert later.training
    assert later.codebooks.training
    later.learn(first)
    at_once(w)
    assert (numbers(later.tables()[0].codes) != before).any()
    for a, b in zip(at_once.state_dict().values(), later.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    later.eval().learn(first)
    assert torch.equal(later.tables()[0].codes, at_once.tables()[0].codes)


def test_an_average_of_weights_quantises_with_its_own_codes():
    made = quantizer()
    ema, w = EMA(made, 0.5), draw(6, 8, seed=9)
    for _ in range(3):
        made.set_codes(made.tables()[0].codes[0] + draw(16, 2, seed=5))
        ema.update(made)
    live = made(w).indices
    with ema.applied_to(made):
        averaged = numbers(made.tables()[0].codes)
        assert made(w).indices.tolist() == naive.quantise(numbers(w), averaged)[1].tolist()
        assert not torch.equal(made(w).indices, live)
    assert torch.equal(made(w).indices, live)


def test_codes_are_set_for_every_table_or_refused():
    made = quantizer(layers=2, per_position=True)
    made.set_codes(draw(16, 2, seed=4))
    for table in made.tables():
        assert torch.equal(table.codes.detach(), draw(16, 2, seed=4).expand(4, 16, 2))
    for wrong in (draw(15, 2), draw(16, 3), torch.full((16, 2), torch.nan)):
        with pytest.raises(ShapeError):
            made.set_codes(wrong)


# ------------------------------------------------------------------------------- terms of the objective


def terms_of(method, data=None, step=0, seed=3, mode=True):
    """Terms of both players in one step, before either moves."""
    data = shapes() if data is None else data
    method.train(mode)
    context, batch = context_of(data, step, seed=seed), batch_of(data)
    judge = method._discriminator_loss(batch, context)
    return judge, method._generator_loss(batch, context)


def size_of_gradient(value, module):
    parameters = list(module.parameters())
    if not (value.requires_grad and parameters):
        return 0.0
    found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return sum(float(g.abs().sum()) for g in found if g is not None)


def pairs(**settings):
    return {"consistency_weights": settings}


LOUD = {
    "network": {"noise": True},
    "adversarial_augment": "diffaugment",
    "policy": "color,translation,cutout",
}


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"quantizer": {"update": "ema"}},
        {"quantizer": {"restart_after": 1}},
        {"quantizer": {"space": "z"}},
        {"quantizer": {"space": "w+"}},
        {"quantizer": None},
        {"style_mixing": 0.9},
        {"quantizer": {"space": "w+"}, "style_mixing": 0.9},
        {"adversarial_augment": "ada"},
    ],
    ids=str,
)
def test_consistency_is_exactly_zero_without_a_step_and_reaches_the_discriminator_alone(kind):
    still = make(LOUD, pairs(latent=1.0, sigma=0.0), kind)
    moved = make(LOUD, pairs(latent=1.0, sigma=1.0), kind)
    for method in (still, moved):
        if "p" in dict(method.augment.named_buffers()):
            method.augment.p.fill_(0.9)
    zero = terms_of(still)[0]
    assert number(zero.values["consistency_latent"]) == 0.0
    if kind.get("quantizer", 1) is not None:
        assert float(zero.stats["changed_codes"]) == 0.0
    judge = terms_of(moved)[0]
    term = judge.values["consistency_latent"]
    assert number(term) > 0
    assert size_of_gradient(term, moved.discriminator) > 0
    for part in (moved.mapping, moved.synthesis, moved.quantizer):
        if part is not None:
            assert size_of_gradient(term, part) == 0
    if "changed_codes" in judge.stats:
        assert 0 < float(judge.stats["changed_codes"]) <= 1


def test_consistency_vanishes_where_no_code_changes_but_not_without_codes():
    near = pairs(latent=1.0, sigma=1e-4)
    judge = terms_of(make(LOUD, near))[0]
    assert float(judge.stats["changed_codes"]) == 0.0
    assert number(judge.values["consistency_latent"]) == 0.0
    assert number(terms_of(make(LOUD, near, {"quantizer": None}))[0].values["consistency_latent"]) > 0


def test_consistency_is_the_mean_square_of_the_gap_between_logits():
    method = make(pairs(latent=0.3, sigma=0.5))
    judge = terms_of(method)[0]
    data, again = shapes(), rng()
    batch = batch_of(data)
    z, step = torch.randn(8, 8, generator=again), torch.randn(8, 8, generator=again)
    c = torch.eye(3)[batch.labels]
    with torch.no_grad():
        logits = []
        for latents in (z, z + 0.5 * step):
            table = numbers(method.quantizer.tables()[0].codes)
            codes = naive.quantise(numbers(method.mapping(latents, c)), table)[0]
            images = method.synthesis(torch.tensor(codes).float(), "none")
            logits.append(numbers(method.discriminator(images, c)))
        real = numbers(method.discriminator(batch.images, c))
    expected = np.mean([(a - b) ** 2 for a, b in zip(*logits, strict=True)])
    assert number(judge.values["consistency_latent"]) == pytest.approx(expected, rel=1e-4)
    assert judge.weights["consistency_latent"] == 0.3
    assert number(judge.values["fake"]) == pytest.approx(np.log1p(np.exp(logits[0])).mean(), rel=1e-5)
    assert number(judge.values["real"]) == pytest.approx(np.log1p(np.exp(-real)).mean(), rel=1e-5)
    assert float(judge.stats["real_logit"]) == pytest.approx(real.mean(), rel=1e-4, abs=1e-6)


def test_terms_that_are_computed_every_few_steps_weigh_as_much_more():
    method = make(pairs(latent=0.3, diversity=0.2, sigma=0.5, every=3))
    for step in range(4):
        judge, player = terms_of(method, step=step)
        due = step % 3 == 0
        assert ("consistency_latent" in judge.values) == due
        assert ("consistency_diversity" in player.values) == due
        assert judge.weights["consistency_latent"] == pytest.approx(0.9)
        if due:
            assert player.weights["consistency_diversity"] == pytest.approx(0.6)


def test_consistency_of_augmented_images_needs_an_augmentation():
    both = {"consistency": "bcr", "view": "flip,color"}
    judge, player = terms_of(make(both))
    assert set(judge.values) == {"real", "fake", "consistency_real", "consistency_fake"}
    assert all(number(value) > 0 for value in judge.values.values())
    assert judge.weights["consistency_real"] == judge.weights["consistency_fake"] == 10.0
    method = make(both)
    for name in ("consistency_real", "consistency_fake"):
        value = terms_of(method)[0].values[name]
        assert size_of_gradient(value, method.discriminator) > 0
        assert size_of_gradient(value, method.synthesis) == 0
    # With the same draw of what the discriminator sees for both images of a pair.
    still = terms_of(make(LOUD, both, {"view": ""}))[0]
    assert number(still.values["consistency_real"]) == number(still.values["consistency_fake"]) == 0.0
    assert "consistency_fake" not in terms_of(make({"consistency": "cr"}))[0].values
    assert set(terms_of(make({"consistency": "none"}))[0].values) == {"real", "fake"}
    assert "consistency_diversity" in terms_of(make({"consistency": "zcr"}))[1].values
    del player


def test_the_generators_term_moves_generator_and_never_codes_but_by_their_own_loss():
    method = make({"adversarial_augment": "diffaugment"})
    _, player = terms_of(method)
    fooled = player.values["adversarial"]
    assert size_of_gradient(fooled, method.mapping) > 0
    assert size_of_gradient(fooled, method.synthesis) > 0
    assert size_of_gradient(fooled, method.quantizer) == 0
    assert size_of_gradient(player.values["quantisation"], method.quantizer) > 0
    assert size_of_gradient(player.values["quantisation"], method.mapping) > 0
    assert size_of_gradient(player.values["quantisation"], method.synthesis) == 0
    assert size_of_gradient(player.values["uniformity"], method.quantizer) > 0
    assert size_of_gradient(player.values["uniformity"], method.mapping) == 0
    weights = {"quantisation": 0.01, "uniformity": 0.02}
    other = terms_of(make({"quantizer": {"uniformity": 2.0}}))[1]
    assert other.weights == pytest.approx(weights)
    assert set(terms_of(make({"quantizer": None}))[1].values) == {"adversarial"}


def test_without_codes_moving_by_gradient_only_running_means_move_them():
    method = make({"quantizer": {"update": "ema"}})
    before = method.quantizer.tables()[0].codes.clone()
    _, player = terms_of(method)
    assert not torch.equal(method.quantizer.tables()[0].codes, before)
    assert int(method.quantizer.tables()[0].steps) == 1  # once per step, and not for neighbours
    assert number(player.values["quantisation"]) > 0
    del method
    method = make({"quantizer": {"update": "ema"}})
    terms_of(method, mode=False)
    assert torch.equal(method.quantizer.tables()[0].codes, before)


def test_the_generators_update_refuses_images_of_another_step():
    method, data = make(), shapes()
    with pytest.raises(RuntimeError, match="images of the discriminator"):
        method._generator_loss(batch_of(data), context_of(data))
    method._discriminator_loss(batch_of(data), context_of(data, step=1))
    with pytest.raises(RuntimeError, match="images of the discriminator"):
        method._generator_loss(batch_of(data), context_of(data, step=2))


@pytest.mark.parametrize("every", [1, 5])
def test_r1_is_the_square_of_the_slope_times_half_its_weight_and_interval(every):
    method = make({"r1_gamma": 0.4, "r1_every": every, "network": {"group_size": 1}})
    method.double()
    method.classes = method.classes.double()
    data = shapes()
    batch = batch_of(data, 4)
    batch = dataclasses.replace(batch, images=batch.images.double())
    terms = method._r1_loss(batch, context_of(data))
    squares = []
    with torch.no_grad():
        for image, label in zip(batch.images, batch.labels, strict=True):
            c = method.classes[label][None]
            total = 0.0
            for place in np.ndindex(*image.shape):
                step = torch.zeros_like(image)
                step[place] = 1e-5
                up, down = (float(method.discriminator((image + s * step)[None], c)) for s in (1, -1))
                total += ((up - down) / 2e-5) ** 2
            squares.append(total)
    assert number(terms.values["r1"]) == pytest.approx(np.mean(squares), rel=1e-4)
    assert number(terms.total()) == pytest.approx(0.2 * every * np.mean(squares), rel=1e-4)
    assert size_of_gradient(terms.total(), method.discriminator) > 0


@pytest.mark.parametrize("kind", [{}, {"quantizer": {"space": "w+"}}, {"quantizer": None}, LOUD], ids=str)
def test_path_length_moves_the_generator_and_its_running_mean_in_training(kind):
    method = make({"path_weight": 2.0, "path_every": 4}, kind).train()
    data = shapes()
    terms = method._path_loss(batch_of(data), context_of(data))
    assert float(method.path_length.mean) > 0
    assert terms.weights == {"path_length": 8.0}
    assert size_of_gradient(terms.values["path_length"], method.synthesis) > 0
    if method.quantizer is not None:
        assert size_of_gradient(terms.values["path_length"], method.quantizer) == 0


# ------------------------------------------------------------------------- truncation and style mixing


@pytest.mark.parametrize(
    "kind", [{}, {"quantizer": {"per_position": True}}, {"quantizer": {"space": "w+"}}], ids=str
)
@pytest.mark.parametrize("psi", [0.0, 0.4, 1.0, 1.5])
def test_truncation_comes_first_and_quantisation_last(kind, psi):
    method, z = make(kind), draw(6, 8)
    c = method.condition(LABELS)
    many = torch.randn(4096, 8, generator=rng(1))
    with torch.no_grad():
        w = method.styles(z, LABELS)
        centre = method.centre(c, 6)
        for k in range(3):  # the centre is a class's own mean style
            mean = method.styles(many, torch.full((4096,), k)).mean(0)
            torch.testing.assert_close(centre[k], mean, atol=0.12, rtol=0)
            assert torch.equal(centre[k], centre[k + 3])
        wanted = centre + psi * (w - centre)
        if method.quantizer.layers > 1:
            wanted = wanted[:, None].expand(-1, method.synthesis.n_layers, -1)
        styles, codes = method.quantized(z, c, psi)
        assert torch.equal(styles, method.quantizer(wanted).styles)
        assert torch.equal(method.quantizer.lookup(codes.indices), styles)


@every_kind
def test_without_spread_a_class_has_one_image(kind):
    method = make(kind)
    vectors = method.class_vectors(LABELS)
    images = method.sample(vectors, LABELS, SEEDS, 0.0)
    torch.testing.assert_close(images[:3], images[3:], atol=1e-6, rtol=0)
    if kind != KINDS["no classes"]:
        assert float((images[0] - images[1]).abs().max()) > 1e-3
    spread = method.sample(vectors, LABELS, SEEDS, 1.0)
    assert float((spread[:3] - spread[3:]).abs().amax((1, 2, 3)).min()) > 1e-3
    assert float(spread.abs().max()) <= 1.0


@pytest.mark.parametrize("kind", [{}, {"quantizer": {"space": "w+"}}, {"quantizer": None}], ids=str)
def test_mixed_styles_change_once_to_those_of_another_latent_after_quantisation(kind):
    method = make(kind, {"style_mixing": 0.7})
    c = torch.eye(3)[torch.arange(200) % 3]
    own, _ = method.quantized(draw(200, 8), c)
    others, cut = method._mixing(200, c, rng())
    mixed = method._mixed(own, (others, cut))
    n_layers = method.synthesis.n_layers
    assert mixed.shape == (200, n_layers, 8)
    assert 0.2 < float((cut == n_layers).float().mean()) < 0.4
    assert set(cut.tolist()) == set(range(1, n_layers + 1))
    own, others = (s[:, None].expand(-1, n_layers, -1) if s.ndim == 2 else s for s in (own, others))
    for i, k in enumerate(cut.tolist()):
        assert torch.equal(mixed[i, :k], own[i, :k])
        assert torch.equal(mixed[i, k:], others[i, k:])
    assert make(kind)._mixing(200, c, rng()) is None


def test_mixing_is_used_in_training_and_not_in_sampling():
    plain, mixing = make(), make({"style_mixing": 0.9})
    assert torch.equal(plain.sample(None, LABELS, SEEDS, 1.0), mixing.sample(None, LABELS, SEEDS, 1.0))
    a, b = (terms_of(method)[0].values["fake"] for method in (plain, mixing))
    assert number(a) != number(b)


# ------------------------------------------------------------------------------------- generated images


@every_kind
def test_an_image_depends_on_its_own_row_alone(kind):
    method = make(kind)
    labels, seeds = torch.arange(70) % 3, image_seeds(1, 70)
    whole = method.generate(GenerationRequest(labels=labels, seeds=seeds)).images
    order = torch.randperm(70, generator=rng())
    shuffled = method.generate(GenerationRequest(labels=labels[order], seeds=seeds[order])).images
    assert torch.equal(shuffled, whole[order])
    alone = method.generate(GenerationRequest(labels=labels[5:6], seeds=seeds[5:6])).images
    assert torch.equal(alone[0], whole[5])
    cool = method.generate(GenerationRequest(labels=labels, seeds=seeds, temperature=0.7)).images
    again = method.generate(GenerationRequest(labels=labels[60:], seeds=seeds[60:], temperature=0.7)).images
    assert torch.equal(again, cool[60:])
    assert not torch.equal(cool, whole)


@every_kind
def test_a_saved_model_makes_the_same_images_bit_for_bit(kind, tmp_path):
    method = make(kind)
    method.save(tmp_path / "model.safetensors")
    loaded = load_method(tmp_path / "model.safetensors")
    assert loaded.config == method.config
    for temperature in (0.0, 0.6, 1.0):
        images = [m.sample(m.class_vectors(LABELS), LABELS, SEEDS, temperature) for m in (method, loaded)]
        assert torch.equal(*images)
    if method.quantizer is not None:
        codes = loaded.encode_codes(LABELS, SEEDS)
        assert codes.dtype == torch.int64
        assert torch.equal(codes, method.encode_codes(LABELS, SEEDS))


def test_large_images_have_their_own_memory_layout_also_from_a_file(tmp_path):
    large = make({"network": {"width": 2, "max_width": 8}}, data=shapes(n_per_class=2, size=64))
    assert _widest(large).is_contiguous(memory_format=torch.channels_last)
    assert _widest(make()).is_contiguous()
    large.save(tmp_path / "model.safetensors")
    again = load_method(tmp_path / "model.safetensors")
    labels, seeds = torch.tensor([0, 1]), torch.arange(2)
    assert torch.equal(again.sample(None, labels, seeds, 1.0), large.sample(None, labels, seeds, 1.0))
    flat = make({"network": {"width": 2, "max_width": 8}}, data=shapes(n_per_class=2, size=64))
    flat.to(memory_format=torch.contiguous_format)
    found, wanted = (m.sample(None, labels, seeds, 1.0) for m in (large, flat))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def _widest(method):
    return max((p for p in method.synthesis.parameters() if p.ndim == 4), key=lambda p: p.shape[2:].numel())


def test_a_file_of_other_sizes_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    make().save(tmp_path / "model.safetensors")
    tensors = load_file(tmp_path / "model.safetensors")
    from safetensors import safe_open

    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    name = next(name for name in tensors if name.endswith("codes"))
    tensors[name] = tensors[name][:, :15].contiguous()
    save_file(tensors, tmp_path / "other.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match="codes"):
        load_method(tmp_path / "other.safetensors")


@every_kind
def test_ends_of_walks_are_the_classes_themselves(kind):
    method = make(kind)
    vectors = method.class_vectors(LABELS)
    latents = method.encode_text(vectors)
    # Equal numbers of rows, so equal bits.
    assert torch.equal(method.decode(latents, SEEDS, 0.0), method.sample(vectors, LABELS, SEEDS, 0.0))
    drawn = method.sample(vectors, LABELS, SEEDS, 1.0)
    torch.testing.assert_close(method.decode(latents, SEEDS, 1.0), drawn, atol=1e-4, rtol=0)
    cool = method.sample(vectors, LABELS, SEEDS, 0.6)
    torch.testing.assert_close(method.decode(latents, SEEDS, 0.6), cool, atol=1e-4, rtol=0)
    with pytest.raises(ShapeError, match=f"{latents.shape[1]}"):
        method.decode(latents[:, 1:], SEEDS)


def test_walks_are_straight_lines_of_centres_and_quantised_everywhere():
    method = make()
    ends = method.encode_text(method.class_vectors(torch.tensor([0, 1])))
    share = torch.linspace(0, 1, 5)[:, None]
    latents = (1 - share) * ends[:1] + share * ends[1:]
    with torch.no_grad():
        expected = method.synthesis(method.quantizer(latents[:, :8]).styles, "none").clamp(-1, 1)
    assert torch.equal(method.decode(latents, torch.zeros(5, dtype=torch.int64), 0.0), expected)


def test_class_names_are_known_as_texts_in_groups_of_any_size():
    for kind in ({}, {"network": {"condition": "text"}}):
        method = make(kind)
        labels = torch.arange(64) % 3
        vectors = method.class_vectors(labels)
        seeds = torch.arange(64)
        by_text = method.sample(vectors, torch.full((64,), -1), seeds, 1.0)
        assert torch.equal(by_text, method.sample(vectors, labels, seeds, 1.0))


def test_long_vectors_of_class_names_are_known_too():
    method = make()
    vectors = 30 * draw(3, 384)
    method.spec = dataclasses.replace(
        method.spec, text=dataclasses.replace(method.spec.text, vectors=vectors)
    )
    labels = torch.arange(64) % 3
    assert torch.equal(method._condition_of(vectors[labels]), torch.eye(3)[labels])


def test_other_texts_need_a_model_of_texts():
    other = draw(2, 12, seed=7)
    with pytest.raises(ConfigError, match='condition text.*"rows", "columns", "spots"'):
        make().sample(other, torch.tensor([-1, -1]), torch.arange(2), 1.0)
    reader = make({"network": {"condition": "text"}})
    images = reader.sample(other, torch.tensor([-1, -1]), torch.zeros(2, dtype=torch.int64), 1.0)
    assert float((images[0] - images[1]).abs().max()) > 1e-3
    deaf = make({"network": {"condition": "none"}})
    images = deaf.sample(other, torch.tensor([-1, -1]), torch.zeros(2, dtype=torch.int64), 1.0)
    torch.testing.assert_close(images[0], images[1])
    with pytest.raises(ConfigError, match="text encoder"):
        make({"network": {"condition": "text"}}, text=False)
    assert make(text=False).sample(None, LABELS, SEEDS, 1.0).shape == (6, 1, 8, 8)


def test_without_classes_labels_do_not_matter():
    method = make({"network": {"condition": "none"}})
    assert method.condition(LABELS) is None
    a, b = (method.sample(None, torch.full((6,), k), SEEDS, 1.0) for k in (0, 2))
    assert torch.equal(a, b)
    named = make()
    a, b = (named.sample(None, torch.full((6,), k), SEEDS, 1.0) for k in (0, 2))
    assert float((a - b).abs().amax((1, 2, 3)).min()) > 1e-3


def test_a_model_without_classes_says_so_when_asked_for_one(tmp_path):
    method = make({"network": {"condition": "none"}})
    method.save(tmp_path / "model.safetensors")
    for asked in ({"class_names": ["spots"]}, {"texts": "spots"}):
        with pytest.raises(ConfigError, match='all its classes as one.*cannot draw "spots"'):
            fewgen.generate(tmp_path, n=1, **asked)
    with pytest.raises(ConfigError, match='cannot draw "spots"'):
        fewgen.interpolate(tmp_path, "spots", "rows")
    assert len(fewgen.generate(tmp_path, n=1).images) == len(NAMES)
    make().save(tmp_path / "named.safetensors")
    assert len(fewgen.generate(tmp_path / "named.safetensors", class_names=["spots"], n=1).images) == 1


def test_unknown_options_are_refused():
    with pytest.raises(ConfigError, match="psy"):
        make().sample(None, LABELS, SEEDS, 1.0, psy=1)


# -------------------------------------------------------------------------------------------------- codes


@every_coded_kind
def test_images_are_their_codes(kind):
    method = make(kind)
    codes = method.encode_codes(LABELS, SEEDS)
    drawn = method.sample(method.class_vectors(LABELS), LABELS, SEEDS, 1.0)
    assert torch.equal(method.from_codes(codes, SEEDS, LABELS), drawn)
    assert int(codes.min()) >= 0
    assert int(codes.max()) < 16
    kept = codes.clone()
    kept[:, ..., 0] = (kept[:, ..., 0] + 1) % 16
    assert float((method.from_codes(kept, SEEDS, LABELS) - drawn).abs().amax((1, 2, 3)).max()) > 1e-3
    cool = method.sample(method.class_vectors(LABELS), LABELS, SEEDS, 0.5)
    if method.config.quantizer.space != "z":
        cooled = method.from_codes(method.encode_codes(LABELS, SEEDS, 0.5), SEEDS)
        if not method.config.network.noise:
            assert torch.equal(cooled, cool)


def test_swapping_codes_twice_changes_nothing_and_swapping_all_exchanges_images():
    method = make()
    a, b = method.encode_codes(LABELS[:3], SEEDS[:3]), method.encode_codes(LABELS[3:], SEEDS[3:])
    first, second = method.swap_codes(a, b, [1])
    assert torch.equal(first[:, 0], a[:, 0])
    assert torch.equal(first[:, 1], b[:, 1])
    assert torch.equal(second[:, 1], a[:, 1])
    again = method.swap_codes(first, second, torch.tensor([1]))
    assert torch.equal(again[0], a)
    assert torch.equal(again[1], b)
    everything = method.swap_codes(a, b, [0, 1])
    assert torch.equal(everything[0], b)
    assert torch.equal(everything[1], a)
    nothing = method.swap_codes(a, b, [])
    assert torch.equal(nothing[0], a)
    assert not torch.equal(a, b)
    for positions in ([2], [-1]):
        with pytest.raises(ShapeError, match="0 to 1"):
            method.swap_codes(a, b, positions)
    with pytest.raises(ShapeError, match="one shape"):
        method.swap_codes(a, b[:2], [0])
    layered = make({"quantizer": {"space": "w+"}})
    a = layered.encode_codes(LABELS, SEEDS)
    assert a.shape == (6, layered.synthesis.n_layers, 2)
    assert torch.equal(layered.swap_codes(a, a.flip(0), [0])[0][..., 0], a.flip(0)[..., 0])


def test_codes_that_do_not_exist_are_refused():
    method = make()
    for wrong in (torch.full((2, 2), 16), torch.full((2, 2), -1), torch.zeros(2, 3, dtype=torch.int64)):
        with pytest.raises(ShapeError):
            method.from_codes(wrong)
    with pytest.raises(ConfigError, match="labels"):
        make({"quantizer": {"space": "z"}}).from_codes(torch.zeros(2, 2, dtype=torch.int64))
    plain = make({"quantizer": None})
    with pytest.raises(ConfigError, match="no codes"):
        plain.encode_codes(LABELS, SEEDS)
    with pytest.raises(ConfigError, match="no codes"):
        plain.from_codes(torch.zeros(2, 2, dtype=torch.int64))
    assert plain.codebook_usage(shapes()) == {}


def test_usage_counts_every_piece():
    usage = make().codebook_usage(shapes())
    assert set(usage) == {"styles"}
    assert usage["styles"].shape == (16,)
    assert int(usage["styles"].sum()) == 1024 * 2


# ------------------------------------------------------------------------------------- sizes and settings


@pytest.mark.parametrize(("size", "channels"), [(8, 3), (14, 1), (20, 1)])
def test_sizes_and_colours(size, channels):
    data = shapes(size=size, channels=channels)
    method = make({"quantizer": {"space": "w+"}}, data=data)
    assert method.sample(None, LABELS, SEEDS, 1.0).shape == (6, channels, size, size)
    judge, player = terms_of(method, data)
    assert torch.isfinite(judge.total())
    assert torch.isfinite(player.total())


@pytest.mark.parametrize("size", [29, 6, 18])
def test_an_impossible_resolution_names_one_that_works(size):
    data = shapes(size=size)
    with pytest.raises(ConfigError, match=f"{size} x {size} pixels") as caught:
        make(data=data)
    named = int(str(caught.value).rsplit("Use size ", 1)[1].rstrip("."))
    assert make(data=shapes(size=named)).spec.height == named


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": {"width": 0}}, "network.width"),
        ({"network": {"z_dim": 0}}, "network.z_dim"),
        ({"network": {"start": "constant"}}, "network.start"),
        ({"network": {"condition": "classes"}}, 'Did you mean "class"'),
        ({"network": {"architecture": "skip"}}, "residual"),
        ({"network": {"mapping_layer": 2}}, 'Did you mean "model.network.mapping_layers"|mapping_layers'),
        ({"quantizer": {"codebook_size": 1}}, "quantizer.codebook_size"),
        ({"quantizer": {"space": "v"}}, "quantizer.space"),
        ({"quantizer": {"update": "sgd"}}, "quantizer.update"),
        ({"quantizer": {"weight": -1}}, "quantizer.weight"),
        ({"init": {"kind": "ot"}}, "init.kind"),
        ({"init": {"foundation": "clip"}}, "clip:FOLDER"),
        ({"consistency": "qrc"}, "qcr"),
        ({"consistency_weights": {"latent": -1.0}}, "latent"),
        ({"consistency_weights": {"every": 0}}, "every"),
        ({"consistency": "none", "consistency_weights": {"latent": 5.0}}, "no terms, but .* gives latent"),
        ({"consistency": "cr", "consistency_weights": {"latent": 5.0}}, "terms real, but .* gives latent"),
        ({"consistency": "qcr", "consistency_weights": {"real": 1.0, "fake": 1.0}}, "gives real, fake"),
        ({"adversarial_augment": "diff"}, "diffaugment"),
        ({"batch_size": 1}, "batch_size"),
        ({"batch_size": 9}, "multiple of network.group_size 2"),
        ({"steps": 0}, "steps"),
        ({"lr": 0.0}, "lr"),
        ({"beta1": 1.0}, "beta1"),
        ({"style_mixing": 1.0}, "style_mixing"),
        ({"r1_gamma": -0.1}, "r1_gamma"),
        ({"loss_limit": 0.5}, "loss_limit"),
    ],
)
def test_settings_that_cannot_be_used(change, message):
    with pytest.raises(ConfigError, match=message):
        config_of(change)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"policy": "translate"}, "translation"), ({"view": "flipp"}, "flip"), ({"augment": "lightt"}, "light")],
)
def test_unknown_augmentations_are_refused_before_training(change, message):
    with pytest.raises(ConfigError, match=message):
        make({"adversarial_augment": "diffaugment"}, change).stages(shapes(), None)


def test_an_unknown_schedule_is_refused_before_training():
    with pytest.raises(ConfigError, match='Did you mean "late_decay"'):
        make({"schedule": "late_deca"}).stages(shapes(), None)


@pytest.mark.parametrize("preset", list_presets("sq_gan"))
def test_presets_are_settings_of_the_method_and_of_the_loop(preset):
    loaded = load_preset("sq_gan", preset)
    assert loaded["description"]
    assert loaded["expected"]
    config = resolve(SqGanConfig, loaded["model"], where="model")
    resolve(TrainConfig, loaded["training"], where="training")
    channels_ok = DataSpec(1, 32, 32, NAMES)
    if config.network.condition != "text":
        with torch.device("meta"):
            method = SqGan(config, channels_ok)
        assert method.stages(shapes(n_per_class=40, size=8), None)


def test_citations_follow_the_settings():
    assert {"sq_gan", "vq_vae", "r1"} <= set(make().citations)
    plain = make({"quantizer": None, "consistency": "bcr", "r1_gamma": 0.0, "adversarial_augment": "ada"})
    assert set(plain.citations) == {"stylegan2", "cr_gan", "icr_gan", "ada"}
    assert "sinkhorn" in make({"init": {"kind": "transport"}}).citations
    for kind, known in (("features", True), ("kmeans", False)):
        seen = make({"init": {"kind": kind, "foundation": "clip:folder"}}).citations
        assert ("clip" in seen) == known
    assert "uniformity" in make().citations
    assert "uniformity" not in make({"quantizer": {"uniformity": 0.0}}).citations
    assert config_of().pairs == Consistency(latent=0.01, sigma=0.1)
    assert copy.deepcopy(make()).citations == make().citations
