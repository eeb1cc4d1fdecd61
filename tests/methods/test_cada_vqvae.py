"""CADA-VQ-VAE: what connects words and images, its published faults, and what comes out of it."""

import copy
import dataclasses
import hashlib
import itertools
import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fewgen.api import interpolate, train
from fewgen.config import from_dict, list_presets, load_preset, resolve
from fewgen.data import load_images
from fewgen.data.imageset import ImageSet
from fewgen.errors import ConfigError, ShapeError, TextError
from fewgen.evaluation import ClassifierFeatures, ClassifierSettings
from fewgen.fitting.optimizers import AdamW
from fewgen.fitting.seeds import global_seed
from fewgen.generation import GenerationRequest, image_seeds
from fewgen.losses.mmd import mmd2_per_class
from fewgen.methods.base import DataSpec
from fewgen.methods.cada_vqvae import model as model_module
from fewgen.methods.cada_vqvae.config import CadaVqVaeConfig
from fewgen.methods.cada_vqvae.model import CadaVqVae
from fewgen.methods.store import load_method
from fewgen.nn.conv import ResBlock
from fewgen.text import ClassText
from fewgen.training import TrainConfig, Trainer
from fewgen.training.phases import Batch, Context, Pixels

NAMES = ("rows", "columns", "spots")
DIM = 8

# Everything that a test relies on is set here: the defaults are tuned for real data, and may move.
SMALL = {
    "latent_size": 20,
    "image": {"backbone": "conv", "width": 16, "n_blocks": 1, "hidden": 32, "dropout": 0.0},
    "text": {"hidden": 32, "codebook_size": 16, "groups": 5, "update": "ema"},
    "weights": {
        "image": 1.0,
        "ssim": 0.0,
        "text": 0.25,
        "cross_image": 0.5,
        "cross_text": 0.25,
        "kl": 1.0,
        "kl_text": 0.1,
        "alignment": 10.0,
        "codebook": 1.0,
        "contrastive": 1.0,
        "warm_up": 0.2,
    },
    "cross_source": "sample",
    "alignment": "mmd_class",
    "kernel": "mixture",
    "prior": "standard",
    "weighting": "fixed",
    "candidates": 1,
    "batch_size": 24,
    "augment": "none",
}
SPATIAL = {
    "codebook_size": 16,
    "codebook_dim": 4,
    "width": 16,
    "prior_width": 32,
    "prior_layers": 1,
    "prior_dropout": 0.0,
    "condition_noise": 0.7,
    "trust_noise": 0.3,
    "code_temperature": 1.0,
    "augment": "none",
    "prior_augment": "none",
}
HEALTHY = {"cross_source": "mean", "weights": {"alignment": 50.0, "kl": 0.3, "kl_text": 0.02}}
"""Keeps images of a word apart after a hundred steps on 36 images; defaults are tuned for real data."""

FAULTS = {
    # The words' mean and variance are trained by nothing: three settings of the published code together.
    "cross_terms": "self",
    "semantic_stats_from": "z_e",
    "align_on": "means",
    "weights": {"kl_text": 0.0},
}


class Words:
    """A text encoder without a file: a fixed random vector per text."""

    name, path, dim, has_meaning = "words", None, DIM, True

    def encode(self, texts):
        rows = []
        for text in texts:
            seed = int.from_bytes(hashlib.sha256(text.lower().encode()).digest()[:4], "little")
            rows.append(torch.randn(DIM, generator=torch.Generator().manual_seed(seed)))
        return torch.stack(rows)


def shapes(n_per_class=12, size=16, channels=1, n_classes=3, seed=0):
    """Bars across, bars down, and spots, at random places: classes that pixels tell apart."""
    rng = torch.Generator().manual_seed(seed)
    images = torch.zeros(n_classes * n_per_class, channels, size, size, dtype=torch.uint8)
    labels = torch.arange(n_classes).repeat_interleave(n_per_class)
    for i, label in enumerate(labels.tolist()):
        a, b = (int(v) for v in torch.randint(1, size - 5, (2,), generator=rng))
        value = int(torch.randint(150, 255, (1,), generator=rng))
        if label == 0:
            images[i, :, a : a + 4] = value
        elif label == 1:
            images[i, :, :, a : a + 4] = value
        else:
            images[i, :, a : a + 4, b : b + 4] = value
    return ImageSet(images, labels, NAMES[:n_classes], name="shapes")


def make(data=None, seed=0, **changes):
    """A fresh small model for `data`."""
    data = data if data is not None else shapes()
    config = resolve(CadaVqVaeConfig, SMALL, changes, where="model")
    spec = DataSpec.of(data, ClassText.build(Words(), data.class_names))
    with global_seed(torch.device("cpu"), seed):
        return CadaVqVae(config, spec)


def batch_of(data):
    return Batch(data.floats(), data.labels, torch.arange(len(data)))


def terms_of(method, data, ramp=1.0, seed=0):
    return method.objective(data.floats(), data.labels, torch.Generator().manual_seed(seed), ramp)


def norms(value, *modules):
    """Norm of the gradient of `value` on each module; no gradient counts as 0."""
    result = []
    for module in modules:
        found = torch.autograd.grad(value, list(module.parameters()), retain_graph=True, allow_unused=True)
        result.append(sum(float(g.square().sum()) for g in found if g is not None) ** 0.5)
    return result


