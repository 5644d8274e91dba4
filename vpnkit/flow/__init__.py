"""STREAMS: what may wait.  Host sockets, the guest's TCP as a stream, and the relay between the two."""
