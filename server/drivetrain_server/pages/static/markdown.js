// Markdown as elements. Text of the model only ever becomes text nodes, and links only http and https.

import { copyButton, element } from "./api.js";

const FENCE = /^ {0,3}(```+|~~~+)\s*([\w+#.-]*)/;
const HEADING = /^(#{1,6})\s+(.*)$/;
const RULE = /^ {0,3}([-*_])( *\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(\s+)(.*)$/;
const TASK = /^\[([ xX])\] /;
const QUOTE = /^ {0,3}> ?/;
const CELLS = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)+\|?\s*$/;
const DEEPEST = 16;
const SPANS = [
  [/\\([!-/:-@[-`{-~])/, (text) => text],
  [/``([^\n]{1,400}?)``(?!`)/, (text) => element("code", { textContent: text.trim() })],
  [/`([^`\n]{1,400})`/, (text) => element("code", { textContent: text })],
  [/\*\*\*([^*\n]{1,400})\*\*\*/, (text) => element("strong", {}, element("em", {}, ...inline(text)))],
  [/\*\*((?:[^*\n]|\*(?!\*)){1,400})\*\*/, (text) => element("strong", {}, ...inline(text))],
  [/(?<!\w)__([^_\n]{1,400})__(?!\w)/, (text) => element("strong", {}, ...inline(text))],
  [/\*([^*\s](?:[^*\n]{0,400}[^*\s])?)\*/, (text) => element("em", {}, ...inline(text))],
  [/(?<!\w)_([^_\s](?:[^_\n]{0,400}[^_\s])?)_(?!\w)/, (text) => element("em", {}, ...inline(text))],
  [/~~([^~\n]{1,400})~~/, (text) => element("s", {}, ...inline(text))],
  [/\[([^\]\n]{1,300})\]\((https?:\/\/[^\s()]{1,900}(?:\([^\s()]{0,99}\)[^\s()]{0,900})?)\)/, (text, href) => link(text, href)],
  [/(https?:\/\/[^\s<>()]{1,1000}[^\s<>().,;:!?])/, (text) => link(text, text)],
];
const INLINE = new RegExp(SPANS.map(([pattern]) => pattern.source).join("|"), "g");
const GROUPS = SPANS.map(([, made]) => made.length);

const link = (textContent, href) => element("a", { href, rel: "noopener noreferrer", target: "_blank", textContent });

/** Show `text` in `target`; blocks that are as they were keep their elements, so that a stream costs its end only. */
export function renderMarkdown(target, text, depth = 0) {
  const blocks = split(text);
  const known = target.blocks ?? [];
  let same = 0;
  while (same < blocks.length && known[same]?.source === blocks[same].source) same++;
  if (blocks[same]?.kind === "code" && known[same]?.kind === "code" && opening(known[same]) === opening(blocks[same])) {
    // A code block that grows stays the same element, with what is selected in it and how far it is scrolled.
    target.childNodes[same].querySelector("code").textContent = code(blocks[same].lines);
    same++;
  }
  while (target.childNodes.length > same) target.lastChild.remove();
  for (const block of blocks.slice(same)) target.append(rendered(block, depth));
  target.blocks = blocks;
}

function split(text) {
  const lines = text.split("\n");
  const blocks = [];
  for (let at = 0; at < lines.length; ) {
    if (!lines[at].trim()) {
      at++;
      continue;
    }
    const [kind, end] = block(lines, at);
    const own = lines.slice(at, end);
    blocks.push({ kind, lines: own, source: own.join("\n") });
    at = end;
  }
  return blocks;
}

/** The kind of the block that begins at a line, and the line after its end. */
function block(lines, at) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence) return ["code", fenceEnd(lines, at + 1, fence[1])];
  if (HEADING.test(line)) return ["heading", at + 1];
  if (RULE.test(line)) return ["rule", at + 1];
  if (QUOTE.test(line)) return ["quote", whileTrue(lines, at, (next) => QUOTE.test(next))];
  if (line.includes("|") && CELLS.test(lines[at + 1] ?? "")) return ["table", whileTrue(lines, at, (next) => next.includes("|"))];
  if (ITEM.test(line)) return ["list", listEnd(lines, at)];
  return ["paragraph", whileTrue(lines, at + 1, (next) => next.trim() && !begins(next))];
}

function whileTrue(lines, at, holds) {
  while (at < lines.length && holds(lines[at])) at++;
  return at;
}

function fenceEnd(lines, at, mark) {
  return Math.min(whileTrue(lines, at, (line) => !line.trimStart().startsWith(mark)) + 1, lines.length);
}

function begins(line) {
  return FENCE.test(line) || HEADING.test(line) || QUOTE.test(line) || ITEM.test(line) || RULE.test(line);
}

