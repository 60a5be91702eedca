"""Live enrichment: a model whose features are the means that a running service has now.

    python docs/examples/enrich.py --data insteval.ndjson

Reads like a notebook, from top to bottom. It starts a service with a store of its own, posts the earlier part of the scores,
and puts a transformer of scikit-learn in front of a model, which asks the service for the means of each batch of UUIDs. Then it
posts the later part, and takes the mean over that window from two exports.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy
import polars
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.linear_model import LinearRegression
from sklearn.metrics import root_mean_squared_error
from sklearn.pipeline import Pipeline, make_pipeline

from scoremean import Score
from scoremean.client import Client

SCOREMEAN = [sys.executable, "-m", "scoremean"]


class MeanFeatures(TransformerMixin, BaseEstimator):
    """Turns UUIDs into features: the smoothed mean and the logarithm of the count, as a running service has them now.

    Args:
        url: where the service listens.
        prior: what is expected of a UUID that nothing is known of.
        weight: how many scores at the prior each UUID is given on top of its own.
    """

    def __init__(self, url: str, prior: float = 2.5, weight: float = 5):
        self.url = url
        self.prior = prior
        self.weight = weight

    def fit(self, *_: object) -> MeanFeatures:
        """Return itself: there is nothing to learn, since the service knows."""
        return self

    def transform(self, uuids: Sequence[str]) -> numpy.ndarray:
        """Return a row for each UUID; one that the service does not know has the prior and no scores."""
        tallies = numpy.array(asyncio.run(self._tallies(uuids)), dtype=float).reshape(-1, 2)
        sums, counts = tallies.T
        return numpy.column_stack([(sums + self.weight * self.prior) / (counts + self.weight), numpy.log1p(counts)])

    async def _tallies(self, uuids: Sequence[str]) -> list[tuple[int, int]]:
        async with Client(self.url) as client:
            means = await client.get_many(uuids)  # POST /means/query, 10,000 UUIDs a request
        return [(mean.sum, mean.count) if mean else (0, 0) for mean in means]


@contextmanager
def service(store: Path) -> Iterator[str]:
    """Give the URL of a service with this store. Yours runs already: it is the URL that you would write here."""
    command = [*SCOREMEAN, "serve", "--store", store, "--port", "0", "--log-level", "warning"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


async def post(url: str, scores: Sequence[Score]) -> None:
    """Post the scores, in batches that are sent again until they are answered; all are on disk when it returns."""
    async with Client(url) as client:
        async for _ in client.post_many(scores):
            pass


def export(store: Path, output: Path) -> polars.DataFrame:
    """Return every tally as of one moment, while the service goes on."""
    subprocess.run([*SCOREMEAN, "export", "--store", store, "--format", "csv", "--output", output], check=True)
    return polars.read_csv(output, schema_overrides={"UUID": polars.String})


def window(start: polars.DataFrame, end: polars.DataFrame) -> polars.DataFrame:
    """Return the tallies and means of the scores that came between two exports: tallies subtract."""
    return (
        end.join(start, on="UUID", how="left", suffix="_before")
        .with_columns(polars.col("sum_before", "count_before").fill_null(0))
        .with_columns(
            sum=polars.col("sum") - polars.col("sum_before"),
            count=polars.col("count") - polars.col("count_before"),
        )
        .filter(polars.col("count") > 0)
        .with_columns(mean=polars.col("sum") / polars.col("count"))
    )


def trained(url: str, scores: Sequence[Score], prior: float) -> Pipeline:
    """Return a model that takes UUIDs. The service must not have these scores yet, or it would tell the answers."""
    pipeline = make_pipeline(MeanFeatures(url, prior), LinearRegression())
    return pipeline.fit([score.uuid for score in scores], [score.score for score in scores])


def run(scores: Sequence[Score], url: str, work: Path) -> None:
    """Print what the model says, and what happened in the window."""
    first, second = int(len(scores) * 0.6), int(len(scores) * 0.8)
    past, training, held_out = scores[:first], scores[first:second], scores[second:]
    asyncio.run(post(url, past))
    start = export(work / "store", work / "start.csv")

    model = trained(url, training, sum(score.score for score in past) / len(past))
    guesses = model.predict([score.uuid for score in held_out])
    off = root_mean_squared_error([score.score for score in held_out], guesses)
    print(f"error on {len(held_out):,} scores       {off:.3f}")
    print(f"somebody new                 {model.predict(['nobody'])[0]:.3f}")

    # The features are live: after the next scores the same model, not trained again, says something else of the same UUID.
    uuid = "lecturer-590"
    print(f"{uuid}, before         {model.predict([uuid])[0]:.3f}")
    asyncio.run(post(url, [*training, *held_out]))
    print(f"{uuid}, after          {model.predict([uuid])[0]:.3f}")

    changes = window(start, export(work / "store", work / "end.csv"))
    row = changes.row(by_predicate=polars.col("UUID") == uuid, named=True)
    print(f"scores in the window         {changes['count'].sum():,}")
    print(f"{uuid} in the window   {row['sum']} / {row['count']} = {row['mean']:.3f}")


def main() -> None:
    """Run it with a service that is started here and ended."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default="insteval.ndjson", help="scores in NDJSON [insteval.ndjson]")
    lines = parser.parse_args().data.read_text(encoding="utf-8").splitlines()
    scores = [Score(line["UUID"], line["score"]) for line in map(json.loads, lines)]
    with tempfile.TemporaryDirectory() as work, service(Path(work, "store")) as url:
        run(scores, url, Path(work))


if __name__ == "__main__":
    main()
