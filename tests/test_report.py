"""Reading run directories that may be in any state, the curve as a picture, and the page in a real browser."""

from __future__ import annotations

import importlib
import json
import math
import os
import pkgutil
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import algorithms
from algorithms.imitation.online_transformer import OnlineDecisionTransformer
from cluster.errors import UsageError
from cluster.metrics.wording import AGENT_CHARTS
from cluster.pictures.chart import Line, draw_chart, thin, tick_text, ticks
from cluster.pictures.curve import draw_curve, learning_curve
from cluster.pictures.report import NotARun, bootstrap_interval, compare, grouped, read_run, write_report


def make_run(
    path: Path, *, seed: int = 1, algorithm: str = "softgac", env: str = "Hopper-v5", lr: float = 3e-4
) -> Path:
    """A run directory as a finished run leaves it: 20 metrics lines, 5 evaluations of 3 episodes."""
    path.mkdir(parents=True)
    facts = {"algorithm": algorithm, "env": env, "seed": seed, "backend": "inline"}
    write(path / "config.json", {**facts, "steps": 2000, "agent": {"lr": lr}, "versions": {"torch": "2.13.0"}})
    metrics = [metrics_line(step, seed) for step in range(100, 2001, 100)]
    evaluations = [evaluation_line(step, seed) for step in range(400, 2001, 400)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    (path / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in evaluations))
    summary = {"exit": "completed", "env_steps": 2000, "updates": 2000, "wall_s": 20.0, "env_steps_per_s": 100.0}
    summary |= {"eval_return_mean": 2000.0 + seed, "eval_return_std": 0.8, "eval_episodes": 3, "replay_ratio": 1.0}
    summary |= {"rows": {"recorded": 2000, "stored": 1999, "dropped": {"nonfinite": 1}}}
    summary |= {"learner_time": {"data_wait": 0.01, "update": 0.95, "publish": 0.02}}
    write(path / "summary.json", {**facts, **summary})
    return path


def metrics_line(step: int, seed: int) -> dict[str, Any]:
    line = {"time_s": step / 100, "env_steps": step, "updates": step, "env_steps_per_s": 100.0, "updates_per_s": 100.0}
    line |= {"replay_ratio": 1.0 + 1 / step, "target_replay_ratio": 1.0, "policy_age_p50": 1, "policy_age_p95": 3}
    line |= {"return_mean": 0.8 * step + seed, "loss_alpha": 0.1 * math.exp(-step / 500), "loss_unreported_of": 1.0}
    return line


def evaluation_line(step: int, seed: int) -> dict[str, Any]:
    returns = [step + seed - 1.0, step + seed + 0.0, step + seed + 1.0]
    return {"env_steps": step, "updates": step, "wall_s": 1.0, "version": 1, "returns": returns, "lengths": [9, 9, 9]}


def write(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data))


def test_a_finished_run_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "a", seed=7))
    assert (run.name, run.algorithm, run.env, run.seed, run.state, run.notes) == (
        "a",
        "softgac",
        "Hopper-v5",
        7,
        "ended",
        (),
    )
    assert run.env_steps == 2000
    assert run.series("return_mean") == (list(range(100, 2001, 100)), [0.8 * s + 7 for s in range(100, 2001, 100)])
    assert [e.mean for e in run.evaluations] == [407.0, 807.0, 1207.0, 1607.0, 2007.0]


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_torn_last_line_is_skipped_and_named(tmp_path: Path, cut: int) -> None:
    path = make_run(tmp_path / "a")
    text = (path / "metrics.jsonl").read_bytes()
    (path / "metrics.jsonl").write_bytes(text + text.splitlines()[-1][:-cut])
    run = read_run(path)
    assert len(run.metrics) == 20
    assert run.notes == ("the last line of metrics.jsonl is torn (cut while it was being written) and was skipped",)


