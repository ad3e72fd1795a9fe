"""The table: a row for each fit, and how many posteriors meet each target."""

import csv
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.posteriors.contestants import Fitted
from benchmarks.posteriors.measures import Columns, errors


class Row(NamedTuple):
    """A fit's figures."""

    posterior: str
    guide: str
    seed: int
    worst_mean: float
    mean_mean: float
    worst_sd: float
    sd_floor: float
    wasserstein: float
    k_hat: float
    ess: float
    elbo: float
    elbo_se: float
    seconds: float
    status: str


class Target(NamedTuple):
    """How many of the eighteen posteriors are to stay below a limit, with every seed."""

    what: str
    figure: Callable[[Row], float]
    limit: float
    least: int


_EQUAL = 0.999  # the effective share of draws whose weights are as good as equal


def _k_hat(row: Row) -> float:
    """Return k-hat; zero where equal weights leave it undefined."""
    return 0.0 if np.isnan(row.k_hat) and row.ess > _EQUAL else row.k_hat


TARGETS = [
    Target("mean error <= 0.3", lambda row: row.worst_mean, 0.3, 18),
    Target("mean error <= 0.1", lambda row: row.worst_mean, 0.1, 17),
    Target("mean error <= 0.05", lambda row: row.worst_mean, 0.05, 14),
    Target("log sd ratio <= 0.1", lambda row: row.worst_sd, 0.1, 17),
    Target("log sd ratio <= 0.05", lambda row: row.worst_sd, 0.05, 13),
    Target("Wasserstein over floor <= 1.5", lambda row: row.wasserstein, 1.5, 14),
    Target("k-hat < 0.7", _k_hat, 0.7, 17),
]
ALL, MEDIAN_SECONDS, WORST_SECONDS = 18, 15.0, 60.0

HEADER = (
    *("posterior", "guide", "seed", "mean error, largest", "mean", "log sd ratio", "of halves"),
    *("W1 / floor", "k-hat", "ESS %", "ELBO", "s", "status"),
)


def row_of(run: tuple[str, str, int], fit: Fitted, draws: Columns, reference: Columns) -> Row:
    """Compare a fit's draws, by the columns of the reference draws, with these.

    The run is the posterior's name, the guide's, and the seed.
    """
    distances = errors(draws, reference) if draws else [np.inf] * 5
    return Row(*run, *distances, *fit[1:])


def write(rows: Iterable[Row], markdown: Path | None, table: Path | None) -> int:
    """Print rows as they come, then the targets; return 1 where ours misses one."""
    lines, kept = [], []

    def put(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    put(_line(HEADER))
    put(_line(["---"] * len(HEADER)))
    for row in rows:
        kept.append(row)
        put(_line(_cells(row)))
    missed = 0
    for guide in dict.fromkeys(row.guide for row in kept):
        ours = [row for row in kept if row.guide == guide]
        missed |= _targets(guide, ours, put) and guide == "ours"
    if markdown:
        markdown.write_text("\n".join(lines) + "\n")
    if table:
        with table.open("w", newline="") as file:
            csv.writer(file).writerows([Row._fields, *kept])
    return missed


def _line(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _cells(row: Row) -> list[str]:
    return [
        row.posterior,
        row.guide,
        str(row.seed),
        *(f"{value:.3f}" for value in row[3:7]),
        *(f"{value:.2f}" for value in row[7:9]),
        f"{100 * row.ess:.0f}",
        f"{row.elbo:.3f} ± {row.elbo_se:.3f}",
        f"{row.seconds:.1f}",
        row.status,
    ]


def _targets(guide: str, rows: list[Row], put: Callable[[str], None]) -> int:
    """Print how many posteriors meet each target with every seed; return 1 where one is missed."""
    names = list(dict.fromkeys(row.posterior for row in rows))
    put(f"\n{guide}, of {len(names)} posteriors, with every seed:\n")
    put(_line(["figure", "met by", "wanted", "missed by"]))
    put(_line(["---"] * 4))
    missed = False
    for target in TARGETS:
        bad = {row.posterior for row in rows if not target.figure(row) <= target.limit}
        met = len(names) - len(bad)
        missed |= ALL - len(bad) < target.least
        put(_line([target.what, met, target.least, ", ".join(sorted(bad))]))
    bad = {row.posterior for row in rows if not np.isfinite(row.worst_mean)}
    put(_line(["no crash and no NaN", len(names) - len(bad), ALL, ", ".join(sorted(bad))]))
    seconds = [row.seconds for row in rows]
    middle, most = statistics.median(seconds), max(seconds)
    put(_line(["seconds, median", f"{middle:.1f}", MEDIAN_SECONDS, ""]))
    put(_line(["seconds, worst", f"{most:.1f}", WORST_SECONDS, ""]))
    return int(missed or bool(bad) or middle > MEDIAN_SECONDS or not most <= WORST_SECONDS)
