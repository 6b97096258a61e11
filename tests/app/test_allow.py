"""`Allowed`: which local files may be read, tried with everything that should not get through."""

from __future__ import annotations

import os
import shutil
import socket
import string
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from closeup.app.allow import MAX_LINKS, Allowed, NotAllowed
from closeup.app.errors import BadInput

ROOT = "root"  # a name in /proc/self that leads to the whole file system


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder `films` with a film in it, and next to it `secret` with what nobody may read.

    Not below pytest's own folder: a socket's path may have 108 bytes at most.
    """
    root = Path(tempfile.mkdtemp(prefix="cu-")).resolve()
    (root / "films" / "old").mkdir(parents=True)
    (root / "films" / "a.mp4").write_bytes(b"film")
    (root / "films" / "old" / "b.mp4").write_bytes(b"film")
    (root / "secret").mkdir()
    (root / "secret" / "key").write_bytes(b"secret")
    yield root
    shutil.rmtree(root)


@pytest.fixture
def allowed(place: Path) -> Allowed:
    return Allowed([place / "films"])


def refusal(allowed: Allowed, text: str) -> str:
    """The sentence that refuses `text`, in a thread with a limit: a check that waits is a failure, not a hang."""
    caught: list[object] = []

    def attempt() -> None:
        try:
            caught.append(allowed.path(text))
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(10)
    assert caught, f"{text[:60]!r} made the check wait"
    assert isinstance(caught[0], NotAllowed), f"{text[:60]!r} gave {caught[0]!r}"
    return str(caught[0])


@pytest.mark.parametrize("text", ["a.mp4", "./a.mp4", "old/b.mp4", "old//b.mp4", "old/./b.mp4"])
def test_a_name_is_looked_for_in_the_folder(allowed: Allowed, place: Path, text: str) -> None:
    assert allowed.path(text) == place / "films" / text.replace("//", "/")
    assert allowed.path(f"{place}/films/{text}") == place / "films" / text.replace("//", "/")


def test_never_in_the_working_folder(allowed: Allowed, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place / "secret")
    assert "is not there" in refusal(allowed, "key")
    assert allowed.path("a.mp4") == place / "films" / "a.mp4"


def test_folders_are_tried_in_order(place: Path) -> None:
    (place / "more").mkdir()
    for name in ("a.mp4", "c.mp4"):
        (place / "more" / name).write_bytes(b"more")
    both = Allowed([place / "films", place / "more"])
    assert both.path("a.mp4") == place / "films" / "a.mp4"
    assert both.path("c.mp4") == place / "more" / "c.mp4"


def test_single_files(place: Path) -> None:
    one = Allowed([], files=[place / "films" / "a.mp4"])
    assert one.path("a.mp4") == one.path(str(place / "films" / "a.mp4")) == place / "films" / "a.mp4"
    assert "not in a folder" in refusal(one, str(place / "films" / "old" / "b.mp4"))
    assert "not a file that may be read" in refusal(one, "b.mp4")
    (place / "films" / "a.mp4").unlink()
    (place / "films" / "a.mp4").symlink_to(place / "secret" / "key")  # exchanged since
    refusal(one, "a.mp4")
    refusal(one, str(place / "films" / "a.mp4"))


def test_nothing_allowed_allows_nothing(place: Path) -> None:
    assert "No folder is allowed" in refusal(Allowed([]), str(place / "films" / "a.mp4"))


@pytest.mark.parametrize(
    "text",
    [
        "file:///etc/passwd", "FILE:///etc/passwd", "file:/etc/passwd", "http://127.0.0.1/a.mp4", "https:a.mp4",
        "http://169.254.169.254/latest/meta-data", "rtsp://host/1", "s3://bucket/key", "data:video/mp4;base64,AAAA",
        "concat:/etc/passwd|/etc/passwd", "pipe:0", "fd:3", "c:\\films\\a.mp4", "x-y.z+1:rest",
        "//server/share/a.mp4", "\\\\server\\share\\a.mp4", "\\\\?\\C:\\a.mp4",
    ],
)  # fmt: skip
def test_addresses(allowed: Allowed, text: str) -> None:
    sentence = refusal(allowed, text)
    assert "is an address" in sentence and "Accepted: a file in" in sentence


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "empty"), (" \n", "empty"), ("a.mp4\0.txt", "zero byte"), ("\0", "zero byte"), ("~/a.mp4", "'~'"),
        ("~root/a.mp4", "'~'"), ("x" * 5000, "4096 bytes"), ("é" * 2049, "4096 bytes"), ("x" * 300, "is not there"),
        ("a/" * 2000 + "b", "is not there"), ("a\ud800.mp4", "UTF-8"), ("no.mp4", "is not there"),
        ("a.mp4/b.mp4", "is not there"), ("old", "a folder"), (".", "a folder"), ("A.MP4", "is not there"),
    ],
)  # fmt: skip
def test_what_is_no_file_is_said(allowed: Allowed, text: str, word: str) -> None:
    sentence = refusal(allowed, text)
    assert word in sentence and len(sentence) < 400 and "\0" not in sentence
    sentence.encode()  # can be printed


@pytest.mark.parametrize("text", [None, 3, b"a.mp4", ["a.mp4"], Path("a.mp4")])
def test_only_text_is_a_name(allowed: Allowed, text: object) -> None:
    with pytest.raises(NotAllowed, match="a file's name is text, got"):
        allowed.path(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "../secret/key", "old/../../secret/key", "..", "old/..", "../films/a.mp4", "a.mp4/../../secret/key",
        "{films}/../secret/key", "{films}/old/../../secret/key", "/../../etc/passwd",
    ],
)  # fmt: skip
def test_dots(allowed: Allowed, place: Path, text: str) -> None:
    assert "holds '..'" in refusal(allowed, text.format(films=place / "films"))


@pytest.mark.parametrize(
    "text",
    [
        "%2e%2e/secret/key", "..%2fsecret%2fkey", "%2e%2e%2fsecret%2fkey", "..%c0%afsecret/key", "%00", "a.mp4%00",
        "．．/secret/key", "‥/secret/key", "․․/secret/key", "..∕secret∕key", "..／secret／key", "..\\secret\\key",
        "ａ.mp4", "а.mp4", "a․mp4", "a.mp4 ", " a.mp4", "a.mp4\n", "a.mp4/", "*.mp4", "[a].mp4", "$HOME", "`id`",
    ],
)  # fmt: skip
def test_names_are_literal(allowed: Allowed, text: str) -> None:
    """No percent-decoding, no look-alike letters, no shell, no wildcard: such names are names of files not there."""
    if text == "a.mp4/":
        assert allowed.path(text).name == "a.mp4"
        return
    assert "is not there" in refusal(allowed, text)


def test_a_file_of_a_strange_name_is_found_by_it(allowed: Allowed, place: Path) -> None:
    for name in ("%2e%2e", "．．", "a b\nc.mp4", "..\\x", "...", "..a", "-rf", "film: two.mp4"):
        (place / "films" / name).write_bytes(b"x")
        assert allowed.path(f"{place}/films/{name}") == place / "films" / name


def test_links_inside_lead_to_the_real_file(allowed: Allowed, place: Path) -> None:
    films = place / "films"
    (films / "same.mp4").symlink_to("a.mp4")
    (films / "full.mp4").symlink_to(films / "a.mp4")
    (films / "older").symlink_to("old")
    (films / "old" / "up.mp4").symlink_to("../a.mp4")
    (films / "round.mp4").symlink_to("../films/old/up.mp4")
    for name in ("same.mp4", "full.mp4", "old/up.mp4", "older/up.mp4", "round.mp4"):
        assert allowed.path(name) == films / "a.mp4"
    assert allowed.path("older/b.mp4") == films / "old" / "b.mp4"


def test_links_out(allowed: Allowed, place: Path) -> None:
    films = place / "films"
    (films / "key").symlink_to(place / "secret" / "key")
    (films / "relative").symlink_to("../secret/key")
    (films / "folder").symlink_to("../secret")
    (films / "root").symlink_to("/")
    (films / "one").symlink_to("two")
    (films / "two").symlink_to("old/three")
    (films / "old" / "three").symlink_to(place / "secret" / "key")
    (place / "secret" / "back").symlink_to(films / "a.mp4")
    (films / "out-and-back").symlink_to(place / "secret" / "back")
    (films / "dotted").symlink_to("../secret/../films/a.mp4")
    for name in ("key", "relative", "folder/key", "root/etc/passwd", "one", "two", "out-and-back", "dotted"):
        assert "is not in a folder that may be read" in refusal(allowed, name)
        assert "is not in a folder that may be read" in refusal(allowed, str(films / name))


def test_chains_of_links_end(allowed: Allowed, place: Path) -> None:
    films = place / "films"
    (films / "self").symlink_to("self")
    (films / "ping").symlink_to("pong")
    (films / "pong").symlink_to("ping")
    (films / "grow").symlink_to("grow/grow")
    before = "a.mp4"
    for index in range(MAX_LINKS + 1):
        (films / f"link{index}").symlink_to(before)
        before = f"link{index}"
    for name in ("self", "ping", "grow", f"link{MAX_LINKS}"):
        assert "ever more links" in refusal(allowed, name)
    assert allowed.path(f"link{MAX_LINKS - 1}") == films / "a.mp4"


def test_a_folder_given_by_way_of_a_link(place: Path) -> None:
    (place / "link").symlink_to("films")
    by_link = Allowed([place / "link"])
    assert by_link.folders == (place / "films",)
    for text in ("a.mp4", str(place / "link" / "a.mp4"), str(place / "films" / "a.mp4")):
        assert by_link.path(text) == place / "films" / "a.mp4"
    (place / "link").unlink()
    (place / "link").symlink_to("secret")  # the link was exchanged: its name still means what was allowed
    assert by_link.path(str(place / "link" / "a.mp4")) == place / "films" / "a.mp4"
    refusal(by_link, str(place / "link" / "key"))


def test_a_folder_swapped_for_a_link_allows_nothing(allowed: Allowed, place: Path) -> None:
    assert allowed.path("old/b.mp4")
    shutil.move(place / "films" / "old", place / "gone")
    (place / "secret" / "b.mp4").write_bytes(b"secret")
    (place / "films" / "old").symlink_to(place / "secret")
    assert "is not in a folder" in refusal(allowed, "old/b.mp4")
    shutil.move(place / "films", place / "moved")
    (place / "films").symlink_to(place / "secret")
    for text in ("key", str(place / "films" / "key"), str(place / "films" / "b.mp4")):
        refusal(allowed, text)


def test_a_parent_of_the_folder_swapped_for_a_link(place: Path) -> None:
    (place / "up" / "films").mkdir(parents=True)
    (place / "up" / "films" / "key").write_bytes(b"film")
    (place / "bad" / "films").mkdir(parents=True)
    (place / "bad" / "films" / "key").write_bytes(b"secret")
    allowed = Allowed([place / "up" / "films"], files=[place / "up" / "films" / "key"])
    assert allowed.path("key")
    shutil.move(place / "up", place / "was")
    (place / "up").symlink_to("bad")
    refusal(allowed, "key")
    refusal(allowed, str(place / "up" / "films" / "key"))


def test_a_folder_made_anew_is_the_same_folder(allowed: Allowed, place: Path) -> None:
    """The demo empties and makes its folder of uploads again."""
    shutil.rmtree(place / "films")
    assert "is not" in refusal(allowed, "a.mp4")
    (place / "films").mkdir()
    (place / "films" / "a.mp4").write_bytes(b"new")
    assert allowed.path("a.mp4") == place / "films" / "a.mp4"


def test_what_is_not_a_plain_file_never_waits(allowed: Allowed, place: Path) -> None:
    os.mkfifo(place / "films" / "pipe.mp4")
    (place / "films" / "to-pipe.mp4").symlink_to("pipe.mp4")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(place / "films" / "socket.mp4"))
        assert "is a socket" in refusal(allowed, "socket.mp4")
    assert "is a pipe" in refusal(allowed, "pipe.mp4")
    assert "is a pipe" in refusal(allowed, "to-pipe.mp4")


def test_devices_and_the_kernels_files(allowed: Allowed, place: Path) -> None:
    for name, target in (("zero", "/dev/zero"), ("self", "/proc/self/fd/0"), ("env", "/proc/self/environ")):
        (place / "films" / name).symlink_to(target)
        assert "is not in a folder" in refusal(allowed, name)
    for text in ("/dev/zero", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0", f"/proc/self/{ROOT}/etc/passwd"):
        assert "is not in a folder" in refusal(allowed, text)
    careless = Allowed(["/dev", "/proc"])
    assert "is a device" in refusal(careless, "/dev/zero")
    for text in ("/proc/kmsg", "/proc/self/environ", "/proc/kcore", f"/proc/self/{ROOT}/etc/passwd", "/proc/self/fd/0"):
        refusal(careless, text)
    with (place / "films" / "a.mp4").open("rb") as file:  # a descriptor of an allowed file is that file
        both = Allowed([place / "films", "/proc"])
        assert both.path(f"/proc/{os.getpid()}/fd/{file.fileno()}") == place / "films" / "a.mp4"
    with (place / "secret" / "key").open("rb") as file:
        assert "is not in a folder" in refusal(both, f"/proc/{os.getpid()}/fd/{file.fileno()}")


def test_size(place: Path) -> None:
    small = Allowed([place / "films"], max_gb=0.001)
    with (place / "films" / "big.mp4").open("wb") as file:
        file.truncate(1_000_001)
    sentence = refusal(small, "big.mp4")
    assert "0.001 GB" in sentence and "not larger than 0.001 GB" in sentence
    with (place / "films" / "big.mp4").open("wb") as file:
        file.truncate(1_000_000)
    assert small.path("big.mp4")
    (place / "films" / "none.mp4").touch()
    assert "is empty (0 bytes)" in refusal(small, "none.mp4")
    with pytest.raises(BadInput, match="more than 0 GB"):
        Allowed([place / "films"], max_gb=0)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_no_permission(allowed: Allowed, place: Path) -> None:
    (place / "films" / "a.mp4").chmod(0)
    assert "no permission" in refusal(allowed, "a.mp4")


def test_the_sentence_does_not_tell_whether_a_forbidden_file_exists(allowed: Allowed, place: Path) -> None:
    films = place / "films"
    (films / "link").symlink_to(place / "secret" / "key")
    (films / "dir").symlink_to(place / "secret")
    asked = ("link", "dir/key", str(place / "secret" / "key"), str(place / "secret"), f"{place}/secret/key/x", "dir")
    there = [refusal(allowed, text) for text in asked]
    shutil.rmtree(place / "secret")
    assert [refusal(allowed, text) for text in asked] == there


def test_what_is_outside_is_never_looked_at(allowed: Allowed, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    films, looked = place / "films", list[str]()
    (films / "link").symlink_to(place / "secret" / "key")
    (films / "dir").symlink_to("../secret")

    def watching(name: str) -> None:
        real = getattr(os, name)

        def watch(path: str | os.PathLike[str], *args: object, **more: object) -> object:
            looked.append(os.fspath(path))
            return real(path, *args, **more)

        monkeypatch.setattr(os, name, watch)

    for name in ("lstat", "stat", "readlink", "access", "open", "scandir", "listdir"):
        watching(name)
    for text in ("link", "dir/key", str(place / "secret" / "key"), "/etc/passwd", "a.mp4"):
        try:
            allowed.path(text)
        except NotAllowed:
            continue
    monkeypatch.undo()
    assert looked and any(path.startswith(str(films)) for path in looked)
    ancestors = {str(parent) for parent in films.parents}  # looked at to see that none became a link
    assert [path for path in looked if not path.startswith(str(films)) and path not in ancestors] == []


def test_who_reads_the_refusal_need_not_learn_the_folders(place: Path) -> None:
    shy = Allowed([place / "films"], accepted="an uploaded video or an example")
    for text in ("../x", "/etc/passwd", "no.mp4", "old", "http://x/"):
        sentence = refusal(shy, text)
        assert sentence.endswith(" Accepted: an uploaded video or an example.") and str(place) not in sentence


@pytest.mark.parametrize("bad", ["no", "films/a.mp4", "bad\0name"])
def test_a_folder_to_allow_must_be_one(place: Path, bad: str) -> None:
    with pytest.raises(BadInput, match="give"):
        Allowed([f"{place}/{bad}"])


def test_a_file_to_allow_must_be_one(place: Path) -> None:
    with pytest.raises(BadInput, match="is not a file"):
        Allowed([], files=[place / "films"])


PARTS = st.sampled_from(
    ["films", "secret", "a.mp4", "key", "old", "b.mp4", "in", "out", "up", "root", "loop", "..", ".", "", "%2e%2e", "~"]
)


@pytest.fixture(scope="module")
def tree() -> Iterator[Path]:
    """As `place`, with links of every sort, for many tries."""
    root = Path(tempfile.mkdtemp(prefix="cu-")).resolve()
    (root / "films" / "old").mkdir(parents=True)
    (root / "secret" / "old").mkdir(parents=True)
    for file in ("films/a.mp4", "films/old/b.mp4", "secret/key", "secret/a.mp4", "secret/old/b.mp4", "key"):
        (root / file).write_bytes(b"x")
    for link, target in (
        ("films/in", "old"), ("films/out", "../secret"), ("films/root", "/"), ("films/loop", "loop"),
        ("films/old/up", ".."), ("films/old/out", "../../secret/a.mp4"), ("films/up", ".."), ("secret/in", "../films"),
        ("films/key", "../films/a.mp4"), ("films/old/key", "../up/key"),
    ):  # fmt: skip
        (root / link).symlink_to(target)
    yield root
    shutil.rmtree(root)


@settings(max_examples=600, deadline=None)
@given(parts=st.lists(PARTS, min_size=1, max_size=7), absolute=st.booleans())
def test_property_only_real_files_inside_get_through(tree: Path, parts: list[str], absolute: bool) -> None:
    text = "/".join(([str(tree)] if absolute else []) + parts)
    try:
        found = Allowed([tree / "films"]).path(text)
    except NotAllowed as error:
        assert "Accepted: a file in" in str(error)
        # What is plainly inside, without any link out, is never refused by mistake.
        start = tree if absolute else tree / "films"
        plain = ".." not in parts and "~" not in parts[:1] and text.startswith("/") == absolute
        if plain and not {"out", "up", "root", "loop", "secret", "key"} & set(parts):
            assert not (start / "/".join(parts).strip("/")).is_file()
        return
    assert found.is_file() and not found.is_symlink()
    assert os.path.realpath(found) == str(found) and found.is_relative_to(tree / "films")


@settings(max_examples=400, deadline=None)
@given(text=st.text(alphabet=st.one_of(st.characters(), st.sampled_from("./:\\~%\0")), max_size=80))
def test_property_any_text_ends_in_a_sentence(tree: Path, text: str) -> None:
    try:
        found = Allowed([tree / "films"]).path(text)
    except NotAllowed as error:
        str(error).encode()
        assert str(error).endswith("GB.")
    else:
        assert found.is_relative_to(tree / "films")


@settings(max_examples=200, deadline=None)
@given(name=st.text(alphabet=string.ascii_letters + string.digits + "._- é漢", min_size=1, max_size=40))
def test_property_whether_a_forbidden_file_exists_changes_nothing(tree: Path, name: str) -> None:
    if name in (".", "..", "key", "a.mp4", "old", "in"):
        return
    target = tree / "secret" / name
    allowed = Allowed([tree / "films"])
    texts = (str(target), f"out/{name}", f"{tree}/films/out/{name}", f"{target}/x")
    before = [refusal(allowed, text) for text in texts]
    target.write_bytes(b"x")
    try:
        assert [refusal(allowed, text) for text in texts] == before
    finally:
        target.unlink()
