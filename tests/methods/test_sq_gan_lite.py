"""Codes that start from EfficientNet-Lite and MiniLM: what the towers read, and the transport through them."""

import importlib.metadata

import pytest
import torch
from tests.methods.test_sq_gan_init import check_gradients_of_tokens, draw, gradients, make

import fewgen
from fewgen.config import read_config
from fewgen.data.imageset import ImageSet
from fewgen.encoders import joint_lite
from fewgen.encoders.efficientnet import EfficientNetFeatures
from fewgen.encoders.joint_lite import LiteJointEncoder
from fewgen.encoders.named import encoder_record
from fewgen.errors import ConfigError, MissingDependencyError, ShapeError
from fewgen.losses.transport import cosine_cost, sinkhorn
from fewgen.methods.sq_gan.initialise import CodeTokenizer

MODEL = {
    "network": {"width": 4, "max_width": 8, "w_dim": 8, "z_dim": 8},
    "quantizer": {"codebook_size": 16},
    "steps": 2,
    "batch_size": 8,
    "init": {"foundation": "lite", "steps": 2, "batch_size": 8, "blocks": 2},
}


def forty_names(texts, about, folder, encode):
    """The vectors of 40 names of classes, over and over: a table in a hundredth of the time."""
    names = [row[1].split(",")[0] for row in joint_lite.imagenet_classes()[:40]]
    return encode(names).repeat(75, 1)


@pytest.fixture(scope="module")
def lite(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joint_lite, "kept_vectors", forty_names)
        return LiteJointEncoder(tmp_path_factory.mktemp("kept"))


@pytest.fixture
def at_hand(lite, monkeypatch):
    """The towers of these tests wherever lite is asked for."""
    monkeypatch.setattr(joint_lite, "LiteJointEncoder", lambda folder: lite)


@pytest.fixture(scope="module")
def train():
    """Two classes of colour images that no network mixes up: red stripes and blue spots."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(24) % 2
    images = 40 * torch.rand((24, 3, 32, 32), generator=rng)
    for image, label in zip(images, labels.tolist(), strict=True):
        shift = int(torch.randint(4, (), generator=rng))
        if label:
            image[2, shift::8, shift::8] = 255
        else:
            image[0, shift::6] = 255
    return ImageSet(images.to(torch.uint8), labels, ("stripes", "spots"), name="toy")


def parameters(lite):
    return [*lite._texts._model.parameters(), *lite._images.network.parameters()]


def test_tokens_are_read_as_words(lite):
    words = ["goldfish", "great white shark", "hammerhead"]
    ids = [lite._texts._tokenizer(text)["input_ids"][1:-1] for text in words]
    table = lite._texts._words
    expected = lite.encode_texts(words)
    for row, own in zip(ids, expected, strict=True):
        found = lite.text_features(table(torch.tensor([row, row])))
        torch.testing.assert_close(found, own.expand(2, -1), atol=1e-5, rtol=1e-4)
    # Positions count: the same words the other way round are another text.
    turned = lite.text_features(table(torch.tensor([ids[1][::-1]])))
    assert not torch.allclose(turned[0], expected[1], atol=1e-3)
    assert lite.token_rms == pytest.approx(float(table.weight.square().mean().sqrt()))


def test_frozen_towers_pass_gradients_to_the_tokens(lite, monkeypatch):
    monkeypatch.setattr(lite, "parameters", lambda: parameters(lite), raising=False)
    check_gradients_of_tokens(lite, lite.token_rms * draw(2, 3, 384))
    assert (lite.token_width, lite.max_blocks) == (384, 256 - 6)
    with pytest.raises(ConfigError, match="init.blocks to 250 or less"):
        lite.text_features(torch.zeros(1, 251, 384))
    with pytest.raises(ShapeError, match="tokens"):
        lite.text_features(torch.zeros(1, 2, 64))


def test_features_of_stored_images_are_computed_once(lite, train, monkeypatch):
    found = lite.image_features(train.floats())
    expected = EfficientNetFeatures("lite2").features(train)
    torch.testing.assert_close(found, expected / expected.norm(dim=1, keepdim=True))

    def never(*_):
        raise AssertionError("the features were kept")

    monkeypatch.setattr(lite._images, "vectors", never)
    assert torch.equal(lite.image_features(train.floats()), found)
    order = torch.arange(len(train)).flip(0)
    assert torch.equal(lite.image_features(train.floats(order)), found[order])


def test_transport_reaches_codes_mapping_and_tokeniser(lite, train, monkeypatch):
    method, before = make(train), [p.clone() for p in parameters(lite)]
    stage = gradients(method, train, lite, monkeypatch, blocks=2)
    for part in (method.mapping, stage.phases[0].weighting):
        assert all(float(p.grad.abs().sum()) > 0 for p in part.parameters())
    assert float(method.quantizer.tables()[0].codes.grad.abs().sum()) > 0
    assert all(p.grad is None for p in parameters(lite))
    assert all(torch.equal(p, q) for p, q in zip(parameters(lite), before, strict=True))


def test_codes_speak_of_the_images_that_they_were_matched_with(lite, train):
    features = lite.image_features(train.floats(list(range(12))))
    codes = draw(12, 8)

    def cost_after(steps, targets):
        """Cost of carrying what codes say to the images, after matching it with some targets."""
        torch.manual_seed(0)
        tokenizer = CodeTokenizer(2, 4, 2, 384, lite.token_rms)
        optimizer = torch.optim.Adam(tokenizer.parameters(), lr=5e-3)

        def cost(features):
            costs = cosine_cost(lite.text_features(tokenizer(codes)), features, True)
            return (sinkhorn(costs.detach(), 0.05, 50) * costs).sum()

        for _ in range(steps):
            optimizer.zero_grad()
            cost(targets).backward()
            optimizer.step()
        with torch.no_grad():
            return float(cost(features))

    # The same numbers in other places are no features of these images.
    shuffled = features[:, torch.randperm(1280, generator=torch.Generator().manual_seed(1))]
    start, own, wrong = (cost_after(n, target) for n, target in ((0, features), (7, features), (7, shuffled)))
    assert own < start - 0.05
    assert own < wrong - 0.05


def train_run(out, data, **more):
    return fewgen.train(
        "sq_gan", data=data, holdout=0, text="onehot", out=out, seed=1, progress=False, report=False, **more
    )


def test_a_run_that_started_from_it_needs_it_no_more(lite, train, at_hand, tmp_path, monkeypatch):
    settings = {"model": MODEL, "training": {"preview_every": 0, "device": "cpu"}}
    run = train_run(tmp_path / "run", train, **settings)
    record = read_config(tmp_path / "run" / "config.yaml")["encoders"]["foundation"]
    assert record == {"name": "lite", "sha256": encoder_record("joint", "lite")["sha256"]}
    expected = run.generate(n=2, seed=3).images

    monkeypatch.setattr(importlib.metadata, "files", lambda name: None)
    monkeypatch.setattr(joint_lite, "LiteJointEncoder", LiteJointEncoder)
    assert torch.equal(fewgen.load_run(tmp_path / "run").generate(n=2, seed=3).images, expected)
    with pytest.raises(MissingDependencyError, match=r"efficientnet-lite2.*pip install"):
        train_run(tmp_path / "other", train, **settings)
    assert not (tmp_path / "other").exists()
