import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests.reference import naive_distill as naive

from fewgen.data.imageset import ImageSet
from fewgen.distillation.students import make_student
from fewgen.distillation.teacher import ProtoNet, class_means, meta_train
from fewgen.encoders.image_transformer import DinoBackbone
from fewgen.errors import CheckpointError, ConfigError, DataError, ShapeError, TrainingError


def teacher_of(seed: int = 0, channels: int = 8) -> ProtoNet:
    return ProtoNet(make_student("conv4", (1, 16, 16), 0, channels=channels, seed=seed), batch_size=7)


def images_of(n_classes: int, each: int, seed: int = 0, noise: float = 40.0) -> ImageSet:
    """Each class is noise around its own picture."""
    rng = torch.Generator().manual_seed(seed)
    centres = torch.rand(n_classes, 1, 16, 16, generator=torch.Generator().manual_seed(99)) * 255
    labels = torch.arange(n_classes).repeat_interleave(each)
    x = centres[labels] + noise * torch.randn(len(labels), 1, 16, 16, generator=rng)
    return ImageSet(x.clamp(0, 255).to(torch.uint8), labels, tuple(f"c{i}" for i in range(n_classes)))


def test_prototypes_are_class_means_in_any_order() -> None:
    teacher, images = teacher_of(), images_of(4, 5)
    found = teacher.fit(images)
    features = teacher.embed(images).double().numpy()
    wanted = torch.from_numpy(naive.prototypes(features, images.labels.tolist(), 4))
    torch.testing.assert_close(found.vectors, wanted, rtol=0, atol=1e-12)
    assert found.counts.tolist() == [5, 5, 5, 5]
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    turned = teacher.fit(images.subset(order))
    torch.testing.assert_close(turned.vectors, found.vectors, rtol=0, atol=1e-12)
    # Negative control: other labels are other prototypes.
    other = teacher.fit(images, images.labels.flip(0))
    assert float((other.vectors - found.vectors).abs().max()) > 1e-3


def test_floats_and_an_image_set_give_the_same() -> None:
    teacher, images = teacher_of(), images_of(3, 4)
    a = teacher.fit(images)
    b = teacher.fit(images.floats(), images.labels)
    assert torch.equal(a.vectors, b.vectors)
    assert torch.equal(teacher.predict(images, a), teacher.predict(images.floats(), b))


@pytest.mark.parametrize(("scale", "bias"), [(10.0, 0.0), (3.0, -0.4)])
def test_logits_are_scaled_cosines(scale, bias) -> None:
    teacher, images = teacher_of(), images_of(4, 5)
    teacher.scale.data.fill_(scale)
    teacher.bias.data.fill_(bias)
    prototypes = teacher.fit(images)
    logits = teacher.logits(images, prototypes)
    features = teacher.embed(images).double().numpy()
    wanted = naive.cosine_logits(features, prototypes.vectors.numpy(), scale, bias)
    torch.testing.assert_close(logits.double(), torch.from_numpy(wanted), rtol=0, atol=1e-5)
    assert float(logits.min()) >= scale * (bias - 1) - 1e-5
    assert float(logits.max()) <= scale * (bias + 1) + 1e-5
    # Cosines do not see the length of a feature; inner products would.
    x = torch.randn(3, teacher.backbone.dim, dtype=torch.float64)
    torch.testing.assert_close(
        teacher.logits_of(5 * x, prototypes.vectors), teacher.logits_of(x, prototypes.vectors)
    )


def test_a_new_teacher_starts_at_10_and_0() -> None:
    teacher = teacher_of()
    assert (teacher.scale.item(), teacher.bias.item()) == (10.0, 0.0)
    assert teacher.scale.requires_grad
    assert teacher.bias.requires_grad


def test_angles_are_measured_from_the_centre() -> None:
    teacher, images = teacher_of(), images_of(4, 5)
    prototypes = teacher.fit(images)
    plain = teacher.logits(images, prototypes)
    teacher.centre_on(images)
    features = teacher.embed(images).double()
    middle = features.mean(dim=0).numpy()
    torch.testing.assert_close(teacher.centre.double(), torch.from_numpy(middle), rtol=1e-5, atol=1e-6)
    found = teacher.logits(images, teacher.fit(images))
    middle = teacher.centre.double().numpy()
    wanted = naive.cosine_logits(features.numpy() - middle, prototypes.vectors.numpy() - middle, 10.0, 0.0)
    torch.testing.assert_close(found.double(), torch.from_numpy(wanted), rtol=0, atol=1e-5)
    # What all features share no longer brings the logits together, and takes no part at all.
    assert float(found.std()) > 2 * float(plain.std())
    shift = torch.full((teacher.backbone.dim,), 7.0)
    teacher.centre += shift
    moved = teacher.logits_of(features + shift, prototypes.vectors + shift)
    torch.testing.assert_close(moved, found.double(), rtol=0, atol=1e-4)


