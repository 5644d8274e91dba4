"""CAPTURE: rules, byte-bounded rings, and the files that other programs read.  A frame here is bytes with a time."""
