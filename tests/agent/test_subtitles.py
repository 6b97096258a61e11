from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from closeup.agent import subtitles
from closeup.agent.subtitles import SubtitleError, cues_between, parse_subtitles, read_subtitles
from closeup.agent.task import Cue

SRT = """1
00:00:01,000 --> 00:00:02,500
Hello <i>there</i>,
{\\an8}you.

7
01:02:03.5 --> 01:02:04,050 X1:10 X2:20
I <3 this &amp; that
"""

VTT = """WEBVTT - a title

STYLE
::cue { color: red }

NOTE a comment
over two lines

intro
00:01.000 --> 00:02.000 align:start
<v Ann Lee>Good <c.loud>morning</c></v>

00:00.500 --> 00:00.900
<00:00:00.600>first
"""


def test_srt_cues_are_read_with_times_in_seconds_and_without_mark_up() -> None:
    assert parse_subtitles(SRT) == (
        Cue(start=1.0, end=2.5, text="Hello there, you."),
        Cue(start=3723.5, end=3724.05, text="I <3 this & that"),
    )


def test_vtt_cues_are_read_in_time_order_with_the_speaker() -> None:
    assert parse_subtitles(VTT) == (
        Cue(start=0.5, end=0.9, text="first"),
        Cue(start=1.0, end=2.0, text="Ann Lee: Good morning"),
    )


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("text", [SRT, VTT])
def test_byte_order_marks_and_line_endings_make_no_difference(
    tmp_path: Path, ending: str, mark: bytes, text: str
) -> None:
    path = tmp_path / "film.srt"
    path.write_bytes(mark + text.replace("\n", ending).encode())
    assert read_subtitles(path) == parse_subtitles(text)


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("1\n00:00:01,000 --> 00:00:02,000\nA\n\nB, after an empty line\n", 5, "no line may be empty"),
        ("1\n00:00:03,000 --> 00:00:02,000\nA\n", 2, "before it starts"),
        ("1\n00:00:01 --> 00:00:02\nA\n", 2, "expected times like"),
        ("1\n00:71:01,000 --> 00:71:02,000\nA\n", 2, "expected times like"),
        ("\n\n4\n", 4, "got nothing"),
        ("1\n00:00:01,000 --> 00:00:02,000\nA\n2\n00:00:03,000 --> 00:00:04,000\nB\n", 2, "empty line is missing"),
        ("<html>\n<body>\n", 1, "expected a cue's number"),
        ("WEBVTT\n\nname\nno times\n", 4, "expected times like"),
    ],
)
def test_a_malformed_file_is_refused_with_the_line(text: str, line: int, what: str) -> None:
    with pytest.raises(SubtitleError, match=what) as caught:
        parse_subtitles(text, name="film.srt")
    assert str(caught.value).startswith(f"film.srt, line {line}: ")


@pytest.mark.parametrize("text", ["", "WEBVTT\n", "\n\n", "1\n00:00:01,000 --> 00:00:02,000\n<i></i>\n"])
def test_a_file_without_a_cue_is_refused(text: str) -> None:
    with pytest.raises(SubtitleError, match="holds no cue"):
        parse_subtitles(text)


def test_files_that_cannot_be_read_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SubtitleError, match="does not exist"):
        read_subtitles(tmp_path / "no.srt")
    with pytest.raises(SubtitleError, match="not a file"):
        read_subtitles(tmp_path)
    latin = tmp_path / "latin.srt"
    latin.write_bytes(b"1\n00:00:01,000 --> 00:00:02,000\ncaf\xe9\n")
    with pytest.raises(SubtitleError, match=r"line 3: not UTF-8.*iconv"):
        read_subtitles(latin)
    monkeypatch.setattr(subtitles, "MAX_BYTES", 10)
    with pytest.raises(SubtitleError, match="too large"):
        read_subtitles(latin)


def test_cues_between_takes_what_is_shown_in_the_window_and_nothing_else() -> None:
    cues = tuple(Cue(start=a, end=b, text=f"{a}-{b}") for a, b in [(0, 2), (2, 4), (3, 9), (5, 5), (6, 7)])
    assert [cue.text for cue in cues_between(cues, 4, 6)] == ["3-9", "5-5"]
    assert [cue.text for cue in cues_between(cues, 2, 2)] == ["2-4"]
    assert cues_between(cues, 9, 12) == ()
    with pytest.raises(ValueError, match="before it starts"):
        cues_between(cues, 2, 1)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 10**7), st.integers(0, 10**5), st.text(alphabet="abc xyz.,!?'0123456789", min_size=1)
        ).filter(lambda cue: bool(cue[2].strip())),
        min_size=1,
        max_size=20,
    )
)
def test_what_is_written_is_read_back(cues: list[tuple[int, int, str]]) -> None:
    def clock(ms: int) -> str:
        return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02},{ms % 1000:03}"

    text = "\n".join(f"{i}\n{clock(a)} --> {clock(a + d)}\n{t}\n" for i, (a, d, t) in enumerate(cues, 1))
    expected = sorted(((a, a + d, " ".join(t.split())) for a, d, t in cues), key=lambda cue: cue[0])
    read = parse_subtitles(text)
    assert [(round(c.start * 1000), round(c.end * 1000), c.text) for c in read] == expected


@given(st.text(max_size=300) | st.text(alphabet="<v>0123:,.- \n&{}\\WEBVT", max_size=300))
def test_any_text_gives_cues_or_a_subtitle_error(text: str) -> None:
    try:
        cues = parse_subtitles(text)
    except SubtitleError as error:
        assert str(error)
    else:
        assert cues and all(cue.start <= cue.end and cue.text for cue in cues)
