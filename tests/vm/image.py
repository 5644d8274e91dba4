"""What a VM boots: Debian's kernel of this machine, and an initramfs of ours with Debian's static busybox.

The first serial port is the console, where the kernel speaks.  On the second one a shell loop takes commands, see
`machine`, so that nothing comes between the lines of an answer.
"""

from __future__ import annotations

import stat
import struct
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

BUSYBOX = Path("/bin/busybox")
BOOT = Path("/boot")
MODULES = Path("/lib/modules")
WANTED = ("virtio_pci", "virtio_net")  # in this order, each after what it depends on

# The clock and the interrupts are not put to the test, and the mitigations cost a tenth of a boot.  KASLR stays: under
# tcg a kernel that comes to the same place again overwrites translated code, which makes a reboot three times as long.
COMMAND_LINE = "console=ttyS0 quiet loglevel=5 panic=-1 tsc=reliable no_timer_check mitigations=off random.trust_cpu=on"

# A command comes as `TOKEN BASE64`, its answer ends with an empty line and `TOKEN STATUS`.
INIT = """#!/bin/busybox sh
export PATH=/bin HOME=/tmp
/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in /lib/modules/*; do insmod $module; done
ip link set lo up
cd /tmp
exec </dev/ttyS1 >/dev/ttyS1 2>&1
stty raw -echo
echo ready
while read -r token command; do
    (eval "$(echo $command | base64 -d)") </dev/null
    printf '\\n%s %s\\n' $token $?
done
"""

# The interface's MTU is option 26, which udhcpc only gets when it asks: -O mtu.
UDHCPC_SCRIPT = """#!/bin/sh
case $1 in
deconfig)
    ip address flush dev $interface
    ip link set $interface up ;;
bound|renew)
    [ -z "$mtu" ] || ip link set $interface mtu $mtu
    ip address flush dev $interface
    ip address add $ip/$mask dev $interface
    ip route add default via $router
    : > /etc/resolv.conf
    [ -z "$search$domain" ] || echo search $search $domain >> /etc/resolv.conf
    for server in $dns; do echo nameserver $server >> /etc/resolv.conf; done
    echo lease address=$ip mask=$subnet router=$router dns=$dns mtu=$mtu server=$serverid ;;
esac
"""


class ImageError(Exception):
    """What is missing on this machine, and the package that has it."""


def kernel(wanted: Iterable[str] = WANTED) -> Path:
    """The newest kernel in /boot that has its modules here, and all of `wanted`; a small one if there is a choice."""
    found = [path for path in BOOT.glob("vmlinuz-*") if (MODULES / release(path) / "modules.dep").exists()]
    if not found:
        raise ImageError("no kernel in /boot with its modules: apt-get install linux-image-cloud-amd64")
    found = [path for path in found if has_modules(MODULES / release(path), wanted)]
    if not found:
        raise ImageError(f"no kernel with the modules {' '.join(wanted)}: apt-get install linux-image-amd64")
    return max(found, key=lambda path: ("cloud" in path.name, path.stat().st_mtime))


def release(image: Path) -> str:
    return image.name.removeprefix("vmlinuz-")


def modules(directory: Path, wanted: Iterable[str]) -> list[Path]:
    """The files of the modules `wanted` and of all they depend on, in the order of loading; not what is built in."""
    depends = {}
    for line in (directory / "modules.dep").read_text().splitlines():
        file, _, needs = line.partition(":")
        depends[Path(file).stem] = [file, *needs.split()]
    built_in = {Path(line).stem for line in (directory / "modules.builtin").read_text().splitlines()}
    files: list[str] = []
    for name in wanted:
        if name in built_in:
            continue
        if name not in depends:
            raise ImageError(f"{directory} has no module {name}")
        for file in reversed(depends[name]):  # modules.dep has the nearest first, so this is their order
            if file not in files:
                files.append(file)
    return [directory / file for file in files]


def has_modules(directory: Path, wanted: Iterable[str]) -> bool:
    try:
        modules(directory, wanted)
    except ImageError:
        return False
    return True


class Archive:
    """A cpio archive of the format newc (Linux, Documentation/driver-api/early-userspace/buffer-format.rst)."""

    HEADER = "070701" + "%08X" * 13

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0

    def add(self, name: str, data: bytes = b"", mode: int = stat.S_IFREG | 0o644) -> None:
        self._inode += 1
        path = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
        header = (self.HEADER % fields).encode() + path
        self._parts += [header, bytes(-len(header) % 4), data, bytes(-len(data) % 4)]

    def directory(self, name: str) -> None:
        self.add(name, mode=stat.S_IFDIR | 0o755)

    def program(self, name: str, data: bytes) -> None:
        self.add(name, data, stat.S_IFREG | 0o755)

    def link(self, name: str, target: str) -> None:
        self.add(name, target.encode(), stat.S_IFLNK | 0o777)

    def finish(self) -> bytes:
        self.add("TRAILER!!!", mode=0)
        return b"".join(self._parts)


def static(program: Path) -> bytes:
    """The octets of `program`, an ELF file that needs no interpreter (ELF specification, PT_INTERP)."""
    try:
        data = program.read_bytes()
    except OSError as error:
        raise ImageError(f"{program}: {error.strerror}; apt-get install busybox-static") from None
    offset, size, count = *struct.unpack_from("<Q", data, 32), *struct.unpack_from("<HH", data, 54)
    if any(struct.unpack_from("<I", data, offset + size * i)[0] == 3 for i in range(count)):
        raise ImageError(f"{program} is not static; apt-get install busybox-static")
    return data


def initramfs(image: Path, wanted: Iterable[str] = WANTED) -> bytes:
    """The archive for the kernel `image`.  Raises ImageError."""
    archive = Archive()
    for name in ("bin", "dev", "etc", "lib", "lib/modules", "usr", "usr/share", "usr/share/udhcpc"):
        archive.directory(name)
    archive.program("bin/busybox", static(BUSYBOX))
    archive.link("bin/sh", "busybox")
    archive.program("init", INIT.encode())
    archive.program("usr/share/udhcpc/default.script", UDHCPC_SCRIPT.encode())
    archive.link("etc/udhcpc", "../usr/share/udhcpc")  # Debian's and everybody else's place for it
    for number, file in enumerate(modules(MODULES / release(image), wanted)):
        archive.add(f"lib/modules/{number:02}-{file.name}", file.read_bytes())
    return archive.finish()


class Image:
    """A kernel, and the file of its initramfs in `directory`, which loads the modules `wanted`."""

    def __init__(self, directory: Path, wanted: Sequence[str] = WANTED) -> None:
        self.kernel = kernel(wanted)
        self.initramfs = directory / "initramfs"
        self.initramfs.write_bytes(initramfs(self.kernel, wanted))

    def arguments(self) -> list[str]:
        """QEMU's."""
        return ["-kernel", str(self.kernel), "-initrd", str(self.initramfs), "-append", COMMAND_LINE]
