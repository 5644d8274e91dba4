"""The original VPNKit's own argument vector, `vpnkit --ethernet ...`, so that what starts it starts us unchanged."""
