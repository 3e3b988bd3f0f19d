"""The `dermserve` command: a shell into which each room hangs its own commands.

A room registers a command in the entry-point group `dermserve.commands`; this module imports none of them by name,
and loads one only when it is called or listed.
"""

from __future__ import annotations

import logging
import sys
from importlib.metadata import EntryPoint, entry_points

import click

from dermserve import __version__
from dermserve.errors import DermserveError

GROUP = "dermserve.commands"


class EntryPointGroup(click.Group):
    """A click group whose commands come from entry points, loaded on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        return sorted(_found())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        entry = _found().get(cmd_name)
        if entry is None:
            return None
        command = entry.load()
        assert isinstance(command, click.Command), f"{entry.value} is not a click command"
        return command


def _found() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


@click.group(cls=EntryPointGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dermserve")
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def shell(verbose: bool) -> None:
    """Melanoma classification on NVIDIA Triton: train, export, serve, predict, measure.

    Research use only; not a medical device.

    \b
    Examples:
      dermserve serve
      dermserve sample lesions/ && dermserve predict lesions/ --csv out.csv
      dermserve admin create-api-key --name gateway
    """
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )


def main() -> None:
    """Run the command line; a known error becomes one line and its exit status, mostly 1, never a stack trace."""
    try:
        shell.main(standalone_mode=True)
    except DermserveError as error:
        click.echo(f"dermserve: {error.detail}", err=True)
        sys.exit(error.exit_status)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        extra = _EXTRAS.get(missing)
        if extra is None:
            raise
        click.echo(
            f"dermserve: this command needs {missing}: run deploy/setup.sh dev, or install the extra '{extra}'",
            err=True,
        )
        sys.exit(1)
    except ValueError as error:
        faults = _bad_settings(error)
        if faults is None:
            raise
        click.echo(f"dermserve: {faults}", err=True)
        sys.exit(1)


def _bad_settings(error: ValueError) -> str | None:
    """The variables at fault and why, without their values, which may hold a password; None for any other error."""
    from pydantic import ValidationError

    from dermserve.settings import Settings

    if not isinstance(error, ValidationError) or error.title != Settings.__name__:
        return None
    prefix = Settings.model_config["env_prefix"]
    return "; ".join(
        ": ".join([*(f"{prefix}{name}".upper() for name in fault["loc"][:1]), fault["msg"]]) for fault in error.errors()
    )


_EXTRAS = {
    "torch": "training",
    "timm": "training",
    "torchvision": "training",
    "wandb": "training",
    "onnx": "training",
    "locust": "bench",
    "matplotlib": "bench",
}
