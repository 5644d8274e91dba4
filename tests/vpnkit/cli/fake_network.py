"""A network that swallows what the guest sends, in the place of vpnkit.net.network.

As a program it is `vpnkit run` on that network: `fake_network.py [-p SPEC]... CMD [ARG]...`.  Like the real one it
is imported only when the namespace is on its way.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
import time
import types

NAME = "vpnkit.net.network"

if __name__ == NAME:
    import trio

    from vpnkit.errors import ConfigError

    class Lazy(trio.abc.Instrument):
        """Late for every event, so that others have dealt with it before."""

        def after_io_wait(self, timeout):
            time.sleep(0.03)

    class NetworkOptions:
        captures = None

    class Network:
        def __init__(self, plan, options):
            assert isinstance(options, NetworkOptions)
            self.plan = plan
            self.options = options
            self.events = None
            self.http_proxy = types.SimpleNamespace(service=None)

        async def run(self, task_status=trio.TASK_STATUS_IGNORED):
            if os.environ.get("FAKE_SLOW"):
                os.write(2, b"slow\n")
                await trio.sleep_forever()
            if os.environ.get("FAKE_LAZINESS"):
                trio.lowlevel.add_instrument(Lazy())
            task_status.started()
            if os.environ.get("FAKE_FAILURE"):
                await trio.sleep(0.4)
                raise RuntimeError("the network broke")
            await trio.sleep_forever()

        async def serve_guest(self, link, mac, ip, task_status=trio.TASK_STATUS_IGNORED):
            assert (mac.hex(":"), ip) == ("02:50:00:00:00:01", self.plan.guest_ip)
            try:
                task_status.started(object())
                while True:
                    await link.wait_readable()
                    while link.receive() is not None:
                        link.release()
            finally:
                link.close()

        def assign(self, mac, ip):
            assert ip == self.plan.guest_ip

        async def expose(self, spec):
            if spec == "bad":
                raise ConfigError("bad forward")
            return []


class Finder:
    def find_spec(self, name, path, target=None):
        if name == NAME:
            return importlib.util.spec_from_file_location(name, __file__)
        return None


def options():
    from vpnkit.net.network import NetworkOptions

    return NetworkOptions()


def main():
    sys.meta_path.insert(0, Finder())
    from vpnkit.cli.run import run
    from vpnkit.net.plan import Plan

    argv = sys.argv[1:]
    forwards = []
    while argv[0] == "-p":
        forwards.append(argv[1])
        del argv[:2]
    assert "trio" not in sys.modules
    sys.exit(run(argv, Plan(search=("example.org", "corp.example.org")), forwards, options))


if __name__ == "__main__":
    main()
