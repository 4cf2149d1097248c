"""Figures of the code: how long its lines are, how dense it is, how large its modules.

    python tests/code_figures.py [folder]      prints the table; tests/test_style.py holds the limits
"""

import ast
import io
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
DECISIONS = (
    ast.If,
    ast.IfExp,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.Try,
    ast.BoolOp,
    ast.ListComp,
    ast.SetComp,
    ast.DictComp,
    ast.GeneratorExp,
)
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def modules(folder: Path) -> list[Path]:
    "The package's modules, without nbdev's index."
    return sorted(path for path in folder.rglob("*.py") if path.name != "_modidx.py")


def written_lines(text: str) -> list[str]:
    "The lines that a person wrote: neither `__all__` nor the marks of nbdev's cells."
    lines = text.splitlines()
    for node in ast.parse(text).body:
        is_all = isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
        if is_all:
            for number in range(node.lineno - 1, node.end_lineno):
                lines[number] = ""
    return [line for line in lines if not line.startswith("# %%")]


def docstrings(tree: ast.AST) -> list[ast.Expr]:
    "The docstrings of a module, its classes and functions."
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    owners = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    return [owner.body[0] for owner in owners if ast.get_docstring(owner, clean=False) is not None]


def code_lines(text: str) -> int:
    "Lines that hold code: no blank line, no comment, no docstring."
    used = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            used |= set(range(token.start[0], token.end[0] + 1))
    for docstring in docstrings(ast.parse(text)):
        used -= set(range(docstring.lineno, docstring.end_lineno + 1))
    return len(used)


def tuple_assignments(tree: ast.AST) -> Iterator[ast.Assign]:
    "`a, b = x, y`: two things said in one line."
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
            continue
        if any(isinstance(target, ast.Tuple) for target in node.targets):
            yield node


def only_children(trees: list[ast.AST]) -> list[str]:
    "Base classes of the package that have exactly one child in it."
    classes, children = set(), defaultdict(set)
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                classes.add(node.name)
                for base in node.bases:
                    children[ast.unparse(base).split("[")[0].rpartition(".")[2]].add(node.name)
    return sorted(base for base in classes if len(children[base]) == 1)


def figures(folder: Path = ROOT / "llm_course") -> dict:
    "All figures of a package, by name."
    lines, trees, sizes = [], [], {}
    n_code = n_decisions = n_tuples = 0
    for path in modules(folder):
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        lines += written_lines(text)
        sizes[path.relative_to(folder).as_posix()] = text.count("\n")
        trees.append(tree)
        n_code += code_lines(text)
        n_decisions += sum(isinstance(node, DECISIONS) for node in ast.walk(tree))
        n_tuples += len(list(tuple_assignments(tree)))
    largest = max(sizes, key=sizes.__getitem__)
    return {
        "modules": len(sizes),
        "lines": len(lines),
        "share over 100 columns": sum(len(line) > 100 for line in lines) / len(lines),
        "lines over 120 columns": sum(len(line) > 120 for line in lines),
        "decisions per 100 lines": 100 * n_decisions / n_code,
        "tuple assignments per 1,000 lines": 1000 * n_tuples / n_code,
        "largest module": (sizes[largest], largest),
        "base classes with one child": only_children(trees),
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "llm_course"
    for name, value in figures(folder).items():
        shown = f"{value:.1%}" if name.startswith("share") else value
        print(f"{name:36} {f'{shown:.1f}' if isinstance(shown, float) else shown}")
