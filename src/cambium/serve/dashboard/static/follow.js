// Pages that follow what happens: the server says that something changed, and the parts marked with
// `data-part` are taken anew from the page's own address. What a person opened stays open.

import { markSigned } from "/static/acts.js";

const MIN_GAP_MS = 1000;
let last = 0;
let waiting = null;

const events = new EventSource("/events");
events.addEventListener("change", later);
events.addEventListener("open", () => mark("live"));
events.addEventListener("error", () => mark("not connected; trying again"));

document.addEventListener("visibilitychange", () => document.hidden || later());

function mark(text) {
  const place = document.getElementById("following");
  if (place) place.textContent = text;
}

function later() {
  if (waiting !== null) return;
  waiting = setTimeout(refresh, Math.max(0, last + MIN_GAP_MS - Date.now()));
}

async function refresh() {
  last = Date.now();
  try {
    // A dialog under way must not change beneath the person who reads it.
    if (document.querySelector("dialog[open]") || document.hidden) return;
    const answer = await fetch(location.href, { headers: { accept: "text/html" } });
    if (answer.redirected) return void events.close();
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    markSigned(page);
    // One may have been opened while the page was on its way.
    if (document.querySelector("dialog[open]")) return;
    for (const part of document.querySelectorAll("[data-part]")) exchange(part, page);
  } finally {
    waiting = null;
  }
}

function exchange(part, page) {
  const fresh = page.getElementById(part.id);
  if (!fresh || folded(fresh) === folded(part)) return;
  const focused = part.contains(document.activeElement) ? document.activeElement : null;
  if (focused?.matches("input, select, textarea")) return;
  const unfolded = fresh.querySelectorAll("details");
  part.querySelectorAll("details").forEach((one, i) => unfolded[i]?.toggleAttribute("open", one.open));
  if (fresh.dataset.digest !== part.dataset.digest) warn();
  part.replaceWith(document.adoptNode(fresh));
  // Whoever stood on a button stands on it still.
  if (focused?.dataset.opens) fresh.querySelector(`[data-opens="${CSS.escape(focused.dataset.opens)}"]`)?.focus();
}

// What a part says, whatever of it a person has unfolded.
function folded(part) {
  const copy = part.cloneNode(true);
  copy.querySelectorAll("details").forEach((one) => one.removeAttribute("open"));
  return copy.innerHTML;
}

function warn() {
  const place = document.getElementById("said");
  place.textContent = "The evidence has changed since you opened this page: what you would sign now is not what you read.";
  place.hidden = false;
}
