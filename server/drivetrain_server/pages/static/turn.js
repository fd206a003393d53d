// A turn of the conversation on the page.

import { copyButton, element } from "./api.js";
import { renderMarkdown } from "./markdown.js";
import { milliseconds } from "./meter.js";
import { legend, renderTokens } from "./tokens.js";

const ENDS = { length: "cut at the limit of tokens", content_filter: "ended by the server's filter" };

/** Shows `turn` (conversation.js) as an element; the turn itself stays plain data. */
export class TurnView {
  constructor(turn, popover) {
    this.turn = turn;
    this.popover = popover;
    this.body = element("div", { className: turn.role === "user" ? "body" : "body prose", dir: "auto" });
    this.note = element("div", { className: "meta" });
    this.thought = element("div");
    this.element = element("article", { className: `turn ${turn.role}` }, this.thought, this.body, this.note);
    this.element.setAttribute("aria-label", turn.role === "user" ? "You" : "Answer");
  }

  /** Draw what the turn says, as text or as coloured tokens. */
  draw(asTokens) {
    const { turn } = this;
    if (turn.role === "user") {
      this.body.textContent = turn.content;
      return;
    }
    this.drawReasoning();
    const view = asTokens && turn.logprobs.length ? "tokens" : "text";
    if (this.view !== view) {
      const fresh = element("div", { className: view === "tokens" ? "body heat" : "body prose", dir: "auto" });
      this.body.replaceWith(fresh);
      Object.assign(this, { view, body: fresh });
    }
    if (view === "tokens") renderTokens(this.body, turn.logprobs, this.popover);
    else renderMarkdown(this.body, turn.content);
  }

  drawReasoning() {
    if (!this.turn.reasoning) return;
    if (!this.thought.firstChild) {
      const said = element("div", { dir: "auto" });
      const box = element("details", { className: "thinking", open: true }, element("summary", { textContent: "Thinking" }), said);
      this.thought.append(box);
    }
    this.thought.querySelector("div").textContent = this.turn.reasoning;
  }

  /** Draw what is known of a finished answer; `retry`, where given, is offered. */
  drawNote(asTokens, retry) {
    const { turn } = this;
    this.body.hidden = !turn.content;
    const { ttft_ms: ttft, tokens_per_s: rate } = turn.timing;
    const parts = [];
    const say = (text) => parts.push(element("span", { textContent: text }));
    if (turn.error) parts.push(element("div", { className: "error", textContent: turn.error }));
    if (turn.usage) say(`${turn.usage.prompt_tokens} + ${turn.usage.completion_tokens} tokens`);
    if (ttft !== null) say(`first after ${milliseconds(ttft)}`);
    if (rate) say(`${rate.toFixed(1)} tok/s`);
    if (!turn.content && ["stop", "length"].includes(turn.finish)) say("an empty answer");
    if (turn.finish && turn.finish !== "stop") say(ENDS[turn.finish] ?? turn.finish);
    if (asTokens && turn.logprobs.length) parts.push(...legend(turn.logprobs));
    if (turn.content) parts.push(copyButton(() => turn.content));
    if (retry) {
      const again = element("button", { type: "button", className: "link", textContent: "Try again" });
      again.addEventListener("click", retry);
      parts.push(again);
    }
    this.note.replaceChildren(...parts);
  }
}
