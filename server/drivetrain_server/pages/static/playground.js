// Tools and structured output: shapes to try, the request as it is sent, the answer checked.

import { apiKey, ask, copyButton, element, events, swapButtons } from "./api.js";
import { Connection } from "./connection.js";
import { askForKey } from "./key.js";
import { themeButton } from "./theme.js";

const $ = (id) => document.getElementById(id);
const WEATHER = {
  type: "function",
  function: {
    name: "get_weather",
    description: "Current weather of a city",
    parameters: {
      type: "object",
      properties: { city: { type: "string" }, unit: { enum: ["celsius", "fahrenheit"] } },
      required: ["city", "unit"],
      additionalProperties: false,
    },
  },
};
const PERSON = {
  type: "object",
  properties: {
    name: { type: "string", maxLength: 40 },
    age: { type: "integer", minimum: 0, maximum: 120 },
    languages: { type: "array", items: { enum: ["English", "French", "German", "Hindi"] }, minItems: 1, maxItems: 3 },
  },
  required: ["name", "age", "languages"],
  additionalProperties: false,
};
const tools = (shape) => ({ tools: [JSON.parse(shape)].flat() });
const pretty = (value) => JSON.stringify(value, null, 2);

// For each kind: what its text box holds, an example, a prompt, and the fields of the request.
const MODES = {
  json_schema: {
    label: "JSON schema", example: pretty(PERSON), prompt: "Invent a person.",
    fields: (shape) => ({
      response_format: { type: "json_schema", json_schema: { name: "answer", strict: true, schema: JSON.parse(shape) } },
    }),
  },
  json_object: { prompt: "Describe a train as JSON.", fields: () => ({ response_format: { type: "json_object" } }) },
  regex: {
    label: "Regular expression", example: "\\d{4}-\\d{2}-\\d{2}", prompt: "When did the first moon landing take place?",
    fields: (shape) => ({ structured_outputs: { regex: shape } }),
  },
  choice: {
    label: "Choices, one a line", example: "positive\nneutral\nnegative", prompt: "How does “I love this train” sound?",
    fields: (shape) => ({ structured_outputs: { choice: shape.split("\n").filter((line) => line.trim()) } }),
  },
  grammar: {
    label: "Lark grammar", example: 'start: "The answer is " NUMBER "."\nNUMBER: /[0-9]{1,4}/', prompt: "How many legs does a spider have?",
    fields: (shape) => ({ structured_outputs: { grammar: shape } }),
  },
  tools: {
    label: "Tools, as a JSON list", example: pretty([WEATHER]), prompt: "What is the weather in Paris, in celsius?",
    fields: (shape) => ({ ...tools(shape), tool_choice: "auto" }),
  },
  required: {
    label: "Tools, as a JSON list", example: pretty([WEATHER]), prompt: "What is the weather in Paris, in celsius?",
    fields: (shape) => ({ ...tools(shape), tool_choice: "required" }),
  },
  text: { prompt: "Say hello.", fields: () => ({}) },
};

let running = null; // The AbortController of the answer under way.
let turned = null; // The messages that go on from tool calls, in place of the prompt.

themeButton($("theme"));
const connection = new Connection(() => {
  if (running) return;
  preview();
  if (!connection.model) verdict(connection.trouble, connection.wantsKey ? "" : "bad");
});

function choose() {
  const mode = MODES[$("mode").value];
  $("shape-label").hidden = !mode.label;
  if (mode.label) $("shape-label").firstChild.textContent = `${mode.label} `;
  $("shape").value = mode.example ?? "";
  $("prompt").value = mode.prompt;
  edited();
}

/** The request as the form says; throws where a box does not hold JSON. */
function request() {
  const numbers = { temperature: $("temperature").value, max_tokens: $("max-tokens").value };
  const given = Object.entries(numbers).filter(([, value]) => value !== "");
  return {
    model: connection.model ?? "…",
    messages: turned ?? [{ role: "user", content: $("prompt").value }],
    ...Object.fromEntries(given.map(([name, value]) => [name, Number(value)])),
    stream: true,
    ...MODES[$("mode").value].fields($("shape").value),
  };
}

/** The form was changed: what is shown as the answer was to another request. */
function edited() {
  turned = null;
  $("answer-title").textContent = $("answer").textContent || $("calls").firstChild ? "Answer to the request before" : "Answer";
  $("answers").classList.add("stale");
  preview();
}

