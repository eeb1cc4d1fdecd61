"""The codes before adversarial training: towers, tokeniser, kinds of start, and the transport stage."""

import copy
import dataclasses
import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.reference import naive_init as naive
from torch import nn

from fewgen.data.imageset import ImageSet
from fewgen.encoders.joint import (
    PROMPT,
    ClipJointEncoder,
    SmallJointEncoder,
    pair_loss,
    words_of,
)
from fewgen.encoders.named import make_joint_encoder
from fewgen.errors import CheckpointError, ConfigError, DataError, MissingDependencyError, ShapeError
from fewgen.methods.base import DataSpec, Method
from fewgen.methods.registry import register
from fewgen.methods.sq_gan.config import InitConfig, NetworkConfig, QuantizerConfig
from fewgen.methods.sq_gan.initialise import (
    CodeTokenizer,
    continuous,
    image_features,
    make_codes,
    starting_codes,
    transport_stage,
)
from fewgen.methods.sq_gan.quantizer import StyleQuantizer
from fewgen.nn.stylegan import MappingNetwork
from fewgen.training import Context, TrainConfig, Trainer
from fewgen.training.phases import Pixels

NAMES = ("round red/thing", "bar", "dark corner")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def toy_images(n=48, n_classes=3, size=16, channels=1, seed=0):
    """A bright patch whose place is the class, in noise."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % n_classes
    images = 60 * torch.rand((n, channels, size, size), generator=rng)
    for i, c in enumerate(labels.tolist()):
        shift = int(torch.randint(3, (), generator=rng))
        images[i, :, 4 * c : 4 * c + 5, 2 + shift : 9 + shift] += 150
    return ImageSet(images.to(torch.uint8), labels, NAMES[:n_classes], name="toy")


@dataclasses.dataclass(frozen=True)
class StandInConfig:
    """The parts of the settings of SQ-GAN that matter here."""

    network: NetworkConfig = dataclasses.field(default_factory=lambda: NetworkConfig(z_dim=8, w_dim=16))
    quantizer: QuantizerConfig = dataclasses.field(default_factory=lambda: QuantizerConfig(codebook_size=24))
    init: InitConfig = dataclasses.field(default_factory=InitConfig)
    layers: int = 1


@register("sq_gan_stand_in")
class StandIn(Method):
    """Mapping network and quantiser of SQ-GAN, without the rest."""

    Config = StandInConfig

    def __init__(self, config, spec):
        super().__init__(config, spec)
        net = config.network
        self.mapping = MappingNetwork(
            net.z_dim, net.w_dim, net.mapping_layers, spec.n_classes, net.mapping_lr
        )
        width = net.z_dim if config.quantizer.space == "z" else net.w_dim
        self.quantizer = StyleQuantizer(width, config.quantizer, layers=config.layers)
        self.other = nn.Linear(2, 2)

    def styles(self, z, labels):
        return self.mapping(z, nn.functional.one_hot(labels, self.spec.n_classes).to(z))

    def stages(self, train, held_out):
        return [transport_stage(self, self.config.init)]

    def sample(self, class_vectors, labels, seeds, temperature, **options):
        raise NotImplementedError


SHORT = InitConfig(steps=12, batch_size=24, foundation_steps=4, iterations=20)


def make(train, init=SHORT, layers=1, seed=0, **quantizer):
    torch.manual_seed(seed)
    config = StandInConfig(quantizer=QuantizerConfig(codebook_size=24, **quantizer), init=init, layers=layers)
    return StandIn(config, DataSpec.of(train))


def trainer(method, train, run_dir, stages=None, **settings):
    config = TrainConfig(
        log_every=1, preview_every=0, checkpoint_every=0, progress=False, device="cpu", **settings
    )
    return Trainer(method, stages or method.stages(train, None), train, None, config, run_dir)


def lines(run_dir):
    found = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in found]


def context_of(train, stage=None):
    return Context(
        0,
        1,
        stage,
        torch.Generator().manual_seed(3),
        Pixels(train, torch.device("cpu")),
        None,
        torch.device("cpu"),
    )


@pytest.fixture(scope="module")
def train():
    return toy_images()


@pytest.fixture(scope="module")
def towers(train):
    return SmallJointEncoder.fit(train, steps=40, seed=1, batch_size=32)


# ---------------------------------------------------------------------------------------------- towers


def test_pair_loss_equals_the_sum_written_out():
    images = nn.functional.normalize(draw(7, 5), dim=1)
    texts = nn.functional.normalize(draw(3, 5, seed=1), dim=1)
    of_image = torch.tensor([0, 2, 1, 1, 0, 1, 2])
    found = pair_loss(images, texts, of_image, 0.3)
    expected = naive.pair_loss(images.double().numpy(), texts.double().numpy(), of_image.tolist(), 0.3)
    assert float(found) == pytest.approx(expected, abs=1e-5)
    # Neither the order of the images nor that of the texts counts; which image has which text does.
    order = torch.tensor([3, 0, 6, 5, 2, 1, 4])
    assert float(pair_loss(images[order], texts, of_image[order], 0.3)) == pytest.approx(
        float(found), abs=1e-5
    )
    swap = torch.tensor([2, 0, 1])
    back = swap.argsort()[of_image]
    assert float(pair_loss(images, texts[swap], back, 0.3)) == pytest.approx(float(found), abs=1e-5)
    assert abs(float(pair_loss(images, texts, of_image.roll(1), 0.3)) - float(found)) > 1e-2


def test_pair_loss_is_that_of_clip_for_single_pairs_and_least_where_pairs_meet():
    x, y = (nn.functional.normalize(draw(6, 4, seed=s), dim=1) for s in (0, 1))
    scores = x @ y.T / 0.1
    own = torch.arange(6)
    ce = nn.functional.cross_entropy
    expected = 0.5 * (ce(scores, own) + ce(scores.T, own))
    torch.testing.assert_close(pair_loss(x, y, own), expected)
    eye = torch.eye(6)
    assert float(pair_loss(eye, eye, own)) < 1e-3 < float(pair_loss(eye, eye, own.roll(1)))


def test_small_towers_find_the_class_of_new_images(train, towers):
    new = toy_images(60, seed=9)
    texts = towers.encode_texts([f"{PROMPT} {name}" for name in NAMES])
    features = towers.image_features(new.floats())
    assert features.shape == (60, 64)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(60))
    hits = ((features @ texts.T).argmax(1) == new.labels).float().mean()
    assert hits > 0.9  # chance is 1 / 3
    untrained = SmallJointEncoder((1, 16, 16), words_of(" ".join(NAMES))).eval()
    chance = untrained.image_features(new.floats()) @ untrained.encode_texts(list(NAMES)).T
    assert (chance.argmax(1) == new.labels).float().mean() < 0.7
    assert np.mean(towers.history[-10:]) < np.mean(towers.history[:5]) - 0.5


def test_images_of_one_class_keep_different_features(train, towers):
    features = towers.image_features(train.floats())
    same = train.labels == 0
    spread = features[same].var(0).sum()
    assert spread > 0.05
    # An image is decided by itself: another batch gives the same features.
    torch.testing.assert_close(
        towers.image_features(train.floats([5, 2])), features[[5, 2]], atol=1e-5, rtol=0
    )


def test_towers_are_the_same_for_a_seed_and_leave_the_random_state_alone(train):
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    a = SmallJointEncoder.fit(train, steps=3, seed=7)
    assert torch.equal(torch.rand(3), expected)
    torch.rand(5)
    b, c = SmallJointEncoder.fit(train, steps=3, seed=7), SmallJointEncoder.fit(train, steps=3, seed=8)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.token.weight, c.token.weight)
    assert a.history == b.history != c.history
    assert all(np.isfinite(a.history))


@pytest.mark.parametrize("n_classes", [1, 3])
def test_towers_learn_without_classes_and_with_own_captions(n_classes):
    train = toy_images(24, n_classes)
    if n_classes == 3:  # captions of their own, of any length
        captions = tuple(f"a drawing, {'very ' * i}dark" for i in range(24))
        train = dataclasses.replace(train, captions=captions)
    towers = SmallJointEncoder.fit(train, steps=30, batch_size=24)
    assert np.mean(towers.history[-5:]) < np.mean(towers.history[:3])
    features = towers.image_features(train.floats())
    assert bool(features.isfinite().all())
    assert features.var(0).sum() > 0.05
    assert towers.text_features(draw(2, 3, 64)).shape == features[:2].shape


def test_text_tower_reads_tokens_as_words_and_only_from_the_left(towers):
    words = ["dark", "corner"]
    ids = torch.tensor([[towers.vocabulary[word] for word in words]])
    found = towers.text_features(towers.token(ids))
    torch.testing.assert_close(found, towers.encode_texts([f"{PROMPT} dark corner"]))
    assert not torch.allclose(found, towers.text_features(towers.token(ids.flip(1))), atol=1e-3)
    # Short texts beside long ones: what fills the row is not seen.
    together = towers.encode_texts([f"{PROMPT} bar", f"{PROMPT} round red thing"])
    torch.testing.assert_close(together[:1], towers.encode_texts([f"{PROMPT} bar"]), atol=1e-6, rtol=1e-5)
    assert words_of("A photo of T-shirt/top") == ["a", "photo", "of", "t", "shirt", "top"]


def check_gradients_of_tokens(towers, tokens):
    """Frozen towers pass the gradient on; compared with a difference in one direction."""
    before = [p.detach().clone() for p in towers.parameters()]
    tokens = tokens.requires_grad_()
    features = towers.text_features(tokens)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(len(tokens)))
    target = draw(*features.shape, seed=2)
    (features * target).sum().backward()
    assert all(not p.requires_grad and p.grad is None for p in towers.parameters())
    assert all(torch.equal(p, q) for p, q in zip(towers.parameters(), before, strict=True))
    assert bool((tokens.grad.abs().sum((0, 2)) > 0).all())  # every token counts
    direction = tokens.grad / tokens.grad.norm()
    step = 1e-2 * float(tokens.detach().square().mean().sqrt())
    with torch.no_grad():
        high, low = (
            (towers.text_features(tokens + sign * step * direction) * target).sum() for sign in (1, -1)
        )
    assert float((high - low) / (2 * step)) == pytest.approx(float(tokens.grad.norm()), rel=0.05)


def test_frozen_small_towers_pass_gradients_to_the_tokens(towers):
    check_gradients_of_tokens(towers, 0.2 * draw(3, 4, 64))


def test_sequences_never_exceed_the_text_tower(towers):
    assert towers.max_blocks == len(towers.position) - 5
    assert towers.text_features(draw(1, towers.max_blocks, 64)).shape == (1, 64)
    with pytest.raises(ConfigError, match=f"init.blocks to {towers.max_blocks} or less"):
        towers.text_features(draw(1, towers.max_blocks + 1, 64))
    with pytest.raises(ShapeError, match="tokens"):
        towers.text_features(draw(1, 2, 32))
    assert len(towers.ids("dark " * 100)) == len(towers.position)


def test_large_images_are_seen_small(train):
    towers = SmallJointEncoder((3, 256, 128), ["dog"])
    assert towers.size == (64, 32)
    assert towers.image_features(draw(2, 3, 256, 128).tanh()).shape == (2, 64)
    with pytest.raises(ShapeError, match="image encoder"):
        towers.image_features(draw(2, 1, 256, 128))
    with pytest.raises(ConfigError, match="image and a step"):
        SmallJointEncoder.fit(train.subset([]))


# ------------------------------------------------------------------------------------------------ CLIP


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    """A whole CLIP of a few kilobytes with random weights, whose words are letters."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer.from_pretrained(str(folder)).save_pretrained(str(folder))
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    text = {**small, **ends, "vocab_size": len(words), "max_position_embeddings": 16, "projection_dim": 12}
    vision = {**small, "image_size": 32, "patch_size": 8, "projection_dim": 12}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).eval()
        for parameter in model.parameters():
            parameter.data.add_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    preparation = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "size": 32, "crop_size": 32}
    (folder / "preprocessor_config.json").write_text(json.dumps(preparation))
    return folder


