"""TCP with the guest, RFC 9293, as cores that never wait."""
