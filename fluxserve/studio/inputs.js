// Pictures to start from: chosen, dropped or pasted, with a mask on the first.

import { $, announce, button, el, release, urlOf } from "./dom.js";
import { paintMask } from "./mask.js";

let inputs = [];
let mask = null;
let most = 1;

export const readInputs = () => ({ inputs: [...inputs], mask });

export const readStrength = () => ($("input-settings").hidden || $("strength-field").hidden || $("strength").value === "0" ? "" : Number($("strength").value) / 100);

export function writeStrength(strength) {
  $("strength").value = Math.round((strength || 0) * 100);
  showStrength();
}

/** How many pictures the model takes. Those that are too many go. */
export function takeAtMost(count) {
  most = count;
  $("files").multiple = count > 1;
  $("strength-field").hidden = count > 1; // a model that draws by several pictures starts from none
  $("inputs-hint").textContent = count > 1 ? `up to ${count} pictures to draw from` : "a picture to edit or vary";
  if (inputs.length > count) setInputs(inputs.slice(0, count), mask);
}

/** Adds a file, or takes it in place of the last one where there is no room. */
export async function addInput(blob) {
  let size;
  try {
    const bitmap = await createImageBitmap(blob);
    size = { width: bitmap.width, height: bitmap.height };
    bitmap.close();
  } catch {
    size = { width: 0, height: 0 }; // the server says what is wrong with it
  }
  const kept = inputs.slice(0, most - 1);
  setInputs([...kept, { blob, ...size }], kept.length ? mask : null);
  announce(`Picture ${inputs.length} to start from is here.`);
}

export function setInputs(pictures, itsMask = null) {
  const gone = inputs.filter(each => !pictures.some(other => other.blob === each.blob));
  inputs = pictures;
  mask = itsMask;
  show();
  gone.forEach(each => release(each.blob));
}

function show() {
  $("inputs").replaceChildren(...inputs.map(item));
  $("input-settings").hidden = inputs.length === 0;
}

function item({ blob, width, height }, at) {
  const name = `Picture ${at + 1}`;
  const thumb = el("div", { className: "thumb" }, el("img", { src: urlOf(blob), alt: name }));
  const buttons = el("div", { className: "buttons" });
  if (at === 0 && width) {
    if (mask) thumb.append(el("img", { src: urlOf(mask), alt: "its mask", className: "mask" }));
    buttons.append(button(mask ? "Repaint the mask" : "Paint a mask", () => editMask(blob)));
    if (mask) buttons.append(button("No mask", () => setInputs(inputs)));
  }
  buttons.append(button("Remove", () => remove(at), { "aria-label": `Remove ${name.toLowerCase()}` }));
  const about = width ? `${name}, ${width} × ${height}` : `${name}, unreadable here`;
  return el("li", {}, thumb, el("div", {}, el("small", { textContent: about + (at === 0 && mask ? ", masked" : "") }), buttons));
}

function remove(at) {
  setInputs(inputs.filter((_, other) => other !== at), at === 0 ? null : mask);
  $("files").focus();
}

async function editMask(blob) {
  const painted = await paintMask(blob, mask);
  if (painted !== undefined) setInputs(inputs, painted);
}

function showStrength() {
  $("strength-shown").textContent = $("strength").value === "0" ? "auto" : `${$("strength").value} %`;
}

$("strength").addEventListener("input", showStrength);
