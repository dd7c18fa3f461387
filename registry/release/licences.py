"""Identifiers of licences: SPDX's and the Hub's."""

from __future__ import annotations

import difflib

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from qpack.core.problems import Code, Location, Problem

# Common identifiers of licences on the Hub (https://huggingface.co/docs/hub/repositories-licenses).
HUB = (
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "bsl-1.0", "isc", "mpl-2.0", "unlicense", "cc0-1.0"),
    *("cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-4.0", "cdla-permissive-2.0"),
    *("gpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "openrail", "bigscience-openrail-m", "bigscience-bloom-rail-1.0"),
    *("bigcode-openrail-m", "gemma", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4"),
)

UNKNOWN = Code("unknown-licence", "The licence is neither an SPDX expression nor one of the Hub's identifiers.")


def check(identifier: str | None) -> list[Problem]:
    """A warning, at `model.license`, for a licence that registries and tools won't recognize."""
    if identifier is None or identifier.lower() in HUB:
        return []
    try:
        canonicalize_license_expression(identifier)
    except InvalidLicenseExpression:
        near = difflib.get_close_matches(identifier.lower().replace(" ", "-"), HUB, 1)
        hint = f"Did you mean '{near[0]}'?" if near else "For a licence of your own write LicenseRef-NAME."
        what = f"'{identifier}' is not an SPDX identifier or expression"
        return [Problem(UNKNOWN, what, Location(key=("model", "license")), hint, "warning")]
    return []
