"""THE GATEWAY'S OWN: what the gateway itself answers.  A core from proto and its sockets, nothing else."""
