"""The page in docs/demo, in Chromium, beside what Python makes of the same pictures."""

import base64
import io
import shutil
import sys
from pathlib import Path

import filelock
import numpy as np
import pytest
from PIL import Image
from tiny_run import first_images

from deepres.data.cifar10 import CLASSES
from deepres.data.fetch import SourceError
from deepres.data.images import read_image
from deepres.zoo.catalogue import load_pretrained

pytestmark = pytest.mark.long

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "tools"))
DEMO = ROOT / "docs" / "demo"
NUM_IMAGES = 100

# What the page makes of pictures that are given as data URLs: the pixels that the nets see, and probabilities.
SHOW = """
const { ready, show } = await import(new URL("page.js", document.baseURI));
await ready;
const all = [];
for (const [name, address] of given[0]) {
  const { pixels, results } = await show(await toBlob(address), name);
  all.push({ name, pixels: Array.from(pixels), probabilities: results.map((one) => one.probabilities),
             evidence: results.map((one) => one.evidence.map((map) => Array.from(map))) });
}
return all;

function toBlob(address) {  // not by fetch, which the page forbids itself for anything but its own files
  const [head, body] = address.split(","), bytes = Uint8Array.from(atob(body), (char) => char.charCodeAt(0));
  return new Blob([bytes], { type: head.slice(5).split(";")[0] });
}
"""


