"""The projected discriminator: what is frozen stays so, heads learn, and the condition counts."""

import copy

import numpy as np
import pytest
import torch
from tests.nn.tiny_maps import TinyMaps
from torch.nn import functional

from fewgen.errors import ConfigError, ShapeError
from fewgen.losses.adversarial import discriminator_terms
from fewgen.nn.projected import Head, ProjectedDiscriminator, per_head


def make(shape=(3, 16, 16), c_dim=3, encoder=None, **settings):
    settings = {"side": 32, "mixed": 4, "width": 8, **settings}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ProjectedDiscriminator(shape, lambda: encoder or TinyMaps(settings["side"]), c_dim, **settings)


def images(n=6, shape=(3, 16, 16), seed=0):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


EYE = torch.eye(3)
C = EYE[torch.arange(6) % 3]


def test_maps_are_mixed_across_channels_and_from_coarse_to_fine():
    encoder = TinyMaps()
    made, x = make(encoder=encoder), images()
    found = made.maps(x)
    assert [tuple(m.shape) for m in found] == [(6, 4, 8, 8), (6, 8, 4, 4), (6, 16, 2, 2), (6, 32, 1, 1)]
    raw = encoder.maps(functional.interpolate(x, (32, 32), mode="bilinear"))
    frozen = made._frozen
    first = [
        torch.einsum("bchw,oc->bohw", m, w[:, :, 0, 0])
        for m, w in zip(raw.values(), frozen.across_channels, strict=True)
    ]
    torch.testing.assert_close(found[3], first[3], atol=1e-5, rtol=1e-4)
    # One 3 x 3 convolution of the coarse map, enlarged, and both at equal strength.
    below = functional.conv2d(functional.pad(found[3], (1, 1, 1, 1)), frozen.across_scales[2])
    expected = (
        first[2] + below.expand(-1, -1, 2, 2)
    ) / 2**0.5  # a map of one place is constant when enlarged
    torch.testing.assert_close(found[2], expected, atol=1e-5, rtol=1e-4)
    # The maps of the network differ in strength; mixed, they do not.
    strength = [float(m.square().mean().sqrt()) for m in first]
    assert max(strength) < 4 * min(strength)


def test_what_is_frozen_gets_no_gradient_and_never_changes_while_heads_and_images_do():
    encoder = TinyMaps()
    made, x = make(encoder=encoder).train(), images().requires_grad_()
    made.prepare(x.device)
    frozen = [*encoder.network.parameters(), *made._frozen.across_channels, *made._frozen.across_scales]
    before = [w.clone() for w in frozen]
    optimizer = torch.optim.Adam(made.parameters(), 0.05)
    start = {name: p.detach().clone() for name, p in made.named_parameters()}
    for _ in range(3):
        optimizer.zero_grad()
        made(x, C).square().sum().backward()
        optimizer.step()
    assert all(w.grad is None and not w.requires_grad for w in frozen)
    assert all(torch.equal(w, old) for w, old in zip(frozen, before, strict=True))
    assert x.grad.abs().flatten(1).amax(1).min() > 0
    assert all(not torch.equal(p, start[name]) for name, p in made.named_parameters())


def test_a_model_file_holds_heads_and_embeddings_alone():
    made = make()
    made(images(), C)
    kept = made.state_dict()
    assert {name.split(".")[0] for name in kept} == {"heads", "embeddings"}
    assert kept.keys() == make().state_dict().keys()  # nothing of it waits for the network
    torch.manual_seed(5)
    again = make(seed=0)
    again.load_state_dict(kept)
    assert torch.equal(again.eval()(images(), C), made.eval()(images(), C))
    other = make(seed=1)
    other.load_state_dict(kept)
    assert not torch.allclose(other.eval()(images(), C), made(images(), C))


def test_the_network_is_read_once_and_only_when_images_come():
    read = []

    def load():
        read.append(1)
        return TinyMaps()

    made = ProjectedDiscriminator((1, 16, 16), load, 0, side=32, mixed=4, width=8)
    copy.deepcopy(made)
    assert not read
    for _ in range(2):
        assert made(images(shape=(1, 16, 16))).shape == (6,)
    assert len(read) == 1


@pytest.mark.parametrize("condition", ["product", "projection"])
def test_logits_are_those_of_a_naive_loop(condition):
    made, x = make(condition=condition).eval(), images()
    described = made.describe(made.maps(x))
    logits = made.judge(described, 5.0 * C)  # of any length
    for k, head in enumerate(described):
        numbers = head.detach().numpy()
        embedding = made.embeddings[k].weight.detach().numpy().T
        for b in range(6):
            for place in range(numbers.shape[2]):
                own = numbers[b, 0, place] if condition == "projection" else 0.0
                said = numbers[b, 1:, place] if condition == "projection" else numbers[b, :, place]
                wanted = own + said @ embedding[b % 3] / 8
                assert float(logits[k][b, place].detach()) == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    means = np.mean([one.detach().numpy().mean(1) for one in logits], 0)
    np.testing.assert_allclose(made(x, C).detach().numpy(), means, atol=1e-5)
    assert per_head(logits).shape == (6, 4)


