import pytest
import torch

from fewgen.encoders.base import UnknownWordError
from fewgen.encoders.glove import GloveEncoder, glove_files, word_variants
from fewgen.errors import TextError

SMALL = "cat 1 2 3\ndog 4 5 6\nsandal 7 8 9\ntshirt 0.5 -0.5 1e-3\nberry 1 1 1\n"


@pytest.fixture
def glove_file(tmp_path):
    path = tmp_path / "small.txt"
    path.write_text(SMALL)
    return path


def test_looks_words_up_in_any_common_spelling(glove_file):
    encoder = GloveEncoder(glove_file)
    assert (encoder.dim, encoder.has_meaning, encoder.path) == (3, True, str(glove_file))
    vectors = encoder.encode(["cat", "Dog", "sandals", "t-shirt", "berries", "T-shirts,", "DOGS"])
    assert vectors.dtype == torch.float32
    expected = [[1, 2, 3], [4, 5, 6], [7, 8, 9], [0.5, -0.5, 1e-3], [1, 1, 1], [0.5, -0.5, 1e-3], [4, 5, 6]]
    torch.testing.assert_close(vectors, torch.tensor(expected, dtype=torch.float32))


def test_exact_spelling_comes_first(tmp_path):
    path = tmp_path / "cased.txt"
    path.write_text("apple 1 0\nApple 0 1\nglass 1 1\nglas 2 2\n")
    encoder = GloveEncoder(path)
    assert encoder.encode(["Apple", "apple", "APPLE", "glass"]).tolist() == [[0, 1], [1, 0], [1, 0], [1, 1]]
    assert "dres" not in word_variants("dress")
    assert "car" not in word_variants("automobile")


def test_a_phrase_is_the_mean_of_its_words_and_says_what_it_left_out(glove_file):
    encoder = GloveEncoder(glove_file)
    assert encoder.encode(["cat dog"]).tolist() == [[2.5, 3.5, 4.5]]
    with pytest.warns(UserWarning, match='Of "zebra dog".*"zebra"'):
        assert encoder.encode(["zebra dog"]).tolist() == [[4.0, 5.0, 6.0]]


def test_unknown_words_are_named_with_the_file_and_similar_words(glove_file):
    encoder = GloveEncoder(glove_file)
    with pytest.raises(UnknownWordError) as caught:
        encoder.encode(["cat", "sandel", "xylophone"])
    message = str(caught.value)
    assert 'small.txt has no vector for "sandel", "xylophone"' in message
    assert "Similar words in it: sandal" in message
    assert caught.value.texts == ("sandel", "xylophone")
    with pytest.raises(TextError, match="It has cat, dog"):
        encoder.encode(["xylophone"])
    with pytest.raises(TextError, match="contains no word"):
        encoder.encode([" ? "])


def test_reads_only_what_it_needs_and_does_not_read_twice(glove_file, monkeypatch):
    encoder = GloveEncoder(glove_file)
    reads = []
    original = encoder._load.__func__.__globals__["_lines"]

    def counted(*args):
        reads.append(args)
        return original(*args)

    monkeypatch.setattr("fewgen.encoders.glove._lines", counted)
    first = encoder.encode(["cat", "dog"])
    assert torch.equal(first, encoder.encode(["cat", "dog"]))
    assert len(reads) == 1
    assert {word for word, vector in encoder._known.items() if vector is not None} == {"cat", "dog"}


