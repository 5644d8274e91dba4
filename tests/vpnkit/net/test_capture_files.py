"""Rings that outlive the process."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
import trio

from pcap.reader import read
from pcap.ring import OVERHEAD, Direction
from tests.pcap.frames import FRAMES
from vpnkit.errors import ConfigError
from vpnkit.net.capture_files import SECONDS
from vpnkit.net.capture_report import CaptureRequest
from vpnkit.net.captures import Captures

if TYPE_CHECKING:
    from pathlib import Path

PING = FRAMES["ping"]


def kept(directory: Path) -> Captures:
    made = Captures()
    made.keep(directory)
    assert made.files is not None
    return made


def feed(made: Captures, *frames: bytes, link: str = "qemu:/tmp/x") -> None:
    tap = made.capture.tap(link)
    for frame in frames:
        tap((frame,), Direction.IN, 0, 0, False)


def save(made: Captures) -> None:
    assert made.files is not None
    made.files.save()


def end(made: Captures) -> None:
    save(made)
    for file in made.files._files.values():
        file.close()


def contents(made: Captures) -> dict[str, list[tuple[object, ...]]]:
    return {
        name: [(*packet[:-1], made.capture.interface(packet.interface)) for packet in ring]
        for name, ring in made.capture.rings.items()
    }


def test_the_next_process_has_what_the_last_one_had(tmp_path):
    first = kept(tmp_path / "rings")
    feed(first, *FRAMES.values())
    feed(first, PING, link="another")
    end(first)
    second = kept(tmp_path / "rings")
    assert contents(second) == contents(first)
    feed(second, PING)
    end(second)
    third = kept(tmp_path / "rings")
    assert contents(third) == contents(second)
    end(third)


def test_nobody_else_can_read_them(tmp_path):
    made = kept(tmp_path / "rings")
    feed(made, PING)
    end(made)
    assert (tmp_path / "rings").stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "rings").iterdir()] == [0o600, 0o600]


def test_the_files_are_bounded_and_hold_what_the_ring_holds(tmp_path):
    made = kept(tmp_path)
    for _ in range(40):
        feed(made, *[PING] * 20)
        save(made)
    sizes = {path.name: path.stat().st_size for path in tmp_path.glob("icmp*")}
    assert sorted(sizes) == ["icmp.old.pcapng", "icmp.pcapng"]
    assert max(sizes.values()) < 8192 + 20 * (len(PING) + OVERHEAD) + 500
    again = kept(tmp_path)
    assert 0.9 * made.ring("icmp").packets <= again.ring("icmp").packets
    end(made)
    end(again)


def test_a_file_that_was_cut_is_read_as_far_as_it_goes(tmp_path):
    made = kept(tmp_path)
    feed(made, *[PING] * 5)
    end(made)
    path = tmp_path / "icmp.pcapng"
    path.write_bytes(path.read_bytes()[:-7])
    again = kept(tmp_path)
    assert again.ring("icmp").packets == 4
    end(again)


@pytest.mark.parametrize("junk", [b"", b"junk" * 100, b"\x0a\x0d\x0d\x0a" + bytes(60)])
def test_junk_is_no_obstacle(tmp_path, junk):
    (tmp_path / "icmp.pcapng").write_bytes(junk)
    made = kept(tmp_path)
    feed(made, PING)
    end(made)
    assert [packet.data for packet, _ in read((tmp_path / "icmp.pcapng").read_bytes())] == [PING]


@pytest.mark.program("tshark")
def test_anybody_can_read_them(tmp_path):
    made = kept(tmp_path)
    feed(made, *FRAMES.values())
    save(made)
    done = subprocess.run(["tshark", "-n", "-r", tmp_path / "all.pcapng"], capture_output=True, timeout=60, check=True)
    assert len(done.stdout.splitlines()) == len(FRAMES)
    end(made)


async def test_they_are_written_every_second_and_at_the_end(tmp_path, autojump_clock, nursery):
    made = kept(tmp_path)
    nursery.start_soon(made.files.run)
    feed(made, PING)
    await trio.sleep(1.5 * SECONDS)
    assert len(list(read((tmp_path / "icmp.pcapng").read_bytes()))) == 1
    feed(made, PING)
    nursery.cancel_scope.cancel()
    with trio.CancelScope(shield=True):
        await trio.sleep(SECONDS)
    assert len(list(read((tmp_path / "icmp.pcapng").read_bytes()))) == 2


def test_rings_that_come_and_go(tmp_path):
    made = kept(tmp_path)
    made.add(CaptureRequest("mine", "icmp"))
    feed(made, PING)
    save(made)
    assert len(list(read((tmp_path / "mine.pcapng").read_bytes()))) == 1
    made.remove("mine")
    save(made)
    end(made)


def test_a_disk_that_is_full_is_said_once(tmp_path, monkeypatch, caplog):
    made = kept(tmp_path)

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("vpnkit.net.capture_files.os.write", full)
        for _ in range(3):
            feed(made, PING)
            save(made)
    assert caplog.text.count("No space left on device; packets are not kept") == 1
    feed(made, PING)
    end(made)
    assert made.ring("icmp").packets == 4


def test_a_directory_that_cannot_be_had(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--ring-file"):
        Captures().keep(tmp_path / "file")
