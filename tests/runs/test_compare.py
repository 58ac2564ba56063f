from dataclasses import replace

import numpy as np
import pytest
from run_files import change_json, write_run

import deepres
from deepres.errors import UserError
from deepres.recipes.named import fast
from deepres.runs.compare import compare, show_p
from deepres.runs.directory import RunDir
from deepres.runs.finished import load_runs
from deepres.runs.groups import group_runs
from deepres.runs.predictions import Predictions


def answers(num_wrong, num_images=100, labels=None):
    labels = np.zeros(num_images, np.uint8) if labels is None else labels
    predicted = labels.copy()
    predicted[:num_wrong] = (labels[:num_wrong] + 1) % 10
    return Predictions(labels, predicted, np.ones(num_images, np.float32))


@pytest.fixture
def write(tmp_path):
    """Make runs of a net with these errors, one a seed, and return their folder."""

    def make(name, model, errors, first_seed=0, **settings):
        for seed, error in enumerate(errors, first_seed):
            write_run(tmp_path / name / f"seed{seed}", model, seed=seed, test_errors=(error,), **settings)
        return tmp_path / name

    return make


def test_everything_at_once(write):
    a = write("a", "resnet20", (8.1, 8.3, 8.4), predictions=answers(8))
    b = write("b", "plain20", (9.6, 10.0, 10.3), predictions=answers(12))
    (made,) = deepres.compare(a, b)
    assert [str(each) for each in made.differences] == ["model resnet20 -> plain20"]
    assert made.difference == pytest.approx(9.9667 - 8.2667, abs=1e-3)
    assert made.welch.difference == pytest.approx(made.difference)
    assert made.welch.interval[0] < made.difference < made.welch.interval[1]
    assert made.paired.difference == pytest.approx(made.difference)
    assert (made.mcnemar.seeds, made.mcnemar.images) == ((0, 1, 2), 300)
    assert (made.mcnemar.only_a, made.mcnemar.only_b) == (0, 12)
    assert (made.needed, made.tests, made.holm) == (3, 1, made.welch.p_value)
    assert made.verdict.startswith("B errs 1.70 points more than A, 95% interval 0.9")
    assert compare(b, a)[0].verdict.startswith("B errs 1.70 points less than A, 95% interval 0.9")


def test_no_evidence_says_how_many_seeds_it_takes(write):
    a, b = write("a", "resnet20", (8.1, 8.3, 8.4)), write("b", "resnet32", (8.2, 8.3, 8.5))
    (made,) = compare(a, b)
    assert made.mcnemar is None  # no predictions.npz
    assert not made.significant
    assert made.verdict.startswith(
        "no evidence of a difference: B errs 0.07 points more than A, 95% interval of B - A"
    )
    assert f"; {made.needed} seeds of each would be needed" in made.verdict
    assert made.needed == pytest.approx(2 * 0.1528**2 * (2.8 / 0.0667) ** 2, rel=0.03)


def test_groups_of_one_run_are_not_tested_but_the_others_spread_says_what_it_would_take(write):
    a, b, c = write("a", "resnet20", (8.1, 8.3, 8.4)), write("b", "plain20", (9.6,)), write("c", "plain32", (9.9,))
    made = compare(a, b)[0]
    assert (made.welch, made.paired, made.holm, made.detectable) == (None, None, None, None)
    assert made.needed == 3
    assert made.verdict.startswith("no test: B errs 1.33 points more than A, but B has one run: train more seeds; 3")
    made = compare(b, c)[0]
    assert made.needed is None
    assert made.verdict == "no test: B errs 0.30 points more than A, but A and B have one run: train more seeds"


def test_groups_without_spread(write):
    a, b = write("a", "resnet20", (8.1, 8.1)), write("b", "plain20", (9.6, 9.6))
    made = compare(a, b)[0]
    assert (made.welch, made.needed, made.detectable) == (None, None, None)
    assert made.verdict == "no test: B errs 1.50 points more than A, but there is no spread between seeds"
    same = write("c", "plain32", (8.0, 8.2))
    assert compare(a, same)[0].verdict.startswith("no evidence of a difference: B and A err the same, 95%")


