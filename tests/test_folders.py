import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import fewgen
from fewgen.cli.main import main
from fewgen.errors import OutputError
from fewgen.files import is_leftover
from fewgen.folders import NEW, RUN, RUN_MARKER, atomic_folder, contents, locked
from fewgen.generation import GeneratedImages, write_images
from fewgen.tensor_files import write_tensors

ROOT = Path(__file__).parents[1]

LEFTOVERS = ["..fewgen-run.0123456789ab.tmp", ".model.0123456789ab.tmp.safetensors", ".DS_Store", "Thumbs.db"]


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def child(code: str, *words: object, **more: object) -> subprocess.Popen:
    """Start a Python process with the sources of this tree."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, words)], env=env, cwd=ROOT, **pipes)  # type: ignore[call-overload]


# ------------------------------------------------------------------------------------------ whose it is


def test_a_run_folder_is_created_and_marked(tmp_path: Path) -> None:
    folder = RUN.prepare(tmp_path / "a" / "run")
    assert names(folder) == [RUN_MARKER]
    (folder / "config.yaml").write_text("")
    assert RUN.prepare(folder) == folder, "a run killed before its first checkpoint is still ours"


@pytest.mark.parametrize(
    "files",
    [["config.yaml", "model.safetensors"], ["config.yaml", "state/x"], ["cells/x"], ["parts/settings.json"]],
)
def test_names_alone_do_not_make_a_folder_ours(files: list[str], tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    for name in files:
        (theirs / name).parent.mkdir(parents=True, exist_ok=True)
        (theirs / name).write_text("{}")
    if "model.safetensors" in files:
        write_tensors(theirs / "model.safetensors", {"w": torch.ones(2)}, {"format": "pt"})
    before = {path: path.read_bytes() for path in theirs.rglob("*") if path.is_file()}
    assert not RUN.holds(theirs)
    with pytest.raises(OutputError, match=r"not a fewgen run \(it holds .*Nothing was changed"):
        RUN.prepare(theirs)
    with pytest.raises(OutputError, match="not a fewgen run"):
        fewgen.train("cada_vqvae", data="digits", out=theirs)
    with pytest.raises(OutputError, match="is not a benchmark"):
        fewgen.benchmark(data="digits", out=theirs, methods=["copies"])
    assert {path: path.read_bytes() for path in theirs.rglob("*") if path.is_file()} == before
    assert names(tmp_path) == ["theirs"]


def test_a_model_file_of_ours_makes_a_folder_ours(tmp_path: Path) -> None:
    write_tensors(tmp_path / "model.safetensors", {"w": torch.ones(2)}, {"format": "fewgen-model"})
    assert RUN.holds(tmp_path)
    RUN.prepare(tmp_path)


def test_foreign_folder_is_refused_and_unchanged(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match=r"thesis\.tex.*Nothing was changed"):
        RUN.prepare(tmp_path)
    assert names(tmp_path) == ["thesis.tex"]


def test_image_folder_must_be_empty_even_if_it_is_a_run(tmp_path: Path) -> None:
    run = RUN.prepare(tmp_path / "run")
    with pytest.raises(OutputError, match="not empty"):
        NEW.prepare(run)
    assert names(NEW.prepare(tmp_path / "images")) == []


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file"):
        RUN.prepare(tmp_path / "file" / "below")
    with pytest.raises(OutputError, match="is a file"):
        RUN.prepare(tmp_path / "file")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_write_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="not permitted"):
            RUN.prepare(tmp_path / "run")
    finally:
        tmp_path.chmod(0o700)


# ------------------------------------------------------------------------------------------ after a kill


def test_what_kills_and_desktops_leave_is_no_content(tmp_path: Path) -> None:
    for name in LEFTOVERS:
        assert is_leftover(name)
        (tmp_path / name).write_text("half")
    assert contents(tmp_path) == []
    for name in (".tmp-notes", ".bashrc.tmp", "model.0123456789ab.tmp", RUN_MARKER, ".git"):
        assert not is_leftover(name)
    NEW.prepare(tmp_path)
    RUN.prepare(tmp_path)
    assert contents(tmp_path) == [RUN_MARKER]


KILLED = """
import os, signal, sys
from fewgen.folders import RUN
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
RUN.prepare(sys.argv[1])
"""


def test_a_kill_while_the_marker_is_written_leaves_a_folder_that_can_be_used(tmp_path: Path) -> None:
    process = child(KILLED, tmp_path / "run")
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    (left,) = names(tmp_path / "run")
    assert left.startswith("..fewgen-run.")
    NEW.check(tmp_path / "run")
    RUN.prepare(tmp_path / "run")
    assert contents(tmp_path / "run") == [RUN_MARKER]


def test_a_whole_folder_or_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "new" / "a") as folder:
        (folder / "x").write_text("1")
        assert not (tmp_path / "new" / "a").exists()
        _ = 1 / 0
    assert names(tmp_path) == []
    (tmp_path / ".a.0123456789ab.tmp").mkdir()  # of a killed process
    (tmp_path / ".a.b.tmp").mkdir()
    for out in ("a", "b", "c"):
        if out != "a":
            (tmp_path / out).mkdir()
        if out == "c":
            (tmp_path / out / ".DS_Store").write_text("")
        with atomic_folder(tmp_path / out) as folder:
            (folder / "x").write_text(out)
        assert (tmp_path / out / "x").read_text() == out
    assert names(tmp_path) == [".a.b.tmp", "a", "b", "c"]
    with pytest.raises(OutputError, match="not empty"), atomic_folder(tmp_path / "a"):
        pass


def test_images_that_were_killed_while_they_replaced_others_can_be_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def images(first: int) -> GeneratedImages:
        seeds = torch.arange(first, first + 4)
        pixels = torch.full((4, 1, 8, 8), first, dtype=torch.uint8)
        return GeneratedImages(pixels, torch.tensor([0, 0, 1, 1]), ("a", "b"), seeds, {"method": "x"})

    out = tmp_path / "images"
    write_images(images(0), out)
    whole = sorted(path.name for path in out.rglob("*.png"))
    assert whole == [f"seed{i:09d}.png" for i in range(4)]

    from fewgen.generation import writers

    monkeypatch.setattr(writers, "_remove", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_images(images(2), out, overwrite=True)
    monkeypatch.undo()
    assert len(list(out.rglob("*.png"))) > 4
    write_images(images(7), out, overwrite=True)
    assert sorted(path.name for path in out.rglob("*.png")) == [f"seed{i:09d}.png" for i in range(7, 11)]


# ------------------------------------------------------------------------------------------ one at a time

HOLDER = """
import sys
from fewgen.folders import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""

