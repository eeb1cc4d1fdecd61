"""Download data sets from their official addresses, on request only, each file checked by its digest."""

from __future__ import annotations

import hashlib
import io
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fewgen.data import cifar_binary, idx
from fewgen.errors import DataError
from fewgen.files import atomic_write
from fewgen.progress import DownloadProgress

TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class RemoteFile:
    """A file at its official address.

    Attributes:
        url: where it is.
        path: where it goes, relative to the data folder.
        n_bytes: its size; None if only a limit is known.
        digest: "sha256:..." or "md5:...", as its authors publish it.
        members: for a tar archive, the files to take out of it into the folder `path`; the archive
            itself is not kept.
    """

    url: str
    path: str
    n_bytes: int | None
    digest: str
    members: tuple[str, ...] = ()


_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
# The page of the authors no longer serves MNIST; this is the copy that PyTorch keeps of the same files.
_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"


def _idx(base: str, folder: str, *sums: tuple[int, str]) -> tuple[RemoteFile, ...]:
    """Return the four files of a data set in the form of MNIST, of these sizes and digests."""
    stems = (*idx.FILES["train"], *idx.FILES["test"])
    return tuple(
        RemoteFile(f"{base}{stem}.gz", f"{folder}/raw/{stem}.gz", n_bytes, f"sha256:{digest}")
        for stem, (n_bytes, digest) in zip(stems, sums, strict=True)
    )


REMOTE: dict[str, tuple[RemoteFile, ...]] = {
    "fashion_mnist": _idx(
        _FASHION,
        "FashionMNIST",
        (26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        (29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        (4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        (5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    ),
    "mnist": _idx(
        _MNIST,
        "MNIST",
        (9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        (28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        (1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        (4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    ),
    "cifar10": (
        RemoteFile(
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            "CIFAR10/cifar-10-batches-bin",
            170052171,
            # The authors publish an MD5 sum only; it guards against damage, https against exchange.
            "md5:c32a1d4ab5d03f1284b67883e8d87530",
            tuple(
                f"cifar-10-batches-bin/{name}"
                for name in (*cifar_binary.FILES["train"], *cifar_binary.FILES["test"])
            ),
        ),
    ),
}


Progress = Callable[[str, int, "int | None"], None]


def _receive(file: RemoteFile, sink: IO[bytes], progress: Progress) -> None:
    """Copy the remote file into `sink`; raises unless size and digest are as stated."""
    algorithm, _, wanted = file.digest.partition(":")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    limit = file.n_bytes if file.n_bytes is not None else 2**30
    done = 0
    try:
        request = urllib.request.Request(file.url, headers={"User-Agent": "fewgen"})
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            while block := response.read(1 << 18):
                done += len(block)
                if done > limit:
                    raise DataError(
                        f"{file.url} sent more than the {limit} bytes expected. Nothing was kept."
                    )
                digest.update(block)
                sink.write(block)
                progress(file.url, done, file.n_bytes)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(
            f"{file.url} could not be downloaded ({reason}). Check the network and try again, or put the "
            f"file at {file.path} in the data folder by hand."
        ) from error
    if file.n_bytes is not None and done != file.n_bytes:
        raise DataError(f"{file.url} sent {done} of {file.n_bytes} bytes. Nothing was kept; try again.")
    if digest.hexdigest() != wanted:
        raise DataError(
            f"{file.url} has the {algorithm} sum {digest.hexdigest()}, but {wanted} was expected. "
            "Nothing was kept."
        )


def download_file(file: RemoteFile, root: Path, progress: Progress | None = None) -> None:
    """Fetch one file into the data folder; it appears there only when its digest is right.

    Args:
        file: what to fetch. Files that are there already are not fetched again.
        root: the data folder.
        progress: called with the address, the bytes so far and the size.

    Raises:
        DataError: if the address cannot be reached, or size or digest differ.
        OutputError: if the data folder cannot be written.
    """
    progress = progress or DownloadProgress()
    target = root / file.path
    if not file.members:
        if not target.is_file():
            with atomic_write(target) as temporary, open(temporary, "wb") as sink:
                _receive(file, sink, progress)
        return
    if all((target / Path(member).name).is_file() for member in file.members):
        return
    archive = io.BytesIO()
    _receive(file, archive, progress)
    archive.seek(0)
    try:
        with tarfile.open(fileobj=archive, mode="r:*") as tar:
            # Only the files that we name are read, into places that we choose.
            for member in file.members:
                stream = tar.extractfile(member)
                if stream is None:
                    raise DataError(f'"{member}" in {file.url} is not a file.')
                with atomic_write(target / Path(member).name) as temporary:
                    temporary.write_bytes(stream.read())
    except (tarfile.TarError, KeyError, EOFError) as error:
        raise DataError(f"{file.url} is not the expected archive ({error}).") from error


def download(name: str, root: Path, progress: Progress | None = None) -> None:
    """Fetch every file of a data set that is missing in the data folder.

    Raises:
        DataError: see `download_file`; also if the data set has no download.
    """
    if name not in REMOTE:
        raise DataError(f'"{name}" has no download. These have: {", ".join(sorted(REMOTE))}.')
    for file in REMOTE[name]:
        download_file(file, root, progress)
