import numpy as np
import pytest
import torch
from PIL import Image

from fewgen.data.foreign import NO_CLASS, has_labels, load_foreign, without_labels
from fewgen.data.imageset import ImageSet
from fewgen.data.npz import save_npz
from fewgen.data.registry import Reading, load_images, save_images
from fewgen.errors import ConfigError, DataError
from fewgen.evaluation.matching import match_images
from fewgen.generation.request import GeneratedImages


def random_set(names, per_class=3, size=(8, 8), channels=1, seed=0, name=""):
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(names)).repeat(per_class)
    images = torch.randint(0, 256, (len(labels), channels, *size), generator=rng).to(torch.uint8)
    return ImageSet(images, labels, tuple(names), None, name)


TRAIN = random_set(("Sandal", "T-shirt/top", "Bag"), seed=1)


def named(images):
    return [images.class_names[label] for label in images.labels.tolist()]


@pytest.mark.parametrize("form", ["npz", "folder"])
def test_round_trip_brings_the_classes_in_order(tmp_path, form):
    made = random_set(("bag", "sandal", "t-shirt/TOP"), seed=2)
    path = save_images(made, tmp_path / ("o.npz" if form == "npz" else "o"))
    loaded = load_foreign(path)
    matched = match_images(loaded, TRAIN)
    assert matched.class_names == TRAIN.class_names
    assert torch.equal(matched.images, loaded.images)
    assert [n.casefold() for n in named(matched)] == [n.casefold() for n in named(loaded)]
    pixels = {
        image.numpy().tobytes(): name.casefold() for image, name in zip(made.images, named(made), strict=True)
    }
    for image, name in zip(matched.images, named(matched), strict=True):
        assert pixels[image.numpy().tobytes()] == name.casefold()


def test_unicode_forms_are_one_class_and_captions_stay():
    made = random_set(("cafe\u0301",))
    made = ImageSet(made.images, made.labels, made.class_names, ("x", "y", "z"), "o")
    matched = match_images(made, random_set(("caf\u00e9",)))
    assert matched.class_names == ("caf\u00e9",)
    assert (matched.captions, matched.name) == (("x", "y", "z"), "o")


def test_all_problems_in_one_error_with_the_flags():
    made = random_set(("Sandal", "Bog", "Violin"), size=(10, 12), channels=3, name="o.npz")
    with pytest.raises(DataError) as caught:
        match_images(made, TRAIN)
    message = str(caught.value)
    assert '"o.npz"' in message
    assert "(6 problems)" in message
    for part in (
        "12x10 pixels (width x height), the training images 8x8",
        "--size 8",
        "they are colour, the training images grey",
        "--channels 1",
        '"Bog" (3 images) is not one of the 3 training classes; rename or remove it. Did you mean "Bag"?',
        '"Violin"',
        'the class "T-shirt/top" has no images here',
        'the class "Bag" has no images here',
    ):
        assert part in message


def test_empty_classes():
    only = TRAIN.subset((TRAIN.labels != 1).nonzero().flatten())
    with pytest.raises(DataError, match='the class "T-shirt/top" has no images here'):
        match_images(only, TRAIN)
    assert len(match_images(only, TRAIN, partial=True)) == 6
    with pytest.raises(DataError, match='the training class "T-shirt/top" has no images'):
        match_images(TRAIN, only)
    # A name without images is no unknown class: a set made with more classes may be cut down to these.
    more = ImageSet(TRAIN.images, TRAIN.labels, (*TRAIN.class_names, "Violin"))
    assert match_images(more, TRAIN).class_names == TRAIN.class_names
    none = TRAIN.subset(torch.zeros(0, dtype=torch.int64))
    with pytest.raises(DataError, match="there are no images; generate some$"):
        match_images(none, TRAIN)


def test_resize_only_on_request_and_never_channels():
    made = random_set(TRAIN.class_names, size=(16, 16))
    with pytest.raises(DataError, match="--size 8"):
        match_images(made, TRAIN)
    assert match_images(made, TRAIN, fit="resize").size == (8, 8)
    assert torch.equal(match_images(TRAIN, TRAIN, fit="resize").images, TRAIN.images)
    with pytest.raises(DataError, match="--channels 1"):
        match_images(random_set(TRAIN.class_names, channels=3), TRAIN, fit="resize")
    oblong = random_set(TRAIN.class_names, size=(8, 6))
    with pytest.raises(DataError, match="--size 6"):
        match_images(made, oblong, fit="resize")
    with pytest.raises(ConfigError, match='Did you mean "resize"'):
        match_images(made, TRAIN, fit="resiz")


