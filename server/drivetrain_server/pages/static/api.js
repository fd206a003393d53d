// The server as the pages use it: the key, JSON, events. Addresses are relative, so that a path prefix works.

import { inTab } from "./kept.js";

const KEY = "drivetrain.key";
const UNREACHABLE = "The server does not answer. Is it still running?";
const BROKEN = "The connection ended before the answer was complete.";
let key = inTab.get(KEY) ?? "";

/** The API key of this tab; never written to disk. */
export const apiKey = {
  get: () => key,
  set: (value) => {
    key = value;
    if (value) inTab.set(KEY, value);
    else inTab.remove(KEY);
  },
};

/**
 * Ask the server. Throws an Error in words: with `status` and the server's own message where it refuses, with
 * `unreachable` where nothing answers; an AbortError as it is.
 */
export async function ask(path, { body, signal, accepted = [] } = {}) {
  const response = await reached(path, {
    method: body === undefined ? "GET" : "POST",
    body: body === undefined ? undefined : JSON.stringify(body),
    headers: {
      ...(body === undefined ? {} : { "Content-Type": "application/json" }),
      ...(key ? { Authorization: `Bearer ${key}` } : {}),
    },
    signal,
    credentials: "omit",
  });
  if (!response.ok && !accepted.includes(response.status)) throw await refusal(response);
  return response;
}

/** `fetch`, whose own words ("Failed to fetch") tell nobody anything. */
async function reached(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw Object.assign(new Error(UNREACHABLE), { unreachable: true });
  }
}

async function refusal(response) {
  const text = await response.text();
  let message = text.slice(0, 500) || `the server answered ${response.status}`;
  try {
    message = JSON.parse(text).error?.message ?? message;
  } catch {
    // Not JSON: the text itself is the message.
  }
  const error = new Error(message);
  error.status = response.status;
  return error;
}

/** The JSON of a stream's events. Throws where the stream ends before its `[DONE]`, or with an error of the server. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await received(reader);
      if (done) throw Object.assign(new Error(BROKEN), { unreachable: true });
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        if (!part.startsWith("data: ")) continue;
        if (part === "data: [DONE]") return;
        const event = JSON.parse(part.slice(6));
        if (event.error) throw new Error(event.error.message ?? "the server ended the answer");
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function received(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw Object.assign(new Error(BROKEN), { unreachable: true });
  }
}

/** Numbers of /metrics by `name{labels}`. Throws as `ask` does. */
export async function metrics() {
  const text = await (await ask("metrics")).text();
  const lines = text.split("\n").filter((line) => line && !line.startsWith("#"));
  return new Map(lines.map((line) => [line.slice(0, line.lastIndexOf(" ")), Number(line.slice(line.lastIndexOf(" ") + 1))]));
}

/** An element with properties and children; text is always text. */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** A button that copies what `text()` says. */
export function copyButton(text, name = "Copy") {
  const button = element("button", { type: "button", className: "link", textContent: name });
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "Copied";
    } catch {
      button.textContent = "Copying is not allowed here";
    }
    setTimeout(() => (button.textContent = name), 1500);
  });
  return button;
}

/** Hide one button and show another in its place, with the focus where the first had it. */
export function swapButtons(shown, other) {
  const focused = document.activeElement === shown;
  other.hidden = false;
  shown.hidden = true;
  if (focused) other.focus();
}
