import pytest
from tests.encoders.tools import QUICK, bars

from fewgen.encoders.image import make_extractor
from fewgen.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dinno:x", 'no features "dinno".* Did you mean "dino"'),
        ("pixels:x", 'The features "pixels" take no path'),
        ("inception", 'The features "inception" need a path'),
        ("dino:", 'The features "dino" need a path'),
        ("inception:absent.pth", "no weight file absent.pth"),
        ("inception:absent.pth#sha256=12", "no weight file absent.pth"),
        ("clip:x#sha256=12", 'A checksum goes with "inception" only'),
        ("dino:./absent", "no folder ./absent"),
    ],
)
def test_wrong_names_of_features_are_explained(name, message):
    with pytest.raises(ConfigError, match=message):
        make_extractor(name, bars(4))


def test_features_by_name():
    assert make_extractor("pixels", bars(4, size=6)).dim == 36
    judge = make_extractor("classifier", bars(40), bars(20, seed=1), settings=QUICK, use_cache=False)
    assert judge.record()["n_test"] == 20