def test_several_comparisons_are_corrected_together_and_those_without_a_test_do_not_count(write):
    a = write("a", "resnet20", (8.1, 8.3, 8.4))
    others = [write("b", "resnet32", (7.6, 7.8, 8.0)), write("c", "plain20", (9.6, 10.0, 10.3))]
    made = compare(a, *others, write("d", "plain32", (10.0,)))
    assert [(each.b.name, each.tests) for each in made] == [("B", 2), ("C", 2), ("D", 1)]
    p_values = [each.welch.p_value for each in made[:2]]
    assert made[1].holm == pytest.approx(2 * min(p_values))
    assert made[0].holm == pytest.approx(max(max(p_values), 2 * min(p_values)))
    assert "after Holm's correction for 2 comparisons" in made[0].verdict
    pairs = [(each.a.name, each.b.name) for each in compare(a, *others, all_pairs=True)]
    assert pairs == [("A", "B"), ("A", "C"), ("B", "C")]


def test_pairs_need_the_same_seeds_and_mcnemar_shared_ones(write):
    a = write("a", "resnet20", (8.1, 8.3, 8.4), predictions=answers(8))
    b = write("b", "plain20", (9.6, 10.0, 10.3), 1, predictions=answers(12))
    made = compare(a, b)[0]
    assert made.paired is None
    assert made.mcnemar.seeds == (1, 2)
    RunDir(b / "seed2").predictions.unlink()
    assert compare(a, b)[0].mcnemar.seeds == (1,)
    c = write("c", "plain32", (9.6, 10.0, 10.3), predictions=answers(12, labels=np.ones(100, np.uint8)))
    assert compare(a, c)[0].mcnemar is None  # answers to other images
    RunDir(b / "seed1").predictions.write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"predictions.npz is damaged"):
        compare(a, b)


def test_groups_may_be_runs_or_what_group_runs_returns(write, tmp_path):
    write("a", "resnet20", (8.1, 8.3))
    write("b", "plain20", (9.6, 10.0))
    finished = load_runs([tmp_path])[0]
    plain, resnet = group_runs(finished)
    made = compare(resnet, plain)[0]
    assert (made.a.text, made.a.n) == ("resnet20, paper", 2)
    assert compare(finished[2:], finished[:2])[0].difference == made.difference
    assert compare("model=resnet20", "model=plain20", runs=tmp_path)[0].difference == made.difference
    with pytest.raises(UserError, match=r"name a second one"):
        compare(resnet)
    with pytest.raises(UserError, match=r"group 2 .* has no runs"):
        compare(resnet, [])


def test_a_group_of_several_settings_is_an_error_that_names_the_setting(write):
    changed = replace(fast(), name="mine", learning_rate=0.05)
    write("a", "resnet20", (8.1,), recipe="fast")
    folder = write("a", "resnet20", (8.2,), 1, recipe=changed)
    b = write("b", "resnet32", (8.2, 8.3), recipe="fast")
    message = r"A \(.*\) mixes runs of different settings: recipe.learning_rate is 0.03 in .*seed0 and 0.05 in .*seed1"
    with pytest.raises(UserError, match=message):
        compare(folder, b)
    with pytest.raises(UserError, match=r"B .* mixes"):
        compare(b, folder, anyway=True)


def test_several_ingredients_at_once_are_an_error_unless_asked_for(write):
    a = write("a", "resnet20", (8.1, 8.3), recipe="fast")
    b = write("b", "plain20", (9.6, 10.0), recipe="faster")
    with pytest.raises(UserError, match=r"A and B differ in net and recipe at once \(model resnet20 -> plain20, r"):
        compare(a, b)
    assert compare(a, b, anyway=True)[0].difference > 1
    assert compare(a, b, differ=["model", "recipe"])[0].difference > 1
    c = write("c", "resnet20", (9.6, 10.0), recipe="fast", split="45k")
    assert {each.ingredient for each in compare(a, c)[0].differences} == {"data"}


