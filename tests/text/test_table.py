import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewgen.encoders.glove import GloveEncoder
from fewgen.errors import CheckpointError, ConfigError, ShapeError, TextError
from fewgen.text import ClassText, Standardizer, make_text_encoder, split_phrases

FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


@pytest.fixture
def encoder(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("cat 1 2 3\ndog 4 5 7\nkitten 1 2 5\ntop -1 0 1\ntshirt 3 3 1\nfeline 1 2 3\n")
    return GloveEncoder(path)


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("T-shirt/top", ["t-shirt", "top"]),
        ("Ankle boot", ["ankle boot"]),
        ("ankle_boot", ["ankle boot"]),
        ("goldfish, Carassius auratus", ["goldfish", "carassius auratus"]),
        ("cat; cat | dog", ["cat", "dog"]),
    ],
)
def test_split_phrases(text, phrases):
    assert split_phrases(text) == phrases


@pytest.mark.parametrize("text", ["", " / ", "_"])
def test_a_name_without_words_is_refused(text):
    with pytest.raises(TextError, match="contains no word"):
        split_phrases(text)


@given(st.text(min_size=1, max_size=20))
def test_splitting_again_changes_nothing(text):
    try:
        phrases = split_phrases(text)
    except TextError:
        return
    assert all(phrase == phrase.strip() and phrase for phrase in phrases)
    again = [part for phrase in phrases for part in split_phrases(phrase)]
    assert list(dict.fromkeys(again)) == phrases


