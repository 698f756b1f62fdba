"""Results as JSON and as tables for notebooks."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable
from typing import Any

__all__ = ["as_html", "as_json"]


def as_json(fields: dict[str, Any]) -> str:
    """Return fields as a JSON object, with null for values that are not finite."""
    return json.dumps(_finite(fields))


def as_html(text: str, values: Iterable[tuple[str, str]], color: str) -> str:
    """Return a paragraph and a table of names and values, with a colored border."""
    body = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
        f"<td>{html.escape(value)}</td></tr>"
        for name, value in values
    )
    return (
        f"<div style='border-left:4px solid {color};padding-left:1em'>"
        f"<p>{html.escape(text)}</p><table>{body}</table></div>"
    )


def _finite(value: Any) -> Any:
    """Replace values that are not finite, which JSON does not have, by None."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
