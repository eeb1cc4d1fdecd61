"""TAGE: what its parts promise, drawing, new classes, stopping and resuming, the commands, bad input."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from tests.fake_method import Fake
from tests.methods.sq_gan_tools import shapes
from tests.methods.tage_tools import SMALL, context_of, make, started

import fewgen
from fewgen.cli.main import main
from fewgen.config import load_preset, resolve
from fewgen.data.imageset import to_uint8
from fewgen.errors import ConfigError, ShapeError
from fewgen.generation import GenerationRequest
from fewgen.methods.base import DataSpec
from fewgen.methods.tage import Tage, TageConfig
from fewgen.methods.tage.model import projected
from fewgen.runs.run import load_run
from fewgen.training import TrainConfig
from fewgen.training.loop import Trainer
from fewgen.training.phases import Pixels

N_LAYERS = 4  # of images of 8 x 8 pixels


@pytest.fixture(scope="module")
def images():
    return shapes()


@pytest.fixture(scope="module")
def method():
    return started()


def of_all(data):
    return Pixels(data, torch.device("cpu")).at(torch.arange(len(data)))


def pictures(n=2, seed=5):
    """Pictures of two classes that no model here has learned from."""
    found = shapes(n_per_class=n, seed=seed, n_classes=2)
    return dataclasses.replace(found, class_names=("new", "newer"))


# ------------------------------------------------------------------------------------ parts


def test_the_average_style_is_added_once(images):
    method = make()
    with torch.no_grad():
        method.autoencoder.w_avg += torch.randn(8)
    x = images.floats()[:3]
    offsets = method.autoencoder.encoder(x)
    assert offsets.shape == (3, N_LAYERS, 8)
    assert torch.allclose(method.autoencoder.encode(x) - offsets, method.autoencoder.w_avg.expand_as(offsets))


def test_residuals_of_a_class_have_mean_zero_and_codes_are_fitted_to_them(method, images):
    batch = of_all(images)
    w, residuals = method._residuals("train", batch.labels, batch.indices)
    assert torch.allclose(w, method.autoencoder.encode(batch.images), atol=1e-5)
    for label in range(3):
        assert residuals[batch.labels == label].mean(0).abs().max() < 1e-5
    tokens = method.codes.tokens(residuals)
    assert torch.allclose(tokens.square().mean((0, 2)), torch.ones(N_LAYERS), atol=1e-4)


@pytest.mark.parametrize(("per_layer", "parts"), [(False, 1), (True, 1), (False, 2), (True, 2)])
def test_the_nearest_code_is_that_of_brute_force(per_layer, parts):
    method = started({"codebook": {"per_layer": per_layer, "parts": parts, "codebook_size": 24}})
    codes, n = method.codes, N_LAYERS * parts
    tokens = torch.randn(5, n, 8 // parts)
    table = codes.table if per_layer else codes.table.expand(n, -1, -1)
    wanted = [[int((row - table[i]).square().sum(1).argmin()) for i, row in enumerate(t)] for t in tokens]
    assert codes.nearest(tokens).tolist() == wanted
    assert table.shape == (n, 24 // n if per_layer else 24, 8 // parts)


def test_parts_are_principal_axes_in_turn_so_that_each_has_as_much_to_say(images):
    method = started({"codebook": {"parts": 4}, "layers": 1})
    _, residuals = method._residuals("train", of_all(images).labels)
    own = residuals[:, :1]
    tokens = method.codes.tokens(own).reshape(len(own), 8)
    spread = torch.linalg.eigvalsh(own[:, 0].T @ own[:, 0]).flip(0) / method.codes.scale**2
    in_turn = spread[[0, 4, 1, 5, 2, 6, 3, 7]]
    assert torch.allclose(tokens.square().sum(0), in_turn, rtol=1e-3, atol=1e-3 * float(spread[0]))
    back = method.codes.change(tokens.reshape(len(own), 4, 2))
    assert torch.allclose(back, own, atol=1e-5)


def test_several_codes_for_a_layer_lose_less_of_it(images):
    def lost(parts):
        method = started({"codebook": {"parts": parts, "codebook_size": 6}, "layers": 1})
        w = method.autoencoder.encode(of_all(images).images)
        return float((method.quantised(w, images.labels) - w).square().sum().detach())

    assert lost(4) < 0.75 * lost(1)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_residual_that_is_a_code_stays_and_gradients_pass_straight_through(parts):
    method = started({"codebook": {"maps": "identity", "parts": parts}})
    codes = method.codes.eval()
    indices = torch.tensor([[0, 5, 11, 3, 2, 7, 1, 6][: N_LAYERS * parts]])
    residuals = codes.change(codes.lookup(indices)).detach().requires_grad_()
    found = codes(residuals)
    assert found.indices.tolist() == indices.tolist()
    assert torch.allclose(found.change, residuals, atol=1e-6)
    assert float(found.loss.detach()) == pytest.approx(0.0, abs=1e-8)
    found.change.sum().backward()
    assert torch.allclose(residuals.grad, torch.ones_like(residuals))


def test_with_a_code_for_each_residual_images_come_back_as_from_the_autoencoder(images):
    method = started({"codebook": {"codebook_size": N_LAYERS * len(images)}})
    batch = of_all(images)
    w = method.autoencoder.encode(batch.images)
    through = method.quantised(w, batch.labels)
    scale = method.codes.scale.max()
    assert (through - w).abs().max() < 2e-3 * scale  # rows that differ by less share a code
    assert torch.allclose(method.autoencoder.decode(through), method.autoencoder.decode(w), atol=1e-3)


def test_each_stage_moves_its_own_part_alone(images):
    method = make()
    names = {id(p): name.split(".")[0] for name, p in method.named_parameters()}
    moved = {
        stage.name: {names[id(p)] for phase in stage.phases for p, _ in phase.trainable()}
        for stage in method.stages(images, None)
    }
    assert moved == {
        "autoencoder": {"autoencoder"},
        "directions": {"directions"},
        "codebook": {"codes"},
        "codes": {"predictor"},
    }
    assert "directions" not in [s.name for s in make({"age": None}).stages(images, None)]


def test_no_part_of_another_stage_gets_a_gradient(images):
    method = make()
    for stage in method.stages(images, None):
        stage.on_start(context_of(images))
        method.requires_grad_(True)
        own = {id(p) for p, _ in stage.phases[0].trainable()}
        for p in method.parameters():
            p.requires_grad_(id(p) in own)
            p.grad = None
        stage.phases[0].loss(of_all(images), context_of(images)).total().backward()
        without = [name for name, p in method.named_parameters() if id(p) in own and p.grad is None]
        # Noise maps are off.
        assert [name for name in without if "noise_strength" not in name] == [], stage.name
        assert all(p.grad is None for p in method.parameters() if id(p) not in own)
        assert not any(
            p.requires_grad for p in method.perception._network.__self__.extractor.network.parameters()
        )


def test_the_codes_losses_are_those_of_a_naive_computation(images):
    method = started({"codebook": {"image_share": 0.5}})
    batch = of_all(images)
    terms = method._codebook_loss(batch, context_of(images))
    w, residuals = method._residuals("train", batch.labels, batch.indices)
    q = method.codes.change(method.codes.lookup(method.codes.nearest(method.codes.tokens(residuals))))
    latent = (q.detach() - residuals).square().sum() / len(batch)
    assert float(terms.values["latent"].detach()) == pytest.approx(float(latent), rel=1e-4)
    n = len(batch) // 2
    x_hat = method.autoencoder.decode((w - residuals + q)[:n]).detach()
    error = (x_hat - batch.images[:n]).square().sum() / n
    assert float(terms.values["image"].detach()) == pytest.approx(float(error), rel=1e-4)
    changes = method.codes.changes_of_table().detach()
    products = torch.einsum("mld,ldn->lmn", method.class_means, changes)
    assert float(terms.values["orthogonal"].detach()) == pytest.approx(
        float(products.square().sum() / (3 * 12)), rel=1e-4
    )
    assert terms.weights["orthogonal"] == 5e-4


# ------------------------------------------------------------------------------------ AGE


def test_ages_gaussian_has_the_mean_and_covariance_of_the_coefficients():
    directions = make().directions
    n = torch.randn(200, 2, 3) @ torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.3, 0.0], [0.0, 0.0, 0.0]]) + 0.7
    directions.fit(n)
    drawn = directions.draw(torch.randn(40_000, 2, 3, generator=torch.Generator().manual_seed(0)), beta=0.0)
    for group in range(2):
        assert torch.allclose(drawn[:, group].mean(0), n[:, group].mean(0), atol=0.02)
        assert torch.allclose(drawn[:, group].T.cov(), n[:, group].T.cov(), atol=0.03)
    assert torch.equal(directions.draw(torch.randn(2, 2, 3), 0.0, 0.0)[0], directions.mean)


def test_directions_of_small_coefficients_are_not_used():
    directions = make().directions
    n = torch.randn(50, 2, 3)
    n[:, 0, 1] = 0.004 * n[:, 0, 1].sign()
    directions.fit(n)
    drawn = directions.draw(torch.randn(20, 2, 3), beta=0.005)
    used = drawn.abs().amax(0) > 0
    assert used.tolist() == [[True, False, True], [True, True, True]]


def test_groups_are_two_of_three_layers_or_two_halves():
    assert make({"age": {"groups": None}}).directions.groups == (2, 2)
    assert make({"age": {"groups": None}}, data=shapes(size=16)).directions.groups == (3, 3)


def test_the_change_of_a_layer_uses_the_coefficients_of_its_group():
    directions = make().directions
    n = torch.randn(5, 2, 3)
    change = directions.change(n)
    groups = (0, 0, 1)
    for layer, group in enumerate(groups):
        assert torch.allclose(change[:, layer], n[:, group] @ directions.directions[layer].T, atol=1e-6)
    residuals = torch.randn(5, N_LAYERS, 8)
    before = directions.coefficients(residuals)
    residuals[:, 2] += 1.0
    after = directions.coefficients(residuals)
    assert torch.equal(after[:, 0], before[:, 0])
    assert not torch.allclose(after[:, 1], before[:, 1])


# ------------------------------------------------------------------------------------ the predictor


def test_without_corruption_the_predictor_learns_the_nearest_code(images):
    method = started({"predictor": {"width": 32, "layers": 1, "heads": 2}, "layers": 2})
    batch = of_all(images)
    optimizer = torch.optim.Adam(method.predictor.parameters(), lr=1e-2)
    rng = torch.Generator().manual_seed(0)
    for _ in range(150):
        terms = method._predict_terms("train", batch.labels, batch.indices, rng, "none")
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
    _, residuals = method._residuals("train", batch.labels, batch.indices)
    z = method.codes.tokens(residuals[:, :2])
    category = method._category(method.class_means[batch.labels])
    found = method.predictor(z, torch.zeros(len(z), 2, dtype=torch.bool), category, method.codes.table)
    assert (found.logits.argmax(2) == method.codes.nearest(z)).float().mean() > 0.95


def test_corruption_masks_after_a_cosine_and_changes_what_is_left(method):
    z = torch.randn(4000, N_LAYERS, 8)
    codes = torch.zeros_like(z)
    rng = torch.Generator().manual_seed(0)
    tokens, masked = method._corrupted(z, codes, rng, "none")
    assert torch.equal(tokens, z)
    assert not masked.any()
    tokens, masked = method._corrupted(z, codes, rng, "masked")
    assert torch.equal(tokens, z)
    assert masked.any(1).all()
    # The mean of ceil(4 cos(pi u / 2)) over u in [0, 1]: (2 / pi) * sum of arccos(k / 4), k = 0..3.
    wanted = sum(2 / np.pi * np.arccos(k / 4) for k in range(4)) / 4
    assert float(masked.float().mean()) == pytest.approx(wanted, abs=0.02)
    tokens, _ = method._corrupted(z, codes, rng, "noisy")
    kinds = [(tokens == z).all(2).all(1), (tokens == 0).all(2).all(1)]
    assert [round(float(k.float().mean()), 1) for k in kinds] == [0.3, 0.2]  # a quarter, and the unswapped


# ------------------------------------------------------------------------------------ drawing


def draws(method, labels=(0, 1, 2), n=4, temperature=1.0, **options):
    return method.generate(GenerationRequest.per_class(labels, n, temperature=temperature, options=options))


@pytest.mark.parametrize("mode", ["cpm", "nn", "age"])
def test_draws_depend_on_their_seed_alone(method, mode):
    one = draws(method, mode=mode)
    again = draws(method, n=4, mode=mode)
    assert torch.equal(one.images, again.images)
    alone = method.generate(
        GenerationRequest(labels=one.labels[5:6], seeds=one.seeds[5:6], options={"mode": mode})
    )
    assert torch.equal(alone.images[0], one.images[5])
    assert (one.codes is None) == (mode == "age")
    cold = draws(method, temperature=0.0, mode=mode).images.unflatten(0, (3, 4))
    assert torch.equal(cold, cold[:, :1].expand_as(cold))


def test_codes_of_different_seeds_differ_and_depend_on_the_class_mean_alone(method):
    codes = draws(method, n=16).codes
    assert len(codes[:16].unique(dim=0)) > 4
    same = started()
    with torch.no_grad():
        same.class_means[1] = same.class_means[0]
    seeds = torch.arange(16)
    first, second = (
        same.generate(GenerationRequest(labels=torch.full((16,), label), seeds=seeds)) for label in (0, 1)
    )
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(first.images, second.images)


def test_strength_zero_gives_the_class_mean_and_other_layers_stay():
    method = started({"sampler": {"around": "mean"}}).with_classes(pictures(n=2))
    made = draws(method, labels=(3,), n=3, strength=0.0)
    mean = to_uint8(method.autoencoder.decode(method.class_means[3:4]).clamp(-1, 1))
    assert (made.images.int() - mean.int()).abs().max() <= 1
    w, change = torch.randn(2, N_LAYERS, 8), torch.randn(2, 2, 8)
    onto = method._onto(w, change, 0.5)
    assert torch.equal(onto[:, 2:], w[:, 2:])
    assert torch.equal(onto[:, :2], w[:, :2] + 0.5 * change)


@pytest.mark.parametrize("mode", ["cpm", "nn", "age"])
def test_around_an_image_strength_zero_gives_a_picture_and_codes_are_added_to_it(mode):
    method = started({"sampler": {"around": "image"}}).with_classes(pictures(n=3))
    own = to_uint8(method.autoencoder.decode(method.support_styles[:3]).clamp(-1, 1)).int()
    made = draws(method, labels=(3,), n=6, strength=0.0, mode=mode).images.int()
    assert ((made[:, None] - own).abs().flatten(2).amax(2).amin(1) <= 1).all()
    w = method._starts(torch.full((6,), 3), torch.arange(6), 1.0)
    means = method.class_means[3].expand_as(w)
    codes = method.codes.nearest(method.codes.tokens(w - means))
    found = to_uint8(method.from_codes(codes, torch.full((6,), 3), torch.arange(6), 0.5)).int()
    added = w + 0.5 * method.codes.change(method.codes.lookup(codes))
    assert (found - to_uint8(method.autoencoder.decode(added).clamp(-1, 1)).int()).abs().max() <= 1


def test_codes_give_their_images_again_and_others_give_others(method, tmp_path):
    new = method.with_classes(pictures(n=3))
    made = draws(new, labels=(0, 3, 4), n=3)
    made.save(tmp_path / "new.npz")
    with np.load(tmp_path / "new.npz") as stored:
        codes, labels, seeds = (torch.from_numpy(stored[k]) for k in ("codes", "labels", "seeds"))
    assert torch.equal(codes, made.codes)
    assert torch.equal(to_uint8(new.from_codes(codes, labels, seeds)), made.images)
    assert torch.equal(to_uint8(new.from_codes(codes[4:5], labels[4:5], seeds[4:5]))[0], made.images[4])
    other = new.from_codes((codes + 1) % 12, labels, seeds)
    assert not torch.equal(to_uint8(other), made.images)
    with pytest.raises(ShapeError, match="0 to 11"):
        new.from_codes(codes + 12, labels, seeds)
    with pytest.raises(ShapeError, match="An image has 4 codes"):
        new.from_codes(codes[:, :2], labels, seeds)
    found = new.encode_codes(shapes().floats()[:2], torch.tensor([0, 0]))
    assert found.shape == (2, N_LAYERS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "gan"}, "mode is"),
        ({"mode": "nn", "top_p": 0.5}, "top_p and steps are of the mode"),
        ({"strength": -1}, "strength must be 0 or more"),
        ({"strength": "far"}, "strength must be a number"),
        ({"top_p": 0}, "top_p must be above 0"),
        ({"top_p": 1.5}, "at most 1"),
        ({"steps": 0}, "steps must be a whole number"),
        ({"alpha": 0.5}, "Unknown options"),
    ],
)
def test_bad_options_are_refused(method, options, message):
    with pytest.raises(ConfigError, match=message):
        draws(method, **options)


def test_modes_that_need_age_say_so():
    method = started({"age": None})
    assert draws(method).codes.shape == (12, N_LAYERS)
    with pytest.raises(ConfigError, match="left out"):
        draws(method, mode="nn")


# ------------------------------------------------------------------------------------ new classes


def test_new_classes_are_their_pictures_and_old_ones_stay_bit_for_bit(method):
    before = draws(method)
    new = method.with_classes(pictures(n=3))
    assert new.spec.class_names == ("rows", "columns", "spots", "new", "newer")
    assert new.config.supports == (3, 3)
    assert torch.equal(new.class_means[:3], method.class_means)
    w = method.autoencoder.encode(pictures(n=3).floats())
    assert torch.allclose(new.class_means[3], w[:3].mean(0), atol=1e-6)
    assert torch.equal(new.support_styles, w)
    assert torch.equal(draws(new).images, before.images)
    more = new.with_classes(dataclasses.replace(pictures(n=1, seed=6), class_names=("a", "b")))
    assert more.config.supports == (3, 3, 1, 1)
    assert torch.equal(draws(more, labels=(3, 4)).images, draws(new, labels=(3, 4)).images)


def test_draws_of_a_class_with_pictures_start_from_each_of_them(method):
    new = method.with_classes(pictures(n=3))
    w = new._starts(torch.full((200,), 4), torch.arange(200), 1.0)
    rows = [int((new.support_styles[3:] - one).abs().sum((1, 2)).argmin()) for one in w]
    assert sorted(set(rows)) == [0, 1, 2]
    assert torch.equal(new._starts(torch.tensor([4]), torch.tensor([7]), 0.0)[0], new.support_styles[3])


def test_a_single_picture_is_its_own_mean_or_is_projected_on_the_means_of_the_learned_classes():
    method = started()
    one = pictures(n=1)
    assert torch.allclose(method.with_classes(one).class_means[3], method.autoencoder.encode(one.floats())[0])
    method = started({"sampler": {"single": "projection"}})
    new = method.with_classes(one)
    w = method.autoencoder.encode(one.floats())[0]
    for layer in range(N_LAYERS):
        basis = torch.linalg.qr(method.class_means[:, layer].T.double()).Q
        wanted = basis @ (basis.T @ w[layer].double())
        assert torch.allclose(new.class_means[3, layer].double(), wanted, atol=1e-4)
    again = projected(new.class_means[3], method.class_means)
    assert torch.allclose(again, new.class_means[3], atol=1e-4)


# ------------------------------------------------------------------------------------ training


def trainer(method, folder, data, held_out=None):
    settings = TrainConfig(device="cpu", progress=False, validate_every=2, checkpoint_every=0, ema_decay=0.5)
    return Trainer(method, method.stages(data, held_out), data, held_out, settings, folder)


def test_a_stop_changes_nothing(images, tmp_path):
    held_out = shapes(n_per_class=2, seed=9)
    whole = make()
    assert trainer(whole, tmp_path / "whole", images, held_out).run().finished
    for stop in (2, 6, 9, 12):
        part = make(seed=0 if stop == 2 else stop)
        one = trainer(part, tmp_path / "parts", images, held_out)
        between = one._between_steps

        def stopping(run, one=one, between=between, stop=stop):
            if one._position.total_steps == stop:
                one.stop()
            return between(run)

        one._between_steps = stopping
        assert one.run().interrupted
    last = make(seed=7)
    assert trainer(last, tmp_path / "parts", images, held_out).run().finished
    x, y = whole.state_dict(), last.state_dict()
    assert [name for name in x if not torch.equal(x[name], y[name])] == []


@pytest.mark.slow
def test_the_paper_preset_takes_a_step_of_each_stage_on_small_images():
    data = shapes(n_per_class=2, size=32, channels=3)
    small = {
        "network": {"encoder_side": 32},
        "autoencoder": {"perceptual": "none"},
        "layers": 2,  # of 18: the maps of 10,000 codes of each are what a step costs
    }
    config = resolve(TageConfig, load_preset("tage", "paper")["model"], small, where="model")
    method = Tage(config, DataSpec.of(data))
    assert method.codes.table.shape == (10_000, 512)
    assert len(method.predictor.blocks) == 9
    for stage in method.stages(data, None):
        stage.on_start(context_of(data))
        moved = [p for phase in stage.phases for p, _ in phase.trainable()]
        total = stage.phases[0].loss(of_all(data), context_of(data)).total()
        gradients = torch.autograd.grad(total, moved, allow_unused=True)
        assert torch.isfinite(total)
        assert all(g is None or bool(g.isfinite().all()) for g in gradients)
        if stage.on_end is not None:
            stage.on_end(context_of(data))
    made = method.eval().generate(GenerationRequest.per_class([0], 2))
    assert made.images.shape == (2, 3, 32, 32)
    assert made.codes.shape == (2, 2)


def test_the_paper_preset_has_the_published_sizes():
    config = resolve(TageConfig, load_preset("tage", "paper")["model"], where="model")
    with torch.device("meta"):
        method = Tage(config, DataSpec(3, 1024, 1024, ("a", "b")))
    assert method.class_means.shape == (2, 18, 512)
    assert method.codes.table.shape == (10_000, 512)
    assert method.directions.directions.shape == (6, 512, 100)
    assert method.autoencoder.synthesis.n_layers == 18


# ------------------------------------------------------------------------------------ the commands


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("tage") / "run"
    quiet = {"report": False, "progress": False, "holdout": 2}
    data = shapes()
    return fewgen.train(
        "tage", data=data, out=out, model=SMALL, class_split="2/0/1", training={"device": "cpu"}, **quiet
    ).path


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "photos"
    place.mkdir()
    for i in range(3):
        Image.fromarray(pictures(n=3).images[i, 0].numpy()).save(place / f"{i}.png")
    return place


def test_a_run_learns_from_the_base_classes_and_takes_a_new_one_in(run, folder, tmp_path, capsys):
    out = tmp_path / "mine"
    words = ["adapt", str(run), "--images", str(folder), "--class-name", "mine", "--out", str(out)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "with 3 images and no training" in said
    assert "Nothing was trained" in (out / "README.md").read_text()
    adapted = load_run(out)
    assert len(load_run(run).class_names) == 2
    assert adapted.class_names[2:] == ("mine",)
    generate = ["generate", str(out), "--class-name", "mine", "-n", "5"]
    assert main([*generate, "--strength", "0.5", "--mode", "nn", "--out", str(tmp_path / "a.npz")]) == 0
    with np.load(tmp_path / "a.npz") as stored:
        assert stored["images"].shape == (5, 8, 8)
        assert stored["codes"].shape == (5, N_LAYERS)
    assert main([*generate, "--mode", "age", "--out", str(tmp_path / "b.npz")]) == 0
    with np.load(tmp_path / "b.npz") as stored:
        assert "codes" not in stored
    assert adapted.method.config.supports == (3,)
    memory = fewgen.adapt(run, images=folder, class_names="mine")
    assert torch.equal(memory.generate(n=2).images, adapted.generate(n=2).images)
    assert list(memory.info.config["supports"]) == [3]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--steps", "5"], "--steps has no effect with a run of tage"),
        (["--lr", "0.1"], "--lr has no effect"),
        (["--part", "all"], "--part has no effect"),
        (["--replay", "3"], "--replay has no effect"),
        (["--curve"], "--curve has no effect"),
        (["--judge"], "--judge has no effect"),
    ],
)
def test_what_belongs_to_training_is_refused(run, folder, tmp_path, capsys, more, message):
    words = ["adapt", str(run), "--images", str(folder), "--class-name", "mine"]
    assert main([*words, "--out", str(tmp_path / "out"), *more]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_bad_pictures_are_refused_and_nothing_is_written(run, folder, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    known = load_run(run).class_names[0]
    assert main(["adapt", str(run), "--images", str(folder), "--class-name", known.upper(), *out]) == 2
    assert "already" in capsys.readouterr().err
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(["adapt", str(run), "--images", str(empty), "--class-name", "mine", *out]) == 2
    assert "is empty" in capsys.readouterr().err
    (empty / "a.png").write_bytes(b"no picture")
    assert main(["adapt", str(run), "--images", str(empty), "--class-name", "mine", *out]) == 2
    assert "a.png" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="No images"):
        fewgen.adapt(run, images=[])


def test_edit_shows_what_codes_add_to_an_image(run, folder, tmp_path, capsys):
    method = load_run(run).method
    assert method.code_counts.sum(1).tolist() == [12] * N_LAYERS  # 2 classes of 6 images
    image, out = str(folder / "0.png"), tmp_path / "strip.png"
    words = ["edit", str(run), "--image", image, "--layer", "1", "--codes", "3", "7", "--out", str(out)]
    assert main(words) == 0
    assert "Layer 1: codes 3, 7" in capsys.readouterr().out
    assert Image.open(out).size[0] > 3 * 8
    found = fewgen.edit(run, image=image, layer=1, codes=[3, 7], strength=2.0)
    x = torch.from_numpy(np.array(Image.open(image)))[None, None].float() / 127.5 - 1.0
    w = method.autoencoder.encode(x)
    assert torch.equal(found.original, to_uint8(method.autoencoder.decode(w).clamp(-1, 1)))
    for i, code in enumerate((3, 7)):
        changed = w.clone()
        changed[:, 1] += 2.0 * method.codes.changes_of_table()[1, :, code]
        wanted = to_uint8(method.autoencoder.decode(changed).clamp(-1, 1))[0]
        assert (found.images[0, i].int() - wanted.int()).abs().max() <= 1
    listed = fewgen.edit(run, most_used=True)
    assert listed.layers == [0, 1, 2, 3]
    for layer, codes in enumerate(listed.codes):
        assert len(codes) == 8
        assert codes[0] == int(method.code_counts[layer].argmax())
    assert main(["edit", str(run), "--list", "--out", str(tmp_path / "codes.png")]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layer", "0"], "Say which codes of which layer"),
        (["--layer", "4", "--codes", "1"], "codes 0 to 3"),
        (["--layer", "0", "--codes", "1", "12"], "There is no code 12"),
        (["--layer", "0", "--codes", "1", "--list"], "--layer has no effect with --list"),
        (["--list", "--image", "nothing.txt"], "is no image file"),
        (["--list", "--fit", "pad"], "--fit has no effect without --image"),
        (["--list", "--out", "codes.npz"], "written as one picture"),
    ],
)
def test_edits_that_cannot_be_are_refused(run, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    out = [] if "--out" in words else ["--out", "strip.png"]
    assert main(["edit", str(run), *words, *out]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"layers": 5}, "layers is 5, but the generator has 4"),
        ({"age": {"groups": [3, 3]}}, "edit 6 layers, but the generator has 4"),
        ({"codebook": {"per_layer": True, "codebook_size": 6}}, "fewer than 2 codes for each of 4 tables"),
        (
            {"codebook": {"parts": 3}},
            "codebook.parts 3 must divide network.w_dim 8. Set --model.codebook.parts to 2",
        ),
        ({"predictor": {"heads": 3}}, "must be divisible"),
        ({"autoencoder": {"augment": "shape"}}, "shapes"),
        ({"age": None, "sampler": {"mode": "age"}}, "needs age"),
        ({"supports": [1, 1, 1]}, "written by"),
    ],
)
def test_settings_that_do_not_fit_are_refused(model, message):
    with pytest.raises(ConfigError, match=message):
        make(model)


def test_options_of_editing_are_refused_by_other_methods(tmp_path, capsys):
    assert Fake.name == "fake"
    quiet = {"report": False, "progress": False, "holdout": 0, "text": "onehot"}
    other = fewgen.train("fake", data=shapes(), out=tmp_path / "other", model={"steps": 1}, **quiet)
    assert main(["generate", str(other.path), "--mode", "cpm", "--out", str(tmp_path / "a.npz")]) == 2
    assert "--mode: only methods that exchange attributes by codes" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="--strength"):
        other.generate(strength=0.5)
    with pytest.raises(ConfigError, match="cannot exchange attributes"):
        fewgen.edit(other, most_used=True)
