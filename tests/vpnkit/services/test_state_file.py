from __future__ import annotations

import os
import stat
import sys

import pytest

from vpnkit.errors import ConfigError
from vpnkit.services.state_file import MAX_FILE, SavedIdentity, SavedLease, State, StateFile

STATE = State(
    leases=[SavedLease("192.168.65.3", "02:50:00:00:00:01", "ff00", "web", 1795282876.5, "bound")],
    identities=[SavedIdentity("d1d9cd61-d0dc-4715-9bb3-4c11da7ad7a5", "02:50:00:00:00:02", "192.168.65.4")],
    identity_numbers=2,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.json"


@pytest.fixture
def file(path):
    made = StateFile(path)
    yield made
    made.close()


def test_what_was_saved_is_there(file, path):
    assert file.load() == State()
    assert not path.exists()
    file.save(STATE)
    assert file.load() == STATE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    file.save(State())
    assert file.load() == State()
    assert sorted(child.name for child in path.parent.iterdir()) == ["state.json", "state.json.lock"]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'{"version": 2}',
        b'{"leases": [{"ip": 1}]}',
        b'{"leases": [{"ip": "1.2.3.4", "mac": "", "client_id": "", "hostname": "", "expires": 1, "state": "odd"}]}',
        b"\xff",
        b" " * (MAX_FILE + 1),
    ],
)
def test_a_broken_file_is_an_error_and_stays(file, path, raw):
    path.write_bytes(raw)
    with pytest.raises(ConfigError, match="broken"):
        file.load()
    assert path.read_bytes() == raw


def test_two_cannot_have_it(file, path):
    with pytest.raises(ConfigError, match="another instance"):
        StateFile(path)
    file.close()
    StateFile(path).close()


def test_where_nothing_can_be_written(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        StateFile(tmp_path / "nowhere" / "state")
    (tmp_path / "directory").mkdir()
    file = StateFile(tmp_path / "directory")
    with pytest.raises(ConfigError, match="directory"):
        file.load()
    file.close()


def test_a_link_stays_one(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "there" / "state")
    file = StateFile(link)
    file.save(STATE)
    file.close()
    assert link.is_symlink()
    assert (tmp_path / "there" / "state").exists()


def test_what_a_dead_instance_left_behind_is_no_hindrance(file, path):
    (path.parent / "state.json.new").write_text("half")
    file.save(STATE)
    assert file.load() == STATE


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_a_full_disk_leaves_the_old_one(file, path):
    file.save(STATE)
    os.symlink("/dev/full", path.parent / "state.json.new")
    with pytest.raises(OSError, match="No space"):
        file.save(State())
    assert file.load() == STATE
