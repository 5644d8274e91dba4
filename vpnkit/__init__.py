"""The translator: the network of a virtual machine as ordinary host sockets."""

__version__ = "0.1.0"
