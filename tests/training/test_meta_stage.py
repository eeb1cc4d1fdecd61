"""Meta-training inside the common loop, and with a real method."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.methods import test_cada_vqvae as cada
from tests.reference import naive_meta as naive
from tests.training.test_processes import launch
from tests.training.test_resume import assert_equal_runs, metrics, stop_at
from tests.training.toys import Toy, ToyAdapt, ToyAdaptConfig, family, make, quiet

from fewgen.episodes import EpisodeSampler
from fewgen.errors import ConfigError, DataError, TrainingError
from fewgen.fitting.seeds import make_rng
from fewgen.nn.codebook import Quantized
from fewgen.training import Batch, Context, Trainer
from fewgen.training.meta.gradients import Part, Task, maml_gradient, method_loss, reptile_gradient
from fewgen.training.meta.inner import SGD, inner_loop, make_inner_optimizer, parameters_of
from fewgen.training.meta.novelty import new_words, symmetries, turned
from fewgen.training.meta.settings import MetaConfig
from fewgen.training.meta.stage import (
    InnerRates,
    OtherClasses,
    TaskSampler,
    adaptation_curve,
    curve_figures,
    make_task,
    meta_stage,
    with_meta,
)
from fewgen.training.phases import Pixels

META = ("maml", "fomaml", "reptile")
TRAIN = family(12, 8, seed=1)
VAL = OtherClasses("val", family(6, 8, seed=2), None)

TASKS = {
    "n_way": 1,
    "n_shot": 3,
    "n_query": 4,
    "tasks_per_step": 4,
    "inner_optimizer": "sgd",
    "inner_lr": 0.05,
    "inner_steps": 3,
    "inner_decay": 0.5,
    "steps": 12,
    "curve": (0, 1, 3),
    "validation_tasks": 6,
    "task_clip": 0.0,
    "outer_lr": 2e-2,
    "learn_rates": False,
}


def settings(**changes):
    return MetaConfig(**{**TASKS, **changes})


def fresh(seed=0, **changes):
    return make(ToyAdaptConfig(**changes), seed, ToyAdapt, TRAIN)


def run_of(run_dir, algorithm, config=None, method=None, others=(VAL,), **training):
    method = method or fresh(noise=0.05)
    stages = with_meta(method, method.stages(TRAIN, None), algorithm, config or settings(), others)
    return Trainer(method, stages, TRAIN, None, quiet(**training), run_dir)


def context_of(stage, step=0, steps=10, rank=0, n_processes=1, train=TRAIN):
    device = torch.device("cpu")
    return Context(
        step,
        steps,
        stage,
        torch.Generator().manual_seed(0),
        Pixels(train, device),
        None,
        device,
        seed=0,
        rank=rank,
        n_processes=n_processes,
    )


def batch_at(stage, context, position=0):
    """The batch that the loop would hand to the stage at the `position`-th step."""
    config_free = stage.sampler(TRAIN.labels, stage.batch_size, 5, context.rank, context.n_processes)
    for _ in range(position + 1):
        indices = config_free.next()
    return context.train.at(indices)


def gradient_of(method, stage, context, batch):
    """What the stage's one phase writes into `.grad`."""
    (phase,) = stage.phases
    for parameter in method.parameters():
        parameter.grad = None
    terms = phase.step(batch, context)
    return terms, {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}


def close(a, b, rtol=1e-5, atol=1e-6):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=rtol, atol=atol)


# ------------------------------------------------------------------ tasks of a batch


def test_a_batch_holds_whole_tasks_support_first():
    config = settings(n_way=2, n_shot=2, n_query=3, tasks_per_step=3)
    sampler = TaskSampler(TRAIN.labels, config, seed=4)
    episodes = EpisodeSampler(TRAIN.labels, 2, 2, 3, 4)
    for step in range(3):
        found = sampler.next().view(3, 2, 5)
        for t in range(3):
            support, query = episodes.support_query(3 * step + t)
            assert torch.equal(found[t, :, :2].flatten(), support)
            assert torch.equal(found[t, :, 2:].flatten(), query)
            assert not set(support.tolist()) & set(query.tolist())


@pytest.mark.parametrize("n_processes", [2, 4])
def test_processes_share_the_tasks_of_a_step(n_processes):
    config = settings()
    alone = TaskSampler(TRAIN.labels, config, 4)
    several = [TaskSampler(TRAIN.labels, config, 4, rank, n_processes) for rank in range(n_processes)]
    for _ in range(4):
        assert torch.equal(alone.next(), torch.cat([sampler.next() for sampler in several]))
        assert {sampler.position for sampler in several} == {alone.position}


@pytest.mark.parametrize(("tasks", "processes"), [(3, 2), (4, 3), (1, 2)])
def test_tasks_that_cannot_be_shared_are_refused(tasks, processes):
    with pytest.raises(ConfigError, match=rf"{tasks} tasks .* {processes} processes.*--tasks.tasks_per_step"):
        TaskSampler(TRAIN.labels, settings(tasks_per_step=tasks), 0, 0, processes)