@pytest.fixture(scope="session")
def demo(browser, cifar10_dir):
    """The page's folder, complete: `make demo`, which does nothing where that was done before."""
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    import demo as tool  # needs that extra

    tool.BUILD.mkdir(exist_ok=True)
    with filelock.FileLock(tool.BUILD / ".lock"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPRES_DATA", str(cifar10_dir))
        try:
            tool.build_demo()
        except SourceError as error:
            pytest.skip(f"the runtime cannot be downloaded: {error}")
    return DEMO


@pytest.fixture(scope="session")
def address(demo, serve):
    with serve(demo) as address:
        yield address


LOADED = 'await (await import(new URL("page.js", document.baseURI))).ready'


@pytest.fixture
def page(browser, address):
    """The page with its nets loaded; it is the last test's where that left it open."""
    if browser.driver.current_url != address:
        browser.open(address)
        browser.wait_for(LOADED)
    browser.messages()
    return browser


@pytest.fixture(scope="module")
def nets(demo):
    import demo as tool

    return [load_pretrained(card.name) for card in tool.choose_cards()]


def encode(image, kind="png", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def data_url(content, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def as_image(pixels):
    return Image.fromarray(pixels.transpose(1, 2, 0))


def test_same_answers_as_python_on_100_test_images(page, nets, cifar10_dir):
    images = first_images(cifar10_dir, num_test=NUM_IMAGES).test.images
    seen = page.wait_for(SHOW, [[str(i), data_url(encode(as_image(image)))] for i, image in enumerate(images)])
    pixels = np.array([one["pixels"] for one in seen], np.uint8).reshape(images.shape)
    assert np.array_equal(pixels, images)
    for n, net in enumerate(nets):
        expected = net.predict_proba(images)
        found = np.array([one["probabilities"][n] for one in seen])
        assert np.array_equal(found.argmax(axis=1), expected.argmax(axis=1))
        assert np.abs(found - expected).max() < 1e-5
        # The mean of the evidence is the logit but for the bias.
        logits = np.array([one["evidence"][n] for one in seen]).mean(axis=2) + net.net.fc.bias.detach().numpy()
        assert np.abs(logits - net.predict_logits(images).numpy()).max() < 1e-3
    assert page.messages() == []


def picture(width, height):
    """A picture with fine detail, smooth parts and noise."""
    x, y = np.meshgrid(np.linspace(0, 9, width), np.linspace(0, 7, height))
    waves = np.stack([np.sin(x * y), np.cos(3 * x), np.sin(40 * y)], axis=2)
    noise = np.random.default_rng(0).normal(0, 0.3, waves.shape)
    return Image.fromarray(((waves + noise).clip(-1, 1) * 127.5 + 127.5).astype(np.uint8))


def seen_by(page, files):
    seen = page.wait_for(SHOW, [[name, data_url(content, kind)] for name, (content, kind) in files.items()])
    return {one["name"]: np.array(one["pixels"], np.uint8).reshape(3, 32, 32).astype(int) for one in seen}


def test_larger_pictures_become_the_same_pixels_as_for_predict(page):
    sizes = ((640, 427), (427, 640), (33, 31), (1, 1), (7, 300), (31, 2000), (1500, 1000), (64, 64))
    files = {f"{size}": (encode(picture(*size)), "image/png") for size in sizes}
    turned = Image.Exif()
    turned[0x0112] = 6  # a phone held upright
    small = picture(300, 200)
    files["grey"] = (encode(small.convert("L")), "image/png")
    files["palette"] = (encode(small.quantize(50)), "image/png")
    files["turned"] = (encode(small, exif=turned), "image/png")
    for name, pixels in seen_by(page, files).items():
        assert np.array_equal(pixels, read_image(io.BytesIO(files[name][0]))), name


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
def test_photographs(page, name):
    """A JPEG file leaves its decoder some freedom."""
    folder = Path(pytest.importorskip("sklearn.datasets").__file__).parent / "images"
    content = (folder / name).read_bytes()
    expected = read_image(io.BytesIO(content)).astype(int)
    found = seen_by(page, {"jpeg": (content, "image/jpeg")})["jpeg"]
    lossless = encode(Image.open(io.BytesIO(content)))
    assert np.array_equal(seen_by(page, {"png": (lossless, "image/png")})["png"], expected)
    print(name, np.abs(found - expected).max(), (found != expected).mean())
    assert np.abs(found - expected).max() <= 1


def test_transparent_parts_are_white(page):
    image = picture(300, 200).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    content = encode(image)
    found = seen_by(page, {"png": (content, "image/png")})["png"]
    print(np.abs(found - read_image(io.BytesIO(content)).astype(int)).max())
    assert np.abs(found - read_image(io.BytesIO(content)).astype(int)).max() <= 1


def choose(page, path):
    """Choose a file as a user does, and wait until the page has dealt with it."""
    page.run('document.getElementById("status").textContent = "waiting"')
    page.driver.find_element("id", "file").send_keys(str(path))
    return page.wait_for("""
        const said = () => document.getElementById("status").textContent;
        const error = () => document.getElementById("error").textContent;
        while (!error() && (said() === "waiting" || said().startsWith("Looking"))) {
          await new Promise((next) => setTimeout(next, 20));
        }
        return [said(), error()];
    """)


def test_a_chosen_file_is_shown_in_words_and_pictures(page, nets, cifar10_dir, tmp_path):
    image = first_images(cifar10_dir).test.images[1]
    (tmp_path / "boat.png").write_bytes(encode(as_image(image)))
    said, error = choose(page, tmp_path / "boat.png")
    assert error == ""
    answers = []
    for net, title in zip(nets, ("ResNet-20", "plain-56"), strict=True):
        (row,) = net.predict_proba(image[None])
        answers.append(f"{title} says {CLASSES[row.argmax()]}, {100 * row.max():.1f}%")
    assert said == f"boat.png: {'; '.join(answers)}."
    shown = page.run("""
        return [...document.querySelectorAll("#seen, .map")].map((canvas) =>
          [canvas.getAttribute("aria-label"), canvas.toDataURL().length]);
    """)
    assert len(shown) == 3
    assert shown[0][0] == "boat.png, made 32 pixels wide and high"
    assert all("evidence for ship" in label for label, _ in shown[1:])
    rows = page.run('return [...document.querySelectorAll("#resnet20 tr")].map((row) => row.innerText.split(/\\s+/))')
    assert {row[0] for row in rows} == set(CLASSES)
    percents = [float(row[1].rstrip("%")) for row in rows]
    assert sum(percents) == pytest.approx(100, abs=0.5)
    assert page.messages() == []


def test_the_evidence_of_a_class_that_is_chosen(page):
    before = page.run('return document.querySelector("#plain56 .map").toDataURL()')
    page.run("""
        const which = document.getElementById("which");
        which.value = 5; which.dispatchEvent(new Event("change"));
    """)
    captions = page.run('return [...document.querySelectorAll("figcaption")].map((one) => one.textContent)')
    assert [text.split(",")[0].split(":")[0] for text in captions] == ["Evidence for dog"] * 2
    assert page.run('return document.querySelector("#plain56 .map").toDataURL()') != before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cut.png", lambda whole: whole[:60], "cut.png: it is damaged, or no image that this browser can read."),
        ("empty.png", lambda whole: b"", "empty.png: it is empty."),
        ("notes.txt", lambda whole: b"a cat", "no image that this browser can read, but text/plain."),
        ("bomb.png", lambda whole: encode(Image.new("1", (30_000, 3_000))), "more than 89,478,485 pixels"),
    ],
)
def test_files_that_cannot_be_used_are_named_with_the_reason(page, tmp_path, name, content, message):
    whole = encode(as_image(np.zeros((3, 32, 32), np.uint8)))
    (tmp_path / name).write_bytes(content(whole))
    said, error = choose(page, tmp_path / name)
    assert message in error
    assert said == ""
    (tmp_path / "good.png").write_bytes(whole)
    said, error = choose(page, tmp_path / "good.png")
    assert said.startswith("good.png: ResNet-20 says ")
    assert error == ""
    assert page.messages() == []


def test_dropped_and_pasted_files(page):
    for kind, given in (("drop", "dataTransfer"), ("paste", "clipboardData")):
        said = page.wait_for(
            """
            const [kind, given_as] = given;
            const image = await (await fetch("build/examples/truck.png")).blob();
            const transfer = new DataTransfer();
            transfer.items.add(new File([image], `${kind}.png`, { type: "image/png" }));
            const event = new Event(kind, { bubbles: true, cancelable: true });
            Object.defineProperty(event, given_as, { value: transfer });
            document.body.dispatchEvent(event);
            const status = document.getElementById("status");
            while (!status.textContent.startsWith(`${kind}.png: `)) await new Promise((next) => setTimeout(next, 20));
            return status.textContent;
            """,
            kind,
            given,
        )
        assert "ResNet-20 says truck" in said


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1000])
def test_it_fits_the_window(browser, address, width, dark):
    browser.open(address, width=width, dark=dark)
    browser.wait_for(LOADED)
    assert browser.run('return document.getElementById("results").hidden') is False
    assert browser.overflow() <= 0
    background = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 23, 26)" if dark else "rgb(255, 255, 255)")
    assert browser.messages() == []


