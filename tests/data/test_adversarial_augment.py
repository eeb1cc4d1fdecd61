import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.reference import naive_adversarial_augment as naive
from torch import nn

from fewgen.data.adversarial import AdversarialAugment, make_adversarial_augment
from fewgen.data.adversarial.ada import PADDINGS, AdaDraw, AdaptiveAugment
from fewgen.data.adversarial.base import repeated
from fewgen.data.adversarial.diff_augment import CHANGES, DiffAugment, DiffDraw
from fewgen.errors import ConfigError, FewgenError, ShapeError, TrainingError

SIZES = [(8, 8), (7, 10), (16, 5), (1, 1)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(
    n: int = 6, channels: int = 3, height: int = 8, width: int = 8, dtype=torch.float64
) -> torch.Tensor:
    return torch.rand(n, channels, height, width, generator=seeded(9), dtype=dtype) * 2 - 1


def ada(channels: int, p: float, **options) -> AdaptiveAugment:
    augment = AdaptiveAugment(channels, **options)
    augment.p.fill_(p)
    return augment


def every_augmentation(channels: int) -> list[AdversarialAugment]:
    return [DiffAugment(",".join(CHANGES)), DiffAugment(padding="edge"), ada(channels, 0.8)]


# --- All augmentations -----------------------------------------------------------------------------------


@given(st.integers(0, 4), st.sampled_from([1, 3]), st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_shape_and_type_stay(n: int, channels: int, height: int, width: int, seed: int) -> None:
    for augment in every_augmentation(channels):
        for dtype in (torch.float32, torch.float64):
            x = images(n, channels, height, width, dtype)
            y = augment(x, seeded(seed))
            assert (y.shape, y.dtype) == (x.shape, x.dtype)
            assert y.isfinite().all()


@pytest.mark.parametrize(
    "augment",
    [DiffAugment(""), DiffAugment("  "), AdaptiveAugment(3), ada(3, 1.0, pipeline=""), AdversarialAugment()],
    ids=repr,
)
def test_nothing_to_do_returns_the_same_tensor_and_draws_nothing(augment: AdversarialAugment) -> None:
    x, rng = images(), seeded()
    before = rng.get_state()
    assert augment(x, rng) is x
    assert torch.equal(rng.get_state(), before)


@pytest.mark.parametrize("index", range(3))
def test_the_same_draw_for_both_images_of_a_pair(index: int) -> None:
    augment = every_augmentation(3)[index]
    first, second = images(), images() + 0.01 * torch.randn(6, 3, 8, 8, generator=seeded(4)).double()
    draw = augment.draw(6, (3, 8, 8), seeded(1))
    state = torch.get_rng_state()
    assert torch.equal(augment.replay(first, draw), augment(first, seeded(1)))
    assert torch.equal(augment.replay(second, draw), augment(second, seeded(1)))
    assert torch.equal(torch.get_rng_state(), state), "no draw outside the given stream"
    assert not torch.allclose(augment(first, seeded(2)), augment(first, seeded(1)), atol=0.1), (
        "negative control"
    )


@pytest.mark.parametrize("index", range(3))
def test_a_repeated_draw_changes_every_batch_alike(index: int) -> None:
    augment, x = every_augmentation(3)[index], images(4, 3)
    draw = augment.draw(4, x.shape[1:], seeded())
    found = augment.replay(torch.cat([x, x.flip(0), x]), repeated(draw, 3))
    wanted = torch.cat([augment.replay(part, draw) for part in (x, x.flip(0), x)])
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("index", range(3))
def test_each_image_gets_its_own_change(index: int) -> None:
    x = images(1).expand(6, -1, -1, -1)
    y = every_augmentation(3)[index](x, seeded()).flatten(1)
    assert (torch.cdist(y, y) + torch.eye(6) * 9 > 0.1).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("index", range(3))
def test_an_image_does_not_depend_on_its_neighbours(index: int, channels: int) -> None:
    augment, x = every_augmentation(channels)[index], images(6, channels)
    draw = augment.draw(6, (channels, 8, 8), seeded(1))
    other = x.clone()
    other[1:] = 0.3
    assert torch.allclose(augment.replay(x, draw)[0], augment.replay(other, draw)[0], atol=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("index", range(3))
def test_gradients_of_first_and_second_order(index: int, channels: int) -> None:
    augment = every_augmentation(channels)[index]
    x = images(2, channels, 4, 5).requires_grad_()
    draw = augment.draw(2, (channels, 4, 5), seeded(3))
    assert torch.autograd.gradcheck(lambda x: augment.replay(x, draw), (x,))
    # A linear map has no second derivative; behind a cube there is one for a gradient penalty to use.
    assert torch.autograd.gradgradcheck(lambda x: augment.replay(x, draw) ** 3, (x,))


@pytest.mark.parametrize("padding", PADDINGS)
def test_gradient_penalty_through_ada_equals_finite_differences(padding: str) -> None:
    augment, x = ada(1, 0.9, padding=padding), images(2, 1, 6, 6)
    draw = augment.draw(2, (1, 6, 6), seeded(3))
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)

    def penalty(scale: torch.Tensor) -> torch.Tensor:
        seen = x.clone().requires_grad_()
        score = (augment.replay(seen, draw) * scale).tanh().sum()
        return torch.autograd.grad(score, seen, create_graph=True)[0].square().sum()

    (found,) = torch.autograd.grad(penalty(weight), weight)
    expected = (penalty(weight + 1e-5) - penalty(weight - 1e-5)).detach() / 2e-5
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_wrong_shapes_and_draws_are_refused() -> None:
    x = images()
    for augment in every_augmentation(3):
        with pytest.raises(ShapeError, match="B, C, H, W"):
            augment(x[0], seeded())
        with pytest.raises(ShapeError, match="floating"):
            augment((x * 9).long(), seeded())
        with pytest.raises(ShapeError, match="draw again"):
            augment.replay(x, augment.draw(5, (3, 8, 8), seeded()))
        with pytest.raises(ShapeError, match="positive sides"):
            augment.draw(2, (8, 8), seeded())
    with pytest.raises(ShapeError, match="made for 1 channels"):
        ada(1, 0.5)(x, seeded())
    with pytest.raises(TypeError, match="takes a DiffDraw, got a AdaDraw"):
        DiffAugment().replay(x, ada(3, 1.0).draw(6, (3, 8, 8), seeded()))


def test_a_module_that_holds_one_can_be_initialised_by_a_function() -> None:
    seen: list[str] = []
    nn.Sequential(DiffAugment(), AdaptiveAugment(1)).apply(lambda module: seen.append(type(module).__name__))
    assert seen == ["DiffAugment", "AdaptiveAugment", "Sequential"]


# --- By name -----------------------------------------------------------------------------------------------


def test_made_by_name() -> None:
    assert type(make_adversarial_augment("none", 3)) is AdversarialAugment
    chosen = make_adversarial_augment("diffaugment", 3, policy="cutout", padding="edge")
    assert isinstance(chosen, DiffAugment)
    assert (chosen.changes, chosen.padding) == (("cutout",), "edge")
    adaptive = make_adversarial_augment("ada", 1, flips=False, target=0.5)
    assert isinstance(adaptive, AdaptiveAugment)
    assert (adaptive.channels, adaptive.flips, adaptive.target) == (1, False, 0.5)
    assert "flips=False" in repr(adaptive)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("difaugment", {}, 'Did you mean "diffaugment"'),
        ("ada", {"targte": 0.5}, 'no option "targte".*Did you mean "target"'),
        ("none", {"policy": ""}, 'no option "policy".*Options: none'),
        ("diffaugment", {"channels_first": True}, "no option"),
        ("diffaugment", {"policy": "color,tranlation"}, 'Did you mean "translation"'),
        ("diffaugment", {"policy": "color,,cutout"}, "Unknown change"),
        ("diffaugment", {"policy": "color, color"}, "twice"),
        ("diffaugment", {"padding": "reflect"}, "Unknown padding"),
        ("ada", {"pipeline": "bgx"}, "letters"),
        ("ada", {"pipeline": "bb"}, "at most once"),
        ("ada", {"target": 1.5}, "target"),
        ("ada", {"target": math.nan}, "target"),
        ("ada", {"interval": 0}, "interval"),
        ("ada", {"speed_kimg": 0.0}, "speed_kimg"),
        ("ada", {"rotate_degrees": 200.0}, "rotate_degrees"),
        ("ada", {"padding": "wrap"}, "Unknown padding"),
    ],
)
def test_settings_that_do_not_fit(name: str, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_adversarial_augment(name, 3, **options)


def test_ada_knows_grey_and_colour_images_only() -> None:
    with pytest.raises(ConfigError, match="1 or 3 channels, got 2"):
        AdaptiveAugment(2)


# --- DiffAugment -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["zero", "edge"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "policy", ["color", "translation", "cutout", "flip", "cutout,translation,color", ",".join(CHANGES)]
)
def test_diffaugment_equals_loops_over_pixels(policy: str, size: tuple[int, int], padding: str) -> None:
    for channels in (1, 3):
        augment, x = DiffAugment(policy, padding), images(8, channels, *size)
        draw = augment.draw(8, x.shape[1:], seeded(5))
        assert isinstance(draw, DiffDraw)
        y = augment.replay(x, draw)
        names = ("brightness", "saturation", "contrast", "shift", "cut", "flip")
        for i in range(8):
            one = {name: getattr(draw, name)[i].tolist() for name in names}
            expected = naive.diff_augment(x[i].numpy(), policy.split(","), padding, one)
            np.testing.assert_allclose(y[i].numpy(), expected, atol=1e-12)


