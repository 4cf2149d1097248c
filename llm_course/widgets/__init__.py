"""Widgets for the lessons: move a slider, press a button, see what changes."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors and type checkers: the same names as below
    from .attention import AttentionExplorer as AttentionExplorer
    from .attention import CrossAttentionExplorer as CrossAttentionExplorer
    from .attention import farthest_look as farthest_look
    from .attention import keenest_look as keenest_look
    from .base import Explorer as Explorer
    from .lens import LogitLens as LogitLens
    from .lens import lens_table as lens_table
    from .next_token import next_token_rows as next_token_rows
    from .next_token import plot_next_token as plot_next_token
    from .playground import Playground as Playground
    from .tokens import TokenizerExplorer as TokenizerExplorer
    from .tokens import read_tokens as read_tokens
    from .tokens import replay_merges as replay_merges
    from .training import TrainingDashboard as TrainingDashboard

# Where each public name stands. Its module is loaded when the name is used.
_HOME = {
    "Explorer": "base",
    "TokenizerExplorer": "tokens",
    "read_tokens": "tokens",
    "replay_merges": "tokens",
    "next_token_rows": "next_token",
    "plot_next_token": "next_token",
    "Playground": "playground",
    "AttentionExplorer": "attention",
    "CrossAttentionExplorer": "attention",
    "farthest_look": "attention",
    "keenest_look": "attention",
    "LogitLens": "lens",
    "lens_table": "lens",
    "TrainingDashboard": "training",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    "A public name, from the module in which it stands; AttributeError for any other."
    if name not in _HOME:
        raise AttributeError(f"module 'llm_course.widgets' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    "All public names, loaded or not."
    return sorted({*globals(), *_HOME})
