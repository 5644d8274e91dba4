"""ARGV: the command line, one file per subcommand.

A subcommand's module is imported when it is used and not before: `vpnkit --help` costs click and nothing else.  Errors
are one line on stderr; the exit status is 2 when the command line or the configuration is wrong, 1 when the job failed.
"""

from __future__ import annotations

import logging
import sys
import traceback
from importlib import import_module
from typing import TYPE_CHECKING, Final

import click

from vpnkit import __version__
from vpnkit.errors import ConfigError, VpnkitError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# name: (where the command is, the line that `vpnkit --help` has for it)
COMMANDS: Final = {
    "run": ("vpnkit.cli.run_command:run_command", "Run a command in a network of its own, with no privilege."),
    "serve": ("vpnkit.cli.serve_command:serve_command", "Be the network of one or more VMs."),
    "demo": ("vpnkit.cli.demo:demo", "The main job on this machine, in under a minute, step by step."),
    "status": ("vpnkit.cli.status:status", "A running instance at a glance."),
    "guests": ("vpnkit.cli.guests:guests", "The guests of a running instance."),
    "flows": ("vpnkit.cli.flows:flows", "The connections of a running instance."),
    "ports": ("vpnkit.cli.ports:ports", "The forwards of a running instance."),
    "expose": ("vpnkit.cli.ports:expose", "Forward ports of this host to a guest."),
    "unexpose": ("vpnkit.cli.ports:unexpose", "Stop forwarding them."),
    "leases": ("vpnkit.cli.leases:leases", "The addresses that a running instance gave out."),
    "capture": ("vpnkit.cli.capture:capture", "The packets of a running instance: rings, files, live."),
    "helper": ("vpnkit.cli.helper:helper", "Bind ports below 1024 for vpnkit, as root."),
    "agent": ("vpnkit.cli.agent:agent", "In a guest: let the host forward what listens here."),
    "doctor": ("vpnkit.cli.doctor:doctor", "What this machine allows, and how to mend what it does not."),
}

INTERRUPTED: Final = 130  # 128 + SIGINT


class LazyGroup(click.Group):
    """The subcommands of COMMANDS, each imported when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(import_module(module), attribute)
        if isinstance(command, click.Command):
            return command
        return click.command(cmd_name, help=COMMANDS[cmd_name][1])(command)  # a function that takes nothing

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="`vpnkit COMMAND --help` tells what each command takes.  `vpnkit --ethernet --help` has the flags of the "
    "original VPNKit, which are taken too.",
)
@click.version_option(__version__, prog_name="vpnkit")
def vpnkit() -> None:
    """The whole network of a virtual machine in one unprivileged process.

    A guest's frames become ordinary sockets of this user: no root, no bridge, no firewall rule.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own); returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _original(words)
        if status is None:
            status = vpnkit.main(args=words, prog_name="vpnkit", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 2
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "vpnkit"
        return _fail(f"{error.format_message()} See '{command} --help'.", 2)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BaseException as error:
        return _explain(error)
    return status if isinstance(status, int) else 0


def _original(words: list[str]) -> int | None:
    """The exit status of a command line of the original VPNKit's; None for one of ours."""
    if not words or not words[0].startswith("--"):
        return None
    from vpnkit.cli.original.flags import is_original

    if not is_original(words[0]):
        return None
    from vpnkit.cli.original.start import start

    return start(words)


def _explain(error: BaseException) -> int:
    """Say what `error`, or the first that matters of a group, means to the operator; returns the exit status."""
    leaves = list(_leaves(error))
    for leaf in leaves:
        if isinstance(leaf, SystemExit):
            raise leaf
    if any(isinstance(leaf, KeyboardInterrupt) for leaf in leaves):
        return INTERRUPTED
    if logging.getLogger().isEnabledFor(logging.DEBUG):
        traceback.print_exception(error)
    first = next((leaf for leaf in leaves if isinstance(leaf, ConfigError)), leaves[0])
    return _fail(_message(first), 2 if isinstance(first, ConfigError) else 1)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error


def _message(error: BaseException) -> str:
    from portfwd.errors import ForwardError
    from tapdev.link import LinkClosed

    if isinstance(error, (VpnkitError, ForwardError)):
        return str(error)
    if isinstance(error, LinkClosed):
        return str(error) or "the link to the guest closed"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"internal error: {type(error).__name__}: {error} (--log-level debug shows where)"


def _fail(message: str, status: int) -> int:
    print(f"vpnkit: {' '.join(message.split())}", file=sys.stderr)
    return status
