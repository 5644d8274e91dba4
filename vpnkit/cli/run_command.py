"""`vpnkit run`: its options.  What it does is in `run`, which is imported when they are right."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import click

from portfwd.auto.rules import Rule, parse_rule
from portfwd.spec import is_rule, parse
from vpnkit.cli.logs import configure
from vpnkit.cli.options import network_options, parsed, plan_from, settings_from
from vpnkit.errors import ConfigError, VpnkitError

DEFAULT_NAME: Final = "default"

if TYPE_CHECKING:
    from portfwd.spec import Spec
    from vpnkit.net.network import NetworkOptions


def _published(text: str) -> list[Spec] | Rule:
    return parse_rule(text) if is_rule(text) else parse(text)


@click.command("run", context_settings={"allow_interspersed_args": False})
@network_options
@parsed(
    _published,
    "-p",
    "--publish",
    metavar="SPEC",
    multiple=True,
    help="Forward a port of this host: [HOST_IP:]HOST_PORT:[GUEST_IP:]GUEST_PORT[/udp], or PORT, or ranges, or what "
    "`vpnkit expose --help` has; or 'auto', whatever CMD listens on, 'auto:8000-9000,!8080,80=8080' only these, not "
    "this one, that one elsewhere; may be repeated.",
)
@click.argument("command", metavar="CMD [ARG]...", nargs=-1, required=True, type=click.UNPROCESSED)
def run_command(command: tuple[str, ...], publish: tuple[list[Spec] | Rule, ...], **options: Any) -> int:
    """Run CMD in a network of its own.

    CMD gets a private network namespace (and a user namespace, without root) whose only link is this process: the
    network 192.168.65.0/24 with a gateway that is us.  It reaches what this user reaches; `host.internal` is this
    host's 127.0.0.1.  Nobody reaches it except through -p.  Everything ends with CMD.

    The exit status is CMD's; 128+N when signal N ended it.  Options after CMD are CMD's own.

    \b
    vpnkit run curl http://host.internal:8000/
    vpnkit run -p 8080:80 -- python3 -m http.server 80
    vpnkit run -p auto -- python3 -m http.server 8000
    """
    configure(options["log_level"], options["log_json"])
    plan = plan_from(options)
    settings = settings_from(options)

    if sys.platform != "linux":
        raise VpnkitError(
            f"`vpnkit run` needs Linux: {sys.platform} has no network namespaces; `vpnkit serve` works here"
        )

    def behaviour() -> NetworkOptions:
        from vpnkit.net.network import NetworkOptions

        return NetworkOptions(
            name=settings.name,
            dns=settings.dns,
            dns_zones=settings.dns_zones,
            hosts=settings.hosts,
            dns_log=settings.dns_log,
            verify_checksums=settings.verify_checksums,
            max_connections=settings.max_connections,
            max_guest_connections=settings.max_guest_connections,
            allowed_bind_addresses=settings.allowed_bind_addresses,
            port_helper=settings.port_helper,
            udp_filtering=settings.udp_filtering,
            leasing=settings.leasing,
            ipv6=settings.ipv6,
            nat64=settings.nat64,
            http_proxy=settings.http_proxy,
            captures=settings.captures(),
        )

    from vpnkit.cli.run import run

    rules = [item for item in publish if isinstance(item, Rule)]
    if len(rules) > 1:
        raise ConfigError("-p auto is there twice; one rule has it all, as in -p auto:8000-9000,!8080,80=8080")
    forwards = [str(spec) for specs in publish if not isinstance(specs, Rule) for spec in specs]
    ours = settings.control is not None or settings.name != DEFAULT_NAME
    control = settings.control_path if ours else None
    return run(
        list(command),
        plan,
        forwards,
        behaviour,
        offload=settings.offload,
        control=control,
        control_tcp=settings.control_tcp,
        p9=settings.p9,
        ipv6=settings.ipv6,
        auto=rules[0] if rules else None,
    )
