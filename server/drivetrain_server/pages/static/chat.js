// The chat page: a conversation, its stream, and what can be done with it.

import { ask, element, events } from "./api.js";
import { renderMarkdown } from "./markdown.js";
import { Meter, Timing, milliseconds } from "./meter.js";
import { Settings } from "./settings.js";
import { themeButton } from "./theme.js";
import { legend, renderTokens } from "./tokens.js";

const SUGGESTIONS = [
  "Explain in two sentences why the sky is blue.",
  "List three fruits and their colors.",
  "Write a haiku about trains.",
  "Turn “the cat sat on the mat” into a headline.",
];
const $ = (id) => document.getElementById(id);
const conversation = []; // {role, content, reasoning, logprobs, timing, usage, finish, error, calls}
let model = null;
let running = null; // The AbortController of the answer under way.
let asTokens = false;

themeButton($("theme"));
const meter = new Meter($("strip"));
const settings = new Settings($("settings"), $("settings-button"), () => {
  if (!model) connect();
});

async function connect() {
  try {
    const [listed, ready] = await Promise.all([ask("v1/models"), fetch("ready")]);
    const { id, max_model_len: limit } = (await listed.json()).data[0];
    model = id;
    $("welcome-model").textContent = id;
    const facts = [`${limit.toLocaleString()} tokens of context`, (await ready.json()).status];
    $("welcome-facts").textContent = facts.join(" · ");
  } catch (error) {
    const [title, facts, again] = await missing(error);
    $("welcome-model").textContent = title;
    $("welcome-facts").textContent = facts;
    if (again) setTimeout(connect, again);
  }
}

/** Why there is no model: a title, facts, and when to ask again in milliseconds (0 is never). */
async function missing(error) {
  if (error.status === 401) return ["A key is needed", "Enter the API key under Settings.", 0];
  if (error.status !== 503) return ["No answer", error.message, 3000];
  const { status, phases, reason } = await (await fetch("ready")).json();
  if (status === "failed") return ["The engine has failed", reason ?? error.message, 3000];
  if (status !== "starting") return ["The server is ending", error.message, 3000];
  const now = phases.findLast((phase) => !phase.finished);
  const share = now?.total ? `, ${Math.floor((100 * now.done) / now.total)} %` : "";
  return ["The model is being loaded", now ? `${now.name}${share}` : "", 500];
}

function showTurn(turn) {
  turn.body = element("div", { className: turn.role === "user" ? "body" : "body prose" });
  turn.note = element("div", { className: "meta" });
  turn.thought = element("div");
  turn.element = element("article", { className: `turn ${turn.role}` }, turn.thought, turn.body, turn.note);
  turn.element.setAttribute("aria-label", turn.role === "user" ? "You" : "Answer");
  $("turns").append(turn.element);
  $("welcome").hidden = true;
  drawTurn(turn);
}

function drawTurn(turn) {
  if (turn.role === "user") {
    turn.body.textContent = turn.content;
    return;
  }
  drawReasoning(turn);
  const view = asTokens && turn.logprobs.length ? "tokens" : "text";
  if (turn.view !== view) {
    const fresh = element("div", { className: view === "tokens" ? "body heat" : "body prose" });
    turn.body.replaceWith(fresh);
    Object.assign(turn, { view, body: fresh });
  }
  if (view === "tokens") renderTokens(turn.body, turn.logprobs, $("popover"));
  else renderMarkdown(turn.body, turn.content);
}

function drawReasoning(turn) {
  if (!turn.reasoning) return;
  if (!turn.thought.firstChild) {
    const box = element("details", { className: "thinking" }, element("summary", { textContent: "Thinking" }), element("div"));
    box.open = true;
    turn.thought.append(box);
  }
  turn.thought.querySelector("div").textContent = turn.reasoning;
}

function drawNote(turn) {
  const { ttft_ms: ttft, tokens_per_s: rate } = turn.timing;
  const parts = [];
  if (turn.error) parts.push(element("div", { className: "error", role: "alert", textContent: turn.error }));
  if (turn.usage) parts.push(element("span", { textContent: `${turn.usage.prompt_tokens} + ${turn.usage.completion_tokens} tokens` }));
  if (ttft !== null) parts.push(element("span", { textContent: `first after ${milliseconds(ttft)}` }));
  if (rate) parts.push(element("span", { textContent: `${rate.toFixed(1)} tok/s` }));
  if (!turn.content && !turn.error && turn.finish !== "stopped") {
    parts.push(element("span", { textContent: "an empty answer" }));
  }
  if (turn.finish && turn.finish !== "stop") {
    parts.push(element("span", { textContent: turn.finish === "length" ? "cut at the limit of tokens" : turn.finish }));
  }
  if (asTokens && turn.logprobs.length) parts.push(...legend(turn.logprobs));
  if (turn.content) {
    const copy = element("button", { type: "button", className: "link", textContent: "Copy" });
    copy.addEventListener("click", () => copyText(copy, turn.content));
    parts.push(copy);
  }
  if (turn === conversation.at(-1)) {
    const again = element("button", { type: "button", className: "link", textContent: "Try again" });
    again.addEventListener("click", retry);
    parts.push(again);
  }
  turn.note.replaceChildren(...parts);
}