def test_clip_reads_tokens_as_words(tiny_clip):
    from fewgen.encoders.text_transformer import CLIPTextEncoder

    towers = ClipJointEncoder(tiny_clip)
    # start, "a", "photo" and "of" letter by letter, end: 10 of 16 positions.
    assert (towers.token_width, towers.max_blocks) == (16, 6)
    table = towers._model.get_input_embeddings()
    ids = torch.tensor([[ord("d") - 97, ord("o") - 97, ord("g") - 97 + 26]])  # the last ends a word
    expected = CLIPTextEncoder(tiny_clip).encode([f"{PROMPT} dog"])
    torch.testing.assert_close(towers.text_features(table(ids)), expected)
    assert not torch.allclose(towers.text_features(table(ids.flip(1))), expected, atol=1e-3)
    torch.testing.assert_close(towers.token_rms, float(table.weight.square().mean().sqrt()))
    assert not table._forward_hooks  # nothing of it stays in the model


def test_frozen_clip_passes_gradients_to_the_tokens(tiny_clip):
    towers = ClipJointEncoder(tiny_clip)
    check_gradients_of_tokens(towers, towers.token_rms * draw(3, 6, 16))
    with pytest.raises(ConfigError, match="init.blocks to 6 or less"):
        towers.text_features(draw(1, 7, 16))


