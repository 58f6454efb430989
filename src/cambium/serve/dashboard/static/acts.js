// Buttons that change something: each opens a dialog that says what will happen, asks once, signs
// with the person's own key where a signature is needed, and asks the server's ordinary routes.

import { KeyError, forget, keep, keptKeys, keyId, makeKey, readKey, sign } from "/static/keys.js";

const DAY_S = 24 * 3600;
const SAID = "cambium.said";
const SIGNERS = "cambium.signers";
const pageSecret = document.querySelector("meta[name=page-secret]")?.content ?? "";

// The same for everybody who signs on one day: the end of tomorrow, UTC.
const expires = () => (Math.floor(Date.now() / 1000 / DAY_S) + 2) * DAY_S;

document.addEventListener("click", (event) => {
  const opens = event.target.closest("[data-opens]");
  if (opens) open(document.getElementById(opens.dataset.opens));
  event.target.closest("[data-closes]")?.closest("dialog").close();
  const forgets = event.target.closest("[data-forgets]");
  if (forgets) forget(forgets.dataset.forgets).then(showKeys);
});

document.addEventListener("submit", (event) => {
  const form = event.target.closest("form[data-act]");
  if (!form) return;
  event.preventDefault();
  run(form);
});

document.addEventListener("change", (event) => {
  const file = event.target.closest("input[type=file]");
  if (file) showPassphrase(file);
  const signer = event.target.closest("select[name=signer]");
  if (signer) showFile(signer);
});

showSaid();
showKeys();
// By which keys this browser has signed: those that it keeps, and those that were chosen as files.
const own = new Set(JSON.parse(localStorage.getItem(SIGNERS) ?? "[]"));
keptKeys()
  .then((kept) => Promise.all(kept.map((key) => keyId(key.public))))
  .then((ids) => ids.forEach((id) => own.add(id)))
  .catch(() => {})
  .then(() => markSigned(document));

/** Says in place of a button that one's own key has signed; another key can still be taken. */
export function markSigned(page) {
  for (const button of page.querySelectorAll("[data-signers]")) {
    const signers = JSON.parse(button.dataset.signers);
    const mine = Object.keys(signers).filter((id) => own.has(id));
    if (!mine.length) continue;
    const said = button.previousElementSibling;
    said.textContent = `You have signed, as ${mine.map((id) => signers[id]).sort().join(" and ")}.`;
    said.hidden = false;
    button.className = "";
    button.textContent = "Sign with another key";
  }
}

async function open(dialog) {
  complain(dialog, "");
  const signer = dialog.querySelector("select[name=signer]");
  if (signer) await offerKeys(signer);
  dialog.showModal();
}

async function run(form) {
  const button = form.querySelector("button[type=submit]");
  const closes = form.querySelector("[data-closes]");
  if (closes) closes.textContent = "Close";
  const label = button.textContent;
  button.disabled = true;
  button.textContent = form.dataset.busy || "Working…";
  complain(form, "");
  try {
    if (form.dataset.act === "keep-key") await keepKey(form);
    else await send(form);
  } catch (error) {
    complain(form, error instanceof KeyError ? error.message : `It did not work: ${error.message}`);
  }
  button.disabled = false;
  button.textContent = label;
}

async function send(form) {
  const body = { ...JSON.parse(form.dataset.body || "{}"), ...fields(form) };
  if (form.dataset.sign) {
    const payload = { ...JSON.parse(form.dataset.sign), expires: expires() };
    const signed = await sign(await chosenKey(form), payload);
    if (form.dataset.signatures) body.signatures = [signed];
    else Object.assign(body, signed);
  }
  const headers = { "content-type": "application/json", "x-cambium-page": pageSecret };
  const answer = await fetch(form.dataset.act, { method: "POST", headers, body: JSON.stringify(body) });
  const type = answer.headers.get("content-type") ?? "";
  if (type.startsWith("text/html")) return show(form, await answer.text());
  if (!answer.ok) {
    const { detail, mend } = await answer.json();
    throw new KeyError(`Refused: ${detail}${mend ? ` (${mend})` : ""}.`);
  }
  if (body.key_id) localStorage.setItem(SIGNERS, JSON.stringify([...own.add(body.key_id)]));
  sessionStorage.setItem(SAID, form.dataset.done || "Done.");
  const { proposal_id: filed } = await answer.json();
  if (form.dataset.next) location.assign(`${form.dataset.next}${encodeURIComponent(filed ?? "")}`);
  else location.reload();
}

