"""The recommender example: what is read, split and measured, what is stored, and short runs on made ratings."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples import recommendation
from examples.data import ratings, sources
from examples.models import recommender
from examples.recommender import methods, metrics, sizes, splits, tasks

PyTree = Any
SNIPPET = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n196\t242\t3\t881250949\n7\t302\t5\t891717742\n"


pytestmark = pytest.mark.usefixtures("as_users_run_it")


def made_text(users: int = 30, items: int = 40, each: int = 12) -> str:
    """Made ratings of rank one plus biases, as u.data has them. Not real data."""
    rng = np.random.default_rng(0)
    taste, kind = rng.normal(size=users), rng.normal(size=items)
    lines = []
    for user in range(users):
        for time, item in enumerate(rng.choice(items, each, replace=False)):
            rating = int(np.clip(round(3 + 1.5 * taste[user] * kind[item]), 1, 5))
            lines.append(f"{user + 1}\t{item + 1}\t{rating}\t{1000 + time}")
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def made() -> ratings.RatingData:
    return ratings.parse(made_text())


def pairs_of(some: ratings.Ratings) -> set[tuple[int, int]]:
    return set(zip(some.user.tolist(), some.item.tolist(), strict=True))


def test_the_parser_reads_both_files():
    with_header = ratings.parse(SNIPPET)
    without = ratings.parse(SNIPPET.split("\n", 1)[1])
    for data in (with_header, without):
        assert (data.users, data.items) == (2, 2)
        assert data.ratings.user.tolist() == [1, 0] and data.ratings.item.tolist() == [0, 1]
        assert data.ratings.value.tolist() == [3.0, 5.0] and data.ratings.time.tolist() == [881250949, 891717742]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\t2\t3\n", "expected user, item, rating and time"),
        ("1,2,3,4\n", "no table of whole numbers"),
        ("1\t2\t3\t4\n1\t2\t5\t9\n", "rates an item twice"),
    ],
)
def test_the_parser_refuses(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        ratings.parse(text)


def test_a_folder_without_the_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="--data-dir must name"):
        ratings.load(tmp_path)


def test_movielens_is_whole():
    try:
        data = ratings.load()
    except sources.SourceError as error:
        pytest.skip(f"MovieLens-100k is absent: {error}")
    assert (data.users, data.items, len(data.ratings)) == (943, 1_682, 100_000)
    np.testing.assert_allclose(data.ratings.value.mean(), 3.52986, atol=1e-5)
    assert np.bincount(data.ratings.value.astype(int)).tolist() == [0, 6_110, 11_370, 27_145, 34_174, 21_201]


def test_rating_splits_do_not_overlap(made: ratings.RatingData):
    test, validation = (splits.split_ratings(made, part) for part in ("test", "validation"))
    held_out = pairs_of(test.held_out), pairs_of(validation.held_out)
    assert not held_out[0] & pairs_of(test.train) and not held_out[1] & pairs_of(validation.train)
    assert not held_out[0] & (held_out[1] | pairs_of(validation.train))  # the test part is not seen on the way
    assert held_out[0] | pairs_of(test.train) == pairs_of(made.ratings)


def test_ranking_splits_leave_the_last_out(made: ratings.RatingData):
    test, validation = (splits.split_rankings(made, part, negatives=20) for part in ("test", "validation"))
    times = {(u, i): t for u, i, t in zip(made.ratings.user, made.ratings.item, made.ratings.time, strict=True)}
    for split, others in ((test, [validation]), (validation, [])):
        positives = set(zip(split.user.tolist(), split.candidates[:, 0].tolist(), strict=True))
        assert len(positives) == made.users and not positives & pairs_of(split.train)
        for user, item in positives:
            earlier = [times[pair] for pair in pairs_of(split.train) if pair[0] == user]
            assert times[user, item] > max(earlier)
        negatives = {(u, i) for u, row in zip(split.user, split.candidates[:, 1:], strict=True) for i in row.tolist()}
        assert not negatives & pairs_of(made.ratings)
        assert all(len(set(row.tolist())) == 21 for row in split.candidates)
        for other in others:  # what the test asks for was neither trained on nor asked for on the way
            assert not positives & pairs_of(other.train)
            assert not positives & set(zip(other.user.tolist(), other.candidates[:, 0].tolist(), strict=True))
    again = splits.split_rankings(made, "test", negatives=20)
    np.testing.assert_array_equal(again.candidates, test.candidates)


def test_the_sampler_does_not_know_the_held_out_items(made: ratings.RatingData):
    split = splits.split_rankings(made, "test", negatives=5)
    seen = splits.touched(split.train, made.users, made.items)
    users = np.repeat(np.arange(made.users), 400)
    drawn = tasks.draw_unseen(np.random.default_rng(0), users, seen)
    assert not seen[users, drawn].any()
    found = set(zip(users.tolist(), drawn.tolist(), strict=True))
    assert set(zip(split.user.tolist(), split.candidates[:, 0].tolist(), strict=True)) <= found


def test_metrics_by_hand():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(50, 100))
    rank = metrics.ranks(scores)
    np.testing.assert_array_equal(rank, [np.argsort(-row).tolist().index(0) for row in scores])
    assert metrics.hit_rate(rank) == np.mean([0 in np.argsort(-row)[:10] for row in scores])
    gains = [np.sum((np.argsort(-row)[:10] == 0) / np.log2(np.arange(2, 12))) for row in scores]
    assert metrics.ndcg(rank) == pytest.approx(np.mean(gains))
    assert metrics.ranks(np.zeros((1, 100))).tolist() == [99]
    assert metrics.ranks(np.array([[np.nan, 0.0, 1.0]])).tolist() == [2]
    predicted, actual = rng.uniform(1, 5, 30), rng.uniform(1, 5, 30)
    assert metrics.rmse(predicted, actual) == pytest.approx(np.linalg.norm(predicted - actual) / 30**0.5)


def test_biases_solve_their_equations(made: ratings.RatingData):
    """Ridge regression on indicators, by one dense solve."""
    train = made.ratings
    biases = metrics.fit_biases(train, made.users, made.items, 5.0, 2.0)
    rows = np.concatenate([np.eye(made.users)[train.user], np.eye(made.items)[train.item]], axis=1)
    ridge = np.diag(np.repeat([5.0, 2.0], [made.users, made.items]))
    solved = np.linalg.solve(rows.T @ rows + ridge, rows.T @ (train.value - train.value.mean()))
    np.testing.assert_allclose(np.concatenate([biases.user, biases.item]), solved, atol=1e-3)


def test_the_batches_of_a_pass_hold_every_rating_once(made: ratings.RatingData):
    recipe = tasks.Recipe(width=4, steps=9, batch_size=32, learning_rate=0.1, strength=0.1)
    task = tasks.rating_task(made, "test", recipe)
    steps = len(task.train) // 32
    seen = [pair for step in range(steps) for pair in zip(*task.batches(step)[0].values(), strict=True)]
    assert len(seen) == len(set(seen)) == steps * 32
    np.testing.assert_array_equal(task.batches(3)[1], task.batches(3)[1])


def test_a_pruned_row_falls_back_to_the_biases():
    params = recommender.init_factorisation(jax.random.key(0), 5, 6, 4, 3.5)
    params["item"]["bias"] = jnp.arange(6.0)
    params["user"]["factors"] = params["user"]["factors"].at[2].set(0.0)
    pairs = {"user": np.full(6, 2, np.int32), "item": np.arange(6, dtype=np.int32)}
    np.testing.assert_allclose(recommender.factorisation(params, pairs)["rating"], 3.5 + np.arange(6.0))


def test_dimensions_and_rows_are_cut_out():
    params = recommender.init_factorisation(jax.random.key(0), 9, 6, 4, 3.5)
    for side in ("user", "item"):
        params[side]["factors"] = params[side]["factors"].at[:, 1].set(0.0)
    params["user"]["factors"] = params["user"]["factors"].at[np.array([0, 4])].set(0.0)
    pairs = {"user": np.repeat(np.arange(9), 6), "item": np.tile(np.arange(6), 9)}
    narrow = sizes.shrink_dimensions(recommender.factorisation, params, pairs)
    assert narrow["user"]["factors"].shape == (9, 3) and narrow["item"]["factors"].shape == (6, 3)
    small = sizes.drop_rows(narrow)
    assert small["user"]["factors"].shape == (7, 3) and "position" not in small["item"]
    before, after = (recommender.factorisation(tree, pairs)["rating"] for tree in (params, small))
    np.testing.assert_allclose(after, before, rtol=1e-6)
    found = sizes.sizes(recommender.factorisation, params, pairs, pairs)
    assert found["bytes_dense"] == 4 * (1 + 9 + 6 + 4 * (9 + 6))
    assert found["bytes_packed"] == 4 * (1 + 9 + 6 + 3 * (7 + 6)) + -(-9 * 4 // 8) + -(-6 * 4 // 8)
    assert found["bytes_shrunk"] == 4 * (1 + 9 + 6 + 3 * (7 + 6)) + 2  # two bytes hold a bit for each of nine users
    assert found["shrunk_difference"] < 1e-5


def test_the_usage_score_counts_training_ratings(made: ratings.RatingData):
    task = tasks.rating_task(made, "test", tasks.Recipe(3, 5, 32, 0.1, strength=0.1))
    params = task.init(jax.random.key(0))
    scores = methods.usage_score(task)(params)
    counts = np.bincount(task.train.item, minlength=made.items)
    expected = np.square(params["item"]["factors"]).sum(1) * counts
    np.testing.assert_allclose(np.square(scores["item"]["factors"]).sum(1), expected, rtol=1e-5)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ratings") / "u.data"
    path.write_text(made_text(items=130))
    return path


@pytest.mark.parametrize("structure", ["element", "row", "dimension"])
def test_a_few_steps(structure: str, file: Path, tmp_path: Path):
    argv = ["--data-dir", str(file), "--output-dir", str(tmp_path), "--model", "factorisation", "--width", "8"]
    argv += ["--structure", structure, "--sparsity", "0.75", "--seed", "0", "--steps", "4", "--resume"]
    (report,) = recommendation.main(argv).values()
    rows = {row["method"]: row for row in report.rows()}
    assert set(rows) == {"dense", *methods.methods_of(structure, *task_and_params(file))}
    data = ratings.load(file)
    users, items = data.users, data.items
    both = users + items
    dense = 4 * (1 + 9 * both)
    for name, row in rows.items():
        assert 0 < row["mean"] < 3
        if name == "dense":
            assert row["values"]["bytes_shrunk"] == dense
        elif structure == "dimension":
            assert row["values"]["bytes_shrunk"] == 4 * (1 + 3 * both)
        elif structure == "row":
            bits = -(-users // 8) + -(-items // 8)
            assert row["values"]["bytes_shrunk"] == 4 * (1 + both + 8 * (round(users / 4) + round(items / 4))) + bits
        else:
            assert row["values"]["bytes_packed"] == 4 * (1 + both + 2 * both) + both
    assert any("global mean" in note for note in report.notes)
    assert json.loads((tmp_path / f"factorisation-{structure}" / "report.json").read_text())["better"] == "lower"

    if structure != "row":
        return
    # A second run goes on from the first one: nothing is trained again.
    saved = list((tmp_path / "trials").rglob("*.json"))
    changed = {path: path.stat().st_mtime_ns for path in saved if path.name != "settings.json"}
    again = recommendation.main(argv)[f"factorisation-{structure}"]
    assert again.rows() == report.rows()
    assert {path: path.stat().st_mtime_ns for path in changed} == changed


def task_and_params(file: Path) -> tuple[tasks.Task, PyTree]:
    task = tasks.rating_task(ratings.load(file), "test", tasks.Recipe(8, 8, 32, 0.1, strength=0.1))
    return task, jax.eval_shape(task.init, jax.random.key(0))


def test_a_few_steps_of_rankings(file: Path, tmp_path: Path):
    argv = ["--data-dir", str(file), "--output-dir", str(tmp_path), "--model", "neural", "--width", "8"]
    argv += ["--structure", "dimension", "--sparsity", "0.75", "--seed", "0", "--steps", "4"]
    report = recommendation.main(argv)["neural-dimension"]
    assert [row["method"] for row in report.rows()] == ["dense", "random", "norm", "narrow"]
    assert all(0 <= row["mean"] <= row["values"]["hit_rate_10"] <= 1 for row in report.rows())
    sizes_of = {row["method"]: row["values"]["bytes_shrunk"] for row in report.rows()}
    data = ratings.load(file)
    hidden = 32 + 32 * 16 + 16 + 16 + data.items
    assert sizes_of["dense"] == 4 * (hidden + 8 * (data.users + data.items) + 8 + 16 * 32)
    assert sizes_of["norm"] == 4 * (hidden + 2 * (data.users + data.items) + 2 + 4 * 32)
    assert not (tmp_path / "trials").exists()


@pytest.mark.parametrize("argv", [["--sparsity", "1.5"], ["--steps", "0"], ["--model", "unknown"]])
def test_the_command_line_refuses(argv: list[str]):
    with pytest.raises(SystemExit):
        recommendation.parse(argv)
