// An answer's tokens coloured by how unlikely the model found them, with the alternatives on hover and focus.

import { element } from "./api.js";

const COLDEST = 0.1; // Nats: a token of 90 % and above has no colour.
const HOTTEST = 5; // Nats: below 0.7 % it has all of it.

/** Show the log-probabilities (OpenAI's `logprobs.content`) as tokens in `target`; appends what is new. */
export function renderTokens(target, logprobs, popover) {
  if (target.dataset.tokens === undefined) watch(target, popover);
  for (let at = target.childElementCount; at < logprobs.length; at++) {
    const token = logprobs[at];
    const shown = element("span", { className: "tok", textContent: spelled(token.token), tabIndex: at ? -1 : 0 });
    shown.style.setProperty("--s", heat(token.logprob).toFixed(3));
    shown.logprob = token;
    target.append(shown);
  }
  target.dataset.tokens = logprobs.length;
}

/** 0 for what the model took for granted, 1 for what surprised it. */
export function heat(logprob) {
  return Math.min(1, Math.max(0, (-logprob - COLDEST) / (HOTTEST - COLDEST)));
}

/** Perplexity of an answer: e to the mean of its negative log-probabilities. */
export function perplexity(logprobs) {
  return Math.exp(-logprobs.reduce((sum, token) => sum + token.logprob, 0) / logprobs.length);
}

/** What the colours mean, and the whole answer's perplexity. */
export function legend(logprobs) {
  const scale = element("span", { className: "legend" }, "expected", element("i"), "surprising");
  return [scale, element("span", { textContent: `perplexity ${perplexity(logprobs).toFixed(2)}` })];
}

function spelled(text) {
  return text === "\n" ? "↵\n" : text;
}

function watch(target, popover) {
  const hide = () => (popover.hidden = true);
  const show = (event) => event.target.logprob && open(popover, event.target);
  target.setAttribute("role", "group");
  target.setAttribute("aria-label", "Tokens with their probabilities; the arrow keys go through them");
  target.addEventListener("pointerover", show);
  target.addEventListener("pointerleave", hide);
  target.addEventListener("focusin", show);
  target.addEventListener("focusout", hide);
  target.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") hide();
    const next = step === 1 ? event.target.nextElementSibling : event.target.previousElementSibling;
    if (!step || !next) return;
    event.preventDefault();
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}

function open(popover, span) {
  const { token, logprob, top_logprobs: top = [] } = span.logprob;
  const others = top.some((other) => other.token === token) ? top : [...top, { token, logprob }];
  const rows = others.map((other) => {
    const bar = element("i");
    bar.style.width = `${(100 * Math.exp(other.logprob)).toFixed(1)}%`;
    const name = element("code", { textContent: JSON.stringify(other.token).slice(1, -1).replaceAll(" ", "␣") });
    const percent = element("span", { textContent: `${(100 * Math.exp(other.logprob)).toFixed(1)} %` });
    return element("div", { className: other.token === token ? "alt chosen" : "alt" }, name, element("div", {}, bar), percent);
  });
  popover.replaceChildren(element("p", { textContent: `log-probability ${logprob.toFixed(3)}` }), ...rows);
  popover.hidden = false;
  span.setAttribute("aria-describedby", popover.id);
  place(popover, span.getClientRects()[0] ?? span.getBoundingClientRect());
}

function place(popover, box) {
  const left = Math.min(Math.max(8, box.left), innerWidth - popover.offsetWidth - 8);
  const above = box.top - popover.offsetHeight - 8;
  popover.style.left = `${left}px`;
  popover.style.top = `${above > 60 ? above : box.bottom + 8}px`;
}
