"""`qpack schema`."""

from __future__ import annotations


def schema() -> None:
    """Print the JSON Schema of recipes."""
    import json

    from qpack.recipe.recipe_file import schema as generate

    print(json.dumps(generate(), indent=2))
