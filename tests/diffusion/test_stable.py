"""Loading a Stable Diffusion: a tiny random one, written by diffusers with all its parts."""

import json
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fewgen.diffusion.stable import load_stable_diffusion
from fewgen.errors import CheckpointError, ConfigError, MissingDependencyError, ShapeError, TextError

LENGTH = 16


def write_tokenizer(folder):
    """CLIP's byte-level words in the files of the hub, with the merges that "a photo of a cat" needs."""
    letters = [chr(i) for i in range(33, 127)]
    merges = [
        ("a", "t</w>"),
        ("c", "at</w>"),
        ("o", "f</w>"),
        ("p", "h"),
        ("o", "t"),
        ("ph", "ot"),
        ("phot", "o</w>"),
    ]
    words = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    settings = {**special, "pad_token": "<|endoftext|>", "model_max_length": LENGTH}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**settings, "tokenizer_class": "CLIPTokenizer"})
    )
    (folder / "special_tokens_map.json").write_text(json.dumps({**special, "pad_token": "<|endoftext|>"}))
    return len(words)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Folder of a tiny Stable Diffusion, and diffusers' own pipeline of the same weights."""
    place = tmp_path_factory.mktemp("stable")
    n_words = write_tokenizer(place / "hub")
    torch.manual_seed(0)
    theirs = StableDiffusionPipeline(
        tokenizer=CLIPTokenizer.from_pretrained(str(place / "hub")),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=n_words, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                num_attention_heads=2, max_position_embeddings=LENGTH, projection_dim=16,
                bos_token_id=n_words - 2, eos_token_id=n_words - 1, pad_token_id=n_words - 1,
            )
        ),
        unet=UNet2DConditionModel(
            sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
            cross_attention_dim=16, attention_head_dim=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ),
        vae=AutoencoderKL(
            block_out_channels=(8, 8), norm_num_groups=4, sample_size=16,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        ),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
            set_alpha_to_one=False, timestep_spacing="trailing", steps_offset=1,
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    theirs.set_progress_bar_config(disable=True)
    theirs.save_pretrained(str(place / "model"), safe_serialization=True)
    return SimpleNamespace(folder=place / "model", hub=place / "hub", theirs=theirs, n_words=n_words)


@pytest.fixture(scope="module")
def pipe(written):
    return load_stable_diffusion(written.folder)


@pytest.fixture
def copy(written, tmp_path):
    """Folder that a test may damage."""
    return shutil.copytree(written.folder, tmp_path / "copy")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_shapes_come_from_the_folder_and_everything_is_frozen(pipe):
    assert (pipe.latent_shape, pipe.image_shape) == ((4, 8, 8), (3, 16, 16))
    assert pipe.context_shape == (LENGTH, 16)
    assert not any(p.requires_grad for p in pipe.parameters())
    assert not pipe.training
    assert len(pipe.schedule) == 1000


