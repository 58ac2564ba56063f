"""report.html in Chromium, opened from disk as users open it."""

import numpy as np
import pytest
from run_files import write_run

from deepres.report.report import write_report
from deepres.report.responses import Responses, write_responses
from deepres.runs.predictions import Predictions


@pytest.fixture(scope="module")
def address(tmp_path_factory, cifar10_dir, whole_cifar10):
    """A report with every section, of two recipes and more nets than fit a narrow table."""
    folder = tmp_path_factory.mktemp("runs")
    labels = whole_cifar10.test.labels.astype(np.uint8)
    errors = {"plain20": 9.5, "plain56": 13.0, "resnet20": 8.0, "resnet56": 7.0, "resnet110": 6.5}
    for name, error in errors.items():
        for seed in range(2):
            predicted = labels.copy()
            predicted[: 700 + seed] = (labels[: 700 + seed] + 1) % 10
            predictions = Predictions(labels, predicted, np.linspace(1, 0.2, len(labels), dtype=np.float32))
            run_errors = (30.0, error + 1, error + 0.1 * seed)
            write_run(folder / f"{name}-{seed}", name, seed=seed, test_errors=run_errors, predictions=predictions)
    write_run(folder / "a-run-whose-name-is-very-long-and-has-no-place-to-break-it", "plain20", "fast", seed=12)
    write_responses(folder, [Responses("resnet20", "a0", ("conv1", "layer1.0.conv1"), (1.5, 0.5))], 50_000)
    out = tmp_path_factory.mktemp("report")
    write_report([folder], out, cifar10_dir, formats=())
    return (out / "report.html").as_uri()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1000])
def test_it_fits_the_window_in_both_themes(browser, address, width, dark):
    browser.open(address, width=width, dark=dark)
    browser.run(
        "for (const part of document.querySelectorAll('details')) part.removeAttribute('name'), part.open = true"
    )
    assert browser.overflow() <= 0
    background, letters = browser.run(
        "const style = getComputedStyle(document.body); return [style.backgroundColor, style.color]"
    )
    assert background == ("rgb(24, 24, 24)" if dark else "rgb(255, 255, 255)")
    assert sum(map(int, letters[4:-1].split(","))) > 600 if dark else sum(map(int, letters[4:-1].split(","))) < 120
    assert browser.messages() == []


def test_white_of_the_figures_becomes_the_page_where_it_is_dark(browser, address):
    browser.open(address, dark=True)
    browser.run("document.querySelector('#picture-figure6-paper svg').scrollIntoView({ block: 'center' })")
    seen = browser.pixels()
    corner = browser.run("""
        const place = document.querySelector("#picture-figure6-paper svg").getBoundingClientRect();
        return [Math.round(place.left) + 3, Math.round(place.top) + 3];
    """)
    assert np.abs(seen[corner[1], corner[0]].astype(int) - 24).max() <= 2
    assert np.abs(seen[corner[1], 5].astype(int) - 24).max() == 0


def column(browser, table, number):
    return browser.run(
        "return [...document.querySelectorAll(`table.${arguments[0]} tbody tr`)]"
        ".map((row) => row.cells[arguments[1]].textContent)",
        table,
        number,
    )


def test_a_heading_sorts_its_table_up_and_down(browser, address):
    browser.open(address)
    headings = browser.driver.find_elements("css selector", "table.table6 th button")
    error = next(i for i, heading in enumerate(headings) if heading.text.startswith("test error, last epoch"))
    before = column(browser, "table6", error)
    headings[error].click()
    assert (
        browser.run("return document.querySelectorAll('table.table6 th')[arguments[0]].ariaSort", error) == "ascending"
    )
    cells = column(browser, "table6", error)
    numbers = [float(cell.split()[0]) for cell in cells if cell != "missing"]
    assert numbers == sorted(numbers)
    assert numbers[0] == 6.55  # ResNet-110's two runs
    assert cells[len(numbers) :] == ["missing"] * before.count("missing")
    headings[error].click()
    numbers = [float(cell.split()[0]) for cell in column(browser, "table6", error) if cell != "missing"]
    assert numbers == sorted(numbers, reverse=True)
    headings[1].click()
    nets = column(browser, "table6", 1)
    assert nets.index("resnet20") < nets.index("resnet110")  # 20 before 110, though "1" comes before "2"
    assert browser.messages() == []


def test_a_heading_sorts_by_the_keyboard_too(browser, address):
    from selenium.webdriver import Keys

    browser.open(address)
    heading = browser.driver.find_element("css selector", "table.runs th button")
    heading.send_keys(Keys.ENTER)
    names = column(browser, "runs", 0)
    assert names[4:7] == ["plain56-1", "resnet20-0", "resnet20-1"]  # 20 before 110
    heading.send_keys(Keys.SPACE)
    assert column(browser, "runs", 0) == names[::-1]


def test_figure_6_tells_its_values_under_the_pointer(browser, address):
    from selenium.webdriver import ActionChains

    browser.open(address)
    picture = browser.driver.find_element("css selector", "#picture-figure6-paper svg")
    browser.run("arguments[0].scrollIntoView({ block: 'center' })", picture)
    values = browser.driver.find_element("id", "values")
    assert not values.is_displayed()
    width = picture.rect["width"]
    ActionChains(browser.driver).move_to_element_with_offset(picture, int(0.48 * width), 0).perform()
    assert values.is_displayed()
    step, *lines = values.text.splitlines()
    assert step == "step 64,000"
    assert [line.split(":")[0] for line in lines] == ["ResNet-20", "ResNet-56", "ResNet-110"]
    assert lines[0] == "ResNet-20: test 8.05%, train 6.67%"
    box = values.rect
    assert box["x"] + box["width"] <= 1000
    ActionChains(browser.driver).move_to_element_with_offset(picture, int(-0.05 * width), 0).perform()
    assert values.text.splitlines()[1].startswith("plain-20: test 9.55%")
    ActionChains(browser.driver).move_to_element(browser.driver.find_element("tag name", "h1")).perform()
    assert not values.is_displayed()
    assert browser.messages() == []


def test_of_confusion_matrices_and_of_errors_one_is_open(browser, address):
    browser.open(address)
    for name, number in (("confusion", 5), ("wrong", 1)):
        parts = browser.driver.find_elements("css selector", f"details[name={name}]")
        assert len(parts) == number
        assert [part.get_attribute("open") is not None for part in parts] == [True] + [False] * (number - 1)
    matrices = browser.driver.find_elements("css selector", "details[name=confusion]")
    matrices[2].find_element("css selector", "summary").click()
    assert [part.get_attribute("open") is not None for part in matrices] == [False, False, True, False, False]
    assert matrices[2].find_element("css selector", "svg").is_displayed()


def test_links_lead_to_their_sections(browser, address):
    browser.open(address)
    links = browser.driver.find_elements("css selector", "nav a")
    assert len(links) == len(browser.driver.find_elements("tag name", "h2")) >= 9
    for link in links:
        link.click()
        name = link.get_attribute("href").split("#")[1]
        top = browser.run("return document.getElementById(arguments[0]).getBoundingClientRect().top", name)
        assert -1 <= top <= 844
