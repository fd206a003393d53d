// What was said: kept in the tab until it closes, and exported; sent nowhere but in requests for answers.

import { element } from "./api.js";
import { inTab } from "./kept.js";

const KEPT = "drivetrain.conversation";
/** How an answer ended that was still coming when its page was left. */
export const CUT = "cut by a reload of the page";
const ROLES = ["user", "assistant"];

/** A turn of the user. */
export const asked = (content) => ({ role: "user", content });

/** A turn of the model, to be filled by its stream. */
export const begun = (timing) => ({
  role: "assistant", content: "", reasoning: "", logprobs: [], timing, usage: null, finish: null, error: null,
});

/** Keep the conversation over a reload. Says what had to be left out: "" (nothing), "probabilities" or "all". */
export function keep(turns) {
  if (!turns.length) {
    inTab.remove(KEPT);
    return "";
  }
  if (inTab.set(KEPT, turns)) return "";
  if (inTab.set(KEPT, turns.map((turn) => (turn.logprobs ? { ...turn, logprobs: [] } : turn)))) return "probabilities";
  inTab.remove(KEPT);
  return "all";
}

/** The conversation as it was kept; an answer that a reload cut says so. */
export function restored() {
  const kept = inTab.get(KEPT);
  if (!Array.isArray(kept) || !kept.every((turn) => ROLES.includes(turn?.role) && typeof turn.content === "string")) return [];
  return kept.map((turn) => {
    if (turn.role === "user") return asked(turn.content);
    const whole = { ...begun({ ttft_ms: null, itl_ms: null, tokens_per_s: null, tokens: 0 }), ...turn };
    return whole.finish || whole.error ? whole : { ...whole, finish: CUT };
  });
}

/** What the model is asked to continue: the last message, and those before it that were answered. */
export function messages(turns, system) {
  const answered = (n) => n + 1 === turns.length || Boolean(turns[n + 1].content);
  const said = turns.filter((turn, n) => turn.content && (turn.role !== "user" || answered(n)));
  return [...(system ? [{ role: "system", content: system }] : []), ...said.map(({ role, content }) => ({ role, content }))];
}

/** Save the conversation as a file, with all that was measured. */
export function exportJson(turns, head) {
  const whole = { ...head, created: new Date().toISOString(), messages: turns };
  download("conversation.json", "application/json", JSON.stringify(whole, null, 2));
}

/** Save the conversation as a file to read. */
export function exportMarkdown(turns, model) {
  const name = { user: "You", assistant: model };
  const parts = turns.map(({ role, content }) => `**${name[role]}**\n\n${content}`);
  download("conversation.md", "text/markdown", `${parts.join("\n\n---\n\n")}\n`);
}

function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
