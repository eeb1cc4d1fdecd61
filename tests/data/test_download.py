import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fewgen.data import download as module
from fewgen.data import load_images
from fewgen.data.cifar_binary import ROW_BYTES
from fewgen.data.download import RemoteFile, download, download_file
from fewgen.errors import DataError

CONTENT = b"some bytes " * 1000


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}/", folder
        http.shutdown()
        thread.join()


def remote(base: str, content: bytes = CONTENT, **changes: object) -> RemoteFile:
    values = {
        "url": base + "file.bin",
        "path": "Set/raw/file.bin",
        "n_bytes": len(content),
        "digest": "sha256:" + hashlib.sha256(content).hexdigest(),
    }
    return RemoteFile(**{**values, **changes})


def test_a_file_arrives_with_progress_and_is_not_fetched_twice(
    server: tuple[str, Path], tmp_path: Path
) -> None:
    base, folder = server
    (folder / "file.bin").write_bytes(CONTENT)
    seen: list[tuple[int, int | None]] = []
    download_file(remote(base), tmp_path / "data", lambda url, done, total: seen.append((done, total)))
    assert (tmp_path / "data/Set/raw/file.bin").read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    (folder / "file.bin").unlink()
    download_file(remote(base), tmp_path / "data")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"digest": "sha256:" + "0" * 64}, "sha256 sum"),
        ({"digest": "md5:" + "0" * 32}, "md5 sum"),
        ({"n_bytes": len(CONTENT) + 1}, "of 11001 bytes"),
        ({"n_bytes": 100}, "more than the 100"),
        ({"url": "missing"}, "could not be downloaded"),
    ],
)
def test_a_wrong_file_is_not_kept(
    server: tuple[str, Path], tmp_path: Path, changes: dict, reason: str
) -> None:
    base, folder = server
    (folder / "file.bin").write_bytes(CONTENT)
    if "url" in changes:
        changes = {"url": base + changes["url"]}
    with pytest.raises(DataError, match=reason):
        download_file(remote(base, **changes), tmp_path / "data")
    assert [path for path in (tmp_path / "data").rglob("*") if path.is_file()] == []


def cifar_archive(evil: bool = False) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = ROW_BYTES * 10
            rows = b"".join(bytes([label]) + bytes(ROW_BYTES - 1) for label in range(10))
            tar.addfile(info, io.BytesIO(rows))
        if evil:
            info = tarfile.TarInfo("../../escaped.txt")
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    return buffer.getvalue()


def test_only_named_members_leave_an_archive(
    server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, folder = server
    archive = cifar_archive(evil=True)
    (folder / "file.bin").write_bytes(archive)
    original = module.REMOTE["cifar10"][0]
    monkeypatch.setitem(
        module.REMOTE, "cifar10", (remote(base, archive, path=original.path, members=original.members),)
    )
    data = load_images("cifar10", data_dir=tmp_path / "data", download=True)
    assert data.counts().tolist() == [5] * 10
    assert len(load_images("cifar10", split="test", data_dir=tmp_path / "data")) == 10
    files = sorted(path.name for path in tmp_path.rglob("*") if path.is_file() and path.parent != folder)
    assert files == [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]


def test_addresses_are_complete() -> None:
    assert set(module.REMOTE) == {"mnist", "fashion_mnist", "cifar10"}
    for files in module.REMOTE.values():
        for file in files:
            algorithm, _, digest = file.digest.partition(":")
            assert len(digest) == {"sha256": 64, "md5": 32}[algorithm]
            assert not Path(file.path).is_absolute()
            assert ".." not in file.path


def test_digests_are_those_of_the_real_files(data_dir: Path) -> None:
    for name in ("mnist", "fashion_mnist"):
        for file in module.REMOTE[name]:
            content = (data_dir / file.path).read_bytes()
            assert len(content) == file.n_bytes
            assert "sha256:" + hashlib.sha256(content).hexdigest() == file.digest


def test_nothing_is_fetched_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_receive", lambda *args: pytest.fail("fetched without being asked"))
    with pytest.raises(DataError) as caught:
        load_images("mnist", data_dir=tmp_path)
    message = str(caught.value)
    for part in (str(tmp_path / "MNIST" / "raw"), "FEWGEN_DATA_DIR", "--download"):
        assert part in message
    with pytest.raises(DataError, match="no download"):
        load_images("omniglot", data_dir=tmp_path)
    with pytest.raises(DataError, match="no download"):
        download("omniglot", tmp_path)


def test_progress_lines(capsys: pytest.CaptureFixture[str]) -> None:
    progress = module.DownloadProgress()
    for done in range(0, 1001):
        progress("http://x/file.gz", done * 1000, 1_000_000)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11
    assert lines[-1] == "file.gz: 1.0 of 1.0 MB (100 %)"
