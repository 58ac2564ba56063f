// The page: takes a picture, shows what the nets see and what they make of it.

import { loadNets } from "./nets.js";
import { PictureError, readPicture } from "./picture.js";
import { SIZE } from "./resize.js";

const DIM = 0.85; // how dark the map leaves parts without evidence
const find = (id) => document.getElementById(id);
const percent = (probability) => `${(100 * probability).toFixed(1)}%`;

let loaded; // { classes, nets, examples }
let shown; // { name, pixels, results }
let latest = 0; // counts the pictures: one that was overtaken is not shown

/** Read a picture, show it and what the nets make of it; return that, or nothing if another came in between. */
export async function show(file, name = file.name || "the picture") {
  const turn = ++latest;
  say(`Looking at ${name}`);
  find("error").textContent = "";
  try {
    const pixels = await readPicture(file);
    const results = [];
    for (const net of loaded.nets) results.push(await net.classify(pixels));
    if (turn !== latest) return undefined;
    shown = { name, pixels, results };
  } catch (error) {
    if (turn !== latest) return undefined;
    say("");
    const reason = error instanceof PictureError ? error.message : `something went wrong (${error.message})`;
    find("error").textContent = `${name}: ${reason}.`;
    return undefined;
  }
  draw();
  return shown;
}

function say(text) {
  find("status").textContent = text;
}

/** Draw what is shown now. */
function draw() {
  const { name, pixels, results } = shown;
  drawPixels(find("seen"), pixels);
  find("seen").setAttribute("aria-label", `${name}, made 32 pixels wide and high`);
  const means = loaded.classes.map((_, i) => results.reduce((sum, one) => sum + one.probabilities[i], 0));
  const order = loaded.classes.map((_, i) => i).sort((a, b) => means[b] - means[a]); // the same for both nets
  const answers = results.map((result, n) => drawNet(loaded.nets[n], result, order));
  say(`${name}: ${answers.join("; ")}.`);
  find("results").hidden = false;
}

function drawNet(net, { probabilities, evidence }, order) {
  const card = find(net.about.name);
  const best = probabilities.indexOf(Math.max(...probabilities));
  const answer = `${loaded.classes[best]}, ${percent(probabilities[best])}`;
  card.querySelector(".answer").textContent = answer;
  for (const i of order) {
    const row = card.querySelector(`[data-class="${i}"]`);
    row.classList.toggle("best", i === best);
    row.querySelector(".bar").style.width = `${100 * probabilities[i]}%`;
    row.querySelector(".percent").textContent = percent(probabilities[i]);
    row.parentElement.append(row);
  }
  const chosen = find("which").value === "" ? best : Number(find("which").value);
  drawMap(card, loaded.classes[chosen], evidence[chosen]);
  return `${net.about.title} says ${answer}`;
}

function drawPixels(canvas, pixels) {
  const image = new ImageData(SIZE, SIZE);
  for (let i = 0; i < SIZE * SIZE; i++) {
    image.data.set([pixels[i], pixels[SIZE * SIZE + i], pixels[2 * SIZE * SIZE + i], 255], 4 * i);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** Draw the picture, dark where a net finds no evidence for a class. */
function drawMap(card, className, evidence) {
  const side = Math.sqrt(evidence.length);
  const largest = Math.max(...evidence);
  const dark = new OffscreenCanvas(side, side);
  const image = new ImageData(side, side);
  evidence.forEach((value, i) => {
    image.data[4 * i + 3] = 255 * DIM * (largest > 0 ? 1 - Math.max(0, value) / largest : 1);
  });
  dark.getContext("2d").putImageData(image, 0, 0);
  const canvas = card.querySelector(".map"), context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(find("seen"), 0, 0, canvas.width, canvas.height);
  context.imageSmoothingEnabled = true;
  context.drawImage(dark, 0, 0, canvas.width, canvas.height);
  const where = largest > 0 ? `, most of it ${place(evidence.indexOf(largest), side)}` : ": there is none";
  card.querySelector("figcaption").textContent = `Evidence for ${className}${where}`;
  canvas.setAttribute("aria-label", `The picture, bright where the net finds evidence for ${className}${where}`);
}

/** Say in which ninth of the picture a cell of the map lies. */
function place(index, side) {
  const third = (i) => Math.min(2, Math.floor((3 * (i + 0.5)) / side));
  const row = third(Math.floor(index / side)), column = third(index % side);
  if (row === 1 && column === 1) return "in the middle";
  const vertical = ["at the top", "", "at the bottom"][row], horizontal = ["left", "", "right"][column];
  if (!vertical) return `on the ${horizontal}`;
  return `${vertical}${horizontal && ` ${horizontal}`}`;
}

/** Lay out a card for each net, the examples, and the choice of a class. */
function layOut() {
  for (const { about } of loaded.nets) {
    const card = find("net").content.cloneNode(true).firstElementChild;
    card.id = about.name;
    card.setAttribute("aria-labelledby", `${about.name}-title`);
    Object.assign(card.querySelector("h2"), { id: `${about.name}-title`, textContent: about.title });
    card.querySelector(".about").textContent = about.text;
    loaded.classes.forEach((name, i) => {
      const row = find("class").content.cloneNode(true).firstElementChild;
      row.dataset.class = i;
      row.querySelector("th").textContent = name;
      card.querySelector("tbody").append(row);
    });
    find("nets").append(card);
  }
  loaded.classes.forEach((name, i) => find("which").append(new Option(name, i)));
  for (const { url, label } of loaded.examples) {
    const button = document.createElement("button");
    const image = Object.assign(new Image(SIZE, SIZE), { src: url, alt: label, title: label });
    button.append(image);
    button.addEventListener("click", () => showAddress(url, `Test image of class ${label}`));
    find("examples").append(button);
  }
}

async function showAddress(url, name) {
  return show(await (await fetch(url)).blob(), name);
}

function showFirst(files) {
  if (files.length > 0) show(files[0]);
  else find("error").textContent = "That was no file: save the picture first, then drop, choose or paste it.";
}

function listen() {
  find("file").addEventListener("change", (event) => {
    if (event.target.files.length > 0) show(event.target.files[0]);
    event.target.value = ""; // the same file can be chosen again
  });
  document.addEventListener("paste", (event) => showFirst(event.clipboardData.files));
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      document.body.classList.toggle("over", kind === "dragover");
      if (kind === "drop") showFirst(event.dataTransfer.files);
    });
  }
  find("which").addEventListener("change", draw);
}

async function start() {
  if ("serviceWorker" in navigator) navigator.serviceWorker.register("offline.js").catch(() => {}); // http: online only
  try {
    loaded = await loadNets(say);
  } catch (error) {
    say("");
    find("error").textContent = `The nets cannot be loaded: ${error.message}. In a checkout, "make demo" brings them.`;
    return;
  }
  layOut();
  listen();
  find("choose").hidden = false;
  say("");
  await showAddress(loaded.examples[0].url, `Test image of class ${loaded.examples[0].label}`);
}

export const ready = start();
