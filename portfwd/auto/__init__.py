"""Automatic exposure: what listens in a guest is forwarded on the host.  What a guest needs of it is stdlib only."""