def test_damaged_lines_and_documents_are_left_out_and_named(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a")
    lines = (path / "metrics.jsonl").read_bytes().splitlines()
    lines[2], lines[4] = b"\xff\xfe garbage", b"[1, 2]"
    (path / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    (path / "summary.json").write_text('{"env_steps": 20')
    with (path / "evaluations.jsonl").open("a") as file:
        file.write('{"env_steps": 2400, "returns": []}\n')
    run = read_run(path)
    assert len(run.metrics) == 18 and len(run.evaluations) == 5
    assert any("2 of 21 lines of metrics.jsonl" in note and "line 3, 5" in note for note in run.notes)
    assert any("summary.json could not be read" in note for note in run.notes)
    assert any("evaluation at 2400" in note for note in run.notes)


@settings(deadline=None, max_examples=30)
@given(st.binary(max_size=300))
def test_no_bytes_in_a_run_directory_break_its_reader(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    path = tmp_path_factory.mktemp("junk")
    for name in ("config.json", "metrics.jsonl", "evaluations.jsonl", "summary.json", "live.json"):
        (path / name).write_bytes(junk)
    run = read_run(path)
    assert run.metrics == () or json.loads(junk.splitlines()[0]) is not None


def test_what_a_resume_did_again_counts_once(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a")
    with (path / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(metrics_line(step, 50)) + "\n" for step in (1500, 1600))
    with (path / "evaluations.jsonl").open("a") as file:
        file.write(json.dumps(evaluation_line(1600, 50)) + "\n")
    run = read_run(path)
    steps, returns = run.series("return_mean")
    assert steps == [*range(100, 1600, 100), 1500, 1600]
    assert returns[-2:] == [0.8 * 1500 + 50, 0.8 * 1600 + 50]
    assert [(e.env_steps, e.mean) for e in run.evaluations] == [(400, 401), (800, 801), (1200, 1201), (1600, 1650)]
    assert len(run.notes) == 2 and all("resume" in note for note in run.notes)


def test_the_state_of_a_run_follows_from_its_files_and_its_process(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a")
    assert read_run(path).state == "ended"
    (path / "summary.json").unlink()
    assert read_run(path).state == "unknown"
    write(path / "live.json", {"state": "running", "pid": os.getpid()})
    assert read_run(path).state == "running"
    ended = subprocess.Popen(["true"])
    ended.wait(timeout=30)
    write(path / "live.json", {"state": "running", "pid": ended.pid})
    assert read_run(path).state == "lost"
    write(path / "failure.json", {"error": "RuntimeError: boom", "traceback": "..."})
    assert read_run(path).state == "failed"


def test_a_path_that_is_no_run_directory_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(NotARun, match="is nothing, expected a run directory"):
        read_run(tmp_path / "missing")
    with pytest.raises(NotARun, match=r"holds none of config\.json"):
        read_run(tmp_path)
    with pytest.raises(UsageError, match="at least one run directory"):
        write_report([], tmp_path / "report.html")


def test_the_curve_is_a_png_that_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "pictures" / "curve.png"
    draw_curve(make_run(tmp_path / "a"), path)
    first = path.read_bytes()
    assert first.startswith(b"\x89PNG") and len(first) > 20_000
    empty = tmp_path / "empty"
    empty.mkdir()
    write(empty / "config.json", {"algorithm": "sac", "env": "Hopper-v5", "seed": 1})
    draw_curve(empty, path)
    assert path.read_bytes() != first
    scored = make_run(tmp_path / "scored")
    ends = {"random_return": 0.0, "expert_return": 2_500.0}
    write(scored / "evaluations.jsonl", evaluation_line(2000, 1) | ends)
    axes = learning_curve(scored).axes[0]
    lines = {str(line.get_label()): list(line.get_ydata()) for line in axes.get_lines()}
    assert lines["random policy (0)"] == [0.0, 0.0] and lines["expert (100)"] == [2_500.0, 2_500.0]
    assert [p.name for p in path.parent.iterdir()] == ["curve.png"]


def test_only_runs_that_differ_in_seed_alone_are_averaged(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / f"seed{seed}", seed=seed) for seed in (1, 2, 3)]
    paths += [make_run(tmp_path / "fast", lr=1e-3), make_run(tmp_path / "sac", algorithm="sac")]
    groups = grouped([read_run(path) for path in paths])
    assert [(group.label, len(group.runs)) for group in groups] == [
        ("SoftGAC (agent.lr = 0.0003)", 3),
        ("SoftGAC (agent.lr = 0.001)", 1),
        ("SAC", 1),
    ]


def test_the_bootstrap_interval_agrees_with_drawing_runs_one_by_one() -> None:
    values_RG = np.random.default_rng(1).normal(size=(5, 4))
    draws = np.random.default_rng(0).integers(0, 5, size=(2000, 5))
    means = np.array([np.mean([values_RG[run] for run in draw], axis=0) for draw in draws])
    expected = np.percentile(means, [2.5, 97.5], axis=0)
    np.testing.assert_allclose(bootstrap_interval(values_RG), expected, atol=1e-12)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=9))
@settings(max_examples=25, deadline=None)
def test_groups_are_compared_by_rliables_definitions(scores: list[float]) -> None:
    """rliable, one task: the IQM is scipy's trim_mean(0.25), the interval the percentiles of it over runs drawn with replacement."""

    def trim_mean(values: list[float]) -> float:
        kept = sorted(values)[int(0.25 * len(values)) : len(values) - int(0.25 * len(values))]
        return math.fsum(kept) / len(kept)

    draws = np.random.default_rng(0).integers(0, len(scores), size=(2000, len(scores)))
    found = compare(np.array(scores))
    for name, statistic in {"mean": lambda values: math.fsum(values) / len(values), "IQM": trim_mean}.items():
        drawn = [statistic([scores[run] for run in draw]) for draw in draws]
        expected = statistic(scores), np.percentile(drawn, 2.5), np.percentile(drawn, 97.5)
        np.testing.assert_allclose(found[name], expected, atol=1e-9)


def test_the_page_compares_groups_of_seeds_and_the_settings_in_which_they_differ(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / "slow" / f"seed-{seed}", seed=seed) for seed in (1, 2, 3)]
    paths += [make_run(tmp_path / "fast" / f"seed-{seed}", seed=seed, lr=1e-3) for seed in (1, 2, 3, 4)]
    text = write_report(paths, tmp_path / "report.html").read_text()
    for row in (
        'SoftGAC (agent.lr = 0.0003)</td><td class="n ">3</td><td class="n ">2,000</td>'
        '<td class="n ">2,002 [2,001, 2,003]</td><td class="n ">2,002 [2,001, 2,003]</td>',
        'SoftGAC (agent.lr = 0.001)</td><td class="n ">4</td>',
        'agent.lr</td><td class="w">0.0003</td><td class="w">0.001</td>',
        'seed</td><td class="w">1, 2, 3</td><td class="w">1, 2, 3, 4</td>',
        "slow/seed-1<br>",
    ):
        assert row in text, row


def test_the_page_shows_runs_failures_and_differences_and_escapes_what_it_shows(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / f"seed{seed}", seed=seed) for seed in (1, 2)]
    paths.append(make_run(tmp_path / "bad<b>", lr=1e-3, env="Ant-v5"))
    write(paths[-1] / "failure.json", {"error": "ValueError: <script>x</script>", "traceback": "line & more"})
    text = write_report(paths, tmp_path / "report.html").read_text()
    assert "<script>x" not in text and "&lt;script&gt;x" in text and "line &amp; more" in text
    for output in (
        "bad&lt;b&gt; failed",
        "agent.lr",
        "0.001",
        "95 % bootstrap interval",
        "2,001 ± 0.8",
        "Temperature alpha",
    ):
        assert output in text, output
    assert "unreported of" in text, "a metric that the page has no title for is shown all the same"