def test_differ_admits_what_it_names_and_nothing_else(write):
    a = write("a", "resnet20", (8.1, 8.3), recipe="fast")
    b = write("b", "resnet20", (8.6, 8.7), recipe=replace(fast(), name="mine", learning_rate=0.05, pad=4))
    with pytest.raises(UserError, match=r"differ in more than recipe.learning_rate: recipe.pad 2 -> 4; add --differ"):
        compare(a, b, differ=["recipe.learning_rate"])
    assert compare(a, b, differ=["recipe.learning_rate", "recipe.pad"])
    assert compare(a, b, differ=["recipe"])
    with pytest.raises(UserError, match=r"no setting 'learning_rat': did you mean recipe.learning_rate"):
        compare(a, b, differ=["learning_rat"])
    with pytest.raises(UserError, match=r"A and B do not differ in recipe.momentum: 0.9"):
        compare(a, b, differ=["recipe.momentum"])


def test_precision_is_listed_and_is_no_ingredient_but_not_admitted_silently(write):
    a, b = write("a", "resnet20", (8.1, 8.3)), write("b", "plain20", (9.6, 9.9), precision="bfloat16")
    assert "precision float32 -> bfloat16" in map(str, compare(a, b)[0].differences)
    with pytest.raises(UserError, match=r"in more than model: precision float32 -> bfloat16; add --differ precision"):
        compare(a, b, differ=["model"])


def test_other_test_images_are_an_error(write):
    a, b = write("a", "resnet20", (8.1, 8.3)), write("b", "resnet20", (9.6, 9.9))
    data = {"name": "mine", "fraction": 1.0, "train": {"images": 9, "digest": "x"}, "val": None}
    for seed in (0, 1):
        change_json(RunDir(b / f"seed{seed}").recipe, data={**data, "test": {"images": 5, "digest": "y"}})
    with pytest.raises(UserError, match=r"A and B were evaluated on different images"):
        compare(a, b)
    assert compare(a, b, anyway=True)[0].difference > 1


def test_a_setting_that_an_older_version_did_not_have_is_its_default(write):
    a, b = write("a", "resnet20", (8.1, 8.3)), write("b", "plain20", (9.6, 9.9))
    for path in b.iterdir():
        recipe = RunDir(path).recipe
        content = load_runs([path])[0][0].record.to_json()["recipe"]
        change_json(recipe, recipe={key: value for key, value in content.items() if key not in ("padding", "flips")})
    assert [each.key for each in compare(a, b)[0].differences] == ["model"]


def test_a_pattern_taken_apart_by_the_shell_and_a_run_in_both_groups_are_errors(write):
    a = write("a", "resnet20", (8.1, 8.3))
    with pytest.raises(UserError, match=r"single runs that differ in their seed alone: put a pattern"):
        compare(a / "seed0", a / "seed1")
    with pytest.raises(UserError, match=r"seed1 is in A and in B"):
        compare(a, a / "seed1")


def test_the_same_settings_made_with_another_version_are_compared(write):
    a, b = write("a", "resnet20", (8.1, 8.3)), write("b", "resnet20", (8.6, 8.7))
    for path in b.iterdir():
        change_json(RunDir(path).environment, commit="1" * 40)
    made = compare(a, b)[0]
    assert made.differences == ()
    assert [str(each) for each in made.machines] == [f"environment.commit {'0' * 10} -> {'1' * 10}"]


def test_val_errors_are_compared_where_images_were_held_out(write):
    a = write("a", "resnet20", (9.1, 9.3, 9.4), split="45k", predictions=answers(8))
    b = write("b", "plain20", (10.6, 11.0, 11.3), split="45k", predictions=answers(8))
    (on_test,), (on_val,) = compare(a, b), compare(a, b, on="val")
    assert on_val.a.errors == [run.val_error_last for run in load_runs([a])[0]] == [9.1, 9.3, 9.4]
    assert on_val.difference == pytest.approx(10.9667 - 9.2667, abs=1e-3)
    assert on_test.a.errors == [run.test_error_last for run in load_runs([a])[0]]
    assert on_test.mcnemar is not None
    assert on_val.mcnemar is None  # the answers kept are those on the test images
    whole = write("whole", "resnet20", (8.1, 8.3))
    with pytest.raises(UserError, match="seed0 held out no images as val: train with --split 45k"):
        compare(a, whole, on="val")
    with pytest.raises(UserError, match="unknown set of images 'train'"):
        compare(a, b, on="train")


def test_p_values_as_text():
    assert [show_p(p) for p in (0.5, 0.0431, 0.00012, 1e-9)] == ["= 0.5", "= 0.043", "= 0.00012", "< 0.0001"]
