from dataclasses import replace

import pytest

from deepres.errors import UserError
from deepres.recipes.named import RECIPES, fast, paper
from deepres.recipes.read import (
    arguments_of,
    base_of,
    change,
    changed_name,
    parse_setting,
    read_recipe,
    recipe_arguments,
    setting_variants,
    to_toml,
)
from deepres.recipes.recipe import Cosine, LowResolution, Muon, OneCycle, OtherOptimizer, StepDecay


def test_settings_change_what_they_name_and_nothing_else():
    recipe = read_recipe("fast", ["learning_rate=0.05", "muon.learning_rate=0.03", "padding=zeros", "nesterov=false"])
    expected = replace(
        fast(),
        name=recipe.name,
        learning_rate=0.05,
        muon=replace(fast().muon, learning_rate=0.03),
        padding="zeros",
        nesterov=False,
    )
    assert recipe == expected
    assert recipe.name == "fast+learning_rate=0.05+muon.learning_rate=0.03+nesterov=false+padding=zeros"


def test_parts_are_replaced_switched_off_and_made():
    assert read_recipe("fast", ["muon=none"]).muon is None
    assert read_recipe("fast", ["low_resolutions=[]"]).low_resolutions == ()
    sizes = read_recipe("fast", ["low_resolutions=[{size = 16, until = 0.2}, {size = 24, until = 0.8}]"])
    assert sizes.low_resolutions == (LowResolution(16, 0.2), LowResolution(24, 0.8))
    made = read_recipe("paper", ["muon.learning_rate=0.05", "muon.momentum=0.9"])
    assert made.muon == Muon(learning_rate=0.05, momentum=0.9)
    assert read_recipe("paper", ["schedule.milestones=[10, 20]"]).schedule == StepDecay((10, 20), 0.1)
    cycle = read_recipe("paper", ["schedule.kind=OneCycle", "schedule.warmup=0.1"])
    assert cycle.schedule == OneCycle(warmup=0.1)


def test_a_length_in_epochs_takes_the_place_of_one_in_steps():
    assert (read_recipe("paper", ["epochs=3"]).epochs, read_recipe("paper", ["epochs=3"]).steps) == (3.0, None)
    assert read_recipe("one-cycle", ["steps=70"]).steps == 70
    assert read_recipe("one-cycle", ["steps=70"]).epochs is None


