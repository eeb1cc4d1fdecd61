"""`train --meta` as a user meets it: in Python and on the command line, with a linear method and digits."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from tests.fake_method import Fake
from tests.training.test_processes import launch
from tests.training.test_resume import assert_equal_runs
from tests.training.toys import ToyAdapt, ToyAdaptConfig, family, make

import fewgen
from fewgen.api import plan_evaluation, resolved_settings
from fewgen.api.training import train_request
from fewgen.cli.main import main
from fewgen.config import read_config
from fewgen.config.io import write_yaml
from fewgen.data import ImageSet, load_images, save_images
from fewgen.errors import ConfigError, DataError, OutputError, TextError, TrainingError
from fewgen.losses.terms import LossTerms
from fewgen.methods.registry import register
from fewgen.methods.store import load_method, read_method_info
from fewgen.runs import preparing as prepare
from fewgen.training import Trainer
from fewgen.training.checkpoint import read_state, write_state
from fewgen.training.meta.settings import MetaConfig
from fewgen.training.meta.stage import meta_stage
from fewgen.training.phases import Context, Pixels

META = ("maml", "fomaml", "reptile")
NAMES = tuple("abcdefgh")
TASKS = {
    "n_way": 2,
    "n_shot": 2,
    "n_query": 3,
    "tasks_per_step": 2,
    "inner_steps": 2,
    "learn_rates": True,
    "steps": 6,
    "curve": [0, 1, 2],
    "validation_tasks": 2,
}


@register("fake_adapt")
class FakeAdapt(Fake):
    """The linear method of the other tests, which can also adapt."""

    capabilities = Fake.capabilities | {"adapt"}
    adapts_stage = "linear"

    def __init__(self, config, spec):
        super().__init__(config, spec)
        self._register_inner_rates()

    def adaptable(self, part="all"):
        return [n for n, _ in self.named_parameters() if part == "all" or n.startswith("image_decoder")]

    def task_terms(self, images, labels, vectors, rng):
        table = self.spec.text.vectors if vectors is None else vectors
        words = self.encode_text(table[labels])
        words = words + 0.1 * torch.randn(words.shape, generator=rng)
        z, flat = self.encode(images), images.flatten(1)
        return LossTerms(
            {
                "image": (self.image_decoder(z).tanh() - flat).square().mean(),
                "cross": (self.image_decoder(words).tanh() - flat).square().mean(),
                "align": (z - words).square().mean(),
            }
        )


def images_of(counts, names=NAMES):
    labels = torch.tensor([c for c, n in enumerate(counts) for _ in range(n)])
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (len(labels), 1, 6, 6), generator=rng, dtype=torch.uint8)
    return ImageSet(pixels, labels, names[: len(counts)], name="toy")


DATA = images_of([12] * 8)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The images as a file, so that a run can read them again."""
    path = tmp_path_factory.mktemp("data") / "toy.npz"
    save_images(DATA, path)
    return path


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Word vectors of all classes but "h", and of two words that are no class."""
    path = tmp_path_factory.mktemp("words") / "words.txt"
    known = [*NAMES[:7], "left", "right"]
    vectors = torch.randn(len(known), 6, generator=torch.Generator().manual_seed(0))
    rows = (f"{w} {' '.join(f'{x:.4f}' for x in v)}" for w, v in zip(known, vectors.tolist(), strict=True))
    path.write_text("\n".join(rows) + "\n")
    return path


def keywords_of(**changes):
    base = {"data": DATA, "text": "onehot", "progress": False, "report": False}
    return {**base, "meta": "fomaml", "tasks": tasks_for(changes.get("meta")), **changes}


def tasks_for(meta):
    """The tasks without what this way to meta-train refuses."""
    return {key: value for key, value in TASKS.items() if meta != "reptile" or key != "learn_rates"}


def train(out, method="fake_adapt", **changes):
    return fewgen.train(method, out=out, **keywords_of(**changes))


def prepared(**changes):
    return prepare.prepare(train_request(method="fake_adapt", out="x", **keywords_of(**changes)))


def lines_of(run_dir, kind=None, stage="meta"):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["stage"] == stage and kind in (None, line["kind"])]


def split_file(path, base, val=(), novel=()):
    path.write_text(json.dumps({"base": list(base), "val": list(val), "novel": list(novel)}))
    return str(path)


def stop_all_at(monkeypatch, total_step):
    """Every trainer is told to stop, as Ctrl-C does, in the step after which so many are complete."""
    between = Trainer._between_steps

    def stopping(self, run):
        if self._position.total_steps == total_step:
            self.stop()
        return between(self, run)

    monkeypatch.setattr(Trainer, "_between_steps", stopping)


@pytest.fixture(scope="module")
def run(tmp_path_factory, source):
    return train(tmp_path_factory.mktemp("run") / "a", data=source)


# ------------------------------------------------------------------------------------ what a run holds


def test_a_run_says_what_it_learned_from_and_what_not(run):
    config = read_config(run.path / "config.yaml")
    assert (config["meta"], config["class_split"]) == ("fomaml", None)
    assert config["tasks"] == {**MetaConfig().to_dict(), **TASKS}
    split = json.loads((run.path / "split.json").read_text())
    groups = split["classes"]
    assert [len(groups[part]) for part in ("base", "val", "novel")] == [5, 1, 2]
    assert sorted(sum(groups.values(), [])) == list(NAMES)
    assert split["class_names"] == groups["base"] == list(run.class_names)
    train_images, held_out = run.images()
    assert train_images.class_names == held_out.class_names == run.class_names
    assert (len(train_images), len(held_out)) == (5 * 10, 5 * 2)
    assert run.info.extra["meta"]["algorithm"] == "fomaml"
    assert run.info.extra["meta"]["n_shot"] == 2


@pytest.mark.parametrize("algorithm", META)
def test_the_log_has_the_outer_figures_and_the_curves(tmp_path, algorithm):
    train(tmp_path / "a", meta=algorithm)
    (last,) = lines_of(tmp_path / "a", "train")
    assert last["step"] == 6
    assert {"outer/query", "outer/support", "outer/spread", "outer/total"} <= set(last)
    assert last["outer/query"] == last["outer/total"]
    learned = [key for key in last if key.startswith("outer/weight/")]
    assert len(learned) == (0 if algorithm == "reptile" else 6)
    (held_out,) = lines_of(tmp_path / "a", "held_out")
    curves = {f"{name}_loss_after_{k}" for name in ("val", "novel") for k in (0, 1, 2)}
    assert curves | {"val_spread_after_2", "novel_spread_after_2"} <= set(held_out)
    assert all(torch.isfinite(torch.tensor(v)) for v in held_out.values() if isinstance(v, float))
    rates = load_method(tmp_path / "a").inner_rates
    assert bool((rates == 1).all()) == (algorithm == "reptile")


def test_the_control_has_the_same_classes_the_same_curves_and_no_stage_of_its_own(tmp_path, run):
    control = train(tmp_path / "a", meta="none")
    assert control.class_names == run.class_names
    assert [stage.name for stage in control.result.stages] == ["linear"]
    (line,) = lines_of(control.path, "held_out", "linear")
    (meta,) = lines_of(run.path, "held_out")
    curves = {key for key in meta if "_after_" in key}
    assert curves
    assert curves == {key for key in line if "_after_" in key}
    assert "image" in line  # its own figure as well
    assert read_config(control.path / "config.yaml")["meta"] == "none"


def test_what_uses_a_run_knows_its_base_classes_alone(run, tmp_path):
    other = sorted(set(NAMES) - set(run.class_names))
    images = fewgen.generate(run.path, n=2)
    assert images.class_names == run.class_names
    assert len(images) == 2 * 5
    with pytest.raises(ConfigError, match=f'no class "{other[0]}"'):
        fewgen.generate(run.path, class_names=other[0])
    plan = plan_evaluation(images=run.path, features="pixels", useful_draws=0)
    assert re.search(r"learned .*50 grey images of 6x6, 5 classes", plan)
    assert re.search(r"held out .*10 grey images of 6x6, 5 classes", plan)
    pair = list(run.class_names[:2])
    strip = fewgen.interpolate(run.path, *pair)
    assert strip is not None
    with pytest.raises((ConfigError, TextError)):
        fewgen.interpolate(run.path, pair[0], other[0])


def test_classes_can_be_set_apart_without_meta_training(tmp_path):
    """Their words are not needed then, and need not be known."""
    file = split_file(tmp_path / "s.json", "abcd", "e", "gh")
    made = train(tmp_path / "a", meta=None, tasks=None, class_split=file)
    assert made.class_names == tuple("abcd")
    assert [stage.name for stage in made.result.stages] == ["linear"]
    assert read_config(made.path / "config.yaml")["tasks"] is None
    assert json.loads((made.path / "split.json").read_text())["classes"]["novel"] == ["g", "h"]
    assert not any("_after_" in key for line in lines_of(made.path, stage="linear") for key in line)


def test_unknown_words_of_classes_matter_only_where_they_are_used(tmp_path, words):
    text = {"text": "glove", "text_path": str(words)}
    file = split_file(tmp_path / "s.json", "abcd", "e", "gh")
    assert prepared(**text, class_split=file, meta=None, tasks=None).others == ()
    with pytest.raises(TextError, match=r'"h".*--phrases'):
        prepared(**text, class_split=file)


# ---------------------------------------------------------------------------- together with other settings


def test_shots_and_holdout_count_for_base_classes_alone():
    found = prepared(shots=6, holdout=2, class_split="5/1/2")
    assert found.train.counts().tolist() == [6] * 5
    assert found.held_out.counts().tolist() == [2] * 5
    assert [(o.name, o.images.counts().tolist()) for o in found.others] == [
        ("val", [12]),
        ("novel", [12, 12]),
    ]


def test_chosen_classes_are_split_among_themselves():
    found = prepared(class_names=["H", "c", "a", "b"], class_split="2/1/1")
    assert found.settings["class_names"] == ["h", "c", "a", "b"]
    assert sorted(sum(found.split["classes"].values(), [])) == ["a", "b", "c", "h"]


def test_phrases_speak_for_base_and_for_novel_classes(tmp_path, words):
    text = {"text": "glove", "text_path": str(words)}
    phrases = {"a": "left", "h": ["right"]}
    file = split_file(tmp_path / "s.json", "abcd", "e", "gh")
    found = prepared(**text, class_split=file, phrases=phrases)
    plain = prepared(**text, class_split=split_file(tmp_path / "t.json", "abcd", "e", "g"))
    assert found.method.spec.text.phrases[0] == ("left",)
    assert plain.method.spec.text.phrases[0] == ("a",)
    novel = found.others[1]
    assert novel.images.class_names == ("g", "h")
    raw = {line.split()[0]: line.split()[1:] for line in words.read_text().splitlines()}
    right = torch.tensor([float(x) for x in raw["right"]])
    torch.testing.assert_close(novel.vectors[1], found.method.spec.text.standardizer(right[None])[0])
    with pytest.raises(TextError, match='no class "hh".*Did you mean "h"'):
        prepared(**text, class_split=file, phrases={"hh": "right"})


def test_words_of_novel_classes_are_found_in_the_data_folder_of_the_call(tmp_path, monkeypatch, words):
    monkeypatch.delenv("FEWGEN_DATA_DIR", raising=False)
    (tmp_path / "glove").mkdir()
    shutil.copy(words, tmp_path / "glove" / "glove.test.txt")
    file = split_file(tmp_path / "s.json", "abcd", "e", "fg")
    found = prepared(text="glove", class_split=file, data_dir=tmp_path)
    assert [tuple(o.vectors.shape) for o in found.others] == [(1, 6), (2, 6)]


def test_minutes_are_shared_by_both_stages(tmp_path):
    many = {"steps": 10**6}
    made = train(tmp_path / "a", minutes=0.05, tasks={**TASKS, **many}, model=many)
    assert made.result.finished
    assert [stage.name for stage in made.result.stages] == ["linear", "meta"]
    assert all(0 < stage.steps < 10**6 for stage in made.result.stages)
    assert made.result.seconds < 3.5  # the time before the first step counts too
    assert len([w for w in made.result.warnings if "0.05 minutes" in w]) == 2


def test_steps_scale_and_pretrain_shorten_the_stages(tmp_path):
    plan = fewgen.plan_training(
        method="fake_adapt",
        out=tmp_path / "a",
        **keywords_of(steps_scale=0.5, tasks={**TASKS, "pretrain": 0.4, "steps": 10}),
    )
    assert [(stage["name"], stage["steps"]) for stage in plan.stages] == [("linear", 4), ("meta", 5)]
    assert all(stage["seconds_per_step"] > 0 for stage in plan.stages)
    assert plan.seconds > 0
    assert "meta: 5 steps of 20 images" in str(plan)
    scratch = prepared(tasks={**TASKS, "pretrain": 0})
    assert [stage.name for stage in scratch.stages()] == ["meta"]


# ----------------------------------------------------------------------------- config.yaml, resuming


def test_the_config_of_a_run_repeats_it(run, tmp_path):
    again = fewgen.train(config=run.path / "config.yaml", out=tmp_path / "b", report=False, progress=False)
    assert_equal_runs(again.path, run.path)
    assert (again.path / "config.yaml").read_text() == (run.path / "config.yaml").read_text()
    assert (again.path / "split.json").read_text() == (run.path / "split.json").read_text()


def test_one_setting_of_tasks_changes_beside_those_of_a_file(run):
    settings = resolved_settings(config=run.path / "config.yaml", out="x", tasks={"n_shot": 4})
    assert settings["tasks"] == MetaConfig(**{**TASKS, "curve": (0, 1, 2), "n_shot": 4})
    assert settings["meta"] == "fomaml"


@pytest.mark.parametrize("step", [9, 23])
def test_a_run_that_was_stopped_continues_bit_for_bit(run, source, tmp_path, monkeypatch, step):
    """In the ordinary stage of 20 steps, and in the one of tasks."""
    with monkeypatch.context() as patch:
        stop_all_at(patch, step)
        stopped = train(tmp_path / "a", data=source)
    assert stopped.result.interrupted
    assert stopped.result.steps == step
    assert train(tmp_path / "a", data=source).result.finished
    assert_equal_runs(tmp_path / "a", run.path)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"meta": "reptile"}, ConfigError, r"settings: settings\.meta was fomaml, now reptile"),
        ({"meta": "none"}, ConfigError, r"settings: settings\.meta was fomaml, now none"),
        ({"tasks": {**TASKS, "inner_steps": 3}}, ConfigError, r"settings\.tasks\.inner_steps was 2, now 3"),
        ({"tasks": {**TASKS, "n_way": 3}}, ConfigError, r"settings: settings\.tasks\.n_way was 2, now 3"),
        ({"class_split": "4/2/2"}, OutputError, r"another split of the classes.*--class-split"),
        ({"meta": None, "tasks": None}, OutputError, r"another split of the classes.*--meta, --class-split"),
    ],
)
def test_resuming_with_other_settings_is_refused_by_name(run, source, changes, error, message):
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(error, match=message):
        train(run.path, **{"data": source, **changes})
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_other_novel_classes_under_the_same_file_name_are_noticed(tmp_path):
    file = split_file(tmp_path / "s.json", "abcd", "e", "f")
    train(tmp_path / "a", class_split=file)
    split_file(tmp_path / "s.json", "abcd", "e", "g")
    with pytest.raises(OutputError, match=r"novel: f, now g"):
        train(tmp_path / "a", class_split=file)


# ----------------------------------------------------------------------- runs from before meta-learning


def made_old(run_dir):
    """Take out of a run what runs of before meta-learning lack."""
    config = read_config(run_dir / "config.yaml")
    for key in ("meta", "tasks", "class_split"):
        config.pop(key, None)
    write_yaml(run_dir / "config.yaml", config)
    split = json.loads((run_dir / "split.json").read_text())
    split.pop("classes", None)
    (run_dir / "split.json").write_text(json.dumps(split))
    method, extra = load_method(run_dir), read_method_info(run_dir).extra
    del method.inner_rates
    method.save(run_dir / "model.safetensors", extra)
    state = read_state(run_dir / "state")
    for key in ("meta", "tasks", "class_split"):
        state.values["settings"]["settings"].pop(key, None)
    assert state.tensors.pop("model.inner_rates") is not None
    write_state(run_dir / "state", state.tensors, state.values)


def test_runs_of_before_meta_learning_load_and_resume(tmp_path, monkeypatch, source):
    # Nothing held out, and so no best weights: those of this method would hold the rates as well.
    old = {"data": source, "meta": None, "tasks": None, "holdout": 0, "model": {"steps": 14}}
    old["training"] = {"ema_decay": 0.0}
    whole = train(tmp_path / "whole", **old)
    with monkeypatch.context() as patch:
        stop_all_at(patch, 8)
        assert train(tmp_path / "a", **old).result.interrupted
    made_old(tmp_path / "a")
    assert "model.inner_rates" not in read_method_info(tmp_path / "a").shapes
    made = fewgen.generate(tmp_path / "a", n=1)
    assert len(made) == 8
    assert fewgen.load_run(tmp_path / "a").images()[0].class_names == NAMES
    continued = train(tmp_path / "a", **old)
    assert continued.result.finished
    a, b = whole.method.state_dict(), continued.method.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    made_old(tmp_path / "a")
    assert train(tmp_path / "a", **old).was_finished
    again = fewgen.train(
        config=tmp_path / "a" / "config.yaml", out=tmp_path / "b", progress=False, report=False
    )
    assert torch.equal(fewgen.generate(again, n=1).images, fewgen.generate(whole, n=1).images)
    with pytest.raises(OutputError, match=r"holds a run on other images|another split"):
        train(tmp_path / "a", **{**old, "class_split": "5/1/2"})


# --------------------------------------------------------------------------------------- bad input


FEW = images_of([12] * 5 + [3, 4])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"tasks": {"n_way": 7}},
            DataError,
            r"5 base classes.*n_way = 7 .*only 5.*--tasks\.n_way to at most 5",
        ),
        (
            {"shots": 4},
            DataError,
            r"5 base classes.*2 \+ 3 = 5 images.*4 of .*--tasks\.n_shot and --tasks\.n_query to at most 4",
        ),
        ({"holdout": 8}, DataError, r"5 base classes to learn from.*2 \+ 3 = 5 images .*--tasks\.n_shot"),
        ({"meta": "none", "shots": 4}, DataError, r"5 base classes"),
        (
            {"data": FEW, "class_split": ("abcde", "f", "")},
            DataError,
            r'1 validation class to measure.*2 \+ 3 = 5 .*3 of "f".*--tasks\.n_shot and --tasks\.n_query',
        ),
        (
            {"data": FEW, "class_split": ("abc", "d", "eg")},
            DataError,
            r'2 novel classes to measure.*2 \+ 3 = 5 .*4 of "g".*--tasks\.n_shot and --tasks\.n_query',
        ),
        (
            {"data": images_of([12] * 5 + [0]), "class_split": ("abcd", "", "f")},
            DataError,
            r"None of the novel classes has images.*--class-split",
        ),
        (
            {"class_split": ("abcd", "", "de")},
            DataError,
            r'--class-split .*"d" of novel is the class "d" of base',
        ),
        ({"class_split": ("abcd", "", ["zz"])}, DataError, r'--class-split .*no class "zz" \(novel\)'),
        ({"class_split": ("a", "b", "c")}, DataError, r"--class-split .*: 1 base class .*at least 2"),
        ({"class_split": ("", "b", "c")}, DataError, r"--class-split .*: 0 base classes .*at least 2"),
        ({"class_split": "nowhere.json"}, DataError, r'--class-split.*"nowhere.json" does not exist'),
        ({"class_split": "5/1/1"}, ConfigError, r"--class-split 5/1/1.*5 \+ 1 \+ 1 = 7, but 8 classes"),
        ({"class_split": "autoo"}, ConfigError, 'Did you mean "auto"'),
        ({"class_split": 6}, ConfigError, "class_split must be text or a path, got 6"),
        ({"meta": None}, ConfigError, r"--tasks has no use without --meta"),
        ({"meta": "reptil"}, ConfigError, 'Unknown meta-training "reptil".*Did you mean "reptile"'),
        ({"meta": False}, ConfigError, 'Unknown meta-training "False".*none, reptile, fomaml, maml'),
        ({"tasks": {"n_wya": 2}}, ConfigError, 'unknown key "tasks.n_wya".*Did you mean "n_way"'),
        ({"tasks": {"adapt": "hed"}}, ConfigError, 'tasks.adapt is "hed".*heads'),
        ({"tasks": {"n_way": "two"}}, ConfigError, '"tasks.n_way" must be a whole number'),
        (
            {"tasks": {"steps": 0, "inner_lr": -1}},
            ConfigError,
            r"(?s)tasks\.inner_lr must.*tasks\.steps must",
        ),
        ({"tasks": "n_way 2"}, ConfigError, '"tasks" must be a section'),
    ],
)
def test_mistakes_are_found_before_anything_is_written(tmp_path, changes, error, message):
    if isinstance(changes.get("class_split"), tuple):
        changes = {**changes, "class_split": split_file(tmp_path / "s.json", *changes["class_split"])}
    if isinstance(changes.get("tasks"), dict):
        changes = {**changes, "tasks": {**TASKS, **changes["tasks"]}}
    with pytest.raises(error, match=message) as found:
        train(tmp_path / "a", **changes)
    assert " 1 validation classes" not in str(found.value)
    assert not (tmp_path / "a").exists()


def test_fewer_novel_classes_than_a_task_has_are_enough(tmp_path):
    file = split_file(tmp_path / "s.json", "abcd", "e", "f")
    assert [o.images.n_classes for o in prepared(class_split=file, tasks={**TASKS, "n_way": 4}).others] == [
        1,
        1,
    ]


def test_a_method_that_cannot_adapt_is_refused(tmp_path):
    for meta in ("none", *META):
        with pytest.raises(ConfigError, match=r'"fake" cannot be meta-trained. Leave out --meta'):
            train(tmp_path / "a", "fake", meta=meta)
    assert train(tmp_path / "a", "fake", meta=None, tasks=None).result.finished


# ---------------------------------------------------------------------------------- the command line


def cli(capsys, source, out, *more, method="fake_adapt"):
    """Return (exit code, standard output, standard error) of `fewgen train`."""
    capsys.readouterr()
    tasks = tasks_for("reptile" if "reptile" in more else None)
    flags = [f"--tasks.{key}={value}" for key, value in tasks.items()]
    code = main(
        ["train", method, "--data", str(source), "--out", str(out), "--text", "onehot", "--no-progress"]
        + ["--no-report", *(flags if "--meta" in more else []), *map(str, more)]
    )
    printed, err = capsys.readouterr()
    assert "Traceback" not in printed + err
    return code, printed, err


def test_the_command_is_the_call(capsys, run, source, tmp_path):
    code, out, _ = cli(capsys, source, tmp_path / "a", "--meta", "fomaml")
    assert code == 0
    assert "Trained 26 steps" in out
    assert_equal_runs(tmp_path / "a", run.path)
    assert (tmp_path / "a" / "config.yaml").read_text() == (run.path / "config.yaml").read_text()


def test_what_print_config_prints_trains_the_same_run(capsys, run, source, tmp_path):
    code, out, _ = cli(capsys, source, tmp_path / "a", "--meta", "fomaml", "--print_config")
    assert code == 0
    assert not (tmp_path / "a").exists()
    (tmp_path / "c.yaml").write_text(out)
    again = fewgen.train(config=tmp_path / "c.yaml", out=tmp_path / "a", report=False, progress=False)
    assert_equal_runs(again.path, run.path)
    code, out, _ = cli(capsys, source, tmp_path / "b", "--print_config")
    assert code == 0
    (tmp_path / "c.yaml").write_text(out)
    settings = read_config(tmp_path / "c.yaml")
    assert settings["meta"] is None
    assert settings["tasks"] is None


def test_a_dry_run_lists_both_stages_and_writes_nothing(capsys, source, tmp_path):
    code, out, _ = cli(capsys, source, tmp_path / "a", "--meta", "maml", "--steps-scale", "0.5", "--dry-run")
    assert code == 0
    number = r"about [\d.]+ minutes"
    assert re.search(rf"stage +linear: 10 steps of 16 images, .* parameters, {number}", out)
    assert re.search(rf"stage +meta: 3 steps of 20 images, .* parameters, {number}", out)
    assert re.search(r"(?s)validation +1: \w\nnovel +2: \w, \w\n", out)
    assert re.search(r"time +about [\d.]+ minutes", out)
    assert re.search(r"classes +5: ", out)
    assert not (tmp_path / "a").exists()
    code, out, _ = cli(capsys, source, tmp_path / "a", "--meta", "none", "--dry-run")
    assert code == 0
    assert "meta:" not in out
    assert re.search(r"novel +2: ", out)
    code, out, _ = cli(capsys, source, tmp_path / "a", "--dry-run")
    assert code == 0
    assert "novel" not in out


def test_ctrl_c_says_how_to_continue(capsys, source, tmp_path, run, monkeypatch):
    with monkeypatch.context() as patch:
        stop_all_at(patch, 22)
        code, _, err = cli(capsys, source, tmp_path / "a", "--meta", "fomaml")
    assert code == 130
    assert "Stopped after 22 steps" in err
    assert cli(capsys, source, tmp_path / "a", "--meta", "fomaml")[0] == 0
    assert_equal_runs(tmp_path / "a", run.path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--meta", "fomaml", "--tasks.n_way", "7"], r"n_way = 7 .*--tasks\.n_way to at most 5"),
        (["--meta", "fomaml", "--shots", "4"], r"2 \+ 3 = 5 images.*--tasks\.n_shot and --tasks\.n_query"),
        (["--meta", "fomamll"], 'Did you mean "fomaml"'),
        (["--meta", "maml", "--tasks.n_wya", "2"], 'Did you mean "n_way"'),
        (["--tasks.n_way", "2"], "--tasks has no use without --meta"),
        (["--class-split", "6/1/3"], r"--class-split 6/1/3.*6 \+ 1 \+ 3 = 10, but 8 classes"),
    ],
)
def test_mistakes_on_the_command_line(capsys, source, tmp_path, flags, message):
    code, _, err = cli(capsys, source, tmp_path / "a", *flags)
    assert code == 2
    assert err.startswith("error: ")
    assert re.search(message, err)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("algorithm", "lr", "steps", "message"),
    [
        ("maml", "1e6", 8, r"before inner update \d"),
        ("fomaml", "1e6", 8, r"before inner update \d"),
        ("reptile", "1e6", 8, r"before inner update \d"),
        ("fomaml", "1e30", 1, r"after 1 inner update"),
    ],
)
def test_an_inner_loss_that_is_not_finite_names_numbers_and_flags(
    capsys, source, tmp_path, algorithm, lr, steps, message
):
    flags = ["--tasks.inner_optimizer", "sgd", "--tasks.inner_lr", lr, "--tasks.inner_steps", steps]
    code, _, err = cli(capsys, source, tmp_path / "a", "--meta", algorithm, *flags)
    assert code == 2
    error = err[err.index("error: ") :]
    assert re.match(rf"error: The loss of a task is (inf|nan) {message}", error)
    assert f"the inner learning rate {float(lr):g}" in error
    assert "--tasks.inner_lr" in error
    assert "--tasks.inner_optimizer adam" in error
    (line,) = lines_of(tmp_path / "a", "error")
    assert line["text"] in error


def test_a_curve_that_is_not_finite_names_its_flag(capsys, source, tmp_path):
    flags = ["--tasks.inner_optimizer", "sgd", "--tasks.adapt_lr", "1e30", "--tasks.curve", "[0,1]"]
    code, _, err = cli(capsys, source, tmp_path / "a", "--meta", "fomaml", *flags)
    assert code == 2
    assert re.search(r"error: .*not finite after adapting.*1e\+30.*--tasks\.adapt_lr", err)
    # Also where it is an update of the curve that finds it: the rate of meta-training is not at fault.
    flags[-1] = "[0,9]"
    code, _, err = cli(capsys, source, tmp_path / "b", "--meta", "fomaml", *flags)
    assert code == 2
    assert re.search(r"error: .*before inner update \d.*1e\+30.*--tasks\.adapt_lr", err)
    assert "--tasks.inner" not in err


# --------------------------------------------------------------------------------- several processes


def broken(n_processes, **changes):
    """A step of tasks that all fail, and its method and rates."""
    data = family(4, 8, seed=1)
    method = make(ToyAdaptConfig(), 0, ToyAdapt, data)
    settings = {**TASKS, "inner_optimizer": "sgd", "inner_lr": 1e30, "inner_steps": 3, **changes}
    stage = meta_stage(method, "fomaml", MetaConfig(**settings))
    device, rng = torch.device("cpu"), torch.Generator().manual_seed(0)
    context = Context(0, 5, stage, rng, Pixels(data, device), None, device, n_processes=n_processes)
    batch = context.train.at(stage.sampler(data.labels, stage.batch_size, 0, 0, n_processes).next())
    return method, stage.phases[0], batch, context


def test_a_failed_task_is_an_error_at_once_where_nobody_waits():
    method, phase, batch, context = broken(1)
    method.train()
    with pytest.raises(TrainingError, match="--tasks.inner_lr"):
        phase.step(batch, context)
    assert method.training


def test_a_failed_task_reports_a_total_that_stops_all_processes():
    method, phase, batch, context = broken(2)
    method.train()
    for parameter in [*method.parameters(), *phase.weighting.parameters()]:
        parameter.grad = torch.ones_like(parameter)  # of an earlier step
    terms = phase.step(batch, context)
    assert torch.isnan(phase.weighting(terms))
    assert {"support", "spread"} == set(terms.stats)
    assert all(p.grad is None for p in [*method.parameters(), *phase.weighting.parameters()])
    assert method.training


PROCESSES = """
import json, sys
import torch
torch.set_num_threads(1)
from tests.test_meta_api import failing
from fewgen.errors import FewgenError

