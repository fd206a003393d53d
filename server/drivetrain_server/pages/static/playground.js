// Tools and structured output: shapes to try, the request as it is sent, the answer checked.

import { ask, element, events } from "./api.js";
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

let model = null;
let running = null;
let messages = [];

themeButton($("theme"));

function choose() {
  const mode = MODES[$("mode").value];
  $("shape-label").hidden = !mode.label;
  if (mode.label) $("shape-label").firstChild.textContent = `${mode.label} `;
  $("shape").value = mode.example ?? "";
  $("prompt").value = mode.prompt;
  preview();
}

/** The request as the form says; throws where a box does not hold JSON. */
function request() {
  return {
    model: model ?? "…",
    messages: messages.length ? messages : [{ role: "user", content: $("prompt").value }],
    temperature: Number($("temperature").value),
    max_tokens: Number($("max-tokens").value),
    stream: true,
    ...MODES[$("mode").value].fields($("shape").value),
  };
}

function preview() {
  messages = [];
  try {
    $("request").textContent = pretty(request());
    verdict("");
  } catch (error) {
    verdict(`The ${MODES[$("mode").value].label.toLowerCase()} is not JSON: ${error.message}`, "bad");
  }
}

function verdict(text, kind = "") {
  $("verdict").textContent = text;
  $("verdict").className = `verdict ${kind}`;
}

async function run() {
  if (running) return;
  let body;
  try {
    model ??= (await (await ask("v1/models")).json()).data[0].id;
    body = request();
  } catch (error) {
    verdict(error.message, "bad");
    return;
  }
  running = new AbortController();
  $("send").hidden = !($("stop").hidden = false);
  $("request").textContent = pretty(body);
  $("answer").textContent = "";
  $("calls").replaceChildren();
  verdict("");
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
    }
    judge(finish, calls, performance.now() - began);
  } catch (error) {
    verdict(error.name === "AbortError" ? "Stopped." : error.message, error.name === "AbortError" ? "" : "bad");
  }
  running = null;
  $("send").hidden = !($("stop").hidden = true);
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
  if (!calls.length) return;
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
    messages = [...sent, { role: "assistant", content: null, tool_calls: calls }, ...answers];
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
for (const id of ["prompt", "shape", "temperature", "max-tokens"]) $(id).addEventListener("input", preview);
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  messages = [];
  run();
});
$("stop").addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
$("copy-curl").addEventListener("click", async () => {
  const quoted = $("request").textContent.replaceAll("'", "'\\''");
  const address = new URL("v1/chat/completions", location.href).href;
  const said = $("copy-curl").textContent;
  try {
    await navigator.clipboard.writeText(`curl ${address} -H 'Content-Type: application/json' -d '${quoted}'`);
    $("copy-curl").textContent = "Copied";
  } catch {
    $("copy-curl").textContent = "Copying is not allowed here";
  }
  setTimeout(() => ($("copy-curl").textContent = said), 1500);
});
choose();
ask("v1/models").then(async (response) => {
  model = (await response.json()).data[0].id;
  preview();
}).catch((error) => verdict(error.status === 401 ? "Enter the API key on the chat page, under Settings." : error.message, "bad"));
