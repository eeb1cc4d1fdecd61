import json
import shutil
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fewgen.data.imageset import ImageSet
from fewgen.encoders.image_transformer import TransformerFeatures
from fewgen.encoders.named import make_image_encoder
from fewgen.errors import CheckpointError, ConfigError, MissingDependencyError

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]


def write_preparation(folder, **values):
    values = {"image_mean": MEAN, "image_std": STD, **values}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Tiny random models, as `save_pretrained` writes them."""
    from transformers import (
        CLIPConfig,
        CLIPModel,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
        Dinov2Config,
        Dinov2Model,
        ViTConfig,
        ViTModel,
    )

    root = tmp_path_factory.mktemp("models")
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    vision = {**small, "image_size": 32, "patch_size": 8, "projection_dim": 12}
    text = {**small, "vocab_size": 50, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1}
    dinov2 = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = {
            "vit": ViTModel(ViTConfig(**small, image_size=32, patch_size=8), add_pooling_layer=False),
            "dinov2": Dinov2Model(Dinov2Config(**dinov2)),
            "clip": CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)),
            "clip_vision": CLIPVisionModelWithProjection(CLIPVisionConfig(**vision)),
        }
        for name, model in made.items():
            for parameter in model.parameters():  # the small values of a fresh model hide differences
                parameter.data.add_(0.3 * torch.randn(parameter.shape))
            model.eval().save_pretrained(root / name)
    write_preparation(root / "vit", size={"height": 32, "width": 32}, do_resize=True)
    # DINOv2's way: resize to the larger number, cut out the smaller one; here, to the smaller one at once.
    write_preparation(
        root / "dinov2",
        size={"shortest_edge": 64},
        crop_size={"height": 42, "width": 42},
        do_center_crop=True,
    )
    write_preparation(root / "clip", size=32, crop_size=32)
    write_preparation(root / "clip_vision", size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return root, made


def noise_images(n, size, channels=3, seed=0):
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, channels, size, size), generator=rng, dtype=torch.uint8)
    return ImageSet(images, torch.zeros(n, dtype=torch.int64), ("all",))


def normalised(images):
    """By hand, in NumPy, for images that already have the right size."""
    x = images.images.numpy().astype(np.float64) / 255
    return torch.tensor((x - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]).float()


@pytest.mark.parametrize(
    ("name", "kind", "side", "dim"),
    [
        ("vit", "dino", 32, 16),
        ("dinov2", "dino", 42, 16),
        ("clip", "clip", 32, 12),
        ("clip_vision", "clip", 32, 12),
    ],
)
def test_features_are_those_of_the_model(models, name, kind, side, dim):
    root, made = models
    extractor = TransformerFeatures(kind, root / name, batch_size=4)
    images = noise_images(5, side)
    with torch.no_grad():
        if kind == "dino":
            expected = made[name](pixel_values=normalised(images)).last_hidden_state[:, 0]
        elif name == "clip":
            vision = made[name].vision_model(pixel_values=normalised(images)).pooler_output
            expected = made[name].visual_projection(vision)
        else:
            expected = made[name](pixel_values=normalised(images)).image_embeds
    if kind == "clip":
        expected = expected / expected.norm(dim=1, keepdim=True)
    found = extractor.features(images)
    assert (extractor.dim, found.shape, found.dtype) == (dim, (5, dim), torch.float32)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert float(found.std(dim=0).min()) > 0
    assert extractor.describe(images).predictions is None
    record = extractor.record()
    assert record["resize"] == f"antialiased bicubic, to {side} x {side}"
    assert record["model"] == name
    assert [len(v) for v in record["sha256"].values()] == [64]
    assert str(root) not in json.dumps(record)


def test_an_image_alone_decides_its_features(models):
    extractor = TransformerFeatures("dino", models[0] / "vit", batch_size=4)
    images = noise_images(6, 20)
    found = extractor.features(images)
    order = torch.tensor([5, 3, 0, 1, 4, 2])
    torch.testing.assert_close(extractor.features(images.subset(order)), found[order], atol=1e-6, rtol=0)
    torch.testing.assert_close(extractor.features(images.subset([2])), found[2:3], atol=1e-6, rtol=0)
    assert extractor.features(images.subset([])).shape == (0, 16)
    grey = noise_images(2, 20, channels=1)
    colour = ImageSet(grey.images.repeat(1, 3, 1, 1), grey.labels, grey.class_names)
    torch.testing.assert_close(extractor.features(grey), extractor.features(colour), atol=1e-6, rtol=0)


def test_resizing_is_antialiased_and_stays_in_range(models):
    extractor = TransformerFeatures("dino", models[0] / "vit")
    # A checkerboard of single pixels, four times too large: without antialiasing it stays black and white.
    board = (torch.arange(128)[:, None] + torch.arange(128)) % 2 * 255
    prepared = extractor.prepare(board.to(torch.uint8).expand(1, 3, 128, 128))
    grey = prepared * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    assert float((grey[:, :, 2:-2, 2:-2] - 0.5).abs().max()) < 0.01
    edge = torch.zeros(1, 3, 12, 12, dtype=torch.uint8)
    edge[..., 6:] = 255
    grey = extractor.prepare(edge) * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    assert float(grey.min()) >= -1e-6
    assert float(grey.max()) <= 1 + 1e-6


def copied(models, name, tmp_path):
    return shutil.copytree(models[0] / name, tmp_path / name)


def test_missing_parts_are_named(models, tmp_path, monkeypatch):
    folder = copied(models, "vit", tmp_path)
    weights = load_file(folder / "model.safetensors")
    name = next(n for n in weights if n.endswith("intermediate.dense.weight") or "fc1.weight" in n)
    kept = {k: v for k, v in weights.items() if k != name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"not hold the whole dino model: 1 tensors are missing"):
        TransformerFeatures("dino", folder)
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="not hold a readable dino model"):
        TransformerFeatures("dino", folder)
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="no safetensors weights, and no other kind is read"):
        TransformerFeatures("dino", folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"lacks preprocessor_config.json"):
        TransformerFeatures("dino", folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r'config.json" is not valid JSON'):
        TransformerFeatures("dino", folder)
    with pytest.raises(ConfigError, match=r"no folder .*absent with a dino model.*facebook/dinov2-small"):
        TransformerFeatures("dino", tmp_path / "absent")

    def unreachable(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(ConfigError, match=r"could not be fetched .*\(OSError\)"):
        TransformerFeatures("clip", "nobody/nothing")


def test_other_architectures_are_refused(models, tmp_path):
    with pytest.raises(
        CheckpointError, match=r'type "clip", but the features dino take vit.*Use "clip:" instead'
    ):
        TransformerFeatures("dino", models[0] / "clip")
    with pytest.raises(CheckpointError, match=r'type "vit".*Use "dino:" instead'):
        TransformerFeatures("clip", models[0] / "vit")
    with pytest.raises(ConfigError, match='Did you mean "clip"'):
        TransformerFeatures("clipp", models[0] / "clip")
    folder = copied(models, "vit", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    # Code that comes with a model is never asked for, let alone run.
    config["auto_map"] = {"AutoModel": "evil.Model"}
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    (folder / "config.json").write_text(json.dumps(config))
    assert TransformerFeatures("dino", folder).dim == 16
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(CheckpointError, match=r'type "bert".*such as facebook/dinov2-small'):
        TransformerFeatures("dino", folder)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("vit", {"size": 48}, "asks for 48 pixels, but the model takes 32"),
        (
            "dinov2",
            {"size": 40, "do_center_crop": False},
            "40 pixels are not a multiple of the patch size 14",
        ),
        ("vit", {"size": {"longest_edge": 32}}, "gives no size"),
        ("vit", {"size": 32, "image_mean": [0.5]}, '"image_mean" must be three numbers'),
        ("vit", {"size": 32, "image_std": [0.5, 0.0, 0.5]}, '"image_std" must be three numbers'),
    ],
)
def test_preparation_must_fit_the_model(models, tmp_path, name, change, message):
    folder = copied(models, name, tmp_path)
    write_preparation(folder, **change)
    with pytest.raises(CheckpointError, match=message):
        TransformerFeatures("dino", folder)


def test_by_name(models):
    images = noise_images(3, 32)
    extractor = make_image_encoder(f"clip:{models[0] / 'clip'}", images)
    assert extractor.name == "clip"
    torch.testing.assert_close(extractor.features(images).norm(dim=1), torch.ones(3))


def test_without_transformers_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match=r"fewgen\[text\]"):
        TransformerFeatures("dino", tmp_path)