def test_logits_do_not_depend_on_the_batch() -> None:
    teacher, images = teacher_of(), images_of(3, 5)
    prototypes = teacher.fit(images)
    whole = teacher.logits(images, prototypes)
    alone = torch.cat([teacher.logits(images.subset([i]), prototypes) for i in range(15)])
    assert torch.equal(whole, alone)


def test_looking_leaves_mode_and_running_means_alone() -> None:
    teacher, images = teacher_of().train(), images_of(2, 3)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    teacher.logits(images, teacher.fit(images))
    assert teacher.training
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())


def test_supports_that_do_not_fit() -> None:
    teacher, images = teacher_of(), images_of(3, 2)
    with pytest.raises(DataError, match=r"1 of 4 classes have none: \[3\]"):
        teacher.fit(images.floats(), images.labels, n_classes=4)
    with pytest.raises(DataError, match="labels reach from 0 to 2, but there are 2 classes"):
        teacher.fit(images.floats(), images.labels, n_classes=2)
    with pytest.raises(ShapeError, match=r"int64 of shape \(6,\), got torch.int64 \(5,\)"):
        teacher.fit(images.floats(), images.labels[:5])
    with pytest.raises(ShapeError, match="got None"):
        teacher.fit(images.floats())
    with pytest.raises(DataError, match="there are no supports"):
        teacher.fit(images.subset([]))
    teacher.backbone.body[0].weight.data.fill_(torch.nan)
    with pytest.raises(DataError, match="features of 6 of 6 images hold NaN"):
        teacher.fit(images)


