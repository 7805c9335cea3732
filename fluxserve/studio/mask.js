// Painting a mask over a picture: what is painted becomes transparent, and is redrawn.

import { $ } from "./dom.js";

const TINT = "#1fb89e";

let painting = null;

/** The mask as a PNG of the picture's size; null where nothing is painted, undefined where it was cancelled. */
export async function paintMask(picture, before) {
  const bitmap = await createImageBitmap(picture);
  painting = { bitmap, paint: layer(bitmap), undone: [], at: [bitmap.width / 2, bitmap.height / 2], erase: false, keys: false };
  if (before) await loadMask(before);
  Object.assign($("mask-canvas"), { width: bitmap.width, height: bitmap.height });
  $("mask-canvas").style.setProperty("--ratio", bitmap.width / bitmap.height);
  choose(false);
  redraw();
  $("mask-dialog").showModal();
  $("mask-canvas").focus();
  return new Promise(resolve => (painting.resolve = resolve));
}

/** A canvas of the picture's size, opaque where it is painted. */
function layer({ width, height }) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  canvas.getContext("2d", { willReadFrequently: true });
  return canvas;
}

async function loadMask(mask) {
  const bitmap = await createImageBitmap(mask);
  const context = painting.paint.getContext("2d");
  context.fillStyle = TINT;
  context.fillRect(0, 0, bitmap.width, bitmap.height);
  context.globalCompositeOperation = "destination-out";
  context.drawImage(bitmap, 0, 0);
  context.globalCompositeOperation = "source-over";
}

async function finish(keep) {
  const { paint, resolve } = painting;
  const result = keep ? await exported(paint) : undefined;
  $("mask-dialog").close();
  painting.bitmap.close();
  painting = null;
  resolve(result);
}

async function exported(paint) {
  const pixels = paint.getContext("2d").getImageData(0, 0, paint.width, paint.height).data;
  if (!pixels.some((value, at) => at % 4 === 3 && value)) return null;
  const mask = layer(paint);
  const context = mask.getContext("2d");
  context.fillRect(0, 0, mask.width, mask.height);
  context.globalCompositeOperation = "destination-out";
  context.drawImage(paint, 0, 0);
  return new Promise(resolve => mask.toBlob(resolve, "image/png"));
}

function redraw() {
  const { bitmap, paint, at, keys } = painting;
  const context = $("mask-canvas").getContext("2d");
  context.clearRect(0, 0, bitmap.width, bitmap.height);
  context.drawImage(bitmap, 0, 0);
  context.globalAlpha = 0.6;
  context.drawImage(paint, 0, 0);
  context.globalAlpha = 1;
  if (keys) ring(context, at);
}

function ring(context, [x, y]) {
  for (const [colour, width] of [["#000", 3], ["#fff", 1.5]]) {
    context.beginPath();
    context.arc(x, y, radius(), 0, 7);
    Object.assign(context, { strokeStyle: colour, lineWidth: (width * painting.bitmap.width) / 600 });
    context.stroke();
  }
}

/** The brush, as a part of the longer side. */
const radius = () => (Math.max(painting.bitmap.width, painting.bitmap.height) * $("brush-size").value) / 400;

function stroke(from, to) {
  const context = painting.paint.getContext("2d");
  context.globalCompositeOperation = painting.erase ? "destination-out" : "source-over";
  Object.assign(context, { strokeStyle: TINT, lineWidth: radius() * 2, lineCap: "round", lineJoin: "round" });
  context.beginPath();
  context.moveTo(...from);
  context.lineTo(to[0] + 0.01, to[1]);
  context.stroke();
  redraw();
}

/** Remembers how it was, so that it can be undone. */
function remember() {
  const { paint, undone } = painting;
  undone.push(paint.getContext("2d").getImageData(0, 0, paint.width, paint.height));
  if (undone.length > 12) undone.shift();
}

function undo() {
  const last = painting.undone.pop();
  if (last) painting.paint.getContext("2d").putImageData(last, 0, 0);
  redraw();
}

function clear() {
  remember();
  painting.paint.getContext("2d").clearRect(0, 0, painting.paint.width, painting.paint.height);
  redraw();
}

function choose(erase) {
  painting.erase = erase;
  $("brush").setAttribute("aria-pressed", String(!erase));
  $("eraser").setAttribute("aria-pressed", String(erase));
}

function pointOf(event) {
  const box = $("mask-canvas").getBoundingClientRect();
  const { width, height } = painting.bitmap;
  return [((event.clientX - box.left) * width) / box.width, ((event.clientY - box.top) * height) / box.height];
}

const canvas = $("mask-canvas");

canvas.addEventListener("pointerdown", event => {
  canvas.setPointerCapture(event.pointerId);
  remember();
  painting.keys = false;
  painting.at = pointOf(event);
  stroke(painting.at, painting.at);
});

canvas.addEventListener("pointermove", event => {
  if (!painting || !event.buttons) return;
  const to = pointOf(event);
  stroke(painting.at, to);
  painting.at = to;
});

function move(dx, dy) {
  const step = Math.max(4, radius() / 2);
  const { width, height } = painting.bitmap;
  painting.keys = true;
  painting.at = [clamp(painting.at[0] + dx * step, width), clamp(painting.at[1] + dy * step, height)];
  redraw();
}

const clamp = (value, most) => Math.min(Math.max(value, 0), most);

function resize(by) {
  $("brush-size").value = Number($("brush-size").value) + by;
  redraw();
}

function dab() {
  remember();
  painting.keys = true;
  stroke(painting.at, painting.at);
}

const KEYS = { b: () => choose(false), e: () => choose(true), "[": () => resize(-5), "]": () => resize(5) };
const CANVAS_KEYS = { ArrowLeft: () => move(-1, 0), ArrowRight: () => move(1, 0), ArrowUp: () => move(0, -1), ArrowDown: () => move(0, 1), " ": dab };

$("mask-dialog").addEventListener("keydown", event => {
  const undoing = (event.ctrlKey || event.metaKey) && event.key === "z";
  const act = undoing ? undo : KEYS[event.key] ?? (event.target === canvas && CANVAS_KEYS[event.key]);
  if (!act) return;
  event.preventDefault();
  act();
});

$("brush").addEventListener("click", () => choose(false));
$("eraser").addEventListener("click", () => choose(true));
$("undo").addEventListener("click", undo);
$("clear").addEventListener("click", clear);
$("mask-save").addEventListener("click", () => finish(true));
$("mask-cancel").addEventListener("click", () => finish(false));
$("mask-dialog").addEventListener("cancel", event => {
  event.preventDefault();
  finish(false);
});
