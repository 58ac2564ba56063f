import functools
import http.server
import json
import threading
from dataclasses import asdict

import pytest
import torch
from fitted import fitted
from run_files import change_json, write_run
from tiny_cifar10 import TinyCifar10
from tiny_run import first_images

import deepres
from deepres.errors import UserError
from deepres.runs.directory import RunDir
from deepres.runs.finished import load_runs
from deepres.runs.image_sets import cifar10_record
from deepres.weights.evaluate import error_percent, percent
from deepres.weights.file import save_weights
from deepres.zoo.build import build_zoo, median_run
from deepres.zoo.card import read_card
from deepres.zoo.catalogue import PACKAGED, file_sha256, list_cards, load_pretrained
from deepres.zoo.verify import same_error


@pytest.fixture(scope="module")
def test_set(cifar10_dir):
    return first_images(cifar10_dir, num_test=50).test


def write_trained_run(path, model, recipe, seed, few, test):
    """Write a run directory with weights, and the error that these have on the test set."""
    images, labels = torch.from_numpy(few.images), torch.from_numpy(few.labels)
    classifier = fitted(model, images, labels, seed=seed)
    error = error_percent(classifier.predict_logits(torch.from_numpy(test.images)), torch.from_numpy(test.labels))
    write_run(path, model, recipe, seed, (90.0, error))
    save_weights(RunDir(path).weights, model, classifier.net, classifier.normalization)
    return error


@pytest.fixture(scope="module")
def runs(few, test_set, tmp_path_factory):
    """Three seeds of ResNet-20 by `fast`, one by `paper`, one plain net, and one that has not finished."""
    folder = tmp_path_factory.mktemp("runs")
    errors = {}
    for model, recipe, seeds in (
        ("resnet20", "fast", (0, 1, 2)),
        ("resnet20", "paper", (0,)),
        ("plain20", "fast", (5,)),
    ):
        for seed in seeds:
            path = folder / f"{model}-{recipe}-seed{seed}"
            errors[path.name] = write_trained_run(path, model, recipe, seed, few, test_set)
    write_run(folder / "unfinished", "resnet20", "fast", 9, finished=False)
    return folder, errors


@pytest.fixture(scope="module")
def zoo(runs, test_set, tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    said = []
    build_zoo([runs[0]], folder, test_set, said.append)
    return folder, said


@pytest.fixture
def in_zoo(run, zoo, test_set, monkeypatch, tmp_path, user_cache):
    """A copy of the zoo that may be damaged, where deepres looks for it, and a cache of its own."""
    folder = tmp_path / "zoo"
    folder.mkdir()
    for path in zoo[0].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    monkeypatch.setenv("DEEPRES_ZOO", str(folder))
    monkeypatch.delenv("DEEPRES_ZOO_URL", raising=False)
    tiny = TinyCifar10.of(test_set, len(test_set.labels))
    run.release = tiny.release
    monkeypatch.setenv("DEEPRES_DATA", str(tiny.write(tmp_path / "data")))
    return folder


@pytest.mark.parametrize(
    ("errors", "median"),
    [([7.0], 7.0), ([9.0, 7.0, 8.0], 8.0), ([9.0, 7.0], 9.0), ([6.0, 9.0, 7.0, 8.0], 8.0), ([5.0, 5.0, 5.0], 5.0)],
)
def test_the_median_run_is_taken_and_of_an_even_number_the_worse(tmp_path, errors, median):
    for seed, error in enumerate(errors):
        write_run(tmp_path / str(seed), seed=seed, test_errors=(1.0, error))
    runs, _ = load_runs([tmp_path])
    for ordered in (runs, runs[::-1]):
        assert median_run(ordered).test_error_last == median
    if errors == [5.0, 5.0, 5.0]:  # equal ones by seed, whatever the order in which they come
        assert median_run(runs).seed == median_run(runs[::-1]).seed == 1


def test_built_from_the_run_with_the_median_error(runs, zoo):
    folder, errors = runs
    fast = sorted((error, name) for name, error in errors.items() if name.startswith("resnet20-fast"))
    median, name = fast[1]
    assert len({error for error, _ in fast}) == 3
    card = read_card(zoo[0] / "resnet20-fast.json")
    assert card.test_error_last == median
    assert card.seed == int(name[-1])
    assert card.num_seeds == 3
    assert card.test_error_mean == round(sum(error for error, _ in fast) / 3, 2)
    assert [run["test_error_last"] for run in card.runs] == [error for error, _ in fast]
    assert card.num_parameters == 269_722
    assert card.command == f"deepres train resnet20 --recipe fast --seed {card.seed} --precision float32"
    assert card.commits == ["0" * 40]
    assert card.normalization["kind"] == "channel"
    assert (
        card.sha256 == file_sha256(RunDir(folder / name).weights) == file_sha256(zoo[0] / "resnet20-fast.safetensors")
    )
    markdown = (zoo[0] / "resnet20-fast.md").read_text()
    for text in (f"**{median:.2f}%**", "269,722", card.sha256, card.command, "(n = 3)"):
        assert text in markdown
    assert read_card(zoo[0] / "plain20-fast.json").test_error_std is None
    assert [card.name for card in list_cards(zoo[0])] == ["plain20-fast", "resnet20-paper", "resnet20-fast"]
    assert any("unfinished: not finished" in line for line in zoo[1])


def test_building_again_changes_nothing(runs, test_set, zoo):
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in zoo[0].iterdir()}
    said = []
    build_zoo([runs[0]], zoo[0], test_set, said.append)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in zoo[0].iterdir()} == before
    assert sum("unchanged" in line for line in said) == 3