def test_standardizer_centres_scales_and_goes_back():
    vectors = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)) * 3 + 2
    standardizer = Standardizer.fit(vectors)
    out = standardizer(vectors)
    torch.testing.assert_close(out.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    assert out.square().mean().item() == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(standardizer.inverse(out), vectors)
    with pytest.raises(ShapeError, match="have 4 numbers"):
        standardizer(vectors[:, :4])


def test_standardizer_of_one_class_or_equal_rows_stays_finite():
    one = Standardizer.fit(torch.tensor([[3.0, 4.0]]))
    assert one(torch.tensor([[3.0, 4.0]])).square().mean().item() == pytest.approx(1.0)
    for vectors in (torch.ones(3, 2), torch.zeros(1, 2)):
        assert Standardizer.fit(vectors)(vectors).isfinite().all()
    with pytest.raises(ShapeError):
        Standardizer.fit(torch.zeros(0, 2))


def test_build_averages_the_phrases_of_a_class(encoder):
    table = ClassText.build(encoder, ["T-shirt/top", "Dog"])
    assert table.class_names == ("T-shirt/top", "Dog")
    assert table.phrases == (("t-shirt", "top"), ("dog",))
    raw = torch.tensor([[1.0, 1.5, 1.0], [4.0, 5.0, 7.0]])
    torch.testing.assert_close(table.standardizer.inverse(table.vectors), raw)
    torch.testing.assert_close(table.encode(["top", "Dog"], encoder)[1], table.vectors[1])
    torch.testing.assert_close(
        table.standardizer.inverse(table.encode(["cat dog"], encoder)), torch.tensor([[2.5, 3.5, 5.0]])
    )


def test_phrases_replace_class_names(encoder):
    table = ClassText.build(encoder, ["tabby", "Dog"], phrases={"tabby": "cat, kitten"})
    assert table.phrases == (("cat", "kitten"), ("dog",))
    listed = ClassText.build(encoder, ["tabby", "Dog"], phrases={"tabby": ["cat", "kitten"]})
    assert torch.equal(table.vectors, listed.vectors)
    # A class name gives the row of the table, although the encoder does not know the word.
    assert torch.equal(table.encode(["tabby"], encoder)[0], table.vectors[0])
    with pytest.raises(TextError, match='no class "taby".*Did you mean "tabby"'):
        ClassText.build(encoder, ["tabby", "Dog"], phrases={"taby": "cat"})
    with pytest.raises(TextError, match="empty"):
        ClassText.build(encoder, ["tabby", "Dog"], phrases={"tabby": []})


def test_unknown_phrases_are_left_out_with_a_warning_while_one_remains(encoder):
    with pytest.warns(UserWarning, match='no vector for "blouse"'):
        table = ClassText.build(encoder, ["blouse/top", "Dog"])
    assert table.phrases[0] == ("top",)
    with pytest.raises(TextError, match='"blouse", "gown"') as caught:
        ClassText.build(encoder, ["blouse/gown", "Dog", "robe/top"])
    assert "robe" not in str(caught.value)


def test_equal_vectors_name_both_classes(encoder):
    with pytest.raises(TextError, match=r'"Cat".*"Feline".*phrases=\{"Feline"'):
        ClassText.build(encoder, ["Cat", "Dog", "Feline"])
    with pytest.raises(TextError, match="2 problems"):
        ClassText.build(encoder, ["Cat", "dog", "Feline", "DOG"])
    assert ClassText.build(encoder, ["Cat", "Feline"], phrases={"Feline": "kitten"}).vectors.shape == (2, 3)


def test_state_round_trip(encoder):
    table = ClassText.build(encoder, ["T-shirt/top", "Dog", "cat"])
    tensors, metadata = table.to_state()
    again = ClassText.from_state(tensors, json.loads(json.dumps(metadata)))
    assert torch.equal(again.vectors, table.vectors)
    assert (again.class_names, again.phrases) == (table.class_names, table.phrases)
    assert again.standardizer.scale == table.standardizer.scale
    assert torch.equal(again.encode(["kitten"], encoder), table.encode(["kitten"], encoder))
    assert (again.encoder_name, again.encoder_path, again.dim) == ("glove", encoder.path, 3)
    with pytest.raises(CheckpointError, match="scale"):
        ClassText.from_state(tensors, {k: v for k, v in metadata.items() if k != "scale"})
    with pytest.raises(CheckpointError, match="do not fit"):
        ClassText.from_state({**tensors, "vectors": tensors["vectors"][:2]}, metadata)


def test_another_encoder_of_the_same_width_is_refused(encoder, tmp_path):
    table = ClassText.build(encoder, ["cat", "dog"])
    path = tmp_path / "other.txt"
    path.write_text("cat 9 2 3\ndog 4 5 7\nkitten 1 2 5\n")
    with pytest.raises(TextError, match='differ for "cat"'):
        table.encode(["kitten"], GloveEncoder(path))
    with pytest.raises(TextError, match="onehot with 2 numbers"):
        table.encode(["kitten"], make_text_encoder("onehot", vocabulary=["kitten", "dog"]))


def test_onehot_says_that_it_carries_no_meaning():
    encoder = make_text_encoder("onehot", vocabulary=FASHION)
    assert not encoder.has_meaning
    assert torch.equal(encoder.encode(list(FASHION)), torch.eye(10))
    assert encoder.encode(["sneaker"]).argmax() == 7
    with pytest.raises(TextError, match='Did you mean "Sneaker".*carries no meaning'):
        encoder.encode(["sneeker"])
    table = ClassText.build(encoder, FASHION)
    distances = torch.pdist(table.vectors)
    torch.testing.assert_close(distances, distances[:1].expand(45))
    with pytest.raises(TextError, match="carries no meaning"):
        ClassText.build(encoder, FASHION, phrases={"Bag": "handbag"})


def test_names_of_encoders_are_checked():
    with pytest.raises(ConfigError, match='Did you mean "glove"'):
        make_text_encoder("golve")
    with pytest.raises(ConfigError, match="class names"):
        make_text_encoder("onehot")


def test_fashion_mnist_with_the_real_vectors(data_dir):
    with pytest.warns(UserWarning, match='"ankle"'), pytest.warns(UserWarning, match='"top"'):
        table = ClassText.build(GloveEncoder(data_dir=data_dir), FASHION)
    assert table.vectors.shape == (10, 300)
    assert table.encoder_path == "glove.840B.300d.subset.txt"
    assert torch.pdist(table.vectors).min() > 5
    # Two classes shared the word "shirt" in the source; here that is an error.
    with pytest.raises(TextError, match='"T-shirt/top".*"Shirt"'):
        ClassText.build(
            GloveEncoder(data_dir=data_dir), FASHION, phrases={"T-shirt/top": "shirt", "Ankle boot": "boot"}
        )


# ------------------------------------------------------------------------------------------ new classes


def test_extend_leaves_the_old_rows_and_standardises_the_new_one(encoder):
    table = ClassText.build(encoder, ["cat", "dog", "tshirt"])
    longer = table.extend(["kitten", "T-shirt/top"], encoder)
    assert longer.class_names == ("cat", "dog", "tshirt", "kitten", "T-shirt/top")
    assert torch.equal(longer.vectors[:3], table.vectors)
    assert longer.standardizer is table.standardizer
    raw = torch.tensor([[1.0, 2, 3], [4, 5, 7], [3, 3, 1]])
    mean, new = raw.mean(0), torch.tensor([[1.0, 2, 5], [1, 1.5, 1]])
    scale = (raw - mean).square().mean().sqrt()
    assert torch.allclose(longer.vectors[3:], (new - mean) / scale, atol=1e-5)
    assert longer.phrases[3:] == (("kitten",), ("t-shirt", "top"))
    assert table.class_names == ("cat", "dog", "tshirt")
    assert torch.equal(longer.encode(["kitten"], encoder)[0], longer.vectors[3])


def test_an_extended_table_survives_saving(encoder):
    longer = ClassText.build(encoder, ["cat", "dog"]).extend(["top"], encoder, {"top": ["top", "tshirt"]})
    tensors, metadata = longer.to_state()
    again = ClassText.from_state(tensors, json.loads(json.dumps(metadata)))
    assert again.class_names == longer.class_names
    assert again.phrases == longer.phrases == (("cat",), ("dog",), ("top", "tshirt"))
    assert torch.equal(again.vectors, longer.vectors)


@pytest.mark.parametrize(
    ("names", "phrases", "message"),
    [
        ([], None, "no class names"),
        (["CAT"], None, 'new class "CAT" is already there, as the class "cat".*--class-name'),
        (["top", "Top"], None, 'as another new class "top"'),
        ([" "], None, "empty"),
        (["zebra"], None, "zebra.*--phrases"),
        (["top"], {"tops": "top"}, 'no new class "tops". Did you mean "top"'),
        (["feline"], None, "same text vector.*cat.*feline"),
        (["top"], {"top": "cat"}, "same text vector"),
    ],
)
def test_a_class_that_cannot_be_added_is_named(names, phrases, message, encoder):
    table = ClassText.build(encoder, ["cat", "dog"])
    with pytest.raises(TextError, match=f"(?s){message}"):
        table.extend(names, encoder, phrases)


def test_another_encoder_cannot_extend(encoder, tmp_path):
    table = ClassText.build(encoder, ["cat", "dog"])
    path = tmp_path / "other.txt"
    path.write_text("cat 3 2 1\ndog 4 5 7\nkitten 1 2 5\n")
    with pytest.raises(TextError, match="encoder of training"):
        table.extend(["kitten"], GloveEncoder(path))
    with pytest.raises(TextError, match="needs the encoder"):
        table.extend(["kitten"], None)


def test_without_meaning_a_new_class_gets_a_vector_of_its_name_alone():
    names = ["a", "b", "c", "d"]
    table = ClassText.build(make_text_encoder("onehot", vocabulary=names), names)
    one, two = table.extend(["e"], None), table.extend(["f"], None).extend(["E"], None)
    assert torch.equal(one.vectors[:4], table.vectors)
    assert torch.allclose(one.vectors[4], two.vectors[5], atol=1e-6)  # of the name, not of the place or case
    assert float((two.vectors[4] - two.vectors[5]).abs().max()) > 0.1
    length = float(table.vectors.norm(dim=1).mean())
    assert torch.allclose(two.vectors[4:].norm(dim=1), torch.full((2,), length), atol=1e-5)
    assert not one.has_meaning
    with pytest.raises(TextError, match="no meaning"):
        table.extend(["e"], None, {"e": "thing"})
