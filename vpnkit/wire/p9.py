"""9P2000 and 9P2000.u: messages to octets and back.

size 4 | type 1 | tag 2 | fields of the type, all little-endian; `size` counts itself.

The manual pages intro(5) to wstat(5) of Plan 9 define 9P2000; 9P2000.u appends fields for Unix to five messages and to
the directory entry.  LAYOUTS has the fields of each message, one letter each, those of 9P2000.u behind the bar:

B H I Q  a number of 1, 2, 4 or 8 octets        S  a string: length 2 | UTF-8 without NUL
q        a qid: type 1 | version 4 | path 8     D  data: length 4 | octets
N        names: count 2 | strings               K  qids: count 2 | qids
T        a directory entry: length 2 | entry
"""

from __future__ import annotations

import struct
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from vpnkit.errors import WireError

if TYPE_CHECKING:
    from collections.abc import Mapping

HEADER: Final = struct.Struct("<IBH")
READ_HEADER: Final = 4 + 1 + 2 + 4  # octets of an Rread before its data
IO_HEADER: Final = 24  # octets that clients keep free for the header of the largest read or write

NOTAG: Final = 0xFFFF
NOFID: Final = 0xFFFFFFFF
NO_UID: Final = 0xFFFFFFFF  # 9P2000.u: no numeric user
MAX_NAMES: Final = 16  # MAXWELEM of walk(5)
PLAIN: Final = "9P2000"
EXTENDED: Final = "9P2000.u"
UNKNOWN: Final = "unknown"

# open(5)
OREAD: Final = 0
OWRITE: Final = 1
ORDWR: Final = 2
OEXEC: Final = 3
OTRUNC: Final = 0x10
ORCLOSE: Final = 0x40

# Bits of a mode, and of a qid's type when shifted right by 24
DMDIR: Final = 0x80000000
QTDIR: Final = 0x80
QTFILE: Final = 0

_QID: Final = struct.Struct("<BIQ")
_ENTRY: Final = struct.Struct("<HIBIQIIIQ")  # type | dev | qid | mode | atime | mtime | length
_NUMBERS: Final = {letter: struct.Struct(f"<{letter}") for letter in "BHIQ"}
_SHORT: Final = _NUMBERS["H"]
_LONG: Final = _NUMBERS["I"]


@dataclass(frozen=True, slots=True)
class Qid:
    """What a file is, to the server: two files are the same if their qids are.  `kind` is QTDIR or QTFILE."""

    kind: int
    version: int
    path: int


@dataclass(frozen=True, slots=True)
class Stat:
    """A directory entry, stat(5).  Times are seconds since 1970, `length` octets."""

    qid: Qid
    mode: int
    name: str
    length: int = 0
    atime: int = 0
    mtime: int = 0
    uid: str = ""
    gid: str = ""
    muid: str = ""
    kind: int = 0xFFFF
    dev: int = 0xFFFFFFFF
    extension: str = ""
    n_uid: int = NO_UID
    n_gid: int = NO_UID
    n_muid: int = NO_UID

    def encode(self, *, extended: bool) -> bytes:
        """The octets, with the entry's own length before them.  Raises ValueError when a field does not fit."""
        qid = self.qid
        try:
            out = _ENTRY.pack(
                self.kind,
                self.dev,
                qid.kind,
                qid.version,
                qid.path,
                self.mode,
                self.atime,
                self.mtime,
                self.length,
            )
            out += b"".join(_string(text) for text in (self.name, self.uid, self.gid, self.muid))
            if extended:
                out += _string(self.extension) + struct.pack("<III", self.n_uid, self.n_gid, self.n_muid)
            return _SHORT.pack(len(out)) + out
        except struct.error as error:
            raise ValueError(f"directory entry: {error}") from None


@dataclass(frozen=True, slots=True)
class Tversion:
    msize: int
    version: str


@dataclass(frozen=True, slots=True)
class Rversion:
    msize: int
    version: str


@dataclass(frozen=True, slots=True)
class Tauth:
    afid: int
    uname: str
    aname: str
    n_uname: int = NO_UID


@dataclass(frozen=True, slots=True)
class Rauth:
    aqid: Qid


@dataclass(frozen=True, slots=True)
class Tattach:
    fid: int
    afid: int
    uname: str
    aname: str
    n_uname: int = NO_UID


@dataclass(frozen=True, slots=True)
class Rattach:
    qid: Qid


@dataclass(frozen=True, slots=True)
class Rerror:
    ename: str
    errno: int = 0


