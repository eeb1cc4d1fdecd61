import torch
from benchmarks.__main__ import NAMES
from benchmarks.evaluation_cost import Parts, growth, in_child, main, make_images, table

from benchmarks import evaluation_cost


def test_parts_add_up(monkeypatch):
    clock = iter([0.0, 1.0, 4.0, 6.0, 11.0])
    monkeypatch.setattr(evaluation_cost.time, "perf_counter", lambda: next(clock))
    parts = Parts()  # 0
    for name in ("judge", "figures", "judge"):  # 1, 4, 6
        parts(name, 0.0)
    parts.end()  # 11
    assert parts.seconds == {"judge": 3.0 + 5.0, "figures": 2.0}
    assert set(parts.to_dict()["parts_cpu"]) == {"judge", "figures"}
    assert parts.to_dict()["peak_memory_gb"] > 0


def test_growth_and_table_show_sizes_that_failed():
    results = [
        {"n": 1000, "seconds": 2.0, "cpu_seconds": 1.0, "peak_memory_gb": 0.5, "memory_before_gb": 0.2, "parts": {"a": 2.0}},
        {"n": 2000, "seconds": 8.0, "cpu_seconds": 4.0, "peak_memory_gb": 0.5, "memory_before_gb": 0.2, "parts": {"a": 7.0, "b": 1.0}},
        {"n": 5000, "error": "not done after 3 seconds"},
    ]  # fmt: skip
    assert growth(results, "cpu_seconds") == ["", "2.00", ""]
    lines = table(results).splitlines()
    assert lines[0].split()[-2:] == ["a", "b"]
    assert lines[2].split() == ["2,000", "8.0", "4.0", "2.00", "0.50", "0.20", "7.0", "1.0"]
    assert "5,000" in lines[3]
    assert "not done after 3 seconds" in lines[3]


def test_images_are_the_same_each_time_and_differ_by_class():
    images = make_images(40, seed=1, name="x")
    assert torch.equal(images.images, make_images(40, seed=1, name="x").images)
    assert tuple(images.images.shape) == (40, 1, 28, 28)
    assert images.counts().tolist() == [4] * 10
    assert len(images.images.flatten(1).unique(dim=0)) == 40


def test_a_child_that_fails_is_reported():
    assert "KeyError" in in_child("nothing", 10, threads=1, limit=60)["error"]
    assert main(["--sizes", "3"]) == 2
    assert "evaluation_cost" in NAMES
