"""`qpack manifest schema`."""

from __future__ import annotations


def manifest_schema() -> None:
    """Print the JSON Schema of serving manifests."""
    import json

    from registry.serving.serving_manifest import schema

    print(json.dumps(schema(), indent=2))
