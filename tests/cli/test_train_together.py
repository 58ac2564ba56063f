"""The program behind `deepres grid --together`: how it tells of runs that cannot be trained."""

import io
import json
import sys

from tiny_run import DATA, RECIPE

from deepres.runs.directory import RunDir


def test_runs_that_fail_are_told_of_and_logged_each_in_its_directory(run, tmp_path, monkeypatch, cifar10_dir):
    """An error of the user's in one line, any other with where it came from."""
    monkeypatch.setenv("DEEPRES_DATA", str(cifar10_dir))
    (tmp_path / "nets.py").write_text("def Fails(num_classes=10):\n    raise KeyError('of all nets this one')\n")
    own = f"{tmp_path}/nets.py:Fails"
    names = {"unknown": ("resnet9", DATA), "net": (own, DATA), "data": ("resnet8", own)}
    lines = []
    for name, (net, data) in names.items():
        (tmp_path / name).mkdir()
        lines.append(json.dumps([net, "--recipe", str(RECIPE), "--data", data, "--run-dir", str(tmp_path / name)]))
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    code, stdout, stderr = run("train-together", "--at-a-time", 2, "--device", "cpu", "--evaluate-every", 3)
    assert (code, stderr) == (0, "")
    events = {event.pop("run"): event for event in map(json.loads, stdout.splitlines())}
    assert set(events) == set(names)
    assert all(event["event"] == "ended" and event["state"] == "failed" for event in events.values())
    logs = {name: RunDir(tmp_path / name).log.read_text() for name in names}
    assert "unknown model 'resnet9'" in events["unknown"]["message"]
    assert logs["unknown"] == f"deepres: error: {events['unknown']['message']}\n"
    for name in ("net", "data"):
        assert events[name]["message"] == "'of all nets this one'"
        assert "nets.py" in logs[name]
        assert logs[name].endswith("KeyError: 'of all nets this one'\n")