def test_the_page_names_no_address_outside_itself(tmp_path: Path) -> None:
    text = write_report([make_run(tmp_path / "a")], tmp_path / "report.html").read_text()
    assert not re.search(r"""(?:src|href)=|https?:|url\(|@import""", text)
    assert "default-src 'none'" in text


def test_an_empty_run_has_a_page_too(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.mkdir()
    write(path / "config.json", {})
    assert "No evaluation has been made yet" in write_report([path], tmp_path / "report.html").read_text()


@settings(deadline=None, max_examples=100)
@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_round_evenly_spaced_and_inside_the_axis(low: float, extent: float) -> None:
    high = low + extent
    if high - low < 1e-9 * abs(low):
        return
    found = ticks(low, high)
    assert 1 <= len(found) <= 7
    assert all(low - extent * 1e-6 <= value <= high + extent * 1e-6 for value in found)
    assert all(tick_text(value) for value in found)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=700))
def test_thinning_keeps_the_mean_of_blocks_and_bounds_their_number(values: list[float]) -> None:
    x, y = thin(range(len(values)), values, limit=100)
    size = math.ceil(len(values) / 100)
    assert len(x) == len(y) <= 100
    assert y[0] == pytest.approx(sum(values[:size]) / len(values[:size]), abs=1e-6)


