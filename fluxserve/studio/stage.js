// The stage: a frame for each picture that is being drawn or shown, progress, and the facts of the chosen one.

import { $, announce, el, urlOf } from "./dom.js";

let frames = [];
let steps = [];
let told = 0;

/** Makes room for n pictures of this size. Nothing moves from now on. */
export function begin(n, width, height, choose) {
  steps = Array.from({ length: n }, () => [0, 1]);
  told = 0;
  frames = steps.map((_, at) => frame(at, n, width, height, choose));
  layOut();
}

function layOut() {
  const count = frames.length;
  const columns = count < 2 ? 1 : count < 5 ? 2 : count < 10 ? 3 : 4;
  $("stage").dataset.count = count;
  $("stage").setAttribute("aria-busy", "true");
  $("frames").style.setProperty("--columns", columns);
  $("frames").style.setProperty("--rows", Math.ceil(count / columns));
  $("frames").style.setProperty("--ratio", frames[0].style.getPropertyValue("--ratio"));
  $("frames").replaceChildren(...frames);
}

function frame(at, n, width, height, choose) {
  const blank = el("div", { className: "blank" });
  const label = n > 1 ? `Picture ${at + 1} of ${n}` : "The picture";
  const node = el("button", { type: "button", className: "frame", "data-busy": "", "aria-label": label, "aria-pressed": "false", disabled: true, click: () => choose(at) }, blank);
  node.style.setProperty("--ratio", width / height);
  return node;
}

/** Shows what happened, in words, on the bar and in the frame. */
export function onEvent(event, stopHint) {
  if (event.kind === "waiting") return tell(`${place(event)}${expected(event.eta)}${stopHint}`, 0);
  if (event.kind === "step") return onStep(event, stopHint);
  onPicture(event);
}

function place({ place: number, model }) {
  const ahead = number - 1;
  if (ahead > 0) return `Waiting: ${ahead} ${ahead === 1 ? "request goes" : "requests go"} first`;
  return model === "ready" ? "Next in the queue" : "Waiting for the model to load";
}

const expected = eta => (eta === null ? "" : eta < 1.5 ? " · about a second left" : ` · about ${duration(eta)} left`);
const duration = seconds => (seconds < 90 ? `${Math.round(seconds)} s` : `${Math.round(seconds / 60)} min`);

function onStep({ image, step, steps: all, eta }, stopHint) {
  steps[image] = [step, all];
  badge(frames[image], `${step} / ${all}`);
  const which = frames.length > 1 ? ` of picture ${image + 1}` : "";
  tell(`Drawing: step ${step} of ${all}${which}${expected(eta)}${stopHint}`, done());
}

const done = () => steps.reduce((sum, [step, all]) => sum + step / all, 0) / steps.length;

function onPicture({ kind, image, blob, width, height }) {
  const node = frames[image];
  let shown = node.querySelector("img");
  if (!shown) node.append((shown = el("img", { alt: "" })));
  shown.src = urlOf(blob);
  node.style.setProperty("--ratio", width / height);
  node.dataset.shown = kind;
  if (kind !== "done") return;
  steps[image] = [1, 1];
  settle(node);
  shown.alt = `Finished ${node.getAttribute("aria-label").toLowerCase()}`;
}

function settle(node) {
  delete node.dataset.busy;
  node.disabled = false;
  node.querySelector(".step")?.remove();
}

function badge(node, text) {
  const shown = node.querySelector(".step") ?? node.appendChild(el("span", { className: "step" }));
  shown.textContent = text;
}

/** The line under the stage; screen readers hear of every quarter. */
export function tell(text, part) {
  $("status").textContent = text;
  $("progress").value = part;
  const quarter = Math.floor(part * 4);
  if (part === 0 || quarter > told) announce(text);
  told = quarter;
}

/** Nothing more comes. Frames without a picture go. */
export function end(text) {
  for (const node of frames.filter(each => "busy" in each.dataset)) {
    if (node.dataset.shown) settle(node);
    else node.remove();
  }
  $("stage").dataset.count = $("frames").children.length;
  $("stage").setAttribute("aria-busy", "false");
  tell(text, $("frames").children.length ? done() : 0);
}

export const isEmpty = () => $("frames").children.length === 0;

/** One picture of the gallery. */
export function show(record) {
  frames = [frame(0, 1, record.width, record.height, () => {})];
  steps = [[1, 1]];
  layOut();
  onPicture({ kind: "done", image: 0, blob: record.blob, width: record.width, height: record.height });
  frames[0].querySelector("img").alt = record.recipe.prompt || "A variation";
  $("stage").setAttribute("aria-busy", "false");
}

export function mark(at) {
  frames.forEach((node, other) => node.setAttribute("aria-pressed", String(at === other)));
}

/** The facts of a picture, and what can be done with it. actions: [text, act, name], or [text] alone. */
export function describe(record, actions) {
  $("about").textContent = record.recipe.prompt || "A variation, without a prompt";
  $("facts").replaceChildren(...facts(record).map(([name, value]) => el("div", {}, el("dt", { textContent: name }), el("dd", { textContent: value }))));
  $("actions").replaceChildren(...actions.map(action));
}

function action([text, act, label = text]) {
  return act ? el("button", { type: "button", textContent: text, "aria-label": label, click: act }) : el("span", { className: "split", textContent: text });
}

/** No picture is chosen. */
export function forget() {
  $("about").textContent = "What a picture was made of will stand here.";
  $("facts").replaceChildren();
  $("actions").replaceChildren();
}

function facts({ recipe, seed, width, height, timings, model }) {
  const loras = recipe.loras?.map(each => `${each.name} ${each.scale}`).join(", ");
  const all = {
    Seed: seed,
    Size: `${width} × ${height}`,
    Steps: timings?.steps,
    Quality: recipe.quality,
    Guidance: recipe.guidance_scale,
    Model: model,
    LoRAs: loras,
    Strength: recipe.strength,
    "Started from": recipe.inputs?.length ? `${recipe.inputs.length} ${recipe.inputs.length === 1 ? "picture" : "pictures"}${recipe.mask ? ", masked" : ""}` : "",
    Not: recipe.negative_prompt,
    Took: timings ? `${(timings.total_ms / 1000).toFixed(1)} s` : "",
  };
  return Object.entries(all).filter(([, value]) => value !== undefined && value !== "" && value !== null);
}
