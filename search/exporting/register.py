"""The winner of a sweep that has just ended, registered in MLflow."""

from __future__ import annotations

from rich.console import Console

from search.core.config import SweepConfig
from search.core.problems import UsageError
from search.terminal.console import module_command


def register_winner(config: SweepConfig, uri: str, console: Console) -> bool:
    """Register the winner as a version of `config.register` in MLflow at `uri`; whether it is
    there. The sweep's results are safe: whatever fails here is told, with the command that does it
    later."""
    assert config.register is not None
    arguments = [config.name, "--register", config.register, "--storage", config.storage]
    try:
        # PyTorch and the rest take seconds, which a sweep need not wait for when it starts.
        from search.export import build_parser, export

        given = [*arguments, "--tracking-uri", uri]
        given += ["--data", config.data] if config.data else []
        with console.status("Registering the winner"):
            version = export(build_parser().parse_args(given)).version
        assert version is not None
        console.print(version.announced, markup=False, highlight=False)
        return True
    except Exception as error:
        why = " ".join(error.problems) if isinstance(error, UsageError) else str(error)
        again = module_command("search.export", *arguments[:3], storage=config.storage)
        console.print(
            f"The winner is not registered: {why or type(error).__name__}. Later: {again}",
            style="yellow",
            markup=False,
            highlight=False,
        )
        return False
