import pytest
import torch
from tests.reference import naive_distill as naive

from fewgen.distillation.students import make_student
from fewgen.errors import ConfigError, ShapeError


def n_parameters(module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("channels", "image_shape", "count"),
    [
        (64, (3, 32, 32), 113_088),
        (64, (3, 84, 84), 113_088),
        (8, (3, 32, 32), 2_040),
        (16, (3, 32, 32), 7_536),
    ],
)
def test_conv4_has_the_published_number_of_parameters(channels, image_shape, count) -> None:
    student = make_student("conv4", image_shape, 5, channels=channels)
    assert n_parameters(student.body) == count
    dim = channels * (image_shape[1] // 16) * (image_shape[2] // 16)
    assert student.dim == dim
    assert n_parameters(student) == count + 5 * dim + 5


def test_resnet12_has_the_published_number_of_parameters() -> None:
    student = make_student("resnet12", (3, 84, 84), 5)
    assert n_parameters(student.body) == 7_996_800
    assert (student.dim, n_parameters(student.head)) == (512, 5 * 513)


@pytest.mark.parametrize("name", ["conv4", "resnet12"])
@pytest.mark.parametrize("image_shape", [(1, 16, 16), (3, 28, 31)])
def test_features_are_those_of_the_published_order_of_layers(name, image_shape) -> None:
    student = make_student(name, image_shape, 3, channels=4, seed=1)
    rng = torch.Generator().manual_seed(0)
    for module in student.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for value in (module.weight, module.bias, module.running_mean):
                value.data = torch.randn(value.shape, generator=rng)
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=rng) + 0.5)
    x = torch.rand(2, *image_shape, generator=rng) * 2 - 1
    found = student.double().eval().features(x.double())
    assert found.shape == (2, student.dim)
    state = {key: value.detach().numpy() for key, value in student.body.state_dict().items()}
    for row, image in zip(found, x.double().numpy(), strict=True):
        wanted = torch.from_numpy(getattr(naive, name)(image, state))
        torch.testing.assert_close(row, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["conv4", "resnet12"])
def test_the_seed_alone_decides_the_weights(name) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (make_student(name, (1, 16, 16), 2, channels=4, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.head.weight, other.head.weight)
    assert not torch.equal(next(first.body.parameters()), next(other.body.parameters()))


def test_a_new_head_leaves_the_body_alone() -> None:
    student = make_student("conv4", (1, 16, 16), 7, channels=4)
    body = [p.clone() for p in student.body.parameters()]
    student.new_head(3, seed=2)
    assert student.head.weight.shape == (3, 4)
    assert student(torch.zeros(2, 1, 16, 16)).shape == (2, 3)
    assert all(torch.equal(a, b) for a, b in zip(body, student.body.parameters(), strict=True))
    with pytest.raises(ConfigError, match="at least 1 class, got 0"):
        student.new_head(0)


def test_no_classes_make_a_backbone() -> None:
    student = make_student("conv4", (1, 16, 16), 0, channels=4).eval()
    x = torch.randn(2, 1, 16, 16)
    assert torch.equal(student(x), student.features(x))


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ConfigError, match='There is no student "Conv-4". Did you mean "conv4"'):
        make_student("Conv-4", (3, 32, 32), 5)
    with pytest.raises(ShapeError, match=r"at least 16 x 16 pixels, got \(3, 32, 15\)"):
        make_student("conv4", (3, 32, 15), 5)
    with pytest.raises(ShapeError, match=r"\(1 or 3, H, W\)"):
        make_student("resnet12", (2, 32, 32), 5)
    with pytest.raises(ConfigError, match="channels must be at least 1, got 0"):
        make_student("conv4", (3, 32, 32), 5, channels=0)
    with pytest.raises(ConfigError, match="n_classes must be 0"):
        make_student("conv4", (3, 32, 32), -1)
    with pytest.raises(ShapeError, match=r"takes images \(B, 3, 32, 32\), got \(2, 3, 28, 28\)"):
        make_student("conv4", (3, 32, 32), 5)(torch.zeros(2, 3, 28, 28))
