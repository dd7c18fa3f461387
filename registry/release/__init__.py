"""The release folder: manifest, card, bill of materials, provenance."""
