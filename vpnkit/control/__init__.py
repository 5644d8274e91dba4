"""THE OPERATOR'S INTERFACES: the HTTP API on the control socket, and what it reports."""
