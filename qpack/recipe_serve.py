"""The part of a recipe that says how the model is served; the models that all parts are made of."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

Name = Annotated[str, Field(pattern=r"^[a-z0-9]+([._-][a-z0-9]+)*$", max_length=96)]


class Section(BaseModel):
    """A part of the recipe: immutable, no unknown keys, no silent conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


Flag = bool | int | float | str | list[JsonValue] | dict[str, JsonValue]
Target = Literal["cpu", "ampere", "ada", "hopper", "blackwell"]


class ServeProfile(Section):
    """Another way to serve the same artifact. What it leaves out is as in `serve`; nothing is measured for it."""

    target: Target | None = Field(None, description="Hardware that will serve it.")
    tensor_parallel: int | None = Field(None, ge=1, description="GPUs that share the model.")
    max_model_len: int | None = Field(None, ge=64)
    dtype: Literal["auto", "bfloat16", "float16", "float32"] | None = None
    kv_cache_gib: float | None = Field(None, gt=0, description="The KV cache's budget on one device.")
    arguments: dict[str, Flag | None] = Field(
        default_factory=dict, description="Flags laid over those of `serve`; null takes one away."
    )
    environment: dict[str, str] = Field(default_factory=dict, description="Variables laid over those of `serve`.")


class Serve(Section):
    """How the model is served: the evals run against a server that is started this way."""

    target: Literal["auto", "cpu", "ampere", "ada", "hopper", "blackwell"] = Field(
        "auto", description="Hardware that will serve it; auto is this machine."
    )
    max_model_len: int = Field(2048, ge=64)
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    kv_cache_gib: float = Field(1.0, gt=0, description="The KV cache's budget, the same for baseline and artifact.")
    port: int | None = Field(
        None, ge=1, le=65535, description="Port of the server that the evals run against; null for any free one."
    )
    tensor_parallel: int = Field(1, ge=1)
    arguments: dict[str, Flag] = Field(
        default_factory=dict, description="More `vllm serve` flags, without the dashes; a mapping is given as JSON."
    )
    environment: dict[str, str] = Field(
        default_factory=dict, description="Environment variables for vLLM. No secrets: they are published."
    )
    profiles: dict[Name, ServeProfile] = Field(
        default_factory=dict, description="Other ways to serve the artifact, by name: more GPUs, other flags."
    )
