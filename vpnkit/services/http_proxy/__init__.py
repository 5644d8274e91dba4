"""The HTTP proxy at the gateway, and what takes guests' connections to the world's web servers to proxies."""
