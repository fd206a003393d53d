// What each request is sent with. Sampling is kept across visits; the key only in the tab.

import { apiKey } from "./api.js";

const KEPT = "drivetrain.settings";
const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
  "seed", "max_tokens"];

/** The settings panel and what it says. */
export class Settings {
  constructor(panel, opener, onChange) {
    this.panel = panel;
    this.opener = opener;
    this.form = panel.querySelector("form");
    this.onChange = onChange;
    this.restore();
    opener.addEventListener("click", () => this.toggle(panel.hidden));
    panel.querySelector("#settings-close").addEventListener("click", () => this.toggle(false));
    panel.querySelector("#settings-reset").addEventListener("click", () => {
      this.form.reset();
      this.keep();
    });
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.form.addEventListener("change", () => this.keep());
    panel.addEventListener("keydown", (event) => event.key === "Escape" && this.toggle(false));
  }

  toggle(open) {
    this.panel.hidden = !open;
    this.opener.setAttribute("aria-expanded", String(open));
    (open ? this.form.elements.key : this.opener).focus();
  }

  get system() {
    return this.form.elements.system.value.trim();
  }

  /** The fields of a request; what is empty is left to the server. */
  fields() {
    const fields = {};
    for (const name of NUMBERS) {
      const input = this.form.elements[name];
      if (input.value !== "" && input.checkValidity()) fields[name] = Number(input.value);
    }
    if (this.form.elements.stop.value) fields.stop = [this.form.elements.stop.value];
    if (this.form.elements.logprobs.checked) {
      fields.logprobs = true;
      fields.top_logprobs = Number(this.form.elements.top_logprobs.value) || 0;
    }
    return fields;
  }

  keep() {
    apiKey.set(this.form.elements.key.value.trim());
    const kept = {};
    for (const input of this.form.elements) {
      if (input.name && input.name !== "key") kept[input.name] = input.type === "checkbox" ? input.checked : input.value;
    }
    localStorage.setItem(KEPT, JSON.stringify(kept));
    this.onChange();
  }

  restore() {
    this.form.elements.key.value = apiKey.get();
    let kept = {};
    try {
      kept = JSON.parse(localStorage.getItem(KEPT)) ?? {};
    } catch {
      localStorage.removeItem(KEPT);
    }
    for (const [name, value] of Object.entries(kept)) {
      const input = this.form.elements[name];
      if (!input || name === "key") continue;
      if (input.type === "checkbox") input.checked = value === true;
      else input.value = String(value);
    }
  }
}