def test_heads_end_at_four_places_a_side_or_less():
    for side, places in ((16, 16), (14, 9), (8, 16), (4, 16), (2, 4), (1, 1)):
        for norm in ("batch", "group", "none"):
            assert Head(4, side, 8, norm, 5)(torch.zeros(2, 4, side, side)).shape == (2, 5, places)
    head = Head(4, 16, 8, "none", 5).requires_grad_(False)
    norms = [float(torch.linalg.matrix_norm(m.weight.flatten(1), 2)) for m in (*head.layers[::2], head.last)]
    assert len(norms) == 3
    assert norms == pytest.approx([1.0] * 3, abs=0.05)  # spectral norm


def test_small_grey_images_and_large_ones_are_resized():
    for shape, side in (((1, 16, 16), 64), ((1, 28, 28), 64), ((3, 96, 96), 96), ((3, 80, 112), 112)):
        seen = []

        class Listening(TinyMaps):
            def maps(self, x, seen=seen):
                seen.append(x)
                return super().maps(x)

        made = make(shape, encoder=Listening(side), side=None)
        x = images(2, shape)
        made.maps(x)
        assert seen[-1].shape == (2, shape[0], side, side)
        assert abs(float(seen[-1].mean() - x.mean())) < 0.05


def test_wrong_shapes_and_settings_are_refused():
    with pytest.raises(ShapeError, match=r"images \(3, 16, 16\)"):
        make()(images(shape=(3, 8, 8)), C)
    with pytest.raises(ShapeError, match="width 3, got 0"):
        make()(images())
    for wrong in ({"norm": "layer"}, {"condition": "concat"}):
        with pytest.raises(ConfigError):
            make(**wrong)


@pytest.mark.parametrize("condition", ["product", "projection"])
def test_a_wrong_class_is_caught(condition):
    """Trained to tell images of their class from images of another, it sees planted wrong classes."""
    x = torch.stack([torch.full((3, 16, 16), value) for value in (-0.8, 0.0, 0.8)]).repeat(2, 1, 1, 1)
    x = x + 0.1 * images()
    gaps = {}
    # The control learns from images of which none has its own class.
    for name, told in (("right", C), ("permuted", EYE[torch.tensor([1, 2, 0, 2, 0, 1])])):
        made = make(condition=condition, norm="none").train()
        optimizer = torch.optim.Adam(made.parameters(), 0.02, (0.0, 0.99))
        maps = [m.detach() for m in made.maps(x)]
        for _ in range(40):
            described = made.describe(maps)
            wrong = made.judge(described, told.roll(1, 1))
            terms = discriminator_terms("hinge", made.judge(described, told), wrong)
            optimizer.zero_grad()
            (terms["real"] + terms["fake"]).backward()
            optimizer.step()
        with torch.no_grad():
            fresh = x + 0.1 * images(seed=9)
            gaps[name] = float((made.eval()(fresh, C) - made(fresh, C.roll(1, 1))).min())
    assert gaps["right"] > 0.5
    assert gaps["permuted"] < 0


def test_images_of_a_class_that_all_look_alike_are_caught_by_groups_alone():
    """Trained to tell varied images of a class from repeated ones, it needs to see them together."""
    x = images(12).repeat_interleave(2, 0)
    rng = torch.Generator().manual_seed(3)
    gaps = {}
    for group_size in (4, 1):
        made = make(c_dim=0, norm="none", group_size=group_size).train()
        optimizer = torch.optim.Adam(made.parameters(), 0.02, (0.0, 0.99))
        gap = []
        for step in range(60):
            # Groups are made of every third image; both batches show the same images.
            varied = torch.randperm(24, generator=rng)[:12]
            repeated = torch.randperm(24, generator=rng)[:3].repeat(4)
            real, fake = (made.describe([m.detach() for m in made.maps(x[i])]) for i in (varied, repeated))
            terms = discriminator_terms("hinge", made.judge(real), made.judge(fake))
            optimizer.zero_grad()
            (terms["real"] + terms["fake"]).backward()
            optimizer.step()
            if step >= 40:
                means = [float(per_head(made.judge(one)).detach().mean()) for one in (real, fake)]
                gap.append(means[0] - means[1])
        gaps[group_size] = sum(gap) / len(gap)
    assert gaps[4] > 0.5
    assert abs(gaps[1]) < 0.2


def test_spread_is_the_deviation_within_each_group_of_each_map():
    made, x = make(group_size=2), images()
    maps = [m.detach() for m in made.maps(x)]
    found = made.spread(maps)
    assert found.shape == (4, 3)
    for k, one in enumerate(maps):
        for j in range(3):
            # Two images of a group stand three apart; half their distance is the deviation of each.
            distance = (one[j] - one[j + 3]).double() / 2
            assert float(found[k, j]) == pytest.approx(float(distance.square().mean().sqrt()), rel=1e-3)
    repeated = [m[:3].repeat(2, 1, 1, 1).requires_grad_() for m in maps]
    made.spread(repeated).sum().backward()
    assert float(made.spread(repeated).detach().max()) < 1e-3
    assert all(bool(m.grad.isfinite().all()) for m in repeated)
