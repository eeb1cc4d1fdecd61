"""Settings that cannot act are refused by name, with what they need; those of a preset never are."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from fewgen.api import resolved_settings
from fewgen.config.effects import ABOVE_0, CHOSEN, GIVEN, NULL, acts, check_effects
from fewgen.errors import ConfigError


@dataclass(frozen=True)
class Part:
    kind: str = "a"
    size: int = 3
    effects: ClassVar = (acts("size", {"kind": ("b", "c")}),)


@dataclass(frozen=True)
class Whole:
    part: Part | None = field(default_factory=Part)
    weight: float = 0.0
    power: float = 2.0
    name: str = "x"
    other: str | None = None
    never: int = 0
    effects: ClassVar = (
        acts("part", {"--mode": "on"}),
        acts("power", {"weight": ABOVE_0}, {"part": NULL}),
        acts("name", {"other": NULL}, {"other": CHOSEN}),
        acts("never"),
        acts("--top", {"part": GIVEN}),
    )


def problems(settings, usual=None, **keywords):
    check_effects({"s": settings, **keywords}, {"s": usual or Whole(), **dict.fromkeys(keywords)})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (Whole(Part(size=4)), "--s.part.size 4 has no effect without --s.part.kind b or c. Set that"),
        (Whole(power=1.0), "--s.power 1.0 has no effect without --s.weight above 0, or --s.part null. Set"),
        (Whole(never=1), "--s.never 1 has no effect with this method. Leave it out."),
    ],
)
def test_a_setting_that_cannot_act_is_refused_with_what_it_needs(settings, said):
    with pytest.raises(ConfigError) as caught:
        problems(settings)
    assert said in str(caught.value)


def test_what_is_usual_or_acts_passes_and_all_problems_come_at_once():
    problems(Whole())
    problems(Whole(Part("b", 4), weight=1.0, power=1.0), mode="on")
    problems(Whole(None, power=1.0))
    problems(Whole(Part(size=4)), usual=Whole(Part(size=4)))
    with pytest.raises(ConfigError, match=r"2 problems[\s\S]*s\.power[\s\S]*s\.part\.size"):
        problems(Whole(Part(size=4), power=1.0))


def test_a_section_that_is_usually_off_has_its_own_defaults():
    with pytest.raises(ConfigError, match=r"--s\.part\.size 4"):
        problems(Whole(Part(size=4)), usual=Whole(None))
    problems(Whole(Part()), usual=Whole(None))


def test_a_way_may_need_a_keyword_of_the_command_and_another_value_than_the_usual_one():
    with pytest.raises(ConfigError, match=r"--s\.part\.kind b has no effect without --mode on"):
        problems(Whole(Part("b")), mode="off")
    with pytest.raises(ConfigError, match=r"--s\.name y has no effect without --s\.other null, or"):
        problems(Whole(name="y", other="z"), usual=Whole(other="z"))
    problems(Whole(name="y", other="w"), usual=Whole(other="z"))
    with pytest.raises(ConfigError, match=r"--top 5 has no effect without --s\.part \{\}"):
        problems(Whole(None), top=5)


def resolved(method="cada_vqvae", **keywords):
    return resolved_settings(method=method, data="digits", **{"out": "none", **keywords})


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"preset": "paper", "model": {"image": {"width": 12}}}, r"image\.width 12 .*backbone conv"),
        ({"method": "sq_gan", "model": {"mirror": True}}, r"mirror true .*adversarial_augment ada"),
        ({"method": "sq_gan", "model": {"view": "flip"}}, r"view flip .*consistency bcr or cr"),
        ({"method": "sq_gan", "model": {"policy": "flip"}}, r"policy flip .*augment diffaugment"),
        ({"method": "sq_gan", "model": {"consistency": "zcr"}}, r"zcr .*consistency_weights null"),
        ({"meta": "reptile", "tasks": {"multi_step": 0.5}}, r"multi_step 0\.5 .* --meta fomaml or maml"),
        (
            {"meta": "maml", "tasks": {"pretrain": 0}, "model": {"weighting": "gradnorm"}},
            r"weighting gradnorm .* --tasks\.pretrain above 0",
        ),
        ({"clock": "cpu"}, r"--clock cpu has no effect without --minutes"),
        ({"training": {"seed": 5}}, r"--training\.seed 5 has no effect: --seed decides, which is 0"),
        ({"holdout": 0, "model": {"patience": 3}}, r"patience 3 .* --holdout above 0"),
        (
            {"method": "diffusion", "holdout": 0, "training": {"validate_every": 5}},
            r"validate_every 5 .* --holdout above 0, or --training\.validate_every 0\.",
        ),
    ],
)
def test_settings_of_methods_that_would_be_ignored(keywords, said):
    with pytest.raises(ConfigError, match=said):
        resolved(**keywords)


def test_a_run_that_is_there_may_have_what_an_earlier_release_ignored(tmp_path):
    (tmp_path / "config.yaml").write_text("method: sq_gan\n")
    resolved("sq_gan", model={"mirror": True}, out=tmp_path)


def test_a_keyword_wins_over_the_same_setting_of_a_file():
    stored = {"seed": 3, "training": {"seed": 3, "minutes": 2.0, "progress": False}}
    assert resolved(config=stored)["training"].seed == 3
    changed = resolved(config=stored, seed=7, minutes=5)["training"]
    assert (changed.seed, changed.minutes, changed.progress) == (7, 5.0, False)
