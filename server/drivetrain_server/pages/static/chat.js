// The chat page: a conversation, its stream, and what can be done with it.

import { ask, element, events, swapButtons } from "./api.js";
import { Connection } from "./connection.js";
import { CUT, asked, begun, exportJson, exportMarkdown, keep, messages, restored } from "./conversation.js";
import { askForKey } from "./key.js";
import { Meter, Timing } from "./meter.js";
import { Settings } from "./settings.js";
import { themeButton } from "./theme.js";
import { TurnView } from "./turn.js";

const SUGGESTIONS = [
  "Explain in two sentences why the sky is blue.",
  "Name three planets.",
  "Turn “the cat sat on the mat” into a headline.",
];
const LEFT_OUT = {
  probabilities: "This conversation is too long for the tab's memory: a reload keeps its text without the probabilities.",
  all: "This conversation is too long for the tab's memory: a reload loses it. Export it to keep it.",
};
const $ = (id) => document.getElementById(id);
const message = $("message");
const turns = [];
const views = []; // A TurnView of each turn.
let running = null; // The AbortController of the answer under way.
let asTokens = false;
let wanted = false; // Whether something was to be sent while there was no model.
let leaving = false; // A page that is left breaks its stream, which is no fault of the server.
let served = null; // The model of the last look.

themeButton($("theme"));
const connection = new Connection(showConnection);
const meter = new Meter($("strip"), () => connection.model && connection.look());
const settings = new Settings($("settings"), $("settings-button"), () => connection.look());

function showConnection() {
  $("welcome-model").textContent = connection.title;
  $("welcome-facts").textContent = connection.facts;
  $("welcome-key").hidden = !connection.wantsKey;
  if (connection.model) wanted = false;
  if (connection.model && !served) meter.poll();
  served = connection.model;
  const troubled = !connection.model && (wanted || turns.length > 0);
  notify(troubled ? connection.trouble : "", { key: connection.wantsKey });
}

/** Say something above the message box, where it is seen and heard. */
function notify(text, { key = false } = {}) {
  if ($("notice-text").textContent === text) return;
  $("notice-text").textContent = text;
  $("notice").hidden = !text;
  $("notice-key").hidden = !key;
  say(text);
}

/** To screen readers only. */
function say(text) {
  $("status").textContent = text;
}

async function enterKey() {
  if (!(await askForKey(connection.facts))) return;
  settings.showKey();
  await connection.look();
}

/** Whether a request can be sent; asks for what is missing, and says what cannot be asked for. */
async function ready() {
  if (!settings.valid()) return false;
  if (!connection.model) await connection.look();
  if (connection.wantsKey) await enterKey();
  wanted = !connection.model;
  showConnection();
  return !wanted;
}

function add(turn) {
  const view = new TurnView(turn, $("popover"));
  turns.push(turn);
  views.push(view);
  $("turns").append(view.element);
  view.draw(asTokens);
  arrange();
}

/** What depends on whether there is a conversation. */
function arrange() {
  const none = turns.length === 0;
  $("welcome").hidden = !none;
  for (const id of ["new-chat", "export-text", "export-json"]) $(id).disabled = none;
}

function drawNotes() {
  views.forEach((view, n) => {
    const over = view.turn.role === "assistant" && (view.turn.finish || view.turn.error);
    if (over) view.drawNote(asTokens, n === views.length - 1 ? retry : null);
  });
}

function remember() {
  const left = keep(turns);
  if (left) notify(LEFT_OUT[left]);
}

async function answer() {
  const body = {
    model: connection.model,
    messages: messages(turns, settings.system),
    stream: true,
    stream_options: { include_usage: true },
    ...settings.fields(),
  };
  const timing = new Timing();
  const turn = begun(timing.summary());
  add(turn);
  drawNotes();
  busy(new AbortController());
  say("The answer is being written");
  meter.begin(timing);
  const view = views.at(-1);
  const drawing = new Drawing(() => {
    view.draw(asTokens);
    meter.show();
    follow();
  });
  try {
    const response = await ask("v1/chat/completions", { body, signal: running.signal });
    for await (const event of events(response)) take(turn, event, timing) && drawing.soon();
  } catch (error) {
    failed(turn, error);
  }
  if (!views.includes(view)) return meter.end(); // A new chat was begun meanwhile.
  if (turn.usage) timing.tokens = turn.usage.completion_tokens;
  turn.timing = timing.summary();
  turn.finish ??= turn.error ? null : "stop";
  drawing.now();
  meter.end();
  busy(null);
  drawNotes();
  follow();
  remember();
  say(turn.error ? `The answer failed: ${turn.error}` : "The answer is complete");
}

