"""INBOUND: joins a listener on the host to a connector.  This package does not know what a frame is."""
