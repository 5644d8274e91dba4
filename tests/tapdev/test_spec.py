from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapdev.spec import DEFAULT_MTU, EXAMPLES, FORMS, Kind, LinkSpec, LinkSpecError, parse, tcp_text

RIGHT: list[tuple[str, Kind, dict[str, Any]]] = [
    ("tap:tap0", Kind.TAP, {"path": "tap0"}),
    ("tap:tap0?netns=/run/netns/vm", Kind.TAP, {"path": "tap0", "netns": "/run/netns/vm"}),
    ("tap:vm-1.2?netns=vm?x", Kind.TAP, {"path": "vm-1.2", "netns": "vm?x"}),
    ("fd:3", Kind.FD, {"fd": 3}),
    ("qemu:/run/vm.sock", Kind.QEMU, {"path": "/run/vm.sock"}),
    ("qemu:vm:1.sock", Kind.QEMU, {"path": "vm:1.sock"}),
    ("qemu:./tcp:x", Kind.QEMU, {"path": "./tcp:x"}),
    ("qemu:tcp:127.0.0.1:1234", Kind.QEMU, {"host": "127.0.0.1", "port": 1234}),
    ("qemu:tcp:localhost:0", Kind.QEMU, {"host": "localhost", "port": 0}),
    ("qemu:tcp:[::1]:1234", Kind.QEMU, {"host": "::1", "port": 1234}),
    ("qemu:tcp:[fe80::1%eth0]:1234", Kind.QEMU, {"host": "fe80::1%eth0", "port": 1234}),
    ("qemu:fd:3", Kind.QEMU, {"fd": 3}),
    ("qemu-connect:/run/vm.sock", Kind.QEMU_CONNECT, {"path": "/run/vm.sock"}),
    ("qemu-connect:tcp:host.example:1", Kind.QEMU_CONNECT, {"host": "host.example", "port": 1}),
    ("qemu-connect:tcp:[2001:db8::1]:65535", Kind.QEMU_CONNECT, {"host": "2001:db8::1", "port": 65535}),
    ("dgram:/a", Kind.DGRAM, {"path": "/a"}),
    ("dgram:/a,/b", Kind.DGRAM, {"path": "/a", "remote": "/b"}),
    ("dgram:fd:4", Kind.DGRAM, {"fd": 4}),
    ("vmnet:/run/vm.sock", Kind.VMNET, {"path": "/run/vm.sock"}),
    ("vmnet:fd:3", Kind.VMNET, {"fd": 3}),
    ("vfkit:/run/vm.sock", Kind.VFKIT, {"path": "/run/vm.sock"}),
    ("vfkit:fd:3", Kind.VFKIT, {"fd": 3}),
    ("bess:/run/vm.sock", Kind.BESS, {"path": "/run/vm.sock"}),
    ("bess:fd:3", Kind.BESS, {"fd": 3}),
    ("stdio:", Kind.STDIO, {}),
    ("stdio", Kind.STDIO, {}),
    ("vsock:1024", Kind.VSOCK, {"port": 1024}),
    ("vsock:2:1024", Kind.VSOCK, {"cid": 2, "port": 1024}),
    ("vsock:4294967294:4294967294", Kind.VSOCK, {"cid": 2**32 - 2, "port": 2**32 - 2}),
    ("fc-vsock:/run/v.sock:1024", Kind.FC_VSOCK, {"path": "/run/v.sock", "port": 1024}),
    ("fc-vsock:/run/a:b:1", Kind.FC_VSOCK, {"path": "/run/a:b", "port": 1}),
    ("hyperkit:/run/vm:1024", Kind.HYPERKIT, {"path": "/run/vm", "port": 1024}),
]