def test_a_shorter_policy_keeps_the_draws_of_the_rest() -> None:
    long, short = (DiffAugment(policy).draw(5, (1, 8, 8), seeded(2)) for policy in ("color,cutout", "cutout"))
    assert isinstance(long, DiffDraw)
    assert isinstance(short, DiffDraw)
    assert torch.equal(long.cut, short.cut)
    assert torch.equal(long.shift, short.shift)


@pytest.mark.parametrize(
    ("side", "reach", "square"), [(32, 4, 16), (28, 4, 14), (27, 3, 14), (25, 3, 13), (3, 0, 2), (1, 0, 1)]
)
def test_ranges_and_shares_of_the_draws_of_diffaugment(side: int, reach: int, square: int) -> None:
    draw = DiffAugment().draw(20_000, (3, side, side), seeded(1))
    assert isinstance(draw, DiffDraw)
    for values, low, high in (
        (draw.brightness, -0.5, 0.5),
        (draw.saturation, 0, 2),
        (draw.contrast, 0.5, 1.5),
    ):
        assert low <= values.min() < low + 0.001 * (high - low)
        assert high - 0.001 * (high - low) < values.max() <= high
        assert float(values.mean()) == pytest.approx((low + high) / 2, abs=0.01 * (high - low))
        assert float(values.std()) == pytest.approx((high - low) / math.sqrt(12), rel=0.02)
    # The middle may be on any pixel, and behind the last one where the square has an even side.
    first = -(square // 2)
    places = side + 1 if square % 2 == 0 else side
    for values, low, n in ((draw.shift, -reach, 2 * reach + 1), (draw.cut, first, places)):
        for column in values.T:
            found, counts = column.unique(return_counts=True)
            assert found.tolist() == list(range(low, low + n))
            assert (counts / 20_000 - 1 / n).abs().max() < 4.5 * math.sqrt(
                (1 / n) * (1 - 1 / n) / 20_000
            ) + 1e-9
    assert float(draw.flip.double().mean()) == pytest.approx(0.5, abs=0.015)
    if reach:
        assert abs(float(torch.corrcoef(draw.shift.double().T)[0, 1])) < 0.03, "rows and columns apart"


def test_cutout_covers_from_a_sixteenth_to_a_quarter() -> None:
    covered = (DiffAugment("cutout")(torch.ones(4000, 1, 16, 16), seeded()) == 0).double().mean((1, 2, 3))
    assert covered.max() == 0.25
    assert covered.min() == 4 * 4 / 256, "a corner of the square"


def test_translation_reaches_both_borders() -> None:
    x = torch.zeros(2000, 1, 32, 32)
    x[:, :, 16, 16] = 1.0
    y = DiffAugment("translation")(x, seeded())
    rows, columns = y.sum(3).argmax(2), y.sum(2).argmax(2)
    for found in (rows, columns):
        assert (int(found.min()), int(found.max())) == (12, 20)


def test_edge_padding_keeps_black_ground_black() -> None:
    x = torch.full((64, 3, 28, 28), -1.0)
    assert torch.equal(DiffAugment("translation", padding="edge")(x, seeded()), x)
    assert DiffAugment("translation")(x, seeded()).max() == 0.0, "negative control: mid-grey as published"


def test_brightness_has_mean_zero_and_saturation_leaves_grey_alone() -> None:
    x = images(1).expand(20_000, -1, -1, -1)
    change = DiffAugment("color")(x, seeded()).mean((1, 2, 3)) - x.mean((1, 2, 3))
    assert abs(float(change.mean())) < 0.01
    assert float(change.abs().max()) <= 0.5
    grey = images(8, 1)
    three = DiffAugment("color")(grey.expand(-1, 3, -1, -1), seeded(1))
    assert torch.allclose(three, DiffAugment("color")(grey, seeded(1)).expand_as(three), atol=1e-12)


def test_values_are_not_clamped() -> None:
    y = DiffAugment("color")(torch.full((100, 1, 4, 4), 0.9), seeded())
    assert y.max() > 1.3


# --- ADA: what it does to images ---------------------------------------------------------------------------


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(
    ("pipeline", "flips", "degrees"),
    [("b", True, 180.0), ("g", True, 180.0), ("c", True, 180.0), ("bgc", False, 20.0), ("cgb", True, 90.0)],
)
def test_ada_equals_one_matrix_per_change_and_loops_over_pixels(
    pipeline: str, flips: bool, degrees: float, padding: str
) -> None:
    for channels in (1, 3):
        for p in (0.5, 1.0):
            for size in ((7, 10), (6, 6), (1, 1)):
                augment = ada(
                    channels, p, pipeline=pipeline, flips=flips, rotate_degrees=degrees, padding=padding
                )
                x = images(4, channels, *size)
                tables = naive.ada_tables(4, seeded(7))
                y = augment(x, seeded(7))
                for i, row in enumerate(zip(*tables, strict=True)):
                    expected = x[i].numpy()
                    if set(pipeline) & set("bg"):
                        inverse = naive.ada_affine(pipeline, flips, degrees, p, size, *row)
                        expected = naive.resample(expected, inverse, padding)
                    if "c" in pipeline:
                        expected = naive.recolor(expected, naive.ada_color(flips, p, *row))
                    np.testing.assert_allclose(y[i].numpy(), expected, atol=2e-5)


def test_blits_move_whole_pixels() -> None:
    x = images(200, 1, 16, 16, torch.float32)
    y = ada(1, 1.0, pipeline="b")(x, seeded())
    for before, after in zip(x[:20], y[:20], strict=True):
        nearest = (after.reshape(-1, 1) - before.reshape(1, -1)).abs().amin(1)
        assert nearest.max() < 1e-5, "no value that the image does not have"
    turned = ada(1, 1.0, pipeline="g")(x, seeded())
    assert (turned[0].reshape(-1, 1) - x[0].reshape(1, -1)).abs().amin(1).max() > 1e-3, "negative control"


@pytest.mark.parametrize("padding", ["reflect", "edge"])
def test_plain_ground_stays_plain(padding: str) -> None:
    x = torch.full((64, 1, 28, 28), -1.0)
    assert torch.allclose(ada(1, 1.0, pipeline="bg", padding=padding)(x, seeded()), x, atol=1e-5)
    assert ada(1, 1.0, pipeline="bg", padding="zero")(x, seeded()).max() == 0.0, "negative control"


def linear_and_shift(draw: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Linear part, and the last translation, in pixels (x, y)."""
    assert isinstance(draw, AdaDraw)
    assert draw.affine is not None
    linear = draw.affine[:, :, :2].double()
    return linear, -torch.linalg.solve(linear, draw.affine[:, :, 2:].double())[:, :, 0]


N = 20_000


def share(chosen: torch.Tensor) -> float:
    return float(chosen.double().mean())


@pytest.mark.parametrize("p", [0.3, 1.0])
def test_statistics_of_blits(p: float) -> None:
    linear, shift = linear_and_shift(ada(1, p, pipeline="b").draw(N, (1, 32, 16), seeded()))
    assert torch.equal(linear, linear.round())
    assert share(torch.linalg.det(linear) < 0) == pytest.approx(p / 2, abs=0.012)
    # A quarter turn exchanges the axes; half of the four turns do.
    assert share(linear[:, 0, 0] == 0) == pytest.approx(p / 2, abs=0.012)
    assert torch.allclose(shift, shift.round(), atol=1e-6)
    assert shift.amin(0).tolist() == [-2.0, -4.0]
    assert shift.amax(0).tolist() == [2.0, 4.0]
    # Uniform on [-4, 4] and rounded: the outermost values have half the share of the others.
    assert share(shift[:, 1] == 4) == pytest.approx(p / 16, abs=0.006)
    assert share(shift[:, 1] == 1) == pytest.approx(p / 8, abs=0.009)


@pytest.mark.parametrize("p", [0.3, 1.0])
def test_statistics_of_geometric_changes(p: float) -> None:
    linear, shift = linear_and_shift(ada(1, p, pipeline="g").draw(N, (1, 32, 16), seeded()))
    scale = -0.5 * torch.log2(torch.linalg.det(linear))
    singular = torch.linalg.svdvals(linear)
    stretch = 0.5 * torch.log2(singular[:, 0] / singular[:, 1])  # never negative
    for values, deviation in (
        (scale, 0.2),
        (stretch, 0.2),
        (shift[:, 0] / 16, 0.125),
        (shift[:, 1] / 32, 0.125),
    ):
        chosen = values.abs() > 1e-5
        assert share(chosen) == pytest.approx(p, abs=0.012)
        assert float(values[chosen].square().mean().sqrt()) == pytest.approx(deviation, rel=0.03)
    assert abs(float(scale[scale.abs() > 1e-5].mean())) < 0.01
    assert share(linear[:, 0, 1].abs() > 1e-5) == pytest.approx(p, abs=0.012), "one rotation or both"
    assert (torch.linalg.det(linear) > 0).all()


def test_rotations_keep_their_limit() -> None:
    linear, _ = linear_and_shift(
        ada(1, 0.19, pipeline="g", rotate_degrees=10.0).draw(N, (1, 16, 16), seeded())
    )
    angle = torch.atan2(linear[:, 1, 0] - linear[:, 0, 1], linear[:, 0, 0] + linear[:, 1, 1]).rad2deg()
    assert 19 < angle.abs().max() <= 20.001, "two of them"
    turned = angle[angle.abs() > 1e-3]
    assert share(turned.abs() <= 10.0) > 0.95
    assert float(turned.std()) == pytest.approx(10 / math.sqrt(3), rel=0.07)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("p", [0.3, 1.0])
def test_statistics_of_colours(p: float, channels: int) -> None:
    draw = ada(channels, p, pipeline="c").draw(N, (channels, 8, 8), seeded())
    assert isinstance(draw, AdaDraw)
    assert draw.affine is None
    assert draw.color is not None
    color = draw.color.double()
    matrix, offset = color[:, :, :channels], color[:, 0, channels]
    grey = matrix.sum(2)[:, 0]  # what becomes of (1, 1, 1)
    assert share(grey < 0) == pytest.approx(p / 2, abs=0.012)
    normals = [(torch.log2(grey.abs()), 0.5), (offset / grey, 0.2)]
    if channels == 3:
        basis = torch.tensor([[1, -1, 0], [1, 1, -2]], dtype=torch.float64)
        basis = basis / basis.norm(dim=1, keepdim=True)
        plane = basis @ matrix @ basis.T
        normals.append((0.5 * torch.log2(torch.linalg.det(plane) / grey.square()), 1.0))
        hue = torch.atan2(plane[:, 1, 0], plane[:, 0, 0])
        turned = hue[hue.abs() > 1e-5]
        assert len(turned) / N == pytest.approx(p, abs=0.012)
        assert float(turned.std()) == pytest.approx(math.pi / math.sqrt(3), rel=0.03)
    for values, deviation in normals:
        chosen = values.abs() > 1e-5
        assert share(chosen) == pytest.approx(p, abs=0.012)
        assert float(values[chosen].mean()) == pytest.approx(0.0, abs=0.04 * deviation)
        assert float(values[chosen].std()) == pytest.approx(deviation, rel=0.03)


@pytest.mark.parametrize("channels", [1, 3])
def test_half_precision_moves_images_to_the_same_places(channels: int) -> None:
    augment, x = ada(channels, 1.0, padding="edge"), images(6, channels, 128, 128, torch.bfloat16)
    draw = augment.draw(6, x.shape[1:], seeded())
    expected = augment.replay(x.float(), draw)
    with torch.autocast("cpu", torch.bfloat16):
        found = augment.replay(x, draw)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected.bfloat16(), rtol=2**-7, atol=1e-3)


def test_without_flips_nothing_is_mirrored_turned_or_inverted() -> None:
    draw = ada(3, 1.0, pipeline="bc", flips=False).draw(2000, (3, 16, 16), seeded())
    assert isinstance(draw, AdaDraw)
    assert draw.affine is not None
    assert draw.color is not None
    assert torch.equal(draw.affine[:, :, :2], torch.eye(2).expand(2000, 2, 2))
    assert (draw.color[:, :, :3].sum(2) > 0).all()
    with_flips = ada(3, 1.0, pipeline="bc").draw(2000, (3, 16, 16), seeded())
    assert isinstance(with_flips, AdaDraw)
    assert with_flips.color is not None
    assert (with_flips.color[:, :, :3].sum(2) < 0).any(), "negative control"


def test_few_images_change_at_low_p() -> None:
    x = images(2000, 1, 8, 8, torch.float32)
    y = ada(1, 0.05)(x, seeded())
    same = share((y - x).abs().flatten(1).amax(1) < 1e-4)
    # Mirror and luma change half of the chosen images, a quarter turn three quarters; the rest nearly all.
    # Whole-pixel shifts of 8 pixels are 0 in both directions for a quarter of the images.
    expected = (1 - 0.025) ** 2 * (1 - 0.0375) * (1 - 0.0375) * (1 - 0.05) ** 6
    assert same == pytest.approx(expected, abs=0.035)


# --- ADA: its probability ----------------------------------------------------------------------------------


def test_p_rises_and_falls_at_the_published_speed() -> None:
    augment = AdaptiveAugment(1)
    for step in range(1, 81):
        augment.update(torch.full((64,), 2.5))
        assert float(augment.p) == pytest.approx(step // 4 * 64 * 4 / 500_000, rel=1e-5)
    assert float(augment.mean_sign) == 1.0
    for step in range(1, 41):
        augment.update(torch.full((64, 1), -0.1))
        assert float(augment.p) == pytest.approx((20 - step // 4) * 64 * 4 / 500_000, rel=1e-5)
    assert float(augment.mean_sign) == -1.0


def test_p_stays_between_0_and_1() -> None:
    augment = AdaptiveAugment(1, speed_kimg=0.01, interval=1)
    augment.update(-torch.ones(4))
    assert float(augment.p) == 0.0
    for expected in (0.4, 0.8, 1.0, 1.0):
        augment.update(torch.ones(4))
        assert float(augment.p) == pytest.approx(expected)
    assert augment(images(4, 1), seeded()).isfinite().all()


@pytest.mark.parametrize(("positive", "direction"), [(7, -1), (8, 0), (9, 1)])
def test_p_follows_the_mean_over_the_whole_interval(positive: int, direction: int) -> None:
    augment = AdaptiveAugment(1, interval=2, speed_kimg=1.0)
    augment.p.fill_(0.5)
    logits = torch.tensor([1.0] * positive + [-1.0] * (10 - positive))
    augment.update(logits[:5])
    assert float(augment.p) == 0.5
    augment.update(logits[5:])
    assert float(augment.mean_sign) == pytest.approx((2 * positive - 10) / 10)
    assert float(augment.p) == pytest.approx(0.5 + direction * 10 / 1000)


def test_a_stopped_run_goes_on_bit_for_bit() -> None:
    logits = torch.randn(23, 8, generator=seeded(3)) + 0.8
    straight = AdaptiveAugment(3, interval=4, speed_kimg=0.5)
    for row in logits:
        straight.update(row)
    first, second = (AdaptiveAugment(3, interval=4, speed_kimg=0.5) for _ in range(2))
    for row in logits[:10]:  # in the middle of an interval
        first.update(row)
    second.load_state_dict(first.state_dict())
    for row in logits[10:]:
        second.update(row)
    assert 0 < float(straight.p) < 1
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in straight.state_dict().items())
    assert set(straight.state_dict()) == {"p", "mean_sign", "sign_sum", "sign_count", "steps"}
    assert torch.equal(straight(images(), seeded(1)), second(images(), seeded(1)))


def test_a_draw_keeps_its_p() -> None:
    augment, x = ada(1, 0.7), images(4, 1)
    draw = augment.draw(4, (1, 8, 8), seeded())
    before = augment.replay(x, draw)
    augment.p.zero_()
    assert torch.equal(augment.replay(x, draw), before)


def test_update_keeps_no_graph_and_refuses_nan() -> None:
    augment = AdaptiveAugment(1, interval=2)
    logits = torch.ones(4, requires_grad=True)
    augment.update(logits * 2)
    before = {name: value.clone() for name, value in augment.state_dict().items()}
    with pytest.raises(TrainingError, match="NaN for 1 of 2"):
        augment.update(torch.tensor([1.0, math.nan]))
    assert all(torch.equal(value, before[name]) for name, value in augment.state_dict().items())
    augment.update(logits * 2)
    assert not augment.p.requires_grad
    assert issubclass(TrainingError, FewgenError)


def test_the_others_ignore_updates() -> None:
    for augment in (AdversarialAugment(), DiffAugment()):
        augment.update(torch.tensor([math.nan]))
        assert augment.state_dict() == {}
