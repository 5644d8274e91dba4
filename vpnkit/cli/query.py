"""Asking a running instance on behalf of `status`, `guests`, `flows`, `leases` and `ports`, and changing one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from vpnkit.cli.logs import LEVELS, configure
from vpnkit.control.paths import ControlError, instances, socket_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

Command = TypeVar("Command", bound="Callable[..., Any]")
Report = TypeVar("Report")

OPTIONS: Final = (
    click.option("--name", default="default", show_default=True, help="The instance to ask."),
    click.option("--control", type=click.Path(path_type=Path), help="Its control socket, instead of --name."),
    click.option("--json", "as_json", is_flag=True, help="Print the answer itself."),
    click.option(
        "--log-level", type=click.Choice(LEVELS), default="warning", show_default=True, help="What is logged on stderr."
    ),
)


def query_options(command: Command) -> Command:
    """Give `command` what says which instance to ask; it hands its keyword arguments to `answer`."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def answer(options: Mapping[str, Any], target: str, kind: type[Report], show: Callable[[Report], str]) -> None:
    """Print what the instance has at `target`: as it came with --json, otherwise what `show` makes of it."""
    configure(options["log_level"], as_json=False)
    body = fetch(target, options["name"], options["control"])
    if options["as_json"]:
        click.echo(body, nl=False)
    else:
        click.echo(show(_decoded(body, kind)))


def fetch(target: str, name: str, control: Path | None) -> bytes:
    """The body at `target` of the instance.  Raises ControlError; when it is not there, with those that are."""
    from vpnkit.control.client import NotRunning, get

    path = control or socket_path(name)
    try:
        return get(path, target)
    except NotRunning as error:
        raise _absent(path, name, control) from error


def change(method: str, target: str, value: object, kind: type[Report], options: Mapping[str, Any]) -> Report:
    """What the instance answers when it was told to change something.  Raises as `fetch` does."""
    from vpnkit.control.client import NotRunning, request

    path = options["control"] or socket_path(options["name"])
    try:
        return _decoded(request(path, method, target, value), kind)
    except NotRunning as error:
        raise _absent(path, options["name"], options["control"]) from error


def streamed(target: str, options: Mapping[str, Any]) -> Iterator[bytes]:
    """The body at `target` as it comes.  Raises as `fetch` does."""
    from vpnkit.control.client import NotRunning, stream

    path = options["control"] or socket_path(options["name"])
    try:
        yield from stream(path, target)
    except NotRunning as error:
        raise _absent(path, options["name"], options["control"]) from error


def _absent(path: Path, name: str, control: Path | None) -> ControlError:
    running = ", ".join(instances())
    missing = f"nobody listens on {path}" if control else f"no instance {name!r} is running ({path})"
    rest = f"running: {running}" if running else "none is; `vpnkit run CMD` starts one"
    return ControlError(f"{missing}; {rest}")


def _decoded(body: bytes, kind: type[Report]) -> Report:
    import msgspec

    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ControlError(f"the instance answers what this version does not understand: {error}") from error