@dataclass(frozen=True, slots=True)
class Tflush:
    oldtag: int


@dataclass(frozen=True, slots=True)
class Rflush:
    pass


@dataclass(frozen=True, slots=True)
class Twalk:
    fid: int
    newfid: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rwalk:
    qids: tuple[Qid, ...]


@dataclass(frozen=True, slots=True)
class Topen:
    fid: int
    mode: int


@dataclass(frozen=True, slots=True)
class Ropen:
    qid: Qid
    iounit: int


@dataclass(frozen=True, slots=True)
class Tcreate:
    fid: int
    name: str
    perm: int
    mode: int
    extension: str = ""


@dataclass(frozen=True, slots=True)
class Rcreate:
    qid: Qid
    iounit: int


@dataclass(frozen=True, slots=True)
class Tread:
    fid: int
    offset: int
    count: int


@dataclass(frozen=True, slots=True)
class Rread:
    data: bytes


@dataclass(frozen=True, slots=True)
class Twrite:
    fid: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Rwrite:
    count: int


@dataclass(frozen=True, slots=True)
class Tclunk:
    fid: int


@dataclass(frozen=True, slots=True)
class Rclunk:
    pass


@dataclass(frozen=True, slots=True)
class Tremove:
    fid: int


@dataclass(frozen=True, slots=True)
class Rremove:
    pass


@dataclass(frozen=True, slots=True)
class Tstat:
    fid: int


@dataclass(frozen=True, slots=True)
class Rstat:
    stat: Stat


@dataclass(frozen=True, slots=True)
class Twstat:
    fid: int
    stat: Stat


@dataclass(frozen=True, slots=True)
class Rwstat:
    pass


Request: TypeAlias = (
    Tversion | Tauth | Tattach | Tflush | Twalk | Topen | Tcreate | Tread | Twrite | Tclunk | Tremove | Tstat | Twstat
)
Reply: TypeAlias = (
    Rversion
    | Rauth
    | Rattach
    | Rerror
    | Rflush
    | Rwalk
    | Ropen
    | Rcreate
    | Rread
    | Rwrite
    | Rclunk
    | Rremove
    | Rstat
    | Rwstat
)
Message: TypeAlias = Request | Reply

LAYOUTS: Final[Mapping[int, tuple[type[Any], str]]] = {
    100: (Tversion, "IS"),
    101: (Rversion, "IS"),
    102: (Tauth, "ISS|I"),
    103: (Rauth, "q"),
    104: (Tattach, "IISS|I"),
    105: (Rattach, "q"),
    107: (Rerror, "S|I"),
    108: (Tflush, "H"),
    109: (Rflush, ""),
    110: (Twalk, "IIN"),
    111: (Rwalk, "K"),
    112: (Topen, "IB"),
    113: (Ropen, "qI"),
    114: (Tcreate, "ISIB|S"),
    115: (Rcreate, "qI"),
    116: (Tread, "IQI"),
    117: (Rread, "D"),
    118: (Twrite, "IQD"),
    119: (Rwrite, "I"),
    120: (Tclunk, "I"),
    121: (Rclunk, ""),
    122: (Tremove, "I"),
    123: (Rremove, ""),
    124: (Tstat, "I"),
    125: (Rstat, "T"),
    126: (Twstat, "IT"),
    127: (Rwstat, ""),
}
_CODES: Final = {cls: (code, layout) for code, (cls, layout) in LAYOUTS.items()}


def message_size(data: bytes | bytearray) -> int:
    """The octets of the message whose first four are `data`'s.  Raises WireError when it cannot be one."""
    size: int = _LONG.unpack_from(data)[0]
    if size < HEADER.size:
        raise WireError(f"9P message of {size} octets")
    return size


def read_tag(data: bytes) -> int:
    """The tag of a message, however wrong the rest of it.  Raises WireError."""
    if len(data) < HEADER.size:
        raise WireError(f"9P message of {len(data)} octets")
    tag: int = HEADER.unpack_from(data)[2]
    return tag


def encode(tag: int, message: Message, *, extended: bool) -> bytes:
    """The octets of `message`, in 9P2000.u when `extended`.  Raises ValueError when a field does not fit its place."""
    code, layout = _CODES[type(message)]
    plain, _, more = layout.partition("|")
    try:
        # astuple would take a Qid apart
        values = [getattr(message, name) for name in message.__slots__]
        body = b"".join(
            _put(letter, value, extended)
            for letter, value in zip(plain + (more if extended else ""), values, strict=False)
        )
        return HEADER.pack(HEADER.size + len(body), code, tag) + body
    except struct.error as error:
        raise ValueError(f"{message}: {error}") from None