COMMANDS = {
    "train": "train fake --data digits --out OUT",
    "quickstart": "quickstart --out OUT",
    "adapt": "adapt RUN --images IMAGES --out OUT",
    "generate": "generate RUN --out OUT",
    "interpolate": "interpolate RUN one two --out OUT.png",
    "reconstruct": "reconstruct RUN --out OUT.npz",
    "evaluate": "evaluate RUN --out OUT.json",
    "distill": "distill --novel IMAGES --generator RUN --out OUT",
    "compare": "distill --data digits --out OUT.json",
    "benchmark": "benchmark --data digits --out OUT",
}


def test_a_second_process_is_refused_by_every_command_until_the_first_is_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    endings = ("", ".png", ".npz", ".json")
    holders = [child(HOLDER, tmp_path / f"out{ending}") for ending in endings]
    try:
        for holder in holders:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
        before = names(tmp_path)
        assert before == sorted(f".out{ending}.fewgen-lock" for ending in endings)
        for words in COMMANDS.values():
            argv = words.replace("OUT", str(tmp_path / "out")).split()
            assert main(argv) == 2, words
            said = capsys.readouterr().err
            holder = holders[endings.index(Path(argv[-1]).suffix)]
            assert f"is being written by process {holder.pid} on {socket.gethostname()}" in said, words
            assert names(tmp_path) == before
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()
    assert names(tmp_path) == before, "a killed process leaves its lock file"
    for ending in endings:
        with locked(tmp_path / f"out{ending}"):
            pass
    assert names(tmp_path) == []


def test_a_lock_is_one_by_any_name_and_counts_once_in_a_thread(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    said: list[str] = []

    def other() -> None:
        try:
            with locked(tmp_path / "link"):
                said.append("both")
        except OutputError as error:
            said.append(str(error))

    with locked(tmp_path / "real"), locked(tmp_path / "real" / ".." / "link"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert f"process {os.getpid()}" in said[0]
    other()
    assert said[1] == "both"
    assert names(tmp_path) == ["link", "real"]


def test_processes_that_train_together_share_the_lock_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = child(HOLDER, tmp_path / "out")
    assert holder.stdout is not None
    holder.stdout.readline()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with locked(tmp_path / "out"):
        pass
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(OutputError, match=f"process {holder.pid}"), locked(tmp_path / "out"):
        pass
    holder.communicate()


def test_a_lock_that_cannot_be_made_leaves_the_word_to_other_checks(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"file.*is a file"), locked(tmp_path / "file" / "below"):
        RUN.prepare(tmp_path / "file" / "below")


TRAIN = """
import sys
import tests.fake_method
from fewgen.cli.main import main
print("ready", flush=True)
sys.stdin.readline()
sys.exit(main("train fake --data digits --size 8 --shots 5 --text onehot --no-report --no-progress "
              "--model.steps 60 --training.log_every 2".split() + ["--out", sys.argv[1]]))
"""


def test_of_two_trainings_into_one_folder_one_is_refused(tmp_path: Path) -> None:
    pair = [child(TRAIN, tmp_path / "run") for _ in range(2)]
    for process in pair:
        assert process.stdout is not None
        process.stdout.readline()
    for process in pair:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    texts = [process.communicate(timeout=120)[1] for process in pair]
    codes = [process.returncode for process in pair]
    assert sorted(codes) == [0, 2], texts
    assert "is being written by process" in texts[codes.index(2)]
    steps = (tmp_path / "run" / "metrics.jsonl").read_text().count('"kind": "train"')
    assert steps == 30
    assert names(tmp_path) == ["run"]
