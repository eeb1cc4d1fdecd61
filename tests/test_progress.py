import io

import pytest

from fewgen.clock import Limit, TimeIsUp
from fewgen.progress import Display, DownloadProgress, ShownProgress, within


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_display_shows_progress(stream):
    display = Display(True, stream, seconds_between_lines=0.0)
    display.start_stage("vae", 0, 10, "learns")
    for step in range(1, 11):
        display.update(step, 10, {"image": 1.5} if step % 5 == 0 else None)
    display.warn("take care")
    display.close()
    text = stream.getvalue()
    assert "vae" in text
    assert ("10/10" if stream.isatty() else "Training vae: step 10 of 10, 0 s left") in text
    assert "image 1.5" in text
    assert "take care" in text


def test_display_off_shows_only_warnings():
    stream = io.StringIO()
    display = Display(False, stream)
    display.start_stage("vae", 0, 10)
    display.update(5, 10, {"image": 1.0})
    display.note("hello")
    display.warn("take care")
    display.close()
    assert stream.getvalue() == "warning: take care\n"


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when it is told to."""
    import time

    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_part_is_named_once_where_nothing_can_be_rewritten(clock):
    for stream, text in (
        (io.StringIO(), "Judge\nCopies, 0 s left\n"),
        (Terminal(), "\r\x1b[KJudge\r\x1b[KJudge, 0 s left\r\x1b[KCopies, 0 s left\r\x1b[K"),
    ):
        shown = ShownProgress(True, stream)
        for part, share in (("judge", 0.0), ("judge", 1.0), ("copies", 0.5)):
            shown(part, share)
        shown.close()
        assert stream.getvalue() == text


def test_progress_is_a_sentence_with_a_count_and_a_time_left(clock):
    """Parts whose seconds are known tell what is left of all; the pace so far corrects it."""
    parts = {"drawing images": 2.0, "training a judge": 20.0, "weighing verdicts": 3.0}
    told = (
        (0, "drawing images", 0.0),
        (4, "training a judge", 0.0),
        (14, "training a judge", 0.25),
        (17, "training a judge", 0.3),
        (44, "weighing verdicts", 0.0),
    )
    expected = [
        "Measuring 1 of 3: drawing images, 25 s left",
        "Measuring 2 of 3: training a judge, 46 s left",
        "Measuring 2 of 3: training a judge, 36 s left",
        "Measuring 2 of 3: training a judge, 36 s left",
        "Measuring 3 of 3: weighing verdicts, 6 s left",
    ]
    for stream, lines in ((io.StringIO(), [*expected[:3], expected[4]]), (Terminal(), expected)):
        clock[0] = 100.0
        shown = ShownProgress(True, stream, parts=parts)
        for seconds, part, share in told:
            clock[0] = 100.0 + seconds
            shown(part, share)
        said = stream.getvalue().replace("\r\x1b[K", "\n").split("\n")
        assert [line for line in said if line] == lines


def test_work_stops_once_the_limit_is_over(clock):
    told = []
    limit = Limit(1.0)
    progress = within(lambda part, share: told.append(part), limit)
    progress("a", 0.0)
    clock[0] += 61
    with pytest.raises(TimeIsUp, match=r"Not measured: the time limit of 1 minute\."):
        progress("b", 0.0)
    assert told == ["a"]
    assert within(None, Limit()) is None
    silent = ShownProgress(False, io.StringIO())
    silent("judge", 0.0)
    silent.close()
    assert silent.stream.getvalue() == ""


def test_a_download_ends_its_line_on_a_terminal():
    stream = Terminal()
    progress = DownloadProgress(stream=stream)
    progress("http://x/file.gz", 500_000, 1_000_000)
    progress("http://x/file.gz", 1_000_000, 1_000_000)
    assert stream.getvalue() == (
        "\r\x1b[Kfile.gz: 0.5 of 1.0 MB (50 %)\r\x1b[Kfile.gz: 1.0 of 1.0 MB (100 %)\n"
    )