@pytest.mark.parametrize(("text", "kind", "fields"), RIGHT, ids=[text for text, _, _ in RIGHT])
def test_what_is_right(text: str, kind: Kind, fields: dict[str, Any]) -> None:
    spec = parse(text)
    assert spec == LinkSpec(text, kind, **fields)
    assert spec.text == text
    assert parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "'' is none of tap, "),
        ("nonsense", "'nonsense' is none of"),
        ("QEMU:/x", "'QEMU' is none of"),
        ("/run/vm.sock", "a path needs its protocol before it, for example qemu:/run/vm.sock"),
        ("vhost-user:/x", "not there yet"),
        ("tap:", "'' is not a device name"),
        ("tap", "'' is not a device name"),
        ("tap:..", "not a device name"),
        ("tap:a b", "not a device name"),
        ("tap:a/b", "not a device name"),
        ("tap:tap%d", "not a device name"),
        ("tap:0123456789abcdef", "not a device name"),
        ("tap:éééééééé", "not a device name"),
        ("tap:x?", "'' is not an option of tap; netns=PATH is"),
        ("tap:x?netns=", "'netns=' is not an option"),
        ("tap:x?mtu=3", "'mtu=3' is not an option"),
        ("fd:", "'' is not a descriptor number"),
        ("fd:-1", "'-1' is not a descriptor"),
        ("fd:x", "'x' is not a descriptor"),
        ("fd:٣", "'٣' is not a descriptor"),
        ("fd:2147483648", "is not a descriptor"),
        ("fd:" + "9" * 5000, "is not a descriptor"),
        ("qemu:", "the path is missing"),
        ("qemu:fd:a", "'a' is not a descriptor"),
        ("qemu:tcp:", "the port is missing"),
        ("qemu:tcp:localhost", "the port is missing"),
        ("qemu:tcp::1234", "'' is not a host name"),
        ("qemu:tcp:a:b:1234", "in brackets"),
        ("qemu:tcp:[::g]:1", "'::g' is not an IPv6 address"),
        ("qemu:tcp:[fe80::1%]:1", "'' is not the zone"),
        ("qemu:tcp:[1.2.3.4]:1", "'1.2.3.4' is not an IPv6 address"),
        ("qemu:tcp:a b:1", "'a b' is not a host name"),
        ("qemu:tcp:localhost:65536", "'65536' is not a TCP port (0 to 65535)"),
        ("qemu-connect:tcp:localhost:0", "nobody can be reached at port 0"),
        ("qemu-connect:fd:3", "which is qemu:fd:N"),
        ("dgram:", "the path is missing"),
        ("dgram:,/b", "the path is missing"),
        ("dgram:/a,", "the remote path after ',' is missing"),
        ("dgram:/a,/a", "are the same"),
        ("vmnet:", "the path is missing"),
        ("stdio:x", "'x' is too much"),
        ("vsock:", "'' is not a vsock port"),
        ("vsock:1:", "'' is not a vsock port"),
        ("vsock::1", "'' is not a context identifier"),
        ("vsock:4294967295", "is not a vsock port"),
        ("fc-vsock:/x", "the port is missing"),
        ("fc-vsock::1", "the path is missing"),
        ("hyperkit:/x:y", "'y' is not a vsock port"),
        ("qemu:/a\0b", "NUL"),
        ("qemu:/\ud800", "no file name can have"),
    ],
)
def test_what_is_wrong(text: str, complaint: str) -> None:
    with pytest.raises(LinkSpecError, match=re.escape(complaint)) as caught:
        parse(text)
    message = str(caught.value)
    assert message.startswith(f"link {text!r}: ")
    assert "\n" not in message


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_has_its_form_example_and_mtu(kind: Kind) -> None:
    assert FORMS[kind].startswith(f"{kind}:")
    for example in EXAMPLES[kind].split(" or "):
        assert parse(example).kind is kind
    assert DEFAULT_MTU[kind] in (1500, 65520)


def test_an_error_tells_the_form_and_an_example() -> None:
    with pytest.raises(LinkSpecError, match=re.escape("write vsock:[CID:]PORT, for example vsock:1024")):
        parse("vsock:x")


def test_the_tcp_form() -> None:
    assert tcp_text("::1", 5) == "tcp:[::1]:5"
    assert tcp_text("localhost", 5) == "tcp:localhost:5"


WORDS = st.sampled_from(
    [*Kind, "vhost-user", "tcp", "fd", ":", ":", ",", "?netns=", "[", "]", "::1", "%", "/", "1", "0"]
)


@given(st.one_of(st.text(), st.lists(st.one_of(WORDS, st.text(max_size=3)), max_size=12).map("".join)))
def test_whatever_is_written_is_a_spec_or_a_clear_error(text: str) -> None:
    lines = [""]
    try:
        spec = parse(text)
    except LinkSpecError as error:
        lines = str(error).splitlines()
    else:
        assert parse(str(spec)) == spec
        assert str(parse(str(spec))) == str(spec)
    assert len(lines) == 1


PATHS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0,"), min_size=1).map(lambda t: "/" + t)
PORTS = st.integers(0, 2**32 - 2)


@given(
    st.one_of(
        st.builds(lambda k, p: LinkSpec("", k, path=p), st.sampled_from([Kind.QEMU, Kind.VMNET, Kind.BESS]), PATHS),
        st.builds(
            lambda k, n: LinkSpec("", k, fd=n), st.sampled_from([Kind.FD, Kind.VFKIT]), st.integers(0, 2**31 - 1)
        ),
        st.builds(lambda p, n: LinkSpec("", Kind.FC_VSOCK, path=p, port=n), PATHS, PORTS),
        st.builds(lambda c, n: LinkSpec("", Kind.VSOCK, cid=c, port=n), st.none() | PORTS, PORTS),
        st.builds(lambda a, b: LinkSpec("", Kind.DGRAM, path=a, remote="." + b), PATHS, PATHS),
        st.builds(
            lambda a, n: LinkSpec("", Kind.QEMU_CONNECT, host=str(a), port=n),
            st.ip_addresses(),
            st.integers(1, 65535),
        ),
    )
)
def test_a_spec_survives_its_text(spec: LinkSpec) -> None:
    assert parse(str(spec)) == spec