def test_clip_sees_images_as_the_evaluation_does(tiny_clip):
    from fewgen.encoders.image_transformer import TransformerFeatures

    images = toy_images(40, channels=1)
    found = ClipJointEncoder(tiny_clip).image_features(images.floats())
    expected = TransformerFeatures("clip", tiny_clip).features(images)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert not found.requires_grad


def test_folders_without_the_whole_of_clip_are_refused(tiny_clip, tmp_path, monkeypatch, train):
    import shutil

    from safetensors.torch import save_file

    with pytest.raises(ConfigError, match="no folder"):
        make_joint_encoder(f"clip:{tmp_path / 'nowhere'}", train)
    with pytest.raises(ConfigError, match='"clip" needs a path: clip:FOLDER'):
        make_joint_encoder("clip:", train)
    shutil.copytree(tiny_clip, tmp_path / "half")
    weights = load_file(tmp_path / "half" / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, tmp_path / "half" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"text_projection.weight"):
        make_joint_encoder(f"clip:{tmp_path / 'half'}", train)
    shutil.copytree(tiny_clip, tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 5
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="do not fit together"):
        make_joint_encoder(f"clip:{tmp_path / 'other'}", train)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match=r"fewgen\[text\]"):
        make_joint_encoder(f"clip:{tiny_clip}", train)


