"""The recipes as a page: each program with its own description, as it stands in the repository."""

from __future__ import annotations

import ast
from pathlib import Path

RECIPES = Path(__file__).parents[1] / "recipes"
ORDER = (
    "timm_model", "hugging_face", "any_transformers_model", "no_pictures", "chain", "cluster_search",
    "ewc_in_your_loop", "lwf_in_your_loop", "fisher", "heads_on_a_module", "grid_search",
)  # fmt: skip


def page() -> str:
    """Every program of `recipes/`; raises ValueError for one that has no place in the order."""
    found = {path.stem: path for path in sorted(RECIPES.glob("*.py"))}
    if set(found) != set(ORDER):
        raise ValueError(f"recipes/ holds {', '.join(found)}, the page shows {', '.join(ORDER)}")
    return "\n".join(line for name in ORDER for line in _entry(found[name]))


def _entry(path: Path) -> list[str]:
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    told = ast.get_docstring(tree) or ""
    title, _, rest = told.partition("\n\n")
    words, _, call = rest.partition("\n\n    ")
    code = "\n".join(source.splitlines()[tree.body[0].end_lineno :]).strip()  # what follows the docstring
    calls = [line.strip() for line in call.splitlines()]
    return [
        f"## {path.name}",
        "",
        f"**{title}** {words}",
        "",
        "```text",
        *calls,
        "```",
        "",
        "```python",
        code,
        "```",
        "",
    ]
