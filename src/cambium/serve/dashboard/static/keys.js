// People's own Ed25519 keys. They are read or made here, kept by the browser so that no script can
// read them out again, and never sent: only signatures leave this page.

const DATABASE = "cambium";
const STORE = "keys";
// As they stand, encoded, in the files that `cambium key new` writes (RFC 8018, PBES2).
const OIDS = {
  "2a864886f70d01050d": "PBES2",
  "2a864886f70d01050c": "PBKDF2",
  "2a864886f70d0209": "SHA-256",
  "60864801650304012a": "AES-256-CBC",
};
const SEQUENCE = 0x30;
const OCTETS = 0x04;
const INTEGER = 0x02;
const OID = 0x06;

/** A key that cannot be used, in words for the person who chose it. */
export class KeyError extends Error {}

export const toHex = (buffer) =>
  Array.from(new Uint8Array(buffer), (byte) => byte.toString(16).padStart(2, "0")).join("");

/** Returns the id by which the server knows a public key, of 64 hex digits. */
export async function keyId(publicHex) {
  const raw = Uint8Array.from(publicHex.match(/../g), (pair) => parseInt(pair, 16));
  return `ed25519:${toHex(await crypto.subtle.digest("SHA-256", raw)).slice(0, 32)}`;
}

/** Returns {key_id, signature, payload}: the key's signature over the payload's canonical JSON. */
export async function sign(key, payload) {
  // Flat, of ASCII and whole numbers: sorted keys make it canonical.
  const text = JSON.stringify(payload, Object.keys(payload).sort());
  const signature = await crypto.subtle.sign("Ed25519", key.private, new TextEncoder().encode(text));
  return { key_id: await keyId(key.public), signature: toHex(signature), payload };
}

/** Makes a key that no script can read out. */
export async function makeKey(name) {
  const pair = await ed25519(() => crypto.subtle.generateKey("Ed25519", false, ["sign", "verify"]));
  const raw = await crypto.subtle.exportKey("raw", pair.publicKey);
  return { name, public: toHex(raw), private: pair.privateKey };
}

/** Reads a private key in PEM form, as `cambium key new` and `cambium init` write it. */
export async function readKey(name, text, passphrase) {
  const found = /-----BEGIN (ENCRYPTED )?PRIVATE KEY-----([A-Za-z0-9+/=\s]+)-----END/.exec(text);
  if (!found) throw new KeyError("This file holds no Ed25519 private key in PEM form.");
  let bytes = Uint8Array.from(atob(found[2].replace(/\s/g, "")), (c) => c.charCodeAt(0));
  if (found[1]) bytes = await decrypted(bytes, passphrase);
  const load = (extractable) => crypto.subtle.importKey("pkcs8", bytes, "Ed25519", extractable, ["sign"]);
  let open;
  try {
    open = await ed25519(() => load(true));
  } catch (error) {
    throw error instanceof KeyError ? error : new KeyError("This file holds another kind of key.");
  }
  const { x } = await crypto.subtle.exportKey("jwk", open);
  const raw = atob(x.replace(/-/g, "+").replace(/_/g, "/"));
  return { name, public: toHex(Uint8Array.from(raw, (c) => c.charCodeAt(0))), private: await load(false) };
}

/** Returns the keys that this browser keeps for this address. */
export const keptKeys = () => inStore("readonly", (store) => store.getAll());

/** Keeps a key until somebody forgets it. */
export const keep = (key) => inStore("readwrite", (store) => store.put(key));

/** Forgets a key; where there is no other copy, it is gone. */
export const forget = (publicHex) => inStore("readwrite", (store) => store.delete(publicHex));

async function ed25519(work) {
  if (!globalThis.crypto?.subtle) {
    throw new KeyError("A browser signs only over HTTPS or on this very machine: use the command line.");
  }
  try {
    return await work();
  } catch (error) {
    if (error.name !== "NotSupportedError") throw error;
    throw new KeyError("This browser knows no Ed25519 keys: use a newer one, or the command line.");
  }
}

function inStore(mode, work) {
  return new Promise((resolve, reject) => {
    const opening = indexedDB.open(DATABASE, 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore(STORE, { keyPath: "public" });
    opening.onerror = () => reject(new KeyError("This browser lets no page keep a key."));
    opening.onsuccess = () => {
      const change = opening.result.transaction(STORE, mode);
      const asked = work(change.objectStore(STORE));
      change.oncomplete = () => (opening.result.close(), resolve(asked.result));
      change.onerror = () => (opening.result.close(), reject(new KeyError("The key could not be kept.")));
    };
  });
}

async function decrypted(bytes, passphrase) {
  if (!passphrase) throw new KeyError("This key is encrypted: enter its passphrase.");
  let plan;
  try {
    plan = encryption(bytes);
  } catch {
    throw new KeyError("This key is encrypted in another way: use the command line.");
  }
  const words = new TextEncoder().encode(passphrase);
  const secret = await crypto.subtle.importKey("raw", words, "PBKDF2", false, ["deriveKey"]);
  const derive = { name: "PBKDF2", hash: "SHA-256", salt: plan.salt, iterations: plan.iterations };
  const aes = await crypto.subtle.deriveKey(derive, secret, { name: "AES-CBC", length: 256 }, false, ["decrypt"]);
  try {
    return new Uint8Array(await crypto.subtle.decrypt({ name: "AES-CBC", iv: plan.iv }, aes, plan.sealed));
  } catch {
    throw new KeyError("The key does not open with this passphrase.");
  }
}

// EncryptedPrivateKeyInfo: {{PBES2, {{PBKDF2, {salt, iterations, prf}}, {AES-256-CBC, iv}}}, sealed}
function encryption(bytes) {
  const [how, sealed] = parts(read(bytes, 0, SEQUENCE));
  const [scheme, settings] = parts(need(how, SEQUENCE));
  const [derivation, cipher] = parts(need(settings, SEQUENCE));
  const [kdf, kdfSettings] = parts(need(derivation, SEQUENCE));
  const [salt, count, prf] = parts(need(kdfSettings, SEQUENCE));
  const [aes, iv] = parts(need(cipher, SEQUENCE));
  const names = [scheme, kdf, parts(need(prf, SEQUENCE))[0], aes].map((one) => OIDS[toHex(need(one, OID).value)]);
  if (names.join() !== "PBES2,PBKDF2,SHA-256,AES-256-CBC") throw new Error("other algorithms");
  const iterations = parseInt(toHex(need(count, INTEGER).value), 16);
  return { salt: need(salt, OCTETS).value, iterations, iv: need(iv, OCTETS).value, sealed: need(sealed, OCTETS).value };
}

// One element of DER (X.690): its tag, its bytes, and where the next begins.
function read(bytes, at, tag) {
  let length = bytes[at + 1];
  let start = at + 2;
  if (length & 0x80) {
    const size = length & 0x7f;
    length = 0;
    for (const byte of bytes.slice(start, start + size)) length = length * 256 + byte;
    start += size;
  }
  if (!(start + length <= bytes.length)) throw new Error("cut off");
  const found = { tag: bytes[at], value: bytes.slice(start, start + length), end: start + length };
  return tag === undefined ? found : need(found, tag);
}

function parts(element) {
  const found = [];
  for (let at = 0; at < element.value.length; at = found.at(-1).end) found.push(read(element.value, at));
  return found;
}

function need(element, tag) {
  if (element?.tag !== tag) throw new Error("another shape");
  return element;
}
