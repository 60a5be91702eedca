"""Features for a model from exported means: what is a lecturer's next score?

    python docs/examples/features.py --data insteval.ndjson

Reads like a notebook, from top to bottom. It imports scores into a store, exports the tallies, and makes features of them with
pandas and again with polars. scikit-learn learns from them, and the errors are printed beside those of simpler guesses.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
import pandas
import polars
from sklearn.linear_model import LinearRegression
from sklearn.metrics import root_mean_squared_error

# How many scores at the prior a lecturer is given on top of their own. A lecturer with one score is then near the prior, and
# one with hundreds is where their scores are.
WEIGHT = 5


def scoremean(*arguments: object) -> None:
    """Run `scoremean` with these arguments, as in a shell."""
    subprocess.run([sys.executable, "-m", "scoremean", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def tallies_of(scores: pandas.DataFrame, folder: Path) -> Path:
    """Return a folder with the exports of a store of these scores, `means.parquet` and `means.csv`."""
    folder.mkdir()
    scores.to_json(folder / "scores.ndjson", orient="records", lines=True)
    scoremean("import", "--store", folder / "store", folder / "scores.ndjson")
    for kind in ("parquet", "csv"):
        scoremean("export", "--store", folder / "store", "--format", kind, "--output", folder / f"means.{kind}")
    return folder


def with_pandas(scores: pandas.DataFrame, exports: Path) -> pandas.DataFrame:
    """Return the scores, each with the features of its UUID."""
    means = pandas.read_parquet(exports / "means.parquet")
    prior = means["sum"].sum() / means["count"].sum()
    table = scores.merge(means, on="UUID", how="left")
    table[["sum", "count"]] = table[["sum", "count"]].fillna(0)  # a UUID without a score has the tally (0, 0)
    table["smoothed"] = (table["sum"] + WEIGHT * prior) / (table["count"] + WEIGHT)
    table["mean"] = table["mean"].fillna(prior)
    table["scores"] = numpy.log1p(table["count"])
    return table


def with_polars(scores: pandas.DataFrame, exports: Path) -> polars.DataFrame:
    """Return the same as with_pandas, from the CSV."""
    means = polars.read_csv(exports / "means.csv", schema_overrides={"UUID": polars.String})
    prior = means["sum"].sum() / means["count"].sum()
    return (
        polars.DataFrame(scores.to_dict("list"))
        .join(means, on="UUID", how="left", maintain_order="left")
        .with_columns(polars.col("sum", "count").fill_null(0), polars.col("mean").fill_null(prior))
        .with_columns(
            smoothed=(polars.col("sum") + WEIGHT * prior) / (polars.col("count") + WEIGHT),
            scores=polars.col("count").log1p(),
        )
    )


def error(truth: pandas.Series, guess: object) -> float:
    """Return how far a guess is off, as the root of the mean square."""
    return root_mean_squared_error(truth, numpy.broadcast_to(guess, truth.shape))


def learned(train: pandas.DataFrame, test: pandas.DataFrame) -> numpy.ndarray:
    """Return what a model that learned from the one part says of the other."""
    columns = ["smoothed", "scores"]
    return LinearRegression().fit(train[columns], train["score"]).predict(test[columns])


def report(scores: pandas.DataFrame, work: Path) -> dict[str, float]:
    """Return the error of each guess on scores that nothing was learned from."""
    # The scores in three parts, by their order. Tallies come from the first alone: they are what is known when the model is
    # trained on the second, and when it is judged on the third.
    first, second = int(len(scores) * 0.6), int(len(scores) * 0.8)
    past, training, held_out = scores[:first], scores[first:second], scores[second:]
    exports = tallies_of(past, work / "past")
    test = with_pandas(held_out, exports)
    assert numpy.allclose(test["smoothed"], with_polars(held_out, exports)["smoothed"]), "pandas and polars disagree"

    # The mistake to avoid: tallies of all scores hold the scores that are to be guessed. The error looks smaller, and will
    # not be so on any score that is yet to come.
    leaky = tallies_of(scores, work / "all")

    return {
        "the mean of all scores": error(test["score"], past["score"].mean()),
        "the mean of the UUID": error(test["score"], test["mean"]),
        "its smoothed mean": error(test["score"], test["smoothed"]),
        "linear regression": error(test["score"], learned(with_pandas(training, exports), test)),
        "with leakage (wrong)": error(test["score"], learned(with_pandas(training, leaky), with_pandas(held_out, leaky))),
    }


def main() -> None:
    """Print the errors as a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default="insteval.ndjson", help="scores in NDJSON [insteval.ndjson]")
    lines = parser.parse_args().data.read_text(encoding="utf-8").splitlines()
    scores = pandas.DataFrame([json.loads(line) for line in lines])
    with tempfile.TemporaryDirectory() as work:
        for guess, off in report(scores, Path(work)).items():
            print(f"{guess:24}{off:.3f}")


if __name__ == "__main__":
    main()
