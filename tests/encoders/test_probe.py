import pytest
import torch
from tests.encoders.tools import bars

from fewgen.data.imageset import ImageSet
from fewgen.encoders.pixels import PixelFeatures
from fewgen.encoders.probe import class_predictor, linear_probe
from fewgen.errors import DataError, ShapeError


def test_the_classifier_judges_by_its_own_head(extractor):
    images = bars(50, seed=4)
    described = extractor.describe(images)
    predict = class_predictor(extractor, bars(20))
    assert torch.equal(predict(described.features), described.predictions)
    assert torch.equal(extractor.predict(images), described.predictions)
    # Other class names: the classifier's own classes would be wrong, so a probe takes over.
    names = ("across", "down")
    train = bars(60, seed=5)
    swapped = ImageSet(train.images, 1 - train.labels, names)
    found = class_predictor(extractor, swapped)(described.features)
    assert float((found == 1 - images.labels).double().mean()) > 0.9


def test_a_linear_probe_judges_other_features():
    train, test = bars(200, size=8), bars(100, size=8, seed=1)
    pixels = PixelFeatures(1, 8, 8)
    assert pixels.describe(test).predictions is None
    predict = class_predictor(pixels, train)
    found = predict(pixels.features(test))
    assert found.dtype == torch.int64
    assert float((found == test.labels).double().mean()) > 0.9
    assert torch.equal(class_predictor(pixels, train, pixels.features(train))(pixels.features(test)), found)
    shuffled = ImageSet(
        train.images,
        train.labels[torch.randperm(200, generator=torch.Generator().manual_seed(0))],
        train.class_names,
    )
    chance = class_predictor(pixels, shuffled)(pixels.features(test))
    assert float((chance == test.labels).double().mean()) < 0.7


def test_probe_is_the_optimum_of_its_objective():
    # Two classes in one dimension: minimise the penalised logistic loss by plain gradient descent.
    rng = torch.Generator().manual_seed(0)
    x = torch.cat([torch.randn(30, generator=rng) - 1, torch.randn(20, generator=rng) + 1]).double()
    labels = torch.cat([torch.zeros(30), torch.ones(20)]).long()
    z = (x - x.mean()) / x.std(correction=0)
    slope, offset = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for _ in range(2_000):
        error = torch.sigmoid(slope * z + offset) - labels
        slope -= 0.03 * ((error * z).sum() + slope)
        offset -= 0.03 * error.sum()
    border = float(-offset / slope * x.std(correction=0) + x.mean())
    predict = linear_probe(x[:, None], labels).predict
    assert predict(torch.tensor([[border - 0.002], [border + 0.002]])).tolist() == [0, 1]


def test_probe_ignores_units_order_and_constant_features():
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    x = torch.randn(90, 5, generator=rng).double() + labels[:, None] * torch.tensor([1.0, 0.5, 0, 0, 0])
    test = torch.randn(200, 5, generator=rng).double() + 0.5
    found = linear_probe(x, labels).predict(test)
    assert len(found.unique()) == 3
    units, places = torch.tensor([1e-6, 1e3, 1.0, 7.0, 0.1]), torch.tensor([1.0, -5.0, 0.0, 100.0, 3.0])
    assert torch.equal(linear_probe(x * units + places, labels).predict(test * units + places), found)
    order = torch.randperm(90, generator=rng)
    assert torch.equal(linear_probe(x[order], labels[order]).predict(test), found)
    constant = torch.full((90, 1), 0.1).double()
    wild = torch.full((200, 1), 1e6).double()
    more = linear_probe(torch.cat([x, constant], 1), labels)
    assert torch.equal(more.predict(torch.cat([test, wild], 1)), found)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_logits_are_log_probabilities_up_to_a_constant(n_classes):
    from sklearn.linear_model import LogisticRegression

    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % n_classes
    x = torch.randn(60, 4, generator=rng).double() + labels[:, None]
    test = torch.randn(20, 4, generator=rng).double()
    probe = linear_probe(x, 2 * labels + 1)  # labels need not be 0, 1, 2
    assert probe.labels.tolist() == [2 * c + 1 for c in range(n_classes)]
    mean, scale = x.mean(dim=0), x.std(dim=0, correction=0)
    direct = LogisticRegression(max_iter=500).fit(((x - mean) / scale).numpy(), labels.numpy())
    wanted = torch.from_numpy(direct.predict_proba(((test - mean) / scale).numpy()))
    assert torch.allclose(probe.logits(test).softmax(dim=1), wanted, atol=1e-6)
    assert torch.equal(probe.predict(test), 2 * wanted.argmax(dim=1) + 1)


def test_probe_names_what_it_cannot_use():
    x, labels = torch.randn(10, 3, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 2
    with pytest.raises(DataError, match="at least two classes, but there are 1"):
        linear_probe(x, torch.zeros(10, dtype=torch.int64))
    with pytest.raises(DataError, match="2 of 10 feature vectors hold NaN"):
        linear_probe(torch.cat([x[:8], torch.full((2, 3), torch.nan)]), labels)
    with pytest.raises(ShapeError, match=r"\(10, 3\) and \(9,\)"):
        linear_probe(x, labels[:9])
    predict = linear_probe(x, labels).predict
    assert predict(x[:0]).shape == (0,)
    with pytest.raises(ShapeError, match="knows 3 features"):
        predict(x[:, :2])
    with pytest.raises(DataError, match="1 of 1 feature vectors"):
        predict(torch.full((1, 3), torch.inf))
