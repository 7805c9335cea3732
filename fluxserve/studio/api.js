// The public API, as any client speaks it: models, and pictures as server-sent events.

const BASE = new URL("../", import.meta.url);
const KEY = "fluxserve-key";

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: value => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** The server's refusal, in its own words. param: the field it names, or null. */
export class ServerError extends Error {
  constructor(status, error, retryAfter = null) {
    super(error.message);
    Object.assign(this, { status, param: error.param ?? null, code: error.code ?? null, retryAfter });
  }
}

export const address = path => new URL(path, BASE).href;

async function ask(path, options = {}) {
  const headers = { ...(key.get() ? { authorization: `Bearer ${key.get()}` } : {}), ...options.headers };
  let answer;
  try {
    answer = await fetch(address(path), { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, { message: "The server does not answer." });
  }
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

async function refusal(answer) {
  const body = await answer.json().catch(() => ({}));
  const error = body.error ?? { message: `The server answered ${answer.status}.` };
  return new ServerError(answer.status, error, answer.headers.get("retry-after"));
}

export const models = async () => (await (await ask("v1/models")).json()).data;

/** What /readyz says, whatever its status; it needs no key. */
export async function readiness() {
  try {
    return await (await fetch(address("readyz"))).json();
  } catch {
    return { status: "unreachable" };
  }
}

/** The fields of a recipe as the API takes them; what is not set is not sent. */
export function fieldsOf(recipe) {
  const { inputs, mask, ...fields } = recipe;
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== "" && value != null && !isEmpty(value)));
}

const isEmpty = value => Array.isArray(value) && value.length === 0;

/** Which of the three routes a recipe is for. */
export function routeOf({ inputs, prompt }) {
  if (!inputs?.length) return "v1/images/generations";
  return prompt.trim() ? "v1/images/edits" : "v1/images/variations";
}

/** The body as JSON. Seeds are texts of digits here, for JavaScript's numbers end at 2^53. */
export function jsonOf(fields) {
  const { seed, ...rest } = fields;
  if (seed === undefined) return JSON.stringify(rest);
  return `${JSON.stringify(rest).slice(0, -1)},"seed":${/^-?\d+$/.test(seed) ? seed : JSON.stringify(seed)}}`;
}

function formOf(fields, { inputs, mask }, route) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    if (name === "prompt" && route.endsWith("variations")) continue;
    form.append(name, typeof value === "object" ? JSON.stringify(value) : String(value));
  }
  for (const input of inputs) form.append(inputs.length > 1 ? "image[]" : "image", input.blob, "image");
  if (mask && route.endsWith("edits")) form.append("mask", mask, "mask.png");
  return form;
}

/**
 * Draws, and yields what happens: {kind: "waiting", place, model, eta}, {kind: "step", image, step, steps, eta},
 * {kind: "preview" | "done", image, blob, ...}. Times in seconds, or null. Aborting the signal stops the work.
 */
export async function* draw(recipe, signal) {
  const route = routeOf(recipe);
  const fields = { ...fieldsOf(recipe), stream: true, partial_images: 3 };
  const options = recipe.inputs?.length
    ? { body: formOf(fields, recipe, route) }
    : { body: jsonOf(fields), headers: { "content-type": "application/json" } };
  const answer = await ask(route, { method: "POST", signal, ...options });
  for await (const block of blocks(answer.body)) {
    const told = block.startsWith(":") ? comment(block) : event(block);
    if (told) yield told;
  }
}

/** The blocks of an event stream. */
async function* blocks(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let pieces = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = value.split("\n\n");
    pieces.push(parts[0]);
    for (const part of parts.slice(1)) {
      yield pieces.join("");
      pieces = [part];
    }
  }
}

function comment(block) {
  const words = Object.fromEntries([...block.matchAll(/(\w+)=([\d/]+)/g)].map(match => match.slice(1)));
  const eta = words.eta_ms === undefined ? null : words.eta_ms / 1000;
  if (block.startsWith(": waiting")) return { kind: "waiting", place: Number(words.place), model: /model=(\w+)/.exec(block)?.[1], eta };
  if (!block.startsWith(": progress")) return null;
  const [step, steps] = words.step.split("/").map(Number);
  return { kind: "step", image: Number(words.image), step, steps, eta };
}

function event(block) {
  const text = block.slice(block.indexOf("data: ") + 6);
  const data = JSON.parse(text);
  if (data.type === "error") throw new ServerError(500, data.error);
  const blob = picture(data.b64_json, data.output_format);
  const [width, height] = data.size.split("x").map(Number);
  const about = { image: data.image_index ?? 0, blob, width, height };
  if (data.type.endsWith("partial_image")) return { kind: "preview", ...about };
  return { kind: "done", ...about, seed: /"seed": ?(\d+)/.exec(text)[1], timings: data.timings };
}

function picture(base64, format) {
  const bytes = Uint8Array.from(atob(base64), character => character.charCodeAt(0));
  return new Blob([bytes], { type: `image/${format}` });
}
