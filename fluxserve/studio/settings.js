// The form: what the model takes becomes controls, what people set becomes a recipe, refusals stand beside their field.

import { $, el, shape } from "./dom.js";

const RATIOS = { Square: [1, 1], Portrait: [3, 4], Landscape: [4, 3], Tall: [9, 16], Wide: [16, 9] };
const GRID = 16;
const FIELD_OF = { steps: "num_inference_steps", guidance: "guidance_scale", width: "size", height: "size", lora: "loras", mask: "image" };

let models = [];

export const modelNamed = name => models.find(each => each.id === name || each.aliases?.includes(name));
export const chosenModel = () => modelNamed($("model").value) ?? models[0];

/** Shows what the server has. What was chosen stays chosen where it still can be; returns whether its controls changed. */
export function showModels(found) {
  const before = chosenModel();
  models = found;
  $("model").replaceChildren(...found.map(each => el("option", { value: each.id, textContent: label(each) })));
  if (modelNamed(before?.id)) $("model").value = modelNamed(before.id).id;
  const changed = controlsOf(before) !== controlsOf(chosenModel());
  if (changed) showModel();
  return changed;
}

const STATES = { unloaded: "loads when it is used", loading: "loading", failed: "cannot be loaded" };
const label = model => (STATES[model.state] ? `${model.id} (${STATES[model.state]})` : model.id);

/** What the controls are made from; the rest of a model may change without them. */
const controlsOf = model => JSON.stringify(model, (name, value) => (CHANGING.includes(name) ? undefined : value));
const CHANGING = ["created", "state", "workers", "load_s", "placement"];

/** Whether the server does not know yet what one of its models takes. */
export const someUnknown = () => models.some(each => !each.limits);

export const isLoaded = () => !STATES[chosenModel()?.state];

/** Adapts the controls to the chosen model. */
export function showModel() {
  const model = chosenModel();
  if (!model) return;
  const [limits, defaults] = [model.limits ?? {}, model.defaults ?? {}]; // not known of one that was never loaded
  $("model-about").textContent = model.notice ?? model.description ?? "";
  $("n").max = limits.max_n ?? 10;
  showQualities(defaults.steps ?? {});
  showSizes(defaults.size ?? model.default_size ?? "1024x1024", limits.max_pixels);
  showLoras(model.loras ?? []);
  $("guidance-field").hidden = defaults.guidance_scale == null;
  $("guidance").placeholder = defaults.guidance_scale ?? "";
  $("cfg").placeholder = defaults.true_cfg_scale ?? 1;
}

function showQualities(steps) {
  const before = $("quality").value;
  const words = ["auto", "low", "medium", "high", "xhigh", "max"].filter(word => word === "auto" || steps[word]);
  const count = word => steps[word === "auto" ? "medium" : word];
  const shown = word => `${word[0].toUpperCase()}${word.slice(1)}${count(word) ? ` · ${count(word)} steps` : ""}`;
  $("quality").replaceChildren(...words.map(word => el("option", { value: word, textContent: shown(word) })));
  $("quality").value = words.includes(before) ? before : "auto";
}

function showSizes(size, maxPixels = Infinity) {
  const before = currentSize();
  const [width, height] = size.split("x").map(Number);
  const area = Math.min(width * height, maxPixels);
  const sizes = Object.entries(RATIOS).map(([name, ratio]) => [name, sized(area, ratio)]);
  const chips = [
    chip("Auto", "auto", width, height),
    ...sizes.map(([name, [w, h]]) => chip(name, `${w}x${h}`, w, h)),
    chip("Free", "free", 5, 4),
  ];
  $("sizes").replaceChildren(...chips);
  setSize(before);
}

/** A size of about this area in these proportions, on the grid and not above it. */
function sized(area, [across, down]) {
  const scale = Math.sqrt(area / (across * down));
  const near = side => Math.max(64, Math.round((side * scale) / GRID) * GRID);
  const [width, height] = [near(across), near(down)];
  return width * height <= area * 1.02 ? [width, height] : [Math.max(64, width - GRID), height];
}

function chip(name, value, width, height) {
  const radio = el("input", { type: "radio", name: "size", value, change: showFree });
  const title = value === "auto" ? "The model's own size, or the picture's" : value === "free" ? "Any multiples of 16" : value.replace("x", " × ");
  return el("label", { title }, radio, shape(width, height), name);
}

