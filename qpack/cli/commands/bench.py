"""`qpack bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qpack.cli import options
from qpack.cli.options import AsJson, TrustRelease, Verbose
from qpack.core.errors import invalid_option


def bench(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="TARGET", help="A checkpoint folder, a release, or a running server's URL.", show_default=False
        ),
    ],
    concurrency: Annotated[str, typer.Option(help="Concurrent clients, comma-separated.")] = "1,16",
    rate: Annotated[str, typer.Option(help="Poisson request rates per second, comma-separated.")] = "",
    rate_seconds: Annotated[float, typer.Option(min=1.0, help="Seconds per request rate.")] = 30.0,
    input_tokens: Annotated[int, typer.Option(min=1, help="Prompt length in tokens.")] = 512,
    output_tokens: Annotated[int, typer.Option(min=2, help="Answer length in tokens.")] = 128,
    prefix_tokens: Annotated[int, typer.Option(min=0, help="Shared prefix length, to measure prefix caching.")] = 0,
    requests_per_client: Annotated[int, typer.Option(min=1, metavar="N", help="Requests per client and run.")] = 2,
    repeats: Annotated[int, typer.Option(min=1, metavar="N", help="Runs per load level.")] = 3,
    max_repeats: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Largest number of runs per load level (default: --repeats).", show_default=False
        ),
    ] = None,
    slo: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=MS", help="Latency objective for goodput. Repeatable.", show_default=False),
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Use random weights of the model's shape.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="Serving dtype, as vLLM names it.")] = "auto",
    max_model_len: Annotated[
        int | None,
        typer.Option(min=64, help="Served context in tokens, for every target.", show_default=False),
    ] = None,
    kv_cache_gib: Annotated[
        float | None, typer.Option(min=0.0, help="KV cache in GiB, for every target.", show_default=False)
    ] = None,
    flag: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A vLLM flag. Repeatable.", show_default=False),
    ] = None,
    against_transformers: Annotated[
        bool, typer.Option("--against-transformers", help="Also measure plain transformers.")
    ] = False,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Prompts for measuring speculative decoding (JSON Lines).", show_default=False
        ),
    ] = None,
    also: Annotated[
        str,
        typer.Option(
            metavar="TOOLS", help="Load generators beside vLLM's: guidellm, inference-perf.", show_default=False
        ),
    ] = "",
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Tokenizer of a remote server's model.", show_default=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model name, if the server has several.", show_default=False)
    ] = None,
    trust_release: TrustRelease = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write all results as JSON.", show_default=False),
    ] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Measure speed and memory in vLLM.

    Takes several targets; needs no recipe.
    """
    from evals.measure.eval_specs import Load
    from qpack.cli.render import bench as present
    from qpack.serve import bench as benches

    if not concurrency.strip(" ,") and not rate.strip(" ,"):
        raise invalid_option("--concurrency", "no load", "Give numbers, or --rate.")
    load = Load(
        concurrency=tuple(options.numbers(concurrency, int, "--concurrency")),
        rates=tuple(options.numbers(rate, float, "--rate")),
        rate_seconds=rate_seconds,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        prefix_tokens=prefix_tokens,
        requests_per_client=requests_per_client,
        repeats=repeats,
        max_repeats=max_repeats or repeats,
        objective=benches.objective(slo or []),
    )
    others = benches.tools(also)
    benches.check_prompts(prompts and options.existing(prompts, "--prompts"))
    benches.check_targets(targets, options.registry_folder())
    server = benches.Server(
        dtype=dtype,
        max_model_len=max_model_len,
        kv_cache_gib=kv_cache_gib,
        random_weights=random_weights,
        flags=benches.flags(flag or []),
        trusted=trust_release,
    )
    remote = benches.Remote(model, tokenizer)
    spec = benches.BenchSpec(load, server, remote, against_transformers, prompts, others)
    found = []
    with options.context(verbose=verbose) as context:
        for number, target in enumerate(targets, 1):
            context.console.stage(number, len(targets), "bench", target)
            found.append(benches.measure(target, spec, context))
            context.console.end("measured")
    present.benched(found, output, as_json=as_json)