function failed(turn, error) {
  if (error.name === "AbortError") turn.finish = "stopped";
  else if (leaving && error.unreachable) turn.finish = CUT;
  else turn.error = error.message;
  if (error.unreachable || [401, 404, 503].includes(error.status)) connection.look();
}

/** Take a chunk of the stream in; true where it changes what is shown. */
function take(turn, event, timing) {
  if (event.usage) turn.usage = event.usage;
  const choice = event.choices[0];
  if (!choice) return false;
  if (choice.finish_reason) turn.finish = choice.finish_reason;
  const delta = choice.delta ?? {};
  const tokens = choice.logprobs?.content ?? [];
  const thought = delta.reasoning_content ?? delta.reasoning ?? "";
  if (delta.content || thought || tokens.length) timing.arrived(tokens.length || 1);
  turn.content += delta.content ?? "";
  turn.reasoning += thought;
  for (const token of tokens) turn.logprobs.push(token);
  return true;
}

/** Draws at most once a frame. */
class Drawing {
  constructor(draw) {
    this.draw = draw;
    this.asked = 0;
  }

  soon() {
    this.asked ||= requestAnimationFrame(() => this.now());
  }

  now() {
    cancelAnimationFrame(this.asked);
    this.asked = 0;
    this.draw();
  }
}

function busy(controller) {
  running = controller;
  if (running) swapButtons($("send"), $("stop"));
  else swapButtons($("stop"), $("send"));
  $("thread").setAttribute("aria-busy", String(running !== null));
}

let pinned = true;
$("thread").addEventListener("scroll", () => {
  const { scrollTop, scrollHeight, clientHeight } = $("thread");
  pinned = scrollHeight - scrollTop - clientHeight < 80;
  $("latest").hidden = pinned;
});

function follow() {
  if (pinned) $("thread").scrollTop = $("thread").scrollHeight;
  else $("latest").hidden = false;
}

function toLatest() {
  pinned = true;
  follow();
  $("latest").hidden = true;
}

async function send() {
  const text = message.value.trim();
  if (running || !text || !(await ready()) || running) return;
  message.value = "";
  grow();
  add(asked(text));
  toLatest();
  answer();
}

async function retry() {
  if (running || turns.at(-1)?.role !== "assistant" || !(await ready()) || running) return;
  turns.pop();
  views.pop().element.remove();
  message.focus();
  toLatest();
  answer();
}

function forget() {
  running?.abort();
  turns.length = views.length = 0;
  $("turns").replaceChildren();
  remember();
  busy(null);
  arrange();
  showConnection();
  message.focus();
}

function grow() {
  message.style.height = "auto";
  message.style.height = `${message.scrollHeight}px`;
}

message.addEventListener("input", grow);
message.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("composer").requestSubmit();
});
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("stop").addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
for (const id of ["welcome-key", "notice-key"]) $(id).addEventListener("click", enterKey);
$("latest").addEventListener("click", () => {
  toLatest();
  message.focus();
});
$("new-chat").addEventListener("click", forget);
$("export-json").addEventListener("click", () => {
  exportJson(turns, { model: connection.model, system: settings.system || null, settings: settings.fields() });
});
$("export-text").addEventListener("click", () => exportMarkdown(turns, connection.model ?? "Answer"));
$("tokens-view").addEventListener("click", () => {
  asTokens = !asTokens;
  $("tokens-view").setAttribute("aria-pressed", String(asTokens));
  for (const view of views) view.draw(asTokens);
  drawNotes();
  follow();
});
addEventListener("beforeunload", () => (leaving = true));
addEventListener("pageshow", () => (leaving = false));
addEventListener("pagehide", () => keep(turns));
document.addEventListener("visibilitychange", () => document.hidden && keep(turns));
for (const text of SUGGESTIONS) {
  const button = element("button", { type: "button", textContent: text });
  button.addEventListener("click", () => {
    message.value = text;
    message.focus();
    send();
  });
  $("suggestions").append(element("li", {}, button));
}
for (const turn of restored()) add(turn);
drawNotes();
follow();
connection.look();
