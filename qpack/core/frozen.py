"""What every record is: immutable, and the same after a trip through JSON."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Immutable, and strict about unknown fields: a result of another version is an error, never a guess."""

    # Without "strings" an infinite or undefined figure would be written as null, which can't be read back.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")