// What a form's answer is to stand in, where it is a page of its own.
function show(form, html) {
  const page = new DOMParser().parseFromString(html, "text/html");
  const place = document.getElementById(form.dataset.shows);
  place.replaceWith(document.adoptNode(page.getElementById(form.dataset.shows)));
}

function fields(form) {
  const found = {};
  for (const input of form.querySelectorAll("[data-field]")) {
    if (input.type === "checkbox" && !input.checked) continue;
    const value = input.type === "number" ? Number(input.value) : input.value;
    if (input.required && String(value).trim() === "") throw new KeyError("Write something there first.");
    if (input.dataset.several === undefined) found[input.dataset.field] = value;
    else if (value !== "") (found[input.dataset.field] ??= []).push(value);
  }
  return found;
}

async function chosenKey(form) {
  const chosen = form.querySelector("select[name=signer]").value;
  if (chosen) return (await keptKeys()).find((key) => key.public === chosen);
  return keyFromFile(form, "");
}

async function keyFromFile(form, name) {
  const file = form.querySelector("input[type=file]").files[0];
  if (!file) throw new KeyError("Choose the file of your key.");
  const passphrase = form.querySelector("input[type=password]").value;
  return readKey(name || file.name, await file.text(), passphrase);
}

async function keepKey(form) {
  const name = form.querySelector("[name=key-name]").value.trim();
  const isNew = form.dataset.from === "new";
  const key = isNew ? await makeKey(name) : await keyFromFile(form, name);
  await keep(key);
  form.reset();
  form.closest("dialog").close();
  await showKeys();
}

async function offerKeys(signer) {
  const kept = await keptKeys().catch(() => []);
  const options = kept.map((key) => new Option(`${key.name}, kept in this browser`, key.public));
  signer.replaceChildren(...options, new Option("the file of a key", ""));
  showFile(signer);
}

function showFile(signer) {
  signer.closest("form").querySelector(".from-file").hidden = signer.value !== "";
}

async function showPassphrase(file) {
  const text = file.files[0] ? await file.files[0].text() : "";
  const place = file.closest("form").querySelector(".passphrase");
  place.hidden = !text.includes("ENCRYPTED");
}

// The page of one's own key: what this browser keeps, and whether the server knows it.
async function showKeys() {
  const list = document.getElementById("kept-keys");
  if (!list) return;
  const known = JSON.parse(list.dataset.known);
  const kept = await keptKeys().catch(() => []);
  const rows = await Promise.all(kept.map((key) => keyRow(key, known)));
  list.querySelector("tbody").replaceChildren(...rows);
  list.hidden = kept.length === 0;
  document.getElementById("no-keys").hidden = kept.length !== 0;
}

async function keyRow(key, known) {
  const row = document.getElementById("key-row").content.cloneNode(true).firstElementChild;
  const say = (name, text) => (row.querySelector(`[data-says=${name}]`).textContent = text);
  const id = await keyId(key.public);
  say("name", key.name);
  say("id", id);
  say("public", key.public);
  say("standing", known[id] ?? "the server does not know it: it can sign nothing yet");
  row.querySelector("[data-forgets]").dataset.forgets = key.public;
  return row;
}

function complain(place, text) {
  const alert = place.querySelector("[role=alert]");
  alert.textContent = text;
  alert.hidden = !text;
}

function showSaid() {
  const said = sessionStorage.getItem(SAID);
  if (!said) return;
  sessionStorage.removeItem(SAID);
  const place = document.getElementById("said");
  place.textContent = said;
  place.hidden = false;
}