async function copyText(button, text) {
  const said = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Copying is not allowed here";
  }
  setTimeout(() => (button.textContent = said), 1500);
}

/** What the model is asked to continue: the last message, and those before it that were answered. */
function messages() {
  const asked = conversation.filter((turn, n) => turn.content && (turn.role !== "user" || answered(n)));
  const said = asked.map(({ role, content }) => ({ role, content }));
  return settings.system ? [{ role: "system", content: settings.system }, ...said] : said;
}

function answered(n) {
  const next = conversation[n + 1];
  return next === undefined || Boolean(next.content);
}

async function answer() {
  const body = { model, messages: messages(), stream: true, stream_options: { include_usage: true }, ...settings.fields() };
  const timing = new Timing();
  const turn = { role: "assistant", content: "", reasoning: "", logprobs: [], timing: timing.summary() };
  conversation.push(turn);
  showTurn(turn);
  busy(new AbortController());
  meter.begin(timing);
  const drawing = new Drawing(() => {
    drawTurn(turn);
    meter.show();
    follow();
  });
  try {
    const response = await ask("v1/chat/completions", { body, signal: running.signal });
    for await (const event of events(response)) take(turn, event, timing) && drawing.soon();
  } catch (error) {
    if (error.name === "AbortError") turn.finish = "stopped";
    else turn.error = error.message;
  }
  try {
    drawing.now();
    if (turn.usage) timing.tokens = turn.usage.completion_tokens;
    turn.timing = timing.summary();
    meter.end();
  } finally {
    busy(null);
  }
  drawTurn(turn);
  turn.body.hidden = !turn.content;
  drawNote(turn);
  follow();
  $("status").textContent = turn.error ? "The answer failed" : "The answer is complete";
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
  $("send").hidden = running !== null;
  $("stop").hidden = running === null;
  $("thread").setAttribute("aria-busy", String(running !== null));
}

let pinned = true;
$("thread").addEventListener("scroll", () => {
  const { scrollTop, scrollHeight, clientHeight } = $("thread");
  pinned = scrollHeight - scrollTop - clientHeight < 80;
});

function follow() {
  if (pinned) $("thread").scrollTop = $("thread").scrollHeight;
}

function send(text) {
  if (running || !text.trim()) return;
  if (!model) {
    $("status").textContent = "The model is not there yet";
    return;
  }
  conversation.at(-1)?.note.querySelectorAll("button:last-child").forEach((button) => button.remove());
  conversation.push({ role: "user", content: text.trim() });
  showTurn(conversation.at(-1));
  pinned = true;
  answer();
}

function retry() {
  if (running || conversation.at(-1)?.role !== "assistant") return;
  conversation.pop().element.remove();
  answer();
}

function forget() {
  running?.abort();
  conversation.length = 0;
  $("turns").replaceChildren();
  $("welcome").hidden = false;
  $("message").focus();
}

function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

function exported() {
  const turns = conversation.map(({ role, content, reasoning, logprobs, timing, usage, finish, error }) => ({
    role, content, ...(role === "assistant" ? { reasoning, finish, error, usage, timing, logprobs } : {}),
  }));
  return { model, created: new Date().toISOString(), system: settings.system || null, settings: settings.fields(), messages: turns };
}

const message = $("message");
const grow = () => {
  message.style.height = "auto";
  message.style.height = `${message.scrollHeight}px`;
};
message.addEventListener("input", grow);
message.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("composer").requestSubmit();
});
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running || !model) return;
  send(message.value);
  message.value = "";
  grow();
});
$("stop").addEventListener("click", () => {
  running?.abort();
  message.focus();
});
document.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
$("new-chat").addEventListener("click", forget);
$("export-json").addEventListener("click", () => {
  download("conversation.json", "application/json", JSON.stringify(exported(), null, 2));
});
$("export-text").addEventListener("click", () => {
  const name = { user: "You", assistant: model };
  const parts = conversation.map(({ role, content }) => `**${name[role]}**\n\n${content}`);
  download("conversation.md", "text/markdown", `${parts.join("\n\n---\n\n")}\n`);
});
$("tokens-view").addEventListener("click", () => {
  asTokens = !asTokens;
  $("tokens-view").setAttribute("aria-pressed", String(asTokens));
  for (const turn of conversation) {
    drawTurn(turn);
    if (turn.role === "assistant" && turn.finish) drawNote(turn);
  }
  follow();
});
for (const text of SUGGESTIONS) {
  const button = element("button", { type: "button", textContent: text });
  button.addEventListener("click", () => send(text));
  $("suggestions").append(element("li", {}, button));
}
connect();