const ordered = (item) => /\d/.test(item[2]);

/** Lists end before a line without indent, two empty ones, or an item of the other kind; code within them runs on. */
function listEnd(lines, at) {
  const first = ITEM.exec(lines[at]);
  while (at < lines.length) {
    const line = lines[at];
    const item = ITEM.exec(line);
    if (item && item[1].length <= first[1].length && ordered(item) !== ordered(first)) return at;
    if (!line.trim() && !/^\s+\S/.test(lines[at + 1] ?? "") && !ITEM.test(lines[at + 1] ?? "")) return at;
    if (line.trim() && !item && !/^\s/.test(line)) return at;
    const fence = FENCE.exec((item ? item[4] : line).trimStart());
    at = fence ? fenceEnd(lines, at + 1, fence[1]) : at + 1;
  }
  return at;
}

function rendered({ kind, lines }, depth) {
  switch (kind) {
    case "code":
      return codeBox(lines);
    case "heading": {
      const [, marks, text] = HEADING.exec(lines[0]);
      return element(`h${Math.min(marks.length + 1, 6)}`, { dir: "auto" }, ...inline(text));
    }
    case "rule":
      return element("hr");
    case "quote":
      return nested(element("blockquote", { dir: "auto" }), lines.map((line) => line.replace(QUOTE, "")), depth);
    case "table":
      return table(lines);
    case "list":
      return list(lines, depth);
    default:
      return element("p", { dir: "auto" }, ...lines.flatMap((line, n) => (n ? [element("br"), ...inline(line)] : inline(line))));
  }
}

function nested(target, lines, depth) {
  const text = lines.join("\n");
  if (depth < DEEPEST) renderMarkdown(target, text, depth + 1);
  else target.textContent = text;
  return target;
}

const opening = ({ lines }) => lines[0];

function codeBox(lines) {
  const shown = element("code", { textContent: code(lines) });
  const language = FENCE.exec(lines[0])[2];
  const head = element("div", { className: "code-head" }, element("span", { textContent: language || "code" }),
    copyButton(() => shown.textContent));
  return element("div", { className: "code-box", dir: "ltr" }, head, element("pre", { tabIndex: 0 }, shown));
}

/** What is between the fences, less the indent of the first. */
function code(lines) {
  const fence = FENCE.exec(lines[0])[1];
  const indent = lines[0].search(/\S/);
  const closed = lines.length > 1 && lines.at(-1).trimStart().startsWith(fence);
  return lines.slice(1, closed ? -1 : undefined).map((line) => dedented(line, indent)).join("\n");
}

const dedented = (line, most) => line.slice(Math.min(most, line.search(/\S|$/)));

function table(lines) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
  const sides = cells(lines[1]).map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "end") : ""));
  const row = (tag, line) => element("tr", {}, ...cells(line).map((cell, n) => {
    return element(tag, { dir: "auto", className: sides[n] ?? "" }, ...inline(cell));
  }));
  const head = element("thead", {}, row("th", lines[0]));
  const body = element("tbody", {}, ...lines.slice(2).map((line) => row("td", line)));
  return element("div", { className: "table", tabIndex: 0 }, element("table", {}, head, body));
}

function list(lines, depth) {
  const first = ITEM.exec(lines[0]);
  const items = [];
  let width = 0;
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (item && (!items.length || item[1].length <= first[1].length)) {
      width = line.length - item[4].length;
      items.push([item[4]]);
    } else {
      items.at(-1).push(dedented(line, width));
    }
  }
  const made = element(ordered(first) ? "ol" : "ul", { dir: "auto" }, ...items.map((own) => listItem(own, depth)));
  if (made.tagName === "OL") made.start = Number.parseInt(first[2], 10);
  return made;
}

function listItem([head, ...rest], depth) {
  const task = TASK.exec(head);
  const shown = nested(element("li"), [task ? head.slice(task[0].length) : head, ...rest], depth);
  if (task) {
    shown.className = "task";
    shown.prepend(element("span", { role: "img", ariaLabel: task[1] === " " ? "to do" : "done", textContent: task[1] === " " ? "☐ " : "☑ " }));
  }
  return shown;
}

/** Inline Markdown as nodes. */
export function inline(text) {
  const nodes = [];
  let at = 0;
  for (const found of text.matchAll(INLINE)) {
    if (found.index > at) nodes.push(text.slice(at, found.index));
    const [whole, ...groups] = found;
    let group = 0;
    let kind = 0;
    while (groups[group] === undefined) group += GROUPS[kind++];
    nodes.push(SPANS[kind][1](...groups.slice(group, group + GROUPS[kind])));
    at = found.index + whole.length;
  }
  if (at < text.length) nodes.push(text.slice(at));
  return nodes;
}
