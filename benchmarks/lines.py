"""How many lines a data scientist writes for the job of `examples/digits`, with edgeops and by hand.

    python -m benchmarks.lines

A line counts if it holds code: no blank lines, comments or docstrings. Training is in both files and counts in neither.
"""

from __future__ import annotations

import ast
import io
import json
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXAMPLE, BY_HAND = ROOT / "examples" / "digits" / "train.py", ROOT / "benchmarks" / "by_hand.py"
_NOTHING = (
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING,
    tokenize.ENDMARKER,
)  # fmt: skip
# Names of training: lines that import or use nothing but these are not of the job.
_TRAINING = {"sklearn"}


def code_lines(source: str) -> set[int]:
    """Return the numbers of lines that hold code."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {
        number for token in tokens if token.type not in _NOTHING for number in range(token.start[0], token.end[0] + 1)
    }
    return lines - _docstrings(source)


def training_lines(source: str) -> set[int]:
    """Return the numbers of lines that load data, train, or import what does: the same in both files."""
    found: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        imports = isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in _TRAINING
        calls = {one.func.id for one in ast.walk(node) if isinstance(one, ast.Call) and isinstance(one.func, ast.Name)}
        trains = isinstance(node, ast.Assign) and bool(calls & {"load_digits", "train_test_split", "make_pipeline"})
        fits = (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Call)
            and isinstance(node.value.func, ast.Attribute)
            and node.value.func.attr == "fit"
        )
        if imports or trains or fits:
            assert isinstance(node, ast.stmt)
            found |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return found


def counts() -> dict[str, int]:
    """Return the lines of both, without training."""
    texts = {"with edgeops": EXAMPLE.read_text(), "by hand": BY_HAND.read_text()}
    return {name: len(code_lines(text) - training_lines(text)) for name, text in texts.items()}


def _docstrings(source: str) -> set[int]:
    found: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            first = node.body[0]
            found |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return found


if __name__ == "__main__":
    print(json.dumps(counts(), indent=2))
