"""A module is the text of its notebook's exported cells. Where such a cell runs in its notebook, it counts
for `make coverage` as those lines of the module."""

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "llm_course"


def module_of(path, package=PACKAGE):
    "The module that a notebook exports, or None."
    if name := re.search(r'"#\| *default_exp ([\w.]+)', path.read_text(encoding="utf-8")):
        return package / f"{name[1].replace('.', '/')}.py"
    return None


def lines_of_cells(module):
    "The line of a module below which each cell stands, by the cell's id."
    lines = module.read_text(encoding="utf-8").splitlines()
    heads = {}
    for number, line in enumerate(lines, 1):
        if head := re.fullmatch(r"# %% \S+\.ipynb #(\S+)", line):
            heads[head[1]] = number
    return heads


class InModule:
    "Lets a shell compile exported cells under the name, and with the line numbers, of their module."

    def __init__(self, shell, path):
        self.module = module_of(path)
        self.heads = lines_of_cells(self.module) if self.module else {}
        self.shift = None  # of the cell that runs, where it is exported
        self.name_of = shell.compile.cache
        shell.compile.cache = self.cache
        shell.ast_transformers.append(self)

    def begin(self, cell):
        "This cell runs next."
        self.shift = None
        if cell.id in self.heads:
            directives = re.match(r"(?:\s*#\|.*\n)*", cell.source).group()
            self.shift = self.heads[cell.id] - directives.count("\n")

    def cache(self, *args, **kwargs):
        if self.shift is None:
            return self.name_of(*args, **kwargs)
        return str(self.module)

    def visit(self, tree):
        return tree if self.shift is None else ast.increment_lineno(tree, self.shift)
