import json
import shutil
import sys

import pytest
import torch

from fewgen.encoders.text_transformer import (
    MINILM_SHA256,
    CLIPTextEncoder,
    MiniLMEncoder,
    _offline_minilm,
    check_digest,
)
from fewgen.errors import MissingDependencyError, TextError
from fewgen.text import make_text_encoder


@pytest.fixture(scope="module")
def minilm():
    return make_text_encoder("minilm")


def test_minilm_knows_what_words_mean(minilm):
    assert (minilm.dim, minilm.has_meaning, minilm.path) == (384, True, None)
    sneaker, shoe, banana = minilm.encode(["sneaker", "shoe", "banana"])
    assert sneaker @ shoe > 0.5
    assert sneaker @ shoe > sneaker @ banana + 0.2
    # Stored with transformers 5.23.0 and torch 2.13.0 (CPU): the model card's own recipe.
    assert (sneaker @ shoe).item() == pytest.approx(0.6747, abs=2e-3)
    assert (sneaker @ banana).item() == pytest.approx(0.3453, abs=2e-3)


def test_minilm_vectors_do_not_depend_on_their_company(minilm):
    long = "a very long description of a pair of shoes " * 3
    together = minilm.encode(["sneaker", long, "dog"])
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(together[:1], minilm.encode(["sneaker"]), atol=1e-5, rtol=1e-4)
    assert minilm.encode([]).shape == (0, 384)


def test_minilm_is_the_recipe_of_the_model_card(minilm):
    tokens = minilm._tokenizer(["ankle boot"], return_tensors="pt")
    with torch.no_grad():
        hidden = minilm._model(**tokens).last_hidden_state[0]
    expected = hidden.mean(0) / hidden.mean(0).norm()  # one text alone has no padding
    torch.testing.assert_close(minilm.encode(["ankle boot"])[0], expected, atol=1e-5, rtol=1e-4)


def test_other_weights_are_refused_before_use(tmp_path):
    for file in _offline_minilm().glob("*.json"):
        shutil.copy(file, tmp_path)
    with pytest.raises(TextError, match=r"no model.safetensors"):
        MiniLMEncoder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(TextError, match=f"all-MiniLM-L6-v2 has {MINILM_SHA256}"):
        MiniLMEncoder(tmp_path)
    with pytest.raises(TextError, match="readable MiniLM"):
        MiniLMEncoder(tmp_path, sha256=None)


def test_digest_of_a_known_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    check_digest(path, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")


def test_missing_pieces_name_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"fewgen\[text\]"):
        make_text_encoder("minilm")
    monkeypatch.setitem(sys.modules, "transformers", None)
    for name in ("minilm", "clip"):
        with pytest.raises(MissingDependencyError, match=r"fewgen\[text\]"):
            make_text_encoder(name, path="somewhere")


def test_a_folder_or_hub_name_that_does_not_exist_is_explained():
    with pytest.raises(TextError, match="no folder ./nowhere"):
        make_text_encoder("minilm", path="./nowhere")
    with pytest.raises(TextError, match="could not be fetched"):
        make_text_encoder("minilm", path="nobody/nothing")  # the tests have no network
    with pytest.raises(TextError, match="needs a path"):
        make_text_encoder("clip")


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    """A CLIP text model of a few kilobytes with random weights."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer.from_pretrained(str(folder)).save_pretrained(str(folder))
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=16,
        intermediate_size=32,
        projection_dim=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=len(tokens) - 2,
        eos_token_id=len(tokens) - 1,
        pad_token_id=len(tokens) - 1,
    )
    CLIPTextModelWithProjection(config).save_pretrained(str(folder))
    return folder


def test_clip_encodes_through_the_projection(tiny_clip):
    encoder = make_text_encoder("clip", path=tiny_clip)
    assert isinstance(encoder, CLIPTextEncoder)
    assert (encoder.dim, encoder.has_meaning, encoder.path) == (12, True, str(tiny_clip))
    vectors = encoder.encode(["dog", "a much longer text than the window allows", "cat"])
    assert vectors.shape == (3, 12)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(vectors[:1], encoder.encode(["dog"]), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(vectors[0], vectors[2])


def test_a_folder_without_clip_is_explained(tmp_path):
    with pytest.raises(TextError, match="readable CLIP"):
        make_text_encoder("clip", path=tmp_path)
