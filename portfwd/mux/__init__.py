"""The original's multiplexed forwarder protocol: many streams to ports and sockets of a guest on one connection."""
