"""VPNkit's port control tree: the procedure of Docker's proxy, the texts it looks for, and when a forward ends."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.vpnkit.control.p9.client import Exposed, P9Client, Refusal, Table
from vpnkit.control.p9 import ports
from vpnkit.proto import p9 as session
from vpnkit.wire import p9

SPEC = "tcp:127.0.0.1:8080:tcp:172.17.0.2:80"
ASK = "ERROR no request received. Please read the README.\n"


async def ended(table: Table) -> None:
    with trio.fail_after(5):
        while table.there:  # noqa: ASYNC110
            await trio.sleep(0.001)


async def test_a_forward_as_dockers_proxy_makes_it(client: P9Client, table: Table) -> None:
    await client.mkdir(SPEC)
    assert await client.listing() == [".", "..", "README", SPEC]
    assert await client.listing(SPEC) == [".", "..", "ctl"]
    assert (await client.stat(SPEC)).mode & p9.DMDIR
    fid = await client.open(SPEC, "ctl", mode=p9.ORDWR)
    assert await client.read(fid) == ASK.encode()
    await client.write(fid, SPEC.encode())
    assert (await client.read(fid, 0, 100)).decode() == f"OK {SPEC}\n"
    assert [exposed.text for exposed in table.there] == [SPEC]
    # The directory has become a file.
    stat = await client.stat(SPEC)
    assert not stat.mode & p9.DMDIR
    assert not stat.qid.kind & p9.QTDIR
    assert await client.content(SPEC) == f"{SPEC}\n".encode()
    assert stat.length == len(SPEC) + 1
    await client.clunk(fid)
    assert table.there == []
    assert await client.listing() == [".", "..", "README"]


async def test_port_0_is_resolved(client: P9Client) -> None:
    _, said = await client.forward("x", "tcp:127.0.0.1:0:tcp:172.17.0.2:80")
    assert said == "OK tcp:127.0.0.1:49152:tcp:172.17.0.2:80\n"
    assert await client.content("x") == b"tcp:127.0.0.1:49152:tcp:172.17.0.2:80\n"


FORMS = "\n".join(
    [
        "tcp:<local IP>:<local port>:tcp:<remote IP>:<remote port>",
        "udp:<local IP>:<local port>:udp:<remote IP>:<remote port>",
        "unix:<base64-encoded local path>:unix:<base64-encoded remote path>",
    ]
)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (SPEC + "\n", f"OK {SPEC}"),
        ("TCP:127.0.0.1:80:tcp:172.17.0.2:80", "OK tcp:127.0.0.1:80:tcp:172.17.0.2:80"),
        ("udp:127.0.0.1:53:udp:172.17.0.2:53", "OK udp:127.0.0.1:49152:udp:172.17.0.2:53"),
        ("unix:L3RtcC9h:unix:L3RtcC9i", "OK unix:L3RtcC9h:unix:L3RtcC9i"),
        ("tcp:[::1]:80:tcp:[fd00::2]:80", "OK tcp:[::1]:80:tcp:[fd00::2]:80"),
        ("tcp:127.0.0.1:1:tcp:172.17.0.2:80", "ERROR Bind for 127.0.0.1:1 failed: port is already allocated"),
        ("tcp:127.0.0.1:2:tcp:172.17.0.2:80", "ERROR Bind for 127.0.0.1:2 failed: permission denied"),
        ("tcp:127.0.0.1:3:tcp:172.17.0.2:80", "ERROR Bind for 127.0.0.1:3: unexpected error it is strange"),
        (
            "tcp:192.0.2.1:80:tcp:172.17.0.2:80",
            "ERROR listen tcp 192.0.2.1:80: bind: cannot assign requested address",
        ),
        (
            "udp:192.0.2.1:53:udp:172.17.0.2:53",
            "ERROR listen udp 192.0.2.1:53: bind: cannot assign requested address",
        ),
        ("8080:80", f"ERROR Failed to parse request [8080:80], expected {FORMS}"),
        ("", f"ERROR Failed to parse request [], expected {FORMS}"),
        ("tcp:::1:80:tcp:::2:80", f"ERROR Failed to parse request [tcp:::1:80:tcp:::2:80], expected {FORMS}"),
        ("tcp:[::1:80", f"ERROR Failed to parse request [tcp:[::1:80], expected {FORMS}"),
        ("sctp:127.0.0.1:80:sctp:172.17.0.2:80", "ERROR unknown protocol: should be tcp or udp"),
        (
            "tcp:127.0.0.1:http:tcp:172.17.0.2:80",
            "ERROR port is not a proto:IP:port or unix:path: 'tcp:127.0.0.1:http'",
        ),
        ("tcp:127.0.0.1:80:tcp:host:80", "ERROR port is not a proto:IP:port or unix:path: 'tcp:host:80'"),
        ("tcp:127.0.0.1:65536:tcp:1.2.3.4:80", "ERROR port is not a proto:IP:port or unix:path: 'tcp:127.0.0.1:65536'"),
        ("tcp:127.0.0.1:80:udp:172.17.0.2:80", "ERROR tcp cannot be forwarded to udp"),
        ("unix:*:unix:L3RtcC9i", "ERROR port is not a proto:IP:port or unix:path: 'unix:*'"),
    ],
)
async def test_what_is_said(client: P9Client, spec: str, said: str) -> None:
    assert (await client.forward("x", spec))[1] == f"{said}\n"


async def test_one_request_each(client: P9Client, table: Table) -> None:
    fid, _ = await client.forward("x", SPEC)
    with pytest.raises(Refusal, match="permission denied"):
        await client.write(fid, b"tcp:127.0.0.1:81:tcp:172.17.0.2:81")
    assert len(table.there) == 1
    fid, said = await client.forward("y", "nonsense")
    assert said.startswith("ERROR ")
    with pytest.raises(Refusal, match="permission denied"):
        await client.write(fid, SPEC.encode())


async def test_what_failed_is_gone_when_it_is_closed(client: P9Client) -> None:
    fid, said = await client.forward("x", "nonsense")
    assert said.startswith("ERROR ")
    await client.clunk(fid)
    assert await client.listing() == [".", "..", "README"]


@pytest.mark.parametrize("names", [("x",), ("x", "ctl")])
async def test_removal_ends_it(client: P9Client, table: Table, names: tuple[str, ...]) -> None:
    await client.forward("x", SPEC)
    await client.ask(p9.Tremove(await client.walk(*names)))
    assert table.there == []
    assert await client.listing() == [".", "..", "README"]


async def test_readers_do_not_end_it(client: P9Client, table: Table) -> None:
    """In VPNkit any clunk of any fid of `ctl` did."""
    await client.forward("x", SPEC)
    assert await client.content("x", "ctl") == f"OK {SPEC}\n".encode()
    await client.clunk(await client.walk("x", "ctl"))
    await client.clunk(await client.open("x", "ctl", mode=p9.ORDWR))
    assert len(table.there) == 1


async def test_who_opened_it_for_writing_and_wrote_nothing_ends_it(client: P9Client) -> None:
    await client.mkdir("x")
    await client.content("x", "ctl")
    assert "x" in await client.listing()
    await client.clunk(await client.open("x", "ctl", mode=p9.OWRITE))
    assert "x" not in await client.listing()


async def test_a_broken_connections_forwards_go(connect, table: Table) -> None:
    first, second = await connect().begin(), await connect().begin()
    await first.forward("x", SPEC)
    await first.mkdir("empty")
    await second.forward("y", "tcp:127.0.0.1:81:tcp:172.17.0.2:81")
    await second.mkdir("z")
    assert await second.listing() == [".", "..", "README", "x", "empty", "y", "z"]
    # A directory of the second, used by the first.
    fid = await first.open("z", "ctl", mode=p9.ORDWR)
    await first.write(fid, b"tcp:127.0.0.1:82:tcp:172.17.0.2:82")
    await first.stream.aclose()
    with trio.fail_after(5):
        while len(table.there) > 1:  # noqa: ASYNC110
            await trio.sleep(0.001)
    assert await second.listing() == [".", "..", "README", "y"]
    await second.stream.aclose()
    await ended(table)


async def test_a_new_version_ends_them_too(client: P9Client, table: Table) -> None:
    await client.forward("x", SPEC)
    await client.begin()
    assert table.there == []
    assert await client.listing() == [".", "..", "README"]


async def test_a_client_that_goes_in_the_middle_of_it_leaves_nothing(connect, table: Table) -> None:
    client = await connect().begin()
    await client.mkdir("x")
    fid = await client.open("x", "ctl", mode=p9.ORDWR)
    table.gate = trio.Event()
    await client.send(1, p9.Twrite(fid, 0, SPEC.encode()))
    await trio.testing.wait_all_tasks_blocked()
    await client.stream.aclose()
    await trio.testing.wait_all_tasks_blocked()
    table.gate.set()
    await trio.testing.wait_all_tasks_blocked()
    await ended(table)
    other = await connect().begin()
    assert await other.listing() == [".", "..", "README"]


async def test_a_clunk_waits_for_the_write(client: P9Client, table: Table) -> None:
    await client.mkdir("x")
    fid = await client.open("x", "ctl", mode=p9.ORDWR)
    table.gate = trio.Event()
    await client.send(1, p9.Twrite(fid, 0, SPEC.encode()))
    await client.send(2, p9.Tclunk(fid))
    await trio.testing.wait_all_tasks_blocked()
    table.gate.set()
    assert [(await client.receive())[0] for _ in range(2)] == [1, 2]
    assert table.there == []


async def test_an_expose_that_takes_too_long(connect, table: Table, autojump_clock) -> None:
    client = await connect().begin()
    table.gate = trio.Event()
    _, said = await client.forward("x", SPEC)
    assert said == "ERROR it took more than 10 s\n"


async def test_names(client: P9Client, root: ports.PortDirectory) -> None:
    await client.mkdir("x")
    for name in ("x", "README"):
        with pytest.raises(Refusal, match="file exists") as refusal:
            await client.mkdir(name)
        assert refusal.value.errno == (session.EEXIST if client.extended else 0)
    for name in ("", ".", "..", "a/b", "n" * 256, "é" * 128):
        with pytest.raises(Refusal, match="bad file name"):
            await client.mkdir(name)
    await client.mkdir("é" * 127)
    assert [*root.entries] == ["x", "é" * 127]


async def test_only_directories_and_only_in_the_root(client: P9Client) -> None:
    fid = await client.walk()
    with pytest.raises(Refusal, match="permission denied"):
        await client.ask(p9.Tcreate(fid, "file", 0o644, p9.OWRITE))
    await client.mkdir("x")
    fid = await client.walk("x")
    with pytest.raises(Refusal, match="permission denied"):
        await client.ask(p9.Tcreate(fid, "y", p9.DMDIR | 0o777, p9.OREAD))
    fid = await client.walk("README")
    with pytest.raises(Refusal, match="not a directory"):
        await client.ask(p9.Tcreate(fid, "y", p9.DMDIR | 0o777, p9.OREAD))


async def test_so_many_and_no_more(client: P9Client, root: ports.PortDirectory, monkeypatch) -> None:
    monkeypatch.setattr(ports, "MAX_ENTRIES", 3)
    for number in range(3):
        await client.mkdir(str(number))
    with pytest.raises(Refusal, match="3 entries already"):
        await client.mkdir("3")
    assert root.refused == 1
    await client.ask(p9.Tremove(await client.walk("1")))
    await client.mkdir("3")
    assert await client.listing() == [".", "..", "README", "0", "2", "3"]


async def test_what_is_not_to_be_changed(client: P9Client) -> None:
    await client.mkdir("x")
    for names in ((), ("README",)):
        with pytest.raises(Refusal, match="permission denied"):
            await client.ask(p9.Tremove(await client.walk(*names)))
    for names in ((), ("README",), ("x",), ("x", "ctl")):
        fid = await client.walk(*names)
        for stat in (
            p9.Stat(p9.Qid(0, 0, 0), 0xFFFFFFFF, "other", **NOTHING),
            p9.Stat(p9.Qid(0, 0, 0), 0o777, "", **NOTHING),
        ):
            with pytest.raises(Refusal, match="permission denied"):
                await client.ask(p9.Twstat(fid, stat))
        await client.ask(p9.Twstat(fid, p9.Stat(p9.Qid(0, 0, 0), 0xFFFFFFFF, "", **NOTHING)))  # fsync
    emptied = p9.Stat(p9.Qid(0, 0, 0), 0xFFFFFFFF, "", **{**NOTHING, "length": 0})
    await client.ask(p9.Twstat(await client.walk("x", "ctl"), emptied))
    with pytest.raises(Refusal, match="permission denied"):
        await client.open("README", mode=p9.OWRITE)


NOTHING = {"length": 2**64 - 1, "atime": 2**32 - 1, "mtime": 2**32 - 1}


async def test_dot_dot_is_never_above_the_root(client: P9Client, root: ports.PortDirectory) -> None:
    """CVE-2016-7116."""
    await client.mkdir("x")
    top = await client.stat()
    for names in (("..",), ("..",) * 16, ("x", ".."), ("x", "ctl", "..", ".."), ("README", "..")):
        assert (await client.stat(*names)).qid == top.qid, names
    for name in ("../..", "/etc/passwd", "x/ctl", ".", "", "etc"):
        with pytest.raises(Refusal, match="file not found"):
            await client.walk(name)
    assert (await client.stat("x", "README")).qid == (await client.stat("README")).qid


async def test_the_readme_says_how(client: P9Client) -> None:
    text = (await client.content("README")).decode()
    assert FORMS in text
    for word in ("`ctl`", "OK", "ERROR"):
        assert word in text


async def test_an_entry_that_is_gone_takes_no_request(connect, table: Table) -> None:
    one, other = await connect().begin(), await connect().begin()
    await one.mkdir("x")
    fid = await one.open("x", "ctl", mode=p9.ORDWR)
    await other.ask(p9.Tremove(await other.walk("x")))
    with pytest.raises(Refusal, match="file not found"):
        await one.write(fid, SPEC.encode())
    assert table.there == []
    await other.forward("x", SPEC)
    await one.clunk(fid)
    assert [type(exposed) for exposed in table.there] == [Exposed], "the second of that name is not the first's"


async def test_what_cannot_be_released_keeps_nothing_else(connect, table: Table, monkeypatch, caplog) -> None:
    first, second = await connect().begin(), await connect().begin()
    for number in range(3):
        await first.forward(str(number), f"tcp:127.0.0.1:{80 + number}:tcp:172.17.0.2:80")
    unexpose = table.unexpose

    async def fail(forward: Exposed) -> None:
        if forward.host_port == 80:
            raise RuntimeError("secret")
        await unexpose(forward)

    monkeypatch.setattr(table, "unexpose", fail)
    await first.stream.aclose()
    await trio.testing.wait_all_tasks_blocked()
    assert [exposed.host_port for exposed in table.there] == [80]
    assert "could not be released" in caplog.text
    assert (await second.listing())[3:] in ([], ["0"])
