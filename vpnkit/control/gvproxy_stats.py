"""gvproxy's `/stats`: the counters of its TCP/IP stack, all of them, with 0 for those that we do not count.

A program that reads one finds every key where it expects it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vpnkit.net.report import FlowReport, StatusReport

_ARP: Final = (
    "PacketsReceived DisabledPacketsReceived MalformedPacketsReceived RequestsReceived"
    " RequestsReceivedUnknownTargetAddress RepliesReceived OutgoingRequestsSent OutgoingRequestsDropped"
    " OutgoingRequestInterfaceHasNoLocalAddressErrors OutgoingRequestBadLocalAddressErrors OutgoingRepliesSent"
    " OutgoingRepliesDropped"
)
_ICMP4: Final = (
    "EchoRequest EchoReply DstUnreachable SrcQuench Redirect TimeExceeded ParamProblem Timestamp TimestampReply"
    " InfoRequest InfoReply"
)
_ICMP6: Final = (
    "EchoRequest EchoReply DstUnreachable PacketTooBig TimeExceeded ParamProblem RouterSolicit RouterAdvert"
    " NeighborSolicit NeighborAdvert RedirectMsg MulticastListenerQuery MulticastListenerReport"
    " MulticastListenerReportV2 MulticastListenerDone"
)
_IGMP: Final = "MembershipQuery V1MembershipReport V2MembershipReport V3MembershipReport LeaveGroup"
_IP: Final = (
    "PacketsReceived ValidPacketsReceived DisabledPacketsReceived InvalidDestinationAddressesReceived"
    " InvalidSourceAddressesReceived PacketsDelivered PacketsSent OutgoingPacketErrors MalformedPacketsReceived"
    " MalformedFragmentsReceived IPTablesPreroutingDropped IPTablesInputDropped IPTablesForwardDropped"
    " IPTablesOutputDropped IPTablesPostroutingDropped OptionTimestampReceived OptionRecordRouteReceived"
    " OptionRouterAlertReceived OptionUnknownReceived"
)
_FORWARDING: Final = (
    "Unrouteable ExhaustedTTL InitializingSource LinkLocalSource LinkLocalDestination PacketTooBig HostUnreachable"
    " ExtensionHeaderProblem UnexpectedMulticastInputInterface UnknownOutputEndpoint NoMulticastPendingQueueBufferSpace"
    " OutgoingDeviceNoBufferSpace Errors"
)
_NEIGHBOR: Final = (
    "UnreachableEntryLookups DroppedConfirmationForNoninitiatedNeighbor DroppedInvalidLinkAddressConfirmations"
)
_TCP: Final = (
    "ActiveConnectionOpenings PassiveConnectionOpenings CurrentEstablished CurrentConnected EstablishedResets"
    " EstablishedClosed EstablishedTimedout ListenOverflowSynDrop ListenOverflowAckDrop ListenOverflowSynCookieSent"
    " ListenOverflowSynCookieRcvd ListenOverflowInvalidSynCookieRcvd FailedConnectionAttempts ValidSegmentsReceived"
    " InvalidSegmentsReceived SegmentsSent SegmentSendErrors ResetsSent ResetsReceived Retransmits FastRecovery"
    " SACKRecovery TLPRecovery SlowStartRetransmits FastRetransmit Timeouts ChecksumErrors FailedPortReservations"
    " SegmentsAckedWithDSACK SpuriousRecovery SpuriousRTORecovery"
)
_UDP: Final = (
    "PacketsReceived UnknownPortErrors ReceiveBufferErrors MalformedPacketsReceived PacketsSent PacketSendErrors"
    " ChecksumErrors"
)


def stats(status: StatusReport, flows: Iterable[FlowReport]) -> dict[str, Any]:
    """The answer, its keys in order.  Sent and received are seen from us, as gvproxy sees them."""
    tcp = [flow for flow in flows if flow.protocol == "tcp"]
    count = status.counters
    sent = {"Packets": status.frames_to_guest, "Bytes": status.bytes_to_guest}
    received = {"Packets": status.frames_to_host, "Bytes": status.bytes_to_host}
    return _sorted(
        {
            "BytesSent": status.bytes_to_guest,
            "BytesReceived": status.bytes_to_host,
            "DroppedPackets": count.get("link_full", 0) + count.get("switch_queue_full", 0),
            "ARP": _zeros(_ARP),
            "ICMP": {"V4": _messages("ICMPv4PacketStats", _ICMP4), "V6": _messages("ICMPv6PacketStats", _ICMP6)},
            "IGMP": {
                "PacketsSent": {"IGMPPacketStats": _zeros(_IGMP), **_zeros("Dropped")},
                "PacketsReceived": {"IGMPPacketStats": _zeros(_IGMP), **_zeros("Invalid ChecksumErrors Unrecognized")},
            },
            "IP": {
                **_zeros(_IP),
                "MalformedPacketsReceived": count.get("malformed", 0),
                "Forwarding": _zeros(_FORWARDING),
            },
            "NICs": {
                **_zeros("MalformedL4RcvdPackets TxPacketsDroppedNoBufferSpace"),
                "Tx": sent,
                "Rx": received,
                "DisabledRx": _zeros("Packets Bytes"),
                "Neighbor": _zeros(_NEIGHBOR),
            },
            "TCP": {
                **_zeros(_TCP),
                "CurrentConnected": len(tcp),
                "CurrentEstablished": sum(flow.state == "ESTABLISHED" for flow in tcp),
                "FailedConnectionAttempts": sum(n for name, n in count.items() if name.startswith("tcp_connect_")),
                "Retransmits": sum(flow.retransmissions for flow in tcp),
            },
            "UDP": _zeros(_UDP),
        }
    )


def _zeros(names: str) -> dict[str, int]:
    return dict.fromkeys(names.split(), 0)


def _messages(key: str, names: str) -> dict[str, Any]:
    return {
        "PacketsSent": {key: _zeros(names), **_zeros("Dropped RateLimited")},
        "PacketsReceived": {key: _zeros(names), **_zeros("Invalid")},
    }


def _sorted(counters: dict[str, Any]) -> dict[str, Any]:
    return {key: _sorted(value) if isinstance(value, dict) else value for key, value in sorted(counters.items())}
