"""What is no video is refused with the right class and a sentence that names the file and the way out."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from closeup.tools.video import (
    BackendMissing,
    Clip,
    EmptyFile,
    FileChanged,
    NotAFile,
    NotAVideo,
    NoVideoStream,
    Video,
    VideoError,
    VideoNotFound,
)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(VideoNotFound, match=r"no file at .*nothing\.mp4"):
        Video(tmp_path / "nothing.mp4")
    with pytest.raises(VideoNotFound):
        Video(tmp_path / "nothing.mp4" / "below.mp4")


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.mp4"
    path.touch()
    with pytest.raises(EmptyFile, match="0 bytes"):
        Video(path)


def test_folder_pipe_device_and_socket_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    for path, word in ((tmp_path, "folder"), (tmp_path / "pipe.mp4", "pipe"), (Path("/dev/zero"), "device")):
        with pytest.raises(NotAFile, match=word):
            Video(path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        with pytest.raises(NotAFile, match="socket"):
            Video(tmp_path / "s")


def test_a_link_to_a_video_is_followed(barcode_mp4: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(barcode_mp4)
    with Video(tmp_path / "link") as linked, Video(barcode_mp4) as direct:
        assert linked.identity == direct.identity


@pytest.mark.parametrize(
    "address",
    [
        "http://example.org/a.mp4",
        "https://example.org/a.mp4",
        "rtsp://camera/1",
        "concat:a.mp4|b.mp4",
        "file:/etc/passwd",
        "pipe:0",
        "subfile,,start,0,end,100,,:a.mp4",
        "data:video/mp4;base64,AAAA",
    ],
)
def test_addresses_and_protocols_are_refused(address: str) -> None:
    with pytest.raises(NotAFile, match="only local files"):
        Video(address)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html><html><body>404</body></html>", "HTML page"),
        (b"#EXTM3U\n#EXTINF:10,\nother.ts\n#EXT-X-ENDLIST\n", "playlist"),
        (b"<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'></MPD>", "XML"),
        (b"ffconcat version 1.0\nfile other.mp4\n", "list of other files"),
        (np.random.default_rng(0).bytes(50_000), "no known container"),
        (b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 5004 RTP/AVP 96\n", "no known container"),
    ],
)
def test_not_a_video(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "thing.mp4"
    path.write_bytes(content)
    with pytest.raises(NotAVideo, match=words) as caught:
        Video(path)
    assert "thing.mp4" in str(caught.value)


def test_lists_never_open_other_files(barcode_mp4: Path, tmp_path: Path) -> None:
    for name, text in (
        ("list.ffconcat", f"ffconcat version 1.0\nfile {barcode_mp4}\n"),
        ("list.m3u8", f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:6,\n{barcode_mp4}\n#EXT-X-ENDLIST\n"),
        ("%03d.jpg", "not a picture"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(NotAVideo):
            Video(tmp_path / name)


def test_sound_only(tmp_path: Path) -> None:
    path = tmp_path / "sound.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(NoVideoStream, match="only sound"):
        Video(path)


def test_sound_with_a_cover_picture(ffmpeg: None, tmp_path: Path) -> None:
    path = tmp_path / "song.mp3"
    source = ("-f", "lavfi", "-i", "sine=d=1", "-f", "lavfi", "-i", "testsrc=s=64x64:d=1")
    cover = ("-map", "0", "-map", "1", "-frames:v", "1", "-c:v", "mjpeg", "-disposition:v", "attached_pic")
    subprocess.run(["ffmpeg", "-v", "error", *source, *cover, path], check=True)
    with pytest.raises(NoVideoStream, match="cover picture"):
        Video(path)


def test_unreadable_file(barcode_mp4: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read every file")
    path = tmp_path / "secret.mp4"
    path.write_bytes(barcode_mp4.read_bytes())
    path.chmod(0)
    with pytest.raises(VideoError, match="permission"):
        Video(path)


def test_a_file_that_changes_is_noticed(barcode_mp4: Path, tmp_path: Path) -> None:
    path = tmp_path / "growing.mp4"
    path.write_bytes(barcode_mp4.read_bytes())
    with Video(path) as video:
        video.frames([0.0])
        path.write_bytes(barcode_mp4.read_bytes() + b"more")
        with pytest.raises(FileChanged, match="open it again"):
            video.frames([0.0])
        path.unlink()
        with pytest.raises(VideoNotFound):
            video.frames([0.0])


def test_bad_requests_are_value_errors(barcode_mp4: Path) -> None:
    video = Video(barcode_mp4)
    for times, match in (([], "no times"), ([float("nan")], "finite"), ([1.0, float("inf")], "finite")):
        with pytest.raises(ValueError, match=match):
            video.frames(times)
    with pytest.raises(ValueError, match="at least 1"):
        video.frames([0.0], (0, 10))
    with pytest.raises(ValueError, match="GiB"):
        video.frames([0.0], (100_000, 100_000))
    with pytest.raises(ValueError, match="'exact' or 'keyframe'"):
        video.frames([0.0], mode="fast")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the clip is of video 'another'"):
        video.frames(Clip(video="another", start=0, end=1, num_frames=2, pixels=1000))
    with pytest.raises(ValueError, match="threads"):
        Video(barcode_mp4, threads=0)
    with pytest.raises(ValueError, match="known: pyav, decord, torchcodec"):
        Video(barcode_mp4, backend="opencv")
    video.close()
    video.close()
    with pytest.raises(ValueError, match="closed"):
        video.frames([0.0])


def test_a_missing_backend_names_its_install_line(barcode_mp4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "decord", None)
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    for name in ("decord", "torchcodec"):
        monkeypatch.delitem(sys.modules, f"closeup.tools.video.backends._{name}", raising=False)
        with pytest.raises(BackendMissing, match=rf'pip install "closeup\[{name}\]"'):
            Video(barcode_mp4, backend=name)


def test_importing_loads_neither_a_decoder_nor_torch() -> None:
    code = "import sys; from closeup.tools.video import Video; print([m for m in ('torch', 'av') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
