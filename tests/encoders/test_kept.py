import os
import time

import pytest
import torch
from tests.encoders.tools import noise_images

from fewgen.encoders import kept
from fewgen.encoders.kept import kept_features
from fewgen.encoders.named import make_image_encoder

ABOUT = {"name": "sum", "sha256": "1"}


class Sums:
    """Row sums, and how often it was asked."""

    calls = 0

    def __call__(self, pixels):
        self.calls += 1
        return pixels.float().sum(3).flatten(1)


def test_features_come_back_for_the_same_images_in_any_order(tmp_path):
    images, sums = noise_images(30, 6), Sums()
    found = kept_features(images, ABOUT, tmp_path, sums)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    again = kept_features(images.subset(order), ABOUT, tmp_path, sums)
    assert torch.equal(again, found[order])
    assert sums.calls == 1
    twice = images.subset([3, 3, 1])
    assert torch.equal(kept_features(twice, ABOUT, tmp_path, sums), found[[3, 3, 1]])
    assert torch.equal(kept_features(twice, ABOUT, tmp_path, sums), found[[3, 3, 1]])
    assert sums.calls == 2
    # Other images, another encoder, another shape of the same bytes: all of them are described.
    kept_features(noise_images(30, 6, seed=1), ABOUT, tmp_path, sums)
    kept_features(images, ABOUT | {"sha256": "2"}, tmp_path, sums)
    assert sums.calls == 4
    assert len(list(tmp_path.iterdir())) == 4


def test_a_damaged_file_is_made_again_and_nothing_must_be_written(tmp_path):
    images, sums = noise_images(4, 6), Sums()
    found = kept_features(images, ABOUT, tmp_path, sums)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-8])
    assert torch.equal(kept_features(images, ABOUT, tmp_path, sums), found)
    assert torch.equal(kept_features(images, ABOUT, tmp_path, sums), found)
    assert sums.calls == 2
    data = bytearray(file.read_bytes())
    data[-1] ^= 64  # a whole file with another number in it
    file.write_bytes(data)
    assert torch.equal(kept_features(images, ABOUT, tmp_path, sums), found)
    assert torch.equal(kept_features(images, ABOUT, tmp_path, sums), found)
    assert sums.calls == 3
    (tmp_path / "plain").write_text("no folder")
    assert torch.equal(kept_features(images, ABOUT, tmp_path / "plain", sums), found)
    assert torch.equal(kept_features(images, ABOUT, None, sums), found)
    assert len(kept_features(images.subset([]), ABOUT, tmp_path, sums)) == 0


def test_what_was_not_used_for_longest_goes_first(tmp_path, monkeypatch):
    sets = [noise_images(4, 6, seed=i) for i in range(4)]
    sums = Sums()
    kept_features(sets[0], ABOUT, tmp_path, sums)
    (file,) = tmp_path.iterdir()
    monkeypatch.setattr(kept, "LIMIT", int(2.5 * file.stat().st_size))
    os.utime(file, (1, 1))
    kept_features(sets[1], ABOUT, tmp_path, sums)
    kept_features(sets[0], ABOUT, tmp_path, sums)  # used just now
    (other,) = (f for f in tmp_path.iterdir() if f != file)
    os.utime(other, (2, 2))
    kept_features(sets[2], ABOUT, tmp_path, sums)
    assert file.exists()
    assert not other.exists()
    assert sums.calls == 3


def test_ten_thousand_images_come_back_in_two_seconds(tmp_path):
    images = noise_images(10_000, 32)
    wide = torch.zeros(10_000, 1280)
    kept_features(images, ABOUT, tmp_path, lambda pixels: wide)
    started = time.process_time()
    kept_features(images, ABOUT, tmp_path, None)
    assert time.process_time() - started < 2.0


def test_the_encoder_keeps_what_it_found(tmp_path, monkeypatch):
    images = noise_images(3, 40)
    encoder = make_image_encoder("lite0:32", cache_dir=tmp_path)
    found = encoder.features(images)
    assert len(list((tmp_path / "features").iterdir())) == 1
    again = make_image_encoder("lite0:32", cache_dir=tmp_path)
    monkeypatch.setattr(again, "vectors", None)
    assert torch.equal(again.features(images), found)
    other = make_image_encoder("lite0:64", cache_dir=tmp_path)
    monkeypatch.setattr(other, "vectors", None)
    with pytest.raises(TypeError):
        other.features(images)