def test_tasks_that_the_images_cannot_fill_name_the_flags(tmp_path):
    with pytest.raises(DataError, match=r"n_way = 13 .*--tasks.n_way to at most 12"):
        run_of(tmp_path / "way", "fomaml", settings(n_way=13, pretrain=0.0), others=()).run()
    with pytest.raises(DataError, match=r"3 \+ 6 = 9 .*--tasks.n_shot and --tasks.n_query to at most 8"):
        run_of(tmp_path / "shot", "fomaml", settings(n_query=6, pretrain=0.0), others=()).run()


def worded_batch(n_way=3, n_tasks=2, n_shot=2, n_query=3):
    """Tasks of images that tell where they came from: pixel (0, 0) of image i is i."""
    n = n_tasks * n_way * (n_shot + n_query)
    images = torch.rand((n, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    images[:, 0, 0, 0] = torch.arange(1, n + 1) * 10.0
    labels = torch.tensor([4, 0, 2, 1, 4, 3])[: n_tasks * n_way].repeat_interleave(n_shot + n_query)
    config = settings(n_way=n_way, n_shot=n_shot, n_query=n_query, tasks_per_step=n_tasks)
    table = torch.randn((5, 8), generator=torch.Generator().manual_seed(1))
    return Batch(images, labels, torch.arange(n)), config, table


def test_a_task_without_novelty_has_its_own_classes_and_their_words():
    batch, config, table = worded_batch()
    config = dataclasses.replace(config, novelty=0.0)
    for number, classes in ((0, [4, 0, 2]), (1, [1, 4, 3])):
        task = make_task(batch, number, config, table, make_rng("cpu", number))
        assert task.support.labels.tolist() == [0, 0, 1, 1, 2, 2]
        assert task.query.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        for part in (task.support, task.query):
            assert torch.equal(part.vectors, table[classes])
        rows = torch.arange(15).view(3, 5) + 15 * number
        assert torch.equal(task.support.images, batch.images[rows[:, :2].flatten()])
        assert torch.equal(task.query.images, batch.images[rows[:, 2:].flatten()])


def test_a_method_without_texts_keeps_labels_and_images():
    batch, config, _ = worded_batch()
    task = make_task(batch, 1, config, None, make_rng("cpu", 0))
    assert task.support.vectors is None
    assert task.support.labels.tolist() == [1, 1, 4, 4, 3, 3]
    assert torch.equal(task.query.images[-1], batch.images[-1])


def test_new_classes_are_turned_as_a_whole_under_words_that_do_not_exist():
    batch, config, table = worded_batch()
    config = dataclasses.replace(config, novelty=1.0)
    ways = []
    for seed in range(30):
        task = make_task(batch, 0, config, table, make_rng("cpu", seed))
        again = make_task(batch, 0, config, table, make_rng("cpu", seed))
        assert torch.equal(task.query.images, again.query.images)
        assert torch.equal(task.query.vectors, again.query.vectors)
        assert torch.equal(task.support.vectors, task.query.vectors)
        assert float(torch.cdist(task.support.vectors, table).min()) > 0.1
        assert float(torch.pdist(task.support.vectors).min()) > 0.1
        for c in range(3):
            found = torch.cat([task.support.images[2 * c : 2 * c + 2], task.query.images[3 * c : 3 * c + 3]])
            original = batch.images[5 * c : 5 * c + 5]
            same = [k for k in range(8) if torch.equal(found, turned(original, k))]
            assert len(same) == 1  # support and query alike, and no two ways are one
            ways += same
    assert set(ways) == set(range(8))


def test_the_share_of_new_classes_is_novelty():
    batch, config, table = worded_batch()
    config = dataclasses.replace(config, novelty=0.7)
    n_new = 0
    for seed in range(200):
        task = make_task(batch, 0, config, table, make_rng("cpu", seed))
        n_new += int((task.support.vectors != table[[4, 0, 2]]).any(1).sum())
    assert abs(n_new / 600 - 0.7) < 4 * (0.21 / 600) ** 0.5


def test_images_that_are_not_square_keep_their_shape():
    x = torch.arange(12.0).view(1, 1, 3, 4)
    assert symmetries(4, 4) == 8
    found = [turned(x, k) for k in range(symmetries(3, 4))]
    assert [tuple(v.shape) for v in found] == [(1, 1, 3, 4)] * 4
    assert len({tuple(v.flatten().tolist()) for v in found}) == 4
    assert torch.equal(found[0], x)


def test_new_words_are_about_as_long_as_known_ones():
    table = 3.0 * torch.nn.functional.normalize(torch.randn(6, 50, generator=make_rng("cpu", 0)), dim=1)
    words = new_words(table, 400, make_rng("cpu", 1))
    assert words.shape == (400, 50)
    assert float(words.norm(dim=1).mean()) == pytest.approx(3.0, rel=0.1)
    nearest = torch.nn.functional.cosine_similarity(words[:, None], table, dim=2).amax(1)
    assert 0.2 < float(nearest.mean()) < 0.6
    assert float(nearest.max()) < 0.95


# ------------------------------------------------------------------ the outer gradient of a step


def tasks_of(batch, config):
    """The tasks of a batch, taken apart a second time."""
    n = config.n_shot + config.n_query
    result = []
    for first in range(0, len(batch), config.n_way * n):
        sides = [[], []]
        for c in range(config.n_way):
            rows = list(range(first + c * n, first + (c + 1) * n))
            sides[0] += rows[: config.n_shot]
            sides[1] += rows[config.n_shot :]
        result.append(Task(*(Part(batch.images[r], batch.labels[r]) for r in sides)))
    return result


def by_hand(method, algorithm, config, batch, first=0, multi_step=0.0):
    """The gradient of every task of the batch, one by one, in evaluation mode."""
    method.eval()
    start = parameters_of(method)
    keywords = {"adapted": method.adaptable(config.adapt), "decay": config.inner_decay}
    inner = make_inner_optimizer(config.inner_optimizer, config.inner_lr)
    found = []
    for t, task in enumerate(tasks_of(batch, config)):
        args = (method_loss(method), start, task, inner, config.inner_steps)
        rng = make_rng("cpu", 0, "task", first + t)
        if algorithm == "reptile":
            found.append(reptile_gradient(*args, rng, batch=config.inner_batch, **keywords))
        else:
            first_order = algorithm == "fomaml"
            found.append(
                maml_gradient(*args, rng, multi_step=multi_step, first_order=first_order, **keywords)
            )
    return found


def mean_of(results, scales=None):
    scales = scales or [1.0] * len(results)
    return {
        name: torch.stack([s * r.gradient[name] for s, r in zip(scales, results, strict=True)]).mean(0)
        for name in results[0].gradient
    }


@pytest.mark.parametrize("adapt", ["all", "decoder"])
@pytest.mark.parametrize("algorithm", META)
def test_a_step_is_the_mean_over_its_tasks(algorithm, adapt):
    method, config = fresh(noise=0.1), settings(n_way=2, adapt=adapt)
    stage = meta_stage(method, algorithm, config)
    context = context_of(stage, step=2)
    batch = batch_at(stage, context, 2)
    assert len(batch) == stage.batch_size
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method.train()
    terms, gradient = gradient_of(method, stage, context, batch)
    assert method.training
    for name, value in method.state_dict().items():
        assert torch.equal(value, before[name]), name
    expected = by_hand(method, algorithm, config, batch, first=2 * 4)
    close(gradient, mean_of(expected))
    assert set(gradient) == (
        set(method.adaptable(adapt))
        if algorithm == "reptile"
        else {"latent", "decoder.weight", "decoder.bias"}
    )
    queries = torch.tensor([r.query_loss for r in expected], dtype=torch.float64)
    assert float(terms.total()) == pytest.approx(float(queries.mean()), rel=1e-5)
    assert float(terms.stats["spread"]) == pytest.approx(float(queries.std(correction=0)), rel=1e-4)
    assert float(terms.stats["support"]) == pytest.approx(
        float(np.mean([r.support_loss for r in expected])), rel=1e-5
    )


def test_noise_belongs_to_the_task_and_not_to_the_step_or_the_process():
    method, config = fresh(noise=0.3), settings()
    stage = meta_stage(method, "fomaml", config)
    one = context_of(stage, step=3)
    _, whole = gradient_of(method, stage, one, batch_at(stage, one, 3))
    parts = []
    for rank in range(2):
        context = context_of(stage, step=3, rank=rank, n_processes=2)
        context.rng.manual_seed(rank + 50)  # each process has its own stream
        parts.append(gradient_of(method, stage, context, batch_at(stage, context, 3))[1])
    close(whole, {name: 0.5 * (parts[0][name] + parts[1][name]) for name in whole})
    other = dataclasses.replace(one, step=4)
    _, changed = gradient_of(method, stage, other, batch_at(stage, one, 3))
    assert not torch.allclose(changed["decoder.bias"], whole["decoder.bias"], rtol=1e-3)


@pytest.mark.parametrize("algorithm", ["maml", "fomaml"])
def test_clipping_bounds_each_task(algorithm):
    """One task is far away: without clipping it alone would decide where the step goes."""
    method = fresh()
    free = settings()
    stage = meta_stage(method, algorithm, free)
    context = context_of(stage)
    batch = batch_at(stage, context)
    images = batch.images.clone()
    images[:7] *= 50.0  # the first of the four tasks
    batch = Batch(images, batch.labels, batch.indices)
    norms = [naive.norm(r.gradient) for r in by_hand(method, algorithm, free, batch)]
    limit = 1.2 * sorted(norms)[0]
    assert norms[0] > 10 * limit
    clipped = settings(task_clip=limit)
    _, gradient = gradient_of(method, meta_stage(method, algorithm, clipped), context, batch)
    scales = [min(1.0, limit / n) for n in norms]
    assert scales.count(1.0) >= 1  # small ones stay as they are
    close(gradient, mean_of(by_hand(method, algorithm, free, batch), scales), rtol=1e-4)
    assert naive.norm(gradient) <= limit * (1 + 1e-5)
    _, unbounded = gradient_of(method, stage, context, batch)
    assert naive.norm(unbounded) > limit


def test_clipping_leaves_reptile_alone():
    method = fresh()
    found = []
    for clip in (0.0, 1e-3):
        stage = meta_stage(method, "reptile", settings(task_clip=clip))
        context = context_of(stage)
        found.append(gradient_of(method, stage, context, batch_at(stage, context))[1])
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("algorithm", ["maml", "fomaml"])
@pytest.mark.parametrize(("step", "share"), [(0, 0.8), (5, 0.4), (10, 0.0)])
def test_the_share_of_early_losses_falls_with_progress(algorithm, step, share):
    method, config = fresh(), settings(multi_step=0.8)
    stage = meta_stage(method, algorithm, config)
    context = context_of(stage, step=step, steps=10)
    batch = batch_at(stage, context)
    _, gradient = gradient_of(method, stage, context, batch)
    close(gradient, mean_of(by_hand(method, algorithm, config, batch, 4 * step, multi_step=share)))
    wrong = mean_of(by_hand(method, algorithm, config, batch, 4 * step, multi_step=0.6))
    assert not torch.allclose(gradient["decoder.weight"], wrong["decoder.weight"], rtol=1e-3)


# ------------------------------------------------------------------ through the trainer


@pytest.mark.parametrize(
    ("algorithm", "pretrain"), [("maml", 0.0), ("fomaml", 0.2), ("reptile", 0.0), ("reptile", 0.2)]
)
def test_stop_and_resume_in_the_middle_of_meta_training(tmp_path, algorithm, pretrain):
    config = settings(
        pretrain=pretrain, inner_optimizer="adam", multi_step=0.5, task_clip=1.0, learn_rates=True
    )
    first = round(pretrain * 20)
    run_of(tmp_path / "whole", algorithm, config).run()
    for step in (first + 1, first + 7):
        result = stop_at(run_of(tmp_path / "parts", algorithm, config), step).run()
        assert result.interrupted
        assert result.steps == step
    result = run_of(tmp_path / "parts", algorithm, config, method=fresh(noise=0.05, seed=9)).run()
    assert result.finished
    assert result.steps == first + 12 + 2
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


def test_stages_follow_or_replace_the_one_that_tasks_repeat():
    method = fresh()
    ordinary = method.stages(TRAIN, None)

    def names(algorithm, **changes):
        stages = with_meta(method, ordinary, algorithm, settings(**changes), (VAL,))
        return [(stage.name, stage.steps) for stage in stages]

    assert names("fomaml") == [("fit", 20), ("meta", 12), ("after", 2)]
    assert names("maml", pretrain=0.25) == [("fit", 5), ("meta", 12), ("after", 2)]
    assert names("reptile", pretrain=0.0) == [("meta", 12), ("after", 2)]
    assert names("none", pretrain=0.25) == [("fit", 20), ("after", 2)]
    assert [stage.steps for stage in ordinary] == [20, 2]  # not changed in place
    assert ordinary[0].validate is None


def test_meta_training_measures_its_images_where_the_stage_that_tasks_repeat_does_and_keeps_its_last_step():
    """Images of known classes would choose an early step, and undo what was learned about adapting."""
    method = fresh()
    first, after = method.stages(TRAIN, None)
    for draws in (False, True):
        stages = with_meta(method, [dataclasses.replace(first, draws=draws), after], "fomaml", settings())
        assert [stage.draws for stage in stages] == [draws, draws, False]
        assert [bool(stage.keep_last) for stage in stages] == [False, True, False]


def test_what_cannot_be_meta_trained_is_refused():
    for call in (
        lambda m: with_meta(m, [], "fomaml", settings()),
        lambda m: meta_stage(m, "maml", settings()),
    ):
        with pytest.raises(ConfigError, match="adapt"):
            call(make(cls=Toy))
    with pytest.raises(ConfigError, match='Did you mean "fomaml"'):
        meta_stage(fresh(), "fomam", settings())
    with pytest.raises(ConfigError, match='Did you mean "fomaml"'):
        with_meta(fresh(), fresh().stages(TRAIN, None), "fomam", settings())
    with pytest.raises(ConfigError):
        meta_stage(fresh(), "none", settings())


def test_reptile_goes_the_share_that_is_left_of_the_way(tmp_path):
    """Two steps of the trainer, by hand: the share is outer_step, then half of it."""
    config = settings(steps=2, pretrain=0.0, outer_step=0.6)
    method, other = fresh(), fresh()
    stages = with_meta(method, method.stages(TRAIN, None)[:1], "reptile", config)
    trainer = Trainer(method, stages, TRAIN, None, quiet(ema_decay=0.0), tmp_path)
    seen = []
    step = stages[0].phases[0].step
    stages[0].phases[0].step = lambda batch, context: (seen.append(batch), step(batch, context))[1]
    trainer.run()
    for k, batch in enumerate(seen):
        gradient = mean_of(by_hand(other, "reptile", config, batch, first=4 * k))
        with torch.no_grad():
            for name, value in other.named_parameters():
                if name in gradient:
                    value -= (0.6, 0.3)[k] * gradient[name]
    close(parameters_of(method), parameters_of(other), rtol=1e-4, atol=1e-6)


def test_learned_rates_are_moved_logged_kept_and_used(tmp_path):
    config = settings(steps=20, pretrain=0.0, learn_rates=True, inner_lr=2e-3)
    method = fresh()
    names = method.adaptable("all")
    assert method.rates_by_name() == dict.fromkeys(names, 1.0)
    for algorithm in ("maml", "fomaml"):
        method = fresh()
        run_of(tmp_path / algorithm, algorithm, config, method).run()
        # A rate that is far too low for three updates has to rise.
        rates = method.rates_by_name()
        assert max(rates.values()) > 1.5
        lines = [x for x in metrics(tmp_path / algorithm) if x["kind"] == "train" and x["stage"] == "meta"]
        for name in names:
            assert lines[-1][f"outer/weight/{name}"] == pytest.approx(rates[name], rel=1e-5)
        curve = adaptation_curve(method, config, VAL, 4)
        method.set_inner_rates(dict.fromkeys(names, 1.0))
        assert bool((adaptation_curve(method, config, VAL, 4)[:, -1] > curve[:, -1]).all())
    method = fresh()
    run_of(tmp_path / "fixed", "fomaml", settings(steps=3, pretrain=0.0), method).run()
    run_of(tmp_path / "reptile", "reptile", settings(steps=3, pretrain=0.0, learn_rates=True), method).run()
    assert method.rates_by_name() == dict.fromkeys(names, 1.0)


@pytest.mark.parametrize(("way", "limit"), [(1.0, 1e-3), (-1.0, 1e2)])
def test_a_learned_rate_at_its_limit_turns_round_at_once(way, limit):
    rates = InnerRates(["w"], speed=10.0)
    optimizer = torch.optim.SGD(rates.parameters(), lr=0.1)
    for _ in range(50):  # many times as far as the limit
        rates.write_gradient({"w": torch.tensor(way)})
        optimizer.step()
    assert float(rates.factors()) == pytest.approx(limit, rel=1e-5)
    for _ in range(2):
        rates.write_gradient({"w": torch.tensor(-way)})
        optimizer.step()
    assert not 0.5 < float(rates.factors()) / limit < 2


LEARN = {"steps": 80, "pretrain": 0.0, "inner_decay": 1.0, "inner_steps": 5, "curve": (0, 1, 5)}


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """One run of each algorithm and of the control, as long in outer steps, measured on other classes."""
    folder = tmp_path_factory.mktemp("learned")
    config = settings(**LEARN, validation_tasks=24)
    for algorithm in ("none", *META):
        method = fresh(steps=80)
        run_of(folder / algorithm, algorithm, config, method, validate_every=0, log_every=10).run()
    return {name: metrics(folder / name) for name in ("none", *META)}


def final(lines):
    return [line for line in lines if line["kind"] == "held_out"][-1]


@pytest.mark.parametrize("algorithm", META)
def test_meta_training_adapts_to_unseen_classes_better_than_ordinary_training(learned, algorithm):
    control, found = final(learned["none"]), final(learned[algorithm])
    assert found["val_loss_after_5"] < 0.7 * control["val_loss_after_5"]
    # The control is trained: it cannot know the class, and knows what all have in common.
    assert control["val_loss_after_0"] < 1.2 * found["val_loss_after_0"]
    for figures in (control, found):
        assert figures["val_loss_after_0"] > figures["val_loss_after_1"] > figures["val_loss_after_5"]


@pytest.mark.parametrize("algorithm", META)
def test_the_log_tells_query_support_and_spread(learned, algorithm):
    lines = [line for line in learned[algorithm] if line["kind"] == "train" and line["stage"] == "meta"]
    assert len(lines) == 8
    for line in lines:
        for key in ("outer/query", "outer/support", "outer/spread", "outer/total", "outer/lr"):
            assert np.isfinite(line[key])
        assert line["outer/query"] < line["outer/support"]
        assert line["outer/spread"] > 0
    assert lines[-1]["outer/query"] < 0.7 * lines[0]["outer/query"]
    figures = final(learned[algorithm])
    assert {"val_loss_after_0", "val_loss_after_1", "val_loss_after_5", "val_spread_after_5"} <= set(figures)
    rates = [line["outer/lr"] for line in lines]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.1 * rates[0]


def test_the_control_measures_its_curve_once(learned):
    lines = [line for line in learned["none"] if line["kind"] == "held_out"]
    assert [line["step"] for line in lines] == [80]


def test_the_control_is_measured_although_it_would_stop_early(tmp_path):
    method = fresh()
    (stage, _) = method.stages(TRAIN, None)
    values = iter(range(1, 100))  # ever worse
    stage.validate, stage.monitor, stage.patience = lambda _: {"x": float(next(values))}, "x", 1
    stages = with_meta(method, [stage], "none", settings(), (VAL,))
    Trainer(method, stages, TRAIN, None, quiet(), tmp_path).run()
    assert {"x", "val_loss_after_3"} <= set(final(metrics(tmp_path)))
    assert stage.patience == 1


@pytest.mark.parametrize("algorithm", META)
def test_an_inner_rate_that_is_far_too_high_is_named(tmp_path, algorithm):
    config = settings(pretrain=0.0, inner_lr=1e6, inner_steps=8)
    with pytest.raises(TrainingError, match=r"inner update \d+, .*1e\+06.*--tasks\.inner_lr"):
        run_of(tmp_path / "a", algorithm, config).run()
    assert "--tasks.inner_lr" in metrics(tmp_path / "a")[-1]["text"]
    # The loss that is too large may also be the one that is looked at after the last update.
    config = settings(pretrain=0.0, inner_lr=1e12, inner_steps=1)
    with pytest.raises(TrainingError, match=r"after 1 inner update.*1e\+12.*--tasks\.inner_lr"):
        run_of(tmp_path / "b", algorithm, config).run()


@pytest.mark.parametrize("algorithm", META)
def test_tasks_that_adapting_makes_far_worse_stop_with_the_last_state(tmp_path, algorithm):
    """Every loss is finite; before, this ended as "Finished"."""
    config = settings(inner_lr=0.5, inner_decay=1.0, inner_steps=2)
    with pytest.raises(TrainingError, match=r"Meta-training diverges: 2 inner updates.*--tasks\.inner_lr"):
        run_of(tmp_path, algorithm, config).run()
    assert metrics(tmp_path)[-1]["kind"] == "error"
    assert (tmp_path / "model.safetensors").is_file()  # of the stage before


def test_an_outer_rate_that_is_far_too_high_stops(tmp_path):
    config = settings(pretrain=0.0, inner_optimizer="adam", inner_lr=1e-3, outer_lr=50.0)
    with pytest.raises(TrainingError, match=r'"outer" is .* and was .* at its first step.*--tasks\.outer_lr'):
        run_of(tmp_path, "fomaml", config).run()


@pytest.mark.parametrize("algorithm", META)
def test_healthy_meta_training_is_not_warned_of(learned, algorithm):
    assert [line for line in learned[algorithm] if line["kind"] == "warning"] == []


class Steep(ToyAdapt):
    """The loss of the toy, with a slope that overflows where the value does not."""

    def task_terms(self, images, labels, vectors, rng):
        terms = super().task_terms(images, labels, vectors, rng)
        zero = (self.decoder.bias - self.decoder.bias.detach()).sum()
        terms.values["steep"] = torch.sqrt(zero.abs())  # 0, with an infinite slope
        return terms


def test_an_outer_gradient_that_is_not_finite_moves_nothing(tmp_path):
    """All losses are finite, and clipping would let the gradient pass: nothing is larger than NaN."""
    config = settings(pretrain=0.0, inner_steps=0)
    method = make(ToyAdaptConfig(), 0, Steep, TRAIN)
    before = {name: value.clone() for name, value in parameters_of(method).items()}
    with pytest.raises(
        TrainingError, match=r"gradient of a task has norm nan.*query loss.*--tasks\.inner_lr"
    ):
        run_of(tmp_path / "a", "fomaml", config, method).run()
    for name, value in method.named_parameters():
        assert torch.equal(value, before[name]), name


def test_reptile_without_inner_updates_would_learn_nothing():
    with pytest.raises(ConfigError, match=r"--tasks\.inner_steps 0"):
        meta_stage(fresh(), "reptile", settings(inner_steps=0))
    meta_stage(fresh(), "fomaml", settings(inner_steps=0))


def test_tasks_and_curves_give_every_module_its_mode_back():
    method = fresh()
    stage = meta_stage(method, "fomaml", settings())
    context = context_of(stage)
    method.eval()
    method.decoder.train()  # as in a stage that trains this part alone
    gradient_of(method, stage, context, batch_at(stage, context))
    adaptation_curve(method, settings(), VAL, 1)
    assert method.decoder.training
    assert not method.training


# ------------------------------------------------------------------ adaptation curves


def test_the_curve_is_an_inner_loop_on_other_classes():
    method, config = fresh(noise=0.1), settings(adapt_lr=0.02, adapt="decoder", n_way=2)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method.train()
    found = adaptation_curve(method, config, VAL, 5, seed=3)
    assert method.training
    for name, value in method.state_dict().items():
        assert torch.equal(value, before[name]), name
    method.eval()
    assert found.shape == (5, 3)
    assert found.dtype == torch.float64
    assert torch.equal(found, adaptation_curve(method, config, VAL, 5, seed=3))
    assert not torch.equal(found, adaptation_curve(method, config, VAL, 5, seed=4))
    assert torch.equal(found[:2], adaptation_curve(method, config, VAL, 2, seed=3))
    assert bool((found[:, 2] < found[:, 1]).all())
    assert bool((found[:, 1] < found[:, 0]).all())
    figures = curve_figures(method, dataclasses.replace(config, validation_tasks=5), VAL, seed=3)
    assert figures["val_loss_after_3"] == pytest.approx(float(found[:, 2].mean()))
    assert figures["val_spread_after_3"] == pytest.approx(float(found[:, 2].numpy().std()))


def test_fewer_classes_than_n_way_make_a_task_together():
    config = settings(n_way=9)
    curve = adaptation_curve(fresh(), config, VAL, 2)
    assert bool(torch.isfinite(curve).all())


# ------------------------------------------------------------------ two processes

SCRIPT = """
import json, sys
import torch
torch.set_num_threads(1)
from tests.training.test_meta_stage import run_of, settings

for task in json.loads(sys.argv[1]):
    run_of(task["run_dir"], task["algorithm"], settings(pretrain=0.5)).run()
with open(f"{sys.argv[2]}.{torch.distributed.get_rank()}", "w") as file:
    json.dump([], file)
torch.distributed.destroy_process_group()
"""


def test_two_processes_equal_one_with_the_same_tasks(tmp_path):
    """The meta stage alone; the ordinary stage before has a batch per process."""
    tasks = [{"run_dir": str(tmp_path / f"two_{name}"), "algorithm": name} for name in META]
    launch(tasks, tmp_path / "found", script=SCRIPT.replace("pretrain=0.5", "pretrain=0.0"))
    for name in META:
        run_of(tmp_path / f"one_{name}", name, settings(pretrain=0.0)).run()
        a, b = (load_file(tmp_path / f"{n}_{name}" / "model.safetensors") for n in ("one", "two"))
        start = dict(fresh(noise=0.05).named_parameters())
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-5)
        moved = (a["model.decoder.weight"] - start["decoder.weight"].detach()).abs().max()
        assert float(moved) > 1e-2
        lines = [metrics(tmp_path / f"{n}_{name}") for n in ("one", "two")]
        assert [line["kind"] for line in lines[0]] == [line["kind"] for line in lines[1]]
        for one, two in zip(*lines, strict=True):
            if one["kind"] == "held_out":
                assert one["val_loss_after_3"] == pytest.approx(two["val_loss_after_3"], rel=1e-3)
            elif one["kind"] == "train" and one["stage"] == "meta":
                assert one["outer/total"] == pytest.approx(two["outer/total"], rel=1e-3)


# ------------------------------------------------------------------ a real method

TINY = {
    "latent_size": 10,
    "image": {"width": 8, "hidden": 16},
    "text": {"update": "gradient", "hidden": 16, "codebook_size": 8},
}


def real(**changes):
    """A tiny CADA-VQ-VAE after three steps, so that its codebook has started, and some images."""
    data = cada.shapes(n_per_class=8)
    method = cada.make(data, **{**TINY, **changes})
    # Blocks begin as the identity, and learn only when they have been moved.
    cada.fit_align(method, data, 3)
    if method.tokenizer is not None:
        cada.fit_detail(method, data, 3)
    method.zero_grad()
    return method, data


def task_on(data, n_shot=3, dtype=torch.float32):
    parts = []
    for columns in (slice(0, n_shot), slice(n_shot, n_shot + 3)):
        rows = torch.arange(len(data)).view(3, -1)[:, columns].flatten()
        parts.append(Part(data.floats(rows).to(dtype), data.labels[rows]))
    return Task(*parts)


def snapshot(method):
    return {name: value.clone() for name, value in method.state_dict().items()}


def test_task_terms_are_a_function_of_their_arguments():
    method, data = real(spatial=cada.SPATIAL)
    before = snapshot(method)
    x, y = data.floats(), data.labels

    def value(seed, vectors=None):
        return method.task_terms(x, y, vectors, torch.Generator().manual_seed(seed))

    first = value(1)
    assert "nats_per_code" in first.values
    assert all(map(math.isfinite, first.floats().values()))
    total = first.total()
    assert torch.equal(total, value(1).total())
    assert torch.equal(total, method(x, y, None, torch.Generator().manual_seed(1)).total())
    assert torch.equal(total, value(1, method.text_table.clone()).total())
    assert not torch.equal(total, value(2).total())
    assert not torch.equal(total, value(1, method.text_table.flip(0)).total())
    total.backward()
    for name, v in method.state_dict().items():
        assert torch.equal(v, before[name]), name


@pytest.mark.parametrize("spatial", [None, cada.SPATIAL])
def test_parts_that_adapt_exist_differ_and_get_a_gradient(spatial):
    method, data = real(spatial=spatial)
    known = dict(method.named_parameters())
    parts = {part: method.adaptable(part) for part in ("all", "decoder", "heads")}
    for part, names in parts.items():
        assert len(names) == len(set(names)) > 0, part
        assert set(names) <= set(known)
    assert set(parts["decoder"]) < set(parts["all"])
    assert set(parts["heads"]) < set(parts["all"])
    assert set(parts["heads"]) != set(parts["decoder"])
    n = {part: sum(known[name].numel() for name in names) for part, names in parts.items()}
    assert n["heads"] < n["all"]
    assert not any(name.startswith("tokenizer.") for name in parts["all"])
    # Each part reads or writes both the image's and the word's side.
    for part in ("decoder", "heads"):
        assert any(name.startswith("image_") for name in parts[part])
        assert any(name.startswith("semantic_") for name in parts[part])
    total = method.task_terms(data.floats(), data.labels, None, torch.Generator().manual_seed(0)).total()
    names = parts["all"]
    found = torch.autograd.grad(total, [known[name] for name in names], allow_unused=True)
    silent = [n for n, g in zip(names, found, strict=True) if g is None or not bool(g.abs().sum() > 0)]
    assert silent == []
    with pytest.raises(ConfigError, match='Did you mean "decoder"'):
        method.adaptable("decodr")


@pytest.mark.parametrize("algorithm", META)
def test_adapting_leaves_the_real_model_as_it_is(algorithm):
    method, data = real()
    before = snapshot(method)
    loss, start, task = method_loss(method), parameters_of(method), task_on(data)
    args = (loss, start, task, make_inner_optimizer("adam", 1e-2), 3, torch.Generator().manual_seed(0))
    adapted = method.adaptable("all")
    if algorithm == "reptile":
        found = reptile_gradient(*args, adapted=adapted)
    else:
        found = maml_gradient(*args, adapted=adapted, first_order=algorithm == "fomaml", multi_step=0.5)
    for name, value in method.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in method.parameters())
    assert set(found.gradient) == set(adapted)
    assert all(bool(torch.isfinite(g).all()) for g in found.gradient.values())
    assert sum(float(g.abs().sum()) > 0 for g in found.gradient.values()) == len(adapted)
    rows = task.support
    before_loss = float(loss(start, rows, torch.Generator().manual_seed(1)))
    end = inner_loop(
        lambda p, k: loss(p, rows, torch.Generator().manual_seed(1)), start, SGD(0.05), 20, adapted=adapted
    )
    assert float(loss(end, rows, torch.Generator().manual_seed(1))) < 0.9 * before_loss


