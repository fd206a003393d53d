// Light, dark, or as the system is; kept across visits. early.js sets it before the first paint.

import { onDisk } from "./kept.js";

const KEPT = "drivetrain.theme";
const ICONS = { system: "◐", light: "○", dark: "●" };
const ORDER = ["system", "light", "dark"];

/** Make `button` go through the themes. */
export function themeButton(button) {
  const show = (theme) => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    button.textContent = ICONS[theme];
    const name = theme === "system" ? "as the system" : theme;
    button.setAttribute("aria-label", `Theme: ${name}`);
    button.title = `Theme: ${name}`;
  };
  let theme = onDisk.get(KEPT);
  if (!ORDER.includes(theme)) theme = "system";
  show(theme);
  button.addEventListener("click", () => {
    theme = ORDER[(ORDER.indexOf(theme) + 1) % ORDER.length];
    onDisk.set(KEPT, theme);
    show(theme);
  });
}
