"""SQ-GAN in the loop: against a plain loop, stopping and resuming, divergence, bad input, the commands."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tests.methods.sq_gan_tools import KINDS, batch_of, context_of, make, shapes
from tests.reference import naive_gan_training as naive

from fewgen.cli.main import main
from fewgen.errors import ConfigError, TrainingError
from fewgen.fitting.seeds import derive_seed, make_rng
from fewgen.generation import GenerationRequest, image_seeds
from fewgen.methods.sq_gan.model import SqGan
from fewgen.methods.store import load_method
from fewgen.training import TrainConfig, Trainer
from fewgen.training.checkpoint import read_state
from fewgen.training.phases import Context, Pixels
from fewgen.training.sampler import GroupedSampler

PLAIN = {"quantizer": None, "consistency": "none"}
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
SEEDS = torch.arange(6)


def quiet(**settings):
    defaults = {
        "log_every": 1,
        "validate_every": 0,
        "preview_every": 0,
        "checkpoint_every": 0,
        "ema_decay": 0.9,
        "progress": False,
        "device": "cpu",
    }
    return TrainConfig(**{**defaults, **settings})


def trainer(method, run_dir, data=None, held_out=None, **settings):
    data = shapes() if data is None else data
    stages = method.stages(data, held_out)
    return Trainer(method, stages, data, held_out, quiet(**settings), run_dir)


def lines(run_dir, kind=None):
    found = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    for line in found:
        del line["seconds"]
    return [line for line in found if kind in (None, line["kind"])]


# ----------------------------------------------------------------------------------- against a plain loop


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"r1_every": 2, "r1_gamma": 3.0, "schedule": "late_decay"},
        {"network": {"noise": True, "condition": "none", "architecture": "plain"}, "r1_gamma": 0.0},
        {
            "path_weight": 2.0,
            "path_every": 2,
            "network": {"noise": True, "start": "const", "output": "linear"},
        },
        {"beta1": 0.0, "lr": 1e-2, "discriminator_lr": 2e-3, "network": {"condition": "text"}},
    ],
    ids=str,
)
def test_without_codes_and_consistency_it_is_a_plain_style_based_gan(change, tmp_path):
    steps = 5
    data, method = shapes(), make(PLAIN, {"steps": steps}, change)
    config, net = method.config, method.config.network
    reference = make(PLAIN, {"steps": steps}, change)

    # The same batches and the same stream of random numbers.
    stage = method.stages(data, None)[0]
    order = derive_seed(0, "order", 0)
    if net.condition == "none":
        from fewgen.training.sampler import make_sampler

        sampler = make_sampler("shuffled", data.labels, 8, order)
    else:
        sampler = GroupedSampler(data.labels, 8, order, group_size=net.group_size)
    batches = []
    for _ in range(steps):
        rows = sampler.next()
        batches.append((data.floats(rows), reference.condition(data.labels[rows])))
    settings = {
        "lr": config.lr,
        "discriminator_lr": config.discriminator_lr,
        "beta1": config.beta1,
        "r1_gamma": config.r1_gamma,
        "r1_every": config.r1_every,
        "path_weight": config.path_weight,
        "path_every": config.path_every,
        "noise": net.noise,
        "z_dim": net.z_dim,
    }

    assert net.noise or not config.path_weight  # the plain loop gives "none" to the function below as it is
    log, averaged = naive.train(
        reference.mapping,
        reference.synthesis,
        reference.discriminator,
        batches,
        make_rng("cpu", 0, "train", 0, 0),
        steps,
        settings,
        0.9,
    )

    # The state before the averaged weights take over.
    final = {}
    one = Trainer(method, [stage], data, None, quiet(), tmp_path)
    end = one._end_stage

    def keep(run):
        final.update({name: p.detach().clone() for name, p in method.named_parameters()})
        end(run)

    one._end_stage = keep
    one.run()

    names = {
        "real": "discriminator/real",
        "fake": "discriminator/fake",
        "adversarial": "generator/adversarial",
        "r1": "r1/r1",
        "r1_total": "r1/total",
        "path": "path_length/path_length",
        "path_total": "path_length/total",
    }
    found = lines(tmp_path, "train")
    assert len(found) == steps
    for line, expected in zip(found, log, strict=True):
        for name, value in expected.items():
            assert line[names[name]] == pytest.approx(value, rel=2e-3, abs=1e-6), (line["step"], name)
        assert ("r1/r1" in line) == ("r1" in expected)
        assert ("path_length/total" in line) == ("path" in expected)
    assert len({round(entry["real"], 6) for entry in log}) == steps
    for name, value in reference.named_parameters():
        torch.testing.assert_close(final[name], value.detach(), rtol=1e-2, atol=2e-4, msg=name)
    for i, part in enumerate((method.mapping, method.synthesis)):
        for name, value in part.named_parameters():
            torch.testing.assert_close(value.detach(), averaged[f"{i}.{name}"], rtol=1e-2, atol=2e-4)


def test_terms_of_weight_zero_change_nothing(tmp_path):
    silent = {
        "quantizer": None,
        "consistency": "qcr",
        "consistency_weights": {"latent": 0.0, "sigma": 0.1},
    }
    trainer(make(PLAIN), tmp_path / "a").run()
    trainer(make(silent), tmp_path / "b").run()
    assert lines(tmp_path / "a") == lines(tmp_path / "b")


# -------------------------------------------------------------------------------------------- what moves


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_kind_trains_and_every_parameter_moves(kind, tmp_path):
    method = make(kind, {"path_weight": 1.0, "path_every": 2, "style_mixing": 0.5})
    before = {name: value.clone() for name, value in method.state_dict().items()}
    stages = method.stages(shapes(), None)
    stages[-1].on_start = None  # codes stay those of the test, so that their moving is seen
    result = Trainer(method, stages, shapes(), None, quiet(), tmp_path).run()
    assert result.finished
    silent = () if method.config.network.noise else ("noise_strength",)
    for name, parameter in method.named_parameters():
        if not name.endswith(silent):
            assert not torch.equal(parameter, before[name]), name
    assert float(method.path_length.mean) > 0
    assert not method.training
    log = lines(tmp_path, "train")
    assert all(isinstance(v, (int, float, str)) and v == v for line in log for v in line.values())  # noqa: PLR0124
    assert {"discriminator/real", "discriminator/real_logit", "r1/r1", "generator/adversarial"} <= set(log[0])
    if method.quantizer is not None:
        assert {"discriminator/changed_codes", "generator/perplexity"} <= set(log[0])
        assert 0 <= log[-1]["discriminator/changed_codes"] <= 1
        assert 1 <= log[-1]["generator/perplexity"] <= 16
        assert log[-1]["generator/quantisation_error"] > 0


def test_a_players_update_moves_that_player_alone(tmp_path):
    method = make({"path_weight": 1.0})
    one = trainer(method, tmp_path)
    sides = {"discriminator": {"discriminator"}, "r1": {"discriminator"}}
    sides["generator"] = sides["path_length"] = {"mapping", "synthesis", "quantizer"}
    seen = []

    def watched(name, loss):
        def call(batch, context):
            now = {n: p.detach().clone() for n, p in method.named_parameters()}
            if seen:
                last, then = seen[-1]
                moved = {n.split(".")[0] for n in now if not torch.equal(now[n], then[n])}
                assert moved, last
                assert moved <= sides[last], (last, moved)
            seen.append((name, now))
            return loss(batch, context)

        return call

    for phase in one.stages[-1].phases:
        phase.loss = watched(phase.name, phase.loss)
    one.run()
    assert [name for name, _ in seen[:6]] == [
        "discriminator",
        "r1",
        "generator",
        "path_length",
        "discriminator",
        "generator",
    ]


def test_ada_follows_the_discriminator_and_its_state_is_saved(tmp_path):
    ada = {"adversarial_augment": "ada", "ada_kimg": 0.1, "ada_target": 0.0, "steps": 10}
    method = make(ada)
    trainer(method, tmp_path).run()
    assert int(method.augment.steps) == 2  # of the interval of 4 under way
    assert torch.equal(load_method(tmp_path).augment.p, method.augment.p)
    assert "discriminator/augment_p" in lines(tmp_path, "train")[0]
    sure = make(ada)
    sure.train()
    for _ in range(4):
        sure.augment.update(torch.full((8,), 5.0))
    assert float(sure.augment.p) > 0


# ----------------------------------------------------------------------------------- stopping and resuming

FULL = {
    "adversarial_augment": "ada",
    "ada_kimg": 0.1,
    "ada_target": 0.0,
    "consistency": "zcr",
    "network": {"noise": True},
    "quantizer": {"update": "ema", "restart_after": 1},
    "path_weight": 1.0,
    "path_every": 2,
    "style_mixing": 0.5,
    "r1_every": 3,
    "augment": "light",
    "steps": 8,
}


def stop_at(one, total_step):
    between = one._between_steps

    def stopping(run):
        if one._position.total_steps == total_step:
            one.stop()
        return between(run)

    one._between_steps = stopping
    return one


@pytest.mark.parametrize(
    "settings", [{}, FULL, {"init": {"kind": "random"}, "consistency": "bcr"}], ids=["default", "full", "bcr"]
)
def test_a_stop_changes_nothing(settings, tmp_path):
    held_out = shapes(n_per_class=2, seed=9)
    common = {"validate_every": 3}
    whole = trainer(make(settings), tmp_path / "whole", held_out=held_out, **common)
    assert whole.run().finished
    for stop in (1, 4, 5):
        one = stop_at(
            trainer(make(settings, seed=stop), tmp_path / "parts", held_out=held_out, **common), stop
        )
        if stop == 1:  # the first session starts from the same weights; later ones find them in the state
            one = stop_at(trainer(make(settings), tmp_path / "parts", held_out=held_out, **common), stop)
        assert one.run().interrupted
    last = trainer(make(settings, seed=7), tmp_path / "parts", held_out=held_out, **common)
    assert last.run().finished
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")
    x, y = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert x.keys() == y.keys()
    assert [name for name in x if not torch.equal(x[name], y[name])] == []
    if settings is FULL:
        assert int(x["model.augment.steps"]) == 0  # two intervals of 4 steps
        assert float(x["model.augment.mean_sign"]) != 0
        assert float(x["model.path_length.mean"]) > 0
    s, t = (read_state(tmp_path / name / "state") for name in ("whole", "parts"))
    assert [name for name in s.tensors if not torch.equal(s.tensors[name], t.tensors[name])] == []


def test_a_state_in_the_middle_holds_optimisers_average_and_all_buffers(tmp_path):
    assert stop_at(trainer(make(FULL), tmp_path), 4).run().interrupted
    names = set(read_state(tmp_path / "state").tensors)
    for wanted in (
        "model.augment.p",
        "model.path_length.mean",
        "model.quantizer.codebooks.0.codes",
        "model.discriminator.out.weight",
        "rng.train.0",
    ):
        assert wanted in names
    for prefix in ("optimizer.discriminator.", "optimizer.generator.", "ema.average."):
        assert any(name.startswith(prefix) for name in names), prefix
    # The discriminator is not averaged.
    assert not any(name.startswith("ema.") and "discriminator" in name for name in names)


# --------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("player", ["discriminator_lr", "lr"])
def test_divergence_stops_at_the_last_good_checkpoint(player, tmp_path):
    method = make({player: 10.0, "steps": 60, "network": {"output": "linear"}})
    one = trainer(method, tmp_path, checkpoint_every=1)
    for phase in one.stages[-1].phases:
        # As gentle as usual for four steps, then with the full rate.
        phase.schedule = lambda step, steps: 4e-4 if step < 4 else 1.0
    with pytest.raises(TrainingError) as caught:
        one.run()
    message = str(caught.value)
    state = read_state(tmp_path / "state")
    step = state.values["total_steps"]
    assert 4 <= step < 60
    assert f"of step {step}" in message
    assert str(tmp_path) in message
    assert "learning rate" in message
    assert lines(tmp_path, "error")[0]["text"] == message
    loaded = load_method(tmp_path)
    images = loaded.generate(GenerationRequest(labels=LABELS, seeds=image_seeds(0, 6))).images
    assert images.shape == (6, 1, 8, 8)
    assert all(torch.isfinite(t).all() for t in loaded.state_dict().values() if t.is_floating_point())


def test_a_loss_beyond_the_limit_counts_as_divergence(tmp_path):
    # One update with such a rate makes logits of hundreds; none of them is infinite yet.
    method = make({"discriminator_lr": 10.0, "loss_limit": 20.0, "r1_gamma": 0.0, "schedule": "constant"})
    with pytest.raises(TrainingError, match=r"diverges.*beyond its limit of 20.*before the first checkpoint"):
        trainer(method, tmp_path).run()
    assert read_state(tmp_path / "state") is None


def test_ordinary_training_stays_far_from_the_limit(tmp_path):
    method = make({"steps": 30})
    assert trainer(method, tmp_path).run().finished
    totals = [
        line[f"{name}/total"] for line in lines(tmp_path, "train") for name in ("discriminator", "generator")
    ]
    assert max(totals) < 0.1 * method.config.loss_limit


def test_more_images_per_step_than_there_are_is_refused_with_a_number_that_works():
    data = shapes(n_per_class=3)
    with pytest.raises(ConfigError, match=r"batch_size 32 .*\(9\).*to 8 or less"):
        make({"batch_size": 32}).stages(data, None)
    assert make({"batch_size": 8}).stages(data, None)[-1].batch_size == 8
    few = data.subset(torch.tensor([0]))
    with pytest.raises(ConfigError, match=r"1 training image;.*2 or more"):
        make({"batch_size": None}).stages(few, None)


def test_a_group_holds_no_image_twice():
    """Groups shrink to the smallest class, in training and when held-out images are compared with it."""
    data, held = shapes(n_per_class=3), shapes(n_per_class=2)
    method = make({"batch_size": None, "network": {"group_size": 4}})
    stage = method.stages(data, None)[-1]
    assert (method.discriminator.group_size, stage.batch_size) == (3, 9)
    batch = stage.sampler(data.labels, 9, 0, 0, 1).next().view(3, -1)
    assert all(len(group.unique()) == 3 for group in batch.T)
    seen = []
    forward = method.discriminator.forward
    method.discriminator.forward = lambda x, c=None: (
        seen.append(method.discriminator.group_size),
        forward(x, c),
    )[1]
    pixels = [Pixels(images, torch.device("cpu")) for images in (data, held)]
    method.discriminator_figures(*pixels, torch.Generator().manual_seed(0))
    assert set(seen) == {2}
    assert method.discriminator.group_size == 3
    odd = make({"batch_size": 8, "network": {"group_size": 4}})
    odd.stages(data, None)
    assert odd.discriminator.group_size == 2


@pytest.mark.parametrize(
    ("group", "n_per_class", "expected"),
    [(2, 3, 8), (3, 40, 30), (4, 40, 32), (5, 40, 30), (40, 40, 40), (32, 11, 22)],
)
def test_the_default_batch_is_of_whole_groups(group, n_per_class, expected, tmp_path):
    data = shapes(n_per_class=n_per_class)
    method = make({"batch_size": None, "network": {"group_size": group}, "steps": 1})
    stage = method.stages(data, None)[-1]
    assert stage.batch_size == expected
    batch = stage.sampler(data.labels, stage.batch_size, 0, 0, 1).next()
    groups = data.labels[batch].view(min(group, n_per_class), -1)
    assert (groups == groups[:1]).all()
    context = Context(
        0,
        1,
        stage,
        torch.Generator().manual_seed(0),
        Pixels(data, torch.device("cpu")),
        None,
        torch.device("cpu"),
    )
    assert method._validate(context)


def test_few_images_of_one_class_train(tmp_path):
    data = shapes(n_per_class=3, n_classes=1)
    assert trainer(make({"batch_size": None, "steps": 2}), tmp_path, data).run().finished


# --------------------------------------------------------------------------- what is measured on the way


def test_validation_tells_real_from_held_out_images_as_training_sees_them(monkeypatch):
    data, held_out = shapes(), shapes(n_per_class=2, seed=9)
    method = make()
    context = context_of(data)
    context.held_out = Pixels(held_out, torch.device("cpu"))
    figures = method._validate(context)
    for name in ("accuracy_train", "accuracy_held_out", "codes_used", "changed_codes"):
        assert 0 <= figures[name] <= 1
    assert figures["accuracy_gap"] == pytest.approx(figures["accuracy_train"] - figures["accuracy_held_out"])
    assert 1 <= figures["perplexity"] <= 16
    assert figures["consistency_gap"] >= 0
    assert figures["unchanged_styles"] <= 1 - figures["changed_codes"]
    assert 1 <= figures["codes_per_position"] <= 16
    shown, shown_first = [], method._groups(context.train, 2, 8)

    def listen(images, c=None):
        shown.append((images, c))
        return torch.full((len(images),), 1.0 if len(shown) <= len(shown_first) else -1.0)

    monkeypatch.setattr(method.discriminator, "forward", listen)
    figures = method._validate(context)
    assert figures["accuracy_train"] == figures["accuracy_gap"] == 1.0
    assert figures["accuracy_held_out"] == 0.0
    for images, c in shown:
        groups = c.argmax(1).view(2, -1)
        assert (groups[0] == groups[1]).all()
        assert images.shape[1:] == (1, 8, 8)


@pytest.mark.parametrize("space", ["w", "w+"])
def test_figures_of_codes_equal_counts(space, monkeypatch):
    data = shapes()
    method = make({"quantizer": {"space": space}})
    seen, quantised = [], method.quantizer.forward

    def listen(*args, **options):
        seen.append(quantised(*args, **options))
        return seen[-1]

    monkeypatch.setattr(method.quantizer, "forward", listen)
    figures = method.discriminator_figures(
        Pixels(data, torch.device("cpu")), None, make_rng("cpu", 0), sigma=0.3
    )
    own, near = ([c.indices.flatten(1).tolist() for c in seen[i::2]] for i in (0, 1))
    own, near = ([row for batch in part for row in batch] for part in (own, near))
    unchanged = [a == b for a, b in zip(own, near, strict=True)]
    assert 0 < sum(unchanged) < len(unchanged)
    assert figures["unchanged_styles"] == pytest.approx(sum(unchanged) / len(unchanged))
    changed = [p != q for a, b in zip(own, near, strict=True) for p, q in zip(a, b, strict=True)]
    assert figures["changed_codes"] == pytest.approx(sum(changed) / len(changed))
    each = [len(set(position)) for position in zip(*own, strict=True)]
    assert figures["codes_per_position"] == pytest.approx(sum(each) / len(each))
    assert figures["codes_used"] == len({code for row in own for code in row}) / 16


def test_the_log_holds_the_probability_of_ada_at_its_step():
    method = make({"adversarial_augment": "ada", "ada_kimg": 0.1})
    data = shapes()
    terms = method._discriminator_loss(batch_of(data), context_of(data))
    method.augment.p.fill_(0.7)
    assert float(terms.stats["augment_p"]) == 0.0


def test_every_phase_has_a_limit_and_a_lazy_one_for_the_steps_it_stands_for():
    method = make({"path_weight": 2.0, "path_every": 3, "r1_every": 5, "loss_limit": 40.0})
    limits = {phase.name: phase.limit for phase in method.stages(shapes(), None)[-1].phases}
    assert limits == {"discriminator": 40.0, "r1": 200.0, "generator": 40.0, "path_length": 120.0}


def test_a_penalty_beyond_its_limit_names_the_learning_rate_in_use(tmp_path, monkeypatch):
    method = make({"discriminator_lr": 3e-3})
    penalty = method._r1_loss

    def huge(batch, context):
        terms = penalty(batch, context)
        terms.values["r1"] = terms.values["r1"] + 1e9
        return terms

    monkeypatch.setattr(method, "_r1_loss", huge)
    with pytest.raises(TrainingError, match=r'phase "r1".*limit of 800\..*now 0\.003'):
        trainer(method, tmp_path).run()


def test_without_classes_validation_mixes_groups_as_training_does(monkeypatch):
    data = shapes()
    method = make({"network": {"condition": "none"}})
    assert method.stages(data, None)[-1].sampler == "shuffled"
    groups = [batch.labels.view(2, -1) for batch in method._groups(Pixels(data, torch.device("cpu")), 2, 8)]
    assert any((g[0] != g[1]).any() for g in groups)


def test_collapse_is_told(monkeypatch):
    data = shapes()
    method = make({"quantizer": {"codebook_size": 64}})
    late = context_of(data, step=9)
    method.quantizer.tables()[0].start_from(torch.cat([draw_near_zero(), torch.full((63, 4), 1e6)]))
    found = method._diagnose(late)
    assert any("Codebook collapse: perplexity 1.0 of 64" in text for text in found)
    assert any("consistency term hardly acts" in text for text in found)
    assert any("Mode collapse" in text for text in found)
    assert method._diagnose(context_of(data, step=0)) == []
    healthy = make({"consistency_weights": {"latent": 1.0, "sigma": 0.5}})
    assert not any("Codebook" in text or "consistency" in text for text in healthy._diagnose(late))


def draw_near_zero():
    return torch.zeros(1, 4)


def test_previews_show_every_class():
    data = shapes()
    picture = make()._preview(context_of(data))
    assert picture.dtype == torch.uint8
    assert picture.shape == (63, 1, 8, 8)


# ------------------------------------------------------------------------------------- does it learn?


def test_each_class_learns_its_own_images(tmp_path):
    """Bright squares and dark ones: after some steps, each class has its own brightness."""
    data = shapes(n_classes=2)
    data.images[:] = torch.where(data.labels == 0, 40, 215)[:, None, None, None].to(torch.uint8)
    data.images[:, :, 2:4, 2:4] = 128
    method = make({"steps": 60, "lr": 1e-2, "discriminator_lr": 1e-2}, data=data)
    trainer(method, tmp_path, data, log_every=60).run()
    labels = torch.arange(40) % 2
    images = method.generate(GenerationRequest(labels=labels, seeds=image_seeds(0, 40))).images.float()
    dark, bright = (images[labels == k].mean() for k in (0, 1))
    assert float(bright - dark) > 80


@pytest.mark.slow
def test_a_few_images_are_learned(tmp_path):
    """8 images of 2 classes: generated images come near to those of their class, and not to one of them."""
    data = shapes(n_per_class=4, size=16, n_classes=2)
    network = {"z_dim": 16, "w_dim": 32, "mapping_layers": 2, "width": 8, "max_width": 32, "group_size": 4}
    change = {"network": network, "quantizer": {"codebook_size": 64}, "steps": 500}
    method = make(change, {"lr": 5e-3, "discriminator_lr": 5e-3, "r1_every": 8}, data=data)
    trainer(method, tmp_path, data, log_every=100, ema_decay=0.98).run()
    labels = torch.arange(64) % 2
    drawn = method.generate(GenerationRequest(labels=labels, seeds=image_seeds(0, 64))).images
    x, y = drawn.float().flatten(1) / 255, data.images.float().flatten(1) / 255
    distance = torch.cdist(x, y).square() / x.shape[1]
    own = distance.masked_fill(labels[:, None] != data.labels[None], torch.inf).min(1)
    untrained = make(change, data=data).generate(GenerationRequest(labels=labels, seeds=image_seeds(0, 64)))
    start = torch.cdist(untrained.images.float().flatten(1) / 255, y).square().div(x.shape[1])
    assert float(own.values.mean()) < 0.4 * float(start.min(1).values.mean())
    assert float(own.values.mean()) < 0.06
    assert len(own.indices.unique()) >= 4


# ------------------------------------------------------------------------------------------ the commands


def command(*words):
    assert main([str(word) for word in words]) == 0, words


TINY = [
    *("--model.network.width", 4, "--model.network.max_width", 8, "--model.network.w_dim", 8),
    *("--model.network.z_dim", 8, "--model.quantizer.codebook_size", 16, "--model.steps", 3),
    *("--model.init.steps", 2, "--model.init.foundation_steps", 2, "--model.init.blocks", 2),
    *("--training.ema_decay", 0.9),
]


def test_every_command_from_training_to_report(tmp_path, capsys):
    run = tmp_path / "run"
    data = ["--data", "digits", "--size", 8, "--shots", 12, "--text", "onehot", "--class-name", "three"]
    command("train", "sq_gan", *data, "--class-name", "seven", "--seed", 1, "--out", run, *TINY)
    assert {line["stage"] for line in lines(run)} == {"codes", "adversarial"}
    held_out = lines(run, "held_out")[-1]
    assert {"accuracy_gap", "changed_codes", "consistency_gap", "perplexity"} <= set(held_out)
    page = (run / "report.html").read_text()
    assert "SQ-GAN" in page or "sq_gan" in page
    assert "Traceback" not in page
    assert "2503.24282" in page
    assert "of 16 codes are used by new images" in page
    assert "early stopping" not in (run / "README.md").read_text()
    command("generate", run, "--class-name", "seven", "--n", 3, "--out", tmp_path / "seven.npz")
    command("generate", run, "--n", 2, "--temperature", 0.5, "--out", tmp_path / "all.png")
    command("interpolate", run, "three", "seven", "--steps", 4, "--out", tmp_path / "walk.png")
    command(
        *("evaluate", run, "--n", 12, "--useful-draws", 0, "--features", "pixels"),
        *("--out", tmp_path / "evidence.json", "--no-html"),
    )
    found = json.loads((tmp_path / "evidence.json").read_text())
    assert "interpolation_smoothness" in found["figures"] or "interpolation_smoothness" in found["omitted"]
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", 29], "Use size 28"),
        (["--size", 8, "--model.quantizer.code_dim", 3], "Use one of 1, 2, 4, 8"),
        (
            ["--size", 8, "--model.batch_size", 64],
            "batch_size 64 is more than there are training images (22)",
        ),
        (["--size", 8, "--model.init.blocks", 3], "init.blocks"),
    ],
)
def test_what_cannot_work_is_said_before_training(words, message, tmp_path, capsys):
    data = [
        "--data",
        "digits",
        "--shots",
        12,
        "--text",
        "onehot",
        "--class-name",
        "three",
        "--class-name",
        "seven",
    ]
    command_line = ["train", "sq_gan", *data, "--out", tmp_path / "run", *TINY, *words]
    assert main([str(word) for word in command_line]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: ")
    assert message in error
    assert not (tmp_path / "run").exists()


def test_the_method_is_registered_with_what_it_can_do():
    from fewgen.methods.registry import get_method

    assert get_method("sq_gan") is SqGan
    assert SqGan.capabilities == {"text", "interpolate"}
    assert batch_of(shapes()).labels.unique().tolist() == [0, 1, 2]
