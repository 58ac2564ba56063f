"""`deepres train --progress json`: what a program that starts runs gets to read."""

import json
import subprocess
import time

from tiny_run import TINY, command, environment, run_command

from deepres.runs.directory import RunDir


def test_every_event_is_one_json_line(run, tmp_path, cifar10_dir, monkeypatch):
    arguments = ("train", "resnet8", *TINY, "--run-dir", tmp_path, "--progress", "json")
    done = run_command(*arguments, data_dir=cifar10_dir)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    while events[0]["event"] == "notice":  # of a machine without fused kernels
        events.pop(0)
    assert events[0] == {"event": "start", "step": 0, "target": 25, "batch_size": 16, "total_epochs": 4}
    assert [event["row"] for event in events if event["event"] == "epoch"] == RunDir(tmp_path).read_metrics()
    assert [event["step"] for event in events if event["event"] == "saved"] == [25]  # by time alone, and the last
    steps = [event for event in events if event["event"] == "step"]
    assert steps[0].keys() == {
        "event",
        "step",
        "epoch",
        "loss",
        "error",
        "images",
        "images_per_second",
        "seconds_left",
    }
    assert [event["event"] for event in events[-3:]] == ["evaluating", "epoch", "result"]
    assert events[-1]["result"] == json.loads(RunDir(tmp_path).result.read_text())
    monkeypatch.setenv("DEEPRES_DATA", str(cifar10_dir))
    code, stdout, _ = run(*arguments)
    assert code == 0
    assert [json.loads(line)["event"] for line in stdout.splitlines()] == ["notice", "result"]


def test_a_run_whose_reader_has_gone_saves_and_ends(tmp_path, cifar10_dir):
    arguments = ("train", "resnet56", *TINY, "--run-dir", tmp_path, "--progress", "json")
    with subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(cifar10_dir)
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while json.loads(process.stdout.readline())["event"] != "start":
            pass
        process.stdout.close()
        stderr = process.stderr.read().decode()
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
    assert process.returncode == 143
    assert "stopped by SIGTERM" in stderr
    assert "Traceback" not in stderr
    assert not RunDir(tmp_path).result.exists()
    assert list(RunDir(tmp_path).checkpoints.glob("step-*.pt"))