@pytest.mark.parametrize("name", RECIPES)
def test_the_printed_recipe_is_the_recipe(name, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(to_toml(RECIPES[name]()))
    assert replace(read_recipe(str(path)), name=name) == RECIPES[name]()


@pytest.mark.parametrize(
    "settings",
    [
        ["muon.learning_rate=0.03"],
        ["muon=none", "norm_adam=none", "chain=none", "low_resolutions=[]"],
        ["chain.full_rate_length=none", "epochs=2", "schedule.kind=Cosine"],
        ["muon=none", "norm_adam=none", "optimizer.name=AdamW"],
    ],
)
def test_the_printed_recipe_with_changes_is_that_recipe(settings, tmp_path):
    path, recipe = tmp_path / "mine.toml", read_recipe("fast", settings)
    for source in ("fast", str(path)):
        path.write_text(to_toml(recipe, base_of(source)))
        assert replace(read_recipe(str(path)), name=recipe.name) == recipe


def test_a_file_says_what_differs_and_settings_come_after_it(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('base = "paper"\nname = "mine"\nlearning_rate = 0.2\n[schedule]\nfactor = 0.2\n')
    expected = replace(paper(), name="mine", learning_rate=0.3, schedule=StepDecay((32_000, 48_000), 0.2))
    assert read_recipe(str(path), ["learning_rate=0.3"]) == expected
    assert read_recipe(str(path), ["name=other"]).name == "other"


def test_names_tell_changes_apart_and_forget_their_order():
    names = [
        changed_name("fast", changes)
        for changes in (
            {"a": 1},
            {"a": 2},
            {"b": 1},
            {"a": 1, "b": 1},
            {"a": [1, 2]},
            {"a": [12]},
            {"a": "x/y"},
            {"a": "xy"},
            {"a": "long" * 50},
            {"a": "long" * 50 + "er"},
        )
    ]
    assert len(set(names)) == len(names)
    assert all(len(name) <= 80 and "/" not in name for name in names)
    assert changed_name("fast", {"a": 1, "b": 2}) == changed_name("fast", {"b": 2, "a": 1})


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("a=1", ("a", 1)),
        ("a.b = 0.5", ("a.b", 0.5)),
        ("a=true", ("a", True)),
        ("a=word", ("a", "word")),
        ('a="two words"', ("a", "two words")),
        ("a=[1, 2]", ("a", [1, 2])),
        ("a=x=y", ("a", "x=y")),
    ],
)
def test_values_are_written_as_in_toml(setting, expected):
    assert parse_setting(setting) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["learning-rate=1"], "no setting learning-rate: did you mean learning_rate?"),
        (["lerning_rate=1"], "did you mean learning_rate?"),
        (["muon.learning_rat=1"], "did you mean muon.learning_rate?"),
        (["zzz=1"], "no setting zzz: there are batch_size, "),
        (["learning_rate"], "'learning_rate' is not of the form key=value"),
        (["=1"], "not of the form key=value"),
        (["batch_size="], "not of the form key=value"),
        (["batch_size=1.5"], "batch_size is 1.5: it must be a whole number"),
        (["batch_size=many"], "batch_size is 'many': it must be a whole number"),
        (["batch_size=true"], "batch_size is True: it must be a whole number"),
        (["nesterov=1"], "nesterov is 1: it must be true or false"),
        (["learning_rate=none"], "learning_rate is 'none': it must be a number"),
        (["padding=1"], "padding is 1: it must be a word"),
        (["padding=black"], "unknown padding 'black'"),
        (["muon=0.05"], "muon has parts: give muon.learning_rate, muon.momentum"),
        (["schedule=OneCycle"], r"schedule has parts: give schedule.kind \(StepDecay or OneCycle or Cosine\)"),
        (["schedule.kind=Cosinus"], "schedule.kind is 'Cosinus': give StepDecay or OneCycle or Cosine"),
        (["schedule.kind=OneCycle"], "setting schedule needs warmup too"),
        (["schedule.warmup=0.1"], "no setting schedule.warmup"),
        (["low_resolutions=24"], "low_resolutions is a list"),
        (["low_resolutions=[24]"], "low_resolutions has parts"),
        (["slow_start.window=3", "slow_start=none"], "contradict"),
        (["slow_start=none", "slow_start.window=3"], "contradict"),
        (["pad=1", "pad=2"], "pad is given twice"),
        (["name=a/b"], "'a/b' cannot name a recipe"),
        (["name=fast", "pad=1"], "cannot be named 'fast'"),
    ],
)
def test_errors_name_the_setting_and_the_way_out(settings, message):
    with pytest.raises(UserError, match=message):
        read_recipe("paper", settings)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rate = 1", "names no recipe to start from"),
        ("base = 3", "names no recipe to start from"),
        ('base = "fst"', "unknown recipe 'fst'"),
        ("base = ", "is not a TOML file"),
        (b"\xff\xfe", "is not a TOML file"),
        ('base = "fast"\nrate = 1', "no setting rate"),
    ],
)
def test_files_that_are_no_recipe(content, message, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        read_recipe(str(path))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"cannot read recipe .*absent\.toml"):
        read_recipe(str(tmp_path / "absent.toml"))


def test_no_change_leaves_the_recipe():
    assert read_recipe("fast") == fast()
    assert change(paper(), {}) == paper()


def test_another_kind_keeps_the_settings_of_the_same_name():
    assert read_recipe("one-cycle", ["schedule.kind=Cosine"]).schedule == Cosine(warmup=0.15)
    assert read_recipe("paper", ["schedule.kind=Cosine"]).schedule == Cosine(warmup=0.0)