@pytest.mark.parametrize("n_shot", [1, 2])
def test_tasks_with_one_or_two_images_have_finite_gradients(n_shot):
    method, data = real()
    found = maml_gradient(
        method_loss(method),
        parameters_of(method),
        task_on(data, n_shot),
        make_inner_optimizer("adam", 1e-3),
        2,
        torch.Generator().manual_seed(0),
        adapted=method.adaptable(),
    )
    assert all(bool(torch.isfinite(g).all()) for g in found.gradient.values())
    one_class = Part(data.floats(torch.arange(1)), data.labels[:1])
    total = method_loss(method)(parameters_of(method), one_class, torch.Generator().manual_seed(0))
    assert bool(torch.isfinite(total))


@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_maml_of_the_real_model_is_the_slope_of_its_meta_objective(monkeypatch, rule):
    """In float64, along random directions. FOMAML on the same figures is told apart.

    A straight-through gradient is no function's slope, so the codes are replaced by the latents themselves;
    nor is one through a kernel whose width follows the data, so its width is fixed.
    """
    method, data = real(image={"backbone": "mlp"}, kernel="rbf")
    method.double()
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)

    def through(z):
        zero = torch.zeros((), dtype=z.dtype)
        return Quantized(z, torch.zeros(len(z), 5, dtype=torch.int64), zero, zero, zero)

    monkeypatch.setattr(method.codebook, "forward", through)
    task, start = task_on(data, dtype=torch.float64), parameters_of(method)
    inner, steps = (SGD(0.3), 3) if rule == "sgd" else (make_inner_optimizer("adam", 3e-3), 2)
    if rule == "adam":
        inner = dataclasses.replace(inner, eps=1e-3)
    loss, adapted = method_loss(method), method.adaptable("all")

    def found(first_order):
        return maml_gradient(
            loss,
            start,
            task,
            inner,
            steps,
            torch.Generator().manual_seed(0),
            adapted=adapted,
            first_order=first_order,
        ).gradient

    def objective(t, direction):
        rng = torch.Generator().manual_seed(0)
        moved = {name: value + t * direction[name] for name, value in start.items()}
        end = inner_loop(lambda p, k: loss(p, task.support, rng), moved, inner, steps, adapted=adapted)
        return float(loss(end, task.query, rng))

    exact, rough = found(False), found(True)
    rng, h, errors = torch.Generator().manual_seed(2), 1e-8, {"maml": [], "fomaml": []}
    for _ in range(3):
        direction = {
            name: torch.randn(v.shape, generator=rng, dtype=torch.float64) / len(start) ** 0.5
            for name, v in start.items()
        }
        slope = (objective(h, direction) - objective(-h, direction)) / (2 * h)
        for name, gradient in (("maml", exact), ("fomaml", rough)):
            along = sum(float((g * direction[key]).sum()) for key, g in gradient.items())
            errors[name].append(abs(along - slope) / abs(slope))
    assert max(errors["maml"]) < 1e-5
    assert max(errors["fomaml"]) > 1e-2


def test_meta_training_from_scratch_starts_the_codebook(tmp_path):
    data = cada.shapes(n_per_class=8)
    method = cada.make(data, **TINY, steps=4)
    assert not bool(method.codebook.initialised)
    config = settings(n_way=2, inner_steps=1, steps=2, pretrain=0.0)
    others = (OtherClasses("novel", cada.shapes(n_per_class=8, seed=3), method.text_table.clone()),)
    stages = with_meta(method, method.stages(data, None), "fomaml", config, others)
    assert [stage.name for stage in stages] == ["meta"]
    Trainer(method, stages, data, None, quiet(), tmp_path).run()
    assert bool(method.codebook.initialised)
    line = [line for line in metrics(tmp_path) if line["kind"] == "held_out"][-1]
    assert {f"novel_loss_after_{k}" for k in (0, 1, 3)} <= set(line)
    assert json.dumps(line)
