"""The figures of one release in six outputs: a figure that is shown twice is the same, and a ratio is that of the
numbers beside it.

Each output is read as a reader sees it. A figure that is written with two decimals stands for anything that rounds to
it, so figures agree when their ranges meet.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import unescape
from typing import Any

from qpack.core.speed import MOST_OTHER_WORK

UNITS = {"MiB": 2**20, "GiB": 2**30, "KiB": 2**10, "%": 0.01, "": 1.0}


@dataclass(frozen=True)
class Shown:
    """A figure as an output writes it: everything from `low` to `high` is written so."""

    output: str
    low: float
    high: float

    def meets(self, other: Shown) -> bool:
        return self.low <= other.high * (1 + 1e-12) and other.low <= self.high * (1 + 1e-12)


def read(output: str, text: str, unit: str = "") -> Shown:
    """`text` is a number with its decimals, a unit behind it if it has one of its own."""
    number, _, own = text.strip().replace(",", "").replace("−", "-").removeprefix("×").removeprefix("x").partition(" ")
    half = 0.5 * 10.0 ** -len(number.partition(".")[2])
    factor = UNITS[own or unit]
    return Shown(output, (float(number) - half) * factor, (float(number) + half) * factor)


def exact(output: str, value: float) -> Shown:
    return Shown(output, value, value)


@dataclass(frozen=True)
class Texts:
    """The outputs on one release, as qpack prints and writes them. `release` is the release in `qpack show --json`;
    `compared` has the release, as `name`, among others; `compared_row` is its row in JSON.
    """

    name: str
    console: str
    release: dict[str, Any]
    page: str
    markdown: str
    card: str
    compared: str
    compared_row: dict[str, Any]

    @property
    def highest(self) -> int:
        """The most clients at once."""
        return max(speed["concurrency"] for speed in self.release["comparison"]["speed"])

    @property
    def undisturbed(self) -> bool:
        """Whether the machine was quiet enough for the report to show speed at its top."""
        return ((self.release["comparison"]["other_work"] or {}).get("share") or 0) <= MOST_OTHER_WORK


Figures = Iterator[tuple[tuple[str, str], Shown]]
"""((what, baseline or artifact or ratio), as it is shown)."""

NUMBER = r"([\d,.]+(?: [MGK]iB)?)"


def triple(what: str, output: str, baseline: str, artifact: str, ratio: str, unit: str = "") -> Figures:
    yield (what, "baseline"), read(output, baseline, unit)
    yield (what, "artifact"), read(output, artifact, unit)
    yield (what, "ratio"), read(output, ratio)


def of_rows(output: str, text: str, pattern: str, name: Callable[[re.Match[str]], str], unit: str = "") -> Figures:
    """`pattern` has the groups baseline, artifact and ratio."""
    found = list(re.finditer(pattern, text, re.MULTILINE))
    assert found, (output, pattern)
    for row in found:
        yield from triple(name(row), output, row["baseline"], row["artifact"], row["ratio"], unit)


ROW = r"\s+(?P<baseline>[\d.,]+)\s+(?P<artifact>[\d.,]+)\s+x(?P<ratio>[\d.]+)"


def console(texts: Texts) -> Figures:
    text = texts.console
    yield from of_rows("console", text, rf"^output tok/s, (\d+) at once{ROW}", lambda row: f"tokens/s {row[1]}")
    for name, what in (("weights", "weights"), ("server memory", "memory")):
        yield from of_rows("console", text, rf"^{name}, MiB{ROW}", lambda _, what=what: what, "MiB")
    yield from of_rows("console", text, rf"^perplexity, held-out{ROW}", lambda _: "perplexity")
    (flips,) = re.findall(r"^top-1 flips +([\d.]+)%", text, re.MULTILINE)
    yield ("flips", "artifact"), read("console", flips, "%")
    (kl,) = re.findall(r"^KL divergence, nats +([\d.]+)", text, re.MULTILINE)
    yield ("kl", "artifact"), read("console", kl)
    for task, baseline, artifact in re.findall(r"^(\w+) \(acc_norm\) +([\d.]+) +([\d.]+)", text, re.MULTILINE):
        yield (task, "baseline"), read("console", baseline)
        yield (task, "artifact"), read("console", artifact)


def written(texts: Texts) -> Figures:
    found = texts.release
    c = found["comparison"]
    for speed in c["speed"]:
        what, rates = f"tokens/s {speed['concurrency']}", speed["tokens_per_second"]
        yield (what, "ratio"), exact("JSON", speed["throughput"]["value"])
        for side, rate in zip(("baseline", "artifact"), rates, strict=True):
            yield (what, side), exact("JSON", rate)
    for side in ("baseline", "artifact"):
        yield ("perplexity", side), exact("JSON", c[f"perplexity_{side}"])
        yield ("weights", side), exact("JSON", found[side]["memory"]["weights_bytes"])
    for what, name in (("perplexity", "perplexity_ratio"), ("weights", "size_ratio"), ("memory", "memory_ratio")):
        yield (what, "ratio"), exact("JSON", c[name]["value"])
    yield ("kl", "artifact"), exact("JSON", c["kl_divergence"]["value"])
    yield ("flips", "artifact"), exact("JSON", c["flip_rate"]["value"])


def page(texts: Texts) -> Figures:
    text = unescape(texts.page)
    tiles = {
        name: (value, change)
        for name, value, change in re.findall(
            r'<dt>([^<]+)</dt><dd class="big">([^<]+)</dd><dd class="change">([^<]+)</dd>', text
        )
    }
    at = texts.highest
    speed = ((f"Output tokens/s, {at} clients", f"tokens/s {at}"),) if texts.undisturbed else ()
    for name, what in (*speed, ("Perplexity", "perplexity")):
        ratio, baseline = tiles[name][1].split(" of ")
        yield from triple(what, "tile", baseline, tiles[name][0], ratio)
    change, baseline = tiles["Weights"][1].split(" from ")
    yield ("weights", "baseline"), read("tile", baseline)
    yield ("weights", "artifact"), read("tile", tiles["Weights"][0])
    percent = read("tile", change.removesuffix(" %"), "%")
    yield ("weights", "ratio"), Shown("tile", 1 + percent.low, 1 + percent.high)
    table = text[text.index("<caption>Speed: artifact over baseline") :]
    table = table[: table.index("</table>")]
    pair = r"(?P<baseline>\S+) → (?P<artifact>[^<\s]+)"
    row = rf'scope="row">(\d+)</th><td>×(?P<ratio>[\d.]+)</td><td>[^<]*</td><td>{pair}</td>'
    yield from of_rows("table", table, row, lambda found: f"tokens/s {found[1]}")


def comment(texts: Texts) -> Figures:
    text = texts.markdown
    cells = rf"\| (?P<baseline>{NUMBER[1:-1]}) \| (?P<artifact>{NUMBER[1:-1]}) \| ×(?P<ratio>[\d.]+) \|"
    yield from of_rows("Markdown", text, rf"^\| Output tokens/s, (\d+) at once {cells}", lambda r: f"tokens/s {r[1]}")
    for name, what in (("Perplexity", "perplexity"), ("Weights", "weights"), ("Memory of the server", "memory")):
        yield from of_rows("Markdown", text, rf"^\| {name} {cells}", lambda _, what=what: what)
    (flips,) = re.findall(r"^\| Top token flipped \|  \|  \| ([\d.]+ %)", text, re.MULTILINE)
    yield ("flips", "artifact"), read("Markdown", flips)


def model_card(texts: Texts) -> Figures:
    text = texts.card
    cells = rf"\| (?P<baseline>{NUMBER[1:-1]}) \| (?P<artifact>{NUMBER[1:-1]}) \| (?P<ratio>[\d.]+)"
    speed = text[text.index("| Concurrency | Output tokens/s, baseline") :]
    yield from of_rows("card", speed, rf"^\| (\d+) {cells} (?:\[[^|]*)?\| [\d.]+ \|", lambda r: f"tokens/s {r[1]}")
    for name, what in (("Weights on disk", "weights"), ("Server memory", "memory")):
        yield from of_rows("card", text, rf"^\| {name} {cells}", lambda _, what=what: what)
    for name, side in (("baseline", "baseline"), ("this model", "artifact")):
        (value,) = re.findall(rf"^\| Perplexity, {name} \| ([\d.]+)", text, re.MULTILINE)
        yield ("perplexity", side), read("card", value)


def side_by_side(texts: Texts) -> Figures:
    text, told, at, name = texts.compared, texts.compared_row, texts.highest, re.escape(texts.name)
    if texts.undisturbed:
        (row,) = re.findall(rf"^{name} .*  ([\d.]+)  +x([\d.]+) (?:\[[^\]]*\] )?of ([\d.]+)$", text, re.MULTILINE)
        yield from triple(f"tokens/s {at}", "compare", row[2], row[0], row[1])
        yield (f"tokens/s {at}", "artifact"), exact("compare, JSON", told["tokens_per_second"])
        yield (f"tokens/s {at}", "baseline"), exact("compare, JSON", told["baseline_tokens_per_second"])
        yield (f"tokens/s {at}", "ratio"), exact("compare, JSON", told["speed_ratio"]["value"])
    else:
        # No speed is compared, so memory is the last column.
        (row,) = re.findall(rf"^{name} .* ([\d.]+) +([\d.]+) +([\d.,]+) +([\d.,]+)$", text, re.MULTILINE)
        for (what, unit), value in zip(
            (("perplexity", ""), ("kl", ""), ("weights", "MiB"), ("memory", "MiB")), row, strict=True
        ):
            yield (what, "artifact"), read("compare", value, unit)
        assert told["tokens_per_second"] is None
    yield ("memory", "artifact"), exact("compare, JSON", told["memory_bytes"])
    yield ("perplexity", "artifact"), exact("compare, JSON", told["perplexity"])


OUTPUTS = (console, written, page, comment, model_card, side_by_side)


def of_all(texts: Texts) -> dict[tuple[str, str], list[Shown]]:
    """Each figure, as each output shows it."""
    shown: dict[tuple[str, str], list[Shown]] = {}
    for output in OUTPUTS:
        for key, figure in output(texts):
            shown.setdefault(key, []).append(figure)
    return shown


def hold_together(texts: Texts) -> int:
    """Assert that a figure that is shown twice is the same, and that a ratio is that of the numbers beside it. Returns
    the number of ratios.
    """
    shown = of_all(texts)
    by_output = {figure.output for figures in shown.values() for figure in figures}
    assert len(by_output) == 8, "each output is read"
    apart = [
        (key, one, two) for key, figures in shown.items() for one in figures for two in figures if not one.meets(two)
    ]
    assert apart == []
    ratios = 0
    for what in {what for what, side in shown if side == "ratio"}:
        sides = ({f.output: f for f in shown.get((what, side), ())} for side in ("baseline", "artifact", "ratio"))
        baseline, artifact, ratio = sides
        for output in baseline.keys() & artifact.keys() & ratio.keys():
            b, a = baseline[output], artifact[output]
            assert ratio[output].meets(Shown(output, a.low / b.high, a.high / b.low)), (what, output)
            ratios += 1
    return ratios
