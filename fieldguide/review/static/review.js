// Makes the plain forms quicker: keys press the buttons that name them, and only the item is exchanged, so that the focus stays.
// The server answers with the same item that the page without a script shows.
"use strict";

const place = document.getElementById("item");
const status = document.getElementById("status");
const alertLine = document.getElementById("alert");
const keys = document.getElementById("keys");
const KEYS_OFF = "review keys off";
let busy = false;

document.documentElement.classList.add("scripted");
keys.checked = remembered() !== "1";
keys.addEventListener("change", () => {
  try {
    localStorage.setItem(KEYS_OFF, keys.checked ? "0" : "1");
  } catch { /* a browser that stores nothing */ }
});
loadAhead();

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const typing = event.target.closest("input:not([type=checkbox]), select, textarea");
  if (typing) {
    if (event.key === "Escape") focusItem();
    return;
  }
  if (!keys.checked) return;
  if (event.key === "/" && place.querySelector("[data-find]")) {
    event.preventDefault();
    place.querySelector("[data-find]").focus();
    return;
  }
  const key = event.key.toLowerCase();
  const button = [...place.querySelectorAll("[data-key]")].find((each) => each.dataset.key === key);
  if (!button) {
    if (key === "r" && place.querySelector("[data-find]")) {
      event.preventDefault();
      place.querySelector("[data-find]").focus();
    }
    return;
  }
  event.preventDefault();
  if (!event.repeat) button.click();
});

document.addEventListener("submit", (event) => {
  const form = event.target;
  event.preventDefault();
  const fields = new URLSearchParams(new FormData(form, event.submitter));
  if (form.method === "get") exchange(`${form.action}?${fields}`);
  else exchange(form.action, { method: "POST", body: fields });
});

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-key]");
  if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  exchange(link.href);
});

addEventListener("popstate", () => exchange(location.href, {}, false));

async function exchange(address, settings = {}, isNew = true) {
  if (busy) return;
  busy = true;
  document.body.classList.add("busy");
  try {
    const headers = { "X-Item": "1", Accept: "text/html" };
    const response = await fetch(address, { ...settings, headers });
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const item = page.querySelector(".item");
    if (!item) throw new Error(page.getElementById("fault")?.textContent ?? `The server answered ${response.status}.`);
    show(item);
    if (isNew && response.ok) history.pushState(null, "", response.url);
  } catch (error) {
    alertLine.textContent = error instanceof TypeError ? "Nothing was stored: fieldguide review does not answer. Is it running?" : error.message;
  }
  document.body.classList.remove("busy");
  busy = false;
}

function show(item) {
  const focused = place.contains(document.activeElement) ? document.activeElement : null;
  const key = focused?.dataset.key;
  const name = focused?.name;
  place.replaceChildren(document.importNode(item, true));
  if (focused) {
    const twin = key && [...place.querySelectorAll("[data-key]")].find((each) => each.dataset.key === key);
    const select = focused.tagName === "SELECT" && place.querySelector(`select[name="${name}"]`);
    if (twin || select) (twin || select).focus({ preventScroll: true });
    else focusItem();
  }
  alertLine.textContent = "";
  const { said, notice } = place.firstElementChild.dataset;
  const question = place.querySelector("#question")?.textContent ?? place.querySelector("h2")?.textContent ?? "";
  status.textContent = `${notice || said} ${question}`;
  loadAhead();
}

function focusItem() {
  document.getElementById("main").focus({ preventScroll: true });
}

function loadAhead() {
  const { ahead } = place.firstElementChild.dataset;
  if (ahead) new Image().src = ahead;
}

function remembered() {
  try {
    return localStorage.getItem(KEYS_OFF);
  } catch {
    return null;
  }
}
