"""Locations, joins that cannot escape, and writes that are all or nothing."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import wmtp
from wmtp.errors import UsageError, WmtpError
from wmtp.storage import drop_torn_line, fsync_folder, resolve, safe_join, sha256_file, write_atomic

# resolve


@pytest.mark.parametrize("text", ["data/train.jsonl", "/srv/data", "../up", "odd name:x", "a%20b", "日本/ü"])
def test_plain_text_is_a_local_path_taken_as_written(text: str) -> None:
    assert resolve(text) == Path(text)
    assert resolve(Path(text)) == Path(text)


def test_a_tilde_is_expanded() -> None:
    assert resolve("~/runs") == Path.home() / "runs"


def test_an_unknown_users_home_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="cannot expand"):
        resolve("~no-such-user-here/runs")


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("file:///srv/data", "/srv/data"),
        ("FILE:///srv/data", "/srv/data"),
        ("file://localhost/srv/data", "/srv/data"),
        ("file:///with%20space/100%25/%3F%23", "/with space/100%/?#"),
        ("file:///%C3%BC", "/ü"),
        ("file:///~/x", "/~/x"),
    ],
)
def test_a_file_url_is_decoded_to_its_path(url: str, path: str) -> None:
    assert resolve(url) == Path(path)


@pytest.mark.parametrize("url", ["file://server/share", "file://../x", "file://", "file://x", "file://localhost"])
def test_a_file_url_without_a_local_path_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="file:///folder/file"):
        resolve(url)


@pytest.mark.parametrize("url", ["file:///a?b", "file:///a#b", "file:///a%zz", "file:///a%2"])
def test_a_file_url_with_unescaped_marks_is_refused_with_what_to_write(url: str) -> None:
    with pytest.raises(UsageError, match="%3F"):
        resolve(url)


@pytest.mark.parametrize("text", ["", "a\0b", "file:///a%00b", "\ud800"])
def test_text_that_no_path_can_hold_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        resolve(text)


def test_an_object_is_refused_where_a_disk_is_needed() -> None:
    with pytest.raises(UsageError, match="must be on a local disk, got s3://bucket/key"):
        resolve("s3://bucket/key")


@pytest.mark.parametrize("url", ["gs://b/k", "http://host/x", "h+f-9.x://y"])
def test_an_unknown_scheme_is_refused_with_the_known_ones(url: str) -> None:
    with pytest.raises(UsageError, match=r"file://, embedded://, s3:// and plain local paths"):
        resolve(url)


@pytest.mark.parametrize("location", ["s3:/bucket", Path("s3://bucket/key"), Path("file:///x"), "embedded:/a"])
def test_a_scheme_that_lost_a_slash_is_refused_rather_than_taken_for_a_folder(location: str | Path) -> None:
    with pytest.raises(UsageError, match="one slash"):
        resolve(location)


@pytest.mark.parametrize("name", ["../errors.py", "a/../../errors.py", "", "/etc/passwd", ".", "a\\b", "a\0"])
def test_an_embedded_name_cannot_leave_the_shipped_folder(name: str) -> None:
    with pytest.raises(UsageError):
        resolve(f"embedded://{name}")


def test_an_embedded_name_that_does_not_ship_is_refused_with_the_name() -> None:
    with pytest.raises(UsageError, match="embedded://no-such-thing does not ship"):
        resolve("embedded://no-such-thing")


def test_an_embedded_name_resolves_inside_whatever_package_is_installed(tmp_path: Path) -> None:
    package = tmp_path / "wmtp"
    (package / "embedded" / "toy").mkdir(parents=True)
    (package / "embedded" / "toy" / "a.txt").write_text("shipped")
    for name in ("__init__.py", "errors.py", "outcome.py"):
        shutil.copy(Path(wmtp.__file__).parent / name, package / name)
    shutil.copytree(Path(wmtp.__file__).parent / "storage", package / "storage")
    code = "from wmtp.storage import resolve; print(resolve('embedded://toy/a.txt').read_text(), resolve('embedded://toy/'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["shipped", str(package.resolve() / "embedded" / "toy")]


# safe_join


def test_a_plain_relative_name_is_joined(tmp_path: Path) -> None:
    assert safe_join(tmp_path, "a/b.txt") == tmp_path.resolve() / "a" / "b.txt"


@pytest.mark.parametrize(
    "name", ["/etc", "..", "a/..", "../a", "a//b", "a/", ".", "./a", "", "a\\b", "a\0b", "\udcff\ud800"]
)
def test_a_name_that_is_not_plainly_inside_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        safe_join(tmp_path, name)


def test_a_link_that_leads_outside_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "out").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="leads outside"):
        safe_join(root, "out/secret")


def test_a_link_that_stays_inside_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert safe_join(tmp_path, "link/x") == tmp_path.resolve() / "real" / "x"


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="a loop of links resolves to itself there, which is inside")
def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(UsageError, match="cannot be resolved"):
        safe_join(tmp_path, "a")


# write_atomic


@pytest.mark.parametrize(
    ("data", "stored"), [("grüße\n", "grüße\n".encode()), (b"\0\r\n\xff", b"\0\r\n\xff"), ("", b"")]
)
def test_written_content_is_read_back_exactly_and_nothing_else_remains(
    tmp_path: Path, data: bytes | str, stored: bytes
) -> None:
    path = tmp_path / "f"
    path.write_text("old")
    write_atomic(path, data)
    assert path.read_bytes() == stored
    assert os.listdir(tmp_path) == ["f"]


def test_a_new_file_gets_the_usual_permissions_not_those_of_a_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    write_atomic(tmp_path / "f", "x")
    assert (tmp_path / "f").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_write_that_cannot_take_its_name_leaves_no_litter_and_names_the_path(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(WmtpError, match=r"cannot write .*taken"):
        write_atomic(tmp_path / "taken", "x")
    assert os.listdir(tmp_path) == ["taken"]


def test_a_write_into_a_missing_folder_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(WmtpError, match=r"cannot write .*none/f: No such file"):
        write_atomic(tmp_path / "none" / "f", "x")


FULL = """
import resource, signal, sys
from pathlib import Path
from wmtp.errors import WmtpError
from wmtp.storage import write_atomic
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_atomic(Path(sys.argv[1]), "x" * 5000)
except WmtpError as error:
    print(error)
