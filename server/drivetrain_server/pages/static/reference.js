// The API reference, drawn from the server's own OpenAPI document.

import { ask, copyButton, element } from "./api.js";
import { askForKey } from "./key.js";
import { inline } from "./markdown.js";
import { themeButton } from "./theme.js";

const DEEPEST = 6;
const AGAIN_MS = 3000;
const BESIDE = matchMedia("(min-width: 56.01rem)"); // Where the routes stand beside the text, as in style.css.
const $ = (id) => document.getElementById(id);
let schemas = {};

themeButton($("theme"));

const resolved = (schema) => (schema?.$ref ? { ...schemas[schema.$ref.split("/").at(-1)], $ref: schema.$ref } : schema ?? {});

/** A schema's type in a few words. */
function kind(schema, depth = 0) {
  const own = resolved(schema);
  const either = (own.anyOf ?? own.oneOf)?.filter((option) => option.type !== "null");
  if (either) return depth > 2 ? "…" : [...new Set(either.map((option) => kind(option, depth + 1)))].join(" or ");
  if (own.const !== undefined) return JSON.stringify(own.const);
  if (own.enum) return own.enum.filter((value) => value !== null).map((value) => JSON.stringify(value)).join(" or ");
  if (own.type === "array") return `list of ${kind(own.items, depth + 1)}`;
  if (Array.isArray(own.type)) return own.type.filter((name) => name !== "null").join(" or ");
  return own.$ref ? own.$ref.split("/").at(-1) : own.type ?? "any";
}

/** A schema's bounds and default in words. */
function limits(schema) {
  const options = [schema, ...(schema.anyOf ?? [])].map(resolved);
  const words = [];
  const bound = (name) => options.find((option) => option[name] !== undefined)?.[name];
  const add = (name, said) => bound(name) !== undefined && words.push(`${said} ${bound(name)}`);
  const count = (least, most, unit) => {
    const [low, high] = [bound(least), bound(most)];
    if (low !== undefined && high !== undefined) words.push(`${low} to ${high} ${unit}`);
    else if (low ?? high) words.push(`at ${low === undefined ? "most" : "least"} ${low ?? high} ${unit}`);
  };
  add("minimum", "from");
  add("exclusiveMinimum", "above");
  add("maximum", "to");
  add("exclusiveMaximum", "below");
  count("minLength", "maxLength", "characters");
  count("minItems", "maxItems", "items");
  if (schema.default !== undefined && schema.default !== null) words.push(`default ${JSON.stringify(schema.default)}`);
  return words.join(", ");
}

/** The objects with fields of their own inside a schema. */
function objects(schema) {
  const own = resolved(schema);
  if (own.properties) return [own];
  return [...(own.anyOf ?? own.oneOf ?? []), own.items].filter(Boolean).flatMap(objects);
}

function fields(schema, depth = 0) {
  const list = element("div", { className: "fields" });
  for (const [name, field] of Object.entries(schema.properties ?? {})) {
    const title = element("div", {}, element("code", { textContent: name }));
    if (schema.required?.includes(name)) title.append(element("span", { className: "required", textContent: "required" }));
    const about = element("div", {}, element("div", { className: "kind", textContent: [kind(field), limits(field)].filter(Boolean).join(" · ") }));
    const told = field.description ?? resolved(field).description;
    if (told) about.append(element("div", {}, ...inline(told)));
    const inner = depth < DEEPEST ? objects(field) : [];
    if (inner.length) about.append(folded(inner, depth));
    list.append(element("div", { className: "field" }, title, about));
  }
  return list;
}

function folded(inner, depth) {
  const names = inner.map((schema) => schema.title ?? "object").join(", ");
  const box = element("details", {}, element("summary", { textContent: `fields of ${names}` }));
  box.addEventListener("toggle", () => {
    if (box.open && box.childElementCount === 1) box.append(...inner.map((schema) => fields(schema, depth + 1)));
  });
  return box;
}