def test_images_go_through_the_mean_of_the_posterior(pipe, written):
    x = normal(2, 3, 16, 16).clamp(-1, 1)
    z = pipe.encode(x)
    with torch.no_grad():
        expected = written.theirs.vae.encode(x).latent_dist.mean * 0.18215
        back = written.theirs.vae.decode(expected / 0.18215).sample.clamp(-1, 1)
    torch.testing.assert_close(z, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(pipe.decode(z), back, rtol=1e-4, atol=1e-5)
    assert torch.equal(z, pipe.encode(x))
    with pytest.raises(ShapeError, match=r"\(B, 3, 16, 16\)"):
        pipe.encode(normal(2, 3, 32, 32))


@pytest.mark.parametrize("prompt", ["a photo of a cat", "", "Cat, of A xyz"])
def test_words_become_what_diffusers_makes_of_them(pipe, written, prompt):
    ids = written.theirs.tokenizer(
        prompt, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
    assert torch.equal(pipe.tokens([prompt]), ids)
    expected, _ = written.theirs.encode_prompt(prompt, "cpu", 1, False)
    with torch.no_grad():
        torch.testing.assert_close(pipe.embed([prompt]), expected, rtol=1e-5, atol=1e-6)


def test_a_placeholder_equals_a_token_added_to_the_table(pipe, written):
    rows = normal(2, 16, seed=3) * 0.1
    tokenizer = CLIPTokenizer.from_pretrained(str(written.hub))
    tokenizer.add_tokens(["<one>", "<two>"])
    larger = CLIPTextModel.from_pretrained(str(written.folder / "text_encoder"))
    larger.resize_token_embeddings(written.n_words + 2)
    with torch.no_grad():
        larger.get_input_embeddings().weight[-2:] = rows
        ids = tokenizer(
            "a photo of a <one> cat <two>", padding="max_length", max_length=LENGTH, return_tensors="pt"
        )
        assert {written.n_words, written.n_words + 1} <= set(ids.input_ids[0].tolist())
        expected = larger(ids.input_ids).last_hidden_state
        found = pipe.embed(["a photo of a <one> cat <two>"], {"<one>": rows[0], "<two>": rows[1]})
        both = pipe.embed(["a photo of a <new>"], {"<new>": rows})
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert pipe.tokens(["a <new>"], {"<new>": rows})[0, 2:4].tolist() == [
        written.n_words,
        written.n_words + 1,
    ]
    assert not torch.allclose(both[0], found[0])
    with torch.no_grad():  # nothing of it stays behind
        torch.testing.assert_close(
            pipe.embed(["a cat"]), written.theirs.encode_prompt("a cat", "cpu", 1, False)[0]
        )


def test_gradients_reach_the_placeholder_and_nothing_else(pipe):
    row = pipe.word_embedding("cat").requires_grad_()
    context = pipe.embed(["a photo of a #object"], {"#object": row})
    with torch.no_grad():
        torch.testing.assert_close(context, pipe.embed(["a photo of a cat"]))
    z, t = normal(1, 4, 8, 8), torch.tensor([500])
    pipe.eps(z, t, context).square().sum().backward()
    assert float(row.grad.abs().sum()) > 0
    assert all(p.grad is None for p in pipe.parameters())
    with pytest.raises(ConfigError, match="3 tokens"):
        pipe.word_embedding("xyz")
    with pytest.raises(TextError, match="this model has 16"):
        pipe.embed(["cat " * 15])


def test_noise_and_a_step_equal_those_of_diffusers(pipe, written):
    z, t = normal(2, 4, 8, 8), torch.tensor([999, 39])
    with torch.no_grad():
        context = pipe.embed(["a photo of a cat", "a cat"])
        expected = written.theirs.unet(z, t, encoder_hidden_states=context).sample
        found = pipe.eps(z, t, context)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    scheduler = written.theirs.scheduler
    scheduler.set_timesteps(25)
    for row, (a, b) in enumerate([(999, 959), (39, None)]):
        step = scheduler.step(expected[row], a, z[row], eta=0.0).prev_sample
        torch.testing.assert_close(pipe.schedule.move(z[row], found[row], a, b), step, rtol=1e-5, atol=1e-5)


def test_sampling_equals_the_whole_pipeline_of_diffusers(pipe, written):
    z = normal(2, 4, 8, 8)
    expected = written.theirs(
        ["a photo of a cat"] * 2, latents=z, num_inference_steps=5, guidance_scale=3.0, output_type="latent"
    ).images
    with torch.no_grad():
        cond, uncond = pipe.embed(["a photo of a cat"]), pipe.embed([""])
    found = pipe.sample(z, cond, uncond, 3.0, 5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - pipe.sample(z, cond, uncond, 1.0, 5)).abs().max() > 1e-3
    assert pipe.decode(found).shape == (2, 3, 16, 16)


def test_half_precision_keeps_latents_and_words_in_float32(written, pipe):
    half = load_stable_diffusion(written.folder, attention_slicing=True)
    half.place("cpu", torch.bfloat16)
    assert half.model_id == pipe.model_id
    z, t = normal(1, 4, 8, 8), torch.tensor([500])
    with torch.no_grad():
        context = half.embed(["a cat"])
        found = half.eps(z, t, context)
        assert (context.dtype, found.dtype, half.decode(z).dtype) == (torch.float32,) * 3
        torch.testing.assert_close(found, pipe.eps(z, t, context), rtol=0.1, atol=0.1)
    assert half.encode(normal(1, 3, 16, 16)).dtype == torch.float32


def test_attention_in_slices_gives_the_same_noise_and_gradients(written, pipe):
    sliced = load_stable_diffusion(written.folder, attention_slicing=True)
    kinds = [
        {type(processor).__name__ for processor in p.unet.attn_processors.values()} for p in (sliced, pipe)
    ]
    assert all("Sliced" in kind for kind in kinds[0])
    assert not any("Sliced" in kind for kind in kinds[1])
    z, t, found = normal(2, 4, 8, 8), torch.tensor([999, 300]), []
    for each in (sliced, pipe):
        row = each.word_embedding("cat").requires_grad_()
        context = each.embed(["a photo of a #object"], {"#object": row}).expand(2, -1, -1)
        eps = each.eps(z, t, context)
        found.append((eps.detach(), *torch.autograd.grad(eps.square().sum(), row)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert float(found[0][1].abs().max()) > 0


def test_velocity_models_give_noise(copy, pipe):
    edit(copy / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    other = load_stable_diffusion(copy)
    z, t = normal(1, 4, 8, 8), torch.tensor([500])
    with torch.no_grad():
        context = pipe.embed(["a cat"])
        v = pipe.eps(z, t, context)
        torch.testing.assert_close(other.eps(z, t, context), pipe.schedule.noise_of_velocity(z, v, t))
    assert other.model_id != pipe.model_id


def test_model_id_is_that_of_the_content(copy, pipe):
    edit(copy / "unet" / "config.json", _diffusers_version="9.9")
    assert load_stable_diffusion(copy).model_id == pipe.model_id
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.bias"] += 1e-3
    save_file(tensors, file, metadata={"format": "pt"})
    assert load_stable_diffusion(copy).model_id != pipe.model_id


def test_tokenizer_files_of_the_hub_serve_as_well(copy, written, pipe):
    shutil.rmtree(copy / "tokenizer")
    shutil.copytree(written.hub, copy / "tokenizer")
    prompts = ["a photo of a cat", "Cat xyz", ""]
    assert torch.equal(load_stable_diffusion(copy).tokens(prompts), pipe.tokens(prompts))


def test_every_missing_part_is_named_at_once(copy):
    shutil.rmtree(copy / "vae")
    (copy / "text_encoder" / "model.safetensors").unlink()
    (copy / "text_encoder" / "pytorch_model.bin").write_bytes(b"\x80")
    (copy / "scheduler" / "scheduler_config.json").unlink()
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    for file in ("tokenizer.json", "vocab.json", "merges.txt"):
        (copy / "tokenizer" / file).unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match="5 problems") as caught:
        load_stable_diffusion(copy)
    for needed in (
        "the folder vae is missing",
        "model.safetensors is missing; pytorch_model.bin is a pickle",
        "scheduler_config.json",
        "truncated",
        "tokenizer.json is missing",
    ):
        assert needed in str(caught.value)
    with pytest.raises(CheckpointError, match="no folder"):
        load_stable_diffusion(copy / "nowhere")


def test_a_missing_weight_is_not_filled_with_chance(copy):
    for part, name in [("unet", "diffusion_pytorch_model"), ("text_encoder", "model")]:
        file = copy / part / f"{name}.safetensors"
        tensors = load_file(file)
        whole = file.read_bytes()
        tensors.pop(sorted(tensors)[0])
        save_file(tensors, file, metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=part):
            load_stable_diffusion(copy)
        file.write_bytes(whole)
    load_stable_diffusion(copy)


def test_weights_that_are_not_finite_are_named(copy):
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.bias"][0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r'unet": the weight "conv_in.bias" is not finite'):
        load_stable_diffusion(copy)


def test_weights_in_parts_and_halves(copy, pipe):
    part = copy / "unet"
    whole = part / "diffusion_pytorch_model.safetensors"
    tensors = load_file(whole)
    whole.rename(part / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(CheckpointError, match=r"fp16.safetensors is there: give it this name"):
        load_stable_diffusion(copy)
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    of = {name: names[i % 2] for i, name in enumerate(sorted(tensors))}
    for name in names:
        save_file({k: v for k, v in tensors.items() if of[k] == name}, part / name, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": of}
    (part / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    found = load_stable_diffusion(copy).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in pipe.state_dict().items())
    (part / names[1]).unlink()
    with pytest.raises(CheckpointError, match="unet"):
        load_stable_diffusion(copy)


def test_a_tokenizer_without_padding_is_refused(copy, written):
    shutil.rmtree(copy / "tokenizer")
    shutil.copytree(written.hub, copy / "tokenizer")
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        edit(copy / "tokenizer" / file, pad_token=None)
    with pytest.raises(CheckpointError, match="tokenizer.* has no pad_token_id"):
        load_stable_diffusion(copy)


def test_attention_weights_of_early_autoencoders_are_read(copy, pipe):
    # The published files of Stable Diffusion 1 still have these names.
    early = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    renamed = {}
    for name, tensor in load_file(file).items():
        for new, old in early.items():
            name = name.replace(f".attentions.0.{new}.", f".attentions.0.{old}.")
        renamed[name] = tensor
    assert any("proj_attn" in name for name in renamed)
    save_file(renamed, file, metadata={"format": "pt"})
    x = normal(1, 3, 16, 16).clamp(-1, 1)
    assert torch.equal(load_stable_diffusion(copy).encode(x), pipe.encode(x))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "pure noise"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "epsilon or v_prediction"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "sigmoid"}, "sigmoid"),
        ("scheduler/scheduler_config.json", {"beta_end": 2.0}, "no noise schedule"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "SDXL"),
        ("unet/config.json", {"in_channels": 9}, "inpainting"),
        ("unet/config.json", {"cross_attention_dim": 32}, "width 32, its text_encoder gives 16"),
        ("unet/config.json", {"sample_size": None}, "sample_size"),
        ("unet/config.json", {"sample_size": 0}, "sample_size"),
        ("unet/config.json", {"sample_size": [8, None]}, "sample_size"),
        ("unet/config.json", {"sample_size": True}, "sample_size"),
        ("vae/config.json", {"scaling_factor": 0}, "scaling_factor 0"),
        ("vae/config.json", {"scaling_factor": None}, "scaling_factor None"),
        ("vae/config.json", {"shift_factor": 0.1}, "shift_factor, which only later models"),
        ("vae/config.json", {"latents_mean": [0.1] * 4}, "latents_mean, which only later models"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 0}, "no noise schedule"),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1, "x"]}, "no noise schedule"),
    ],
)
def test_other_kinds_of_models_are_refused(copy, file, changes, message):
    edit(copy / file, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_stable_diffusion(copy)


def test_missing_libraries_name_the_extra(written, monkeypatch):
    for library in ("transformers", "diffusers"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, library, None)
            with pytest.raises(MissingDependencyError, match=r"fewgen\[diffusion\]"):
                load_stable_diffusion(written.folder)