def test_any_optimizer_with_its_arguments(tmp_path):
    changes = ["optimizer.name=AdamW", "optimizer.arguments.betas=[0.9, 0.99]", "optimizer.arguments.eps=1e-6"]
    recipe = read_recipe("paper", changes)
    assert recipe.optimizer == OtherOptimizer("AdamW", {"betas": [0.9, 0.99], "eps": 1e-6})
    path = tmp_path / "mine.toml"
    path.write_text(to_toml(recipe, RECIPES["paper"]()))
    assert replace(read_recipe(str(path)), name=recipe.name) == recipe
    with pytest.raises(
        UserError, match=r"setting momentum is SGD's: give AdamW its own as optimizer\.arguments\.momentum"
    ):
        read_recipe("paper", [*changes, "momentum=0.8"])
    for others in ([], ["muon=none"], ["norm_adam=none"]):
        with pytest.raises(UserError, match="switch them off with muon=none and norm_adam=none to train all of it by"):
            read_recipe("fast", [*changes, *others])
    assert read_recipe("fast", [*changes, "muon=none", "norm_adam=none"]).optimizer == recipe.optimizer
    with pytest.raises(UserError, match=r"optimizer.arguments.lr is 0.1: it must be given as learning_rate"):
        read_recipe("paper", ["optimizer.name=SGD", "optimizer.arguments.lr=0.1"])


@pytest.mark.parametrize(
    ("source", "settings"),
    [
        ("fast", []),
        ("paper", ["schedule.milestones=[10, 20]", "padding=reflection", "slow_start=none", "nesterov=true"]),
        ("one-cycle", ["optimizer.name=AdamW", "optimizer.arguments.betas=[0.9, 0.99]", "name=mine"]),
        ("FILE", ["mixup=0.2"]),
    ],
)
def test_a_recipe_travels_as_arguments(source, settings, tmp_path):
    if source == "FILE":
        source = str(tmp_path / "mine.toml")
        (tmp_path / "mine.toml").write_text('base = "fast"\n[muon]\nlearning_rate = 0.03\n')
    option, base, *others = recipe_arguments(source, settings)
    assert option == "--recipe"
    assert not base.endswith(".toml")
    assert set(others[::2]) <= {"--set"}
    assert read_recipe(base, others[1::2]) == read_recipe(source, settings)


@pytest.mark.parametrize(
    ("source", "settings"),
    [
        ("faster", []),
        ("fast", ["muon.learning_rate=0.03", "pad=4"]),
        ("fast", ["muon=none", "norm_adam=none", "chain=none", "low_resolutions=[]", "name=mine"]),
        ("paper", ["schedule.kind=Cosine", "schedule.warmup=0.1", "epochs=10", "slow_start=none"]),
        ("paper", ["muon.learning_rate=0.03", "muon.momentum=0.9", "mixup=0.2"]),
        ("one-cycle", ["steps=100"]),
        ("one-cycle", ["optimizer.name=AdamW", "optimizer.arguments.betas=[0.9, 0.99]"]),
    ],
)
def test_what_a_run_recorded_is_made_again_by_arguments(source, settings):
    recipe = read_recipe(source, settings)
    option, base, *others = arguments_of(recipe.to_json(), lambda _: True)
    assert option == "--recipe"
    assert read_recipe(base, others[1::2]) == recipe
    # A residual net's record says nothing of chains.
    without = {key: value for key, value in recipe.to_json().items() if key != "chain"}
    option, base, *others = arguments_of(without, lambda setting: setting != "chain")
    assert replace(read_recipe(base, others[1::2]), chain=None) == replace(recipe, chain=None)
    assert "chain=none" not in others


def test_settings_of_a_grid():
    assert setting_variants("pad=2,4") == ["pad=2", "pad=4"]
    assert setting_variants("padding=zeros,reflection") == ["padding=zeros", "padding=reflection"]
    assert setting_variants("schedule.milestones=[1, 2]") == ["schedule.milestones=[1, 2]"]
    assert setting_variants("schedule.milestones=[1, 2], [3]") == [
        "schedule.milestones=[1, 2]",
        "schedule.milestones=[3]",
    ]
    assert setting_variants("pad=4") == ["pad=4"]
