import io

import pytest

from fewgen.progress import Display, DownloadProgress, ShownProgress


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
    assert "10/10" in text
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


def test_a_part_is_named_once_where_nothing_can_be_rewritten():
    for stream, text in (
        (io.StringIO(), "judge\ncopies\n"),
        (Terminal(), "\r\x1b[Kjudge 0%\r\x1b[Kjudge 100%\r\x1b[Kcopies 50%\r\x1b[K"),
    ):
        shown = ShownProgress(True, stream)
        for part, share in (("judge", 0.0), ("judge", 1.0), ("copies", 0.5)):
            shown(part, share)
        shown.close()
        assert stream.getvalue() == text
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
