"""The filter language: tcpdump's, the part that people use, compiled to Python.

>>> wanted = compile_filter("udp port 53 and not host 192.168.65.1")
>>> wanted(frame)

What a filter says of a frame is what libpcap's says (pcap-filter(7)), down to its two surprises: `and` and `or` bind
equally and from the left, and a filter that has to look behind the end of a frame wants it not, whatever it would
have said.  VLAN tags and IPv6 extension headers, but for `tcp`, `udp` and their like behind a fragment header, hide
what is behind them.  Ours besides: `name PATTERN`, flows to addresses that DNS gave for a name; `inbound` and
`outbound`.  Names of hosts are not looked up.
"""

from __future__ import annotations

from pcap.errors import FilterError
from pcap.filter.code import Names, compile_filter
from pcap.filter.lexer import MAX_TEXT

__all__ = ["MAX_TEXT", "FilterError", "Names", "compile_filter"]
