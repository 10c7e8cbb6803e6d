// Makes the plain form quicker: photographs are sent as soon as they are chosen, dropped, pasted or taken, each on its own.
// The server answers with the same plates that the page without a script shows.
"use strict";

const AT_A_TIME = 4;
const TRIES = 8;
const form = document.getElementById("identify");
const plates = document.getElementById("plates");
const note = document.getElementById("tray-note");
const status = document.getElementById("status");
const [chooser, camera] = form.querySelectorAll("input[type=file]");
const maxFiles = Number(form.dataset.maxFiles);
const maxBytes = Number(form.dataset.maxBytes);
const queue = [];
let sending = 0;
let nPlates = plates.children.length;

document.documentElement.classList.add("scripted");
for (const input of [chooser, camera]) {
  input.addEventListener("change", () => {
    take(input.files);
    input.value = "";
  });
}
form.addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) {
    event.preventDefault();
    take(event.clipboardData.files);
  }
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  if (event.dataTransfer.files.length) take(event.dataTransfer.files);
  else note.textContent = "This is not a file. Save the picture first, then drop it here.";
});

function take(files) {
  const taken = [...files].slice(0, maxFiles);
  note.textContent = files.length > maxFiles ? `Only the first ${maxFiles} of ${files.length} were taken.` : "";
  const cards = taken.map((file) => {
    nPlates += 1;
    const card = cardOf("pending", file.name, nPlates, URL.createObjectURL(file));
    queue.push({ file, card, number: nPlates });
    return card;
  });
  plates.prepend(...cards);
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  cards[0]?.scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "nearest" });
  status.textContent = taken.length === 1 ? "Looking at one photograph." : `Looking at ${taken.length} photographs.`;
  while (sending < AT_A_TIME && queue.length) send(queue.shift());
}

function cardOf(template, name, number, address) {
  const card = document.getElementById(template).content.firstElementChild.cloneNode(true);
  card.querySelector(".number").textContent = `Plate ${roman(number)}`;
  card.querySelector(".file-name").textContent = name;
  const image = card.querySelector("img");
  image.addEventListener("error", () => image.remove());
  image.src = address;
  return card;
}

async function send({ file, card, number }) {
  sending += 1;
  const address = card.querySelector("img")?.src;
  try {
    if (file.size > maxBytes - 65536) throw new Error(`The file has ${Math.ceil(file.size / 2 ** 20)} MiB, which is too large.`);
    replace(card, await answer(file, number));
  } catch (error) {
    const failed = cardOf("failed", file.name, number, address);
    failed.querySelector("h2").textContent = error instanceof TypeError ? "The server cannot be reached." : error.message;
    replace(card, failed);
  }
  URL.revokeObjectURL(address);
  sending -= 1;
  if (queue.length) send(queue.shift());
}

async function answer(file, number) {
  for (let left = TRIES; ; left -= 1) {
    const body = new FormData();
    body.append(chooser.name, file, file.name || "photograph");
    const response = await fetch(form.action, { method: "POST", body, headers: { "X-Plates": String(number), Accept: "text/html" } });
    if (response.status === 503 && left > 1) {
      const seconds = Number(response.headers.get("Retry-After")) || 1;
      await new Promise((resume) => setTimeout(resume, 1000 * seconds));
      continue;
    }
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const plate = page.querySelector("article.plate");
    if (!plate) throw new Error(`The server answered ${response.status}.`);
    return document.importNode(plate, true);
  }
}

function replace(card, plate) {
  const shown = card.querySelector("img");
  if (plate.classList.contains("failed") && shown && !plate.querySelector("img")) plate.querySelector(".mount").append(still(shown));
  const name = plate.querySelector(".file-name")?.textContent ?? "";
  if (plate.classList.contains("failed") && !name) {
    plate.querySelector("figcaption").replaceChildren(...card.querySelector("figcaption").childNodes);
  }
  card.replaceWith(plate);
  const best = plate.querySelector(".share")?.textContent ?? "";
  status.textContent = `${plate.querySelector(".number").textContent}: ${plate.querySelector(".verdict").textContent}. ` +
    `${plate.querySelector("h2").textContent} ${best}`;
}

// The preview as it is shown, kept when its address is given back.
function still(image) {
  const canvas = document.createElement("canvas");
  const side = Math.min(image.naturalWidth, image.naturalHeight);
  const copy = document.createElement("img");
  copy.alt = "";
  if (!side) return copy;
  canvas.width = canvas.height = Math.min(side, 480);
  const [left, top] = [(image.naturalWidth - side) / 2, (image.naturalHeight - side) / 2];
  canvas.getContext("2d").drawImage(image, left, top, side, side, 0, 0, canvas.width, canvas.height);
  copy.src = canvas.toDataURL("image/jpeg");
  return copy;
}

function roman(number) {
  const signs = [[1000, "M"], [900, "CM"], [500, "D"], [400, "CD"], [100, "C"], [90, "XC"], [50, "L"], [40, "XL"], [10, "X"], [9, "IX"], [5, "V"], [4, "IV"], [1, "I"]];
  let text = "";
  for (const [value, sign] of signs) {
    text += sign.repeat(Math.floor(number / value));
    number %= value;
  }
  return text;
}