def test_file_without_class_names_asks_for_them(tmp_path):
    np.savez(tmp_path / "o.npz", images=TRAIN.images[:, 0].numpy(), labels=TRAIN.labels.numpy())
    with pytest.raises(DataError, match='save class_names beside the labels.*"Sandal", "T-shirt/top", "Bag"'):
        match_images(load_foreign(tmp_path / "o.npz"), TRAIN)
    digits = random_set(("0", "1", "2"))
    assert match_images(load_foreign(tmp_path / "o.npz"), digits).class_names == ("0", "1", "2")


def test_images_without_labels(tmp_path):
    np.savez(tmp_path / "o.npz", images=TRAIN.images[:, 0].numpy())
    (tmp_path / "flat").mkdir()
    for i, image in enumerate(TRAIN.images[:, 0].numpy()):
        Image.fromarray(image).save(tmp_path / "flat" / f"{i:03d}.png")
    for source in (tmp_path / "o.npz", tmp_path / "flat"):
        with pytest.raises(DataError):
            load_foreign(source)
        loaded = load_foreign(source, labels_required=False)
        assert not has_labels(loaded)
        with pytest.raises(DataError, match="the images have no class"):
            match_images(loaded, TRAIN)
        matched = match_images(loaded, TRAIN, labels_required=False)
        assert matched.class_names == (NO_CLASS,)
        assert torch.equal(matched.images, TRAIN.images)
        assert load_foreign(source, Reading(size=16, channels=3), labels_required=False).images.shape == (
            9,
            3,
            16,
            16,
        )
    with pytest.raises(DataError, match="--size 8"):
        match_images(without_labels(torch.zeros(2, 1, 9, 9).byte()), TRAIN, labels_required=False)
    # With labels, nothing is dropped.
    assert match_images(TRAIN, TRAIN, labels_required=False).class_names == TRAIN.class_names


def test_labels_of_minus_one_are_no_class(tmp_path):
    images = TRAIN.images[:3]
    save_npz(tmp_path / "o.npz", images, torch.tensor([0, -1, -1]), TRAIN.class_names)
    with pytest.raises(DataError, match="hold -1"):
        load_foreign(tmp_path / "o.npz")
    with pytest.warns(UserWarning, match="2 of the 3 images"):
        loaded = load_foreign(tmp_path / "o.npz", labels_required=False)
    assert not has_labels(loaded)
    assert torch.equal(loaded.images, images)


def test_images_of_free_texts_are_unknown_classes(tmp_path):
    texts = ["", "red bag", "red bag"]
    made = GeneratedImages(
        TRAIN.images[:3], torch.tensor([0, -1, -1]), TRAIN.class_names, torch.arange(3), {}, texts=texts
    )
    made.save(tmp_path / "o.npz")
    loaded = load_foreign(tmp_path / "o.npz")
    with pytest.raises(DataError, match=r'"red bag" \(2 images\) is not one'):
        match_images(loaded, TRAIN)
    with pytest.warns(UserWarning, match='"red bag"'):
        assert not has_labels(match_images(loaded, TRAIN, labels_required=False))


def test_unknown_names_drop_the_labels_only_aloud():
    made = random_set(("Sandal", "Violin"))
    with pytest.warns(UserWarning, match='not used, because the class "Violin"'):
        matched = match_images(made, TRAIN, labels_required=False)
    assert not has_labels(matched)


def test_flat_folder_reports_all_its_problems(tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    (flat / "a.png").write_bytes(b"")
    (flat / "b.txt").write_text("no image")
    Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).save(tmp_path / "c.png")
    (flat / "c.png").symlink_to(tmp_path / "c.png")
    with pytest.raises(DataError, match=r"3 problems") as caught:
        load_foreign(flat, labels_required=False)
    for part in ("a.png", "is empty", "b.txt", "not an image", "leads out of the folder"):
        assert part in str(caught.value)


def test_named_data_and_folders_of_classes_load_as_before(tmp_path):
    assert len(load_foreign("digits", labels_required=False)) == len(load_images("digits"))
    save_images(TRAIN, tmp_path / "o")
    assert has_labels(load_foreign(tmp_path / "o", labels_required=False))
    with pytest.raises(DataError, match="neither a data set"):
        load_foreign(tmp_path / "nothing", labels_required=False)
