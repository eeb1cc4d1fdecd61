"""What methods declare to be able to do, and the loops over images that use it."""

import pytest
import torch
from tests.fake_method import Fake, FakeConfig

from fewgen.data import ImageSet, to_uint8
from fewgen.errors import ConfigError
from fewgen.methods import abilities
from fewgen.methods.abilities import Adapts, Retrieves, able, class_latents, class_scores, reconstructed, walk
from fewgen.methods.base import CAPABILITIES, DataSpec
from fewgen.methods.registry import get_method
from fewgen.text import ClassText, make_text_encoder


@pytest.fixture(scope="module")
def method():
    text = ClassText.build(make_text_encoder("onehot", vocabulary=("a", "b", "c")), ("a", "b", "c"))
    torch.manual_seed(0)
    return Fake(FakeConfig(), DataSpec(1, 6, 5, ("a", "b", "c"), text)).eval()


def test_every_capability_has_its_functions_and_methods_have_those_they_declare():
    assert set(abilities._NAMES.values()) == set(CAPABILITIES)
    for name in ("cada_vqvae", "diffusion", "sq_gan", "tage", "tint"):
        method = get_method(name)
        for ability, capability in abilities._NAMES.items():
            if capability in method.capabilities:
                functions = [f for f in vars(ability) if not f.startswith("_")]
                assert functions
                assert all(hasattr(method, f) for f in functions), (name, capability)


def test_able_gives_the_method_itself_or_says_what_it_can_do(method):
    assert able(method, Retrieves) is method
    with pytest.raises(ConfigError, match='"fake" cannot adapt to new classes'):
        able(method, Adapts)


def test_loops_give_what_the_method_gives_in_groups_of_256(method):
    pixels = torch.randint(
        0, 256, (300, 1, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    images = ImageSet(pixels, torch.zeros(300, dtype=torch.int64), ("a", "b", "c"))
    x = images.floats()
    with torch.no_grad():
        back = torch.cat([method.reconstruct(x[:256]), method.reconstruct(x[256:])])
        scores = torch.cat([method.retrieve(x[:256]), method.retrieve(x[256:])])
    assert torch.equal(reconstructed(method, images), to_uint8(back))
    assert torch.equal(class_scores(method, pixels), scores)


def test_a_walk_starts_and_ends_at_its_latents(method):
    ends = class_latents(method, torch.tensor([0, 2]))
    images = walk(method, ends[:1], ends[1:], torch.zeros(5, dtype=torch.int64))
    with torch.no_grad():
        wanted = to_uint8(method.decode(ends, torch.zeros(2, dtype=torch.int64), 0.0))
    assert images.shape == (5, 1, 6, 5)
    assert torch.equal(images[[0, 4]], wanted)
