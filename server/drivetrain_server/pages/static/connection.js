// Whether the server is there, which model it serves, and what stands in the way.

import { ask } from "./api.js";

const AGAIN_MS = 3000;
const LOADING_MS = 500;

/** Looks for the model until it is there; `onChange` hears of every look. */
export class Connection {
  constructor(onChange) {
    this.onChange = onChange;
    this.timer = 0;
    this.looks = 0;
    this.set({ model: null, title: "Connecting…", facts: "", wantsKey: false });
  }

  set(found) {
    Object.assign(this, found);
  }

  /** What stands in the way, in one line. */
  get trouble() {
    return [this.title, this.facts].filter(Boolean).join(": ");
  }

  async look() {
    clearTimeout(this.timer);
    const look = ++this.looks;
    const { again, ...found } = await seen();
    if (look !== this.looks) return;
    this.set(found);
    if (again) this.timer = setTimeout(() => this.look(), again);
    this.onChange(this);
  }
}

async function seen() {
  try {
    const [listed, ready] = await Promise.all([ask("v1/models"), readiness()]);
    const { id, max_model_len: limit } = (await listed.json()).data[0];
    const facts = [`${limit.toLocaleString()} tokens of context`, ready.status].join(" · ");
    return { model: id, title: id, facts, wantsKey: false, again: 0 };
  } catch (error) {
    const [title, facts, again] = await missing(error).catch((other) => ["No answer", other.message, AGAIN_MS]);
    return { model: null, title, facts, wantsKey: error.status === 401, again };
  }
}

/** Why there is no model: a title, facts, and when to look again in milliseconds (0 is never). */
async function missing(error) {
  if (error.status === 401) return ["A key is needed", error.message, 0];
  if (error.status !== 503) return ["No answer", error.message, AGAIN_MS];
  const { status, phases, reason } = await readiness();
  if (status === "failed") return ["The engine has failed", reason ?? error.message, AGAIN_MS];
  if (status !== "starting") return ["The server is ending", error.message, AGAIN_MS];
  const now = phases.findLast((phase) => !phase.finished);
  const share = now?.total ? `, ${Math.floor((100 * now.done) / now.total)} %` : "";
  return ["The model is being loaded", now ? `${now.name}${share}` : "", LOADING_MS];
}

/** What /ready says; it says as much where it is not. */
async function readiness() {
  return (await ask("ready", { accepted: [503] })).json();
}
