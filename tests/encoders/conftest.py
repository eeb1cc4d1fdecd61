import pytest
from tests.encoders.tools import QUICK, bars

from fewgen.encoders.classifier import ClassifierFeatures


@pytest.fixture(scope="session")
def extractor():
    return ClassifierFeatures.of(bars(200), bars(100, seed=1), QUICK, use_cache=False)
