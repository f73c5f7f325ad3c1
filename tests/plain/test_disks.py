"""Where files and directories are written: through links, to mount points, to disks that are full."""

import errno
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from disks import fill, mounted

from keras_ci2p import utils
from keras_ci2p.presets import PresetError, open_preset


def write_directory(path, text="new", **options):
    with utils.atomic_directory(path, **options) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "file").write_text(text)
        (temporary / "file").write_text(text)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def is_written(directory, text="new"):
    return (directory / "file").read_text() == (directory / "inner" / "file").read_text() == text


# Symbolic links


@pytest.mark.parametrize("there", [True, False], ids=["there", "dangling"])
def test_a_link_to_a_file_stays_one(tmp_path, there):
    target, link = tmp_path / "far" / "file.json", tmp_path / "link.json"
    if there:
        target.parent.mkdir()
        target.write_text("old")
    link.symlink_to(Path("far") / "file.json")
    (tmp_path / "second.json").symlink_to(link)
    utils.write_text(tmp_path / "second.json", "new")
    assert link.is_symlink() and (tmp_path / "second.json").is_symlink()
    assert target.read_text() == "new" and names(target.parent) == ["file.json"]


@pytest.mark.parametrize("there", [True, False], ids=["there", "dangling"])
def test_a_link_to_a_directory_stays_one(tmp_path, there):
    target, link = tmp_path / "far" / "it", tmp_path / "link"
    if there:
        write_directory(target, "old")
    link.symlink_to(target)
    write_directory(link)
    assert link.is_symlink() and is_written(target)
    assert names(tmp_path) == ["far", "link"] and names(target.parent) == ["it"]


# What cannot be moved


@pytest.mark.parametrize("path", [".", "", "..", "../.."])
def test_the_current_directory_is_filled(tmp_path, monkeypatch, path):
    here = tmp_path / "one" / "two"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    target = Path(path).resolve()
    (target / "mine").write_text("mine")
    (target / "stale").write_text("of the old one")
    write_directory(path, "old")
    write_directory(path, stale=["stale", "file", "was never there"])
    assert is_written(target) and Path.cwd() == here, "others stand in it"
    assert (target / "mine").read_text() == "mine" and not (target / "stale").exists()
    assert not list(tmp_path.rglob("*.partial-*"))


def test_without_replacing_a_filled_directory_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in ("one", "two"):
        write_directory(".", text, replace=False)
    assert is_written(tmp_path, "one") and names(tmp_path) == ["file", "inner"]


@pytest.mark.parametrize("kind", ["disk", "same disk"])
def test_a_mount_point_is_filled(tmp_path, kind):
    (tmp_path / "volume").mkdir()
    options = () if kind == "disk" else ("--bind", tmp_path / "volume")
    with mounted(tmp_path / "it", *options) as it:
        (it / "lost+found").mkdir()
        assert utils.is_empty(it)
        for text in ("old", "new"):
            write_directory(it, text)
            assert is_written(it, text) and names(it) == ["file", "inner", "lost+found"]
        assert names(tmp_path) == ["it", "volume"]


def test_a_mounted_file_is_overwritten(tmp_path):
    (tmp_path / "volume.json").write_text("old, and longer than the new one")
    (tmp_path / "it.json").touch()
    with mounted(tmp_path / "unused"):
        # A directory is what `mounted` makes; a file is mounted by hand.
        subprocess.run(["mount", "--bind", tmp_path / "volume.json", tmp_path / "it.json"], check=True)
        try:
            utils.write_text(tmp_path / "it.json", "new")
            assert (tmp_path / "volume.json").read_text() == "new"
        finally:
            subprocess.run(["umount", tmp_path / "it.json"], check=True)
    assert names(tmp_path) == ["it.json", "unused", "volume.json"]


