import errno
import json
import os
import signal
import stat
from pathlib import Path

import pytest

from fewgen.errors import CheckpointError, DataError, OutputError
from fewgen.files import (
    _leftovers,
    atomic_write,
    prepare_output_file,
    read_json,
    write_json,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_atomic_write_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "new" / "model.safetensors"
    for text in ("one", "two"):
        with atomic_write(target) as temporary:
            assert temporary.parent == target.parent
            assert temporary.suffix == ".safetensors"
            assert temporary.name.startswith(".")
            temporary.write_text(text)
        assert target.read_text() == text
    assert names(target.parent) == ["model.safetensors"]


def test_target_is_untouched_while_the_block_runs(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with atomic_write(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"


@pytest.mark.parametrize("error", [RuntimeError("writer failed"), KeyboardInterrupt(), DataError("no")])
def test_failing_writer_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(type(error)), atomic_write(target) as temporary:
        temporary.write_text("half of the n")
        raise error
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_negative_control_a_plain_write_loses_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), open(target, "w") as file:
        file.write("half of the n")
        raise RuntimeError
    assert target.read_text() != "old"


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if where != "write":
        monkeypatch.setattr(os, where, full)
    with (
        pytest.raises(OutputError, match=r"disk is full.*previous file is unchanged"),
        atomic_write(target) as tmp,
    ):
        tmp.write_text("new")
        if where == "write":
            full()
    monkeypatch.undo()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_real_write_to_a_full_device_is_an_output_error(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="disk is full"),
        atomic_write(tmp_path / "a"),
        open("/dev/full", "w") as f,
    ):
        f.write("x")


def test_full_disk_reported_by_safetensors_is_recognised(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="disk is full"), atomic_write(tmp_path / "a"):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_file_is_flushed_to_disk_before_it_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("replace"), replace(a, b))[1])
    write_text(tmp_path / "a.txt", "text")
    assert events[:2] == ["fsync", "replace"]


def test_mode_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        write_text(tmp_path / "a.txt", "text")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o644


def writer(target: Path) -> tuple[int, int]:
    """Start a process that is in the middle of a write; return it, and what it waits for."""
    wait, go = os.pipe()
    told, ready = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(go)
        try:
            with atomic_write(target) as temporary:
                temporary.write_text("half")
                os.write(ready, b"x")
                os.read(wait, 1)
        finally:
            os._exit(0)
    os.close(wait)
    os.read(told, 1)
    return child, go


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no locks are kept there")
@pytest.mark.parametrize("name", ["a.txt", "model.v2.npz", "plain", "*.[x]"])
def test_what_a_killed_write_left_goes_with_the_next_write_of_the_file(tmp_path: Path, name: str) -> None:
    child, _ = writer(tmp_path / name)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    (left,) = names(tmp_path)
    others = [
        left.replace(".tmp", "0.tmp"),
        left.replace(".tmp", ".tmp.x"),
        left[1:],
        f".other{left}",
        ".tmp-notes",
    ]
    for other in others:
        (tmp_path / other).write_text("of somebody")
    write_text(tmp_path / f"not {name}", "")
    assert left in names(tmp_path)
    _leftovers.cache_clear()  # as in the next process
    write_text(tmp_path / name, "whole")
    assert names(tmp_path) == sorted([name, f"not {name}", *others])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no locks are kept there")
def test_what_another_process_is_writing_stays(tmp_path: Path) -> None:
    child, go = writer(tmp_path / "a.txt")
    write_text(tmp_path / "a.txt", "whole")
    assert len(names(tmp_path)) == 2
    os.write(go, b"x")
    os.waitpid(child, 0)
    assert (tmp_path / "a.txt").read_text() == "half"
    assert names(tmp_path) == ["a.txt"]


def test_a_link_is_replaced_and_its_target_stays(tmp_path: Path) -> None:
    real = tmp_path / "real.txt"
    real.write_text("old")
    link = tmp_path / "link.txt"
    link.symlink_to(real)
    write_text(link, "new")
    assert not link.is_symlink()
    assert (link.read_text(), real.read_text()) == ("new", "old")
    folder = tmp_path / "folder"
    folder.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    write_text(folder / "below.txt", "in it")  # a link on the way to a file is followed
    assert (tmp_path / "elsewhere" / "below.txt").read_text() == "in it"


def test_writing_over_a_folder_or_below_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="folder has this name"):
        write_text(tmp_path, "x")
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="file, not a folder"):
        write_text(tmp_path / "file" / "below.txt", "x")


def test_json_round_trip_and_errors(tmp_path: Path) -> None:
    value = {"names": ["Ankle boot", "größer"], "n": 3, "x": 0.1}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == value
    (tmp_path / "b.json").write_text('{"a": ')
    with pytest.raises(CheckpointError, match="not valid JSON"):
        read_json(tmp_path / "b.json", CheckpointError)
    with pytest.raises(DataError, match="does not exist"):
        read_json(tmp_path / "c.json")


def test_unwritable_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_ = os.open

    def refuse(path: str, flags: int, *args: int) -> int:
        if flags & os.O_CREAT:  # what a folder without write permission does; root would pass a real one
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return open_(path, flags, *args)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OutputError, match="not permitted"):
        prepare_output_file(tmp_path / "a.npz")
    with pytest.raises(OutputError, match="not permitted"):
        write_text(tmp_path / "a.txt", "x")
    assert names(tmp_path) == []


def test_output_file(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.png"
    assert prepare_output_file(file) == file
    assert names(file.parent) == []
    file.write_text("old")
    with pytest.raises(OutputError, match="exists already"):
        prepare_output_file(file)
    assert prepare_output_file(file, overwrite=True).read_text() == "old"
    with pytest.raises(OutputError, match="is a folder"):
        prepare_output_file(tmp_path, overwrite=True)
