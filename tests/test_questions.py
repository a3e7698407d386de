"""What the open questions are measured with: pushes, alarms, ways and their ratios, tables, episodes by heart."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.gac.config import cpu
from algorithms.gac.policy import GACPolicy
from algorithms.interface import PlanRequest
from benchmarks.ablations import run_all
from benchmarks.changed_wall import changed_wall, make_changed_maze
from benchmarks.cognitive_map import Remembering, arrived, ends, probed
from benchmarks.gac import TEST
from benchmarks.markdown import filled, over_seeds, pivoted, table
from benchmarks.plan_quality import path_ratios, planner_ratios
from benchmarks.promises import target_walk
from benchmarks.pushes import FAR, ElboTrigger, PushedMaze, WatchedPolicy, alarms, push_steps
from benchmarks.questions import ASKED, HEADLINES, PAGE, PRINTED, TRAINING, asked, headline
from cluster.diagnosis import packed
from replay.stored_episode import StoredEpisode
from rollout_workers.actor import seeded_streams
from rollout_workers.envs import make_batch_env
from rollout_workers.evaluator import plan_streams
from rollout_workers.maze import maze_of

UMAZE = "FixedGoal/PointMaze_UMaze-v3"
MEDIUM = "FixedGoal/PointMaze_Medium-v3"
SEED = 30_000


def walked(env: object, seeds: list[int], steps: int) -> np.ndarray:
    """Observations (steps + 1, E, O) under one fixed action."""
    obs = [env.reset(seeds)]  # type: ignore[attr-defined]
    action_EA = np.full((len(seeds), 2), 0.3, np.float32)
    obs += [env.step(action_EA).obs_EO for _ in range(steps)]  # type: ignore[attr-defined]
    return np.stack(obs)


def test_a_push_moves_one_ball_once_far_and_to_rest_and_nothing_before_it() -> None:
    seeds = [SEED + i for i in range(4)]
    pushed, calm = PushedMaze(UMAZE, 4, SEED), make_batch_env(UMAZE, 4, SEED)
    try:
        shaken_TEO, quiet_TEO = walked(pushed, seeds, 151), walked(calm, seeds, 151)
    finally:
        pushed.close()
        calm.close()
    centres_K2 = maze_of(UMAZE).centre_K2  # type: ignore[union-attr]
    for e, step in enumerate(pushed.push_E):
        assert 75 <= step < 150
        np.testing.assert_array_equal(shaken_TEO[:step, e], quiet_TEO[:step, e])
        place_O = shaken_TEO[step, e]
        assert np.linalg.norm(place_O[:2] - quiet_TEO[step, e, :2]) > FAR and not place_O[2:].any()
        assert np.linalg.norm(centres_K2 - place_O[:2], axis=1).min() < 1e-6
        moved_T = np.linalg.norm(np.diff(shaken_TEO[:, e, :2], axis=0), axis=1)
        assert (np.delete(moved_T, step - 1) < 0.2).all()  # the physics goes on from there


def test_an_episode_is_pushed_the_same_whatever_runs_beside_it() -> None:
    many, one = PushedMaze(UMAZE, 3, SEED), PushedMaze(UMAZE, 1, SEED + 2)
    try:
        np.testing.assert_array_equal(many.push_E[2:], one.push_E)
        np.testing.assert_array_equal(
            walked(many, [SEED, SEED + 1, SEED + 2], 151)[:, 2], walked(one, [SEED + 2], 151)[:, 0]
        )
    finally:
        many.close()
        one.close()
    np.testing.assert_array_equal(push_steps(SEED, 3, 300), push_steps(SEED, 5, 300)[:3])


def picture(env_id: str) -> str:
    """The maze, its goal G, and the cell x that changes."""
    maze = maze_of(env_id)
    assert maze is not None
    place, _ = changed_wall(maze)
    return "/".join(
        "".join(
            "x" if (r, c) == place else "G" if (r, c) == maze.goal_cell else ".#"[cell] for c, cell in enumerate(row)
        )
        for r, row in enumerate(maze.wall_RC.astype(int))
    )


def test_the_wall_that_changes_leaves_a_way_and_is_one_that_matters() -> None:
    assert picture(MEDIUM) == "########/#..##..#/#..#...#/##.x.###/#..#...#/#.#..#.#/#...#.G#/########"
    assert picture(UMAZE) == "#####/#G..#/#x#.#/#...#/#####"  # one corridor: it is opened
    assert [changed_wall(maze_of(name))[1] for name in (MEDIUM, UMAZE)] == [True, False]  # type: ignore[arg-type]


def test_a_ball_meets_the_wall_that_was_closed_and_passes_the_one_that_was_opened() -> None:
    left_EA, down_EA = np.array([[-1.0, 0.0]], np.float32), np.array([[0.0, -1.0]], np.float32)
    for env_id, cell, action_EA, shut in ((MEDIUM, (3, 4), left_EA, True), (UMAZE, (1, 1), down_EA, False)):
        for made, stopped in ((make_changed_maze, shut), (make_batch_env, not shut)):
            env, maze = made(env_id, 1, SEED), maze_of(env_id)
            assert maze is not None
            centre_2 = maze.centre_K2[maze.index_of(cell)]
            try:
                env.reset([SEED])
                state = env.state()
                state["physics"][0, 1:5] = [*centre_2, 0.0, 0.0]
                env.load_state(state)
                places = np.stack([env.step(action_EA).obs_EO[0, :2] for _ in range(40)])
            finally:
                env.close()
            assert bool(np.linalg.norm(places - centre_2, axis=1).max() < 0.5) == stopped


def test_the_fall_of_the_elbo_is_summed_from_each_plan_and_acted_on_where_calm_episodes_never_fell_so_far() -> None:
    limit_S = np.array([0.0] + [5.0 * s for s in range(1, 40)])
    trigger = ElboTrigger(dataclasses.replace(cpu(), replan="prediction-error"), 2, 4, limit_S)
    seen, off_EO = [], np.array([[1.0], [2.0]], np.float32) * np.ones((1, 4), np.float32)
    for step in range(25):
        now = trigger.fired(off_EO)
        seen += [(step, int(env)) for env in now]
        trigger.begin(now)
        trigger.step(np.zeros((2, 4), np.float32))
    # Half the squared errors are 2 and 8 nats a step: below and above the calm episodes' 5; no plan is judged before its tenth step.
    assert seen == [(10, 1), (20, 1)] and trigger.fall_E[0] == pytest.approx(2.0 * 24)


P = TypeVar("P", bound=GACPolicy)


def begun(kind: type[P], ready: Callable[[P], None] = lambda policy: None, **planning: Any) -> P:
    """An untrained policy whose three episodes have begun; ``ready`` is called before they do."""
    config = dataclasses.replace(cpu(), infer_steps=2, infer_draws=1, **planning)
    policy = kind(config, 4, 2)
    policy.aim = PlanRequest(mode="kl")
    policy.reset(3)
    ready(policy)
    policy.begin(np.arange(3), np.eye(3, 4, dtype=np.float32), seeded_streams(plan_streams([1, 2, 3])))
    return policy


def test_a_watched_policy_tells_when_it_planned_again_and_an_oracle_does_so_at_the_push() -> None:
    scheduled = begun(WatchedPolicy, replan="scheduled", replan_every=4)
    oracle = begun(WatchedPolicy, replan="scheduled", replan_every=10**6)
    oracle.oracle_E = np.array([3, -1, 5])
    for _ in range(9):
        for made in (scheduled, oracle):
            made.act(np.zeros((3, 4), np.float32), np.zeros(3, np.float32))
    assert scheduled.replans == [(step, env) for step in (4, 8) for env in range(3)]
    assert oracle.replans == [(3, 0), (5, 2)]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 99), st.integers(0, 4)), max_size=30),
    st.lists(st.integers(-1, 99), min_size=5, max_size=5),
)
def test_alarms_are_counted_as_a_loop_over_them_does(replans: list[tuple[int, int]], pushes: list[int]) -> None:
    found = alarms(sorted(replans), np.array(pushes), 100, 10)
    answers = {
        e: min(s - pushes[e] for s in _answers(replans, e, pushes[e]))
        for e in range(5)
        if _answers(replans, e, pushes[e])
    }
    pushed = sum(push >= 0 for push in pushes)
    assert found.false == pytest.approx(
        1e3 * sum(step not in _answers(replans, env, pushes[env]) for step, env in replans) / 500
    )
    assert np.isnan(found.found) if not pushed else found.found == pytest.approx(len(answers) / pushed)
    assert np.isnan(found.delay) if not answers else found.delay == np.median(list(answers.values()))


def _answers(replans: list[tuple[int, int]], env: int, push: int) -> list[int]:
    return [step for step, other in replans if other == env and push >= 0 and 0 <= step - push <= 10]


def test_the_noise_free_planner_walks_little_more_than_the_shortest_way_and_always_arrives() -> None:
    ratio_E, shortest_E = planner_ratios(UMAZE, maze_of(UMAZE), 0.0)  # type: ignore[arg-type]
    assert 60 < len(ratio_E) <= TEST[1] and np.isfinite(ratio_E).all()
    assert (ratio_E > 0.98).all() and 1.0 < np.median(ratio_E) < 1.5 and (shortest_E > 0.5).all()


def test_walks_to_one_target_each_end_there_and_the_planner_says_which_it_was() -> None:
    maze = maze_of(UMAZE)
    assert maze is not None
    planner = Remembering(maze, noise=0.5, dwell=10_000)
    episodes = run_all(UMAZE, planner, list(range(12)))
    target_K = np.array(planner.targets)
    assert len(set(planner.targets)) > 3 and arrived(maze, episodes, target_K).all()
    np.testing.assert_array_equal(maze.cells_of(ends(episodes)), target_K)
    assert not arrived(maze, episodes, (target_K + 1) % len(maze.free_K2)).any()


def test_a_probe_reads_what_is_linear_in_a_plan_and_nothing_from_noise() -> None:
    rng = np.random.default_rng(0)
    x_Bm, x_Km = rng.normal(3.0, 2.0, (500, 6)), rng.normal(3.0, 2.0, (200, 6))
    weight_m2, noise = rng.normal(size=(6, 2)), rng.normal(size=(200, 2))
    assert probed(x_Bm, x_Bm @ weight_m2 + 7.0, x_Km, x_Km @ weight_m2 + 7.0) > 0.999
    assert abs(probed(x_Bm, rng.normal(size=(500, 2)), x_Km, noise)) < 0.1


def test_ratios_leave_out_starts_beside_the_goal_and_are_not_defined_for_who_never_arrived() -> None:
    ratio_E, shortest_E = path_ratios(np.array([3.0, 9.0, 1.0]), np.array([2.0, 3.0, 0.1]), np.array([40, -1, 5]))
    np.testing.assert_array_equal(ratio_E, [1.5, np.nan])
    np.testing.assert_array_equal(shortest_E, [2.0, 3.0])


def test_a_moving_target_is_asked_again_above_what_was_achieved_and_its_step_shrinks_once_missed() -> None:
    rows = [line.strip("| ").split(" | ") for line in target_walk([40.0, *[60.0] * 6], 8.0).splitlines()[2:]]
    asked, achieved, gain = ([float(row[at]) for row in rows] for at in (2, 3, 4))
    assert all(later > earlier for later, earlier in zip(asked[1:], achieved))
    assert max(gain) > 1.0 and gain[-1] < max(gain)


def test_packed_episodes_are_those_of_the_dataset_one_after_the_other() -> None:
    rng = np.random.default_rng(0)
    made = [
        StoredEpisode(0, *(rng.normal(size=(t, d)).astype(np.float32) for d in (4, 2)), rng.random(t), False, True, np.zeros(4))
        for t in (3, 5)
    ]  # fmt: skip
    batch = packed(made)
    assert batch.offset.tolist() == [0, 3, 8] and batch.rows_NF.shape == (8, 7)
    np.testing.assert_allclose(batch.return_B, [episode.reward_T.sum() for episode in made], rtol=1e-6)
    np.testing.assert_array_equal(batch.rows_NF[3:, :4], made[1].obs_TO)


def test_a_page_takes_its_tables_between_their_marks_and_keeps_the_rest() -> None:
    page = "# A\n\n<!-- table b -->\nold\n<!-- end -->\n\nwords\n"
    once = filled(page, {"b": "new"})
    assert "old" not in once and "words" in once and filled(once, {"b": "new"}) == once
    with pytest.raises(KeyError, match="the table has no place"):
        filled(page, {"c": "new"})
    with pytest.raises(KeyError, match="would be lost"):
        filled("<!-- table b -->", {"b": "new"})
    assert table(["x"], [["1"]]).splitlines() == ["| x |", "| --- |", "| 1 |"]
    assert (
        over_seeds([1.0, None, 3.0]) == "2.0 (1.0 / - / 3.0)"
        and over_seeds([None]) == "-"
        and over_seeds([2.0], 2) == "2.00"
    )


def test_a_pivoted_table_has_the_means_by_two_keys_and_the_last_row_wins() -> None:
    long = table(
        ["", "", "steps", "predicted", "achieved"],
        [
            ["a", "kl", "1", "5.0 (4.0 / 6.0)", "1.0 (0.0 / 2.0)"],
            ["a", "kl", "9", "7.5 (7.0 / 8.0) %", "2.0"],
            ["b", "kl", "9", "", "3.0"],
            ["b", "kl", "9", "-", "4.0"],
        ],
    )
    assert pivoted(long, (0, 1), 2, "{3} -> {4}").splitlines()[2:] == [
        "| a | kl | 5.0 -> 1.0 | 7.5 % -> 2.0 |",
        "| b | kl |  | - -> 4.0 |",
    ]


def test_every_question_has_one_place_on_the_page_and_its_headline_fits_it() -> None:
    page = PAGE.read_text()
    shown = set(re.findall(r"<!-- table (\S+) -->", page))
    assert shown == ({*ASKED, *TRAINING}) - PRINTED and set(HEADLINES) <= shown
    assert filled(page, {name: headline(name, _wide(name)) for name in shown}).count("<!-- end -->") == len(shown)


def _wide(name: str) -> str:
    """A table of as many columns as the headline of ``name`` may read."""
    return table([""] * 9, [[str(i) for i in range(9)]])


def test_what_is_named_beside_all_is_asked_too() -> None:
    assert asked(["all", "by-heart", "page"]) == [*ASKED, "by-heart"]
    assert asked(["paths", "by-heart"]) == ["paths", "by-heart"]
    assert asked(["paths", "all"])[0] == "paths" and len(asked(["paths", "all"])) == len(ASKED)