def test_charts_of_one_point_and_of_equal_values_have_finite_coordinates() -> None:
    for y in ([1.0], [0.0, 0.0], [5e-320, 5e-320], [1e300, -1e300]):
        picture = draw_chart("title", "unit", [Line(label="a", colour=9, x=list(range(len(y))), y=y)], wide=True)
        assert "nan" not in picture and "inf" not in picture
    assert draw_chart("title", "unit", [Line(label="a", colour=0, x=[], y=[])]) == ""


def make_gac_run(path: Path, *, collapse: float = 0.0, steps: int = 0) -> Path:
    """A run on whole episodes as it is left: its length is counted in updates, and it made ``steps`` env steps in all."""
    path.mkdir(parents=True)
    facts = {"algorithm": "gac", "env": "Hopper-v5", "seed": 1, "backend": "inline"}
    write(path / "config.json", {**facts, "steps": 300, "unit": "updates", "agent": {"lr": 1e-3}})
    losses = {"elbo": -900.0, "return_error": 5.0, "kl_token": 1.2, "active_dims": 0.8, "collapse": collapse}
    lines = []
    for at in (100, 200, 300):
        line = {"time_s": at / 10, "env_steps": steps * at // 300, "updates": at, "env_steps_per_s": float(steps)}
        line |= {"replay_ratio": 0.0, "target_replay_ratio": 2.0, "policy_age_p95": 0, "updates_per_s": 10.0}
        lines.append(line | {f"loss_{name}": value for name, value in losses.items()})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluations = [{**evaluation_line(at, 1), "env_steps": 0} for at in (150, 300)]
    (path / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in evaluations))
    return path


def section(text: str, title: str) -> str:
    return text.split(title, 1)[1].split("<h2>", 1)[0]


def test_a_run_that_is_counted_in_updates_is_drawn_against_them(tmp_path: Path) -> None:
    text = write_report([make_gac_run(tmp_path / "gac")], tmp_path / "report.html").read_text()
    for title in ("ELBO", "Return error", "KL of a plan token", "Active latent dimensions", "Posterior collapse"):
        assert f"<figcaption>{title} " in text, title
    assert "environment steps" not in text and text.count('data-axis="updates"') == text.count("<figure")
    assert "&quot;x&quot;: [150.0, 300.0]" in text, "evaluations lie where they were made"
    for nothing in ("Replay ratio <", "Environment steps <", "Policy age"):
        assert nothing not in text, f"{nothing} means nothing where nothing is gathered"
    assert "collapsed" not in text
    assert "0.00/s" not in section(text, "<h2>Summary")
    online = write_report([make_gac_run(tmp_path / "online", steps=900)], tmp_path / "report.html").read_text()
    assert "<figcaption>Environment steps " in online and "Replay ratio <" not in online


