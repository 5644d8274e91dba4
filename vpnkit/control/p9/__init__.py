"""A 9P file server over a tree of nodes, and the tree that an instance shows."""
