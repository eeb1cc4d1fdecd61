"""Steps of SQ-GAN are timed over whole blocks, in every way that is offered."""

import pytest
import torch
from benchmarks.sqgan_speed import (
    WAYS,
    block_means,
    drawing_again,
    images_of,
    main,
    measure,
    settings_of,
    table,
)

from fewgen.methods.base import DataSpec
from fewgen.methods.sq_gan.config import SqGanConfig
from fewgen.methods.sq_gan.model import SqGan
from fewgen.training.phases import Pixels


def test_blocks_hold_as_many_steps_as_lie_between_two_penalties():
    # Every fourth step takes 5 more: each block of four holds one such step.
    times, now = [], 0.0
    for step in range(13):
        times.append(now)
        now += 1.0 + 5.0 * (step % 4 == 0)
    assert block_means(times, every=4, warm_up=4) == [2.25, 2.25]
    assert block_means(times, every=4, warm_up=5) == [2.25]


@pytest.mark.parametrize("way", ["as it is", "plain GAN"])
def test_a_way_is_measured_in_the_real_loop(way):
    before = torch.get_num_threads()
    try:
        found = measure(way, size=8, threads=1, batch_size=4, blocks=1)
    finally:
        torch.set_num_threads(before)
    assert found["blocks"] == 1
    assert 0 < found["fastest_s"] <= found["median_s"] < 10
    assert found["peak_megabytes"] > 50


def test_parts_are_left_out():
    assert settings_of("plain GAN", 8, 3)["quantizer"] is None
    assert settings_of("no consistency", 8, 3)["consistency"] == "none"
    assert "quantizer" not in settings_of("no consistency", 8, 3)
    assert "consistency" not in settings_of("channels last", 8, 3)


def test_a_separate_draw_gives_the_generator_other_images():
    images = images_of(8)
    torch.manual_seed(0)
    method = SqGan(SqGanConfig(batch_size=8), DataSpec.of(images, None))
    batch = Pixels(images, torch.device("cpu")).at(torch.arange(8))
    seen = []

    def loss(batch, context):
        seen.append(method._drawn)

    class Step:
        step = 5
        rng = torch.Generator().manual_seed(0)

    again = drawing_again(method, loss)
    again(batch, Step)
    again(batch, Step)
    assert seen[0].step == 5
    assert seen[0].images.shape == (8, 1, 8, 8)
    assert seen[0].images.requires_grad
    assert not torch.equal(seen[0].images, seen[1].images)


def test_the_table_tells_what_failed():
    asked = {"size": 28, "batch_size": 32, "threads": 1}
    numbers = {"median_s": 0.2, "fastest_s": 0.1, "cpu_s": 0.15, "peak_megabytes": 400.0}
    lines = table([{**asked, "way": WAYS[0], **numbers}, {**asked, "way": "compiled", "error": "a | b"}])
    assert lines[2] == "| 28 px | 32 | 1 | as it is | 0.200 | 0.100 | 0.150 | 160 | 400 |"
    assert lines[3].startswith("| 28 px | 32 | 1 | compiled | a / b |")
    assert {line.count("|") for line in lines} == {10}


def test_a_profile_names_the_operators_of_a_step(capsys):
    before = torch.get_num_threads()
    try:
        words = ["--profile", "--sizes", "8", "--threads", "1", "--ways", "as it is", "--batch-size", "4"]
        assert main(words) == 0
    finally:
        torch.set_num_threads(before)
    shown = capsys.readouterr().out
    assert shown.startswith("8 px, as it is")
    assert "aten::convolution_backward" in shown