# ------------------------------------------------------------------------------------------- tokeniser


@pytest.mark.parametrize(("pieces", "blocks"), [(4, 4), (6, 2), (7, 3), (5, 1)])
def test_tokens_equal_a_slow_tokeniser(pieces, blocks):
    torch.manual_seed(0)
    tokenizer = CodeTokenizer(pieces, 3, blocks, token_width=10, scale=0.3)
    codes = draw(2, 3 * pieces)
    weights = [p.detach().double().numpy() for p in tokenizer.parameters()]
    expected = naive.tokens(codes.double().numpy(), 3, blocks, weights, 0.3)
    found = tokenizer(codes)
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-5)
    assert float(found.detach().square().mean().sqrt()) == pytest.approx(0.3, rel=0.02)
    changed = codes.clone()
    changed[:, -3:] += 1  # the last code stands in the last block alone
    moved = (tokenizer(changed) - found).abs().sum((0, 2)) > 1e-4
    assert moved.tolist() == [False] * (blocks - 1) + [True]


def test_impossible_blocks_are_refused_before_training(train):
    with pytest.raises(ConfigError, match="4 codes"):
        transport_stage(make(train), dataclasses.replace(SHORT, blocks=5))
    with pytest.raises(ShapeError, match="tokeniser"):
        CodeTokenizer(4, 3, 2, 8)(draw(2, 11))
    method = make(train)
    method.quantizer = None
    with pytest.raises(ConfigError, match="no quantizer"):
        transport_stage(method, SHORT)


