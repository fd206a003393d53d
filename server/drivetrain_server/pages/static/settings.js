// What each request is sent with. Sampling is kept across visits; the key only in the tab.

import { apiKey } from "./api.js";
import { onDisk } from "./kept.js";

const KEPT = "drivetrain.settings";
const COVERS = matchMedia("(max-width: 56rem)"); // Where the panel lies over the page, as in style.css.
const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
  "seed", "max_tokens"];

/** The settings panel and what it says; `onKey` hears of another key. */
export class Settings {
  constructor(panel, opener, onKey) {
    this.panel = panel;
    this.opener = opener;
    this.form = panel.querySelector("form");
    this.onKey = onKey;
    this.restore();
    opener.addEventListener("click", () => this.toggle(panel.hidden));
    panel.querySelector("#settings-close").addEventListener("click", () => this.toggle(false));
    panel.querySelector("#settings-reset").addEventListener("click", () => {
      const key = this.form.elements.key.value;
      this.form.reset();
      this.form.elements.key.value = key;
      this.keep();
    });
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.form.addEventListener("change", () => this.keep());
    panel.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      this.toggle(false);
    });
    COVERS.addEventListener("change", () => this.cover());
  }

  toggle(open) {
    this.panel.hidden = !open;
    this.opener.setAttribute("aria-expanded", String(open));
    this.cover();
    (open ? this.form.elements.key : this.opener).focus();
  }

  /** Where the panel lies over the page, the keyboard stays within it. */
  cover() {
    const covered = !this.panel.hidden && COVERS.matches;
    for (const under of document.querySelectorAll(".bar, main")) under.inert = covered;
  }

  /** Whether every field holds what it may; opens the panel at the first that does not. */
  valid() {
    if (this.form.checkValidity()) return true;
    this.toggle(true);
    return this.form.reportValidity();
  }

  /** Show the key as it is now. */
  showKey() {
    this.form.elements.key.value = apiKey.get();
  }

  get system() {
    return this.form.elements.system.value.trim();
  }

  /** The fields of a request; what is empty is left to the server. */
  fields() {
    const fields = {};
    for (const name of NUMBERS) {
      const input = this.form.elements[name];
      if (input.value !== "") fields[name] = Number(input.value);
    }
    if (this.form.elements.stop.value) fields.stop = [this.form.elements.stop.value];
    if (this.form.elements.logprobs.checked) {
      fields.logprobs = true;
      fields.top_logprobs = Number(this.form.elements.top_logprobs.value) || 0;
    }
    return fields;
  }

  keep() {
    const kept = {};
    for (const input of this.form.elements) {
      if (input.name && input.name !== "key") kept[input.name] = input.type === "checkbox" ? input.checked : input.value;
    }
    onDisk.set(KEPT, kept);
    const key = this.form.elements.key.value.trim();
    if (key === apiKey.get()) return;
    apiKey.set(key);
    this.onKey();
  }

  restore() {
    this.showKey();
    for (const [name, value] of Object.entries(onDisk.get(KEPT) ?? {})) {
      const input = this.form.elements[name];
      if (!input || name === "key") continue;
      if (input.type === "checkbox") input.checked = value === true;
      else input.value = String(value);
    }
  }
}