function showFree() {
  $("free-size").hidden = currentRadio()?.value !== "free";
}

const currentRadio = () => document.querySelector("input[name=size]:checked");

function currentSize() {
  const value = currentRadio()?.value ?? "auto";
  return value === "free" ? `${$("width").value}x${$("height").value}` : value;
}

/** Chooses a size, as one of the presets where it is one. */
export function setSize(size) {
  const radios = [...document.querySelectorAll("input[name=size]")];
  const preset = radios.find(radio => radio.value === size);
  const chosen = preset ?? radios.find(radio => radio.value === "free");
  if (chosen) chosen.checked = true;
  if (!preset) [$("width").value, $("height").value] = size.split("x");
  showFree();
}

function showLoras(names) {
  const before = new Map(readLoras().map(each => [each.name, each.scale]));
  $("loras-field").hidden = names.length === 0;
  $("loras").replaceChildren(...names.map((name, at) => loraRow(name, at, before.get(name))));
}

function loraRow(name, at, scale) {
  const check = el("input", { type: "checkbox", id: `lora-${at}`, checked: scale !== undefined });
  const strength = el("input", { type: "number", min: -4, max: 4, step: 0.1, value: scale ?? 1, "aria-label": `Strength of ${name}` });
  return el("div", { className: "lora", "data-name": name }, check, el("label", { for: check.id, textContent: name, title: name }), strength);
}

function readLoras() {
  const rows = [...$("loras").children].filter(row => row.querySelector("[type=checkbox]").checked);
  return rows.map(row => ({ name: row.dataset.name, scale: number(row.querySelector("[type=number]").value) }));
}

const number = text => (text === "" || isNaN(text) ? text : Number(text));

/** What is set, in the API's words, without pictures. Numbers that are none go as they are: the server says why. */
export function readRecipe() {
  return {
    prompt: $("prompt").value,
    model: $("model").value,
    n: number($("n").value),
    size: currentSize(),
    quality: $("quality").value === "auto" ? "" : $("quality").value,
    num_inference_steps: number($("steps").value),
    guidance_scale: $("guidance-field").hidden ? "" : number($("guidance").value),
    negative_prompt: $("negative").value,
    true_cfg_scale: number($("cfg").value),
    seed: $("seed").value.trim(),
    loras: readLoras(),
  };
}

/** The other way round. */
export function writeRecipe(recipe) {
  const model = modelNamed(recipe.model);
  if (model) $("model").value = model.id;
  showModel();
  const values = { prompt: "prompt", n: "n", steps: "num_inference_steps", guidance: "guidance_scale", negative: "negative_prompt", cfg: "true_cfg_scale", seed: "seed" };
  for (const [id, name] of Object.entries(values)) $(id).value = recipe[name] ?? "";
  $("n").value = recipe.n || 1;
  $("quality").value = recipe.quality || "auto";
  setSize(recipe.size || "auto");
  for (const row of $("loras").children) {
    const chosen = recipe.loras?.find(each => each.name === row.dataset.name);
    row.querySelector("[type=checkbox]").checked = Boolean(chosen);
    row.querySelector("[type=number]").value = chosen?.scale ?? 1;
  }
  $("more").open ||= Boolean(recipe.negative_prompt || recipe.true_cfg_scale);
}

export function clearErrors() {
  for (const shown of document.querySelectorAll("#composer .field > .error")) shown.remove();
  for (const input of document.querySelectorAll("#composer [aria-invalid]")) {
    input.removeAttribute("aria-invalid");
    input.removeAttribute("aria-errormessage");
  }
  $("problem").hidden = true;
}

/** Shows a refusal beside the field it names, else under the button. */
export function showError(error) {
  const param = (error.param ?? "").split("[")[0];
  const field = document.querySelector(`[data-field="${CSS.escape(FIELD_OF[param] ?? param)}"]`);
  if (!field || field.hidden) {
    const wait = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
    $("problem").textContent = error.message + wait;
    $("problem").hidden = false;
    return;
  }
  const id = `error-${field.dataset.field}`;
  field.append(el("p", { id, className: "error", role: "alert", textContent: error.message }));
  const input = field.querySelector("input:checked, textarea, select, input:not([type=radio])");
  input?.setAttribute("aria-invalid", "true");
  input?.setAttribute("aria-errormessage", id);
  for (let box = field.closest("details"); box; box = box.parentElement.closest("details")) box.open = true;
  input?.focus();
}