def test_every_control_has_a_name_and_is_reached_by_the_keyboard(page):
    from selenium.webdriver import ActionChains, Keys

    page.run("document.activeElement.blur(); getSelection().removeAllRanges(); scrollTo(0, 0)")
    reached = []
    for _ in range(20):
        ActionChains(page.driver).send_keys(Keys.TAB).perform()
        reached.append(
            page.run("""
            const at = document.activeElement;
            return at.id || at.tagName + (at.firstElementChild?.alt ?? "");
        """)
        )
        if reached[-1] == "BODY":
            break
    expected = ["file", *(f"BUTTON{name}" for name in CLASSES), "which", "SUMMARY", "A"]
    assert [one for one in reached if one != "BODY"] == expected
    tree = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = ("button", "combobox", "image", "link", "article", "region", "DisclosureTriangle")
    nodes = [node for node in tree if node.get("role", {}).get("value") in roles]
    named = [(node["role"]["value"], node["name"]["value"]) for node in nodes]
    assert len(named) > 20
    assert [role for role, name in named if not name.strip()] == []
    assert ("button", "airplane") in named


def test_a_page_whose_nets_are_missing_says_how_to_get_them(browser, serve, tmp_path):
    shutil.copytree(DEMO, tmp_path / "demo", ignore=shutil.ignore_patterns("build"))
    with serve(tmp_path / "demo") as address:
        browser.open(address)
        browser.wait_for(LOADED)
    assert '"make demo" brings them' in browser.run('return document.getElementById("error").textContent')


def test_without_a_network_it_works_once_it_was_loaded(browser, demo, serve):
    with serve(demo) as address:
        browser.open(address)
        browser.wait_for("await navigator.serviceWorker.ready")
    browser.driver.get(address)  # nobody answers there any more
    browser.wait_for(LOADED)
    assert "says" in browser.run('return document.getElementById("status").textContent')
    browser.run("navigator.serviceWorker.getRegistrations().then((all) => all.forEach((one) => one.unregister()))")