# ------------------------------------------------------------------------------------- codes to start from


def style_rms(method):
    z = draw(2000, 8, seed=5)
    with torch.no_grad():
        return float(continuous(method, z, torch.arange(2000) % 3).square().mean().sqrt())


@pytest.mark.parametrize("kind", ["random", "kmeans", "features"])
@pytest.mark.parametrize("space", ["w", "z", "w+"])
@pytest.mark.parametrize("per_position", [False, True])
def test_codes_have_the_shape_and_scale_of_what_they_replace(train, kind, space, per_position):
    method = make(train, space=space, per_position=per_position, layers=3 if space == "w+" else 1)
    features = draw(48, 20, seed=3) * torch.linspace(3, 0.5, 20)
    codes = make_codes(kind, method, 3, features, torch.Generator().manual_seed(0))
    table = method.quantizer.tables()[0].codes
    if space == "w+":
        assert codes.shape == (3, *table.shape)
        assert len({tuple(layer.flatten().tolist()) for layer in codes}) == 3
    else:
        assert codes.shape == (table.shape if per_position else table.shape[1:])
    assert float(codes.square().mean().sqrt()) == pytest.approx(style_rms(method), rel=0.35)
    method.quantizer.set_codes(codes)
    each = codes if space == "w+" else [codes] * len(method.quantizer.tables())
    for one, own in zip(method.quantizer.tables(), each, strict=True):
        torch.testing.assert_close(one.codes.detach(), own.expand_as(one.codes))
    again = make_codes(kind, method, 3, features, torch.Generator().manual_seed(0))
    other = make_codes(kind, method, 3, features, torch.Generator().manual_seed(1))
    assert torch.equal(again, codes)
    assert not torch.equal(other, codes)


def test_kmeans_serves_styles_better_than_random_codes_and_uses_them_all(train):
    method = make(train).eval()
    z, labels = draw(1024, 8, seed=6), torch.arange(1024) % 3
    figures = {}
    for kind in ("kmeans", "random"):
        method.quantizer.set_codes(make_codes(kind, method, 3, None, torch.Generator().manual_seed(0)))
        with torch.no_grad():
            figures[kind] = method.quantizer(method.styles(z, labels))
    assert figures["kmeans"].error < 0.6 * figures["random"].error
    assert figures["kmeans"].perplexity > 0.6 * 24
    assert len(figures["kmeans"].indices.unique()) == 24


def test_codes_from_features_are_pieces_of_principal_components(train):
    # As many pieces as codes, 24 images of 2 components: each is a code itself.
    method = make(train, code_dim=2)
    features = draw(24, 2, seed=3) @ torch.tensor([[3.0, 1.0], [0.0, 0.5]])
    expected = torch.tensor(naive.principal_components(features.double().numpy(), 2))
    codes = make_codes("features", method, 3, features, torch.Generator().manual_seed(0)).double()
    expected *= codes.square().mean().sqrt() / expected.square().mean().sqrt()
    distance = torch.cdist(expected, codes)
    assert float(distance.min(1).values.max()) < 1e-4
    assert sorted(distance.argmin(1).tolist()) == list(range(24))
    assert float(codes.square().mean().sqrt()) == pytest.approx(style_rms(method), rel=0.1)
    # Fewer than codes: the others scatter around these.
    few = make_codes("features", method, 3, features[:5], torch.Generator().manual_seed(0))
    assert len(few.unique(dim=0)) == 24
    assert float(torch.cdist(few[5:], few[:5]).min(1).values.max()) < 0.6 * style_rms(method)