function operation(path, method, said) {
  const id = `${method}-${path.replaceAll(/\W+/g, "-")}`;
  const heading = element("h2", {}, element("span", { className: "method", textContent: method.toUpperCase() }), path);
  const box = element("section", { className: "operation", id }, heading);
  if (said.summary) box.append(element("p", {}, ...inline(said.summary)));
  if (said.description) box.append(element("p", { className: "muted" }, ...inline(said.description)));
  if (said.parameters?.length) {
    const properties = Object.fromEntries(said.parameters.map((parameter) => [parameter.name, { description: parameter.in, ...parameter.schema }]));
    box.append(element("h3", { textContent: "Parameters" }), fields({ properties }));
  }
  const body = said.requestBody?.content?.["application/json"]?.schema;
  for (const schema of body ? objects(body) : []) {
    box.append(element("h3", { textContent: `Body: ${schema.title ?? "object"}` }), fields(schema));
  }
  const answers = Object.entries(said.responses ?? {}).map(([status, answer]) => [status, { type: "object", description: answer.description }]);
  const list = element("div", { className: "fields" });
  for (const [status, answer] of answers) {
    list.append(element("div", { className: "field" }, element("code", { textContent: status }), element("div", { textContent: answer.description })));
  }
  const command = curl(path, method, body);
  box.append(element("h3", { textContent: "Answers" }), list);
  box.append(element("h3", {}, "Try it ", copyButton(() => command.textContent)), command);
  return box;
}

function curl(path, method, body) {
  const address = new URL(path.slice(1), new URL(".", location.href)).href;
  const example = body ? ` -H 'Content-Type: application/json' \\\n  -d '${JSON.stringify(sample(objects(body)[0]))}'` : "";
  return element("pre", { className: "curl", tabIndex: 0, textContent: `curl ${method === "get" ? "" : `-X ${method.toUpperCase()} `}${address}${example}` });
}

/** The smallest body that fits: its required fields. */
function sample(schema, depth = 0) {
  const made = {};
  for (const name of schema?.required ?? []) {
    const field = resolved(schema.properties?.[name]);
    const inner = objects(field)[0];
    const simple = field.anyOf?.map(resolved)[0] ?? field;
    if (name === "model") made[name] = "MODEL";
    else if (name === "role") made[name] = "user";
    else if (field.type === "array" && inner && depth < 3) made[name] = [sample(inner, depth + 1)];
    else if (inner && depth < 3) made[name] = sample(inner, depth + 1);
    else made[name] = { integer: 1, number: 1, boolean: true, array: [] }[simple.type] ?? "text";
  }
  if (made.role === "user") made.content ??= "Hello";
  return made;
}

/** The document; waits for a server that does not answer. Null where a key is wanted, which a button asks for. */
async function read() {
  for (;;) {
    try {
      return await (await ask("openapi.json")).json();
    } catch (error) {
      $("summary").textContent = error.message;
      if (error.status === 401) return keyButton(error.message);
      await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
    }
  }
}

function keyButton(why) {
  const button = element("button", { type: "button", className: "primary", textContent: "Enter the key" });
  button.addEventListener("click", async () => (await askForKey(why)) && draw());
  $("operations").replaceChildren(button);
  return null;
}

async function draw() {
  const document_ = await read();
  if (!document_) return;
  $("operations").replaceChildren();
  $("summary").replaceChildren("Read from this server's ", element("a", { href: "openapi.json", textContent: "openapi.json" }), ".");
  schemas = document_.components?.schemas ?? {};
  $("title").textContent = `${document_.info.title} ${document_.info.version}`;
  const all = Object.entries(document_.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, said]) => ({ path, method, said })));
  all.sort((one, other) => rank(one) - rank(other) || one.path.localeCompare(other.path));
  for (const { path, method, said } of all) {
    const box = operation(path, method, said);
    $("operations").append(box);
    const link = element("a", { href: `#${box.id}` }, element("span", { className: "method", textContent: method.toUpperCase() }), path);
    const entry = element("li", {}, link);
    entry.words = box.textContent.toLowerCase();
    entry.box = box;
    $("contents").append(entry);
  }
  filter();
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

function rank({ path }) {
  return path === "/v1/chat/completions" ? 0 : path.startsWith("/v1/") ? 1 : path.startsWith("/api/") ? 2 : 3;
}

function filter() {
  const wanted = $("filter").value.trim().toLowerCase();
  let left = 0;
  for (const entry of $("contents").children) {
    entry.hidden = entry.box.hidden = !entry.words.includes(wanted);
    left += entry.hidden ? 0 : 1;
  }
  const said = left ? `${left} route${left === 1 ? "" : "s"}` : "No route has that";
  $("routes").firstElementChild.textContent = said;
  $("found").textContent = wanted ? said : "";
}

const arrange = () => ($("routes").open = BESIDE.matches);
BESIDE.addEventListener("change", arrange);
arrange();
$("filter").addEventListener("input", filter);
draw();
