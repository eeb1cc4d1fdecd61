import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewgen.data.augment import PRESETS, Augment, AugmentConfig, shift_images
from fewgen.errors import ConfigError, ShapeError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth_images(n: int = 8, channels: int = 1, side: int = 28) -> torch.Tensor:
    coarse = torch.rand(n, channels, 6, 6, generator=seeded(9)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=side, mode="bilinear")


EVERYTHING = AugmentConfig(20.0, 0.2, 0.1, 0.5, 0.03, 0.5, 0.2, 0.3, 0.5, 0.2)


@given(
    st.integers(1, 4),
    st.sampled_from([1, 3]),
    st.integers(4, 20),
    st.integers(4, 20),
    st.sampled_from([*PRESETS, EVERYTHING]),
    st.integers(0, 99),
)
def test_shape_type_range(n: int, channels: int, height: int, width: int, preset: str, seed: int) -> None:
    x = torch.rand(n, channels, height, width, generator=seeded(seed)) * 2 - 1
    y = Augment(preset)(x, seeded(seed))
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert y.isfinite().all()
    assert y.abs().max() <= 1.0


def test_none_returns_the_same_tensor_and_draws_nothing() -> None:
    x, rng = smooth_images(), seeded()
    before = rng.get_state()
    assert Augment("none")(x, rng) is x
    assert torch.equal(rng.get_state(), before)


@pytest.mark.parametrize("preset", ["light", "shapes", "photo"])
def test_draws_come_from_the_generator_alone(preset: str) -> None:
    x, augment = smooth_images(channels=3), Augment(preset)
    first = augment(x, seeded(1))
    torch.manual_seed(123)
    assert torch.equal(augment(x, seeded(1)), first)
    assert not torch.equal(augment(x, seeded(2)), first)


@pytest.mark.parametrize("preset", ["light", "shapes", "photo"])
def test_each_image_gets_its_own_change(preset: str) -> None:
    x = smooth_images(1, 3).expand(6, -1, -1, -1)
    y = Augment(preset)(x, seeded()).flatten(1)
    assert (torch.cdist(y, y) + torch.eye(6) * 9 > 0.1).all()


@pytest.mark.parametrize("value", [-1.0, 1.0])
@pytest.mark.parametrize("preset", ["light", "shapes", AugmentConfig(45.0, 0.5, 0.5, 0.5, 0.1, 1.0)])
def test_plain_backgrounds_stay_plain(value: float, preset: str) -> None:
    x = torch.full((16, 1, 28, 28), value)
    assert torch.allclose(Augment(preset)(x, seeded()), x, atol=1e-5), "no black edge on white paper"


def test_negative_control_zero_padding_leaves_an_edge() -> None:
    x = torch.ones(1, 1, 28, 28)
    grid = torch.nn.functional.affine_grid(torch.tensor([[[1.0, 0, 0.2], [0, 1, 0]]]), [1, 1, 28, 28], False)
    assert torch.nn.functional.grid_sample(x, grid, align_corners=False).min() < 0.5


def test_gradients_pass_to_the_images() -> None:
    x = (smooth_images(2, 3, 8) * 0.5).double().requires_grad_()
    config = AugmentConfig(10.0, 0.1, 0.05, 0.5, 0.02, 0.3, 0.05, 0.1, 0.2)
    assert torch.autograd.gradcheck(lambda images: Augment(config)(images, seeded(3)), (x,), atol=1e-4)


def test_a_change_that_is_off_by_a_hair_changes_nothing() -> None:
    x = smooth_images()
    tiny = AugmentConfig(*([1e-7] * 3), 0.0, *([1e-7] * 5))
    assert torch.allclose(Augment(tiny)(x, seeded()), x, atol=1e-4), "pixel centres stay where they are"


def test_mirror_is_exact() -> None:
    x = smooth_images()
    assert torch.allclose(Augment(AugmentConfig(flip=1.0))(x, seeded()), x.flip(3), atol=1e-4)
    some = Augment(AugmentConfig(flip=0.5))(smooth_images(200), seeded())
    mirrored = (some - smooth_images(200)).abs().flatten(1).amax(1) > 1e-3
    assert 70 < int(mirrored.sum()) < 130


def test_a_turn_of_a_wide_image_keeps_distances() -> None:
    x = torch.full((64, 1, 21, 63), -1.0)
    x[:, :, 9:12, 30:33] = 1.0  # a square block in the middle
    turned = Augment(AugmentConfig(rotate_degrees=90.0))(x, seeded())
    area = ((turned + 1) / 2).sum(dim=(1, 2, 3))
    assert torch.allclose(area, torch.full((64,), 9.0), atol=1.2)


def test_shift_reaches_its_range() -> None:
    x = torch.full((300, 1, 20, 20), -1.0)
    x[:, :, 9:11, 9:11] = 1.0
    moved = (Augment(AugmentConfig(shift=0.2))(x, seeded()) + 1).squeeze(1)
    position = torch.arange(20) + 0.5
    centre = (moved.sum(1) * position).sum(1) / moved.sum((1, 2)) - 10
    assert 3.5 < centre.max() < 4.4
    assert -4.4 < centre.min() < -3.5


def test_cutout_covers_the_stated_share() -> None:
    x = torch.ones(64, 1, 40, 40)
    covered = (Augment(AugmentConfig(cutout=0.25))(x, seeded()) == 0).float().mean((1, 2, 3))
    assert covered.max() == pytest.approx(0.25**2, abs=0.02)
    assert covered.min() > 0


@pytest.mark.parametrize(
    "bad", [{"flip": 1.5}, {"shift": -0.1}, {"rotate_degrees": 181.0}, {"tone": float("nan")}]
)
def test_impossible_settings(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        AugmentConfig(**bad)


def test_unknown_preset_and_wrong_input() -> None:
    with pytest.raises(ConfigError, match='Did you mean "shapes"'):
        Augment("shape")
    with pytest.raises(ShapeError):
        Augment("light")(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), seeded())
    with pytest.raises(ShapeError):
        Augment("light")(torch.zeros(1, 8, 8), seeded())


def test_shifts_are_whole_pixels_and_continue_the_edge():
    x = torch.rand(40, 2, 5, 7, generator=torch.Generator().manual_seed(0))
    assert shift_images(x, 0, torch.Generator()) is x
    moved = shift_images(x, 2, torch.Generator().manual_seed(1))
    seen = set()
    for image, found in zip(x, moved, strict=True):
        places = [
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if torch.equal(
                found,
                image[:, (torch.arange(5) + dy).clamp(0, 4)][:, :, (torch.arange(7) + dx).clamp(0, 6)],
            )
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) > 10
    assert {dy for dy, _ in seen} == {dx for _, dx in seen} == {-2, -1, 0, 1, 2}
    assert torch.equal(moved, shift_images(x, 2, torch.Generator().manual_seed(1)))
