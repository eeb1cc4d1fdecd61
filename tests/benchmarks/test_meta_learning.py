"""The benchmark of meta-learning: equal shares of images, paired tables, cells that are not mixed."""

import dataclasses
import json
import math

import pytest
import torch
from scipy import stats

from benchmarks import meta_learning as bench
from fewgen.config import resolve
from fewgen.errors import ConfigError
from fewgen.training.meta.settings import MetaConfig


def made(training, shots=5, n=12, shift=0.0, steps=(0, 20)):
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(n, len(steps), generator=rng).double()
    return {
        "training": training,
        "shots": shots,
        "steps": list(steps),
        "lr": 0.003,
        "loss": (noise + shift).tolist(),
        "accuracy": (0.5 + 0.01 * noise + shift).tolist(),
    }


@pytest.mark.parametrize("data", bench.PROTOCOL)
@pytest.mark.parametrize("training", bench.TRAININGS)
def test_settings_exist_and_every_training_sees_about_as_many_images(data, training):
    resolve(MetaConfig, bench.tasks_of(data, training), where="tasks")
    share = bench.images_per_run(data, training) / bench.images_per_run(data, "fomaml")
    assert share == pytest.approx(1.0, abs=0.01)


def test_joint_training_takes_no_inner_step_and_is_the_only_one():
    for data in bench.PROTOCOL:
        steps = {name: MetaConfig(**bench.tasks_of(data, name)).inner_steps for name in bench.TRAININGS}
        assert [name for name, n in steps.items() if n == 0] == ["joint"]


def test_intervals_are_students_and_one_episode_has_none():
    mean, half = bench.interval([1.0, 2.0, 4.0, 9.0])
    low, high = stats.t.interval(0.95, 3, loc=4.0, scale=stats.sem([1.0, 2.0, 4.0, 9.0]))
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert math.isnan(bench.interval([3.0])[1])


def test_differences_are_paired_by_episode():
    # Episodes differ by far more than trainings do: only pairing shows a constant gap exactly.
    lines = bench.differences([made("none"), made("reptile", shift=-0.25)])
    assert lines[-1] == "| 5 | reptile | -0.250 ± 0.000 | -25.0 ± 0.0 |"


def test_differences_need_the_same_episodes_and_leave_out_what_was_not_measured():
    with pytest.raises(ConfigError, match="numbers of episodes"):
        bench.differences([made("none"), made("reptile", n=11)])
    assert len(bench.differences([made("none", steps=(0, 5)), made("reptile", steps=(0, 5))])) == 2
    assert len(bench.differences([made("reptile")])) == 2


def test_a_table_has_a_row_per_shots_and_training_and_a_column_per_number_of_steps():
    lines = bench.table([made("none", 1), made("maml", 1), made("none", 5)], "accuracy")
    assert [line.split("|")[1:3] for line in lines[2:]] == [
        [" 1 ", " none "],
        [" 1 ", " maml "],
        [" 5 ", " none "],
    ]
    assert all(line.count("±") == 2 for line in lines[2:])


def test_a_cell_of_other_settings_is_refused(tmp_path):
    cell = bench.Cell("fashion_mnist", "none", 5, (0, 20), 12, 0.003)
    cell.path(tmp_path).parent.mkdir(parents=True)
    cell.path(tmp_path).write_text(json.dumps({**made("none"), "seed": 0}))
    assert bench.measured(cell, tmp_path, None, None, None)["training"] == "none"
    for change in ({"lr": 0.009}, {"seed": 1}, {"episodes": 11}, {"steps": (0, 5)}):
        with pytest.raises(ConfigError, match="another --out"):
            bench.measured(dataclasses.replace(cell, **change), tmp_path, None, None, None)
    assert dataclasses.replace(cell, candidates=4).path(tmp_path) != cell.path(tmp_path)


def test_the_page_keeps_what_stands_outside_the_markers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{bench.MARKERS[0]}\nold\n{bench.MARKERS[1]}\nafter\n")
    bench.write_docs(page, "new\n")
    assert page.read_text() == f"before\n{bench.MARKERS[0]}\nnew\n{bench.MARKERS[1]}\nafter\n"
    page.write_text("no markers")
    with pytest.raises(ConfigError, match="markers"):
        bench.write_docs(page, "new\n")