def shapes_of(n_classes: int, each: int) -> ImageSet:
    """Each class is a coarse pattern under noise, in light that varies from image to image."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(n_classes, 1, 4, 4, generator=rng) * 255
    centres = torch.nn.functional.interpolate(coarse, (16, 16), mode="bilinear")
    labels = torch.arange(n_classes).repeat_interleave(each)
    x = centres[labels] + 80 * torch.randn(len(labels), 1, 16, 16, generator=rng)
    x = x + 60 * torch.randn(len(labels), 1, 1, 1, generator=rng)
    return ImageSet(x.clamp(0, 255).to(torch.uint8), labels, tuple(f"c{i}" for i in range(n_classes)))


def test_meta_training_helps_with_classes_never_seen() -> None:
    images = shapes_of(60, 8)
    base, new = (images.select_classes([f"c{i}" for i in part]) for part in (range(50), range(50, 60)))
    teacher, fresh = teacher_of(channels=16), teacher_of(channels=16)
    seen = []
    rows = meta_train(
        teacher,
        base,
        n_way=4,
        n_shot=2,
        n_query=4,
        episodes=60,
        lr=5e-3,
        seed=3,
        progress=lambda *call: seen.append(call),
    )
    assert [row["episode"] for row in rows] == [50, 60]
    assert seen == [(50, 60, rows[0]["loss"]), (60, 60, rows[1]["loss"])]
    assert rows[1]["accuracy"] > 0.75
    assert not teacher.training
    assert teacher.scale.item() != 10.0
    shots = torch.tensor([i % 8 < 4 for i in range(80)])

    def right(judge: ProtoNet) -> float:
        """10 classes, 4 supports and 4 queries each."""
        found = judge.predict(new.subset(~shots), judge.fit(new.subset(shots)))
        return float((found == new.labels[~shots]).double().mean())

    assert right(teacher) > right(fresh) + 0.2


def test_meta_training_repeats_itself() -> None:
    images = images_of(6, 4)
    found = []
    for seed in (3, 3, 4):
        teacher = teacher_of()
        rows = meta_train(teacher, images, n_way=3, n_shot=1, n_query=2, episodes=4, lr=1e-2, seed=seed)
        found.append((rows, torch.cat([p.detach().flatten() for p in teacher.parameters()])))
    assert found[0][0] == found[1][0] != found[2][0]
    assert torch.equal(found[0][1], found[1][1])
    assert not torch.equal(found[0][1], found[2][1])


def test_meta_training_refuses_what_cannot_work() -> None:
    images = images_of(3, 4)
    with pytest.raises(DataError, match="n_way = 5 classes are needed"):
        meta_train(teacher_of(), images, episodes=1, n_shot=1, n_query=1)
    with pytest.raises(ConfigError, match="episodes >= 1"):
        meta_train(teacher_of(), images, n_way=2, episodes=0)
    broken = teacher_of()
    broken.scale.data.fill_(torch.nan)
    with pytest.raises(TrainingError, match="became nan at episode 1"):
        meta_train(broken, images, n_way=2, n_shot=1, n_query=1, episodes=1)


def test_gradients_reach_the_backbone_through_prototypes() -> None:
    features = torch.randn(6, 5, requires_grad=True)
    class_means(features, torch.tensor([0, 0, 1, 1, 1, 1]), 2).vectors.sum().backward()
    torch.testing.assert_close(features.grad[:, 0], torch.tensor([0.5, 0.5, 0.25, 0.25, 0.25, 0.25]))


def test_a_saved_teacher_says_the_same(tmp_path) -> None:
    teacher, images = teacher_of(seed=4), images_of(3, 4)
    teacher.scale.data.fill_(7.0)
    teacher.save(tmp_path / "teacher.safetensors")
    loaded = ProtoNet.load(tmp_path / "teacher.safetensors")
    assert torch.equal(loaded.logits(images, loaded.fit(images)), teacher.logits(images, teacher.fit(images)))
    teacher.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "teacher.safetensors").read_bytes()


def test_a_centre_is_kept_and_files_of_before_have_none(tmp_path) -> None:
    teacher, images = teacher_of().eval(), images_of(3, 4)
    prototypes = teacher.fit(images)
    plain = teacher.logits(images, prototypes)
    teacher.centre_on(images)
    teacher.save(tmp_path / "t.safetensors")
    assert torch.equal(ProtoNet.load(tmp_path / "t.safetensors").centre, teacher.centre)
    with safe_open(tmp_path / "t.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys() if name != "centre"}  # noqa: SIM118
        metadata = {key: text for key, text in file.metadata().items() if key != "digest"}
        save_file(tensors, tmp_path / "old.safetensors", metadata)
    old = ProtoNet.load(tmp_path / "old.safetensors")
    assert not old.centre.any()
    assert torch.equal(old.logits(images, prototypes), plain)


def test_other_files_are_refused(tmp_path) -> None:
    path = tmp_path / "teacher.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="not a teacher written by fewgen"):
        ProtoNet.load(path)
    about = {"backbone": {"name": "conv4", "image_shape": [1, 16, 16], "channels": 4}, "batch_size": 8}
    meta = {"format": "fewgen-teacher", "format_version": "1", "about": json.dumps(about)}
    save_file({"a": torch.zeros(2)}, path, metadata=meta)
    with pytest.raises(CheckpointError, match="does not fit"):
        ProtoNet.load(path)
    save_file({"a": torch.zeros(2)}, path, metadata={**meta, "format_version": "2"})
    with pytest.raises(CheckpointError, match="teacher format 2"):
        ProtoNet.load(path)
    about["backbone"]["name"] = "vgg"
    save_file({"a": torch.zeros(2)}, path, metadata={**meta, "about": json.dumps(about)})
    with pytest.raises(CheckpointError, match='backbone "vgg"'):
        ProtoNet.load(path)
    teacher_of().save(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="truncated"):
        ProtoNet.load(path)


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    """A tiny random image transformer, as `save_pretrained` writes it."""
    from transformers import ViTConfig, ViTModel

    folder = tmp_path_factory.mktemp("dino")
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ViTModel(ViTConfig(**small, image_size=32, patch_size=8), add_pooling_layer=False)
        for parameter in model.parameters():
            parameter.data.add_(0.3 * torch.randn(parameter.shape))
    model.eval().save_pretrained(folder)
    preparation = {"image_mean": [0.5] * 3, "image_std": [0.2] * 3, "size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(preparation))
    return folder


def test_a_teacher_on_dino_learns_and_is_kept(dino, tmp_path) -> None:
    from fewgen.encoders.image_transformer import TransformerFeatures

    images = images_of(4, 4)
    backbone = DinoBackbone(dino)
    torch.testing.assert_close(
        backbone.features(images.floats()).detach(), TransformerFeatures("dino", dino).features(images)
    )
    teacher = ProtoNet(backbone)
    before = next(backbone.parameters()).clone()
    meta_train(teacher, images, n_way=2, n_shot=1, n_query=2, episodes=2)
    assert not torch.equal(next(backbone.parameters()), before)
    teacher.save(tmp_path / "teacher.safetensors")
    with pytest.raises(ConfigError, match="This teacher is on DINO"):
        ProtoNet.load(tmp_path / "teacher.safetensors")
    loaded = ProtoNet.load(tmp_path / "teacher.safetensors", DinoBackbone(dino))
    prototypes = teacher.fit(images)
    torch.testing.assert_close(loaded.fit(images).vectors, prototypes.vectors)
    assert teacher.logits(images, prototypes).shape == (16, 4)