def descend(method, loss, modules, steps, lr=3e-3):
    """Some steps on a loss, as the trainer would take them; the last value."""
    parameters = [p for module in modules for p in module.parameters()]
    optimizer = AdamW([{"params": parameters, "lr": lr, "weight_decay": 0.0}])
    value = torch.zeros(())
    for step in range(steps):
        value = loss(step)
        for parameter in parameters:
            parameter.grad = None
        value.backward(inputs=parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return float(value.detach())


def aligned_modules(method):
    names = (
        "image_encoder",
        "image_decoder",
        "semantic_encoder",
        "codebook",
        "semantic_head",
        "semantic_decoder",
    )
    return [getattr(method, name) for name in names]


def fit_align(method, data, steps, lr=3e-3):
    """Train the aligned latent on all of `data` at once."""
    method.train()
    rng = torch.Generator().manual_seed(0)
    descend(
        method,
        lambda step: method.objective(data.floats(), data.labels, rng, min(1.0, 5 * step / steps)).total(),
        aligned_modules(method),
        steps,
        lr,
    )
    return method.eval()


def fit_detail(method, data, steps, lr=3e-3):
    """Train the tokeniser, then the prior."""
    rng = torch.Generator().manual_seed(0)
    x = data.floats()
    method.eval()
    method.tokenizer.train()
    descend(method, lambda _: method.tokenizer.loss(x).total(), [method.tokenizer], steps, lr)
    method.eval()
    method.prior.train()
    nats = descend(
        method,
        lambda _: method._prior_loss(data.floats(), data.labels, rng).total(),
        [method.prior],
        steps,
        lr,
    )
    method.eval()
    return nats


@pytest.fixture(scope="module")
def data():
    return shapes()


@pytest.fixture(scope="module")
def trained(data):
    """A model of the aligned latent that has learnt the shapes; do not change it."""
    return fit_align(make(data, **HEALTHY), data, 120)


@pytest.fixture(scope="module")
def hybrid(data):
    """The same with a second level."""
    method = fit_align(make(data, **HEALTHY, spatial=SPATIAL), data, 80)
    fit_detail(method, data, 60)
    return method


# ---------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("preset", list_presets("cada_vqvae"))
def test_presets_are_settings_of_the_method_and_of_the_loop(preset):
    loaded = load_preset("cada_vqvae", preset)
    assert loaded["description"] or preset == "default"  # which needs no file
    config = resolve(CadaVqVaeConfig, loaded["model"], where="model")
    resolve(TrainConfig, loaded["training"], where="training")
    assert (config.spatial is not None) == (preset == "hybrid")


def test_the_paper_preset_has_the_published_sizes_weights_rates_and_faults():
    config = resolve(CadaVqVaeConfig, load_preset("cada_vqvae", "paper")["model"], where="model")
    image, text, w = config.image, config.text, config.weights
    assert (image.backbone, config.latent_size, text.hidden) == ("mlp", 20, 200)
    assert (text.codebook_size, text.groups, text.commitment_weight) == (512, 1, 0.25)
    assert (w.kl, w.cross_image, w.cross_text, w.alignment, w.contrastive) == (2.0, 2.0, 2.0, 1.0, 0.5)
    assert (w.image, w.text, w.codebook, w.kl_text, w.warm_up) == (1.0, 1.0, 1.0, 0.0, 0.0)
    assert (config.temperature, config.lr, config.batch_size, config.steps) == (0.5, 1e-5, 3, 25_000)
    faults = (image.output, text.output, text.init, config.cross_terms, config.semantic_stats_from)
    assert faults == ("tanh", "sigmoid", "uniform", "self", "z_e")
    more = (config.alignment, config.align_on, config.kernel, config.reduction, config.sampler)
    assert more == ("mmd", "means", "rbf", "source", "single_class")
    fixed = CadaVqVaeConfig()
    mended = (
        fixed.cross_terms,
        fixed.semantic_stats_from,
        fixed.reduction,
        fixed.align_on,
        fixed.text.output,
    )
    assert mended == ("real", "z_q", "sample", "samples", "linear")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alignment": "mmd_clas"}, 'alignment is "mmd_clas". Did you mean "mmd_class"'),
        ({"aligment": "w2"}, 'unknown key "model.aligment". Did you mean "alignment"'),
        ({"image": {"backbone": "cnn"}}, 'image.backbone is "cnn"'),
        ({"image": {"output": "relu"}}, "Choose one of: sigmoid, tanh"),
        ({"text": {"output": "tanh"}}, "Choose one of: linear, sigmoid"),
        ({"cross_terms": "both"}, "Choose one of: real, self"),
        ({"sampler": "mixed"}, "Choose one of: shuffled, balanced, single_class"),
        ({"weights": {"kl": -1.0}}, "weights.kl must be 0 or more, got -1.0"),
        ({"weights": {"kl": float("nan")}}, "model.weights.kl. must be a number, got nan"),
        ({"temperature": 0.0}, "temperature must be"),
        ({"latent_size": 20, "text": {"groups": 3}}, "latent_size 20 must be divisible by text.groups 3"),
        ({"spatial": {"trust_noise": 1.5}}, r"spatial.trust_noise must be in \[0, 1\], got 1.5"),
        ({"spatial": {"prior_width": 30, "prior_heads": 4}}, "prior_width 30 must be divisible by"),
        ({"spatial": {"code_size": 3}}, 'unknown key "model.spatial.code_size"'),
    ],
)
def test_wrong_settings_are_refused_by_name(changes, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(CadaVqVaeConfig, changes, where="model")


def test_data_that_it_cannot_learn_from_is_refused(data):
    with pytest.raises(ConfigError, match="needs a vector per class"):
        CadaVqVae(CadaVqVaeConfig(), DataSpec.of(data))
    with pytest.raises(ConfigError, match='2 classes or more; there is only "rows"'):
        make(data.select_classes(["rows"]))
    odd = ImageSet(torch.zeros(4, 1, 30, 30, dtype=torch.uint8), torch.tensor([0, 0, 1, 1]), NAMES[:2])
    with pytest.raises(ConfigError, match="30 x 30 .* Use size 32"):
        make(odd)
    with pytest.raises(ConfigError, match="30 x 30"):
        make(odd, image={"backbone": "mlp"}, spatial=SPATIAL)
    assert make(odd, image={"backbone": "mlp"})  # fully connected layers take any size


def test_two_classes_with_one_vector_are_refused():
    twins = shapes(n_classes=2)
    with pytest.raises(TextError, match='"rows".*"columns"|"columns".*"rows"'):
        ClassText.build(Words(), twins.class_names, {"rows": "shirt", "columns": "shirt"})


@pytest.mark.parametrize("shape", [(1, 28), (3, 32), (3, 64)])
@pytest.mark.parametrize("backbone", ["conv", "mlp"])
def test_images_of_the_supported_sizes_go_in_and_come_out(shape, backbone):
    images = shapes(2, size=shape[1], channels=shape[0])
    method = make(images, image={"backbone": backbone}, spatial=SPATIAL)
    x = images.floats()
    terms = method.objective(x, images.labels, torch.Generator().manual_seed(0))
    assert all(map(math.isfinite, terms.floats().values()))
    method.tokenizer.loss(x).total().backward()
    nats = method._prior_loss(x, images.labels, torch.Generator().manual_seed(0))
    assert 0 < float(nats.total().detach()) < 10
    method.eval()
    assert method.encode(x).shape == (6, 20)
    assert method.reconstruct(x).shape == x.shape
    assert method.retrieve(x).shape == (6, 3)
    made = method.generate(GenerationRequest.per_class([0, 2], 2)).images
    assert made.shape == (4, *x.shape[1:])
    usage = method.codebook_usage(images)
    assert usage["words"].sum() == 3 * method.config.text.groups
    assert usage["map"].sum() == 6 * method.tokenizer.n_positions * method.config.spatial.groups
    with pytest.raises(ShapeError, match="images must be"):
        method.encode(x[:, :, :-1])


# --------------------------------------------------------------------------- words and images connect


@pytest.mark.parametrize("backbone", ["conv", "mlp"])
@pytest.mark.parametrize("source", ["sample", "mean"])
def test_cross_terms_carry_gradient_from_one_side_to_the_other(data, backbone, source):
    method = make(data, image={"backbone": backbone}, cross_source=source)
    values = terms_of(method, data).values
    words = (method.semantic_encoder, method.semantic_head)
    # The decoder of the other side belongs to the path, the encoder of the other side does not.
    to_words = norms(values["cross_image"], *words, method.image_decoder, method.image_encoder)
    assert min(to_words[:3]) > 0
    assert to_words[3] == 0
    to_images = norms(values["cross_text"], method.image_encoder, method.semantic_decoder, *words)
    assert min(to_images[:2]) > 0
    assert to_images[2:] == [0, 0]
    # Negative control: the self terms stay on their side.
    assert norms(values["image"], *words) == [0, 0]
    assert norms(values["text"], method.image_encoder) == [0]


def test_the_published_cross_terms_connect_nothing(data):
    method = make(data, cross_terms="self")
    values = terms_of(method, data).values
    assert torch.equal(values["cross_image"], values["image"])
    assert torch.equal(values["cross_text"], values["text"])
    assert norms(values["cross_image"], method.semantic_encoder, method.semantic_head) == [0, 0]
    assert norms(values["cross_text"], method.image_encoder) == [0]


def test_the_published_faults_leave_the_words_mean_and_variance_untrained(data):
    method = make(data, **FAULTS)
    assert norms(terms_of(method, data).total(), method.semantic_head) == [0]
    # Its weights decide what a word draws all the same.
    request = GenerationRequest.per_class([0, 1, 2], 1, temperature=0)
    before = method.eval().generate(request).images
    with torch.no_grad():
        method.semantic_head.mu.weight.mul_(-20)
    assert not torch.equal(method.generate(request).images, before)


@pytest.mark.parametrize(
    "mend",
    [
        {"cross_terms": "real"},
        {"semantic_stats_from": "z_q"},  # the word is then rebuilt from a draw of its Gaussian
        {"align_on": "samples"},
        {"weights": {"kl_text": 0.1}},
        {"prior": "conditional"},
        {"alignment": "w2"},
    ],
)
def test_each_mend_alone_trains_the_words_mean(data, mend):
    merged = resolve(CadaVqVaeConfig, SMALL, FAULTS, mend, where="model")
    method = make(data, **dataclasses.asdict(merged))
    assert norms(terms_of(method, data).total(), method.semantic_head.mu)[0] > 0


VARIANTS = {
    "default": {},
    "mlp": {"image": {"backbone": "mlp"}},
    "gradient codebook": {"text": {"update": "gradient"}},
    "conditional prior": {"prior": "conditional"},
    "w2": {"alignment": "w2"},
    "batch mmd": {"alignment": "mmd", "kernel": "median"},
    "mean and ssim": {"cross_source": "mean", "weights": {"ssim": 1.0}},
    "source reduction": {"reduction": "source"},
}


def without_gradient(named_parameters):
    return [name for name, p in named_parameters if p.grad is None or not bool(p.grad.any())]


def wake(module):
    """Give the layers that start at zero some weight: what lies behind them is still out of reach."""
    for block in module.modules():
        if isinstance(block, ResBlock):
            nn.init.normal_(block.conv2.weight, std=0.05)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_of_the_aligned_latent_gets_gradient(data, variant):
    method = make(data, **VARIANTS[variant])
    wake(method)
    if variant == "gradient codebook":
        # The first batch puts codes exactly onto the words, where the codebook loss is flat.
        terms_of(method, data)
        with torch.no_grad():
            method.codebook.codes.add_(0.01 * torch.randn_like(method.codebook.codes))
        assert "codebook.codes" in dict(method.named_parameters())
    terms_of(method, data).total().backward()
    assert without_gradient(method.named_parameters()) == []


def test_the_gradient_check_catches_a_part_that_is_left_out(data):
    method = make(data, **FAULTS)
    wake(method)
    terms_of(method, data).total().backward()
    missing = without_gradient(method.named_parameters())
    assert sorted(missing) == [f"semantic_head.{h}.{p}" for h in ("logvar", "mu") for p in ("bias", "weight")]


def test_each_stage_of_the_hybrid_trains_its_own_part_and_all_of_it(data):
    method = make(data, spatial=SPATIAL)
    wake(method)
    stages = method.stages(data, None)
    assert [stage.name for stage in stages] == ["align", "codes", "prior"]
    moved = set()
    context = Context(
        0, 10, stages[0], torch.Generator().manual_seed(0), Pixels(data, method.device), None, method.device
    )
    for stage in stages:
        method.zero_grad()
        (phase,) = stage.phases
        at_end = dataclasses.replace(context, step=10, stage=stage)  # after the warm-up
        method.train()
        phase.loss(batch_of(data), at_end).total().backward()
        own = {id(p) for p, _ in phase.trainable()}
        mine = [(name, p) for name, p in method.named_parameters() if id(p) in own]
        assert without_gradient(mine) == []
        others = [(name, p) for name, p in method.named_parameters() if id(p) not in own]
        assert len(without_gradient(others)) == len(others)
        moved |= own
    assert moved == {id(p) for p in method.parameters()}


def test_warm_up_holds_back_the_four_terms_and_nothing_else(data):
    method = make(data)
    cold, warm = terms_of(method, data, ramp=0.0), terms_of(method, data)
    rising = {name for name in warm.values if cold.weight(name) != warm.weight(name)}
    assert rising == {"kl", "kl_text", "cross_image", "cross_text", "alignment"}
    assert all(cold.weight(name) == 0 for name in rising)


# ------------------------------------------------------------------------------------ the objective


@pytest.fixture
def shared_noise(monkeypatch):
    """The k-th draw of noise of an objective, the same for the same image wherever it stands."""
    calls = itertools.count()

    def drawn(mu, logvar, rng):
        eps = torch.randn(12, mu.shape[1], generator=torch.Generator().manual_seed(next(calls) % 2))
        return mu + torch.exp(0.5 * logvar) * eps.repeat(len(mu) // 12, 1)

    monkeypatch.setattr(model_module, "reparameterize", drawn)


def doubled(data):
    return ImageSet(data.images.repeat(2, 1, 1, 1), data.labels.repeat(2), data.class_names)


@pytest.mark.usefixtures("shared_noise")
@pytest.mark.parametrize(
    "changes",
    [
        {"alignment": "mmd"},
        {"alignment": "mmd", "kernel": "median", "align_on": "means"},
        {"alignment": "mmd", "kernel": "rbf"},
        {"alignment": "w2"},
        {"alignment": "none", "prior": "conditional", "weights": {"ssim": 1.0}, "cross_source": "mean"},
    ],
)
def test_duplicating_the_batch_changes_no_term_that_is_a_mean_over_images(changes):
    few = shapes(4)
    method = make(few, **changes).eval()
    once, twice = terms_of(method, few), terms_of(method, doubled(few))
    assert once.weights == twice.weights
    for name, value in once.values.items():
        if name == "contrastive":
            # Each image gets its copy as a positive of similarity 1, and as many others again: the loss
            # is about pairs in a batch, not about images, and must change.
            assert abs(twice.values[name] - value) > 0.01
        else:
            torch.testing.assert_close(twice.values[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.usefixtures("shared_noise")
def test_the_class_alignment_leaves_out_pairs_of_an_image_with_itself_so_copies_raise_it():
    few = shapes(4)
    method = make(few).eval()
    once, twice = terms_of(method, few), terms_of(method, doubled(few))
    # In the U-statistic an image and its copy are two samples at distance 0. The V-statistic, which counts
    # an image with itself, does not see the copies.
    assert twice.values["alignment"] > once.values["alignment"] + 0.01
    a, b, labels = torch.randn(12, 5), torch.randn(12, 5), few.labels
    twin = (a.repeat(2, 1), b.repeat(2, 1), labels.repeat(2), labels.repeat(2))
    torch.testing.assert_close(mmd2_per_class(*twin), mmd2_per_class(a, b, labels, labels))


@pytest.mark.usefixtures("shared_noise")
def test_the_published_reduction_grows_with_the_batch():
    few = shapes(4)
    method = make(few, reduction="source", cross_terms="self").eval()
    once, twice = terms_of(method, few), terms_of(method, doubled(few))
    for name in ("image", "kl"):
        assert twice.weight(name) == 2 * once.weight(name)
    for name in ("cross_image", "text", "cross_text", "codebook", "alignment", "contrastive"):
        assert twice.weight(name) == once.weight(name)
    # A mean over batch and pixels, as published.
    x = 0.5 * (few.floats() + 1)
    weight = method.config.weights.cross_image
    per_pixel = terms_of(method, few).values["image"] / x[0].numel()
    torch.testing.assert_close(
        once.weight("cross_image") * once.values["cross_image"], weight * per_pixel, rtol=1e-5, atol=0
    )


def test_image_and_text_terms_count_alike_whatever_their_size():
    weights = []
    for size in (16, 32):
        images = shapes(2, size=size)
        terms = terms_of(make(images), images)
        weights.append((terms.weight("image") * size**2, terms.weight("text") * DIM))
    assert weights[0] == pytest.approx(weights[1])
    assert weights[0] == pytest.approx((1.0, SMALL["weights"]["text"]))


def test_a_word_is_quantised_once_however_many_images_it_has(data):
    method = make(data, text={"update": "gradient"})
    terms_of(method, data)  # the first batch initialises the codes
    with torch.no_grad():
        method.codebook.codes.add_(0.1)
    uneven = data.subset(torch.tensor([0, 1, 2, 3, 4, 5, 12, 24]))
    method.eval()
    even = data.subset(torch.tensor([0, 12, 24]))
    for name in ("codebook", "kl_text"):
        torch.testing.assert_close(terms_of(method, uneven).values[name], terms_of(method, even).values[name])


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ({"kernel": "rbf"}, "alignment"),
        ({"align_on": "means"}, "alignment"),
        ({"alignment": "mmd"}, "alignment"),
        ({"semantic_stats_from": "z_e"}, "text"),
        ({"text": {"output": "sigmoid"}}, "text"),
        ({"image": {"output": "tanh"}}, "image"),
        ({"cross_terms": "self"}, "cross_image"),
        ({"prior": "conditional"}, "kl"),
    ],
)
def test_each_switch_changes_the_term_it_is_about_and_the_image_terms_only_if_they_are_meant(
    data, fault, name
):
    # The same weights at the start, so that only the switch differs.
    usual, changed = terms_of(make(data), data), terms_of(make(data, **fault), data)
    assert abs(float((usual.values[name] - changed.values[name]).detach())) > 1e-4
    if name in ("alignment", "kl"):
        others = set(usual.values) - {name}
        assert all(torch.equal(usual.values[other], changed.values[other]) for other in others)


def test_gamma_1_gives_no_gradient_where_the_fitted_kernel_does(data):
    def pull(kernel):
        method = make(data, alignment="mmd", kernel=kernel, align_on="means")
        with torch.no_grad():
            method.semantic_encoder.out.weight.mul_(40)
            z_e = method.encode_word(method.text_table)[0]
            # Squared distances of 40 and more, as independent draws in 20 dimensions have.
            assert torch.pdist(z_e).square().min() > 40
            assert torch.cdist(z_e, method.encode(data.floats())).square().min() > 40
        return norms(terms_of(method, data).values["alignment"], method.semantic_encoder)[0]

    # What is left with gamma 1 is rounding of the distances of equal words.
    assert pull("rbf") < 1e-3 * pull("median")
    assert pull("rbf") < 1e-3 * pull("mixture")


def test_single_class_batches_hold_the_contrastive_loss_at_its_floor(data):
    method = make(data)
    one = data.select_classes(["rows"])
    batch = method.objective(one.floats(), torch.zeros(len(one), dtype=torch.int64), torch.Generator())
    # No negatives: log(n - 1) is reached by making all images alike, and nothing goes below it.
    assert float(batch.values["contrastive"].detach()) >= torch.tensor(len(one) - 1.0).log() - 1e-4
    with torch.no_grad():
        method.image_encoder.head.mu.weight.zero_()
        method.image_encoder.head.mu.bias.fill_(1.0)
    alike = method.objective(one.floats(), torch.zeros(len(one), dtype=torch.int64), torch.Generator())
    torch.testing.assert_close(alike.values["contrastive"], torch.tensor(len(one) - 1.0).log())


def test_the_published_outputs_cannot_reach_their_data(data):
    torch.manual_seed(0)
    z = 30 * torch.randn(200, 20)
    usual = make(data).eval()
    faulty = make(data, image={"output": "tanh"}, text={"output": "sigmoid"}).eval()
    with torch.no_grad():
        assert usual.decode_image(z).min() >= 0
        assert faulty.decode_image(z).min() < 0  # intensities lie in [0, 1]
        assert usual.semantic_decoder(z).min() < usual.text_table.min() < 0
        assert faulty.semantic_decoder(z).min() >= 0


@pytest.mark.parametrize("weighting", ["uncertainty", "gradnorm"])
def test_adaptive_weighting_trains_and_is_logged(data, weighting, tmp_path):
    method = make(data, weighting=weighting, steps=24)
    stages = method.stages(data, None)
    run(method, data, tmp_path / "run", stages=stages, log_every=4)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = [line.get("values", line) for line in lines]
    weights = [entry["vae/weight/image"] for entry in logged if "vae/weight/image" in entry]
    assert len(set(weights)) > 1


# ------------------------------------------------------------------------------------ learning


@pytest.fixture(scope="module")
def four():
    """Two images of two classes."""
    return shapes(2, n_classes=2, seed=3)


def test_four_images_can_be_learnt_by_heart(four):
    exact = {"kl": 0.01, "kl_text": 0.01, "alignment": 1.0, "contrastive": 0.1}
    method = make(four, weights=exact, spatial={**SPATIAL, "condition_noise": 0.0, "trust_noise": 0.0})
    x = four.floats()
    variance = (x - x.mean(0)).square().mean()
    fit_align(method, four, 120, lr=5e-3)
    coarse = 2 * method.decode_image(method.encode(x)) - 1
    assert (coarse - x).square().mean() < 0.05 * variance
    assert (method.retrieve(x).argmax(1) == four.labels).all()
    with torch.no_grad():
        c_hat = method.semantic_decoder(method.encode_text(method.text_table))
    assert (c_hat - method.text_table).square().mean() < 0.1 * method.text_table.square().mean()

    nats = fit_detail(method, four, 150)
    assert (method.reconstruct(x) - x).square().mean() < 0.05 * variance
    assert nats < 0.3  # of log 16 = 2.8
    # Told an image's latent, the prior draws that image.
    drawn = method.decode(method.encode(x), torch.arange(4), temperature=0)
    assert (drawn - x).square().mean() < 0.2 * variance
    assert (drawn - x.flip(0)).square().mean() > 0.5 * variance


def run(method, data, run_dir, held_out=None, stages=None, **changes):
    """Train in a run folder, silently."""
    quiet = {"progress": False, "device": "cpu", "ema_decay": 0.9, "preview_every": 0, "checkpoint_every": 0}
    config = TrainConfig(**{**quiet, "log_every": 3, "validate_every": 4, **changes})
    stages = stages or method.stages(data, held_out)
    return Trainer(method, stages, data, held_out, config, run_dir).run()


TINY = {
    "steps": 7,
    "augment": "light",
    "spatial": {**SPATIAL, "steps": 6, "prior_steps": 6, "augment": "shapes"},
}


def test_a_hybrid_run_that_is_stopped_in_every_stage_ends_as_one_that_was_not(data, tmp_path):
    held_out = shapes(4, seed=9)

    def fresh(seed):
        return make(data, seed=seed, **{**TINY, "image": {"dropout": 0.1}, "weighting": "uncertainty"})

    run(fresh(0), data, tmp_path / "whole", held_out)
    results = []
    for start, stop in enumerate((3, 7, 10, 16, None)):
        # Other initial weights after the first start: what counts is what was saved.
        method = fresh(start)
        quiet = TrainConfig(
            progress=False, device="cpu", ema_decay=0.9, preview_every=0, checkpoint_every=0, log_every=3,
            validate_every=4,
        )  # fmt: skip
        trainer = Trainer(method, method.stages(data, held_out), data, held_out, quiet, tmp_path / "parts")
        between = trainer._between_steps

        def watched(stage_run, trainer=trainer, between=between, stop=stop):
            if trainer._position.total_steps == stop:
                trainer.stop()
            return between(stage_run)

        trainer._between_steps = watched
        results.append(trainer.run())
    assert [result.interrupted for result in results] == [True, True, True, True, False]
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
    # Negative control: another start gives other weights.
    run(fresh(1), data, tmp_path / "other", held_out)
    other = load_file(tmp_path / "other" / "model.safetensors")
    assert any(not torch.equal(whole[name], other[name]) for name in whole)


def test_held_out_figures_previews_and_the_prior_leave_finished_parts_alone(data, tmp_path):
    method = make(data, **TINY)
    result = run(method, data, tmp_path / "run", shapes(4, seed=9))
    assert result.finished
    assert set(result.best) == {"align", "codes", "prior"}
    assert sorted(path.name for path in (tmp_path / "run" / "previews").iterdir()) == [
        "1_align_final.png",
        "2_codes_final.png",
        "3_prior_final.png",
    ]
    before = copy.deepcopy(method.state_dict())
    stage = method.stages(data, None)[2]
    method.eval()
    method.prior.train()
    context = Context(
        0, 5, stage, torch.Generator().manual_seed(0), Pixels(data, method.device), None, method.device
    )
    descend(method, lambda _: stage.phases[0].loss(batch_of(data), context).total(), [method.prior], steps=3)
    changed = {name for name, value in method.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("prior.") for name in changed)


# ------------------------------------------------------------------------------------ generating


def model_named(name, trained, hybrid):
    return {"default": trained, "hybrid": hybrid}[name]


def digests(images):
    return [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in images]


@pytest.mark.parametrize("name", ["default", "hybrid"])
@pytest.mark.parametrize("candidates", [1, 3])
def test_image_i_is_the_same_alone_in_any_number_and_in_any_order(trained, hybrid, name, candidates):
    method = model_named(name, trained, hybrid)
    n = 70  # more than one group of rows
    labels, seeds = torch.arange(n) % 3, image_seeds(5, n)

    def made(rows):
        request = GenerationRequest(
            labels=labels[rows], seeds=seeds[rows], options={"candidates": candidates}
        )
        return digests(method.generate(request).images)

    whole = made(torch.arange(n))
    assert len(set(whole)) > 60
    for count in (7, 64):
        assert made(torch.arange(count)) == whole[:count]
    for i in (0, 5, 63, 69):
        assert made(torch.tensor([i])) == [whole[i]]
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    assert made(order) == [whole[i] for i in order]


@pytest.mark.parametrize("name", ["default", "hybrid"])
def test_temperature_0_gives_one_image_per_word_and_1_gives_many(trained, hybrid, name):
    method = model_named(name, trained, hybrid)
    still = method.generate(GenerationRequest.per_class([0, 1, 2], 5, temperature=0)).images
    for own in still.split(5):
        assert len(set(digests(own))) == 1
    assert len(set(digests(still))) == 3
    again = method.generate(GenerationRequest.per_class([0, 1, 2], 5, seed=8, temperature=0)).images
    assert torch.equal(again, still)
    varied = method.generate(GenerationRequest.per_class([0], 20)).images
    assert len(set(digests(varied))) > 10


@pytest.mark.parametrize("name", ["default", "hybrid"])
def test_an_interpolation_starts_and_ends_with_the_words_own_images(
    trained, hybrid, name, tmp_path, monkeypatch
):
    method = model_named(name, trained, hybrid)
    method.save(tmp_path / "model.safetensors")
    monkeypatch.setattr("fewgen.text.make_text_encoder", lambda *_, **__: Words())
    walk = interpolate(tmp_path / "model.safetensors", "rows", "spots", steps=5, device="cpu")
    words = method.generate(
        GenerationRequest(labels=torch.tensor([0, 2]), seeds=torch.zeros(2, dtype=torch.int64), temperature=0)
    )
    ends = walk.images[[0, -1]].int()
    # A group of another size may differ in the last bit, which rounding to 8 bits can show.
    assert (ends - words.images.int()).abs().max() <= 1
    middle = walk.images[2].int()
    assert min((middle - end).abs().float().mean() for end in ends) > 1


@pytest.mark.parametrize("name", ["default", "hybrid"])
def test_a_saved_model_gives_the_same_images(trained, hybrid, name, tmp_path):
    method = model_named(name, trained, hybrid)
    method.save(tmp_path / "model.safetensors", {"note": 1})
    loaded = load_method(tmp_path / "model.safetensors")
    assert loaded.config == method.config
    request = GenerationRequest.per_class([0, 1, 2], 4, seed=2)
    assert torch.equal(loaded.generate(request).images, method.generate(request).images)
    x = shapes(2, seed=4).floats()
    for function in ("encode", "reconstruct", "retrieve"):
        assert torch.equal(getattr(loaded, function)(x), getattr(method, function)(x)), function


def test_a_class_name_as_free_text_is_the_class_and_other_words_are_not(trained, data):
    encoder = Words()
    trained.use_encoder(encoder)
    vectors = trained.text_vectors(["spots", "rows", "stripes"])
    assert torch.equal(vectors[:2], trained.class_vectors(torch.tensor([2, 0])))
    seeds = image_seeds(0, 2)
    by_text = trained.generate(GenerationRequest(texts=["spots", "rows"], seeds=seeds))
    by_label = trained.generate(GenerationRequest(labels=torch.tensor([2, 0]), seeds=seeds))
    assert torch.equal(by_text.images, by_label.images)
    assert by_text.labels.tolist() == [-1, -1]
    other = trained.generate(GenerationRequest(texts=["stripes", "rows"], seeds=seeds))
    assert not torch.equal(other.images[0], by_text.images[0])
    assert torch.equal(other.images[1], by_text.images[1])


def test_the_nearest_word_of_an_image_is_its_class_and_words_draw_their_class(trained, data):
    unseen = shapes(20, seed=11)
    assert (trained.retrieve(unseen.floats()).argmax(1) == unseen.labels).float().mean() > 0.75
    made = trained.generate(GenerationRequest.per_class([0, 1, 2], 30))
    x = made.images.float()
    # Rows vary down an image, columns across it: what tells the classes apart needs no classifier.
    down, across = x.mean(3).var(2).flatten(), x.mean(2).var(2).flatten()
    assert (down[made.labels == 0] > across[made.labels == 0]).float().mean() > 0.9
    assert (down[made.labels == 1] < across[made.labels == 1]).float().mean() > 0.9


def test_candidates_are_chosen_to_be_read_as_their_word(trained, data):
    request = GenerationRequest.per_class([0, 1, 2], 20)
    best = dataclasses.replace(request, options={"candidates": 6})

    def margin(which):
        made = trained.generate(which)
        scores = trained.retrieve(2.0 * made.images.float() / 255 - 1)
        own = scores.gather(1, made.labels[:, None])[:, 0]
        other = scores.scatter(1, made.labels[:, None], -torch.inf).logsumexp(1)
        return float((own - other).mean())

    assert margin(best) > margin(request)


def test_wrong_requests_are_refused(trained, hybrid):
    def ask(method, **options):
        return method.generate(GenerationRequest.per_class([0], 1, options=options))

    with pytest.raises(ConfigError, match=r"Unknown options \['candidate'\]"):
        ask(trained, candidate=3)
    with pytest.raises(ConfigError, match="Label 3 is not a class of this model, which has 3"):
        trained.generate(GenerationRequest(labels=torch.tensor([3]), seeds=image_seeds(0, 1)))
    with pytest.raises(ConfigError, match="candidates must be a whole number of 1 or more, got 0"):
        ask(trained, candidates=0)
    with pytest.raises(ConfigError, match=r"trust_noise must be in \[0, 1\], got 7"):
        ask(hybrid, trust_noise=7)
    assert ask(hybrid, trust_noise=0.9)


# ------------------------------------------------------------------------------------ warnings


def diagnosed(method, data, stage=0, progress=1.0):
    """What a stage would warn about at this point."""
    stage_ = method.stages(data, None)[stage]
    context = Context(
        int(100 * progress),
        100,
        stage_,
        torch.Generator().manual_seed(0),
        Pixels(data, method.device),
        None,
        method.device,
    )
    with torch.no_grad():
        return stage_.diagnose(context)


def broken(method, *names):
    """A copy of which these parameters are zero."""
    method = copy.deepcopy(method)
    with torch.no_grad():
        for name in names:
            method.get_parameter(name).zero_()
    return method.eval()


def test_a_healthy_model_causes_no_warning(trained, hybrid, data):
    assert diagnosed(trained, data) == []
    assert diagnosed(hybrid, data, stage=1) == []


@pytest.mark.parametrize(
    ("names", "found", "advice"),
    [
        (["image_encoder.head.mu.weight"], "Posterior collapse: only 0 of 20", "Lower model.weights.kl"),
        (
            ["semantic_encoder.out.weight"],
            'Codebook collapse: the words of "rows" and "columns"',
            "Raise model.text.groups",
        ),
        (
            ["image_decoder.body.0.weight"],
            "Mode collapse: images of one word hardly differ (0 %",
            "cross_image",
        ),
    ],
)
def test_a_collapsed_model_causes_one_warning_that_says_what_to_change(trained, data, names, found, advice):
    warnings = diagnosed(broken(trained, *names), data)
    assert len(warnings) == 1
    assert warnings[0].startswith(found)
    assert advice in warnings[0]


@pytest.mark.parametrize("prior", ["standard", "conditional"])
@pytest.mark.parametrize("kl", [0.05, 50.0])
def test_a_kl_weight_that_collapses_the_posterior_is_named(data, tmp_path, prior, kl):
    method = make(data, prior=prior, steps=60, weights={"kl": kl})
    quick = TrainConfig(progress=False, device="cpu", ema_decay=0.9)
    result = Trainer(
        method, method.stages(data, shapes(4, seed=1)), data, shapes(4, seed=1), quick, tmp_path
    ).run()
    found = [text for text in result.warnings if text.startswith("Posterior collapse")]
    assert len(found) == (kl == 50.0)
    assert all("Lower model.weights.kl (now 50)" in text for text in found)


def test_words_that_share_codes_are_no_news_at_the_start(trained, data):
    assert diagnosed(broken(trained, "semantic_encoder.out.weight"), data, progress=0.1) == []


def test_a_tokeniser_that_uses_one_code_is_noticed(hybrid, data):
    collapsed = broken(hybrid, "tokenizer.to_codes.weight")
    collapsed.config = dataclasses.replace(hybrid.config)
    # One code of 16 is a perplexity of 1, above a twentieth: a real codebook is larger.
    assert diagnosed(collapsed, data, stage=1) == []
    large = make(data, spatial={**SPATIAL, "codebook_size": 64})
    large.tokenizer.loss(data.floats())  # the first batch initialises the codes
    large = broken(large, "tokenizer.to_codes.weight")
    (warning,) = diagnosed(large, data, stage=1)
    assert warning.startswith("Codebook collapse: perplexity 1.0 of 64 codes. Lower")
    assert diagnosed(large, data, stage=1, progress=0.1) == []


# ------------------------------------------------------------------------------------ real data


@pytest.mark.slow
def test_words_draw_their_class_of_real_clothes(data_dir, tmp_path):
    names = ["Trouser", "Sneaker"]
    pool = load_images("fashion_mnist", data_dir=data_dir).select_classes(names)
    test = load_images("fashion_mnist", split="test", data_dir=data_dir).select_classes(names)
    judge = ClassifierFeatures.of(
        pool.shots(400, 1), test, ClassifierSettings(steps=80, width=16), use_cache=False
    )
    assert judge.measure(test) > 0.98
    done = train(
        "cada_vqvae",
        data=pool,
        shots=30,
        text="glove",
        data_dir=data_dir,
        out=tmp_path / "run",
        minutes=0.9,
        model={"steps": 300, "image": {"backbone": "mlp"}},
        training={"device": "cpu"},
        progress=False,
        report=False,
    )
    assert done.result.seconds < 60
    made = done.method.generate(GenerationRequest.per_class([0, 1], 100)).to_image_set()
    right = judge.predict(made) == made.labels
    assert right.float().mean() > 0.9
    assert min(right[made.labels == c].float().mean() for c in (0, 1)) > 0.8