def test_a_volume_in_a_directory_that_cannot_be_written_to(tmp_path):
    """As in a container whose own disk is read-only."""
    with mounted(tmp_path / "root") as root:
        (root / "it").mkdir()
        (root / "it.json").write_text("old")
        (tmp_path / "file.json").touch()
        with mounted(root / "it") as it:
            subprocess.run(["mount", "--bind", tmp_path / "file.json", root / "it.json"], check=True)
            try:
                subprocess.run(["mount", "-o", "remount,ro", root], check=True)
                for text in ("old", "new"):
                    write_directory(it, text)
                    utils.write_text(root / "it.json", text)
                assert is_written(it) and names(it) == ["file", "inner"]
                assert (root / "it.json").read_text() == "new"
                with pytest.raises(OSError) as caught:
                    write_directory(root / "other")
                assert caught.value.errno == errno.EROFS
            finally:
                subprocess.run(["umount", root / "it.json"], check=True)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write to any directory")
def test_a_directory_without_permission(tmp_path):
    write_directory(tmp_path / "parent" / "it", "old")
    utils.write_text(tmp_path / "parent" / "it.txt", "old")
    (tmp_path / "parent").chmod(0o555)
    try:
        write_directory(tmp_path / "parent" / "it")
        utils.write_text(tmp_path / "parent" / "it.txt", "new")
    finally:
        (tmp_path / "parent").chmod(0o755)
    assert is_written(tmp_path / "parent" / "it") and (tmp_path / "parent" / "it.txt").read_text() == "new"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_pipes_and_devices_are_written_to_and_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE)
    utils.write_text(tmp_path / "pipe", "new")
    assert reader.communicate(timeout=60)[0] == b"new"
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode) and names(tmp_path) == ["pipe"]
    script = "from keras_ci2p import utils; utils.write_json('/dev/stdout', {'one': 1})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.stdout == '{\n  "one": 1\n}\n', done.stderr


# Full disks


@pytest.fixture
def disk(tmp_path):
    with mounted(tmp_path / "disk") as disk:
        yield disk


@pytest.mark.parametrize("leave", [0, 4096, 100_000])
@pytest.mark.parametrize("is_known", [True, False], ids=["known", "unknown size"])
def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(disk, leave, is_known):
    writers = {
        "it": lambda path, content, needed: write_directory(path, content, needed=needed),
        "it.txt": lambda path, content, needed: utils.write_text(path, content) if is_known else save(path, content),
    }

    def save(path, content):
        with utils.atomic_file(path) as temporary:
            temporary.write_text(content)

    for name, write in writers.items():
        write(disk / name, "old", 0)
    filler = fill(disk, leave)
    for name, write in writers.items():
        with pytest.raises(utils.DiskFullError) as caught:
            write(disk / name, "x" * 200_000, 400_000 if is_known else 0)
        size = {"it": "0.400", "it.txt": "0.200"}[name]
        needs = rf"needs {size} MB, and 0\.[01]\d\d MB are free" if is_known else r"needs more than 0\.\d+ MB"
        assert re.match(rf"The disk is full: {re.escape(str(disk / name))} {needs}\. Make room", str(caught.value))
        assert caught.value.errno == errno.ENOSPC
    assert names(disk) == ["filler", "it", "it.txt"] and is_written(disk / "it", "old")
    assert (disk / "it.txt").read_text() == "old"
    filler.unlink()
    for name, write in writers.items():
        write(disk / name, "new", 0)
    assert is_written(disk / "it") and (disk / "it.txt").read_text() == "new"


def test_what_is_written_within_counts_too(disk):
    """As a preset within what is published."""
    fill(disk, 500_000)
    with pytest.raises(utils.DiskFullError) as caught, utils.atomic_directory(disk / "outer") as outer:
        (outer / "first").write_bytes(b"x" * 200_000)
        with utils.atomic_directory(outer / "inner", needed=1_000_000):
            pass
    assert re.search(r"outer needs 1\.2\d\d MB, and 0\.[45]\d\d MB are free", str(caught.value))