found = []
for run_dir in json.loads(sys.argv[1]):
    try:
        found.append(f"steps {failing(run_dir).run().steps}")
    except FewgenError as error:
        found.append(f"{type(error).__name__}: {error}")
with open(f"{sys.argv[2]}.{torch.distributed.get_rank()}", "w") as file:
    json.dump(found, file)
torch.distributed.destroy_process_group()
"""


def failing(run_dir):
    """A run whose second process meets a task that fails at step 4 of 8."""
    from tests.training.toys import quiet

    data = family(4, 8, seed=1)
    method = make(ToyAdaptConfig(), 0, ToyAdapt, data)
    stage = meta_stage(method, "fomaml", MetaConfig(**{**TASKS, "steps": 8}))
    trainer = Trainer(method, [stage], data, None, quiet(), run_dir)
    step = stage.phases[0].step

    def stepping(batch, context):
        if context.step == 3 and context.rank == 1:
            batch.images[0] = torch.inf
        return step(batch, context)

    stage.phases[0].step = stepping
    return trainer


def test_a_failed_task_in_one_process_leaves_no_other_waiting(tmp_path):
    first, second = launch([str(tmp_path / "a")], tmp_path / "found", script=PROCESSES)
    for (text,) in (first, second):
        assert re.match(r"TrainingError: .*not finite at step 4", text), text
    assert '"query" (nan)' in second[0]


# -------------------------------------------------------------------------------------- the real method


def test_digits_with_the_real_method(tmp_path, capsys):
    """Six digits are learned from, and the adapted run draws one of the others."""
    settings = {
        "data": "digits",
        "size": 8,
        "text": "onehot",
        "shots": 30,
        "steps-scale": 0.002,
        "meta": "fomaml",
        "tasks.curve": [0, 1],
        "tasks.validation_tasks": 1,
        "tasks.inner_steps": 1,
        "tasks.n_shot": 2,
        "tasks.n_query": 2,
        "model.image.backbone": "mlp",
    }
    flags = [*(f"--{key}={value}" for key, value in settings.items()), "--no-progress", "--no-report"]
    code = main(["train", "cada_vqvae", *flags, "--out", str(tmp_path / "a")])
    assert code == 0, capsys.readouterr()
    run = fewgen.load_run(tmp_path / "a")
    split = json.loads((tmp_path / "a" / "split.json").read_text())["classes"]
    assert [len(split[part]) for part in ("base", "val", "novel")] == [6, 1, 3]
    assert run.class_names == tuple(split["base"])
    (line,) = lines_of(tmp_path / "a", "held_out")
    assert line["novel_loss_after_1"] != line["novel_loss_after_0"]
    (rates,) = lines_of(tmp_path / "a", "train")
    assert "outer/query" in rates
    found = fewgen.retrieve(run, load_images("digits", size=8).subset([0, 1]), top=6)
    assert sorted(word for word, _ in found.words[0]) == sorted(run.class_names)
    assert len(fewgen.generate(run, n=1)) == 6
    new = split["novel"][0]
    adapted = fewgen.adapt(
        run,
        images=load_images("digits", size=8).select_classes([new]).shots(5, 0),
        class_names=new,
        out=tmp_path / "b",
        steps=2,
        report=False,
        progress=False,
    )
    assert adapted.class_names == (*run.class_names, new)
    assert len(fewgen.generate(adapted, class_names=new, n=2)) == 2


def test_a_setting_that_meta_training_cannot_do_with_is_refused(tmp_path, capsys):
    words = ["train", "cada_vqvae", "--data", "digits", "--meta", "fomaml", "--out", str(tmp_path / "run")]
    assert main([*words, "--model.text.update", "ema", "--dry-run"]) == 2
    assert "--model.text.update is ema, but --meta needs gradient" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
