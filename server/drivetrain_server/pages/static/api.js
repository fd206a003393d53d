// The server as the pages use it: the key, JSON, events. Addresses are relative, so that a path prefix works.

const KEY = "drivetrain.key";

/** The API key of this tab; never written to disk. */
export const apiKey = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** Ask the server. Throws an Error with the server's own message where it refuses. */
export async function ask(path, { body, signal, headers = {} } = {}) {
  const key = apiKey.get();
  const response = await fetch(path, {
    method: body === undefined ? "GET" : "POST",
    body: body === undefined ? undefined : JSON.stringify(body),
    headers: {
      ...headers,
      ...(body === undefined ? {} : { "Content-Type": "application/json" }),
      ...(key ? { Authorization: `Bearer ${key}` } : {}),
    },
    signal,
    credentials: "omit",
  });
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const text = await response.text();
  let message = text.slice(0, 500) || `the server answered ${response.status}`;
  try {
    message = JSON.parse(text).error?.message ?? message;
  } catch {
    // Not JSON: the text itself is the message.
  }
  const error = new Error(message);
  error.status = response.status;
  return error;
}

/** The JSON of a stream's events, read to its end. Throws where the server ends the stream with an error. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        if (!part.startsWith("data: ")) continue;
        if (part === "data: [DONE]") continue;
        const event = JSON.parse(part.slice(6));
        if (event.error) throw new Error(event.error.message ?? "the server ended the answer");
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Numbers of /metrics by `name{labels}`; null where this page may not read them. */
export async function metrics() {
  try {
    const text = await (await ask("metrics")).text();
    const lines = text.split("\n").filter((line) => line && !line.startsWith("#"));
    return new Map(lines.map((line) => [line.slice(0, line.lastIndexOf(" ")), Number(line.slice(line.lastIndexOf(" ") + 1))]));
  } catch {
    return null;
  }
}

/** An element with properties and children; text is always text. */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}