@pytest.mark.parametrize("message", ["[enforce fail] write failed", "(file write failed: errno = 28, ...)"])
def test_libraries_have_errors_of_their_own(disk, message):
    leave = 0 if "errno" not in message else 10**6
    fill(disk, 10**6)
    with pytest.raises(utils.DiskFullError), utils.atomic_file(disk / "file") as temporary:
        temporary.write_bytes(b"x" * (10**6 // 4096 * 4096 - leave) if leave == 0 else b"")
        raise RuntimeError(message)


def test_other_errors_and_other_disks_stay_what_they_are(disk, tmp_path):
    for error in (ValueError("no"), OSError(errno.EIO, "broken"), OSError(errno.ENOSPC, "full", str(tmp_path / "a"))):
        with pytest.raises(type(error)) as caught, utils.atomic_directory(disk / "it"):
            raise error
        assert caught.value is error
    assert names(disk) == []


def test_an_overwritten_file_stays_where_there_is_no_room(disk, monkeypatch):
    (disk / "file").write_bytes(b"old" * 1000)
    monkeypatch.setattr(utils, "_replaced", lambda temporary, target: False)
    fill(disk, 4096 * 60)
    with pytest.raises(utils.DiskFullError):
        utils.write_bytes(disk / "file", b"x" * 200_000)
    assert (disk / "file").read_bytes() == b"old" * 1000


# Line ends


def test_text_is_the_same_on_all_systems(tmp_path):
    utils.write_text(tmp_path / "a.txt", "one\ntwo\n")
    assert (tmp_path / "a.txt").read_bytes() == b"one\ntwo\n"
    # A name in Latin-1, as `os.listdir` gives it.
    utils.write_json(tmp_path / "a.json", {"name": "caf\udce9 \u732b"})
    assert utils.json.loads((tmp_path / "a.json").read_text("utf-8")) == {"name": "caf\udce9 \u732b"}
    utils.write_text(tmp_path / "a.txt", "caf\udce9")
    assert (tmp_path / "a.txt").read_text("utf-8") == "caf\\udce9"


@pytest.mark.parametrize("written, found", [("\n", "\r\n"), ("\r\n", "\n")])
def test_line_ends_of_json_mean_nothing(tmp_path, written, found):
    for name, expected in (("a.json", True), ("a.h5", False)):
        (tmp_path / name).write_bytes(written.join(["{", "}", ""]).encode())
        digest = utils.file_sha256(tmp_path / name)
        assert utils.has_sha256(tmp_path / name, digest)
        (tmp_path / name).write_bytes(found.join(["{", "}", ""]).encode())
        assert utils.has_sha256(tmp_path / name, digest) is expected
        (tmp_path / name).write_bytes(b"{ }\n")
        assert not utils.has_sha256(tmp_path / name, digest)


CHECKOUT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_git_for_windows_leaves_the_files_as_they_are(tmp_path):
    paths = [".gitattributes", "weights/ci2p_vit_base", "weights/aliases.json", "tests/golden/preset_v1"]
    paths += ["tests/golden/vit_b16.npz", "keras_ci2p/utils.py"]
    source, clone = tmp_path / "source", tmp_path / "clone"
    for path in paths:
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (CHECKOUT / path).is_dir() else shutil.copy)(CHECKOUT / path, source / path)
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    windows = ["-c", "core.autocrlf=true", "-c", "core.eol=crlf"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "all"]):
        subprocess.run(["git", *command], cwd=source, check=True, capture_output=True)
    subprocess.run(["git", *windows, "clone", "-q", source, clone], check=True, capture_output=True)
    files = [path.relative_to(source) for path in source.rglob("*") if path.is_file() and ".git" not in path.parts]
    assert len(files) > 8
    for file in files:
        assert (clone / file).read_bytes() == (source / file).read_bytes(), file
    open_preset(clone / "weights" / "ci2p_vit_base")


def test_a_preset_whose_line_ends_were_changed_is_whole(tmp_path):
    """Of a repository of one's own, which has no .gitattributes."""
    preset = shutil.copytree(CHECKOUT / "tests" / "golden" / "preset_v1", tmp_path / "preset")
    for path in preset.glob("*.json"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert open_preset(preset).has_weights
    (preset / "config.json").write_text("{}")
    with pytest.raises(PresetError, match="damaged"):
        open_preset(preset)
