// Asks for the API key where the server wants one.

import { apiKey, element } from "./api.js";

let dialog = null;

/** Open the dialog; `why` is the server's own message. Resolves to whether a key was given. */
export function askForKey(why) {
  dialog ??= built();
  dialog.querySelector("#key-why").textContent = why;
  const field = dialog.querySelector("input");
  field.value = apiKey.get();
  dialog.returnValue = "";
  dialog.showModal();
  field.select();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "given"), { once: true });
  });
}

function built() {
  const field = element("input", { type: "password", name: "key", autocomplete: "off", spellcheck: false, required: true });
  field.setAttribute("aria-describedby", "key-why");
  const cancel = element("button", { type: "button", className: "quiet", textContent: "Cancel" });
  const use = element("button", { type: "submit", className: "primary", textContent: "Use it" });
  const form = element("form", { autocomplete: "off" },
    element("h2", { id: "key-title", textContent: "A key is needed" }),
    element("p", { id: "key-why", className: "muted" }),
    element("label", {}, "API key ", field),
    element("p", { className: "muted", textContent: "Kept in this tab only, gone when it closes." }),
    element("div", { className: "row" }, cancel, use));
  const made = element("dialog", { className: "key" }, form);
  made.setAttribute("aria-labelledby", "key-title");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    apiKey.set(field.value.trim());
    made.close("given");
  });
  cancel.addEventListener("click", () => made.close());
  made.addEventListener("keydown", (event) => event.stopPropagation());
  document.body.append(made);
  return made;
}