def test_a_collapsed_posterior_is_told_above_everything(tmp_path: Path) -> None:
    text = write_report([make_gac_run(tmp_path / "gac", collapse=0.5)], tmp_path / "report.html").read_text()
    assert text.index("the posterior has collapsed") < text.index("<h2>Summary")


def test_runs_counted_in_different_units_share_no_axis(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / "old"), make_gac_run(tmp_path / "gac")]
    text = write_report(paths, tmp_path / "report.html").read_text()
    old, new = section(text, "<h2>Hopper-v5</h2>"), section(text, "<h2>Hopper-v5 <span")
    assert 'data-axis="environment steps"' in old and 'data-axis="updates"' not in old
    assert 'data-axis="updates"' in new and 'data-axis="environment steps"' not in new
    assert "<figcaption>Replay ratio " in old and "ELBO" in new


def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium is installed (Debian package chromium)")
    return found


def browse(page: Path, profile: Path, *options: str) -> str:
    quiet = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    command = [chromium(), *quiet.split(), "--disable-component-update", "--disable-sync", f"--user-data-dir={profile}"]
    result = subprocess.run([*command, *options, page.as_uri()], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def test_at_1280_pixels_nothing_scrolls_sideways(tmp_path: Path) -> None:
    kwargs = '?{"forward_reward_weight":2.5,"max_episode_steps":300}'
    paths = [
        make_run(tmp_path / "a-rather-long-name-of-runs" / f"seed-{n}", seed=n, env=f"mine:Walker2d-v5{kwargs}")
        for n in (1, 2)
    ]
    paths += [make_run(tmp_path / f"learning-rate-{n}", lr=n / 1e4) for n in range(4, 8)]
    write(paths[0] / "live.json", {"state": "running"})
    (paths[0] / "summary.json").unlink()
    report = write_report(paths, tmp_path / "report.html")
    probe = """<script>
      const wide = [document.documentElement, ...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth);
      document.body.dataset.wide = wide.length;
    </script></body>"""
    report.write_text(report.read_text().replace("</body>", probe))
    assert 'data-wide="0"' in browse(report, tmp_path / "profile", "--window-size=1280,900", "--dump-dom")


def test_a_real_browser_draws_the_page_and_its_hover_values(tmp_path: Path) -> None:
    report = write_report([make_run(tmp_path / f"seed{seed}", seed=seed) for seed in (1, 2)], tmp_path / "report.html")
    probe = """<script>
      const svg = document.querySelector('.hero svg.narrow'), box = svg.getBoundingClientRect();
      svg.dispatchEvent(new PointerEvent('pointermove', {clientX: box.right - 20, clientY: box.top + 50}));
      document.body.dataset.wide = document.documentElement.scrollWidth > innerWidth;
    </script></body>"""
    report.write_text(report.read_text().replace("</body>", probe))
    dom = browse(
        report, tmp_path / "profile", "--window-size=500,900", f"--screenshot={tmp_path / 'a.png'}", "--dump-dom"
    )
    assert 'data-wide="false"' in dom, "the page does not scroll sideways on a narrow screen"
    assert dom.count("<figure") >= 8
    tip = re.search(r'class="tip"[^>]*>(.*?)</div></div>', dom)
    assert tip is not None and "SoftGAC: <b>2002" in tip.group(1).replace(",", ""), dom[-3000:]


def test_every_measure_that_an_agent_reports_has_a_chart_with_a_title() -> None:
    reported = {"nonfinite", "explore_spread", "explore_collapse", "learning_rate", *OnlineDecisionTransformer.metrics}
    for each in pkgutil.walk_packages(algorithms.__path__, "algorithms."):
        module = vars(importlib.import_module(each.name))
        reported.update(*(names for name, names in module.items() if name.endswith("METRICS")))
    assert reported >= {"elbo", "q_target_mean", "actor_grad_norm", "action_mse", "behaviour_loss"}
    assert sorted(name for name in reported if name not in AGENT_CHARTS) == []
