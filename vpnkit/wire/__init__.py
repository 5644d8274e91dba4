"""BITS: bytes to values and back, one file per protocol.  No state, no clock, no waiting."""
