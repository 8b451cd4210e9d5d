"""One self-contained page about an experiment."""

from .page import command_line, render, write

__all__ = ["command_line", "render", "write"]
