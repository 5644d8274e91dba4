"""RULES: (input, now) changes state, output is pulled.  No waiting, no sockets, no clock, no dice, no logging."""