"""


def test_a_write_that_hits_a_limit_half_way_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("old")
    done = subprocess.run([sys.executable, "-c", FULL, path], capture_output=True, text=True, check=True)
    assert done.stdout == f"cannot write {path}: File too large\n"
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["f"]


# sha256_file and fsync_folder


def test_the_checksum_is_that_of_the_whole_content(tmp_path: Path) -> None:
    content = os.urandom(1) * 3_000_001
    (tmp_path / "f").write_bytes(content)
    assert sha256_file(tmp_path / "f") == hashlib.sha256(content).hexdigest()


def test_the_checksum_of_a_missing_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(WmtpError, match=r"cannot read .*none"):
        sha256_file(tmp_path / "none")


def test_syncing_what_is_no_folder_names_it(tmp_path: Path) -> None:
    fsync_folder(tmp_path)
    (tmp_path / "f").touch()
    with pytest.raises(WmtpError, match=r"cannot sync .*f: Not a directory"):
        fsync_folder(tmp_path / "f")


@pytest.mark.parametrize("torn", [b"", b"x", b"y" * 70_000, b'{"a": "\xc3'])
@pytest.mark.parametrize("whole", [b"", b"one\n", b"one\n" + b"t" * 140_000 + b"\n"])
def test_a_torn_last_line_is_cut_off_and_nothing_else(tmp_path: Path, whole: bytes, torn: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(whole + torn)
    drop_torn_line(path)
    assert path.read_bytes() == whole