def test_building_again_with_another_median_replaces_the_entry(runs, test_set, in_zoo):
    folder, errors = runs
    best = min((error, name) for name, error in errors.items() if name.startswith("resnet20-fast"))
    build_zoo([folder / best[1]], in_zoo, test_set, notice=print)
    assert read_card(in_zoo / "resnet20-fast.json").test_error_last == best[0]
    assert load_pretrained("resnet20-fast").name == "resnet20-fast"
    assert (in_zoo / "plain20-fast.json").exists()


def test_what_must_not_enter_the_zoo(runs, few, test_set, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="no finished run in"):
        build_zoo([empty], empty, test_set, notice=print)
    write_trained_run(tmp_path / "false" / "run", "resnet20", "fast", 0, few, test_set)
    change_json(RunDir(tmp_path / "false" / "run").result, test_error_last=1.23)
    with pytest.raises(UserError, match=r"test error, but its run ended with 1\.23%: it is not the file of this run"):
        build_zoo([tmp_path / "false"], empty, test_set, notice=print)
    write_run(tmp_path / "mixed" / "a", "resnet20", "fast", 0)
    write_run(tmp_path / "mixed" / "b", "resnet20", "fast", 1, precision="bfloat16")
    with pytest.raises(UserError, match="runs of resnet20-fast differ in more than their seed"):
        build_zoo([tmp_path / "mixed"], empty, test_set, notice=print)
    assert list(empty.iterdir()) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"net": {"source": "0" * 16, "weights": None}},
        {"start": {"weights": "resnet20-paper", "digest": "0" * 16}},
        {"data": {"name": "CIFAR-10", "fraction": 0.1}},
        {"data": {"name": "CIFAR-100", "fraction": 1.0}},
    ],
)
def test_runs_of_which_a_card_would_not_be_true_are_left_out(test_set, tmp_path, changes):
    run_dir = RunDir(write_run(tmp_path / "runs" / "a", "resnet20", "fast"))
    record = asdict(cifar10_record("50k", 0))
    every = {"set": "test", "every": 1, "precision": "float32"}
    data = {**record, **changes.get("data", {})}
    change_json(run_dir.recipe, evaluation=every, **{**changes, "data": data})
    said = []
    with pytest.raises(UserError, match="is for the zoo: train a net of deepres on all of CIFAR-10"):
        build_zoo([tmp_path / "runs"], tmp_path, test_set, notice=said.append)
    assert said == [f"left out {run_dir}: cards are of deepres's nets, trained from scratch on all of CIFAR-10"]


def test_the_command_builds_and_verifies_what_it_built(run, runs, in_zoo, tmp_path, monkeypatch):
    out = tmp_path / "out"
    (tmp_path / "file").touch()
    code, _, stderr = run("zoo", "build", runs[0], "--out", tmp_path / "file")
    assert (code, "name another with --out" in stderr) == (2, True)
    code, _, stderr = run("zoo", "build", runs[0], "--out", out)
    assert (code, stderr.count(": written")) == (0, 3)
    monkeypatch.setenv("DEEPRES_ZOO", str(out))
    code, stdout, _ = run("verify")
    assert code == 0
    assert stdout.count("as stated") == 3
    assert "3 of 3 are as their cards say" in stdout
    code, stdout, _ = run("zoo", "list")
    assert (code, stdout.count("yes")) == (0, 3)


@torch.no_grad()
def test_loaded_by_the_name_of_the_net_or_of_the_entry(in_zoo, few):
    images = torch.from_numpy(few.images)
    assert load_pretrained("resnet20").name == "resnet20-paper"  # the first of `deepres recipes`
    model = deepres.load_pretrained("plain20-fast")
    assert not model.training
    assert model.net.residual is False
    assert model.score(few.images, few.labels) == 1.0
    assert torch.equal(model(images), load_pretrained("plain20", folder=in_zoo)(images))
    with pytest.raises(UserError, match=r"unknown weights 'resnet21'.* resnet20, resnet20-paper, resnet20-fast"):
        load_pretrained("resnet21")
    with pytest.raises(UserError, match="no zoo in nowhere"):
        load_pretrained("resnet20", folder="nowhere")
    with pytest.raises(AttributeError, match="no attribute 'load_untrained'"):
        deepres.load_untrained  # noqa: B018