def test_codes_from_features_depend_on_neither_order_nor_scale_of_the_images(train):
    method = make(train)
    features = draw(6, 9, seed=3) * torch.linspace(3, 1, 9)
    rng = torch.Generator()
    same = [features, features[[2, 5, 0, 3, 1, 4]], features * 100 + 7]
    codes = [make_codes("features", method, 3, x, rng.manual_seed(0)) for x in same]
    torch.testing.assert_close(codes[1], codes[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(codes[2], codes[0], atol=1e-3, rtol=1e-3)
    other = make_codes("features", method, 3, features.abs(), rng.manual_seed(0))
    assert not torch.allclose(other, codes[0], atol=1e-2)
    with pytest.raises(DataError, match="5 images and 4 features, got 4 and 9"):
        make_codes("features", method, 3, features[:4], rng)
    with pytest.raises(ConfigError, match="features of the training images"):
        make_codes("features", method, 3, None, rng)
    with pytest.raises(ConfigError, match='got "zeros"'):
        make_codes("zeros", method, 3, None, rng)


def test_starting_codes_come_from_the_settings(train):
    method = make(train)
    context = context_of(train)
    found = {}
    for kind in ("transport", "kmeans", "random", "features"):
        context.rng.manual_seed(3)
        found[kind] = starting_codes(method, dataclasses.replace(SHORT, kind=kind), context)
        assert found[kind].shape == (24, 4)
    assert torch.equal(found["transport"], found["kmeans"])
    assert len({float(codes.sum()) for codes in found.values()}) == 3


# ----------------------------------------------------------------------------------------- the transport


def capture_start(stage, then):
    """Let `then(context)` see what `on_start` has left."""
    on_start = stage.on_start

    def start(context):
        on_start(context)
        then(context)

    stage.on_start = start
    return stage


@torch.no_grad()
def usage(method):
    """Share of the codes that the styles of 512 latents choose, their perplexity, and the styles' size."""
    z, labels = draw(512, 8, seed=8), torch.arange(512) % 3
    styles = continuous(method, z, labels)
    found = method.eval().quantizer(styles)
    share = len(found.indices.unique()) / method.config.quantizer.codebook_size
    return share, float(found.perplexity), float(styles.square().mean().sqrt())


def test_transport_brings_codes_to_the_images_and_keeps_the_towers(train, towers, tmp_path, monkeypatch):
    monkeypatch.setattr("fewgen.methods.sq_gan.initialise.make_joint_encoder", lambda *_: towers)
    frozen = copy.deepcopy(towers.state_dict())
    method = make(train, dataclasses.replace(SHORT, steps=60, batch_size=48))
    others = copy.deepcopy(method.other.state_dict())
    before = {}
    stage = transport_stage(method, method.config.init)
    capture_start(
        stage,
        lambda _: before.update(
            usage=usage(method),
            mapping=copy.deepcopy(method.mapping.state_dict()),
            codes=method.quantizer.tables()[0].codes.detach().clone(),
        ),
    )
    trainer(method, train, tmp_path, [stage]).run()
    log = [line for line in lines(tmp_path) if line["kind"] == "train"]
    cost = [line["transport/transport"] for line in log]
    assert np.mean(cost[-5:]) < np.mean(cost[:5]) - 0.1
    assert all(0 <= value <= 2 for value in cost)
    assert max(line["transport/marginal_error"] for line in log) < 1e-2
    assert all(1 <= line["transport/perplexity"] <= 24 for line in log)
    share, perplexity, size = usage(method)
    assert before["usage"][0] == 1.0
    assert share >= 0.95
    assert perplexity > 0.9 * before["usage"][1]
    assert 0.8 < size / before["usage"][2] < 1.5
    # The towers and the rest of the method are as they were; mapping network and codes have moved.
    assert all(torch.equal(value, frozen[name]) for name, value in towers.state_dict().items())
    assert all(torch.equal(value, others[name]) for name, value in method.other.state_dict().items())
    moved = [not torch.equal(v, before["mapping"][k]) for k, v in method.mapping.state_dict().items()]
    assert all(moved)
    assert (method.quantizer.tables()[0].codes - before["codes"]).abs().amax(-1).min() > 0
    # The tokeniser belongs to the stage alone.
    assert not any("tokenizer" in name for name in load_file(tmp_path / "model.safetensors"))


def test_styles_shrink_and_codes_fall_idle_at_the_full_weight_of_commitment(
    train, towers, tmp_path, monkeypatch
):
    monkeypatch.setattr("fewgen.methods.sq_gan.initialise.make_joint_encoder", lambda *_: towers)
    found = {}
    for commitment in (0.1, 1.0):
        init = dataclasses.replace(SHORT, steps=80, lr=4e-3, commitment=commitment)
        method = make(train, init, commitment_weight=1.0)
        trainer(method, train, tmp_path / str(commitment)).run()
        found[commitment] = usage(method)
    assert found[1.0][1] < 0.9 * found[0.1][1]
    assert found[1.0][2] < 0.9 * found[0.1][2]


def gradients(method, train, towers, monkeypatch, **init):
    """Gradients of the transport term alone, of one step."""
    monkeypatch.setattr("fewgen.methods.sq_gan.initialise.make_joint_encoder", lambda *_: towers)
    stage = transport_stage(method, dataclasses.replace(SHORT, **init))
    context = context_of(train, stage)
    stage.on_start(context)
    method.train()
    terms = stage.phases[0].loss(context.train.at(torch.arange(24)), context)
    assert set(terms.values) == {"quantisation", "commitment", "uniformity", "transport"}
    terms.values["transport"].backward()
    return stage


def test_transport_reaches_codes_mapping_and_tokeniser(train, towers, monkeypatch):
    method = make(train)
    stage = gradients(method, train, towers, monkeypatch)
    tables = method.quantizer.tables()
    for part in (method.mapping, stage.phases[0].weighting):
        assert all(float(p.grad.abs().sum()) > 0 for p in part.parameters())
    assert float(tables[0].codes.grad.abs().sum()) > 0
    assert all(p.grad is None for p in towers.parameters())


@pytest.mark.parametrize(
    "options",
    [
        {"space": "z"},
        {"space": "w+", "layers": 3},
        {"per_position": True},
        {"update": "ema"},
        {"project": True, "normalize": True},
    ],
    ids=str,
)
def test_every_kind_of_quantiser_can_be_transported(train, towers, monkeypatch, tmp_path, options):
    monkeypatch.setattr("fewgen.methods.sq_gan.initialise.make_joint_encoder", lambda *_: towers)
    method = make(train, dataclasses.replace(SHORT, steps=3), **options)
    if options.get("space") == "z":
        # Latents have 8 numbers: 2 codes.
        method.config = dataclasses.replace(
            method.config, init=dataclasses.replace(method.config.init, blocks=2)
        )
    trainer(method, train, tmp_path).run()
    log = [line for line in lines(tmp_path) if line["kind"] == "train"]
    assert len(log) == 3
    assert all(np.isfinite([v for k, v in line.items() if "/" in k]).all() for line in log)


def test_clip_can_stand_behind_the_codes(train, tiny_clip, tmp_path):
    init = dataclasses.replace(SHORT, steps=2, foundation=f"clip:{tiny_clip}", blocks=4)
    trainer(make(train, init), train, tmp_path / "run").run()
    # 16 positions, of which the prompt takes 10.
    method = make(train, dataclasses.replace(init, blocks=7), space="w+", layers=3)
    with pytest.raises(ConfigError, match="room for 6 tokens"):
        trainer(method, train, tmp_path / "other").run()


def test_the_stage_resumes_bit_for_bit(train, tmp_path):
    whole = trainer(make(train), train, tmp_path / "whole").run()
    assert whole.finished
    for stop in (1, 5):
        one = trainer(make(train, seed=stop), train, tmp_path / "parts") if stop > 1 else None
        one = one or trainer(make(train), train, tmp_path / "parts")
        between = one._between_steps

        def stop_there(run, one=one, between=between, stop=stop):
            if one._position.total_steps == stop:
                one.stop()
            return between(run)

        one._between_steps = stop_there
        assert one.run().interrupted
    assert trainer(make(train, seed=9), train, tmp_path / "parts").run().finished
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")
    x, y = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert x.keys() == y.keys()
    assert all(torch.equal(x[name], y[name]) for name in x)


def test_features_of_all_images_are_computed_in_order(train, towers):
    found = image_features(towers, Pixels(train, torch.device("cpu")))
    torch.testing.assert_close(found, towers.image_features(train.floats()))