/** Show the request as it would be sent, or why there is none; false where there is none. */
function preview() {
  try {
    $("request").textContent = pretty(request());
    verdict("");
  } catch (error) {
    $("request").textContent = "";
    verdict(`The ${MODES[$("mode").value].label.toLowerCase()} is not JSON: ${error.message}`, "bad");
  }
  const whole = $("request").textContent !== "";
  $("shape").setAttribute("aria-invalid", String(!whole));
  $("copy-curl").hidden = !whole;
  return whole;
}

function verdict(text, kind = "") {
  $("verdict").textContent = text;
  $("verdict").className = `verdict ${kind}`;
}

function clear() {
  $("answer").textContent = "";
  $("calls").replaceChildren();
  $("answer-title").textContent = "Answer";
  $("answers").classList.remove("stale");
}

async function run() {
  if (running) return;
  clear();
  if (!preview()) return $("shape").focus();
  if (!connection.model) await connection.look();
  if (connection.wantsKey && (await askForKey(connection.facts))) await connection.look();
  if (!connection.model || running) return;
  const body = request();
  running = new AbortController();
  swapButtons($("send"), $("stop"));
  $("answers").setAttribute("aria-busy", "true");
  verdict("Waiting for the first token…");
  const calls = [];
  const began = performance.now();
  let finish = null;
  try {
    for await (const event of events(await ask("v1/chat/completions", { body, signal: running.signal }))) {
      const choice = event.choices[0];
      if (!choice) continue;
      finish = choice.finish_reason ?? finish;
      if (choice.delta?.content) $("answer").append(choice.delta.content);
      for (const part of choice.delta?.tool_calls ?? []) gather(calls, part);
      if (!finish) verdict("Answering…");
    }
    judge(finish, calls, performance.now() - began);
  } catch (error) {
    verdict(error.name === "AbortError" ? "Stopped." : error.message, error.name === "AbortError" ? "" : "bad");
    if (error.unreachable || [401, 404].includes(error.status)) connection.set({ model: null });
  }
  running = null;
  swapButtons($("stop"), $("send"));
  $("answers").setAttribute("aria-busy", "false");
  showCalls(body.messages, calls);
}

function gather(calls, part) {
  const call = (calls[part.index] ??= { id: part.id, type: "function", function: { name: "", arguments: "" } });
  call.function.name += part.function?.name ?? "";
  call.function.arguments += part.function?.arguments ?? "";
}

function judge(finish, calls, ms) {
  const text = $("answer").textContent;
  const time = `${(ms / 1000).toFixed(1)} s`;
  if (finish === "length") return verdict(`Cut at the limit of tokens after ${time}.`, "bad");
  if (calls.length) return verdict(`${calls.length} tool call${calls.length > 1 ? "s" : ""} in ${time}.`, "good");
  if (!$("mode").value.startsWith("json")) return verdict(`Done in ${time}.`, "good");
  try {
    $("answer").textContent = pretty(JSON.parse(text));
    verdict(`Valid JSON in ${time}.`, "good");
  } catch (error) {
    verdict(`Not JSON: ${error.message}`, "bad");
  }
}

function showCalls(sent, calls) {
  if (!calls.length || calls.some((call) => !call.id)) return;
  const results = calls.map((call) => {
    const result = element("textarea", { rows: 2, className: "code", value: '{"temperature": 21, "sky": "clear"}' });
    const box = element("div", { className: "call" },
      element("h3", { textContent: call.function.name }),
      element("pre", { textContent: formatted(call.function.arguments) }),
      element("label", {}, "What it returns ", result));
    $("calls").append(box);
    return result;
  });
  const go = element("button", { type: "button", className: "primary", textContent: "Send results" });
  go.addEventListener("click", () => {
    const answers = calls.map((call, n) => ({ role: "tool", tool_call_id: call.id, content: results[n].value }));
    turned = [...sent, { role: "assistant", content: null, tool_calls: calls }, ...answers];
    if ($("mode").value === "required") $("mode").value = "tools";
    run();
  });
  $("calls").append(element("div", { className: "row" }, go));
}

function formatted(text) {
  try {
    return pretty(JSON.parse(text));
  } catch {
    return text;
  }
}

$("mode").addEventListener("change", choose);
for (const id of ["prompt", "shape", "temperature", "max-tokens"]) $(id).addEventListener("input", edited);
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  turned = null;
  run();
});
$("stop").addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
const copy = copyButton(() => {
  const quoted = $("request").textContent.replaceAll("'", "'\\''");
  const address = new URL("v1/chat/completions", location.href).href;
  const key = apiKey.get() ? " -H 'Authorization: Bearer KEY'" : "";
  return `curl -N ${address}${key} -H 'Content-Type: application/json' -d '${quoted}'`;
}, "Copy as curl");
$("copy-curl").append(copy);
choose();
connection.look();
