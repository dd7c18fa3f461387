"""The serving manifest: read, checked, exported."""
