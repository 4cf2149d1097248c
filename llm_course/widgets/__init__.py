"""Widgets for the lessons: move a slider, press a button, see what changes.

    from llm_course.widgets import Playground, TokenizerExplorer

Each name is loaded from its module when it is first asked for."""

from importlib import import_module

_MODULES = {
    "Explorer": "base",
    "TokenizerExplorer": "tokens",
    "read_tokens": "tokens",
    "replay_merges": "tokens",
    "next_token_rows": "text",
    "plot_next_token": "text",
    "Playground": "playground",
    "AttentionExplorer": "attention",
    "TrainingDashboard": "training",
    "LogitLens": "lens",
    "lens_table": "lens",
}
__all__ = list(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
