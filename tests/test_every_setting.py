"""Every setting of every method acts, or is refused by name: none is silently ignored.

The walk reads the settings from the dataclasses, so that a new one is covered without work. A setting acts if another
value of it changes the weights or the images, or the file that `FILES` names. A setting may be refused where it cannot
act; then what the message asks for is set, and it has to act there. Every choice has to differ from every other one.

What was shown with one base of a method is shown again with another one only if it depends on other settings, which
`effects` says.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
import types
import typing
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import yaml
from tests.fake_method import Fake, FakeConfig
from tests.methods.sq_gan_tools import shapes
from tests.nn.tiny_maps import offer

import fewgen
from fewgen.api import resolved_settings
from fewgen.config import effects
from fewgen.config.schema import merge
from fewgen.errors import FewgenError, TrainingError
from fewgen.methods.registry import MODULES, get_method
from fewgen.methods.sq_gan import SqGan

TRAINING = {
    "device": "cpu",
    "validate_every": 2,
    "preview_every": 0,
    "checkpoint_every": 0,
    "ema_decay": 0.5,
    "log_every": 1,
}
CADA = {
    "latent_size": 4,
    "image": {"width": 4, "hidden": 8},
    "text": {"hidden": 8, "codebook_size": 4, "groups": 2},
}
STEPS = {"steps": 6, "batch_size": 6, "clip": 0.1, "lr": 0.05}
SPATIAL = {
    **{"codebook_size": 8, "codebook_dim": 2, "width": 8, "steps": 3, "lr": 0.01},
    **{"prior_width": 8, "prior_layers": 1, "prior_heads": 2, "prior_steps": 3, "prior_lr": 0.05},
}
TASKS = {
    **{
        "n_way": 2,
        "n_shot": 1,
        "n_query": 2,
        "tasks_per_step": 2,
        "inner_steps": 2,
        "steps": 3,
        "inner_lr": 0.01,
    },
    **{"curve": [0, 1], "validation_tasks": 1, "adapt_steps": 2},
}
NETWORK = {"width": 4, "max_width": 8, "z_dim": 8, "w_dim": 8, "group_size": 2}
GAN = {"network": NETWORK, "steps": 3, "batch_size": 4, "r1_every": 2, "lr": 0.02, "discriminator_lr": 0.02}
CODES = {"quantizer": {"codebook_size": 8, "code_dim": 2}}
INIT = {"init": {"steps": 2, "foundation_steps": 2, "batch_size": 4, "blocks": 2}}
DENOISER = {
    "network": {
        **{"channels": [8, 8], "attention_levels": 1, "heads": 2},
        **{"text_width": 8, "text_layers": 1, "times": 20},
    },
    **{"steps": 3, "batch_size": 4, "sampling_steps": 2, "lr": 0.01},
}
LATENT = {"channels": [8, 8], "latent_channels": 2}
AUTOENCODER = {"network": {"latent": LATENT}, "autoencoder": {"steps": 3, "batch_size": 4}}
TINT = {
    "steps": 2,
    "textual": {"steps": 3, "batch_size": 2, "t_min": 2},
    "null_text": {"inner_steps": 2},
}
TAGE = {
    "network": {"w_dim": 8, "width": 4, "max_width": 8, "encoder_width": 4},
    "autoencoder": {"steps": 3, "batch_size": 6, "lr": 0.02, "perceptual_steps": 2, "augment": "none"},
    "age": {"rank": 3, "groups": [2, 1], "hidden": [8], "steps": 3, "batch_size": 6, "lr": 0.02},
    "codebook": {"codebook_size": 12, "parts": 2, "steps": 3, "batch_size": 6, "lr": 0.02},
    "predictor": {"width": 8, "layers": 1, "heads": 2, "steps": 3, "batch_size": 6, "lr": 0.02},
}
PLAIN = {"autoencoder": {"steps": 1, "perceptual": "none", "perceptual_steps": 200}}
PROMPTS = {"steps": 3, "batch_size": 8, "encoder_steps": 3, "lr": 0.02, "weight": 5.0}


def _meta(how: str, pretrain: float, **tasks: Any) -> dict[str, Any]:
    model = CADA | STEPS if pretrain else CADA
    tasks = {**TASKS, "pretrain": pretrain, **tasks}
    return {"method": "cada_vqvae", "model": model, "meta": how, "tasks": tasks, "class_split": "2/0/1"}


UNSEEN: dict[str, Any] = {"holdout": 0, "training": {"validate_every": 0}}
"""Of methods that choose nothing by held-out images: without, they are trained in half the time."""

BASES: dict[str, dict[str, Any]] = {
    "cada": {"method": "cada_vqvae", "model": CADA | STEPS},
    "cada hybrid": {
        "method": "cada_vqvae",
        "preset": "hybrid",
        "model": CADA | STEPS | {"spatial": SPATIAL},
    },
    "cada paper": {
        "method": "cada_vqvae",
        "preset": "paper",
        "model": {"text": {"hidden": 8, "codebook_size": 4}, "steps": 6, "batch_size": 6, "lr": 0.01},
    },
    "cada maml": _meta("maml", 0.5, task_clip=0.01),
    "cada reptile": _meta("reptile", 0.0),
    "cada fomaml": _meta("fomaml", 0.0, task_clip=0.01),
    "gan": {"method": "sq_gan", "model": merge(GAN, CODES, INIT), **UNSEEN},
    "gan random": {"method": "sq_gan", "model": merge(GAN, CODES, {"init": {"kind": "random"}}), **UNSEEN},
    "gan plain": {"method": "sq_gan", "preset": "plain", "model": GAN, **UNSEEN},
    "tage": {"method": "tage", "model": TAGE, **UNSEEN},
    "tage prompts": {
        "method": "tage",
        "model": merge(TAGE, {"age": None, "prompts": PROMPTS}, PLAIN),
        **UNSEEN,
    },
    "diffusion": {"method": "diffusion", "model": DENOISER, **UNSEEN},
    "diffusion latent": {
        "method": "diffusion",
        "preset": "latent",
        "model": merge(DENOISER, AUTOENCODER),
        **UNSEEN,
    },
    "tint": {
        "method": "tint",
        "model": TINT,
        "shots": 2,
        "training": {"ema_decay": 0.0, "validate_every": 0},
    },
}
"""Name -> keywords of a training of a second or less. The control "none" of meta-training is not among them: it takes
over all settings of the training that it is compared with."""

PARTS: dict[str, Any] = {
    "model.spatial": SPATIAL,
    "model.network.latent": LATENT,
    "model.quantizer": CODES["quantizer"],
    "model.prompts": PROMPTS,
}
"""Sections of a usable size, where another setting needs them."""

WORDS: dict[str, tuple[Any, ...]] = {
    "augment": ("none", "light", "shapes", "photo"),
    "prior_augment": ("none", "light", "shapes", "photo"),
    "schedule": ("constant", "late_decay", "cosine"),
    "consistency": ("none", "cr", "bcr", "zcr", "qcr"),
    "view": ("translation", "flip"),
    "policy": ("flip", "translation"),
    "encoder": ("lite0", "tiny"),
    "side": (32, 48),
    "template": ("a photo of a {}", "{} in a photo"),
    "adapt": ("all", "decoder", "heads"),
    "inner_optimizer": ("adam", "sgd"),
    "precision": ("auto", "bfloat16"),
    "texts": (["a thick drawing", "a small drawing"], ["a small drawing"]),
    "neutral": ("a thick small drawing",),
    "prompt": ("a photo of an #object", "a #object"),
    "init_word": ("object", "rows"),
    "clock": ("wall", "cpu"),
    "alpha": (1.0, 0.0, "uniform"),
}
"""Setting -> its choices, where its type does not say them. A new setting that is a text has to be added."""

ADA = {"model": {"adversarial_augment": "ada", "ada_kimg": 0.1, "steps": 12}}
TINY = {"encoder": "tiny", "mixed": 4, "width": 8}
CONTEXTS: dict[str, dict[str, Any]] = {
    # Something to choose from: a rate at which the held-out loss rises again.
    "model.patience": {"model": {"lr": 0.3, "clip": 0.0}, "training": {"validate_every": 1}},
    "model.tolerance": {"model": {"lr": 0.3, "clip": 0.0}, "training": {"validate_every": 1}},
    "model.spatial.trust_noise": {"model": {"spatial": {"prior_lr": 0.5, "prior_steps": 12}}},
    # ADA starts from no augmentation at all.
    **{f"sq_gan/model.{name}": ADA for name in ("ada_target", "ada_kimg", "mirror", "padding")},
    "gan plain/model.ada_target": {"model": {"steps": 24}},
    # A frozen network of a moment's work.
    **{
        f"model.projected.{name}": {"model": {"discriminator": "projected", "projected": TINY | {"side": 32}}}
        for name in ("mixed", "width", "norm", "condition", "embedding")
    },
    "model.projected.side": {"model": {"discriminator": "projected", "projected": TINY}},
    # Neighbours that have other codes.
    "model.consistency_weights": {"model": {"consistency_weights": {"sigma": 2.0}}},
    # The weights that are best on held-out images come before the rate falls.
    "cada paper/model.schedule": {"training": {"checkpoint": "last"}},
    # The published sums are larger, and diverge at the rate above.
    **{f"cada paper/model.{name}": {"model": {"lr": 0.01}} for name in ("patience", "tolerance")},
}
"""Setting, of one method or base if it is named -> further keywords under which a few steps show what it does."""

FILES = {
    "model.patience": "metrics.jsonl",
    "training.log_every": "metrics.jsonl",
    "training.validate_every": "metrics.jsonl",
    "training.preview_every": "previews",
    "tasks.curve": "metrics.jsonl",
    "tasks.validation_tasks": "metrics.jsonl",
    "tasks.adapt_lr": "metrics.jsonl",
}
"""Settings that change no weights and no images by what they are -> what they change."""

EXEMPT = {
    "training.device": "where to compute; results are the same but for rounding",
    "training.threads": "how fast; results are the same but for rounding",
    "training.deterministic": "of graphics cards",
    "training.progress": "what is shown",
    "training.minutes": "depends on the speed of the machine; tests/training/test_loop.py",
    "training.clock": "likewise",
    "training.tensorboard": "needs a package that tests lack; tests/training/test_loop.py",
    "training.checkpoint": "of long trainings; tests/training/test_selection.py",
    "training.checkpoint_every": "what is left after a kill; tests/training/test_resume.py",
    "tasks.adapt_steps": "of adapting afterwards; tests/test_adapt_api.py",
    "model.init.foundation": "its other value is a folder of CLIP; tests/methods/test_sq_gan_init.py",
    "model.base": "the model that is specialised; tests/methods/test_tint.py",
    "model.batch": "most images computed at a time, for memory; results are the same",
    "model.precision": "of Stable Diffusion; tests/methods/test_tint.py",
    "model.attention_slicing": "of Stable Diffusion, for memory; results are the same",
    "model.fitted": "written by training",
    "model.generator": "a file of weights; tests/methods/test_tage_weights.py",
    "model.encoder": "likewise",
    "model.supports": "written by training, or by adapt",
    "model.sampler.single": "of classes that adapt takes in; tests/methods/test_tage.py",
    "model.sampler.keep": "likewise",
    "model.sampler.around": "likewise",
    "model.prompts.encoder": "others are not trained, and need weights; tests/methods/test_tage_prompts.py",
    "model.prompts.guidance": "of drawing with a prompt; tests/methods/test_tage_prompts.py",
    "model.network.encoder_side": "of the published encoder, which takes long; tests/nn/test_style_encoder.py",
}
"""Settings that the walk leaves out -> why."""


# ------------------------------------------------------------------------------------------ trainings


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainings]:
    with pytest.MonkeyPatch.context() as patch:
        offer(patch)
        patch.setattr(SqGan, "_diagnose", lambda self, context: [])  # half of the time, and changes nothing
        yield Trainings(tmp_path_factory.mktemp("trainings"))


class Trainings:
    """Trains with keywords and says what came of it."""

    def __init__(self, place: Any) -> None:
        self.place = place
        self.images = shapes(n_per_class=6)
        self._base: str | None = None
        self._known: dict[str, dict[str, str]] = {}
        self._number = itertools.count()

    def keywords(self, *layers: dict[str, Any]) -> dict[str, Any]:
        """Lay keywords over each other, on top of what all trainings have."""
        common: dict[str, Any] = {"data": self.images, "holdout": 2, "training": TRAINING}
        common |= {"report": False, "progress": False}
        method = layers[0]["method"]
        if get_method(method).reads_text:
            common["text"] = "onehot"
        if method == "tint":
            common["model"] = {"base": self.base()}
        result = dict(common)
        for layer in layers:
            for key, value in layer.items():
                section = isinstance(value, dict) and isinstance(result.get(key), dict)
                result[key] = merge(result[key], value) if section else value
        return result

    def base(self) -> str:
        """Return the run of the model that TINT specialises."""
        if self._base is None:
            self._base = str(self.place / "base")
            fewgen.train(**self.keywords(BASES["diffusion"]), out=self._base)
        return self._base

    def once(self, given: dict[str, Any]) -> dict[str, str]:
        """Return the outcome of keywords that come often."""
        key = json.dumps({name: value for name, value in given.items() if name != "data"}, sort_keys=True)
        if key not in self._known:
            self._known[key] = self.outcome(given)
        return self._known[key]

    def outcome(self, given: dict[str, Any]) -> dict[str, str]:
        """Return digests of all that a training leaves behind; that it stopped is an outcome, too."""
        out = self.place / str(next(self._number))
        try:
            run = fewgen.train(**given, out=out)
        except TrainingError as error:
            return {"weights": f"stopped: {error}"}
        weights = [(name, tuple(t.shape), t.cpu()) for name, t in run.method.state_dict().items()]
        options = [{}] if given["method"] != "tint" or not run.method.has_latents else [{}, {"alpha": 0.5}]
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        lines = [{key: value for key, value in line.items() if "second" not in key} for line in lines]
        pictures = sorted((out / "previews").glob("*"))
        return {
            "weights": _digest(*(f"{n}{s}{t.flatten().tolist()}" for n, s, t in weights)),
            "images": _digest(*(run.generate(n=4, options=o).images.numpy().tobytes() for o in options)),
            "metrics.jsonl": _digest(json.dumps(lines)),
            "previews": _digest(*(f"{p.name}{_digest(p.read_bytes())}" for p in pictures)),
        }


def _digest(*parts: str | bytes) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part if isinstance(part, bytes) else part.encode())
    return whole.hexdigest()


# ------------------------------------------------------------------------------------------ settings


def leaves(config: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield path, type and value of each setting, also of sections that may be off."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        hint, value, path = hints[field.name], getattr(config, field.name), f"{where}.{field.name}"
        kind = _kind(hint)
        if not dataclasses.is_dataclass(kind):
            yield path, hint, value
            continue
        if kind is not hint:
            yield path, hint, value
        if value is not None:
            yield from leaves(value, path)


def _kind(hint: Any) -> Any:
    """Return the type of a setting without None."""
    options = typing.get_args(hint) if _is_union(hint) else (hint,)
    kinds = [option for option in options if option is not type(None)]
    return typing.get_args(kinds[0])[0] if typing.get_origin(kinds[0]) is typing.Annotated else kinds[0]


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def other_values(path: str, hint: Any, now: Any) -> tuple[list[Any], list[Any]]:
    """Return choices, each of which must act, and values of which one must."""
    name, kind = path.split(".")[-1], _kind(hint)
    optional = _is_union(hint) and type(None) in typing.get_args(hint)
    none = [None] if optional and now is not None else []
    if dataclasses.is_dataclass(kind):
        if now is not None:
            return none, []
        own = PARTS.get(path, {})
        return [], [own, *({**own, leaf.split(".")[-1]: 1} for leaf, _, _ in leaves(kind(), ""))]
    if kind is bool:
        return [not now, *none], []
    choices = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else WORDS.get(name)
    if choices is not None:
        return [choice for choice in choices if choice != now] + none, []
    if kind in (int, float):
        n = now or 0
        tried: list[Any] = [n + 1, 2 * n, n // 2, 1, 2, 0, 4]
        if kind is float:
            tried = [n / 2, 2 * n, 0.3, 0.0, 1.0, 1e-3, 1e-5, 2.0]
        return none, [value for value in dict.fromkeys(tried) if value != now]
    if typing.get_origin(kind) is tuple:
        return none, [[*now, *(now[-1:] or [1])], [2 * n for n in now], [*now, 2 * max(now, default=0)]]
    return none, []


def section_of(path: str, value: Any) -> dict[str, Any]:
    """Return keywords that change one setting."""
    for part in reversed(path.split(".")):
        value = {part: value}
    return value


# ------------------------------------------------------------------------------------------ the walk


class Walk:
    """Changes one setting after the other.

    Args:
        trainings: that show what a setting does.
        base: keywords, or the name of some.
        again: another base of the method was walked over: only what depends on other settings comes, and a
            refusal of it is enough, since it acts there.

    Attributes:
        problems: what is wrong, each a sentence with the name of a setting.
    """

    def __init__(self, trainings: Trainings, base: str | dict[str, Any], again: bool = False) -> None:
        self.trainings, self.again = trainings, again
        self.base = BASES[base] if isinstance(base, str) else base
        self.name = base if isinstance(base, str) else ""
        self.problems: list[str] = []
        self.refused: list[str] = []

    def all(self, only: str = "", besides: str | tuple[str, ...] = "-") -> Walk:
        """Walk over the settings whose path begins with `only` and not with `besides`."""
        for path, hint, value in self.settings(only, besides):
            self.setting(path, hint, value)
        return self

    def settings(
        self, only: str = "", besides: str | tuple[str, ...] = "-"
    ) -> Iterator[tuple[str, Any, Any]]:
        """Yield what `all` walks over: path, type and value."""
        given = self.trainings.keywords(self.base)
        settings = resolved_settings(**given, out=self.trainings.place / "none")
        sections = {name: settings[name] for name in ("model", "tasks", "training") if settings[name]}
        rules = effects.rules_of(sections)
        dependent = tuple(f"{where}.{name}." for where, rule in rules for name in rule.names)
        for section, config in sections.items():
            for path, hint, value in leaves(config, section):
                if self.again and not f"{path}.".startswith(dependent):
                    continue
                if path.startswith(only) and not path.startswith(besides) and path not in EXEMPT:
                    yield path, hint, value

    def setting(self, path: str, hint: Any, now: Any) -> None:
        """Give one setting its other values."""
        choices, tried = other_values(path, hint, now)
        if not choices and not tried:
            self.problems.append(f"{path}: say in WORDS which values it may have.")
        if choices:
            found = [self.acts(path, choice) for choice in choices]
            silent = [choice for choice, (how, _) in zip(choices, found, strict=True) if how != "acts"]
            wrong = [said for how, said in found if how != "acts"]
            if silent and not (len(choices) > 1 and set(wrong) == {"invalid"} and len(silent) < len(choices)):
                self.problems.append(f"{path}: {now!r} -> {silent}: {wrong}.")
            same = [said for how, said in found if how == "acts"]
            if len(set(same)) < len(same):
                self.problems.append(f"{path}: two of {choices} do the same.")
        if tried:
            found = []
            for value in tried:
                found.append(self.acts(path, value))
                if found[-1][0] == "acts":
                    return
            self.problems.append(f"{path}: {now!r} -> {tried}: {[said for _, said in found]}.")

    def acts(self, path: str, value: Any) -> tuple[str, str]:
        """Return "acts" and a digest of what came, or "silent" and why."""
        names = f"{path}.", f"{self.base['method']}/{path}.", f"{self.name}/{path}."
        context = [
            more for start, more in CONTEXTS.items() if any(name.startswith(f"{start}.") for name in names)
        ]
        base, message = self.base, ""
        for _ in range(4):
            # Without a section that is off, its settings would be the defaults, which take long.
            before = self.trainings.keywords(self.base if value is None else base, *context)
            try:
                # The changed one first: a refusal costs nothing.
                after = self.trainings.outcome(
                    self.trainings.keywords(base, *context, section_of(path, value))
                )
            except FewgenError as error:
                message = str(error)
            else:
                return self._compared(path, self.trainings.once(before), after, context)
            refused = re.findall(r"--(\S+) .*? has no effect", message)
            if not refused:
                return "silent", "invalid" if path.split(".")[-1] in message else message
            if path not in refused:  # it turns the part off that these belong to
                base = _without(base, refused)
            elif self.again:
                return "acts", f"refused: {value}"
            elif " without " not in message:
                return "acts", f"refused everywhere: {value}"
            else:
                self.refused.append(path)
                context = [*context, *_advice(message, path)]
        return "silent", f"refused again and again: {message}"

    def _compared(
        self, path: str, before: dict[str, str], after: dict[str, str], context: list[dict[str, Any]]
    ) -> tuple[str, str]:
        parts = ["weights", "images", *([FILES[path]] if path in FILES else [])]
        if all(after.get(part) == before.get(part) for part in parts):
            return "silent", f"no effect with {context}" if context else "no effect"
        return "acts", " ".join(str(after.get(part)) for part in parts) + str(context)


def _without(keywords: dict[str, Any], paths: list[str]) -> dict[str, Any]:
    """Return keywords without some settings."""
    result = {}
    for key, value in keywords.items():
        below = [path[len(key) + 1 :] for path in paths if path.startswith(f"{key}.")]
        if key not in paths:
            result[key] = _without(value, below) if isinstance(value, dict) else value
    return result


def _advice(message: str, path: str) -> list[dict[str, Any]]:
    """Return what a refusal of a setting asks to set."""
    found = []
    for line in message.splitlines():
        asked = re.search(rf"--{re.escape(path)} .*? has no effect without (.*?)(, or .*)?\. Set that", line)
        for name, word in re.findall(r"--(\S+) (\S+)", asked[1]) if asked else ():
            value = {"above": 1}.get(word, yaml.safe_load(word))
            found.append(section_of(name, PARTS.get(name, {}) if value == {} else value))
            if name == "model.init.kind":
                found.append({"model": INIT})
    return found


QUICK = [
    ("cada", "", "-"),
    ("cada hybrid", "model.spatial", "-"),
    ("cada maml", "tasks", "-"),
    ("gan plain", "training", "-"),
]
SLOW = [
    ("cada paper", "", "-", "again"),
    ("gan plain", "model", "-", "again"),
    ("cada reptile", "tasks", "-"),
    ("cada fomaml", "tasks", "-"),
    ("gan", "model.init", "-"),
    ("gan random", "model", "model.init"),
    ("diffusion", "model", ("model.autoencoder", "model.network.latent")),
    ("diffusion", "training", "-"),
    ("diffusion latent", "model.autoencoder", "-"),
    ("diffusion latent", "model.network.latent", "-"),
    ("diffusion latent", "model.network.patch", "-", "again"),
    ("tage", "", "-"),
    ("tage prompts", "model.prompts", "-"),
    ("tint", "", "-"),
]
"""Base, what is walked, what not, and whether the method was walked over before."""


@pytest.mark.parametrize("row", [*QUICK, *(pytest.param(row, marks=pytest.mark.slow) for row in SLOW)])
def test_every_setting_acts_or_is_refused(trainings, row):
    base, only, besides, *again = row
    assert Walk(trainings, base, bool(again)).all(only, besides).problems == []


def test_every_setting_of_every_method_is_walked_over(trainings):
    rows = [*QUICK, *SLOW]
    assert {BASES[base]["method"] for base, *_ in rows} == set(MODULES)
    for method in MODULES:
        bases = [name for name, base in BASES.items() if base["method"] == method]
        walked = {
            path
            for base, only, besides, *again in rows
            if base in bases
            for path, _, _ in Walk(trainings, base, bool(again)).settings(only, besides)
        }
        every = {path for base in bases for path, _, _ in Walk(trainings, base).settings()}
        assert every <= walked, (method, sorted(every - walked))


@dataclasses.dataclass(frozen=True)
class PlantedConfig(FakeConfig):
    """Settings of which one is ignored.

    Attributes:
        ignored: does nothing.
        chosen: one of its values does nothing.
    """

    ignored: float = 1.0
    chosen: typing.Literal["a", "b", "c"] = "a"


def test_an_ignored_setting_is_caught(trainings, monkeypatch):
    monkeypatch.setattr(Fake, "Config", PlantedConfig)
    monkeypatch.setattr(Fake, "stages", _stages(Fake.stages))
    walk = Walk(trainings, {"method": "fake", "model": {"steps": 2}}).all("model")
    assert [problem.split(":")[0] for problem in walk.problems] == ["model.ignored", "model.chosen"]


def _stages(usual: Any) -> Any:
    def stages(self: Any, train: Any, held_out: Any) -> Any:
        with torch.no_grad():
            if self.config.chosen == "b":
                self.image_decoder.bias += 1.0
        return usual(self, train, held_out)

    return stages