def decode(data: bytes, *, extended: bool) -> tuple[int, Message]:
    """(tag, message) of the whole message `data`.  Raises WireError."""
    tag = read_tag(data)
    size, code, _ = HEADER.unpack_from(data)
    if size != len(data):
        raise WireError(f"9P message of {len(data)} octets says that it has {size}")
    if code not in LAYOUTS:
        raise WireError(f"9P message type {code}")
    cls, layout = LAYOUTS[code]
    plain, _, more = layout.partition("|")
    reader = _Reader(data, HEADER.size)
    values = [reader.get(letter, extended) for letter in plain + (more if extended else "")]
    if reader.at != len(data):
        raise WireError(f"9P {cls.__name__} with {len(data) - reader.at} octets too many")
    message: Message = cls(*values)
    return tag, message


def decode_stat(data: bytes, *, extended: bool) -> Stat:
    """The directory entry that `data` is, its own length included.  Raises WireError."""
    reader = _Reader(data, 0)
    stat = reader.stat(extended)
    if reader.at != len(data):
        raise WireError("9P directory entry with octets behind it")
    return stat


def _string(text: str) -> bytes:
    octets = text.encode()
    return _SHORT.pack(len(octets)) + octets


def _put(letter: str, value: Any, extended: bool) -> bytes:
    if letter in _NUMBERS:
        return _NUMBERS[letter].pack(value)
    match letter:
        case "S":
            return _string(value)
        case "D":
            return _LONG.pack(len(value)) + bytes(value)
        case "q":
            return _QID.pack(*astuple(value))
        case "N":
            return _SHORT.pack(len(value)) + b"".join(_string(name) for name in value)
        case "K":
            return _SHORT.pack(len(value)) + b"".join(_QID.pack(*astuple(qid)) for qid in value)
        case _:
            stat = value.encode(extended=extended)
            return _SHORT.pack(len(stat)) + bytes(stat)


class _Reader:
    """Fields, one behind the other; each method raises WireError when the octets end too early."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self.at = at

    def get(self, letter: str, extended: bool) -> Any:
        if letter in _NUMBERS:
            return self._unpack(_NUMBERS[letter])[0]
        match letter:
            case "S":
                return self._string()
            case "D":
                return self._take(self._unpack(_LONG)[0])
            case "q":
                return self._qid()
            case "N":
                return tuple(self._string() for _ in range(self._count()))
            case "K":
                return tuple(self._qid() for _ in range(self._count()))
            case _:
                end = self._unpack(_SHORT)[0] + self.at
                stat = self.stat(extended)
                if self.at != end:
                    raise WireError("9P directory entry with two lengths that differ")
                return stat

    def stat(self, extended: bool) -> Stat:
        end = self._unpack(_SHORT)[0] + self.at
        kind, dev, qid_kind, version, path, mode, atime, mtime, length = self._unpack(_ENTRY)
        name, uid, gid, muid = self._string(), self._string(), self._string(), self._string()
        extension, n_uid, n_gid, n_muid = "", NO_UID, NO_UID, NO_UID
        if extended:
            extension = self._string()
            n_uid, n_gid, n_muid = (self._unpack(_LONG)[0] for _ in range(3))
        if self.at != end:
            raise WireError("9P directory entry of another length than it says")
        return Stat(
            Qid(qid_kind, version, path),
            mode,
            name,
            length,
            atime,
            mtime,
            uid,
            gid,
            muid,
            kind,
            dev,
            extension,
            n_uid,
            n_gid,
            n_muid,
        )

    def _unpack(self, form: struct.Struct) -> tuple[Any, ...]:
        return form.unpack(self._take(form.size))

    def _take(self, count: int) -> bytes:
        taken = self._data[self.at : self.at + count]
        if len(taken) != count:
            raise WireError("9P message that ends inside a field")
        self.at += count
        return taken

    def _count(self) -> int:
        count: int = self._unpack(_SHORT)[0]
        if count > MAX_NAMES:
            raise WireError(f"9P walk of {count} names; {MAX_NAMES} is the most")
        return count

    def _qid(self) -> Qid:
        return Qid(*self._unpack(_QID))

    def _string(self) -> str:
        octets = self._take(self._unpack(_SHORT)[0])
        try:
            text = octets.decode()
        except UnicodeDecodeError:
            raise WireError("9P string that is not UTF-8") from None
        if "\0" in text:
            raise WireError("9P string with a NUL")
        return text