def test_verify_finds_every_kind_of_difference(run, in_zoo):
    change_json(in_zoo / "plain20-fast.json", num_parameters=1, test_error_last=0.01)
    weights = in_zoo / "resnet20-fast.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2] ^= 0xFF  # of the last tensor
    weights.write_bytes(content)
    (in_zoo / "resnet20-paper.safetensors").write_bytes(b"cut off")
    code, stdout, _ = run("verify")
    text = " ".join(stdout.replace("│", " ").split())
    assert code == 1
    assert "0 of 3 are as their cards say" in text
    assert "269,722 parameters, not 1" in text
    assert "not 0.01%" in text
    assert stdout.count("sha256 is") == 2
    assert "no readable" in text
    with pytest.raises(UserError, match=r"resnet20-fast\.safetensors is damaged or not the card's"):
        load_pretrained("resnet20-fast")
    assert run("verify", "resnet2")[0] == 2


def test_an_empty_zoo(run, monkeypatch, tmp_path):
    monkeypatch.setenv("DEEPRES_ZOO", str(tmp_path))
    with pytest.raises(UserError, match=r"no weights of 'resnet20': the zoo in .* is empty"):
        load_pretrained("resnet20")
    for command in (["verify"], ["zoo", "list"]):
        code, _, stderr = run(*command)
        assert code == 2
        assert "is empty" in stderr


@pytest.fixture
def server(in_zoo, monkeypatch):
    """Serves what is moved into a folder, from loopback."""
    folder = in_zoo.parent / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        threading.Thread(target=functools.partial(httpd.serve_forever, poll_interval=0.01), daemon=True).start()
        yield folder, f"http://127.0.0.1:{httpd.server_port}/"
        httpd.shutdown()


def test_what_is_not_installed_is_downloaded_once_and_verified(run, in_zoo, server, monkeypatch):
    served, url = server
    (in_zoo / "plain20-fast.safetensors").rename(served / "plain20-fast.safetensors")
    with pytest.raises(
        UserError, match=r"plain20-fast\.safetensors is not installed.* set DEEPRES_ZOO_URL .* DEEPRES_ZOO"
    ):
        load_pretrained("plain20")
    code, stdout, _ = run("verify")
    assert code == 0
    assert "not installed" in stdout
    assert "2 of 2" in stdout
    with pytest.raises(UserError, match=r"could not download .*nothing/plain20-fast\.safetensors \(404"):
        load_pretrained("plain20", url=f"{url}nothing")
    with pytest.raises(UserError, match=r"could not download .* \(InvalidSchema"):
        load_pretrained("plain20", url="gopher://127.0.0.1")

    good = (served / "plain20-fast.safetensors").read_bytes()
    (served / "plain20-fast.safetensors").write_bytes(good[:-1] + b"?")
    monkeypatch.setenv("DEEPRES_ZOO_URL", url)
    with pytest.raises(UserError, match="has another sha256 than its card says: it is not used"):
        load_pretrained("plain20")
    (served / "plain20-fast.safetensors").write_bytes(good)
    assert load_pretrained("plain20").name == "plain20-fast"
    (served / "plain20-fast.safetensors").unlink()
    monkeypatch.delenv("DEEPRES_ZOO_URL")
    assert load_pretrained("plain20").name == "plain20-fast"  # from the cache


def test_the_packages_own_zoo_is_whole():
    cards = list_cards(PACKAGED)
    assert {path.stem for path in PACKAGED.glob("*.safetensors")} <= {card.name for card in cards}
    assert {path.stem for path in PACKAGED.glob("*.md")} == {card.name for card in cards} | {"README"}
    for card in cards:
        assert (PACKAGED / f"{card.name}.md").read_text() == card.markdown()
        assert file_sha256(PACKAGED / f"{card.name}.safetensors") == card.sha256
        assert json.loads((PACKAGED / f"{card.name}.json").read_text())["test_error_last"] == card.test_error_last


@pytest.mark.parametrize(("images", "same"), [(0, True), (3, True), (-3, True), (4, False), (-4, False)])
def test_three_images_of_ten_thousand_are_tolerated(images, same):
    error = percent(762, 10_000)
    assert same_error(percent(762 + images, 10_000), error, 10_000) is same


def test_verify_says_what_it_tolerates(run, runs, in_zoo):
    card = read_card(in_zoo / "plain20-fast.json")
    change_json(in_zoo / "plain20-fast.json", test_error_last=card.test_error_last - 2)
    code, stdout, _ = run("verify")
    text = " ".join(stdout.replace("│", " ").split())
    assert code == 0
    assert "as stated, to within 3 images of 50" in text
    assert "3 of 3 are as their cards say: sha256, parameters, test error (to within 3 images of 50)" in text
    change_json(RunDir(runs[0] / "plain20-fast-seed5").result, test_error_last=card.test_error_last - 2)
    out = in_zoo.parent / "out"
    try:
        _, _, stderr = run("zoo", "build", runs[0] / "plain20-fast-seed5", "--out", out)
    finally:
        change_json(RunDir(runs[0] / "plain20-fast-seed5").result, test_error_last=card.test_error_last)
    assert f"{card.test_error_last:.2f}% here, to within 3 images of 50" in stderr


def test_without_a_zoo_the_nets_are_listed(run, monkeypatch):
    monkeypatch.setenv("DEEPRES_ZOO", "/nowhere")
    code, stdout, _ = run("models")
    assert code == 0
    assert "resnet1202" in stdout
    assert run("recipes")[0] == 0