def test_word2vec_header_crlf_and_words_with_spaces_are_understood(tmp_path):
    path = tmp_path / "other.txt"
    path.write_bytes(b"3 2\r\ncat 1 2\r\n. . . 3 4\r\ndog 5 6\r\n\r\n")
    assert GloveEncoder(path).encode(["cat", "dog"]).tolist() == [[1, 2], [5, 6]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"cat\ndog\n", "not a text file in GloVe format"),
        (b"PK\x03\x04\x00\x00 \x00\x00", "unpack"),
        (b"cat one two\n", "Line 1"),
        (b"cat 1 2 3\nbird 1 2\ndog 4 5 6\n", "Line 2 of .* has 2 numbers, but the first has 3"),
        (b"cat 1 2 3\ndog 4 5", "Line 2 .*cut off"),
        (b"cat 1 2 3\ndog 4 x 6\n", "Line 2 .*3 finite numbers"),
        (b"cat 1 2 3\ndog 4 nan 6\n", "Line 2 .*3 finite numbers"),
        (b"cat 1 2 3\ndog 4 5 6 7\n", "Line 2 .*3 finite numbers"),
    ],
)
def test_damaged_files_are_explained(tmp_path, content, message):
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(TextError, match=message):
        GloveEncoder(path).encode(["dog"])


def test_a_missing_file_is_explained(tmp_path, monkeypatch):
    monkeypatch.delenv("FEWGEN_DATA_DIR", raising=False)
    with pytest.raises(TextError, match="no GloVe file .*nowhere.txt.*FEWGEN_DATA_DIR"):
        GloveEncoder(tmp_path / "nowhere.txt")
    with pytest.raises(TextError, match="FEWGEN_DATA_DIR is not set"):
        GloveEncoder()
    with pytest.raises(TextError, match="holds no .txt file"):
        GloveEncoder(tmp_path)
    with pytest.raises(TextError, match="no folder"):
        GloveEncoder(data_dir=tmp_path)


def test_the_file_is_found_through_the_data_folder(tmp_path, monkeypatch):
    shelf = tmp_path / "glove"
    shelf.mkdir()
    for name in ("a.txt", "b.txt"):
        (shelf / name).write_text(SMALL)
    monkeypatch.setenv("FEWGEN_DATA_DIR", str(tmp_path))
    assert glove_files() == [shelf / "a.txt"], "whatever else a folder of texts holds is not tried"
    (shelf / "glove.6B.txt").write_text(SMALL)
    assert [file.name for file in glove_files()] == ["glove.6B.txt"]
    (shelf / "glove.840B.300d.subset.txt").write_text(SMALL)
    assert GloveEncoder().path == "glove.840B.300d.subset.txt"
    assert glove_files("b.txt") == [shelf / "b.txt"]
    names = ["glove.840B.300d.subset.txt", "glove.6B.txt"]
    assert [file.name for file in glove_files(shelf)] == names
    assert [encoder.path for encoder in GloveEncoder.of_each_file()] == names
    assert [e.path for e in GloveEncoder.of_each_file(shelf)] == [str(shelf), str(shelf / names[1])]


def test_the_real_files_hold_what_their_description_says(data_dir):
    encoder = GloveEncoder(data_dir=data_dir)
    assert (encoder.file.name, encoder.dim) == ("glove.840B.300d.subset.txt", 300)
    golden = torch.tensor([[-0.40176, 0.37057, 0.021281, -0.34125]])
    assert torch.equal(encoder.encode(["dog"])[:, :4], golden)
    assert torch.equal(encoder.encode(["T-shirt"]), encoder.encode(["tshirt"]))
    assert torch.equal(encoder.encode(["Sandals"]), encoder.encode(["sandal"]))
    with pytest.raises(TextError, match="automobile"):
        encoder.encode(["automobile"])
    with pytest.warns(UserWarning, match="ankle"):
        assert torch.equal(encoder.encode(["ankle boot"]), encoder.encode(["boot"]))

    six = GloveEncoder("glove.6B.100d.subset.txt", data_dir=data_dir)
    assert torch.equal(six.encode(["the"])[0, :3], torch.tensor([-0.038194, -0.24487, 0.72812]))
    twitter = GloveEncoder("glove.twitter.27B.25d.subset.txt", data_dir=data_dir)
    assert twitter.encode(["zero", "automobile", "trouser"]).shape == (3, 25)
    with pytest.raises(TextError, match="Similar words"):
        twitter.encode(["elephamt"])
