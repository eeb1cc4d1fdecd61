"""What `--preset auto` stands for: by the images and by what is installed, and for good once a run has begun."""

from __future__ import annotations

import pytest
from tests.evaluation.test_judge import drawings, smooth

from fewgen.api.training import resolved_settings, train_request
from fewgen.config.io import write_yaml
from fewgen.encoders import efficientnet
from fewgen.runs.preparing import prepare

SMALL = {"network": {"width": 4, "max_width": 8}}


def prepared(tmp_path, images, **more):
    request = train_request(
        method="sq_gan",
        data=images,
        out=tmp_path / "run",
        text="onehot",
        holdout=0,
        **{"model": SMALL, **more},
    )
    found = prepare(request)
    return found, [note for note in found.notes if "photographs" in note]


def test_photographs_are_learned_by_their_preset_and_others_by_the_default(tmp_path):
    found, notes = prepared(tmp_path, smooth(20))
    assert (found.settings["preset"], found.method.config.discriminator) == ("projected", "projected")
    assert found.settings["encoders"]["discriminator"]["name"] == "lite0"
    assert found.train_config.ema_decay == 0.995  # of the preset, as its model is
    assert notes == ["Preset projected, since these are photographs; --preset default leaves it."]
    found, notes = prepared(tmp_path, drawings(20))
    assert (found.settings["preset"], found.method.config.discriminator, notes) == ("default", "plain", [])
    found, notes = prepared(tmp_path, smooth(20), preset="default")
    assert (found.settings["preset"], found.method.config.discriminator, notes) == ("default", "plain", [])


def test_without_the_package_the_default_is_taken_and_said(tmp_path, monkeypatch):
    monkeypatch.setattr(efficientnet.importlib.metadata, "files", lambda name: None)
    found, notes = prepared(tmp_path, smooth(20))
    assert (found.settings["preset"], found.method.config.discriminator) == ("default", "plain")
    assert len(notes) == 1
    assert 'pip install "fewgen[knowledge]"' in notes[0]


def test_settings_that_do_not_fit_it_are_not_refused_but_keep_the_default(tmp_path):
    for own, value in (("architecture", "plain"), ("w_dim", 32)):
        model = {"network": {**SMALL["network"], own: value}}
        found, notes = prepared(tmp_path, smooth(20), model=model)
        assert (found.settings["preset"], getattr(found.method.config.network, own)) == ("default", value)
        assert own in notes[0]


@pytest.mark.parametrize("started", ["default", "projected"])
def test_a_run_stays_with_what_it_began_with(tmp_path, started):
    found, _ = prepared(tmp_path, smooth(20), preset=started)
    (tmp_path / "run" / "state").mkdir(parents=True)
    write_yaml(tmp_path / "run" / "config.yaml", found.settings)
    assert prepared(tmp_path, smooth(20))[0].settings["preset"] == started


def test_printed_settings_read_no_image(tmp_path):
    settings = resolved_settings(method="sq_gan", data="nowhere", out=tmp_path / "run")
    assert settings["preset"] == "default"
