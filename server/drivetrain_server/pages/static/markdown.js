// Markdown as elements. Text of the model only ever becomes text nodes, and links only http and https.

import { element } from "./api.js";

const FENCE = /^ {0,3}(```+|~~~+)\s*([\w+#.-]*)/;
const HEADING = /^(#{1,6})\s+(.*)$/;
const RULE = /^ {0,3}([-*_])( *\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const QUOTE = /^ {0,3}> ?/;
const MOST_QUOTES = 16;
const CELLS = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)+\|?\s*$/;
const INLINE =
  /`([^`\n]{1,400})`|\*\*([^*\n]{1,400})\*\*|__([^_\n]{1,400})__|\*([^*\s][^*\n]{0,400})\*|\[([^\]\n]{1,300})\]\((https?:\/\/[^\s)]{1,1000})\)|(https?:\/\/[^\s<>()]{1,1000}[^\s<>().,;:!?])/g;

/** Show `text` in `target`; blocks that are as they were keep their elements, so that a stream costs its end only. */
export function renderMarkdown(target, text, depth = 0) {
  const blocks = split(text);
  const known = target.blocks ?? [];
  let same = 0;
  while (same < blocks.length && same < known.length && known[same] === blocks[same].source) same++;
  while (target.childNodes.length > same) target.lastChild.remove();
  for (const block of blocks.slice(same)) target.append(rendered(block, depth));
  target.blocks = blocks.map((block) => block.source);
}

function split(text) {
  const lines = text.split("\n");
  const blocks = [];
  for (let at = 0; at < lines.length; ) {
    const begin = at;
    const line = lines[at];
    let kind = "paragraph";
    if (!line.trim()) {
      at++;
      continue;
    }
    const fence = FENCE.exec(line);
    if (fence) {
      kind = "code";
      at++;
      while (at < lines.length && !lines[at].trimStart().startsWith(fence[1])) at++;
      at = Math.min(at + 1, lines.length);
    } else if (HEADING.test(line)) {
      kind = "heading";
      at++;
    } else if (RULE.test(line)) {
      kind = "rule";
      at++;
    } else if (QUOTE.test(line)) {
      kind = "quote";
      while (at < lines.length && QUOTE.test(lines[at])) at++;
    } else if (line.includes("|") && CELLS.test(lines[at + 1] ?? "")) {
      kind = "table";
      while (at < lines.length && lines[at].includes("|")) at++;
    } else if (ITEM.test(line)) {
      kind = "list";
      at++;
      while (at < lines.length && (ITEM.test(lines[at]) || /^\s+\S/.test(lines[at]) || loose(lines, at))) at++;
    } else {
      at++;
      while (at < lines.length && lines[at].trim() && !begins(lines[at])) at++;
    }
    const own = lines.slice(begin, at);
    blocks.push({ kind, lines: own, source: own.join("\n") });
  }
  return blocks;
}

function begins(line) {
  return FENCE.test(line) || HEADING.test(line) || QUOTE.test(line) || ITEM.test(line) || RULE.test(line);
}

function loose(lines, at) {
  return !lines[at].trim() && ITEM.test(lines[at + 1] ?? "");
}

function rendered({ kind, lines }, depth) {
  switch (kind) {
    case "code":
      return element("pre", {}, element("code", { textContent: code(lines) }));
    case "heading": {
      const [, marks, text] = HEADING.exec(lines[0]);
      return element(`h${Math.min(marks.length, 4)}`, {}, ...inline(text));
    }
    case "rule":
      return element("hr");
    case "quote": {
      const quote = element("blockquote");
      const inner = lines.map((line) => line.replace(QUOTE, "")).join("\n");
      if (depth < MOST_QUOTES) renderMarkdown(quote, inner, depth + 1);
      else quote.textContent = inner;
      return quote;
    }
    case "table":
      return table(lines);
    case "list":
      return list(lines);
    default:
      return element("p", {}, ...lines.flatMap((line, n) => (n ? [element("br"), ...inline(line)] : inline(line))));
  }
}

function code(lines) {
  const fence = FENCE.exec(lines[0])[1];
  const closed = lines.length > 1 && lines.at(-1).trimStart().startsWith(fence);
  return lines.slice(1, closed ? -1 : undefined).join("\n");
}

function table(lines) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
  const row = (tag, line) => element("tr", {}, ...cells(line).map((cell) => element(tag, {}, ...inline(cell))));
  const head = element("thead", {}, row("th", lines[0]));
  return element("table", {}, head, element("tbody", {}, ...lines.slice(2).map((line) => row("td", line))));
}

function list(lines) {
  const stack = [];
  let root = null;
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (!item) {
      const last = stack.at(-1)?.list.lastElementChild;
      if (last && line.trim()) last.append(" ", ...inline(line.trim()));
      continue;
    }
    const [, indent, mark, text] = item;
    while (stack.length > 1 && stack.at(-1).indent > indent.length) stack.pop();
    if (!stack.length || (stack.at(-1).indent < indent.length && stack.length < 8)) {
      const made = element(/\d/.test(mark) ? "ol" : "ul");
      if (made.tagName === "OL") made.start = Number.parseInt(mark, 10);
      if (stack.length) stack.at(-1).list.lastElementChild.append(made);
      else root = made;
      stack.push({ indent: indent.length, list: made });
    }
    stack.at(-1).list.append(element("li", {}, ...inline(text)));
  }
  return root;
}

/** Inline Markdown as nodes. */
export function inline(text) {
  const nodes = [];
  let at = 0;
  for (const found of text.matchAll(INLINE)) {
    if (found.index > at) nodes.push(text.slice(at, found.index));
    const [whole, literal, strong, strong2, slanted, label, address, bare] = found;
    if (literal !== undefined) nodes.push(element("code", { textContent: literal }));
    else if (strong ?? strong2) nodes.push(element("strong", { textContent: strong ?? strong2 }));
    else if (slanted) nodes.push(element("em", { textContent: slanted }));
    else nodes.push(element("a", { href: address ?? bare, rel: "noopener noreferrer", target: "_blank", textContent: label ?? bare }));
    at = found.index + whole.length;
  }
  if (at < text.length) nodes.push(text.slice(at));
  return nodes;
}
