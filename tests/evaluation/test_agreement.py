import pytest
import torch

from fewgen.errors import DataError, ShapeError
from fewgen.evaluation.agreement import label_agreement, wilson_interval


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 30), (30, 30), (7, 9), (2700, 3000)])
def test_wilson_equals_scipy(successes, n):
    from scipy.stats import binomtest

    for confidence in (0.9, 0.95, 0.99):
        share = wilson_interval(successes, n, confidence)
        theirs = binomtest(successes, n).proportion_ci(confidence, method="wilson")
        assert (share.low, share.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_agreement_overall_and_per_class():
    wanted = torch.tensor([0, 0, 0, 1, 1, 3])
    predicted = torch.tensor([0, 0, 1, 1, 1, 0])
    found = label_agreement(predicted, wanted, ("a", "b", "c", "d"))
    assert (found.overall.successes, found.overall.n) == (4, 6)
    assert {name: share.value for name, share in found.per_class.items()} == {"a": 2 / 3, "b": 1.0, "d": 0.0}
    assert found.confusion[0] == (2, 1, 0, 0)
    assert found.confusion[3] == (1, 0, 0, 0)
    assert sum(map(sum, found.confusion)) == 6


def test_agreement_refuses_bad_labels():
    with pytest.raises(ShapeError):
        label_agreement(torch.zeros(3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), ("a",))
    with pytest.raises(DataError, match=r"\[0, 2\)"):
        label_agreement(torch.tensor([2]), torch.tensor([0]), ("a", "b"))
    with pytest.raises(DataError, match="not a share"):
        label_agreement(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), ("a", "b"))
